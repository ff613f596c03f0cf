"""EPUB books into Markdown: the chapters in the order that the book gives them."""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote

from lxml import etree

from ragadapt.corpus.content import Content
from ragadapt.corpus.decode import Unreadable
from ragadapt.corpus.html import read_html

_UNPACKED_FACTOR: Final = 20  # a book that unpacks to more than this many times the limit is a bomb, not a document
_FONT_SCRAMBLING: Final = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")


def read_epub(data: bytes, max_bytes: int) -> Content:
    """The text of a book, with author and language. Raises Unreadable with the reason, copy protection among them."""
    try:
        return _read(_Book(data, _UNPACKED_FACTOR * max_bytes))
    except RuntimeError as error:  # zipfile's word for a password
        raise Unreadable("password-protected") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, ValueError) as error:
        raise Unreadable(f"damaged EPUB: {error}"[:200]) from error
    except (etree.LxmlError, LookupError) as error:
        raise Unreadable(f"damaged EPUB: {type(error).__name__}: {error}"[:200]) from error


class _Book:
    """The files in the archive, unpacked within a budget that counts what really comes out."""

    def __init__(self, data: bytes, budget_bytes: int) -> None:
        self._archive = zipfile.ZipFile(io.BytesIO(data))
        self._names = {_key(name): name for name in reversed(self._archive.namelist())}
        self._budget = self._left = budget_bytes

    def part(self, name: str) -> bytes | None:
        """A file by its path in the book; None = it is not there."""
        stored = self._names.get(_key(name))
        if stored is None:
            return None
        pieces = []
        with self._archive.open(stored) as file:
            while piece := file.read(1 << 18):
                self._left -= len(piece)
                if self._left < 0:
                    raise Unreadable(f"over-size: more than {self._budget:,} bytes when unpacked")
                pieces.append(piece)
        return b"".join(pieces)

    def xml(self, name: str) -> etree._Element | None:
        data = self.part(name)
        if data is None:
            return None
        parser = etree.XMLParser(
            resolve_entities=False, no_network=True, load_dtd=False, huge_tree=True, recover=True, remove_comments=True
        )
        return etree.fromstring(data, parser)


def _key(name: str) -> str:
    return posixpath.normpath(name.replace("\\", "/").lstrip("/")).lower()


def _read(book: _Book) -> Content:
    place = next(
        (path for e in _named(book.xml("META-INF/container.xml"), "rootfile") if (path := e.get("full-path"))), ""
    )
    package = book.xml(place) if place else None
    if package is None:
        raise Unreadable("damaged EPUB: it does not say where its contents are")
    locked = _encrypted(book)
    folder = posixpath.dirname(place)

    def path_of(href: str) -> str:
        return posixpath.normpath(posixpath.join(folder, unquote(href.partition("#")[0])))

    manifest = {e.get("id"): e for e in _named(package, "item")}
    contents = {_key(path_of(e.get("href") or "")) for e in _named(package, "reference") if e.get("type") == "toc"}
    chapters: list[tuple[str, bool]] = []  # (path, whether it is a table of contents)
    missing = 0
    for reference in _named(package, "itemref"):
        item = manifest.get(reference.get("idref"))
        kind = (item.get("media-type") or "").lower() if item is not None else ""
        if item is None or not item.get("href"):
            missing += 1
        elif not (kind.startswith(("image/", "audio/", "video/", "font/")) and "svg" not in kind):
            path = path_of(item.get("href") or "")
            chapters.append((path, "nav" in (item.get("properties") or "").split() or _key(path) in contents))
    chapters = list({_key(path): (path, is_contents) for path, is_contents in chapters}.values())
    if any(_key(path) in locked for path, _ in chapters):
        raise Unreadable("protected against copying (DRM)")
    notes: dict[str, None] = {}
    texts = _texts(book, [path for path, is_contents in chapters if not is_contents], notes)
    if not texts:  # a book that is nothing but lists of links, or calls all of it so
        notes.clear()
        texts = _texts(book, [path for path, _ in chapters], notes)
    elif any(is_contents for _, is_contents in chapters):
        notes["table of contents"] = None
    missing += notes.pop("", 0) or 0
    if missing:
        notes[f"{missing} chapters that the book names and does not hold"] = None
    values = {"author": _said(package, "creator"), "language": _said(package, "language")}
    metadata: dict[str, Any] = {k: v[0] if len(v) == 1 else v for k, v in values.items() if v}
    return Content("\n".join(texts), next(iter(_said(package, "title")), ""), metadata, notes=tuple(notes))


def _texts(book: _Book, paths: list[str], notes: dict[str, Any]) -> list[str]:
    texts = []
    for path in paths:
        data = book.part(path)
        if data is None:
            notes[""] = notes.get("", 0) + 1
            continue
        page = read_html(data)
        if page.text.strip():
            texts.append(page.text)
        notes.update(dict.fromkeys(page.notes))
    return texts


def _encrypted(book: _Book) -> set[str]:
    """The files of the book that are encrypted; fonts that are merely scrambled do not count."""
    locked: set[str] = set()
    for item in _named(book.xml("META-INF/encryption.xml"), "EncryptedData"):
        method = next((e.get("Algorithm") for e in _named(item, "EncryptionMethod")), "")
        if method not in _FONT_SCRAMBLING:
            locked.update(_key(unquote(e.get("URI") or "")) for e in _named(item, "CipherReference"))
    return locked


def _named(root: etree._Element | None, name: str) -> Iterator[etree._Element]:
    """Elements by their name without its namespace."""
    for element in root.iter() if root is not None else ():
        if isinstance(element.tag, str) and element.tag.rpartition("}")[2] == name:
            yield element


def _said(package: etree._Element, name: str) -> list[str]:
    """What the book's metadata says under a name, each once."""
    metadata = next(_named(package, "metadata"), None)
    found = (" ".join("".join(map(str, e.itertext())).split()) for e in _named(metadata, name))
    return list(dict.fromkeys(text[:1000] for text in found if text))[:100]
