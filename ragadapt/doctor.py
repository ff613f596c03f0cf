"""Before any training: is tuning likely to pay? And for a saved retriever: is it sound?

`survey` reads and cuts the documents and counts what could train and what could judge. `diagnose` also measures the
untuned model on quick queries made from the documents, and ends with one recommendation. `examine` verifies a folder.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ragadapt.asking import Labels, divide, document_grades, read_labels, shown_examples
from ragadapt.config import EncoderConfig, FitConfig
from ragadapt.errors import EmptyCorpus, RagadaptError
from ragadapt.evaluation import gate
from ragadapt.languages import foreign_share, languages_of
from ragadapt.store import open_store
from ragadapt.values import Chunk, Document, Evidence, Progress, Query, no_progress

if TYPE_CHECKING:
    from ragadapt.asking import DividedLabels
    from ragadapt.corpus import Skipped
    from ragadapt.encoder import Encoder
    from ragadapt.retriever import Snapshot
    from ragadapt.stages import Corpus

PASSAGES = 1000  # encoded for the measurement: about a minute on a laptop
QUERIES = 200
SATURATED, WELL_ORDERED = 0.95, 0.9  # recall@10 and nDCG@10 from which little is left to gain
_FEWEST = 20  # queries of a rank, below which its figures are noise
_FOREIGN = 0.2  # share of the text in other languages from which an English-only model is the wrong one
_GAP = 0.05  # nDCG@10 by which the sides differ clearly
_HALF = 0.5  # share of the passages from which one file is what all figures are about
_REPEATS = 0.2  # share of passages that nearly repeat another, from which it is said how to leave them out

Outlook = Literal["worth training", "no judge", "little to gain", "wrong model"]


# What the documents are -----------------------------------------------------------------------------------


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
        return asdict(self) | {"skipped": [{"source": one.source, "reason": one.reason} for one in self.skipped]}

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
class _Material:
    """A survey with what it was made from."""

    survey: Survey
    documents: Sequence[Document]
    chunks: Sequence[Chunk]
    groups: Sequence[int]
    queries: Sequence[Query]
    labelled: Sequence[Query]
    grades: Mapping[str, Mapping[str, int]]
    plan: gate.Plan
    encoder: Encoder
    token_counts: Sequence[int]


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
    return _gather(sources, config, labels, progress, answers).survey


def _gather(
    sources: Sequence[str | Path],
    config: FitConfig,
    labels: Sequence[Labels],
    progress: Progress,
    answers: Path | None = None,
) -> _Material:
    from ragadapt.corpus import chunk_documents, internal_links, near_duplicate_groups, normalise, read_documents
    from ragadapt.corpus.sources import listed_sources
    from ragadapt.encoder import Encoder
    from ragadapt.queries import check_generator, structural_queries
    from ragadapt.stages import Corpus

    check_generator(config.query)
    label_files = [file for label in labels for file in label.files]
    read = read_documents(listed_sources(sources), config.read, labels=label_files, progress=progress)
    encoder = Encoder.load(config.encoder)
    limit = encoder.passage_room
    chunks = chunk_documents(read.documents, config.chunk, encoder.count_tokens, limit, progress=progress)
    if not chunks:
        raise EmptyCorpus(f"{len(read.documents)} documents were read, but they hold no text to cut into passages.")
    passages = [chunk.passage for chunk in chunks]
    groups = near_duplicate_groups(passages, progress=progress)
    counts = encoder.count_tokens(passages)
    links = internal_links(read.documents, chunks)
    queries = structural_queries(read.documents, chunks, links, config.query, seed=config.seed, progress=progress)
    keys = tuple(normalise(passage) for passage in passages)
    corpus = Corpus(tuple(read.documents), tuple(chunks), tuple(groups), keys)
    sets, warnings = read_labels(corpus, labels, config)
    labelled = [query for found, _ in sets for query in found.queries]
    languages = languages_of(passages)
    if (foreign := foreign_share(languages)) > _FOREIGN and english_only(config.encoder):
        warnings.append(
            f"{foreign:.0%} of the text is not in English, but the base model {config.encoder.model!r} knows only "
            "English. Use --model multilingual."
        )
    truncated = sum(count > limit for count in counts) / len(counts)
    if truncated > 0.01:
        warnings.append(
            f"{truncated:.0%} of the passages are longer than the model reads; their ends are not searched."
        )
    warnings += _one_sided(chunks, groups)
    plan = _plan(queries, sets, corpus, config)
    if not plan.train and config.adapter.method != "none" and (config.query.generator or config.query.generator_url):
        others = f"; {len(plan.judge)} held-out queries ({plan.evidence.value})" if plan.judge and plan.evidence else ""
        reason = f"Questions by the language model train{others or ' and'} judge."
        plan = gate.Plan((), plan.judge, Evidence.PARAPHRASE, reason)
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
        languages=languages,
        found=dict(found_kinds.most_common()),
        human=sum(query.evidence is Evidence.HUMAN for query in queries),
        labelled=len(labelled),
        judging=sum(len(found.queries) for (found, _), label in zip(sets, labels) if label.use != "train"),
        trainable=bool(plan.train) or plan.evidence is Evidence.PARAPHRASE,
        plan=plan.reason,
        generation=_generation(chunks, config, shown_examples(sets), answers),
        model=_model_line(encoder),
        warnings=tuple(warnings),
        notes=tuple(read.notes),
    )
    grades = document_grades(sets, corpus)
    return _Material(made, read.documents, chunks, groups, queries, labelled, grades, plan, encoder, counts)


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


def _plan(queries: Sequence[Query], sets: Sequence[DividedLabels], corpus: Corpus, config: FitConfig) -> gate.Plan:
    """What `fit` would train on and judge by, but for the round trip, which needs vectors."""
    from ragadapt.queries import clean_queries, split_documents

    cleaned = clean_queries(queries, corpus.chunks, config.query, seed=config.seed)
    split = split_documents(corpus.chunks, corpus.groups, config.split, config.seed)
    train, _, heldout = divide(cleaned, sets, corpus, split)
    return gate.plan(train, heldout, split=config.split)


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


# How good the untuned model is ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quality:
    """One way to search, on the quick queries. ndcg: nDCG@10; recall: share of queries answered in the first ten."""

    system: str
    ndcg: float
    recall: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What `fit` will take here, from the measured speed. training_seconds is 0 where nothing would be trained."""

    passages_per_second: float
    tokens_per_second: float
    encoding_seconds: float
    training_seconds: float
    memory_bytes: int | None
    disk_bytes: int

    @property
    def seconds(self) -> float:
        return self.encoding_seconds + self.training_seconds


