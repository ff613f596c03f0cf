"""Large corpora for measurements of growth: new documents made of real sentences, and a tiny model that reads them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ragadapt.config import EncoderConfig
from ragadapt.encoder.presets import resolve

_TINY = 32  # width of the tiny transformer; its vectors are projected to the usual 384
_DIM = 384


def sentences(texts: Sequence[str]) -> list[str]:
    """Distinct sentences of 5 words and more."""
    found = (part.strip() for text in texts for part in re.split(r"(?<=[.!?])\s+", text))
    return list(dict.fromkeys(part for part in found if len(part.split()) >= 5))


def write_corpus(texts: Sequence[str], count: int, path: Path, *, labels: int = 0, seed: int = 13) -> None:
    """`count` documents of 4 to 8 sentences drawn from the texts, each about a passage long, as jsonl.

    labels: so many of their sentences become judged queries, in queries.jsonl and qrels.tsv beside it.
    """
    rng = np.random.default_rng(seed)
    pool = sentences(texts)
    words = sorted({word for text in texts[:2000] for word in re.findall(r"[A-Za-z]{4,}", text)})
    asked = set(rng.choice(count, size=min(labels, count), replace=False).tolist())
    queries, qrels = [], ["query-id\tcorpus-id\tscore"]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            chosen = [pool[at] for at in rng.integers(len(pool), size=rng.integers(4, 9))]
            title = " ".join(words[at] for at in rng.integers(len(words), size=3))
            row = {"_id": f"d{number}", "title": title, "text": " ".join(chosen)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if number in asked:
                piece = chosen[0].split()
                text = " ".join([*title.split()[:2], *rng.permutation(piece)[:6].tolist()])
                queries.append(json.dumps({"_id": f"q{number}", "text": text}, ensure_ascii=False))
                qrels.append(f"q{number}\td{number}\t1")
    if labels:
        path.with_name("queries.jsonl").write_text("\n".join(queries) + "\n", encoding="utf-8")
        path.with_name("qrels.tsv").write_text("\n".join(qrels) + "\n", encoding="utf-8")


def mixed_lengths(texts: Sequence[str], count: int, *, seed: int = 13, longest: int = 200) -> list[str]:
    """`count` distinct pieces of the texts, of 4 to `longest` words, evenly spread on a logarithmic scale."""
    rng = np.random.default_rng(seed)
    made: dict[str, None] = {}
    number = 0
    while len(made) < count and number < 20 * count:
        words = texts[number % len(texts)].split()
        length = round(float(np.exp(rng.uniform(np.log(4), np.log(longest)))))
        start = int(rng.integers(max(1, len(words) - length)))
        made.setdefault(" ".join(words[start : start + length]))
        number += 1
    return list(made)


SHAPES: dict[str, dict[str, Any]] = {
    "ModernBERT-base": {
        "kind": "modernbert", "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12,
        "intermediate_size": 1152, "max_position_embeddings": 8192,
    },
    "Qwen3-0.6B, 8 layers": {
        "kind": "qwen3", "hidden_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "max_position_embeddings": 32768,
        "max_window_layers": 8,
    },
}  # fmt: skip
"""Known models by what decides their speed; the vocabulary, which does not, is MiniLM's."""

PRESET_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "granite-embedding-97m": (
        "ModernBERT-base",
        {
            "hidden_size": 384, "num_hidden_layers": 12, "intermediate_size": 1536, "hidden_activation": "silu",
            "vocab_size": 180_000,
        },
    ),
    "gte-modernbert-base": ("ModernBERT-base", {"vocab_size": 50_368}),
    "Qwen3-Embedding-0.6B, 4 layers": (
        "Qwen3-0.6B, 8 layers",
        {"num_hidden_layers": 4, "max_window_layers": 4, "vocab_size": 151_669},
    ),
}  # fmt: skip
"""The models of the presets, as changes of known shapes."""


def shaped_model(folder: Path, shape: str, *, max_length: int = 512, seed: int = 0, **changes: Any) -> Path:
    """A sentence-transformers model of random weights in one of the SHAPES, with MiniLM's tokenizer.

    What it finds means nothing. changes: of the configuration.
    """
    if folder.exists():
        return folder
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import AutoConfig, AutoModel

    raw = _with_minilm_tokenizer(folder)
    torch.manual_seed(seed)
    special = {"pad_token_id": 0, "bos_token_id": 101, "eos_token_id": 102, "cls_token_id": 101, "sep_token_id": 102}
    values = {**SHAPES[shape], "vocab_size": 30_528, **special, **changes}
    config = AutoConfig.for_model(values.pop("kind"), **values)
    AutoModel.from_config(config).save_pretrained(raw)
    pooling = "lasttoken" if config.model_type == "qwen3" else "mean"
    made = SentenceTransformer(
        modules=[Transformer(str(raw), max_seq_length=max_length), Pooling(config.hidden_size, pooling), Normalize()],
        device="cpu",
    )
    made.save(str(folder), create_model_card=False)
    shutil.rmtree(raw)
    return folder


def _with_minilm_tokenizer(folder: Path) -> Path:
    """A folder beside this one that holds MiniLM's tokenizer."""
    source = Path(resolve(EncoderConfig(model="offline")).location)
    raw = folder.with_name(folder.name + "-raw")
    raw.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (source / name).exists():
            shutil.copyfile(source / name, raw / name)
    return raw


def tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """A sentence-transformers model of two random layers, 32 wide, with MiniLM's tokenizer and 384-d vectors.

    What it finds means nothing; time and memory of everything around the model are those of a real one.
    """
    if folder.exists():
        return folder
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer
    from transformers import BertConfig, BertModel

    raw = _with_minilm_tokenizer(folder)
    torch.manual_seed(seed)
    model = BertModel(
        BertConfig(
            vocab_size=30_522, hidden_size=_TINY, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=2 * _TINY, max_position_embeddings=512,
        )
    )  # fmt: skip
    with torch.no_grad():  # transformers starts near zero, where all texts look alike
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    model.save_pretrained(raw)
    made = SentenceTransformer(
        modules=[
            Transformer(str(raw), max_seq_length=256),
            Pooling(_TINY, "mean"),
            Dense(_TINY, _DIM, bias=False, activation_function=torch.nn.Identity()),
            Normalize(),
        ],
        device="cpu",
    )
    made.save(str(folder), create_model_card=False)
    return folder
