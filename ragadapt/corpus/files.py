"""One file into its text and title, by the reader of its format."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePosixPath

from ragadapt.corpus.content import Content, first_heading
from ragadapt.corpus.decode import Unreadable, decode
from ragadapt.corpus.eml import read_eml
from ragadapt.corpus.epub import read_epub
from ragadapt.corpus.formats import Format
from ragadapt.corpus.html import read_html
from ragadapt.corpus.markdown import read_markdown
from ragadapt.corpus.notebook import read_notebook
from ragadapt.corpus.pdf import read_pdf
from ragadapt.corpus.word import read_docx


def read_content(data: bytes, format: Format, name: str, encoding: str | None, max_bytes: int) -> Content:
    """The text of one file, titled by itself or by its name. Raises Unreadable with the reason."""
    if format == "pdf":
        content = read_pdf(data)
    elif format == "docx":
        content = read_docx(data, max_bytes)
    elif format == "epub":
        content = read_epub(data, max_bytes)
    elif format == "eml":
        content = read_eml(data)
    elif format == "html":
        content = read_html(data, encoding)
    else:
        text = decode(data, encoding)
        if format == "markdown":
            content = read_markdown(text)
        elif format == "notebook":
            content = read_notebook(text)
        elif format == "rst":
            content = Content(text, first_heading(text, rst=True))
        else:
            content = Content(text, name if format in ("python", "code") else "")
    if not content.text.strip():
        raise Unreadable("no text in it (a scanned PDF needs OCR first)" if format == "pdf" else "empty")
    title = " ".join(content.title.split())
    return replace(content, title=title or readable_name(name))


def readable_name(name: str) -> str:
    """A title from a path: the stem with its separators as spaces; an index page is called like its folder."""
    path = PurePosixPath(name)
    stem = path.stem
    if stem.lower() in ("_index", "index", "readme") and path.parent.name:
        stem = path.parent.name
    return re.sub(r"[\s_-]+", " ", stem).strip() or name
