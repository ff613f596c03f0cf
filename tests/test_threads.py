"""Several threads on one retriever: they search side by side, and each gets what it would get alone."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_retriever import fit_pages

from ragadapt.collection import Collection, open_collection
from ragadapt.encoder.tower import Tower
from ragadapt.errors import InvalidInput
from ragadapt.index.faiss import FaissIndex
from ragadapt.index.rows import Rows
from ragadapt.lexical.index import LexicalIndex
from ragadapt.retriever import Retriever
from ragadapt.store.chunks import ChunkStore
from ragadapt.threads import SharedLock
from ragadapt.values import Chunk, Document

QUERIES = [
    f"{first} {second}" for first in ("old", "red", "how do i open the", "river") for second in ("stone", "bridge")
]

DIM = 8


@pytest.fixture(scope="module", params=["exact", "faiss"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_pages(tmp_path_factory.mktemp(request.param), kind=request.param)


@pytest.fixture
def opened(folder: Path) -> Iterator[Retriever]:
    with Retriever.open(folder) as retriever:
        yield retriever


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What calls give that run at the same time."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [one.result(60) for one in [pool.submit(call) for call in calls]]


# The lock


def test_readers_share_a_lock_and_a_writer_is_alone() -> None:
    lock, met, inside = SharedLock(), threading.Barrier(2, timeout=20), []

    def read() -> None:
        with lock.shared(), lock.shared():
            met.wait()

    together(read, read)  # each waits for the other inside

    def write(number: int) -> None:
        with lock, lock, lock.shared():
            inside.append(number)
            time.sleep(0.01)
            inside.append(number)

    together(*(lambda number=number: write(number) for number in range(4)))  # type: ignore[misc]
    assert inside[::2] == inside[1::2]
    assert lock.acquire(timeout=0)
    lock.release()


def test_a_writer_waits_for_readers_and_goes_before_later_ones() -> None:
    lock, order = SharedLock(), list[str]()
    reading, go_on = threading.Event(), threading.Event()

    def first() -> None:
        with lock.shared():
            reading.set()
            assert go_on.wait(20)
            with lock.shared():  # who reads already is not kept waiting
                order.append("first")

    def writer() -> None:
        with lock:
            order.append("writer")

    def later() -> None:
        with lock.shared():
            order.append("later")

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert reading.wait(20)
    assert not lock.acquire(timeout=0.01)
    for work in (writer, later):
        threads.append(threading.Thread(target=work))
        threads[-1].start()
        while work is writer and not lock._waiting:
            time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert order == ["first", "writer", "later"]


def test_while_a_change_is_prepared_others_read_and_nobody_changes_anything() -> None:
    lock, order = SharedLock(), list[str]()

    def write() -> None:
        with lock:
            order.append("written")

    def read() -> None:
        with lock.shared():
            pass

    with lock.reserved(), lock.reserved():
        writer = threading.Thread(target=write)
        writer.start()
        for _ in range(20):
            together(read)
        assert not together(lambda: lock.acquire(timeout=0.01))[0]
        with lock:
            order.append("prepared")
    writer.join(20)
    assert order == ["prepared", "written"]


def test_who_was_alone_goes_on_reading_when_others_come() -> None:
    lock, order = SharedLock(), list[str]()
    with ExitStack() as held:
        with lock:
            held.enter_context(lock.shared())
            writer = threading.Thread(target=lambda: [lock.acquire(), order.append("written"), lock.release()])
            writer.start()
        together(lambda: lock.acquire(timeout=0.05))
        order.append("read")
    writer.join(20)
    assert order == ["read", "written"]


# One retriever


@contextmanager
def meeting(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[None]:
    """Inside the block two threads must be in this function at the same time, or both fail."""
    plain, met = getattr(owner, name), threading.Barrier(2, timeout=20)

    def both(*values: Any, **named: Any) -> Any:
        met.wait()
        return plain(*values, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, both)
        yield


@pytest.mark.parametrize(
    ("where", "name", "mode"),
    [("tower", "embed", "dense"), ("index", "search", "dense"), ("lexical", "scores", "lexical"),
     ("chunks", "find", "lexical")],
)  # fmt: skip
def test_no_search_waits_for_another(
    opened: Retriever, monkeypatch: pytest.MonkeyPatch, where: str, name: str, mode: Any
) -> None:
    owners: dict[str, Any] = {
        "tower": Tower, "index": opened.searcher.index, "lexical": LexicalIndex, "chunks": opened.chunks,
    }  # fmt: skip
    assert opened.encoder.query_tower is not None and opened.encoder.query_tower.stateless
    with meeting(monkeypatch, owners[where], name):
        found = together(*(lambda text=text: opened.search(text, 3, mode=mode, fold="none") for text in QUERIES[:2]))
    assert found == [opened.search(text, 3, mode=mode, fold="none") for text in QUERIES[:2]]


def test_searches_with_feedback_go_side_by_side(opened: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    key = opened.add_feedback("old stone", opened.chunks.ids()[3])
    try:
        with meeting(monkeypatch, LexicalIndex, "scores"):
            found = together(*(lambda lam=lam: opened.search("old stone", 5, lam=lam) for lam in (0.1, 0.7)))
        assert found == [opened.search("old stone", 5, lam=lam) for lam in (0.1, 0.7)]
    finally:
        opened.withdraw_feedback(key)


def test_many_threads_get_what_one_gets(opened: Retriever) -> None:
    filters: list[Any] = [None, {"lang": "en"}, {"number": {"$lt": 5}}, {"source": {"$text": "page0"}}]

    def ask(number: int) -> Any:
        return opened.search(QUERIES[number % 8], 4, filter=filters[number // 8 % 4], lam=1)

    expected = [ask(number) for number in range(32)]
    opened.snapshot().query_vectors.forget()
    opened.snapshot().filters.forget()
    ended = threading.Event()

    def give_feedback() -> None:
        while not ended.is_set():
            opened.withdraw_feedback(opened.add_feedback("how do i", opened.chunks.ids()[0]))
            opened.search("how do i", 3)

    writer = threading.Thread(target=give_feedback)
    writer.start()
    try:
        with ThreadPoolExecutor(32) as pool:
            for _ in range(3):
                assert list(pool.map(ask, range(32), timeout=60)) == expected
    finally:
        ended.set()
        writer.join(20)


def test_a_retriever_is_closed_when_the_searches_in_it_have_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Retriever.open(folder)
    inside, go_on = threading.Event(), threading.Event()
    plain = LexicalIndex.scores

    def slow(self: LexicalIndex, queries: Any) -> Any:
        inside.set()
        assert go_on.wait(20)
        return plain(self, queries)

    monkeypatch.setattr(LexicalIndex, "scores", slow)
    with ThreadPoolExecutor(2) as pool:
        search = pool.submit(opened.search, "old stone", 2)
        assert inside.wait(20)
        close = pool.submit(opened.close)
        time.sleep(0.05)
        assert not close.done()
        go_on.set()
        assert len(search.result(20)) == 2
        close.result(20)
    with pytest.raises(InvalidInput, match="was closed"):
        opened.search("old stone")


def test_what_was_cut_is_told_to_the_thread_that_asked(opened: Retriever) -> None:
    encoder, long = opened.encoder, "old stone " * 600

    def cut(texts: list[str]) -> int:
        for _ in range(5):
            encoder.encode_queries(texts)
        return encoder.truncated

    assert together(lambda: cut([long, "red"]), lambda: cut(["red"]), lambda: cut([long, f"{long} red"])) == [1, 0, 2]


def test_vectors_are_the_same_beside_other_threads(opened: Retriever) -> None:
    encoder = opened.encoder
    alone = [encoder.encode_queries([text]) for text in QUERIES]
    beside = together(*(lambda text=text: encoder.encode_queries([text]) for text in QUERIES))
    np.testing.assert_array_equal(np.stack(beside), np.stack(alone))
    counts = together(*(lambda: encoder.count_tokens(QUERIES), lambda: encoder.encode_queries(QUERIES)) * 3)
    assert all(counts[0] == one for one in counts[::2])


# Collections


def collection(kind: str, folder: Path | None = None, feedback: bool = False) -> Collection:
    """Twelve texts with vectors that differ."""
    where: Any = {"url": ":memory:"} if kind == "qdrant" else {"folder": folder}
    made = open_collection(kind, dim=DIM, feedback=feedback, embed=embedded if feedback else None, **where)
    texts = [f"{first} {second}" for first in ("old", "red", "river") for second in ("stone", "bridge", "fox", "lamp")]
    made.add([f"t{at}" for at in range(12)], texts, embedded(texts), [{"at": at} for at in range(12)])
    return made


def embedded(texts: Sequence[str]) -> Any:
    return np.stack([np.random.default_rng(sum(text.encode())).standard_normal(DIM) for text in texts])


@pytest.mark.parametrize("mode", ["dense", "hybrid", "lexical"])
@pytest.mark.parametrize(
    ("kind", "feedback"),
    [("exact", False), ("faiss", False), ("faiss", True), ("qdrant-edge", False), ("qdrant", False)],
)
def test_no_search_of_a_collection_waits_for_another(
    kind: str, feedback: bool, mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passages = collection(kind, tmp_path / "store", feedback)
    if kind in ("exact", "faiss"):
        passages.save()
    if feedback:
        passages.add_feedback("old stone", "t5")

    def ask(text: str) -> Any:
        return passages.search([text], embedded([text]), 3, mode=mode, filter={"at": {"$gte": 1}})

    alone = [ask(text) for text in QUERIES[:2]]
    owner, name = (LexicalIndex, "scores") if mode != "dense" else (type(passages.index), "search")
    with meeting(monkeypatch, owner, name):
        assert together(*(lambda text=text: ask(text) for text in QUERIES[:2])) == alone


@pytest.mark.parametrize("mode", ["dense", "hybrid"])
def test_searches_beside_changes_find_what_is_there(mode: Any) -> None:
    passages, ended = collection("faiss"), threading.Event()

    def change() -> None:
        for turn in range(30):
            new = [f"new {turn} lamp", "old stone"]
            passages.add([f"n{turn}", "t0"], new, embedded(new), [{}, {"at": 0}])
            passages.delete([f"n{turn - 1}"])

    def ask() -> None:
        while not ended.is_set():
            hits = passages.search(["old stone"], embedded(["old stone"]), 20, mode=mode)[0]
            assert hits[0].chunk.id == "t0"
            assert {f"t{at}" for at in range(12)} <= {hit.chunk.id for hit in hits}

    threads = [ThreadPoolExecutor(1) for _ in range(3)]
    asking = [pool.submit(ask) for pool in threads]
    try:
        change()
    finally:
        ended.set()
    for one in asking:
        one.result(20)


@pytest.mark.parametrize("structure", ["hnsw", "disk", "ivf"])
def test_an_index_is_searched_while_it_is_built_anew(structure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).standard_normal((3000, DIM))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = FaissIndex(DIM, structure=structure)
    index.upsert([str(at) for at in range(3000)], rows)
    building, go_on, plain = threading.Event(), threading.Event(), FaissIndex._new_engine

    def slow(self: FaissIndex, *values: Any) -> Any:
        building.set()
        assert go_on.wait(20)
        return plain(self, *values)

    monkeypatch.setattr(FaissIndex, "_new_engine", slow)
    with ThreadPoolExecutor(2) as pool:
        if structure == "ivf":  # which forgets, and is built for no left-overs
            index.delete([str(at) for at in range(1500)])
            rebuilt = pool.submit(index.restructure, "flat")
        else:
            rebuilt = pool.submit(index.delete, [str(at) for at in range(1500)])
        assert building.wait(20)
        writing = pool.submit(index.upsert, ["late"], -rows[:1])
        time.sleep(0.05)
        assert [ids[0] for ids, _ in index.search(rows[1500:1510], 5)] == [str(at) for at in range(1500, 1510)]
        assert all(int(id) >= 1500 for ids, _ in index.search(rows[:10], 5) for id in ids)
        assert not rebuilt.done() and not writing.done()
        go_on.set()
        rebuilt.result(20)
        writing.result(20)
    assert index.tombstones == 0
    assert index.search(-rows[:1], 1)[0][0] == ["late"]
    assert [ids[0] for ids, _ in index.search(rows[1500:1510], 5)] == [str(at) for at in range(1500, 1510)]


@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_an_index_is_searched_while_it_is_saved(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passages = collection(kind, tmp_path / "store")
    saving, go_on, plain = threading.Event(), threading.Event(), Rows.save

    def slow(self: Rows, *paths: Path) -> None:
        saving.set()
        assert go_on.wait(20)
        plain(self, *paths)

    def ask() -> list[str]:
        return [hit.chunk.id for hit in passages.search(["old stone"], embedded(["old stone"]), 20, mode="dense")[0]]

    monkeypatch.setattr(Rows, "save", slow)
    with ThreadPoolExecutor(2) as pool:
        saved = pool.submit(passages.save)
        assert saving.wait(20)
        changed = pool.submit(passages.delete, ["t1"])
        time.sleep(0.05)
        assert len(ask()) == 12
        assert not saved.done() and not changed.done()
        go_on.set()
        saved.result(20)
        changed.result(20)
    assert len(ask()) == 11
    with closing(open_collection(kind, dim=DIM, folder=tmp_path / "store")) as opened:
        assert len(opened) == 12  # what was there when it began


# Chunks


def chunk(text: str) -> Chunk:
    return Chunk("c", "d", text, end=len(text))


def stored(path: Path, text: str) -> Path:
    with ChunkStore.create(path) as store:
        store.add([Document("d", text)], [chunk(text)])
    return path


def test_every_thread_reads_through_a_connection_of_its_own(tmp_path: Path) -> None:
    met = threading.Barrier(3, timeout=20)
    with ChunkStore.open(stored(tmp_path / "chunks.sqlite", "old stone")) as store:

        def read() -> int:
            with store._reading() as connection:
                met.wait()
                assert connection.execute("SELECT text FROM chunks").fetchall() == [("old stone",)]
                met.wait()
                return id(connection)

        assert len(set(together(read, read, read))) == 3
        assert len(store._every) == 3
        assert len(set(together(read, read, read))) == 3
        assert len(store._every) == 3  # they are used again
    with pytest.raises(InvalidInput, match="was closed"):
        store.get(["c"])


def test_a_store_that_cannot_tell_which_file_it_opened_keeps_to_its_one_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(tmp_path / "chunks.sqlite", "old stone")
    other = stored(tmp_path / "other.sqlite", "new bridge")
    plain = sqlite3.connect

    def replaced(*values: Any, **named: Any) -> sqlite3.Connection:
        connection = plain(*values, **named)
        other.replace(path)  # between opening the file and looking which one it is
        monkeypatch.setattr(sqlite3, "connect", plain)
        return connection

    monkeypatch.setattr(sqlite3, "connect", replaced)
    with ChunkStore.open(path) as store:
        assert together(*(lambda: [store.get(["c"])[0].text for _ in range(20)],) * 3) == [["old stone"] * 20] * 3
        assert len(store._every) == 1


def test_a_store_goes_on_with_its_own_file_when_another_one_stands_at_its_path(tmp_path: Path) -> None:
    path = stored(tmp_path / "chunks.sqlite", "old stone")
    with ChunkStore.open(path) as store:
        path.rename(tmp_path / "before.sqlite")
        stored(path, "new bridge")
        (tmp_path / "before.sqlite").unlink()
        found = together(*(lambda: [store.get(["c"])[0].text for _ in range(20)],) * 4)
        assert found == [["old stone"] * 20] * 4
        assert len(store._every) == 1
        with ThreadPoolExecutor(1) as pool:
            with store._reading():
                waiting = pool.submit(store.get, ["c"])
                time.sleep(0.02)
                assert not waiting.done()
            assert waiting.result(20)[0].text == "old stone"
