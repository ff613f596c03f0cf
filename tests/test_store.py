"""The saved folder is old or new, never a mix; what is damaged is named; one writer at a time."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import filelock
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_victim import add_feedback, build, feedback_of, generation_of, kept_generation

from ragadapt.errors import (
    FormatTooNew,
    InvalidInput,
    NotARetriever,
    StoreCorrupt,
    StoreError,
    StoreLocked,
)
from ragadapt.files import copy_file, json_digest, record_file
from ragadapt.store import workspace as store
from ragadapt.store.chunks import ChunkStore
from ragadapt.store.workspace import (
    MANIFEST,
    FileRecord,
    Hashes,
    Manifest,
    Workspace,
    ledger_lock,
    load_store,
    open_store,
    roll_back,
)
from ragadapt.values import Chunk, Document

VICTIM = Path(__file__).with_name("store_victim.py")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "retriever"


def commit(target: Path, text: str = "one", **manifest: Any) -> Manifest:
    with Workspace.open(target, {}) as work:
        with work.stage("write", {"text": text}) as stage:
            if not stage.finished:
                (stage.path / "model").mkdir()
                (stage.path / "model" / "weights.txt").write_text(text)
                (stage.path / "chunks.txt").write_text(f"chunks {text}")
        parts = {"model": stage.path / "model", "chunks.txt": stage.path / "chunks.txt"}
        return work.commit(Manifest(fingerprint="f1", **manifest), parts)


def siblings(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()}


# What is written is what is read


def test_a_committed_folder_opens_with_everything_it_was_given(target: Path) -> None:
    given_values: dict[str, Any] = {
        "configuration": {"adapter": {"rank": 16}},
        "seeds": {"fit": 13},
        "licences": {"base": "apache-2.0"},
        "sections": {"report": {"delta": 0.05}},
    }
    written = commit(target, **given_values)
    opened = open_store(target, verify="full")
    assert opened.manifest == written
    for name, value in given_values.items():
        assert getattr(opened.manifest, name) == value
    assert opened.manifest.files == {
        "chunks.txt": record_file(target / "chunks.txt"),
        "model/weights.txt": FileRecord(3, "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"),
    }
    assert siblings(target) == {"retriever", ".retriever.lock"}


def test_a_second_commit_replaces_the_whole_folder_and_keeps_the_day_of_creation(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = commit(target, "one")
    with Workspace.open(target, {}) as work, work.stage("write", {}) as stage:
        (stage.path / "other.txt").write_text("two")
    monkeypatch.setattr(store, "_now", lambda: "2999-01-01T00:00:00+00:00")
    with Workspace.open(target, {}) as work:
        with work.stage("write", {}) as stage:
            assert stage.finished
        second = work.commit(Manifest(fingerprint="f2"), {"other.txt": stage.path / "other.txt"})
    assert {path.name for path in target.iterdir()} == {MANIFEST, "other.txt"}
    assert (second.created, second.fingerprint) == (first.created, "f2")
    assert (first.created, second.updated) == (first.updated, "2999-01-01T00:00:00+00:00")
    assert second.build_id != first.build_id


def test_a_moved_folder_opens(target: Path, tmp_path: Path) -> None:
    written = commit(target)
    (tmp_path / "else where").mkdir()
    moved = tmp_path / "else where" / "näme"
    target.rename(moved)
    assert open_store(moved, verify="full").manifest == written
    assert open_store(os.path.relpath(moved), verify="full").path == moved


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(sections=st.dictionaries(st.text(max_size=3), json_values, max_size=3))
def test_a_manifest_saved_is_the_manifest_loaded(sections: dict[str, Any]) -> None:
    manifest = Manifest("f", sections=sections, mutable=("a", "b/c"), files={"x/y": FileRecord(3, "00")})
    assert Manifest.from_json(manifest.to_json(), Path("m")) == manifest


def test_number_keys_and_tuples_become_what_json_makes_of_them() -> None:
    manifest = Manifest("f", sections={"k": {10: 1, 9: (1, 2)}})
    loaded = Manifest.from_json(manifest.to_json(), Path("m"))
    assert loaded.sections == {"k": {"10": 1, "9": [1, 2]}}


def test_what_is_not_json_is_refused_before_the_target_is_touched(target: Path) -> None:
    written = commit(target)
    for sections in ({"x": float("nan")}, {"x": Path("p")}):
        with pytest.raises(InvalidInput, match="the manifest"):
            commit(target, "two", sections=sections)
    assert open_store(target).manifest == written


# Damage is named


def test_a_changed_byte_is_found_by_the_full_check_in_every_file(target: Path) -> None:
    commit(target)
    for name in ("chunks.txt", "model/weights.txt"):
        good = (target / name).read_bytes()
        expected = record_file(target / name).sha256
        (target / name).write_bytes(bytes([good[0] ^ 1]) + good[1:])
        with pytest.raises(StoreCorrupt, match=f"{name}.* has sha256 .*expects {expected}"):
            open_store(target, verify="full")
        open_store(target, verify="quick")
        (target / name).write_bytes(good)
    open_store(target, verify="full")


def test_a_changed_byte_of_the_manifest_is_found_by_every_check(target: Path) -> None:
    commit(target, sections={"figure": 3})
    text = (target / MANIFEST).read_text()
    (target / MANIFEST).write_text(text.replace('"figure": 3', '"figure": 4'))
    with pytest.raises(StoreCorrupt, match=r"ragadapt\.json was altered"):
        open_store(target, verify="none")
    for broken in (text[:-9], "[]", "{}", '"x"', text.replace('"format_version": 1', '"format_version": true')):
        (target / MANIFEST).write_text(broken)
        with pytest.raises(StoreCorrupt):
            open_store(target, verify="none")
    (target / MANIFEST).write_bytes(b"\xff\xfe")
    with pytest.raises(StoreCorrupt, match="UTF-8"):
        open_store(target)


def test_a_missing_or_cut_file_is_found_by_the_quick_check(target: Path) -> None:
    commit(target)
    (target / "chunks.txt").write_text("chu")
    with pytest.raises(StoreCorrupt, match=r"chunks\.txt has 3 bytes, the manifest expects 10"):
        open_store(target)
    (target / "chunks.txt").unlink()
    with pytest.raises(StoreCorrupt, match=r"chunks\.txt is missing; the manifest expects 10 bytes"):
        open_store(target)


def test_mutable_parts_are_neither_hashed_nor_missed(target: Path) -> None:
    with Workspace.open(target, {}) as work:
        with work.stage("s", {}) as stage:
            for name in ("feedback.sqlite", "fixed.txt"):
                (stage.path / name).write_text("x")
            (stage.path / "qdrant").mkdir()
            (stage.path / "qdrant" / "segment").write_text("x")
        manifest = Manifest("f", mutable=("feedback.sqlite", "qdrant"))
        written = work.commit(manifest, {path.name: path for path in stage.path.iterdir()})
    assert list(written.files) == ["fixed.txt"]
    (target / "feedback.sqlite").write_text("longer")
    (target / "feedback.sqlite-wal").write_text("wal")
    shutil.rmtree(target / "qdrant")
    assert open_store(target, verify="full").manifest == written


def rewrite(target: Path, **changes: Any) -> None:
    values = json.loads((target / MANIFEST).read_text())
    del values["checksum"]
    values |= changes
    values["checksum"] = json_digest(values, "")
    (target / MANIFEST).write_text(json.dumps(values))


def test_a_newer_format_says_which_version_wrote_it(target: Path) -> None:
    commit(target)
    rewrite(target, format_version=2, library_version="9.1", new_field=1)
    with pytest.raises(FormatTooNew, match=r"format 2.*reads up to 1.*ragadapt 9\.1: pip install"):
        open_store(target)
    with pytest.raises(FormatTooNew):
        Workspace.open(target, {})


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", "", "a//b", "c:/x", "a\\b"])
def test_a_manifest_that_points_outside_its_folder_is_refused(target: Path, path: str) -> None:
    commit(target)
    rewrite(target, files={path: {"size": 1, "sha256": "0"}})
    with pytest.raises(StoreCorrupt, match="outside the folder"):
        open_store(target)
    rewrite(target, files={}, mutable=[path])
    with pytest.raises(StoreCorrupt, match="outside the folder"):
        open_store(target)


def test_what_is_no_retriever_says_how_to_make_one(target: Path) -> None:
    with pytest.raises(NotARetriever, match=r"There is no folder .*ragadapt fit"):
        open_store(target)
    with Workspace.open(target, {}) as work, work.stage("s", {}):
        pass
    with pytest.raises(NotARetriever, match="unfinished build lies beside it"):
        open_store(target)
    target.mkdir()
    with pytest.raises(NotARetriever, match=r"has no ragadapt\.json"):
        open_store(target)
    (target / "file").touch()
    with pytest.raises(NotARetriever, match="is a file"):
        open_store(target / "file")
    with pytest.raises(InvalidInput, match="verify='deep'"):
        open_store(target, verify="deep")  # type: ignore[arg-type]


# Nobody's files are lost


def test_a_folder_that_is_not_ours_is_never_replaced(target: Path) -> None:
    target.mkdir()
    (target / "thesis.md").write_text("years of work")
    with pytest.raises(StoreError, match=r"will not replace it.*retriever/retriever|retriever\\retriever"):
        Workspace.open(target, {})
    assert (target / "thesis.md").read_text() == "years of work"
    with pytest.raises(StoreError, match="is a file"):
        Workspace.open(target / "thesis.md", {})
    with pytest.raises(InvalidInput, match="Name a folder inside"):
        Workspace.open(Path(target.anchor), {})


def test_an_empty_folder_is_replaced(target: Path) -> None:
    target.mkdir()
    written = commit(target)
    assert open_store(target).manifest == written


def test_files_that_somebody_put_into_the_folder_come_along(target: Path) -> None:
    commit(target, "one")
    (target / "README.md").write_text("mine")
    (target / "model" / "notes.txt").write_text("also mine")
    (target / ".git" / "refs" / "empty").mkdir(parents=True)
    (target / ".git" / "HEAD").write_text("ref")
    if os.name != "nt":
        (target / "link").symlink_to("nowhere")
    commit(target, "two")
    assert (target / "README.md").read_text() == "mine"
    assert (target / "model" / "notes.txt").read_text() == "also mine"
    assert (target / ".git" / "HEAD").read_text() == "ref"
    assert (target / ".git" / "refs" / "empty").is_dir()
    assert os.name == "nt" or (target / "link").readlink() == Path("nowhere")
    assert (target / "model" / "weights.txt").read_text() == "two"
    assert set(open_store(target, "full").manifest.files) == {"chunks.txt", "model/weights.txt"}


def test_a_carried_ledger_keeps_what_a_live_writer_has_committed(target: Path) -> None:
    def make(text: str) -> None:
        with Workspace.open(target, {}) as work:
            with work.stage("s", {"text": text}) as stage:
                (stage.path / "t.txt").write_text(text)
            manifest = Manifest("f", mutable=("feedback.sqlite", "absent.sqlite"))
            carry = ["feedback.sqlite", "absent.sqlite"]
            work.commit(manifest, {"t.txt": stage.path / "t.txt"}, carry=carry)

    make("one")
    writer = sqlite3.connect(target / "feedback.sqlite")
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("CREATE TABLE clicks (id)")
    writer.executemany("INSERT INTO clicks VALUES (?)", [(1,), (2,)])
    writer.commit()
    assert (target / "feedback.sqlite-wal").stat().st_size > 0
    make("two")
    writer.close()
    with closing(sqlite3.connect(target / "feedback.sqlite")) as reader:
        assert reader.execute("SELECT id FROM clicks").fetchall() == [(1,), (2,)]
    assert (target / "t.txt").read_text() == "two"
    assert not (target / "absent.sqlite").exists()


def keep_ledger(target: Path, text: str) -> None:
    """Commit a folder whose ledger comes along."""
    with Workspace.open(target, {}) as work:
        with work.stage("s", {"text": text}) as stage:
            (stage.path / "t.txt").write_text(text)
        work.commit(Manifest("f", mutable=(store.LEDGER,)), {"t.txt": stage.path / "t.txt"}, carry=[store.LEDGER])


def test_the_ledger_is_locked_from_its_copy_until_the_new_folder_is_in_place(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_ledger(target, "one")
    with closing(sqlite3.connect(target / store.LEDGER)) as ledger:
        ledger.execute("CREATE TABLE clicks (id)")
    held: list[str] = []

    def spy(name: str, real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            try:
                store.ledger_lock(target).acquire(timeout=0, blocking=False)
            except (filelock.Timeout, RuntimeError):  # RuntimeError: filelock sees that this very thread has it
                held.append(name)
            return real(*arguments)

        return call

    for name in ("copy_live", "rename"):
        monkeypatch.setattr(store, name, spy(name, getattr(store, name)))
    keep_ledger(target, "two")
    assert held == ["copy_live", "rename", "rename"]
    store.ledger_lock(target).acquire(timeout=0).lock.release()  # and free afterwards


def test_a_folder_that_got_its_first_feedback_during_a_build_keeps_it(target: Path) -> None:
    commit(target, "one")  # its manifest knows of no ledger
    with Workspace.open(target, {}) as work:
        writer = sqlite3.connect(target / store.LEDGER)
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("CREATE TABLE clicks (id)")
        writer.execute("INSERT INTO clicks VALUES (7)")
        writer.commit()
        work.commit(Manifest("f", mutable=(store.LEDGER,)), {}, carry=[store.LEDGER])
    writer.close()
    assert sorted(path.name for path in target.iterdir()) == [store.LEDGER, MANIFEST]  # no stray -wal of the old one
    with closing(sqlite3.connect(target / store.LEDGER)) as ledger:
        assert ledger.execute("SELECT id FROM clicks").fetchall() == [(7,)]


def test_a_writer_of_feedback_that_never_ends_stops_a_commit_with_a_reason(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_ledger(target, "one")
    monkeypatch.setattr(store, "_LEDGER_SECONDS", 0.1)
    process = subprocess.Popen(
        [sys.executable, str(VICTIM), "hold-ledger", str(target)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StoreLocked, match="writing feedback"):
            keep_ledger(target, "two")
        assert (target / "t.txt").read_text() == "one"
    finally:
        process.kill()
        process.wait()
    keep_ledger(target, "two")
    assert (target / "t.txt").read_text() == "two"


def test_parts_of_the_old_folder_can_be_used_again(target: Path) -> None:
    commit(target, "one")
    with Workspace.open(target, {}) as work:
        with work.stage("new", {}) as stage:
            (stage.path / "index").write_text("new index")
        parts = {"model": target / "model", "index": stage.path / "index"}
        written = work.commit(Manifest("f"), parts)
    assert (target / "model" / "weights.txt").read_text() == "one"
    assert set(open_store(target, "full").manifest.files) == set(written.files) == {"model/weights.txt", "index"}


def test_a_damaged_part_of_the_old_folder_is_not_passed_on_as_good(target: Path) -> None:
    commit(target, "one")
    (target / "model" / "weights.txt").write_text("0ne")
    parts = {"again": target / "model"}
    with Workspace.open(target, {}) as work, pytest.raises(StoreCorrupt, match=r"weights\.txt .*sha256"):
        work.commit(Manifest("f"), parts)


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_parts_from_elsewhere_are_copied_so_that_later_changes_there_do_not_reach_the_folder(
    target: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "blob").write_text("blob")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "weights").symlink_to(tmp_path / "cache" / "blob")
    with Workspace.open(target, {}) as work:
        work.commit(Manifest("f"), {"base": tmp_path / "snapshot", "one": tmp_path / "cache" / "blob"})
    assert not (target / "base" / "weights").is_symlink()
    (tmp_path / "cache" / "blob").write_text("BLOB")
    assert (target / "base" / "weights").read_text() == (target / "one").read_text() == "blob"
    open_store(target, "full")


def test_commit_refuses_parts_that_leave_the_folder_or_are_missing(target: Path) -> None:
    with Workspace.open(target, {}) as work:
        here = work.path
        for name in ("../x", "/x", MANIFEST, "", "a/", "."):
            with pytest.raises(InvalidInput, match="relative path inside"):
                work.commit(Manifest("f"), {name: here})
        with pytest.raises(InvalidInput, match="nothing at"):
            work.commit(Manifest("f"), {"x": here / "none"})
        with pytest.raises(InvalidInput, match="mutable"):
            work.commit(Manifest("f"), {}, carry=["feedback.sqlite"])
    assert siblings(target) == set()


# Stages


def run_stages(target: Path, configuration: dict[str, int], stop_after: str = "") -> list[str]:
    """Three stages, each reading the one before; the names of those that really ran."""
    ran = []
    with Workspace.open(target, {}) as work:
        before = ""
        for name in ("chunks", "queries", "train"):
            with work.stage(name, {"config": configuration[name], "before": before}) as stage:
                if not stage.finished:
                    ran.append(name)
                    (stage.path / "out").write_text(f"{name} {configuration[name]}")
            before = stage.digest
            if name == stop_after:
                break
    return ran


def test_the_same_command_resumes_and_a_changed_setting_redoes_from_there_on(target: Path) -> None:
    settings = {"chunks": 1, "queries": 1, "train": 1}
    assert run_stages(target, settings, stop_after="queries") == ["chunks", "queries"]
    assert run_stages(target, settings) == ["train"]
    assert run_stages(target, settings) == []
    assert run_stages(target, settings | {"queries": 2}) == ["queries", "train"]
    assert run_stages(target, settings | {"queries": 2}) == []
    assert run_stages(target, settings | {"queries": 2, "train": 2}) == ["train"]
    assert run_stages(target, settings | {"chunks": 2}) == ["chunks", "queries", "train"]


def test_a_stage_that_fails_starts_empty_but_keeps_its_scratch(target: Path) -> None:
    with pytest.raises(KeyError), Workspace.open(target, {}) as work, work.stage("s", {"k": 1}) as stage:
        (stage.path / "half").write_text("x")
        (stage.scratch / "checkpoint").write_text("step 5")
        raise KeyError
    with Workspace.open(target, {}) as work:
        assert not work.finished("s", {"k": 1})
        with work.stage("s", {"k": 1}) as stage:
            assert not stage.finished
            assert list(stage.path.iterdir()) == []
            assert (stage.scratch / "checkpoint").read_text() == "step 5"
            with pytest.raises(StoreError, match="no digest yet"):
                _ = stage.digest
        assert stage.finished
        assert not stage.scratch.exists()
        assert work.finished("s", {"k": 1})
        assert not work.finished("s", {"k": 2})


def test_scratch_of_another_key_is_thrown_away(target: Path) -> None:
    with pytest.raises(KeyError), Workspace.open(target, {}) as work, work.stage("s", {"k": 1}) as stage:
        (stage.scratch / "checkpoint").write_text("step 5")
        raise KeyError
    with Workspace.open(target, {}) as work, work.stage("s", {"k": 2}) as stage:
        assert list(stage.scratch.iterdir()) == []


def test_a_finished_stage_whose_files_changed_is_redone(target: Path) -> None:
    for damage in ("cut", "missing", "extra"):
        with Workspace.open(target, {}) as work, work.stage("s", {}) as stage:
            assert not stage.finished
            (stage.path / "out").write_text("whole")
        match damage:
            case "cut":
                (stage.path / "out").write_text("")
            case "missing":
                (stage.path / "out").unlink()
            case "extra":
                (stage.path / "more").touch()


def test_stages_of_another_library_version_are_not_used(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"chunks": 1, "queries": 1, "train": 1}
    run_stages(target, settings)
    monkeypatch.setattr(store, "__version__", "99.0")
    assert run_stages(target, settings) == ["chunks", "queries", "train"]


def test_resumed_says_whether_stages_of_the_same_build_were_found(target: Path) -> None:
    with Workspace.open(target, {"a": 1}) as work:
        assert not work.resumed
        with work.stage("s", {}):
            pass
    with Workspace.open(target, {"a": 1}) as work:
        assert work.resumed
    with Workspace.open(target, {"a": 2}) as work:
        assert not work.resumed


def test_a_stage_name_that_could_leave_its_folder_and_a_key_that_is_not_json_are_refused(target: Path) -> None:
    with Workspace.open(target, {}) as work:
        for name in ("../x", "", "A", "a.b"):
            with pytest.raises(InvalidInput, match="Stage name"), work.stage(name, {}):
                pass
        with pytest.raises(InvalidInput, match="key of stage 's'"), work.stage("s", {"path": Path("x")}):
            pass


def test_a_running_stage_is_neither_committed_nor_entered_twice(target: Path) -> None:
    with Workspace.open(target, {}) as work, work.stage("s", {}):
        with pytest.raises(StoreError, match="'s' is not finished"):
            work.commit(Manifest("f"), {})
        with pytest.raises(StoreError, match="'s' is running"), work.stage("s", {}):
            pass


def test_a_committed_workspace_is_closed(target: Path) -> None:
    with Workspace.open(target, {}) as work:
        work.commit(Manifest("f"), {})
        with pytest.raises(StoreError, match="closed or committed"):
            work.commit(Manifest("f"), {})
        with pytest.raises(StoreError, match="closed or committed"), work.stage("s", {}):
            pass


# One writer


@pytest.fixture
def holder(target: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, str(VICTIM), "hold", str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_told_who_holds_the_folder(target: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(StoreLocked, match=f"Process {holder.pid} on .* since 20.*Wait for it, or stop it"):
        Workspace.open(target, {}, wait_seconds=0)


def test_a_second_writer_waits_as_long_as_it_is_told(target: Path, holder: subprocess.Popen[str]) -> None:
    threading.Timer(0.3, holder.kill).start()
    with Workspace.open(target, {}, wait_seconds=20):
        assert holder.wait(5) != 0


def test_two_writers_in_one_process_exclude_each_other(target: Path) -> None:
    with Workspace.open(target, {}), pytest.raises(StoreLocked, match=f"Process {os.getpid()} "):
        Workspace.open(target, {}, wait_seconds=0.2)
    with Workspace.open(target, {}, wait_seconds=0):
        pass


def test_a_run_that_fails_before_anything_is_kept_leaves_nothing_behind(target: Path) -> None:
    with pytest.raises(ZeroDivisionError), Workspace.open(target, {}) as work, work.stage("chunks", {}) as stage:
        (stage.path / "half").write_text("x")
        raise ZeroDivisionError
    assert siblings(target) == set()


def test_a_run_that_fails_later_leaves_what_the_next_one_can_use_and_no_lock(target: Path) -> None:
    with pytest.raises(ZeroDivisionError), Workspace.open(target, {}) as work:
        with work.stage("chunks", {}) as stage:
            (stage.path / "whole").write_text("x")
        raise ZeroDivisionError
    assert siblings(target) == {".retriever.build"}
    with pytest.raises(ZeroDivisionError), Workspace.open(target, {}) as work, work.stage("vectors", {}) as stage:
        (stage.scratch / "part").write_text("x")
        raise ZeroDivisionError
    assert siblings(target) == {".retriever.build"}


def test_writers_that_take_their_locks_away_never_write_at_once(target: Path) -> None:
    script = """
