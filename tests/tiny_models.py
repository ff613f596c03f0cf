"""Random small models, made on the spot: real architectures at toy size."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch

_TEXT = (
    "the a of and to in is it for on with as by at from how do i what when why who where open close file line "
    "read write cat dog tree river bridge bread oven bake city council vote price cheap flight invoice due pay "
    "password reset error server time month day year red green blue small large old new water fire stone wood"
)
WORDS = _TEXT.split()

KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "modernbert": {"local_attention": 16, "global_attn_every_n_layers": 3, "cls_token_id": 2, "sep_token_id": 3},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 16},
}
"""What each model type that runs in ragadapt's own forward needs beside the sizes."""


def sentences(count: int, words: int = 12, seed: int = 0) -> list[str]:
    """Distinct made-up sentences of 3 to `words` words."""
    generator = torch.Generator().manual_seed(seed)
    made: list[str] = []
    while len(made) < count:
        length = int(torch.randint(3, words + 1, (1,), generator=generator))
        picks = torch.randint(len(WORDS), (length,), generator=generator).tolist()
        text = " ".join(WORDS[pick] for pick in picks)
        if text not in made:
            made.append(text)
    return made


def write_tokenizer(folder: Path, padding_side: str = "right") -> None:
    from transformers import BertTokenizerFast

    letters = string.ascii_lowercase + string.digits
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    pieces += [letter for letter in letters if letter not in pieces] + [f"##{letter}" for letter in letters]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    options = {"do_lower_case": True, "model_max_length": 64, "padding_side": padding_side}
    BertTokenizerFast(vocab=str(vocabulary), **options).save_pretrained(folder)


def write_tiny_model(
    folder: Path,
    kind: str = "bert",
    layers: int = 2,
    pooling: str = "mean",
    seed: int = 0,
    padding_side: str = "right",
    **settings: Any,
) -> Path:
    """A sentence-transformers folder with a random transformer of width 32. kind: a transformers model type."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import AutoConfig, AutoModel

    raw = folder / "raw"
    write_tokenizer(raw, padding_side)
    names: dict[str, Any] = {
        "vocab_size": 160,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 66,
        "pad_token_id": 0,
    }
    if kind == "distilbert":
        names = {
            "vocab_size": 160,
            "dim": 32,
            "n_layers": layers,
            "n_heads": 2,
            "hidden_dim": 64,
            "max_position_embeddings": 66,
            "pad_token_id": 0,
        }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**names, **settings})
    model = AutoModel.from_config(config)
    with torch.no_grad():  # transformers starts near zero, where all texts look alike
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    model.save_pretrained(raw)
    transformer = Transformer(str(raw), max_seq_length=48)
    made = SentenceTransformer(modules=[transformer, Pooling(32, pooling), Normalize()], device="cpu")
    target = folder / "model"
    made.save(str(target), create_model_card=False)
    return target


def write_tiny_cross_encoder(folder: Path, seed: int = 0, kind: str = "bert", labels: int = 1, **settings: Any) -> Path:
    """A folder with a random two-layer transformer that gives one score for a pair. kind: a transformers model type."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    write_tokenizer(folder)
    torch.manual_seed(seed)
    names: dict[str, Any] = {
        "vocab_size": 160,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 66,
        "pad_token_id": 0,
        "num_labels": labels,
    }
    if kind == "distilbert":
        renamed = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
        names = {renamed.get(name, name): value for name, value in names.items()}
    config = AutoConfig.for_model(kind, **{**names, **KINDS.get(kind, {}), **settings})
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    model.save_pretrained(folder)
    return folder


def write_modular_cross_encoder(folder: Path, kind: str = "modernbert", seed: int = 0) -> Path:
    """One of modules, as the ettin re-rankers are: a plain transformer, its first token, two layers, one score."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.modules import Dense, Transformer
    from sentence_transformers.models import Pooling

    base = write_tiny_model(folder / "base", kind, seed=seed, **KINDS[kind])
    torch.manual_seed(seed)
    modules = [
        Transformer(str(base), max_seq_length=48),
        Pooling(32, "cls"),
        Dense(32, 16, activation_function=torch.nn.GELU()),
        Dense(16, 1, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
    with torch.no_grad():
        modules[-1].linear.weight.mul_(8.0)
    model = CrossEncoder(modules=modules, device="cpu")
    model.save_pretrained(str(folder / "model"), create_model_card=False)
    return folder / "model"


PYLATE = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 12, "document_length": 40}
STANFORD = {"query_maxlen": 12, "doc_maxlen": 40, "query_token_id": "[unused0]", "doc_token_id": "[unused1]"}


def write_tiny_multi_vector(
    folder: Path, kind: str = "bert", seed: int = 0, width: int | None = 16, skip: str = "", **settings: Any
) -> Path:
    """A folder with a random MultiVectorEncoder. kind: a transformers model type. width: of the projection; None =
    without one. skip: characters that do not count in passages. settings: of the Transformer module, such as
    query_expansion, and prompts."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    made = {"prompts": settings.pop("prompts", None), "similarity_fn_name": settings.pop("similarity", None)}
    raw = write_tiny_model(folder / "base", kind, seed=seed, **KINDS.get(kind, {})).parent / "raw"
    torch.manual_seed(seed)
    modules: list[Any] = [Transformer(str(raw), max_seq_length=48, **settings)]
    if width is not None:
        names = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
        modules.append(Dense(32, width, bias=False, activation_function=torch.nn.Identity(), **names))
    modules += [MultiVectorMask(skiplist_words=list(skip)), Normalize(module_input_name="token_embeddings")]
    model = MultiVectorEncoder(modules=modules, device="cpu", **made)
    model.save_pretrained(str(folder / "model"), create_model_card=False)
    return folder / "model"


def write_tiny_pylate(folder: Path, seed: int = 0) -> Path:
    """The same as PyLate saves it: settings at the top, prefixes, no modules for the mask and the norm."""
    model = write_tiny_multi_vector(folder, "modernbert", seed)
    listed = json.loads((model / "modules.json").read_text(encoding="utf-8"))[:2]
    listed[1]["type"] = "pylate.models.Dense.Dense"
    (model / "modules.json").write_text(json.dumps(listed), encoding="utf-8")
    about = {"model_type": "ColBERT", **PYLATE, "attend_to_expansion_tokens": False, "skiplist_words": ["a", "of"]}
    (model / "config_sentence_transformers.json").write_text(json.dumps(about), encoding="utf-8")
    (model / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40}), encoding="utf-8")
    return model


def write_tiny_stanford(folder: Path, seed: int = 0) -> Path:
    """The same as Stanford's ColBERT saves it: the projection among the transformer's weights."""
    from safetensors.torch import load_file, save_file

    raw = write_tiny_model(folder / "base", seed=seed).parent / "raw"
    weights = {f"bert.{name}": tensor for name, tensor in load_file(raw / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(seed)
    save_file({**weights, "linear.weight": torch.randn(16, 32, generator=generator)}, raw / "model.safetensors")
    settings = json.loads((raw / "config.json").read_text(encoding="utf-8"))
    (raw / "config.json").write_text(json.dumps({**settings, "architectures": ["HF_ColBERT"]}), encoding="utf-8")
    (raw / "artifact.metadata").write_text(json.dumps(STANFORD), encoding="utf-8")
    return raw
