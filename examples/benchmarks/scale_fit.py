"""The part of scale.py that fits: a retriever of many passages from end to end, and what keeps it up to date."""

from __future__ import annotations

import json
import math
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from beir import load
from charts import write_chart
from own_process import in_own_process
from synthetic import tiny_model, write_corpus

from ragadapt import FitConfig, Retriever, fit
from ragadapt.pipeline.refresh import refresh_documents, rollback
from ragadapt.report.charts import Series, line_chart

Row = dict[str, Any]

PASSAGES = (10_000, 100_000, 1_000_000)
_PER_DOCUMENT = 5.15  # passages of 64 tokens
_CHANGED = 1_000  # one document in so many changes before a refresh
_SEARCHES = 200


class Bench(Protocol):
    """As scale.py has it."""

    data: Path
    folder: Path
    seed: int
    smoke: bool


def fits(bench: Bench) -> list[Row]:
    """A fit without training at several sizes, a refresh after one document in a thousand has changed, the way back,
    opening and searching, each in a process of its own. Documents are new ones, made of real sentences; the encoder is
    a tiny one with vectors of the usual width, so that everything else shows. Memory is the process's own, at its
    peak; mapped files, which the system takes back when it needs the room, are told beside it. Growth: the power of
    the number of passages with which something grew since the size before."""
    rows: list[Row] = []
    before: dict[str, Row] = {}
    for passages in (300, 600) if bench.smoke else PASSAGES:
        folder = bench.folder / f"fits-{passages}"
        for what in ("fit", "refresh of .1 %", "rollback", "open", "open, first answer", "search"):
            found = in_own_process(
                __file__,
                what,
                data=bench.data,
                folder=folder,
                documents=round(passages / _PER_DOCUMENT),
                seed=bench.seed,
            )
            row = {
                "what": what, "passages": found["passages"], "s": round(found["seconds"], 2),
                "processor, s": round(found["processor"], 2), "own memory, GB": round(found["own"] / 1e9, 2),
                "mapped files, GB": round(found["mapped"] / 1e9, 2), "growth of time": "", "growth of memory": "",
                "p50/95/99 ms": found.get("milliseconds", ""),
            }  # fmt: skip
            if (earlier := before.get(what)) is not None:
                step = math.log(row["passages"] / earlier["passages"])
                for name, key in (("growth of time", "processor, s"), ("growth of memory", "own memory, GB")):
                    row[name] = f"{math.log(row[key] / earlier[key]) / step:.2f}" if min(row[key], earlier[key]) else ""
            before[what] = row
            rows.append(row)
    _draw([row for row in rows if row["what"] == "fit"], bench.folder)
    return rows


def _draw(rows: list[Row], folder: Path) -> None:
    sizes = [row["passages"] for row in rows]
    for name, key, unit, label in (
        ("time", "processor, s", 60.0, "minutes of the processor"), ("memory", "own memory, GB", 1.0, "GB at most"),
    ):  # fmt: skip
        series = [Series("ragadapt fit", sizes, [row[key] / unit for row in rows])]
        chart = line_chart(series, title=f"A fit past memory: {name}", x_label="passages", y_label=label)
        write_chart(folder / f"scale-{name}.svg", chart)


# What runs in a process of its own


def fit_once(data: Path, folder: Path, documents: int, seed: int) -> Row:
    corpus = folder / "corpus.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    if not corpus.exists():
        write_corpus(load(data, "scifact").texts, documents, corpus, seed=seed)
    values = {
        "encoder": {"model": str(tiny_model(folder.parent / "tiny"))}, "adapter": {"method": "none"},
        "index": {"kind": "faiss"}, "chunk": {"max_tokens": 64}, "seed": seed,
    }  # fmt: skip
    with measured() as found:
        result = fit([corpus], folder / "retriever", FitConfig.build(values))
    timings = {timing.stage: round(timing.seconds, 1) for timing in result.report.timings}
    print(f"{documents} documents, seconds by stage: {timings}", file=sys.stderr)
    return found | {"passages": result.report.corpus.chunks if result.report.corpus else 0}


def refresh_once(data: Path, folder: Path, documents: int, seed: int) -> Row:
    corpus, changed = folder / "corpus.jsonl", folder / "changed" / "corpus.jsonl"
    changed.parent.mkdir(exist_ok=True)
    texts = load(data, "handbook").texts
    with corpus.open(encoding="utf-8") as old, changed.open("w", encoding="utf-8") as new:
        for number, line in enumerate(old):
            row = json.loads(line)
            if number % _CHANGED == 0:
                row["text"] = texts[number // _CHANGED % len(texts)]
            new.write(json.dumps(row, ensure_ascii=False) + "\n")
    with measured() as found:
        refreshed = refresh_documents(folder / "retriever", [changed])
    print(f"refreshed: {refreshed.chunks}", file=sys.stderr)
    with Retriever.open(folder / "retriever") as retriever:
        return found | {"passages": len(retriever)}


def rollback_once(data: Path, folder: Path, documents: int, seed: int) -> Row:
    with measured() as found:
        rollback(folder / "retriever")
    with Retriever.open(folder / "retriever") as retriever:
        return found | {"passages": len(retriever)}


def open_once(data: Path, folder: Path, documents: int, seed: int, *, asked: bool = False) -> Row:
    """With everything imported, as in a program that runs already. asked: and a first answer."""
    import faiss  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    with measured() as found:
        opened = Retriever.open(folder / "retriever")
        if asked:
            opened.search("how do i reset my password")
    return found | {"passages": len(opened)}


def search_many(data: Path, folder: Path, documents: int, seed: int) -> Row:
    asked = list(load(data, "scifact").queries.values())[: _SEARCHES + 8]
    with Retriever.open(folder / "retriever") as retriever:
        for query in asked[:8]:
            retriever.search(query)
        taken = []
        with measured() as found:
            for query in asked[8:]:
                started = time.perf_counter()
                retriever.search(query)
                taken.append(time.perf_counter() - started)
        found["milliseconds"] = " / ".join(
            f"{mark:.0f}" for mark in np.percentile(1000 * np.array(taken), (50, 95, 99))
        )
        return found | {"passages": len(retriever)}


@contextmanager
def measured() -> Iterator[Row]:
    """Seconds by the clock and of the processor, and the peaks of this process's own memory and of mapped files."""
    peaks, done = {"RssAnon": 0, "RssFile": 0}, threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            _look(peaks)

    _look(peaks)
    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    found: Row = {}
    started, used = time.perf_counter(), time.process_time()
    try:
        yield found
    finally:
        found |= {"seconds": time.perf_counter() - started, "processor": time.process_time() - used}
        done.set()
        watcher.join()
        found |= {"own": peaks["RssAnon"], "mapped": peaks["RssFile"]}


def _look(peaks: dict[str, int]) -> None:
    status = Path("/proc/self/status")
    if not status.exists():  # not Linux: all of it, mapped files too
        peaks["RssAnon"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return
    for line in status.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name in peaks:
            peaks[name] = max(peaks[name], 1024 * int(value.split()[0]))


WORKERS: dict[str, Callable[[Path, Path, int, int], Row]] = {
    "fit": fit_once, "refresh of .1 %": refresh_once, "rollback": rollback_once, "open": open_once,
    "open, first answer": partial(open_once, asked=True), "search": search_many,
}  # fmt: skip


if __name__ == "__main__":
    what, given = sys.argv[1:]
    options = json.loads(given)
    print(
        json.dumps(WORKERS[what](Path(options["data"]), Path(options["folder"]), options["documents"], options["seed"]))
    )
