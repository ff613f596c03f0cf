"""The library of adapters: what a corpus looks like, which adapters are near, their sum, a fit that begins there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from ragadapt_cli.main import run
from tiny_models import sentences, write_tiny_model
from torch import Tensor
from trained_retriever import fit_trained

from ragadapt.adapters import AdapterState, attach
from ragadapt.adapters import library as library_module
from ragadapt.adapters.blending import (
    blend,
    check_start,
    least_squares_weights,
    softmax_weights,
    truncated,
)
from ragadapt.adapters.library import ENTRY, CorpusStatistics, Library
from ragadapt.adapters.method import METHODS, method_named
from ragadapt.config import AdapterConfig, EncoderConfig, FitConfig, TrainingConfig
from ragadapt.encoder import Encoder
from ragadapt.errors import InvalidConfiguration, InvalidInput, StoreCorrupt, StoreError, StoreLocked
from ragadapt.evaluation import gate
from ragadapt.pipeline.compare import compare_methods
from ragadapt.pipeline.fit import fit
from ragadapt.pipeline.library import add_retriever, offer, write_offer
from ragadapt.pipeline.prime import prime
from ragadapt.pipeline.queries import Labels
from ragadapt.pipeline.seen import seen_by
from ragadapt.queries.seen import mark, read_seen
from ragadapt.report import read_report
from ragadapt.training import Example, train

TEXTS = sentences(12)


# What a corpus looks like


def cloud(seed: int, count: int = 60, dim: int = 12) -> np.ndarray:
    """Vectors around a point of their own, with more spread in some directions than in others."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, dim)) * np.linspace(1, 0.1, dim) + rng.normal(size=dim)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def whole(statistics: CorpusStatistics) -> np.ndarray:
    """(d, d) the covariance that the sketch stands for."""
    v = statistics.directions
    inside = (v.T * statistics.variances) @ v
    return inside + statistics.rest * (np.eye(v.shape[1]) - v.T @ v)


def test_distance_is_that_of_frechet_between_the_covariances_of_the_sketches() -> None:
    from scipy.linalg import sqrtm

    one, other = (CorpusStatistics.of(cloud(seed), "base") for seed in (1, 2))
    a, b = whole(one), whole(other)
    expected = ((one.mean - other.mean) ** 2).sum() + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert one.distance(other) == pytest.approx(np.sqrt(expected), rel=1e-6)
    assert one.distance(other) == pytest.approx(other.distance(one), rel=1e-9)
    assert one.distance(one) == pytest.approx(0, abs=1e-6)


def test_sketch_keeps_the_largest_variances_and_the_whole_spread() -> None:
    vectors = cloud(3)
    found = CorpusStatistics.of(vectors, "base")
    covariance = np.cov(vectors.T.astype(np.float64), bias=True)
    assert np.allclose(np.sort(found.variances), np.linalg.eigvalsh(covariance)[-6:])
    assert np.trace(whole(found)) == pytest.approx(np.trace(covariance))


def test_statistics_of_different_bases_have_no_distance() -> None:
    with pytest.raises(InvalidInput, match="different base models"):
        CorpusStatistics.of(cloud(1), "one").distance(CorpusStatistics.of(cloud(2), "other"))


# Weights of a blend


def test_softmax_favours_the_nearest_the_more_the_colder_it_is() -> None:
    warm, cold = softmax_weights([0.2, 0.3, 0.9], 0.1), softmax_weights([0.2, 0.3, 0.9], 0.01)
    assert sum(warm) == pytest.approx(1) and warm == sorted(warm, reverse=True)
    assert warm[0] / warm[1] == pytest.approx(np.e)
    assert cold[0] > 0.999


def test_least_squares_finds_the_mix_that_a_mean_is_made_of_and_never_a_negative_part() -> None:
    means = np.random.default_rng(0).normal(size=(3, 8))
    assert least_squares_weights(0.7 * means[0] + 0.3 * means[2], [*means]) == pytest.approx([0.7, 0, 0.3], abs=1e-4)
    beyond = least_squares_weights(2 * means[0] - means[1], [*means])
    assert min(beyond) == 0 and sum(beyond) == pytest.approx(1)


# The sum


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    model = write_tiny_model(tmp_path_factory.mktemp("base"))
    return Encoder.load(EncoderConfig(model=str(model), precision="float32"))


