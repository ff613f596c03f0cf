"""LlamaIndex's MetadataFilters as filters of ours."""

from __future__ import annotations

from typing import Any

from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from ragadapt.errors import InvalidFilter

_PLAIN = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.CONTAINS: "$contains",
    FilterOperator.TEXT_MATCH: "$text",
    FilterOperator.TEXT_MATCH_INSENSITIVE: "$itext",
}
_LISTS = {FilterOperator.IN: "$in", FilterOperator.ANY: "$in", FilterOperator.NIN: "$nin", FilterOperator.ALL: "$all"}


_DEEPEST = 100  # as for filters of ours


def to_filter(filters: MetadataFilters | None, _depth: int = 0) -> dict[str, Any] | None:
    """The same test as a filter of ours; None for none. Conditions may be nested. Raises InvalidFilter."""
    if filters is None or not filters.filters:
        return None
    if _depth > _DEEPEST:
        raise InvalidFilter(f"MetadataFilters lie more than {_DEEPEST} deep, or within themselves. Write them flat.")
    parts = [_one(part, _depth) for part in filters.filters]
    match filters.condition:
        case FilterCondition.AND | None:
            return {"$and": parts}
        case FilterCondition.OR:
            return {"$or": parts}
        case FilterCondition.NOT:  # as LlamaIndex has it: none of them holds
            return {"$not": {"$or": parts}}


def _one(part: MetadataFilter | MetadataFilters, depth: int) -> dict[str, Any]:
    if isinstance(part, MetadataFilters):
        return to_filter(part, depth + 1) or {}
    if part.operator == FilterOperator.IS_EMPTY:  # to LlamaIndex null, "" and [] are
        return {part.key: {"$in": [None, ""]}}
    if part.operator in _LISTS:
        values = part.value if isinstance(part.value, list) else [part.value]
        return {part.key: {_LISTS[part.operator]: values}}
    if part.operator not in _PLAIN:
        known = ", ".join(operator.value for operator in (*_PLAIN, *_LISTS, FilterOperator.IS_EMPTY))
        raise InvalidFilter(f"Operator {part.operator!r} on field {part.key!r} is not supported. Use one of: {known}.")
    return {part.key: {_PLAIN[part.operator]: part.value}}
