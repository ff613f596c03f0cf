"""Excel files into Markdown tables, sheet by sheet."""

from __future__ import annotations

import datetime
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ragadapt.corpus.content import Content
from ragadapt.corpus.decode import Unreadable, tidy
from ragadapt.corpus.office import Package, pipe_table

_ROWS, _CHARACTERS = 20, 800  # of a piece of a table, which has the head of the table again: a passage says its columns
_LONGEST_HEAD = 400  # characters; a longer one stands once
_LEFT_OUT = {"charts": r"charts/chart\d*\.xml$", "comments of sheets": r"(?i)comments?/?\w*\d*\.xml$"}
_UNSAVED = re.compile(rb"</(?:\w+:)?f>(?:<(?:\w+:)?v\s*/>|<(?:\w+:)?v></(?:\w+:)?v>)?</(?:\w+:)?c>")


def read_xlsx(data: bytes, max_bytes: int) -> Content:
    """Every sheet as tables under its name, with the values that were saved. Raises Unreadable with the reason."""
    try:
        import openpyxl
    except ImportError as error:
        raise Unreadable("Excel needs an optional package: pip install 'ragadapt[xlsx]'") from error
    parts: list[str] = []
    places: list[tuple[int, dict[str, Any]]] = []
    notes: list[str] = []
    length = 0
    try:
        package = Package(data, max_bytes, "Excel")
        unsaved = _unpacks(package)
        for what, pattern in _LEFT_OUT.items():
            if count := sum(bool(re.search(pattern, name)) for name in package.names()):
                notes.append(f"{what} are left out ({count})")
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
        for sheet in book.worksheets:
            name = " ".join(tidy(str(sheet.title)).split())
            if sheet.sheet_state != "visible":
                notes.append(f"sheet {name!r} is hidden, and read all the same")
            sheet.reset_dimensions()  # what the file says of its size need not hold
            for place, (rows, text) in enumerate(_tables(sheet.iter_rows())):
                text = tidy(f"# {name}\n\n{text}" if place == 0 else text)
                places.append((length, {"sheet": name, "row": rows[0]}))
                lines = text.split("\n")
                at = length + len(text) + 1
                of_rows = []
                for row, line in zip(reversed(rows), reversed(lines), strict=False):
                    at -= len(line) + 1
                    of_rows.append((at, {"sheet": name, "row": row}))
                places += [found for found in reversed(of_rows) if found[0] > length]
                parts.append(text)
                length += len(text) + 2
                if length > max_bytes:
                    raise Unreadable(f"over-size: more than {max_bytes:,} characters of text")
        title = str(book.properties.title or "")
        sheets = len(book.sheetnames)
        book.close()
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # openpyxl lets through whatever zip, XML and missing parts raise
        raise Unreadable(f"damaged Excel file: {type(error).__name__}: {error}"[:200]) from error
    if unsaved:
        notes.append(f"{unsaved:,} formulas without a saved value are left out; a spreadsheet program saves them")
    if unsaved and not parts:
        raise Unreadable("formulas without saved values alone: open it in a spreadsheet program and save it")
    return Content("\n\n".join(parts), title, {"sheets": sheets}, tuple(notes), tuple(places))


def _unpacks(package: Package) -> int:
    """Unpack everything once, bit by bit, to know that the budget holds it; how many formulas have no saved value."""
    unsaved = 0
    for name in package.names():
        if not name.lower().endswith((".xml", ".rels")):
            continue
        tail = b""
        for piece in package.stream(name):
            if "worksheets/" in name:
                piece = tail + piece
                found = list(_UNSAVED.finditer(piece))
                unsaved += len(found)
                tail = piece[max(found[-1].end() if found else 0, len(piece) - 100) :]
    return unsaved


def _tables(rows: Iterable[Iterable[Any]]) -> Iterator[tuple[list[int], str]]:
    """(numbers of its rows, Markdown) of each piece of a sheet. Empty rows part tables; long tables are cut.

    The rows are the last lines of the Markdown, one each; a head that it has again or first has no number there.
    """
    head: list[str] | None = None
    piece: list[list[str]] = []
    numbers: list[int] = []
    size = 0
    for number, cells in enumerate(rows, 1):
        values = [_shown(cell) for cell in cells]
        while values and not values[-1]:
            values.pop()
        if not values or (len(piece) - (head is not None) >= _ROWS) or size > _CHARACTERS:
            if piece:
                yield numbers, _markdown(piece, head)
            piece, numbers, size = [], [], 0
            if not values:
                head = None
                continue
            if head is not None and sum(map(len, head)) <= _LONGEST_HEAD:
                piece = [head]
            else:
                head = None if head is None else []
        if head is None and sum(map(bool, values)) > 1:
            if piece:  # lines over a table
                yield numbers, _markdown(piece, None)
                piece, numbers, size = [], [], 0
            head = values
        piece.append(values)
        numbers.append(number)
        size += sum(map(len, values))
    if piece:
        yield numbers, _markdown(piece, head)


def _markdown(rows: list[list[str]], head: list[str] | None) -> str:
    if head is None:
        return "\n".join(next(filter(None, row)) for row in rows)
    used = sorted({place for row in rows for place, value in enumerate(row) if value})
    return pipe_table([[row[place] if place < len(row) else "" for place in used] for row in rows])


def _shown(cell: Any) -> str:
    """The value of a cell as text: dates in ISO form, shares in per cent where the sheet shows them so."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ")
    if isinstance(value, int | float):
        if "%" in str(cell.number_format or ""):
            return f"{value * 100:.10g}%"
        return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.15g}"
    return " ".join(str(value).split())
