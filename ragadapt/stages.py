"""The stages of a build that are plain files in, plain files out: chunks, vectors, lexical index, queries, examples.

Each takes a store Stage; a stage that was finished in an earlier, interrupted run is read back instead of redone.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragadapt.chunks import ChunkStore
from ragadapt.config import ChunkConfig, IndexConfig
from ragadapt.corpus import chunk_documents, near_duplicate_groups, normalise
from ragadapt.errors import EmptyCorpus, InvalidConfiguration, MissingExtra, StoreCorrupt, reason_of
from ragadapt.files import write_text
from ragadapt.fusion import Background, Floats, Fusion
from ragadapt.index import collection_of, exact_index, open_index
from ragadapt.lexical import LexicalIndex
from ragadapt.profiling import work
from ragadapt.search import Searcher
from ragadapt.store import LEDGER, Manifest, Stage, Workspace, kept_build
from ragadapt.values import Chunk, Document, Evidence, Progress, Query

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder


log = logging.getLogger(__name__)

_LINK_TARGET = re.compile(r"\]\([^()\s]{1,500}\)")


@dataclass(frozen=True)
class Corpus:
    """The chunks of a build, with what every later stage asks about them, by corpus position."""

    documents: tuple[Document, ...]
    chunks: tuple[Chunk, ...]
    groups: tuple[int, ...]  # near-duplicate group
    text_keys: tuple[str, ...]  # normalised passage text
    notes: tuple[str, ...] = ()  # warnings for the report

    @classmethod
    def of(cls, chunks: tuple[Chunk, ...]) -> Corpus:
        """Chunks alone, for stages that ask for nothing else."""
        return cls((), chunks, (), ())

    @property
    def passages(self) -> list[str]:
        return [chunk.passage for chunk in self.chunks]

    @property
    def ids(self) -> list[str]:
        return [chunk.id for chunk in self.chunks]

    @property
    def document_of(self) -> list[str]:
        return [chunk.document_id for chunk in self.chunks]


def build_chunks(
    stage: Stage,
    documents: Sequence[Document],
    given: Sequence[Chunk] | None,
    encoder: Encoder,
    config: ChunkConfig,
    progress: Progress,
) -> Corpus:
    """Cut the documents, unless their chunks are given, and store them in chunks.sqlite."""
    path = stage.path / "chunks.sqlite"
    groups_path = stage.path / "groups.npy"
    notes_path = stage.path / "notes.json"
    if stage.finished:
        with ChunkStore.open(path) as store:
            chunks = list(store)
        groups = np.load(groups_path).tolist()
        notes = json.loads(notes_path.read_text(encoding="utf-8"))
    else:
        limit = encoder.passage_room
        if given is not None:
            chunks = list(given)
        else:
            with work("cut", len(documents)):
                chunks = chunk_documents(documents, config, encoder.count_tokens, limit, progress=progress)
        if not chunks:
            raise EmptyCorpus(
                "The documents hold no text to cut into passages. Check what was read with: ragadapt doctor"
            )
        with work("near-duplicates", len(chunks)):
            groups = near_duplicate_groups([chunk.passage for chunk in chunks], progress=progress)
        with work("passages to disk", len(chunks)), ChunkStore.create(path) as store:
            store.add(documents, chunks)
        np.save(groups_path, np.array(groups, dtype=np.int64))
        note = unread_ends([chunk.passage for chunk in chunks], encoder) if given is not None else ""
        notes = [note] if note else []
        for note in notes:
            log.warning("%s", note)
        write_text(notes_path, json.dumps(notes, ensure_ascii=False))
    keys = tuple(normalise(chunk.passage) for chunk in chunks)
    return Corpus(tuple(documents), tuple(chunks), tuple(groups), keys, tuple(notes))


def unread_ends(passages: Sequence[str], encoder: Encoder) -> str:
    """A warning where passages that were cut elsewhere are longer than the encoder reads; empty where none is."""
    room = encoder.passage_room
    counts = np.array(encoder.count_tokens(passages), dtype=np.int64)
    longer = int(np.sum(counts > room))
    if not longer:
        return ""
    lost = float(np.sum(np.maximum(counts - room, 0)) / np.sum(counts))
    return (
        f"{longer:,} of {len(passages):,} passages are longer than the {room:,} tokens that the encoder reads of one "
        f"(the longest has {int(counts.max()):,}): {lost:.0%} of the text is in no vector. Cut them smaller, pass the "
        "documents without chunked=True, or raise encoder.max_length if the model allows it."
    )


def build_vectors(stage: Stage, corpus: Corpus, encoder: Encoder, progress: Progress) -> Floats:
    """Encode every passage into vectors.npy; memory-mapped. An interrupted run goes on after its last shard."""
    path = stage.path / "vectors.npy"
    if not stage.finished:
        partial = stage.scratch / "vectors.npy"
        encoder.encode_to(corpus.passages, partial, progress=progress)
        partial.replace(path)
    vectors: Floats = np.load(path, mmap_mode="r")
    return vectors


def build_lexical(stage: Stage, corpus: Corpus, progress: Progress) -> LexicalIndex:
    """The BM25 index over the passages."""
    folder = stage.path / "lexical"
    if not stage.finished:
        headings = [" > ".join(chunk.heading_path) for chunk in corpus.chunks]
        texts = [lexical_text(chunk.text) for chunk in corpus.chunks]
        with work("lexical index", len(texts)):
            index = LexicalIndex.build(corpus.ids, texts, headings=headings, progress=progress)
            index.save(folder)
    return LexicalIndex.open(folder)


def lexical_text(text: str) -> str:
    """The text without link targets: a page that links to another one is not about what the address says."""
    return _LINK_TARGET.sub("]", text)


def searcher_of(corpus: Corpus, vectors: Floats, lexical: LexicalIndex) -> Searcher:
    """Search over vectors at hand, exact, with the neutral fusion: what the fit measures with."""
    return Searcher(exact_index(corpus.ids, vectors), lexical, Background.of(vectors), Fusion())


def check_index(config: IndexConfig) -> None:
    """Say before any work that an index cannot be built. Raises MissingExtra, InvalidConfiguration."""
    module, extra = {
        "exact": ("numpy", ""),
        "faiss": ("faiss", "faiss"),
        "qdrant": ("qdrant_client", "qdrant"),
        "qdrant-edge": ("qdrant_edge", "qdrant-edge"),
    }[config.kind]
    if importlib.util.find_spec(module) is None:
        raise MissingExtra(f"An index of kind {config.kind!r} (or take index.kind = 'exact')", extra)
    if config.url == ":memory:":
        raise InvalidConfiguration(
            "index.url = ':memory:' keeps nothing, and a saved retriever needs its index. Leave the URL out for a "
            "folder, or name a server."
        )
    if config.structure != "auto" and config.kind != "faiss":
        raise InvalidConfiguration(f"index.structure is for kind 'faiss', not {config.kind!r}: leave it out.")
    if config.url is not None and config.kind != "qdrant":
        raise InvalidConfiguration(f"index.url is for kind 'qdrant', not {config.kind!r}.")


def build_index(
    stage: Stage, config: IndexConfig, corpus: Corpus, vectors: Floats, fingerprint: str, progress: Progress
) -> None:
    """The index that ships, with the chunks' metadata for filters, as index/, and background.npz beside it."""
    ids, batch = corpus.ids, 4096
    collection = config.collection
    if config.url:
        # On a server every build gets a collection of its own: the one in use is not touched before the commit.
        note = stage.scratch / "collection"  # a killed build goes on in the one that it began
        if not note.exists():
            write_text(note, f"{collection}-{uuid.uuid4().hex[:12]}")
        collection = note.read_text(encoding="utf-8")
    settings: dict[str, Any] = {"upload_workers": config.upload_workers} if config.kind == "qdrant" else {}
    with open_index(
        config.kind,
        stage.path / "index",
        dim=vectors.shape[1],
        fingerprint=fingerprint,
        url=config.url,
        collection=collection,
        **settings,
    ) as index:
        for start in range(0, len(ids), batch):
            stop = min(start + batch, len(ids))
            payloads = [dict(chunk.metadata) for chunk in corpus.chunks[start:stop]]
            with work("index", stop - start):
                index.upsert(ids[start:stop], np.asarray(vectors[start:stop]), payloads)
            progress("index", stop, len(ids))
        with work("index"):
            if config.kind == "faiss":
                from ragadapt.index.faiss import FaissIndex

                assert isinstance(index, FaissIndex)
                index.restructure(config.structure, progress=progress)
            index.save()
    np.savez(stage.path / "background.npz", **background_arrays(vectors))


