"""What the steps of a fit share: searches for judged queries, stages that are kept, what they hand to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ragadapt import profiling
from ragadapt.config import AdapterConfig, FitConfig, TrainingConfig
from ragadapt.errors import InvalidConfiguration
from ragadapt.evaluation import gate
from ragadapt.evaluation.forecast import Forecast
from ragadapt.lexical import LexicalIndex
from ragadapt.out_of_core import as_it_is
from ragadapt.pipeline.arena import Arena, Grades, build_arena, one_rank
from ragadapt.pipeline.corpus import EncodedCorpus
from ragadapt.pipeline.fusion import ENOUGH, MOST, LearntFusion, Neutral, learn_fusion, neutral_weight
from ragadapt.pipeline.queries import DividedQueries
from ragadapt.pipeline.stages import searcher_of
from ragadapt.search.searcher import Searcher
from ragadapt.store.workspace import Stage, Workspace
from ragadapt.values import Evidence, Progress, Query

if TYPE_CHECKING:
    from ragadapt.adapters import AdapterState
    from ragadapt.encoder import Encoder
    from ragadapt.pipeline.library import Start
    from ragadapt.training import Example
    from ragadapt.training.processes import Processes


@dataclass(frozen=True)
class Trained:
    """A trained encoder at its chosen strength, and how it came about."""

    encoder: Encoder
    strength: float
    strengths: dict[float, float]  # strength → dev score
    history: tuple[dict[str, Any], ...]
    examples: int
    suspects: int
    negatives: tuple[int, int] | None  # beside the answers: passages that answer held-out queries, and all
    checks: tuple[dict[str, Any], ...]
    fusion: LearntFusion | None = None
    drift: float | None = None
    outlook: Mapping[str, Forecast] = field(default_factory=dict)  # by kind of search; empty where it is proved
    stage: str = "train"  # that left the model


@dataclass(frozen=True, eq=False)
class Base:
    """The base model: its vectors of the corpus, the untuned search over them, and the fusion that was learnt."""

    encoder: Encoder
    encoded: EncodedCorpus
    searcher: Searcher
    fusion: LearntFusion


class Shipped(NamedTuple):
    """The first stage that ships: the base's or the trained one's."""

    encoder: Encoder
    encoded: EncodedCorpus
    fusion: LearntFusion


class Measures:
    """Searches for judged queries by an encoder and the fusion that it gets; needs the lexical index, no workspace."""

    lexical_folder: Path

    def __init__(self, config: FitConfig, clock: profiling.Clock, progress: Progress) -> None:
        self.config = config
        self.clock = clock
        self.progress = progress

    def lexical_index(self) -> LexicalIndex:
        """Opened anew; the pages are shared."""
        return LexicalIndex.open(self.lexical_folder)

    def arena(self, queries: Sequence[Query], encoder: Encoder, encoded: EncodedCorpus, grades: Grades) -> Arena:
        return build_arena(queries, encoder, encoded, self.lexical_folder, grades, self.progress)

    def neutral(self, queries: DividedQueries, encoder: Encoder, searcher: Searcher) -> Neutral:
        """Where this encoder's fusion starts. What is held out tells nothing here either."""
        if self.config.fusion.weight is not None:
            return Neutral(self.config.fusion.weight, "set by the configuration")
        cut = [query for query in queries.fusion_queries if query.evidence is not Evidence.LABELLED]
        asked = [query.text for query in queries.fusion_queries if query.evidence is Evidence.LABELLED]
        with self.clock("fusion"):
            return neutral_weight(searcher, encoder, cut, [*queries.asked, *asked], self.progress)

    def moved(self, base: LearntFusion, queries: DividedQueries, encoder: Encoder, encoded: EncodedCorpus) -> Neutral:
        """Where a trained encoder's fusion starts: at what the base learnt, moved by what its scores' shape changed."""
        own = self.neutral(queries, encoder, searcher_of(encoded, self.lexical_index()))
        weight = min(max(base.fusion.weight + own.weight - base.neutral, 0.0), 1.0)
        return Neutral(round(weight, 2), "what the base learnt and how the shape of the scores changed")

    def own_fusion(
        self, encoder: Encoder, adapted: EncodedCorpus, plan: gate.Plan, queries: DividedQueries, base: LearntFusion
    ) -> LearntFusion:
        """The fusion for a trained model, from the dev queries like those that judge; the base's where they are few."""
        rank, chosen = one_rank([q for q in queries.dev if q.evidence is plan.evidence], ENOUGH, MOST)
        if not chosen:
            return base
        arena = self.arena(chosen, encoder, adapted, queries.grades)
        neutral = self.moved(base, queries, encoder, adapted)
        return learn_fusion(arena, self.config.fusion, evidence=rank, neutral=neutral)


class Steps(Measures):
    """A fit's workspace and its stages."""

    def __init__(
        self,
        work: Workspace,
        config: FitConfig,
        clock: profiling.Clock,
        processes: Processes,
        progress: Progress,
        portable: bool,
        sources: Mapping[str, Any],
    ) -> None:
        super().__init__(config, clock, progress)
        self.work = work
        self.sources = sources
        self.processes = processes
        self.portable = portable
        self.reused: list[str] = []
        self.digests: dict[str, str] = {}
        self.paths: dict[str, Path] = {}
        self.notes: list[str] = []  # for the report
        self.keep: Callable[[Any], Any] = as_it_is  # what is done with documents and chunks to hold them
        self.start: AdapterState | None = None  # what training begins with; None = the base
        self.offered: Start | None = None  # the library's, which is the start if something can judge it
        self.seen = frozenset[str]()  # marks of the questions that what takes part in a training has learnt from
        self.seen_by_reranker = frozenset[str]()  # before this fit
        self._mined: tuple[list[Example], int] | None = None

    @contextmanager
    def stage(self, name: str, after: Sequence[str] = (), **key: Any) -> Iterator[Stage]:
        """A stage whose key holds its own settings and the digests of the stages that it reads."""
        key["after"] = {earlier: self.digests[earlier] for earlier in after}
        with self.clock(name), self.work.stage(name, key) as stage:
            if stage.finished:
                self.reused.append(name)
            yield stage
        self.digests[name] = stage.digest
        self.paths[name] = stage.path


@dataclass(frozen=True)
class Training:
    """What the other processes have to know of a training in which they take part.

    judged: whether the first process looks at a dev part. adapter, start: of an encoder's that begins with what another
    adapter learnt.
    """

    fingerprint: str
    examples: Sequence[Example]
    training: TrainingConfig
    judged: bool
    adapter: AdapterConfig | None = None
    start: AdapterState | None = None

    def join(self, processes: Processes, config: FitConfig) -> None:
        """Take part; only the first process keeps the result. Raises InvalidConfiguration where its base is another."""
        from ragadapt.encoder import Encoder
        from ragadapt.training import train

        encoder = Encoder.load(config.encoder)
        self.check(encoder.fingerprint, processes, "base model")
        adapter = self.adapter or config.adapter
        train(encoder, self.examples, self.dev, adapter, self.training, start=self.start, seed=config.seed)

    def check(self, fingerprint: str, processes: Processes, what: str) -> None:
        """Raises InvalidConfiguration where this process loaded something else than the first."""
        if fingerprint != self.fingerprint:
            raise InvalidConfiguration(
                f"Process {processes.index} has another {what} than the first one. Give all of them the same files."
            )

    @property
    def dev(self) -> Callable[[Any], float] | None:
        """The first process looks, and tells the others."""
        return (lambda _: 0.0) if self.judged else None
