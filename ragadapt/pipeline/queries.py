"""The queries of a fit: from the documents, from a language model and from the user's labels, by part."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ragadapt import profiling
from ragadapt.checks import checked_path
from ragadapt.config import FitConfig
from ragadapt.corpus import internal_links
from ragadapt.errors import InvalidLabels
from ragadapt.evaluation import gate
from ragadapt.files import record_file, write_text
from ragadapt.pipeline.corpus import Corpus, EncodedCorpus, text_hash
from ragadapt.pipeline.fusion import FEWEST_ASKED
from ragadapt.pipeline.stages import encode_query_texts, read_queries, write_queries
from ragadapt.queries import (
    LabelledSet,
    Split,
    assign_queries,
    clean_queries,
    count_leaks,
    deal_folds,
    generate_queries,
    has_evidence,
    load_labels,
    load_questions,
    narrow_to_best_chunk,
    round_trip_filter,
    split_documents,
    split_labelled,
    structural_queries,
    text_key,
)
from ragadapt.queries.split import PARTS
from ragadapt.search.searcher import Searcher
from ragadapt.values import Evidence, Progress, Query

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder
    from ragadapt.training import Example

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labels:
    """The user's own queries. use: learn from them, be measured on them, or both (split by query).

    queries: BEIR queries.jsonl with qrels, or a jsonl of {"text", "evidence": [{"source", "quote"}]}. A file without
    any judgement (a search log: jsonl of {"text"}, or .txt with a question a line) neither trains nor measures; its
    questions tell how the two sides of the search are mixed.
    """

    queries: Path
    qrels: Path | None = None
    use: Literal["both", "train", "eval"] = "both"

    def __post_init__(self) -> None:
        object.__setattr__(self, "queries", checked_path(self.queries, "queries"))
        if self.qrels is not None:
            object.__setattr__(self, "qrels", checked_path(self.qrels, "qrels"))
        for path in (self.queries, self.qrels):
            if path is not None and not path.is_file():
                raise InvalidLabels(f"There is no file at {path}. Give the path of your labelled questions.")
        if self.use not in ("both", "train", "eval"):
            raise InvalidLabels(f"use = {self.use!r}: labels are for 'both', 'train' or 'eval'.")

    @property
    def files(self) -> tuple[Path, ...]:
        """The queries and, where there are any, their judgements."""
        return (self.queries,) if self.qrels is None else (self.queries, self.qrels)

    @property
    def judged(self) -> bool:
        """Whether there are answers to the questions."""
        return self.qrels is not None or has_evidence(self.queries)

    def key(self) -> list[str]:
        """What tells these labels from others: digests of the files, and the use."""
        return [record_file(self.queries).sha256, record_file(self.qrels).sha256 if self.qrels else "", self.use]


@dataclass(frozen=True)
class DividedQueries:
    """The queries of a fit by part, with what is known about them.

    grades: for labels that name documents. made and kept: counts by kind, before and after cleaning. only_judge and
    only_train: ids of what must not train (labels for measuring alone, and what the round trip did not bring back), or
    not judge, when queries of all parts are dealt to folds. asked: the user's questions without answers.
    """

    train: tuple[Query, ...]
    dev: tuple[Query, ...]
    heldout: tuple[Query, ...]
    grades: dict[str, dict[str, int]]
    made: dict[str, int]
    kept: dict[str, int]
    documents: dict[str, int]  # part → documents
    notes: tuple[str, ...]
    only_judge: tuple[str, ...] = ()
    only_train: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()

    @property
    def fusion_queries(self) -> tuple[Query, ...]:
        """What the fusion may learn from: everything that is not held out."""
        return (*self.train, *self.dev)

    def parts(self, keep: Callable[[Query], bool]) -> dict[str, Any]:
        """Part → those of its queries."""
        return {part: tuple(query for query in getattr(self, part) if keep(query)) for part in PARTS}

    def without_crops(self) -> DividedQueries:
        """What may train and judge, and grades for it alone."""
        parts = self.parts(lambda query: query.evidence is not Evidence.CROP)
        ids = {query.id for part in parts.values() for query in part}
        return replace(self, **parts, grades={id: own for id, own in self.grades.items() if id in ids}, asked=())

    def within(self, corpus: Corpus) -> DividedQueries:
        """Without queries whose passages are gone."""
        there = corpus.position_of
        return replace(self, **self.parts(lambda query: any(id in there for id in query.positives)))

    def joined(self, other: DividedQueries) -> DividedQueries:
        """With other queries, part by part; their ids are made unlike."""
        parts: dict[str, Any] = {
            part: (*getattr(self, part), *(replace(query, id=f"+{query.id}") for query in getattr(other, part)))
            for part in PARTS
        }
        return replace(self, **parts, grades=self.grades | {f"+{id}": own for id, own in other.grades.items()})

    def write(self, folder: Path) -> None:
        """As train.jsonl, dev.jsonl, heldout.jsonl and queries.json."""
        for part in PARTS:
            write_queries(folder / f"{part}.jsonl", getattr(self, part))
        rest = {name: value for name, value in asdict(self).items() if name not in PARTS}
        write_text(folder / "queries.json", json.dumps(rest, ensure_ascii=False))

    @classmethod
    def read(cls, folder: Path) -> DividedQueries:
        """What `write` wrote."""
        values: dict[str, Any] = json.loads((folder / "queries.json").read_text(encoding="utf-8"))
        for part in PARTS:
            values[part] = tuple(read_queries(folder / f"{part}.jsonl"))
        names = ("notes", "only_judge", "only_train", "asked")
        return cls(**values | {name: tuple(values.get(name, ())) for name in names})


def make_queries(
    corpus: Corpus,
    encoder: Encoder,
    base: Searcher,
    labels: Sequence[Labels],
    config: FitConfig,
    *,
    cache: Path,
    progress: Progress,
) -> DividedQueries:
    """Write, read, clean and split the queries. base: the untuned search of the round trip. cache: a file that keeps
    a language model's answers, so that nothing is asked twice. Raises InvalidLabels, InvalidInput."""
    seed = config.seed
    documents, chunks = corpus.documents, corpus.chunks
    with profiling.work("queries from documents", len(documents)):
        links = internal_links(documents, chunks)
        written = structural_queries(documents, chunks, links, config.query, seed=seed)
    read = read_labels(corpus, labels, config)
    sets = read.sets
    if config.query.generator or config.query.generator_url:
        examples = shown_examples(sets)
        with profiling.work("language model"):
            written += generate_queries(
                chunks, config.query, seed=seed, cache_path=cache, progress=progress, examples=examples
            )
    made = Counter(query.kind for query in written)
    with profiling.work("clean queries", len(written)):
        cleaned = clean_queries(written, chunks, config.query, seed=seed)
    split = split_documents(chunks, corpus.groups, config.split, seed)
    sift = partial(_round_trip, encoder=encoder, base=base, k=config.query.round_trip_k, progress=progress)
    train, dev, heldout = divide(cleaned, sets, corpus, split, sift=sift)
    written_about = [query for query in (*dev, *heldout) if query.evidence is Evidence.PARAPHRASE]
    found = {query.id for query in sift(written_about)}
    only_judge = read.only("eval") | {query.id for query in written_about if query.id not in found}
    return DividedQueries(
        tuple(train),
        tuple(dev),
        tuple(heldout),
        document_grades(sets, corpus),
        dict(made),
        dict(Counter(query.kind for query in (*train, *dev, *heldout))),
        {"train": len(split.train), "dev": len(split.dev), "heldout": len(split.heldout)},
        tuple(read.notes),
        tuple(sorted(only_judge)),
        tuple(sorted(read.only("train"))),
        tuple(read.asked),
    )


