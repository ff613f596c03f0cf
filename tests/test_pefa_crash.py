"""What was acknowledged survives SIGKILL; threads and processes that write at once leave what one would have left."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pefa_victim
import pytest

from ragadapt.errors import InvalidInput
from ragadapt.pefa import Feedback, Ledger, Pefa

VICTIM = Path(pefa_victim.__file__)
KILLS = int(os.environ.get("RAGADAPT_KILLS", "20"))
OPERATIONS = int(os.environ.get("RAGADAPT_OPERATIONS", "2400"))


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(VICTIM), *map(str, arguments)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def acknowledged(lines: list[str]) -> tuple[set[str], set[str]]:
    """Keys that were added, and those taken back."""
    said = [line for line in lines if line]
    return {line for line in said if line[0] != "-"}, {line[1:] for line in said if line[0] == "-"}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_acknowledged_feedback_survives_kills_at_random_moments(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    rng = random.Random(13)
    added: set[str] = set()
    withdrawn: set[str] = set()
    landed = 0
    for turn in range(KILLS):
        victim = start(path, f"run{turn}", 100_000)
        assert victim.stdout is not None
        first = victim.stdout.readline()
        time.sleep(rng.uniform(0, 0.25))
        victim.send_signal(signal.SIGKILL)
        rest = victim.stdout.read()
        landed += victim.wait() == -signal.SIGKILL
        lines = (first + rest).split("\n")
        new, gone = acknowledged(lines[:-1] if not rest.endswith("\n") else lines)
        added |= new
        withdrawn |= gone
        with Ledger.open(path) as ledger:
            assert ledger.problems() == []
            found = {one.key: one for one in ledger.find(withdrawn=True)}
        assert added <= found.keys()
        assert all(found[key].withdrawn for key in withdrawn)
        # What was not acknowledged any more is there whole or not at all: one at most for each kill.
        assert len(found) - len(added) <= turn + 1
        assert sum(one.withdrawn for one in found.values()) - len(withdrawn) <= turn + 1
        assert all(one.query and one.chunk_id and one.user == one.key.split("-")[0] for one in found.values())
    assert landed == KILLS and len(added) > KILLS
    with Pefa(pefa_victim.index(), pefa_victim.embed, ledger=path) as pefa:
        assert pefa.problems() == []


@pytest.mark.slow
def test_threads_and_processes_at_once_leave_what_a_serial_replay_gives(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    each = OPERATIONS // 12
    with Pefa(pefa_victim.index(), pefa_victim.embed, ledger=path) as watcher:
        running = [start(path, f"process{number}", each) for number in range(4)]
        running.append(start(path, "threads", each, 8))
        outputs = [process.communicate()[0] for process in running]
        assert [process.returncode for process in running] == [0] * 5
        said = [acknowledged(output.split("\n")) for output in outputs]
        added = set().union(*(new for new, _ in said))
        withdrawn = set().union(*(gone for _, gone in said))
        assert len(added) > each
        queries = pefa_victim.embed([f"question {at}" for at in range(50)])
        seen = watcher.search(queries, 100, lam=0.3)
        events = list(watcher.ledger.find())
        assert {one.key for one in events} == added - withdrawn
        fed = sorted({one.chunk_id for one in events})
        rows = watcher.dense(lam=0.3).vectors(fed)
    with Pefa(pefa_victim.index(), pefa_victim.embed) as serial:
        for one in events:
            serial.add_many([Feedback(one.query, one.chunk_id, one.weight, one.user, at=one.at, key=one.key)])
        np.testing.assert_array_equal(rows, serial.dense(lam=0.3).vectors(fed))  # to the bit
        # Scores come out of matrix products, whose last bit depends, with some kernels, on where in it a row stands.
        for (_, scores), (_, wanted) in zip(seen, serial.search(queries, 100, lam=0.3), strict=True):
            np.testing.assert_allclose(scores, wanted, atol=1e-6)


SEARCHER = """
import sys, time
from ragadapt.pefa import Ledger
from ragadapt.errors import InvalidInput
path, until = sys.argv[1], time.time() + 20
print("ready", flush=True)
while time.time() < until:
    try:
        with Ledger.open(path, create=False) as ledger:
            found = list(ledger.find())
            if found:
                print(len(found))
                break
    except InvalidInput as error:
        assert "There is no ledger" in str(error), error
"""
WRITER = """
import sys
from ragadapt.pefa import Feedback, Ledger
print("ready", flush=True)
sys.stdin.readline()
with Ledger.open(sys.argv[1]) as ledger:
    ledger.add([Feedback("asked", "p001", user=sys.argv[2], key=sys.argv[2])])
"""


def test_searches_go_on_while_others_give_the_first_feedback(tmp_path: Path) -> None:
    def process(code: str, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    paths = [tmp_path / f"{turn}" / "feedback.sqlite" for turn in range(3)]
    for path in paths:
        searchers = [process(SEARCHER, path) for _ in range(2)]
        writers = [process(WRITER, path, f"w{at}") for at in range(3)]
        for one in (*searchers, *writers):
            assert one.stdout is not None and one.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        for one in (*writers, *searchers):
            _, error = one.communicate(timeout=60)
            assert one.returncode == 0, error
        with Ledger.open(path) as ledger:
            assert {one.key for one in ledger.find()} == {"w0", "w1", "w2"}
        assert {file.name for file in path.parent.iterdir()} == {"feedback.sqlite"}


def test_a_file_without_tables_is_no_ledger_yet(tmp_path: Path) -> None:
    path = tmp_path / "feedback.sqlite"
    for content in (b"", None):
        path.unlink(missing_ok=True)
        if content is None:  # what a version that made the tables in place left when it was killed
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
        else:
            path.write_bytes(content)
        with pytest.raises(InvalidInput, match="no ledger"):
            Ledger.open(path, create=False)
        with Ledger.open(path) as ledger:
            ledger.add([Feedback("asked", "p001")])
            assert len(ledger) == 1
