"""Metadata filters that mean the same in every index.

    {"lang": "en", "year": {"$gte": 2020}}                 all of them
    {"$or": [{"tags": {"$in": ["a", "b"]}}, {"$not": {"draft": True}}]}

A name with dots walks into nested objects, and also names a key that is spelled with dots: `loc.page` is the field of
{"loc": {"page": 1}} and of {"loc.page": 1}; where an object has both, both values count, as in a list. A field that
holds a list passes a test when one of its elements does. A field that is missing, null or an empty list has no value:
it fails every test but `{"$exists": False}`, `None`, and the negations `$ne`, `$nin`, `$not`. Numbers compare by value,
exactly (3 = 3.0, 2**53 is not 2**53 + 1), booleans are not numbers, strings compare whole and case-sensitively.
`$gt`, `$gte`, `$lt`, `$lte` also take a date or a time, as an object of Python's or in ISO 8601: it is compared with
strings that are one ("2024-05-01", "2024-05-01T12:00", "2024-05-01 12:00:00.5+02:00"), without a zone in UTC. `$text`
finds a piece of a string, `$itext` in any case; the last one is for the kinds that filter in memory (exact, faiss),
engines of the Qdrant family have no such test.
"""

from __future__ import annotations

import enum
import math
import re
import reprlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ragadapt.errors import InvalidFilter

Filter = Mapping[str, Any]
"""What callers write; see the module's docstring. Indexes also take what `parse` makes of one."""

OPERATORS = (
    "$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$contains", "$all", "$text", "$itext", "$exists",
)  # fmt: skip
_RANGES = ("$gt", "$gte", "$lt", "$lte")
Path = tuple[str, ...]
Number = int | float
_DEEPEST = 100  # filters within filters
_MOST = 200_000  # conditions in one filter, counted as often as they are met
_SPELLED = 5  # parts of a name up to which every grouping of its dots is looked for; beyond, none and all of them


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
    numbers: tuple[Number, ...] = ()
    booleans: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Between:
    """The field has a number within the bounds; None = open."""

    path: Path
    gt: Number | None = None
    gte: Number | None = None
    lt: Number | None = None
    lte: Number | None = None


@dataclass(frozen=True, slots=True)
class Dated:
    """The field has a string that is a date or a time within the bounds; None = open."""

    path: Path
    gt: datetime | None = None
    gte: datetime | None = None
    lt: datetime | None = None
    lte: datetime | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """The passage has one of these ids. Written by code alone: it stands for what the metadata don't hold."""

    ids: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class Marked:
    """The passages that a mask (N,) marks, by their places in a list of ids. Written by code alone, for what was looked
    up already: an index in memory need not look at metadata again. rows_of: ids → their places; not to be changed."""

    ids: Sequence[str]
    mask: NDArray[np.bool_]
    rows_of: Callable[[Sequence[str]], NDArray[np.int64]]

    def passes(self, ids: Sequence[str]) -> list[bool]:
        """For each id whether it is marked. Raises InvalidInput for one that is not in the list."""
        found: list[bool] = self.mask[self.rows_of(ids)].tolist()
        return found

    def named(self) -> frozenset[str]:
        """The ids that are marked."""
        return frozenset(self.ids[row] for row in np.flatnonzero(self.mask).tolist())


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


Node = All | Any_ | Not | Among | Between | Dated | Named | Marked | Substring | Exists
Leaf = Among | Between | Dated | Substring | Exists
"""The tests of one field."""


def parse(filter: Filter | Node) -> Node:
    """The filter as a tree of a few node kinds, equal for filters that say the same of the same values.

    A tree passes as it is. Raises InvalidFilter naming what is wrong and what is supported.
    """
    if isinstance(filter, Node):
        return filter
    return _Parser().filter(filter, ())


def given(filter: Any) -> Any:
    """The filter, None where none is given: None or {}. Whatever else is empty is no filter, and `parse` says so."""
    return None if isinstance(filter, Mapping) and not filter else filter


