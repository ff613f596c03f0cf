"""What feedback does to passages, in arrays: made from the ledger's events and the queries' vectors, no more.

For a passage p with feedback (PEFA-XS, arXiv 2312.02429):

    row(λ) = p + (1 − λ)·D        D = t·(|p|·Π(S⁺) − p) − γ·S⁻/max(1, W⁻)

S⁺ = Σ w·q over the queries of its positive feedback, W⁺ = Σ w, t = min(1, W⁺); Π makes unit length. With weights of
one and no negative feedback this is the paper's λ·p + (1 − λ)·Π(S), not normalised again. Ours beyond the paper: a
passage without feedback keeps p (the paper's λ·p would demote it); t lets feedback fade in and out, so that decay
and small weights do something; negative feedback pushes the row away from its queries.

Sums are taken in float64, over a passage's events in the ledger's order, anew at each change: taking feedback back
gives the very bits that were there before.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragadapt.config import PefaConfig
from ragadapt.fusion import Floats
from ragadapt.index import Filter, VectorIndex, compile_filter
from ragadapt.index.filters import Node, parse

SHARED = ""  # the tenant of feedback that is for all
_BLOCK = 8192  # passages summed at a time: bounds the float64 copies
_TICKS = 64  # steps of decay in one half-life
_DAY_SECONDS = 86_400.0
_FILTERS = 32  # remembered for each overlay


@dataclass(frozen=True, slots=True)
class Entry:
    """One feedback that counts. query: row of the state's query vectors. passage: id."""

    seq: int
    query: int
    passage: str
    weight: float
    user: str
    at: float


class Overlay:
    """Passages with feedback: ids, plain vectors P (F, d), and what feedback adds, D (F, d)."""

    def __init__(self, dim: int) -> None:
        self.ids: list[str] = []
        self.index: dict[str, int] = {}
        self._plain = np.empty((0, dim), np.float32)
        self._delta = np.empty((0, dim), np.float32)
        self._mixed: tuple[float, Floats] | None = None
        self._passing: dict[Node, NDArray[np.bool_]] = {}  # filter → which rows pass

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def plain(self) -> Floats:
        return self._plain[: len(self.ids)]

    @property
    def delta(self) -> Floats:
        return self._delta[: len(self.ids)]

    def rows(self, lam: float) -> Floats:
        """(F, d) p + (1 − λ)·D; kept for the λ that was asked last."""
        if self._mixed is None or self._mixed[0] != lam:
            mixed = np.empty_like(self._plain)
            count = len(self.ids)
            mixed[:count] = _mix(self.plain, self.delta, lam)
            self._mixed = (lam, mixed)
        return self._mixed[1][: len(self.ids)]

    def passing(self, index: VectorIndex, filter: Filter) -> NDArray[np.bool_]:
        """(F,) which passages pass; remembered until the next change."""
        native: Any = filter
        if not isinstance(native, (Mapping, Node)):  # an engine's own filter
            return np.array(passing(index, self.ids, filter), np.bool_)
        node = parse(native)
        found = self._passing.get(node)
        if found is None:
            found = np.array(passing(index, self.ids, node), np.bool_)
            if len(self._passing) >= _FILTERS:
                self._passing.pop(next(iter(self._passing)))
            self._passing[node] = found
        return found

    def put(self, ids: Sequence[str], plain: Floats, delta: Floats) -> None:
        """Add or replace passages."""
        self._passing.clear()
        new = [id for id in ids if id not in self.index]
        if len(self.ids) + len(new) > len(self._plain):
            self._grow(max(len(self.ids) + len(new), 2 * len(self._plain), 64))
        for id in new:
            self.index[id] = len(self.ids)
            self.ids.append(id)
        at = [self.index[id] for id in ids]
        self._plain[at] = plain
        self._delta[at] = delta
        if self._mixed is not None:
            self._mixed[1][at] = _mix(plain, delta, self._mixed[0])

    def drop(self, id: str) -> None:
        """Forget a passage; the last one takes its row."""
        row = self.index.pop(id, None)
        if row is None:
            return
        self._passing.clear()
        last = len(self.ids) - 1
        if row != last:
            moved = self.ids[last]
            self.ids[row] = moved
            self.index[moved] = row
            for array in (self._plain, self._delta, *([self._mixed[1]] if self._mixed else [])):
                array[row] = array[last]
        self.ids.pop()

    def _grow(self, size: int) -> None:
        def grown(array: Floats) -> Floats:
            larger = np.empty((size, array.shape[1]), np.float32)
            larger[: len(array)] = array
            return larger

        self._plain, self._delta = grown(self._plain), grown(self._delta)
        if self._mixed is not None:
            self._mixed = (self._mixed[0], grown(self._mixed[1]))


