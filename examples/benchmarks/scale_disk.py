"""The part of scale.py about an index larger than memory: FAISS's lists on disk, against exact search."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from beir import load
from own_process import in_own_process
from scale_fit import measured
from synthetic import sentences

from ragadapt import Encoder, EncoderConfig
from ragadapt.config import IndexConfig
from ragadapt.index import engine_of, open_index
from ragadapt.threads import one_thread

Row = dict[str, Any]

PASSAGES = (1_000_000, 10_000_000)
DEPTHS = (10, 200)
_COLLECTIONS = ("scifact", "stackfaq", "handbook")
_POOL = 20_000  # different sentences
_TURNED = 0.35  # length of the noise beside a vector of length 1
_QUESTIONS = 200
_BLOCK = 16_384
_PER_DOCUMENT = 10


class Bench(Protocol):
    """As scale.py has it."""

    data: Path
    folder: Path
    seed: int
    smoke: bool


def disk(bench: Bench) -> list[Row]:
    """The index and its search alone, at sizes that `auto` puts on disk: built in one process, opened and searched in
    another, a query at a time on one thread. Vectors are those of real sentences, each copy of one turned by noise, and
    questions are real ones. Recall is the share of what exact search of the same vectors finds. Memory is the
    process's own at its peak; pages of mapped files, which the system takes back when it needs the room, are not
    counted. The files were just written, so that what the machine's memory holds of them is read from there."""
    rows = []
    pool = _pool(bench)
    for passages in (20_000, 40_000) if bench.smoke else PASSAGES:
        folder = bench.folder / f"disk-{passages}"
        options = {"pool": pool, "folder": folder, "passages": passages, "seed": bench.seed, "smoke": bench.smoke}
        if not (folder / "build.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "build.json").write_text(
                json.dumps(in_own_process(__file__, "build", **options)), encoding="utf-8"
            )
        built = json.loads((folder / "build.json").read_text(encoding="utf-8"))
        if not (folder / "exact.npz").exists():
            in_own_process(__file__, "exact", **options)
        found = in_own_process(__file__, "search", **options)
        rows.append(
            {
                "passages": passages, "structure": found["structure"], "lists": found["lists"],
                "build, s": round(built["seconds"]), "build, processor, s": round(built["processor"]),
                "build, own memory, GB": round(built["own"] / 1e9, 2),
                "on disk, GB": round(built["bytes"] / 1e9, 2), "open, s": round(found["seconds"], 2),
                "search, own memory, GB": round(found["own"] / 1e9, 2),
                **{f"p50/95/99 ms, k={k}": found[f"milliseconds@{k}"] for k in DEPTHS},
                **{f"recall@{k}": f"{found[f'recall@{k}']:.4f}" for k in DEPTHS},
            }
        )  # fmt: skip
    return rows


def _pool(bench: Bench) -> Path:
    """Vectors of real sentences and questions by the base model, encoded once."""
    count = 500 if bench.smoke else _POOL
    path = bench.folder / f"pool-{count}.npz"
    if not path.exists():
        collections = [load(bench.data, name) for name in _COLLECTIONS]
        texts = [text for each in collections for text in sentences([" ".join(text.split()) for text in each.texts])]
        rng = np.random.default_rng(bench.seed)
        texts = [texts[at] for at in rng.permutation(len(texts))[:count]]
        asked = [query for each in collections for query in each.queries.values()]
        asked = [asked[at] for at in rng.permutation(len(asked))[: 20 if bench.smoke else _QUESTIONS]]
        encoder = Encoder.load(EncoderConfig(model="offline"))
        np.savez(path, passages=encoder.encode_passages(texts), queries=encoder.encode_queries(asked))
    return path


# What runs in a process of its own