DividedLabels = tuple[LabelledSet, dict[str, set[str]]]
"""A labelled set, and part → the ids of its queries there."""


@dataclass(frozen=True)
class ReadLabels:
    """What the user's files hold. sets: judged queries, uses: what each set is for. asked: questions without answers.
    notes: what could not be matched, for the report."""

    sets: list[DividedLabels]
    uses: list[str]
    asked: list[str]
    notes: list[str]

    def only(self, use: Literal["train", "eval"]) -> set[str]:
        """Ids of the queries that are for nothing else."""
        return {
            query.id
            for (found, _), own in zip(self.sets, self.uses, strict=True)
            if own == use
            for query in found.queries
        }


def read_labels(corpus: Corpus, labels: Sequence[Labels], config: FitConfig) -> ReadLabels:
    """Every labelled set with the ids of its parts, questions without answers, and what could not be matched.

    Ids are unique over all sets. Raises InvalidLabels.
    """
    read, seen = ReadLabels([], [], [], []), set[str]()
    for number, label in enumerate(labels, start=1):
        if not label.judged:
            if label.use != "both":
                raise InvalidLabels(
                    f"The questions of {label.queries} have no judgement, so they are not for {label.use!r}. "
                    'Pass a qrels file, or give each line "evidence": [{"source": …, "quote": …}].'
                )
            asked, unread = load_questions(label.queries)
            read.asked.extend(asked)
            read.notes.append(_unanswered(asked, unread, label.queries.name))
            continue
        found = load_labels(label.queries, label.qrels, chunks=corpus.chunks, documents=corpus.documents)
        if seen & {query.id for query in found.queries}:  # two files may both number from 1
            found = _renamed(found, f"{number}:")
        seen |= {query.id for query in found.queries}
        if found.unmatched:
            where, why = found.unmatched[0]
            count, name = len(found.unmatched), label.queries.name
            read.notes.append(f"{count} labels of {name} could not be used; the first: {where}: {why}")
        read.sets.append((found, _split_labels(found.queries, label.use, config)))
        read.uses.append(label.use)
    return read