@dataclass(frozen=True)
class Diagnosis:
    """A survey, the untuned model's quality and what follows from them.

    evidence: what kind of queries was measured with; measured: how many; sampled: passages searched, all of them if
    equal to survey.chunks. quality: dense, lexical, hybrid; empty where there was nothing to ask.
    """

    survey: Survey
    evidence: Evidence | None
    measured: int
    sampled: int
    quality: tuple[Quality, ...]
    estimate: Estimate
    outlook: Outlook
    recommendation: str

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = asdict(self) | {"survey": self.survey.as_dict()}
        values["estimate"]["seconds"] = self.estimate.seconds
        return values

    def lines(self) -> list[str]:
        """For a terminal."""
        found = self.survey.lines()
        found.append("")
        if self.quality and self.evidence is not None:
            of = (
                "" if self.sampled == self.survey.chunks else f" of {self.survey.chunks:,}, so it was easier than it is"
            )
            found.append(
                f"The untuned model on {self.measured} quick queries ({_EVIDENCE_WORDS[self.evidence]}), "
                f"searching {self.sampled:,} passages{of}:"
            )
            found.append(f"            {'nDCG@10':>8}  {'answered in the first ten':>25}")
            found += [f"  {one.system:<10}{one.ndcg:>8.3f}  {one.recall:>25.0%}" for one in self.quality]
            found.append("")
        estimate = self.estimate
        training = f", training about {_minutes(estimate.training_seconds)}" if estimate.training_seconds else ""
        memory = f"; memory about {estimate.memory_bytes / 1e9:.1f} GB" if estimate.memory_bytes else ""
        found.append(
            f"Fit here    encoding about {_minutes(estimate.encoding_seconds)} "
            f"({estimate.passages_per_second:.0f} passages/s){training}{memory}; disk {_size(estimate.disk_bytes)}"
        )
        return [*found, "", f"{self.outlook[:1].upper()}{self.outlook[1:]}: {self.recommendation}"]


