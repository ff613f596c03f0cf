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
from ragadapt.store import Manifest, Workspace, ledger_lock, load_store, open_store

FILES = 4
KILLED = 9


def generation_of(target: Path) -> int:
    """The generation that the whole folder holds; fails on a mix. 0 = nothing was ever committed."""

    def read(store) -> int:  # type: ignore[no-untyped-def]
        generation = int(store.manifest.sections["generation"])
        for name in ("first.txt", *(f"model/{i}.txt" for i in range(FILES))):
            text = (store.path / name).read_text(encoding="utf-8")
            assert text == f"{generation} " * 500, (name, text[:20], generation)
        with closing(sqlite3.connect(store.path / "feedback.sqlite")) as ledger:
            rows = [row[0] for row in ledger.execute("SELECT generation FROM feedback ORDER BY generation")]
        assert rows == list(range(1, generation + 1)), (rows, generation)
        if store.manifest.sections["notes"]:
            assert (store.path / "notes.txt").read_text(encoding="utf-8") == "mine"
        return generation

    try:
        return load_store(target, read, verify="full")
    except NotARetriever:
        assert not target.exists()
        return 0


def build(target: Path, generation: int, log: Path | None = None) -> None:
    """Commit one generation: two stages, five hashed files, a ledger that grows, a foreign file that stays."""
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
        with work.stage("ledger", {"generation": generation}) as ledger:
            if not ledger.finished:
                with closing(sqlite3.connect(ledger.path / "feedback.sqlite")) as new:
                    if target.exists():
                        with closing(sqlite3.connect(target / "feedback.sqlite")) as old:
                            old.backup(new)
                    new.execute("CREATE TABLE IF NOT EXISTS feedback (generation)")
                    new.execute("INSERT INTO feedback VALUES (?)", (generation,))
                    new.commit()
        if log is not None:
            with log.open("a", encoding="utf-8") as stream:
                stream.write(f"{generation} {reused}\n")
        sections = {"generation": generation, "notes": (target / "notes.txt").exists()}
        work.commit(
            Manifest(fingerprint="f", sections=sections, mutable=("feedback.sqlite",)),
            {
                "first.txt": first.path / "first.txt",
                "model": second.path,
                "feedback.sqlite": ledger.path / "feedback.sqlite",
            },
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


def every(target: Path, step: int) -> None:
    """Die at operation 0, step, 2 * step, … of building the next generation, until one build gets through.

    Once for the first build ever, once for a replacement. Prints how often it died, and what was found then.
    """
    found: Counter[str] = Counter()
    saved = Path(tempfile.mkdtemp())
    for before in (0, 2):
        operation = 0
        for generation in range(1, before + 1):
            build(target, generation)
        if before:
            shutil.copytree(target, saved / "before")
        while True:
            for place in (target, target.with_name(f".{target.name}.build")):
                shutil.rmtree(place, ignore_errors=True)
            if before:
                shutil.copytree(saved / "before", target)
            child = os.fork()
            if child == 0:
                die_at(operation)
                build(target, before + 1)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if os.waitstatus_to_exitcode(status) == 0:
                break
            assert os.waitstatus_to_exitcode(status) == KILLED, status
            generation = generation_of(target)
            assert generation in (before, before + 1), generation
            found[f"{before} to {before + 1}: {generation}"] += 1
            build(target, generation + 1)  # the same command goes on, and leaves nothing of the past
            assert generation_of(target) == generation + 1
            left = {path.name for path in target.parent.iterdir()}
            assert left == {target.name, f".{target.name}.lock"}, left
            operation += step
        assert generation_of(target) == before + 1
        shutil.rmtree(target)
    shutil.rmtree(saved)
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
            build(target, generation, Path(sys.argv[3]))
