"""Late interaction as the second stage: MaxSim over token vectors, as sentence-transformers computes it."""

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
from ragadapt_cli.main import run
from small_retriever import write_pages
from tiny_models import (
    sentences,
    write_modular_cross_encoder,
    write_tiny_cross_encoder,
    write_tiny_model,
    write_tiny_multi_vector,
    write_tiny_pylate,
    write_tiny_stanford,
)
from torch import Tensor

from ragadapt.config import AdapterConfig, FitConfig, TrainingConfig
from ragadapt.errors import FingerprintMismatch, FormatTooNew, InvalidConfiguration, InvalidInput, ModelNotFound
from ragadapt.export import export_reranker
from ragadapt.pipeline.fit import fit
from ragadapt.pipeline.refresh import refresh_documents
from ragadapt.pipeline.second_stage import load_reranker
from ragadapt.rerank import Reranker
from ragadapt.rerank import reranker as base_module
from ragadapt.rerank.adapted import AdaptedReranker
from ragadapt.rerank.cross_encoder import CrossEncoderReranker
from ragadapt.rerank.late_interaction import LateInteraction, TokenTower, max_sim
from ragadapt.rerank.memory import VECTORS, Memory, Vectors, forget
from ragadapt.rerank.presets import is_multi_vector, source_of
from ragadapt.rerank.spec import SPEC_FILE
from ragadapt.retriever import Retriever
from ragadapt.search.reranking import Rerank
from ragadapt.training import Example
from ragadapt.training.rerank import RerankerTrainingResult, _TokenRun, train_reranker

pytest.importorskip("sentence_transformers.multi_vector_encoder")

TEXTS = sentences(30, words=20, seed=3)
QUERY = "how do i open a file"
UNSEEN = {"strategy": "fixed", "attend": False, "length": 14}
SEEN = {"strategy": "min", "attend": True, "length": 12}
PROMPTS = {"query": "what ", "document": "text "}

BUILDS: dict[str, Callable[[Path], Path]] = {
    "bert": lambda folder: write_tiny_multi_vector(folder, skip=".,a", query_expansion=UNSEEN, prompts=PROMPTS),
    "modernbert": lambda folder: write_tiny_multi_vector(
        folder, "modernbert", skip=".a", query_expansion=UNSEEN, document_length=30, prompts=PROMPTS
    ),
    "modernbert, attended": lambda folder: write_tiny_multi_vector(folder, "modernbert", query_expansion=SEEN),
    "bert, plain": lambda folder: write_tiny_multi_vector(folder, width=None, query_length=10, similarity="meanmaxsim"),
    "distilbert": lambda folder: write_tiny_multi_vector(folder, "distilbert", query_expansion=UNSEEN),
    "pylate": write_tiny_pylate,
    "stanford": write_tiny_stanford,
}


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    forget()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {name: build(tmp_path_factory.mktemp("models") / "m") for name, build in BUILDS.items()}


def load(folder: Path, precision: str = "float32") -> LateInteraction:
    made = Reranker.load(folder, device="cpu", precision=precision)
    assert isinstance(made, LateInteraction)
    return made


def by_library(folder: Path, query: str, passages: Sequence[str]) -> np.ndarray:
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    encoded = model.encode_query([query]), model.encode_document(list(passages))
    return np.asarray(model.similarity(*encoded))[0]


# Scores


@pytest.mark.parametrize("build", BUILDS)
def test_scores_are_those_of_the_library(models: Mapping[str, Path], build: str) -> None:
    reranker = load(models[build])
    long = " ".join(TEXTS[:12])  # is cut
    passages = [*TEXTS, long, "", "Straße naïve [SEP] 漢字, a. of."]
    for query in (QUERY, long):  # one that is expanded, one that is cut
        expected = by_library(models[build], query, passages)
        assert np.abs(reranker.scores(query, passages) - expected).max() < 1e-5
        assert np.ptp(expected) > 1e-3  # the passages are told apart
    assert reranker.path.startswith("transformers" if build == "distilbert" else "ragadapt's own forward")
    assert np.array_equal(reranker.logits(QUERY, TEXTS), reranker.scores(QUERY, TEXTS))


