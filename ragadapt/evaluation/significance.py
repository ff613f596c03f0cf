"""How sure a difference is: percentile bootstrap over queries, and Fisher's randomization test beside it.

Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; for retrieval, Smucker, Allan and
Carterette, CIKM 2007. Paired: both systems are resampled with the same queries, so the spread between easy
and hard queries cancels. Where few queries differ at all the bootstrap is too sure: four of 36 that gain, and none
that loses, lie above 0 in 98 % of the resamples, and four coins fall all alike one time in eight. A difference is
beyond doubt where both say so.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ragadapt.errors import InvalidInput

FEW_QUERIES = 100
"""With fewer queries an interval is wide, and itself uncertain: what rests on it carries a warning."""

Values = Sequence[float] | npt.NDArray[np.floating]
Rows = Sequence[Values] | Values


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean (of one system) or a mean difference (of two) with its bootstrap interval.

    delta: the observed mean or mean difference, never a bootstrap average. p_better: share of the
    resamples in which the difference is above 0, ties counted half; None for a single system. n: queries.
    clusters: groups of queries that were drawn together, n where each was drawn alone. p_value: two-sided, by the
    randomization test; None for a single system.
    """

    delta: float
    low: float
    high: float
    p_better: float | None
    n: int
    clusters: int
    confidence: float = 0.95
    p_value: float | None = None

    @property
    def few(self) -> bool:
        """Whether fewer than 100 independent groups of queries stand behind it: show a warning."""
        return self.clusters < FEW_QUERIES

    @property
    def better(self) -> bool:
        """The whole interval lies above 0, and chance does not explain that."""
        return self.low > 0 and self._no_chance

    @property
    def worse(self) -> bool:
        """The whole interval lies below 0, and chance does not explain that."""
        return self.high < 0 and self._no_chance

    @property
    def _no_chance(self) -> bool:
        return self.p_value is None or self.p_value <= 1 - self.confidence

    @property
    def lost(self) -> bool:
        """The mean lies more than one standard error below 0."""
        error = (self.high - self.low) / (2 * NormalDist().inv_cdf((1 + self.confidence) / 2))
        return self.delta < -error


