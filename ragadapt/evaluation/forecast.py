"""What more queries would change: the gain as a function of how many train, and how many would prove it.

Learning curves are close to power laws (Hestness et al., 2017; Viering and Loog, TPAMI 2023): gain(n) = a·nᵇ. The
exponent lies between 0 (more teach nothing) and 1 (every query teaches as much as the last one). Queries are resampled,
so the forecast is as uncertain as what it is made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ragadapt.errors import InvalidInput
from ragadapt.evaluation.significance import Interval, Values, interval

_MOST = 100_000  # queries; a gain that needs more is not in sight
_AHEAD = (1.5, 2.0, 3.0, 4.0)  # times the largest measured number
_SURE = 1.96  # standard errors: half of a 95 % interval
_BAND = (0.1, 0.5, 0.9)


@dataclass(frozen=True, slots=True)
class Forecast:
    """measured: (queries that train, gain with its 95 % interval). ahead: (queries, median, low, high) of the forecast,
    80 % of the resamples between low and high. needed: queries in all by which a gain would be proved, (median, low,
    high); None where that is not in sight for half of the resamples; high is None where it is not for a tenth."""

    measured: tuple[tuple[int, Interval], ...]
    ahead: tuple[tuple[int, float, float, float], ...]
    needed: tuple[int, int, int | None] | None


def forecast(
    sizes: Sequence[int], gains: Sequence[Values], *, seed: int, total: int | None = None, samples: int = 500
) -> Forecast:
    """What the measured gains say of larger numbers.

    sizes: how many queries trained, ascending, one or two of them. gains: for each size the gain of every query that
    judges (S, Q). total: queries in all, those that only train included; None = Q, as after cross-fitting, where all
    judge. Raises InvalidInput for other shapes.
    """
    try:
        table = np.asarray(gains, dtype=np.float64)
    except ValueError as error:
        raise InvalidInput(f"The gains of {len(gains)} sizes must be numbers in rows of equal length.") from error
    if table.ndim != 2 or len(sizes) != len(table) or not 1 <= len(sizes) <= 2 or not table.shape[1]:
        raise InvalidInput(f"{len(sizes)} sizes with gains of shape {table.shape}: one or two rows of equal length.")
    if list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
        raise InvalidInput(f"sizes = {list(sizes)}: they must be positive and ascending.")
    measured = tuple((size, interval(row, seed=seed)) for size, row in zip(sizes, table, strict=True))
    count = table.shape[1]
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, count, size=(samples, count))
    means = table[:, drawn].mean(axis=2)  # (sizes, samples)
    gain, exponent = means[-1], _exponents(sizes, means, rng)
    ahead = []
    for times in _AHEAD:
        values = np.where(gain > 0, gain * times**exponent, gain)
        low, middle, high = np.quantile(values, _BAND)
        ahead.append((round(times * sizes[-1]), float(middle), float(low), float(high)))
    return Forecast(measured, tuple(ahead), _needed(table[-1], gain, exponent, total or count))


def _exponents(
    sizes: Sequence[int], means: npt.NDArray[np.float64], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    if len(sizes) == 1:
        return rng.uniform(0, 1, size=means.shape[1:])  # nothing is known of it
    first, last = means
    rising = (first > 0) & (last > 0)
    ratio = np.divide(last, first, out=np.ones_like(last), where=rising)
    slope = np.log(ratio) / np.log(sizes[1] / sizes[0])
    found: npt.NDArray[np.float64] = np.where(rising, np.clip(slope, 0, 1), np.where(last > 0, 1.0, 0.0))
    return found


def _needed(
    values: npt.NDArray[np.float64], gain: npt.NDArray[np.float64], exponent: npt.NDArray[np.float64], total: float
) -> tuple[int, int, int | None] | None:
    """N in all with gain(N) = _SURE · deviation / √(queries that judge), both growing in proportion to N."""
    deviation = float(values.std(ddof=1)) if len(values) > 1 else np.inf
    error = _SURE * deviation / np.sqrt(len(values))
    times = np.full(len(gain), np.inf)
    hopeful = gain > 0
    times[hopeful] = np.maximum(error / gain[hopeful], 1e-9) ** (1 / (exponent[hopeful] + 0.5))
    numbers = total * times
    numbers[numbers > _MOST] = np.inf
    low, middle, high = np.quantile(numbers, _BAND, method="inverted_cdf")
    if not np.isfinite(middle):
        return None
    return int(np.ceil(middle)), int(np.ceil(low)), int(np.ceil(high)) if np.isfinite(high) else None
