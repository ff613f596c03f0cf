"""A learning curve in two figures: how good it was all along, and how soon it was nearly as good as it became."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ragadapt.errors import InvalidInput

Floats = NDArray[np.float64]
Points = Sequence[tuple[float, float]]
"""(step, score) in order of steps; the first is the base's, at step 0."""


def area_under(curve: Points) -> float:
    """Mean score over the run: the area under the line through the points, divided by the steps. Raises
    InvalidInput."""
    steps, scores = _checked(curve)
    return float((np.diff(steps) * (scores[1:] + scores[:-1]) / 2).sum() / (steps[-1] - steps[0]))


def steps_to_gain(curve: Points, share: float = 0.9) -> float | None:
    """Steps until this share of the curve's best gain over its first point was reached, on the line through the
    points; None where it never rose above it. Raises InvalidInput."""
    steps, scores = _checked(curve)
    best = float(scores.max() - scores[0])
    if best <= 0:
        return None
    goal = scores[0] + share * best
    at = int(np.argmax(scores >= goal - 1e-12))
    if at == 0:
        return float(steps[0])
    left, right = scores[at - 1], scores[at]
    return float(steps[at - 1] + (steps[at] - steps[at - 1]) * (goal - left) / (right - left))


def _checked(curve: Points) -> tuple[Floats, Floats]:
    steps, scores = np.array(curve, dtype=np.float64).reshape(-1, 2).T
    if len(steps) < 2 or (np.diff(steps) <= 0).any() or not np.isfinite(scores).all():
        raise InvalidInput(f"A learning curve needs two points or more, in order of steps; this has {list(curve)!r}.")
    return steps, scores
