"""Any LangChain retriever as what `compare_systems` (ragadapt.report.comparison) and `evaluate_questions`
(ragadapt.pipeline.questions) measure."""

from __future__ import annotations

from collections.abc import Callable

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from ragadapt.report.comparison import Search
from ragadapt.values import Chunk


def source_of(document: Document) -> str:
    """What judgements usually name: the document's source, else its id, else its text."""
    return str(document.metadata.get("source") or document.id or document.page_content)


def as_search(retriever: BaseRetriever, id_of: Callable[[Document], str] = source_of) -> Search:
    """Questions → ids of the found documents, best first. Let the retriever return many: it is cut off nowhere else."""
    return lambda queries: [[id_of(document) for document in found] for found in retriever.batch(queries)]


def as_passages(
    retriever: BaseRetriever, id_of: Callable[[Document], str] = source_of
) -> Callable[[list[str]], list[list[Chunk]]]:
    """Questions → the found passages, best first, for `evaluate_questions(…, against=…)`, which looks for quotes in
    them. id_of: what judgements call a passage's document."""

    def passage(document: Document) -> Chunk:
        name = id_of(document)
        return Chunk(document.id or name, name, document.page_content, metadata=document.metadata, source=name)

    return lambda queries: [[passage(document) for document in found] for found in retriever.batch(queries)]
