# ruff: noqa: SIM905 — names one a line would fill screens
"""HTML into Markdown that keeps what chunking needs: headings, lists, code, tables, and links inside the site.

What a browser shows is kept, each word once and in order. Parsing gives a tree of our own, of bounded depth, so that
neither the page nor what is left out of it can exhaust time or the stack.
"""

from __future__ import annotations

import html
import html.entities
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from lxml import etree

from ragadapt.corpus.content import Content
from ragadapt.corpus.decode import Unreadable, decode, encoding_of, tidy
from ragadapt.corpus.structure import plain_inline

_UNSEEN: Final = frozenset(
    "script style template datalist audio video canvas embed progress meter desc metadata".split()
)
_CONTROLS: Final = frozenset("input button select textarea".split())
_BLOCKS: Final = frozenset(
    """
    address article aside blockquote body caption center dd details dialog dir div dl dt fieldset figcaption figure
    footer form h1 h2 h3 h4 h5 h6 header hgroup hr html iframe legend li listing main marquee menu nav noframes noscript
    ol optgroup option p plaintext pre search section summary table tbody td tfoot th thead tr ul xmp
    """.split()
)
_VOID: Final = frozenset("area base br col embed hr img input link meta param source track wbr".split())
_PRE: Final = frozenset("pre listing xmp plaintext".split())
_HEADINGS: Final = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_RIGID: Final = frozenset(("table", *_PRE, *_HEADINGS))
_LISTS: Final = frozenset(("ul", "ol", "menu", "dir"))
_READ: Final = frozenset(
    """
    alt alttext aria-expanded aria-hidden class colspan data dy encoding hidden href id name open reversed role rowspan
    shadowrootmode srcdoc start style value x y
    """.split()
)
_NOTES: Final = {
    "navigation": "navigation",
    "edges": "page header and footer",
    "search": "search form",
    "controls": "form controls",
    "hidden": "hidden text",
    "noscript": "text for browsers without scripts or frames",
    "outside": "text outside the page's main part",
}
_MAY_BE_LEFT_OUT: Final = frozenset(
    ("area", "head", "param", "rp", "dialog", "noscript", "noframes", "nav", "footer", "search", *_CONTROLS)
)  # by their names alone
_ROLES: Final = {"navigation": "navigation", "banner": "edges", "contentinfo": "edges", "search": "search"}
_DEEPEST: Final = 100  # elements below this level become siblings, as in browsers at 512; Python's stack bounds ours
_DEEPEST_QUOTE: Final = 6  # levels of quotes and lists that are marked; each costs two or three characters a line
_DEEPEST_LIST: Final = 12
_DEEPEST_FRAME: Final = 3
_MOST_COLUMNS: Final = 1000  # the HTML standard's bounds on spans
_MOST_ROWS: Final = 65_534
_SPARSE: Final = 16  # a table whose grid has so many times more fields than cells is written without empty ones
_WORD: Final = re.compile(r"\w")
_NAMES: Final = (
    {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "shift-jis": "cp932", "x-sjis": "cp932"}
    | {
        "euc-kr": "cp949",
        "ks_c_5601-1987": "cp949",
    }
    | dict.fromkeys(("iso-8859-1", "latin1", "latin-1", "ascii", "us-ascii"), "cp1252")
)  # what browsers take them for


