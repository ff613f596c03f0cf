"""Links from one place of the corpus to another: what people call a passage when they point at it."""

from __future__ import annotations

import html
import posixpath
import re
import unicodedata
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from ragadapt.corpus.formats import Structure, format_of_name, structure_of
from ragadapt.corpus.structure import Section, plain_inline, plain_rst, sections_of
from ragadapt.values import Chunk, Document

_INDEX_NAMES = frozenset(("_index", "index", "readme", "default"))
_MIN_SITE_LINKS = 3  # addresses of a host that must name pages of the corpus before it is taken for their home,
_MIN_SITE_SHARE = 0.2  # and their share of all addresses there under the same prefix


@dataclass(frozen=True, slots=True)
class Link:
    """A link inside the corpus. text: what it says, without markup. to_chunk_id: where its target begins."""

    text: str
    from_chunk_id: str
    to_chunk_id: str


@dataclass(frozen=True, slots=True)
class _Raw:
    start: int
    text: str
    target: str


@dataclass(slots=True)
class _Page:
    document: Document
    structure: Structure
    sections: list[Section]
    anchors: dict[str, int] = field(default_factory=dict)  # slug -> place where the section's body begins
    loose: dict[str, int] = field(default_factory=dict)


def internal_links(documents: Sequence[Document], chunks: Sequence[Chunk]) -> list[Link]:
    """The links of Markdown, HTML and reStructuredText documents whose target is in the corpus, in order.

    A target is a path relative to the document, a path from the site's root, or a full address of the site that the
    documents were published on (recognised by how many of its links land in the corpus); a fragment must name a
    heading of the target. Links to the chunk that they stand in are left out, and links without words.
    """
    pages = {d.id: _Page(d, structure_of(d), []) for d in documents}
    linking = [page for page in pages.values() if page.structure in ("markdown", "rst")]
    for page in linking:
        page.sections = sections_of(page.document.text, page.structure)
        _name_anchors(page)
    places = _Places(chunks)
    raw = [(page, link) for page in linking for link in _links_of(page)]
    resolver = _Resolver(list(pages.values()), [(page, link.target) for page, link in raw])
    found: list[Link] = []
    for page, link in raw:
        resolved = resolver.resolve(page, link.target)
        source = places.at(page.document.id, link.start)
        if resolved is None or source is None or not re.search(r"\w", link.text):
            continue
        target = places.at(resolved[0].document.id, resolved[1])
        if target is not None and target.id != source.id:
            found.append(Link(link.text, source.id, target.id))
    return found


class _Places:
    """Which chunk holds an offset, or begins next after it."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks: dict[str, list[Chunk]] = defaultdict(list)
        for chunk in chunks:
            self.chunks[chunk.document_id].append(chunk)
        self.starts: dict[str, list[int]] = {}
        for id, mine in self.chunks.items():
            mine.sort(key=lambda chunk: chunk.start)
            self.starts[id] = [chunk.start for chunk in mine]

    def at(self, document_id: str, offset: int) -> Chunk | None:
        mine = self.chunks.get(document_id)
        if not mine:
            return None
        place = bisect_right(self.starts[document_id], offset) - 1
        if place >= 0 and offset < mine[place].end:
            return mine[place]
        return mine[min(place + 1, len(mine) - 1)]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading: lower case, punctuation dropped, spaces as hyphens."""
    kept = (c for c in heading.strip().lower() if c in "-_ " or unicodedata.category(c)[0] in "LNM")
    return "".join(kept).replace(" ", "-")


def _name_anchors(page: _Page) -> None:
    text = page.document.text
    used = Counter[str]()
    for section in page.sections[1:]:
        name = slug(section.heading)
        number = used[name]
        used[name] += 1
        page.anchors.setdefault(f"{name}-{number}" if number else name, section.body)
        if section.anchor:
            page.anchors.setdefault(section.anchor.lower(), section.body)
    for match in re.finditer(r"<[a-zA-Z][^<>]*?\s(?:id|name)\s*=\s*[\"']?([^\s\"'<>]+)", text):
        page.anchors.setdefault(match[1].lower(), match.end())
    for match in re.finditer(r"^\.\. _`?([^:`\n]+)`?:[ \t]*$", text, re.M):
        page.anchors.setdefault(match[1].strip().lower(), match.end())
    for name, place in page.document.anchors.items():
        page.anchors.setdefault(name, place)
    for name, place in page.anchors.items():
        page.loose.setdefault(_loose(name), place)


