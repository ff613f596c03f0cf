"""A fair search task: judged queries over a corpus in which no passage still holds the query that was cut from it.

Queries found inside the documents (a question above its answer, a title, a docstring) stand word for word in their
own passage. For measuring, that passage is replaced by one without them, in vectors and lexical index alike; all
other passages stay. Labelled queries need no such care and see the corpus as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ragadapt.evaluation.judging import JudgedQuery, judge_by_chunk, judge_by_document
from ragadapt.index import exact_index
from ragadapt.lexical import LexicalIndex
from ragadapt.out_of_core import Mapped, temporary_array
from ragadapt.pipeline.stages import lexical_parts
from ragadapt.queries import VERBATIM, masked_chunk
from ragadapt.search.fusion import Background, Candidates, Floats, Fusion, Positions
from ragadapt.search.searcher import Mask, Searcher
from ragadapt.values import Chunk, Evidence, Progress, Query, no_progress

if TYPE_CHECKING:
    from pathlib import Path

    from ragadapt.encoder import Encoder
    from ragadapt.pipeline.corpus import EncodedCorpus

_BLOCK = 65_536  # vectors copied at a time
_DEEP = 200  # passages of a query among which its best wrong one is looked for

Grades = Mapping[str, Mapping[str, int]]
"""query id → document id → grade, for labels that name documents."""


@dataclass(frozen=True)
class Arena:
    """judged[i] belongs to vectors[i] (Q, d). Positions are the searcher's own; passages[position] is its text.

    progress: told of every search in it. allowed: (N,) the passages that are searched; None = all.
    """

    searcher: Searcher
    judged: tuple[JudgedQuery, ...]
    vectors: Floats
    passages: Sequence[str]
    progress: Progress = no_progress
    allowed: Mask | None = None

    def with_fusion(self, fusion: Fusion) -> Arena:
        """The same task, searched with another fusion."""
        return replace(self, searcher=self.searcher.with_fusion(fusion))

    def candidates(self, fusion: Fusion | None = None, *, depth: int | None = None) -> list[Candidates]:
        """Of every query both sides' best passages with their z-scores."""
        texts = [item.query.text for item in self.judged]
        return self.searcher.candidates(
            texts, self.vectors, fusion=fusion, allowed=self.allowed, depth=depth, progress=self.progress
        )

    def pool(self, depth: int, ordinary: Positions) -> Positions:
        """(P,) ascending: the passages to search where encoding all of them would cost too much. Every answer, the
        best `depth` of each side, and the ordinary ones given."""
        found = {int(at) for candidates in self.candidates(depth=depth) for at in candidates.positions}
        for item in self.judged:
            found |= item.answers
        return np.union1d(np.fromiter(found, np.int64, len(found)), ordinary)

    def asked_by(self, encoder: Encoder) -> Arena:
        """The same task, the queries encoded by another model and the passages as they are."""
        rows = encoder.encode_queries([item.query.text for item in self.judged], progress=self.progress)
        return replace(self, vectors=rows)

    def within(self, pool: Positions, ordinary: Positions, encoder: Encoder | None = None) -> Arena:
        """The same task over the passages of the pool alone; encoder: of another model, which encodes the pool anew.

        ordinary: the part of the pool (ascending, at random) that stands for the corpus when scores are standardised.
        """
        searcher = self.searcher
        ids = searcher.ids_of(pool)
        if encoder is None:
            vectors, rows = searcher.index.vectors(ids), self.vectors
        else:
            vectors = encoder.encode_passages([self.passages[at] for at in pool.tolist()], progress=self.progress)
            rows = encoder.encode_queries([item.query.text for item in self.judged], progress=self.progress)
        allowed = np.zeros(len(self.passages), dtype=np.bool_)
        allowed[pool] = True
        background = Background.of(vectors[np.searchsorted(pool, ordinary)])
        other = Searcher(
            exact_index(ids, vectors), searcher.lexical, background, searcher.fusion, depth=searcher.depth, shared=True
        )
        return replace(self, searcher=other, vectors=rows, allowed=allowed)

    def part(self, ids: set[str]) -> Arena:
        """Only the queries with these ids."""
        keep = [at for at, item in enumerate(self.judged) if item.query.id in ids]
        return replace(self, judged=tuple(self.judged[at] for at in keep), vectors=self.vectors[keep])


