"""The user's own labelled queries: BEIR files, TREC judgements, or questions with quoted evidence."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ragadapt.checks import checked_path, shown
from ragadapt.errors import InvalidInput, InvalidLabels
from ragadapt.files import parse_object, read_lines
from ragadapt.queries.filters import replace_positives
from ragadapt.queries.text import words
from ragadapt.text import grouped, is_encodable
from ragadapt.values import Chunk, Document, Evidence, Query

log = logging.getLogger(__name__)

MIN_QUOTE_SHARE = 0.5
"""A chunk holds a quote if it contains it, or at least this share of its word trigrams."""


@dataclass(frozen=True, slots=True)
class EvidenceQuote:
    """A passage that answers a question, by its words: it survives any re-chunking."""

    source: str
    quote: str


class UnreadLine(tuple[str, str]):
    """(where, why) of a line that is no query or judgement at all: somebody has to mend it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Labelled queries matched to a corpus.

    queries: those with at least one relevant chunk; kind "label", positives best grade first.
    unmatched: (where, why) of every line, judgement or evidence that could not be used.
    grades: query id → chunk id → grade, grades of 0 included; a judged document's grade holds for all its chunks.
    document_positives: query id → document ids judged relevant as wholes; empty for judged chunks and evidence.
    evidence: query id → its quotes, those included that no chunk holds (they count as not found).
    quotes_not_found: how many of these quotes no chunk holds. texts: query id → text of all these queries, those whose
    quotes no chunk holds included.
    """

    queries: list[Query]
    unmatched: list[tuple[str, str]] = field(default_factory=list)
    grades: dict[str, dict[str, float]] = field(default_factory=dict)
    document_positives: dict[str, tuple[str, ...]] = field(default_factory=dict)
    evidence: dict[str, tuple[EvidenceQuote, ...]] = field(default_factory=dict)
    quotes_not_found: int = 0
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def unread(self) -> int:
        """How many lines of the files hold no query or judgement that can be read."""
        return sum(isinstance(problem, UnreadLine) for problem in self.unmatched)


def load_labels(
    queries_path: str | Path,
    qrels_path: str | Path | None = None,
    *,
    chunks: Sequence[Chunk],
    documents: Sequence[Document] = (),
) -> LabelledSet:
    """Read labelled queries and match them to the corpus.

    queries_path: one JSON object a line, with "text" (or "query") and "_id" (or "id"; the line number
    without one). Judgements are either quotes in the line, "evidence": [{"source", "quote"}], or the
    rows of qrels_path: query-id, corpus-id, score (header or not), or TREC's query 0 document grade.
    corpus-id: a document's id or source, or a chunk's id. Queries that qrels_path does not judge are
    left out silently, as a queries file serves several splits; so are lines with "skipped": true. Raises
    InvalidLabels if a file cannot be read, or nothing matches.
    """
    queries_path = checked_path(queries_path, "queries")
    qrels_path = None if qrels_path is None else checked_path(qrels_path, "qrels")
    unmatched: list[tuple[str, str]] = []
    asked = list(_read_queries(queries_path, unmatched))
    if not asked:
        why = f" First problem: {unmatched[0][0]}: {unmatched[0][1]}." if unmatched else ""
        raise InvalidLabels(f'{queries_path} holds no query. Each line is JSON like {{"_id": "1", "text": "…"}}.{why}')
    if qrels_path is None and not any(quotes for _, _, _, quotes in asked):
        raise InvalidLabels(
            f"{queries_path} has {len(asked)} queries and no judgement. Pass a qrels file, or give each line"
            ' "evidence": [{"source": …, "quote": …}].'
        )
    targets = _LabelTargets(chunks, documents)
    grades: defaultdict[str, dict[str, float]] = defaultdict(dict)
    wholes: defaultdict[str, dict[str, float]] = defaultdict(dict)
    evidence: dict[str, tuple[EvidenceQuote, ...]] = {}
    quotes_not_found = 0
    known = {query_id for query_id, *_ in asked}
    for query_id, _, where, quotes in asked:
        if quotes:
            evidence[query_id] = tuple(quotes)
            listed = len(unmatched)
            grades[query_id] |= _grade_evidence(quotes, targets, where, unmatched)
            quotes_not_found += len(unmatched) - listed
    judged: list[tuple[str, str, str, float]] = []
    if qrels_path is not None:
        judged = list(_read_qrels(Path(qrels_path), unmatched))
        _grade_judgements(judged, known, targets, grades, wholes, unmatched)
    queries = []
    for query_id, text, where, _ in asked:
        if query_id not in grades and query_id not in wholes:
            continue
        positives = _positives(grades[query_id])
        if positives:
            queries.append(Query(query_id, text, "label", Evidence.LABELLED, positives))
        elif query_id not in evidence:  # its quotes have been reported one by one
            unmatched.append((where, f"query {query_id!r} has no judgement above 0 in this corpus"))
    if not queries:
        if qrels_path is not None and not judged:
            named = Path(qrels_path).name
            first = next((f" First problem: {at}: {what}." for at, what in unmatched if at.startswith(named)), "")
            raise InvalidLabels(f"{qrels_path} holds no judgement. A row is query-id, corpus-id, score.{first}")
        raise InvalidLabels(_nothing_matched(queries_path, qrels_path, judged, evidence, targets, known))
    if unmatched:
        said = "\n".join(grouped(unmatched))
        log.warning("%s: %d labels could not be used:\n%s", queries_path, len(unmatched), said)
    kept = {query.id for query in queries}
    return LabelledSet(
        queries,
        unmatched,
        {query_id: graded for query_id, graded in grades.items() if query_id in kept},
        {id: tuple(_positives(graded)) for id, graded in wholes.items() if id in kept and _positives(graded)},
        evidence,
        quotes_not_found,
        {query_id: text for query_id, text, *_ in asked if query_id in kept or query_id in evidence},
    )


def has_evidence(path: Path) -> bool:
    """Whether any line of a queries file quotes its evidence. Raises InvalidLabels where it cannot be read."""
    if path.suffix.lower() == ".txt":
        return False
    unread: list[tuple[str, str]] = []
    return any(quotes for _, _, _, quotes in _read_queries(path, unread)) or bool(
        [why for _, why in unread if why.startswith("evidence")]
    )


def load_questions(path: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Questions without answers, and (where, why) of every line that holds none.

    A .txt file has one a line; any other is jsonl as in `load_labels`. Raises InvalidLabels if there is none.
    """
    unread: list[tuple[str, str]] = []
    if path.suffix.lower() == ".txt":
        asked = []
        for number, line in _lines(path):
            if line.strip() and not is_encodable(line):
                unread.append((f"{path.name}:{number}", "it is not UTF-8 text"))
            elif line.strip():
                asked.append(line.strip())
    else:
        asked = [text for _, text, _, _ in _read_queries(path, unread)]
    wordless = {text for text in asked if "\0" in text or not any(map(str.isalnum, text))}
    unread += [(path.name, f"{shown(text)!r} has no word") for text in asked if text in wordless]
    asked = [text for text in asked if text not in wordless]
    if not asked:
        why = f" First problem: {unread[0][0]}: {unread[0][1]}." if unread else ""
        raise InvalidLabels(f'{path} holds no question. A .txt file has one a line, jsonl {{"text": …}}.{why}')
    return asked, unread


