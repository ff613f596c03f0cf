"""Parts of scale.py about one machine: filters that do not grow with the corpus, many threads, memory and start."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
from beir import load
from large import DAYS, FIRST_DAY, GROUPS, TENANTS, large_retriever
from own_process import in_own_process

from ragadapt import Retriever

Row = dict[str, Any]
Filter = dict[str, Any]

SIZES = [(100_000, "flat"), (1_000_000, "flat")]
_THREADS = 32
_STARTS = 5  # processes whose first filter is timed
_SEARCHES = 60  # of each filter, every one a new one
_WARM = 8
_WORKERS = 4
_BEGINNINGS = ("import", "open", "first search")


class Bench(Protocol):
    """As scale.py has it."""

    data: Path
    folder: Path
    seed: int
    smoke: bool


def filters(bench: Bench) -> list[Row]:
    """Searches with a filter beside those without, in one process, alternating: every filter is new, and the first one
    of a process is timed by itself, against the searches without one before it. Ratios are of the processor's time,
    which other programs on the machine change less; `lexical` is the quickest search, so its ratio is the strictest."""
    sizes = [(2_000, "flat")] if bench.smoke else SIZES
    starts, searches = (1, 4) if bench.smoke else (_STARTS, _SEARCHES)
    rows = []
    for count, structure in sizes:
        folder = large_retriever(bench.data, bench.folder, count, structure, bench.seed)
        for name in FILTERS:
            options = {"folder": folder, "data": bench.data, "name": name, "seed": bench.seed}
            first = [in_own_process(__file__, "first_filter", **options, start=number) for number in range(starts)]
            for mode in ("hybrid", "lexical"):
                later = in_own_process(__file__, "later_filters", **options, mode=mode, searches=searches)
                rows.append(
                    {
                        "passages": count, "filter": name, "passes": later["passes"], "search": mode,
                        "first use, ×": _ratio(median(one[mode] / one[f"{mode} without"] for one in first)),
                        "each a new one, ×": _ratio(median(later["with"]) / median(later["without"])),
                        "without, ms p50/95/99": _milliseconds(later["without wall"]),
                        "with, ms p50/95/99": _milliseconds(later["with wall"]),
                    }
                )  # fmt: skip
    return rows


def threads(bench: Bench) -> list[Row]:
    """Queries a second of one thread and of 32, alternating, on one open retriever; every query is a new one."""
    count, structure = (2_000, "flat") if bench.smoke else (50_000, "flat")
    folder = large_retriever(bench.data, bench.folder, count, structure, bench.seed)
    rows = []
    for what in ("hybrid", "hybrid, vectors given", "dense, vectors given", "lexical", "hybrid, filtered"):
        found = in_own_process(
            __file__, "many_threads", folder=folder, data=bench.data, what=what, rounds=2 if bench.smoke else 5,
            searches=16 if bench.smoke else 192,
        )  # fmt: skip
        one, many = median(found["one"]), median(found["many"])
        rows.append(
            {
                "passages": count, "search": what, "one thread, queries/s": round(one, 1),
                f"{_THREADS} threads, queries/s": round(many, 1), "×": _ratio(many / one),
                "processor ms a query, one": round(found["processor_one"], 2),
                "the same, many": round(found["processor_many"], 2),
            }
        )  # fmt: skip
    return rows


def memory(bench: Bench) -> list[Row]:
    """Seconds to import, open and first answer in a fresh process, and what each of four processes holds after a
    hundred searches: its share of pages that several have counts by its part (PSS)."""
    sizes = [(2_000, "flat")] if bench.smoke else SIZES
    rows = []
    for count, structure in sizes:
        folder = large_retriever(bench.data, bench.folder, count, structure, bench.seed)
        options = {"folder": folder, "data": bench.data}
        started = [in_own_process(__file__, "start", **options) for _ in range(1 if bench.smoke else 5)]
        held = _held_together(options)
        rows.append(
            {
                "passages": count, "index": structure,
                **{f"{name}, s": f"{median(one[name] for one in started):.2f}" for name in _BEGINNINGS},
                "files, MB": round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6),
                "one process, PSS MB": round(median(one["pss"] for one in started) / 1e6),
                f"each of {_WORKERS}, PSS MB": round(median(one["pss"] for one in held) / 1e6),
                "of which its own": round(median(one["own"] for one in held) / 1e6),
            }
        )  # fmt: skip
    return rows


# Filters that are all different, of a kind each

FILTERS: dict[str, Callable[[np.random.Generator], Filter]] = {
    "a tenant (.1 %)": lambda rng: {"tenant": f"tenant-{rng.integers(TENANTS)}"},
    "ten days (.1 %)": lambda rng: _days(int(rng.integers(DAYS - 10)), 10),
    "10,000 groups": lambda rng: {
        "acl": {"$in": [f"group-{group}" for group in rng.permutation(GROUPS)[: GROUPS // 2].tolist()]}
    },
    "a tenant and 10,000 groups": lambda rng: {
        "$and": [FILTERS["a tenant (.1 %)"](rng), FILTERS["10,000 groups"](rng)]
    },
    "a document": lambda rng: {"document_id": f"d{rng.integers(200)}"},
    "not one of three languages": lambda rng: {
        "lang": {"$nin": rng.permutation(["en", "de", "fr", "es"])[:3].tolist()}, "price": {"$gte": float(rng.random())}
    },
}  # fmt: skip


def _days(start: int, count: int) -> Filter:
    ends = (FIRST_DAY + timedelta(days=start), FIRST_DAY + timedelta(days=start + count))
    return {"created": {"$gte": ends[0].isoformat(), "$lt": ends[1].isoformat()}}


# What runs in a process of its own


def first_filter(folder: str, data: str, name: str, seed: int, start: int) -> Row:
    """The processor's seconds of searches without a filter, then of the first one with it, by way of searching."""
    queries, rng = _queries(Path(data)), np.random.default_rng(seed + start)
    found = {}
    for mode in ("hybrid", "lexical"):
        with Retriever.open(folder) as retriever:
            asked = [next(queries) for _ in range(2 * _WARM)]
            vectors = retriever.encoder.encode_queries(asked)
            taken = [_seconds(retriever, asked[at], vectors[at : at + 1], None, mode) for at in range(2 * _WARM)]
            found[f"{mode} without"] = median(used for _, used in taken[_WARM:])
            found[mode] = _seconds(retriever, asked[0], vectors[:1], FILTERS[name](rng), mode)[1]
    return found


