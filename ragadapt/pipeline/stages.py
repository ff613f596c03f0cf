"""The stages of a build that are plain files in, plain files out: chunks, vectors, lexical index, queries, examples.

Each takes a store Stage; a stage that was finished in an earlier, interrupted run is read back instead of redone.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ragadapt.config import ChunkConfig, IndexConfig
from ragadapt.corpus import cut_documents, near_duplicate_groups
from ragadapt.errors import (
    EmptyCorpus,
    FingerprintMismatch,
    IndexCorrupt,
    IndexFault,
    IndexUnreachable,
    MissingExtra,
    RagadaptError,
    StoreCorrupt,
)
from ragadapt.files import copy_file, link_or_copy, map_npy, read_json, record_file, remove, write_text
from ragadapt.index import collection_of, engine_of, exact_index, open_index
from ragadapt.index.contract import WordEngine
from ragadapt.index.postings import POSTINGS, FieldPostings
from ragadapt.lexical import LexicalIndex
from ragadapt.lexical.languages import languages_of
from ragadapt.lexical.stopwords import stopwords_for
from ragadapt.lexical.terms import PassageWords
from ragadapt.out_of_core import Mapped, as_it_is
from ragadapt.pipeline.corpus import Corpus, EncodedCorpus, passages_of
from ragadapt.profiling import work
from ragadapt.search.fusion import Floats, Fusion
from ragadapt.search.searcher import Searcher
from ragadapt.store.chunks import ChunkStore, shown_of
from ragadapt.store.workspace import LEDGER, RERANKER, Manifest, OpenedStore, Stage, Workspace, kept_build, open_store
from ragadapt.values import Chunk, Document, Evidence, Progress, Query, no_progress
from ragadapt.version import __version__

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder
    from ragadapt.training import Example


log = logging.getLogger(__name__)

_BATCH = 4096  # vectors taken over at a time
_LINK_TARGET = re.compile(r"\]\([^()\s]{1,500}\)")


def build_chunks(
    stage: Stage,
    documents: Sequence[Document],
    given: Sequence[Chunk] | None,
    encoder: Encoder,
    config: ChunkConfig,
    progress: Progress,
    keep: Callable[[Chunk], Chunk] = as_it_is,
) -> Corpus:
    """Cut the documents, unless their chunks are given, and store them in chunks.sqlite.

    keep: what is done with a chunk that is to be held for long (see `keep_all`).
    """
    path = stage.path / "chunks.sqlite"
    groups_path = stage.path / "groups.npy"
    notes_path = stage.path / "notes.json"
    if stage.finished:
        with ChunkStore.open(path) as store:
            chunks = [keep(chunk) for chunk in store]
        groups = np.load(groups_path).tolist()
        notes = json.loads(notes_path.read_text(encoding="utf-8"))
    else:
        limit = encoder.passage_room
        if given is not None:
            chunks = [keep(chunk) for chunk in given]
        else:
            with work("cut", len(documents)):
                cut = cut_documents(documents, config, encoder.count_tokens, limit, progress=progress)
                chunks = [keep(chunk) for chunk in cut]
        if not chunks:
            raise EmptyCorpus(
                "The documents hold no text to cut into passages. Check what was read with: ragadapt doctor"
            )
        with work("near-duplicates", len(chunks)):
            groups = near_duplicate_groups(passages_of(chunks), progress=progress, scratch=stage.scratch)
        with work("passages to disk", len(chunks)), ChunkStore.create(path) as store:
            store.add(documents, chunks)
        np.save(groups_path, np.array(groups, dtype=np.int64))
        note = unread_ends(passages_of(chunks), encoder) if given is not None else ""
        notes = [note] if note else []
        for note in notes:
            log.warning("%s", note)
        write_text(notes_path, json.dumps(notes, ensure_ascii=False))
    return Corpus(documents, chunks, groups, tuple(notes))


def unread_ends(passages: Sequence[str], encoder: Encoder) -> str:
    """A warning where passages that were cut elsewhere are longer than the encoder reads; empty where none is."""
    cut = encoder.unread_ends(passages, "passages")
    return cut and (
        f"{cut} Cut them smaller, pass the documents without chunked=True, or raise encoder.max_length if the model "
        "allows it."
    )


def build_vectors(
    stage: Stage, corpus: Corpus, encoder: Encoder | None, progress: Progress, known: Sequence[KnownVectors] = ()
) -> EncodedCorpus:
    """Every passage's vector in vectors.npy; memory-mapped. An interrupted run goes on after its last shard.

    known: where vectors of this encoder are; only what none of them has is encoded. encoder: None = they have all.
    """
    path = stage.path / "vectors.npy"
    if not stage.finished:
        partial = stage.scratch / "vectors.npy"

        def encode(passages: Sequence[str]) -> Floats:
            assert encoder is not None
            return encoder.encode_to(passages, partial, progress=progress)

        gather_vectors(path, corpus.chunks, known, encode)
    return EncodedCorpus(corpus, np.load(path, mmap_mode="r"))


@dataclass(frozen=True)
class KnownVectors:
    """Where vectors are: passage content hash → key, and the vectors (n, d) of keys."""

    key_of: Mapping[str, Any]
    vectors: Callable[[Sequence[Any]], Floats]


def gather_vectors(
    path: Path, chunks: Sequence[Chunk], known: Sequence[KnownVectors], encode: Callable[[Sequence[str]], Floats]
) -> int:
    """Write (n, d) float32 in the order of the chunks: known by content, else encoded, equal content once.

    Returns how many passages were encoded.
    """
    digests = np.array([bytes.fromhex(chunk.content_hash) for chunk in chunks], dtype="V32")
    _, first, place = np.unique(digests.view("S32"), return_index=True, return_inverse=True)
    source = first[place]  # (n,) of each row the first one of the same content
    del digests, place
    first.sort()
    owner = np.full(len(first), -1)  # of each content the number of the source that has it; -1 = none
    keys: list[Any] = [None] * len(first)
    for at, row in enumerate(first.tolist() if known else ()):
        digest = chunks[row].content_hash
        for number, one in enumerate(known):
            if digest in one.key_of:
                owner[at], keys[at] = number, one.key_of[digest]
                break
    rows: Any = None  # the mapping

    def write(contents: NDArray[np.int64], vectors: Floats) -> None:
        nonlocal rows
        if rows is None:
            rows = map_npy(path, (len(chunks), vectors.shape[1]))
        rows[first[contents]] = vectors

    new = np.flatnonzero(owner < 0)
    if len(new):
        encoded = encode(Mapped(first[new].tolist(), lambda row: chunks[row].passage))
        for start in range(0, len(new), _BATCH):
            write(new[start : start + _BATCH], encoded[start : start + _BATCH])
    for number, one in enumerate(known):
        taken = np.flatnonzero(owner == number)
        for start in range(0, len(taken), _BATCH):
            batch = taken[start : start + _BATCH]
            write(batch, one.vectors([keys[at] for at in batch.tolist()]))
    assert rows is not None
    copies = np.flatnonzero(source != np.arange(len(source)))
    for start in range(0, len(copies), _BATCH):
        batch = copies[start : start + _BATCH]
        rows[batch] = rows[source[batch]]
    assert rows is not None
    rows.flush()
    return len(new)


@contextmanager
def stored_vectors(
    opened: OpenedStore, contents: Mapping[str, str], chunks: Iterable[Chunk], scratch: Path, *, leaving: bool = False
) -> Iterator[list[KnownVectors]]:
    """What the index of a saved retriever has of these passages; nothing, and a warning, where it cannot be read.

    contents: id in the index → content hash. leaving: the index is not to stay at its server, so that one which does
    not answer is no obstacle. Raises IndexUnreachable.
    """
    folder, fingerprint = opened.path / "index", opened.manifest.fingerprint
    with ExitStack() as stack:
        known = []
        try:
            opened.check("index")
            try:
                index = open_index(folder=folder, fingerprint=fingerprint)
            except (IndexUnreachable, IndexCorrupt, FingerprintMismatch):
                raise
            except IndexFault as error:  # an embedded engine has one user at a time, and that one is searching
                log.info("%s; reading a copy", error)
                copy = scratch / "index"
                remove(copy)
                shutil.copytree(folder, copy, copy_function=copy_file)
                index = open_index(folder=copy, fingerprint=fingerprint)
            stack.enter_context(index)
            wanted = {chunk.content_hash for chunk in chunks}
            candidates = {digest: id for id, digest in contents.items() if digest in wanted}
            there = dict(zip(candidates.values(), index.has(list(candidates.values())), strict=True))
            known.append(KnownVectors({digest: id for digest, id in candidates.items() if there[id]}, index.vectors))
        except (IndexFault, StoreCorrupt, MissingExtra) as error:
            if isinstance(error, IndexUnreachable) and not leaving:
                raise  # the new one is to be built there too
            log.warning("The vectors of %s cannot be taken over (%s) All passages are encoded again.", folder, error)
        yield known


@contextmanager
def vectors_kept_for(target: Path, encoder: Encoder) -> Iterator[list[KnownVectors]]:
    """The vectors of this encoder that earlier fits left in the target, in the folder kept of it, and beside it.

    Only of the same library version, kind of device and precision, and only from files that are still what their hash
    says: a fit is also the remedy for a folder that was damaged. (What Qdrant stores changes in place and has none.)
    """
    with ExitStack() as stack:
        found = []
        kept = kept_build(target)
        for folder in (target, *([kept.path] if kept else [])):
            try:
                manifest = open_store(folder, "none").manifest if folder == target else kept.manifest  # type: ignore[union-attr]
                about = [
                    manifest.fingerprint,
                    _computed(manifest.sections.get("precision", {})),
                    manifest.sections.get("encoded_by", manifest.library_version),
                ]
                files = [name for name in manifest.files if name == "chunks.sqlite" or name.startswith("index/")]
                if about != about_vectors(encoder) or "index" in manifest.mutable:
                    continue
                if any(record_file(folder / name) != manifest.files[name] for name in files):
                    log.warning("%s is damaged: its vectors are not taken over", folder)
                    continue
                index = stack.enter_context(open_index(folder=folder / "index", fingerprint=manifest.fingerprint))
                with ChunkStore.open(folder / "chunks.sqlite") as store:
                    key_of = {chunk.content_hash: chunk.id for chunk in store}
                found.append(KnownVectors(key_of, index.vectors))
            except (RagadaptError, OSError) as error:
                log.info("no vectors are taken over from %s: %s", folder, error)
        if (beside := _vectors_beside(target, encoder)) is not None:
            found.append(beside)
        yield found


def rows_kept_for(target: Path, encoder: Encoder, contents: Sequence[str]) -> tuple[Floats, list[int]]:
    """(n, d) the vectors that earlier fits left of passages with these hashes, and which rows are not among them."""
    made = np.empty((len(contents), encoder.dim), np.float32)
    left = list(range(len(contents)))
    with vectors_kept_for(target, encoder) as known:
        for source in known:
            taken = [at for at in left if contents[at] in source.key_of]
            if taken:
                made[taken] = source.vectors([source.key_of[contents[at]] for at in taken])
                left = [at for at in left if contents[at] not in source.key_of]
    return made, left


def about_vectors(encoder: Encoder) -> list[str]:
    """What must be equal for vectors to be taken over to the bit."""
    return [encoder.fingerprint, _computed(asdict(encoder.precision)), __version__]


def _computed(precision: Mapping[str, Any]) -> str:
    return f"{precision.get('dtype')} on {str(precision.get('device')).split(':')[0]}"


def keep_vectors_beside(target: Path, corpus: Corpus, vectors: Path, encoder: Encoder) -> None:
    """Keep base vectors that the committed folder does not hold itself, for the next fit here; may be deleted."""
    folder = _beside(target)
    remove(folder)
    folder.mkdir()
    link_or_copy(vectors, folder / "vectors.npy")
    about = {
        "about": about_vectors(encoder),
        "sha256": record_file(folder / "vectors.npy").sha256,
        "contents": [chunk.content_hash for chunk in corpus.chunks],
    }
    write_text(folder / "vectors.json", json.dumps(about))


def forget_vectors_beside(target: Path) -> None:
    """The committed folder serves itself."""
    remove(_beside(target))


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.vectors")


def _vectors_beside(target: Path, encoder: Encoder) -> KnownVectors | None:
    folder = _beside(target)
    known = read_json(folder / "vectors.json")
    try:
        if known is None or known["about"] != about_vectors(encoder):
            return None
        if record_file(folder / "vectors.npy").sha256 != known["sha256"]:
            log.warning("%s is damaged: its vectors are not taken over", folder)
            return None
        vectors: Floats = np.load(folder / "vectors.npy", mmap_mode="r")
        return KnownVectors({digest: row for row, digest in enumerate(known["contents"])}, lambda rows: vectors[rows])
    except (OSError, KeyError, ValueError) as error:
        log.info("no vectors are taken over from %s: %s", folder, error)
        return None


def build_lexical(
    stage: Stage, corpus: Corpus, progress: Progress, stopwords: frozenset[str] | None = None
) -> LexicalIndex:
    """The BM25 index over the passages. stopwords: None = by the languages that they are written in."""
    folder = stage.path / "lexical"
    if not stage.finished:
        if stopwords is None:
            stopwords = stopwords_for(corpus.languages)
        save_lexical(corpus.chunks, folder, progress, stopwords=stopwords)
    return LexicalIndex.open(folder)


def save_lexical(
    chunks: Sequence[Chunk],
    folder: Path,
    progress: Progress = no_progress,
    *,
    stopwords: frozenset[str] | None = None,
) -> None:
    """The BM25 index over passages, written into a folder. stopwords: None = by the languages that they are written
    in."""
    headings, texts = lexical_parts(chunks)
    if stopwords is None:
        stopwords = stopwords_for(languages_of(passages_of(chunks)))
    ids = [chunk.id for chunk in chunks]
    with work("lexical index", len(texts)):
        index = LexicalIndex.build(ids, texts, headings=headings, stopwords=stopwords, progress=progress)
        index.save(folder)


def lexical_parts(chunks: Sequence[Chunk]) -> tuple[Sequence[str], Sequence[str]]:
    """(headings, texts) of passages as the lexical index reads them, of masked ones too; made as they are read.

    The text is without link targets: a page that links to another one is not about what the address says.
    """
    return (
        Mapped(chunks, lambda chunk: " > ".join(chunk.heading_path)),
        Mapped(chunks, lambda chunk: _LINK_TARGET.sub("]", chunk.text)),
    )


def searcher_of(encoded: EncodedCorpus, lexical: LexicalIndex) -> Searcher:
    """Search over vectors at hand, exact, with the neutral fusion: what the fit measures with."""
    return Searcher(exact_index(encoded.corpus.ids, encoded.vectors), lexical, encoded.background, Fusion())


def build_index(
    stage: Stage,
    config: IndexConfig,
    encoded: EncodedCorpus,
    fingerprint: str,
    progress: Progress,
    lexical: Path,
    earlier: Path | None = None,
) -> None:
    """The index that ships, with the chunks' metadata for filters, as index/; beside it the postings that filters are
    looked up in, and background.npz. earlier: the folder of the index that it replaces with much the same vectors.

    Where the engine keeps the passages' words, they are those of the lexical index in this folder, in whose place
    lexical/ comes.
    """
    corpus, vectors = encoded.corpus, encoded.vectors
    ids, batch, engine = corpus.ids, 4096, engine_of(config.kind)
    words: PassageWords | None = None
    if engine.keeps_words(config):
        with work("lexical index", len(ids)):
            statistics, words = LexicalIndex.open(lexical).statistics()
            statistics.save(stage.path / "lexical")
    with open_index(
        config.kind,
        stage.path / "index",
        dim=vectors.shape[1],
        fingerprint=fingerprint,
        **engine.building(config, stage.scratch, (len(ids), vectors.shape[1]), earlier),
    ) as index:
        with work("index"):
            index.prepare(chunk.metadata for chunk in corpus.chunks)
        for start in range(0, len(ids), batch):
            stop = min(start + batch, len(ids))
            payloads = [dict(chunk.metadata) for chunk in corpus.chunks[start:stop]]
            with work("index", stop - start):
                rows = np.asarray(vectors[start:stop])
                if words is None:
                    index.upsert(ids[start:stop], rows, payloads)
                else:
                    keeping: WordEngine = index  # type: ignore[assignment]
                    keeping.upsert(ids[start:stop], rows, payloads, words.part(start, stop))
            progress("index", stop, len(ids))
        with work("index"):
            index.finish(config, progress)
            index.save()
    with work("filters", len(ids)):
        FieldPostings.build(map(shown_of, corpus.chunks)).save(stage.path / POSTINGS)
    background = encoded.background
    np.savez(
        stage.path / "background.npz",
        mean=background.mean,
        covariance=background.covariance,
        count=np.int64(background.count),
    )


def index_parts(built: Path) -> dict[str, Path]:
    """The parts of a retriever that `build_index` made in this folder."""
    names = ["index", "background.npz", POSTINGS, *(["lexical"] if (built / "lexical").is_dir() else [])]
    return {name: built / name for name in names}


def parts_of(path: Path) -> dict[str, Path]:
    """The parts of a saved retriever that a build on top of it starts from."""
    names = ["chunks.sqlite", "lexical", "model", "report"]
    return {name: path / name for name in (*names, *([RERANKER] if (path / RERANKER).is_dir() else []))}


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
    return (LEDGER, "index") if engine_of(config.kind).mutable else (LEDGER,)


# Queries on disk


def write_queries(path: Path, queries: Iterable[Query]) -> None:
    """One JSON object a line."""
    _write_lines(path, queries)


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


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """One JSON object a line."""
    _write_lines(path, examples)


def read_examples(path: Path) -> list[Example]:
    """What `write_examples` wrote."""
    from ragadapt.training import Example

    examples = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            values: dict[str, Any] = json.loads(line)
            values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
            examples.append(Example(**values))
    return examples


def _write_lines(path: Path, values: Iterable[Query | Example]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for value in values:
            file.write(json.dumps(asdict(value), ensure_ascii=False, default=float) + "\n")


def encode_query_texts(encoder: Encoder, queries: Sequence[Query], progress: Progress) -> dict[str, Floats]:
    """Query id → vector (d,)."""
    vectors = encoder.encode_queries([query.text for query in queries], progress=progress)
    return {query.id: vector for query, vector in zip(queries, vectors, strict=True)}


def rows_of(vectors: Mapping[str, Floats], queries: Sequence[Query]) -> Floats:
    """(Q, d) in the order of the queries."""
    rows: Floats = np.stack([vectors[query.id] for query in queries]) if queries else np.zeros((0, 1), np.float32)
    return rows
