"""How a text is built: sections under headings, and in them blocks that would rather stay whole.

Sections and blocks tile the text: each begins where the one before it ends, so that any run of them is text[start:end].
"""

from __future__ import annotations

import ast
import functools
import html
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from ragadapt.corpus.formats import Structure, parse_python

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

BlockKind = Literal["text", "list", "table", "code", "html"]


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, list, table or piece of code: text[start:end]. children tile it; empty = none known."""

    start: int
    end: int
    kind: BlockKind
    children: tuple[Block, ...] = ()


@dataclass(slots=True)
class Section:
    """A heading and what follows it up to the next heading.

    start: where the heading's line begins; body: where it ends (= start without a heading line). parent: place of the
    section above in the list. anchor: a name that the writer gave it for links. names: (start, end, name) of
    the definitions in a section of source code, outer before inner. Section 0 is the root, without heading.
    """

    heading: str
    level: int
    parent: int
    start: int
    body: int
    end: int
    blocks: list[Block] = field(default_factory=list)
    anchor: str = ""
    names: list[tuple[int, int, str]] = field(default_factory=list)


def sections_of(text: str, structure: Structure) -> list[Section]:
    """The sections of a text, in order; section 0 is the root and holds what stands before the first heading."""
    if structure == "markdown":
        return markdown_sections(text)
    if structure == "rst":
        return rst_sections(text)
    if structure == "python" and (tree := parse_python(text)) is not None:
        return _python_sections(text, tree)
    if structure in ("python", "code"):
        return _code_sections(text)
    return [Section("", 0, 0, 0, 0, len(text), _paragraphs(text, 0, len(text)))]


# Markdown


@functools.cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt  # here: readers of HTML need this module, and no parser

    parser = MarkdownIt("commonmark").enable("table")
    parser.core.ruler.enableOnly(["normalize", "block"])  # inline syntax is not needed to find blocks
    return parser


_ATTRIBUTES = re.compile(r"(?<![ \t])[ \t]*\{:?[ \t]*#([^\s{}]+)[^{}]*\}[ \t]*#*[ \t]*$")


def markdown_sections(text: str) -> list[Section]:
    """Sections by ATX and setext headings at the top level; blocks by CommonMark with tables."""
    from ragadapt.corpus.front import front_matter

    view = _same_length_lines(text)
    if front := front_matter(view):
        view = re.sub(r"[^\n]", " ", view[: front.end]) + view[front.end :]
    starts = _line_starts(view)
    tokens = _parser().parse(view)
    headings: list[tuple[int, int, int, str, str]] = []
    tops: list[_Node] = []
    stack: list[_Node] = []
    for place, token in enumerate(tokens):
        if token.type == "heading_open" and not stack and token.map:
            raw = tokens[place + 1].content
            named = _ATTRIBUTES.search(raw)
            words = plain_inline(raw[: named.start()] if named else raw)
            if words:
                level = int(token.tag[1])
                headings.append((starts[token.map[0]], starts[token.map[1]], level, words, named[1] if named else ""))
                continue
        kind = _KIND_OF_TOKEN.get(token.type)
        if token.type in _CONTAINER_ENDS:
            stack.pop()
        elif kind is not None and token.map is not None:
            node = _Node(starts[token.map[0]], kind, [])
            (stack[-1].children if stack else tops).append(node)
            if token.type.replace("_open", "_close") in _CONTAINER_ENDS:
                stack.append(node)
    return _assemble(len(text), headings, tops)


@dataclass(slots=True)
class _Node:
    start: int
    kind: BlockKind
    children: list[_Node]


_KIND_OF_TOKEN: dict[str, BlockKind] = {
    "bullet_list_open": "list",
    "ordered_list_open": "list",
    "list_item_open": "list",
    "blockquote_open": "text",
    "paragraph_open": "text",
    "heading_open": "text",
    "table_open": "table",
    "fence": "code",
    "code_block": "code",
    "html_block": "html",
    "hr": "text",
}
_CONTAINER_ENDS = frozenset(("bullet_list_close", "ordered_list_close", "list_item_close", "blockquote_close"))


def _assemble(length: int, headings: list[tuple[int, int, int, str, str]], nodes: list[_Node]) -> list[Section]:
    sections = [Section("", 0, 0, 0, 0, headings[0][0] if headings else length)]
    open_sections = [0]
    for place, (start, body, level, words, anchor) in enumerate(headings):
        while sections[open_sections[-1]].level >= level:
            open_sections.pop()
        end = headings[place + 1][0] if place + 1 < len(headings) else length
        open_sections.append(len(sections))
        sections.append(Section(words, level, open_sections[-2], start, min(body, end), end, anchor=anchor))
    bounds = [section.start for section in sections]
    bounds[0] = 0
    of_section: list[list[_Node]] = [[] for _ in sections]
    for node in nodes:
        if node.start < length:
            of_section[bisect_right(bounds, node.start) - 1].append(node)
    for section, mine in zip(sections, of_section, strict=True):
        section.blocks = _tile(mine, section.body, section.end)
    return sections


def _tile(nodes: list[_Node], start: int, end: int) -> list[Block]:
    """Blocks from nodes that know only where they begin; the first begins at `start`."""
    if start >= end:
        return []
    if not nodes:
        return [Block(start, end, "text")]
    places = [start]
    kept = [nodes[0]]
    for node in nodes[1:]:
        if places[-1] < node.start < end:
            places.append(node.start)
            kept.append(node)
        elif node.start <= places[-1]:
            kept[-1] = node if node.children or not kept[-1].children else kept[-1]
    places.append(end)
    return [
        Block(a, b, node.kind, tuple(_tile(node.children, a, b)) if len(node.children) > 1 or _nested(node) else ())
        for node, (a, b) in zip(kept, pairwise(places), strict=True)
    ]


def _nested(node: _Node) -> bool:
    return len(node.children) == 1 and bool(node.children[0].children)


_LONGEST_INLINE = 4000  # longer texts are no headings or link texts, and not worth their quadratic patterns
_INLINE_LINK = re.compile(
    r"!?\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?:[^()\s]|\([^()\s]*\))*(?:\s+[\"'(][^\n]*?[\"')])?\s*\)"
    r"|(?<![\w\]])!?\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\[[^\[\]]*\]"  # behind a word it is an index: grid[i][j]
)
_VISIBLE = re.compile(r"\w|[^\x00-\x7f]")  # pictographs count: encoders know them
_HTML_UNSEEN = re.compile(r"<(script|style|iframe|svg)\b(?:(?!</?\1\b).)*+(?:</\1\s*>|\Z)", re.S | re.I)
_HTML_TAG = re.compile(r"</?[a-zA-Z][\w:-]*(?:[\s/][^<>]*)?>|<!--(?:(?!<!--|-->).)*+-->", re.S)


def plain_inline(text: str) -> str:
    """Markdown's inline text as a reader sees it: link texts without targets, no emphasis marks, no tags."""
    if len(text) < _LONGEST_INLINE and any(mark in text for mark in "[*_`<&\\{~"):
        kept: list[str] = []

        def keep(match: re.Match[str]) -> str:
            kept.append(match[2])
            return f"\0{len(kept) - 1}\0"

        text = re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", keep, text.replace("\0", ""))  # code spans are literal
        for _ in range(3):  # images in links
            text = _INLINE_LINK.sub(lambda match: match[1] if match[1] is not None else match[2], text)
        text = _HTML_TAG.sub("", text)
        text = re.sub(r"\{\{[<%][^{}]*[>%]\}\}", "", text)  # shortcodes of site generators
        text = re.sub(r"(?<!\\)(\*{1,3}|~~)(?=\S)(.+?)(?<=\S)\1", r"\2", text)
        text = re.sub(r"(?<![\w\\])(_{1,3})(?=\S)(.+?)(?<=\S)\1(?!\w)", r"\2", text)
        text = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)
        text = html.unescape(text)
        text = re.sub(r"\0(\d+)\0", lambda match: kept[int(match[1])], text)
    return " ".join(text.split())


