"""RagAdaptReranker: a re-ranker for the documents of any retriever, as a LangChain document compressor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict, Field

from ragadapt.checks import checked_list, shown
from ragadapt.errors import InvalidInput
from ragadapt.search.reranking import rerank_given


class RagAdaptReranker(BaseDocumentCompressor):
    """The documents that answer a question best, by a model that reads each with the question; best first.

        reranker = RagAdaptReranker.from_pretrained("minilm", top_n=5)
        best = reranker.compress_documents(retriever.invoke(question), question)
        retriever = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=retriever)

    Documents come back as copies with their score in the metadata. A `LoRARetriever` re-ranks by itself, with the
    weight that was learnt for its corpus: `LoRARetriever(rerank=True)`. The async twin works in a thread.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    reranker: Any = Field(exclude=True, repr=False)
    """The loaded model, a ragadapt.rerank.Reranker."""
    top_n: int | None = Field(default=5, ge=1)
    """How many documents are kept; None = all."""
    weight: float = Field(default=1.0, ge=0, le=1)
    """The re-ranker's share of the score beside the order in which the documents came, which is the rest."""
    score_threshold: float | None = None
    """Leave out what scores less."""
    score_key: str | None = "relevance_score"
    """Where the score stands in the metadata: the model's own, or with a weight below 1 the mix; None = nowhere."""

    def __init__(self, **fields: Any) -> None:
        """Raises InvalidInput for a re-ranker that is none, and pydantic's error for other fields that don't fit."""
        from ragadapt.rerank import checked_reranker  # brings torch

        checked_reranker(fields.get("reranker"), "RagAdaptReranker.from_pretrained")
        super().__init__(**fields)

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, device: str = "auto", precision: str = "auto", **fields: Any
    ) -> RagAdaptReranker:
        """model: a preset (ettin-17m, colbert-small …), a hub name, a model's folder or a fitted retriever's.

        Raises ModelNotFound, InvalidInput, NotARetriever.
        """
        from ragadapt.rerank import Reranker

        return cls(reranker=Reranker.load(model, device=device, precision=precision), **fields)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """The best `top_n` of the documents, best first. Raises InvalidInput for an empty query."""
        documents = checked_list(documents, "documents")
        for at, document in enumerate(documents):
            if not isinstance(document, Document):
                raise InvalidInput(f"documents[{at}] is {shown(document)}: a LangChain Document is needed.")
        texts = [one.page_content for one in documents]
        found = rerank_given(
            query, texts, self.reranker, weight=self.weight, threshold=self.score_threshold, most=self.top_n
        )
        return [self._scored(documents[at], score) for at, score in found]

    def _scored(self, document: Document, score: float) -> Document:
        extra = {} if self.score_key is None else {self.score_key: score}
        return document.model_copy(update={"metadata": {**document.metadata, **extra}})
