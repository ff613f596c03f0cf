"""Metadata filters that mean the same in every index.

    {"lang": "en", "year": {"$gte": 2020}}                 all of them
    {"$or": [{"tags": {"$in": ["a", "b"]}}, {"$not": {"draft": True}}]}

A name with dots walks into nested objects. A field that holds a list passes a test when one of its elements does.
A field that is missing, null or an empty list has no value: it fails every test but `{"$exists": False}`,
`None`, and the negations `$ne`, `$nin`, `$not`. Numbers compare by value (3 = 3.0), booleans are not numbers,
strings compare whole and case-sensitively. `$text` finds a piece of a string, `$itext` in any case; the last one is
for the kinds that filter in memory (exact, faiss), engines of the Qdrant family have no such test.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ragadapt.errors import InvalidFilter

Filter = Mapping[str, Any]
"""What callers write; see the module's docstring."""

OPERATORS = (
    "$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$contains", "$all", "$text", "$itext", "$exists",
)  # fmt: skip
_RANGES = ("$gt", "$gte", "$lt", "$lte")
Path = tuple[str, ...]
Scalar = str | float | bool


@dataclass(frozen=True, slots=True)
class All:
    """Every part holds."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Any_:  # noqa: N801
    """At least one part holds."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Node


@dataclass(frozen=True, slots=True)
class Among:
    """The field has one of these values."""

    path: Path
    strings: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()
    booleans: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Between:
    """The field has a number within the bounds; None = open."""

    path: Path
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


@dataclass(frozen=True, slots=True)
class Substring:
    """The field has a string in which the text occurs. fold: in any case."""

    path: Path
    text: str
    fold: bool = False

    def within(self, value: str) -> bool:
        return self.text.casefold() in value.casefold() if self.fold else self.text in value


@dataclass(frozen=True, slots=True)
class Exists:
    """The field has a value."""

    path: Path


Node = All | Any_ | Not | Among | Between | Substring | Exists


def parse(filter: Filter) -> Node:
    """The filter as a tree of a few node kinds. Raises InvalidFilter naming what is wrong and what is supported."""
    if not isinstance(filter, Mapping):
        raise InvalidFilter(
            f'A filter is a dict such as {{"lang": "en"}}, not {type(filter).__module__}.{type(filter).__qualname__}. '
            "Only an index of kind qdrant or qdrant-edge also takes its engine's own filters. "
            f"Operators: {', '.join(OPERATORS)}; $and, $or, $not around them."
        )
    parts: list[Node] = []
    for key, value in filter.items():
        if key in ("$and", "$or"):
            if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
                raise InvalidFilter(f"{key} takes a list of filters, not {value!r}.")
            children = tuple(parse(child) for child in value)
            parts.append(All(children) if key == "$and" else Any_(children))
        elif key == "$not":
            parts.append(Not(parse(value)))
        elif not isinstance(key, str) or key.startswith("$"):
            raise InvalidFilter(
                f"{key!r} is not known here. A filter holds field names, $and, $or and $not; "
                f"under a field: {', '.join(OPERATORS)}."
            )
        else:
            parts.append(_parse_field(key, value))
    return parts[0] if len(parts) == 1 else All(tuple(parts))


def _parse_field(name: str, condition: Any) -> Node:
    path = tuple(name.split("."))
    if not all(path) or '"' in name:
        raise InvalidFilter(f'Field name {name!r}: dots separate names, none may be empty or hold a ".')
    if not isinstance(condition, Mapping):
        return _among(path, "$eq", [condition])
    if not condition:
        raise InvalidFilter(f"Field {name!r} has an empty condition. Operators: {', '.join(OPERATORS)}.")
    parts: list[Node] = []
    for operator, value in condition.items():
        if operator in ("$eq", "$contains"):  # a list field is tested element by element, so these are one
            parts.append(_among(path, operator, [value]))
        elif operator == "$ne":
            parts.append(Not(_among(path, operator, [value])))
        elif operator == "$in":
            parts.append(_among(path, operator, _values(name, operator, value)))
        elif operator == "$nin":
            parts.append(Not(_among(path, operator, _values(name, operator, value))))
        elif operator == "$all":
            parts.append(All(tuple(_among(path, operator, [each]) for each in _values(name, operator, value))))
        elif operator in _RANGES:
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or math.isnan(value):
                raise InvalidFilter(f"{operator} on field {name!r} takes a number, not {value!r}.")
            parts.append(Between(path, **{operator[1:]: float(value)}))
        elif operator in ("$text", "$itext"):
            if not isinstance(value, str) or not value:
                raise InvalidFilter(f"{operator} on field {name!r} takes a text that is not empty, not {value!r}.")
            parts.append(Substring(path, value, fold=operator == "$itext"))
        elif operator == "$exists":
            if not isinstance(value, bool):
                raise InvalidFilter(f"$exists on field {name!r} takes True or False, not {value!r}.")
            parts.append(Exists(path) if value else Not(Exists(path)))
        else:
            raise InvalidFilter(
                f"Operator {operator!r} on field {name!r} is not supported. Use one of: {', '.join(OPERATORS)}."
            )
    return parts[0] if len(parts) == 1 else All(tuple(parts))