# reStructuredText

_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1{2,}[ \t]*$")
_RST_TARGET = re.compile(r"\.\. _`?([^:`]+)`?:\s*$")


def rst_sections(text: str) -> list[Section]:
    """Sections by underlined (and overlined) titles, ranked in order of appearance; blocks by blank lines."""
    view = _same_length_lines(text)
    starts = _line_starts(view)
    lines = view.split("\n")
    headings: list[tuple[int, int, int, str, str]] = []
    styles: list[tuple[str, bool]] = []
    i = 0
    while i + 1 < len(lines):
        over = _ADORNMENT.match(lines[i])
        if over and i + 2 < len(lines) and lines[i + 1].strip() and lines[i + 2].rstrip() == lines[i].rstrip():
            first, title, last, style = i, lines[i + 1], i + 2, (over[1], True)
        else:
            under = _ADORNMENT.match(lines[i + 1])
            title = lines[i]
            if (
                not under
                or not title.strip()
                or title[0].isspace()
                or _ADORNMENT.match(title)
                or (i > 0 and lines[i - 1].strip() and not _ADORNMENT.match(lines[i - 1]))
                or len(lines[i + 1].rstrip()) < min(len(title.rstrip()), 4)
            ):
                i += 1
                continue
            first, last, style = i, i + 1, (under[1], False)
        if style not in styles:
            styles.append(style)
        anchor, above = "", first - 1
        while above >= 0 and not lines[above].strip():
            above -= 1
        if above >= 0 and (label := _RST_TARGET.match(lines[above])):
            anchor = label[1].strip()
        end = starts[last + 1] if last + 1 < len(starts) else len(text)
        headings.append((starts[first], end, 1 + styles.index(style), plain_rst(title), anchor))
        i = last + 1
    return _assemble(len(text), headings, _rst_nodes(lines, starts))


