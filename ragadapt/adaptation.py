"""From judged queries to a trained encoder: examples, training, the choice of strength, and the gate's comparison."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ragadapt.arena import Arena
from ragadapt.config import FitConfig
from ragadapt.evaluation.judging import JudgedQuery
from ragadapt.fusion import Fusion
from ragadapt.mining import mine_negatives
from ragadapt.queries import masked_passage
from ragadapt.search import Searcher
from ragadapt.stages import Corpus, rows_of
from ragadapt.values import Query

if TYPE_CHECKING:
    from ragadapt.adapters import AdaptedEncoder, AdapterEffect
    from ragadapt.encoder import Encoder, SavedModel
    from ragadapt.fusion import Floats
    from ragadapt.training import Example

log = logging.getLogger(__name__)

_POOL_DEPTH = 8  # candidates of each dev query in the pool that early stopping searches
_POOL_SIZE = 600
_DEV_QUERIES = 75
_FEWEST_DEV = 8  # with fewer, the dev score is noise: no early stopping, full strength
_DRIFT_PROBE = 256  # unlabelled passages whose movement is measured


def make_examples(
    queries: Sequence[Query],
    searcher: Searcher,
    vectors: Mapping[str, Floats],
    corpus: Corpus,
    config: FitConfig,
    grades: Mapping[str, Mapping[str, int]] | None = None,
) -> tuple[list[Example], int]:
    """Training examples with mined negatives and teacher scores, one per positive; and how many suspects the margin
    kept out.

    grades: query id → document id → grade, where labels name documents: no chunk of a graded document is a negative,
    whichever of them is the positive.
    """
    from ragadapt.training import Example

    positions = {id: at for at, id in enumerate(corpus.ids)}
    queries = [query for query in queries if any(id in positions for id in query.positives)]
    known = [[positions[id] for id in query.positives if id in positions] for query in queries]
    relevant = _chunks_of_graded(queries, corpus, grades or {})
    found = searcher.candidates(
        [query.text for query in queries],
        rows_of(vectors, queries),
        fusion=Fusion(feedback=0.0),
        depth=config.mining.depth,
        include=known,
    )
    mined = mine_negatives(
        queries,
        found,
        positions=positions,
        text_keys=corpus.text_keys,
        groups=corpus.groups,
        fusion=Fusion(feedback=0.0),
        config=config.mining,
        relevant=relevant,
    )
    chunks = corpus.chunks
    examples = []
    for number, query in enumerate(queries):
        own, others, teacher = mined.positives[number], mined.candidates[number], mined.teacher[number]
        answers = {*own, *relevant[number]}
        for place, positive in enumerate(own):
            passage = masked_passage(query, chunks[positive])
            examples.append(
                Example(
                    query=query.text,
                    positive=passage,
                    negatives=tuple(chunks[at].passage for at in mined.negatives[number]),
                    candidates=(passage, *(chunks[at].passage for at in others)),
                    teacher_scores=(teacher[place], *teacher[len(own) :]),
                    group=corpus.groups[positive],
                    answers=tuple(chunks[at].passage for at in sorted(answers - {positive})),
                )
            )
    return examples, mined.suspects


def _chunks_of_graded(
    queries: Sequence[Query], corpus: Corpus, grades: Mapping[str, Mapping[str, int]]
) -> list[tuple[int, ...]]:
    """Per query the positions of all chunks of the documents that its labels call relevant."""
    wanted = {document for query in queries for document in grades.get(query.id, ())}
    of_document: dict[str, list[int]] = {}
    for at, chunk in enumerate(corpus.chunks):
        if chunk.document_id in wanted:
            of_document.setdefault(chunk.document_id, []).append(at)
    return [
        tuple(
            at
            for document, grade in grades.get(query.id, {}).items()
            if grade > 0
            for at in of_document.get(document, ())
        )
        for query in queries
    ]


@dataclass(frozen=True)
class DevPool:
    """A small search task for early stopping and the choice of strength: dev queries over a pool of passages."""

    judged: tuple[JudgedQuery, ...]
    positions: NDArray[np.int64]  # of the pool in the arena, ascending
    passages: tuple[str, ...]

    def score(self, encoder: Encoder) -> float:
        """Mean nDCG@10 of dense search over the pool."""
        queries = encoder.encode_queries([item.query.text for item in self.judged])
        scores = queries @ encoder.encode_passages(self.passages).T  # (Q, d) x (P, d) -> (Q, P)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :100]
        return float(np.mean([item.ndcg(self.positions[row]) for item, row in zip(self.judged, order, strict=True)]))


def dev_pool(arena: Arena | None, *, seed: int) -> DevPool | None:
    """Every relevant passage, the base's best candidates, and random passages; None without dev queries."""
    if arena is None or len(arena.judged) < _FEWEST_DEV:
        return None
    keep = range(0, len(arena.judged), -(-len(arena.judged) // _DEV_QUERIES))
    judged = [arena.judged[at] for at in keep]
    found = arena.searcher.candidates(
        [item.query.text for item in judged], arena.vectors[list(keep)], depth=_POOL_DEPTH
    )
    relevant: set[int] = set()
    for item in judged:
        if item.unit_of is None:
            relevant |= set(item.relevant)
        else:
            relevant |= set(np.flatnonzero(np.isin(item.unit_of, list(item.relevant))).tolist())
    near = [int(at) for candidates in found for at in candidates.ranked(arena.searcher.fusion, _POOL_DEPTH)[0]]
    rest = np.random.default_rng(seed).permutation(len(arena.passages)).tolist()
    chosen = list(dict.fromkeys([*sorted(relevant), *near]))
    if len(chosen) < _POOL_SIZE:
        chosen = list(dict.fromkeys([*chosen, *rest]))[:_POOL_SIZE]
    positions = np.array(sorted(chosen), dtype=np.int64)
    return DevPool(tuple(judged), positions, tuple(arena.passages[at] for at in positions))


def choose_strength(
    encoder: AdaptedEncoder, pool: DevPool | None, config: FitConfig
) -> tuple[float, dict[float, float]]:
    """The interpolation towards the base that is best on the dev pool; 1 where there is no pool. Leaves it set."""
    if pool is None:
        encoder.scale(1.0)
        return 1.0, {}
    curve: dict[float, float] = {}
    for strength in (0.0, *sorted(config.gate.interpolation), 1.0):
        encoder.scale(strength)
        curve[strength] = pool.score(encoder)
    best = max((strength for strength in curve if strength > 0), key=lambda strength: (curve[strength], strength))
    encoder.scale(best)
    log.info("strength on the dev part: %s; chosen %.2f", {s: round(v, 4) for s, v in curve.items()}, best)
    return best, curve


def drift(base: Floats, adapted: Floats, *, seed: int) -> float:
    """Mean 1 − cos between base and adapted vectors of sampled passages: how far unlabelled text moved."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(base))[:_DRIFT_PROBE])
    return float(1 - np.mean(np.sum(np.asarray(base[rows]) * np.asarray(adapted[rows]), axis=1)))


def proof(effect: AdapterEffect, saved: SavedModel) -> list[dict[str, Any]]:
    """The adapter-effect proof as checks: name, passed, detail."""
    return [
        {
            "name": "The adapter is not zero",
            "passed": effect.b_norm > 0,
            "detail": f"norm of what was learnt: {effect.b_norm:.4g}",
        },
        {
            "name": "Vectors moved",
            "passed": not any("moved" in problem for problem in effect.problems),
            "detail": f"mean 1 − cosine to the base: {effect.moved:.4f}",
        },
        {
            "name": "Merged equals unmerged",
            "passed": not any("merged" in problem for problem in effect.problems),
            "detail": f"least cosine: {effect.merged:.5f}",
        },
        {
            "name": "Reloaded from disk equals memory",
            "passed": saved.reload_cosine >= 0.9999,
            "detail": f"least cosine: {saved.reload_cosine:.5f}",
        },
    ]


__all__ = ["DevPool", "choose_strength", "dev_pool", "drift", "make_examples", "proof"]
