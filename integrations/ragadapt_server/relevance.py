"""Scores from 0 to 1 for interfaces that want them."""

from __future__ import annotations

from ragadapt.values import Hit


def confidence(hit: Hit) -> float:
    """The probability that a hit answers the question; never more than that of the hit before it."""
    assert hit.confidence is not None  # a fitted retriever's searches all have it
    return hit.confidence
