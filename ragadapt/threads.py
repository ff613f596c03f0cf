"""How many threads numerical libraries take, and what a forked process can do with them."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

_FORK_SECONDS = 10.0  # how long a fork waits for what other threads are computing
_WITH_POOLS = ("numpy", "scipy", "scipy.linalg", "torch", "faiss")
_lock = threading.Lock()
_found: tuple[tuple[bool, ...], _Pools] | None = None  # with what was loaded then
_inside = 0  # blocks of one_thread that are running
_blas: list[tuple[Any, int]] = []  # BLAS libraries that they limit, and to how many threads each goes back
_here = threading.local()  # pools: those that the calling thread's blocks limit already


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block products run on the calling thread alone.

    For one query other threads save less time than it takes to wake them, and on a machine that is busy, or a
    container with a small share of one, they burn many times the work in waiting for each other. OpenMP's setting is
    the calling thread's own. That of a BLAS library is the process's: what other threads multiply meanwhile with numpy
    takes one thread too.
    """
    pools, outer = _pools(), getattr(_here, "pools", None)
    if outer is pools:  # within another block
        yield
        return
    _limit_blas(pools)
    before = [(put, get()) for get, put in pools.openmp]
    try:
        for put, _ in before:
            put(1)
        mkl, _here.pools = _limit_mkl(1), pools
        try:
            yield
        finally:
            _here.pools = outer
            _limit_mkl(mkl)
    finally:
        for put, threads in before:
            put(threads)
        _free_blas()


def _limit_blas(pools: _Pools) -> None:
    global _inside, _blas
    with _lock:
        _inside += 1
        if _inside == 1:
            several = ((library, library.num_threads) for library in pools.blas)
            _blas = [(library, threads) for library, threads in several if threads != 1]
            for library, _ in _blas:
                library.set_num_threads(1)


def _free_blas() -> None:
    global _inside, _blas
    with _lock:
        _inside -= 1
        if _inside == 0:
            for library, threads in _blas:
                library.set_num_threads(threads)
            _blas = []


class _Pools(NamedTuple):
    """Libraries with threads of their own. openmp: (ask for, set) the number of the calling thread; blas: as
    threadpoolctl has them."""

    openmp: list[tuple[Callable[[], int], Callable[[int], object]]]
    blas: list[Any]


def _pools() -> _Pools:
    """Those that are loaded."""
    global _found
    if (ask := getattr(sys.modules.get("torch"), "get_num_threads", None)) is not None:
        ask()  # in each thread torch's first look sets the number anew, so it comes before ours
    loaded = tuple(name in sys.modules for name in _WITH_POOLS)
    found = _found
    if found is None or found[0] != loaded:  # milliseconds, once
        from threadpoolctl import ThreadpoolController

        every = ThreadpoolController()
        openmp = [_of_openmp(one.filepath) for one in every.select(user_api="openmp").lib_controllers]
        found = _found = (loaded, _Pools(openmp, every.select(user_api="blas").lib_controllers))
    return found[1]


def _of_openmp(library: str) -> tuple[Callable[[], int], Callable[[int], object]]:
    # Called without leaving Python's lock, for which a busy process would let others through.
    opened = ctypes.PyDLL(library)
    return opened.omp_get_max_threads, opened.omp_set_num_threads


def _limit_mkl(threads: int) -> int:
    """How many threads torch's own MKL takes for products of the calling thread; 0 = as many as it is told by torch.

    It is linked into torch, where threadpoolctl does not see it, and has a number beside OpenMP's. Returns the one
    before.
    """
    torch = sys.modules.get("torch")
    if torch is None or torch.__file__ is None:
        return 0
    return int(_mkl(torch.__file__)(threads))


@cache
def _mkl(torch: str) -> Any:
    try:
        return ctypes.PyDLL(str(Path(torch).parent / "lib" / "libtorch_cpu.so")).MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):  # another system's torch
        return lambda threads: 0


