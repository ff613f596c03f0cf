"""LoRARetriever: a retriever that `ragadapt fit` saved, as a LangChain retriever."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForRetrieverRun,
    CallbackManager,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from langchain_core.runnables.config import RunnableConfig, get_config_list, run_in_executor
from pydantic import ConfigDict, Field, SkipValidation

from langchain_ragadapt.documents import as_documents
from langchain_ragadapt.embeddings import LoRAEmbeddings
from ragadapt.checks import (
    checked_choice,
    checked_confidence,
    checked_k,
    checked_list,
    checked_number,
    checked_queries,
    checked_threshold,
)
from ragadapt.collection import FittedPassages, diverse_hits
from ragadapt.errors import InvalidInput
from ragadapt.pefa import named_tenant
from ragadapt.retriever import Retriever
from ragadapt.search.context import Expand, Reach, checked_expand
from ragadapt.search.diversity import Fold
from ragadapt.search.reranking import Rerank
from ragadapt.search.searcher import Mode
from ragadapt.values import Hit

SearchType = Literal["hybrid", "dense", "lexical", "similarity", "similarity_score_threshold", "mmr"]
SEARCH_TYPES: dict[str, Mode] = {
    "hybrid": "hybrid", "dense": "dense", "lexical": "lexical",
    "similarity": "dense", "similarity_score_threshold": "dense", "mmr": "hybrid",
}  # fmt: skip
"""LangChain's words beside ours → how the passages are searched."""


def _or_raise(found: list[list[Document] | Exception], return_exceptions: bool) -> list[list[Document]]:
    """What was found; the first error is raised unless errors are wanted in their places, as Runnable.batch says."""
    if not return_exceptions:
        for one in found:
            if isinstance(one, Exception):
                raise one
    return found  # type: ignore[return-value]


