"""Jupyter notebooks into Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ragadapt.corpus.content import Content, json_value
from ragadapt.corpus.decode import Unreadable, tidy
from ragadapt.corpus.markdown import read_markdown


def read_notebook(text: str) -> Content:
    """Markdown cells as they are, code cells fenced; outputs are left out, they repeat or are data.

    Raises Unreadable where the file holds no cells.
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
    parts = [part for cell in read if (part := _part(cell, language))]
    content = read_markdown(tidy("\n\n".join(parts)))
    title = meta.get("title")
    title = json_value(title) if isinstance(title, str) else ""
    notes: tuple[str, ...] = ()
    if len(read) < len(cells):
        notes += (f"{len(cells) - len(read)} entries that are no cells",)
    if outputs := sum(bool(cell.get("outputs")) for cell in read):
        notes += (f"what {outputs:,} code cells printed or drew",)
    return replace(content, title=title.strip() or content.title, notes=notes + content.notes)


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


def _part(cell: Mapping[str, Any], language: str) -> str:
    """A cell as Markdown; "" where it holds no text."""
    source = cell.get("source", cell.get("input", ""))
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    if not isinstance(source, str) or not source.strip():
        return ""
    source = source.strip("\n")
    if cell.get("cell_type") == "code":
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", source)), default=0))
        return f"{fence}{language}\n{source}\n{fence}"
    if cell.get("cell_type") == "heading":  # notebooks of format 3
        level = cell.get("level")
        return "#" * (min(6, max(1, level)) if isinstance(level, int) else 1) + " " + source
    return source
