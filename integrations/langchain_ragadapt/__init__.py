"""ragadapt for LangChain: an adapted retriever, its embeddings, a vector store, a re-ranker, and a record manager.

    from langchain_ragadapt import LoRARetriever

    retriever = LoRARetriever.from_pretrained("./retriever", k=5)

Needs the extra `langchain`. Names load on first use; PyTorch when a model is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_ragadapt.embeddings import LoRAEmbeddings
    from langchain_ragadapt.records import SQLiteRecordManager
    from langchain_ragadapt.reranker import RagAdaptReranker
    from langchain_ragadapt.retriever import LoRARetriever
    from langchain_ragadapt.vectorstore import RagAdaptVectorStore

__all__ = ["LoRAEmbeddings", "LoRARetriever", "RagAdaptReranker", "RagAdaptVectorStore", "SQLiteRecordManager"]

_HOMES = {
    "LoRAEmbeddings": "langchain_ragadapt.embeddings",
    "LoRARetriever": "langchain_ragadapt.retriever",
    "RagAdaptReranker": "langchain_ragadapt.reranker",
    "RagAdaptVectorStore": "langchain_ragadapt.vectorstore",
    "SQLiteRecordManager": "langchain_ragadapt.records",
}

if not TYPE_CHECKING:  # a type checker would take it for "any name exists"

    def __getattr__(name: str) -> object:
        """A public name, imported when it is first asked for (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module 'langchain_ragadapt' has no attribute {name!r}")
        from importlib import import_module

        from ragadapt.errors import MissingExtra

        try:
            import langchain_core  # noqa: F401
        except ImportError as error:
            raise MissingExtra("The LangChain integration", "langchain") from error
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value  # the next look finds it without this function
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
