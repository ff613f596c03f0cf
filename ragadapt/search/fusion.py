"""Hybrid search: how dense and lexical scores become one, and how the mix is learnt per corpus.

The default is *surprisal fusion*. Each side says how surprising a score is against that side's own scores over
the whole corpus, as −log of a tail probability, and the two are added:

    dense     −log(1 − Φ(z))   inner products of one query with all passages are close to normal
    lexical   z                BM25 scores fall off exponentially, so −log P(S > s) = z + 1; the constant drops out

where z = (score − mean) / standard deviation, taken over *all* passages. A dense hit far out in the normal tail
thus outweighs a lexical one, and a dense list without an outlier leaves the word to the lexical side: query by
query, with nothing fitted. The weight w scales the sides (2w and 2(1 − w)); w = ½ is the plain sum.

The mean and variance of the dense scores over the corpus need no scan: they are q·μ and qᵀΣq with the mean μ and
covariance Σ of the passage vectors (`Background`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ragadapt.errors import InvalidInput

Floats = NDArray[np.float32]
Positions = NDArray[np.int64]

WEIGHTS = tuple(round(0.05 * step, 2) for step in range(1, 20))
NEUTRAL_WEIGHT = 0.5  # the plain sum, where nothing is known of the scores
UNLEARNT_WEIGHT = 0.4  # of a store that nothing was fitted to: the best fixed one of every fold of docs/defaults.json
FEW = 50  # passages; examples/benchmarks/confidence.py --small
BEST = 0.02  # share of the passages, the best of either side, by which a query's shape is told
# Of what the lexical side finds of the passages that queries were cut from. MiniLM finds .66 and more on nine English
# collections, .2 of Chinese, and less of English written in Greek letters.
LOST, KNOWN = 0.3, 0.5
RRF_K = 60  # Cormack et al., SIGIR 2009


@dataclass(frozen=True, slots=True)
class Fusion:
    """The mix of one corpus. weight: share of the dense side; 1 = dense only, 0 = lexical only.

    feedback: after a first fusion, the query vector moves towards the mean of the best `feedback_depth` passages by
    this factor, and the fusion is done once more (vector pseudo-relevance feedback, light on purpose); 0 = off.
    """

    method: Literal["surprisal", "zscore", "rrf"] = "surprisal"
    weight: float = NEUTRAL_WEIGHT
    feedback: float = 0.2
    feedback_depth: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise InvalidInput(f"fusion weight {self.weight} is outside 0…1 (0 = lexical only, 1 = dense only).")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fusion:
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Background:
    """Mean (d,) and covariance (d, d) of all passage vectors: what a query's scores over the corpus look like."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    count: int

    @classmethod
    def of(cls, vectors: NDArray[Any], *, block: int = 65_536) -> Background:
        """Read (n, d) vectors in blocks; a memory-mapped array never becomes resident as a whole."""
        count, dim = vectors.shape
        total = np.zeros(dim)
        squares = np.zeros((dim, dim))
        for start in range(0, count, block):
            part = np.asarray(vectors[start : start + block], dtype=np.float64)
            total += part.sum(axis=0)
            squares += part.T @ part
        mean = total / max(count, 1)
        return cls(mean, squares / max(count, 1) - np.outer(mean, mean), count)

    def of_scores(self, query_vectors: NDArray[Any]) -> tuple[Floats, Floats]:
        """Mean and standard deviation, each (Q,), of every query's inner products with all passages."""
        queries = np.asarray(query_vectors, dtype=np.float64)
        means = queries @ self.mean
        variances = np.einsum("qd,qd->q", queries @ self.covariance, queries)
        return means.astype(np.float32), np.sqrt(np.maximum(variances, 1e-12)).astype(np.float32)

    def nearness(self, score: float, scale: float = 1.0, unrelated: float | None = None) -> float:
        """How far a dense score lies on the way from that of two passages at random to that of equal vectors, `scale`:
        about 0 … 1, whether an encoder's cosines begin at 0 or at .7.

        unrelated: what the encoder gives texts about different things. The passages of a small corpus are mostly about
        one, and what is about it, too, would not count as near: so they count together with FEW of that kind.
        """
        # ‖μ‖² is the mean over all pairs; in a small corpus the pairs of a passage with itself, which are 1, show.
        floor = (self.count * float(self.mean @ self.mean) - 1) / (self.count - 1) if self.count > 1 else 0.0
        if unrelated is not None:
            floor = (self.count * floor + FEW * unrelated) / (self.count + FEW)
        return (score / scale - floor) / (1 - floor) if scale > 1e-6 and floor < 1 - 1e-6 else 0.0


