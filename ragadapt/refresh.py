"""refresh_documents(): new, changed and deleted documents into a retriever; only what is new is encoded.

read → compare by hash → cut what changed → encode what is new → lexical index → index → folder

The model and the fusion stay as `fit` left them. The result is what a fit on the same documents would hold: the same
chunks under the same ids in the same order. All of it is put in place at once, and the old folder is kept beside it.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragadapt.chunks import ChunkStore, DocumentRecord, document_hash
from ragadapt.config import FitConfig
from ragadapt.corpus import chunk_documents
from ragadapt.corpus.sources import are_paths, describe_sources, known_labels, read_sources
from ragadapt.errors import (
    EmptyCorpus,
    FingerprintMismatch,
    IndexCorrupt,
    IndexFault,
    IndexUnreachable,
    InvalidInput,
    StoreCorrupt,
    StoreLocked,
)
from ragadapt.fusion import Floats
from ragadapt.index import VectorIndex, open_index
from ragadapt.profiling import Clock
from ragadapt.stages import (
    Corpus,
    build_index,
    build_lexical,
    check_index,
    commit_build,
    mutable_parts,
    server_follows,
    unread_ends,
)
from ragadapt.store import Manifest, OpenedStore, Stage, Workspace, open_store, roll_back
from ragadapt.values import Chunk, Document, Progress, no_progress
from ragadapt.version import __version__

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder

log = logging.getLogger(__name__)

MUCH = 0.3  # share of the chunks changed since the fit from which a new fit is advised
_BATCH = 4096  # vectors read from the old index at a time


@dataclass(frozen=True, slots=True)
class DocumentChanges:
    """Documents by what became of them. moved: the same passages under another id. kept: not read, but left in."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    moved: int = 0
    deleted: int = 0
    kept: int = 0


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
    read, each with source and reason. reused: stages taken over from an interrupted run. advice: a sentence where so
    much has changed that a new fit is advised, else "".
    """

    path: Path
    changed: bool
    documents: DocumentChanges
    chunks: ChunkChanges
    skipped: tuple[Any, ...] = ()
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
    progress: Progress = no_progress,
) -> Refreshed:
    """Bring the retriever up to date with its sources, encoding only passages that are new.

    sources: as for `fit`, all of them: a document that is not among them is deleted. keep_missing: leave such
    documents in, to add a few files. delete_missing: delete even where more than half of the documents would vanish,
    or where sources lacks a folder that the retriever was made from. Killed, it goes on where it was when called
    again. Raises NotARetriever, EmptyCorpus, InvalidInput (nothing is changed then), StoreLocked, FingerprintMismatch.
    """
    if keep_missing and delete_missing:
        raise InvalidInput("keep_missing and delete_missing contradict each other. Give one of them.")
    if isinstance(sources, (str, Path)):
        sources = [sources]
    clock = Clock()
    opened = open_store(retriever)
    run = _Refresh(opened, clock, progress)
    check_index(run.config.index)
    with clock("read"):
        documents, skipped, given = run.read(sources)
    with clock("compare"):
        plan = run.plan(documents, given, keep_missing)
        if not keep_missing and not delete_missing:
            _refuse_loss(plan, opened.manifest, sources)
    if not plan.changed or dry_run:
        return Refreshed(opened.path, plan.changed, plan.changes, plan.chunk_changes, tuple(skipped), (), clock.seconds)
    with Workspace.open(opened.path, {"command": "refresh"}) as work:
        if opened.replaced():
            raise StoreLocked(f"{opened.path} was replaced while its sources were read. Run the same command again.")
        advice = run.apply(work, plan)
    counts = replace(plan.chunk_changes, encoded=run.encoded)
    return Refreshed(opened.path, True, plan.changes, counts, tuple(skipped), tuple(run.reused), clock.seconds, advice)


def rollback(retriever: str | Path) -> Manifest:
    """Put the folder that the last fit, index or refresh replaced back; a second call returns. The feedback stays.

    Raises StoreError where nothing is kept, StoreCorrupt, StoreLocked.
    """
    path = Path(retriever).resolve()
    with server_follows(path):
        return roll_back(path)


@dataclass(frozen=True)
class _Plan:
    """What a refresh will put in place: the documents with all chunks in order, and what that changes.

    missing: ids of documents that were not among the sources; vanished: those of them that did not merely move.
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


