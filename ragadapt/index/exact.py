"""Exact search with numpy: the reference for every other index, and enough for a few hundred thousand vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from ragadapt.errors import IndexCorrupt, InvalidInput, reason_of
from ragadapt.index.contract import (
    REBUILD,
    Floats,
    Payload,
    check_dim,
    check_fingerprint,
    check_ids,
    check_k,
    check_vectors,
    file_hashes,
    new_generation,
    prepare_upsert,
    read_description,
    remove_other_generations,
    write_description,
)
from ragadapt.index.filters import Filter
from ragadapt.index.matrix import search_matrix
from ragadapt.index.rows import Kept, Rows
from ragadapt.lexical.ranking import Ranking
from ragadapt.threads import SharedLock

_FILES = ("vectors-{}.npy", "ids-{}.json", "payloads-{}.jsonl")


class ExactIndex(Kept):
    """Vectors in one float32 matrix, memory-mapped where it was opened from a folder."""

    kind = "exact"

    def __init__(self, dim: int, fingerprint: str | None = None, folder: Path | None = None) -> None:
        self.dim = dim
        self.fingerprint = fingerprint
        self._folder = folder
        self._rows = Rows()
        self._matrix: Floats = np.empty((0, dim), np.float32)  # rows beyond len(self) are room to grow
        self._lock = SharedLock()
        self._mmap = True

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        vectors: Floats,
        payloads: Sequence[Payload] | None = None,
        fingerprint: str | None = None,
    ) -> Self:
        """An index over vectors (n, dim) at hand, such as a memory-mapped file; they are not copied.

        The vectors must be finite float32, the ids unique; both are checked.
        """
        if not isinstance(vectors, np.ndarray) or vectors.ndim != 2:
            raise InvalidInput("vectors must be a matrix (number, dim), one row for each id.")
        index = cls(vectors.shape[1], fingerprint)
        checked, _, plain = prepare_upsert(ids, np.zeros((len(ids), 0), np.float32), payloads, 0)
        if len(checked) != len(ids) or len(checked) != len(vectors):
            raise InvalidInput(f"{len(vectors)} vectors for {len(ids)} ids, of which {len(checked)} are different.")
        for start in range(0, len(vectors), 65_536):
            check_vectors(vectors[start : start + 65_536], index.dim, "vectors")
        index._rows = Rows(checked, plain)
        # A view that cannot be written: the first change makes a copy, the caller's array stays as it is.
        index._matrix = np.asarray(vectors, np.float32).view()
        index._matrix.flags.writeable = False
        return index

    @classmethod
    def open(cls, folder: Path, mmap: bool = True, *, check: bool = True) -> Self:
        """Open what `save` wrote. check: compare the files with their hashes. Raises IndexCorrupt."""
        description = read_description(folder)
        try:
            if description is None:
                raise FileNotFoundError("index.json is missing")
            index = cls(int(description["dim"]), description["fingerprint"], folder)
            index._mmap = mmap
            index._noted(folder)
            vectors, ids, payloads = (folder / name.format(description["generation"]) for name in _FILES)
            # Copy-on-write: a row may be changed in place without reading the rest.
            index._matrix = np.load(vectors, mmap_mode="c" if mmap else None, allow_pickle=False)
            hashes = file_hashes(folder, description) if check else None
            index._rows = Rows(json.loads(ids.read_text(encoding="utf-8")), payloads, hashes)
            if index._matrix.dtype != np.float32 or index._matrix.shape != (len(index._rows), index.dim):
                raise ValueError(f"{len(index._rows)} ids for vectors of shape {index._matrix.shape}")
            if not payloads.is_file():
                raise FileNotFoundError(f"{payloads.name} is missing")
        except Exception as error:  # numpy and JSON have many of their own for damage
            raise IndexCorrupt(f"The exact index in {folder} cannot be read ({reason_of(error)}). {REBUILD}") from error
        return index

    def upsert(self, ids: Sequence[str], vectors: ArrayLike, payloads: Sequence[Payload] | None = None) -> None:
        new_ids, rows, plain = prepare_upsert(ids, vectors, payloads, self.dim)
        with self._lock:
            known, added = self._rows.split(new_ids)
            numbers, self._changed = self._rows.numbers, True
            if known:
                self._writable()[[numbers[new_ids[i]] for i in known]] = rows[known]
                for i in known:
                    self._rows.replace(numbers[new_ids[i]], plain[i])
            if added:
                start, end = len(self._rows), len(self._rows) + len(added)
                if end > len(self._matrix):
                    grown = np.empty((max(end, 3 * start // 2), self.dim), np.float32)
                    grown[:start] = self._matrix[:start]
                    self._matrix = grown
                self._writable()[start:end] = rows[added]
                self._rows.add([new_ids[i] for i in added], [plain[i] for i in added])

    def update_vectors(self, ids: Sequence[str], vectors: ArrayLike) -> None:
        new_ids, rows, _ = prepare_upsert(ids, vectors, None, self.dim)
        with self._lock:
            numbers = self._rows.find(new_ids)
            self._changed = True
            self._writable()[numbers] = rows

    def delete(self, ids: Sequence[str]) -> None:
        gone = set(check_ids(ids))
        with self._lock:
            rows = [self._rows.numbers[id] for id in gone if id in self._rows.numbers]
            if rows:
                keep = np.ones(len(self._rows), np.bool_)
                keep[rows] = False
                kept = self._matrix[: len(self._rows)][keep]
                self._rows.keep(keep)
                self._matrix, self._changed = kept, True

    def search(self, vectors: ArrayLike, k: int, filter: Filter | None = None) -> list[Ranking]:
        queries, k = check_vectors(vectors, self.dim, "query vectors"), check_k(k)
        with self._lock.shared():
            allowed = None if filter is None else self._rows.mask(filter)
            return search_matrix(queries, self._matrix[: len(self._rows)], self._rows.ids, k, allowed)

    def vectors(self, ids: Sequence[str]) -> Floats:
        with self._lock.shared():
            rows = self._rows.find(check_ids(ids))
            found: Floats = np.array(self._matrix[rows], np.float32).reshape(len(rows), self.dim)
            return found

    def batches(self, size: int = 4096) -> Iterator[tuple[list[str], Floats]]:
        for start in range(0, len(self), size):
            end = min(start + size, len(self))
            yield self._rows.ids[start:end], np.array(self._matrix[start:end])

    def save(self, folder: str | Path | None = None) -> None:
        target = _target(folder, self._folder)
        with self._lock.reserved():  # searches go on
            if target == self._folder:
                self.follow(changing=True)
            target.mkdir(parents=True, exist_ok=True)
            generation = new_generation(target, read_description(target))
            vectors, ids, payloads = (target / name.format(generation) for name in _FILES)
            np.save(vectors, self._matrix[: len(self._rows)], allow_pickle=False)
            self._rows.save(ids, payloads)
            description = {"kind": self.kind, "dim": self.dim, "fingerprint": self.fingerprint}
            write_description(target, {**description, "generation": generation})
            self._noted(target)
            remove_other_generations(target, generation, _FILES)

    def close(self) -> None:
        self._matrix, self._rows = np.empty((0, self.dim), np.float32), Rows()

    def _take(self, folder: Path) -> None:
        fresh = type(self).open(folder, self._mmap)
        check_dim(fresh.dim, self.dim, f"in {folder}")
        check_fingerprint(fresh.fingerprint, self.fingerprint, f"in {folder}")
        self._matrix, self._rows = fresh._matrix, fresh._rows

    def _writable(self) -> Floats:
        if not self._matrix.flags.writeable:
            self._matrix = np.array(self._matrix)
        return self._matrix


def _target(folder: str | Path | None, opened: Path | None) -> Path:
    if folder is None and opened is None:
        raise InvalidInput("This index lives in memory; say which folder to save it in.")
    return Path(folder) if folder is not None else opened  # type: ignore[return-value]
