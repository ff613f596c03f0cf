"""What a report holds. Every part may be missing: it is then absent from report.json and from the page.

Texts are made writable on entry (no lone surrogates, no control characters) and optional numbers that are not
finite become None, so that a report can be written whatever stood in the corpus.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from statistics import fmean, stdev
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from ragadapt.evaluation.significance import Interval

SCHEMA_VERSION = 1
Outcome = Literal["WIN", "LIKELY GAIN", "NO GAIN", "REGRESSION AVOIDED"]

_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def _writable(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return _CONTROLS.sub("", str(value).encode("utf-8", "replace").decode("utf-8"))


def _finite(value: Any) -> Any:
    try:
        return value if value is None or math.isfinite(value) else None
    except TypeError:
        return value


def _plain(value: Any) -> Any:
    """JSON values only: what JSON cannot hold becomes its text, numbers that are not finite None."""
    if isinstance(value, Mapping):
        return {_writable(str(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, bool | int):
        return value
    return _finite(value) if isinstance(value, float) else _writable(str(value))


Text = Annotated[str, BeforeValidator(_writable)]
FiniteNumber = Annotated[float | None, BeforeValidator(_finite)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class Measure(Part):
    """One metric of one system, with its interval where one was computed."""

    value: float
    low: FiniteNumber = None
    high: FiniteNumber = None

    @classmethod
    def of(cls, interval: Interval) -> Self:
        """From the interval of a mean."""
        return cls(value=interval.delta, low=interval.low, high=interval.high)


class MeasuredSystem(Part):
    """One way to search, measured. name: a key such as "base-dense"; label: what a reader sees."""

    name: Text
    label: Text
    metrics: dict[Text, Measure]
    shipped: bool = False
    note: Text = ""


class Delta(Part):
    """A paired difference between two systems, by their names.

    p: of no difference, corrected for the other comparisons with the same system (Holm); None where it is the only one.
    """

    system: Text
    against: Text
    metric: Text
    interval: Interval
    p: FiniteNumber = None

    @field_validator("interval")
    @classmethod
    def _is_paired(cls, interval: Interval) -> Interval:
        if interval.p_better is None:
            raise ValueError("is the interval of one system; a difference comes from paired_bootstrap")
        return interval


class Step(Part):
    """One step of the gate. passed: None where it was not decisive."""

    name: Text
    passed: bool | None = None
    detail: Text = ""


class VerdictFacts(Part):
    """What the gate decided. shipped: what ships, in words. sentence: replaces the headline written by us. untrained:
    why no model was trained; "" where one was."""

    outcome: Annotated[Outcome, BeforeValidator(_writable)]
    reasons: tuple[Text, ...] = ()
    steps: tuple[Step, ...] = ()
    shipped: Text = ""
    sentence: Text = ""
    untrained: Text = ""


class EvidenceUsed(Part):
    """The questions that decided. tier: a ragadapt.values.Evidence; queries and documents: how many stood behind it.

    crossed: all of them train, too, and each judged a model that did not see it; else they were held out.
    """

    tier: Text
    queries: int
    documents: int | None = None
    crossed: bool = False
    note: Text = ""


class SkippedSource(Part):
    """A file or row that was not read, and why."""

    source: Text
    reason: Text


class CorpusFacts(Part):
    """What was read."""

    documents: int
    chunks: int
    tokens: int | None = None
    characters: int | None = None
    near_duplicates: int | None = None
    skipped: tuple[SkippedSource, ...] = ()
    skipped_total: int | None = None  # where `skipped` lists only some
    notes: tuple[SkippedSource, ...] = ()  # what was left out on purpose of files that were read
    notes_total: int | None = None


class QueryYield(Part):
    """How many queries of one kind came out. dropped: reason → count."""

    kind: Text
    evidence: Text
    made: int
    kept: int
    dropped: dict[Text, int] = Field(default_factory=dict)
    example: Text = ""


class SplitSizes(Part):
    """Queries per part, and how many held-out ones shared text with training (0 is the promise).

    negatives: passages that training set beside its queries' answers; heldout_negatives: those of them that answer
    held-out queries, which is no leak (see docs/decisions.md). None = nothing was trained.
    """

    train: int
    dev: int
    heldout: int
    leaked: int
    documents: dict[Text, int] = Field(default_factory=dict)  # part → documents
    negatives: int | None = None
    heldout_negatives: int | None = None
    duplicate_groups: int | None = None


class LearningPoint(Part):
    """One look at the training. dev: the score on the dev part, None where it was not computed."""

    step: int
    loss: FiniteNumber = None
    dev: FiniteNumber = None


class CurvePoint(Part):
    """A point of a curve, with its interval where one was computed."""

    x: float
    y: float
    low: FiniteNumber = None
    high: FiniteNumber = None


class Curve(Part):
    """A quality as a function of one setting: interpolation t, fusion weight, PEFA λ, share of labels …

    chosen: the x that ships. levels: horizontal lines to compare with, label → y.
    """

    points: tuple[CurvePoint, ...]
    title: Text = ""
    x_label: Text = ""
    y_label: Text = "nDCG@10"
    chosen: FiniteNumber = None
    levels: dict[Text, float] = Field(default_factory=dict)
    note: Text = ""

    @classmethod
    def through(cls, points: Iterable[tuple[float, float | Interval]], **rest: Any) -> Self:
        """From pairs of x and either y or the interval of a mean; sorted by x."""
        made = [
            CurvePoint(x=x, y=y.delta, low=y.low, high=y.high) if isinstance(y, Interval) else CurvePoint(x=x, y=y)
            for x, y in points
        ]
        return cls(points=tuple(sorted(made, key=lambda point: point.x)), **rest)


class Histogram(Part):
    """Counts of similarity scores. edges has one entry more than each list of counts."""

    edges: tuple[float, ...]
    positives: tuple[int, ...]
    negatives: tuple[int, ...]


class ScoreDistributions(Part):
    """Scores of query–positive and query–negative pairs before and after training."""

    before: Histogram
    after: Histogram | None = None


class Passage(Part):
    """A chunk as a reader meets it."""

    id: Text
    text: Text
    heading: Text = ""
    source: Text = ""


class QueryResult(Part):
    """What one system did with one query. rank: of the best expected passage, from 1; None = not found."""

    rank: int | None = None
    first: Passage | None = None
    value: FiniteNumber = None  # of the comparison's metric


class QueryComparison(Part):
    """One query before and after."""

    id: Text
    query: Text
    before: QueryResult
    after: QueryResult
    expected: Passage | None = None
    kind: Text = ""

    @property
    def change(self) -> float:
        """after − before; above 0 is a win."""
        return (self.after.value or 0.0) - (self.before.value or 0.0)


class Comparison(Part):
    """All queries, before against after. changes: every difference, best first; queries: those worth reading."""

    before: Text
    after: Text
    metric: Text
    changes: tuple[float, ...]
    queries: tuple[QueryComparison, ...] = ()

    @property
    def wins(self) -> int:
        """Queries that got better."""
        return sum(change > 1e-9 for change in self.changes)

    @property
    def losses(self) -> int:
        """Queries that got worse."""
        return sum(change < -1e-9 for change in self.changes)

    def _repr_html_(self) -> str:
        from ragadapt.report.fragment import comparison_fragment

        return comparison_fragment(self)


class NeverRetrieved(Part):
    """Chunks that no query brought into its first k. of: chunks in the index."""

    count: int
    of: int
    k: int
    queries: int
    examples: tuple[Passage, ...] = ()


class Failures(Part):
    """What still goes wrong. worst: queries whose expected passage is furthest away."""

    worst: tuple[QueryComparison, ...] = ()
    never_retrieved: NeverRetrieved | None = None


class AdapterCheck(Part):
    """One proof that the adapter has an effect and survives saving; detail says what was measured."""

    name: Text
    passed: bool
    detail: Text = ""


class WorkDone(Part):
    """One kind of work within a stage, from a profile; see ragadapt.profiling.Work."""

    kind: Text
    seconds: float
    calls: int = 0
    items: int = 0
    beside_seconds: float = 0.0


class Timing(Part):
    """Where the time went. items in unit: what was worked on, for a rate. work: of a run that was profiled."""

    stage: Text
    seconds: float
    items: int | None = None
    unit: Text = ""
    peak_memory_bytes: int | None = None
    work: tuple[WorkDone, ...] = ()


class MethodRun(Part):
    """One training of a method. search, dense: mean nDCG@10 on the questions that judge, by the default and by dense
    search. curve: (step, score on the dev part), from the base at step 0 on; area: under it, divided by the steps;
    steps_to_gain: until 90 % of its best gain, None without one. seconds: of its steps alone."""

    seed: int
    search: float
    dense: float
    curve: tuple[CurvePoint, ...]
    area: float
    steps_to_gain: FiniteNumber = None
    best_step: int
    seconds: float
    peak_memory_bytes: int | None = None
    weight: float  # share of the dense side in the default search
    drift: float  # mean 1 − cosine by which ordinary passages moved


class MethodMeasured(Part):
    """A method of training in a comparison.

    name: with the settings that it alone was given ("lora:reweight=none"). options: those by which its size was chosen.
    parameters: how many it trains; share: of the transformer's. meets: whether that is the size that was wanted, None =
    none was. rates: every learning rate tried → the best score on the dev part; rate: the one that was taken. runs: a
    training each, from another seed.
    """

    name: Text
    label: Text
    options: dict[Text, int] = Field(default_factory=dict)
    parameters: int
    share: float
    meets: bool | None = None
    rate: float
    rates: tuple[CurvePoint, ...] = ()
    steps: int
    runs: tuple[MethodRun, ...]

    def mean(self, figure: str) -> float | None:
        """Of a figure of the runs; None where a run lacks it."""
        values = [getattr(run, figure) for run in self.runs]
        return None if None in values or not values else float(fmean(values))

    def spread(self, figure: str) -> float | None:
        """Standard deviation of a figure between the runs; None for a single run."""
        values = [getattr(run, figure) for run in self.runs]
        return None if len(values) < 2 or None in values else float(stdev(values))

    @property
    def at_the_edge(self) -> bool:
        """Whether the best learning rate is the lowest or the highest that was tried, so that a further one may be
        better."""
        tried = [point.x for point in self.rates]
        return len(tried) > 1 and self.rate in (min(tried), max(tried))


class MethodsCompared(Part):
    """Methods of training side by side, on the same questions, split, seeds and budget.

    reference: the method that the others are compared with. alike: what all had alike, in words. ships: the one to
    choose, "" = the base model. sentence: what to do. left_out: methods that did not take part, and why.
    """

    reference: Text
    alike: Text
    sentence: Text
    ships: Text = ""
    measured: tuple[MethodMeasured, ...]
    left_out: tuple[SkippedSource, ...] = ()


class ExpectedAnswer(Part):
    """One thing that a question expects. text: the quote, the passage, or the document's id. passage: the best one that
    has it; None where none does. ranks: system → its rank there, absent where it is deeper than was looked. missed: a
    reason of ragadapt.evaluation.questions.Missed, "" where it was found; why: a sentence about it."""

    text: Text
    source: Text = ""
    passage: Passage | None = None
    ranks: dict[Text, int] = Field(default_factory=dict)
    missed: Text = ""
    why: Text = ""


class FoundPassage(Part):
    """One result. right: it answers. ranks: its rank on each side ("dense", "lexical") that has it."""

    passage: Passage
    right: bool = False
    ranks: dict[Text, int] = Field(default_factory=dict)


class QuestionJudged(Part):
    """One question: what it expects and what was found. values: system → the deciding metric, absent where nothing here
    answers. missed, why: where nothing that it expects is among the first results; partly: where only some is."""

    id: Text
    query: Text
    values: dict[Text, float] = Field(default_factory=dict)
    expected: tuple[ExpectedAnswer, ...] = ()
    found: tuple[FoundPassage, ...] = ()
    missed: Text = ""
    why: Text = ""
    partly: bool = False


class QuestionsJudged(Part):
    """Questions one by one. subject: the system that is explained; systems: all of them. k: how many results count as
    found; depth: how far was looked. unit: what was judged: quotes, documents or passages. reasons: why questions were
    missed → how many. sentence: what came out. unread: lines of the labels that could not be read."""

    subject: Text
    k: int
    depth: int
    unit: Text
    sentence: Text
    systems: tuple[Text, ...]
    reasons: dict[Text, int] = Field(default_factory=dict)
    questions: tuple[QuestionJudged, ...] = ()
    unread: int = 0

    def _repr_html_(self) -> str:
        from ragadapt.report.fragment import questions_fragment

        return questions_fragment(self)


class SweptChoice(Part):
    """A model and a size of passages, measured. value: mean of the deciding metric; low, high: simultaneous bounds of
    its difference from the best choice. told: whether it is worse than that beyond doubt. settings: how `fit` is given
    it.

    passages, tokens: to encode; encoded: of them now, seconds: that took (the others were known by their content, or
    from an earlier call). parameters: of the transformer. vector_bytes: of all passages. search_ms: of a search with
    its query encoded, the lower quartile of some (on a processor of computing, all threads together). cost: geometric
    mean of how many times the least of the choices it takes, in work to encode, bytes and search time.
    """

    name: Text
    label: Text
    model: Text
    chunk_tokens: int
    settings: Text
    value: float
    low: float = 0.0
    high: float = 0.0
    told: bool = False
    weight: float = 0.5
    passages: int
    tokens: int
    encoded: int
    seconds: float
    parameters: int
    vector_bytes: int
    search_ms: float
    cost: float = 1.0


class ChoicesSwept(Part):
    """Models and sizes of passages side by side on the same questions. best, cheapest: names of choices, the second of
    those that cannot be told from the first. sentence: what to do. left_out: choices that could not be measured, and
    why."""

    best: Text
    cheapest: Text
    sentence: Text
    alike: Text
    choices: tuple[SweptChoice, ...]
    left_out: tuple[SkippedSource, ...] = ()


class Licence(Part):
    """Under which terms something that went into the retriever stands."""

    what: Text
    licence: Text
    source: Text = ""


class Report(Part):
    """Everything that is known about one fit or one evaluation."""

    schema_version: int = SCHEMA_VERSION
    title: Text = "Retriever report"
    created: Text = ""  # ISO 8601
    base_model: Text = ""
    verdict: VerdictFacts | None = None
    evidence: EvidenceUsed | None = None
    metric: Text = "nDCG@10"  # the one that decides, shown first
    systems: tuple[MeasuredSystem, ...] = ()
    deltas: tuple[Delta, ...] = ()
    comparison: Comparison | None = None
    failures: Failures | None = None
    learning: tuple[LearningPoint, ...] = ()
    interpolation: Curve | None = None
    fusion: Curve | None = None
    curves: tuple[Curve, ...] = ()
    distributions: ScoreDistributions | None = None
    checks: tuple[AdapterCheck, ...] = ()
    corpus: CorpusFacts | None = None
    queries: tuple[QueryYield, ...] = ()
    split: SplitSizes | None = None
    timings: tuple[Timing, ...] = ()
    warnings: tuple[Text, ...] = ()
    configuration: Annotated[dict[str, Any], BeforeValidator(_plain)] = Field(default_factory=dict)
    seeds: dict[Text, int] = Field(default_factory=dict)
    versions: dict[Text, Text] = Field(default_factory=dict)
    machine: dict[Text, Text] = Field(default_factory=dict)
    licences: tuple[Licence, ...] = ()
    methods: MethodsCompared | None = None
    judged: QuestionsJudged | None = None
    swept: ChoicesSwept | None = None

    def _repr_html_(self) -> str:
        from ragadapt.report.fragment import report_fragment

        return report_fragment(self)

    def system(self, name: str) -> MeasuredSystem | None:
        """The system of that name, if it was measured."""
        return next((system for system in self.systems if system.name == name), None)

    @property
    def shipped(self) -> MeasuredSystem | None:
        """The system that ships, if one is marked."""
        return next((system for system in self.systems if system.shipped), None)

    def delta(self, system: str, against: str, metric: str | None = None) -> Interval | None:
        """The paired interval between two systems, if it was computed; metric None = the deciding one."""
        wanted = (system, against, metric or self.metric)
        return next((d.interval for d in self.deltas if (d.system, d.against, d.metric) == wanted), None)
