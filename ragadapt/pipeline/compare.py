"""compare_methods(): methods of training side by side on one corpus, and which of them to choose.

passages, queries, split, mining, base vectors (all once) → size of each method → learning rate of each → a training per
seed → the questions that were held out → report

All of them have the same passages, questions, split, negatives, seeds and dev part, and equal budgets: the same steps
or the same time, and, where it is asked for, the same number of parameters. Every training is a stage of its own, so a
killed comparison goes on, and one that gets another method or seed runs that alone.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from ragadapt import profiling
from ragadapt.checks import checked_list, checked_path
from ragadapt.config import AdapterConfig, EncoderConfig, FitConfig, TrainingConfig
from ragadapt.corpus.sources import listed_sources, read_sources
from ragadapt.errors import InvalidConfiguration, InvalidInput, LossDiverged, RagadaptError, TrainingFailed
from ragadapt.evaluation import gate
from ragadapt.evaluation.learning import area_under, steps_to_gain
from ragadapt.files import json_digest
from ragadapt.out_of_core import keep_all
from ragadapt.pipeline.adapt import DevPool, check_teacher, drift, known_vectors
from ragadapt.pipeline.cells import Cells, peak_memory_bytes
from ragadapt.pipeline.corpus import Corpus, EncodedCorpus
from ragadapt.pipeline.fit import FitSteps, check_arguments
from ragadapt.pipeline.fusion import LearntFusion, Neutral, quality
from ragadapt.pipeline.library import refuse_start
from ragadapt.pipeline.queries import DividedQueries, Labels, leaked
from ragadapt.pipeline.report import corpus_facts, machine_of
from ragadapt.pipeline.stages import read_examples, write_examples
from ragadapt.pipeline.steps import Base, Measures
from ragadapt.queries import FEWEST_DEV, check_generator
from ragadapt.report import (
    CurvePoint,
    EvidenceUsed,
    MethodMeasured,
    MethodRun,
    Report,
    SkippedSource,
    SplitSizes,
    Timing,
    write_report,
)
from ragadapt.report.build import library_versions
from ragadapt.report.methods import DENSE, SEARCH, Judged, MethodFigures, compared, label_of
from ragadapt.search.fusion import Floats
from ragadapt.store.workspace import MANIFEST, Stage, Workspace
from ragadapt.threads import cores
from ragadapt.values import Evidence, Progress, no_progress

if TYPE_CHECKING:
    from ragadapt.adapters.budget import Size
    from ragadapt.encoder import Encoder
    from ragadapt.training import Example

log = logging.getLogger(__name__)

ALL = "all"
REFERENCE = "lora"
"""What the others are compared with where it takes part; else the first method is."""

_LOOKS = 8  # at the dev part over a run: the points of a learning curve
_PACE_STEPS = 8  # that tell how long a step takes
_HALF_DECADE = 10**0.5  # between neighbouring learning rates
_DIVERGED = -1.0  # the dev score of a training that came to nothing

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Budget:
    """What all methods have alike, beside data and seeds.

    parameters: trained ones; below 1 a share of the transformer's, else a number; None = each method at its own size.
    steps, minutes: of every training, one of them; None = as many epochs as a fit takes. minutes: of the steps alone.
    """

    parameters: float | None = None
    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.minutes is not None:
            raise InvalidInput("A budget of steps and one of minutes: the same steps or the same time, not both.")
        for name, value in (("steps", self.steps), ("minutes", self.minutes), ("parameters", self.parameters)):
            if value is not None and not value > 0:
                raise InvalidInput(f"budget: {name} = {value}; it must be above 0.")

    def wanted(self, whole: int) -> int | None:
        """How many of a transformer's `whole` parameters are to be trained; None where nobody said."""
        if self.parameters is None:
            return None
        return round(self.parameters * whole) if self.parameters < 1 else int(self.parameters)

    @classmethod
    def of(cls, parameters: str | None = None, steps: int | None = None, minutes: float | None = None) -> Self:
        """From what stands on a command line: parameters as "0.5%", "120000", "120k" or "1.2M"."""
        return cls(None if parameters is None else parse_parameters(parameters), steps, minutes)


