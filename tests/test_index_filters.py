"""Metadata filters: their meaning, and that every engine shares it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragadapt.errors import InvalidFilter
from ragadapt.index import VectorIndex, compile_filter, open_index
from ragadapt.index.filters import Columns, parse

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
        ({"f": {"$gt": "2024"}}, r"\$gt on field 'f' takes a number, not '2024'"),
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
