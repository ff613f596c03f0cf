"""Processes that train together: when one fails the others are told and end, and a slow one is waited for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forks import Fork, start
from tiny_models import sentences, write_tiny_model

from ragadapt.config import FitConfig
from ragadapt.errors import TrainingFailed
from ragadapt.pipeline.fit import fit
from ragadapt.pipeline.queries import Labels
from ragadapt.rerank import Reranker
from ragadapt.retriever import Retriever
from ragadapt.training.channel import Channel

# The channel


def ends() -> tuple[socket.socket, socket.socket]:
    """The two ends of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        calling = socket.create_connection(server.getsockname())
        return server.accept()[0], calling


def pair() -> tuple[Channel, Channel, socket.socket]:
    """The first process, the second, and the end of the connection that the second holds."""
    one, other = ends()
    return Channel(0, {1: one}), Channel(1, {0: other}), other


def test_a_meeting_waits_until_the_last_one_comes() -> None:
    first, second, _ = pair()
    came: list[str] = []
    waiting = threading.Thread(target=lambda: (second.meet(), came.append("second")))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive() and came == []
    first.meet()
    waiting.join(5)
    assert came == ["second"]
    late = threading.Thread(target=lambda: (first.meet(), came.append("first")))
    late.start()
    late.join(0.3)
    assert late.is_alive()
    second.meet()
    late.join(5)
    assert came == ["second", "first"]


@pytest.mark.parametrize("failing", [0, 1])
def test_who_waits_is_told_what_failed(failing: int) -> None:
    channels = pair()[:2]
    told: list[str] = []

    def wait() -> None:
        try:
            channels[1 - failing].meet()
        except TrainingFailed as error:
            told.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    channels[failing].fail(ValueError("no such\npage"))
    waiting.join(5)
    assert told and told[0].startswith(f"Process {failing} failed: ValueError: no such page. Process {1 - failing} ")
    with pytest.raises(TrainingFailed, match="no such page"):
        channels[1 - failing].check()


def test_the_first_passes_on_what_it_hears_to_all_others() -> None:
    pairs = [ends() for _ in range(3)]
    Channel(0, {at + 1: mine for at, (mine, _) in enumerate(pairs)})
    others = [Channel(at + 1, {0: theirs}) for at, (_, theirs) in enumerate(pairs[:2])]
    pairs[2][1].close()  # the third dies
    for channel in others:
        with pytest.raises(TrainingFailed, match="Process 3 is gone"):
            channel.check(5)


def test_who_came_to_the_last_meeting_may_go() -> None:
    one, second = ends()
    first = Channel(0, {1: one})
    second.sendall(b"arrived\n")
    second.close()
    with pytest.raises(TrainingFailed, match="Process 1 is gone"):
        first.check(5)
    first.meet()
    with pytest.raises(TrainingFailed, match="Process 1 is gone"):
        first.meet()


def test_a_stranger_is_not_let_in() -> None:
    told: dict[str, Any] = {}
    ready = threading.Event()

    def tell(value: Any) -> Any:
        if value is not None:
            told.update(value)
            ready.set()
        ready.wait(5)
        return told

    opened: list[Channel] = []
    threading.Thread(target=lambda: opened.append(Channel.open(0, 2, tell)), daemon=True).start()
    assert ready.wait(5)
    with socket.create_connection(("127.0.0.1", told["port"])) as stranger:
        stranger.sendall(b"0123456789abcdef 1\n")
        assert stranger.recv(10) == b""
    second = Channel.open(1, 2, tell)
    meeting = threading.Thread(target=second.meet)
    meeting.start()
    while not opened:
        time.sleep(0.01)
    opened[0].meet()
    meeting.join(5)
    assert not meeting.is_alive()


# Whole fits

