"""Work in processes of their own: what one took of memory is told of it alone, and several run beside each other.

A process is a Python that reads functions of ragadapt and their arguments from its parent, and ends with its parent.
What it makes are files; its answers are small.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from ragadapt.errors import RagadaptError, TrainingFailed
from ragadapt.threads import cores
from ragadapt.values import Progress, no_progress

_BOOT: Final = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from ragadapt.pipeline.cells import serve
serve()
"""
_MARK: Final = b"ragadapt "  # begins the lines that are ours; whatever else is printed is not
_LAST_LINES = 5  # of what a process said before it broke down


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
    leaving it ends what still runs.

    reuse: a process takes one function after another, which saves its start; then the memory that it held is that of
    the largest of them.
    """

    def __init__(self, jobs: int, *, reuse: bool = False) -> None:
        self.jobs = jobs
        self.reuse = reuse
        self._places = threading.Semaphore(max(1, jobs))
        self._running: set[_Worker] = set()
        self._idle: list[_Worker] = []
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
            running, idle = list(self._running), self._idle
            self._idle = []
        for worker in running:
            worker.kill()
        for worker in idle:
            worker.end()

    def run(self, function: Callable[..., Any], *arguments: Any, progress: Progress = no_progress) -> Any:
        """What the function gives; it takes `progress` besides. Raises what it raises, if that is an error of ours,
        else TrainingFailed with what the process said last."""
        with self._places:
            if self.jobs == 0:
                return function(*arguments, progress=progress)
            return self._apart(function, arguments, progress)

    def _apart(self, function: Callable[..., Any], arguments: tuple[Any, ...], progress: Progress) -> Any:
        with self._lock:
            if self._closed:
                raise TrainingFailed("The comparison was stopped.")
            idle = [worker for worker in self._idle if worker.alive()]
            worker = idle.pop() if idle else _Worker(self._environment())
            self._idle = idle
            self._running.add(worker)
        kept = False
        try:
            value = worker.ask(function, arguments, progress)
            kept = self.reuse
        finally:
            with self._lock:
                self._running.discard(worker)
                kept = kept and not self._closed
                if kept:
                    self._idle.append(worker)
            if not kept:
                worker.end()
        if isinstance(value, RagadaptError):
            raise value
        return value

    def _environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        if self.jobs > 1:  # each has its share of the processors
            share = str(max(1, cores() // self.jobs))
            for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):  # of torch, and of the tokenizers
                environment.setdefault(name, share)
        return environment


class _Worker:
    """A process that does what it is asked, one thing at a time."""

    def __init__(self, environment: dict[str, str]) -> None:
        path = [os.fspath(entry) for entry in sys.path if isinstance(entry, str | os.PathLike)]
        path.sort(key=lambda entry: entry in ("", "."))  # the working folder last: it may be full of strangers' files
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, json.dumps(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        self._said: list[str] = []
        self._listener = threading.Thread(target=_listen, args=(self._process.stderr, self._said), daemon=True)
        self._listener.start()

    def ask(self, function: Callable[..., Any], arguments: tuple[Any, ...], progress: Progress) -> Any:
        """The answer, which may be an error. Raises TrainingFailed where the process ended without one."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError):  # it ended at once: what it said tells why
            pickle.dump((function.__module__, function.__qualname__, arguments), process.stdin)
            process.stdin.flush()
        answer = _answer(process.stdout, progress)
        if answer is None:
            code = process.wait()
            self._listener.join(timeout=5)
            how = f"signal {-code}" if code < 0 else f"status {code}"
            words = " ".join(self._said[-_LAST_LINES:])
            raise TrainingFailed(f"A process that trained broke down ({how}). {words}".rstrip())
        return answer[0]

    def alive(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        with suppress(OSError):
            self._process.kill()

    def end(self) -> None:
        """Kill it, and leave nothing of it."""
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


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
    """Run what the parent asks for and answer, again and again. Ends with the parent. Runs in the process that `Cells`
    starts."""
    asked = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not speak here
    with suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this
    requests: queue.SimpleQueue[tuple[str, str, tuple[Any, ...]]] = queue.SimpleQueue()
    threading.Thread(target=_hear, args=(asked, requests), daemon=True).start()

    def progress(stage: str, done: int, total: int) -> None:
        answers.write(_MARK + json.dumps({"progress": [stage, done, total]}).encode("ascii") + b"\n")
        answers.flush()

    while True:
        module, name, arguments = requests.get()
        answer: Any
        try:
            answer = getattr(importlib.import_module(module), name)(*arguments, progress=progress)
        except RagadaptError as error:
            answer = error
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        del arguments
        body = pickle.dumps(answer)
        answers.write(_MARK + json.dumps({"size": len(body)}).encode("ascii") + b"\n" + body)
        answers.flush()


def _hear(pipe: IO[bytes], requests: queue.SimpleQueue[Any]) -> None:
    """Take requests until the parent ends, and then end too, whatever is being done."""
    try:
        while True:
            requests.put(pickle.load(pipe))
    except EOFError:
        pass
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)
