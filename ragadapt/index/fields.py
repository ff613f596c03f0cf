"""The fields that metadata have, by type; and filters whose values are brought to these types.

What people or language models write into a filter is often of another type than what is stored: "2024" for 2024, a
month for a date, 7 for "7". `typed` makes the one of the other where that is certain, and says what is wrong where it
is not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from typing import Any, Final, Literal

from ragadapt.errors import InvalidFilter
from ragadapt.index.filters import Dated, Filter, moment_of

Kind = Literal["text", "number", "date", "boolean", "mixed"]

_EXAMPLES = 10
_LONGEST = 80  # characters of a value that is shown as an example
_WORDS: Final = {"true": True, "yes": True, "false": False, "no": False}
_RANGES: Final = ("$gt", "$gte", "$lt", "$lte")
_PERIOD = re.compile(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the metadata. kind: of all its values; "mixed" where they differ; dates are ISO 8601 strings.

    several: it holds lists. present: how many passages have it. examples: the most frequent values. low, high: the
    least and the greatest of numbers and dates; None for other kinds.
    """

    name: str
    kind: Kind
    several: bool
    present: int
    examples: tuple[Any, ...]
    low: Any = None
    high: Any = None

    @property
    def description(self) -> str:
        """In a sentence, as a language model may be told."""
        what = {
            "text": "Text",
            "number": "A number",
            "date": "A date or time in ISO 8601",
            "boolean": "True or false",
            "mixed": "Values of several types",
        }[self.kind]
        if self.several:
            what += "; a passage may have several"
        if self.low is not None:
            return f"{what}, from {self.low} to {self.high}."
        listed = ", ".join(str(value) for value in self.examples)
        return f"{what}, such as {listed}." if self.kind != "boolean" and listed else f"{what}."


def fields_of(payloads: Iterable[Mapping[str, Any]]) -> list[Field]:
    """The fields of metadata, those of nested objects with dots, in the order in which they are first met."""
    kinds: dict[str, set[Kind]] = {}
    counts: dict[str, Counter[Any]] = {}
    several: dict[str, bool] = {}
    present: Counter[str] = Counter()
    for payload in payloads:
        for name, values, is_list in values_by_name(payload):
            met = kinds.setdefault(name, set())
            counted = counts.setdefault(name, Counter())
            several[name] = several.get(name, False) or is_list
            present[name] += 1
            for value in values:
                met.add(kind_of(value))
                counted[(type(value) is bool, value)] += 1
    made = []
    for name, met in kinds.items():
        kind: Kind = next(iter(met)) if len(met) == 1 else "text" if met == {"date", "text"} else "mixed"
        values = [value for (_, value), _ in counts[name].most_common()]
        ends: tuple[Any, Any] = (None, None)
        if kind == "number":
            ends = min(values), max(values)
        elif kind == "date":
            ordered = sorted(values, key=lambda text: moment_of(text) or datetime.min.replace(tzinfo=UTC))
            ends = ordered[0], ordered[-1]
        examples = tuple(value for value in values if not isinstance(value, str) or len(value) <= _LONGEST)
        made.append(Field(name, kind, several[name], present[name], examples[:_EXAMPLES], *ends))
    return made


def values_by_name(payload: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[Any], bool]]:
    """(name, values, whether they stood in a list) of every field that has some."""
    for key, value in payload.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from values_by_name(value, f"{name}.")
        elif isinstance(value, list):
            plain = [each for each in value if isinstance(each, str | bool | int | float)]
            if plain:
                yield name, plain, True
        elif isinstance(value, str | bool | int | float):
            yield name, [value], False


def kind_of(value: str | bool | float) -> Kind:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "date" if moment_of(value) is not None else "text"
    return "number"


def typed(filter: Filter, fields: Sequence[Field]) -> dict[str, Any]:
    """The filter with its values in the types of the fields; a period such as "2024", "2024-05" or a day stands for all
    of it.

    {"year": "2024"} → {"year": 2024} where year is a number; {"created": {"$eq": "2024-05"}} → from the first of May on
    and before the first of June, where it is a date. Raises InvalidFilter for fields that nothing has, and for values
    that cannot be of the field's type.
    """
    by_name = {field.name: field for field in fields}

    def one(filter: Any) -> dict[str, Any]:
        if not isinstance(filter, Mapping):
            raise InvalidFilter(f'A filter is a dict such as {{"lang": "en"}}, not {filter!r:.80}.')
        made: list[dict[str, Any]] = []
        for key, value in filter.items():
            if key in ("$and", "$or"):
                if not isinstance(value, list | tuple):
                    raise InvalidFilter(f"{key} takes a list of filters, not {value!r:.80}.")
                made.append({key: [one(part) for part in value]})
            elif key == "$not":
                made.append({key: one(value)})
            else:
                made += _of_field(_field(str(key), by_name), value)
        return made[0] if len(made) == 1 else {"$and": made}

    return one(filter) if filter else {}


