"""A report, or a part of it, as a piece of HTML for a notebook: plain tables that need no style sheet of ours."""

from __future__ import annotations

from collections.abc import Sequence

from ragadapt.notebook import html_table, html_text
from ragadapt.report.elements import label_of_system
from ragadapt.report.methods import method_rows
from ragadapt.report.questions_section import meaning
from ragadapt.report.sweep_section import sweep_rows
from ragadapt.report.values import Comparison, QueryResult, QuestionsJudged, Report
from ragadapt.report.words import cautions, count, headline, score, signed

LISTED = 50  # questions


def report_fragment(report: Report) -> str:
    """The headline, the systems, the differences and what else the report compares; warnings last."""
    pieces = [f"<p><strong>{html_text(report.title)}.</strong> {html_text(headline(report), 1000)}</p>"]
    if report.swept is not None:
        head, *rows = sweep_rows(report.swept, report.metric)
        pieces.append(html_table(head, rows, "* the cheapest that cannot be told from the best"))
    elif report.systems:
        pieces += [_systems(report), _differences(report)]
    if report.methods is not None:
        head, *rows = method_rows(report.methods, report.delta)
        pieces.append(html_table(head, rows, f"All alike: {report.methods.alike}."))
    if report.judged is not None:
        pieces.append(questions_fragment(report.judged))
    pieces += [f"<p>{html_text(text, 1000)}</p>" for text in cautions(report)]
    return f"<div>{''.join(pieces)}</div>"


def comparison_fragment(comparison: Comparison) -> str:
    """How many questions got better and worse, and those that changed most."""
    same = len(comparison.changes) - comparison.wins - comparison.losses
    rows = [
        [signed(each.change), each.query, _rank(each.before), _rank(each.after)] for each in comparison.queries[:LISTED]
    ]
    told = (
        f"{comparison.after} against {comparison.before}, {comparison.metric}: {count(comparison.wins)} better, "
        f"{count(comparison.losses)} worse, {count(same)} unchanged"
    )
    return html_table(["change", "question", f"rank, {comparison.before}", f"rank, {comparison.after}"], rows, told)


def questions_fragment(judged: QuestionsJudged) -> str:
    """The reasons, and the questions that were missed."""
    missed = [each for each in judged.questions if each.missed or each.partly]
    reasons = [[meaning(reason), str(number)] for reason, number in judged.reasons.items()]
    rows = [
        ["missed" if each.missed else "partly", each.query, meaning(each.missed) if each.missed else "", each.why]
        for each in missed[:LISTED]
    ]
    pieces = []
    if reasons:
        pieces.append(html_table(["why missed", "questions"], reasons))
    if rows:
        more = f", the first {LISTED}" if len(missed) > LISTED else ""
        pieces.append(html_table(["", "question", "why", ""], rows, f"Not wholly found: {len(missed)}{more}"))
    return "".join(pieces) or f"<p>{html_text(judged.sentence, 1000)}</p>"


def _systems(report: Report) -> str:
    metrics = list(dict.fromkeys(name for system in report.systems for name in system.metrics))
    metrics.sort(key=lambda name: name != report.metric)
    rows: list[Sequence[str]] = []
    for system in report.systems:
        cells = [f"{'* ' if system.shipped else ''}{system.label}"]
        for name in metrics:
            measure = system.metrics.get(name)
            cell = "–" if measure is None else score(measure.value)
            if measure is not None and name == report.metric and measure.low is not None and measure.high is not None:
                cell += f" [{score(measure.low)}, {score(measure.high)}]"
            cells.append(cell)
        rows.append(cells)
    return html_table(["system", *metrics], rows, "* ships" if report.shipped else "")


def _differences(report: Report) -> str:
    rows = [
        [
            label_of_system(report, delta.system),
            label_of_system(report, delta.against),
            f"{signed(delta.interval.delta)} [{signed(delta.interval.low)}, {signed(delta.interval.high)}]",
            "–" if delta.p is None else f"{delta.p:.2g}",
        ]
        for delta in report.deltas
        if delta.metric == report.metric
    ]
    return html_table(["system", "against", f"Δ {report.metric}", "p"], rows) if rows else ""


def _rank(result: QueryResult) -> str:
    return "not found" if result.rank is None else str(result.rank)