def plain_rst(text: str) -> str:
    """reStructuredText's inline text as a reader sees it."""
    text = re.sub(r":[\w:+.-]{1,60}:`([^`<]*?)\s*(?:<[^`]*>)?`", lambda m: m[1] or m[0], text)
    text = re.sub(r"`([^`<]+?)\s*<[^`]*>`__?", r"\1", text)
    text = re.sub(r"``(.+?)``|`(.+?)`_{0,2}|\*\*(.+?)\*\*|\*(.+?)\*", lambda m: next(g for g in m.groups() if g), text)
    return " ".join(text.split())


def _rst_nodes(lines: list[str], starts: list[int]) -> list[_Node]:
    nodes: list[_Node] = []
    keep_indented = False
    previous_blank = True
    for line, start in zip(lines, starts):
        if not line.strip():
            previous_blank = True
            continue
        if previous_blank:
            if not (keep_indented and line[0].isspace()):
                kind: BlockKind = "text"
                if re.match(r"\+[-=+]+\+|=+ +=|\|.*\|\s*$", line.lstrip()):
                    kind = "table"
                elif re.match(r"(?:[-*+•]|\w{1,3}[.)]|\(\w{1,3}\)|#\.)\s", line.lstrip()):
                    kind = "list"
                nodes.append(_Node(start, kind, []))
                keep_indented = False
            previous_blank = False
        if not line[0].isspace():
            keep_indented = line.startswith(".. ") or line.rstrip().endswith("::")
            if keep_indented and nodes:
                nodes[-1].kind = "code"
    return nodes


# Source code

_CLOSING = re.compile(r"[)\]}]|end\b|(?:else|elif|catch|finally|then|do|done|fi|esac)\b|#\s*endif|@end\b")
_COMMENT = re.compile(r"\s*(?://|/\*|\*|#(?!include|define|if|pragma)|--|;;|%|\"\"\"|'''|@\w|\[\[?#?\w+|<!--)")


def _python_sections(text: str, tree: ast.Module) -> list[Section]:
    """One section for each top-level definition, with its comments and decorators; statements between share one."""
    view = _same_length_lines(text)
    starts = _line_starts(view)
    lines = view.split("\n")
    marks: list[tuple[int, ast.stmt | None]] = []
    previous_is_definition = True
    for node in tree.body:
        definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if definition or previous_is_definition:
            marks.append((starts[_first_line(node, lines)], node if definition else None))
        previous_is_definition = definition
    if not marks:
        return [Section("", 0, 0, 0, 0, len(text), _code_blocks(view, 0, len(text)))]
    marks[0] = (0, marks[0][1])
    root_end = marks[0][0] if marks[0][1] is None else 0
    sections = [Section("", 0, 0, 0, 0, root_end)]
    ends = [start for start, _ in marks[1:]] + [len(text)]
    for (start, stmt), end in zip(marks, ends, strict=True):
        if start >= end:
            continue
        block = _python_block(stmt, start, end, starts, lines) if stmt is not None else Block(start, end, "code")
        name = _python_name(stmt) if stmt is not None else ""
        section = Section(name, 1, 0, start, start, end, [block])
        if stmt is not None:
            section.names.append((start, end, name))
            _collect_names(stmt, starts, lines, section.names)
        sections.append(section)
    return sections


