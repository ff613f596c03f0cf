"""What every vector index does, and the checks that all of them share.

A score is the inner product of query and stored vector, larger is better. Vectors are stored as they come:
nothing is normalised. Rankings are best first; equal scores come in the order of their ids (an engine that cuts
the list itself may break a tie at the cut otherwise).
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragadapt.checks import checked_ids, checked_k, checked_list, shown
from ragadapt.config import IndexConfig
from ragadapt.errors import (
    DimensionMismatch,
    FingerprintMismatch,
    FormatTooNew,
    IndexCorrupt,
    InvalidConfiguration,
    InvalidInput,
)
from ragadapt.files import FileRecord, Hashes, json_digest, record_file
from ragadapt.index.filters import Filter
from ragadapt.lexical.ranking import Ranking
from ragadapt.lexical.terms import PassageWords, Words
from ragadapt.text import encodable
from ragadapt.values import Progress, no_progress

log = logging.getLogger(__name__)

FORMAT = 1
INDEX_FILE = "index.json"
LOOKUPS = 64  # searches of one request: some 200 points each stay well below a server's limits
REBUILD = "Rebuild it with: ragadapt index RETRIEVER --rebuild"

Floats = NDArray[np.float32]
Payload = Mapping[str, Any]


class VectorIndex(Protocol):
    """Vectors under string ids, with metadata to filter by. Open one with `open_index`."""

    kind: str
    dim: int
    fingerprint: str | None
    """The encoder that made the vectors; None = not known."""

    def __len__(self) -> int: ...

    def ids(self, filter: Filter | None = None) -> list[str]:
        """All ids, or those whose metadata pass the filter, in no particular order."""

    def has(self, ids: Sequence[str]) -> list[bool]:
        """For each id whether the index holds it."""

    def upsert(self, ids: Sequence[str], vectors: ArrayLike, payloads: Sequence[Payload] | None = None) -> None:
        """Add or replace vectors (n, dim) and their metadata (None = empty). Of equal ids the last wins.

        Raises DimensionMismatch, and InvalidInput for numbers that are not finite; nothing is changed then.
        """

    def update_vectors(self, ids: Sequence[str], vectors: ArrayLike) -> None:
        """Replace the vectors (n, dim) of ids that are there, leaving metadata alone. Raises InvalidInput."""

    def delete(self, ids: Sequence[str]) -> None:
        """Remove ids; missing ones are no error."""

    def search(self, vectors: ArrayLike, k: int, filter: Filter | None = None) -> list[Ranking]:
        """For each query row of (Q, dim) up to k (ids, scores (k,)), best first."""

    def vectors(self, ids: Sequence[str]) -> Floats:
        """The stored vectors (n, dim), in the order of ids. Raises InvalidInput for one that is missing."""

    def payloads(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """The metadata, in the order of ids. Raises InvalidInput for one that is missing."""

    def batches(self, size: int = 4096) -> Iterator[tuple[list[str], Floats]]:
        """All ids with their vectors, up to `size` at a time; don't change the index meanwhile."""

    def prepare(self, payloads: Iterable[Payload]) -> None:
        """The metadata that a build will bring, all of them: make ready what filters on them need."""

    def finish(self, config: IndexConfig, progress: Progress = no_progress) -> None:
        """All vectors of a build are in: bring them into the form in which they are searched best."""

    def save(self, folder: str | Path | None = None) -> None:
        """Make the present state durable: in `folder`, or where the index was opened."""

    def close(self) -> None:
        """Release files and connections; unsaved changes of in-memory kinds are lost."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where an index is, or is to be made. folder: None = in memory, or at the server alone."""

    folder: Path | None
    description: Mapping[str, Any] | None = None
    """index.json of the folder; None = there is none yet."""
    dim: int | None = None
    fingerprint: str | None = None
    url: str | None = None
    collection: str = "ragadapt"
    check: bool = True
    """Whether files are compared with the hashes beside them."""

    def width(self) -> int:
        """That of the vectors of a new index. Raises InvalidInput where none was given."""
        if self.dim is None or isinstance(self.dim, bool) or not isinstance(self.dim, int | np.integer) or self.dim < 1:
            raise InvalidInput(f"A new index needs the width of its vectors; dim is {shown(self.dim)}.")
        return int(self.dim)