def learnt(base: Encoder, method: str, seed: int, strength: float = 1.0, **settings: object) -> AdapterState:
    """An adapter with something in every parameter."""
    config = AdapterConfig(method=method, **settings)  # type: ignore[arg-type]
    encoder = attach(base, config, seed=0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    encoder.scale(strength)
    return encoder.state()


def folded(base: Encoder, state: AdapterState) -> dict[str, Tensor]:
    """What it changes of every weight."""
    assert base.query_tower is not None
    model = base.query_tower.clone().model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    method = state.attach(model)
    found = method.fold()
    assert found is not None
    return {name: weight - before[name] for name, weight in found.items()}


LINEAR = [name for name in METHODS if method_named(name).LINEAR]


def test_these_methods_add_up() -> None:
    assert set(LINEAR) == {
        "lora", "rslora", "lora+", "pissa", "adalora", "vera", "loftq", "melora", "mtl-lora", "flat-lora", "lora-sp",
    }  # fmt: skip


@pytest.mark.parametrize("method", LINEAR)
def test_blend_is_the_weighted_sum_in_weight_space(base: Encoder, method: str) -> None:
    assert base.query_tower is not None
    states = [learnt(base, method, 1, rank=2), learnt(base, method, 2, 0.5, rank=3), learnt(base, "lora", 3, rank=4)]
    weights = [0.5, 0.2, 0.3]
    model = base.query_tower.clone().model
    names = [name for name, _ in model.named_parameters()]
    made = blend(states, weights, model)
    assert [name for name, _ in model.named_parameters()] == names  # as it was
    parts = [folded(base, state) for state in states]
    total = folded(base, made)
    assert made.config.method == "lora"
    for name, change in total.items():
        expected = sum(weight * part[name] for weight, part in zip(weights, parts, strict=True))
        assert change.norm() > 1e-3
        assert torch.allclose(change, expected, atol=1e-6), name


@pytest.mark.parametrize("method", [name for name in METHODS if name not in LINEAR and name != "qlora"])
def test_what_is_not_linear_is_refused_by_name(base: Encoder, method: str) -> None:
    assert base.query_tower is not None
    state = replace(learnt(base, "lora", 1), config=AdapterConfig(method=method))  # type: ignore[arg-type]
    with pytest.raises(InvalidConfiguration, match=f"'{method.replace('+', '.')}' is no low-rank change"):
        blend([state], [1.0], base.query_tower.model)


def test_blend_refuses_other_bases_sides_and_reweightings(base: Encoder) -> None:
    assert base.query_tower is not None
    ours = learnt(base, "lora", 1)
    others = {
        "different base models": replace(ours, base="another"),
        "differ in adapt": learnt(base, "lora", 2, adapt="query"),
        "differ in layers": learnt(base, "lora", 2, layers=1),
        "re-weight the vector differently": learnt(base, "lora", 2, gamma=0.5),
    }
    for words, state in others.items():
        with pytest.raises(InvalidConfiguration, match=words):
            blend([ours, state], [0.5, 0.5], base.query_tower.model)


def test_vectors_of_a_blend_are_those_of_the_summed_weights_with_their_reweighting(base: Encoder) -> None:
    """Of one adapter with weight 1 and another with weight 0 they are the first one's."""
    assert base.query_tower is not None
    states = [learnt(base, "lora", 1, rank=2), learnt(base, "melora", 2, rank=2)]
    made = blend(states, [1.0, 0.0], base.query_tower.clone().model)
    vectors = []
    for state in (states[0], made):
        encoder = attach(base, state.config, seed=0)
        encoder.begin_at(state)
        vectors.append(encoder.encode_queries(TEXTS))
    assert np.allclose(*vectors, atol=1e-5)
    assert not np.allclose(vectors[0], base.encode_queries(TEXTS), atol=1e-2)


def test_truncation_is_the_best_of_its_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(6, 20, generator=generator), torch.randn(10, 6, generator=generator)
    u, values, v = torch.linalg.svd(b @ a, full_matrices=False)
    low, high = truncated(a, b, 2)
    assert low.shape == (2, 20) and high.shape == (10, 2)
    assert torch.allclose(high @ low, (u[:, :2] * values[:2]) @ v[:2], atol=1e-4)


# Going on from an adapter


def test_training_goes_on_from_an_adapter(base: Encoder) -> None:
    examples = [Example(text, f"{text} {text}") for text in TEXTS]
    config = TrainingConfig(batch_size=4, max_steps=2, learning_rate=1e-9)
    state = learnt(base, "lora", 1, rank=2)
    result = train(base, examples, None, state.config, config, start=state)
    attached = attach(base, state.config)
    attached.begin_at(state)
    assert np.allclose(result.encoder.encode_queries(TEXTS), attached.encode_queries(TEXTS), atol=1e-5)
    fresh = train(base, examples, None, state.config, config)
    assert not np.allclose(fresh.encoder.encode_queries(TEXTS), attached.encode_queries(TEXTS), atol=1e-2)


def test_checkpoint_of_another_start_is_not_gone_on_from(base: Encoder, tmp_path: Path) -> None:
    examples = [Example(text, f"{text} {text}") for text in TEXTS]
    config = TrainingConfig(batch_size=4, max_steps=2)
    state = learnt(base, "lora", 1, rank=2)
    for start, resumed in ((None, 0), (state, 0), (state, 2)):
        found = train(base, examples, None, state.config, config, start=start, checkpoint=tmp_path / "checkpoint")
        assert found.resumed_from == resumed


def test_settings_that_differ_from_the_start_are_refused(base: Encoder) -> None:
    state = learnt(base, "lora", 1, rank=2)
    assert check_start(AdapterConfig(), state) == state.config
    assert check_start(AdapterConfig(method="lora", rank=2), state) == state.config
    for settings in ({"method": "dora"}, {"rank": 3}, {"adapt": "query"}, {"gamma": 0.5}):
        with pytest.raises(InvalidConfiguration, match=next(iter(settings))):
            check_start(AdapterConfig.model_validate(settings), state)
    with pytest.raises(InvalidConfiguration, match="its own seed alone, 0"):
        vera = learnt(base, "vera", 1)
        attach(base, vera.config, seed=1).begin_at(vera)


# The folder


def test_library_keeps_adapters_apart_and_gives_them_back(base: Encoder, tmp_path: Path) -> None:
    library = Library.open(tmp_path / "library", create=True)
    states = {"one": learnt(base, "lora", 1, rank=2), "two": learnt(base, "houlsby", 2)}
    for seed, (name, state) in enumerate(states.items()):
        library.add(name, state, CorpusStatistics.of(cloud(seed), "print", languages={"en": 1.0}), figures={"n": seed})
    assert library.names() == ["one", "two"]
    for name, state in states.items():
        entry = library.entry(name)
        found = entry.adapter()
        assert found.spec == state.spec and entry.method == state.config.method
        assert all(torch.equal(found.tensors[key], tensor) for key, tensor in state.tensors.items())
    assert (library.entry("two").figures, library.entry("two").statistics.language) == ({"n": 1}, "en")
    near = library.nearest(CorpusStatistics.of(cloud(1), "print"))
    assert [entry.name for entry, _ in near] == ["two", "one"] and near[0][1] < 1e-6 < near[1][1]
    assert library.nearest(CorpusStatistics.of(cloud(1), "another")) == []
    with pytest.raises(InvalidInput, match="already"):
        library.add("one", states["two"], CorpusStatistics.of(cloud(1), "print"))
    library.add("one", states["two"], CorpusStatistics.of(cloud(1), "print"), replace=True)
    assert library.entry("one").method == "houlsby"
    library.remove("one")
    assert library.names() == ["two"]
    with pytest.raises(InvalidInput, match="It has: two"):
        library.remove("one")
    assert {path.name for path in library.folder.iterdir()} == {"library.json", "two", ".lock"}


@pytest.mark.parametrize("name", ["", "..", "a/b", "nearest", "blend", ".hidden", "x" * 65])
def test_what_can_be_no_name_is_refused(base: Encoder, tmp_path: Path, name: str) -> None:
    library = Library.open(tmp_path / "library", create=True)
    with pytest.raises(InvalidInput, match="can be no name"):
        library.add(name, learnt(base, "lora", 1), CorpusStatistics.of(cloud(1), "print"))


@pytest.mark.parametrize("file", [ENTRY, "statistics.npz", "adapter_model.safetensors", "adapter.json"])
def test_damage_of_any_file_is_told_with_its_name(base: Encoder, tmp_path: Path, file: str) -> None:
    library = Library.open(tmp_path / "library", create=True)
    library.add("one", learnt(base, "lora", 1), CorpusStatistics.of(cloud(1), "print"))
    path = library.folder / "one" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreCorrupt, match=rf"{file}.*library remove"):
        library.entry("one")


