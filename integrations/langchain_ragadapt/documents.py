"""Hits of ours as LangChain documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.documents import Document

from ragadapt.values import Chunk, Hit


def as_document(chunk: Chunk, extra: Mapping[str, Any] | None = None) -> Document:
    """The passage under its own id, with a copy of its metadata; extra fields stand beside it and never replace one."""
    return Document(id=chunk.id, page_content=chunk.text, metadata={**(extra or {}), **chunk.metadata})


def origin(chunk: Chunk) -> dict[str, str]:
    """Where a fitted passage comes from: source, document_id and, if it has headings, heading."""
    heading = " > ".join(part for part in chunk.heading_path if part)
    found = {"source": chunk.source or chunk.document_id, "document_id": chunk.document_id, "heading": heading}
    return {name: value for name, value in found.items() if value}


def as_given(hit: Hit, extra: Mapping[str, Any] | None = None) -> Document:
    """`as_document` with the hit's context, where it has one, as the text; its passages' ids as "passages"."""
    document = as_document(hit.chunk, extra)
    if hit.context is not None:
        document.page_content = hit.text
        document.metadata = {"passages": list(hit.context.passages), **document.metadata}
    return document


def as_documents(hits: Sequence[Hit], score_key: str | None, confidence_key: str | None = None) -> list[Document]:
    """Fitted passages with where they come from, score and confidence under their keys (None = without)."""
    documents = [as_given(hit, origin(hit.chunk)) for hit in hits]
    for document, hit in zip(documents, hits, strict=True):
        for key, value in ((score_key, hit.score), (confidence_key, hit.confidence)):
            if key is not None:
                document.metadata[key] = value
    return documents