def narrow_to_best_chunk(
    queries: Sequence[Query],
    score: Callable[[Query, Sequence[str]], Sequence[float]],
    *,
    document_of: Mapping[str, str] | None = None,
) -> list[Query]:
    """The queries with one positive for each judged document: the chunk that scores best.

    score(query, chunk ids): one number per chunk, larger is better. document_of: chunk id → document
    id; None = one positive in all. For training: most chunks of a relevant document do not answer the
    query. The others stay in `LabelledSet.grades`, so that none is taken for a negative.
    """
    narrowed = []
    for query in queries:
        scores = dict(zip(query.positives, score(query, query.positives), strict=True))
        best: dict[str, str] = {}
        for chunk_id in query.positives:
            document = document_of[chunk_id] if document_of is not None else ""
            if document not in best or scores[chunk_id] > scores[best[document]]:
                best[document] = chunk_id
        narrowed.append(replace_positives(query, tuple(best.values())))
    return narrowed


def evidence_hits(chunk: Chunk, evidence: EvidenceQuote) -> bool:
    """Whether the chunk is of the evidence's source and holds its quote (see MIN_QUOTE_SHARE)."""
    return (
        same_source(evidence.source, chunk.source, chunk.document_id)
        and quote_share(chunk.text, evidence.quote) >= MIN_QUOTE_SHARE
    )


def evidence_recall(ranking: Iterable[Chunk], evidence: Sequence[EvidenceQuote], k: int) -> float:
    """Share of the evidences that the first k chunks of a ranking hold: evidence recall@k of one question."""
    if not evidence:
        raise InvalidLabels("A question without evidence has no evidence recall.")
    top = [chunk for chunk, _ in zip(ranking, range(k))]
    return sum(any(evidence_hits(chunk, quote) for chunk in top) for quote in evidence) / len(evidence)


def quote_share(text: str, quote: str) -> float:
    """1 if the text contains the quote (case, blanks and punctuation aside), else the share of its word trigrams."""
    said, wanted = _tokens(text), _tokens(quote)
    if not wanted:
        return 0.0
    if f" {' '.join(wanted)} " in f" {' '.join(said)} ":
        return 1.0
    trigrams = _trigrams(wanted)
    return len(trigrams & _trigrams(said)) / len(trigrams) if trigrams else 0.0


