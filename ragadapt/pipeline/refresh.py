"""refresh_documents(): new, changed and deleted documents into a retriever; only what is new is encoded.

read → compare by hash → cut what changed → encode what is new → lexical index → index → folder

The model and the fusion stay as `fit` left them. The result is what a fit on the same documents would hold: the same
chunks under the same ids in the same order. All of it is put in place at once, and the old folder is kept beside it.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragadapt.checks import checked_path
from ragadapt.config import FitConfig
from ragadapt.corpus import cut_documents
from ragadapt.corpus.sources import are_paths, describe_sources, known_labels, listed_sources, read_sources
from ragadapt.errors import (
    EmptyCorpus,
    FingerprintMismatch,
    InvalidInput,
    MissingExtra,
    StoreLocked,
)
from ragadapt.index import check_index
from ragadapt.lexical.index import saved_stopwords
from ragadapt.out_of_core import as_it_is, keep_all
from ragadapt.pipeline.corpus import Corpus, EncodedCorpus
from ragadapt.pipeline.stages import (
    build_index,
    build_lexical,
    commit_build,
    gather_vectors,
    index_parts,
    mutable_parts,
    parts_of,
    server_follows,
    stored_vectors,
    unread_ends,
)
from ragadapt.profiling import Clock
from ragadapt.search.fusion import Floats
from ragadapt.search.saved import missing_engine
from ragadapt.store.chunks import ChunkStore, DocumentRecord, document_hash
from ragadapt.store.workspace import Manifest, OpenedStore, Stage, Workspace, open_store, roll_back
from ragadapt.values import Chunk, Document, Progress, no_progress
from ragadapt.version import __version__

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder

log = logging.getLogger(__name__)

MUCH = 0.3  # share of the chunks changed since the fit from which a new fit is advised
_LISTED = 200  # unread documents that the manifest names


@dataclass(frozen=True, slots=True)
class DocumentChanges:
    """Documents by what became of them. moved: the same passages under another id. kept: not read, but left in.
    unread: known, still there, and not readable now, so that they stay as they were."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    moved: int = 0
    deleted: int = 0
    kept: int = 0
    unread: int = 0


@dataclass(frozen=True, slots=True)
class UnreadDocument:
    """A known document that is there and cannot be read now. It stays as it was."""

    id: str
    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class ChunkChanges:
    """Chunks by what became of them. added: with content that is new. reused: content that was there under another
    id, so that its vector was taken over. deleted: old chunks whose content is gone. encoded: passages that the model
    had to read, in an interrupted call before this one too; equal ones are read once."""

    added: int = 0
    reused: int = 0
    kept: int = 0
    deleted: int = 0
    encoded: int = 0


@dataclass(frozen=True)
class Refreshed:
    """A finished refresh, or with dry_run what it would do (then encoded counts what is new, and nothing was written).

    changed: False if the documents are those of the retriever, and nothing was replaced. skipped: what could not be
    read, each with source and reason. unread: the known documents among it, which stay as they were. reused: stages
    taken over from an interrupted run. advice: a sentence where so much has changed that a new fit is advised, else "".
    """

    path: Path
    changed: bool
    documents: DocumentChanges
    chunks: ChunkChanges
    skipped: tuple[Any, ...] = ()
    unread: tuple[UnreadDocument, ...] = ()
    reused: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    advice: str = ""


