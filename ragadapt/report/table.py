"""The report's main figures as plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from ragadapt.report.elements import label_of_system
from ragadapt.report.methods import method_rows
from ragadapt.report.questions_section import meaning
from ragadapt.report.sweep_section import sweep_rows
from ragadapt.report.values import QuestionsJudged, Report
from ragadapt.report.words import EVIDENCE, cautions, headline, judges, score, signed
from ragadapt.text import printable


def table(report: Report) -> str:
    """One line per system with its metrics and its difference from the base, then verdict and evidence.

    The system that ships is marked with a star. Without systems only the verdict remains. Names are
    escaped for a terminal. No trailing newline.
    """
    lines = []
    if (swept := report.swept) is not None:
        lines += [*_aligned(sweep_rows(swept, report.metric)), "* the cheapest that cannot be told from the best", ""]
        lines += [f"All alike: {swept.alike}."]
        lines += [f"Left out: {each.source}: {each.reason}" for each in swept.left_out]
        return "\n".join(map(printable, [*lines, headline(report), *(f"Warning: {text}" for text in cautions(report))]))
    metrics = list(dict.fromkeys(name for system in report.systems for name in system.metrics))
    if report.metric in metrics:
        metrics.sort(key=lambda name: name != report.metric)
    if report.systems and metrics:
        versus = report.judged is None and any(report.delta(s.name, "base-dense") for s in report.systems)
        header = ["", *metrics, *(["against base dense"] if versus else [])]
        rows = []
        for system in report.systems:
            row = [("* " if system.shipped else "  ") + system.label]
            for name in metrics:
                measure = system.metrics.get(name)
                cell = "-" if measure is None else score(measure.value)
                if measure is not None and name == metrics[0] and measure.low is not None:
                    cell += f" [{score(measure.low)}, {score(measure.high or 0.0)}]"
                row.append(cell)
            if versus:
                delta = report.delta(system.name, "base-dense")
                row.append(
                    "" if delta is None else f"{signed(delta.delta)} [{signed(delta.low)}, {signed(delta.high)}]"
                )
            rows.append(row)
        lines += _aligned([header, *rows])
        if any(system.shipped for system in report.systems):
            lines.append("* ships")
        lines.append("")
    if (methods := report.methods) is not None:
        lines += [*_aligned(method_rows(methods, report.delta)), "", f"All alike: {methods.alike}."]
        if any(method.meets is False for method in methods.measured):
            lines.append("! no size of this method comes near the budget")
        lines += [f"Left out: {each.source}: {each.reason}" for each in methods.left_out]
    if (judged := report.judged) is not None:
        lines += _paired(report)
        lines += [f"Missed: {number} × {meaning(reason)}" for reason, number in judged.reasons.items()]
    if report.evidence is not None:
        words = EVIDENCE.get(report.evidence.tier, "")
        many = judges(report.evidence) if report.judged is None else f"{report.evidence.queries} questions"
        lines.append(f"Judged by {many}: {report.evidence.tier}" + (f" ({words})" if words else ""))
    lines.append(f"{report.verdict.outcome}: {headline(report)}" if report.verdict else headline(report))
    lines.extend(f"Warning: {warning}" for warning in cautions(report))
    return "\n".join(map(printable, lines))


def _paired(report: Report) -> list[str]:
    """A line for every difference from what ships."""
    rows = [
        [
            f"  {label_of_system(report, delta.against)}",
            f"{signed(delta.interval.delta)} [{signed(delta.interval.low)}, {signed(delta.interval.high)}]",
            "" if delta.p is None else f"p = {delta.p:.2g}",
        ]
        for delta in report.deltas
    ]
    if not rows:
        return []
    first = report.deltas[0]
    return [f"{label_of_system(report, first.system)} less each of the others, {first.metric}:", *_aligned(rows), ""]


def question_lines(judged: QuestionsJudged, *, results: int = 3) -> list[str]:
    """Every question for a terminal: a line for it, what it expects with the rank on every row, why it was missed and
    what stands in its place. results: how many of what was found are shown where it was missed."""
    lines = []
    for each in judged.questions:
        mark = "✗" if each.missed else "◐" if each.partly else "✓"
        lines.append(f"{mark} {each.query}")
        for answer in each.expected:
            ranks = ", ".join(f"{name} {answer.ranks.get(name, f'> {judged.depth}')}" for name in judged.systems)
            place = answer.passage.id if answer.passage is not None else answer.source
            lines.append(f"    {place}: {ranks}")
            if answer.missed:
                lines.append(f"      {meaning(answer.missed)}. {answer.why}")
        if each.missed:
            for rank, one in enumerate(each.found[:results], start=1):
                sides = ", ".join(f"{side} {one.ranks[side]}" for side in ("dense", "lexical") if side in one.ranks)
                text = " ".join(one.passage.text.split())
                lines.append(f"      {rank:>2}  {one.passage.id} ({sides})  {text[:80]}")
    return [printable(line) for line in lines]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns, the first set left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]).rstrip()
        for row in rows
    ]
