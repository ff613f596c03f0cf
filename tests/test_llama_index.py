"""LlamaIndex: class hierarchy, behaviour over every index, pipelines, and what the framework's users rely on."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import Document, MockEmbedding, QueryBundle, StorageContext, VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.indices.vector_store import VectorIndexRetriever
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn
from llama_index_ragadapt import (
    LoRAEmbedding,
    LoRAFinetuneEngine,
    LoRARetriever,
    RagAdaptRerank,
    RagAdaptVectorStore,
)
from llama_index_ragadapt.filters import to_filter
from small_retriever import fit_pages
from tiny_models import sentences, write_tiny_cross_encoder, write_tiny_model

from ragadapt.collection import FittedPassages
from ragadapt.config import FitConfig
from ragadapt.errors import (
    DimensionMismatch,
    FingerprintMismatch,
    InvalidConfiguration,
    InvalidFilter,
    InvalidInput,
    InvalidLabels,
    NotARetriever,
)
from ragadapt.index import compile_filter
from ragadapt.retriever import Retriever
from ragadapt.search.reranking import Rerank

KINDS = ("exact", "faiss", "qdrant-memory", "qdrant-folder", "qdrant-edge")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_pages(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="module")
def opened(folder: Path) -> Iterator[Retriever]:
    with Retriever.open(folder) as retriever:
        yield retriever


@pytest.fixture(scope="module")
def embed_model(opened: Retriever) -> LoRAEmbedding:
    return LoRAEmbedding(encoder=opened.encoder)


def store_of(kind: str, folder: Path, **settings: Any) -> RagAdaptVectorStore:
    where: dict[str, dict[str, Any]] = {
        "exact": {"kind": "exact"},
        "faiss": {"kind": "faiss"},
        "qdrant-memory": {"kind": "qdrant", "url": ":memory:"},
        "qdrant-folder": {"kind": "qdrant", "folder": folder / "store"},
        "qdrant-edge": {"kind": "qdrant-edge", "folder": folder / "store"},
    }
    return RagAdaptVectorStore(**where[kind], **settings)


# Class hierarchy


def bases(kind: type) -> set[str]:
    return {base.__name__ for base in kind.__mro__}


def test_classes_are_what_the_framework_looks_for() -> None:
    assert BaseEmbedding.__name__ in bases(LoRAEmbedding)
    assert BaseRetriever.__name__ in bases(LoRARetriever)
    assert BasePydanticVectorStore.__name__ in bases(RagAdaptVectorStore)
    assert LoRAEmbedding.class_name() == "LoRAEmbedding"
    assert RagAdaptVectorStore.class_name() == "RagAdaptVectorStore"


def test_the_namespaces_of_llama_index_hold_the_same_classes() -> None:
    import llama_index.embeddings.ragadapt as embeddings
    import llama_index.retrievers.ragadapt as retrievers

    assert embeddings.LoRAEmbedding is LoRAEmbedding
    assert retrievers.LoRARetriever is LoRARetriever


def test_no_part_of_the_shared_namespace_has_an_init_file() -> None:
    root = Path(__file__).resolve().parents[1] / "integrations" / "llama_index"
    assert not [path for path in (root, root / "embeddings", root / "retrievers") if (path / "__init__.py").exists()]


# The embedding


def test_embedding_is_the_retrievers_own_model(folder: Path, opened: Retriever) -> None:
    model = LoRAEmbedding.from_pretrained(folder, embed_batch_size=2)
    texts = ["open the file", "red fox", "bridge"]
    np.testing.assert_allclose(model.get_text_embedding_batch(texts), opened.encoder.encode_passages(texts), atol=1e-6)
    np.testing.assert_allclose(model.get_text_embedding("red"), opened.encoder.encode_passages(["red"])[0], atol=1e-6)
    np.testing.assert_allclose(model.get_query_embedding("red"), opened.encoder.encode_queries(["red"])[0], atol=1e-6)
    assert model.revision == opened.fingerprint
    assert model.dim == 32
    assert model.get_text_embedding_batch([]) == []


async def test_async_embeddings_are_the_sync_ones(embed_model: LoRAEmbedding) -> None:
    assert await embed_model.aget_query_embedding("a") == embed_model.get_query_embedding("a")
    assert await embed_model.aget_text_embedding("a") == embed_model.get_text_embedding("a")
    texts = ["a", "b", "c"]
    assert await embed_model.aget_text_embedding_batch(texts) == embed_model.get_text_embedding_batch(texts)


def test_embedding_works_as_a_transformation(embed_model: LoRAEmbedding) -> None:
    nodes = embed_model([TextNode(text="a red fox"), TextNode(text="bread")])
    assert nodes[1].embedding == embed_model.get_text_embedding("bread")


def test_two_revisions_never_share_a_cache_key(folder: Path) -> None:
    base = str(folder.parent / "base" / "model")
    one, other = LoRAEmbedding(base), LoRAEmbedding(base, query_prompt="query: ")
    renamed = LoRAEmbedding("one name", encoder=one.encoder), LoRAEmbedding("one name", encoder=other.encoder)
    nodes = [TextNode(id_="a", text="a")]
    assert get_transformation_hash(nodes, one) != get_transformation_hash(nodes, other)
    assert get_transformation_hash(nodes, renamed[0]) != get_transformation_hash(nodes, renamed[1])
    assert get_transformation_hash(nodes, one) == get_transformation_hash(nodes, LoRAEmbedding(base))


def test_a_cache_keyed_by_text_alone_is_refused(opened: Retriever) -> None:
    with pytest.raises(InvalidInput, match="keyed by the text alone"):
        LoRAEmbedding(encoder=opened.encoder, embeddings_cache=SimpleKVStore())


def test_embedding_comes_back_from_its_dict_and_notices_another_model(folder: Path) -> None:
    base = str(folder.parent / "base" / "model")
    one = LoRAEmbedding(base)
    again = LoRAEmbedding.from_dict(one.to_dict())
    assert again.get_query_embedding("red") == one.get_query_embedding("red")
    with pytest.raises(FingerprintMismatch, match="fitted again"):
        LoRAEmbedding.from_dict({**one.to_dict(), "query_prompt": "query: "})
    payload = one.to_payload()
    assert payload == {
        "class_name": "LoRAEmbedding", "model_name": base, "embed_batch_size": 10, "revision": one.revision,
    }  # fmt: skip


def test_wrong_folders_prompts_and_texts_are_refused(tmp_path: Path, folder: Path, embed_model: LoRAEmbedding) -> None:
    with pytest.raises(NotARetriever):
        LoRAEmbedding(tmp_path)
    with pytest.raises(NotARetriever):
        LoRARetriever.from_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match="was fitted with ''"):
        LoRAEmbedding(folder, query_prompt="query: ")
    with pytest.raises(InvalidInput, match="a str is needed"):
        embed_model._get_query_embedding(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="a str is needed"):
        embed_model._get_text_embeddings([3])  # type: ignore[list-item]


# The retriever


def test_retriever_gives_the_cores_hits_as_nodes(opened: Retriever) -> None:
    found = LoRARetriever(opened, 4).retrieve("open the red file")
    hits = opened.search("open the red file", 4)
    assert [(node.node_id, node.score) for node in found] == [(hit.chunk.id, pytest.approx(hit.score)) for hit in hits]
    for node, hit in zip(found, hits, strict=True):
        assert node.node.get_content(metadata_mode=MetadataMode.NONE) == hit.chunk.text
        assert node.node.ref_doc_id == hit.chunk.document_id
        assert {name: node.metadata[name] for name in hit.chunk.metadata} == hit.chunk.metadata
        assert node.metadata["source"] == hit.chunk.source


async def test_aretrieve_and_many_are_retrieve(opened: Retriever) -> None:
    retriever = LoRARetriever(opened, 3)
    queries = ["red fox", "bridge"]
    singly = [retriever.retrieve(query) for query in queries]
    assert [await retriever.aretrieve(query) for query in queries] == singly
    for together in (retriever.retrieve_many(queries), await retriever.aretrieve_many(queries)):
        for one, other in zip(together, singly, strict=True):
            assert [node.node for node in one] == [node.node for node in other]
            assert [node.score for node in one] == [pytest.approx(node.score, abs=1e-4) for node in other]


def test_many_queries_are_encoded_in_one_batch(opened: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    encode = opened.encoder.encode_queries
    monkeypatch.setattr(opened.encoder, "encode_queries", lambda texts: calls.append(len(texts)) or encode(texts))
    LoRARetriever(opened).retrieve_many(["first of three", "second of three", "third of three"])
    assert calls == [3]


def test_a_bundles_own_vector_and_strings_are_used(opened: Retriever) -> None:
    retriever = LoRARetriever(opened, 5, search_type="dense")
    other = opened.encoder.encode_queries(["bridge over the river"])[0]
    expected = [hit.chunk.id for hit in opened.search("bridge over the river", 5, mode="dense")]
    by_vector = retriever.retrieve(QueryBundle("red fox", embedding=other.tolist()))
    assert [node.node_id for node in by_vector] == expected
    by_string = retriever.retrieve(QueryBundle("red fox", custom_embedding_strs=["bridge over the river"]))
    assert [node.node_id for node in by_string] == expected
    plain = retriever.retrieve("red fox")
    assert [node.node_id for node in plain] == [hit.chunk.id for hit in opened.search("red fox", 5, mode="dense")]


def test_retriever_takes_filters_thresholds_and_search_types(opened: Retriever) -> None:
    english = MetadataFilters(filters=[MetadataFilter(key="lang", value="en")])
    for filters in (english, {"lang": "en"}):
        found = LoRARetriever(opened, 50, filters=filters).retrieve("file")
        assert {node.metadata["lang"] for node in found} == {"en"}
    dense = LoRARetriever(opened, 50, search_type="dense").retrieve("file")
    middle = dense[len(dense) // 2].score
    assert middle is not None
    kept = LoRARetriever(opened, 50, search_type="dense", score_threshold=middle).retrieve("file")
    assert kept == [node for node in dense if (node.score or 0) >= middle]
    hits = opened.search("file", 10)
    surest = LoRARetriever(opened, 10, min_confidence=hits[2].confidence).retrieve("file")
    assert [node.node_id for node in surest] == [h.chunk.id for h in hits if h.confidence >= hits[2].confidence]  # type: ignore[operator]
    assert 3 <= len(surest) < len(hits)
    assert len(LoRARetriever(opened, 10_000).retrieve("file")) == len(opened)
    with pytest.raises(InvalidInput, match="give an opened"):
        LoRARetriever("folder")  # type: ignore[arg-type]


def test_retriever_learns_from_feedback_and_forgets_it(tmp_path: Path) -> None:
    with Retriever.open(fit_pages(tmp_path)) as retriever:
        ours = LoRARetriever(retriever, 50, search_type="dense")
        question = "where is the invoice"
        before = [node.node_id for node in ours.retrieve(question)]
        key = ours.add_feedback(question, before[-1])
        ours.lam = 0.0
        assert ours.retrieve(question)[0].node_id == before[-1]
        ours.lam = 1.0
        assert [node.node_id for node in ours.retrieve(question)] == before
        ours.lam = None
        store = RagAdaptVectorStore(passages=None, dim=retriever.encoder.dim)
        assert len(store) == 0
        assert ours.withdraw_feedback(key) == 1
        assert [node.node_id for node in ours.retrieve(question)] == before


class Seen(BaseEventHandler):
    names: list[str] = []  # noqa: RUF012

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.names.append(type(event).__name__)


def test_events_of_retrieval_and_embedding_are_emitted(opened: Retriever, embed_model: LoRAEmbedding) -> None:
    seen, dispatcher = Seen(names=[]), get_dispatcher()
    dispatcher.add_event_handler(seen)
    try:
        LoRARetriever(opened).retrieve("red fox")
        embed_model.get_query_embedding("red fox")
    finally:
        dispatcher.event_handlers.remove(seen)
    assert {"RetrievalStartEvent", "RetrievalEndEvent", "EmbeddingStartEvent", "EmbeddingEndEvent"} <= set(seen.names)


async def test_retriever_serves_a_query_engine(opened: Retriever) -> None:
    engine = RetrieverQueryEngine.from_args(LoRARetriever(opened, 2), llm=MockLLM(max_tokens=8))
    response = engine.query("red fox")
    assert [node.node_id for node in response.source_nodes] == [hit.chunk.id for hit in opened.search("red fox", 2)]
    assert str(response)
    later = await engine.aquery("red fox")
    assert [node.node_id for node in later.source_nodes] == [node.node_id for node in response.source_nodes]


# The vector store

TEXTS = ["a red fox sleeps", "the bridge over the river", "bread from the oven", "a red bridge"]
METADATA: list[dict[str, Any]] = [
    {"lang": "en", "n": 1, "tags": ["animal"], "note": "Wild Thing"},
    {"lang": "en", "n": 2, "weight": 1.5},
    {"lang": "de", "n": 3, "empty": [], "note": "baked"},
    {"lang": "de", "n": 4, "tags": ["a", "b"]},
]
IDS = ["fox", "bridge", "bread", "red/bridge #1"]
DOCUMENTS = ["d1", "d1", "d2", "d2"]


def nodes_of(embed_model: BaseEmbedding) -> list[BaseNode]:
    nodes: list[BaseNode] = []
    for id, text, metadata, document in zip(IDS, TEXTS, METADATA, DOCUMENTS):
        node = TextNode(id_=id, text=text, metadata=dict(metadata))
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=document)
        node.embedding = embed_model.get_text_embedding(text)
        nodes.append(node)
    return nodes


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, embed_model: LoRAEmbedding, tmp_path: Path) -> Iterator[RagAdaptVectorStore]:
    store = store_of(request.param, tmp_path, embed_model=embed_model, feedback=True)
    store.add(nodes_of(embed_model))
    yield store
    store.close()


def ask(store: RagAdaptVectorStore, embed_model: BaseEmbedding, text: str, k: int = 10, **values: Any) -> Any:
    kwargs = values.pop("kwargs", {})
    vector = embed_model.get_query_embedding(text)
    return store.query(VectorStoreQuery(query_embedding=vector, query_str=text, similarity_top_k=k, **values), **kwargs)


def test_query_gives_whole_nodes_with_cosines_whatever_the_index(
    store: RagAdaptVectorStore, embed_model: LoRAEmbedding, opened: Retriever
) -> None:
    vectors = opened.encoder.encode_passages(TEXTS)
    expected = dict(zip(IDS, vectors @ opened.encoder.encode_queries(["red river"])[0]))
    found = ask(store, embed_model, "red river")
    assert found.ids == sorted(expected, key=lambda id: -expected[id])
    # In 16 bits a text rounds otherwise by itself than in a batch.
    near = 1e-4 if opened.encoder.precision.dtype == "float32" else 2e-3
    assert found.similarities == [pytest.approx(expected[id], abs=near) for id in found.ids]
    for node in found.nodes:
        at = IDS.index(node.node_id)
        assert (node.get_content(metadata_mode=MetadataMode.NONE), node.metadata) == (TEXTS[at], METADATA[at])
        assert node.ref_doc_id == DOCUMENTS[at]
        assert node.embedding is None
    assert ask(store, embed_model, "red river", k=2).ids == found.ids[:2]


def test_a_node_added_again_replaces_the_old_one(store: RagAdaptVectorStore, embed_model: LoRAEmbedding) -> None:
    node = TextNode(id_="fox", text="a grey wolf", metadata={"n": 9})
    node.embedding = embed_model.get_text_embedding("a grey wolf")
    store.add([node])
    assert len(store) == 4
    (again,) = store.get_nodes(["fox"])
    assert (again.get_content(metadata_mode=MetadataMode.NONE), again.metadata) == ("a grey wolf", {"n": 9})
    assert ask(store, embed_model, "a grey wolf", k=1).ids == ["fox"]


def test_ids_are_free_again_after_delete(store: RagAdaptVectorStore, embed_model: LoRAEmbedding) -> None:
    store.delete("d1")
    assert {node.node_id for node in store.get_nodes()} == {"bread", "red/bridge #1"}
    store.delete("not there")
    store.add(nodes_of(embed_model)[:1])
    found = ask(store, embed_model, "red river")
    assert set(found.ids) == {"fox", "bread", "red/bridge #1"}
    assert len(found.ids) == 3


def test_nodes_are_found_and_removed_by_id_and_filter(store: RagAdaptVectorStore) -> None:
    german = MetadataFilters(filters=[MetadataFilter(key="lang", value="de")])
    assert {node.node_id for node in store.get_nodes(filters=german)} == {"bread", "red/bridge #1"}
    assert [node.node_id for node in store.get_nodes(["bread", "fox", "nowhere"])] == ["bread", "fox"]
    assert [node.node_id for node in store.get_nodes(["bread", "fox"], german)] == ["bread"]
    store.delete_nodes(["bread", "fox"], german)
    assert {node.node_id for node in store.get_nodes()} == {"fox", "bridge", "red/bridge #1"}
    store.delete_nodes(filters=german)
    assert {node.node_id for node in store.get_nodes()} == {"fox", "bridge"}
    with pytest.raises(InvalidInput, match="To remove all, use clear"):
        store.delete_nodes()
    store.clear()
    assert store.get_nodes() == []
    store.clear()


async def test_async_twins_do_the_same(store: RagAdaptVectorStore, embed_model: LoRAEmbedding) -> None:
    query = VectorStoreQuery(query_embedding=embed_model.get_query_embedding("red"), similarity_top_k=3)
    assert (await store.aquery(query)).ids == store.query(query).ids
    assert [n.node_id for n in await store.aget_nodes(["fox"])] == ["fox"]
    await store.adelete("d1")
    await store.adelete_nodes(["bread"])
    assert [n.node_id for n in store.get_nodes()] == ["red/bridge #1"]
    await store.async_add(nodes_of(embed_model))
    assert len(store) == 4
    await store.aclear()
    assert len(store) == 0


Op = FilterOperator
ONE: list[tuple[str, Any, FilterOperator, set[str]]] = [
    ("lang", "en", Op.EQ, {"fox", "bridge"}),
    ("n", 3, Op.EQ, {"bread"}),
    ("weight", 1.5, Op.EQ, {"bridge"}),
    ("lang", "en", Op.NE, {"bread", "red/bridge #1"}),
    ("weight", 1.5, Op.NE, {"fox", "bread", "red/bridge #1"}),
    ("n", 2, Op.GT, {"bread", "red/bridge #1"}),
    ("n", 2, Op.GTE, {"bridge", "bread", "red/bridge #1"}),
    ("n", 2, Op.LT, {"fox"}),
    ("n", 2, Op.LTE, {"fox", "bridge"}),
    ("n", [1, 4], Op.IN, {"fox", "red/bridge #1"}),
    ("lang", ["de", "fr"], Op.NIN, {"fox", "bridge"}),
    ("tags", ["animal", "b"], Op.ANY, {"fox", "red/bridge #1"}),
    ("tags", ["a", "b"], Op.ALL, {"red/bridge #1"}),
    ("tags", "animal", Op.CONTAINS, {"fox"}),
    ("note", "Wild", Op.TEXT_MATCH, {"fox"}),
    ("note", "wild", Op.TEXT_MATCH, set()),
    ("tags", None, Op.IS_EMPTY, {"bridge", "bread"}),
    ("empty", None, Op.IS_EMPTY, set(IDS)),
]


@pytest.mark.parametrize(("key", "value", "operator", "expected"), ONE)
def test_every_operator_means_the_same_in_every_index(
    store: RagAdaptVectorStore, embed_model: LoRAEmbedding, key: str, value: Any, operator: Any, expected: set[str]
) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])
    for mode in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.HYBRID):
        assert set(ask(store, embed_model, "red river", filters=filters, mode=mode).ids) == expected


def test_operators_mean_what_the_frameworks_own_store_takes_them_for() -> None:
    metadata = dict(zip(IDS, METADATA, strict=True))
    for key, value, operator, _ in ONE:
        if operator in (Op.TEXT_MATCH,) or (key == "tags" and operator == Op.NE):
            continue
        filters = MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])
        if operator in (Op.ANY, Op.ALL, Op.CONTAINS, Op.GT, Op.LT):
            continue  # their own raises where the field is missing
        theirs = build_metadata_filter_fn(metadata.__getitem__, filters)
        ours = compile_filter(to_filter(filters) or {})
        assert {id for id in IDS if theirs(id)} == {id for id in IDS if ours(metadata[id])}, (key, operator)


def test_conditions_nest(store: RagAdaptVectorStore, embed_model: LoRAEmbedding) -> None:
    def one(key: str, value: Any, operator: FilterOperator = Op.EQ) -> MetadataFilter:
        return MetadataFilter(key=key, value=value, operator=operator)

    cases = [
        (MetadataFilters(filters=[one("lang", "en"), one("n", 1)]), {"fox"}),
        (MetadataFilters(filters=[one("n", 1), one("n", 3)], condition=FilterCondition.OR), {"fox", "bread"}),
        (MetadataFilters(filters=[one("n", 1), one("lang", "de")], condition=FilterCondition.NOT), {"bridge"}),
        (
            MetadataFilters(
                filters=[
                    one("n", 4, Op.LT),
                    MetadataFilters(
                        filters=[
                            one("lang", "de"),
                            MetadataFilters(filters=[one("tags", None, Op.IS_EMPTY)], condition=FilterCondition.NOT),
                        ],
                        condition=FilterCondition.OR,
                    ),
                ]
            ),
            {"fox", "bread"},
        ),
        (MetadataFilters(filters=[]), set(IDS)),
    ]
    for filters, expected in cases:
        assert set(ask(store, embed_model, "red river", filters=filters).ids) == expected


def test_text_in_any_case_works_in_memory_and_is_refused_by_qdrant(
    store: RagAdaptVectorStore, embed_model: LoRAEmbedding
) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="note", value="wILD", operator=Op.TEXT_MATCH_INSENSITIVE)])
    if store.client.index.kind in ("exact", "faiss"):
        assert ask(store, embed_model, "red", filters=filters).ids == ["fox"]
    else:
        with pytest.raises(InvalidFilter, match=r"Use \$text \(case-sensitive\)"):
            ask(store, embed_model, "red", filters=filters)


def test_filters_that_make_no_sense_are_refused(store: RagAdaptVectorStore, embed_model: LoRAEmbedding) -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="lang", value="en", operator=Op.GT)])
    with pytest.raises(InvalidFilter, match=r"\$gt on field 'lang' takes a number"):
        ask(store, embed_model, "red", filters=filters)


def test_native_filters_reach_qdrant(embed_model: LoRAEmbedding, tmp_path: Path) -> None:
    from qdrant_client import models

    store = store_of("qdrant-memory", tmp_path, embed_model=embed_model)
    store.add(nodes_of(embed_model))
    native = models.Filter(must=[models.FieldCondition(key="metadata.lang", match=models.MatchValue(value="de"))])
    assert set(ask(store, embed_model, "red", kwargs={"filter": native}).ids) == {"bread", "red/bridge #1"}


def test_node_ids_and_doc_ids_narrow_the_search(store: RagAdaptVectorStore, embed_model: LoRAEmbedding) -> None:
    assert set(ask(store, embed_model, "red", node_ids=["fox", "bread"]).ids) == {"fox", "bread"}
    assert set(ask(store, embed_model, "red", doc_ids=["d2"]).ids) == {"bread", "red/bridge #1"}
    assert ask(store, embed_model, "red", node_ids=["fox", "bread"], doc_ids=["d2"]).ids == ["bread"]


def test_modes_search_by_words_by_both_and_for_variety(store: RagAdaptVectorStore, embed_model: LoRAEmbedding) -> None:
    for mode in (VectorStoreQueryMode.SPARSE, VectorStoreQueryMode.TEXT_SEARCH):
        query = VectorStoreQuery(query_str="oven bread", similarity_top_k=1, mode=mode)  # without an embedding
        assert store.query(query).ids == ["bread"]
    words = ask(store, embed_model, "oven bread", mode=VectorStoreQueryMode.HYBRID, alpha=0.0)
    assert words.ids[0] == "bread"
    dense = ask(store, embed_model, "oven bread").ids
    assert ask(store, embed_model, "oven bread", mode=VectorStoreQueryMode.HYBRID, alpha=1.0).ids == dense
    assert len(ask(store, embed_model, "oven", mode=VectorStoreQueryMode.HYBRID, hybrid_top_k=2).ids) == 2
    assert (
        ask(store, embed_model, "red", k=4, mode=VectorStoreQueryMode.MMR, mmr_threshold=1.0).ids
        == ask(store, embed_model, "red", k=4).ids
    )
    varied = ask(store, embed_model, "red", k=2, mode=VectorStoreQueryMode.MMR, mmr_threshold=0.0).ids
    best, *others = ask(store, embed_model, "red").ids
    rows = dict(zip(IDS, store.client.vectors(IDS), strict=True))
    assert varied == [best, min(others, key=lambda id: float(rows[id] @ rows[best]))]
    with pytest.raises(InvalidInput, match="'svm' is not supported"):
        ask(store, embed_model, "red", mode=VectorStoreQueryMode.SVM)


def test_feedback_works_inside_a_plain_index(store: RagAdaptVectorStore, embed_model: LoRAEmbedding) -> None:
    index = VectorStoreIndex.from_vector_store(store, embed_model=embed_model)

    def found(**kwargs: Any) -> list[tuple[str, float | None]]:
        retriever = index.as_retriever(similarity_top_k=4, vector_store_kwargs=kwargs)
        return [(node.node_id, node.score) for node in retriever.retrieve("loaf for breakfast")]

    before = found()
    last = before[-1][0]
    key = store.add_feedback("loaf for breakfast", last)
    assert found(lam=0.0)[0] == (last, pytest.approx(1.0, abs=1e-4))
    assert found(lam=1.0) == before
    assert dict(found())[last] == pytest.approx(0.5 * (dict(before)[last] or 0) + 0.5, abs=1e-4)
    store.lam = 0.0
    assert found()[0][0] == last
    store.lam = None
    assert store.withdraw_feedback(key) == 1
    assert found() == before


def test_stores_may_persist_and_load(embed_model: LoRAEmbedding, tmp_path: Path) -> None:
    for kind in ("exact", "faiss", "qdrant-edge"):
        store = RagAdaptVectorStore(kind=kind, embed_model=embed_model)
        context = StorageContext.from_defaults(vector_store=store)
        index = VectorStoreIndex(nodes_of(embed_model), storage_context=context, embed_model=embed_model)
        expected = [(node.node_id, node.score) for node in index.as_retriever(similarity_top_k=4).retrieve("red")]
        context.persist(str(tmp_path / kind))
        store.close()
        path = tmp_path / kind / "default__vector_store.json"
        again = RagAdaptVectorStore.from_persist_path(path, embed_model=embed_model)
        loaded = VectorStoreIndex.from_vector_store(again, embed_model=embed_model)
        assert [(n.node_id, n.score) for n in loaded.as_retriever(similarity_top_k=4).retrieve("red")] == [
            (id, pytest.approx(score)) for id, score in expected
        ]
        again.close()
    with pytest.raises(InvalidInput, match=r"no index\.json"):
        RagAdaptVectorStore.from_persist_path(tmp_path / "nowhere.json")
    with pytest.raises(InvalidInput, match="cannot be written"):
        memory = store_of("qdrant-memory", tmp_path, embed_model=embed_model)
        memory.persist(str(tmp_path / "x.json"))


def test_a_store_refuses_another_revision_and_another_width(
    embed_model: LoRAEmbedding, folder: Path, tmp_path: Path
) -> None:
    base = str(folder.parent / "base" / "model")
    store = RagAdaptVectorStore(kind="exact", folder=tmp_path / "store", embed_model=LoRAEmbedding(base))
    store.add(nodes_of(embed_model))
    store.persist()
    with pytest.raises(FingerprintMismatch, match="query prompt was '', is 'query: '"):
        RagAdaptVectorStore(folder=tmp_path / "store", embed_model=LoRAEmbedding(base, query_prompt="query: "))
    with pytest.raises(DimensionMismatch):
        store.query(VectorStoreQuery(query_embedding=[1.0, 2.0], similarity_top_k=1))
    bare = TextNode(id_="bare", text="no vector")
    with pytest.raises(InvalidInput, match="'bare'"):
        store.add([bare])


def test_a_store_learns_its_width_from_the_first_node(tmp_path: Path) -> None:
    store = RagAdaptVectorStore()
    assert store  # an empty store is a store: the framework would put another one in the place of a falsy one
    assert store.query(VectorStoreQuery(query_embedding=[1.0], similarity_top_k=3)).nodes == []
    assert store.get_nodes() == []
    index = VectorStoreIndex.from_documents(
        [Document(text="a red fox", id_="d")],
        storage_context=StorageContext.from_defaults(vector_store=store),
        embed_model=MockEmbedding(embed_dim=7),
    )
    assert store.client.dim == 7
    assert [n.text for n in index.as_retriever().retrieve("x")] == ["a red fox"]
    with pytest.raises(InvalidInput, match="give the embedding"):
        RagAdaptVectorStore(dim=7, feedback=True)


def test_an_index_over_a_fitted_retriever_returns_what_the_retriever_returns(folder: Path, opened: Retriever) -> None:
    store = RagAdaptVectorStore.from_pretrained(folder)
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embed_model)
    for query in ("open the red file", "bridge"):
        theirs = index.as_retriever(similarity_top_k=5).retrieve(query)
        ours = LoRARetriever(opened, 5).retrieve(query)
        assert [(n.node_id, n.text, n.metadata) for n in theirs] == [(n.node_id, n.text, n.metadata) for n in ours]
        assert [n.score for n in theirs] == [pytest.approx(n.score, abs=1e-4) for n in ours]
    chunk = next(iter(opened.chunks))
    narrowed = index.as_retriever(similarity_top_k=5, doc_ids=[chunk.document_id]).retrieve("bridge")
    assert {node.node.ref_doc_id for node in narrowed} == {chunk.document_id}
    assert [n.node_id for n in VectorIndexRetriever(index, node_ids=[chunk.id]).retrieve("bridge")] == [chunk.id]
    with pytest.raises(InvalidInput, match="come from `ragadapt fit`"):
        store.clear()
    with pytest.raises(InvalidInput, match="leave alpha out"):
        index.as_retriever(vector_store_query_mode="hybrid", alpha=0.3).retrieve("bridge")
    store.close()


# Pipelines


@pytest.mark.parametrize("kind", ["faiss", "qdrant-memory", "qdrant-edge"])
@pytest.mark.parametrize("cut", [True, False])
def test_pipeline_upserts_and_deletes(kind: str, cut: bool, embed_model: LoRAEmbedding, tmp_path: Path) -> None:
    store = store_of(kind, tmp_path, embed_model=embed_model)
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=32, chunk_overlap=0), embed_model] if cut else [embed_model],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )

    def run(**texts: str) -> int:
        return len(pipeline.run(documents=[Document(text=text, id_=id) for id, text in texts.items()]))

    assert run(a="one fox", b="two foxes") == 2
    assert run(a="one fox", b="two foxes") == 0
    assert run(a="one wolf", b="two foxes") == 1
    assert run(b="two foxes") == 0
    assert [node.get_content(metadata_mode=MetadataMode.NONE) for node in store.get_nodes()] == ["two foxes"]
    store.close()


def test_a_pipelines_cache_is_not_reused_for_another_revision(folder: Path) -> None:
    base = str(folder.parent / "base" / "model")
    one, other = LoRAEmbedding(base), LoRAEmbedding(base, passage_prompt="passage: ")
    pipeline = IngestionPipeline(transformations=[one])
    first = pipeline.run(nodes=[TextNode(id_="a", text="red fox")])[0].embedding
    pipeline.transformations = [other]
    second = pipeline.run(nodes=[TextNode(id_="a", text="red fox")])[0].embedding
    assert second == pytest.approx(other.get_text_embedding("red fox"), abs=1e-6)
    assert first != pytest.approx(second, abs=1e-3)


# The event loop


async def longest_pause(work: Any) -> tuple[float, int]:
    task, longest, turns, last = asyncio.ensure_future(work), 0.0, 0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(0.01)
        now = time.perf_counter()
        longest, turns, last = max(longest, now - last), turns + 1, now
    await task
    return longest, turns


async def test_the_event_loop_goes_on_while_texts_are_encoded(
    opened: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("encode_queries", "encode_passages"):
        encode = getattr(opened.encoder, name)

        def late(texts: Any, encode: Any = encode) -> Any:
            time.sleep(0.4)
            return encode(texts)

        monkeypatch.setattr(opened.encoder, name, late)
    model = LoRAEmbedding(encoder=opened.encoder)
    retriever = LoRARetriever(opened)
    store = RagAdaptVectorStore(embed_model=model)
    index = VectorStoreIndex.from_vector_store(store, embed_model=model)
    works = {
        "aget_query_embedding": lambda: model.aget_query_embedding("a"),
        "aget_text_embedding": lambda: model.aget_text_embedding("a"),
        "aget_text_embedding_batch": lambda: model.aget_text_embedding_batch(["a", "b"]),
        "aretrieve": lambda: retriever.aretrieve("asked here for the first time"),
        "aretrieve_many": lambda: retriever.aretrieve_many(["nor was this asked", "or this"]),
        "ainsert": lambda: index.ainsert_nodes([TextNode(text="a")]),
        "index": lambda: index.as_retriever().aretrieve("a"),
    }
    for name, work in works.items():
        pause, turns = await longest_pause(work())
        assert turns > 5, name
        assert pause < 0.3, name


# Fine-tuning


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EmbeddingQAFinetuneDataset as its save_json writes it."""
    texts = sentences(80, words=12, seed=9)
    corpus = {f"node-{number}": text for number, text in enumerate(texts)}
    queries = {f"q-{number}": " ".join(text.split()[:4]) for number, text in enumerate(texts)}
    relevant = {f"q-{number}": [f"node-{number}"] for number in range(len(texts))}
    path = tmp_path_factory.mktemp("pairs") / "train.json"
    path.write_text(json.dumps({"queries": queries, "corpus": corpus, "relevant_docs": relevant, "mode": "text"}))
    return path


