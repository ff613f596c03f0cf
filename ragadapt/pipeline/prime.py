"""prime(): several corpora in, a base model out that learns the next one sooner, or the reason why there is none.

For every source: passages → the base's vectors → questions by part → mined examples, dev and held-out pools. Then one
training over all of them, the strength by the dev parts, and the guard: no source ends below its own base.

Finished stages are kept beside the target until it is written, so a killed run goes on, in the middle of its training.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragadapt import profiling
from ragadapt.checks import checked_path
from ragadapt.config import AdapterConfig, FitConfig, SplitConfig, TrainingConfig
from ragadapt.corpus.sources import read_sources
from ragadapt.errors import InvalidConfiguration, InvalidInput, StoreError
from ragadapt.evaluation import gate
from ragadapt.files import json_digest, read_json, remove, rename, sync_tree, write_text
from ragadapt.out_of_core import keep_all
from ragadapt.pipeline.adapt import DevPool, dev_pool, drift, make_examples
from ragadapt.pipeline.corpus import Corpus, EncodedCorpus
from ragadapt.pipeline.fit import FitSteps
from ragadapt.pipeline.library import refuse_start
from ragadapt.pipeline.queries import DividedQueries, Labels, narrowed, split_own_labels
from ragadapt.pipeline.report import as_markdown
from ragadapt.pipeline.seen import seen_by
from ragadapt.pipeline.stages import encode_query_texts, read_examples, searcher_of, write_examples
from ragadapt.queries import FEWEST_DEV, check_generator
from ragadapt.queries.filters import chance
from ragadapt.queries.seen import marks_of, write_seen
from ragadapt.search.searcher import Searcher
from ragadapt.store.chunks import ChunkStore
from ragadapt.store.workspace import LEDGER, MANIFEST, QUESTIONS, Stage, Workspace, open_store
from ragadapt.text import printable
from ragadapt.values import Chunk, Document, Evidence, Progress, Query, no_progress
from ragadapt.version import __version__

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder
    from ragadapt.training import Example, Recipe

log = logging.getLogger(__name__)

FACTS = "priming.json"
_SPLIT = SplitConfig(heldout=0.2, dev=0.2)
_KEPT = 150  # questions of a source that are kept from training: half of them steer, half guard; more go back to it
_PACE = {True: (1.0, 3e-5), False: (1.0, 2e-4)}  # by whether a method trains the model's own weights: epochs, rate
_STRENGTHS = (1.0, 0.75, 0.5, 0.25)
_LICENCE = re.compile(r"^\W*licen[cs]e\b[^:\n]*:\s*(.+)$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class PrimedSource:
    """What a source gave and got. kind: documents, retriever or collection. evidence: of the questions that steer and
    guard. train, dev, heldout: questions. before, after: dense nDCG@10 of the held-out ones over a pool of passages;
    drift: mean 1 − cosine of these passages' vectors."""

    name: str
    kind: str
    licence: str
    passages: int
    evidence: str
    train: int
    dev: int
    heldout: int
    before: float
    after: float
    drift: float


@dataclass(frozen=True)
class PrimeResult:
    """A finished priming. path: None where no strength left every source at its base or above, and nothing was written.

    strength: of what was learnt. strengths: mean dev score by strength, 0 = the base. sources: at that strength, or,
    where nothing was written, at the best by the dev parts. steps, stopped_early: of the training.
    """

    path: Path | None
    sources: tuple[PrimedSource, ...]
    strength: float
    strengths: Mapping[float, float]
    steps: int
    stopped_early: bool
    reason: str

    @property
    def primed(self) -> bool:
        """Whether there is a model."""
        return self.path is not None


@dataclass(frozen=True, eq=False)
class _Prepared:
    """One source, ready to train: its examples, and pools whose questions steer and guard."""

    name: str
    kind: str
    licence: str
    passages: int
    evidence: Evidence
    examples: list[Example]
    dev: DevPool
    heldout: DevPool
    questions: tuple[int, int, int]
    seen: frozenset[str]  # marks of what trains and steers


