"""One judged question at a time: what it expects, at which place each search has it, and why it was missed.

Everything works on rankings of passages as plain lists, best first, so that it holds for any search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from ragadapt.corpus import near_duplicate_groups
from ragadapt.queries import EvidenceQuote, LabelledSet, document_finder, evidence_hits, quote_share
from ragadapt.queries.labels import MIN_QUOTE_SHARE
from ragadapt.text import rough_tokens
from ragadapt.values import Chunk

DEPTH = 100
"""How far down either side is looked at."""

TOKENS = 1024
"""Of what a language model is given, where passages of different sizes are compared (`rough_tokens`)."""

_WINDOW = 6  # passages in a row that may hold a quote together
_COMPARED = 60  # passages of a long document that are compared with what was found


class Missed(StrEnum):
    """Why what a question expects is not among its first results. The first that holds, in this order."""

    NO_DOCUMENT = "no-document"
    NOT_IN_TEXT = "not-in-text"
    CUT_APART = "cut-apart"
    COPY = "copy"
    CROWDED = "crowded-out"
    SAME_DOCUMENT = "same-document"
    RERANKED = "re-ranked"
    OUTVOTED = "outvoted"
    OUT_OF_REACH = "out-of-reach"
    LOW = "low"


MISSED: Mapping[Missed, str] = {
    Missed.NO_DOCUMENT: "no document here has the name that the label gives",
    Missed.NOT_IN_TEXT: "no passage holds the quote",
    Missed.CUT_APART: "passages hold the quote only together: it was cut apart",
    Missed.COPY: "a passage that says nearly the same stands in its place",
    Missed.CROWDED: "copies of one text fill the places above it",
    Missed.SAME_DOCUMENT: "the right document is found, by other passages of it",
    Missed.RERANKED: "the re-ranker moved it down",
    Missed.OUTVOTED: "one side has it among its first, the mix does not",
    Missed.OUT_OF_REACH: f"below the first {DEPTH} on both sides",
    Missed.LOW: "ranked too low by both sides",
}
"""What each reason means, for a reader."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One thing that a question expects: a quote, a document or a passage.

    holders: ids of the passages that have it, best first; () = none here does. document: its id, None = not here.
    whole: the document was judged, not a passage of it.
    """

    text: str
    source: str
    holders: tuple[str, ...] = ()
    document: str | None = None
    whole: bool = False
    quote: EvidenceQuote | None = None

    def rank(self, ranking: Sequence[Chunk]) -> int | None:
        """From 1, of the first passage that has it; of whole documents, among documents. None = it is not there.

        By what a passage says and where it stands, so that passages of another retriever count, too.
        """
        if self.whole:
            documents = list(dict.fromkeys(chunk.document_id for chunk in ranking))
            return documents.index(self.document) + 1 if self.document in documents else None
        for rank, chunk in enumerate(ranking, start=1):
            if self.held_by(chunk):
                return rank
        return None

    def held_by(self, chunk: Chunk) -> bool:
        """Whether the passage answers."""
        if self.whole:
            return chunk.document_id == self.document
        if self.quote is not None:
            return evidence_hits(chunk, self.quote)
        return chunk.id in self.holders and chunk.text == self.text  # another retriever cuts other passages of that id


@dataclass(frozen=True, slots=True)
class Question:
    """A judged question. judgements: unit id (document, else passage) → grade; empty where nothing here answers.
    quotes: its evidence, those quotes included that no passage holds."""

    id: str
    text: str
    wanted: tuple[Wanted, ...]
    judgements: Mapping[str, int] = field(default_factory=dict)
    quotes: tuple[EvidenceQuote, ...] = ()


@dataclass(frozen=True)
class Asked:
    """The questions of a label file, for one set of passages. whole: documents were judged."""

    questions: tuple[Question, ...]
    chunks: tuple[Chunk, ...]
    whole: bool

    @classmethod
    def of(cls, labels: LabelledSet, chunks: Sequence[Chunk]) -> Asked:
        """Questions with quotes that no passage holds are among them: they are missed by every search."""
        whole = bool(labels.document_positives)
        by_id = {chunk.id: chunk for chunk in chunks}
        sources = {chunk.document_id: chunk.source for chunk in chunks}
        find = document_finder(chunks)
        made = []
        for id, text in labels.texts.items():
            quotes = labels.evidence.get(id, ())
            grades = labels.grades.get(id, {})
            judged: dict[str, int] = {}
            if whole:
                judged = dict.fromkeys(labels.document_positives.get(id, ()), 1)
                for passage, grade in grades.items():
                    document = by_id[passage].document_id
                    judged[document] = max(judged.get(document, 0), int(grade))
                wanted = [
                    Wanted(document, sources[document], (), document, True)
                    for document, grade in judged.items()
                    if grade > 0
                ]
            elif quotes:
                holding = [by_id[passage] for passage, grade in grades.items() if grade > 0]
                wanted = [_wanted_quote(quote, holding, find) for quote in quotes]
            else:
                wanted = [
                    Wanted(by_id[passage].text, by_id[passage].source, (passage,), by_id[passage].document_id)
                    for passage, grade in grades.items()
                    if grade > 0
                ]
            if not whole:
                judged = {passage: int(grade) for passage, grade in grades.items()}
            made.append(Question(id, text, tuple(wanted), judged, tuple(quotes)))
        return cls(tuple(made), tuple(chunks), whole)

    @cached_property
    def chunk_of(self) -> dict[str, Chunk]:
        """Passage id → passage."""
        return {chunk.id: chunk for chunk in self.chunks}

    @cached_property
    def of_document(self) -> dict[str, list[Chunk]]:
        """Document id → its passages, in order."""
        found: dict[str, list[Chunk]] = {}
        for chunk in self.chunks:
            found.setdefault(chunk.document_id, []).append(chunk)
        return found

    @property
    def judged(self) -> dict[str, dict[str, int]]:
        """Query id → unit id → grade, of the questions that something here answers."""
        return {
            question.id: dict(question.judgements)
            for question in self.questions
            if any(grade > 0 for grade in question.judgements.values())
        }


def _wanted_quote(quote: EvidenceQuote, holding: Sequence[Chunk], find: Callable[[str], str | None]) -> Wanted:
    holders = [chunk for chunk in holding if evidence_hits(chunk, quote)]
    document = holders[0].document_id if holders else find(quote.source)
    return Wanted(quote.quote, quote.source, tuple(chunk.id for chunk in holders), document, False, quote)


# What a ranking is worth


def quote_measures(ranking: Sequence[Chunk], quotes: Sequence[EvidenceQuote], tokens: int = TOKENS) -> dict[str, float]:
    """Metric → value of passages, best first, by the quotes that they hold: comparable whatever the passages are.

    RR@10: 1 / rank of the first passage with a quote. Evidence recall: share of the quotes that the first passages
    hold, by number or within a budget of tokens, the passage that goes beyond it included as far as it fits.
    """
    ranks = [
        next((rank for rank, chunk in enumerate(ranking, start=1) if evidence_hits(chunk, quote)), math.inf)
        for quote in quotes
    ]
    first = min(ranks)
    return {
        "RR@10": 1 / first if first <= 10 else 0.0,
        "evidence recall@5": sum(rank <= 5 for rank in ranks) / len(ranks),
        "evidence recall@10": sum(rank <= 10 for rank in ranks) / len(ranks),
        recall_metric(tokens): recall_within(ranking, quotes, tokens),
    }


def recall_metric(tokens: int) -> str:
    """What `recall_within` is called in reports."""
    return f"evidence recall, {tokens:,} tokens"


def recall_within(ranking: Iterable[Chunk], quotes: Sequence[EvidenceQuote], tokens: int) -> float:
    """Share of the quotes that stand in the first passages of a ranking, up to so many tokens of text together; the
    last passage is cut where the budget ends."""
    given: list[Chunk] = []
    left = tokens
    for chunk in ranking:
        if left <= 0:
            break
        size = rough_tokens(chunk.text)
        if size > left:
            share = left / size
            chunk = Chunk(chunk.id, chunk.document_id, chunk.text[: int(share * len(chunk.text))], source=chunk.source)
        given.append(chunk)
        left -= size
    return sum(any(evidence_hits(chunk, quote) for chunk in given) for quote in quotes) / len(quotes)


# Why something was missed


@dataclass(frozen=True, slots=True)
class FoundBySide:
    """What the search found for one question, and its parts: passages, best first, DEPTH of each.

    first_stage: before the re-ranker; None where there is none.
    """

    shipped: Sequence[Chunk]
    dense: Sequence[Chunk]
    lexical: Sequence[Chunk]
    first_stage: Sequence[Chunk] | None = None


def why_missed(wanted: Wanted, found: FoundBySide, asked: Asked, k: int) -> tuple[Missed, str]:
    """Why it is not among the first k, and a sentence that says so with the figures."""
    holders = [asked.chunk_of[id] for id in wanted.holders]
    if wanted.whole:
        holders = asked.of_document.get(wanted.document or "", [])[:_COMPARED]
    if not holders:
        return _not_held(wanted, asked)
    rank, dense, lexical = (wanted.rank(side) for side in (found.shipped, found.dense, found.lexical))
    places = f"dense {_place(dense)}, lexical {_place(lexical)}, mixed {_place(rank)}"
    # A document's rank counts documents, so what stands above it is looked for among passages.
    above = list(found.shipped)
    if (at := next((at for at, chunk in enumerate(above) if wanted.held_by(chunk)), None)) is not None:
        above = above[:at]
    first = above[:k]
    groups = near_duplicate_groups([chunk.passage for chunk in [*holders, *above]])
    own = set(groups[: len(holders)])
    of_above = groups[len(holders) :]
    copy = next((at for at, group in enumerate(of_above[:k]) if group in own), None)
    if copy is not None:
        return Missed.COPY, f"{first[copy].id}, at rank {copy + 1}, says nearly the same. {_upper(places)}."
    if at is not None and len(set(of_above)) < k <= len(above):
        return (
            Missed.CROWDED,
            f"{len(above)} passages stand above it, {len(set(of_above))} if copies counted once. {_upper(places)}.",
        )
    others = [place for place, chunk in enumerate(first, start=1) if chunk.document_id == wanted.document]
    if others and not wanted.whole:
        many = f"{len(others)} other passages of it are" if len(others) > 1 else "another passage of it is"
        return (
            Missed.SAME_DOCUMENT,
            f"{_upper(many)} among the first {k}, the first at rank {others[0]}. This one: {places}.",
        )
    before = None if found.first_stage is None else wanted.rank(found.first_stage)
    if before is not None and before <= k:
        return Missed.RERANKED, f"Rank {before} before the re-ranker read it, {_place(rank)} after. {_upper(places)}."
    if min(dense or math.inf, lexical or math.inf) <= k:
        return Missed.OUTVOTED, f"{_upper(places)}."
    if dense is None and lexical is None:
        return Missed.OUT_OF_REACH, f"Neither side has it among its first {DEPTH}."
    return Missed.LOW, f"{_upper(places)}."


def _not_held(wanted: Wanted, asked: Asked) -> tuple[Missed, str]:
    if wanted.document is None:
        return Missed.NO_DOCUMENT, f"No single document is called {wanted.source!r}."
    passages = asked.of_document.get(wanted.document, [])
    for width in range(2, min(len(passages), _WINDOW) + 1):
        for start in range(len(passages) - width + 1):
            together = passages[start : start + width]
            if quote_share(_joined(together), wanted.text) >= MIN_QUOTE_SHARE:
                shares = ", ".join(f"{quote_share(chunk.text, wanted.text):.0%}" for chunk in together)
                return (
                    Missed.CUT_APART,
                    f"{together[0].id} to {together[-1].id} hold it together (each alone: {shares} of its word "
                    "triples). Larger passages or an overlap would keep it whole.",
                )
    best = max((quote_share(chunk.text, wanted.text) for chunk in passages), default=0.0)
    return (
        Missed.NOT_IN_TEXT,
        f"The nearest passage of {wanted.document} has {best:.0%} of its word triples: another version of the text, or "
        "a part that was not read?",
    )


def _joined(chunks: Sequence[Chunk]) -> str:
    """Passages in a row as one text; what they share is said once."""
    text, end = chunks[0].text, chunks[0].end
    for chunk in chunks[1:]:
        shared = max(0, end - chunk.start) if chunk.end > chunk.start else 0
        text += "\n" + chunk.text[shared:]
        end = max(end, chunk.end)
    return text


def _place(rank: int | None) -> str:
    return f"below {DEPTH}" if rank is None else f"rank {rank}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
