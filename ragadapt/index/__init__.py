"""Vectors under ids, searched by inner product: one contract, an engine per file.

| kind        | where                    | good for                                                        |
|-------------|--------------------------|-----------------------------------------------------------------|
| exact       | one matrix, mapped       | the reference; anything below a few hundred thousand vectors    |
| faiss       | files, read into memory  | the default; flat is exact, hnsw and ivf for millions           |
| qdrant-edge | a folder                 | embedded, every change durable, no loading into memory          |
| qdrant      | a server (or `:memory:`) | many users, many machines                                       |
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragadapt.checks import checked_path, shown
from ragadapt.errors import IndexCorrupt, InvalidConfiguration, InvalidInput, RagadaptError
from ragadapt.index.contract import Payload, VectorIndex, check_dim, check_fingerprint, read_description
from ragadapt.index.filters import Filter, compile_filter
from ragadapt.secrets import secret_in_url

if TYPE_CHECKING:
    from ragadapt.index.exact import ExactIndex

__all__ = [
    "KINDS",
    "Filter",
    "VectorIndex",
    "check_address",
    "collection_of",
    "compile_filter",
    "exact_index",
    "open_index",
]

KINDS = ("exact", "faiss", "qdrant", "qdrant-edge")


def open_index(
    kind: str | None = None,
    folder: str | Path | None = None,
    *,
    dim: int | None = None,
    fingerprint: str | None = None,
    url: str | None = None,
    collection: str = "ragadapt",
    check: bool = True,
    **settings: Any,
) -> VectorIndex:
    """Open the index in a folder (or at a Qdrant URL), or make a new one there if there is none.

    kind: None = what the folder says. folder: None = in memory. url: a Qdrant server or ":memory:". dim: needed for
    a new index, checked against an old one. fingerprint: the encoder's; stored in a new index, checked against an
    old one. check: compare files with the hashes beside them (exact, faiss; an engine's own folder has none).
    settings: the engine's own (faiss: structure, device; qdrant: timeout_seconds, exact).

    Raises DimensionMismatch, FingerprintMismatch, IndexCorrupt, IndexUnreachable, MissingExtra, InvalidInput.
    """
    check_address(url, "url")
    folder = checked_path(folder, "The index's folder") if folder is not None else None
    description = read_description(folder) if folder is not None else None
    if description is not None:
        stored = description.get("kind")
        if kind is not None and kind != stored:
            raise InvalidInput(
                f"The folder {folder} holds an index of kind {stored!r}, not {kind!r}. Use another folder."
            )
        kind = stored
        url, collection = url or description.get("url"), description.get("collection", collection)
    elif folder is not None and (left := sorted(folder.glob("payloads-*.jsonl"))):
        raise IndexCorrupt(
            f"{folder} holds {left[0].name} and no index.json, which names the files that belong together: it is "
            "lost, or the first save was cut short. Put back a copy of the folder, or remove it and fill it again."
        )
    if kind is None:
        raise InvalidInput(f"There is no index in {folder}; to make one, name its kind: {', '.join(KINDS)}.")
    if kind not in KINDS:
        raise InvalidInput(f"Index kind {kind!r} is not known. Use one of: {', '.join(KINDS)}.")
    if url is not None and kind != "qdrant":
        raise InvalidInput(f"A URL was given for an index of kind {kind!r}; only qdrant has a server.")

    if kind == "qdrant":
        from ragadapt.index.qdrant import QdrantIndex

        index: VectorIndex = QdrantIndex.open(folder, url, collection, dim, fingerprint, **settings)
    elif kind == "qdrant-edge":
        from ragadapt.index.edge import EdgeIndex

        index = EdgeIndex.open(folder, dim, fingerprint, **settings)
    elif kind == "faiss":
        from ragadapt.index.faiss import FaissIndex

        if description is not None and folder is not None:
            index = FaissIndex.open(folder, check=check, **settings)
        else:
            index = FaissIndex(_needed(dim), fingerprint, folder, **settings)
    else:
        from ragadapt.index.exact import ExactIndex

        if description is not None and folder is not None:
            index = ExactIndex.open(folder, check=check, **settings)
        else:
            index = ExactIndex(_needed(dim), fingerprint, folder, **settings)
    where = f"at {url}" if url else f"in {folder}"
    try:
        check_dim(index.dim, dim, where)
        check_fingerprint(index.fingerprint, fingerprint, where)
    except BaseException:
        index.close()
        raise
    return index


def check_address(url: str | None, name: str) -> None:
    """Raises InvalidConfiguration for a server's address that carries a secret: it would stand in settings and logs."""
    if url is not None and (secret := secret_in_url(url)):
        raise InvalidConfiguration(
            f"{name} carries {secret}, which would end up in saved settings and logs. Leave it out of the address and "
            "put the key into the environment variable QDRANT_API_KEY."
        )


def collection_of(folder: Path) -> tuple[str, str] | None:
    """(address, name) of the collection that the index in a folder stands for; None where it is no server's."""
    try:
        description = read_description(folder) or {}
    except RagadaptError:
        return None
    url, name = description.get("url"), description.get("collection")
    return (str(url), str(name)) if url and name else None


def exact_index(
    ids: Sequence[str], vectors: Any, payloads: Sequence[Payload] | None = None, fingerprint: str | None = None
) -> ExactIndex:
    """Exact search over vectors (n, dim) at hand, without a copy: what `fit` measures with."""
    from ragadapt.index.exact import ExactIndex

    return ExactIndex.of(ids, vectors, payloads, fingerprint)


def _needed(dim: int | None) -> int:
    if dim is None or isinstance(dim, bool) or not isinstance(dim, int | np.integer) or dim < 1:
        raise InvalidInput(f"A new index needs the width of its vectors; dim is {shown(dim)}.")
    return int(dim)
