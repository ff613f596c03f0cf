"""Queries from the documents' own structure: no model, no network."""

from __future__ import annotations

import hashlib
import logging
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragadapt.config import QueryConfig
from ragadapt.errors import InvalidConfiguration
from ragadapt.queries.code import code_name, definitions, is_code, summary_text
from ragadapt.queries.filters import chance, clean_queries, is_boilerplate, is_navigation
from ragadapt.queries.keywords import KeywordModel
from ragadapt.queries.kinds import KINDS, STRUCTURAL, evidence_of, masked_passage
from ragadapt.queries.text import (
    CJK,
    STOP_WORDS,
    TextBlock,
    any_of,
    blocks,
    content_terms,
    identifier_words,
    is_cjk,
    is_question,
    length,
    letter_share,
    plain,
    plain_heading,
    sentences,
    word_set,
    words,
)
from ragadapt.values import Chunk, Document, Evidence, Progress, Query, no_progress

if TYPE_CHECKING:
    from ragadapt.corpus import Link

log = logging.getLogger(__name__)

MIN_WORDS_LEFT = 8
"""A passage must say at least this much when the query cut from it is hidden, or there is nothing to match."""

LONG_PAGE = 8
"""Chunks up to which a link to a page's head is taken to mean the whole page."""


def structural_queries(
    documents: Sequence[Document],
    chunks: Sequence[Chunk],
    links: Sequence[Link],
    config: QueryConfig,
    *,
    seed: int,
    progress: Progress = no_progress,
) -> list[Query]:
    """Queries of every structural kind, filtered, capped and evenly sampled (see `clean_queries`).

    chunks: in document order. links: whatever internal links were found. The same input and seed give
    the same queries, and a document's candidates do not hang on the other documents, save for what is
    generic or salient across the corpus. Raises InvalidConfiguration for an unknown kind in config.kinds.
    """
    wanted = _wanted(config)
    lookup = _ChunkLookup(documents, chunks)
    found: list[Query] = []
    if wanted & {"title", "question"}:
        found += _from_titles(lookup)
    if wanted & {"heading", "question", "identifier"}:
        found += _from_headings(lookup)
    if "link" in wanted:
        found += _from_links(lookup, links)
    # Cutting text out is cheap to repeat and plentiful: no more chunks are read than queries are wanted.
    cut = set(sorted((chunk.id for chunk in chunks), key=lambda id: chance(seed, id))[: config.max_queries])
    keywords = KeywordModel(chunks, lookup.is_code, seed=seed) if "keywords" in wanted else None
    for done, chunk in enumerate(chunks):
        if done % 1000 == 0:
            progress("queries", done, len(chunks))
        if lookup.is_code(chunk):
            if wanted & {"docstring", "identifier"}:
                found += _from_code(chunk)
        else:
            if "question" in wanted:
                found += _from_questions(lookup, chunk)
            if chunk.id in cut and wanted & {"sentence", "crop"}:
                found += _from_sentences(chunk, random.Random(f"{seed}:{chunk.id}"))
        if keywords is not None and chunk.id in cut:
            text = keywords.query(chunk, random.Random(f"{seed}:keywords:{chunk.id}"))
            if text:
                found.append(_query(text, "keywords", (chunk.id,)))
    progress("queries", len(chunks), len(chunks))
    found = [
        query
        for query in found
        if query.kind in wanted
        and (query.evidence is not Evidence.CROP or query.positives[0] in cut)
        and lookup.leaves_enough(query)
    ]
    return clean_queries(found, chunks, config, seed=seed)


def _wanted(config: QueryConfig) -> set[str]:
    unknown = [kind for kind in config.kinds if kind not in KINDS and not kind.startswith("lm-")]
    if unknown:
        raise InvalidConfiguration(f"query.kinds has {unknown[0]!r}. Kinds are: {', '.join(KINDS)}.")
    return set(config.kinds) & set(STRUCTURAL) if config.kinds else set(STRUCTURAL)


def _query(
    text: str,
    kind: str,
    positives: tuple[str, ...],
    *,
    evidence: Evidence | None = None,
    span: tuple[int, int] | None = None,
) -> Query:
    key = f"{kind}\0{text}\0{positives[0]}".encode()
    name = f"{kind}-{hashlib.blake2b(key, digest_size=6).hexdigest()}"
    return Query(name, text, kind, evidence or evidence_of(kind), positives, span)