def _collect_names(outer: ast.stmt, starts: list[int], lines: list[str], found: list[tuple[int, int, str]]) -> None:
    """Append the methods and classes inside a class."""
    for inner in outer.body if isinstance(outer, ast.ClassDef) else ():
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            end = starts[inner.end_lineno or inner.lineno]
            found.append((starts[_first_line(inner, lines)], end, _python_name(inner)))
            _collect_names(inner, starts, lines, found)


def _first_line(node: ast.stmt, lines: list[str]) -> int:
    """The line where a statement begins, its decorators and the comments right above included (from 0)."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(d.lineno for d in decorators)]) - 1
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return first


def _python_name(node: ast.stmt) -> str:
    return f"{'class' if isinstance(node, ast.ClassDef) else 'def'} {getattr(node, 'name', '')}"


def _python_block(node: ast.stmt, start: int, end: int, starts: list[int], lines: list[str]) -> Block:
    """A definition; a class is cut before its methods, so that one can be told from the next."""
    if not isinstance(node, ast.ClassDef):
        return Block(start, end, "code")
    inner = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    places = [starts[_first_line(n, lines)] for n in inner]
    kept = [(place, n) for place, n in zip(places, inner, strict=True) if start < place < end]
    if not kept:
        return Block(start, end, "code")
    bounds = [*(place for place, _ in kept), end]
    children = [Block(start, kept[0][0], "code")]
    for (place, inner_node), stop in zip(kept, bounds[1:], strict=True):
        if place < stop:
            children.append(_python_block(inner_node, place, stop, starts, lines))
    return Block(start, end, "code", tuple(children))


def _code_sections(text: str) -> list[Section]:
    """Sections that begin at an unindented line after a blank one; each is named by its first line of code."""
    view = _same_length_lines(text)
    sections = [Section("", 0, 0, 0, 0, 0)]
    for block in _code_blocks(view, 0, len(text)):
        name = _signature(view[block.start : block.end])
        names = [(block.start, block.end, name)] if name else []
        sections.append(Section(name, 1, 0, block.start, block.start, block.end, [block], names=names))
    return sections


def _code_blocks(view: str, start: int, end: int) -> list[Block]:
    cuts = [start]
    for match in re.finditer(r"\n[ \t]*\n(?=[^\s])", view[start:end]):
        place = start + match.end()
        if not _CLOSING.match(view, place):
            cuts.append(place)
    return [Block(a, b, "code") for a, b in pairwise([*cuts, end]) if a < b]


def _signature(code: str) -> str:
    for line in code.split("\n"):
        if line.strip() and not _COMMENT.match(line):
            return " ".join(line.split()).rstrip("{ :=(")[:80]
    return ""


# Cutting what is too large for one chunk


def paragraph_cuts(text: str) -> list[int]:
    """Places in text where a paragraph begins, the first aside; its first line keeps its indentation."""
    gaps = re.finditer(r"\n(?:[ \t]*+\n)++", text)  # taken whole: looked at once, whatever follows
    return [gap.end() for gap in gaps if _BEGINS.match(text, gap.end())]


_BEGINS = re.compile(r"[ \t]*+\S")


def _paragraphs(text: str, start: int, end: int) -> list[Block]:
    bounds = [start, *(start + cut for cut in paragraph_cuts(text[start:end])), end]
    return [Block(a, b, "text") for a, b in pairwise(bounds) if a < b]


_ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Za-z]|e\.g|i\.e|etc|vs|cf|al|ca|approx|resp|no|nos|fig|figs|eq|eqs|sec|ch|vol|pp?|ed|eds|dr|mr|mrs|ms|prof|"
    r"st|jr|sr|inc|ltd|corp|co|dept|est|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec))\.$",
    re.I,
)
_SENTENCE_END = re.compile(
    r"(?<![.!?…])[.!?…]++[\"'”’»)\]*_`]*\s++(?![a-z])(?!\Z)|[。！？｡︒؟।]+[」』”’）)》】]*\s*|\n[ \t]*\n\s*"
)
_CLAUSE_END = re.compile(r"[,;:—–)\]][ \t]+|[，、；：）》」』]+")
_WORD = re.compile(r"\S+\s*")


def sentence_cuts(text: str) -> list[int]:
    """Places in text where a sentence begins, the first aside. Works with and without spaces."""
    cuts = []
    for match in _SENTENCE_END.finditer(text):
        mark = match[0].rstrip()
        if mark == "." and _ABBREVIATION.search(text, max(0, match.start() - 12), match.start() + 1):
            continue
        cuts.append(match.end())
    return [c for c in cuts if 0 < c < len(text)]


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of the sentences of a text, without the white space between them."""
    spans = []
    for start, end in pairwise([0, *sentence_cuts(text), len(text)]):
        inner = text[start:end]
        left = len(inner) - len(inner.lstrip())
        if inner.strip():
            spans.append((start + left, start + len(inner.rstrip())))
    return spans


