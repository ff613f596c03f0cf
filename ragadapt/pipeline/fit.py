"""fit(): documents in, a retriever out that is shown to be better, or shown not to need training.

documents → chunks → vectors, lexical index → queries → split → fusion → plan → training → gate → re-ranker, trained or
not → index → folder

Every stage is kept until the folder is written, so a killed run goes on from its last finished stage.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragadapt import profiling
from ragadapt.checks import checked_list, checked_path, shown
from ragadapt.config import AdapterConfig, FitConfig, TrainingConfig
from ragadapt.corpus.sources import describe_sources, listed_sources, read_sources
from ragadapt.errors import InvalidConfiguration, InvalidInput
from ragadapt.evaluation import gate
from ragadapt.evaluation.forecast import Forecast, forecast
from ragadapt.index import check_index, chosen
from ragadapt.lexical import LexicalIndex
from ragadapt.out_of_core import keep_all
from ragadapt.pipeline.adapt import (
    DevPool,
    check_teacher,
    choose_strength,
    dev_judges,
    dev_pool,
    drift,
    known_vectors,
    make_examples,
    proof,
    side_of,
)
from ragadapt.pipeline.arena import Arena, one_rank
from ragadapt.pipeline.confidence import learn_confidence, learn_reread
from ragadapt.pipeline.corpus import Corpus, EncodedCorpus, foreign_note
from ragadapt.pipeline.crossfit import CrossFitted, CrossJudged, cross_fit, judge_folds, outlook
from ragadapt.pipeline.fusion import (
    ENOUGH,
    MOST,
    LearntFusion,
    Neutral,
    learn_fusion,
    quality,
)
from ragadapt.pipeline.library import Start, check_library, starting_adapter
from ragadapt.pipeline.queries import (
    DividedQueries,
    Labels,
    answer_was_trained,
    held_out_negatives,
    leaked,
    make_queries,
    narrowed,
    with_folds,
)
from ragadapt.pipeline.report import AfterTraining, Facts, build_report, model_card, runs_of_base
from ragadapt.pipeline.rerank import (
    LearntReranking,
    check_training,
    judging_queries,
)
from ragadapt.pipeline.second_stage import SecondStage, load_reranker
from ragadapt.pipeline.seen import judged_without, seen_by
from ragadapt.pipeline.stages import (
    build_chunks,
    build_index,
    build_lexical,
    build_vectors,
    commit_build,
    encode_query_texts,
    forget_vectors_beside,
    index_parts,
    keep_vectors_beside,
    mutable_parts,
    searcher_of,
    vectors_kept_for,
)
from ragadapt.pipeline.steps import Base, Shipped, Steps, Trained, Training
from ragadapt.queries import FEWEST_DEV, check_generator
from ragadapt.queries.filters import chance
from ragadapt.queries.seen import mark, marks_of, write_seen
from ragadapt.report import Report, write_report
from ragadapt.search.confidence import FIXED, Confidence
from ragadapt.search.fusion import Fusion
from ragadapt.search.searcher import Searcher
from ragadapt.store.chunks import document_hash
from ragadapt.store.workspace import QUESTIONS, RERANKER, Manifest, Workspace, answers_file
from ragadapt.values import Chunk, Document, Evidence, Progress, Query, no_progress
from ragadapt.version import __version__

if TYPE_CHECKING:
    from ragadapt.adapters import AdaptedEncoder
    from ragadapt.encoder import Encoder
    from ragadapt.rerank import Reranker
    from ragadapt.training import Example, TrainingResult
    from ragadapt.training.processes import Processes

log = logging.getLogger(__name__)

_CROPS = 300  # crops that the fusion looks at: they can only raise the dense share, and each costs one encoding


@dataclass(frozen=True)
class FitResult:
    """A finished fit. reused: stages taken over from an interrupted run."""

    path: Path
    report: Report
    decision: gate.Decision
    reused: tuple[str, ...]

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    @property
    def verdict(self) -> str:
        """WIN, LIKELY GAIN, NO GAIN or REGRESSION AVOIDED."""
        return self.decision.verdict.value


def fit(
    sources: Sequence[Any],
    target: str | Path,
    config: FitConfig = FitConfig(),
    *,
    labels: Sequence[Labels] = (),
    chunked: bool = False,
    portable: bool | None = None,
    profile: str | Path | None = None,
    progress: Progress = no_progress,
) -> FitResult:
    """Learn a corpus and write a retriever to `target`, replacing an older one there only when all is done.

    sources: files, folders, or LangChain documents / LlamaIndex nodes. chunked: those objects are passages already and
    are not cut again. portable: copy the base model's weights into the folder (None = only where it is not on the
    hub). profile: a JSON file that tells where the time went, by stage and by kind of work; the report shows it too.
    Where `accelerate launch` started several processes, all of them train and all return the same; the first one alone
    does the rest.
    Raises EmptyCorpus, InvalidInput, StoreLocked, ModelNotFound, TrainingFailed.
    """
    check_arguments(config, labels)
    from ragadapt.encoder.precision import choose_device
    from ragadapt.training.processes import Processes

    processes = Processes.join(choose_device(config.encoder.device).split(":")[0])
    with processes.together():
        config = config.model_copy(update={"index": chosen(config.index)})
        check_index(config.index)
        check_teacher(config)
        if config.rerank.model is not None:
            from ragadapt.rerank.presets import source_of

            source_of(config.rerank.model)  # a name that cannot be one is told before anything is read
        check_training(config)
        check_library(config)
        check_generator(config.query)
        _check_cache_folder(config)
        from ragadapt.adapters.method import method_named, options_of

        if config.trains_retriever:
            options_of(config.adapter)
        kind = choose_device(config.encoder.device).split(":")[0]
        for trains, method in (
            (config.trains_retriever, config.adapter.method),
            (config.trains_reranker, config.rerank.method),
        ):
            if trains:
                method_named(method).check_device(kind)
        target = checked_path(target, "The target")
        sources = checked_list(sources, "sources") if chunked else listed_sources(sources)
        if processes.index > 0:
            while not isinstance(received := processes.broadcast(), FitResult):
                assert isinstance(received, Training)
                received.join(processes, config)
            return received
        progress = processes.watched(progress)
        with profiling.profiled() if profile is not None else nullcontext() as taken:
            clock = profiling.Clock(taken)
            try:
                result = _fit(sources, target, config, labels, chunked, portable, clock, processes, progress)
                processes.broadcast(result)
                return result
            finally:
                if taken is not None and profile is not None:
                    taken.write(Path(profile), clock.seconds)


def _fit(
    sources: Sequence[Any],
    target: str | Path,
    config: FitConfig,
    labels: Sequence[Labels],
    chunked: bool,
    portable: bool | None,
    clock: profiling.Clock,
    processes: Processes,
    progress: Progress,
) -> FitResult:
    from ragadapt.adapters.method import Scope
    from ragadapt.encoder import Encoder

    label_files = [file for label in labels for file in label.files]
    with clock("read"), profiling.work("read"):
        documents, skipped, chunks = read_sources(sources, config.read, chunked, progress, label_files)
    with Workspace.open(target, {"command": "fit"}) as work:
        steps = FitSteps(
            work, config, clock, processes, progress, bool(portable), describe_sources(sources, chunked, label_files)
        )
        with clock("read"):
            steps.keep = keep_all(documents, chunks, work.target)
        with clock("load model"), profiling.work("load model"):
            encoder = Encoder.load(config.encoder)
            # Now, so that a wrong model shows before hours of encoding.
            reranker = load_reranker(config) if config.reranks else None
        if config.trains_retriever and encoder.query_tower is not None:
            Scope.of(encoder.query_tower.model, config.adapter.layers)  # say now that there are not so many

        queries, plan, base = steps.prepare(documents, chunks, encoder, labels)
        if config.library.start is not None:
            steps.begin(plan)
        steps.take_side(plan)
        shipped, trained, crossed = Shipped(encoder, base.encoded, base.fusion), None, None
        decision = gate.not_trained(plan.reason)
        if not config.trains_retriever and config.trains_reranker:
            decision = gate.not_trained("Only the re-ranker is trained: the encoder stays as it is.")
        if plan.crossed and config.trains_retriever:
            crossed = steps.cross_fit(plan, queries, base)
            decision = crossed.decision
        if plan.goes_on and config.trains_retriever and (crossed is None or decision.adapted):
            trained = steps.train(plan, queries, base, crossed)
            if crossed is None:
                decision, trained, adapted = steps.judge_gently(trained, plan, queries, base)
            else:
                decision, trained, adapted = steps.confirm(trained, crossed, base.encoded)
            if decision.adapted:
                shipped = Shipped(trained.encoder, adapted, trained.fusion or base.fusion)

        second = None
        if reranker is not None:
            out_of_fold = crossed if decision.adapted else None
            second, reranker = SecondStage(
                steps, plan, queries, base, shipped, out_of_fold, config.rerank.depth or reranker.depth
            ).learn(reranker)
        sure = steps.confidence(plan, queries, shipped, crossed, decision.adapted, second)
        report = steps.report(
            documents, skipped, queries, plan, decision, trained, crossed, base, shipped, second, sure
        )
        path = steps.commit(
            report, encoder, *shipped, model=trained.stage if trained and decision.adapted else None,
            second=second, reranker=reranker, sure=sure,
            seen=steps.seen_by_all(plan, queries, decision.adapted, second),
        )  # fmt: skip
        return FitResult(path, report, decision, tuple(steps.reused))


class FitSteps(Steps):
    """One fit at work, its steps in the order in which they are called."""

    def prepare(
        self,
        documents: Sequence[Document],
        chunks: Sequence[Chunk] | None,
        encoder: Encoder,
        labels: Sequence[Labels],
    ) -> tuple[DividedQueries, gate.Plan, Base]:
        """Everything before training: passages, the base's vectors of them, queries, who judges whom, the fusion.

        chunks: None = they are cut from the documents.
        """
        config = self.config
        corpus = self.chunks(documents, chunks, encoder)
        may_train = any(label.use != "eval" for label in labels) or config.query.generator or config.query.generator_url
        # Half of the room: training has the other for what the first half does not hold.
        with self.frozen_layers(encoder, room=0.5) if may_train and config.adapter.adapt != "query" else nullcontext():
            encoded = self.encode("base-vectors", corpus, encoder)
        searcher = searcher_of(encoded, self.lexical(corpus))
        queries = self.unseen(self.queries(corpus, encoder, searcher, labels), encoder, encoded)
        neutral = self.neutral(queries, encoder, searcher)
        plan = self.plan(queries, corpus, neutral)
        self.note_what_the_base_has_seen(plan)
        fusion = self.fusion(plan, queries, encoder, encoded, neutral)
        return queries, plan, Base(encoder, encoded, searcher, fusion)

    def chunks(self, documents: Sequence[Document], given: Sequence[Chunk] | None, encoder: Encoder) -> Corpus:
        content = [document_hash(document) for document in documents]
        if given is not None:
            content += [f"{chunk.id} {chunk.content_hash}" for chunk in given]
        settings = self.config.chunk.model_dump(mode="json")
        with self.stage("chunks", documents=content, settings=settings, tokenizer=encoder.fingerprint) as stage:
            return build_chunks(stage, documents, given, encoder, self.config.chunk, self.progress, self.keep)

    def encode(self, name: str, corpus: Corpus, encoder: Encoder, after: Sequence[str] = ("chunks",)) -> EncodedCorpus:
        with self.stage(name, after, encoder=encoder.fingerprint) as stage, ExitStack() as stack:
            known = [] if stage.finished else stack.enter_context(vectors_kept_for(self.work.target, encoder))
            return build_vectors(stage, corpus, encoder, self.progress, known)

    def lexical(self, corpus: Corpus) -> LexicalIndex:
        with self.stage("lexical", ("chunks",)) as stage:
            self.lexical_folder = stage.path / "lexical"
            return build_lexical(stage, corpus, self.progress)

    # Queries

    def queries(self, corpus: Corpus, encoder: Encoder, base: Searcher, labels: Sequence[Labels]) -> DividedQueries:
        """Write, read, clean and split the queries."""
        config = self.config
        settings = {"query": config.query.deciding(), "split": config.split.deciding()}
        with self.stage(
            "queries",
            ("base-vectors", "lexical"),
            settings=settings,
            labels=[label.key() for label in labels],
            seed=config.seed,
        ) as stage:
            if not stage.finished:
                cache = answers_file(self.work.target)  # not in the stage: answers outlive its settings
                made = make_queries(corpus, encoder, base, labels, config, cache=cache, progress=self.progress)
                made.write(stage.path)
            return DividedQueries.read(stage.path)

    def unseen(self, queries: DividedQueries, encoder: Encoder, encoded: EncodedCorpus) -> DividedQueries:
        """The queries, of which those judge nothing that a teacher, or what training begins with, has learnt from. Of a
        re-ranker that is not trained further that is looked at where it is judged."""
        config, known = self.config, list[tuple[str, frozenset[str]]]()
        if config.trains_retriever and config.mining.teacher is not None and config.training.loss != "infonce":
            known.append((f"the teacher {config.mining.teacher}", seen_by(config.mining.teacher)))
        if config.library.start is not None:
            self.offered = self.library_offer(encoder, encoded)
            known.append((self.offered.words, self.offered.seen))
        if config.reranks and config.rerank.model is not None:
            self.seen_by_reranker = seen_by(config.rerank.model)
            if config.trains_reranker:
                known.append((f"the re-ranker {config.rerank.model}", self.seen_by_reranker))
        for words, marks in known:
            queries, lost = judged_without(queries, marks)
            self.seen |= marks
            if lost:
                self.notes.append(f"{lost:,} questions judge nothing here, because {words} has learnt from them.")
        return queries

    def note_what_the_base_has_seen(self, plan: gate.Plan) -> None:
        """Tell where the figures of the base, and of all that is made from it, flatter."""
        known = seen_by(self.config.encoder.model)
        if met := sum(mark(query.text) in known for query in plan.judge):
            self.notes.append(
                f"{met:,} of the {len(plan.judge):,} questions that judge are among those that the base model has "
                "learnt from: its figures are too good, and so are those of what was made from it."
            )

    # Learning

    def library_offer(self, encoder: Encoder, encoded: EncodedCorpus) -> Start:
        """What the library has for this corpus."""
        from ragadapt.adapters.library import CorpusStatistics

        with self.clock("library"):
            statistics = CorpusStatistics.of(
                encoded.vectors, encoder.fingerprint, languages=encoded.corpus.languages
            )  # fmt: skip
            return starting_adapter(self.config, encoder, statistics)

    def begin(self, plan: gate.Plan) -> None:
        """Take what the library offers to begin with; its settings are the training's from here on. Where nothing could
        judge the result it is only told of."""
        from ragadapt.adapters.blending import check_start

        config, start = self.config, self.offered
        assert start is not None
        if not plan.goes_on:
            self.notes.append(
                f"The library offers {start.words}. Nothing here can judge it, so it is not used: {plan.reason} To use "
                f"it unjudged: ragadapt library blend {config.library.folder} DOCUMENTS -o MODEL, and --model MODEL."
            )
            return
        done = "Training began with" if config.library.train else "Nothing was trained here; what was judged is"
        self.notes.append(f"{done} {start.words}.")
        log.info("from the library: %s", start.words)
        self.start = start.state
        self.config = config.model_copy(update={"adapter": check_start(config.adapter, start.state)})

    def fusion(
        self, plan: gate.Plan, queries: DividedQueries, encoder: Encoder, encoded: EncodedCorpus, neutral: Neutral
    ) -> LearntFusion:
        """The fusion of the base, from the best evidence among the queries; of labelled ones that are dealt to folds,
        from all. Labels start where the corpus would be without them."""

        def learnt(asked: Sequence[Query], before: LearntFusion | None = None) -> LearntFusion:
            rank, chosen = one_rank(asked, ENOUGH, MOST)
            if rank is Evidence.CROP:
                chosen = chosen[:: -(-len(chosen) // _CROPS)]
            arena = self.arena(chosen, encoder, encoded, queries.grades) if chosen else None
            return learn_fusion(arena, self.config.fusion, evidence=rank, neutral=neutral, before=before)

        with self.clock("fusion"):
            if self.config.fusion.weight is not None:
                return learn_fusion(None, self.config.fusion, evidence=None)
            all_labels = plan.crossed and plan.evidence is Evidence.LABELLED
            pool = plan.judge if all_labels else queries.fusion_queries
            labelled = [query for query in pool if query.evidence is Evidence.LABELLED]
            before = learnt([query for query in queries.fusion_queries if query.evidence is not Evidence.LABELLED])
            if len(labelled) < ENOUGH[Evidence.LABELLED]:
                return before
            return learnt(labelled, before if before.evidence is not None else None)

    def plan(self, queries: DividedQueries, corpus: Corpus, neutral: Neutral) -> gate.Plan:
        """What trains and what judges."""
        config = self.config
        if not config.trains_retriever and not config.trains_reranker:
            return gate.Plan((), (), None, "Training was switched off (--method none): only the search is tuned.")
        if config.library.start is not None and not config.library.train:
            return gate.plan_untrained(
                queries.train, queries.heldout, only_train=queries.only_train, config=config.gate
            )  # fmt: skip
        plan = gate.plan(
            queries.train,
            queries.heldout,
            dev=queries.dev,
            only_judge=queries.only_judge,
            only_train=queries.only_train,
            split=config.split,
            config=config.gate,
            dense_share=neutral.weight if config.fusion.weight is None else 0.0,
        )
        if not plan.crossed:
            return plan
        plan = with_folds(plan, corpus, config)
        if min(len(train) for train, _ in plan.parts()) >= FEWEST_DEV:
            return plan
        reason = (
            f"{len(plan.judge)} queries could judge a trained model, but too many of them say the same: without those "
            f"of a fold fewer than {FEWEST_DEV} are left to train on. Give questions that differ (--queries)."
        )
        return gate.Plan((), (), None, reason)

    def take_side(self, plan: gate.Plan) -> None:
        """Train one side or both, as the plan asks for, where the settings leave it open."""
        if plan.goes_on:
            adapter = self.config.adapter.settled(side_of(plan, self.config.adapter))
            self.config = self.config.model_copy(update={"adapter": adapter})
            log.info("trained: %s", "queries alone" if adapter.adapt == "query" else "queries and passages")

    def examples(self, plan: gate.Plan, queries: DividedQueries, base: Base) -> tuple[list[Example], int]:
        """Training examples with mined negatives, and how many suspects were kept out; made once for a whole fit."""
        if self._mined is None:
            trainers = narrowed(plan.train, base.encoder, base.encoded, queries.grades, self.progress)
            vectors = encode_query_texts(base.encoder, trainers, self.progress)
            self._mined = make_examples(
                trainers, base.searcher, vectors, base.encoded.corpus, self.config, queries.grades, self.progress
            )
        return self._mined

    def settings(self, plan: gate.Plan) -> dict[str, Any]:
        """The settings that decide what a training makes of its queries."""
        config = self.config
        made = {name: getattr(config, name).deciding() for name in ("mining", "adapter")}
        if self.start is not None:
            made["start"] = {"adapter": self.start.spec.sha256, "train": config.library.train}
        return made | {"training": self.paced(plan).deciding()}

    def paced(self, plan: gate.Plan, adapter: AdapterConfig | None = None) -> TrainingConfig:
        """How thoroughly this evidence is learnt. adapter: by another method than the fit's. What goes on from an
        adapter goes on in small steps."""
        from ragadapt.adapters.method import takes_large_steps

        large = self.start is None and takes_large_steps(adapter or self.config.adapter)
        return self.config.training.paced(plan.evidence or Evidence.LABELLED, large=large)

    def train_on(
        self, base: Base, examples: Sequence[Example], plan: gate.Plan, pool: DevPool | None, checkpoint: Path
    ) -> TrainingResult:
        """One training, together with the other processes."""
        from ragadapt.training import train, untrained

        config, training, encoder = self.config, self.paced(plan), base.encoder
        if self.start is not None and not config.library.train:
            return untrained(encoder, self.start)
        dev = partial(pool.score, progress=self.progress) if pool else None
        self.processes.broadcast(
            Training(encoder.fingerprint, examples, training, dev is not None, config.adapter, self.start)
        )
        return train(
            encoder, examples, dev, config.adapter, training, start=self.start,
            known=known_vectors(examples, base.encoded, config.adapter), seed=config.seed, checkpoint=checkpoint,
            progress=self.progress,
        )  # fmt: skip

    def cross_fit(self, plan: gate.Plan, queries: DividedQueries, base: Base) -> CrossJudged:
        """Judge every query by a model that did not see it; the decision, before the model that ships is trained."""
        config, evidence = self.config, plan.evidence or Evidence.LABELLED
        arena = self.arena(plan.judge, base.encoder, base.encoded, queries.grades)
        trained_on = partial(self.out_of_fold, plan, queries, base, arena)
        found = trained_on("folds", config.gate.strengths(evidence))
        met = answer_was_trained(plan, queries.grades) if evidence is Evidence.LABELLED else None
        with self.clock("gate"):
            judged = judge_folds(found, base.fusion, config, evidence, met)
        if judged.decision.verdict is gate.Verdict.WIN:
            return judged
        shown = judged.decision.dense
        if evidence is Evidence.PARAPHRASE and shown is not None and shown.better:
            gentler = trained_on("gentle-folds", (gate.GENTLE,), again=found.adapters)
            with self.clock("gate"):
                again = judge_folds(gentler, base.fusion, config, evidence)
            if again.decision.verdict is gate.Verdict.WIN:
                return again
        sizes = [len(train) for train, _ in plan.parts()]
        half = trained_on("half-folds", (judged.strength,), share=0.5) if min(sizes) >= 2 * FEWEST_DEV else None
        with self.clock("gate"):
            return replace(
                judged, outlook=outlook(judged, half, round(sum(sizes) / len(sizes)), base.fusion, config, evidence)
            )

    def out_of_fold(
        self,
        plan: gate.Plan,
        queries: DividedQueries,
        base: Base,
        arena: Arena,
        name: str,
        strengths: Sequence[float],
        share: float = 1.0,
        again: Path | None = None,
    ) -> CrossFitted:
        """Train a model for every fold, on this share of what may train there, and search for the fold's queries.

        again: where the adapters of these folds lie already. They are kept where a language model's questions judge,
        which may be asked at another strength.
        """
        from ragadapt.adapters.state import AdapterState
        from ragadapt.training import untrained

        config, keeps = self.config, plan.evidence is Evidence.PARAPHRASE and share == 1 and again is None
        with self.stage(
            name, ("queries",), settings=self.settings(plan), encoder=base.encoder.fingerprint,
            folds=dict(plan.folds), queries=[query.id for query in plan.train], strengths=strengths, signals=True,
            adapters=keeps,
        ) as stage:  # fmt: skip
            if not stage.finished:
                barred = plan.barred_texts

                def trained(fold: int) -> AdaptedEncoder:
                    if again is not None:
                        return untrained(base.encoder, AdapterState.read(again / f"adapter-{fold}")).encoder
                    own = [
                        example
                        for example in self.examples(plan, queries, base)[0]
                        if fold not in barred[example.query] and chance(config.seed, example.query) < share
                    ]
                    checkpoint = stage.scratch / f"checkpoint-{fold}"
                    learnt = self.train_on(base, own, plan, None, checkpoint).encoder
                    if keeps:
                        learnt.state().write(stage.scratch / f"adapter-{fold}")
                    return learnt

                with self.frozen_layers(base.encoder):
                    cross_fit(
                        arena, plan.folds, strengths, trained, stage.scratch,
                        queries_only=config.adapter.adapt == "query", seed=config.seed,
                    ).save(stage.path / "folds.npz")  # fmt: skip
                # Copied, not moved: a kill before the stage ends empties its folder and leaves the scratch.
                for adapter in stage.scratch.glob("adapter-*"):
                    shutil.copytree(adapter, stage.path / adapter.name)
            found = CrossFitted.load(stage.path / "folds.npz", arena.judged)
            return replace(found, adapters=stage.path if keeps else None)

    def confirm(
        self, trained: Trained, crossed: CrossJudged, encoded: EncodedCorpus
    ) -> tuple[gate.Decision, Trained, EncodedCorpus]:
        """What ships after cross-fitting: the model trained on all, with the mix by which the folds were judged, unless
        it moved too far from the base."""
        adapted = self.adapted(trained, encoded)
        moved = drift(encoded.vectors, adapted.vectors, seed=self.config.seed)
        decision = gate.within_drift(crossed.decision, moved, self.config.gate)
        return decision, replace(trained, fusion=crossed.fusion, drift=moved), adapted

    def adapted(self, trained: Trained, encoded: EncodedCorpus) -> EncodedCorpus:
        """The passages by the trained model; where only queries are adapted, as they are."""
        if self.config.adapter.adapt == "query":
            return encoded
        with self.frozen_layers(trained.encoder, room=0):
            return self.encode("adapted-vectors", encoded.corpus, trained.encoder, ("chunks", "train"))

    def train(
        self, plan: gate.Plan, queries: DividedQueries, base: Base, crossed: CrossJudged | None = None
    ) -> Trained:
        """Mine, train, and choose how far to go from the base; after cross-fitting that is known."""
        from ragadapt.encoder import Encoder

        config = self.config
        settings = self.settings(plan)
        settings["strengths"] = (  # all of the gate that this stage looks at
            sorted(config.gate.interpolation) if crossed is None else crossed.strength
        )
        ids = [query.id for query in plan.train]
        with self.stage(
            "train", ("queries",), settings=settings, encoder=base.encoder.fingerprint, queries=ids,
            portable=self.portable,
        ) as stage:  # fmt: skip
            if not stage.finished:
                examples, suspects = self.examples(plan, queries, base) if plan.train else ([], 0)
                pool = None if crossed else self.dev_pool(plan, queries, base)
                with self.frozen_layers(base.encoder):
                    result = self.train_on(base, examples, plan, pool, stage.scratch / "checkpoint")
                    if crossed is None:
                        score = self.dev_score(pool, queries, base)
                        strength, strengths = choose_strength(result.encoder, score, config, self.progress)
                    else:
                        strength, strengths = crossed.strength, crossed.strengths
                        result.encoder.scale(strength)
                    effect = result.encoder.effect()
                    saved = result.encoder.merged().save(stage.path / "model", portable=self.portable)
                record = {
                    "strength": strength,
                    "strengths": sorted(strengths.items()),
                    "history": [asdict(point) for point in result.history],
                    "examples": len(examples),
                    "suspects": suspects,
                    "negatives": None
                    if crossed
                    else held_out_negatives(examples, plan, base.encoded.corpus, config.training.loss),
                    "checks": proof(effect, saved, result.encoder.share),
                }
                (stage.path / "trained.json").write_text(json.dumps(record), encoding="utf-8")
            record = json.loads((stage.path / "trained.json").read_text(encoding="utf-8"))
            settings_now = config.encoder
            encoder = Encoder.open(stage.path / "model", device=settings_now.device, precision=settings_now.precision)
        return Trained(
            encoder,
            record["strength"],
            dict(record["strengths"]),
            tuple(record["history"]),
            record["examples"],
            record["suspects"],
            record["negatives"] and tuple(record["negatives"]),
            tuple(record["checks"]),
        )

    def dev_pool(self, plan: gate.Plan, queries: DividedQueries, base: Base) -> DevPool | None:
        """The pool of the best dev queries of which there are enough."""
        for judges in dev_judges(queries.dev, plan):
            arena = self.arena(judges, base.encoder, base.encoded, queries.grades)
            pool = dev_pool(arena, seed=self.config.seed, queries_only=self.config.adapter.adapt == "query")
            if pool is not None:
                log.info("%d dev queries (%s) steer the training", len(pool.judged), judges[0].evidence.value)
                return pool
        return None

    def dev_score(self, pool: DevPool | None, queries: DividedQueries, base: Base) -> Callable[[Encoder], float] | None:
        """What chooses the strength: mean nDCG@10 of the dev queries, where passages stay as they are over dense and
        default search of all of them, as the gate looks at both; elsewhere by dense search of the pool."""
        if pool is None:
            return None
        if self.config.adapter.adapt != "query":
            return partial(pool.score, progress=self.progress)
        judges = [item.query for item in pool.judged]
        arena = self.arena(judges, base.encoder, base.encoded, queries.grades).with_fusion(base.fusion.fusion)

        def score(encoder: Encoder) -> float:
            asked = arena.asked_by(encoder)
            return sum(float(quality(asked, system).mean()) for system in ("dense", "hybrid")) / 2

        return score

    @contextmanager
    def frozen_layers(self, encoder: Encoder, room: float = 1.0) -> Iterator[None]:
        """Where not all layers are trained, one cache of what the frozen ones give, for every encoding of this fit:
        base vectors, training, looks at the dev part, adapted vectors. room: share of its size up to which it may
        grow now; 0 = it is only read."""
        training = self.config.training
        shared = training.prefix_cache_folder  # serves other fits too: nothing in it is deleted
        folder = Path(shared).expanduser() if shared is not None else self.work.path / "frozen-layers"
        layers = self.config.adapter.layers if self.config.trains_retriever else None
        if training.prefix_cache and training.prefix_cache_bytes > 0 and layers is not None:
            limit = int(room * training.prefix_cache_bytes)
            if encoder.use_prefix_cache(folder, top_layers=layers, max_bytes=limit) and shared is None:
                encoder.forget_other_prefixes(folder)
        try:
            yield
        finally:
            encoder.release_prefix_cache()

    def judge_gently(
        self, trained: Trained, plan: gate.Plan, queries: DividedQueries, base: Base
    ) -> tuple[gate.Decision, Trained, EncodedCorpus]:
        """`judge`, and where a model that gains makes questions with new answers lose, again with less of what it
        learnt: the dev part, which chose how much, has too few of them to tell."""
        made = {trained.strength: self.judge(trained, plan, queries, base)}

        def judged(strength: float) -> gate.Decision:
            made[strength] = self.judge(self.lessened(trained, strength, base), plan, queries, base)
            return made[strength][0]

        whole = made[trained.strength][0]
        decision = gate.step_back(whole, trained.strength, self.config.gate.interpolation, judged)
        return decision, *made[decision.strength or trained.strength][1:]

    def lessened(self, trained: Trained, strength: float, base: Base) -> Trained:
        """The trained model at another strength."""
        from ragadapt.adapters.state import FOLDER, AdapterState
        from ragadapt.encoder import Encoder
        from ragadapt.training import untrained

        learnt = self.paths["train"] / "model" / FOLDER
        with self.stage("less", ("train",), strength=strength, portable=self.portable) as stage:
            if not stage.finished:
                adapted = untrained(base.encoder, AdapterState.read(learnt)).encoder
                adapted.scale(strength)
                effect = adapted.effect()
                saved = adapted.merged().save(stage.path / "model", portable=self.portable)
                checks = proof(effect, saved, adapted.share)
                (stage.path / "checks.json").write_text(json.dumps(checks), encoding="utf-8")
            checks = json.loads((stage.path / "checks.json").read_text(encoding="utf-8"))
            settings = self.config.encoder
            encoder = Encoder.open(stage.path / "model", device=settings.device, precision=settings.precision)
        return replace(trained, encoder=encoder, strength=strength, checks=tuple(checks), stage="less")

    def judge(
        self, trained: Trained, plan: gate.Plan, queries: DividedQueries, base: Base
    ) -> tuple[gate.Decision, Trained, EncodedCorpus]:
        """Compare with the base on held-out queries; the decision, the trained side with its fusion, its vectors."""
        config = self.config
        adapted = self.adapted(trained, base.encoded)
        grades = queries.grades
        with self.clock("gate"):
            fusion = self.own_fusion(trained.encoder, adapted, plan, queries, base.fusion)
            before = self.arena(plan.judge, base.encoder, base.encoded, grades).with_fusion(base.fusion.fusion)
            after = self.arena(plan.judge, trained.encoder, adapted, grades)
            after = after.with_fusion(fusion.fusion)
            moved = drift(base.encoded.vectors, adapted.vectors, seed=config.seed)
            met = answer_was_trained(plan, queries.grades)
            dense, search = ((quality(after, system), quality(before, system)) for system in ("dense", "hybrid"))
            decision = gate.decide(
                strength=trained.strength,
                dense=dense,
                search=search,
                drift=moved,
                config=config.gate,
                seed=config.seed,
                met=[met[item.query.id] for item in before.judged],
                labelled=plan.evidence is Evidence.LABELLED and bool(plan.train),
            )
            seen: dict[str, Forecast] = {}
            # Of other kinds nobody can give more; where nothing trained, more labels train nothing either.
            proved = decision.verdict is gate.Verdict.WIN
            if not proved and plan.evidence is Evidence.LABELLED and plan.train:
                sizes, every = (len(plan.train),), len(plan.train) + len(plan.judge)
                for name, (ours, theirs) in (("dense search", dense), ("default search", search)):
                    seen[name] = forecast(sizes, [ours - theirs], seed=config.seed, total=every)
        log.info("gate: %s", "; ".join(decision.reasons))
        return decision, replace(trained, fusion=fusion, drift=moved, outlook=seen), adapted

    def confidence(
        self,
        plan: gate.Plan,
        queries: DividedQueries,
        shipped: Shipped,
        crossed: CrossJudged | None,
        adapted: bool,
        second: LearntReranking | None = None,
    ) -> Confidence:
        """How sure what ships is of its hits, from the questions that judged it. crossed: where all of them trained
        what ships, what the folds found; where nothing trained, it gives each question the mix learnt without it.
        second: the second stage that ships beside it, if one does."""
        encoder, encoded, learnt = shipped
        rank, chosen = judging_queries(
            plan, (*queries.train, *queries.dev, *queries.heldout), self.seen_by_reranker if second else ()
        )
        with self.clock("confidence"):
            if crossed is not None and adapted:
                ids = {query.id for query in chosen}
                every = crossed.found.adapted[crossed.strength].candidates[crossed.fusions[0].feedback]
                rows = [at for at, item in enumerate(crossed.found.judged) if item.query.id in ids]
                judged = [crossed.found.judged[at] for at in rows]
                found = [every[at] for at in rows]
                fusions = [crossed.fusions[at] for at in rows]
            elif chosen:
                arena = self.arena(chosen, encoder, encoded, queries.grades)
                judged, found = list(arena.judged), arena.candidates(learnt.fusion)
                without: dict[str, Fusion] = {}
                if crossed is not None:
                    own = zip(crossed.found.judged, crossed.base_fusions, strict=True)
                    without = {item.query.id: fusion for item, fusion in own}
                fusions = [without.get(item.query.id, learnt.fusion) for item in judged]
            else:
                judged, found, fusions = [], [], []
            given: Any = (found, fusions, judged, encoded.corpus.chunks, encoded.corpus.groups)
            settings: Any = {"evidence": rank, "config": self.config.gate, "seed": self.config.seed}
            sure = learn_confidence(*given, **settings)
            return sure if second is None or not second.ships else learn_reread(sure, second, *given, **settings)

    # The folder

    def seen_by_all(
        self, plan: gate.Plan, queries: DividedQueries, adapted: bool, second: LearntReranking | None
    ) -> frozenset[str]:
        """Marks of the questions that anything in the retriever has learnt from."""
        found = seen_by(self.config.encoder.model)
        if ships := second is not None and second.ships:
            found |= self.seen_by_reranker
        if adapted or (ships and self.config.trains_reranker):
            found |= self.seen | marks_of((*plan.train, *queries.dev))
        return found

    def report(
        self,
        documents: Sequence[Document],
        skipped: Sequence[Any],
        queries: DividedQueries,
        plan: gate.Plan,
        decision: gate.Decision,
        trained: Trained | None,
        crossed: CrossJudged | None,
        base: Base,
        shipped: Shipped,
        second: LearntReranking | None = None,
        sure: Confidence = FIXED,
    ) -> Report:
        """Measure what ships beside the baselines on the queries that judged, or the held-out ones of the best rank."""
        config, corpus = self.config, base.encoded.corpus
        with self.clock("report"):
            rank, chosen = one_rank(queries.heldout, dict.fromkeys(Evidence, 1), MOST)
            if rank is Evidence.CROP:
                chosen = chosen[:: -(-len(chosen) // _CROPS)]
            if plan.judge:
                rank, chosen = plan.evidence, list(plan.judge)
            arena, before, after = None, None, None
            if chosen:
                arena = self.arena(chosen, base.encoder, base.encoded, queries.grades).with_fusion(base.fusion.fusion)
                before = runs_of_base(arena, None if crossed is None else crossed.base_fusions)
                if decision.adapted and crossed is not None:
                    after = AfterTraining.out_of_fold(arena, crossed.found.adapted[crossed.strength], crossed.fusions)
                elif decision.adapted:
                    encoder, encoded, learnt = shipped
                    adapted = self.arena(chosen, encoder, encoded, queries.grades).with_fusion(learnt.fusion)
                    after = AfterTraining.by(adapted)
            outcome = crossed or trained
            facts = Facts(
                documents=documents,
                skipped=skipped,
                corpus=corpus,
                evidence=rank,
                judged=len(chosen),
                plan=plan,
                decision=decision,
                fusion=shipped[2],
                made=queries.made,
                kept=queries.kept,
                sizes={part: len(getattr(queries, part)) for part in ("train", "dev", "heldout")},
                documents_by_part=queries.documents,
                leaked=leaked(plan, corpus) if trained or crossed else 0,
                negatives=trained.negatives if trained else None,
                warnings=(
                    *corpus.notes,
                    *filter(None, [foreign_note(corpus.languages, config.encoder)]),
                    *queries.notes,
                    *self.notes,
                ),
                history=trained.history if trained else (),
                strengths=outcome.strengths if outcome else {},
                strength=outcome.strength if outcome else None,
                outlook=outcome.outlook if outcome else {},
                checks=trained.checks if trained else (),
                precision=shipped[0].precision,
                timings=self.clock.seconds,
                profile=self.clock.profile,
                configuration=config.model_dump(mode="json"),
                seed=config.seed,
                base_model=base.encoder.spec.model,
                licences=_licences(base.encoder, config),
                second=second,
                sure=sure,
            )
            return build_report(facts, arena, before, after)

    def commit(
        self,
        report: Report,
        base: Encoder,
        encoder: Encoder,
        encoded: EncodedCorpus,
        learnt: LearntFusion,
        *,
        model: str | None,
        second: LearntReranking | None = None,
        reranker: Reranker | None = None,
        sure: Confidence = FIXED,
        seen: frozenset[str] = frozenset(),
    ) -> Path:
        """Save the model, build the index, write the report, and replace the target in one move. model: the stage that
        left it; None = the base's ships."""
        config, corpus, progress = self.config, encoded.corpus, self.progress
        if model is None:
            with self.stage("base-model", encoder=encoder.fingerprint, portable=self.portable) as stage:
                if not stage.finished:
                    encoder.save(stage.path / "model", portable=self.portable)
        with self.stage("index", ("chunks",), encoder=encoder.fingerprint, index=config.index.deciding()) as stage:
            if not stage.finished:
                build_index(stage, config.index, encoded, encoder.fingerprint, progress, self.lexical_folder)
        with self.stage("report", ("queries",), report=report.model_dump(mode="json")) as stage:
            if not stage.finished:
                write_report(stage.path, report)
                (stage.path / "README.md").write_text(model_card(report), encoding="utf-8")
                questions = stage.path / QUESTIONS
                questions.mkdir()
                DividedQueries.read(self.paths["queries"]).without_crops().write(questions)
                write_seen(questions, seen)
        if reranker is not None and second is not None and second.ships:
            with self.stage("reranker", model=reranker.fingerprint, portable=self.portable) as stage:
                if not stage.finished:
                    reranker.save(stage.path / RERANKER, portable=self.portable)
        parts = {
            "chunks.sqlite": self.paths["chunks"] / "chunks.sqlite",
            "lexical": self.lexical_folder,
            "model": self.paths[model or "base-model"] / "model",
            **index_parts(self.paths["index"]),
            "report": self.paths["report"],
            "report/queries.jsonl": self.paths["queries"] / "heldout.jsonl",
        }
        if "reranker" in self.paths:
            parts[RERANKER] = self.paths["reranker"] / RERANKER
        manifest = Manifest(
            fingerprint=encoder.fingerprint,
            configuration=config.model_dump(mode="json"),
            seeds={"seed": config.seed},
            licences=_licences(encoder, config),
            sections={
                "fusion": learnt.fusion.as_dict(),
                "depth": config.fusion.depth,
                "confidence": replace(sure, unrelated=encoder.unrelated).section(),
                **({} if second is None else {"rerank": second.section()}),
                "verdict": report.verdict.outcome if report.verdict else None,
                "chunks": len(corpus.chunks),
                "documents": len(corpus.documents),
                "sources": dict(self.sources),
                "cut_by": __version__,
                "encoded_by": __version__,
                "precision": asdict(encoder.precision),
            },
            mutable=mutable_parts(config.index),
        )
        with self.clock("commit"), profiling.work("commit"):
            # Beside the folder before it is replaced: the stages go with the commit.
            held = model is None and "index" not in manifest.mutable
            if not held:
                keep_vectors_beside(self.work.target, corpus, self.paths["base-vectors"] / "vectors.npy", base)
            commit_build(self.work, manifest, parts)
            if held:
                forget_vectors_beside(self.work.target)
        return self.work.target


