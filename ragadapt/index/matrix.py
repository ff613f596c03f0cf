"""Exact search over a matrix in memory: one matrix product for a block of queries, then the best of each row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ragadapt.index.contract import Floats
from ragadapt.lexical.ranking import Picked, Ranking, best_first

BLOCK_BYTES = 64_000_000  # of one block of scores: bounds memory whatever the number of queries


def search_matrix(
    queries: Floats, matrix: Floats, ids: Sequence[str], k: int, allowed: NDArray[np.bool_] | None = None
) -> list[Ranking]:
    """Per query of (Q, d) the best k of the rows of (N, d), or of those that are allowed (N,); ties by id."""
    rows = None
    if allowed is not None and not allowed.all():
        rows = np.flatnonzero(allowed)
        ids = Picked(ids, rows)
        if len(rows) * 4 < len(matrix):  # few rows are cheaper to copy than to score with all the others
            matrix, rows = matrix[rows], None
    size = max(1, BLOCK_BYTES // (4 * max(1, len(matrix))))
    results: list[Ranking] = []
    for start in range(0, len(queries), size):
        scores = queries[start : start + size] @ matrix.T  # (B, d) x (d, N) -> (B, N)
        results += [best_first(row if rows is None else row[rows], k, ids) for row in scores]
    return results