@dataclass(slots=True)
class _Node:
    """An element. left_out: why it is not shown ("" = it is). size: characters that it shows.

    blocks: it holds a block. rigid: it holds a table, a heading or preformatted text, which no cell of a table can.
    """

    tag: str
    attributes: Mapping[str, str]
    children: list[_Node | str] = field(default_factory=list)
    left_out: str = ""
    blocks: bool = False
    rigid: bool = False
    size: int = 0

    def get(self, name: str) -> str:
        return self.attributes.get(name) or ""

    def shown(self) -> Iterator[_Node | str]:
        for child in self.children:
            if isinstance(child, str) or not child.left_out:
                yield child
            elif child.left_out == "controls":
                yield " "  # it stood between the words around it

    def elements(self) -> Iterator[_Node]:
        """The element and those in it that are shown, in order."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += [c for c in reversed(node.children) if not isinstance(c, str) and not c.left_out]

    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text() for child in self.shown())


def read_html(data: bytes, encoding: str | None = None) -> Content:
    """A page. Navigation, scripts and form controls are left out, and named. Raises Unreadable."""
    return html_content(decode(data, encoding or _declared(data)))


def html_content(source: str) -> Content:
    """As `read_html`, of decoded text. Raises Unreadable."""
    if not source.strip():
        return Content("")
    page = _parse(source)
    notes: set[str] = set()
    body = _pruned(page.root, notes)
    if not _WORD.search(body.text()):  # all of it looked like navigation, or waits for a script: better than nothing
        notes = set()
        body = _pruned(page.root, notes, lenient=True)
    writer = _MarkdownWriter()
    writer.block(body)
    text = tidy(writer.text())
    return Content(
        text,
        " ".join(page.title.split()) or writer.top_heading(),
        notes=tuple(line for reason, line in _NOTES.items() if reason in notes),
    )


def _declared(data: bytes) -> str | None:
    """The encoding that the page names, where bytes and Python agree with it."""
    try:
        if encoding_of(data) in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
            return None
    except Unreadable:
        pass
    head = data[:4096]
    match = re.search(rb"<meta[^>]+charset=[\"']?\s*([\w-]+)", head, re.I) or re.match(
        rb"\s*<\?xml[^>]*\bencoding=[\"']([\w-]+)", head
    )
    name = match[1].decode("ascii").lower() if match else ""
    name = _NAMES.get(name, name)
    try:
        data.decode(name)
    except (LookupError, UnicodeDecodeError, ValueError):
        return None
    return name


# Parsing


class _TreeBuilder:
    """Builds the tree from what a parser meets. Text and elements keep their order, whatever the depth."""

    def __init__(self) -> None:
        self.root = _Node("html", {})
        self.title = ""
        self._stack = [self.root]
        self._unseen = 0  # open elements below the first that shows nothing, itself included
        self._titles = 0
        self._head = 0

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if self._unseen:
            self._unseen += 1
            return
        tag = tag.rpartition("}")[2].rpartition(":")[2].lower()
        if tag == "title" and not self.title.strip() and not any(node.tag == "svg" for node in self._stack[-3:]):
            self._titles, self._unseen = 1, 1
            return
        if (tag in _UNSEEN and not (tag == "template" and "shadowrootmode" in attributes)) or tag == "title":
            self._unseen = 1
            return
        node = _Node(tag, attributes)
        self._stack[min(len(self._stack), _DEEPEST) - 1].children.append(node)
        self._stack.append(node)

    def text(self, text: str | None) -> None:
        if not text:
            return
        if self._unseen:
            if self._titles:
                self.title += text
            return
        node = self._stack[-1]
        if len(self._stack) > _DEEPEST:
            deepest = self._stack[_DEEPEST - 1]
            node = node if deepest.children and deepest.children[-1] is node else deepest
        node.children.append(text)

    def end(self) -> None:
        if self._unseen:
            self._unseen -= 1
            self._titles = self._titles if self._unseen else 0
        elif len(self._stack) > 1:
            self._stack.pop()


def _parse(source: str) -> _TreeBuilder:
    if re.match(r"\s*(?:<!--.{0,2000}?-->\s*)?<\?xml", source, re.S) or re.match(
        r"\s*(?:<!DOCTYPE[^>]{0,500}>\s*)?<(?:\w+:)?html[^>]{0,500}\sxmlns(?::\w+)?=", source
    ):
        tree = _xml(source)
        if tree is not None:
            return _walked(tree)
    source = re.sub(r"</(?:body|html)\s*>", "", source, flags=re.I)  # what follows them is shown all the same
    source = re.sub(r"(=\s*[\"']?data:)[\w+/=;,.%:-]{1000,}", r"\1", _ended(source))  # pictures
    crowded = any(len(re.findall(r"[\s/=]", tag[0])) > 4000 for tag in re.finditer(r"<[a-zA-Z][^<>]{8000,}", source))
    parser = etree.HTMLParser(huge_tree=True, no_network=True, remove_comments=True, remove_pis=True, encoding="utf-8")
    tree = None
    if not crowded:  # with attributes, which libxml2 compares each with all
        with suppress(etree.LxmlError, ValueError):
            tree = etree.fromstring(source.encode("utf-8"), parser)
    if tree is None or parser.error_log.filter_from_fatals():  # deeper than libxml2 follows, which ends the text there
        tags = _Tags()
        tags.feed(source)
        return tags.page
    return _walked(tree)


def _ended(source: str) -> str:
    """The source with tags and comments that never end taken for text: libxml2 looks for the end of each anew."""
    last = source.rfind(">") + 1
    source = source[:last] + source[last:].replace("<", "&lt;")
    last = source.rfind("-->") + 1
    return source[:last] + source[last:].replace("<!--", "") if source.count("<!--", last) > 1 else source


def _xml(source: str) -> etree._Element | None:
    """The tree of well-formed XHTML; None where it is not."""
    names = html.entities.name2codepoint
    source = re.sub(
        r"&(?!(?:amp|lt|gt|quot|apos);)(\w{2,31});", lambda m: chr(names[m[1]]) if m[1] in names else m[0], source
    )
    source = re.sub(r"\A\s*<\?xml[^>]*\?>", "", source).lstrip()
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=True, remove_comments=True, remove_pis=True,
        encoding="utf-8",
    )  # fmt: skip
    try:
        return etree.fromstring(source.encode("utf-8"), parser)
    except (etree.LxmlError, ValueError):
        return None


def _walked(tree: etree._Element) -> _TreeBuilder:
    page = _TreeBuilder()
    for event, element in etree.iterwalk(tree, events=("start", "end")):
        if not isinstance(element.tag, str):
            if event == "end":
                page.text(element.tail)
        elif event == "start":
            page.start(element.tag, {name: value for name, value in element.items() if name in _READ})
            page.text(element.text)
        else:
            page.end()
            if element is not tree:
                page.text(element.tail)
    return page


_CLOSES: Final = {  # an opening tag ends these open elements, up to the nearest of those that hold it
    "li": ({"li"}, {"ul", "ol", "menu", "dir"}),
    "dt": ({"dt", "dd"}, {"dl"}),
    "dd": ({"dt", "dd"}, {"dl"}),
    "tr": ({"tr"}, {"table"}),
    "td": ({"td", "th"}, {"table", "tr"}),
    "th": ({"td", "th"}, {"table", "tr"}),
    "p": ({"p"}, set[str]()),
}


_TAG: Final = re.compile(r"<(/?)([a-zA-Z][^\s/>]*+)((?:[^>=]++|=\s*+(?:\"[^\"]*+\"|'[^']*+'|[^\s>]*+))*+)>")
_ATTRIBUTE: Final = re.compile(r"([^\s=/>\"']++)(?:\s*+=\s*+(\"[^\"]*+\"|'[^']*+'|[^\s>]*+))?")
_RAW: Final = {
    tag: re.compile(rf"</{tag}(?=[\s/>])", re.I)
    for tag in ("script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes")
}


class _Tags:
    """For pages that libxml2 gives up on: tags as they come, each end tag matched with what is open. Linear in time."""

    def __init__(self) -> None:
        self.page = _TreeBuilder()
        self._open: list[str] = []
        self._count: Counter[str] = Counter()

    def feed(self, source: str) -> None:
        place = 0
        while (at := source.find("<", place)) >= 0:
            self.page.text(html.unescape(source[place:at]))
            if source.startswith(("<!", "<?"), at):
                mark = "-->" if source.startswith("<!--", at) else ">"
                end = source.find(mark, at + 2)
                if end < 0:
                    return
                place = end + len(mark)
            elif match := _TAG.match(source, at):
                place = match.end()
                tag = match[2].lower()
                if match[1]:
                    self._end(tag)
                    continue
                self._start(tag, match[3])
                if tag in _RAW:
                    closing = _RAW[tag].search(source, place)
                    stop = closing.start() if closing else len(source)
                    self.page.text(
                        html.unescape(source[place:stop]) if tag in ("title", "textarea") else source[place:stop]
                    )
                    place = stop
            elif re.match(r"</?[a-zA-Z]", source[at : at + 3]):  # no tag ends any more
                place = at + 1
                break
            else:
                self.page.text("<")
                place = at + 1
        self.page.text(html.unescape(source[place:]))

    def _start(self, tag: str, attributes: str) -> None:
        closed, holders = _CLOSES.get(tag, (set[str](), set[str]()))
        for back in range(1, min(len(self._open), 8) + 1):
            if self._open[-back] in closed:
                self._close(len(self._open) - back)
                break
            if self._open[-back] in holders or tag == "p":
                break
        self.page.start(
            tag, {m[1].lower(): html.unescape((m[2] or "").strip("\"'")) for m in _ATTRIBUTE.finditer(attributes)}
        )
        if tag in _VOID:
            self.page.end()
        else:
            self._open.append(tag)
            self._count[tag] += 1

    def _end(self, tag: str) -> None:
        if self._count[tag]:
            place = len(self._open) - 1
            while self._open[place] != tag:
                place -= 1
            self._close(place)

    def _close(self, place: int) -> None:
        while len(self._open) > place:
            self._count[self._open.pop()] -= 1
            self.page.end()


# What is shown


def _pruned(root: _Node, notes: set[str], lenient: bool = False) -> _Node:
    """The element that holds the page's text, with `left_out`, `blocks` and `size` set below it; reasons go to notes.

    lenient: navigation, controls, what waits for a script and the like are kept.
    """
    _mark(root, (), lenient)
    _note(root, notes)
    main = _main_part(root)
    if root.size > main.size:
        notes.add("outside")
    if main is not root and not any(e.tag in _HEADINGS for e in main.elements()):
        headings = [e for e in root.elements() if e.tag == "h1"]
        if len(headings) == 1:  # the page's heading, which some themes put above the main part
            return _Node("div", {}, [headings[0], main], blocks=True, size=main.size + headings[0].size)
    return main


def _mark(node: _Node, above: tuple[_Node, ...], lenient: bool) -> None:
    node.left_out, node.size = _reason(node, above, lenient), 0
    node.blocks = node.tag == "iframe" and bool(node.get("srcdoc"))
    for child in node.children:
        if isinstance(child, str):
            node.size += len("".join(child.split()))
        else:
            _mark(child, (*above[-2:], node), lenient)
            if not child.left_out:
                node.size += child.size
                node.blocks |= child.blocks or _is_block(child)
                node.rigid |= child.rigid or child.tag in _RIGID
    if node.left_out in ("navigation", "edges", "search") and any(
        e.tag in ("main", "article") or e.get("role") == "main" for e in node.elements()
    ):
        node.left_out = ""  # a tag that was never closed, or a misused one: it holds the page
    if not node.size and node.tag in (*_HEADINGS, "dt", "summary"):
        for child in node.children:
            if isinstance(child, _Node) and child.tag == "button" and child.left_out == "controls":
                child.left_out = ""  # what opens a panel is its heading
                node.size += child.size


def _note(node: _Node, notes: set[str]) -> None:
    for child in node.children:
        if isinstance(child, _Node):
            if not child.left_out:
                _note(child, notes)
            elif child.left_out not in notes and _WORD.search(child.text()):
                notes.add(child.left_out)


def _reason(node: _Node, above: tuple[_Node, ...], lenient: bool) -> str:
    tag, role = node.tag, node.get("role").strip().lower()
    if not node.attributes and tag not in _MAY_BE_LEFT_OUT:
        return ""  # most elements of a page
    style = "".join(node.get("style")[:2000].split()).lower()
    hidden = "hidden" in node.attributes and node.get("hidden").lower() != "until-found" and role != "tabpanel"
    hidden = hidden or (tag == "dialog" and "open" not in node.attributes)
    unseen = style and re.search(r"display:none|visibility:(?:hidden|collapse)", style)
    if not lenient and (hidden or unseen):
        return "hidden"
    if tag in ("area", "head", "param", "rp") or (tag == "object" and node.get("data")):
        return "unseen"
    if node.get("aria-hidden") == "true" and _is_ornament(node):
        return "unseen"
    if lenient:
        return ""
    if tag in ("noscript", "noframes"):
        return "noscript"
    if tag in _CONTROLS:
        opens = tag == "button" and (role == "tab" or "aria-expanded" in node.attributes)
        return "" if opens or (tag == "button" and len(node.text().split()) > 3) else "controls"
    if tag == "nav":
        return "navigation"
    if tag == "footer" and not any(a.tag in ("blockquote", "figure", "td", "li", "dd") for a in above):
        return "edges"
    if tag == "search":
        return "search"
    return _ROLES.get(role, "")


def _is_ornament(node: _Node) -> bool:
    """Whether what is hidden from screen readers tells a reader nothing new: icons, anchors, a formula drawn again."""
    names = node.get("class").lower()
    if re.search(r"icon|symbol|katex-html|mjx|anchor|hash-?link|line-?number|lineno", names):
        return True
    return not _WORD.search(node.text()) and not any(
        e.tag == "img" and _WORD.search(e.get("alt")) for e in node.elements()
    )


def _main_part(page: _Node) -> _Node:
    """The main element where the page marks one with at least a third of the text, or its only article with half."""
    kinds: dict[str, list[_Node]] = {"main": [], "role": [], "article": []}
    for element in page.elements():
        if element.tag in ("main", "article"):
            kinds[element.tag].append(element)
        if element.get("role") == "main":
            kinds["role"].append(element)
    for kind, found in kinds.items():
        if len(found) == 1 and found[0].size * (2 if kind == "article" else 3) >= page.size:
            return found[0]
    return page


def _is_block(node: _Node) -> bool:
    if node.tag in _BLOCKS:
        return True
    if "style" not in node.attributes:
        return False
    style = re.search(r"display\s*:\s*([\w-]+)", node.get("style")[:2000], re.I)
    return style is not None and style[1].lower() in ("block", "flex", "grid", "table", "list-item", "table-row")


# Writing


class _MarkdownWriter:
    def __init__(self, quotes: int = 0, lists: int = 0, frames: int = 0) -> None:
        self.blocks: list[str] = []
        self.quotes, self.lists, self.frames = quotes, lists, frames
        self._top = ""

    def text(self) -> str:
        return "\n\n".join(self.blocks) + "\n" if self.blocks else ""

    def top_heading(self) -> str:
        return self._top

    def inner(self, quotes: int = 0, lists: int = 0) -> _MarkdownWriter:
        return _MarkdownWriter(self.quotes + quotes, self.lists + lists, self.frames)

    def add(self, text: str) -> None:
        text = re.sub(r"[ \t\r\f\v\u00a0]+", " ", text)
        text = "\n".join(plain_line(line.strip()) for line in text.split("\n")).strip()
        if text:
            self.blocks.append(text)

    def block(self, node: _Node) -> None:
        """Write an element's content: runs of inline content become paragraphs between its blocks."""
        run: list[str] = []
        for child in node.shown():
            if isinstance(child, _Node) and (_is_block(child) or child.blocks):
                self.add("".join(run))
                run = []
                self.one(child)
            else:
                run.append(_flat(child) if isinstance(child, str) else _inline(child))
        self.add("".join(run))

    def one(self, node: _Node) -> None:
        """Write one block."""
        tag = node.tag
        if tag in _HEADINGS:
            self._heading(node)
        elif tag in _PRE:
            code = _code(node).strip("\n").replace("\r", "")
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", code)), default=0))
            if code.strip():
                self.blocks.append(f"{fence}{_language(node)}\n{code}\n{fence}")
        elif tag in _LISTS and self.lists < _DEEPEST_LIST:
            lines = _list_lines(node, self)
            if lines:
                self.blocks.append("\n".join(lines))
        elif tag == "table":
            self._table(node)
        elif tag == "blockquote" and self.quotes < _DEEPEST_QUOTE:
            inner = self.inner(quotes=1)
            inner.block(node)
            if inner.blocks:
                self.blocks.append("\n".join(("> " + line).rstrip() for line in inner.text().rstrip("\n").split("\n")))
        elif tag == "dt" and not node.blocks:
            words = _inline_children(node).strip()
            self.add(f"**{words}**" if words else "")
        elif tag == "iframe":
            if node.get("srcdoc") and self.frames < _DEEPEST_FRAME:
                inner = _MarkdownWriter(self.quotes, self.lists, self.frames + 1)
                inner.block(_pruned(_parse(node.get("srcdoc")).root, set()))
                self.blocks += inner.blocks
        elif tag != "hr":
            self.block(node)

    def _heading(self, node: _Node) -> None:
        words = " ".join(_inline_children(node).split())
        words = _without_anchor(words)
        if node.tag == "h1" and not self._top:
            self._top = plain_inline(words.replace("<", "&lt;"))
        words = re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", words) if "`" not in words else words
        anchor = node.get("id") or next((e.get("id") or e.get("name") for e in node.elements() if e.tag == "a"), "")
        if words:
            named = f" {{#{anchor}}}" if re.fullmatch(r"[^\s{}]+", anchor) else ""
            self.blocks.append("#" * int(node.tag[1]) + f" {words}{named}")

    def _table(self, node: _Node) -> None:
        rows = _TableRows()
        rows.collect(node)
        for caption in rows.captions:
            if caption.blocks:
                self.block(caption)
            else:
                self.add(_without_anchor(_inline_children(caption).strip()))
        if rows.loose.children:
            self.block(rows.loose)
        if node.get("role") in ("presentation", "none") or any(
            cell.rigid for row in rows.in_order() for cell in row if cell.tag == "td"
        ):
            for row in rows.in_order():
                for cell in row:
                    self.block(cell)
        elif table := _pipe_table(rows.in_order(), self):
            self.blocks.append(table)


def _without_anchor(words: str) -> str:
    """The words without the sign at their end that links to them."""
    return words[:-300] + re.sub(r"\s*(?:\[[¶#§🔗]\]\([^)]*\)|[¶])\s*$", "", words[-300:])


def plain_line(line: str) -> str:
    """The line with what Markdown would take for a mark made plain: words never become structure."""
    if re.match(r"#{1,6}(?:\s|$)|```|~~~|(?:=+|-+|\+{3,})$|<[a-zA-Z!/?]", line):
        return "\\" + line
    return line


