"""The part of a passage that shows why it was found, with the query's words marked."""

from __future__ import annotations

import re
from functools import lru_cache

from ragadapt.lexical.tokens import word_analyser
from ragadapt.lexical.tokens import words as lexical_words
from ragadapt.queries.text import CJK, STOP_WORDS

Spans = list[tuple[int, int]]

_WORD = re.compile(rf"[{CJK}]+|[^\W{CJK}]+(?:[.'’-][^\W{CJK}]+)*")
_UNSPACED = re.compile(f"[{CJK}]")


def marks(text: str, query: str) -> Spans:
    """Spans of the text's words that share a stem with a content word of the query, in order, apart."""
    wanted = {token for word in _WORD.findall(query) if word.lower() not in STOP_WORDS for token in _tokens(word)}
    spans: Spans = []
    for match in _WORD.finditer(text):
        if _UNSPACED.match(match[0]):
            for at in range(match.start(), max(match.end() - 1, match.start() + 1)):
                if text[at : min(at + 2, match.end())] in wanted:
                    spans.append((at, min(at + 2, match.end())))
        elif wanted.intersection(_tokens(match[0])):
            spans.append(match.span())
    joined: Spans = []
    for start, end in spans:
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def snippet(text: str, query: str, width: int) -> tuple[str, Spans]:
    """At most about `width` characters of the text on one line, where most marked words are, and the marks in it."""
    line = " ".join(text.split())
    spans = marks(line, query)
    if len(line) <= width:
        return line, spans
    start = _best_start(spans, width)
    end = min(len(line), start + width)
    start = max(0, end - width)
    while start > 0 and line[start - 1] != " " and not _UNSPACED.match(line[start]) and start < end - 1:
        start += 1
    while end < len(line) and line[end] != " " and not _UNSPACED.match(line[end]) and end > start + 1:
        end -= 1
    front, back = ("… " if start else ""), (" …" if end < len(line) else "")
    shift = len(front) - start
    kept = [(a + shift, b + shift) for a, b in spans if a >= start and b <= end]
    return front + line[start:end].rstrip() + back, kept


def _best_start(spans: Spans, width: int) -> int:
    """Where a window should begin to hold the most marks; a little before the first of them."""
    best, most = 0, 0
    for start, _ in spans:
        held = sum(1 for a, b in spans if a >= start and b <= start + width * 0.9)
        if held > most:
            best, most = start, held
    return max(0, best - width // 10) if best + width * 0.9 > width else 0


@lru_cache(maxsize=4096)
def _tokens(word: str) -> frozenset[str]:
    analyse = word_analyser()
    return frozenset(token for raw in lexical_words(word) for token in analyse(raw).tokens)
