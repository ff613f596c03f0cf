"""Metadata filters: their meaning, and that every engine shares it."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from ragadapt.errors import InvalidFilter
from ragadapt.index import VectorIndex, compile_filter, open_index
from ragadapt.index.filters import Columns, parse
from ragadapt.index.foreign import ForeignQdrantIndex


class Colour(enum.StrEnum):
    RED = "red"


class Size(enum.IntEnum):
    THREE = 3


class Plain(enum.Enum):
    X = 1


PAYLOADS: dict[str, dict[str, Any]] = {
    "empty": {},
    "null": {"f": None},
    "no-elements": {"f": []},
    "only-null": {"f": [None]},
    "one": {"f": 1},
    "one-float": {"f": 1.0},
    "half": {"f": 1.5},
    "true": {"f": True},
    "false": {"f": False},
    "string-1": {"f": "1"},
    "a": {"f": "a"},
    "upper": {"f": "A"},
    "long": {"f": "banana split"},
    "ab": {"f": ["a", "b"]},
    "numbers": {"f": [1, 9]},
    "mixed": {"f": [True, "a", 2, None]},
    "object": {"f": {"g": "a", "h": {"i": 3}}},
    "objects": {"f": [{"g": "a"}]},
    "odd-names": {"f g": 1, "ü": 2, "a-b_C9": 3, "9": 4, "f": {"x y": {"ö": True}}},
}

# filter, and what passes
CASES: list[tuple[dict[str, Any], set[str]]] = [
    ({}, set(PAYLOADS)),
    ({"f": "a"}, {"a", "ab", "mixed"}),
    ({"f": {"$eq": "a"}}, {"a", "ab", "mixed"}),
    ({"f": {"$contains": "b"}}, {"ab"}),
    ({"f": 1}, {"one", "one-float", "numbers"}),
    ({"f": 1.0}, {"one", "one-float", "numbers"}),
    ({"f": 1.5}, {"half"}),
    ({"f": True}, {"true", "mixed"}),
    ({"f": False}, {"false"}),
    ({"f": None}, {"empty", "null", "no-elements"}),
    ({"f": {"$exists": False}}, {"empty", "null", "no-elements"}),
    ({"f": {"$exists": True}}, set(PAYLOADS) - {"empty", "null", "no-elements"}),
    ({"f": {"$ne": None}}, set(PAYLOADS) - {"empty", "null", "no-elements"}),
    ({"f": {"$ne": "a"}}, set(PAYLOADS) - {"a", "ab", "mixed"}),
    ({"f": {"$in": ["b", 9, False]}}, {"ab", "numbers", "false"}),
    ({"f": {"$in": ["b", None]}}, {"ab", "empty", "null", "no-elements"}),
    ({"f": {"$in": []}}, set()),
    ({"f": {"$nin": []}}, set(PAYLOADS)),
    ({"f": {"$nin": ["a", 1]}}, set(PAYLOADS) - {"a", "ab", "mixed", "one", "one-float", "numbers"}),
    ({"f": {"$all": ["a", "b"]}}, {"ab"}),
    ({"f": {"$all": []}}, set(PAYLOADS)),
    ({"f": {"$gt": 1}}, {"half", "numbers", "mixed"}),
    ({"f": {"$gte": 1}}, {"one", "one-float", "half", "numbers", "mixed"}),
    ({"f": {"$lt": 1.5}}, {"one", "one-float", "numbers"}),
    ({"f": {"$gt": 1, "$lt": 9}}, {"half", "mixed", "numbers"}),  # two tests: other elements may pass each
    ({"f": {"$text": "an"}}, {"long"}),
    ({"f": {"$text": "a"}}, {"a", "long", "ab", "mixed"}),
    ({"f.g": "a"}, {"object"}),
    ({"f.h.i": {"$gte": 3}}, {"object"}),
    ({"f.h": {"$exists": True}}, {"object"}),
    ({"f.x y.ö": True}, {"odd-names"}),
    ({"f g": 1, "ü": 2, "a-b_C9": 3, "9": 4}, {"odd-names"}),
    ({"$and": [{"f": "a"}, {"f": "b"}]}, {"ab"}),
    ({"$and": []}, set(PAYLOADS)),
    ({"$or": [{"f": "A"}, {"f": {"$gt": 8}}]}, {"upper", "numbers"}),
    ({"$or": []}, set()),
    ({"$not": {"f": {"$exists": True}}}, {"empty", "null", "no-elements"}),
    ({"$not": {}}, set()),
    ({"f": {"$ne": "a"}, "$or": [{"f": "b"}, {"f": 1}]}, {"one", "one-float", "numbers"}),
    ({"missing": {"$ne": 3}}, set(PAYLOADS)),
    ({"missing": {"$lt": 3}}, set()),
]

ENGINES: list[dict[str, Any]] = [
    {"kind": "exact"},
    {"kind": "faiss"},
    {"kind": "faiss", "structure": "hnsw"},
    {"kind": "qdrant", "url": ":memory:"},
    {"kind": "qdrant-edge"},
]


MORE = [{"kind": "faiss", "structure": "ivf"}, {"kind": "faiss", "structure": "disk"}]


def opened(engine: dict[str, Any], payloads: list[dict[str, Any]], ids: list[str]) -> VectorIndex:
    index = open_index(**engine, dim=2)
    index.upsert(ids, np.stack([np.arange(1, len(ids) + 1), np.ones(len(ids))], axis=1), payloads)
    return index


@pytest.fixture(scope="module", params=ENGINES, ids=lambda engine: "-".join(engine.values()))
def index(request: pytest.FixtureRequest) -> Iterator[VectorIndex]:
    with opened(request.param, list(PAYLOADS.values()), list(PAYLOADS)) as made:
        yield made


@pytest.mark.parametrize(
    ("filter", "expected"), CASES, ids=lambda case: str(sorted(case) if isinstance(case, set) else case)[:60]
)
def test_a_filter_lets_pass_what_its_meaning_says(
    index: VectorIndex, filter: dict[str, Any], expected: set[str]
) -> None:
    assert set(index.ids(filter)) == expected
    [(ids, _)] = index.search([[1.0, 0.0]], 100, filter)
    assert set(ids) == expected
    assert ids == sorted(ids, key=list(PAYLOADS).index, reverse=True)  # still best first
    assert index.search([[1.0, 0.0]], 2, filter)[0][0] == ids[:2]


@pytest.mark.parametrize(
    ("filter", "expected"), CASES, ids=lambda case: str(sorted(case) if isinstance(case, set) else case)[:60]
)
def test_the_test_of_one_object_agrees(filter: dict[str, Any], expected: set[str]) -> None:
    passes = compile_filter(filter)
    assert {id for id, payload in PAYLOADS.items() if passes(payload)} == expected


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([-1.5, 0.0, 0.5, 2.0]),
    st.sampled_from(["", "a", "ab", "b"]),
)
fields = st.sampled_from(["f", "g", "n.f", "n.n.g"])
contents = st.dictionaries(
    st.sampled_from(["f", "g", "n"]),
    st.recursive(
        scalars,
        lambda inner: (
            st.lists(scalars, max_size=3) | st.dictionaries(st.sampled_from(["f", "g", "n"]), inner, max_size=2)
        ),
        max_leaves=4,
    ),
    max_size=3,
)
numbers = st.one_of(st.integers(-3, 3), st.sampled_from([-1.5, 0.5]))
conditions = st.one_of(
    scalars,
    st.fixed_dictionaries({"$eq": scalars}),
    st.fixed_dictionaries({"$ne": scalars}),
    st.fixed_dictionaries({"$in": st.lists(scalars, max_size=3)}),
    st.fixed_dictionaries({"$nin": st.lists(scalars, max_size=3)}),
    st.fixed_dictionaries({"$all": st.lists(scalars, max_size=2)}),
    st.fixed_dictionaries({"$gt": numbers}, optional={"$lte": numbers}),
    st.fixed_dictionaries({"$gte": numbers}, optional={"$lt": numbers}),
    st.fixed_dictionaries({"$text": st.sampled_from(["a", "b", "ab"])}),
    st.fixed_dictionaries({"$exists": st.booleans()}),
)
filters = st.recursive(
    st.dictionaries(fields, conditions, max_size=2),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, max_size=2)}),
        st.fixed_dictionaries({"$or": st.lists(inner, max_size=2)}),
        st.fixed_dictionaries({"$not": inner}),
    ),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(contents, max_size=8), filters)
def test_columns_agree_with_the_test_of_one_object(payloads: list[dict[str, Any]], filter: dict[str, Any]) -> None:
    passes = compile_filter(filter)
    assert Columns(payloads).mask(parse(filter)).tolist() == [passes(payload) for payload in payloads]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(contents, min_size=1, max_size=8), st.lists(filters, min_size=10, max_size=10))
def test_all_engines_agree_on_any_filter(payloads: list[dict[str, Any]], several: list[dict[str, Any]]) -> None:
    ids = [str(i) for i in range(len(payloads))]
    indexes = [opened(engine, payloads, ids) for engine in ENGINES if "structure" not in engine]
    try:
        for filter in several:
            passes = compile_filter(filter)
            expected = {id for id, payload in zip(ids, payloads) if passes(payload)}
            for index in indexes:
                assert set(index.ids(filter)) == expected, index.kind
                assert set(index.search([[1.0, 0.0]], 10, filter)[0][0]) == expected, index.kind
    finally:
        for index in indexes:
            index.close()


@pytest.mark.parametrize(
    ("filter", "message"),
    [
        ({"f": {"$near": 3}}, r"'\$near' on field 'f' is not supported. Use one of: \$eq, \$ne"),
        ({"$xor": []}, r"'\$xor' is not known here"),
        ({"$and": {"f": 1}}, r"\$and takes a list"),
        ({"f": {"$in": "abc"}}, r"\$in on field 'f' takes a list"),
        ({"f": {"$gt": "2024"}}, r"\$gt on field 'f' takes a number, or a date .* not '2024'"),
        ({"f": {"$gt": True}}, r"\$gt on field 'f' takes a number"),
        ({"f": {"$gt": float("nan")}}, r"\$gt on field 'f' takes a number"),
        ({"f": {"$exists": "yes"}}, r"\$exists on field 'f' takes True or False"),
        ({"f": {"$text": ""}}, r"\$text on field 'f' takes a text"),
        ({"f": {}}, "'f' has an empty condition"),
        ({"f": ["a"]}, r"\$eq on field 'f' compares with strings, numbers, booleans or None"),
        ({"f": {"$eq": {"a": 1}}}, r"\$eq on field 'f' compares"),
        ({"a..b": 1}, "dots separate names"),
        ({'a"b': 1}, "dots separate names"),
        ({3: 1}, "3 is not known here"),
        ([("f", 1)], "A filter is a dict"),
    ],
)
def test_a_filter_that_means_nothing_is_refused_by_name(index: VectorIndex, filter: Any, message: str) -> None:
    with pytest.raises(InvalidFilter, match=message):
        index.search([[1.0, 0.0]], 3, filter)
    with pytest.raises(InvalidFilter, match=message):
        compile_filter(filter)


def test_filters_see_changed_metadata(index: VectorIndex) -> None:
    with opened(
        {"kind": index.kind, **({"url": ":memory:"} if index.kind == "qdrant" else {})}, [{"f": 1}], ["x"]
    ) as own:
        assert own.ids({"f": 1}) == ["x"]
        own.upsert(["x", "y"], np.eye(2), [{"f": 2}, {"f": 1}])
        assert own.ids({"f": 1}) == ["y"]
        own.delete(["y"])
        assert own.ids({"f": 1}) == [] and own.ids({"f": 2}) == ["x"]


# Every operator with every type of value, in every engine

BIG = 1746714878034235396  # as ids of rows and users are: beyond what a float tells apart
TYPED: dict[str, dict[str, Any]] = {
    "none": {},
    "int": {"f": 3},
    "float": {"f": 3.0},
    "fraction": {"f": 3.5},
    "text-number": {"f": "3"},
    "yes": {"f": True},
    "zero": {"f": 0},
    "no": {"f": False},
    "blank": {"f": ""},
    "exact": {"f": 2**53},
    "exact-float": {"f": float(2**53)},
    "beyond": {"f": 2**53 + 1},
    "beyond-2": {"f": 2**53 + 2},
    "big": {"f": BIG},
    "big+1": {"f": BIG + 1},
    "big-1": {"f": BIG - 1},
    "minus-big": {"f": -BIG},
    "largest": {"f": 2**63 - 1 - 1024},
    "day": {"f": "2024-05-01"},
    "noon": {"f": "2024-05-01T12:00:00Z"},
    "noon-elsewhere": {"f": "2024-05-01T14:00:00+02:00"},
    "noon-short": {"f": "2024-05-01 12:00"},
    "next-day": {"f": ["x", "2024-05-02"]},
    "no-day": {"f": "2024-13-01"},
    "week": {"f": "2024-W18-3"},
    "dotted": {"loc.page": 1},
    "nested": {"loc": {"page": 1}},
    "both": {"loc.page": 2, "loc": {"page": 1}},
    "half-dotted": {"a.b": {"c": 1}},
    "half-nested": {"a": {"b.c": 1}},
    "source": {"source": "web", "document_id": "d1", "heading": "h", "id": "i"},
}
VALUES: list[Any] = [
    3, 3.0, 3.5, "3", "", "2024-05-01", True, False, None, 0, -0.0, 2**53, 2**53 + 1, float(2**53), BIG, BIG + 1, -BIG,
    BIG + 0.0, float("inf"), -float("inf"), 10**400, np.int64(BIG), np.float32(3), np.bool_(True), np.str_("3"),
    Decimal("3"), Decimal("3.5"), date(2024, 5, 1), datetime(2024, 5, 1, 12, tzinfo=UTC),
    datetime(2024, 5, 1, 14, tzinfo=timezone(timedelta(hours=2))), np.datetime64("2024-05-01"), Colour.RED, Size.THREE,
]  # fmt: skip
RANGED = ["2024-05-01", "2024-05-01T12:00:00Z", "2024-05-01T12:00+00:00", "2024-05-01 14:00:00.000+02:00"]
TABLE: list[dict[str, Any]] = [
    *({"f": value} for value in VALUES if not isinstance(value, np.datetime64)),
    *({"f": {"$ne": value}} for value in VALUES if not isinstance(value, np.datetime64)),
    *({"f": {"$in": [value, "x"]}} for value in VALUES if not isinstance(value, np.datetime64)),
    *({"f": {"$nin": [value, 3]}} for value in VALUES if not isinstance(value, np.datetime64)),
    *({"f": {"$all": [value]}} for value in VALUES if not isinstance(value, np.datetime64)),
    *(
        {"f": {operator: value}}
        for operator in ("$gt", "$gte", "$lt", "$lte")
        for value in [*VALUES, *RANGED]
        if (not isinstance(value, (str, bool, np.bool_, Colour)) and value is not None) or value in RANGED
    ),
    *({"loc.page": {operator: 1}} for operator in ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte")),
    {"loc.page": {"$exists": True}},
    {"loc.page": {"$exists": False}},
    {"loc.page": None},
    {"a.b.c": 1},
    {"a.b.c": {"$nin": [1]}},
    {"a.b": {"$exists": True}},
    {"source": "web", "document_id": "d1", "heading": "h", "id": "i"},
    {"f": {"$text": "2024"}},
]


@pytest.fixture(scope="module", params=[*ENGINES, *MORE, {"kind": "foreign"}],
                ids=lambda engine: "-".join(engine.values()))  # fmt: skip
def typed(request: pytest.FixtureRequest) -> Iterator[VectorIndex]:
    if request.param["kind"] == "foreign":
        client = QdrantClient(":memory:", force_disable_check_same_thread=True)
        client.create_collection("c", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
        points = [
            models.PointStruct(id=at, vector=[1.0, at], payload={"page_content": id, "metadata": payload})
            for at, (id, payload) in enumerate(TYPED.items())
        ]
        client.upsert("c", points)
        yield ForeignQdrantIndex.existing(client=client, collection="c")
        return
    with opened(request.param, list(TYPED.values()), list(TYPED)) as made:
        yield made


def test_every_operator_means_the_same_of_every_value_in_every_engine(typed: VectorIndex) -> None:
    names = list(TYPED)
    foreign = isinstance(typed, ForeignQdrantIndex)
    for filter in TABLE:
        passes = compile_filter(filter)
        expected = {id for id, payload in TYPED.items() if passes(payload)}
        for found in (typed.ids(filter), typed.search([[1.0, 0.0]], 100, filter)[0][0]):
            assert {names[int(id)] if foreign else id for id in found} == expected, filter


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"f": 3}, {"int", "float"}),
        ({"f": np.int64(3)}, {"int", "float"}),
        ({"f": Decimal("3.0")}, {"int", "float"}),
        ({"f": Size.THREE}, {"int", "float"}),
        ({"f": Colour.RED}, set()),
        ({"f": "3"}, {"text-number"}),
        ({"f": BIG}, {"big"}),
        ({"f": {"$in": [BIG, BIG + 1]}}, {"big", "big+1"}),
        ({"f": {"$gt": BIG}}, {"big+1", "largest"}),
        ({"f": {"$gte": BIG, "$lt": BIG + 1}}, {"big"}),
        ({"f": {"$lt": BIG, "$gt": 2**60}}, {"big-1"}),
        ({"f": {"$lte": -BIG}}, {"minus-big"}),
        ({"f": 2**53}, {"exact", "exact-float"}),
        ({"f": float(2**53)}, {"exact", "exact-float"}),
        ({"f": 2**53 + 1}, {"beyond"}),
        ({"f": {"$gt": 2**53, "$lt": 2**53 + 2}}, {"beyond"}),
        ({"f": {"$gte": "2024-05-01T12:00:00Z"}}, {"noon", "noon-elsewhere", "noon-short", "next-day"}),
        ({"f": {"$gt": date(2024, 5, 1), "$lt": date(2024, 5, 2)}}, {"noon", "noon-elsewhere", "noon-short"}),
        ({"f": {"$lte": "2024-05-01"}}, {"day"}),
        ({"f": datetime(2024, 5, 1, 12, tzinfo=UTC)}, {"noon", "noon-elsewhere", "noon-short"}),
        ({"f": "2024-05-01"}, {"day"}),
        ({"loc.page": 1}, {"dotted", "nested", "both"}),
        ({"loc.page": 2}, {"both"}),
        ({"a.b.c": 1}, {"half-dotted", "half-nested"}),
    ],
    ids=lambda case: str(sorted(case) if isinstance(case, set) else case),
)
def test_typed_values_pass_where_they_should(typed: VectorIndex, filter: dict[str, Any], expected: set[str]) -> None:
    found = typed.ids(filter)
    if isinstance(typed, ForeignQdrantIndex):
        found = [list(TYPED)[int(id)] for id in found]
    assert set(found) == expected


def deep(filter: dict[str, Any], times: int, key: str = "$not") -> dict[str, Any]:
    for _ in range(times):
        filter = {key: filter} if key == "$not" else {key: [filter]}
    return filter


def cyclic(key: str) -> dict[str, Any]:
    filter: dict[str, Any] = {}
    filter[key] = filter if key == "$not" else [filter, filter]
    return filter


def nest(times: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(times):
        value = [value]
    return value


def shared(times: int) -> dict[str, Any]:
    filter: dict[str, Any] = {"f": 1}
    for _ in range(times):
        filter = {"$and": [filter, filter]}
    return filter


@pytest.mark.parametrize(
    "filter",
    [
        {"f": float("nan")}, {"f": np.float64("nan")}, {"f": Decimal("nan")}, {"f": b"a"}, {"f": {1, 2}}, {"f": 1j},
        {"f": {"$in": b"ab"}}, {"f": {"$in": bytearray(b"ab")}}, {"f": {"$in": {"a": 1}}}, {"f": {"$in": 3}},
        {"f": {"$in": [[1]]}}, {"f": Plain.X}, {"f": object()}, {"f": {"$gt": "10"}}, {"f": {"$lt": "2024-13-01"}},
        {"f": {"$lte": "may"}}, {"f": {"$gte": None}}, {"f": {"$gt": [1]}}, {"f": {"$text": 3}}, {"f": {"$exists": 1}},
        {"f": {3: 1}}, {None: 1}, {"$and": b"ab"}, {"$and": 3}, {"$or": "ab"}, {"$not": [1]}, {"f": nest(3000)},
        {"f": {"$in": [nest(3000)]}}, deep({"f": 1}, 3000), deep({"f": 1}, 3000, "$and"), cyclic("$and"),
        cyclic("$not"), cyclic("$or"), shared(60), 3, "f", None, {1},
    ],
    ids=lambda filter: type(filter).__name__,
)  # fmt: skip
def test_whatever_a_filter_holds_it_is_refused_as_one(filter: Any) -> None:
    with pytest.raises(InvalidFilter):
        compile_filter(filter)


@pytest.mark.parametrize("kind", ["qdrant", "qdrant-edge"])
def test_integers_beyond_qdrants_are_refused_and_bounds_beyond_them_hold(kind: str) -> None:
    with opened({"kind": kind, **({"url": ":memory:"} if kind == "qdrant" else {})}, [{"f": 1}], ["x"]) as own:
        with pytest.raises(InvalidFilter, match="64 bits"):
            own.ids({"f": 2**63})
        assert own.ids({"f": {"$lt": 1e30}}) == ["x"] and own.ids({"f": {"$gt": 10**25}}) == []
