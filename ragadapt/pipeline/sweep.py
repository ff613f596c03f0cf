"""sweep_choices(): models and sizes of passages side by side on your questions, before anything is fitted.

documents → for each model and size: passages, vectors, lexical index → the untuned hybrid search → your questions →
what cannot be told from the best, and which of that is cheapest

Vectors are kept by model and content: a passage that another size cuts alike is not encoded again, nor is anything
after an interruption, or when a choice is added.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragadapt import profiling
from ragadapt import report as reports
from ragadapt.checks import checked_list, checked_path, checked_queries
from ragadapt.config import FitConfig
from ragadapt.corpus import internal_links
from ragadapt.corpus.sources import listed_sources, read_sources
from ragadapt.errors import InvalidInput, InvalidLabels, RagadaptError
from ragadapt.evaluation import Evaluation, paired_bootstrap
from ragadapt.evaluation.questions import DEPTH, TOKENS, Asked, recall_metric
from ragadapt.evaluation.significance import simultaneous_bounds
from ragadapt.files import json_digest, read_json, record_file, write_text
from ragadapt.out_of_core import keep_all
from ragadapt.pipeline.corpus import Corpus, EncodedCorpus
from ragadapt.pipeline.fusion import neutral_weight
from ragadapt.pipeline.questions import down_to_documents, ranker, values_of
from ragadapt.pipeline.report import corpus_facts, machine_of
from ragadapt.pipeline.stages import (
    KnownVectors,
    about_vectors,
    build_chunks,
    build_lexical,
    gather_vectors,
    searcher_of,
)
from ragadapt.queries import load_labels, structural_queries
from ragadapt.report.build import library_versions, with_holm
from ragadapt.search.fusion import Floats, Fusion
from ragadapt.search.searcher import Searcher
from ragadapt.store.chunks import document_hash
from ragadapt.store.workspace import MANIFEST, Stage, Workspace
from ragadapt.values import Document, Progress, no_progress

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder

log = logging.getLogger(__name__)

CHUNK_TOKENS = (128, 256, 512)
"""Sizes of passages where none are named."""

_SAMPLES = 10_000  # of the bootstrap: a p-value that is multiplied by the number of choices needs small ones
_TIMED = 30  # searches, one at a time
_WARM = 3  # that are not timed
_DENSE = ", dense"


@dataclass(frozen=True)
class Sweep:
    """A finished sweep. encoded: passages that were encoded now; known: those whose vectors were there."""

    path: Path
    report: reports.Report
    encoded: int
    known: int

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    @property
    def sentence(self) -> str:
        """What to do."""
        assert self.report.swept is not None
        return self.report.swept.sentence


@dataclass(frozen=True)
class _Cell:
    """A choice that was measured. values: metric → query id → value."""

    choice: reports.SweptChoice
    values: Mapping[str, Mapping[str, float]]
    precision: Any


def sweep_choices(
    sources: Sequence[Any],
    folder: str | Path,
    queries: str | Path,
    qrels: str | Path | None = None,
    config: FitConfig = FitConfig(),
    *,
    models: Sequence[str] = (),
    chunk_tokens: Sequence[int] = CHUNK_TOKENS,
    tokens: int = TOKENS,
    progress: Progress = no_progress,
) -> Sweep:
    """Measure every model with every size of passages, and write report.html and report.json into the folder.

    queries, qrels: as for `Retriever.evaluate`; judgements name documents, or questions have quotes. models: presets,
    hub names or folders; none = that of the configuration. chunk_tokens: most tokens of a passage, in each model's own,
    with what the model adds where it reads no more.
    tokens: of text that a language model would be given, within which quotes must stand: so passages of different sizes
    are compared alike. Nothing is trained, and no label decides how the search is mixed.

    Raises InvalidInput, InvalidLabels, EmptyCorpus, StoreLocked, ModelNotFound.
    """
    names = list(dict.fromkeys(checked_list(models, "models"))) or [config.encoder.model]
    sizes = list(dict.fromkeys(checked_list(chunk_tokens, "chunk_tokens")))
    if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 16 for size in sizes):
        raise InvalidInput(f"chunk_tokens = {sizes}: give whole numbers of at least 16, such as 128, 256, 512.")
    if len(names) * len(sizes) < 2:
        raise InvalidInput("One model and one size of passages: name at least two choices.")
    if tokens < 1:
        raise InvalidInput(f"tokens = {tokens}: it must be at least 1.")
    folder = checked_path(folder, "The folder")
    if (folder / MANIFEST).is_file():
        raise InvalidInput(f"{folder} holds a retriever. Name another folder for the sweep.")
    clock = profiling.Clock()
    labels = [checked_path(path, "labels") for path in (queries, qrels) if path is not None]
    with clock("read"):
        documents, skipped, _ = read_sources(listed_sources(sources), config.read, False, progress, labels)
    folder.mkdir(parents=True, exist_ok=True)
    with Workspace.open(folder / "work", {"command": "sweep"}) as work:
        keep = keep_all(documents, target=work.target)
        run = _Sweep(work, config, documents, keep, queries, qrels, tokens, clock, progress)
        cells, left_out = run.all(names, sizes)
    report = _report(cells, left_out, documents, skipped, config, tokens, run, clock)
    reports.write_report(folder, report)
    return Sweep(folder, report, run.encoded, run.known)


class _Sweep:
    """One sweep at work: a stage for every part of every choice."""

    def __init__(
        self,
        work: Workspace,
        config: FitConfig,
        documents: Sequence[Document],
        keep: Callable[[Any], Any],
        queries: str | Path,
        qrels: str | Path | None,
        tokens: int,
        clock: profiling.Clock,
        progress: Progress,
    ) -> None:
        self.work, self.config, self.documents, self.keep = work, config, documents, keep
        self.queries, self.qrels, self.tokens = queries, qrels, tokens
        self.clock, self.progress = clock, progress
        self.content = [document_hash(document) for document in documents]
        files = [Path(path) for path in (queries, qrels) if path is not None]
        self.labels = [record_file(path).sha256 for path in files]
        self.encoded = self.known = 0
        self.metric = ""
        self.corpus: Corpus | None = None
        self.unmatched: list[str] = []

    def all(self, names: Sequence[str], sizes: Sequence[int]) -> tuple[list[_Cell], list[reports.SkippedSource]]:
        """Every choice, measured; those that cannot be, with the reason."""
        cells, left_out = list[_Cell](), list[reports.SkippedSource]()
        for at, name in enumerate(names):
            encoders: dict[int | None, Encoder] = {}
            for number, size in enumerate(sizes):
                label = f"{name}, {size} tokens"
                try:
                    encoder, longer = self.encoder(name, size, encoders)
                    cells.append(self.cell(name, size, encoder, longer))
                except InvalidLabels:
                    raise  # of the questions, which all choices have alike
                except (RagadaptError, ImportError) as error:
                    log.warning("%s is left out: %s", label, error)
                    left_out.append(reports.SkippedSource(source=label, reason=str(error)))
                self.progress("choices", at * len(sizes) + number + 1, len(names) * len(sizes))
        if len(cells) < 2:
            reasons = "; ".join(f"{each.source}: {each.reason}" for each in left_out)
            raise InvalidInput(f"{len(cells)} choice could be measured, too few to compare. {reasons}")
        return cells, left_out

    def encoder(self, name: str, size: int, loaded: dict[int | None, Encoder]) -> tuple[Encoder, bool]:
        """The model, and whether it had to be set to read longer passages than it does by itself."""
        from ragadapt.encoder import Encoder

        def load(length: int | None) -> Encoder:
            if length not in loaded:
                settings = self.config.encoder.model_copy(update={"model": name, "max_length": length})
                with self.clock("load model"):
                    loaded[length] = Encoder.load(settings)
            return loaded[length]

        encoder = load(self.config.encoder.max_length)
        if size <= encoder.max_length:
            return encoder, False
        return load(size), True

    def cell(self, name: str, size: int, encoder: Encoder, longer: bool) -> _Cell:
        """One choice."""
        room = min(size, encoder.passage_room)  # the model adds some of its own
        chunking = self.config.chunk.model_copy(update={"max_tokens": room})
        cut: dict[str, Any] = {
            "documents": self.content,
            "settings": chunking.model_dump(mode="json"),
            "tokenizer": encoder.fingerprint,
        }
        with self.stage("passages", cut) as stage:
            corpus = build_chunks(stage, self.documents, None, encoder, chunking, self.progress, self.keep)
        passages = stage.digest
        vectors, seconds, encoded = self.vectors(corpus, encoder, passages)
        with self.stage("lexical", {"passages": passages}) as stage:
            lexical = build_lexical(stage, corpus, self.progress)
        searcher = searcher_of(EncodedCorpus(corpus, vectors), lexical)
        if self.corpus is None or len(corpus.chunks) > len(self.corpus.chunks):
            self.corpus = corpus
        key: dict[str, Any] = {
            "passages": passages,
            "vectors": about_vectors(encoder),
            "labels": self.labels,
            "tokens": self.tokens,
            "fusion": self.config.fusion.deciding(),
            "seed": self.config.seed,
        }
        with self.stage("searched", key) as stage:
            file = stage.path / "searched.json"
            if not stage.finished:
                write_text(file, json.dumps(self.searched(corpus, encoder, searcher)))
        found = json.loads(file.read_text(encoding="utf-8"))
        self.metric = found["metric"]
        self.unmatched = found["unmatched"] or self.unmatched
        settings = f"--model {name} --set chunk.max_tokens={room}"
        if longer:
            settings += f" --set encoder.max_length={encoder.max_length}"
        choice = reports.SweptChoice(
            name=f"{name}-{size}",
            label=f"{name}, {size} tokens",
            model=name,
            chunk_tokens=size,
            settings=settings,
            value=float(np.mean(list(found["values"][self.metric].values()))),
            weight=found["weight"],
            passages=len(corpus.chunks),
            tokens=found["tokens"],
            encoded=encoded,
            seconds=seconds,
            parameters=found["parameters"],
            vector_bytes=4 * len(corpus.chunks) * encoder.dim,
            search_ms=found["search_ms"],
        )
        return _Cell(choice, found["values"], encoder.precision)

    def vectors(self, corpus: Corpus, encoder: Encoder, passages: str) -> tuple[Any, float, int]:
        """(vectors, seconds it took to encode what was not known, how many that was), now or in an earlier call."""
        about = about_vectors(encoder)
        with self.stage("vectors", {"passages": passages, "about": about}) as stage:
            path, record = stage.path / "vectors.npy", stage.path / "about.json"
            if not stage.finished:
                started = time.monotonic()

                def encode(texts: Sequence[str]) -> Any:
                    return encoder.encode_to(texts, stage.scratch / "vectors.npy", progress=self.progress)

                new = gather_vectors(path, corpus.chunks, list(self.kept(about)), encode)
                seconds = time.monotonic() - started
                contents = [chunk.content_hash for chunk in corpus.chunks]
                made = {"about": about, "contents": contents, "seconds": round(seconds, 2), "encoded": new}
                write_text(record, json.dumps(made))
                self.encoded += new
                self.known += len(set(contents)) - new
            else:
                self.known += len({chunk.content_hash for chunk in corpus.chunks})
        made = json.loads(record.read_text(encoding="utf-8"))
        return np.load(path, mmap_mode="r"), made["seconds"], made["encoded"]

    def kept(self, about: Sequence[str]) -> Iterator[KnownVectors]:
        """Vectors of this encoder in finished stages of this sweep, of this call or an earlier one."""
        for marker in sorted((self.work.path / "stages").glob("vectors-*.done.json")):
            stage = marker.with_name(marker.name.removesuffix(".done.json"))
            known = read_json(stage / "about.json")
            if known is not None and known.get("about") == list(about):
                rows = np.load(stage / "vectors.npy", mmap_mode="r")
                yield KnownVectors({digest: row for row, digest in enumerate(known["contents"])}, partial(_rows, rows))

    def searched(self, corpus: Corpus, encoder: Encoder, searcher: Searcher) -> dict[str, Any]:
        """What the untuned search finds for every question, and how long it takes."""
        from ragadapt.adapters.budget import whole_size

        labels = load_labels(self.queries, self.qrels, chunks=corpus.chunks)
        asked = Asked.of(labels, corpus.chunks)
        if not asked.whole and not any(question.quotes for question in asked.questions):
            raise InvalidLabels(
                f"{self.qrels} names passages by their ids, which differ from one choice to the next. Judge documents, "
                "or give questions with quotes."
            )
        texts = checked_queries(question.text for question in asked.questions)
        rows = encoder.encode_queries(texts, progress=self.progress)
        fusion = self.fusion(corpus, encoder, searcher)
        values: dict[str, dict[str, float]] = {}
        for mode, suffix in (("hybrid", ""), ("dense", _DENSE)):
            rank = ranker(searcher, texts, rows, mode, fusion)  # type: ignore[arg-type]
            ids = down_to_documents(rank, asked, len(texts)) if asked.whole else rank(range(len(texts)), DEPTH)
            found = values_of([[asked.chunk_of[id] for id in ranked] for ranked in ids], asked, False, self.tokens)
            values |= {f"{metric}{suffix}": dict(each) for metric, each in found.items()}
        metric = "nDCG@10" if asked.whole else recall_metric(self.tokens)
        kept = [name for name in values if not name.endswith(_DENSE) or name == metric + _DENSE]
        try:
            parameters = whole_size(encoder)
        except RagadaptError:  # a model that runs inside sentence-transformers
            parameters = 0
        return {
            "metric": metric,
            "values": {name: values[name] for name in kept},
            "weight": fusion.weight,
            "search_ms": self.timed(texts, encoder, searcher, fusion),
            "tokens": sum(encoder.count_tokens(corpus.passages)),
            "parameters": parameters,
            "unmatched": [f"{where}: {why}" for where, why in labels.unmatched[:5]],
        }

    def fusion(self, corpus: Corpus, encoder: Encoder, searcher: Searcher) -> Fusion:
        """The mix without answers, as a fit begins: by the shapes of the scores of queries cut from the documents."""
        config = self.config
        if config.fusion.weight is not None:
            return Fusion(weight=config.fusion.weight)
        links = internal_links(self.documents, corpus.chunks)
        cut = structural_queries(
            self.documents, corpus.chunks, links, config.query, seed=config.seed, progress=self.progress
        )
        return Fusion(weight=neutral_weight(searcher, encoder, cut, (), self.progress).weight)

    def timed(self, texts: Sequence[str], encoder: Encoder, searcher: Searcher, fusion: Fusion) -> float:
        """Milliseconds of a search with its query encoded, one at a time: the lower quartile of some. On a processor
        those of computing, of all threads together, as other programs' work would be in the clock's."""
        now = time.process_time if encoder.precision.device.startswith("cpu") else time.perf_counter
        took = []
        for text in [*texts[:_WARM], *texts[:_TIMED]]:
            started = now()
            searcher.rank([text], encoder.encode_queries([text]), 10, fusion=fusion)
            took.append(1000 * (now() - started))
        return round(float(np.quantile(took[min(_WARM, len(texts)) :], 0.25)), 2)

    @contextmanager
    def stage(self, name: str, key: Mapping[str, Any]) -> Iterator[Stage]:
        """A stage that stays beside those of other choices."""
        with self.clock(name), self.work.stage(f"{name}-{json_digest(dict(key), name)[:12]}", key) as stage:
            yield stage


def _rows(vectors: Floats, at: Sequence[Any]) -> Floats:
    return vectors[list(at)]


def _report(
    cells: Sequence[_Cell],
    left_out: Sequence[reports.SkippedSource],
    documents: Sequence[Document],
    skipped: Sequence[Any],
    config: FitConfig,
    tokens: int,
    run: _Sweep,
    clock: profiling.Clock,
) -> reports.Report:
    metric, confidence = run.metric, config.gate.confidence
    asked = list(cells[0].values[metric])
    rows = np.array([[cell.values[metric][id] for id in asked] for cell in cells])
    choices = _with_costs([cell.choice for cell in cells])
    best = max(range(len(cells)), key=lambda at: (choices[at].value, -choices[at].cost))
    low, high = simultaneous_bounds(rows, confidence=confidence, seed=config.seed)
    others = [at for at in range(len(cells)) if at != best]
    deltas = with_holm(
        [
            reports.Delta(
                system=choices[at].name,
                against=choices[best].name,
                metric=metric,
                interval=paired_bootstrap(
                    rows[at], rows[best], samples=_SAMPLES, confidence=confidence, seed=config.seed
                ),
            )
            for at in others
        ],
        _SAMPLES,
    )
    p_of = {delta.system: delta.p for delta in deltas}
    swept = []
    for at, choice in enumerate(choices):
        p = p_of.get(choice.name)
        told = p is not None and p <= 1 - confidence and bool(high[at, best] < 0)
        swept.append(
            choice.model_copy(update={"low": float(low[at, best]), "high": float(high[at, best]), "told": told})
        )
    alike = [choice for choice in swept if not choice.told]
    cheapest = min(alike, key=lambda choice: (choice.cost, -choice.value))
    evaluations = [
        Evaluation(cell.values, {name: float(np.mean(list(each.values()))) for name, each in cell.values.items()})
        for cell in cells
    ]
    assert run.corpus is not None
    return reports.Report(
        title="Models and sizes of passages",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        evidence=reports.EvidenceUsed(tier="labelled", queries=len(asked)),
        metric=metric,
        systems=tuple(
            reports.measured(
                choice.name, choice.label, evaluation, seed=config.seed, shipped=choice.name == cheapest.name
            )
            for choice, evaluation in zip(swept, evaluations, strict=True)
        ),
        deltas=deltas,
        swept=reports.ChoicesSwept(
            best=choices[best].name,
            cheapest=cheapest.name,
            sentence=_sentence(swept, choices[best].name, cheapest, metric, confidence),
            alike=_alike(metric, tokens, len(asked)),
            choices=tuple(swept),
            left_out=tuple(left_out),
        ),
        corpus=corpus_facts(documents, run.corpus, skipped),
        timings=tuple(
            reports.Timing(stage=stage, seconds=round(seconds, 3)) for stage, seconds in clock.seconds.items()
        ),
        warnings=tuple(f"Left out of the labels: {line}" for line in run.unmatched),
        configuration=config.model_dump(mode="json"),
        seeds={"seed": config.seed},
        versions=library_versions(),
        machine=machine_of(cells[0].precision),
    )


def _with_costs(choices: Sequence[reports.SweptChoice]) -> list[reports.SweptChoice]:
    """Each with its cost: geometric mean of how many times the least it takes of work to encode (tokens × parameters),
    of bytes, and of search time."""
    figures = np.array(
        [
            [max(1, each.tokens) * max(1, each.parameters), max(1, each.vector_bytes), max(0.01, each.search_ms)]
            for each in choices
        ],
        dtype=np.float64,
    )
    ratios = np.log(figures / figures.min(axis=0)).mean(axis=1)
    return [each.model_copy(update={"cost": math.exp(ratio)}) for each, ratio in zip(choices, ratios, strict=True)]


def _alike(metric: str, tokens: int, asked: int) -> str:
    what = (
        f"share of the quotes that stand in the first {tokens:,} tokens of what is found" if "," in metric else metric
    )
    return f"documents, {asked} questions, untuned hybrid search whose mix no answer decides; judged by {metric}" + (
        f" ({what})" if what != metric else ""
    )


def _sentence(
    choices: Sequence[reports.SweptChoice], best: str, cheapest: reports.SweptChoice, metric: str, confidence: float
) -> str:
    by_name = {choice.name: choice for choice in choices}
    first = by_name[best]
    alike = [choice for choice in choices if not choice.told and choice.name != best]
    text = f"Best is {first.label} ({metric} {first.value:.3f}). "
    if not alike:
        return f"{text}Every other choice is worse beyond doubt. Fit with {first.settings}."
    others = f"{len(alike)} other choices" if len(alike) > 1 else alike[0].label
    text += f"{others} cannot be told from it at {confidence:.0%}. "
    if cheapest.name == best:
        return f"{text}It is also the cheapest of these. Fit with {first.settings}."
    return (
        f"{text}The cheapest of these is {cheapest.label} ({cheapest.value:.3f}): {cheapest.passages:,} passages, "
        f"{cheapest.vector_bytes / 1e6:.1f} MB of vectors and {cheapest.search_ms:.0f} ms a search, against "
        f"{first.passages:,}, {first.vector_bytes / 1e6:.1f} MB and {first.search_ms:.0f} ms. Fit with "
        f"{cheapest.settings}."
    )
