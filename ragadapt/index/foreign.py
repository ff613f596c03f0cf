"""A Qdrant collection that another program filled, opened as it is: its vectors, its payloads, its point ids.

| layout      | written by                        | payload                                                    |
|-------------|-----------------------------------|------------------------------------------------------------|
| langchain   | langchain-qdrant                  | {"page_content": text, "metadata": {…}}                    |
| llama-index | llama-index-vector-stores-qdrant  | the metadata, "_node_content" (the node as JSON), "doc_id" |

The index is for reading: nothing in it changes a point. `migrate` copies it, payloads untouched, into a new collection
with the vectors of another encoder.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike

from ragadapt.errors import DimensionMismatch, FingerprintMismatch, IndexFault, InvalidInput
from ragadapt.index.contract import Floats, Payload, check_vectors
from ragadapt.index.filters import Filter
from ragadapt.index.qdrant import BATCH, QdrantIndex, _asking, _connect, _shown, to_condition
from ragadapt.lexical.ranking import Ranking
from ragadapt.lexical.terms import PassageWords

from qdrant_client import models  # isort: skip  # after ragadapt.index.qdrant, which says what is missing

log = logging.getLogger(__name__)

Layout = Literal["langchain", "llama-index"]
TEXT_KEY = "_text"
"""Where `payloads` puts the text of a passage, beside the metadata; the same key as in collections of our own."""

SAMPLE = 16  # points compared with what the encoder makes of their texts
LEAST_COSINE = 0.98  # below, the vectors are another encoder's; precisions and truncation differ by less
_ROUNDS = 8  # of catching up with a collection that is written to during a migration


class ForeignQdrantIndex(QdrantIndex):
    """One collection of another program. Ids are its point ids, as strings.

    Scores are inner products, and cosines where the collection compares by cosine. Filters name the metadata's fields
    as everywhere (`{"lang": "en"}`), or are native ones over the payload as it lies.
    """

    kind = "qdrant"
    _id_keys: Any = False

    def __init__(self, *arguments: Any, layout: Layout, distance: models.Distance, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.layout = layout
        self.distance = distance

    @classmethod
    def existing(
        cls,
        url: str | None = None,
        collection: str = "",
        *,
        client: Any = None,
        layout: Layout | None = None,
        vector_name: str | None = None,
        fingerprint: str | None = None,
        timeout_seconds: int = 30,
        exact: bool = False,
        api_key: str | None = None,
    ) -> Self:
        """Open a collection (or an alias) at a server's URL, or through a client at hand.

        layout, vector_name: None = what the first point and the only dense vector say. fingerprint: of the encoder that
        made the vectors, if it is known. Raises IndexUnreachable, IndexFault, InvalidInput.
        """
        if layout is not None and layout not in get_args(Layout):
            raise InvalidInput(f"layout is {layout!r}; use one of: {', '.join(get_args(Layout))}.")
        if (url is None) == (client is None):
            raise InvalidInput("Give the URL of a Qdrant server, or a client that is connected already.")
        where = _shown(url) if url else "this client"
        client = client if client is not None else _connect(None, url, timeout_seconds, api_key)
        if not _asking(lambda: client.collection_exists(collection), url):
            raise InvalidInput(f"There is no collection {collection!r} at {where}.")
        info = _asking(lambda: client.get_collection(collection), url)
        name, params = _dense_vector(info, vector_name, f"{collection!r} at {where}")
        if layout is None:
            layout = _layout_of(
                _asking(lambda: client.scroll(collection, limit=1), url)[0], f"{collection!r} at {where}"
            )
        return cls(
            client, collection, int(params.size), fingerprint,
            url=url, vector_name=name, exact=exact, layout=layout, distance=params.distance,
        )  # fmt: skip

    @property
    def is_cosine(self) -> bool:
        """Whether the engine compares by cosine: it stores vectors at length 1."""
        return self.distance == models.Distance.COSINE

    def upsert(
        self,
        ids: Sequence[str],
        vectors: ArrayLike,
        payloads: Sequence[Payload] | None = None,
        words: PassageWords | None = None,
    ) -> None:
        raise self._read_only()

    def update_vectors(self, ids: Sequence[str], vectors: ArrayLike) -> None:
        raise self._read_only()

    def delete(self, ids: Sequence[str]) -> None:
        raise self._read_only()

    def save(self, folder: Any = None) -> None:
        raise self._read_only()

    def search(self, vectors: ArrayLike, k: int, filter: Filter | None = None) -> list[Ranking]:
        queries = check_vectors(vectors, self.dim, "query vectors")
        found = super().search(queries, k, filter)
        if self.is_cosine:  # the engine brings the query to length 1: give its length back
            lengths = np.linalg.norm(queries, axis=1)
            return [(ids, scores * length) for (ids, scores), length in zip(found, lengths)]
        return found

    def raw_payloads(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """The payloads as the other program wrote them, in the order of ids; {} for one that is missing."""
        found = self._retrieve(ids, payload=True, vector=False)
        records = [found.get(self._point_id(id)) for id in ids]
        return [dict(record.payload or {}) if record is not None else {} for record in records]

    def texts(self, ids: Sequence[str]) -> list[str]:
        """The texts of points, in the order of ids."""
        return [str(payload.get(TEXT_KEY) or "") for payload in self.payloads(ids)]

    def records(self, size: int = BATCH) -> Iterator[list[Any]]:
        """All points with payload, up to `size` at a time."""
        return self._pages(size, True, False)

    def check_encoder(self, encode_passages: Callable[[list[str]], Floats]) -> float:
        """The least cosine between stored vectors and what an encoder makes of their texts, over a sample.

        Raises DimensionMismatch, and FingerprintMismatch where the encoder cannot have made the vectors.
        """
        records = next(self.records(SAMPLE), [])
        ids = [self._id_of(record) for record in records]
        pairs = [(id, text) for id, text in zip(ids, self.texts(ids)) if text.strip()]
        if not pairs:
            return 1.0
        made = np.asarray(encode_passages([text for _, text in pairs]), np.float32)
        stored = self.vectors([id for id, _ in pairs])
        if made.shape[1] != self.dim:
            raise DimensionMismatch(
                f"The collection {self.collection!r} holds {self.dim}-d vectors, the encoder makes {made.shape[1]}-d. "
                "Open it with the model that filled it, or with one fitted from that model with --adapt query."
            )
        lengths = np.linalg.norm(made, axis=1) * np.linalg.norm(stored, axis=1)
        cosines = np.einsum("nd,nd->n", made, stored) / np.maximum(lengths, 1e-12)
        middle = float(np.median(cosines))  # one text that was cut otherwise is no other encoder
        if middle < LEAST_COSINE:
            raise FingerprintMismatch(
                f"The collection {self.collection!r} was filled by another encoder, or with another passage prompt: "
                f"the vectors of {len(pairs)} of its texts have a cosine of {middle:.3f} with its own. Open it with "
                "the model that filled it, with one fitted from that model with --adapt query, or migrate it."
            )
        return float(cosines.min())

    def _read_only(self) -> InvalidInput:
        return InvalidInput(
            f"The collection {self.collection!r} belongs to another program and was opened for reading. Change it "
            "there, or migrate it to a collection of its own."
        )

    def _point_id(self, id: str) -> str | None:
        if id.isdecimal() and len(id) <= 20:  # unsigned 64 bits; 32 digits are a UUID without hyphens
            return id
        try:
            return str(uuid.UUID(id))
        except ValueError:
            return None

    def _id_of(self, point: Any) -> str:
        return str(point.id)

    def _metadata(self, record: Any) -> dict[str, Any]:
        payload = dict(record.payload or {})
        if self.layout == "langchain":
            metadata = payload.get("metadata")
            return {**(metadata if isinstance(metadata, dict) else {}), TEXT_KEY: payload.get("page_content") or ""}
        return {**payload, TEXT_KEY: _node_text(payload.get("_node_content"))}

    def _condition(self, filter: Filter | None) -> Any:
        return to_condition(filter, ("metadata",) if self.layout == "langchain" else (), self._point)

    def _point(self, id: str) -> str | int | None:
        """The point that an id stands for, as the client takes it."""
        point = self._point_id(id)
        return int(point) if point is not None and point.isdecimal() else point

    def _retrieve(self, ids: Sequence[str], payload: bool, vector: bool) -> dict[str | None, Any]:
        points: list[Any] = [point for point in map(self._point, ids) if point is not None]
        names = [self.vector_name] if vector and self.vector_name else vector
        found: dict[str | None, Any] = {}
        for start in range(0, len(points), 1024):
            wanted = points[start : start + 1024]
            for record in self._ask(
                lambda: self.client.retrieve(self.collection, wanted, with_payload=payload, with_vectors=names)  # noqa: B023
            ):
                found[str(record.id)] = record
        return found


def migrate(
    source: ForeignQdrantIndex,
    target: str,
    encode_passages: Callable[[list[str]], Floats],
    *,
    alias: str | None = None,
    fingerprint: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> ForeignQdrantIndex:
    """Copy a collection into a new one, `target`, with the vectors (n, dim) of another encoder.

    Ids and payloads stay as they are, so the program that filled the old one can read the new one. Points that are
    written to the old collection meanwhile are caught up with. alias: a name that leads to the new collection from then
    on, switched in one call: a program that reads through the alias never sees an empty or half-filled collection. The
    old collection stays. Raises InvalidInput if `target` exists, IndexUnreachable, IndexFault.
    """
    client, url = source.client, source.url
    if _asking(lambda: client.collection_exists(target), url):
        raise InvalidInput(f"There is a collection {target!r} already. Name a new one.")
    aliases = _asking(lambda: client.get_aliases(), url).aliases
    if alias is not None and not any(one.alias_name == alias for one in aliases):
        collections = [one.name for one in _asking(lambda: client.get_collections(), url).collections]
        if alias in collections:
            raise InvalidInput(
                f"{alias!r} is a collection, not an alias, and a name can be only one of the two. Let your program "
                "read through an alias first: client.update_collection_aliases."
            )
    dim = int(np.asarray(encode_passages(["dimension"])).shape[1])
    params = models.VectorParams(size=dim, distance=source.distance)
    config: Any = {source.vector_name: params} if source.vector_name else params
    metadata = {"ragadapt": {"format": 1, "fingerprint": fingerprint}}
    _asking(lambda: client.create_collection(target, vectors_config=config, metadata=metadata), url)
    copied: dict[str, str] = {}
    for _ in range(_ROUNDS):
        changed = _copy_changes(source, target, encode_passages, copied, progress)
        if not changed:
            break
        log.info("migration to %s: %d points copied", target, changed)
    else:
        raise IndexFault(
            f"The collection {source.collection!r} changes faster than it can be copied to {target!r}. Pause what "
            f"writes to it, delete {target!r}, and migrate again."
        )
    if alias is not None:
        operations: list[Any] = []
        if any(one.alias_name == alias for one in aliases):
            operations.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        create = models.CreateAlias(collection_name=target, alias_name=alias)
        operations.append(models.CreateAliasOperation(create_alias=create))
        _asking(lambda: client.update_collection_aliases(operations), url)
    return ForeignQdrantIndex(
        client, target, dim, fingerprint,
        url=url, vector_name=source.vector_name, layout=source.layout, distance=source.distance,
    )  # fmt: skip


def _copy_changes(
    source: ForeignQdrantIndex,
    target: str,
    encode_passages: Callable[[list[str]], Floats],
    copied: dict[str, str],
    progress: Callable[[str, int, int], None] | None,
) -> int:
    """One pass: points whose payload differs from what was copied, and those that went. Returns how many."""
    total, seen, changed, done = len(source), set[str](), 0, 0
    for records in source.records():
        fresh = []
        for record in records:
            id, state = str(record.id), json.dumps(record.payload, sort_keys=True, default=str)
            seen.add(id)
            if copied.get(id) != state:
                fresh.append((id, record, state))
        if fresh:
            vectors = np.asarray(
                encode_passages([str(source._metadata(record)[TEXT_KEY]) for _, record, _ in fresh]), np.float32
            )
            points = [
                models.PointStruct(
                    id=record.id,
                    vector={source.vector_name: row.tolist()} if source.vector_name else row.tolist(),
                    payload=record.payload,
                )
                for (_, record, _), row in zip(fresh, vectors, strict=True)
            ]
            _asking(lambda: source.client.upsert(target, points, wait=True), source.url)  # noqa: B023
            copied.update((id, state) for id, _, state in fresh)
        changed += len(fresh)
        done += len(records)
        if progress is not None:
            progress("migrate", min(done, total), total)
    gone = [id for id in copied if id not in seen]
    if gone:
        selector = models.PointIdsList(points=[int(id) if id.isdecimal() else id for id in gone])
        _asking(lambda: source.client.delete(target, selector, wait=True), source.url)
        for id in gone:
            del copied[id]
    return changed + len(gone)


def _dense_vector(info: Any, wanted: str | None, where: str) -> tuple[str, Any]:
    """(name, parameters) of the vector to search; "" = the collection's unnamed one."""
    vectors = info.config.params.vectors
    named = vectors if isinstance(vectors, dict) else {"": vectors} if vectors is not None else {}
    if wanted is None and len(named) != 1:
        raise InvalidInput(f"The collection {where} has the vectors {sorted(named)}: say which one, with vector_name.")
    name = wanted if wanted is not None else next(iter(named))
    if name not in named:
        raise InvalidInput(f"The collection {where} has no vector {name!r}; it has: {sorted(named)}.")
    params = named[name]
    if params.distance not in (models.Distance.COSINE, models.Distance.DOT):
        raise IndexFault(
            f"The collection {where} compares by {params.distance.value}; scores here are inner products or cosines. "
            "Migrate it to a collection with distance Cosine or Dot."
        )
    return name, params


def _layout_of(records: Sequence[Any], where: str) -> Layout:
    if not records:
        raise InvalidInput(f"The collection {where} is empty, so its layout is not known: say which, with layout.")
    payload = records[0].payload or {}
    if "_node_content" in payload:
        return "llama-index"
    if "page_content" in payload:
        return "langchain"
    raise InvalidInput(
        f"The payloads of {where} hold {sorted(payload)[:8]}, neither 'page_content' (langchain-qdrant) nor "
        "'_node_content' (llama-index-vector-stores-qdrant). Only these two layouts can be opened as they are."
    )


def _node_text(content: Any) -> str:
    """The text of a LlamaIndex node as JSON."""
    try:
        node = json.loads(content)
        text = node.get("text") or (node.get("text_resource") or {}).get("text")
    except (TypeError, ValueError, AttributeError):
        return ""
    return text if isinstance(text, str) else ""
