"""Vectors under ids, searched by inner product: one contract, an engine per file.

| kind        | where                    | good for                                                        |
|-------------|--------------------------|-----------------------------------------------------------------|
| exact       | one matrix, mapped       | the reference; anything below a few hundred thousand vectors    |
| faiss       | files, read into memory  | the default where installed; flat is exact; disk is mapped      |
| qdrant-edge | a folder                 | embedded, every change durable, no loading into memory          |
| qdrant      | a server (or `:memory:`) | many users, many machines                                       |

A further one is a file with a class (`ragadapt.index.contract.Engine`) and a line in `ragadapt.config.ENGINES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragadapt.checks import checked_path
from ragadapt.config import AUTO, ENGINES, IndexConfig
from ragadapt.errors import IndexCorrupt, InvalidConfiguration, InvalidInput, MissingExtra, RagadaptError
from ragadapt.index.contract import (
    Engine,
    Payload,
    Place,
    VectorIndex,
    check_dim,
    check_fingerprint,
    read_description,
)
from ragadapt.index.filters import Filter, compile_filter
from ragadapt.secrets import secret_in_url

if TYPE_CHECKING:
    from ragadapt.index.exact import ExactIndex

__all__ = [
    "Engine",
    "Filter",
    "VectorIndex",
    "check_address",
    "check_index",
    "chosen",
    "collection_of",
    "compile_filter",
    "engine_of",
    "exact_index",
    "open_index",
]


def engine_of(kind: str) -> type[Engine]:
    """The class of this kind of index. Raises InvalidInput, MissingExtra."""
    if kind not in ENGINES:
        raise InvalidInput(f"Index kind {kind!r} is not known. Use one of: {', '.join(ENGINES)}.")
    module, _, name = ENGINES[kind].partition(":")
    found: type[Engine] = getattr(importlib.import_module(module), name)
    return found


def chosen(config: IndexConfig) -> IndexConfig:
    """The settings with the kind that `auto` comes to: what the other settings ask for, else faiss where installed,
    else exact."""
    kind = config.kind
    if kind == AUTO:
        if config.url is not None:
            kind = "qdrant"
        elif config.structure != "auto" or _is_installed("faiss"):
            kind = "faiss"
        else:
            kind = "exact"
    return config.model_copy(update={"kind": kind})


def check_index(config: IndexConfig) -> None:
    """Say before any work that an index cannot be built. Raises MissingExtra, InvalidConfiguration."""
    check_address(config.url, "index.url")
    try:
        engine = engine_of(config.kind)
    except MissingExtra as error:
        raise MissingExtra(f"An index of kind {config.kind!r} (or take index.kind = 'exact')", error.extra) from error
    engine.check_options(config, {kind: engine_of(kind).options for kind in ENGINES if _is_installed(kind)})


def _is_installed(kind: str) -> bool:
    try:
        engine_of(kind)
    except MissingExtra:
        return False
    return True


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

    kind: None = what the folder says, or qdrant where there is a url; auto = for a new index, faiss where installed,
    else exact. folder: None = in memory. url: a Qdrant server or ":memory:". dim: needed for
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
        if kind not in (None, AUTO, stored):
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
    if description is None and (kind == AUTO or (kind is None and url is not None)):
        kind = chosen(IndexConfig(url=url)).kind
    if kind is None:
        raise InvalidInput(f"There is no index in {folder}; to make one, name its kind: {', '.join(ENGINES)}.")
    engine = engine_of(kind)
    if url is not None and "url" not in engine.options:
        raise InvalidInput(f"A URL was given for an index of kind {kind!r}; only qdrant has a server.")
    place = Place(folder, description, dim, fingerprint, url, collection, check)
    index: Any = engine.at(place, **settings)
    where = f"at {url}" if url else f"in {folder}"
    try:
        check_dim(index.dim, dim, where)
        check_fingerprint(index.fingerprint, fingerprint, where)
    except BaseException:
        index.close()
        raise
    opened: VectorIndex = index
    return opened


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
