"""LangChain: the framework's own suites over every index, and what they don't ask."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumpd
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_core.vectorstores import VectorStore
from langchain_ragadapt import (
    LoRAEmbeddings,
    LoRARetriever,
    RagAdaptReranker,
    RagAdaptVectorStore,
    SQLiteRecordManager,
)
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests
from small_retriever import fit_pages
from tiny_models import sentences, write_tiny_cross_encoder

from ragadapt.collection import FittedPassages, diversify
from ragadapt.errors import (
    DimensionMismatch,
    FingerprintMismatch,
    IndexFault,
    IndexUnreachable,
    InvalidFilter,
    InvalidInput,
    ModelNotFound,
    NotARetriever,
    StoreCorrupt,
)
from ragadapt.retriever import Retriever
from ragadapt.search.context import Expand
from ragadapt.search.reranking import Rerank

KINDS = ("exact", "faiss", "qdrant-memory", "qdrant-folder", "qdrant-edge")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_pages(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="module")
def opened(folder: Path) -> Iterator[Retriever]:
    with Retriever.open(folder) as retriever:
        yield retriever


def store_of(kind: str, embedding: Embeddings, folder: Path, **settings: Any) -> RagAdaptVectorStore:
    where: dict[str, dict[str, Any]] = {
        "exact": {"kind": "exact"},
        "faiss": {"kind": "faiss"},
        "qdrant-memory": {"kind": "qdrant", "url": ":memory:"},
        "qdrant-folder": {"kind": "qdrant", "folder": folder / "store"},
        "qdrant-edge": {"kind": "qdrant-edge", "folder": folder / "store"},
    }
    return RagAdaptVectorStore(embedding, **where[kind], **settings)


# The framework's own suites


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @pytest.fixture(autouse=True, scope="class")
    def _folder(self, folder: Path) -> None:
        type(self).path = folder

    path: Path

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return LoRAEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": str(self.path)}


class TestEmbeddingsIntegration(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True, scope="class")
    def _folder(self, folder: Path) -> None:
        type(self).path = folder

    path: Path

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return LoRAEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": str(self.path)}


class RetrieverSuite(RetrieversIntegrationTests):
    kind = "exact"
    feedback = False
    opened: Retriever

    @pytest.fixture(autouse=True, scope="class")
    def _fitted(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        path = fit_pages(tmp_path_factory.mktemp(self.kind), kind=self.kind)
        with Retriever.open(path) as retriever:
            type(self).opened = retriever
            if self.feedback:
                chunk = next(iter(retriever.chunks))
                retriever.add_feedback(self.retriever_query_example, chunk.id)
            yield

    @property
    def retriever_constructor(self) -> type[LoRARetriever]:
        return LoRARetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"retriever": self.opened}

    @property
    def retriever_query_example(self) -> str:
        return "how do i open the red file"


class TestRetrieverOnFaiss(RetrieverSuite):
    kind = "faiss"


class TestRetrieverOnQdrant(RetrieverSuite):
    kind = "qdrant"


class TestRetrieverOnQdrantEdge(RetrieverSuite):
    kind = "qdrant-edge"


class TestRetrieverOnFaissWithFeedback(RetrieverSuite):
    kind = "faiss"
    feedback = True


class TestRetrieverOnQdrantWithFeedback(RetrieverSuite):
    kind = "qdrant"
    feedback = True


class VectorStoreSuite(VectorStoreIntegrationTests):
    kind = "exact"
    settings: dict[str, Any] = {}  # noqa: RUF012

    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:
        store = store_of(self.kind, self.get_embeddings(), tmp_path, **self.settings)
        yield store
        store.close()


class TestStoreOnExact(VectorStoreSuite):
    kind = "exact"


class TestStoreOnFaiss(VectorStoreSuite):
    kind = "faiss"


class TestStoreOnQdrantInMemory(VectorStoreSuite):
    kind = "qdrant-memory"


class TestStoreOnQdrantFolder(VectorStoreSuite):
    kind = "qdrant-folder"


class TestStoreOnQdrantEdge(VectorStoreSuite):
    kind = "qdrant-edge"


class TestStoreOnFaissWithFeedback(VectorStoreSuite):
    kind = "faiss"
    settings = {"feedback": True}  # noqa: RUF012


class TestStoreOnQdrantWithFeedback(VectorStoreSuite):
    kind = "qdrant-memory"
    settings = {"feedback": True}  # noqa: RUF012


# Embeddings


def test_embeddings_are_the_vectors_of_the_retrievers_own_model(folder: Path, opened: Retriever) -> None:
    embeddings = LoRAEmbeddings.from_pretrained(folder)
    texts = ["open the file", "red fox"]
    np.testing.assert_allclose(embeddings.embed_documents(texts), opened.encoder.encode_passages(texts), atol=1e-6)
    np.testing.assert_allclose(embeddings.embed_query("red"), opened.encoder.encode_queries(["red"])[0], atol=1e-6)
    assert embeddings.fingerprint == opened.fingerprint
    assert isinstance(embeddings.embed_query("red")[0], float)


async def test_async_embeddings_are_the_sync_ones(opened: Retriever) -> None:
    embeddings = LoRAEmbeddings(encoder=opened.encoder)
    assert await embeddings.aembed_documents(["a", "b"]) == embeddings.embed_documents(["a", "b"])
    assert await embeddings.aembed_query("a") == embeddings.embed_query("a")
    assert await embeddings.aembed_queries(["a", "b"]) == embeddings.embed_queries(["a", "b"])


def test_no_texts_give_no_vectors_and_a_long_text_gives_one(opened: Retriever) -> None:
    embeddings = LoRAEmbeddings(encoder=opened.encoder)
    assert embeddings.embed_documents([]) == []
    (vector,) = embeddings.embed_documents(["river stone " * 87_000])  # one megabyte
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)
    assert embeddings.embed_documents(["river stone " * 500])[0] == pytest.approx(vector, abs=1e-4)  # cut alike


@pytest.mark.parametrize("texts", ["one text", [3], [None], None])
def test_what_is_no_list_of_texts_is_refused(opened: Retriever, texts: Any) -> None:
    with pytest.raises(InvalidInput):
        LoRAEmbeddings(encoder=opened.encoder).embed_documents(texts)
    with pytest.raises(InvalidInput, match="a str is needed"):
        LoRAEmbeddings(encoder=opened.encoder).embed_query(3)  # type: ignore[arg-type]


def test_a_wrong_folder_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(NotARetriever, match=r"neither a retriever \(no ragadapt.json\)"):
        LoRAEmbeddings(model=str(tmp_path))
    with pytest.raises(NotARetriever):
        LoRARetriever.from_pretrained(tmp_path)
    with pytest.raises(ModelNotFound, match="neither a folder on this machine nor a hub name"):
        LoRAEmbeddings(model="./is/not/there")


def test_another_prompt_than_the_fitted_one_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidInput, match=r"query_prompt is 'query: ', but the model in .* was fitted with ''"):
        LoRAEmbeddings(model=str(folder), query_prompt="query: ")


def test_unknown_settings_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        LoRAEmbeddings(model=str(folder), modle="x")


def test_live_objects_do_not_pretend_to_be_serialisable(opened: Retriever) -> None:
    assert dumpd(LoRARetriever(retriever=opened))["type"] == "not_implemented"
    assert dumpd(LoRAEmbeddings(encoder=opened.encoder))["type"] == "not_implemented"


def test_documents_longer_than_the_model_reads_are_told_once_with_numbers(
    opened: Retriever, caplog: pytest.LogCaptureFixture
) -> None:
    room = opened.encoder.passage_room
    long = " ".join(["river"] * room * 3)
    store = RagAdaptVectorStore(LoRAEmbeddings(encoder=opened.encoder))
    store.add_texts(["short"])
    assert caplog.text == ""
    store.add_texts(["short", long])
    store.add_texts([long])
    (record,) = caplog.records
    assert f"1 of 2 texts are longer than the {room:,} tokens" in record.getMessage()
    assert f"to {3 * room} characters" in record.getMessage()


# The retriever


def test_retriever_gives_the_cores_hits_with_ids_and_copies_of_metadata(opened: Retriever) -> None:
    retriever = LoRARetriever(retriever=opened, k=4)
    documents = retriever.invoke("open the red file")
    hits = opened.search("open the red file", 4)
    assert [document.id for document in documents] == [hit.chunk.id for hit in hits]
    assert [document.page_content for document in documents] == [hit.chunk.text for hit in hits]
    for document, hit in zip(documents, hits, strict=True):
        assert document.metadata["source"] == hit.chunk.source
        assert document.metadata["document_id"] == hit.chunk.document_id
        assert {name: document.metadata[name] for name in hit.chunk.metadata} == hit.chunk.metadata
        document.metadata["number"] = "changed"
    assert [hit.chunk.metadata for hit in opened.search("open the red file", 4)] == [h.chunk.metadata for h in hits]
    assert "score" not in LoRARetriever(retriever=opened).invoke("file")[0].metadata
    keyed = LoRARetriever(retriever=opened, score_key="score").invoke("file", k=1)[0]
    assert keyed.metadata["score"] == pytest.approx(opened.search("file", 1)[0].score)


async def test_scores_stand_beside_the_documents(opened: Retriever) -> None:
    retriever = LoRARetriever(retriever=opened, k=4)
    pairs = retriever.search_with_scores("open the red file", search_type="dense")
    hits = opened.search("open the red file", 4, mode="dense")
    assert [document for document, _ in pairs] == retriever.invoke("open the red file", search_type="dense")
    assert [score for _, score in pairs] == pytest.approx([hit.score for hit in hits])
    assert await retriever.asearch_with_scores("open the red file", search_type="dense") == pairs
    with pytest.raises(InvalidInput, match="depth: not known here"):
        retriever.search_with_scores("file", depth=3)


def test_a_passage_that_two_questions_find_is_one_document(opened: Retriever) -> None:
    from langchain_classic.retrievers import EnsembleRetriever, MultiQueryRetriever
    from langchain_core.language_models import FakeListChatModel

    ours = LoRARetriever(retriever=opened, k=6)
    asked = ["open the red file", "the red file", "file"]
    many = MultiQueryRetriever.from_llm(
        ours, FakeListChatModel(responses=["\n".join(asked[1:])]), include_original=True
    )
    found = many.invoke(asked[0])
    wanted = {hit.chunk.id for query in asked for hit in opened.search(query, 6)}
    assert sorted(document.id for document in found) == sorted(wanted)
    assert len(wanted) < 18

    store = RagAdaptVectorStore(LoRAEmbeddings(encoder=opened.encoder), passages=FittedPassages(opened))
    words = LoRARetriever(retriever=opened, k=6, search_type="lexical")
    for retrievers in ([ours, words], [ours, store.as_retriever(search_kwargs={"k": 6})]):
        for id_key in (None, "document_id"):
            merged = EnsembleRetriever(retrievers=retrievers, weights=[0.5, 0.5], id_key=id_key).invoke(asked[0])
            assert len({document.id for document in merged}) == len(merged)
            assert all(merged.count(document) == 1 for document in merged)


@pytest.mark.parametrize(
    ("search_type", "mode"), [("hybrid", "hybrid"), ("dense", "dense"), ("lexical", "lexical"), ("similarity", "dense")]
)
def test_search_types_are_the_cores_modes(opened: Retriever, search_type: Any, mode: Any) -> None:
    wanted = [hit.chunk.id for hit in opened.search("bridge river", 5, mode=mode)]
    found = LoRARetriever(retriever=opened, search_type=search_type).invoke("bridge river")
    assert [document.id for document in found] == wanted
    found = LoRARetriever(retriever=opened).invoke("bridge river", search_type=search_type)
    assert [document.id for document in found] == wanted


async def test_mmr_chooses_among_the_best_by_difference(opened: Retriever) -> None:
    retriever = LoRARetriever(retriever=opened, k=3, search_type="mmr", fetch_k=8)
    query = "open the red file"
    hits = opened.search(query, 8)
    vector = opened.encoder.encode_queries([query])[0]
    rows = opened.searcher.index.vectors([hit.chunk.id for hit in hits])
    for balance in (0.0, 0.5, 1.0):
        found = retriever.invoke(query, lambda_mult=balance)
        assert [each.id for each in found] == [hits[at].chunk.id for at in diversify(vector, rows, 3, balance)]
    assert [each.id for each in retriever.invoke(query, k=20, fetch_k=2, lambda_mult=1.0)]  # looks at k at least
    assert len(retriever.invoke(query, k=9, fetch_k=2)) == len(LoRARetriever(retriever=opened, k=9).invoke(query))
    assert retriever.batch([query, "bridge"]) == [retriever.invoke(query), retriever.invoke("bridge")]
    assert await retriever.ainvoke(query) == retriever.invoke(query)
    store = RagAdaptVectorStore(LoRAEmbeddings(encoder=opened.encoder), passages=FittedPassages(opened))
    assert store.as_retriever(search_type="mmr", search_kwargs={"k": 3, "fetch_k": 8, "lambda_mult": 0.5}).invoke(
        query
    ) == retriever.invoke(query)


def test_a_threshold_is_needed_where_the_search_type_names_one(opened: Retriever) -> None:
    retriever = LoRARetriever(retriever=opened, k=50, search_type="similarity_score_threshold")
    hits = opened.search("file", 50, mode="dense")
    least = hits[2].confidence
    found = retriever.invoke("file", score_threshold=least)
    assert [one.id for one in found] == [hit.chunk.id for hit in hits if hit.confidence >= least]  # type: ignore[operator]
    assert 3 <= len(found) < len(hits)
    with pytest.raises(InvalidInput, match="needs a score_threshold"):
        retriever.invoke("file")
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        retriever.invoke("file", score_threshold=12.0)


@pytest.mark.parametrize("kind", ["hybrid", "dense", "lexical", "mmr"])
def test_documents_that_hardly_answer_are_left_out(opened: Retriever, kind: Any) -> None:
    retriever = LoRARetriever(retriever=opened, k=50, search_type=kind, confidence_key="sure", fetch_k=50)
    every = {one.id: one.metadata["sure"] for one in retriever.invoke("red file")}
    least = sorted(every.values())[-3]
    kept = {one.id for one in retriever.invoke("red file", min_confidence=least)}
    assert kept == {id for id, sure in every.items() if sure >= least}
    assert 3 <= len(kept) < len(every)
    narrowed = LoRARetriever(retriever=opened, k=50, search_type=kind, fetch_k=50, min_confidence=least)
    assert {one.id for one in narrowed.invoke("red file")} == kept
    assert "sure" not in narrowed.invoke("red file")[0].metadata


def test_relevance_in_a_fitted_store_is_the_probability_of_an_answer(opened: Retriever) -> None:
    store = RagAdaptVectorStore(LoRAEmbeddings(encoder=opened.encoder), passages=FittedPassages(opened))
    hits = opened.search("red file", 6)
    found = store.similarity_search_with_relevance_scores("red file", k=6)
    assert [(one.id, score) for one, score in found] == [(hit.chunk.id, hit.confidence) for hit in hits]
    settings = {"score_threshold": hits[2].confidence, "k": 6}
    narrowed = store.as_retriever(search_type="similarity_score_threshold", search_kwargs=settings)
    kept = [hit.chunk.id for hit in hits if hit.confidence >= hits[2].confidence]  # type: ignore[operator]
    assert [one.id for one in narrowed.invoke("red file")] == kept


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"search_type": "nearest"},
            "'hybrid', 'dense', 'lexical', 'similarity', 'similarity_score_threshold' or 'mmr'",
        ),
        ({"search_type": "mmr", "lambda_mult": 2}, "between 0 and 1"),
        ({"search_type": "mmr", "lambda_mult": "x"}, "between 0 and 1"),
        ({"search_type": "mmr", "lambda_mult": float("nan")}, "between 0 and 1"),
        ({"search_type": "mmr", "fetch_k": 0}, "at least one"),
        ({"search_type": "mmr", "fetch_k": "x"}, "at least one"),
    ],
)
def test_a_search_that_does_not_exist_says_what_does(opened: Retriever, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        LoRARetriever(retriever=opened).invoke("file", **settings)


async def test_a_stores_retriever_takes_langchains_words_and_ours(store: RagAdaptVectorStore) -> None:
    for mode in ("dense", "hybrid", "lexical"):
        wanted = store.similarity_search("red river", k=3, search_type=mode)
        assert store.as_retriever(search_type=mode, search_kwargs={"k": 3}).invoke("red river") == wanted
        assert store.search("red river", mode, k=3) == wanted
        assert await store.asearch("red river", mode, k=3) == wanted
    assert store.similarity_search("red river", search_type="similarity") == store.similarity_search("red river")
    assert len(store.as_retriever(search_type="mmr", search_kwargs={"k": 2, "fetch_k": 3}).invoke("red river")) == 2
    assert store.search("red river", "mmr", k=2) == store.max_marginal_relevance_search("red river", k=2)
    for call in (
        lambda: store.as_retriever(search_type="nearest"),
        lambda: store.search("red river", "nearest"),
        lambda: store.similarity_search("red river", search_type="nearest"),
    ):
        with pytest.raises(InvalidInput, match=r"similarity.*lexical|lexical.*similarity"):
            call()


def test_filter_and_threshold_hold_per_object_and_per_call(opened: Retriever) -> None:
    retriever = LoRARetriever(retriever=opened, k=50, filter={"lang": "de"})
    assert {document.metadata["lang"] for document in retriever.invoke("file")} == {"de"}
    assert {document.metadata["lang"] for document in retriever.invoke("file", filter={"lang": "en"})} == {"en"}
    dense = LoRARetriever(retriever=opened, k=50, search_type="dense")
    scores = [score for _, score in dense.search_with_scores("file")]
    middle = scores[len(scores) // 2]
    kept = dense.search_with_scores("file", score_threshold=middle)
    assert [score for _, score in kept] == [score for score in scores if score >= middle]
    assert len(
        LoRARetriever(retriever=opened, k=50, search_type="dense", score_threshold=middle).invoke("file")
    ) == len(kept)


async def test_ainvoke_takes_what_invoke_takes(opened: Retriever) -> None:
    retriever = LoRARetriever(retriever=opened)
    for kwargs in ({}, {"k": 2}, {"k": 3, "filter": {"lang": "en"}}, {"search_type": "dense"}):
        assert await retriever.ainvoke("red fox", **kwargs) == retriever.invoke("red fox", **kwargs)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"top_k": 3}, "top_k: not known here"),
        ({"k": 0}, "at least one"),
        ({"search_type": "nearest"}, "it is 'hybrid', 'dense', "),
        ({"filter": {"a": {"$near": 1}}}, r"Operator '\$near'"),
    ],
)
def test_wrong_calls_say_what_is_right(opened: Retriever, call: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        LoRARetriever(retriever=opened).invoke("red fox", **call)


def test_a_retriever_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="give an opened"):
        LoRARetriever(retriever=str(folder))
    with pytest.raises(InvalidInput, match="str is needed"):
        LoRARetriever.from_pretrained(folder).invoke(3)  # type: ignore[arg-type]


class Counting(BaseCallbackHandler):
    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[int] = []
        self.failed = 0

    def on_retriever_start(self, serialized: Any, query: str, **kwargs: Any) -> None:
        self.started.append(query)

    def on_retriever_end(self, documents: Any, **kwargs: Any) -> None:
        self.ended.append(len(documents))

    def on_retriever_error(self, error: BaseException, **kwargs: Any) -> None:
        self.failed += 1


QUERIES = ["red fox", "open the file", "bridge over the river"]
UNSEEN = ["a large tree", "cheap flight at night", "stone by the water"]  # not in the memory of recent queries


def test_batch_is_invoke_for_each_with_one_encoding_and_events_for_all(
    opened: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = LoRARetriever(retriever=opened, k=3)
    calls: list[int] = []
    encode = opened.encoder.encode_queries
    monkeypatch.setattr(opened.encoder, "encode_queries", lambda texts: calls.append(len(texts)) or encode(texts))
    seen = Counting()
    together = retriever.batch(UNSEEN, {"callbacks": [seen]})
    assert calls == [3]
    singly = [retriever.invoke(query) for query in UNSEEN]
    assert [[d.id for d in found] for found in together] == [[d.id for d in found] for found in singly]
    assert seen.started == UNSEEN
    assert seen.ended == [3, 3, 3]
    assert retriever.batch([]) == []


async def test_abatch_is_batch(opened: Retriever) -> None:
    retriever = LoRARetriever(retriever=opened, k=3)
    assert await retriever.abatch(QUERIES, k=2) == retriever.batch(QUERIES, k=2)


async def test_one_bad_question_of_a_batch_fails_alone(opened: Retriever) -> None:
    retriever, seen = LoRARetriever(retriever=opened), Counting()
    with pytest.raises(InvalidInput, match="query 1 is ' '"):
        retriever.batch(["red fox", " "], {"callbacks": [seen]})
    assert (seen.failed, len(seen.ended)) == (1, 1)
    for inputs in (["red fox", " ", "file"], ["red fox", None, "file"], ["red fox", 3, "file"]):
        for found in (
            retriever.batch(inputs, return_exceptions=True),  # type: ignore[arg-type]
            await retriever.abatch(inputs, return_exceptions=True),  # type: ignore[arg-type]
        ):
            assert isinstance(found[1], InvalidInput)
            for documents, query in ((found[0], "red fox"), (found[2], "file")):
                assert [document.id for document in documents] == [one.id for one in retriever.invoke(query)]


def test_what_is_wrong_for_all_questions_of_a_batch_fails_all(opened: Retriever) -> None:
    retriever, seen = LoRARetriever(retriever=opened), Counting()
    found = retriever.batch(["red fox", "file"], {"callbacks": [seen]}, return_exceptions=True, k=0)
    assert all(isinstance(one, InvalidInput) for one in found)
    assert seen.failed == 2


async def test_events_show_the_retriever_within_a_chain(opened: Retriever) -> None:
    prompt = ChatPromptTemplate.from_template("{context}\n\n{question}")
    model = FakeListChatModel(responses=["forty two"])
    retriever = LoRARetriever(retriever=opened, k=2)
    chain = {"context": retriever, "question": RunnablePassthrough()} | prompt | model | StrOutputParser()
    assert chain.invoke("red fox") == "forty two"
    events = [event async for event in chain.astream_events("red fox", version="v2")]
    names = [event["event"] for event in events]
    assert names.index("on_retriever_start") < names.index("on_retriever_end") < names.index("on_chat_model_stream")
    (ended,) = [event for event in events if event["event"] == "on_retriever_end"]
    assert [document.id for document in ended["data"]["output"]] == [d.id for d in retriever.invoke("red fox")]
    streamed = [event["data"]["chunk"] for event in events if event["event"] == "on_parser_stream"]
    assert "".join(streamed) == "forty two"


async def beats(seconds: float = 0.01) -> AsyncIterator[float]:
    """The time between two turns of the event loop, again and again."""
    last = time.perf_counter()
    while True:
        await asyncio.sleep(seconds)
        now = time.perf_counter()
        yield now - last
        last = now


async def longest_pause(work: Any) -> tuple[Any, float, int]:
    """The work's result, the longest pause of the loop meanwhile, and how many turns it had."""
    task = asyncio.ensure_future(work)
    longest, turns = 0.0, 0
    async for pause in beats():
        longest, turns = max(longest, pause), turns + 1
        if task.done():
            break
    return await task, longest, turns


