"""Corpora larger than memory: sequences that are made as they are read, texts and arrays in temporary files."""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, Generic, Self, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from ragadapt.errors import StoreError
from ragadapt.files import DISK_FULL, explain_full_disk, reserve
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
        self._beside = target is not None
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
            with explain_full_disk(self._target) if self._beside else _explain_full_temporary(self._target.parent):
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


@contextmanager
def _explain_full_temporary(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise StoreError(
            f"{folder} is full: texts of a large corpus are kept there meanwhile. Free some space, or name a folder "
            "on another disk with the environment variable TMPDIR."
        ) from error


def keep_all(
    documents: list[Document], chunks: list[Chunk] | None = None, target: Path | None = None
) -> Callable[[Any], Any]:
    """Put the texts of a corpus into a file beside the target, if they are too much to hold: its documents and, if it
    was cut already, its chunks are replaced in their lists. target: None = where temporary files go.

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


_PIECE_BYTES = 8_000_000  # copied at once


class LooseFile:
    """A file that has no name until it is given one: it goes when nobody refers to it any more, or the process ends.

    It is written by calls, never through a mapping, in which a full disk would end the process.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """folder: on whose disk it lies; None, or where nothing may be written = where temporary files go."""
        self._file = _unnamed(folder)
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """A file that has a name, to read: a later removal of the name does not take it away. Raises OSError."""
        found = object.__new__(cls)
        found._file, found._folder = path.open("rb", buffering=0), path.parent
        return found

    @property
    def stream(self) -> BinaryIO:
        return self._file

    @property
    def size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def write(self, data: Any, offset: int | None = None) -> None:
        """Write a contiguous array or bytes; offset: None = where the last write ended. Raises StoreError where the
        disk is full."""
        left = memoryview(data)
        if left.nbytes == 0:
            return
        left = left.cast("B")
        with explain_full_disk(self._folder):
            if offset is not None:
                self._file.seek(offset)
            while len(left):
                left = left[self._file.write(left) :]

    def end(self, size: int) -> None:
        """What lies behind the last write, up to this size, reads as zeros."""
        self._file.truncate(size)

    def place(self, to: Path) -> None:
        """Let the content be at this path too, in place of what is there: by a link where the disk is the same."""
        if to.exists() and os.path.samestat(to.stat(), os.fstat(self._file.fileno())):
            return
        beside = to.with_name(f"{to.stem.split('-')[0]}-partial{to.suffix}")
        beside.unlink(missing_ok=True)
        with explain_full_disk(to.parent):
            try:
                if not _link(self._file.fileno(), beside):
                    self._copy(beside)
                beside.replace(to)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise
        if not os.path.samestat(to.stat(), os.fstat(self._file.fileno())):
            self._file = to.open("rb", buffering=0)  # the next place links, or finds it there

    def _copy(self, to: Path) -> None:
        with to.open("wb", buffering=0) as new:
            self._file.seek(0)
            while piece := self._file.read(_PIECE_BYTES):
                left = memoryview(piece)
                while len(left):
                    left = left[new.write(left) :]


def _unnamed(folder: Path | None) -> BinaryIO:
    made: Any
    if folder is not None and hasattr(os, "O_TMPFILE"):
        try:  # Python's own cannot be linked
            made = os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666), "r+b", buffering=0)
            return cast(BinaryIO, made)
        except OSError:  # a file system that has none
            pass
    try:
        made = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - as long as whoever asked
    except OSError:  # nothing may be written there
        made = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    return cast(BinaryIO, made)


def _link(descriptor: int, to: Path) -> bool:
    """Give an open file another name; False where that is not possible."""
    here = f"/proc/self/fd/{descriptor}"
    if os.link not in os.supports_dir_fd or not Path(here).exists():
        return False
    try:
        # With a descriptor of a folder, which an absolute path does not need, Python asks for what the link points to.
        os.link(here, to, src_dir_fd=descriptor, follow_symlinks=True)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        return False
    return True


_HEADER = 128  # bytes of a NumPy file before its numbers


class VectorFile:
    """Vectors (n, dim) in the order in which they came, in memory; beyond HELD_BYTES in a temporary file."""

    def __init__(self, dim: int, folder: Path | None = None) -> None:
        """folder: see LooseFile."""
        self.dim = dim
        self._folder = folder
        self._count = 0
        self._held: NDArray[np.float32] = np.empty((0, dim), np.float32)  # rows beyond the count are room to grow
        self._file: LooseFile | None = None

    @classmethod
    def of(cls, vectors: NDArray[np.float32], folder: Path | None = None) -> Self:
        """Over vectors (n, dim) at hand, such as a mapped file; they are not changed."""
        made = cls(vectors.shape[1], folder)
        made._held, made._count = np.asarray(vectors), len(vectors)
        return made

    def __len__(self) -> int:
        return self._count

    def add(self, vectors: NDArray[np.float32]) -> None:
        """Append (n, dim). Raises StoreError where the disk is full."""
        end = self._count + len(vectors)
        if self._file is None and end * self.dim * 4 > HELD_BYTES:
            self._to_file()
        if self._file is not None:
            self._file.write(np.ascontiguousarray(vectors, np.float32), self._end(self._count))
        else:
            if end > len(self._held) or not self._held.flags.writeable:
                grown = np.empty((max(end, 3 * self._count // 2), self.dim), np.float32)
                grown[: self._count] = self._held[: self._count]
                self._held = grown
            self._held[self._count : end] = vectors
        self._count = end

    def matrix(self) -> NDArray[np.float32]:
        """(n, dim), not to be written to."""
        if self._file is not None and len(self._held) != self._count:
            self._held = mapped(self._file, _HEADER, np.float32, (self._count, self.dim))
        return self._held[: self._count]

    def to_file(self) -> LooseFile:
        """All of it as a NumPy file. Nothing may be added any more."""
        if self._file is None:
            self._to_file()
        assert self._file is not None
        header = io.BytesIO()
        form = {"descr": "<f4", "fortran_order": False, "shape": (self._count, self.dim)}
        np.lib.format.write_array_header_1_0(header, form)
        assert header.tell() == _HEADER
        self._file.write(header.getvalue(), 0)
        return self._file

    def _to_file(self) -> None:
        file = LooseFile(self._folder)
        file.write(np.ascontiguousarray(self._held[: self._count]), _HEADER)
        self._file, self._held = file, np.empty((0, self.dim), np.float32)

    def _end(self, count: int) -> int:
        return _HEADER + 4 * self.dim * count


def mapped(file: LooseFile, offset: int, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Part of a file as an array that is read when it is looked at. Raises ValueError where the file is too short."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if file.size < offset + size:
        raise ValueError(f"{file.size} bytes, and {offset + size} are expected")
    if size == 0:
        return np.empty(shape, dtype)
    return np.asarray(np.memmap(file.stream, dtype, "r", offset, shape))


def mapped_vectors(file: LooseFile) -> NDArray[np.float32]:
    """The matrix of float32 in a NumPy file, read when it is looked at. Raises ValueError for another file."""
    stream = file.stream
    stream.seek(0)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"a NumPy file of version {version}")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if len(shape) != 2 or fortran_order or dtype != np.dtype("<f4"):
        raise ValueError(f"{dtype} of shape {shape}")
    return mapped(file, stream.tell(), np.float32, shape)
