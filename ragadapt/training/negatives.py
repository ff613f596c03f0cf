"""Hard negatives: passages that the untuned hybrid ranks high for a query and that do not answer it.

A passage is never a negative if it is known to be relevant, if its normalised text equals that of a relevant one
(exclusion by id alone lets repeated text through), if it is a near-duplicate of one, or if it scores above `margin`
times the best positive: that close to the positive it is more likely an answer that nobody marked (TopK-PercPos,
arXiv 2407.15831). That holds wherever the positive ranks: one that ranks below `depth` leaves no negative above it.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ragadapt.config import MiningConfig
from ragadapt.profiling import work
from ragadapt.search.fusion import Candidates, Fusion
from ragadapt.values import Progress, Query, no_progress

_REPORTED = 256  # queries between two reports of progress


@dataclass(frozen=True, slots=True)
class Mined:
    """Per query, aligned: positives, negatives and distillation candidates (corpus positions), and teacher scores.

    positives[i]: the query's, best first. candidates[i]: passages that are not known to be relevant, best first.
    teacher[i]: the fused scores of positives[i] followed by candidates[i]; a positive that is not in the query's list
    gets the lowest score of it. suspects counts passages that the margin kept out.
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
    text_keys: Sequence[Hashable],
    groups: Sequence[int],
    fusion: Fusion,
    config: MiningConfig,
    relevant: Sequence[Collection[int]] | None = None,
    progress: Progress = no_progress,
) -> Mined:
    """Mine for every query from its candidate list.

    positions: chunk id → corpus position. text_keys: per position, the same for equal texts. groups: near-duplicate
    group per position. relevant: per query further positions that are no negatives, such as the other chunks of a
    document that a label names. A query's list should hold its positives (`include` of Searcher.candidates): without
    the score of any, the margin cannot be drawn and the query gets no negatives. Deterministic; a query without any
    negative left gets an empty tuple.
    """
    positives, negatives, lists, teacher, suspects = [], [], [], [], 0
    for number, (query, found) in enumerate(zip(queries, candidates, strict=True)):
        own = [positions[id] for id in query.positives if id in positions]
        known = {*own, *(relevant[number] if relevant is not None else ())}
        known_texts = {text_keys[position] for position in known}
        known_groups = {groups[position] for position in known}
        ranked, scores = found.ranked(fusion)
        score_of = dict(zip(ranked.tolist(), scores.tolist(), strict=True))
        own.sort(key=lambda position: -score_of.get(position, -np.inf))
        best = score_of.get(own[0], -np.inf)
        ceiling = best * (config.margin if best > 0 else 2 - config.margin)  # below the positive's, whatever its sign
        kept: list[int] = []
        others: list[int] = []
        for rank, position in enumerate(ranked[: config.depth + len(known)].tolist()):
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
        if (number + 1) % _REPORTED == 0 or number + 1 == len(queries):
            progress("mine negatives", number + 1, len(queries))
    return Mined(tuple(positives), tuple(negatives), tuple(lists), tuple(teacher), suspects)
