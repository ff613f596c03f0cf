"""Time grows with the text and not with its square, whatever the text is made of."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from growing import faster_than_its_size

from ragadapt.config import ChunkConfig, QueryConfig
from ragadapt.corpus import chunk_documents, internal_links, near_duplicate_groups, plain_inline
from ragadapt.corpus.front import front_matter
from ragadapt.corpus.includes import Home, expand_includes, without_attributes
from ragadapt.corpus.structure import (
    Block,
    blank_line_cuts,
    markdown_sections,
    paragraph_cuts,
    plain_rst,
    refine,
    rst_sections,
    sections_of,
    sentence_cuts,
)
from ragadapt.queries.code import definitions, is_code
from ragadapt.queries.structure import structural_queries
from ragadapt.queries.text import blocks, plain, plain_heading, sentences, words
from ragadapt.text import searchable
from ragadapt.values import Document

SIZES = (4_000, 16_000)  # characters
NOISE_SECONDS = 0.6  # less is not worth a fit: the machine's own hiccups
WORST = 1.5  # exponent of growth: of a square 2; a machine that is busy makes the larger twice as slow
SLOWEST_SECONDS = 8.0  # of the largest: linear, but not cheap


def repeated(piece: str, before: str = "", after: str = "") -> Callable[[int], str]:
    return lambda size: before + piece * (size // len(piece)) + after


def levels(mark: str, unit: int = 1) -> Callable[[int], str]:
    """Lines that each begin with one mark more, as many as fit."""

    def make(size: int) -> str:
        lines: list[str] = []
        length = 0
        while length < size:
            lines.append(mark * (unit * len(lines)) + "x")
            length += len(lines[-1]) + 1
        return "\n".join(lines)

    return make


TEXTS: dict[str, Callable[[int], str]] = {
    "blank lines": repeated("\n", after="x"),
    "blank lines at the end": repeated("\n", "x"),
    "blank lines of spaces at the end": repeated(" \t\n", "x"),
    "blank lines before a no-break space": repeated("\n", "x", "\u00a0"),
    "spaces at the end": repeated(" ", "x"),
    "indented blank lines": repeated("\n    ", "x"),
    "blank lines of spaces": repeated(" \n", after="x"),
    "blank lines between letters": repeated("x\n\n"),
    "spaces": repeated(" ", "x", "x"),
    "tabs": repeated("\t", "x\n", "x"),
    "no-break spaces": repeated("\u00a0", "x", "."),
    "new line and spaces": repeated("\n ", "x", "x"),
    "carriage returns": repeated("\r", "x", "x"),
    "form feeds": repeated("\x0c\n", "x", "x"),
    "colons": repeated(":"),
    "colons and letters": repeated(":a"),
    "roles": repeated(":a:`"),
    "role names": repeated("a.b+c-", ":"),
    "ticks": repeated("`"),
    "ticks with spaces": repeated("` "),
    "ticks of two lengths": repeated("` `` "),
    "growing ticks": lambda size: " ".join("`" * n for n in range(1, int((2 * size) ** 0.5))),
    "tick and angle": repeated("`a <"),
    "brackets": repeated("["),
    "closing brackets": repeated("]"),
    "bracket pairs": repeated("[]"),
    "links without end": repeated("[a]("),
    "links with titles": repeated('[a](b "'),
    "images": repeated("!["),
    "nested brackets": lambda size: "[" * (size // 2) + "]" * (size // 2),
    "references": repeated("[a][b] "),
    "definitions": repeated("[a]: b\n"),
    "open definitions": repeated("[a\n"),
    "footnotes": repeated("[^a"),
    "parentheses": repeated("("),
    "braces": repeated("{"),
    "double braces": repeated("{{"),
    "shortcodes": repeated("{{< "),
    "attributes": repeated("{#"),
    "attribute lists": repeated("{ .a "),
    "headings with attributes": repeated("# x {#a\n"),
    "attributes with quotes": repeated('{ a="'),
    "quotes": repeated(">"),
    "quotes with spaces": repeated("> "),
    "quote lines": repeated("> x\n"),
    "deepening quotes": levels("> "),
    "deepening lists": levels("  - ", 1),
    "deepening indents": levels(" "),
    "lists in a line": repeated("- "),
    "numbers in a line": repeated("1. "),
    "list lines": repeated("- x\n"),
    "pipes": repeated("|"),
    "pipe lines": repeated("|\n"),
    "table rows": repeated("| a | b |\n", "| a | b |\n|---|---|\n"),
    "wide table": lambda size: "|a" * (size // 5) + "|\n" + "|-" * (size // 5) + "|\n|x|\n",
    "wide table of rows": lambda size: (
        "|a" * int(size**0.5) + "|\n" + "|-" * int(size**0.5) + "|\n" + "|x|\n" * (size // 8)
    ),
    "dashes": repeated("-"),
    "dash lines": repeated("-\n"),
    "rules": repeated("---\n"),
    "setext": repeated("x\n-\n"),
    "rst titles": repeated("xxx\n===\n"),
    "rst styles": lambda size: "".join(f"abcd\n{c * 4}\n" for c in "=-~^+*#'`:._") * (size // 120),
    "underscores": repeated("_"),
    "underscore words": repeated("_a "),
    "stars": repeated("*"),
    "star words": repeated("*a "),
    "star pairs": repeated("**a*"),
    "tildes": repeated("~~a"),
    "dollars": repeated("$"),
    "backslashes": repeated("\\"),
    "ampersands": repeated("&"),
    "entities": repeated("&a"),
    "angles": repeated("<"),
    "tags": repeated("<a "),
    "anchors": repeated("<a href='x'>"),
    "closing tags": repeated("</a"),
    "comments": repeated("<!--"),
    "declarations": repeated("<!a "),
    "instructions": repeated("<?"),
    "character data": repeated("<![CDATA["),
    "scripts": repeated("<script"),
    "frames": repeated("<iframe>"),
    "divisions": repeated("<div>\n"),
    "hashes": repeated("#"),
    "hashes with spaces": repeated("# "),
    "heading lines": repeated("# x\n"),
    "heading of hashes": repeated("# ", "# x"),
    "sentences without spaces": repeated("a.b.c."),
    "sentences": repeated("A b. "),
    "abbreviations": repeated("e.g. "),
    "dots": repeated("."),
    "dots with spaces": repeated(". "),
    "marks": repeated("!?"),
    "chinese stops": repeated("。"),
    "closing quotes": repeated(".\"'"),
    "commas": repeated(","),
    "one word": repeated("x"),
    "one line": repeated("x "),
    "chinese": repeated("漢"),
    "digits": repeated("1"),
    "numbers": repeated("1.,"),
    "combining marks": repeated("\u0301", "e"),
    "soft hyphens": repeated("\u00ad\n"),
    "fences": repeated("```\n"),
    "open fences": repeated("```x\n\n"),
    "growing fences": lambda size: "\n".join("`" * n for n in range(3, int((2 * size) ** 0.5))),
    "tilde fences": repeated("~~~\n"),
    "code lines": repeated("    x\n"),
    "definitions of code": repeated("def f(\n"),
    "classes": repeated("class A:\n"),
    "comment lines": repeated("# x\n", "", "def f():\n"),
    "slashes": repeated("/*"),
    "signatures": repeated("a b "),
    "decorators": repeated("@a\n", "", "def f(): pass\n"),
    "typed": repeated("int f("),
    "questions": repeated("Q: a? "),
    "bold questions": repeated("**a?"),
    "rst targets": repeated(".. _a:\n"),
    "rst directives": repeated(".. a::\n"),
    "rst literal": repeated("a::\n\n"),
    "rst links": repeated("`a <b>`_ "),
    "front matter": repeated("a: b\n", "---\n"),
    "front marks": repeated("---\n---\n"),
    "front prose": repeated("word\n", "---\n", "---\n"),
    "admonitions": repeated("!!! a\n"),
    "containers": repeated("::: a\n"),
    "includes": repeated('--8<-- "a"\n'),
    "heading with attribute lists": repeated("{#a .b} ", "# x "),
    "attribute lists in a line": repeated("){ .a }"),
    "open attribute lists": repeated("{ .a #b", "# x "),
    "attribute items": repeated(".a ", "# x {", "x"),
    "attribute spaces": repeated(" ", "# x {#a", "x"),
    "attribute values": repeated('a="b" ', "# x {"),
    "directives of myst": repeated("```{include} a\n"),
    "colon directives": repeated(":::{include} a\n"),
    "modules": repeated("::: a.b\n"),
    "module options": repeated("    x\n", "::: a.b\n"),
    "rst includes": repeated(".. include:: a\n   :b: c\n"),
    "include options": repeated("   :b: c\n", ".. include:: a\n"),
    "include spaces": repeated(" ", "{* a.b ", "x"),
    "include words": repeated("a ", "{* a.b "),
    "percent words": repeated("a ", '{% include "a" '),
    "include stars": repeated("{* a"),
    "include marks": repeated("{!"),
    "wiki percent": repeated("{% "),
    "targets of myst": repeated("(a"),
}


def count(texts: Sequence[str]) -> list[int]:
    return [len(text) // 4 for text in texts]


def cut(name: str) -> Callable[[str], object]:
    def run(text: str) -> object:
        document = Document(name, text, "", {}, name)
        chunks = chunk_documents([document], ChunkConfig(), count, 254)
        links = internal_links([document], chunks)
        return structural_queries([document], chunks, links, QueryConfig(), seed=0)

    return run


FUNCTIONS: dict[str, Callable[[str], object]] = {
    "markdown file": cut("a.md"),
    "rst file": cut("a.rst"),
    "text file": cut("a.txt"),
    "python file": cut("a.py"),
    "code file": cut("a.go"),
    "row": cut("row"),
    "includes": lambda text: expand_includes(text, Home(Path("a.md"))),
    "rst includes": lambda text: expand_includes(text, Home(Path("a.rst")), rst=True),
    "without_attributes": without_attributes,
    "markdown_sections": markdown_sections,
    "rst_sections": rst_sections,
    "code_sections": lambda text: sections_of(text, "code"),
    "front_matter": lambda text: front_matter("---\n" + text + "\n---\n"),
    "paragraph_cuts": paragraph_cuts,
    "blank_line_cuts": blank_line_cuts,
    "sentence_cuts": sentence_cuts,
    "refine text": lambda text: refine(text, Block(0, len(text), "text")),
    "refine list": lambda text: refine(text, Block(0, len(text), "list")),
    "refine table": lambda text: refine(text, Block(0, len(text), "table")),
    "refine code": lambda text: refine(text, Block(0, len(text), "code")),
    "refine html": lambda text: refine(text, Block(0, len(text), "html")),
    "plain_inline": plain_inline,
    "plain_rst": plain_rst,
    "duplicates": lambda text: near_duplicate_groups([text, text + "x", text[1:]]),
    "searchable": searchable,
    "words": words,
    "plain": plain.__wrapped__,
    "plain_heading": plain_heading,
    "blocks": blocks.__wrapped__,
    "sentences": sentences,
    "definitions": definitions,
    "is_code": is_code,
}


def seconds(function: Callable[[str], object], text: str) -> float:
    start = time.process_time()
    function(text)
    return time.process_time() - start


def growth(function: Callable[[str], object], make: Callable[[int], str], sizes: Sequence[int]) -> tuple[float, float]:
    """(largest exponent of growth between sizes that took time, seconds of the last)."""
    exponent, before = 0.0, seconds(function, make(sizes[0]))
    for smaller, size in pairwise(sizes):
        taken = seconds(function, make(size))
        if taken > NOISE_SECONDS:
            taken, before = min(taken, seconds(function, make(size))), max(before, seconds(function, make(smaller)))
            exponent = max(exponent, math.log(taken / before) / math.log(size / smaller))
        before = taken
    return exponent, taken


def check(name: str, sizes: Sequence[int]) -> None:
    for text, make in TEXTS.items():
        for _ in range(3):  # a busy machine slows one run or another; what grows too fast does so each time
            exponent, taken = growth(FUNCTIONS[name], make, sizes)
            if exponent < WORST and taken < SLOWEST_SECONDS:
                break
        assert exponent < WORST and taken < SLOWEST_SECONDS, f"{name} of {text}: {taken:.1f} s, n^{exponent:.2f}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_time_grows_with_the_text_and_not_with_its_square(name: str) -> None:
    check(name, SIZES)


def test_a_square_is_told_from_what_is_in_proportion() -> None:
    assert not faster_than_its_size(lambda n: 0.01 * n, 10)
    assert faster_than_its_size(lambda n: 0.01 * n * n, 10)