class _Parser:
    """Counts what it meets, so that filters that hold themselves end."""

    def __init__(self) -> None:
        self.met = 0

    def filter(self, filter: Any, above: tuple[int, ...]) -> Node:
        """above: the filters around this one, by identity."""
        if isinstance(filter, Node):
            return filter
        if not isinstance(filter, Mapping):
            raise InvalidFilter(
                f'A filter is a dict such as {{"lang": "en"}}, not {type(filter).__module__}.'
                f"{type(filter).__qualname__}. Only an index of kind qdrant or qdrant-edge also takes its engine's own "
                f"filters. Operators: {', '.join(OPERATORS)}; $and, $or, $not around them."
            )
        if id(filter) in above or len(above) >= _DEEPEST:
            raise InvalidFilter(f"A filter lies more than {_DEEPEST} filters deep, or within itself. Write it flat.")
        above = (*above, id(filter))
        parts: list[Node] = []
        for key, value in filter.items():
            self.met += 1
            if self.met > _MOST:
                raise InvalidFilter(f"The filter has more than {_MOST:,} conditions. Use $in for many values.")
            if key in ("$and", "$or"):
                if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
                    raise InvalidFilter(f"{key} takes a list of filters, not {_shown(value)}.")
                children = tuple(self.filter(child, above) for child in value)
                parts.append(All(children) if key == "$and" else Any_(children))
            elif key == "$not":
                parts.append(Not(self.filter(value, above)))
            elif not isinstance(key, str) or key.startswith("$"):
                raise InvalidFilter(
                    f"{_shown(key)} is not known here. A filter holds field names, $and, $or and $not; "
                    f"under a field: {', '.join(OPERATORS)}."
                )
            else:
                parts.append(_parse_field(str.__str__(key), value))
        return parts[0] if len(parts) == 1 else All(tuple(parts))


def _parse_field(name: str, condition: Any) -> Node:
    path = tuple(name.split("."))
    if not all(path) or '"' in name:
        raise InvalidFilter(f'Field name {_shown(name)}: dots separate names, none may be empty or hold a ".')
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
            parts.append(_bound(path, operator, value))
        elif operator in ("$text", "$itext"):
            if not isinstance(value, str) or not value:
                raise InvalidFilter(
                    f"{operator} on field {name!r} takes a text that is not empty, not {_shown(value)}."
                )
            parts.append(Substring(path, str.__str__(value), fold=operator == "$itext"))
        elif operator == "$exists":
            if not isinstance(value, (bool, np.bool_)):
                raise InvalidFilter(f"$exists on field {name!r} takes True or False, not {_shown(value)}.")
            parts.append(Exists(path) if value else Not(Exists(path)))
        else:
            raise InvalidFilter(
                f"Operator {_shown(operator)} on field {name!r} is not supported. Use one of: {', '.join(OPERATORS)}."
            )
    return parts[0] if len(parts) == 1 else All(tuple(parts))


def _bound(path: Path, operator: str, value: Any) -> Node:
    number = _number(value)
    if number is not None:
        return Between(path, **{operator[1:]: number})
    moment = _moment(value)
    if moment is not None:
        return Dated(path, **{operator[1:]: moment})
    raise InvalidFilter(
        f"{operator} on field {'.'.join(path)!r} takes a number, or a date or time in ISO 8601 such as '2024-05-01' or "
        f"'2024-05-01T12:00:00Z', not {_shown(value)}. Other strings have no order here: use $eq, $in or $text."
    )


def _values(name: str, operator: str, value: Any) -> list[Any]:
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)) or not isinstance(value, Iterable):
        raise InvalidFilter(f"{operator} on field {name!r} takes a list of values, not {_shown(value)}.")
    return list(value)


def _among(path: Path, operator: str, values: Sequence[Any]) -> Node:
    strings, numbers, booleans = list[str](), list[Number](), list[bool]()
    others: list[Node] = []
    for value in values:
        if type(value) is str:  # most of them, and there may be many
            strings.append(value)
        elif isinstance(value, (bool, np.bool_)):
            booleans.append(bool(value))
        elif isinstance(value, str):
            strings.append(str.__str__(value))
        elif (number := _number(value)) is not None:
            numbers.append(number)
        elif value is None:
            others = [Not(Exists(path)), *(other for other in others if isinstance(other, Dated))]
        elif isinstance(value, date) and (moment := _moment(value)) is not None:
            others.append(Dated(path, gte=moment, lte=moment))
        else:
            name = ".".join(path)
            raise InvalidFilter(
                f"{operator} on field {name!r} compares with strings, numbers, booleans or None, not {_shown(value)}."
            )
    among = Among(path, tuple(dict.fromkeys(strings)), tuple(dict.fromkeys(numbers)), tuple(dict.fromkeys(booleans)))
    if not others:
        return among
    tests = (*others, among) if strings or numbers or booleans else tuple(others)
    return tests[0] if len(tests) == 1 else Any_(tests)


