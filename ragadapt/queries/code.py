"""Functions and classes in source code, with what their authors wrote about them. Reads text; runs nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from ragadapt.queries.text import length, letter_share, plain, sentences, word_set

_SUFFIXES = word_set("""
    .py .pyi .js .mjs .jsx .ts .tsx .java .kt .kts .scala .go .rs .rb .php .c .h .cc .cpp .cxx .hpp .cs
    .swift .m .lua .pl .pm .r .jl .sh .bash .ps1 .dart .ex .exs .hs .sql .groovy .vb .zig
""")
_MODIFIERS = (
    r"(?:(?:export|default|public|private|protected|internal|static|final|abstract|virtual|override|async|inline"
    r"|pub(?:\([a-z]+\))?|unsafe|extern|suspend|sealed|synchronized|open|constexpr)\s+)*"
)
_DEFINITION = re.compile(
    rf"^[ \t]*{_MODIFIERS}(?:"
    r"(?:def|class|function\*?|func|fn|fun|sub|interface|struct|trait|enum|defp|object)\s+(?:\([^)\n]*\)\s*)?(?:self\.)?"
    r"(?P<named>[A-Za-z_]\w*)\s*(?=[(:<{\[\n]|$|extends|implements|->)"
    r"|(?:const|let|var)\s+(?P<arrow>[A-Za-z_]\w*)\s*=\s*(?:async\s*)?(?:function\b|\([^)\n]*\)\s*=>|\w+\s*=>)"
    r"|(?:[A-Za-z_][\w<>\[\],.?*& ]*[\s*&])(?P<typed>[A-Za-z_]\w*)\s*\([^;\n]*\)\s*(?:throws [\w, .]+)?\s*\{"
    r")",
    re.MULTILINE,
)
_DOCSTRING = re.compile(r"""\s*(?:[rRuU]{0,2})(\"\"\"|'''|"|')(?P<text>.*?)\1""", re.DOTALL)
_COMMENT_ABOVE = re.compile(
    r"(?:/\*\*?(?P<block>(?:(?!\*/).)*)\*/|(?P<lines>(?:^[ \t]*(?:///?!?|#(?!!)|--)[^\n]*\n)+))"
    r"[ \t\n]*(?:@\w+[^\n]*\n[ \t]*)*\Z",  # annotations may stand between
    re.DOTALL | re.MULTILINE,
)
_NOT_STATEMENTS = word_set("if for while switch catch return else elif try do new throw with match when")
_FIELD = r"args?|arguments|parameters?|params|returns?|raises|yields|notes?|examples?|usage|inputs?|outputs?|see also"
_SUMMARY_ENDS = re.compile(
    r"\n[ \t/*#!-]*\n"
    rf"|\n[ \t/*#!-]*(?:[@:\\]\w|>>>|(?:{_FIELD})[ \t]*(?::|\n|$|--|==)|[-=*~]{{3,}})"
    r"|[ \t](?:[@:](?:param|return|type|rtype|raises)\b|>>> |\{@)",
    re.IGNORECASE,
)
_EMPTY_WORDS = re.compile(
    r"\b(?:todo|fixme|xxx|auto-?generated|inheritdoc|see (?:base|super|parent) class|noqa|pylint|docstring|copyright"
    r"|license)\b|^\W*(?:internal|private|constructor|initiali[sz]er?|deprecated)\W*$",
    re.IGNORECASE,
)


def code_name(heading: str) -> str:
    """The dotted name in a heading that is a code signature, or an identifier; else nothing."""
    signature = re.match(
        r"(?:class |def |function |method |async |static )?\s*([A-Za-z_][\w.]*)\s*\(.*\)?(?:\s*->.*)?$", heading
    )
    if signature and (" " not in heading.split("(")[0].strip() or heading.startswith(("class ", "def ", "function "))):
        return signature.group(1)
    if re.fullmatch(r"[a-z_]\w*(?:\.\w+)+|\w*[a-z0-9]_\w+|[a-z]+[A-Z]\w*", heading):
        return heading
    return ""


@dataclass(frozen=True, slots=True)
class Definition:
    """A function or class: where its name stands, and the first sentence of its documentation if it has one."""

    name: str
    name_span: tuple[int, int]
    summary_span: tuple[int, int] | None


def is_code(text: str, source: str = "") -> bool:
    """Whether the text is source code: by its file's suffix, else by definitions and code-like lines."""
    suffix = PurePosixPath(source.replace("\\", "/")).suffix.lower()
    if suffix in _SUFFIXES:
        return True
    if suffix in {".md", ".rst", ".html", ".htm", ".pdf", ".docx", ".ipynb", ".txt"}:
        return False
    if "(" not in text or not _DEFINITION.search(text):
        return False
    if re.match(r"\s*(?:@[\w.]+[^\n]*\n\s*)*(?:async\s+)?(?:def|class|func|fn|function)\s+\w+\s*[(:<{]", text):
        return True
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    codelike = sum(
        bool(re.search(r"[;{}:)\],(]$|\w\s*[-+*/]?=\s*\S|\w\(|^[#@/*]|^(?:return|import|from|raise)\b", line))
        for line in lines
    )
    return codelike >= 0.4 * len(lines)


def definitions(text: str) -> list[Definition]:
    """The functions and classes that begin in a piece of source code, in order."""
    found = []
    for match in _DEFINITION.finditer(text):
        group = match.lastgroup
        if group is None or match[group] in _NOT_STATEMENTS:
            continue
        if group == "typed" and match.group().split()[0] in _NOT_STATEMENTS:
            continue
        summary = _docstring(text, match) or _comment(text, match)
        found.append(Definition(match[group], match.span(group), summary))
    return found


def _docstring(text: str, match: re.Match[str]) -> tuple[int, int] | None:
    """The Python docstring's first sentence: the string that follows the signature's colon."""
    if not re.search(r"\b(?:def|class)\b", match.group()):
        return None
    position, depth = match.end(), 0
    limit = min(len(text), position + 2000)
    while position < limit:
        character = text[position]
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == ":" and depth == 0:
            break
        elif character == "\n" and depth == 0:
            return None
        position += 1
    rest = re.compile(r":[ \t]*(?:#[^\n]*)?\n?").match(text, position)
    doc = _DOCSTRING.match(text, rest.end()) if rest else None
    return _summary(text, *doc.span("text")) if doc else None


def _comment(text: str, match: re.Match[str]) -> tuple[int, int] | None:
    above = _COMMENT_ABOVE.search(text, max(0, match.start() - 3000), match.start())
    if above is None:
        return None
    return _summary(text, *above.span("block" if above["block"] is not None else "lines"))


def _summary(text: str, start: int, end: int) -> tuple[int, int] | None:
    while start < end and (text[start].isspace() or text[start] in "*/#!-"):
        start += 1
    stop = _SUMMARY_ENDS.search(text, start, end)
    end = stop.start() if stop else end
    first = sentences(text, start, end)[:1]
    if not first or _EMPTY_WORDS.search(text[first[0][0] : first[0][1]]):
        return None
    start, end = first[0]
    said = summary_text(text[start:end])
    return (start, end) if 3 <= length(said) <= 40 and letter_share(said) >= 0.75 else None


def summary_text(raw: str) -> str:
    """A documentation sentence on one line: comment signs and the final full stop gone."""
    lines = (re.sub(r"^\s*(?:\*+|///?!?|#+|--)\s?", "", line) for line in raw.splitlines())
    return plain("\n".join(lines)).rstrip(".。 ")
