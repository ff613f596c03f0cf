"""The saved folder: a manifest with the hash of every file, replaced as a whole or not at all.

    parent/
      retriever/            what readers open; `ragadapt.json` is its manifest
      .retriever.build/     stages of a build that has not been committed yet; survives a kill
      .retriever.previous/  the old folder, for the moment between two renames
      .retriever.rollback/  the folder that the last commit replaced, where it was told to keep it
      .retriever.answers.jsonl   a language model's answers, for every later fit here; may be deleted at any time
      .retriever.vectors/   vectors of the base model that the folder does not hold; may be deleted at any time
      .retriever.lock       held by the one writer (an empty file; a run that commits nothing takes it away)
      .retriever.feedback.lock   held for each write to feedback.sqlite, and while a commit carries it over

All of them are siblings, so that every move is a rename within one file system. A commit renames the old
folder away and the new one in; if a kill falls between the two renames, whoever opens the folder next
finishes the move. Going back (`roll_back`) is a commit like any other, of the kept folder's files. On
Windows a folder with open files cannot be renamed: the commit then fails with StoreError, the old folder
stays, and the same command commits once the other program has closed it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from filelock import FileLock, Timeout

from ragadapt.checks import checked_path
from ragadapt.errors import (
    FormatTooNew,
    InvalidInput,
    NotARetriever,
    RagadaptError,
    StoreCorrupt,
    StoreError,
    StoreLocked,
)
from ragadapt.files import (
    REMEDY,
    FileRecord,
    Hashes,
    copy_file,
    copy_live,
    explain_full_disk,
    json_digest,
    link_or_copy,
    list_files,
    read_json,
    record_file,
    remove,
    rename,
    sync_folder,
    sync_path,
    sync_tree,
    to_json,
    write_text,
)
from ragadapt.version import __version__

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "ragadapt.json"
RERANKER = "reranker"  # folder of the re-ranker that was fitted with it
LEDGER = "feedback.sqlite"  # of every folder that has feedback; each commit carries it over
QUESTIONS = "questions"  # folder in report: what trained and judged it, but for crops
FEEDBACK_REPORT = "feedback-report"  # folder beside it: what tuning with the feedback found
Verify = Literal["none", "quick", "full"]
T = TypeVar("T")

_STAGE_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_SETTLE_SECONDS = 5.0  # far longer than two renames take
_LEDGER_SECONDS = 60.0  # far longer than one write of feedback takes


# Manifest ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `ragadapt.json` says. The caller fills the first group; `Workspace.commit` fills the second.

    licences: what → SPDX id or text, e.g. {"base": "apache-2.0"}. sections: free-form, JSON values, by
    part. mutable: files and folders that change in place after the build (feedback.sqlite, a Qdrant
    folder); they are neither hashed nor checked, SQLite's -wal and -shm files included.
    """

    fingerprint: str
    configuration: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    licences: Mapping[str, str] = field(default_factory=dict)
    sections: Mapping[str, Any] = field(default_factory=dict)
    mutable: tuple[str, ...] = ()

    replaced: str = ""  # build_id of the folder that this one replaced, if that one was to be kept
    format_version: int = FORMAT_VERSION
    library_version: str = __version__
    build_id: str = ""  # differs between any two commits
    created: str = ""  # ISO 8601, UTC; of the first build at this place
    updated: str = ""
    files: Mapping[str, FileRecord] = field(default_factory=dict)  # path relative to the folder, "/" between

    def to_json(self) -> str:
        """The text of `ragadapt.json`. Raises InvalidInput where a value is not JSON."""
        values = {name.name: getattr(self, name.name) for name in fields(self)}
        values["files"] = {path: record.to_json() for path, record in sorted(self.files.items())}
        # Through JSON once, so that the checksum is that of what a reader will parse (tuples, number keys).
        values = json.loads(to_json(values, "the manifest"))
        values["checksum"] = json_digest(values, "the manifest")
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: Path) -> Manifest:
        """Read what `to_json` wrote. where: named in errors. Raises StoreCorrupt, FormatTooNew."""
        rebuild = f"Restore {where.name} from a copy, or move {where.parent} away and build it again."
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StoreCorrupt(f"{where} is not valid JSON ({error}). {rebuild}") from error
        version = values.get("format_version") if isinstance(values, dict) else None
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise StoreCorrupt(f"{where} has format_version {version!r}, expected a positive number. {rebuild}")
        if version > FORMAT_VERSION:
            raise FormatTooNew(
                f"{where} has format {version}, this ragadapt ({__version__}) reads up to {FORMAT_VERSION}. "
                f"It was written by ragadapt {values.get('library_version')}: pip install --upgrade ragadapt"
            )
        expected = values.pop("checksum", None)
        found = json_digest(values, "the manifest")
        if expected != found:
            raise StoreCorrupt(f"{where} was altered: checksum {expected!r} written, {found!r} found. {rebuild}")
        try:
            values["mutable"] = tuple(values["mutable"])
            values["files"] = {path: FileRecord.from_json(record) for path, record in values["files"].items()}
            manifest = cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreCorrupt(f"{where} lacks or mistypes a field ({error}). {rebuild}") from error
        for path in (*manifest.files, *manifest.mutable):
            if not isinstance(path, str) or not _is_inside(path):
                raise StoreCorrupt(f"{where} lists {path!r}, which lies outside the folder. Do not use this folder.")
        return manifest


