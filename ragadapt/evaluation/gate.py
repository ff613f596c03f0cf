"""The gate: whether an adapted model ships, decided on queries that it was not trained on.

Evidence is ranked: what the user's people labelled, what people wrote in the documents, a language model's
paraphrases, text crops. Crops never let a model through: a model trained on crops wins on held-out crops while it
loses on real questions. Below the top rank, the kinds that judge are other kinds than those that trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from ragadapt.config import GateConfig, SplitConfig
from ragadapt.evaluation.significance import Interval, Values, paired_bootstrap
from ragadapt.values import Evidence, Query


class Verdict(StrEnum):
    WIN = "WIN"
    NO_GAIN = "NO GAIN"
    REGRESSION_AVOIDED = "REGRESSION AVOIDED"


MINIMUM = {Evidence.LABELLED: 10, Evidence.HUMAN: 40, Evidence.PARAPHRASE: 100}
"""Fewest held-out queries of a rank that may let a model through; crops may not."""


_SPLIT = SplitConfig()

FEWEST_TO_TRAIN = 16
"""Fewer queries than this teach nothing that held-out ones could show."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What may train and what must judge. reason: said to the user; train is empty where nothing could judge."""

    train: tuple[Query, ...]
    judge: tuple[Query, ...]
    evidence: Evidence | None
    reason: str


def labels_needed(trained: int, heldout: int, split: SplitConfig) -> int | None:
    """How many more labelled questions, dealt as `split` says, would let a trained model be judged; None where none
    would. trained: queries that could train; heldout: labelled ones that were held out."""
    judging, training = split.heldout, (1 - split.heldout) * (1 - split.dev)
    to_judge, to_train = max(0, MINIMUM[Evidence.LABELLED] - heldout), max(0, FEWEST_TO_TRAIN - trained)
    if (to_judge and not judging) or (to_train and not training):
        return None
    needed = [math.ceil(few / share - 1e-9) for few, share in ((to_judge, judging), (to_train, training)) if few]
    return max(needed, default=0)


def plan(
    train: Sequence[Query],
    heldout: Sequence[Query],
    *,
    minimum: Mapping[Evidence, int] = MINIMUM,
    split: SplitConfig = _SPLIT,
) -> Plan:
    """Choose the judges from the held-out queries, then the kinds that may train.

    The best-ranked evidence with enough held-out queries judges. Labelled queries may train and judge (they are
    split, and they are the truth); where there are enough of them to train, nothing that people wrote in the
    documents trains beside them. Of any other rank, the most frequent kind judges and no query of that kind trains.
    Crops never train.
    """
    train = [query for query in train if query.evidence is not Evidence.CROP]
    counts = {rank: sum(query.evidence is rank for query in heldout) for rank in Evidence}
    needed = labels_needed(len(train), counts[Evidence.LABELLED], split)
    more = "more " if counts[Evidence.LABELLED] else ""
    advice = (
        "Hold some of the labelled questions out (split.heldout above 0), so that they can judge"
        if needed is None
        else f"{needed:,} {more}labelled questions (--queries) would be enough to judge a trained model"
    )
    for rank in (Evidence.LABELLED, Evidence.HUMAN, Evidence.PARAPHRASE):
        judges = [query for query in heldout if query.evidence is rank]
        if len(judges) < minimum[rank]:
            continue
        if rank is Evidence.LABELLED:
            labels = sum(query.evidence is Evidence.LABELLED for query in train)
            trained = tuple(
                query for query in train if query.evidence is not Evidence.HUMAN or labels < FEWEST_TO_TRAIN
            )
            reason = f"{len(judges)} labelled queries that were held out judge."
            if left := len(train) - len(trained):
                reason += f" {labels} labelled ones train, and {left} found in the documents do not."
        else:
            kinds = {kind: sum(query.kind == kind for query in judges) for kind in {query.kind for query in judges}}
            kind = max(sorted(kinds), key=lambda name: kinds[name])
            if kinds[kind] < minimum[rank]:
                continue
            judges = [query for query in judges if query.kind == kind]
            trained = tuple(query for query in train if query.kind != kind)
            reason = f"{len(judges)} held-out queries of kind {kind!r} judge; other kinds train."
        if len(trained) >= FEWEST_TO_TRAIN:
            return Plan(trained, tuple(judges), rank, reason)
        reason = f"{len(judges)} held-out queries ({rank.value}) could judge a trained model"
        return Plan(
            (),
            tuple(judges),
            rank,
            f"{reason}, but only {len(trained)} are left to train on that are not text cut from the passages "
            f"(which teaches a pre-trained encoder little or does harm); at least {FEWEST_TO_TRAIN} are needed. "
            f"{advice}.",
        )
    found = ", ".join(f"{count} {rank.value}" for rank, count in counts.items() if count) or "none"
    return Plan(
        (),
        (),
        None,
        f"No evidence good enough to judge a trained model (held-out queries: {found}). The base model stays and only "
        f"the search is tuned. {advice}; questions written by a language model (--generator) can do too.",
    )


