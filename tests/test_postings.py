"""The postings of a saved retriever's fields: the same answers as a look at every passage, without looking at any."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from small_retriever import fit_pages
from test_index_filters import BIG, PAYLOADS, TABLE, TYPED, contents, filters

from ragadapt.config import IndexConfig
from ragadapt.errors import FormatTooNew, StoreCorrupt
from ragadapt.index.filters import Columns, Dated, Marked, Named, Not, compile_filter, parse
from ragadapt.index.postings import POSTINGS, FieldPostings
from ragadapt.index.rows import Rows
from ragadapt.pipeline.reindex import reindex
from ragadapt.retriever import Retriever
from ragadapt.store.chunks import ChunkStore

ODD: list[dict[str, Any]] = [
    *TYPED.values(),
    *PAYLOADS.values(),
    {"f": 2**64}, {"f": -(2**70)}, {"f": [2**64 + 1, "x", 1e300]}, {"f": 2**63 - 1}, {"f": -(2**63)}, {"f": 1e19},
    {"f": "Ünï\x00\xff"}, {"f": "straße"}, {"f": "STRASSE"}, {"f": ["a", "a", 1, 1, True]}, {"f": {}}, {"f": [[]]},
    {"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}, {"a.b.c.d.e.f": 2}, {"a.b": {"c.d.e.f": 3}}, {"": 1, "x": {"": "y"}},
    {"f": "0001-01-01"}, {"f": "9999-12-31T23:59:59.999999"}, {"f": "2024-05-01T12:00:00.123456789Z"},
]  # fmt: skip
MORE: list[dict[str, Any]] = [
    {"f": 2**64}, {"f": {"$gt": 2**64}}, {"f": {"$gte": 2.0**64}}, {"f": {"$lt": -(2**63)}},
    {"f": {"$lte": -(2.0**63)}},
    {"f": {"$gt": 9e18}}, {"f": {"$gt": 2.5}}, {"f": {"$lte": BIG}},
    {"f": {"$itext": "STRASSE"}}, {"f": {"$itext": "ß"}}, {"f": {"$text": "\xff"}}, {"f": {"$text": "\x00"}},
    {"f": {"$text": "a"}}, {"f": {"$itext": "A"}}, {"nothing": {"$text": "a"}}, {"nothing": {"$itext": "a"}},
    {"a.b.c.d.e.f": {"$gte": 1}}, {"a.b.c.d": {"$exists": True}}, {"f": {"$gt": "2024-05-01T12:00:00.123455Z"}},
    {"f": {"$lt": "2024-05-01"}}, {"f": {"$in": ["a", "Ünï\x00\xff", 2**64, BIG, True, None]}},
]  # fmt: skip


def reopened(made: FieldPostings, folder: Path) -> FieldPostings:
    made.save(folder / POSTINGS)
    return FieldPostings.open(folder / POSTINGS)


@pytest.fixture(scope="module", params=["made", "saved"])
def odd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FieldPostings:
    made = FieldPostings.build(ODD)
    return made if request.param == "made" else reopened(made, tmp_path_factory.mktemp("postings"))


def test_every_operator_means_the_same_of_every_value(odd: FieldPostings) -> None:
    assert len(odd) == len(ODD)
    columns = Columns(ODD)
    for filter in [*TABLE, *MORE]:
        passes, node = compile_filter(filter), parse(filter)
        found = odd.mask(node).tolist()
        assert found == [passes(payload) for payload in ODD], filter
        assert found == columns.mask(node).tolist(), filter


@settings(max_examples=150, deadline=None)
@given(st.lists(contents, max_size=8), filters)
def test_postings_agree_with_the_test_of_one_object(payloads: list[dict[str, Any]], filter: dict[str, Any]) -> None:
    passes = compile_filter(filter)
    found = FieldPostings.build(payloads).mask(parse(filter))
    assert found.tolist() == [passes(payload) for payload in payloads]


def test_building_holds_little_more_than_the_postings() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            FieldPostings.build({"year": 1990 + row % 40, "tenant": f"t{row % 50}"} for row in range(count))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(100)  # what is imported and made once
    assert peak(20_000) < 55 * 20_000  # they take 24 bytes a row, and sorting a field 20 beside them


def test_dates_in_lists_and_in_many_rows_are_found_in_order() -> None:
    payloads = [{"f": [f"2024-01-{1 + row % 3:02}", f"2023-05-{1 + row % 2:02}", "no date"]} for row in range(12)]
    made = FieldPostings.build([*payloads, {}, {"f": "2024-01-01"}])
    for filter in ({"f": {"$gte": "2024-01-02"}}, {"f": {"$lt": "2023-05-02"}}, {"f": "2024-01-01"}, {"f": "no date"}):
        accepts = compile_filter(filter)
        expected = [accepts(payload) for payload in [*payloads, {}, {"f": "2024-01-01"}]]
        assert made.mask(parse(filter)).tolist() == expected


def test_one_element_must_lie_within_both_ends_of_a_period(odd: FieldPostings) -> None:
    payloads = [{"f": ["2024-05-01", "2024-07-01"]}, {"f": "2024-06-01"}]
    june = Dated(("f",), gte=datetime(2024, 6, 1, tzinfo=UTC), lt=datetime(2024, 7, 1, tzinfo=UTC))
    assert FieldPostings.build(payloads).mask(june).tolist() == [False, True]


def test_strings_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", lambda text: len(text) % 2)
    words = ["a", "b", "ccc", "dd", "eeee", "", "ggggg"]
    made = FieldPostings.build([{"f": word} for word in words])
    for word in [*words, "z", "zz"]:
        assert made.mask(parse({"f": word})).tolist() == [one == word for one in words]
    assert made.mask(parse({"f": {"$in": ["a", "ggggg", "hhhhh"]}})).tolist() == [
        one in ("a", "ggggg") for one in words
    ]


def test_ten_thousand_values_at_once() -> None:
    chance = np.random.default_rng(13)
    payloads = [{"acl": [f"g{number}" for number in chance.integers(0, 20_000, 3)]} for _ in range(2_000)]
    groups = [f"g{number}" for number in range(5_000, 15_000)]
    node, made = parse({"acl": {"$in": groups}}), FieldPostings.build(payloads)
    expected = [any(5_000 <= int(group[1:]) < 15_000 for group in payload["acl"]) for payload in payloads]
    assert made.mask(node).tolist() == expected == Columns(payloads).mask(node).tolist()


def test_no_passages_and_no_fields(tmp_path: Path) -> None:
    for payloads in ([], [{}, {}]):
        made = reopened(FieldPostings.build(payloads), tmp_path)
        assert made.mask(parse({"f": 1})).tolist() == [False] * len(payloads)
        assert made.mask(parse({"f": None})).tolist() == [True] * len(payloads)


def test_ids_are_found_by_whoever_knows_the_rows() -> None:
    made = FieldPostings.build([{"id": "x"}, {}, {}])
    rows = {"a": 0, "b": 1, "c": 2}
    named = Not(Named(frozenset({"a", "elsewhere"})))
    assert made.mask(named, lambda ids: [rows[id] for id in ids if id in rows]).tolist() == [False, True, True]


def test_a_file_of_another_time_or_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / POSTINGS
    FieldPostings.build([{"f": "a"}]).save(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"format":"1"', b'"format":"9"'))
    with pytest.raises(FormatTooNew, match="format 9"):
        FieldPostings.open(path)
    for damaged in (data[:100], b"", data[:8] + b"?" + data[9:], data[:-40]):
        path.write_bytes(damaged)
        with pytest.raises(StoreCorrupt, match="cannot be read"):
            FieldPostings.open(path)


def test_rows_of_another_order_take_marks_by_their_ids() -> None:
    places = {"a": 0, "b": 1, "c": 2}
    marked = Marked(["a", "b", "c"], np.array([True, False, True]), lambda ids: np.array([places[id] for id in ids]))
    for ids in (["a", "b", "c"], ["c", "x", "b", "a"], ["b"]):
        rows = Rows(list(ids))
        expected = [id in ("a", "c") for id in ids]
        assert rows.mask(marked).tolist() == expected == rows.mask(marked).tolist()
    rows = Rows(["a", "b", "c"])
    assert rows.mask(marked).tolist() == [True, False, True]
    rows.keep(np.array([False, True, True]))
    rows.add(["d"], [{}])
    assert rows.mask(marked).tolist() == [False, True, False]
    assert Columns([{}, {}], lambda ids: [0 for id in ids if id == "c"]).mask(marked).tolist() == [True, False]
    assert compile_filter(Not(marked))({}, "b") and not compile_filter(marked)({}, None)


# In a retriever


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_pages(tmp_path_factory.mktemp("postings"), kind="exact")


def without_postings(folder: Path, target: Path) -> Path:
    """The folder as a version without postings wrote it."""
    from ragadapt.store.workspace import MANIFEST, Manifest, open_store

    shutil.copytree(folder, target)
    (target / POSTINGS).unlink()
    manifest = open_store(folder).manifest
    files = {name: record for name, record in manifest.files.items() if name != POSTINGS}
    values = {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}
    (target / MANIFEST).write_text(Manifest(**{**values, "files": files}).to_json(), encoding="utf-8")
    return target


ASKED: list[dict[str, Any]] = [
    {"lang": "en"}, {"number": {"$gte": 6}}, {"source": "page03.md"}, {"heading": {"$text": "Part 1"}},
    {"$or": [{"id": {"$itext": "PAGE01"}}, {"number": 2}]}, {"document_id": {"$nin": ["page00.md"]}}, {"draft": None},
]  # fmt: skip


def expected(opened: Retriever, filter: dict[str, Any]) -> list[str]:
    passes = compile_filter(filter)
    return [id for id, fields in opened.chunks.shown() if passes(fields)]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """What was read of metadata since the last call."""
    read: list[str] = []
    plain = ChunkStore.shown

    def shown(self: ChunkStore) -> Any:
        read.append("chunks")
        return plain(self)

    parsed = Rows._read

    def read_payloads(self: Rows, path: Path) -> Any:
        read.append("index")
        return parsed(self, path)

    monkeypatch.setattr(ChunkStore, "shown", shown)
    monkeypatch.setattr(Rows, "_read", read_payloads)

    def since() -> list[str]:
        found = list(read)
        read.clear()
        return found

    yield since


@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_a_filter_reads_no_metadata(folder: Path, tmp_path: Path, counted: Callable[[], list[str]], kind: str) -> None:
    if kind == "faiss":
        shutil.copytree(folder, tmp_path / "retriever")
        folder = reindex(tmp_path / "retriever", IndexConfig(kind="faiss"))
        counted()
    with Retriever.open(folder) as opened:
        for filter in ASKED:
            assert opened.passing(filter)
            assert opened.search("red bridge", 3, filter=filter, mode="dense")
            opened.search("red bridge", 3, filter=filter, mode="lexical")
            opened.search("red bridge", 3, filter=filter)
        assert counted() == []
        for filter in ASKED:
            assert opened.passing(filter) == expected(opened, filter)


def test_an_older_folder_is_read_once_and_gets_them_when_it_is_rebuilt(
    folder: Path, tmp_path: Path, counted: Callable[[], list[str]]
) -> None:
    old = without_postings(folder, tmp_path / "old")
    with Retriever.open(folder) as new, Retriever.open(old) as opened:
        assert counted() == []
        for filter in ASKED:
            assert opened.search("red bridge", 5, filter=filter) == new.search("red bridge", 5, filter=filter)
            assert opened.passing(filter) == new.passing(filter)
        assert counted() == ["chunks"]
    assert not (old / POSTINGS).exists()
    reindex(old, IndexConfig(kind="exact"))
    counted()
    with Retriever.open(old) as opened:
        assert opened.passing({"lang": "en"})
        assert counted() == []


def test_postings_of_another_build_are_refused(folder: Path, tmp_path: Path) -> None:
    from ragadapt.snapshot import Snapshot
    from ragadapt.store.workspace import open_store

    shutil.copytree(folder, tmp_path / "retriever")
    FieldPostings.build([{"lang": "en"}]).save(tmp_path / "retriever" / POSTINGS)
    with pytest.raises(StoreCorrupt, match="is about 1 passages"):
        Snapshot.load(open_store(tmp_path / "retriever", "none"), "cpu", "float32")


def test_they_lie_in_the_format_of_safetensors(folder: Path) -> None:
    from safetensors.numpy import load_file

    arrays = load_file(folder / POSTINGS)
    with Retriever.open(folder) as opened:
        names = json.loads(arrays["names"].tobytes())
        assert {"lang", "number", "id", "document_id", "source", "heading"} == {name for (name,) in names}
        at = names.index(["lang"])
        start, end = arrays["starts"][at : at + 2, 0]
        assert arrays["present"][start:end].tolist() == list(range(len(opened)))