def later_filters(folder: str, data: str, name: str, seed: int, mode: str, searches: int) -> Row:
    """The processor's seconds of searches without and with a filter, in turns, and those of the clock."""
    queries, rng = _queries(Path(data)), np.random.default_rng(seed)
    taken: dict[str, list[float]] = {"without": [], "with": [], "without wall": [], "with wall": []}
    with Retriever.open(folder) as retriever:
        asked = [next(queries) for _ in range(64)]
        vectors = retriever.encoder.encode_queries(asked)
        for at in range(_WARM):
            _seconds(retriever, asked[at], vectors[at : at + 1], FILTERS[name](rng) if at % 2 else None, mode)
        passes = []
        for number in range(searches):
            at = number % len(asked)
            filter = FILTERS[name](rng)
            for side in ("without", "with") if number % 2 else ("with", "without"):
                given = filter if side == "with" else None
                wall, used = _seconds(retriever, asked[at], vectors[at : at + 1], given, mode)
                taken[side].append(used)
                taken[f"{side} wall"].append(wall)
            if number < 3:
                passes.append(len(retriever.passing(filter)))
    return {**taken, "passes": int(median(passes))}


def many_threads(folder: str, data: str, what: str, rounds: int, searches: int) -> Row:
    """Queries a second by one thread and by many, and the processor's milliseconds of a query."""
    queries = _queries(Path(data))
    mode: Any = what.split(",")[0]
    rates: dict[str, list[float]] = {"one": [], "many": []}
    processor: dict[str, list[float]] = {"one": [], "many": []}
    with Retriever.open(folder) as retriever, ThreadPoolExecutor(_THREADS) as many, ThreadPoolExecutor(1) as one:
        for number in range(rounds + 1):  # the first one warms up
            for side, pool in (("one", one), ("many", many)) if number % 2 else (("many", many), ("one", one)):
                asked = [next(queries) for _ in range(searches)]
                filter = [
                    {"tenant": f"tenant-{at % TENANTS}"} if "filtered" in what else None for at in range(searches)
                ]
                vectors = retriever.encoder.encode_queries(asked) if "given" in what else None

                def search(at: int) -> Any:
                    rows = None if vectors is None else vectors[at : at + 1]  # noqa: B023
                    return retriever.search_many(asked[at : at + 1], 10, mode=mode, filter=filter[at], vectors=rows)  # noqa: B023

                started, used = time.perf_counter(), time.process_time()
                list(pool.map(search, range(searches)))
                if number:
                    rates[side].append(searches / (time.perf_counter() - started))
                    processor[side].append((time.process_time() - used) / searches * 1000)
    return {**rates, **{f"processor_{side}": median(each) for side, each in processor.items()}}


