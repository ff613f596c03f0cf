"""What holds past one machine's memory, and what it costs: each bar measured beside what it is compared with.

    python examples/benchmarks/scale.py --data DATA [--folder FOLDER] [--parts hybrid,…]

Both sides of a comparison run in one process, or those of the part encode in one each, their repeats interleaved;
medians count. What that part compares with, and is not installed, its rows say: ONNX Runtime (onnxruntime and onnx),
OpenVINO (openvino, nncf; both with optimum where it knows this version of transformers), and light-embed. Results go to
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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from beir import Collection, check_data, load
from scale_cut import cuts
from scale_disk import disk
from scale_encode import encode
from scale_fit import fits
from scale_local import filters, memory, threads

from ragadapt import Encoder, EncoderConfig
from ragadapt.index import exact_index, open_index
from ragadapt.lexical import LexicalIndex
from ragadapt.lexical.index import open_statistics
from ragadapt.search.engine import EngineSearcher, EngineWords
from ragadapt.search.fusion import UNLEARNT_WEIGHT, Background, Fusion
from ragadapt.search.searcher import Searcher

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Where a part finds its data and leaves its rows. smoke: measure next to nothing, to see that it runs. threads,
    quality: of the part encode; rounds: of the parts encode and cuts."""

    data: Path
    folder: Path
    seed: int
    smoke: bool
    threads: Sequence[int] = (1, 2)
    quality: bool = False
    rounds: int = 5

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


def hybrid(bench: Bench) -> list[Row]:
    """The whole search in Qdrant Edge beside that over files: rankings, scores, time of a query, what lies on disk."""
    rows = []
    for name in ("scifact", "stackfaq"):
        collection = load(bench.data, name)
        asked = list(collection.asked("test").values())[: 8 if bench.smoke else None]
        count = 200 if bench.smoke else len(collection.ids)
        passages, queries = _vectors(bench, collection, count, asked)
        with tempfile.TemporaryDirectory(prefix="ragadapt-scale-") as place:
            rows.append(_hybrid_row(name, collection, count, asked, passages, queries, Path(place)))
    return rows


def _hybrid_row(
    name: str, collection: Collection, count: int, asked: list[str], passages: Any, queries: Any, place: Path
) -> Row:
    ids, texts = collection.ids[:count], collection.texts[:count]
    lexical = LexicalIndex.build(ids, texts)
    lexical.save(place / "files")
    statistics, words = lexical.statistics()
    statistics.save(place / "terms")
    fusion, background = Fusion(weight=UNLEARNT_WEIGHT), Background.of(passages)
    local = Searcher(exact_index(ids, passages), LexicalIndex.open(place / "files"), background, fusion)
    index: Any = open_index("qdrant-edge", place / "edge", dim=passages.shape[1], words=True)
    with index:
        index.upsert(ids, passages, None, words)
        inside = EngineSearcher(EngineWords(index, open_statistics(place / "terms"), lambda: ids), background, fusion)
        equal = tied = 0
        worst, seconds = 0.0, ([], [])  # type: tuple[float, tuple[list[float], list[float]]]
        for number, query in enumerate(asked):
            found = {}
            for side in (0, 1) if number % 2 else (1, 0):  # alternating
                searcher = (local, inside)[side]
                start = time.perf_counter()
                [found[side]] = searcher.rank([query], queries[number : number + 1], 10)
                seconds[side].append(time.perf_counter() - start)
            [one], [other] = (side.candidates([query], queries[number : number + 1]) for side in (local, inside))
            _, at, where = np.intersect1d(one.positions, other.positions, return_indices=True)
            worst = max(worst, float(np.abs(one.fused(fusion)[at] - other.fused(fusion)[where]).max()))
            same = found[0].ids == found[1].ids
            equal += same
            # What differs may be passages whose scores differ by rounding alone.
            tied += same or bool(np.abs(found[0].scores - found[1].scores).max() < 1e-4)
    sizes = [sum(file.stat().st_size for file in (place / part).iterdir()) for part in ("files", "terms")]
    return {
        "collection": name, "passages": count, "queries": len(asked),
        "equal rankings at 10": f"{equal / len(asked):.4f}",
        "equal but for ties": f"{tied / len(asked):.4f}", "largest difference of a score": f"{worst:.1e}",
        **{f"files {key}": value for key, value in percentiles(seconds[0]).items()},
        **{f"engine {key}": value for key, value in percentiles(seconds[1]).items()},
        "BM25 files, MB": round(sizes[0] / 1e6, 1), "word statistics, MB": round(sizes[1] / 1e6, 1),
    }  # fmt: skip


