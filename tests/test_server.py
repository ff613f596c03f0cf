"""The server: what clients of other programs get from it is what the retriever itself says."""

from __future__ import annotations

import asyncio
import base64
import copy
import gzip
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cohere
import httpx
import httpx2
import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from ragadapt_cli.main import run
from ragadapt_server.engine import Engine
from ragadapt_server.filters import dify_filter, openai_filter
from ragadapt_server.metrics import Metrics
from ragadapt_server.settings import ServerSettings, named_retrievers
from ragadapt_server.tokens import Caller, Tokens, add_token
from running_server import running
from small_retriever import fit_pages, write_pages

from ragadapt.encoder import Encoder
from ragadapt.errors import InvalidInput
from ragadapt.pipeline.refresh import refresh_documents, rollback
from ragadapt.retriever import Retriever
from ragadapt.search.context import Expand


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit; its retriever lies in retriever/."""
    folder = tmp_path_factory.mktemp("server")
    fit_pages(folder)
    return folder


@pytest.fixture(scope="module")
def retriever(made: Path) -> Iterator[Retriever]:
    with Retriever.open(made / "retriever") as opened:
        yield opened


@pytest.fixture(scope="module")
def address(made: Path) -> Iterator[str]:
    with running(("pages", made / "retriever"), labels=(("pages", str(made / "questions.jsonl")),)) as address:
        yield address


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy of the retriever that a test may change."""
    return Path(shutil.copytree(made / "retriever", tmp_path / "retriever"))