def normal_surprisal(z: NDArray[Any]) -> Floats:
    """−log(1 − Φ(z)), stable for large z (via erfcx) and decreasing to 0 below the mean."""
    from scipy.special import log_ndtr

    surprisal: Floats = (-log_ndtr(-np.asarray(z, dtype=np.float64))).astype(np.float32)
    return surprisal


def standardise(scores: NDArray[Any], mean: NDArray[Any] | float, deviation: NDArray[Any] | float) -> Floats:
    """z-scores; a side without any spread (an empty query, one passage) says nothing and gives zeros."""
    deviation = np.asarray(deviation, dtype=np.float32)
    spread = deviation > 1e-6
    return np.where(spread, (scores - mean) / np.where(spread, deviation, 1), 0).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Candidates:
    """One query's candidates from both sides: positions (C,) in the corpus, z-scores (C,) of either side.

    Every candidate has both scores, exactly, whichever side brought it in. Positions are ascending. nearness: of the
    passage nearest to the query, before any feedback moved it (`Background.nearness`); coverage: the largest share of
    the idf of the query's words that a passage's BM25 score makes up. None = not computed. ids: (C,) where an engine
    gave them; None = the positions say it.
    """

    positions: Positions
    dense: Floats
    lexical: Floats
    nearness: float | None = None
    coverage: float | None = None
    ids: Sequence[str] | None = None

    def fused(self, fusion: Fusion) -> Floats:
        """(C,) fused scores, larger is better."""
        if fusion.method == "rrf":
            return _reciprocal_ranks(self.dense) + _reciprocal_ranks(self.lexical)
        dense = normal_surprisal(self.dense) if fusion.method == "surprisal" else self.dense
        mixed: Floats = 2 * fusion.weight * dense + 2 * (1 - fusion.weight) * self.lexical
        return mixed

    def ranked(self, fusion: Fusion, k: int | None = None) -> tuple[Positions, Floats]:
        """The candidates' positions and fused scores, best first, ties by position."""
        scores = self.fused(fusion)
        order = np.argsort(-scores, kind="stable")[:k]
        return self.positions[order], scores[order]

    def best(self, fusion: Fusion, k: int) -> NDArray[np.int64]:
        """(k,) which candidates come first, best first."""
        return np.argsort(-self.fused(fusion), kind="stable")[:k]


def _reciprocal_ranks(scores: Floats) -> Floats:
    ranks = np.empty(len(scores), dtype=np.float32)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1, dtype=np.float32)
    reciprocal: Floats = np.reciprocal(RRF_K + ranks, dtype=np.float32)
    return reciprocal


def move_towards(query_vectors: Floats, best: Sequence[Floats], strength: float) -> Floats:
    """Π(q + strength · mean of the query's best passages): (Q, d). `best` holds one (m, d) array per query."""
    moved = query_vectors.astype(np.float32, copy=True)
    for row, passages in enumerate(best):
        if len(passages):
            moved[row] += strength * passages.mean(axis=0)
    norms = np.linalg.norm(moved, axis=1, keepdims=True)
    result: Floats = moved / np.maximum(norms, 1e-12)
    return result


# The mix without evidence


