"""Builds folders until it is killed; run by test_store.py as a process of its own.

python store_victim.py loop TARGET LOG       commit generation after generation, forever
python store_victim.py every TARGET STEP     die at each STEPth file operation of a build in turn (POSIX)
python store_victim.py hold TARGET           take the lock, say so, and wait
python store_victim.py hold-ledger TARGET    the same with the ledger's lock
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from ragadapt.errors import NotARetriever
from ragadapt.store.workspace import (
    LEDGER,
    Manifest,
    OpenedStore,
    Workspace,
    kept_build,
    ledger_lock,
    load_store,
    open_store,
    roll_back,
)

FILES = 4
KILLED = 9


def generation_of(target: Path) -> int:
    """The generation that the whole folder holds; fails on a mix. 0 = nothing was ever committed."""
    try:
        return load_store(target, _generation, verify="full")
    except NotARetriever:
        assert not target.exists()
        return 0


def _generation(store: OpenedStore) -> int:
    generation = int(store.manifest.sections["generation"])
    for name in ("first.txt", *(f"model/{i}.txt" for i in range(FILES))):
        text = (store.path / name).read_text(encoding="utf-8")
        assert text == f"{generation} " * 500, (name, text[:20], generation)
    if store.manifest.sections["notes"]:
        assert (store.path / "notes.txt").read_text(encoding="utf-8") == "mine"
    return generation


def kept_generation(target: Path) -> int:
    """The generation that `roll_back` would return to, its files checked. 0 = nothing is kept."""
    kept = kept_build(target)
    return 0 if kept is None else _generation(open_store(kept.path, "full"))


def feedback_of(target: Path) -> list[int]:
    """What the ledger holds, in order."""

    def read(store: OpenedStore) -> list[int]:
        if not (store.path / LEDGER).exists():
            return []
        with closing(sqlite3.connect(store.path / LEDGER)) as ledger:
            return [row[0] for row in ledger.execute("SELECT id FROM feedback ORDER BY id")]

    return load_store(target, read)


def add_feedback(target: Path, id: int) -> None:
    """Write one row to the ledger as the protocol of `ledger_lock` has it; on disk when this returns."""
    while True:
        open_store(target, "none")  # heals a move that a kill cut short
        with ledger_lock(target):
            if not target.exists():
                continue
            with closing(sqlite3.connect(target / LEDGER)) as ledger:
                ledger.execute("PRAGMA journal_mode = WAL")
                ledger.execute("CREATE TABLE IF NOT EXISTS feedback (id)")
                ledger.execute("INSERT INTO feedback VALUES (?)", (id,))
                ledger.commit()
            return


def build(target: Path, generation: int, log: Path | None = None, keep: bool = False) -> None:
    """Commit one generation: two stages, five hashed files, the ledger, a foreign file that stays."""
    with Workspace.open(target, {"generation": generation}) as work:
        reused = []
        with work.stage("first", {"generation": generation}) as first:
            reused.append(first.finished)
            if not first.finished:
                (first.path / "first.txt").write_text(f"{generation} " * 500, encoding="utf-8")
        with work.stage("second", {"first": first.digest}) as second:
            reused.append(second.finished)
            if not second.finished:
                for i in range(FILES):
                    (second.path / f"{i}.txt").write_text(f"{generation} " * 500, encoding="utf-8")
        if log is not None:
            with log.open("a", encoding="utf-8") as stream:
                stream.write(f"{generation} {reused}\n")
        sections = {"generation": generation, "notes": (target / "notes.txt").exists()}
        work.commit(
            Manifest(fingerprint="f", sections=sections, mutable=(LEDGER,)),
            {"first.txt": first.path / "first.txt", "model": second.path},
            carry=[LEDGER],
            keep_rollback=keep,
        )
    if generation == 1:
        (target / "notes.txt").write_text("mine", encoding="utf-8")


def die_at(operation: int) -> None:
    """End this process without any clean-up just before its nth file operation."""
    events = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.listdir", "os.scandir"}
    left = operation

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in events:
            left -= 1
            if left < 0:
                os._exit(KILLED)

    sys.addaudithook(hook)


def prepare(target: Path, generations: int, keep: bool) -> None:
    """Commit that many generations, each with a row of feedback."""
    for generation in range(1, generations + 1):
        build(target, generation, keep=keep)
        add_feedback(target, generation)


def every(target: Path, step: int) -> None:
    """Die at operation 0, step, 2 * step, … of a change in turn, until one gets through.

    Four changes: the first build ever, a replacement, one that keeps what it replaces, and going back to that.
    Prints how often it died, and what was found then.
    """
    found: Counter[str] = Counter()
    for before, after, keep in ((0, 1, False), (2, 3, False), (3, 4, True), (3, 2, True)):
        prepare(target, before, keep)
        saved = Path(tempfile.mkdtemp()) / "saved"
        shutil.copytree(target.parent, saved)
        operation = 0

        def change() -> None:
            if after < before:  # noqa: B023
                roll_back(target)
            else:
                build(target, after, keep=keep)  # noqa: B023

        while True:
            shutil.rmtree(target.parent)
            shutil.copytree(saved, target.parent)
            child = os.fork()
            if child == 0:
                die_at(operation)
                change()
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if os.waitstatus_to_exitcode(status) == 0:
                break
            assert os.waitstatus_to_exitcode(status) == KILLED, status
            generation = generation_of(target)
            assert generation in (before, after), generation
            found[f"{before} to {after}: {generation}"] += 1
            if generation:
                assert feedback_of(target) == list(range(1, before + 1))
            if generation == before:  # the same command goes on
                change()
                assert (generation_of(target), kept_generation(target)) == (after, before if keep else 0)
            else:  # and whoever writes next leaves nothing of the past
                build(target, 9, keep=keep)
                assert (generation_of(target), kept_generation(target)) == (9, after if keep else 0)
            assert feedback_of(target) == list(range(1, before + 1))
            left = {path.name.replace(target.name, "") for path in target.parent.iterdir()}
            assert left == {"", "..lock", "..feedback.lock", *(["..rollback"] if keep else [])}, left
            operation += step
        assert generation_of(target) == after
        shutil.rmtree(saved.parent)
        shutil.rmtree(target.parent)
        target.parent.mkdir()
    print(json.dumps(found))


if __name__ == "__main__":
    mode, target = sys.argv[1], Path(sys.argv[2])
    if mode == "every":
        every(target, int(sys.argv[3]))
    elif mode.startswith("hold"):
        with Workspace.open(target, {}) if mode == "hold" else ledger_lock(target):
            print("held", flush=True)
            time.sleep(60)
    else:
        print("ready", flush=True)
        try:
            generation = open_store(target).manifest.sections["generation"]
        except NotARetriever:
            generation = 0
        while True:
            generation += 1
            build(target, generation, Path(sys.argv[3]), keep=generation % 3 > 0)