def prime(
    sources: Sequence[str | Path],
    target: str | Path,
    config: FitConfig = FitConfig(),
    recipe: Recipe | None = None,
    *,
    licences: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> PrimeResult:
    """Learn from all sources at once and write a sentence-transformers folder that `fit` takes as a base model.

    A source is a folder of documents, a retriever (with the questions of its fit and its feedback), or a collection in
    BEIR's layout, whose train and dev judgements are used, or all where it has neither. recipe: None = multi-task.
    licences: source's folder name → what its card shall say. Left open, the method is `full`. Raises InvalidInput for
    a source with too few questions, InvalidConfiguration, StoreError, ModelNotFound, TrainingFailed.
    """
    from ragadapt.encoder import Encoder
    from ragadapt.training import Recipe
    from ragadapt.training.processes import Processes, launched

    if launched():
        raise InvalidConfiguration("Priming runs in one process: start it without accelerate or torchrun.")
    recipe = recipe or Recipe()
    config = primed_settings(config)
    refuse_start(config, "priming")
    check_generator(config.query)
    target = checked_path(target, "The target").resolve()
    _refuse_foreign(target)
    places = named_sources(sources)
    if unknown := sorted(set(licences or {}) - set(places)):
        raise InvalidInput(
            f"A licence is given for {unknown[0]!r}, which is no source. There are: {', '.join(places)}."
        )
    with Workspace.open(target.with_name(f".{target.name}.priming"), {"command": "prime"}) as work:
        encoder = Encoder.load(config.encoder)
        found = []
        for number, (name, place) in enumerate(places.items()):
            steps = _SourceSteps(work, config, profiling.Clock(), Processes(), _labelled(progress, name), False, {})
            steps.prefix = f"s{number:02}"
            found.append(steps.read(name, place, encoder, (licences or {}).get(name)))
        result = _train(work, found, encoder, config, recipe, target, progress)
        stages = work.path
    if result.primed:  # else the same sources can be tried again with other settings
        remove(stages)
    return result


def primed_settings(config: FitConfig) -> FitConfig:
    """The configuration with what priming chooses otherwise than a fit. Raises InvalidConfiguration."""
    from ragadapt.adapters.method import method_named, options_of

    adapter = config.adapter.settled()
    if "method" not in adapter.model_fields_set:
        adapter = AdapterConfig.model_validate({**adapter.model_dump(exclude_unset=True), "method": "full"})
    if not adapter.trains:
        raise InvalidConfiguration("--method none trains nothing, and priming is a training.")
    options_of(adapter)
    method = method_named(adapter.method)
    if not method.FOLDS or adapter.adapt != "both":
        raise InvalidConfiguration(
            f"adapter.method = {adapter.method!r}, adapt = {adapter.adapt!r}: a primed model is a plain one, so what "
            "was learnt must fold into the weights of both sides. Choose full or a low-rank method, and adapt = 'both'."
        )
    epochs, rate = _PACE[method.MASTERS]
    training = config.training
    paced = {
        "epochs": epochs if training.epochs is None else training.epochs,
        "learning_rate": rate if training.learning_rate is None else training.learning_rate,
    }
    split = config.split if "split" in config.model_fields_set else _SPLIT
    return config.model_copy(
        update={"adapter": adapter, "training": training.model_copy(update=paced), "split": split}
    )  # fmt: skip


def named_sources(sources: Sequence[str | Path]) -> dict[str, Path]:
    """Folder name → path; equal names are numbered. Raises InvalidInput where there is nothing."""
    if isinstance(sources, (str, Path)) or not sources:
        raise InvalidInput("sources: give a list of folders, two or more.")
    found: dict[str, Path] = {}
    for number, source in enumerate(sources):
        path = checked_path(source, f"sources[{number}]").resolve()
        if not path.exists():
            raise InvalidInput(
                f"There is nothing at {path}. A source is a folder of documents, a retriever or a collection."
            )
        name, more = printable(path.name), 1
        while name in found:
            more += 1
            name = f"{printable(path.name)}-{more}"
        found[name] = path
    return found


# One source


class _SourceSteps(FitSteps):
    """A fit's steps up to its examples, each a stage of the one workspace under the source's own name."""

    prefix = ""

    @contextmanager
    def stage(self, name: str, after: Sequence[str] = (), **key: Any) -> Iterator[Stage]:
        key["after"] = {earlier: self.digests[earlier] for earlier in after}
        with self.work.stage(f"{self.prefix}-{name}", key) as stage:
            yield stage
        self.digests[name] = stage.digest
        self.paths[name] = stage.path

    def read(self, name: str, place: Path, encoder: Encoder, licence: str | None) -> _Prepared:
        """Everything before the training. Raises InvalidInput where the source has too few questions."""
        kind = "retriever" if (place / MANIFEST).is_file() else "collection" if is_collection(place) else "documents"
        labels: list[Labels] = []
        chunks: list[Chunk] | None = None
        if kind == "retriever":
            documents, chunks = _stored(place)
        else:
            labels = collection_labels(place) if kind == "collection" else []
            paths = [place / "corpus.jsonl"] if kind == "collection" else [place]
            documents, _, _ = read_sources(paths, self.config.read, False, self.progress)
        self.keep = keep_all(documents, chunks, self.work.target)
        corpus = self.chunks(documents, chunks, encoder)
        kept = self.kept_queries(place, corpus) if kind == "retriever" else None
        if kept is not None:
            _parts(name, kept, self.config.seed)  # too few are told before passages are encoded
        encoded = self.encode("base-vectors", corpus, encoder)
        searcher = searcher_of(encoded, self.lexical(corpus))
        queries = self.queries(corpus, encoder, searcher, labels) if kept is None else kept
        rank, train, dev, heldout = _parts(name, queries, self.config.seed)
        pools = [self.pool(name, judges, encoder, encoded, queries) for judges in (dev, heldout)]
        examples = self.mined(train, queries, encoder, encoded, searcher)
        log.info("%s: %d examples, %d dev and %d held-out questions (%s)", name, len(examples), len(dev), len(heldout),
                 rank.value)  # fmt: skip
        return _Prepared(
            name, kind, licence or licence_of_source(place), len(corpus.chunks), rank, examples, pools[0], pools[1],
            (len(train), len(dev), len(heldout)), marks_of([*train, *dev]),
        )  # fmt: skip

    def kept_queries(self, place: Path, corpus: Corpus) -> DividedQueries:
        """The questions of a retriever's fit, by their parts there, and its feedback. Raises InvalidInput."""
        folder = place / "report" / QUESTIONS
        if not folder.is_dir():
            raise InvalidInput(
                f"{place} was fitted by an earlier ragadapt, which did not keep the questions. Fit it again, or give "
                "its documents as a collection with queries.jsonl and qrels/."
            )
        found = DividedQueries.read(folder).within(corpus)
        if not (place / LEDGER).is_file():
            return found
        from ragadapt.feedback import export_pairs
        from ragadapt.retriever import Retriever

        with self.stage("feedback", ("chunks",), ledger=(place / LEDGER).stat().st_mtime_ns) as stage:
            if not stage.finished:
                with Retriever.open(place, device=self.config.encoder.device) as opened:
                    if opened.has_feedback:
                        export_pairs(opened, stage.path / "pairs.jsonl")
        pairs = self.paths["feedback"] / "pairs.jsonl"
        if not pairs.is_file() or not pairs.stat().st_size:
            return found
        return found.joined(split_own_labels(corpus, Labels(pairs), self.config))

    def pool(
        self, name: str, judges: Sequence[Query], encoder: Encoder, encoded: EncodedCorpus, queries: DividedQueries
    ) -> DevPool:
        found = dev_pool(self.arena(judges, encoder, encoded, queries.grades), seed=self.config.seed)
        if found is None:
            raise InvalidInput(f"{name}: too few of its questions can be judged. {_ADVICE}")
        return found

    def mined(
        self,
        train: Sequence[Query],
        queries: DividedQueries,
        encoder: Encoder,
        encoded: EncodedCorpus,
        searcher: Searcher,
    ) -> list[Example]:
        """The training examples with their negatives, kept."""
        config = self.config
        with self.stage(
            "examples", ("base-vectors", "lexical"), mining=config.mining.deciding(), loss=config.training.loss,
            queries=[[query.id, query.text, *query.positives] for query in train], grades=queries.grades,
        ) as stage:  # fmt: skip
            file = stage.path / "examples.jsonl"
            if not stage.finished:
                trainers = narrowed(train, encoder, encoded, queries.grades, self.progress)
                vectors = encode_query_texts(encoder, trainers, self.progress)
                made, _ = make_examples(
                    trainers, searcher, vectors, encoded.corpus, config, queries.grades, self.progress
                )
                write_examples(file, made)
            return read_examples(file)


_ADVICE = (
    "Give labelled questions (a collection with queries.jsonl and qrels/), let a language model write some "
    "(--generator), or leave the source out."
)


def _parts(name: str, queries: DividedQueries, seed: int) -> tuple[Evidence, list[Query], list[Query], list[Query]]:
    """(the best-ranked evidence of which enough is kept from training, what trains, what steers, what guards).

    Equal texts stay together. Raises InvalidInput.
    """
    train = [query for query in queries.train if query.evidence is not Evidence.CROP]
    counts = []
    for rank in (Evidence.LABELLED, Evidence.HUMAN, Evidence.PARAPHRASE):
        kept = [query for query in (*queries.dev, *queries.heldout) if query.evidence is rank]
        texts = sorted({query.text for query in kept}, key=lambda text: (chance(seed, text), text))
        counts.append(f"{len(texts)} {rank.value}")
        if len(texts) < 2 * FEWEST_DEV:
            continue
        steering, guarding = set(texts[:_KEPT:2]), set(texts[1:_KEPT:2])
        train += [query for query in kept if query.text not in steering | guarding]
        train = [query for query in train if query.text not in steering | guarding]
        if len(train) < gate.FEWEST_TO_TRAIN:
            break
        dev, heldout = ([query for query in kept if query.text in part] for part in (steering, guarding))
        return rank, train, dev, heldout
    raise InvalidInput(
        f"{name} has {len(train)} questions to train on and {', '.join(counts)} ones to steer and guard with; at least "
        f"{gate.FEWEST_TO_TRAIN}, and {2 * FEWEST_DEV} of one kind, are needed. {_ADVICE}"
    )


def is_collection(place: Path) -> bool:
    """Whether a folder has BEIR's layout."""
    return all((place / name).exists() for name in ("corpus.jsonl", "queries.jsonl", "qrels"))


def collection_labels(place: Path) -> list[Labels]:
    """Its train and dev judgements; all of them where it has neither. Raises InvalidInput where there are none."""
    every = sorted((place / "qrels").glob("*.tsv"))
    if not every:
        raise InvalidInput(f"{place / 'qrels'} has no judgements (*.tsv).")
    own = [path for path in every if path.stem in ("train", "dev")]
    return [Labels(place / "queries.jsonl", path) for path in own or every]


def _stored(place: Path) -> tuple[list[Document], list[Chunk]]:
    """The passages of a retriever as they were cut, and documents made of them."""
    with ChunkStore.open(open_store(place).path / "chunks.sqlite") as store:
        chunks = list(store)
    texts: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        texts.setdefault(chunk.document_id, []).append(chunk)
    return [
        Document(id, "\n\n".join(part.text for part in parts), source=parts[0].source) for id, parts in texts.items()
    ], chunks


def licence_of_source(place: Path) -> str:
    """What its README.md, SOURCE.md or LICENSE says in one line; "unknown" where none does."""
    from ragadapt.encoder.loading import licence_of

    if place.is_dir():
        if named := licence_of(str(place)):
            return named
        for file in ("README.md", "SOURCE.md"):
            text = (place / file).read_text(encoding="utf-8", errors="replace") if (place / file).is_file() else ""
            if match := _LICENCE.search(text):
                return match[1].strip()[:200]
        for path in sorted(place.glob("LICEN[CS]E*")):
            if path.is_file():
                return next(
                    (line.strip()[:200] for line in path.read_text("utf-8", "replace").splitlines() if line.strip()), ""
                )
    return "unknown"


# The training


def _train(
    work: Workspace,
    found: Sequence[_Prepared],
    encoder: Encoder,
    config: FitConfig,
    recipe: Recipe,
    target: Path,
    progress: Progress,
) -> PrimeResult:
    """Train on all sources, choose the strength, guard every source, and put the model in its place."""
    from ragadapt.training import prime_encoder

    training: TrainingConfig = config.training
    key = {
        "encoder": encoder.fingerprint, "adapter": config.adapter.deciding(), "training": training.deciding(),
        "recipe": asdict(recipe), "seed": config.seed,
        "sources": [
            [one.name, json_digest({"examples": [asdict(each) for each in one.examples]}, "examples")] for one in found
        ],
        "judges": [[item.query.id for pool in (one.dev, one.heldout) for item in pool.judged] for one in found],
    }  # fmt: skip
    with work.stage("train", key) as stage:
        if not stage.finished:
            dev = _mean([one.dev for one in found])
            result = prime_encoder(
                encoder, [one.examples for one in found], dev, config.adapter, training, recipe, seed=config.seed,
                checkpoint=stage.scratch / "checkpoint", progress=progress,
            )  # fmt: skip
            trained = result.encoder
            before = [one.heldout.score(encoder) for one in found]
            strengths = {0.0: dev(encoder)}
            for done, strength in enumerate(_STRENGTHS, start=1):
                trained.scale(strength)
                strengths[strength] = dev(trained)
                progress("choosing the strength", done, len(_STRENGTHS))
            order = sorted(_STRENGTHS, key=lambda strength: (-strengths[strength], strength))
            kept = [strength for strength in order if strengths[strength] > strengths[0.0]]
            after = dict[float, list[float]]()

            def guarded(strength: float) -> bool:
                trained.scale(strength)
                after[strength] = [one.heldout.score(trained) for one in found]
                return all(now >= was for now, was in zip(after[strength], before, strict=True))

            # The best by the dev parts that harms none: what comes after it is not measured.
            whole = next((strength for strength in kept if guarded(strength)), None)
            chosen = order[0] if whole is None else whole
            if chosen not in after:
                guarded(chosen)
            trained.scale(chosen)
            sources = [
                PrimedSource(
                    one.name, one.kind, one.licence, one.passages, one.evidence.value, *one.questions,
                    round(was, 4), round(now, 4), round(_moved(one.heldout, encoder, trained), 4),
                )
                for one, was, now in zip(found, before, after[chosen], strict=True)
            ]  # fmt: skip
            record = {
                "primed": whole is not None, "strength": chosen, "strengths": sorted(strengths.items()),
                "steps": result.steps, "stopped_early": result.stopped_early, "best_step": result.best_step,
                "dev": [[point.step, point.dev] for point in result.history if point.dev is not None],
                "sources": [asdict(one) for one in sources], "recipe": asdict(recipe), "seed": config.seed,
                "base": encoder.spec.model, "base_licence": encoder.spec.licence or "unknown",
                "adapter": {**config.adapter.deciding(), "method": config.adapter.method},
                "training": training.deciding(), "ragadapt": __version__,
            }  # fmt: skip
            record["reason"] = _reason(record, bool(kept))
            if whole is not None:
                save_plain(trained.merged(), stage.path / "model")
                (stage.path / "model" / "README.md").write_text(card(record), encoding="utf-8")
                write_seen(stage.path / "model", seen_by(config.encoder.model).union(*(one.seen for one in found)))
                write_text(stage.path / "model" / FACTS, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
            write_text(stage.path / FACTS, json.dumps(record, ensure_ascii=False))
        record = json.loads((stage.path / FACTS).read_text(encoding="utf-8"))
        path = _put(stage.path / "model", target) if record["primed"] else None
    return PrimeResult(
        path, tuple(PrimedSource(**one) for one in record["sources"]), record["strength"], dict(record["strengths"]),
        record["steps"], record["stopped_early"], record["reason"],
    )  # fmt: skip


def _mean(pools: Sequence[DevPool]) -> Callable[[Encoder], float]:
    """The dev function of a priming: every source counts alike."""
    return lambda encoder: float(np.mean([pool.score(encoder) for pool in pools]))


def _moved(pool: DevPool, base: Encoder, trained: Encoder) -> float:
    return drift(base.encode_passages(pool.passages), trained.encode_passages(pool.passages), seed=0)


def _reason(record: Mapping[str, Any], gained: bool) -> str:
    """What came of it, in a sentence."""
    curve = dict(record["strengths"])
    if record["primed"]:
        return (
            f"Primed at strength {record['strength']:g}: mean dev nDCG@10 {curve[0.0]:.3f} → "
            f"{curve[record['strength']]:.3f}, and no source below its base."
        )
    if not gained:
        return f"Nothing was written: at no strength was the mean of the dev parts above the base's {curve[0.0]:.3f}."
    below = [one for one in record["sources"] if one["after"] < one["before"]]
    names = ", ".join(f"{one['name']} {one['before']:.3f} → {one['after']:.3f}" for one in below) or "a source"
    return (
        f"Nothing was written: at every strength that gains on average some source ends below its base (at "
        f"{record['strength']:g}: {names}). Leave it out, train more gently (--lr), or give it more questions."
    )


def save_plain(encoder: Encoder, folder: Path) -> None:
    """A sentence-transformers folder that says nothing of adapters: the weights are the model's own now."""
    from ragadapt.adapters.state import FOLDER
    from ragadapt.encoder.spec import SPEC_FILE

    encoder.save(folder)
    remove(folder / FOLDER)
    remove(folder / SPEC_FILE)


def card(record: Mapping[str, Any]) -> str:
    """The folder's README: what it was made from, by whose leave, and what it is worth."""
    licence = record["base_licence"]
    front = ["---", "library_name: sentence-transformers", "pipeline_tag: sentence-similarity"]
    if re.fullmatch(r"[\w.+-]+", licence) and licence != "unknown":
        front.append(f"license: {licence}")
    recipe, adapter = record["recipe"], record["adapter"]
    lines = [
        *front, "---", "", "# Base model primed by ragadapt", "",
        as_markdown(record["reason"]), "",
        f"Base model: {as_markdown(record['base'])} ({as_markdown(licence)}). Trained: {adapter['method']}, "
        f"{recipe['name']}, corpora drawn at temperature {recipe['temperature']:g}, {record['steps']} steps"
        f"{' (stopped early)' if record['stopped_early'] else ''}, seed {record['seed']}.", "",
        "| source | kind | passages | questions (train, dev, held out) | evidence | nDCG@10 before → after | drift |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    lines += [
        f"| {as_markdown(one['name'])} | {one['kind']} | {one['passages']:,} | {one['train']}, {one['dev']}, "
        f"{one['heldout']} | {one['evidence']} | {one['before']:.3f} → {one['after']:.3f} | {one['drift']:.3f} |"
        for one in record["sources"]
    ]
    lines += [
        "",
        "Dense search for held-out questions over a pool of some 600 passages at most; the guard looked at them, so "
        "they flatter a little. Drift: mean 1 − cosine of passages to the base. The licence of the weights is that of "
        "the base model as far as the sources allow:", "",
    ]  # fmt: skip
    lines += [f"- {as_markdown(one['name'])}: {as_markdown(one['licence'])}" for one in record["sources"]]
    return "\n".join(lines) + "\n"


def _refuse_foreign(target: Path) -> None:
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / FACTS).is_file())):
        raise StoreError(f"{target} holds something that no priming wrote. Name a new or an empty folder.")


def _put(model: Path, target: Path) -> Path:
    """The finished folder in the target's place, in one move."""
    import shutil

    new, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    remove(new)
    shutil.copytree(model, new)
    sync_tree(new)
    if target.exists():
        if read_json(target / FACTS) == read_json(model / FACTS):  # an earlier try came so far
            remove(new)
            return target
        remove(old)
        rename(target, old)
    rename(new, target)
    remove(old)
    return target


def _labelled(progress: Progress, name: str) -> Progress:
    """Says of which source a stage is."""
    return lambda stage, done, total: progress(f"{printable(name)}: {stage}", done, total)


__all__ = ["PrimeResult", "PrimedSource", "card", "named_sources", "prime", "primed_settings", "save_plain"]