class _Refresh:
    """One refresh at work."""

    def __init__(self, opened: OpenedStore, clock: Clock, progress: Progress) -> None:
        self.opened = opened
        self.path = opened.path
        self.manifest = opened.manifest
        self.config = FitConfig.build(dict(opened.manifest.configuration))
        self.clock = clock
        self.progress = progress
        self.reused: list[str] = []
        self.encoded = 0
        self.chunked = bool(opened.manifest.sections.get("sources", {}).get("chunked", False))
        self._encoder: Encoder | None = None

    @property
    def encoder(self) -> Encoder:
        """Loaded when something has to be cut or encoded, not before."""
        if self._encoder is None:
            from ragadapt.encoder import Encoder

            settings = self.config.encoder
            self.opened.check("model")
            with self.clock("load model"):
                encoder = Encoder.open(self.path / "model", device=settings.device, precision=settings.precision)
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
        return read_sources(sources, self.config.read, self.chunked, self.progress, labels)

    def plan(self, documents: Sequence[Document], given: Sequence[Chunk] | None, keep_missing: bool) -> _Plan:
        """Compare with what is there, and cut what changed."""
        self.opened.check("chunks.sqlite")
        with ChunkStore.open(self.path / "chunks.sqlite") as store:
            records = {record.id: record for record in store.documents()}
            old_chunks: dict[str, list[Chunk]] = {}
            for chunk in store:
                old_chunks.setdefault(chunk.document_id, []).append(chunk)
        # Another version may cut otherwise, and a folder half of which is cut so is what no fit would give.
        same_cut = given is None and self.manifest.sections.get("cut_by") == __version__
        same = {d.id for d in documents if d.id in records and records[d.id].content_hash == document_hash(d)}
        new_chunks = self._cut([d for d in documents if d.id not in same or not same_cut], given)
        read = {document.id for document in documents}
        missing = [id for id in records if id not in read]
        left = [records[id] for id in missing] if keep_missing else []
        # In the order of a fit on the same documents; those that were not read come last.
        order: list[Document | DocumentRecord] = [*documents, *left]
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
        )
        before = [chunk for document in old_chunks.values() for chunk in document]
        return _Plan(
            documents=tuple(order),
            chunks=tuple(chunks),
            old=old,
            changes=changes,
            chunk_changes=_compare(old, chunks),
            changed=len(same) + len(left) < max(len(order), len(records)) or [*chunks] != _in_order(before, order),
            missing=tuple(missing),
            vanished=len(missing) - moved,
            known=len(records),
        )

    def _cut(self, documents: Sequence[Document], given: Sequence[Chunk] | None) -> dict[str, list[Chunk]]:
        """Document id → its chunks."""
        found: dict[str, list[Chunk]] = {document.id: [] for document in documents}
        if given is not None:
            cut = [chunk for chunk in given if chunk.document_id in found]
        elif documents:
            limit = self.encoder.passage_room
            count = self.encoder.count_tokens
            cut = chunk_documents(documents, self.config.chunk, count, limit, progress=self.progress)
        else:
            cut = []
        for chunk in cut:
            found[chunk.document_id].append(chunk)
        return found

    # Doing it

    def apply(self, work: Workspace, plan: _Plan) -> str:
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
        chunks = stage.path / "chunks.sqlite"
        after = base | {"after": stage.digest}
        with self.stage(work, "refresh-vectors", after | {"encoder": self.manifest.fingerprint}) as stage:
            vectors = self.vectors(stage, plan)
        with self.stage(work, "refresh-lexical", after) as stage:
            build_lexical(stage, corpus, self.progress)
        lexical = stage.path / "lexical"
        index = config.index.model_dump(mode="json")
        with self.stage(work, "refresh-index", after | {"index": index}) as stage:
            if not stage.finished:
                build_index(stage, config.index, corpus, vectors, self.manifest.fingerprint, self.progress)
        sections, advice = _sections(self.manifest, plan)
        manifest = replace(self.manifest, sections=sections, mutable=mutable_parts(config.index))
        parts = {
            "chunks.sqlite": chunks,
            "lexical": lexical,
            "index": stage.path / "index",
            "background.npz": stage.path / "background.npz",
            "model": self.path / "model",
            "report": self.path / "report",
        }
        with self.clock("commit"):
            commit_build(work, manifest, parts)
        if advice:
            log.warning("%s", advice)
        return advice

    @contextmanager
    def stage(self, work: Workspace, name: str, key: Mapping[str, Any]) -> Iterator[Stage]:
        with self.clock(name.removeprefix("refresh-")), work.stage(name, key) as stage:
            if stage.finished:
                self.reused.append(name)
            yield stage

    def vectors(self, stage: Stage, plan: _Plan) -> Floats:
        """(n, d) in the order of the chunks: from the old index where the content was there, else encoded."""
        path = stage.path / "vectors.npy"
        if not stage.finished:
            wanted: dict[str, list[int]] = {}  # content hash → rows
            for row, chunk in enumerate(plan.chunks):
                wanted.setdefault(chunk.content_hash, []).append(row)
            with ExitStack() as stack:
                index = self._old_index(stage, stack)
                source = _sources_of(plan.old, wanted, index)
                new = [digest for digest in wanted if digest not in source]
                passages = [plan.chunks[wanted[digest][0]].passage for digest in new]
                encoded = None
                if new:
                    if self.chunked and (note := unread_ends(passages, self.encoder)):
                        log.warning("%s", note)
                    encoded = self.encoder.encode_to(passages, stage.scratch / "new.npy", progress=self.progress)
                dim = index.dim if index is not None else self.encoder.dim
                rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(plan.chunks), dim))
                for at, digest in enumerate(new):
                    assert encoded is not None
                    rows[wanted[digest]] = encoded[at]
                taken = list(source)
                for start in range(0, len(taken), _BATCH):
                    batch = taken[start : start + _BATCH]
                    assert index is not None
                    for digest, vector in zip(batch, index.vectors([source[d] for d in batch]), strict=True):
                        rows[wanted[digest]] = vector
                rows.flush()
            (stage.path / "encoded.json").write_text(json.dumps(len(new)), encoding="utf-8")
        self.encoded = json.loads((stage.path / "encoded.json").read_text(encoding="utf-8"))
        vectors: Floats = np.load(path, mmap_mode="r")
        return vectors

    def _old_index(self, stage: Stage, stack: ExitStack) -> VectorIndex | None:
        """The present index; None where it cannot be read, and everything has to be encoded."""
        folder = self.path / "index"
        try:
            self.opened.check("index")
            try:
                index = open_index(folder=folder, fingerprint=self.manifest.fingerprint)
            except (IndexUnreachable, IndexCorrupt, FingerprintMismatch):
                raise
            except IndexFault as error:  # an embedded engine has one user at a time, and that one is searching
                log.info("%s; reading a copy", error)
                copy = stage.scratch / "index"
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(folder, copy)
                index = open_index(folder=copy, fingerprint=self.manifest.fingerprint)
        except IndexUnreachable:
            raise  # the new one is to be built there too
        except (IndexFault, StoreCorrupt) as error:
            log.warning("The vectors of %s cannot be taken over (%s) All passages are encoded again.", folder, error)
            return None
        return stack.enter_context(index)


def _sources_of(old: Mapping[str, str], wanted: Mapping[str, Any], index: VectorIndex | None) -> dict[str, str]:
    """Content hash → the id in the old index that has its vector."""
    if index is None:
        return {}
    candidates = {digest: id for id, digest in old.items() if digest in wanted}
    ids = list(candidates.values())
    there = {id for id, found in zip(ids, index.has(ids), strict=True) if found}
    return {digest: id for digest, id in candidates.items() if id in there}


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


def _refuse_loss(plan: _Plan, manifest: Manifest, sources: Sequence[Any]) -> None:
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


def _sections(manifest: Manifest, plan: _Plan) -> tuple[dict[str, Any], str]:
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