def test_max_sim_is_that_of_a_slow_reference() -> None:
    generator = np.random.default_rng(0)
    query, *passages = (generator.normal(size=(tokens, 4)).astype(np.float32) for tokens in (3, 5, 1, 2))
    slow = [sum(max(float(q @ p) for p in passage) for q in query) for passage in passages]
    assert np.allclose(max_sim(query, passages), slow, atol=1e-6)
    assert np.allclose(max_sim(query, passages, mean=True), np.array(slow) / 3, atol=1e-6)
    none = np.zeros((0, 4), np.float32)
    assert np.allclose(max_sim(query, [none, *passages, none]), [-3, *slow, -3], atol=1e-6)
    assert len(max_sim(query, [])) == 0


def test_the_kind_is_told_from_the_model(models: Mapping[str, Path], tmp_path: Path) -> None:
    plain = write_tiny_model(tmp_path / "plain")
    pairs = (write_tiny_cross_encoder(tmp_path / "cross"), write_modular_cross_encoder(tmp_path / "modules"))
    assert all(is_multi_vector(source_of(str(folder))) for folder in models.values())
    assert not any(is_multi_vector(source_of(str(folder))) for folder in (plain, *pairs))
    assert isinstance(Reranker.load(pairs[0], device="cpu"), CrossEncoderReranker)
    assert not is_multi_vector(source_of("minilm"))  # its files are not here
    with pytest.raises(InvalidInput, match="or a multi-vector"):
        Reranker.load(plain, device="cpu")