def _number(value: Any) -> Number | None:
    """A plain number of the same value; None for what is none, booleans and NaN among them."""
    if isinstance(value, (bool, np.bool_)):
        return None
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, Decimal):
        if value.is_nan():
            return None
        # A decimal of thousands of digits is no number that metadata hold.
        small = value.is_finite() and value.adjusted() < 400
        return int(value) if small and value == value.to_integral_value() else float(value)
    if isinstance(value, (float, np.floating)) and not math.isnan(value):
        return float(value)
    return None


_MOMENT = re.compile(r"\d{4}-\d\d-\d\d(?:[Tt ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:?\d\d)?)?)?", re.ASCII)


@lru_cache(maxsize=4096)
def moment_of(text: str) -> datetime | None:
    """The moment that a string names, in UTC, as all engines read it; None for any other string."""
    return _in_utc(text) if 10 <= len(text) <= 35 and _MOMENT.fullmatch(text) else None


def _moment(value: Any) -> datetime | None:
    """What a filter names: a date or time of Python's, or a string, here also with a zone after the minutes."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, datetime):
        return _utc(value)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d", value):
        return _in_utc(str.__str__(value))
    return None


def _in_utc(text: str) -> datetime | None:
    try:
        return _utc(datetime.fromisoformat(text.upper()))
    except ValueError:
        return None


def _utc(moment: datetime) -> datetime | None:
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:  # a zone at the end of time
        return None


def _shown(value: Any) -> str:
    """A short repr of anything, whatever it holds."""
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    try:
        return reprlib.repr(value) if not isinstance(value, str) or len(value) > 200 else repr(value)
    except Exception:
        return f"a {type(value).__name__}"


@lru_cache(maxsize=1024)
def spellings(path: Path) -> tuple[Path, ...]:
    """The ways in which the dots of a name may be meant, nested objects first: a.b is ("a", "b") and ("a.b",)."""
    if len(path) == 1:
        return (path,)
    if len(path) > _SPELLED:
        return (path, (".".join(path),))
    found: list[Path] = []
    for joins in range(2 ** (len(path) - 1)):
        parts = [path[0]]
        for at, name in enumerate(path[1:]):
            if joins >> at & 1:
                parts[-1] += "." + name
            else:
                parts.append(name)
        found.append(tuple(parts))
    return tuple(found)


def values_at(payload: Mapping[str, Any], path: Path) -> list[Any]:
    """The values that a field holds: a list's elements, a lone value, or nothing. None stays in lists."""
    if len(path) > 1:
        return [value for spelled in spellings(path) for value in _values_under(payload, spelled)]
    return _values_under(payload, path)


def _values_under(payload: Mapping[str, Any], path: Path) -> list[Any]:
    value: Any = payload
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return []
        value = value[name]
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def leaves(node: Node) -> list[Leaf]:
    """The tests of single fields in a tree, each once."""
    found: dict[Leaf, None] = {}

    def walk(node: Node) -> None:
        if isinstance(node, (All, Any_)):
            for part in node.parts:
                walk(part)
        elif isinstance(node, Not):
            walk(node.part)
        elif not isinstance(node, (Named, Marked)):
            found[node] = None

    walk(node)
    return list(found)


def replace_leaves(node: Node, others: Mapping[Leaf, Node]) -> Node:
    """The tree with other nodes in the place of some tests."""
    if not others or isinstance(node, (Named, Marked)):
        return node
    if isinstance(node, All):
        return All(tuple(replace_leaves(part, others) for part in node.parts))
    if isinstance(node, Any_):
        return Any_(tuple(replace_leaves(part, others) for part in node.parts))
    if isinstance(node, Not):
        return Not(replace_leaves(node.part, others))
    return others.get(node, node)


def compile_filter(filter: Filter | Node) -> Callable[..., bool]:
    """A test for one metadata object, as test(metadata), or test(metadata, id) where the filter may name ids.

    For many, `Columns` is quicker. Raises InvalidFilter.
    """
    node = parse(filter)
    return lambda metadata, id=None: _holds(node, metadata, id)


def _holds(node: Node, metadata: Mapping[str, Any], id: str | None = None) -> bool:
    match node:
        case All(parts):
            return all(_holds(part, metadata, id) for part in parts)
        case Any_(parts):
            return any(_holds(part, metadata, id) for part in parts)
        case Not(part):
            return not _holds(part, metadata, id)
        case Named(ids):
            return id in ids
        case Marked():
            return id is not None and node.passes([id])[0]
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
        case Dated(path):
            moments = (moment_of(value) for value in values_at(metadata, path) if isinstance(value, str))
            return any(_within(moment, node) for moment in moments if moment is not None)
        case Substring(path):
            return any(isinstance(value, str) and node.within(value) for value in values_at(metadata, path))


