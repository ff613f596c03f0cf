"""Markdown files: front matter becomes title and metadata, the rest stays as it is."""

from __future__ import annotations

from ragadapt.corpus.content import Content, first_heading, json_value
from ragadapt.corpus.front import front_matter


def read_markdown(text: str) -> Content:
    """Front matter becomes title and metadata; the rest stays as it is."""
    front = front_matter(text)
    if front is None:
        return Content(text, first_heading(text))
    text = text[front.end :]
    metadata = json_value({key: value for key, value in front.values.items() if value not in (None, "", [], {})})
    return Content(text, json_value(front.title).strip() or first_heading(text), metadata)
