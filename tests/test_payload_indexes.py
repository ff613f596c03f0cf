"""Payload indexes of Qdrant engines: which fields get one, when, and that filters mean the same with them."""

from __future__ import annotations

import logging
import os
import uuid
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_retriever import fit_pages

pytest.importorskip("qdrant_client")

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

import ragadapt.index.qdrant
from ragadapt.config import IndexConfig
from ragadapt.errors import IndexUnreachable, InvalidConfiguration
from ragadapt.index import VectorIndex, check_index, compile_filter, engine_of, open_index
from ragadapt.index.payload import MOST, FieldTypes
from ragadapt.index.qdrant import CollectionLayout, QdrantIndex
from ragadapt.pipeline.refresh import refresh_documents
from ragadapt.retriever import Retriever

URL = "http://localhost:6333"
DOCUMENTS: list[dict[str, Any]] = [
    {"lang": "en", "year": 2024, "draft": True, "tags": ["a", "b"], "made": "2024-05-01", "loc": {"page": 1}},
    {"lang": "de", "year": 2024.5, "draft": False, "tags": "a", "made": "2024-05-02T12:00:00Z", "loc.page": 2},
    {"lang": "2024-05-01", "year": [1, 9], "tags": [], "odd name": "x"},
]
KEYS = {
    "metadata.lang": "keyword", "metadata.tags": "keyword", "metadata.year": "float", "metadata.draft": "bool",
    "metadata.made": "datetime", "metadata.loc.page": "float", 'metadata."loc.page"': "float",
    'metadata."odd name"': "keyword",
}  # fmt: skip


class Server:
    """An in-memory engine under the address of a server, which keeps the requests that change it."""

    def __init__(self, refusing: Sequence[str] = ()) -> None:
        self.engine = QdrantClient(":memory:", force_disable_check_same_thread=True)
        self.refusing = refusing
        self.requests: list[tuple[str, Any]] = []
        self.indexes: dict[str, Any] = {}

    def upsert(self, collection: str, points: list[Any], **options: Any) -> Any:
        self.requests.append(("upsert", len(points)))
        return self.engine.upsert(collection, points, **options)

    def create_payload_index(self, collection: str, field_name: str, field_schema: Any, wait: bool = True) -> None:
        assert wait
        if field_name in self.refusing:
            raise UnexpectedResponse(400, "Bad Request", b"too many payload indexes", None)  # type: ignore[arg-type]
        self.requests.append(("index", field_name))
        self.indexes[field_name] = field_schema

    def delete_payload_index(self, collection: str, field_name: str, wait: bool = True) -> None:
        assert wait
        if field_name in self.refusing:
            raise UnexpectedResponse(403, "Forbidden", b"no", None)  # type: ignore[arg-type]
        self.requests.append(("drop", field_name))
        del self.indexes[field_name]

    def get_collection(self, collection: str) -> Any:
        info = self.engine.get_collection(collection)
        types = {key: getattr(schema, "type", schema) for key, schema in self.indexes.items()}
        info.payload_schema = {
            key: models.PayloadIndexInfo(data_type=models.PayloadSchemaType(type), points=0)
            for key, type in types.items()
        }
        return info

    def close(self) -> None:
        """The next one who opens the collection finds it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def types(self) -> dict[str, str]:
        return {key: str(getattr(schema, "type", schema).value) for key, schema in self.indexes.items()}


def opened(monkeypatch: pytest.MonkeyPatch, server: Server, **settings: Any) -> QdrantIndex:
    monkeypatch.setattr(ragadapt.index.qdrant, "_connect", lambda *_: server)
    index = open_index("qdrant", url=URL, dim=2, **settings)
    assert isinstance(index, QdrantIndex)
    return index


def put(index: VectorIndex, payloads: Sequence[dict[str, Any]], first: int = 0) -> None:
    ids = [f"p{first + at}" for at in range(len(payloads))]
    index.upsert(ids, np.ones((len(ids), 2), np.float32), payloads)


# What a server is asked


def test_every_field_is_indexed_by_its_type_before_the_first_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    with opened(monkeypatch, server) as index:
        put(index, DOCUMENTS)
    assert server.types() == KEYS
    assert server.requests[-1] == ("upsert", 3)
    assert [what for what, _ in server.requests].count("upsert") == 1


def test_a_build_names_all_its_metadata_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a field whose first values are of one type and later ones of another gets none."""
    server = Server()
    with opened(monkeypatch, server) as index:
        index.prepare([*DOCUMENTS, {"lang": 7}])
        assert len(server.indexes) == len(KEYS) - 1 and "metadata.lang" not in server.indexes
        before = len(server.requests)
        put(index, DOCUMENTS)
        assert server.requests[before:] == [("upsert", 3)]