def post(address: str, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{address}{path}", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


# Embeddings


def test_openai_client_gets_the_encoders_own_vectors(address: str, retriever: Retriever) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    texts = ["old red stone", "the river", "old red stone"]
    got = client.embeddings.create(model="pages", input=texts)  # the client asks for base64
    assert [one.index for one in got.data] == [0, 1, 2]
    np.testing.assert_allclose([one.embedding for one in got.data], retriever.encoder.encode_passages(texts), atol=1e-6)
    assert got.usage.prompt_tokens == sum(retriever.encoder.count_tokens(texts))
    plain = client.embeddings.create(model="pages-query", input=texts[0], encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, retriever.encoder.encode_queries(texts[:1])[0], atol=1e-6)
    assert [model.id for model in client.models.list()] == ["pages", "pages-query", "pages-document"]
    assert client.models.retrieve("pages-query").id == "pages-query"
    for call in (client.models.retrieve, lambda model: client.embeddings.create(model=model, input="x")):
        with pytest.raises(openai.NotFoundError, match="pages-document"):
            call("text-embedding-3-small")


def test_langchain_openai_embeds_both_sides(address: str, retriever: Retriever) -> None:
    made = OpenAIEmbeddings(
        model="pages-query", base_url=f"{address}/v1", api_key="none", check_embedding_ctx_length=False
    )
    np.testing.assert_allclose(
        made.embed_query("the river"), retriever.encoder.encode_queries(["the river"])[0], atol=1e-6
    )
    assert np.shape(made.embed_documents(["the river", "a cat"])) == (2, retriever.encoder.dim)


def test_llama_index_openai_like_embeds(address: str, retriever: Retriever) -> None:
    made = OpenAILikeEmbedding(model_name="pages-document", api_base=f"{address}/v1", api_key="none")
    np.testing.assert_allclose(
        made.get_text_embedding("the river"), retriever.encoder.encode_passages(["the river"])[0], atol=1e-6
    )


def test_input_type_chooses_the_side_that_the_name_leaves_open(made: Path, tmp_path: Path) -> None:
    # A model whose sides differ: a prompt before queries alone.
    from ragadapt.config import FitConfig
    from ragadapt.pipeline.fit import fit

    config = FitConfig.build(
        {
            "encoder": {"model": str(made / "base" / "model"), "precision": "float32", "query_prompt": "what is "},
            "chunk": {"max_tokens": 40, "min_tokens": 4},
            "adapter": {"method": "none"},
            "index": {"kind": "exact"},
        }
    )
    folder = fit([made / "docs"], tmp_path / "prompted", config).path
    with Retriever.open(folder) as opened, running(("prompted", folder)) as address:
        query, passage = opened.encoder.encode_queries(["stone"])[0], opened.encoder.encode_passages(["stone"])[0]
        assert not np.allclose(query, passage, atol=1e-3)

        def embedded(**body: str) -> Any:
            return post(address, "/v1/embeddings", input="stone", **body)["data"][0]["embedding"]

        for kind in ("search_query", "query"):
            np.testing.assert_allclose(embedded(model="prompted", input_type=kind), query, atol=1e-6)
        for kind in ("search_document", "passage", "document"):
            np.testing.assert_allclose(embedded(model="prompted", input_type=kind), passage, atol=1e-6)
        np.testing.assert_allclose(embedded(model="prompted"), passage, atol=1e-6)
        np.testing.assert_allclose(embedded(model="prompted-query"), query, atol=1e-6)
        answer = httpx.post(
            f"{address}/v1/embeddings", json={"model": "prompted-query", "input": "a", "input_type": "passage"}
        )
        assert answer.status_code == 400 and "two sides" in answer.text


def test_token_ids_are_read_where_they_are_the_models_own(address: str, retriever: Retriever) -> None:
    ids = retriever.encoder._ids("old red stone")
    text = post(address, "/v1/embeddings", model="pages", input="old red stone")["data"][0]["embedding"]
    for given in (ids, [ids]):
        assert post(address, "/v1/embeddings", model="pages", input=given)["data"][0]["embedding"] == text
    foreign = [[40_000, 3], [-1], [], [len(retriever.encoder._tokenizer)]]
    for given in foreign:
        answer = httpx.post(f"{address}/v1/embeddings", json={"model": "pages", "input": [given]})
        assert answer.status_code == 400 and "tokenizer" in answer.json()["error"]["message"], given


def test_dimensions_shorten_vectors_to_unit_length(address: str, retriever: Retriever) -> None:
    whole = retriever.encoder.encode_passages(["stone"])[0]
    got = post(address, "/v1/embeddings", model="pages", input="stone", dimensions=8)["data"][0]["embedding"]
    np.testing.assert_allclose(got, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-6)
    answer = httpx.post(f"{address}/v1/embeddings", json={"model": "pages", "input": "stone", "dimensions": 4096})
    assert answer.status_code == 400


def test_base64_is_little_endian_float32(address: str) -> None:
    plain = post(address, "/v1/embeddings", model="pages", input="stone")["data"][0]["embedding"]
    text = post(address, "/v1/embeddings", model="pages", input="stone", encoding_format="base64")["data"][0]
    assert np.frombuffer(base64.b64decode(text["embedding"]), "<f4").tolist() == plain


def test_many_requests_at_once_get_each_their_own_vectors(address: str, retriever: Retriever) -> None:
    words = [f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in ("stone", "cat", "river", "bread")]
    requests = [words[at : at + size] for size in (1, 2, 5) for at in range(0, len(words), size)]
    expected = dict(zip(words, retriever.encoder.encode_passages(words), strict=True))
    wrong: list[Any] = []

    def ask(texts: list[str]) -> None:
        got = post(address, "/v1/embeddings", model="pages", input=texts)["data"]
        if not np.allclose([one["embedding"] for one in got], [expected[text] for text in texts], atol=1e-5):
            wrong.append(texts)

    threads = [threading.Thread(target=ask, args=(texts,)) for texts in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    sizes = httpx.get(f"{address}/metrics").text
    assert 'ragadapt_batch_size_bucket{le="1.0",stage="encode"}' in sizes


# Re-ranking


def test_score_of_an_indexed_passage_is_that_of_a_search(made: Path, retriever: Retriever) -> None:
    # Headings count twice in the index and cannot be told from a text, so the mix is compared without them.
    hits = retriever.search("old red stone", 28, lam=1)
    texts = [hit.chunk.text for hit in hits]
    vectors = retriever.searcher.index.vectors([hit.chunk.id for hit in hits])
    scores, sure = retriever.snapshot().score("old red stone", texts, vectors)
    lexical = retriever.searcher.lexical
    headless = type(lexical).build([hit.chunk.id for hit in hits], texts)
    asked = ["old red stone", "stone stone zebra", "zebra"]
    for query in asked:
        np.testing.assert_allclose(
            headless.scores_of_texts(query, texts), headless.scores([query])[0], rtol=1e-5, atol=1e-6
        )
    # The dense side is the same to the last digit: with its share of 1 so are the scores.
    from dataclasses import replace

    dense_only = retriever.searcher.with_fusion(replace(retriever.fusion, weight=1.0))
    (query_vector,) = retriever.encoder.encode_queries(["old red stone"])
    ranked = dense_only.rank(["old red stone"], query_vector[None], 28)[0]
    again, _ = dense_only.score_texts("old red stone", query_vector, texts, vectors)
    by_id = dict(zip([hit.chunk.id for hit in hits], again, strict=True))
    np.testing.assert_allclose([by_id[id] for id in ranked.ids], ranked.scores, rtol=1e-4, atol=1e-4)
    assert scores.shape == (len(hits),)
    assert sure[np.argsort(-scores, kind="stable")].tolist() == sorted(sure.tolist(), reverse=True)
    assert 0 < sure.min() < sure.max() < 1


def test_cohere_client_reranks_as_the_retriever_scores(address: str, retriever: Retriever) -> None:
    texts = ["a cat", "the old red stone by the river", "bread", "red"]
    expected = np.argsort(-retriever.score("old red stone", texts), kind="stable").tolist()
    for client in (cohere.ClientV2(api_key="none", base_url=address), cohere.Client(api_key="none", base_url=address)):
        got = client.rerank(model="pages", query="old red stone", documents=texts, top_n=3)
        assert [one.index for one in got.results] == expected[:3]
        scores = [one.relevance_score for one in got.results]
        sure = retriever.snapshot().score("old red stone", texts)[1]
        np.testing.assert_allclose(scores, np.sort(sure)[::-1][:3], rtol=1e-3)


def test_rerank_gives_documents_back_and_tei_is_told_by_its_keys(address: str, retriever: Retriever) -> None:
    texts = ["a cat", "the old red stone", "  "]
    scores = retriever.score("red stone", texts)
    got = post(address, "/v1/rerank", query="red stone", documents=[{"text": text} for text in texts],
               return_documents=True)  # fmt: skip
    assert [one["document"]["text"] for one in got["results"]] == [texts[one["index"]] for one in got["results"]]
    assert got["results"][-1]["index"] == 2 and got["usage"]["total_tokens"] > 0
    assert got["meta"]["api_version"]["version"]  # Cohere's clients before 5 fail without it
    raw = post(address, "/rerank", query="red stone", texts=texts, raw_scores=True, return_text=True)
    assert [one["text"] for one in raw] == [texts[one["index"]] for one in raw]
    np.testing.assert_allclose(
        [one["score"] for one in raw if one["index"] < 2],
        [scores[one["index"]] for one in raw if one["index"] < 2],
        rtol=1e-4,
    )
    assert all(0 <= one["score"] <= 1 for one in post(address, "/rerank", query="red stone", texts=texts))


# Search


def test_search_is_that_of_the_retriever(address: str, retriever: Retriever) -> None:
    for settings in ({}, {"mode": "dense"}, {"mode": "lexical"}, {"filter": {"lang": "en"}, "k": 3}, {"lam": 1.0}):
        hits = post(address, "/search", query="old red stone", **settings)["hits"]
        expected = retriever.search("old red stone", **settings)  # type: ignore[arg-type]
        assert [hit["id"] for hit in hits] == [hit.chunk.id for hit in expected], settings
        np.testing.assert_allclose([hit["score"] for hit in hits], [hit.score for hit in expected], rtol=1e-4)
        assert [hit["text"] for hit in hits] == [hit.chunk.text for hit in expected]
        np.testing.assert_allclose([hit["confidence"] for hit in hits], [hit.confidence for hit in expected], rtol=1e-3)
        assert all(hit["url"] == f"ragadapt://pages/{hit['id'].replace('#', '%23')}" for hit in hits)


def test_search_leaves_out_what_it_is_not_sure_of(address: str, retriever: Retriever) -> None:
    hits = retriever.search("old red stone", 5)
    least = float(hits[2].confidence)  # type: ignore[arg-type]
    found = post(address, "/search", query="old red stone", min_confidence=least * 0.999)["hits"]
    kept = [hit.chunk.id for hit in hits if hit.confidence >= least]  # type: ignore[operator]
    assert [hit["id"] for hit in found] == kept and 3 <= len(kept) < 5
    assert httpx.post(f"{address}/search", json={"query": "red", "min_confidence": 1.5}).status_code == 400


def test_search_gives_what_stands_around_a_hit(address: str, retriever: Retriever) -> None:
    body: dict[str, Any]
    for body in (
        {"expand": "document", "tokens": 150},
        {"tokens": 90},
        {"max_per_document": 1, "fold": "near", "k": 9},
    ):
        hits = post(address, "/search", query="old red stone", **body)["hits"]
        given = {name: value for name, value in body.items() if name not in ("expand", "tokens")}
        if "tokens" in body:
            given["expand"] = Expand(body.get("expand", "neighbours"), body["tokens"])
        expected = retriever.search("old red stone", **given)
        assert [hit["id"] for hit in hits] == [hit.chunk.id for hit in expected]
        assert [hit["context"] and hit["context"]["text"] for hit in hits] == [
            hit.context and hit.context.text for hit in expected
        ]
    refused = httpx.post(f"{address}/search", json={"query": "stone", "expand": "paragraph"})
    assert refused.status_code == 400 and "expand" in refused.text


def test_a_server_may_expand_for_clients_that_cannot_ask_for_it(made: Path, retriever: Retriever) -> None:
    query = "old red stone"
    texts = [hit.text for hit in retriever.search(query, 4, expand=Expand("document", 200))]
    assert texts != [hit.text for hit in retriever.search(query, 4)]
    with running(("pages", made / "retriever"), expand="document", tokens=200) as address:
        setting = {"top_k": 4, "score_threshold": 0.0}
        records = post(address, "/retrieval", knowledge_id="pages", query=query, retrieval_setting=setting)["records"]
        assert [one["content"] for one in records] == texts
        # What a threshold leaves out takes nothing of the budget.
        least = retriever.search(query, 4)[1].confidence
        above = [hit.text for hit in retriever.search(query, 4, expand=Expand("document", 200), min_confidence=least)]
        setting["score_threshold"] = least
        records = post(address, "/retrieval", knowledge_id="pages", query=query, retrieval_setting=setting)["records"]
        assert [one["content"] for one in records] == above != texts[: len(above)]
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
        page = client.vector_stores.search("pages", query=query, max_num_results=4)
        assert [one.content[0].text for one in page.data] == texts
        page = client.vector_stores.search(
            "pages", query=query, max_num_results=4, ranking_options={"score_threshold": least}
        )
        assert [one.content[0].text for one in page.data] == above
        hits = post(address, "/search", query=query, k=4)["hits"]
        assert [hit["context"]["text"] for hit in hits] == texts
        assert all(hit["context"] is None for hit in post(address, "/search", query=query, expand="none")["hits"])


def test_openai_client_searches_a_vector_store(address: str, retriever: Retriever) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    filters = {
        "type": "and",
        "filters": [
            {"type": "eq", "key": "lang", "value": "de"},
            {
                "type": "or",
                "filters": [
                    {"type": "gte", "key": "number", "value": 4},
                    {"type": "in", "key": "number", "value": [0]},
                ],
            },
        ],
    }  # fmt: skip
    page = client.vector_stores.search("pages", query="old red stone", max_num_results=4, filters=filters)
    expected = retriever.search(
        "old red stone", 4, filter={"lang": "de", "$or": [{"number": {"$gte": 4}}, {"number": {"$in": [0]}}]}
    )
    assert [one.content[0].text for one in page.data] == [hit.chunk.text for hit in expected]
    assert all(one.attributes["lang"] == "de" for one in page.data)
    np.testing.assert_allclose([one.score for one in page.data], [hit.confidence for hit in expected], rtol=1e-3)
    assert page.data[0].file_id == expected[0].chunk.document_id
    high = client.vector_stores.search("pages", query="old red stone", ranking_options={"score_threshold": 0.999})
    assert high.data == []


def test_dify_gets_records_with_scores_from_0_to_1(address: str, retriever: Retriever) -> None:
    body = {
        "knowledge_id": "pages",
        "query": "old red stone",
        "retrieval_setting": {"top_k": 4, "score_threshold": 0.0},
        "metadata_condition": {
            "logical_operator": "and",
            "conditions": [{"name": ["lang"], "comparison_operator": "is", "value": "de"}],
        },
    }
    records = post(address, "/retrieval", **body)["records"]
    expected = retriever.search("old red stone", 4, filter={"lang": "de"})
    assert [one["content"] for one in records] == [hit.chunk.text for hit in expected]
    for one in records:
        assert one["title"] and isinstance(one["metadata"], dict)
    np.testing.assert_allclose([one["score"] for one in records], [hit.confidence for hit in expected], rtol=1e-3)
    least = sorted(one["score"] for one in records)[-2]
    body["retrieval_setting"] = {"top_k": 4, "score_threshold": least}
    assert [one["score"] for one in post(address, "/retrieval", **body)["records"]] >= [least, least]
    answer = httpx.post(f"{address}/retrieval", json={**body, "knowledge_id": "other"})
    assert answer.status_code == 404 and answer.json()["error_code"] == 2001


def test_dify_can_register_the_address_and_leave_fields_open(address: str, own: Path, tmp_path: Path) -> None:
    probe = {"knowledge_id": "", "query": "", "retrieval_setting": {"top_k": 1, "score_threshold": 0.0}}
    assert post(address, "/retrieval", **probe) == {"records": []}
    tokens = tmp_path / "tokens"
    token = add_token(tokens)
    with running(("pages", own), token_file=str(tokens)) as guarded:
        for known, status in ((token, 200), ("wrong", 403)):
            headers = {"Authorization": f"Bearer {known}"}
            assert httpx.post(f"{guarded}/retrieval", json=probe, headers=headers).status_code == status
            # Older versions send no body, and refuse an address that answers 403, 404 or 502.
            bare = httpx.post(f"{guarded}/retrieval", headers=headers).status_code
            assert bare == (400 if status == 200 else 403)
    asked = {"knowledge_id": "pages", "query": "old red stone", "metadata_condition": None}
    left_open = {"top_k": None, "score_threshold": None}  # what nobody set in Dify
    records = post(address, "/retrieval", **asked, retrieval_setting={"top_k": 5, "score_threshold": 0.0})["records"]
    assert len(records) == 5
    assert post(address, "/retrieval", **asked, retrieval_setting=left_open)["records"] == records
    assert post(address, "/retrieval", **asked, retrieval_setting=None)["records"] == records


@pytest.mark.parametrize(
    ("condition", "passing"),
    [
        ({"name": "lang", "comparison_operator": "is", "value": "de"}, lambda row: row["lang"] == "de"),
        ({"name": "lang", "comparison_operator": "is not", "value": "de"}, lambda row: row["lang"] != "de"),
        ({"name": "lang", "comparison_operator": "contains", "value": "d"}, lambda row: "d" in row["lang"]),
        ({"name": "lang", "comparison_operator": "not contains", "value": "d"}, lambda row: "d" not in row["lang"]),
        ({"name": "lang", "comparison_operator": "start with", "value": "e"}, lambda row: row["lang"][0] == "e"),
        ({"name": "source", "comparison_operator": "end with", "value": "3.md"}, lambda row: row["number"] == 3),
        ({"name": "lang", "comparison_operator": "start with", "value": "x"}, lambda row: False),
        ({"name": "lang", "comparison_operator": "in", "value": ["de", "fr"]}, lambda row: row["lang"] == "de"),
        ({"name": "lang", "comparison_operator": "not in", "value": ["de", "fr"]}, lambda row: row["lang"] != "de"),
        ({"name": "lang", "comparison_operator": "not in", "value": "de, fr"}, lambda row: row["lang"] != "de"),
        ({"name": "lang", "comparison_operator": "not empty"}, lambda row: True),
        ({"name": "lang", "comparison_operator": "empty"}, lambda row: False),
        ({"name": "nothing", "comparison_operator": "empty"}, lambda row: True),
        ({"name": "number", "comparison_operator": "=", "value": "3"}, lambda row: row["number"] == 3),
        ({"name": "number", "comparison_operator": "≠", "value": 3}, lambda row: row["number"] != 3),
        ({"name": "number", "comparison_operator": ">", "value": "3"}, lambda row: row["number"] > 3),
        ({"name": "number", "comparison_operator": "≤", "value": 3}, lambda row: row["number"] <= 3),
        ({"name": ["nothing", "lang"], "comparison_operator": "is", "value": "en"}, lambda row: row["lang"] == "en"),
        ({"name": ["lang", "no"], "comparison_operator": "is not", "value": "en"}, lambda row: row["lang"] != "en"),
    ],
)  # fmt: skip
def test_dify_conditions_let_through_what_they_say(condition: Any, passing: Any, retriever: Retriever) -> None:
    def values(name: str) -> list[Any]:
        return [fields[name] for _, fields in retriever.chunks.shown() if name in fields]

    filter = dify_filter({"logical_operator": "and", "conditions": [condition]}, values)
    assert filter is not None
    wanted = [id for id, row in retriever.chunks.metadata() if passing(row)]
    assert retriever.passing(filter) == wanted


@pytest.mark.parametrize(
    "condition",
    [
        {"name": "lang", "comparison_operator": "sounds like", "value": "d"},
        {"name": "number", "comparison_operator": ">", "value": "many"},
        {"name": [], "comparison_operator": "is", "value": "d"},
        {"name": "lang", "comparison_operator": ["is"], "value": "d"},
        {"name": "lang", "comparison_operator": "is"},
        "lang is d",
    ],
)
def test_dify_conditions_that_say_nothing_are_refused(condition: Any, address: str) -> None:
    body = {"knowledge_id": "pages", "query": "x", "metadata_condition": {"conditions": [condition]}}
    assert httpx.post(f"{address}/retrieval", json=body).status_code == 400


def test_openai_filters_that_say_nothing_are_refused() -> None:
    deep: Any = {"type": "eq", "key": "a", "value": 1}
    for _ in range(200):
        deep = {"type": "and", "filters": [deep]}
    for filter in (deep, {"type": "like", "key": "a", "value": 1}, {"type": "and", "filters": []}, [], {"type": "eq"}):
        with pytest.raises(InvalidInput):
            openai_filter(filter)


# Feedback


def test_feedback_counts_in_the_next_search_and_undo_restores(own: Path) -> None:
    with running(("pages", own)) as address:
        before = post(address, "/search", query="old red stone", k=28)["hits"]
        last = before[-1]["id"]
        key = post(address, "/feedback", query="old red stone", chunk_id=last, helpful=True)["key"]
        with Retriever.open(own) as other:  # it is on disk: another process has it too
            assert other.feedback().status().feedback == 1
        after = post(address, "/search", query="old red stone", k=28)["hits"]
        assert [hit["id"] for hit in after].index(last) < 27
        assert post(address, "/search", query="old red stone", k=28, lam=1.0)["hits"] == before
        assert httpx.get(f"{address}/status").json()["retrievers"][0]["feedback"] == 1
        assert post(address, "/feedback/undo", key=key) == {"withdrawn": 1}
        assert post(address, "/search", query="old red stone", k=28)["hits"] == before
        assert post(address, "/feedback/undo", key=key) == {"withdrawn": 0}
        bad = [
            {},
            {"query": "x"},
            {"query": "x", "chunk_id": "no such"},
            {"query": " ", "chunk_id": last},
            {"query": "x", "chunk_id": last, "weight": 1, "helpful": True},
            {"query": "x", "chunk_id": last, "colour": 1},
        ]
        for body in bad:
            assert httpx.post(f"{address}/feedback", json=body).status_code == 400, body


# Who may ask


def test_only_tokens_are_let_in_and_a_withdrawn_one_is_out(own: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    token, other = add_token(file), add_token(file, "acme")
    assert token not in file.read_text() and file.stat().st_mode & 0o077 == 0
    body = {"query": "stone"}
    with running(("pages", own), token_file=str(file)) as address:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": token}, {"Authorization": "Basic x"}):
            for path in ("/search", "/feedback", "/v1/embeddings", "/rerank", "/mcp", "/mcp/pages"):
                answer = httpx.post(f"{address}{path}", json=body, headers=headers)
                assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer", (path, headers)
            for path in ("/status", "/metrics", "/v1/models", "/readyz/../status"):
                assert httpx.get(f"{address}{path}", headers=headers).status_code == 401
        dify = {"knowledge_id": "pages", "query": "stone"}
        answer = httpx.post(f"{address}/retrieval", json=dify)
        assert (answer.status_code, answer.json()["error_code"]) == (403, 1001)
        answer = httpx.post(f"{address}/retrieval", json=dify, headers={"Authorization": "Bearer wrong"})
        assert (answer.status_code, answer.json()["error_code"]) == (403, 1002)
        for path in ("/", "/healthz", "/readyz", "/docs"):
            assert httpx.get(f"{address}{path}").status_code == 200
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.post(f"{address}/search", json=body, headers=headers).status_code == 200
        file.write_text("\n".join(file.read_text().splitlines()[1:]) + "\n")
        time.sleep(1.1)
        assert httpx.post(f"{address}/search", json=body, headers=headers).status_code == 401
        headers = {"Authorization": f"bearer {other}"}
        assert httpx.post(f"{address}/search", json=body, headers=headers).status_code == 200


def test_a_tenants_token_gives_and_takes_back_its_own_feedback_alone(own: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    acme, other = add_token(file, "acme"), add_token(file, "other")
    with running(("pages", own), token_file=str(file)) as address:

        def ask(token: str, path: str, **body: Any) -> httpx.Response:
            return httpx.post(f"{address}{path}", json=body, headers={"Authorization": f"Bearer {token}"}, timeout=30)

        before = ask(acme, "/search", query="old red stone", k=28).json()["hits"]
        last = before[-1]["id"]
        key = ask(acme, "/feedback", query="old red stone", chunk_id=last).json()["key"]
        assert ask(acme, "/search", query="old red stone", k=28).json()["hits"] != before
        assert ask(other, "/search", query="old red stone", k=28).json()["hits"] == before
        assert ask(other, "/search", query="old red stone", tenant="acme").status_code == 403
        assert ask(other, "/feedback", query="old red stone", chunk_id=last, tenant="acme").status_code == 403
        assert ask(other, "/feedback/undo", key=key).json() == {"withdrawn": 0}
        assert ask(other, "/feedback/undo", key=key, tenant="acme").status_code == 403
        assert ask(acme, "/feedback/undo", key=key).json() == {"withdrawn": 1}


def test_tokens_in_plain_text_are_refused_without_being_shown(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("# ours\nmy-secret-token\n")
    with pytest.raises(InvalidInput, match="line 2") as caught:
        Tokens(file)
    assert "my-secret" not in str(caught.value)
    file.write_text("# nobody\n")
    with pytest.raises(InvalidInput, match="no token"):
        Tokens(file)


def test_other_machines_need_a_token_or_a_word(made: Path) -> None:
    retrievers = (("pages", str(made / "retriever")),)
    for host in ("0.0.0.0", "::", "192.168.0.5", "example.com"):
        with pytest.raises(InvalidInput, match="--auth-token-file"):
            ServerSettings(retrievers, host=host)
        assert not ServerSettings(retrievers, host=host, no_auth=True).is_local
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.5"):
        assert ServerSettings(retrievers, host=host).is_local


def test_pages_of_other_sites_can_neither_write_nor_read(address: str) -> None:
    body = {"query": "stone"}
    assert httpx.post(f"{address}/search", json=body, headers={"Origin": "http://evil.example"}).status_code == 403
    for origin in ("null", "http://[", "", "http://evil.example:80@127.0.0.1"):
        assert httpx.post(f"{address}/search", json=body, headers={"Origin": origin}).status_code == 403, origin
    for host in ("[", "[::1", "", "evil.example:80@127.0.0.1:80@x"):
        assert httpx.post(f"{address}/search", json=body, headers={"Host": host}).status_code in (400, 421), host
    assert httpx.post(f"{address}/search", json=body, headers={"Host": "evil.example"}).status_code == 421
    assert httpx.post(f"{address}/search", json=body, headers={"Origin": address}).status_code == 200
    answer = httpx.get(f"{address}/v1/models", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_named_origins_may_call(made: Path) -> None:
    origin = {"Origin": "https://app.example"}
    with running(("pages", made / "retriever"), cors=("https://app.example",)) as address:
        answer = httpx.post(f"{address}/search", json={"query": "stone"}, headers=origin)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://app.example"
        asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        assert httpx.options(f"{address}/search", headers=asked).status_code == 200
        other = {"Origin": "https://other.example"}
        assert httpx.post(f"{address}/search", json={"query": "stone"}, headers=other).status_code == 403


def test_retrievers_are_named_by_their_folders_or_as_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert named_retrievers([str(tmp_path / "a"), "docs=./b"]) == (("a", str(tmp_path / "a")), ("docs", "./b"))
    for given in (["x=./a", "x=./b"], ["a b=./a"], ["docs-query=./a"], ["=./a"]):
        with pytest.raises(InvalidInput):
            named_retrievers(given)


# Limits


@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_bad_bodies_get_a_reason_and_never_an_error_of_ours(address: str, count: int) -> None:
    good: dict[str, dict[str, Any]] = {
        "/v1/embeddings": {"model": "pages", "input": ["stone"], "dimensions": 8, "encoding_format": "float"},
        "/v1/rerank": {"model": "pages", "query": "stone", "documents": ["a", {"text": "b"}], "top_n": 1},
        "/rerank": {"query": "stone", "texts": ["a"], "raw_scores": True},
        "/retrieval": {
            "knowledge_id": "pages", "query": "stone", "retrieval_setting": {"top_k": 2, "score_threshold": 0.5},
            "metadata_condition": {"conditions": [{"name": ["lang"], "comparison_operator": "is", "value": "de"}]},
        },
        "/v1/vector_stores/pages/search": {
            "query": "stone", "max_num_results": 2, "filters": {"type": "eq", "key": "lang", "value": "de"},
        },
        "/search": {"query": "stone", "k": 2, "mode": "dense", "filter": {"lang": "de"}, "lam": 0.5},
        "/feedback/undo": {"key": "nothing", "query": "stone"},
        "/label/next": {"retriever": "pages", "passage": False},
        "/label/question": {"question": "stone", "origin": "typed", "about": "page00.md#0"},
        "/label/judge": {"question": "stone", "chunk_id": "page00.md#0", "relevant": True},
        "/label/skip": {"question": "stone", "skipped": True},
    }  # fmt: skip
    odd: list[Any] = [
        None, True, -1, 0, 1.5, 1e308, 10**30, "", " ", "\ud800", "\0", "x" * 100_000, [], {}, [[]], [None],
        {"$gt": {}}, float("nan"), [1, "a"], {"a": {"b": {"c": [1, {}]}}}, "é\u202e", [["a"]], [-1], [2**70],
    ]  # fmt: skip
    chance = random.Random(3)
    statuses: dict[int, int] = {}
    with httpx.Client(base_url=address, timeout=30) as client:
        for path, body in good.items():
            assert client.post(path, json=body).status_code == 200, path
            for _ in range(count):
                made = json.loads(json.dumps(body))
                for _ in range(chance.randint(1, 2)):
                    holder, key = chance.choice(list(places(made)))
                    change = chance.randint(0, 3)
                    if change == 0:
                        del holder[key]
                        if not list(places(made)):
                            break
                    else:
                        holder[key] = copy.deepcopy(chance.choice(odd))  # the next change may be inside of it
                answer = client.post(path, content=json.dumps(made), headers={"Content-Type": "application/json"})
                statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
                assert answer.status_code < 500, (path, made, answer.text)
                assert "Traceback" not in answer.text and 'File "' not in answer.text
            for content in (
                b"",
                b"{",
                b"[]",
                b"null",
                b"\xff\xfe",
                b"[" * 100_000,
                b'{"query": NaN}',
                b"1e999",
                b'"x"',
            ):
                answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
                assert 400 <= answer.status_code < 500 and answer.text, (path, content[:20])
            assert "application/json" in client.post(path, content=b"query=x").text
    assert statuses[400] > 100


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a body: (what holds it, key)."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from places(value[key])


def test_null_is_a_field_left_out_for_clients_of_other_interfaces(address: str) -> None:
    def same(path: str, body: dict[str, Any], *names: str) -> None:
        plain, null = (post(address, path, **body, **more) for more in ({}, dict.fromkeys(names)))
        assert {**plain, "id": ""} == {**null, "id": ""}

    same("/v1/embeddings", {"model": "pages", "input": "stone"}, "encoding_format", "dimensions", "input_type", "user")
    same("/v1/rerank", {"query": "stone", "documents": ["a stone", "b"]}, "model", "top_n", "return_documents")
    search = {"query": "stone", "ranking_options": {"ranker": None, "score_threshold": None}}
    same("/v1/vector_stores/pages/search", search, "max_num_results", "filters", "rewrite_query")
    body = {"query": "stone", "documents": None, "texts": ["a stone", "b"], "raw_scores": None, "return_text": None}
    assert [set(one) for one in post(address, "/rerank", **body)] == [{"index", "score"}] * 2
    answer = httpx.post(f"{address}/v1/embeddings", json={"model": "pages", "input": None})
    assert answer.status_code == 400 and answer.json()["error"]["message"] == "input: Field required"


def test_an_encoded_body_is_refused_with_its_reason(address: str) -> None:
    body, headers = gzip.compress(b'{"query": "stone"}'), {"Content-Type": "application/json"}
    answer = httpx.post(f"{address}/search", content=body, headers={**headers, "Content-Encoding": "gzip"})
    assert answer.status_code == 415 and "gzip" in answer.json()["error"]["message"]
    headers["Content-Encoding"] = "identity"
    assert httpx.post(f"{address}/search", content=b'{"query": "stone"}', headers=headers).status_code == 200


def test_probes_may_ask_by_head_and_without_a_host(address: str) -> None:
    for path in ("/", "/label", "/docs", "/healthz", "/readyz"):
        answer = httpx.head(f"{address}{path}")
        assert answer.status_code == 200 and answer.content == b""
    server = urlsplit(address)
    for lines, status in (("GET /readyz HTTP/1.0", b"200"), ("GET /readyz HTTP/1.0\r\nHost: evil.example", b"421")):
        with socket.create_connection((server.hostname, server.port), timeout=10) as connection:
            connection.sendall(f"{lines}\r\n\r\n".encode())
            assert connection.recv(1000).split()[1] == status
    answer = httpx.get(f"{address}/search")
    assert answer.status_code == 405 and answer.headers["Allow"] == "POST"


async def test_a_filter_that_cannot_be_written_down_stops_no_search(own: Path) -> None:
    engine = Engine("pages", Retriever.open(own), Metrics())
    await engine.start()
    try:
        deep: dict[str, Any] = {}
        for _ in range(100_000):
            deep = {"$not": deep}
        for filter in (deep, {"lang": {("a", "b"): 1}}, {1: 1, "a": 1}):
            with pytest.raises(InvalidInput):
                await asyncio.wait_for(engine.search("stone", filter=filter), 10)
        assert len(await asyncio.wait_for(engine.search("stone", 2), 10)) == 2
    finally:
        await engine.close()


def test_a_query_is_no_book_and_a_passage_is_read_as_far_as_the_model_reads(
    address: str, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = "stone " * 10_000
    for path, body in {
        "/search": {"query": book},
        "/search/base": {"query": book},
        "/feedback": {"query": book, "chunk_id": "page00.md#0"},
        "/retrieval": {"knowledge_id": "pages", "query": book},
        "/v1/rerank": {"query": book, "documents": ["a"]},
        "/v1/embeddings": {"model": "pages-query", "input": ["a", book]},
        "/v1/vector_stores/pages/search": {"query": book},
    }.items():
        answer = httpx.post(f"{address}{path}", json=body, timeout=30)
        assert answer.status_code == 400 and "60,000 characters" in answer.text, path
    read: list[int] = []
    encode = Encoder.encode_passages

    def counted(self: Encoder, texts: list[str], *arguments: Any, **named: Any) -> Any:
        read.extend(map(len, texts))
        return encode(self, texts, *arguments, **named)

    monkeypatch.setattr(Encoder, "encode_passages", counted)
    library = "the river " * 30_000
    got = post(address, "/v1/embeddings", model="pages", input=[library, "the river"])["data"]
    assert read == [100_000, 9]
    np.testing.assert_allclose(got[0]["embedding"], retriever.encoder.encode_passages([library])[0], atol=1e-6)


def test_a_base_url_without_its_v1_is_told_where_to_go(address: str) -> None:
    for wrong, right in (
        ("/embeddings", "/v1/embeddings"),
        ("//v1/embeddings", "/v1/embeddings"),
        ("/v1/v1/models", "/v1/models"),
    ):
        answer = httpx.post(f"{address}{wrong}", json={"model": "pages", "input": "a"})
        assert answer.status_code == 404 and f"{right} there is" in answer.json()["error"]["message"]
    assert httpx.get(f"{address}/nothing/of/that").json()["error"]["message"] == "Not Found"


def test_large_bodies_and_long_waits_are_cut_off(made: Path) -> None:
    with running(("pages", made / "retriever"), max_body_bytes=5_000) as address:
        body = {"query": "stone", "documents": ["x" * 6_000]}
        assert httpx.post(f"{address}/rerank", json=body).status_code == 413

        def pieces() -> Iterator[bytes]:  # without a Content-Length
            yield from (b" " * 1_000 for _ in range(10))

        headers = {"Content-Type": "application/json"}
        assert httpx.post(f"{address}/search", content=pieces(), headers=headers).status_code == 413
        assert httpx.post(f"{address}/search", json={"query": "stone"}).status_code == 200


def test_a_full_queue_says_when_to_come_again(made: Path) -> None:
    with running(("pages", made / "retriever"), max_waiting=4) as address:
        texts = [f"stone {number} " + "river " * 40 for number in range(800)]
        slow = threading.Thread(
            target=post, args=(address, "/v1/embeddings"), kwargs={"model": "pages", "input": texts}
        )
        slow.start()
        answers = []
        while slow.is_alive():
            answers.append(httpx.post(f"{address}/search", json={"query": "stone"}))
        slow.join()
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused and refused[0].headers["Retry-After"] == "1"
        assert {answer.status_code for answer in answers} <= {200, 429}
        assert post(address, "/search", query="stone")["hits"]


def test_a_slow_request_is_given_up(made: Path) -> None:
    with running(("pages", made / "retriever"), timeout_seconds=0.1) as address:
        texts = [f"stone {number} " + "river " * 40 for number in range(2000)]
        answer = httpx.post(f"{address}/v1/embeddings", json={"model": "pages", "input": texts}, timeout=30)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"


def test_queries_are_logged_only_where_asked_for(made: Path, tmp_path: Path) -> None:
    log = tmp_path / "queries.jsonl"
    with running(("pages", made / "retriever"), log_queries=str(log)) as address:
        post(address, "/search", query="old stone\nnext line")
        post(address, "/retrieval", knowledge_id="pages", query="red river")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["text"] for line in lines] == ["old stone\nnext line", "red river"]
    assert len({line["_id"] for line in lines}) == 2


# A folder that is replaced


def test_a_new_build_is_taken_over_without_a_failed_request(made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made / "retriever", tmp_path / "retriever"))
    docs = write_pages(tmp_path / "docs")
    with running(("pages", folder)) as address:
        failed: list[str] = []
        builds: list[str] = []
        stop = threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=address, timeout=30) as client:
                while not stop.is_set():
                    answer = client.post("/search", json={"query": "old red stone"})
                    if answer.status_code == 200:
                        builds.append(answer.json()["build"])
                    else:
                        failed.append(answer.text)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        first = httpx.get(f"{address}/status").json()["retrievers"][0]
        assert first["confidence"].startswith("the fixed map: no questions")
        (docs / "new.md").write_text("# Zebra\n\nThe zebra crosses the old bridge by the river in the month of fire.\n")
        refresh_documents(folder, [docs])
        seen = wait_for(address, lambda status: status["build"] != first["build"])
        assert seen["passages"] == first["passages"] + 1
        assert post(address, "/search", query="zebra bridge", mode="lexical")["hits"][0]["document_id"] == "new.md"
        rollback(folder)
        seen = wait_for(address, lambda status: status["passages"] == first["passages"])
        stop.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert {first["build"], seen["build"]} <= set(builds)


def wait_for(address: str, fact: Any) -> Any:
    end = time.monotonic() + 15
    while time.monotonic() < end:
        status = httpx.get(f"{address}/status").json()["retrievers"][0]
        if fact(status):
            return status
        time.sleep(0.1)
    raise AssertionError("the server did not take the new build over")


def test_metrics_and_probes_say_what_is_served(address: str, retriever: Retriever) -> None:
    assert httpx.get(f"{address}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{address}/readyz").json() == {"status": "ready"}
    text = httpx.get(f"{address}/metrics").text
    build = retriever.manifest.build_id
    assert f'build="{build}"' in text
    httpx.get(f"{address}/no/such/{'x' * 50}")
    httpx.request("PROPFIND", f"{address}/search")
    text = httpx.get(f"{address}/metrics").text
    assert "no/such" not in text and "PROPFIND" not in text


def test_pages_load_nothing_from_elsewhere(address: str) -> None:
    for path in ("/", "/docs"):
        answer = httpx.get(f"{address}{path}")
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "http://" not in answer.text and "https://" not in answer.text
    assert "/v1/vector_stores/{id}/search" in httpx.get(f"{address}/docs").text
    assert "/v1/embeddings" in httpx.get(f"{address}/openapi.json").json()["paths"]


# MCP


async def tools(client: Client, retriever: Retriever) -> None:
    """What the tools of a server must do, however it is reached."""
    names = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(names) == {"search", "fetch", "feedback"}
    assert "\n\ntokens: give each" in (names["search"].description or "")
    assert names["search"].annotations.read_only_hint and not names["feedback"].annotations.read_only_hint  # type: ignore[union-attr]
    answer = await client.call_tool("search", {"query": "old red stone"})
    found = answer.structured_content["results"]  # type: ignore[index]
    assert json.loads(answer.content[0].text) == answer.structured_content  # type: ignore[union-attr]
    expected = retriever.search("old red stone", 8)
    assert [one["id"] for one in found] == [hit.chunk.id for hit in expected]
    assert all(one["title"] and one["url"] and one["text"] for one in found)
    whole = (await client.call_tool("fetch", {"id": found[0]["id"]})).structured_content
    around = retriever.chunks.of_document(expected[0].chunk.document_id)
    page = "".join(chunk.before + chunk.text for chunk in around).strip()
    assert whole["text"] == page  # type: ignore[index]
    wide = (await client.call_tool("search", {"query": "old red stone", "tokens": 400})).structured_content
    assert [one["text"] for one in wide["results"]] == [  # type: ignore[index]
        hit.text for hit in retriever.search("old red stone", expand=400)
    ]
    assert whole["metadata"]["number"] == expected[0].chunk.metadata["number"] and whole["url"] == found[0]["url"]  # type: ignore[index]
    for name, arguments in (("fetch", {"id": "no such"}), ("search", {"query": " "}), ("search", {})):
        wrong = await client.call_tool(name, arguments)
        assert wrong.is_error and wrong.content[0].text and "Traceback" not in wrong.content[0].text  # type: ignore[union-attr]


async def test_mcp_over_http_searches_fetches_and_learns(own: Path) -> None:
    with Retriever.open(own) as opened, running(("pages", own)) as address:
        for path in ("/mcp", "/mcp/pages"):
            async with Client(f"{address}{path}") as client:
                await tools(client, opened)
        last = opened.search("old red stone", 28)[-1].chunk.id
        async with Client(f"{address}/mcp") as client:
            done = await client.call_tool("feedback", {"query": "old red stone", "id": last, "helpful": True})
        (one,) = opened.feedback().ledger.find()
        assert (one.key, one.chunk_id, one.weight) == (done.structured_content["key"], last, 1.0)  # type: ignore[index]


def test_mcp_offers_no_stream_that_would_only_time_out(address: str) -> None:
    for path in ("/mcp", "/mcp/pages"):
        for method in ("GET", "DELETE"):
            headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
            answer = httpx.request(method, f"{address}{path}", headers=headers, timeout=5)
            assert answer.status_code == 405 and answer.headers["Allow"] == "POST"


async def test_mcp_knows_the_tenant_by_the_token(own: Path, tmp_path: Path) -> None:
    token = add_token(tmp_path / "tokens", "acme")
    with Retriever.open(own) as opened, running(("pages", own), token_file=str(tmp_path / "tokens")) as address:
        headers = {"Authorization": f"Bearer {token}"}
        async with (
            httpx2.AsyncClient(headers=headers) as http,
            Client(streamable_http_client(f"{address}/mcp", http_client=http)) as client,
        ):
            found = (await client.call_tool("search", {"query": "stone"})).structured_content
            assert found is not None
            id = found["results"][0]["id"]
            await client.call_tool("feedback", {"query": "stone", "id": id, "helpful": False})
        (one,) = opened.feedback().ledger.find()
        assert (one.tenant, one.weight) == ("acme", -1.0)


async def test_mcp_over_stdio_is_a_command(made: Path, retriever: Retriever) -> None:
    template = "https://d.example/{source}#{heading}"
    arguments = ["-m", "ragadapt_cli", "mcp", str(made / "retriever"), "--url-template", template]
    parameters = StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))
    async with Client(stdio_client(parameters)) as client:
        await tools(client, retriever)
        found = (await client.call_tool("search", {"query": "stone"})).structured_content["results"][0]  # type: ignore[index]
        assert found["url"].startswith("https://d.example/page") and "#Part%20" in found["url"]


# The commands


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_serve_is_a_command_that_ends_when_told(made: Path, workers: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [f"docs={made / 'retriever'}", "--port", str(port), "--workers", workers]
    command = [sys.executable, "-m", "ragadapt_cli", "serve", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 300  # on a machine that is busy
        while True:
            try:
                assert httpx.get(f"{address}/readyz").status_code == 200
                break
            except httpx.TransportError:
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.05)
        assert post(address, "/search", query="stone")["retriever"] == "docs"
        text = httpx.get(f"{address}/metrics").text  # of both processes
        assert 'ragadapt_requests_total{method="POST",path="/search",status="200"} 1.0' in text
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in said, said


def test_commands_say_what_is_wrong(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(made / "retriever")
    for arguments, message in (
        (["serve", str(tmp_path)], "ragadapt fit"),
        (["serve", folder, "--host", "0.0.0.0"], "--auth-token-file"),
        (["serve", folder, "--url-template", "https://x/{page}"], "{page}"),
        (["serve", folder, folder], "Two retrievers"),
        (["mcp", str(tmp_path)], "ragadapt fit"),
    ):
        assert run(arguments) == 1
        assert message in capsys.readouterr().err, arguments
    assert run(["token", str(tmp_path / "tokens"), "--tenant", "acme"]) == 0
    token = capsys.readouterr().out.strip()
    assert Tokens(tmp_path / "tokens").caller(token) == Caller("acme")
    assert Tokens(tmp_path / "tokens").caller(f"{token}x") is None
