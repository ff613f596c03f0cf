"""Ranking passages: the dense index, the lexical index and their fusion, for one query or many.

The same Searcher is measured during `fit`, over exact vectors, and shipped in the saved folder: what was proved is what
runs, but for an approximate index, where one was asked for or a million passages need one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ragadapt.errors import InvalidInput
from ragadapt.lexical.ranking import best_positions, moments
from ragadapt.profiling import work
from ragadapt.search.confidence import FIXED, LOOKED_AT, Confidence, coverage_of
from ragadapt.search.fusion import Background, Candidates, Floats, Fusion, Positions, move_towards, standardise
from ragadapt.threads import one_thread
from ragadapt.values import Progress, no_progress

if TYPE_CHECKING:
    from ragadapt.index import Filter, VectorIndex
    from ragadapt.lexical.ranking import Ranking

_ONE_THREAD_BYTES = 128_000_000  # of vectors that one query is compared with on one thread, in some ten milliseconds
Mode = Literal["dense", "lexical", "hybrid"]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Ranked:
    """One query's result, best first. parts: per side the raw scores, aligned with ids; NaN where not computed.
    confidence: (k,) the probability that a hit answers the query, never growing; None = not known."""

    ids: list[str]
    scores: Floats
    parts: Mapping[str, Floats] = field(default_factory=dict)
    confidence: Floats | None = None

    def at_least(self, confidence: float | None) -> Ranked:
        """What has at least this confidence; all of it where none is asked for, or known."""
        if confidence is None or self.confidence is None:
            return self
        return self.first(int(np.count_nonzero(self.confidence >= confidence)))

    def first(self, count: int) -> Ranked:
        """The first hits."""
        if count >= len(self.ids):
            return self
        sure = None if self.confidence is None else self.confidence[:count]
        parts = {name: part[:count] for name, part in self.parts.items()}
        return Ranked(self.ids[:count], self.scores[:count], parts, sure)


class Dense(Protocol):
    """Scores by vector: what a Searcher fuses with the lexical side."""

    scale: float
    """How the scores of ordinary passages compare with inner products."""

    def search(self, vectors: Floats, k: int, filter: Filter | None = None) -> list[Ranking]:
        """For each query of (Q, d) up to k (ids, scores), best first."""

    def scores(self, vector: Floats, ids: Sequence[str]) -> Floats:
        """(n,) exact scores of one query (d,) for these ids."""

    def vectors(self, ids: Sequence[str]) -> Floats:
        """(n, d) what stands for these passages, for pseudo-relevance feedback."""


class Plain:
    """The index as it is."""

    scale = 1.0

    def __init__(self, index: VectorIndex) -> None:
        self.index = index

    def search(self, vectors: Floats, k: int, filter: Filter | None = None) -> list[Ranking]:
        with work("dense search", len(vectors)):
            return self.index.search(vectors, k, filter)

    def scores(self, vector: Floats, ids: Sequence[str]) -> Floats:
        with work("dense search", 1):
            scores: Floats = self.index.vectors(ids) @ vector
        return scores

    def vectors(self, ids: Sequence[str]) -> Floats:
        return self.index.vectors(ids)


class Lexical(Protocol):
    """Scores by words: LexicalIndex, or the words that an engine keeps (ragadapt.search.engine)."""

    def __len__(self) -> int: ...

    def ids(self) -> list[str]:
        """The ids by position."""

    def positions(self, ids: Iterable[str]) -> Positions:
        """The position of each id. Raises InvalidInput for an unknown one."""

    def score_blocks(self, queries: Sequence[str]) -> Iterator[tuple[int, Floats]]:
        """(number of the first query, scores (B, N) over all passages) in blocks."""

    def search(self, queries: Sequence[str], k: int, allowed: Mask | None = None) -> list[Ranking]:
        """Per query up to k (ids, scores), best first; passages that share no word are left out."""

    def search_with_moments(
        self, queries: Sequence[str], k: int, allowed: Mask | None = None
    ) -> tuple[list[Ranking], Floats, Floats]:
        """`search`, and per query mean and standard deviation (Q,) of its scores over all passages."""

    def moments(self, queries: Sequence[str]) -> tuple[Floats, Floats]:
        """Per query mean and standard deviation (Q,) of its scores over all passages."""

    def masses(self, queries: Sequence[str]) -> Floats:
        """(Q,) the summed idf of every query's words."""

    def scores_of_texts(self, query: str, texts: Sequence[str]) -> Floats:
        """(n,) of texts that need not be indexed."""

    def close(self) -> None:
        """Release files."""


