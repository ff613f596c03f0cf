"""What makes candidate queries fit to train and judge on: no boilerplate, repeats or give-aways; evenly spread."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ragadapt.config import QueryConfig
from ragadapt.errors import InvalidInput
from ragadapt.queries.kinds import VERBATIM, evidence_rank
from ragadapt.queries.text import (
    content_terms,
    is_cjk,
    is_question,
    length,
    letter_share,
    phrases,
    text_key,
    word_set,
    words,
)
from ragadapt.values import Chunk, Evidence, Query

log = logging.getLogger(__name__)

BOILERPLATE_DOCUMENTS = 3
"""A sentence that heads passages of this many documents says nothing about any of them."""

_WORDS_ALLOWED: Mapping[str, tuple[float, float]] = {
    "title": (1, 30),
    "heading": (1, 24),
    "question": (2, 40),
    "link": (1, 12),
    "docstring": (3, 40),
    "sentence": (5, 34),
    "crop": (5, 45),
    "keywords": (2, 8),
    "identifier": (2, 8),
}
_OTHER_WORDS_ALLOWED = (2, 48)

_NAVIGATION = frozenset(
    text_key(phrase)
    for phrase in phrases("""
    here | this page | this link | this document | this section | this guide | this article | this issue
    | this video | this post | link | links | click here | see here | read more | learn more | more |
    more information | more info | more details | details | see more | see also | source | home |
    homepage | home page | index | contents | table of contents | toc | on this page | in this section |
    menu | navigation | search | next | previous | back | back to top | top | up | skip to content |
    sign in | log in | sign up | subscribe | download | edit | edit this page | view | open | print |
    share | overview | introduction | intro | summary | abstract | conclusion | conclusions | references
    | bibliography | acknowledgements | acknowledgments | appendix | further reading | related | related
    links | related pages | related topics | useful links | quick links | resources | additional
    resources | other resources | external links | notes | note | footnotes | general | misc |
    miscellaneous | other | others | about | readme | changelog | license | licence | copyright | all
    rights reserved | disclaimer | untitled | page | section | chapter | todo | tbd | n/a | none |
    example | examples | description | background | documentation | docs | issue | issues | merge
    request | pull request | video | image | figure | table | file | website | site | article | post |
    email | privacy policy | terms of service | cookie policy | contact | contact us | faq | faqs |
    frequently asked questions | questions | questions and answers | parameters | returns | return value
    | raises | arguments | attributes | methods | functions | classes | see | above | below | following
    | example of | hier | mehr | weiterlesen | inhalt | inhaltsverzeichnis | übersicht | einleitung |
    zurück | ici | en savoir plus | sommaire | aquí | más información | índice | 这里 | 這裡 | 此处 | 此處 |
    点击这里 | 點此 | 更多 | 首页 | 首頁 | 目录 | 目錄 | 简介 | 簡介 | 概述
    | 参考文献 | 參考文獻 | 外部链接 | 外部連結 | 相关条目 | 相關條目 | 参见 |
    參見 | こちら | ここ | 目次 | 概要 | はじめに | 参考文献 | 関連項目 | 外部リンク | 脚注 | もっと見る
""")
)
_DATE_WORDS = word_set("""
    january february march april may june july august september october november december jan feb mar
    apr jun jul aug sep sept oct nov dec monday tuesday wednesday thursday friday saturday sunday q1 q2
    q3 q4 fy am pm utc th st nd rd version v week day
""")


def is_navigation(text: str) -> bool:
    """Whether a heading or link text only helps to find one's way: "here", "Overview", "Read more"."""
    return text_key(text) in _NAVIGATION


def is_boilerplate(text: str, kind: str = "") -> bool:
    """Whether nobody would search for this: navigation words, dates, addresses, too short or too long."""
    size = length(text)
    least, most = _WORDS_ALLOWED.get(kind, _OTHER_WORDS_ALLOWED)
    if not least <= size <= most and not (is_cjk(text) and least <= 1 and len(words(text)) >= 2 and size <= most):
        return True
    tokens = words(text)
    if len(tokens) == 1 and len(tokens[0]) < 3:
        return True
    if all(re.fullmatch(r"[\d年月日時时分秒]+\w{0,2}", token) or token in _DATE_WORDS for token in tokens):
        return True
    if re.match(r"\s*(?:https?://|www\.|mailto:)\S+\s*$|\S+@\S+\.\w+\s*$", text):
        return True
    if letter_share(re.sub(r"(?<=\w)[+#]+", "", text)) < 0.5:
        return True
    return is_navigation(text)