def _values(name: str, operator: str, value: Any) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidFilter(f"{operator} on field {name!r} takes a list of values, not {value!r}.")
    return list(value)


def _among(path: Path, operator: str, values: Sequence[Any]) -> Node:
    strings, numbers, booleans, none = list[str](), list[float](), list[bool](), False
    for value in values:
        if value is None:
            none = True
        elif isinstance(value, (bool, np.bool_)):
            booleans.append(bool(value))
        elif isinstance(value, str):
            strings.append(value)
        elif isinstance(value, (int, float, np.number)) and not math.isnan(value):
            numbers.append(float(value))
        else:
            name = ".".join(path)
            raise InvalidFilter(
                f"{operator} on field {name!r} compares with strings, numbers, booleans or None, not {value!r}."
            )
    among = Among(path, tuple(dict.fromkeys(strings)), tuple(dict.fromkeys(numbers)), tuple(dict.fromkeys(booleans)))
    if not none:
        return among
    missing = Not(Exists(path))
    return Any_((missing, among)) if strings or numbers or booleans else missing


def values_at(payload: Mapping[str, Any], path: Path) -> list[Any]:
    """The values that a field holds: a list's elements, a lone value, or nothing. None stays in lists."""
    value: Any = payload
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return []
        value = value[name]
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def compile_filter(filter: Filter) -> Callable[[Mapping[str, Any]], bool]:
    """A test for one metadata object. For many, `Columns` is quicker. Raises InvalidFilter."""
    node = parse(filter)
    return lambda metadata: _holds(node, metadata)


def _holds(node: Node, metadata: Mapping[str, Any]) -> bool:
    match node:
        case All(parts):
            return all(_holds(part, metadata) for part in parts)
        case Any_(parts):
            return any(_holds(part, metadata) for part in parts)
        case Not(part):
            return not _holds(part, metadata)
        case Exists(path):
            return bool(values_at(metadata, path))
        case Among(path, strings, numbers, booleans):
            return any(
                value in (strings if isinstance(value, str) else booleans if isinstance(value, bool) else numbers)
                for value in values_at(metadata, path)
                if isinstance(value, (str, bool, int, float))
            )
        case Between(path):
            return any(
                _within(value, node)
                for value in values_at(metadata, path)
                if isinstance(value, (int, float)) and not isinstance(value, bool)
            )
        case Substring(path):
            return any(isinstance(value, str) and node.within(value) for value in values_at(metadata, path))


def _within(value: float, bounds: Between) -> bool:
    return (
        (bounds.gt is None or value > bounds.gt)
        and (bounds.gte is None or value >= bounds.gte)
        and (bounds.lt is None or value < bounds.lt)
        and (bounds.lte is None or value <= bounds.lte)
    )


@dataclass(slots=True)
class _Column:
    """One field of all rows, turned around: from values to rows."""

    strings: dict[str, list[int]] = field(default_factory=dict)
    booleans: dict[bool, list[int]] = field(default_factory=dict)
    present: list[int] = field(default_factory=list)
    numbers: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))  # sorted
    number_rows: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # aligned