def parse_parameters(text: str) -> float:
    """A share below 1 from "0.5%", a number from "120000", "120k" or "1.2M". Raises InvalidInput."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)(%|[kKM])?", text.strip().replace(" ", ""))
    if match is not None:
        number, unit = float(match[1]), match[2] or ""
        value = number / 100 if unit == "%" else number * {"": 1, "k": 1e3, "K": 1e3, "M": 1e6}[unit]
        if 0 < value < 1 if unit == "%" else value >= 1 and value.is_integer():
            return value
    raise InvalidInput(
        f"{text!r} is no number of parameters: give a share of the model's (0.5%), or a number (120000, 120k, 1.2M)."
    )


@dataclass(frozen=True)
class MethodComparison:
    """A finished comparison. trained: trainings that were run now; reused: those that an earlier call had done."""

    path: Path
    report: Report
    trained: int
    reused: int

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    @property
    def sentence(self) -> str:
        """What to do."""
        assert self.report.methods is not None
        return self.report.methods.sentence


def compare_methods(
    sources: Sequence[Any],
    folder: str | Path,
    methods: Sequence[str] = (ALL,),
    config: FitConfig = FitConfig(),
    *,
    labels: Sequence[Labels] = (),
    chunked: bool = False,
    budget: Budget = Budget(),
    seeds: int = 3,
    rates: int = 4,
    jobs: int | None = None,
    progress: Progress = no_progress,
) -> MethodComparison:
    """Train every method on the same questions with equal budgets, measure all on held-out ones, and write report.html
    and report.json into the folder.

    methods: names, or "all" for those that can run here; a name may bring settings of its own ("lora:reweight=none").
    seeds: trainings of each method, from config.seed on. rates: learning rates that are tried for each method on the
    dev part; 1 = the one of the configuration. jobs: trainings at a time, each in a process of its own; None = as many
    as the processors can hold, 0 = in this process, where the memory of a method cannot be told. Raises InvalidInput,
    EmptyCorpus, StoreLocked, ModelNotFound, TrainingFailed.
    """
    check_arguments(config, labels)
    names = _named(methods)
    for name in names:
        if own_settings(name):
            _settings(name, config.adapter)  # what is wrong is told before any work
    for name, value, least in (("seeds", seeds, 1), ("rates", rates, 1), ("jobs", jobs, 0)):
        if value is not None and value < least:
            raise InvalidInput(f"{name} = {value}: it must be at least {least}.")
    check_teacher(config)
    refuse_start(config, "every training of a comparison")
    check_generator(config.query)
    from ragadapt.encoder import Encoder
    from ragadapt.training.processes import Processes, launched

    if launched():
        raise InvalidConfiguration("A comparison starts its own processes: run it without accelerate or torchrun.")
    folder = checked_path(folder, "The folder")
    if (folder / MANIFEST).is_file():
        raise InvalidInput(f"{folder} holds a retriever. Name another folder for the comparison.")
    sources = checked_list(sources, "sources") if chunked else listed_sources(sources)
    clock = profiling.Clock()
    with clock("read"):
        documents, skipped, chunks = read_sources(
            sources, config.read, chunked, progress, [file for label in labels for file in label.files]
        )
    folder.mkdir(parents=True, exist_ok=True)
    with Workspace.open(folder / "work", {"command": "compare"}) as work:
        steps = _Steps(work, config, clock, Processes(), progress, False, {})
        with clock("read"):
            steps.keep = keep_all(documents, chunks, work.target)
        with clock("load model"):
            encoder = Encoder.load(config.encoder)
        with clock("sizes"):
            contenders, left_out = _contenders(encoder, names, config, budget, chosen=ALL not in methods)
        queries, plan, base = steps.prepare(documents, chunks, encoder, labels)
        steps.take_side(plan)
        contenders = [each.on(steps.config.adapter.adapt) for each in contenders]
        pool = steps.dev_pool(plan, queries, base)
        if pool is None:
            raise InvalidInput(
                f"Of the questions {len(queries.dev)} are in the dev part, too few of one kind to choose learning "
                f"rates by ({FEWEST_DEV} are needed). Give more labelled questions (--queries); 60 are enough."
            )
        examples = steps.mined(plan, queries, base)
        # A GPU tells of every training what it held; the system tells of a process alone.
        with Cells(_jobs(jobs, encoder), reuse=encoder.precision.device.startswith("cuda")) as cells:
            run = _Comparison(steps, cells, base, plan, queries, pool, examples, budget, seeds, rates)
            with clock("methods"):
                found = run.all(contenders)
        left_out += sorted(run.failed, key=lambda each: names.index(each.source))  # threads end in any order
        report = _report(run, found, left_out, clock, skipped)
    write_report(folder, report)
    return MethodComparison(folder, report, run.trained_now, run.reused)


@dataclass(frozen=True, slots=True)
class Contender:
    """What a comparison trains under one name. name: the method's, and the settings that were given with it."""

    name: str
    size: Size

    @property
    def label(self) -> str:
        """What a reader calls it."""
        return label_of(self.name)

    def on(self, side: str) -> Contender:
        """The same on the side that all of a comparison are trained on."""
        return replace(self, size=replace(self.size, config=self.size.config.model_copy(update={"adapt": side})))


