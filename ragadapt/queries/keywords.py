"""Keyword queries: the few words that tell a passage from the rest of its corpus (tf-idf, phrases kept together)."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

from ragadapt.queries.filters import chance
from ragadapt.queries.text import CJK, STOP_WORDS, blocks, identifier_words, is_cjk, plain, word_set
from ragadapt.values import Chunk

SAMPLE = 4000
"""Chunks that document frequencies are counted on: enough to know what is common, and memory stays bounded."""

_WORD = re.compile(rf"[^\W\d_{CJK}]+(?:[-'’][^\W\d_{CJK}]+)*|[{CJK}]+|[^\s\w]|\d+|_")
_CJK_START = re.compile(rf"[{CJK}]")
# Characters that join or end Chinese and Japanese phrases far more often than they stand inside a name.
_PARTICLES = re.compile(
    "[的了在是和與与及或等之於于以為为被把從从到對对也而但並并其此這这那他她它們们個个有不就都將将所可能會会後后前中上下時时年月日一二三四五六七八九十兩两來来去說说用由使讓让更最很再又則则因如若且當当並與\u3041-\u309f]"
)


class KeywordModel:
    """Makes keyword queries for the chunks of one corpus."""

    def __init__(self, chunks: Sequence[Chunk], is_code: Callable[[Chunk], bool], *, seed: int) -> None:
        self._is_code = is_code
        sample = chunks
        if len(chunks) > SAMPLE:
            sample = sorted(chunks, key=lambda chunk: chance(seed, chunk.id))[:SAMPLE]
        self._documents = len(sample)
        self._frequency: Counter[str] = Counter()
        self._read: dict[str, list[list[str]]] = {}
        for chunk in sample:
            runs = self._read[chunk.id] = self._runs(chunk)
            self._frequency.update({term for run in runs for term in _terms(run)})

    def query(self, chunk: Chunk, rng: random.Random) -> str:
        """Two to five telling words of the chunk in the order they stand in, lower case; "" if it has too few."""
        runs = self._read[chunk.id] if chunk.id in self._read else self._runs(chunk)
        counts = Counter(term for run in runs for term in _terms(run))
        if is_cjk(chunk.text):
            return self._unspaced(counts, chunk.text, rng)
        # A few foreign characters in spaced text are names or quotes, and no stretch of them is a word.
        runs = [run for run in ([word for word in run if not _unspaced_word(word)] for run in runs) if run]
        counts = Counter({term: count for term, count in counts.items() if not _unspaced_word(term)})
        size = rng.randint(2, 5)
        weight = {term: (1 + math.log(count)) * self._rarity(term) for term, count in counts.items()}
        pairs = {
            (left, right): (weight[left] + weight[right]) * (1 + 0.5 * math.log(count))
            for (left, right), count in Counter(
                pair for run in runs for pair in pairwise(run) if pair[0] != pair[1]
            ).items()
            if left in weight and right in weight
        }
        chosen: list[str] = []
        if pairs:
            chosen += max(pairs.items(), key=lambda entry: (entry[1], entry[0]))[0]
        for term in sorted(weight, key=lambda term: (-weight[term], term)):
            if len(chosen) >= size:
                break
            if weight[term] > 0 and not any(term[:5] == other[:5] for other in chosen):
                chosen.append(term)
        order: dict[str, int] = {}
        for run in runs:
            for term in run:
                order.setdefault(term, len(order))
        if pairs:
            # The phrase stays together where its first word stands.
            head, tail = chosen[0], chosen[1]
            rest = sorted(chosen[2:], key=order.__getitem__)
            before = [term for term in rest if order[term] < order[head]]
            chosen = [*before, head, tail, *(term for term in rest if term not in before)]
        return " ".join(chosen) if len(chosen) >= 2 else ""

    def _rarity(self, term: str) -> float:
        frequency = self._frequency[term]
        if frequency > 0.25 * self._documents and self._documents >= 20:
            return 0.0
        # A word that stands once in the whole corpus is as often a slip or a code as a topic.
        return math.log((1 + self._documents) / (1 + max(frequency, 2)))

    def _unspaced(self, counts: Counter[str], text: str, rng: random.Random) -> str:
        # What is said twice is a word; a stretch said once may begin and end anywhere.
        repeated = {term: count for term, count in counts.items() if count > 1 and len(term) > 1}
        scores = {}
        for term, count in (repeated if len(repeated) > 2 else counts).items():
            scores[term] = (1 + 2 * math.log(count)) * self._rarity(term) * math.sqrt(min(len(term), 4))
        size = rng.choice((2, 3))
        chosen: list[str] = []
        for term in sorted(scores, key=lambda term: (-scores[term], term)):
            if len(chosen) >= size:
                break
            if not any(set(term) & set(other) for other in chosen):
                chosen.append(term)
        return " ".join(sorted(chosen, key=text.lower().find)) if len(chosen) >= 2 else ""

    def _runs(self, chunk: Chunk) -> list[list[str]]:
        """Unbroken runs of content words; punctuation, numbers and function words break a run."""
        if self._is_code(chunk):
            names = re.findall(r"[^\W\d]\w+", chunk.text)
            return [[part for part in identifier_words(name) if _tells(part)] for name in names]
        texts = [
            plain(chunk.text[block.start : block.end])
            for block in blocks(chunk.text)
            if block.kind in ("heading", "paragraph", "item", "table")
        ]
        runs: list[list[str]] = []
        for text in texts:
            run: list[str] = []
            for token in _WORD.findall(text):
                word = token.casefold().replace("’", "'").removesuffix("'s")
                if _tells(word) or _unspaced_word(word):
                    run.append(word)
                elif run:
                    runs.append(run)
                    run = []
            if run:
                runs.append(run)
        return runs


def _unspaced_word(word: str) -> bool:
    return word[0] >= CJK[0] and _CJK_START.match(word) is not None


def _tells(word: str) -> bool:
    if len(word) < 3 or word in STOP_WORDS or word in _EMPTY or not word.replace("-", "").isalpha():
        return False
    return not word.endswith("ly") or word in _NAMED_LY  # adverbs: "especially", "internally"


_NAMED_LY = word_set("""
    family supply assembly daily weekly monthly quarterly yearly reply fly july italy anomaly butterfly
""")
_EMPTY = word_set("""
    also able based example examples following follow follows include includes including need needs new
    various several different many self def none true false return returns param params args kwargs str
    int type import class function value values null void public static string bool len list dict var
    const let elif isinstance append raise except try print init cls obj tmp set aside know enjoy keep
    help ask asked try tried start ensure provide provides want come comes think like look looks find
    give given take taken put work works working important specific possible certain available possible
    appropriate thing things lot etc please using used use see well way ways one two three first second
    would could should within show shown given obtained found may et al
""")


def _terms(run: Sequence[str]) -> list[str]:
    """Words; of a Chinese or Japanese run, every stretch of two to four characters between particles."""
    terms = []
    for word in run:
        if not _unspaced_word(word):
            terms.append(word)
            continue
        for part in _PARTICLES.split(word):
            terms += [part[i : i + n] for n in (2, 3, 4) for i in range(len(part) - n + 1)]
            if len(part) > 4 and re.fullmatch("[\u30a0-\u30ff]+", part):
                terms.append(part)
    return terms
