"""RagAdaptVectorStore: nodes in any of our indexes, under any embedding, as a LlamaIndex vector store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from llama_index_ragadapt.embedding import LoRAEmbedding
from llama_index_ragadapt.filters import to_filter
from llama_index_ragadapt.nodes import DOCUMENT_ID, NODE_ID, as_node, as_passage
from ragadapt.checks import checked_id, checked_ids, checked_k, checked_list, checked_path
from ragadapt.collection import Collection, FittedPassages, Passages, diverse_hits, only, open_collection
from ragadapt.errors import InvalidInput
from ragadapt.pefa import named_tenant
from ragadapt.retriever import Retriever
from ragadapt.search.searcher import Mode
from ragadapt.values import Hit

_MODES: dict[VectorStoreQueryMode, Mode | None] = {
    VectorStoreQueryMode.DEFAULT: None,
    VectorStoreQueryMode.MMR: None,
    VectorStoreQueryMode.HYBRID: "hybrid",
    VectorStoreQueryMode.SEMANTIC_HYBRID: "hybrid",
    VectorStoreQueryMode.SPARSE: "lexical",
    VectorStoreQueryMode.TEXT_SEARCH: "lexical",
}
_FETCH = 4  # times the wanted number of nodes are looked at for diversity


class RagAdaptVectorStore(BasePydanticVectorStore):
    """Nodes with their texts and metadata, searched by meaning, by words, or both.

        store = RagAdaptVectorStore(kind="faiss", folder="./store", embed_model=embed_model)
        index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)

    Modes: default, hybrid (alpha = share of the dense side), sparse and text_search (words alone), mmr (mmr_threshold 1
    = relevance alone). Adding a node whose id is there replaces it. Scores are cosines for dense search. The async
    twins work in a thread, so the event loop goes on.
    """

    stores_text: bool = True
    lam: float | None = None
    tenant: str | None = None

    _passages: Any = PrivateAttr(default=None)
    _opening: dict[str, Any] = PrivateAttr(default_factory=dict)

    def __init__(
        self,
        *,
        kind: str | None = None,
        folder: str | Path | None = None,
        url: str | None = None,
        collection: str = "ragadapt",
        embed_model: BaseEmbedding | None = None,
        passages: Passages | None = None,
        dim: int | None = None,
        normalise: bool = True,
        feedback: bool | str | Path = False,
        lam: float | None = None,
        tenant: str | None = None,
        **settings: Any,
    ) -> None:
        """Open a store, or make a new one.

        kind: exact, faiss, qdrant, qdrant-edge; None = what the folder says, else exact. folder: None = in memory.
        url, collection: of a Qdrant server. embed_model: what fills it; a store that another LoRAEmbedding filled then
        raises FingerprintMismatch. passages: something that is open already, instead of all these. dim: width of the
        vectors, None = the embed_model's or the first node's. normalise: bring vectors to length 1, so that scores are
        cosines. feedback: a file for what `add_feedback` is told; True = in the folder, else in memory; needs an
        embed_model. lam: λ, the share of search without feedback, None = as tuned, 1 = feedback off. tenant: whose
        feedback counts, beside that for all; both may also be given per query, as `vector_store_kwargs`. settings: of
        the index (structure, timeout_seconds, api_key …). exact and faiss keep changes in memory until `persist`.

        Raises DimensionMismatch, FingerprintMismatch, IndexCorrupt, IndexUnreachable, MissingExtra, InvalidInput.
        """
        named_tenant(tenant)
        super().__init__(stores_text=True, lam=lam, tenant=tenant)
        if passages is not None:
            self._passages = passages
            return
        ours = embed_model if isinstance(embed_model, LoRAEmbedding) else None
        if url is not None:
            settings |= {"url": url}
        self._opening = {
            "kind": kind,
            "folder": folder,
            "fingerprint": ours.fingerprint if ours else None,
            "spec": ours.encoder.spec if ours else None,
            "normalise": normalise,
            "feedback": feedback,
            "embed": None if embed_model is None else query_encoder(embed_model),
            "collection": collection,
            **settings,
        }
        there = folder is not None and (Path(folder) / "index.json").is_file()
        if dim is None and ours is not None:
            dim = ours.dim
        if dim is not None or there:
            self._open(dim)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        search_type: Mode = "hybrid",
        lam: float | None = None,
        tenant: str | None = None,
        device: str = "auto",
        precision: str = "auto",
    ) -> Self:
        """The passages of a retriever that `ragadapt fit` saved, for reading, searched as it searches.

        Give `VectorStoreIndex.from_vector_store` this store and its `embed_model`.
        """
        retriever = Retriever.open(path, device=device, precision=precision)
        return cls(passages=FittedPassages(retriever, search_type), lam=lam, tenant=tenant)

    @classmethod
    def from_existing_collection(
        cls,
        embed_model: BaseEmbedding,
        url: str | None = None,
        collection: str = "",
        *,
        client: Any = None,
        verify: bool = True,
        feedback: bool | str | Path = False,
        lam: float | None = None,
        tenant: str | None = None,
        **settings: Any,
    ) -> Self:
        """A Qdrant collection that LlamaIndex or langchain-qdrant filled, opened as it is, for reading.

        embed_model: what filled it, or a model fitted from that with `--adapt query`; verify: compare a sample of the
        stored vectors with what `embed_model` makes of their texts. client: a QdrantClient instead of a URL. feedback,
        lam, tenant: as for the constructor; the collection itself is not changed. settings: layout, vector_name,
        timeout_seconds, api_key. Raises FingerprintMismatch, DimensionMismatch, IndexFault, IndexUnreachable,
        InvalidInput.
        """
        from ragadapt.index.foreign import ForeignQdrantIndex

        index = ForeignQdrantIndex.existing(url, collection, client=client, **settings)
        if verify:
            index.check_encoder(lambda texts: np.asarray(embed_model.get_text_embedding_batch(texts), np.float32))
        name = embed_model.fingerprint if isinstance(embed_model, LoRAEmbedding) else embed_model.model_name
        passages = Collection(index, feedback=feedback, embed=query_encoder(embed_model), fingerprint=name)
        return cls(passages=passages, lam=lam, tenant=tenant)

    @classmethod
    def from_persist_path(cls, persist_path: str | Path, **settings: Any) -> Self:
        """Open what `persist` wrote there. settings: as for the constructor, e.g. embed_model. Raises InvalidInput."""
        folder = persist_folder(persist_path)
        if not (folder / "index.json").is_file():
            raise InvalidInput(f"There is no store in {folder} (no index.json). Give the path that persist was given.")
        return cls(folder=folder, **settings)

    @classmethod
    def class_name(cls) -> str:
        return "RagAdaptVectorStore"

    @property
    def client(self) -> Any:
        """The passages; None before the first node, if no width is known yet."""
        return self._passages

    @property
    def embed_model(self) -> LoRAEmbedding:
        """The model of the fitted retriever behind this store. Raises InvalidInput where there is none."""
        if not isinstance(self._passages, FittedPassages):
            raise InvalidInput("Only a store made by from_pretrained brings its own embed_model.")
        return LoRAEmbedding(encoder=self._passages.retriever.encoder)

    def __len__(self) -> int:
        return len(self._passages) if self._passages is not None else 0

    def __bool__(self) -> bool:
        return True  # also when empty: frameworks write `store or default`

    # Changing

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add or replace nodes, which have their embeddings; returns their ids. Raises InvalidInput."""
        nodes = checked_list(nodes, "nodes")
        for at, node in enumerate(nodes):
            if not isinstance(node, BaseNode):
                raise InvalidInput(f"nodes[{at}] is {type(node).__name__}, a LlamaIndex node is needed.")
        if not nodes:
            return []
        bare = [node.node_id for node in nodes if node.embedding is None]
        if bare:
            raise InvalidInput(
                f"{len(bare)} of {len(nodes)} nodes have no embedding, the first is {bare[0]!r}. Embed first."
            )
        vectors = [node.get_embedding() for node in nodes]
        checked_ids([node.node_id for node in nodes])
        if self._passages is None:
            self._open(len(vectors[0]))
        ids, texts, metadata = zip(*(as_passage(node) for node in nodes))
        self._passages.add(list(ids), list(texts), vectors, list(metadata))
        return list(ids)

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Remove all nodes of a document; also the document itself where it was stored whole, as its own node."""
        checked_id(ref_doc_id, "ref_doc_id")
        if self._passages is not None:
            whole = {NODE_ID: ref_doc_id, "ref_doc_id": "None"}
            older = {DOCUMENT_ID: None, "$or": [{"ref_doc_id": ref_doc_id}, whole]}
            whole = {NODE_ID: ref_doc_id, DOCUMENT_ID: "None"}
            self._passages.delete(self._passages.ids({"$or": [{DOCUMENT_ID: ref_doc_id}, whole, older]}))

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Remove nodes by id, by filter, or those that both name. Raises InvalidInput if neither is given."""
        if node_ids is None and filters is None:
            raise InvalidInput("Say which nodes: give node_ids, filters or both. To remove all, use clear().")
        if self._passages is not None:
            self._passages.delete(self._named(node_ids, filters))

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    def clear(self) -> None:
        """Remove all nodes."""
        if self._passages is not None:
            self._passages.delete(self._passages.ids())

    async def aclear(self) -> None:
        await asyncio.to_thread(self.clear)

    # Reading

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Nodes by id, by filter, or those that both name; all if neither is given. Missing ids are left out."""
        if self._passages is None:
            return []
        found = self._passages.get(self._named(node_ids, filters))
        return [as_node(chunk) for chunk in found.values()]

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The best nodes, best first, with scores. kwargs: filter (the index engine's own), lam, tenant.

        Raises InvalidInput, InvalidFilter; also for modes that no vector store of ours has.
        """
        if query.mode not in _MODES:
            known = ", ".join(mode.value for mode in _MODES)
            raise InvalidInput(f"Query mode {query.mode.value!r} is not supported. Use one of: {known}.")
        if self._passages is None:
            return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
        hits = self._diverse(query, **kwargs) if query.mode == VectorStoreQueryMode.MMR else self._find(query, **kwargs)
        return VectorStoreQueryResult(
            nodes=[as_node(hit.chunk) for hit in hits],
            similarities=[hit.score for hit in hits],
            ids=[hit.chunk.id for hit in hits],
        )

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        return await asyncio.to_thread(self.query, query, **kwargs)

    # Feedback

    def add_feedback(self, query: str, node_id: str, **values: Any) -> str:
        """This node answers this question (weight < 0: does not), from now on; the feedback's key.

        values: weight, user, tenant, at, key. Raises InvalidInput for a node that is not there, and where the store was
        opened without feedback.
        """
        if self._passages is None:
            raise InvalidInput(f"There is no node {node_id!r}: the store is empty.")
        if values.get("tenant") is None:
            values["tenant"] = self.tenant
        key: str = self._passages.add_feedback(query, node_id, **values)
        return key

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
        if self._passages is None:
            return 0
        count: int = self._passages.withdraw_feedback(key, query=query, id=node_id, user=user, tenant=tenant)
        return count

    # Keeping

    def persist(self, persist_path: str | Path = "./storage/vector_store.json", fs: Any = None) -> None:
        """Write the store beside `persist_path`, in a folder of that name without ending; or where it was opened.

        A store that was opened with a folder or a server stays there. Raises InvalidInput.
        """
        if self._passages is None:
            raise InvalidInput("The store is empty and has no width yet: there is nothing to write. Add nodes first.")
        if isinstance(self._passages, FittedPassages) or self._opening.get("url") not in (None, ":memory:"):
            return
        if self._opening.get("folder") is not None:
            self._passages.save()
        elif self._opening.get("kind") == "qdrant":
            raise InvalidInput("A store in ':memory:' of Qdrant cannot be written. Give it a folder or a server's URL.")
        else:
            self._passages.save(persist_folder(persist_path))

    def close(self) -> None:
        """Release files and connections; unsaved changes of exact and faiss are lost."""
        if self._passages is not None:
            self._passages.close()

    def _open(self, dim: int | None) -> None:
        self._passages = open_collection(dim=dim, **self._opening)
        self._opening.pop("api_key", None)  # a key is kept no longer than it is needed

    def _named(self, node_ids: Sequence[str] | None, filters: MetadataFilters | None) -> list[str]:
        passing = self._passages.ids(to_filter(filters)) if filters is not None or node_ids is None else None
        if node_ids is None:
            return list(passing or [])
        node_ids = checked_ids(node_ids, "node_ids")
        allowed = None if passing is None else set(passing)
        return [id for id in dict.fromkeys(node_ids) if allowed is None or id in allowed]

    def _find(
        self,
        query: VectorStoreQuery,
        k: int | None = None,
        filter: Any = None,
        lam: float | None = None,
        tenant: str | None = None,
    ) -> list[Hit]:
        mode = _MODES[query.mode]
        k = checked_k(self._wanted(query), "similarity_top_k") if k is None else k
        weight = query.alpha if mode == "hybrid" else None
        fitted = isinstance(self._passages, FittedPassages)
        parts = [] if query.filters is None else [to_filter(query.filters)]
        if not fitted and query.node_ids:
            parts.append({NODE_ID: {"$in": list(query.node_ids)}})
        if not fitted and query.doc_ids:
            ours = {"$in": list(query.doc_ids)}
            parts.append({"$or": [{DOCUMENT_ID: ours}, {DOCUMENT_ID: None, "doc_id": ours}]})
        parts = [part for part in parts if part]
        if filter is not None and parts:
            raise InvalidInput("Give either filter or the query's own filters, node_ids and doc_ids, not both.")
        settings = {
            "mode": mode,
            "filter": filter if filter is not None else {"$and": parts} if parts else None,
            "weight": weight,
            "lam": self.lam if lam is None else lam,
            "tenant": self.tenant if tenant is None else tenant,
        }
        if fitted and (query.node_ids or query.doc_ids):
            return only(self._passages, self._wanted_ids(query), query.query_str, query.query_embedding, k, **settings)
        texts = None if query.query_str is None else [query.query_str]
        vectors = None if query.query_embedding is None else [query.query_embedding]
        hits: list[Hit] = self._passages.search(texts, vectors, k, **settings)[0]
        return hits

    def __getstate__(self) -> dict[str, Any]:
        if not isinstance(self._passages, FittedPassages):
            self._passages.__reduce__()  # raises; what the framework does is leave it out
        state: dict[str, Any] = super().__getstate__()
        return state

    def _wanted_ids(self, query: VectorStoreQuery) -> set[str]:
        """The passages of a fitted retriever that node_ids and doc_ids allow."""
        chunks = self._passages.retriever.snapshot().chunks
        wanted = set(query.node_ids) if query.node_ids else set(chunks.ids())
        if query.doc_ids:
            documents = set(query.doc_ids)
            wanted &= {id for id, document in zip(chunks.ids(), chunks.document_ids()) if document in documents}
        return wanted

    @staticmethod
    def _wanted(query: VectorStoreQuery) -> int:
        if query.mode == VectorStoreQueryMode.HYBRID and query.hybrid_top_k:
            return query.hybrid_top_k
        if query.mode in (VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.TEXT_SEARCH) and query.sparse_top_k:
            return query.sparse_top_k
        return query.similarity_top_k

    def _diverse(self, query: VectorStoreQuery, mmr_prefetch_k: int | None = None, **kwargs: Any) -> list[Hit]:
        if query.query_embedding is None:
            raise InvalidInput("Mode mmr needs the query's embedding.")
        k = checked_k(query.similarity_top_k, "similarity_top_k")
        mmr_prefetch_k = None if mmr_prefetch_k is None else checked_k(mmr_prefetch_k, "mmr_prefetch_k")
        hits = self._find(query, max(k, mmr_prefetch_k or _FETCH * k), **kwargs)
        balance = 0.5 if query.mmr_threshold is None else query.mmr_threshold
        return diverse_hits(self._passages, query.query_embedding, hits, k, balance)


def query_encoder(embed_model: BaseEmbedding) -> Callable[[list[str]], Any]:
    """Queries → vectors (n, dim), in one batch where the embedding can."""
    if isinstance(embed_model, LoRAEmbedding):
        return embed_model.encoder.encode_queries
    return lambda texts: [embed_model.get_query_embedding(text) for text in texts]


def persist_folder(persist_path: str | Path) -> Path:
    """The folder that stands for a persist path: "storage/default__vector_store.json" → "…/default__vector_store"."""
    return checked_path(persist_path, "The persist path").with_suffix("")