def quick(model: Path) -> FitConfig:
    return FitConfig.build(
        {
            "encoder": {"model": str(model), "precision": "float32"},
            "training": {"epochs": 1, "batch_size": 16, "evaluations": 1},
            "index": {"kind": "exact"},
        }
    )


def test_finetune_engine_fits_and_gives_model_and_retriever(pairs: Path, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path)
    engine = LoRAFinetuneEngine(pairs, model_output_path=tmp_path / "out", config=quick(model))
    engine.finetune(epochs=2)
    assert engine.result is not None
    assert engine.result.report.configuration["training"]["epochs"] == 2
    embedding = engine.get_finetuned_model()
    with Retriever.open(tmp_path / "out") as retriever:
        assert embedding.revision == retriever.fingerprint
        assert len(retriever) == 80
        assert {"node-0", "node-79"} <= set(retriever.chunks.ids())
    found = engine.get_finetuned_retriever(similarity_top_k=3).retrieve(sentences(80, words=12, seed=9)[7])
    assert found[0].node_id == "node-7"
    with pytest.raises(InvalidConfiguration, match=r"unknown setting 'training\.speed'"):
        engine.finetune(speed=3)


def test_validation_questions_only_judge(pairs: Path, tmp_path: Path) -> None:
    values = json.loads(pairs.read_text())
    held = {"queries": {"v": "river stone"}, "corpus": {"extra": "a river of stone"}, "relevant_docs": {"v": ["extra"]}}
    engine = LoRAFinetuneEngine(
        values, str(write_tiny_model(tmp_path)), tmp_path / "out", val_dataset=held,
        config=FitConfig.build({"adapter": {"method": "none"}, "index": {"kind": "exact"}}),
    )  # fmt: skip
    engine.finetune()
    with Retriever.open(tmp_path / "out") as retriever:
        assert len(retriever) == 81
        heldout = [json.loads(line) for line in (retriever.path / "report" / "queries.jsonl").read_text().splitlines()]
    labelled = [query["text"] for query in heldout if query["evidence"] == "labelled"]
    assert labelled == ["river stone"]


