"""Methods compared: equal budgets, corrected differences, one sentence that is true, and nothing trained twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import cell_work
import numpy as np
import pytest
from forks import start
from ragadapt_cli.main import run
from tiny_models import sentences, write_tiny_model

from ragadapt.adapters import attach
from ragadapt.adapters.budget import nearest_size, size_of, whole_size
from ragadapt.adapters.method import METHODS, settings_for
from ragadapt.adapters.peft import LoRA
from ragadapt.config import AdapterConfig, EncoderConfig, FitConfig
from ragadapt.encoder import Encoder
from ragadapt.errors import InvalidConfiguration, InvalidInput, TrainingFailed
from ragadapt.evaluation.learning import area_under, steps_to_gain
from ragadapt.evaluation.significance import (
    Interval,
    holm,
    interval,
    p_value,
    paired_bootstrap,
    paired_bootstrap_over_runs,
)
from ragadapt.pipeline import compare
from ragadapt.pipeline.cells import Cells, peak_memory_bytes
from ragadapt.pipeline.compare import Budget, MethodComparison, compare_methods, parse_parameters, sweep
from ragadapt.pipeline.queries import DividedQueries, Labels
from ragadapt.report import CurvePoint, MethodMeasured, MethodRun, Report, read_report, table, write_report
from ragadapt.report.methods import BASE, DENSE, SEARCH, Judged, compared, label_of
from ragadapt.report.page import page
from ragadapt.values import Evidence, Query

STEPS, SEEDS, RATES = 6, 2, 2
LINES = sentences(80, words=12, seed=5)


class Fewer(LoRA):
    """The larger its rank, the less it trains."""

    def __init__(self, model: Any, options: Any, scope: Any, **rest: Any) -> None:
        super().__init__(model, replace(options, rank=max(1, 64 // options.rank)), scope, **rest)


class Even(LoRA):
    """Takes even ranks alone."""

    def __init__(self, model: Any, options: Any, scope: Any, **rest: Any) -> None:
        if options.rank % 2:
            raise InvalidConfiguration(f"rank = {options.rank}: choose an even one.")
        super().__init__(model, options, scope, **rest)


class Deep(LoRA):
    """Grows in width and depth alike."""

    SIZES = ("rank", "layers")


class Elsewhere(LoRA):
    """Cannot run on this machine."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise InvalidConfiguration("This method needs a CUDA device. Choose another one.")


# A task of toy size