import os, sys, time
from ragadapt.errors import StoreLocked
from ragadapt.store.workspace import Workspace
target, inside = sys.argv[1:]
rounds, ends = 0, time.monotonic() + 3
while time.monotonic() < ends:
    try:
        with Workspace.open(target, {}, wait_seconds=0.05):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
            time.sleep(0.001)
            os.unlink(inside)
            rounds += 1
    except StoreLocked:
        pass
print(rounds)
"""
    command = [sys.executable, "-c", script, str(target), str(target.parent / "inside")]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    rounds = [int(writer.communicate(timeout=60)[0] or -1) for writer in writers]
    assert all(writer.returncode == 0 for writer in writers), rounds
    assert sum(rounds) > 50
    assert siblings(target) == set()


def test_a_copied_file_has_the_holes_of_the_first(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with first.open("wb") as file:
        file.write(b"begin")
        file.seek(5_000_000)
        file.write(b"middle" * 500_000)
        file.truncate(40_000_000)
    copy_file(first, second)
    assert first.read_bytes() == second.read_bytes()
    if first.stat().st_blocks * 512 < 30_000_000:  # this file system has holes
        assert second.stat().st_blocks <= first.stat().st_blocks + 64
    for text in (b"", b"plain"):
        first.write_bytes(text)
        copy_file(first, second)
        assert second.read_bytes() == text


# Kills


def interrupted_move(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the world as a kill between the two renames leaves it."""

    class Kill(BaseException):
        pass

    renames = []

    def rename(source: Path, destination: Path) -> None:
        renames.append(source)
        if len(renames) == 2:
            raise Kill
        source.rename(destination)

    with monkeypatch.context() as patch, pytest.raises(Kill):
        patch.setattr(store, "rename", rename)
        commit(target, "two")
    assert not target.exists()


