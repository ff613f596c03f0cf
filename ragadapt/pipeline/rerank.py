"""What a re-ranker is worth on a corpus: its share of the score, learnt and judged on questions with known answers.

Every question is searched by a model and under a weight that did not see it. Where that is not better beyond doubt than
the first stage alone, the second one does not ship.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragadapt.config import GateConfig, RerankConfig
from ragadapt.evaluation import gate
from ragadapt.evaluation.judging import JudgedQuery
from ragadapt.evaluation.significance import Interval, paired_bootstrap
from ragadapt.pipeline.fusion import DEPTH, tolerance_of
from ragadapt.queries.split import deal_folds
from ragadapt.search.fusion import Candidates, Fusion, FusionCurve, ReadCandidates, learn_rerank_weight
from ragadapt.values import Chunk, Evidence, Progress, Query, no_progress

if TYPE_CHECKING:
    from ragadapt.rerank import Reranker

log = logging.getLogger(__name__)

MOST_READ = 300  # questions; each costs as many readings as the re-ranker is deep


@dataclass(frozen=True, eq=False)
class LearntReranking:
    """A corpus's second stage and where its weight comes from. weight 0: it does not ship.

    interval: nDCG@10 with it less that without, each question under a weight learnt without it; None where nothing
    could judge. curve: quality over the weight, on all of them.
    """

    model: str
    fingerprint: str
    weight: float
    depth: int
    reason: str
    evidence: Evidence | None = None
    queries: int = 0
    interval: Interval | None = None
    curve: FusionCurve | None = None

    @property
    def ships(self) -> bool:
        return self.weight > 0

    def section(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "weight": self.weight,
            "depth": self.depth,
            "reason": self.reason,
        }


def rerank_judges(plan: gate.Plan, queries: Sequence[Query]) -> tuple[Evidence | None, list[Query]]:
    """The questions that judge a second stage: those that judge the first, for what it learnt from must not; else the
    best-ranked ones of which there are enough, but never text that was cut from the passages."""
    if plan.judge:
        rank, found = plan.evidence, list(plan.judge)
    else:
        rank, found = None, []
        for candidate, least in gate.MINIMUM.items():
            of_rank = [query for query in queries if query.evidence is candidate]
            if len(of_rank) >= least:
                rank, found = candidate, of_rank
                break
    return rank, found[:: -(-len(found) // MOST_READ)] if found else []


def read_candidates(
    candidates: Sequence[Candidates],
    fusions: Sequence[Fusion],
    judged: Sequence[JudgedQuery],
    passages: Sequence[str],
    reranker: Reranker,
    depth: int,
    progress: Progress = no_progress,
) -> list[ReadCandidates]:
    """The first stage's ranking of every question, its best `depth` read. passages: texts by position."""
    ranked = [one.ranked(fusion, DEPTH) for one, fusion in zip(candidates, fusions, strict=True)]
    lists = [
        (item.query.text, [passages[at] for at in positions[:depth].tolist()])
        for item, (positions, _) in zip(judged, ranked, strict=True)
    ]
    read = reranker.logits_of(lists, progress=progress)
    return [ReadCandidates(*first, own) for first, own in zip(ranked, read, strict=True)]


def save_read(file: Path, read: Sequence[ReadCandidates]) -> None:
    """As flat arrays with the ends of the lists that they hold."""
    arrays: dict[str, Any] = {}
    for name in ("positions", "first", "read"):
        parts = [getattr(one, name) for one in read]
        arrays[name] = np.concatenate(parts) if parts else np.zeros(0)
        arrays[f"{name} ends"] = np.cumsum([len(part) for part in parts], dtype=np.int64)
    np.savez(file, **arrays)


def load_read(file: Path) -> list[ReadCandidates]:
    """What `save_read` wrote."""
    with np.load(file, allow_pickle=False) as arrays:
        lists = [np.split(arrays[name], arrays[f"{name} ends"][:-1]) for name in ("positions", "first", "read")]
        count = len(arrays["read ends"])
    return [ReadCandidates(*parts) for parts in zip(*lists, strict=True)] if count else []


def learn_reranking(
    reranker: Reranker,
    depth: int,
    read: Sequence[ReadCandidates],
    judged: Sequence[JudgedQuery],
    chunks: Sequence[Chunk],
    groups: Sequence[int] | None,
    *,
    evidence: Evidence | None,
    config: GateConfig,
    seed: int,
) -> LearntReranking:
    """The weight by the one-standard-error rule, and whether it ships.

    Each question is judged under a weight that was learnt from the others: near-equal ones are dealt to one fold. What
    people did not ask (found in the documents, written by a model) needs more standard errors, as in the fusion.
    """
    model, fingerprint = reranker.spec.model, reranker.fingerprint
    if evidence is None or not judged:
        reason = (
            "no questions with known answers that could judge it: without them its share is 0, and the first stage "
            "stays alone. Give labelled questions (--queries), or set rerank.weight by hand"
        )
        return LearntReranking(model, fingerprint, 0.0, depth, reason)
    judges = [item.ndcg for item in judged]
    tolerance = tolerance_of(evidence, len(judged))
    dealt = deal_folds([item.query for item in judged], chunks, groups, config.folds, seed)
    folds = np.array([dealt[item.query.id] for item in judged])
    weights = np.zeros(len(judged))
    for fold in sorted(set(folds.tolist())):
        others = np.flatnonzero(folds != fold).tolist()
        curve = learn_rerank_weight([read[at] for at in others], [judges[at] for at in others], tolerance=tolerance)
        weights[folds == fold] = curve.chosen
    curve = learn_rerank_weight(read, judges, tolerance=tolerance)
    after, before = (
        [judge(one.ranked(weight)) for one, judge, weight in zip(read, judges, own, strict=True)]
        for own in (weights.tolist(), [0.0] * len(judged))
    )
    interval = paired_bootstrap(
        after, before, samples=config.bootstrap_samples, confidence=config.confidence, seed=seed
    )
    figures = (
        f"nDCG@10 {np.mean(before):.3f} → {np.mean(after):.3f}, {interval.delta:+.3f} "
        f"[{interval.low:+.3f}, {interval.high:+.3f}], on {len(judged)} questions ({evidence.value}), each under a "
        "weight learnt without it"
    )
    ships = interval.better and curve.chosen > 0
    if ships:
        reason = f"{figures}: better beyond doubt"
    elif interval.delta < 0:
        reason = f"{figures}: worse, the first stage stays alone"
    else:
        reason = f"{figures}: no proof of a gain, the first stage stays alone"
    log.info("re-ranker: %s", reason)
    weight = curve.chosen if ships else 0.0
    return LearntReranking(model, fingerprint, weight, depth, reason, evidence, len(judged), interval, curve)


def given_reranking(reranker: Reranker, depth: int, config: RerankConfig) -> LearntReranking | None:
    """The second stage where its weight was set by hand; None where it is to be learnt."""
    if config.weight is None:
        return None
    return LearntReranking(
        reranker.spec.model, reranker.fingerprint, config.weight, depth, "its weight was set by the configuration"
    )
