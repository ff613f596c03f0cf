"""The gate: whether an adapted model ships, decided on queries that it was not trained on.

Evidence is ranked: what the user's people labelled, what people wrote in the documents, a language model's
paraphrases, text crops. Crops never let a model through: a model trained on crops wins on held-out crops while it
loses on real questions. Below the top rank, the kinds that judge are other kinds than those that trained.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from statistics import NormalDist
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
_GATE = GateConfig()
_PARAPHRASE_FOLDS = 2  # each as good as half of hundreds of questions makes it; more folds cost as many trainings

FEWEST_TO_TRAIN = 16
"""Fewer queries than this teach nothing that held-out ones could show."""


@dataclass(frozen=True)
class Plan:
    """What may train and what must judge. reason: said to the user; train is empty where nothing could judge.

    crossed: number of folds where every query that judges trains as well, 0 where what judges was held out. folds:
    query id → the fold that it judges; barred: query id → folds in which it must not train.
    """

    train: tuple[Query, ...]
    judge: tuple[Query, ...]
    evidence: Evidence | None
    reason: str
    crossed: int = 0
    folds: Mapping[str, int] = field(default_factory=dict)
    barred: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def parts(self) -> list[tuple[tuple[Query, ...], tuple[Query, ...]]]:
        """(what trains, what judges it), fold by fold; one pair where the judges were held out."""
        if not self.crossed:
            return [(self.train, self.judge)]
        return [
            (
                tuple(query for query in self.train if fold not in self.barred[query.id]),
                tuple(query for query in self.judge if self.folds[query.id] == fold),
            )
            for fold in sorted(set(self.folds.values()))
        ]


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
    dev: Sequence[Query] = (),
    only_judge: Collection[str] = (),
    only_train: Collection[str] = (),
    minimum: Mapping[Evidence, int] = MINIMUM,
    split: SplitConfig = _SPLIT,
    config: GateConfig = _GATE,
    dense_share: float = 0.0,
) -> Plan:
    """Choose who judges, then who may train.

    The best-ranked evidence of which there is enough judges. Labelled queries may train and judge (they are the truth):
    fewer than `config.cross_fit_below` do both, by cross-fitting; of more, those that were held out judge. Where enough
    of them train, nothing that people wrote in the documents trains beside them. Of what people wrote in the documents
    the most frequent kind judges and no query of that kind trains. A language model's questions train and judge by
    cross-fitting, dealt by document. Crops never train.

    dev: what steers a training where the judges are held out. only_judge: ids that must not train; only_train: ids that
    must not judge. dense_share: the neutral weight of the fusion; above `config.most_dense` a language model's
    questions do not train.
    """
    train = [query for query in train if query.evidence is not Evidence.CROP]
    everything = [query for query in (*train, *dev, *heldout) if query.evidence is not Evidence.CROP]
    trainable = [query for query in everything if query.id not in only_judge]
    counts = {rank: sum(query.evidence is rank for query in heldout) for rank in Evidence}
    labelled = [query for query in everything if query.evidence is Evidence.LABELLED]
    advice = _advice(train, labelled, trainable, counts, only_judge, only_train, split, config)

    judges = [query for query in labelled if query.id not in only_train]
    measured = any(query.id in only_judge for query in labelled)
    if not measured and minimum[Evidence.LABELLED] <= len(judges) < config.cross_fit_below:
        trained = _beside_labels(trainable)
        if len(trained) >= FEWEST_TO_TRAIN:
            reason = f"{len(judges)} labelled queries judge, each a model that did not see it, and train."
            return Plan(trained, tuple(judges), Evidence.LABELLED, reason, config.folds)
    for rank in (Evidence.LABELLED, Evidence.HUMAN, Evidence.PARAPHRASE):
        judges = [query for query in heldout if query.evidence is rank]
        if rank is Evidence.PARAPHRASE:
            judges = [query for query in everything if query.evidence is rank]
        if len(judges) < minimum[rank]:
            continue
        crossed = 0
        if rank is Evidence.LABELLED:
            trained = _beside_labels(train)
            reason = f"{len(judges)} labelled queries that were held out judge."
            if left := len(train) - len(trained):
                labels = sum(query.evidence is rank for query in train)
                reason += f" {labels} labelled ones train, and {left} found in the documents do not."
        elif rank is Evidence.HUMAN:
            kinds = {kind: sum(query.kind == kind for query in judges) for kind in {query.kind for query in judges}}
            kind = max(sorted(kinds), key=lambda name: kinds[name])
            if kinds[kind] < minimum[rank]:
                continue
            judges = [query for query in judges if query.kind == kind]
            trained = tuple(query for query in train if query.kind != kind)
            reason = f"{len(judges)} held-out queries of kind {kind!r} judge; other kinds train."
        elif dense_share > config.most_dense:
            return Plan(
                (),
                (),
                None,
                f"The base model's scores single passages out so clearly (neutral dense share {dense_share:g}, more "
                f"than gate.most_dense = {config.most_dense:g}) that a language model's questions have little to teach "
                f"it and can spoil what users ask. {advice}.",
            )
        else:
            crossed = _PARAPHRASE_FOLDS
            trained = tuple(trainable)
            reason = (
                f"{len(judges)} questions by a language model judge, each a model that did not see its document, and "
                "train."
            )
        if len(trained) >= FEWEST_TO_TRAIN:
            return Plan(trained, tuple(judges), rank, reason, crossed)
        reason = f"{len(judges)} held-out queries ({rank.value}) could judge a trained model"
        return Plan(
            (),
            tuple(judges),
            rank,
            f"{reason}, but only {len(trained)} are left to train on that are not text cut from the passages "
            f"(which teaches a pre-trained encoder little or does harm); at least {FEWEST_TO_TRAIN} are needed. "
            f"{advice}.",
        )
    counts[Evidence.PARAPHRASE] = sum(query.evidence is Evidence.PARAPHRASE for query in everything)
    found = ", ".join(f"{count} {rank.value}" for rank, count in counts.items() if count) or "none"
    written = counts[Evidence.PARAPHRASE]
    return Plan(
        (),
        (),
        None,
        f"No evidence good enough to judge a trained model (queries that could judge: {found}). The base model stays "
        f"and only the search is tuned. {advice}; "
        + (
            f"so would {minimum[Evidence.PARAPHRASE] - written} more questions by the language model "
            "(query.generator_queries)."
            if written
            else "questions written by a language model (--generator) can do too."
        ),
    )


def _beside_labels(queries: Sequence[Query]) -> tuple[Query, ...]:
    """What may train where labelled queries judge: not what people wrote in the documents if enough labels train."""
    labels = sum(query.evidence is Evidence.LABELLED for query in queries)
    return tuple(query for query in queries if query.evidence is not Evidence.HUMAN or labels < FEWEST_TO_TRAIN)


def _advice(
    train: Sequence[Query],
    labelled: Sequence[Query],
    trainable: Sequence[Query],
    counts: Mapping[Evidence, int],
    only_judge: Collection[str],
    only_train: Collection[str],
    split: SplitConfig,
    config: GateConfig,
) -> str:
    """How many more labelled questions would let a trained model be judged."""
    judges = sum(query.id not in only_train for query in labelled)
    more = "more " if judges else ""
    if config.cross_fit_below > FEWEST_TO_TRAIN and not any(query.id in only_judge for query in labelled):
        to_judge = max(0, MINIMUM[Evidence.LABELLED] - judges)
        to_train = max(0, FEWEST_TO_TRAIN - len(_beside_labels(trainable)))
        needed: int | None = max(to_judge, to_train)
    else:
        needed = labels_needed(len(train), counts[Evidence.LABELLED], split)
    if needed is None:
        return "Hold some of the labelled questions out (split.heldout above 0), so that they can judge"
    return f"{needed:,} {more}labelled questions (--queries) would be enough to judge a trained model"


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
    crossed: bool = False,
) -> Decision:
    """Judge a trained model by its held-out quality per query: (adapted, base) for dense and for the default search.

    It ships if the default search is better beyond doubt (interval above 0), or if dense search is and the default
    search did not lose by more than one standard error. drift: mean 1 − cos between base and adapted vectors of
    unlabelled passages. met: per query whether training saw its answer, with another question; a model that gains there
    and loses beyond doubt on the others does not ship. crossed: whether each query was searched by a model of its own
    fold.
    """
    settings: dict[str, Any] = {"samples": config.bootstrap_samples, "confidence": config.confidence, "seed": seed}
    in_dense = paired_bootstrap(*dense, **settings)
    in_search = paired_bootstrap(*search, **settings)
    asked = (
        f"{in_search.n} queries, each searched by a model that had not seen it"
        if crossed
        else (f"{in_search.n} held-out queries")
    )
    reasons = [f"dense nDCG@10 {_signed(in_dense)}, default search {_signed(in_search)} on {asked}"]
    if in_search.n < config.min_queries:
        reasons.append(f"fewer than {config.min_queries} queries: the interval is wide")
    if drift > config.max_drift:
        verdict = Verdict.NO_GAIN if in_search.delta >= 0 else Verdict.REGRESSION_AVOIDED
        return Decision(verdict, 0.0, (*reasons, _moved_too_far(drift, config)), in_dense, in_search)
    new = _on_new_answers(dense, search, met, settings)
    if new is not None:
        reasons.append(
            f"of these, {new[1].n} ask for what no training question asked for: dense {_signed(new[0])}, default "
            f"search {_signed(new[1])}"
        )
        if new[0].worse or new[1].worse:
            reasons.append("worse beyond doubt where the answers are new: the base stays")
            return Decision(Verdict.REGRESSION_AVOIDED, 0.0, tuple(reasons), in_dense, in_search)
    if in_search.better or (in_dense.better and not _lost(in_search)):
        where = "" if in_search.better else " for dense search, and the default search did not lose beyond noise"
        reasons.append(f"better beyond doubt{where}: the adapted model ships")
        return Decision(Verdict.WIN, strength, tuple(reasons), in_dense, in_search)
    worse = in_search.delta < 0 or in_dense.delta < 0
    reasons.append("worse on held-out queries: the base stays" if worse else "no proof of a gain: the base stays")
    verdict = Verdict.REGRESSION_AVOIDED if worse else Verdict.NO_GAIN
    return Decision(verdict, 0.0, tuple(reasons), in_dense, in_search)


def _lost(interval: Interval) -> bool:
    """Whether the mean lies more than one standard error below 0."""
    error = (interval.high - interval.low) / (2 * NormalDist().inv_cdf((1 + interval.confidence) / 2))
    return interval.delta < -error


def within_drift(decision: Decision, drift: float, config: GateConfig) -> Decision:
    """The decision, unless the model that was trained on all queries moved too far from the base."""
    if not decision.adapted or drift <= config.max_drift:
        return decision
    return replace(
        decision, verdict=Verdict.NO_GAIN, strength=0.0, reasons=(*decision.reasons, _moved_too_far(drift, config))
    )


def _moved_too_far(drift: float, config: GateConfig) -> str:
    return (
        f"the vectors of ordinary passages moved by {drift:.2f} (1 − cosine), more than {config.max_drift}: what the "
        "queries do not cover may have been lost"
    )


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
