"""What re-rankers computed in this process and need not compute again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ragadapt.threads import follow_forks

Value = TypeVar("Value")
Vectors = npt.NDArray[np.floating[Any]]
"""(T, d): one for each token of a text."""

_SCORES = 200_000  # some 30 MB
_VECTOR_BYTES = 256 * 1024 * 1024  # some 2,500 passages of 200 tokens at 128 numbers in float32


class Memory(Generic[Value]):
    """Values by the hash of what they depend on, the least used forgotten first.

    most: how much is kept, in what `size` measures of each; None = how many.
    """

    def __init__(self, most: int, size: Callable[[Value], int] | None = None) -> None:
        self._most = most
        self._size = size or (lambda _: 1)
        self._values: OrderedDict[bytes, Value] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()
        follow_forks(self, encoder=True)

    @property
    def held(self) -> int:
        """How much is kept now."""
        return self._held

    def get(self, keys: Sequence[bytes]) -> list[Value | None]:
        with self._lock:
            for key in keys:
                if key in self._values:
                    self._values.move_to_end(key)
            return [self._values.get(key) for key in keys]

    def add(self, keys: Sequence[bytes], values: Sequence[Value]) -> None:
        with self._lock:
            for key, value in zip(keys, values, strict=True):
                if key in self._values:
                    self._held -= self._size(self._values.pop(key))
                self._values[key] = value
                self._held += self._size(value)
            while self._held > self._most:
                self._held -= self._size(self._values.popitem(last=False)[1])

    def clear(self) -> None:
        with self._lock:
            self._values.clear()
            self._held = 0

    def _fork_lock(self) -> Any:
        return self._lock

    def _after_fork(self) -> None:
        self._lock = threading.Lock()


SCORES: Memory[float] = Memory(_SCORES)
VECTORS: Memory[Vectors] = Memory(_VECTOR_BYTES, lambda vectors: vectors.nbytes)


def forget() -> None:
    """Let go of everything."""
    SCORES.clear()
    VECTORS.clear()