@pytest.fixture
def slow(opened: Retriever, monkeypatch: pytest.MonkeyPatch) -> Retriever:
    """An encoder that takes 0.4 s and holds its thread all the time."""
    for name in ("encode_queries", "encode_passages"):
        encode = getattr(opened.encoder, name)

        def late(texts: Any, encode: Any = encode) -> Any:
            time.sleep(0.4)
            return encode(texts)

        monkeypatch.setattr(opened.encoder, name, late)
    return opened


async def test_the_event_loop_goes_on_while_texts_are_encoded(slow: Retriever) -> None:
    embeddings = LoRAEmbeddings(encoder=slow.encoder)
    retriever = LoRARetriever(retriever=slow)
    store = RagAdaptVectorStore(embeddings)
    works = {
        "ainvoke": lambda: retriever.ainvoke("never asked before"),
        "abatch": lambda: retriever.abatch(["nor was this", "or this"]),
        "aembed_documents": lambda: embeddings.aembed_documents(["a"]),
        "aembed_query": lambda: embeddings.aembed_query("a"),
        "aadd_texts": lambda: store.aadd_texts(["a", "b"]),
        "aadd_documents": lambda: store.aadd_documents([Document(page_content="c")]),
        "asimilarity_search": lambda: store.asimilarity_search("a"),
        "asimilarity_search_with_score": lambda: store.asimilarity_search_with_score("a"),
        "amax_marginal_relevance_search": lambda: store.amax_marginal_relevance_search("a"),
        "as_retriever": lambda: store.as_retriever().ainvoke("a"),
    }
    for name, work in works.items():
        _, pause, turns = await longest_pause(work())
        assert turns > 5, name
        assert pause < 0.3, name


