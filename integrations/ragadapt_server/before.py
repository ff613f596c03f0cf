"""The search before the training: the base model in the place of the fitted one, to see what it moved."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ragadapt.config import EncoderConfig
from ragadapt.encoder import Encoder, EncoderSpec
from ragadapt.errors import RagadaptError
from ragadapt.index import Filter, exact_index
from ragadapt.lexical.ranking import Ranking
from ragadapt.pipeline.stages import rows_kept_for
from ragadapt.retriever import Retriever
from ragadapt.search.fusion import Background, Floats
from ragadapt.search.searcher import Dense, Mode, Searcher
from ragadapt.snapshot import Snapshot
from ragadapt.values import Hit
from ragadapt_server.errors import Refused

log = logging.getLogger(__name__)

_WHOLE_BYTES = 1_000_000_000  # of vectors that are held beside those of the index
_ENCODED_AT_ONCE = 256  # passages that are encoded to complete what is kept, or to know how ordinary ones score
_SCORED = 50  # passages of either side that the base scores where its vectors are not kept
_REMEMBERED = 20_000  # their vectors
_AT_ONCE = 3  # searches; more would take the engine's threads from what must always answer

Vectors = Callable[[Sequence[str]], Floats]
"""Ids → (n, d)."""


def is_trained(spec: EncoderSpec) -> bool:
    """Whether the model is another one than its base."""
    return spec.adapter is not None and spec.adapter.scale != 0


@dataclass(frozen=True, slots=True)
class Found:
    """Hits, and whether the base looked at every passage or only at those that the fitted search or BM25 ranks high."""

    hits: list[Hit]
    whole: bool


class Before:
    """The base of one retriever's model, in the mix that ships. Loaded when it is first asked for."""

    def __init__(self, retriever: Retriever, device: str, precision: str) -> None:
        self._retriever = retriever
        self._how = device, precision
        self._lock = threading.Lock()
        self._room = threading.Semaphore(_AT_ONCE)
        self._made: _Side | None = None

    def search(self, query: str, k: int, mode: Mode = "hybrid", *, partly: bool = True) -> Found:
        """The best k passages by the base, without feedback. partly: also where it cannot look at every passage, else
        nothing is found there. Raises Refused where nothing was trained, the base cannot be had, or too many ask."""
        if not self._room.acquire(blocking=False):
            raise Refused(429, "Too many ask the base model at once. Try again in a moment.", "overloaded", 1)
        try:
            return self._search(query, k, mode, partly)
        finally:
            self._room.release()

    def _search(self, query: str, k: int, mode: Mode, partly: bool) -> Found:
        now = self._retriever.snapshot()
        with self._lock:
            if self._made is None or self._made.build != now.manifest.build_id:
                self._made = _open(now, self._retriever, self._how, self._made)
            made = self._made
        return made.search(now, query, k, mode) if made.whole or partly else Found([], False)


@dataclass(frozen=True, slots=True)
class _Side:
    """whole: a search over every passage by the base; else its vectors are made as they are needed."""

    build: str
    encoder: Encoder
    searcher: Searcher
    whole: bool
    vectors: Vectors

    def search(self, now: Snapshot, query: str, k: int, mode: Mode) -> Found:
        vectors = self.encoder.encode_queries([query])
        dense: Dense | None = None
        if not self.whole:
            fitted = now.query_vectors([query])
            with now.lock.shared():
                ((ids, _),) = now.searcher.plain.search(fitted, _SCORED)
                ((lexical, _),) = now.searcher.lexical.search([query], _SCORED)
            dense = _Scored(list(dict.fromkeys([*ids, *lexical])), self.vectors)
            dense.vectors(dense.ids)  # encoded before the lock is held
        with now.lock.shared():
            now.whole()
            (ranked,) = self.searcher.rank([query], vectors, k, mode, dense=dense)
            chunks = now.find(ranked.ids)
        parts = [{name: float(values[at]) for name, values in ranked.parts.items()} for at in range(len(ranked.ids))]
        sure = [None] * len(ranked.ids) if ranked.confidence is None else ranked.confidence.tolist()
        hits = [
            Hit(chunks[id], float(ranked.scores[at]), parts[at], confidence=sure[at])
            for at, id in enumerate(ranked.ids)
        ]
        return Found(hits, self.whole)


