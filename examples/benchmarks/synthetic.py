"""Large corpora for measurements of growth: new documents made of real sentences, and models of random weights."""

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

    raw = _with_tokenizer(folder)
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


SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "granite-embedding-97m": (
        "modernbert",
        "cls",
        {
            "vocab_size": 180_000, "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12,
            "intermediate_size": 1536, "hidden_activation": "silu", "local_attention": 128,
            "global_attn_every_n_layers": 3,
        },
    ),
    "gte-modernbert-base": (
        "modernbert",
        "cls",
        {
            "vocab_size": 50_368, "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12,
            "intermediate_size": 1152, "hidden_activation": "gelu", "local_attention": 128,
            "global_attn_every_n_layers": 3,
        },
    ),
    "Qwen3-Embedding-0.6B, 4 layers": (
        "qwen3",
        "lasttoken",
        {
            "vocab_size": 151_669, "hidden_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "rope_theta": 1_000_000,
        },
    ),
}  # fmt: skip
"""Model type, pooling and configuration of models that the presets name."""


def shaped_model(folder: Path, name: str, *, seed: int = 0) -> Path:
    """A sentence-transformers model of the shape SHAPES[name] with random weights and MiniLM's tokenizer.

    What it finds means nothing; its time and memory are those of the real one, whose vocabulary is larger than what
    this tokenizer uses of it.
    """
    if folder.exists():
        return folder
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from transformers import AutoConfig, AutoModel

    kind, pooling, settings = SHAPES[name]
    raw = _with_tokenizer(folder)
    if kind == "qwen3":
        _edit(raw / "tokenizer_config.json", padding_side="left")
    torch.manual_seed(seed)
    ids = {"pad_token_id": 0, "cls_token_id": 101, "bos_token_id": 101, "sep_token_id": 102, "eos_token_id": 102}
    AutoModel.from_config(AutoConfig.for_model(kind, **settings, **ids)).save_pretrained(raw)
    made = SentenceTransformer(
        modules=[Transformer(str(raw), max_seq_length=512), Pooling(settings["hidden_size"], pooling), Normalize()],
        device="cpu",
    )
    made.save(str(folder), create_model_card=False)
    shutil.rmtree(raw)
    return folder


def _with_tokenizer(folder: Path) -> Path:
    """A folder beside this one that holds MiniLM's tokenizer."""
    source = Path(resolve(EncoderConfig(model="offline")).location)
    raw = folder.with_name(folder.name + "-raw")
    raw.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (source / name).exists():
            shutil.copyfile(source / name, raw / name)
    return raw


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")
