"""One file into its text and title, by the reader of its format."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePosixPath

from ragadapt.corpus.content import Content, first_heading
from ragadapt.corpus.decode import Unreadable, decode
from ragadapt.corpus.formats import Format
from ragadapt.corpus.html import html_to_markdown
from ragadapt.corpus.json_file import read_json
from ragadapt.corpus.markdown import read_markdown
from ragadapt.corpus.notebook import read_notebook
from ragadapt.corpus.pdf import read_pdf
from ragadapt.corpus.sheets import read_xlsx
from ragadapt.corpus.slides import read_pptx
from ragadapt.corpus.word import read_docx


def read_content(
    data: bytes,
    format: Format,
    name: str,
    encoding: str | None,
    max_bytes: int,
    *,
    text_field: str | None = None,
    asked: bool = False,
) -> Content:
    """The text of one file, titled by itself or by its name. Raises Unreadable with the reason.

    text_field, asked: see read_json.
    """
    if format == "pdf":
        content = read_pdf(data)
    elif format == "docx":
        content = read_docx(data, max_bytes)
    elif format == "pptx":
        content = read_pptx(data, max_bytes)
    elif format == "xlsx":
        content = read_xlsx(data, max_bytes)
    elif format == "html":
        content = Content(*html_to_markdown(data, encoding))
    else:
        text = decode(data, encoding)
        if format == "markdown":
            content = read_markdown(text)
        elif format == "json":
            content = read_json(text, text_field, asked)
        elif format == "notebook":
            content = read_notebook(text)
        elif format == "rst":
            content = Content(text, first_heading(text, rst=True))
        else:
            content = Content(text, name if format in ("python", "code") else "")
    if not content.text.strip():
        raise Unreadable("no text in it (a scanned PDF needs OCR first)" if format == "pdf" else "empty")
    title = " ".join(content.title.split())
    if len(content.text) > max_bytes:
        raise Unreadable(f"over-size: {len(content.text):,} characters of text, the limit is {max_bytes:,}")
    return replace(content, title=title or readable_name(name))


def readable_name(name: str) -> str:
    """A title from a path: the stem with its separators as spaces; an index page is called like its folder."""
    path = PurePosixPath(name)
    stem = path.stem
    if stem.lower() in ("_index", "index", "readme") and path.parent.name:
        stem = path.parent.name
    return re.sub(r"[\s_-]+", " ", stem).strip() or name
