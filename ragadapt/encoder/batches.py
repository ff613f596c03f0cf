"""Batches of similar length under a token budget: little padding, bounded memory."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from ragadapt.errors import InvalidInput, reason_of

Ids = npt.NDArray[np.int32]
Padded = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def padded_length(longest: int) -> int:
    """The length to which a batch with such a longest text is padded: the next multiple of 8, of 16 above 64.

    Few different shapes: the kernels of every shape are made and kept once (on a CPU that is most of what the
    memory of a long run grows by), and aligned ones run faster, which more than pays for the padding.
    """
    multiple = 8 if longest <= 64 else 16
    return max(1, -(-longest // multiple)) * multiple


def token_batches(
    lengths: npt.NDArray[np.int64], budget_tokens: int, max_rows: int = 4096, least_filled: float = 0.0
) -> list[npt.NDArray[np.int64]]:
    """Positions grouped so that rows x padded longest <= budget_tokens, longest first; every position once.

    least_filled: the share of a batch's length below which a text begins a batch of its own (questions among passages).
    A text longer than the budget gets a batch of its own. Longest first, so that a lack of memory shows at
    once and not after an hour.
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[npt.NDArray[np.int64]] = []
    start = 0
    while start < len(order):
        longest = padded_length(int(lengths[order[start]]))
        rows = min(max_rows, max(1, budget_tokens // longest))
        if least_filled > 0:
            rows = min(rows, int(np.sum(lengths[order[start : start + rows]] >= least_filled * longest)) or 1)
        batches.append(order[start : start + rows])
        start += rows
    return batches


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a GPU or of the machine: half of the work may still fit."""
    message = str(error).lower()
    return (
        isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
        or ("memory" in message and ("alloc" in message or "not enough" in message))
        or "out of memory" in message
        or "alloc_failed" in message  # cuBLAS and cuDNN, for their own workspace
    )


def refuse_without_memory(error: BaseException, what: str, device: str) -> None:
    """Raise InvalidInput where an error says that memory ran out: nothing is wrong with what was asked for."""
    if lacks_memory(error):
        raise InvalidInput(
            f"{what} does not fit into the memory that is free on {device} ({reason_of(error)}). End what else holds "
            "it, or choose another device (--device cpu)."
        ) from error


@cache
def keep_freed_memory() -> None:
    """Once a process, before much is computed on a CPU: let freed activations be used again.

    glibc maps blocks from the system that are larger than any it mapped and freed before, 32 MB at most, and hands
    twice that size of free memory back: then every activation is paid for with a page fault for each 4 kB of it. One
    such block freed teaches it to keep them. Elsewhere this does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def pad(rows: list[Ids], pad_id: int, max_length: int) -> Padded:
    """(ids, mask), both (B, T) int64, padded on the right; T is the padded length, max_length at most."""
    longest = max(1, max(len(row) for row in rows))
    length = max(longest, min(padded_length(longest), max_length))
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=np.int64)
    for position, row in enumerate(rows):
        ids[position, : len(row)] = row
        mask[position, : len(row)] = 1
    return ids, mask