def _named(methods: Sequence[str]) -> list[str]:
    """The methods asked for, without repeats. Raises InvalidInput."""
    from ragadapt.adapters.method import METHODS

    if isinstance(methods, str):
        raise InvalidInput(f"methods = {methods!r}: give a list of names, such as ['lora', 'full'].")
    names = list(dict.fromkeys(name for each in methods for name in (METHODS if each == ALL else (each,))))
    if unknown := [method for name in names if (method := name.partition(":")[0]) not in METHODS]:
        raise InvalidInput(f"There is no method {unknown[0]!r}. There are: {', '.join(METHODS)}; all is each of them.")
    if len(names) < 2:
        raise InvalidInput(f"{len(names)} method given ({', '.join(names)}): name at least two to compare, or all.")
    return names


def own_settings(name: str) -> dict[str, Any]:
    """The settings in "method:setting=value:…", as JSON values or text. Raises InvalidInput."""
    found = dict[str, Any]()
    for each in name.split(":")[1:]:
        key, equals, value = each.partition("=")
        if not (key and equals and value):
            raise InvalidInput(f"{name!r}: settings follow a method's name as lora:reweight=none:gamma=2.")
        if key in found:
            raise InvalidInput(f"{name!r}: {key!r} is given twice. Give it once.")
        if key in ("method", "adapt"):
            raise InvalidInput(f"{name!r}: {key!r} is the same for all of a comparison. Leave it out.")
        if key not in AdapterConfig.model_fields:
            raise InvalidInput(f"{name!r}: {key!r} is no setting of a method. `ragadapt methods` lists them.")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _contenders(
    encoder: Encoder, names: Sequence[str], config: FitConfig, budget: Budget, *, chosen: bool
) -> tuple[list[Contender], list[SkippedSource]]:
    """Every method at the size of the budget, and those that cannot run here. chosen: the user named them, so that one
    which cannot run is an error."""
    from ragadapt.adapters.budget import nearest_size, size_of, whole_size

    found, left_out = list[Contender](), list[SkippedSource]()
    wanted = budget.wanted(whole_size(encoder))
    for name in names:
        try:
            settings = _settings(name, config.adapter)
            size = size_of(encoder, settings) if wanted is None else nearest_size(encoder, settings, wanted)
        except (RagadaptError, ImportError) as error:
            if chosen:
                raise
            log.warning("method %s is left out: %s", name, error)
            left_out.append(SkippedSource(source=name, reason=str(error)))
            continue
        if fixed := [option for option in size.options if option in own_settings(name)]:
            raise InvalidInput(
                f"{name!r} fixes {fixed[0]}, by which the budget of parameters chooses the size. Drop one."
            )
        found.append(Contender(name, size))
    if len(found) < 2:
        reasons = "; ".join(f"{each.source}: {each.reason}" for each in left_out)
        raise InvalidInput(f"{len(found)} of {len(names)} methods can run here, too few to compare. {reasons}")
    return found, left_out


def _settings(name: str, shared: AdapterConfig) -> AdapterConfig:
    """A method's settings: those of all that it has, and over them its own. Raises InvalidInput."""
    from ragadapt.adapters.method import options_of, settings_for

    method, own = name.partition(":")[0], own_settings(name)
    found = settings_for(method, shared)
    if not own:
        return found
    given = {key: getattr(found, key) for key in found.model_fields_set}
    try:
        found = FitConfig.build({"adapter": {**given, **own, "method": method}}).adapter
        options_of(found)
    except InvalidConfiguration as error:
        raise InvalidInput(f"{name!r}: {error}") from error
    return found


