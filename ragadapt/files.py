"""Files that survive a kill: listing, hashing, writing in one move, reaching the disk."""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from ragadapt.errors import InvalidInput, RagadaptError, StoreCorrupt, StoreError, reason_of
from ragadapt.text import encodable, is_encodable

_HASHED_AT_ONCE = 1_000_000  # bytes; hashing them takes half a millisecond, less than opening them
_PARSED_WHOLE = (".json", ".jsonl", ".npz")  # parsing takes ten times longer than hashing, and trips over damage
_SLOW_BYTES = 128_000_000  # of large files without a quick hash that are waited for all the same
_QUICK_BYTES = 4_000_000_000  # of large files with one: seconds of a disk
_PIECE_BYTES = 1_000_000  # stays in the cache between reading and hashing
REMEDY = "Copy the folder again, or rebuild it with: ragadapt fit"
DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and hashes of one file. xxh3: XXH3 of 128 bits, which takes a seventh of sha256's time and tells
    damage as well, if not intent; "" in folders of earlier versions."""

    size: int
    sha256: str
    xxh3: str = field(default="", compare=False)

    def to_json(self) -> dict[str, Any]:
        return {"size": self.size, "sha256": self.sha256, "xxh3": self.xxh3}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """What `to_json` gave. Raises KeyError, TypeError, ValueError."""
        return cls(int(values["size"]), str(values["sha256"]), str(values.get("xxh3", "")))


def record_file(file: Path) -> FileRecord:
    """Hash the file as it is now."""
    sha256, xxh3 = hashlib.sha256(), _xxh3()
    with file.open("rb", buffering=0) as stream:
        size = sum(_feed(stream, lambda: False, sha256, xxh3))
    return FileRecord(size, sha256.hexdigest(), xxh3.hexdigest())


class Hashes:
    """The hashes of a folder's files, compared with the manifest once: small and parsed files at once, the rest in a
    thread, all of them from files that are opened here, so that a later replacement of the folder does not matter.
    """

    def __init__(self, path: Path, files: Mapping[str, FileRecord], remedy: str = REMEDY) -> None:
        """remedy: the next step in errors. Raises StoreCorrupt where a small file differs, or one is not there."""
        self._path = path
        self._remedy = remedy
        self._process = os.getpid()
        self._damage: str | None = None
        self._stopped = False
        self._done: dict[str, threading.Event] = {}
        self._awaited: set[str] = set()
        slow = quick = 0
        self._open: list[tuple[str, FileRecord, BinaryIO]] = []
        small = []
        try:
            for name, record in sorted(files.items(), key=lambda item: item[1].size):
                stream = _open_file(path / name, record, remedy)
                if record.size <= _HASHED_AT_ONCE or name.endswith(_PARSED_WHOLE):
                    small.append((name, record, stream))
                else:
                    self._open.append((name, record, stream))
                    self._done[name] = threading.Event()
                    slow += 0 if record.xxh3 else record.size
                    quick += record.size
                    if slow <= _SLOW_BYTES and quick <= _QUICK_BYTES:
                        self._awaited.add(name)
            self._start()
            for name, record, stream in small:
                with stream:
                    _compare(path / name, record, stream, lambda: False, remedy)
        except BaseException:
            self.close()
            for _, _, stream in small:
                stream.close()
            raise

    def wait(self, names: Iterable[str] | None = None) -> None:
        """Return once these files (None = all) are known to be whole. Raises StoreCorrupt for any that differs.

        None leaves out what would keep a first answer waiting: the largest files, in a folder of an earlier version
        (sha256) sooner. Their damage is found later, and raised from then on.
        """
        if os.getpid() != self._process:
            self._go_on_in_child()
        for name in self._awaited if names is None else names:
            if name in self._done:
                self._done[name].wait()
        if self._damage is not None:
            raise StoreCorrupt(self._damage)

    @property
    def over(self) -> bool:
        """Whether all have been compared: `wait` will say nothing new."""
        return os.getpid() == self._process and all(event.is_set() for event in self._done.values())

    def close(self) -> None:
        """Stop hashing; what has not been compared counts as whole, since nobody reads it any more."""
        self._stopped = True
        if not self._thread_runs():
            self._finish()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._compare_all, name="ragadapt-hashes", daemon=True)
        if self._open:
            self._thread.start()

    def _thread_runs(self) -> bool:
        thread = getattr(self, "_thread", None)
        return thread is not None and thread.is_alive() and os.getpid() == self._process

    def _compare_all(self) -> None:
        try:
            for name, record, stream in self._open:
                if not self._stopped:
                    self._compare_one(name, record, stream)
                self._done[name].set()
        finally:
            self._finish()

    def _compare_one(self, name: str, record: FileRecord, stream: BinaryIO) -> None:
        try:
            _compare(self._path / name, record, stream, lambda: self._stopped, self._remedy)
        except StoreCorrupt as error:
            self._damage = self._damage or str(error)
        except Exception as error:  # it must not pass for whole
            self._damage = self._damage or f"{self._path / name} could not be compared with its hash ({error!r})."

    def _finish(self) -> None:
        for _, _, stream in self._open:
            stream.close()
        for event in self._done.values():
            event.set()

    def _go_on_in_child(self) -> None:
        """After a fork the thread is gone: compare here what it had not reached, in a thread what is not waited for.
        The files stay open across a fork."""
        self._process = os.getpid()
        left = [one for one in self._open if not self._done[one[0]].is_set() and not one[2].closed]
        self._open = [one for one in left if one[0] not in self._awaited]
        self._done = {name: threading.Event() for name, _, _ in self._open}
        for name, record, stream in left:
            if name in self._awaited:
                with stream:
                    self._compare_one(name, record, stream)
        self._start()


def _open_file(file: Path, expected: FileRecord, remedy: str) -> BinaryIO:
    try:
        return file.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise StoreCorrupt(f"{file} is missing; the manifest expects {expected.size} bytes. {remedy}") from error
    except OSError as error:
        raise StoreCorrupt(f"{file} cannot be read ({error}). {remedy}") from error


def _compare(file: Path, expected: FileRecord, stream: BinaryIO, stopped: Callable[[], bool], remedy: str) -> None:
    """Raises StoreCorrupt unless the open file has this hash, or it was told to stop."""
    name, wanted = ("xxh3", expected.xxh3) if expected.xxh3 else ("sha256", expected.sha256)
    digest = _xxh3() if expected.xxh3 else hashlib.sha256()
    try:
        for _ in _feed(stream, stopped, digest):
            pass
    except OSError as error:
        raise StoreCorrupt(f"{file} cannot be read ({error}). {remedy}") from error
    if not stopped() and digest.hexdigest() != wanted:
        raise StoreCorrupt(f"{file} has {name} {digest.hexdigest()}, and {wanted} is expected. {remedy}")


def _xxh3() -> Any:
    from xxhash import xxh3_128  # what encodes and trains and hashes no file does without it

    return xxh3_128()


def _feed(stream: BinaryIO, stopped: Callable[[], bool], *digests: Any) -> Iterator[int]:
    """Give an open file to the digests, from its start until it ends or one is told to stop; the size of each piece."""
    descriptor, at = stream.fileno(), 0
    piece = memoryview(bytearray(min(_PIECE_BYTES, max(1, os.fstat(descriptor).st_size))))
    while not stopped() and (count := _read_at(descriptor, piece, at)):
        for digest in digests:
            digest.update(piece[:count])
        at += count
        yield count


def _read_at(descriptor: int, piece: memoryview, at: int) -> int:
    if hasattr(os, "preadv"):  # a forked process shares the descriptor's own position with its parent
        return os.preadv(descriptor, [piece], at)
    os.lseek(descriptor, at, os.SEEK_SET)
    data = os.read(descriptor, len(piece))
    piece[: len(data)] = data
    return len(data)


def list_files(folder: Path) -> list[tuple[str, Path]]:
    """Every file below, as (path with "/" between, file), sorted by path. Links to folders are refused."""
    found = []
    for root, folders, names in os.walk(folder):
        for name in folders:
            if (Path(root) / name).is_symlink():
                raise InvalidInput(f"{Path(root) / name} links to a folder. Copy its contents there instead.")
        for name in names:
            file = Path(root) / name
            found.append((file.relative_to(folder).as_posix(), file))
    return sorted(found)


def json_digest(values: Mapping[str, Any], what: str) -> str:
    """sha256 of the values' canonical JSON. what: named in the InvalidInput that other values raise."""
    return hashlib.sha256(to_json(values, what, sort_keys=True).encode("ascii")).hexdigest()


