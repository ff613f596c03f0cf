"""What feedback does to passages, in arrays: made from the ledger's events and the queries' vectors, no more.

For a passage p with feedback (PEFA-XS, arXiv 2312.02429):

    row(λ) = p + (1 − λ)·D        D = t·(|p|·Π(S⁺) − p) − γ·S⁻/max(1, W⁻)

S⁺ = Σ w·q over the queries of its positive feedback, W⁺ = Σ w, t = min(1, W⁺); Π makes unit length. With weights of
one and no negative feedback this is the paper's λ·p + (1 − λ)·Π(S), not normalised again. Ours beyond the paper: a
passage without feedback keeps p (the paper's λ·p would demote it); t lets feedback fade in and out, so that decay
and small weights do something; negative feedback pushes the row away from its queries.

Sums are kept in whole numbers (multiples of 2⁻⁶⁰ of each product w·q in float64), so they do not depend on the order:
one more feedback is added to what a passage has, whatever it has, and taking it back gives the very bits that were
there before.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ragadapt.config import PefaConfig
from ragadapt.errors import InvalidInput
from ragadapt.index import Filter, VectorIndex, compile_filter
from ragadapt.index.filters import Marked, Node, parse
from ragadapt.search.fusion import Floats

K = TypeVar("K")
SHARED = ""  # the tenant of feedback that is for all
_BLOCK = 2048  # passages or entries summed at a time: bounds the copies
_GROUPS = 1024  # users of passages summed at a time
_LARGEST = 1e6  # component of a query's vector: sums of many stay within 64 bits
_KEPT = 64  # entries of a passage, or of a user on one, above which their sums are kept
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
        kept = self._mixed  # taken once: another search may ask for its own λ meanwhile
        if kept is None or kept[0] != lam:
            mixed = np.empty_like(self._plain)
            count = len(self.ids)
            mixed[:count] = _mix(self.plain, self.delta, lam)
            kept = self._mixed = (lam, mixed)
        return kept[1][: len(self.ids)]

    def passing(self, index: VectorIndex, filter: Filter) -> NDArray[np.bool_]:
        """(F,) which passages pass; remembered until the next change."""
        native: Any = filter
        if not isinstance(native, (Mapping, Node)):  # an engine's own filter
            return np.array(passing(index, self.ids, filter), np.bool_)
        node = parse(native)
        found = self._passing.get(node)
        if found is None:
            found = np.array(passing(index, self.ids, node), np.bool_)
            for oldest in list(self._passing)[: len(self._passing) + 1 - _FILTERS]:
                self._passing.pop(oldest, None)  # several threads may be at it
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
        self._entries: dict[str, dict[str, dict[str, dict[int, Entry]]]] = {}  # passage → tenant → user → seq → entry
        self.passages_of: dict[int, dict[str, int]] = {}  # query → passage → how many entries
        self._counts: dict[str, dict[int, int]] = {}  # tenant → query → how many entries
        # Of passages (or users of one) with more than _KEPT entries, by the tenant who sees them: see `_sums_of`.
        self._totals: dict[tuple[str, str], Sums] = {}
        self._users: dict[tuple[str, str, str], Sums] = {}
        # For PEFA-XL, made when asked for: (tenant, passage) → query → weight.
        self._effective: dict[tuple[str, str], dict[int, float]] = {}
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
        largest = max(float(np.abs(vector).max(initial=0.0)) for vector in new.values())
        if largest > _LARGEST:
            raise InvalidInput(f"A query's vector holds {largest:g}; feedback takes numbers up to {_LARGEST:g}.")
        start, stop = len(self.queries), len(self.queries) + len(new)
        if stop > len(self._vectors):
            grown = np.empty((max(stop, 2 * len(self._vectors), 64), self.dim), np.float32)
            grown[:start] = self._vectors[:start]
            self._vectors = grown
        for row, (text, vector) in enumerate(new.items(), start=start):
            self.queries[text] = row
            self._vectors[row] = vector

    # Entries

    def insert(self, entries: Sequence[tuple[Entry, str]]) -> None:
        """Count entries, each with its tenant; `recompute` their passages afterwards."""
        for start in range(0, len(entries), _GROUPS):
            self._change(entries[start : start + _GROUPS], 1)

    def remove(self, passage: str, tenant: str, user: str, seq: int) -> None:
        """Count an entry no more; `recompute` its passage afterwards."""
        self._change([(self._entries[passage][tenant][user][seq], tenant)], -1)

    def _change(self, entries: Sequence[tuple[Entry, str]], sign: int) -> None:
        kept: dict[tuple[str, str], list[Entry]] = {}  # whose total, of which passage → the entries that change it
        for entry, tenant in entries if self._totals else ():
            passage = entry.passage
            for whose in {SHARED, *self._entries.get(passage, ())} if tenant == SHARED else (tenant,):
                if (whose, passage) in self._totals:
                    kept.setdefault((whose, passage), []).append(entry)
        said = list(dict.fromkeys((*key, one.user) for key, changed in kept.items() for one in changed if one.user))
        before = self._said(said)
        for entry, tenant in entries:
            self._list(entry, tenant, sign)

        self._add_up(self._totals, {key: [one for one in some if not one.user] for key, some in kept.items()}, sign)
        by_user: dict[tuple[str, str, str], list[Entry]] = {}
        for key, changed in kept.items():
            for one in changed:
                if (*key, one.user) in self._users:
                    by_user.setdefault((*key, one.user), []).append(one)
        self._add_up(self._users, by_user, sign)
        for (whose, passage, _), change in zip(said, self._said(said) - before, strict=True):
            self._totals[whose, passage] += change
        for entry, tenant in entries if sign < 0 else ():
            tenants = self._entries.get(entry.passage, {})
            if not tenants:
                self._forget(SHARED, entry.passage)
            if tenant != SHARED and tenant not in tenants:
                self._forget(tenant, entry.passage)

    def _list(self, entry: Entry, tenant: str, sign: int) -> None:
        passage, user = entry.passage, entry.user
        tenants = self._entries.setdefault(passage, {})
        users = tenants.setdefault(tenant, {})
        if sign > 0:
            users.setdefault(user, {})[entry.seq] = entry
        else:
            del users[user][entry.seq]
            if not users[user]:
                del users[user]
            if not users:
                del tenants[tenant]
            if not tenants:
                del self._entries[passage]
        _count(self._counts.setdefault(tenant, {}), entry.query, sign)
        _count(self.passages_of.setdefault(entry.query, {}), passage, sign)
        if not self.passages_of[entry.query]:
            del self.passages_of[entry.query]

    def _forget(self, tenant: str, passage: str) -> None:
        self._totals.pop((tenant, passage), None)
        for key in [key for key in self._users if key[:2] == (tenant, passage)]:
            del self._users[key]

    def tenants_of(self, passage: str) -> Iterable[str]:
        return self._entries.get(passage, ())

    def passages(self) -> list[str]:
        """Every passage with an entry of any tenant."""
        return list(self._entries)

    def entries(self, passage: str, tenant: str) -> list[Entry]:
        """The passage's entries that this tenant sees, its own and those for all, in the ledger's order."""
        tenants = self._entries.get(passage, {})
        seen = [*tenants.get(SHARED, {}).values(), *(tenants.get(tenant, {}).values() if tenant != SHARED else ())]
        every = [entry for entries in seen for entry in entries.values()]
        return sorted(every, key=lambda entry: entry.seq)

    def _of_user(self, tenant: str, passage: str, user: str) -> list[Entry]:
        tenants = self._entries.get(passage, {})
        return [entry for view in {SHARED, tenant} for entry in tenants.get(view, {}).get(user, {}).values()]

    # Sums

    def _sums(self, lists: Sequence[Sequence[Entry]]) -> Sums:
        """(len(lists), 2, 2, d + 1) before the cap."""
        flat = [entry for entries in lists for entry in entries]
        owner = np.repeat(np.arange(len(lists)), [len(entries) for entries in lists])
        return row_sums(flat, owner, len(lists), self._vectors, self.config, self.now)

    def _add_up(self, kept: dict[K, Sums], changed: Mapping[K, Sequence[Entry]], sign: int) -> None:
        keys = [key for key, entries in changed.items() if entries]
        if not keys:
            return
        for key, sums in zip(keys, self._sums([changed[key] for key in keys]), strict=True):
            kept[key] += sign * sums

    def _said(self, keys: Sequence[tuple[str, str, str]]) -> Sums:
        """(len(keys), 2, 2, d + 1): what a named user says in all, after the cap. keys: (tenant, passage, user)."""
        if not keys:
            return np.zeros((0, 2, 2, self.dim + 1), np.int64)
        new = {key: self._of_user(*key) for key in keys if key not in self._users}
        raw = dict(zip(new, self._sums(list(new.values())), strict=True))
        self._users |= {key: raw[key].copy() for key, entries in new.items() if len(entries) > _KEPT}
        every = [raw[key] if key in raw else self._users[key] for key in keys]
        return capped(np.array(every, np.int64).reshape(-1, 2, 2, self.dim + 1), self.config.user_cap)

    def _sums_of(self, passages: Sequence[str], tenant: str) -> NDArray[np.int64]:
        """(F, 2, 2, d + 1) for passages as this tenant sees them; kept where they stand for many entries."""
        found = np.zeros((len(passages), 2, 2, self.dim + 1), np.int64)
        wanted = []
        for at, passage in enumerate(passages):
            total = self._totals.get((tenant, passage))
            if total is None:
                wanted.append(at)
            else:
                found[at] = total
        lists = [self.entries(passages[at], tenant) for at in wanted]
        flat = [(number, entry) for number, entries in enumerate(lists) for entry in entries]
        found[wanted] = capped_sums(flat, len(lists), self._vectors, self.config, self.now)
        for at, entries in zip(wanted, lists, strict=True):
            if len(entries) > _KEPT:
                self._totals[tenant, passages[at]] = found[at].copy()
        return found

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
                self._effective.pop((tenant, passage), None)
                if tenant in seen:
                    by_tenant.setdefault(tenant, []).append(passage)
                else:
                    self.overlays[tenant].drop(passage)
        for tenant, passages in by_tenant.items():
            overlay = self.overlays.setdefault(tenant, Overlay(self.dim))
            for start in range(0, len(passages), _BLOCK):
                part = passages[start : start + _BLOCK]
                vectors = np.stack([plain[passage] for passage in part])
                overlay.put(part, vectors, deltas(vectors, self._sums_of(part, tenant), self.config.negative))
        for tenant in [t for t, overlay in self.overlays.items() if t != SHARED and not len(overlay)]:
            del self.overlays[tenant]

    # For PEFA-XL

    def labels(self, query: int, tenant: str) -> Iterator[tuple[str, float]]:
        """(passage, Y) of one query for a tenant: the summed weights of its feedback."""
        for passage in self.passages_of.get(query, ()):
            whose = tenant if tenant in self.tenants_of(passage) else SHARED
            seen = self._effective.get((whose, passage))
            if seen is None:
                seen = self._effective[whose, passage] = self._weights(passage, whose)
            if query in seen:
                yield passage, seen[query]

    def _weights(self, passage: str, tenant: str) -> dict[int, float]:
        entries = self.entries(passage, tenant)
        weights = effective_weights(entries, np.zeros(len(entries), np.int64), self.config, self.now)
        summed: dict[int, float] = {}
        for entry, weight in zip(entries, weights.tolist(), strict=True):
            summed[entry.query] = summed.get(entry.query, 0.0) + weight
        return summed

    def active(self, tenant: str) -> NDArray[np.bool_]:
        """(n,) which of the query vectors have feedback that this tenant sees."""
        found = self._active.get(tenant)
        if found is None or len(found) != len(self.queries):
            found = np.zeros(len(self.queries), np.bool_)
            for whose in {SHARED, tenant}:
                found[list(self._counts.get(whose, ()))] = True
            self._active[tenant] = found
        return found


def _count(counts: dict[K, int], key: K, by: int) -> None:
    counts[key] = counts.get(key, 0) + by
    if not counts[key]:
        del counts[key]


def passing(index: VectorIndex, ids: Sequence[str], filter: Any) -> list[bool]:
    """For each id of the index whether its metadata pass. filter: a Filter, its tree, or an engine's own."""
    if not ids:
        return []
    if not isinstance(filter, (Mapping, Node)):  # an engine's own filter: the engine must say
        fitting = set(index.ids(filter))
        return [id in fitting for id in ids]
    if isinstance(filter, Marked):
        return filter.passes(ids)
    matches = compile_filter(filter)
    return [matches(payload, id) for id, payload in zip(ids, index.payloads(ids), strict=True)]


