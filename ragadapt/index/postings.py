"""Filters over passages that do not change: the rows of every value of every field, made once and mapped into memory.

`Columns` turns payloads around that lie in memory, each field when a filter first names it. A saved retriever has all
of its fields turned around in one file, so a filter reads the lists of the values that it names and nothing else: no
metadata are parsed, in however many processes the file is open, and the first filter costs what the tenth does.

The file is in the format of safetensors. A field is a path of keys, as they are spelled in the metadata; its part of
every list lies between two numbers of `starts` (F + 1, 7), in the order of `_LISTS`:

| list     | sorted by            | with                                                                               |
|----------|----------------------|------------------------------------------------------------------------------------|
| present  | row                  | rows in which the field has a value                                                |
| true     | row                  |                                                                                    |
| false    | row                  |                                                                                    |
| texts    | hash                 | where the distinct strings stand in `text_bytes`, and their rows in `text_rows`    |
| floats   | value                | rows; floats, and integers that a float holds exactly                              |
| integers | value                | rows; integers of 64 bits beyond these                                             |
| times    | microsecond in UTC   | rows of the strings that are a date or a time                                      |

Integers of more than 64 bits stand in `huge` as JSON.
"""

from __future__ import annotations

import json
import math
import re
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from ragadapt.errors import FormatTooNew, StoreCorrupt, reason_of
from ragadapt.index.filters import (
    All,
    Among,
    Any_,
    Between,
    Dated,
    Exists,
    Leaf,
    Marked,
    Named,
    Node,
    Not,
    Number,
    Substring,
    moment_of,
    spellings,
)  # fmt: skip

FORMAT = 1
POSTINGS = "fields.safetensors"
"""Its file in the folder of a retriever."""

Keys = tuple[str, ...]
Rows = NDArray[np.int32]
Mask = NDArray[np.bool_]

_LISTS = ("present", "true", "false", "texts", "floats", "integers", "times")
_DTYPES: dict[str, Any] = {
    "names": np.uint8, "starts": np.int64, "present": np.int32, "true": np.int32, "false": np.int32,
    "text_hashes": np.uint64, "text_bytes": np.uint8, "text_places": np.int64, "text_rows": np.int32,
    "text_starts": np.int64, "float_values": np.float64, "float_rows": np.int32, "integer_values": np.int64,
    "integer_rows": np.int32, "time_values": np.int64, "time_rows": np.int32, "huge": np.uint8,
}  # fmt: skip
_NAMES = {"F64": np.float64, "I64": np.int64, "U64": np.uint64, "I32": np.int32, "U8": np.uint8}  # as safetensors says
_EXACT = 2**53  # up to which a float holds every integer
_ROWS = 2**31 - 1
_END = b"\xff"  # behind every string: no byte of UTF-8, so what is looked for never reaches over an end
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FOLDED = 4  # fields whose strings are kept without case


