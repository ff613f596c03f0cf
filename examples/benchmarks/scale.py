"""What holds past one machine's memory, and what it costs: each bar measured beside what it is compared with.

    python examples/benchmarks/scale.py --data DATA [--folder FOLDER] [--parts hybrid,…]

Both sides of a comparison run in one process, their repeats interleaved; medians count. Results go to
FOLDER/scale.json as they come; parts that are run later into the same FOLDER join those that are there. Tables go to
stdout, --table prints them again without measuring. --smoke runs every part at a size of seconds: its figures mean
nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where a part finds its data and leaves its rows. smoke: measure next to nothing, to see that it runs."""

    data: Path
    folder: Path
    seed: int
    smoke: bool

    def add(self, part: str, rows: Sequence[Row]) -> None:
        """Put the rows of a part in the place of those that it had."""
        path = self.folder / "scale.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"parts": {}}
        known["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
        known["parts"][part] = {"date": date.today().isoformat(), "seed": self.seed, "rows": list(rows)}
        path.write_text(json.dumps(known, indent=1), encoding="utf-8")


def percentiles(seconds: Sequence[float]) -> Row:
    """Milliseconds at the 50th, 95th and 99th percentile."""
    marks = np.percentile(np.asarray(seconds) * 1000, (50, 95, 99))
    return {f"p{mark}_ms": round(float(value), 2) for mark, value in zip((50, 95, 99), marks, strict=True)}


def table(rows: Sequence[Row]) -> str:
    """Rows of equal keys as Markdown."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)


# The parts


PARTS: dict[str, Callable[[Bench], list[Row]]] = {}
"""Part → what measures it. Each returns rows of equal keys."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of collections in BEIR layout")
    parser.add_argument("--folder", type=Path, help="where results go; parts join those that are there")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--table", action="store_true", help="print the tables of FOLDER/scale.json, measure nothing")
    parser.add_argument("--smoke", action="store_true", help="every part at a size of seconds")
    parser.add_argument("--seed", type=int, default=13)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="ragadapt-scale-"))
    folder.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        if arguments.data is None:
            parser.error("--data is needed to measure")
        chosen = arguments.parts.split(",")
        if unknown := set(chosen) - set(PARTS):
            parser.error(f"unknown parts {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
        bench = Bench(arguments.data, folder, arguments.seed, arguments.smoke)
        for part in chosen:
            bench.add(part, PARTS[part](bench))
    for part, found in json.loads((folder / "scale.json").read_text(encoding="utf-8"))["parts"].items():
        print(f"\n**{part}** ({found['date']}, seed {found['seed']})\n\n{table(found['rows'])}")


if __name__ == "__main__":
    main()