def test_retriever_learns_from_feedback_and_forgets_it(tmp_path: Path) -> None:
    with Retriever.open(fit_pages(tmp_path)) as opened:
        retriever = LoRARetriever(retriever=opened, k=50, search_type="dense")
        question = "where is the invoice"
        before = [document.id for document in retriever.invoke(question)]
        key = retriever.add_feedback(question, before[-1])
        assert retriever.invoke(question, lam=0.0)[0].id == before[-1]
        assert [document.id for document in retriever.invoke(question, lam=1.0)] == before
        assert [
            d.id for d in LoRARetriever(retriever=opened, k=50, search_type="dense", lam=1).invoke(question)
        ] == before
        hits = opened.search(question, 50, mode="dense")
        assert [document.id for document in retriever.invoke(question)] == [hit.chunk.id for hit in hits]
        assert retriever.withdraw_feedback(key) == 1
        assert [document.id for document in retriever.invoke(question)] == before
        with pytest.raises(InvalidInput):
            retriever.add_feedback(question, "no such passage")


async def test_feedback_of_a_tenant_and_async_feedback(tmp_path: Path) -> None:
    with Retriever.open(fit_pages(tmp_path)) as opened:
        shared = LoRARetriever(retriever=opened, k=50, search_type="dense", lam=0.0)
        acme = LoRARetriever(retriever=opened, k=50, search_type="dense", lam=0.0, tenant="acme")
        last = str(shared.invoke("where is the invoice")[-1].id)
        await acme.aadd_feedback("where is the invoice", last)
        assert acme.invoke("where is the invoice")[0].id == last
        assert shared.invoke("where is the invoice")[-1].id == last
        assert shared.invoke("where is the invoice", tenant="acme")[0].id == last
        assert await acme.awithdraw_feedback(document_id=last) == 1
        assert acme.invoke("where is the invoice")[-1].id == last


