"""Objects of other programs: known by their attributes, imported by no one."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from ragadapt.config import ChunkConfig
from ragadapt.corpus import chunk_documents, chunks_from, documents_from
from ragadapt.errors import EmptyCorpus, InvalidInput
from ragadapt.values import Chunk, Document


@dataclass
class LangChain:
    page_content: str
    metadata: dict[str, Any] = field(default_factory=dict)
    id: str | None = None


@dataclass
class LlamaNode:
    text: str
    node_id: str = "n"
    metadata: dict[str, Any] = field(default_factory=dict)
    ref_doc_id: str | None = None
    start_char_idx: int | None = None

    def get_content(self, metadata_mode: str = "none") -> str:
        return self.text


@dataclass
class NodeWithScore:
    node: LlamaNode
    score: float = 1.0


def test_langchain_documents_keep_their_text_id_and_metadata() -> None:
    given = LangChain("Text.\r\n", {"source": "a.md", "title": "T", "page": 2}, id="x1")
    (document,) = documents_from([given])
    assert document == Document("x1", "Text.\r\n", "T", {"source": "a.md", "title": "T", "page": 2}, "a.md")


def test_documents_without_id_are_known_by_source_then_by_content() -> None:
    given = [
        LangChain("one", {"source": "p.pdf"}),
        LangChain("two", {"source": "p.pdf"}),
        LangChain("three", {"source": "q.md"}),
        "four",
    ]
    documents = documents_from(given)
    assert [d.id for d in documents[:3]] == ["p.pdf#0", "p.pdf#1", "q.md"]
    assert documents_from(["zero", "four"])[1].id == documents[3].id


def test_the_same_string_twice_is_one_document() -> None:
    assert [d.text for d in documents_from(["a", "b", "a"])] == ["a", "b"]


def test_metadata_become_json_values() -> None:
    values = {
        "when": datetime.date(2024, 5, 6),
        "n": np.float32(0.5),
        "tags": {"b", "a"},
        "x": object,
        "f": float("nan"),
    }
    (document,) = documents_from([LangChain("t", values)])
    assert document.metadata["when"] == "2024-05-06"
    assert document.metadata["n"] == 0.5
    assert document.metadata["tags"] == ["a", "b"]
    json.dumps(dict(document.metadata), allow_nan=False)


def test_llama_index_nodes_become_chunks_of_their_documents() -> None:
    nodes = [
        LlamaNode("first", "n1", {"header_path": "/Guide/Setup/", "title": "Guide"}, ref_doc_id="d", start_char_idx=7),
        NodeWithScore(LlamaNode("second", "n2", {"file_path": "docs/b.md"})),
    ]
    one, two = chunks_from(nodes)
    assert (one.id, one.document_id, one.heading_path, one.start, one.end) == ("n1", "d", ("Guide", "Setup"), 7, 12)
    assert (two.id, two.document_id, two.text, two.source) == ("n2", "docs/b.md", "second", "docs/b.md")


def test_split_langchain_documents_become_numbered_chunks_of_their_source() -> None:
    pieces = [
        LangChain("one", {"source": "a.md", "Header 1": "A", "Header 2": "B", "start_index": 4}),
        LangChain("two", {"source": "a.md"}),
        LangChain("three", {"source": "b.md"}),
    ]
    chunks = chunks_from(pieces)
    assert [c.id for c in chunks] == ["a.md#0", "a.md#1", "b.md#0"]
    assert (chunks[0].heading_path, chunks[0].start, chunks[0].end) == (("A", "B"), 4, 7)


def test_our_own_values_pass_through() -> None:
    document, chunk = Document("a", "text", "T", {"k": 1}, "s"), Chunk("c", "a", "text")
    assert documents_from([document]) == [document]
    assert chunks_from([chunk]) == [chunk]
    assert chunks_from([document]) == [Chunk("a#0", "a", "text", ("T",), 0, 4, {"k": 1}, "s")]


@pytest.mark.parametrize("function", [documents_from, chunks_from])
@pytest.mark.parametrize("single", ["one text", b"bytes", {"text": "x"}, LangChain("x"), 5])
def test_a_single_object_where_a_list_belongs_is_refused(function: Any, single: Any) -> None:
    with pytest.raises(InvalidInput, match="takes a list"):
        function(single)


@pytest.mark.parametrize("function", [documents_from, chunks_from])
def test_wrong_objects_ids_used_twice_and_empty_lists_are_refused(function: Any) -> None:
    with pytest.raises(InvalidInput, match="Object 1 is int"):
        function(["a", 3])
    with pytest.raises(InvalidInput, match="'x' is used twice, by items 0 and 1"):
        function([LangChain("a", id="x"), LangChain("b", id="x")])
    with pytest.raises(EmptyCorpus):
        function([LangChain("  ")])
    with pytest.raises(EmptyCorpus):
        function([])


def test_objects_without_text_are_left_out() -> None:
    assert [d.text for d in documents_from(["a", " ", LangChain("b", id="b")])] == ["a", "b"]


def test_windows_line_ends_keep_their_offsets_through_chunking() -> None:
    text = "# A\r\n\r\nSome words in here.\r\n\r\n## B\r\n\r\nOther words in there.\r\n"
    (document,) = documents_from([LangChain(text, {"source": "a.md"})])
    chunks = chunk_documents([document], ChunkConfig(min_tokens=0), lambda ts: [len(t.split()) for t in ts], 9)
    assert [(c.heading_path, c.text) for c in chunks] == [
        (("A",), "Some words in here."),
        (("A", "B"), "Other words in there."),
    ]
    assert all(text[c.start : c.end] == c.text for c in chunks)


def test_neither_framework_nor_torch_is_imported() -> None:
    code = (
        "import sys, ragadapt.corpus; "
        "print([m for m in ('langchain_core', 'llama_index', 'torch', 'pypdf', 'docx') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
