"""Markdown files: front matter becomes title and metadata, includes are followed, attribute lists taken out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ragadapt.corpus.content import Content, first_heading, json_value
from ragadapt.corpus.front import front_matter
from ragadapt.corpus.includes import Home, expand_includes, without_attributes


def read_markdown(text: str, home: Home | None = None) -> Content:
    """Front matter becomes title and metadata, attribute lists anchors; the rest stays as it is.

    home: where the file lies, for the files that it includes; None = they are not looked for.
    """
    title = ""
    metadata: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()
    if front := front_matter(text):
        title, text = json_value(front.title).strip(), text[front.end :]
        metadata = json_value({key: value for key, value in front.values.items() if value not in (None, "", [], {})})
    if home is not None:
        text, notes = expand_includes(text, home)
    text, anchors = without_attributes(text)
    return Content(text, title or first_heading(text), metadata, notes, anchors=anchors)