def _flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _inline_children(node: _Node) -> str:
    parts = []
    for child in node.shown():
        if isinstance(child, str):
            parts.append(_flat(child))
        elif _is_block(child):
            parts.append(f" {_inline(child)} ")
        else:
            parts.append(_inline(child))
    return "".join(parts)


def _inline(node: _Node) -> str:
    tag = node.tag
    if tag == "br":
        return "\n"
    if tag == "img":
        return _flat(node.get("alt"))
    if tag == "math":
        return _formula(node)
    if tag == "svg":
        return f" {_drawn(node)} " if node.size else ""
    if tag == "ruby":
        return _ruby(node)
    text = _inline_children(node)
    if tag in ("code", "kbd", "samp", "tt") and text.strip() and "`" not in text:
        return f"`{text.strip()}`"
    if tag == "a" and text.strip():
        target = node.get("href").strip()
        if target and not re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.I) and not re.search(r"[\s()]", target):
            return f"[{text.strip()}]({target})"  # links that leave the site say nothing about the corpus
    return text


def _formula(node: _Node) -> str:
    """A formula once: as its author wrote it where the page says so, else its signs."""
    if node.get("alttext").strip():
        return _flat(node.get("alttext"))
    for element in node.elements():
        if element.tag == "annotation" and "tex" in element.get("encoding").lower():
            return _flat(element.text()).strip()
    return " ".join(_signs(node))


