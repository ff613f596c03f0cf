"""How sure a corpus's search is: the fixed map of signals to probabilities, or one adjusted by its own questions.

What adjusts it took no part in the training: held-out questions, or those of every fold searched by a model that did
not see them. It ships where it foretells questions that it was not fitted to better than the fixed map does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ragadapt.config import GateConfig
from ragadapt.evaluation.judging import JudgedQuery
from ragadapt.pipeline.fusion import tolerance_of
from ragadapt.pipeline.rerank import LearntReranking
from ragadapt.queries.split import deal_folds
from ragadapt.search.confidence import (
    FIXED,
    Confidence,
    Doubles,
    Reread,
    Signals,
    Weights,
    logit_of,
    logits,
    probability,
)
from ragadapt.search.fusion import Candidates, Fusion
from ragadapt.values import Chunk, Evidence

log = logging.getLogger(__name__)

HITS = 5  # of a question that are looked at: what is mostly given to a reader
_BINS = 10  # of the calibration error


@dataclass(frozen=True, eq=False)
class JudgedHits:
    """The first hits of some questions: (Q,) the probability that a question is answered here, (Q, k) the logits of
    the hits if it is, and whether each answers; NaN where there are fewer."""

    here: Doubles
    hits: Doubles
    answers: Doubles

    @classmethod
    def of(
        cls,
        found: Sequence[Candidates],
        fusions: Sequence[Fusion],
        judged: Sequence[JudgedQuery],
        weights: Weights = FIXED.hybrid,
    ) -> JudgedHits:
        """Every question's candidates ranked by its own mix. A passage of a document that was judged answers."""
        here = np.zeros(len(judged))
        hits, answers = (np.full((len(judged), HITS), np.nan) for _ in range(2))
        for row, (candidates, fusion, item) in enumerate(zip(found, fusions, judged, strict=True)):
            scores = candidates.fused(fusion)
            order = np.argsort(-scores, kind="stable")
            if not len(order):
                continue
            logit, own = logits(weights, Signals.of_hybrid(candidates, order, scores))
            positions = candidates.positions[order[:HITS]]
            here[row], hits[row, : len(positions)] = probability(logit), own[:HITS]
            answers[row, : len(positions)] = item.answering(positions)
        return cls(here, hits, answers)

    def part(self, rows: np.ndarray) -> JudgedHits:
        """Of some questions."""
        return JudgedHits(self.here[rows], self.hits[rows], self.answers[rows])

    def sure(self, slope: float = 1.0, shift: float | Doubles = 0.0) -> Doubles:
        """(Q, k) the probability of each hit. shift: also one for each question, (Q, 1)."""
        made: Doubles = self.here[:, None] * probability(slope * self.hits + shift)
        return made


def learn_confidence(
    found: Sequence[Candidates],
    fusions: Sequence[Fusion],
    judged: Sequence[JudgedQuery],
    chunks: Sequence[Chunk],
    groups: Sequence[int] | None,
    *,
    evidence: Evidence | None,
    config: GateConfig,
    seed: int,
) -> Confidence:
    """The fixed map, or with these questions' slope and shift where that is better beyond doubt on questions that it
    was not fitted to; what people did not ask needs more standard errors, as in the fusion."""
    if evidence is None or not judged or any(one.nearness is None or one.nearness != one.nearness for one in found):
        return replace(FIXED, reason="the fixed map: no questions with known answers that could adjust it")
    hits = JudgedHits.of(found, fusions, judged)
    folds = _folds(judged, chunks, groups, config, seed)
    after = hits.sure()
    for fold in sorted(set(folds.tolist())):
        mine = folds == fold
        slope, shift, _ = fit_platt(hits.part(~mine))
        after[mine] = hits.part(mine).sure(slope, shift)
    better, measured = _compared(hits.sure(), after, hits.answers, evidence)
    if not better:
        reason = f"the fixed map: questions of this corpus do not better it beyond doubt ({measured})"
        return replace(FIXED, reason=reason)
    slope, shift, _ = fit_platt(hits)
    log.info("confidence: slope %.2f, shift %+.2f (%s)", slope, shift, measured)
    reason = f"the fixed map, adjusted by slope {slope:.2f} and shift {shift:+.2f}: {measured}"
    return replace(FIXED, slope=slope, shift=shift, evidence=evidence.value, queries=len(judged), reason=reason)


