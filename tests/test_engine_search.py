"""Hybrid search in an engine that keeps the words of passages: what it finds is what files of the folder find."""

from __future__ import annotations

import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_retriever import fit_pages, write_pages

from ragadapt.config import IndexConfig
from ragadapt.errors import FormatTooNew, IndexCorrupt, InvalidConfiguration, InvalidInput, StoreCorrupt
from ragadapt.index import check_index, exact_index, open_index
from ragadapt.index.contract import Lookup
from ragadapt.lexical import LexicalIndex
from ragadapt.lexical import terms as terms_module
from ragadapt.lexical.index import open_statistics
from ragadapt.lexical.terms import TermStatistics, Words, is_statistics
from ragadapt.pefa import Ledger, Pefa
from ragadapt.pipeline.refresh import refresh_documents, rollback
from ragadapt.pipeline.reindex import reindex
from ragadapt.retriever import Retriever
from ragadapt.search.engine import EngineSearcher, EngineWords
from ragadapt.search.fusion import Background, Fusion
from ragadapt.search.searcher import Searcher

DIM = 16
KINDS = ("qdrant-edge", "qdrant")
WORDS = (
    "stone", "river", "bridge", "old", "red", "wall", "tower", "garden", "market", "road", "hill", "mill", "harbour",
    "light", "door", "key",
)  # fmt: skip