class _ChunkLookup:
    """Chunks by document, by section and by id; titles; which chunks are code."""

    def __init__(self, documents: Sequence[Document], chunks: Sequence[Chunk]) -> None:
        self.chunks: Mapping[str, Chunk] = {chunk.id: chunk for chunk in chunks}
        self.documents: Mapping[str, Document] = {document.id: document for document in documents}
        self.of_document: defaultdict[str, list[Chunk]] = defaultdict(list)
        self.sections: defaultdict[tuple[str, tuple[str, ...]], list[Chunk]] = defaultdict(list)
        self.place: dict[str, int] = {}
        for chunk in chunks:
            self.place[chunk.id] = len(self.of_document[chunk.document_id])
            self.of_document[chunk.document_id].append(chunk)
            for depth in range(1, len(chunk.heading_path) + 1):
                self.sections[chunk.document_id, chunk.heading_path[:depth]].append(chunk)
        self._code: dict[str, bool] = {}

    def is_code(self, chunk: Chunk) -> bool:
        if chunk.id not in self._code:
            document = self.documents.get(chunk.document_id)
            source = chunk.source or (document.source if document else "") or chunk.document_id
            self._code[chunk.id] = is_code(chunk.text, source)
        return self._code[chunk.id]

    def title(self, document_id: str) -> str:
        document = self.documents.get(document_id)
        return document.title if document else ""

    def headings(self, chunk: Chunk) -> tuple[str, ...]:
        """The heading path below the document's title."""
        path = chunk.heading_path
        return path[1:] if path and path[0] == self.title(chunk.document_id) else path

    def section(self, chunk: Chunk) -> tuple[str, ...]:
        """Ids of the chunks under the same headings, this chunk first."""
        same = self.sections.get((chunk.document_id, chunk.heading_path), [])
        return (chunk.id, *(c.id for c in same if c.heading_path == chunk.heading_path and c.id != chunk.id))

    def linked(self, target: Chunk) -> tuple[str, ...]:
        """Ids of the chunks that a link to this one means, best first: its section, or a short page as a whole.

        Empty for the head of a long page: what the link promises may stand anywhere on it.
        """
        page = self.of_document[target.document_id]
        if page[0].id != target.id:
            return self.section(target)
        return tuple(chunk.id for chunk in page) if len(page) <= LONG_PAGE else ()

    def next_chunk(self, chunk: Chunk) -> Chunk | None:
        siblings = self.of_document[chunk.document_id]
        after = self.place[chunk.id] + 1
        return siblings[after] if after < len(siblings) else None

    def leaves_enough(self, query: Query) -> bool:
        chunk = self.chunks[query.positives[0]]
        return length(masked_passage(query, chunk)) >= MIN_WORDS_LEFT


# Titles


