"""The ledger of feedback: one SQLite file to which lines are only ever added.

    events          what was said: a query, the passage it is about, a weight, by whom, when; and what was taken back
    query_vectors   each query's vector, by the fingerprint of the encoder that made it
    settings        λ, k and the like as tuned, newest last

An event is on disk before `add` returns (WAL, synchronous = FULL). Everything that search needs is made from this
file and the passages' vectors, so nothing else has to survive a crash. Several processes may write: each takes the
file lock that it was opened with, and goes on with the new file where the folder around it was replaced meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from ragadapt.checks import checked_list, checked_number, checked_text, shown
from ragadapt.errors import FormatTooNew, InvalidInput, StoreCorrupt, StoreError, StoreLocked
from ragadapt.store.workspace import open_store
from ragadapt.text import encodable, is_encodable

if TYPE_CHECKING:
    from filelock import BaseFileLock

FORMAT_VERSION = 1
MOST_WEIGHT = 1000.0  # of one event; beyond is a slip of the pen
BUSY_SECONDS = 10.0  # how long a writer waits for another one
_PAGE = 500  # below the 999 variables that old SQLite builds allow
_TIMES = (-62135596800.0, 253402300799.0)  # the years 1 to 9999: what a date can be made of
T = TypeVar("T")

_RESTORE = (
    "Put a copy of the file back; or move it away: search then goes on without the feedback that was in it, and new "
    "feedback makes a new file."
)
_INHERITED: list[sqlite3.Connection] = []
_COLUMNS = "key, query, chunk_id, content_hash, document_id, weight, user, tenant, at, level, quote"
_SCHEMA = f"""
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL CHECK (kind IN ('add', 'withdraw')),
    recorded REAL NOT NULL, key TEXT NOT NULL, query TEXT NOT NULL, chunk_id TEXT NOT NULL, content_hash TEXT NOT NULL,
    document_id TEXT NOT NULL, weight REAL NOT NULL, user TEXT NOT NULL, tenant TEXT NOT NULL, at REAL NOT NULL,
    level TEXT NOT NULL, quote TEXT NOT NULL
);
CREATE UNIQUE INDEX added_once ON events (key) WHERE kind = 'add';
CREATE UNIQUE INDEX withdrawn_once ON events (key) WHERE kind = 'withdraw';
CREATE TABLE query_vectors (
    fingerprint TEXT NOT NULL, query_hash BLOB NOT NULL, vector BLOB NOT NULL, PRIMARY KEY (fingerprint, query_hash)
) WITHOUT ROWID;
CREATE TABLE settings (number INTEGER PRIMARY KEY AUTOINCREMENT, recorded REAL NOT NULL, value TEXT NOT NULL);
PRAGMA user_version = {FORMAT_VERSION};
"""

Level = Literal["chunk", "document", "quote"]


@dataclass(frozen=True, slots=True)
class Feedback:
    """One judgement: this passage answers this query, or with a negative weight that it does not.

    chunk_id and content_hash: the passage when it was said; level and quote: what the user named, so that it can be
    found again. user: whose influence is capped. tenant: "" = for all; else seen by that tenant only. at: Unix
    seconds. key: one feedback has one key; a second one with the same key changes nothing. seq and withdrawn are the
    ledger's.
    """

    query: str
    chunk_id: str
    weight: float = 1.0
    user: str = ""
    tenant: str = ""
    at: float | None = None  # None = now
    key: str = ""  # "" = a new one
    content_hash: str = ""
    document_id: str = ""
    level: Level = "chunk"
    quote: str = ""
    seq: int = 0
    withdrawn: bool = False

    def checked(self) -> Feedback:
        """Itself with time and key filled in. Raises InvalidInput with the field, its value and the rule."""
        for name in ("query", "chunk_id", "user", "tenant", "key", "content_hash", "document_id", "quote"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise InvalidInput(f"{name} = {shown(value)}: it is a string.")
            if "\0" in value or not (is_encodable(value) or name in ("query", "quote")):
                raise InvalidInput(f"{name} = {shown(value)} holds a NUL or a lone surrogate. Clean it first.")
        if not self.query.strip():
            raise InvalidInput("The query is empty: feedback says which passage answers a query.")
        if not self.chunk_id:
            raise InvalidInput("chunk_id is empty: name the passage that the feedback is about.")
        weight = checked_number("weight", self.weight)
        if weight == 0 or abs(weight) > MOST_WEIGHT:
            raise InvalidInput(f"weight = {weight}: between -{MOST_WEIGHT:g} and {MOST_WEIGHT:g}, and not 0.")
        at = time.time() if self.at is None else checked_number("at", self.at, *_TIMES, "Unix seconds")
        query, quote = encodable(self.query), encodable(self.quote)
        return replace(self, query=query, quote=quote, weight=weight, at=at, key=self.key or uuid.uuid4().hex)


def checked_feedback(feedback: Any) -> list[Feedback]:
    """Feedback of any iterable; not checked one by one yet. Raises InvalidInput."""
    listed = checked_list(feedback, "feedback")
    for number, one in enumerate(listed):
        if not isinstance(one, Feedback):
            raise InvalidInput(f"feedback[{number}] is {type(one).__name__} ({shown(one)}), a Feedback is needed.")
    return listed


def named_tenant(tenant: str | None) -> str:
    """A tenant as the ledger keeps it: "" for None, which is all. Raises InvalidInput for what names nobody.

    An id that went missing on its way, such as 0 or "", must not become feedback for everybody.
    """
    if tenant is None:
        return ""
    if not isinstance(tenant, str) or not tenant:
        raise InvalidInput(
            f"tenant = {tenant!r}: it is a string with at least one character, or None for feedback that is for all."
        )
    return str.__str__(tenant)


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """The feedback under this key no longer counts."""

    key: str
    seq: int


Change = Feedback | Withdrawal


class Ledger:
    """An open ledger. Threads share it; other processes may write to the same file."""

    def __init__(self, path: Path, lock: BaseFileLock | None, *, writable: bool) -> None:
        self.path = path
        self._file_lock = lock
        self._lock = threading.RLock()
        self._writable = writable
        self._connection = _connect(path, writable)
        self._identity = _identity(path)
        self._version: int | None = None

    @classmethod
    def open(cls, path: str | Path, *, lock: BaseFileLock | None = None, create: bool = True) -> Self:
        """Open the file, or make it. lock: held for every write, beside SQLite's own (see `store.ledger_lock`).

        Where the file cannot be written it is opened for reading. Raises FormatTooNew, StoreCorrupt, StoreError, and
        InvalidInput where there is no file and create is False.
        """
        path = Path(path).resolve()
        if not Ledger.is_at(path):
            if not create:
                raise InvalidInput(f"There is no ledger at {path}.")
            with lock if lock is not None else nullcontext():
                _create(path)
        try:
            ledger = cls(path, lock, writable=True)
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise StoreLocked(f"{path} is busy ({error}). Try again.") from error
            if "readonly" not in str(error) and "unable to open" not in str(error):
                raise StoreCorrupt(f"{path} cannot be read ({error}). {_RESTORE}") from error
            ledger = cls(path, lock, writable=False)
        try:
            ledger._check_format()
        except BaseException:
            ledger.close()
            raise
        return ledger

    @staticmethod
    def is_at(path: str | Path) -> bool:
        """Whether there is a ledger. A file without a table is none yet: the one who makes it is about to write them.

        True for a file that cannot be read, so that `open` says why.
        """
        path = Path(path).resolve()
        if not path.exists():
            return False
        try:
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as connection:
                return connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is not None
        except (sqlite3.Error, UnicodeDecodeError):
            return True

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Feedback that counts."""
        return int(
            self._rows("SELECT (SELECT count(*) FROM events WHERE kind='add') - (SELECT count(*) FROM events "
                       "WHERE kind='withdraw')")[0][0]
        )  # fmt: skip

    # Writing

    def add(
        self,
        feedback: Sequence[Feedback],
        vectors: NDArray[np.float32] | None = None,
        fingerprint: str = "",
    ) -> list[Feedback]:
        """Write all of it, or on an error nothing; what was new, with its seq. Known keys are left out.

        vectors (n, d): the queries' vectors by the encoder `fingerprint`, kept so that nothing is encoded twice.
        Raises InvalidInput, StoreLocked, StoreError (a full disk).
        """
        checked = [one.checked() for one in feedback]
        if vectors is not None and len(vectors) != len(checked):
            raise InvalidInput(f"{len(vectors)} vectors for {len(checked)} feedbacks: one each is needed.")
        now = time.time()
        added = []
        with self._writing() as connection:
            for one in checked:
                values = (one.key, one.query, one.chunk_id, one.content_hash, one.document_id, one.weight, one.user,
                          one.tenant, one.at, one.level, one.quote)  # fmt: skip
                cursor = connection.execute(
                    f"INSERT OR IGNORE INTO events (kind, recorded, {_COLUMNS}) VALUES ('add', ?, {_marks(11)})",
                    (now, *values),
                )
                if cursor.rowcount:
                    added.append(replace(one, seq=int(cursor.lastrowid or 0)))
            if vectors is not None:
                first: dict[str, int] = {}
                for number, one in enumerate(checked):
                    first.setdefault(one.query, number)
                _keep_vectors(connection, fingerprint, list(first), vectors[list(first.values())])
        return added

    def withdraw(self, keys: Iterable[str]) -> list[str]:
        """Take feedback back; the keys that counted until now. Unknown and withdrawn keys are left out."""
        now = time.time()
        withdrawn = []
        with self._writing() as connection:
            for key in dict.fromkeys(keys):
                cursor = connection.execute(
                    f"INSERT OR IGNORE INTO events (kind, recorded, {_COLUMNS}) SELECT 'withdraw', ?, {_COLUMNS} "
                    "FROM events WHERE kind = 'add' AND key = ?",
                    (now, key),
                )
                if cursor.rowcount:
                    withdrawn.append(key)
        return withdrawn

    def keep_vectors(self, fingerprint: str, queries: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Store query vectors (n, d) of this encoder."""
        with self._writing() as connection:
            _keep_vectors(connection, fingerprint, queries, vectors)

    def keep_settings(self, value: dict[str, Any]) -> None:
        """The settings from now on; JSON values."""
        with self._writing() as connection:
            text = json.dumps(value, allow_nan=False)
            connection.execute("INSERT INTO settings (recorded, value) VALUES (?, ?)", (time.time(), text))

    # Reading

    def changed(self) -> bool:
        """Whether anything may have been written since the last call, here or in another process. Cheap."""
        with self._lock:
            self._follow()
            (version,) = self._rows("PRAGMA data_version")[0]
            own = self._connection.total_changes
            seen, self._version = self._version, hash((version, own, self._identity))
            return seen != self._version

    def since(self, seq: int) -> list[Change]:
        """What was written after event number `seq`, in order."""
        changes: list[Change] = []
        with self._lock:
            self._follow()
            for row in self._rows(f"SELECT seq, kind, {_COLUMNS} FROM events WHERE seq > ? ORDER BY seq", (seq,)):
                changes.append(
                    Withdrawal(row[2], row[0]) if row[1] == "withdraw" else _feedback(self.path, row[0], row[2:])
                )
        return changes

    def find(
        self,
        key: str | None = None,
        *,
        query: str | None = None,
        chunk_id: str | None = None,
        user: str | None = None,
        tenant: str | None = None,
        withdrawn: bool = False,
    ) -> Iterator[Feedback]:
        """Feedback in order, filtered; withdrawn: also what was taken back."""
        wanted = {"key": key, "query": query, "chunk_id": chunk_id, "user": user, "tenant": tenant}
        given = {name: checked_text(name, value) for name, value in wanted.items() if value is not None}
        if tenant is not None:
            named_tenant(tenant)
        where = " AND ".join(["kind = 'add'", *(f"{name} = ?" for name in given)])
        gone = "EXISTS (SELECT 1 FROM events w WHERE w.kind = 'withdraw' AND w.key = e.key)"
        if not withdrawn:
            where += f" AND NOT {gone}"
        last = 0
        while rows := self._rows(
            f"SELECT seq, {gone}, {_COLUMNS} FROM events e WHERE {where} AND seq > ? ORDER BY seq LIMIT {_PAGE}",
            (*given.values(), last),
        ):
            last = rows[-1][0]
            yield from (replace(_feedback(self.path, row[0], row[2:]), withdrawn=bool(row[1])) for row in rows)

    def vectors(self, fingerprint: str, queries: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Query → vector (d,), of those that are stored for this encoder."""
        by_hash = {_hash(query): query for query in queries}
        hashes = list(by_hash)
        found: dict[str, NDArray[np.float32]] = {}
        for start in range(0, len(hashes), _PAGE):
            page = hashes[start : start + _PAGE]
            rows = self._rows(
                f"SELECT query_hash, vector FROM query_vectors WHERE fingerprint = ? AND query_hash IN "
                f"({_marks(len(page))})",
                (fingerprint, *page),
            )
            for hashed, blob in rows:
                if hashed in by_hash and isinstance(blob, bytes) and len(blob) % 4 == 0:  # else as if it were not there
                    vector = np.frombuffer(blob, "<f4").astype(np.float32)
                    if np.isfinite(vector).all() and np.abs(vector).max(initial=0) <= 1e6:  # more is damage
                        found[by_hash[hashed]] = vector
        return found

    def settings(self) -> dict[str, Any]:
        """The newest settings; empty before the first."""
        with self._lock:
            self._follow()
            rows = self._rows("SELECT value FROM settings ORDER BY number DESC LIMIT 1")
        try:
            found = json.loads(rows[0][0]) if rows else {}
        except (TypeError, ValueError) as error:
            raise StoreCorrupt(f"{self.path} holds settings that are no JSON ({error}). {_RESTORE}") from error
        if not isinstance(found, dict):
            raise StoreCorrupt(f"{self.path} holds settings that are no JSON object. {_RESTORE}")
        return found

    def problems(self) -> list[str]:
        """What SQLite finds wrong with the file; empty when it is sound."""
        found = [row[0] for row in self._rows("PRAGMA integrity_check(5)")]
        return [] if found == ["ok"] else found

    # The connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction under both locks, on the file that is in place now."""
        if not self._writable:
            raise StoreError(f"{self.path} cannot be written. Check its permissions and those of its folder.")
        from filelock import Timeout

        with self._lock:
            lock = self._file_lock
            try:
                if lock is not None:
                    lock.acquire(timeout=BUSY_SECONDS)
            except Timeout as error:
                raise StoreLocked(
                    f"{self.path} has been locked by another writer for {BUSY_SECONDS:g} s. Nothing was written; "
                    "try again."
                ) from error
            try:
                self._be_in_place()
                connection = self._connection
                connection.execute("BEGIN IMMEDIATE")
                try:
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
            except sqlite3.OperationalError as error:
                if "locked" in str(error) or "busy" in str(error):
                    raise StoreLocked(f"{self.path} is busy ({error}). Nothing was written; try again.") from error
                raise StoreError(
                    f"{self.path} could not be written ({error}). Nothing of this was kept; make room or check the "
                    "permissions, and try again."
                ) from error
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                raise StoreCorrupt(f"{self.path} cannot be written ({error}). {_RESTORE}") from error
            finally:
                if lock is not None:
                    lock.release()

    def _be_in_place(self) -> None:
        """Before a write: the file at the path is the one that is open, whatever a kill left of its folder."""
        if _identity(self.path) is None and self._file_lock is not None:
            open_store(self.path.parent, verify="none")  # heals a replacement that was cut short
        if _identity(self.path) is None:
            raise StoreError(f"{self.path} is gone. Nothing was written; open the retriever again.")
        self._follow()

    def _follow(self) -> None:
        """Open the file anew if another one stands at the path: the folder was replaced, the ledger carried along."""
        identity = _identity(self.path)
        if identity is None or identity == self._identity:
            return
        fresh = _connect(self.path, self._writable)
        if self._identity is not None and self._identity[-1] != identity[-1]:
            _INHERITED.append(self._connection)  # SQLite: never to be used or closed in a forked process
        else:
            self._connection.close()
        self._connection, self._identity = fresh, identity
        self._check_format()

    def _check_format(self) -> None:
        try:
            (version,) = self._rows("PRAGMA user_version")[0]
            if version > FORMAT_VERSION:
                raise FormatTooNew(
                    f"{self.path} has format {version}, this ragadapt reads up to {FORMAT_VERSION}. Nothing was "
                    "changed. Upgrade with: pip install -U ragadapt"
                )
            self._rows("SELECT 1 FROM events, query_vectors, settings LIMIT 1")
        except (sqlite3.DatabaseError, TypeError) as error:
            raise StoreCorrupt(f"{self.path} is no ledger of feedback ({error}). {_RESTORE}") from error

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            try:
                return self._connection.execute(query, values).fetchall()
            except sqlite3.ProgrammingError as error:
                raise InvalidInput(f"{self.path} was closed. Open it again with Ledger.open.") from error
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                raise StoreCorrupt(f"{self.path} cannot be read ({error}). {_RESTORE}") from error


def _connect(path: Path, writable: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path if writable else f"{path.as_uri()}?mode=ro&immutable=1",
        uri=not writable, check_same_thread=False, isolation_level=None, timeout=BUSY_SECONDS,
    )  # fmt: skip
    try:
        if writable:
            connection.execute("PRAGMA synchronous = FULL")
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":  # a file system without shared memory: slower, as durable
                connection.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.OperationalError:
        connection.close()
        raise
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # also SQLite's own message may hold damage
        connection.close()
        raise StoreCorrupt(f"{path} is no ledger of feedback ({error}). {_RESTORE}") from error
    return connection


def _create(path: Path) -> None:
    """Make the file, whole from the first moment at which it stands at the path. Several processes may try at once."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():  # without tables: a version that made them in place was killed, or is at it
            _write_schema(path)
            return
        made = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            _write_schema(made)
            try:
                os.link(made, path)
            except FileExistsError:  # another one was first
                return
            except OSError:  # a file system without links
                if not path.exists():
                    made.replace(path)
        finally:
            for leftover in (made, *(made.with_name(made.name + end) for end in ("-wal", "-shm", "-journal"))):
                leftover.unlink(missing_ok=True)
    except (OSError, sqlite3.OperationalError) as error:
        raise StoreError(f"No ledger can be made at {path} ({error}). Check permissions and free space.") from error


def _write_schema(path: Path) -> None:
    with closing(_connect(path, writable=True)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)
        connection.execute("COMMIT")


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Of the file and of the process that opens it."""
    try:
        found = path.stat()
    except OSError:  # between the two renames of a commit
        return None
    return found.st_dev, found.st_ino, os.getpid()


def _keep_vectors(
    connection: sqlite3.Connection, fingerprint: str, queries: Sequence[str], vectors: NDArray[np.float32]
) -> None:
    rows = np.ascontiguousarray(vectors, "<f4")
    connection.executemany(
        "INSERT OR IGNORE INTO query_vectors VALUES (?, ?, ?)",
        ((fingerprint, _hash(query), row.tobytes()) for query, row in zip(queries, rows, strict=True)),
    )


def _feedback(path: Path, seq: int, row: Sequence[Any]) -> Feedback:
    """Raises StoreCorrupt where a column holds what `add` cannot have written: SQLite has no checksums."""
    key, query, chunk_id, content_hash, document_id, weight, user, tenant, at, level, quote = row
    texts, numbers = (key, query, chunk_id, content_hash, document_id, user, tenant, level, quote), (weight, at)
    sound = all(isinstance(text, str) for text in texts) and query.strip() and chunk_id and level in get_args(Level)
    if not sound or not all(isinstance(number, (int, float)) and np.isfinite(number) for number in numbers):
        raise StoreCorrupt(f"{path} is damaged: event {seq} is no feedback. {_RESTORE}")
    return Feedback(query, chunk_id, weight, user, tenant, at, key, content_hash, document_id, level, quote, seq)


def _hash(query: str) -> bytes:
    return hashlib.sha256(query.encode("utf-8")).digest()


def _marks(count: int) -> str:
    return ",".join("?" * count)
