"""Corpora larger than memory: sequences that are made as they are read, texts and arrays in temporary files."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from ragadapt.files import explain_full_disk, reserve
from ragadapt.values import Chunk, Document

S = TypeVar("S")
T = TypeVar("T")
Kept = TypeVar("Kept", Chunk, Document)

HELD_CHARACTERS = 100_000_000
"""Of a corpus: with more, its texts lie in a file. Passages repeat their document's text, and both are held."""

HELD_BYTES = 256_000_000
"""Of an array that only one step needs: a larger one lies in a file."""


_SHARED = ("document_id", "heading_path", "source", "before", "title")
_SIZE = 32  # bits for the size of a text


class Mapped(Sequence[T], Generic[S, T]):
    """What a function gives for each item of a sequence, made anew whenever it is read."""

    def __init__(self, items: Sequence[S], make: Callable[[S], T]) -> None:
        self._items = items
        self._make = make

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Mapped[S, T]: ...
    def __getitem__(self, at: int | slice) -> T | Mapped[S, T]:
        if isinstance(at, slice):
            return Mapped(self._items[at], self._make)
        return self._make(self._items[at])

    def __iter__(self) -> Iterator[T]:
        return map(self._make, self._items)


class TextFile:
    """Texts in a temporary file without a name: it goes when nobody refers to it any more, or the process ends."""

    def __init__(self, target: Path | None = None) -> None:
        """target: what is being built; the file lies beside it. None = where temporary files go."""
        self._target = Path(tempfile.gettempdir()) / "texts" if target is None else target
        try:
            self._file = tempfile.TemporaryFile(dir=self._target.parent, buffering=0)  # noqa: SIM115 - as long as this object
        except OSError:  # nothing may be written there, and perhaps nothing will be
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        self._end = 0
        self._lock = threading.Lock()
        self._last: dict[str, Any] = {}
        self._recent = (-1, "")  # whoever cuts a long document asks for its text again and again

    def keep(self, item: Kept) -> Kept:
        """The same document or chunk, its text in this file from now on."""
        data = item.text.encode("utf-8", "surrogatepass")
        if len(data) >> _SIZE:
            return item
        made: Any = object.__new__(_KEPT[type(item)])
        for name in _NAMES[type(item)]:
            value = getattr(item, name)
            if name in _SHARED:  # with its neighbours, mostly: of equal texts one is enough
                if value == self._last.get(name):
                    value = self._last[name]
                self._last[name] = value
            object.__setattr__(made, name, value)
        with self._lock:
            object.__setattr__(made, "_place", self._end << _SIZE | len(data))
            self._file.seek(self._end)
            written = 0
            with explain_full_disk(self._target):
                while written < len(data):
                    written += self._file.write(data[written:])
            self._end += len(data)
        object.__setattr__(made, "_texts", self)
        return cast(Kept, made)

    def read(self, place: int) -> str:
        """The text at a place: offset and size in bytes, in one number."""
        known, text = self._recent
        if known == place:
            return text
        start, size = place >> _SIZE, place & ((1 << _SIZE) - 1)
        if hasattr(os, "pread"):
            data = os.pread(self._file.fileno(), size, start)
        else:
            with self._lock:
                self._file.seek(start)
                data = self._file.read(size)
        text = data.decode("utf-8", "surrogatepass")
        self._recent = (place, text)
        return text


def keep_all(documents: list[Document], chunks: list[Chunk] | None, target: Path) -> Callable[[Any], Any]:
    """Put the texts of a corpus into a file beside the target, if they are too much to hold: its documents and, if it
    was cut already, its chunks are replaced in their lists.

    Returns what does the same with a chunk that is made later; it leaves it as it is where the texts are held. Raises
    StoreError where the disk is full.
    """
    keep: Callable[[Any], Any] = as_it_is
    if sum(len(item.text) for item in chunks or documents) > HELD_CHARACTERS:
        keep = TextFile(target).keep
    for at, document in enumerate(documents):
        documents[at] = keep(document)
    for at, chunk in enumerate(chunks or ()):
        chunks[at] = keep(chunk)  # type: ignore[index]
    return keep


def as_it_is(item: T) -> T:
    """Nothing is done."""
    return item


class _TextOnDisk:
    """A document or chunk whose text is read when it is asked for."""

    __slots__ = ()
    _texts: TextFile
    _place: int

    def __new__(cls, *values: Any, **named: Any) -> Any:
        """What `dataclasses.replace` makes of it is a plain one."""
        return _PLAIN[cls](*values, **named)

    @property
    def text(self) -> str:
        return self._texts.read(self._place)

    def __eq__(self, other: object) -> bool:
        plain = _plain(self)
        return bool(plain == (_plain(other) if isinstance(other, _TextOnDisk) else other))

    __hash__ = None  # type: ignore[assignment]  # as their metadata

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        plain = _plain(self)
        return type(plain), tuple(getattr(plain, field.name) for field in fields(plain))


class _DocumentOnDisk(_TextOnDisk, Document):
    __slots__ = ("_place", "_texts")


class _ChunkOnDisk(_TextOnDisk, Chunk):
    __slots__ = ("_place", "_texts")


_PLAIN: dict[type, Any] = {_DocumentOnDisk: Document, _ChunkOnDisk: Chunk}
_KEPT: dict[type, type] = {Document: _DocumentOnDisk, Chunk: _ChunkOnDisk, **{kind: kind for kind in _PLAIN}}
_NAMES = {
    kind: tuple(field.name for field in fields(plain) if field.name != "text")
    for plain in (Document, Chunk)
    for kind in (plain, _KEPT[plain])
}


def _plain(item: Any) -> Any:
    return _PLAIN[type(item)](**{field.name: getattr(item, field.name) for field in fields(item)})


def temporary_array(shape: tuple[int, ...], dtype: Any, folder: Path | None = None) -> NDArray[Any]:
    """An array to write to, not initialised; a large one lies in a temporary file without a name, its room taken.

    Raises StoreError where the disk is full.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size <= HELD_BYTES:
        return np.empty(shape, dtype)
    where = Path(tempfile.gettempdir()) if folder is None else folder
    with explain_full_disk(where / "array"), tempfile.TemporaryFile(dir=where) as file:  # the mapping keeps it
        reserve(file, size)
        return np.memmap(file, dtype, "r+", shape=shape)