class QueryBlock(Protocol):
    """A block of queries whose words were looked up."""

    def gather(self, vectors: Floats) -> list[Candidates]:
        """The candidates of every query by its vector, of (B, d)."""


class Searcher:
    """Dense, lexical and hybrid search over one set of passages.

    Positions are those of `lexical.ids()`. depth: candidates taken from each side before fusion.
    """

    def __init__(
        self,
        index: VectorIndex,
        lexical: Lexical,
        background: Background,
        fusion: Fusion,
        *,
        depth: int = 200,
        shared: bool = False,
        confidence: Confidence = FIXED,
    ) -> None:
        """shared: others change the index, so that the two sides may differ for a moment; `dense` must then give only
        passages that the lexical side has."""
        if not shared and len(index) != len(lexical):
            raise InvalidInput(
                f"The vector index holds {len(index)} passages, the lexical one {len(lexical)}. "
                "They must be built from the same chunks; rebuild with: ragadapt index RETRIEVER --rebuild"
            )
        self.index = index
        self.plain = Plain(index)
        self.lexical = lexical
        self.background = background
        self.fusion = fusion
        self.depth = depth
        self.shared = shared
        self.confidence = confidence
        self._known_ids: list[str] | None = None

    masks = True
    """Whether a filter must come as a mask over the positions, too; else the engine filters both sides itself."""

    @property
    def ids(self) -> list[str]:
        """By position; not to be changed."""
        if self._known_ids is None:
            self._known_ids = self.lexical.ids()
        return self._known_ids

    def with_fusion(self, fusion: Fusion) -> Searcher:
        """The same sides under another fusion."""
        return Searcher(
            self.index, self.lexical, self.background, fusion, depth=self.depth, shared=self.shared,
            confidence=self.confidence,
        )  # fmt: skip

    def rank(
        self,
        texts: Sequence[str],
        vectors: Floats,
        k: int,
        mode: Mode = "hybrid",
        *,
        filter: Mapping[str, Any] | None = None,
        allowed: Mask | None = None,
        fusion: Fusion | None = None,
        dense: Dense | None = None,
        progress: Progress = no_progress,
    ) -> list[Ranked]:
        """The best k passages of every query. vectors: (Q, d), the encoded texts.

        filter and allowed say the same to the two sides: a metadata filter for the vector index, a mask over the
        positions for the lexical one. dense: the dense side; None = the plain index.
        """
        if k < 1:
            raise InvalidInput(f"k = {k}: ask for at least one passage.")
        small = len(texts) == 1 and 4 * len(self.lexical) * self.index.dim <= _ONE_THREAD_BYTES
        with one_thread() if small else nullcontext():
            return self._rank(texts, vectors, k, mode, filter, allowed, fusion, dense, progress)

    def _rank(
        self,
        texts: Sequence[str],
        vectors: Floats,
        k: int,
        mode: Mode,
        filter: Mapping[str, Any] | None,
        allowed: Mask | None,
        fusion: Fusion | None,
        dense: Dense | None,
        progress: Progress,
    ) -> list[Ranked]:
        if mode != "hybrid":
            return [
                one.first(k) for one in self._one_sided(texts, vectors, max(k, LOOKED_AT), mode, filter, allowed, dense)
            ]
        fusion = fusion or self.fusion
        gathered = self.candidates(
            texts, vectors, fusion=fusion, filter=filter, allowed=allowed, depth=max(self.depth, 2 * k), dense=dense,
            progress=progress,
        )  # fmt: skip
        results = []
        for candidates in gathered:
            scores = candidates.fused(fusion)
            order = np.argsort(-scores, kind="stable")
            sure = self.confidence.of_hybrid(candidates, order[: max(k, LOOKED_AT)], scores)[:k]
            order = order[:k]
            results.append(
                Ranked(
                    self.ids_among(candidates, order),
                    scores[order],
                    {"dense": candidates.dense[order], "lexical": candidates.lexical[order]},
                    sure,
                )
            )
        return results

    def _one_sided(
        self,
        texts: Sequence[str],
        vectors: Floats,
        k: int,
        mode: Mode,
        filter: Mapping[str, Any] | None,
        allowed: Mask | None,
        dense: Dense | None,
    ) -> list[Ranked]:
        """Dense or lexical search."""
        if mode == "dense":
            side = dense or self.plain
            found = side.search(vectors, k, filter)
            means, deviations = (side.scale * part for part in self.background.of_scores(vectors))
            return [
                Ranked(
                    ids,
                    scores,
                    {"dense": scores},
                    self.confidence.of_dense(scores, mean, deviation, self._nearness(scores, side.scale)),
                )
                for (ids, scores), mean, deviation in zip(found, means, deviations, strict=True)
            ]
        if mode != "lexical":
            raise InvalidInput(f"mode = {mode!r}: it is 'dense', 'lexical' or 'hybrid'.")
        found, means, deviations = self._by_words(texts, k, filter, allowed)
        return [
            Ranked(ids, scores, {"lexical": scores}, self.confidence.of_lexical(scores, mean, deviation, mass))
            for (ids, scores), mean, deviation, mass in zip(
                found, means, deviations, self.lexical.masses(texts), strict=True
            )
        ]

    def _by_words(
        self, texts: Sequence[str], k: int, filter: Mapping[str, Any] | None, allowed: Mask | None
    ) -> tuple[list[Ranking], Floats, Floats]:
        return self.lexical.search_with_moments(texts, k, allowed)

    def candidates(
        self,
        texts: Sequence[str],
        vectors: Floats,
        *,
        fusion: Fusion | None = None,
        filter: Mapping[str, Any] | None = None,
        allowed: Mask | None = None,
        depth: int | None = None,
        include: Sequence[Sequence[int]] | None = None,
        dense: Dense | None = None,
        progress: Progress = no_progress,
    ) -> list[Candidates]:
        """Per query the union of both sides' best `depth` passages, with exact z-scores of both sides.

        The fusion decides the pseudo-relevance feedback. include: positions per query that are scored in any case.
        """
        if len(texts) != len(vectors):
            raise InvalidInput(f"{len(texts)} texts but {len(vectors)} vectors: one each is needed.")
        fusion = fusion or self.fusion
        depth = depth or self.depth
        dense = dense or self.plain
        found: list[Candidates] = []
        for start, stop, block in self._query_blocks(texts, dense, filter, allowed, depth, include):
            first = block.gather(vectors[start:stop])
            if fusion.feedback > 0 and fusion.method != "rrf":
                best = []
                for candidates in first:
                    top = candidates.best(fusion, fusion.feedback_depth)
                    best.append(self.ids_among(candidates, top))
                rows = self._rows_of(dense, best)
                moved = block.gather(move_towards(vectors[start:stop], rows, fusion.feedback))
                first = [replace(one, nearness=own.nearness) for one, own in zip(moved, first, strict=True)]
            found += first
            progress("search", stop, len(texts))
        return found

    def _query_blocks(
        self,
        texts: Sequence[str],
        dense: Dense,
        filter: Mapping[str, Any] | None,
        allowed: Mask | None,
        depth: int,
        include: Sequence[Sequence[int]] | None,
    ) -> Iterator[tuple[int, int, QueryBlock]]:
        """(number of the first query, of the one behind the last, their block)."""
        for start, rows in self.lexical.score_blocks(texts):
            stop = start + len(rows)
            extra = include[start:stop] if include is not None else [()] * len(rows)
            yield start, stop, _QueryBlock(self, texts[start:stop], rows, dense, filter, allowed, depth, extra)

    def _rows_of(self, dense: Dense, ids: Sequence[Sequence[str]]) -> list[Floats]:
        """What stands for the passages of every query, one (m, d) each."""
        return [dense.vectors(each) for each in ids]

    def score_texts(self, query: str, vector: Floats, texts: Sequence[str], vectors: Floats) -> tuple[Floats, Floats]:
        """(n,) fused scores of texts that need not be indexed, on the scale of a hybrid search over what is, and (n,)
        how sure it is of each.

        vector: (d,) of the query. vectors: (n, d) of the texts, as passages. An indexed passage without headings has
        the score that a search gives it.
        """
        fusion, moved = self.fusion, vector[None]
        if fusion.feedback > 0 and fusion.method != "rrf":
            (first,) = self.candidates([query], moved, fusion=replace(fusion, feedback=0))
            top = first.best(fusion, fusion.feedback_depth)
            moved = move_towards(moved, [self.plain.vectors(self.ids_among(first, top))], fusion.feedback)
        means, deviations = self.background.of_scores(moved)
        lexical_means, lexical_deviations = self.lexical.moments([query])
        dense, lexical = vectors @ moved[0], self.lexical.scores_of_texts(query, texts)
        found = Candidates(
            np.arange(len(texts)),
            standardise(dense, means[0], deviations[0]),
            standardise(lexical, lexical_means[0], lexical_deviations[0]),
            self.background.nearness(float((vectors @ vector).max()), unrelated=self.confidence.unrelated),
            coverage_of(float(lexical.max()), self.lexical.masses([query])[0]),
        )
        scores = found.fused(fusion)
        order = np.argsort(-scores, kind="stable")
        sure = np.empty_like(scores)
        sure[order] = self.confidence.of_hybrid(found, order, scores)
        return scores, sure

    def _nearness(self, scores: Floats, scale: float) -> float:
        """Of the best of a query's dense scores."""
        if not len(scores):
            return 0.0
        return self.background.nearness(float(scores[0]), scale, self.confidence.unrelated)

    def positions(self, ids: Sequence[str]) -> Positions:
        return self.lexical.positions(ids)

    def ids_among(self, candidates: Candidates, chosen: NDArray[np.int64]) -> list[str]:
        """The ids of some of a query's candidates."""
        if candidates.ids is not None:
            return [candidates.ids[at] for at in chosen.tolist()]
        return self.ids_of(candidates.positions[chosen])

    def ids_of(self, positions: Positions | Sequence[int]) -> list[str]:
        return [self.ids[position] for position in np.asarray(positions).tolist()]


