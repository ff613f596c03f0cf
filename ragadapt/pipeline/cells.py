"""Work in processes of their own: what one took of memory is told of it alone, and several run beside each other.

A process is a Python that reads a function of ragadapt and its arguments from its parent, and ends with its parent.
What it makes are files; its answer is small.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from ragadapt.errors import RagadaptError, TrainingFailed
from ragadapt.values import Progress, no_progress

_BOOT: Final = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from ragadapt.pipeline.cells import serve
serve()
"""
_MARK: Final = b"ragadapt "  # begins the lines that are ours; whatever else is printed is not
_LAST_LINES = 5  # of what a process said before it broke down


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_bytes() -> int | None:
    """The most memory that this process has held since it was started; None where the system does not tell.

    `getrusage` tells on Linux what the process had that started this one, too.
    """
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with suppress(ImportError, OSError):
        import resource

        if sys.platform == "darwin":
            return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return None


class Cells:
    """Runs functions, at most `jobs` at a time, each in a process of its own; jobs = 0: in this one. A context manager:
    leaving it ends what still runs."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._places = threading.Semaphore(max(1, jobs))
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End what runs, and start nothing any more; whoever waits for an answer gets TrainingFailed."""
        with self._lock:
            self._closed = True
            left = list(self._running)
        for process in left:
            with suppress(OSError):
                process.kill()

    def run(self, function: Callable[..., Any], *arguments: Any, progress: Progress = no_progress) -> Any:
        """What the function gives; it takes `progress` besides. Raises what it raises, if that is an error of ours,
        else TrainingFailed with what the process said last."""
        with self._places:
            if self.jobs == 0:
                return function(*arguments, progress=progress)
            return self._apart(function, arguments, progress)

    def _apart(self, function: Callable[..., Any], arguments: tuple[Any, ...], progress: Progress) -> Any:
        path = [os.fspath(entry) for entry in sys.path if isinstance(entry, str | os.PathLike)]
        path.sort(key=lambda entry: entry in ("", "."))  # the working folder last: it may be full of strangers' files
        with self._lock:
            if self._closed:
                raise TrainingFailed("The comparison was stopped.")
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, json.dumps(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment(),
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
            self._running.add(process)
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        said: list[str] = []
        listener = threading.Thread(target=_listen, args=(process.stderr, said), daemon=True)
        listener.start()
        try:
            with suppress(OSError):  # it ended at once: what it said tells why
                pickle.dump((function.__module__, function.__qualname__, arguments), process.stdin)
                process.stdin.flush()
            answer = _answer(process.stdout, progress)
            if answer is None:
                code = process.wait()
                listener.join(timeout=5)
                how = f"signal {-code}" if code < 0 else f"status {code}"
                words = " ".join(said[-_LAST_LINES:])
                raise TrainingFailed(f"A process that trained broke down ({how}). {words}".rstrip())
        finally:
            with self._lock:
                self._running.discard(process)
            with suppress(OSError):
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(OSError):
                    pipe.close()
        (value,) = answer
        if isinstance(value, RagadaptError):
            raise value
        return value

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        if self.jobs > 1:  # each has its share of the processors
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // self.jobs)))
        return environment


def _listen(pipe: IO[bytes], said: list[str]) -> None:
    for line in pipe:
        said.append(line.decode("utf-8", "replace").strip())
        del said[:-50]


def _answer(pipe: IO[bytes], progress: Progress) -> tuple[Any] | None:
    """What the process gives, in a tuple, after its progress; None where it ended without a word."""
    for line in pipe:
        if not line.startswith(_MARK):
            continue
        message = json.loads(line[len(_MARK) :])
        if "size" in message:
            return (pickle.loads(pipe.read(message["size"])),)
        progress(*message["progress"])
    return None


# The other side --------------------------------------------------------------------------------------------


def serve() -> None:
    """Run what the parent asks for and answer. Ends with the parent. Runs in the process that `Cells` starts."""
    asked = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not speak here
    with suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this
    module, name, arguments = pickle.load(asked)
    threading.Thread(target=_end_with_parent, args=(asked,), daemon=True).start()

    def progress(stage: str, done: int, total: int) -> None:
        answers.write(_MARK + json.dumps({"progress": [stage, done, total]}).encode("ascii") + b"\n")
        answers.flush()

    answer: Any
    try:
        answer = getattr(importlib.import_module(module), name)(*arguments, progress=progress)
    except RagadaptError as error:
        answer = error
    body = pickle.dumps(answer)
    answers.write(_MARK + json.dumps({"size": len(body)}).encode("ascii") + b"\n" + body)
    answers.flush()
    os._exit(0)  # nothing is left to do, and threads of libraries may linger


def _end_with_parent(pipe: IO[bytes]) -> None:
    while pipe.read(1):
        pass
    os._exit(1)
