"""Collections that langchain-qdrant or LlamaIndex filled: opened as they are, searched, and migrated."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_ragadapt import LoRAEmbeddings, RagAdaptVectorStore
from llama_index_ragadapt import LoRAEmbedding
from llama_index_ragadapt import RagAdaptVectorStore as NodeStore
from qdrant_client import QdrantClient, models
from tiny_models import write_tiny_model

from ragadapt.adapters import attach
from ragadapt.config import AdapterConfig
from ragadapt.encoder import Encoder, open_encoder
from ragadapt.errors import DimensionMismatch, FingerprintMismatch, IndexFault, IndexUnreachable, InvalidInput
from ragadapt.index.foreign import ForeignQdrantIndex, migrate

TEXTS = ["a red fox sleeps", "the bridge over the river", "bread from the oven", "a red bridge"]
METADATA: list[dict[str, Any]] = [
    {"lang": "en", "n": 1},
    {"lang": "en", "n": 2},
    {"lang": "de", "n": 3},
    {"lang": "de"},
]
IDS: list[Any] = [str(uuid.UUID(int=1)), 7, str(uuid.UUID(int=3)), 2**40]
NAMES = [str(id) for id in IDS]


def langchain_payload(number: int) -> dict[str, Any]:
    """What langchain-qdrant 1.1 writes."""
    return {"page_content": TEXTS[number], "metadata": METADATA[number]}


def llama_index_payload(number: int) -> dict[str, Any]:
    """What llama-index-vector-stores-qdrant 0.10 writes."""
    node = {
        "id_": str(IDS[number]), "embedding": None, "metadata": METADATA[number], "excluded_embed_metadata_keys": [],
        "excluded_llm_metadata_keys": [],
        "relationships": {
            "1": {
                "node_id": "doc", "node_type": None, "metadata": {}, "hash": None, "class_name": "RelatedNodeInfo",
            },
        },
        "metadata_template": "{key}: {value}", "metadata_separator": "\n", "text": TEXTS[number],
        "mimetype": "text/plain", "start_char_idx": None, "end_char_idx": None,
        "text_template": "{metadata_str}\n\n{content}", "class_name": "TextNode",
    }  # fmt: skip
    document = {"document_id": "doc", "doc_id": "doc", "ref_doc_id": "doc"}
    return {**METADATA[number], "_node_content": json.dumps(node), "_node_type": "TextNode", **document}


PAYLOADS = {"langchain": langchain_payload, "llama-index": llama_index_payload}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two base models."""
    return tuple(write_tiny_model(tmp_path_factory.mktemp("model"), seed=seed) for seed in (0, 1))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def encoders(folders: tuple[Path, Path]) -> tuple[Encoder, Encoder]:
    return open_encoder(folders[0], precision="float32"), open_encoder(folders[1], precision="float32")


def fill(
    client: QdrantClient, encoder: Encoder, layout: str, name: str = "old", *, vector: str = "",
    distance: models.Distance = models.Distance.COSINE,
) -> None:  # fmt: skip
    params = models.VectorParams(size=encoder.dim, distance=distance)
    client.create_collection(name, vectors_config={vector: params} if vector else params)
    rows = 3 * encoder.encode_passages(TEXTS)  # other programs need not write unit vectors
    points = [
        models.PointStruct(
            id=id, vector={vector: row.tolist()} if vector else row.tolist(), payload=PAYLOADS[layout](number)
        )
        for number, (id, row) in enumerate(zip(IDS, rows, strict=True))
    ]
    client.upsert(name, points)


