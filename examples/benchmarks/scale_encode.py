"""Part of scale.py about the processor's limit: what it multiplies at best, and what encoding and training reach of it.

Every side is a process of its own that stays open, with as many threads as the row says; they take turns, the order
turned round every time. All run the same packaged weights. Nothing is pinned to a core: where tokens are made beside
the network, one thread of the network is more than one of the process, which the figures by processor time show.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scale_encode_sides import DEFAULT, RANK, SIDES, TRAINING, location

HERE = Path(__file__).resolve().parent
Row = dict[str, Any]

TOKENS = 250  # of a passage; those of the collection that come nearest are taken
BATCH = 32  # pairs of a step


class Bench(Protocol):
    """As scale.py has it."""

    data: Path
    folder: Path
    seed: int
    smoke: bool
    threads: Sequence[int]
    quality: bool
    rounds: int


def encode(bench: Bench) -> list[Row]:
    """Peaks of products, passages a second of every contender, and ragadapt's step of LoRA: medians over the rounds, by
    the clock and by the processor. Operations are those of the texts without padding, once."""
    place = bench.folder / "encode"
    place.mkdir(parents=True, exist_ok=True)
    work = _texts(bench, place / "texts.json")
    rows = []
    for threads in bench.threads:
        sides: list[Side] = []
        try:
            for name in ("peak", *SIDES, TRAINING):
                sides.append(Side(name, {"threads": threads, "place": str(place), "smoke": bench.smoke}))
            _take_turns(sides, list(work["lengths"]), 1 if bench.smoke else bench.rounds)
            judged = _quality(bench, sides) if bench.quality and threads == max(bench.threads) else {}
        finally:
            for side in sides:
                side.close()
        rows += _rows(sides, work, threads, judged)
    return rows


def training_operations(config: Row, lengths: Sequence[int], rank: int) -> float:
    """Of one LoRA step on all linear layers of a BERT. Frozen weights cost their products forward and those of the
    input's gradient back; adapters, and the products of attention, those of both gradients. Nothing below the first
    layer learns, so that it makes no gradient for its input."""
    counts = np.asarray(lengths, dtype=np.float64)
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    tokens, pairs = counts.sum(), np.sum(counts**2)
    frozen = layers * (4 * width**2 + 2 * width * inner)
    adapters = layers * rank * (8 * width + 2 * (width + inner))
    spared = 3 * 2 * (width**2 + width * rank) * tokens
    return float(4 * frozen * tokens + 6 * adapters * tokens + 3 * layers * 4 * width * pairs - spared)


# The rounds


class Side:
    """A process that measures when it is asked. reason: why there is nothing to measure; None = all is well."""

    def __init__(self, name: str, options: Row) -> None:
        self.name = name
        self.found: dict[str, list[Row]] = {}  # by task
        self._place = Path(options["place"])
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), str(options["threads"]))
        with (self._place / f"{name}.log").open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "scale_encode_sides.py"), name, json.dumps(options)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, **limits, "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        self.reason: str | None = None
        self.about = self._answer()

    def runs(self, task: str) -> bool:
        return task == self.name or (self.name in SIDES and task not in ("peak", TRAINING))

    def ask(self, task: str, keep: bool = False) -> Row:
        """What one run of the task took, its vectors kept if asked; an empty row where it failed, or the side has."""
        assert self._process.stdin is not None
        if self.reason is not None:
            return {}
        self._process.stdin.write(json.dumps({"task": task, "save": self._file(task) if keep else None}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def vectors(self, task: str) -> np.ndarray:
        found: np.ndarray = np.load(self._file(task))
        return found

    def close(self) -> None:
        self._process.communicate()

    def _file(self, task: str) -> str:
        return str(self._place / f"{self.name}, {task}.npy")

    def _answer(self) -> Row:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found: Row = json.loads(line) if line else {"reason": f"exited with {self._process.wait()}"}
        self.reason = found.pop("reason", None)
        return found


def _take_turns(sides: Sequence[Side], tasks: Sequence[str], rounds: int) -> None:
    for number in range(rounds + 1):
        for side in sides if number % 2 else reversed(sides):
            for task in (task for task in ("peak", *tasks) if side.runs(task)):
                found = side.ask(task, keep=number == 0 and side.name in SIDES)
                if number and found:  # the first round chooses kernels; its vectors are compared
                    side.found.setdefault(task, []).append(found)


def _quality(bench: Bench, sides: Sequence[Side]) -> dict[str, float]:
    """nDCG@10 of the vectors alone over all of SciFact, by side."""
    from beir import load, run_of

    from ragadapt.evaluation import evaluate

    collection, judged = load(bench.data, "scifact"), {}
    asked, qrels = list(collection.asked("test")), collection.qrels["test"]
    for side in (one for one in sides if one.name in SIDES):
        if side.ask("queries", keep=True) and side.ask("corpus", keep=True):
            scores = side.vectors("queries") @ side.vectors("corpus").T  # (Q, d) x (D, d) -> (Q, D)
            run = run_of(scores, asked[: len(scores)], collection.ids[: scores.shape[1]], 100)
            judged[side.name] = evaluate(run, {id: qrels[id] for id in run}).mean["nDCG@10"]
    return judged


def _texts(bench: Bench, path: Path) -> Row:
    """Write what the sides read; returns tokens of every text and operations of all, by task."""
    from beir import load
    from speed import forward_operations
    from synthetic import mixed_lengths

    from ragadapt import Encoder, EncoderConfig

    reader = Encoder.load(EncoderConfig(model="offline", device="cpu"))
    collection, (count, pairs) = load(bench.data, "scifact"), (4, 4) if bench.smoke else (128, BATCH)
    unique = list(dict.fromkeys(collection.texts))[: 100 if bench.smoke else None]

    def lengths(texts: Sequence[str]) -> list[int]:
        return [min(n + reader.special_tokens, reader.max_length) for n in reader.count_tokens(texts)]

    near = [unique[at] for at in np.argsort([abs(length - TOKENS) for length in lengths(unique)], kind="stable")]
    sets = {
        f"{TOKENS} tokens": near[:count], "mixed lengths": mixed_lengths(unique, 2 * count, seed=bench.seed),
        TRAINING: near[: 2 * pairs],
    }  # fmt: skip
    others = {
        "calibration": near[count:][: 4 if bench.smoke else 300],
        "corpus": collection.texts[: 20 if bench.smoke else None],
        "queries": list(collection.asked("test").values())[: 4 if bench.smoke else None],
    }  # fmt: skip
    path.write_text(json.dumps({**sets, **others}), encoding="utf-8")
    counted = {name: lengths(texts) for name, texts in sets.items()}
    operations = {name: forward_operations(location(), found) for name, found in counted.items()}
    shape = json.loads((Path(location()) / "config.json").read_text(encoding="utf-8"))
    operations[TRAINING] = training_operations(shape, counted[TRAINING], RANK)
    return {"lengths": counted, "operations": operations}


def _rows(sides: Sequence[Side], work: Row, threads: int, judged: dict[str, float]) -> list[Row]:
    """Of every kind of product and of every side and task, what was not measured too: rows of equal keys."""
    best: tuple[Any, Any] = (None, None)  # operations a second by the clock, and of the processor

    def row(task: str, side: str, note: str, each: Any = (None, None), rates: Any = (None, None), **judged: Any) -> Row:
        def shown(value: float | None, form: str) -> str:
            return "" if value is None else format(value, form)

        shares = [rate / most if rate and most else None for rate, most in zip(rates, best, strict=True)]
        return {
            "threads": threads, "task": task, "side": side,
            "passages or pairs/s": shown(each[0], ".1f"), "per processor-second": shown(each[1], ".1f"),
            "Gop/s": shown(rates[0] and rates[0] / 1e9, ".0f"),
            "Gop per processor-second": shown(rates[1] and rates[1] / 1e9, ".0f"),
            "share of the bf16 peak": shown(shares[0], ".1%"), "by processor time": shown(shares[1], ".1%"),
            "least cosine with float32": shown(judged.get("cosine"), ".4f"),
            "nDCG@10": shown(judged.get("ndcg"), ".4f"), "note": note,
        }  # fmt: skip

    peaks = _peaks(sides[0].found.get("peak", []))
    best = peaks.get("bf16", (*best, ""))[:2]
    rows = [row("peak", kind, how, rates=rates) for kind, (*rates, how) in peaks.items()]
    rows += [] if peaks else [row("peak", "products", f"not measured: {sides[0].reason}")]
    for task, lengths in work["lengths"].items():
        for side in (one for one in sides[1:] if one.runs(task)):
            took = side.found.get(task)
            if not took:
                rows.append(row(task, side.name, f"not measured: {side.reason}"))
                continue
            seconds = np.median([(one["wall"], one["processor"]) for one in took], axis=0)
            count = len(lengths) / (1 if side.name in SIDES else 2)
            judgement = {"cosine": _least_cosine(sides, side, task), "ndcg": judged.get(side.name)}
            note, rates = side.about["note"], work["operations"][task] / seconds
            rows.append(row(task, side.name, note, count / seconds, rates, **judgement))
    return rows


def _peaks(found: Sequence[Row]) -> dict[str, tuple[float, float, str]]:
    """kind → (operations a second by the clock, of the processor, the product that reaches most), medians over rounds.
    The most by either clock may be of two products; the one by the clock is named."""
    best: dict[str, tuple[float, float, str]] = {}
    for label in found[0] if found else ():
        kind, how = label.split(": ")
        wall, used = np.median([one[label] for one in found], axis=0)
        known = best.get(kind, (0.0, 0.0, ""))
        best[kind] = (max(wall, known[0]), max(used, known[1]), how if wall > known[0] else known[2])
    return best


def _least_cosine(sides: Sequence[Side], side: Side, task: str) -> float | None:
    reference = next(one for one in sides if one.name == DEFAULT)
    if side.name not in SIDES or task not in reference.found:
        return None
    mine, plain = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (side.vectors(task), reference.vectors(task))
    )
    return float(np.min(np.sum(mine * plain, axis=1)))
