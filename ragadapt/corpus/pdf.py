"""PDF into plain text, page by page."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from statistics import median_low
from typing import Any

from ragadapt.corpus.content import Content
from ragadapt.corpus.decode import Unreadable, tidy

_PAGES = 20_000  # a file may say that it has any number
_LOOKED_AT = 20  # objects of a page, to see whether it shows a picture
_FEWEST = 4  # pages that show what runs over them all
_EDGE = 3  # lines of a running head or foot at most
_LONGEST = 200  # characters of such a line
_COLUMN = 20  # points
_APART = 1.5  # line distances that set a head or foot apart from the text


def read_pdf(data: bytes) -> Content:
    """The text of all pages, with the place where each begins. Raises Unreadable with the reason."""
    try:
        import pypdf
    except ImportError as error:
        raise Unreadable("PDF needs an optional package: pip install 'ragadapt[pdf]'") from error
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):  # many files are locked with an empty password
            raise Unreadable("password-protected")
        pages, notes = _pages(reader)
        title = str((reader.metadata.title if reader.metadata else "") or "")
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # pypdf raises nearly anything on damaged files
        raise Unreadable(f"damaged PDF: {type(error).__name__}: {error}"[:200]) from error
    notes += _drop_running_heads(pages)
    texts = [tidy("\n".join(line.text for line in page)) for page in pages]
    words = set(re.findall(r"[^\W\d_]++(?:-[^\W\d_]++)*+", "\n\n".join(texts).lower()))
    places, parts, length = [], [], 0
    for number, text in enumerate(texts, 1):
        text = _join_hyphens(text, words)
        if text.strip():
            places.append((length, {"page": number}))
        parts.append(text)
        length += len(text) + 2
    if re.search(r"\.(?:docx?|tex|indd|pdf|pptx?)$|^untitled|^microsoft word|^\W*$", title, re.I):
        title = ""  # what the printing program left there
    return Content("\n\n".join(parts), title, {"pages": len(pages)}, tuple(notes), tuple(places))


@dataclass(slots=True)
class _Line:
    """A line of a page. x, y: where it begins, in points from the left and from the bottom; None = not known."""

    text: str
    x: float | None = None
    y: float | None = None
    size: float = 0


def _pages(reader: Any) -> tuple[list[list[_Line]], list[str]]:
    """The lines of every page, and what was left out."""
    pages: list[list[_Line]] = []
    read: set[Any] = set()
    again = pictures = 0
    notes = []
    for number, page in enumerate(reader.pages):
        if number == _PAGES:
            notes.append(f"only the first {_PAGES:,} pages are read")
            break
        keys = _keys_of(page)
        again += (seen := not read.isdisjoint(keys))
        read.update(keys)
        lines = [] if seen else _lines(page) + [_Line(text) for text in _filled_in(page)]
        pictures += not seen and not any(line.text.strip() for line in lines) and _shows_picture(page)
        pages.append(lines)
    if again:
        notes.append(f"{again:,} pages that are an earlier page again are left out")
    if pictures:
        notes.append(f"{pictures:,} pages are pictures without text: scanned ones need OCR first")
    return pages, notes


def _shows_picture(page: Any) -> bool:
    resources: Any = page.get("/Resources")
    drawn: Any = resources.get_object().get("/XObject") if resources is not None else None
    objects = list(drawn.get_object().values())[:_LOOKED_AT] if drawn is not None else []
    return any(each.get_object().get("/Subtype") in ("/Image", "/Form") for each in objects)


def _filled_in(page: Any) -> Iterator[str]:
    """What stands on a page beside its drawing: values of form fields, and text that was typed onto it."""
    annotations = page.get("/Annots")
    listed: Any = annotations.get_object() if annotations is not None else None
    for each in listed or ():
        each = each.get_object()
        if not hasattr(each, "get") or int(each.get("/F") or 0) & 2:  # hidden
            continue
        kind = each.get("/Subtype")
        value: Any = None
        if kind == "/Widget":
            parent: Any = each.get("/Parent")
            value = each.get("/V") or (parent.get_object().get("/V") if hasattr(parent, "get_object") else None)
        elif kind == "/FreeText":
            value = each.get("/Contents")
        value = value.get_object() if hasattr(value, "get_object") else value
        if isinstance(value, str) and not value.startswith("/"):  # a name such as /Yes is a state, not a text
            yield from filter(None, map(str.strip, str(value).splitlines()))


def _keys_of(page: Any) -> list[Any]:
    """What tells that two pages are one: the object itself, or what it draws with what."""
    keys: list[Any] = []
    if page.indirect_reference is not None:
        keys.append(page.indirect_reference.idnum)
    drawn, using = page.get("/Contents"), page.get("/Resources")
    if drawn is not None and page.get("/Annots") is None:
        raw, resources = page.raw_get("/Contents"), page.raw_get("/Resources") if "/Resources" in page else using
        keys.append((repr(raw), repr(resources)))
    return keys


def _lines(page: Any) -> list[_Line]:
    pieces: list[tuple[str, float, float, float]] = []

    def see(text: str, cm: Any, tm: Any, font: Any, size: Any) -> None:
        try:
            x = tm[4] * cm[0] + tm[5] * cm[2] + cm[4]
            y = tm[4] * cm[1] + tm[5] * cm[3] + cm[5]
            scale = abs(tm[3] * cm[3]) or 1.0
            pieces.append((text, float(x), float(y), float(size or 0) * float(scale)))
        except (TypeError, ValueError, IndexError, OverflowError):
            pieces.append((text, 0.0, 0.0, 0.0))

    text = page.extract_text(visitor_text=see) or ""
    lines = [_Line(line) for line in text.split("\n")]
    if "".join(piece[0] for piece in pieces) == text:  # else a line's place is not known
        at = 0
        for piece, x, y, size in pieces:
            for place, part in enumerate(piece.split("\n")):
                at += place > 0
                if part.strip() and lines[at].y is None:
                    lines[at].x, lines[at].y, lines[at].size = x, y, size
    return lines


# Running heads and feet ------------------------------------------------------------------------------------

_NUMBER = re.compile(r"\d+")
_COUNTED = re.compile(r"#[+-]\d+")  # stands in a key for a number that is so much more than the page's place
_PAGE_WORD = (
    r"(?:pages?|pg\.?|p\.|seite|s\.|página|pág\.?|pagina|pag\.?|blz\.?|sida|side|sivu|strona|str\.|stránka|oldal|sayfa|"
    r"страница|стр\.?|с\.|σελίδα|trang|halaman|folio|slide|sheet|第|ページ|頁|页)"
)
_OF = r"(?:\s*(?:/|of|von|sur|de|di|van|av|из|z|共)\s*\d+)?(?:\s*(?:頁|页|ページ))?"
_BARE = re.compile(rf"[\W_]*#{_OF}[\W_]*", re.I)
_SAID = re.compile(rf"(?:.*(?:[^\w\s]\s*|\s\s))?\(?{_PAGE_WORD}\s*#{_OF}\)?(?:\s*[^\w\s].*|\s\s.*)?", re.I)
_BESIDE = re.compile(
    rf"#(?:\s*[|•·–—:/]\s*|\s\s+|\t)\S.*|.*\S(?:\s*[|•·–—/]\s*|\s+-\s+|\s\s+|\t|\s{_PAGE_WORD}\s*)#{_OF}", re.I
)
_SENTENCE_END = tuple(".!?:;,。！？：；،؟")


def _drop_running_heads(pages: list[list[_Line]]) -> list[str]:
    """Take the heads and feet that run over the pages out of `pages`; what was taken, in words.

    A line is one if it stands at the edge of nearly all pages (or of nearly all left or right ones) in the same words,
    or in words that differ in the page's own number, and is *told apart from content*: the number alone or with a word
    for "page", or set apart from the text. What only happens to count with the pages ("Question 3") stays, and so does
    whatever would leave a page empty.
    """
    for page in pages:
        while page and not page[0].text.strip():
            page.pop(0)
        while page and not page[-1].text.strip():
            page.pop()
    taken: Counter[str] = Counter()
    for end in (0, -1):
        for _ in range(_EDGE):
            found = _running(pages, end)
            if not found:
                break
            for place, shown in found.items():
                pages[place].pop(end)
                while pages[place] and not pages[place][end].text.strip():
                    pages[place].pop(end)
                taken[shown] += 1
    return [f"running head or foot of {count} pages left out: {shown!r}"[:200] for shown, count in taken.items()]


def _running(pages: list[list[_Line]], end: int) -> dict[int, str]:
    """Page → the words of its first (end=0) or last (-1) line, where that line runs."""
    filled = [place for place, page in enumerate(pages) if page]
    for group in (filled, filled[::2], filled[1::2]):
        if len(group) < _FEWEST:
            continue
        keys: dict[str, list[int]] = {}
        for place in group:
            for key in _keys(pages[place][end].text, place):
                keys.setdefault(key, []).append(place)
        for key, places in sorted(keys.items(), key=lambda item: -len(item[1])):
            if len(places) < len(group) - max(1, len(group) // 5):
                break
            others = [p for p in places if len(pages[p]) > 1]
            if 2 * len(others) < len(places):
                continue  # it is what most of these pages say
            apart = 2 * sum(_is_apart(pages[p], end) for p in others) > len(others)
            column = 2 * sum(_is_in_column(pages[p], end) for p in others) > len(others)
            alone = 2 * sum(len(pages[p]) < 3 for p in others) > len(others)
            if _is_no_content(key, apart, column, alone) and (apart or group is filled):
                return dict.fromkeys(others, " ".join(_COUNTED.sub("N", key).split()))
    return {}


def _keys(text: str, page: int) -> Iterator[str]:
    """The line as it is, and with each number told by what it is more than the page's own: all that may run."""
    text = text.strip()
    if len(text) > _LONGEST:
        return
    yield text
    for match in list(_NUMBER.finditer(text))[:4]:
        if len(match[0]) < 6:
            yield f"{text[: match.start()]}#{int(match[0]) - page:+d}{text[match.end() :]}"