_EVIDENCE_WORDS = {
    Evidence.LABELLED: "your labelled questions",
    Evidence.HUMAN: "questions and link texts that people wrote in the documents",
    Evidence.PARAPHRASE: "written by a language model",
    Evidence.CROP: "titles and sentences cut from the passages: they favour word search",
}


def diagnose(
    sources: Sequence[str | Path],
    config: FitConfig = FitConfig(),
    *,
    labels: Sequence[Labels] = (),
    passages: int = PASSAGES,
    queries: int = QUERIES,
    progress: Progress = no_progress,
) -> Diagnosis:
    """Whether tuning is likely to pay on these documents. Trains nothing and writes nothing.

    labels: the user's own queries, if there are any: they then measure. passages, queries: sizes of the sample that is
    measured. Raises EmptyCorpus, InvalidInput, ModelNotFound.
    """
    material = _gather(sources, config, labels, progress)
    evidence, asked = _quick_queries(material, queries, config.seed)
    sample = _sample(material, asked, passages, config.seed)
    quality, rate = _measure(material, asked, sample, progress)
    estimate = _estimate(material, config, rate)
    outlook, recommendation = recommend(
        material.survey,
        quality,
        evidence=evidence,
        whole=len(sample) == len(material.chunks),
        method=config.adapter.method,
    )
    return Diagnosis(material.survey, evidence, len(asked), len(sample), quality, estimate, outlook, recommendation)


def _quick_queries(material: _Material, most: int, seed: int) -> tuple[Evidence | None, list[Query]]:
    """Queries of the best rank that has enough of them, at most one for each passage, evenly over the documents."""
    rng = np.random.default_rng(seed)
    for rank in Evidence:
        of_rank = [query for query in (*material.labelled, *material.queries) if query.evidence is rank]
        order = rng.permutation(len(of_rank))
        chosen: dict[str, Query] = {}
        for at in order:
            query = of_rank[at]
            if query.positives and len(chosen) < most:
                key = query.id if rank is Evidence.LABELLED else query.positives[0]
                chosen.setdefault(key, query)
        if len(chosen) >= min(_FEWEST, most, len(material.chunks)):
            return rank, list(chosen.values())
    return None, []


def _sample(material: _Material, asked: Sequence[Query], most: int, seed: int) -> list[int]:
    """Positions, ascending: the passages that answer, then random others up to `most`."""
    place = {chunk.id: at for at, chunk in enumerate(material.chunks)}
    needed = dict.fromkeys(place[id] for query in asked for id in query.positives if id in place)
    rest = np.random.default_rng(seed).permutation(len(material.chunks)).tolist()
    for at in rest:
        if len(needed) >= most:
            break
        needed.setdefault(at)
    return sorted(needed)