def drop_boilerplate(queries: Iterable[Query], chunks: Mapping[str, Chunk]) -> list[Query]:
    """The queries without boilerplate: see `is_boilerplate`; and cut texts that head passages of many documents."""
    alive = [query for query in queries if not is_boilerplate(query.text, query.kind)]
    places: defaultdict[str, set[str]] = defaultdict(set)
    for query in alive:
        if query.kind in ("sentence", "crop", "docstring", "keywords"):
            places[text_key(query.text)].update(document_ids(query, chunks))
    return [
        query
        for query in alive
        if query.kind not in ("sentence", "crop", "docstring", "keywords")
        or len(places[text_key(query.text)]) < BOILERPLATE_DOCUMENTS
    ]


_MOST_PLACES = 5  # passages that a link text may stand for


def drop_near_duplicates(queries: Iterable[Query]) -> list[Query]:
    """One query for every group that says the same in nearly the same words: equal sets of stems, and for
    questions equal sets of words ("Why join?" is not "How to join?", nor the heading "Joining").

    The best evidence stays and takes over the others' positives, best first: all of them answer it.
    A link text that stands for more than five passages is dropped: it names nothing in particular.
    """
    groups: defaultdict[str, list[Query]] = defaultdict(list)
    for query in queries:
        asks = is_question(query.text)
        groups["? " + " ".join(sorted(set(words(query.text)))) if asks else text_key(query.text)].append(query)
    kept = []
    for group in groups.values():
        group.sort(key=lambda query: evidence_rank(query.evidence))
        best = group[0]
        if best.kind == "link" and len({query.positives[:1] for query in group if query.kind == "link"}) > _MOST_PLACES:
            continue
        positives = tuple(dict.fromkeys(chunk_id for query in group for chunk_id in query.positives))
        kept.append(best if positives == best.positives else replace_positives(best, positives))
    return kept


def replace_positives(query: Query, positives: tuple[str, ...]) -> Query:
    """The same query with other positives; it keeps its span only while its first positive stays."""
    span = query.span if positives[:1] == query.positives[:1] else None
    return Query(query.id, query.text, query.kind, query.evidence, positives, span)


def lexical_overlap(text: str, passage: str) -> float:
    """Share of the text's content words (stems; character pairs without spaces) that stand in the passage; 0 to 1."""
    terms = set(content_terms(text))
    return len(terms & set(content_terms(passage))) / len(terms) if terms else 0.0


def bound_overlap(queries: Iterable[Query], chunks: Mapping[str, Chunk], max_overlap: float) -> list[Query]:
    """The queries whose words do not give their passage away.

    Held to the bound: kinds that are not cut from the passage (links, a language model's). Cut kinds and
    keywords share their words by nature, and labels are never judged. Single-word queries are all or
    nothing and are let through.
    """
    terms_of: dict[str, set[str]] = {}
    kept = []
    for query in queries:
        if query.kind in VERBATIM or query.kind == "keywords" or query.evidence is Evidence.LABELLED:
            kept.append(query)
            continue
        terms = set(content_terms(query.text))
        chunk = chunks.get(query.positives[0]) if query.positives else None
        if chunk is not None and len(terms) > 1:
            if chunk.id not in terms_of:
                terms_of[chunk.id] = set(content_terms(chunk.passage))
            if len(terms & terms_of[chunk.id]) / len(terms) > max_overlap:
                continue
        kept.append(query)
    return kept


