"""Rows of jsonl and csv files into documents."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Self

from ragadapt.config import ReadConfig
from ragadapt.corpus.content import json_value, with_short_title
from ragadapt.corpus.decode import Unreadable, encoding_of, tidy
from ragadapt.corpus.json_file import ID_NAMES, TEXT_NAMES
from ragadapt.corpus.paths import open_regular
from ragadapt.text import encodable
from ragadapt.values import Document

_TITLE_NAMES = ("title", "headline", "heading", "question", "subject", "name")
_SAMPLE_BYTES = 1_000_000
_SEPARATOR = re.compile(r"\ufeff?\"?sep=([^\w\s\"]|\t)\"?[ \t]*(?:\r\n?|\n)", re.I)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.(\d+))?")
_MARK = "ragadapt.rows"
codecs.register_error(_MARK, lambda error: ("\udc80", error.end))  # type: ignore[attr-defined]  # a row is bad, not its file


@dataclass(frozen=True, slots=True)
class BadRow:
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    line: int
    document: Document


def read_rows(path: Path, name: str, kind: str, config: ReadConfig) -> Iterator[Row | BadRow]:
    """The documents of a row file, and the rows that hold none. Raises Unreadable where no row can be read.

    A row without an id is known by its content: the file's name and a hash, so other rows may come and go. Columns of
    a csv file that hold nothing but numbers are numbers in the metadata.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        sample = file.read(_SAMPLE_BYTES)
        if not sample:
            raise Unreadable("empty")
        encoding = config.encoding or encoding_of(sample, complete=len(sample) < _SAMPLE_BYTES)
        file.seek(0)
        text = io.TextIOWrapper(file, encoding, _MARK, newline="" if kind == "csv" else None)
        rows = _read(text, name, path, kind, config, time.monotonic() + config.seconds_for(size))
        yield from _with_numbers(rows) if kind == "csv" else rows


def rows_of(text: str, name: str, config: ReadConfig) -> Iterator[Row | BadRow]:
    """The documents of jsonl text, which another format was made into."""
    return _read(io.StringIO(text), name, Path(name), "jsonl", config, float("inf"))


def _read(
    text: IO[str], name: str, path: Path, kind: str, config: ReadConfig, deadline: float
) -> Iterator[Row | BadRow]:
    for line, record in _csv_records(text, path, config) if kind == "csv" else _json_records(text, config):
        if time.monotonic() > deadline:
            yield BadRow(line, "the file takes too long to read, and the rest of it is left out; see seconds_per_file")
            return
        if isinstance(record, str):
            yield BadRow(line, record)
            continue
        try:
            yield Row(line, _document(record, name, config))
        except Unreadable as error:
            yield BadRow(line, str(error))
        except RecursionError:
            yield BadRow(line, "malformed JSON: nested too deeply")


class _Lines:
    """The lines of a text, none held beyond `most` characters, nor as much between two calls of `start`.

    What is longer raises _TooLong once it is passed over; the line after it comes next.
    """

    def __init__(self, text: IO[str], most: int) -> None:
        self.text, self.most = text, most
        self.number = 0
        self._given = 0

    def start(self) -> None:
        """A row begins."""
        self._given = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self.text.readline(self.most + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._given += len(line)
        cut = False
        while len(line) > self.most and not line.endswith(("\n", "\r")):
            cut, line = True, self.text.readline(self.most + 1)
        if cut or self._given > self.most + 1:
            raise _TooLong
        return line


class _TooLong(Exception):
    pass


def _json_records(text: IO[str], config: ReadConfig) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    lines = _Lines(text, config.max_file_bytes)
    while True:
        lines.start()
        try:
            line = next(lines)
        except StopIteration:
            return
        except _TooLong:
            yield lines.number, _over_size(config)
            continue
        number = lines.number
        if not line.strip():
            continue
        if reason := _damage(line, config):
            yield number, reason
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            yield number, f"malformed JSON: {error}"
            continue
        except RecursionError:
            yield number, "malformed JSON: nested too deeply"
            continue
        yield number, record if isinstance(record, dict) else f"not an object but {type(record).__name__}"


def _csv_records(text: IO[str], path: Path, config: ReadConfig) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    csv.field_size_limit(max(csv.field_size_limit(), min(config.max_file_bytes, 2**31 - 1)))
    sample = text.read(65_536)
    text.seek(0)
    lines = _Lines(text, config.max_file_bytes)
    if named := _SEPARATOR.match(sample):  # a line that Excel reads and does not show
        next(lines)
        lines.start()
        sample = sample[named.end() :]
    delimiter = named[1] if named else _delimiter(sample, path)
    spaced = _is_spaced(sample, delimiter)
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=spaced, strict=True)
    try:
        header = _told_apart([column.removeprefix("\ufeff").strip() for column in next(reader, [])])
    except (csv.Error, _TooLong) as error:
        raise Unreadable(f"malformed header: {error or _over_size(config)}") from error
    wanted = _field(dict.fromkeys(header, ""), config.text_field, TEXT_NAMES)
    if wanted is None:
        asked = f"no column {config.text_field!r}" if config.text_field else "no column of text"
        names = encodable(", ".join(header[:20]))[:500] or "none"
        raise Unreadable(f"{asked}; the columns are {names}; name one with the setting text_field")
    while True:
        line = lines.number + 1
        lines.start()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"malformed row: {error}"
            continue
        except _TooLong:
            yield line, _over_size(config)
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if reason := _damage("".join(cells), config):
            yield line, reason
        elif len(cells) != len(header):
            yield line, f"{len(cells)} cells where the header has {len(header)}"
        else:
            yield line, dict(zip(header, cells, strict=True))


