"""The documents and chunks of a retriever: one SQLite file, written in bulk, read from any thread."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ragadapt.errors import FormatTooNew, InvalidInput, StoreCorrupt
from ragadapt.values import Chunk, Document, Metadata

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ragadapt.index.filters import Filter, Leaf, Node
    from ragadapt.index.postings import FieldPostings

FORMAT_VERSION = 1
T = TypeVar("T")

_CONNECTIONS = 32  # of one store at most
_PAGE = 500  # rows per query; below the 999 variables that old SQLite builds allow
_COLUMNS = "id, document_id, text, heading_path, start, end, metadata, source"
_AROUND = "before, continues"  # files of earlier versions lack them
_SCHEMA = f"""
CREATE TABLE documents (
    id TEXT PRIMARY KEY, title TEXT NOT NULL, source TEXT NOT NULL, metadata TEXT NOT NULL,
    content_hash TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE chunks (
    position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, document_id TEXT NOT NULL REFERENCES documents (id),
    text TEXT NOT NULL, heading_path TEXT NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL,
    metadata TEXT NOT NULL, source TEXT NOT NULL, content_hash TEXT NOT NULL,
    before TEXT NOT NULL DEFAULT '', continues INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX chunks_by_document ON chunks (document_id, start);
CREATE INDEX chunks_by_content ON chunks (content_hash);
PRAGMA user_version = {FORMAT_VERSION};
"""


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """A document without its text. content_hash covers text, title, source and metadata."""

    id: str
    title: str = ""
    source: str = ""
    metadata: Metadata = field(default_factory=dict)
    content_hash: str = ""


def document_hash(document: Document) -> str:
    """sha256 of all that chunks are made of: equal if and only if the document need not be read again."""
    parts = [document.text, document.title, document.source, _dump(document.metadata, document.id)]
    if document.places:  # left out where there are none, as in the hashes of earlier versions
        parts.append(json.dumps([[start, _dump(values, document.id)] for start, values in document.places]))
    return hashlib.sha256(json.dumps(parts).encode("ascii")).hexdigest()


class ChunkStore:
    """Chunks by id, in order, by document. `create` writes a new file, `open` reads one.

    Chunks keep the order in which they were added. A store may be used from several threads: one that is open for
    reading has a connection for each that reads at the moment. It keeps reading its own file after the folder around it
    was replaced; what waits then shares the connections that there are.
    """

    def __init__(
        self, connection: sqlite3.Connection, path: Path, writable: bool, file: tuple[int, int] | None = None
    ) -> None:
        """file: the identity of what the connection has open; None = not known, so that it stays the only one."""
        self.path = path
        self._writable = writable
        self._file = file
        self._every = [connection]
        self._idle = [connection]
        self._free = threading.Condition(threading.Lock())
        names = {row[1] for row in connection.execute("PRAGMA table_info(chunks)")}
        self._columns = f"{_COLUMNS}, {_AROUND}" if "before" in names else _COLUMNS
        weakref.finalize(self, _close, self._every)  # of a build that was replaced, when its last reader is done

    @classmethod
    def create(cls, path: str | Path) -> Self:
        """A new, empty, writable store. Raises InvalidInput if there is something at path."""
        path = Path(path)
        if path.exists():
            raise InvalidInput(f"{path} exists. Remove it first, or open it with ChunkStore.open.")
        connection = _connect(path, writable=True)
        connection.executescript(_SCHEMA)
        return cls(connection, path, writable=True)

    @classmethod
    def open(cls, path: str | Path, writable: bool = False) -> Self:
        """An existing store. Read-only unless told, and then on read-only disks too.

        Raises StoreCorrupt if the file is missing or no store, FormatTooNew.
        """
        path = Path(path)
        if not path.is_file():
            raise StoreCorrupt(f"{path} is missing. Build the retriever again with: ragadapt fit")
        before = _identity(path)
        connection = _connect(path, writable)
        # Open files keep their number, so what has it before and after is the file that was opened.
        file = before if _identity(path) == before else None
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute("SELECT 1 FROM chunks, documents LIMIT 1").fetchone()
        except sqlite3.DatabaseError as error:
            connection.close()
            raise StoreCorrupt(f"{path} holds no chunks ({error}). Build the retriever again.") from error
        if version > FORMAT_VERSION:
            connection.close()
            raise FormatTooNew(f"{path} has format {version}, this ragadapt reads up to {FORMAT_VERSION}.")
        return cls(connection, path, writable, file)

    def close(self) -> None:
        """Close the file. The store must not be used afterwards."""
        with self._free:
            self._free.wait_for(lambda: len(self._idle) == len(self._every))
            _close(self._every)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Writing

    def add(self, documents: Iterable[Document | DocumentRecord], chunks: Iterable[Chunk]) -> None:
        """Append documents and their chunks; all of them or, on an error, none. A record keeps its hash.

        Raises InvalidInput for an id that is there already, a chunk without its document, and metadata that
        is not JSON.
        """

        def digest(d: Document | DocumentRecord) -> str:
            return d.content_hash if isinstance(d, DocumentRecord) else document_hash(d)

        document_rows = ((d.id, d.title, d.source, _dump(d.metadata, d.id), digest(d)) for d in documents)
        chunk_rows = (
            (
                *(c.id, c.document_id, c.text, json.dumps(c.heading_path, ensure_ascii=False)),
                *(c.start, c.end, _dump(c.metadata, c.id), c.source, c.content_hash, c.before, c.continues),
            )
            for c in chunks
        )

        def write(connection: sqlite3.Connection) -> None:
            columns = "id, title, source, metadata, content_hash"
            _insert(connection, f"INSERT INTO documents ({columns}) VALUES (?,?,?,?,?)", document_rows)
            _insert(
                connection,
                f"INSERT INTO chunks ({_COLUMNS}, content_hash, {_AROUND}) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                chunk_rows,
            )

        self._write(write)

    # Reading

    def __len__(self) -> int:
        return int(self._rows("SELECT count(*) FROM chunks")[0][0])

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and bool(self._rows("SELECT 1 FROM chunks WHERE id = ?", (id,)))

    def __iter__(self) -> Iterator[Chunk]:
        """All chunks in the order in which they were added, a page at a time."""
        return map(_chunk, self._in_order(self._columns))

    def _in_order(self, columns: str) -> Iterator[Any]:
        """These columns of all chunks, a page at a time."""
        last = -1
        while rows := self._rows(
            f"SELECT {columns}, position FROM chunks WHERE position > ? ORDER BY position LIMIT {_PAGE}", (last,)
        ):
            last = rows[-1][-1]
            yield from (row[:-1] for row in rows)

    def get(self, ids: Sequence[str]) -> list[Chunk]:
        """One chunk per id, in the order of ids. Raises InvalidInput that names what is not there."""
        found = self.find(ids)
        missing = [id for id in ids if id not in found]
        if missing:
            raise InvalidInput(f"{len(missing)} of {len(ids)} chunks are not in {self.path}: {missing[:3]} …")
        return [found[id] for id in ids]

    def find(self, ids: Iterable[str]) -> dict[str, Chunk]:
        """The chunks that exist, by id; unknown ids are left out."""
        rows = self._pages(f"SELECT {self._columns} FROM chunks WHERE id IN", ids)
        return {row[0]: _chunk(row) for row in rows}

    def of_document(self, document_id: str) -> list[Chunk]:
        """The document's chunks by where they start; empty if it has none or is unknown."""
        query = f"SELECT {self._columns} FROM chunks WHERE document_id = ? ORDER BY start, position"
        return [_chunk(row) for row in self._rows(query, (document_id,))]

    def neighbours(self, id: str, count: int, *, back: bool = False) -> list[Chunk]:
        """Up to count passages of the same document that follow a passage (back: precede it), the nearest first."""
        side, order = ("<", "DESC") if back else (">", "ASC")
        query = (
            f"SELECT {self._columns} FROM chunks WHERE document_id = (SELECT document_id FROM chunks WHERE id = ?1) "
            f"AND (start, position) {side} (SELECT start, position FROM chunks WHERE id = ?1) "
            f"ORDER BY start {order}, position {order} LIMIT ?2"
        )
        return [_chunk(row) for row in self._rows(query, (id, count))]

    def ids(self) -> list[str]:
        """All chunk ids in the order in which they were added."""
        return [row[0] for row in self._rows("SELECT id FROM chunks ORDER BY position")]

    def document_ids(self) -> list[str]:
        """The document of every chunk, in the order of `ids()`."""
        return [row[0] for row in self._rows("SELECT document_id FROM chunks ORDER BY position")]

    def metadata(self) -> Iterator[tuple[str, Metadata]]:
        """(chunk id, metadata) in the order of `ids()`: what a metadata filter reads."""
        for id, metadata in self._in_order("id, metadata"):
            yield id, json.loads(metadata)

    def shown(self) -> Iterator[tuple[str, Metadata]]:
        """`metadata`, with what every result shows beside it: id, document_id, source and heading, where it has them.

        A field of the metadata stands before one of these of the same name.
        """
        for id, document, headings, source, metadata in self._in_order(
            "id, document_id, heading_path, source, metadata"
        ):
            yield id, _with_shown(id, document, json.loads(headings), source, json.loads(metadata))

    def hashes(self, ids: Iterable[str]) -> dict[str, str]:
        """Chunk id → content hash, of those that exist."""
        return {row[0]: row[1] for row in self._pages("SELECT id, content_hash FROM chunks WHERE id IN", ids)}

    def by_content(self, hashes: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
        """Content hash → (chunk id, document id) of the chunks with this content, in the order of `ids()`."""
        found: dict[str, list[tuple[str, str]]] = {}
        query = "SELECT content_hash, id, document_id, position FROM chunks WHERE content_hash IN"
        for content, id, document, _ in sorted(self._pages(query, hashes), key=lambda row: row[3]):
            found.setdefault(content, []).append((id, document))
        return found

    def sample(self, count: int) -> list[str]:
        """The texts of up to count chunks, evenly over the store."""
        step = f"max(1, (SELECT max(position) FROM chunks) / {count})"
        return [row[0] for row in self._rows(f"SELECT text FROM chunks WHERE position % {step} = 0 LIMIT {count}")]

    def documents(self) -> list[DocumentRecord]:
        """Every document without its text, by id."""
        rows = self._rows("SELECT id, title, source, metadata, content_hash FROM documents ORDER BY id")
        return [DocumentRecord(id, t, s, json.loads(m), h) for id, t, s, m, h in rows]

    # The connection

    def _pages(self, query: str, values: Iterable[str]) -> Iterator[Any]:
        """The rows of a query that ends in IN, for any number of values."""
        wanted = list(dict.fromkeys(values))
        for start in range(0, len(wanted), _PAGE):
            page = wanted[start : start + _PAGE]
            yield from self._rows(f"{query} ({','.join('?' * len(page))})", page)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else uses meanwhile."""
        with self._free:
            if not self._idle and not self._writable and len(self._every) < _CONNECTIONS:
                fresh = self._another()
                if fresh is not None:
                    self._every.append(fresh)
                    self._idle.append(fresh)
            self._free.wait_for(lambda: self._idle)
            connection = self._idle.pop()
        try:
            yield connection
        finally:
            with self._free:
                self._idle.append(connection)
                self._free.notify()

    def _another(self) -> sqlite3.Connection | None:
        """One more connection to the file that is open; None where another one stands at the path by now."""
        if self._file is None or _identity(self.path) != self._file:
            return None
        try:
            fresh = _connect(self.path, writable=False)
        except sqlite3.Error:  # out of descriptors: the others do
            return None
        if _identity(self.path) != self._file:
            fresh.close()
            return None
        return fresh

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._reading() as connection:
            try:
                return connection.execute(query, values).fetchall()
            except sqlite3.ProgrammingError as error:
                raise InvalidInput(f"{self.path} was closed. Open it again with ChunkStore.open.") from error
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                raise StoreCorrupt(f"{self.path} cannot be read ({error}). Build the retriever again.") from error

    def _write(self, write: Callable[[sqlite3.Connection], None]) -> None:
        if not self._writable:
            raise InvalidInput(f"{self.path} is open for reading. Open it with ChunkStore.open(…, writable=True).")
        with self._reading() as connection, connection:
            try:
                write(connection)
            except sqlite3.IntegrityError as error:
                raise InvalidInput(f"{self.path} does not take this: {error}. Nothing was written.") from error
            except UnicodeEncodeError as error:
                raise InvalidInput(f"Text with a lone surrogate cannot be stored ({error}). Clean it first.") from error


SHOWN = ("id", "document_id", "source", "heading")
"""What every result shows beside its metadata, and what a filter may name like a field of them."""


def _with_shown(
    id: str, document: str, headings: Sequence[str], source: str, metadata: dict[str, Any]
) -> dict[str, Any]:
    heading = " > ".join(part for part in headings if part)
    fields = {"id": id, "document_id": document, "source": source or document, "heading": heading}
    return {**{name: value for name, value in fields.items() if value}, **metadata}


def shown_of(chunk: Chunk) -> Metadata:
    """What a filter sees of a chunk, as `ChunkStore.shown` gives it once it is stored."""
    metadata = json.loads(_dump(chunk.metadata, chunk.id))
    return _with_shown(chunk.id, chunk.document_id, chunk.heading_path, chunk.source, metadata)


_FILTERS = 32  # whose answers are remembered
_MASKS_BYTES = 64_000_000  # of these answers


class ChunkFilters:
    """Filters over the chunks of a retriever, on their metadata and on what a result shows beside them (`SHOWN`).

    They are looked up in the postings of its folder. An older folder has none: they are made when the first filter
    comes, from all metadata, and kept in memory.
    """

    def __init__(
        self,
        chunks: ChunkStore,
        ids: Callable[[], Sequence[str]],
        rows_of: Callable[[Sequence[str]], NDArray[np.int64]],
        *,
        postings: FieldPostings | None = None,
        in_memory: bool = False,
    ) -> None:
        """ids: of all chunks in their order. rows_of: ids → places in it. in_memory: the index filters by rows in this
        process. Another one holds the metadata alone, so a test of what is shown beside them becomes one of ids."""
        self._chunks = chunks
        self._ids = ids
        self._rows_of = rows_of
        self._postings = postings
        self._in_memory = in_memory
        self._known: dict[Node, tuple[Node, NDArray[np.bool_]]] = {}
        self._lock = threading.Lock()

    def resolve(self, filter: Filter | Node) -> tuple[Node, NDArray[np.bool_]]:
        """(what to ask the index, (N,) which chunks pass, in the order of `ids()`; neither to be changed). Raises
        InvalidFilter."""
        from ragadapt.index.filters import parse

        # By the tree and not by its text: 2020 and "2020" are two filters, whatever wrote them.
        node = parse(filter)
        found = self._known.get(node)
        if found is None:
            found = self._resolved(node)
            most = max(1, min(_FILTERS, _MASKS_BYTES // max(1, len(found[1]))))
            with self._lock:
                while len(self._known) >= most:
                    self._known.pop(next(iter(self._known)))
                self._known[node] = found
        return found

    def forget(self) -> None:
        """Answer every filter anew from now on: for measuring."""
        with self._lock:
            self._known.clear()

    def asked(self, filter: Filter | Node) -> Node:
        """What to ask an index that holds the metadata and filters by itself. Raises InvalidFilter."""
        from ragadapt.index.filters import Marked, Named, Not, leaves, parse, replace_leaves

        node = parse(filter)
        asked: dict[Leaf, Node] = {}
        for leaf in leaves(node):
            if leaf.path in _BESIDE:
                ids, mask = self._ids(), self._of_fields().mask(leaf)
                fewer = int(mask.sum()) * 2 <= len(ids)  # the shorter list travels to the index
                named = Named(Marked(ids, mask if fewer else ~mask, self._rows_of).named())
                asked[leaf] = named if fewer else Not(named)
        return replace_leaves(node, asked)

    def _resolved(self, node: Node) -> tuple[Node, NDArray[np.bool_]]:
        from ragadapt.index.filters import Marked

        mask = self._of_fields().mask(node, self._there)
        return (Marked(self._ids(), mask, self._rows_of) if self._in_memory else self.asked(node)), mask

    def _of_fields(self) -> FieldPostings:
        if self._postings is None:
            from ragadapt.index.postings import FieldPostings

            with self._lock:
                if self._postings is None:
                    self._postings = FieldPostings.build(fields for _, fields in self._chunks.shown())
        return self._postings

    def _there(self, ids: Iterable[str]) -> list[int]:
        wanted = set(ids)
        return [row for row, id in enumerate(self._ids()) if id in wanted]


_BESIDE = {(name,) for name in SHOWN}


def _identity(path: Path) -> tuple[int, int] | None:
    """Tells a file from another one that has taken its place."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _close(connections: Sequence[sqlite3.Connection]) -> None:
    for connection in connections:
        connection.close()


def _connect(path: Path, writable: bool) -> sqlite3.Connection:
    if writable:
        connection = sqlite3.connect(path, check_same_thread=False)
        # A build that is cut short starts this file anew, and a finished one is synced as a whole.
        connection.execute("PRAGMA journal_mode = MEMORY")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection
    uri = path.resolve().as_uri()
    if uri.startswith("file:///"):
        # Nobody writes to a saved file in place, so no lock is needed, nor one more file beside it.
        return sqlite3.connect(f"{uri}?mode=ro&immutable=1", uri=True, check_same_thread=False)
    connection = sqlite3.connect(path, check_same_thread=False)  # a Windows share: SQLite takes no host in an URI
    connection.execute("PRAGMA query_only = ON")
    return connection


def _insert(connection: sqlite3.Connection, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
    for row in rows:
        try:
            connection.execute(statement, row)
        except sqlite3.IntegrityError as error:
            raise sqlite3.IntegrityError(f"{row[0]!r}: {error}") from error


def _chunk(row: Sequence[Any]) -> Chunk:
    id, document_id, text, heading_path, start, end, metadata, source = row[:8]
    before, continues = row[8:] or ("", 0)
    return Chunk(
        id=id,
        document_id=document_id,
        text=text,
        heading_path=tuple(json.loads(heading_path)),
        start=start,
        end=end,
        metadata=json.loads(metadata),
        source=source,
        before=before,
        continues=bool(continues),
    )


def _dump(metadata: Metadata, id: str) -> str:
    try:
        return json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"Metadata of {id!r}: {error}. Only JSON values can be stored; convert others.") from error
