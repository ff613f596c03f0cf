"""Refreshes that are killed, and a reader beside them; run by test_refresh.py as processes of their own.

python refresh_victim.py kills FOLDER COUNT    kill COUNT refreshes and rollbacks of FOLDER/retriever at random moments
python refresh_victim.py read RETRIEVER        open and check it until stdin is closed; print the rounds seen
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

PAGES = 12
State = dict[str, int]  # document id → round in which it was written


def write_pages(docs: Path, count: int = PAGES, first: int = 0, seed: int = 3) -> None:
    """Pages with two sections each, every one of them of its own."""
    from tiny_models import sentences

    docs.mkdir(parents=True, exist_ok=True)
    lines = iter(sentences(count * 8, words=12, seed=seed + first))
    for number in range(first, first + count):
        text = f"# Page {number}\n\n"
        for section in range(2):
            text += f"## Part {number} {section}\n\n" + ". ".join(next(lines) for _ in range(4)) + ".\n\n"
        (docs / f"page{number:02}.md").write_text(text, encoding="utf-8")


def write_round(docs: Path, round: int, pages: list[int]) -> None:
    """Write these pages anew; every passage of theirs says in which round."""
    from tiny_models import sentences

    docs.mkdir(parents=True, exist_ok=True)
    lines = iter(sentences(len(pages) * 6, words=12, seed=round))
    for page in pages:
        text = f"# Page {page}\n\n## Round {round}\n\n" + ".\n\n".join(next(lines) for _ in range(6)) + ".\n"
        (docs / f"page{page:02}.md").write_text(text, encoding="utf-8")


def state_of(retriever: Path) -> State:
    """Which round each document is of; fails on a mix, and where the parts of the folder do not fit together."""
    import numpy as np

    from ragadapt.index import open_index
    from ragadapt.lexical import LexicalIndex
    from ragadapt.store.chunks import ChunkStore
    from ragadapt.store.workspace import OpenedStore, load_store

    def read(opened: OpenedStore) -> State:
        state: State = {}
        with ChunkStore.open(opened.path / "chunks.sqlite") as store:
            for chunk in store:
                (round,) = map(int, re.findall(r"Round (\d+)", chunk.passage))
                assert state.setdefault(chunk.document_id, round) == round, chunk.id
            ids = store.ids()
            assert {record.id for record in store.documents()} == set(state)
        assert LexicalIndex.open(opened.path / "lexical").ids() == ids
        with open_index(folder=opened.path / "index", fingerprint=opened.manifest.fingerprint) as index:
            assert sorted(index.ids()) == sorted(ids)
        with np.load(opened.path / "background.npz") as background:
            assert int(background["count"]) == len(ids)
        assert (opened.manifest.sections["chunks"], opened.manifest.sections["documents"]) == (len(ids), len(state))
        return state

    return load_store(retriever, read, verify="full")


def round_of(docs: Path) -> State:
    found = {path.name: re.search(r"Round (\d+)", path.read_text(encoding="utf-8")) for path in docs.iterdir()}
    return {name: int(match[1]) for name, match in found.items() if match}


def add_feedback(retriever: Path, id: int) -> None:
    """One feedback into the ledger, on disk when this returns."""
    from ragadapt.pefa import Feedback, Ledger
    from ragadapt.store.workspace import LEDGER, ledger_lock, open_store

    open_store(retriever, "none")  # heals a move that a kill cut short
    with Ledger.open(retriever / LEDGER, lock=ledger_lock(retriever)) as ledger:
        ledger.add([Feedback(f"question {id}", "gone", key=str(id))])


def feedback_of(retriever: Path) -> list[int]:
    from ragadapt.pefa import Ledger
    from ragadapt.store.workspace import LEDGER

    with Ledger.open(retriever / LEDGER, create=False) as ledger:
        return sorted(int(one.key) for one in ledger.find())


def forked(work: str, retriever: Path, docs: Path, notes: Path) -> int:
    """The process id of a child that refreshes or goes back, and notes the stages that it took over."""
    from ragadapt.pipeline.refresh import refresh_documents, rollback

    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if work == "rollback":
            rollback(retriever)
        else:
            done = refresh_documents(retriever, [docs])
            with notes.open("a") as stream:
                stream.write(json.dumps([done.changed, len(done.reused)]) + "\n")
        code = 0
    finally:
        os._exit(code)


def wait_for_stage(retriever: Path, child: int) -> None:
    """Return when the child's build holds a finished stage, or when the child is done."""
    stages = retriever.with_name(f".{retriever.name}.build") / "stages"
    while not any(stages.glob("*.done.json")):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.0005)