# The vector store


TEXTS = ["a red fox sleeps", "the bridge over the river", "bread from the oven", "a red bridge"]
METADATA: list[dict[str, Any]] = [
    {"lang": "en", "n": 1, "tags": ["animal"]},
    {"lang": "en", "n": 2},
    {"lang": "de", "n": 3, "deep": {"er": True}},
    {"lang": "de", "n": 4, "tags": ["a", "b"]},
]
IDS = ["fox", "bridge", "bread", "red/bridge #1"]


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, opened: Retriever, tmp_path: Path) -> Iterator[RagAdaptVectorStore]:
    store = store_of(request.param, LoRAEmbeddings(encoder=opened.encoder), tmp_path, feedback=True)
    store.add_texts(TEXTS, METADATA, ids=IDS)
    yield store
    store.close()


def test_store_scores_are_the_cosines_and_every_index_agrees(store: RagAdaptVectorStore, opened: Retriever) -> None:
    vectors = opened.encoder.encode_passages(TEXTS)
    expected = dict(zip(IDS, vectors @ opened.encoder.encode_queries(["red river"])[0]))
    found = store.similarity_search_with_score("red river", k=10)
    assert [document.id for document, _ in found] == sorted(expected, key=lambda id: -expected[id])
    for document, score in found:
        assert score == pytest.approx(expected[str(document.id)], abs=1e-4)
        at = IDS.index(str(document.id))
        assert document.page_content == TEXTS[at]
        assert document.metadata == METADATA[at]
    by_vector = store.similarity_search_by_vector(store.embeddings.embed_query("red river"), k=10)
    assert by_vector == [document for document, _ in found]


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"lang": "en"}, {"fox", "bridge"}),
        ({"n": {"$gte": 3}}, {"bread", "red/bridge #1"}),
        ({"$or": [{"n": 1}, {"deep.er": True}]}, {"fox", "bread"}),
        ({"tags": {"$all": ["a", "b"]}}, {"red/bridge #1"}),
        ({"tags": {"$exists": False}, "lang": {"$ne": "de"}}, {"bridge"}),
        ({"lang": {"$nin": ["de", "en"]}}, set()),
        ({}, set(IDS)),
    ],
)
@pytest.mark.parametrize("search_type", ["dense", "hybrid"])
def test_store_filters_mean_the_same_everywhere(
    store: RagAdaptVectorStore, filter: Any, expected: set[str], search_type: str
) -> None:
    found = store.similarity_search("red river", k=10, filter=filter, search_type=search_type)
    assert {document.id for document in found} == expected