def commit_build(work: Workspace, manifest: Manifest, parts: Mapping[str, Path]) -> Manifest:
    """Replace the retriever: the ledger comes along, the old folder is kept for a rollback, a server follows."""
    with server_follows(work.target):
        return work.commit(manifest, parts, carry=[LEDGER], keep_rollback=True)


@contextmanager
def server_follows(target: Path) -> Iterator[None]:
    """After the block has replaced the folder: on a Qdrant server, point the alias to the collection in use, and
    delete those that neither the folder nor the kept one needs any more.

    The folder names its collection itself and needs no alias; that one is for other programs. What goes wrong at the
    server is a warning: the folder is in place by then.
    """
    kept = kept_build(target)
    before = {collection_of(folder / "index") for folder in (target, *([kept.path] if kept else []))}
    yield
    kept = kept_build(target)
    now = collection_of(target / "index")
    needed = {now, collection_of(kept.path / "index") if kept else None}
    gone = {collection for collection in before - needed if collection is not None}
    if now is not None or gone:
        from ragadapt.index.server import follow

        follow(now, gone)


def mutable_parts(config: IndexConfig) -> tuple[str, ...]:
    """What changes in place in a saved folder: the ledger of feedback, and the folders that engines write to."""
    return (LEDGER, "index") if config.kind in ("qdrant", "qdrant-edge") else (LEDGER,)