def _measure(
    material: _Material, asked: Sequence[Query], sample: Sequence[int], progress: Progress
) -> tuple[tuple[Quality, ...], float]:
    """Quality by system, and tokens per second. A passage that a query was cut from is searched without its words."""
    from ragadapt.arena import build_arena
    from ragadapt.corpus import normalise
    from ragadapt.stages import Corpus, save_lexical
    from ragadapt.tuning import ranking

    chunks = tuple(material.chunks[at] for at in sample)
    corpus = Corpus(
        tuple(material.documents),
        chunks,
        tuple(material.groups[at] for at in sample),
        tuple(normalise(chunk.passage) for chunk in chunks),
    )
    encoder = material.encoder
    warm = corpus.passages[:8]
    encoder.encode_passages(warm)
    started = time.perf_counter()
    vectors = encoder.encode_passages(corpus.passages, progress=progress)
    seconds = time.perf_counter() - started
    rate = sum(material.token_counts[at] for at in sample) / max(seconds, 1e-6)
    if not asked:
        return (), rate
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        save_lexical(chunks, Path(folder))
        arena = build_arena(asked, encoder, corpus, vectors, Path(folder), material.grades, progress)
        measured = []
        for name, system in (("dense", "dense"), ("lexical", "lexical"), ("hybrid", "hybrid")):
            ranks = ranking(arena, system, k=100)  # type: ignore[arg-type]
            pairs = list(zip(arena.judged, ranks, strict=True))
            first = [item.rank_of_first(positions) for item, positions in pairs]
            measured.append(
                Quality(
                    name,
                    float(np.mean([item.ndcg(positions) for item, positions in pairs])),
                    float(np.mean([rank is not None and rank <= 10 for rank in first])),
                )
            )
        arena.searcher.lexical.close()
    return tuple(measured), rate


def recommend(
    survey: Survey,
    quality: Sequence[Quality],
    *,
    evidence: Evidence | None,
    whole: bool = True,
    method: str = "lora",
) -> tuple[Outlook, str]:
    """The one thing to do next, from the facts. whole: the measurement searched all passages, not a sample."""
    by = {one.system: one for one in quality}
    dense, lexical, best = by.get("dense"), by.get("lexical"), max(quality, key=lambda one: one.ndcg, default=None)
    if any("Use --model multilingual" in warning for warning in survey.warnings):
        return "wrong model", (
            "choose a base model that knows the documents' language first: that gains more than any tuning. "
            "Run the same command with --model multilingual."
        )
    gap = ""
    if dense is not None and lexical is not None and evidence is not Evidence.CROP:
        if lexical.ndcg - dense.ndcg > _GAP:
            gap = (
                f" Word search is ahead of the model by {lexical.ndcg - dense.ndcg:.2f} nDCG: the documents use words "
                "that the model does not know well, which tuning can teach it."
            )
        elif dense.ndcg - lexical.ndcg > _GAP:
            gap = f" The model is ahead of word search by {dense.ndcg - lexical.ndcg:.2f} nDCG; the mix will follow it."
    trusted = evidence in (Evidence.LABELLED, Evidence.HUMAN)
    if trusted and whole and best is not None and best.recall >= SATURATED and best.ndcg >= WELL_ORDERED:
        return "little to gain", (
            f"{best.system} search already answers {best.recall:.0%} of the questions in its first ten results, "
            f"nearly always at the top (nDCG@10 {best.ndcg:.2f}). "
            "`ragadapt fit` with --method none builds the retriever and learns the mix in a fraction of the time."
        )
    if not survey.trainable:
        return "no judge", (
            "the documents hold too few real questions to judge a trained model by (see Plan). `ragadapt fit` will "
            "learn the mix of dense and lexical search and keep the base model. For more, give 50 or more real "
            f"questions with --queries, or a language model with --generator.{gap}"
        )
    if method == "none":
        return "worth training", f"a trained model could be judged; leave --method none out to train one.{gap}"
    return "worth training", (
        f"{survey.plan.rstrip('.')}. Run `ragadapt fit`: what it trains ships only if it is shown to be better.{gap}"
    )


# A training step costs, per token of its texts, so many times what encoding that token costs: forward and backward
# through the trained layers, the gradient cache's second forward. Measured 1.7 on a CPU for half of the layers.
_STEP_COST = 3.5
_QUERY_TOKENS = 16
_DEV_POOL = 1000