def test_passages_of_two_data_sets_under_one_id_stay_apart(tmp_path: Path) -> None:
    """Both number from 0. Equal texts under one id are one passage; different ones are two, each with its questions."""
    texts, others = sentences(40, words=12, seed=9), sentences(12, words=12, seed=21)
    others[3] = texts[3]

    def dataset(texts: list[str]) -> dict[str, Any]:
        queries = {str(n): " ".join(text.split()[:5]) for n, text in enumerate(texts)}
        relevant = {str(n): [str(n)] for n in range(len(texts))}
        return {"queries": queries, "corpus": dict(zip(queries, texts)), "relevant_docs": relevant}

    train, val = dataset(texts), dataset(others)
    train["corpus"]["val:5"] = "a name that is taken by another river"
    engine = LoRAFinetuneEngine(
        train, str(write_tiny_model(tmp_path)), tmp_path / "out", val_dataset=val,
        config=FitConfig.build({"adapter": {"method": "none"}, "index": {"kind": "exact"}}),
    )  # fmt: skip
    engine.finetune()
    with Retriever.open(tmp_path / "out") as retriever:
        stored = {chunk.id: chunk.text for chunk in retriever.chunks.get(retriever.chunks.ids())}
        heldout = [json.loads(line) for line in (retriever.path / "report" / "queries.jsonl").read_text().splitlines()]
    assert len(stored) == 41 + 11
    assert all(stored[id] == text for id, text in train["corpus"].items())
    assert (stored["val:0"], stored["val:val:5"]) == (others[0], others[5])
    judged = {query["text"]: stored[query["positives"][0]] for query in heldout if query["evidence"] == "labelled"}
    assert judged == {val["queries"][id]: val["corpus"][id] for id in val["queries"]}