WORKER = """
import ctypes, json, os, signal, sys, time
from datetime import timedelta
from pathlib import Path
import torch
from ragadapt.pipeline.queries import Labels
from ragadapt.config import FitConfig
from ragadapt.errors import TrainingFailed
from ragadapt.pipeline.fit import fit
from ragadapt.training.loop import EncoderRun

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
folder, how, where, who = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
rank = os.environ["RANK"]
torch.distributed.init_process_group("gloo")
torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=8))  # no collective waits longer

def trouble():
    (folder / "failed").write_text(str(time.time()))
    if how == "slow":
        ctypes.PyDLL(None).sleep(16)  # no other thread runs
    elif how == "error":
        raise LookupError("the lamp is out")
    elif how == "exit":
        sys.exit(0)
    else:
        os.kill(os.getpid(), int(how))
        time.sleep(30)

def progress(stage, done, total):
    if where == "reading" and rank == who and not (folder / "failed").exists():
        trouble()

step = EncoderRun.step
def failing(self, items, number, rate):
    if where == "step" and rank == who and number == 3 and not (folder / "failed").exists():
        trouble()
    return step(self, items, number, rate)
EncoderRun.step = failing

config = FitConfig.build(json.loads((folder / "config.json").read_text()))
labels = [Labels(folder / "queries.jsonl", folder / "qrels.tsv")]
try:
    print(fit([folder / "docs"], folder / "retriever", config, labels=labels, progress=progress).verdict)
except LookupError:
    time.sleep(90)  # a script that caught the error, and lives on
    raise
except TrainingFailed as error:
    (folder / f"told-{rank}").write_text(str(error))
    raise
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages, labelled questions and the settings of a fit that trains."""
    folder = tmp_path_factory.mktemp("together")
    (folder / "docs").mkdir()
    lines = sentences(200, words=12, seed=3)
    with (folder / "queries.jsonl").open("w") as queries, (folder / "qrels.tsv").open("w") as qrels:
        qrels.write("query-id\tcorpus-id\tscore\n")
        for page in range(40):
            text = lines[5 * page : 5 * page + 5]
            (folder / "docs" / f"page{page:02}.md").write_text(f"# Page {page}\n\n" + ". ".join(text[:4]) + ".\n")
            for turn in range(4):
                question = " ".join(text[turn].split()[:6])
                queries.write(json.dumps({"_id": f"q{page}-{turn}", "text": f"{question} {turn}"}) + "\n")
                qrels.write(f"q{page}-{turn}\tpage{page:02}.md\t1\n")
    model = write_tiny_model(folder / "model", layers=2)
    config = {
        "encoder": {"model": str(model), "precision": "float32", "device": "cpu"},
        "chunk": {"max_tokens": 40, "min_tokens": 4},
        "training": {"epochs": 2, "batch_size": 8, "evaluations": 2},
        "adapter": {"rank": 4, "layers": 1},
        "index": {"kind": "exact"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def launch(corpus: Path, folder: Path, how: str, where: str, who: int) -> Sequence[Fork | subprocess.Popen[str]]:
    """Two processes as a launcher starts them that does not look after them."""
    (folder / "temporary").mkdir()
    for name in ("docs", "queries.jsonl", "qrels.tsv", "config.json"):
        (folder / name).symlink_to(corpus / name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(folder / "temporary"),
    }  # fmt: skip
    return [
        start(
            WORKER,
            folder,
            how,
            where,
            who,
            environment={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]


WAYS_TO_END = {
    "error": "failed: LookupError: the lamp is out.",
    "exit": "failed: SystemExit: 0.",
    str(int(signal.SIGINT)): "failed: KeyboardInterrupt.",
    str(int(signal.SIGTERM)): "failed: SystemExit: 143.",
    str(int(signal.SIGKILL)): "is gone: it was killed",
}
KILLED = str(int(signal.SIGKILL))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "where", "who"),
    [  # every way once, at either place, and by either process what ends without a last word
        *((how, "reading" if how == "error" else "step", 0) for how in WAYS_TO_END),
        (KILLED, "step", 1),
    ],
)
def test_the_other_process_ends_within_seconds_and_says_why(
    corpus: Path, tmp_path: Path, how: str, where: str, who: int
) -> None:
    workers = launch(corpus, tmp_path, how, where, who)
    try:
        other = workers[1 - who]
        code = other.wait(timeout=120)
        ended = time.time()
        began = float((tmp_path / "failed").read_text())
        if how == "error":
            assert workers[who].poll() is None  # it lives on, and still the other has ended
        assert (tmp_path / f"told-{1 - who}").stat().st_mtime - began < 10
        assert ended - began < 40  # a busy machine takes its time to take an interpreter down
        assert code == 1
        told = (tmp_path / f"told-{1 - who}").read_text()
        assert told.startswith(f"Process {who} {WAYS_TO_END[how]}") and f"Process {1 - who} ends with it" in told
        if how not in ("error", KILLED):
            workers[who].wait(timeout=60)
            assert list((tmp_path / "temporary").iterdir()) == []
        assert not (tmp_path / "retriever").exists()
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


@pytest.mark.slow
def test_the_run_after_a_failure_goes_on_with_the_finished_stages(corpus: Path, tmp_path: Path) -> None:
    for how in ("exit", "none"):
        if how == "none":
            (tmp_path / "temporary").rmdir()
            for name in ("docs", "queries.jsonl", "qrels.tsv", "config.json"):
                (tmp_path / name).unlink()
        workers = launch(corpus, tmp_path, "exit", "step" if how == "exit" else "nowhere", 1)
        outputs = [worker.communicate(timeout=180) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] != ""


@pytest.mark.slow
def test_a_busy_process_is_waited_for_however_long_it_takes(corpus: Path, tmp_path: Path) -> None:
    workers = launch(corpus, tmp_path, "slow", "step", 0)
    outputs = [worker.communicate(timeout=180) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert (tmp_path / "failed").exists()
    with Retriever.open(tmp_path / "retriever") as retriever:
        assert len(retriever.search("red fox", 3)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("dev", ["folds", "dev part"])
def test_a_reranker_trains_together_as_alone(corpus: Path, tmp_path: Path, dev: str) -> None:
    variant, together = tmp_path / "variant", tmp_path / "together"
    variant.mkdir()
    together.mkdir()
    for name in ("docs", "queries.jsonl", "qrels.tsv"):
        (variant / name).symlink_to(corpus / name)
    config = json.loads((corpus / "config.json").read_text())
    config |= {"stage": "rerank", "rerank": {"depth": 5, "method": "iaa-l", "weight": 0.5}}
    config["training"]["max_steps"] = 4
    config["gate"] = {"cross_fit_below": 200 if dev == "folds" else 0}
    (variant / "config.json").write_text(json.dumps(config))
    workers = launch(variant, together, "none", "nowhere", 0)
    outputs = [worker.communicate(timeout=180) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    labels = [Labels(corpus / "queries.jsonl", corpus / "qrels.tsv")]
    alone = fit([corpus / "docs"], tmp_path / "alone", FitConfig.build(config), labels=labels).path
    read = [Reranker.load(path, device="cpu", precision="float32") for path in (together / "retriever", alone)]
    texts = sentences(20, words=12, seed=3)
    ours, theirs = (one._run([("red fox", text) for text in texts]) for one in read)
    # A softmax over a list says nothing of what all its scores have in common, which rounding then moves.
    assert np.abs((ours - ours.mean()) - (theirs - theirs.mean())).max() < 1e-4 * float(theirs.std()) + 1e-5
    assert float(theirs.std()) > 1e-3
