"""What a reader finds in a file, and what several readers need to say it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ragadapt.text import encodable

_DEEPEST: Final = 64
_WIDEST_INT: Final = 1024  # bits
_LONGEST_TITLE: Final = 64  # tokens, about; passages of 256 give half of their room to titles and headings


@dataclass(frozen=True, slots=True)
class Content:
    """What a reader found. title: "" where the file does not say. notes: what was left out on purpose.

    anchors: places in the text that links can name (see Document). places: see Document, too; whoever changes the text
    must move both along. rows: the text is jsonl, one document a line.
    """

    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    places: tuple[tuple[int, Mapping[str, Any]], ...] = ()
    rows: bool = False
    anchors: Mapping[str, int] = field(default_factory=dict)


def json_value(value: Any, depth: int = 0) -> Any:
    """The value as JSON can hold it: dates in ISO form, sets and tuples as lists, anything else as text.

    What is nested beyond 64 levels, or an integer beyond 1,024 bits, becomes text too: readers of JSON refuse both.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= _WIDEST_INT else hex(value)
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, datetime.date | datetime.datetime | datetime.time):
        return value.isoformat()
    if depth >= _DEEPEST and isinstance(value, Mapping | list | tuple | set | frozenset):
        return _as_text(value)
    if isinstance(value, Mapping):
        return {_as_text(key): json_value(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item, depth + 1) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((json_value(item, depth + 1) for item in value), key=str)
    if hasattr(value, "tolist") and callable(value.tolist):  # numpy scalars and arrays
        return json_value(value.tolist(), depth)
    return _as_text(value)


def _as_text(value: Any) -> str:
    try:
        return encodable(str(value))
    except (RecursionError, ValueError):  # nested beyond what Python prints; an integer beyond what it writes
        return f"({type(value).__name__})"


def first_heading(text: str, *, rst: bool = False) -> str:
    """The heading that opens a text as its title; "" where none does."""
    from ragadapt.corpus.structure import markdown_sections, rst_sections  # with the parser of Markdown

    sections = (rst_sections if rst else markdown_sections)(text[:20_000])
    headed = [s for s in sections if s.heading]
    title = headed[0].heading if headed and headed[0].level == 1 else ""
    return title if with_short_title("", title)[1] == title else ""  # a paragraph over a ruled line is no title


def with_short_title(text: str, title: str) -> tuple[str, str]:
    """(text, title) where a title longer than any passage has room for opens the text, and its beginning is the title.

    Passages repeat the title above them; one of hundreds of words would be cut there, and its end stand nowhere.
    """
    words, room = title.split(), _LONGEST_TITLE
    for place, word in enumerate(words):
        room -= len(word) // 4 + 1 if word.isascii() else len(word)
        if room < 0:
            short = " ".join(words[:place]) or title[:_LONGEST_TITLE]
            said = " ".join(words)
            return (text if said in " ".join(text[: 2 * len(title) + 500].split()) else f"{title}\n\n{text}"), short
    return text, title
