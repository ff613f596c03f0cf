"""Qdrant through its client: a server at a URL, `:memory:`, or a folder in the client's own local mode.

Local mode searches by brute force in Python and is meant for tests and small sets (it warns above 20,000 points);
`qdrant-edge` is the better embedded index. Its files hold pickles, so a folder is screened before it is opened.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import pickle
import re
import sqlite3
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from numpy.typing import ArrayLike

from ragadapt.checks import shown
from ragadapt.config import IndexConfig
from ragadapt.errors import (
    IndexCorrupt,
    IndexFault,
    IndexUnreachable,
    InvalidConfiguration,
    InvalidInput,
    MissingExtra,
)
from ragadapt.files import write_text
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
    write_description,
)
from ragadapt.index.filters import Dated, Filter, parse, payload_key, spellings, to_qdrant
from ragadapt.index.payload import IndexType, PayloadIndexes, check_indexed_fields
from ragadapt.lexical.ranking import Ranking
from ragadapt.lexical.terms import PassageWords, Words

try:
    from qdrant_client import QdrantClient, models
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
except ImportError as error:
    raise MissingExtra("The Qdrant index", "qdrant") from error

log = logging.getLogger(__name__)

NAMESPACE = uuid.UUID("6b0d9f0e-8a54-5c1e-9a0b-2d6f0d6c3a51")  # of the point ids; never change it
ID_KEY = "id"
METADATA_KEY = "metadata"
PLACE_KEY = "at"  # the number of a passage in the corpus as it was built
PASSAGE = "passage"  # the vector that is searched
WORDS = "words"  # BM25's weights, a sparse vector: see ragadapt.lexical.terms
FEEDBACK = "feedback"  # declared for PEFA, empty until used: it cannot be added to old servers later
BATCH = 256  # points a request: below the usual 32 MB limit up to 8,192 dimensions
ATTEMPTS = 4
API_KEY = "QDRANT_API_KEY"
_RETRIED = {408, 425, 429, 500, 502, 503, 504}

Quantisation = Literal["int8", "binary"]
_OVERSAMPLING: Mapping[Quantisation, float] = {"int8": 2.0, "binary": 4.0}  # times as many are scored again
_FIELD = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_WIDE = 1024  # numbers of a vector from which on one bit of each says enough
_SMALL = 1_000_000_000  # bytes of vectors
_SHARD = 10_000_000  # points: more of them make the optimiser's rewriting of a segment long

_INDEX_PARAMETERS: Mapping[IndexType, Any] = {
    "keyword": models.KeywordIndexParams, "float": models.FloatIndexParams, "bool": models.BoolIndexParams,
    "datetime": models.DatetimeIndexParams,
}  # fmt: skip

T = TypeVar("T")


def point_id(id: str) -> str:
    """The point id of a chunk id: Qdrant takes only UUIDs and integers."""
    return str(uuid.uuid5(NAMESPACE, id))


@dataclass(frozen=True, slots=True)
class CollectionLayout:
    """How a server keeps a collection. None = as the server is configured.

    A graph is searched in memory. Up to `_SMALL` bytes of vectors stay there as they are; beyond, int8 ones do (a
    quarter), and the vectors themselves, the words and the payloads lie on disk, where the best of what was found are
    scored again. Binary vectors are a further eighth, and good only for wide ones: they are never chosen unasked.
    """

    shards: int | None = None
    replicas: int | None = None
    quantised: Quantisation | None = None
    on_disk: bool | None = None
    tenant_field: str | None = None

    @classmethod
    def of(cls, config: IndexConfig, count: int, dim: int) -> Self:
        """As the settings say, and by the size of the vectors (count, dim) where they leave it open."""
        large = 4 * count * dim > _SMALL
        quantised: Quantisation | None = None
        if config.quantisation == "binary" or config.quantisation == "int8":
            quantised = config.quantisation
            if quantised == "binary" and dim < _WIDE:
                log.warning(
                    "Binary vectors of %d numbers miss about one in ten of the best even when rescored; they are for "
                    "%d numbers or more. Take index.quantisation = 'int8'.", dim, _WIDE,
                )  # fmt: skip
        elif config.quantisation == "auto" and large:
            quantised = "int8"
        shards = config.shards
        if shards is None and count > 2 * _SHARD:  # fewer are spread over the nodes as they are
            shards = -(-count // _SHARD)
        on_disk = config.on_disk if config.on_disk is not None else True if large else None
        replicas = config.replicas if config.replicas > 1 else None
        return cls(shards, replicas, quantised, on_disk, config.tenant_field)

    def tenant_keys(self) -> list[str]:
        """Where the tenant stands in the payload, as filters ask for it: in every spelling of its dots."""
        if self.tenant_field is None:
            return []
        return [payload_key(path, (METADATA_KEY,)) for path in spellings(tuple(self.tenant_field.split(".")))]

    def collection(self, dim: int, words: bool) -> dict[str, Any]:
        """What `create_collection` is told."""
        params = models.VectorParams(size=dim, distance=models.Distance.DOT, on_disk=self.on_disk)
        made: dict[str, Any] = {"vectors_config": {PASSAGE: params, FEEDBACK: params}}
        if words:
            index = None if self.on_disk is None else models.SparseIndexParams(on_disk=self.on_disk)
            made["sparse_vectors_config"] = {WORDS: models.SparseVectorParams(index=index)}
        if self.quantised == "int8":
            int8 = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
            made["quantization_config"] = models.ScalarQuantization(scalar=int8)
        elif self.quantised == "binary":
            binary = models.BinaryQuantizationConfig(always_ram=True)
            made["quantization_config"] = models.BinaryQuantization(binary=binary)
        if self.tenant_field is not None:  # a graph in every tenant's passages, beside that of all
            made["hnsw_config"] = models.HnswConfigDiff(payload_m=16)
        others = {
            "shard_number": self.shards, "replication_factor": self.replicas, "on_disk_payload": self.on_disk,
        }  # fmt: skip
        return made | {name: value for name, value in others.items() if value is not None}


class QdrantIndex(Engine):
    """One collection. Metadata lie under the payload's `metadata`, the chunk id under `id`."""

    kind = "qdrant"
    options = frozenset({
        "url", "collection", "upload_workers", "shards", "replicas", "quantisation", "on_disk", "tenant_field",
        "indexed_fields",
    })  # fmt: skip
    mutable = True

    def __init__(
        self,
        client: QdrantClient,
        collection: str,
        dim: int,
        fingerprint: str | None,
        *,
        url: str | None = None,
        folder: Path | None = None,
        vector_name: str = PASSAGE,
        exact: bool = False,
        upload_workers: int = 1,
        words: bool = False,
        quantised: Quantisation | None = None,
        tenant_field: str | None = None,
        indexed_fields: Sequence[str] | None = None,
        payload_indexes: Mapping[str, str] | None = None,
        on_disk: bool | None = None,
    ) -> None:
        """Wrap a collection that exists. exact: ask the server for exhaustive search instead of its graph.

        upload_workers: requests at a time in `upsert`; local mode takes one after the other whatever it says. words:
        it has a place for the words of passages. quantised: as its vectors are. tenant_field: of the metadata, whose
        values must be strings. indexed_fields: of the metadata, for filters; None = by themselves, as their values
        come. payload_indexes: key → type of those that it has. on_disk: where further ones lie; None = as the server
        likes.
        """
        if upload_workers < 1:
            raise InvalidInput(f"upload_workers = {upload_workers}: at least one is needed.")
        self.client = client
        self.collection = collection
        self.dim = dim
        self.fingerprint = fingerprint
        self.url = url
        self.vector_name = vector_name
        self._folder = folder
        self._workers = 1 if url in (None, ":memory:") else upload_workers
        self.words = words
        self._tenant_field = tenant_field
        local = url in (None, ":memory:")
        self._payload_indexes: PayloadIndexes | None = None
        if not local:
            make = functools.partial(self._index_payload, on_disk=on_disk)
            known = payload_indexes or {}
            self._payload_indexes = PayloadIndexes(
                make, self._drop_payload_index, (METADATA_KEY,), indexed_fields, known
            )
        self._parameters: Any = None
        themselves = models.QuantizationSearchParams(ignore=True)
        self._exactly: Any = None if local else models.SearchParams(exact=True, quantization=themselves)
        if exact:
            self._parameters = self._exactly
        elif quantised is not None and not local:
            rescored = models.QuantizationSearchParams(rescore=True, oversampling=_OVERSAMPLING[quantised])
            self._parameters = models.SearchParams(quantization=rescored)
        # Local mode is not made for several threads.
        self._lock: Any = threading.RLock()

    @classmethod
    def at(cls, place: Place, **settings: Any) -> Self:
        return cls.open(place.folder, place.url, place.collection, place.dim, place.fingerprint, **settings)

    @classmethod
    def check_options(cls, config: IndexConfig, others: Mapping[str, frozenset[str]]) -> None:
        super().check_options(config, others)
        if config.url == ":memory:":
            raise InvalidConfiguration(
                "index.url = ':memory:' keeps nothing, and a saved retriever needs its index. Leave the URL out for a "
                "folder, or name a server."
            )
        for name in ("shards", "replicas", "quantisation", "on_disk", "tenant_field", "indexed_fields"):
            if config.url is None and getattr(config, name) != IndexConfig.model_fields[name].default:
                raise InvalidConfiguration(
                    f"index.{name} = {getattr(config, name)!r} is for a Qdrant server: leave it out, or name the "
                    "server by index.url."
                )
        if config.tenant_field is not None and not _FIELD.fullmatch(config.tenant_field):
            raise InvalidConfiguration(
                f"index.tenant_field = {config.tenant_field!r}: a field of the metadata is named by letters, digits, _ "
                "and -, one inside another with dots."
            )
        check_indexed_fields(config)

    @classmethod
    def keeps_words(cls, config: IndexConfig) -> bool:
        # Local mode compares sparse vectors one by one in Python: at 800 passages a query takes seven times as long.
        return config.lexical == "engine" or (config.lexical == "auto" and config.url is not None)

    @classmethod
    def building(
        cls, config: IndexConfig, scratch: Path, shape: tuple[int, int], earlier: Path | None = None
    ) -> dict[str, Any]:
        collection = config.collection
        if config.url is not None:
            # On a server every build gets a collection of its own: the one in use is not touched before the commit.
            note = scratch / "collection"  # a killed build goes on in the one that it began
            if not note.exists():
                write_text(note, f"{collection}-{uuid.uuid4().hex[:12]}")
            collection = note.read_text(encoding="utf-8")
        settings = {"url": config.url, "collection": collection, "upload_workers": config.upload_workers}
        return settings | {
            "words": cls.keeps_words(config),
            "indexed_fields": config.indexed_fields,
            "layout": None if config.url is None else CollectionLayout.of(config, *shape),
        }

    @classmethod
    def open(
        cls,
        folder: Path | None,
        url: str | None,
        collection: str,
        dim: int | None,
        fingerprint: str | None,
        *,
        timeout_seconds: int = 30,
        exact: bool = False,
        api_key: str | None = None,
        upload_workers: int = 1,
        words: bool = False,
        layout: CollectionLayout | None = None,
        indexed_fields: Sequence[str] | None = None,
    ) -> Self:
        """Open a collection, or make it if dim is given. api_key: None = from QDRANT_API_KEY. words: make it with a
        place for the words of passages. layout: how a server is to keep it; None = as it likes. indexed_fields: of the
        metadata, by which a server looks filters up; None = up to 32 by themselves, as their values come.

        folder without url = local mode in that folder. Raises IndexUnreachable, IndexCorrupt, IndexFault.
        """
        if url is None and folder is None:
            url = ":memory:"
        client = _connect(folder, url, timeout_seconds, api_key)
        where = _shown(url) if url else str(folder)

        def ask(call: Callable[[], T]) -> T:
            return _asking(call, url)

        try:
            if ask(lambda: client.collection_exists(collection)):
                info = ask(lambda: client.get_collection(collection))
                name, params = _vector_of(info, where, collection)
                stored = ((info.config.metadata or {}).get("ragadapt") or {}).get("fingerprint")
                return cls(
                    client, collection, int(params.size), stored, url=url, folder=folder, vector_name=name, exact=exact,
                    upload_workers=upload_workers, words=WORDS in (info.config.params.sparse_vectors or {}),
                    quantised=_quantisation_of(info.config.quantization_config), indexed_fields=indexed_fields,
                    payload_indexes={key: one.data_type.value for key, one in (info.payload_schema or {}).items()},
                    on_disk=params.on_disk,
                )  # fmt: skip
            if dim is None or dim < 1:
                raise InvalidInput(f"There is no collection {collection!r} at {where}; to make one, give dim.")
            layout = layout or CollectionLayout()
            made = layout.collection(dim, words)
            metadata = {"ragadapt": {"format": 1, "fingerprint": fingerprint}}
            ask(lambda: client.create_collection(collection, metadata=metadata, **made))
            tenant_keys = layout.tenant_keys()
            tenants = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
            for key in tenant_keys:
                ask(lambda: client.create_payload_index(collection, key, tenants))  # noqa: B023
            index = cls(
                client, collection, dim, fingerprint, url=url, folder=folder, exact=exact,
                upload_workers=upload_workers, words=words, quantised=layout.quantised,
                tenant_field=layout.tenant_field, indexed_fields=indexed_fields,
                payload_indexes=dict.fromkeys(tenant_keys, "keyword"), on_disk=layout.on_disk,
            )  # fmt: skip
            if folder is not None:
                index._describe(folder)
            return index
        except BaseException:
            client.close()
            raise

    def __len__(self) -> int:
        return int(self._ask(lambda: self.client.count(self.collection, exact=True)).count)

    def ids(self, filter: Filter | None = None) -> list[str]:
        return [self._id_of(record) for record in self._scroll(4096, filter, False)]

    def has(self, ids: Sequence[str]) -> list[bool]:
        found = self._retrieve(check_ids(ids), payload=False, vector=False)
        return [self._point_id(id) in found for id in ids]

    def upsert(
        self,
        ids: Sequence[str],
        vectors: ArrayLike,
        payloads: Sequence[Payload] | None = None,
        words: PassageWords | None = None,
    ) -> None:
        new_ids, rows, plain = prepare_upsert(ids, vectors, payloads, self.dim)
        check_words(words, new_ids, self.words)
        if self._tenant_field is not None:
            _check_tenants(new_ids, plain, self._tenant_field)
        self.prepare(plain)

        def send(start: int) -> None:
            part = slice(start, start + BATCH)
            some = None if words is None else words.part(start, start + BATCH)
            self._send(new_ids[part], rows[part], plain[part], some)

        in_parallel(send, range(0, len(new_ids), BATCH), self._workers)

    def prepare(self, payloads: Iterable[Payload]) -> None:
        """See VectorIndex. Local mode filters without payload indexes."""
        if self._payload_indexes is not None:
            self._payload_indexes.prepare(payloads)

    def _index_payload(self, key: str, type: IndexType, on_disk: bool | None) -> None:
        schema: Any = models.PayloadSchemaType(type)
        if on_disk:
            schema = _INDEX_PARAMETERS[type](type=type, on_disk=True)
        self._ask(lambda: self.client.create_payload_index(self.collection, key, schema, wait=True))

    def _drop_payload_index(self, key: str) -> None:
        self._ask(lambda: self.client.delete_payload_index(self.collection, key, wait=True))

    def upsert_many(self, batches: Iterable[tuple[Sequence[str], ArrayLike]]) -> int:
        """Upsert (ids, vectors (n, dim)) batches from a stream, without metadata; how many vectors that were.

        A batch is read from the stream only when a worker can soon take it, so a slow server slows the reading and
        memory holds few batches. An id must not come in two batches: they are written in any order. Batches up to 256
        rows are one request each; larger ones are cut.
        """
        sent = 0

        def pieces() -> Iterator[tuple[list[str], Floats]]:
            nonlocal sent
            for ids, vectors in batches:
                new_ids, rows, _ = prepare_upsert(ids, vectors, None, self.dim)
                for start in range(0, len(new_ids), BATCH):
                    yield new_ids[start : start + BATCH], rows[start : start + BATCH]
                sent += len(new_ids)

        def send(piece: tuple[list[str], Floats]) -> None:
            self._send(*piece, [{} for _ in piece[0]])

        in_parallel(send, pieces(), self._workers)
        return sent

    def _send(
        self, ids: Sequence[str], rows: Floats, payloads: Sequence[Payload], words: PassageWords | None = None
    ) -> None:
        points = []
        for at, (id, row, metadata) in enumerate(zip(ids, rows, payloads, strict=True)):
            vector = self._named(row.tolist())
            payload: dict[str, Any] = {ID_KEY: id, METADATA_KEY: metadata}
            if words is not None:
                payload[PLACE_KEY] = words.first + at
                terms, weights = words.row(at)
                if terms:
                    vector[WORDS] = models.SparseVector(indices=terms, values=weights)
            points.append(models.PointStruct(id=point_id(id), vector=vector, payload=payload))
        self._ask(lambda: self.client.upsert(self.collection, points, wait=True))

    def update_vectors(self, ids: Sequence[str], vectors: ArrayLike) -> None:
        new_ids, rows, _ = prepare_upsert(ids, vectors, None, self.dim)
        for id, there in zip(new_ids, self.has(new_ids)):
            if not there:
                raise missing_id(id)
        for start in range(0, len(new_ids), BATCH):
            part = slice(start, start + BATCH)
            points = [
                models.PointVectors(id=point_id(id), vector=self._named(row.tolist()))
                for id, row in zip(new_ids[part], rows[part])
            ]
            self._ask(lambda: self.client.update_vectors(self.collection, points, wait=True))  # noqa: B023

    def delete(self, ids: Sequence[str]) -> None:
        points = [point_id(id) for id in check_ids(ids)]
        for start in range(0, len(points), 4096):
            selector = models.PointIdsList(points=list(points[start : start + 4096]))
            self._ask(lambda: self.client.delete(self.collection, selector, wait=True))  # noqa: B023

    def search(self, vectors: ArrayLike, k: int, filter: Filter | None = None) -> list[Ranking]:
        queries, k = check_vectors(vectors, self.dim, "query vectors"), check_k(k)
        condition = self._condition(filter)
        results: list[Ranking] = []
        for start in range(0, len(queries), BATCH):
            requests = [
                models.QueryRequest(
                    query=query.tolist(), using=self.vector_name or None, limit=k, filter=condition,
                    params=self._parameters, with_payload=self._id_keys,
                )
                for query in queries[start : start + BATCH]
            ]  # fmt: skip
            for response in self._ask(lambda: self.client.query_batch_points(self.collection, requests)):  # noqa: B023
                points = response.points
                ids = [self._id_of(point) for point in points]
                results.append(by_id_where_equal(ids, np.array([point.score for point in points])))
        return results

    def look_up(self, lookups: Sequence[Lookup]) -> list[LookedUp]:
        """See WordEngine."""
        found = []
        for start in range(0, len(lookups), LOOKUPS):
            requests = [self._request(one) for one in lookups[start : start + LOOKUPS]]
            for response in self._ask(lambda: self.client.query_batch_points(self.collection, requests)):  # noqa: B023
                found.append(looked_up(response.points, [point.payload or {} for point in response.points]))
        return found

    def _request(self, lookup: Lookup) -> Any:
        def searched(one: Lookup) -> dict[str, Any]:
            words = isinstance(one.query, Words)
            # What is looked at again must be scored by the vectors themselves, quantised or not.
            parameters = None if words else self._parameters if one.among is None else self._exactly
            return {
                "query": _sparse(one.query) if isinstance(one.query, Words) else one.query.tolist(),
                "using": WORDS if words else PASSAGE, "limit": one.limit, "filter": self._condition(one.filter),
                "params": parameters,
            }  # fmt: skip

        among = None if lookup.among is None else models.Prefetch(**searched(lookup.among))
        keys: Any = [ID_KEY, PLACE_KEY] if lookup.named else False
        return models.QueryRequest(**searched(lookup), prefetch=among, with_payload=keys)

    def vectors(self, ids: Sequence[str]) -> Floats:
        found = self._retrieve(check_ids(ids), payload=False, vector=True)
        rows = np.empty((len(ids), self.dim), np.float32)
        for row, id in zip(rows, ids):
            record = found.get(self._point_id(id))
            if record is None:
                raise missing_id(id)
            row[:] = self._vector(record)
        return rows

    def payloads(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        found = self._retrieve(check_ids(ids), payload=True, vector=False)
        payloads = []
        for id in ids:
            record = found.get(self._point_id(id))
            if record is None:
                raise missing_id(id)
            payloads.append(self._metadata(record))
        return payloads

    def batches(self, size: int = 4096) -> Iterator[tuple[list[str], Floats]]:
        records: list[Any] = []
        for record in self._scroll(size, None, True):
            records.append(record)
            if len(records) == size:
                yield self._batch(records)
                records = []
        if records:
            yield self._batch(records)

    @property
    def shared(self) -> bool:
        """Whether other programs may change the collection while it is open here."""
        return self._folder is None or self.url is not None

    def contents(self, size: int = 1024) -> Iterator[tuple[str, dict[str, Any]]]:
        """All ids with their metadata."""
        for records in self._pages(size, True, False):
            yield from ((self._id_of(record), self._metadata(record)) for record in records)

    def save(self, folder: str | Path | None = None) -> None:
        """Note in `folder` where the collection is; the points themselves are durable already.

        A local-mode folder cannot be saved elsewhere: close it and copy the folder.
        """
        target = Path(folder) if folder is not None else self._folder
        if target is None:
            raise InvalidInput("This index lives in memory or on a server; say which folder to note it in.")
        if self.url == ":memory:":
            raise InvalidInput(
                "An index in ':memory:' cannot be written. Use a folder, a server, or kind 'qdrant-edge'."
            )
        if self.url is None and self._folder is not None and target.resolve() != self._folder.resolve():
            raise InvalidInput(f"This index lives in {self._folder}; close it and copy that folder to {target}.")
        self._describe(target)

    def close(self) -> None:
        self.client.close()

    def _describe(self, folder: Path) -> None:
        values = {"kind": self.kind, "dim": self.dim, "fingerprint": self.fingerprint, "collection": self.collection}
        if self.url is not None:
            values["url"] = _shown(self.url)
        if self.words:
            values["words"] = True
        write_description(folder, values)

    # Feedback inside the engine: see ragadapt.pefa.engine

    def put_feedback(self, ids: Sequence[str], vectors: ArrayLike) -> None:
        """Set the second vector (n, dim) of points that are there. Raises InvalidInput for a foreign collection."""
        new_ids, rows, _ = prepare_upsert(ids, vectors, None, self.dim)
        self._needs_feedback_vector()
        points = [
            models.PointVectors(id=point_id(id), vector={FEEDBACK: row.tolist()}) for id, row in zip(new_ids, rows)
        ]
        self._ask(lambda: self.client.update_vectors(self.collection, points, wait=True))

    def delete_feedback(self, ids: Sequence[str]) -> None:
        """Remove the second vector of these points."""
        points: list[Any] = [point_id(id) for id in check_ids(ids)]
        if points:
            self._ask(lambda: self.client.delete_vectors(self.collection, [FEEDBACK], points, wait=True))

    def ids_with_feedback(self) -> list[str]:
        """The points that have a second vector."""
        condition = models.Filter(must=[models.HasVectorCondition(has_vector=FEEDBACK)])
        return [self._id_of(record) for record in self._scroll(4096, condition, False)]

    def search_mixed(
        self, vectors: Floats, k: int, share: float, filter: Filter | None, limit: int
    ) -> list[list[tuple[str, float]]]:
        """Per query of (Q, dim) the best k (id, score) by ⟨q, passage⟩ + share·⟨q, feedback⟩."""
        condition = self._condition(filter)
        self._needs_feedback_vector()
        formula = models.FormulaQuery(
            formula=models.SumExpression(sum=["$score[0]", models.MultExpression(mult=[share, "$score[1]"])]),
            defaults={"$score[0]": 0.0, "$score[1]": 0.0},
        )
        results = []
        for query in vectors.tolist():
            lists = [
                models.Prefetch(query=query, using=name, limit=limit, filter=condition, params=self._parameters)
                for name in (PASSAGE, FEEDBACK)
            ]  # nested, so that both sides score what either of them holds
            both = [
                models.Prefetch(query=query, using=name, limit=2 * limit, prefetch=lists, params=self._parameters)
                for name in (PASSAGE, FEEDBACK)
            ]
            request = functools.partial(
                self.client.query_points, self.collection, query=formula, prefetch=both, limit=k, with_payload=[ID_KEY]
            )
            found = self._ask(request)
            results.append([(self._id_of(point), point.score) for point in found.points])
        return results

    def _needs_feedback_vector(self) -> None:
        if self.vector_name != PASSAGE:
            raise InvalidInput(
                f"The collection {self.collection!r} was not made by ragadapt: its points have no place for feedback. "
                "Use Pefa.search, or copy it into an index of ragadapt's."
            )

    def _ask(self, call: Callable[[], T]) -> T:
        if self.url is None or self.url == ":memory:":
            with self._lock:
                return call()
        return _asking(call, self.url)

    def _named(self, vector: list[float]) -> Any:
        return {self.vector_name: vector} if self.vector_name else vector

    def _vector(self, record: Any) -> Any:
        return record.vector[self.vector_name] if self.vector_name else record.vector

    def _batch(self, records: list[Any]) -> tuple[list[str], Floats]:
        return [self._id_of(r) for r in records], np.array([self._vector(r) for r in records], np.float32)

    def _retrieve(self, ids: Sequence[str], payload: bool, vector: bool) -> dict[str | None, Any]:
        """Point id → record, of those that are there."""
        found: dict[str | None, Any] = {}
        points = [point for point in map(self._point_id, ids) if point is not None]
        for start in range(0, len(points), 1024):
            wanted: list[Any] = list(points[start : start + 1024])
            names = [self.vector_name] if vector and self.vector_name else vector
            for record in self._ask(
                lambda: self.client.retrieve(self.collection, wanted, with_payload=payload, with_vectors=names)  # noqa: B023
            ):
                found[str(record.id)] = record
        return found

    def _scroll(self, size: int, filter: Any, vector: bool) -> Iterator[Any]:
        names = [self.vector_name] if vector and self.vector_name else vector
        for records in self._pages(size, self._id_keys, names, self._condition(filter)):
            yield from records

    def _pages(self, size: int, payload: Any, vectors: Any, condition: Any = None) -> Iterator[list[Any]]:
        """All points that meet the condition, up to `size` at a time, with these parts of payload and vectors."""
        offset = None
        while True:
            records, offset = self._ask(
                lambda: self.client.scroll(
                    self.collection, scroll_filter=condition, limit=size, offset=offset,  # noqa: B023
                    with_payload=payload, with_vectors=vectors,
                )
            )  # fmt: skip
            if records:
                yield list(records)
            if offset is None:
                return

    # What a payload of ours looks like; ragadapt.index.foreign reads those of other programs.

    _id_keys: Any = [ID_KEY]  # noqa: RUF012

    def _point_id(self, id: str) -> str | None:
        """The point that an id stands for; None = no point can have it."""
        return point_id(id)

    def _id_of(self, point: Any) -> str:
        id: str = point.payload[ID_KEY]
        return id

    def _metadata(self, record: Any) -> dict[str, Any]:
        return dict(record.payload.get(METADATA_KEY) or {})

    def _condition(self, filter: Filter | None) -> Any:
        asked: Any = filter
        if self._payload_indexes is not None and filter is not None and not isinstance(filter, models.Filter):
            asked = self._payload_indexes.asked(filter)
        return to_condition(asked, (METADATA_KEY,))


class _QdrantConditions:
    """ConditionMaker with the client's classes."""

    def __init__(self, point_of: Callable[[str], str | int | None]) -> None:
        self._point_of = point_of

    def filter(self, must: list[Any] | None, should: list[Any] | None, must_not: list[Any] | None) -> Any:
        return models.Filter(must=must, should=should, must_not=must_not)

    def strings(self, key: str, values: list[str]) -> Any:
        return models.FieldCondition(key=key, match=models.MatchAny(any=values))

    def boolean(self, key: str, value: bool) -> Any:
        return models.FieldCondition(key=key, match=models.MatchValue(value=value))

    def integers(self, key: str, values: list[int]) -> Any:
        return models.FieldCondition(key=key, match=models.MatchAny(any=values))

    def moments(self, key: str, bounds: Dated) -> Any:
        inside = models.DatetimeRange(gt=bounds.gt, gte=bounds.gte, lt=bounds.lt, lte=bounds.lte)
        return models.FieldCondition(key=key, range=inside)

    def named(self, ids: Iterable[str]) -> Any:
        points = [point for point in map(self._point_of, ids) if point is not None]
        return models.HasIdCondition(has_id=points)

    def range(self, key: str, gt: float | None, gte: float | None, lt: float | None, lte: float | None) -> Any:
        return models.FieldCondition(key=key, range=models.Range(gt=gt, gte=gte, lt=lt, lte=lte))

    def substring(self, key: str, text: str) -> Any:
        return models.FieldCondition(key=key, match=models.MatchSubstring(substring=text))

    def empty(self, key: str) -> Any:
        return models.IsEmptyCondition(is_empty=models.PayloadField(key=key))

    def nothing(self) -> Any:
        return models.HasIdCondition(has_id=[])


def to_condition(
    filter: Filter | None, prefix: tuple[str, ...], point_of: Callable[[str], str | int | None] = point_id
) -> Any:
    """A filter as the client's own `models.Filter`; one that is that already passes as it is. Raises InvalidFilter."""
    native: Any = filter
    if native is None or isinstance(native, models.Filter):
        return native
    condition = to_qdrant(parse(native), _QdrantConditions(point_of), prefix)
    return condition if isinstance(condition, models.Filter) else models.Filter(must=[condition])


def _check_tenants(ids: Sequence[str], payloads: Sequence[Payload], field: str) -> None:
    """Raises InvalidInput for a tenant that is no string: the index of tenants would not find it."""
    for id, payload in zip(ids, payloads, strict=True):
        value: Any = payload
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and not isinstance(value, str):
            raise InvalidInput(
                f"The metadata of {id!r} has {field} = {shown(value)}. index.tenant_field names a field of strings: "
                "write the tenant as one, or leave the setting out."
            )


def _sparse(words: Words) -> Any:
    return models.SparseVector(indices=words.terms.tolist(), values=words.weights.tolist())


def _quantisation_of(config: Any) -> Quantisation | None:
    if isinstance(config, models.ScalarQuantization):
        return "int8"
    return "binary" if isinstance(config, models.BinaryQuantization) else None


def _vector_of(info: Any, where: str, collection: str) -> tuple[str, Any]:
    """(name, parameters) of the vector to search. Raises IndexFault where it cannot be searched by inner product."""
    vectors = info.config.params.vectors
    named = vectors if isinstance(vectors, dict) else {"": vectors}
    name = PASSAGE if PASSAGE in named else next(iter(named)) if len(named) == 1 else None
    if name is None:
        raise IndexFault(
            f"The collection {collection!r} at {where} has the vectors {', '.join(sorted(named))}, and none is called "
            f"{PASSAGE!r}. Name another collection."
        )
    if named[name].distance != models.Distance.DOT:
        raise IndexFault(
            f"The collection {collection!r} at {where} compares by {named[name].distance.value}; scores here are inner "
            "products (Dot). Name another collection, or make it anew with distance Dot."
        )
    return name, named[name]


def _connect(folder: Path | None, url: str | None, timeout_seconds: int, api_key: str | None) -> QdrantClient:
    if url == ":memory:":
        return QdrantClient(":memory:", force_disable_check_same_thread=True)
    if url is not None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidInput(f"{_shown(url)!r} is no address of a server; write http://host:6333 or https://….")
        with warnings.catch_warnings():  # the client's remark about a key over http is ours to make, without the key
            warnings.simplefilter("ignore")
            return QdrantClient(
                url=url,
                port=parts.port or (443 if parts.scheme == "https" else 6333),
                api_key=api_key or os.environ.get(API_KEY) or None,
                timeout=timeout_seconds,
                check_compatibility=False,
            )
    assert folder is not None
    _screen(folder)
    try:
        return QdrantClient(path=str(folder), force_disable_check_same_thread=True)
    except RuntimeError as error:
        if "already accessed" in str(error):
            raise IndexFault(
                f"The index in {folder} is open elsewhere; local mode has one user at a time. Close the other one, or "
                "use a Qdrant server."
            ) from error
        raise IndexCorrupt(f"The Qdrant index in {folder} cannot be read ({error}). {REBUILD}") from error
    except (OSError, ValueError, KeyError, EOFError, sqlite3.DatabaseError, pickle.UnpicklingError) as error:
        raise IndexCorrupt(f"The Qdrant index in {folder} cannot be read ({error}). {REBUILD}") from error


class _PointsOnly(pickle.Unpickler):
    """Rebuilds stored points and refuses to look up anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("qdrant_client.http.models") and name in ("PointStruct", "SparseVector"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no stored point needs")


def _screen(folder: Path) -> None:
    """Refuse local-mode files that hold anything but points: the client would run it on opening."""
    for storage in sorted(folder.glob("collection/*/storage.sqlite")):
        try:
            with closing(sqlite3.connect(f"{storage.resolve().as_uri()}?mode=ro", uri=True)) as connection:
                for row in connection.execute("SELECT point FROM points"):
                    _PointsOnly(io.BytesIO(row[0])).load()
        except Exception as error:
            raise IndexCorrupt(
                f"{storage} is damaged or not a Qdrant index ({error}); it was not opened. {REBUILD}"
            ) from error


def _asking(call: Callable[[], T], url: str | None) -> T:
    """Call a server, again after a pause where that can help. Raises IndexUnreachable; never shows the key."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except UnexpectedResponse as error:
            if error.status_code in (401, 403):
                raise IndexUnreachable(
                    f"Qdrant at {_shown(url)} refused access ({error.status_code}). Set the key in {API_KEY}."
                ) from None
            if error.status_code not in _RETRIED or attempt == ATTEMPTS:
                reason = f"{error.status_code} {error.reason_phrase}"
                raise IndexUnreachable(f"Qdrant at {_shown(url)} answered {reason}: {_body(error)}") from None
        except ResponseHandlingException as error:
            if attempt == ATTEMPTS:
                raise IndexUnreachable(
                    f"Qdrant at {_shown(url)} does not answer after {ATTEMPTS} tries ({_last_line(error)}). "
                    "Is the server running, and the address right?"
                ) from None
        time.sleep(0.25 * 2 ** (attempt - 1))
    raise AssertionError("the loop returns or raises")


def in_parallel(call: Callable[[T], None], items: Iterable[T], workers: int) -> None:
    """Call it for every item, `workers` at a time; of the items, at most twice as many are taken ahead.

    The first error stops the taking, and is raised once the calls under way have ended.
    """
    if workers == 1:
        for item in items:
            call(item)
        return
    pending: set[Future[None]] = set()
    with ThreadPoolExecutor(workers, thread_name_prefix="upload") as pool:
        try:
            for item in items:
                if len(pending) >= 2 * workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for one in done:
                        one.result()
                pending.add(pool.submit(call, item))
            for one in pending:
                one.result()
        except BaseException:
            for one in pending:
                one.cancel()
            raise


def _body(error: UnexpectedResponse) -> str:
    return error.content.decode("utf-8", "replace")[:300]


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _shown(url: str | None) -> str:
    """The address without user, password and query, which may hold a key."""
    if url is None or url == ":memory:":
        return str(url)
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
