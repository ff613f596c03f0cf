"""Where the time goes: seconds and calls by stage and by kind of work, while a profile is being taken.

Code says what it does with `work("forward")`; without a profile that costs nothing worth measuring. Work within
work counts for itself alone. What another thread does meanwhile (tokenising the next batch) is kept apart, as time
beside the main thread's. On a GPU every piece of work is waited for, or its time would be found in a later one.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ragadapt.errors import InvalidInput
from ragadapt.files import write_text

SCHEMA_VERSION = 1

OTHER = "other"
"""What a stage took beyond the work that it named."""


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of work. items: texts, examples or passages worked on, 0 where nobody counted. beside_seconds: of
    other threads, within the seconds of whatever the main thread did meanwhile."""

    kind: str
    calls: int = 0
    items: int = 0
    seconds: float = 0.0
    beside_seconds: float = 0.0


class Profile:
    """What was done so far. `stage` is the one that runs; whoever runs stages sets it."""

    def __init__(self) -> None:
        self.stage = ""
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._local = threading.local()
        self._done: dict[tuple[str, str], Work] = {}
        self._started = time.perf_counter()

    @contextmanager
    def measure(self, kind: str, items: int) -> Iterator[None]:
        outside: float = getattr(self._local, "within", 0.0)
        self._local.within = 0.0
        stage = self.stage
        _wait_for_gpu()
        started = time.perf_counter()
        try:
            yield
        finally:
            _wait_for_gpu()
            took = time.perf_counter() - started
            own = took - self._local.within
            self._local.within = outside + took
            beside = threading.get_ident() != self._thread
            with self._lock:
                known = self._done.get((stage, kind), Work(kind))
                self._done[stage, kind] = Work(
                    kind,
                    known.calls + 1,
                    known.items + items,
                    known.seconds + (0.0 if beside else own),
                    known.beside_seconds + (own if beside else 0.0),
                )

    def of_stage(self, stage: str, seconds: float | None = None) -> tuple[Work, ...]:
        """The stage's work, longest first. seconds: of the whole stage; what no work accounts for is other."""
        with self._lock:
            found = [done for (name, _), done in self._done.items() if name == stage]
        if seconds is not None:
            rest = seconds - sum(done.seconds for done in found)
            if rest > 0:
                found.append(Work(OTHER, seconds=rest))
        return _longest_first(found)

    def report(self, stages: dict[str, float]) -> dict[str, Any]:
        """Everything as JSON values. stages: seconds of each."""
        listed = {stage: self.of_stage(stage, seconds) for stage, seconds in stages.items()}
        return {
            "schema_version": SCHEMA_VERSION,
            "seconds": time.perf_counter() - self._started,
            "peak_memory_bytes": peak_memory_bytes(),
            "work": [asdict(done) for done in total(work for works in listed.values() for work in works)],
            "stages": [
                {"stage": stage, "seconds": stages[stage], "work": [asdict(done) for done in works]}
                for stage, works in listed.items()
            ],
        }

    def write(self, path: Path, stages: dict[str, float]) -> None:
        """The report as a JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(self.report(stages), indent=2) + "\n")


class Clock:
    """Seconds by stage; a stage within another counts for itself alone. profile: told which stage runs."""

    def __init__(self, profile: Profile | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.profile = profile
        self._within = 0.0  # seconds of the stages inside the one that is running

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start, outside, self._within = time.perf_counter(), self._within, 0.0
        before = self.profile.stage if self.profile else ""
        if self.profile:
            self.profile.stage = stage
        try:
            yield
        finally:
            if self.profile:
                self.profile.stage = before
            took = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + took - self._within
            self._within = outside + took


_active: Profile | None = None


@contextmanager
def profiled() -> Iterator[Profile]:
    """Take a profile of the block. Raises InvalidInput while another one is taken in this process."""
    global _active
    if _active is not None:
        raise InvalidInput("A profile is being taken in this process already; wait until it is done.")
    _active = Profile()
    try:
        yield _active
    finally:
        _active = None


@contextmanager
def work(kind: str, items: int = 0) -> Iterator[None]:
    """Count the block as work of this kind, if a profile is being taken."""
    profile = _active
    if profile is None:
        yield
        return
    with profile.measure(kind, items):
        yield


def total(works: Any) -> tuple[Work, ...]:
    """Added up by kind, longest first."""
    sums: dict[str, Work] = {}
    for done in works:
        known = sums.get(done.kind, Work(done.kind))
        sums[done.kind] = replace(
            known,
            calls=known.calls + done.calls,
            items=known.items + done.items,
            seconds=known.seconds + done.seconds,
            beside_seconds=known.beside_seconds + done.beside_seconds,
        )
    return _longest_first(list(sums.values()))


def peak_memory_bytes() -> int | None:
    """The most memory that this process held so far; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child begins with its parent's
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _longest_first(works: list[Work]) -> tuple[Work, ...]:
    return tuple(sorted(works, key=lambda done: (-done.seconds, -done.beside_seconds, done.kind)))


def _wait_for_gpu() -> None:
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