def _unanswered(asked: Sequence[str], unread: Sequence[tuple[str, str]], name: str) -> str:
    count = len(set(asked))
    mixed = "how word and vector search are mixed"
    told = f"They say {mixed}, and" if count >= FEWEST_ASKED else f"{FEWEST_ASKED} or more would say {mixed}; these"
    note = (
        f"{name} holds {count:,} question{'s' * (count != 1)} without answers. {told} train and measure nothing. "
        "Answers are given with --qrels, or as evidence in each line."
    )
    if unread:
        note += f" {len(unread)} lines could not be read; the first: {': '.join(unread[0])}."
    return note


def _split_labels(queries: Sequence[Query], use: str, config: FitConfig) -> dict[str, set[str]]:
    if use == "eval":
        return {"train": set(), "dev": set(), "heldout": {query.id for query in queries}}
    settings = config.split if use == "both" else config.split.model_copy(update={"heldout": 0.0})
    if not queries:
        return {"train": set(), "dev": set(), "heldout": set()}
    split = split_labelled(queries, settings, config.seed)
    return {"train": set(split.train), "dev": set(split.dev), "heldout": set(split.heldout)}


def split_own_labels(corpus: Corpus, labels: Labels, config: FitConfig) -> DividedQueries:
    """One set of labelled queries by part, and nothing else. Raises InvalidLabels."""
    sets = read_labels(corpus, [labels], config).sets
    parts: dict[str, Any] = {
        part: tuple(query for found, ids in sets for query in found.queries if query.id in ids[part]) for part in PARTS
    }
    return DividedQueries(**parts, grades=document_grades(sets, corpus), made={}, kept={}, documents={}, notes=())


def shown_examples(sets: Sequence[DividedLabels]) -> list[Query]:
    """The labelled queries that a language model may be shown: those for training alone."""
    return [query for found, ids in sets for query in found.queries if query.id in ids["train"]]


