"""The processes that train together: each embeds its share of a batch, all see the vectors of all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def launched() -> bool:
    """Whether this process is one of several that `accelerate launch` or `torchrun` started."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def is_first() -> bool:
    """Whether this process is the first of those, or alone: the one that reports."""
    return not launched() or int(os.environ.get("RANK") or 0) == 0


@dataclass(frozen=True, slots=True)
class Processes:
    """Who else works on the batch. count = 1: nobody."""

    index: int = 0
    count: int = 1

    @classmethod
    def join(cls, kind: str) -> Processes:
        """Those of an `accelerate launch` or `torchrun`, each on its own device of this kind; else this one alone."""
        from accelerate import PartialState

        # The others wait while the first one encodes and judges, however large the corpus.
        options = {"timeout": timedelta(days=30)} if launched() else {}
        state = PartialState(cpu=kind == "cpu", **options)
        return cls(int(state.process_index), int(state.num_processes))

    def tell(self, value: Any = None) -> Any:
        """What the first process says, in all of them; pickled, between processes that were started together."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        box = [value]
        broadcast_object_list(box, from_process=0)
        return box[0]

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
