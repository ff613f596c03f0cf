"""SQLiteRecordManager: what `langchain_core.indexing.index` has indexed, remembered in one file."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from langchain_core.indexing import RecordManager
from langchain_core.runnables.config import run_in_executor
from langchain_core.vectorstores import VectorStore

from ragadapt.checks import checked_ids, checked_path, checked_text
from ragadapt.errors import InvalidInput, StoreCorrupt

_PAGE = 500  # keys per statement; below the 999 variables that old SQLite builds allow
_NOT_DELETED = "DELETE FROM deleted WHERE namespace = ? AND key = ?"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    namespace TEXT NOT NULL, key TEXT NOT NULL, group_id TEXT, updated_at REAL NOT NULL,
    PRIMARY KEY (namespace, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_by_time ON records (namespace, updated_at);
CREATE TABLE IF NOT EXISTS deleted (namespace TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (namespace, key))
WITHOUT ROWID;
"""


class SQLiteRecordManager(RecordManager):
    """A record manager in a SQLite file; several namespaces, threads and processes may share one.

    Give `index` the argument key_encoder="sha256", and force_update=True after the embeddings have changed.
    """

    def __init__(
        self,
        namespace: str,
        path: str | Path,
        *,
        store: VectorStore | None = None,
        timeout_seconds: float = 30.0,
    ) -> None:
        """path: the file, made where it is missing, with a store its folder too; ":memory:" keeps nothing.

        store: the one that is indexed into. Then a key counts as recorded only while the store holds it, and one that
        was deleted from a store that was not saved is deleted again: records never say more than the store keeps.
        Raises InvalidInput, StoreCorrupt.
        """
        super().__init__(checked_text("namespace", namespace))
        self.path = str(checked_path(path, "The record manager's file"))
        self._store = store
        parent = Path(self.path).absolute().parent
        if self.path != ":memory:" and not parent.is_dir():
            if store is None or not parent.parent.is_dir():
                raise InvalidInput(f"There is no folder {parent} for {self.path}. Make it first.")
            parent.mkdir()
        self._lock = threading.RLock()
        self._last = 0.0
        self._connection = sqlite3.connect(
            self.path, timeout=timeout_seconds, check_same_thread=False, isolation_level=None
        )
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self.create_schema()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise StoreCorrupt(f"{self.path} holds no records ({error}). Move it away and index again.") from error
        self._delete_again()

    def create_schema(self) -> None:
        """Make the table; nothing happens if it is there."""
        with self._lock:
            self._connection.executescript(_SCHEMA)

    def get_time(self) -> float:
        """Seconds since 1970; later than anything that was recorded, even if the clock was set back."""
        with self._lock:
            row = self._connection.execute(
                "SELECT max(updated_at) FROM records WHERE namespace = ?", (self.namespace,)
            ).fetchone()
            self._last = max(time.time(), (row[0] or 0.0) + 1e-6, self._last)
            return self._last

    def update(
        self, keys: Sequence[str], *, group_ids: Sequence[str | None] | None = None, time_at_least: float | None = None
    ) -> None:
        """Record keys as of now. Raises InvalidInput."""
        if group_ids is not None and len(group_ids) != len(keys):
            raise InvalidInput(f"Got {len(group_ids)} group ids for {len(keys)} keys; there must be one each.")
        with self._lock:
            now = self.get_time()
            if time_at_least is not None and time_at_least > now:
                raise InvalidInput(f"time_at_least is {time_at_least}, which lies in the future; now is {now}.")
            groups = group_ids or [None] * len(keys)
            rows = [(self.namespace, key, group, now) for key, group in zip(checked_ids(keys, "keys"), groups)]
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(
                    "INSERT INTO records VALUES (?, ?, ?, ?) ON CONFLICT (namespace, key) "
                    "DO UPDATE SET group_id = excluded.group_id, updated_at = excluded.updated_at",
                    rows,
                )
                self._connection.executemany(_NOT_DELETED, [row[:2] for row in rows])
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise

    def exists(self, keys: Sequence[str]) -> list[bool]:
        """For each key whether it is recorded, and still in the store, if one was given."""
        keys, found = checked_ids(keys, "keys"), set[str]()
        for start in range(0, len(keys), _PAGE):
            page = list(keys[start : start + _PAGE])
            found.update(
                key for (key,) in self._rows(f"SELECT key FROM records WHERE namespace = ? AND {_in(page)}", page)
            )
        if self._store is not None and found:
            found &= {str(document.id) for document in self._store.get_by_ids(sorted(found))}
        return [key in found for key in keys]

    def list_keys(
        self,
        *,
        before: float | None = None,
        after: float | None = None,
        group_ids: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[str]:
        """Keys recorded before and after these times, of these groups; in the order of time, up to `limit`."""
        test, values = "namespace = ?", list[Any]()
        if before is not None:
            test += " AND updated_at < ?"
            values.append(before)
        if after is not None:
            test += " AND updated_at > ?"
            values.append(after)
        if group_ids is None:
            order = "ORDER BY updated_at, key LIMIT ?"
            rows = self._rows(
                f"SELECT key, updated_at FROM records WHERE {test} {order}", [*values, -1 if limit is None else limit]
            )
        else:
            rows = []
            for start in range(0, len(group_ids), _PAGE):
                page = list(group_ids[start : start + _PAGE])
                marks = ",".join("?" * len(page))
                found = self._rows(
                    f"SELECT key, updated_at FROM records WHERE {test} AND group_id IN ({marks})", [*values, *page]
                )
                rows.extend(found)
        keys = [key for key, _ in sorted(rows, key=lambda row: (row[1], row[0]))]
        return keys[:limit]

    def delete_keys(self, keys: Sequence[str]) -> None:
        """Forget keys; missing ones are no error."""
        keys = checked_ids(keys, "keys")
        for start in range(0, len(keys), _PAGE):
            page = list(keys[start : start + _PAGE])
            if self._store is not None:
                marks = ",".join(["(?1, ?)"] * len(page))
                self._rows(f"INSERT OR IGNORE INTO deleted VALUES {marks}", page)
            self._rows(f"DELETE FROM records WHERE namespace = ? AND {_in(page)}", page)

    def _delete_again(self) -> None:
        """Delete from the store what was deleted before and came back, since the store was not saved after it."""
        if self._store is None:
            return
        keys = [key for (key,) in self._rows("SELECT key FROM deleted WHERE namespace = ?", [])]
        there = {str(document.id) for document in self._store.get_by_ids(keys)} if keys else set[str]()
        if there:
            self._store.delete(sorted(there))
        with self._lock:
            self._connection.executemany(_NOT_DELETED, [(self.namespace, key) for key in keys if key not in there])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    async def acreate_schema(self) -> None:
        await run_in_executor(None, self.create_schema)

    async def aget_time(self) -> float:
        return await run_in_executor(None, self.get_time)

    async def aupdate(
        self, keys: Sequence[str], *, group_ids: Sequence[str | None] | None = None, time_at_least: float | None = None
    ) -> None:
        await run_in_executor(None, self.update, keys, group_ids=group_ids, time_at_least=time_at_least)

    async def aexists(self, keys: Sequence[str]) -> list[bool]:
        return await run_in_executor(None, self.exists, keys)

    async def alist_keys(
        self,
        *,
        before: float | None = None,
        after: float | None = None,
        group_ids: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[str]:
        return await run_in_executor(None, self.list_keys, before=before, after=after, group_ids=group_ids, limit=limit)

    async def adelete_keys(self, keys: Sequence[str]) -> None:
        await run_in_executor(None, self.delete_keys, keys)

    def _rows(self, statement: str, values: Sequence[Any]) -> list[Any]:
        with self._lock:
            return self._connection.execute(statement, (self.namespace, *values)).fetchall()


def _in(keys: Sequence[str]) -> str:
    return f"key IN ({','.join('?' * len(keys))})"