def effective_weights(
    entries: Sequence[Entry], owner: NDArray[np.int64], config: PefaConfig, now: float
) -> NDArray[np.float64]:
    """(E,) weights after decay and after the cap on what one named user may say about one passage.

    owner (E,): the number of each entry's passage.
    """
    weights = faded(entries, config, now)
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


def faded(entries: Sequence[Entry], config: PefaConfig, now: float) -> NDArray[np.float64]:
    """(E,) weights after decay."""
    weights = np.array([entry.weight for entry in entries], np.float64)
    if config.half_life_days is not None:
        ages = now - np.array([entry.at for entry in entries], np.float64)
        weights *= np.exp2(-np.maximum(ages, 0.0) / (config.half_life_days * _DAY_SECONDS))
    return weights


Sums = NDArray[np.int64]
"""(…, 2, 2, d + 1): [positive, negative] feedback, [coarse, fine] part, Σ |w|·q and behind it Σ |w|."""

_COARSE, _FINE = 2.0**20, 2.0**60  # units in 1; 2⁴³ feedbacks of weight 1 fit into the coarse part, 2²⁴ into the fine


def row_sums(
    entries: Sequence[Entry],
    owner: NDArray[np.int64],
    count: int,
    queries: Floats,
    config: PefaConfig,
    now: float,
) -> Sums:
    """(count, 2, 2, d + 1): the sums of the entries of each owner (E,), before the cap. owner: ascending."""
    found = np.zeros((count, 2, 2, queries.shape[1] + 1), np.int64)
    if not entries:
        return found
    rows, weights = np.array([entry.query for entry in entries], np.int64), faded(entries, config, now)
    for side, chosen in enumerate((np.flatnonzero(weights > 0), np.flatnonzero(weights < 0))):
        for start in range(0, len(chosen), _BLOCK):
            part = chosen[start : start + _BLOCK]
            size = np.abs(weights[part])[:, None]
            units = in_units(np.hstack([queries[rows[part]].astype(np.float64) * size, size]))  # (E, 2, d + 1)
            starts = np.flatnonzero(np.diff(owner[part], prepend=-1))
            found[owner[part][starts], side] += np.add.reduceat(units, starts, axis=0)
    return found