@dataclass(frozen=True, slots=True)
class Decision:
    """What ships. strength: 1 = the trained adapter, between 0 and 1 = interpolated towards the base, 0 = the base."""

    verdict: Verdict
    strength: float
    reasons: tuple[str, ...]
    dense: Interval | None = None  # adapted − base, dense search
    search: Interval | None = None  # adapted − base, the default search of either

    @property
    def adapted(self) -> bool:
        return self.strength > 0


def not_trained(reason: str) -> Decision:
    """The decision where no model was trained."""
    return Decision(Verdict.NO_GAIN, 0.0, (reason,))


def decide(
    *,
    strength: float,
    dense: tuple[Values, Values],
    search: tuple[Values, Values],
    drift: float,
    config: GateConfig,
    seed: int,
    met: Sequence[bool] | None = None,
) -> Decision:
    """Judge a trained model by its held-out quality per query: (adapted, base) for dense and for the default search.

    It ships if the default search is better beyond doubt (interval above 0), or if dense search is and the default
    search did not lose on average. drift: mean 1 − cos between base and adapted vectors of unlabelled passages.
    met: per query whether training saw its answer, with another question; a model that gains there and loses beyond
    doubt on the others does not ship.
    """
    settings: dict[str, Any] = {"samples": config.bootstrap_samples, "confidence": config.confidence, "seed": seed}
    in_dense = paired_bootstrap(*dense, **settings)
    in_search = paired_bootstrap(*search, **settings)
    reasons = [
        f"dense nDCG@10 {_signed(in_dense)}, default search {_signed(in_search)} on {in_search.n} held-out queries"
    ]
    if in_search.n < config.min_queries:
        reasons.append(f"fewer than {config.min_queries} held-out queries: the interval is wide")
    if drift > config.max_drift:
        reasons.append(
            f"the vectors of ordinary passages moved by {drift:.2f} (1 − cosine), more than {config.max_drift}: "
            "what the queries do not cover may have been lost"
        )
        verdict = Verdict.NO_GAIN if in_search.delta >= 0 else Verdict.REGRESSION_AVOIDED
        return Decision(verdict, 0.0, tuple(reasons), in_dense, in_search)
    new = _on_new_answers(dense, search, met, settings)
    if new is not None:
        reasons.append(
            f"of these, {new[1].n} ask for what no training question asked for: dense {_signed(new[0])}, default "
            f"search {_signed(new[1])}"
        )
        if new[0].worse or new[1].worse:
            reasons.append("worse beyond doubt where the answers are new: the base stays")
            return Decision(Verdict.REGRESSION_AVOIDED, 0.0, tuple(reasons), in_dense, in_search)
    if in_search.better or (in_dense.better and in_search.delta >= 0):
        reasons.append("better beyond doubt: the adapted model ships")
        return Decision(Verdict.WIN, strength, tuple(reasons), in_dense, in_search)
    worse = in_search.delta < 0 or in_dense.delta < 0
    reasons.append("worse on held-out queries: the base stays" if worse else "no proof of a gain: the base stays")
    verdict = Verdict.REGRESSION_AVOIDED if worse else Verdict.NO_GAIN
    return Decision(verdict, 0.0, tuple(reasons), in_dense, in_search)


def _on_new_answers(
    dense: tuple[Values, Values], search: tuple[Values, Values], met: Sequence[bool] | None, settings: dict[str, Any]
) -> tuple[Interval, Interval] | None:
    """The two intervals over queries whose answers training never saw; None where they are all or too few."""
    if met is None or all(met) or not any(met):
        return None
    new = np.flatnonzero(~np.asarray(met, np.bool_))
    if len(new) < MINIMUM[Evidence.LABELLED]:
        return None

    def part(values: tuple[Values, Values]) -> tuple[Values, Values]:
        return np.asarray(values[0], np.float64)[new], np.asarray(values[1], np.float64)[new]

    return paired_bootstrap(*part(dense), **settings), paired_bootstrap(*part(search), **settings)


def _signed(interval: Interval) -> str:
    return f"{interval.delta:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
