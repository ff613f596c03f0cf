"""The documents and chunks of a retriever: one SQLite file, written in bulk, read from any thread."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
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

FORMAT_VERSION = 1
T = TypeVar("T")

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

    Chunks keep the order in which they were added. One connection is shared under a lock, so a store may be
    used from several threads, and keeps reading its own file after the folder around it was replaced.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, writable: bool) -> None:
        self.path = path
        self._writable = writable
        self._connection = connection
        self._lock = threading.Lock()
        names = {row[1] for row in connection.execute("PRAGMA table_info(chunks)")}
        self._columns = f"{_COLUMNS}, {_AROUND}" if "before" in names else _COLUMNS
        weakref.finalize(self, connection.close)  # of a build that was replaced, when its last reader is done

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
        connection = _connect(path, writable)
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            connection.execute("SELECT 1 FROM chunks, documents LIMIT 1").fetchone()
        except sqlite3.DatabaseError as error:
            connection.close()
            raise StoreCorrupt(f"{path} holds no chunks ({error}). Build the retriever again.") from error
        if version > FORMAT_VERSION:
            connection.close()
            raise FormatTooNew(f"{path} has format {version}, this ragadapt reads up to {FORMAT_VERSION}.")
        return cls(connection, path, writable)

    def close(self) -> None:
        """Close the file. The store must not be used afterwards."""
        with self._lock:
            self._connection.close()

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
        last = -1
        while rows := self._rows(
            f"SELECT position, {self._columns} FROM chunks WHERE position > ? ORDER BY position LIMIT {_PAGE}", (last,)
        ):
            last = rows[-1][0]
            yield from (_chunk(row[1:]) for row in rows)

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
        for row in self._rows("SELECT id, metadata FROM chunks ORDER BY position"):
            yield row[0], json.loads(row[1])

    def shown(self) -> Iterator[tuple[str, Metadata]]:
        """`metadata`, with what every result shows beside it: id, document_id, source and heading, where it has them.

        A field of the metadata stands before one of these of the same name.
        """
        query = "SELECT id, document_id, heading_path, source, metadata FROM chunks ORDER BY position"
        for id, document, headings, source, metadata in self._rows(query):
            heading = " > ".join(part for part in json.loads(headings) if part)
            fields = {"id": id, "document_id": document, "source": source or document, "heading": heading}
            yield id, {**{name: value for name, value in fields.items() if value}, **json.loads(metadata)}

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

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            try:
                return self._connection.execute(query, values).fetchall()
            except sqlite3.ProgrammingError as error:
                raise InvalidInput(f"{self.path} was closed. Open it again with ChunkStore.open.") from error
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                raise StoreCorrupt(f"{self.path} cannot be read ({error}). Build the retriever again.") from error

    def _write(self, write: Callable[[sqlite3.Connection], None]) -> None:
        if not self._writable:
            raise InvalidInput(f"{self.path} is open for reading. Open it with ChunkStore.open(…, writable=True).")
        with self._lock, self._connection:
            try:
                write(self._connection)
            except sqlite3.IntegrityError as error:
                raise InvalidInput(f"{self.path} does not take this: {error}. Nothing was written.") from error
            except UnicodeEncodeError as error:
                raise InvalidInput(f"Text with a lone surrogate cannot be stored ({error}). Clean it first.") from error


SHOWN = ("id", "document_id", "source", "heading")
"""What every result shows beside its metadata, and what a filter may name like a field of them."""

_FILTERS = 32  # whose answers are remembered


class ChunkFilters:
    """Filters over the chunks of a retriever, on their metadata and on what a result shows beside them (`SHOWN`).

    An index holds the metadata alone, so a test of such a field becomes one of ids.
    """

    def __init__(self, chunks: ChunkStore) -> None:
        self._chunks = chunks
        self._known: dict[Node, tuple[Node, NDArray[np.bool_]]] = {}

    def resolve(self, filter: Filter | Node) -> tuple[Node, NDArray[np.bool_]]:
        """(what to ask the index, (N,) which chunks pass, in the order of `ids()`). Raises InvalidFilter."""
        from ragadapt.index.filters import parse

        # By the tree and not by its text: 2020 and "2020" are two filters, whatever wrote them.
        node = parse(filter)
        found = self._known.get(node)
        if found is None:
            found = self._resolved(node)
            if len(self._known) >= _FILTERS:
                self._known.pop(next(iter(self._known)), None)
            self._known[node] = found
        return found

    def asked(self, filter: Filter) -> Node:
        """What to ask the index, for one that filters words and vectors alike. Raises InvalidFilter."""
        from ragadapt.index.filters import leaves, parse

        node = parse(filter)
        beside = any(leaf.path in _BESIDE for leaf in leaves(node))
        return self.resolve(node)[0] if beside else node

    def _resolved(self, node: Node) -> tuple[Node, NDArray[np.bool_]]:
        import numpy as np

        from ragadapt.index.filters import Named, Not, compile_filter, leaves, replace_leaves

        beside: list[Leaf] = [leaf for leaf in leaves(node) if leaf.path in _BESIDE]
        tests = [compile_filter(leaf) for leaf in beside]
        passing: list[set[str]] = [set() for _ in beside]
        matches, mask, all_ids = compile_filter(node), list[bool](), list[str]()
        for id, fields in self._chunks.shown() if beside else self._chunks.metadata():
            for test, ids in zip(tests, passing, strict=True):
                if test(fields):
                    ids.add(id)
            if beside:
                all_ids.append(id)
            mask.append(matches(fields, id))
        asked: dict[Leaf, Node] = {}
        for leaf, ids in zip(beside, passing, strict=True):
            rest = len(all_ids) - len(ids)
            few = rest < len(ids)  # the shorter list travels to the index
            asked[leaf] = Not(Named(frozenset(all_ids) - ids)) if few else Named(frozenset(ids))
        return replace_leaves(node, asked), np.array(mask, np.bool_)


_BESIDE = {(name,) for name in SHOWN}


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