@dataclass(frozen=True, slots=True)
class Lookup:
    """One search of several that an engine with words does in one go (`WordEngine.look_up`).

    query: a vector (d,), or the words of a query. limit: how many points. among: only those that this search finds.
    named: whether ids and places come along.
    """

    query: Floats | Words
    limit: int
    filter: Filter | None = None
    among: Lookup | None = None
    named: bool = True


@dataclass(frozen=True, slots=True)
class LookedUp:
    """What a lookup found, best first. points: how the engine calls them. places: (n,) in the corpus as it was built;
    ids and places are empty where they were not asked for."""

    points: list[str]
    scores: Floats
    ids: list[str]
    places: NDArray[np.int64]


class WordEngine(Protocol):
    """What an index does besides that keeps the words of its passages beside their vectors."""

    words: bool
    """Whether this one keeps them."""

    def upsert(
        self,
        ids: Sequence[str],
        vectors: ArrayLike,
        payloads: Sequence[Payload] | None = None,
        words: PassageWords | None = None,
    ) -> None:
        """As for every index. words: of the same passages, all different."""

    def look_up(self, lookups: Sequence[Lookup]) -> list[LookedUp]:
        """One answer each, in one round trip up to `LOOKUPS` of them; scores are exact, whatever finds the points."""


class Engine(ABC):
    """A VectorIndex as `open_index` and `fit` find it: what its kind says of itself before there is one.

    The module of an engine raises MissingExtra when its package is missing; a line in `ragadapt.config.ENGINES` names
    the class.
    """

    kind: str
    options: ClassVar[frozenset[str]] = frozenset()
    """The settings of IndexConfig, beside the kind, that it follows."""
    CHECKED: ClassVar[tuple[str, ...]] = (
        "structure", "url", "shards", "replicas", "quantisation", "on_disk", "tenant_field", "indexed_fields",
    )  # fmt: skip
    mutable: ClassVar[bool] = False
    """Whether its folder changes in place while it is used, so that no hash of a file in it holds."""
    in_memory: ClassVar[bool] = False
    """Whether it filters by rows in this process: such a one is asked for rows that were marked already (`Marked`),
    instead of looking at the metadata itself."""

    @classmethod
    @abstractmethod
    def at(cls, place: Place, **settings: Any) -> Self:
        """Open the index there, or make it. settings: the engine's own."""

    @classmethod
    def check_options(cls, config: IndexConfig, others: Mapping[str, frozenset[str]]) -> None:
        """Raises InvalidConfiguration where something is set that this kind does not follow, or not so.

        others: what the kinds follow that are installed.
        """
        for name in cls.CHECKED:
            value = getattr(config, name)
            if name not in cls.options and value != IndexConfig.model_fields[name].default:
                able = [kind for kind, options in others.items() if name in options]
                raise InvalidConfiguration(
                    f"index.{name} = {value!r} is nothing that an index of kind {cls.kind!r} follows: leave it out, or "
                    f"take {' or '.join(able) or 'another kind'}."
                )
        if config.lexical == "engine" and not cls.keeps_words(config):
            raise InvalidConfiguration(
                f"index.lexical = 'engine' is nothing that an index of kind {cls.kind!r} can do: it is for qdrant and "
                "qdrant-edge."
            )

    @classmethod
    def keeps_words(cls, config: IndexConfig) -> bool:
        """Whether an index with these settings has BM25's weights beside the vectors (`WordEngine`)."""
        return False

    @classmethod
    def building(
        cls, config: IndexConfig, scratch: Path, shape: tuple[int, int], earlier: Path | None = None
    ) -> dict[str, Any]:
        """What `open_index` is told to make the index of a build. scratch: kept if the build is cut short. shape: of
        all vectors, (n, dim). earlier: the folder of the index in whose place this one comes, with much the same
        vectors; None = there is none."""
        return {}

    def prepare(self, payloads: Iterable[Payload]) -> None:  # noqa: B027
        """See VectorIndex."""

    def finish(self, config: IndexConfig, progress: Progress = no_progress) -> None:  # noqa: B027
        """See VectorIndex."""

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_ids(ids: Sequence[str]) -> list[str]:
    """The ids as a list. Raises InvalidInput for a lone string, or with the first that is no id."""
    return checked_ids(ids)


