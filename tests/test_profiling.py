"""A profile adds up: work within work counts once, other threads beside, and a fit says where its time went."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ragadapt_cli.main import run
from small_retriever import write_pages
from tiny_models import write_tiny_model

from ragadapt.errors import InvalidInput
from ragadapt.profiling import OTHER, Clock, profiled, total, work
from ragadapt.report import read_report


def test_work_within_work_counts_for_itself_alone() -> None:
    with profiled() as profile:
        profile.stage = "train"
        with work("outer", 2):
            time.sleep(0.02)
            for _ in range(3):
                with work("inner", 5):
                    time.sleep(0.02)
    found = {done.kind: done for done in profile.of_stage("train")}
    assert (found["inner"].calls, found["inner"].items) == (3, 15)
    assert (found["outer"].calls, found["outer"].items) == (1, 2)
    assert found["inner"].seconds >= 0.06
    assert 0.02 <= found["outer"].seconds < 0.06
    assert [done.kind for done in profile.of_stage("train")] == ["inner", "outer"]


def test_other_threads_count_beside() -> None:
    with profiled() as profile, ThreadPoolExecutor(1) as pool:
        profile.stage = "encode"
        begun = threading.Event()

        def tokenise() -> None:
            begun.wait(10)
            with work("tokenise", 7):
                time.sleep(0.03)

        ahead = pool.submit(tokenise)
        with work("forward"):
            begun.set()
            ahead.result()
    found = {done.kind: done for done in profile.of_stage("encode")}
    assert found["tokenise"].seconds == 0 and found["tokenise"].beside_seconds >= 0.03
    assert found["forward"].seconds >= 0.03 and found["forward"].beside_seconds == 0


def test_what_no_work_accounts_for_is_other() -> None:
    with profiled() as profile:
        clock = Clock(profile)
        with clock("a"):
            time.sleep(0.02)
            with clock("b"), work("x"):
                time.sleep(0.02)
            with work("y"):
                pass
    listed = {stage: profile.of_stage(stage, seconds) for stage, seconds in clock.seconds.items()}
    assert {stage: {done.kind for done in works} for stage, works in listed.items()} == {
        "a": {"y", OTHER},
        "b": {"x", OTHER},
    }
    for stage, works in listed.items():
        assert sum(done.seconds for done in works) == pytest.approx(clock.seconds[stage], rel=1e-6)


def test_a_failing_block_is_counted_and_the_profile_ends() -> None:
    with pytest.raises(ZeroDivisionError), profiled() as profile, work("x"):
        raise ZeroDivisionError
    assert [done.calls for done in profile.of_stage("")] == [1]
    with profiled(), pytest.raises(InvalidInput, match="being taken"), profiled():
        pass
    with work("x"):  # nobody looks
        pass
    assert [done.calls for done in profile.of_stage("")] == [1]


def test_totals_add_up_by_kind() -> None:
    with profiled() as profile:
        for stage, times in (("a", 2), ("b", 3)):
            profile.stage = stage
            for _ in range(times):
                with work("x", 4):
                    pass
    (done,) = total([*profile.of_stage("a"), *profile.of_stage("b")])
    assert (done.kind, done.calls, done.items) == ("x", 5, 20)


def test_fit_writes_its_profile_and_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragadapt.encoder.encoder._FIRST_WINDOW", 8)  # so that a window follows while it is encoded
    model, docs = write_tiny_model(tmp_path / "base"), write_pages(tmp_path / "docs")
    target, file = tmp_path / "retriever", tmp_path / "out" / "profile.json"
    small = ["--set", "chunk.max_tokens=40", "--set", "chunk.min_tokens=4", "--index", "exact", "--method", "none"]
    code = run(["fit", str(docs), "-o", str(target), "--model", str(model), *small, "--profile", str(file)])
    assert code == 0, capsys.readouterr().err
    told = json.loads(file.read_text(encoding="utf-8"))
    by_stage = {stage["stage"]: stage for stage in told["stages"]}
    chunks = read_report(target / "report").corpus.chunks  # type: ignore[union-attr]
    assert {"read", "chunks", "base-vectors", "lexical", "index", "commit"} <= set(by_stage)
    works = {done["kind"]: done for done in told["work"]}
    assert works["index"]["items"] == works["lexical index"]["items"] == chunks
    assert works["forward"]["calls"] > 0 and works["forward"]["seconds"] > 0
    encoded = {done["kind"]: done for done in by_stage["base-vectors"]["work"]}
    assert encoded["tokenise"]["beside_seconds"] > 0  # while the batch before went through the model
    assert encoded["forward"]["items"] <= chunks
    for stage in told["stages"]:
        assert sum(done["seconds"] for done in stage["work"]) == pytest.approx(stage["seconds"], abs=1e-6)
    assert sum(stage["seconds"] for stage in told["stages"]) <= told["seconds"]
    assert told["peak_memory_bytes"] > 50_000_000
    page = (target / "report" / "report.html").read_text(encoding="utf-8")
    assert "Time by kind of work" in page and "forward" in page
    reported = {timing.stage: timing for timing in read_report(target / "report").timings}
    assert {done.kind for done in reported["base-vectors"].work} >= {"forward", "tokenise"}


def test_fit_without_a_profile_reports_stages_alone(tmp_path: Path) -> None:
    from small_retriever import fit_pages

    report = read_report(fit_pages(tmp_path) / "report")
    assert report.timings and all(timing.work == () for timing in report.timings)
    assert "Time by kind of work" not in (tmp_path / "retriever" / "report" / "report.html").read_text(encoding="utf-8")