def test_a_field_that_comes_later_gets_its_index_then_and_an_old_one_no_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server()
    with opened(monkeypatch, server) as index:
        put(index, [{"lang": "en"}])
    with opened(monkeypatch, server) as index:
        put(index, [{"lang": "en", "year": 2024}], 1)
        put(index, [{"lang": "en", "year": 2025}], 2)
    assert server.requests == [
        ("index", "metadata.lang"), ("upsert", 1), ("index", "metadata.year"), ("upsert", 1), ("upsert", 1),
    ]  # fmt: skip


def test_the_setting_names_the_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    for named, keys in ((["year", "nowhere"], ["metadata.year"]), ([], [])):
        server = Server()
        with opened(monkeypatch, server, indexed_fields=named) as index:
            put(index, DOCUMENTS)
        assert list(server.indexes) == keys


def test_what_a_build_is_told_follows_the_setting(tmp_path: Path) -> None:
    config = IndexConfig(kind="qdrant", url=URL, indexed_fields=("a", "b.c"))
    assert engine_of("qdrant").building(config, tmp_path, (10, 2))["indexed_fields"] == ("a", "b.c")
    config = IndexConfig(kind="qdrant-edge", indexed_fields=())
    assert engine_of("qdrant-edge").building(config, tmp_path, (10, 2))["indexed_fields"] == ()