def _loose(name: str) -> str:
    return re.sub(r"[\W_]+", "", name)


_FENCED = re.compile(r"^([ \t]*)(`{3,}+|~{3,}+)[^\n]*\n.*?(?:^[ \t]*\2[`~]*[ \t]*$|\Z)", re.S | re.M)
_CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)([^`\n]+)\1(?!`)")
_INLINE = re.compile(
    r"(?<!!)\[((?:[^\[\]\\]|\\.|!?\[(?:[^\[\]]|\[[^\[\]]*\])*\](?:\([^()\s]*\))?)*)\]"
    r"\([ \t]*(?:<([^<>\n]*)>|((?:[^()\s]|\([^()\s]*\))*))(?:\s+(?:\"[^\"]*\"|'[^']*'|\([^()]*\)))?\s*\)"
)
_REFERENCE = re.compile(r"(?<![!\]])\[((?:[^\[\]\\\n]|\\.)+)\](?:\[([^\[\]\n]*)\])?(?![\[(:])")
_DEFINITION = re.compile(r"^ {0,3}\[([^\[\]\n]+)\]:[ \t]*<?([^\s<>]+)>?", re.M)
_ANCHOR = re.compile(
    r"<a\s[^<>]*?href\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'<>]+))[^<>]*>((?:(?!</?a\b).)*+)</a>", re.S | re.I
)
_RST_LINK = re.compile(
    r"(?::([\w:+.-]{1,60}):)?`([^`<>]*?)\s*<([^`<>]+)>`(?:__?)?|:(doc|ref|std:doc|std:ref):`([^`<>]+)`"
)


def _links_of(page: _Page) -> Iterator[_Raw]:
    text = page.document.text
    if page.structure == "rst":
        for match in _RST_LINK.finditer(text):
            role, words, target, bare, label = match.groups()
            role = (bare or role or "").removeprefix("std:")
            target = target or label
            if role == "ref":
                yield _Raw(match.start(), plain_rst(words or ""), f"ref:{target.strip()}")
            elif role in ("", "doc"):
                yield _Raw(match.start(), plain_rst(words or ""), target.strip())
        return
    masked = _FENCED.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
    no_code = _CODE_SPAN.sub(lambda m: m[0] if "](" not in m[0] and "<a" not in m[0] else " " * len(m[0]), masked)
    links = [_Raw(m.start(), plain_inline(m[1]), m[2] if m[2] is not None else m[3]) for m in _INLINE.finditer(no_code)]
    links += [
        _Raw(m.start(), plain_inline(m[4]), html.unescape(m[1] or m[2] or m[3] or ""))
        for m in _ANCHOR.finditer(no_code)
    ]
    targets = {" ".join(m[1].lower().split()): m[2] for m in _DEFINITION.finditer(no_code)}
    if targets:
        for m in _REFERENCE.finditer(no_code):
            target = targets.get(" ".join((m[2] or m[1]).lower().split()))
            if target:
                links.append(_Raw(m.start(), plain_inline(m[1]), target))
    yield from sorted(links, key=lambda link: link.start)


Key = tuple[str, ...]


class _Resolver:
    """Finds the page and the offset that a link means.

    Paths from a site's root and full addresses name the published place, which differs from the file's by what stands
    before both: /handbook/values is values/_index.md. Which prefixes belong together is decided by a vote of all links.
    """

    def __init__(self, pages: Sequence[_Page], targets: Sequence[tuple[_Page, str]]) -> None:
        self.keys: dict[Key, _Page | None] = {}
        self.labels: dict[str, tuple[_Page, int] | None] = {}
        self.endings: dict[str, list[Key]] = defaultdict(list)
        for page in pages:
            path = _path_of(page.document)
            if path is not None:
                key = _key(path)
                self.keys[key] = None if key in self.keys else page  # two pages under one name: neither is meant
            if page.structure == "rst":
                for name, place in page.anchors.items():
                    self.labels[name] = None if name in self.labels else (page, place)
        for key in self.keys:
            if key:
                self.endings[key[-1]].append(key)
        self.homes = self._vote([target for _, target in targets])

    def resolve(self, page: _Page, target: str) -> tuple[_Page, int] | None:
        if target.startswith("ref:"):
            return self.labels.get(" ".join(target[4:].lower().split()))
        try:
            address = urlsplit(target.strip())
        except ValueError:
            return None
        if address.scheme not in ("", "http", "https"):
            return None
        path, fragment = unquote(address.path), unquote(address.fragment).strip().lower()
        found: _Page | None
        if address.netloc or path.startswith("/"):
            found = self._published(address.netloc.lower(), _key(path))
        elif not path:
            found = page if fragment else None
        else:
            found = self._relative(page, path)
        if found is None:
            return None
        if not fragment or fragment == "top":
            return found, 0
        place = found.anchors.get(fragment, found.loose.get(_loose(fragment)))
        return None if place is None else (found, place)

    def _relative(self, page: _Page, path: str) -> _Page | None:
        own = _path_of(page.document)
        if own is None:
            return None
        folders = [posixpath.dirname(own)]
        if (
            not posixpath.splitext(path)[1]
            and posixpath.splitext(posixpath.basename(own))[0].lower() not in _INDEX_NAMES
        ):
            folders.append(posixpath.splitext(own)[0])  # published pages stand one level deeper than their files
        for folder in folders:
            joined = posixpath.normpath(posixpath.join(folder, path))
            if not joined.startswith("..") and (found := self.keys.get(_key(joined))) is not None:
                return found
        return None

    def _published(self, host: str, key: Key) -> _Page | None:
        for before_url, before_file in self.homes.get(host, ()):
            if key[: len(before_url)] == before_url:
                found = self.keys.get((*before_file, *key[len(before_url) :]))
                if found is not None:
                    return found
        return None

    def _vote(self, targets: Sequence[str]) -> dict[str, list[tuple[Key, Key]]]:
        """For each host ("" = the site itself): pairs (what its paths begin with, what files begin with instead)."""
        votes: dict[str, Counter[tuple[Key, Key]]] = defaultdict(Counter)
        asked: dict[str, Counter[Key]] = defaultdict(Counter)
        for target in dict.fromkeys(target.split("#")[0].strip() for target in targets):
            try:
                address = urlsplit(target)
            except ValueError:
                continue
            if address.scheme not in ("", "http", "https") or not (address.netloc or address.path.startswith("/")):
                continue
            host, key = address.netloc.lower(), _key(unquote(address.path))
            asked[host].update(key[:length] for length in range(len(key) + 1))
            for candidate in self.endings.get(key[-1], ()) if key else ():
                shared = 0
                while shared < min(len(key), len(candidate)) and key[-1 - shared] == candidate[-1 - shared]:
                    shared += 1
                votes[host][(key[: len(key) - shared], candidate[: len(candidate) - shared])] += 1
        homes: dict[str, list[tuple[Key, Key]]] = {}
        for host, pairs in votes.items():
            best = max(pairs.values())
            homes[host] = [
                pair
                for pair, n in pairs.most_common()
                # another host may carry pages of the same names: it must prove to be this corpus
                if n >= best / 2 and (not host or n >= max(_MIN_SITE_LINKS, _MIN_SITE_SHARE * asked[host][pair[0]]))
            ]
        return homes


def _path_of(document: Document) -> str | None:
    """The document's path, where its id or source is one."""
    for name in (document.id, document.source):
        if name and (format_of_name(name) not in (None, "jsonl", "csv")):
            return name.replace("\\", "/").lstrip("/")
    return None


def _key(path: str) -> Key:
    """What file and address of a page have in common: lower case, no suffix, index pages as their folder."""
    parts = [part for part in path.lower().split("/") if part not in ("", ".")]
    if parts:
        stem, suffix = posixpath.splitext(parts[-1])
        if suffix and (format_of_name(parts[-1]) is not None or suffix in (".php", ".aspx")):
            parts[-1] = stem
        if parts[-1] in _INDEX_NAMES:
            parts.pop()
    return tuple(parts)
