"""A library of adapters: each with what its corpus looks like, so that a new corpus finds those that may help it.

    library/
      library.json      its format; what tells the folder from any other
      NAME/             an adapter as `AdapterState.write` writes it
        entry.json      what it was learnt on, and the hash of every file beside it
        statistics.npz  mean and covariance sketch of its corpus
      .lock             held by the one writer

An entry comes and goes by one rename, so that a reader or a kill meets it whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from ragadapt.adapters.state import AdapterState
from ragadapt.checks import checked_path
from ragadapt.errors import FormatTooNew, InvalidInput, StoreCorrupt, StoreError, StoreLocked, reason_of
from ragadapt.files import json_digest, list_files, read_json, record_file, remove, rename, sync_tree, write_text
from ragadapt.queries.seen import read_seen, write_seen
from ragadapt.search.fusion import Background
from ragadapt.values import JsonValue

Floats = npt.NDArray[np.float64]

FORMAT = 1
MARK = "library.json"
ENTRY = "entry.json"
STATISTICS = "statistics.npz"
RESERVED = ("nearest", "blend")  # what `fit --start` takes beside names

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIRECTIONS = 16  # of the covariance that are kept; more change no distance's second digit
_SAMPLE = 1000  # passages that are looked at: the mean's error is then about .03, distances are .2 and more
_LOCK_SECONDS = 10.0


@dataclass(frozen=True, eq=False)
class CorpusStatistics:
    """What a corpus looks like to a base model: the distribution of its passages' unit vectors, as a sketch.

    mean (d,). directions (r, d), variances (r,): the covariance's r largest. rest: the variance along every other
    direction. passages: of the corpus. languages: share of the text by language. fingerprint: of the base encoder.
    """

    mean: Floats
    directions: Floats
    variances: Floats
    rest: float
    passages: int
    fingerprint: str
    languages: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        vectors: npt.NDArray[np.float32],
        fingerprint: str,
        *,
        passages: int | None = None,
        languages: Mapping[str, float] | None = None,
    ) -> Self:
        """Of (n, d) vectors, or of an even sample of them. passages: of the corpus, where these are a sample of it."""
        if not len(vectors):
            raise InvalidInput("A corpus without passages has no statistics.")
        found = Background.of(np.asarray(vectors[sampled(len(vectors))]))
        size = min(_DIRECTIONS, len(found.mean) // 2)
        values, columns = np.linalg.eigh(found.covariance)  # ascending
        rest = max(float(values[:-size].mean()), 0.0)
        count = len(vectors) if passages is None else passages
        return cls(
            found.mean, columns[:, -size:].T.copy(), np.maximum(values[-size:], 0.0), rest, count, fingerprint,
            dict(languages or {}),
        )  # fmt: skip

    @property
    def language(self) -> str:
        """The commonest; "" where it is not known."""
        return next(iter(self.languages), "")

    def distance(self, other: CorpusStatistics) -> float:
        """Fréchet distance of two normal distributions (Dowson and Landau, 1982) with these moments.

        Outside of both sketches' directions each covariance is a multiple of one, so that only the span of these is
        computed. Raises InvalidInput for statistics by another base model.
        """
        if self.fingerprint != other.fingerprint:
            raise InvalidInput("These statistics are of different base models, whose vectors cannot be compared.")
        basis, _ = np.linalg.qr(np.concatenate([self.directions, other.directions]).T)  # (d, k)
        outside = len(self.mean) - basis.shape[1]
        ours, theirs = self._covariance(basis), other._covariance(basis)
        values, columns = np.linalg.eigh(ours)
        root = (columns * np.sqrt(np.maximum(values, 0.0))) @ columns.T
        shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ theirs @ root), 0.0)).sum()
        squared = float(((self.mean - other.mean) ** 2).sum() + np.trace(ours) + np.trace(theirs) - 2 * shared)
        squared += outside * (np.sqrt(self.rest) - np.sqrt(other.rest)) ** 2
        return float(np.sqrt(max(squared, 0.0)))

    def _covariance(self, basis: Floats) -> Floats:
        """(k, k) in an orthonormal basis (d, k) that holds the directions."""
        within = self.directions @ basis  # (r, k)
        made: Floats = (within.T * (self.variances - self.rest)) @ within + self.rest * np.eye(basis.shape[1])
        return made


def sampled(count: int) -> npt.NDArray[np.int64]:
    """Which of so many passages are looked at, spread evenly; ascending."""
    return np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).round().astype(np.int64))


@dataclass(frozen=True, eq=False)
class LibraryEntry:
    """An adapter of the library. encoder: settings that load its base as it was. figures: what was measured of it.

    base, model: identity and name of its base. source: the retriever that it was taken from. seen: marks of the
    questions that it learnt from.
    """

    name: str
    folder: Path
    method: str
    adapt: str
    base: str
    model: str
    statistics: CorpusStatistics
    encoder: Mapping[str, JsonValue] = field(default_factory=dict)
    figures: Mapping[str, JsonValue] = field(default_factory=dict)
    source: str = ""
    added: str = ""
    seen: frozenset[str] = frozenset()

    def adapter(self) -> AdapterState:
        """What was learnt. Raises StoreCorrupt."""
        return AdapterState.read(self.folder)

    def facts(self) -> dict[str, JsonValue]:
        """JSON values for people; the statistics by their size and language."""
        seen = self.statistics
        return {
            "name": self.name, "method": self.method, "adapt": self.adapt, "base": self.base, "model": self.model,
            "fingerprint": seen.fingerprint, "passages": seen.passages, "language": seen.language,
            "languages": dict(seen.languages), "source": self.source, "added": self.added,
            "encoder": dict(self.encoder), "figures": dict(self.figures),
        }  # fmt: skip


class Library:
    """A folder of adapters. Many may read it; writers take turns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, folder: str | Path, *, create: bool = False) -> Self:
        """Raises InvalidInput where there is none, StoreError for a folder of something else, FormatTooNew."""
        folder = checked_path(folder, "The library's folder").resolve()
        mark = folder / MARK
        if not mark.is_file():
            if not create:
                raise InvalidInput(
                    f"{folder} is no library of adapters (no {MARK}). Make one: ragadapt library add FOLDER RETRIEVER"
                )
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise StoreError(f"{folder} holds something else. Name a new or an empty folder for the library.")
            folder.mkdir(parents=True, exist_ok=True)
            write_text(mark, json.dumps({"format": FORMAT}) + "\n")
        found = read_json(mark)
        if found is None or not isinstance(found.get("format"), int):
            raise StoreCorrupt(
                f'{mark} cannot be read. Write {{"format": {FORMAT}}} into it; the entries have their own.'
            )
        if found["format"] > FORMAT:
            raise FormatTooNew(
                f"{folder} has format {found['format']}, this ragadapt reads up to {FORMAT}. "
                "Upgrade with: pip install -U ragadapt"
            )
        return cls(folder)

    # Reading

    def names(self) -> list[str]:
        """Sorted."""
        return sorted(path.parent.name for path in self.folder.glob(f"*/{ENTRY}") if _NAME.fullmatch(path.parent.name))

    def entries(self) -> list[LibraryEntry]:
        """All of them, by name. Raises StoreCorrupt."""
        return [self.entry(name) for name in self.names()]

    def entry(self, name: str) -> LibraryEntry:
        """Raises InvalidInput where there is none of that name, StoreCorrupt where a file differs from its hash."""
        folder = self.folder / checked_name(name)
        if not (folder / ENTRY).is_file():
            there = ", ".join(self.names()) or "none yet"
            raise InvalidInput(f"{self.folder} has no adapter {name!r}. It has: {there}.")
        remedy = f"Take it out (ragadapt library remove {self.folder} {name}) and add it again."
        about = read_json(folder / ENTRY)
        try:
            if about is None or about.pop("checksum") != json_digest(about, ENTRY):
                raise StoreCorrupt(f"{folder / ENTRY} was altered. {remedy}")
            if about["format"] > FORMAT:
                raise FormatTooNew(f"{folder} is of a newer ragadapt. Upgrade with: pip install -U ragadapt")
            for file, sha256 in about["files"].items():
                if record_file(folder / file).sha256 != sha256:
                    raise StoreCorrupt(f"{folder / file} differs from its hash. {remedy}")
            with np.load(folder / STATISTICS) as held:
                statistics = CorpusStatistics(
                    held["mean"], held["directions"], held["variances"], float(held["rest"]), int(about["passages"]),
                    str(about["fingerprint"]), about["languages"],
                )  # fmt: skip
            names = ("method", "adapt", "base", "model", "encoder", "figures", "source", "added")
            seen = read_seen(folder) or frozenset()
            return LibraryEntry(name, folder, statistics=statistics, seen=seen, **{key: about[key] for key in names})
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise StoreCorrupt(f"{folder} cannot be read ({reason_of(error)}). {remedy}") from error

    def nearest(
        self, statistics: CorpusStatistics, accept: Callable[[LibraryEntry], bool] = lambda _: True
    ) -> list[tuple[LibraryEntry, float]]:
        """Entries of the same base and their distance to the corpus, the nearest first."""
        alike = [one for one in self.entries() if one.statistics.fingerprint == statistics.fingerprint]
        found = [(one, statistics.distance(one.statistics)) for one in alike if accept(one)]
        return sorted(found, key=lambda pair: (pair[1], pair[0].name))

    # Writing

    def refuse_taken(self, name: str) -> None:
        """Raises InvalidInput where there is an adapter of that name."""
        if (self.folder / checked_name(name)).exists():
            raise InvalidInput(f"{self.folder} has an adapter {name!r} already. Choose another name, or --replace it.")

    def add(
        self,
        name: str,
        state: AdapterState,
        statistics: CorpusStatistics,
        *,
        encoder: Mapping[str, JsonValue] | None = None,
        figures: Mapping[str, JsonValue] | None = None,
        source: str = "",
        seen: Collection[str] = (),
        replace: bool = False,
    ) -> LibraryEntry:
        """Copy an adapter in. seen: marks of the questions that it learnt from. Raises InvalidInput for a name that is
        taken, unless that is to be replaced, and StoreLocked."""
        folder = self.folder / checked_name(name)
        with self._writing():
            if not replace:
                self.refuse_taken(name)
            new = self.folder / f".new-{uuid.uuid4().hex}"
            try:
                state.write(new)
                write_seen(new, seen)
                np.savez(
                    new / STATISTICS, mean=statistics.mean, directions=statistics.directions,
                    variances=statistics.variances, rest=statistics.rest,
                )  # fmt: skip
                about: dict[str, JsonValue] = {
                    "format": FORMAT,
                    "method": state.config.method,
                    "adapt": state.config.adapt,
                    "base": state.base,
                    "model": state.model,
                    "encoder": dict(encoder or {}),
                    "figures": dict(figures or {}),
                    "source": source,
                    "added": datetime.now(UTC).isoformat(timespec="seconds"),
                    "passages": statistics.passages,
                    "fingerprint": statistics.fingerprint,
                    "languages": dict(statistics.languages),
                    "files": {path: record_file(file).sha256 for path, file in list_files(new)},
                }
                about["checksum"] = json_digest(about, ENTRY)
                write_text(new / ENTRY, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
                sync_tree(new)
                if folder.exists():
                    self._put_away(folder)
                rename(new, folder)
            finally:
                remove(new)
        return self.entry(name)

    def remove(self, name: str) -> None:
        """Raises InvalidInput where there is none of that name, StoreLocked."""
        folder = self.folder / checked_name(name)
        with self._writing():
            if not (folder / ENTRY).is_file():
                self.entry(name)
            self._put_away(folder)

    def _put_away(self, folder: Path) -> None:
        gone = self.folder / f".gone-{uuid.uuid4().hex}"
        rename(folder, gone)
        remove(gone)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        lock = FileLock(self.folder / ".lock", thread_local=False)
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout as error:
            raise StoreLocked(
                f"Another process has been writing to {self.folder} for {_LOCK_SECONDS:g} seconds. Wait for it."
            ) from error
        try:
            for left in (*self.folder.glob(".new-*"), *self.folder.glob(".gone-*")):  # of a kill
                remove(left)
            yield
        finally:
            lock.release()


def checked_name(name: str) -> str:
    """Raises InvalidInput for what can be no entry's name."""
    if not _NAME.fullmatch(name) or name in RESERVED or (os.name == "nt" and name.endswith(".")):
        raise InvalidInput(
            f"{name!r:.80} can be no name in a library: letters, digits, '.', '_' and '-', at most 64, and neither "
            f"{' nor '.join(RESERVED)}."
        )
    return name


def shares(entries: Sequence[LibraryEntry], weights: Sequence[float]) -> str:
    """For people: who takes part, and how much of it."""
    return ", ".join(f"{weight:.2f} {one.name}" for one, weight in zip(entries, weights, strict=True))


__all__ = ["CorpusStatistics", "Library", "LibraryEntry", "checked_name", "sampled", "shares"]
