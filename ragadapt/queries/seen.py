"""What a model has seen: a mark of every question that it learnt from, so that none judges what it helps to make."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from hashlib import sha256
from pathlib import Path

from ragadapt.errors import StoreCorrupt
from ragadapt.files import write_text
from ragadapt.queries.text import text_key
from ragadapt.values import Evidence, Query

FILE = "seen.json"

_REMEDY = "It lists the questions that a model has learnt from. Restore it from a copy, or make the folder anew."


def mark(text: str) -> str:
    """16 hexadecimal digits; equal for questions that differ in case and white space alone."""
    return sha256(text_key(text).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def marks_of(queries: Iterable[Query]) -> frozenset[str]:
    """Of all but what was cut from the passages."""
    return frozenset(mark(query.text) for query in queries if query.evidence is not Evidence.CROP)


def write_seen(folder: Path, marks: Collection[str]) -> None:
    """Put them into a model's or an adapter's folder, a mark a line."""
    write_text(folder / FILE, json.dumps(sorted(marks), indent=0) + "\n")


def read_seen(folder: Path) -> frozenset[str] | None:
    """What `write_seen` wrote; None where it wrote nothing. Raises StoreCorrupt."""
    file = folder / FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise StoreCorrupt(f"{file} cannot be read ({error}). {_REMEDY}") from error
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise StoreCorrupt(f"{file} is no list of marks. {_REMEDY}")
    return frozenset(found)
