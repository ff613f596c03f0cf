"""The part of scale.py that cuts: documents into passages, each text given to the tokenizer or words counted once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ragadapt import Document, Encoder, EncoderConfig
from ragadapt.config import ChunkConfig
from ragadapt.corpus import chunk_documents
from ragadapt.corpus.read import read_documents
from ragadapt.encoder.tokens import encode
from ragadapt.text import searchable

Row = dict[str, Any]
Count = Callable[[Sequence[str]], list[int]]

COLLECTIONS = {"scifact": 100, "handbook": 100, "drcd": 100}
"""Name → documents that are cut."""


class Bench(Protocol):
    """As scale.py has it."""

    data: Path
    smoke: bool
    rounds: int


def cuts(bench: Bench) -> list[Row]:
    """Seconds of the processor for cutting with the packaged model's tokenizer, by the way in which tokens are counted:
    each text by transformers, each by the backend without offsets, and as `Encoder.count_tokens` does, which begins
    every round without words. Ways take turns; medians of the rounds, and of their ratios. Chunks must be equal."""
    encoder = Encoder.load(EncoderConfig(model="offline", precision="float32"))
    assert encoder.passage_tower is not None
    tokenizer = encoder.passage_tower.tokenizer

    def by_transformers(texts: Sequence[str]) -> list[int]:
        made = tokenizer([searchable(text) for text in texts], add_special_tokens=False, verbose=False)
        return [len(row) for row in made["input_ids"]]

    def without_offsets(texts: Sequence[str]) -> list[int]:
        made = encode(tokenizer, [searchable(text) for text in texts], special_tokens=False)
        assert made is not None
        return [len(one) for one in made]

    rows = []
    for name, most in COLLECTIONS.items():
        if not (bench.data / name / "corpus.jsonl").exists():
            continue
        documents = read_documents([bench.data / name / "corpus.jsonl"]).documents[: 20 if bench.smoke else most]
        for limit in (64, None):
            config = ChunkConfig(max_tokens=limit)
            took: dict[str, list[float]] = {"transformers": [], "no offsets": [], "words": []}
            for _ in range(1 if bench.smoke else bench.rounds):
                encoder._counter = None
                ways: dict[str, Count] = {
                    "transformers": by_transformers, "no offsets": without_offsets, "words": encoder.count_tokens,
                }  # fmt: skip
                found = [_cut(documents, config, count, encoder, took[way]) for way, count in ways.items()]
                if any(passages != found[0] for passages in found):
                    raise SystemExit(f"{name}: passages differ between ways of counting.")
            rows.append(
                {"collection": name, "documents": len(documents), "tokens at most": limit or 256,
                 "passages": len(found[0]),
                 **{f"{way}, s": round(statistics.median(seconds), 2) for way, seconds in took.items()},
                 **{f"transformers / {way}": _ratio(took["transformers"], took[way]) for way in list(took)[1:]}}
            )  # fmt: skip
    return rows


def _cut(
    documents: Sequence[Document], config: ChunkConfig, count: Count, encoder: Encoder, took: list[float]
) -> list[tuple[str, int]]:
    started = time.process_time()
    chunks = chunk_documents(documents, config, count, encoder.passage_room)
    took.append(time.process_time() - started)
    return [(chunk.passage, chunk.start) for chunk in chunks]


def _ratio(before: Sequence[float], after: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(before, after, strict=True)), 2)
