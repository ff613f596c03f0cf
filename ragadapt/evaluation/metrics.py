"""Retrieval metrics of a run against judgements, computed by ir-measures (pytrec_eval underneath)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ragadapt.errors import InvalidInput, InvalidLabels

Run = Mapping[str, Mapping[str, float]]
"""query id → document id → score; larger is better."""

Qrels = Mapping[str, Mapping[str, int]]
"""query id → document id → grade; 1 and above is relevant."""

METRICS = ("nDCG@10", "R@10", "R@100", "RR@10", "AP@100")
"""What every report shows, in the names of ir-measures."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """per_query: metric → query id → value, in the judgements' order. mean: metric → average, 0 if none."""

    per_query: Mapping[str, Mapping[str, float]]
    mean: Mapping[str, float]

    @property
    def n(self) -> int:
        """How many queries were judged."""
        return len(next(iter(self.per_query.values()), {}))


def evaluate(run: Run, qrels: Qrels, metrics: Sequence[str] = METRICS) -> Evaluation:
    """The metrics of every judged query and their means.

    A query that the run lacks counts 0, as does one without a relevant document; queries that nobody judged
    are left out. Ties are broken as trec_eval breaks them (see `ranked`), for every metric alike, so that the
    run file written by `write_run` scores the same in any tool that reads TREC files.

    Raises InvalidInput for an unknown metric or a score that is not finite, InvalidLabels for a grade that is
    no whole number.
    """
    import ir_measures

    measures = {name: _measure(name) for name in metrics}
    for query, grades in qrels.items():
        for document, grade in grades.items():
            if int(grade) != grade:
                raise InvalidLabels(
                    f"Query {query!r} judges {document!r} as {grade!r}; grades are whole numbers, 0 = not relevant."
                )
    if not qrels:
        return Evaluation({name: {} for name in metrics}, dict.fromkeys(metrics, 0.0))

    # Ranks, not scores, reach the library: its providers break ties in opposite ways and round to float32.
    depth = _depth(measures)
    ranks = {
        query: {document: -float(rank) for rank, document in enumerate(ranked(run[query])[:depth])}
        for query in qrels
        if run.get(query)
    }
    judgements = {query: {doc: int(grade) for doc, grade in grades.items()} for query, grades in qrels.items()}
    values: dict[str, dict[str, float]] = {name: dict.fromkeys(qrels, 0.0) for name in metrics}
    names: dict[Any, list[str]] = {}
    for name, measure in measures.items():
        names.setdefault(measure, []).append(name)
    try:
        evaluator = ir_measures.evaluator(list(names), judgements)
    except ValueError as error:
        raise InvalidInput(f"No installed provider computes one of {', '.join(metrics)}: {error}") from error
    for value in evaluator.iter_calc(ranks):
        for name in names[value.measure]:
            values[name][value.query_id] = float(value.value)
    return Evaluation(values, {name: float(np.mean(list(values[name].values()))) for name in metrics})


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Document ids, best first, in trec_eval's order: by the score as float32, ties by id, later id first.

    Raises InvalidInput if a score is not finite.
    """
    ids = list(scores)
    values = np.fromiter(scores.values(), dtype=np.float64, count=len(ids)).astype(np.float32)
    if not np.isfinite(values).all():
        worst = ids[int(np.flatnonzero(~np.isfinite(values))[0])]
        raise InvalidInput(f"Document {worst!r} has the score {scores[worst]!r}; a score must be a finite number.")
    order = np.argsort(-values, kind="stable")
    if len(ids) > 1 and bool((np.diff(values[order]) == 0).any()):
        by_value = dict(zip(ids, values.tolist()))
        return sorted(sorted(ids, reverse=True), key=lambda document: -by_value[document])
    return [ids[position] for position in order]


def _measure(name: str) -> Any:
    import ir_measures

    try:
        return ir_measures.parse_measure(name)
    except (ValueError, NameError, TypeError) as error:
        raise InvalidInput(
            f"Unknown metric {name!r}. Metrics are written as ir-measures writes them, "
            f"for example {', '.join(METRICS)}."
        ) from error


def _depth(measures: Mapping[str, Any]) -> int | None:
    """How far down a ranking any of these metrics looks; None = to its end."""
    cutoffs = []
    for measure in measures.values():
        # judged_only drops documents before it cuts, so the cutoff does not bound what it reads.
        if measure.NAME not in {"nDCG", "R", "P", "RR", "AP", "Success"} or measure.params.get("judged_only"):
            return None
        cutoffs.append(measure.params.get("cutoff", math.inf))
    deepest = max(cutoffs, default=math.inf)
    return None if math.isinf(deepest) else int(deepest)