def divide(
    queries: Sequence[Query],
    sets: Sequence[DividedLabels],
    corpus: Corpus,
    split: Split,
    *,
    sift: Callable[[Sequence[Query]], list[Query]] = list,
) -> tuple[list[Query], list[Query], list[Query]]:
    """(train, dev, heldout): cleaned queries by their documents' part, labels by their own.

    sift: which of the training queries stay, before the labels join them.
    """
    parts = assign_queries(queries, corpus.chunks, split)
    parts["train"] = sift(parts["train"])
    for found, ids in sets:
        for part in PARTS:
            parts[part] += [query for query in found.queries if query.id in ids[part]]
    return _without_held_out_passages(parts["train"], parts["heldout"], corpus), parts["dev"], parts["heldout"]


def _round_trip(queries: Sequence[Query], encoder: Encoder, base: Searcher, k: int, progress: Progress) -> list[Query]:
    """Keep a query that may train only if its passage comes back in the first k of the untuned hybrid."""
    crops = [query for query in queries if query.evidence is Evidence.CROP]  # they never train
    queries = [query for query in queries if query.evidence is not Evidence.CROP]
    if not k or not queries:
        return [*queries, *crops]
    vectors = encoder.encode_queries([query.text for query in queries], progress=progress)
    found = base.rank([query.text for query in queries], vectors, k)
    kept, dropped = round_trip_filter(queries, [ranked.ids for ranked in found], k)
    log.info("round trip: %d of %d training queries kept", len(kept), len(kept) + len(dropped))
    return [*kept, *crops]


def narrowed(
    queries: Sequence[Query],
    base: Encoder,
    encoded: EncodedCorpus,
    grades: Mapping[str, Mapping[str, int]],
    progress: Progress,
) -> list[Query]:
    """Labels that name a document: of its chunks, the one that the base's vectors put nearest to the query."""
    whole = [query for query in queries if query.id in grades]
    if not whole:
        return list(queries)
    corpus = encoded.corpus
    query_vectors = encode_query_texts(base, whole, progress)

    def score(query: Query, ids: Sequence[str]) -> list[float]:
        rows = np.asarray(encoded.vectors[[corpus.position_of[id] for id in ids]])
        scores: list[float] = (rows @ query_vectors[query.id]).tolist()
        return scores

    found = {query.id: query for query in narrow_to_best_chunk(whole, score, document_of=corpus.document_of)}
    return [found.get(query.id, query) for query in queries]


def with_folds(plan: gate.Plan, corpus: Corpus, config: FitConfig) -> gate.Plan:
    """The plan with its judging queries dealt to folds, and what may not train in which fold: the fold's own queries,
    queries of the same text, and what was written about passages that answer the fold's labelled queries."""
    folds = deal_folds(plan.judge, corpus.chunks, corpus.groups, plan.crossed, config.seed)
    at = corpus.position_of
    texts: defaultdict[str, set[int]] = defaultdict(set)
    answers: defaultdict[int, set[int]] = defaultdict(set)  # near-duplicate group → folds
    for query in plan.judge:
        texts[text_key(query.text)].add(folds[query.id])
        if query.evidence is Evidence.LABELLED:
            for id in query.positives:
                if id in at:
                    answers[corpus.groups[at[id]]].add(folds[query.id])
    barred: dict[str, frozenset[int]] = {}
    for query in plan.train:
        own = set(texts.get(text_key(query.text), ()))
        if query.evidence is not Evidence.LABELLED:
            own |= {fold for id in query.positives if id in at for fold in answers.get(corpus.groups[at[id]], ())}
        barred[query.id] = frozenset(own)
    return replace(plan, folds=folds, barred=barred)


