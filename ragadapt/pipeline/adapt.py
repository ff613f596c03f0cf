"""From judged queries to a trained encoder: examples, training, the choice of strength, and the gate's comparison."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ragadapt.config import AdapterConfig, FitConfig
from ragadapt.errors import InvalidConfiguration
from ragadapt.evaluation import gate
from ragadapt.evaluation.judging import JudgedQuery
from ragadapt.pipeline.arena import Arena
from ragadapt.pipeline.corpus import Corpus, EncodedCorpus
from ragadapt.pipeline.stages import rows_of
from ragadapt.queries import FEWEST_DEV, masked_passage
from ragadapt.search.fusion import Fusion
from ragadapt.search.searcher import Searcher
from ragadapt.values import Evidence, Progress, Query, no_progress

if TYPE_CHECKING:
    from ragadapt.adapters import AdaptedEncoder, AdapterEffect, TrainableShare
    from ragadapt.encoder import Encoder, SavedModel
    from ragadapt.search.fusion import Floats
    from ragadapt.training import Example

log = logging.getLogger(__name__)

MANY_LABELS = 200
"""Labelled questions that train, from which on the query side alone learns as much, or more, in a fourth of the time:
from 450 on it did; 100 taught it nothing that carried over, and both sides something (docs/decisions.md)."""
_POOL_DEPTH = 8  # candidates of each dev query in the pool that early stopping searches
_POOL_SIZE = 600
_DEV_QUERIES = 75
_DRIFT_PROBE = 256  # unlabelled passages whose movement is measured


def make_examples(
    queries: Sequence[Query],
    searcher: Searcher,
    vectors: Mapping[str, Floats],
    corpus: Corpus,
    config: FitConfig,
    grades: Mapping[str, Mapping[str, int]] | None = None,
    progress: Progress = no_progress,
) -> tuple[list[Example], int]:
    """Training examples with mined negatives and teacher scores, one per positive; and how many suspects the margin
    kept out.

    Where the loss follows a teacher, the scores of an example's candidates are those of `mining.teacher`; without one,
    and for InfoNCE, which reads none, the fused scores of the untuned hybrid. For margin_mse they are brought onto the
    student's scale: one factor for all examples, which gives the teacher's scores within a list the spread (standard
    deviation, pooled over all lists) that the base model's own cosines have there. A factor keeps every preference of
    the teacher; a shift of the margins as well, to equal means, could turn preferences into their opposite.
    grades: query id → document id → grade, where labels name documents: no chunk of a graded document is a negative,
    whichever of them is the positive.
    """
    from ragadapt.training import Example
    from ragadapt.training.negatives import mine_negatives

    positions = corpus.position_of
    queries = [query for query in queries if any(id in positions for id in query.positives)]
    known = [[positions[id] for id in query.positives if id in positions] for query in queries]
    relevant = chunks_of_graded(queries, corpus, grades or {})
    found = searcher.candidates(
        [query.text for query in queries],
        rows_of(vectors, queries),
        fusion=Fusion(feedback=0.0),
        depth=config.mining.depth,
        include=known,
        progress=progress,
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
        progress=progress,
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
                    task=query.kind,
                )
            )
    examples = _with_teacher_scores(examples, config, progress)
    if config.training.loss == "margin_mse":
        listed = [
            (vectors[query.id], (positive, *others))
            for query, own, others in zip(queries, mined.positives, mined.candidates, strict=True)
            for positive in own
        ]
        examples = _on_the_students_scale(examples, [_cosines(searcher, *item) for item in listed])
    return examples, mined.suspects


def known_vectors(
    examples: Sequence[Example], encoded: EncodedCorpus, adapter: AdapterConfig
) -> dict[str, Floats] | None:
    """What a training need not encode: the examples' passages by the base, where only the query side is trained."""
    if adapter.adapt != "query":
        return None
    return encoded.of_texts({text for one in examples for text in (one.positive, *one.negatives, *one.candidates)})


def side_of(plan: gate.Plan, adapter: AdapterConfig) -> Literal["both", "query"]:
    """What is trained where the settings leave it open: queries alone after MANY_LABELS, by a method that takes large
    steps there."""
    from ragadapt.adapters.method import takes_large_steps

    labelled = sum(query.evidence is Evidence.LABELLED for query in plan.train)
    held_out = plan.evidence is Evidence.LABELLED and not plan.crossed
    many = held_out and labelled >= MANY_LABELS
    return "query" if many and takes_large_steps(adapter.settled("query")) else "both"


