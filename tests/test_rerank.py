"""The second stage: a cross-encoder's scores, their place in the fusion, and what is saved of it."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import sentences, write_modular_cross_encoder, write_tiny_cross_encoder, write_tiny_model

from ragadapt.errors import FormatTooNew, InvalidInput, ModelNotFound, NotARetriever, StoreCorrupt
from ragadapt.rerank import PRESETS, Reranker
from ragadapt.rerank import reranker as module
from ragadapt.rerank.presets import source_of

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
    module.forget_scores()


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
    module.forget_scores()
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
    memory = module._Memory(most=3)
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
    monkeypatch.setattr(module.PairTower, "of", classmethod(lambda cls, *_, **__: None))
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
    module.forget_scores()
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
    from ragadapt.errors import FingerprintMismatch

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
    }
    assert source_of("bge").location == "BAAI/bge-reranker-v2-m3"
