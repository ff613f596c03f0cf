"""Rows of jsonl and csv files into documents."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ragadapt.config import ReadConfig
from ragadapt.corpus.content import json_value, with_short_title
from ragadapt.corpus.decode import Unreadable, encoding_of, tidy
from ragadapt.text import encodable
from ragadapt.values import Document

_ID_NAMES = ("_id", "id", "doc_id", "docid", "document_id", "uuid", "key")
_TEXT_NAMES = (
    "text",
    "contents",
    "content",
    "body",
    "passage",
    "page_content",
    "document",
    "abstract",
    "answer",
    "code",
)
_TITLE_NAMES = ("title", "headline", "heading", "question", "subject", "name")
_SAMPLE_BYTES = 1_000_000


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

    A row without an id is known by its content: the file's name and a hash, so other rows may come and go.
    """
    with path.open("rb") as file:
        encoding = config.encoding or encoding_of(
            sample := file.read(_SAMPLE_BYTES), complete=len(sample) < _SAMPLE_BYTES
        )
    with path.open("r", encoding=encoding, errors="surrogateescape", newline="" if kind == "csv" else None) as text:
        records = _csv_records(text, path, config) if kind == "csv" else _json_records(text, config)
        for line, record in records:
            if isinstance(record, str):
                yield BadRow(line, record)
                continue
            try:
                yield Row(line, _document(record, name, config))
            except Unreadable as error:
                yield BadRow(line, str(error))


def _json_records(lines: IO[str], config: ReadConfig) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    for number, line in enumerate(lines, 1):
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
    csv.field_size_limit(max(csv.field_size_limit(), config.max_file_bytes))
    sample = text.read(65_536)
    text.seek(0)
    reader = csv.reader(text, delimiter=_delimiter(sample, path), strict=True)
    try:
        header = [column.removeprefix("\ufeff").strip() for column in next(reader, [])]
    except csv.Error as error:
        raise Unreadable(f"malformed header: {error}") from error
    wanted = _field(dict.fromkeys(header, ""), config.text_field, _TEXT_NAMES)
    if wanted is None:
        asked = f"no column {config.text_field!r}" if config.text_field else "no column of text"
        raise Unreadable(
            f"{asked}; the columns are {', '.join(header[:20]) or 'none'}; name one with the setting text_field"
        )
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"malformed row: {error}"
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if reason := _damage("".join(cells), config):
            yield line, reason
        elif len(cells) != len(header):
            yield line, f"{len(cells)} cells where the header has {len(header)}"
        else:
            yield line, dict(zip(header, cells, strict=True))


def _delimiter(sample: str, path: Path) -> str:
    first = re.sub(r'"[^"]*"', "", sample.split("\n", 1)[0])
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    return max((usual, ",", ";", "\t", "|"), key=first.count)


def _damage(text: str, config: ReadConfig) -> str:
    if len(text) > config.max_file_bytes:
        return f"over-size: {len(text):,} characters"
    if re.search("[\udc80-\udcff]", text):
        return "wrongly encoded"
    return ""


def _field(record: Mapping[str, Any], chosen: str | None, usual: tuple[str, ...]) -> str | None:
    if chosen is not None:
        return chosen if chosen in record else None
    by_lower = {key.strip().lower(): key for key in reversed(list(record))}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _document(record: Mapping[str, Any], name: str, config: ReadConfig) -> Document:
    text_field = _field(record, config.text_field, _TEXT_NAMES)
    title_field = _field(record, config.title_field, _TITLE_NAMES)
    id_field = _field(record, config.id_field, _ID_NAMES)
    if text_field is None:
        asked = repr(config.text_field) if config.text_field else "text"
        raise Unreadable(f"no field {asked}; its fields are {', '.join(list(record)[:20]) or 'none'}")
    for field, chosen in ((config.id_field, id_field), (config.title_field, title_field)):
        if field is not None and chosen is None:
            raise Unreadable(f"no field {field!r}; its fields are {', '.join(list(record)[:20])}")
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
    return Document(id=id, text=text, title=title, metadata=json_value(rest), source=name)


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