# Reading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenedStore:
    """A folder whose manifest has been read and checked. hashes: set by `load_store`; compared while it is loaded."""

    path: Path
    manifest: Manifest
    hashes: Hashes | None = None

    def check(self, *parts: str) -> None:
        """Compare these files and folders with their hashes now. Raises StoreCorrupt that names what differs."""
        chosen = {name: record for name, record in self.manifest.files.items() if _covers(parts, name)}
        _check_files(self.path, replace(self.manifest, files=chosen), "full")

    def replaced(self) -> bool:
        """True if a build was committed at this place since the manifest was read."""
        try:
            return _read_manifest(self.path).build_id != self.manifest.build_id
        except (OSError, RagadaptError):
            return True


def open_store(path: str | Path, verify: Verify = "quick") -> OpenedStore:
    """The folder's manifest, checked. quick: every file is there with its size; full: its hash too.

    Raises NotARetriever, FormatTooNew, StoreCorrupt (with the file, what was expected and found).
    """
    if verify not in ("none", "quick", "full"):
        raise InvalidInput(f"verify={verify!r}: must be 'none', 'quick' or 'full'.")
    path = checked_path(path, "The retriever's folder").resolve()
    trouble: StoreError = StoreLocked(f"{path} is replaced again and again. Open it when its writer is done.")
    misses = 0
    for _ in range(20):  # a reader that meets a commit starts over; nobody meets twenty in a row
        _settle(path)
        try:
            opened = OpenedStore(path, _read_manifest(path))
        except NotARetriever as error:
            # A commit may stand between its two renames, or have ended since. Look for the old folder first:
            # once that is gone, the new one is there. Three misses in a row are no coincidence.
            between = _previous(path).exists()
            misses += 1
            if misses == 3 and not between:
                raise
            trouble = error
            continue
        misses = 0
        try:
            _check_files(path, opened.manifest, verify)
        except StoreCorrupt as error:
            if path.exists() and not opened.replaced():
                raise
            trouble = error
        else:
            return opened
    raise trouble


def load_store(path: str | Path, load: Callable[[OpenedStore], T], verify: Verify = "quick") -> T:
    """What `load` makes of the folder, all of it from one and the same build.

    If a build is committed while load runs, its result is dropped and it runs again on the new folder. Files that are
    parsed whole are hashed before load starts, the others in a thread meanwhile: whoever serves what load made calls
    `opened.hashes.wait()` first. Where load fails and a file differs from its hash, that is what StoreCorrupt says.
    """
    for _ in range(20):
        opened = open_store(path, verify)
        try:
            hashes = Hashes(opened.path, opened.manifest.files)
        except StoreCorrupt:
            if opened.replaced():
                continue
            raise
        opened = replace(opened, hashes=hashes)
        try:
            loaded = load(opened)
        except BaseException as error:
            if isinstance(error, Exception) and opened.replaced():
                hashes.close()
                continue
            if not isinstance(error, (KeyboardInterrupt, SystemExit)):
                try:
                    hashes.wait()
                except StoreCorrupt as damage:
                    raise damage from error
            hashes.close()
            raise
        if not opened.replaced():
            return loaded
        hashes.close()
    raise StoreLocked(f"{path} was replaced again and again while it was being loaded. Load it again.")