def _field(name: str, by_name: Mapping[str, Field]) -> Field:
    if name not in by_name:
        close = get_close_matches(name, by_name, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        known = ", ".join(list(by_name)[:20]) or "none"
        raise InvalidFilter(f"No passage has a field {name!r}.{hint} There are: {known}.")
    return by_name[name]


def _of_field(field: Field, condition: Any) -> list[dict[str, Any]]:
    tests = condition if isinstance(condition, Mapping) else {"$eq": condition}
    made: list[dict[str, Any]] = []
    for operator, value in tests.items():
        if operator in ("$exists", "$text", "$itext") or value is None:
            made.append({field.name: {operator: value}})
        elif operator in ("$in", "$nin", "$all"):
            values = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
            if field.kind == "date":
                tests_of = [_dated(field, "$eq", each) for each in values if each is not None]
                joined = {"$and" if operator == "$all" else "$or": tests_of}
                made.append({"$not": joined} if operator == "$nin" else joined)
            else:
                made.append({field.name: {operator: [None if v is None else _cast(field, v) for v in values]}})
        elif field.kind == "date":
            made.append(_dated(field, operator, value))
        else:
            made.append({field.name: {operator: _cast(field, value)}})
    return made


def _cast(field: Field, value: Any) -> Any:
    """The value as the field's kind has it."""
    kind = field.kind
    if kind == "number" and isinstance(value, str):
        text = value.strip().replace("_", "")
        if re.fullmatch(r"[+-]?\d+", text):
            return int(text)
        if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
            return float(text)
        raise _wrong(field, value, "a number")
    if kind == "boolean" and not isinstance(value, bool):
        if isinstance(value, str) and value.strip().lower() in _WORDS:
            return _WORDS[value.strip().lower()]
        if isinstance(value, int | float) and value in (0, 1):
            return bool(value)
        raise _wrong(field, value, "true or false")
    if kind == "text" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def _dated(field: Field, operator: str, value: Any) -> dict[str, Any]:
    """A test against a moment or a period: a year, a month or a day stands for all of it."""
    start, end = _period(field, value)
    bounds: dict[str, dict[str, Any]] = {
        "$eq": {"$gte": start, "$lt": end} if end is not None else {"$gte": start, "$lte": start},
        "$gt": {"$gte": end} if end is not None else {"$gt": start},
        "$gte": {"$gte": start},
        "$lt": {"$lt": start},
        "$lte": {"$lt": end} if end is not None else {"$lte": start},
    }
    wanted = {"$contains": "$eq", "$ne": "$eq"}.get(operator, operator)
    if wanted not in bounds:
        return {field.name: {operator: value}}  # whoever reads the filter says which there are
    tests = bounds[wanted]
    test: dict[str, Any] = {"$and": [{field.name: {name: bound}} for name, bound in tests.items()]}
    if field.several and len(tests) > 1:  # one element must satisfy both
        within = {name[1:]: moment_of(bound) for name, bound in tests.items()}
        test = {"$and": [Dated(tuple(field.name.split(".")), **within)]}
    return {"$not": test} if operator == "$ne" else test


def _period(field: Field, value: Any) -> tuple[str, str | None]:
    """(start, end) in ISO 8601 of a year, a month or a day; (moment, None) of a time."""
    if isinstance(value, datetime):
        return value.isoformat(), None
    if isinstance(value, date):
        value = value.isoformat()
    if isinstance(value, int) and not isinstance(value, bool) and 1000 <= value <= 9999:
        value = str(value)
    if not isinstance(value, str):
        raise _wrong(field, value, "a date in ISO 8601, such as 2024-05-01")
    found = _PERIOD.fullmatch(value.strip())
    try:
        if found is None:
            datetime.fromisoformat(value.strip().upper())
            return value.strip(), None
        year, month, day = (None if part is None else int(part) for part in found.groups())
        assert year is not None
        start = date(year, month or 1, day or 1)
        if day is not None:
            end = start + timedelta(days=1)
        elif month is not None:
            end = date(year + month // 12, month % 12 + 1, 1)
        else:
            end = date(year + 1, 1, 1)
    except (ValueError, OverflowError) as error:
        raise _wrong(field, value, "a date in ISO 8601, such as 2024-05-01, 2024-05 or 2024") from error
    return start.isoformat(), end.isoformat()


def _wrong(field: Field, value: Any, needed: str) -> InvalidFilter:
    return InvalidFilter(f"Field {field.name!r} holds values like {field.examples[:3]}; {value!r:.80} is not {needed}.")