def to_json(values: Any, what: str, sort_keys: bool = False) -> str:
    """One line of ASCII JSON. Raises InvalidInput where a value is not JSON; NaN and infinity are not."""
    try:
        return json.dumps(values, sort_keys=sort_keys, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"In {what}: {error}. Only JSON values can be stored; convert others to text.") from error


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in the file; None where there is no file, or it holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def file_state(path: Path) -> tuple[int, int, int] | None:
    """Another one after the file was written or replaced; None where it is not there, as between two renames."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def split_lines(text: str) -> list[str]:
    """The lines of a file of one value each, such as JSON Lines; a line ends at a newline and nowhere else.

    str.splitlines() also cuts at U+2028, U+0085 and others, which JSON may hold as they are.
    """
    return text.replace("\r\n", "\n").split("\n")


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of a file of one value a line, blank lines left out; "-" = standard input.

    UTF-8, or UTF-16 with its mark. A line in another encoding comes with surrogates in it, which `parse_object`
    refuses, so that the others can go on. Raises OSError.
    """
    if str(path) == "-":
        reconfigure = getattr(sys.stdin, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8-sig", errors="surrogateescape", newline="\n")
        yield from ((number, line) for number, line in enumerate(sys.stdin, start=1) if line.strip())
        return
    with Path(path).open("rb") as file:
        marked = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding, errors = ("utf-16", "replace") if marked else ("utf-8-sig", "surrogateescape")
    with Path(path).open(encoding=encoding, errors=errors, newline="\n") as text:
        yield from ((number, line) for number, line in enumerate(text, start=1) if line.strip())


def parse_object(line: str) -> dict[str, Any]:
    """The JSON object in a line, its texts cleaned (see `encodable`). Raises InvalidInput with what is wrong."""
    if not is_encodable(line):
        raise InvalidInput("it is not UTF-8 text")
    try:
        values = json.loads(line)
        if "\\u" in line:  # the only way in which half a surrogate pair comes into encodable text
            values = json.loads(encodable(json.dumps(values, ensure_ascii=False)))
    except ValueError as error:
        raise InvalidInput(f"it is not JSON ({reason_of(error)})") from error
    except RecursionError as error:
        raise InvalidInput("it is nested too deeply") from error
    if not isinstance(values, dict):
        raise InvalidInput(f"it is a JSON {type(values).__name__}, and an object is needed")
    return values


def write_text(path: Path, text: str) -> None:
    """Replace the file's content in one move that has reached the disk when this returns."""
    beside = path.with_name(f"{path.name}.tmp")
    with beside.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)
    sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """Return once every file below has reached the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            file = Path(root) / name
            if not file.is_symlink() and file.is_file():
                _sync_file(file)
        sync_folder(Path(root))


def sync_path(path: Path) -> None:
    """Return once the file, or every file below the folder, and its own name have reached the disk."""
    if path.is_dir():
        sync_tree(path)
    elif path.is_file():
        _sync_file(path)
    else:
        return
    sync_folder(path.parent)


def _sync_file(file: Path) -> None:
    # Windows syncs only what is open for writing, others also what is not.
    with suppress(PermissionError):
        descriptor = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames within the folder last through a power cut, where the system can (not on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(file: Path, to: Path) -> None:
    """A hard link where the file system has them (it costs no space), else a copy."""
    try:
        to.hardlink_to(file)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        copy_file(file, to)  # FAT, some network shares, too many links


def copy_live(source: Path, destination: Path) -> None:
    """Copy a file or folder that may be in use, SQLite files through a backup; nothing if it is not there."""
    if source.is_dir():
        shutil.copytree(source, destination, dirs_exist_ok=True)
    elif source.is_file():
        destination.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as stream:
            is_sqlite = stream.read(16) == b"SQLite format 3\0"
        if not is_sqlite:
            shutil.copyfile(source, destination)
            return
        with (
            closing(sqlite3.connect(source, timeout=30)) as old,
            closing(sqlite3.connect(destination)) as new,
        ):
            old.backup(new)


def rename(source: Path, destination: Path) -> None:
    """Rename within one file system; the destination must not exist."""
    attempts = 20 if os.name == "nt" else 1  # virus scanners and indexers on Windows hold files for moments
    for attempt in range(attempts):
        try:
            source.rename(destination)
            return
        except PermissionError:
            if attempt == attempts - 1:
                raise
            time.sleep(0.1)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def explain_full_disk(target: Path) -> Iterator[None]:
    """Turn "no space left", whoever reports it, into a StoreError that says what became of `target`."""
    try:
        yield
    except RagadaptError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in DISK_FULL
        if full or "disk is full" in str(error) or "No space left" in str(error):  # SQLite, safetensors, torch
            state = f"{target} is unchanged" if target.exists() else "nothing half-written was left to open"
            raise StoreError(
                f"The disk that holds {target.parent} is full; {state}. Free some space and run the same "
                f"command: the stages that were finished are kept."
            ) from error
        raise


def reserve(file: BinaryIO, size: int) -> None:
    """Make a file that is written through a mapping as long as this, and take the room for it now: a disk that fills
    later would end the process with SIGBUS, without a word. Raises OSError where the room is not there."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
        else:
            return
    if os.fstat(file.fileno()).st_size < size:  # where room cannot be taken ahead
        file.truncate(size)


