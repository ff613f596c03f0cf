"""TREC run files: six columns, `query Q0 document rank score tag`, that any evaluation tool reads.

Columns are separated by white space, so an id that holds some cannot stand as it is. A space becomes ␠, any
other white space or control character its code point between ␣ and a semicolon (␣A0; for a no-break space);
`read_run` turns both back. Every other id is written verbatim. Judgements for an outside tool need the same spelling:
`escape_id`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from ragadapt.errors import InvalidInput
from ragadapt.evaluation.files import write_atomically
from ragadapt.evaluation.metrics import Run, ranked
from ragadapt.text import CONTROL

_SPACE, _OTHER = "\u2420", "\u2423"  # the signs for a space and for an open box
_AWKWARD = re.compile(rf"\s|{CONTROL.pattern}")
_ESCAPED = re.compile(f"{_SPACE}|{_OTHER}([0-9A-F]{{1,4}});")


def write_run(path: str | Path, run: Run, tag: str = "ragadapt") -> None:
    """Write the file atomically, best document first, ties as trec_eval breaks them (`ranked`).

    Scores keep their full precision: reading the file gives the same numbers back. Queries without hits leave
    no line. Raises InvalidInput for an id that cannot be written and for a score that is not finite.
    """
    write_atomically(Path(path), _lines(run, escape_id(tag)))


def read_run(path: str | Path) -> dict[str, dict[str, float]]:
    """query id → document id → score, in the order of the file.

    The rank column is ignored, as trec_eval ignores it. Raises InvalidInput with the line number for a
    malformed line, and if a query names a document twice.
    """
    path = Path(path)
    run: dict[str, dict[str, float]] = {}
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            columns = re.split(r"[ \t]+", line.strip(" \t\r\n"))
            if columns == [""]:
                continue
            if len(columns) != 6:
                raise InvalidInput(
                    f"{path}, line {number}: {len(columns)} columns; a TREC run has six: "
                    "query Q0 document rank score tag."
                )
            query, document = unescape_id(columns[0]), unescape_id(columns[2])
            try:
                score = float(columns[4])
            except ValueError:
                score = math.nan
            if not math.isfinite(score):
                raise InvalidInput(f"{path}, line {number}: the score {columns[4]!r} is not a finite number.")
            hits = run.setdefault(query, {})
            if document in hits:
                raise InvalidInput(
                    f"{path}, line {number}: query {query!r} lists {document!r} twice; keep each document's best line."
                )
            hits[document] = score
    return run


def escape_id(id: str) -> str:
    """The id as a run file spells it. Raises InvalidInput if it is empty or holds ␠, ␣ or NUL."""
    if not id:
        raise InvalidInput("An id is empty; a TREC run cannot hold it. Give every query and document an id.")
    for sign in (_SPACE, _OTHER, "\0"):
        if sign in id:
            raise InvalidInput(f"The id {id!r} holds {sign!r}, which a TREC run cannot carry; rename it first.")
    return _AWKWARD.sub(lambda found: _SPACE if found[0] == " " else f"{_OTHER}{ord(found[0]):X};", id)


def unescape_id(text: str) -> str:
    """What `escape_id` was given."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)) if match[1] else " ", text)


def _lines(run: Run, tag: str) -> Iterator[str]:
    for query, scores in run.items():
        name = escape_id(query)
        for rank, document in enumerate(ranked(scores), start=1):
            yield f"{name} Q0 {escape_id(document)} {rank} {float(scores[document])!r} {tag}\n"
