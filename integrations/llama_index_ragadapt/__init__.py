"""ragadapt for LlamaIndex: an adapted retriever, its embedding, a vector store, a re-ranker, and fine-tuning.

    from llama_index_ragadapt import LoRARetriever

    retriever = LoRARetriever.from_pretrained("./retriever", similarity_top_k=5)

Needs the extra `llama-index`. Names load on first use; PyTorch when a model is opened. The same classes
are found under `llama_index.embeddings.ragadapt` and `llama_index.retrievers.ragadapt`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_index_ragadapt.embedding import LoRAEmbedding
    from llama_index_ragadapt.finetuning import LoRAFinetuneEngine
    from llama_index_ragadapt.reranker import RagAdaptRerank
    from llama_index_ragadapt.retriever import LoRARetriever
    from llama_index_ragadapt.store import RagAdaptVectorStore

__all__ = ["LoRAEmbedding", "LoRAFinetuneEngine", "LoRARetriever", "RagAdaptRerank", "RagAdaptVectorStore"]

_HOMES = {
    "LoRAEmbedding": "llama_index_ragadapt.embedding",
    "LoRAFinetuneEngine": "llama_index_ragadapt.finetuning",
    "LoRARetriever": "llama_index_ragadapt.retriever",
    "RagAdaptRerank": "llama_index_ragadapt.reranker",
    "RagAdaptVectorStore": "llama_index_ragadapt.store",
}

if not TYPE_CHECKING:  # a type checker would take it for "any name exists"

    def __getattr__(name: str) -> object:
        """A public name, imported when it is first asked for (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module 'llama_index_ragadapt' has no attribute {name!r}")
        from importlib import import_module

        from ragadapt.errors import MissingExtra

        try:
            import llama_index.core  # noqa: F401
        except ImportError as error:
            raise MissingExtra("The LlamaIndex integration", "llama-index") from error
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value  # the next look finds it without this function
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
