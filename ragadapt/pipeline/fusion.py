"""Learning a corpus's fusion from the best evidence there is, and measuring search on judged queries."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ragadapt.config import FusionConfig
from ragadapt.evaluation.judging import JudgedQuery
from ragadapt.lexical.ranking import moments
from ragadapt.pipeline.arena import Arena
from ragadapt.search.fusion import (
    KNOWN,
    NEUTRAL_WEIGHT,
    Candidates,
    Fusion,
    FusionCurve,
    ScoreShapes,
    learn_weight,
    standardise,
)
from ragadapt.search.searcher import Searcher
from ragadapt.values import Evidence, Progress, Query, no_progress

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder

log = logging.getLogger(__name__)

System = Literal["dense", "lexical", "rrf", "hybrid"]

ENOUGH = {Evidence.LABELLED: 10, Evidence.HUMAN: 40, Evidence.PARAPHRASE: 40, Evidence.CROP: 40}
"""Fewest queries of a rank that may move the fusion away from its neutral setting."""

_FOUND = 2.0  # standard errors; what was found in the documents is asked otherwise than users ask
_LABELLED, _FEW_LABELLED, _FEW = 1.0, 1.5, 100  # of labels, and below how many; defaults.py, collections left out
_UNBIASED = (Evidence.LABELLED, Evidence.HUMAN)  # the rest repeat their passage's words: they favour the lexical side
DEPTH = 100  # of the rankings that are measured
MOST = 1000  # queries looked at; the curve is smooth long before

# Kinds of queries by which the shape of the scores is told, the likest to what users ask first.
_SHAPED = ("sentence", "docstring", "crop", "question", "title", "heading", "keywords")
_FEWEST_CUT, FEWEST_ASKED = 20, 30  # queries that tell a shape: cut from the documents, asked by people
MOST_SHAPED = 150  # of either; each costs one encoding
PASSAGES = 2000  # an even sample, which has the shape of the whole corpus
# r at which both sides count alike; chosen by leaving collections out (docs/decisions.md)
BALANCE_CUT, BALANCE_ASKED = 1.85, 1.7


@dataclass(frozen=True, slots=True)
class Neutral:
    """The weight before anything is learnt, and where it comes from, in words."""

    weight: float = NEUTRAL_WEIGHT
    reason: str = "the plain sum"


@dataclass(frozen=True, slots=True)
class LearntFusion:
    """A corpus's fusion and where it comes from. curve is None where it was given or nothing could be learnt."""

    fusion: Fusion
    evidence: Evidence | None
    queries: int
    curve: FusionCurve | None
    reason: str
    neutral: float = NEUTRAL_WEIGHT  # where it started


def ranking(arena: Arena, system: System, *, k: int = DEPTH) -> list[NDArray[np.int64]]:
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


