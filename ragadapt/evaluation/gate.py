"""The gate: whether an adapted model ships, decided on queries that it was not trained on.

What the user's people labelled comes first. A language model's questions come before what people wrote in the
documents (questions, link texts, docstrings), which is asked otherwise than users ask. Crops never let a model through:
a model trained on crops wins on held-out crops while it loses on real questions. No query is judged by a model that saw
it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
    LIKELY_GAIN = "LIKELY GAIN"
    NO_GAIN = "NO GAIN"
    REGRESSION_AVOIDED = "REGRESSION AVOIDED"


MINIMUM = {Evidence.LABELLED: 10, Evidence.HUMAN: 40, Evidence.PARAPHRASE: 100}
"""Fewest queries of a rank that may let a model through; crops may not."""


_SPLIT = SplitConfig()
_GATE = GateConfig()
PARAPHRASE_FOLDS = 2  # each as good as half of hundreds of questions makes it; more folds cost as many trainings


@dataclass(frozen=True, slots=True)
class Prior:
    """What a model that few labels trained gains in nDCG@10 at full strength: deviation between corpora, about no gain
    at all, and between the queries of one."""

    corpora: float
    queries: float


DENSE, SEARCH = Prior(0.04, 0.15), Prior(0.01, 0.07)
PRIOR_QUERIES = 10
"""A prior's deviation between queries weighs as much as so many of them: few may all happen to change nothing."""

GENTLE = 0.5
"""Strength up to which a dense gain is enough for judges that flatter, if they see no loss of the default search."""

FEWEST_TO_TRAIN = 16
"""Fewer queries than this teach nothing that held-out ones could show."""


@dataclass(frozen=True)
class Plan:
    """What may train and what must judge. reason: said to the user; train is empty where nothing could judge.

    crossed: number of folds where every query that judges trains as well, 0 where what judges was held out. folds:
    query id → the fold that it judges; barred: query id → folds in which it must not train. untrained: what is judged
    was made elsewhere and nothing trains.
    """

    train: tuple[Query, ...]
    judge: tuple[Query, ...]
    evidence: Evidence | None
    reason: str
    crossed: int = 0
    folds: Mapping[str, int] = field(default_factory=dict)
    barred: Mapping[str, frozenset[int]] = field(default_factory=dict)
    untrained: bool = False

    @property
    def goes_on(self) -> bool:
        """Whether there will be a model to judge."""
        return bool(self.train) or self.untrained

    @property
    def barred_texts(self) -> dict[str, frozenset[int]]:
        """Text of a query that trains → folds in which no query with it may."""
        found: dict[str, frozenset[int]] = {}
        for query in self.train:
            found[query.text] = found.get(query.text, frozenset()) | self.barred[query.id]
        return found

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


def labels_to_judge(split: SplitConfig = _SPLIT, config: GateConfig = _GATE) -> int | None:
    """How many labelled questions, with nothing beside them, let a trained model be judged; None where none do."""
    fewest = max(MINIMUM[Evidence.LABELLED], FEWEST_TO_TRAIN)
    return fewest if config.cross_fit_below > fewest else labels_needed(0, 0, split)


def plan(
    train: Sequence[Query],
    heldout: Sequence[Query],
    *,
    dev: Sequence[Query] = (),
    only_judge: Collection[str] = (),
    only_train: Collection[str] = (),
    split: SplitConfig = _SPLIT,
    config: GateConfig = _GATE,
    dense_share: float = 0.0,
) -> Plan:
    """Choose who judges, then who may train.

    Labelled queries may train and judge (they are the truth): fewer than `config.cross_fit_below` do both, by
    cross-fitting; of more, those that were held out judge. Without them a language model's questions do both, by
    cross-fitting, dealt by document. Where enough of either train, nothing that people wrote in the documents trains
    beside them. Else of that the most frequent kind judges and no query of that kind trains. Crops never train.

    dev: what steers a training where the judges are held out. only_judge: ids that must not train; only_train: ids that
    must not judge. dense_share: the neutral weight of the fusion; above `config.most_dense` a language model's
    questions do not train.
    """
    queries = _Queries(train, dev, heldout, frozenset(only_judge), frozenset(only_train), split, config)
    by_paraphrases = _by_paraphrases(queries, dense_share)
    return (
        _by_all_labels(queries)
        or _by_held_out_labels(queries)
        or (by_paraphrases if by_paraphrases is not None and by_paraphrases.train else None)
        or _by_another_human_kind(queries)
        or by_paraphrases
        or _by_nobody(queries)
    )


