"""Payload indexes: which fields of the metadata an engine of the Qdrant family looks up instead of reading all.

An index answers the tests of its own type, and the engine reads the metadata for others, so a filter means the same
with and without. Two things need care. Numbers always get an index of floats: that of integers rounds the bounds of a
range, and 2.5 becomes 2. And the engine keeps one kind of range in an index, so it takes a test of dates on a field of
numbers for one of numbers, and the other way round: `PayloadIndexes.asked` leaves such tests out, as nothing passes
them, and an index whose field gets values of the other kind is dropped.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from ragadapt.config import IndexConfig
from ragadapt.errors import IndexFault, InvalidConfiguration
from ragadapt.index.fields import Kind, kind_of, values_by_name
from ragadapt.index.filters import (
    Among,
    Any_,
    Between,
    Dated,
    Filter,
    Leaf,
    Node,
    leaves,
    parse,
    payload_key,
    replace_leaves,
    spellings,
)

log = logging.getLogger(__name__)

IndexType = Literal["keyword", "float", "bool", "datetime"]
MOST = 32  # indexes that are made unasked: each takes memory, and time when the graph is built
_LONGEST = 1024  # characters: a field of longer ones holds texts, which nobody names whole
_TYPES: Final[Mapping[Kind, IndexType]] = {
    "text": "keyword", "number": "float", "boolean": "bool", "date": "datetime",
}  # fmt: skip
_NUMBERS = ("float", "integer")  # one of integers was made by others


def check_indexed_fields(config: IndexConfig) -> None:
    """Raises InvalidConfiguration for a field that no filter can name."""
    for name in config.indexed_fields or ():
        if not _can_be_asked(name):
            raise InvalidConfiguration(
                f"index.indexed_fields has {name!r}: a field of the metadata is named as in filters, one inside "
                'another with dots; none of the names may be empty or hold a ".'
            )


class FieldTypes:
    """The types of values that the fields of metadata were seen with, and in how many passages."""

    def __init__(self, payloads: Iterable[Mapping[str, Any]]) -> None:
        self.kinds: dict[str, set[Kind]] = {}
        self._present: Counter[str] = Counter()
        self._texts: set[str] = set()
        for payload in payloads:
            for name, values, _ in values_by_name(payload):
                self._present[name] += 1
                met = self.kinds.setdefault(name, set())
                for value in values:
                    met.add(kind_of(value))
                    if isinstance(value, str) and len(value) > _LONGEST:
                        self._texts.add(name)

    def names(self) -> list[str]:
        """Those of most passages first, of as many by name."""
        return sorted(self._present, key=lambda name: (-self._present[name], name))

    def type_of(self, name: str) -> IndexType | None:
        """Of an index that answers all tests of these values; None where there is none."""
        met = self.kinds[name]
        if name in self._texts:
            return None
        if met == {"text", "date"}:
            return "keyword"
        return _TYPES[next(iter(met))] if len(met) == 1 else None

    def why_none(self, name: str) -> str:
        if name in self._texts:
            return f"it holds texts of more than {_LONGEST:,} characters"
        return f"its values are of several types ({', '.join(sorted(self.kinds[name]))})"


class PayloadIndexes:
    """The payload indexes of one collection: makes those that are missing, and knows what they cannot be asked."""

    def __init__(
        self,
        make: Callable[[str, IndexType], None],
        drop: Callable[[str], None],
        prefix: tuple[str, ...],
        wanted: Sequence[str] | None,
        known: Mapping[str, str],
    ) -> None:
        """make, drop: the index of a key in the payload; they raise IndexFault. prefix: of the metadata's keys. wanted:
        fields; None = by themselves, up to `MOST` indexes. known: key → type of those that there are."""
        self._make = make
        self._drop = drop
        self._prefix = prefix
        self._wanted = None if wanted is None else frozenset(wanted)
        self._types: dict[str, str] = {}
        self._keys: dict[str, list[str]] = {}
        for key, type in known.items():
            if (name := _name_of(key, prefix)) is not None:
                self._types[name] = type
                self._keys.setdefault(name, []).append(key)
        self._decided: set[str] = set()
        self._lock = threading.Lock()

    def prepare(self, payloads: Iterable[Mapping[str, Any]]) -> None:
        """Make the indexes of fields that were not seen before. Call it before such payloads are written: a graph that
        is built later has edges for the filters on them.

        One that cannot be made is logged: filters find the same without. Raises IndexFault where one that no longer
        holds cannot be dropped, as filters would then miss passages.
        """
        seen = FieldTypes(payloads)
        with self._lock:
            self._drop_contradicted(seen)
            missing: list[tuple[str, IndexType, list[str]]] = []
            beyond: list[str] = []
            many = sum(map(len, self._keys.values()))
            for name in seen.names():
                if name in self._decided or not _can_be_asked(name):
                    continue
                self._decided.add(name)
                if self._wanted is not None and name not in self._wanted:
                    continue
                type = seen.type_of(name)
                if type is None:
                    level = logging.INFO if self._wanted is None else logging.WARNING
                    log.log(level, "The field %r gets no payload index: %s.", name, seen.why_none(name))
                    continue
                if self._types.get(name, type) != type:
                    continue  # somebody else's choice
                # A filter asks for all ways of spelling a name, and one without an index makes the engine read all.
                keys = [payload_key(path, self._prefix) for path in spellings(tuple(name.split(".")))]
                keys = [key for key in keys if key not in self._keys.get(name, ())]
                if self._wanted is None and many + len(keys) > MOST:
                    beyond.append(name)
                elif keys:
                    many += len(keys)
                    missing.append((name, type, keys))
            if beyond:
                log.warning(
                    "The metadata have more fields than get payload indexes by themselves (%d); filters on %s look at "
                    "every passage. Name the fields that filters use by index.indexed_fields.",
                    MOST, _listed(beyond),
                )  # fmt: skip
            self._make_all(missing)

    def asked(self, filter: Filter | Node) -> Node:
        """The filter without the tests that an index takes for others. Raises InvalidFilter."""
        node = parse(filter)
        if not self._types:
            return node
        others = {leaf: self._asked_of(leaf) for leaf in leaves(node)}
        return replace_leaves(node, {leaf: other for leaf, other in others.items() if other is not leaf})

    def _asked_of(self, leaf: Leaf) -> Node:
        type = self._types.get(".".join(leaf.path))
        if (type in _NUMBERS and isinstance(leaf, Dated)) or (type == "datetime" and isinstance(leaf, Between)):
            return Any_(())
        if type == "datetime" and isinstance(leaf, Among) and leaf.numbers:
            return Among(leaf.path, leaf.strings, (), leaf.booleans)
        return leaf

    def _make_all(self, missing: Sequence[tuple[str, IndexType, list[str]]]) -> None:
        for at, (name, type, keys) in enumerate(missing):
            try:
                for key in keys:
                    self._make(key, type)
                    # Known from the first key on, as it decides by itself what a test of its field finds.
                    self._types[name] = type
                    self._keys.setdefault(name, []).append(key)
            except IndexFault as error:  # what stops one stops the next: a limit, a right, a server that is gone
                log.warning(
                    "No payload index was made of %s: %s Filters on them find the same, but look at every passage. "
                    "When that is put right, build the index anew: ragadapt index RETRIEVER --rebuild",
                    _listed([name for name, _, _ in missing[at:]]), error,
                )  # fmt: skip
                return

    def _drop_contradicted(self, seen: FieldTypes) -> None:
        for name, type in list(self._types.items()):
            met = seen.kinds.get(name, set())
            if ("date" in met and type in _NUMBERS) or ("number" in met and type == "datetime"):
                for key in self._keys[name]:
                    self._drop(key)
                del self._types[name], self._keys[name]
                self._decided.add(name)
                log.warning(
                    "The field %r now has numbers and dates: its payload index was dropped, and filters on it look at "
                    "every passage.", name,
                )  # fmt: skip


def _can_be_asked(name: str) -> bool:
    return all(name.split(".")) and '"' not in name


def _name_of(key: str, prefix: tuple[str, ...]) -> str | None:
    """The field of the metadata that has this key in the payload; None = another part of the payload."""
    start = payload_key((), prefix) + "."
    return re.sub('"', "", key.removeprefix(start)) if key.startswith(start) else None


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(map(repr, names[:10])) + rest
