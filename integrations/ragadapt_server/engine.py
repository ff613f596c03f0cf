"""One retriever, asked by many at once: what arrives together is encoded and searched together.

Two loops, each with a thread of its own, so that one batch is searched while the next one is encoded:

    request → queue → encode (queries before slices of passages) → queue → search → answer

A batch is whatever waits when the one before is done. So a request that comes alone waits for nobody, and nobody waits
for a clock. Long lists of passages go in slices between which queries take their turn.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from ragadapt.checks import (
    MODES,
    checked_choice,
    checked_confidence,
    checked_k,
    checked_lam,
    checked_queries,
    checked_texts,
)
from ragadapt.errors import InvalidFilter
from ragadapt.pefa.ledger import named_tenant
from ragadapt.retriever import Retriever
from ragadapt.search.context import Expand
from ragadapt.search.diversity import Fold, checked_fold, checked_max_per_document
from ragadapt.search.fusion import Floats
from ragadapt.search.searcher import Mode
from ragadapt.snapshot import Snapshot
from ragadapt.values import Hit
from ragadapt_server.errors import Refused
from ragadapt_server.metrics import Metrics

_QUERIES = 256  # that are encoded or searched together
_SLICE_CHARACTERS = 24_000  # of passages that are encoded together: some tenths of a second on a CPU
_FOLLOW_SECONDS = 1.0
_MOST_HITS = 1000
_MOST_OF_A_QUERY = 50_000  # characters; its words are all looked up, and everybody waits meanwhile
_ENCODED_OF_A_TEXT = 100_000  # characters; no model reads on, but the rest would be cut into tokens first

Task = Literal["query", "passage"]
T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Texts:
    """Texts of one request that wait to be encoded, all by one build. rows: filled slice by slice."""

    texts: list[str]
    task: Task
    done: asyncio.Future[Encoded]
    since: float = field(default_factory=time.monotonic)
    snapshot: Snapshot | None = None
    rows: Floats | None = None
    counted: bool = True
    tokens: int = 0
    taken: int = 0  # texts that were given to the encoder


@dataclass(frozen=True, slots=True)
class Encoded:
    """(n, d) vectors of one build's encoder, and how many tokens the texts had."""

    vectors: Floats
    tokens: int
    snapshot: Snapshot


@dataclass(eq=False, slots=True)
class _Search:
    """group: equal for searches that can run together."""

    query: str
    arguments: dict[str, Any]
    group: str
    done: asyncio.Future[list[Hit]]
    since: float = field(default_factory=time.monotonic)