def test_native_qdrant_filters_reach_qdrant_and_are_refused_elsewhere(opened: Retriever, tmp_path: Path) -> None:
    from qdrant_client import models

    native = models.Filter(must=[models.FieldCondition(key="metadata.lang", match=models.MatchValue(value="en"))])
    embeddings = LoRAEmbeddings(encoder=opened.encoder)
    qdrant = store_of("qdrant-memory", embeddings, tmp_path)
    qdrant.add_texts(TEXTS, METADATA, ids=IDS)
    assert {d.id for d in qdrant.similarity_search("red", k=9, filter=native)} == {"fox", "bridge"}
    assert {d.id for d in qdrant.similarity_search("red", k=9, filter=native, search_type="hybrid")} == {
        "fox",
        "bridge",
    }
    exact = store_of("exact", embeddings, tmp_path)
    exact.add_texts(TEXTS, METADATA, ids=IDS)
    with pytest.raises(InvalidFilter, match="Only an index of kind qdrant"):
        exact.similarity_search("red", filter=native)


def test_store_finds_words_when_asked_for_hybrid_or_lexical_search(store: RagAdaptVectorStore) -> None:
    lexical = store.similarity_search_with_score("oven bread", k=4, search_type="lexical")
    assert lexical[0][0].id == "bread"
    assert store.similarity_search("oven bread", k=1, search_type="hybrid", weight=0.0)[0].id == "bread"
    dense = [d.id for d in store.similarity_search("oven bread", k=4)]
    assert [d.id for d in store.similarity_search("oven bread", k=4, search_type="hybrid", weight=1.0)] == dense
    store.add_texts(["a cloud of stone"], ids=["cloud"])  # words are found at once
    assert store.similarity_search("cloud", k=1, search_type="lexical")[0].id == "cloud"
    store.delete(["cloud"])
    assert "cloud" not in {d.id for d in store.similarity_search("cloud", k=9, search_type="hybrid")}


def test_mmr_is_the_textbook_rule(store: RagAdaptVectorStore, opened: Retriever) -> None:
    vectors = opened.encoder.encode_passages(TEXTS)
    query = opened.encoder.encode_queries(["red"])[0]
    relevance, chosen = vectors @ query, list[int]()
    while len(chosen) < 3:
        value = {
            row: 0.4 * relevance[row] - 0.6 * max((vectors[row] @ vectors[other] for other in chosen), default=-np.inf)
            if chosen
            else relevance[row]
            for row in range(4)
            if row not in chosen
        }
        chosen.append(max(value, key=lambda row: value[row]))
    found = store.max_marginal_relevance_search("red", k=3, fetch_k=4, lambda_mult=0.4)
    assert [document.id for document in found] == [IDS[row] for row in chosen]
    assert [d.id for d in store.max_marginal_relevance_search("red", k=4, fetch_k=4, lambda_mult=1.0)] == [
        d.id for d in store.similarity_search("red", k=4)
    ]
    assert store.max_marginal_relevance_search("red", k=2, filter={"n": 99}) == []
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        store.max_marginal_relevance_search("red", lambda_mult=3)


def test_relevance_scores_lie_between_0_and_1(store: RagAdaptVectorStore) -> None:
    found = store.similarity_search_with_relevance_scores("red river", k=4)
    plain = store.similarity_search_with_score("red river", k=4)
    assert [score for _, score in found] == [min(1.0, max(0.0, score)) for _, score in plain]
    least = plain[1][1]
    threshold = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": float(least), "k": 4}
    )
    assert [d.id for d in threshold.invoke("red river")] == [d.id for d, score in plain if score >= least]


def test_feedback_changes_search_and_taking_it_back_restores_it(store: RagAdaptVectorStore) -> None:
    before = store.similarity_search_with_score("loaf for breakfast", k=4)
    last = str(before[-1][0].id)
    key = store.add_feedback("loaf for breakfast", last)
    scores = {d.id: score for d, score in before}
    after = {d.id: score for d, score in store.similarity_search_with_score("loaf for breakfast", k=4, lam=0.5)}
    assert after[last] == pytest.approx(0.5 * scores[last] + 0.5, abs=1e-4)  # half of the row is the query itself
    assert {id: after[id] for id in scores if id != last} == {
        id: pytest.approx(score) for id, score in scores.items() if id != last
    }
    assert store.similarity_search("loaf for breakfast", k=1, lam=0.0)[0].id == last
    off = store.similarity_search_with_score("loaf for breakfast", k=4, lam=1.0)
    assert [(d.id, s) for d, s in off] == [(d.id, s) for d, s in before]
    assert store.withdraw_feedback(key) == 1
    again = store.similarity_search_with_score("loaf for breakfast", k=4)
    assert [(d.id, s) for d, s in again] == [(d.id, s) for d, s in before]
    with pytest.raises(InvalidInput, match="no passage 'nowhere'"):
        store.add_feedback("x", "nowhere")


def test_feedback_of_a_tenant_is_seen_by_that_tenant_alone(store: RagAdaptVectorStore) -> None:
    last = str(store.similarity_search("loaf", k=4)[-1].id)
    store.add_feedback("loaf", last, tenant="acme")
    assert store.similarity_search("loaf", k=4, tenant="acme", lam=0.0)[0].id == last
    assert store.similarity_search("loaf", k=4, lam=0.0)[-1].id == last
    assert store.similarity_search("loaf", k=4, tenant="other", lam=0.0)[-1].id == last


def test_feedback_sleeps_while_a_document_is_replaced_or_removed(store: RagAdaptVectorStore) -> None:
    store.add_feedback("loaf", "bread")
    assert store.similarity_search("loaf", k=1, lam=0.0)[0].id == "bread"
    store.add_texts(["the price of flour"], ids=["bread"])
    plain = [document.id for document in store.similarity_search("loaf", k=9, lam=1.0)]
    assert [document.id for document in store.similarity_search("loaf", k=9, lam=0.0)] == plain
    store.delete(["bread"])
    assert "bread" not in {d.id for d in store.similarity_search("loaf", k=9)}
    store.add_texts(TEXTS[2:3], ids=["bread"])
    assert store.similarity_search("loaf", k=1, lam=0.0)[0].id == "bread"