def _signs(node: _Node) -> Iterator[str]:
    for child in node.shown():
        if isinstance(child, str):
            if child.strip():
                yield _flat(child).strip()
        elif child.tag not in ("annotation", "annotation-xml"):
            yield from _signs(child)


def _drawn(node: _Node) -> str:
    """The words in a drawing."""
    if node.tag in ("text", "foreignobject"):
        pieces = (
            _flat(c) if isinstance(c, str) else f" {_flat(c.text())} " if {"x", "y", "dy"} & set(c.attributes)
            else _inline(c)
            for c in node.shown()
        )  # fmt: skip
        return "".join(pieces)
    return " ".join(found for c in node.shown() if isinstance(c, _Node) and (found := _drawn(c).strip()))


def _ruby(node: _Node) -> str:
    """The words, then how they are read in brackets, so that a word is not cut by the reading of its parts."""
    base, reading = [], []
    for child in node.shown():
        if isinstance(child, _Node) and child.tag in ("rt", "rtc"):
            reading.append(_inline_children(child).strip())
        else:
            base.append(_flat(child) if isinstance(child, str) else _inline(child))
    words, said = "".join(base).strip(), "".join(reading)
    return f"{words} ({said}) " if said else words


def _code(node: _Node) -> str:
    """Preformatted text: a line ends at a line break, at a block's edges and at a table row's end."""
    out: list[str] = []

    def ensure(end: str) -> None:
        if out and not out[-1].endswith(("\n", end)):
            out.append(end)

    def write(part: _Node) -> None:
        before: _Node | str = ""
        for child in part.children:
            after, before = before, child
            if isinstance(child, str):
                out.append(child)
            elif child.left_out:
                before = after
            elif child.tag == "code" and isinstance(after, _Node) and after.tag == "code":
                ensure("\n")  # the same in another language
                write(child)
            elif child.tag == "br":
                out.append("\n")
            elif child.tag == "img":
                out.append(child.get("alt") or "")
            elif child.tag in ("math", "svg"):
                out.append(_inline(child))
            elif child.tag in ("td", "th"):
                ensure("\t")
                write(child)
            elif _is_block(child):
                ensure("\n")
                write(child)
                ensure("\n")
            else:
                write(child)

    write(node)
    return re.sub(r"\n\t", "\n", "".join(out)) if any(e.tag == "td" for e in node.elements()) else "".join(out)


