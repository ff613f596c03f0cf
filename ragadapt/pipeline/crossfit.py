"""Cross-fitting: every query is judged by a model that did not see it, so that few queries can judge and all can train.

The queries are dealt to folds; for each fold a model is trained on the others and searches for its queries, out of fold
(Stone, 1974). What ships afterwards is trained on all of them: a little better than any model that was judged, never
the one that knew the answers. Where the corpus is large only a pool of passages is encoded by the models of the folds,
and the base model is searched over the same pool.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ragadapt.config import FitConfig
from ragadapt.evaluation import gate
from ragadapt.evaluation.forecast import Forecast, forecast
from ragadapt.pipeline.adapt import gentlest
from ragadapt.pipeline.arena import Arena, dense_scores
from ragadapt.pipeline.fusion import DEPTH, LearntFusion, learn_by_folds, ranking
from ragadapt.search.fusion import Candidates, Floats, Fusion, Positions
from ragadapt.values import Evidence

if TYPE_CHECKING:
    from ragadapt.adapters import AdaptedEncoder
    from ragadapt.evaluation.judging import JudgedQuery

log = logging.getLogger(__name__)

WHOLE = 300
"""Passages up to which a corpus is encoded as a whole by every fold's model."""

_ORDINARY = 200  # passages at random, of a larger one: the deviation of a query's scores comes out within some 5 %
_POOL_DEPTH = 30  # passages of either side that the base finds for a judged query

FEEDBACKS = (Fusion().feedback, 0.0)


@dataclass(frozen=True, eq=False)
class Rankings:
    """What one model finds for each judged query.

    dense: positions by dense search, best first. candidates: feedback → those of hybrid search with it; 0 = without.
    answers, others: dense scores of the answers and of each query's best other passage.
    """

    dense: tuple[Positions, ...]
    candidates: Mapping[float, tuple[Candidates, ...]]
    answers: Floats
    others: Floats

    @classmethod
    def by(cls, arena: Arena) -> Rankings:
        """What the arena's model finds, with feedback and without: which of them ships may be decided later."""
        answers, others = dense_scores(arena)
        fusions = [replace(Fusion(), feedback=feedback) for feedback in FEEDBACKS]
        return cls(
            tuple(ranking(arena, "dense")),
            {fusion.feedback: tuple(arena.candidates(fusion)) for fusion in fusions},
            answers,
            others,
        )

    @classmethod
    def joined(cls, parts: Sequence[Rankings], order: Sequence[int]) -> Rankings:
        """Folds put together; order: where each query of the result stands in them."""

        def ordered(lists: Iterable[Sequence[Any]]) -> tuple[Any, ...]:
            every = [one for part in lists for one in part]
            return tuple(every[at] for at in order)

        return cls(
            ordered(part.dense for part in parts),
            {feedback: ordered(part.candidates[feedback] for part in parts) for feedback in FEEDBACKS},
            np.concatenate([part.answers for part in parts]),
            np.concatenate([part.others for part in parts]),
        )

    def arrays(self, prefix: str) -> dict[str, Any]:
        """Flat arrays with the ends of the lists that they hold."""
        made: dict[str, Any] = {f"{prefix}answers": self.answers, f"{prefix}others": self.others}
        made |= _flat(f"{prefix}dense", self.dense)
        for feedback, candidates in self.candidates.items():
            made |= _flat(f"{prefix}{feedback} positions", [one.positions for one in candidates])
            made |= _flat(f"{prefix}{feedback} dense_z", [one.dense for one in candidates])
            made |= _flat(f"{prefix}{feedback} lexical_z", [one.lexical for one in candidates])
            made[f"{prefix}{feedback} signals"] = np.array([(one.nearness, one.coverage) for one in candidates], float)
        return made

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Any], prefix: str) -> Rankings:
        """What `arrays` made."""
        candidates = {}
        for feedback in FEEDBACKS:
            lists = (_lists(arrays, f"{prefix}{feedback} {name}") for name in ("positions", "dense_z", "lexical_z"))
            signals = arrays[f"{prefix}{feedback} signals"].tolist()
            made = (Candidates(*parts, *own) for *parts, own in zip(*lists, signals, strict=True))
            candidates[feedback] = tuple(made)
        dense = tuple(_lists(arrays, f"{prefix}dense"))
        return cls(dense, candidates, arrays[f"{prefix}answers"], arrays[f"{prefix}others"])

    def dense_quality(self, judged: Sequence[JudgedQuery]) -> NDArray[np.float64]:
        """nDCG@10 of dense search per query (Q,)."""
        return np.array([item.ndcg(ranked) for item, ranked in zip(judged, self.dense, strict=True)])