def test_a_tenants_field_keeps_its_own_index_in_every_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter asks for all of them, and one without an index makes the server read every passage."""
    server = Server()
    with opened(monkeypatch, server, layout=CollectionLayout(tenant_field="owner.team", on_disk=True)) as index:
        put(index, [{"owner": {"team": "red"}, "year": 1}])
    assert list(server.indexes) == ["metadata.owner.team", 'metadata."owner.team"', "metadata.year"]
    assert [getattr(one, "is_tenant", None) for one in server.indexes.values()] == [True, True, None]
    assert server.indexes["metadata.year"].on_disk


def test_what_the_server_refuses_is_told_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(refusing=["metadata.lang"])
    with opened(monkeypatch, server) as index:
        put(index, [{"a": 1, "lang": "en", "year": 3}, {"a": 2, "lang": "de"}, {"a": 2}])
        put(index, [{"lang": "fr"}], 3)
        assert list(server.indexes) == ["metadata.a"]
        assert sorted(index.ids({"lang": {"$in": ["en", "fr"]}})) == ["p0", "p3"]
    (told,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "No payload index was made of 'lang', 'year': Qdrant at http://localhost:6333 answered 400" in told
    assert "too many payload indexes" in told and "--rebuild" in told


def test_an_index_that_no_longer_holds_goes_before_the_upload_or_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server()
    with opened(monkeypatch, server) as index:
        put(index, [{"f": 2024}])
        assert index.ids({"f": {"$gte": "1970-01-01"}}) == []
        server.refusing = ["metadata.f"]
        with pytest.raises(IndexUnreachable, match="refused access"):
            put(index, [{"f": "2024-05-01"}], 1)
        assert len(index) == 1
        server.refusing = []
        put(index, [{"f": "2024-05-01"}], 1)
        assert server.requests[-2:] == [("drop", "metadata.f"), ("upsert", 1)]
        assert index.ids({"f": {"$gte": "1970-01-01"}}) == ["p1"]
        put(index, [{"f": 7}], 2)
    assert server.indexes == {}


def test_local_mode_makes_no_payload_index() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with open_index("qdrant", url=":memory:", dim=2) as index:
            put(index, DOCUMENTS)
            assert index.ids({"lang": "en"}) == ["p0"]


# Which fields


def test_the_fields_of_most_passages_come_first_and_the_rest_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    payloads: list[dict[str, Any]] = [
        {f"f{at:02}": at for at in range(MOST + 5)},
        {f"f{MOST + 4}": 1, "g": {"h": 1}},
        {"g": {"h": 1}},
    ]
    with opened(monkeypatch, server) as index:
        put(index, payloads)
    assert list(server.indexes)[:3] == [f"metadata.f{MOST + 4}", "metadata.g.h", 'metadata."g.h"']
    assert len(server.indexes) == MOST
    assert "filters on 'f29', 'f30'" in caplog.text and "index.indexed_fields" in caplog.text
    with opened(monkeypatch, server := Server(), indexed_fields=[f"f{at:02}" for at in range(MOST + 5)]) as index:
        put(index, payloads)
    assert len(server.indexes) == MOST + 5


def test_types_are_those_of_all_values() -> None:
    seen = FieldTypes([
        {"a": 1, "b": "x", "c": "2024-05-01", "d": True, "e": [1, "x"], "f": "2024-05-01", "g": "x" * 2000, "h": None},
        {"a": 2.5, "b": ["y"], "c": ["2024-05-02"], "d": 1, "f": "soon", "h": {}},
    ])  # fmt: skip
    found = {name: seen.type_of(name) for name in sorted(seen.names())}
    assert found == {
        "a": "float", "b": "keyword", "c": "datetime", "d": None, "e": None, "f": "keyword", "g": None,
    }  # fmt: skip


def test_a_field_of_several_types_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), opened(monkeypatch, server := Server()) as index:
        put(index, [{"f": 1}, {"f": "x"}, {'a"b': 1, "": 2}])
    assert server.indexes == {}
    assert "The field 'f' gets no payload index: its values are of several types (number, text)" in caplog.text


def test_a_field_that_no_filter_can_name_and_other_engines_are_refused() -> None:
    for kind, url in (("qdrant", URL), ("qdrant-edge", None)):
        check_index(IndexConfig(kind=kind, url=url, indexed_fields=("a.b c",)))
        for name in ('a"b', "", "a..b"):
            with pytest.raises(InvalidConfiguration, match=r"index\.indexed_fields has .*named as in filters"):
                check_index(IndexConfig(kind=kind, url=url, indexed_fields=(name,)))
    for kind in ("exact", "qdrant"):  # local mode
        with pytest.raises(InvalidConfiguration, match=r"index\.indexed_fields"):
            check_index(IndexConfig(kind=kind, indexed_fields=()))


# That filters mean the same


ONE_TYPE: dict[str, list[Any]] = {
    "float": [3, 3.0, 3.5, -2, 0, 2**53, 2**53 + 1, float(2**53), 2**62 + 1, -(2**62), [1, 9], 1.7e9, 4e18],
    "datetime": ["2024-05-01", "2024-05-01T12:00:00Z", "2024-05-01T14:00:00+02:00", "2024-05-01 12:00:00.5",
                 ["1970-01-01", "2030-01-01"], "0001-01-01", "9999-12-31"],
    "keyword": ["", "a", "A", "3", "banana split", ["a", "b"], "2024-05-01", "true", "ü"],
    "bool": [True, False, [True, False]],
}  # fmt: skip
VALUES = [3, 3.5, 2.5, 0, -2, 2**53, 2**53 + 1, 2**62, 1.7e9, 10**30, float("inf"), -float("inf")]
DATES = ["2024-05-01", "2024-05-01T12:00:00Z", "1970-01-01", "2023-11-14T22:13:20Z"]
FILTERS: list[dict[str, Any]] = [
    *({"f": {operator: value}} for operator in ("$gt", "$gte", "$lt", "$lte") for value in [*VALUES, *DATES]),
    *(
        {"f": {operator: values}}
        for operator in ("$in", "$nin", "$all")
        for values in ([2.5, "a"], [3, "2024-05-01"], [2**53 + 1, True], ["", "x"], [None, 3.5], ["1970-01-01", 4e18])
    ),
    *({"f": {"$exists": there}} for there in (True, False)),
    *({"f": {operator: value}} for operator in ("$eq", "$ne") for value in [True, False, "a", "2024-05-01", 3, None]),
    {"f": {"$text": "05-01"}}, {"f": {"$text": "nan"}},
    {"$not": {"f": {"$gte": "1970-01-01"}}}, {"$not": {"f": {"$gte": 0}}},
    {"$or": [{"f": {"$lt": "2024-01-01"}}, {"f": {"$gt": 3.2}}]},
]  # fmt: skip


@pytest.mark.parametrize("type", ONE_TYPE)
def test_every_filter_finds_the_same_with_an_index_of_each_type(type: str, tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge")
    payloads: list[dict[str, Any]] = [{}, {"f": None}, {"f": []}, *({"f": value} for value in ONE_TYPE[type])]
    with open_index("qdrant-edge", tmp_path / "i", dim=2) as index:
        put(index, payloads)
        assert edge_types(index) == {"metadata.f": type}
        for filter in FILTERS:
            passes = compile_filter(filter)
            expected = {f"p{at}" for at, payload in enumerate(payloads) if passes(payload)}
            assert set(index.ids(filter)) == expected, filter
            assert set(index.search([[1.0, 1.0]], 100, filter)[0][0]) == expected, filter


def test_edge_keeps_its_indexes_and_drops_one_that_no_longer_holds(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge")
    with open_index("qdrant-edge", tmp_path / "i", dim=2) as index:
        put(index, DOCUMENTS)
        assert edge_types(index) == KEYS
    with open_index("qdrant-edge", tmp_path / "i") as index:
        assert edge_types(index) == KEYS
        assert index.ids({"year": {"$gte": "1970-01-01"}}) == []  # as the index is known of
        assert sorted(index.ids({"loc.page": {"$gte": 1}})) == ["p0", "p1"]
        put(index, [{"year": "2024-05-01", "made": 4e18}], 3)
        assert edge_types(index) == {key: type for key, type in KEYS.items() if key[9:] not in ("year", "made")}
        assert index.ids({"year": {"$gte": "1970-01-01"}}) == ["p3"]
        assert sorted(index.ids({"made": {"$gte": 0}})) == ["p3"]
    with open_index("qdrant-edge", tmp_path / "j", dim=2, indexed_fields=[]) as index:
        put(index, DOCUMENTS)
        assert edge_types(index) == {} and index.ids({"lang": "de"}) == ["p1"]


def edge_types(index: Any) -> dict[str, str]:
    schema = index._shard.info().payload_schema
    return {key: repr(one.data_type).rpartition(".")[2].lower() for key, one in schema.items()}


@pytest.mark.slow
def test_a_fit_and_a_refresh_prepare_all_metadata_before_the_first_passage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("qdrant_edge")
    from ragadapt.index.edge import EdgeIndex

    prepared: list[tuple[int, int]] = []  # passages in the index, passages told of
    plain = EdgeIndex.prepare

    def prepare(index: EdgeIndex, payloads: Iterable[dict[str, Any]]) -> None:
        told = list(payloads)
        prepared.append((len(index), len(told)))
        plain(index, told)

    monkeypatch.setattr(EdgeIndex, "prepare", prepare)
    folder = fit_pages(tmp_path, kind="qdrant-edge")
    with Retriever.open(folder) as retriever:
        assert prepared[0] == (0, len(retriever.chunks))
        assert edge_types(retriever.searcher.index) == {"metadata.lang": "keyword", "metadata.number": "float"}
    (tmp_path / "docs" / "new.md").write_text("---\nowner: red\n---\n# New\n\nAn old stone.\n", encoding="utf-8")
    refresh_documents(folder, [tmp_path / "docs"])
    with Retriever.open(folder) as retriever:
        assert edge_types(retriever.searcher.index)["metadata.owner"] == "keyword"
        assert [hit.chunk.document_id for hit in retriever.search("old stone", 5, filter={"owner": "red"})] == [
            "new.md"
        ]


@pytest.mark.requires_server
@pytest.mark.parametrize("on_disk", [None, True])
def test_a_running_server_has_the_indexes_and_finds_the_same(on_disk: bool | None) -> None:
    url = os.environ["RAGADAPT_QDRANT_URL"]
    layout = CollectionLayout(on_disk=on_disk)
    index: Any = open_index("qdrant", url=url, collection=f"test-{uuid.uuid4()}", dim=2, layout=layout)
    try:
        payloads = [{}, *({type: value} for type, values in ONE_TYPE.items() for value in values)]
        index.prepare([*payloads, *DOCUMENTS])
        put(index, payloads)
        stored = index.client.get_collection(index.collection).payload_schema
        assert {key: info.data_type.value for key, info in stored.items()} == KEYS | {
            f"metadata.{type}": type for type in ONE_TYPE
        }
        for type in ONE_TYPE:
            for filter in FILTERS:
                asked = {type: filter["f"]} if "f" in filter else filter
                passes = compile_filter(asked)
                expected = {f"p{at}" for at, payload in enumerate(payloads) if passes(payload)}
                assert set(index.ids(asked)) == expected, asked
    finally:
        index.client.delete_collection(index.collection)
        index.close()
