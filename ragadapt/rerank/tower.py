"""A transformer that runs in any precision, and what stands on it, in float32."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import nn

from ragadapt.encoder import attention, loading
from ragadapt.encoder.architectures import NotCovered, of_library, runs_on
from ragadapt.encoder.batches import lacks_memory, token_batches
from ragadapt.errors import InvalidInput

log = logging.getLogger(__name__)

Made = TypeVar("Made")

_BUDGET = {"cpu": 4096, "cuda": 131_072, "mps": 16_384}  # tokens per batch


class ReadingTower(nn.Module):
    """What a re-ranker's model is taken apart into.

    model: the transformer. head: what stands on it, always float32; None = the transformer gives the result itself.
    path: which code runs the transformer, in words.
    """

    def __init__(self, model: nn.Module, head: nn.Module | None, tokenizer: Any, max_length: int, path: str) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.path = path
        self.autocast: torch.dtype | None = None  # set: float32 weights among those of this precision
        pad_id = getattr(tokenizer, "pad_token_id", None)
        self.pad_id = 0 if pad_id is None else int(pad_id)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def own(self) -> bool:
        """Whether ragadapt's own forward runs the transformer."""
        return self.path.startswith("ragadapt")

    def lower(self, dtype: torch.dtype) -> None:
        """Bring the transformer to a precision, in place."""
        self.model.to(dtype)
        if self.head is not None:
            self.head.float()  # it may share the model that it was part of
        if self.device.type == "cuda" or (dtype == torch.bfloat16 and self.device.type == "cpu"):
            attention.use(self.model)

    def trainable_twin(self) -> Self:
        """A tower of its own modules that shares the transformer's weights with this one, and has the head's for
        itself: adding an adapter to the twin, and training its head, leaves this one as it was."""
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*self.model.parameters(), *self.buffers())}
        shared |= {id(part): part for part in self.kept()}
        twin = copy.deepcopy(self, shared)
        assert twin.head is not None
        for name, part in list(twin.head.named_parameters()):
            owner, _, child = name.rpartition(".")
            setattr(twin.head.get_submodule(owner), child, nn.Parameter(part.detach().clone()))
        return twin

    def kept(self) -> list[Any]:
        """What a twin has in common with this one, beside the weights."""
        return [self.tokenizer]

    def _precision(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast)


def own_forward(first: nn.Module, plain: nn.Module) -> tuple[nn.Module, str]:
    """(the plain transformer of a sentence-transformers module in ragadapt's own forward, over the same weights, the
    path in words); where that does not cover it, as it is."""
    kept = getattr(first, "without_adapter", None)  # of a module whose adapter is no change of its weights
    try:
        with kept() if kept is not None else nullcontext() as adapter:
            made = runs_on(of_library(plain), next(plain.parameters()).device)
            if adapter is not None:
                adapter.attach(made)
        return made, "ragadapt's own forward"
    except NotCovered as reason:
        return plain, f"transformers' forward, as ragadapt's own does not cover {reason}"


def readable(model: nn.Module, declared: int | None, wanted: int | None, name: str) -> int:
    """Tokens of one input: as wanted, else as declared and as the model has positions for. Raises InvalidInput for more
    than it has positions for."""
    limit = loading.positions(model)
    own = int(declared) if declared and declared < 1_000_000 else 512
    if limit is not None:
        own = min(own, limit)
        if wanted is not None and wanted > limit:
            raise InvalidInput(f"max_length = {wanted}: {name} has positions for at most {limit} tokens.")
    return wanted or own


def in_batches(run: Callable[[list[int]], list[Made]], lengths: Sequence[int], device: torch.device) -> list[Made]:
    """What `run` makes of every row, in batches of alike lengths. run: positions of rows → one result for each."""
    made: dict[int, Made] = {}
    for batch in token_batches(np.array(lengths, dtype=np.int64), _BUDGET.get(device.type, 8192)):
        positions = batch.tolist()
        made.update(zip(positions, _within_memory(run, positions), strict=True))
    return [made[at] for at in range(len(lengths))]


@torch.no_grad()
def _within_memory(run: Callable[[list[int]], list[Made]], rows: list[int]) -> list[Made]:
    """One batch; where memory is short, the same batch in halves."""
    try:
        return run(rows)
    except (MemoryError, RuntimeError) as error:
        if len(rows) == 1 or not lacks_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(rows) // 2
    log.warning("memory is short: going on with half the batch (%d texts)", half)
    return [*_within_memory(run, rows[:half]), *_within_memory(run, rows[half:])]