def _flat(name: str, lists: Sequence[Any]) -> dict[str, Any]:
    ends = np.cumsum([len(one) for one in lists], dtype=np.int64)
    return {name: np.concatenate(lists) if lists else np.zeros(0), f"{name} ends": ends}


def _lists(arrays: Mapping[str, Any], name: str) -> list[Any]:
    return np.split(arrays[name], arrays[f"{name} ends"][:-1]) if len(arrays[f"{name} ends"]) else []


@dataclass(frozen=True, eq=False)
class CrossFitted:
    """What the base and the models of the folds find for the judged queries.

    folds: (Q,) each query's. adapted: strength → what the models at that strength find. drift: strength → mean 1 − cos
    between their vectors of ordinary passages and the base's. adapters: the folder where the folds' adapters lie, if
    they were kept.
    """

    judged: tuple[JudgedQuery, ...]
    folds: Positions
    base: Rankings
    adapted: Mapping[float, Rankings]
    drift: Mapping[float, float]
    adapters: Path | None = None

    def save(self, file: Path) -> None:
        """Everything but the judged queries."""
        arrays = self.base.arrays("base ") | {"folds": self.folds, "strengths": np.array(list(self.adapted))}
        for strength, found in self.adapted.items():
            arrays |= found.arrays(f"{strength} ")
            arrays[f"{strength} drift"] = np.float64(self.drift[strength])
        np.savez(file, **arrays)

    @classmethod
    def load(cls, file: Path, judged: tuple[JudgedQuery, ...]) -> CrossFitted:
        """What `save` wrote, with the queries in the same order."""
        with np.load(file, allow_pickle=False) as arrays:
            strengths = [float(strength) for strength in arrays["strengths"]]
            return cls(
                judged,
                arrays["folds"],
                Rankings.of_arrays(arrays, "base "),
                {strength: Rankings.of_arrays(arrays, f"{strength} ") for strength in strengths},
                {strength: float(arrays[f"{strength} drift"]) for strength in strengths},
            )


def cross_fit(
    arena: Arena,
    fold_of: Mapping[str, int],
    strengths: Sequence[float],
    trained: Callable[[int], AdaptedEncoder],
    scratch: Path,
    *,
    queries_only: bool,
    seed: int,
) -> CrossFitted:
    """Train and search fold by fold. arena: all judged queries, by the base model; fold_of: query id → fold.

    trained: fold → the model that did not see it. scratch: where finished folds are kept, so that a killed run goes on.
    queries_only: passages are searched by the base's vectors.
    """
    count = len(arena.passages)
    ordinary = np.arange(count)
    if count > WHOLE:
        ordinary = np.sort(np.random.default_rng(seed).permutation(count)[:_ORDINARY])
    folds = np.array([fold_of[item.query.id] for item in arena.judged], dtype=np.int64)
    order: list[int] = []
    base, adapted = list[Rankings](), {strength: list[Rankings]() for strength in strengths}
    drifts: dict[float, list[float]] = {strength: [] for strength in strengths}
    scratch.mkdir(parents=True, exist_ok=True)
    for fold in sorted(set(folds.tolist())):
        own = np.flatnonzero(folds == fold).tolist()
        order += own
        file = scratch / f"fold-{fold}.npz"
        if not file.exists():
            part = arena.part({arena.judged[at].query.id for at in own})
            _write(file, _fold(part, ordinary, strengths, trained(fold), queries_only))
        with np.load(file, allow_pickle=False) as arrays:
            base.append(Rankings.of_arrays(arrays, "base "))
            for strength in strengths:
                adapted[strength].append(Rankings.of_arrays(arrays, f"{strength} "))
                drifts[strength].append(float(arrays[f"{strength} drift"]))
    back = np.argsort(order).tolist()
    return CrossFitted(
        arena.judged,
        folds,
        Rankings.joined(base, back),
        {strength: Rankings.joined(parts, back) for strength, parts in adapted.items()},
        {strength: float(np.mean(values)) for strength, values in drifts.items()},
    )


def _fold(
    part: Arena,
    ordinary: Positions,
    strengths: Sequence[float],
    encoder: AdaptedEncoder,
    queries_only: bool,
) -> dict[str, Any]:
    """Base and adapted model over one fold's queries, as arrays."""
    everything = np.arange(len(part.passages))
    pool = everything if queries_only or len(everything) <= WHOLE else part.pool(_POOL_DEPTH, ordinary)
    before = part if len(pool) == len(everything) else part.within(pool, ordinary)
    arrays = Rankings.by(before).arrays("base ")
    names = part.searcher.ids_of(ordinary)
    vectors = part.searcher.index.vectors(names)
    for strength in strengths:
        encoder.scale(strength)
        model = encoder.merged()
        if queries_only:
            after, drift = part.asked_by(model), 0.0
        else:
            after = part.within(pool, ordinary, model)
            drift = float(1 - np.mean(np.sum(vectors * after.searcher.index.vectors(names), axis=1)))
        arrays |= Rankings.by(after).arrays(f"{strength} ")
        arrays[f"{strength} drift"] = np.float64(drift)
    return arrays


