"""What the frameworks' retrievers cost over the core's search: both sides in turn, in one run.

    python examples/benchmarks/integrations.py --chunks 100000 --queries 200 [--out FILE]

The chunks are word salad with vectors drawn at random, indexed as `fit` does; the queries are encoded by the real model
(all-MiniLM-L6-v2), each text once for each side, so that none finds its vector in memory. Reported are medians of the
time per query, and the ratio with its 95 % interval (bootstrap over queries of paired times). On a machine that does
other work too, set OMP_NUM_THREADS=1: waiting threads make both sides slow and the intervals wide.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from langchain_ragadapt import LoRARetriever
from llama_index_ragadapt import LoRARetriever as NodeRetriever

from ragadapt import FitConfig, Retriever, fit
from ragadapt.index import open_index
from ragadapt.lexical import LexicalIndex
from ragadapt.search.fusion import Background
from ragadapt.search.searcher import Searcher
from ragadapt.store.chunks import ChunkFilters, ChunkStore
from ragadapt.values import Chunk, Document

K = 10
PAGES = Path(__file__).resolve().parents[1] / "pages"


def words(rng: np.random.Generator, count: int) -> list[str]:
    letters = list("abcdefghijklmnopqrstuvwxyz")
    return ["".join(rng.choice(letters, size=int(rng.integers(3, 10)))) for _ in range(count)]


def build(folder: Path, count: int, rng: np.random.Generator) -> tuple[Retriever, list[str]]:
    """A fitted retriever whose passages are replaced by `count` made-up ones; and the words they are made of."""
    path = fit([PAGES], folder / "retriever", FitConfig.build({"encoder": {"model": "offline"}})).path
    vocabulary = words(rng, 20_000)
    popular = 1 / np.arange(1, len(vocabulary) + 1)
    picks = rng.choice(len(vocabulary), size=(count, 60), p=popular / popular.sum())
    texts = [" ".join(vocabulary[pick] for pick in row) for row in picks]
    chunks = [Chunk(f"d{n}#0", f"d{n}", text, end=len(text), source=f"d{n}") for n, text in enumerate(texts)]
    ids = [chunk.id for chunk in chunks]
    opened = Retriever.open(path)
    vectors = rng.normal(size=(count, opened.encoder.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = open_index("faiss", dim=opened.encoder.dim, fingerprint=opened.fingerprint)
    index.upsert(ids, vectors)
    lexical = LexicalIndex.build(ids, texts)
    store = ChunkStore.create(folder / "chunks.sqlite")
    store.add([Document(chunk.document_id, chunk.text) for chunk in chunks], chunks)
    store.close()
    now = opened.snapshot()  # stays as long as the folder does
    now.chunks.close()
    now.chunks = ChunkStore.open(folder / "chunks.sqlite")
    now.filters = ChunkFilters(now.chunks, lexical.ids, lexical.positions, in_memory=True)
    fusion = replace(opened.fusion)
    now.searcher = Searcher(index, lexical, Background.of(vectors), fusion, depth=now.searcher.depth)
    return opened, vocabulary


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(sides: dict[str, Callable[[str], Any]], queries: Sequence[str], forget: Callable[[], None]) -> Any:
    """Side → seconds per query (Q,). Each query is asked of every side in turn, in an order that changes."""
    names = list(sides)
    times = {name: np.zeros(len(queries)) for name in names}
    for number, query in enumerate(queries):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            forget()
            times[name][number] = seconds(lambda: sides[name](query))  # noqa: B023
    return times


def ratio(ours: Any, core: Any, rng: np.random.Generator) -> dict[str, float]:
    """The ratio of medians, with a bootstrap interval over queries."""
    draws = rng.integers(0, len(core), size=(2000, len(core)))
    drawn = np.median(ours[draws], axis=1) / np.median(core[draws], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"ratio": float(np.median(ours) / np.median(core)), "low": float(low), "high": float(high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64, help="questions of one batch call")
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--out", type=Path, help="also write the figures there, as JSON")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        retriever, vocabulary = build(Path(name), arguments.chunks, rng)
        forget = retriever.snapshot().query_vectors.forget
        chain, nodes = LoRARetriever(retriever=retriever, k=K), NodeRetriever(retriever, K)
        queries = [" ".join(rng.choice(vocabulary[:2000], size=8)) for _ in range(arguments.queries)]
        figures: dict[str, Any] = {"chunks": arguments.chunks, "k": K, "queries": arguments.queries}
        for mode in ("hybrid", "dense"):
            chain.search_type = nodes.search_type = mode  # type: ignore[assignment]
            sides: dict[str, Callable[[str], Any]] = {
                "core": lambda query: retriever.search(query, K, mode=mode),  # type: ignore[arg-type]  # noqa: B023
                "langchain": lambda query: chain.invoke(query),
                "llama_index": lambda query: nodes.retrieve(query),
            }
            measure(sides, queries[:10], forget)  # warm
            times = measure(sides, queries, forget)
            figures[mode] = {
                "core_milliseconds": round(float(np.median(times["core"])) * 1000, 3),
                **{side: ratio(times[side], times["core"], rng) for side in ("langchain", "llama_index")},
            }
        many = queries[: arguments.batch]
        forget()
        figures["batch"] = {"questions": len(many), "batch_seconds": seconds(lambda: chain.batch(many))}
        forget()
        figures["batch"]["one_by_one_seconds"] = seconds(lambda: [chain.invoke(query) for query in many])
        retriever.close()
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