@lru_cache(maxsize=8192)
def _tokens(text: str) -> tuple[str, ...]:
    return tuple(words(text.replace("_", " ")))


@lru_cache(maxsize=8192)
def _trigrams(tokens: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
    return frozenset(zip(tokens, tokens[1:], tokens[2:]))


def _path(source: str) -> tuple[str, ...]:
    return tuple(part for part in source.replace("\\", "/").split("/") if part not in ("", "."))


def _ends_with(long: tuple[str, ...], short: tuple[str, ...]) -> bool:
    return 0 < len(short) <= len(long) and long[-len(short) :] == short


def same_source(source: str, own_source: str, document_id: str) -> bool:
    """Whether a label's source names this document: by its source or id, or by the end of its path."""
    if source in (own_source, document_id):
        return True
    wanted = _path(source)
    return any(_ends_with(own, wanted) or _ends_with(wanted, own) for own in (_path(own_source), _path(document_id)))


def document_finder(chunks: Sequence[Chunk]) -> Callable[[str], str | None]:
    """What a label calls a document (its id, its source, the end of its path) → its id; None where none is meant, or
    several may be."""
    return _LabelTargets(chunks, ()).document


class _LabelTargets:
    """Finds documents and chunks by what a label calls them."""

    def __init__(self, chunks: Sequence[Chunk], documents: Sequence[Document]) -> None:
        self.chunk_ids = {chunk.id for chunk in chunks}
        self.of_document: defaultdict[str, list[Chunk]] = defaultdict(list)
        sources: dict[str, str] = {document.id: document.source for document in documents}
        for chunk in chunks:
            self.of_document[chunk.document_id].append(chunk)
            sources.setdefault(chunk.document_id, chunk.source)
        self.exact: dict[str, str | None] = {}
        self.by_last: defaultdict[str, set[tuple[tuple[str, ...], str]]] = defaultdict(set)
        for document_id, source in sources.items():
            for name in {source, document_id} - {""}:
                path = _path(name)
                if path:
                    self.by_last[path[-1]].add((path, document_id))
            if source:
                # Rows of one table share their source: such a name stands for no single document.
                self.exact[source] = None if self.exact.get(source, document_id) != document_id else document_id
        self.exact |= {document_id: document_id for document_id in sources}

    def document(self, name: str) -> str | None:
        """The document with this id or source, or the only one whose path ends so (or is the end of it)."""
        if name in self.exact:
            return self.exact[name]
        wanted = _path(name)
        ends = self.by_last.get(wanted[-1], set()) if wanted else set()
        found = {id for path, id in ends if _ends_with(path, wanted) or _ends_with(wanted, path)}
        return found.pop() if len(found) == 1 else None


def _read_queries(path: Path, unmatched: list[tuple[str, str]]) -> Iterator[tuple[str, str, str, list[EvidenceQuote]]]:
    seen: set[str] = set()
    for number, line in _lines(path):
        where = f"{path.name}:{number}"
        try:
            row = parse_object(line)
        except InvalidInput as error:
            unmatched.append(UnreadLine((where, str(error))))
            continue
        text = row.get("text", row.get("query", row.get("question")))
        if not isinstance(text, str) or not text.strip():
            unmatched.append(UnreadLine((where, 'no "text" (or "query")')))
            continue
        if row.get("skipped") is True:  # put aside by whoever labelled
            continue
        named = next((row[key] for key in ("_id", "id") if row.get(key) is not None), number)
        if isinstance(named, bool | list | dict):
            unmatched.append(UnreadLine((where, f"the id is {shown(named)}, and a string or number is needed")))
            continue
        query_id = str(named)
        if query_id in seen:
            unmatched.append((where, f"query id {query_id!r} stands twice; the first is kept"))
            continue
        seen.add(query_id)
        yield query_id, text.strip(), where, list(_quotes(row.get("evidence"), where, unmatched))


def _quotes(value: Any, where: str, unmatched: list[tuple[str, str]]) -> Iterator[EvidenceQuote]:
    for entry in value if isinstance(value, list) else [] if value is None else [value]:
        source, quote = (entry.get("source"), entry.get("quote")) if isinstance(entry, dict) else (None, None)
        if isinstance(source, str) and isinstance(quote, str) and words(quote):
            yield EvidenceQuote(source, quote)
        else:
            unmatched.append((where, 'evidence needs "source" and a "quote" with words in it'))


def _read_qrels(path: Path, unmatched: list[tuple[str, str]]) -> Iterator[tuple[str, str, str, float]]:
    """(where, query id, corpus id, grade) of every row that can be read."""
    for number, line in _lines(path):
        where = f"{path.name}:{number}"
        if not is_encodable(line):
            unmatched.append(UnreadLine((where, "it is not UTF-8 text")))
            continue
        columns = line.split("\t") if "\t" in line else line.split()
        columns = [column.strip() for column in columns]
        if len(columns) >= 4 and "\t" not in line:  # TREC; a path may hold blanks
            columns = [columns[0], " ".join(columns[2:-1]), columns[-1]]
        elif len(columns) == 4:
            columns = [columns[0], columns[2], columns[3]]
        if len(columns) != 3 or not all(columns):
            unmatched.append(UnreadLine((where, "not query-id, corpus-id, score (or TREC's four columns)")))
            continue
        try:
            grade = float(columns[2])
        except ValueError:
            if number > 1:
                unmatched.append(UnreadLine((where, f"score {shown(columns[2])} is not a number")))
            continue
        if not math.isfinite(grade):
            unmatched.append(UnreadLine((where, f"score {shown(columns[2])} is not a finite number")))
            continue
        yield where, columns[0], columns[1], grade


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        yield from read_lines(path)
    except FileNotFoundError as error:
        raise InvalidLabels(f"There is no file {path}.") from error
    except OSError as error:
        raise InvalidLabels(f"{path} cannot be read: {error}.") from error


def _grade_evidence(
    quotes: Sequence[EvidenceQuote], targets: _LabelTargets, where: str, unmatched: list[tuple[str, str]]
) -> dict[str, float]:
    graded: dict[str, float] = {}
    for quote in quotes:
        document_id = targets.document(quote.source)
        if document_id is None:
            unmatched.append((where, f"no single document is called {quote.source!r}"))
            continue
        shares = [(chunk, quote_share(chunk.text, quote.quote)) for chunk in targets.of_document[document_id]]
        holding = [(chunk, share) for chunk, share in shares if share >= MIN_QUOTE_SHARE]
        if not holding:
            best = max((share for _, share in shares), default=0.0)
            what = f"no chunk of {quote.source!r} holds the quote {quote.quote[:60]!r}"
            unmatched.append((where, f"{what} (best: {best:.0%} of its trigrams)"))
        for chunk, share in holding:
            graded[chunk.id] = max(graded.get(chunk.id, 0.0), 1.0 if share == 1 else share)
    # Grades say relevant or not; a chunk with the whole quote only comes first.
    order = sorted(graded, key=lambda chunk_id: -graded[chunk_id])
    return dict.fromkeys(order, 1.0)


def _grade_judgements(
    judged: Iterable[tuple[str, str, str, float]],
    known: set[str],
    targets: _LabelTargets,
    grades: defaultdict[str, dict[str, float]],
    wholes: defaultdict[str, dict[str, float]],
    unmatched: list[tuple[str, str]],
) -> None:
    for where, query_id, corpus_id, grade in judged:
        if query_id not in known:
            unmatched.append((where, f"no query has the id {query_id!r}"))
            continue
        document_id = targets.document(corpus_id)
        if document_id is not None:
            wholes[query_id][document_id] = grade
            for chunk in targets.of_document[document_id]:
                grades[query_id][chunk.id] = max(grade, grades[query_id].get(chunk.id, grade))
        elif corpus_id in targets.chunk_ids:
            grades[query_id][corpus_id] = grade
        else:
            unmatched.append((where, f"neither a document nor a chunk is called {corpus_id!r}"))


def _positives(graded: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(sorted((id for id, grade in graded.items() if grade > 0), key=lambda id: -graded[id]))


def _nothing_matched(
    queries_path: Path,
    qrels_path: str | Path | None,
    judged: Sequence[tuple[str, str, str, float]],
    evidence: Mapping[str, Sequence[EvidenceQuote]],
    targets: _LabelTargets,
    known: set[str],
) -> str:
    def some(ids: Iterable[str]) -> str:
        return ", ".join(repr(id) for id, _ in zip(dict.fromkeys(ids), range(3))) or "none"

    here = f"documents here are called {some(name for name in targets.exact)}"
    if judged and known.isdisjoint(query_id for _, query_id, _, _ in judged):
        asked = some(query_id for _, query_id, _, _ in judged)
        return (
            f"No judgement in {qrels_path} is about a query in {queries_path}: judged are {asked}; queries are"
            f" {some(sorted(known))}. Pass the qrels that belong to these queries."
        )
    if judged:
        wanted = some(corpus_id for _, _, corpus_id, _ in judged)
        return f"No label matches the corpus: {qrels_path} judges {wanted}; {here}. Use those names as corpus-id."
    sources = some(quote.source for quotes in evidence.values() for quote in quotes)
    quote = next((quote.quote for quotes in evidence.values() for quote in quotes), "")[:60]
    return (
        f"No label matches the corpus: evidence in {queries_path} names {sources} and quotes {quote!r};"
        f" {here}. Sources must end like a document's path, and quotes must stand in it."
    )
