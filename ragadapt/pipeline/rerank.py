"""What a re-ranker is worth on a corpus: its share of the score, learnt and judged on questions with known answers.

Every question is searched by a model and under a weight that did not see it. Where that is not better beyond doubt than
the first stage alone, the second one does not ship.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragadapt.config import AdapterConfig, FitConfig, GateConfig, RerankConfig, TrainingConfig
from ragadapt.errors import InvalidConfiguration, InvalidInput
from ragadapt.evaluation import gate
from ragadapt.evaluation.judging import JudgedQuery
from ragadapt.evaluation.significance import Interval, paired_bootstrap
from ragadapt.pipeline.corpus import Corpus
from ragadapt.pipeline.fusion import DEPTH, tolerance_of
from ragadapt.queries import masked_passage
from ragadapt.queries.seen import mark
from ragadapt.queries.split import deal_folds
from ragadapt.search.fusion import Candidates, Fusion, FusionCurve, ReadCandidates, learn_rerank_weight
from ragadapt.values import Chunk, Evidence, Progress, Query, no_progress

if TYPE_CHECKING:
    from ragadapt.pipeline.arena import Arena
    from ragadapt.rerank import Reranker
    from ragadapt.rerank.adapted import AdaptedReranker
    from ragadapt.training import Example

log = logging.getLogger(__name__)

_DEV_QUERIES = 75  # that steer a training; each costs as many readings as the re-ranker is deep
MOST_READ = 300  # questions; each costs as many readings as the re-ranker is deep


@dataclass(frozen=True, eq=False)
class LearntReranking:
    """A corpus's second stage and where its weight comes from. weight 0: it does not ship.

    interval: nDCG@10 with it less that without, each question under a weight learnt without it; None where nothing
    could judge. curve: quality over the weight, on all of them. training: how it was trained, or why
    not, in words; "" = nobody asked. read: by judging query, what it read.
    """

    model: str
    fingerprint: str
    weight: float
    depth: int
    reason: str
    evidence: Evidence | None = None
    queries: int = 0
    interval: Interval | None = None
    curve: FusionCurve | None = None
    training: str = ""
    read: Mapping[str, ReadCandidates] = field(default_factory=dict)

    @property
    def ships(self) -> bool:
        return self.weight > 0

    def section(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "model": self.model,
            "fingerprint": self.fingerprint,
            "weight": self.weight,
            "depth": self.depth,
            "reason": self.reason,
            **({"training": self.training} if self.training else {}),
        }


def judging_queries(
    plan: gate.Plan, queries: Sequence[Query], seen: Collection[str] = ()
) -> tuple[Evidence | None, list[Query]]:
    """The questions that judge a second stage, and how sure a search is: those that judge the first stage, for what it
    learnt from must not; else the best-ranked ones of which there are enough, but never text that was cut from the
    passages. seen: marks of those that the second stage had learnt from before this fit; they judge nothing."""

    def unseen(some: Sequence[Query]) -> list[Query]:
        return [query for query in some if mark(query.text) not in seen] if seen else list(some)

    rank: Evidence | None
    if plan.judge and plan.evidence is not None:
        rank, found = plan.evidence, unseen(plan.judge)
        if len(found) < len(plan.judge) and len(found) < gate.MINIMUM[rank]:
            rank, found = None, []
    else:
        rank, found = None, []
        for candidate, least in gate.MINIMUM.items():
            of_rank = unseen([query for query in queries if query.evidence is candidate])
            if len(of_rank) >= least:
                rank, found = candidate, of_rank
                break
    return rank, found[:: -(-len(found) // MOST_READ)] if found else []


def read_candidates(
    candidates: Sequence[Candidates],
    fusions: Sequence[Fusion],
    judged: Sequence[JudgedQuery],
    passages: Sequence[str],
    reranker: Reranker,
    depth: int,
    progress: Progress = no_progress,
) -> list[ReadCandidates]:
    """The first stage's ranking of every question, its best `depth` read. passages: texts by position."""
    ranked = [one.ranked(fusion, DEPTH) for one, fusion in zip(candidates, fusions, strict=True)]
    lists = [
        (item.query.text, [passages[at] for at in positions[:depth].tolist()])
        for item, (positions, _) in zip(judged, ranked, strict=True)
    ]
    read = reranker.logits_of(lists, progress=progress)
    return [ReadCandidates(*first, own) for first, own in zip(ranked, read, strict=True)]


