"""The kinds of query, how far each is trusted, and how a passage hides the query that was cut from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from ragadapt.queries.code import code_name
from ragadapt.queries.text import identifier_words, is_heading_line, plain, plain_heading, token_spans, words
from ragadapt.text import searchable
from ragadapt.values import Chunk, Evidence, Query

KINDS: Mapping[str, Evidence] = MappingProxyType(
    {
        "label": Evidence.LABELLED,  # asked and judged by the user's people
        "question": Evidence.HUMAN,  # a question in the text, with the chunk that answers it
        "link": Evidence.HUMAN,  # an internal link's text; CROP where it only repeats the target's heading
        "docstring": Evidence.HUMAN,  # what a programmer wrote about a function
        "lm-question": Evidence.PARAPHRASE,
        "lm-keywords": Evidence.PARAPHRASE,
        "lm-problem": Evidence.PARAPHRASE,
        "lm-claim": Evidence.PARAPHRASE,
        "title": Evidence.CROP,
        "heading": Evidence.CROP,
        "sentence": Evidence.CROP,
        "identifier": Evidence.CROP,
        "keywords": Evidence.CROP,
        "crop": Evidence.CROP,
    }
)
"""Every kind of query that ragadapt makes, with the best evidence that a query of this kind can be."""

STRUCTURAL = ("question", "link", "docstring", "title", "heading", "sentence", "identifier", "keywords", "crop")
"""The kinds that need no language model."""

VERBATIM = frozenset({"question", "docstring", "title", "heading", "sentence", "identifier", "crop"})
"""Kinds whose text stands in the passage word for word: train on `masked_passage`, not on the passage."""

_HEADINGS = frozenset({"question", "title", "heading", "identifier"})

_RANK = {evidence: rank for rank, evidence in enumerate(Evidence)}


def evidence_of(kind: str) -> Evidence:
    """The best evidence that a query of this kind can be; PARAPHRASE for any other "lm-…" kind.

    Raises KeyError for a kind that ragadapt does not make.
    """
    if kind in KINDS:
        return KINDS[kind]
    if kind.startswith("lm-"):
        return Evidence.PARAPHRASE
    raise KeyError(kind)


def evidence_rank(evidence: Evidence) -> int:
    """0 for the most trusted evidence (LABELLED), growing as trust falls."""
    return _RANK[evidence]


def masked_passage(query: Query, chunk: Chunk) -> str:
    """The passage of `masked_chunk`. May be only a heading path when the text held nothing else."""
    masked = masked_chunk(query, chunk)
    return masked.passage if masked.text else masked.passage.rstrip("\n")


def masked_chunk(query: Query, chunk: Chunk) -> Chunk:
    """The chunk without the query's own text, so that copying strings cannot be learnt.

    For a kind that is not verbatim: the chunk as it is. From the heading path go the parts that the
    query repeats (kinds made of headings); from the text go the span that the query was cut from, heading
    lines that say the same, and further copies of a query of four words or more.
    """
    if query.kind not in VERBATIM:
        return chunk
    cut_here = query.span is not None and query.positives[:1] == (chunk.id,)
    text, raw = chunk.text, ""
    if cut_here and query.span is not None:
        start, end = query.span
        raw = text[start:end]
        text = f"{text[:start]} {text[end:]}"
    path = tuple(part for part in chunk.heading_path if part)
    if query.kind in _HEADINGS:
        split = _name_words if query.kind == "identifier" else words
        asked = split(plain_heading(query.text))
        hidden = [part for part in path if _repeats(asked, split(plain_heading(part)))]
        path = tuple(part for part in path if part not in hidden)
        text = _without_heading_lines(text, [asked, *(split(plain_heading(part)) for part in hidden)])
    if query.kind == "identifier":
        names = {raw} if raw.isidentifier() else _identifiers_saying(words(query.text), text)
        for name in names:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ", text)
    elif len(tokens := words(query.text)) >= 4:
        text = _without_copies(text, tokens)
    text = re.sub(r"\n[ \t]*(?:\n[ \t]*)+\n", "\n\n", re.sub(r"[ \t]{2,}(?=\S)(?<=\S[ \t]{2})", " ", text)).strip()
    return replace(chunk, heading_path=path, text=text)


def _name_words(heading: str) -> list[str]:
    return identifier_words(code_name(heading) or heading)


def _repeats(asked: list[str], part: list[str]) -> bool:
    width = len(part)
    return width > 0 and any(asked[i : i + width] == part for i in range(len(asked) - width + 1))


def _without_heading_lines(text: str, hidden: list[list[str]]) -> str:
    kept = []
    for line in text.splitlines(keepends=True):
        said = words(plain_heading(line)) if is_heading_line(line) or len(line) < 200 else []
        if not (said and said in hidden):
            kept.append(line)
    return "".join(kept)


def _without_copies(text: str, tokens: list[str]) -> str:
    """The text without stretches that say the same words in a row, whatever stands between the words."""
    rarest = max(tokens, key=len)
    if len(rarest) > 1 and rarest not in searchable(text).casefold().replace("’", "'"):
        return text
    said = token_spans(text)
    width = len(tokens)
    first = 0
    kept, position = [], 0
    while first + width <= len(said):
        if said[first][0] == tokens[0] and [word for word, _, _ in said[first : first + width]] == tokens:
            kept.append(text[position : said[first][1]])
            position = said[first + width - 1][2]
            first += width
        else:
            first += 1
    return " ".join([*kept, text[position:]])


def _identifiers_saying(asked: list[str], text: str) -> set[str]:
    names = set(re.findall(r"[^\W\d]\w+", plain(text)))
    return {name for name in names if identifier_words(name) == asked}
