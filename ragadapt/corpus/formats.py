"""What a file name says about its content, and what a text says about its structure."""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ragadapt.values import Document

Format = Literal[
    "markdown", "rst", "html", "plain", "pdf", "docx", "pptx", "xlsx", "epub", "eml", "json", "jsonl", "csv",
    "notebook", "python", "code",
]  # fmt: skip
Structure = Literal["markdown", "rst", "plain", "python", "code"]

_SUFFIXES: dict[Format, str] = {
    "markdown": ".md .markdown .mdx .mkd .mdown .qmd .rmd",
    "rst": ".rst .rest",
    "html": ".html .htm .xhtml",
    "plain": ".txt .text .adoc .asciidoc .org .tex",
    "pdf": ".pdf",
    "docx": ".docx .docm .dotx",
    "pptx": ".pptx .pptm .ppsx .potx",
    "xlsx": ".xlsx .xlsm .xltx",
    "epub": ".epub",
    "eml": ".eml",
    "json": ".json",
    "jsonl": ".jsonl .ndjson",
    "csv": ".csv .tsv",
    "notebook": ".ipynb",
    "python": ".py .pyi .pyw",
    "code": (
        ".js .jsx .mjs .cjs .ts .tsx .vue .svelte .java .kt .kts .scala .groovy .go .rs .c .h .cc .cpp .cxx "
        ".hh .hpp .hxx .ino .cu .cs .fs .vb .swift .m .mm .rb .php .pl .pm .lua .r .jl .sh .bash .zsh .fish "
        ".ps1 .bat .sql .hs .ml .mli .ex .exs .erl .clj .cljs .lisp .el .scm .dart .proto .graphql .tf .zig "
        ".nim .sol .pas .f .f90 .f95 .asm .s .tcl .d .v .sv .vhd .vhdl .cmake .gradle .pyx .pxd"
    ),
}
_FORMAT_OF_SUFFIX: dict[str, Format] = {s: f for f, suffixes in _SUFFIXES.items() for s in suffixes.split()}
_PLAIN_NAMES = frozenset(
    [
        "readme",
        "license",
        "licence",
        "copying",
        "notice",
        "authors",
        "contributors",
        "contributing",
        "changelog",
        "changes",
        "history",
        "news",
        "install",
        "todo",
        "faq",
        "copyright",
        "maintainers",
        "security",
    ]
)
_CODE_NAMES = frozenset(["makefile", "dockerfile", "rakefile", "gemfile", "vagrantfile", "jenkinsfile", "justfile"])


def format_of_name(name: str) -> Format | None:
    """The format that a file's name promises; None for a name that promises no document."""
    path = PurePosixPath(name.lower())
    if path.name.endswith((".min.js", ".min.mjs", ".d.ts.map")):
        return None
    if path.suffix:
        return _FORMAT_OF_SUFFIX.get(path.suffix)
    if path.name in _PLAIN_NAMES:
        return "plain"
    return "code" if path.name in _CODE_NAMES else None


def structure_of(document: Document) -> Structure:
    """How the document's text is built, by its source's name, else by a look at the text."""
    for name in (document.source, document.id):
        kind = format_of_name(name) if name else None
        if kind in ("markdown", "html", "notebook", "docx", "pptx", "xlsx", "epub", "eml"):
            return "markdown"  # the readers of html, notebooks, office files, books and mails write Markdown
        if kind == "rst" or kind == "python" or kind == "code":
            return kind
        if kind == "pdf":
            return "plain"
        if kind is not None:
            break
    return _look(document.text)


_ATX = re.compile(r"^ {0,3}#{1,6}[ \t]+\S", re.MULTILINE)
_FENCE = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)
_SETEXT = re.compile(r"^\S[^\n]*\n(?:={3,}|-{3,})[ \t]*$", re.MULTILINE)
_DEFINITION = re.compile(r"^[ \t]*(?:async )?(?:def|class)\s+\w+.*:|^(?:from\s+\S+\s+)?import\s+\w", re.MULTILINE)


def _look(text: str) -> Structure:
    if _DEFINITION.search(text) and parse_python(text) is not None:
        return "python"
    if _ATX.search(text) or _SETEXT.search(text) or len(_FENCE.findall(text)) >= 2:
        return "markdown"
    return "plain"


def parse_python(text: str) -> ast.Module | None:
    """The syntax tree, or None where the text is not Python that this interpreter reads. Nothing is executed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code are not our user's concern
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