def plan_untrained(
    train: Sequence[Query], heldout: Sequence[Query], *, only_train: Collection[str] = (), config: GateConfig = _GATE
) -> Plan:
    """Who judges a model that learnt nothing from these queries: all of the best rank of which there are enough, but
    for those of the dev part, which choose its strength, and those that are for training alone."""
    queries = _Queries(train, (), heldout, frozenset(), frozenset(only_train), _SPLIT, config)
    for rank, few in MINIMUM.items():
        judges = [one for one in queries.everything if one.evidence is rank and one.id not in only_train]
        if len(judges) >= few:
            reason = f"{len(judges)} queries ({rank.value}) judge a model that was not trained here."
            return Plan((), tuple(judges), rank, reason, untrained=True)
    return _by_nobody(queries)


class _Queries:
    """What a plan is made from, without crops to train on."""

    def __init__(
        self,
        train: Sequence[Query],
        dev: Sequence[Query],
        heldout: Sequence[Query],
        only_judge: frozenset[str],
        only_train: frozenset[str],
        split: SplitConfig,
        config: GateConfig,
    ) -> None:
        self.train = [query for query in train if query.evidence is not Evidence.CROP]
        self.heldout = heldout
        self.everything = [*self.train, *(query for query in (*dev, *heldout) if query.evidence is not Evidence.CROP)]
        self.trainable = [query for query in self.everything if query.id not in only_judge]
        self.only_train = only_train
        self.labelled = [query for query in self.everything if query.evidence is Evidence.LABELLED]
        self.judging_labels = [query for query in self.labelled if self.judges(query)]
        # Where some labels are for measuring alone they judge, and no others are needed for that.
        self.crosses = not any(query.id in only_judge for query in self.labelled)
        self.split = split
        self.config = config

    def judges(self, query: Query) -> bool:
        """Whether it may."""
        return query.id not in self.only_train

    def held_out(self, rank: Evidence) -> list[Query]:
        return [query for query in self.heldout if query.evidence is rank]

    def written(self) -> list[Query]:
        """By a language model, and free to judge."""
        return [query for query in self.everything if query.evidence is Evidence.PARAPHRASE and self.judges(query)]

    def advice(self) -> str:
        """How many more labelled questions would let a trained model be judged."""
        if self.crosses and self.config.cross_fit_below > FEWEST_TO_TRAIN:
            to_judge = MINIMUM[Evidence.LABELLED] - len(self.judging_labels)
            needed: int | None = max(0, to_judge, FEWEST_TO_TRAIN - len(_beside_labels(self.trainable)))
        else:
            needed = labels_needed(len(self.train), len(self.held_out(Evidence.LABELLED)), self.split)
        if needed is None:
            return "Hold some of the labelled questions out (split.heldout above 0), so that they can judge"
        more = "more " if self.judging_labels else ""
        return f"{needed:,} {more}labelled questions (--queries) would be enough to judge a trained model"


def _by_all_labels(queries: _Queries) -> Plan | None:
    judges, train = queries.judging_labels, _beside_labels(queries.trainable)
    enough = MINIMUM[Evidence.LABELLED] <= len(judges) < queries.config.cross_fit_below
    if not queries.crosses or not enough or len(train) < FEWEST_TO_TRAIN:
        return None
    reason = f"{len(judges)} labelled queries judge, each a model that did not see it, and train."
    return Plan(train, tuple(judges), Evidence.LABELLED, reason, queries.config.folds)


def _by_held_out_labels(queries: _Queries) -> Plan | None:
    judges, train = queries.held_out(Evidence.LABELLED), _beside_labels(queries.train)
    if len(judges) < MINIMUM[Evidence.LABELLED]:
        return None
    reason = f"{len(judges)} labelled queries that were held out judge."
    if left := len(queries.train) - len(train):
        labels = sum(query.evidence is Evidence.LABELLED for query in queries.train)
        reason += f" {labels} labelled ones train, and {left} found in the documents do not."
    return _if_enough_train(queries, Plan(train, tuple(judges), Evidence.LABELLED, reason))


def _by_another_human_kind(queries: _Queries) -> Plan | None:
    judges = queries.held_out(Evidence.HUMAN)
    kinds = Counter(query.kind for query in judges)
    kind = max(sorted(kinds), key=lambda name: kinds[name], default="")
    if kinds[kind] < MINIMUM[Evidence.HUMAN]:
        return None
    judges = [query for query in judges if query.kind == kind]
    train = tuple(query for query in queries.train if query.kind != kind)
    reason = f"{len(judges)} held-out queries of kind {kind!r} judge; other kinds train."
    return _if_enough_train(queries, Plan(train, tuple(judges), Evidence.HUMAN, reason))


