"""Training: losses against their definitions, the exact gradient, the loop, resume, several processes."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny_models import WORDS, sentences, write_tiny_model

from ragadapt.adapters import attach
from ragadapt.adapters.method import takes_large_steps
from ragadapt.config import AdapterConfig, EncoderConfig, TrainingConfig
from ragadapt.encoder import Encoder
from ragadapt.errors import InvalidConfiguration, InvalidInput, TrainingFailed
from ragadapt.training import Example, TrainingSet, losses, train
from ragadapt.training.gradients import backward
from ragadapt.training.loop import EncoderRun, learning_rate
from ragadapt.values import Evidence

# ---------------------------------------------------------------------------- losses


def test_infonce_is_the_cross_entropy_over_unmasked_passages() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.3, 0.8]])
    positives = torch.tensor([0, 2])
    excluded = torch.tensor([[False, True, False], [False, False, True]])
    got = losses.info_nce(scores, positives, excluded, torch.tensor([1.0, 3.0]), 0.5)
    first = -math.log(math.exp(1.8) / (math.exp(1.8) + math.exp(0.2)))
    second = -math.log(math.exp(1.6) / (math.exp(0.4) + math.exp(0.6) + math.exp(1.6)))
    assert float(got) == pytest.approx((first + 3 * second) / 4, rel=1e-5)


def test_distillation_ignores_scale_and_shift_of_the_teacher() -> None:
    scores = torch.tensor([[0.3, 0.1, 0.2], [0.5, 0.4, 0.0]])
    teacher = torch.tensor([[12.0, 3.0, 7.0], [1.0, 9.0, 0.0]])
    present = torch.tensor([[True, True, True], [True, True, False]])
    weights = torch.ones(2)
    first = losses.distillation(scores, teacher, present, weights, 0.05)
    second = losses.distillation(scores, teacher * 40 - 7, present, weights, 0.05)
    assert float(first) == pytest.approx(float(second), rel=1e-4) and float(first) > 0


def test_distillation_is_zero_when_the_student_orders_and_spreads_like_the_teacher() -> None:
    scores = torch.tensor([[0.3, 0.1, 0.2]], requires_grad=True)
    loss = losses.distillation(scores, scores.detach() * 5, torch.ones(1, 3, dtype=torch.bool), torch.ones(1), 0.05)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    loss.backward()
    assert scores.grad is not None and scores.grad.abs().max() < 1e-3


def test_distillation_pulls_towards_the_teacher_and_ignores_padding() -> None:
    scores = torch.tensor([[0.1, 0.3, 0.9]], requires_grad=True)
    present = torch.tensor([[True, True, False]])
    losses.distillation(scores, torch.tensor([[1.0, 0.0, 50.0]]), present, torch.ones(1), 0.05).backward()
    assert scores.grad is not None
    assert scores.grad[0, 0] < 0 < scores.grad[0, 1] and scores.grad[0, 2] == 0


def test_lists_of_one_candidate_cost_nothing() -> None:
    scores = torch.tensor([[0.3, 0.1]], requires_grad=True)
    present = torch.tensor([[True, False]])
    loss = losses.distillation(scores, torch.zeros(1, 2), present, torch.ones(1), 0.05)
    loss.backward()
    assert float(loss.detach()) == 0 and scores.grad is not None and torch.equal(scores.grad, torch.zeros(1, 2))


def test_margin_mse_compares_margins_to_the_first_candidate() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.4]])
    teacher = torch.tensor([[0.8, 0.6, 0.0]])
    present = torch.tensor([[True, True, True]])
    got = losses.margin_mse(scores, teacher, present, torch.ones(1))
    assert float(got) == pytest.approx(((0.4 - 0.2) ** 2 + (0.5 - 0.8) ** 2) / 2)


# ---------------------------------------------------------------------------- examples and batches


def training_set(examples: list[Example], distil: bool = False) -> TrainingSet:
    return TrainingSet(examples, distil=distil, contrast=True)


def test_a_known_answer_is_never_a_negative_even_if_written_differently() -> None:
    made = training_set(
        [
            Example("which bridge", "The old  bridge.", negatives=("a cat",)),
            Example("Which Bridge", "another bridge"),
            Example("what cat", "the OLD bridge."),
        ]
    )
    assert len(made.queries) == 2 and len(made.passages) == 3
    batch = made.batch([0, 1, 2])
    texts = [made.passages[i] for i in batch.passages]
    assert texts == ["The old  bridge.", "a cat", "another bridge"]
    assert batch.positives.tolist() == [0, 2, 0]
    assert batch.excluded.tolist() == [[True, False, True], [True, False, True], [True, False, False]]


def test_another_examples_passage_is_no_negative_where_it_is_a_known_answer() -> None:
    made = training_set([Example("a", "x", answers=("Y", "never seen")), Example("b", "y"), Example("c", "z")])
    assert made.passages == ["x", "y", "z"]  # answers bring no passages along
    assert made.batch([0, 1, 2]).excluded.tolist() == [[True, True, False], [False, True, False], [False, False, True]]


def test_members_of_a_group_are_not_each_others_negatives() -> None:
    made = training_set([Example("a", "x", group="d1"), Example("b", "y", group="d1"), Example("c", "z")])
    batch = made.batch([0, 1, 2])
    assert batch.excluded.tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_candidates_and_teacher_scores_stay_together() -> None:
    made = training_set(
        [
            Example("a", "x", candidates=("x", "y"), teacher_scores=(2.0, 1.0)),
            Example("b", "y", candidates=("z", "y", "x"), teacher_scores=(0.0, 3.0, 1.0)),
        ],
        distil=True,
    )
    batch = made.batch([0, 1])
    for row, item in enumerate((0, 1)):
        listed = [made.passages[batch.passages[c]] for c in batch.candidates[row][batch.present[row]]]
        assert tuple(listed) == made.examples[item].candidates
        assert tuple(batch.teacher[row][batch.present[row]].tolist()) == made.examples[item].teacher_scores


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=60), st.integers(2, 16))
def test_an_epoch_shows_every_example_once(pairs: list[tuple[int, int]], size: int) -> None:
    made = training_set([Example(f"q{q}", f"p{p}") for q, p in pairs])
    batches = made.order(0, 1, size)
    assert sorted(item for batch in batches for item in batch) == list(range(len(pairs)))
    assert all(len(batch) < 2 * size for batch in batches)
    assert batches == made.order(0, 1, size)


def test_epochs_are_shuffled_differently_and_fractions_are_cut() -> None:
    made = training_set([Example(f"q{i}", f"p{i}") for i in range(40)])
    batches = list(made.batches(1.5, seed=0, batch_size=4))
    assert len(batches) == 15 and batches[0] != batches[10]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Example("", "x"), "empty query"),
        (Example("a", "x", candidates=("x",)), "1 candidates and 0 teacher"),
        (Example("a", "x", negatives=("X ",)), "positive among its negatives"),
        (Example("a", "x", weight=float("nan")), "finite"),
    ],
)
def test_faulty_examples_are_named(bad: Example, message: str) -> None:
    with pytest.raises(InvalidInput, match=rf"examples\[1\].*{message}"):
        training_set([Example("a", "x"), bad])


def test_no_examples_is_an_error() -> None:
    with pytest.raises(InvalidInput, match="no training examples"):
        training_set([])
    with pytest.raises(InvalidInput, match="Distillation needs"):
        training_set([Example("a", "x")], distil=True)


# ---------------------------------------------------------------------------- the loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), layers=4)


def load(folder: Path, precision: str = "float32") -> Encoder:
    return Encoder.load(EncoderConfig.model_validate({"model": str(folder), "device": "cpu", "precision": precision}))


def adapter(**values: object) -> AdapterConfig:
    rank = {} if values.get("method") == "full" else {"rank": 4}
    return AdapterConfig.model_validate({**rank, "layers": 2, **values})


def config(**values: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"batch_size": 8, "epochs": 2, "learning_rate": 3e-3, **values})


@pytest.mark.parametrize(
    ("method", "adapt", "evidence", "given", "rate"),
    [
        ("lora", "both", Evidence.LABELLED, None, 5e-4),
        ("lora", "query", Evidence.LABELLED, None, 3e-3),
        ("iaa-l", "query", Evidence.LABELLED, None, 3e-3),
        ("full", "query", Evidence.LABELLED, None, 5e-4),
        ("vera", "query", Evidence.LABELLED, None, 5e-4),
        ("lora", "query", Evidence.PARAPHRASE, None, 2e-4),
        ("lora", "query", Evidence.LABELLED, 1e-3, 1e-3),
    ],
)
def test_labels_are_learnt_in_larger_steps_on_the_query_side_alone(
    method: str, adapt: str, evidence: Evidence, given: float | None, rate: float
) -> None:
    side = AdapterConfig.model_validate({"method": method, "adapt": adapt})
    training = TrainingConfig(learning_rate=given)
    assert training.paced(evidence, large=takes_large_steps(side)).learning_rate == rate
    assert training.paced(evidence).learning_rate == (5e-4 if rate == 3e-3 else rate)


def task(count: int = 48) -> list[Example]:
    """Queries ask for a word; the passage that answers starts with the word after it in the vocabulary."""
    generator = np.random.default_rng(0)
    made = []
    for number in range(count):
        word = number % len(WORDS)
        rest = " ".join(WORDS[i] for i in generator.integers(0, len(WORDS), 6))
        answer = f"{WORDS[(word + 1) % len(WORDS)]} {WORDS[(word + 1) % len(WORDS)]} {rest} {number}"
        made.append(Example(f"how {WORDS[word]} {WORDS[word]} {number}", answer, negatives=(f"{rest} {number % 7}",)))
    return made


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_training_lowers_the_loss_and_is_proved(folder: Path) -> None:
    base = load(folder)
    before = base.encode_queries(["how cat cat"])
    result = train(base, task(), None, adapter(), config(epochs=6), seed=1)
    first, last = (np.mean([point.loss for point in part]) for part in (result.history[:6], result.history[-6:]))
    assert last < first - 0.1
    assert result.steps == result.planned_steps == 36 == len(result.history) and not result.stopped_early
    assert result.encoder.effect(strict=True).proved
    assert np.array_equal(base.encode_queries(["how cat cat"]), before)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("reweight", ["vector", "tokens", "dims"])
def test_one_seed_gives_the_same_weights_twice(folder: Path, method: str, reweight: str) -> None:
    if method == "full" and reweight != "vector":
        pytest.skip("full tuning has no re-weighting")
    values = {"reweight": reweight} if method == "lora" else {}
    runs = [
        train(load(folder), task(16), None, adapter(method=method, **values), config(epochs=1), seed=seed)
        for seed in (5, 5, 6)
    ]
    states = [dict(run.encoder.state().tensors) for run in runs]
    assert same(states[0], states[1]) and not same(states[0], states[2])


def gradients_of(run: EncoderRun, items: list[int], **sizes: int) -> dict[str, torch.Tensor]:
    for name, value in sizes.items():
        setattr(run, name, value)
    run.optimizer.zero_grad(set_to_none=True)
    with run.prepared(None, lambda *_: None):
        run._gradient(run.data.batch(items), step=1)
    return {name: p.grad.clone() for name, p in run.encoder.trainable().items() if p.grad is not None}


@pytest.mark.parametrize("reweight", ["none", "vector", "tokens", "dims"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_cached_gradient_equals_the_direct_one(folder: Path, reweight: str, dropout: float) -> None:
    run = EncoderRun(load(folder), task(), adapter(reweight=reweight, dropout=dropout), config(), seed=0)
    with torch.no_grad():  # away from B = 0, where most gradients vanish
        for parameter in run.parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    items = list(range(12))
    direct = gradients_of(run, items, chunk_tokens=128, held_tokens=100_000)
    cached = gradients_of(run, items, chunk_tokens=128, held_tokens=0)
    partly = gradients_of(run, items, chunk_tokens=128, held_tokens=256)
    assert direct.keys() == set(run.names)
    for name, gradient in direct.items():
        assert torch.allclose(cached[name], gradient, atol=1e-6, rtol=1e-4)
        assert torch.allclose(partly[name], gradient, atol=1e-6, rtol=1e-4)
        assert gradient.abs().max() > 0


def test_gradient_equals_plain_autograd_over_the_whole_batch(folder: Path) -> None:
    run = EncoderRun(load(folder), task(), adapter(reweight="vector"), config(prefix_cache=False), seed=0)
    with torch.no_grad():
        for parameter in run.parameters:
            parameter.add_(0.1)
    items = [3, 1, 4, 15, 9, 2, 6]
    cached = gradients_of(run, items, chunk_tokens=64, held_tokens=0)
    run.optimizer.zero_grad(set_to_none=True)
    batch = run.data.batch(items)
    tower = run.encoder.tower
    queries = tower(*tower.to_tensors(tower.tokenize([run.data.queries[i] for i in batch.queries])[0]))
    passages = tower(*tower.to_tensors(tower.tokenize([run.data.passages[i] for i in batch.passages])[0]))
    own = torch.from_numpy(batch.excluded)
    own[torch.arange(len(items)), torch.from_numpy(batch.positives)] = False
    logits = (queries @ passages.T / run.training.temperature).masked_fill(own, float("-inf"))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.positives)).backward()
    for name, parameter in run.encoder.trainable().items():
        assert parameter.grad is not None
        assert torch.allclose(cached[name], parameter.grad, atol=1e-5, rtol=1e-3)


def test_backward_of_a_plain_function_is_exact() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(5, 3, dtype=torch.float32))
    rows = [np.arange(1 + i % 4, dtype=np.int32) for i in range(9)]

    def embed(some: list[np.ndarray], number: int) -> torch.Tensor:
        return torch.stack([weight[torch.from_numpy(row).long()].sum(0) for row in some])

    def loss_of(vectors: torch.Tensor) -> torch.Tensor:
        return (vectors @ vectors.T).sin().sum()

    expected = loss_of(embed(rows, 0))
    (gradient,) = torch.autograd.grad(expected, weight)
    value = backward(embed, rows, loss_of, chunk_tokens=6, held_tokens=8)
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    assert weight.grad is not None and torch.allclose(weight.grad, gradient, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_prefix_cache_changes_no_weight(folder: Path, precision: str) -> None:
    runs = [
        train(load(folder, precision), task(16), None, adapter(), config(epochs=1, prefix_cache=cached), seed=2)
        for cached in (True, False)
    ]
    first, second = (run.encoder.state().tensors for run in runs)
    # Cached states come from batches of another shape: equal up to rounding there.
    tolerance = 1e-5 if precision == "float32" else 2e-2
    assert all(torch.allclose(first[name], second[name], atol=tolerance) for name in first)


def test_query_side_training_leaves_passages_alone(folder: Path) -> None:
    base = load(folder)
    result = train(base, task(), None, adapter(adapt="query"), config(epochs=3), seed=1)
    texts = sentences(5)
    assert np.array_equal(result.encoder.encode_passages(texts), base.encode_passages(texts))
    assert not np.allclose(result.encoder.encode_queries(texts), base.encode_queries(texts), atol=1e-3)
    assert result.history[-1].loss < result.history[0].loss


def test_query_side_training_encodes_only_the_passages_that_nobody_knows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, examples = load(folder), task(8)
    passages = list(dict.fromkeys(text for one in examples for text in (one.positive, *one.negatives)))
    known = dict(zip(passages, base.encode_passages(passages), strict=True))
    whole = train(base, examples, None, adapter(adapt="query"), config(epochs=2), seed=1)
    read: list[list[str]] = []
    encode = base.encode_passages
    monkeypatch.setattr(base, "encode_passages", lambda texts, **how: read.append(list(texts)) or encode(texts, **how))
    unknown = passages[3]
    del known[unknown]
    result = train(base, examples, None, adapter(adapt="query"), config(epochs=2), known=known, seed=1)
    assert read == [[unknown]]
    first, second = (run.encoder.state().tensors for run in (whole, result))
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


@pytest.mark.parametrize("loss", ["distill", "both", "margin_mse"])
def test_distillation_moves_the_student_towards_the_teacher(folder: Path, loss: str) -> None:
    base = load(folder)
    passages = sentences(24, seed=4)
    examples = []
    for number, query in enumerate(sentences(16, seed=5)):
        listed = tuple(passages[(number + i) % 24] for i in range(6))
        scores = (0.9, 0.1, 0.2, 0.0, 0.1, 0.3)
        examples.append(Example(query, listed[0], candidates=listed, teacher_scores=scores))
    result = train(base, examples, None, adapter(rank=8), config(loss=loss, epochs=20, temperature=0.1), seed=1)
    assert result.history[-1].loss < 0.8 * result.history[0].loss

    def first_place(encoder: Encoder) -> float:
        hits = [
            int((encoder.encode_queries([e.query]) @ encoder.encode_passages(e.candidates).T).argmax() == 0)
            for e in examples
        ]
        return float(np.mean(hits))

    assert first_place(result.encoder) > first_place(base)


def test_best_weights_are_restored_and_patience_stops(folder: Path) -> None:
    scores = iter([0.1, 0.2, 0.9, 0.5, 0.4, 0.3, 0.3, 0.3])
    weights: list[dict[str, torch.Tensor]] = []

    def dev(encoder: Encoder) -> float:
        weights.append({name: p.detach().clone() for name, p in encoder.trainable().items()})  # type: ignore[attr-defined]
        return next(scores)

    result = train(load(folder), task(), dev, adapter(), config(evaluations=6, patience=2), seed=1)
    assert result.dev_before == 0.1 and result.best_dev == 0.9
    assert result.stopped_early and result.steps == 8 and result.planned_steps == 12
    assert result.best_step == 4
    best = {name: p.detach() for name, p in result.encoder.trainable().items()}
    assert same(best, weights[2]) and not same(best, weights[-1])
    assert [point.dev for point in result.history if point.dev is not None] == [0.2, 0.9, 0.5, 0.4]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_killed_run_resumes_to_the_same_weights(folder: Path, tmp_path: Path, method: str) -> None:
    values = {"dropout": 0.1} if method == "lora" else {}
    arguments = (adapter(method=method, **values), config(epochs=2, evaluations=4))

    def dev(encoder: Encoder) -> float:
        return float(encoder.encode_queries(["how cat"])[0, 0])

    whole = train(load(folder), task(), dev, *arguments, seed=3, checkpoint=tmp_path / "a")
    looks: list[int] = []

    def killed(encoder: Encoder) -> float:
        looks.append(1)
        if len(looks) == 4:  # before, after steps 3 and 6, then at 9
            raise KeyboardInterrupt
        return dev(encoder)

    with pytest.raises(KeyboardInterrupt):
        train(load(folder), task(), killed, *arguments, seed=3, checkpoint=tmp_path / "b")
    resumed = train(load(folder), task(), dev, *arguments, seed=3, checkpoint=tmp_path / "b")
    assert resumed.resumed_from == 6 and resumed.steps == whole.steps
    assert same(dict(resumed.encoder.state().tensors), dict(whole.encoder.state().tensors))
    assert [p.loss for p in resumed.history] == [p.loss for p in whole.history]
    assert resumed.best_step == whole.best_step and resumed.dev_before == whole.dev_before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]

    again = train(load(folder), task(), dev, *arguments, seed=3, checkpoint=tmp_path / "b")
    assert again.resumed_from == again.steps == 12
    assert same(dict(again.encoder.state().tensors), dict(whole.encoder.state().tensors))


def test_dropout_is_on_for_the_gradient_and_off_for_the_dev_part(folder: Path) -> None:
    def dev(encoder: Encoder) -> float:
        vectors = [encoder.encode_queries(["how cat"]) for _ in range(2)]
        assert np.array_equal(*vectors)
        return 0.0

    losses = [
        [p.loss for p in train(load(folder), task(), dev, adapter(dropout=share), config(), seed=3).history]
        for share in (0.0, 0.5)
    ]
    assert losses[0] != losses[1]


def test_a_checkpoint_of_other_arguments_is_not_taken(folder: Path, tmp_path: Path) -> None:
    train(load(folder), task(16), None, adapter(), config(epochs=1), seed=3, checkpoint=tmp_path / "c")
    other = train(load(folder), task(16), None, adapter(), config(epochs=1), seed=4, checkpoint=tmp_path / "c")
    assert other.resumed_from == 0 and other.steps == 2
    (tmp_path / "c").write_bytes(b"broken")
    assert train(load(folder), task(16), None, adapter(), config(epochs=1), checkpoint=tmp_path / "c").steps == 2


def test_out_of_memory_halves_the_pass_and_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def short(*arguments: object, **sizes: int) -> float:
        calls.append(sizes["held_tokens"])
        if sizes["held_tokens"] > 3000:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return backward(*arguments, **sizes)  # type: ignore[arg-type]

    monkeypatch.setattr("ragadapt.training.loop.backward", short)
    result = train(load(folder), task(16), None, adapter(), config(epochs=1, micro_batch_tokens=10_000))
    assert calls[:3] == [10_000, 5000, 2500] and result.held_tokens == 2500


def test_memory_that_never_suffices_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object, **sizes: int) -> float:
        raise MemoryError

    monkeypatch.setattr("ragadapt.training.loop.backward", never)
    with pytest.raises(TrainingFailed, match="Lower max_length"):
        train(load(folder), task(16), None, adapter(), config(epochs=1))


def test_other_errors_pass_through(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **sizes: int) -> float:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("ragadapt.training.loop.backward", broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(load(folder), task(16), None, adapter(), config(epochs=1))


def test_a_loss_that_is_not_finite_stops_with_advice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> torch.Tensor:
        return torch.tensor(float("nan"), requires_grad=True)

    monkeypatch.setattr("ragadapt.training.losses.info_nce", broken)
    with pytest.raises(TrainingFailed, match=r"nan at step 1 .*Lower the learning rate"):
        train(load(folder), task(16), None, adapter(), config(epochs=1))


def test_learning_rate_rises_then_falls() -> None:
    rates = [learning_rate(step, 20, 1.0, 0.1) for step in range(1, 21)]
    assert rates[:2] == [0.5, 1.0] and rates[-1] == pytest.approx(1 / 19)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert learning_rate(1, 1, 1.0, 0.0) == 1.0


def test_progress_never_changes_the_result(folder: Path) -> None:
    seen: list[str] = []
    runs = [
        train(load(folder), task(16), None, adapter(), config(epochs=1), progress=watcher)
        for watcher in (lambda *_: None, lambda stage, done, total: seen.append(stage))
    ]
    assert same(dict(runs[0].encoder.state().tensors), dict(runs[1].encoder.state().tensors))
    assert {"frozen layers", "training"} <= set(seen)


def test_example_weights_count(folder: Path) -> None:
    examples = task(16)
    half = [replace(example, weight=0.0 if i % 2 else 1.0) for i, example in enumerate(examples)]
    first, second = (train(load(folder), e, None, adapter(), config(epochs=1)) for e in (examples, half))
    assert not same(dict(first.encoder.state().tensors), dict(second.encoder.state().tensors))


WORKER = """
import json, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_training import adapter, config, load, task
from ragadapt.training import train
result = train(load(Path({folder!r})), task(24), None, adapter(), config(epochs=1, micro_batch_tokens=256), seed=1)
tensors = result.encoder.state().tensors
Path(sys.argv[1]).write_text(json.dumps({{
    "loss": [p.loss for p in result.history],
    "weights": {{name: tensor.flatten().tolist() for name, tensor in tensors.items()}},
}}))
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_with_the_joint_batch(folder: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(paths=[str(Path(__file__).parent)], folder=str(folder)))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / f"{rank}.json")],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    alone = train(load(folder), task(24), None, adapter(), config(epochs=1, micro_batch_tokens=256), seed=1)
    for rank in range(2):
        told = json.loads((tmp_path / f"{rank}.json").read_text())
        assert told["loss"] == pytest.approx([p.loss for p in alone.history], abs=1e-4)
        for name, tensor in alone.encoder.state().tensors.items():
            assert np.allclose(told["weights"][name], tensor.flatten().numpy(), atol=1e-4)


