"""Jupyter notebooks into Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ragadapt.corpus.content import Content, first_heading, json_value
from ragadapt.corpus.decode import Unreadable, tidy
from ragadapt.corpus.includes import without_attributes
from ragadapt.corpus.markdown import read_markdown


def read_notebook(text: str) -> Content:
    """Markdown cells as they are, code cells fenced; outputs are left out, they repeat or are data.

    places: each cell's number among all cells, from 1, in the order in which Jupyter shows them. Raises Unreadable
    where the file holds no cells.
    """
    try:
        book = json.loads(text)
        cells = list(_cells(book))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Unreadable(f"not a notebook: {type(error).__name__} while reading its cells") from error
    meta = _mapping(book.get("metadata"))
    named = _mapping(meta.get("kernelspec")).get("language") or _mapping(meta.get("language_info")).get("name")
    language = named if isinstance(named, str) and re.fullmatch(r"[\w+#. -]{1,40}", named) else "python"
    read = [cell for cell in cells if isinstance(cell, Mapping)]
    content = _joined((n, part) for n, cell in enumerate(cells, 1) if (part := _part(cell, language)))
    title = meta.get("title")
    title = json_value(title) if isinstance(title, str) else ""
    notes: tuple[str, ...] = ()
    if len(read) < len(cells):
        notes += (f"{len(cells) - len(read)} entries that are no cells",)
    if outputs := sum(bool(cell.get("outputs")) for cell in read):
        notes += (f"what {outputs:,} code cells printed or drew",)
    return replace(content, title=title.strip() or content.title or first_heading(content.text), notes=notes)


def _joined(parts: Iterable[tuple[int, str]]) -> Content:
    """The Markdown of numbered cells, one after the other. Each is read by itself, as Jupyter shows it."""
    first = Content("")
    texts: list[str] = []
    places: list[tuple[int, dict[str, int]]] = []
    anchors: dict[str, int] = {}
    length = 0
    for place, (number, part) in enumerate(parts):
        if place == 0:  # front matter opens a file, and nothing else
            first = read_markdown(part)
            text, found = first.text, first.anchors
        else:
            text, found = without_attributes(part)
        for anchor, at in found.items():
            anchors.setdefault(anchor, length + at)
        if text.strip():
            texts.append(text)
            places.append((length, {"cell": number}))
            length += len(text) + 2
    most = max(0, length - 3)  # what names a cell without text names the one after it, or the end
    return replace(
        first,
        text="\n\n".join(texts),
        places=tuple(places),
        anchors={anchor: min(at, most) for anchor, at in anchors.items()},
    )


def _cells(book: Any) -> Iterator[Any]:
    """The cells in order; notebooks of format 3 keep them in worksheets."""
    if "cells" in book:
        yield from _list(book["cells"])
    else:
        for sheet in _list(book["worksheets"]):
            yield from _list(sheet["cells"])


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(type(value).__name__)
    return value


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _part(cell: Any, language: str) -> str:
    """A cell as Markdown; "" where it holds no text."""
    if not isinstance(cell, Mapping):
        return ""
    source = cell.get("source", cell.get("input", ""))
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    if not isinstance(source, str) or not source.strip():
        return ""
    source = tidy(source).strip("\n")
    if cell.get("cell_type") == "code":
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", source)), default=0))
        return f"{fence}{language}\n{source}\n{fence}"
    if cell.get("cell_type") == "heading":  # notebooks of format 3
        level = cell.get("level")
        return "#" * (min(6, max(1, level)) if isinstance(level, int) else 1) + " " + source
    return source