def _by_paraphrases(queries: _Queries, dense_share: float) -> Plan | None:
    judges, most = queries.written(), queries.config.most_dense
    if len(judges) < MINIMUM[Evidence.PARAPHRASE]:
        return None
    if dense_share > most:
        return Plan(
            (),
            (),
            None,
            f"The base model's scores single passages out so clearly (neutral dense share {dense_share:g}, more than "
            f"gate.most_dense = {most:g}) that a language model's questions have little to teach it and can spoil what "
            f"users ask. {queries.advice()}.",
        )
    reason = (
        f"{len(judges)} questions by a language model judge, each a model that did not see its document, and train."
    )
    train = tuple(query for query in queries.trainable if query.evidence is not Evidence.HUMAN)
    return _if_enough_train(queries, Plan(train, tuple(judges), Evidence.PARAPHRASE, reason, PARAPHRASE_FOLDS))


def _by_nobody(queries: _Queries) -> Plan:
    counts = {rank: len(queries.held_out(rank)) for rank in Evidence}
    written = counts[Evidence.PARAPHRASE] = len(queries.written())
    found = ", ".join(f"{count} {rank.value}" for rank, count in counts.items() if count) or "none"
    more = MINIMUM[Evidence.PARAPHRASE] - written
    other = (
        f"so would {more} more questions by the language model (query.generator_queries)."
        if written
        else "questions written by a language model (--generator) can do too."
    )
    reason = (
        f"No evidence good enough to judge a trained model (queries that could judge: {found}). The base model stays "
        f"and only the search is tuned. {queries.advice()}; {other}"
    )
    return Plan((), (), None, reason)


def _if_enough_train(queries: _Queries, plan: Plan) -> Plan:
    """The plan, or one that says that too little is left to train on."""
    if len(plan.train) >= FEWEST_TO_TRAIN or plan.evidence is None:
        return plan
    judges = "queries" if plan.crossed else "held-out queries"
    reason = (
        f"{len(plan.judge)} {judges} ({plan.evidence.value}) could judge a trained model, but only {len(plan.train)} "
        "are left to train on that are not text cut from the passages (which teaches a pre-trained encoder little or "
        f"does harm); at least {FEWEST_TO_TRAIN} are needed. {queries.advice()}."
    )
    return Plan((), plan.judge, plan.evidence, reason)


def _beside_labels(queries: Sequence[Query]) -> tuple[Query, ...]:
    """What may train where labelled queries judge: not what people wrote in the documents if enough labels train."""
    labels = sum(query.evidence is Evidence.LABELLED for query in queries)
    return tuple(query for query in queries if query.evidence is not Evidence.HUMAN or labels < FEWEST_TO_TRAIN)