class _Scored:
    """A few passages as a dense side."""

    scale = 1.0

    def __init__(self, ids: list[str], vectors: Vectors) -> None:
        self.ids = ids
        self.vectors = vectors

    def search(self, vectors: Floats, k: int, filter: Filter | None = None) -> list[Ranking]:
        found: list[Ranking] = []
        rows = self.vectors(self.ids)
        for vector in vectors:
            scores = rows @ vector
            best = np.argsort(-scores, kind="stable")[:k]
            found.append(([self.ids[at] for at in best.tolist()], scores[best]))
        return found

    def scores(self, vector: Floats, ids: Sequence[str]) -> Floats:
        made: Floats = self.vectors(ids) @ vector
        return made


def _open(now: Snapshot, retriever: Retriever, how: tuple[str, str], old: _Side | None) -> _Side:
    spec = now.encoder.spec
    if not is_trained(spec):
        raise Refused(409, "Nothing was trained here: the model is the base.", "not_trained")
    encoder = _base(spec, how, old)
    fitted, build = now.searcher, now.manifest.build_id
    assert spec.adapter is not None

    def searcher(index: object, background: Background, depth: int = fitted.depth) -> Searcher:
        return Searcher(index, fitted.lexical, background, fitted.fusion, depth=depth, shared=True)  # type: ignore[arg-type]

    if spec.adapter.adapt == "query":  # the passages are the base's
        return _Side(build, encoder, searcher(fitted.index, fitted.background), True, fitted.index.vectors)
    kept = _kept(now, retriever, encoder)
    if kept is not None:
        index = exact_index(fitted.lexical.ids(), kept)
        return _Side(build, encoder, searcher(index, Background.of(kept)), True, index.vectors)
    vectors = _Made(now, encoder)
    ids = fitted.lexical.ids()
    chosen = np.random.default_rng(0).choice(len(ids), min(len(ids), _ENCODED_AT_ONCE), replace=False)
    background = Background.of(vectors([ids[at] for at in chosen.tolist()]))
    return _Side(build, encoder, searcher(fitted.index, background, _SCORED), False, vectors)


def _base(spec: EncoderSpec, how: tuple[str, str], old: _Side | None) -> Encoder:
    wanted = spec.with_adapter(None).fingerprint
    if old is not None and old.encoder.fingerprint == wanted:
        return old.encoder
    device, precision = how
    try:
        config = EncoderConfig.model_validate(
            {
                "model": spec.model,
                "revision": spec.revision,
                "max_length": spec.max_length,
                "query_prompt": spec.query_prompt,
                "passage_prompt": spec.passage_prompt,
                "device": device,
                "precision": precision,
            }
        )
        encoder = Encoder.load(config)
    except RagadaptError as error:
        log.warning("the base model cannot be loaded: %s", error)
        message = (
            "The base model is not on this machine, so there is nothing to compare with; the server's log says why."
        )
        raise Refused(409, message, "no_base") from error
    if encoder.fingerprint != wanted:
        log.warning("%s is not the model that was fitted", spec.model)
        raise Refused(409, "The base model was changed since the fit, so it cannot be compared with.", "no_base")
    return encoder


def _kept(now: Snapshot, retriever: Retriever, encoder: Encoder) -> Floats | None:
    """(n, d) the base's vectors of all passages, where a fit left them (nearly) all beside the folder."""
    ids = now.searcher.lexical.ids()
    if 4 * len(ids) * encoder.dim > _WHOLE_BYTES:
        return None
    contents = now.chunks.hashes(ids)
    made, left = rows_kept_for(retriever.path, encoder, [contents[id] for id in ids])
    if len(left) > _ENCODED_AT_ONCE:
        return None
    if left:  # new since the fit
        chunks = now.chunks.find([ids[at] for at in left])
        made[left] = encoder.encode_passages([chunks[ids[at]].passage for at in left])
    return made


class _Made:
    """Vectors of the base, made when they are first needed."""

    def __init__(self, now: Snapshot, encoder: Encoder) -> None:
        self._now = now
        self._encoder = encoder
        self._rows: OrderedDict[str, Floats] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, ids: Sequence[str]) -> Floats:
        with self._lock:
            known = {id: self._rows[id] for id in ids if id in self._rows}
        new = [id for id in dict.fromkeys(ids) if id not in known]
        if new:
            chunks = self._now.find(new)
            known |= dict(zip(new, self._encoder.encode_passages([chunks[id].passage for id in new]), strict=True))
            with self._lock:
                for id in new:
                    self._rows[id] = known[id]
                    if len(self._rows) > _REMEMBERED:
                        self._rows.popitem(last=False)
        return np.stack([known[id] for id in ids]) if len(ids) else np.zeros((0, self._encoder.dim), np.float32)
