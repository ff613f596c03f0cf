"""Files → Document → Chunk: reading, cutting, near-duplicates, and the links that people put between pages.

Names load on first use: the process that reads files needs none of what cuts and compares them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ragadapt.corpus.chunks import chunk_documents, cut_documents
    from ragadapt.corpus.duplicates import near_duplicate_groups, normalise
    from ragadapt.corpus.frameworks import chunks_from, documents_from
    from ragadapt.corpus.links import Link, internal_links
    from ragadapt.corpus.read import ReadResult, Skipped, notes_of, read_documents
    from ragadapt.corpus.structure import plain_inline, sentence_spans

__all__ = [
    "Link",
    "ReadResult",
    "Skipped",
    "chunk_documents",
    "chunks_from",
    "cut_documents",
    "documents_from",
    "internal_links",
    "near_duplicate_groups",
    "normalise",
    "notes_of",
    "plain_inline",
    "read_documents",
    "sentence_spans",
]

_HOMES = {
    "Link": "links",
    "ReadResult": "read",
    "Skipped": "read",
    "chunk_documents": "chunks",
    "chunks_from": "frameworks",
    "cut_documents": "chunks",
    "documents_from": "frameworks",
    "internal_links": "links",
    "near_duplicate_groups": "duplicates",
    "normalise": "duplicates",
    "notes_of": "read",
    "plain_inline": "structure",
    "read_documents": "read",
    "sentence_spans": "structure",
}

if not TYPE_CHECKING:  # as in ragadapt/__init__.py

    def __getattr__(name: str) -> object:
        """A name, imported when it is first asked for (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module 'ragadapt.corpus' has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"ragadapt.corpus.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