def test_a_store_without_feedback_says_how_to_have_it(opened: Retriever) -> None:
    store = RagAdaptVectorStore(LoRAEmbeddings(encoder=opened.encoder))
    with pytest.raises(InvalidInput, match="Open it with feedback=True"):
        store.add_feedback("x", "y")


def test_saving_and_loading_keeps_documents_scores_and_feedback(opened: Retriever, tmp_path: Path) -> None:
    embeddings = LoRAEmbeddings(encoder=opened.encoder)
    for kind in ("exact", "faiss", "qdrant-edge"):
        store = RagAdaptVectorStore(embeddings, kind=kind, feedback=True)
        store.add_texts(TEXTS, METADATA, ids=IDS)
        store.add_feedback("loaf", "bread")
        before = store.similarity_search_with_score("loaf", k=4)
        store.save_local(tmp_path / kind)
        store.close()
        again = RagAdaptVectorStore.load_local(tmp_path / kind, embeddings, feedback=True)
        assert [(d.id, d.metadata, s) for d, s in again.similarity_search_with_score("loaf", k=4)] == [
            (d.id, d.metadata, pytest.approx(s)) for d, s in before
        ]
        again.close()
        assert not [path for path in (tmp_path / kind).rglob("*") if path.suffix in (".pkl", ".pickle")]
    with pytest.raises(InvalidInput, match=r"no index\.json"):
        RagAdaptVectorStore.load_local(tmp_path, embeddings)


def test_a_store_refuses_the_wrong_encoder_and_says_what_differs(
    opened: Retriever, folder: Path, tmp_path: Path
) -> None:
    base = str(next(folder.parent.glob("base/model")))
    plain = LoRAEmbeddings(model=base)
    prompted = LoRAEmbeddings(model=base, query_prompt="query: ")
    store = RagAdaptVectorStore(plain, kind="exact", folder=tmp_path / "store")
    store.add_texts(TEXTS)
    store.save_local()
    with pytest.raises(FingerprintMismatch, match="query prompt was '', is 'query: '"):
        RagAdaptVectorStore.load_local(tmp_path / "store", prompted)
    with pytest.raises(DimensionMismatch, match="32-d"):
        RagAdaptVectorStore.load_local(tmp_path / "store", DeterministicFakeEmbedding(size=6), fingerprint="other")
    with pytest.raises(DimensionMismatch):
        store.similarity_search_by_vector([1.0, 2.0])


@pytest.mark.parametrize(
    ("texts", "metadata", "ids", "reason"),
    [
        ("one text", None, None, "texts is one string"),
        (["a", "b"], [{}], None, "must be one each"),
        (["a"], None, ["x", "y"], "must be one each"),
        (["a"], [{"when": object()}], None, "not a JSON object"),
        (["a"], [{"_text": "mine"}], None, "Rename it"),
    ],
)
def test_what_cannot_be_added_is_refused_and_nothing_changes(
    opened: Retriever, texts: Any, metadata: Any, ids: Any, reason: str
) -> None:
    store = RagAdaptVectorStore(LoRAEmbeddings(encoder=opened.encoder))
    with pytest.raises(InvalidInput, match=reason):
        store.add_texts(texts, metadata, ids=ids)
    assert len(store) == 0


def test_adding_nothing_and_searching_an_empty_store_is_fine(opened: Retriever) -> None:
    store = RagAdaptVectorStore(LoRAEmbeddings(encoder=opened.encoder))
    assert store.add_texts([]) == []
    for search_type in ("dense", "hybrid", "lexical"):
        assert store.similarity_search("anything", search_type=search_type) == []
    with pytest.raises(InvalidInput, match="embedding is str"):
        RagAdaptVectorStore("model")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="colour: not known here"):
        store.similarity_search("x", colour="red")


def test_a_server_that_does_not_answer_is_named_without_its_key(
    opened: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragadapt.index.qdrant.time.sleep", lambda seconds: None)
    with pytest.raises(
        IndexUnreachable, match=r"Qdrant at http://127\.0\.0\.1:9 does not answer after 4 tries"
    ) as found:
        RagAdaptVectorStore(
            LoRAEmbeddings(encoder=opened.encoder),
            kind="qdrant", url="http://127.0.0.1:9", api_key="secret-key", timeout_seconds=1,
        )  # fmt: skip
    assert "secret" not in str(found.value)


@pytest.mark.parametrize(
    ("width", "distance", "error", "reason"),
    [(7, "Dot", DimensionMismatch, "holds 7-d vectors"), (32, "Cosine", IndexFault, "compares by Cosine")],
)
def test_a_collection_of_another_width_or_distance_is_refused(
    opened: Retriever, tmp_path: Path, width: int, distance: str, error: type[Exception], reason: str
) -> None:
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(tmp_path))
    client.create_collection(
        "ragadapt", vectors_config=models.VectorParams(size=width, distance=models.Distance(distance))
    )
    client.close()
    with pytest.raises(error, match=reason):
        RagAdaptVectorStore(LoRAEmbeddings(encoder=opened.encoder), kind="qdrant", folder=tmp_path)


def test_delete_without_ids_removes_all(store: RagAdaptVectorStore) -> None:
    assert store.delete() is True
    assert len(store) == 0
    assert store.delete(["not there"]) is True


def test_from_texts_and_from_documents_make_stores(opened: Retriever) -> None:
    embeddings = LoRAEmbeddings(encoder=opened.encoder)
    store = RagAdaptVectorStore.from_texts(TEXTS, embeddings, METADATA, ids=IDS, kind="faiss")
    assert store.get_by_ids(["bread"])[0].metadata == METADATA[2]
    documents = [Document(id="x", page_content="a red fox"), Document(page_content="a stone")]
    other = RagAdaptVectorStore.from_documents(documents, embeddings)
    assert len(other) == 2
    assert other.get_by_ids(["x"])[0].page_content == "a red fox"


def test_store_over_a_fitted_retriever_searches_as_the_retriever_does(folder: Path, opened: Retriever) -> None:
    store = RagAdaptVectorStore.from_pretrained(folder)
    expected = LoRARetriever(retriever=opened, k=4).invoke("open the red file")
    assert store.similarity_search("open the red file", k=4) == expected
    assert store.as_retriever(search_kwargs={"k": 4}).invoke("open the red file") == expected
    with pytest.raises(InvalidInput, match="come from `ragadapt fit`"):
        store.add_texts(["x"])
    diverse = store.max_marginal_relevance_search("open the red file", k=3, fetch_k=8)
    assert len({document.id for document in diverse}) == 3
    store.close()


