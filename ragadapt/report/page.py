"""The report as one HTML page that needs nothing else: no network, no framework, readable without JavaScript.

Texts from the corpus are untrusted. All markup is made by `tag`, which escapes; beyond that the page carries a
content security policy that admits only its own style sheet and script, by hash, so that nothing else can run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from importlib import resources
from typing import Any

from markupsafe import Markup

from ragadapt.report import charts
from ragadapt.report.elements import checklist, figure, label_of_system, more, table, tiles
from ragadapt.report.markup import Child, tag
from ragadapt.report.methods_section import methods_section
from ragadapt.report.questions_section import questions_section
from ragadapt.report.sweep_section import sweep_section
from ragadapt.report.values import (
    Comparison,
    Curve,
    Delta,
    Measure,
    MeasuredSystem,
    Passage,
    QueryComparison,
    QueryResult,
    Report,
)
from ragadapt.report.words import (
    EVIDENCE,
    KINDS,
    METRICS,
    cautions,
    count,
    duration,
    headline,
    percent,
    score,
    signed,
    size,
)

LISTED = 300
"""Queries and skipped files shown at most on the page; report.json has all of them."""
CLIP = 600
"""Characters of a passage shown at most."""

_LOOKS = {
    "WIN": ("win", "✓"), "LIKELY GAIN": ("win", "≈"), "NO GAIN": ("same", "="), "REGRESSION AVOIDED": ("avoided", "!"),
}  # fmt: skip


def page(report: Report) -> str:
    """The whole document."""
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    made = (
        ("quality", "Quality", _quality(report)),
        ("methods", "Methods", methods_section(report)),
        ("choices", "Choices", sweep_section(report)),
        ("decision", "Decision", _decision(report)),
        ("each", "Every question", questions_section(report)),
        ("questions", "Wins and losses", _questions(report)),
        ("failures", "What still fails", _failures(report)),
        ("training", "Training" if report.learning or report.checks else "Scores", _training(report)),
        ("tuning", "Tuning", _tuning(report)),
        ("data", "Data", _data(report)),
        ("time", "Time", _time(report)),
        ("details", "How it was made", _details(report)),
    )
    sections = [(id, name, body) for id, name, body in made if body]
    document = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=policy),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("meta", name="referrer", content="no-referrer"),
            tag("title", report.title),
            tag("style", Markup(style)),
        ),
        tag(
            "body",
            tag("a", "Skip to the figures", href="#main", cls="skip"),
            _header(report),
            tag(
                "nav",
                tag("ul", [tag("li", tag("a", name, href=f"#{id}")) for id, name, _ in sections]),
                aria_label="Sections",
            )
            if len(sections) > 1
            else None,
            tag(
                "main",
                [
                    tag("section", tag("h2", name, id=f"{id}-title"), body, id=id, aria_labelledby=f"{id}-title")
                    for id, name, body in sections
                ],
                id="main",
            ),
            _footer(report),
            tag("script", Markup(script)),
        ),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{document}\n"


# the parts, top to bottom


def _header(report: Report) -> Markup:
    verdict = report.verdict
    look, sign = _LOOKS[verdict.outcome] if verdict else ("none", "–")
    if (report.methods is not None and report.methods.ships) or report.swept is not None:
        look = "win"
    about = " · ".join(part for part in (report.base_model, _when(report.created)) if part)
    return tag(
        "header",
        tag("p", "ragadapt", tag("span", "report"), cls="brand"),
        tag("h1", report.title),
        tag("p", about, cls="about") if about else None,
        tag(
            "div",
            tag("p", tag("span", sign, aria_hidden="true"), verdict.outcome, cls="badge") if verdict else None,
            tag("p", headline(report), cls="headline"),
            tiles(_key_figures(report)),
            cls=f"verdict {look}",
        ),
        [tag("p", tag("strong", "Note. "), text, cls="caution") for text in cautions(report)],
    )


def _key_figures(report: Report) -> list[tuple[str, Child, Child]]:
    """(name, value, small print) of what matters most."""
    figures: list[tuple[str, Child, Child]] = []
    shipped, base = report.shipped, report.system("base-dense")
    measure = shipped.metrics.get(report.metric) if shipped else None
    if shipped and measure:
        before = base.metrics.get(report.metric) if base and base is not shipped else None
        figures.append(
            (
                f"{report.metric}, {_of_chosen(report)}",
                score(measure.value),
                f"untuned model: {score(before.value)}" if before else METRICS.get(report.metric),
            )
        )
    others = [d for d in report.deltas if shipped and d.system == shipped.name and d.metric == report.metric]
    for delta in others[:3]:
        found = delta.interval
        figures.append(
            (
                f"against {label_of_system(report, delta.against)}",
                tag("span", signed(found.delta), cls="good" if found.better else "bad" if found.worse else ""),
                f"{found.confidence:.0%} interval: {signed(found.low)} to {signed(found.high)}",
            )
        )
    if report.evidence is not None:
        figures.append(
            (
                "judged by",
                [count(report.evidence.queries), tag("small", " questions")],
                EVIDENCE.get(report.evidence.tier, report.evidence.tier),
            )
        )
    return figures


def _quality(report: Report) -> Markup | None:
    systems = [system for system in report.systems if system.metrics]
    if not systems:
        return None
    rows = [
        charts.ChartRow(system.label, m.value, m.low, m.high, "strong" if system.shipped else "")
        for system in systems
        if (m := system.metrics.get(report.metric)) is not None
    ]
    metrics = list(dict.fromkeys(name for system in systems for name in system.metrics))
    metrics.sort(key=lambda name: name != report.metric)
    best = {name: max(system.metrics[name].value for system in systems if name in system.metrics) for name in metrics}
    return tag(
        "div",
        tag(
            "div",
            figure(
                charts.interval_chart(rows, title=f"{report.metric} by system", axis=report.metric),
                f"The diamond is {_of_chosen(report)}. Bars are bootstrap intervals over the questions.",
                title=f"{report.metric} of every system",
            ),
            _change_figure(report) if report.methods is None and report.swept is None else None,  # there each has one
            cls="pair",
        ),
        table(
            ["system", *metrics],
            [
                [
                    [
                        system.label,
                        tag("span", "take this" if report.swept else "ships", cls="chip strong")
                        if system.shipped
                        else None,
                        tag("small", system.note, cls="note") if system.note else None,
                    ],
                    *(_measure_cell(system.metrics.get(name), best[name]) for name in metrics),
                ]
                for system in systems
            ],
            caption="All systems, all metrics; the best value of a column is bold.",
            sort_values=[[system.label, *(_value_of(system, name) for name in metrics)] for system in systems],
        ),
        tag(
            "dl",
            [[tag("dt", name), tag("dd", METRICS[name])] for name in metrics if name in METRICS],
            cls="legend",
        ),
    )


def _change_figure(report: Report) -> Markup | None:
    shipped = report.shipped
    system = shipped.name if shipped else (report.deltas[0].system if report.deltas else "")
    mine = [d for d in report.deltas if d.system == system and d.metric == report.metric]
    if not mine:
        return None
    rows = [
        charts.ChartRow(label_of_system(report, d.against), d.interval.delta, d.interval.low, d.interval.high, _mark(d))
        for d in mine
    ]
    return figure(
        charts.interval_chart(
            rows,
            title=f"Difference of {label_of_system(report, system)} from each baseline",
            axis=f"Δ {report.metric}",
            zero=True,
            signed=True,
        ),
        f"{_first_upper(label_of_system(report, system))} minus each baseline, question by question. "
        "A bar that stays right of 0 is a gain that can be relied on.",
        title="Difference from each baseline",
    )


def _decision(report: Report) -> Markup | None:
    verdict = report.verdict
    steps = verdict.steps if verdict else ()
    reasons = verdict.reasons if verdict else ()
    if not (steps or reasons or report.evidence or report.deltas):
        return None
    evidence = report.evidence
    corrected = any(delta.p is not None for delta in report.deltas)
    return tag(
        "div",
        tag("ul", [tag("li", reason) for reason in reasons], cls="reasons") if reasons else None,
        tag(
            "p",
            tag("strong", "Evidence: "),
            f"{count(evidence.queries)} questions",
            f" about {count(evidence.documents)} documents" if evidence.documents is not None else None,
            f", {EVIDENCE.get(evidence.tier, evidence.tier)}. ",
            evidence.note,
        )
        if evidence
        else None,
        checklist((step.name, step.passed, step.detail) for step in steps) if steps else None,
        table(
            ["system", "against", "metric", "Δ", "interval", "better in", "p", "questions"],
            [
                [
                    label_of_system(report, d.system),
                    label_of_system(report, d.against),
                    d.metric,
                    tag("span", signed(d.interval.delta), cls=_mark(d)),
                    f"{signed(d.interval.low)} … {signed(d.interval.high)}",
                    "–" if d.interval.p_better is None else percent(d.interval.p_better),
                    "–" if d.p is None else f"{d.p:.2g}",
                    count(d.interval.n),
                ]
                for d in report.deltas
            ],
            caption="Paired differences. “Better in”: share of bootstrap resamples with a positive difference."
            + (" p: of no difference, corrected for all comparisons with the same system (Holm)." if corrected else ""),
            numeric=range(3, 8),
            sort_values=[
                [
                    label_of_system(report, d.system),
                    label_of_system(report, d.against),
                    d.metric,
                    d.interval.delta,
                    d.interval.low,
                    d.interval.p_better,
                    d.p,
                    d.interval.n,
                ]
                for d in report.deltas
            ],
        )
        if report.deltas
        else None,
    )


def _questions(report: Report) -> Markup | None:
    comparison = report.comparison
    if comparison is None or not comparison.changes:
        return None
    same = len(comparison.changes) - comparison.wins - comparison.losses
    shown = comparison.queries[:LISTED]
    return tag(
        "div",
        tag(
            "div",
            figure(
                charts.change_chart(
                    comparison.changes, title="Change of every question", y_label=f"Δ {comparison.metric}"
                ),
                "Each thin bar is one question: up is better, down is worse.",
            ),
            tag(
                "div",
                tag("p", f"{_first_upper(comparison.after)} against {comparison.before}, question by question."),
                tiles(
                    [
                        ("better", tag("span", count(comparison.wins), cls="good"), None),
                        ("worse", tag("span", count(comparison.losses), cls="bad"), None),
                        ("unchanged", count(same), None),
                    ]
                ),
            ),
            cls="pair",
        ),
        tag(
            "div",
            tag("label", "Find ", tag("input", type="search", data_find="question-list", placeholder="words")),
            tag(
                "label",
                "Show ",
                tag(
                    "select",
                    tag("option", "all", value=""),
                    tag("option", "better", value="good"),
                    tag("option", "worse", value="bad"),
                    data_show="question-list",
                ),
            ),
            tag(
                "label",
                "Sort ",
                tag(
                    "select",
                    tag("option", "largest gain first", value="down"),
                    tag("option", "largest loss first", value="up"),
                    data_sort="question-list",
                ),
            ),
            tag("output", data_count="question-list", aria_live="polite"),
            cls="controls",
            hidden=True,
        )
        if len(shown) > 1
        else None,
        tag("div", [_query(each, comparison) for each in shown], cls="queries", id="question-list"),
        tag("button", "Show all", type="button", cls="more", data_more="question-list", hidden=True),
        more(len(shown), len(comparison.changes) - same, "changed questions"),
    )


def _query(each: QueryComparison, comparison: Comparison | None) -> Markup:
    before, after = (comparison.before, comparison.after) if comparison else ("before", "now")
    mark = "good" if each.change > 1e-9 else "bad" if each.change < -1e-9 else "even"
    arrow, word = {"good": ("▲", "better"), "bad": ("▼", "worse"), "even": ("=", "unchanged")}[mark]
    chip = f" {signed(each.change)}" if mark != "even" else " same"
    return tag(
        "details",
        tag(
            "summary",
            tag("span", tag("span", arrow, aria_hidden="true"), chip, cls=f"chip {mark}", title=word),
            tag("span", each.query, cls="query-text", dir="auto"),
            tag("span", _ranks(each), cls="ranks"),
        ),
        tag(
            "div",
            _passage("Expected", each.expected),
            _passage(f"First, {before}", each.before.first, each.expected, each.before),
            _passage(f"First, {after}", each.after.first, each.expected, each.after),
            cls="passages",
        ),
        tag("p", f"query {each.id}", f" · {KINDS.get(each.kind, each.kind)}" if each.kind else None, cls="small"),
        cls="query",
        data_change=f"{each.change:.6f}",
        data_mark=mark,
    )


def _passage(
    name: str, passage: Passage | None, expected: Passage | None = None, ranking: QueryResult | None = None
) -> Markup:
    value = f"{score(ranking.value)}" if ranking is not None and ranking.value is not None else None
    heading = (
        tag("h3", name, tag("span", value, cls="value", title="value of the metric") if value else None)
        if name
        else None
    )
    if passage is None:
        return tag("div", heading, tag("p", "nothing found", cls="small"), cls="passage")
    if expected is not None and passage.id == expected.id:
        return tag("div", heading, tag("p", "✓ the expected passage", cls="good"), cls="passage")
    where = " › ".join(part for part in (passage.source, passage.heading) if part) or passage.id
    text = passage.text if len(passage.text) <= CLIP else passage.text[:CLIP].rstrip() + " …"
    return tag(
        "div",
        heading,
        tag("p", where, cls="small where", dir="auto"),
        tag("p", text, cls="text", dir="auto"),
        cls="passage",
    )


def _failures(report: Report) -> Markup | None:
    failures = report.failures
    if failures is None or not (failures.worst or failures.never_retrieved):
        return None
    never = failures.never_retrieved
    return tag(
        "div",
        [
            tag("h3", "Questions it answers worst"),
            tag("p", "Look here for questions that the documents do not answer, and for wrong labels.", cls="small"),
            tag("div", [_query(each, report.comparison) for each in failures.worst[:LISTED]], cls="queries"),
        ]
        if failures.worst
        else None,
        [
            tag("h3", "Passages that never come up"),
            tag(
                "p",
                f"{count(never.count)} of {count(never.of)} passages ({percent(never.count / max(never.of, 1))}) "
                f"are never among the first {never.k} results for any of the {count(never.queries)} questions. "
                "That is normal where questions are few; boilerplate and empty pages are worth removing.",
            ),
            tag(
                "details",
                tag("summary", f"{len(never.examples)} of them"),
                tag("div", [_passage("", each) for each in never.examples], cls="passages"),
                cls="plain",
            )
            if never.examples
            else None,
        ]
        if never
        else None,
    )


def _training(report: Report) -> Markup | None:
    losses = [(p.step, p.loss) for p in report.learning if p.loss is not None]
    devs = [(p.step, p.dev) for p in report.learning if p.dev is not None]
    figures: list[Child] = []
    for points, name, title, note in (
        (losses, "loss", "Loss while learning", "Loss on the training questions: lower is better."),
        (
            devs,
            report.metric,
            "Quality while learning",
            "Quality on the dev questions, which decide when to stop: higher is better.",
        ),
    ):
        if points:
            series = charts.Series(name, [step for step, _ in points], [value for _, value in points])
            figures.append(
                figure(
                    charts.line_chart([series], title="Learning curve", x_label="step", y_label=name),
                    note,
                    title=title,
                )
            )
    if report.distributions is not None:
        compared = report.distributions.after is not None
        title = "Scores before training" if compared else "Scores of the base model"
        figures.append(
            figure(
                charts.histogram_chart(report.distributions.before, title=title, x_label="similarity"),
                "Similarity of each question with the passages that answer it and with the best of the others, by "
                "the base model: the further apart, the easier the choice.",
                title="Scores before" if compared else "Scores",
            )
        )
        if report.distributions.after is not None:
            figures.append(
                figure(
                    charts.histogram_chart(
                        report.distributions.after, title="Scores after training", x_label="similarity"
                    ),
                    "The same after training.",
                    title="Scores after",
                )
            )
    if not (figures or report.checks):
        return None
    return tag(
        "div",
        tag("div", figures, cls="pair") if figures else None,
        [
            tag("h3", "Proof that the adapter works"),
            checklist((check.name, check.passed, check.detail) for check in report.checks),
        ]
        if report.checks
        else None,
    )


def _tuning(report: Report) -> Markup | None:
    curves = []
    if report.interpolation is not None:
        curves.append(_named(report.interpolation, "Between base and adapted model", "share of the adapted weights, t"))
    if report.fusion is not None:
        curves.append(_named(report.fusion, "Mixing meaning and words", "share of the dense score"))
    curves.extend(report.curves)
    figures = [figure(curve_chart(curve), curve.note, title=curve.title) for curve in curves if curve.points]
    return tag("div", figures, cls="pair") if figures else None


def curve_chart(curve: Curve) -> Markup:
    """A Curve drawn: its band where every point has an interval, the x that ships, the levels to compare with."""
    spread = [p for p in curve.points if p.low is not None and p.high is not None]
    whole = len(spread) == len(curve.points)
    return charts.line_chart(
        [
            charts.Series(
                curve.y_label,
                [p.x for p in curve.points],
                [p.y for p in curve.points],
                [p.low for p in spread if p.low is not None] if whole else (),
                [p.high for p in spread if p.high is not None] if whole else (),
            )
        ],
        title=curve.title or curve.y_label,
        x_label=curve.x_label,
        y_label=curve.y_label,
        chosen=curve.chosen,
        levels=curve.levels,
    )


def _data(report: Report) -> Markup | None:
    corpus, split = report.corpus, report.split
    if not (corpus or split or report.queries):
        return None
    figures: list[tuple[str, Child, Child]] = []
    if corpus:
        figures.append(("documents", count(corpus.documents), None))
        figures.append(("passages", count(corpus.chunks), None))
        if corpus.tokens is not None:
            each = f"{corpus.tokens / max(corpus.chunks, 1):.0f} per passage"
            figures.append(("tokens", count(corpus.tokens), each))
        if corpus.near_duplicates is not None:
            figures.append(("near-duplicates", count(corpus.near_duplicates), None))
    if split:
        parts = (("train", split.train), ("dev", split.dev), ("held out", split.heldout))
        for name, number in parts:
            documents = split.documents.get(name.replace(" ", ""))
            figures.append(
                (
                    f"questions, {name}",
                    count(number),
                    f"{count(documents)} documents" if documents is not None else None,
                )
            )
        figures.append(
            (
                "leaked",
                tag("span", count(split.leaked), cls="good" if split.leaked == 0 else "bad"),
                "held-out texts also in training",
            )
        )
        if split.negatives is not None and split.heldout_negatives is not None:
            figures.append(
                (
                    "held-out answers as negatives",
                    count(split.heldout_negatives),
                    f"of {count(split.negatives)} mined; pushed away, not taught",
                )
            )
    skipped = corpus.skipped if corpus else ()
    total = (corpus.skipped_total if corpus else None) or len(skipped)
    return tag(
        "div",
        tiles(figures),
        [
            tag("h3", "Training questions by kind"),
            table(
                ["kind", "evidence", "made", "kept", "dropped because", "example"],
                [
                    [
                        KINDS.get(each.kind, each.kind),
                        each.evidence,
                        count(each.made),
                        count(each.kept),
                        ", ".join(f"{reason} {count(n)}" for reason, n in each.dropped.items()) or "–",
                        tag("span", each.example, dir="auto") if each.example else "–",
                    ]
                    for each in report.queries
                ],
                caption="Where training questions come from.",
                numeric=(2, 3),
                sort_values=[
                    [KINDS.get(q.kind, q.kind), q.evidence, q.made, q.kept, sum(q.dropped.values()), q.example]
                    for q in report.queries
                ],
            ),
        ]
        if report.queries
        else None,
        [
            tag("h3", f"{count(total)} skipped" if total else "Nothing was skipped"),
            tag(
                "details",
                tag("summary", "files and reasons"),
                table(
                    ["file", "reason"],
                    [[each.source, each.reason] for each in skipped[:LISTED]],
                    caption="Not read.",
                    sort_values=[[each.source, each.reason] for each in skipped[:LISTED]],
                ),
                more(min(len(skipped), LISTED), total, "skipped files"),
                cls="plain",
            )
            if skipped
            else None,
            tag(
                "details",
                tag("summary", "left out on purpose of files that were read"),
                table(
                    ["file", "what"],
                    [[each.source, each.reason] for each in corpus.notes[:LISTED]],
                    caption="Read, but for this.",
                    sort_values=[[each.source, each.reason] for each in corpus.notes[:LISTED]],
                ),
                more(min(len(corpus.notes), LISTED), corpus.notes_total or len(corpus.notes), "notes"),
                cls="plain",
            )
            if corpus.notes
            else None,
        ]
        if corpus
        else None,
    )


def _time(report: Report) -> Markup | None:
    timings = report.timings
    if not timings:
        return None
    rows = []
    for each in timings:
        rate = ""
        if each.items and each.seconds > 0:
            per_second = each.items / each.seconds
            rate = f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.1f}"
            rate = f"{rate} {each.unit or 'items'}/s"
        rows.append(
            [
                each.stage,
                duration(each.seconds),
                count(each.items) + (f" {each.unit}" if each.unit else "") if each.items is not None else "–",
                rate or "–",
                size(each.peak_memory_bytes) if each.peak_memory_bytes is not None else "–",
            ]
        )
    return tag(
        "div",
        tag("p", f"{duration(sum(each.seconds for each in timings))} in all."),
        figure(
            charts.bar_chart(
                [(each.stage, each.seconds, duration(each.seconds)) for each in timings], title="Time by stage"
            )
        ),
        table(
            ["stage", "time", "worked on", "rate", "peak memory"],
            rows,
            caption="Time and memory by stage.",
            numeric=range(1, 5),
            sort_values=[
                [
                    t.stage,
                    t.seconds,
                    t.items,
                    t.items / t.seconds if t.items and t.seconds else None,
                    t.peak_memory_bytes,
                ]
                for t in timings
            ],
        ),
        _work(report),
    )


def _work(report: Report) -> list[Child]:
    """What a profile saw: time by kind of work, and which stage spent it on what."""
    works = [(timing.stage, each) for timing in report.timings for each in timing.work]
    if not works:
        return []
    totals: dict[str, list[float]] = {}
    for _, each in works:
        sums = totals.setdefault(each.kind, [0.0, 0, 0, 0.0])
        for place, value in enumerate((each.seconds, each.calls, each.items, each.beside_seconds)):
            sums[place] += value
    ordered = sorted(totals.items(), key=lambda pair: (-pair[1][0], -pair[1][3]))
    rows = [
        (kind, "all stages", *(seconds, int(calls), int(items), beside))
        for kind, (seconds, calls, items, beside) in ordered
    ]
    rows += [(each.kind, stage, each.seconds, each.calls, each.items, each.beside_seconds) for stage, each in works]
    return [
        tag("h3", "By kind of work"),
        tag(
            "p",
            "Until this report was written. Beside: what another thread did meanwhile, such as tokenising the next "
            "batch; it cost no time of its own.",
        ),
        figure(
            charts.bar_chart(
                [(kind, sums[0], duration(sums[0])) for kind, sums in ordered if sums[0] > 0],
                title="Time by kind of work",
            )
        ),
        table(
            ["work", "stage", "time", "calls", "items", "beside"],
            [
                [kind, stage, duration(seconds), count(calls), count(items), duration(beside) if beside else "–"]
                for kind, stage, seconds, calls, items, beside in rows
            ],
            caption="Time by kind of work and stage.",
            numeric=range(2, 6),
            sort_values=[list(row) for row in rows],
        ),
    ]


def _details(report: Report) -> Markup | None:
    blocks: list[Child] = []
    if report.licences:
        blocks.append(tag("h3", "Licences"))
        blocks.append(
            table(
                ["what", "licence", "source"],
                [[each.what, each.licence, each.source] for each in report.licences],
                caption="Terms of what went in.",
            )
        )
    pairs: list[tuple[str, Mapping[str, Any]]] = [
        ("Seeds", report.seeds),
        ("Library versions", report.versions),
        ("Machine", report.machine),
        ("Configuration", _flat(report.configuration)),
    ]
    for name, values in pairs:
        if values:
            blocks.append(
                tag(
                    "details",
                    tag("summary", f"{name} ({len(values)})"),
                    table(
                        ["name", "value"],
                        [[tag("code", key), tag("code", _plain(value))] for key, value in values.items()],
                        caption=name,
                        sort_values=[[key, _plain(value)] for key, value in values.items()],
                    ),
                    cls="plain",
                )
            )
    return tag("div", blocks) if blocks else None


def _footer(report: Report) -> Markup:
    version = report.versions.get("ragadapt", "")
    return tag(
        "footer",
        tag("p", f"Written by ragadapt {version}. ".replace(" .", "."), "The same figures stand in report.json."),
    )


# small pieces


def _of_chosen(report: Report) -> str:
    """What the marked system is."""
    return "what ships" if report.swept is None else "the choice to take"


def _measure_cell(measure: Measure | None, best: float) -> Child:
    if measure is None:
        return "–"
    value = tag("strong", score(measure.value)) if measure.value >= best - 1e-12 else score(measure.value)
    if measure.low is None or measure.high is None:
        return value
    return [value, tag("small", f"{score(measure.low)}–{score(measure.high)}", cls="note")]


def _value_of(system: MeasuredSystem, metric: str) -> float | None:
    measure = system.metrics.get(metric)
    return None if measure is None else measure.value


def _mark(delta: Delta) -> str:
    return "good" if delta.interval.better else "bad" if delta.interval.worse else ""


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _named(curve: Curve, title: str, x_label: str) -> Curve:
    return curve.model_copy(update={"title": curve.title or title, "x_label": curve.x_label or x_label})


def _when(created: str) -> str:
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = f" {moment.tzname()}" if moment.tzinfo else ""
    return f"{moment.day} {moment:%B %Y, %H:%M}{zone}"


def _ranks(each: QueryComparison) -> str:
    before, after = each.before.rank, each.after.rank
    if before is None and after is None:
        return "not found"
    return f"rank {before or 'not found'} → {after or 'not found'}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=True, default=str)


def _asset(name: str) -> str:
    # Browsers hash the text with line feeds, whatever the checkout made of them.
    text = (resources.files(__package__) / name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
