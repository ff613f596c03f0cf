"""Filters of other interfaces as ragadapt's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ragadapt.checks import shown
from ragadapt.errors import InvalidFilter

Values = Callable[[str], Iterable[Any]]
"""The name of a field → the values that it has in the retriever."""

_DEEPEST = 32

_OPENAI = {"eq": "$eq", "ne": "$ne", "gt": "$gt", "gte": "$gte", "lt": "$lt", "lte": "$lte", "in": "$in", "nin": "$nin"}


def openai_filter(filter: Any, depth: int = 0) -> dict[str, Any]:
    """{"type": "eq", "key", "value"} or {"type": "and", "filters": […]} as ours. Raises InvalidFilter."""
    if depth > _DEEPEST:
        raise InvalidFilter(f"filters: they lie deeper than {_DEEPEST} in each other.")
    if not isinstance(filter, Mapping):
        raise InvalidFilter(f"filters: {shown(filter)} is no object with a type.")
    kind = filter.get("type")
    if kind in ("and", "or"):
        parts = filter.get("filters")
        if not isinstance(parts, list) or not parts:
            raise InvalidFilter(f"filters: {kind!r} needs a list of filters, it has {shown(parts)}.")
        return {f"${kind}": [openai_filter(part, depth + 1) for part in parts]}
    if not isinstance(kind, str) or kind not in _OPENAI:
        raise InvalidFilter(f"filters: type = {shown(kind)}; it is and, or, {', '.join(_OPENAI)}.")
    key = filter.get("key")
    if not isinstance(key, str) or not key or "value" not in filter:
        raise InvalidFilter(f"filters: {kind!r} needs a key and a value.")
    return {key: {_OPENAI[kind]: filter["value"]}}


def dify_filter(condition: Mapping[str, Any], values: Values) -> dict[str, Any] | None:
    """Dify's metadata_condition as ours; None where it has no conditions. Raises InvalidFilter."""
    conditions = condition.get("conditions") or []
    if not isinstance(conditions, list):
        raise InvalidFilter(f"metadata_condition: conditions = {shown(conditions)}; it is a list.")
    parts = [_dify_condition(one, values) for one in conditions]
    if not parts:
        return None
    operator = condition.get("logical_operator") or "and"
    if operator not in ("and", "or"):
        raise InvalidFilter(f"logical_operator = {shown(operator)}: it is 'and' or 'or'.")
    return {f"${operator}": parts}


def _dify_condition(one: Any, values: Values) -> dict[str, Any]:
    """One condition over one field or, where name is a list, over any of several."""
    if not isinstance(one, Mapping):
        raise InvalidFilter(f"metadata_condition: {shown(one)} is no condition.")
    names, operator, value = one.get("name"), one.get("comparison_operator"), one.get("value")
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise InvalidFilter(f"metadata_condition: name = {shown(one.get('name'))}; a field's name is needed.")
    if not isinstance(operator, str):
        raise InvalidFilter(f"metadata_condition: comparison_operator = {shown(operator)}; a word is needed.")
    if operator in _NEGATED:
        return {"$not": {"$or": [_dify_test(name, _NEGATED[operator], value, values) for name in names]}}
    return {"$or": [_dify_test(name, operator, value, values) for name in names]}


_NEGATED = {"not contains": "contains", "is not": "is", "not in": "in", "≠": "=", "empty": "not empty"}
_RANGES = {">": "$gt", "<": "$lt", "≥": "$gte", "≤": "$lte", "after": "$gt", "before": "$lt"}
_NUMERIC = ("=", ">", "<", "≥", "≤")


def _dify_test(name: str, operator: str, value: Any, values: Values) -> dict[str, Any]:
    if operator == "not empty":
        return {"$and": [{name: {"$exists": True}}, {"$not": {name: ""}}]}
    if value is None:
        raise InvalidFilter(f"metadata_condition: {shown(operator)} on {name!r} needs a value.")
    if operator in _NUMERIC and isinstance(value, str):  # Dify's form fields send numbers as text
        try:
            value = float(value)
        except ValueError as error:
            raise InvalidFilter(
                f"metadata_condition: {operator} compares numbers, and {shown(value)} is none."
            ) from error
    if operator == "contains":
        return {name: {"$text": str(value)}}
    if operator in ("start with", "end with"):
        test = str.startswith if operator == "start with" else str.endswith
        # No index has such a test, but the values that pass it can be named.
        return {name: {"$in": [known for known in values(name) if isinstance(known, str) and test(known, str(value))]}}
    if operator == "in":
        return {name: {"$in": value if isinstance(value, list) else [part.strip() for part in str(value).split(",")]}}
    if operator in ("is", "="):
        return {name: {"$eq": value}}
    if operator in _RANGES:
        return {name: {_RANGES[operator]: value}}
    known = ["contains", "start with", "end with", "is", "in", "not empty", "=", *_RANGES, *_NEGATED]
    raise InvalidFilter(f"metadata_condition: comparison_operator = {shown(operator)}; it is {', '.join(known)}.")
