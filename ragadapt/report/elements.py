"""What sections of the page are made of: tables, figures, tiles, lists of checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from ragadapt.report.markup import Child, tag
from ragadapt.report.values import Report
from ragadapt.report.words import count


def tiles(figures: Sequence[tuple[str, Child, Child]]) -> Markup | None:
    """Figures in a row: (name, value, what stands below in small print). None where there are none."""
    if not figures:
        return None
    return tag(
        "dl",
        [
            tag("div", tag("dt", name), tag("dd", value), tag("dd", small, cls="small") if small else None)
            for name, value, small in figures
        ],
        cls="tiles",
    )


def figure(chart: Markup, caption: Child = None, *, title: str = "") -> Markup | None:
    """A chart with title and caption; None where the chart is empty."""
    if not chart:
        return None
    return tag(
        "figure",
        tag("p", title, cls="figure-title") if title else None,
        chart,
        tag("figcaption", caption) if caption else None,
    )


_NOTHING = ("–", "", None)


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[Child]],
    *,
    caption: str,
    numeric: Iterable[int] | None = None,
    sort_values: Sequence[Sequence[object]] | None = None,
) -> Markup:
    """A table that a click on its head sorts.

    numeric: columns set right; None = every column whose sort values are numbers. A column that holds nothing is left
    out, and so is a table of nothing else.
    """
    filled = [c for c in range(len(headers)) if c == 0 or any(row[c] not in _NOTHING for row in rows)]
    if len(filled) < 2:
        return Markup("")
    if numeric is not None:
        numeric = [filled.index(c) for c in numeric if c in filled]
    headers, rows = [headers[c] for c in filled], [[row[c] for c in filled] for row in rows]
    if sort_values is not None:
        sort_values = [[keys[c] for c in filled] for keys in sort_values]
    if numeric is None:
        columns = range(len(headers))
        found = [c for c in columns if any(isinstance(r[c], int | float) for r in sort_values or ())]
        numeric = found
    right = set(numeric)
    sortable = sort_values is not None and len(rows) > 1
    values = sort_values or [[None] * len(headers)] * len(rows)
    table = tag(
        "div",
        tag(
            "table",
            tag(
                "thead",
                tag(
                    "tr",
                    [
                        tag("th", header, scope="col", cls="number" if i in right else "")
                        for i, header in enumerate(headers)
                    ],
                ),
            ),
            tag(
                "tbody",
                [
                    tag(
                        "tr",
                        [
                            tag(
                                "th" if i == 0 else "td",
                                cell,
                                scope="row" if i == 0 else None,
                                cls="number" if i in right else "",
                                data_value=key if sortable else None,
                            )
                            for i, (cell, key) in enumerate(zip(row, keys))
                        ],
                    )
                    for row, keys in zip(rows, values)
                ],
            ),
            cls="sortable" if sortable else "",
        ),
        cls="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )
    return tag("div", tag("p", caption, cls="small caption"), table)


def checklist(items: Iterable[tuple[str, bool | None, str]]) -> Markup:
    """(what was checked, passed, detail); passed None: it was not decisive."""
    looks = {True: ("good", "✓", "passed"), False: ("bad", "✗", "failed"), None: ("even", "–", "not decisive")}
    return tag(
        "ul",
        [
            tag(
                "li",
                tag("span", looks[passed][1], cls=f"sign {looks[passed][0]}", role="img", aria_label=looks[passed][2]),
                tag("div", tag("strong", name), tag("span", detail, cls="small") if detail else None),
            )
            for name, passed, detail in items
        ],
        cls="checks",
    )


def more(shown: int, total: int, what: str) -> Markup | None:
    """Says that not all are listed; None where all are."""
    if total <= shown:
        return None
    return tag("p", f"{count(shown)} of {count(total)} {what} are listed.", cls="small")


def label_of_system(report: Report, name: str) -> str:
    """What a reader calls a system of the report."""
    system = report.system(name)
    return system.label if system else name