def test_a_forward_that_differs_is_given_up(models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    made = TokenTower.of
    monkeypatch.setattr(
        TokenTower, "of", classmethod(lambda _, model, length, own: None if own else made(model, length, own=False))
    )
    folder = models["modernbert"]
    expected = by_library(folder, QUERY, TEXTS)
    in_library = load(folder)
    assert in_library.path == "sentence-transformers"
    assert np.abs(in_library.scores(QUERY, TEXTS) - expected).max() < 1e-5
    forget()
    assert 0 < in_library.affordable(QUERY, TEXTS, 1e9) == len(TEXTS)
    monkeypatch.undo()
    monkeypatch.setattr(base_module, "_SAME", -1.0)
    assert load(folder).path == "sentence-transformers"


@pytest.mark.parametrize("build", ["bert", "modernbert, attended"])
def test_bfloat16_orders_passages_as_float32_does_or_is_not_used(models: Mapping[str, Path], build: str) -> None:
    rough, exact = load(models[build], "bfloat16"), load(models[build])
    assert rough.precision.min_cosine < 1
    found, expected = rough.logits(QUERY, TEXTS), exact.logits(QUERY, TEXTS)
    if rough.precision.dtype == "float32":
        assert rough.precision.reason == "bfloat16 changes the order"
        assert np.allclose(found, expected, atol=1e-5)
    else:
        assert np.corrcoef(found, expected)[0, 1] > 0.99 and not np.array_equal(found, expected)
        assert rough.vectors(TEXTS[:1], "document")[0].dtype == np.float16


# What is remembered


def counted(reranker: LateInteraction, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the model reads, as they come."""
    read: list[str] = []
    embed = reranker._embed
    monkeypatch.setattr(reranker, "_embed", lambda texts, task: read.extend(texts) or embed(texts, task))
    return read


def test_a_passage_is_read_once_for_all_queries(models: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = load(models["bert"])
    lists = [("a cat", TEXTS[:5]), ("a dog", TEXTS[3:9]), ("a cat", TEXTS[2:4]), ("bread", [])]
    alone = [reranker.logits(query, passages) for query, passages in lists]
    forget()
    read = counted(reranker, monkeypatch)
    together = reranker.logits_of(lists)
    assert all(np.allclose(mine, other, atol=1e-5) for mine, other in zip(together, alone, strict=True))
    assert sorted(read) == sorted({"a cat", "a dog", *TEXTS[:9]})
    reranker.logits("red", TEXTS[:9])
    assert read[11:] == ["red"]
    reranker.logits("a cat", TEXTS[8:10])
    assert read[12:] == [TEXTS[9]]


def test_remembered_vectors_are_those_of_one_model_and_side(
    models: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = load(models["bert"]), load(write_tiny_multi_vector(tmp_path, seed=1))
    (mine,) = first.vectors([QUERY], "document")
    assert len(first.vectors([QUERY], "query")[0]) != len(mine)
    assert not np.array_equal(other.vectors([QUERY], "document")[0], mine)
    again = load(models["bert"])
    read = counted(again, monkeypatch)
    assert np.array_equal(again.vectors([QUERY], "document")[0], mine) and read == []


def test_vectors_are_remembered_within_a_bound_of_bytes(models: Mapping[str, Path]) -> None:
    vectors = np.zeros((10, 4), np.float32)  # 160 bytes
    memory: Memory[Vectors] = Memory(400, lambda one: one.nbytes)
    memory.add([b"a", b"b"], [vectors, vectors])
    assert memory.get([b"a"])[0] is vectors and memory.held == 320
    memory.add([b"c"], [vectors])
    assert [one is None for one in memory.get([b"a", b"b", b"c"])] == [False, True, False]
    memory.add([b"c"], [vectors[:5]])
    assert memory.held == 240
    memory.add([b"huge"], [np.zeros((100, 4), np.float32)])
    assert memory.held == 0
    load(models["bert"])
    assert VECTORS.held == 0  # what tries a model out is not kept
    load(models["bert"]).logits(QUERY, TEXTS)
    assert 0 < VECTORS.held < 1e6
    forget()
    assert VECTORS.held == 0


def test_a_budget_of_time_counts_what_is_not_remembered(models: Mapping[str, Path]) -> None:
    reranker = load(models["bert"])
    asked = len(reranker._tower.rows([QUERY], "query")[0])  # type: ignore[union-attr]
    lengths = [len(row) for row in reranker._tower.rows(TEXTS, "document")]  # type: ignore[union-attr]
    reranker._tokens_per_second = 1000.0
    for count in (1, 7, len(TEXTS)):
        assert reranker.affordable(QUERY, TEXTS, asked + sum(lengths[:count])) == count
    assert reranker.affordable(QUERY, TEXTS, lengths[0]) == 0
    reranker.logits("another", TEXTS[:10])  # its passages cost nothing any more
    assert reranker.affordable(QUERY, TEXTS, asked + sum(lengths[10:12])) == 12
    reranker.logits(QUERY, TEXTS[:1])  # nor does the query
    assert reranker.affordable(QUERY, TEXTS, sum(lengths[10:12])) == 12
    assert reranker.depth == 20


# Saving


@pytest.mark.parametrize("build", ["bert, plain", "pylate", "stanford"])
def test_a_saved_one_is_a_folder_of_the_library_with_the_same_scores(
    models: Mapping[str, Path], tmp_path: Path, build: str
) -> None:
    folder = shutil.copytree(models[build], tmp_path / "model")
    reranker = Reranker.load(folder, device="cpu", precision="float32", max_length=20)
    assert reranker.save(tmp_path / "saved") is True
    shutil.rmtree(folder)
    expected = reranker.scores(QUERY, TEXTS)
    forget()
    opened = Reranker.open(tmp_path / "saved", device="cpu", precision="float32")
    assert opened.fingerprint == reranker.fingerprint and opened.spec.max_length == 20
    assert np.abs(opened.scores(QUERY, TEXTS) - expected).max() < 1e-6
    assert np.abs(by_library(tmp_path / "saved", QUERY, TEXTS) - expected).max() < 1e-5


def test_how_texts_are_read_belongs_to_the_fingerprint(models: Mapping[str, Path], tmp_path: Path) -> None:
    reranker = load(models["bert"])
    others = [
        load(write_tiny_multi_vector(tmp_path / str(at), **{"skip": ".,a", "query_expansion": UNSEEN, **changed}))
        for at, changed in enumerate(({}, {"prompts": PROMPTS, "skip": "."}))
    ]
    assert {other.spec.base for other in others} == {reranker.spec.base}
    assert len({reranker.fingerprint, *(other.fingerprint for other in others)}) == 3
    reranker.save(tmp_path / "saved")
    about = tmp_path / "saved" / "config_sentence_transformers.json"
    values = json.loads(about.read_text())
    about.write_text(json.dumps({**values, "prompts": {"query": "", "document": ""}}))
    with pytest.raises(FingerprintMismatch, match="set up otherwise here"):
        Reranker.open(tmp_path / "saved", device="cpu")


def test_notes_of_cross_encoders_are_as_before_and_newer_ones_are_refused(tmp_path: Path) -> None:
    Reranker.load(write_tiny_cross_encoder(tmp_path / "model"), device="cpu").save(tmp_path / "pairs")
    note = json.loads((tmp_path / "pairs" / SPEC_FILE).read_text())
    assert note["format"] == 1 and "multi_vector" not in note  # what earlier versions open
    load(write_tiny_multi_vector(tmp_path / "late")).save(tmp_path / "tokens")
    path = tmp_path / "tokens" / SPEC_FILE
    note = json.loads(path.read_text())
    assert note["format"] == 2 and note["multi_vector"]["prompts"] == {"query": "", "document": ""}
    path.write_text(json.dumps({**note, "format": 3}))
    with pytest.raises(FormatTooNew, match="has format 3"):
        Reranker.open(tmp_path / "tokens")


# What is refused


def test_foreign_code_and_other_models_are_refused(
    models: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(models["bert"], tmp_path / "model")
    listed = json.loads((folder / "modules.json").read_text())
    listed[1]["type"] = "custom.Projection"
    (folder / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ModelNotFound, match=r"'custom\.Projection', which is not of sentence-transformers"):
        load(folder)
    with pytest.raises(InvalidInput, match="positions for at most 66"):
        Reranker.load(models["bert"], max_length=100, device="cpu")
    with pytest.raises(InvalidInput, match="a query is a string"):
        load(models["bert"]).scores(" ", TEXTS)
    import sentence_transformers

    monkeypatch.delattr(sentence_transformers, "MultiVectorEncoder")
    with pytest.raises(InvalidInput, match="opens from version 6 on"):
        load(models["bert"])


# A fit and a search


def test_it_ships_with_the_folder_and_is_searched_with(
    models: Mapping[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(models["modernbert"], tmp_path / "model")
    values = {
        "encoder": {"model": str(write_tiny_model(tmp_path / "base")), "precision": "float32"},
        "chunk": {"max_tokens": 40, "min_tokens": 4},
        "adapter": {"method": "none"},
        "index": {"kind": "exact"},
        "rerank": {"model": str(model), "depth": 10, "weight": 0.7},
    }
    pages = write_pages(tmp_path / "docs")
    made = fit([pages], tmp_path / "retriever", FitConfig.build(values))
    shutil.rmtree(model)
    moved = made.path.rename(tmp_path / "elsewhere")
    text = "an old stone bridge"
    with Retriever.open(moved, precision="float32") as retriever:
        assert retriever.manifest.sections["rerank"]["weight"] == 0.7 and retriever.rerank_refused == ""
        own = retriever.search(text, k=5, rerank=True)
        asked = Rerank(model=models["modernbert"], weight=0.7, depth=10)
        assert [hit.chunk.id for hit in own] == [hit.chunk.id for hit in retriever.search(text, k=5, rerank=asked)]
        expected = by_library(models["modernbert"], text, [hit.chunk.passage for hit in own])
        assert np.allclose([hit.parts["rerank"] for hit in own], expected, atol=1e-5)
        plain = [hit.chunk.id for hit in retriever.search(text, k=5)]
        assert plain != [hit.chunk.id for hit in own]
        forget()
        brief = retriever.search(text, k=5, rerank=Rerank(milliseconds=0))
        assert [hit.chunk.id for hit in brief] == plain
    refresh_documents(moved, [pages])
    assert run(["search", str(moved), text, "--rerank", "-k", "5", "--precision", "float32", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)["hits"]
    assert [hit["id"] for hit in found] == [hit.chunk.id for hit in own]
    assert run(["export", str(moved), str(tmp_path / "out"), "--part", "reranker", "--json", "--quiet"]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["difference"] < 1e-5 and exported["opens_with"] == "MultiVectorEncoder"
    assert np.abs(by_library(tmp_path / "out", text, [hit.chunk.passage for hit in own]) - expected).max() < 1e-5


def test_a_framework_reads_with_one(models: Mapping[str, Path]) -> None:
    documents = pytest.importorskip("langchain_core.documents")
    from langchain_ragadapt import RagAdaptReranker

    expected = by_library(models["bert"], QUERY, TEXTS)
    compressor = RagAdaptReranker.from_pretrained(models["bert"], top_n=3, device="cpu", precision="float32")
    found = compressor.compress_documents([documents.Document(text) for text in TEXTS], QUERY)
    assert [one.page_content for one in found] == [TEXTS[at] for at in np.argsort(-expected, kind="stable")[:3]]


# Training


def examples() -> list[Example]:
    """The answer to anything is red."""
    texts = sentences(60, words=10, seed=4)
    return [
        Example(
            texts[at], f"red {texts[at + 10]}", tuple(text for text in texts[at + 20 : at + 27] if "red" not in text)
        )
        for at in range(24)
    ]


def trained(base: LateInteraction, method: str, **values: Any) -> RerankerTrainingResult:
    settings = TrainingConfig(**{"batch_size": 6, "learning_rate": 5e-3, "max_steps": 4, **values})
    return train_reranker(base, examples(), None, AdapterConfig(method=method), settings, negatives=4, seed=7)


def logits(reranker: AdaptedReranker | Reranker) -> np.ndarray:
    return np.concatenate(reranker.logits_of([(QUERY, TEXTS[1:20]), (TEXTS[0], TEXTS[20:25])]))


@pytest.mark.parametrize(("build", "method"), [("modernbert, attended", "full"), ("pylate", "iaa-l")])
def test_a_gradient_is_that_of_the_scores_and_reaches_every_parameter(
    models: Mapping[str, Path], build: str, method: str
) -> None:
    settings = TrainingConfig(batch_size=6, learning_rate=5e-3, max_steps=4)
    found: list[list[Tensor]] = []
    for tokens in (4096, 64):
        run = _TokenRun(
            load(models[build]), examples(), AdapterConfig(method=method), settings, "listwise", 4, False, 7
        )
        run.plan()
        run.steps, run.chunk_tokens, run.held_tokens = 4, tokens, tokens
        run.step(list(range(6)), 1, 1e-2)  # away from the start, at which a zero stops the gradient of its partner
        run.optimizer.zero_grad(set_to_none=True)
        loss = run.gradient(list(range(6)), 2)
        for name, parameter in zip(run.names, run.parameters, strict=True):
            assert parameter.grad is not None and bool((parameter.grad != 0).any()), name
        assert any(name.startswith("head.") for name in run.names)
        found.append([part.grad for part in run.parameters if part.grad is not None])
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(*found, strict=True))
    lists = run.lists(range(6), 2)
    scores = run.model.logits_of(list(zip([one.query for one in examples()[:6]], lists, strict=True)))
    expected = np.mean([np.log(np.exp(own - own[0]).sum()) for own in scores])
    assert loss == pytest.approx(expected, rel=1e-4)


def test_it_learns_what_the_answers_have_in_common(models: Mapping[str, Path], tmp_path: Path) -> None:
    texts = sentences(60, words=10, seed=4)
    lists = [(query, [f"red {texts[at]}", *(t for t in texts[at + 1 : at + 9] if "red" not in t)])
             for at, query in enumerate(texts[40:50], start=30)]  # fmt: skip
    base = load(models["bert"])
    before = np.mean([np.argmax(scores) == 0 for scores in base.logits_of(lists)])
    made = trained(base, "lora", max_steps=30, epochs=20, learning_rate=1e-2)
    after = np.mean([np.argmax(scores) == 0 for scores in made.reranker.logits_of(lists)])
    assert before <= 0.5 and after >= 0.9
    forget()
    again = base.logits_of(lists)  # the base stays as it was
    assert np.mean([np.argmax(scores) == 0 for scores in again]) == before
    check_saved(base, made.reranker, tmp_path / "saved")


def check_saved(base: LateInteraction, made: AdaptedReranker, folder: Path) -> None:
    """In training, merged, saved, opened: the same scores, which are not the base's."""
    assert made.effect().proved, made.effect().problems
    full, merged = logits(made), made.merged()
    assert np.abs(logits(merged) - full).max() < 1e-4
    merged.save(folder)
    opened = pickle.loads(pickle.dumps(load(folder)))
    assert opened.fingerprint == merged.fingerprint != base.fingerprint
    forget()
    assert np.array_equal(logits(opened), logits(merged)) and opened.path == "ragadapt's own forward"
    assert np.abs(full - logits(base)).max() > 1e-3
    made.scale(0.0)
    assert np.allclose(logits(made), logits(base), atol=1e-5)


def test_an_adapter_beside_the_weights_is_saved_with_them(models: Mapping[str, Path], tmp_path: Path) -> None:
    base = load(models["pylate"])
    check_saved(base, trained(base, "iaa-l").reranker, tmp_path / "saved")
    assert export_reranker(tmp_path / "saved", tmp_path / "out").needs_ragadapt
    with pytest.raises(InvalidInput, match="ONNX export knows cross-encoders alone"):
        export_reranker(tmp_path / "saved", tmp_path / "onnx", "onnx")


def test_a_loss_of_single_passages_is_refused_before_anything_is_read(
    models: Mapping[str, Path], tmp_path: Path
) -> None:
    config = FitConfig.build(
        {
            "encoder": {"model": str(write_tiny_model(tmp_path / "base"))},
            "rerank": {"model": str(models["bert"]), "loss": "pointwise"},
            "stage": "rerank",
        }
    )
    with pytest.raises(InvalidConfiguration, match=r"rerank\.loss = 'listwise'"):
        load_reranker(config)
