"""The rows of an index in memory, their ids and metadata as two parallel lists, and what a folder keeps of them."""

from __future__ import annotations

import json
import os
import threading
import weakref
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ragadapt.errors import IndexCorrupt, IndexFault, StoreCorrupt, reason_of
from ragadapt.files import Hashes
from ragadapt.index.contract import INDEX_FILE, Engine, Place, check_ids, missing_id
from ragadapt.index.filters import Columns, Filter, parse


class Rows:
    """Row ↔ id, and each row's metadata. Rows are dense: removing closes the gap and keeps the order."""

    def __init__(
        self,
        ids: list[str] | None = None,
        payloads: list[dict[str, Any]] | Path | None = None,
        hashes: Hashes | None = None,
    ) -> None:
        """payloads: a list, a JSONL file that is read at first use, or None for empty ones. hashes: of the index's
        files, which must be whole before the first id is given out: without ids there is no result.

        The file is opened now: a save of another process, which removes it, does not take it away.
        """
        self._ids = ids if ids is not None else []
        self._hashes = hashes
        self._handle = -1
        if isinstance(payloads, Path):
            self._handle = os.open(payloads, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            self._close = weakref.finalize(self, os.close, self._handle)
        self._payloads = payloads if payloads is not None else [{} for _ in self._ids]
        self._numbers: dict[str, int] | None = None
        self._columns: Columns | None = None

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> list[str]:
        """By row. Raises IndexCorrupt where a file of the index differs from its hash."""
        if self._hashes is not None:
            try:
                self._hashes.wait()
            except StoreCorrupt as error:
                raise IndexCorrupt(
                    f"{reason_of(error)}. Put back a copy of the folder, or fill the index again."
                ) from error
            self._hashes = None
        return self._ids

    @property
    def numbers(self) -> dict[str, int]:
        """id → row."""
        if self._numbers is None:
            self._numbers = {id: row for row, id in enumerate(self.ids)}
        return self._numbers

    @property
    def payloads(self) -> list[dict[str, Any]]:
        if isinstance(self._payloads, Path):
            path = self._payloads
            try:
                with os.fdopen(os.dup(self._handle), encoding="utf-8") as file:
                    file.seek(0)
                    payloads = [json.loads(line) for line in file]
                if len(payloads) != len(self.ids):
                    raise ValueError(f"{len(payloads)} lines for {len(self.ids)} vectors")
                if not all(isinstance(payload, dict) for payload in payloads):
                    raise ValueError("a line is no object")
            except (OSError, ValueError, RecursionError) as error:
                raise IndexCorrupt(f"{path} cannot be read ({error}).") from error
            self._payloads = payloads
            self._close()
        return self._payloads

    def split(self, ids: Sequence[str]) -> tuple[list[int], list[int]]:
        """Places in the list of the ids that are here, and of those that are not."""
        known, _ = self.numbers, self.payloads  # both are read before anything is changed
        here = [at for at, id in enumerate(ids) if id in known]
        return here, [at for at, id in enumerate(ids) if id not in known]

    def find(self, ids: Sequence[str]) -> list[int]:
        """The row of each id. Raises InvalidInput for one that is missing."""
        numbers = self.numbers
        try:
            return list(map(numbers.__getitem__, ids))
        except KeyError as error:
            raise missing_id(error.args[0]) from None

    def mask(self, filter: Filter) -> NDArray[np.bool_]:
        """(N,) the rows that pass. Raises InvalidFilter."""
        node = parse(filter)
        if self._columns is None:
            self._columns = Columns(self.payloads, lambda ids: [self.numbers[id] for id in ids if id in self.numbers])
        return self._columns.mask(node)

    def add(self, ids: Sequence[str], payloads: Sequence[dict[str, Any]]) -> None:
        """Append rows for new ids."""
        numbers, own = self.numbers, self.payloads
        for id, payload in zip(ids, payloads):
            numbers[id] = len(self.ids)
            self.ids.append(id)
            own.append(payload)
        self._columns = None

    def replace(self, row: int, payload: dict[str, Any]) -> None:
        """Another metadata object for a row."""
        if self.payloads[row] != payload:
            self.payloads[row] = payload
            self._columns = None

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Drop the rows where mask (N,) is False."""
        kept = np.flatnonzero(mask).tolist()
        self._payloads = [self.payloads[row] for row in kept]
        self._ids = [self.ids[row] for row in kept]
        self._numbers = self._columns = None

    def save(self, ids_path: Path, payloads_path: Path) -> None:
        ids_path.write_text(json.dumps(self.ids, ensure_ascii=False), encoding="utf-8")
        with payloads_path.open("w", encoding="utf-8", newline="\n") as file:
            for payload in self.payloads:
                file.write(json.dumps(payload, ensure_ascii=False) + "\n")


class Kept(Engine):
    """An index in memory that a folder keeps: it notices that another process saved there."""

    dim: int
    fingerprint: str | None
    _rows: Rows
    _folder: Path | None
    _lock: threading.RLock
    _changed = False
    """Whether there are changes that no save has kept."""
    _stamp: tuple[int, int] | None = None

    @classmethod
    def at(cls, place: Place, **settings: Any) -> Self:
        kind: Any = cls  # each has settings of its own
        if place.description is not None and place.folder is not None:
            index: Self = kind.open(place.folder, check=place.check, **settings)
        else:
            index = kind(place.width(), place.fingerprint, place.folder, **settings)
        return index

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self, filter: Filter | None = None) -> list[str]:
        with self._lock:
            if filter is None:
                return list(self._rows.ids)
            return [self._rows.ids[row] for row in np.flatnonzero(self._rows.mask(filter))]

    def has(self, ids: Sequence[str]) -> list[bool]:
        return [id in self._rows.numbers for id in check_ids(ids)]

    def payloads(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        with self._lock:
            return [dict(self._rows.payloads[row]) for row in self._rows.find(check_ids(ids))]

    @abstractmethod
    def _take(self, folder: Path) -> None:
        """Read the folder anew, in place of what is in memory."""

    def follow(self, *, changing: bool = False) -> bool:
        """Read anew what another process saved in the folder since; whether that was so.

        Where there are unsaved changes they stay, and nothing is read; changing: then raise IndexFault.
        """
        with self._lock:
            if self._folder is None:
                return False
            stamp = _stamp(self._folder)
            if stamp is None or stamp == self._stamp:
                return False
            if self._changed:
                if changing:
                    raise IndexFault(
                        f"Another process saved the index in {self._folder} since it was read here, and there are "
                        "unsaved changes here. Nothing was changed. Save these to another folder, or open the index "
                        "again and repeat them."
                    )
                return False
            self._take(self._folder)
            self._stamp = stamp
            return True

    def _noted(self, folder: Path) -> None:
        """The folder holds what is in memory."""
        if folder == self._folder:
            self._changed, self._stamp = False, _stamp(folder)


def _stamp(folder: Path) -> tuple[int, int] | None:
    """Of index.json: another one after each save."""
    try:
        found = (folder / INDEX_FILE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