def _jobs(jobs: int | None, encoder: Encoder) -> int:
    """Trainings at a time. A training takes as many threads as torch does, which are all processors by default."""
    if jobs is not None:
        return jobs
    import torch

    if encoder.precision.device.split(":")[0] != "cpu":
        return 1
    return max(1, cores() // torch.get_num_threads())


class _Steps(FitSteps):
    """A fit's steps up to its training, judged by held-out questions alone."""

    def plan(self, queries: DividedQueries, corpus: Corpus, neutral: Neutral) -> gate.Plan:
        """Who trains and who judges; no folds, as each method would need a model for every one of them.

        Raises InvalidInput where there are too few questions."""
        config = self.config
        found = gate.plan(
            queries.train,
            queries.heldout,
            dev=queries.dev,
            only_judge=queries.only_judge,
            only_train=queries.only_train,
            split=config.split,
            config=config.gate.model_copy(update={"cross_fit_below": 0}),
        )
        if found.crossed:
            own = {query.id for query in queries.train}
            found = gate.Plan(
                tuple(query for query in found.train if query.id in own),
                tuple(query for query in queries.heldout if query.evidence is found.evidence),
                found.evidence,
                "Questions by a language model about held-out documents judge.",
            )
        if len(found.train) < gate.FEWEST_TO_TRAIN or len(found.judge) < gate.MINIMUM[Evidence.LABELLED]:
            raise InvalidInput(
                f"Of the questions {len(found.train)} can train and {len(found.judge)} were held out to judge, too few "
                f"to compare methods by (at least {gate.FEWEST_TO_TRAIN} and {gate.MINIMUM[Evidence.LABELLED]}). Give "
                "labelled questions (--queries), 60 or more, or let a language model write some (--generator)."
            )
        return found

    def mined(self, plan: gate.Plan, queries: DividedQueries, base: Base) -> list[Example]:
        """The training examples, mined once for all methods."""
        config = self.config
        with self.stage(
            "examples", ("queries",), mining=config.mining.deciding(), loss=config.training.loss,
            encoder=base.encoder.fingerprint, queries=[query.id for query in plan.train],
        ) as stage:  # fmt: skip
            file = stage.path / "examples.jsonl"
            if not stage.finished:
                examples, _ = self.examples(plan, queries, base)
                write_examples(file, examples)
            return read_examples(file)


# Trainings ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A training. base: the model, or where it is; known: see `train`; alone: it has a process of its own, whose memory
    is its own."""

    base: EncoderConfig | Encoder
    adapter: AdapterConfig
    training: TrainingConfig
    seed: int
    examples: Sequence[Example]
    known: Mapping[str, Floats] | None
    pool: DevPool | None
    alone: bool


@dataclass(frozen=True)
class _Trained:
    """A finished training. best: its dev score, −1 where the loss diverged. failed: what was said of that."""

    stage: Stage
    best: float
    record: Mapping[str, Any]

    @property
    def failed(self) -> str:
        return str(self.record.get("failed", ""))


def train_cell(task: Task, folder: Path, scratch: Path, *, progress: Progress = no_progress) -> None:
    """Train, and write the adapter and trained.json into the folder. That the loss diverged is a result, too."""
    from ragadapt.training import train

    encoder = _loaded(task.base)
    dev = partial(task.pool.score) if task.pool is not None else None
    on_gpu = _reset_device_peak(encoder)
    try:
        result = train(
            encoder, task.examples, dev, task.adapter, task.training, known=task.known, seed=task.seed,
            checkpoint=scratch / "checkpoint", progress=progress,
        )  # fmt: skip
    except LossDiverged as error:
        (folder / "trained.json").write_text(json.dumps({"failed": str(error)}), encoding="utf-8")
        return
    result.encoder.state().write(folder / "adapter")
    curve = [(0, result.dev_before), *((point.step, point.dev) for point in result.history if point.dev is not None)]
    record = {
        "seed": task.seed,
        "steps": result.steps,
        "best_step": result.best_step,
        "best_dev": result.best_dev,
        "curve": curve if result.dev_before is not None else [],
        "seconds": result.step_seconds,
        "parameters": sum(parameter.numel() for parameter in result.encoder.trainable().values()),
        "peak_memory_bytes": _device_peak(encoder) if on_gpu else peak_memory_bytes() if task.alone else None,
    }
    (folder / "trained.json").write_text(json.dumps(record), encoding="utf-8")


def pace_cell(task: Task, *, progress: Progress = no_progress) -> float:
    """Seconds that a step takes: the median of a few, without the first two, which warm up."""
    from ragadapt.training import train

    result = train(
        _loaded(task.base), task.examples, None, task.adapter, task.training, known=task.known, seed=task.seed,
        progress=progress,
    )  # fmt: skip
    ends = [0.0, *(point.seconds for point in result.history)]
    took = np.diff(ends)
    return float(median(took[2:] if len(took) > 4 else took))


@dataclass(frozen=True, eq=False)
class Judging:
    """What a trained model is measured by. base: the model, or where it is; vectors: the base's, or their file;
    fusion: the base's."""

    base: EncoderConfig | Encoder
    config: FitConfig
    lexical_folder: Path
    corpus: Corpus
    vectors: Path | Floats
    queries: DividedQueries
    plan: gate.Plan
    fusion: LearntFusion

    def encoded(self) -> EncodedCorpus:
        """The corpus by the base."""
        vectors = self.vectors
        return EncodedCorpus(self.corpus, np.load(vectors, mmap_mode="r") if isinstance(vectors, Path) else vectors)


def judge_cell(judging: Judging, trained: Path, folder: Path, *, progress: Progress = no_progress) -> None:
    """Write into the folder's judged.json what the model that a training left finds: nDCG@10 per held-out question, by
    dense and by the default search; the fusion's share; the drift."""
    config, plan, grades = judging.config, judging.plan, judging.queries.grades
    encoder, base = _adapted(_loaded(judging.base), trained), judging.encoded()
    encoded = base
    if config.adapter.adapt == "both":
        encoded = EncodedCorpus(base.corpus, encoder.encode_passages(base.corpus.passages, progress=progress))
    measures = Measures(config, profiling.Clock(), progress)
    measures.lexical_folder = judging.lexical_folder
    fusion = measures.own_fusion(encoder, encoded, plan, judging.queries, judging.fusion).fusion
    arena = measures.arena(plan.judge, encoder, encoded, grades).with_fusion(fusion)
    record = {
        "dense": quality(arena, "dense").tolist(),
        "search": quality(arena, "hybrid").tolist(),
        "weight": fusion.weight,
        "drift": drift(base.vectors, encoded.vectors, seed=config.seed),
    }
    (folder / "judged.json").write_text(json.dumps(record), encoding="utf-8")


def _loaded(base: EncoderConfig | Encoder) -> Encoder:
    """The base model; one that is loaded stays for what the process does next."""
    return _load(base) if isinstance(base, EncoderConfig) else base


@lru_cache(maxsize=1)
def _load(config: EncoderConfig) -> Encoder:
    from ragadapt.encoder import Encoder

    return Encoder.load(config)


def _adapted(base: Encoder, folder: Path) -> Encoder:
    """The encoder that a training left in the folder."""
    from ragadapt.adapters import AdapterState, attach

    state = AdapterState.read(folder / "adapter")
    seed = json.loads((folder / "trained.json").read_text(encoding="utf-8"))["seed"]
    encoder = attach(base, state.config, seed=seed)  # methods may fix by it what they do not learn
    # What is learnt outside the method, a strength of the re-weighting, stands in the configuration.
    beside = {name: p.detach() for name, p in encoder.trainable().items() if name not in encoder.method.parameters()}
    encoder.set_tensors({**beside, **state.tensors})
    return encoder.merged()


def _reset_device_peak(encoder: Encoder) -> bool:
    """Whether memory is counted by a GPU, from now on."""
    import torch

    if not encoder.precision.device.startswith("cuda"):
        return False
    torch.cuda.empty_cache()  # of what the process did before
    torch.cuda.reset_peak_memory_stats(encoder.precision.device)
    return True


def _device_peak(encoder: Encoder) -> int:
    import torch

    return int(torch.cuda.max_memory_allocated(encoder.precision.device))


def sweep(trial: Callable[[float], float], start: float, count: int) -> dict[float, float]:
    """Learning rate → score, of exactly `count` different rates, in the order in which they were tried.

    A walk in steps of half a decade: up from the start while it helps, else down while that helps. What is left goes
    between the best rate and its neighbours, the better side first.
    """
    tried: dict[float, float] = {}  # half decades from the start → score

    def rate(at: float) -> float:
        return float(f"{start * _HALF_DECADE**at:.2g}")

    def best() -> float:
        return max(tried, key=lambda at: (tried[at], -at))

    def attempt(at: float) -> None:
        tried[at] = trial(rate(at))

    attempt(0)
    for direction in (1, -1):
        while len(tried) < count and best() + direction not in tried:
            attempt(best() + direction)
    gap = 0.5
    while len(tried) < count:
        sides = sorted((tried.get(best() + 2 * side * gap, _DIVERGED), side) for side in (-1, 1))
        open_sides = [best() + side * gap for _, side in reversed(sides) if best() + side * gap not in tried]
        if open_sides:
            attempt(open_sides[0])
        else:
            gap /= 2
    return {rate(at): score for at, score in tried.items()}


class _Comparison:
    """One comparison at work: what all methods share, and a stage for each of their trainings."""

    def __init__(
        self,
        steps: _Steps,
        cells: Cells,
        base: Base,
        plan: gate.Plan,
        queries: DividedQueries,
        pool: DevPool,
        examples: Sequence[Example],
        budget: Budget,
        seeds: int,
        rates: int,
    ) -> None:
        self.steps, self.cells, self.base, self.plan, self.queries = steps, cells, base, plan, queries
        self.pool, self.examples, self.budget, self.rates = pool, examples, budget, rates
        self.config = steps.config
        self.seeds = [self.config.seed + number for number in range(seeds)]
        self.training = steps.paced(plan)
        self.trained_now = self.reused = 0
        self.failed: list[SkippedSource] = []
        self.known = known_vectors(examples, base.encoded, self.config.adapter)
        self.epoch_batches = self._batches()
        self.pool_digest = json_digest(
            {"queries": [item.query.id for item in pool.judged], "passages": pool.passages}, "the dev pool"
        )
        grades = queries.grades
        arena = steps.arena(plan.judge, base.encoder, base.encoded, grades).with_fusion(base.fusion.fusion)
        self.before = {SEARCH: quality(arena, "hybrid"), DENSE: quality(arena, "dense")}
        self._met: set[str] = set()  # trainings that were asked for: the best rate's is the first seed's, too
        self._one = threading.Lock()  # who measures, or counts

    def _batches(self) -> int:
        from ragadapt.training import TrainingSet

        loss = self.training.loss
        data = TrainingSet(self.examples, distil=loss != "infonce", contrast=loss in ("infonce", "both"))
        return len(data.order(0, self.config.seed, self.training.batch_size))

    @property
    def by_epochs(self) -> int:
        """Steps of as many epochs as a fit takes."""
        epochs, _ = self.training.pace()
        steps = max(1, round(epochs * self.epoch_batches))
        return min(steps, self.training.max_steps or steps)

    def all(self, contenders: Sequence[Contender]) -> list[Judged]:
        """Every method, measured; those whose trainings came to nothing are in `failed`."""
        many = len(contenders) * (self.rates + len(self.seeds) - 1)
        log.info("%d methods, %d trainings, %d at a time", len(contenders), many, max(1, self.cells.jobs))
        done: list[str] = []

        def method(contender: Contender) -> Judged | None:
            judged = self.method(contender)
            done.append(contender.name)
            self.steps.progress("methods", len(done), len(contenders))
            return judged

        found = [each for each in self._each(method, contenders) if each is not None]
        if len(found) < 2:
            reasons = "; ".join(f"{each.source}: {each.reason}" for each in self.failed)
            raise TrainingFailed(f"{len(found)} method could be trained, too few to compare. {reasons}")
        return found

    def _each(self, function: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """Of every item, side by side where trainings are; how many run at a time is the cells' business."""
        items = list(items)
        if self.cells.jobs < 2 or len(items) < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(len(items)) as threads:
            try:
                return list(threads.map(function, items))
            except BaseException:
                self.cells.stop()  # else leaving the block would wait for hours of training
                raise

    def method(self, contender: Contender) -> Judged | None:
        """A method's learning rate, its trainings from every seed, and what they find."""
        from ragadapt.adapters.budget import spelled

        name, size = contender.name, contender.size
        try:
            steps = self.steps_of(contender)
            _, start = self.steps.paced(self.plan, size.config).pace()

            def trial(rate: float) -> float:
                return self.train(contender, rate, steps, self.seeds[0]).best

            tried = sweep(trial, start, self.rates)
            rate = max(tried, key=lambda at: (tried[at], -at))
            runs = self._each(lambda seed: self.train(contender, rate, steps, seed), self.seeds)
            if broken := next((run for run in runs if run.failed), None):
                raise TrainingFailed(broken.failed)
            judged = self._each(self.judge, runs)
        except (TrainingFailed, InvalidInput) as error:
            log.warning("method %s is left out: %s", name, error)
            self.failed.append(SkippedSource(source=name, reason=str(error)))
            return None
        wanted = self.budget.wanted(size.whole)
        about = MethodMeasured(
            name=name,
            label=contender.label,
            options=spelled(size.config, size.options),
            parameters=size.parameters,
            share=size.share,
            meets=None if wanted is None else size.meets(wanted),
            rate=rate,
            rates=tuple(CurvePoint(x=x, y=y) for x, y in sorted(tried.items())),
            steps=steps,
            runs=tuple(_run_of(*each) for each in zip(self.seeds, runs, judged, strict=True)),
        )
        rows = {kind: np.array([found[kind] for found in judged]) for kind in ("search", "dense")}
        return Judged(about, rows["search"], rows["dense"])

    # Budgets

    def steps_of(self, contender: Contender) -> int:
        """How many steps a training of this method has."""
        if self.budget.steps is not None:
            return self.budget.steps
        if self.budget.minutes is None:
            return self.by_epochs
        with self._stage("pace", self._key(contender.size, self.training, self.seeds[0])) as stage:
            file = stage.path / "pace.json"
            if not stage.finished:
                task = self._task(contender.size, self._training(_PACE_STEPS), self.seeds[0], None)
                file.write_text(json.dumps(self._in_cell(contender, pace_cell, task)), encoding="utf-8")
            seconds = float(json.loads(file.read_text(encoding="utf-8")))
        return max(1, round(60 * self.budget.minutes / seconds))

    def _training(self, steps: int, rate: float | None = None) -> TrainingConfig:
        """Exactly so many steps, all looked at alike: none ends early."""
        _, usual = self.training.pace()
        given = self.config.training.model_fields_set
        return self.training.model_copy(
            update={
                "max_steps": steps,
                "epochs": float(steps // self.epoch_batches + 2),  # enough, as epochs differ by a batch
                "learning_rate": usual if rate is None else rate,
                "evaluations": min(steps, self.training.evaluations if "evaluations" in given else _LOOKS),
                "patience": steps + 1,
            }
        )

    # Stages

    @contextmanager
    def _stage(self, name: str, key: Mapping[str, Any]) -> Any:
        """A stage of the workspace that stays beside those of other settings."""
        with self.steps.work.stage(f"{name}-{json_digest(dict(key), name)[:12]}", key) as stage:
            yield stage

    def _key(self, size: Size, training: TrainingConfig, seed: int) -> dict[str, Any]:
        return {
            "encoder": self.base.encoder.fingerprint,
            "examples": self.steps.digests["examples"],
            "adapter": size.config.deciding(),
            "training": training.deciding(),
            "seed": seed,
            "pool": self.pool_digest,
        }

    def _task(self, size: Size, training: TrainingConfig, seed: int, pool: DevPool | None) -> Task:
        alone = self.cells.jobs > 0
        base = self.config.encoder if alone else self.base.encoder
        return Task(base, size.config, training, seed, self.examples, self.known, pool, alone)

    def _in_cell(self, contender: Contender, function: Callable[..., Any], *arguments: Any) -> Any:
        def told(stage: str, done: int, total: int) -> None:
            self.steps.progress(f"{contender.label}: {stage}", done, total)

        return self.cells.run(function, *arguments, progress=told)

    def train(self, contender: Contender, rate: float, steps: int, seed: int) -> _Trained:
        """A training, run or found."""
        training = self._training(steps, rate)
        with self._stage("train", self._key(contender.size, training, seed)) as stage:
            finished = stage.finished
            if not finished:
                task = self._task(contender.size, training, seed, self.pool)
                self._in_cell(contender, train_cell, task, stage.path, stage.scratch)
            with self._one:
                new = stage.name not in self._met
                self._met.add(stage.name)
                self.trained_now += new and not finished
                self.reused += new and finished
        record = json.loads((stage.path / "trained.json").read_text(encoding="utf-8"))
        best = record.get("best_dev")
        log.info("%s, rate %g, seed %d: dev %s", contender.name, rate, seed, best)
        return _Trained(stage, _DIVERGED if best is None else float(best), record)

    def judge(self, trained: _Trained) -> dict[str, Any]:
        """nDCG@10 per held-out question, by dense and by the default search; the fusion's share; the drift."""
        steps, base, plan = self.steps, self.base, self.plan
        key = {
            "train": trained.stage.digest,
            "queries": steps.digests["queries"],
            "fusion": [self.config.fusion.deciding(), base.fusion.fusion.as_dict()],
            "judge": [query.id for query in plan.judge],
        }
        with self._stage("judged", key) as stage:
            file = stage.path / "judged.json"
            if not stage.finished:
                if self.cells.jobs > 1:
                    self.cells.run(judge_cell, self._judging(), trained.stage.path, stage.path, progress=steps.progress)
                else:
                    judge_cell(self._judging(), trained.stage.path, stage.path, progress=steps.progress)
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def _judging(self) -> Judging:
        steps, base, config = self.steps, self.base, self.config
        apart = self.cells.jobs > 1
        return Judging(
            base=config.encoder if apart else base.encoder,
            config=config,
            lexical_folder=steps.lexical_folder,
            corpus=base.encoded.corpus,
            vectors=steps.paths["base-vectors"] / "vectors.npy" if apart else base.encoded.vectors,
            queries=self.queries,
            plan=self.plan,
            fusion=base.fusion,
        )


def _run_of(seed: int, trained: _Trained, judged: Mapping[str, Any]) -> MethodRun:
    record = trained.record
    curve = [(float(step), float(score)) for step, score in record["curve"]]
    return MethodRun(
        seed=seed,
        search=float(np.mean(judged["search"])),
        dense=float(np.mean(judged["dense"])),
        curve=tuple(CurvePoint(x=x, y=y) for x, y in curve),
        area=area_under(curve),
        steps_to_gain=steps_to_gain(curve),
        best_step=record["best_step"],
        seconds=record["seconds"],
        peak_memory_bytes=record["peak_memory_bytes"],
        weight=judged["weight"],
        drift=judged["drift"],
    )


# The report --------------------------------------------------------------------------------------------


def _report(
    run: _Comparison,
    judged: Sequence[Judged],
    left_out: Sequence[SkippedSource],
    clock: profiling.Clock,
    skipped: Sequence[Any],
) -> Report:
    config, plan, queries, corpus = run.config, run.plan, run.queries, run.base.encoded.corpus
    names = [each.about.name for each in judged]
    found: MethodFigures = compared(
        run.before,
        judged,
        reference=REFERENCE if REFERENCE in names else names[0],
        alike=_alike(run),
        left_out=left_out,
        max_drift=config.gate.max_drift,
        confidence=config.gate.confidence,
        settings=["adapter.adapt=query"] if config.adapter.adapt == "query" else [],
        epoch=None if run.budget.steps is None and run.budget.minutes is None else run.epoch_batches,
        seed=config.seed,
    )
    notes = [*corpus.notes, *queries.notes]
    if plan.evidence is Evidence.PARAPHRASE:
        notes.append(
            "A language model's questions judge, and they flatter whatever was trained on its like. What they say of "
            "one method against another is a hint; questions that people asked (--queries) are firm."
        )
    return Report(
        title="Methods compared",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base_model=run.base.encoder.spec.model,
        evidence=EvidenceUsed(
            tier=plan.evidence.value if plan.evidence else "", queries=len(run.before[DENSE]), note=plan.reason
        ),
        systems=found.systems,
        deltas=found.deltas,
        methods=found.methods,
        corpus=corpus_facts(corpus.documents, corpus, skipped),
        split=SplitSizes(
            train=len(plan.train),
            dev=len(run.pool.judged),
            heldout=len(run.before[DENSE]),
            leaked=leaked(plan, corpus),
            documents=dict(queries.documents),
        ),
        timings=tuple(Timing(stage=stage, seconds=round(seconds, 3)) for stage, seconds in clock.seconds.items()),
        warnings=tuple(notes),
        configuration=config.model_dump(mode="json"),
        seeds={f"seed {number}": seed for number, seed in enumerate(run.seeds, start=1)},
        versions=library_versions(),
        machine=machine_of(run.base.encoder.precision) | {"processors": str(cores()), "at a time": str(run.cells.jobs)},
    )


def _alike(run: _Comparison) -> str:
    """What all methods had alike, in words."""
    budget, seeds = run.budget, len(run.seeds)
    length = "the same number of steps"
    if budget.minutes is not None:
        length = f"steps for {budget.minutes:g} minutes"
    size = "each at its own size"
    if budget.parameters is not None:
        wanted = f"{100 * budget.parameters:g}%" if budget.parameters < 1 else f"{int(budget.parameters):,}"
        size = f"as near to {wanted} of the parameters as it can come"
    many = f"{run.rates} learning rates tried on the dev part" if run.rates > 1 else "one learning rate"
    return (
        f"passages, questions, split and negatives; {length}; {size}; {many}; {seeds} seed{'s' * (seeds != 1)}; "
        "weights of the best look at the dev part, at full strength"
    )


__all__ = [
    "Budget",
    "MethodComparison",
    "compare_methods",
    "parse_parameters",
    "sweep",
]
