"""What the tests of ragadapt.pipeline.cells let processes of their own do."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from ragadapt.errors import InvalidInput
from ragadapt.pipeline.cells import peak_memory_bytes


def hold(megabytes: int, *, progress: Any) -> tuple[int, int | None]:
    """Who worked, and the most memory that it held."""
    print("not an answer")
    block = bytearray(megabytes * 1_000_000)
    for at in range(0, len(block), 4096):
        block[at] = 1
    progress("holding", 1, 1)
    return os.getpid(), peak_memory_bytes()


def refuse(value: str, *, progress: Any) -> None:
    raise InvalidInput(f"{value} is refused.")


def break_down(*, progress: Any) -> None:
    print("the last words", file=sys.stderr, flush=True)
    os.abort()


def nothing(*, progress: Any) -> None:
    return None


def wait(mark: str, *, progress: Any) -> None:
    """Write the process's number to a file, and stay."""
    Path(mark).write_text(str(os.getpid()), encoding="ascii")
    time.sleep(120)
