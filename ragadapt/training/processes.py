"""The processes that train together: each embeds its share of a batch, all see the vectors of all."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ragadapt.errors import TrainingFailed
from ragadapt.training.channel import Channel
from ragadapt.values import Progress

_NEWS_SECONDS = 5.0  # between a broken collective and the news of what broke it
_T = TypeVar("_T")
_channel: Channel | None = None  # of this process, from the first `join` to its end


def launched() -> bool:
    """Whether this process is one of several that `accelerate launch` or `torchrun` started."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def is_first() -> bool:
    """Whether this process is the first of those, or alone: the one that reports."""
    return not launched() or int(os.environ.get("RANK") or 0) == 0


@dataclass(frozen=True, slots=True)
class Processes:
    """Who else works on the batch. count = 1: nobody.

    All of them come to every collective at the same time: they meet on the channel before it, where a wait lasts as
    long as the others live and no longer.
    """

    index: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # of what the collectives carry
    channel: Channel | None = field(default=None, repr=False, compare=False)

    @classmethod
    def join(cls, kind: str) -> Processes:
        """Those of an `accelerate launch` or `torchrun`, each on its own device of this kind; else this one alone.

        Raises TrainingFailed where others cannot be reached, or one has failed before.
        """
        global _channel
        from accelerate import PartialState

        state = PartialState(cpu=kind == "cpu")
        if state.num_processes == 1:
            return cls()
        device = torch.device("cpu") if state.backend in ("gloo", "mpi") else state.device
        joined = cls(int(state.process_index), int(state.num_processes), device)
        if _channel is None:
            _channel = Channel.open(joined.index, joined.count, joined._broadcast_object)
        _channel.check()
        return cls(joined.index, joined.count, device, _channel)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within: an error of one process, whatever it is, ends all of them; none leaves before all have done.

        SIGTERM, where nothing else handles it, is an error too, so that temporary files are removed.
        """
        if self.channel is None:
            yield
            return
        with _termination_raised():
            try:
                yield
                self.channel.meet()
            except BaseException as error:
                self.channel.fail(error)
                raise

    def watched(self, progress: Progress) -> Progress:
        """The same progress, which raises TrainingFailed when another process failed: for long work of this one."""
        channel = self.channel
        if channel is None:
            return progress

        def watching(stage: str, done: int, total: int) -> None:
            channel.check()
            progress(stage, done, total)

        return watching

    @overload
    def broadcast(self) -> object: ...

    @overload
    def broadcast(self, value: _T) -> _T: ...

    def broadcast(self, value: object = None) -> object:
        """What the first process says, in all of them; pickled, between processes that were started together."""
        if self.channel is None:
            return value
        self.channel.meet()
        with self._collective():
            return self._broadcast_object(value)

    def share(self, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Positions that this process embeds: every count-th in order of length, so that all work alike."""
        return np.argsort(-lengths, kind="stable")[self.index :: self.count]

    def gather(self, local: Tensor, lengths: npt.NDArray[np.int64]) -> Tensor:
        """(n, d): everybody's vectors, in batch order."""
        most = -(-len(lengths) // self.count)
        padded = local.new_zeros(most, local.shape[1])
        padded[: len(local)] = local
        blocks = [padded]
        if self.channel is not None:
            blocks = [torch.empty_like(padded) for _ in range(self.count)]
            self.channel.meet()
            with self._collective():
                torch.distributed.all_gather(blocks, padded)
        whole = local.new_empty(len(lengths), local.shape[1])
        for index, block in enumerate(blocks):
            order = Processes(index, self.count).share(lengths)
            whole[torch.from_numpy(order)] = block[: len(order)]
        return whole

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Add up the parts of the gradient that the processes hold."""
        if self.channel is None:
            return
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
        self.channel.meet()
        with self._collective():
            torch.distributed.all_reduce(flat)
        start = 0
        for parameter in parameters:
            parameter.grad = flat[start : start + parameter.numel()].view_as(parameter).clone()
            start += parameter.numel()

    def _broadcast_object(self, value: _T) -> _T:
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    @contextmanager
    def _collective(self) -> Iterator[None]:
        """Say plainly that a process died in the middle of a collective."""
        assert self.channel is not None
        try:
            yield
        except RuntimeError as error:
            self.channel.check(_NEWS_SECONDS)
            raise TrainingFailed(
                f"Process {self.index} of {self.count} lost the others while they exchanged results ({error}). Start "
                "all of them again with the same command: finished stages are kept."
            ) from error


@contextmanager
def _termination_raised() -> Iterator[None]:
    """SIGTERM raises SystemExit, unless somebody else cares for it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