def test_a_reader_completes_a_move_that_was_cut_between_its_two_renames(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = commit(target, "one")
    interrupted_move(target, monkeypatch)
    assert open_store(target, verify="full").manifest.build_id != first.build_id
    assert (target / "model" / "weights.txt").read_text() == "two"
    assert not target.with_name(".retriever.previous").exists()


def test_a_reader_takes_the_old_folder_back_if_the_new_one_is_not_whole(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = commit(target, "one")
    interrupted_move(target, monkeypatch)
    (target.with_name(".retriever.build") / "new" / "chunks.txt").unlink()
    assert open_store(target, verify="full").manifest == first


def test_a_failed_move_puts_the_old_folder_back(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = commit(target, "one")

    def rename(source: Path, destination: Path) -> None:
        if source.name == "new":
            raise PermissionError(errno.EACCES, "in use")
        source.rename(destination)

    with monkeypatch.context() as patch:
        patch.setattr(store, "rename", rename)
        with pytest.raises(PermissionError):
            commit(target, "two")
        patch.setattr(store, "rename", lambda source, _: (_ for _ in ()).throw(PermissionError("in use")))
        with pytest.raises(StoreError, match=r"cannot be moved aside .*in use.*close it"):
            commit(target, "two")
    assert open_store(target, "full").manifest == first
    commit(target, "two")
    assert (target / "chunks.txt").read_text() == "chunks two"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("step", [53, pytest.param(1, marks=pytest.mark.slow)])
def test_death_at_any_file_operation_leaves_the_old_or_the_new_folder(target: Path, step: int) -> None:
    place = target.parent / "place"
    place.mkdir()
    command = [sys.executable, str(VICTIM), "every", str(place / "retriever"), str(step)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    outcomes = [(0, 1, 0), (0, 1, 1), (2, 3, 2), (2, 3, 3), (3, 4, 3), (3, 4, 4), (3, 2, 3), (3, 2, 2)]
    expected = {f"{before} to {after}: {left}" for before, after, left in outcomes}
    assert set(found) <= expected
    assert step > 1 or set(found) == expected
    assert sum(found.values()) >= 500 // step


@pytest.mark.parametrize("kills", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_a_writer_killed_at_random_moments_leaves_the_old_or_the_new_folder(
    target: Path, tmp_path: Path, kills: int
) -> None:
    log = tmp_path / "log"
    chance = random.Random(13)
    started = time.monotonic()
    build(tmp_path / "other", 1)
    # Long enough for some builds to get through on any machine, and never a test of half an hour.
    lifetime = min(4 * (time.monotonic() - started), 1.0)
    seen, acknowledged = [0], 0
    for _ in range(kills):
        command = [sys.executable, str(VICTIM), "loop", str(target), str(log)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0, lifetime))
            process.kill()  # SIGKILL; TerminateProcess on Windows
        seen.append(generation_of(target))
        assert seen[-1] >= seen[-2]
        if seen[-1]:
            add_feedback(target, acknowledged := acknowledged + 1)
            assert feedback_of(target) == list(range(1, acknowledged + 1))
        if seen[-1] > 1:
            Workspace.open(target, {}).close()  # whoever writes next finishes putting the old folder away
            assert kept_generation(target) < seen[-1]
    build(target, seen[-1] + 1)
    assert generation_of(target) == seen[-1] + 1
    attempts = log.read_text().splitlines() if log.exists() else []
    if kills > 50:
        assert seen[-1] > 0  # some builds got through
        assert any("True" in attempt for attempt in attempts)  # and some took up what a killed one had finished
    print(f"{kills} kills, {seen[-1]} commits, {sum('True' in a for a in attempts)} resumed")


def test_feedback_added_while_builds_are_committed_is_never_lost(target: Path) -> None:
    build(target, 1)
    added, problems = 0, list[BaseException]()
    stop = threading.Event()

    def write() -> None:
        nonlocal added
        try:
            while not stop.is_set():
                add_feedback(target, added + 1)
                added += 1
        except BaseException as problem:
            problems.append(problem)

    writer = threading.Thread(target=write)
    writer.start()
    for generation in range(2, 14):
        build(target, generation, keep=generation % 2 == 0)
        if generation % 4 == 0:
            roll_back(target)
    stop.set()
    writer.join()
    assert problems == []
    assert added > 12
    assert feedback_of(target) == list(range(1, added + 1))


# Going back


def test_the_replaced_folder_can_be_taken_back_and_again(target: Path) -> None:
    build(target, 1)
    build(target, 2, keep=True)
    add_feedback(target, 1)
    for now, other in ((1, 2), (2, 1)):
        written = roll_back(target)
        assert open_store(target, "full").manifest == written
        assert (generation_of(target), kept_generation(target)) == (now, other)
        assert feedback_of(target) == [1]  # the newest ledger, whichever folder stands
        add_feedback(target, 2)
        with ledger_lock(target), closing(sqlite3.connect(target / store.LEDGER)) as ledger:
            ledger.execute("DELETE FROM feedback WHERE id = 2")
            ledger.commit()
    assert (target / "notes.txt").read_text() == "mine"


def test_only_one_generation_is_kept_and_a_plain_commit_leaves_it_alone(target: Path) -> None:
    for generation in (1, 2, 3):
        build(target, generation, keep=True)
    assert kept_generation(target) == 2
    build(target, 4)
    assert kept_generation(target) == 2
    assert siblings(target) == {"retriever", ".retriever.rollback", ".retriever.lock", ".retriever.feedback.lock"}


def test_a_folder_that_was_removed_comes_back_with_the_ledger_that_was_kept(target: Path) -> None:
    build(target, 1)
    add_feedback(target, 1)
    build(target, 2, keep=True)
    shutil.rmtree(target)
    roll_back(target)
    assert generation_of(target) == 1
    assert feedback_of(target) == [1]


def test_going_back_to_nothing_or_to_a_damaged_folder_changes_nothing(target: Path) -> None:
    build(target, 1)
    with pytest.raises(StoreError, match=r"Nothing is kept to take .*retriever back to"):
        roll_back(target)
    build(target, 2, keep=True)
    text = target.with_name(".retriever.rollback") / "first.txt"
    good = text.read_text()
    for bad in (good[:-1], "7" + good[1:]):
        text.write_text(bad)
        with pytest.raises(StoreCorrupt, match=r"first\.txt"):
            roll_back(target)
        assert generation_of(target) == 2
    text.unlink()
    with pytest.raises(StoreCorrupt, match=r"first\.txt is missing"):
        roll_back(target)
    assert generation_of(target) == 2


def test_readers_beside_a_writer_always_see_one_generation(target: Path) -> None:
    build(target, 1)
    problems: list[BaseException] = []
    seen: set[int] = set()
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                seen.add(generation_of(target))
        except BaseException as problem:
            problems.append(problem)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for generation in range(2, 12):
        build(target, generation)
    stop.set()
    for reader in readers:
        reader.join()
    assert problems == []
    assert len(seen) > 3


def test_a_reader_that_meets_a_whole_commit_between_two_looks_does_not_miss_the_folder(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = commit(target)
    aside, read, previous = target.with_name("aside"), store._read_manifest, store._previous

    def read_while_moved(path: Path) -> Manifest:
        monkeypatch.setattr(store, "_read_manifest", read)
        target.rename(aside)
        return read(path)

    def look_when_done(path: Path) -> Path:
        if aside.exists():
            aside.rename(target)
        return previous(path)

    monkeypatch.setattr(store, "_read_manifest", read_while_moved)
    monkeypatch.setattr(store, "_previous", look_when_done)
    assert open_store(target).manifest == written


def test_a_reader_whose_file_goes_while_it_is_hashed_opens_the_new_folder(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(target, "one")
    commits: list[Manifest] = []

    def replaced_meanwhile(file: Path) -> FileRecord:
        monkeypatch.setattr(store, "record_file", record_file)
        with Workspace.open(target, {}) as work:
            with work.stage("s", {}) as stage:
                (stage.path / "new.txt").write_text("new")
            commits.append(work.commit(Manifest("f"), {"new.txt": stage.path / "new.txt"}))
        return record_file(file)

    monkeypatch.setattr(store, "record_file", replaced_meanwhile)
    assert open_store(target, verify="full").manifest == commits[0]


def test_a_load_that_meets_a_commit_is_repeated_on_the_new_folder(target: Path) -> None:
    commit(target, "one")
    read: list[str] = []

    def load(opened: store.OpenedStore) -> str:
        first = (opened.path / "chunks.txt").read_text()
        if not read:
            commit(target, "two")
        read.append(first)
        return first + "+" + (opened.path / "model" / "weights.txt").read_text()

    assert load_store(target, load) == "chunks two+two"
    assert read == ["chunks one", "chunks two"]


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a folder whose files are open")
def test_a_chunk_store_opened_before_a_commit_keeps_reading_its_own_file(target: Path) -> None:
    def make(text: str) -> None:
        with Workspace.open(target, {}) as work:
            with work.stage("chunks", {"text": text}) as stage, ChunkStore.create(stage.path / "c") as chunks:
                chunks.add([Document("d", text)], [Chunk(f"c{i}", "d", f"{text} {i}") for i in range(5000)])
            work.commit(Manifest("f"), {"chunks.sqlite": stage.path / "c"})

    make("old")
    with ChunkStore.open(target / "chunks.sqlite") as opened:
        make("new")
        assert opened.get(["c4999"])[0].text == "old 4999"
        assert {chunk.text.split()[0] for chunk in opened} == {"old"}


# A full disk


def test_a_full_disk_leaves_the_old_folder_whole(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = commit(target, "one")

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def attempt() -> None:
        with Workspace.open(target, {}) as work:
            with work.stage("s", {}) as stage:
                if not stage.finished:
                    (stage.path / "x").write_text("two")
            work.commit(Manifest("f", mutable=("m",)), {"x": stage.path / "x"}, carry=["m"])

    for name in ("write_text", "link_or_copy", "sync_tree", "copy_live"):
        with monkeypatch.context() as patch:
            patch.setattr(store, name, full)
            with pytest.raises(StoreError, match=r"disk .* is full; .*retriever is unchanged.*same command"):
                attempt()
        assert open_store(target, "full").manifest == first
    attempt()
    assert (target / "x").read_text() == "two"


def test_a_really_full_disk_leaves_the_old_folder_whole_and_freed_space_lets_it_go_on(tiny_disk: Path) -> None:
    target = tiny_disk / "retriever"
    first = commit(target, "one")
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(b"x" * 200_000)

    def bigger() -> Manifest:
        with Workspace.open(target, {}) as work:
            with work.stage("small", {}) as small:
                if not small.finished:
                    ran.append("small")
                    (small.path / "small").write_text("s")
            with work.stage("chunks", {}) as stage:
                if not stage.finished:
                    ran.append("chunks")
                    with ChunkStore.create(stage.path / "chunks.sqlite") as chunks:
                        chunks.add([Document("d", "")], [Chunk(f"c{i}", "d", "t" * 1000) for i in range(200)])
            return work.commit(Manifest("f"), {"chunks.sqlite": stage.path / "chunks.sqlite"})

    ran: list[str] = []
    for _ in range(2):
        with pytest.raises(StoreError, match=r"disk .* is full; .*retriever is unchanged"):
            bigger()
        assert open_store(target, "full").manifest == first
    ballast.unlink()
    written = bigger()
    assert ran == ["small", "chunks", "chunks", "chunks"]
    assert open_store(target, "full").manifest == written
    with ChunkStore.open(target / "chunks.sqlite") as chunks:
        assert len(chunks) == 200


@pytest.mark.parametrize("quick", [True, False])
def test_files_are_compared_by_the_quick_hash_or_by_that_of_earlier_versions(tmp_path: Path, quick: bool) -> None:
    file = tmp_path / "large"
    file.write_bytes(bytes(3_000_000))
    record = record_file(file)
    known = {"large": record if quick else FileRecord(record.size, record.sha256)}
    Hashes(tmp_path, known).wait()
    file.write_bytes(bytes(2_999_999) + b"1")
    with pytest.raises(StoreCorrupt, match=f"large has {'xxh3' if quick else 'sha256'} "):
        Hashes(tmp_path, known).wait()


@pytest.mark.parametrize("forked", [False, True])
def test_a_first_answer_does_not_wait_for_the_largest_files_whose_damage_is_found_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: bool
) -> None:
    records = {}
    for name, size in (("largest", 5_000_000), ("large", 2_000_000)):
        (tmp_path / name).write_bytes(bytes(size))
        records[name] = record_file(tmp_path / name)
    (tmp_path / "largest").write_bytes(bytes(4_999_999) + b"1")
    monkeypatch.setattr("ragadapt.files._QUICK_BYTES", 4_000_000)
    compare, go_on = Hashes._compare_one, threading.Event()

    def slow(self: Hashes, name: str, *rest: Any) -> None:
        if name == "largest":
            go_on.wait(10)
        compare(self, name, *rest)

    monkeypatch.setattr(Hashes, "_compare_one", slow)
    with monkeypatch.context() as patched:
        if forked:  # as a child finds it: its thread is gone
            patched.setattr(Hashes, "_start", lambda self: None)
        hashes = Hashes(tmp_path, records)
    hashes._process = -1 if forked else hashes._process
    hashes.wait()
    assert not hashes.over
    go_on.set()
    hashes._thread.join()
    assert hashes.over
    with pytest.raises(StoreCorrupt, match="largest has xxh3"):
        hashes.wait()
