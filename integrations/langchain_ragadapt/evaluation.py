"""Any LangChain retriever as what `ragadapt.report.comparison.compare_systems` measures."""

from __future__ import annotations

from collections.abc import Callable

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from ragadapt.report.comparison import Search


def source_of(document: Document) -> str:
    """What judgements usually name: the document's source, else its id, else its text."""
    return str(document.metadata.get("source") or document.id or document.page_content)


def as_search(retriever: BaseRetriever, id_of: Callable[[Document], str] = source_of) -> Search:
    """Questions → ids of the found documents, best first. Let the retriever return many: it is cut off nowhere else."""
    return lambda queries: [[id_of(document) for document in found] for found in retriever.batch(queries)]