def neutral_weight(
    searcher: Searcher, encoder: Encoder, cut: Sequence[Query], asked: Sequence[str], progress: Progress = no_progress
) -> Neutral:
    """The weight for passages and encoder by the shapes of their scores; no answer is looked at.

    cut: queries from the documents, of which one kind is taken. asked: questions that people asked, whose shape goes
    before where there are enough of them. searcher: over the encoder's vectors, nothing masked.
    """
    chosen = shaping(cut)
    own = [searcher.positions(query.positives[:1]).tolist() for query in chosen]
    shapes = _shapes(searcher, encoder, [query.text for query in chosen], own, progress)
    reason = f"the shape of the scores of {len(chosen)} queries from the documents ({chosen[0].kind})" if chosen else ""
    balance = BALANCE_CUT
    texts = list(dict.fromkeys(asked))
    if len(texts) >= FEWEST_ASKED:
        texts = texts[:: -(-len(texts) // MOST_SHAPED)]
        shapes = replace(_shapes(searcher, encoder, texts, None, progress), found=shapes.found)
        reason, balance = f"the shape of the scores of {len(texts)} questions, without their answers", BALANCE_ASKED
    if not shapes.queries:
        return Neutral()
    if shapes.found is not None and shapes.found < KNOWN:
        reason += "; the dense side finds few of the passages that they were cut from"
    return Neutral(shapes.weight(balance), reason)


def shaping(cut: Sequence[Query]) -> list[Query]:
    """Of queries from the documents those that tell the shape of the scores: of one kind, evenly thinned."""
    of_kind: dict[str, list[Query]] = {}
    for query in cut:
        of_kind.setdefault(query.kind, []).append(query)
    chosen = next((of_kind[kind] for kind in _SHAPED if len(of_kind.get(kind, ())) >= _FEWEST_CUT), [])
    return chosen[:: -(-len(chosen) // MOST_SHAPED)] if chosen else []


def _shapes(
    searcher: Searcher,
    encoder: Encoder,
    texts: Sequence[str],
    own: Sequence[Sequence[int]] | None,
    progress: Progress,
) -> ScoreShapes:
    if not texts:
        return ScoreShapes(0.0, 0.0, 0)
    vectors = encoder.encode_queries(texts, progress=progress)
    sample = shape_sample(len(searcher.lexical), own or ())
    passages = searcher.index.vectors(searcher.ids_of(sample))
    means, deviations = searcher.background.of_scores(vectors)
    dense = standardise(vectors @ passages.T, means[:, None], deviations[:, None])
    lexical = np.empty_like(dense)
    for start, rows in searcher.lexical.score_blocks(texts):
        stop = start + len(rows)
        means, deviations = moments(rows)
        lexical[start:stop] = standardise(rows[:, sample], means[:, None], deviations[:, None])
        progress("search", stop, len(texts))
    columns = None if own is None else [np.searchsorted(sample, positions).tolist() for positions in own]
    return ScoreShapes.of(dense, lexical, columns)


def shape_sample(count: int, own: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Positions, ascending, of the passages by which shapes are told: evenly of all, and those in `own`."""
    evenly = np.arange(0, count, max(1, -(-count // PASSAGES)))
    return np.unique(np.concatenate([evenly, np.array([at for one in own for at in one], dtype=np.int64)]))


def tolerance_of(evidence: Evidence, queries: int) -> float:
    """Standard errors by which so many queries of this rank must tell the best weight from another one."""
    if evidence is not Evidence.LABELLED:
        return _FOUND
    return _FEW_LABELLED if queries < _FEW else _LABELLED


def learn_fusion(
    arena: Arena | None,
    config: FusionConfig,
    *,
    evidence: Evidence | None,
    neutral: Neutral = Neutral(),
    before: LearntFusion | None = None,
) -> LearntFusion:
    """The fusion for this arena's searcher; the arena's queries are all of one rank of evidence.

    Labelled queries and what people wrote may move the weight either way. Evidence that repeats its passage's words
    favours the lexical side, so it may only raise the dense side's share: what wins against the bias is real.
    before: what evidence of a lower rank says of the same neutral weight; the weight then starts there.
    """
    begin = neutral.weight if before is None else before.fusion.weight
    start = Fusion(weight=begin)
    if config.feedback is not None and not config.feedback:
        start = replace(start, feedback=0.0)
    if config.weight is not None:
        return LearntFusion(replace(start, weight=config.weight), None, 0, None, "set by the configuration")
    if arena is None or not arena.judged or evidence is None:
        return LearntFusion(start, None, 0, None, f"neutral, by {neutral.reason}", neutral.weight)
    judged = arena.judged
    at_least = None if evidence in _UNBIASED else begin
    curve = learn_weight(
        arena.candidates(start),
        [item.ndcg for item in judged],
        start=start,
        neutral=begin,
        at_least=at_least,
        tolerance=tolerance_of(evidence, len(judged)),
    )
    fusion = replace(start, weight=curve.chosen)
    if config.feedback is None and evidence in _UNBIASED:
        fusion = _without_harmful_feedback(arena, fusion)
    reason = f"learnt from {len(judged)} queries ({evidence.value})"
    if at_least is not None:
        reason += "; they favour the lexical side, so they may only raise the dense share"
    reason += f"; the start was {begin:g}, "
    reason += f"by {neutral.reason}" if before is None else before.reason
    log.info("fusion weight %.2f (%s)", fusion.weight, reason)
    return LearntFusion(fusion, evidence, len(judged), curve, reason, neutral.weight)


def learn_by_folds(
    found: Sequence[Candidates],
    judged: Sequence[JudgedQuery],
    folds: NDArray[np.int64],
    start: LearntFusion,
    config: FusionConfig,
    *,
    evidence: Evidence,
) -> tuple[LearntFusion, tuple[Fusion, ...]]:
    """The fusion learnt from all queries, and for each query the one that was learnt without its fold.

    found: their candidates, out of fold. start: what the base learnt; the weight moves away from it only for a gain
    that shows. Queries that were written from the passages can't say what a trained model's weight should be, so with
    those `start` stays.
    """
    if config.weight is not None or evidence is not Evidence.LABELLED:
        return start, (start.fusion,) * len(judged)

    def learnt(rows: NDArray[np.int64]) -> FusionCurve:
        return learn_weight(
            [found[at] for at in rows],
            [judged[at].ndcg for at in rows],
            start=start.fusion,
            neutral=start.fusion.weight,
            tolerance=tolerance_of(evidence, len(judged)),
        )

    without = {
        fold: replace(start.fusion, weight=learnt(np.flatnonzero(folds != fold)).chosen) for fold in set(folds.tolist())
    }
    curve = learnt(np.arange(len(judged)))
    fusion = LearntFusion(
        replace(start.fusion, weight=curve.chosen),
        evidence,
        len(judged),
        curve,
        f"learnt from {len(judged)} queries ({evidence.value}), each searched by a model that had not seen it",
        start.neutral,
    )
    return fusion, tuple(without[fold] for fold in folds.tolist())


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