def refresh_documents(
    retriever: str | Path,
    sources: Sequence[Any],
    *,
    keep_missing: bool = False,
    delete_missing: bool = False,
    dry_run: bool = False,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Refreshed:
    """Bring the retriever up to date with its sources, encoding only passages that are new.

    sources: as for `fit`, all of them: a document that is not among them is deleted. What is among them and cannot be
    read (any more) stays as it was, and the result names it. keep_missing: leave such
    documents in, to add a few files. delete_missing: delete even where more than half of the documents would vanish,
    or where sources lacks a folder that the retriever was made from. device: where passages are encoded; what the
    fit ran on is no demand. Killed, it goes on where it was when called
    again. Raises NotARetriever, EmptyCorpus, InvalidInput (nothing is changed then), StoreLocked, FingerprintMismatch.
    """
    if keep_missing and delete_missing:
        raise InvalidInput("keep_missing and delete_missing contradict each other. Give one of them.")
    sources = listed_sources(sources)
    clock = Clock()
    opened = open_store(retriever)
    run = _Refresh(opened, device, clock, progress)
    try:
        check_index(run.config.index)
    except MissingExtra as error:
        raise missing_engine(opened.path, opened.manifest, error) from error
    with clock("read"):
        documents, skipped, given = run.read(sources)
        run.keep = keep_all(documents, given, opened.path)
    with clock("compare"):
        plan = run.plan(documents, given, skipped, keep_missing)
        if not keep_missing and not delete_missing:
            _refuse_loss(plan, opened.manifest, sources)
    done = Refreshed(
        opened.path, plan.changed, plan.changes, plan.chunk_changes, tuple(skipped), plan.unread, (), clock.seconds
    )
    if not plan.changed or dry_run:
        return done
    with Workspace.open(opened.path, {"command": "refresh"}) as work:
        if opened.replaced():
            raise StoreLocked(f"{opened.path} was replaced while its sources were read. Run the same command again.")
        advice = run.apply(work, plan)
    counts = replace(plan.chunk_changes, encoded=run.encoded)
    return replace(done, chunks=counts, reused=tuple(run.reused), seconds=clock.seconds, advice=advice)


def rollback(retriever: str | Path) -> Manifest:
    """Put the folder that the last fit, index or refresh replaced back; a second call returns. The feedback stays.

    Raises StoreError where nothing is kept, StoreCorrupt, StoreLocked.
    """
    path = checked_path(retriever, "The retriever's folder").resolve()
    with server_follows(path):
        return roll_back(path)


@dataclass(frozen=True)
class _RefreshPlan:
    """What a refresh will put in place: the documents with all chunks in order, and what that changes.

    missing: ids of documents that were not among the sources; vanished: those of them that did not merely move.
    unread: documents that are there and cannot be read, and stay.
    """

    documents: tuple[Document | DocumentRecord, ...]
    chunks: tuple[Chunk, ...]
    old: dict[str, str]  # chunk id → content hash in the present folder
    changes: DocumentChanges
    chunk_changes: ChunkChanges
    changed: bool
    missing: tuple[str, ...]
    vanished: int
    known: int  # documents in the present folder
    unread: tuple[UnreadDocument, ...]


class _Refresh:
    """One refresh at work."""

    def __init__(self, opened: OpenedStore, device: str, clock: Clock, progress: Progress) -> None:
        self.opened = opened
        self.path = opened.path
        self.device = device
        self.manifest = opened.manifest
        self.config = FitConfig.build(dict(opened.manifest.configuration))
        self.clock = clock
        self.progress = progress
        self.reused: list[str] = []
        self.encoded = 0
        self.keep: Callable[[Any], Any] = as_it_is  # what is done with documents and chunks to hold them
        self.chunked = bool(opened.manifest.sections.get("sources", {}).get("chunked", False))
        self._encoder: Encoder | None = None

    @property
    def encoder(self) -> Encoder:
        """Loaded when something has to be cut or encoded, not before."""
        if self._encoder is None:
            from ragadapt.encoder import Encoder

            precision = self.config.encoder.precision
            self.opened.check("model")
            with self.clock("load model"):
                encoder = Encoder.open(self.path / "model", device=self.device, precision=precision)
            if encoder.fingerprint != self.manifest.fingerprint:
                raise FingerprintMismatch(
                    f"{self.path} was built with encoder {self.manifest.fingerprint[:12]}, but its model folder holds "
                    f"{encoder.fingerprint[:12]}. Rebuild the vectors with: ragadapt index {self.path} --rebuild"
                )
            self._encoder = encoder
        return self._encoder

    # What is to be done

    def read(self, sources: Sequence[Any]) -> tuple[list[Document], list[Any], list[Chunk] | None]:
        """The sources, read as the fit read them."""
        if self.chunked and are_paths(sources):
            raise InvalidInput(
                f"{self.path} was made from passages that were cut already (chunked=True), and files have to be cut. "
                "Pass such passages, or build the retriever anew."
            )
        labels = known_labels(self.manifest.sections.get("sources", {}), sources)
        try:
            return read_sources(sources, self.config.read, self.chunked, self.progress, labels)
        except EmptyCorpus as error:
            with ChunkStore.open(self.path / "chunks.sqlite") as store:
                if not _unread(error.skipped, store.documents(), []):
                    raise
            return [], list(error.skipped), None

    def plan(
        self,
        documents: Sequence[Document],
        given: Sequence[Chunk] | None,
        skipped: Sequence[Any],
        keep_missing: bool,
    ) -> _RefreshPlan:
        """Compare with what is there, and cut what changed."""
        self.opened.check("chunks.sqlite")
        with ChunkStore.open(self.path / "chunks.sqlite") as store:
            records = {record.id: record for record in store.documents()}
            old_chunks: dict[str, list[Chunk]] = {}
            for chunk in store:
                old_chunks.setdefault(chunk.document_id, []).append(self.keep(chunk))
        # Another version may cut otherwise, and a folder half of which is cut so is what no fit would give.
        same_cut = given is None and self.manifest.sections.get("cut_by") == __version__
        same = {d.id for d in documents if d.id in records and records[d.id].content_hash == document_hash(d)}
        new_chunks = self._cut([d for d in documents if d.id not in same or not same_cut], given)
        read = {document.id for document in documents}
        as_before = [records[id] for id in (*old_chunks, *(id for id in records if id not in old_chunks))]
        unread = _unread(skipped, as_before, documents)
        missing = [id for id in records if id not in read and id not in unread]
        left = [records[id] for id in missing] if keep_missing else []
        # In the order of a fit on the same documents: what cannot be read stands where it stood, the rest comes last.
        order: list[Document | DocumentRecord] = [*_with_unread(documents, as_before, unread), *left]
        chunks = [
            chunk for d in order for chunk in (new_chunks[d.id] if d.id in new_chunks else old_chunks.get(d.id, ()))
        ]
        if not chunks:
            raise EmptyCorpus("No document with any text would be left. Delete the folder if that is what you want.")
        old = {chunk.id: chunk.content_hash for chunks in old_chunks.values() for chunk in chunks}
        added = [document.id for document in documents if document.id not in records]
        moved = 0 if keep_missing else _moved(added, missing, new_chunks, old_chunks)
        changes = DocumentChanges(
            added=len(added) - moved,
            changed=sum(document.id in records and document.id not in same for document in documents),
            unchanged=len(same),
            moved=moved,
            deleted=0 if keep_missing else len(missing) - moved,
            kept=len(left),
            unread=len(unread),
        )
        before = [chunk for document in old_chunks.values() for chunk in document]
        return _RefreshPlan(
            documents=tuple(order),
            chunks=tuple(chunks),
            old=old,
            changes=changes,
            chunk_changes=_compare(old, chunks),
            changed=len(same) + len(left) + len(unread) < max(len(order), len(records))
            or [*chunks] != _in_order(before, order),
            missing=tuple(missing),
            vanished=len(missing) - moved,
            known=len(records),
            unread=tuple(unread.values()),
        )

    def _cut(self, documents: Sequence[Document], given: Sequence[Chunk] | None) -> dict[str, list[Chunk]]:
        """Document id → its chunks."""
        found: dict[str, list[Chunk]] = {document.id: [] for document in documents}
        cut: Iterable[Chunk]
        if given is not None:
            cut = [chunk for chunk in given if chunk.document_id in found]
        elif documents:
            limit = self.encoder.passage_room
            count = self.encoder.count_tokens
            cut = cut_documents(documents, self.config.chunk, count, limit, progress=self.progress)
        else:
            cut = []
        for chunk in cut:
            found[chunk.document_id].append(self.keep(chunk))
        return found

    # Doing it

    def apply(self, work: Workspace, plan: _RefreshPlan) -> str:
        """Build the new folder stage by stage and put it in place; the advice, if any."""
        corpus = Corpus.of(plan.chunks)
        config = self.config
        base = {"build": self.manifest.build_id}
        digests = [
            record.content_hash if isinstance(record, DocumentRecord) else document_hash(record)
            for record in plan.documents
        ]
        content = [[document.id, digest] for document, digest in zip(plan.documents, digests, strict=True)]
        cut = [[chunk.id, chunk.content_hash] for chunk in plan.chunks]
        with self.stage(work, "refresh-chunks", base | {"documents": content, "chunks": cut}) as stage:
            if not stage.finished:
                with ChunkStore.create(stage.path / "chunks.sqlite") as store:
                    store.add(plan.documents, plan.chunks)
        del digests, content, cut  # a few hundred bytes for every passage
        chunks = stage.path / "chunks.sqlite"
        after = base | {"after": stage.digest}
        with self.stage(work, "refresh-vectors", after | {"encoder": self.manifest.fingerprint}) as stage:
            vectors = self.vectors(stage, plan)
        with self.stage(work, "refresh-lexical", after) as stage:
            # As the fit left them, like the mix that was learnt with them.
            build_lexical(stage, corpus, self.progress, saved_stopwords(self.path / "lexical"))
        lexical = stage.path / "lexical"
        index = config.index.deciding()
        with self.stage(work, "refresh-index", after | {"index": index}) as stage:
            if not stage.finished:
                build_index(
                    stage,
                    config.index,
                    EncodedCorpus(corpus, vectors),
                    self.manifest.fingerprint,
                    self.progress,
                    lexical,
                    self.path / "index",
                )
        sections, advice = _sections(self.manifest, plan)
        manifest = replace(self.manifest, sections=sections, mutable=mutable_parts(config.index))
        new = {"chunks.sqlite": chunks, "lexical": lexical, **index_parts(stage.path)}
        with self.clock("commit"):
            commit_build(work, manifest, {**parts_of(self.path), **new})
        if advice:
            log.warning("%s", advice)
        return advice

    @contextmanager
    def stage(self, work: Workspace, name: str, key: Mapping[str, Any]) -> Iterator[Stage]:
        with self.clock(name.removeprefix("refresh-")), work.stage(name, key) as stage:
            if stage.finished:
                self.reused.append(name)
            yield stage

    def vectors(self, stage: Stage, plan: _RefreshPlan) -> Floats:
        """(n, d) in the order of the chunks: from the old index where the content was there, else encoded."""
        path = stage.path / "vectors.npy"

        def encode(passages: Sequence[str]) -> Floats:
            if self.chunked and (note := unread_ends(passages, self.encoder)):
                log.warning("%s", note)
            return self.encoder.encode_to(passages, stage.scratch / "new.npy", progress=self.progress)

        if not stage.finished:
            with stored_vectors(self.opened, plan.old, plan.chunks, stage.scratch) as known:
                encoded = gather_vectors(path, plan.chunks, known, encode)
            (stage.path / "encoded.json").write_text(json.dumps(encoded), encoding="utf-8")
        self.encoded = json.loads((stage.path / "encoded.json").read_text(encoding="utf-8"))
        vectors: Floats = np.load(path, mmap_mode="r")
        return vectors


def _unread(
    skipped: Sequence[Any], known: Sequence[DocumentRecord], documents: Sequence[Document]
) -> dict[str, UnreadDocument]:
    """Id → the known document that is there and cannot be read: its file, its folder, or a row in its place.

    known: as they stood in the present folder. documents: what was read. A damaged row does not say which document it
    was: it is taken for the known one that stood between the same neighbours and is missing, for all of them where
    several are.
    """
    reasons = {item.source: item.reason for item in skipped if not item.left_out and item.row is None}
    rows: dict[str, dict[int, str]] = {}  # row file → rows read before a damaged one → why
    for item in skipped:
        if not item.left_out and item.row is not None:
            rows.setdefault(item.source.rpartition(":")[0], {}).setdefault(item.row, item.reason)
    sources = {record.source for record in known}
    folders = {item.source: item.reason for item in skipped if item.unlisted}
    everything = next((why for name, why in folders.items() if not name.endswith("/") and name not in sources), "")
    read = {document.id for document in documents}
    found: dict[str, UnreadDocument] = {}
    by_file: dict[str, list[str]] = {}
    for record in known:
        by_file.setdefault(record.source, []).append(record.id)
        if record.id not in read:
            parents = (record.source[: at + 1] for at, letter in enumerate(record.source) if letter == "/")
            reason = reasons.get(record.source) or next((folders[p] for p in parents if p in folders), everything)
            if reason:
                found[record.id] = UnreadDocument(record.id, record.source, reason)
    for name, damaged in rows.items():
        old = by_file.get(name, [])
        place = {id: at for at, id in enumerate(old)}
        now = [place.get(document.id, -1) for document in documents if document.source == name]
        for before, reason in damaged.items():
            first = next((at for at in reversed(now[:before]) if at >= 0), -1)
            last = next((at for at in now[before:] if at >= 0), len(old))
            for id in old[first + 1 : last] if first < last else old:
                if id not in read:
                    found.setdefault(id, UnreadDocument(id, name, reason))
    return found


def _with_unread(
    documents: Sequence[Document], known: Sequence[DocumentRecord], unread: Mapping[str, UnreadDocument]
) -> list[Document | DocumentRecord]:
    """The documents, each unread one behind the one that it stood behind."""
    following: dict[str, list[DocumentRecord]] = {}
    read, before = {document.id for document in documents}, ""
    for record in known:
        if record.id in unread:
            following.setdefault(before, []).append(record)
        elif record.id in read:
            before = record.id
    placed: list[Document | DocumentRecord] = list(following.get("", ()))
    for document in documents:
        placed += [document, *following.get(document.id, ())]
    return placed


def _moved(
    added: Sequence[str],
    missing: Sequence[str],
    new: Mapping[str, Sequence[Chunk]],
    old: Mapping[str, Sequence[Chunk]],
) -> int:
    """How many added documents consist of the passages of a missing one."""

    def contents(ids: Sequence[str], chunks: Mapping[str, Sequence[Chunk]]) -> Counter[tuple[str, ...]]:
        return Counter(tuple(chunk.content_hash for chunk in chunks[id]) for id in ids if chunks.get(id))

    return (contents(added, new) & contents(missing, old)).total()


def _compare(old: Mapping[str, str], chunks: Sequence[Chunk]) -> ChunkChanges:
    contents = set(old.values())
    now = [chunk.content_hash for chunk in chunks]
    kept = sum(old.get(chunk.id) == digest for chunk, digest in zip(chunks, now, strict=True))
    added = sum(digest not in contents for digest in now)
    gone = contents - set(now)
    return ChunkChanges(
        added=added,
        reused=len(chunks) - kept - added,
        kept=kept,
        deleted=sum(digest in gone for digest in old.values()),
        encoded=len(set(now) - contents),
    )


def _in_order(chunks: Sequence[Chunk], documents: Sequence[Document | DocumentRecord]) -> list[Chunk]:
    by_document: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        by_document.setdefault(chunk.document_id, []).append(chunk)
    return [chunk for document in documents for chunk in by_document.get(document.id, ())]


def _refuse_loss(plan: _RefreshPlan, manifest: Manifest, sources: Sequence[Any]) -> None:
    """Stop before documents are deleted that were probably only not named. Raises InvalidInput."""
    if not plan.vanished:
        return
    named = ", ".join(plan.missing[:3]) + (" …" if len(plan.missing) > 3 else "")
    roots = manifest.sections.get("sources", {}).get("roots", [])
    choose = (
        "Name all sources of the retriever, or keep what is missing (--keep-missing, keep_missing=True), or confirm "
        "that it goes (--delete-missing, delete_missing=True). Nothing was changed."
    )
    if roots and are_paths(sources):
        given = describe_sources(sources, False)["roots"]
        lacking = [root["name"] for root in roots if root not in given]
        fewer = any(
            sum(r["folder"] is kind for r in given) < sum(r["folder"] is kind for r in roots) for kind in (True, False)
        )
        if lacking and fewer:
            raise InvalidInput(
                f"{plan.vanished} of {plan.known} documents are not in the sources ({named}), and the retriever was "
                f"made from {', '.join(root['name'] for root in roots)}, of which {', '.join(lacking)} was not named. "
                f"{choose}"
            )
    if 2 * plan.vanished > plan.known:
        raise InvalidInput(
            f"{plan.vanished} of {plan.known} documents are not in the sources any more ({named}): more than half. "
            f"{choose}"
        )


def _sections(manifest: Manifest, plan: _RefreshPlan) -> tuple[dict[str, Any], str]:
    """The manifest's sections after this refresh, and advice where much has changed since the fit."""
    sections = dict(manifest.sections)
    earlier = sections.get("refresh", {})
    at_fit = int(earlier.get("chunks_at_fit", sections.get("chunks", len(plan.old))))
    changes = plan.chunk_changes
    changed = int(earlier.get("changed_since_fit", 0)) + changes.added + changes.deleted
    sections |= {
        "chunks": len(plan.chunks),
        "documents": len(plan.documents),
        "cut_by": __version__,
        "refresh": {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "number": int(earlier.get("number", 0)) + 1,
            "documents": asdict(plan.changes),
            "unread": [asdict(item) for item in plan.unread[:_LISTED]],
            "chunks": asdict(changes),
            "chunks_at_fit": at_fit,
            "changed_since_fit": changed,
        },
    }
    if changed <= MUCH * at_fit:
        return sections, ""
    share = f"{changed / max(at_fit, 1):.0%}"
    return sections, (
        f"{changed:,} passages were added or deleted since the fit on {at_fit:,} ({share}): the mix of meaning and "
        "words, and the model if it was trained, were learnt on other documents. Consider a new fit; its report says "
        "what it gains."
    )