def test_embeddings_that_ragadapt_never_trained_get_feedback_too(tmp_path: Path) -> None:
    foreign = DeterministicFakeEmbedding(size=24)
    store = RagAdaptVectorStore(foreign, kind="faiss", feedback=tmp_path / "clicks.sqlite")
    store.add_texts(TEXTS, METADATA, ids=IDS)
    last = str(store.similarity_search("loaf", k=4)[-1].id)
    store.add_feedback("loaf", last)
    assert store.similarity_search("loaf", k=1, lam=0.0)[0].id == last
    store.close()
    again = RagAdaptVectorStore(foreign, kind="faiss", feedback=tmp_path / "clicks.sqlite")
    again.add_texts(TEXTS, METADATA, ids=IDS)
    assert again.similarity_search("loaf", k=1, lam=0.0)[0].id == last


# Indexing


def documents(*pairs: tuple[str, str]) -> list[Document]:
    return [Document(page_content=text, metadata={"source": source}) for text, source in pairs]


def test_index_adds_skips_updates_and_deletes(opened: Retriever, tmp_path: Path) -> None:
    for manager in (InMemoryRecordManager("docs"), SQLiteRecordManager("docs", tmp_path / "records.sqlite")):
        store = RagAdaptVectorStore(LoRAEmbeddings(encoder=opened.encoder))

        def run(docs: list[Document], manager: Any = manager, store: Any = store, **settings: Any) -> tuple[int, ...]:
            values = {"cleanup": "incremental", "source_id_key": "source", "key_encoder": "sha256", **settings}
            result = index(docs, manager, store, **values)
            return tuple(result[name] for name in ("num_added", "num_skipped", "num_updated", "num_deleted"))

        assert run(documents(("one", "a"), ("two", "b"))) == (2, 0, 0, 0)
        assert run(documents(("one", "a"), ("two", "b"))) == (0, 2, 0, 0)
        assert run(documents(("one changed", "a"), ("two", "b"))) == (1, 1, 0, 1)
        assert run(documents(("one changed", "a"), ("two", "b")), force_update=True) == (0, 0, 2, 0)
        assert sorted(d.page_content for d in store.get_by_ids(store.passages.ids())) == ["one changed", "two"]
        assert run(documents(("two", "b")), cleanup="full") == (0, 1, 0, 1)
        assert len(store) == 1


async def test_aindex_counts_like_index_and_records_outlive_the_process(opened: Retriever, tmp_path: Path) -> None:
    store = RagAdaptVectorStore(LoRAEmbeddings(encoder=opened.encoder))
    manager = SQLiteRecordManager("docs", tmp_path / "records.sqlite")

    async def run(docs: list[Document], manager: SQLiteRecordManager) -> Any:
        return await aindex(docs, manager, store, cleanup="full", key_encoder="sha256")

    assert (await run(documents(("one", "a"), ("two", "b")), manager))["num_added"] == 2
    manager.close()
    again = SQLiteRecordManager("docs", tmp_path / "records.sqlite")
    result = await run(documents(("one", "a"), ("three", "c")), again)
    assert result == {"num_added": 1, "num_updated": 0, "num_skipped": 1, "num_deleted": 1}


def documented(page: str, mark: str) -> str:
    """The one snippet of a page that holds a word."""
    text = (Path(__file__).resolve().parents[1] / "docs" / page).read_text(encoding="utf-8")
    (snippet,) = [block for block in re.findall(r"^```python\n(.*?)^```", text, re.S | re.M) if mark in block]
    return str(snippet)


def test_the_documented_indexing_holds_over_sessions(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "retriever")
    monkeypatch.chdir(tmp_path)
    snippet = documented("langchain.md", "SQLiteRecordManager(")
    saved = "store.save_local()\n"
    assert snippet.endswith(saved)

    def session(code: str) -> tuple[str, list[str]]:
        names: dict[str, Any] = {}
        exec(compile(code, "snippet", "exec"), names)
        store = RagAdaptVectorStore.load_local("handbook", names["embeddings"]) if code.endswith(saved) else None
        texts = [found.page_content for found in store.similarity_search("money back")] if store is not None else []
        names["records"].close()
        return capsys.readouterr().out, texts

    counts = "'num_added': {}, 'num_updated': 0, 'num_skipped': {}, 'num_deleted': {}"
    refunds = ["Refunds within 30 days"]
    said, _ = session(snippet.removesuffix(saved))  # ended before the store was saved
    assert counts.format(1, 0, 0) in said
    for added, skipped in ((1, 0), (0, 1)):
        said, texts = session(snippet)
        assert (counts.format(added, skipped, 0) in said, texts) == (True, refunds)
    other = snippet.replace("Refunds within 30 days", "Invoices come monthly")
    said, _ = session(other.removesuffix(saved))  # the deletion, too, was not saved
    assert counts.format(1, 0, 1) in said
    said, texts = session(other)
    assert (counts.format(1, 0, 0) in said, texts) == (True, ["Invoices come monthly"])
    shutil.rmtree("handbook/", ignore_errors=False)
    said, texts = session(snippet)
    assert (counts.format(1, 0, 0) in said, texts) == (True, refunds)
    for file in Path("handbook").iterdir():
        if not file.name.startswith("records"):
            file.unlink()
    said, texts = session(snippet)  # the store alone was lost
    assert (counts.format(1, 0, 0) in said, texts) == (True, refunds)


