"""Self-querying: what a language model makes of a question, a query and a filter, as a search of ours.

    fields = Retriever.open("./retriever").fields()
    SelfQueryRetriever(
        query_constructor=…, vectorstore=store, structured_query_translator=RagAdaptTranslator(fields), …
    )

`attribute_info(fields)` is what the language model is told of the metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.structured_query import Comparator, Comparison, Operation, Operator, StructuredQuery, Visitor

from ragadapt.errors import InvalidFilter
from ragadapt.index.fields import Field, typed

_COMPARATORS = {
    Comparator.EQ: "$eq",
    Comparator.NE: "$ne",
    Comparator.GT: "$gt",
    Comparator.GTE: "$gte",
    Comparator.LT: "$lt",
    Comparator.LTE: "$lte",
    Comparator.IN: "$in",
    Comparator.NIN: "$nin",
    Comparator.CONTAIN: "$contains",
    Comparator.LIKE: "$text",
}
_OPERATORS = {Operator.AND: "$and", Operator.OR: "$or", Operator.NOT: "$not"}


class RagAdaptTranslator(Visitor):
    """LangChain's structured queries → search keyword arguments with a filter of ours.

    fields: of the retriever (`Retriever.fields()`), to bring values to their types ("2024" to 2024, a day to all of
    it) and to refuse fields that there are not; none = values as they are. `contain` finds an element of a list, and a
    piece of a text; `like` a piece of a text, % and _ at its ends aside. Raises InvalidFilter.
    """

    allowed_comparators = tuple(_COMPARATORS)
    allowed_operators = tuple(_OPERATORS)

    def __init__(self, fields: Sequence[Field] = ()) -> None:
        self.fields = tuple(fields)

    def visit_operation(self, operation: Operation) -> dict[str, Any]:
        """and, or, not."""
        self._validate_func(operation.operator)
        parts = [argument.accept(self) for argument in operation.arguments]
        if operation.operator is Operator.NOT:
            return {"$not": parts[0] if len(parts) == 1 else {"$and": parts}}
        return {_OPERATORS[operation.operator]: parts}

    def visit_comparison(self, comparison: Comparison) -> dict[str, Any]:
        """One test of one field."""
        self._validate_func(comparison.comparator)
        name, value = comparison.attribute, _plain(comparison.value)
        operator = _COMPARATORS[comparison.comparator]
        if comparison.comparator is Comparator.LIKE:
            if not isinstance(value, str):
                raise InvalidFilter(f"like on field {name!r} takes a text, not {value!r:.80}.")
            return {name: {"$text": value.strip("%_")}}
        if comparison.comparator is Comparator.CONTAIN and isinstance(value, str):
            known = next((field for field in self.fields if field.name == name), None)
            if known is None:
                return {"$or": [{name: {"$contains": value}}, {name: {"$text": value}}]}
            return {name: {"$contains" if known.several else "$text": value}}
        if comparison.comparator in (Comparator.IN, Comparator.NIN) and not isinstance(value, list):
            value = [value]
        return {name: {operator: value}}

    def visit_structured_query(self, structured_query: StructuredQuery) -> tuple[str, dict[str, Any]]:
        """(the query, {"filter": …, "k": …} as far as they are given)."""
        asked: dict[str, Any] = {}
        if structured_query.filter is not None:
            filter = structured_query.filter.accept(self)
            asked["filter"] = typed(filter, self.fields) if self.fields else filter
        if structured_query.limit is not None:
            asked["k"] = structured_query.limit
        return structured_query.query, asked


def attribute_info(fields: Sequence[Field]) -> list[dict[str, str]]:
    """What a query constructor is told of the metadata, as LangChain's AttributeInfo takes it."""
    names = {"text": "string", "number": "float", "date": "date", "boolean": "boolean", "mixed": "string"}
    made = []
    for field in fields:
        kind = names[field.kind]
        if field.kind == "number" and all(isinstance(value, int) for value in field.examples):
            kind = "integer"
        kind = f"list[{kind}]" if field.several else kind
        made.append({"name": field.name, "description": field.description, "type": kind})
    return made


def _plain(value: Any) -> Any:
    """A value as its parser gives it: dates and times come in an object."""
    if isinstance(value, dict) and value.get("type") in ("date", "datetime"):
        return value.get("date") or value.get("datetime")
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