def capped_sums(
    entries: Sequence[tuple[int, Entry]], count: int, queries: Floats, config: PefaConfig, now: float
) -> Sums:
    """(count, 2, 2, d + 1): the sums of each passage, with what one named user says of one passage capped.

    entries: (number of the passage, entry), ascending.
    """
    groups: dict[tuple[int, str], list[Entry]] = {}
    for at, entry in entries:
        if entry.user:
            groups.setdefault((at, entry.user), []).append(entry)
    keys = sorted(groups)
    if keys:
        owner = np.repeat(np.arange(len(keys)), [len(groups[key]) for key in keys])
        said = [entry for key in keys for entry in groups[key]]
        factors = cap_factors(row_sums(said, owner, len(keys), queries[:, :0], config, now), config.user_cap)
        keys = [keys[group] for group in np.flatnonzero(factors < 1)]
    over = set(keys)
    free = [(at, entry) for at, entry in entries if (at, entry.user) not in over] if over else entries
    found = row_sums(
        [entry for _, entry in free], np.array([at for at, _ in free], np.int64), count, queries, config, now
    )
    for start in range(0, len(keys), _GROUPS):
        part = keys[start : start + _GROUPS]
        said = [entry for key in part for entry in groups[key]]
        owner = np.repeat(np.arange(len(part)), [len(groups[key]) for key in part])
        units = capped(row_sums(said, owner, len(part), queries, config, now), config.user_cap)
        passages = np.array([at for at, _ in part], np.int64)
        starts = np.flatnonzero(np.diff(passages, prepend=-1))
        found[passages[starts]] += np.add.reduceat(units, starts, axis=0)
    return found


