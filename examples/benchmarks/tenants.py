"""What an adapter for every tenant costs: memory, and the time of a question, with 1, 10, 100 tenants.

    python examples/benchmarks/tenants.py --data DATA [--tenants 1,10,100] [--questions 300] [--out tenants.json]

Fits handbook's sections without training, and puts an adapter for every tenant into a library: LoRA on the query side
at its defaults, with random numbers in it, as nothing here depends on what was learnt. Then questions are asked one by
one: of the base, of one tenant, of tenants at random, so that nearly every question copies an adapter in. A swap is
what a question takes longer where another tenant asked before, with all adapters held, and with one, so that each is
read from the disk. Memory is what the process holds more than before. Set OMP_NUM_THREADS=1. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import tempfile
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median, quantiles
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import psutil
import torch
from beir import check_data, load

from ragadapt.adapters import AdapterState, attach
from ragadapt.adapters.library import CorpusStatistics, Library
from ragadapt.adapters.tenants import HELD, TenantAdapters
from ragadapt.config import AdapterConfig, FitConfig
from ragadapt.encoder import Encoder
from ragadapt.pipeline.fit import fit
from ragadapt.retriever import Retriever

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="collections in BEIR layout; handbook is used")
    parser.add_argument("--tenants", default="1,10,100")
    parser.add_argument("--questions", type=int, default=300, help="of each measurement")
    parser.add_argument("--out", type=Path, default=Path("tenants.json"))
    parser.add_argument("--model", default="offline", help="a preset, a hub name or a folder")
    arguments = parser.parse_args()
    check_data(parser, arguments.data, ["handbook"])
    collection = load(arguments.data, "handbook")
    asked = list(collection.queries.values())
    with tempfile.TemporaryDirectory() as scratch:
        config = FitConfig.build({"encoder": {"model": arguments.model}, "adapter": {"method": "none"}})
        folder = fit([collection.corpus], Path(scratch) / "retriever", config).path
        library = Library.open(Path(scratch) / "library", create=True)
        base = Encoder.load(config.encoder)
        rows = [
            measure(folder, library, base, count, asked, arguments.questions)
            for count in map(int, arguments.tenants.split(","))
        ]
    about = {"date": date.today().isoformat(), "machine": platform.machine(), "threads": torch.get_num_threads()}
    arguments.out.write_text(json.dumps({"about": {**about, "model": arguments.model}, "rows": rows}, indent=1) + "\n")
    print(table(rows))


def random_adapter(base: Encoder, seed: int) -> AdapterState:
    """Of the shape that a fit gives."""
    encoder = attach(base, AdapterConfig(adapt="query"))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.trainable().values():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return encoder.state()


def fill(library: Library, base: Encoder, count: int) -> list[str]:
    """The names of so many tenants, whose adapters are in the library."""
    names = [f"tenant-{number:04}" for number in range(count)]
    known = set(library.names())
    if set(names) <= known:
        return names
    state = random_adapter(base, 0)
    statistics = CorpusStatistics.of(np.eye(base.dim, dtype=np.float32), base.fingerprint)
    for number, name in enumerate(names):
        if name not in known:
            shift = 1e-3 * number
            tensors = {key: tensor + shift for key, tensor in state.tensors.items()}
            library.add(name, replace(state, tensors=tensors), statistics)
    return names


def held_bytes() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def timed(retriever: Retriever, asked: list[str], tenants: list[str | None], count: int) -> dict[str, float]:
    """Milliseconds of questions, one by one. None is asked twice in a row, so that no vector is remembered."""
    rng = np.random.default_rng(13)
    taken = []
    for number in range(count):
        tenant = tenants[int(rng.integers(len(tenants)))]
        question = f"{asked[number % len(asked)]} ({number})"
        started = time.perf_counter()
        retriever.search(question, 10, tenant=tenant)
        taken.append(1000 * (time.perf_counter() - started))
    return {"median": round(median(taken), 2), "p95": round(quantiles(taken, n=20)[-1], 2)}


def measure(folder: Path, library: Library, base: Encoder, count: int, asked: list[str], number: int) -> Row:
    names = fill(library, base, count)
    with Retriever.open(folder, tenant_adapters=library.folder) as opened:
        timed(opened, asked, [None], 20)
        timed(opened, asked, [names[0]], 5)  # the one copy of what is trained, and the libraries that make it
        tenants = opened.snapshot().tenants
        assert tenants is not None
        before = held_bytes()
        for name in names:
            tenants.encode_queries(name, ["warm"])
        row: Row = {
            "tenants": count,
            "mebibytes": round((held_bytes() - before) / 2**20, 1),
            "tensors_mebibytes": round(sum(map(size, tenants._states.values())) / 2**20, 1),
            "base": timed(opened, asked, [None], number),
            "one tenant": timed(opened, asked, [names[0]], number),
            "in turn": timed(opened, asked, list(names), number),
            "swap": round(swap_milliseconds(tenants, names), 2),
        }
        few = TenantAdapters(opened.encoder, library, held=1)
        row["swap from disk"] = round(swap_milliseconds(few, names), 2)
        row["held"] = min(count, HELD)
    print(json.dumps(row), flush=True)
    return row


def size(held: tuple[Any, AdapterState]) -> int:
    return sum(tensor.nbytes for tensor in held[1].tensors.values())


def swap_milliseconds(tenants: TenantAdapters, names: list[str], rounds: int = 60) -> float:
    """What a question costs more where another tenant asked before."""
    if len(names) < 2:
        return 0.0
    taken: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * rounds):
        changes = number % 2 == 0
        name = names[(number // 2) % len(names)]
        started = time.perf_counter()
        tenants.encode_queries(name, ["what is it"])
        taken[changes].append(1000 * (time.perf_counter() - started))
    return median(taken[True]) - median(taken[False])


def table(rows: list[Row]) -> str:
    lines = [
        "| tenants | memory, MiB | a question of the base, ms | of one tenant | at random | a swap | from disk |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = " | ".join(
            f"{row[name]['median']} (p95 {row[name]['p95']})" for name in ("base", "one tenant", "in turn")
        )
        lines.append(f"| {row['tenants']} | {row['mebibytes']} | {times} | {row['swap']} | {row['swap from disk']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