def save_read(file: Path, read: Sequence[ReadCandidates]) -> None:
    """As flat arrays with the ends of the lists that they hold."""
    arrays: dict[str, Any] = {}
    for name in ("positions", "first", "read"):
        parts = [getattr(one, name) for one in read]
        arrays[name] = np.concatenate(parts) if parts else np.zeros(0)
        arrays[f"{name} ends"] = np.cumsum([len(part) for part in parts], dtype=np.int64)
    np.savez(file, **arrays)


def load_read(file: Path) -> list[ReadCandidates]:
    """What `save_read` wrote."""
    with np.load(file, allow_pickle=False) as arrays:
        lists = [np.split(arrays[name], arrays[f"{name} ends"][:-1]) for name in ("positions", "first", "read")]
        count = len(arrays["read ends"])
    return [ReadCandidates(*parts) for parts in zip(*lists, strict=True)] if count else []


def learn_reranking(
    reranker: Reranker,
    depth: int,
    read: Sequence[ReadCandidates],
    judged: Sequence[JudgedQuery],
    chunks: Sequence[Chunk],
    groups: Sequence[int] | None,
    *,
    evidence: Evidence | None,
    config: GateConfig,
    seed: int,
) -> LearntReranking:
    """The weight by the one-standard-error rule, and whether it ships.

    Each question is judged under a weight that was learnt from the others: near-equal ones are dealt to one fold. What
    people did not ask (found in the documents, written by a model) needs more standard errors, as in the fusion.
    """
    model, fingerprint = reranker.spec.model, reranker.fingerprint
    if evidence is None or not judged:
        reason = (
            "no questions with known answers that could judge it: without them its share is 0, and the first stage "
            "stays alone. Give labelled questions (--queries), or set rerank.weight by hand"
        )
        return LearntReranking(model, fingerprint, 0.0, depth, reason)
    judges = [item.ndcg for item in judged]
    tolerance = tolerance_of(evidence, len(judged))
    dealt = deal_folds([item.query for item in judged], chunks, groups, config.folds, seed)
    folds = np.array([dealt[item.query.id] for item in judged])
    weights = np.zeros(len(judged))
    for fold in sorted(set(folds.tolist())):
        others = np.flatnonzero(folds != fold).tolist()
        curve = learn_rerank_weight([read[at] for at in others], [judges[at] for at in others], tolerance=tolerance)
        weights[folds == fold] = curve.chosen
    curve = learn_rerank_weight(read, judges, tolerance=tolerance)
    after, before = (
        [judge(one.ranked(weight)) for one, judge, weight in zip(read, judges, own, strict=True)]
        for own in (weights.tolist(), [0.0] * len(judged))
    )
    interval = paired_bootstrap(
        after, before, samples=config.bootstrap_samples, confidence=config.confidence, seed=seed
    )
    figures = (
        f"nDCG@10 {np.mean(before):.3f} → {np.mean(after):.3f}, {interval.delta:+.3f} "
        f"[{interval.low:+.3f}, {interval.high:+.3f}], on {len(judged)} questions ({evidence.value}), each under a "
        "weight learnt without it"
    )
    ships = interval.better and curve.chosen > 0
    if ships:
        reason = f"{figures}: better beyond doubt"
    elif interval.delta < 0:
        reason = f"{figures}: worse, the first stage stays alone"
    else:
        reason = f"{figures}: no proof of a gain, the first stage stays alone"
    log.info("re-ranker: %s", reason)
    weight = curve.chosen if ships else 0.0
    by_query = {item.query.id: one for item, one in zip(judged, read, strict=True)}
    return LearntReranking(
        model, fingerprint, weight, depth, reason, evidence, len(judged), interval, curve, read=by_query
    )


def given_reranking(reranker: Reranker, depth: int, config: RerankConfig) -> LearntReranking | None:
    """The second stage where its weight was set by hand; None where it is to be learnt."""
    if config.weight is None:
        return None
    return LearntReranking(
        reranker.spec.model, reranker.fingerprint, config.weight, depth, "its weight was set by the configuration"
    )


# Training ---------------------------------------------------------------------------------------------------


