"""A re-ranker in training: gradients, losses, resuming, what is saved, and that it learns."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ragadapt_cli.main import run
from small_retriever import fit_pages
from tiny_models import sentences, write_modular_cross_encoder, write_tiny_cross_encoder, write_tiny_model
from torch import Tensor

from ragadapt.config import AdapterConfig, EncoderConfig, FitConfig, TrainingConfig
from ragadapt.errors import FingerprintMismatch, InvalidConfiguration, InvalidInput
from ragadapt.evaluation import gate
from ragadapt.export import export_reranker
from ragadapt.pipeline import second_stage
from ragadapt.pipeline.fit import fit
from ragadapt.pipeline.queries import Labels
from ragadapt.pipeline.rerank import judging_queries
from ragadapt.pipeline.seen import seen_by
from ragadapt.queries.seen import mark
from ragadapt.rerank import Reranker
from ragadapt.rerank.adapted import AdaptedReranker, fresh_reranker, write_fresh
from ragadapt.rerank.memory import forget
from ragadapt.retriever import Retriever
from ragadapt.training import Example, losses
from ragadapt.training.rerank import RerankerTrainingResult, _PairRun, train_reranker
from ragadapt.training.teacher import cross_encoder_scores
from ragadapt.values import Evidence, Query

TEXTS = sentences(60, words=10, seed=4)
BUILDS: dict[str, Callable[[Path], Path]] = {
    "bert": write_tiny_cross_encoder,
    "modernbert": lambda folder: write_tiny_cross_encoder(folder, kind="modernbert"),
    "modules": write_modular_cross_encoder,
    "fresh": lambda folder: write_fresh(
        folder / "model", EncoderConfig(model=str(write_tiny_model(folder / "base"))), seed=3
    ),
}


@pytest.fixture(autouse=True)
def _nothing_remembered() -> None:
    forget()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: build(tmp_path_factory.mktemp("models") / "model") for name, build in BUILDS.items()}


def load(folder: Path) -> Reranker:
    return Reranker.load(folder, device="cpu", precision="float32")


def examples() -> list[Example]:
    """The answer to anything is red."""
    return [
        Example(
            TEXTS[at], f"red {TEXTS[at + 10]}", tuple(text for text in TEXTS[at + 20 : at + 27] if "red" not in text)
        )
        for at in range(24)
    ]


def settings(**values: Any) -> TrainingConfig:
    return TrainingConfig(**{"batch_size": 6, "learning_rate": 5e-3, "max_steps": 4, **values})


def trained(folder: Path, method: str = "lora", **values: Any) -> RerankerTrainingResult:
    more = {key: values.pop(key) for key in ("checkpoint", "progress", "loss", "fresh") if key in values}
    return train_reranker(
        load(folder), examples(), None, AdapterConfig(method=method), settings(**values), negatives=4, seed=7, **more
    )


def logits(reranker: AdaptedReranker | Reranker) -> np.ndarray:
    return np.concatenate(reranker.logits_of([(TEXTS[0], TEXTS[1:20]), (TEXTS[30], TEXTS[31:35])]))


# Losses and gradients


def test_losses_are_those_of_a_slow_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(5, 6, generator=generator, dtype=torch.float64) * 3
    present = torch.rand(5, 6, generator=generator) < 0.7
    present[:, 0] = True
    weights = torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0], dtype=torch.float64)
    listwise, pointwise = 0.0, 0.0
    for row, there, weight in zip(scores.tolist(), present.tolist(), weights.tolist(), strict=True):
        own = [score for score, here in zip(row, there, strict=True) if here]
        listwise += weight * -np.log(np.exp(own[0]) / np.exp(own).sum())
        each = [-np.log(1 / (1 + np.exp(-own[0]))), *(-np.log(1 - 1 / (1 + np.exp(-score))) for score in own[1:])]
        pointwise += weight * (each[0] + (np.mean(each[1:]) if each[1:] else 0.0)) / 2
    assert float(losses.list_softmax(scores, present, weights)) == pytest.approx(listwise / 4.5, rel=1e-12)
    assert float(losses.list_bce(scores, present, weights)) == pytest.approx(pointwise / 4.5, rel=1e-12)


@pytest.mark.parametrize("loss", ["list_softmax", "list_bce"])
def test_what_is_not_there_gets_no_gradient(loss: str) -> None:
    scores = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    present = torch.tensor([[True, True, False], [True, True, True]])
    getattr(losses, loss)(scores, present, torch.ones(2)).backward()
    assert scores.grad is not None and torch.isfinite(scores.grad).all()
    assert bool(((scores.grad != 0) == present).all())


def run_of(folder: Path, method: str, **values: Any) -> _PairRun:
    config = settings(**values)
    run = _PairRun(load(folder), examples(), AdapterConfig(method=method), config, "listwise", 4, False, 7)
    run.plan()
    run.steps = 4
    return run


@pytest.mark.parametrize("method", ["lora", "iaa-l", "full"])
@pytest.mark.parametrize("build", ["bert", "modernbert"])
def test_a_gradient_reaches_every_parameter_and_nothing_else(models: dict[str, Path], build: str, method: str) -> None:
    run = run_of(models[build], method)
    run.step(list(range(6)), 1, 1e-2)  # away from the start, at which a zero stops the gradient of its partner
    run.optimizer.zero_grad(set_to_none=True)
    run.gradient(list(range(6)), 2)
    for name, parameter in zip(run.names, run.parameters, strict=True):
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name
    assert any(name.startswith("head.") for name in run.names)
    learnt = {id(parameter) for parameter in run.parameters}
    assert all(id(part) in learnt or part.grad is None for part in run.tower.parameters())


def test_the_gradient_does_not_depend_on_the_memory_that_there_is(models: dict[str, Path]) -> None:
    found: list[list[Tensor]] = []
    for tokens in (4096, 64):
        run = run_of(models["bert"], "lora", micro_batch_tokens=tokens)
        run.chunk_tokens = run.held_tokens = tokens
        run.gradient(list(range(6)), 1)
        found.append([part.grad for part in run.parameters if part.grad is not None])
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*found, strict=True))


def test_every_visit_draws_other_negatives_and_the_same_when_it_is_repeated(models: dict[str, Path]) -> None:
    run = run_of(models["bert"], "lora")
    first, again, later = run.lists([3], 1), run.lists([3], 1), run.lists([3], 2)
    assert first == again != later
    assert first[0][0] == later[0][0] == examples()[3].positive
    assert len(first[0]) == 5 and set(first[0][1:]) < set(examples()[3].negatives)


# What comes of it


@pytest.mark.parametrize("loss", ["listwise", "pointwise"])
@pytest.mark.parametrize("build", ["modernbert", "fresh"])
def test_it_learns_what_the_answers_have_in_common(models: dict[str, Path], build: str, loss: str) -> None:
    base = load(models[build])
    lists = [(query, [f"red {TEXTS[at]}", *(t for t in TEXTS[at + 1 : at + 9] if "red" not in t)])
             for at, query in enumerate(TEXTS[40:50], start=30)]  # fmt: skip
    before = np.mean([np.argmax(scores) == 0 for scores in base.logits_of(lists)])
    made = trained(
        models[build], "lora", loss=loss, fresh=build == "fresh", max_steps=60, epochs=20, learning_rate=1e-2
    )
    after = np.mean([np.argmax(scores) == 0 for scores in made.reranker.logits_of(lists)])
    assert before <= 0.5 and after >= 0.9
    assert np.mean([point.loss for point in made.history[-4:]]) < 0.7 * made.history[0].loss


def test_a_killed_run_ends_with_the_same_bits(models: dict[str, Path], tmp_path: Path) -> None:
    whole = trained(models["bert"], "iaa-s", max_steps=6)

    class Killed(Exception):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        if done == 3:
            raise Killed

    file = tmp_path / "checkpoint"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ragadapt.training.loop._CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(Killed):
            trained(models["bert"], "iaa-s", max_steps=6, checkpoint=file, progress=kill)
    again = trained(models["bert"], "iaa-s", max_steps=6, checkpoint=file)
    assert again.resumed_from == 3
    ours, theirs = again.reranker.trainable(), whole.reranker.trainable()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    other = trained(models["bert"], "iaa-s", max_steps=6, checkpoint=file, learning_rate=1e-3)
    assert other.resumed_from == 0


def test_the_dev_part_keeps_the_best_weights(models: dict[str, Path]) -> None:
    seen: list[np.ndarray] = []

    def dev(reranker: AdaptedReranker) -> float:
        seen.append(logits(reranker))
        return {1: 0.5, 2: 0.9}.get(len(seen) - 1, 0.1)

    made = train_reranker(
        load(models["bert"]), examples(), dev, AdapterConfig(method="lora"), settings(evaluations=4, patience=9), seed=7
    )
    assert len(seen) == 5 and made.best_dev == 0.9 and made.best_step == 2
    assert np.array_equal(logits(made.reranker), seen[2]) and not np.array_equal(seen[2], seen[4])


@pytest.mark.parametrize("method", ["lora", "full", "iaa-l", "prefix"])
@pytest.mark.parametrize("build", BUILDS)
def test_saved_merged_and_in_training_it_gives_the_same_scores(
    models: dict[str, Path], tmp_path: Path, build: str, method: str
) -> None:
    base = load(models[build])
    made = trained(models[build], method, fresh=build == "fresh").reranker
    effect = made.effect()
    assert effect.proved, effect.problems
    assert effect.change > 0 and effect.moved > 1e-3
    merged = made.merged()
    assert np.abs(logits(merged) - logits(made)).max() < 1e-4
    merged.save(tmp_path / "saved")
    opened = Reranker.open(tmp_path / "saved", device="cpu", precision="float32")
    assert opened.fingerprint == merged.fingerprint != base.fingerprint
    forget()
    assert np.array_equal(logits(opened), logits(merged))
    assert opened.path == "ragadapt's own forward"
    assert (tmp_path / "saved" / "adapter").is_dir() == (method in ("iaa-l", "prefix")) or build != "fresh"


@pytest.mark.parametrize("method", ["lora", "iaa-l"])
def test_a_strength_lies_between_the_base_and_what_was_trained(
    models: dict[str, Path], tmp_path: Path, method: str
) -> None:
    base, made = load(models["bert"]), trained(models["bert"], method).reranker
    full = logits(made)
    fingerprints = {made.merged().fingerprint}
    made.scale(0.5)
    half = logits(made)
    merged = made.merged()
    fingerprints.add(merged.fingerprint)
    assert np.abs(logits(merged) - half).max() < 1e-4
    merged.save(tmp_path / "half")
    again = Reranker.open(tmp_path / "half", device="cpu", precision="float32")
    forget()
    assert np.array_equal(logits(again), logits(merged))
    made.scale(0.0)
    forget()
    assert np.array_equal(logits(made), logits(base))
    made.scale(1.0)
    assert np.array_equal(logits(made), full)
    assert len(fingerprints) == 2
    assert np.abs(half - full).max() > 1e-4 and np.abs(half - logits(base)).max() > 1e-4


def test_the_base_stays_as_it_was(models: dict[str, Path]) -> None:
    base = load(models["bert"])
    before = logits(base)
    train_reranker(base, examples(), None, AdapterConfig(method="full"), settings(), seed=7)
    forget()
    assert np.array_equal(logits(base), before)


def test_a_fresh_head_is_one_layer_that_the_library_opens(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    base = write_tiny_model(tmp_path / "base", pooling="mean")
    config = EncoderConfig(model=str(base), precision="float32", device="cpu")
    made = [write_fresh(tmp_path / f"fresh{at}", config, seed=seed) for at, seed in enumerate((0, 0, 1))]
    first, again, other = (load(folder) for folder in made)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    unwritten = fresh_reranker(config, seed=0)
    assert unwritten.fingerprint == first.fingerprint
    assert np.allclose(unwritten._run([(TEXTS[0], TEXTS[1])]), first._run([(TEXTS[0], TEXTS[1])]), atol=1e-6)
    theirs = CrossEncoder(str(made[0]), device="cpu").predict([(TEXTS[0], text) for text in TEXTS[1:20]])
    assert np.abs(first.scores(TEXTS[0], TEXTS[1:20]) - theirs).max() < 1e-5
    head = AdaptedReranker(first, AdapterConfig(method="lora"), fresh=True).trainable()
    assert sum(part.numel() for name, part in head.items() if name.startswith("head.")) == 32 + 1


def test_with_a_fresh_head_the_strength_is_the_adapters_alone(models: dict[str, Path]) -> None:
    made = trained(models["fresh"], "lora", fresh=True).reranker
    before = {name: part.detach().clone() for name, part in made.trainable().items() if name.startswith("head.")}
    made.scale(0.25)
    assert all(torch.equal(made.trainable()[name], part) for name, part in before.items())


def test_an_adapter_that_was_exchanged_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    for name, steps in (("a", 2), ("b", 4)):
        trained(models["fresh"], "iaa-l", max_steps=steps).reranker.merged().save(tmp_path / name)
    (place,) = {path.relative_to(tmp_path / "a").parent for path in (tmp_path / "a").rglob("adapter.json")}
    for file in ("adapter.json", "adapter.safetensors"):
        (tmp_path / "a" / place / file).write_bytes((tmp_path / "b" / place / file).read_bytes())
    with pytest.raises(FingerprintMismatch):
        Reranker.open(tmp_path / "a", device="cpu", precision="float32")


def test_what_cannot_be_trained_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no example has negatives"):
        train_reranker(
            load(models["bert"]), [Example("a", "b")], None, AdapterConfig(method="lora"), settings(), seed=7
        )
    with pytest.raises(InvalidConfiguration, match="trains nothing"):
        AdaptedReranker(load(models["bert"]), AdapterConfig(method="none"))
    other = write_tiny_cross_encoder(tmp_path / "other", kind="distilbert")
    with pytest.raises(InvalidConfiguration, match="head not told from its transformer"):
        AdaptedReranker(load(other), AdapterConfig(method="lora"))
    trained(models["fresh"], "iaa-l").reranker.merged().save(tmp_path / "saved")
    with pytest.raises(InvalidConfiguration, match="was adapted before"):
        AdaptedReranker(load(tmp_path / "saved"), AdapterConfig(method="lora"))


# What a fit makes of it


@pytest.fixture(scope="module")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_pages(tmp_path_factory.mktemp("pages"))


@pytest.fixture(scope="module")
def liked(retriever: Path, models: dict[str, Path]) -> dict[str, str]:
    """Questions whose answers are what a re-ranker finds best among the first ten."""
    made: dict[str, str] = {}
    reader = load(models["bert"])
    with Retriever.open(retriever, precision="float32") as opened:
        for text in sentences(60, words=8, seed=77):
            hits = opened.search(text, k=10)
            best = int(np.argmax(reader.logits(text, [hit.chunk.passage for hit in hits])))
            made[text] = hits[best].chunk.document_id
    return made


def labelled(folder: Path, answers: Mapping[str, str]) -> Labels:
    queries, qrels = folder / "queries.jsonl", folder / "qrels.tsv"
    rows = [json.dumps({"_id": f"q{at}", "text": text}) for at, text in enumerate(answers)]
    queries.write_text("\n".join(rows) + "\n")
    judged = [f"q{at}\t{document}\t1" for at, document in enumerate(answers.values())]
    qrels.write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    return Labels(queries, qrels)


def fit_values(retriever: Path, stage: str, rerank: Mapping[str, Any], **gate: Any) -> dict[str, Any]:
    return {
        "stage": stage,
        "encoder": {"model": str(retriever.parent / "base" / "model"), "precision": "float32"},
        "chunk": {"max_tokens": 40, "min_tokens": 4},
        "adapter": {"rank": 2},
        "training": {"max_steps": 3, "evaluations": 2},
        "gate": gate,
        "index": {"kind": "exact"},
        "rerank": {"depth": 10, "negatives": 3, "learning_rate": 1e-4, **rerank},
    }


UNTRAINED: dict[str, Any] = {"negatives": 7, "learning_rate": 2e-4}


class Seen:
    """What every training of a re-ranker was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.examples: list[list[Example]] = []
        self.dev: list[bool] = []

        def watched(base: Reranker, examples: list[Example], dev: Any, *rest: Any, **more: Any) -> Any:
            self.examples.append(list(examples))
            self.dev.append(dev is not None)
            return train_reranker(base, examples, dev, *rest, **more)

        monkeypatch.setattr("ragadapt.training.rerank.train_reranker", watched)


