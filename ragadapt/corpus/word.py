"""Word files into Markdown."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ragadapt.corpus.content import Content, first_heading
from ragadapt.corpus.decode import Unreadable, tidy
from ragadapt.corpus.office import (
    Element,
    Package,
    attribute,
    child,
    first_of,
    graphic_text,
    is_on,
    local,
    pipe_table,
    whole_number,
)

_THROUGH = frozenset(  # hold visible content and say nothing themselves
    (
        *("ins", "moveTo", "sdt", "sdtContent", "customXml", "smartTag", "hyperlink", "fldSimple", "dir", "bdo"),
        *("subDoc", "rubyBase", "Choice", "Fallback"),
    )
)
_DELETED = frozenset(("del", "moveFrom"))
_COLUMNS = 200  # of a table, where it says that there are more than it has cells


def read_docx(data: bytes, max_bytes: int) -> Content:
    """The text of a Word file. Raises Unreadable with the reason."""
    try:
        package = Package(data, max_bytes, "Word")
        word = _WordFile(package, package.main())
        blocks = word.blocks(child(package.xml(word.part), "body"))
        notes = word.all_notes()
        title = package.title()
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # whatever zip, XML and missing parts raise
        raise Unreadable(f"damaged Word file: {type(error).__name__}: {error}"[:200]) from error
    item = r"(?: *(?:-|1\.) )"
    text = re.sub(rf"(?m)^({item}.*)\n\n(?={item})", r"\1\n", tidy("\n\n".join(blocks)))
    title = "" if title.strip().lower() in ("word document", "untitled") else title
    return Content(text, title or first_heading(text), notes=notes)


@dataclass(frozen=True, slots=True)
class _Style:
    name: str
    level: int | None  # of a heading, from 1
    listed: tuple[str, int] | None  # (numbering, level)


@dataclass
class _WordFile:
    package: Package
    part: str
    related: dict[str, tuple[str, str]] = field(init=False)
    styles: dict[str, _Style] = field(init=False)
    numbered: dict[tuple[str, int], bool] = field(init=False)
    footnotes: dict[tuple[str, str], Element] = field(init=False)
    notes: dict[str, int] = field(default_factory=dict)
    _in_cells: int = 0
    _after: list[str] = field(default_factory=list)  # text boxes and footnotes of the paragraph that is read

    def __post_init__(self) -> None:
        self.related = self.package.related(self.part)
        self.styles = self._read_styles()
        self.numbered = self._read_numbering()
        self.footnotes = {
            (kind, attribute(note, "id") or ""): note
            for kind in ("footnote", "endnote")
            for note in self._root(kind + "s")
            if local(note) == kind and attribute(note, "type") in (None, "normal")
        }

    def _root(self, kind: str) -> Element:
        part = first_of(self.related, kind)
        root = self.package.xml(part) if part else None
        return root if root is not None else ()

    def _read_styles(self) -> dict[str, _Style]:
        found = {attribute(e, "styleId") or "": e for e in self._root("styles") if local(e) == "style"}
        styles: dict[str, _Style] = {}
        for id in found:
            chain: dict[str, None] = {}
            here: str | None = id
            while here in found and here not in styles and here not in chain:
                chain[here] = None
                here = attribute(child(found[here], "basedOn"), "val")
            for each in reversed(chain):  # each after the one that it is based on
                base = styles.get(attribute(child(found[each], "basedOn"), "val") or "")
                name = (attribute(child(found[each], "name"), "val") or "").lower()
                properties = child(found[each], "pPr")
                level = _level_of(name, properties)
                listed = _listing(properties)
                if base is not None:
                    level, listed = level if level is not None else base.level, listed or base.listed
                styles[each] = _Style(name, level, listed)
        return styles

    def _read_numbering(self) -> dict[tuple[str, int], bool]:
        """(numbering, level) → whether it counts; the others are bullets."""
        root = self._root("numbering")
        counts: dict[str, dict[int, bool]] = {}
        for each in root:
            if local(each) == "abstractNum":
                counts[attribute(each, "abstractNumId") or ""] = {
                    whole_number(attribute(level, "ilvl")): attribute(child(level, "numFmt"), "val")
                    not in ("bullet", "none")
                    for level in each
                    if local(level) == "lvl"
                }
        return {
            (attribute(each, "numId") or "", level): counting
            for each in root
            if local(each) == "num"
            for level, counting in counts.get(attribute(child(each, "abstractNumId"), "val") or "", {}).items()
        }

    # Blocks

    def blocks(self, parent: Element | None) -> list[str]:
        """The paragraphs and tables below an element, as Markdown."""
        found: list[str] = []
        for element in parent if parent is not None else ():
            name = local(element)
            if name == "p":
                outer, self._after = self._after, []
                found += filter(None, [self._paragraph(element), *self._after])
                self._after = outer
            elif name == "tbl":
                found += self._table(element)
            elif name in _DELETED:
                self._note("deleted")
            elif name == "AlternateContent":
                found += next(filter(None, map(self.blocks, element)), [])
            elif name == "altChunk":
                self._note("embedded")
            elif name in _THROUGH:
                found += self.blocks(element)
        return found

    def _paragraph(self, element: Element) -> str:
        text = self._inline(element)
        text = text.strip() if "\n" in text else " ".join(text.split())
        if not text:
            return ""
        properties = child(element, "pPr")
        style = self.styles.get(attribute(child(properties, "pStyle"), "val") or "", _Style("", None, None))
        level = _level_of("", properties)
        level = level if level is not None else style.level
        if level or style.name == "title":
            return "#" * min(6, level or 1) + " " + " ".join(text.split())
        listed = _listing(properties) or style.listed
        if (listed and listed[0] != "0") or style.name.startswith("list"):
            counts = self.numbered.get(listed, False) if listed else "number" in style.name
            return "  " * min(8, listed[1] if listed else 0) + ("1. " if counts else "- ") + text
        return text

    def _table(self, table: Element) -> list[str]:
        rows = list(self._inside(table, "tr"))
        cells = [list(self._inside(row, "tc")) for row in rows]
        if len(cells) == 1 and len(cells[0]) == 1 and child(cells[0][0], "tbl") is not None:
            return self.blocks(cells[0][0])  # a frame around other content
        grid = child(table, "tblGrid")
        columns = len(grid) if grid is not None else 0
        width = max(min(columns, _COLUMNS), max(map(len, cells), default=0))
        lines = []
        for row, of_row in zip(rows, cells, strict=True):
            before = whole_number(attribute(child(row, "trPr", "gridBefore"), "val"))
            line = [""] * min(max(0, before), width - len(of_row))
            for place, cell in enumerate(of_row, 1):
                merged = child(cell, "tcPr", "vMerge")
                continued = merged is not None and (attribute(merged, "val") or "continue") == "continue"
                line.append("" if continued else self._cell(cell))
                span = whole_number(attribute(child(cell, "tcPr", "gridSpan"), "val"), 1)
                line += [""] * min(max(0, span - 1), width - len(line) - (len(of_row) - place))
            lines.append(line)
        if not any(any(line) for line in lines):
            return []
        if self._in_cells:  # Markdown has no table in a table: row by row on one line
            return ["; ".join(", ".join(filter(None, line)) for line in lines if any(line))]
        return [pipe_table(lines)]

    def _cell(self, cell: Element) -> str:
        """Everything in a cell as one line."""
        self._in_cells += 1
        blocks = self.blocks(cell)
        self._in_cells -= 1
        return " ".join(re.sub(r"^ *(?:#{1,6}|-|1\.) ", "", block) for block in blocks)

    def _inside(self, parent: Element, wanted: str) -> list[Element]:
        """The rows of a table or the cells of a row, whatever wraps them; deleted rows aside."""
        found: list[Element] = []
        for element in parent:
            name = local(element)
            if name == wanted:
                if child(element, f"{wanted}Pr", "del") is not None or child(element, "tcPr", "cellDel") is not None:
                    self._note("deleted")
                else:
                    found.append(element)
            elif name in _THROUGH:
                found += self._inside(element, wanted)
            elif name in _DELETED:
                self._note("deleted")
        return found

    # Inside a paragraph

    def _inline(self, parent: Element) -> str:
        return "".join(map(self._piece, parent))

    def _piece(self, element: Element) -> str:
        name = local(element)
        if name == "t":
            return element.text or ""
        if name == "r":
            if is_on(child(element, "rPr", "vanish")):
                if self._inline(element).strip():
                    self._note("hidden")
                return ""
            return self._inline(element)
        if name in ("tab", "ptab"):
            return "\t"
        if name in ("br", "cr"):
            return "\n"
        if name == "noBreakHyphen":
            return "-"
        if name == "sym":
            code = whole_number(attribute(element, "char"), base=16)
            return chr(code) if 0x20 <= code < 0xD800 or 0xF8FF < code < 0x10FFFF else ""  # else the font's own sign
        if name in _DELETED:
            self._note("deleted")
            return ""
        if name in ("footnoteReference", "endnoteReference"):
            return self._footnote(name.removesuffix("Reference"), attribute(element, "id") or "")
        if name == "commentReference":
            self._note("comments")
            return ""
        if name in ("drawing", "pict", "object"):
            self._boxes(element)
            return ""
        if name == "AlternateContent":
            for choice in element:
                had = len(self._after)
                text = self._inline(choice)
                if text or len(self._after) > had:
                    return text
            return ""
        if name == "ruby":
            base, above = child(element, "rubyBase"), child(element, "rt")
            read = self._inline(above) if above is not None else ""
            return (self._inline(base) if base is not None else "") + (f"({read})" if read else "")
        if name in ("oMath", "oMathPara"):
            return f" {_formula(element)} "
        return self._inline(element) if name in _THROUGH else ""

    def _footnote(self, kind: str, id: str) -> str:
        note = self.footnotes.pop((kind, id), None)
        if note is None:
            return ""
        text = " ".join(" ".join(self.blocks(note)).split())
        mark = f"[^{id}]" if kind == "footnote" else f"[^e{id}]"
        self._after.append(f"{mark}: {text}")
        return mark

    def _boxes(self, drawing: Element) -> None:
        """What text boxes, charts and diagrams say, after the paragraph that holds them."""
        stack = [drawing]
        while stack:
            element = stack.pop()
            name = local(element)
            if name == "txbxContent":
                self._after += self.blocks(element)
            elif name == "AlternateContent":
                stack += list(element)[:1]
            else:
                stack += reversed(element)
        self._after += graphic_text(self.package, self.related, drawing)

    # What is left out

    def _note(self, what: str) -> None:
        self.notes[what] = self.notes.get(what, 0) + 1

    def all_notes(self) -> tuple[str, ...]:
        seen = self.notes
        found = []
        if seen.get("deleted"):
            found.append("tracked changes: what was deleted is left out")
        if seen.get("hidden"):
            found.append("hidden text is left out")
        if seen.get("comments"):
            found.append(f"{seen['comments']} comments are left out")
        if seen.get("embedded"):
            found.append("documents embedded in it are left out")
        edges = []
        for kind, part in self.related.values():
            if kind in ("header", "footer") and (root := self.package.xml(part)) is not None:
                edges += self.blocks(root)
        if edges := list(dict.fromkeys(" ".join(edge.split()) for edge in edges)):
            found.append(f"page headers and footers are left out: {' / '.join(edges)!r}"[:300])
        return tuple(found)


def _level_of(name: str, properties: Element | None) -> int | None:
    """The level of a heading from 1, by its style's name or outline; None = it says nothing of it, 0 = body text."""
    outline = attribute(child(properties, "outlineLvl"), "val")
    if outline is not None:
        level = whole_number(outline, 9)
        return level + 1 if 0 <= level < 9 else 0
    match = re.match(r"heading (\d)", name)
    return int(match[1]) if match else None