def kills(folder: Path, count: int) -> None:
    """Until COUNT children were killed before they were done. Prints how often each state was found after a kill,
    and how many refreshes took up what a killed one left."""
    # Before the first fork, and without a thread of its own: importing torch takes longer than all the rest.
    import ragadapt.encoder
    import ragadapt.pipeline.refresh  # noqa: F401
    from ragadapt.store.workspace import Workspace

    docs, retriever, notes = folder / "docs", folder / "retriever", folder / "notes"
    chance = random.Random(13)
    found: Counter[str] = Counter()
    now, before = state_of(retriever), state_of(retriever)
    lifetime = {"refresh": 0.0, "rollback": 0.0}  # not killed the first time, but timed
    landed, round = 0, 1
    while landed < count:
        round += 1
        assert round < 4 * count + 9, found
        add_feedback(retriever, round)
        work = "rollback" if round % 5 == 0 else "refresh"
        if work == "refresh":
            write_round(docs, round, chance.sample(range(PAGES), 5))
            spare = docs / "page98.md"
            spare.unlink() if spare.exists() else write_round(docs, round, [98])
        target = before if work == "rollback" else round_of(docs)
        started = time.monotonic()
        child = forked(work, retriever, docs, notes)
        if lifetime[work]:
            if (
                work == "refresh" and round % 3 == 0
            ):  # most of its life it reads: aim at the time when it has finished a stage
                wait_for_stage(retriever, child)
            else:
                time.sleep(chance.uniform(0, lifetime[work]))
            os.kill(child, signal.SIGKILL)
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        landed += killed
        if not killed:
            lifetime[work] = time.monotonic() - started if not lifetime[work] else lifetime[work]
        state = state_of(retriever)
        assert state in (now, target), (round, state, now, target)
        assert feedback_of(retriever) == list(range(2, round + 1))
        found[f"{work} {'killed' if killed else 'done'}, {'new' if state == target else 'old'}"] += 1
        if state != target:  # the same command goes on
            _, status = os.waitpid(forked(work, retriever, docs, notes), 0)
            assert status == 0, status
        assert state_of(retriever) == target
        assert feedback_of(retriever) == list(range(2, round + 1))
        Workspace.open(retriever, {}).close()
        before, now = now, target
    _, status = os.waitpid(forked("refresh", retriever, docs, notes), 0)  # what a rollback left behind
    assert status == 0
    resumed = sum(json.loads(line)[1] > 0 for line in notes.read_text().splitlines())
    print(json.dumps({**found, "resumed": resumed}))


def read_on(retriever: Path) -> None:
    """Open, search and check again and again until stdin is closed; every corpus must be of one round."""
    from ragadapt.retriever import Retriever

    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    seen: list[int] = []
    last = False
    while not last:
        last = stop.is_set()  # one more round after that: it sees what stood there at the end
        with Retriever.open(retriever, precision="float32") as opened:
            hits = opened.search("red water tree river", k=200)
            rounds = {int(n) for hit in hits for n in re.findall(r"Round (\d+)", hit.chunk.passage)}
            assert len(rounds) == 1, rounds
            assert len(opened.searcher.index) == len(opened.searcher.lexical) == len(opened)
            assert opened.searcher.background.count == len(opened)
            assert opened.manifest.sections["chunks"] == len(opened)
            seen.append(rounds.pop())
        print("opened", flush=True)
    print(json.dumps(seen))


if __name__ == "__main__":
    if sys.argv[1] == "kills":
        kills(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        read_on(Path(sys.argv[2]))