def start(folder: str, data: str) -> Row:
    """Seconds of this process until the first answer, and what it holds after a hundred."""
    code = (
        "import time, sys, json; begin = time.perf_counter()\n"
        "from ragadapt import Retriever; imported = time.perf_counter()\n"
        "opened = Retriever.open(sys.argv[1]); ready = time.perf_counter()\n"
        "opened.search('how do i reset my password'); answered = time.perf_counter()\n"
        "[opened.search(f'holidays and leave {number}') for number in range(100)]\n"
        "print(json.dumps({'import': imported - begin, 'open': ready - imported, 'first search': answered - ready, "
        "'rollup': open('/proc/self/smaps_rollup').read()}))"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    found: Row = json.loads(done.stdout)
    return {**found, **_held(found.pop("rollup"))}


def _held_together(options: Row) -> list[Row]:
    """What several processes hold that have the same folder open at the same time."""
    code = (
        "import sys\nfrom ragadapt import Retriever\nopened = Retriever.open(sys.argv[1])\n"
        "[opened.search(f'holidays and leave {number}') for number in range(100)]\nprint('ready', flush=True)\n"
        "sys.stdin.readline()\nprint(open('/proc/self/smaps_rollup').read())"
    )
    command = [sys.executable, "-c", code, str(options["folder"])]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(_WORKERS)
    ]
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    held = []
    for worker in workers:
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
        lines = [worker.stdout.readline() for _ in range(12)]  # before anybody ends
        held.append(_held("".join(lines)))
    for worker in workers:
        worker.communicate()
    return held


def _held(rollup: str) -> Row:
    """Bytes of a process: with its part of shared pages, and its own alone."""
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in rollup.splitlines() if "kB" in line}
    return {"pss": values["Pss"], "own": values["Private_Dirty"] + values["Private_Clean"]}


def _seconds(
    retriever: Retriever, query: str, vectors: np.ndarray, filter: Filter | None, mode: Any
) -> tuple[float, float]:
    """(by the clock, of the processor) of one search."""
    begin, used = time.perf_counter(), time.process_time()
    retriever.search_many([query], 10, vectors=vectors, filter=filter, mode=mode)
    return time.perf_counter() - begin, time.process_time() - used


def _queries(data: Path) -> Iterator[str]:
    """Real questions without end, none of them twice."""
    asked = list(load(data, "handbook").queries.values()) + list(load(data, "scifact").queries.values())
    number = 0
    while True:
        yield f"{asked[number % len(asked)]} {number // len(asked) or ''}".strip()
        number += 1


def _ratio(value: float) -> str:
    return f"{value:.2f}"


def _milliseconds(seconds: Sequence[float]) -> str:
    """At the 50th, 95th and 99th percentile."""
    return " / ".join(f"{mark:.1f}" for mark in np.percentile(np.asarray(seconds) * 1000, (50, 95, 99)))


if __name__ == "__main__":
    name, given = sys.argv[1:]
    work: dict[str, Callable[..., Row]] = {
        each.__name__: each for each in (first_filter, later_filters, many_threads, start)
    }
    print(json.dumps(work[name](**json.loads(given))))
