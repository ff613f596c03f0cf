"""The exact gradient of a large batch in bounded memory (GradCache, Gao et al. 2021), on one or many processes.

A contrastive loss couples all texts of a batch, so its gradient can't be summed over micro-batches. But it
needs only the vectors: embed everything, take the gradient of the loss with respect to the vectors, then push
each micro-batch's part of it through the model. Micro-batches that fit into memory keep their graph from the
first pass; only the rest is run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ragadapt.encoder.batches import padded_length, token_batches
from ragadapt.profiling import work
from ragadapt.training.processes import Processes

Row = TypeVar("Row", bound=Sized)
"""What the model reads as one: its length is that in tokens."""

_LEAST_FILLED = 0.5  # a batch holds questions and passages, and padding is computed twice more on the way back


def backward(
    embed: Callable[[list[Row], int], Tensor],
    rows: Sequence[Row],
    loss_of: Callable[[Tensor], Tensor],
    *,
    chunk_tokens: int,
    held_tokens: int,
    processes: Processes | None = None,
    tasks: Sequence[str | None] | None = None,
    tell: Callable[[str | None], None] | None = None,
) -> float:
    """Add the gradient of loss_of(vectors of rows) to the parameters; returns the loss.

    embed(rows, number) → (B, d): differentiable, and the same when called again with the same number.
    chunk_tokens: padded tokens run at once. held_tokens: padded tokens whose graphs may be kept. With several
    processes each embeds its share of the rows, sees the whole loss, and the gradients still have to be summed.
    tasks: of the rows; those of different tasks are never run together, and `tell` gets the task before each `embed`.
    """
    processes = processes or Processes()
    lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    mine = processes.share(lengths)
    chunks = [
        group[batch]
        for group in _by_task(mine, tasks)
        for batch in token_batches(lengths[group], chunk_tokens, least_filled=_LEAST_FILLED)
    ]
    position_of = np.empty(len(rows), dtype=np.int64)
    position_of[mine] = np.arange(len(mine))

    def told(chunk: npt.NDArray[np.int64]) -> None:
        if tasks is not None and tell is not None:
            tell(tasks[chunk[0]])

    graphs: list[Tensor | None] = []
    pieces: list[Tensor] = []
    held = 0
    for number, chunk in enumerate(chunks):
        held += len(chunk) * padded_length(int(lengths[chunk].max()))
        keep = held <= held_tokens or len(chunks) == 1
        with work("forward", len(chunk)), torch.set_grad_enabled(keep):
            told(chunk)
            out = embed([rows[i] for i in chunk], number)  # (B, d)
        graphs.append(out if keep else None)
        pieces.append(out.detach())
    order = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.int64)
    local = torch.empty(len(mine), pieces[0].shape[1], device=pieces[0].device)
    local[torch.from_numpy(position_of[order])] = torch.cat(pieces)

    vectors = processes.gather(local, lengths).requires_grad_(True)  # (n, d)
    with work("loss"):
        loss = loss_of(vectors)
        value = float(loss.detach())
        if not np.isfinite(value):
            return value
        (gradient,) = torch.autograd.grad(loss, vectors)  # (n, d)
    for number, (chunk, graph) in enumerate(zip(chunks, graphs, strict=True)):
        if graph is None:
            with work("forward again", len(chunk)):
                told(chunk)
                graph = embed([rows[i] for i in chunk], number)
        with work("backward", len(chunk)):
            torch.autograd.backward(graph, gradient[torch.from_numpy(chunk)])
        del graph
        graphs[number] = None
    return value


def _by_task(rows: npt.NDArray[np.int64], tasks: Sequence[str | None] | None) -> list[npt.NDArray[np.int64]]:
    """The positions, apart for every task, in order of its first row."""
    if tasks is None:
        return [rows]
    order = dict.fromkeys(tasks[row] for row in rows)
    return [np.array([row for row in rows if tasks[row] == task], dtype=np.int64) for task in order]
