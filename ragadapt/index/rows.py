"""The rows of an index in memory, their ids and metadata as two parallel lists, and what a folder keeps of them."""

from __future__ import annotations

import json
import os
import threading
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ragadapt.errors import IndexCorrupt, IndexFault, StoreCorrupt, reason_of
from ragadapt.files import Hashes
from ragadapt.index.contract import INDEX_FILE, Engine, Place, check_ids, missing_id
from ragadapt.index.filters import Columns, Filter, Marked, parse
from ragadapt.threads import SharedLock


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
        self._same_ids: Sequence[str] | None = None  # a list of others that was found to hold these ids in this order
        self._shared: Callable[[], dict[str, int]] | None = None  # others' numbers, where ids and numbers are theirs
        self._making = threading.RLock()  # what is made at its first use, by readers who don't exclude each other

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> list[str]:
        """By row. Raises IndexCorrupt where a file of the index differs from its hash."""
        hashes = self._hashes
        if hashes is not None:
            over = hashes.over  # asked before: damage that is found meanwhile is not missed
            try:
                hashes.wait()
            except StoreCorrupt as error:
                raise IndexCorrupt(
                    f"{reason_of(error)}. Put back a copy of the folder, or fill the index again."
                ) from error
            if over:
                self._hashes = None
        return self._ids

    @property
    def numbers(self) -> dict[str, int]:
        """id → row."""
        found = self._numbers
        if found is None:
            with self._making:
                found = self._numbers
                if found is None:
                    made = self._shared() if self._shared is not None else {id: at for at, id in enumerate(self.ids)}
                    found = self._numbers = made
        return found

    @property
    def payloads(self) -> list[dict[str, Any]]:
        if isinstance(self._payloads, Path):
            with self._making:
                if isinstance(self._payloads, Path):
                    self._payloads = self._read(self._payloads)
                    self._close()
        return self._payloads

    def _read(self, path: Path) -> list[dict[str, Any]]:
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
        return payloads

    def share(self, ids: list[str], numbers: Callable[[], dict[str, int]]) -> None:
        """Take a list of the same ids, and their numbers, from another part of a retriever, so that they are there
        once; nothing where they differ. Neither is changed from here."""
        if self.ids == ids:
            self._ids, self._same_ids, self._shared, self._numbers = ids, ids, numbers, None

    def _own(self) -> None:
        """Before a change: ids and numbers that nobody else holds."""
        if self._shared is not None:
            self._ids, self._numbers, self._shared, self._same_ids = list(self._ids), None, None, None

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
        """(N,) the rows that pass; not to be changed. Raises InvalidFilter."""
        node = parse(filter)
        if isinstance(node, Marked):
            return self._marked(node)
        columns = self._columns
        if columns is None:
            with self._making:
                columns = self._columns
                if columns is None:
                    columns = self._columns = Columns(self.payloads, self._there)
        return columns.mask(node)

    def _there(self, ids: Iterable[str]) -> list[int]:
        """The rows of those of the ids that are here."""
        numbers = self.numbers
        return [numbers[id] for id in ids if id in numbers]

    def _marked(self, node: Marked) -> NDArray[np.bool_]:
        if node.ids is not self._same_ids:
            if node.ids != self.ids:
                mask = np.zeros(len(self), np.bool_)
                mask[self._there(compress(node.ids, node.mask.tolist()))] = True
                return mask
            self._same_ids = node.ids
        return node.mask

    def add(self, ids: Sequence[str], payloads: Sequence[dict[str, Any]]) -> None:
        """Append rows for new ids."""
        self._own()
        numbers, own = self.numbers, self.payloads
        for id, payload in zip(ids, payloads):
            numbers[id] = len(self.ids)
            self.ids.append(id)
            own.append(payload)
        self._columns = self._same_ids = None

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
        self._numbers = self._columns = self._same_ids = self._shared = None

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
    in_memory = True
    _lock: SharedLock
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

    def share_ids(self, ids: list[str], numbers: Callable[[], dict[str, int]]) -> None:
        """See `Rows.share`."""
        with self._lock:
            self._rows.share(ids, numbers)

    def ids(self, filter: Filter | None = None) -> list[str]:
        with self._lock.shared():
            if filter is None:
                return list(self._rows.ids)
            return [self._rows.ids[row] for row in np.flatnonzero(self._rows.mask(filter))]

    def has(self, ids: Sequence[str]) -> list[bool]:
        return [id in self._rows.numbers for id in check_ids(ids)]

    def payloads(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        with self._lock.shared():
            return [dict(self._rows.payloads[row]) for row in self._rows.find(check_ids(ids))]

    @abstractmethod
    def _take(self, folder: Path) -> None:
        """Read the folder anew, in place of what is in memory."""

    def saved_elsewhere(self) -> bool:
        """Whether the folder holds another state than was read or written here last."""
        stamp = None if self._folder is None else _stamp(self._folder)
        return stamp not in (None, self._stamp)

    def follow(self, *, changing: bool = False) -> bool:
        """Read anew what another process saved in the folder since; whether that was so.

        Where there are unsaved changes they stay, and nothing is read; changing: then raise IndexFault.
        """
        if not self.saved_elsewhere():  # as nearly always, and then nobody has to wait
            return False
        with self._lock:
            if not self.saved_elsewhere():
                return False
            assert self._folder is not None
            stamp = _stamp(self._folder)
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