def check_vectors(vectors: ArrayLike, dim: int, what: str) -> Floats:
    """The vectors as contiguous float32 (n, dim). Raises DimensionMismatch, or InvalidInput with the bad row."""
    if np.iscomplexobj(vectors):
        raise InvalidInput(f"{what} are complex numbers; real ones are needed.")
    try:
        array = np.ascontiguousarray(vectors, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{what} are not numbers in rows of equal length: {error}.") from error
    if array.size == 0 and array.ndim < 2:
        array = array.reshape(0, dim)
    if array.ndim != 2:
        raise InvalidInput(f"{what} have shape {array.shape}; a matrix (number, {dim}) is needed, one row each.")
    if array.shape[1] != dim:
        raise DimensionMismatch(
            f"The index holds {dim}-d vectors, the {what} are {array.shape[1]}-d. They come from different "
            f"encoders. {REBUILD}"
        )
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise InvalidInput(f"Row {row} of the {what} holds NaN or infinity; every number must be finite.")
    return array


def check_k(k: int) -> int:
    """k as an int. Raises InvalidInput unless it is a whole number from 1 on."""
    return checked_k(k)


def check_payloads(payloads: Sequence[Payload] | None, ids: Sequence[str]) -> list[dict[str, Any]]:
    """One plain JSON object per id, in text that can be stored. Raises InvalidInput with the id that has none."""
    if payloads is None:
        return [{} for _ in ids]
    payloads = checked_list(payloads, "payloads")
    if len(payloads) != len(ids):
        raise InvalidInput(f"Got {len(payloads)} payloads for {len(ids)} ids; there must be one each.")
    plain = []
    for id, payload in zip(ids, payloads):
        try:
            if not isinstance(payload, Mapping):
                raise TypeError(f"it is {type(payload).__name__}, not a dict")
            text = json.dumps(dict(payload), allow_nan=False, ensure_ascii=False)
            plain.append(json.loads(encodable(text)))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInput(f"The metadata of {id!r} is not a JSON object ({error}). Use plain values.") from error
    return plain


def prepare_upsert(
    ids: Sequence[str], vectors: ArrayLike, payloads: Sequence[Payload] | None, dim: int
) -> tuple[list[str], Floats, list[dict[str, Any]]]:
    """Checked ids, vectors and payloads without doubles: of equal ids the last wins."""
    checked = check_ids(ids)
    rows = check_vectors(vectors, dim, "vectors")
    if len(rows) != len(checked):
        raise InvalidInput(f"Got {len(rows)} vectors for {len(checked)} ids; there must be one each.")
    plain = check_payloads(payloads, checked)
    last = {id: row for row, id in enumerate(checked)}
    if len(last) < len(checked):
        keep = list(last.values())
        return list(last), rows[keep], [plain[row] for row in keep]
    return checked, rows, plain


def check_words(words: PassageWords | None, ids: Sequence[str], kept: bool) -> None:
    """Raises InvalidInput where the words of passages don't fit them, or there is no place for any."""
    if words is None:
        return
    if not kept:
        raise InvalidInput(
            "This index was made without a place for the words of passages. Make it anew with words=True."
        )
    if len(words) != len(ids):
        raise InvalidInput(
            f"Got the words of {len(words)} passages for {len(ids)} different ids; there must be one each."
        )


def looked_up(points: Sequence[Any], payloads: Sequence[Mapping[str, Any]]) -> LookedUp:
    """From an engine's scored points, best first."""
    named = bool(payloads) and "id" in payloads[0]
    return LookedUp(
        [str(point.id) for point in points],
        np.array([point.score for point in points], np.float32),
        [payload["id"] for payload in payloads] if named else [],
        np.array([payload["at"] for payload in payloads] if named else [], np.int64),
    )


def missing_id(id: str) -> InvalidInput:
    return InvalidInput(f"The index holds no {id!r}.")


def by_id_where_equal(ids: Sequence[str], scores: NDArray[Any]) -> Ranking:
    """A ranking that an engine returned, with equal scores put in the order of their ids."""
    scores = np.asarray(scores, np.float32)
    if len(ids) < 2 or (np.diff(scores) < 0).all():
        return list(ids), scores
    order = sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i]))
    return [ids[i] for i in order], scores[order]