def _estimate(material: _Material, config: FitConfig, rate: float) -> Estimate:
    facts, encoder = material.survey, material.encoder
    per_passage = facts.tokens / facts.chunks
    encoding = facts.tokens / rate
    training = 0.0
    if facts.trainable and config.adapter.method != "none":
        examples = len(material.plan.train) or config.query.generator_queries
        texts = (1 + config.mining.negatives) * per_passage + _QUERY_TOKENS
        steps_tokens = examples * texts * config.training.epochs
        if config.training.max_steps is not None:
            steps_tokens = min(steps_tokens, config.training.max_steps * config.training.batch_size * texts)
        looks = (config.training.evaluations + len(config.gate.interpolation) + 2) * _DEV_POOL * per_passage
        training = (_STEP_COST * _trained_share(encoder, config) * steps_tokens + looks) / rate
        if config.adapter.adapt == "both":
            training += facts.tokens / rate  # the passages once more, by the trained model
    vectors = facts.chunks * encoder.dim * 4
    peak = _peak_memory()
    return Estimate(
        passages_per_second=rate / per_passage,
        tokens_per_second=rate,
        encoding_seconds=encoding,
        training_seconds=training,
        memory_bytes=None if peak is None else peak + 2 * vectors,
        disk_bytes=vectors * 2 + facts.characters * 3,
    )


def _trained_share(encoder: Encoder, config: FitConfig) -> float:
    """Of the layers."""
    from ragadapt.encoder.prefix import layer_list

    found = layer_list(encoder.query_tower.model) if encoder.query_tower is not None else None
    if found is None or config.adapter.layers is None:
        return 1.0
    return min(1.0, config.adapter.layers / len(found[1]))


