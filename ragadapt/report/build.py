"""Parts of a report made from runs, judgements and scores. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import numpy.typing as npt

from ragadapt.evaluation.metrics import Evaluation, Qrels, Run, ranked
from ragadapt.evaluation.significance import holm, interval, p_value, paired_bootstrap
from ragadapt.report.values import (
    Comparison,
    Delta,
    Histogram,
    Measure,
    MeasuredSystem,
    NeverRetrieved,
    Passage,
    QueryComparison,
    QueryResult,
)

BASELINES = ("base-dense", "bm25", "base-hybrid")
"""The names under which a report looks for the systems that every fit is compared with."""


def measured(
    name: str,
    label: str,
    evaluation: Evaluation,
    *,
    seed: int,
    samples: int = 2000,
    confidence: float = 0.95,
    shipped: bool = False,
    note: str = "",
) -> MeasuredSystem:
    """A system with a bootstrap interval on each of its metrics."""
    metrics = {
        metric: Measure.of(interval(list(values.values()), samples=samples, confidence=confidence, seed=seed))
        for metric, values in evaluation.per_query.items()
        if values
    }
    return MeasuredSystem(name=name, label=label, metrics=metrics, shipped=shipped, note=note)


def differences(
    name: str,
    evaluation: Evaluation,
    baselines: Mapping[str, Evaluation],
    *,
    seed: int,
    metrics: Sequence[str] = ("nDCG@10",),
    samples: int = 2000,
    confidence: float = 0.95,
) -> tuple[Delta, ...]:
    """Paired intervals of one system against each baseline; nothing where no query was judged."""
    made = []
    for other, baseline in baselines.items():
        for metric in metrics:
            ours, theirs = evaluation.per_query[metric], baseline.per_query[metric]
            if ours:
                found = paired_bootstrap(
                    list(ours.values()),
                    [theirs[query] for query in ours],
                    samples=samples,
                    confidence=confidence,
                    seed=seed,
                )
                made.append(Delta(system=name, against=other, metric=metric, interval=found))
    return tuple(made)


def with_holm(deltas: Sequence[Delta], samples: int) -> tuple[Delta, ...]:
    """The differences with p-values that are corrected for all of them (Holm). samples: of the bootstrap."""
    corrected = holm([p_value(delta.interval, samples) for delta in deltas])
    return tuple(delta.model_copy(update={"p": p}) for delta, p in zip(deltas, corrected, strict=True))


def compare(
    texts: Mapping[str, str],
    qrels: Qrels,
    before: tuple[str, Run, Evaluation],
    after: tuple[str, Run, Evaluation],
    passage: Callable[[str], Passage | None],
    *,
    metric: str = "nDCG@10",
    kinds: Mapping[str, str] | None = None,
    limit: int = 100,
) -> Comparison:
    """Every judged query before and after; at most `limit` of them, those that changed most, with their texts.

    texts: query id → text. before, after: what the system is called, its run, its evaluation. passage: what a
    reader should see for an id, None if unknown. Half of the limit is kept for losses where there are any.
    """
    first, second = before[2].per_query[metric], after[2].per_query[metric]
    changes = {query: second[query] - first[query] for query in first}
    order, shown = _most_changed(changes, limit)
    queries = tuple(
        one_query(query, texts, qrels, before, after, passage, metric=metric, kinds=kinds) for query in shown
    )
    return Comparison(
        before=before[0],
        after=after[0],
        metric=metric,
        changes=tuple(changes[query] for query in order),
        queries=queries,
    )


def _most_changed(changes: Mapping[str, float], limit: int) -> tuple[list[str], list[str]]:
    """All queries, best change first, and at most `limit` of those that changed; half of it for losses."""
    order = sorted(changes, key=lambda query: (-changes[query], query))
    lost = [query for query in reversed(order) if changes[query] < 0]
    won = [query for query in order if changes[query] > 0]
    losses = lost[: max(limit // 2, limit - len(won))]
    return order, [*won[: limit - len(losses)], *reversed(losses)]


def comparison_of(
    before: str, after: str, metric: str, queries: Sequence[QueryComparison], limit: int = 100
) -> Comparison:
    """All queries, compared already: every change, and at most `limit` of those that changed most, as `compare`."""
    by_id = {query.id: query for query in queries}
    changes = {id: query.change for id, query in by_id.items()}
    order, shown = _most_changed(changes, limit)
    return Comparison(
        before=before,
        after=after,
        metric=metric,
        changes=tuple(changes[id] for id in order),
        queries=tuple(by_id[id] for id in shown),
    )


def worst_queries(
    texts: Mapping[str, str],
    qrels: Qrels,
    before: tuple[str, Run, Evaluation],
    after: tuple[str, Run, Evaluation],
    passage: Callable[[str], Passage | None],
    *,
    metric: str = "nDCG@10",
    kinds: Mapping[str, str] | None = None,
    limit: int = 20,
) -> tuple[QueryComparison, ...]:
    """The queries that the second system serves worst, worst first; only those below half of the best value."""
    values = after[2].per_query[metric]
    order = sorted((query for query in values if values[query] < 0.5), key=lambda query: (values[query], query))
    return tuple(
        one_query(query, texts, qrels, before, after, passage, metric=metric, kinds=kinds) for query in order[:limit]
    )


def one_query(
    query: str,
    texts: Mapping[str, str],
    qrels: Qrels,
    before: tuple[str, Run, Evaluation],
    after: tuple[str, Run, Evaluation],
    passage: Callable[[str], Passage | None],
    *,
    metric: str,
    kinds: Mapping[str, str] | None = None,
) -> QueryComparison:
    """One query with its expected passage and what each system put first."""
    relevant = {document: grade for document, grade in qrels[query].items() if grade > 0}
    orders = [ranked(run.get(query, {})) for _, run, _ in (before, after)]
    ranks = [next((i for i, d in enumerate(order, 1) if d in relevant), None) for order in orders]
    # The expected passage to show: the one a system found first, so that text and rank speak of the same thing.
    found = [order[rank - 1] for order, rank in zip(orders, ranks) if rank is not None]
    best = max(relevant, key=lambda document: relevant[document], default=None)
    expected = found[-1] if found else best
    sides = [
        QueryResult(rank=rank, first=passage(order[0]) if order else None, value=evaluation.per_query[metric][query])
        for (_, _, evaluation), order, rank in zip((before, after), orders, ranks)
    ]
    return QueryComparison(
        id=query,
        query=texts.get(query, query),
        kind=(kinds or {}).get(query, ""),
        before=sides[0],
        after=sides[1],
        expected=None if expected is None else passage(expected),
    )


def never_retrieved(
    run: Run, ids: Sequence[str], passage: Callable[[str], Passage | None], *, k: int = 10, limit: int = 20
) -> NeverRetrieved:
    """Which of the ids no query brings into its first k; the first `limit` with their texts."""
    seen = {document for scores in run.values() for document in ranked(scores)[:k]}
    missing = [id for id in ids if id not in seen]
    shown = (passage(id) for id in missing[:limit])
    return NeverRetrieved(
        count=len(missing),
        of=len(ids),
        k=k,
        queries=len(run),
        examples=tuple(each for each in shown if each is not None),
    )


def histogram(positives: npt.ArrayLike, negatives: npt.ArrayLike, *, edges: Sequence[float] | int = 40) -> Histogram:
    """Counts of both score lists over the same bins; values that are not finite are left out.

    edges: the bins' borders, or how many bins; give one histogram's edges to the next to compare them.
    """
    first = np.asarray(positives, dtype=np.float64).ravel()
    second = np.asarray(negatives, dtype=np.float64).ravel()
    first, second = first[np.isfinite(first)], second[np.isfinite(second)]
    both = np.concatenate([first, second])
    borders = _bins(both, edges) if isinstance(edges, int) else np.asarray(edges)
    return Histogram(
        edges=tuple(borders.tolist()),
        positives=tuple(np.histogram(np.clip(first, borders[0], borders[-1]), borders)[0].tolist()),
        negatives=tuple(np.histogram(np.clip(second, borders[0], borders[-1]), borders)[0].tolist()),
    )


def _bins(values: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.float64]:
    """Borders of equal bins from the least to the greatest value; around them where all are equal up to rounding."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1.0):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, count + 1)


def library_versions() -> dict[str, str]:
    """The versions of the packages that decide the numbers."""
    found = {}
    for name in ("ragadapt", "torch", "transformers", "sentence-transformers", "peft", "bm25s", "numpy", "faiss-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