def cap_factors(sums: Sums, cap: float) -> NDArray[np.float64]:
    """(G,) what each user's sums (G, 2, 2, ·) are multiplied by, so that their weights are `cap` in all at most."""
    weights = in_floats(sums[..., -1:]).sum(axis=(1, 2))
    factors: NDArray[np.float64] = np.minimum(1.0, cap / np.maximum(weights, 1e-300))
    return factors


def capped(sums: Sums, cap: float) -> Sums:
    """(G, 2, 2, d + 1): each user's sums, so that their weights are `cap` in all at most; within it as they are."""
    factors = cap_factors(sums, cap)
    over = factors < 1
    found = sums.copy()
    found[over] = in_units(in_floats(sums[over]) * factors[over, None, None])
    return found


def in_units(values: NDArray[np.float64]) -> Sums:
    """(…, d) → (…, 2, d): whole numbers whose sums are exact, of coarse units and of fine ones for the rest."""
    coarse = np.rint(values * _COARSE)
    fine = np.rint((values - coarse / _COARSE) * _FINE)
    return np.stack([coarse, fine], axis=-2).astype(np.int64)


def in_floats(sums: Sums) -> NDArray[np.float64]:
    """(…, 2, d) → (…, d)."""
    values: NDArray[np.float64] = sums[..., 0, :] / _COARSE + sums[..., 1, :] / _FINE
    return values


def deltas(plain: Floats, sums: Sums, negative: float) -> Floats:
    """D (F, d) for passages `plain` (F, d) with the sums (F, 2, 2, d + 1) of their feedback."""
    values = in_floats(sums)  # (F, 2, d + 1)
    p = plain.astype(np.float64)
    liked, liking = values[:, 0, :-1], values[:, 0, -1]
    lengths = np.linalg.norm(liked, axis=1, keepdims=True)
    towards = liked / np.maximum(lengths, 1e-12) * np.linalg.norm(p, axis=1, keepdims=True)
    delta = np.minimum(1.0, liking)[:, None] * np.where(lengths > 1e-12, towards - p, 0.0)
    disliked, disliking = values[:, 1, :-1], values[:, 1, -1]
    delta -= negative * disliked / np.maximum(1.0, disliking)[:, None]
    result: Floats = delta.astype(np.float32)
    return result


def _mix(plain: Floats, delta: Floats, lam: float) -> Floats:
    mixed: Floats = plain + np.float32(1 - lam) * delta
    return mixed
