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
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragadapt.errors import InvalidInput, RagadaptError, StoreError, reason_of
from ragadapt.text import encodable, is_encodable

DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size in bytes and sha256 of one file."""

    size: int
    sha256: str


def record_file(file: Path) -> FileRecord:
    """Hash the file as it is now."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileRecord(size=stream.tell(), sha256=digest)


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