def _peak_memory() -> int | None:
    """Bytes that this process held at most; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{max(1, round(number / 1e6))} MB"


# The base model's language ---------------------------------------------------------------------------------

_ENGLISH_NAMES = re.compile(
    r"(^|[-_/.])en([-_.]|$)|all-(minilm|mpnet|distilroberta)|(^|/)(gte|e5|bge)-(small|base|large)(-v\d[\d.]*)?$"
    r"|msmarco-|multi-qa-|nomic-embed-text-v1|mxbai-embed-large|gte-modernbert|modernbert-embed",
    re.IGNORECASE,
)


def english_only(config: EncoderConfig) -> bool:
    """Whether the base model is known to read English alone: by its preset, its model card, or its name."""
    from ragadapt.encoder import PRESETS

    preset = PRESETS.get(config.model)
    if preset is not None and preset.model != "offline":
        return preset.reason.startswith("English")
    if preset is not None:
        return True  # all-MiniLM-L6-v2
    card = Path(config.model) / "README.md"
    if card.is_file():
        front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        listed = re.search(r"^language:[ \t]*((?:\S+)|(?:\n[ \t]*- *\S+)+)", front[1], re.MULTILINE) if front else None
        if listed:
            return set(re.findall(r"[a-z]{2,3}\b", listed[1])) == {"en"}
    return bool(_ENGLISH_NAMES.search(config.model)) and "multilingual" not in config.model.lower()


# A saved retriever ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was verified. detail: what was found."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Examination:
    """All checks of a saved retriever. Those that could not be reached after a failure are missing."""

    path: Path
    checks: tuple[Check, ...]

    @property
    def sound(self) -> bool:
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"path": str(self.path), "sound": self.sound, "checks": [asdict(check) for check in self.checks]}

    def lines(self) -> list[str]:
        """For a terminal."""
        width = max(len(check.name) for check in self.checks)
        marks = {True: "ok", False: "FAILED"}
        found = [f"{marks[check.passed]:<7} {check.name:<{width}}  {check.detail}" for check in self.checks]
        failed = sum(not check.passed for check in self.checks)
        return [
            *found,
            "",
            "The retriever is sound." if self.sound else f"{failed} of {len(self.checks)} checks failed.",
        ]


_PROBES = 16  # passages whose stored vectors are compared with fresh ones
_SAME_VECTOR = 0.99  # least cosine: precision and quantisation may differ, models may not


def examine(
    path: str | Path, *, device: str = "auto", precision: str = "auto", progress: Progress = no_progress
) -> Examination:
    """Verify a saved retriever: every file's hash, model and index belong together, counts agree, the adapter acts.

    Raises NotARetriever where there is none; anything else that is wrong becomes a failed check.
    """
    opened = open_store(path, "none")
    folder = opened.path
    checks: list[Check] = []
    progress("verify files", 0, 1)
    try:
        opened = open_store(folder, "full")
        size = sum(record.size for record in opened.manifest.files.values())
        checks.append(Check("files", True, f"{len(opened.manifest.files)} files, {_size(size)}: every hash is right"))
    except RagadaptError as error:
        checks.append(Check("files", False, str(error)))
    progress("verify files", 1, 1)
    try:
        checks += _examine_parts(folder, device, precision)
    except RagadaptError as error:
        checks.append(Check("opens", False, str(error)))
    return Examination(opened.path, tuple(checks))


def _examine_parts(folder: Path, device: str, precision: str) -> Iterable[Check]:
    from ragadapt.retriever import Retriever

    with Retriever.open(folder, device=device, precision=precision) as opened:
        retriever = opened.snapshot()
        encoder, index, lexical = retriever.encoder, retriever.searcher.index, retriever.searcher.lexical
        built = retriever.manifest.sections.get("precision", {}).get("dtype", encoder.precision.dtype)
        runs = encoder.precision.words + (f", built in {built}" if built != encoder.precision.dtype else "")
        checks = [Check("opens", True, f"{index.kind} index, {encoder.dim}-d, {runs}")]
        short = encoder.fingerprint[:12]
        same = index.fingerprint in (None, encoder.fingerprint)
        stored = "unknown" if index.fingerprint is None else index.fingerprint[:12]
        checks.append(
            Check("fingerprint", same, f"model {short}" + (", index the same" if same else f", index {stored}"))
        )
        counts = {"chunks": len(retriever.chunks), "vectors": len(index), "lexical": len(lexical)}
        detail = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        checks.append(Check("counts", len(set(counts.values())) == 1, detail))
        checks.append(_check_vectors(retriever))
        checks.append(_check_adapter(folder / "model", encoder))
        if retriever.has_feedback:
            checks.append(_check_feedback(retriever))
        return checks


def _check_feedback(retriever: Snapshot) -> Check:
    pefa = retriever.feedback()
    problems, status = pefa.problems(), pefa.status()
    detail = f"{status.active:,} in force on {status.passages:,} passages"
    if status.inactive:
        detail += f", {status.inactive:,} about passages that are gone"
    return Check("feedback", not problems, "; ".join(problems) or f"{detail}; ledger, vectors and search agree")


def _check_vectors(retriever: Snapshot) -> Check:
    ids = retriever.chunks.ids()
    probe = ids[:: max(1, len(ids) // _PROBES)][:_PROBES]
    fresh = retriever.encoder.encode_passages([chunk.passage for chunk in retriever.chunks.get(probe)])
    stored = retriever.searcher.index.vectors(probe)
    norms = np.maximum(np.linalg.norm(stored, axis=1) * np.linalg.norm(fresh, axis=1), 1e-12)
    least = float(np.min(np.sum(stored * fresh, axis=1) / norms))
    return Check(
        "vectors",
        least >= _SAME_VECTOR,
        f"{len(probe)} passages encoded anew: least cosine with the stored {least:.4f}",
    )


def _check_adapter(model: Path, encoder: Encoder) -> Check:
    adapter = encoder.spec.adapter
    if adapter is None or adapter.scale == 0:
        return Check("adapter", True, "none: the base model ships")
    what = f"{adapter.method}, rank {adapter.rank}, strength {adapter.scale:g}"
    if encoder.spec.with_adapter(None).fingerprint == encoder.fingerprint:
        return Check("adapter", False, f"{what}: the model's fingerprint is its base's")
    file = next(
        (
            found
            for found in (model / "adapter" / "adapter_model.safetensors", model / "adapter_model.safetensors")
            if found.is_file()
        ),
        None,
    )
    if file is None:
        return Check("adapter", adapter.method == "full", f"{adapter.method}: its weights are part of the model")
    from safetensors.numpy import load_file

    squares = [float(np.sum(np.square(t, dtype=np.float64))) for name, t in load_file(file).items() if "lora_B" in name]
    norm = float(np.sqrt(sum(squares)))
    return Check(
        "adapter", norm > 0, f"{what}: its B matrices have norm {norm:.3g}" + ("" if norm else ", it does nothing")
    )