@dataclass(frozen=True, slots=True)
class Decision:
    """What ships. strength: 1 = the trained adapter, between 0 and 1 = interpolated towards the base, 0 = the base."""

    verdict: Verdict
    strength: float
    reasons: tuple[str, ...]
    dense: Interval | None = None  # adapted − base, dense search
    search: Interval | None = None  # adapted − base, the default search of either
    expected: float = 0.0  # of a likely gain: the sum of both
    new: tuple[Interval, Interval] | None = None  # dense and default search again, by queries with new answers alone

    @property
    def adapted(self) -> bool:
        return self.strength > 0

    @property
    def too_far(self) -> bool:
        """Whether it ships, or would have, although queries with new answers lose: by the default search more than one
        standard error, or by dense search beyond doubt. Less of what was learnt may spare them."""
        if self.new is None or self.dense is None or self.search is None:
            return False
        dense, search = self.new
        gains = self.search.better or (self.dense.better and not self.search.lost)
        return (self.adapted or gains) and (search.lost or dense.worse)

    @property
    def spares_new(self) -> bool:
        """Whether it ships, and not `too_far`."""
        return self.adapted and not self.too_far


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
    flattering: bool = False,
    labelled: bool = False,
) -> Decision:
    """Judge a trained model by its held-out quality per query: (adapted, base) for dense and for the default search.

    It ships if the default search is better beyond doubt (interval above 0), or if dense search is and the
    default search did not lose by more than one standard error. Judges that flatter (flattering: a language
    model's questions, when such trained) must not see it lose at all then, and at strength GENTLE at most. Labels
    of people, when such trained (labelled), also let it ship where they are too few to prove a gain that is
    `likely`. drift: mean 1 − cos between base and adapted vectors of unlabelled passages. met: per query whether
    training saw its answer, with another question; a model that gains there and loses beyond doubt on the others
    does not ship at this strength (`Decision.too_far`). crossed: whether each query was searched by a model of its own
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
        verdict = Verdict.REGRESSION_AVOIDED if in_search.lost else Verdict.NO_GAIN
        return Decision(verdict, 0.0, (*reasons, _moved_too_far(drift, config)), in_dense, in_search)
    new = _on_new_answers(dense, search, met, settings)
    if new is not None:
        reasons.append(
            f"of these, {new[1].n} ask for what no training question asked for: dense {_signed(new[0])}, default "
            f"search {_signed(new[1])}"
        )
        if new[0].worse or new[1].worse:
            reasons.append("worse beyond doubt where the answers are new: the base stays")
            return Decision(Verdict.REGRESSION_AVOIDED, 0.0, tuple(reasons), in_dense, in_search, new=new)
    unharmed = strength <= GENTLE and in_search.delta >= 0 if flattering else not in_search.lost
    if in_search.better or (in_dense.better and unharmed):
        where = "" if in_search.better else " for dense search, and the default search did not lose beyond noise"
        reasons.append(f"better beyond doubt{where}: the adapted model ships")
        return Decision(Verdict.WIN, strength, tuple(reasons), in_dense, in_search, new=new)
    if in_dense.better and flattering and not in_search.lost:
        reasons.append(
            "better for dense search alone, by questions of the kind that trained: "
            + ("the default search must gain, too" if strength > GENTLE else "the default search must not lose")
        )
    if labelled:
        given = ((dense, DENSE), (search, SEARCH))
        sides = [expected(*pair, prior, strength=strength, tolerance=config.tolerance) for pair, prior in given]
        if likely(sides, config):
            reasons.append(_promise(sides, config))
            total = sum(side.mean for side in sides)
            return Decision(Verdict.LIKELY_GAIN, strength, tuple(reasons), in_dense, in_search, total, new)
    worse = in_search.lost or in_dense.lost
    found = "worse on queries that it did not see" if worse else "no proof of a gain"
    reasons.append(f"{found}: the base stays")
    verdict = Verdict.REGRESSION_AVOIDED if worse else Verdict.NO_GAIN
    return Decision(verdict, 0.0, tuple(reasons), in_dense, in_search, new=new)


def step_back(
    whole: Decision, strength: float, strengths: Iterable[float], judged: Callable[[float], Decision]
) -> Decision:
    """The decision on a model at a strength or, where it went `too_far`, at the largest gentler one that ships and does
    not; `judged` gives that at one. The reasons say why it ships at less, or that no less will do."""
    gentler = sorted((one for one in strengths if one < strength), reverse=True)
    if whole.new is None or not whole.too_far or not gentler:
        return whole
    for one in gentler:
        less = judged(one)
        if less.spares_new:
            dense, search = whole.new
            note = (
                f"at strength {strength:g} questions with new answers lost (dense {_signed(dense)}, default search "
                f"{_signed(search)}), so it ships at {one:g}"
            )
            return replace(less, reasons=(*less.reasons, note))
    tried = ", ".join(f"{one:g}" for one in gentler)
    note = f"less of what it learnt (strength {tried}) would not spare questions with new answers and gain"
    return replace(whole, reasons=(*whole.reasons, note))


@dataclass(frozen=True, slots=True)
class Expected:
    """What a trained model probably gains: mean, and the chance of a loss that is more than the tolerance."""

    mean: float
    risk: float


def expected(adapted: Values, base: Values, prior: Prior, *, strength: float, tolerance: float) -> Expected:
    """From quality per query and a sceptical prior, which expects no gain.

    Normal prior, normal likelihood (Spiegelhalter, Freedman and Parmar, 1994). The variance of a query's difference is
    that of the queries, shrunk towards the prior's. Both deviations of the prior grow with the strength.
    """
    differences = np.asarray(adapted, np.float64) - np.asarray(base, np.float64)
    count, mean = len(differences), float(differences.mean())
    squares = float(((differences - mean) ** 2).sum()) + PRIOR_QUERIES * (prior.queries * strength) ** 2
    error = squares / (PRIOR_QUERIES + count) / count
    between = (prior.corpora * strength) ** 2
    share = between / (between + error)  # of what was seen
    spread = math.sqrt(share * error)
    return Expected(share * mean, NormalDist(share * mean, spread).cdf(-tolerance))


def likely(sides: Sequence[Expected], config: GateConfig) -> bool:
    """Whether a gain is so likely that it ships: neither search may lose, and none risks it."""
    return all(side.mean >= 0 and side.risk <= config.risk for side in sides) and any(side.mean > 0 for side in sides)


def _promise(sides: Sequence[Expected], config: GateConfig) -> str:
    """sides: dense and default search."""
    means = f"dense {sides[0].mean:+.3f} and default search {sides[1].mean:+.3f}"
    risks = f"{sides[0].risk:.0%} and {sides[1].risk:.0%} (gate.risk = {config.risk:.0%})"
    return (
        f"too few questions to prove a gain, but one is likely: {means} are to be expected, and the chances of losing "
        f"more than {config.tolerance:g} are {risks}: the adapted model ships"
    )


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