class Engine:
    """A retriever and its queues. `start` and `close` belong to the event loop that asks."""

    def __init__(self, name: str, retriever: Retriever, metrics: Metrics, max_waiting: int = 4096) -> None:
        self.name = name
        self.retriever = retriever
        self.metrics = metrics
        self.max_waiting = max_waiting
        self._queries: deque[_Texts] = deque()
        self._passages: deque[_Texts] = deque()
        self._searches: deque[_Search] = deque()
        self._waiting = 0  # texts and searches that were let in and are not answered
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-encode")
        self._searching = ThreadPoolExecutor(1, thread_name_prefix=f"{name}-search")
        self._other = ThreadPoolExecutor(4, thread_name_prefix=f"{name}-other")
        self._loops: list[asyncio.Task[None]] = []
        self._shown: tuple[str, str, str] | None = None

    async def start(self) -> None:
        """Begin to answer."""
        self._to_encode, self._to_search = asyncio.Event(), asyncio.Event()
        self._show_build()
        self._loops = [asyncio.create_task(loop()) for loop in (self._encode_loop, self._search_loop, self._follow)]

    async def close(self) -> None:
        """Let what runs end, and close the retriever."""
        for loop in self._loops:
            loop.cancel()
        for loop in self._loops:
            with suppress(asyncio.CancelledError):
                await loop
        for pool in (self._encoding, self._searching, self._other):
            await asyncio.to_thread(pool.shutdown, wait=True, cancel_futures=True)
        self.retriever.close()

    # What can be asked

    async def encode(self, texts: Sequence[str], task: Task) -> Encoded:
        """The texts' vectors. Raises InvalidInput, Refused where too much waits."""
        checked = checked_lengths(texts) if task == "query" else checked_texts(texts)
        with self._admitted(len(checked)):
            return await self._encode(checked, task)

    async def _encode(self, texts: list[str], task: Task, counted: bool = True) -> Encoded:
        if task == "passage":
            texts = [text if len(text) <= _ENCODED_OF_A_TEXT else text.strip()[:_ENCODED_OF_A_TEXT] for text in texts]
        job = _Texts(texts, task, asyncio.get_running_loop().create_future(), counted=counted)
        (self._queries if task == "query" else self._passages).append(job)
        self._to_encode.set()
        return await job.done

    async def search(
        self,
        query: str,
        k: int | None = None,
        *,
        mode: Mode = "hybrid",
        filter: Mapping[str, Any] | None = None,
        lam: float | None = None,
        tenant: str | None = None,
        expand: Expand | None = None,
        fold: Fold = "same",
        max_per_document: int | None = None,
        min_confidence: float | None = None,
    ) -> list[Hit]:
        """As `Retriever.search`."""
        (query,) = checked_lengths([query])
        checked_choice("mode", mode, MODES)
        named_tenant(tenant)
        if k is not None and checked_k(k) > _MOST_HITS:
            raise Refused(400, f"k = {k}: a request gets at most {_MOST_HITS:,} results.")
        arguments = {
            "k": k, "mode": mode, "filter": filter, "lam": checked_lam(lam), "tenant": tenant, "expand": expand,
            "fold": checked_fold(fold), "max_per_document": checked_max_per_document(max_per_document),
            "min_confidence": checked_confidence(min_confidence),
        }  # fmt: skip
        try:
            group = json.dumps(arguments, sort_keys=True, default=repr)
        except (RecursionError, TypeError, ValueError) as error:
            raise InvalidFilter("A filter is too deep, holds itself, or has names that are no text.") from error
        with self._admitted(1):
            # The vector is remembered by the build that made it, and found there by the search; a tenant's own is not.
            if mode != "lexical" and not self.retriever.adapts_for(tenant):
                await self._encode([query], "query", counted=False)
            job = _Search(query, arguments, group, asyncio.get_running_loop().create_future())
            self._searches.append(job)
            self._to_search.set()
            return await job.done

    async def score(self, query: str, texts: Sequence[str]) -> tuple[Floats, Floats, int]:
        """(n,) scores of given texts as `Retriever.score` gives them, with the second stage where one shipped, (n,) the
        probability that each answers the query, and the tokens that the first stage read."""
        (query,), texts = checked_lengths([query]), checked_texts(texts)
        with self._admitted(1 + len(texts)):
            asked, encoded = await asyncio.gather(self._encode([query], "query"), self._encode(texts, "passage"))
            now = encoded.snapshot
            scores, sure = await self.call(now.score, query, texts, encoded.vectors, rerank=now.reranks)
        return scores, sure, asked.tokens + encoded.tokens

    async def call(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """What is asked rarely or waits for a disk, in a thread of its own."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._other, lambda: function(*arguments, **named))

    def _admitted(self, count: int) -> _Admitted:
        return _Admitted(self, count)

    # The loops

    async def _encode_loop(self) -> None:
        loop = asyncio.get_running_loop()
        passages_next = False
        while True:
            await self._to_encode.wait()
            self._drop_cancelled(self._queries)
            self._drop_cancelled(self._passages)
            if not self._queries and not self._passages:
                self._to_encode.clear()
                continue
            turn = self._passages if self._passages and (passages_next or not self._queries) else self._queries
            passages_next = turn is self._queries
            pieces = self._take(turn)
            started = time.monotonic()
            for job, first, _ in pieces:
                if first == 0:
                    self.metrics.stages.labels("wait").observe(started - job.since)
            self.metrics.batches.labels("encode").observe(sum(last - first for _, first, last in pieces))
            try:
                await loop.run_in_executor(self._encoding, self._run, pieces)
            except Exception as error:
                for job, _, _ in pieces:
                    _fail(job.done, error)
                    with suppress(ValueError):
                        turn.remove(job)
                continue
            finally:
                self.metrics.stages.labels("encode").observe(time.monotonic() - started)
            for job, _, last in pieces:
                if last == len(job.texts) and not job.done.done():
                    assert job.rows is not None and job.snapshot is not None
                    job.done.set_result(Encoded(job.rows, job.tokens, job.snapshot))

    def _take(self, queue: deque[_Texts]) -> list[tuple[_Texts, int, int]]:
        """(job, first, last) of the texts that are encoded next. Only the first job can have begun before."""
        pieces: list[tuple[_Texts, int, int]] = []
        count = characters = 0
        while queue and count < _QUERIES and characters < _SLICE_CHARACTERS:
            job = queue[0]
            first = last = job.taken
            while last < len(job.texts) and count < _QUERIES and characters < _SLICE_CHARACTERS:
                characters += len(job.texts[last])
                count, last = count + 1, last + 1
            job.taken = last
            pieces.append((job, first, last))
            if last == len(job.texts):
                queue.popleft()
        return pieces

    def _run(self, pieces: list[tuple[_Texts, int, int]]) -> None:
        """Encode the pieces; in the encoding thread."""
        build = pieces[0][0].snapshot or self.retriever.snapshot()  # a request's vectors are all of one model
        texts = [text for job, first, last in pieces for text in job.texts[first:last]]
        if pieces[0][0].task == "query":
            rows = build.query_vectors(texts) if texts else np.zeros((0, build.encoder.dim), np.float32)
        else:
            rows = build.encoder.encode_passages(texts)
        at = 0
        for job, first, last in pieces:
            job.snapshot = build
            if job.rows is None:
                job.rows = np.empty((len(job.texts), build.encoder.dim), np.float32)
            job.rows[first:last] = rows[at : at + last - first]
            if job.counted:
                job.tokens += sum(build.encoder.count_tokens(texts[at : at + last - first]))
            at += last - first

    async def _search_loop(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._to_search.wait()
            jobs = [self._searches.popleft() for _ in range(min(len(self._searches), _QUERIES))]
            if not jobs:
                self._to_search.clear()
                continue
            started = time.monotonic()
            self.metrics.batches.labels("search").observe(len(jobs))
            groups: dict[str, list[_Search]] = {}
            for job in jobs:
                if not job.done.done():  # its client is still there
                    groups.setdefault(job.group, []).append(job)
            for group in groups.values():
                try:
                    found = await loop.run_in_executor(self._searching, self._search_many, group)
                except Exception as error:
                    for job in group:
                        _fail(job.done, error)
                    continue
                for job, hits in zip(group, found, strict=True):
                    if not job.done.done():
                        job.done.set_result(hits)
            self.metrics.stages.labels("search").observe(time.monotonic() - started)

    def _search_many(self, group: list[_Search]) -> list[list[Hit]]:
        return self.retriever.search_many([job.query for job in group], **group[0].arguments)

    async def _follow(self) -> None:
        """Look for a new build also while nobody asks, so that the first to ask after a while need not wait for it."""
        while True:
            await asyncio.sleep(_FOLLOW_SECONDS)
            with suppress(Exception):  # whoever asks next gets the error
                await self.call(self.retriever.snapshot)
            self._show_build()

    def _show_build(self) -> None:
        manifest = self.retriever.manifest
        labels = (self.name, manifest.build_id, manifest.fingerprint)
        if self._shown != labels:
            if self._shown is not None:
                self.metrics.build.labels(*self._shown).set(0)
            self._shown = labels
            self.metrics.build.labels(*labels).set(1)

    @staticmethod
    def _drop_cancelled(queue: deque[_Texts]) -> None:
        while queue and queue[0].done.done():
            queue.popleft()


def checked_lengths(queries: Sequence[str]) -> list[str]:
    """As `checked_queries`; Refused for one that is too long to be a question."""
    checked = checked_queries(queries)
    if (most := max(map(len, checked))) > _MOST_OF_A_QUERY:
        raise Refused(400, f"A query has {most:,} characters; it may have {_MOST_OF_A_QUERY:,}.", "too_long")
    return checked


class _Admitted:
    """While the block runs, its texts count among those that wait; Refused where there is no room."""

    def __init__(self, engine: Engine, count: int) -> None:
        self.engine, self.count = engine, count

    def __enter__(self) -> None:
        engine = self.engine
        # Without its own size: a long request would wait for an empty queue, which a busy server never has.
        if engine._waiting >= engine.max_waiting:
            engine.metrics.refused.inc()
            raise Refused(429, "Too many requests are waiting. Try again in a moment.", "overloaded", 1)
        engine._waiting += self.count

    def __exit__(self, *_: object) -> None:
        self.engine._waiting -= self.count


def _fail(done: asyncio.Future[Any], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