def one_rank(
    queries: Sequence[Query], enough: Mapping[Evidence, int], most: int
) -> tuple[Evidence | None, list[Query]]:
    """The best-ranked evidence with enough queries, and those queries, evenly thinned to at most `most`."""
    for rank in Evidence:
        found = [query for query in queries if query.evidence is rank]
        if len(found) >= enough[rank]:
            return rank, found[:: -(-len(found) // most)]
    return None, []


def build_arena(
    queries: Sequence[Query],
    encoder: Encoder,
    encoded: EncodedCorpus,
    lexical_folder: Path,
    grades: Grades,
    progress: Progress = no_progress,
) -> Arena:
    """The task for queries of one rank of evidence. encoded: the corpus by this encoder.

    Where two queries were cut from one passage, the first is kept: a passage can be masked for one query only.
    """
    corpus, vectors = encoded.corpus, encoded.vectors
    lexical = LexicalIndex.open(lexical_folder)
    masks: dict[str, Chunk] = {}
    kept: list[Query] = []
    for query in queries:
        if query.kind in VERBATIM and query.positives:
            source = query.positives[0]
            if source in masks or source not in corpus.chunk_of:
                continue
            masks[source] = masked_chunk(query, corpus.chunk_of[source])
        kept.append(query)
    position_of = corpus.position_of
    if masks:
        order: NDArray[np.int64]
        lexical = LexicalIndex.open(lexical_folder, mmap=False)
        headings, texts = lexical_parts(list(masks.values()))
        lexical.update(list(masks), texts, headings=headings)
        order = np.array([position_of[id] for id in lexical.ids()], dtype=np.int64)
        ordered = temporary_array(vectors.shape, np.float32, lexical_folder.parent)
        for start in range(0, len(order), _BLOCK):
            ordered[start : start + _BLOCK] = vectors[order[start : start + _BLOCK]]
        ordered[len(ordered) - len(masks) :] = encoder.encode_passages(
            [chunk.passage.rstrip("\n") for chunk in masks.values()], progress=progress
        )
        vectors = ordered
        position_of = {id: position for position, id in enumerate(lexical.ids())}
    ids = lexical.ids()
    by_document = [query for query in kept if query.id in grades]
    judged = [
        *judge_by_document(by_document, grades, [corpus.document_of[id] for id in ids]),
        *judge_by_chunk((query for query in kept if query.id not in grades), position_of),
    ]
    # The background is that of the corpus as it is: a few masked rows change nothing.
    searcher = Searcher(exact_index(ids, vectors), lexical, encoded.background, Fusion())
    rows = encoder.encode_queries([item.query.text for item in judged], progress=progress)
    passages = Mapped(ids, lambda id: masks[id].passage.rstrip("\n") if id in masks else corpus.chunk_of[id].passage)
    return Arena(searcher, tuple(judged), rows, passages, progress)


def dense_scores(arena: Arena) -> tuple[Floats, Floats]:
    """Of all judged queries the dense scores of every answer (of a document: of its best passage), and of the best
    passage that is none; a query whose first passages are all answers has no such."""
    answers: list[float] = []
    others: list[float] = []
    searcher = arena.searcher
    ranked = searcher.plain.search(arena.vectors, min(_DEEP, len(arena.passages)))
    for item, vector, (ids, scores) in zip(arena.judged, arena.vectors, ranked, strict=True):
        positions = searcher.positions(ids)
        units = positions if item.unit_of is None else item.unit_of[positions]
        right = np.isin(units, list(item.relevant))
        others += scores[~right][:1].tolist()
        best = dict(zip(units[right][::-1].tolist(), scores[right][::-1].tolist(), strict=True))
        for unit in item.relevant:
            if unit not in best:
                own = [unit] if item.unit_of is None else np.flatnonzero(item.unit_of == unit)
                best[unit] = float(searcher.plain.scores(vector, searcher.ids_of(own)).max())
        answers += best.values()
    return np.array(answers, np.float32), np.array(others, np.float32)
