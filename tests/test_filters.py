"""Filters of saved retrievers and stores: on what every result shows, in every kind of index and at every door."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_ragadapt import LoRARetriever
from langchain_ragadapt import RagAdaptVectorStore as DocumentStore
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index_ragadapt import LoRARetriever as NodeRetriever
from llama_index_ragadapt import RagAdaptVectorStore as NodeStore
from ragadapt_cli.main import run
from small_retriever import fit_pages

from ragadapt import Retriever
from ragadapt.errors import InvalidFilter
from ragadapt.values import Chunk

SHOWN = ("source", "document_id", "id")


@pytest.fixture(scope="module", params=["exact", "faiss", "qdrant-edge", "qdrant"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_pages(tmp_path_factory.mktemp(request.param), kind=request.param)


@pytest.fixture
def opened(folder: Path) -> Iterator[Retriever]:
    with Retriever.open(folder) as retriever:
        yield retriever


def heading(chunk: Chunk) -> str:
    return " > ".join(chunk.heading_path)


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_what_every_result_shows_can_be_filtered(opened: Retriever, mode: Any) -> None:
    chunks = list(opened.chunks)
    text = " ".join(chunk.text for chunk in chunks[:6])  # meets every word of some pages
    found = {hit.chunk.id: hit.chunk for hit in opened.search(text, 100, mode=mode)}
    one = next(chunk for chunk in found.values() if chunk.document_id.startswith("page0"))

    def passing(filter: dict[str, Any]) -> set[str]:
        return {hit.chunk.id for hit in opened.search(text, 100, mode=mode, filter=filter)}

    same = {id for id, chunk in found.items() if chunk.document_id == one.document_id}
    assert passing({"document_id": one.document_id}) == same
    assert passing({"source": one.source}) == same
    assert passing({"id": one.id}) == {one.id}
    assert passing({"heading": heading(one)}) == {id for id, chunk in found.items() if heading(chunk) == heading(one)}
    assert passing({"document_id": {"$ne": one.document_id}}) == found.keys() - same
    assert passing({"$or": [{"id": one.id}, {"$and": [{"lang": "de"}, {"source": {"$text": "page0"}}]}]}) == {
        id
        for id, chunk in found.items()
        if id == one.id or (chunk.metadata["lang"] == "de" and "page0" in chunk.source)
    }
    assert passing({"document_id": "elsewhere"}) == set()
    assert passing({"document_id": {"$exists": True}}) == set(found)
    assert passing({"number": {"$gte": 3}, "source": {"$in": [one.source, "x"]}}) == {
        id for id in same if found[id].metadata["number"] >= 3
    }


def test_a_filter_remembers_the_types_of_its_values(opened: Retriever) -> None:
    def numbers(filter: dict[str, Any]) -> set[int]:
        return {hit.chunk.metadata["number"] for hit in opened.search("page", 100, filter=filter)}

    for value in (np.int64(3), 3, 3.0, np.float32(3)):
        assert numbers({"number": value}) == {3}
    for other in ("3", True, "np.int64(3)", "<object>"):
        assert numbers({"number": other}) == set()
    assert numbers({"number": {"$in": [np.int64(3), "4"]}}) == {3}
    assert numbers({"number": {"$in": ["3", np.int64(4)]}}) == {4}
    assert numbers({"number": np.int64(3)}) == {3}


@pytest.mark.parametrize("filter", [[], "", 0, False, "lang", ["lang"]])
def test_what_is_no_filter_is_refused_and_never_everything(opened: Retriever, filter: Any) -> None:
    with pytest.raises(InvalidFilter):
        opened.search("page", filter=filter)
    with pytest.raises(InvalidFilter):
        LoRARetriever(retriever=opened, filter=filter).invoke("page")
    with pytest.raises(InvalidFilter):
        NodeRetriever(opened, filters=filter).retrieve("page")


def test_every_door_takes_them(folder: Path, opened: Retriever, capsys: pytest.CaptureFixture[str]) -> None:
    one = opened.search("page", 1)[0].chunk
    wanted = {chunk.id for chunk in opened.chunks.of_document(one.document_id)}
    for name in SHOWN:
        value = getattr(one, name)
        expected = {one.id} if name == "id" else wanted
        documents = LoRARetriever(retriever=opened, k=100, search_type="dense", filter={name: value}).invoke("page")
        assert {document.id for document in documents} == expected
        filters = MetadataFilters(filters=[MetadataFilter(key=name, value=value)])
        nodes = NodeRetriever(opened, 100, filters=filters, search_type="dense").retrieve("page")
        assert {node.node.node_id for node in nodes} == expected
    opened.close()  # an embedded index is open once at a time
    store = DocumentStore.from_pretrained(folder, search_type="dense")
    found = store.similarity_search("page", 100, filter={"document_id": one.document_id})
    assert {document.id for document in found} == wanted and found[0].metadata["document_id"] == one.document_id
    store.close()
    nodes_of = NodeStore.from_pretrained(folder, search_type="dense")
    filters = MetadataFilters(filters=[MetadataFilter(key="source", value=one.source)])
    assert {node.node_id for node in nodes_of.get_nodes(filters=filters)} == wanted
    vector = nodes_of.embed_model.get_query_embedding("page")
    query = VectorStoreQuery(query_embedding=vector, similarity_top_k=100, filters=filters)
    assert set(nodes_of.query(query).ids or ()) == wanted
    nodes_of.close()
    arguments = ["search", str(folder), "page", "-k", "100", "--mode", "dense", "--json", "--filter"]
    assert run([*arguments, json.dumps({"document_id": one.document_id})]) == 0
    assert {hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]} == wanted
    assert run([*arguments, '{"$not":' * 3000 + "1" + "}" * 3000]) != 0
    assert "Traceback" not in capsys.readouterr().err


# Metadata with names of our own or of LlamaIndex's


def test_metadata_called_document_id_is_the_user_s() -> None:
    store = NodeStore(kind="exact", dim=2)
    nodes = [
        TextNode(
            id_=f"n{at}", text="a", metadata={"document_id": f"d{at}", "doc_id": at, "note": note}, embedding=[1, at]
        )
        for at, note in enumerate(["", "x"])
    ]
    store.add([*nodes, TextNode(id_="bare", text="b", embedding=[1, 2])])

    def passing(key: str, value: Any, operator: FilterOperator = FilterOperator.EQ) -> set[str]:
        filters = MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])
        return {node.node_id for node in store.get_nodes(filters=filters)}

    assert passing("document_id", "d1") == {"n1"}
    assert passing("doc_id", 0) == {"n0"}
    assert passing("note", None, FilterOperator.IS_EMPTY) == {"n0", "bare"}
    assert {node.node_id: node.metadata for node in store.get_nodes(["n1"])} == {"n1": nodes[1].metadata}


def test_nodes_of_a_document_are_deleted_by_it_whatever_their_metadata_say() -> None:
    from llama_index.core.schema import NodeRelationship, RelatedNodeInfo

    store = NodeStore(kind="exact", dim=2)
    for name in ("a", "b"):
        node = TextNode(id_=name, text=name, metadata={"ref_doc_id": "other", "doc_id": "b"}, embedding=[1, 0])
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=f"doc-{name}")
        store.add([node])
    query = VectorStoreQuery(query_embedding=[1, 0], similarity_top_k=9, doc_ids=["doc-b"])
    assert store.query(query).ids == ["b"]
    store.delete("other")
    assert len(store) == 2
    store.delete("doc-a")
    assert [node.node_id for node in store.get_nodes()] == ["b"]


def test_filters_of_llama_index_that_hold_themselves_are_refused() -> None:
    filters = MetadataFilters(filters=[MetadataFilter(key="a", value=1)])
    filters.filters.append(filters)
    with pytest.raises(InvalidFilter, match="deep"):
        NodeStore(kind="exact", dim=2).get_nodes(filters=filters)
