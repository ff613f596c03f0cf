"""JSON files: collections of texts as rows, other prose as readable lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ragadapt.corpus.content import Content
from ragadapt.corpus.decode import Unreadable
from ragadapt.text import encodable

TEXT_NAMES = (
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
ID_NAMES = ("_id", "id", "doc_id", "docid", "document_id", "uuid", "key")
_PROSE_WORDS = 4  # of a value that says something, rather than names it
_PROSE_SHARE = 0.5  # of the characters of a file that is read without being asked for
_DEEPEST = 60


def read_json(text: str, name: str = "", text_field: str | None = None, asked: bool = False) -> Content:
    """Objects with a text, in a list or in the one list of an object, as jsonl (rows=True); else lines "key: value".

    An object with a text that is most of its prose is such a row, too; where it has no id, `name` is its id.
    asked: read also what is hardly prose, and as it stands what is no JSON. Settings, lock files and data lie in most
    source trees, and would be many passages that answer nothing. Raises Unreadable with the reason.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if asked:
            return Content(text)  # with comments, or half of it: text all the same
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise Unreadable(f"malformed JSON: {why}") from error
    rows = _rows(value, text_field)
    if rows is None and _is_row(value, text_field):
        rows = [value if _given(value, ID_NAMES) is not None else {**value, "_id": name}]
    if rows is not None:
        return Content("\n".join(map(json.dumps, rows)), rows=True)
    if not asked and _prose(value) < _PROSE_SHARE:
        raise Unreadable("JSON that is data or settings, not prose; name the file itself beside its folder to read it")
    title = value.get("title") if isinstance(value, dict) else None
    return Content("\n".join(_lines(value)), encodable(title) if isinstance(title, str) else "")


def _rows(value: Any, text_field: str | None) -> list[Any] | None:
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list) and item]
        others = any(isinstance(item, dict) and item for item in value.values())
        value = lists[0] if len(lists) == 1 and not others else None
    if not isinstance(value, list):
        return None
    names = {text_field} if text_field is not None else set(TEXT_NAMES)

    def has_text(row: Any) -> bool:
        return isinstance(row, dict) and any(
            (key == text_field or key.strip().lower() in names) and isinstance(item, str | list)
            for key, item in row.items()
        )

    return value if value and 2 * sum(map(has_text, value)) > len(value) else None


def _is_row(value: Any, text_field: str | None) -> bool:
    """Whether an object says what it says in its text, and the rest is about it."""
    if not isinstance(value, dict) or isinstance(_given(value, ID_NAMES), list | dict):
        return False
    if text_field is not None:
        return isinstance(value.get(text_field), str)
    text = _given(value, TEXT_NAMES)
    if not isinstance(text, str) or len(text.split(maxsplit=_PROSE_WORDS)) < _PROSE_WORDS:
        return False
    prose, _ = _characters(value)
    return 2 * len(text) > prose


def _given(value: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value under the first of these names that is there, as rows are read; None = there is none."""
    by_lower = {key.strip().lower(): key for key in reversed(list(value))}
    return next((value[by_lower[name]] for name in names if name in by_lower), None)


def _prose(value: Any) -> float:
    """The share of the characters, keys included, that stand in values of several words."""
    prose, total = _characters(value)
    return prose / total if total else 0.0


def _characters(value: Any) -> tuple[int, int]:
    """(characters in values of several words, characters of all, keys included)."""
    prose = total = 0
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            total += sum(map(len, item))
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, str):
            total += len(item)
            prose += len(item) * (len(item.split(maxsplit=_PROSE_WORDS)) >= _PROSE_WORDS)
        else:
            total += len(str(item)) if not isinstance(item, int) or item.bit_length() < 200 else 60
    return prose, total


def _lines(value: Any, depth: int = 0, mark: str = "") -> Iterator[str]:
    """The value as indented lines, one for each key or item. mark: "- " before the first line of an item."""
    lead = "  " * min(depth, 8)
    if depth > _DEEPEST:
        raise Unreadable("nested too deeply")
    if isinstance(value, Mapping):
        for key, item in value.items():
            key = " ".join(encodable(str(key)).split())
            if isinstance(item, Mapping | list):
                if item:
                    yield f"{lead}{mark}{key}:"
                    yield from _lines(item, depth + 1 + bool(mark))
            elif (shown := _shown(item, lead)) is not None:
                yield f"{lead}{mark}{key}: {shown}"
            mark = "  " if mark else ""
    elif isinstance(value, list):
        for item in value:
            yield from _lines(item, depth + isinstance(item, list), "- ")
    elif (shown := _shown(value, lead)) is not None:
        yield lead + mark + shown


def _shown(value: Any, lead: str) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        lines = encodable(value).strip().splitlines()
        return f"\n{lead}  ".join(line.rstrip() for line in lines)
    return str(value)