def paired_bootstrap(
    a: Values,
    b: Values,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """The interval of mean(a − b); positive means that a is better.

    a, b: one value per query, in the same order. clusters: a label per query; queries with one label are
    drawn together, because questions about one document succeed and fail together. Raises InvalidInput if
    there is no query, if lengths differ or a value is not finite.
    """
    first, second = _array(a, "a"), _array(b, "b")
    if len(first) != len(second):
        raise InvalidInput(
            f"a has {len(first)} values and b has {len(second)}; a paired comparison needs one of each per query."
        )
    return _bootstrap(first - second, samples, confidence, seed, clusters, compare=True)


def paired_bootstrap_over_runs(
    a: Rows,
    b: Rows,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int,
) -> Interval:
    """The interval of mean(a − b) where each system was trained several times: runs and queries are both drawn.

    a, b: (R, Q), one row per run, paired by row; (Q,) stands for a system that has no runs. Both axes are resampled
    (Owen, The pigeonhole bootstrap, Annals of Applied Statistics 2007), so that a gain that one seed alone brings is
    none; the interval errs on the wide side. With one run it is `paired_bootstrap`. Raises InvalidInput for other
    shapes, or values that are not finite.
    """
    first, second = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (a, b))
    if first.shape[1] != second.shape[1] or len({len(first), len(second)} - {1}) > 1:
        raise InvalidInput(
            f"a has the shape {first.shape} and b {second.shape}; both must hold the same runs × queries."
        )
    differences = first - second  # (R, Q)
    if len(differences) == 1:
        return _bootstrap(_array(differences[0], "a − b"), samples, confidence, seed, None, compare=True)
    for row in differences:
        _array(row, "a − b")
    runs, queries = differences.shape
    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    block = max(1, 2_000_000 // queries)
    for start in range(0, samples, block):
        stop = min(start + block, samples)
        shares = rng.multinomial(runs, np.full(runs, 1 / runs), size=stop - start) / runs  # (block, R)
        drawn = rng.integers(0, queries, size=(stop - start, queries), dtype=np.int64)  # (block, Q)
        means[start:stop] = np.take_along_axis(shares @ differences, drawn, axis=1).mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    better = float((means > 0).mean() + (means == 0).mean() / 2)
    chance = _randomized(differences.mean(axis=0), samples, rng)
    return Interval(float(differences.mean()), float(low), float(high), better, queries, queries, confidence, chance)


def p_value(found: Interval, samples: int) -> float:
    """Two-sided, of no difference: the larger of the randomization test's and of that by the share of the resamples on
    the other side of 0 (Davison and Hinkley, Bootstrap Methods, 1997, chapter 4), never below 2 / (samples + 1).
    Raises InvalidInput for a single system's."""
    if found.p_better is None:
        raise InvalidInput("This is the interval of one system; a p-value belongs to a difference.")
    other = min(found.p_better, 1 - found.p_better) * samples
    return max(min(1.0, 2 * (1 + other) / (samples + 1)), found.p_value or 0.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for there being several: the chance of any wrong claim among those that stay below a
    level is at most that level (Holm, Scandinavian Journal of Statistics 1979). In the order given."""
    count, corrected, most = len(p_values), [0.0] * len(p_values), 0.0
    for rank, at in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        most = max(most, min(1.0, (count - rank) * p_values[at]))
        corrected[at] = most
    return corrected


def simultaneous_bounds(
    rows: Rows, *, samples: int = 4000, confidence: float = 0.95, seed: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(low, high), (K, K) each: bounds of mean(i) − mean(j) that hold for all pairs of K systems at once.

    rows: (K, Q), a value per system and query. The bootstrap's largest deviation over all pairs, in standard errors,
    sets the width of each (Romano and Wolf, Econometrica 2005), so that the best system may be chosen by these very
    queries and then compared with the others. Raises InvalidInput for other shapes, or values that are not finite.
    """
    table = np.asarray(rows, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise InvalidInput(f"rows has the shape {table.shape}; it must be systems × queries.")
    for row in table:
        _array(row, "rows")
    systems, queries = table.shape
    first, second = np.triu_indices(systems, 1)
    rng = np.random.default_rng(seed)
    means = np.empty((samples, systems))
    block = max(1, 2_000_000 // queries)
    for start in range(0, samples, block):
        stop = min(start + block, samples)
        drawn = rng.multinomial(queries, np.full(queries, 1 / queries), size=stop - start)
        means[start:stop] = drawn @ table.T / queries
    differences = means[:, first] - means[:, second]  # (samples, pairs)
    observed = table.mean(axis=1)
    errors = differences.std(axis=0)
    varies = errors > 1e-12
    width = 0.0
    if varies.any():
        deviation = np.abs(differences - (observed[first] - observed[second]))[:, varies] / errors[varies]
        width = float(np.quantile(deviation.max(axis=1), confidence))
    reach = np.zeros((systems, systems))
    reach[first, second] = reach[second, first] = width * np.where(varies, errors, 0.0)
    apart = observed[:, None] - observed[None, :]
    return apart - reach, apart + reach


def interval(
    values: Values,
    *,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """The interval of mean(values), one value per query; otherwise as `paired_bootstrap`."""
    return _bootstrap(_array(values, "values"), samples, confidence, seed, clusters, compare=False)


def _bootstrap(
    values: npt.NDArray[np.float64],
    samples: int,
    confidence: float,
    seed: int,
    clusters: Sequence[Hashable] | None,
    *,
    compare: bool,
) -> Interval:
    if not 0 < confidence < 1:
        raise InvalidInput(f"confidence = {confidence!r}; it must lie between 0 and 1, for example 0.95.")
    if samples < 100:
        raise InvalidInput(f"samples = {samples!r}; an interval needs at least 100 resamples.")
    n = len(values)
    sums: npt.NDArray[np.float64] = values
    sizes = np.ones(n)
    if clusters is not None:
        if len(clusters) != n:
            raise InvalidInput(f"{len(clusters)} cluster labels for {n} values; give one label per query.")
        numbers: dict[Hashable, int] = {}
        member = np.fromiter((numbers.setdefault(label, len(numbers)) for label in clusters), np.intp, n)
        sums = np.bincount(member, weights=values).astype(np.float64)
        sizes = np.bincount(member).astype(np.float64)
    groups = len(sums)

    rng = np.random.default_rng(seed)
    means = np.empty(samples)
    block = max(1, 2_000_000 // groups)  # 16 MB of drawn indices at a time, whatever the number of queries
    for start in range(0, samples, block):
        stop = min(start + block, samples)
        drawn = rng.integers(0, groups, size=(stop - start, groups), dtype=np.int64)  # (block, groups)
        # The ratio of sums is the mean over the queries that were drawn: clusters differ in size.
        means[start:stop] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    if not compare:
        return Interval(float(values.mean()), float(low), float(high), None, n, groups, confidence)
    better = float((means > 0).mean() + (means == 0).mean() / 2)
    p_value = _randomized(sums, samples, rng)
    return Interval(float(values.mean()), float(low), float(high), better, n, groups, confidence, p_value)


def _randomized(sums: npt.NDArray[np.float64], samples: int, rng: np.random.Generator) -> float:
    """Share of the ways to swap the two systems, query by query, that differ at least as much as they do: of all ways
    where there are few, else of as many as the bootstrap draws."""
    differing = sums[sums != 0]
    observed = abs(float(differing.sum())) * (1 - 1e-12)
    if 2 ** len(differing) <= samples:
        signs = 1.0 - 2.0 * (np.arange(2 ** len(differing))[:, None] >> np.arange(len(differing)) & 1)
        return float((np.abs(signs @ differing) >= observed).mean())
    count = 0
    block = max(1, 2_000_000 // len(differing))
    for start in range(0, samples, block):
        drawn = rng.integers(0, 2, size=(min(block, samples - start), len(differing)), dtype=np.int8)
        count += int((np.abs((1.0 - 2.0 * drawn) @ differing) >= observed).sum())
    return (count + 1) / (samples + 1)


def _array(values: Values, name: str) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise InvalidInput(
            f"{name} has the shape {array.shape}; it must hold one value per query, at least one. "
            "Without judged queries nothing can be compared."
        )
    if not np.isfinite(array).all():
        position = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InvalidInput(f"{name}[{position}] = {array[position]}; every value must be a finite number.")
    return array