def line_cuts(text: str) -> list[int]:
    return [m.end() for m in re.finditer(r"\n+", text) if m.end() < len(text)]


def blank_line_cuts(code: str) -> list[int]:
    """Cuts at the blank lines of code, of those only the least indented: they separate the largest parts."""
    found = [
        (m.end() - len(m[1]), len(m[1].expandtabs(4)))
        for m in re.finditer(r"\n[ \t]*\n([ \t]*)(?=\S)", code)
        if not _CLOSING.match(code, m.end())
    ]
    least = min((indent for _, indent in found), default=0)
    return [place for place, indent in found if indent == least and 0 < place < len(code)]


def is_visible(text: str, block: Block) -> bool:
    """Whether a reader of the finished page sees any word of the block: embedded players and ruled lines show none."""
    part = text[block.start : block.end]
    if block.kind == "html":
        part = _HTML_TAG.sub(" ", _HTML_UNSEEN.sub(" ", part))
    return bool(_VISIBLE.search(part))


def refine(text: str, block: Block, *, structure: bool = True) -> list[Block]:
    """The next finer pieces of a block: children, sentences, words, characters. Two or more where possible.

    structure=False passes over what nests, for blocks that nest beyond sense.
    """
    if block.children and structure:
        return list(block.children)
    part = text[block.start : block.end]
    for method in _METHODS[block.kind if structure else "table"]:
        if cuts := method(part):
            break
    else:
        cuts = _character_cuts(part)
    return [Block(block.start + a, block.start + b, block.kind) for a, b in pairwise([0, *cuts, len(part)])]


def _clause_cuts(text: str) -> list[int]:
    return [m.end() for m in _CLAUSE_END.finditer(text) if m.end() < len(text)]


def _word_cuts(text: str) -> list[int]:
    """Cuts at white space, into at most 64 parts: a long run is halved again rather than counted word by word."""
    cuts = [m.start() for m in _WORD.finditer(text) if m.start() > 0]
    step = max(1, len(cuts) // 64)
    return cuts[step - 1 :: step] if cuts else []


def _character_cuts(text: str) -> list[int]:
    """Cuts into about 16 equal parts, never before a combining mark, a joiner or the half of a surrogate pair."""
    step = max(1, len(text) // 16)
    cuts: list[int] = []
    for place in range(step, len(text), step):
        last = min(len(text), place + _LONGEST_JOIN)
        while place < last and _JOINS.match(text[place]):
            place += 1
        if place < len(text) and (not cuts or place > cuts[-1]):
            cuts.append(place)
    return cuts or list(range(1, len(text)))[:1]


_LONGEST_JOIN = 64  # marks on one letter; more are no writing
_JOINS = re.compile("[\u0300-\u036f\u200d\ufe00-\ufe0f\u20d0-\u20ff\U0001f3fb-\U0001f3ff\u3099\u309a]")


_METHODS: dict[BlockKind, tuple[Callable[[str], list[int]], ...]] = {
    "text": (paragraph_cuts, sentence_cuts, line_cuts, _clause_cuts, _word_cuts),
    "html": (paragraph_cuts, sentence_cuts, line_cuts, _clause_cuts, _word_cuts),
    "list": (line_cuts, sentence_cuts, _clause_cuts, _word_cuts),
    "table": (line_cuts, sentence_cuts, _clause_cuts, _word_cuts),
    "code": (blank_line_cuts, line_cuts, _word_cuts),
}


def _same_length_lines(text: str) -> str:
    """The text with every line end as \\n, and every offset unchanged."""
    return text.replace("\r\n", " \n").replace("\r", "\n") if "\r" in text else text


def _line_starts(text: str) -> list[int]:
    starts = [0]
    starts.extend(m.end() for m in re.finditer("\n", text))
    starts.append(len(text))  # the line after the last, which maps of blocks point to
    return starts
