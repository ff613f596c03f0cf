"""What the documents are, and what in them could train and could judge; nothing is encoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragadapt.config import FitConfig
from ragadapt.errors import EmptyCorpus
from ragadapt.evaluation import gate
from ragadapt.out_of_core import keep_all
from ragadapt.pipeline.corpus import Corpus, foreign_note, passages_of
from ragadapt.pipeline.library import check_library
from ragadapt.pipeline.queries import Labels, divide, document_grades, read_labels, shown_examples
from ragadapt.values import Chunk, Evidence, Progress, Query, no_progress

if TYPE_CHECKING:
    from ragadapt.corpus import Skipped
    from ragadapt.encoder import Encoder
    from ragadapt.pipeline.queries import ReadLabels

_HALF = 0.5  # share of the passages from which one file is what all figures are about
_REPEATS = 0.2  # share of passages that nearly repeat another, from which it is said how to leave them out


@dataclass(frozen=True)
class Survey:
    """What was read and what it offers.

    repeated: share of passages that say what another says. languages: name → share of the letters. found: kind of query
    → how many the documents' structure gives. human: questions and link texts that people wrote in them. labelled: of
    the user's own; judging: how many of them may judge, which those for training alone may not. trainable: whether a
    trained model could be judged; plan says by what, or why not. truncated: share of passages longer than the encoder
    reads. generation: what a configured generator would be asked, in words. notes: what was left out on purpose of
    files that were read.
    """

    sources: tuple[str, ...]
    documents: int
    skipped: tuple[Skipped, ...]
    characters: int
    chunks: int
    tokens: int
    longest_tokens: int
    repeated: float
    truncated: float
    languages: Mapping[str, float]
    found: Mapping[str, int]
    human: int
    labelled: int
    judging: int
    trainable: bool
    plan: str
    generation: str
    model: str
    warnings: tuple[str, ...]
    notes: tuple[Skipped, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        skipped = [{"source": one.source, "reason": one.reason} for one in self.skipped]
        notes = [
            {"source": one.source, "reason": one.reason, "left_out": one.left_out, "row": one.row} for one in self.notes
        ]
        return asdict(self) | {"skipped": skipped, "notes": notes}

    def lines(self) -> list[str]:
        """For a terminal."""
        shares = {name: share for name, share in self.languages.items() if share >= 0.005}
        if (rest := len(self.languages) - len(shares)) > 0:
            shares[f"{rest} more"] = sum(self.languages.values()) - sum(shares.values())
        languages = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.found.items()) or "none"
        found = [
            f"Documents   {self.documents:,} read, {len(self.skipped):,} skipped; {self.characters:,} characters",
            *_skipped_lines(self.skipped),
            *(["Left out    on purpose, of documents that were read:"] if self.notes else []),
            *_skipped_lines(self.notes),
            f"Passages    {self.chunks:,} of {self.tokens / max(self.chunks, 1):.0f} tokens on average, "
            f"the longest {self.longest_tokens}; {self.repeated:.0%} nearly repeat another",
            f"Languages   {languages}",
            f"Model       {self.model}",
            f"Queries     {kinds}",
            f"Judges      {self.human} written by people in the documents, {self.judging} labelled by you"
            + (f"; {only} more only train" if (only := self.labelled - self.judging) else ""),
            f"Plan        {self.plan}",
        ]
        if self.generation:
            found.append(f"Generator   {self.generation}")
        return [*found, *(f"Warning: {warning}" for warning in self.warnings)]


@dataclass(frozen=True)
class SurveyedCorpus:
    """A survey with what it was made from. foreign: much of the text is in languages that the model does not know."""

    survey: Survey
    corpus: Corpus
    queries: Sequence[Query]
    labelled: Sequence[Query]
    grades: Mapping[str, Mapping[str, int]]
    plan: gate.Plan
    encoder: Encoder
    token_counts: Sequence[int]
    foreign: bool


def survey(
    sources: Sequence[str | Path],
    config: FitConfig = FitConfig(),
    *,
    labels: Sequence[Labels] = (),
    answers: Path | None = None,
    progress: Progress = no_progress,
) -> Survey:
    """Read and cut the documents and count queries; nothing is encoded.

    answers: the file that keeps a language model's answers (`store.answers_file`); those need no request. Raises
    EmptyCorpus, InvalidInput, InvalidLabels, ModelNotFound.
    """
    return survey_corpus(sources, config, labels, progress, answers).survey


def survey_corpus(
    sources: Sequence[str | Path],
    config: FitConfig,
    labels: Sequence[Labels],
    progress: Progress,
    answers: Path | None = None,
) -> SurveyedCorpus:
    from ragadapt.corpus import cut_documents, internal_links, near_duplicate_groups, read_documents
    from ragadapt.corpus.sources import listed_sources
    from ragadapt.encoder import Encoder
    from ragadapt.queries import check_generator, structural_queries

    check_generator(config.query)
    check_library(config)
    label_files = [file for label in labels for file in label.files]
    read = read_documents(listed_sources(sources), config.read, labels=label_files, progress=progress)
    keep = keep_all(read.documents)
    encoder = Encoder.load(config.encoder)
    limit = encoder.passage_room
    cut = cut_documents(read.documents, config.chunk, encoder.count_tokens, limit, progress=progress)
    chunks = [keep(chunk) for chunk in cut]
    if not chunks:
        raise EmptyCorpus(f"{len(read.documents)} documents were read, but they hold no text to cut into passages.")
    passages = passages_of(chunks)
    groups = near_duplicate_groups(passages, progress=progress)
    counts = encoder.count_tokens(passages)
    links = internal_links(read.documents, chunks)
    queries = structural_queries(read.documents, chunks, links, config.query, seed=config.seed, progress=progress)
    corpus = Corpus(tuple(read.documents), tuple(chunks), tuple(groups))
    found = read_labels(corpus, labels, config)
    sets, warnings = found.sets, list(found.notes)
    labelled = [query for own, _ in sets for query in own.queries]
    note = foreign_note(corpus.languages, config.encoder)
    if note:
        warnings.append(note)
    truncated = sum(count > limit for count in counts) / len(counts)
    if truncated > 0.01:
        warnings.append(
            f"{truncated:.0%} of the passages are longer than the model reads; their ends are not searched."
        )
    warnings += _one_sided(chunks, groups)
    plan = _plan(queries, found, corpus, config)
    asked = config.adapter.trains and bool(config.query.generator or config.query.generator_url)
    if asked and (not plan.train or plan.evidence is Evidence.HUMAN):
        judges = plan.judge if plan.evidence is Evidence.LABELLED else ()
        others = f"; {len(judges)} held-out queries (labelled)" if judges else " and"
        reason = f"Questions by the language model train{others} judge."
        plan = gate.Plan((), judges, Evidence.PARAPHRASE, reason, 0 if judges else gate.PARAPHRASE_FOLDS)
    shares = Counter(groups)
    found_kinds = Counter(query.kind for query in queries)
    made = Survey(
        sources=tuple(str(source) for source in sources),
        documents=len(read.documents),
        skipped=tuple(read.skipped),
        characters=sum(len(document.text) for document in read.documents),
        chunks=len(chunks),
        tokens=sum(counts),
        longest_tokens=max(counts),
        repeated=1 - len(shares) / len(chunks),
        truncated=truncated,
        languages=corpus.languages,
        found=dict(found_kinds.most_common()),
        human=sum(query.evidence is Evidence.HUMAN for query in queries),
        labelled=len(labelled),
        judging=sum(len(own.queries) for (own, _), use in zip(sets, found.uses, strict=True) if use != "train"),
        trainable=bool(plan.train) or plan.evidence is Evidence.PARAPHRASE,
        plan=plan.reason,
        generation=_generation(chunks, config, shown_examples(sets), answers),
        model=_model_line(encoder),
        warnings=tuple(warnings),
        notes=tuple(read.notes),
    )
    grades = document_grades(sets, corpus)
    return SurveyedCorpus(made, corpus, queries, labelled, grades, plan, encoder, counts, bool(note))


def _one_sided(chunks: Sequence[Chunk], groups: Sequence[int]) -> list[str]:
    """Warnings where one file, or copies of one text, are much of the corpus."""
    warnings = []
    files = Counter(chunk.source or chunk.document_id for chunk in chunks)
    largest, count = files.most_common(1)[0]
    if len(files) > 1 and count / len(chunks) >= _HALF:
        warnings.append(
            f"One of {len(files):,} files, {largest}, is {count / len(chunks):.0%} of the corpus ({count:,} of "
            f"{len(chunks):,} passages): questions, tuning and figures will be mostly about it. If it is not what "
            f"people search, leave it out with --exclude."
        )
    shared = Counter(groups)
    repeats = len(chunks) - len(shared)
    if repeats / len(chunks) >= _REPEATS:
        group, copies = shared.most_common(1)[0]
        sources = dict.fromkeys(
            chunk.source or chunk.document_id for chunk, own in zip(chunks, groups, strict=True) if own == group
        )
        where = list(sources)
        listed = f"{where[0]} and {where[1]}" if len(where) > 1 else where[0]
        warnings.append(
            f"{repeats:,} of {len(chunks):,} passages nearly repeat another; the commonest text stands {copies:,} "
            f"times, for instance in {listed}. Copies crowd results: leave old versions and translations of templates "
            "out with --exclude."
        )
    return warnings


def _plan(
    queries: Sequence[Query],
    labels: ReadLabels,
    corpus: Corpus,
    config: FitConfig,
) -> gate.Plan:
    """What `fit` would train on and judge by, but for the round trip, which needs vectors."""
    from ragadapt.queries import clean_queries, split_documents

    cleaned = clean_queries(queries, corpus.chunks, config.query, seed=config.seed)
    split = split_documents(corpus.chunks, corpus.groups, config.split, config.seed)
    train, dev, heldout = divide(cleaned, labels.sets, corpus, split)
    return gate.plan(
        train,
        heldout,
        dev=dev,
        only_judge=labels.only("eval"),
        only_train=labels.only("train"),
        split=config.split,
        config=config.gate,
    )


def _generation(chunks: Sequence[Chunk], config: FitConfig, examples: Sequence[Query], answers: Path | None) -> str:
    from ragadapt.queries import estimate

    if not (config.query.generator or config.query.generator_url):
        return ""
    return estimate(chunks, config.query, seed=config.seed, cache_path=answers, examples=examples).words


def _model_line(encoder: Encoder) -> str:
    licence = f", licence {encoder.spec.licence}" if encoder.spec.licence else ""
    precision = encoder.precision
    return (
        f"{encoder.spec.model}: {encoder.dim}-d, reads {encoder.max_length} tokens{licence}; "
        f"runs in {precision.dtype} on {precision.device}"
    )


def _skipped_lines(skipped: Sequence[Skipped], most: int = 5) -> list[str]:
    """Each kind of reason once, with an example and how many more."""
    from ragadapt.corpus.sources import by_reason

    return [f"            {line}" for line in by_reason(skipped, most)]
