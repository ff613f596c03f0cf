"""The exact gradient of a large batch in bounded memory (GradCache, Gao et al. 2021), on one or many processes.

A contrastive loss couples all texts of a batch, so its gradient can't be summed over micro-batches. But it
needs only the vectors: embed everything, take the gradient of the loss with respect to the vectors, then push
each micro-batch's part of it through the model. Micro-batches that fit into memory keep their graph from the
first pass; only the rest is run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ragadapt.encoder.batches import Ids, padded_length, token_batches
from ragadapt.profiling import work


@dataclass(frozen=True, slots=True)
class Processes:
    """Who else works on the batch. count = 1: nobody."""

    index: int = 0
    count: int = 1

    def share(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Positions that this process embeds: every count-th in order of length, so that all work alike."""
        return np.argsort(-lengths, kind="stable")[self.index :: self.count]

    def gather(self, local: Tensor, lengths: npt.NDArray[np.int64]) -> Tensor:
        """(n, d): everybody's vectors, in batch order."""
        if self.count == 1:
            order = self.share(lengths)
            whole = torch.empty_like(local)
            whole[torch.from_numpy(order)] = local
            return whole
        from accelerate.utils import gather

        most = -(-len(lengths) // self.count)
        padded = local.new_zeros(most, local.shape[1])
        padded[: len(local)] = local
        blocks = gather(padded).view(self.count, most, -1)
        whole = local.new_empty(len(lengths), local.shape[1])
        for index in range(self.count):
            order = Processes(index, self.count).share(lengths)
            whole[torch.from_numpy(order)] = blocks[index, : len(order)]
        return whole

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Add up the parts of the gradient that the processes hold."""
        if self.count == 1:
            return
        from accelerate.utils import reduce

        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
        summed = reduce(flat, reduction="sum")
        start = 0
        for parameter in parameters:
            parameter.grad = summed[start : start + parameter.numel()].view_as(parameter).clone()
            start += parameter.numel()


def backward(
    embed: Callable[[list[Ids], int], Tensor],
    rows: Sequence[Ids],
    loss_of: Callable[[Tensor], Tensor],
    *,
    chunk_tokens: int,
    held_tokens: int,
    processes: Processes | None = None,
) -> float:
    """Add the gradient of loss_of(vectors of rows) to the parameters; returns the loss.

    embed(rows, number) → (B, d): differentiable, and the same when called again with the same number.
    chunk_tokens: padded tokens run at once. held_tokens: padded tokens whose graphs may be kept. With several
    processes each embeds its share of the rows, sees the whole loss, and the gradients still have to be summed.
    """
    processes = processes or Processes()
    lengths = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    mine = processes.share(lengths)
    chunks = [mine[batch] for batch in token_batches(lengths[mine], chunk_tokens)]
    position_of = np.empty(len(rows), dtype=np.int64)
    position_of[mine] = np.arange(len(mine))

    graphs: list[Tensor | None] = []
    pieces: list[Tensor] = []
    held = 0
    for number, chunk in enumerate(chunks):
        held += len(chunk) * padded_length(int(lengths[chunk].max()))
        keep = held <= held_tokens or len(chunks) == 1
        with work("forward", len(chunk)), torch.set_grad_enabled(keep):
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
                graph = embed([rows[i] for i in chunk], number)
        with work("backward", len(chunk)):
            torch.autograd.backward(graph, gradient[torch.from_numpy(chunk)])
        del graph
        graphs[number] = None
    return value