class Columns:
    """Filters over payloads that lie in memory. A field is turned around at its first use, then quick."""

    def __init__(self, payloads: Sequence[Mapping[str, Any]]) -> None:
        self._payloads = payloads
        self._columns: dict[Path, _Column] = {}

    def mask(self, node: Node) -> NDArray[np.bool_]:
        """(N,) which rows pass."""
        n = len(self._payloads)
        match node:
            case All(parts):
                mask = np.ones(n, np.bool_)
                for part in parts:
                    mask &= self.mask(part)
            case Any_(parts):
                mask = np.zeros(n, np.bool_)
                for part in parts:
                    mask |= self.mask(part)
            case Not(part):
                mask = ~self.mask(part)
            case Among(path, strings, numbers, booleans):
                column, mask = self._column(path), np.zeros(n, np.bool_)
                for string in strings:
                    mask[column.strings.get(string, [])] = True
                for number in numbers:
                    mask[self._between(column, number, "left", number, "right")] = True
                for boolean in booleans:
                    mask[column.booleans.get(boolean, [])] = True
            case Between(path, gt, gte, lt, lte):
                # The number must satisfy all bounds at once: two elements of a list don't share them.
                low = max((bound for bound in (gt, gte) if bound is not None), default=-math.inf)
                high = min((bound for bound in (lt, lte) if bound is not None), default=math.inf)
                column, mask = self._column(path), np.zeros(n, np.bool_)
                left, right = "right" if low == gt else "left", "left" if high == lt else "right"
                mask[self._between(column, low, left, high, right)] = True
            case Substring(path):
                column, mask = self._column(path), np.zeros(n, np.bool_)
                for string, rows in column.strings.items():
                    if node.within(string):
                        mask[rows] = True
            case Exists(path):
                mask = np.zeros(n, np.bool_)
                mask[self._column(path).present] = True
        return mask

    @staticmethod
    def _between(column: _Column, low: float, left: Any, high: float, right: Any) -> NDArray[np.int64]:
        start = int(np.searchsorted(column.numbers, low, left))
        end = int(np.searchsorted(column.numbers, high, right))
        return column.number_rows[start : max(start, end)]

    def _column(self, path: Path) -> _Column:
        column = self._columns.get(path)
        if column is None:
            column, numbers = _Column(), list[tuple[float, int]]()
            for row, payload in enumerate(self._payloads):
                values = values_at(payload, path)
                if values:
                    column.present.append(row)
                for value in values:
                    if isinstance(value, str):
                        column.strings.setdefault(value, []).append(row)
                    elif isinstance(value, bool):
                        column.booleans.setdefault(value, []).append(row)
                    elif isinstance(value, (int, float)):
                        numbers.append((float(value), row))
            numbers.sort()
            column.numbers = np.array([number for number, _ in numbers], np.float64)
            column.number_rows = np.array([row for _, row in numbers], np.int64)
            self._columns[path] = column
        return column


C = TypeVar("C")


class ConditionMaker(Protocol[C]):
    """What an engine of the Qdrant family must be able to say; both do it with their own classes."""

    def filter(self, must: list[C] | None, should: list[C] | None, must_not: list[C] | None) -> C: ...
    def strings(self, key: str, values: list[str]) -> C: ...
    def boolean(self, key: str, value: bool) -> C: ...
    def range(self, key: str, gt: float | None, gte: float | None, lt: float | None, lte: float | None) -> C: ...
    def substring(self, key: str, text: str) -> C: ...
    def empty(self, key: str) -> C: ...
    def nothing(self) -> C: ...


def to_qdrant(node: Node, make: ConditionMaker[C], prefix: Path = ()) -> C:
    """The tree as a condition of a Qdrant engine. prefix: where the metadata lies in the payload."""

    def key(path: Path) -> str:
        return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"' for part in (*prefix, *path))

    def walk(node: Node) -> C:
        match node:
            case All(parts):
                return make.filter([walk(part) for part in parts], None, None)
            case Any_(parts):
                return any_of([walk(part) for part in parts])
            case Not(part):
                return make.filter(None, None, [walk(part)])
            case Among(path, strings, numbers, booleans):
                tests = [make.strings(key(path), list(strings))] if strings else []
                tests += [make.range(key(path), None, number, None, number) for number in numbers]
                tests += [make.boolean(key(path), boolean) for boolean in booleans]
                return any_of(tests)
            case Between(path, gt, gte, lt, lte):
                return make.range(key(path), gt, gte, lt, lte)
            case Substring(path, text, fold):
                if fold:
                    raise InvalidFilter(
                        f"$itext on field {'.'.join(path)!r}: Qdrant cannot look for a piece of text in any case. Use "
                        "$text (case-sensitive), store the field in lower case, or take a faiss or exact index."
                    )
                return make.substring(key(path), text)
            case Exists(path):
                return make.filter(None, None, [make.empty(key(path))])

    # An empty `should` lets everything pass, "any of none" must let nothing pass.
    any_of: Callable[[list[C]], C] = lambda tests: make.filter(None, tests, None) if tests else make.nothing()  # noqa: E731
    return walk(node)
