"""The second stage of a fit: a re-ranker on what ships of the first, trained where that is asked for, and judged."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragadapt.config import FitConfig
from ragadapt.evaluation import gate
from ragadapt.pipeline.adapt import chunks_of_graded, dev_judges
from ragadapt.pipeline.crossfit import CrossJudged
from ragadapt.pipeline.queries import DividedQueries, narrowed
from ragadapt.pipeline.rerank import (
    LearntReranking,
    RerankPool,
    choose_rerank_strength,
    given_reranking,
    judging_queries,
    learn_reranking,
    load_read,
    read_candidates,
    rerank_examples,
    reranker_adapter,
    reranker_pace,
    save_read,
)
from ragadapt.pipeline.stages import encode_query_texts, rows_of, searcher_of
from ragadapt.pipeline.steps import Base, Shipped, Steps, Training
from ragadapt.queries import FEWEST_DEV
from ragadapt.search.fusion import ReadCandidates

if TYPE_CHECKING:
    from ragadapt.rerank import Reranker
    from ragadapt.training import Example
    from ragadapt.training.processes import Processes
    from ragadapt.training.rerank import RerankerTrainingResult

log = logging.getLogger(__name__)


def load_reranker(config: FitConfig) -> Reranker:
    """The second stage that the configuration names; where it names none, the encoder with a head that has learnt
    nothing. Raises as `Reranker.load`, and InvalidConfiguration for one that cannot be trained as configured."""
    from ragadapt.rerank import Reranker

    settings, encoder = config.rerank, config.encoder
    if settings.model is None:
        from ragadapt.rerank.adapted import fresh_reranker

        return fresh_reranker(encoder, seed=config.seed, max_length=settings.max_length)

    reranker = Reranker.load(
        settings.model, device=encoder.device, precision=encoder.precision, max_length=settings.max_length,
        trust_remote_code=encoder.trust_remote_code,
    )  # fmt: skip
    if config.trains_reranker:
        from ragadapt.training.rerank import check_loss

        check_loss(reranker, settings.loss)
    return reranker


@dataclass(frozen=True)
class RerankerTraining(Training):
    """What the other processes have to know of a training of the second stage."""

    def join(self, processes: Processes, config: FitConfig) -> None:
        from ragadapt.training.rerank import train_reranker

        reranker = load_reranker(config)
        self.check(reranker.fingerprint, processes, "re-ranker")
        train_reranker(
            reranker, self.examples, self.dev, reranker_adapter(config), self.training, loss=config.rerank.loss,
            negatives=config.rerank.negatives, fresh=config.rerank.model is None, seed=config.seed,
        )  # fmt: skip


class SecondStage:
    """The second stage on what ships of the first.

    crossed: where the first was trained on all questions, what its folds found. Questions that judge never train:
    those that were held out, or by cross-fitting a re-ranker for every fold.
    """

    def __init__(
        self,
        steps: Steps,
        plan: gate.Plan,
        queries: DividedQueries,
        base: Base,
        shipped: Shipped,
        crossed: CrossJudged | None,
        depth: int,
    ) -> None:
        self.steps = steps
        self.config = steps.config
        self.plan = plan
        self.queries = queries
        self.base = base
        self.shipped = shipped
        self.crossed = crossed
        self.depth = depth

    def learn(self, reranker: Reranker) -> tuple[LearntReranking, Reranker | None]:
        """The re-ranker that was named, or one with a fresh head, trained where the configuration says so, and judged.
        None where only a head that has learnt nothing would be left."""
        config, plan, shipped = self.config, self.plan, self.shipped
        if not config.trains_reranker:
            return self.judge(reranker), reranker
        examples = self.examples() if plan.train else []
        if not any(example.negatives for example in examples):
            why = "the first stage finds nothing beside the answers" if plan.train else plan.reason
            words = f"It was not trained: {why}"
            if config.rerank.model is None:
                return LearntReranking(reranker.spec.model, "", 0.0, self.depth, words, training=words), None
            return replace(self.judge(reranker), training=words), reranker
        key = {
            "base": reranker.fingerprint,
            "precision": reranker.precision.dtype,
            "encoder": shipped.encoder.fingerprint,
            "fusion": shipped.fusion.fusion.as_dict(),
            "depth": self.depth,
            "adapter": reranker_adapter(config).deciding(),
            "training": reranker_pace(config).deciding(),
            "loss": config.rerank.loss,
            "negatives": config.rerank.negatives,
            "queries": [query.id for query in plan.train],
        }
        by_fold = None
        if plan.crossed:
            by_fold = partial(self.of_fold, reranker, examples)
            key["folds"] = dict(plan.folds)
        trained, words = self.train(reranker, examples, key)
        return replace(self.judge(trained, by_fold, key), training=words), trained

    def judge(
        self,
        reranker: Reranker,
        by_fold: Callable[[int, Path], Reranker] | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> LearntReranking:
        """Its share of the score, and whether it ships. by_fold: where it was cross-fitted, (fold, scratch) → one that
        did not see the fold's questions. training: settings by which it was trained."""
        config, steps, plan, crossed = self.config, self.steps, self.plan, self.crossed
        encoder, encoded, learnt = self.shipped
        if (given := given_reranking(reranker, self.depth, config.rerank)) is not None:
            return given
        queries = self.queries
        rank, chosen = judging_queries(plan, (*queries.train, *queries.dev, *queries.heldout), steps.seen_by_reranker)
        ids = {query.id for query in chosen}
        arena = steps.arena(plan.judge if crossed else chosen, encoder, encoded, queries.grades) if chosen else None
        every = () if arena is None else arena.judged if crossed is None else crossed.found.judged
        rows = [at for at, item in enumerate(every) if item.query.id in ids]
        judged = [every[at] for at in rows]
        with steps.stage(
            "rerank", ("queries",), reranker=reranker.fingerprint, precision=reranker.precision.dtype,
            depth=self.depth, encoder=encoder.fingerprint, fusion=learnt.fusion.as_dict(), queries=sorted(ids),
            crossed=crossed is not None, **({} if training is None else {"training": training}),
        ) as stage:  # fmt: skip
            if not stage.finished:
                read = []
                if arena is not None:
                    fusions = [learnt.fusion] * len(every) if crossed is None else list(crossed.fusions)
                    found = (
                        arena.candidates(learnt.fusion)
                        if crossed is None
                        else crossed.found.adapted[crossed.strength].candidates[fusions[0].feedback]
                    )
                    folds = [0] * len(rows) if by_fold is None else [plan.folds[item.query.id] for item in judged]
                    placed: dict[int, ReadCandidates] = {}
                    for fold in sorted(set(folds)):
                        own = [at for at, other in enumerate(folds) if other == fold]
                        model = reranker if by_fold is None else by_fold(fold, stage.scratch)
                        part = read_candidates(
                            [found[rows[at]] for at in own], [fusions[rows[at]] for at in own],
                            [judged[at] for at in own], arena.passages, model, self.depth, steps.progress,
                        )  # fmt: skip
                        placed |= dict(zip(own, part, strict=True))
                    read = [placed[at] for at in range(len(rows))]
                save_read(stage.path / "read.npz", read)
            read = load_read(stage.path / "read.npz")
        with steps.clock("gate"):
            return learn_reranking(
                reranker, self.depth, read, judged, encoded.corpus.chunks, encoded.corpus.groups, evidence=rank,
                config=config.gate, seed=config.seed,
            )  # fmt: skip

    def examples(self) -> list[Example]:
        """What it learns from: answers, and what the first stage that ships finds beside them."""
        steps, base, grades = self.steps, self.base, self.queries.grades
        encoder, encoded, learnt = self.shipped
        corpus = encoded.corpus
        trainers = narrowed(self.plan.train, base.encoder, base.encoded, grades, steps.progress)
        trainers = [query for query in trainers if any(id in corpus.position_of for id in query.positives)]
        rows = rows_of(encode_query_texts(encoder, trainers, steps.progress), trainers)
        with steps.clock("mine negatives"):
            found = searcher_of(encoded, steps.lexical_index()).candidates(
                [query.text for query in trainers], rows, fusion=learnt.fusion, progress=steps.progress
            )
            relevant = chunks_of_graded(trainers, corpus, grades)
            return rerank_examples(trainers, found, learnt.fusion, corpus, relevant, self.depth)

    def fit(
        self, base: Reranker, examples: Sequence[Example], pool: RerankPool | None, checkpoint: Path
    ) -> RerankerTrainingResult:
        """One training, together with the other processes."""
        from ragadapt.training.rerank import train_reranker

        config, training = self.config, reranker_pace(self.config)
        self.steps.processes.broadcast(RerankerTraining(base.fingerprint, examples, training, pool is not None))
        return train_reranker(
            base, examples, pool.score if pool else None, reranker_adapter(config), training, loss=config.rerank.loss,
            negatives=config.rerank.negatives, fresh=config.rerank.model is None, seed=config.seed,
            checkpoint=checkpoint, progress=self.steps.progress,
        )  # fmt: skip

    def of_fold(self, base: Reranker, examples: Sequence[Example], fold: int, scratch: Path) -> Reranker:
        """One that saw nothing of what judges in this fold."""
        barred = self.plan.barred_texts
        own = [example for example in examples if fold not in barred[example.query]]
        return self.fit(base, own, None, scratch / f"checkpoint-{fold}").reranker.merged()

    def train(self, base: Reranker, examples: Sequence[Example], key: Mapping[str, Any]) -> tuple[Reranker, str]:
        """The one that may ship, at its best weights and strength on the dev part, and how it was trained, in words; of
        what is cross-fitted, at the end of the training."""
        from ragadapt.rerank import Reranker

        config = self.config
        interpolation = sorted(config.gate.interpolation)
        with self.steps.stage("rerank-train", ("queries",), **key, strengths=interpolation) as stage:
            if not stage.finished:
                pool = None if self.plan.crossed else self.pool()
                result = self.fit(base, examples, pool, stage.scratch / "checkpoint")
                strength, _ = choose_rerank_strength(result.reranker, pool, interpolation)
                effect = result.reranker.effect()
                result.reranker.merged().save(stage.path / "model")
                words = (
                    f"method {config.rerank.method} ({result.reranker.share}), {config.rerank.loss}, {len(examples):,} "
                    f"examples, the weights of step {result.best_step} of {result.planned_steps}, strength {strength:g}"
                )
                if result.dev_before is not None:
                    words += (
                        f"; nDCG@10 of its own order on the dev part {result.dev_before:.3f} → {result.best_dev:.3f}"
                    )
                words += "".join(f"; {problem}" for problem in effect.problems)
                (stage.path / "trained.json").write_text(json.dumps({"words": words}), encoding="utf-8")
            words = json.loads((stage.path / "trained.json").read_text(encoding="utf-8"))["words"]
            settings = config.encoder
            made = Reranker.open(stage.path / "model", device=settings.device, precision=settings.precision)
        log.info("re-ranker trained: %s", words)
        return made, words

    def pool(self) -> RerankPool | None:
        """The best dev queries of which there are enough, and what the first stage finds for them."""
        encoder, encoded, learnt = self.shipped
        for judges in dev_judges(self.queries.dev, self.plan):
            arena = self.steps.arena(judges, encoder, encoded, self.queries.grades)
            if len(arena.judged) >= FEWEST_DEV:
                return RerankPool.of(arena, learnt.fusion, self.depth)
        return None
