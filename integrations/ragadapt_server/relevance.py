"""Scores from 0 to 1 for interfaces that want them."""

from __future__ import annotations

from typing import Any

import numpy as np

HALF = 10.0  # the fused score that stands for .5: what two sides say of a passage three deviations out on each


def relevance(scores: Any) -> Any:
    """s / (s + 10), 0 below 0: in the order of the fused scores, and the same for every query.

    A fused score is a sum of surprisals: it has no upper end, and grows slowly beyond any doubt.
    """
    positive = np.maximum(np.asarray(scores, np.float64), 0.0)
    return positive / (positive + HALF)
