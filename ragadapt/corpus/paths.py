"""Files opened without waiting or running away, and their names as text."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from ragadapt.corpus.decode import Unreadable

_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_BINARY", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY"))


def open_regular(path: Path) -> BinaryIO:
    """A regular file, open for reading. Raises Unreadable for a pipe, a device and the like, which may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise Unreadable("not a regular file")
    descriptor = os.open(path, _FLAGS)  # it may have been replaced since: without waiting, and looked at again
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable("not a regular file")
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, limit: int) -> bytes | None:
    """All bytes of a regular file; None where there are more than `limit`, whatever its size was said to be."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    return data if len(data) <= limit else None


def printable(name: str) -> str:
    r"""The name of a file as text that UTF-8 can write: other bytes stand as \xe9, a backslash beside them as two.

    Names that are UTF-8 stay as they are, so a file may really be called what this makes of another's name.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return (
            name.encode("utf-8", "surrogateescape" if _from_bytes(name) else "surrogatepass")
            .replace(b"\\", b"\\\\")
            .decode("utf-8", "backslashreplace")
        )
    return name


def _from_bytes(name: str) -> bool:
    return all(not "\ud800" <= c <= "\udfff" or "\udc80" <= c <= "\udcff" for c in name)