def _list_lines(node: _Node, writer: _MarkdownWriter) -> list[str]:
    lines: list[str] = []
    start = _number(node.get("start"))
    step = -1 if "reversed" in node.attributes else 1
    items = list(_items(node))
    number = (start if start is not None else len(items) if step < 0 else 1) - step
    for item in items:
        inner = writer.inner(lists=1)
        inner.block(item) if item.tag in ("li", "") else inner.one(item)
        if not inner.blocks:
            continue
        given = _number(item.get("value"))
        number = given if given is not None else number + step
        mark = f"{max(number, 0)}. " if node.tag == "ol" else "- "
        # a nested list follows its item directly; other further blocks keep the blank line that Markdown needs
        text = inner.blocks[0]
        for block in inner.blocks[1:]:
            text += ("\n" if re.match(r"(?:- |\d+\. )", block) else "\n\n") + block
        pad = " " * len(mark)
        body = text.split("\n")
        lines.append(mark + body[0])
        lines.extend((pad + line) if line else "" for line in body[1:])
    return lines


def _number(value: str) -> int | None:
    match = re.fullmatch(r"\s*(\d{1,6})\s*", value)
    return int(match[1]) if match else None


def _items(node: _Node) -> Iterator[_Node]:
    """The items of a list; what stands between them is an item too."""
    between: list[_Node | str] = []
    for child in node.shown():
        if isinstance(child, _Node) and (_is_block(child) or child.blocks):
            if between:
                yield _Node("", {}, between)
            between = []
            yield child
        else:
            between.append(child)
    if between:
        yield _Node("", {}, between)