def test_a_folder_of_something_else_is_neither_read_nor_filled(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(StoreError, match="holds something else"):
        Library.open(tmp_path, create=True)
    with pytest.raises(InvalidInput, match="no library"):
        Library.open(tmp_path)


def test_writers_take_turns_and_what_a_kill_left_goes(
    base: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library.open(tmp_path / "library", create=True)
    state, statistics = learnt(base, "lora", 1), CorpusStatistics.of(cloud(1), "print")
    (library.folder / ".new-left").mkdir()
    monkeypatch.setattr(library_module, "_LOCK_SECONDS", 0.05)
    with FileLock(library.folder / ".lock"), pytest.raises(StoreLocked):
        library.add("one", state, statistics)
    assert library.names() == []
    library.add("one", state, statistics)
    assert not (library.folder / ".new-left").exists()


# From a retriever and into a fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Library:
    """Two adapters of one retriever's base, one of them with twice the change."""
    library = Library.open(tmp_path_factory.mktemp("filled") / "library", create=True)
    entry = add_retriever(library, trained, "pages")
    state = entry.adapter()
    other = CorpusStatistics.of(cloud(1, dim=32), entry.statistics.fingerprint)
    library.add("far", replace(state, scale=0.5), other, encoder=entry.encoder)
    return library


def config_of(trained: Path, library: Library, **settings: object) -> FitConfig:
    made = json.loads((trained / "ragadapt.json").read_text())["configuration"]
    made["adapter"] = {}
    return FitConfig.build({**made, "library": {"folder": str(library.folder), **settings}})


def labelled(trained: Path) -> list[Labels]:
    """Those that trained it."""
    return [Labels(trained.parent / "labels.jsonl")]


def asked_otherwise(trained: Path, folder: Path) -> list[Labels]:
    """Questions with the same answers, none of which trained it."""
    rows = [json.loads(line) for line in (trained.parent / "labels.jsonl").read_text().splitlines()]
    for row in rows:
        row["text"] = " ".join(row["evidence"][0]["quote"].split()[3:8])
    file = folder / "otherwise.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [Labels(file)]


def test_retriever_comes_in_with_what_its_report_says(trained: Path, filled: Library) -> None:
    entry = filled.entry("pages")
    assert entry.adapter().spec == AdapterState.read(trained / "model" / "adapter").spec
    assert (entry.source, entry.method, entry.figures["verdict"]) == ("retriever", "lora", "WIN")
    assert set(entry.figures["nDCG@10"]) == {"base-dense", "fitted-dense", "base-hybrid", "shipped"}  # type: ignore[arg-type]
    assert entry.statistics.passages > 20


def test_nearest_and_blend_are_offered_and_written_only_where_told(
    trained: Path, filled: Library, tmp_path: Path
) -> None:
    found = offer(filled, [trained.parent / "docs"], config_of(trained, filled))
    assert [entry.name for entry, _ in found.near] == ["pages", "far"]
    assert found.near[0][1] < 1e-5  # the very corpus, cut in the same way
    assert found.state is not None and found.weights[0] > 0.99
    folder = write_offer(found, tmp_path / "model")
    assert seen_by(str(folder)) == filled.entry("pages").seen
    opened = Encoder.load(EncoderConfig(model=str(folder), precision="float32"))
    own = Encoder.open(trained / "model", precision="float32")
    vectors = opened.encode_queries(TEXTS)
    near, far = (float(np.abs(vectors - of.encode_queries(TEXTS)).max()) for of in (own, found.base))
    assert near < 1e-4 < 1e-3 < far


def let_through(patch: pytest.MonkeyPatch) -> None:
    decide = gate.decide
    patch.setattr(gate, "decide", lambda **given: replace(decide(**given), verdict=gate.Verdict.WIN, strength=1.0))


def test_fit_judges_a_blend_that_it_does_not_train(
    trained: Path, filled: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_through(monkeypatch)
    config = config_of(trained, filled, start="blend", train=False)
    result = fit([trained.parent / "docs"], tmp_path / "retriever", config, labels=asked_otherwise(trained, tmp_path))
    report = read_report(result.path / "report")
    assert "Nothing was trained here; what was judged is a blend of 2" in " ".join(report.warnings)
    assert report.learning == () and result.verdict == "WIN"
    state = AdapterState.read(result.path / "model" / "adapter")
    assert state.config.rank == 8  # twice that of its parts
    assert state.config.adapt == "both"


def test_a_blend_that_the_gate_refuses_leaves_the_base(
    trained: Path, filled: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = gate.decide
    monkeypatch.setattr(
        gate, "decide", lambda **given: replace(decide(**given), verdict=gate.Verdict.REGRESSION_AVOIDED, strength=0.0)
    )
    config = config_of(trained, filled, start="blend", train=False)
    result = fit([trained.parent / "docs"], tmp_path / "retriever", config, labels=asked_otherwise(trained, tmp_path))
    assert result.verdict == "REGRESSION AVOIDED"
    assert not (result.path / "model" / "adapter").exists()


def test_fit_begins_with_the_nearest(
    trained: Path, filled: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_through(monkeypatch)
    monkeypatch.setattr(gate, "within_drift", lambda decision, *_: decision)
    config = config_of(trained, filled, start="nearest")
    config = config.model_copy(update={"training": config.training.model_copy(update={"learning_rate": 1e-9})})
    result = fit([trained.parent / "docs"], tmp_path / "retriever", config, labels=asked_otherwise(trained, tmp_path))
    warnings = " ".join(read_report(result.path / "report").warnings)
    assert "Training began with pages, the nearest of the library (distance 0.00)" in warnings
    begun = filled.entry("pages").adapter()
    found = AdapterState.read(result.path / "model" / "adapter")
    assert found.config == begun.config
    assert all(torch.allclose(found.tensors[name], tensor, atol=1e-5) for name, tensor in begun.tensors.items())


def test_questions_that_an_adapter_learnt_from_do_not_judge_it(trained: Path, filled: Library, tmp_path: Path) -> None:
    count = len((trained.parent / "labels.jsonl").read_text().splitlines())
    assert len(filled.entry("pages").seen) == count
    assert filled.entry("far").seen == frozenset()
    for train_too in (True, False):
        config = config_of(trained, filled, start="pages", train=train_too)
        result = fit([trained.parent / "docs"], tmp_path / f"{train_too}", config, labels=labelled(trained))
        warnings = " ".join(read_report(result.path / "report").warnings)
        assert f"{count} questions judge nothing here, because pages (distance 0.00) has learnt from them." in warnings
        assert "The library offers pages" in warnings
        assert result.verdict == "NO GAIN"
        assert not (result.path / "model" / "adapter").exists()
        assert read_seen(result.path / "report" / "questions") == frozenset()  # nothing of it has learnt


def test_what_began_with_an_adapter_has_seen_what_that_has_and_its_own(
    trained: Path, filled: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_through(monkeypatch)
    monkeypatch.setattr(gate, "within_drift", lambda decision, *_: decision)
    others = asked_otherwise(trained, tmp_path)
    config = config_of(trained, filled, start="blend")
    result = fit([trained.parent / "docs"], tmp_path / "retriever", config, labels=others)
    seen = read_seen(result.path / "report" / "questions")
    own = {mark(json.loads(line)["text"]) for line in (tmp_path / "otherwise.jsonl").read_text().splitlines()}
    assert seen == filled.entry("pages").seen | own
    assert add_retriever(Library.open(tmp_path / "library", create=True), result.path).seen == seen
    assert seen_by(str(result.path / "model")) == seen


def test_without_evidence_the_library_only_offers(trained: Path, filled: Library, tmp_path: Path) -> None:
    for train_too in (True, False):
        config = config_of(trained, filled, start="blend", train=train_too)
        result = fit([trained.parent / "docs"], tmp_path / f"retriever-{train_too}", config)
        assert "The library offers a blend of 2" in " ".join(read_report(result.path / "report").warnings)
        assert not (result.path / "model" / "adapter").exists()
    with pytest.raises(InvalidInput, match="its base as it was"):
        add_retriever(Library.open(tmp_path / "library", create=True), result.path)


def test_start_without_a_library_and_names_that_it_lacks_are_told_at_once(
    trained: Path, filled: Library, tmp_path: Path
) -> None:
    docs = trained.parent / "docs"
    with pytest.raises(InvalidConfiguration, match="--library FOLDER"):
        fit([docs], tmp_path / "new", FitConfig.build({"library": {"start": "nearest"}}))
    with pytest.raises(InvalidInput, match="no adapter 'gone'"):
        fit([docs], tmp_path / "new", config_of(trained, filled, start="gone"))
    with pytest.raises(InvalidConfiguration, match="nothing is to begin with"):
        fit([docs], tmp_path / "new", config_of(trained, filled, train=False))
    begun = config_of(trained, filled, start="pages")
    for other in (compare_methods, prime):
        with pytest.raises(InvalidConfiguration, match="begins at the base"):
            other([docs], tmp_path / "new", config=begun)
    elsewhere = write_tiny_model(tmp_path / "other", seed=1)
    config = config_of(trained, filled, start="pages")
    config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"model": str(elsewhere)})})
    with pytest.raises(InvalidConfiguration, match="belongs to the base model"):
        fit([docs], tmp_path / "new", config, labels=labelled(trained))


# The command


def test_command_adds_lists_shows_blends_and_removes(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, docs = str(tmp_path / "library"), str(trained.parent / "docs")

    def answer(*arguments: str) -> dict[str, object]:
        assert run(["library", *arguments, "--json"]) == 0, capsys.readouterr().err
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    assert answer("add", folder, str(trained), "--name", "pages")["action"] == "add"
    assert run(["library", "add", folder, str(trained), "--name", "pages"]) == 1
    assert "already" in capsys.readouterr().err
    assert [each["name"] for each in answer("list", folder)["adapters"]] == ["pages"]  # type: ignore[attr-defined]
    assert answer("show", folder, "pages")["adapter"]["passages"] > 20  # type: ignore[index]
    near = answer("list", folder, "--near", str(trained))["near"]
    assert near == [{"name": "pages", "distance": 0.0}]
    mixed = answer("blend", folder, docs, "-o", str(tmp_path / "model"))
    assert mixed["blend"] == [{"name": "pages", "weight": 1.0}]
    assert (tmp_path / "model" / "modules.json").is_file()
    for arguments in (["list", folder], ["show", folder, "pages"], ["blend", folder, docs]):
        assert run(["library", *arguments]) == 0
        assert "pages" in capsys.readouterr().out
    assert answer("remove", folder, "pages")["name"] == "pages"
    assert run(["library", "blend", folder]) == 2


def test_a_blend_takes_no_place_of_documents_or_retrievers(
    trained: Path, filled: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["library", "blend", str(filled.folder), str(trained.parent / "docs"), "-o"]
    for taken in (trained, trained.parent / "docs"):
        before = sorted(taken.iterdir())
        assert run([*call, str(taken)]) == 1
        assert "holds something else" in capsys.readouterr().err
        assert sorted(taken.iterdir()) == before
    for _ in range(2):  # its own earlier one it replaces
        assert run([*call, str(tmp_path / "model")]) == 0


def test_what_cannot_be_added_or_blended_is_told_before_passages_are_encoded(
    trained: Path, filled: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def encode(*_: object, **__: object) -> None:
        raise AssertionError("encoded in vain")

    monkeypatch.setattr(Encoder, "encode_passages", encode)
    library = str(filled.folder)
    assert run(["library", "add", library, str(trained), "--name", "pages"]) == 1
    assert "already" in capsys.readouterr().err
    assert run(["library", "blend", library, str(trained), "--of", "gone"]) == 1
    assert "no adapter 'gone'" in capsys.readouterr().err
    fresh = tmp_path / "library"
    for retriever in ("nothing-here", trained.parent / "docs"):
        assert run(["library", "add", str(fresh), str(retriever)]) == 1
        assert not fresh.exists()


def test_dry_run_tells_what_the_library_lacks(
    trained: Path, filled: Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--model", str(trained.parent / "base"), "--library", str(filled.folder), "--start", "gone"]
    assert run(["fit", str(trained.parent / "docs"), "-o", str(tmp_path / "new"), *settings, "--dry-run"]) == 1
    assert "no adapter 'gone'" in capsys.readouterr().err
