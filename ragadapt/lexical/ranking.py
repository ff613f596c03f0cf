"""Score rows → rankings, the same way everywhere: best first, ties in the order of the ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ranking = tuple[list[str], NDArray[np.float32]]
"""Ids and their scores, best first, equally long."""


def best_first(scores: NDArray[np.float32], k: int, ids: Sequence[str]) -> Ranking:
    """The k largest of scores (N,) with their ids, fewer where N < k. Ties go by id, also at the cut."""
    k = min(k, len(scores))
    if k <= 0:
        return [], np.empty(0, np.float32)
    if k < len(scores):
        kth = scores[np.argpartition(scores, len(scores) - k)[len(scores) - k]]
        candidates = np.flatnonzero(scores >= kth)  # more than k where scores tie at the cut
    else:
        candidates = np.arange(len(scores))
    order = sorted(zip((-scores[candidates]).tolist(), [ids[i] for i in candidates.tolist()]))[:k]
    return [id_ for _, id_ in order], np.array([-negated for negated, _ in order], np.float32)