class FieldPostings:
    """Which of N rows pass a filter. Make one with `build` or `open`; safe for use from several threads."""

    def __init__(self, count: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._count = count
        self._arrays = dict(arrays)
        self._starts: NDArray[np.int64] = self._arrays["starts"]
        self._fields: dict[Keys, int] | None = None
        self._huge: dict[int, tuple[list[int], list[Rows]]] = {}
        self._folded: dict[int, tuple[bytes, NDArray[np.int64]]] = {}
        self._lock = threading.Lock()  # of what is made at its first use

    @classmethod
    def build(cls, payloads: Iterable[Mapping[str, Any]]) -> Self:
        """Turn metadata around: JSON objects, one a row."""
        root, count = _Builder(), 0
        for row, payload in enumerate(payloads):
            root.add(payload, row)
            count = row + 1
        assert count <= _ROWS
        return cls(count, _arrays(list(root.fields())))

    def save(self, path: str | Path) -> None:
        """Write the file."""
        from safetensors.numpy import save_file

        save_file(self._arrays, str(path), {"format": str(FORMAT), "rows": str(self._count)})

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Map what `save` wrote. Raises StoreCorrupt, FormatTooNew."""
        path = Path(path)
        try:
            raw = np.memmap(path, dtype=np.uint8, mode="r")
            start = 8 + int(raw[:8].view("<u8")[0])
            header: dict[str, Any] = json.loads(raw[8:start].tobytes())
            about = header.pop("__metadata__")
            if int(about["format"]) > FORMAT:
                raise FormatTooNew(
                    f"{path} has format {about['format']}, this ragadapt reads up to {FORMAT}. Upgrade with: "
                    "pip install -U ragadapt"
                )
            data = np.asarray(raw)  # still mapped, but cheap to slice
            arrays = {}
            for name, dtype in _DTYPES.items():
                first, last = header[name]["data_offsets"]
                if _NAMES[header[name]["dtype"]] is not dtype or start + last > len(data):
                    raise ValueError(f"{name} is not what it was written as")
                arrays[name] = data[start + first : start + last].view(dtype)
            arrays["starts"] = arrays["starts"].reshape(-1, len(_LISTS))
            return cls(int(about["rows"]), arrays)
        except FormatTooNew:
            raise
        except Exception as error:  # numpy and JSON have many of their own for damage
            raise StoreCorrupt(
                f"{path} cannot be read ({reason_of(error)}). Rebuild it with: ragadapt index RETRIEVER --rebuild"
            ) from error

    def __len__(self) -> int:
        return self._count

    def mask(self, node: Node, rows_of: Callable[[Iterable[str]], Iterable[int]] = lambda ids: ()) -> Mask:
        """(N,) which rows pass. rows_of: ids → the rows of those that are there."""
        match node:
            case All(parts):
                mask = np.ones(self._count, np.bool_)
                for part in parts:
                    mask &= self.mask(part, rows_of)
            case Any_(parts):
                mask = np.zeros(self._count, np.bool_)
                for part in parts:
                    mask |= self.mask(part, rows_of)
            case Not(part):
                mask = ~self.mask(part, rows_of)
            case Named(ids):
                mask = np.zeros(self._count, np.bool_)
                mask[list(rows_of(ids))] = True
            case Marked():
                mask = node.mask
            case _:
                mask = np.zeros(self._count, np.bool_)
                for rows in self._passing(node):
                    mask[rows] = True
        return mask

    def _passing(self, leaf: Leaf) -> Iterator[Rows]:
        """The rows of one field that pass, in lists that may share some."""
        for path in spellings(leaf.path):
            field = self._names().get(path)
            if field is None:
                continue
            match leaf:
                case Exists():
                    yield self._part(field, "present", "present")
                case Among(_, strings, numbers, booleans):
                    yield from self._of_texts(self._texts(field, strings))
                    for number in numbers:
                        yield from self._between(field, Between((), gte=number, lte=number))
                    for boolean in booleans:
                        name = "true" if boolean else "false"
                        yield self._part(field, name, name)
                case Between():
                    yield from self._between(field, leaf)
                case Dated():
                    each = (leaf.gt, leaf.gte, leaf.lt, leaf.lte)
                    gt, gte, lt, lte = (None if moment is None else _microseconds(moment) for moment in each)
                    times = _Integers(self._part(field, "times", "time_values"))
                    yield self._part(field, "times", "time_rows")[_slice(times, Between((), gt, gte, lt, lte))]
                case Substring():
                    yield from self._of_texts(self._with_text(field, leaf))

    def _names(self) -> dict[Keys, int]:
        if self._fields is None:
            listed = json.loads(self._arrays["names"].tobytes())
            self._fields = {tuple(keys): number for number, keys in enumerate(listed)}
        return self._fields

    def _bounds(self, field: int, kind: str) -> tuple[int, int]:
        at = _LISTS.index(kind)
        return int(self._starts[field, at]), int(self._starts[field + 1, at])

    def _part(self, field: int, kind: str, name: str) -> NDArray[Any]:
        """The field's part of an array."""
        start, end = self._bounds(field, kind)
        return self._arrays[name][start:end]

    # Strings

    def _texts(self, field: int, strings: Sequence[str]) -> NDArray[np.int64]:
        """The numbers of those of the strings that the field has."""
        start, end = self._bounds(field, "texts")
        if start == end or not strings:
            return np.empty(0, np.int64)
        hashes, places = self._arrays["text_hashes"][start:end], self._arrays["text_places"]
        asked = [string.encode("utf-8", "surrogatepass") for string in strings]
        wanted = np.fromiter(map(xxhash.xxh3_64_intdigest, asked), np.uint64, len(asked))
        first = np.searchsorted(hashes, wanted)
        there = np.flatnonzero(hashes[np.minimum(first, len(hashes) - 1)] == wanted)
        found, texts = start + first[there], [asked[number] for number in there.tolist()]
        lengths = places[found + 1] - places[found] - 1
        if np.array_equal(lengths, np.fromiter(map(len, texts), np.int64, len(texts))):
            at = np.repeat(places[found] - (np.cumsum(lengths) - lengths), lengths) + np.arange(int(lengths.sum()))
            if self._arrays["text_bytes"][at].tobytes() == b"".join(texts):  # all of them at once, to the last byte
                return found
        pairs = zip(texts, found.tolist(), strict=True)
        each = (self._one_text(text, number, end) for text, number in pairs)
        return np.array([number for number in each if number is not None], np.int64)

    def _one_text(self, text: bytes, number: int, end: int) -> int | None:
        """The number of a string among those of one hash, which stand side by side from the given one on."""
        hashes, places = self._arrays["text_hashes"], self._arrays["text_places"]
        every, wanted = self._arrays["text_bytes"].data, hashes[number]
        while number < end and hashes[number] == wanted:
            if every[int(places[number]) : int(places[number + 1]) - 1] == text:
                return number
            number += 1
        return None

    def _with_text(self, field: int, test: Substring) -> NDArray[np.int64]:
        """The numbers of the field's strings in which a text occurs."""
        start, end = self._bounds(field, "texts")
        if test.fold:
            every, places = self._without_case(field)
            wanted = _bytes(test.text.casefold())
        else:
            places = self._arrays["text_places"][start : end + 1]
            every = self._arrays["text_bytes"][places[0] : places[-1]].tobytes() if end > start else b""
            wanted = _bytes(test.text)
        met = np.array([found.start() for found in re.finditer(re.escape(wanted), every)], np.int64)
        return start + np.unique(np.searchsorted(places[:-1], met + places[0], side="right") - 1)

    def _without_case(self, field: int) -> tuple[bytes, NDArray[np.int64]]:
        """(the field's strings without their case, where they start, and the end), made when first asked for."""
        known = self._folded.get(field)
        if known is None:
            start, end = self._bounds(field, "texts")
            first, last = self._arrays["text_places"][[start, end]]
            listed = self._arrays["text_bytes"][first:last].tobytes().split(_END)[:-1]
            folded = [_bytes(text.decode("utf-8", "surrogatepass").casefold()) for text in listed]
            lengths = np.fromiter((len(text) + 1 for text in folded), np.int64, len(folded))
            known = b"".join(text + _END for text in folded), np.concatenate([[0], np.cumsum(lengths)])
            with self._lock:
                while len(self._folded) >= _FOLDED:
                    self._folded.pop(next(iter(self._folded)))
                self._folded[field] = known
        return known

    def _of_texts(self, numbers: NDArray[np.int64]) -> Iterator[Rows]:
        """The rows of strings by their numbers."""
        if len(numbers) == 0:
            return
        numbers = np.sort(numbers)  # what stands side by side is one piece
        breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
        starts, rows = self._arrays["text_starts"], self._arrays["text_rows"]
        firsts = starts[numbers[np.concatenate([[0], breaks])]].tolist()
        ends = starts[numbers[np.concatenate([breaks - 1, [-1]])] + 1].tolist()
        yield np.concatenate([rows[first:end] for first, end in zip(firsts, ends, strict=True)])

    # Numbers

    def _between(self, field: int, bounds: Between) -> Iterator[Rows]:
        """The rows with a number that satisfies all bounds at once."""
        floats = _Floats(self._part(field, "floats", "float_values"))
        yield self._part(field, "floats", "float_rows")[_slice(floats, bounds)]
        integers = _Integers(self._part(field, "integers", "integer_values"))
        yield self._part(field, "integers", "integer_rows")[_slice(integers, bounds)]
        values, rows = self._beyond().get(field, ([], []))
        yield from rows[_slice(_Plain(values), bounds)]

    def _beyond(self) -> dict[int, tuple[list[int], list[Rows]]]:
        """Integers of more than 64 bits, by field: values, sorted, and the rows of each."""
        if not self._huge and len(self._arrays["huge"]):
            listed = json.loads(self._arrays["huge"].tobytes())
            self._huge = {
                field: ([int(value) for value, _ in pairs], [np.array(rows, np.int32) for _, rows in pairs])
                for field, pairs in listed
            }
        return self._huge


class _Ordered(Protocol):
    def below(self, bound: Number, through: bool) -> int:
        """How many values are less than a bound; through: or equal to it."""


class _Floats:
    def __init__(self, values: NDArray[np.float64]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def below(self, bound: Number, through: bool) -> int:
        try:
            near = float(bound)
        except OverflowError:
            near = math.inf if bound > 0 else -math.inf
        # Python compares integers with floats exactly. Where the bound lies between two floats, near is one of them.
        through = through if near == bound else near < bound
        return int(np.searchsorted(self.values, near, side="right" if through else "left"))


class _Integers:
    def __init__(self, values: NDArray[np.int64]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def below(self, bound: Number, through: bool) -> int:
        if isinstance(bound, float):
            if math.isinf(bound):
                return len(self.values) if bound > 0 else 0
            whole = math.floor(bound)
            through, bound = through or whole != bound, whole
        if not -(2**63) <= bound < 2**63:
            return len(self.values) if bound > 0 else 0
        return int(np.searchsorted(self.values, np.int64(bound), side="right" if through else "left"))


class _Plain:
    def __init__(self, values: list[int]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def below(self, bound: Number, through: bool) -> int:
        return bisect_right(self.values, bound) if through else bisect_left(self.values, bound)


def _slice(values: _Floats | _Integers | _Plain, bounds: Between) -> slice:
    """Where the values stand that satisfy all bounds."""
    start, end = 0, len(values)
    for bound, through in ((bounds.gt, True), (bounds.gte, False)):
        start = start if bound is None else max(start, values.below(bound, through))
    for bound, through in ((bounds.lt, False), (bounds.lte, True)):
        end = end if bound is None else min(end, values.below(bound, through))
    return slice(start, max(start, end))


class _Builder:
    """One field, or the metadata as a whole, while rows come in."""

    __slots__ = (
        "children", "false", "float_rows", "floats", "huge", "integer_rows", "integers", "present", "text_numbers",
        "text_rows", "texts", "true",
    )  # fmt: skip

    def __init__(self) -> None:
        self.children: dict[str, _Builder] = {}
        self.present, self.true, self.false = array("i"), array("i"), array("i")
        self.texts: dict[str, int] = {}
        self.text_numbers, self.text_rows = array("i"), array("i")
        self.floats, self.float_rows = array("d"), array("i")
        self.integers, self.integer_rows = array("q"), array("i")
        self.huge: dict[int, list[int]] = {}

    def add(self, payload: Mapping[str, Any], row: int) -> None:
        """The fields of one row."""
        waiting: list[tuple[_Builder, Mapping[str, Any]]] = [(self, payload)]
        while waiting:
            parent, values = waiting.pop()
            for key, value in values.items():
                if value is None or value == []:
                    continue
                field = parent.children.get(key)
                if field is None:
                    field = parent.children[key] = _Builder()
                field.present.append(row)
                if isinstance(value, Mapping):
                    waiting.append((field, value))
                else:
                    for one in value if isinstance(value, list) else (value,):
                        field.put(one, row)

    def put(self, value: Any, row: int) -> None:
        """One value of this field."""
        if isinstance(value, str):
            self.text_numbers.append(self.texts.setdefault(value, len(self.texts)))
            self.text_rows.append(row)
        elif isinstance(value, bool):
            (self.true if value else self.false).append(row)
        elif isinstance(value, float):
            if value == value:
                self.floats.append(value)
                self.float_rows.append(row)
        elif isinstance(value, int):
            if -_EXACT <= value <= _EXACT:
                self.floats.append(float(value))
                self.float_rows.append(row)
            elif -(2**63) <= value < 2**63:
                self.integers.append(value)
                self.integer_rows.append(row)
            else:
                self.huge.setdefault(value, []).append(row)

    def fields(self, path: Keys = ()) -> Iterator[tuple[Keys, _Builder]]:
        """Every field below, with its keys."""
        waiting = [(path, self)]
        while waiting:
            path, parent = waiting.pop()
            for key, field in parent.children.items():
                yield (*path, key), field
                waiting.append(((*path, key), field))


def _arrays(fields: Sequence[tuple[Keys, _Builder]]) -> dict[str, NDArray[Any]]:
    """The file's arrays. The fields are empty afterwards: at a million rows each takes some ten megabytes."""
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in _DTYPES}
    starts, huge = np.zeros((len(fields) + 1, len(_LISTS)), np.int64), []
    bytes_before = rows_before = 0
    for number, (_, field) in enumerate(fields):
        texts = _sorted_texts(field)
        texts["text_places"] += bytes_before
        texts["text_starts"] += rows_before
        bytes_before += len(texts["text_bytes"])
        rows_before += len(texts["text_rows"])
        floats = _sorted_numbers(_taken(field, "floats"), _taken(field, "float_rows"))
        integers = _sorted_numbers(_taken(field, "integers"), _taken(field, "integer_rows"))
        of_field: dict[str, NDArray[Any]] = {
            "present": _taken(field, "present"),
            "true": _taken(field, "true"),
            "false": _taken(field, "false"),
            **texts,
            "float_values": floats[0], "float_rows": floats[1],
            "integer_values": integers[0], "integer_rows": integers[1],
        }  # fmt: skip
        for name, part in of_field.items():
            if len(part):
                parts[name].append(part)
        sizes = ("present", "true", "false", "text_hashes", "float_rows", "integer_rows", "time_rows")
        starts[number + 1] = starts[number] + [len(of_field[name]) for name in sizes]
        if field.huge:
            huge.append([number, [[str(value), field.huge[value]] for value in sorted(field.huge)]])
    parts["text_places"].append(np.array([bytes_before], np.int64))  # where the last string ends
    parts["text_starts"].append(np.array([rows_before], np.int64))
    names = json.dumps([list(path) for path, _ in fields]).encode("ascii")
    parts["names"], parts["starts"] = [np.frombuffer(names, np.uint8)], [starts]
    if huge:
        parts["huge"] = [np.frombuffer(json.dumps(huge).encode("ascii"), np.uint8)]
    return {name: _joined(parts.pop(name), dtype) for name, dtype in _DTYPES.items()}


def _taken(field: _Builder, name: str) -> NDArray[Any]:
    """One of a field's lists, which it holds no longer."""
    values: array[Any] = getattr(field, name)
    setattr(field, name, array(values.typecode))
    return np.frombuffer(values, {"i": np.int32, "q": np.int64, "d": np.float64}[values.typecode])


def _joined(parts: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype), *parts])


def _sorted_texts(field: _Builder) -> dict[str, NDArray[Any]]:
    """A field's distinct strings by hash, the rows of each, and what among them is a date or a time."""
    texts, field.texts = list(field.texts), {}
    hashes = np.fromiter((xxhash.xxh3_64_intdigest(_bytes(text)) for text in texts), np.uint64, len(texts))
    order = np.argsort(hashes, kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    numbers, rows = rank[_taken(field, "text_numbers")], _taken(field, "text_rows")
    counts = np.bincount(numbers, minlength=len(texts))
    starts = np.cumsum(counts) - counts
    by_text = np.argsort(numbers, kind="stable")
    del numbers
    rows = rows[by_text]  # ascending already, and stay so for each string
    del by_text
    every, ends = bytearray(), np.zeros(len(texts) + 1, np.int64)
    times, dated = array("q"), array("q")
    for number, at in enumerate(order.data, 1):
        every += _bytes(texts[at])
        every += _END
        ends[number] = len(every)
    for at, text in enumerate(texts):
        if (moment := moment_of(text)) is not None:
            times.append(_microseconds(moment))
            dated.append(at)
    del texts
    named = rank[np.frombuffer(dated, np.int64)]
    sizes = counts[named]
    at_times = np.repeat(starts[named] - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
    time_values, time_rows = _sorted_numbers(np.repeat(np.frombuffer(times, np.int64), sizes), rows[at_times])
    return {
        "text_hashes": hashes[order],
        "text_bytes": np.frombuffer(every, np.uint8),
        "text_places": ends[:-1],
        "text_starts": starts,
        "text_rows": rows,
        "time_values": time_values,
        "time_rows": time_rows,
    }


def _sorted_numbers(values: NDArray[Any], rows: Rows) -> tuple[NDArray[Any], Rows]:
    order = np.argsort(values, kind="stable")
    values = values[order]
    return values, rows[order]


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
