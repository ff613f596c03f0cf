"""Texts that exist only while they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


class ReadOnce(Sequence[str]):
    """Counts how often it is read from end to end, which is the only way to read it."""

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self.readings = 0

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("a text was asked for by its place")

    def __iter__(self) -> Iterator[str]:
        self.readings += 1
        return iter(self._texts)
