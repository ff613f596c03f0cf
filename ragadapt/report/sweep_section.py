"""The section of the page that sets models and sizes of passages side by side, and its rows for a terminal."""

from __future__ import annotations

from markupsafe import Markup

from ragadapt.report import charts
from ragadapt.report.elements import figure, table
from ragadapt.report.markup import tag
from ragadapt.report.values import ChoicesSwept, Report, SweptChoice
from ragadapt.report.words import count, duration, score, signed, size


def sweep_section(report: Report) -> Markup | None:
    """None where the report compares no choices."""
    found = report.swept
    if found is None:
        return None
    best = next(choice for choice in found.choices if choice.name == found.best)
    return tag(
        "div",
        tag("p", f"All alike: {found.alike}."),
        figure(
            charts.interval_chart(
                [
                    charts.ChartRow(
                        choice.label, choice.value - best.value, choice.low, choice.high, _mark(choice, found)
                    )
                    for choice in found.choices
                    if choice is not best
                ],
                title=f"Difference from {best.label}",
                axis=f"Δ {report.metric}",
                zero=True,
                signed=True,
            ),
            "Bounds that hold for all pairs of choices at once. Coloured: worse than the best beyond doubt. The "
            "diamond is the cheapest of those that are not.",
            title=f"Less than {best.label}",
        ),
        table(
            ["choice", report.metric, "from the best", "passages", "to encode", "vectors", "a search", "cost"],
            [
                [
                    [
                        choice.label,
                        tag("span", "best", cls="chip good") if choice is best else None,
                        tag("span", "take this", cls="chip strong") if choice.name == found.cheapest else None,
                        tag("small", choice.settings, cls="note"),
                    ],
                    score(choice.value),
                    "–" if choice is best else _bounds(choice, best),
                    count(choice.passages),
                    [f"{choice.tokens / 1e3:,.0f} k tokens", tag("small", _encoding(choice), cls="note")],
                    size(choice.vector_bytes),
                    f"{choice.search_ms:.1f} ms",
                    f"× {choice.cost:.2f}",
                ]
                for choice in found.choices
            ],
            caption="What each choice costs. Cost: the geometric mean of how many times the least it takes of work to "
            "encode (tokens times parameters), of bytes, and of search time.",
            numeric=range(1, 8),
            sort_values=[
                [c.label, c.value, c.value - best.value, c.passages, c.tokens, c.vector_bytes, c.search_ms, c.cost]
                for c in found.choices
            ],
        ),
        [
            tag("h3", "Left out"),
            table(
                ["choice", "why"],
                [[each.source, each.reason] for each in found.left_out],
                caption="Choices that could not be measured.",
                sort_values=[[each.source, each.reason] for each in found.left_out],
            ),
        ]
        if found.left_out
        else None,
    )


def sweep_rows(found: ChoicesSwept, metric: str) -> list[list[str]]:
    """The table of the choices as cells, its header first; a star for the one to take."""
    best = next(choice for choice in found.choices if choice.name == found.best)
    rows = [["choice", metric, "from the best", "passages", "tokens to encode", "vectors", "a search", "cost"]]
    for choice in found.choices:
        rows.append(
            [
                ("* " if choice.name == found.cheapest else "  ") + choice.label,
                score(choice.value),
                "best" if choice is best else _bounds(choice, best) + (" worse" if choice.told else ""),
                f"{choice.passages:,}",
                f"{choice.tokens:,}",
                size(choice.vector_bytes),
                f"{choice.search_ms:.1f} ms",
                f"{choice.cost:.2f}",
            ]
        )
    return rows


def _bounds(choice: SweptChoice, best: SweptChoice) -> str:
    return f"{signed(choice.value - best.value)} [{signed(choice.low)}, {signed(choice.high)}]"


def _mark(choice: SweptChoice, found: ChoicesSwept) -> str:
    return "bad" if choice.told else "strong" if choice.name == found.cheapest else ""


def _encoding(choice: SweptChoice) -> str:
    if not choice.encoded:
        return "all known"
    return f"{duration(choice.seconds)} for {count(choice.encoded)} of them"