def _from_titles(lookup: _ChunkLookup) -> Iterator[Query]:
    shared = _shared_suffix([title for d in lookup.documents.values() if (title := plain_heading(d.title))])
    owners: defaultdict[str, list[str]] = defaultdict(list)
    for document in lookup.documents.values():
        # Wikis write blanks as underscores.
        title = _STATUS.sub("", plain_heading(document.title).removesuffix(shared)).replace("_(", " (").strip()
        if title and not _is_file_name(title) and lookup.of_document.get(document.id):
            owners[title].append(document.id)
    if len(owners) < 2:
        return
    for title, ids in owners.items():
        if len(ids) > max(2, len(lookup.documents) // 2):
            continue
        # One answer of every document comes before the second of any.
        per_document = [lookup.of_document[id] for id in ids]
        order = sorted(
            (rank, number, chunk.id) for number, own in enumerate(per_document) for rank, chunk in enumerate(own)
        )
        positives = tuple(chunk_id for *_, chunk_id in order)
        yield _query(title, "question" if is_question(title) else "title", positives)


_STATUS = re.compile(
    r"\s*[\[(](?:closed|duplicate|solved|on hold|archived|deprecated|draft|wip|outdated)[\])]\s*$", re.IGNORECASE
)


def _shared_suffix(titles: Sequence[str]) -> str:
    """The site's name that most titles end in (" | Handbook"), or nothing."""
    tails = Counter(match.group() for title in titles if (match := re.search(r"\s+[|–—·-]\s+[^|–—·]+$", title)))
    tail, count = tails.most_common(1)[0] if tails else ("", 0)
    return tail if count >= 5 and count > len(titles) / 2 else ""


def _is_file_name(title: str) -> bool:
    return bool(re.fullmatch(r"[\w./\\-]+\.[A-Za-z0-9]{1,5}|[\W\d_]+|_?index", title))


# Headings

_WEAK = word_set("""
    goal goals process processes step steps requirements responsibilities role roles scope purpose usage
    setup installation configuration troubleshooting limitations benefits tips prerequisites results
    methods method discussion policy policies guidelines guide definition definitions timeline schedule
    team teams contacts tools options features performance history criteria approach structure best
    practices information getting started how it works what why who when where exceptions risks metrics
    types terms
""")


def _from_headings(lookup: _ChunkLookup) -> Iterator[Query]:
    places: Counter[str] = Counter()
    for _, path in lookup.sections:
        places[" ".join(words(plain_heading(path[-1])))] += 1
    for (document_id, path), section in lookup.sections.items():
        title = lookup.title(document_id)
        if title and len(path) == 1 and path[0] == title:
            continue
        leaf = plain_heading(path[-1])
        if not leaf or is_navigation(leaf):
            continue
        exact = [chunk.id for chunk in section if chunk.heading_path == path]
        positives = tuple(dict.fromkeys(exact + [chunk.id for chunk in section]))
        name = code_name(leaf)
        if name:
            parts = identifier_words(name)
            if len(parts) >= 2:
                yield _query(" ".join(parts), "identifier", positives)
            continue
        if lookup.is_code(section[0]):
            continue
        repeated = places[" ".join(words(leaf))] > 1
        parents = [plain_heading(part) for part in path[:-1]]
        text = _self_contained(leaf, parents, repeated=repeated)
        if is_question(leaf):
            yield _query(text, "question", positives)
        else:
            yield _query(text, "heading", positives)


_ANAPHORA = re.compile(r"\b(?:this|that|these|those|it|they|them|there)\b|這|这|此|它|それ|これ", re.IGNORECASE)


def _self_contained(leaf: str, parents: Sequence[str], *, repeated: bool = False) -> str:
    """The heading or question, after its nearest telling parent where it cannot stand alone."""
    terms = [term for term in content_terms(leaf) if term not in _WEAK]
    informative = sum(word not in _WEAK for word in words(leaf) if content_terms(word))
    if is_cjk(leaf):
        alone = len(terms) >= 3
    elif is_question(leaf):
        defines = re.match(r"(?:what(?:'s|’s| is| are| does)|who is)\b", leaf, re.IGNORECASE)
        alone = informative >= (3 if _ANAPHORA.search(leaf) else 1 if defines else 2)
    else:
        alone = informative >= 2
    if alone and not repeated:
        return leaf
    said = set(content_terms(leaf))
    for parent in reversed(parents):
        telling = {term for word in words(parent) if word not in _WEAK for term in content_terms(word)}
        if telling - said and not is_boilerplate(parent, "heading") and not is_question(parent):
            joint = ": " if is_question(leaf) else " "
            return f"{parent}{joint}{leaf}"
    return leaf


# Links


def _from_links(lookup: _ChunkLookup, links: Sequence[Link]) -> Iterator[Query]:
    for link in links:
        source, target = lookup.chunks.get(link.from_chunk_id), lookup.chunks.get(link.to_chunk_id)
        if source is None or target is None:
            continue
        if (source.document_id, source.heading_path) == (target.document_id, target.heading_path):
            continue
        text = _link_text(link.text)
        if not text or is_boilerplate(text, "link"):
            continue
        positives = lookup.linked(target)
        if not positives or (len(words(text)) == 1 and not re.search(r"[A-Z0-9].*[A-Z]", text)):
            continue  # "approach", "values": many passages could be meant; acronyms and product names stay
        headings = [plain_heading(part) for part in target.heading_path if part]
        named = any(_same_words(text, heading) for heading in headings)
        kind = "question" if is_question(text) and not named else "link"
        evidence = Evidence.CROP if named else Evidence.HUMAN
        yield _query(text, "link" if named else kind, positives, evidence=evidence)


# What only makes sense where the link stands: "here mentioned criteria", "won't be taking notes", "these steps".
_LEANS_ON_PAGE = re.compile(
    r"\b(?:here|above|below|mentioned|this|these|that|those|following|previous|next|it|them)\b", re.IGNORECASE
)
_VERB_FIRST = re.compile(
    r"(?:is|are|was|were|be|been|will|won't|would|can't|cannot|could|has|have|had|does|doesn't|don't|didn't|not|also|to|and|or|but|by|via|as|at"
    r"|letting|making|being|having|they|we|he|she|you|i)\b",
    re.IGNORECASE,
)


_LINK_LEAD = re.compile(
    any_of(r"""
        (?:please\s+)?(?:see|read|check out|refer to|visit|view)
        | more (?:information |details )?(?:on|about) | learn (?:more )?about
    """)
    + r"\s+",
    re.IGNORECASE,
)
_ARTICLES = re.compile(r"(?:(?:the|our|this|these|that|a|an|your|their|its)\s+)+", re.IGNORECASE)
_LINK_TAIL = re.compile(r"\s+(?:page|section|here|below|above|link|docs|documentation|handbook page)$", re.IGNORECASE)


def _link_text(raw: str) -> str:
    """What a link's text names, without "see our … page"; "" for addresses and what leans on its surroundings."""
    text = plain_heading(raw)
    for lead in (_LINK_LEAD, _ARTICLES):
        text = text[match.end() :] if (match := lead.match(text)) else text
    text = _LINK_TAIL.sub("", text).strip(" .,;:!。，")
    if text.split() and text.split()[-1].casefold() in STOP_WORDS:
        return ""  # cut out of a sentence: "team members are"
    bare = re.fullmatch(
        r"(?:https?:|www\.|/|#)\S*|\S+\.(?:md|html?|pdf|com|org|io)\S*|[\w./#-]+/[\w./#-]+|@\S+|[#!&]\d+", text
    )
    leans = _LEANS_ON_PAGE.search(text) or _VERB_FIRST.match(text) or re.fullmatch(r"[a-z]+ed", text)
    return "" if bare or leans or code_name(text) else text


def _same_words(text: str, heading: str) -> bool:
    """Whether the link text only repeats the heading: the same stems, or one word of it in another form."""
    said, headed = set(content_terms(text)), set(content_terms(heading))
    return bool(headed) and (said == headed or (len(said) == 1 and said <= headed) or not said)


# Questions in the text

_PREFIXED = re.compile(
    r"\W{0,4}(?:Q(?:uestion)?[ ]?\d{0,3}|問題?\d{0,3}|问题?\d{0,3}|質問\d{0,3})\W{0,2}[:：.)）]\W{0,3}", re.IGNORECASE
)
_ANSWER = re.compile(r"\W{0,4}(?:A(?:nswer)?[ ]?\d{0,3}|答案?|回答)\W{0,2}[:：.)）]", re.IGNORECASE)
_BOLD = re.compile(
    r"\s*(?:(?:[-*+•]|\d{1,3}[.)])\s+)?(?:(?:\*\*|__)(?P<bold>[^*\n]+?)(?:\*\*|__)|<(?P<tag>summary|strong|b|dt|h\d)[^>]*>(?P<html>[^<\n]+)</(?P=tag)>)"
)


@dataclass(frozen=True, slots=True)
class _BlockQuestion:
    """A question inside a block: its span, what follows it in the block, and how it stands out."""

    start: int
    end: int
    rest: str
    marked: bool


def _from_questions(lookup: _ChunkLookup, chunk: Chunk) -> Iterator[Query]:
    if not re.search(r"[?？]|か[。\s]|\b[Hh]ow to\b", chunk.text):
        return
    text, parts = chunk.text, blocks(chunk.text)
    headed = {tuple(words(plain_heading(part))) for part in chunk.heading_path}
    for number, block in enumerate(parts):
        question_at = _question_in(text, block)
        if question_at is None:
            continue
        question = plain_heading(text[question_at.start : question_at.end])
        if tuple(words(question)) in headed or not is_question(question) or len(content_terms(question)) < 1:
            continue
        answer = _answer_chunk(lookup, chunk, parts, number, question_at)
        if answer is None:
            continue
        parents = [plain_heading(part) for part in chunk.heading_path]
        span = (question_at.start, question_at.end) if answer.id == chunk.id else None
        yield _query(_self_contained(question, parents), "question", (answer.id,), span=span)


def _question_in(text: str, block: TextBlock) -> _BlockQuestion | None:
    raw = text[block.start : block.end]
    if block.kind == "heading":
        return _BlockQuestion(block.start, block.end, "", True) if is_question(plain_heading(raw)) else None
    if block.kind not in ("paragraph", "item", "other"):
        return None
    prefix = _PREFIXED.match(raw)
    if prefix:
        line_end = raw.find("\n")
        first = sentences(raw, prefix.end(), len(raw) if line_end < 0 else line_end)
        asking = [span for span in first if is_question(plain(raw[slice(*span)]))]
        if asking:
            end = asking[-1][1]
            return _BlockQuestion(block.start + asking[0][0], block.start + end, raw[end:], True)
    bold = _BOLD.match(raw)
    if bold:
        group = "bold" if bold["bold"] else "html"
        if is_question(plain(bold[group])) and re.search(r"[?？]", bold[group]):
            return _BlockQuestion(
                block.start + bold.start(group), block.start + bold.end(group), raw[bold.end() :], True
            )
    if block.kind == "other":
        return None
    spans = sentences(text, block.start, block.end)
    if not spans or not _asks_in_prose(plain(text[slice(*spans[0])])):
        return None
    start, end = spans[0]
    return _BlockQuestion(start, end, text[end : block.end], False)


_ASKING_WORD = re.compile(
    r"\b"
    + any_of(r"""
        what | how | why | when | where | who | whose | which | can | could | do | does | did | is | are | was | were
        | should | would | will | has | have | may | must | isn't | aren't | don't | doesn't | can't | won't
        | wie | war | warum | wann | wo | wer | welche[rsnm]? | kann | ist | sind | darf | muss
        | comment | pourquoi | quand | où | qui | quel(?:le)?s? | est-ce | peut-on
        | qué | cómo | por qué | cuándo | dónde | quién | cuál | puedo
        | come | perché | quando | dove | chi | como | onde | quem | qual
    """)
    + r"\b",
    re.IGNORECASE,
)


def _asks_in_prose(text: str) -> bool:
    """Whether a sentence that nothing marks as a question is one: not "(?)" or "with '?'"."""
    whole = text.count("(") == text.count(")") and text.count('"') % 2 == 0
    return whole and bool(re.search(r"\w[)\"”’」]?[?？]$", text)) and (is_cjk(text) or bool(_ASKING_WORD.search(text)))


def _answer_chunk(
    lookup: _ChunkLookup, chunk: Chunk, parts: Sequence[TextBlock], number: int, question_at: _BlockQuestion
) -> Chunk | None:
    """The chunk that holds what follows the question, unless another question follows, or nothing."""
    block = parts[number]
    rest = plain(re.sub(_ANSWER, "", question_at.rest, count=1))
    if length(rest) >= 4:
        first = sentences(rest)[0]
        return None if re.search(r"[?？]$", rest[slice(*first)]) else chunk
    if not question_at.marked and (block.kind == "item" or length(chunk.text[question_at.start : question_at.end]) < 4):
        return None  # a check list asks, and nobody answers
    for home, follower in _following(lookup, chunk, parts, number):
        raw = home.text[follower.start : follower.end]
        if follower.kind == "other":
            continue
        if follower.kind == "heading" or _question_in(home.text, follower) is not None:
            return None
        if not question_at.marked and follower.kind != "paragraph":
            return None
        return home if length(plain(raw)) >= 4 or follower.kind in ("code", "table") else None
    return None


def _following(
    lookup: _ChunkLookup, chunk: Chunk, parts: Sequence[TextBlock], number: int
) -> Iterator[tuple[Chunk, TextBlock]]:
    for block in parts[number + 1 :]:
        yield chunk, block
    after = lookup.next_chunk(chunk)
    if after is not None and after.heading_path == chunk.heading_path:
        for block in blocks(after.text):
            yield after, block


# Sentences and crops

_LEANS_ON_CONTEXT = re.compile(
    any_of(r"""
        this | that | these | those | it | its | they | their | them | he | she | his | her | we | our | i | you | your
        | such | both | each | another | other | others | one | some | here | there | however | therefore | thus | hence
        | then | also | but | and | or | nor | so | yet | because | although | though | while | whereas | moreover
        | furthermore | additionally | in addition | finally | second | secondly | third | next | similarly | likewise
        | otherwise | instead | consequently | accordingly | meanwhile | again | still | for example | for instance
        | as a result | in this | in that | in these | in such | in contrast | on the other | at this | at that
        | to this | to that | to do | by doing | if so | if this | if that | when this | once this | after this | note
        | see | below | click | select | please | e\.g | i\.e | the (?:former|latter|above|following|same|other)
    """)
    + r"\b|"
    + any_of("""
        [這这該该此其他她它牠並并但而且因所由另然後后同隨随之於] | 以上 | 以下 | 其中 | 如此 | 不過 | 不过 | 當時 | 当时
        | これ | それ | あれ | この | その | しかし | また | そして | さらに | なお | ただし | だが
    """),
    re.IGNORECASE,
)
_POINTS_BACK = re.compile(r"\b(?:this|these|those|such)\b", re.IGNORECASE)
_DEFINES = re.compile(
    r"^[^,;:]{2,80}?\s(?:is|are)\s"
    + any_of("""
        an? | the | one of | used | defined | called | known | responsible | where | how | when | designed | required
        | available
    """)
    + r"\b|\b(?:refers to|means|stands for|consists of|describes|provides|defines)\b"
    + rf"|^[{CJK}\w（(）)、，《》·]{{2,24}}(?:是|為|指|即|とは)",
    re.IGNORECASE,
)


def _from_sentences(chunk: Chunk, rng: random.Random) -> Iterator[Query]:
    runs: list[list[tuple[int, int]]] = []
    for block in blocks(chunk.text):
        if block.kind in ("paragraph", "item"):
            whole = [
                span for span in sentences(chunk.text, block.start, block.end) if _is_prose(chunk.text[slice(*span)])
            ]
            runs.append(whole)
    first = _first_sentence(chunk, runs)
    if first is not None:
        yield _query(_spoken(chunk.text[slice(*first)]), "sentence", (chunk.id,), span=first)
    crop = _crop(chunk, runs, first, rng)
    if crop is not None:
        yield _query(_spoken(chunk.text[slice(*crop)]), "crop", (chunk.id,), span=crop)


_LABEL = re.compile(
    r"(?:"
    + any_of("""
        background | objectives? | methods? | results? | findings? | conclusions? | aims? | purpose | introduction
        | importance | context | summary | abstract | rationale | design | setting | significance | interpretation
        | hypothesis
    """)
    + r"\b(?:[:.—-]+|(?-i:(?<=[A-Z])))\s+|(?-i:Abstract) (?=[A-Z]))+",
    re.IGNORECASE,
)


def _spoken(raw: str) -> str:
    """Prose without the label of a structured abstract, without emoji."""
    text = "".join(c for c in plain(raw) if unicodedata.category(c) not in {"So", "Cf", "Cn", "Co"} and c != "\ufe0f")
    return " ".join(_LABEL.sub("", text, count=1).split()).strip("*_ ") or text


def _is_prose(raw: str) -> bool:
    text = plain(raw)
    whole = (
        text.count("(") == text.count(")")
        and text.count("（") == text.count("）")
        and text.count("「") == text.count("」")
    )
    return (
        length(text) >= 3 and letter_share(text) >= 0.75 and whole and not re.search(r"http|]\(|[{}<>=]|[:：;]$", text)
    )


def _first_sentence(chunk: Chunk, runs: Sequence[Sequence[tuple[int, int]]]) -> tuple[int, int] | None:
    """A sentence that defines something, else the first that stands on its own."""
    able: list[tuple[tuple[int, int], bool]] = []
    for run in runs:
        for span in run:
            text = plain(chunk.text[slice(*span)])
            if 6 <= length(text) <= 32 and not _LEANS_ON_CONTEXT.match(text) and not is_question(text) and _ends(text):
                able.append((span, bool(_DEFINES.search(text))))
    defining = [span for span, defines in able[:4] if defines]
    apart = [span for span, _ in able if not _POINTS_BACK.search(chunk.text[slice(*span)])]
    return next(iter([*defining, *apart, *(span for span, _ in able)]), None)


def _ends(text: str) -> bool:
    return text[-1:] in '.。！!」』”")'


def _crop(
    chunk: Chunk, runs: Sequence[Sequence[tuple[int, int]]], taken: tuple[int, int] | None, rng: random.Random
) -> tuple[int, int] | None:
    """One or two neighbouring sentences from anywhere in the chunk, other than the one already taken."""
    options = []
    for run in runs:
        for first in range(len(run)):
            for last in range(first, min(first + 2, len(run))):
                span = (run[first][0], run[last][1])
                if taken is not None and span[0] < taken[1] and taken[0] < span[1]:
                    continue
                if 8 <= length(plain(chunk.text[slice(*span)])) <= 40:
                    options.append(span)
    return rng.choice(options) if options else None


# Source code


def _from_code(chunk: Chunk) -> Iterator[Query]:
    for definition in definitions(chunk.text):
        parts = identifier_words(definition.name)
        if len(parts) >= 2 and not definition.name.startswith("__") and parts[0] not in {"test", "main"}:
            yield _query(" ".join(parts), "identifier", (chunk.id,), span=definition.name_span)
        if definition.summary_span is not None:
            text = summary_text(chunk.text[slice(*definition.summary_span)])
            yield _query(text, "docstring", (chunk.id,), span=definition.summary_span)