def check_arguments(config: FitConfig, labels: Sequence[Labels]) -> None:
    """Raises InvalidInput for what is of another type: settings are not merged, nor paths taken for labels."""
    if not isinstance(config, FitConfig):
        raise InvalidInput(f"config is {type(config).__name__} ({shown(config)}); build one with FitConfig.build(…).")
    for at, label in enumerate(checked_list(labels, "labels")):
        if not isinstance(label, Labels):
            raise InvalidInput(f"labels[{at}] is {type(label).__name__} ({shown(label)}); give Labels(queries, qrels).")


def _check_cache_folder(config: FitConfig) -> None:
    """Raises InvalidConfiguration where nothing could be kept."""
    folder = config.training.prefix_cache_folder
    if folder is None:
        return
    if Path(folder).expanduser().exists() and not Path(folder).expanduser().is_dir():
        raise InvalidConfiguration(f"training.prefix_cache_folder = {folder!r} is a file. Name a folder.")
    if config.adapter.layers is None or not config.trains_retriever:
        raise InvalidConfiguration(
            f"training.prefix_cache_folder = {folder!r}, but all layers are trained or none, so there is nothing to "
            "keep. Set adapter.layers (3 of six are the quick choice), or leave the folder out."
        )


def _licences(encoder: Encoder, config: FitConfig) -> dict[str, str]:
    from ragadapt.encoder.loading import licence_of

    query, licences = config.query, {"base": encoder.spec.licence or "unknown"}
    if query.generator:
        licences["generator"] = licence_of(query.generator) or f"unknown: see {query.generator}"
    elif query.generator_url:
        licences["generator"] = f"unknown: see {query.generator_model or query.generator_url}"
    if config.mining.teacher is not None:
        licences["teacher"] = licence_of(config.mining.teacher) or f"unknown: see {config.mining.teacher}"
    if config.rerank.model is not None:
        from ragadapt.rerank import PRESETS

        name = PRESETS.get(config.rerank.model, config.rerank.model)
        licences["re-ranker"] = licence_of(name) or f"unknown: see {name}"
    return licences