class State:
    """All feedback that counts, by passage, by query and by tenant."""

    def __init__(self, dim: int, config: PefaConfig, *, now: float | None = None) -> None:
        self.dim = dim
        self.config = config
        self.now = self.tick(now)
        self.queries: dict[str, int] = {}  # text → row
        self._vectors = np.empty((0, dim), np.float32)
        self.overlays: dict[str, Overlay] = {SHARED: Overlay(dim)}
        self._entries: dict[str, dict[str, dict[int, Entry]]] = {}  # passage → tenant → seq → entry
        self._effective: dict[tuple[str, str], dict[int, float]] = {}  # (tenant, passage) → query → weight
        self.passages_of: dict[int, dict[str, int]] = {}  # query → passage → how many entries
        self._active: dict[str, NDArray[np.bool_]] = {}

    def tick(self, now: float | None = None) -> float:
        """The time that decay reckons with: it moves in steps, so that searches in between see one state."""
        if self.config.half_life_days is None:
            return 0.0
        step = self.config.half_life_days * _DAY_SECONDS / _TICKS
        return float(np.floor((time.time() if now is None else now) / step) * step)

    # Queries

    @property
    def query_vectors(self) -> Floats:
        """(n, d), every query ever seen; those without feedback stay until the next rebuild."""
        return self._vectors[: len(self.queries)]

    def add_queries(self, texts: Sequence[str], vectors: Floats) -> None:
        """Remember vectors (n, d) of queries; known ones keep theirs."""
        new = {text: vector for text, vector in zip(texts, vectors, strict=True) if text not in self.queries}
        if not new:
            return
        start, stop = len(self.queries), len(self.queries) + len(new)
        if stop > len(self._vectors):
            grown = np.empty((max(stop, 2 * len(self._vectors), 64), self.dim), np.float32)
            grown[:start] = self._vectors[:start]
            self._vectors = grown
        for row, (text, vector) in enumerate(new.items(), start=start):
            self.queries[text] = row
            self._vectors[row] = vector

    # Entries

    def insert(self, entry: Entry, tenant: str) -> None:
        """Count an entry; `recompute` its passage afterwards."""
        self._entries.setdefault(entry.passage, {}).setdefault(tenant, {})[entry.seq] = entry
        passages = self.passages_of.setdefault(entry.query, {})
        passages[entry.passage] = passages.get(entry.passage, 0) + 1

    def remove(self, passage: str, tenant: str, seq: int) -> None:
        """Count an entry no more; `recompute` its passage afterwards."""
        tenants = self._entries[passage]
        entry = tenants[tenant].pop(seq)
        if not tenants[tenant]:
            del tenants[tenant]
        if not tenants:
            del self._entries[passage]
        passages = self.passages_of[entry.query]
        passages[passage] -= 1
        if not passages[passage]:
            del passages[passage]
        if not passages:
            del self.passages_of[entry.query]

    def tenants_of(self, passage: str) -> Iterable[str]:
        return self._entries.get(passage, ())

    def passages(self) -> list[str]:
        """Every passage with an entry of any tenant."""
        return list(self._entries)

    def entries(self, passage: str, tenant: str) -> list[Entry]:
        """The passage's entries that this tenant sees, its own and those for all, in the ledger's order."""
        tenants = self._entries.get(passage, {})
        seen = dict(tenants.get(SHARED, {}))
        if tenant != SHARED:
            seen |= tenants.get(tenant, {})
        return [seen[seq] for seq in sorted(seen)]

    def overlay(self, tenant: str) -> Overlay | None:
        """A tenant's own overlay: of the passages that it has given feedback on. None = it has given none."""
        return self.overlays.get(tenant)

    def recompute(self, plain: Mapping[str, Floats]) -> None:
        """Bring the overlays up to date for these passages; plain: passage id → its vector (d,) in the index."""
        self._active.clear()
        by_tenant: dict[str, list[str]] = {}
        for passage in plain:
            seen = set(self.tenants_of(passage))
            for tenant in {*seen, *(t for t, overlay in self.overlays.items() if passage in overlay.index)}:
                if tenant in seen:
                    by_tenant.setdefault(tenant, []).append(passage)
                else:
                    self.overlays[tenant].drop(passage)
                    self._effective.pop((tenant, passage), None)
        for tenant, passages in by_tenant.items():
            overlay = self.overlays.setdefault(tenant, Overlay(self.dim))
            for start in range(0, len(passages), _BLOCK):
                self._recompute(overlay, tenant, passages[start : start + _BLOCK], plain)
        for tenant in [t for t, overlay in self.overlays.items() if t != SHARED and not len(overlay)]:
            del self.overlays[tenant]

    def _recompute(self, overlay: Overlay, tenant: str, passages: Sequence[str], plain: Mapping[str, Floats]) -> None:
        lists = [self.entries(passage, tenant) for passage in passages]
        counts = np.array([len(entries) for entries in lists])
        owner = np.repeat(np.arange(len(lists)), counts)
        flat = [entry for entries in lists for entry in entries]
        rows = np.array([entry.query for entry in flat], np.int64)
        weights = effective_weights(flat, owner, self.config, self.now)
        vectors = np.stack([plain[passage] for passage in passages])
        overlay.put(passages, vectors, deltas(vectors, self._vectors, rows, weights, counts, self.config.negative))
        ends = np.cumsum(counts)
        for passage, end, count in zip(passages, ends.tolist(), counts.tolist(), strict=True):
            part = slice(end - count, end)
            summed: dict[int, float] = {}
            for row, weight in zip(rows[part].tolist(), weights[part].tolist(), strict=True):
                summed[row] = summed.get(row, 0.0) + weight
            self._effective[tenant, passage] = summed

    # For PEFA-XL

    def labels(self, query: int, tenant: str) -> Iterator[tuple[str, float]]:
        """(passage, Y) of one query for a tenant: the summed weights of its feedback."""
        for passage in self.passages_of.get(query, ()):
            seen = self._effective.get((tenant, passage)) or self._effective.get((SHARED, passage)) or {}
            if query in seen:
                yield passage, seen[query]

    def active(self, tenant: str) -> NDArray[np.bool_]:
        """(n,) which of the query vectors have feedback that this tenant sees."""
        found = self._active.get(tenant)
        if found is None or len(found) != len(self.queries):
            found = np.zeros(len(self.queries), np.bool_)
            for (owner, _), effective in self._effective.items():
                if owner in (SHARED, tenant):
                    found[list(effective)] = True
            self._active[tenant] = found
        return found


