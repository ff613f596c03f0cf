"""What the office formats share: a zip of XML parts that name each other, read within a budget, and drawings."""

from __future__ import annotations

import io
import posixpath
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias
from urllib.parse import unquote

from lxml import etree

from ragadapt.corpus.decode import Unreadable

Element: TypeAlias = Any  # of lxml, which is untyped here

_UNPACKED_FACTOR = 20  # parts that unpack to more than so many times the size limit are a bomb, not a document
_OLD = b"\xd0\xcf\x11\xe0"


class Package:
    """The parts of an office file. Only those that are asked for are unpacked, and no more of them than the budget."""

    def __init__(self, data: bytes, max_bytes: int, program: str) -> None:
        if data.startswith(_OLD):
            raise Unreadable(
                f"password-protected, or {program}'s format from before 2007: save it again in the new one"
            )
        self._zip = zipfile.ZipFile(io.BytesIO(data))
        self._names = {name.lower(): name for name in reversed(self._zip.namelist())}
        self._most = self._left = _UNPACKED_FACTOR * max_bytes

    def names(self) -> list[str]:
        return self._zip.namelist()

    def part(self, name: str) -> bytes | None:
        """A part by its name; None = it is not there. Raises Unreadable where the budget ends."""
        stored = self._names.get(name.lower().lstrip("/"))
        return None if stored is None else b"".join(self.stream(stored))

    def stream(self, name: str) -> Iterator[bytes]:
        """A stored part piece by piece. The budget counts what comes: the size in the directory may lie."""
        with self._zip.open(name) as file:
            while piece := file.read(1 << 18):
                self._left -= len(piece)
                if self._left < 0:
                    raise Unreadable(f"over-size: more than {self._most:,} bytes when unpacked")
                yield piece

    def xml(self, name: str) -> Element | None:
        """The root element of a part; None = the part is not there."""
        data = self.part(name)
        if data is None:
            return None
        if any("<!DOCTYPE".encode(coding) in data for coding in ("utf-8", "utf-16-le", "utf-16-be")):
            raise Unreadable("damaged: its XML defines entities, which no office program writes")  # and which unpack
        # What bounds depth and size is our own budget.
        parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=True, remove_comments=True)
        return etree.fromstring(data, parser)

    def related(self, name: str) -> dict[str, tuple[str, str]]:
        """Id → (kind, part) for each part that the named one points to; "" stands for the package itself."""
        folder, base = posixpath.split(name)
        rels = self.xml(posixpath.join(folder, "_rels", base + ".rels"))
        found = {}
        for rel in rels if rels is not None else ():
            if rel.get("TargetMode") == "External":
                continue
            target = unquote(rel.get("Target") or "")
            path = target.lstrip("/") if target.startswith("/") else posixpath.normpath(posixpath.join(folder, target))
            found[rel.get("Id") or ""] = ((rel.get("Type") or "").rpartition("/")[2], path)
        return found

    def main(self) -> str:
        """The part that is the document itself. Raises KeyError without any."""
        return first_of(self.related(""), "officeDocument") or _missing("officeDocument")

    def title(self) -> str:
        """The title in the file's properties; "" without any."""
        core = self.xml(first_of(self.related(""), "core-properties") or "docProps/core.xml")
        return next((e.text or "" for e in descendants(core, "title")), "") if core is not None else ""


def first_of(related: Mapping[str, tuple[str, str]], kind: str) -> str | None:
    """The first related part of a kind."""
    return next((part for found, part in related.values() if found == kind), None)


def _missing(kind: str) -> str:
    raise KeyError(kind)


def local(element: Element) -> str:
    """An element's name without its namespace, of which the formats have two sets; "" for comments and the like."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def attribute(element: Element | None, name: str) -> str | None:
    """An attribute by its name without namespace."""
    if element is not None:
        for key, value in element.attrib.items():
            if key.rpartition("}")[2] == name:
                return str(value)
    return None


def child(element: Element | None, *names: str) -> Element | None:
    """The first child of that name, the first child of that, and so on; None where one lacks."""
    for name in names:
        element = next((e for e in element if local(e) == name), None) if element is not None else None
    return element


def descendants(element: Element, name: str) -> Iterator[Element]:
    return (e for e in element.iter() if local(e) == name)


def is_on(element: Element | None) -> bool:
    """Whether a switch such as <w:vanish/> is there and not set to false."""
    return element is not None and (attribute(element, "val") or "1") not in ("0", "false", "off")


def whole_number(text: str | None, otherwise: int = 0, base: int = 10) -> int:
    """A number of the file; `otherwise` for what is none."""
    try:
        return int(text or "", base)
    except ValueError:
        return otherwise


def graphic_text(package: Package, related: dict[str, tuple[str, str]], graphic: Element) -> list[str]:
    """The words of the charts and diagrams that a drawing shows, which stand in parts of their own.

    related: what the drawing's part points to. A part that was read is taken out of it: it is shown once.
    """
    found: dict[str, None] = {}
    for element in graphic.iter():
        name = local(element)
        id = attribute(element, "dm") if name == "relIds" else attribute(element, "id") if name == "chart" else None
        _, part = related.pop(id, ("", "")) if id else ("", "")
        root = package.xml(part) if part else None
        for each in root.iter() if root is not None else ():
            if local(each) == "p":
                text = "".join(t.text or "" for t in descendants(each, "t"))
            elif local(each) == "strCache":
                text = " ".join(v.text or "" for v in descendants(each, "v"))
            else:
                continue
            if text := " ".join(text.split()):
                found[text] = None
    return list(found)


def pipe_table(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its head, and as wide as the widest."""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows if row]
    if not cells:
        return ""
    width = max(map(len, cells))
    cells[0] += [""] * (width - len(cells[0]))
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    lines.insert(1, "|" + " --- |" * width)
    return "\n".join(lines)
