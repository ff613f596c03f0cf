"""Word files into Markdown."""

from __future__ import annotations

import io
import re
import zipfile

from ragadapt.corpus.content import Content, first_heading
from ragadapt.corpus.decode import Unreadable, tidy
from ragadapt.corpus.structure import plain_inline

_UNPACKED_FACTOR = 20  # a Word file that unpacks to more than this many times its limit is a bomb, not a document


def read_docx(data: bytes, max_bytes: int) -> Content:
    """The text of a Word file. Raises Unreadable with the reason."""
    try:
        import docx
        from docx.table import Table
    except ImportError as error:
        raise Unreadable("Word needs an optional package: pip install 'ragadapt[docx]'") from error
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise Unreadable("password-protected, or Word's format from before 2007: save it again as .docx")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(item.file_size for item in archive.infolist() if item.filename.endswith((".xml", ".rels")))
        if unpacked > _UNPACKED_FACTOR * max_bytes:
            raise Unreadable(f"over-size: {unpacked:,} bytes when unpacked")
        file = docx.Document(io.BytesIO(data))
        parts: list[str] = []
        for item in file.iter_inner_content():
            if isinstance(item, Table):
                parts.append(_pipe_table([[cell.text for cell in row.cells] for row in item.rows]))
                continue
            text = " ".join(item.text.split()) if "\n" not in item.text else item.text.strip()
            style = (item.style.name or "" if item.style is not None else "").lower()
            level = re.match(r"heading (\d)", style)
            if not text:
                continue
            if level or style == "title":
                parts.append("#" * min(6, int(level[1])) + " " + " ".join(text.split()) if level else "# " + text)
            elif style.startswith("list"):
                parts.append(("1. " if "number" in style else "- ") + text)
            else:
                parts.append(text)
        title = str(file.core_properties.title or "")
    except Unreadable:
        raise
    except Exception as error:  # python-docx lets through whatever zip, XML and missing parts raise
        raise Unreadable(f"damaged Word file: {type(error).__name__}: {error}"[:200]) from error
    text = re.sub(r"(?m)^((?:-|1\.) .*)\n\n(?=(?:-|1\.) )", r"\1\n", tidy("\n\n".join(p for p in parts if p)))
    title = "" if title.lower() in ("word document", "untitled") else title
    return Content(text, title or first_heading(text))


def _pipe_table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its head."""
    cells = [[plain_inline(" ".join(cell.split())).replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    if lines:
        lines.insert(1, "|" + " --- |" * len(cells[0]))
    return "\n".join(lines)
