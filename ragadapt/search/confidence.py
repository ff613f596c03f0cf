"""How sure a search is: the probability that a hit answers the question, from 0 to 1.

A fused score says which passage is better than another, not whether any of them is an answer: its scale depends on the
query. Two questions are kept apart here, each with a logistic map of a few signals:

    P(this hit answers) = P(the question is answered here at all) · P(this hit does | it is)

    here   the nearness of the nearest passage and the largest coverage of the query's words (`Candidates`): whether
           any passage is about what is asked, on a scale that is the same for every query
    hit    the margin of the first candidate over the tenth, and the gap from the first to this hit

A larger gap never makes a hit surer, so no hit is surer than the one before it. The fixed maps were fitted to nine
collections (docs/confidence.json; every figure there is of a map that its collection had no say in). Where a corpus has
questions with known answers, a fit adjusts the second by two numbers, a slope and a shift of its logit (after Platt,
1999), and keeps them if they foretell questions that they were not fitted to better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragadapt.search.fusion import Candidates, Floats, normal_surprisal, standardise

VERSION = 1
LOOKED_AT = 10  # best candidates of a query that tell how sure a search is

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Weights:
    """One kind of search. here, nearness, coverage: of the logit that the question is answered here; hit, margin, gap:
    of the logit that a hit answers it then."""

    here: float
    nearness: float
    coverage: float
    hit: float
    margin: float
    gap: float


@dataclass(frozen=True, slots=True)
class Signals:
    """What a search found of one query. nearness, coverage: as of `Candidates`, 0 where the kind of search has none.
    scores: (k,) of the hits, best first; margin: of the first over the tenth, or the last."""

    nearness: float
    coverage: float
    margin: float
    scores: Floats

    @classmethod
    def of_hybrid(cls, candidates: Candidates, order: NDArray[np.int64], scores: Floats) -> Signals:
        """order: of the candidates, best first; at least one. scores: (C,) fused, by candidate."""
        assert candidates.nearness is not None and candidates.coverage is not None
        ranked = scores[order]
        return cls(candidates.nearness, candidates.coverage, _margin(ranked), ranked)

    @classmethod
    def of_dense(cls, scores: Floats, mean: float, deviation: float, nearness: float) -> Signals:
        """scores: of the hits, best first; at least one. mean, deviation: of the query's scores over the corpus."""
        surprisal = normal_surprisal(standardise(scores, mean, deviation))
        return cls(nearness, 0.0, _margin(surprisal), surprisal)

    @classmethod
    def of_lexical(cls, scores: Floats, mean: float, deviation: float, mass: float) -> Signals:
        """As for dense search. mass: `LexicalIndex.masses` of the query."""
        z = standardise(scores, mean, deviation)
        return cls(0.0, coverage_of(float(scores[0]), mass), _margin(z), z)


@dataclass(frozen=True, slots=True)
class Reread:
    """How sure hits are once a re-ranker has ordered them: slope and shift of the logit that their places had before,
    and the weight of the best thing that it said of a passage, standardised by mean and deviation."""

    slope: float
    shift: float
    weight: float
    mean: float
    deviation: float

    def of(self, sure: Floats, read: Floats) -> Floats:
        """(k,) from (k,) of the first stage and (R,) what the re-ranker said."""
        if not len(read):
            return sure
        said = self.weight * (float(np.max(read)) - self.mean) / self.deviation
        made: Floats = probability(self.slope * logit_of(sure) + self.shift + said).astype(np.float32)
        return made


@dataclass(frozen=True, slots=True)
class Confidence:
    """A map from what a search finds to probabilities.

    hybrid, dense, lexical: by kind of search. slope, shift: of the second logit, as a corpus's own questions adjust it.
    evidence, queries, reason: what it rests on. reread: with the retriever's own re-ranker; None = each place is as
    sure as without. unrelated: what the encoder gives texts about different things (`Background.nearness`).
    """

    hybrid: Weights
    dense: Weights
    lexical: Weights
    slope: float = 1.0
    shift: float = 0.0
    evidence: str | None = None
    queries: int = 0
    reason: str = "the fixed map"
    reread: Reread | None = None
    unrelated: float | None = None

    def of_hybrid(self, candidates: Candidates, order: NDArray[np.int64], scores: Floats) -> Floats:
        """(k,) of some candidates, best first: order says which, the best LOOKED_AT of all among them. scores: (C,)
        fused, by candidate."""
        if not len(order):
            return np.zeros(0, np.float32)
        return self._of(self.hybrid, Signals.of_hybrid(candidates, order, scores))

    def of_dense(self, scores: Floats, mean: float, deviation: float, nearness: float) -> Floats:
        """(k,) of hits of dense search, as for `Signals.of_dense`, at least LOOKED_AT where there are so many."""
        if not len(scores):
            return np.zeros(0, np.float32)
        return self._of(self.dense, Signals.of_dense(scores, mean, deviation, nearness))

    def of_lexical(self, scores: Floats, mean: float, deviation: float, mass: float) -> Floats:
        """(k,) of hits of lexical search, as for dense search."""
        if not len(scores):
            return np.zeros(0, np.float32)
        return self._of(self.lexical, Signals.of_lexical(scores, mean, deviation, mass))

    def _of(self, weights: Weights, signals: Signals) -> Floats:
        here, hits = logits(weights, signals)
        sure: Floats = (probability(here) * probability(self.slope * hits + self.shift)).astype(np.float32)
        return sure

    def section(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def of_section(cls, values: Mapping[str, Any] | None) -> Confidence:
        """What `section` said; the fixed map where there is none, or one of a later version. Raises KeyError,
        TypeError, ValueError for what is damaged."""
        if values is None or int(values["version"]) > VERSION:
            return FIXED
        parts: dict[str, Any] = {kind: Weights(**values[kind]) for kind in ("hybrid", "dense", "lexical")}
        if values.get("reread") is not None:
            parts["reread"] = Reread(**values["reread"])
        return cls(**{name: value for name, value in values.items() if name != "version"} | parts)


def logits(weights: Weights, signals: Signals) -> tuple[float, Doubles]:
    """That the question is answered here, and (k,) that each hit answers it then."""
    here = weights.here + weights.nearness * signals.nearness + weights.coverage * signals.coverage
    gaps = np.asarray(signals.scores[0] - signals.scores, np.float64)
    return here, weights.hit + weights.margin * signals.margin + weights.gap * gaps


def probability(logit: Any) -> Any:
    """1 / (1 + e^−logit)."""
    return 1 / (1 + np.exp(-np.clip(logit, -60, 60)))


def logit_of(sure: Any) -> Doubles:
    """log(p / (1 − p))."""
    p = np.clip(np.asarray(sure, np.float64), 1e-12, 1 - 1e-7)
    made: Doubles = np.log(p / (1 - p))
    return made


def coverage_of(score: float, mass: float) -> float:
    """The share of a query's idf mass that a BM25 score makes up; 0 for a query without words."""
    return score / float(mass) if mass > 1e-6 else 0.0


def _margin(scores: Floats) -> float:
    return float(scores[0] - scores[:LOOKED_AT][-1])


FIXED = Confidence(
    hybrid=Weights(here=-7.956, nearness=16.731, coverage=8.604, hit=-0.598, margin=0.093, gap=-0.202),
    dense=Weights(here=-6.397, nearness=18.572, coverage=0.0, hit=-0.888, margin=0.158, gap=-0.307),
    lexical=Weights(here=-4.044, nearness=0.0, coverage=16.56, hit=-0.784, margin=0.234, gap=-0.514),
)
"""The maps of docs/confidence.json, fitted to all of its collections."""
