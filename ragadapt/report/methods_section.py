"""The section of the page that sets methods of training side by side."""

from __future__ import annotations

from statistics import fmean

from markupsafe import Markup

from ragadapt.report import charts
from ragadapt.report.elements import figure, label_of_system, table
from ragadapt.report.markup import tag
from ragadapt.report.methods import BASE, DENSE, SEARCH, percent_of
from ragadapt.report.values import Delta, MethodMeasured, MethodsCompared, Report
from ragadapt.report.words import count, duration, score, size

_KINDS = {SEARCH: "Default search", DENSE: "Dense search"}


def methods_section(report: Report) -> Markup | None:
    """None where the report compares none."""
    found = report.methods
    if found is None:
        return None
    first = next(method for method in found.measured if method.name == found.reference)
    missed = [method.label for method in found.measured if method.meets is False]
    edges = [method.label for method in found.measured if method.at_the_edge]
    return tag(
        "div",
        tag("p", f"All alike: {found.alike}."),
        tag("p", tag("strong", "Not within 15% of the budget: "), f"{', '.join(missed)}. No size of theirs is nearer.")
        if missed
        else None,
        tag(
            "p",
            tag("strong", "Best at the lowest or highest learning rate that was tried: "),
            f"{', '.join(edges)}. A further one may be better; more rates (--rates) go further.",
        )
        if edges
        else None,
        tag(
            "div",
            [
                figure(
                    charts.interval_chart(
                        [
                            charts.ChartRow(label_of_system(report, d.system), *_bounds(d), _mark_corrected(d))
                            for d in report.deltas
                            if (d.against, d.metric) == (against, metric)
                        ],
                        title=f"{_KINDS[metric]}: difference from {label}",
                        axis="Δ nDCG@10",
                        zero=True,
                        signed=True,
                    ),
                    "Coloured: a difference that stands after the correction for several comparisons.",
                    title=f"{_KINDS[metric]}, against {label}",
                )
                for against, label in ((BASE, "the untuned model"), (found.reference, first.label))
                for metric in (SEARCH, DENSE)
            ],
            cls="pair",
        ),
        tag("h3", "What they cost"),
        _method_table(found),
        tag("h3", "How they learn"),
        tag(
            "p",
            "Quality on the dev questions while learning, mean of the seeds; the band reaches from the lowest to the "
            "highest. Every method has its own learning rate, chosen on the same questions.",
            cls="small",
        ),
        tag("div", [_learning_figure(method, first) for method in found.measured], cls="pair"),
        table(
            ["method", "mean over the run", "steps to 90% of its gain", "best step", "between seeds"],
            [
                [
                    method.label,
                    score(method.mean("area") or 0.0),
                    "–" if (steps := method.mean("steps_to_gain")) is None else f"{steps:.0f}",
                    f"{method.mean('best_step') or 0:.0f}",
                    "–" if (spread := method.spread("search")) is None else f"± {score(spread)}",
                ]
                for method in found.measured
            ],
            caption="Learning curves in figures. Mean over the run: the area under the curve. Between seeds: standard "
            "deviation of the default search's nDCG@10.",
            numeric=range(1, 5),
            sort_values=[
                [m.label, m.mean("area"), m.mean("steps_to_gain"), m.mean("best_step"), m.spread("search")]
                for m in found.measured
            ],
        ),
        _rates(found),
        [
            tag("h3", "Left out"),
            table(
                ["method", "why"],
                [[each.source, each.reason] for each in found.left_out],
                caption="Methods that did not take part.",
                sort_values=[[each.source, each.reason] for each in found.left_out],
            ),
        ]
        if found.left_out
        else None,
    )


def _bounds(delta: Delta) -> tuple[float, float, float]:
    return delta.interval.delta, delta.interval.low, delta.interval.high


def _mark_corrected(delta: Delta) -> str:
    found = delta.interval
    if delta.p is None or delta.p >= 1 - found.confidence:
        return ""
    return "good" if found.delta > 0 else "bad"


def _method_table(found: MethodsCompared) -> Markup:
    rows, values = [], []
    for method in found.measured:
        seconds, memory, drift = (method.mean(name) for name in ("seconds", "peak_memory_bytes", "drift"))
        options = ", ".join(f"{name} {value}" for name, value in method.options.items())
        rows.append(
            [
                [
                    method.label,
                    tag("span", "ships", cls="chip strong") if method.name == found.ships else None,
                    tag("small", options, cls="note") if options else None,
                ],
                count(method.parameters),
                percent_of(method.share),
                f"{method.rate:g}",
                count(method.steps),
                duration(seconds or 0.0),
                size(round(memory)) if memory is not None else "–",
                score(drift or 0.0),
            ]
        )
        values.append(
            [method.label, method.parameters, method.share, method.rate, method.steps, seconds, memory, drift]
        )
    return table(
        ["method", "parameters", "share", "learning rate", "steps", "training", "peak memory", "drift"],
        rows,
        caption="Means over the seeds. Training: the steps alone. Drift: 1 − cosine by which ordinary passages moved.",
        numeric=range(1, 8),
        sort_values=values,
    )


def _learning_figure(method: MethodMeasured, first: MethodMeasured) -> Markup | None:
    shown = [method] if method is first else [method, first]
    return figure(
        charts.line_chart(
            [_seeds(each) for each in shown],
            title=f"Learning curve of {method.label}",
            x_label="step",
            y_label="nDCG@10, dev",
        ),
        title=method.label,
    )


def _seeds(method: MethodMeasured) -> charts.Series:
    """The mean over the seeds at every step at which all were looked at."""
    curves = [{point.x: point.y for point in run.curve} for run in method.runs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    rows = [[curve[step] for curve in curves] for step in steps]
    several = len(curves) > 1
    return charts.Series(
        method.label,
        steps,
        [fmean(row) for row in rows],
        [min(row) for row in rows] if several else (),
        [max(row) for row in rows] if several else (),
    )


def _rates(found: MethodsCompared) -> Markup | None:
    tried = [(method, point) for method in found.measured for point in method.rates]
    if len(tried) <= len(found.measured):
        return None
    return tag(
        "details",
        tag("summary", "learning rates tried"),
        table(
            ["method", "learning rate", "best on the dev questions", "taken"],
            [
                [
                    method.label,
                    f"{point.x:g}",
                    score(point.y) if point.y >= 0 else "diverged",
                    "✓" if point.x == method.rate else "",
                ]
                for method, point in tried
            ],
            caption="As many for every method; the walk goes where the dev questions get better.",
            numeric=(1, 2),
            sort_values=[[method.label, point.x, point.y, point.x == method.rate] for method, point in tried],
        ),
        cls="plain",
    )