def answer_was_trained(plan: gate.Plan, grades: Mapping[str, Mapping[str, int]]) -> dict[str, bool]:
    """Judging query → whether a query that trained for it had one of its answers: a passage, or a document it
    names."""

    def answers(query: Query) -> set[str]:
        return {*query.positives, *grades.get(query.id, ())}

    met: dict[str, bool] = {}
    for train, judge in plan.parts():
        trained = {answer for query in train for answer in answers(query)}
        met |= {query.id: not trained.isdisjoint(answers(query)) for query in judge}
    return met


def leaked(plan: gate.Plan, corpus: Corpus) -> int:
    """Training items that share text with the queries that judge them; labelled questions may share answers, not
    texts."""
    return sum(_leaked(train, judge, plan.evidence, corpus) for train, judge in plan.parts())


def _leaked(train: Sequence[Query], judge: Sequence[Query], evidence: Evidence | None, corpus: Corpus) -> int:
    labelled = [query for query in train if query.evidence is Evidence.LABELLED]
    if evidence is not Evidence.LABELLED or not labelled:
        return count_leaks(train, judge, corpus.chunks).total
    others = [query for query in train if query.evidence is not Evidence.LABELLED]
    shared = count_leaks(labelled, judge, corpus.chunks)
    return shared.texts + shared.near_texts + count_leaks(others, judge, corpus.chunks).total


def held_out_negatives(examples: Sequence[Example], plan: gate.Plan, corpus: Corpus, loss: str) -> tuple[int, int]:
    """How many of the passages that the loss sets beside the training queries' own answers are answers of held-out
    queries, and how many there are.

    That is no leak: being pushed away from other queries cannot flatter the model on its own. To spare these passages
    would, as all others were pushed away.
    """
    at = corpus.position_of
    answers = {corpus.text_keys[at[id]] for query in plan.judge for id in query.positives if id in at}
    pairs: set[tuple[str, str]] = set()
    for example in examples:
        beside = example.negatives if loss in ("infonce", "both") else ()
        beside += () if loss == "infonce" else example.candidates[1:]
        pairs |= {(example.query, passage) for passage in beside}
    keys = {passage: text_hash(passage) for passage in {passage for _, passage in pairs}}
    return sum(keys[passage] in answers for _, passage in pairs), len(pairs)


def _without_held_out_passages(train: Sequence[Query], heldout: Sequence[Query], corpus: Corpus) -> list[Query]:
    """Drop queries made from passages (or near-duplicates of passages) that answer a held-out labelled query.

    Labelled training queries stay: users ask about the same passages again, and their split is by query.
    """
    at = corpus.position_of
    answers = {
        corpus.groups[at[id]]
        for query in heldout
        if query.evidence is Evidence.LABELLED
        for id in query.positives
        if id in at
    }
    return [
        query
        for query in train
        if query.evidence is Evidence.LABELLED
        or not any(corpus.groups[at[id]] in answers for id in query.positives if id in at)
    ]


def _renamed(found: LabelledSet, prefix: str) -> LabelledSet:
    """The same labels under ids with a prefix."""
    return replace(
        found,
        queries=[replace(query, id=prefix + query.id) for query in found.queries],
        grades={prefix + id: value for id, value in found.grades.items()},
        document_positives={prefix + id: value for id, value in found.document_positives.items()},
        evidence={prefix + id: value for id, value in found.evidence.items()},
    )


def document_grades(sets: Sequence[DividedLabels], corpus: Corpus) -> dict[str, dict[str, int]]:
    """Query id → document id → grade, for labels that name whole documents."""
    grades: dict[str, dict[str, int]] = {}
    for found, _ in sets:
        for query, documents in found.document_positives.items():
            whole = set(documents)
            if not whole:
                continue
            grades[query] = dict.fromkeys(documents, 1)
            for chunk, grade in found.grades.get(query, {}).items():
                document = corpus.document_of[chunk]
                if document in whole:
                    grades[query][document] = max(grades[query][document], int(grade))
    return grades
