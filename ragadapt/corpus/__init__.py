"""Files → Document → Chunk: reading, cutting, near-duplicates, and the links that people put between pages."""

from ragadapt.corpus.chunks import chunk_documents
from ragadapt.corpus.duplicates import near_duplicate_groups, normalise
from ragadapt.corpus.frameworks import chunks_from, documents_from
from ragadapt.corpus.links import Link, internal_links
from ragadapt.corpus.read import ReadResult, Skipped, read_documents
from ragadapt.corpus.structure import plain_inline, sentence_spans

__all__ = [
    "Link",
    "ReadResult",
    "Skipped",
    "chunk_documents",
    "chunks_from",
    "documents_from",
    "internal_links",
    "near_duplicate_groups",
    "normalise",
    "plain_inline",
    "read_documents",
    "sentence_spans",
]
