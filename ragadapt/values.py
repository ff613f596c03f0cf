"""The values that travel through the whole program. All are frozen; a stage makes new ones.

documents → chunks → queries → (training) → hits
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

from ragadapt.notebook import html_table

Metadata = Mapping[str, Any]

JsonValue: TypeAlias = "str | int | float | bool | Sequence[JsonValue] | Mapping[str, JsonValue] | None"
"""What JSON can hold."""

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total) while a stage runs. It must never change a result."""


def no_progress(stage: str, done: int, total: int) -> None:
    """The default: nobody watches."""


@dataclass(frozen=True, slots=True)
class Document:
    """One source document: a file, a row of a table, or an object passed in from a framework.

    id: stable across runs (relative path, or the row's own id). source: what a user would call it
    (a path relative to the folder that was read). metadata: JSON values only. places: where pages, slides or
    sheets begin, as (offset into text, {"page": 3}) in order; a passage has the values of the place where it
    begins. notes: what the reader left out on purpose. anchors: places in the text that links can name, where the
    reader took the marks that said so out.
    """

    id: str
    text: str
    title: str = ""
    metadata: Metadata = field(default_factory=dict)
    source: str = ""
    places: tuple[tuple[int, Metadata], ...] = ()
    notes: tuple[str, ...] = ()
    anchors: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage: document.text[start:end], with the headings above it.

    heading_path starts with the document's title where it has one. metadata holds the document's
    metadata and that of its place, such as the page; `source` is repeated there only if the caller put it there.
    before: what stands in the document between the passage before it and this one: blank lines, and headings that
    heading_path says. continues: it begins inside a code block or table that the passage before it began.
    """

    id: str
    document_id: str
    text: str
    heading_path: tuple[str, ...] = ()
    start: int = 0
    end: int = 0
    metadata: Metadata = field(default_factory=dict)
    source: str = ""
    before: str = ""
    continues: bool = False

    @property
    def passage(self) -> str:
        """What encoder and lexical index read: the heading path, then the text."""
        heading = " > ".join(part for part in self.heading_path if part)
        return f"{heading}\n{self.text}" if heading else self.text

    @property
    def content_hash(self) -> str:
        """sha256 of the passage: equal for equal content wherever it stands."""
        return hashlib.sha256(self.passage.encode("utf-8")).hexdigest()


class Evidence(StrEnum):
    """How far a query can be trusted to be what users ask, best first (see docs/how-it-works.md)."""

    LABELLED = "labelled"  # asked and judged by the user's people
    HUMAN = "human"  # written by people inside the documents: questions, link texts
    PARAPHRASE = "paraphrase"  # written by a language model about the passage
    CROP = "crop"  # cut from the passage: titles, sentences, keywords


@dataclass(frozen=True, slots=True)
class Query:
    """A query and the chunks that answer it.

    kind: what made it (see ragadapt.queries.KINDS), e.g. "label", "question", "link", "title",
    "sentence", "keywords", "crop", "lm-question". positives: chunk ids, best first, never empty in training.
    span: where it was cut from the text of the first positive (chunk.text[start:end], markup included);
    None = not cut from that text (a title or heading stands in the heading path).
    """

    id: str
    text: str
    kind: str
    evidence: Evidence
    positives: tuple[str, ...] = ()
    span: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What a language model is given for a hit: whole passages of one document, and what stands between them.

    text is the document's text[start:end]. passages: their ids, in the document's order; found: of those that the
    search itself found, best first. tokens: of the text, estimated.
    """

    text: str
    start: int
    end: int
    passages: tuple[str, ...]
    found: tuple[str, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result. score: larger is better. parts: the scores it was mixed from, by name.

    copies: passages of the same text further down, which this one stands for. context: the passage with what stands
    around it, where the search was asked for it. confidence: the probability that it answers the question, from 0 to 1
    and never more than that of the hit before it; None where a search has no way to tell.
    """

    chunk: Chunk
    score: float
    parts: Mapping[str, float] = field(default_factory=dict)
    copies: tuple[Chunk, ...] = ()
    context: Context | None = None
    confidence: float | None = None

    @property
    def text(self) -> str:
        """What to give a language model: the context, else the passage."""
        return self.chunk.text if self.context is None else self.context.text


class Hits(list[Hit]):
    """The results of one search, best first: a list that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        """As many columns as the hits have to say: their confidence and copies where there are some."""
        told = any(hit.confidence is not None for hit in self)
        copied = any(hit.copies for hit in self)
        rows = []
        for rank, hit in enumerate(self, start=1):
            row = [str(rank), f"{hit.score:.3f}"]
            row += ["–" if hit.confidence is None else f"{hit.confidence:.2f}"] * told
            rows.append([*row, _place(hit.chunk), *[str(len(hit.copies))] * copied, hit.text])
        head = ["", "score", *["confidence"] * told, "where", *["copies"] * copied, "text"]
        return html_table(head, rows) if rows else "<p>Nothing was found.</p>"


def _place(chunk: Chunk) -> str:
    return " › ".join(part for part in (chunk.source or chunk.document_id, *chunk.heading_path) if part)


def hits_as_json(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """Every field of the hits. rank: from 1; score: larger is better. context: None where none was asked for."""
    return [
        {
            "rank": rank,
            "score": hit.score,
            "confidence": hit.confidence,
            "id": hit.chunk.id,
            "document_id": hit.chunk.document_id,
            "source": hit.chunk.source,
            "heading_path": list(hit.chunk.heading_path),
            "text": hit.chunk.text,
            "start": hit.chunk.start,
            "end": hit.chunk.end,
            "metadata": dict(hit.chunk.metadata),
            "parts": dict(hit.parts),
            "copies": [{"id": copy.id, "document_id": copy.document_id, "source": copy.source} for copy in hit.copies],
            "context": None if hit.context is None else asdict(hit.context),
        }
        for rank, hit in enumerate(hits, start=1)
    ]
