"""Small charts as inline SVG: plain functions of numbers.

Colours come from the page's style sheet through classes, so that one drawing serves light and dark. Series differ
in dash and marker too, never in colour alone; every drawing has a title and a text for screen readers.
Charts are drawn 380 units wide, so that their text stays readable on a phone.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from ragadapt.report.markup import Child, tag
from ragadapt.report.values import Histogram

WIDTH = 380
LABEL = 20
"""Letters in a line of a row's label, which has two at most; the rest of it stands in the tooltip."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of an interval chart. mark: "" | "strong" (what ships) | "good" | "bad"."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a line chart; lows and highs, where given for every point, become a band."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] = field(default=())
    highs: Sequence[float] = field(default=())


def interval_chart(rows: Sequence[Row], *, title: str, axis: str, zero: bool = False, signed: bool = False) -> Markup:
    """A dot with its interval per row. zero: the axis includes 0 and marks it."""
    if not rows:
        return Markup("")
    left, right, top, step = _gutter(row.label for row in rows), 60, 8, 32
    values = [v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    low, high = min([*values, 0.0] if zero else values), max([*values, 0.0] if zero else values)
    ticks = nice_ticks(low, high, 5)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    bottom = top + step * len(rows)
    x = _scale(low, high, left, WIDTH - right)
    parts: list[Child] = []
    for tick in ticks:
        parts.append(_line(x(tick), top, x(tick), bottom, "grid"))
        parts.append(_text(x(tick), bottom + 16, _number(tick, ticks, signed), "tick", "middle"))
    if zero:
        parts.append(_line(x(0), top - 4, x(0), bottom, "axis"))
    for index, row in enumerate(rows):
        y = top + step * (index + 0.5)
        spread = row.low is not None and row.high is not None
        spoken = f"{row.label}: {_value(row.value, signed)}"
        if row.low is not None and row.high is not None:
            spoken += f", interval {_value(row.low, signed)} to {_value(row.high, signed)}"
        group: list[Child] = [tag("title", spoken)]
        group.append(tag("rect", cls="hit", x=0, y=_n(y - step / 2), width=WIDTH, height=step))
        group.append(_label(left - 10, y + 4, row.label, f"label {row.mark}"))
        if spread and row.low is not None and row.high is not None:
            group.append(
                tag("line", cls=f"whisker {row.mark}", x1=_n(x(row.low)), y1=_n(y), x2=_n(x(row.high)), y2=_n(y))
            )
        if row.mark == "strong":
            cx = x(row.value)
            group.append(tag("path", cls="dot strong", d=f"M{_n(cx - 7)} {_n(y)}l7 -7l7 7l-7 7z"))
        else:
            group.append(tag("circle", cls=f"dot {row.mark}", cx=_n(x(row.value)), cy=_n(y), r=5))
        group.append(_text(WIDTH - right + 10, y + 4, _value(row.value, signed), f"value {row.mark}", "start"))
        parts.append(tag("g", group, cls="row"))
    parts.append(_text((left + WIDTH - right) / 2, bottom + 34, axis, "axis-label", "middle"))
    spoken_all = "; ".join(f"{row.label} {_value(row.value, signed)}" for row in rows)
    return _svg(parts, bottom + 42, title, spoken_all)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    chosen: float | None = None,
    levels: Mapping[str, float] | None = None,
) -> Markup:
    """Lines through points, with bands where intervals are given.

    chosen: an x to mark as the one that ships. levels: dashed horizontal lines to compare with, label → y.
    """
    series = [each for each in series if len(each.xs)]
    if not series:
        return Markup("")
    levels = levels or {}
    right, top, height = 12, 28 + 18 * (len(series) > 1), 180
    plain = sum(len(each.xs) for each in series) > 20 * len(series)  # dots on every point would hide the line
    bottom = top + height
    xs = [x for each in series for x in each.xs]
    ys = [y for each in series for y in (*each.ys, *each.lows, *each.highs)] + list(levels.values())
    x_ticks, y_ticks = nice_ticks(min(xs), max(xs), 6), nice_ticks(min(ys), max(ys), 5)
    left = _tick_room(y_ticks)
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:
        x_low, x_high = x_ticks[0], x_ticks[-1]
    x = _scale(x_low, x_high, left + 6, WIDTH - right - 6)
    y = _scale(min(*ys, y_ticks[0]), max(*ys, y_ticks[-1]), bottom, top)
    parts: list[Child] = []
    for tick in y_ticks:
        parts.append(_line(left, y(tick), WIDTH - right, y(tick), "grid"))
        parts.append(_text(left - 8, y(tick) + 4, _number(tick, y_ticks), "tick", "end"))
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            parts.append(_line(x(tick), bottom, x(tick), bottom + 4, "axis"))
            parts.append(_text(x(tick), bottom + 17, _number(tick, x_ticks), "tick", "middle"))
    parts.append(_line(left, bottom, WIDTH - right, bottom, "axis"))
    for label, level in levels.items():
        parts.append(_line(left, y(level), WIDTH - right, y(level), "level"))
        parts.append(_text(WIDTH - right, y(level) - 5, label, "tick halo", "end"))
    if chosen is not None and x_low <= chosen <= x_high:
        parts.append(_line(x(chosen), top, x(chosen), bottom, "chosen"))
    for index, each in enumerate(series):
        order = sorted(range(len(each.xs)), key=lambda i: each.xs[i])
        points = [(x(each.xs[i]), y(each.ys[i])) for i in order]
        if each.lows and each.highs:
            band = [(x(each.xs[i]), y(each.highs[i])) for i in order]
            band += [(x(each.xs[i]), y(each.lows[i])) for i in reversed(order)]
            parts.append(tag("path", cls=f"band s{index}", d=_path(band) + "z"))
        parts.append(tag("path", cls=f"line s{index}", d=_path(points)))
        for i, (cx, cy) in zip(order, points):
            ships = chosen is not None and math.isclose(each.xs[i], chosen, abs_tol=1e-9)
            if plain and not ships:
                continue
            spoken = f"{each.label}: {x_label} {each.xs[i]:g}, {y_label} {each.ys[i]:.4g}"
            if each.lows and each.highs:
                spoken += f" ({each.lows[i]:.4g} to {each.highs[i]:.4g})"
            parts.append(
                tag(
                    "circle",
                    tag("title", spoken),
                    cls=f"point s{index}{' ships' if ships else ''}",
                    cx=_n(cx),
                    cy=_n(cy),
                    r=6 if ships else 3.5,
                )
            )
    if chosen is not None and x_low <= chosen <= x_high:
        side = "end" if x(chosen) > WIDTH / 2 else "start"
        shift = -7 if side == "end" else 7
        parts.append(_text(x(chosen) + shift, bottom - 8, f"ships: {chosen:g}", "tick strong halo", side))
    parts.append(_text(8, top - 12, y_label, "axis-label", "start"))
    if len(series) > 1:
        offset = float(left)
        for index, each in enumerate(series):
            parts.append(_line(offset, 10, offset + 22, 10, f"line s{index}"))
            parts.append(_text(offset + 28, 14, each.label, "tick", "start"))
            offset += 48 + 6.5 * len(each.label)
    parts.append(_text((left + WIDTH - right) / 2, bottom + 36, x_label, "axis-label", "middle"))
    described = "; ".join(f"{each.label} from {each.ys[0]:.4g} to {each.ys[-1]:.4g}" for each in series)
    return _svg(parts, bottom + 44, f"{title}: {y_label} over {x_label}", described)


