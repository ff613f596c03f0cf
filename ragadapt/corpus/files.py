"""One file into its text and title, by the reader of its format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ragadapt.corpus.content import Content, first_heading, with_short_title
from ragadapt.corpus.decode import Unreadable, decode
from ragadapt.corpus.formats import Format


def read_content(
    data: bytes,
    format: Format,
    name: str,
    encoding: str | None,
    max_bytes: int,
    *,
    path: str = "",
    roots: Sequence[str] = (),
    text_field: str | None = None,
    asked: bool = False,
) -> Content:
    """The text of one file, titled by itself or by its name. Raises Unreadable with the reason.

    path: where it lies, "" = nowhere; roots: the folders in which the files that it includes are looked for.
    text_field, asked: see read_json.
    """
    content = _read(data, format, name, encoding, max_bytes, path, roots, text_field, asked)
    if not content.text.strip():
        why = "no text in it (a scanned PDF needs OCR first)" if format == "pdf" else "empty"
        raise Unreadable("; ".join((why, *content.notes)))
    if len(content.text) > max_bytes:
        raise Unreadable(f"over-size: {len(content.text):,} characters of text, the limit is {max_bytes:,}")
    if content.rows:
        return content
    text, title = with_short_title(content.text, " ".join(content.title.split()))
    moved = len(text) - len(content.text)
    anchors = {anchor: place + moved for anchor, place in content.anchors.items()}
    places = tuple((start + moved, values) for start, values in content.places)
    return replace(content, text=text, title=title or readable_name(name), anchors=anchors, places=places)


def _read(
    data: bytes,
    format: Format,
    name: str,
    encoding: str | None,
    max_bytes: int,
    path: str,
    roots: Sequence[str],
    text_field: str | None,
    asked: bool,
) -> Content:
    """The reader's content. Each is loaded when it is needed: with the libraries of all, a process starts slowly."""
    if format == "pdf":
        from ragadapt.corpus.pdf import read_pdf

        return read_pdf(data)
    if format == "docx":
        from ragadapt.corpus.word import read_docx

        return read_docx(data, max_bytes)
    if format == "pptx":
        from ragadapt.corpus.slides import read_pptx

        return read_pptx(data, max_bytes)
    if format == "xlsx":
        from ragadapt.corpus.sheets import read_xlsx

        return read_xlsx(data, max_bytes)
    if format == "epub":
        from ragadapt.corpus.epub import read_epub

        return read_epub(data, max_bytes)
    if format == "eml":
        from ragadapt.corpus.eml import read_eml

        return read_eml(data)
    if format == "html":
        from ragadapt.corpus.html import read_html

        return read_html(data, encoding)
    text = decode(data, encoding)
    if format == "json":
        from ragadapt.corpus.json_file import read_json

        return read_json(text, name, text_field, asked)
    if format == "notebook":
        from ragadapt.corpus.notebook import read_notebook

        return read_notebook(text)
    if format in ("markdown", "rst"):
        from ragadapt.corpus.grids import with_plain_tables
        from ragadapt.corpus.includes import Home, expand_includes
        from ragadapt.corpus.markdown import read_markdown

        home = Home(Path(path), tuple(map(Path, roots)), encoding, max_bytes) if path else None
        if format == "markdown":
            return read_markdown(text, home)
        text, notes = expand_includes(text, home, rst=True) if home is not None else (text, ())
        text = with_plain_tables(text)
        return Content(text, first_heading(text, rst=True), notes=notes)
    return Content(text, name if format in ("python", "code") else "")


def readable_name(name: str) -> str:
    """A title from a path: the stem with its separators as spaces; an index page is called like its folder."""
    path = PurePosixPath(name)
    stem = path.stem
    if stem.lower() in ("_index", "index", "readme") and path.parent.name:
        stem = path.parent.name
    return re.sub(r"[\s_-]+", " ", stem).strip() or name