def cap_per_chunk(queries: Iterable[Query], per_chunk: int, *, seed: int) -> list[Query]:
    """At most per_chunk queries with the same first positive.

    Best evidence first; then titles, headings and names, which people wrote and of which there are few; then
    the others in turn, one of a kind before the second of any.
    """
    groups: defaultdict[str, list[Query]] = defaultdict(list)
    for query in queries:
        groups[query.positives[0] if query.positives else ""].append(query)
    kept = []
    for group in groups.values():
        seen: Counter[str] = Counter()
        turns = []
        for query in sorted(group, key=lambda query: chance(seed, query.id)):
            few = query.kind not in ("title", "heading", "identifier")
            turns.append((evidence_rank(query.evidence), seen[query.kind], few, chance(seed, query.id), query))
            seen[query.kind] += 1
        kept += [query for *_, query in sorted(turns, key=lambda turn: turn[:4])[:per_chunk]]
    return kept


def sample_evenly(queries: Sequence[Query], max_queries: int, chunks: Mapping[str, Chunk], *, seed: int) -> list[Query]:
    """At most max_queries, dealt out in turn over kinds and, inside a kind, over documents.

    Which query of a document comes first hangs on its id and the seed alone. Order: by that chance.
    """
    turns: defaultdict[str, Counter[str]] = defaultdict(Counter)
    dealt: defaultdict[str, list[tuple[int, float, Query]]] = defaultdict(list)
    for query in sorted(queries, key=lambda query: (chance(seed, query.id), query.id)):
        document = chunks[query.positives[0]].document_id if query.positives and query.positives[0] in chunks else ""
        dealt[query.kind].append((turns[query.kind][document], chance(seed, query.id), query))
        turns[query.kind][document] += 1
    ranked = []
    for kind in sorted(dealt):
        order = sorted(dealt[kind], key=lambda entry: (entry[0], entry[1], entry[2].id))
        ranked += [(turn, chance(seed, kind), query) for turn, (_, _, query) in enumerate(order)]
    ranked.sort(key=lambda entry: (entry[0], entry[1]))
    chosen = [query for *_, query in ranked[:max_queries]]
    return sorted(chosen, key=lambda query: (chance(seed, query.id), query.id))


def clean_queries(queries: Sequence[Query], chunks: Sequence[Chunk], config: QueryConfig, *, seed: int) -> list[Query]:
    """All filters in their order: boilerplate, near-duplicates, overlap, cap per chunk, even sample.

    Labelled queries must not pass through here: what users ask is never filtered.
    """
    by_id = {chunk.id: chunk for chunk in chunks}
    plausible = drop_boilerplate(queries, by_id)
    distinct = drop_near_duplicates(plausible)
    bounded = bound_overlap(distinct, by_id, config.max_overlap)
    capped = cap_per_chunk(bounded, config.per_chunk, seed=seed)
    sampled = sample_evenly(capped, config.max_queries, by_id, seed=seed)
    log.info(
        "queries: %d candidates, %d after boilerplate, %d distinct, %d within overlap, %d after the cap, %d sampled",
        len(queries), len(plausible), len(distinct), len(bounded), len(capped), len(sampled),
    )  # fmt: skip
    return sampled


def round_trip_filter(
    queries: Sequence[Query], rankings: Sequence[Sequence[str]], k: int
) -> tuple[list[Query], list[Query]]:
    """(kept, dropped): a query stays if one of its positives is among the first k chunk ids of its ranking.

    rankings: one per query, in the same order, best first. k = 0 keeps everything.
    """
    if len(queries) != len(rankings):
        raise InvalidInput(f"{len(queries)} queries but {len(rankings)} rankings: pass one ranking per query.")
    if k < 0:
        raise InvalidInput(f"k = {k}: the round-trip depth is 0 (no filter) or more.")
    kept: list[Query] = []
    dropped: list[Query] = []
    for query, ranking in zip(queries, rankings):
        found = k == 0 or not set(query.positives).isdisjoint(ranking[:k])
        (kept if found else dropped).append(query)
    return kept, dropped


def document_ids(query: Query, chunks: Mapping[str, Chunk]) -> set[str]:
    """The documents that the query's positives belong to."""
    return {chunks[chunk_id].document_id for chunk_id in query.positives if chunk_id in chunks}


def chance(seed: int, key: str) -> float:
    """A number in [0, 1) that hangs on seed and key alone, so that one item's luck never moves another's."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