@dataclass(frozen=True, slots=True)
class ScoreShapes:
    """How far the best scores of either side stand out, over some queries whose answers nobody knows.

    dense: mean surprisal of a query's best passages, `BEST` of all; lexical: their mean z. A share and not a number: so
    the ratio of the two is the same for a hundred passages of a corpus as for all of it. found: how well the dense side
    finds the passages that the queries were cut from, as a share of how well the lexical side does (mean reciprocal
    ranks); None where they were cut from none.
    """

    dense: float
    lexical: float
    queries: int
    found: float | None = None

    @classmethod
    def of(cls, dense: Floats, lexical: Floats, own: Sequence[Sequence[int]] | None = None) -> ScoreShapes:
        """From the z-scores (Q, N) of either side, over all passages or an even sample of them.

        own: per query the columns of the passages that it was cut from; they count for `found` alone, as nobody's
        question stands word for word in its answer.
        """
        surprisal = normal_surprisal(dense)
        best: list[tuple[float, float]] = []  # of either side, by query
        ranks: list[tuple[float, float]] = []
        for row in range(len(dense)):
            mine = list(own[row]) if own is not None else []
            if mine:
                first, second = (1 / (1 + int((side > side[mine].max()).sum())) for side in (dense[row], lexical[row]))
                ranks.append((first, second))
            others = np.delete(np.arange(dense.shape[1]), mine)
            if len(others):
                count = max(1, round(BEST * len(others)))
                first, second = (float(np.sort(side[row][others])[-count:].mean()) for side in (surprisal, lexical))
                best.append((first, second))
        if not best:
            return cls(0.0, 0.0, 0)
        found = sum(first for first, _ in ranks) / sum(second for _, second in ranks) if ranks else None
        dense_mean, lexical_mean = np.mean(best, axis=0).tolist()
        return cls(dense_mean, lexical_mean, len(best), found)

    def weight(self, balance: float) -> float:
        """The neutral weight w = r³ / (r³ + balance³), r = dense / lexical.

        A side whose best passages stand further out knows more about these documents. A dense side that finds not even
        the passages that a query was cut from, such as a model that does not read the language, gets less and, where
        `found` is `LOST` or below, no say. ½ where either side is silent.
        """
        if self.dense <= 0 or self.lexical <= 0:
            return NEUTRAL_WEIGHT
        ratio = (self.dense / self.lexical) ** 3
        knows = 1.0 if self.found is None else min(max((self.found - LOST) / (KNOWN - LOST), 0.0), 1.0)
        return round(knows * ratio / (ratio + balance**3), 2)


# Learning the mix


@dataclass(frozen=True, slots=True)
class FusionCurve:
    """Quality over the weight, and what was chosen from it."""

    weights: tuple[float, ...]
    quality: tuple[float, ...]
    best: float
    chosen: float
    queries: int


Judge = Callable[[Positions], float]
"""Quality of one ranked list of corpus positions for one query, e.g. nDCG@10."""


def learn_weight(
    candidates: Sequence[Candidates],
    judges: Sequence[Judge],
    *,
    start: Fusion = Fusion(),
    neutral: float = NEUTRAL_WEIGHT,
    at_least: float | None = None,
    tolerance: float = 1.0,
    depth: int = 100,
) -> FusionCurve:
    """Of the weights from `neutral` to the best one, the nearest to `neutral` within `tolerance` standard errors of it.

    The one-standard-error rule (Breiman et al., 1984), paired by query: with few queries the curve is noise and
    `neutral` stays; with many the best weight wins. Nothing is chosen on the other side of `neutral`: that a noisy
    curve rises there, too, is no reason to go away from the best. A larger tolerance trusts the evidence less.
    `at_least` is a lower bound, for evidence that is known to favour the lexical side (text cut from its own passage):
    it may raise the weight, never lower it.
    """
    if len(candidates) != len(judges):
        raise InvalidInput(f"{len(candidates)} candidate lists but {len(judges)} judges: one each is needed.")
    weights = tuple(sorted({*WEIGHTS, neutral}))
    table = np.zeros((len(weights), len(candidates)))
    for column, (found, judge) in enumerate(zip(candidates, judges, strict=True)):
        dense = normal_surprisal(found.dense) if start.method == "surprisal" else found.dense
        for row, weight in enumerate(weights):
            order = np.argsort(-(weight * dense + (1 - weight) * found.lexical), kind="stable")[:depth]
            table[row, column] = judge(found.positions[order])
    if not len(candidates):
        flat = (0.0,) * len(weights)
        return FusionCurve(weights, flat, neutral, neutral, 0)
    best, chosen, quality = one_standard_error(table, weights, neutral, tolerance, at_least)
    return FusionCurve(weights, quality, best, chosen, len(candidates))


