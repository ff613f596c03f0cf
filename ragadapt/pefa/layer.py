"""PEFA over any vector index: feedback in, better search out, in milliseconds and without training.

    with Pefa(index, embed, fingerprint="text-embedding-3-small", ledger="feedback.sqlite") as pefa:
        pefa.add("how do I reset it?", "manual.md#7")
        [(ids, scores)] = pefa.search(embed(["resetting the device"]), k=5)

The index is only read. What it takes to search with feedback is kept in memory, made from the ledger when it is
opened and brought up to date before every search, also with what other processes wrote.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from ragadapt.config import PefaConfig
from ragadapt.errors import InvalidInput
from ragadapt.index import Filter, VectorIndex
from ragadapt.index.contract import check_vectors
from ragadapt.lexical.ranking import Ranking
from ragadapt.pefa.ledger import Change, Feedback, Ledger, Withdrawal, named_tenant
from ragadapt.pefa.state import SHARED, Entry, State
from ragadapt.pefa.views import view
from ragadapt.search.fusion import Floats
from ragadapt.search.searcher import Dense
from ragadapt.threads import SharedLock

if TYPE_CHECKING:
    from filelock import BaseFileLock

log = logging.getLogger(__name__)

Embed = Callable[[Sequence[str]], Any]
"""Queries → vectors (n, d), by the encoder whose passages are in the index."""

_PAGE = 4096  # passages and queries looked up at a time


class PassageResolver(Protocol):
    """Which passage of today's corpus a feedback is about."""

    def resolve(self, feedback: Sequence[Feedback]) -> list[str | None]:
        """The id of each one's passage; None where it is not there any more."""


@dataclass(frozen=True, slots=True)
class Status:
    """What the ledger holds. inactive: feedback whose passage is not in the index now; it revives with it."""

    feedback: int
    active: int
    inactive: int
    passages: int
    queries: int
    tenants: int