def test_ids_may_be_numbers_and_questions_without_passages_are_told(caplog: pytest.LogCaptureFixture) -> None:
    dataset = {"queries": {1: "a", 2: "b"}, "corpus": {7: "c"}, "relevant_docs": {1: (7,)}}
    engine = LoRAFinetuneEngine(dataset)
    assert (engine._train.queries, engine._train.corpus) == ({"1": "a", "2": "b"}, {"7": "c"})
    assert engine._train.relevant == {"1": ["7"]}
    assert "1 of 2 queries have no relevant passage" in caplog.text


def test_nodes_longer_than_the_model_reads_are_told_once_with_numbers(
    opened: Retriever, caplog: pytest.LogCaptureFixture
) -> None:
    room = opened.encoder.passage_room
    words = " ".join(sentences(200, seed=4)).split()
    long = " ".join(words[: room * 4])
    count = opened.encoder.count_tokens([long])[0]
    model = LoRAEmbedding(encoder=opened.encoder, embed_batch_size=3)
    model.get_text_embedding_batch(["short", " ".join(words[: room // 4])])
    assert caplog.text == ""
    model.get_text_embedding_batch(["short", long, "short", long])
    model.get_text_embedding(long)
    (record,) = caplog.records
    said = record.getMessage()
    assert f"1 of 3 texts are longer than the {room:,} tokens" in said
    assert f"the longest has {count:,}" in said
    assert f"chunk_size={max(16, room * 3 // 4)}" in said
    LoRAEmbedding(encoder=opened.encoder).get_text_embedding(long)
    assert len(caplog.records) == 2  # once for each


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        ({"queries": {"q": "a"}, "corpus": {"c": "b"}, "relevant_docs": {"x": ["c"]}}, "names the query 'x'"),
        ({"queries": {"q": "a"}, "corpus": {"c": "b"}, "relevant_docs": {"q": "c"}}, "a list of passage ids"),
        ({"queries": {"q": "a"}, "corpus": {"c": "b"}, "relevant_docs": {"q": None}}, "a list of passage ids"),
        ({"queries": {"q": "a"}, "corpus": {1: "b", "1": "c"}, "relevant_docs": {}}, "equal as text"),
        ({"queries": {"q": "a"}, "corpus": {"c\td": "b"}, "relevant_docs": {}}, "without tabs"),
        ({"queries": {"q": "a"}, "corpus": {" c": "b"}, "relevant_docs": {}}, "blanks at"),
        ({"queries": {"q\u2028": "a"}, "corpus": {"c": "b"}, "relevant_docs": {}}, "line breaks"),
        ("missing.json", "cannot be read"),
        ({"queries": {"q": "a"}, "corpus": {"c": "b"}}, "no dict 'relevant_docs'"),
        ({"queries": {}, "corpus": {}, "relevant_docs": {}}, "0 queries and 0 passages"),
        ({"queries": {"q": "a"}, "corpus": {"c": "b"}, "relevant_docs": {"q": ["d"]}}, "names the passage 'd'"),
        ({"queries": {"q": "a"}, "corpus": {"c": "b"}, "relevant_docs": {}, "mode": "image"}, "mode 'image'"),
    ],
)
def test_data_sets_that_cannot_be_used_are_named(dataset: Any, reason: str) -> None:
    with pytest.raises(InvalidLabels, match=reason):
        LoRAFinetuneEngine(dataset)


# The pages


def test_the_documented_ingestion_holds_over_sessions(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "llama-index.md").read_text(encoding="utf-8")
    (snippet,) = [
        block for block in re.findall(r"^```python\n(.*?)^```", page, re.S | re.M) if "pipeline.run(" in block
    ]
    shutil.copytree(folder, tmp_path / "retriever")
    monkeypatch.chdir(tmp_path)
    embedded: list[str] = []
    own = LoRAEmbedding._get_text_embeddings

    def counted(self: LoRAEmbedding, texts: list[str]) -> list[list[float]]:
        embedded.extend(texts)
        return own(self, texts)

    monkeypatch.setattr(LoRAEmbedding, "_get_text_embeddings", counted)

    def session(code: str) -> list[str]:
        names: dict[str, Any] = {}
        exec(compile(code, "snippet", "exec"), names)
        names["store"].close()
        store = RagAdaptVectorStore(folder="nodes", embed_model=names["embed_model"])
        return sorted(node.get_content() for node in store.get_nodes())

    refunds, invoices = "Refunds within 30 days", "Invoices come monthly"
    assert session(snippet) == [refunds]
    assert len(embedded) == 1
    assert session(snippet) == [refunds]
    assert len(embedded) == 1  # the second session knows it
    other = snippet.replace(refunds, invoices).replace('id_="billing"', 'id_="invoices"')
    assert session(other) == [invoices]  # what is not given any more is deleted
    ended = re.sub(r"pipeline\.persist\(.*\n", "raise SystemExit\n", snippet)
    with pytest.raises(SystemExit):
        session(ended)
    assert session(snippet) == [refunds]


def test_a_passage_that_two_retrievers_find_is_one_node(opened: Retriever) -> None:

    from llama_index.core.retrievers import QueryFusionRetriever

    fitted = RagAdaptVectorStore(passages=FittedPassages(opened))
    index = VectorStoreIndex.from_vector_store(fitted, embed_model=fitted.embed_model)
    query = "open the red file"
    dense = LoRARetriever(opened, 6, search_type="dense")
    fused = QueryFusionRetriever(
        [LoRARetriever(opened, 6), dense, index.as_retriever(similarity_top_k=6)],
        llm=MockLLM(),
        num_queries=1,
        similarity_top_k=50,
        use_async=False,
    ).retrieve(query)
    wanted = {hit.chunk.id for mode in ("hybrid", "dense") for hit in opened.search(query, 6, mode=mode)}
    assert sorted(node.node_id for node in fused) == sorted(wanted)


# Re-ranking


@pytest.fixture(scope="module")
def rerank(tmp_path_factory: pytest.TempPathFactory) -> RagAdaptRerank:
    folder = write_tiny_cross_encoder(tmp_path_factory.mktemp("reranker") / "model")
    return RagAdaptRerank.from_pretrained(folder, device="cpu", precision="float32", top_n=3)


QUESTION = "how do i open a file"


def scored_nodes(count: int) -> list[NodeWithScore]:
    texts = sentences(count, words=20)
    return [NodeWithScore(node=TextNode(id_=str(at), text=text), score=1.0 - at / 10) for at, text in enumerate(texts)]


def test_rerank_orders_any_nodes_by_the_models_score(rerank: RagAdaptRerank) -> None:
    nodes = scored_nodes(9)
    scores = rerank.reranker.scores(QUESTION, [one.node.get_content() for one in nodes])
    found = rerank.postprocess_nodes(nodes, query_str=QUESTION)
    assert [one.node.node_id for one in found] == [str(at) for at in np.argsort(-scores, kind="stable")[:3]]
    assert [one.score for one in found] == pytest.approx(sorted(scores)[::-1][:3])
    assert nodes[0].score == 1.0
    again = asyncio.run(rerank.apostprocess_nodes(nodes, query_bundle=QueryBundle(QUESTION)))
    assert [one.node.node_id for one in again] == [one.node.node_id for one in found]
    assert rerank.postprocess_nodes([], query_str=QUESTION) == []


def test_rerank_counts_beside_the_nodes_own_scores(rerank: RagAdaptRerank) -> None:
    nodes = scored_nodes(6)
    half = rerank.model_copy(update={"weight": 0.5, "top_n": None})
    logits = rerank.reranker.logits(QUESTION, [one.node.get_content() for one in nodes])
    for own in (np.array([one.score for one in nodes]), 1 / (60 + np.arange(1, 7))):
        mixed = sum(0.5 * (side - side.mean()) / side.std() for side in (own, logits))
        found = half.postprocess_nodes(nodes, query_str=QUESTION)
        assert [one.node.node_id for one in found] == [str(at) for at in np.argsort(-mixed, kind="stable")]
        assert [one.score for one in found] == pytest.approx(np.sort(mixed)[::-1], abs=1e-4)
        nodes[2].score = None  # one without a score: their order counts


def test_rerank_stands_in_a_query_engine(opened: Retriever, rerank: RagAdaptRerank) -> None:
    retriever = LoRARetriever(opened, 8, search_type="lexical")
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM(), node_postprocessors=[rerank])
    nodes = engine.query("old stone bridge").source_nodes
    expected = rerank.postprocess_nodes(retriever.retrieve("old stone bridge"), query_str="old stone bridge")
    assert [one.node.node_id for one in nodes] == [one.node.node_id for one in expected]
    assert len(nodes) == 3


def test_retriever_reranks_where_it_is_asked_to(opened: Retriever, tmp_path: Path) -> None:
    asked = Rerank(model=write_tiny_cross_encoder(tmp_path / "model"), weight=1.0, depth=10)
    expected = [hit.chunk.id for hit in opened.search("old stone bridge", k=4, rerank=asked)]
    retriever = LoRARetriever(opened, 4, rerank=asked)
    assert [one.node.node_id for one in retriever.retrieve("old stone bridge")] == expected
    retriever.rerank = False
    assert [one.node.node_id for one in retriever.retrieve("old stone bridge")] != expected
    with pytest.raises(InvalidInput, match="has no re-ranker"):
        LoRARetriever(opened, rerank=True).retrieve("old stone bridge")


def test_rerank_refuses_what_it_cannot_read(rerank: RagAdaptRerank, folder: Path) -> None:
    with pytest.raises(InvalidInput, match="give query_str or query_bundle"):
        rerank.postprocess_nodes(scored_nodes(2))
    with pytest.raises(InvalidInput, match="at least one word"):
        rerank.postprocess_nodes(scored_nodes(2), query_str=" ")
    with pytest.raises(InvalidInput, match="reranker is NoneType"):
        RagAdaptRerank()
    with pytest.raises(NotARetriever, match="has no re-ranker"):
        RagAdaptRerank.from_pretrained(folder)


# What the language model is given


def test_nodes_know_the_passages_beside_them_and_their_document(opened: Retriever) -> None:
    of_page = opened.chunks.of_document("page03.md")
    ids = [chunk.id for chunk in of_page]
    nodes = LoRARetriever(opened, len(opened), fold="none").retrieve(of_page[0].text)
    by_id = {one.node.node_id: one.node for one in nodes}
    relations = [by_id[id].relationships for id in ids]
    assert [one.get(NodeRelationship.NEXT) and one[NodeRelationship.NEXT].node_id for one in relations] == [  # type: ignore[union-attr]
        *ids[1:], None,
    ]  # fmt: skip
    assert (
        [
            one.get(NodeRelationship.PREVIOUS) and one[NodeRelationship.PREVIOUS].node_id  # type: ignore[union-attr]
            for one in relations
        ]
        == [None, *ids[:-1]]
    )
    assert by_id[ids[0]].parent_node is not None and by_id[ids[0]].parent_node.node_id == "page03.md"
    assert by_id[ids[0]].ref_doc_id == "page03.md"


def test_a_filter_hides_neighbours_too(opened: Retriever) -> None:
    chunk = opened.chunks.of_document("page03.md")[0]
    [one] = LoRARetriever(opened, 3, filters={"id": chunk.id}, expand="document").retrieve(chunk.text)
    assert not {NodeRelationship.NEXT, NodeRelationship.PREVIOUS} & one.node.relationships.keys()
    assert one.node.get_content().endswith(chunk.text)


def test_an_expanded_node_has_the_text_of_its_children(opened: Retriever) -> None:
    of_page = opened.chunks.of_document("page03.md")
    retriever = LoRARetriever(opened, 1)
    retriever.expand = "document"
    [one] = retriever.retrieve(of_page[1].text)
    node = one.node
    assert node.get_content() == "".join(chunk.before + chunk.text for chunk in of_page).strip()
    assert node.node_id == of_page[1].id
    assert [child.node_id for child in node.child_nodes or []] == [chunk.id for chunk in of_page]
    assert (node.start_char_idx, node.end_char_idx) == (0, of_page[-1].end)  # type: ignore[attr-defined]
