"""One file into its text and title: Markdown, reStructuredText, plain text, notebooks, PDF, Word, source code."""

from __future__ import annotations

import datetime
import io
import json
import re
import tomllib
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import yaml

from ragadapt.corpus.decode import Unreadable, decode, encodable, tidy
from ragadapt.corpus.formats import Format
from ragadapt.corpus.html import html_to_markdown
from ragadapt.corpus.structure import markdown_sections, plain_inline, rst_sections

_UNPACKED_FACTOR = 20  # a Word file that unpacks to more than this many times its limit is a bomb, not a document


@dataclass(frozen=True, slots=True)
class Content:
    """What a reader found. title: "" where the file does not say."""

    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_content(data: bytes, format: Format, name: str, encoding: str | None, max_bytes: int) -> Content:
    """The text of one file, titled by itself or by its name. Raises Unreadable with the reason."""
    if format == "pdf":
        content = _pdf(data)
    elif format == "docx":
        content = _docx(data, max_bytes)
    elif format == "html":
        content = Content(*html_to_markdown(data, encoding))
    else:
        text = decode(data, encoding)
        if format == "markdown":
            content = _markdown(text)
        elif format == "notebook":
            content = _notebook(text)
        elif format == "rst":
            content = Content(text, _first_heading(text, rst=True))
        else:
            content = Content(text, name if format in ("python", "code") else "")
    if not content.text.strip():
        raise Unreadable("no text in it (a scanned PDF needs OCR first)" if format == "pdf" else "empty")
    title = " ".join(content.title.split())
    return Content(content.text, title or readable_name(name), content.metadata)


def readable_name(name: str) -> str:
    """A title from a path: the stem with its separators as spaces; an index page is called like its folder."""
    path = PurePosixPath(name)
    stem = path.stem
    if stem.lower() in ("_index", "index", "readme") and path.parent.name:
        stem = path.parent.name
    return re.sub(r"[\s_-]+", " ", stem).strip() or name


def json_value(value: Any) -> Any:
    """The value as JSON can hold it: dates in ISO form, sets and tuples as lists, anything else as text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, datetime.date | datetime.datetime | datetime.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((json_value(item) for item in value), key=str)
    if hasattr(value, "tolist") and callable(value.tolist):  # numpy scalars and arrays
        return json_value(value.tolist())
    return str(value)


_FRONT_MATTER = re.compile(
    r"\A(?:---[ \t]*\n(.*?)^(?:---|\.\.\.)|\+\+\+[ \t]*\n(.*?)^\+\+\+)[ \t]*(?:\n|\Z)", re.S | re.M
)


def _markdown(text: str) -> Content:
    """Front matter becomes title and metadata; the rest stays as it is."""
    front: dict[str, Any] = {}
    match = _FRONT_MATTER.match(text)
    if match:
        values = _front_values(match)
        if values is not None:
            front, text = values, text[match.end() :]
    title = front.pop("title", None)
    title = str(title) if isinstance(title, str | int | float) else ""
    metadata = {str(key): json_value(value) for key, value in front.items() if value not in (None, "", [], {})}
    return Content(text, title.strip() or _first_heading(text), metadata)


def _front_values(match: re.Match[str]) -> dict[str, Any] | None:
    """The values between the marks; None where this is no front matter but a rule above ordinary text."""
    try:
        values = yaml.safe_load(match[1]) if match[1] is not None else tomllib.loads(match[2])
    except (yaml.YAMLError, tomllib.TOMLDecodeError, ValueError, RecursionError):
        # malformed front matter is common (an unquoted colon): take the lines that read as key: value
        values = dict(re.findall(r"^(\w+):[ \t]*[\"']?(.*?)[\"']?[ \t]*$", match[1] or "", re.M)) or None
    if values is None and not (match[1] or match[2] or "").strip():
        return {}
    return values if isinstance(values, dict) else None


def _first_heading(text: str, *, rst: bool = False) -> str:
    sections = (rst_sections if rst else markdown_sections)(text[:20_000])
    headed = [s for s in sections if s.heading]
    return headed[0].heading if headed and headed[0].level == 1 else ""


def _notebook(text: str) -> Content:
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
    content = _markdown(tidy("\n\n".join(parts)))
    return Content(content.text, str(meta.get("title") or "") or content.title, content.metadata)


def _pdf(data: bytes) -> Content:
    try:
        import pypdf
    except ImportError as error:
        raise Unreadable("PDF needs an optional package: pip install 'ragadapt[pdf]'") from error
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):  # many files are locked with an empty password
            raise Unreadable("password-protected")
        pages = [page.extract_text() or "" for page in reader.pages]
        title = str((reader.metadata.title if reader.metadata else "") or "")
    except Unreadable:
        raise
    except Exception as error:  # pypdf raises nearly anything on damaged files
        raise Unreadable(f"damaged PDF: {type(error).__name__}: {error}"[:200]) from error
    text = tidy("\n\n".join(_without_running_heads(pages)))
    if re.search(r"\.(?:docx?|tex|indd|pdf|pptx?)$|^untitled|^microsoft word|^\W*$", title, re.I):
        title = ""  # what the printing program left there
    return Content(_join_hyphens(text), title, {"pages": len(pages)})


def _without_running_heads(pages: list[str]) -> list[str]:
    """Pages less the first and last lines that repeat, page numbers aside, on more than half of them."""
    if len(pages) < 4:
        return pages
    lines = [page.strip("\n").split("\n") for page in pages]

    def key(line: str) -> str:
        return re.sub(r"\d+", "0", line).strip()

    edges = Counter(key(edge) for page in lines for edge in {page[0], page[-1]} if key(edge))
    running = {edge for edge, n in edges.items() if n > len(pages) / 2}
    for page in lines:
        while page and key(page[0]) in running:
            page.pop(0)
        while page and key(page[-1]) in running:
            page.pop()
    return ["\n".join(page) for page in lines]


def _join_hyphens(text: str) -> str:
    """Words cut at a line's end are joined; the hyphen stays where the text also writes the word with it."""
    words = set(re.findall(r"[^\W\d_]++(?:-[^\W\d_]++)*+", text.lower()))

    def join(match: re.Match[str]) -> str:
        left, right, end = match.groups()
        return f"{left}{'-' if f'{left}-{right}'.lower() in words else ''}{right}{end}\n"

    return re.sub(r"(?<![^\W\d_])([^\W\d_]++)-\n([a-zà-öø-ÿ][^\W\d_]*)([^\s\w-]*)(?![\w-])[ \t]*\n?", join, text)


def _docx(data: bytes, max_bytes: int) -> Content:
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
    return Content(text, title or _first_heading(text))


def _pipe_table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its head."""
    cells = [[plain_inline(" ".join(cell.split())).replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    if lines:
        lines.insert(1, "|" + " --- |" * len(cells[0]))
    return "\n".join(lines)