def map_npy(
    path: Path, shape: tuple[int, ...], dtype: Any = np.float32, *, existing: bool = False
) -> np.memmap[Any, Any]:
    """An .npy file to be written through a mapping, its room taken; existing: go on with one of this shape.

    Raises OSError where the room is not there; a new file is removed then.
    """
    try:
        mapped = np.lib.format.open_memmap(path, "r+" if existing else "w+", dtype, shape=shape)
        with path.open("r+b") as file:
            reserve(file, path.stat().st_size)
    except OSError as error:
        if not existing:
            path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    return mapped


def copy_file(source: str | Path, destination: str | Path) -> None:
    """Copy a file; where it has holes, as files have that an engine lays out ahead, the copy has them too."""
    found = Path(source).stat()
    if getattr(found, "st_blocks", found.st_size) * 512 >= found.st_size or not hasattr(os, "SEEK_DATA"):
        shutil.copyfile(source, destination)
        return
    with Path(source).open("rb", buffering=0) as old, Path(destination).open("wb", buffering=0) as new:
        end = 0
        while end < found.st_size:
            try:
                start = os.lseek(old.fileno(), end, os.SEEK_DATA)
                end = os.lseek(old.fileno(), start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole up to the end
                    break
                start, end = end, found.st_size  # this file system cannot tell
            old.seek(start)
            new.seek(start)
            while start < end and (piece := old.read(min(1 << 20, end - start))):
                start += new.write(piece)
                old.seek(start)
                new.seek(start)
        new.truncate(found.st_size)
