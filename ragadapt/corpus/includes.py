"""What documentation tools put into a page's source: included files are followed, attribute lists taken out."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ragadapt.corpus.decode import Unreadable, decode
from ragadapt.corpus.formats import format_of_name, parse_python
from ragadapt.corpus.front import front_matter
from ragadapt.corpus.paths import read_bounded

_DEEPEST: Final = 8  # files that include each other
_MOST: Final = 500  # includes of one page
_SHOWN_NOTES: Final = 20


@dataclass(frozen=True, slots=True)
class Home:
    """Where a file lies: its path, and the folders that were given to be read, inside which includes are followed."""

    path: Path
    roots: tuple[Path, ...] = ()
    encoding: str | None = None
    max_bytes: int = 10_000_000


def expand_includes(text: str, home: Home, *, rst: bool = False) -> tuple[str, tuple[str, ...]]:
    """(the text with the files that it includes, notes on those that were left out, with the reason).

    Known are MkDocs (--8<-- "file", {* file *}, {! file !}, {% include "file" %}), mdBook ({{#include file}}), MyST and
    Sphinx (include and literalinclude). A file is looked for beside the page and in the folders above it, up to those
    that were given to be read; each part of it is taken once. An include in a code block whose file is not found
    stays, as an example of how one is written.
    """
    writer = _Writer(home)
    lines = writer.expand(text, Path(os.path.realpath(home.path)), rst, ())
    notes = list(dict.fromkeys(writer.notes))
    if len(notes) > _SHOWN_NOTES:
        notes[_SHOWN_NOTES:] = [f"{len(notes) - _SHOWN_NOTES} more includes were not followed"]
    return "\n".join(lines), tuple(notes)


@dataclass(frozen=True, slots=True)
class _Include:
    """A directive: the lines that it takes, the file and the part of it that it names. literal: shown as code."""

    end: int
    target: str
    indent: str
    literal: bool
    part: Mapping[str, str]


_FENCE = re.compile(r"([ \t>]*)(`{3,}+|~{3,}+)([^`\n]*)$")
_MD_LINES: Final = (
    (re.compile(r"([ \t]*)\{\*[ \t]++([^\s{}*]*[./][^\s{}*]*)((?:[ \t]++[^\s{}*]+)*)[ \t]*\*\}[ \t]*$"), True),
    (re.compile(r"([ \t]*)\{!>?[ \t]*+([^\s{}!]*[./][^\s{}!]*)()[ \t]*!\}[ \t]*$"), False),
    (re.compile(r"([ \t]*)-{1,2}8<-{1,2}[ \t]++[\"']([^\"'\n]+)[\"']()[ \t]*$"), False),
    (re.compile(r"([ \t]*)\{%-?[ \t]*+include(?:-markdown)?[ \t]++[\"']([^\"'\n]+)[\"']([^%\n]*)%\}[ \t]*$"), False),
    (re.compile(r"([ \t]*)\{\{[ \t]*+#(?:rustdoc_)?include[ \t]++([^\s{}]+)()[ \t]*\}\}[ \t]*$"), False),
)
_MYST = re.compile(r"([ \t]*)(`{3,}+|~{3,}+|:{3,}+)\{(include|literalinclude)\}[ \t]++(\S+)[ \t]*$")
_RST = re.compile(r"([ \t]*)\.\.[ \t]++(include|literalinclude)::[ \t]++(\S+)[ \t]*$")
_RST_LITERAL = re.compile(
    r"([ \t]*(?:(?:[-*+\u2022]|\w{1,3}[.)]|#\.)[ \t]+)*+)"
    r"(?:\.\.[ \t]++(?:code-block|sourcecode|code|parsed-literal)::|(?!\.\.[ \t]).*::[ \t]*$)"
)
_SNIPPETS = re.compile(r"([ \t]*)-{1,2}8<-{1,2}[ \t]*$")
_OPTION = re.compile(r"[ \t]*:([\w-]+):[ \t]*(.*)$")
_MKDOCSTRINGS = re.compile(r"([ \t]*):::[ \t]++([A-Za-z_]\w*(?:\.\w+)*)[ \t]*$")
_MARKER = re.compile(r"-8<-{1,2}[ \t]*\[(start|end):[ \t]*([\w-]+)[ \t]*\]|\b(ANCHOR|ANCHOR_END):[ \t]*([\w-]+)")


@dataclass(slots=True)
class _Writer:
    home: Home
    notes: list[str] = field(default_factory=list)
    taken: set[tuple[str, str]] = field(default_factory=set)
    size: int = 0
    looked: int = 0

    def expand(self, text: str, path: Path, rst: bool, above: tuple[Path, ...]) -> list[str]:
        lines = text.split("\n")
        out: list[str] = []
        fence = ""
        literal = -1  # of rst: what is indented deeper stands in a literal block
        closers = {line.strip() for line in lines} if ":::" in text else set()
        place = 0
        while place < len(lines):
            line = lines[place]
            if rst and line.strip() and len(line) - len(line.lstrip()) <= literal:
                literal = -1
            if rst and literal < 0 and (opening := _RST_LITERAL.match(line)):
                literal = opening.end(1)
            include = (
                (_rst_include(lines, place) if literal < 0 else None)
                if rst
                else None
                if fence and "{" not in line and "8<" not in line
                else (_markdown_include(lines, place, bool(fence)))
            )
            if include is not None:
                found = self._content(include, path, above, rst, bool(fence))
                if found is not None:
                    out.extend((include.indent + inner).rstrip() if inner else "" for inner in found)
                elif fence:
                    out.append(line)
                place = include.end
                continue
            if (
                not rst
                and not fence
                and (module := _MKDOCSTRINGS.match(line))
                and ("." in module[2] or ":::" not in closers)
            ):
                out.append(module[1] + module[2])  # the name is what can be told without running the code
                self.notes.append(f"what ::: {module[2]} stands for is made from source code and was left out")
                place = _end_of_indented(lines, place + 1, len(module[1]))
                continue
            if not rst and (opening := _FENCE.match(line)):
                if not fence:
                    fence = opening[2]
                elif opening[2].startswith(fence) and not opening[3].strip():
                    fence = ""
            out.append(line)
            place += 1
        return out

    def _content(
        self, include: _Include, path: Path, above: tuple[Path, ...], rst: bool, fenced: bool
    ) -> list[str] | None:
        """The lines that stand for a directive; None where its file is not there."""
        target, part = include.target, dict(include.part)
        self.looked += 1
        found = self._find(target, path) if self.looked <= _MOST else "too many includes"
        if isinstance(found, str) and (match := re.match(r"(.+?):([\w-]*)(?::(\d*))?$", target)) and not rst:
            found = self._find(match[1], path)
            if match[2].isdigit() or (not match[2] and match[3]):
                part["lines"] = f"{match[2] or 1}-{match[3] or ('' if match.group(3) is not None else match[2])}"
            else:
                part["section"] = match[2]
        if isinstance(found, str):
            if not fenced:
                self.notes.append(f"include of {target}: {found}")
            return None
        reason = ""
        if found == path or found in above:
            reason = "the files include each other in a circle"
        elif len(above) >= _DEEPEST:
            reason = "too many includes"
        elif (str(found), repr(sorted(part.items()))) in self.taken:
            return []
        if not reason:
            try:
                data = read_bounded(found, self.home.max_bytes - self.size)
                if data is None:
                    raise Unreadable("over-size")
                text = decode(data, self.home.encoding)
            except (Unreadable, OSError) as error:
                reason = str(error)
        if reason:
            self.notes.append(f"include of {target}: {reason}")
            return []
        self.taken.add((str(found), repr(sorted(part.items()))))
        self.size += len(text)
        kind = format_of_name(found.name)
        literal = include.literal or (not fenced and kind not in ("markdown", "rst", "plain", "html"))
        lines = _part_of(text, part)
        if not literal and not fenced and kind in ("markdown", "rst"):
            body = "\n".join(lines)
            if kind == "markdown" and (front := front_matter(body)):
                body = body[front.end :]
            lines = self.expand(body, found, kind == "rst", (*above, path))
        if literal and not fenced:
            lines = _as_code(lines, part.get("language") or found.suffix.lstrip("."), rst)
        return lines

    def _find(self, target: str, path: Path) -> Path | str:
        """The file that a page names, or why it is not taken."""
        if re.match(r"[a-z][a-z0-9+.-]+://|//", target, re.I):
            return "outside the documents"
        folders: list[Path] = []
        roots = [Path(os.path.realpath(root)) for root in self.home.roots]
        inside = [root for root in roots if path.is_relative_to(root)]
        if target.startswith("/"):
            folders = inside
        else:
            folders = [path.parent]
            while inside and not any(folders[-1] == root for root in inside) and folders[-1] != folders[-1].parent:
                folders.append(folders[-1].parent)
        there = False
        for folder in folders:
            try:
                file = Path(os.path.realpath(folder / target.lstrip("/")))
                if not file.is_file():
                    continue
            except (OSError, ValueError):  # a name that no file can have
                continue
            there = True
            for root in roots:
                if file.is_relative_to(root):
                    hidden = any(name.startswith(".") for name in file.relative_to(root).parts)
                    return "a hidden file" if hidden else file
        return "outside the documents" if there else "not found among the documents"


def _markdown_include(lines: Sequence[str], place: int, fenced: bool) -> _Include | None:
    line = lines[place]
    for pattern, literal in _MD_LINES:
        if match := pattern.match(line):
            part = {}
            if chosen := re.search(r"\bln\[([\d:,]+)\]", match[3]):
                part["lines"] = chosen[1].replace(":", "-")
            for name in ("start", "end"):
                if marked := re.search(rf"\b{name}=[\"']([^\"']+)[\"']", match[3]):
                    part["start-after" if name == "start" else "end-before"] = marked[1]
            return _Include(place + 1, match[2], match[1], literal, part)
    if fenced:
        return None
    if match := _MYST.match(line):
        end = place + 1
        while end < len(lines) and not lines[end].strip().startswith(match[2]):
            end += 1
        part = dict(_options(lines[place + 1 : end]))
        return _Include(end + 1, match[4], match[1], match[3] == "literalinclude" or "literal" in part, part)
    if (match := _SNIPPETS.match(line)) and place + 2 < len(lines) and _SNIPPETS.match(lines[place + 2]):
        return _Include(place + 3, lines[place + 1].strip(), match[1], False, {})
    return None


def _rst_include(lines: Sequence[str], place: int) -> _Include | None:
    match = _RST.match(lines[place])
    if match is None:
        return None
    end = place + 1
    while end < len(lines) and (option := _OPTION.match(lines[end])) and option.start(1) > len(match[1]) + 1:
        end += 1
    part = dict(_options(lines[place + 1 : end]))
    literal = match[2] == "literalinclude" or not part.keys().isdisjoint(("literal", "code"))
    return _Include(end, match[3], match[1], literal, part)


def _options(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        if match := _OPTION.match(line):
            yield match[1], match[2].strip().strip("\"'")


def _end_of_indented(lines: Sequence[str], place: int, indent: int) -> int:
    """The line after those that are indented deeper, which are options."""
    end = place
    for number in range(place, len(lines)):
        line = lines[number]
        if line.strip():
            if len(line) - len(line.lstrip()) <= indent:
                break
            end = number + 1
    return end


def _part_of(text: str, part: Mapping[str, str]) -> list[str]:
    """The lines of a file that a directive asks for, without the marks of sections."""
    lines = text.rstrip("\n").split("\n")
    if (name := part.get("pyobject")) and (tree := parse_python(text)) is not None:
        lines = _python_object(tree, name, lines) or lines
    if name := part.get("section"):
        marks = [(n, m[1] or m[3], m[2] or m[4]) for n, line in enumerate(lines) if (m := _MARKER.search(line))]
        begins = [n for n, kind, of in marks if of == name and kind in ("start", "ANCHOR")]
        if begins:
            ends = [n for n, kind, of in marks if of == name and kind in ("end", "ANCHOR_END") and n > begins[0]]
            lines = lines[begins[0] + 1 : ends[0] if ends else None]
    if after := part.get("start-after"):
        lines = next((lines[n + 1 :] for n, line in enumerate(lines) if after in line), lines)
    if before := part.get("end-before"):
        lines = next((lines[:n] for n, line in enumerate(lines) if before in line), lines)
    if "start-line" in part or "end-line" in part:
        bounds = [
            int(part[n]) if re.fullmatch(r"-?\d{1,9}", part.get(n, "")) else None for n in ("start-line", "end-line")
        ]
        lines = lines[bounds[0] : bounds[1]]
    if wanted := part.get("lines"):
        chosen: list[str] = []
        for piece in wanted.split(","):
            if match := re.fullmatch(r"\s*(\d{0,9})\s*(?:(-)\s*(\d{0,9}))?\s*", piece):
                first = int(match[1] or 1)
                last = (int(match[3]) if match[3] else len(lines)) if match[2] else first
                chosen += lines[max(0, first - 1) : last]
        lines = chosen
    return [line for line in lines if not _MARKER.search(line)]


def _python_object(tree: ast.Module, name: str, lines: list[str]) -> list[str]:
    body: Sequence[ast.stmt] = tree.body
    found: ast.stmt | None = None
    for part in name.split("."):
        found = next((node for node in body if getattr(node, "name", None) == part), None)
        body = getattr(found, "body", ())
    return lines[found.lineno - 1 : found.end_lineno] if found is not None else []


def _as_code(lines: list[str], language: str, rst: bool) -> list[str]:
    language = language if re.fullmatch(r"[\w+#.-]{1,40}", language) else ""
    if rst:
        return [f".. code-block:: {language or 'text'}", "", *("    " + line for line in lines), ""]
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + language, *lines, fence]


# Attribute lists

_NAME = r"[A-Za-z_][\w:.-]*"
_ITEM = (
    rf"(?:#[^\s{{}}#]+|\.[A-Za-z_][\w:-]*|{_NAME}=(?:\"[^\"\n{{}}]*\"|'[^'\n{{}}]*')"
    rf"|(?:data-[\w-]+|width|height|align|loading|target|rel|lang|class|id|start|markdown)=[^\s{{}}\"'=]+|-)"
)
_LIST = rf"\{{:?[ \t]*+{_ITEM}(?:[ \t]++{_ITEM})*[ \t]*+\}}"
_AT_END = re.compile(rf"(?<![ \t])[ \t]*({_LIST})(?=[ \t]*#*[ \t]*$)")
_ALONE = re.compile(rf"[ \t>]*+({_LIST})[ \t]*$")
_BEHIND = re.compile(rf"(?:\[\]\(\)|(?<=[)\]`*]))[ \t]?({_LIST})")
_HEADING = re.compile(r"[ \t>]{0,8}#{1,6}[ \t]")
_UNDERLINE = re.compile(r"[ \t>]*(?:=+|-+)[ \t]*$")
_CODE_SPAN = re.compile(r"(?<!`)(`++)(?!`)([^\n]*?[^`\n])\1(?!`)")
_MYST_TARGET = re.compile(r"\(([\w:.-]+)\)=[ \t]*$")
_LONGEST_LINE: Final = 20_000  # characters; longer lines are data


def without_attributes(text: str) -> tuple[str, dict[str, int]]:
    """(Markdown without attribute lists, {anchor in lower case: place in that text where what it names goes on}).

    `{ #anchor .class key="value" }` goes where it ends a heading, follows a link, an image, code or emphasis, or stands
    alone under a block, and so do MyST's `(anchor)=` lines; code stays as it is.
    """
    if "{" not in text and ")=" not in text:
        return text, {}
    lines = text.split("\n")
    out: list[str] = []
    anchors: dict[str, int] = {}
    length = 0
    fence = ""
    for place, line in enumerate(lines):
        kept: str | None = line
        found: list[str] = []
        if opening := _FENCE.match(line):
            if not fence:
                fence = opening[2]
            elif opening[2].startswith(fence) and not opening[3].strip():
                fence = ""
        elif not fence and len(line) < _LONGEST_LINE:
            if target := _MYST_TARGET.match(line):
                kept, found = None, ["{#" + target[1] + "}"]
            elif "{" in line:
                kept, found = _line_without(line, lines, place)
        if kept is not None:
            out.append(kept)
            length += len(kept) + 1
        for listed in found:
            for name in re.findall(r"#([^\s{}#]+)", listed):
                anchors.setdefault(name.lower(), length)
    return "\n".join(out), {name: min(at, max(0, length - 1)) for name, at in anchors.items()}


def _line_without(line: str, lines: Sequence[str], place: int) -> tuple[str | None, list[str]]:
    """(the line without attribute lists, None = nothing is left of it; the lists)."""
    above = lines[place - 1] if place else ""
    if (alone := _ALONE.match(line)) and (above.strip() or alone[1].startswith("{:")):
        return None, [alone[1]]
    found: list[str] = []
    below = lines[place + 1] if place + 1 < len(lines) else ""
    if (_HEADING.match(line) or (line.strip() and _UNDERLINE.match(below))) and (end := _AT_END.search(line)):
        found.append(end[1])
        line = line[: end.start()] + line[end.end() :]
    code = [match.span(2) for match in _CODE_SPAN.finditer(line)]

    def drop(match: re.Match[str]) -> str:
        if any(a <= match.start() < b for a, b in code):
            return match[0]
        found.append(match[1])
        return ""

    return _BEHIND.sub(drop, line), found