def _within(value: Any, bounds: Between | Dated) -> bool:
    return (
        (bounds.gt is None or value > bounds.gt)
        and (bounds.gte is None or value >= bounds.gte)
        and (bounds.lt is None or value < bounds.lt)
        and (bounds.lte is None or value <= bounds.lte)
    )


class _Sorted:
    """Values of many rows, sorted: which rows have one within bounds."""

    def __init__(self, pairs: list[tuple[Any, int]]) -> None:
        pairs.sort()
        self.values = [value for value, _ in pairs]  # Python's own: they compare exactly, int with float
        self.rows = np.array([row for _, row in pairs], np.int64)

    def equal(self, value: Any) -> NDArray[np.int64]:
        return self.rows[bisect_left(self.values, value) : bisect_right(self.values, value)]

    def within(self, bounds: Between | Dated) -> NDArray[np.int64]:
        start, end = 0, len(self.values)
        for value, cut in ((bounds.gt, bisect_right), (bounds.gte, bisect_left)):
            start = max(start, cut(self.values, value)) if value is not None else start
        for value, cut in ((bounds.lt, bisect_left), (bounds.lte, bisect_right)):
            end = min(end, cut(self.values, value)) if value is not None else end
        return self.rows[start : max(start, end)]


@dataclass(slots=True)
class _Column:
    """One field of all rows, turned around: from values to rows."""

    strings: dict[str, list[int]] = field(default_factory=dict)
    booleans: dict[bool, list[int]] = field(default_factory=dict)
    present: list[int] = field(default_factory=list)
    numbers: _Sorted = field(default_factory=lambda: _Sorted([]))
    _dates: _Sorted | None = None

    def dates(self) -> _Sorted:
        if self._dates is None:
            found = ((moment_of(text), rows) for text, rows in self.strings.items())
            self._dates = _Sorted([(moment, row) for moment, rows in found if moment is not None for row in rows])
        return self._dates


class Columns:
    """Filters over payloads that lie in memory. A field is turned around at its first use, then quick."""

    def __init__(
        self,
        payloads: Sequence[Mapping[str, Any]],
        rows_of: Callable[[Iterable[str]], Iterable[int]] = lambda ids: (),
    ) -> None:
        """rows_of: ids → the rows of those that are there."""
        self._payloads = payloads
        self._rows_of = rows_of
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
            case Named(ids):
                mask = np.zeros(n, np.bool_)
                mask[list(self._rows_of(ids))] = True
            case Marked():
                return self.mask(Named(node.named()))
            case Among(path, strings, numbers, booleans):
                column, mask = self._column(path), np.zeros(n, np.bool_)
                for string in strings:
                    mask[column.strings.get(string, [])] = True
                for number in numbers:
                    mask[column.numbers.equal(number)] = True
                for boolean in booleans:
                    mask[column.booleans.get(boolean, [])] = True
            case Between(path):
                # The number must satisfy all bounds at once: two elements of a list don't share them.
                mask = np.zeros(n, np.bool_)
                mask[self._column(path).numbers.within(node)] = True
            case Dated(path):
                mask = np.zeros(n, np.bool_)
                mask[self._column(path).dates().within(node)] = True
            case Substring(path):
                column, mask = self._column(path), np.zeros(n, np.bool_)
                for string, rows in column.strings.items():
                    if node.within(string):
                        mask[rows] = True
            case Exists(path):
                mask = np.zeros(n, np.bool_)
                mask[self._column(path).present] = True
        return mask

    def _column(self, path: Path) -> _Column:
        column = self._columns.get(path)
        if column is None:
            column, numbers = _Column(), list[tuple[Number, int]]()
            for row, payload in enumerate(self._payloads):
                values = values_at(payload, path)
                if values:
                    column.present.append(row)
                for value in values:
                    if isinstance(value, str):
                        column.strings.setdefault(value, []).append(row)
                    elif isinstance(value, bool):
                        column.booleans.setdefault(value, []).append(row)
                    elif isinstance(value, (int, float)) and value == value:
                        numbers.append((value, row))
            column.numbers = _Sorted(numbers)
            self._columns[path] = column
        return column


C = TypeVar("C")


