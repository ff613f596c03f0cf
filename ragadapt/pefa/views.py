"""The dense side of a search with feedback in it: PEFA-XS and PEFA-XL, in the place of the plain index.

Both leave the engine's vectors alone and correct its result, exactly: what feedback touches is scored in memory and
merged with what the engine finds among the rest. So they work over every index, λ is free at query time, and taking
feedback back leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ragadapt.config import PefaConfig
from ragadapt.errors import InvalidInput
from ragadapt.index import Filter, VectorIndex
from ragadapt.lexical.ranking import Ranking
from ragadapt.pefa.state import SHARED, Overlay, State, passing
from ragadapt.search.fusion import Floats
from ragadapt.search.searcher import Dense, Plain

_MARGIN = 16  # passages asked of the engine beyond k, for those that feedback moves away
_XL_DEPTH = 500  # of the plain list where a missing score counts as 0, as in the paper
_BLOCK = 256  # queries scored against past queries at a time


class ExtraShortSearch:
    """PEFA-XS: passages with feedback have rows p + (1 − λ)·D, the others p; the score is the inner product.

    A tenant's own rows take the place of those for all.
    """

    scale = 1.0

    def __init__(self, index: VectorIndex, state: State, lam: float, tenant: str = SHARED) -> None:
        self.index = index
        self.lam = lam
        shared, own = state.overlays[SHARED], state.overlay(tenant) if tenant != SHARED else None
        self._parts: list[tuple[Overlay, NDArray[np.bool_] | None]] = [(shared, None)]  # with the rows that count
        if own is not None:
            counts = np.ones(len(shared), np.bool_)
            counts[[shared.index[id] for id in own.ids if id in shared.index]] = False
            self._parts = [(own, None), (shared, counts)]

    def __len__(self) -> int:
        return sum(len(overlay) for overlay, _ in self._parts)

    def search(self, vectors: Floats, k: int, filter: Filter | None = None) -> list[Ranking]:
        vectors = np.asarray(vectors, np.float32)
        results = untouched(self.index, vectors, k, filter, self._covers, len(self))
        for overlay, counts in self._parts:
            mask = counts
            if filter is not None:
                fits = overlay.passing(self.index, filter)
                mask = fits if counts is None else counts & fits
            rows = overlay.rows(self.lam)
            for start in range(0, len(vectors), _BLOCK):
                scores = vectors[start : start + _BLOCK] @ rows.T  # (B, d) x (d, F) -> (B, F)
                if mask is not None:
                    scores[:, ~mask] = -np.inf
                for at, row in enumerate(scores, start=start):
                    results[at] = merge(results[at], overlay.ids, row, k)
        return results

    def scores(self, vector: Floats, ids: Sequence[str]) -> Floats:
        scores: Floats = self.vectors(ids) @ vector
        return scores

    def vectors(self, ids: Sequence[str]) -> Floats:
        found = self.index.vectors(ids)
        for overlay, _ in reversed(self._parts):  # a tenant's own rows last: they win
            at = [(row, overlay.index[id]) for row, id in enumerate(ids) if id in overlay.index]
            if at:
                to, source = zip(*at)
                found[list(to)] = overlay.rows(self.lam)[list(source)]
        return found

    def _covers(self, id: str) -> bool:
        return any(id in overlay.index for overlay, _ in self._parts)


class ExtraLargeSearch:
    """PEFA-XL: λ·⟨q, p⟩ + (1 − λ)·(1/k)·Σ ⟨q, q_i⟩·Y_i over the k nearest past queries q_i.

    missing: "exact" scores every passage that a past query brings in; the result is that of a scan of everything.
    "zero" counts only the engine's best 500 and gives the others 0 for their plain score, as in the paper.
    """

    def __init__(
        self, index: VectorIndex, state: State, lam: float, k: int, tenant: str = SHARED, missing: str = "exact"
    ) -> None:
        self.index = index
        self.state = state
        self.lam = lam
        self.k = k
        self.tenant = tenant
        self.missing = missing
        self._last: tuple[Floats, dict[str, float]] | None = None  # the query scored last, and its labels
        self.scale = max(lam, 0.05)  # of the spread that fusion reckons with; λ = 0 leaves none

    def search(self, vectors: Floats, k: int, filter: Filter | None = None) -> list[Ranking]:
        vectors = np.asarray(vectors, np.float32)
        labels = list(self._labels(vectors))
        if not any(labels):
            found = self.index.search(vectors, k, filter)
            return [(ids, np.float32(self.lam) * scores) for ids, scores in found]
        if filter is not None:
            known = list(dict.fromkeys(id for found in labels for id in found))
            fits = dict(zip(known, passing(self.index, known, filter), strict=True))
            labels = [{id: value for id, value in found.items() if fits[id]} for found in labels]
        if self.missing == "exact":
            depth = k + max(len(found) for found in labels)
        else:
            depth = max(_XL_DEPTH, k)
        plain = self.index.search(vectors, depth, filter)
        return [self._mixed(*parts, k) for parts in zip(vectors, plain, labels, strict=True)]

    def _mixed(self, vector: Floats, plain: Ranking, labels: dict[str, float], k: int) -> Ranking:
        listed = set(plain[0])
        absent = [id for id in labels if id not in listed]
        scores = np.zeros(len(absent), np.float32)
        if absent and self.missing == "exact":
            scores = self.index.vectors(absent) @ vector
        ids = [*plain[0], *absent]
        added = np.array([labels.get(id, 0.0) for id in ids], np.float32)
        return _best(ids, np.float32(self.lam) * np.concatenate([plain[1], scores]) + added, k)

    def scores(self, vector: Floats, ids: Sequence[str]) -> Floats:
        if self._last is None or not np.array_equal(self._last[0], vector):
            self._last = vector, next(self._labels(vector[None, :]))
        found = self._last[1]
        added = np.array([found.get(id, 0.0) for id in ids], np.float32)
        scores: Floats = np.float32(self.lam) * (self.index.vectors(ids) @ vector) + added
        return scores

    def vectors(self, ids: Sequence[str]) -> Floats:
        return self.index.vectors(ids)

    def _labels(self, vectors: Floats) -> Iterator[dict[str, float]]:
        """Per query: passage → (1 − λ)·f_kNN."""
        active = self.state.active(self.tenant)
        if not active.any() or self.lam == 1:
            yield from ({} for _ in vectors)
            return
        past, whole = self.state.query_vectors, bool(active.all())
        for start in range(0, len(vectors), _BLOCK):
            similar = vectors[start : start + _BLOCK] @ past.T  # (B, d) x (d, n) -> (B, n)
            if not whole:
                similar[:, ~active] = -np.inf
            for row in similar:
                found: dict[str, float] = {}
                for at in _nearest(row, self.k).tolist():
                    for passage, weight in self.state.labels(at, self.tenant):
                        value = (1 - self.lam) / self.k * float(row[at]) * weight
                        found[passage] = found.get(passage, 0.0) + value
                yield found


def _nearest(similar: Floats, k: int) -> NDArray[np.int64]:
    """The k largest, ties by position; -inf is none."""
    candidates = _largest(similar, k)
    return candidates[np.argsort(-similar[candidates], kind="stable")[:k]]


def _largest(scores: Floats, k: int) -> NDArray[np.int64]:
    """Where the k largest stand, and more where the last of them ties; -inf is none."""
    if k < len(scores):
        kth = scores[np.argpartition(scores, len(scores) - k)[len(scores) - k]]
        return np.flatnonzero((scores >= kth) & (scores > -np.inf))
    return np.flatnonzero(scores > -np.inf)


def untouched(
    index: VectorIndex, vectors: Floats, k: int, filter: Filter | None, covers: Callable[[str], bool], most: int
) -> list[Ranking]:
    """The engine's best k of the passages that `covers` does not name; most: how many it names at most.

    Asks for a few more than k, and for more again only for the queries where that was not enough.
    """
    results: dict[int, Ranking] = {}
    waiting = list(range(len(vectors)))
    depth = k + min(most, max(_MARGIN, k))
    while waiting:
        depth = min(depth, k + most)
        short = []
        found = index.search(vectors[waiting], depth, filter)
        for number, (ids, scores) in zip(waiting, found, strict=True):
            keep = [at for at, id in enumerate(ids) if not covers(id)][:k]
            if len(keep) < k and len(ids) == depth < k + most:
                short.append(number)
            else:
                results[number] = [ids[at] for at in keep], scores[keep]
        waiting, depth = short, depth * 4
    return [results[number] for number in range(len(vectors))]


def merge(ranking: Ranking, ids: Sequence[str], scores: Floats, k: int) -> Ranking:
    """The best k of a ranking and further (ids, scores (F,)) in any order; ties by id, -inf is left out."""
    at = _largest(scores, k)
    return _best([*ranking[0], *(ids[row] for row in at.tolist())], np.concatenate([ranking[1], scores[at]]), k)


def _best(ids: Sequence[str], scores: Floats, k: int) -> Ranking:
    order = sorted(zip((-scores).tolist(), ids, strict=True))[:k]
    return [id for _, id in order], np.array([-value for value, _ in order], np.float32)


def view(index: VectorIndex, state: State, config: PefaConfig, lam: float | None = None, tenant: str = SHARED) -> Dense:
    """The dense side with this feedback; the plain one where there is none or λ is 1. lam: None = as configured."""
    chosen = config.lam if lam is None else lam
    if isinstance(chosen, bool) or not isinstance(chosen, (int, float)) or not 0 <= chosen <= 1:
        raise InvalidInput(f"lam = {chosen!r}: λ is a number between 0 (feedback only) and 1 (feedback off).")
    if chosen == 1 or not any(state.overlays.get(name) for name in (SHARED, tenant)):
        return Plain(index)
    if config.method == "xl":
        return ExtraLargeSearch(index, state, float(chosen), config.k, tenant, config.missing)
    return ExtraShortSearch(index, state, float(chosen), tenant)