def learn_reread(
    sure: Confidence,
    second: LearntReranking,
    found: Sequence[Candidates],
    fusions: Sequence[Fusion],
    judged: Sequence[JudgedQuery],
    chunks: Sequence[Chunk],
    groups: Sequence[int] | None,
    *,
    evidence: Evidence | None,
    config: GateConfig,
    seed: int,
) -> Confidence:
    """With it how sure hits are that the second stage has ordered, where the questions that judged it show that this
    is better beyond doubt than to be as sure of every place as without it."""
    rows = [at for at, item in enumerate(judged) if item.query.id in second.read and found[at].nearness is not None]
    if evidence is None or len(rows) < 2:
        return sure
    judged, read = [judged[at] for at in rows], [second.read[judged[at].query.id] for at in rows]
    first = JudgedHits.of([found[at] for at in rows], [fusions[at] for at in rows], judged, sure.hybrid)
    answers = np.full_like(first.answers, np.nan)
    for row, (item, one) in enumerate(zip(judged, read, strict=True)):
        positions = one.ranked(second.weight)[:HITS]
        answers[row, : len(positions)] = item.answering(positions)
    answers[np.isnan(first.hits)] = np.nan
    before = first.sure(sure.slope, sure.shift)
    hits = JudgedHits(np.ones(len(rows)), logit_of(before), answers)
    best = np.array([float(one.read.max()) if len(one.read) else np.nan for one in read])
    mean, deviation = float(np.nanmean(best)), float(np.nanstd(best)) or 1.0
    said = np.nan_to_num((best - mean) / deviation)
    folds = _folds(judged, chunks, groups, config, seed)
    after = before.copy()
    for fold in sorted(set(folds.tolist())):
        mine = folds == fold
        slope, shift, weight = fit_platt(hits.part(~mine), said[~mine])
        after[mine] = hits.part(mine).sure(slope, shift + weight * said[mine][:, None])
    better, measured = _compared(before, after, answers, evidence)
    reason = (
        f"{sure.reason}. With the re-ranker: {'' if better else 'as sure of every place as without it, for '}{measured}"
    )
    slope, shift, weight = fit_platt(hits, said)
    return replace(sure, reason=reason, reread=Reread(slope, shift, weight, mean, deviation) if better else None)


def _folds(
    judged: Sequence[JudgedQuery],
    chunks: Sequence[Chunk],
    groups: Sequence[int] | None,
    config: GateConfig,
    seed: int,
) -> NDArray[np.int64]:
    dealt = deal_folds([item.query for item in judged], chunks, groups, config.folds, seed)
    return np.array([dealt[item.query.id] for item in judged], dtype=np.int64)


def _compared(before: Doubles, after: Doubles, answers: Doubles, evidence: Evidence) -> tuple[bool, str]:
    """Whether the second is better beyond doubt, and in words how much."""
    losses = [log_loss(sure, answers) for sure in (before, after)]
    errors = [calibration_error(sure, answers) for sure in (before, after)]
    gain = losses[0] - losses[1]
    error = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else np.inf
    words = (
        f"log loss of the first {HITS} hits {losses[0].mean():.3f} → {losses[1].mean():.3f}, calibration error "
        f"{errors[0]:.3f} → {errors[1]:.3f}, on {len(gain)} questions ({evidence.value}), each by a map fitted without "
        "it"
    )
    return bool(gain.mean() > tolerance_of(evidence, len(gain)) * error), words


def fit_platt(hits: JudgedHits, beside: Doubles | None = None) -> tuple[float, float, float]:
    """The slope (≥ 0), shift, and weight of something known of each question beside it (Q,), under which the answers
    are likeliest, with a normal prior of deviation 1 around those that change nothing: a few questions that are all
    answered do not make a search certain."""
    from scipy.optimize import minimize

    there = ~np.isnan(hits.hits) & ~np.isnan(hits.answers)
    here = np.broadcast_to(hits.here[:, None], hits.hits.shape)[there]
    x, y = hits.hits[there], hits.answers[there]
    known = np.zeros(len(hits.here)) if beside is None else beside
    z = np.broadcast_to(known[:, None], hits.hits.shape)[there]

    def loss(at: Doubles) -> tuple[float, Doubles]:
        sure = probability(at[0] * x + at[1] + at[2] * z)
        none = np.maximum(1 - here * sure, 1e-12)
        value = -np.where(y > 0, np.log(np.maximum(here * sure, 1e-12)), np.log(none)).sum()
        slopes = np.where(y > 0, sure - 1, here * sure * (1 - sure) / none)
        off = at - start
        return float(value + off @ off / 2), np.array([slopes @ x, slopes.sum(), slopes @ z]) + off

    start, free = np.array([1.0, 0.0, 0.0]), (None, None)
    found = minimize(loss, start, jac=True, bounds=[(0.0, None), free, free], method="L-BFGS-B")
    slope, shift, weight = found.x.tolist()
    return slope, shift, weight


def log_loss(sure: Doubles, answers: Doubles) -> Doubles:
    """(Q,) mean −log of the probability of what was so, over a question's hits (Q, k); 0 where nothing was found."""
    there = ~np.isnan(answers)
    likely = np.clip(np.where(answers > 0, sure, 1 - sure), 1e-9, 1)
    losses: Doubles = -np.where(there, np.log(likely), 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    return losses


def calibration_error(sure: Doubles, answers: Doubles, bins: int = _BINS) -> float:
    """Expected calibration error (Naeini, Cooper and Hauskrecht, AAAI 2015), with bins that hold equally many hits."""
    there = ~np.isnan(answers)
    sure, y = sure[there], answers[there]
    parts = [part for part in np.array_split(np.argsort(sure, kind="stable"), bins) if len(part)]
    return float(sum(abs(sure[part].mean() - y[part].mean()) * len(part) for part in parts) / max(len(y), 1))