def texts_of(count: int, seed: int = 3) -> list[str]:
    """Texts of words with frequencies as in a language, and a rare word of its own in every fourth."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, len(WORDS) + 1)
    made = []
    for number in range(count):
        chosen = rng.choice(WORDS, rng.integers(3, 30), p=share / share.sum())
        made.append(" ".join([*chosen, *([f"rare{number // 8}"] if number % 4 == 0 else [])]))
    return made


QUERIES = [
    "old stone bridge", "rare1 river", "harbour light key door", "nothing of this sort", "stone stone rare2 rare3",
    "the", "rare5", "market road hill mill harbour",
]  # fmt: skip


class Corpus:
    """Passages with vectors and headings, as files and as what an engine is given."""

    def __init__(self, count: int = 120) -> None:
        rng = np.random.default_rng(1)
        self.ids = [f"p{number}" for number in rng.permutation(count)]  # their order is not that of the corpus
        self.texts = texts_of(count)
        self.texts[7] = ""  # has no words
        headings = [WORDS[number % 5] if number % 3 else "" for number in range(count)]
        rows = rng.normal(size=(count, DIM)).astype(np.float32)
        self.vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        self.payloads = [{"lang": "de" if number % 3 else "en", "n": number} for number in range(count)]
        self.lexical = LexicalIndex.build(self.ids, self.texts, headings=headings)
        self.background = Background.of(self.vectors)
        queries = rng.normal(size=(len(QUERIES), DIM)).astype(np.float32) + self.vectors[: len(QUERIES)]
        self.queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)

    def local(self, fusion: Fusion) -> Searcher:
        index = exact_index(self.ids, self.vectors, self.payloads)
        return Searcher(index, self.lexical, self.background, fusion, depth=20)

    def allowed(self, passes: Callable[[dict[str, Any]], bool]) -> Any:
        return np.array([passes(payload) for payload in self.payloads])


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus()


def filled(kind: str, corpus: Corpus, statistics: TermStatistics, words: Any, **place: Any) -> Any:
    index: Any = open_index(kind, dim=DIM, words=True, **place)
    for start in range(0, len(corpus.ids), 50):
        stop = start + 50
        part = words.part(start, stop)
        index.upsert(corpus.ids[start:stop], corpus.vectors[start:stop], corpus.payloads[start:stop], part)
    return index


@pytest.fixture(scope="module", params=KINDS)
def engine(request: pytest.FixtureRequest, corpus: Corpus) -> Iterator[EngineWords]:
    pytest.importorskip("qdrant_edge" if request.param == "qdrant-edge" else "qdrant_client")
    statistics, words = corpus.lexical.statistics()
    index = filled(
        request.param, corpus, statistics, words, **({"url": ":memory:"} if request.param == "qdrant" else {})
    )
    yield EngineWords(index, statistics, lambda: corpus.ids)
    index.close()


def same(found: Any, wanted: Any) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.ids == other.ids
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
        assert one.parts.keys() == other.parts.keys()
        for name in one.parts:
            np.testing.assert_allclose(one.parts[name], other.parts[name], atol=1e-4)
        np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-4)


# What is known by term


def test_query_and_passage_halves_multiply_to_bm25(corpus: Corpus) -> None:
    statistics, words = corpus.lexical.statistics()
    wanted = corpus.lexical.scores(QUERIES)
    for row, query in enumerate(QUERIES):
        asked = statistics.query(query)
        of = dict(zip(asked.terms.tolist(), asked.weights.tolist(), strict=True))
        for number in range(len(corpus.ids)):
            terms, weights = words.row(number)
            assert terms == sorted(set(terms))
            score = sum(of.get(term, 0.0) * weight for term, weight in zip(terms, weights, strict=True))
            assert score == pytest.approx(wanted[row, number], abs=1e-5)
    np.testing.assert_allclose(statistics.masses(QUERIES), corpus.lexical.masses(QUERIES), rtol=1e-6)
    some = [*corpus.texts[:5], "a text that is not indexed, of stone"]
    for query in QUERIES:
        np.testing.assert_array_equal(
            statistics.scores_of_texts(query, some), corpus.lexical.scores_of_texts(query, some)
        )


def moments_by_hand(statistics: TermStatistics, corpus: Corpus, query: str) -> tuple[float, float]:
    """With what an engine would say of the passages that have a rare term."""
    asked = statistics.query(query)
    rare, rest = statistics.apart(asked)
    if not len(rare):
        return statistics.moments(asked)
    _, words = corpus.lexical.statistics()

    def scores(part: Words) -> Any:
        of = dict(zip(part.terms.tolist(), part.weights.tolist(), strict=True))
        rows = [words.row(number) for number in range(len(corpus.ids))]
        return np.array([sum(of.get(t, 0.0) * w for t, w in zip(*row, strict=True)) for row in rows], np.float32)

    found = np.flatnonzero(scores(rare))
    assert len(found) <= statistics.hits(rare)
    return statistics.moments(asked, scores(rare)[found], scores(rest)[found])


@pytest.mark.parametrize("rows", [0, 3, 2048])
def test_moments_by_term_are_those_of_all_scores_however_small_the_table(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(terms_module, "LEAST_ROWS", rows)
    monkeypatch.setattr(terms_module, "FEW", 1)
    for name, small in (("_BLOCK", 40), ("_PASSAGES", 7)):  # what is counted block by block
        monkeypatch.setattr(terms_module, name, small)
    monkeypatch.setattr(terms_module, "ROWS", 0)
    statistics, _ = corpus.lexical.statistics()
    means, deviations = corpus.lexical.moments(QUERIES)
    for row, query in enumerate(QUERIES):
        mean, deviation = moments_by_hand(statistics, corpus, query)
        assert mean == pytest.approx(means[row], abs=1e-6)
        assert deviation == pytest.approx(deviations[row], rel=1e-5, abs=1e-6)


def test_terms_beyond_table_and_request_count_as_independent(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terms_module, "LEAST_ROWS", 0)
    monkeypatch.setattr(terms_module, "ROWS", 0)
    monkeypatch.setattr(terms_module, "FETCHED", 0)
    statistics, words = corpus.lexical.statistics()
    asked = statistics.query("old stone bridge")
    assert len(statistics.apart(asked)[0]) == 0
    mean, deviation = statistics.moments(asked)
    columns = np.zeros((len(corpus.ids), 3))
    for number in range(len(corpus.ids)):
        for term, weight in zip(*words.row(number), strict=True):
            columns[number, asked.terms == term] = weight
    variances = np.square(asked.weights.astype(float)) * columns.var(axis=0)
    assert mean == pytest.approx(float(corpus.lexical.moments(["old stone bridge"])[0][0]), rel=1e-5)
    assert deviation == pytest.approx(variances.sum() ** 0.5, rel=1e-5)


def test_statistics_are_saved_and_mapped_and_damage_is_told(corpus: Corpus, tmp_path: Path) -> None:
    statistics, _ = corpus.lexical.statistics()
    statistics.save(tmp_path / "lexical")
    corpus.lexical.save(tmp_path / "whole")
    assert is_statistics(tmp_path / "lexical") and not is_statistics(tmp_path / "whole")
    opened = open_statistics(tmp_path / "lexical")
    assert len(opened) == len(corpus.ids)
    for query in QUERIES:
        one, other = opened.query(query), statistics.query(query)
        assert one.terms.tolist() == other.terms.tolist() and one.weights.tolist() == other.weights.tolist()
    with pytest.raises(FormatTooNew):  # what an earlier version says of it
        LexicalIndex.open(tmp_path / "lexical")
    array = np.load(tmp_path / "lexical" / "pairs.npy")
    np.save(tmp_path / "lexical" / "pairs.npy", array[:-1])
    with pytest.raises(IndexCorrupt, match="don't belong together"):
        open_statistics(tmp_path / "lexical")


def test_a_corpus_without_words_or_passages_has_statistics() -> None:
    for texts in ([], [""], ["", "the"]):
        statistics, words = LexicalIndex.build([str(at) for at in range(len(texts))], texts).statistics()
        assert len(statistics.query("old stone")) == 0
        assert statistics.moments(statistics.query("old stone")) == (0.0, 0.0)
        assert [words.row(at) for at in range(len(texts))] == [([], [])] * len(texts)


# Searching


@pytest.mark.parametrize("feedback", [0.0, 0.2])
def test_hybrid_search_in_the_engine_is_that_of_files(corpus: Corpus, engine: EngineWords, feedback: float) -> None:
    fusion = Fusion(weight=0.4, feedback=feedback)
    local, inside = corpus.local(fusion), EngineSearcher(engine, corpus.background, fusion, depth=20)
    same(inside.rank(QUERIES, corpus.queries, 10), local.rank(QUERIES, corpus.queries, 10))
    english = corpus.allowed(lambda payload: payload["lang"] == "en")
    for mode in ("hybrid", "dense", "lexical"):
        same(
            inside.rank(QUERIES, corpus.queries, 10, mode, filter={"lang": "en"}),  # type: ignore[arg-type]
            local.rank(QUERIES, corpus.queries, 10, mode, filter={"lang": "en"}, allowed=english),  # type: ignore[arg-type]
        )
    nothing = inside.rank(QUERIES[:1], corpus.queries[:1], 5, filter={"lang": "fr"})
    assert nothing[0].ids == []


def test_a_mask_over_positions_still_works(corpus: Corpus, engine: EngineWords) -> None:
    local, inside = corpus.local(Fusion()), EngineSearcher(engine, corpus.background, Fusion(), depth=20)
    few = corpus.allowed(lambda payload: payload["n"] < 30)
    for mode in ("hybrid", "lexical"):
        same(
            inside.rank(QUERIES, corpus.queries, 10, mode, filter={"n": {"$lt": 30}}, allowed=few),  # type: ignore[arg-type]
            local.rank(QUERIES, corpus.queries, 10, mode, filter={"n": {"$lt": 30}}, allowed=few),  # type: ignore[arg-type]
        )
    np.testing.assert_allclose(engine.scores(QUERIES), corpus.lexical.scores(QUERIES), atol=1e-5)
    assert engine.positions(["p3", "p1"]).tolist() == corpus.lexical.positions(["p3", "p1"]).tolist()
    with pytest.raises(InvalidInput, match="'p999'"):
        engine.positions(["p999"])


def test_candidates_that_are_asked_for_are_scored_on_both_sides(corpus: Corpus, engine: EngineWords) -> None:
    local, inside = corpus.local(Fusion()), EngineSearcher(engine, corpus.background, Fusion(), depth=5)
    include = [[7, number, number + 40] for number in range(len(QUERIES))]
    local.depth = 5
    for one, other in zip(
        inside.candidates(QUERIES, corpus.queries, include=include),
        local.candidates(QUERIES, corpus.queries, include=include),
        strict=True,
    ):
        assert one.positions.tolist() == other.positions.tolist()
        np.testing.assert_allclose(one.dense, other.dense, atol=1e-4)
        np.testing.assert_allclose(one.lexical, other.lexical, atol=1e-4)


def test_a_query_takes_one_request_and_three_with_pseudo_relevance_feedback(
    corpus: Corpus, engine: EngineWords, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("look_up", "vectors", "search", "ids", "payloads"):
        whole = getattr(engine.index, name)
        monkeypatch.setattr(engine.index, name, lambda *a, _n=name, _w=whole, **k: calls.append(_n) or _w(*a, **k))
    for feedback, wanted in ((0.0, ["look_up"]), (0.2, ["look_up", "vectors", "look_up"])):
        searcher = EngineSearcher(engine, corpus.background, Fusion(feedback=feedback), depth=20)
        calls.clear()
        searcher.rank(QUERIES[:1], corpus.queries[:1], 10, filter={"lang": "en"})
        assert calls == wanted
        calls.clear()
        searcher.rank(QUERIES, corpus.queries, 10)
        assert calls == wanted  # eight queries are one request, too
    calls.clear()
    EngineSearcher(engine, corpus.background, Fusion(), depth=20).rank(QUERIES, corpus.queries, 10, "lexical")
    assert calls == ["look_up"]


def test_feedback_of_users_counts_as_with_files(corpus: Corpus, engine: EngineWords, tmp_path: Path) -> None:
    found = []
    local, inside = corpus.local(Fusion()), EngineSearcher(engine, corpus.background, Fusion(), depth=20)
    [plain] = local.rank(QUERIES[:1], corpus.queries[:1], 10)
    for searcher in (local, inside):
        ledger = Ledger.open(tmp_path / f"{len(found)}.sqlite", create=True)
        with Pefa(searcher.index, lambda _: corpus.queries[:1], fingerprint="abc", ledger=ledger) as pefa:
            pefa.add(QUERIES[0], plain.ids[6])
            pefa.add(QUERIES[0], plain.ids[1], weight=-1)
            for method in ("xs", "xl"):
                dense = pefa.dense(0.5, method=method)
                found.append(searcher.rank(QUERIES[:3], corpus.queries[:3], 10, dense=dense))
                english = corpus.allowed(lambda payload: payload["lang"] == "en") if searcher is local else None
                found.append(
                    searcher.rank(
                        QUERIES[:3], corpus.queries[:3], 10, dense=dense, filter={"lang": "en"}, allowed=english
                    )
                )
    for one, other in zip(found[4:], found[:4], strict=True):
        same(one, other)
    assert found[0][0].ids.index(plain.ids[6]) < 6  # the feedback did something


def test_texts_that_are_not_indexed_score_as_with_files(corpus: Corpus, engine: EngineWords) -> None:
    local, inside = corpus.local(Fusion()), EngineSearcher(engine, corpus.background, Fusion(), depth=20)
    some = ["an old bridge of stone", "a garden"]
    for row, query in enumerate(QUERIES):
        one = inside.score_texts(query, corpus.queries[row], some, corpus.vectors[:2])
        other = local.score_texts(query, corpus.queries[row], some, corpus.vectors[:2])
        np.testing.assert_allclose(one[0], other[0], atol=1e-4)
        np.testing.assert_allclose(one[1], other[1], atol=1e-4)


# The engine


@pytest.mark.parametrize("kind", KINDS)
def test_words_survive_deletions_additions_and_the_folder(kind: str, corpus: Corpus, tmp_path: Path) -> None:
    statistics, words = corpus.lexical.statistics()
    filled(kind, corpus, statistics, words, folder=tmp_path / "index").close()
    asked = statistics.query("stone rare1")
    scores = corpus.lexical.scores(["stone rare1"])[0]
    gone = corpus.ids[int(scores.argmax())]
    with open_index(folder=tmp_path / "index") as opened:
        index: Any = opened
        assert index.words
        [found] = index.look_up([Lookup(asked, 200)])
        assert {*found.ids} == {id for id, score in zip(corpus.ids, scores, strict=True) if score > 0}
        index.delete([gone])
        [after] = index.look_up([Lookup(asked, 200)])
        # The others' scores stay: no idf of the engine's own counts what is there now.
        left = {id: score for id, score in zip(found.ids, found.scores.tolist(), strict=True) if id != gone}
        assert dict(zip(after.ids, after.scores.tolist(), strict=True)) == left
        at = corpus.ids.index(gone)
        index.upsert([gone], corpus.vectors[at : at + 1], [{}], words.part(at, at + 1))
        [again] = index.look_up([Lookup(asked, 200)])
        assert dict(zip(again.ids, again.places.tolist(), strict=True))[gone] == at
        np.testing.assert_allclose(np.sort(again.scores), np.sort(found.scores), atol=1e-6)
        index.update_vectors([gone], corpus.vectors[:1])  # the words stay
        assert gone in index.look_up([Lookup(asked, 200)])[0].ids


@pytest.mark.parametrize("kind", KINDS)
def test_words_without_a_place_or_of_other_passages_are_refused(kind: str, corpus: Corpus) -> None:
    _, words = corpus.lexical.statistics()
    place = {"url": ":memory:"} if kind == "qdrant" else {}
    with open_index(kind, dim=DIM, **place) as opened:  # type: ignore[arg-type]
        index: Any = opened
        with pytest.raises(InvalidInput, match="without a place for the words"):
            index.upsert(corpus.ids[:3], corpus.vectors[:3], None, words.part(0, 3))
    with open_index(kind, dim=DIM, words=True, **place) as opened:
        index = opened
        with pytest.raises(InvalidInput, match="the words of 2 passages for 3"):
            index.upsert(corpus.ids[:3], corpus.vectors[:3], None, words.part(0, 2))


# Settings


def test_where_the_words_lie_follows_the_settings() -> None:
    from ragadapt.index import engine_of

    server = "http://localhost:6333"
    for config, inside in (
        (IndexConfig(kind="qdrant-edge"), True),
        (IndexConfig(kind="qdrant-edge", lexical="folder"), False),
        (IndexConfig(kind="qdrant", url=server), True),
        (IndexConfig(kind="qdrant", url=server, lexical="folder"), False),
        (IndexConfig(kind="qdrant"), False),  # local mode is slow with words
        (IndexConfig(kind="qdrant", lexical="engine"), True),
        (IndexConfig(kind="exact"), False),
    ):
        assert engine_of(config.kind).keeps_words(config) is inside
        check_index(config)
    with pytest.raises(InvalidConfiguration, match="'engine' is nothing that an index of kind 'exact' can do"):
        check_index(IndexConfig(kind="exact", lexical="engine"))


def test_a_servers_layout_follows_the_settings_and_the_size() -> None:
    pytest.importorskip("qdrant_client")
    from ragadapt.index.qdrant import CollectionLayout

    def made(count: int, dim: int = 384, **settings: Any) -> dict[str, Any]:
        config = IndexConfig.model_validate({"kind": "qdrant", "url": "http://localhost:6333", **settings})
        return CollectionLayout.of(config, count, dim).collection(dim, True)

    small = made(100_000)
    assert small.keys() == {"vectors_config", "sparse_vectors_config"}
    assert small["vectors_config"]["passage"].on_disk is None
    large = made(1_000_000)
    assert large["vectors_config"]["passage"].on_disk and large["on_disk_payload"]
    assert large["sparse_vectors_config"]["words"].index.on_disk
    assert large["quantization_config"].scalar.type == "int8" and large["quantization_config"].scalar.always_ram
    assert "shard_number" not in large and "replication_factor" not in large
    assert made(45_000_000)["shard_number"] == 5
    asked = made(1000, quantisation="binary", shards=4, replicas=2, on_disk=True, tenant_field="team")
    assert asked["quantization_config"].binary.always_ram
    assert (asked["shard_number"], asked["replication_factor"]) == (4, 2)
    assert asked["hnsw_config"].payload_m == 16
    plain = made(1_000_000, quantisation="none", on_disk=False)
    assert "quantization_config" not in plain and plain["vectors_config"]["passage"].on_disk is False


def test_binary_vectors_that_are_narrow_bring_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("qdrant_client")
    from ragadapt.index.qdrant import CollectionLayout

    for setting, dim, warned in (("binary", 384, True), ("binary", 1024, False), ("int8", 384, False)):
        caplog.clear()
        config = IndexConfig.model_validate({"kind": "qdrant", "url": "http://x:6333", "quantisation": setting})
        CollectionLayout.of(config, 1000, dim)
        assert ("miss about one in ten" in caplog.text) is warned


def test_a_tenant_is_a_string_in_a_field_that_can_be_named() -> None:
    pytest.importorskip("qdrant_client")
    from ragadapt.index.qdrant import CollectionLayout

    layout = CollectionLayout(tenant_field="owner.team")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # local mode has no such index
        made = open_index("qdrant", url=":memory:", dim=2, layout=layout)
    with made as index:
        index.upsert(["a"], [[1.0, 0.0]], [{"owner": {"team": "red"}}])
        index.upsert(["b"], [[1.0, 0.0]], [{}])
        with pytest.raises(InvalidInput, match=r"'c' has owner\.team = 7"):
            index.upsert(["c"], [[1.0, 0.0]], [{"owner": {"team": 7}}])
        assert index.ids({"owner.team": "red"}) == ["a"]
    with pytest.raises(InvalidConfiguration, match="is named by letters"):
        check_index(IndexConfig(kind="qdrant", url="http://localhost:6333", tenant_field='a"b'))


@pytest.mark.parametrize("kind", ["exact", "qdrant-edge", "qdrant"])
def test_settings_of_a_server_are_refused_without_one(kind: str) -> None:
    for setting in ({"shards": 2}, {"replicas": 2}, {"quantisation": "int8"}, {"on_disk": True}, {"tenant_field": "t"}):
        with pytest.raises(InvalidConfiguration, match=rf"index\.{next(iter(setting))}"):
            check_index(IndexConfig.model_validate({"kind": kind, **setting}))


def test_quantised_vectors_are_rescored_and_looked_at_again_by_the_vectors_themselves(corpus: Corpus) -> None:
    """By the requests alone: a server is at hand only in the test that needs one."""
    pytest.importorskip("qdrant_client")
    from ragadapt.index.qdrant import QdrantIndex

    index = QdrantIndex(None, "c", DIM, None, url="http://localhost:6333", words=True, quantised="binary")  # type: ignore[arg-type]
    words = Words(np.array([1, 5]), np.array([0.5, 2.0], np.float32))
    english = {"lang": "en"}
    request = index._request(Lookup(corpus.queries[0], 10, english, among=Lookup(words, 20, english)))
    assert request.params.exact and request.prefetch.params is None
    assert request.prefetch.query.indices == [1, 5] and request.prefetch.using == "words"
    assert "metadata.lang" in str(request.filter) and "metadata.lang" in str(request.prefetch.filter)
    first = index._request(Lookup(corpus.queries[0], 10, named=False))
    assert first.params.quantization.rescore and first.params.quantization.oversampling == 4.0
    assert first.with_payload is False


# A saved retriever


ASKED = ("old stone", "red bridge river", "the", "Page 3")


def hits(retriever: Retriever, **settings: Any) -> list[Any]:
    return [retriever.search(query, 9, **settings) for query in ASKED]


def same_hits(found: list[Any], wanted: list[Any]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert [hit.chunk.id for hit in one] == [hit.chunk.id for hit in other]
        assert [hit.context for hit in one] == [hit.context for hit in other]
        assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other], abs=1e-3)
        assert [hit.confidence for hit in one] == pytest.approx([hit.confidence for hit in other], abs=1e-3)


@pytest.fixture(scope="module")
def retrievers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same pages in files and in Qdrant Edge."""
    pytest.importorskip("qdrant_edge")
    place = tmp_path_factory.mktemp("engine")
    files, engine = fit_pages(place), place / "engine" / "retriever"
    shutil.copytree(files, engine)
    reindex(engine, IndexConfig(kind="qdrant-edge"))
    return files, engine