def test_a_trained_reranker_is_judged_by_what_did_not_train_it_and_kept(
    retriever: Path, models: dict[str, Path], liked: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, judged = Seen(monkeypatch), list[str]()
    learn = second_stage.learn_reranking

    def watched(reranker: Reranker, depth: int, read: Any, items: Any, *rest: Any, **more: Any) -> Any:
        judged.extend(item.query.text for item in items)
        return learn(reranker, depth, read, items, *rest, **more)

    monkeypatch.setattr(second_stage, "learn_reranking", watched)
    values = fit_values(retriever, "rerank", {"model": str(models["bert"]), "method": "iaa-l"}, cross_fit_below=0)
    values["split"] = {"heldout": 0.5}
    labels = [labelled(tmp_path, liked)]
    made = fit([retriever.parent / "docs"], tmp_path / "fitted", FitConfig.build(values), labels=labels)
    (examples,) = seen.examples
    assert seen.dev == [True] or seen.dev == [False]
    assert judged and not {example.query for example in examples} & set(judged)
    assert {example.query for example in examples} | set(judged) <= set(liked)
    passages = {example.query: {example.positive} for example in examples}
    assert all(not passages[example.query] & set(example.negatives) for example in examples)
    assert not made.decision.adapted and "Only the re-ranker is trained" in made.decision.reasons[0]
    steps = {step.name: step for step in made.report.verdict.steps}  # type: ignore[union-attr]
    assert "method iaa-l" in steps["Training of the re-ranker"].detail and steps["Re-ranker"].passed is True
    with Retriever.open(made.path, precision="float32") as opened:
        section = opened.manifest.sections["rerank"]
        assert section["weight"] > 0 and "method iaa-l" in section["training"]
        assert section["fingerprint"] != load(models["bert"]).fingerprint
        text = next(iter(liked))
        assert "rerank" in opened.search(text, rerank=True)[0].parts
    exported = export_reranker(made.path, tmp_path / "exported")
    assert exported.difference < 1e-4
    again = load(tmp_path / "exported")
    own = Reranker.load(made.path, device="cpu", precision="float32")
    forget()
    assert np.allclose(logits(again), logits(own), atol=1e-5)
    assert again.fingerprint == own.fingerprint == section["fingerprint"]
    learnt = {mark(text) for text in liked} - {mark(text) for text in judged}
    assert seen_by(str(tmp_path / "exported")) == seen_by(str(made.path)) == learnt
    config = EncoderConfig(precision="float32", device="cpu")
    (taught,) = cross_encoder_scores(str(made.path), [(TEXTS[0], TEXTS[1:5])], config)  # it may teach an encoder
    assert np.allclose(taught, own.logits(TEXTS[0], TEXTS[1:5]), atol=1e-6)
    pytest.importorskip("onnxruntime")
    onnx = export_reranker(made.path, tmp_path / "onnx", "onnx")  # the adapter is in the graph
    assert onnx.difference < 1e-4 and exported.needs_ragadapt and not onnx.needs_ragadapt


def test_of_few_questions_every_one_is_read_by_a_model_that_did_not_see_it(
    retriever: Path, models: dict[str, Path], liked: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen(monkeypatch)
    read: list[tuple[int, set[str]]] = []
    reader = second_stage.read_candidates

    def watched(candidates: Any, fusions: Any, judged: Any, *rest: Any) -> Any:
        read.append((len(seen.examples) - 1, {item.query.text for item in judged}))
        return reader(candidates, fusions, judged, *rest)

    monkeypatch.setattr(second_stage, "read_candidates", watched)
    values = fit_values(retriever, "rerank", {"model": str(models["bert"])})
    labels = [labelled(tmp_path, liked)]
    made = fit([retriever.parent / "docs"], tmp_path / "fitted", FitConfig.build(values), labels=labels)
    assert len(seen.examples) == 4 and len(read) == 3 and seen.dev == [False] * 4  # what ships, and three folds
    assert {example.query for example in seen.examples[0]} == set(liked)
    for training, texts in read:
        assert texts and not {example.query for example in seen.examples[training]} & texts
    assert set().union(*(texts for _, texts in read)) == set(liked)
    with Retriever.open(made.path) as opened:
        assert opened.manifest.sections["rerank"]["weight"] > 0
    # Another fit that takes it is not judged by what it has learnt from, whether it trains it further or not.
    for stage in ("retrieve", "rerank"):
        read.clear()
        values = fit_values(retriever, stage, {"model": str(made.path)} | ({} if stage == "rerank" else UNTRAINED))
        again = fit([retriever.parent / "docs"], tmp_path / stage, FitConfig.build(values), labels=labels)
        with Retriever.open(again.path) as opened:
            section = opened.manifest.sections["rerank"]
        assert section["weight"] == 0 and "no questions with known answers" in section["reason"]
        assert not any(texts for _, texts in read)
        assert seen_by(str(again.path)) == frozenset()  # it took nothing over
    few = gate.Plan((), tuple(Query(f"q{at}", f"text {at}", "label", Evidence.LABELLED) for at in range(12)),
                    Evidence.LABELLED, "")  # fmt: skip
    for known, left in ((0, 12), (2, 10), (3, 0)):
        rank, chosen = judging_queries(few, few.judge, {mark(f"text {at}") for at in range(known)})
        assert (len(chosen), rank) == (left, Evidence.LABELLED if left else None)


def test_command_line_trains_both_stages(retriever: Path, liked: dict[str, str], tmp_path: Path) -> None:
    labels = labelled(tmp_path, liked)
    config = tmp_path / "fit.toml"
    config.write_text(
        "[chunk]\nmax_tokens = 40\nmin_tokens = 4\n[training]\nmax_steps = 2\n[gate]\ncross_fit_below = 0\n"
        '[rerank]\ndepth = 5\n[encoder]\nprecision = "float32"\n'
    )
    arguments = ["fit", retriever.parent / "docs", "-o", tmp_path / "out", "--queries", labels.queries,
                 "--qrels", labels.qrels, "--model", retriever.parent / "base" / "model", "--index", "exact",
                 "--config", config, "--stage", "both", "--rerank-method", "iaa-s", "-q"]  # fmt: skip
    assert run([str(argument) for argument in arguments]) == 0
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    names = [step["name"] for step in report["verdict"]["steps"]]
    assert "Training of the re-ranker" in names and "Re-ranker" in names
    with Retriever.open(tmp_path / "out") as opened:
        section = opened.manifest.sections["rerank"]
        assert "method iaa-s" in section["training"] and section["model"].endswith("with a head of its own")
        assert opened.search("a cat by the river")


def test_without_answers_nothing_is_trained(retriever: Path, models: dict[str, Path], tmp_path: Path) -> None:
    for name, rerank in (("fresh", {}), ("named", {"model": str(models["bert"])})):
        config = FitConfig.build(fit_values(retriever, "rerank", rerank))
        made = fit([retriever.parent / "docs"], tmp_path / name, config)
        section = Retriever.open(made.path).manifest.sections["rerank"]
        assert section["weight"] == 0 and section["training"].startswith("It was not trained: ")


def test_a_method_without_a_training_is_refused(retriever: Path, tmp_path: Path) -> None:
    values = fit_values(retriever, "retrieve", {"method": "iaa-l", "negatives": 7, "learning_rate": 2e-4})
    with pytest.raises(InvalidConfiguration, match=r"trains no re-ranker\. Say --stage both"):
        fit([tmp_path / "no such documents"], tmp_path / "out", FitConfig.build(values))


def test_a_cell_of_the_benchmark_measures_what_its_training_adds(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples" / "benchmarks"))
    cells = importlib.import_module("rerank_cells")
    plain = [text for text in TEXTS if "red" not in text]
    found: dict[str, dict[str, Any]] = {"train": {}, "test": {}}
    for at in range(40):  # what is red answers, and stands last
        passages = [*plain[at % 20 : at % 20 + 5], f"red {plain[at % 20 + 6]}"]
        found["test" if at % 4 == 0 else "train"][f"q{at}"] = {
            "text": TEXTS[at],
            "documents": [f"d{at}-{number}" for number in range(6)],
            "passages": passages,
            "scores": [float(6 - number) for number in range(6)],
            "answers": {f"d{at}-5": 1},
            "answer_passages": [passages[5]],
        }
    file = tmp_path / "found.json"
    file.write_text(json.dumps(found))
    task = cells.Task(file, str(models["modernbert"]), False, "lora", 1e-2, 30, 13, 6, 16, 7, None, None, "cpu", True)
    row = cells.train_cell(task)
    assert row["questions"] == 24 and row["test"] == 10 and row["first"] == pytest.approx(1 / np.log2(7))
    assert row["alone"] > 0.9 and row["weight"] > 0 and row["fused"] > row["first"]
    assert row["fused_low"] > 0 and row["fused_gain"] == pytest.approx(row["fused"] - row["first"])
