"""Hybrid search in an engine that keeps the words of passages beside their vectors.

Nothing here grows with the corpus but what is known by term (`TermStatistics`), so any number of servers search one
collection. Candidates, scores and their order are those of `Searcher` over the same passages, as far as the engine's
dense search is exact. A query takes one request: the best of either side, each scored by the other one, too, and what
the deviation of its BM25 scores needs. Pseudo-relevance feedback adds one for two vectors and one for the second look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ragadapt.errors import InvalidInput
from ragadapt.index.contract import LOOKUPS, LookedUp, Lookup
from ragadapt.index.filters import Named
from ragadapt.lexical.ranking import Ranking, best_first
from ragadapt.lexical.terms import TermStatistics
from ragadapt.profiling import work
from ragadapt.search.confidence import FIXED, Confidence, coverage_of
from ragadapt.search.fusion import Background, Candidates, Floats, Fusion, Positions, standardise
from ragadapt.search.searcher import Dense, Mask, Plain, QueryBlock, Searcher

if TYPE_CHECKING:
    from ragadapt.index import Filter

_BLOCK = LOOKUPS // 8  # queries at a time: of up to six lookups each, so that a block is one request
_BLOCK_BYTES = 64_000_000  # of one dense block of scores
_EQUAL = 32  # more than asked for: passages that tie at the cut go by id, and the engine knows no such order


class EngineWords:
    """BM25 by the words that an engine keeps: what `LexicalIndex` answers, without its postings.

    ids: gives the ids by position, which only those ask for who measure; a search does not need them.
    """

    def __init__(self, index: Any, statistics: TermStatistics, ids: Callable[[], list[str]]) -> None:
        """index: a WordEngine that keeps words."""
        self.index = index
        self.statistics = statistics
        self._all_ids = ids
        self._ids: list[str] | None = None
        self._table: dict[str, int] | None = None

    def __len__(self) -> int:
        return len(self.statistics)

    def ids(self) -> list[str]:
        """The ids by position."""
        if self._ids is None:
            self._ids = self._all_ids()
        return self._ids

    def positions(self, ids: Iterable[str]) -> Positions:
        """The position of each id. Raises InvalidInput for an unknown one."""
        if self._table is None:
            self._table = {id: position for position, id in enumerate(self.ids())}
        try:
            return np.array([self._table[id] for id in ids], np.int64)
        except KeyError as error:
            raise InvalidInput(f"The index holds no {error.args[0]!r}.") from error

    def masses(self, queries: Sequence[str]) -> Floats:
        """(Q,) the summed idf of every query's words."""
        return self.statistics.masses(queries)

    def scores_of_texts(self, query: str, texts: Sequence[str]) -> Floats:
        """(n,) of texts that need not be indexed."""
        return self.statistics.scores_of_texts(query, texts)

    def scores(self, queries: Sequence[str]) -> Floats:
        """(Q, N) over all passages. All of them travel: for measuring, not for searching."""
        rows = np.zeros((len(queries), len(self)), np.float32)
        asked = [self.statistics.query(query) for query in queries]
        lookups = [Lookup(words, max(1, self.statistics.hits(words))) for words in asked if len(words)]
        found = iter(self.index.look_up(lookups))
        for row, words in zip(rows, asked, strict=True):
            if len(words):
                one = next(found)
                row[one.places] = one.scores
        return rows

    def score_blocks(self, queries: Sequence[str]) -> Iterator[tuple[int, Floats]]:
        """(number of the first query, `scores`) in blocks."""
        size = max(1, _BLOCK_BYTES // (4 * max(1, len(self))))
        for start in range(0, len(queries), size):
            with work("lexical search", len(queries[start : start + size])):
                scores = self.scores(queries[start : start + size])
            yield start, scores

    def search(
        self, queries: Sequence[str], k: int, allowed: Mask | None = None, filter: Filter | None = None
    ) -> list[Ranking]:
        """Per query up to k (ids, scores), best first; passages that share no word are left out."""
        return self._found(queries, k, allowed, filter)[0]

    def moments(self, queries: Sequence[str]) -> tuple[Floats, Floats]:
        """Per query mean and standard deviation (Q,) of its scores over all passages."""
        return self._found(queries, 0, None, None)[1:]

    def search_with_moments(
        self, queries: Sequence[str], k: int, allowed: Mask | None = None, filter: Filter | None = None
    ) -> tuple[list[Ranking], Floats, Floats]:
        """Both in one request. allowed: a mask over the positions, where the engine cannot filter."""
        return self._found(queries, k, allowed, filter)

    def close(self) -> None:
        """Nothing to release: the statistics are mapped."""

    def _found(
        self, queries: Sequence[str], k: int, allowed: Mask | None, filter: Filter | None
    ) -> tuple[list[Ranking], Floats, Floats]:
        rankings: list[Ranking] = []
        means, deviations = np.zeros(len(queries), np.float32), np.zeros(len(queries), np.float32)
        for start in range(0, len(queries), _BLOCK):
            batch = _Batch(self.index)
            asked = [_Asked(self.statistics, batch, query) for query in queries[start : start + _BLOCK]]
            best = [
                batch.add(Lookup(one.words, k + _EQUAL if allowed is None else max(1, len(self)), filter))
                if k and len(one.words)
                else None
                for one in asked
            ]
            with work("lexical search", len(asked)):
                batch.send()
            for at, (one, found) in enumerate(zip(asked, best, strict=True), start):
                means[at], deviations[at] = one.moments(batch)
                if found is None:
                    rankings.append(([], np.zeros(0, np.float32)))
                    continue
                ids, scores = batch[found].ids, batch[found].scores
                if allowed is not None:
                    kept = np.flatnonzero(allowed[batch[found].places])
                    ids, scores = [ids[each] for each in kept.tolist()], scores[kept]
                rankings.append(best_first(scores, k, ids))
        return rankings, means, deviations


class EngineSearcher(Searcher):
    """A Searcher whose two sides lie in one engine."""

    masks = False
    lexical: EngineWords

    def __init__(
        self,
        lexical: EngineWords,
        background: Background,
        fusion: Fusion,
        *,
        depth: int = 200,
        confidence: Confidence = FIXED,
    ) -> None:
        super().__init__(lexical.index, lexical, background, fusion, depth=depth, confidence=confidence)

    def with_fusion(self, fusion: Fusion) -> Searcher:
        """The same sides under another fusion."""
        return EngineSearcher(self.lexical, self.background, fusion, depth=self.depth, confidence=self.confidence)

    def _by_words(
        self, texts: Sequence[str], k: int, filter: Mapping[str, Any] | None, allowed: Mask | None
    ) -> tuple[list[Ranking], Floats, Floats]:
        return self.lexical.search_with_moments(texts, k, allowed, filter)

    def _query_blocks(
        self,
        texts: Sequence[str],
        dense: Dense,
        filter: Mapping[str, Any] | None,
        allowed: Mask | None,
        depth: int,
        include: Sequence[Sequence[int]] | None,
    ) -> Iterator[tuple[int, int, QueryBlock]]:
        if allowed is not None:  # known by position, which only the way over all scores can follow
            yield from super()._query_blocks(texts, dense, filter, allowed, depth, include)
            return
        for start in range(0, len(texts), _BLOCK):
            part = texts[start : start + _BLOCK]
            extra = [list(each) for each in include[start : start + _BLOCK]] if include else [[] for _ in part]
            yield start, start + len(part), _EngineBlock(self, part, dense, filter, depth, extra)

    def _rows_of(self, dense: Dense, ids: Sequence[Sequence[str]]) -> list[Floats]:
        every = list(dict.fromkeys(id for each in ids for id in each))
        row_of = {id: row for row, id in enumerate(every)}
        rows = dense.vectors(every) if every else np.zeros((0, self.index.dim), np.float32)  # in one request
        return [rows[[row_of[id] for id in each]] for each in ids]


class _Batch:
    """Lookups that are sent together."""

    def __init__(self, index: Any) -> None:
        self._index = index
        self._lookups: list[Lookup] = []
        self._found: list[LookedUp] = []

    def add(self, lookup: Lookup) -> int:
        """Its number, by which its answer is had after `send`."""
        self._lookups.append(lookup)
        return len(self._lookups) - 1

    def send(self) -> None:
        self._found += self._index.look_up(self._lookups[len(self._found) :])

    def __getitem__(self, number: int) -> LookedUp:
        return self._found[number]


class _Asked:
    """One query's words, and what its moments need from the engine, asked for in a batch."""

    def __init__(self, statistics: TermStatistics, batch: _Batch, query: str) -> None:
        self._statistics = statistics
        self.words = statistics.query(query)
        rare, rest = statistics.apart(self.words)
        self._rare = self._rest = None
        self._known: tuple[float, float] | None = None
        if len(rare):
            limit = max(1, statistics.hits(rare))
            among = Lookup(rare, limit)
            self._rare = batch.add(Lookup(rare, limit, named=False))
            if len(rest):
                self._rest = batch.add(Lookup(rest, limit, among=among, named=False))

    def moments(self, batch: _Batch) -> tuple[float, float]:
        """Mean and standard deviation of the query's scores."""
        if self._known is None:
            if self._rare is None:
                self._known = self._statistics.moments(self.words)
            else:
                found = batch[self._rare]
                others = np.zeros(len(found.points), np.float32)
                if self._rest is not None:
                    rest = batch[self._rest]
                    score_of = dict(zip(rest.points, rest.scores.tolist(), strict=True))
                    others[:] = [score_of.get(point, 0.0) for point in found.points]
                self._known = self._statistics.moments(self.words, found.scores, others)
        return self._known


class _EngineBlock:
    """A block of queries; their words are looked up with the first vectors, in the same request."""

    def __init__(
        self,
        searcher: EngineSearcher,
        texts: Sequence[str],
        dense: Dense,
        filter: Mapping[str, Any] | None,
        depth: int,
        extra: Sequence[Sequence[int]],
    ) -> None:
        self.searcher = searcher
        self.dense = dense
        self.filter = filter
        self.depth = depth
        self.extra = extra
        self.inside = type(dense) is Plain and dense.index is searcher.index  # the dense side is the engine's own
        self.batch = _Batch(searcher.lexical.index)
        self.asked = [_Asked(searcher.lexical.statistics, self.batch, text) for text in texts]
        self.masses = searcher.lexical.masses(texts)
        self.by_words = [
            self.batch.add(Lookup(one.words, depth, filter)) if len(one.words) else None for one in self.asked
        ]

    def gather(self, vectors: Floats) -> list[Candidates]:
        sides = self._inside(vectors) if self.inside else self._beside(vectors)
        scale = self.dense.scale
        means, deviations = (scale * part for part in self.searcher.background.of_scores(vectors))
        results = []
        for number, (own, dense, lexical, nearest) in enumerate(sides):
            ids = sorted(own, key=own.__getitem__)
            positions = np.array([own[id] for id in ids], np.int64)
            by_vector = np.array([dense[id] for id in ids], np.float32)
            by_words = np.array([lexical.get(id, 0.0) for id in ids], np.float32)
            mean, deviation = self.asked[number].moments(self.batch)
            results.append(
                Candidates(
                    positions,
                    standardise(by_vector, means[number], deviations[number]),
                    standardise(by_words, mean, deviation),
                    self.searcher._nearness(nearest, scale),
                    coverage_of(float(by_words.max()), self.masses[number]) if len(ids) else 0.0,
                    ids,
                )
            )
        return results

    def _inside(self, vectors: Floats) -> Iterator[_Sides]:
        """Both sides and what each says of the other's, in one request."""
        batch, depth, filter = self.batch, self.depth, self.filter
        lookups = []
        for one, extra, vector in zip(self.asked, self.extra, vectors, strict=True):
            nearest = Lookup(vector, depth, filter)
            numbers = [batch.add(nearest)]
            if len(one.words):
                wordy = Lookup(one.words, depth, filter)
                numbers += [
                    batch.add(Lookup(vector, depth, filter, among=wordy)),
                    batch.add(Lookup(one.words, depth, filter, among=nearest)),
                ]
            if len(extra):
                named: Any = Named(frozenset(self.searcher.ids_of(extra)))
                numbers.append(batch.add(Lookup(vector, len(extra), named)))
                if len(one.words):
                    numbers.append(batch.add(Lookup(one.words, len(extra), named)))
            lookups.append(numbers)
        with work("hybrid search", len(vectors)):
            batch.send()
        for extra, by_words, numbers in zip(self.extra, self.by_words, lookups, strict=True):
            found = [batch[number] for number in numbers]
            dense, lexical = [found[0]], list[LookedUp]()
            if by_words is not None:
                dense.append(found[1])
                lexical += [batch[by_words], found[2]]
            if len(extra):
                dense.append(found[1 if by_words is None else 3])
                lexical += found[4:5]
            yield _places(*dense), _scores(dense), _scores(lexical), found[0].scores

    def _beside(self, vectors: Floats) -> Iterator[_Sides]:
        """The dense side is another one, of feedback for instance: what it finds is scored by words by name."""
        batch = self.batch
        rankings = self.dense.search(vectors, self.depth, self.filter)
        extras = [self.searcher.ids_of(extra) if len(extra) else [] for extra in self.extra]
        numbers = []
        for one, extra, (ids, _) in zip(self.asked, extras, rankings, strict=True):
            every = list(dict.fromkeys([*ids, *extra]))
            named: Any = Named(frozenset(every))
            vector = np.zeros(self.searcher.index.dim, np.float32)  # who is where, words or not
            numbers.append(
                (
                    batch.add(Lookup(vector, len(every), named)) if every else None,
                    batch.add(Lookup(one.words, len(every), named)) if every and len(one.words) else None,
                )
            )
        with work("lexical search", len(vectors)):
            batch.send()
        parts = zip(rankings, extras, self.by_words, numbers, vectors, strict=True)
        for (ids, scores), extra, by_words, (there, worded), vector in parts:
            lexical = [batch[number] for number in (by_words, worded) if number is not None]
            places = _places(*lexical, *([] if there is None else [batch[there]]))
            dense = dict(zip(ids, scores.tolist(), strict=True))
            missing = [id for id in dict.fromkeys([*places, *extra]) if id not in dense]
            if missing:
                dense |= zip(missing, self.dense.scores(vector, missing).tolist(), strict=True)
            yield places, dense, _scores(lexical), scores


_Sides = tuple[dict[str, int], dict[str, float], dict[str, float], Floats]
"""Of one query's candidates by id: places, scores by vector, scores by words where there are any; and the scores of the
dense side's own best."""


def _places(*found: LookedUp) -> dict[str, int]:
    return {id: place for one in found for id, place in zip(one.ids, one.places.tolist(), strict=True)}


def _scores(found: Sequence[LookedUp]) -> dict[str, float]:
    return {id: score for one in found for id, score in zip(one.ids, one.scores.tolist(), strict=True)}


def keeps_words(index: Any) -> bool:
    """Whether an opened index has the words of its passages."""
    return bool(getattr(index, "words", False))
