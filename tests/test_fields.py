"""Fields of the metadata by type, and filters whose values are brought to these types."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from langchain_classic.retrievers.self_query.base import SelfQueryRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.structured_query import Comparator, Comparison, Operation, Operator, StructuredQuery
from langchain_ragadapt import RagAdaptVectorStore
from langchain_ragadapt.self_query import RagAdaptTranslator, attribute_info
from llama_index_ragadapt.auto import vector_store_info
from small_retriever import fit_pages

from ragadapt.errors import InvalidFilter
from ragadapt.index.fields import Field, fields_of, typed
from ragadapt.index.filters import compile_filter
from ragadapt.retriever import Retriever

ROWS: list[dict[str, Any]] = [
    {"year": 2023, "code": "007", "draft": False, "created": "2024-05-01", "tags": ["a", "b"], "loc": {"page": 3}},
    {"year": 2024, "code": "7", "draft": True, "created": "2024-05-01T09:30:00Z", "tags": ["b"], "any": 1},
    {
        "year": 2024.5,
        "code": "x1",
        "created": "2024-06-01",
        "tags": [],
        "any": "one",
        "when": ["2020-01-01", "2026-01-01"],
    },
    {"code": "2024-05-01", "created": "2023-12-31T23:59:59+00:00", "loc": {"page": 4}},
]
FIELDS = fields_of(ROWS)


def passing(filter: dict[str, Any]) -> list[int]:
    test = compile_filter(typed(filter, FIELDS))
    return [at for at, row in enumerate(ROWS) if test(row)]


def test_fields_have_the_type_of_their_values_and_their_ends() -> None:
    by_name = {field.name: field for field in FIELDS}
    assert {name: field.kind for name, field in by_name.items()} == {
        "year": "number", "code": "text", "draft": "boolean", "created": "date", "tags": "text", "loc.page": "number",
        "any": "mixed", "when": "date",
    }  # fmt: skip
    assert by_name["year"] == Field("year", "number", False, 3, (2023, 2024, 2024.5), 2023, 2024.5)
    assert (by_name["created"].low, by_name["created"].high) == ("2023-12-31T23:59:59+00:00", "2024-06-01")
    assert (by_name["tags"].several, by_name["tags"].present, by_name["tags"].examples) == (True, 2, ("b", "a"))
    assert "from 2023 to 2024.5" in by_name["year"].description


@pytest.mark.parametrize(
    ("filter", "rows"),
    [
        ({"year": "2024"}, [1]),
        ({"year": {"$gte": "2024"}}, [1, 2]),
        ({"year": {"$in": ["2023", 2024.5]}}, [0, 2]),
        ({"year": {"$lt": "2.0235e3"}}, [0]),
        ({"code": 7}, [1]),
        ({"code": {"$nin": [7]}}, [0, 2, 3]),
        ({"draft": "Yes"}, [1]),
        ({"draft": 0}, [0]),
        ({"loc.page": "3"}, [0]),
        ({"any": 1}, [1]),
        # a period stands for all of it
        ({"created": "2024-05-01"}, [0, 1]),
        ({"created": date(2024, 5, 1)}, [0, 1]),
        ({"created": datetime(2024, 5, 1, 9, 30)}, [1]),
        ({"created": "2024-05"}, [0, 1]),
        ({"created": 2024}, [0, 1, 2]),
        ({"created": {"$ne": "2024-05"}}, [2, 3]),
        ({"created": {"$gt": "2024-05"}}, [2]),
        ({"created": {"$gt": "2024-05-01T00:00:00"}}, [1, 2]),
        ({"created": {"$lte": "2023"}}, [3]),
        ({"created": {"$lt": "2024-05-01"}}, [3]),
        ({"created": {"$gte": "2024-05-01", "$lt": "2024-06"}}, [0, 1]),
        ({"created": {"$in": ["2023", "2024-06-01"]}}, [2, 3]),
        ({"created": {"$nin": ["2023", "2024-06-01"]}}, [0, 1]),
        ({"when": "2023"}, []),  # its dates lie on both sides of it
        ({"when": {"$eq": "2026"}}, [2]),
        ({"created": {"$exists": True}, "$not": {"tags": "b"}}, [2, 3]),
        ({"$or": [{"year": "2023"}, {"code": {"$text": "x"}}]}, [0, 2]),
        ({}, [0, 1, 2, 3]),
    ],
)
def test_values_are_brought_to_the_type_of_their_field(filter: dict[str, Any], rows: list[int]) -> None:
    assert passing(filter) == rows


@pytest.mark.parametrize(
    ("filter", "said"),
    [
        ({"yaer": 2024}, "Did you mean 'year'"),
        ({"year": "last"}, r"'last' is not a number"),
        ({"draft": "perhaps"}, "not true or false"),
        ({"created": "in May"}, "not a date in ISO 8601"),
        ({"created": "2024-13"}, "not a date in ISO 8601"),
        ({"created": True}, "not a date in ISO 8601"),
        ({"$and": {"year": 1}}, r"\$and takes a list"),
        ("year", "A filter is a dict"),
    ],
)
def test_what_cannot_be_of_the_type_is_named(filter: Any, said: str) -> None:
    with pytest.raises(InvalidFilter, match=said):
        typed(filter, FIELDS)


# What a language model writes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_pages(tmp_path_factory.mktemp("fields"))


@pytest.fixture(scope="module")
def fields(folder: Path) -> Iterator[list[Field]]:
    with Retriever.open(folder) as retriever:
        yield retriever.fields()


def test_a_retriever_tells_its_fields(fields: list[Field]) -> None:
    kinds = {field.name: (field.kind, field.low, field.high) for field in fields}
    assert list(kinds)[-4:] == ["id", "document_id", "source", "heading"]
    assert kinds["number"] == ("number", 0, 11)
    assert kinds["lang"] == ("text", None, None)
    assert {info["name"]: info["type"] for info in attribute_info(fields)}["number"] == "integer"
    info = vector_store_info(fields, "made-up pages")
    assert {one.name: one.type for one in info.metadata_info}["number"] == "int"
    assert "from 0 to 11" in {one.name: one.description for one in info.metadata_info}["number"]


def test_every_comparison_and_operation_is_translated() -> None:
    translator = RagAdaptTranslator(FIELDS)

    def rows(filter: Any) -> list[int]:
        _, asked = translator.visit_structured_query(StructuredQuery(query="q", filter=filter, limit=None))
        test = compile_filter(asked["filter"])
        return [at for at, row in enumerate(ROWS) if test(row)]

    def test(comparator: Comparator, name: str, value: Any) -> Comparison:
        return Comparison(comparator=comparator, attribute=name, value=value)

    day = {"date": "2024-05-01", "type": "date"}
    moment = {"datetime": "2024-05-01T09:00:00", "type": "datetime"}
    assert rows(test(Comparator.EQ, "year", "2024")) == [1]
    assert rows(test(Comparator.NE, "year", 2023)) == [1, 2, 3]
    assert rows(test(Comparator.GT, "year", 2023)) == [1, 2]
    assert rows(test(Comparator.GTE, "created", moment)) == [1, 2]
    assert rows(test(Comparator.LT, "created", day)) == [3]
    assert rows(test(Comparator.LTE, "created", day)) == [0, 1, 3]
    assert rows(test(Comparator.EQ, "created", day)) == [0, 1]
    assert rows(test(Comparator.IN, "code", ["007", 7])) == [0, 1]
    assert rows(test(Comparator.NIN, "code", "x1")) == [0, 1, 3]
    assert rows(test(Comparator.CONTAIN, "tags", "a")) == [0]
    assert rows(test(Comparator.CONTAIN, "code", "7")) == [0, 1]
    assert rows(test(Comparator.LIKE, "code", "%x%")) == [2]
    both = Operation(
        operator=Operator.AND, arguments=[test(Comparator.EQ, "year", 2024), test(Comparator.EQ, "draft", "true")]
    )
    assert rows(both) == [1]
    assert rows(Operation(operator=Operator.NOT, arguments=[both])) == [0, 2, 3]
    assert rows(Operation(operator=Operator.OR, arguments=[both, test(Comparator.EQ, "code", "x1")])) == [1, 2]
    assert set(RagAdaptTranslator.allowed_comparators) == set(Comparator)
    assert set(RagAdaptTranslator.allowed_operators) == set(Operator)
    plain = RagAdaptTranslator().visit_structured_query(
        StructuredQuery(query="q", filter=test(Comparator.CONTAIN, "code", "7"), limit=4)
    )
    assert plain == ("q", {"filter": {"$or": [{"code": {"$contains": "7"}}, {"code": {"$text": "7"}}]}, "k": 4})
    assert RagAdaptTranslator().visit_structured_query(StructuredQuery(query="q", filter=None, limit=None)) == ("q", {})
    with pytest.raises(InvalidFilter, match="No passage has a field 'author'"):
        rows(test(Comparator.EQ, "author", "x"))


def test_langchains_self_query_retriever_searches_by_the_filter(folder: Path, fields: list[Field]) -> None:
    asked = StructuredQuery(
        query="old stone",
        filter=Operation(
            operator=Operator.AND,
            arguments=[
                Comparison(comparator=Comparator.GTE, attribute="number", value="8"),
                Comparison(comparator=Comparator.EQ, attribute="lang", value="en"),
            ],
        ),
        limit=100,
    )
    store = RagAdaptVectorStore.from_pretrained(folder)
    retriever = SelfQueryRetriever(
        query_constructor=RunnableLambda(lambda _: asked),
        vectorstore=store,
        structured_query_translator=RagAdaptTranslator(fields),
    )
    found = retriever.invoke("anything")
    assert {document.metadata["source"] for document in found} == {"page09.md", "page11.md"}
    store.close()
