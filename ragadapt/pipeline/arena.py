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
from ragadapt.pipeline.stages import lexical_parts
from ragadapt.queries import VERBATIM, masked_chunk
from ragadapt.search.fusion import Background, Floats, Fusion
from ragadapt.search.searcher import Searcher
from ragadapt.values import Chunk, Evidence, Progress, Query, no_progress

if TYPE_CHECKING:
    from pathlib import Path

    from ragadapt.encoder import Encoder
    from ragadapt.pipeline.stages import Corpus

Grades = Mapping[str, Mapping[str, int]]
"""query id → document id → grade, for labels that name documents."""


@dataclass(frozen=True)
class Arena:
    """judged[i] belongs to vectors[i] (Q, d). Positions are the searcher's own; passages[position] is its text.

    progress: told of every search in it.
    """

    searcher: Searcher
    judged: tuple[JudgedQuery, ...]
    vectors: Floats
    passages: tuple[str, ...]
    progress: Progress = no_progress

    def with_fusion(self, fusion: Fusion) -> Arena:
        """The same task, searched with another fusion."""
        searcher = self.searcher
        other = Searcher(searcher.index, searcher.lexical, searcher.background, fusion, depth=searcher.depth)
        return replace(self, searcher=other)

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
    corpus: Corpus,
    vectors: Floats,
    lexical_folder: Path,
    grades: Grades,
    progress: Progress = no_progress,
) -> Arena:
    """The task for queries of one rank of evidence. vectors: (N, d) of the corpus by this encoder.

    Where two queries were cut from one passage, the first is kept: a passage can be masked for one query only.
    """
    lexical = LexicalIndex.open(lexical_folder)
    masks: dict[str, Chunk] = {}
    kept: list[Query] = []
    by_id = {chunk.id: chunk for chunk in corpus.chunks}
    for query in queries:
        if query.kind in VERBATIM and query.positives:
            source = query.positives[0]
            if source in masks or source not in by_id:
                continue
            masks[source] = masked_chunk(query, by_id[source])
        kept.append(query)
    at = {id: position for position, id in enumerate(corpus.ids)}
    if masks:
        order: NDArray[np.int64]
        lexical = LexicalIndex.open(lexical_folder, mmap=False)
        headings, texts = lexical_parts(masks.values())
        lexical.update(list(masks), texts, headings=headings)
        order = np.array([at[id] for id in lexical.ids()], dtype=np.int64)
        background = Background.of(vectors)  # of the corpus as it is: a few masked rows change nothing
        vectors = np.asarray(vectors)[order]
        vectors[len(vectors) - len(masks) :] = encoder.encode_passages(
            [chunk.passage.rstrip("\n") for chunk in masks.values()], progress=progress
        )
        at = {id: position for position, id in enumerate(lexical.ids())}
    else:
        background = Background.of(vectors)
    ids = lexical.ids()
    document_of = {chunk.id: chunk.document_id for chunk in corpus.chunks}
    by_document = [query for query in kept if query.id in grades]
    judged = [
        *judge_by_document(by_document, grades, [document_of[id] for id in ids]),
        *judge_by_chunk((query for query in kept if query.id not in grades), at),
    ]
    searcher = Searcher(exact_index(ids, vectors), lexical, background, Fusion())
    rows = encoder.encode_queries([item.query.text for item in judged], progress=progress)
    passages = tuple(masks[id].passage.rstrip("\n") if id in masks else by_id[id].passage for id in ids)
    return Arena(searcher, tuple(judged), rows, passages, progress)
