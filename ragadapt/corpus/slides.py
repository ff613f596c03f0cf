"""PowerPoint files into Markdown, slide by slide."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ragadapt.corpus.content import Content
from ragadapt.corpus.decode import Unreadable, tidy
from ragadapt.corpus.office import (
    Element,
    Package,
    attribute,
    child,
    first_of,
    graphic_text,
    local,
    pipe_table,
    whole_number,
)

_TITLES = ("title", "ctrTitle")
_SMALL_PRINT = ("dt", "ftr", "sldNum", "hdr")  # date, foot and number, which run over the slides


def read_pptx(data: bytes, max_bytes: int) -> Content:
    """Every slide under its title, with its tables, charts, diagrams and speaker notes. Raises Unreadable."""
    try:
        package = Package(data, max_bytes, "PowerPoint")
        main = package.main()
        related = package.related(main)
        slides = [
            related.pop(id)[1]  # the same slide twice is read once
            for each in child(package.xml(main), "sldIdLst") or ()
            if (id := _relation(each)) in related
        ]
        texts: list[str] = []
        left_out: set[str] = set()
        hidden = 0
        for slide in slides:
            root = package.xml(slide)
            if root is None:
                texts.append("")
                continue
            hidden += attribute(root, "show") in ("0", "false")
            texts.append(_Slide(package, slide, left_out).text(root))
        title = package.title()
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # whatever zip, XML and missing parts raise
        raise Unreadable(f"damaged PowerPoint file: {type(error).__name__}: {error}"[:200]) from error
    parts: list[str] = []
    places: list[tuple[int, dict[str, Any]]] = []
    length = 0
    for number, text in enumerate(map(tidy, texts), 1):
        if text.strip():
            places.append((length, {"slide": number}))
            parts.append(text)
            length += len(text) + 2
    notes = [f"dates and feet of slides left out: {' / '.join(sorted(left_out))!r}"[:300]] if left_out else []
    if hidden:
        notes.append(f"{hidden} hidden slides are read too")
    title = "" if title.strip().lower() in ("powerpoint presentation", "untitled") else title
    if not title.strip() and parts and parts[0].startswith("# "):
        title = parts[0].split("\n", 1)[0][2:]
    return Content("\n\n".join(parts), title, {"slides": len(slides)}, tuple(notes), tuple(places))


def _relation(element: Element) -> str:
    """The id of the part that an element points to; it has an `id` of its own besides."""
    return next((str(v) for k, v in element.attrib.items() if k.startswith("{") and k.endswith("}id")), "")


class _Slide:
    def __init__(self, package: Package, part: str, left_out: set[str]) -> None:
        self.package = package
        self.related = package.related(part)
        self.left_out = left_out
        self.heading = ""

    def text(self, root: Element) -> str:
        """The slide as Markdown: its title as a heading, wherever it stands among the shapes."""
        blocks = list(self._shapes(child(root, "cSld", "spTree")))
        notes = first_of(self.related, "notesSlide")
        page = self.package.xml(notes) if notes else None
        if page is not None:
            spoken = [
                text
                for shape in child(page, "cSld", "spTree") or ()
                if local(shape) == "sp"
                and _placeholder(shape) == "body"
                and (text := _paragraphs(child(shape, "txBody")))
            ]
            blocks += [f"Notes: {text}" for text in spoken]
        heading = [f"# {self.heading}"] if self.heading else []
        return "\n\n".join(heading + blocks)

    def _shapes(self, tree: Element | None) -> Iterator[str]:
        for shape in tree if tree is not None else ():
            name = local(shape)
            if name in ("sp", "cxnSp"):
                kind = _placeholder(shape)
                text = _paragraphs(child(shape, "txBody"))
                if not text:
                    continue
                if kind in _TITLES and not self.heading:
                    self.heading = " ".join(text.split())
                elif kind in _SMALL_PRINT:
                    if kind != "sldNum":
                        self.left_out.add(" ".join(text.split()))
                else:
                    yield text
            elif name == "grpSp":
                yield from self._shapes(shape)
            elif name == "graphicFrame":
                graphic = child(shape, "graphic", "graphicData")
                table = child(graphic, "tbl")
                if table is not None:
                    if text := _table(table):
                        yield text
                elif graphic is not None and (found := graphic_text(self.package, self.related, graphic)):
                    yield "\n".join(found)
            elif name == "AlternateContent":
                yield from next(filter(None, (list(self._shapes(choice)) for choice in shape)), [])


def _placeholder(shape: Element) -> str:
    """What a shape holds a place for, such as "title"; "" for a shape of the slide's own, "obj" for plain content."""
    mark = next((child(e, "nvPr", "ph") for e in shape if local(e).startswith("nv")), None)
    return "" if mark is None else attribute(mark, "type") or "obj"


def _paragraphs(body: Element | None) -> str:
    """The lines of a text frame; deeper levels are indented as lists."""
    lines = []
    for paragraph in body if body is not None else ():
        if local(paragraph) != "p":
            continue
        text = "".join(_runs(paragraph)).strip()
        if text:
            level = whole_number(attribute(child(paragraph, "pPr"), "lvl"))
            lines.append("  " * (min(max(level, 0), 8) - 1) + "- " + text if level > 0 else text)
    return "\n".join(lines)


def _runs(parent: Element) -> Iterator[str]:
    for run in parent:
        name = local(run)
        if name == "br":
            yield "\n"
        elif name == "t":
            yield run.text or ""
        elif name in ("r", "fld", "m", "AlternateContent", "Choice", "oMathPara", "oMath"):
            yield from _runs(run)


def _table(table: Element) -> str:
    rows = []
    for row in table:
        if local(row) == "tr":
            # a merged cell's other places are cells of their own, which are marked and not shown
            hidden = ("hMerge", "vMerge")
            rows.append(
                [
                    ""
                    if any(attribute(cell, m) in ("1", "true") for m in hidden)
                    else _paragraphs(child(cell, "txBody"))
                    for cell in row
                    if local(cell) == "tc"
                ]
            )
    return pipe_table(rows) if any(any(row) for row in rows) else ""
