"""One training of a re-ranker and what it is worth, for rerank.py: a cell that runs in a process of its own.

A cell needs a file with what the first stage found and a folder with the re-ranker that it starts from, no retriever.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from beir import device as device_name

from ragadapt.adapters.method import settings_for
from ragadapt.config import AdapterConfig, TrainingConfig
from ragadapt.evaluation import evaluate, paired_bootstrap
from ragadapt.rerank import Reranker
from ragadapt.rerank.adapted import AdaptedReranker
from ragadapt.search.fusion import ReadCandidates, learn_rerank_weight
from ragadapt.training import Example
from ragadapt.training.rerank import train_reranker
from ragadapt.values import Progress, no_progress

HELD = 0.2  # of the train questions: they choose the step whose weights are kept, the rate, and the share of the score


@dataclass(frozen=True)
class Task:
    """found: the file with what the first stage found. base: the re-ranker that is trained; fresh: its head is random.
    depth: passages that are read of a question. batch: questions of a step, negatives beside each answer. questions:
    of either split at most; None = all. final: measure on the test questions."""

    found: Path
    base: str
    fresh: bool
    method: str
    rate: float
    steps: int
    seed: int
    depth: int
    batch: int
    negatives: int
    questions: int | None
    max_length: int | None
    device: str
    final: bool


@dataclass(frozen=True)
class Found:
    """What the first stage found for a question, best first, and which documents answer it."""

    text: str
    documents: list[str]
    passages: list[str]
    scores: list[float]
    answers: dict[str, int]
    answer_passages: list[str]

    def read(self, logits: np.ndarray) -> ReadCandidates:
        first = np.array(self.scores, dtype=np.float32)
        return ReadCandidates(np.arange(len(first)), first, logits)

    def run(self, order: Sequence[int]) -> dict[str, float]:
        """Documents in the order of their best passage."""
        ids = list(dict.fromkeys(self.documents[at] for at in order))
        return {id: float(-rank) for rank, id in enumerate(ids)}

    def ndcg(self, order: Sequence[int]) -> float:
        """nDCG@10 of documents."""
        return next(iter(evaluate({"q": self.run(order)}, {"q": self.answers}).per_query["nDCG@10"].values()))


def read_found(file: Path, split: str, most: int | None = None) -> dict[str, Found]:
    """By question id; at most so many, the same ones in every call."""
    whole = json.loads(file.read_text(encoding="utf-8"))
    ids = sorted(whole[split])
    if most is not None and most < len(ids):
        ids = sorted(random.Random(13).sample(ids, most))
    return {id: Found(**whole[split][id]) for id in ids}


def examples_of(questions: Sequence[Found], depth: int) -> list[Example]:
    """Every answer beside what the first stage ranks high and nobody called an answer."""
    return [
        Example(
            one.text,
            answer,
            tuple(
                passage
                for document, passage in zip(one.documents[:depth], one.passages, strict=False)
                if document not in one.answers and passage != answer
            ),
        )
        for one in questions
        for answer in one.answer_passages
    ]


def train_cell(task: Task, *, progress: Progress = no_progress) -> dict[str, Any]:
    """The row of one training."""
    questions = read_found(task.found, "train", task.questions)
    ids = sorted(questions)
    random.Random(task.seed).shuffle(ids)
    count = round(HELD * len(ids))
    held, own = [questions[id] for id in ids[:count]], [questions[id] for id in ids[count:]]
    base = Reranker.load(task.base, device=task.device, max_length=task.max_length)

    def lists(some: Sequence[Found]) -> list[tuple[str, Sequence[str]]]:
        return [(one.text, one.passages[: task.depth]) for one in some]

    def dev(reranker: AdaptedReranker | Reranker) -> float:
        made = reranker.logits_of(lists(held))
        return float(
            np.mean([one.ndcg(one.read(read).ranked(1.0).tolist()) for one, read in zip(held, made, strict=True)])
        )

    training = TrainingConfig(
        batch_size=task.batch, max_steps=task.steps, epochs=10_000, learning_rate=task.rate, patience=100
    )
    started = time.perf_counter()
    result = train_reranker(
        base, examples_of(own, task.depth), dev, settings_for(task.method, AdapterConfig()), training,
        negatives=task.negatives, fresh=task.fresh, seed=task.seed, progress=progress,
    )  # fmt: skip
    trained = result.reranker
    row: dict[str, Any] = {
        "method": task.method, "rate": task.rate, "steps": task.steps, "seed": task.seed,
        "dev_before": result.dev_before, "dev": result.best_dev, "best_step": result.best_step,
        "trained": trained.share.trained, "whole": trained.share.whole,
        "share": trained.share.trained / trained.share.whole,
        "step_seconds": result.step_seconds, "seconds": time.perf_counter() - started,
        "precision": base.precision.dtype, "device": device_name(), "on": base.precision.device,
        "questions": len(own), "depth": task.depth, "batch": task.batch, "negatives": task.negatives,
        "most": task.questions,
    }  # fmt: skip
    if not task.final:
        return row
    merged = trained.merged()
    read = [one.read(logits) for one, logits in zip(held, merged.logits_of(lists(held)), strict=True)]
    curve = learn_rerank_weight(read, [lambda order, one=one: one.ndcg(order.tolist()) for one in held])
    tested = list(read_found(task.found, "test", task.questions).values())
    logits = merged.logits_of(lists(tested))
    shares = {"first": 0.0, "fused": curve.chosen, "half": 0.5, "alone": 1.0}
    quality = {
        name: [one.ndcg(one.read(read).ranked(share).tolist()) for one, read in zip(tested, logits, strict=True)]
        for name, share in shares.items()
    }
    row |= {name: float(np.mean(values)) for name, values in quality.items()}
    row["weight"] = curve.chosen
    for name in ("fused", "half"):
        gain = paired_bootstrap(quality[name], quality["first"], seed=task.seed)
        row |= {f"{name}_gain": gain.delta, f"{name}_low": gain.low, f"{name}_high": gain.high}
    row["test"] = len(tested)
    row["per_query"] = {name: [round(value, 4) for value in quality[name]] for name in ("first", "fused", "half")}
    return row