def _read_manifest(path: Path) -> Manifest:
    try:
        text = (path / MANIFEST).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        make = f"Make one with: ragadapt fit DOCUMENTS -o {path}"
        if not path.exists():
            if _build(path).is_dir():
                make = "An unfinished build lies beside it: run the same fit command again and it resumes."
            raise NotARetriever(f"There is no folder {path}. {make}") from error
        if not path.is_dir():
            raise NotARetriever(f"{path} is a file, a retriever is a folder. {make}") from error
        raise NotARetriever(f"{path} has no {MANIFEST}, so it is not a retriever. {make}") from error
    except UnicodeDecodeError as error:
        raise StoreCorrupt(
            f"{path / MANIFEST} is not UTF-8 text ({error}). Restore it from a copy, or move {path} away and "
            f"build it again."
        ) from error
    except OSError as error:
        raise StoreError(f"{path / MANIFEST} cannot be read ({error}). Check its permissions.") from error
    return Manifest.from_json(text, path / MANIFEST)


def _check_files(path: Path, manifest: Manifest, verify: Verify) -> None:
    if verify == "none":
        return
    for name, expected in manifest.files.items():
        file = path / name
        try:
            found_file = file.stat()
            if not stat.S_ISREG(found_file.st_mode):
                raise StoreCorrupt(f"{file} is no file; the manifest expects {expected.size} bytes. {REMEDY}")
            size = found_file.st_size
            if size != expected.size:
                raise StoreCorrupt(f"{file} has {size} bytes, the manifest expects {expected.size}. {REMEDY}")
            if verify == "full" and (found := record_file(file).sha256) != expected.sha256:
                raise StoreCorrupt(f"{file} has sha256 {found}, the manifest expects {expected.sha256}. {REMEDY}")
        except FileNotFoundError as error:
            missing = f"{file} is missing; the manifest expects {expected.size} bytes. {REMEDY}"
            raise StoreCorrupt(missing) from error
        except OSError as error:
            raise StoreCorrupt(f"{file} cannot be read ({error}). {REMEDY}") from error


# Building ---------------------------------------------------------------------------------------------


class Stage:
    """One stage of a build.

    path: the folder for its outputs, empty unless `finished`. scratch: a folder for the stage's own
    checkpoints; it survives a kill while the stage's key is unchanged, and goes once the stage is finished.
    """

    def __init__(self, name: str, path: Path, scratch: Path, digest: str | None) -> None:
        self.name = name
        self.path = path
        self.scratch = scratch
        self.finished = digest is not None
        self._digest = digest

    @property
    def digest(self) -> str:
        """sha256 of the stage's key and outputs; part of the key of every stage that reads them."""
        if self._digest is None:
            raise StoreError(f"Stage {self.name!r} has no digest yet: it is known when its with-block ends.")
        return self._digest

    def _seal(self, digest: str) -> None:
        self.finished = True
        self._digest = digest