@pytest.fixture(params=["langchain", "llama-index"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def client(layout: str, encoders: tuple[Encoder, Encoder]) -> Iterator[QdrantClient]:
    client = QdrantClient(":memory:")
    fill(client, encoders[0], layout)
    yield client
    client.close()


def records(client: QdrantClient, name: str) -> dict[str, Any]:
    return {str(record.id): record.payload for record in client.scroll(name, limit=100)[0]}


def test_the_collection_is_read_as_it_lies(
    client: QdrantClient, layout: str, encoders: tuple[Encoder, Encoder]
) -> None:
    index = ForeignQdrantIndex.existing(client=client, collection="old")
    assert (index.layout, index.dim, len(index), index.vector_name) == (layout, 32, 4, "")
    assert set(index.ids()) == set(NAMES)
    assert set(index.ids({"lang": "en"})) == {NAMES[0], NAMES[1]}
    assert index.texts(NAMES) == TEXTS
    assert [{key: payload.get(key) for key in ("lang", "n")} for payload in index.payloads(NAMES)] == [
        {key: metadata.get(key) for key in ("lang", "n")} for metadata in METADATA
    ]
    assert index.has([NAMES[0].replace("-", ""), "7", "no uuid", "8"]) == [True, True, False, False]
    np.testing.assert_allclose(index.vectors(NAMES), encoders[0].encode_passages(TEXTS), atol=1e-5)
    (ids, rows), *rest = index.batches(10)
    assert not rest
    np.testing.assert_allclose(rows, index.vectors(ids), atol=1e-6)
    assert index.raw_payloads([*NAMES, "9"]) == [PAYLOADS[layout](number) for number in range(4)] + [{}]


def test_scores_are_cosines_times_the_querys_length(client: QdrantClient, encoders: tuple[Encoder, Encoder]) -> None:
    index = ForeignQdrantIndex.existing(client=client, collection="old")
    query = encoders[0].encode_queries(["red river"])
    expected = dict(zip(NAMES, encoders[0].encode_passages(TEXTS) @ query[0]))
    ((ids, scores), (_, doubled)) = index.search(np.concatenate([query, 2 * query]), 3)
    assert ids == sorted(expected, key=lambda id: -expected[id])[:3]
    np.testing.assert_allclose(scores, [expected[id] for id in ids], atol=1e-4)
    np.testing.assert_allclose(doubled, 2 * scores, atol=1e-4)
    assert set(index.search(query, 9, {"n": {"$gte": 2}})[0][0]) == {NAMES[1], NAMES[2]}


@pytest.mark.parametrize("change", ["upsert", "update_vectors", "delete", "save"])
def test_nothing_is_ever_written(client: QdrantClient, change: str, encoders: tuple[Encoder, Encoder]) -> None:
    index = ForeignQdrantIndex.existing(client=client, collection="old")
    before = records(client, "old")
    arguments: dict[str, Any] = {
        "upsert": (NAMES[:1], np.ones((1, 32))),
        "update_vectors": (NAMES[:1], np.ones((1, 32))),
        "delete": (NAMES[:1],),
        "save": (),
    }
    with pytest.raises(InvalidInput, match="belongs to another program"):
        getattr(index, change)(*arguments[change])
    assert records(client, "old") == before


@pytest.mark.parametrize("vector", ["", "text-dense"])
@pytest.mark.parametrize("distance", [models.Distance.COSINE, models.Distance.DOT])
def test_feedback_lies_over_a_collection_without_changing_it(
    layout: str, vector: str, distance: models.Distance, encoders: tuple[Encoder, Encoder], tmp_path: Path
) -> None:
    client = QdrantClient(":memory:")
    fill(client, encoders[0], layout, vector=vector, distance=distance)
    before, embedding = client.scroll("old", with_vectors=True, limit=9)[0], LoRAEmbeddings(encoder=encoders[0])
    ledger = tmp_path / "clicks.sqlite"
    store = RagAdaptVectorStore.from_existing_collection(embedding, client=client, collection="old", feedback=ledger)
    plain = store.similarity_search_with_score("loaf", k=4)
    last = str(plain[-1][0].id)
    store.add_feedback("loaf", last)
    if distance == models.Distance.COSINE:  # unit rows: half query, half passage
        learnt = {d.id: score for d, score in store.similarity_search_with_score("loaf", k=4, lam=0.5)}
        assert learnt[last] == pytest.approx(0.5 * plain[-1][1] + 0.5, abs=1e-3)
    assert store.similarity_search("loaf", k=1, lam=0.0)[0].id == last
    assert [d.id for d in store.similarity_search("loaf", k=4, lam=1.0)] == [d.id for d, _ in plain]
    after = client.scroll("old", with_vectors=True, limit=9)[0]
    assert [(record.id, record.payload) for record in after] == [(record.id, record.payload) for record in before]
    # The client's local mode brings stored vectors to length 1 once more with every search: the last bit may move.
    for one, other in zip(after, before, strict=True):
        rows = [next(iter(r.vector.values())) if isinstance(r.vector, dict) else r.vector for r in (one, other)]
        np.testing.assert_allclose(*rows, atol=1e-6)
    again = RagAdaptVectorStore.from_existing_collection(embedding, client=client, collection="old", feedback=ledger)
    assert again.similarity_search("loaf", k=1, lam=0.0)[0].id == last


def test_both_frameworks_read_both_layouts(
    client: QdrantClient, layout: str, encoders: tuple[Encoder, Encoder]
) -> None:
    documents = RagAdaptVectorStore.from_existing_collection(
        LoRAEmbeddings(encoder=encoders[0]), client=client, collection="old"
    )
    found = documents.similarity_search("red", k=4, filter={"lang": "de"})
    assert {document.page_content for document in found} == {TEXTS[2], TEXTS[3]}
    assert documents.similarity_search("oven bread", k=1, search_type="lexical")[0].page_content == TEXTS[2]
    if layout == "langchain":
        assert documents.get_by_ids([NAMES[0]])[0].metadata == METADATA[0]
    nodes = NodeStore.from_existing_collection(LoRAEmbedding(encoder=encoders[0]), client=client, collection="old")
    (node,) = nodes.get_nodes([NAMES[0]])
    assert (node.node_id, node.get_content(), node.metadata["lang"]) == (NAMES[0], TEXTS[0], "en")
    if layout == "llama-index":
        assert node.ref_doc_id == "doc"
        assert node.metadata == METADATA[0]


def test_an_encoder_that_did_not_fill_the_collection_is_refused(
    client: QdrantClient, encoders: tuple[Encoder, Encoder]
) -> None:
    index = ForeignQdrantIndex.existing(client=client, collection="old")
    assert index.check_encoder(encoders[0].encode_passages) > 0.999
    with pytest.raises(FingerprintMismatch, match="was filled by another encoder, or with another passage prompt"):
        index.check_encoder(encoders[1].encode_passages)
    with pytest.raises(DimensionMismatch, match="holds 32-d vectors, the encoder makes 5-d"):
        index.check_encoder(lambda texts: np.ones((len(texts), 5), np.float32))
    with pytest.raises(FingerprintMismatch):
        RagAdaptVectorStore.from_existing_collection(
            LoRAEmbeddings(encoder=encoders[1]), client=client, collection="old"
        )


def test_collections_that_cannot_be_opened_are_named(encoders: tuple[Encoder, Encoder]) -> None:
    client = QdrantClient(":memory:")
    with pytest.raises(InvalidInput, match="no collection 'nowhere'"):
        ForeignQdrantIndex.existing(client=client, collection="nowhere")
    with pytest.raises(InvalidInput, match="Give the URL"):
        ForeignQdrantIndex.existing(collection="nowhere")
    params = models.VectorParams(size=3, distance=models.Distance.EUCLID)
    client.create_collection("far", vectors_config=params)
    with pytest.raises(IndexFault, match="compares by Euclid"):
        ForeignQdrantIndex.existing(client=client, collection="far")
    params = models.VectorParams(size=3, distance=models.Distance.COSINE)
    client.create_collection("empty", vectors_config=params)
    with pytest.raises(InvalidInput, match="is empty"):
        ForeignQdrantIndex.existing(client=client, collection="empty")
    client.upsert("empty", [models.PointStruct(id=1, vector=[1, 0, 0], payload={"body": "x"})])
    with pytest.raises(InvalidInput, match=r"hold \['body'\]"):
        ForeignQdrantIndex.existing(client=client, collection="empty")
    client.create_collection("two", vectors_config={"a": params, "b": params})
    with pytest.raises(InvalidInput, match=r"has the vectors \['a', 'b'\]"):
        ForeignQdrantIndex.existing(client=client, collection="two")
    with pytest.raises(InvalidInput, match="has no vector 'c'"):
        ForeignQdrantIndex.existing(client=client, collection="two", vector_name="c")
    with pytest.raises(InvalidInput, match="layout is 'haystack'"):
        ForeignQdrantIndex.existing(client=client, collection="two", layout="haystack")  # type: ignore[arg-type]


def test_a_server_that_does_not_answer_is_named_without_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragadapt.index.qdrant.time.sleep", lambda seconds: None)
    with pytest.raises(
        IndexUnreachable, match=r"Qdrant at http://127\.0\.0\.1:9 does not answer after 4 tries"
    ) as found:
        ForeignQdrantIndex.existing("http://user:hush@127.0.0.1:9", "docs", api_key="secret-key", timeout_seconds=1)
    assert "secret" not in str(found.value)
    assert "hush" not in str(found.value)


def test_an_adapted_query_side_searches_the_old_vectors(
    client: QdrantClient, encoders: tuple[Encoder, Encoder], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    base = open_encoder(folders[0], precision="float32")
    adapted = attach(base, AdapterConfig.model_validate({"rank": 4, "adapt": "query"}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # as if it had been trained
        for parameter in adapted.trainable().values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapted.merged().save(tmp_path / "model")
    embeddings = LoRAEmbeddings(model=str(tmp_path / "model"), precision="float32")
    query = np.array(embeddings.embed_query("red river"))
    assert float(query @ encoders[0].encode_queries(["red river"])[0]) < 0.999  # the query side did move
    store = RagAdaptVectorStore.from_existing_collection(embeddings, client=client, collection="old")
    expected = encoders[0].encode_passages(TEXTS) @ query
    found = store.similarity_search_with_score("red river", k=4)
    assert [document.page_content for document, _ in found] == [TEXTS[row] for row in np.argsort(-expected)]
    assert [score for _, score in found] == [pytest.approx(score, abs=1e-3) for score in sorted(expected)[::-1]]


# Migration


def test_migration_keeps_ids_and_payloads_and_switches_the_alias_at_once(
    client: QdrantClient, layout: str, encoders: tuple[Encoder, Encoder]
) -> None:
    alias = models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name="old", alias_name="live"))
    client.update_collection_aliases([alias])
    before = records(client, "old")
    old = ForeignQdrantIndex.existing(client=client, collection="old")
    new = migrate(old, "new", encoders[1].encode_passages, alias="live", fingerprint=encoders[1].fingerprint)
    assert records(client, "new") == records(client, "old") == before
    np.testing.assert_allclose(new.vectors(NAMES), encoders[1].encode_passages(TEXTS), atol=1e-5)
    live = ForeignQdrantIndex.existing(client=client, collection="live")
    np.testing.assert_allclose(live.vectors(NAMES), new.vectors(NAMES), atol=1e-6)
    assert live.check_encoder(encoders[1].encode_passages) > 0.999
    store = RagAdaptVectorStore.from_existing_collection(
        LoRAEmbeddings(encoder=encoders[1]), client=client, collection="live"
    )
    expected = encoders[1].encode_passages(TEXTS) @ encoders[1].encode_queries(["red river"])[0]
    (document, score), *_ = store.similarity_search_with_score("red river", k=4)
    assert (document.page_content, score) == (TEXTS[int(expected.argmax())], pytest.approx(expected.max(), abs=1e-4))
    assert live.layout == layout


def test_readers_of_the_alias_find_all_points_at_every_moment(
    client: QdrantClient, encoders: tuple[Encoder, Encoder]
) -> None:
    client.update_collection_aliases(
        [models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name="old", alias_name="live"))]
    )
    seen: list[int] = []

    def encode(texts: list[str]) -> Any:
        seen.append(client.count("live").count)
        return encoders[1].encode_passages(texts)

    migrate(ForeignQdrantIndex.existing(client=client, collection="old"), "new", encode, alias="live")
    assert len(seen) > 1
    assert set(seen) == {4}
    assert client.count("live").count == 4


def test_what_is_written_during_a_migration_is_caught_up_with(
    client: QdrantClient, layout: str, encoders: tuple[Encoder, Encoder]
) -> None:
    passes = 0

    def encode(texts: list[str]) -> Any:
        nonlocal passes
        passes += 1
        if passes == 2:  # the first batch of points is being copied: one goes, one changes, one comes
            client.delete("old", models.PointIdsList(points=[IDS[0]]))
            client.set_payload("old", {"n": 99}, points=[IDS[1]], key="metadata" if layout == "langchain" else None)
            row = encoders[0].encode_passages(["new text"])[0].tolist()
            client.upsert("old", [models.PointStruct(id=99, vector=row, payload=PAYLOADS[layout](3))])
        return encoders[1].encode_passages(texts)

    migrate(ForeignQdrantIndex.existing(client=client, collection="old"), "new", encode)
    assert passes > 2
    assert records(client, "new") == records(client, "old")
    assert set(records(client, "new")) == {NAMES[1], NAMES[2], NAMES[3], "99"}


def test_migration_refuses_names_that_are_taken(client: QdrantClient, encoders: tuple[Encoder, Encoder]) -> None:
    old = ForeignQdrantIndex.existing(client=client, collection="old")
    with pytest.raises(InvalidInput, match="There is a collection 'old' already"):
        migrate(old, "old", encoders[1].encode_passages)
    with pytest.raises(InvalidInput, match="'old' is a collection, not an alias"):
        migrate(old, "new", encoders[1].encode_passages, alias="old")
    assert not client.collection_exists("new")


def test_a_collection_that_never_rests_is_given_up(client: QdrantClient, encoders: tuple[Encoder, Encoder]) -> None:
    count = 0

    def encode(texts: list[str]) -> Any:
        nonlocal count
        count += 1
        row = encoders[0].encode_passages(["x"])[0].tolist()
        client.upsert("old", [models.PointStruct(id=1000 + count, vector=row, payload=langchain_payload(0))])
        return encoders[1].encode_passages(texts)

    with pytest.raises(IndexFault, match="changes faster than it can be copied"):
        migrate(ForeignQdrantIndex.existing(client=client, collection="old"), "new", encode)
