"""How good the untuned model is on quick queries made from the documents, and what follows from it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ragadapt.config import FitConfig
from ragadapt.doctor.survey import Survey, SurveyedCorpus, survey_corpus
from ragadapt.pipeline.adapt import side_of
from ragadapt.pipeline.corpus import EncodedCorpus
from ragadapt.pipeline.crossfit import WHOLE
from ragadapt.pipeline.queries import Labels
from ragadapt.values import Evidence, Progress, Query, no_progress

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder

PASSAGES = 1000  # encoded for the measurement: about a minute on a laptop
QUERIES = 200
SATURATED, WELL_ORDERED = 0.95, 0.9  # recall@10 and nDCG@10 from which little is left to gain
_FEWEST = 20  # queries of a rank, below which its figures are noise
_GAP = 0.05  # nDCG@10 by which the sides differ clearly

Outlook = Literal["worth training", "no judge", "little to gain", "wrong model"]


@dataclass(frozen=True, slots=True)
class Quality:
    """One way to search, on the quick queries. ndcg: nDCG@10; recall: share of queries answered in the first ten."""

    system: str
    ndcg: float
    recall: float


@dataclass(frozen=True, slots=True)
class FitEstimate:
    """What `fit` will take here, from the measured speed. training_seconds is 0 where nothing would be trained."""

    passages_per_second: float
    tokens_per_second: float
    encoding_seconds: float
    training_seconds: float
    memory_bytes: int | None
    disk_bytes: int

    @property
    def seconds(self) -> float:
        return self.encoding_seconds + self.training_seconds


@dataclass(frozen=True)
class Diagnosis:
    """A survey, the untuned model's quality and what follows from them.

    evidence: what kind of queries was measured with; measured: how many; sampled: passages searched, all of them if
    equal to survey.chunks. quality: dense, lexical, hybrid; empty where there was nothing to ask.
    """

    survey: Survey
    evidence: Evidence | None
    measured: int
    sampled: int
    quality: tuple[Quality, ...]
    estimate: FitEstimate
    outlook: Outlook
    recommendation: str

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = asdict(self) | {"survey": self.survey.as_dict()}
        values["estimate"]["seconds"] = self.estimate.seconds
        return values

    def lines(self) -> list[str]:
        """For a terminal."""
        found = self.survey.lines()
        found.append("")
        if self.quality and self.evidence is not None:
            of = (
                "" if self.sampled == self.survey.chunks else f" of {self.survey.chunks:,}, so it was easier than it is"
            )
            found.append(
                f"The untuned model on {self.measured} quick queries ({_EVIDENCE_WORDS[self.evidence]}), "
                f"searching {self.sampled:,} passages{of}:"
            )
            found.append(f"            {'nDCG@10':>8}  {'answered in the first ten':>25}")
            found += [f"  {one.system:<10}{one.ndcg:>8.3f}  {one.recall:>25.0%}" for one in self.quality]
            found.append("")
        estimate = self.estimate
        training = f", training about {_minutes(estimate.training_seconds)}" if estimate.training_seconds else ""
        memory = f"; memory about {estimate.memory_bytes / 1e9:.1f} GB" if estimate.memory_bytes else ""
        found.append(
            f"Fit here    encoding about {_minutes(estimate.encoding_seconds)} "
            f"({estimate.passages_per_second:.0f} passages/s){training}{memory}; disk {size_words(estimate.disk_bytes)}"
        )
        return [*found, "", f"{self.outlook[:1].upper()}{self.outlook[1:]}: {self.recommendation}"]


_EVIDENCE_WORDS = {
    Evidence.LABELLED: "your labelled questions",
    Evidence.HUMAN: "questions and link texts that people wrote in the documents",
    Evidence.PARAPHRASE: "written by a language model",
    Evidence.CROP: "titles and sentences cut from the passages: they favour word search",
}


def diagnose(
    sources: Sequence[str | Path],
    config: FitConfig = FitConfig(),
    *,
    labels: Sequence[Labels] = (),
    passages: int = PASSAGES,
    queries: int = QUERIES,
    progress: Progress = no_progress,
) -> Diagnosis:
    """Whether tuning is likely to pay on these documents. Trains nothing and leaves nothing behind.

    labels: the user's own queries, if there are any: they then measure. passages, queries: sizes of the sample that is
    measured. Raises EmptyCorpus, InvalidInput, ModelNotFound.
    """
    surveyed = survey_corpus(sources, config, labels, progress)
    evidence, quick = _quick_queries(surveyed, queries, config.seed)
    sample = _sample(surveyed, quick, passages, config.seed)
    quality, rate = _measure(surveyed, quick, sample, progress)
    estimate = _estimate(surveyed, config, rate)
    outlook, recommendation = recommend(
        surveyed.survey,
        quality,
        evidence=evidence,
        whole=len(sample) == len(surveyed.corpus.chunks),
        trains=config.adapter.trains,
        foreign=surveyed.foreign,
    )
    return Diagnosis(surveyed.survey, evidence, len(quick), len(sample), quality, estimate, outlook, recommendation)


def _quick_queries(surveyed: SurveyedCorpus, most: int, seed: int) -> tuple[Evidence | None, list[Query]]:
    """Queries of the best rank that has enough of them, at most one for each passage, evenly over the documents."""
    rng = np.random.default_rng(seed)
    for rank in Evidence:
        of_rank = [query for query in (*surveyed.labelled, *surveyed.queries) if query.evidence is rank]
        order = rng.permutation(len(of_rank))
        chosen: dict[str, Query] = {}
        for at in order:
            query = of_rank[at]
            if query.positives and len(chosen) < most:
                key = query.id if rank is Evidence.LABELLED else query.positives[0]
                chosen.setdefault(key, query)
        if len(chosen) >= min(_FEWEST, most, len(surveyed.corpus.chunks)):
            return rank, list(chosen.values())
    return None, []


def _sample(surveyed: SurveyedCorpus, quick: Sequence[Query], most: int, seed: int) -> list[int]:
    """Positions, ascending: the passages that answer, then random others up to `most`."""
    place = surveyed.corpus.position_of
    needed = dict.fromkeys(place[id] for query in quick for id in query.positives if id in place)
    rest = np.random.default_rng(seed).permutation(len(surveyed.corpus.chunks)).tolist()
    for at in rest:
        if len(needed) >= most:
            break
        needed.setdefault(at)
    return sorted(needed)


def _measure(
    surveyed: SurveyedCorpus, quick: Sequence[Query], sample: Sequence[int], progress: Progress
) -> tuple[tuple[Quality, ...], float]:
    """Quality by system, and tokens per second. A passage that a query was cut from is searched without its words."""
    from ragadapt.pipeline.arena import build_arena
    from ragadapt.pipeline.fusion import ranking
    from ragadapt.pipeline.stages import save_lexical

    corpus = surveyed.corpus.part(sample)
    encoder = surveyed.encoder
    warm = corpus.passages[:8]
    encoder.encode_passages(warm)
    started = time.perf_counter()
    vectors = encoder.encode_passages(corpus.passages, progress=progress)
    seconds = time.perf_counter() - started
    rate = sum(surveyed.token_counts[at] for at in sample) / max(seconds, 1e-6)
    if not quick:
        return (), rate
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        save_lexical(corpus.chunks, Path(folder))
        arena = build_arena(quick, encoder, EncodedCorpus(corpus, vectors), Path(folder), surveyed.grades, progress)
        measured = []
        for name, system in (("dense", "dense"), ("lexical", "lexical"), ("hybrid", "hybrid")):
            ranks = ranking(arena, system, k=100)  # type: ignore[arg-type]
            pairs = list(zip(arena.judged, ranks, strict=True))
            first = [item.rank_of_first(positions) for item, positions in pairs]
            measured.append(
                Quality(
                    name,
                    float(np.mean([item.ndcg(positions) for item, positions in pairs])),
                    float(np.mean([rank is not None and rank <= 10 for rank in first])),
                )
            )
        arena.searcher.lexical.close()
    return tuple(measured), rate


def recommend(
    survey: Survey,
    quality: Sequence[Quality],
    *,
    evidence: Evidence | None,
    whole: bool = True,
    trains: bool = True,
    foreign: bool = False,
) -> tuple[Outlook, str]:
    """The one thing to do next, from the facts. whole: the measurement searched all passages, not a sample. foreign:
    much of the text is in languages that the model does not know."""
    by = {one.system: one for one in quality}
    dense, lexical, best = by.get("dense"), by.get("lexical"), max(quality, key=lambda one: one.ndcg, default=None)
    if foreign:
        return "wrong model", (
            "choose a base model that knows the documents' language first: that gains more than any tuning. "
            "Run the same command with --model multilingual."
        )
    gap = ""
    if dense is not None and lexical is not None and evidence is not Evidence.CROP:
        if lexical.ndcg - dense.ndcg > _GAP:
            gap = (
                f" Word search is ahead of the model by {lexical.ndcg - dense.ndcg:.2f} nDCG: the documents use words "
                "that the model does not know well, which tuning can teach it."
            )
        elif dense.ndcg - lexical.ndcg > _GAP:
            gap = f" The model is ahead of word search by {dense.ndcg - lexical.ndcg:.2f} nDCG; the mix will follow it."
    trusted = evidence in (Evidence.LABELLED, Evidence.HUMAN)
    if trusted and whole and best is not None and best.recall >= SATURATED and best.ndcg >= WELL_ORDERED:
        return "little to gain", (
            f"{best.system} search already answers {best.recall:.0%} of the questions in its first ten results, "
            f"nearly always at the top (nDCG@10 {best.ndcg:.2f}). "
            "`ragadapt fit` with --method none builds the retriever and learns the mix in a fraction of the time."
        )
    if not survey.trainable:
        return "no judge", (
            "the documents hold too few real questions to judge a trained model by (see Plan). `ragadapt fit` will "
            "learn the mix of dense and lexical search and keep the base model. For more, give 50 or more real "
            f"questions with --queries, or a language model with --generator.{gap}"
        )
    if not trains:
        return "worth training", f"a trained model could be judged; leave --method none out to train one.{gap}"
    return "worth training", (
        f"{survey.plan.rstrip('.')}. Run `ragadapt fit`: what it trains ships only if it is shown to be better.{gap}"
    )


# A training step costs, per token of its texts, so many times what encoding that token costs: forward and backward
# through the trained layers, the gradient cache's second forward. Measured 1.7 on a CPU for half of the layers.
_STEP_COST = 3.5
_QUERY_TOKENS = 16
_DEV_POOL = 1000


def _estimate(surveyed: SurveyedCorpus, config: FitConfig, rate: float) -> FitEstimate:
    facts, encoder = surveyed.survey, surveyed.encoder
    per_passage = facts.tokens / facts.chunks
    encoding = facts.tokens / rate
    training = 0.0
    if facts.trainable and config.adapter.trains:
        plan = surveyed.plan
        examples = len(plan.train) or config.query.generator_queries
        texts = (1 + config.mining.negatives) * per_passage + _QUERY_TOKENS
        epochs, _ = config.training.pace(plan.evidence or Evidence.LABELLED)
        steps_tokens = examples * texts * epochs
        if config.training.max_steps is not None:
            steps_tokens = min(steps_tokens, config.training.max_steps * config.training.batch_size * texts)
        looks = (config.training.evaluations + len(config.gate.interpolation) + 2) * _DEV_POOL * per_passage
        if plan.crossed:
            steps_tokens *= plan.crossed  # each fold trains on the others, and what ships on all
            strengths = len(config.gate.strengths(plan.evidence or Evidence.LABELLED))
            looks = plan.crossed * strengths * min(facts.chunks, WHOLE) * per_passage
        training = (_STEP_COST * _trained_share(encoder, config) * steps_tokens + looks) / rate
        if config.adapter.settled(side_of(plan, config.adapter)).adapt == "both":
            training += facts.tokens / rate  # the passages once more, by the trained model
    vectors = facts.chunks * encoder.dim * 4
    peak = _peak_memory()
    return FitEstimate(
        passages_per_second=rate / per_passage,
        tokens_per_second=rate,
        encoding_seconds=encoding,
        training_seconds=training,
        memory_bytes=None if peak is None else peak + 2 * vectors,
        disk_bytes=vectors * 2 + facts.characters * 3,
    )


def _trained_share(encoder: Encoder, config: FitConfig) -> float:
    """Of the layers."""
    from ragadapt.encoder.prefix import layer_list

    found = layer_list(encoder.query_tower.model) if encoder.query_tower is not None else None
    if found is None or config.adapter.layers is None:
        return 1.0
    return min(1.0, config.adapter.layers / len(found[1]))


def _peak_memory() -> int | None:
    """Bytes that this process held at most; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size_words(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{max(1, round(number / 1e6))} MB"