def _write(file: Path, arrays: Mapping[str, Any]) -> None:
    """All or nothing: a kill leaves no half of it."""
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.replace(file)


# What the folds show


@dataclass(frozen=True, eq=False)
class CrossJudged:
    """What cross-fitting showed.

    strengths: strength → mean nDCG@10 of dense search, out of fold; 0 = the base. fusion: for what ships.
    base_fusions and fusions: for each query the mix of either model that was learnt without its fold. outlook: by kind
    of search, what more queries would change; empty where a gain is proved.
    """

    found: CrossFitted
    decision: gate.Decision
    strength: float
    strengths: dict[float, float]
    fusion: LearntFusion
    base_fusions: tuple[Fusion, ...]
    fusions: tuple[Fusion, ...]
    outlook: Mapping[str, Forecast] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Side:
    """nDCG@10 per query (Q,) of one model, and its mixes."""

    dense: NDArray[np.float64]
    search: NDArray[np.float64]
    fusion: LearntFusion
    fusions: tuple[Fusion, ...]


def judge_folds(
    found: CrossFitted,
    base_fusion: LearntFusion,
    config: FitConfig,
    evidence: Evidence,
    met: Mapping[str, bool] | None = None,
) -> CrossJudged:
    """The strength that the folds choose, and whether it ships. met: query id → whether training knew its answer."""
    before = _side(found, found.base, base_fusion, config, evidence)
    after = {at: _side(found, side, base_fusion, config, evidence) for at, side in found.adapted.items()}

    def decided(strength: float) -> gate.Decision:
        side = after[strength]
        return gate.decide(
            strength=strength,
            dense=(side.dense, before.dense),
            search=(side.search, before.search),
            drift=found.drift[strength],
            config=config.gate,
            seed=config.seed,
            met=None if met is None else [met[item.query.id] for item in found.judged],
            crossed=True,
            flattering=evidence is Evidence.PARAPHRASE,
            labelled=evidence is Evidence.LABELLED,
        )

    strength = gentlest({at: (side.dense + side.search) / 2 for at, side in after.items()})
    decision = gate.step_back(decided(strength), strength, after, decided)
    strength = decision.strength or strength
    if decision.verdict is not gate.Verdict.WIN:
        others = [decision, *(decided(at) for at in after if at != strength)]
        probable = [one for one in others if one.verdict is gate.Verdict.LIKELY_GAIN]
        if probable:
            decision = max(probable, key=lambda one: one.expected)
            strength = decision.strength
    chosen = after[strength]
    log.info("gate: %s", "; ".join(decision.reasons))
    curve = {0.0: float(before.dense.mean())} | {at: float(side.dense.mean()) for at, side in after.items()}
    return CrossJudged(found, decision, strength, curve, chosen.fusion, before.fusions, chosen.fusions)


def outlook(
    judged: CrossJudged,
    half: CrossFitted | None,
    size: int,
    base_fusion: LearntFusion,
    config: FitConfig,
    evidence: Evidence,
) -> dict[str, Forecast]:
    """How the gain grows with the number of queries, by kind of search. half: folds of models that trained on half of
    what the judged ones did, which was `size` queries; None = not measured."""
    runs = {size: judged.found} if half is None else {round(size / 2): half, size: judged.found}
    gains: dict[str, list[NDArray[np.float64]]] = {"dense search": [], "default search": []}
    for found in runs.values():
        before = _side(found, found.base, base_fusion, config, evidence)
        after = _side(found, found.adapted[judged.strength], base_fusion, config, evidence)
        gains["dense search"].append(after.dense - before.dense)
        gains["default search"].append(after.search - before.search)
    return {name: forecast(list(runs), rows, seed=config.seed) for name, rows in gains.items()}


def _side(
    found: CrossFitted, side: Rankings, base_fusion: LearntFusion, config: FitConfig, evidence: Evidence
) -> _Side:
    candidates = side.candidates[base_fusion.fusion.feedback]
    fusion, fusions = learn_by_folds(
        candidates, found.judged, found.folds, base_fusion, config.fusion, evidence=evidence
    )
    search = [item.ndcg(positions) for item, positions in zip(found.judged, fused(candidates, fusions), strict=True)]
    return _Side(side.dense_quality(found.judged), np.array(search), fusion, fusions)


def fused(candidates: Sequence[Candidates], fusions: Sequence[Fusion]) -> list[Positions]:
    """The candidates of every query ranked by its own mix, best first."""
    return [one.ranked(fusion, DEPTH)[0] for one, fusion in zip(candidates, fusions, strict=True)]
