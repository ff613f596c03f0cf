"""What a reader finds in a file, and what several readers need to say it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ragadapt.corpus.structure import markdown_sections, rst_sections
from ragadapt.text import encodable


@dataclass(frozen=True, slots=True)
class Content:
    """What a reader found. title: "" where the file does not say. notes: what was left out on purpose."""

    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def json_value(value: Any) -> Any:
    """The value as JSON can hold it: dates in ISO form, sets and tuples as lists, anything else as text."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, datetime.date | datetime.datetime | datetime.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {encodable(str(key)): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((json_value(item) for item in value), key=str)
    if hasattr(value, "tolist") and callable(value.tolist):  # numpy scalars and arrays
        return json_value(value.tolist())
    return encodable(str(value))


def first_heading(text: str, *, rst: bool = False) -> str:
    """The heading that opens a text as its title; "" where none does."""
    sections = (rst_sections if rst else markdown_sections)(text[:20_000])
    headed = [s for s in sections if s.heading]
    return headed[0].heading if headed and headed[0].level == 1 else ""
