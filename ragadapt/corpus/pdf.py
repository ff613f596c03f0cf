"""PDF into plain text."""

from __future__ import annotations

import io
import re
from collections import Counter

from ragadapt.corpus.content import Content
from ragadapt.corpus.decode import Unreadable, tidy


def read_pdf(data: bytes) -> Content:
    """The text of all pages. Raises Unreadable with the reason."""
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
