"""RagAdaptVectorStore: documents in any of our indexes, under any embeddings, as a LangChain vector store."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables.config import run_in_executor
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever

from langchain_ragadapt.documents import as_document, as_given, origin
from langchain_ragadapt.embeddings import LoRAEmbeddings
from ragadapt.checks import (
    checked_choice,
    checked_ids,
    checked_k,
    checked_list,
    checked_path,
    checked_text,
    checked_texts,
    checked_threshold,
)
from ragadapt.collection import Collection, FittedPassages, Passages, diverse_hits, open_collection
from ragadapt.errors import InvalidInput
from ragadapt.retriever import Retriever
from ragadapt.search.context import checked_expand
from ragadapt.search.searcher import Mode
from ragadapt.values import Chunk, Hit

_OURS: tuple[Mode, ...] = ("dense", "hybrid", "lexical")
_MODES: dict[str, Mode] = {**{mode: mode for mode in _OURS}, "similarity": "dense"}


class RagAdaptVectorStore(VectorStore):
    """Documents with metadata under their ids, searched by meaning, by words, or both.

        store = RagAdaptVectorStore(LoRAEmbeddings.from_pretrained("./retriever"), kind="faiss", folder="./store")

    Adding a document under an id that is there replaces it. Scores are cosines for dense search. `similarity_search`
    and its kin take `filter` (on the metadata, or the index engine's own), `search_type` "dense", "hybrid" or
    "lexical", and with feedback `lam` (λ; 1 = off) and `tenant`. The async twins work in a thread, so the event loop
    goes on.
    """

    def __init__(
        self,
        embedding: Embeddings,
        *,
        kind: str | None = None,
        folder: str | Path | None = None,
        url: str | None = None,
        collection: str = "ragadapt",
        passages: Passages | None = None,
        fingerprint: str | None = None,
        normalise: bool = True,
        feedback: bool | str | Path = False,
        **settings: Any,
    ) -> None:
        """Open a store, or make a new one.

        kind: exact, faiss, qdrant, qdrant-edge; None = what the folder says, else exact. folder: None = in memory.
        url, collection: of a Qdrant server. passages: something that is open already, instead of all these.
        fingerprint: names the embeddings, None = their own, or made from their class and model's name; a store opened
        with others raises FingerprintMismatch. normalise: bring vectors to length 1, so that scores are cosines.
        feedback: a file for what `add_feedback` is told; True = in the folder, else in memory. settings: of the index
        (structure, timeout_seconds, api_key …). exact and faiss keep changes in memory until `save_local`.

        Raises DimensionMismatch, FingerprintMismatch, IndexCorrupt, IndexUnreachable, MissingExtra, InvalidInput.
        """
        if not isinstance(embedding, Embeddings):
            raise InvalidInput(f"embedding is {type(embedding).__name__}: give LangChain Embeddings.")
        self._embedding = embedding
        if passages is None:
            ours = isinstance(embedding, LoRAEmbeddings)
            if url is not None:
                settings |= {"url": url}
            passages = open_collection(
                kind,
                folder,
                dim=embedding.dim if isinstance(embedding, LoRAEmbeddings) else len(embedding.embed_query("dimension")),
                fingerprint=fingerprint or fingerprint_of(embedding),
                spec=embedding.encoder.spec if ours else None,  # type: ignore[attr-defined]
                normalise=normalise,
                feedback=feedback,
                embed=query_encoder(embedding),
                collection=collection,
                **settings,
            )
        self.passages = passages

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, search_type: Mode = "hybrid", device: str = "auto", precision: str = "auto"
    ) -> Self:
        """The passages of a retriever that `ragadapt fit` saved, for reading, searched as it searches."""
        retriever = Retriever.open(path, device=device, precision=precision)
        return cls(LoRAEmbeddings(encoder=retriever.encoder), passages=FittedPassages(retriever, search_type))

    @classmethod
    def from_existing_collection(
        cls,
        embedding: Embeddings,
        url: str | None = None,
        collection: str = "",
        *,
        client: Any = None,
        verify: bool = True,
        feedback: bool | str | Path = False,
        **settings: Any,
    ) -> Self:
        """A Qdrant collection that langchain-qdrant or LlamaIndex filled, opened as it is, for reading.

        embedding: what filled it, or a model fitted from that with `--adapt query`; verify: compare a sample of the
        stored vectors with what `embedding` makes of their texts. client: a QdrantClient instead of a URL. feedback: as
        for the constructor; the collection itself is not changed by it. settings: layout, vector_name,
        timeout_seconds, api_key. Raises FingerprintMismatch, DimensionMismatch, IndexFault, IndexUnreachable,
        InvalidInput.
        """
        from ragadapt.index.foreign import ForeignQdrantIndex

        index = ForeignQdrantIndex.existing(url, collection, client=client, **settings)
        if verify:
            index.check_encoder(lambda texts: np.asarray(embedding.embed_documents(texts), np.float32))
        passages = Collection(
            index, feedback=feedback, embed=query_encoder(embedding), fingerprint=fingerprint_of(embedding)
        )
        return cls(embedding, passages=passages)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """A store with these texts. kwargs: as for the constructor."""
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @property
    def embeddings(self) -> Embeddings:
        """What makes the vectors."""
        return self._embedding

    def __len__(self) -> int:
        return len(self.passages)

    def __bool__(self) -> bool:
        return True  # also when empty: frameworks write `store or default`

    # Changing

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add or replace texts; returns their ids (new ones where none are given).

        Raises InvalidInput for unequal lists, what is no text, and metadata that is not JSON.
        """
        listed = checked_texts(texts)
        metadata = checked_list(metadatas, "metadatas") if metadatas is not None else [{} for _ in listed]
        named: Sequence[str | None] = checked_list(ids, "ids") if ids is not None else [None] * len(listed)
        if not len(listed) == len(metadata) == len(named):
            raise InvalidInput(
                f"Got {len(listed)} texts, {len(metadata)} metadatas and {len(named)} ids; there must be one each."
            )
        chosen = checked_ids([str(uuid.uuid4()) if id is None or id == "" else id for id in named])
        for at, values in enumerate(metadata):
            if not isinstance(values, dict):
                raise InvalidInput(f"metadatas[{at}] is {type(values).__name__}, a dict is needed; {{}} is none.")
        if listed:
            vectors = self._embedding.embed_documents(listed)
            self.passages.add(chosen, listed, np.asarray(vectors, np.float32), metadata)
        return chosen

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Add or replace documents by id; returns the ids (new ones where none are given)."""
        documents = checked_list(documents, "documents")
        for at, document in enumerate(documents):
            if not isinstance(document, Document):
                raise InvalidInput(f"documents[{at}] is {type(document).__name__}, a LangChain Document is needed.")
        ids = kwargs.pop("ids", None)
        named: Any = ids if ids is not None else [document.id for document in documents]
        return self.add_texts(
            [document.page_content for document in documents],
            [document.metadata for document in documents],
            ids=named,
            **kwargs,
        )

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Remove documents; missing ids are no error. None = all."""
        self.passages.delete(self.passages.ids() if ids is None else ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents that are there, in the order of ids; missing ones are left out."""
        ids = checked_ids(ids)
        found = self.passages.get(ids)
        return [self._document(found[id]) for id in dict.fromkeys(ids) if id in found]

    # Searching

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The k best documents, best first. kwargs: filter, search_type, weight, score_threshold, lam, tenant; of a
        fitted retriever also expand ("neighbours", "section", "document", or a number of tokens)."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """The k best documents with their scores, larger is better."""
        return self._scored(self._expanded(self._find, query, k, **kwargs))

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """The k best documents for a vector."""
        return [document for document, _ in self.similarity_search_with_score_by_vector(embedding, k, **kwargs)]

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The k best documents for a vector, with their cosines."""
        kwargs.setdefault("search_type", "dense")
        return self._scored(self._expanded(self._find, None, k, vector=embedding, **kwargs))

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """k of the `fetch_k` best documents, each unlike those before it; lambda_mult 1 = relevance alone."""
        return self._diverse(query, self._query_vector(query), k, fetch_k, lambda_mult, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """The same for a vector."""
        kwargs.setdefault("search_type", "dense")
        return self._diverse(None, embedding, k, fetch_k, lambda_mult, **kwargs)

    def search(self, query: str, search_type: str, **kwargs: Any) -> list[Document]:
        """By LangChain's words (similarity, similarity_score_threshold, mmr) or by ours (dense, hybrid, lexical)."""
        if search_type in _OURS:
            return self.similarity_search(query, search_type=search_type, **kwargs)
        _check_search_type(search_type)
        return super().search(query, search_type, **kwargs)

    async def asearch(self, query: str, search_type: str, **kwargs: Any) -> list[Document]:
        """`search` in a thread."""
        return await run_in_executor(None, self.search, query, search_type, **kwargs)

    def as_retriever(self, **kwargs: Any) -> VectorStoreRetriever:
        """This store as a retriever. kwargs: search_type, search_kwargs, tags, metadata.

        search_type: similarity (how the store searches unless told otherwise), similarity_score_threshold, mmr; or
        dense, hybrid, lexical. search_kwargs: k, filter, lam …, for mmr fetch_k and lambda_mult. Raises InvalidInput.
        """
        kind = kwargs.get("search_type", "similarity")
        _check_search_type(kind)
        if kind in _OURS:
            kwargs["search_kwargs"] = {"search_type": kind, **(kwargs.get("search_kwargs") or {})}
            kwargs["search_type"] = "similarity"
        return super().as_retriever(**kwargs)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Cosines, cut to 0…1."""
        return lambda score: min(1.0, max(0.0, float(score)))

    def similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The k best documents, each with a relevance from 0 to 1. kwargs: also score_threshold.

        Where the search can tell, that is the probability that the document answers the query: always in the store of a
        fitted retriever, elsewhere in hybrid and lexical search. Else it is the cosine, cut to 0…1.
        """
        checked_threshold(kwargs.get("score_threshold"))
        return super().similarity_search_with_relevance_scores(query, k, **kwargs)

    def _similarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        cosine = self._select_relevance_score_fn()
        return [
            (self._document(hit.chunk), cosine(hit.score) if hit.confidence is None else hit.confidence)
            for hit in self._find(query, k, **kwargs)
        ]

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        return await run_in_executor(None, self._similarity_search_with_relevance_scores, query, k, **kwargs)

    # Async: the same in a thread; the base class has twins for the rest

    async def asimilarity_search_with_score(self, *args: Any, **kwargs: Any) -> list[tuple[Document, float]]:
        """`similarity_search_with_score` in a thread."""
        return await run_in_executor(None, self.similarity_search_with_score, *args, **kwargs)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """`add_texts` in a thread."""
        return await run_in_executor(None, self.add_texts, texts, metadatas, ids=ids, **kwargs)

    # Feedback

    def add_feedback(self, query: str, document_id: str, **values: Any) -> str:
        """This document answers this question (weight < 0: does not), from now on; the feedback's key.

        values: weight, user, tenant, at, key. Raises InvalidInput for a document that is not there, and where the store
        was opened without feedback.
        """
        return self.passages.add_feedback(query, document_id, **values)

    def withdraw_feedback(
        self,
        key: str | None = None,
        *,
        query: str | None = None,
        document_id: str | None = None,
        user: str | None = None,
        tenant: str | None = None,
    ) -> int:
        """Take back the feedback that fits all that is given; how many. Search is then as if it had never been."""
        return self.passages.withdraw_feedback(key, query=query, id=document_id, user=user, tenant=tenant)

    # Keeping

    def save_local(self, folder: str | Path | None = None) -> None:
        """Write the store to a folder, or to where it was opened. No pickle. Raises InvalidInput."""
        self.passages.save(folder)

    @classmethod
    def load_local(cls, folder: str | Path, embedding: Embeddings, **kwargs: Any) -> Self:
        """Open what `save_local` wrote. Raises InvalidInput where nothing is, FingerprintMismatch, IndexCorrupt."""
        if not (checked_path(folder, "The store's folder") / "index.json").is_file():
            raise InvalidInput(f"There is no store in {folder} (no index.json). Give the folder of `save_local`.")
        return cls(embedding, folder=folder, **kwargs)

    def close(self) -> None:
        """Release files and connections; unsaved changes of exact and faiss are lost."""
        self.passages.close()

    def _query_vector(self, query: str) -> list[float]:
        return self._embedding.embed_query(checked_text("The query", query))

    def _find(
        self,
        query: str | None,
        k: int,
        *,
        vector: Sequence[float] | None = None,
        filter: Any = None,
        search_type: str | None = None,
        weight: float | None = None,
        score_threshold: float | None = None,
        lam: float | None = None,
        tenant: str | None = None,
        **unknown: Any,
    ) -> list[Hit]:
        if unknown:
            raise InvalidInput(
                f"{', '.join(sorted(unknown))}: not known here. A search takes filter, search_type, weight, "
                "score_threshold, lam, tenant, expand."
            )
        least = checked_threshold(score_threshold)
        mode = self.passages.default_mode
        if search_type is not None:
            mode = _MODES[checked_choice("search_type", search_type, tuple(_MODES))]
        if vector is None and query is not None and mode != "lexical":
            vector = self._query_vector(query)
        hits = self.passages.search(
            None if query is None else [query],
            None if vector is None else [vector],
            k,
            mode=mode,
            filter=filter,
            weight=weight,
            lam=lam,
            tenant=tenant,
        )[0]
        return [hit for hit in hits if least is None or hit.score >= least]

    def _diverse(
        self, query: str | None, vector: Sequence[float], k: int, fetch_k: int, lambda_mult: float, **kwargs: Any
    ) -> list[Document]:
        k, fetch_k = checked_k(k), checked_k(fetch_k, "fetch_k")

        def find(**kwargs: Any) -> list[Hit]:
            hits = self._find(query, max(k, fetch_k), vector=vector, **kwargs)
            return diverse_hits(self.passages, vector, hits, k, lambda_mult)

        return [document for document, _ in self._scored(self._expanded(find, **kwargs))]

    def _expanded(self, find: Callable[..., list[Hit]], *args: Any, expand: Any = None, **kwargs: Any) -> list[Hit]:
        """What a search finds, with what stands around it where that was asked for."""
        wider = checked_expand(expand)
        if wider is None:
            return find(*args, **kwargs)
        if not isinstance(self.passages, FittedPassages):
            raise InvalidInput(
                "expand: texts that were added one by one have no neighbours. It works in a store of a retriever that "
                "`ragadapt fit` saved: RagAdaptVectorStore.from_pretrained(folder)."
            )
        return self.passages.retriever.expand(find(*args, **kwargs), wider, filter=kwargs.get("filter"))

    def _document(self, chunk: Chunk) -> Document:
        return as_document(chunk, origin(chunk) if isinstance(self.passages, FittedPassages) else None)

    def _scored(self, hits: Sequence[Hit]) -> list[tuple[Document, float]]:
        fitted = isinstance(self.passages, FittedPassages)
        return [(as_given(hit, origin(hit.chunk) if fitted else None), hit.score) for hit in hits]


def _check_search_type(search_type: str) -> None:
    known = (*VectorStoreRetriever.allowed_search_types, *_OURS)
    if search_type not in known:
        raise InvalidInput(f"search_type = {search_type!r}: it is one of {', '.join(known)}.")


def query_encoder(embedding: Embeddings) -> Callable[[list[str]], Any]:
    """Queries → vectors (n, dim), in one batch where the embeddings can."""
    if isinstance(embedding, LoRAEmbeddings):
        return embedding.embed_queries
    return lambda texts: [embedding.embed_query(text) for text in texts]


def fingerprint_of(embedding: Embeddings) -> str:
    """What names embeddings: their own fingerprint, else a hash of their class and their model's name."""
    own = getattr(embedding, "fingerprint", None)
    if isinstance(own, str) and own:
        return own
    names = (getattr(embedding, name, None) for name in ("model_name", "model", "model_id", "deployment"))
    kind = type(embedding)
    parts = [kind.__module__, kind.__qualname__, *(str(name) for name in names if isinstance(name, str))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