def _vectors(bench: Bench, collection: Collection, count: int, asked: list[str]) -> tuple[Any, Any]:
    """(passages, queries) by the base model, encoded once and kept in the folder."""
    path = bench.folder / f"vectors-{collection.name}{'-smoke' if bench.smoke else ''}.npz"
    if not path.exists():
        encoder = Encoder.load(EncoderConfig(model="offline"))
        np.savez(
            path, passages=encoder.encode_passages(collection.texts[:count]), queries=encoder.encode_queries(asked)
        )
    with np.load(path) as arrays:
        return arrays["passages"], arrays["queries"]


def quantisation(bench: Bench) -> list[Row]:
    """What the engine's graph finds of the best passages, with vectors as they are and quantised, by Qdrant Edge: the
    engine of the server in this process."""
    import qdrant_edge as edge

    collection = load(bench.data, "scifact")
    asked = list(collection.asked("test").values())[: 8 if bench.smoke else None]
    passages, queries = _vectors(bench, collection, 200 if bench.smoke else len(collection.ids), asked)
    order = np.argsort(-(queries @ passages.T), axis=1)
    rows = []
    kinds = (
        ("none", None, None), ("int8", edge.ScalarQuantizationConfig(edge.ScalarType.Int8, 0.99), 2.0),
        ("binary", edge.BinaryQuantizationConfig(), 4.0),
    )  # fmt: skip
    for name, config, oversampling in kinds:
        with tempfile.TemporaryDirectory(prefix="ragadapt-scale-") as place:
            graph = edge.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=10)  # kB: however few they are
            params = edge.EdgeVectorParams(
                size=passages.shape[1], distance=edge.Distance.Dot, quantization_config=config, hnsw_config=graph
            )
            small = edge.EdgeOptimizersConfig(indexing_threshold=100, default_segment_number=1)  # kB: all gets a graph
            shard = edge.EdgeShard.create(place, edge.EdgeConfig(vectors={"passage": params}, optimizers=small))
            for start in range(0, len(passages), 1000):
                part = range(start, min(start + 1000, len(passages)))
                points = [edge.Point(at, {"passage": passages[at]}, {}) for at in part]
                shard.update(edge.UpdateOperation.upsert_points(points))
            while shard.optimize():
                pass
            rescored = None
            if oversampling is not None:
                rescored = edge.QuantizationSearchParams(ignore=False, rescore=True, oversampling=oversampling)
            parameters = edge.SearchParams(exact=False, quantization=rescored)
            row: Row = {"vectors": name, "passages": len(passages), "queries": len(asked)}
            for k in (10, 200):
                share = 0.0
                for vector, best in zip(queries, order, strict=True):
                    nearest = edge.Query.Nearest(vector, using="passage")
                    found = shard.query(edge.QueryRequest(limit=k, query=nearest, params=parameters))
                    share += len({point.id for point in found} & set(best[:k].tolist())) / min(k, len(passages))
                row[f"recall@{k} of exact"] = round(share / len(asked), 4)
            shard.close()
            rows.append(row)
    return rows


PARTS: dict[str, Callable[[Bench], list[Row]]] = {
    "hybrid": hybrid, "quantisation": quantisation, "fits": fits, "filters": filters, "threads": threads,
    "memory": memory, "disk": disk, "encode": encode, "cuts": cuts,
}  # fmt: skip
"""Part → what measures it. Each returns rows of equal keys."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of collections in BEIR layout")
    parser.add_argument("--folder", type=Path, help="where results go; parts join those that are there")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--table", action="store_true", help="print the tables of FOLDER/scale.json, measure nothing")
    parser.add_argument("--smoke", action="store_true", help="every part at a size of seconds")
    parser.add_argument("--threads", default="1,2", help="of the part encode, one measurement for each number")
    parser.add_argument(
        "--rounds", type=int, default=5, help="of the parts encode and cuts, of which the median counts"
    )
    parser.add_argument("--quality", action="store_true", help="the part encode judges its vectors by all of SciFact")
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
        try:
            threads = tuple(int(number) for number in arguments.threads.split(","))
        except ValueError:
            parser.error(f"--threads {arguments.threads}: give whole numbers with commas between them, such as 1,2")
        check_data(parser, arguments.data, ["scifact", "stackfaq", "handbook"])
        if arguments.rounds < 1:
            parser.error("--rounds must be at least 1")
        bench = Bench(
            arguments.data, folder, arguments.seed, arguments.smoke, threads, arguments.quality, arguments.rounds
        )
        for part in chosen:
            bench.add(part, PARTS[part](bench))
    for part, found in json.loads((folder / "scale.json").read_text(encoding="utf-8"))["parts"].items():
        print(f"\n**{part}** ({found['date']}, seed {found['seed']})\n\n{table(found['rows'])}")


if __name__ == "__main__":
    main()