class _TableRows:
    """A table's rows in the order that they are shown, and what stands in it beside them."""

    def __init__(self) -> None:
        self.captions: list[_Node] = []
        self.loose = _Node("div", {}, blocks=True)
        self._parts: dict[str, list[list[_Node]]] = {"thead": [], "tbody": [], "tfoot": []}

    def in_order(self) -> list[list[_Node]]:
        return [row for part in self._parts.values() for row in part]

    def collect(self, node: _Node, part: str = "tbody") -> None:
        row: list[_Node] | None = None
        for child in node.shown():
            if isinstance(child, str):
                if child.strip():
                    self.loose.children += (child, " ")
                continue
            if child.tag in ("td", "th"):
                row = self._add([], part) if row is None else row
                row.append(child)
            elif child.tag == "caption":
                self.captions.append(child)
            elif node.tag == "tr" and _holds(child, ("td", "th")):  # a form around cells
                row = self._add([], part) if row is None else row
                row.extend(e for e in child.elements() if e.tag in ("td", "th"))
            elif child.tag == "tr" or child.tag in self._parts or _holds(child, ("tr", "td", "th")):
                row = None
                self.collect(child, child.tag if child.tag in self._parts else part)
            elif child.size or child.tag == "img":
                self.loose.children.append(child)

    def _add(self, row: list[_Node], part: str) -> list[_Node]:
        self._parts[part].append(row)
        return row


