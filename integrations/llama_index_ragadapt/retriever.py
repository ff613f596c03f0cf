"""LoRARetriever: a retriever that `ragadapt fit` saved, as a LlamaIndex retriever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Self

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters

from llama_index_ragadapt.embedding import LoRAEmbedding
from llama_index_ragadapt.filters import to_filter
from llama_index_ragadapt.nodes import as_related
from ragadapt.checks import checked_list, checked_threshold
from ragadapt.errors import InvalidInput
from ragadapt.index.contract import check_vectors
from ragadapt.pefa import named_tenant
from ragadapt.retriever import Retriever
from ragadapt.search.context import Expand, Reach, checked_expand
from ragadapt.search.diversity import Fold
from ragadapt.search.fusion import Floats
from ragadapt.search.reranking import Rerank
from ragadapt.search.searcher import Mode


class LoRARetriever(BaseRetriever):
    """Nodes for a question, best first, by the search that was learnt for this corpus.

        retriever = LoRARetriever.from_pretrained("./retriever", similarity_top_k=5)
        engine = RetrieverQueryEngine.from_args(retriever)

    A node has its passage's id, text and metadata, its document as source node and parent, and the passages before and
    behind it as previous and next. With expand its text is that of all its children. A query bundle's own embedding, or
    its embedding strings, are used where there are any. The async twins work in a thread, so the event loop goes on.
    """

    def __init__(
        self,
        retriever: Retriever,
        similarity_top_k: int | None = None,
        *,
        filters: MetadataFilters | Any = None,
        search_type: Mode = "hybrid",
        score_threshold: float | None = None,
        lam: float | None = None,
        tenant: str | None = None,
        rerank: bool | Rerank = False,
        expand: Reach | int | Expand | None = None,
        fold: Fold = "same",
        max_per_document: int | None = None,
        min_confidence: float | None = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> None:
        """similarity_top_k: None = 5, and with expand as many as suit its budget.

        filters: MetadataFilters, a dict of ours, or the index engine's own filter. search_type: hybrid = the
        learnt mix, dense, lexical. score_threshold: leave out what scores less, on the search type's scale.
        lam: λ, the share of the retriever without feedback, None = as it was tuned, 1 = feedback off. tenant:
        whose feedback counts, beside the feedback that is for all, and whose adapter (`from_pretrained`) its
        questions go through. rerank: True = the re-ranker that was fitted reads the best passages; a Rerank
        says which one, how deep, how long. expand: nodes with their "neighbours", "section" or "document", all
        together within a budget of tokens (2,048; a number is another one); nodes that touch become one, and
        what does not fit is left out. fold: passages of the same text are one node; "near" = near-duplicates
        too, "none" = each by itself. max_per_document: nodes of one document at most. min_confidence: leave out
        what answers the question with less than this probability, in every search type. All but the first may
        be changed on the object.
        """
        if not isinstance(retriever, Retriever):
            raise InvalidInput(
                f"retriever is {type(retriever).__name__}: give an opened ragadapt.Retriever, or use "
                "LoRARetriever.from_pretrained(folder)."
            )
        self.retriever = retriever
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self.search_type: Mode = search_type
        self.score_threshold = score_threshold
        self.lam = lam
        named_tenant(tenant)
        self.tenant = tenant
        self.rerank = rerank
        self.min_confidence = min_confidence
        self.expand = expand
        self.fold: Fold = fold
        self.max_per_document = max_per_document
        super().__init__(callback_manager=callback_manager, verbose=verbose)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        similarity_top_k: int | None = None,
        *,
        device: str = "auto",
        precision: str = "auto",
        tenant_adapters: str | Path | None = None,
        **settings: Any,
    ) -> Self:
        """Open a folder that `ragadapt fit` wrote. tenant_adapters: a library, of whose adapters each is for the
        questions of the tenant of its name. settings: as for the constructor.

        Raises InvalidInput, NotARetriever, FormatTooNew, StoreCorrupt, FingerprintMismatch, IndexUnreachable,
        MissingExtra.
        """
        opened = Retriever.open(path, device=device, precision=precision, tenant_adapters=tenant_adapters)
        return cls(opened, similarity_top_k, **settings)

    @property
    def embed_model(self) -> LoRAEmbedding:
        """The retriever's model as a LlamaIndex embedding; nothing is loaded again."""
        return LoRAEmbedding(encoder=self.retriever.encoder)

    def add_feedback(
        self,
        query: str,
        node_id: str | None = None,
        *,
        source: str | None = None,
        quote: str | None = None,
        weight: float = 1.0,
        user: str = "",
        tenant: str | None = None,
        at: float | None = None,
        key: str | None = None,
    ) -> str:
        """This node answers this question (weight < 0: does not), from now on; the feedback's key.

        node_id: a returned node's; or source and quote name the passage. user: whose influence is capped. tenant: None
        = the retriever's own. at: Unix seconds, None = now. A key that is known changes nothing. Raises InvalidInput
        for what is not there.
        """
        whose = self.tenant if tenant is None else tenant
        return self.retriever.add_feedback(
            query, node_id, source=source, quote=quote, weight=weight, user=user, tenant=whose, at=at, key=key
        )

    def withdraw_feedback(
        self,
        key: str | None = None,
        *,
        query: str | None = None,
        node_id: str | None = None,
        user: str | None = None,
        tenant: str | None = None,
    ) -> int:
        """Take back the feedback that fits all that is given; how many. Search is then as if it had never been."""
        return self.retriever.withdraw_feedback(key, query=query, chunk_id=node_id, user=user, tenant=tenant)

    async def aadd_feedback(self, query: str, node_id: str | None = None, **values: Any) -> str:
        """`add_feedback` in a thread."""
        return await asyncio.to_thread(self.add_feedback, query, node_id, **values)

    async def awithdraw_feedback(self, key: str | None = None, **values: Any) -> int:
        """`withdraw_feedback` in a thread."""
        return await asyncio.to_thread(self.withdraw_feedback, key, **values)

    def close(self) -> None:
        """Release files and connections."""
        self.retriever.close()

    def retrieve_many(self, queries: list[str]) -> list[list[NodeWithScore]]:
        """The nodes of many questions, encoded in one batch."""
        return self._find(checked_list(queries, "queries"), None)

    async def aretrieve_many(self, queries: list[str]) -> list[list[NodeWithScore]]:
        """`retrieve_many` in a thread."""
        return await asyncio.to_thread(self.retrieve_many, queries)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self._find([query_bundle.query_str], self._vectors(query_bundle))[0]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)

    def _vectors(self, query: QueryBundle) -> Floats | None:
        """(1, dim) where the bundle brings a vector, or strings other than the query to make it of."""
        if query.embedding is not None:
            return check_vectors([query.embedding], self.retriever.encoder.dim, "query vectors")
        strings = query.embedding_strs
        if not strings or strings == [query.query_str]:
            return None
        mean = self.retriever.encoder.encode_queries(strings).mean(axis=0)
        vector: Floats = (mean / max(float(np.linalg.norm(mean)), 1e-12))[None, :]
        return vector

    def _find(self, queries: list[str], vectors: Floats | None) -> list[list[NodeWithScore]]:
        least, wider = checked_threshold(self.score_threshold), checked_expand(self.expand)
        late = None if least is None else wider  # expanded after hits were left out
        filter = to_filter(self.filters) if isinstance(self.filters, MetadataFilters) else self.filters
        found = self.retriever.search_many(
            queries,
            self.similarity_top_k if late is None else self.retriever.wanted(self.similarity_top_k, late),
            vectors=vectors,
            mode=self.search_type,
            filter=filter,
            lam=self.lam,
            tenant=self.tenant,
            rerank=self.rerank,
            min_confidence=self.min_confidence,
            fold=self.fold,
            max_per_document=self.max_per_document,
            expand=wider if late is None else None,
        )
        nodes = []
        for hits in found:
            kept = [hit for hit in hits if least is None or hit.score >= least]
            if late is not None:
                kept = self.retriever.expand(kept, late, filter=filter)
            nodes.append(as_related(kept, self.retriever.beside(kept, filter=filter)))
        return nodes
