"""Hard negatives: passages that the untuned hybrid ranks high for a query and that do not answer it.

A passage is never a negative if it is known to be relevant, if its normalised text equals that of a relevant one
(exclusion by id alone lets repeated text through), if it is a near-duplicate of one, or if it scores above `margin`
times the best positive: that close to the positive it is more likely an answer that nobody marked (TopK-PercPos,
arXiv 2407.15831).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ragadapt.config import MiningConfig
from ragadapt.fusion import Candidates, Fusion
from ragadapt.profiling import work
from ragadapt.values import Query


@dataclass(frozen=True, slots=True)
class Mined:
    """Per query, aligned: positives, negatives and distillation candidates (corpus positions), and teacher scores.

    positives[i]: the query's, best first. candidates[i]: passages that are not known to be relevant, best first.
    teacher[i]: the fused scores of positives[i] followed by candidates[i]. suspects counts passages that the margin
    kept out.
    """

    positives: tuple[tuple[int, ...], ...]
    negatives: tuple[tuple[int, ...], ...]
    candidates: tuple[tuple[int, ...], ...]
    teacher: tuple[tuple[float, ...], ...]
    suspects: int


@work("mining")
def mine_negatives(
    queries: Sequence[Query],
    candidates: Sequence[Candidates],
    *,
    positions: Mapping[str, int],
    text_keys: Sequence[str],
    groups: Sequence[int],
    fusion: Fusion,
    config: MiningConfig,
    relevant: Sequence[Collection[int]] | None = None,
) -> Mined:
    """Mine for every query from its candidate list.

    positions: chunk id → corpus position. text_keys: normalised text per position. groups: near-duplicate group per
    position. relevant: per query further positions that are no negatives, such as the other chunks of a document
    that a label names. Deterministic; a query without any negative left gets an empty tuple.
    """
    positives, negatives, lists, teacher, suspects = [], [], [], [], 0
    for number, (query, found) in enumerate(zip(queries, candidates, strict=True)):
        own = [positions[id] for id in query.positives if id in positions]
        known = {*own, *(relevant[number] if relevant is not None else ())}
        known_texts = {text_keys[position] for position in known}
        known_groups = {groups[position] for position in known}
        ranked, scores = found.ranked(fusion, config.depth + len(known))
        score_of = dict(zip(ranked.tolist(), scores.tolist(), strict=True))
        own.sort(key=lambda position: -score_of.get(position, -np.inf))
        ceiling = config.margin * score_of[own[0]] if own[0] in score_of else np.inf
        kept: list[int] = []
        others: list[int] = []
        for rank, position in enumerate(ranked.tolist()):
            if text_keys[position] in known_texts or groups[position] in known_groups:
                continue
            others.append(position)
            if rank < config.skip_top:
                continue
            if score_of[position] > ceiling:
                suspects += 1
            elif len(kept) < config.negatives:
                kept.append(position)
        others = others[: config.candidates - 1]
        positives.append(tuple(own))
        negatives.append(tuple(kept))
        lists.append(tuple(others))
        floor = min(score_of.values(), default=0.0)
        teacher.append(tuple(score_of.get(position, floor) for position in (*own, *others)))
    return Mined(tuple(positives), tuple(negatives), tuple(lists), tuple(teacher), suspects)