def _holds(node: _Node, tags: tuple[str, ...]) -> bool:
    """Whether such elements stand in it that belong to the table around it."""
    return node.tag != "table" and any(
        isinstance(child, _Node) and (child.tag in tags or (child.blocks and _holds(child, tags)))
        for child in node.shown()
    )


def _pipe_table(rows: list[list[_Node]], writer: _MarkdownWriter) -> str:
    """A Markdown table. A cell that spans rows or columns stands in the first of them; the others stay empty."""
    placed: list[dict[int, str]] = []
    taken: dict[int, int] = {}  # column → the first row where it is free again
    for place, row in enumerate(rows):
        fields: dict[int, str] = {}
        column = 0
        for cell in row:
            while taken.get(column, 0) > place and column < _MOST_COLUMNS:
                column += 1
            while column in fields:
                column += 1
            fields[column] = " ".join(_cell(cell, writer).split()).replace("|", "\\|")
            down = min(_span(cell, "rowspan") or _MOST_ROWS, _MOST_ROWS)
            wide = max(1, min(_span(cell, "colspan"), _MOST_COLUMNS - column))
            if down > 1 and column < _MOST_COLUMNS:
                taken.update((c, place + down) for c in range(column, column + wide))
            column += wide
        placed.append(fields)
    placed = [fields for fields in placed if any(fields.values())]
    columns = sorted({column for fields in placed for column in fields})
    if len(columns) * len(placed) > _SPARSE * sum(map(len, placed)) + 1000:
        lines = [list(fields.values()) for fields in placed]
    else:
        lines = [[fields.get(column, "") for column in columns] for fields in placed]
        while lines and not any(line[-1] for line in lines) and len(lines[0]) > max(map(len, rows)):
            lines = [line[:-1] for line in lines]
    if not lines:
        return ""
    written = ["| " + " | ".join(line) + " |" for line in lines]
    written.insert(1, "|" + " --- |" * len(lines[0]))
    return "\n".join(written)


def _span(cell: _Node, name: str) -> int:
    match = re.match(r"\s*\+?(\d{1,9})", cell.get(name))
    return int(match[1]) if match else 1


def _cell(cell: _Node, writer: _MarkdownWriter) -> str:
    if not cell.blocks:
        return _inline_children(cell)
    inner = writer.inner()
    inner.block(cell)
    return " ".join(inner.blocks)


def _language(pre: _Node) -> str:
    for element in pre.elements():
        match = re.search(r"(?:language|lang|highlight)-(?:source-)?([\w+#-]+)", element.get("class"))
        if match:
            return match[1]
    return ""