def _with_numbers(rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
    """The rows with numbers where a whole column is plainly of numbers; "007" or "1.10" beside "1.9" stay text."""
    rows = list(rows)
    decimals: dict[str, set[int]] = {}  # column → digits after the point
    text: set[str] = set()
    padded: set[str] = set()  # columns where a last digit is 0: prices, or versions
    for row in rows:
        for column, value in row.document.metadata.items() if isinstance(row, Row) else ():
            match = _NUMBER.fullmatch(value) if isinstance(value, str) and len(value) <= 20 else None
            exact = match is not None and (len(value) <= 16 if match[1] else -(2**63) <= int(value) < 2**63)
            if not match or not exact:
                text.add(column)
                continue
            decimals.setdefault(column, set()).add(len(match[1] or ""))
            if (match[1] or "").endswith("0"):
                padded.add(column)
    convert: dict[str, Callable[[str], float]] = {
        column: float if any(places) else int
        for column, places in decimals.items()
        if column not in text and (len(places) == 1 or column not in padded)
    }
    for row in rows:
        if isinstance(row, Row) and convert:
            values = {c: convert[c](v) if c in convert else v for c, v in row.document.metadata.items()}
            row = Row(row.line, replace(row.document, metadata=values))
        yield row


def _told_apart(names: Sequence[str]) -> list[str]:
    """Names of columns with _2, _3 … behind those that stand there before: no cell takes the place of another."""
    found: dict[str, None] = {}
    for name in names:
        own, number = name, 1
        while own in found or (number > 1 and own in names):
            number += 1
            own = f"{name}_{number}"
        found[own] = None
    return list(found)


def _delimiter(sample: str, path: Path) -> str:
    first = re.sub(r'"[^"]*"', "", sample.split("\n", 1)[0])
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    return max((usual, ",", ";", "\t", "|"), key=first.count)


def _is_spaced(sample: str, delimiter: str) -> bool:
    """Whether a space follows each delimiter of the header: there it belongs to no cell, and quotes may follow it."""
    rest = sample.removeprefix("\ufeff").split("\n", 1)[0].split(delimiter)[1:]
    return delimiter != "\t" and bool(rest) and all(cell.startswith(" ") for cell in rest)


def _over_size(config: ReadConfig) -> str:
    return f"over-size: more than {config.max_file_bytes:,} characters, which is the limit max_file_bytes"


def _damage(text: str, config: ReadConfig) -> str:
    if len(text) > config.max_file_bytes + 1:
        return _over_size(config)
    if "\udc80" in text:
        return "wrongly encoded"
    return ""


def _field(record: Mapping[str, Any], chosen: str | None, usual: tuple[str, ...]) -> str | None:
    if chosen is not None:
        return chosen if chosen in record else None
    by_lower = {key.strip().lower(): key for key in reversed(list(record))}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _document(record: Mapping[str, Any], name: str, config: ReadConfig) -> Document:
    text_field = _field(record, config.text_field, TEXT_NAMES)
    title_field = _field(record, config.title_field, _TITLE_NAMES)
    id_field = _field(record, config.id_field, ID_NAMES)
    if text_field is None:
        asked = repr(config.text_field) if config.text_field else "text"
        raise Unreadable(f"no field {asked}; its fields are {_names(record) or 'none'}")
    for field, chosen in ((config.id_field, id_field), (config.title_field, title_field)):
        if field is not None and chosen is None:
            raise Unreadable(f"no field {field!r}; its fields are {_names(record)}")
    text = _text(record[text_field], text_field)
    title = " ".join(_text(record[title_field], title_field).split()) if title_field not in (None, text_field) else ""
    if not text.strip():
        if not title:
            raise Unreadable("empty")
        text, title = title, ""  # a row that has only a title is still found by it
    given = record[id_field] if id_field is not None else None
    if given is None or given == "":
        id = name + "#" + hashlib.sha256(f"{title}\n{text}".encode()).hexdigest()[:16]
    elif isinstance(given, str | int | float):
        id = encodable(str(given))
    else:
        raise Unreadable(f"field {id_field!r} holds no id but {type(given).__name__}")
    rest = {
        k: v for k, v in record.items() if k not in (text_field, title_field, id_field) and v not in (None, "", [], {})
    }
    nested = rest.pop("metadata", None)  # where BEIR keeps the rest
    if isinstance(nested, Mapping):
        rest = {**nested, **rest}
    elif nested is not None:
        rest["metadata"] = nested
    text, title = with_short_title(text, title)
    metadata = {encodable(key): json_value(value) for key, value in rest.items()}
    return Document(id=id, text=text, title=title, metadata=metadata, source=name)


def _names(record: Mapping[str, Any]) -> str:
    return encodable(", ".join(list(record)[:20]))[:500]


def _text(value: Any, field: str | None) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise Unreadable(f"field {field!r} holds no text but {type(value).__name__}")
    return tidy(value)
