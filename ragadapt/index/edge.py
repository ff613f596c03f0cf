"""Qdrant Edge: the Qdrant engine inside the process, in a folder. Every change is durable without a save.

Search is exact. One process at a time may have a folder open.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from ragadapt.config import IndexConfig
from ragadapt.errors import IndexCorrupt, IndexFault, InvalidInput, MissingExtra
from ragadapt.files import copy_file, explain_full_disk
from ragadapt.index.contract import (
    LOOKUPS,
    REBUILD,
    Engine,
    Floats,
    LookedUp,
    Lookup,
    Payload,
    Place,
    by_id_where_equal,
    check_ids,
    check_k,
    check_vectors,
    check_words,
    looked_up,
    missing_id,
    prepare_upsert,
    read_description,
    write_description,
)
from ragadapt.index.filters import Dated, Filter, to_qdrant
from ragadapt.index.payload import IndexType, PayloadIndexes, check_indexed_fields
from ragadapt.lexical.ranking import Ranking
from ragadapt.lexical.terms import PassageWords, Words

try:
    import qdrant_edge as edge
except ImportError as error:
    raise MissingExtra("The embedded Qdrant index", "qdrant-edge") from error

log = logging.getLogger(__name__)

# The same layout as in a Qdrant collection (ragadapt.index.qdrant), so that points can move between them.
NAMESPACE = uuid.UUID("6b0d9f0e-8a54-5c1e-9a0b-2d6f0d6c3a51")
ID_KEY, METADATA_KEY, PLACE_KEY = "id", "metadata", "at"
PASSAGE, FEEDBACK, WORDS = "passage", "feedback", "words"
BATCH = 1024
_SHARD = "shard"
_SCHEMAS: Mapping[IndexType, Any] = {
    "keyword": edge.PayloadSchemaType.Keyword, "float": edge.PayloadSchemaType.Float,
    "bool": edge.PayloadSchemaType.Bool, "datetime": edge.PayloadSchemaType.Datetime,
}  # fmt: skip


_LAID_OUT = 16_000_000  # bytes that a new shard fills of the files that it lays out ahead, with some to spare
_GROWTH = 4  # copies of what comes: the log of changes, the segment, what a merge writes anew


def _check_room(folder: Path, coming: int) -> None:
    """Raises StoreError where the disk has no room for so many bytes of vectors: the engine writes through mappings,
    and a disk that fills under one ends the process."""
    with explain_full_disk(folder):
        if shutil.disk_usage(folder).free < _GROWTH * coming:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def point_id(id: str) -> uuid.UUID:
    """The point id of a chunk id."""
    return uuid.uuid5(NAMESPACE, id)


class EdgeIndex(Engine):
    """One shard in a folder; without a folder, in a temporary one that goes when the index is closed."""

    kind = "qdrant-edge"
    options = frozenset({"indexed_fields"})
    mutable = True

    def __init__(
        self,
        shard: Any,
        folder: Path,
        dim: int,
        fingerprint: str | None,
        temporary: bool,
        words: bool = False,
        indexed_fields: Sequence[str] | None = None,
    ) -> None:
        self._shard = shard
        self.words = words
        self._folder = folder
        self._opened = _inode(folder)
        self._temporary = temporary
        self.dim = dim
        self.fingerprint = fingerprint
        self._lock = threading.RLock()  # for writers; readers need none
        known = {key: _type_of(one) for key, one in shard.info().payload_schema.items()}
        self._payload_indexes = PayloadIndexes(
            self._index_payload, self._drop_payload_index, (METADATA_KEY,), indexed_fields, known
        )

    @classmethod
    def at(cls, place: Place, **settings: Any) -> Self:
        return cls.open(place.folder, place.dim, place.fingerprint, **settings)

    @classmethod
    def keeps_words(cls, config: IndexConfig) -> bool:
        return config.lexical != "folder"

    @classmethod
    def building(
        cls, config: IndexConfig, scratch: Path, shape: tuple[int, int], earlier: Path | None = None
    ) -> dict[str, Any]:
        return {"words": cls.keeps_words(config), "indexed_fields": config.indexed_fields}

    @classmethod
    def check_options(cls, config: IndexConfig, others: Mapping[str, frozenset[str]]) -> None:
        super().check_options(config, others)
        check_indexed_fields(config)

    @classmethod
    def open(
        cls,
        folder: Path | None,
        dim: int | None,
        fingerprint: str | None,
        *,
        words: bool = False,
        indexed_fields: Sequence[str] | None = None,
    ) -> Self:
        """Open a folder, or make the index there if dim is given. words: make it with a place for the passages' words.
        indexed_fields: of the metadata, for filters; None = up to 32 by themselves, as their values come.

        Raises IndexCorrupt, IndexFault if in use, StoreError where the disk has no room for a new one.
        """
        temporary = folder is None
        description = read_description(folder) if folder is not None else None
        if description is None and (dim is None or dim < 1):
            raise InvalidInput(f"A new index needs the width of its vectors; dim is {dim}.")
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="ragadapt-edge-"))
        if description is None:
            assert dim is not None
            folder.mkdir(parents=True, exist_ok=True)
            _check_room(folder, _LAID_OUT // _GROWTH)
            (folder / _SHARD).mkdir(exist_ok=True)
            params = edge.EdgeVectorParams(size=dim, distance=edge.Distance.Dot)
            sparse = {WORDS: edge.EdgeSparseVectorParams()} if words else None
            config = edge.EdgeConfig(vectors={PASSAGE: params, FEEDBACK: params}, sparse_vectors=sparse)
            shard = _try(lambda: edge.EdgeShard.create(str(folder / _SHARD), config), folder)
            index = cls(shard, folder, dim, fingerprint, temporary, words, indexed_fields)
            write_description(folder, index._description())
            return index
        try:
            stored_dim, stored = int(description["dim"]), description["fingerprint"]
        except (KeyError, TypeError, ValueError) as error:
            raise IndexCorrupt(f"index.json in {folder} lacks {error}. {REBUILD}") from error
        shard = _try(lambda: edge.EdgeShard.load(str(folder / _SHARD)), folder)
        return cls(shard, folder, stored_dim, stored, temporary, bool(description.get("words")), indexed_fields)

    def __len__(self) -> int:
        return int(self._shard.count(edge.CountRequest(exact=True)))

    def ids(self, filter: Filter | None = None) -> list[str]:
        return [record.payload[ID_KEY] for record in self._scroll(4096, filter)]

    def has(self, ids: Sequence[str]) -> list[bool]:
        points = [point_id(id) for id in check_ids(ids)]
        there = {record.id for record in self._shard.retrieve(points, False, False)}
        return [point in there for point in points]

    def upsert(
        self,
        ids: Sequence[str],
        vectors: ArrayLike,
        payloads: Sequence[Payload] | None = None,
        words: PassageWords | None = None,
    ) -> None:
        new_ids, rows, plain = prepare_upsert(ids, vectors, payloads, self.dim)
        check_words(words, new_ids, self.words)
        _check_room(self._folder, rows.nbytes)
        with self._lock:
            self.prepare(plain)
            for start in range(0, len(new_ids), BATCH):
                points = []
                for at in range(start, min(start + BATCH, len(new_ids))):
                    vector: dict[str, Any] = {PASSAGE: rows[at]}
                    payload: dict[str, Any] = {ID_KEY: new_ids[at], METADATA_KEY: plain[at]}
                    if words is not None:
                        payload[PLACE_KEY] = words.first + at
                        terms, weights = words.row(at)
                        if terms:
                            vector[WORDS] = edge.SparseVector(terms, weights)
                    points.append(edge.Point(point_id(new_ids[at]), vector, payload))
                self._shard.update(edge.UpdateOperation.upsert_points(points))

    def prepare(self, payloads: Iterable[Payload]) -> None:
        """See VectorIndex."""
        with self._lock:
            self._payload_indexes.prepare(payloads)

    def _index_payload(self, key: str, type: IndexType) -> None:
        self._change(edge.UpdateOperation.create_field_index(key, _SCHEMAS[type]))

    def _drop_payload_index(self, key: str) -> None:
        self._change(edge.UpdateOperation.delete_field_index(key))

    def _change(self, operation: Any) -> None:
        try:
            self._shard.update(operation)
        except Exception as error:  # the engine raises plain Exception
            raise IndexFault(f"The index in {self._folder} cannot be changed ({error}). {REBUILD}") from error

    def update_vectors(self, ids: Sequence[str], vectors: ArrayLike) -> None:
        new_ids, rows, _ = prepare_upsert(ids, vectors, None, self.dim)
        _check_room(self._folder, rows.nbytes)
        with self._lock:
            for id, there in zip(new_ids, self.has(new_ids)):
                if not there:
                    raise missing_id(id)
            for start in range(0, len(new_ids), BATCH):
                part = slice(start, start + BATCH)
                points = [edge.PointVectors(point_id(id), {PASSAGE: row}) for id, row in zip(new_ids[part], rows[part])]
                self._shard.update(edge.UpdateOperation.update_vectors(points))

    def delete(self, ids: Sequence[str]) -> None:
        points: list[Any] = [point_id(id) for id in check_ids(ids)]
        if points:
            with self._lock:
                self._shard.update(edge.UpdateOperation.delete_points(points))

    def search(self, vectors: ArrayLike, k: int, filter: Filter | None = None) -> list[Ranking]:
        queries, k = check_vectors(vectors, self.dim, "query vectors"), check_k(k)
        condition, parameters = self._condition(filter), edge.SearchParams(exact=True)
        results: list[Ranking] = []
        for start in range(0, len(queries), BATCH):
            requests = [
                edge.QueryRequest(
                    limit=k, query=edge.Query.Nearest(query, using=PASSAGE), filter=condition, params=parameters,
                    with_payload=[ID_KEY],
                )
                for query in queries[start : start + BATCH]
            ]  # fmt: skip
            for points in self._shard.query_batch(edge.QueryBatchRequest(requests)):
                results.append(
                    by_id_where_equal([p.payload[ID_KEY] for p in points], np.array([p.score for p in points]))
                )
        return results

    def vectors(self, ids: Sequence[str]) -> Floats:
        rows = np.empty((len(ids), self.dim), np.float32)
        found = {r.id: r for r in self._shard.retrieve([point_id(id) for id in check_ids(ids)], False, [PASSAGE])}
        for row, id in zip(rows, ids):
            if point_id(id) not in found:
                raise missing_id(id)
            row[:] = found[point_id(id)].vector[PASSAGE]
        return rows

    def payloads(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        found = {r.id: r for r in self._shard.retrieve([point_id(id) for id in check_ids(ids)], True, False)}
        payloads = []
        for id in ids:
            if point_id(id) not in found:
                raise missing_id(id)
            payloads.append(dict(found[point_id(id)].payload.get(METADATA_KEY) or {}))
        return payloads

    def batches(self, size: int = 4096) -> Iterator[tuple[list[str], Floats]]:
        offset = None
        while True:
            records, offset = self._shard.scroll(
                edge.ScrollRequest(offset=offset, limit=size, with_payload=[ID_KEY], with_vector=[PASSAGE])
            )
            if records:
                yield (
                    [record.payload[ID_KEY] for record in records],
                    np.array([record.vector[PASSAGE] for record in records], np.float32),
                )
            if offset is None:
                return

    def save(self, folder: str | Path | None = None) -> None:
        """Flush; with another folder, also copy the index there."""
        with self._lock:
            self._shard.flush()
            target = Path(folder) if folder is not None else self._folder
            if target.resolve() == self._folder.resolve():
                return
            shutil.copytree(self._folder / _SHARD, target / _SHARD, dirs_exist_ok=True, copy_function=copy_file)
            write_description(target, self._description())

    def close(self) -> None:
        with self._lock:
            if self._shard is not None:
                shard, self._shard = self._shard, None
                try:
                    shard.flush()
                    shard.close()
                except Exception as error:  # the engine finds its files by their path
                    if _inode(self._folder) == self._opened:
                        raise IndexFault(f"The index in {self._folder} cannot be closed: {error}") from error
                    log.debug("%s was replaced while it was open: %s", self._folder, error)
                if self._temporary:
                    shutil.rmtree(self._folder, ignore_errors=True)

    def _description(self) -> dict[str, Any]:
        words = {"words": True} if self.words else {}
        return {"kind": self.kind, "dim": self.dim, "fingerprint": self.fingerprint, **words}

    def look_up(self, lookups: Sequence[Lookup]) -> list[LookedUp]:
        """See WordEngine."""
        found = []
        for start in range(0, len(lookups), LOOKUPS):
            requests = [self._request(one) for one in lookups[start : start + LOOKUPS]]
            for points in self._shard.query_batch(edge.QueryBatchRequest(requests)):
                found.append(looked_up(points, [point.payload or {} for point in points]))
        return found

    def _request(self, lookup: Lookup) -> Any:
        among = lookup.among
        return edge.QueryRequest(
            limit=lookup.limit,
            query=_nearest(lookup.query),
            prefetches=None if among is None else [
                edge.Prefetch(
                    limit=among.limit, query=_nearest(among.query), filter=self._condition(among.filter),
                    params=edge.SearchParams(exact=True),
                )
            ],
            filter=self._condition(lookup.filter),
            params=edge.SearchParams(exact=True),
            with_payload=[ID_KEY, PLACE_KEY] if lookup.named else False,
        )  # fmt: skip

    def _condition(self, filter: Filter | None) -> Any:
        native: Any = filter
        if native is None or isinstance(native, edge.Filter):
            return native
        condition = to_qdrant(self._payload_indexes.asked(native), _EdgeConditions(), (METADATA_KEY,))
        return condition if isinstance(condition, edge.Filter) else edge.Filter(must=[condition])

    # Feedback inside the engine: see ragadapt.pefa.engine

    def put_feedback(self, ids: Sequence[str], vectors: ArrayLike) -> None:
        """Set the second vector (n, dim) of points that are there."""
        new_ids, rows, _ = prepare_upsert(ids, vectors, None, self.dim)
        with self._lock:
            points = [edge.PointVectors(point_id(id), {FEEDBACK: row}) for id, row in zip(new_ids, rows)]
            self._shard.update(edge.UpdateOperation.update_vectors(points))

    def delete_feedback(self, ids: Sequence[str]) -> None:
        """Remove the second vector of these points."""
        points: list[Any] = [point_id(id) for id in check_ids(ids)]
        if points:
            with self._lock:
                self._shard.update(edge.UpdateOperation.delete_vectors(points, [FEEDBACK]))

    def ids_with_feedback(self) -> list[str]:
        """The points that have a second vector."""
        condition = edge.Filter(must=[edge.HasVectorCondition(FEEDBACK)])
        return [record.payload[ID_KEY] for record in self._scroll(4096, condition)]

    def search_mixed(
        self, vectors: Floats, k: int, share: float, filter: Filter | None, limit: int
    ) -> list[list[tuple[str, float]]]:
        """Per query of (Q, dim) the best k (id, score) by ⟨q, passage⟩ + share·⟨q, feedback⟩."""
        condition, parameters = self._condition(filter), edge.SearchParams(exact=True)
        variable, constant = edge.Expression.Variable, edge.Expression.Constant
        mixed = edge.Expression.Sum(
            [variable("$score[0]"), edge.Expression.Mult([constant(share), variable("$score[1]")])]
        )
        formula = edge.Formula(mixed, {"$score[0]": 0.0, "$score[1]": 0.0})
        results = []
        for query in vectors:
            sides = [edge.Query.Nearest(query, using=name) for name in (PASSAGE, FEEDBACK)]
            lists = [
                edge.Prefetch(limit=limit, query=side, filter=condition, params=parameters) for side in sides
            ]  # nested, so that both sides score what either of them holds
            both = [edge.Prefetch(limit=2 * limit, query=side, prefetches=lists, params=parameters) for side in sides]
            request = edge.QueryRequest(limit=k, query=formula, prefetches=both, with_payload=[ID_KEY])
            results.append([(point.payload[ID_KEY], point.score) for point in self._shard.query(request)])
        return results

    def _scroll(self, size: int, filter: Any) -> Iterator[Any]:
        condition, offset = self._condition(filter), None
        while True:
            records, offset = self._shard.scroll(
                edge.ScrollRequest(offset=offset, limit=size, filter=condition, with_payload=[ID_KEY])
            )
            yield from records
            if offset is None:
                return


class _EdgeConditions:
    """ConditionMaker with the engine's classes."""

    def filter(self, must: list[Any] | None, should: list[Any] | None, must_not: list[Any] | None) -> Any:
        return edge.Filter(must=must, should=should, must_not=must_not)

    def strings(self, key: str, values: list[str]) -> Any:
        return edge.FieldCondition(key, match=edge.MatchAny(values))

    def boolean(self, key: str, value: bool) -> Any:
        # Python's own bool is an int, and the engine would look for 1; numpy's arrives as a boolean.
        return edge.FieldCondition(key, match=edge.MatchValue(np.bool_(value)))  # type: ignore[arg-type]

    def integers(self, key: str, values: list[int]) -> Any:
        return edge.FieldCondition(key, match=edge.MatchAny(values))

    def moments(self, key: str, bounds: Dated) -> Any:
        each = (bounds.gt, bounds.gte, bounds.lt, bounds.lte)
        gt, gte, lt, lte = (None if bound is None else bound.isoformat() for bound in each)
        return edge.FieldCondition(key, range=edge.RangeDateTime(gt=gt, gte=gte, lt=lt, lte=lte))

    def named(self, ids: Iterable[str]) -> Any:
        return edge.HasIdCondition({point_id(id) for id in ids})

    def range(self, key: str, gt: float | None, gte: float | None, lt: float | None, lte: float | None) -> Any:
        return edge.FieldCondition(key, range=edge.RangeFloat(gt=gt, gte=gte, lt=lt, lte=lte))

    def substring(self, key: str, text: str) -> Any:
        return edge.FieldCondition(key, match=edge.MatchSubstring(text))

    def empty(self, key: str) -> Any:
        return edge.IsEmptyCondition(key)

    def nothing(self) -> Any:
        return edge.HasIdCondition(set())


def _type_of(index: Any) -> str:
    """Such as "keyword" or "integer"; the engine's own type has no names."""
    return repr(index.data_type).rpartition(".")[2].lower()


def _nearest(query: Any) -> Any:
    """Of a vector (d,) or of words."""
    if isinstance(query, Words):
        return edge.Query.Nearest(edge.SparseVector(query.terms.tolist(), query.weights.tolist()), using=WORDS)
    return edge.Query.Nearest(query, using=PASSAGE)


def _inode(folder: Path) -> int | None:
    """Tells a folder from another one that has taken its place since."""
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def _try(call: Any, folder: Path) -> Any:
    try:
        return call()
    except Exception as error:  # the engine raises plain Exception
        if "WouldBlock" in str(error) or "lock" in str(error).lower():
            raise IndexFault(
                f"The index in {folder} is open elsewhere; an embedded index has one user at a time. Close the other "
                "one, or use a Qdrant server."
            ) from error
        raise IndexCorrupt(f"The embedded Qdrant index in {folder} cannot be read ({error}). {REBUILD}") from error