@pytest.mark.slow
def test_compiled_training_learns_the_same(folder: Path) -> None:
    plain, compiled = (
        train(load(folder), task(24), None, adapter(), config(epochs=1, compile=on), seed=1) for on in (False, True)
    )
    assert [p.loss for p in compiled.history] == pytest.approx([p.loss for p in plain.history], abs=1e-3)
    texts = sentences(6)
    assert np.allclose(compiled.encoder.encode_queries(texts), plain.encoder.encode_queries(texts), atol=1e-3)


def test_compiling_refuses_the_reading_that_watches_layers(folder: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="do not go together"):
        train(load(folder), task(16), None, adapter(reweight="tokens"), config(compile=True))


def test_attach_and_train_start_from_the_same_weights(folder: Path) -> None:
    check: Callable[[Encoder], float] = lambda encoder: 0.0  # noqa: E731
    started: list[dict[str, torch.Tensor]] = []

    def dev(encoder: Encoder) -> float:
        if not started:
            started.append({n: p.detach().clone() for n, p in encoder.trainable().items()})  # type: ignore[attr-defined]
        return check(encoder)

    train(load(folder), task(16), dev, adapter(), config(epochs=1), seed=9)
    fresh = {name: p.detach() for name, p in attach(load(folder), adapter(), seed=9).trainable().items()}
    assert same(started[0], fresh)
