"""What comes in at any public door: text that no file can hold, and values that break a rule."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llama_index_ragadapt as llama
import numpy as np
import pytest
from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_ragadapt import LoRAEmbeddings, LoRARetriever, RagAdaptVectorStore, SQLiteRecordManager
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.core.vector_stores.types import (
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from small_retriever import fit_pages
from tiny_models import write_tiny_model

from ragadapt.collection import open_collection
from ragadapt.config import FitConfig, IndexConfig, load_config
from ragadapt.corpus.frameworks import chunks_from, documents_from
from ragadapt.encoder import Encoder, open_encoder
from ragadapt.encoder.bulk import Job, encode_files, read_vectors
from ragadapt.errors import InvalidInput, RagadaptError
from ragadapt.export import export
from ragadapt.feedback import export_pairs, read_feedback
from ragadapt.pefa import Feedback
from ragadapt.pipeline.fit import fit
from ragadapt.pipeline.queries import Labels
from ragadapt.pipeline.refresh import refresh_documents, rollback
from ragadapt.pipeline.reindex import reindex
from ragadapt.queries import load_labels
from ragadapt.retriever import Retriever
from ragadapt.text import is_encodable
from ragadapt.values import Chunk, Document

LONE, CLEAN = "half \ud800 pair", "half \ufffd pair"
PAIR, JOINED = "smile \ud83d\ude00", "smile 😀"
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_pages(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="module")
def retriever(fitted: Path) -> Iterator[Retriever]:
    with Retriever.open(fitted) as opened:
        yield opened


def chunk_of(retriever: Retriever) -> str:
    return next(iter(retriever.chunks)).id


# Text that UTF-8 refuses


def plain(value: Any) -> bool:
    """Whether all text in a value can be written."""
    return is_encodable(repr(value).encode("utf-8", "surrogatepass").decode("utf-8", "surrogatepass")) and (
        "\\ud" not in repr(value)
    )


OBJECTS = {
    "string": lambda: f"{LONE} {PAIR}",
    "Document": lambda: Document("id", f"{LONE} {PAIR}", LONE, {LONE: [{"a": LONE}]}, LONE),
    "LangChain": lambda: LangChainDocument(
        page_content=f"{LONE} {PAIR}", metadata={LONE: {"a": [LONE]}, "source": LONE, "title": LONE}, id=LONE
    ),
    "LlamaIndex": lambda: SimpleNamespace(
        get_content=lambda: f"{LONE} {PAIR}", node_id=LONE, ref_doc_id=LONE, metadata={LONE: LONE}, start_char_idx=None
    ),
    "Chunk": lambda: Chunk("id", LONE, f"{LONE} {PAIR}", (LONE,), metadata={LONE: (LONE,)}, source=LONE),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_come_in_as_text_that_can_be_written(name: str) -> None:
    (chunk,) = chunks_from([OBJECTS[name]()])
    assert chunk.text == f"{CLEAN} {JOINED}"
    assert plain(chunk)
    if name != "Chunk":
        (document,) = documents_from([OBJECTS[name]()])
        assert document.text == f"{CLEAN} {JOINED}"
        assert plain(document)


def test_a_retriever_of_such_texts_is_saved_opened_searched_and_refreshed(tmp_path: Path) -> None:
    model = str(write_tiny_model(tmp_path / "base"))
    config = FitConfig.build(
        {"encoder": {"model": model, "precision": "float32"}, "adapter": {"method": "none"}, "chunk": {"min_tokens": 4}}
    )
    objects = [
        Document(f"a{LONE}", f"the red fox {LONE} and {PAIR}", LONE, {"k": LONE}, LONE),
        Document("nul\0id", "a word with \0 in it and the river"),
        LangChainDocument(page_content=f"open the file {LONE}", metadata={"k": PAIR}),
    ]
    path = fit(objects, tmp_path / "out", config).path
    refreshed = refresh_documents(path, [*objects, Document("b", f"another river {LONE}")])
    assert refreshed.documents.added == 1 and refreshed.documents.unchanged == 3
    with Retriever.open(path) as opened:
        hits = opened.search(f"river {LONE}", k=10)
        assert {CLEAN in hit.chunk.text for hit in hits} == {True, False}
        assert any("\0" in hit.chunk.text and hit.chunk.document_id == "nul\0id" for hit in hits)
        assert opened.search("fox", filter={"k": CLEAN})[0].chunk.document_id == f"a{CLEAN}"


QUERIES: dict[str, Callable[[Retriever, str], Any]] = {
    "search": lambda r, q: r.search(q),
    "search dense": lambda r, q: r.search(q, mode="dense"),
    "search lexical": lambda r, q: r.search(q, mode="lexical"),
    "search_many": lambda r, q: r.search_many([q]),
    "rank": lambda r, q: r.rank([q], 3),
    "run": lambda r, q: r.run({"q": q}),
    "remember": lambda r, q: r.remember([q]),
    "locate": lambda r, q: r.locate(q, document_id="page01.md"),
    "encode_queries": lambda r, q: r.encoder.encode_queries([q]).tolist(),
    "encode_passages": lambda r, q: r.encoder.encode_passages([q]).tolist(),
    "count_tokens": lambda r, q: r.encoder.count_tokens([q]),
    "LangChain": lambda r, q: LoRARetriever(retriever=r).invoke(q),
    "LangChain batch": lambda r, q: LoRARetriever(retriever=r).batch([q]),
    "LangChain embed": lambda r, q: LoRAEmbeddings(encoder=r.encoder).embed_query(q),
    "LlamaIndex": lambda r, q: llama.LoRARetriever(r).retrieve(q),
    "LlamaIndex embed": lambda r, q: llama.LoRAEmbedding(encoder=r.encoder).get_query_embedding(q),
}


@pytest.mark.parametrize("door", QUERIES)
def test_a_query_means_the_same_with_half_a_pair_as_with_its_replacement(door: str, retriever: Retriever) -> None:
    for text, clean in ((f"river {LONE}", f"river {CLEAN}"), (f"river {PAIR}", f"river {JOINED}")):
        found, wanted = QUERIES[door](retriever, text), QUERIES[door](retriever, clean)
        if door.startswith("LlamaIndex") and "embed" not in door:
            found, wanted = [n.node_id for n in found], [n.node_id for n in wanted]
        assert repr(found) == repr(wanted)


def test_feedback_on_such_a_query_counts_for_it_and_names_are_refused(retriever: Retriever) -> None:
    id = chunk_of(retriever)
    key = retriever.add_feedback(f"asked {LONE}", id)
    assert [one.query for one in retriever.feedback().ledger.find(key)] == [f"asked {CLEAN}"]
    assert retriever.withdraw_feedback(query=f"asked {LONE}") == 1
    keys = retriever.add_feedback_many([Feedback(f"a {LONE}", id, quote=LONE), Feedback("b", id)])
    assert len(keys) == 2
    for wrong in ({"user": LONE}, {"tenant": LONE}, {"key": LONE}):
        before = len(retriever.feedback().ledger)
        if "key" not in wrong:  # a key is text that is given back
            with pytest.raises(InvalidInput, match=next(iter(wrong))):
                retriever.add_feedback("q", id, **wrong)  # type: ignore[arg-type]
            assert len(retriever.feedback().ledger) == before
    for where in ({"chunk_id": LONE}, {"document_id": LONE}, {"source": LONE, "quote": LONE}):
        with pytest.raises(InvalidInput):
            retriever.add_feedback("q", **where)  # type: ignore[arg-type]


KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "exact": lambda folder: {"kind": "exact", "folder": folder},
    "faiss": lambda folder: {"kind": "faiss", "folder": folder},
    "qdrant": lambda folder: {"kind": "qdrant", "folder": folder},
    "qdrant-edge": lambda folder: {"kind": "qdrant-edge", "folder": folder},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_takes_such_texts_and_metadata_and_survives_saving(kind: str, tmp_path: Path) -> None:
    embedding = DeterministicFakeEmbedding(size=8)
    store = RagAdaptVectorStore(embedding, **KINDS[kind](tmp_path / "store"))
    store.add_texts(
        [f"fox {LONE}", f"fox {PAIR}", "fox \0 nul"],
        [{LONE: {"a": [LONE]}}, {"k": PAIR}, {"k": "\0"}],
        ids=["one", "two", "nul\0"],
    )
    with pytest.raises(InvalidInput, match=r"ids\[1\] 'half .ud800 pair'"):
        store.add_texts(["new", "bad"], ids=["three", LONE])
    assert len(store) == 3
    for ask in (store.get_by_ids, store.delete):
        with pytest.raises(InvalidInput, match=r"ids\[0\]"):
            ask([LONE])
    store.save_local()
    store.close()
    again = RagAdaptVectorStore(embedding, **KINDS[kind](tmp_path / "store"))
    one, two, three = again.get_by_ids(["one", "two", "nul\0"])
    assert (one.page_content, two.page_content, three.page_content) == (f"fox {CLEAN}", f"fox {JOINED}", "fox \0 nul")
    assert (one.metadata, two.metadata) == ({CLEAN: {"a": [CLEAN]}}, {"k": JOINED})
    for search_type in ("dense", "lexical", "hybrid"):
        assert len(again.similarity_search(f"fox {LONE}", search_type=search_type)) == 3
    again.close()


def test_a_llama_index_store_takes_such_nodes_and_refuses_such_ids(tmp_path: Path) -> None:
    store = llama.RagAdaptVectorStore(dim=8)
    store.add([TextNode(text=f"fox {LONE}", id_="one", metadata={"k": "x"}, embedding=[0.1] * 8)])
    with pytest.raises(InvalidInput, match=r"ids\[1\]"):
        store.add(
            [TextNode(text="a", id_="two", embedding=[0.1] * 8), TextNode(text="b", id_=LONE, embedding=[0.1] * 8)]
        )
    store.persist(tmp_path / "store.json")
    again = llama.RagAdaptVectorStore.from_persist_path(tmp_path / "store.json")
    assert [node.get_content() for node in again.get_nodes()] == [f"fox {CLEAN}"]


def test_a_record_manager_refuses_such_keys_whole(tmp_path: Path) -> None:
    records = SQLiteRecordManager("n", tmp_path / "records.sqlite")
    with pytest.raises(InvalidInput, match=r"keys\[1\]"):
        records.update(["a", LONE])
    assert records.list_keys() == []
    with pytest.raises(InvalidInput, match=r"keys\[0\]"):
        records.exists([LONE])


def test_rows_to_encode_are_cleaned_with_their_ids(fitted: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"_id": "\\ud800", "text": "half \\ud800 pair"}\n{"text": "smile \\ud83d\\ude00"}\n')
    encode_files([rows], tmp_path / "out", Job(str(fitted)))
    ((ids, vectors),) = read_vectors(tmp_path / "out")
    assert ids == ["\ufffd", "rows.jsonl:2"]
    np.testing.assert_allclose(vectors, open_encoder(str(fitted)).encode_passages([CLEAN, JOINED]), atol=1e-5)


def test_bad_lines_of_feedback_are_listed_and_the_others_count(retriever: Retriever, tmp_path: Path) -> None:
    id = chunk_of(retriever).encode()
    good = b'{"query": "half \\ud800 pair", "chunk_id": "' + id + b'"}\n'
    bad = (
        b'{"query": "caf\xe9", "chunk_id": "' + id + b'"}\n',
        b'{"query": "a", "chunk_id": "\\ud800"}\n',
        b'{"query": "a", "chunk_id": "' + id + b'", "weight": 1e400}\n',
        b'{"query": "a", "chunk_id": "' + id + b'", "weight": NaN}\n',
        b'{"query": "a", "chunk_id": "' + id + b'", "weight": "x"}\n',
        b'{"query": "a", "chunk_id": "' + id + b'", "at": 1e300}\n',
        b'{"query": "a", "chunk_id": "' + id + b'", "user": "\\ud800\\u0000"}\n',
        b'{"query": "a", "chunk_id": "' + id + b'", "weight": ' + b"[" * 600 + b"]" * 600 + b"}\n",
        b'{"query": "a", "chunk_id": "' + id + b'", "weight": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        b'{"query": "a", "chunk_id": "' + id + b'", "weight": ' + b"9" * 5000 + b"}\n",
        b'{"query": ' + b"1}\n",
    )
    path = tmp_path / "feedback.jsonl"
    path.write_bytes(b"".join(bad) + good)
    taken = read_feedback(retriever, path)
    assert [problem.line for problem in taken.problems] == list(range(1, len(bad) + 1))
    assert taken.added == 1
    path.write_text(good.decode().replace("half", "other half"), encoding="utf-16")
    assert read_feedback(retriever, path).added == 1


@pytest.mark.skipif(os.name == "nt", reason="arguments are text there")
def test_arguments_that_are_not_utf_8_are_searched_for(fitted: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ragadapt_cli"]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    found = subprocess.run(
        [*command, "search", str(fitted), b"river caf\xe9", "--json"], capture_output=True, env=environment, check=True
    )
    assert '"query": "river caf\ufffd"'.encode() in found.stdout
    lost = subprocess.run(
        [*command, "search", os.fsencode(tmp_path) + b"/caf\xe9", "x"], capture_output=True, env=environment
    )
    assert lost.returncode == 1 and rb"caf\udce9" in lost.stderr and b"Traceback" not in lost.stderr


# Values that break a rule


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"a": 1}
    for _ in range(depth):
        found = {"$not": found}
    return found


def cyclic() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["$and"] = [found]
    return found


def llama_nested(depth: int) -> MetadataFilters:
    found = MetadataFilters(filters=[MetadataFilter(key="a", value=1)])
    for _ in range(depth):
        found = MetadataFilters.model_construct(filters=[found], condition=None)
    return found


WRONG_PATHS = (None, 123, "\0", b"x", "", [], "x" * 5000)
WRONG_K = (0, -1, 2.0, 2.5, "3", True, None, NAN, [1])
WRONG_SHARES = (NAN, INF, -1, 2, "x", True, [])
WRONG_VECTORS = ([[NAN] * 32], [[INF] * 32], [[1.0] * 31], [1.0] * 32, [["x"] * 32], [[1.0] * 32] * 2, 5, [[1j] * 32])

Case = tuple[str, Callable[[Any], Any]]


def at_paths() -> Iterator[Case]:
    for path in WRONG_PATHS:
        calls: dict[str, Callable[[Any], Any]] = {
            "Retriever.open": lambda w, p=path: Retriever.open(p),
            "Encoder.open": lambda w, p=path: Encoder.open(p),
            "open_encoder": lambda w, p=path: open_encoder(p),
            "fit target": lambda w, p=path: fit([w.docs], p),
            "fit source": lambda w, p=path: fit(p, w.tmp / "out"),
            "fit sources": lambda w, p=path: fit([p], w.tmp / "out"),
            "reindex": lambda w, p=path: reindex(p, IndexConfig()),
            "refresh": lambda w, p=path: refresh_documents(p, [w.docs]),
            "refresh source": lambda w, p=path: refresh_documents(w.fitted, p),
            "refresh sources": lambda w, p=path: refresh_documents(w.fitted, [p]),
            "rollback": lambda w, p=path: rollback(p),
            "export": lambda w, p=path: export(p, w.tmp / "export"),
            "export target": lambda w, p=path: export(w.fitted, p),
            "encode_files": lambda w, p=path: encode_files([p], w.tmp / "v", Job(str(w.fitted))),
            "encode_files bare": lambda w, p=path: encode_files(p, w.tmp / "v", Job(str(w.fitted))),
            "read_feedback": lambda w, p=path: read_feedback(w.r, p),
            "export_pairs": lambda w, p=path: export_pairs(w.r, p),
            "Labels": lambda w, p=path: Labels(p),
            "load_labels": lambda w, p=path: load_labels(p, chunks=[]),
            "evaluate": lambda w, p=path: w.r.evaluate(p),
            "load_config": lambda w, p=path: load_config(p),
            "LangChain open": lambda w, p=path: LoRARetriever.from_pretrained(p),
            "LangChain embeddings": lambda w, p=path: LoRAEmbeddings(model=p),
            "LangChain load_local": lambda w, p=path: RagAdaptVectorStore.load_local(p, w.embedding),
            "LangChain records": lambda w, p=path: SQLiteRecordManager("n", p),
            "LlamaIndex open": lambda w, p=path: llama.LoRARetriever.from_pretrained(p),
            "LlamaIndex from_persist_path": lambda w, p=path: llama.RagAdaptVectorStore.from_persist_path(p),
            "LlamaIndex persist": lambda w, p=path: w.llama_store.persist(p),
        }
        if path is not None:
            calls |= {
                "open_collection": lambda w, p=path: open_collection("exact", p, dim=3),
                "LangChain save_local": lambda w, p=path: w.store.save_local(p),
            }
        yield from ((f"{name} {path!r:.12}", call) for name, call in calls.items())
    for name, call in (
        ("Retriever.open", lambda w: Retriever.open(w.file)),
        ("refresh", lambda w: refresh_documents(w.file, [w.docs])),
        ("export target", lambda w: export(w.fitted, w.file)),
        ("save_local", lambda w: w.store.save_local(w.file)),
        ("fit target", lambda w: fit([w.docs], w.file)),
    ):
        yield f"{name} a file", call


def at_search() -> Iterator[Case]:
    for k in WRONG_K:
        yield f"run k={k!r}", lambda w, k=k: w.r.run({"q": "river"}, k)
        yield f"run chunk k={k!r}", lambda w, k=k: w.r.run({"q": "river"}, k, level="chunk")
        yield f"store k={k!r}", lambda w, k=k: w.store.similarity_search("a", k)
        yield f"store hybrid k={k!r}", lambda w, k=k: w.store.similarity_search("a", k, search_type="hybrid")
        yield f"store mmr k={k!r}", lambda w, k=k: w.store.max_marginal_relevance_search("a", k)
        yield f"store fetch_k={k!r}", lambda w, k=k: w.store.max_marginal_relevance_search("a", 1, k)
        yield f"store vector k={k!r}", lambda w, k=k: w.store.similarity_search_by_vector([0.1] * 8, k)
        for way in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR, VectorStoreQueryMode.HYBRID):
            yield f"LlamaIndex store k={k!r} {way}", lambda w, k=k, m=way: w.ask(similarity_top_k=k, mode=m)
        if k is not None:  # which is: as many as suit
            for mode in ("hybrid", "dense", "lexical"):
                yield f"search k={k!r} {mode}", lambda w, k=k, m=mode: w.r.search("river", k, mode=m)
            yield f"LlamaIndex k={k!r}", lambda w, k=k: llama.LoRARetriever(w.r, k).retrieve("river")
            yield f"LangChain k={k!r}", lambda w, k=k: w.lc.invoke("river", k=k)
            yield f"LangChain batch k={k!r}", lambda w, k=k: w.lc.batch(["river"], k=k)
    for query in (None, 1, b"river", "", " ", ["river"], {}, NAN):
        yield f"search {query!r}", lambda w, q=query: w.r.search(q)
        yield f"search_many {query!r}", lambda w, q=query: w.r.search_many([q])
        yield f"rank {query!r}", lambda w, q=query: w.r.rank([q], 3)
        yield f"run {query!r}", lambda w, q=query: w.r.run({"q": q})
        yield f"LangChain {query!r}", lambda w, q=query: w.lc.invoke(q)
        yield f"LangChain batch {query!r}", lambda w, q=query: w.lc.batch([q])
        yield f"locate {query!r}", lambda w, q=query: w.r.locate(q, chunk_id=w.id)
        yield f"add_feedback {query!r}", lambda w, q=query: w.r.add_feedback(q, w.id)
        if query not in ("", " "):
            yield f"encode_queries {query!r}", lambda w, q=query: w.r.encoder.encode_queries([q])
            yield f"embed_query {query!r}", lambda w, q=query: LoRAEmbeddings(encoder=w.r.encoder).embed_query(q)
            yield f"store {query!r}", lambda w, q=query: w.store.similarity_search(q)
    for queries in (None, 1, "river", b"river"):
        yield f"search_many({queries!r})", lambda w, q=queries: w.r.search_many(q)
        yield f"run({queries!r})", lambda w, q=queries: w.r.run(q)
        yield f"remember({queries!r})", lambda w, q=queries: w.r.remember(q)
        yield f"encode_passages({queries!r})", lambda w, q=queries: w.r.encoder.encode_passages(q)
        yield f"encode_queries({queries!r})", lambda w, q=queries: w.r.encoder.encode_queries(q)
        yield f"count_tokens({queries!r})", lambda w, q=queries: w.r.encoder.count_tokens(q)
        yield f"batch({queries!r})", lambda w, q=queries: w.lc.batch(q)
        yield f"retrieve_many({queries!r})", lambda w, q=queries: llama.LoRARetriever(w.r).retrieve_many(q)
    for share in WRONG_SHARES:
        yield f"lam {share!r}", lambda w, s=share: w.r.search("river", lam=s)
        yield f"run lam {share!r}", lambda w, s=share: w.r.run({"q": "river"}, lam=s)
        yield f"LangChain lam {share!r}", lambda w, s=share: w.lc.invoke("river", lam=s)
        yield f"LlamaIndex lam {share!r}", lambda w, s=share: llama.LoRARetriever(w.r, lam=s).retrieve("river")
        yield f"store lam {share!r}", lambda w, s=share: w.store.similarity_search("a", lam=s)
        yield f"weight {share!r}", lambda w, s=share: w.store.similarity_search("a", weight=s, search_type="hybrid")
        yield f"lambda_mult {share!r}", lambda w, s=share: w.store.max_marginal_relevance_search("a", lambda_mult=s)
        yield f"alpha {share!r}", lambda w, s=share: w.ask(alpha=s, mode=VectorStoreQueryMode.HYBRID)
        yield f"mmr_threshold {share!r}", lambda w, s=share: w.ask(mmr_threshold=s, mode=VectorStoreQueryMode.MMR)
        if share not in (-1, 2):
            yield f"threshold {share!r}", lambda w, s=share: w.lc.invoke("river", score_threshold=s)
            yield (
                f"LlamaIndex threshold {share!r}",
                lambda w, s=share: llama.LoRARetriever(w.r, score_threshold=s).retrieve("river"),
            )
            yield f"store threshold {share!r}", lambda w, s=share: w.store.similarity_search("a", score_threshold=s)
            yield (
                f"relevance threshold {share!r}",
                lambda w, s=share: w.store.similarity_search_with_relevance_scores("a", score_threshold=s),
            )
    for mode in ("nope", 1, ["dense"]):
        yield f"mode {mode!r}", lambda w, m=mode: w.r.search("river", mode=m)
        yield f"run mode {mode!r}", lambda w, m=mode: w.r.run({"q": "river"}, mode=m)
        yield f"level {mode!r}", lambda w, m=mode: w.r.run({"q": "river"}, level=m)
        yield f"store mode {mode!r}", lambda w, m=mode: w.store.similarity_search("a", search_type=m)
        yield f"LangChain mode {mode!r}", lambda w, m=mode: w.lc.invoke("river", search_type=m)
    for number, vectors in enumerate(WRONG_VECTORS):
        for mode in ("hybrid", "dense", "lexical"):
            yield (
                f"vectors {number} {mode}",
                lambda w, v=vectors, m=mode: w.r.search_many(["river"], vectors=v, mode=m),
            )
        row = vectors[0] if isinstance(vectors, list) and isinstance(vectors[0], list) and len(vectors) == 1 else [NAN]
        yield f"embedding {number}", lambda w, v=row: llama.LoRARetriever(w.r).retrieve(QueryBundle("a", embedding=v))
        yield f"by_vector {number}", lambda w, v=vectors: w.store.similarity_search_by_vector(v)
        yield f"mmr by_vector {number}", lambda w, v=vectors: w.store.max_marginal_relevance_search_by_vector(v)
        yield f"query_embedding {number}", lambda w, v=vectors: w.ask(query_embedding=v)
    for name, filter in (("deep", nested(3000)), ("cyclic", cyclic()), ("text", "x"), ("bytes", b"x"), ("list", [1])):
        yield f"filter {name}", lambda w, f=filter: w.r.search("river", filter=f)
        yield f"filter lexical {name}", lambda w, f=filter: w.r.search("river", filter=f, mode="lexical")
        yield f"LangChain filter {name}", lambda w, f=filter: w.lc.invoke("river", filter=f)
        yield f"store filter {name}", lambda w, f=filter: w.store.similarity_search("a", filter=f)
        yield f"LlamaIndex filter {name}", lambda w, f=filter: llama.LoRARetriever(w.r, filters=f).retrieve("river")
    yield "LlamaIndex deep", lambda w: llama.LoRARetriever(w.r, filters=llama_nested(3000)).retrieve("river")
    yield "LlamaIndex store deep", lambda w: w.ask(filters=llama_nested(3000))


def at_feedback() -> Iterator[Case]:
    for weight in (NAN, INF, "x", 0, None, 10**400, True, 1e9, []):
        yield f"weight {weight!r:.9}", lambda w, v=weight: w.r.add_feedback("q", w.id, weight=v)
    for at in ("yesterday", NAN, INF, [], True, 10**400, 1e300):
        yield f"at {at!r:.9}", lambda w, v=at: w.r.add_feedback("q", w.id, at=v)
    for name in (1, b"x", [], {}):
        yield f"user {name!r}", lambda w, v=name: w.r.add_feedback("q", w.id, user=v)
        yield f"key {name!r}", lambda w, v=name: w.r.add_feedback("q", w.id, key=v)
        yield f"chunk_id {name!r}", lambda w, v=name: w.r.add_feedback("q", v)
        yield f"document_id {name!r}", lambda w, v=name: w.r.add_feedback("q", document_id=v)
        yield f"source {name!r}", lambda w, v=name: w.r.add_feedback("q", source=v, quote="x")
        yield f"quote {name!r}", lambda w, v=name: w.r.add_feedback("q", source="x", quote=v)
        yield f"withdraw key {name!r}", lambda w, v=name: w.r.withdraw_feedback(v)
        yield f"withdraw query {name!r}", lambda w, v=name: w.r.withdraw_feedback(query=v)
        yield f"withdraw user {name!r}", lambda w, v=name: w.r.withdraw_feedback(user=v)
        yield f"add_feedback_many [{name!r}]", lambda w, v=name: w.r.add_feedback_many([v])
    for many in (None, 1, "x", b"x", {"a": 1}):
        yield f"add_feedback_many {many!r}", lambda w, v=many: w.r.add_feedback_many(v)


def at_adding() -> Iterator[Case]:
    for texts in (None, 5, "text", b"x", [1], [None], [b"x"], {"a": 1}):
        yield f"add_texts {texts!r}", lambda w, v=texts: w.store.add_texts(v)
        yield f"add_documents {texts!r}", lambda w, v=texts: w.store.add_documents(v)
        yield f"get_by_ids {texts!r}", lambda w, v=texts: w.store.get_by_ids(v)
        if texts is not None:
            yield f"delete {texts!r}", lambda w, v=texts: w.store.delete(v)
            yield f"LlamaIndex add {texts!r}", lambda w, v=texts: w.llama_store.add(v)
            yield f"LlamaIndex get_nodes {texts!r}", lambda w, v=texts: w.llama_store.get_nodes(v)
            yield f"LlamaIndex delete_nodes {texts!r}", lambda w, v=texts: w.llama_store.delete_nodes(v)
    for metadata in ([None], [1], ["x"], {}, 5, [{"a": object()}], [{"a": NAN}], [{(1, 2): 1}], [{"_text": 1}]):
        yield f"metadata {metadata!r:.20}", lambda w, v=metadata: w.store.add_texts(["a"], v)
    yield "metadata deep", lambda w: w.store.add_texts(["a"], [nested(100_000)])
    yield "metadata cyclic", lambda w: w.store.add_texts(["a"], [cyclic()])
    for ids in ([1], [b"x"], ["a", "b"], 5, "a", [[]], [{}]):
        yield f"ids {ids!r}", lambda w, v=ids: w.store.add_texts(["a"], ids=v)
    for dim in (0, -1, "x", 2.5, None, True):
        yield f"dim {dim!r}", lambda w, v=dim: open_collection("exact", dim=v)
    yield "LlamaIndex delete None", lambda w: w.llama_store.delete(None)
    for keys in ([1], [None], "k", [b"x"]):
        yield f"records {keys!r}", lambda w, v=keys: SQLiteRecordManager("n", ":memory:").update(v)
        yield f"records exists {keys!r}", lambda w, v=keys: SQLiteRecordManager("n", ":memory:").exists(v)


def at_fitting() -> Iterator[Case]:
    for config in (None, 1, "x", {}, [], {"a": 1}):
        yield f"config {config!r}", lambda w, v=config: fit([w.docs], w.tmp / "out", v)
        yield f"reindex {config!r}", lambda w, v=config: reindex(w.fitted, v)
        yield f"labels [{config!r}]", lambda w, v=config: fit([w.docs], w.tmp / "out", labels=[v])
        if config is not None:
            yield f"Encoder.load {config!r}", lambda w, v=config: Encoder.load(v)
    yield "labels 5", lambda w: fit([w.docs], w.tmp / "out", labels=5)
    deep: dict[str, Any] = {}
    deep["a"] = deep
    sources: dict[str, Any] = {
        "none": [],
        "numbers": [1, 2],
        "an object": object(),
        "one document": LangChainDocument(page_content="x"),
        "a mapping": {"a": 1},
        "a list within": [["x"]],
        "mixed": [LangChainDocument(page_content="x y z"), Path("docs")],
        "bytes": [b"abc"],
        "text None": [Document("a", None)],  # type: ignore[arg-type]
        "id None": [Document(None, "text")],  # type: ignore[arg-type]
        "id 1": [Document(1, "text")],  # type: ignore[arg-type]
        "id empty": [Document("", "text")],
        "title None": [Document("a", "text", title=None)],  # type: ignore[arg-type]
        "source None": [Document("a", "text", source=None)],  # type: ignore[arg-type]
        "metadata None": [Document("a", "text", metadata=None)],  # type: ignore[arg-type]
        "metadata object": [Document("a", "text", metadata={"a": object()})],
        "metadata cyclic": [Document("a", "text", metadata=deep)],
        "LangChain cyclic": [LangChainDocument(page_content="x", metadata=deep)],
        "chunk document None": [Chunk("c", None, "text")],  # type: ignore[arg-type]
        "chunk heading None": [Chunk("c", "d", "text", heading_path=(None,))],  # type: ignore[arg-type]
    }
    for name, value in sources.items():
        yield f"sources {name}", lambda w, v=value: fit(v, w.tmp / "out")
        yield f"chunked sources {name}", lambda w, v=value: fit(v, w.tmp / "out", chunked=True)
    for device in ("nope", "cuda:99", "mps:77", "meta", "", None, 1):
        yield f"device {device!r}", lambda w, v=device: Retriever.open(w.fitted, device=v)
        yield f"open_encoder device {device!r}", lambda w, v=device: open_encoder(str(w.fitted), device=v)
        yield f"LangChain device {device!r}", lambda w, v=device: LoRAEmbeddings(model=str(w.fitted), device=v)
        yield f"LlamaIndex device {device!r}", lambda w, v=device: llama.LoRAEmbedding(str(w.fitted), device=v)
    for precision in ("nope", "int8", "", None, 1):
        yield f"precision {precision!r}", lambda w, v=precision: Retriever.open(w.fitted, precision=v)
        yield f"open_encoder precision {precision!r}", lambda w, v=precision: open_encoder(str(w.fitted), precision=v)
        yield (
            f"LangChain precision {precision!r}",
            lambda w, v=precision: LoRAEmbeddings(model=str(w.fitted), precision=v),
        )
    yield "shard_rows", lambda w: encode_files([w.docs], w.tmp / "v", Job(str(w.fitted)), shard_rows="x")
    yield "job", lambda w: encode_files([w.docs], w.tmp / "v", None)


@pytest.fixture(scope="module")
def world(fitted: Path, retriever: Retriever, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    tmp = tmp_path_factory.mktemp("world")
    (tmp / "docs").mkdir()
    (tmp / "docs" / "a.md").write_text("# A\n\nsome words of text here")
    (tmp / "file").write_text("x")
    embedding = DeterministicFakeEmbedding(size=8)
    store = RagAdaptVectorStore(embedding)
    store.add_texts(["a b", "c d"], ids=["1", "2"])
    nodes = llama.RagAdaptVectorStore(dim=8)
    nodes.add([TextNode(text="a b", id_="1", embedding=[0.1] * 8)])

    def ask(**values: Any) -> Any:
        defaults = {"query_str": "a", "query_embedding": [0.1] * 8, "similarity_top_k": 2}
        return nodes.query(VectorStoreQuery(**{**defaults, **values}))

    return SimpleNamespace(
        fitted=fitted, r=retriever, tmp=tmp, docs=tmp / "docs", file=tmp / "file", embedding=embedding, store=store,
        llama_store=nodes, ask=ask, lc=LoRARetriever(retriever=retriever), id=chunk_of(retriever),
    )  # fmt: skip


def refusals(world: SimpleNamespace, cases: Iterator[Case]) -> list[str]:
    """What was not refused with an error of ours that says something."""
    wrong = []
    for name, call in cases:
        try:
            result = call(world)
        except RagadaptError as error:
            if len(str(error)) < 20:
                wrong.append(f"{name}: says only {error}")
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}"[:200])
        else:
            wrong.append(f"{name}: gave {result!r}"[:200])
    return wrong


@pytest.mark.parametrize("cases", [at_paths, at_search, at_feedback, at_adding, at_fitting])
def test_what_breaks_a_rule_is_refused_with_an_error_of_ours(
    cases: Callable[[], Iterator[Case]], world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    feedback, texts, nodes = (
        world.r.has_feedback and len(world.r.feedback().ledger),
        len(world.store),
        len(world.llama_store),
    )
    assert refusals(world, cases()) == []
    assert (len(world.store), len(world.llama_store)) == (texts, nodes)
    assert (world.r.has_feedback and len(world.r.feedback().ledger)) == feedback
    assert list(tmp_path.iterdir()) == []


# The right thing


def test_whole_numbers_of_numpy_and_large_ones_are_numbers_of_results(world: SimpleNamespace) -> None:
    wanted = [hit.chunk.id for hit in world.r.search("river", 2)]
    assert [hit.chunk.id for hit in world.r.search("river", np.int64(2))] == wanted
    for mode in ("hybrid", "dense", "lexical"):
        everything = world.r.search("river", len(world.r), mode=mode)
        for k in (10**12, 10**30):
            assert world.r.search("river", k, mode=mode) == everything
    assert len(world.store.similarity_search("a", k=10**12)) == len(world.store) == 2
    assert len(world.store.similarity_search("a", k=10**12, search_type="hybrid")) == 2
    assert len(world.r.run({"q": "river"}, 10**12)["q"]) == len(set(world.r.chunks.document_ids()))


@pytest.mark.parametrize("text", ["", " "])
def test_a_vector_is_enough_where_words_are_missing(text: str, world: SimpleNamespace) -> None:
    vector = world.r.encoder.encode_queries(["river"])
    dense = [hit.chunk.id for hit in world.r.search("river", mode="dense")]
    bundle = QueryBundle(text, embedding=vector[0].tolist())
    for search_type in ("dense", "hybrid"):
        found = llama.LoRARetriever(world.r, search_type=search_type).retrieve(bundle)
        if search_type == "dense" or not world.r.fusion.feedback:
            assert [node.node_id for node in found] == dense
        else:  # the query moves towards its best passages
            assert found[0].node_id == dense[0] and len(found) == len(dense)
    with pytest.raises(InvalidInput, match="at least one word"):
        llama.LoRARetriever(world.r, search_type="lexical").retrieve(bundle)
    with pytest.raises(InvalidInput, match="at least one word"):
        llama.LoRARetriever(world.r).retrieve(QueryBundle(text))


def test_texts_and_metadata_may_come_from_generators(world: SimpleNamespace) -> None:
    store = RagAdaptVectorStore(world.embedding)
    ids = store.add_texts((text for text in ["a", "b"]), ({"n": n} for n in range(2)), ids=(id for id in ["x", None]))  # type: ignore[arg-type]
    assert ids[0] == "x" and len(ids) == len(store) == 2
    assert [document.metadata for document in store.get_by_ids(ids)] == [{"n": 0}, {"n": 1}]


def test_a_query_of_ten_megabytes_is_searched_for(world: SimpleNamespace) -> None:
    query = "river " * 1_700_000
    assert [hit.chunk.id for hit in world.r.search(query, mode="lexical")] == [
        hit.chunk.id for hit in world.r.search("river", mode="lexical")
    ]


def test_messages_have_the_value_and_the_rule(world: SimpleNamespace) -> None:
    for call, said in (
        (lambda: Retriever.open(world.fitted, device="nope"), "device = 'nope' cannot be used here"),
        (lambda: world.r.search("river", 2.0), r"k = 2\.0: ask for at least one result, as a whole number"),
        (lambda: world.store.add_texts(["a"], [None]), r"metadatas\[0\] is NoneType, a dict is needed"),
        (lambda: world.lc.invoke("river", score_threshold="x"), "score_threshold = 'x': it is a finite number"),
        (lambda: Retriever.open("\0"), r"folder '\\x00' cannot be a path"),
        (lambda: world.r.search("river", filter=nested(3000)), "more than 100 filters deep, or within itself"),
        (lambda: world.r.add_feedback("q", world.id, at="yesterday"), "at = 'yesterday': it is a finite number"),
    ):
        with pytest.raises(InvalidInput, match=said):
            call()
