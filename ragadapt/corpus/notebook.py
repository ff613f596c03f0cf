"""Jupyter notebooks into Markdown."""

from __future__ import annotations

import json
import re

from ragadapt.corpus.content import Content
from ragadapt.corpus.decode import Unreadable, tidy
from ragadapt.corpus.markdown import read_markdown


def read_notebook(text: str) -> Content:
    """Markdown cells as they are, code cells fenced; outputs are left out, they repeat or are data."""
    try:
        book = json.loads(text)
        cells = book["cells"] if "cells" in book else [c for sheet in book["worksheets"] for c in sheet["cells"]]
        meta = book.get("metadata") or {}
        language = str(
            (meta.get("kernelspec") or {}).get("language") or meta.get("language_info", {}).get("name") or ""
        )
        parts = []
        for cell in cells:
            source = cell.get("source", cell.get("input", ""))
            source = ("".join(source) if isinstance(source, list) else str(source)).strip("\n")
            if not source.strip():
                continue
            if cell.get("cell_type") == "code":
                fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", source)), default=0))
                parts.append(f"{fence}{language or 'python'}\n{source}\n{fence}")
            elif cell.get("cell_type") == "heading":  # notebooks of format 3
                parts.append("#" * int(cell.get("level", 1)) + " " + source)
            else:
                parts.append(source)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unreadable(f"not a notebook: {type(error).__name__} while reading its cells") from error
    content = read_markdown(tidy("\n\n".join(parts)))
    return Content(content.text, str(meta.get("title") or "") or content.title, content.metadata)