class Workspace:
    """The one writer of a folder: finished stages are kept across kills, the folder is replaced in one move.

        with Workspace.open("./retriever", {"command": "fit"}) as work:
            with work.stage("chunks", {"config": …}) as chunks:
                if not chunks.finished:
                    …write into chunks.path…
            with work.stage("train", {"config": …, "chunks": chunks.digest}) as train:
                …
            work.commit(Manifest(fingerprint=…), {"chunks.sqlite": chunks.path / "chunks.sqlite", "model": …})

    Leaving the block without a commit keeps the finished stages for the next attempt.
    """

    def __init__(self, target: Path, lock: FileLock, resumed: bool) -> None:
        self.target = target
        self.path = _build(target)
        self.resumed = resumed
        self._lock = lock
        self._open = True
        self._committed = False
        self._running: set[str] = set()

    @classmethod
    def open(cls, target: str | Path, key: Mapping[str, Any], wait_seconds: float = 1) -> Self:
        """Take the lock, heal what a kill left behind, and find the stages of an earlier attempt.

        key: what is being built (JSON values); recorded, and `resumed` says whether the attempt found had
        the same. wait_seconds: how long to wait for another writer. Raises StoreLocked, and StoreError if
        target holds something that ragadapt did not write.
        """
        target = checked_path(target, "The target").resolve()
        if not target.name:
            raise InvalidInput(f"{target} cannot be replaced as a whole. Name a folder inside it.")
        key_digest = json_digest(dict(key), "the workspace's key")
        _refuse_foreign(target)
        with explain_full_disk(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = _acquire(target, wait_seconds)
        try:
            with explain_full_disk(target):
                _heal(target)
                _refuse_foreign(target)  # once more: it may have appeared while we waited
                build = _build(target)
                about = build / "build.json"
                known = read_json(about)
                # Stage outputs of another version may mean something else, so they are not reused.
                version = [FORMAT_VERSION, __version__]
                if known is None or known.get("version") != version:
                    remove(build)
                (build / "stages").mkdir(parents=True, exist_ok=True)
                resumed = known is not None and known.get("key") == key_digest and build.is_dir()
                owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
                known = {"version": version, "key": key_digest, "owner": owner}
                write_text(about, to_json(known, about.name))
        except BaseException:
            _forget(lock)
            raise
        return cls(target, lock, resumed and any(build.glob("stages/*.done.json")))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock. Finished stages and what a stage had under way stay unless they were committed."""
        if not self._open:
            return
        self._open = False
        try:
            stages = self.path / "stages"
            kept = any(stages.glob("*.done.json")) or any(
                any(scratch.iterdir()) for scratch in stages.glob("*.scratch")
            )
            if self._committed or not kept:
                remove(self.path)
        except OSError as problem:
            log.warning("could not clean up %s: %s", self.path, problem)
        finally:
            if self._committed:
                self._lock.release()
            else:
                _forget(self._lock)

    def finished(self, name: str, key: Mapping[str, Any]) -> bool:
        """True if stage `name` was finished with this very key and its files are all there."""
        return self._finished(self._check_name(name), self._key_digest(name, key)) is not None

    @contextmanager
    def stage(self, name: str, key: Mapping[str, Any]) -> Iterator[Stage]:
        """Enter a stage; on leaving without an exception what it wrote is hashed, synced and marked finished.

        key: everything that decides the outputs (JSON values): the stage's configuration and the digests
        of the stages it reads. With another key than last time, or half written, it starts empty.
        """
        self._check_open()
        if self._check_name(name) in self._running:
            raise StoreError(f"Stage {name!r} is running. Enter it once.")
        key_digest = self._key_digest(name, key)
        folder, scratch = self.path / "stages" / name, self.path / "stages" / f"{name}.scratch"
        digest = self._finished(name, key_digest)
        stage = Stage(name, folder, scratch, digest)
        if stage.finished:
            log.info("stage %s: finished earlier, reused", name)
            yield stage
            return
        with explain_full_disk(self.target):
            marker, scratch_key = self._marker(name), self.path / "stages" / f"{name}.key.json"
            marker.unlink(missing_ok=True)
            remove(folder)
            if read_json(scratch_key) != {"key": key_digest}:
                remove(scratch)
                write_text(scratch_key, to_json({"key": key_digest}, name))
            folder.mkdir(parents=True)
            scratch.mkdir(exist_ok=True)
            self._running.add(name)
            try:
                yield stage
            finally:
                self._running.discard(name)
            records = {path: record_file(file) for path, file in list_files(folder)}
            sync_tree(folder)
            done = {
                "key": key_digest,
                "files": {path: {"size": r.size, "sha256": r.sha256} for path, r in records.items()},
            }
            # Last: its presence says that everything above has reached the disk.
            write_text(marker, to_json(done, name))
            remove(scratch)
        stage._seal(json_digest(done, name))

    def commit(
        self, manifest: Manifest, parts: Mapping[str, Path], carry: Sequence[str] = (), *, keep_rollback: bool = False
    ) -> Manifest:
        """Replace the target by a folder made of `parts`, in one move; the manifest as it was written.

        parts: path inside the folder → the file or folder that goes there (of a stage, or of the old target,
        which costs no copy where the file system has hard links). carry: mutable parts that are taken over
        from the old target as they are now, where it has them; SQLite files through a backup, so that a
        writer may be at work. From then until the new folder is in place, `ledger_lock` is held. Files in the
        old target that ragadapt did not write come along. The build's stages are gone afterwards.
        keep_rollback: the folder that is replaced stays beside the new one, for `roll_back`; what was kept
        there before goes.
        """
        self._check_open()
        if self._running:
            raise StoreError(f"Stage {min(self._running)!r} is not finished. Commit after its with-block.")
        for name in (*parts, *carry, *manifest.mutable):
            if not _is_inside(name) or name == MANIFEST:
                raise InvalidInput(f"Part {name!r}: must be a relative path inside the folder, not {MANIFEST}.")
        for name in carry:
            if not _covers(manifest.mutable, name) or name in parts:
                raise InvalidInput(f"carry={name!r}: must be listed in the manifest's mutable, and not in parts.")
        for name, source in parts.items():
            if not Path(source).exists():
                raise InvalidInput(f"Part {name!r}: there is nothing at {source}.")
        new = self.path / "new"
        old = _read_manifest(self.target) if (self.target / MANIFEST).is_file() else None
        with explain_full_disk(self.target):
            remove(new)
            new.mkdir(parents=True)
            for name, source in parts.items():
                self._place(Path(source), new / name, name, manifest.mutable)
            files = {path: record_file(file) for path, file in list_files(new) if not _covers(manifest.mutable, path)}
            self._check_reused(parts, files)
            written = replace(
                manifest,
                format_version=FORMAT_VERSION,
                library_version=__version__,
                build_id=uuid.uuid4().hex,
                replaced=old.build_id if old is not None and keep_rollback else "",
                created=old.created if old is not None else _now(),
                updated=_now(),
                files=files,
            )
            text = written.to_json()
            _keep_foreign(self.target, new, manifest.mutable)
            sync_tree(new)
            _put_away(self.target)  # what an earlier move could not
            with _holding_ledger(self.target) if carry else nullcontext():  # briefly: writers of feedback wait
                for name in carry:
                    copy_live(self.target / name, new / name)
                    sync_path(new / name)
                write_text(new / MANIFEST, text)
                sync_folder(self.path)
                _swap(new, self.target)
            _put_away(self.target)
        self._committed = True
        self.close()
        return Manifest.from_json(text, self.target / MANIFEST)

    def _place(self, source: Path, destination: Path, name: str, mutable: Sequence[str]) -> None:
        if source.is_dir():
            destination.mkdir(parents=True, exist_ok=True)
        # A hard link is safe for what nobody changes in place, and only between folders that are ours.
        places = (self.path, self.target, _rollback(self.target))
        ours = any(source.resolve().is_relative_to(place) for place in places)
        for path, file in list_files(source) if source.is_dir() else [("", source)]:
            to, inside = (destination / path, f"{name}/{path}") if path else (destination, name)
            to.parent.mkdir(parents=True, exist_ok=True)
            if ours and not file.is_symlink() and not _covers(mutable, inside):
                link_or_copy(file, to)
            else:
                copy_file(file, to)

    def _check_reused(self, parts: Mapping[str, Path], files: Mapping[str, FileRecord]) -> None:
        """What comes from a saved folder must still be what its manifest says: damage is not hashed anew."""
        known = {
            folder / path: record
            for folder in (self.target, _rollback(self.target))
            if (folder / MANIFEST).is_file()
            for path, record in _read_manifest(folder).files.items()
        }
        for name, source in parts.items():
            source = Path(source).resolve()
            for old, expected in known.items():
                if old.is_relative_to(source):
                    inside = old.relative_to(source).as_posix()
                    found = files.get(name if inside == "." else f"{name}/{inside}")
                    if found is not None and found != expected:
                        raise StoreCorrupt(
                            f"{old} has {found.size} bytes, sha256 {found.sha256}; its manifest expects "
                            f"{expected.size}, {expected.sha256}. Restore it from a copy, or build it again."
                        )

    def _finished(self, name: str, key_digest: str) -> str | None:
        self._check_open()
        done = read_json(self._marker(name))
        if done is None or done.get("key") != key_digest:
            return None
        folder = self.path / "stages" / name
        found = {path: file.stat().st_size for path, file in list_files(folder)} if folder.is_dir() else None
        if found != {path: record["size"] for path, record in done["files"].items()}:
            return None
        return json_digest(done, name)

    def _marker(self, name: str) -> Path:
        return self.path / "stages" / f"{name}.done.json"

    def _key_digest(self, name: str, key: Mapping[str, Any]) -> str:
        return json_digest({"stage": name, "key": dict(key)}, f"the key of stage {name!r}")

    def _check_name(self, name: str) -> str:
        if not _STAGE_NAME.fullmatch(name):
            raise InvalidInput(f"Stage name {name!r}: must be small letters, digits, '-' and '_'.")
        return name

    def _check_open(self) -> None:
        if not self._open:
            raise StoreError("This workspace is closed or committed. Open a new one with Workspace.open.")


def roll_back(target: str | Path, wait_seconds: float = 1) -> Manifest:
    """Put the folder that the last commit replaced back in its place; its manifest, as it was written anew.

    What stood there is kept in turn, so doing it again returns to it. The feedback ledger of now stays. wait_seconds:
    how long to wait for another writer. Raises StoreError where nothing was kept, StoreCorrupt, StoreLocked.
    """
    with Workspace.open(target, {"command": "rollback"}, wait_seconds) as work:
        kept = _rollback(work.target)
        if not (kept / MANIFEST).is_file():
            raise StoreError(
                f"Nothing is kept to take {work.target} back to: there is no {kept}. One earlier build is kept when "
                f"a retriever is replaced."
            )
        manifest = _read_manifest(kept)
        _check_files(kept, manifest, "quick")
        parts = {name: kept / name for name in (*manifest.files, *manifest.mutable) if (kept / name).exists()}
        carry = []
        if work.target.exists():
            parts.pop(LEDGER, None)
            carry.append(LEDGER)
        mutable = tuple(dict.fromkeys((*manifest.mutable, LEDGER)))
        return work.commit(replace(manifest, mutable=mutable), parts, carry=carry, keep_rollback=True)


def kept_build(target: str | Path) -> OpenedStore | None:
    """What `roll_back` would return to; None where nothing is kept, or it cannot be read.

    After a kill it may be half removed until the next writer, `roll_back` included, has healed the move.
    """
    kept = _rollback(Path(target).resolve())
    try:
        return OpenedStore(kept, _read_manifest(kept))
    except RagadaptError:
        return None


def answers_file(target: str | Path) -> Path:
    """Where a fit to the target keeps a language model's answers. Beside the folder: what replaces the folder, and
    what makes a stage start anew, leaves them alone."""
    target = Path(target).resolve()
    return target.with_name(f".{target.name}.answers.jsonl")


def ledger_lock(path: str | Path) -> FileLock:
    """The lock that a writer holds for each write to the folder's feedback.sqlite: `with ledger_lock(path): …`.

    path: the retriever's folder. A commit holds it from copying the ledger until the new folder is in place, so a
    writer that has it must look whether the ledger is still the file that it has open (its inode), and open it
    again where it is not, or, where the folder is gone for the moment, after `open_store` has healed it. Not
    re-entrant across two calls: hold it once. Raises StoreError where the lock file cannot be made.
    """
    path = Path(path).resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path.parent} cannot be written to ({error}). Check its permissions.") from error
    return FileLock(path.with_name(f".{path.name}.feedback.lock"), thread_local=False)


@contextmanager
def _holding_ledger(target: Path) -> Iterator[None]:
    lock = ledger_lock(target)
    try:
        lock.acquire(timeout=_LEDGER_SECONDS)
    except Timeout as error:
        raise StoreLocked(
            f"Another process has been writing feedback to {target} for {_LEDGER_SECONDS:g} seconds. Wait for it, or "
            f"stop it, and run the same command: it then finishes at once."
        ) from error
    try:
        yield
    finally:
        lock.release()


# The move and its healing -----------------------------------------------------------------------------


def _is_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and "/".join(parts) == path and ".." not in parts and not set(path) & set("\\:\0")


def _covers(mutable: Sequence[str], path: str) -> bool:
    for name in mutable:
        if path == name or path.startswith(f"{name}/"):
            return True
        if path in (f"{name}-wal", f"{name}-shm", f"{name}-journal"):  # SQLite's own
            return True
    return False


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _build(target: Path) -> Path:
    return target.with_name(f".{target.name}.build")


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def _rollback(target: Path) -> Path:
    return target.with_name(f".{target.name}.rollback")


def _swap(new: Path, target: Path) -> None:
    previous = _previous(target)
    if target.exists():
        try:
            rename(target, previous)
        except OSError as error:
            raise StoreError(
                f"{target} cannot be moved aside ({error}). If another program has files in it open, close "
                f"it; if it is a mount point, write to a folder inside it. The old folder is whole and the new "
                f"one is ready: the same command then finishes at once."
            ) from error
    try:
        rename(new, target)
    except OSError:
        if previous.exists() and not target.exists():
            rename(previous, target)
        raise
    sync_folder(target.parent)


def _heal(target: Path) -> None:
    """Finish or undo a move that a kill cut short. The lock is held."""
    previous, new = _previous(target), _build(target) / "new"
    if not previous.exists():
        return
    if not target.exists():
        for candidate in (new, previous):  # forward if the new folder is whole, else back
            try:
                _check_files(candidate, _read_manifest(candidate), "quick")
            except RagadaptError:
                continue
            rename(candidate, target)
            sync_folder(target.parent)
            log.info("an interrupted replacement of %s was healed from %s", target, candidate.name)
            break
        else:
            return
    _put_away(target)


def _settle(target: Path) -> None:
    """Wait, or heal, while the folder stands between two renames."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while not target.exists() and _previous(target).exists():
        try:
            lock = _acquire(target, 0)
        except StoreLocked:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
            continue
        except OSError as error:
            raise StoreError(
                f"{target} was being replaced when its writer stopped, and cannot be healed here ({error}). "
                f"Rename {_previous(target)} to {target}."
            ) from error
        try:
            _heal(target)
        finally:
            lock.release()
        return


def _put_away(target: Path) -> None:
    """Keep or remove the folder that was moved aside, whichever the manifest of the new one says."""
    previous, kept = _previous(target), _rollback(target)
    if not previous.exists():
        return
    try:
        # The mark lies in the new folder itself, so a kill anywhere in here is made good by doing it again.
        if _is_kept(target, previous):
            remove(kept)
            rename(previous, kept)
            sync_folder(target.parent)
        else:
            remove(previous)
    except OSError as error:  # a reader on Windows may hold it; the next writer tries again
        log.warning("could not put %s away: %s", previous, error)


def _is_kept(target: Path, previous: Path) -> bool:
    try:
        replaced = _read_manifest(target).replaced
        return bool(replaced) and _read_manifest(previous).build_id == replaced
    except RagadaptError:
        return False


def _keep_foreign(old: Path, new: Path, new_mutable: Sequence[str]) -> None:
    """Give the new folder what somebody else put into the old one (a .git, a note), where names are free."""
    if not (old / MANIFEST).is_file():
        return
    manifest = _read_manifest(old)
    ours, mutable = {MANIFEST, *manifest.files}, (*manifest.mutable, *new_mutable)
    for root, folders, names in os.walk(old):
        at = Path(root).relative_to(old)
        folders[:] = [name for name in folders if not _covers(mutable, (at / name).as_posix())]
        for name in (*folders, *names):
            path = at / name
            source, to = old / path, new / path
            if path.as_posix() in ours or _covers(mutable, path.as_posix()) or os.path.lexists(to):
                continue
            if source.is_symlink():
                to.symlink_to(source.readlink())
            elif source.is_file():
                to.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(source, to)
            elif source.is_dir() and not any(known.startswith(f"{path.as_posix()}/") for known in ours):
                to.mkdir(parents=True)


def _refuse_foreign(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise StoreError(f"{target} is a file; a retriever is a folder. Name another place for it.")
    if (target / MANIFEST).is_file():
        _read_manifest(target)  # what a broken or newer manifest lists is not known, so it is not replaced
    elif any(target.iterdir()):
        raise StoreError(
            f"{target} holds files and no {MANIFEST}, so ragadapt will not replace it. "
            f"Name a new or empty folder, for example {target / 'retriever'}."
        )


def _acquire(target: Path, wait_seconds: float) -> FileLock:
    # Not bound to a thread: a build may be opened in one and closed in another.
    lock = FileLock(target.with_name(f".{target.name}.lock"), thread_local=False)
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            if time.monotonic() < deadline:
                time.sleep(min(0.1, wait_seconds))
                continue
            owner = (read_json(_build(target) / "build.json") or {}).get("owner") or {}
            who = f"Process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= set(owner) else "Another process"
            since = f" since {owner['since']}" if "since" in owner else ""
            raise StoreLocked(
                f"{who} has been writing to {target}{since}. Wait for it, or stop it and run the same "
                f"command: the stages it finished are kept."
            ) from error
        if _is_in_place(lock):
            return lock
        lock.release()  # its file was taken away meanwhile, and another process may hold the new one


def _is_in_place(lock: FileLock) -> bool:
    """Whether the file that is locked is the one that others find under its name."""
    held = getattr(getattr(lock, "_context", None), "lock_file_fd", None)
    try:
        return held is None or os.path.samestat(os.fstat(held), Path(lock.lock_file).stat())
    except FileNotFoundError:
        return False


def _forget(lock: FileLock) -> None:
    """Take the lock's file away and release it: in this order, so that nobody else's is taken away."""
    if os.name != "nt":  # an open file cannot go there
        with suppress(OSError):
            Path(lock.lock_file).unlink()
    lock.release()
