"""Every word that a person sees is in a passage: in its headings or in its text, in order, and none is invented."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragadapt.config import ChunkConfig
from ragadapt.corpus import chunk_documents, documents_from, read_documents
from ragadapt.values import Chunk, Document


def count(texts: Sequence[str]) -> list[int]:
    return [len(re.findall(r"[A-Za-z0-9_]+|[^\sA-Za-z0-9_]", text)) for text in texts]


def passages(documents: Sequence[Document], limit: int, minimum: int = 0) -> list[Chunk]:
    chunks = chunk_documents(documents, ChunkConfig(min_tokens=minimum), count, limit)
    texts = {document.id: document.text for document in documents}
    assert all(texts[c.document_id][c.start : c.end] == c.text for c in chunks)
    assert max(count([c.passage for c in chunks]), default=0) <= limit
    return chunks


def check(seen: Sequence[str], chunks: Sequence[Chunk]) -> None:
    """seen: the words of the finished page, each one unlike all others."""
    found = {word for chunk in chunks for word in re.findall(r"\w*\d\w*", chunk.passage)}
    assert [word for word in seen if word not in found] == []
    assert found <= set(seen)  # nor halves of words
    bodies = [word for chunk in chunks for word in re.findall(r"w\d+", chunk.text)]
    assert bodies == sorted(bodies, key=lambda word: int(word[1:]))
    assert len(bodies) == len(set(bodies))


class Writer:
    """Numbered words, so that each is known again wherever it turns up."""

    def __init__(self) -> None:
        self.next = 0

    def words(self, n: int) -> list[str]:
        self.next += n
        return [f"w{number}" for number in range(self.next - n, self.next)]

    def line(self, n: int) -> str:
        return " ".join(self.words(n))


PIECES = st.lists(
    st.tuples(
        st.sampled_from(["h1", "h2", "h3", "setext", "rule", "text", "list", "table", "quote", "code", "html", "bold"]),
        st.sampled_from([1, 2, 3, 5, 9, 20, 60, 172]),
    ),
    min_size=1,
    max_size=9,
)


def markdown(pieces: Sequence[tuple[str, int]], writer: Writer) -> str:
    out = []
    for kind, n in pieces:
        if kind in ("h1", "h2", "h3"):
            out.append("#" * int(kind[1]) + " " + writer.line(n))
        elif kind == "setext":
            out.append("\n".join(writer.line(min(n, 12)) for _ in range(max(1, n // 12))) + "\n---")
        elif kind == "rule":
            out.append("---")
        elif kind == "list":
            out.append("\n".join(f"- {writer.line(2)}\n  - {writer.line(n)}" for _ in range(3)))
        elif kind == "table":
            out.append(f"| {writer.line(1)} | {writer.line(1)} |\n|---|---|\n| {writer.line(n)} | {writer.line(2)} |")
        elif kind == "quote":
            out.append(f"> {writer.line(n)}")
        elif kind == "code":
            out.append(f"```\n{writer.line(n)}\n\n# {writer.line(2)}\n```")
        elif kind == "html":
            out.append(f"<div>\n<p>{writer.line(n)}</p>\n</div>")
        elif kind == "bold":
            out.append(f"**{writer.line(n)}** and [{writer.line(2)}](x.md).".replace(" and ", " "))
        else:
            out.append(writer.line(n) + ". " + writer.line(n) + ".")
    return "\n\n".join(out) + "\n"


SLOW = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SLOW
@given(pieces=PIECES, limit=st.integers(24, 260), minimum=st.integers(0, 30), titled=st.booleans())
def test_markdown(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[str, int]], limit: int, minimum: int, titled: bool
) -> None:
    writer = Writer()
    text = markdown(pieces, writer)
    seen = [f"w{n}" for n in range(writer.next)]
    if titled or not seen:
        check(seen, passages([Document("a.md", text, "A title", {}, "a.md")], limit, minimum))
    else:
        folder = tmp_path_factory.mktemp("words")
        (folder / "a.md").write_text(text, "utf-8")
        check(seen, passages(read_documents([folder]).documents, limit, minimum))


def underlined(words: str, mark: str) -> str:
    return f"{words}\n{mark * len(words)}"


@SLOW
@given(pieces=PIECES, limit=st.integers(24, 260), minimum=st.integers(0, 30))
def test_rst(tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[str, int]], limit: int, minimum: int) -> None:
    writer = Writer()
    out = []
    for kind, n in pieces:
        if kind in ("h1", "h2", "h3", "setext"):
            out.append(underlined(writer.line(n), {"h1": "=", "h2": "-", "h3": "~", "setext": "="}[kind]))
        elif kind == "code":
            out.append(f"{writer.line(n)}::\n\n    {writer.line(n)}\n\n    {writer.line(3)}")
        elif kind == "list":
            out.append(f"- {writer.line(n)}\n\n- {writer.line(2)}")
        else:
            out.append(writer.line(n) + ". " + writer.line(n) + ".")
    folder = tmp_path_factory.mktemp("words")
    (folder / "a.rst").write_text("\n\n".join(out) + "\n", "utf-8")
    check([f"w{n}" for n in range(writer.next)], passages(read_documents([folder]).documents, limit, minimum))


@SLOW
@given(
    sizes=st.lists(st.sampled_from([1, 5, 40, 300]), min_size=1, max_size=6),
    limit=st.integers(24, 260),
    name=st.sampled_from(["a.txt", "a.go", "a.py"]),
)
def test_plain_text_and_code(sizes: list[int], limit: int, name: str) -> None:
    writer = Writer()
    if name.endswith(".py"):
        text = "".join(
            f"class {writer.line(1)}:\n    def {writer.line(1)}(self):\n        {' + '.join(writer.words(n))}\n\n"
            for n in sizes
        )
    elif name.endswith(".go"):
        text = "".join(f"func {writer.line(1)}() {{\n\t{writer.line(n)}\n\n\t{writer.line(n)}\n}}\n\n" for n in sizes)
    else:
        text = "".join(writer.line(n) + ".\n\n" for n in sizes)
    check([f"w{n}" for n in range(writer.next)], passages([Document(name, text, "T", {}, name)], limit))


@SLOW
@given(pieces=st.lists(PIECES, min_size=1, max_size=4), limit=st.integers(24, 260))
def test_notebooks(tmp_path_factory: pytest.TempPathFactory, pieces: list[list[tuple[str, int]]], limit: int) -> None:
    writer = Writer()
    cells: list[object] = []
    for own in pieces:
        cells.append({"cell_type": "heading", "level": 2, "source": writer.line(own[0][1])})
        cells.append({"cell_type": "markdown", "source": markdown(own, writer).splitlines(keepends=True)})
        cells.append({"cell_type": "code", "source": writer.line(own[0][1])})
    folder = tmp_path_factory.mktemp("words")
    (folder / "a.ipynb").write_text(json.dumps({"cells": cells}), "utf-8")
    check([f"w{n}" for n in range(writer.next)], passages(read_documents([folder]).documents, limit))


@pytest.mark.parametrize("n", [1, 60, 172, 400, 3000])
def test_titles_of_any_length_from_every_reader(tmp_path: Path, n: int) -> None:
    title = " ".join(f"w{k}" for k in range(n))
    body = " ".join(f"w{k}" for k in range(n, n + 50)) + "."
    (tmp_path / "a.md").write_text(f"---\ntitle: {title}\n---\n{body}\n")
    (tmp_path / "b.md").write_text(f"# {title}\n\n{body}\n")
    (tmp_path / "c.rst").write_text(underlined(title, "=") + f"\n\n{body}\n")
    (tmp_path / "d.jsonl").write_text(json.dumps({"_id": "d", "title": title, "text": body}))
    (tmp_path / "e.html").write_text(f"<title>{title}</title><p>{body}</p>")
    (tmp_path / "f.ipynb").write_text(json.dumps({"cells": [{"source": body}], "metadata": {"title": title}}))
    (tmp_path / "g.md").write_text(f"{title}\n---\n\n{body}\n")
    documents = read_documents([tmp_path]).documents
    assert len(documents) == 7
    for document in documents:
        for limit in (64, 256):
            check([f"w{k}" for k in range(n + 50)], passages([document], limit))


def test_a_long_title_of_a_framework_s_document_opens_its_text() -> None:
    from langchain_core.documents import Document as Theirs

    title = " ".join(f"w{k}" for k in range(300))
    (document,) = documents_from([Theirs("Body.", metadata={"title": title})])
    assert document.text == f"{title}\n\nBody." and title.startswith(document.title) and len(document.title) < 300
    (same,) = documents_from([Theirs(f"{title}\n\nBody.", metadata={"title": title})])
    assert same.text == f"{title}\n\nBody."


def test_a_heading_that_its_path_has_no_room_for_stays_in_the_text() -> None:
    long = " ".join(f"w{n}" for n in range(172))
    for text in (f"{long}\n---\n\nTail.\n", f"# {long}\n\nTail.\n\n## Sub\n\nMore.\n"):
        chunks = passages([Document("a.md", text + "word " * 200, "T", {}, "a.md")], 100)
        assert long.split()[-1] in " ".join(c.text for c in chunks)
        assert all(part in long or part in ("T", "Sub") for c in chunks for part in c.heading_path)
