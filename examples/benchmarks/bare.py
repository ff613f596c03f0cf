"""What a machine lacks that has torch, transformers, sentence-transformers and peft and can fetch nothing: a borrowed
GPU. A stand-in for pydantic, texts, and a model of MiniLM's shape.

Import it before ragadapt. It changes nothing where pydantic is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
_ABSENT: Any = object()


# Settings without pydantic


class _Setting:
    def __init__(self, default: Any = _ABSENT, **_: Any) -> None:
        self.default = default


class _Settings:
    """Settings with defaults, as pydantic's BaseModel has them, of which nothing is checked but their names."""

    model_fields: ClassVar[dict[str, _Setting]] = {}

    def __init_subclass__(cls, **_: Any) -> None:
        own = {}
        for name, kind in inspect.get_annotations(cls).items():
            if "ClassVar" not in str(kind):
                default = cls.__dict__.get(name, _ABSENT)
                own[name] = default if isinstance(default, _Setting) else _Setting(default)
                if name in cls.__dict__:
                    delattr(cls, name)
        cls.model_fields = {**cls.model_fields, **own}

    def __init__(self, **values: Any) -> None:
        fields = type(self).model_fields
        if unknown := sorted(values.keys() - fields.keys()):
            raise TypeError(f"{type(self).__name__} has no settings {', '.join(unknown)}")
        for name, field in fields.items():
            value = values.get(name, field.default)
            if value is _ABSENT:
                raise TypeError(f"{type(self).__name__} needs {name}")
            if isinstance(value, dict) and isinstance(field.default, _Settings):
                value = type(field.default)(**value)
            setattr(self, name, value)
        self.model_fields_set = set(values)

    @classmethod
    def model_validate(cls, values: dict[str, Any]) -> Any:
        return cls(**values)

    def model_copy(self, *, update: dict[str, Any] | None = None) -> Any:
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**given, **(update or {})})

    def model_dump(self, *, exclude: Any = (), **_: Any) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in type(self).model_fields if name not in exclude}
        return {name: value.model_dump() if isinstance(value, _Settings) else value for name, value in found.items()}


def stand_in() -> bool:
    """Import ragadapt's settings with these in the place of pydantic's; False where pydantic is installed. For
    measurements whose settings stand in the code, not for anything that a user typed."""
    if importlib.util.find_spec("pydantic") is not None:
        return False
    base, core = ModuleType("pydantic"), ModuleType("pydantic_core")
    vars(base).update(
        BaseModel=_Settings, ConfigDict=dict, Field=_Setting, ValidationError=ValueError, AfterValidator=lambda _: None
    )
    vars(core).update(PydanticCustomError=ValueError)
    before = {name: sys.modules.get(name, _ABSENT) for name in ("pydantic", "pydantic_core")}
    sys.modules.update(pydantic=base, pydantic_core=core)
    try:
        importlib.import_module("ragadapt.config")
    finally:  # other libraries look for the real one, and do without
        for name, module in before.items():
            del sys.modules[name]
            if module is not _ABSENT:
                sys.modules[name] = module
    return True


STANDS_IN = stand_in()


# Texts and a model


def own_texts(count: int, *, words: int = 190, seed: int = 13) -> list[str]:
    """`count` distinct passages of this repository's own pages, each of about so many words (250 tokens)."""
    pages = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "ragadapt").rglob("*.py")})
    pool = " ".join(re.sub(r"[^\w.,;:!?()' -]+", " ", page.read_text(encoding="utf-8")) for page in pages).split()
    rng = np.random.default_rng(seed)
    lengths = rng.integers(int(0.8 * words), int(1.2 * words), size=4 * count)
    starts = rng.integers(len(pool) - int(1.2 * words), size=4 * count)
    made = dict.fromkeys(" ".join(pool[at : at + n]) for at, n in zip(starts, lengths, strict=True))
    if len(made) < count:
        raise ValueError(f"the pages of {ROOT} give {len(made)} passages, and {count} were asked for")
    return list(made)[:count]


def own_triples(texts: list[str], path: Path) -> Path:
    """A training file as `speed.write_triples` makes it: words of a passage, the passage, another passage."""
    if not path.exists():
        rows = []
        for at, text in enumerate(texts):
            parts = text.split()
            start = (7 * at) % max(1, len(parts) - 12)
            query = " ".join(parts[start : start + 12])
            rows.append({"query": query, "positive": text, "negative": texts[(at + 1) % len(texts)]})
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


MINILM: dict[str, int] = {
    "vocab_size": 30_522, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
    "intermediate_size": 1536, "max_position_embeddings": 512,
}  # fmt: skip


def minilm_shaped(folder: Path, texts: list[str], *, seed: int = 0, **changes: int) -> Path:
    """A sentence-transformers model of all-MiniLM-L6-v2's shape with random weights, and a WordPiece tokenizer that is
    trained on the texts. What it finds means nothing; its speed and its memory are MiniLM's. changes: of the shape."""
    if (folder / "modules.json").exists():
        return folder
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    shape = {**MINILM, **changes}
    words = BertWordPieceTokenizer()
    words.train_from_iterator(texts[:2000], vocab_size=shape["vocab_size"], min_frequency=2, show_progress=False)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "cls", "sep", "mask")}
    raw = folder.with_name(folder.name + "-raw")
    PreTrainedTokenizerFast(tokenizer_object=words._tokenizer, **special).save_pretrained(raw)
    torch.manual_seed(seed)
    model = BertModel(BertConfig(**shape))
    with torch.no_grad():  # transformers starts near zero, where all texts look alike
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2.0)
    model.save_pretrained(raw)
    parts = [Transformer(str(raw), max_seq_length=256), Pooling(shape["hidden_size"], "mean"), Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder), create_model_card=False)
    return folder