def write_task(folder: Path) -> dict[str, Path]:
    """A model, documents, and a question to each: four words of it, in another order."""
    model = write_tiny_model(folder / "base")
    paths = {name: folder / name for name in ("docs.jsonl", "queries.jsonl", "qrels.tsv")}
    rows = [{"_id": f"d{at}", "text": f"{line} . {line}"} for at, line in enumerate(LINES)]
    asked = [{"_id": f"q{at}", "text": " ".join(line.split()[3::-1])} for at, line in enumerate(LINES)]
    paths["docs.jsonl"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths["queries.jsonl"].write_text("".join(json.dumps(row) + "\n" for row in asked))
    qrels = "".join(f"q{at}\td{at}\t1\n" for at in range(len(LINES)))
    paths["qrels.tsv"].write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return {"model": model, **{name.split(".")[0]: path for name, path in paths.items()}}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def encoder(task: Mapping[str, Path]) -> Encoder:
    return Encoder.load(EncoderConfig(model=str(task["model"]), precision="float32"))


def config_for(task: Mapping[str, Path], **training: Any) -> FitConfig:
    return FitConfig.build(
        {
            "encoder": {"model": str(task["model"]), "precision": "float32"},
            "training": {"batch_size": 8, "evaluations": 3, **training},
            "adapter": {"rank": 4},
        }
    )


def run_task(
    task: Mapping[str, Path], folder: Path, methods: Any = ("lora", "full"), **changes: Any
) -> MethodComparison:
    settings: dict[str, Any] = {"budget": Budget(steps=STEPS), "seeds": SEEDS, "rates": RATES, "jobs": 0, **changes}
    labels = settings.pop("labels", [Labels(task["queries"], task["qrels"])])
    config = settings.pop("config", config_for(task))
    return compare_methods([task["docs"]], folder, methods, config, labels=labels, **settings)


@pytest.fixture(scope="module")
def whole(task: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> MethodComparison:
    """A comparison that nothing interrupted."""
    return run_task(task, tmp_path_factory.mktemp("whole"))


def records(folder: Path) -> list[dict[str, Any]]:
    """What every training left."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob(".work.build/stages/train-*/trained.json"))]


def figures(report: Report) -> list[Any]:
    assert report.methods is not None
    return [
        (method.name, method.rate, run.search, run.dense) for method in report.methods.measured for run in method.runs
    ]


# Statistics by hand


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_p_value_counts_the_resamples_on_the_other_side_twice() -> None:
    found = Interval(delta=0.1, low=0.01, high=0.2, p_better=0.99, n=50, clusters=50)
    assert p_value(found, 999) == pytest.approx(2 * (1 + 9.99) / 1000)
    assert p_value(replace(found, p_better=0.01), 999) == pytest.approx(p_value(found, 999))
    assert p_value(replace(found, p_better=1.0), 999) == pytest.approx(0.002)
    assert p_value(replace(found, p_better=0.5), 999) == 1.0
    with pytest.raises(InvalidInput, match="one system"):
        p_value(interval([0.1, 0.2], seed=0), 999)


def test_a_gain_that_one_seed_alone_brings_is_less_sure_than_one_that_all_bring() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.6, 60)
    every = np.stack([base + 0.06 + rng.normal(0, 0.02, 60) for _ in range(3)])
    lucky = np.stack([base, base, base + 0.18]) + rng.normal(0, 0.02, (3, 60))
    sure, unsure = (paired_bootstrap_over_runs(rows, base, seed=1) for rows in (every, lucky))
    assert sure.delta == pytest.approx(unsure.delta, abs=0.01)
    assert sure.better
    assert unsure.high - unsure.low > 5 * (sure.high - sure.low)
    assert not unsure.better


def test_one_run_is_the_paired_bootstrap_and_runs_must_pair() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(2, 30))
    assert paired_bootstrap_over_runs(a[None], b, seed=3) == paired_bootstrap(a, b, seed=3)
    for other in (np.zeros((3, 30)), np.zeros((2, 29))):
        with pytest.raises(InvalidInput, match="same runs × queries"):
            paired_bootstrap_over_runs(np.zeros((2, 30)), other, seed=0)


def test_area_and_steps_of_a_curve_are_those_of_its_line() -> None:
    curve = [(0, 0.4), (10, 0.6), (20, 0.5)]
    assert area_under(curve) == pytest.approx((10 * 0.5 + 10 * 0.55) / 20)
    assert steps_to_gain(curve) == pytest.approx(9)  # 0.58 lies nine tenths of the way to the first look
    assert steps_to_gain(curve, 0.5) == pytest.approx(5)
    assert steps_to_gain([(0, 0.4), (10, 0.4), (20, 0.3)]) is None
    for wrong in ([], [(0, 0.4)], [(10, 0.4), (0, 0.5)], [(0, 0.4), (5, float("nan"))]):
        with pytest.raises(InvalidInput, match="two points or more"):
            area_under(wrong)


# Learning rates


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 9])
@pytest.mark.parametrize("best", [-4.3, -3.3, -2.0])
def test_every_method_gets_exactly_as_many_rates(count: int, best: float) -> None:
    asked: list[float] = []

    def trial(rate: float) -> float:
        asked.append(rate)
        return -abs(np.log10(rate) - best)

    tried = sweep(trial, 5e-4, count)
    assert list(tried) == asked
    assert len(set(asked)) == count
    assert asked[0] == 5e-4


@pytest.mark.parametrize(("best", "count"), [(5e-5, 4), (1.6e-4, 4), (5e-4, 3), (1.6e-3, 3), (1.6e-2, 4)])
def test_the_walk_reaches_a_rate_ten_times_off(best: float, count: int) -> None:
    tried = sweep(lambda rate: -abs(np.log10(rate / best)), 5e-4, count)
    assert max(tried, key=lambda rate: tried[rate]) == pytest.approx(best, rel=0.02)


def test_what_is_left_of_the_rates_goes_beside_the_best_one() -> None:
    tried = sweep(lambda rate: -abs(np.log10(rate / 3e-4)), 5e-4, 4)
    assert list(tried) == [5e-4, 1.6e-3, 1.6e-4, 2.8e-4]


# Budgets


@pytest.mark.parametrize(
    ("text", "value"), [("0.5%", 0.005), ("6.7 %", 0.067), ("120000", 120_000), ("120k", 120_000), ("1.2M", 1_200_000)]
)
def test_a_budget_is_a_share_or_a_number(text: str, value: float) -> None:
    assert parse_parameters(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["0.5", "", "%", "-1%", "100%", "0%", "half", "1e5", "1.5", "12%k"])
def test_what_is_neither_is_refused_with_the_forms_that_are(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"is no number of parameters: give a share .*0\.5%.*120k"):
        parse_parameters(text)


def test_steps_and_minutes_exclude_each_other_and_nothing_is_no_budget() -> None:
    with pytest.raises(InvalidInput, match="not both"):
        Budget(steps=5, minutes=1)
    for wrong in ({"steps": 0}, {"minutes": -1.0}, {"parameters": 0.0}):
        with pytest.raises(InvalidInput, match="must be above 0"):
            Budget(**wrong)  # type: ignore[arg-type]


@cache
def counts(encoder: Encoder, method: str) -> dict[int, int]:
    """Rank → what is trained with it, one by one."""
    made = {}
    for rank in range(1, 66):
        with suppress(InvalidConfiguration):
            made[rank] = size_of(encoder, settings_for(method, AdapterConfig(rank=rank))).parameters
    return made


@pytest.mark.parametrize("method", ["lora", "fewer", "even"])
@pytest.mark.parametrize("wanted", [900, 5000, 11_000, 30_000])
def test_the_size_is_the_nearest_of_all(
    encoder: Encoder, method: str, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "fewer", "test_compare:Fewer")
    monkeypatch.setitem(METHODS, "even", "test_compare:Even")
    every = counts(encoder, method)
    found = nearest_size(encoder, settings_for(method, AdapterConfig(rank=4)), wanted)
    assert found.options == ("rank",)
    assert abs(found.parameters - wanted) == min(abs(count - wanted) for count in every.values())
    assert every[found.config.rank] == found.parameters
    assert found.meets(wanted) == (abs(found.parameters - wanted) <= 0.15 * wanted)


def test_options_that_decide_together_keep_their_proportions(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "deep", "test_compare:Deep")
    settings = settings_for("deep", AdapterConfig(rank=4, layers=1))
    double = size_of(encoder, settings_for("deep", AdapterConfig(rank=8, layers=2)))
    found = nearest_size(encoder, settings, double.parameters)
    assert (found.config.rank, found.config.layers) == (8, 2)
    assert found.options == ("rank", "layers")


def test_a_method_without_a_size_has_one_and_says_that_it_misses(encoder: Encoder) -> None:
    found = nearest_size(encoder, settings_for("full", AdapterConfig(rank=4)), 1000)
    assert found.options == ()
    layers = [p for name, p in encoder.query_tower.model.named_parameters() if "layers." in name or "layer." in name]  # type: ignore[union-attr]
    assert found.parameters == sum(parameter.numel() for parameter in layers)
    assert found.whole == whole_size(encoder) > found.parameters
    assert not found.meets(1000)


@pytest.mark.parametrize("method", ["pissa", "loftq"])
def test_a_method_is_counted_by_a_quicker_one_of_its_shape(encoder: Encoder, method: str) -> None:
    settings = settings_for(method, AdapterConfig(rank=4))
    real = sum(parameter.numel() for parameter in attach(encoder, settings).trainable().values())
    assert size_of(encoder, settings).parameters == real
    found = nearest_size(encoder, settings, 2 * real)
    assert (found.config.method, found.config.rank, found.parameters) == (method, 8, 2 * real)


def test_the_encoder_is_left_as_it_was(encoder: Encoder) -> None:
    before = encoder.encode_queries(["the oven"])
    nearest_size(encoder, settings_for("lora", AdapterConfig()), 3000)
    nearest_size(encoder, settings_for("full", AdapterConfig()), 3000)
    assert (encoder.encode_queries(["the oven"]) == before).all()


# A whole comparison


@pytest.mark.parametrize("adapt", ["query", "auto"])
def test_each_method_s_search_begins_at_the_rate_that_a_fit_takes_on_that_side(
    task: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapt: Literal["query", "auto"]
) -> None:
    monkeypatch.setattr("ragadapt.pipeline.adapt.MANY_LABELS", 10)
    config = config_for(task).model_copy(update={"adapter": AdapterConfig(rank=4, adapt=adapt)})
    found = run_task(task, tmp_path, config=config, seeds=1, rates=1)
    assert found.report.methods is not None
    assert {one.name: one.rate for one in found.report.methods.measured} == {"lora": 3e-3, "full": 5e-4}
    assert found.report.configuration["adapter"]["adapt"] == "query"


def test_every_training_has_the_same_steps_questions_and_number_of_rates(whole: MethodComparison) -> None:
    left = records(whole.path)
    assert len(left) == whole.trained == 2 * (RATES + SEEDS - 1)
    assert {record["steps"] for record in left} == {STEPS}
    assert {len(record["curve"]) for record in left} == {1 + 3}
    assert len({record["curve"][0][1] for record in left}) == 1  # all start at the base's dev score
    methods = whole.report.methods
    assert methods is not None
    assert [method.name for method in methods.measured] == ["lora", "full"]
    for method in methods.measured:
        assert len(method.rates) == RATES
        assert [run.seed for run in method.runs] == [13, 14]
        assert method.rate in [point.x for point in method.rates]
    counts = {(delta.metric, delta.interval.n) for delta in whole.report.deltas}
    assert len({n for _, n in counts}) == 1


def test_the_report_holds_what_the_trainings_left(whole: MethodComparison) -> None:
    methods = whole.report.methods
    assert methods is not None
    by_curve = {json.dumps(record["curve"]): record for record in records(whole.path)}
    for method in methods.measured:
        for run_ in method.runs:
            record = by_curve[json.dumps([[int(p.x), p.y] for p in run_.curve])]
            assert record["parameters"] == method.parameters
            assert run_.best_step == record["best_step"]
            assert run_.area == pytest.approx(area_under([(p.x, p.y) for p in run_.curve]))
        system = whole.report.system(method.name)
        assert system is not None
        assert system.metrics[SEARCH].value == pytest.approx(method.mean("search"))
        assert system.metrics[DENSE].value == pytest.approx(method.mean("dense"))
    assert {(d.system, d.against) for d in whole.report.deltas} == {("lora", BASE), ("full", BASE), ("full", "lora")}


def test_a_comparison_that_is_done_trains_nothing_again_and_says_the_same(
    task: Mapping[str, Path], whole: MethodComparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "train_cell", forbidden)
    again = run_task(task, whole.path)
    assert (again.trained, again.reused) == (0, whole.trained)
    assert figures(again.report) == figures(whole.report)
    assert again.sentence == whole.sentence


def forbidden(*_: Any, **__: Any) -> None:
    raise AssertionError("trained again")


def test_another_seed_costs_its_own_trainings_alone(task: Mapping[str, Path], whole: MethodComparison) -> None:
    more = run_task(task, whole.path, seeds=SEEDS + 1)
    assert (more.trained, more.reused) == (2, whole.trained)


def test_a_comparison_that_was_killed_goes_on_in_the_middle_of_a_training(
    task: Mapping[str, Path], whole: MethodComparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = compare.train_cell
    begun: list[Path] = []

    def killed(task: Any, folder: Path, scratch: Path, *, progress: Any) -> None:
        begun.append(folder)
        if len(begun) == 4:

            def stop(stage: str, done: int, total: int) -> None:
                if (stage, done) == ("training", STEPS // 2):
                    raise KeyboardInterrupt

            progress = stop
        real(task, folder, scratch, progress=progress)

    monkeypatch.setattr(compare, "train_cell", killed)
    with pytest.raises(KeyboardInterrupt):
        run_task(task, tmp_path / "out")
    assert not (tmp_path / "out" / "report.json").exists()
    finished = begun[:3]
    again = run_task(task, tmp_path / "out")
    assert again.reused == 3
    assert not set(finished) & set(begun[4:])
    assert begun[3] in begun[4:]
    assert figures(again.report) == figures(whole.report)


def test_a_budget_of_minutes_gives_a_slow_method_fewer_steps(
    task: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pace(task: Any, *, progress: Any) -> float:
        return {"lora": 0.5, "full": 1.5}[task.adapter.method]

    monkeypatch.setattr(compare, "pace_cell", pace)
    found = run_task(task, tmp_path / "out", budget=Budget(minutes=0.1), seeds=1, rates=1)
    assert found.report.methods is not None
    assert [method.steps for method in found.report.methods.measured] == [12, 4]
    assert sorted(record["steps"] for record in records(found.path)) == [4, 12]


def test_a_step_is_timed_without_its_warm_up(
    task: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paces: list[float] = []
    real = compare.pace_cell

    def noted(task: Any, *, progress: Any) -> float:
        started = time.perf_counter()
        paces.append(real(task, progress=progress))
        assert 0 < paces[-1] < time.perf_counter() - started
        return 0.6

    monkeypatch.setattr(compare, "pace_cell", noted)
    found = run_task(task, tmp_path / "out", budget=Budget(minutes=0.03), seeds=1, rates=1)
    assert len(paces) == 2
    assert {record["steps"] for record in records(found.path)} == {3}


def test_a_budget_of_parameters_counts_what_is_trained(task: Mapping[str, Path], tmp_path: Path) -> None:
    found = run_task(task, tmp_path / "out", budget=Budget.of("5000", 2), seeds=1, rates=1)
    assert found.report.methods is not None
    lora, full = found.report.methods.measured
    assert lora.meets is True
    assert lora.options == {"rank": lora.parameters // 896}
    assert abs(lora.parameters - 5000) <= 448
    assert sorted(record["parameters"] for record in records(found.path)) == [lora.parameters, full.parameters]
    assert full.meets is False
    assert "! no size of this method comes near the budget" in table(found.report)
    assert "Not within 15% of the budget" in page(found.report)


def test_all_leaves_out_what_cannot_run_here_and_says_why(
    task: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in set(METHODS) - {"lora", "full"}:
        monkeypatch.delitem(METHODS, name)
    monkeypatch.setitem(METHODS, "elsewhere", "test_compare:Elsewhere")
    found = run_task(task, tmp_path / "out", ["all"], budget=Budget(steps=1), seeds=1, rates=1)
    assert found.report.methods is not None
    (left,) = found.report.methods.left_out
    assert (left.source, left.reason) == ("elsewhere", "This method needs a CUDA device. Choose another one.")
    assert "needs a CUDA device" in page(found.report)
    with pytest.raises(InvalidConfiguration, match="needs a CUDA device"):
        run_task(task, tmp_path / "other", ["lora", "elsewhere", "full"])


def test_a_method_whose_training_comes_to_nothing_is_left_out_and_the_others_go_on(
    task: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = compare.train_cell
    monkeypatch.setitem(METHODS, "even", "test_compare:Even")

    def broken(task: Any, folder: Path, scratch: Path, *, progress: Any) -> None:
        if task.adapter.method == "full":
            raise TrainingFailed("Memory ran out.")
        real(task, folder, scratch, progress=progress)

    monkeypatch.setattr(compare, "train_cell", broken)
    found = run_task(task, tmp_path / "out", ["lora", "full", "even"], budget=Budget(steps=1), seeds=1, rates=1)
    assert found.report.methods is not None
    assert [method.name for method in found.report.methods.measured] == ["lora", "even"]
    assert [(each.source, each.reason) for each in found.report.methods.left_out] == [("full", "Memory ran out.")]


def test_a_rate_at_which_the_loss_leaves_the_numbers_is_one_of_those_tried(
    task: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragadapt.training import loop

    real = loop.EncoderRun.step

    def step(self: Any, items: Any, number: int, rate: float) -> float:
        loss = real(self, items, number, rate)
        return float("nan") if self.peak_rate > 1e-3 else loss

    monkeypatch.setattr(loop.EncoderRun, "step", step)
    found = run_task(task, tmp_path / "out", budget=Budget(steps=1), seeds=1, rates=3)
    assert found.report.methods is not None
    for method in found.report.methods.measured:
        assert [point.y == -1 for point in method.rates] == [False, False, True]
        assert method.rate < 1e-3
    assert "diverged" in page(found.report)


def test_a_language_models_questions_judge_where_they_were_held_out() -> None:
    def written(part: str, count: int) -> tuple[Query, ...]:
        return tuple(Query(f"{part}{at}", "what", "lm-question", Evidence.PARAPHRASE, ("c",)) for at in range(count))

    parts = {"train": written("t", 90), "dev": written("d", 10), "heldout": written("h", 25)}
    queries = DividedQueries(**parts, grades={}, made={}, kept={}, documents={}, notes=(), only_judge=("t0", "h0"))
    steps: Any = SimpleNamespace(config=FitConfig())
    plan = compare._Steps.plan(steps, queries, None, None)  # type: ignore[arg-type]
    assert plan.crossed == 0
    assert {query.id for query in plan.train} == {f"t{at}" for at in range(1, 90)}
    assert {query.id for query in plan.judge} == {f"h{at}" for at in range(25)}
    assert plan.evidence is Evidence.PARAPHRASE


# What is refused


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["lora", "lara"], r"There is no method 'lara'. There are: .*lora.*; all is each of them"),
        (["lora"], r"1 method given \(lora\): name at least two"),
        (["lora", "lora"], r"1 method given \(lora\)"),
        ([], r"0 method given"),
        ("lora,full", "give a list of names"),
        (["lora", "lora:reweight"], r"'lora:reweight': settings follow a method's name as lora:reweight=none"),
        (["lora", "lora:reweight="], r"settings follow a method's name"),
        (["lora", "lora:"], r"settings follow a method's name"),
        (["lora", "lara:reweight=none"], r"There is no method 'lara'"),
        (["lora", "lora:heat=2"], r"'lora:heat=2': 'heat' is no setting of a method. `ragadapt methods`"),
        (["lora", "lora:adapt=query"], r"'adapt' is the same for all of a comparison"),
        (["lora", "lora:method=full"], r"'method' is"),
        (["lora", "lora:gamma=1:gamma=2"], r"'gamma' is given twice"),
        (["lora", "lora:reweight=much"], r"'lora:reweight=much': .*reweight.*'much'"),
        (["lora", "lora:gamma=NaN"], r"'lora:gamma=NaN': .*gamma"),
        (["lora", "full:rank=4"], r"'full:rank=4': .*method 'full' has no rank"),
    ],
)
def test_methods_that_cannot_be_compared_are_named(
    task: Mapping[str, Path], tmp_path: Path, methods: Any, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        run_task(task, tmp_path / "out", methods)
    assert not (tmp_path / "out").exists()


def test_a_method_meets_itself_under_other_settings(task: Mapping[str, Path], tmp_path: Path) -> None:
    names = ["lora", "lora:reweight=none", "lora:gamma=4"]
    found = run_task(task, tmp_path / "out", names, budget=Budget.of("5000", 2), seeds=1, rates=1)
    methods = found.report.methods
    assert methods is not None
    assert found.trained == 3
    assert [method.name for method in methods.measured] == names
    assert [method.label for method in methods.measured] == ["LoRA", "LoRA (reweight=none)", "LoRA (gamma=4)"]
    assert len({method.parameters for method in methods.measured}) == 1
    assert {(delta.system, delta.against) for delta in found.report.deltas if delta.metric == DENSE} == {
        *((name, BASE) for name in names), *((name, "lora") for name in names[1:]),
    }  # fmt: skip
    assert "LoRA (reweight=none)" in page(found.report)


def test_a_size_is_chosen_by_the_budget_or_by_a_setting(task: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"'lora:rank=2' fixes rank, by which the budget .* Drop one"):
        run_task(task, tmp_path / "out", ["lora", "lora:rank=2"], budget=Budget(parameters=500, steps=2))


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"rates": 0}, {"jobs": -1}])
def test_numbers_out_of_range_are_refused(task: Mapping[str, Path], tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="must be at least"):
        run_task(task, tmp_path / "out", **wrong)


def test_without_questions_nothing_can_be_compared(task: Mapping[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"0 can train and 0 were held out.*Give labelled questions \(--queries\)"):
        run_task(task, tmp_path / "out", labels=[])


def test_without_a_dev_part_there_is_nothing_to_choose_rates_by(task: Mapping[str, Path], tmp_path: Path) -> None:
    config = config_for(task).model_copy(update={"split": FitConfig.build({"split": {"dev": 0.0}}).split})
    with pytest.raises(InvalidInput, match=r"too few of one kind to choose learning rates by \(8 are needed\)"):
        run_task(task, tmp_path / "out", config=config)


def test_a_retrievers_folder_is_not_written_into(task: Mapping[str, Path], tmp_path: Path) -> None:
    (tmp_path / "ragadapt.json").write_text("{}")
    with pytest.raises(InvalidInput, match="holds a retriever"):
        run_task(task, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "lora"], "name at least two"),
        (["--methods", "lora,lara"], "There is no method 'lara'"),
        (["--budget-params", "0.5"], "is no number of parameters"),
        (["--budget-steps", "5", "--budget-minutes", "1"], "not both"),
        (["--seeds", "0"], "x>=1"),
        (["--qrels", "QRELS"], "give that too"),
    ],
)
def test_the_command_says_what_is_wrong(
    task: Mapping[str, Path], tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(task["qrels"]) if word == "QRELS" else word for word in arguments]
    assert run(["compare", str(task["docs"]), "-o", str(tmp_path / "out"), *words]) in (1, 2)
    assert message in capsys.readouterr().err


# The sentence


def method(name: str, *, share: float = 0.005, drift: float = 0.1, seeds: int = 2) -> MethodMeasured:
    curve = tuple(CurvePoint(x=x, y=y) for x, y in ((0, 0.4), (10, 0.5)))
    runs = tuple(
        MethodRun(
            seed=seed, search=0.5, dense=0.5, curve=curve, area=0.45, steps_to_gain=9, best_step=10, seconds=2.0,
            peak_memory_bytes=5_000_000, weight=0.4, drift=drift,
        )
        for seed in range(seeds)
    )  # fmt: skip
    return MethodMeasured(
        name=name, label=label_of(name), options={"rank": 8}, parameters=int(share * 1e6), share=share, rate=1e-3,
        steps=10,
        rates=(CurvePoint(x=5e-4, y=0.4), CurvePoint(x=1e-3, y=0.5), CurvePoint(x=5e-3, y=-1)), runs=runs,
    )  # fmt: skip


def judged(gains: Mapping[str, tuple[float, float]], drift: float = 0.1, **given: Any) -> Report:
    """A report over 200 questions. gains: method → by how much it is better in the default and in dense search."""
    rng = np.random.default_rng(7)
    base = {SEARCH: rng.uniform(0.2, 0.8, 200), DENSE: rng.uniform(0.2, 0.7, 200)}
    made = []
    for name, (search, dense) in gains.items():
        rows = [
            np.stack([base[metric] + gain + rng.normal(0, 0.05, 200) for _ in range(2)])
            for metric, gain in ((SEARCH, search), (DENSE, dense))
        ]
        about = method(name, drift=drift)
        runs = tuple(
            run.model_copy(update={"search": float(one.mean()), "dense": float(other.mean())})
            for run, one, other in zip(about.runs, *rows)
        )
        made.append(Judged(about.model_copy(update={"runs": runs}), *rows))
    found = compared(base, made, reference="lora", alike="everything", max_drift=0.35, seed=13, **given)
    return Report(systems=found.systems, deltas=found.deltas, methods=found.methods)


@pytest.mark.parametrize(
    ("gains", "ships", "words"),
    [
        pytest.param(
            {"lora": (0.03, 0.03), "iaa-l": (0.06, 0.06), "full": (0.05, 0.05)},
            "iaa-l",
            r"^On your documents iaa-l at 0\.5% of the parameters is better than LoRA by 0\.0\d\d nDCG@10 in default "
            r"search \(95% interval \+0\.0\d\d to \+0\.0\d\d, p = 0\.\d+ after Holm's correction\)\. Train it with "
            r"--method iaa-l --set adapter\.rank=8 --lr 0\.001\.$",
            id="a method is better",
        ),
        pytest.param(
            {"lora": (0.0, 0.0), "iaa-l": (0.0, 0.06)},
            "iaa-l",
            r"^On your documents iaa-l .* is better than LoRA by 0\.0\d\d nDCG@10 in dense search",
            id="better in dense search alone",
        ),
        pytest.param(
            {"lora": (0.05, 0.05), "iaa-l": (0.05, 0.05)},
            "lora",
            r"^No method can be told from LoRA on your documents, and LoRA is better than the untuned model by "
            r"0\.0\d\d .* Train it with --method lora",
            id="none can be told from LoRA",
        ),
        pytest.param(
            {"lora": (0.05, 0.05), "iaa-l": (0.0, 0.0)},
            "lora",
            r"^No method is better than LoRA on your documents, and LoRA is better than the untuned model by",
            id="one is worse than LoRA",
        ),
        pytest.param(
            {"lora": (0.004, 0.004), "iaa-l": (0.008, 0.008)},
            "iaa-l",
            r"^No method can be told from LoRA on your documents, but iaa-l at 0\.5% of the parameters is better than "
            r"the untuned model by .*, which LoRA is not beyond doubt\. Train it with --method iaa-l",
            id="only another is better than the base",
        ),
        pytest.param(
            {"lora": (0.0, 0.0), "iaa-l": (0.0, 0.0)},
            "",
            r"^No method can be told from LoRA, and none is better than the untuned model on your documents: keep it "
            r"as it is \(--method none\)\.",
            id="nothing is better",
        ),
        pytest.param(
            {"lora": (-0.05, -0.05), "iaa-l": (0.0, 0.0)},
            "",
            r"^iaa-l gained on LoRA, but cannot be relied on beside the untuned model, and none is better than the "
            r"untuned model",
            id="LoRA harms",
        ),
    ],
)
def test_the_sentence_says_what_the_intervals_do(gains: dict[str, tuple[float, float]], ships: str, words: str) -> None:
    report = judged(gains)
    assert report.methods is not None
    assert re.search(words, report.methods.sentence), report.methods.sentence
    assert report.methods.ships == ships
    assert report.shipped is not None
    assert report.shipped.name == (ships or BASE)
    assert report.methods.sentence in table(report)


def test_the_sentence_gives_the_settings_that_a_method_brought() -> None:
    report = judged({"lora": (0.0, 0.0), "iaa-l:aside_rank=4": (0.03, 0.03)})
    assert report.methods is not None
    assert "On your documents iaa-l (aside_rank=4) at" in report.methods.sentence
    assert "Train it with --method iaa-l --set adapter.aside_rank=4 --set" in report.methods.sentence


def test_the_command_repeats_what_was_compared() -> None:
    gains = {"lora": (0.03, 0.03), "iaa-l": (0.0, 0.0)}
    for given, said in (
        ({}, "--method lora --set adapter.rank=8 --lr"),
        ({"settings": ["adapter.adapt=query"]}, "--method lora --set adapter.adapt=query --set adapter.rank=8 --lr"),
        ({"epoch": 4}, "--method lora --set adapter.rank=8 --set training.epochs=4 --set training.max_steps=10 --lr"),
    ):
        report = judged(gains, **given)
        assert report.methods is not None
        assert f"Train it with {said}" in report.methods.sentence


def test_what_moved_too_far_does_not_ship() -> None:
    report = judged({"lora": (0.05, 0.05), "iaa-l": (0.09, 0.09)}, drift=0.5)
    assert report.methods is not None
    assert report.methods.ships == ""


def test_p_values_are_corrected_within_what_they_are_compared_with() -> None:
    report = judged({"lora": (0.0, 0.0), "a": (0.008, 0.0), "b": (0.0, 0.0), "c": (0.0, 0.0)})
    for against, count in ((BASE, 8), ("lora", 6)):
        family = [delta for delta in report.deltas if delta.against == against]
        assert len(family) == count
        raw = [p_value(delta.interval, 10_000) for delta in family]
        assert [delta.p for delta in family] == pytest.approx(holm(raw))


# The page


def test_the_page_needs_nothing_from_outside_and_the_report_reads_back(whole: MethodComparison, tmp_path: Path) -> None:
    write_report(tmp_path, whole.report)
    made = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"https?://|//[a-z]|src=|@import|url\(", made.split("<body", 1)[1])
    assert not re.findall(r"https?://", made)
    assert "color-scheme" in made
    assert "prefers-color-scheme: dark" in made
    assert read_report(tmp_path) == whole.report
    assert whole.sentence in made.replace("&#39;", "'")


def test_the_page_draws_differences_and_a_curve_for_every_method() -> None:
    made = page(judged({"lora": (0.03, 0.03), "iaa-l": (0.06, 0.06), "full": (0.0, 0.0)}))
    section = made.split('<section id="methods"')[1].split("</section>")[0] if '<section id="methods"' in made else made
    for title in (
        "Default search, against the untuned model", "Dense search, against the untuned model",
        "Default search, against LoRA", "Dense search, against LoRA",
    ):  # fmt: skip
        assert title in section
    for label in ("LoRA", "iaa-l", "full tuning"):
        assert f"Learning curve of {label}" in section
        assert len(re.findall(rf"<title>{label}: [+−]0\.\d+, interval", section)) == (2 if label == "LoRA" else 4)
    assert "± 0." in section
    assert "5 MB" in section


def test_names_of_methods_are_escaped(tmp_path: Path) -> None:
    report = judged({"lora": (0.0, 0.0), "<b>x": (0.06, 0.06)})
    write_report(tmp_path, report)
    assert "<b>x" not in (tmp_path / "report.html").read_text(encoding="utf-8")


# Processes


def test_a_process_has_a_memory_of_its_own() -> None:
    told: list[tuple[str, int, int]] = []
    block = bytearray(b"1" * 300_000_000)  # the parent's must not count
    with Cells(1) as cells:
        pid, peak = cells.run(cell_work.hold, 60, progress=lambda *step: told.append(step))
    own = peak_memory_bytes()
    assert pid != os.getpid()
    assert told == [("holding", 1, 1)]
    assert (own is not None) == (sys.platform in ("linux", "darwin"))
    if own is not None:
        assert peak is not None
        assert len(block) < own
        assert 60_000_000 < peak < 250_000_000


def test_a_process_that_is_reused_goes_on_after_an_error_and_is_replaced_when_it_breaks_down() -> None:
    with Cells(1, reuse=True) as cells:
        first, _ = cells.run(cell_work.hold, 1)
        with pytest.raises(InvalidInput, match=r"^it is refused"):
            cells.run(cell_work.refuse, "it")
        assert cells.run(cell_work.hold, 1)[0] == first
        os.kill(first, signal.SIGKILL)  # as the system does where memory runs out
        until(lambda: not any(worker.alive() for worker in cells._idle))
        second, _ = cells.run(cell_work.hold, 1)
        assert second != first
        with pytest.raises(TrainingFailed, match=r"broke down.*the last words"):
            cells.run(cell_work.break_down)
        third, _ = cells.run(cell_work.hold, 1)
        assert third != second
    until(lambda: not alive(third))


def test_errors_and_ends_of_a_process_arrive() -> None:
    with Cells(1) as cells:
        assert cells.run(cell_work.nothing) is None
        with pytest.raises(InvalidInput, match=r"^it is refused"):
            cells.run(cell_work.refuse, "it")
        with pytest.raises(TrainingFailed, match=r"broke down.*the last words"):
            cells.run(cell_work.break_down)
    with pytest.raises(TrainingFailed, match="stopped"):
        cells.run(cell_work.nothing)


def test_whoever_waits_for_a_process_that_is_stopped_learns_of_it(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    with Cells(2) as cells, ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(cells.run, cell_work.wait, str(mark))
        pid = int(until(lambda: mark.exists() and mark.read_text()))
        cells.stop()
        with pytest.raises(TrainingFailed, match="broke down"):
            waiting.result(timeout=60)
        until(lambda: not alive(pid))


@pytest.mark.skipif(os.name == "nt", reason="kills a process by its number")
def test_a_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    code = (
        "import cell_work; from ragadapt.pipeline.cells import Cells\n"
        f"with Cells(1) as cells: cells.run(cell_work.wait, {str(mark)!r})"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    pid = int(until(lambda: mark.exists() and mark.read_text()))
    parent.kill()
    parent.wait()
    until(lambda: not alive(pid))


def until(found: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.slow
def test_processes_side_by_side_find_what_one_finds(task: Mapping[str, Path], tmp_path: Path) -> None:
    alone, found = (run_task(task, tmp_path / str(jobs), jobs=jobs, seeds=1, rates=1) for jobs in (0, 2))
    for mine, other in zip(figures(found.report), figures(alone.report), strict=True):
        assert mine[:2] == other[:2]
        assert mine[2:] == pytest.approx(other[2:], abs=0.02)  # threads may round otherwise
    assert found.report.methods is not None
    for measured in found.report.methods.measured:
        assert (measured.mean("peak_memory_bytes") or 0) > 50_000_000 or os.name == "nt"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills a process by its number")
def test_the_command_that_was_killed_goes_on(task: Mapping[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "compare", str(task["docs"]), "-o", str(out), "--methods", "lora,full", "--queries", str(task["queries"]),
        "--qrels", str(task["qrels"]), "--model", str(task["model"]), "--precision", "float32", "--seeds", "1",
        "--rates", "1", "--budget-steps", "4", "--jobs", "1", "--json", "--set", "training.batch_size=8",
    ]  # fmt: skip
    command = partial(start, "from ragadapt_cli.main import main; main()", *words)
    first = command()
    until(lambda: len(list(out.glob(".work.build/stages/train-*.done.json"))) >= 1, seconds=300)
    first.kill()
    first.wait()
    second = command()
    output, errors = second.communicate()
    assert second.returncode == 0, errors
    said = json.loads(output)
    assert said["reused"] >= 1
    assert said["trained"] + said["reused"] == 2
    assert said["sentence"] == read_report(out).methods.sentence  # type: ignore[union-attr]