def build(pool: Path, folder: Path, passages: int, seed: int, smoke: bool) -> Row:
    """Fill the index as `fit` does."""
    with np.load(pool) as arrays:
        originals = arrays["passages"]
    config = IndexConfig(kind="faiss", structure="disk" if smoke else "auto")
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    shape = (passages, originals.shape[1])
    made = 0.0
    with measured() as found:
        settings = engine_of("faiss").building(config, scratch, shape)
        with open_index("faiss", folder / "index", dim=shape[1], **settings) as index:
            blocks, at = _turned(originals, passages, seed), 0
            while True:
                before = time.perf_counter()
                block = next(blocks, None)
                made += time.perf_counter() - before
                if block is None:
                    break
                places = range(at, at + len(block))
                index.upsert([f"d{place // _PER_DOCUMENT}.md#{place % _PER_DOCUMENT}" for place in places], block)
                at += len(block)
            index.finish(config, _told())
            index.save()
    found["seconds"] -= made
    found["processor"] -= made
    return found | {"bytes": sum(file.stat().st_size for file in (folder / "index").iterdir())}


def _told() -> Callable[[str, int, int], None]:
    started = time.perf_counter()
    last = ""

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last
        if done == total or what != last:
            print(f"{time.perf_counter() - started:.0f} s: {what}, {done} of {total}", file=sys.stderr, flush=True)
        last = what

    return tell


def _turned(originals: np.ndarray, passages: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for start in range(0, passages, _BLOCK):
        count = min(_BLOCK, passages - start)
        rows = originals[rng.integers(len(originals), size=count)]
        rows = rows + rng.standard_normal(rows.shape, np.float32) * np.float32(_TURNED / rows.shape[1] ** 0.5)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        yield rows


def exact(pool: Path, folder: Path, passages: int, seed: int, smoke: bool) -> Row:
    """The best of all vectors for every question, kept as numbers of passages."""
    with np.load(pool) as arrays:
        queries = arrays["queries"]
    depth = min(max(DEPTHS), passages)
    best = np.full((len(queries), depth), -np.inf, np.float32)
    where = np.full((len(queries), depth), -1, np.int64)
    with open_index(folder=folder / "index", check=False) as index:
        start = 0
        for ids, rows in index.batches(_BLOCK):
            scores = np.concatenate([best, queries @ rows.T], axis=1)  # (Q, depth + B)
            labels = np.concatenate([where, np.tile(np.arange(start, start + len(ids)), (len(queries), 1))], axis=1)
            order = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
            best, where = np.take_along_axis(scores, order, 1), np.take_along_axis(labels, order, 1)
            start += len(ids)
    order = np.argsort(-best, axis=1, kind="stable")
    np.savez(
        folder / "exact.npz", scores=np.take_along_axis(best, order, 1), places=np.take_along_axis(where, order, 1)
    )
    return {}


def search(pool: Path, folder: Path, passages: int, seed: int, smoke: bool) -> Row:
    """Open the index and ask every question."""
    import faiss  # noqa: F401 - as in a program that runs already

    with np.load(pool) as arrays:
        queries = arrays["queries"]
    with np.load(folder / "exact.npz") as arrays:
        scores = arrays["scores"]
    with measured() as opening:
        index: Any = open_index(folder=folder / "index")
        with one_thread():
            index.search(queries[:1], 10)
    base = getattr(index._engine, "base", None)
    found: Row = {"structure": index.structure, "lists": 0 if base is None else int(base.engine.nlist)}
    with index, one_thread(), measured() as searching:
        for k in DEPTHS:
            taken, share = [], 0.0
            for at in range(len(queries)):
                before = time.perf_counter()
                [(_, got)] = index.search(queries[at : at + 1], k)
                taken.append(time.perf_counter() - before)
                # By scores, which are exact: passages that are as good as the last of the best are as good.
                share += float((got >= scores[at, min(k, passages) - 1] - 1e-6).sum()) / min(k, passages)
            found[f"milliseconds@{k}"] = " / ".join(
                f"{mark:.1f}" for mark in np.percentile(1000 * np.array(taken), (50, 95, 99))
            )
            found[f"recall@{k}"] = share / len(queries)
    return found | {"seconds": opening["seconds"], "own": searching["own"]}


if __name__ == "__main__":
    what, given = sys.argv[1:]
    work: dict[str, Callable[..., Row]] = {"build": build, "exact": exact, "search": search}
    options = json.loads(given)
    for name in ("pool", "folder"):
        options[name] = Path(options[name])
    print(json.dumps(work[what](**options)))
