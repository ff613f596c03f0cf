"""The report's main figures as plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from ragadapt.report.methods import method_rows
from ragadapt.report.values import Report
from ragadapt.report.words import EVIDENCE, cautions, headline, judges, score, signed
from ragadapt.text import printable


def table(report: Report) -> str:
    """One line per system with its metrics and its difference from the base, then verdict and evidence.

    The system that ships is marked with a star. Without systems only the verdict remains. Names are
    escaped for a terminal. No trailing newline.
    """
    lines = []
    metrics = list(dict.fromkeys(name for system in report.systems for name in system.metrics))
    if report.metric in metrics:
        metrics.sort(key=lambda name: name != report.metric)
    if report.systems and metrics:
        versus = any(report.delta(system.name, "base-dense") for system in report.systems)
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
    if report.evidence is not None:
        words = EVIDENCE.get(report.evidence.tier, "")
        lines.append(f"Judged by {judges(report.evidence)}: {report.evidence.tier}" + (f" ({words})" if words else ""))
    lines.append(f"{report.verdict.outcome}: {headline(report)}" if report.verdict else headline(report))
    lines.extend(f"Warning: {warning}" for warning in cautions(report))
    return "\n".join(map(printable, lines))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells in columns, the first set left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]).rstrip()
        for row in rows
    ]