def _listing(properties: Element | None) -> tuple[str, int] | None:
    numbering = child(properties, "numPr")
    if numbering is None:
        return None
    id = attribute(child(numbering, "numId"), "val")
    level = max(0, whole_number(attribute(child(numbering, "ilvl"), "val")))
    return (id, level) if id is not None else None


def _formula(element: Element) -> str:
    """A formula on one line, with fractions, powers and indices as one writes them in plain text."""
    name = local(element)
    if name == "t":
        return element.text or ""
    parts = {local(part): part for part in element}
    if name == "f" and {"num", "den"} <= parts.keys():
        return f"({_formula(parts['num'])})/({_formula(parts['den'])})"
    if name in ("sSup", "sSub", "sSubSup") and "e" in parts:
        text = _formula(parts["e"])
        for part, mark in (("sub", "_"), ("sup", "^")):
            text += f"{mark}{_formula(parts[part])}" if part in parts else ""
        return text
    if name == "rad" and "e" in parts:
        return f"√({_formula(parts['e'])})"
    if name == "d" and "e" in parts:
        return "(" + ", ".join(_formula(part) for part in element if local(part) == "e") + ")"
    if name == "m":
        return "; ".join(_formula(row) for row in element if local(row) == "mr")
    if name == "mr":
        return ", ".join(_formula(cell) for cell in element if local(cell) == "e")
    return "".join(map(_formula, element))
