"""Markdown files: front matter becomes title and metadata, the rest stays as it is."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import yaml

from ragadapt.corpus.content import Content, first_heading, json_value

_FRONT_MATTER = re.compile(
    r"\A(?:---[ \t]*\n(.*?)^(?:---|\.\.\.)|\+\+\+[ \t]*\n(.*?)^\+\+\+)[ \t]*(?:\n|\Z)", re.S | re.M
)


def read_markdown(text: str) -> Content:
    """Front matter becomes title and metadata; the rest stays as it is."""
    front: dict[str, Any] = {}
    match = _FRONT_MATTER.match(text)
    if match:
        values = _front_values(match)
        if values is not None:
            front, text = values, text[match.end() :]
    title = front.pop("title", None)
    title = str(title) if isinstance(title, str | int | float) else ""
    metadata = {str(key): json_value(value) for key, value in front.items() if value not in (None, "", [], {})}
    return Content(text, title.strip() or first_heading(text), metadata)


def _front_values(match: re.Match[str]) -> dict[str, Any] | None:
    """The values between the marks; None where this is no front matter but a rule above ordinary text."""
    try:
        values = yaml.safe_load(match[1]) if match[1] is not None else tomllib.loads(match[2])
    except (yaml.YAMLError, tomllib.TOMLDecodeError, ValueError, RecursionError):
        # malformed front matter is common (an unquoted colon): take the lines that read as key: value
        values = dict(re.findall(r"^(\w+):[ \t]*[\"']?(.*?)[\"']?[ \t]*$", match[1] or "", re.M)) or None
    if values is None and not (match[1] or match[2] or "").strip():
        return {}
    return values if isinstance(values, dict) else None