def histogram_chart(histogram: Histogram, *, title: str, x_label: str) -> Markup:
    """Two overlaid distributions, each as shares of its own count."""
    edges = histogram.edges
    if len(edges) < 2:
        return Markup("")
    left, right, top, height = 12, 12, 30, 140
    bottom = top + height
    x = _scale(edges[0], edges[-1], left, WIDTH - right)
    shares = [
        [count / max(sum(counts), 1) for count in counts] for counts in (histogram.positives, histogram.negatives)
    ]
    y = _scale(0, max([*shares[0], *shares[1], 1e-9]) * 1.05, bottom, top)
    parts: list[Child] = []
    for tick in nice_ticks(edges[0], edges[-1], 6):
        if edges[0] <= tick <= edges[-1]:
            parts.append(_line(x(tick), top, x(tick), bottom, "grid"))
            parts.append(_text(x(tick), bottom + 16, _number(tick, [tick]), "tick", "middle"))
    labels = ("with a right passage", "with a wrong passage")
    for index, (name, values) in enumerate(zip(labels, shares)):
        outline = [(x(edges[0]), y(0))]
        for i, value in enumerate(values):
            outline += [(x(edges[i]), y(value)), (x(edges[i + 1]), y(value))]
        outline.append((x(edges[-1]), y(0)))
        parts.append(tag("path", tag("title", name), cls=f"area s{index}", d=_path(outline) + "z"))
        parts.append(_line(left + index * 170, 12, left + 22 + index * 170, 12, f"line s{index}"))
        parts.append(_text(left + 28 + index * 170, 16, name, "tick", "start"))
    parts.append(_line(left, bottom, WIDTH - right, bottom, "axis"))
    parts.append(_text(WIDTH / 2, bottom + 34, x_label, "axis-label", "middle"))
    means = [_mean(edges, counts) for counts in (histogram.positives, histogram.negatives)]
    described = "; ".join(f"{name}: mean {mean:.3f}" for name, mean in zip(labels, means) if mean is not None)
    return _svg(parts, bottom + 42, title, described)


