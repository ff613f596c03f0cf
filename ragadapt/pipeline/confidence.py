"""How sure a corpus's search is: the fixed map of signals to probabilities, or one adjusted by its own questions.

What adjusts it took no part in the training: held-out questions, or those of every fold searched by a model that did
not see them. It ships where it foretells questions that it was not fitted to better than the fixed map does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ragadapt.config import GateConfig
from ragadapt.evaluation.judging import JudgedQuery
from ragadapt.pipeline.fusion import tolerance_of
from ragadapt.queries.split import deal_folds
from ragadapt.search.confidence import FIXED, Confidence, Doubles, Signals, Weights, logits, probability
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
            units = positions if item.unit_of is None else item.unit_of[positions]
            here[row], hits[row, : len(units)] = probability(logit), own[:HITS]
            answers[row, : len(units)] = np.isin(units, list(item.relevant))
        return cls(here, hits, answers)

    def part(self, rows: np.ndarray) -> JudgedHits:
        """Of some questions."""
        return JudgedHits(self.here[rows], self.hits[rows], self.answers[rows])

    def sure(self, slope: float = 1.0, shift: float = 0.0) -> Doubles:
        """(Q, k) the probability of each hit."""
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
    dealt = deal_folds([item.query for item in judged], chunks, groups, config.folds, seed)
    folds = np.array([dealt[item.query.id] for item in judged])
    before, after = hits.sure(), hits.sure()
    for fold in sorted(set(folds.tolist())):
        mine = folds == fold
        after[mine] = hits.part(mine).sure(*fit_platt(hits.part(~mine)))
    gain = log_loss(before, hits.answers) - log_loss(after, hits.answers)
    error = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else np.inf
    measured = (
        f"log loss of the first {HITS} hits {log_loss(before, hits.answers).mean():.3f} → "
        f"{log_loss(after, hits.answers).mean():.3f}, calibration error {calibration_error(before, hits.answers):.3f} "
        f"→ {calibration_error(after, hits.answers):.3f}, on {len(judged)} questions ({evidence.value}), each by a map "
        "fitted without it"
    )
    if not gain.mean() > tolerance_of(evidence, len(judged)) * error:
        reason = f"the fixed map: questions of this corpus do not better it beyond doubt ({measured})"
        return replace(FIXED, reason=reason)
    slope, shift = fit_platt(hits)
    log.info("confidence: slope %.2f, shift %+.2f (%s)", slope, shift, measured)
    reason = f"the fixed map, adjusted by slope {slope:.2f} and shift {shift:+.2f}: {measured}"
    return replace(FIXED, slope=slope, shift=shift, evidence=evidence.value, queries=len(judged), reason=reason)


def fit_platt(hits: JudgedHits) -> tuple[float, float]:
    """The slope (≥ 0) and shift under which the answers are likeliest, with a normal prior of deviation 1 around those
    that change nothing: a few questions that are all answered do not make a search certain."""
    from scipy.optimize import minimize

    there = ~np.isnan(hits.hits)
    here = np.broadcast_to(hits.here[:, None], hits.hits.shape)[there]
    x, y = hits.hits[there], hits.answers[there]

    def loss(at: Doubles) -> tuple[float, Doubles]:
        sure = probability(at[0] * x + at[1])
        none = np.maximum(1 - here * sure, 1e-12)
        value = -np.where(y > 0, np.log(np.maximum(here * sure, 1e-12)), np.log(none)).sum()
        slopes = np.where(y > 0, sure - 1, here * sure * (1 - sure) / none)
        off = at - [1.0, 0.0]
        return float(value + off @ off / 2), np.array([slopes @ x, slopes.sum()]) + off

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, bounds=[(0.0, None), (None, None)], method="L-BFGS-B")
    return float(found.x[0]), float(found.x[1])


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
