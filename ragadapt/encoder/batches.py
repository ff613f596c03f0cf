"""Batches of similar length under a token budget: little padding, bounded memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]


def token_batches(
    lengths: npt.NDArray[np.int64], budget_tokens: int, max_rows: int = 4096
) -> list[npt.NDArray[np.int64]]:
    """Positions grouped so that rows x longest <= budget_tokens, longest first; every position once.

    A text longer than the budget gets a batch of its own. Longest first, so that a lack of memory shows at
    once and not after an hour.
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[npt.NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        rows = min(max_rows, max(1, budget_tokens // longest))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def pad(rows: list[Ids], pad_id: int, multiple: int = 1) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(ids, mask), both (B, T) int64, padded on the right to the longest row (or the next multiple)."""
    longest = max(1, max(len(row) for row in rows))
    longest = -(-longest // multiple) * multiple
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for position, row in enumerate(rows):
        ids[position, : len(row)] = row
        mask[position, : len(row)] = 1
    return ids, mask