def background_arrays(vectors: Floats) -> dict[str, Any]:
    """What background.npz holds."""
    background = Background.of(vectors)
    return {"mean": background.mean, "covariance": background.covariance, "count": np.int64(background.count)}


def open_searcher(path: Path, manifest: Manifest) -> Searcher:
    """The search side of a saved folder. Raises FingerprintMismatch, IndexCorrupt, StoreCorrupt."""
    # The manifest has the hash of every file, and whoever opens the folder compares them all.
    index = open_index(folder=path / "index", fingerprint=manifest.fingerprint, check=False)
    lexical = LexicalIndex.open(path / "lexical")
    try:
        with np.load(path / "background.npz", allow_pickle=False) as arrays:
            background = Background(arrays["mean"], arrays["covariance"], int(arrays["count"]))
    except Exception as error:  # zip and numpy have many of their own
        raise StoreCorrupt(
            f"{path / 'background.npz'} cannot be read ({reason_of(error)}). Build the retriever again."
        ) from error
    try:
        fusion, depth = Fusion.from_dict(manifest.sections["fusion"]), int(manifest.sections["depth"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(f"The manifest of {path} lacks its fusion ({error}). Build the retriever again.") from error
    return Searcher(index, lexical, background, fusion, depth=depth)


# Queries on disk


def write_queries(path: Path, queries: Iterable[Query]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for query in queries:
            file.write(json.dumps(asdict(query), ensure_ascii=False) + "\n")


def read_queries(path: Path) -> list[Query]:
    """What `write_queries` wrote."""
    queries = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            values: dict[str, Any] = json.loads(line)
            values["evidence"] = Evidence(values["evidence"])
            values["positives"] = tuple(values["positives"])
            if values.get("span") is not None:
                values["span"] = tuple(values["span"])
            queries.append(Query(**values))
    return queries


def encode_query_texts(encoder: Encoder, queries: Sequence[Query], progress: Progress) -> dict[str, Floats]:
    """Query id → vector (d,)."""
    vectors = encoder.encode_queries([query.text for query in queries], progress=progress)
    return {query.id: vector for query, vector in zip(queries, vectors, strict=True)}


def rows_of(vectors: Mapping[str, Floats], queries: Sequence[Query]) -> Floats:
    """(Q, d) in the order of the queries."""
    rows: Floats = np.stack([vectors[query.id] for query in queries]) if queries else np.zeros((0, 1), np.float32)
    return rows
