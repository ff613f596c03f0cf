"""Judged queries: what counts as an answer, at the level at which it was judged.

Labels may name documents, chunks, or quotes; all become relevant *units* here: a document number for document
labels, a corpus position for everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ragadapt.values import Evidence, Query


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """A query with its relevant units. unit_of: unit per position, None where positions are units."""

    query: Query
    relevant: Mapping[int, int]  # unit → grade > 0
    unit_of: NDArray[np.int64] | None = None
    unit_names: Sequence[str] | None = None  # document ids by unit
    ideal: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        gains = sorted(self.relevant.values(), reverse=True)[:10]
        object.__setattr__(self, "ideal", sum(gain / np.log2(rank + 2) for rank, gain in enumerate(gains)))

    @property
    def evidence(self) -> Evidence:
        return self.query.evidence

    @property
    def answers(self) -> set[int]:
        """Positions of all passages that answer it: of a document, all of its passages."""
        if self.unit_of is None:
            return set(self.relevant)
        return set(np.flatnonzero(np.isin(self.unit_of, list(self.relevant))).tolist())

    def units(self, positions: NDArray[np.int64]) -> list[int]:
        """Ranked units: the first (best) chunk of a document stands for it."""
        if self.unit_of is None:
            return [int(position) for position in positions]
        return list(dict.fromkeys(int(unit) for unit in self.unit_of[positions]))

    def answering(self, positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of each position, whether it answers; of a document that was judged, every passage does."""
        units = positions if self.unit_of is None else self.unit_of[positions]
        return np.isin(units, list(self.relevant))

    def ndcg(self, positions: NDArray[np.int64], k: int = 10) -> float:
        """nDCG@k of a ranked list of corpus positions; quick enough to learn from (tested against ir-measures)."""
        if not self.relevant:
            return 0.0
        gain = 0.0
        for rank, unit in enumerate(self.units(positions[: k * 8 if self.unit_of is not None else k])[:k]):
            grade = self.relevant.get(unit)
            if grade:
                gain += grade / np.log2(rank + 2)
        return float(gain / self.ideal)

    def rank_of_first(self, positions: NDArray[np.int64]) -> int | None:
        """1-based rank of the first relevant unit; None if it is not in the list."""
        for rank, unit in enumerate(self.units(positions), start=1):
            if unit in self.relevant:
                return rank
        return None


def judge_by_chunk(queries: Iterable[Query], positions: Mapping[str, int]) -> list[JudgedQuery]:
    """Queries whose positives are chunk ids; queries with no known positive are left out."""
    judged = []
    for query in queries:
        relevant = {positions[id]: 1 for id in query.positives if id in positions}
        if relevant:
            judged.append(JudgedQuery(query, relevant))
    return judged


def judge_by_document(
    queries: Iterable[Query],
    grades: Mapping[str, Mapping[str, int]],
    document_of: Sequence[str],
) -> list[JudgedQuery]:
    """Queries judged by document. grades: query id → document id → grade; document_of: document id per position."""
    numbers: dict[str, int] = {}
    unit_of = np.array([numbers.setdefault(id, len(numbers)) for id in document_of], dtype=np.int64)
    names = list(numbers)
    judged = []
    for query in queries:
        relevant = {numbers[id]: grade for id, grade in grades.get(query.id, {}).items() if grade > 0 and id in numbers}
        if relevant:
            judged.append(JudgedQuery(query, relevant, unit_of, names))
    return judged