def check_teacher(config: FitConfig) -> None:
    """Raises InvalidConfiguration where a teacher is named that no loss would follow."""
    if config.mining.teacher is not None and config.training.loss == "infonce":
        raise InvalidConfiguration(
            f"mining.teacher = {config.mining.teacher!r}, but training.loss = 'infonce' follows no teacher. Set "
            "training.loss to 'both', 'distill' or 'margin_mse', or leave the teacher out."
        )


def _with_teacher_scores(examples: list[Example], config: FitConfig, progress: Progress) -> list[Example]:
    """The examples with the scores of the cross-encoder, if one is named and the loss reads them."""
    if config.mining.teacher is None or config.training.loss == "infonce":
        return examples
    from ragadapt.training.teacher import cross_encoder_scores

    scores = cross_encoder_scores(
        config.mining.teacher,
        [(example.query, example.candidates) for example in examples],
        config.encoder,
        progress=progress,
    )
    return [replace(example, teacher_scores=own) for example, own in zip(examples, scores, strict=True)]


def _cosines(searcher: Searcher, vector: Floats, positions: Sequence[int]) -> Floats:
    """The base model's own scores of these passages."""
    return searcher.plain.scores(vector, searcher.ids_of(positions))


def _on_the_students_scale(examples: list[Example], cosines: Sequence[Floats]) -> list[Example]:
    """All teacher scores times the one factor that gives them the cosines' pooled spread within lists."""

    def spread(lists: Sequence[Any]) -> float:
        arrays = [np.asarray(one, dtype=np.float64) for one in lists]
        squared = sum(float(((one - one.mean()) ** 2).sum()) for one in arrays)
        return float(np.sqrt(squared / sum(len(one) for one in arrays)))

    given = spread([example.teacher_scores for example in examples]) if examples else 0.0
    if given == 0:  # a teacher without any preference
        return examples
    factor = spread(cosines) / given
    log.info("teacher scores times %.4g: the spread of the base model's cosines", factor)
    return [
        replace(example, teacher_scores=tuple(factor * score for score in example.teacher_scores))
        for example in examples
    ]


