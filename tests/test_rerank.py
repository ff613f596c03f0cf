"""The second stage: a cross-encoder's scores, their place in the fusion, and what is saved of it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragadapt_cli.main import run
from small_retriever import fit_pages
from tiny_models import sentences, write_modular_cross_encoder, write_tiny_cross_encoder, write_tiny_model

from ragadapt import export as export_module
from ragadapt.config import FitConfig
from ragadapt.errors import (
    FingerprintMismatch,
    FormatTooNew,
    InvalidInput,
    ModelNotFound,
    NotARetriever,
    StoreCorrupt,
)
from ragadapt.evaluation import gate
from ragadapt.export import export_reranker
from ragadapt.pipeline import fit as fit_module
from ragadapt.pipeline import second_stage
from ragadapt.pipeline.fit import FitResult, fit
from ragadapt.pipeline.queries import Labels
from ragadapt.pipeline.refresh import refresh_documents
from ragadapt.pipeline.rerank import judging_queries
from ragadapt.queries.kinds import evidence_of
from ragadapt.rerank import PRESETS, Reranker
from ragadapt.rerank import reranker as module
from ragadapt.rerank.memory import Memory, forget
from ragadapt.rerank.pairs import PairTower
from ragadapt.rerank.presets import source_of
from ragadapt.retriever import Retriever
from ragadapt.search.fusion import ReadCandidates, learn_rerank_weight, with_reranker
from ragadapt.search.reranking import Rerank, rerank_all
from ragadapt.search.searcher import Ranked
from ragadapt.values import Evidence, Query

TEXTS = sentences(40, words=20, seed=3)
QUERY = "how do i open a file"

BUILDS: dict[str, Callable[[Path], Path]] = {
    "bert": write_tiny_cross_encoder,
    "modernbert": lambda folder: write_tiny_cross_encoder(folder, kind="modernbert"),
    "modernbert, mean": lambda folder: write_tiny_cross_encoder(folder, kind="modernbert", classifier_pooling="mean"),
    "roberta": lambda folder: write_tiny_cross_encoder(folder, kind="roberta"),
    "distilbert": lambda folder: write_tiny_cross_encoder(folder, kind="distilbert"),
    "modules": write_modular_cross_encoder,
    "modules, bert": lambda folder: write_modular_cross_encoder(folder, "bert"),
}


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    forget()


def load(folder: Path, precision: str = "float32") -> Reranker:
    return Reranker.load(folder, device="cpu", precision=precision)


def by_library(folder: Path, query: str, passages: list[str]) -> np.ndarray:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    return np.asarray(model.predict([(query, passage) for passage in passages], show_progress_bar=False))


# Scores


@pytest.mark.parametrize("build", BUILDS)
def test_scores_are_those_of_cross_encoder_predict(tmp_path: Path, build: str) -> None:
    folder = BUILDS[build](tmp_path / "model")
    reranker = load(folder)
    long = " ".join(TEXTS[:12])  # is cut
    passages = [*TEXTS, long, "", "Straße naïve ÅNGSTRÖM [SEP] 漢字"]
    expected = by_library(folder, QUERY, passages)
    assert np.abs(reranker.scores(QUERY, passages) - expected).max() < 1e-5
    assert np.ptp(expected) > 1e-3  # the passages are told apart
    assert reranker.path.startswith("transformers" if build == "distilbert" else "ragadapt's own forward")


def test_the_second_text_of_a_pair_is_told_from_the_first(tmp_path: Path) -> None:
    folder = write_tiny_cross_encoder(tmp_path / "model")
    reranker = load(folder)
    weights = reranker._tower.model.embeddings.token_type_embeddings.weight  # type: ignore[union-attr]
    before = reranker._run([(QUERY, TEXTS[0])])
    with torch.no_grad():
        weights[1, 0] += 1
    assert abs(float(reranker._run([(QUERY, TEXTS[0])])[0] - before[0])) > 1e-4


def test_logits_are_the_scores_before_the_activation(tmp_path: Path) -> None:
    reranker = load(write_tiny_cross_encoder(tmp_path / "model"))
    logits = reranker.logits(QUERY, TEXTS)
    assert np.allclose(1 / (1 + np.exp(-logits)), reranker.scores(QUERY, TEXTS), atol=1e-6)


def test_many_queries_get_what_each_gets_alone_and_no_pair_is_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = load(write_tiny_cross_encoder(tmp_path / "model"))
    lists = [("a cat", TEXTS[:5]), ("a dog", TEXTS[3:9]), ("a cat", TEXTS[2:4]), ("bread", [])]
    alone = [reranker.logits(query, passages) for query, passages in lists]
    forget()
    read: list[tuple[str, str]] = []
    run = reranker._run
    monkeypatch.setattr(reranker, "_run", lambda pairs, *rest: read.extend(pairs) or run(pairs, *rest))
    together = reranker.logits_of(lists)
    assert all(np.allclose(mine, other, atol=1e-5) for mine, other in zip(together, alone, strict=True))
    assert len(together[3]) == 0
    assert len(read) == len(set(read)) == 11
    reranker.logits_of(lists)
    assert len(read) == 11  # remembered


def test_remembered_scores_are_those_of_one_model_and_precision(tmp_path: Path) -> None:
    first = load(write_tiny_cross_encoder(tmp_path / "a"))
    other = load(write_tiny_cross_encoder(tmp_path / "b", seed=1))
    assert first.fingerprint != other.fingerprint
    mine = first.logits(QUERY, TEXTS)
    assert np.abs(other.logits(QUERY, TEXTS) - mine).max() > 0.01
    rough = load(tmp_path / "a", "bfloat16")
    if rough.precision.dtype == "bfloat16":
        assert not np.array_equal(rough.logits(QUERY, TEXTS), mine)
    again = load(tmp_path / "a")
    again._run = None  # type: ignore[method-assign, assignment]
    assert np.array_equal(again.logits(QUERY, TEXTS), mine)


def test_the_least_used_scores_are_forgotten_first() -> None:
    memory: Memory[float] = Memory(most=3)
    memory.add([b"a", b"b", b"c"], [1.0, 2.0, 3.0])
    assert memory.get([b"a"]) == [1.0]
    memory.add([b"d"], [4.0])
    assert memory.get([b"a", b"b", b"c", b"d"]) == [1.0, None, 3.0, 4.0]


def test_bfloat16_orders_passages_as_float32_does_or_is_not_used(tmp_path: Path) -> None:
    folder = write_tiny_cross_encoder(tmp_path / "model")
    rough, exact = load(folder, "bfloat16"), load(folder)
    assert rough.precision.min_cosine < 1
    if rough.precision.dtype == "float32":
        assert rough.precision.reason == "bfloat16 changes the order"
        assert np.allclose(rough.logits(QUERY, TEXTS), exact.logits(QUERY, TEXTS), atol=1e-5)
    else:
        assert np.corrcoef(rough.logits(QUERY, TEXTS), exact.logits(QUERY, TEXTS))[0, 1] > 0.99


def test_a_precision_that_changes_the_order_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_cross_encoder(tmp_path / "model")
    monkeypatch.setattr(module, "_MIN_CORRELATION", 2.0)
    reranker = load(folder, "bfloat16")
    assert reranker.precision.dtype == "float32"
    assert np.abs(reranker.scores(QUERY, TEXTS) - by_library(folder, QUERY, TEXTS)).max() < 1e-5


def test_a_forward_that_differs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ragadapt.encoder.architectures import Bert

    folder = write_tiny_cross_encoder(tmp_path / "model")
    embed = Bert.embed
    monkeypatch.setattr(Bert, "embed", lambda self, ids, given, types=None: embed(self, ids, given, None))
    reranker = load(folder)
    assert reranker.path == "transformers' forward"
    assert np.abs(reranker.scores(QUERY, TEXTS) - by_library(folder, QUERY, TEXTS)).max() < 1e-5


def test_a_model_of_another_build_runs_in_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_cross_encoder(tmp_path / "model")
    monkeypatch.setattr(PairTower, "of", classmethod(lambda cls, *_, **__: None))
    reranker = load(folder)
    assert reranker.path == "sentence-transformers"
    assert np.abs(reranker.scores(QUERY, TEXTS) - by_library(folder, QUERY, TEXTS)).max() < 1e-5
    assert 0 < reranker.affordable(QUERY, TEXTS, 1e9) == len(TEXTS)


# Depth and time


def test_a_budget_of_time_says_how_deep(tmp_path: Path) -> None:
    reranker = load(write_tiny_cross_encoder(tmp_path / "model"))
    lengths = reranker._lengths([(QUERY, text) for text in TEXTS])
    reranker._tokens_per_second = 1000.0
    for count in (0, 1, 7, len(TEXTS)):
        assert reranker.affordable(QUERY, TEXTS, sum(lengths[:count])) == count
    reranker.logits(QUERY, TEXTS[:10])
    assert reranker.affordable(QUERY, TEXTS, sum(lengths[10:12])) == 12  # what is remembered costs nothing
    assert reranker.affordable(QUERY, [], 5) == 0
    with pytest.raises(InvalidInput, match="milliseconds = -1"):
        reranker.affordable(QUERY, TEXTS, -1)


def test_speed_is_measured_when_the_model_is_loaded(tmp_path: Path) -> None:
    reranker = load(write_tiny_cross_encoder(tmp_path / "model"))
    assert 100 < reranker._tokens_per_second < 1e9
    assert reranker.depth == 20


# Saving


@pytest.mark.parametrize("build", ["bert", "modules"])
def test_a_saved_reranker_is_a_cross_encoder_folder_with_the_same_scores(tmp_path: Path, build: str) -> None:
    folder = BUILDS[build](tmp_path / "model")
    reranker = Reranker.load(folder, device="cpu", precision="float32", max_length=32)
    assert reranker.save(tmp_path / "saved") is True
    shutil.rmtree(folder)
    expected = reranker.scores(QUERY, TEXTS)
    forget()
    opened = Reranker.open(tmp_path / "saved", device="cpu", precision="float32")
    assert opened.fingerprint == reranker.fingerprint and opened.spec.max_length == 32
    assert np.abs(opened.scores(QUERY, TEXTS) - expected).max() < 1e-6
    assert np.abs(by_library(tmp_path / "saved", QUERY, TEXTS) - expected).max() < 1e-5
    again = pickle.loads(pickle.dumps(opened))
    assert np.array_equal(again.scores(QUERY, TEXTS), opened.scores(QUERY, TEXTS))


def test_a_model_on_the_hub_is_saved_by_name_and_commit(tmp_path: Path) -> None:
    reranker = load(write_tiny_cross_encoder(tmp_path / "model"))
    reranker.source = source_of("minilm")
    reranker.spec = module.replace(reranker.spec, base="cross-encoder/ms-marco-MiniLM-L6-v2@0123abc")
    assert reranker.save(tmp_path / "saved", portable=False) is False
    assert [path.name for path in (tmp_path / "saved").iterdir()] == [module.SPEC_FILE]
    with pytest.raises(ModelNotFound, match="Check the name and the network"):
        Reranker.open(tmp_path / "saved", device="cpu")


def test_a_changed_or_newer_note_is_refused(tmp_path: Path) -> None:
    load(write_tiny_cross_encoder(tmp_path / "model")).save(tmp_path / "saved")
    note = tmp_path / "saved" / module.SPEC_FILE
    values = json.loads(note.read_text())
    note.write_text(json.dumps({**values, "max_length": 12}))
    with pytest.raises(StoreCorrupt, match="was changed"):
        Reranker.open(tmp_path / "saved")
    note.write_text(json.dumps({**values, "format": 9}))
    with pytest.raises(FormatTooNew, match="has format 9"):
        Reranker.open(tmp_path / "saved")
    note.write_text("{")
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        Reranker.load(tmp_path / "saved")
    note.unlink()
    with pytest.raises(NotARetriever, match=r"Use Reranker\.load"):
        Reranker.open(tmp_path / "saved")


def test_other_weights_under_the_same_note_are_refused(tmp_path: Path) -> None:
    load(write_tiny_cross_encoder(tmp_path / "model")).save(tmp_path / "saved")
    other = write_tiny_cross_encoder(tmp_path / "other", seed=4)
    shutil.copyfile(other / "model.safetensors", tmp_path / "saved" / "model.safetensors")
    with pytest.raises(FingerprintMismatch, match="its scores would not be those"):
        Reranker.open(tmp_path / "saved", device="cpu")


# What is refused


def test_what_is_no_reranker_is_refused(tmp_path: Path) -> None:
    bi_encoder = write_tiny_model(tmp_path / "bi")
    several = write_tiny_cross_encoder(tmp_path / "several", labels=3)
    raw = tmp_path / "bi" / "raw"
    for folder, said in ((bi_encoder, "trained to give"), (raw, "trained to give"), (several, "3 numbers")):
        with pytest.raises(InvalidInput, match=said):
            load(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFound, match="cannot be loaded"):
        load(tmp_path / "empty")
    with pytest.raises(ModelNotFound, match=r"neither a folder .* Presets: ettin-17m"):
        Reranker.load("./not/here")
    with pytest.raises(ModelNotFound, match="short name of an encoder"):
        Reranker.load("small")
    with pytest.raises(InvalidInput, match="precision = 'int8'"):
        load(bi_encoder, "int8")
    with pytest.raises(InvalidInput, match="positions for at most 66"):
        Reranker.load(write_tiny_cross_encoder(tmp_path / "ce"), max_length=100)


def test_a_folder_that_names_foreign_code_is_not_opened(tmp_path: Path) -> None:
    folder = write_modular_cross_encoder(tmp_path / "model")
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["type"] = "os.path.join"
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ModelNotFound, match=r"which is not of sentence-transformers"):
        load(folder)


def test_bad_queries_and_passages_are_refused(tmp_path: Path) -> None:
    reranker = load(write_tiny_cross_encoder(tmp_path / "model"))
    with pytest.raises(InvalidInput, match="a query is a string with at least one word"):
        reranker.scores(" ", TEXTS)
    with pytest.raises(InvalidInput, match="a list of texts is needed"):
        reranker.scores(QUERY, "one text")
    with pytest.raises(InvalidInput, match=r"passages\[1\] is int"):
        reranker.scores(QUERY, ["a", 2])  # type: ignore[list-item]
    assert len(reranker.scores(QUERY, [])) == 0


def test_presets_are_these() -> None:
    assert PRESETS == {
        "ettin-17m": "cross-encoder/ettin-reranker-17m-v1",
        "ettin-32m": "cross-encoder/ettin-reranker-32m-v1",
        "ettin-68m": "cross-encoder/ettin-reranker-68m-v1",
        "minilm": "cross-encoder/ms-marco-MiniLM-L6-v2",
        "bge": "BAAI/bge-reranker-v2-m3",
        "colbert-small": "answerdotai/answerai-colbert-small-v1",
        "colbert": "colbert-ir/colbertv2.0",
        "gte-colbert": "lightonai/GTE-ModernColBERT-v1",
        "lateon": "lightonai/LateOn",
    }
    assert source_of("bge").location == "BAAI/bge-reranker-v2-m3"


# The fusion


def test_the_mix_is_of_both_sides_standardised_over_what_was_read() -> None:
    first, read = np.array([9.0, 7.0, 4.0, 3.0, 1.0]), np.array([0.0, 1.0, 5.0])
    own = (first - first[:3].mean()) / first[:3].std()
    theirs = (read - 2) / read.std()
    mixed = with_reranker(first, read, 0.4)
    assert np.allclose(mixed[:3], 0.6 * own[:3] + 0.4 * theirs, atol=1e-6)
    assert np.allclose(mixed[3:], 0.6 * own[3:] + 0.4 * theirs.min(), atol=1e-6)
    assert np.argsort(-with_reranker(first, read, 0.0)).tolist() == [0, 1, 2, 3, 4]
    assert np.argsort(-with_reranker(first, read, 1.0), kind="stable").tolist() == [2, 1, 0, 3, 4]
    assert np.array_equal(with_reranker(first, np.zeros(0), 0.7), first.astype(np.float32))
    assert np.allclose(with_reranker(first, read * 30 - 4, 0.4), mixed, atol=1e-5)  # the scale does not matter


@given(
    st.lists(st.floats(-50, 50), min_size=2, max_size=12, unique=True),
    st.lists(st.floats(-9, 9), min_size=1, max_size=12),
    st.floats(0, 1),
)
def test_what_was_not_read_never_passes_what_was(first: list[float], read: list[float], weight: float) -> None:
    ranked = np.sort(np.array(first))[::-1]
    count = min(len(read), len(ranked))
    mixed = with_reranker(ranked, np.array(read[:count]), weight)
    assert np.all(mixed[:count].min() >= mixed[count:] - 1e-4)
    assert np.all(np.diff(mixed[count:]) <= 1e-5)


def judged_by(answer: int) -> Callable[[np.ndarray], float]:
    return lambda positions: float(1 / np.log2(2 + positions.tolist().index(answer)))


def candidates_of(read: list[float]) -> ReadCandidates:
    return ReadCandidates(np.arange(5), np.array([5, 4, 3, 2, 1], np.float32), np.array(read, np.float32))


def test_a_reranker_that_finds_the_answers_gets_a_share_and_one_that_loses_them_none() -> None:
    good = [candidates_of([0, 0, 9, 0, 0])] * 20
    curve = learn_rerank_weight(good, [judged_by(2)] * 20)
    assert curve.best >= curve.chosen > 0 and max(curve.quality) == 1.0
    assert good[0].ranked(curve.chosen)[0] == 2
    bad = learn_rerank_weight(good, [judged_by(0)] * 20)
    assert bad.chosen == 0
    assert learn_rerank_weight([], []).chosen == 0


def test_noise_leaves_the_first_stage_alone() -> None:
    generator = np.random.default_rng(0)
    noise = [candidates_of(generator.normal(size=5).tolist()) for _ in range(8)]
    answers = [judged_by(int(answer)) for answer in generator.integers(0, 3, 8)]
    assert learn_rerank_weight(noise, answers).chosen == 0


# The search


class Liker:
    """Reads pairs for the tests: likes the passages that hold a word."""

    depth = 4

    def __init__(self, word: str) -> None:
        self.word = word
        self.read: list[int] = []

    def affordable(self, query: str, passages: Sequence[str], milliseconds: float) -> int:
        return min(len(passages), int(milliseconds))

    def logits_of(self, lists: Sequence[tuple[str, Sequence[str]]]) -> list[np.ndarray]:
        self.read += [len(passages) for _, passages in lists]
        return [np.array([float(self.word in text) for text in passages], np.float32) for _, passages in lists]


def test_reranking_moves_what_the_reader_likes_within_its_depth() -> None:
    first = Ranked(list("abcdef"), np.array([6, 5, 4, 3, 2, 1], np.float32), {"dense": np.arange(6, dtype=np.float32)})
    texts = {"a": "x", "b": "x", "c": "cat", "d": "x", "e": "cat", "f": "x"}
    reader = Liker("cat")
    (found,) = rerank_all([first], ["q"], lambda ids: {id: texts[id] for id in ids}, reader, 1.0, 4, 5)
    assert found.ids == ["c", "a", "b", "d", "e"] and reader.read == [4]
    assert found.parts["dense"].tolist() == [2, 0, 1, 3, 4]
    assert found.parts["rerank"][:4].tolist() == [1, 0, 0, 0] and np.isnan(found.parts["rerank"][4])
    assert np.all(np.diff(found.scores) <= 0)
    (brief,) = rerank_all([first], ["q"], lambda ids: {id: texts[id] for id in ids}, reader, 1.0, 4, 5, 2.0)
    assert brief.ids == ["a", "b", "c", "d", "e"] and reader.read[-1] == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"depth": 0}, "rerank depth = 0"),
        ({"depth": 2.5}, r"rerank depth = 2\.5"),
        ({"weight": 1.5}, r"rerank weight = 1\.5"),
        ({"milliseconds": -1}, "rerank milliseconds = -1"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        Rerank(**values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_cross_encoder(tmp_path_factory.mktemp("reranker"))


def test_search_reranks_by_a_model_that_is_named(folder: Path, cross_encoder: Path) -> None:
    with Retriever.open(folder, precision="float32") as retriever:
        plain = retriever.search("old stone bridge", k=30)
        asked = Rerank(model=cross_encoder, weight=1.0, depth=10)
        hits = retriever.search("old stone bridge", k=10, rerank=asked)
        logits = load(cross_encoder).logits("old stone bridge", [hit.chunk.passage for hit in plain[:10]])
        expected = [plain[at].chunk.id for at in np.argsort(-logits, kind="stable")]
        assert [hit.chunk.id for hit in hits] == expected != [hit.chunk.id for hit in plain[:10]]
        assert sorted(hits[0].parts) == ["dense", "lexical", "rerank"]
        assert hits[0].parts["rerank"] == pytest.approx(logits.max(), abs=1e-4)
        half = retriever.search("old stone bridge", k=10, rerank=Rerank(model=cross_encoder, depth=10))
        mixed = with_reranker(np.array([hit.score for hit in plain]), logits, 0.5)
        assert [hit.chunk.id for hit in half] == [plain[at].chunk.id for at in np.argsort(-mixed, kind="stable")[:10]]
        more = retriever.search("old stone bridge", k=24, rerank=Rerank(model=cross_encoder))
        assert [hit.chunk.id for hit in more[20:]] == [hit.chunk.id for hit in plain[20:24]]
        assert "rerank" in more[19].parts and "rerank" not in more[20].parts
        none = retriever.search("old stone bridge", k=10, rerank=Rerank(model=cross_encoder, weight=0))
        assert none == plain[:10]


def test_many_queries_and_runs_are_reranked_as_each_alone(folder: Path, cross_encoder: Path) -> None:
    asked = Rerank(model=cross_encoder, weight=0.6)
    queries = {"1": "old stone bridge", "2": "bake bread", "3": "price of a flight"}
    with Retriever.open(folder, precision="float32") as retriever:
        alone = [retriever.search(text, k=8, rerank=asked) for text in queries.values()]
        together = retriever.search_many(list(queries.values()), 8, rerank=asked)
        assert [[hit.chunk.id for hit in hits] for hits in together] == [
            [hit.chunk.id for hit in hits] for hits in alone
        ]
        run = retriever.run(queries, 24, level="chunk", rerank=asked)
        assert [list(run[id])[:8] for id in queries] == [[hit.chunk.id for hit in hits] for hits in alone]
        assert len(run["1"]) == 24
        only = retriever.search("old stone bridge", k=3, filter={"lang": "en"}, rerank=asked)
        assert {hit.chunk.metadata["lang"] for hit in only} == {"en"}


def test_a_second_stage_that_cannot_be_is_refused(folder: Path, cross_encoder: Path) -> None:
    with Retriever.open(folder) as retriever:
        with pytest.raises(InvalidInput, match=r"has no re-ranker\. Fit it with one"):
            retriever.search("a bridge", rerank=True)
        with pytest.raises(InvalidInput, match="k = 30, but only 10 passages would be re-ranked"):
            retriever.search("a bridge", k=30, rerank=Rerank(model=cross_encoder, depth=10))
        with pytest.raises(InvalidInput, match="goes with mode 'hybrid'"):
            retriever.search("a bridge", mode="dense", rerank=Rerank(model=cross_encoder))
        with pytest.raises(InvalidInput, match="it is True, False or a Rerank"):
            retriever.search("a bridge", rerank="minilm")  # type: ignore[arg-type]
        with pytest.raises(InvalidInput, match="at least one word"):
            retriever.search(" ", rerank=Rerank(model=cross_encoder))
        with pytest.raises(InvalidInput, match="trained to give"):
            retriever.search("a bridge", rerank=Rerank(model=folder.parent / "base" / "model"))
        with pytest.raises(ModelNotFound):
            retriever.search("a bridge", rerank=Rerank(model="nobody/nothing"))


# What a fit makes of it


def labelled(folder: Path, hits: Mapping[str, str]) -> Labels:
    """Questions, each with the document that answers it."""
    queries, qrels = folder / "queries.jsonl", folder / "qrels.tsv"
    queries.write_text("".join(json.dumps({"_id": f"q{at}", "text": text}) + "\n" for at, text in enumerate(hits)))
    qrels.write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"q{at}\t{document}\t1\n" for at, document in enumerate(hits.values()))
    )
    return Labels(queries, qrels)


def fitted(folder: Path, pages: Path, reranker: Path, labels: Sequence[Labels] = (), **settings: Any) -> FitResult:
    values = {
        "encoder": {"model": str(pages.parent / "base" / "model"), "precision": "float32"},
        "chunk": {"max_tokens": 40, "min_tokens": 4},
        "adapter": {"method": "none"},
        "index": {"kind": "exact"},
        "rerank": {"model": str(reranker), "depth": 10, **settings},
    }
    return fit([pages], folder / "retriever", FitConfig.build(values), labels=labels)


def liked(folder: Path, cross_encoder: Path, best: bool) -> dict[str, str]:
    """Questions whose answers are what the re-ranker finds best (or least) among the first ten."""
    made: dict[str, str] = {}
    reader = load(cross_encoder)
    with Retriever.open(folder, precision="float32") as retriever:
        for text in sentences(60, words=8, seed=77):
            hits = retriever.search(text, k=10)
            logits = reader.logits(text, [hit.chunk.passage for hit in hits])
            made[text] = hits[int(np.argmax(logits) if best else np.argmin(logits))].chunk.document_id
    return made


def test_a_reranker_that_helps_is_kept_with_its_weight(folder: Path, cross_encoder: Path, tmp_path: Path) -> None:
    labels = labelled(tmp_path, liked(folder, cross_encoder, True))
    copy = shutil.copytree(cross_encoder, tmp_path / "reranker")
    made = fitted(tmp_path, folder.parent / "docs", copy, [labels])
    shutil.rmtree(copy)
    with Retriever.open(made.path, precision="float32") as retriever:
        section = retriever.manifest.sections["rerank"]
        assert 0.1 <= section["weight"] <= 1 and section["depth"] == 10
        assert "better beyond doubt" in section["reason"] and "60 questions (labelled)" in section["reason"]
        assert (made.path / "reranker" / "model.safetensors").is_file() and retriever.rerank_refused == ""
        text = next(iter(liked(folder, cross_encoder, True)))
        own = retriever.search(text, k=5, rerank=True)
        texts = [hit.chunk.passage for hit in own]
        first, second = (retriever.score(text, texts[::-1], rerank=rerank)[::-1] for rerank in (False, True))
        assert second.mean() == pytest.approx(first.mean(), abs=1e-4) and not np.allclose(first, second)
        [read] = retriever.snapshot().second_stage(Rerank())[0].logits_of([(text, texts)])  # type: ignore[index]
        np.testing.assert_allclose(
            second, first.mean() + first.std() * with_reranker(first, read, section["weight"]), atol=1e-4
        )
        with pytest.raises(InvalidInput, match="no re-ranker"), Retriever.open(folder) as plain:
            plain.score(text, texts, rerank=True)
        asked = Rerank(model=cross_encoder, weight=section["weight"], depth=10)
        assert [hit.chunk.id for hit in own] == [hit.chunk.id for hit in retriever.search(text, k=5, rerank=asked)]
        confidence = retriever.searcher.confidence
        assert "With the re-ranker:" in confidence.reason
        places = [hit.confidence for hit in retriever.search(text, k=10)]
        sure = [hit.confidence for hit in own]
        if confidence.reread is None:
            assert sure == places[:5]
        else:
            [read] = (
                retriever.snapshot()
                .second_stage(Rerank())[0]
                .logits_of(  # type: ignore[index]
                    [(text, [hit.chunk.passage for hit in retriever.search(text, k=10, fold="none")])]
                )
            )
            assert sure == pytest.approx(confidence.reread.of(np.array(places), read)[:5].tolist(), rel=1e-3)
        assert sure == sorted(sure, reverse=True)  # type: ignore[type-var]
        kept = retriever.search(text, k=5, rerank=True, min_confidence=sure[1])
        assert [hit.chunk.id for hit in kept] == [hit.chunk.id for hit in own if hit.confidence >= sure[1]]  # type: ignore[operator]
        assert [hit.confidence for hit in retriever.search(text, k=5, rerank=asked)] == places[:5]
        measured = retriever.evaluate(labels.queries, labels.qrels, modes=["hybrid"], rerank=True)
        assert measured["reranked"]["nDCG@10"] > measured["hybrid"]["nDCG@10"] + 0.02
    step = next(step for step in made.report.verdict.steps if step.name == "Re-ranker")  # type: ignore[union-attr]
    assert step.passed is True and "better beyond doubt" in step.detail
    curve = next(curve for curve in made.report.curves if curve.title == "Share of the re-ranker")
    assert curve.chosen == section["weight"]
    assert any(licence.what == "re-ranker" for licence in made.report.licences)
    moved = made.path.rename(tmp_path / "elsewhere")
    with Retriever.open(moved) as retriever:
        assert retriever.search(text, k=5, rerank=True)
    refresh_documents(moved, [folder.parent / "docs"])
    with Retriever.open(moved, precision="float32") as retriever:
        assert [hit.chunk.id for hit in retriever.search(text, k=5, rerank=True)] == [hit.chunk.id for hit in own]


def test_after_cross_fitting_each_question_is_reranked_for_a_model_that_did_not_see_it(
    folder: Path, cross_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragadapt.pipeline import crossfit

    def win(**values: Any) -> gate.Decision:
        return gate.Decision(gate.Verdict.WIN, values["strength"], ("for the test",))

    monkeypatch.setattr(crossfit.gate, "decide", win)
    seen: dict[str, Any] = {}
    learn = second_stage.learn_reranking
    monkeypatch.setattr(
        second_stage, "learn_reranking", lambda *values, **more: seen.update(values=values) or learn(*values, **more)
    )
    found: list[Any] = []
    judge = fit_module.judge_folds
    monkeypatch.setattr(fit_module, "judge_folds", lambda *values: found.append(judge(*values)) or found[-1])
    labels = labelled(tmp_path, liked(folder, cross_encoder, True))
    values = {
        "encoder": {"model": str(folder.parent / "base" / "model"), "precision": "float32"},
        "chunk": {"max_tokens": 40, "min_tokens": 4},
        "adapter": {"method": "lora", "rank": 2},
        "training": {"max_steps": 2},
        "gate": {"max_drift": 2.0},
        "index": {"kind": "exact"},
        "rerank": {"model": str(cross_encoder), "depth": 10},
    }
    made = fit([folder.parent / "docs"], tmp_path / "retriever", FitConfig.build(values), labels=[labels])
    assert made.decision.adapted
    _, depth, read, judged, *_ = seen["values"]
    (crossed,) = found
    out_of_fold = crossed.found.adapted[crossed.strength].candidates[crossed.fusions[0].feedback]
    assert depth == 10 and [item.query.id for item in judged] == [item.query.id for item in crossed.found.judged]
    for one, candidates, fusion in zip(read, out_of_fold, crossed.fusions, strict=True):
        positions, scores = candidates.ranked(fusion, 100)
        assert np.array_equal(one.positions, positions) and np.array_equal(one.first, scores)
    chunks = Retriever.open(made.path, precision="float32").chunks
    texts = {id: chunk.passage for id, chunk in chunks.find(chunks.ids()).items()}
    ids = chunks.ids()
    reader = load(cross_encoder)
    logits = reader.logits(judged[0].query.text, [texts[ids[at]] for at in read[0].positions[:10]])
    assert np.allclose(read[0].read, logits, atol=1e-5)


def test_a_reranker_that_harms_stays_out(folder: Path, cross_encoder: Path, tmp_path: Path) -> None:
    made = fitted(
        tmp_path, folder.parent / "docs", cross_encoder, [labelled(tmp_path, liked(folder, cross_encoder, False))]
    )
    with Retriever.open(made.path) as retriever:
        assert retriever.manifest.sections["rerank"]["weight"] == 0
        assert "the first stage stays alone" in retriever.rerank_refused
        assert not (made.path / "reranker").exists()
        assert retriever.search("a bridge", rerank=True) == retriever.search("a bridge")
        assert retriever.search("a bridge", rerank=Rerank(model=cross_encoder, weight=1)) != retriever.search(
            "a bridge"
        )
        with pytest.raises(InvalidInput, match="was not kept"):
            retriever.search("a bridge", rerank=Rerank(weight=0.5))
    step = next(step for step in made.report.verdict.steps if step.name == "Re-ranker")  # type: ignore[union-attr]
    assert step.passed is False


def test_without_answers_it_stays_out_unless_its_weight_is_given(
    folder: Path, cross_encoder: Path, tmp_path: Path
) -> None:
    made = fitted(tmp_path, folder.parent / "docs", cross_encoder)
    section = Retriever.open(made.path).manifest.sections["rerank"]
    assert section["weight"] == 0 and "no questions with known answers" in section["reason"]
    given = fitted(tmp_path, folder.parent / "docs", cross_encoder, weight=0.3)
    with Retriever.open(given.path) as retriever:
        assert retriever.manifest.sections["rerank"]["weight"] == 0.3
        assert "rerank" in retriever.search("a bridge", rerank=True)[0].parts


def test_a_wrong_model_is_told_before_anything_is_encoded(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="Presets: ettin-17m"):
        fitted(tmp_path, tmp_path / "no such documents", Path("no/such/model"))
    with pytest.raises(InvalidInput, match="trained to give"):
        fitted(tmp_path, folder.parent / "docs", folder.parent / "base" / "model")
    assert not (tmp_path / "retriever").exists()


def test_a_reranker_that_was_exchanged_is_refused(folder: Path, cross_encoder: Path, tmp_path: Path) -> None:
    made = fitted(tmp_path, folder.parent / "docs", cross_encoder, weight=0.3)
    weights = made.path / "reranker" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 64
    weights.write_bytes(data)
    with pytest.raises(StoreCorrupt), Retriever.open(made.path) as retriever:
        retriever.search("a bridge", rerank=True)


def test_what_judges_is_never_cut_from_the_passages() -> None:
    def query(kind: str, at: int) -> Query:
        return Query(f"{kind}{at}", f"{kind} {at}", kind, evidence_of(kind), ("c",))

    none = gate.Plan((), (), None, "")
    crops = [query("title", at) for at in range(300)]
    assert judging_queries(none, crops) == (None, [])
    few = [query("label", at) for at in range(9)]
    human = [query("question", at) for at in range(40)]
    assert judging_queries(none, [*crops, *few, *human]) == (Evidence.HUMAN, human)
    plan = gate.Plan((), tuple(few), Evidence.LABELLED, "")
    assert judging_queries(plan, [*human]) == (Evidence.LABELLED, few)
    rank, found = judging_queries(none, [query("label", at) for at in range(700)])
    assert rank is Evidence.LABELLED and len(found) == 234


# Export


@pytest.mark.parametrize("build", ["bert", "modernbert", "roberta", "modules"])
def test_an_exported_reranker_gives_the_same_scores(tmp_path: Path, build: str) -> None:
    folder = BUILDS[build](tmp_path / "model")
    reranker = Reranker.load(folder, device="cpu", precision="float32", max_length=40)
    reranker.save(tmp_path / "saved")
    long = " ".join(TEXTS[:12])
    expected = reranker.logits(QUERY, [*TEXTS, long])
    plain = export_reranker(tmp_path / "saved", tmp_path / "plain")
    assert plain.difference < 1e-5 and "model.safetensors" in " ".join(plain.files)
    scores = 1 / (1 + np.exp(-expected))
    assert np.abs(by_library(plain.folder, QUERY, [*TEXTS, long]) - scores).max() < 1e-5
    pytest.importorskip("onnxruntime")
    made = export_reranker(tmp_path / "saved", tmp_path / "onnx", "onnx")
    settings = json.loads((made.folder / "ragadapt_onnx.json").read_text())
    assert settings["max_length"] == 40 and settings["activation"].endswith("Sigmoid")
    assert build != "bert" or "token_type_ids" in settings["inputs"]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made.folder)
    pairs = [(QUERY, text) for text in [*TEXTS, long]]
    found = export_module._run_pair_onnx(made.folder / settings["file"], tokenizer, pairs, settings["inputs"], 40)
    assert np.abs(found - expected).max() < 1e-4 * max(1, expected.std())


def test_export_of_a_reranker_refuses_what_it_cannot_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotARetriever, match="has no re-ranker"):
        export_reranker(folder, tmp_path / "out")
    with pytest.raises(InvalidInput, match="format = 'gguf'"):
        export_reranker(folder, tmp_path / "out", "gguf")  # type: ignore[arg-type]
    cross_encoder = write_tiny_cross_encoder(tmp_path / "model")
    with pytest.raises(InvalidInput, match="exists already"):
        export_reranker(cross_encoder, folder)
    assert not (tmp_path / "out").exists()


# The command line


def test_command_line_reranks_measures_and_exports(
    folder: Path, cross_encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*arguments: str) -> Any:
        exact = ["--precision", "float32"] if arguments[0] != "export" else []
        code = run([*arguments, *exact, "--json", "--quiet"])
        captured = capsys.readouterr()
        return json.loads(captured.out if code == 0 else captured.err), code

    made = fitted(tmp_path, folder.parent / "docs", cross_encoder, weight=0.8)
    with Retriever.open(made.path) as retriever:
        expected = [hit.chunk.id for hit in retriever.search("old stone bridge", k=5, rerank=True)]
        plain = [hit.chunk.id for hit in retriever.search("old stone bridge", k=5)]
    found, _ = told("search", str(made.path), "old stone bridge", "--rerank")
    assert [hit["id"] for hit in found["hits"]] == expected != plain
    named, _ = told(
        "search", str(folder), "old stone bridge", "--rerank-model", str(cross_encoder), "--rerank-weight", "0"
    )
    assert [hit["id"] for hit in named["hits"]] == plain
    forget()
    brief, _ = told("search", str(made.path), "old stone bridge", "--rerank-ms", "0")
    assert [hit["id"] for hit in brief["hits"]] == plain
    refused, code = told("search", str(folder), "old stone bridge", "--rerank")
    assert code != 0 and "has no re-ranker" in json.dumps(refused)
    labels = labelled(tmp_path, liked(folder, cross_encoder, True))
    measured, _ = told(
        "eval", str(made.path), "--queries", str(labels.queries), "--qrels", str(labels.qrels), "--rerank"
    )
    assert measured["systems"]["reranked"]["nDCG@10"] > measured["systems"]["hybrid"]["nDCG@10"]
    exported, _ = told("export", str(made.path), str(tmp_path / "out"), "--part", "reranker")
    assert exported["difference"] < 1e-5 and (tmp_path / "out" / "config.json").is_file()
