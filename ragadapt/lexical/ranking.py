"""Score rows → rankings, the same way everywhere: best first, ties in the order of the ids."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ranking = tuple[list[str], NDArray[np.float32]]
"""Ids and their scores, best first, equally long."""


class Picked(Sequence[str]):
    """ids[positions[i]], without a copy of all ids."""

    def __init__(self, ids: Sequence[str], positions: NDArray[np.int64]) -> None:
        self._ids, self._positions = ids, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, i: Any) -> Any:
        return self._ids[self._positions[i]]


_SAMPLED = 16  # every so many scores are looked at first
_WORTH_SAMPLING = 8192  # scores; fewer are partitioned as they are


def best_first(scores: NDArray[np.float32], k: int, ids: Sequence[str]) -> Ranking:
    """The k largest of scores (N,) with their ids, fewer where N < k. Ties go by id, also at the cut."""
    k = min(k, len(scores))
    if k <= 0:
        return [], np.empty(0, np.float32)
    if k < len(scores):
        candidates = _at_least_kth(scores, k)[0]  # more than k where scores tie at the cut
    else:
        candidates = np.arange(len(scores))
    order = sorted(zip((-scores[candidates]).tolist(), [ids[i] for i in candidates.tolist()]))[:k]
    return [id_ for _, id_ in order], np.array([-negated for negated, _ in order], np.float32)


def best_positions(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Positions, ascending, of the k >= 1 largest of scores (N,), all where N ≤ k; at the cut the first equals."""
    if k >= len(scores):
        return np.arange(len(scores))
    found, kth = _at_least_kth(scores, k)
    if len(found) > k:
        equal = np.flatnonzero(scores[found] == kth)
        found = np.delete(found, equal[len(equal) - (len(found) - k) :])
    return found


def _at_least_kth(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], np.float32]:
    """(positions, ascending, of all scores (N,) that reach the k-th largest, that score); 0 < k < N.

    Where k is small against N, a sample says which scores can't be among the best, and only the rest is partitioned:
    several times faster, and exact, since a bound above fewer than k scores is thrown away.
    """
    rank = 2 * k // _SAMPLED + 8
    sample = scores[::_SAMPLED]
    if len(scores) >= _WORTH_SAMPLING and rank * 4 < len(sample):
        bound = np.partition(sample, len(sample) - rank)[len(sample) - rank]
        found = np.flatnonzero(scores >= bound)
        if k <= len(found) <= len(scores) // 4:
            some = scores[found]
            kth = np.partition(some, len(some) - k)[len(some) - k]
            return found[some >= kth], kth
    kth = np.partition(scores, len(scores) - k)[len(scores) - k]
    return np.flatnonzero(scores >= kth), kth


def moments(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean (B,) and standard deviation (B,) of every row of (B, N), zeros for N = 0.

    A row at a time, so that it stays in the cache; deviations are taken from the mean before they are squared.
    """
    means, deviations = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.float32)
    count = rows.shape[1]
    for number, row in enumerate(rows if count else ()):
        centre = row.sum() / np.float32(count)  # pairwise sums
        off = row - centre
        rest = float(off.sum()) / count  # what rounding left in the mean
        means[number] = float(centre) + rest
        squares = float(np.square(off, out=off).sum()) / count
        deviations[number] = max(squares - rest * rest, 0.0) ** 0.5
    return means, deviations


def bm25s() -> ModuleType:
    """The library bm25s without JAX, which it would start: for a ranking that is not used here, JAX takes three
    quarters of a GPU's memory."""
    if "bm25s" in sys.modules:
        return sys.modules["bm25s"]
    hidden = "jax.lax" if "jax" in sys.modules else "jax"
    before = sys.modules.get(hidden)
    sys.modules[hidden] = None  # type: ignore[assignment]  # an import of it fails, as where it is not installed
    try:
        return importlib.import_module("bm25s")
    finally:
        if before is None:
            del sys.modules[hidden]
        else:
            sys.modules[hidden] = before