def test_a_retriever_in_the_engine_has_no_postings_and_gives_the_same_hits(retrievers: tuple[Path, Path]) -> None:
    files, engine = retrievers
    assert is_statistics(engine / "lexical") and not is_statistics(files / "lexical")
    assert not list((engine / "lexical").glob("*indices*"))
    with Retriever.open(files) as one, Retriever.open(engine) as other:
        assert type(other.searcher) is EngineSearcher
        for settings in (
            {}, {"mode": "lexical"}, {"mode": "dense"}, {"filter": {"lang": "en"}}, {"filter": {"number": {"$gt": 5}}},
            {"filter": {"source": "page03.md"}}, {"mode": "lexical", "filter": {"lang": "de"}},
            {"expand": "section", "filter": {"lang": "en"}},
        ):  # fmt: skip
            same_hits(hits(other, **settings), hits(one, **settings))
        np.testing.assert_allclose(
            other.score("old stone", ["a stone", "rain"]), one.score("old stone", ["a stone", "rain"]), atol=1e-4
        )
        runs = [each.run({"a": "old stone", "b": "red bridge"}, 5) for each in (one, other)]
        assert [list(found) for found in runs[0].values()] == [list(found) for found in runs[1].values()]


def test_search_asks_the_engine_alone(retrievers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with Retriever.open(retrievers[1]) as retriever:

        def never(*_: Any, **__: Any) -> Any:
            raise AssertionError("a search read what grows with the corpus")

        monkeypatch.setattr(retriever.searcher.lexical, "ids", never)
        monkeypatch.setattr(retriever.searcher.lexical, "positions", never)
        monkeypatch.setattr(retriever._current.filters, "resolve", never)
        monkeypatch.setattr(type(retriever.chunks), "metadata", never)
        assert len(retriever.search("old stone", 5, filter={"lang": "en"})) == 5
        assert len(retriever.search("old stone", 5, mode="lexical", filter={"lang": "en"})) > 0
        retriever.add_feedback("old stone", retriever.search("old stone", 1)[0].chunk.id)
        assert len(retriever.search("old stone", 5)) == 5
        retriever.withdraw_feedback(query="old stone")


def test_refresh_rollback_and_a_move_of_the_index_keep_both_sides_together(
    retrievers: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, docs = tmp_path / "retriever", write_pages(tmp_path / "docs")
    shutil.copytree(retrievers[1], folder)
    with Retriever.open(folder) as retriever:
        before = hits(retriever)
    reindex(folder, IndexConfig(kind="qdrant-edge", lexical="folder"))  # as folders of earlier versions are
    assert not is_statistics(folder / "lexical")
    with Retriever.open(folder) as retriever:
        assert type(retriever.searcher) is Searcher and not retriever.searcher.index.words  # type: ignore[attr-defined]
        same_hits(hits(retriever), before)
    reindex(folder, IndexConfig(kind="qdrant", lexical="engine"))
    assert is_statistics(folder / "lexical")
    with Retriever.open(folder) as retriever:
        assert type(retriever.searcher) is EngineSearcher and retriever.searcher.index.kind == "qdrant"
        same_hits(hits(retriever), before)
    reindex(folder, IndexConfig(kind="qdrant-edge"))  # from one engine to the other
    (docs / "page99.md").write_text("# Page 99\n\nThe zanzibar quokka of the red river.\n", encoding="utf-8")
    assert refresh_documents(folder, [docs]).documents.added == 1
    with Retriever.open(folder) as retriever:
        assert type(retriever.searcher) is EngineSearcher
        assert retriever.search("zanzibar quokka", 1, mode="lexical")[0].chunk.document_id == "page99.md"
    rollback(folder)
    with Retriever.open(folder) as retriever:
        same_hits(hits(retriever), before)
        assert retriever.search("zanzibar quokka", 1, mode="lexical") == []


def test_an_index_without_the_words_that_the_folder_counts_on_is_told(
    retrievers: tuple[Path, Path], tmp_path: Path
) -> None:
    from ragadapt.search.saved import open_searcher
    from ragadapt.store.workspace import open_store

    folder = tmp_path / "retriever"
    shutil.copytree(retrievers[0], folder)
    shutil.rmtree(folder / "lexical")
    shutil.copytree(retrievers[1] / "lexical", folder / "lexical")
    manifest = open_store(folder, "none").manifest
    with pytest.raises(StoreCorrupt, match="does not hold the words"):
        open_searcher(folder, manifest)


# A server


@pytest.mark.requires_server
@pytest.mark.parametrize("settings", [{}, {"quantisation": "int8", "on_disk": True, "tenant_field": "lang"}])
def test_a_running_server_gives_the_same_hits(corpus: Corpus, settings: dict[str, Any]) -> None:
    from ragadapt.index.qdrant import CollectionLayout

    url = os.environ["RAGADAPT_QDRANT_URL"]
    config = IndexConfig.model_validate({"kind": "qdrant", "url": url, **settings})
    layout = CollectionLayout.of(config, len(corpus.ids), DIM)
    statistics, words = corpus.lexical.statistics()
    index = filled("qdrant", corpus, statistics, words, url=url, collection=f"test-{uuid.uuid4()}", layout=layout)
    try:
        fusion = Fusion(weight=0.4)
        engine = EngineWords(index, statistics, lambda: corpus.ids)
        inside = EngineSearcher(engine, corpus.background, fusion, depth=20)
        same(inside.rank(QUERIES, corpus.queries, 10), corpus.local(fusion).rank(QUERIES, corpus.queries, 10))
        english = corpus.allowed(lambda payload: payload["lang"] == "en")
        same(
            inside.rank(QUERIES, corpus.queries, 10, filter={"lang": "en"}),
            corpus.local(fusion).rank(QUERIES, corpus.queries, 10, filter={"lang": "en"}, allowed=english),
        )
    finally:
        index.client.delete_collection(index.collection)
        index.close()


def test_a_lost_index_is_said_with_the_command_that_makes_it_again(
    retrievers: tuple[Path, Path], tmp_path: Path
) -> None:
    lost = Path(shutil.copytree(retrievers[1], tmp_path / "lost"))
    shutil.rmtree(lost / "index")
    with pytest.raises(StoreCorrupt, match=r"index .*lost is missing.*ragadapt index .*lost --rebuild"):
        Retriever.open(lost)