class SharedLock:
    """Held by many who only read (`shared`), or by one alone who changes something (`with lock`, `acquire`).

    Readers keep none of each other waiting. Who waits to be alone goes before readers that come later. Either may be
    taken again by the thread that holds it; a reader that wants to be alone waits for the other readers, so two of
    them must not want that at once. Who is alone may begin to read, and go on reading when others come.

    A change that takes long to prepare is `reserved`: until its end nobody else changes anything, and all others read.
    """

    def __init__(self) -> None:
        self._free = threading.Condition(threading.Lock())
        self._readers: dict[int, int] = {}  # thread → how often it reads
        self._alone: int | None = None  # the thread that is alone
        self._depth = 0
        self._reserved: int | None = None  # the thread that alone may be alone
        self._reservations = 0
        self._waiting = 0

    def acquire(self, timeout: float = -1) -> bool:
        """Be alone; False where others are still there after so many seconds. timeout: -1 = wait for as long as it
        takes."""
        me, end = threading.get_ident(), None if timeout < 0 else time.monotonic() + timeout
        with self._free:
            while self._alone != me:
                if not self._free.wait_for(lambda: self._reserved in (None, me), _left(end)):
                    return False
                self._waiting += 1
                try:
                    there = self._free.wait_for(
                        lambda: (
                            self._reserved not in (None, me) or (self._alone is None and self._readers.keys() <= {me})
                        ),
                        _left(end),
                    )
                finally:
                    self._waiting -= 1
                    self._free.notify_all()
                if not there:
                    return False
                if self._reserved in (None, me):  # else another one was quicker: readers need not wait for that
                    self._alone = me
            self._depth += 1
            return True

    def release(self) -> None:
        """Be alone no more."""
        with self._free:
            self._depth -= 1
            if self._depth == 0:
                self._alone = None
                self._free.notify_all()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Prepare a change: others read, and nobody but this thread can be alone inside the block."""
        me = threading.get_ident()
        with self._free:
            self._free.wait_for(lambda: self._reserved in (None, me) and self._alone in (None, me))
            self._reserved = me
            self._reservations += 1
        try:
            yield
        finally:
            with self._free:
                self._reservations -= 1
                if self._reservations == 0:
                    self._reserved = None
                    self._free.notify_all()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Read: nobody changes anything inside the block."""
        me = threading.get_ident()
        with self._free:
            if me not in self._readers and self._alone != me:
                self._free.wait_for(lambda: self._alone is None and not self._waiting)
            self._readers[me] = self._readers.get(me, 0) + 1
        try:
            yield
        finally:
            with self._free:
                self._readers[me] -= 1
                if self._readers[me] == 0:
                    del self._readers[me]
                    if self._waiting:
                        self._free.notify_all()


def _left(end: float | None) -> float | None:
    """Seconds until then; None = for ever."""
    return None if end is None else max(0.0, end - time.monotonic())


# Forks


class Forkable(Protocol):
    """What other threads may be using while the process is forked."""

    def _fork_lock(self) -> Any:
        """The lock under which it is used: held during the fork, since what holds a lock inside torch or FAISS then
        would leave it locked in the child for ever."""

    def _after_fork(self) -> None:
        """In the child: locks may be held by threads that are not there, and SQLite's connections must not be used."""


_searched: weakref.WeakSet[Any] = weakref.WeakSet()
_encoding: weakref.WeakSet[Any] = weakref.WeakSet()  # used from within a search, so they are locked after those
_held = threading.local()  # locks: those that this thread holds during its fork


def follow_forks(owner: Forkable, *, encoder: bool = False) -> None:
    """Take care of the owner whenever this process is forked, as long as it lives."""
    (_encoding if encoder else _searched).add(owner)


def _before() -> None:
    end, _held.locks = time.monotonic() + _FORK_SECONDS, []
    for owner in (*_searched, *_encoding):
        lock = owner._fork_lock()
        if lock.acquire(timeout=max(0.0, end - time.monotonic())):
            _held.locks.append(lock)


def _in_parent() -> None:
    while _held.locks:
        _held.locks.pop().release()


def _in_child() -> None:
    global _lock, _inside, _blas
    _lock, _inside, _blas, _here.pools = threading.Lock(), 0, [], None
    if "torch" in sys.modules or "faiss" in sys.modules:
        # GNU OpenMP waits for ever for the threads that this one had in the parent; alone it waits for nobody. Threads
        # that start from here on have pools of their own.
        for _, put in _pools().openmp:
            put(1)
        _limit_mkl(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # their pool is gone too
    for owner in (*_searched, *_encoding):
        owner._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
