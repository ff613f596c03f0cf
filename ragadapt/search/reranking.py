"""The second stage of a search: a re-ranker reads the best passages of the first, and its score joins the fusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ragadapt.checks import checked_k, checked_number, checked_threshold, shown
from ragadapt.errors import InvalidInput
from ragadapt.search.confidence import Reread
from ragadapt.search.fusion import RRF_K, Floats, with_reranker
from ragadapt.search.searcher import Ranked

PLAIN_WEIGHT = 0.5  # the plain sum, for a re-ranker that was named by hand and of whose worth nothing is known


class PairReader(Protocol):
    """What reads a query and a passage together."""

    @property
    def depth(self) -> int:
        """Passages that it reads of a query where nobody says how many."""

    def affordable(self, query: str, passages: Sequence[str], milliseconds: float) -> int:
        """How many of the passages, from the first on, it can read in this time."""

    def logits_of(self, lists: Sequence[tuple[str, Sequence[str]]]) -> list[Floats]:
        """For every (query, passages) one number a passage, larger is better."""

    def scores(self, query: str, passages: Sequence[str]) -> Floats:
        """The same for one query, as the model was trained to give them."""


@dataclass(frozen=True, slots=True)
class Rerank:
    """How a search is re-ranked.

    model: a preset, a hub name or a folder; None = the retriever's own. depth: passages that are read of a query; None
    = as it was fitted, else 20 on a CPU and 50 elsewhere; further ones follow in the order of the first stage.
    milliseconds: read only as many as this time allows. weight: the re-ranker's share of the score, 0 = none, 1 = all;
    None = as it was learnt, and ½ for a model named here.
    """

    model: str | Path | None = None
    depth: int | None = None
    milliseconds: float | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if self.depth is not None:
            checked_k(self.depth, "rerank depth")
        if self.milliseconds is not None:
            checked_number("rerank milliseconds", self.milliseconds, 0)
        if self.weight is not None:
            checked_number("rerank weight", self.weight, 0, 1, "0 = the first stage alone, 1 = the re-ranker alone")


def checked_rerank(rerank: Any, k: int, mode: str) -> Rerank | None:
    """What was asked; None = no second stage. Raises InvalidInput."""
    if rerank is None or rerank is False:
        return None
    if rerank is True:
        rerank = Rerank()
    if not isinstance(rerank, Rerank):
        raise InvalidInput(f"rerank = {shown(rerank)}: it is True, False or a Rerank(model=…, depth=…).")
    if mode != "hybrid":
        raise InvalidInput(
            f"rerank goes with mode 'hybrid', whose scores its weight was learnt for, not with {mode!r}."
        )
    if rerank.depth is not None and k > rerank.depth:
        raise InvalidInput(
            f"k = {k}, but only {rerank.depth} passages would be re-ranked. Give a depth of at least {k}, or ask for "
            "fewer."
        )
    return rerank


def rerank_all(
    rankings: Sequence[Ranked],
    queries: Sequence[str],
    passages: Callable[[Sequence[str]], Mapping[str, str]],
    reader: PairReader,
    weight: float,
    depth: int,
    k: int,
    milliseconds: float | None = None,
    reread: Reread | None = None,
) -> list[Ranked]:
    """The best k of every query by the first stage and the reader together.

    rankings: of the first stage. passages: ids → id → text. What was not read keeps its order behind. The numbers of
    the reader come as the part "rerank", NaN where a passage was not read. reread: how sure the hits are then; None =
    as sure of the first, second … place as before, the reader says which passage that is.
    """
    texts = passages(list(dict.fromkeys(id for ranked in rankings for id in ranked.ids[:depth])))
    lists = []
    for query, ranked in zip(queries, rankings, strict=True):
        own = [texts[id] for id in ranked.ids[:depth]]
        most = len(own) if milliseconds is None else reader.affordable(query, own, milliseconds)
        lists.append((query, own[:most]))
    made = []
    for ranked, read in zip(rankings, reader.logits_of(lists), strict=True):
        scores = with_reranker(ranked.scores, read, weight)
        order = np.argsort(-scores, kind="stable")[:k]
        every = np.full(len(scores), np.nan, dtype=np.float32)
        every[: len(read)] = read
        parts = {**ranked.parts, "rerank": every}
        sure = None if ranked.confidence is None else ranked.confidence[:k]
        made.append(
            Ranked(
                [ranked.ids[at] for at in order],
                scores[order],
                {name: part[order] for name, part in parts.items()},
                sure if sure is None or reread is None else reread.of(sure, read),
            )
        )
    return made


def rerank_given(
    query: str,
    passages: Sequence[str],
    reader: PairReader,
    *,
    scores: Sequence[float] | None = None,
    weight: float = 1.0,
    threshold: float | None = None,
    most: int | None = None,
) -> list[tuple[int, float]]:
    """(position, score) of another search's passages, best first.

    scores: theirs; None = by their order, 1 / (60 + rank) as in reciprocal-rank fusion. weight: the reader's share;
    1 = its own scores alone. threshold: leaves out what scores less. most: how many are kept. Raises InvalidInput.
    """
    least = checked_threshold(threshold)
    if not len(passages):
        return []
    if weight == 1:
        mixed = reader.scores(query, passages)
    else:
        ranks = np.arange(1, len(passages) + 1)
        first = 1 / (RRF_K + ranks) if scores is None else np.asarray(scores, dtype=np.float64)
        (read,) = reader.logits_of([(query, passages)])
        mixed = with_reranker(first, read, weight)
    order = np.argsort(-mixed, kind="stable").tolist()
    return [(at, float(mixed[at])) for at in order if least is None or mixed[at] >= least][:most]
