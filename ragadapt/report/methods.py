"""Methods of training side by side: the figures, what can be told from what, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ragadapt.evaluation.significance import Interval, holm, interval, p_value, paired_bootstrap_over_runs
from ragadapt.report.values import (
    Delta,
    Measure,
    MeasuredSystem,
    MethodMeasured,
    MethodsCompared,
    SkippedSource,
)
from ragadapt.report.words import duration, score, signed, size

SEARCH, DENSE = "nDCG@10", "nDCG@10, dense"
BASE = "base"

_SAMPLES = 10_000  # of the bootstrap: a p-value that is multiplied by the number of methods needs small ones
_LABELS = {"lora": "LoRA", "full": "full tuning"}
_KINDS = {SEARCH: "default search", DENSE: "dense search"}

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Judged:
    """A method and nDCG@10 of its runs, (R, Q) each, by the default and by dense search."""

    about: MethodMeasured
    search: Values
    dense: Values

    def values(self, metric: str) -> Values:
        return self.search if metric == SEARCH else self.dense


@dataclass(frozen=True)
class MethodFigures:
    """The parts of a report that compares methods."""

    systems: tuple[MeasuredSystem, ...]
    deltas: tuple[Delta, ...]
    methods: MethodsCompared


def label_of(name: str) -> str:
    """What a reader calls a method, and the settings that were given with it ("LoRA (reweight=none)")."""
    method, *settings = name.split(":")
    return _LABELS.get(method, method) + (f" ({', '.join(settings)})" if settings else "")


def compared(
    base: Mapping[str, Values],
    methods: Sequence[Judged],
    *,
    reference: str,
    alike: str,
    left_out: Sequence[SkippedSource] = (),
    max_drift: float = 1.0,
    confidence: float = 0.95,
    settings: Sequence[str] = (),
    epoch: int | None = None,
    seed: int,
) -> MethodFigures:
    """Every method against the base and against the reference, in both kinds of search.

    base: metric → nDCG@10 per query (Q,). reference: name of one of the methods. max_drift: mean 1 − cosine of ordinary
    passages up to which a method may ship. settings: of all trainings, for the command that repeats one; epoch: its
    steps, where a number of steps was the budget and belongs to that, too. Intervals are drawn over runs and queries;
    p-values are corrected for all comparisons with the same system, in both kinds of search.
    """
    by_name = {judged.about.name: judged for judged in methods}
    deltas: list[Delta] = []
    for against, others in ((BASE, base), (reference, None)):
        pairs = [(judged, metric) for judged in methods if judged.about.name != against for metric in (SEARCH, DENSE)]
        found = [
            paired_bootstrap_over_runs(
                judged.values(metric),
                by_name[against].values(metric) if others is None else others[metric],
                samples=_SAMPLES,
                confidence=confidence,
                seed=seed,
            )
            for judged, metric in pairs
        ]
        corrected = holm([p_value(each, _SAMPLES) for each in found])
        deltas += [
            Delta(system=judged.about.name, against=against, metric=metric, interval=each, p=p)
            for (judged, metric), each, p in zip(pairs, found, corrected, strict=True)
        ]
    train = partial(_command, settings=settings, epoch=epoch)
    choice = _choose([judged.about for judged in methods], deltas, reference, max_drift, 1 - confidence, train)
    systems = [
        _system(BASE, "untuned model", {name: values[None] for name, values in base.items()}, seed, choice.ships)
    ]
    for judged in methods:
        figures = {metric: judged.values(metric) for metric in (SEARCH, DENSE)}
        systems.append(_system(judged.about.name, judged.about.label, figures, seed, choice.ships))
    return MethodFigures(
        tuple(systems),
        tuple(deltas),
        MethodsCompared(
            reference=reference,
            alike=alike,
            sentence=choice.sentence,
            ships=choice.ships,
            measured=tuple(judged.about for judged in methods),
            left_out=tuple(left_out),
        ),
    )


def _system(name: str, label: str, values: Mapping[str, Values], seed: int, ships: str) -> MeasuredSystem:
    metrics = {metric: Measure.of(interval(rows.mean(axis=0), seed=seed)) for metric, rows in values.items()}
    return MeasuredSystem(name=name, label=label, metrics=metrics, shipped=name == (ships or BASE))


# What to do


@dataclass(frozen=True)
class _Choice:
    ships: str
    sentence: str


def _choose(
    methods: Sequence[MethodMeasured],
    deltas: Sequence[Delta],
    reference: str,
    max_drift: float,
    level: float,
    train: Callable[[MethodMeasured], str],
) -> _Choice:
    """What one would ship, and the sentence that says so.

    The best of those that are better than both reference and base; else the reference, if it is better than the base;
    else the best of the others that are; else the base. As the gate asks of a fit: better in the default search, or in
    dense search where the default search did not lose by more than one standard error. train: how a method is.
    """
    of = {(delta.system, delta.against, delta.metric): delta for delta in deltas}
    gain = {
        (method.name, against): _proved(of, method.name, against, level)
        for method in methods
        for against in (BASE, reference)
        if method.name != against
    }

    def best(names: Sequence[str]) -> MethodMeasured:
        return max((m for m in methods if m.name in names), key=lambda m: (m.mean("search") or 0.0, -m.parameters))

    first = next(method for method in methods if method.name == reference)
    fit_to_ship = {method.name for method in methods if (method.mean("drift") or 0.0) <= max_drift}
    over_base = [name for name in fit_to_ship if gain[name, BASE]]
    over_both = [name for name in over_base if name != reference and gain[name, reference]]
    if over_both:
        chosen = best(over_both)
        delta = gain[chosen.name, reference]
        assert delta is not None
        return _Choice(
            chosen.name,
            f"On your documents {_sized(chosen)} is better than {first.label} by {_by(delta)}. "
            f"Train it with {train(chosen)}.",
        )
    told = [d for d in deltas if d.against == reference and d.p is not None and d.p < level]
    better = [d for d in told if d.interval.delta > 0]
    none = f"No method can be told from {first.label}" if not told else f"No method is better than {first.label}"
    if better:
        names = ", ".join(dict.fromkeys(_named(methods, d.system) for d in better))
        none = f"{names} gained on {first.label}, but cannot be relied on beside the untuned model"
    if reference in over_base:
        delta = gain[reference, BASE]
        assert delta is not None
        return _Choice(
            reference,
            f"{none} on your documents, and {first.label} is better than the untuned model by "
            f"{_by(delta)}. Train it with {train(first)}.",
        )
    if over_base:
        chosen = best(over_base)
        delta = gain[chosen.name, BASE]
        assert delta is not None
        return _Choice(
            chosen.name,
            f"{none} on your documents, but {_sized(chosen)} is better than the untuned model by "
            f"{_by(delta)}, which {first.label} is not beyond doubt. Train it with {train(chosen)}.",
        )
    return _Choice(
        "",
        f"{none}, and none is better than the untuned model on your documents: keep it as it is (--method none). "
        "More labelled questions (--queries) would tell smaller differences.",
    )


def _proved(of: Mapping[tuple[str, str, str], Delta], name: str, against: str, level: float) -> Delta | None:
    """The difference that proves a method better; None where none does."""
    search, dense = of[name, against, SEARCH], of[name, against, DENSE]
    for delta in (search, dense):
        if delta.p is not None and delta.p < level and delta.interval.delta > 0:
            return None if delta is dense and search.interval.lost else delta
    return None


def _by(delta: Delta) -> str:
    found = delta.interval
    corrected = f", p = {delta.p:.2g} after Holm's correction" if delta.p is not None else ""
    return (
        f"{score(found.delta)} nDCG@10 in {_KINDS[delta.metric]} "
        f"({found.confidence:.0%} interval {signed(found.low)} to {signed(found.high)}{corrected})"
    )


def _sized(method: MethodMeasured) -> str:
    return f"{method.label} at {percent_of(method.share)} of the parameters"


def percent_of(share: float) -> str:
    """A share of the parameters as a percentage, with two digits that count."""
    return f"{float(f'{100 * share:.2g}'):g}%"


def _command(method: MethodMeasured, settings: Sequence[str] = (), epoch: int | None = None) -> str:
    name, *own = method.name.split(":")
    sizes = [f"{option}={value}" for option, value in method.options.items()]
    every = [*settings, *(f"adapter.{setting}" for setting in (*own, *sizes))]
    if epoch is not None:
        every += [f"training.epochs={method.steps // epoch + 2}", f"training.max_steps={method.steps}"]
    return f"--method {name}{''.join(f' --set {setting}' for setting in every)} --lr {method.rate:g}"


def _named(methods: Sequence[MethodMeasured], name: str) -> str:
    return next(method.label for method in methods if method.name == name)


# For a terminal


def method_rows(found: MethodsCompared, delta: Callable[[str, str, str], Interval | None]) -> list[list[str]]:
    """The table of the methods as cells, its header first. delta: the paired interval of (method, against, metric)."""
    header = ["method", "trained", "share", "rate", "steps", "time", "memory", "default search, against base"]
    label = next(method.label for method in found.measured if method.name == found.reference)
    rows = [[*header, f"against {label}"]]
    for method in found.measured:
        memory, seconds = method.mean("peak_memory_bytes"), method.mean("seconds")
        rows.append(
            [
                ("* " if method.name == found.ships else "  ") + method.label,
                f"{method.parameters:,}",
                percent_of(method.share) + ("" if method.meets in (True, None) else " !"),
                f"{method.rate:g}",
                str(method.steps),
                "-" if seconds is None else duration(seconds),
                "-" if memory is None else size(round(memory)),
                _spelled(delta(method.name, BASE, SEARCH)),
                _spelled(delta(method.name, found.reference, SEARCH)),
            ]
        )
    return rows


def _spelled(found: Interval | None) -> str:
    return "" if found is None else f"{signed(found.delta)} [{signed(found.low)}, {signed(found.high)}]"
