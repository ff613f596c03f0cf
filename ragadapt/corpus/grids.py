"""Tables that are drawn with rules in reStructuredText, as rows with bars, as every other reader gives them.

A ruled line costs an encoder a token for every dash: a table of five rows would not fit into a passage with its head.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

_GRID = re.compile(r"\+(?:[-=]+\+)+")
_SIMPLE = re.compile(r"=+(?: +=+)+")
_LONGEST = 300  # lines of a simple table; how far its other rules are looked for
_LITERAL = re.compile(r"\.\. (?:code|code-block|sourcecode|parsed-literal)::|(?!\.\. ).*::$")


def with_plain_tables(text: str) -> str:
    """The text with its grid and simple tables as lines "| a | b |", the head above "| --- | --- |".

    The lines of a cell are joined. What is drawn unevenly, has merged cells or stands in a literal block stays.
    """
    lines = text.split("\n")
    found: list[str] = []
    place = 0
    literal: int | None = None  # the indentation of what opened the literal block that we are in
    while place < len(lines):
        bare = lines[place].strip()
        indent = len(lines[place]) - len(lines[place].lstrip())
        if bare and literal is not None and indent <= literal:
            literal = None
        end = place + 1
        if literal is None and bare.startswith(("+", "=")):
            end = _end(lines, place, indent, bare)
            rows = (_grid_rows if bare[0] == "+" else _simple_rows)(
                [line.rstrip()[indent:] for line in lines[place:end]]
            )
            if rows:
                found.extend(" " * indent + row for row in rows)
                place = end
                continue
        elif literal is None and _LITERAL.match(bare):
            literal = indent
        found.extend(lines[place:end])
        place = end
    return "\n".join(found)


def _end(lines: Sequence[str], place: int, indent: int, rule: str) -> int:
    """Behind the table that a rule at this place opens; behind the line itself where it opens none."""
    end = place + 1
    if _GRID.fullmatch(rule):
        while end < len(lines) and not lines[end][:indent].strip() and lines[end][indent : indent + 1] in ("+", "|"):
            end += 1
    elif _SIMPLE.fullmatch(rule):
        rules = [place]
        last = min(len(lines), place + _LONGEST)
        while end < last and len(rules) < 3 and not lines[end][:indent].strip():
            if lines[end].strip() == rule:
                rules.append(end)
                if end + 1 == len(lines) or not lines[end + 1].strip():  # no head, or the end
                    break
            end += 1
        return rules[-1] + 1
    return end


def _grid_rows(drawn: Sequence[str]) -> list[str]:
    """The table's rows as lines; none where it is no even grid."""
    if len(drawn) < 3 or not _GRID.fullmatch(drawn[0]) or not _GRID.fullmatch(drawn[-1]):
        return []
    bars = [place for place, mark in enumerate(drawn[0]) if mark == "+"]
    rows: list[str] = []
    cells = [""] * (len(bars) - 1)
    for line in drawn[1:]:
        if len(line) != len(drawn[0]) or any(line[place] != line[0] for place in bars):
            return []
        if line[0] == "+":
            if not _GRID.fullmatch(line) or line.count("+") != len(bars):
                return []
            rows.append(_row(cells))
            if "=" in line:
                rows.append(_row(["---"] * len(cells)))
            cells = [""] * len(cells)
        else:
            cells = [_joined(cell, line[a + 1 : b]) for cell, (a, b) in zip(cells, pairwise(bars), strict=True)]
    return rows


def _simple_rows(drawn: Sequence[str]) -> list[str]:
    """The same for a table between lines of "=": a line whose first column is blank goes on with the row above."""
    if len(drawn) < 3 or not _SIMPLE.fullmatch(drawn[0]) or drawn[-1] != drawn[0]:
        return []
    starts = [mark.start() for mark in re.finditer("=+", drawn[0])]
    gaps = [(mark.start(), mark.end()) for mark in re.finditer(" +", drawn[0])]
    table: list[list[str]] = []
    rows: list[str] = []
    for number, line in enumerate(drawn[1:], 1):
        if line == drawn[0]:
            rows.extend(map(_row, table))
            if number < len(drawn) - 1:
                rows.append(_row(["---"] * len(starts)))
            table = []
            continue
        if not line:
            continue
        if any(line[a:b].strip() for a, b in gaps) or re.fullmatch(r"-[- ]*-", line):
            return []  # merged cells
        cells = [line[a:b].strip() for a, b in pairwise([*starts, len(line) + starts[-1]])]
        if cells[0] or not table:
            table.append(cells)
        else:
            table[-1] = [_joined(cell, more) for cell, more in zip(table[-1], cells, strict=True)]
    return rows


def _joined(cell: str, more: str) -> str:
    return f"{cell} {more.strip()}".strip()


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