def check_training(config: FitConfig) -> None:
    """Raises InvalidConfiguration where the settings of a training stand beside none, or cannot be trained by."""
    plain = RerankConfig()
    given = [name for name in RerankConfig.TRAINING if getattr(config.rerank, name) != getattr(plain, name)]
    if given and config.stage == "retrieve":
        name = given[0]
        raise InvalidConfiguration(
            f"rerank.{name} = {getattr(config.rerank, name)!r}, but stage = 'retrieve' trains no re-ranker. Say "
            "--stage both, or --stage rerank to leave the encoder as it is; or leave the setting out."
        )
    if config.trains_reranker:
        reranker_adapter(config)


def reranker_adapter(config: FitConfig) -> AdapterConfig:
    """What is trained of the second stage's transformer: the settings of `adapter`, as far as its method has them."""
    from ragadapt.adapters.method import options_of, settings_for

    adapter = settings_for(config.rerank.method, config.adapter)
    adapter = adapter.model_copy(update={"adapt": "both", "reweight": "none"})
    options_of(adapter)
    return adapter


def reranker_pace(config: FitConfig) -> TrainingConfig:
    """How long and how fast the second stage is trained: the rest is as for the first."""
    own = config.rerank
    update = {
        "loss": "infonce",
        "epochs": own.epochs,
        "learning_rate": own.learning_rate,
        "batch_size": own.batch_size,
    }
    return config.training.model_copy(update=update)


def rerank_examples(
    queries: Sequence[Query],
    candidates: Sequence[Candidates],
    fusion: Fusion,
    corpus: Corpus,
    relevant: Sequence[Sequence[int]],
    depth: int,
) -> list[Example]:
    """One example for every answer of a question: beside it, what the first stage ranks among its best `depth` and
    nobody called an answer.

    candidates: of the first stage, with its fusion. relevant: per query further positions that are no negatives. As in
    the mining for the first stage, neither is text that equals an answer's, or nearly does.
    """
    from ragadapt.training import Example

    positions, made = corpus.position_of, []
    for query, found, others in zip(queries, candidates, relevant, strict=True):
        own = [positions[id] for id in query.positives if id in positions]
        known = {*own, *others}
        texts, groups = ({side[at] for at in known} for side in (corpus.text_keys, corpus.groups))
        ranked = found.ranked(fusion, depth + len(known))[0].tolist()
        wrong = [at for at in ranked if corpus.text_keys[at] not in texts and corpus.groups[at] not in groups][:depth]
        made += [
            Example(
                query.text,
                masked_passage(query, corpus.chunks[at]),
                tuple(corpus.chunks[other].passage for other in wrong),
                task=query.kind,
            )
            for at in own
        ]
    return made


@dataclass(frozen=True)
class RerankPool:
    """Dev questions and what the first stage found for them: what steers the training of the second."""

    judged: tuple[JudgedQuery, ...]
    positions: tuple[Any, ...]  # of every question, the best first
    passages: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, arena: Arena, fusion: Fusion, depth: int) -> RerankPool:
        """The best `depth` of the arena's questions, of which some are left out where they are many."""
        keep = range(0, len(arena.judged), -(-len(arena.judged) // _DEV_QUERIES))
        found = arena.candidates(fusion)
        ranked = [found[at].ranked(fusion, depth)[0] for at in keep]
        passages = tuple(tuple(arena.passages[at] for at in positions.tolist()) for positions in ranked)
        return cls(tuple(arena.judged[at] for at in keep), tuple(ranked), passages)

    def score(self, reranker: AdaptedReranker) -> float:
        """Mean nDCG@10 of the re-ranker's own order."""
        lists = [(item.query.text, own) for item, own in zip(self.judged, self.passages, strict=True)]
        read = reranker.logits_of(lists)
        orders = [
            positions[np.argsort(-scores, kind="stable")]
            for positions, scores in zip(self.positions, read, strict=True)
        ]
        return float(np.mean([item.ndcg(order) for item, order in zip(self.judged, orders, strict=True)]))


def choose_rerank_strength(
    reranker: AdaptedReranker, pool: RerankPool | None, interpolation: Sequence[float]
) -> tuple[float, dict[float, float]]:
    """The way from the base that is best on the dev part; 1 where there is none, or no way between. Leaves it set."""
    if pool is None:
        return 1.0, {}
    curve = {1.0: pool.score(reranker)}
    for strength in sorted(interpolation, reverse=True):
        try:
            reranker.scale(strength)
        except InvalidInput:
            break
        curve[strength] = pool.score(reranker)
    best = max(curve, key=lambda strength: (curve[strength], strength))
    reranker.scale(best)
    return best, curve