def _is_no_content(key: str, apart: bool, column: bool, alone: bool) -> bool:
    """Whether words that run over the pages are a head or foot rather than what the pages speak of.

    apart: they stand apart from the text. column: they begin where the text's lines do. alone: one other line is there.
    """
    words = _COUNTED.sub("#", key)
    if words == key:
        return apart or not (alone or key.endswith(_SENTENCE_END) or _NUMBER.search(key))
    if _BARE.fullmatch(words):
        return apart or not column
    return bool(_SAID.fullmatch(words) or (apart and _BESIDE.fullmatch(words)))


def _is_apart(page: list[_Line], end: int) -> bool:
    """Whether the first or last line stands further from the next than lines of the page do, in type no larger."""
    edge, beside = page[end], _beside(page, end)
    if beside is None or edge.y is None or beside.y is None:
        return False
    heights = [line.y for line in (page[1:] if end == 0 else page[:-1]) if line.y is not None]
    steps = [abs(a - b) for a, b in pairwise(heights) if abs(a - b) > 1]
    usual = median_low(steps) if steps else 0.0
    if len(steps) < 2:  # it may be the way down to the foot
        usual = min(usual or 1000, 2 * max(edge.size, beside.size))
    return abs(edge.y - beside.y) > _APART * usual and edge.size <= 1.05 * beside.size


def _is_in_column(page: list[_Line], end: int) -> bool:
    """Whether the first or last line begins where the next to it begins."""
    edge, beside = page[end], _beside(page, end)
    return beside is not None and edge.x is not None and beside.x is not None and abs(edge.x - beside.x) < _COLUMN


def _beside(page: list[_Line], end: int) -> _Line | None:
    return next((line for line in (page[1:] if end == 0 else page[-2::-1]) if line.text.strip()), None)


def _join_hyphens(text: str, words: set[str]) -> str:
    """Words cut at a line's end are joined; the hyphen stays where the text also writes the word with it."""

    def join(match: re.Match[str]) -> str:
        left, hyphen, right, end = match.groups()
        kept = "-" if hyphen != "\u00ad" and f"{left}-{right}".lower() in words else ""
        return f"{left}{kept}{right}{end}\n"

    return re.sub(
        r"(?<![^\W\d_])([^\W\d_]++)([-\u00ad\u2010])\n([a-zà-öø-ÿ][^\W\d_]*)([^\s\w-]*)(?![\w-])[ \t]*\n?", join, text
    )