def chunks_of_graded(
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
    """A small search task for early stopping and the choice of strength: dev queries over a pool of passages.

    positions: of the pool in the arena, ascending. vectors: of its passages, where no training moves them.
    """

    judged: tuple[JudgedQuery, ...]
    positions: NDArray[np.int64]
    passages: tuple[str, ...]
    vectors: Floats | None = None

    def score(self, encoder: Encoder, progress: Progress = no_progress) -> float:
        """Mean nDCG@10 of dense search over the pool."""
        queries = encoder.encode_queries([item.query.text for item in self.judged], progress=progress)
        passages = self.vectors
        if passages is None:
            passages = encoder.encode_passages(self.passages, progress=progress)
        scores = queries @ passages.T  # (Q, d) x (P, d) -> (Q, P)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :100]
        return float(np.mean([item.ndcg(self.positions[row]) for item, row in zip(self.judged, order, strict=True)]))


def dev_judges(dev: Sequence[Query], plan: gate.Plan) -> Iterator[list[Query]]:
    """Sets of dev queries that may steer the training, the best first, each large enough to say something.

    First those like the queries that judge: of their evidence and, below labels, of their kind. Then, as less is
    better than nothing, each rank of evidence as a whole but for crops; those only steer, and the gate does not look at
    them.
    """
    like = [query for query in dev if query.evidence is plan.evidence]
    if plan.evidence is not Evidence.LABELLED:
        like = [query for query in like if query.kind == plan.judge[0].kind]
    if len(like) >= FEWEST_DEV:
        yield like
    for rank in Evidence:
        found = [query for query in dev if query.evidence is rank]
        if rank is not Evidence.CROP and len(found) >= FEWEST_DEV:
            yield found[:: -(-len(found) // (4 * _DEV_QUERIES))]


def dev_pool(arena: Arena, *, seed: int, queries_only: bool = False) -> DevPool | None:
    """Every relevant passage, the base's best candidates, and random passages; None with too few dev queries, whose
    score would be noise: then nothing stops early, and the strength is full. queries_only: training leaves the
    passages' vectors as they are."""
    if len(arena.judged) < FEWEST_DEV:
        return None
    keep = range(0, len(arena.judged), -(-len(arena.judged) // _DEV_QUERIES))
    judged = [arena.judged[at] for at in keep]
    found = arena.searcher.candidates(
        [item.query.text for item in judged], arena.vectors[list(keep)], depth=_POOL_DEPTH
    )
    relevant: set[int] = set()
    for item in judged:
        relevant |= item.answers
    near = [int(at) for candidates in found for at in candidates.ranked(arena.searcher.fusion, _POOL_DEPTH)[0]]
    rest = np.random.default_rng(seed).permutation(len(arena.passages)).tolist()
    chosen = list(dict.fromkeys([*sorted(relevant), *near]))
    if len(chosen) < _POOL_SIZE:
        chosen = list(dict.fromkeys([*chosen, *rest]))[:_POOL_SIZE]
    positions = np.array(sorted(chosen), dtype=np.int64)
    vectors = None
    if queries_only:
        ids = arena.searcher.ids
        vectors = arena.searcher.index.vectors([ids[at] for at in positions])
    return DevPool(tuple(judged), positions, tuple(arena.passages[at] for at in positions), vectors)


def choose_strength(
    encoder: AdaptedEncoder,
    score: Callable[[Encoder], float] | None,
    config: FitConfig,
    progress: Progress = no_progress,
) -> tuple[float, dict[float, float]]:
    """The interpolation towards the base whose score on the dev part is best; 1 where there is none. Leaves it set."""
    if score is None:
        encoder.scale(1.0)
        return 1.0, {}
    curve: dict[float, float] = {}
    strengths = (0.0, *sorted(config.gate.interpolation), 1.0)
    for done, strength in enumerate(strengths, start=1):
        encoder.scale(strength)
        curve[strength] = score(encoder)
        progress("choosing the strength", done, len(strengths))
    best = max((strength for strength in curve if strength > 0), key=lambda strength: (curve[strength], strength))
    encoder.scale(best)
    log.info("strength on the dev part: %s; chosen %.2f", {s: round(v, 4) for s, v in curve.items()}, best)
    return best, curve


def gentlest(quality: Mapping[float, NDArray[np.float64]]) -> float:
    """The smallest strength whose quality, (Q,) per query, is within one standard error of the best one's, paired by
    query: what can't be told apart from more should not go further from the base."""
    best = max(quality, key=lambda strength: (quality[strength].mean(), -strength))
    for strength in sorted(quality):
        loss = quality[best] - quality[strength]
        error = loss.std(ddof=1) / np.sqrt(len(loss)) if len(loss) > 1 else 0.0
        if loss.mean() <= error:
            return strength
    return best


def drift(base: Floats, adapted: Floats, *, seed: int) -> float:
    """Mean 1 − cos between base and adapted vectors of sampled passages: how far unlabelled text moved."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(base))[:_DRIFT_PROBE])
    return float(1 - np.mean(np.sum(np.asarray(base[rows]) * np.asarray(adapted[rows]), axis=1)))


def proof(effect: AdapterEffect, saved: SavedModel, share: TrainableShare) -> list[dict[str, Any]]:
    """The adapter-effect proof as checks: name, passed, detail."""
    return [
        {
            "name": "The adapter is not zero",
            "passed": effect.has_learnt,
            "detail": f"norm of what was learnt: {effect.change:.4g}; trained: {share}",
        },
        {
            "name": "Vectors moved",
            "passed": effect.has_moved,
            "detail": f"mean 1 − cosine to the base: {effect.moved:.4f}",
        },
        {
            "name": "Merged equals unmerged",
            "passed": effect.merges,
            "detail": f"least cosine: {effect.merged:.5f}",
        },
        {
            "name": "Reloaded from disk equals memory",
            "passed": saved.reload_cosine >= 0.9999,
            "detail": f"least cosine: {saved.reload_cosine:.5f}",
        },
    ]


__all__ = [
    "DevPool",
    "check_teacher",
    "choose_strength",
    "chunks_of_graded",
    "dev_judges",
    "dev_pool",
    "drift",
    "gentlest",
    "make_examples",
    "proof",
    "side_of",
]