def one_standard_error(
    table: NDArray[np.float64],
    weights: Sequence[float],
    neutral: float,
    tolerance: float = 1.0,
    at_least: float | None = None,
) -> tuple[float, float, tuple[float, ...]]:
    """(best weight, chosen weight, mean quality by weight) of a table (weights, queries) of quality, as `learn_weight`
    says. neutral is one of the weights."""
    queries = table.shape[1]
    quality = table.mean(axis=1)
    best = int(quality.argmax())
    paired = table[best] - table
    errors = paired.std(axis=1, ddof=1) / np.sqrt(queries) if queries > 1 else np.full(len(weights), np.inf)
    low, high = sorted((neutral, weights[best]))
    allowed = [
        weight
        for row, weight in enumerate(weights)
        if low <= weight <= high
        and (row == best or quality[best] - quality[row] <= tolerance * errors[row])
        and (at_least is None or weight >= at_least)
    ]
    chosen = min(allowed, key=lambda weight: abs(weight - neutral)) if allowed else neutral
    return weights[best], chosen, tuple(quality.tolist())


# The second stage


def with_reranker(first: NDArray[Any], read: NDArray[Any], weight: float) -> Floats:
    """(C,) scores of a query's candidates: (1 - weight) z(first) + weight z(read), z over the passages that were read.

    first: (C,) fused scores of the first stage, best first. read: (R,) what a re-ranker says of the first R.
    Standardised over the same passages, the two are on one scale, whatever the re-ranker's own. The rest was not read
    and counts as the least of what was: it keeps its order and never passes what was read.
    """
    count = len(read)
    if not count:
        return np.asarray(first, dtype=np.float32)
    own, theirs = (standardise(side, side[:count].mean(), side[:count].std()) for side in (first, read))
    all_read = np.full(len(first), theirs.min(), dtype=np.float32)
    all_read[:count] = theirs
    mixed: Floats = ((1 - weight) * own + weight * all_read).astype(np.float32)
    return mixed


@dataclass(frozen=True, slots=True)
class ReadCandidates:
    """One query's ranking of the first stage, best first: positions (C,), fused scores (C,), and what a re-ranker says
    of the first R (R,)."""

    positions: Positions
    first: Floats
    read: Floats

    def ranked(self, weight: float) -> Positions:
        """Positions, best first, under this share of the re-ranker."""
        return self.positions[np.argsort(-with_reranker(self.first, self.read, weight), kind="stable")]


RERANK_WEIGHTS = (0.0, *WEIGHTS, 1.0)


def learn_rerank_weight(
    candidates: Sequence[ReadCandidates], judges: Sequence[Judge], *, tolerance: float = 1.0
) -> FusionCurve:
    """The re-ranker's share, by the rule of `learn_weight`; neutral is 0, for a second stage has to earn its time."""
    if len(candidates) != len(judges):
        raise InvalidInput(f"{len(candidates)} candidate lists but {len(judges)} judges: one each is needed.")
    if not len(candidates):
        return FusionCurve(RERANK_WEIGHTS, (0.0,) * len(RERANK_WEIGHTS), 0.0, 0.0, 0)
    table = np.array(
        [
            [judge(found.ranked(weight)) for found, judge in zip(candidates, judges, strict=True)]
            for weight in RERANK_WEIGHTS
        ]
    )
    best, chosen, quality = one_standard_error(table, RERANK_WEIGHTS, 0.0, tolerance, None)
    return FusionCurve(RERANK_WEIGHTS, quality, best, chosen, len(candidates))