class Pefa:
    """Search over an index with feedback. Safe for use from several threads; one ledger may serve several processes.

    index: any VectorIndex (see `ragadapt.index.open_index`). embed: makes query vectors, where one is not known yet.
    fingerprint: names the encoder; with another one the ledger's queries are embedded anew. ledger: a path, or None
    to forget everything on close. passages: None = feedback names ids of the index.
    """

    def __init__(
        self,
        index: VectorIndex,
        embed: Embed,
        *,
        fingerprint: str = "",
        ledger: str | Path | Ledger | None = None,
        config: PefaConfig = PefaConfig(),
        passages: PassageResolver | None = None,
        lock: BaseFileLock | None = None,
    ) -> None:
        self.index = index
        self.fingerprint = fingerprint or index.fingerprint or ""
        self._embed = embed
        self._passages = passages or _ById(index)
        self._configured = config
        self._writers = threading.RLock()  # taken before `_lock`, by whoever may change something
        self._lock = SharedLock()
        self._temporary = tempfile.TemporaryDirectory(prefix="ragadapt-") if ledger is None else None
        if isinstance(ledger, Ledger):
            self.ledger = ledger
        else:
            path = Path(self._temporary.name) / "feedback.sqlite" if self._temporary else Path(str(ledger))
            self.ledger = Ledger.open(path, lock=lock)
        self.config = config
        try:
            self.rebuild()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the ledger. The index stays open."""
        self.ledger.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Feedback

    def add(
        self,
        query: str,
        id: str,
        *,
        weight: float = 1.0,
        user: str = "",
        tenant: str | None = None,
        at: float | None = None,
        key: str | None = None,
        vector: Floats | None = None,
    ) -> str:
        """This passage answers this query (with a negative weight: does not). On disk when this returns; the key.

        A key that is known already changes nothing. vector (d,): the query's, where it is at hand. Raises
        InvalidInput for an unknown id, an empty query, a weight that is not finite or 0.
        """
        (kept,) = self.add_many(
            [Feedback(query, id, weight, user, named_tenant(tenant), at, key or "")],
            None if vector is None else [vector],
        )
        return kept

    def add_many(self, feedback: Sequence[Feedback], vectors: Sequence[Floats] | None = None) -> list[str]:
        """`add` for many at once, in one transaction: all of it or nothing. The keys."""
        checked = [one.checked() for one in feedback]
        if not checked:
            return []
        with self._changing():
            self.catch_up()
            for one, passage in zip(checked, self._passages.resolve(checked), strict=True):
                if passage is None:
                    raise InvalidInput(f"There is no passage {one.chunk_id!r} in the index. Nothing was kept.")
            known = self.state.queries
            given = None if vectors is None else check_vectors(np.stack(vectors), self.index.dim, "query vectors")
            rows = np.empty((len(checked), self.index.dim), np.float32)
            missing = []
            for row, one in enumerate(checked):
                if given is not None:
                    rows[row] = given[row]
                elif one.query in known:
                    rows[row] = self.state.query_vectors[known[one.query]]
                else:
                    missing.append(row)
            if missing:
                rows[missing] = self._embedded([checked[row].query for row in missing])
            self.ledger.add(checked, rows, self.fingerprint)
            self.state.add_queries([one.query for one in checked], rows)
            self.catch_up()
        return [one.key for one in checked]

    def withdraw(
        self,
        key: str | None = None,
        *,
        query: str | None = None,
        id: str | None = None,
        user: str | None = None,
        tenant: str | None = None,
    ) -> int:
        """Take back the feedback that fits all that is given; how many. Search is as if it had never been."""
        if all(part is None for part in (key, query, id, user, tenant)):
            raise InvalidInput("Say which feedback to take back: a key, a query, a passage, a user or a tenant.")
        with self._changing():
            found = self.ledger.find(key, query=query, chunk_id=id, user=user, tenant=tenant)
            return self.withdraw_keys([one.key for one in found])

    def withdraw_keys(self, keys: Iterable[str]) -> int:
        """Take back by key; how many counted until now."""
        with self._changing():
            withdrawn = self.ledger.withdraw(keys)
            self.catch_up()
            return len(withdrawn)

    # Searching

    def search(
        self,
        vectors: Any,
        k: int,
        filter: Filter | None = None,
        *,
        lam: float | None = None,
        tenant: str | None = None,
        method: str | None = None,
    ) -> list[Ranking]:
        """For each query of (Q, d) up to k (ids, scores), best first. lam, method: None = as tuned. tenant: whose
        feedback counts beside that for all."""
        rows = check_vectors(vectors, self.index.dim, "query vectors")
        with self.reading(lam, tenant, method) as dense:
            return dense.search(rows, k, filter)

    @contextmanager
    def reading(
        self, lam: float | None = None, tenant: str | None = None, method: str | None = None
    ) -> Iterator[Dense]:
        """The dense side for a Searcher, up to date. No feedback changes it inside the block."""
        self.catch_up()
        with self._lock.shared():
            config = self.config if method is None else _updated(self.config, {"method": method})
            yield view(self.index, self.state, config, lam, named_tenant(tenant))

    def dense(self, lam: float | None = None, tenant: str | None = None, method: str | None = None) -> Dense:
        """The dense side for a Searcher, up to date. Use it before the next feedback; see `reading`."""
        with self.reading(lam, tenant, method) as dense:
            return dense

    # Keeping up

    def catch_up(self) -> None:
        """Take in what was written since the last time, here or elsewhere. Cheap when nothing was."""
        with self._writers:
            if not self._whole or self.state.tick() != self.state.now:  # cut short, or feedback has faded a little
                self.rebuild()
            elif self.ledger.changed():
                with self._changing():
                    self._set_config()
                    self._apply(self.ledger.since(self._seq))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Nobody searches meanwhile."""
        with self._writers, self._lock:
            yield

    def rebuild(self) -> None:
        """Make everything anew from the ledger and the index's vectors."""
        with self._changing():
            self._set_config()
            self.ledger.changed()
            self._whole = False
            self.state = State(self.index.dim, self.config)
            self._seq = 0
            self._where: dict[str, tuple[str, str, str, int]] = {}  # key → passage, tenant, user, seq
            self._keys: dict[str, set[str]] = {}  # passage → keys of what counts for it
            self._inactive: dict[str, Feedback] = {}
            self._asleep: dict[str, set[str]] = {}  # passage that was named → keys of the inactive
            self._apply(self.ledger.since(0))
            self._whole = True

    def passages_changed(self, ids: Iterable[str] = ()) -> None:
        """To be called when the index was changed behind this object: ids that were added, changed or removed.

        Without ids everything is looked at again.
        """
        with self._changing():
            changed = set(ids)
            if not changed:
                self.rebuild()
                return
            moved = [key for passage in changed for key in self._keys.get(passage, ())]
            slept = [key for passage in changed for key in self._asleep.get(passage, ())]
            again = [self._inactive[key] for key in slept]
            again += [one for key in moved for one in self.ledger.find(key)]
            self._whole = False
            touched = {passage for passage in map(self._leave, moved) if passage is not None}
            self._insert(sorted(again, key=lambda one: one.seq), touched)
            self._whole = True

    def tune_to(self, values: dict[str, Any]) -> None:
        """Keep these settings in the ledger, from now on for every process: any fields of PefaConfig."""
        with self._changing():
            self.ledger.keep_settings(_updated(self.config, values).model_dump(mode="json"))
            self.catch_up()

    def status(self) -> Status:
        """Counts, up to date."""
        with self._changing():
            self.catch_up()
            active, inactive = len(self._where), len(self._inactive)
            tenants = {tenant for _, tenant, _, _ in self._where.values()} - {SHARED}
            passages, queries = len(self.state.passages()), len(self.state.passages_of)
            return Status(active + inactive, active, inactive, passages, queries, len(tenants))

    def inactive(self) -> list[Feedback]:
        """Feedback whose passage is not in the index now."""
        with self._changing():
            self.catch_up()
            return list(self._inactive.values())

    def problems(self, sample: int = 64) -> list[str]:
        """What does not fit together: ledger, index and encoder. Empty when all is well."""
        found = [f"the ledger is damaged: {line}" for line in self.ledger.problems()]
        if found:
            return found
        with self._changing():
            self.catch_up()
            passages = self.state.passages()
            gone = [id for id, there in zip(passages, self.index.has(passages), strict=True) if not there]
            if gone:
                found.append(f"{len(gone)} passages with feedback are not in the index, such as {gone[0]!r}")
            overlay = self.state.overlays[SHARED]
            for start in range(0, len(overlay), _PAGE):
                ids = overlay.ids[start : start + _PAGE]
                if not gone and not np.array_equal(self.index.vectors(ids), overlay.plain[start : start + _PAGE]):
                    found.append("vectors in the index changed after feedback was taken in; open the retriever again")
                    break
            fresh = Pefa(self.index, self._embed, fingerprint=self.fingerprint, ledger=self.ledger,
                         config=self._configured, passages=self._passages)  # fmt: skip
            self._apply(self.ledger.since(self._seq))  # the other one may have seen more
            fresh._apply(self.ledger.since(fresh._seq))
            if not _same(self.state, fresh.state):
                found.append("what is in memory differs from what the ledger says; open the retriever again")
            queries = list(self.state.queries)[:: max(1, len(self.state.queries) // sample)][:sample]
            if queries:
                stored = np.stack([self.state.query_vectors[self.state.queries[text]] for text in queries])
                anew = self._embedded(queries)
                lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(anew, axis=1)
                cosines = np.sum(stored * anew, axis=1) / np.maximum(lengths, 1e-12)
                if cosines.min() < 0.98:
                    found.append(
                        f"the stored vector of {queries[int(cosines.argmin())]!r} is not what the encoder makes of it "
                        f"(cosine {cosines.min():.3f}): was it another encoder under the same fingerprint?"
                    )
        return found

    def _set_config(self) -> None:
        self.config = _updated(self._configured, self.ledger.settings())

    def _apply(self, changes: Sequence[Change]) -> None:
        if not changes:
            return
        self._seq, self._whole = changes[-1].seq, False
        withdrawn = {change.key for change in changes if isinstance(change, Withdrawal)}
        touched = {passage for passage in map(self._leave, withdrawn) if passage is not None}
        added = [change for change in changes if isinstance(change, Feedback) and change.key not in withdrawn]
        self._insert(added, touched)
        self._whole = True

    def _leave(self, key: str) -> str | None:
        """Count feedback no more; the passage that it was about, if it counted."""
        one = self._inactive.pop(key, None)
        if one is not None:
            self._asleep[one.chunk_id].discard(key)
        if key not in self._where:
            return None
        passage, tenant, user, seq = self._where.pop(key)
        self._keys[passage].discard(key)
        self.state.remove(passage, tenant, user, seq)
        return passage

    def _insert(self, feedback: Sequence[Feedback], touched: set[str]) -> None:
        """Count feedback of the ledger, and recompute its passages and the touched ones."""
        for start in range(0, len(feedback), _PAGE):
            page = feedback[start : start + _PAGE]
            self._learn_queries([one.query for one in page])
            entries: list[tuple[Entry, str]] = []
            for one, passage in zip(page, self._passages.resolve(page), strict=True):
                self._leave(one.key)
                if passage is None:
                    self._inactive[one.key] = one
                    self._asleep.setdefault(one.chunk_id, set()).add(one.key)
                    continue
                row = self.state.queries[one.query]
                entries.append((Entry(one.seq, row, passage, one.weight, one.user, one.at or 0.0), one.tenant))
                self._where[one.key] = (passage, one.tenant, one.user, one.seq)
                self._keys.setdefault(passage, set()).add(one.key)
                touched.add(passage)
            self.state.insert(entries)
        wanted = sorted(touched)
        for start in range(0, len(wanted), _PAGE):
            ids = wanted[start : start + _PAGE]
            there = [id for id, found in zip(ids, self.index.has(ids), strict=True) if found]
            plain = dict(zip(there, self.index.vectors(there), strict=True)) if there else {}
            plain |= {id: np.zeros(self.index.dim, np.float32) for id in ids if id not in plain}
            self.state.recompute(plain)

    def _learn_queries(self, texts: Sequence[str]) -> None:
        unknown = [text for text in dict.fromkeys(texts) if text not in self.state.queries]
        if not unknown:
            return
        found = self.ledger.vectors(self.fingerprint, unknown)
        found = {text: vector for text, vector in found.items() if vector.shape == (self.index.dim,)}
        missing = [text for text in unknown if text not in found]
        if missing:
            log.info("embedding %d queries of the ledger anew", len(missing))
            vectors = self._embedded(missing)
            self.ledger.keep_vectors(self.fingerprint, missing, vectors)
            found |= zip(missing, vectors, strict=True)
        self.state.add_queries(unknown, np.stack([found[text] for text in unknown]))

    def _embedded(self, texts: Sequence[str]) -> Floats:
        rows = check_vectors(self._embed(list(texts)), self.index.dim, "query vectors")
        if len(rows) != len(texts):
            raise InvalidInput(f"embed returned {len(rows)} vectors for {len(texts)} queries.")
        return rows


class _ById:
    """Feedback names ids of the index."""

    def __init__(self, index: VectorIndex) -> None:
        self.index = index

    def resolve(self, feedback: Sequence[Feedback]) -> list[str | None]:
        ids = [one.chunk_id for one in feedback]
        return [id if there else None for id, there in zip(ids, self.index.has(ids), strict=True)]


def _updated(config: PefaConfig, values: dict[str, Any]) -> PefaConfig:
    known = {name: value for name, value in values.items() if name in PefaConfig.model_fields}
    try:
        return PefaConfig.model_validate({**config.model_dump(), **known})
    except ValueError as error:
        raise InvalidInput(f"Feedback settings not accepted: {error}") from error


def _same(one: State, other: State) -> bool:
    """Whether two states give the same search, to the bit."""
    if one.overlays.keys() != other.overlays.keys():
        return False
    for tenant, overlay in one.overlays.items():
        peer = other.overlays[tenant]
        if overlay.index.keys() != peer.index.keys():
            return False
        rows = [peer.index[id] for id in overlay.ids]
        if not (np.array_equal(overlay.delta, peer.delta[rows]) and np.array_equal(overlay.plain, peer.plain[rows])):
            return False
    return True