def passing(index: VectorIndex, ids: Sequence[str], filter: Any) -> list[bool]:
    """For each id of the index whether its metadata pass. filter: a Filter, its tree, or an engine's own."""
    if not ids:
        return []
    if not isinstance(filter, (Mapping, Node)):  # an engine's own filter: the engine must say
        fitting = set(index.ids(filter))
        return [id in fitting for id in ids]
    matches = compile_filter(filter)
    return [matches(payload, id) for id, payload in zip(ids, index.payloads(ids), strict=True)]


def effective_weights(
    entries: Sequence[Entry], owner: NDArray[np.int64], config: PefaConfig, now: float
) -> NDArray[np.float64]:
    """(E,) weights after decay and after the cap on what one named user may say about one passage.

    owner (E,): the number of each entry's passage.
    """
    weights = np.array([entry.weight for entry in entries], np.float64)
    if config.half_life_days is not None:
        ages = now - np.array([entry.at for entry in entries], np.float64)
        weights *= np.exp2(-np.maximum(ages, 0.0) / (config.half_life_days * _DAY_SECONDS))
    if any(entry.user for entry in entries):
        users: dict[tuple[int, str], int] = {}
        pair = np.array(
            [
                users.setdefault((at, entry.user) if entry.user else (at, f"\0{row}"), len(users))
                for row, (at, entry) in enumerate(zip(owner.tolist(), entries, strict=True))
            ]
        )
        named = np.array([bool(entry.user) for entry in entries])
        totals = np.bincount(pair, np.abs(weights))
        factor = np.minimum(1.0, config.user_cap / np.maximum(totals, 1e-300))
        weights = np.where(named, weights * factor[pair], weights)
    return weights


def deltas(
    plain: Floats,
    queries: Floats,
    rows: NDArray[np.int64],
    weights: NDArray[np.float64],
    counts: NDArray[np.int64],
    negative: float,
) -> Floats:
    """D (F, d) for passages `plain` (F, d). rows and weights (E,): their feedback, counts[f] entries each, in order."""
    pushed = weights < 0
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])

    def sums(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        weighted = queries[rows].astype(np.float64) * values[:, None]  # (E, d)
        return np.add.reduceat(weighted, starts, axis=0), np.add.reduceat(values, starts)

    p = plain.astype(np.float64)
    liked, liking = sums(np.where(pushed, 0.0, weights))
    lengths = np.linalg.norm(liked, axis=1, keepdims=True)
    towards = liked / np.maximum(lengths, 1e-12) * np.linalg.norm(p, axis=1, keepdims=True)
    delta = np.minimum(1.0, liking)[:, None] * np.where(lengths > 1e-12, towards - p, 0.0)
    if pushed.any():
        disliked, disliking = sums(np.where(pushed, -weights, 0.0))
        delta -= negative * disliked / np.maximum(1.0, disliking)[:, None]
    result: Floats = delta.astype(np.float32)
    return result


def _mix(plain: Floats, delta: Floats, lam: float) -> Floats:
    mixed: Floats = plain + np.float32(1 - lam) * delta
    return mixed