class ConditionMaker(Protocol[C]):
    """What an engine of the Qdrant family must be able to say; both do it with their own classes."""

    def filter(self, must: list[C] | None, should: list[C] | None, must_not: list[C] | None) -> C: ...
    def strings(self, key: str, values: list[str]) -> C: ...
    def boolean(self, key: str, value: bool) -> C: ...
    def integers(self, key: str, values: list[int]) -> C: ...
    def range(self, key: str, gt: float | None, gte: float | None, lt: float | None, lte: float | None) -> C: ...
    def moments(self, key: str, bounds: Dated) -> C: ...
    def named(self, ids: Iterable[str]) -> C: ...
    def substring(self, key: str, text: str) -> C: ...
    def empty(self, key: str) -> C: ...
    def nothing(self) -> C: ...


def payload_key(path: Path, prefix: Path = ()) -> str:
    """How an engine of the Qdrant family names a part of the payload. prefix: where the metadata lies in it."""
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"' for part in (*prefix, *path))


def to_qdrant(node: Node, make: ConditionMaker[C], prefix: Path = ()) -> C:
    """The tree as a condition of a Qdrant engine. prefix: where the metadata lies in the payload."""

    def walk(node: Node) -> C:
        match node:
            case All(parts):
                return make.filter([walk(part) for part in parts], None, None)
            case Any_(parts):
                return any_of([walk(part) for part in parts])
            case Not(part):
                return make.filter(None, None, [walk(part)])
            case Named(ids):
                return make.named(ids) if ids else make.nothing()
            case Marked():
                return walk(Named(node.named()))
            case Substring(path, _, True):
                raise InvalidFilter(
                    f"$itext on field {'.'.join(path)!r}: Qdrant cannot look for a piece of text in any case. Use "
                    "$text (case-sensitive), store the field in lower case, or take a faiss or exact index."
                )
            case _:
                return any_of(
                    [test for path in spellings(node.path) for test in tests(node, payload_key(path, prefix))]
                )

    def tests(node: Leaf, name: str) -> Iterator[C]:
        match node:
            case Among(_, strings, numbers, booleans):
                if strings:
                    yield make.strings(name, list(strings))
                for number in numbers:
                    same = Between((), gte=number, lte=number)
                    yield from numeric(name, number, same)
                for boolean in booleans:
                    yield make.boolean(name, boolean)
            case Between(_, gt, gte, lt, lte):
                (bound,) = (bound for bound in (gt, gte, lt, lte) if bound is not None)  # as parse writes them
                yield from numeric(name, bound, node)
            case Dated():
                yield make.moments(name, node)
            case Substring(_, text):
                yield make.substring(name, text)
            case Exists():
                yield make.filter(None, None, [make.empty(name)])

    def numeric(name: str, number: Number, bounds: Between) -> Iterator[C]:
        """The engine compares floats: what lies so near that it rounds to the same one is named number by number."""

        def passes(value: Number) -> bool:
            return _within(value, bounds)

        try:
            middle = float(number)
        except OverflowError:
            middle = math.inf if number > 0 else -math.inf
        if math.isinf(middle):  # no stored number is so large
            if passes(0.0):
                yield make.range(name, None, -_LARGEST, None, None)
            return
        if abs(middle) < _EXACT or (abs(middle) >= 2.0**63 and isinstance(number, float)) or abs(middle) > 2.0**64:
            each = (bounds.gt, bounds.gte, bounds.lt, bounds.lte)
            yield make.range(name, *(None if bound is None else middle for bound in each))
            return
        below, above = math.nextafter(middle, -math.inf), math.nextafter(middle, math.inf)
        near = range(int(below) + 1, int(above))
        if near[0] < -(2**63) or near[-1] >= 2**63:
            raise InvalidFilter(
                f"{number} on field {name}: Qdrant's integers have 64 bits with a sign. Store such numbers as strings."
            )
        if passes(above):
            yield make.range(name, None, above, None, None)
        if passes(below):
            yield make.range(name, None, None, None, below)
        if good := [value for value in near if passes(value)]:
            yield make.integers(name, good)
        if passes(middle):
            bad = [value for value in near if not passes(value)]
            same = make.range(name, None, middle, None, middle)
            yield make.filter([same], None, [make.integers(name, bad)]) if bad else same

    # An empty `should` lets everything pass, "any of none" must let nothing pass.
    any_of: Callable[[list[C]], C] = lambda tests: make.filter(None, tests, None) if tests else make.nothing()  # noqa: E731
    return walk(node)


_EXACT = 2.0**53  # below, floats hold every integer
_LARGEST = 1.7976931348623157e308