def check_fingerprint(stored: str | None, wanted: str | None, where: str) -> None:
    """Raises FingerprintMismatch if both are known and differ."""
    if stored is not None and wanted is not None and stored != wanted:
        raise FingerprintMismatch(
            f"The index {where} was built by encoder {stored[:12]}, this encoder is {wanted[:12]}; "
            f"their vectors cannot be compared. {REBUILD}"
        )


def check_dim(stored: int, wanted: int | None, where: str) -> None:
    """Raises DimensionMismatch if `wanted` is given and differs."""
    if wanted is not None and stored != wanted:
        raise DimensionMismatch(f"The index {where} holds {stored}-d vectors, the encoder makes {wanted}-d. {REBUILD}")


def read_description(folder: Path) -> dict[str, Any] | None:
    """index.json of a folder; None where there is none. Raises IndexCorrupt, FormatTooNew."""
    path = folder / INDEX_FILE
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(description, dict) or not isinstance(description["format"], int):
            raise ValueError("it is not the description of an index")
        if not str(description.get("generation", "0")).isdecimal():  # part of file names, which stay in the folder
            raise ValueError(f"generation {description['generation']!r:.60} is no number")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise IndexCorrupt(f"{path} cannot be read ({error}). {REBUILD}") from error
    if description["format"] > FORMAT:
        raise FormatTooNew(
            f"The index in {folder} has format {description['format']}, this ragadapt reads up to {FORMAT}. "
            "Upgrade with: pip install -U ragadapt"
        )
    checksum = description.pop("checksum", None)  # none in those of earlier versions
    if checksum is not None and checksum != json_digest(description, path.name):
        raise IndexCorrupt(f"{path} was altered: its checksum is another one. {REBUILD}")
    return description


def write_description(
    folder: Path, description: Mapping[str, Any], kept: Mapping[str, FileRecord] | None = None
) -> None:
    """Replace index.json in one move: it names the files that belong together, those of a generation by their hash.

    kept: files beside those of the generation, which are not read again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (INDEX_FILE + ".partial")
    values = {"format": FORMAT, **description}
    if "generation" in description:
        records = {file.name: record_file(file) for file in sorted(folder.glob(f"*-{description['generation']}.*"))}
        records |= kept or {}
        values["files"] = {name: one.to_json() for name, one in records.items()}
    values["checksum"] = json_digest(values, INDEX_FILE)
    partial.write_text(json.dumps(values, indent=2), encoding="utf-8")
    partial.replace(folder / INDEX_FILE)


def file_hashes(folder: Path, description: Mapping[str, Any]) -> Hashes | None:
    """The hashes of the index's files, being compared; None where an earlier version wrote none."""
    if "files" not in description:
        return None
    files = {name: FileRecord.from_json(one) for name, one in description["files"].items()}
    return Hashes(folder, files, remedy="")  # who reads them says what to do


def new_generation(folder: Path, description: Mapping[str, Any] | None) -> str:
    """A suffix for files written beside those that `description` names, so that a killed save harms nothing."""
    return str(int((description or {}).get("generation", 0)) + 1)


def remove_other_generations(
    folder: Path, generation: str, patterns: Sequence[str], kept: Container[str] = frozenset()
) -> None:
    """Delete the files of earlier saves, but those that are kept. One still mapped on Windows stays until the next
    save."""
    for pattern in patterns:
        for path in folder.glob(pattern.format("*")):
            if path.name != pattern.format(generation) and path.name not in kept:
                try:
                    path.unlink()
                except OSError as error:
                    log.debug("%s stays for now: %s", path, error)