def test_records_keep_namespaces_groups_and_times_apart(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    one, other = SQLiteRecordManager("one", path), SQLiteRecordManager("other", path)
    keys = [f"k{number}" for number in range(1200)]
    one.update(keys[:600], group_ids=["a"] * 600)
    between = one.get_time()
    one.update(keys[600:], group_ids=["b"] * 600)
    assert one.exists(["k0", "nowhere", "k1199"]) == [True, False, True]
    assert other.exists(["k0"]) == [False]
    assert one.list_keys(before=between) == sorted(keys[:600])
    assert set(one.list_keys(after=between)) == set(keys[600:])
    assert set(one.list_keys(group_ids=["b"])) == set(keys[600:])
    assert len(one.list_keys(group_ids=["a", "b"], limit=700)) == 700
    assert one.list_keys(limit=3) == sorted(keys[:600])[:3]
    one.delete_keys(keys[:1199])
    assert one.list_keys() == ["k1199"]
    with pytest.raises(InvalidInput, match="in the future"):
        one.update(["x"], time_at_least=one.get_time() + 100)
    with pytest.raises(InvalidInput, match="must be one each"):
        one.update(["x"], group_ids=["a", "b"])


def test_time_never_runs_backwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = SQLiteRecordManager("one", tmp_path / "records.sqlite")
    manager.update(["a"])
    now = manager.get_time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    assert manager.get_time() >= now
    manager.update(["b"], time_at_least=now)
    assert manager.list_keys(before=now) == ["a"]


def test_a_file_that_holds_no_records_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("these are notes, not a database, and rather long ones at that" * 10)
    with pytest.raises(StoreCorrupt, match=r"notes\.txt holds no records"):
        SQLiteRecordManager("one", tmp_path / "notes.txt")
    with pytest.raises(InvalidInput, match="There is no folder"):
        SQLiteRecordManager("one", tmp_path / "missing" / "records.sqlite")


def test_payloads_hold_json_only(opened: Retriever) -> None:
    store = RagAdaptVectorStore(LoRAEmbeddings(encoder=opened.encoder))
    store.add_texts(TEXTS, METADATA, ids=IDS)
    json.dumps(store.passages.index.payloads(IDS))  # type: ignore[attr-defined]


# Re-ranking


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> RagAdaptReranker:
    folder = write_tiny_cross_encoder(tmp_path_factory.mktemp("reranker") / "model")
    return RagAdaptReranker.from_pretrained(folder, device="cpu", precision="float32", top_n=3)


QUESTION = "how do i open a file"


def test_reranker_orders_any_documents_by_the_models_score(reranker: RagAdaptReranker) -> None:
    documents = [Document(page_content=text, metadata={"n": at}) for at, text in enumerate(sentences(12, words=20))]
    scores = reranker.reranker.scores(QUESTION, [document.page_content for document in documents])
    found = reranker.compress_documents(documents, QUESTION)
    assert [document.metadata["n"] for document in found] == np.argsort(-scores, kind="stable")[:3].tolist()
    assert [document.metadata["relevance_score"] for document in found] == pytest.approx(sorted(scores)[::-1][:3])
    assert all("relevance_score" not in document.metadata for document in documents)
    assert asyncio.run(reranker.acompress_documents(documents, QUESTION)) == found
    assert reranker.compress_documents([], QUESTION) == []
    every = reranker.model_copy(update={"top_n": None, "score_key": None})
    assert len(every.compress_documents(documents, QUESTION)) == 12
    middle = float(np.median(scores))
    cut = reranker.model_copy(update={"top_n": None, "score_threshold": middle})
    assert len(cut.compress_documents(documents, QUESTION)) == 6


def test_reranker_counts_beside_the_order_that_documents_came_in(reranker: RagAdaptReranker) -> None:
    documents = [Document(page_content=text, metadata={"n": at}) for at, text in enumerate(sentences(6, words=20))]
    first = reranker.model_copy(update={"weight": 0.0, "top_n": None}).compress_documents(documents, QUESTION)
    assert [document.metadata["n"] for document in first] == list(range(6))
    half = reranker.model_copy(update={"weight": 0.5, "top_n": None}).compress_documents(documents, QUESTION)
    logits = reranker.reranker.logits(QUESTION, [document.page_content for document in documents])
    ranks = 1 / (60 + np.arange(1, 7))
    mixed = sum(0.5 * (side - side.mean()) / side.std() for side in (ranks, logits))
    assert [document.metadata["n"] for document in half] == np.argsort(-mixed, kind="stable").tolist()


def test_reranker_works_in_a_chain_behind_another_retriever(opened: Retriever, reranker: RagAdaptReranker) -> None:
    from langchain_core.runnables import RunnableLambda

    retriever = LoRARetriever(retriever=opened, k=8, search_type="lexical")
    chain = {"documents": retriever, "query": RunnablePassthrough()} | RunnableLambda(
        lambda given: reranker.compress_documents(given["documents"], given["query"])
    )
    found = chain.invoke("old stone bridge")
    assert found == reranker.compress_documents(retriever.invoke("old stone bridge"), "old stone bridge")
    assert len(found) == 3


def test_retriever_reranks_where_it_is_asked_to(opened: Retriever, folder: Path, tmp_path: Path) -> None:
    model = write_tiny_cross_encoder(tmp_path / "model")
    asked = Rerank(model=model, weight=1.0, depth=10)
    retriever = LoRARetriever(retriever=opened, k=4, rerank=asked)
    expected = [hit.chunk.id for hit in opened.search("old stone bridge", k=4, rerank=asked)]
    assert [document.id for document in retriever.invoke("old stone bridge")] == expected
    assert [document.id for document in retriever.batch(["old stone bridge"])[0]] == expected
    plain = [hit.chunk.id for hit in opened.search("old stone bridge", k=4)]
    assert [document.id for document in retriever.invoke("old stone bridge", rerank=False)] == plain != expected
    with pytest.raises(InvalidInput, match="has no re-ranker"):
        LoRARetriever(retriever=opened, rerank=True).invoke("old stone bridge")
    with pytest.raises(InvalidInput, match="does not go with search_type 'mmr'"):
        retriever.invoke("old stone bridge", search_type="mmr")
    with pytest.raises(InvalidInput, match="goes with mode 'hybrid'"):
        retriever.invoke("old stone bridge", search_type="dense")


def test_reranker_refuses_what_it_cannot_read(reranker: RagAdaptReranker, folder: Path) -> None:
    with pytest.raises(InvalidInput, match="at least one word"):
        reranker.compress_documents([Document(page_content="a")], " ")
    with pytest.raises(InvalidInput, match=r"documents\[0\] is 'a'"):
        reranker.compress_documents(["a"], QUESTION)  # type: ignore[list-item]
    with pytest.raises(InvalidInput, match="reranker is str"):
        RagAdaptReranker(reranker="minilm")
    with pytest.raises(NotARetriever, match="has no re-ranker"):
        RagAdaptReranker.from_pretrained(folder)
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        RagAdaptReranker(reranker=reranker.reranker, top_n=0)


# What the language model is given


def page_of(opened: Retriever, document_id: str) -> str:
    return "".join(chunk.before + chunk.text for chunk in opened.chunks.of_document(document_id)).strip()


def test_documents_come_with_what_stands_around_them(opened: Retriever) -> None:
    query = next(iter(opened.chunks)).text
    plain = LoRARetriever(retriever=opened, k=2).invoke(query)
    wide = LoRARetriever(retriever=opened, k=2, expand="document").invoke(query)
    first = plain[0].metadata["document_id"]
    assert wide[0].id == plain[0].id
    assert wide[0].page_content == page_of(opened, first)
    assert wide[0].metadata["passages"] == [chunk.id for chunk in opened.chunks.of_document(first)]
    assert {name: wide[0].metadata[name] for name in plain[0].metadata} == plain[0].metadata
    retriever = LoRARetriever(retriever=opened, k=2)
    for call in ({"expand": "document"}, {"expand": Expand("document", 2048), "search_type": "mmr"}):
        [document, *_] = retriever.invoke(query, **call)
        assert document.page_content == page_of(opened, document.metadata["document_id"])
    assert len(retriever.invoke(query, k=9, max_per_document=1, fold="none")) == 9
    with pytest.raises(InvalidInput, match="expand"):
        retriever.invoke(query, expand="paragraph")


def test_a_store_of_a_fitted_retriever_expands_and_others_say_why_they_cannot(folder: Path, opened: Retriever) -> None:
    store = RagAdaptVectorStore.from_pretrained(folder)
    query = next(iter(opened.chunks)).text
    for found in (
        store.similarity_search(query, 1, expand="document"),
        store.max_marginal_relevance_search(query, 1, expand="document"),
        store.as_retriever(search_kwargs={"k": 1, "expand": "document"}).invoke(query),
    ):
        assert found[0].page_content == page_of(opened, found[0].metadata["document_id"])
    own = store_of("exact", LoRAEmbeddings(encoder=opened.encoder), folder)
    own.add_texts(["some text"])
    with pytest.raises(InvalidInput, match="from_pretrained"):
        own.similarity_search(query, expand="section")
