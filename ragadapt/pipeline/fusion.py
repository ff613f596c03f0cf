"""Learning a corpus's fusion from the best evidence there is, and measuring search on judged queries."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ragadapt.config import FusionConfig
from ragadapt.evaluation.judging import JudgedQuery
from ragadapt.pipeline.arena import Arena
from ragadapt.search.fusion import NEUTRAL_WEIGHT, Candidates, Fusion, FusionCurve, learn_weight
from ragadapt.values import Evidence

log = logging.getLogger(__name__)

System = Literal["dense", "lexical", "rrf", "hybrid"]

ENOUGH = {Evidence.LABELLED: 10, Evidence.HUMAN: 40, Evidence.PARAPHRASE: 40, Evidence.CROP: 40}
"""Fewest queries of a rank that may move the fusion away from its neutral setting."""

_TOLERANCE = 2.0  # standard errors; what was found in the documents is asked otherwise than users ask
_UNBIASED = (Evidence.LABELLED, Evidence.HUMAN)  # the rest repeat their passage's words: they favour the lexical side
MOST = 1000  # queries looked at; the curve is smooth long before


@dataclass(frozen=True, slots=True)
class LearntFusion:
    """A corpus's fusion and where it comes from. curve is None where it was given or nothing could be learnt."""

    fusion: Fusion
    evidence: Evidence | None
    queries: int
    curve: FusionCurve | None
    reason: str


def ranking(arena: Arena, system: System, *, k: int = 100) -> list[NDArray[np.int64]]:
    """Ranked positions per query."""
    searcher, texts = arena.searcher, [item.query.text for item in arena.judged]
    if system in ("dense", "lexical"):
        found = searcher.rank(
            texts, arena.vectors, k, "dense" if system == "dense" else "lexical", allowed=arena.allowed
        )
    else:
        fusion = Fusion(method="rrf") if system == "rrf" else searcher.fusion
        found = searcher.rank(
            texts, arena.vectors, k, "hybrid", fusion=fusion, allowed=arena.allowed, progress=arena.progress
        )
    return [searcher.positions(ranked.ids) for ranked in found]


def quality(arena: Arena, system: System) -> NDArray[np.float64]:
    """nDCG@10 per query (Q,)."""
    rankings = ranking(arena, system)
    return np.array([item.ndcg(positions) for item, positions in zip(arena.judged, rankings, strict=True)])


def learn_fusion(
    arena: Arena | None, config: FusionConfig, *, evidence: Evidence | None, start: Fusion = Fusion()
) -> LearntFusion:
    """The fusion for this arena's searcher; the arena's queries are all of one rank of evidence. start: where it stays
    unless they show a gain.

    Labelled queries and what people wrote may move the weight either way. Evidence that repeats its passage's words
    favours the lexical side, so it may only raise the dense side's share: what wins against the bias is real.
    """
    if config.feedback is not None and not config.feedback:
        start = replace(start, feedback=0.0)
    if config.weight is not None:
        return LearntFusion(replace(start, weight=config.weight), None, 0, None, "set by the configuration")
    if arena is None or not arena.judged or evidence is None:
        return LearntFusion(start, None, 0, None, "neutral: no evidence to learn from")
    judged = arena.judged
    at_least = None if evidence in _UNBIASED else NEUTRAL_WEIGHT
    found = arena.candidates(start)
    tolerance = 1.0 if evidence is Evidence.LABELLED else _TOLERANCE
    curve = learn_weight(found, [item.ndcg for item in judged], start=start, at_least=at_least, tolerance=tolerance)
    fusion = replace(start, weight=curve.chosen)
    if config.feedback is None and evidence in _UNBIASED:
        fusion = _without_harmful_feedback(arena, fusion)
    reason = f"learnt from {len(judged)} queries ({evidence.value})"
    if at_least is not None:
        reason += "; they favour the lexical side, so they may only raise the dense share"
    log.info("fusion weight %.2f (%s)", fusion.weight, reason)
    return LearntFusion(fusion, evidence, len(judged), curve, reason)


def learn_by_folds(
    found: Sequence[Candidates],
    judged: Sequence[JudgedQuery],
    folds: NDArray[np.int64],
    start: LearntFusion,
    config: FusionConfig,
    *,
    evidence: Evidence,
) -> tuple[LearntFusion, NDArray[np.float64]]:
    """The fusion learnt from all queries, and nDCG@10 (Q,) of each under a weight learnt without its fold.

    found: their candidates, out of fold. start: what the base learnt; the weight moves away from it only for a gain
    that shows. Queries that were written from the passages can't say what a trained model's weight should be, so with
    those `start` stays.
    """

    def under(fusion: Fusion, queries: Iterable[int]) -> dict[int, float]:
        return {at: judged[at].ndcg(found[at].ranked(fusion, 100)[0]) for at in queries}

    everyone = range(len(judged))
    if config.weight is not None or evidence is not Evidence.LABELLED:
        values = under(start.fusion, everyone)
        return start, np.array([values[at] for at in everyone])
    judges = [item.ndcg for item in judged]

    def learnt(queries: Sequence[int]) -> FusionCurve:
        return learn_weight([found[at] for at in queries], [judges[at] for at in queries], start=start.fusion)

    values = {}
    for fold in sorted(set(folds.tolist())):
        curve = learnt(np.flatnonzero(folds != fold).tolist())
        values |= under(replace(start.fusion, weight=curve.chosen), np.flatnonzero(folds == fold).tolist())
    curve = learnt(everyone)
    reason = f"learnt from {len(judged)} queries ({evidence.value}), each searched by a model that had not seen it"
    fusion = LearntFusion(replace(start.fusion, weight=curve.chosen), evidence, len(judged), curve, reason)
    return fusion, np.array([values[at] for at in everyone])


def _without_harmful_feedback(arena: Arena, fusion: Fusion) -> Fusion:
    """Switch the vector feedback off where it costs more than one standard error."""
    off = replace(fusion, feedback=0.0)
    values = []
    for setting in (fusion, off):
        found = arena.candidates(setting)
        values.append([item.ndcg(c.ranked(setting, 100)[0]) for item, c in zip(arena.judged, found, strict=True)])
    loss = np.array(values[1]) - np.array(values[0])
    error = loss.std(ddof=1) / np.sqrt(len(loss)) if len(loss) > 1 else np.inf
    return off if loss.mean() > error else fusion
