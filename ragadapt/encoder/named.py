"""An encoder by whatever a user has at hand: a retriever's folder, a model's folder, a preset or a hub name."""

from __future__ import annotations

from pathlib import Path

from ragadapt.checks import checked_path, shown
from ragadapt.config import EncoderConfig
from ragadapt.encoder.encoder import Encoder
from ragadapt.encoder.spec import EncoderSpec, read_spec
from ragadapt.errors import InvalidInput, NotARetriever

MANIFEST = "ragadapt.json"  # of a saved retriever


def open_encoder(
    model: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    query_prompt: str | None = None,
    passage_prompt: str | None = None,
    max_length: int | None = None,
) -> Encoder:
    """The encoder of a retriever's folder, of a model folder, or a base model by preset or hub name.

    Prompts and max_length: None = what the model was saved with or is known to need. A model that ragadapt saved
    takes no others: they would give vectors that fit no index built with it. Raises NotARetriever, ModelNotFound,
    InvalidInput, MissingExtra, StoreCorrupt.
    """
    if not isinstance(model, str | Path) or not str(model) or "\0" in str(model):
        raise InvalidInput(
            f"model is {shown(model)}: give a retriever's folder, a model's folder, a preset or a hub name."
        )
    folder = checked_path(model, "model").expanduser()
    if (folder / MANIFEST).is_file():
        folder = folder / "model"
    spec = read_spec(folder) if folder.is_dir() else None
    if spec is not None:
        _check(spec, folder, query_prompt, passage_prompt, max_length)
        return Encoder.open(folder, device=device, precision=precision)
    if folder.is_dir() and not any((folder / name).is_file() for name in ("modules.json", "config.json")):
        raise NotARetriever(
            f"{folder} holds neither a retriever (no {MANIFEST}) nor a model (no modules.json, no config.json). "
            "Give the folder that `ragadapt fit -o` wrote."
        )
    values = {
        "model": str(folder) if folder.is_dir() else str(model),
        "device": device,
        "precision": precision,
        "query_prompt": query_prompt,
        "passage_prompt": passage_prompt,
        "max_length": max_length,
    }
    return Encoder.load(EncoderConfig.model_validate(values))


def _check(spec: EncoderSpec, folder: Path, query: str | None, passage: str | None, max_length: int | None) -> None:
    asked = {"query_prompt": query, "passage_prompt": passage, "max_length": max_length}
    for name, value in asked.items():
        saved = getattr(spec, name)
        if value is not None and value != saved:
            raise InvalidInput(
                f"{name} is {value!r}, but the model in {folder} was fitted with {saved!r}: its vectors and those of "
                f"its index would not be comparable. Leave {name} out, or fit again with it."
            )
