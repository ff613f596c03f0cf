"""Uploads to a Qdrant server: several requests at a time, never far ahead of the server, nothing lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from ragadapt.config import FitConfig
from ragadapt.errors import IndexUnreachable, InvalidInput

pytest.importorskip("qdrant_client")

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException

from ragadapt.index.qdrant import BATCH, QdrantIndex, in_parallel

DIM = 4


class Slow:
    """An in-memory engine that takes its time over writes, and counts how many are under way."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.engine = QdrantClient(":memory:", force_disable_check_same_thread=True)
        params = models.VectorParams(size=DIM, distance=models.Distance.DOT)
        self.engine.create_collection("c", vectors_config={"passage": params})
        self.lock = threading.Lock()
        self.calls = self.now = self.most = 0
        self.fail_at = fail_at

    def upsert(self, *arguments: Any, **options: Any) -> Any:
        with self.lock:
            self.calls += 1
            self.now += 1
            self.most = max(self.most, self.now)
            broken = self.fail_at is not None and self.calls >= self.fail_at
        time.sleep(0.02)
        with self.lock:
            self.now -= 1
            if broken:
                raise ResponseHandlingException(ValueError("connection refused"))
            return self.engine.upsert(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


def index_over(engine: Slow, workers: int) -> QdrantIndex:
    return QdrantIndex(engine, "c", DIM, None, url="http://somewhere", upload_workers=workers)  # type: ignore[arg-type]


def rows(count: int) -> tuple[list[str], np.ndarray]:
    return [f"p{at}" for at in range(count)], np.random.default_rng(0).standard_normal((count, DIM)).astype(np.float32)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_vector_and_payload_arrives_however_many_upload(workers: int) -> None:
    engine = Slow()
    ids, vectors = rows(5 * BATCH + 7)
    index = index_over(engine, workers)
    index.upsert(ids, vectors, [{"n": at} for at in range(len(ids))])
    assert len(index) == len(ids)
    assert np.array_equal(index.vectors(ids), vectors)
    assert index.payloads(ids) == [{"n": at} for at in range(len(ids))]
    assert engine.calls == 6
    assert engine.most == workers


def test_a_stream_is_read_no_faster_than_the_server_writes() -> None:
    engine, workers, read = Slow(), 2, []
    ids, vectors = rows(12 * BATCH)

    def stream() -> Iterator[tuple[list[str], np.ndarray]]:
        for start in range(0, len(ids), BATCH):
            with engine.lock:
                finished = engine.calls - engine.now
            read.append(len(read) - finished)
            yield ids[start : start + BATCH], vectors[start : start + BATCH]

    index = index_over(engine, workers)
    assert index.upsert_many(stream()) == len(ids)
    assert np.array_equal(index.vectors(ids), vectors)
    assert max(read) <= 2 * workers + 1
    assert engine.most == workers


def test_a_server_that_goes_away_stops_the_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragadapt.index.qdrant.ATTEMPTS", 1)
    engine = Slow(fail_at=3)
    ids, vectors = rows(40 * BATCH)
    with pytest.raises(IndexUnreachable, match="does not answer"):
        index_over(engine, 2).upsert(ids, vectors)
    assert engine.now == 0  # nothing runs on behind the error
    assert engine.calls < 12


def test_in_parallel_raises_the_error_of_the_stream_itself() -> None:
    done: list[int] = []

    def items() -> Iterator[int]:
        yield from range(3)
        raise KeyError("end")

    with pytest.raises(KeyError, match="end"):
        in_parallel(done.append, items(), 2)
    assert set(done) <= {0, 1, 2}


def test_local_mode_takes_one_request_at_a_time() -> None:
    with QdrantIndex.open(None, ":memory:", "c", DIM, None, upload_workers=4) as index:
        ids, vectors = rows(3 * BATCH)
        index.upsert(ids, vectors)
        assert index._workers == 1 and np.array_equal(index.vectors(ids), vectors)


def test_upload_workers_is_a_setting() -> None:
    assert FitConfig.build({"index": {"upload_workers": 9}}).index.upload_workers == 9
    with pytest.raises(InvalidInput, match="upload_workers"):
        FitConfig.build({"index": {"upload_workers": 0}})
    with pytest.raises(InvalidInput, match="at least one"):
        index_over(Slow(), 0)