def bar_chart(rows: Sequence[tuple[str, float, str]], *, title: str) -> Markup:
    """A horizontal bar per (label, value, text)."""
    if not rows:
        return Markup("")
    left, right, step = _gutter(label for label, _, _ in rows), 76, 26
    longest = max(value for _, value, _ in rows) or 1.0
    x = _scale(0, longest, 0, WIDTH - left - right)
    parts: list[Child] = []
    for index, (label, value, text) in enumerate(rows):
        y = 4 + step * index
        width = max(x(value), 1.5)
        parts.append(
            tag(
                "g",
                tag("title", f"{label}: {text}"),
                _label(left - 10, y + 16, label, "label"),
                tag("rect", cls="bar", x=left, y=y + 4, width=_n(width), height=step - 10, rx=3),
                _text(left + width + 8, y + 16, text, "value", "start"),
            )
        )
    return _svg(parts, 8 + step * len(rows), title, "; ".join(f"{label} {text}" for label, _, text in rows))


def change_chart(changes: Sequence[float], *, title: str, y_label: str) -> Markup:
    """Every query's change as a thin bar, best first: gains above the line, losses below."""
    if not changes:
        return Markup("")
    right, top, height = 12, 12, 140
    bottom = top + height
    ordered = sorted(changes, reverse=True)
    most = 240  # thinner bars than this could not be seen
    if len(ordered) > most:
        ordered = [ordered[int((i + 0.5) * len(ordered) / most)] for i in range(most)]
    ticks = nice_ticks(min([*ordered, 0.0]), max([*ordered, 0.0]), 4)
    left = _tick_room(ticks, signed=True)
    y = _scale(min(*ordered, ticks[0]), max(*ordered, ticks[-1]), bottom, top)
    width = (WIDTH - left - right) / len(ordered)
    parts: list[Child] = []
    for tick in ticks:
        parts.append(_line(left, y(tick), WIDTH - right, y(tick), "grid"))
        parts.append(_text(left - 8, y(tick) + 4, _number(tick, ticks, signed=True), "tick", "end"))
    for sign in ("good", "bad"):
        outline = "".join(
            f"M{_n(left + width * i)} {_n(y(0))}V{_n(y(value))}h{_n(width * 0.84)}V{_n(y(0))}z"
            for i, value in enumerate(ordered)
            if (value > 0) == (sign == "good") and value != 0
        )
        if outline:
            parts.append(tag("path", cls=f"column {sign}", d=outline))
    parts.append(_line(left, y(0), WIDTH - right, y(0), "axis"))
    wins, losses = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    described = f"{wins} better, {losses} worse, {len(changes) - wins - losses} unchanged"
    label = f"{len(changes)} questions, sorted · {y_label}"
    parts.append(_text((left + WIDTH - right) / 2, bottom + 20, label, "axis-label", "middle"))
    return _svg(parts, bottom + 28, title, described)


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that cover low to high, about that many; at least two."""
    if high - low < 1e-9:
        pad = abs(high) * 0.05 or 0.5
        low, high = low - pad, high + pad
    raw = (high - low) / max(about - 1, 1)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _svg(parts: Sequence[Child], height: float, title: str, described: str) -> Markup:
    return tag(
        "svg",
        tag("title", title),
        tag("desc", described),
        parts,
        cls="chart",
        viewBox=f"0 0 {WIDTH} {_n(height)}",
        role="img",
        aria_label=f"{title}. {described}",
    )


class _scale:  # noqa: N801 - used as a function
    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start = low, start
        self.factor = (end - start) / ((high - low) or 1.0)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.factor


def _line(x1: float, y1: float, x2: float, y2: float, cls: str) -> Markup:
    return tag("line", cls=cls, x1=_n(x1), y1=_n(y1), x2=_n(x2), y2=_n(y2))


def _text(x: float, y: float, text: str, cls: str, anchor: str) -> Markup:
    return tag("text", text, cls=cls.strip(), x=_n(x), y=_n(y), text_anchor=anchor)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _value(value: float, signed: bool) -> str:
    return f"{value:+.3f}".replace("-", "−") if signed else f"{value:.3f}"


def _number(value: float, ticks: Sequence[float], signed: bool = False) -> str:
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else abs(value)
    if max(abs(tick) for tick in ticks) >= 10_000:
        return f"{value / 1000:g}k"
    decimals = 0 if step == 0 else max(0, min(6, -math.floor(math.log10(step) + 1e-9)))
    if decimals and abs(round(step, decimals) - step) > 1e-9:
        decimals += 1  # steps of 2.5
    text = f"{value:+.{decimals}f}" if signed and value else f"{value:.{decimals}f}"
    return text.replace("-", "−")


def _lines(text: str) -> list[str]:
    return textwrap.wrap(text, LABEL, max_lines=2, placeholder="…") or [""]


def _label(x: float, y: float, text: str, cls: str) -> Markup:
    """The text before x in one line or two, about the height that one has."""
    lines = _lines(text)
    top = y - 6.5 * (len(lines) - 1)
    spans = [tag("tspan", line, x=_n(x), y=_n(top + 13 * at)) for at, line in enumerate([*lines, ""][:2])]
    return tag("text", spans, cls=cls.strip(), text_anchor="end")


def _tick_room(ticks: Sequence[float], signed: bool = False) -> float:
    """Room left of an axis for its numbers."""
    return max(44.0, 14 + 7.0 * max(len(_number(tick, ticks, signed)) for tick in ticks))


def _gutter(labels: Iterable[str]) -> float:
    """Room for the longest label, in its bold form."""
    return 16 + 6.9 * max(len(line) for label in labels for line in _lines(label))


def _mean(edges: Sequence[float], counts: Sequence[int]) -> float | None:
    total = sum(counts)
    if not total:
        return None
    return sum((edges[i] + edges[i + 1]) / 2 * count for i, count in enumerate(counts)) / total