class LoRARetriever(BaseRetriever):
    """Documents for a question, best first, by the search that was learnt for this corpus.

        retriever = LoRARetriever.from_pretrained("./retriever", k=5)
        chain = {"context": retriever, "question": RunnablePassthrough()} | prompt | model

    Every field but the first may also be given per call: `retriever.invoke(question, k=20, filter={"lang": "en"})`.
    A document has its passage's id and a copy of its metadata; `source`, `document_id` and `heading` are added where
    the metadata lack them; scores come with `search_with_scores`. `batch` and `abatch` encode all questions at once;
    the async twins work in a thread, so the event loop goes on.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    retriever: SkipValidation[Retriever] = Field(exclude=True, repr=False)
    """The opened retriever."""
    k: int | None = None
    """How many documents; None = 5, and with expand as many as suit its budget."""
    filter: Any = None
    """On the metadata, such as {"lang": "en"} or {"year": {"$gte": 2024}}; or the index engine's own filter object."""
    score_threshold: float | None = None
    """Leave out what scores less. The scale is the search type's: cosines for dense, the probability that a document
    answers for similarity_score_threshold, any number for the others."""
    min_confidence: float | None = Field(default=None, ge=0, le=1)
    """Leave out documents that answer the question with less than this probability; None = none. The same for every
    search type."""
    lam: float | None = Field(default=None, ge=0, le=1)
    """λ, the share of the retriever without feedback; None = as it was tuned, 1 = feedback off."""
    tenant: str | None = None
    """Whose feedback counts, beside the feedback that is for all, and whose adapter its questions go through where the
    retriever was opened with some."""
    search_type: SearchType = "hybrid"
    """hybrid = the learnt mix of meaning and words; dense, or similarity = meaning alone; lexical = words alone;
    similarity_score_threshold = dense with a `score_threshold` from 0 to 1, a probability as `min_confidence`; mmr = of
    the `fetch_k` best hybrid ones, `k` that differ from each other."""
    fetch_k: int = Field(default=20, ge=1)
    """For mmr: how many are looked at."""
    lambda_mult: float = Field(default=0.5, ge=0, le=1)
    """For mmr: 1 = relevance alone, 0 = difference alone."""
    rerank: bool | Rerank = False
    """True = the re-ranker that was fitted reads the best passages; a Rerank says which one, how deep, how long."""
    expand: Reach | int | Expand | None = None
    """Give documents with their "neighbours", "section" or "document", all together within a budget of tokens (2,048; a
    number is another one). Documents that touch become one, and what does not fit is left out."""
    fold: Fold = "same"
    """Passages of the same text are one document; "near" = near-duplicates too, "none" = each by itself."""
    max_per_document: int | None = Field(default=None, ge=1)
    """Hits of one source document at most."""
    score_key: str | None = None
    """Where the score stands in a document's metadata, too; None = nowhere. With it, one passage that two questions
    found is two documents for what merges results."""
    confidence_key: str | None = None
    """The same for the probability that the document answers the question."""

    def __init__(self, **fields: Any) -> None:
        """Raises InvalidInput for a retriever that is none, and pydantic's error for other fields that don't fit."""
        opened = fields.get("retriever")
        if not isinstance(opened, Retriever):
            raise InvalidInput(
                f"retriever is {type(opened).__name__}: give an opened ragadapt.Retriever, or use "
                "LoRARetriever.from_pretrained(folder)."
            )
        if isinstance(fields.get("tenant"), str):
            named_tenant(fields["tenant"])
        super().__init__(**fields)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        precision: str = "auto",
        tenant_adapters: str | Path | None = None,
        **fields: Any,
    ) -> Self:
        """Open a folder that `ragadapt fit` wrote. tenant_adapters: a library, of whose adapters each is for the
        questions of the tenant of its name. fields: k, filter, score_threshold …

        Raises InvalidInput, NotARetriever, FormatTooNew, StoreCorrupt, FingerprintMismatch, IndexUnreachable,
        MissingExtra.
        """
        opened = Retriever.open(path, device=device, precision=precision, tenant_adapters=tenant_adapters)
        return cls(retriever=opened, **fields)

    @property
    def embeddings(self) -> LoRAEmbeddings:
        """The retriever's model as LangChain embeddings; nothing is loaded again."""
        return LoRAEmbeddings(encoder=self.retriever.encoder)

    # Feedback

    def add_feedback(
        self,
        query: str,
        document_id: str | None = None,
        *,
        source: str | None = None,
        quote: str | None = None,
        weight: float = 1.0,
        user: str = "",
        tenant: str | None = None,
        at: float | None = None,
        key: str | None = None,
    ) -> str:
        """This document answers this question (weight < 0: does not), from now on; the feedback's key.

        document_id: a returned document's `id`; or source and quote name the passage. user: whose influence is capped.
        tenant: None = the retriever's own. at: Unix seconds, None = now. A key that is known changes nothing. Raises
        InvalidInput for what is not there.
        """
        return self.retriever.add_feedback(
            query, document_id,
            source=source, quote=quote, weight=weight, user=user, tenant=self._whose(tenant), at=at, key=key,
        )  # fmt: skip

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
        return self.retriever.withdraw_feedback(key, query=query, chunk_id=document_id, user=user, tenant=tenant)

    async def aadd_feedback(self, query: str, document_id: str | None = None, **values: Any) -> str:
        """`add_feedback` in a thread."""
        return await run_in_executor(None, self.add_feedback, query, document_id, **values)

    async def awithdraw_feedback(self, key: str | None = None, **values: Any) -> int:
        """`withdraw_feedback` in a thread."""
        return await run_in_executor(None, self.withdraw_feedback, key, **values)

    def _whose(self, tenant: str | None) -> str | None:
        return self.tenant if tenant is None else tenant

    def close(self) -> None:
        """Release files and connections."""
        self.retriever.close()

    def search_with_scores(self, query: str, **settings: Any) -> list[tuple[Document, float]]:
        """What `invoke` finds, each document with its score; settings: as for `invoke`. Larger is better.

        Scores stand beside the documents and not in their metadata, so that one passage found by two questions, or by
        two retrievers, is equal to itself: what merges their results (MultiQueryRetriever, …) compares whole documents.
        """
        hits = self._hits([query], **settings)[0]
        return [(document, hit.score) for document, hit in zip(self._documents(hits), hits, strict=True)]

    async def asearch_with_scores(self, query: str, **settings: Any) -> list[tuple[Document, float]]:
        """`search_with_scores` in a thread."""
        return await run_in_executor(None, self.search_with_scores, query, **settings)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **settings: Any
    ) -> list[Document]:
        return self._search([query], **settings)[0]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **settings: Any
    ) -> list[Document]:
        return (await run_in_executor(None, self._search, [query], **settings))[0]

    def _search(self, queries: Sequence[str], **settings: Any) -> list[list[Document]]:
        return [self._documents(hits) for hits in self._hits(queries, **settings)]

    def _documents(self, hits: Sequence[Hit]) -> list[Document]:
        return as_documents(hits, self.score_key, self.confidence_key)

    def _hits(
        self,
        queries: Sequence[str],
        *,
        k: int | None = None,
        filter: Any = None,
        score_threshold: float | None = None,
        min_confidence: float | None = None,
        search_type: SearchType | None = None,
        fetch_k: int | None = None,
        lambda_mult: float | None = None,
        lam: float | None = None,
        tenant: str | None = None,
        rerank: bool | Rerank | None = None,
        expand: Reach | int | Expand | None = None,
        fold: Fold | None = None,
        max_per_document: int | None = None,
        **unknown: Any,
    ) -> list[list[Hit]]:
        if unknown:
            raise InvalidInput(
                f"{', '.join(sorted(unknown))}: not known here. A call takes k, filter, score_threshold, "
                "min_confidence, search_type, fetch_k, lambda_mult, lam, tenant, rerank, expand, fold, "
                "max_per_document."
            )
        least = checked_threshold(self.score_threshold if score_threshold is None else score_threshold)
        kind = checked_choice("search_type", search_type or self.search_type, tuple(SEARCH_TYPES))
        sure = checked_confidence(self.min_confidence if min_confidence is None else min_confidence)
        if kind == "similarity_score_threshold":
            if least is None:
                raise InvalidInput("search_type 'similarity_score_threshold' needs a score_threshold from 0 to 1.")
            sure, least = max(checked_number("score_threshold", least, 0, 1, "a probability"), sure or 0.0), None
        wider = checked_expand(self.expand if expand is None else expand)
        k, diverse = self.k if k is None else k, kind == "mmr"
        late = wider if diverse or least is not None else None  # expanded after hits were left out
        wanted = self.retriever.wanted(k, wider)
        second = self.rerank if rerank is None else rerank
        if diverse and second:
            raise InvalidInput("rerank does not go with search_type 'mmr', which has an order of its own.")
        fetched = checked_k(self.fetch_k if fetch_k is None else fetch_k, "fetch_k") if diverse else wanted
        vectors = self.retriever.encoder.encode_queries(list(queries)) if diverse else None
        condition = self.filter if filter is None else filter
        found = self.retriever.search_many(
            queries,
            k if wider is not late else max(wanted, fetched),
            vectors=vectors,
            mode=SEARCH_TYPES[kind],
            filter=condition,
            lam=self.lam if lam is None else lam,
            tenant=self.tenant if tenant is None else tenant,
            rerank=second,
            fold=self.fold if fold is None else fold,
            max_per_document=self.max_per_document if max_per_document is None else max_per_document,
            expand=wider if late is None else None,
            min_confidence=sure,
        )
        if least is not None:
            found = [[hit for hit in hits if hit.score >= least] for hits in found]
        if vectors is not None:
            balance = self.lambda_mult if lambda_mult is None else lambda_mult
            passages = FittedPassages(self.retriever)
            found = [diverse_hits(passages, vector, hits, wanted, balance) for vector, hits in zip(vectors, found)]
        return found if late is None else [self.retriever.expand(hits, late, filter=condition) for hits in found]

    # Many questions at once

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[list[Document]]:
        """`invoke` for many questions: all are encoded in one batch, each has its own events.

        return_exceptions: what cannot be searched for has its error in its place, and the others go on.
        """
        inputs = checked_list(inputs, "inputs")
        if not inputs:
            return []
        runs = [
            self._manager(CallbackManager, one, kwargs).on_retriever_start(None, query, **self._start(one))
            for query, one in zip(inputs, get_config_list(config, len(inputs)), strict=True)
        ]
        found = self._search_each(inputs, kwargs)
        for run, documents in zip(runs, found, strict=True):
            if isinstance(documents, Exception):
                run.on_retriever_error(documents)
            else:
                run.on_retriever_end(documents)
        return _or_raise(found, return_exceptions)

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any | None,
    ) -> list[list[Document]]:
        """`ainvoke` for many questions: all are encoded in one batch in a thread, each has its own events."""
        inputs = checked_list(inputs, "inputs")
        if not inputs:
            return []
        runs = [
            await self._manager(AsyncCallbackManager, one, kwargs).on_retriever_start(None, query, **self._start(one))
            for query, one in zip(inputs, get_config_list(config, len(inputs)), strict=True)
        ]
        found = await run_in_executor(None, self._search_each, inputs, kwargs)
        for run, documents in zip(runs, found, strict=True):
            if isinstance(documents, Exception):
                await run.on_retriever_error(documents)
            else:
                await run.on_retriever_end(documents)
        return _or_raise(found, return_exceptions)

    def _search_each(self, queries: Sequence[str], kwargs: Mapping[str, Any]) -> list[list[Document] | Exception]:
        """For each query its documents, or why there are none; the good ones are encoded in one batch."""
        found: list[list[Document] | Exception] = []
        good = []
        for number, query in enumerate(queries):
            try:
                good += checked_queries([query], first=number)
                found.append([])
            except InvalidInput as error:
                found.append(error)
        try:
            results: Iterator[list[Document] | Exception] = iter(self._search(good, **kwargs))
        except Exception as error:
            results = itertools.repeat(error)
        return [one if isinstance(one, Exception) else next(results) for one in found]

    def _manager(self, kind: Any, config: RunnableConfig, kwargs: Mapping[str, Any]) -> Any:
        return kind.configure(
            config.get("callbacks"),
            None,
            inheritable_tags=config.get("tags"),
            local_tags=self.tags,
            inheritable_metadata={**(config.get("metadata") or {}), **self._get_ls_params(**kwargs)},
            local_metadata=self.metadata,
        )

    def _start(self, config: RunnableConfig) -> dict[str, Any]:
        return {"name": config.get("run_name") or self.get_name(), "run_id": config.get("run_id")}

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        params = super()._get_ls_params(**kwargs)
        params["ls_vector_store_provider"] = self.retriever.searcher.index.kind
        params["ls_embedding_provider"] = "ragadapt"
        params["ls_embedding_model"] = self.retriever.encoder.spec.model
        return params
