"""The chunk store gives back what was put in, in order, to any thread, and never half of an addition."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragadapt.errors import FormatTooNew, InvalidInput, StoreCorrupt
from ragadapt.store.chunks import ChunkStore, document_hash
from ragadapt.values import Chunk, Document

DOCUMENTS = [
    Document("b.md", "two chunks here", title="B", metadata={"lang": "en", "tags": ["x", 1, None]}, source="b.md"),
    Document("a.md", "one", title="日本語", source="a.md"),
]
CHUNKS = [
    Chunk("b#1", "b.md", "two chunks", ("B", "First"), 0, 10, {"lang": "en"}, "b.md"),
    Chunk("b#0", "b.md", "here", ("B",), 11, 15, before=" ", continues=True),
    Chunk("a#0", "a.md", "one", ("日本語",), 0, 3, {"page": 3}, "a.md"),
]


@pytest.fixture
def store(tmp_path: Path) -> ChunkStore:
    with ChunkStore.create(tmp_path / "chunks.sqlite") as new:
        new.add(DOCUMENTS, CHUNKS)
    return ChunkStore.open(tmp_path / "chunks.sqlite")


def test_chunks_come_back_in_the_order_asked(store: ChunkStore) -> None:
    assert store.get(["a#0", "b#1", "a#0"]) == [CHUNKS[2], CHUNKS[0], CHUNKS[2]]
    assert store.get([]) == []


def test_iteration_keeps_the_order_of_addition_across_pages(tmp_path: Path) -> None:
    chunks = [Chunk(f"c{i * 7919 % 1301}", "d", f"text {i}", start=i, end=i + 1) for i in range(1301)]
    with ChunkStore.create(tmp_path / "c.sqlite") as store:
        store.add([Document("d", "")], chunks)
        assert list(store) == chunks
        assert store.ids() == [chunk.id for chunk in chunks]
        assert store.get(store.ids()[::-1]) == chunks[::-1]
        assert len(store) == 1301


def test_find_leaves_unknown_ids_out_and_get_names_them(store: ChunkStore) -> None:
    assert store.find(["nope", "b#0"]) == {"b#0": CHUNKS[1]}
    assert "b#0" in store and "nope" not in store and 3 not in store
    with pytest.raises(InvalidInput, match=r"1 of 2 chunks.*nope"):
        store.get(["b#0", "nope"])


def test_chunks_of_a_document_are_sorted_by_where_they_start(store: ChunkStore) -> None:
    assert [chunk.id for chunk in store.of_document("b.md")] == ["b#1", "b#0"]
    assert store.of_document("unknown") == []


def test_documents_keep_everything_but_their_text(store: ChunkStore) -> None:
    first, second = store.documents()
    assert (first.id, first.title, first.metadata) == ("a.md", "日本語", {})
    assert (second.source, second.metadata) == ("b.md", {"lang": "en", "tags": ["x", 1, None]})
    assert second.content_hash == document_hash(DOCUMENTS[0])


def test_document_hash_changes_with_every_field_that_chunks_are_made_of() -> None:
    base = Document("i", "text", "title", {"k": 1}, "source")
    variants = [
        Document("i", "text!", "title", {"k": 1}, "source"),
        Document("i", "text", "title!", {"k": 1}, "source"),
        Document("i", "text", "title", {"k": 2}, "source"),
        Document("i", "text", "title", {"k": 1}, "source!"),
        Document("i", "texttitle", "", {"k": 1}, "source"),
    ]
    assert len({document_hash(d) for d in [base, *variants]}) == 6
    assert document_hash(Document("other", "text", "title", {"k": 1}, "source")) == document_hash(base)


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4),
    metadata=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.just("é\0"),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("k"), inner),
            max_leaves=4,
        ),
        max_size=3,
    ),
)
def test_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], metadata: dict[str, object]
) -> None:
    path = tmp_path_factory.mktemp("chunks") / "c #?%.sqlite"
    chunks = [Chunk(f"{i}{t}", "d", t, tuple(texts), i, i + len(t), metadata, t) for i, t in enumerate(texts)]
    with ChunkStore.create(path) as store:
        store.add([Document("d", "", metadata=metadata)], chunks)
    with ChunkStore.open(path) as store:
        assert list(store) == chunks
        assert store.documents()[0].metadata == metadata


def test_an_addition_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with ChunkStore.create(tmp_path / "c.sqlite") as store:
        store.add(DOCUMENTS, CHUNKS)
        fresh = Document("c.md", "three")
        for document, chunk, complaint in [
            (fresh, Chunk("a#0", "c.md", "three"), "'a#0'.*UNIQUE"),
            (fresh, Chunk("c#0", "d.md", "three"), "'c#0'.*FOREIGN KEY"),
            (DOCUMENTS[0], Chunk("c#0", "c.md", "three"), "'b.md'.*UNIQUE"),
            (fresh, Chunk("c#0", "c.md", "three", metadata={"when": object()}), "'c#0'.*object"),
            (fresh, Chunk("c#0", "c.md", "three", metadata={"x": float("nan")}), "'c#0'"),
            (fresh, Chunk("c#0", "c.md", "\ud800"), "lone surrogate"),
        ]:
            with pytest.raises(InvalidInput, match=complaint):
                store.add([document], [Chunk("c#first", "c.md", "fine"), chunk])
            assert store.ids() == ["b#1", "b#0", "a#0"]
            assert [d.id for d in store.documents()] == ["a.md", "b.md"]


def test_a_store_that_is_opened_for_writing_takes_more(tmp_path: Path) -> None:
    with ChunkStore.create(tmp_path / "c.sqlite") as store:
        store.add([DOCUMENTS[1]], [CHUNKS[2]])
    with ChunkStore.open(tmp_path / "c.sqlite", writable=True) as store:
        assert list(store) == [CHUNKS[2]]
        store.add([DOCUMENTS[0]], CHUNKS[:2])
        assert store.ids() == ["a#0", "b#1", "b#0"]


def test_many_threads_read_the_same_values(store: ChunkStore) -> None:
    problems: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(100):
                assert store.get(["b#1", "a#0"]) == [CHUNKS[0], CHUNKS[2]]
                assert list(store) == CHUNKS
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_reading_makes_no_file_and_cannot_write(store: ChunkStore) -> None:
    list(store)
    assert [file.name for file in store.path.parent.iterdir()] == ["chunks.sqlite"]
    with pytest.raises(InvalidInput, match="writable=True"):
        store.add([Document("x", "")], [])


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreCorrupt, match="missing"):
        ChunkStore.open(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_text("hello, I am no database at all" * 9)
    with pytest.raises(StoreCorrupt, match="no chunks"):
        ChunkStore.open(tmp_path / "text.sqlite")
    sqlite3.connect(tmp_path / "empty.sqlite").close()
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(StoreCorrupt, match="no such table"):
        ChunkStore.open(tmp_path / "empty.sqlite")
    with pytest.raises(InvalidInput, match="exists"):
        ChunkStore.create(tmp_path / "text.sqlite")


def test_a_newer_format_is_refused(store: ChunkStore) -> None:
    connection = sqlite3.connect(store.path)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(FormatTooNew, match="format 9"):
        ChunkStore.open(store.path)


def test_a_closed_store_says_so(store: ChunkStore) -> None:
    store.close()
    with pytest.raises(InvalidInput, match="was closed"):
        len(store)


def test_neighbours_are_those_of_the_same_document_by_place_nearest_first(tmp_path: Path) -> None:
    chunks = [Chunk(f"{d}{n}", d, f"text {n}", start=10 * n, end=10 * n + 6) for n in (3, 1, 0, 2, 4) for d in "xy"]
    with ChunkStore.create(tmp_path / "c.sqlite") as store:
        store.add([Document("x", ""), Document("y", "")], chunks)
        assert [one.id for one in store.neighbours("x1", 2)] == ["x2", "x3"]
        assert [one.id for one in store.neighbours("x1", 9)] == ["x2", "x3", "x4"]
        assert [one.id for one in store.neighbours("y3", 2, back=True)] == ["y2", "y1"]
        assert store.neighbours("y4", 2) == store.neighbours("nobody", 2) == []


def test_passages_at_one_place_follow_each_other_as_they_were_added(tmp_path: Path) -> None:
    with ChunkStore.create(tmp_path / "c.sqlite") as store:
        store.add([Document("d", "")], [Chunk(id, "d", id) for id in ("b", "a", "c")])
        assert [one.id for one in store.neighbours("b", 5)] == ["a", "c"]
        assert [one.id for one in store.neighbours("c", 5, back=True)] == ["a", "b"]


def test_a_file_of_an_earlier_version_is_read_without_what_it_lacks(tmp_path: Path) -> None:
    with ChunkStore.create(tmp_path / "c.sqlite") as store:
        store.add(DOCUMENTS, CHUNKS)
    with sqlite3.connect(tmp_path / "c.sqlite") as connection:
        connection.execute("ALTER TABLE chunks DROP COLUMN before")
        connection.execute("ALTER TABLE chunks DROP COLUMN continues")
    with ChunkStore.open(tmp_path / "c.sqlite") as old:
        assert list(old) == [CHUNKS[0], replace(CHUNKS[1], before="", continues=False), CHUNKS[2]]
        assert [one.id for one in old.neighbours("b#1", 3)] == ["b#0"]