class _QueryBlock:
    """A block of queries with their lexical score rows at hand."""

    def __init__(
        self,
        searcher: Searcher,
        texts: Sequence[str],
        rows: Floats,
        dense: Dense,
        filter: Mapping[str, Any] | None,
        allowed: Mask | None,
        depth: int,
        extra: Sequence[Sequence[int]],
    ) -> None:
        self.searcher = searcher
        self.rows = rows
        self.dense = dense
        self.filter = filter
        self.depth = depth
        self.means, self.deviations = moments(rows)
        self.masses = searcher.lexical.masses(texts)
        passing = None if allowed is None else np.flatnonzero(allowed)
        self.lexical_best = [_best(row, depth, passing) for row in rows]
        self.extra = [np.asarray(positions, dtype=np.int64) for positions in extra]

    def gather(self, vectors: Floats) -> list[Candidates]:
        searcher = self.searcher
        means, deviations = (self.dense.scale * part for part in searcher.background.of_scores(vectors))
        results = []
        for number, (ids, scores) in enumerate(self.dense.search(vectors, self.depth, self.filter)):
            dense_positions = searcher.positions(ids)
            positions = np.unique(np.concatenate([dense_positions, self.lexical_best[number], self.extra[number]]))
            dense = np.full(len(positions), np.nan, dtype=np.float32)
            dense[np.searchsorted(positions, dense_positions)] = scores
            missing = np.flatnonzero(np.isnan(dense))
            if len(missing):
                names = searcher.ids_of(positions[missing])
                dense[missing] = self.dense.scores(vectors[number], names)
            lexical = self.rows[number][positions]
            results.append(
                Candidates(
                    positions,
                    standardise(dense, means[number], deviations[number]),
                    standardise(lexical, self.means[number], self.deviations[number]),
                    searcher._nearness(scores, self.dense.scale),
                    coverage_of(float(lexical.max()), self.masses[number]) if len(lexical) else 0.0,
                )
            )
        return results


def _best(row: Floats, depth: int, passing: Positions | None) -> Positions:
    """The best positions of a row (N,), or of those that pass, ascending, which have a score."""
    if passing is None:
        best = best_positions(row, depth)
    else:
        best = passing[best_positions(row[passing], depth)]
    return best[row[best] > 0]
