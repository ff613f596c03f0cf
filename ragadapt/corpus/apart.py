"""Reading in a process of its own, so that no file costs more than its budget of time and memory.

Formats that people exchange as files are read by libraries that a small file can keep busy for hours, fill memory
with, or bring down. The process is kept from file to file; what a file did to it ends with it.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from ragadapt.corpus.content import Content
from ragadapt.corpus.decode import Unreadable
from ragadapt.corpus.files import read_content
from ragadapt.corpus.formats import Format

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ragadapt.config import ReadConfig

log = logging.getLogger(__name__)

_TRUSTED: Final = frozenset(("plain", "code", "python"))  # decoded here; nothing in them is followed
_START_SECONDS: Final = 60
_IDLE_SECONDS: Final = 20  # a process that nobody asks leaves
_ALARMS: Final = hasattr(signal, "setitimer")
_HELLO: Final = b"ragadapt\n"  # after whatever else was printed while Python started
# Whatever else sys.path may hold, both sides are the same ragadapt.
_BOOT: Final = """\
import importlib.util, json, os, sys
path, package, memory_bytes = sys.argv[1:]
sys.path[:] = json.loads(path)
found = importlib.util.spec_from_file_location(
    "ragadapt", package, submodule_search_locations=[os.path.dirname(package)]
)
sys.modules["ragadapt"] = importlib.util.module_from_spec(found)
found.loader.exec_module(sys.modules["ragadapt"])
from ragadapt.corpus.apart import serve
serve(int(memory_bytes))
"""


class Reader:
    """Reads files one after the other, each within the budget of the configuration. A context manager."""

    def __init__(self, config: ReadConfig, folders: Sequence[str] = ()) -> None:
        """folders: those that were given to be read."""
        self.config = config
        self.folders = list(folders)
        self._process: _Process | None = None
        self._alone = not sys.executable or bool(getattr(sys, "frozen", False))  # no Python to start: read here

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is not None:
            if error is None or isinstance(error, Exception):
                _keep(process)
            else:
                process.kill()  # it may be in the middle of a file

    def read(self, data: bytes, format: Format, name: str, asked: bool = False, path: str = "") -> Content:
        """The content of one file. Raises Unreadable with the reason, the end of its time or memory included.

        asked: see read_json. path: where it lies; what it includes is looked for there and in the folders.
        """
        config = self.config
        request = {
            "format": format,
            "name": name,
            "encoding": config.encoding,
            "max_bytes": config.max_file_bytes,
            "text_field": config.text_field,
            "asked": asked,
            "path": path,
            "roots": self.folders,
        }
        if self._alone or format in _TRUSTED:
            return _guarded(data, request)
        seconds = config.seconds_for(len(data))
        while True:
            process = self._process or _take(config.memory_per_file_bytes)
            if process is None:
                self._alone = True
                return _guarded(data, request)
            self._process = process
            fresh = not process.asked
            answer = process.ask(request, data, seconds)
            if answer is not None and "died" not in answer:
                break
            self._process = None
            process.kill()
            if answer is None:
                raise Unreadable(
                    f"took longer than {seconds:,.0f} s to read; read.seconds_per_file gives a file more time"
                )
            if fresh:  # else what came before may have worn it out
                raise Unreadable(answer["died"])
        if "unreadable" in answer:
            raise Unreadable(answer["unreadable"])
        places = tuple((start, values) for start, values in answer["places"])
        answer |= {"notes": tuple(answer["notes"]), "places": places}
        return Content(**answer)


class _Process:
    """The other side: a Python that runs `serve`."""

    def __init__(self, memory_bytes: int) -> None:
        import subprocess  # here: the other side needs none

        self.memory_bytes = memory_bytes
        self.asked = 0
        # What lies in the working folder, which may be full of strangers' files, comes last: -P, and the sort.
        path = [os.fspath(entry) for entry in sys.path if isinstance(entry, str | os.PathLike)]
        path.sort(key=lambda entry: entry in ("", "."))
        here = str(Path(__file__).parents[1] / "__init__.py")
        command = [sys.executable, "-P", "-c", _BOOT, json.dumps(path), here, str(memory_bytes)]
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each takes address space
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **threads},
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._in, self._out = self._popen.stdin, self._popen.stdout

    def started(self) -> bool:
        """Whether it got as far as to say so."""
        with _Deadline(self, _START_SECONDS):
            return any(line.endswith(_HELLO) for line in self._out)

    def alive(self) -> bool:
        return self._popen.poll() is None

    def ask(self, request: Mapping[str, Any], data: bytes, seconds: float) -> dict[str, Any] | None:
        """What it says; {"died": why} where it ended instead; None where the time was over."""
        self.asked += 1
        received = None
        # Where there are alarms, the other side has set one; a thread for every file would cost more than reading it.
        deadline = _Deadline(self, seconds)
        with nullcontext() if _ALARMS else deadline, suppress(OSError, ValueError):
            _send(self._in, {"seconds": seconds, "request": request}, data)
            received = _receive(self._out)
        if received is not None:
            answer: dict[str, Any] = json.loads(received[1])
            return answer
        if deadline.over:
            return None
        code = self._popen.wait()
        if _ALARMS and code == -signal.SIGALRM:
            return None
        how = f"signal {-code}" if code < 0 else f"status {code}"
        return {"died": f"damaged: the program that reads it broke down ({how})"}

    def kill(self) -> None:
        with suppress(OSError):
            self._popen.kill()
        self._popen.wait()
        for pipe in (self._in, self._out):
            with suppress(OSError):
                pipe.close()


class _Deadline:
    """Kills a process when the time is over. over: whether it did."""

    def __init__(self, process: _Process, seconds: float) -> None:
        self.over = False
        self._process = process
        self._timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._end)
        self._timer.daemon = True

    def _end(self) -> None:
        self.over = True
        with suppress(OSError):
            self._process._popen.kill()

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


_idle: list[_Process] = []
_lock = threading.Lock()


def _take(memory_bytes: int) -> _Process | None:
    """A process that waits, or a new one; None where this system starts none."""
    with _lock:
        waiting = next((process for process in _idle if process.memory_bytes == memory_bytes), None)
        if waiting is not None:
            _idle.remove(waiting)
    if waiting is not None:
        if waiting.alive():
            return waiting
        waiting.kill()
    try:
        process = _Process(memory_bytes)
    except OSError as error:
        log.warning("files are read without limits of time and memory: no process can be started (%s)", error)
        return None
    if process.started():
        return process
    process.kill()
    log.warning("files are read without limits of time and memory: %s starts no Python", sys.executable)
    return None


def _keep(process: _Process) -> None:
    with _lock:
        if len(_idle) < 4 and process.alive():
            _idle.append(process)
            return
    process.kill()


def _close() -> None:
    with _lock:
        waiting, _idle[:] = list(_idle), []
    for process in waiting:
        process.kill()


def _forked() -> None:
    global _lock
    _lock = threading.Lock()
    _idle.clear()  # the parent's: two would talk at once


atexit.register(_close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _send(pipe: IO[bytes], header: Mapping[str, Any], data: bytes) -> None:
    head = json.dumps(header).encode("ascii")
    pipe.write(len(head).to_bytes(8, "big") + len(data).to_bytes(8, "big") + head)
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """None where the pipe ends."""
    sizes = pipe.read(16)
    if len(sizes) < 16:
        return None
    head_size, data_size = int.from_bytes(sizes[:8], "big"), int.from_bytes(sizes[8:], "big")
    head, data = pipe.read(head_size), pipe.read(data_size)
    if len(head) < head_size or len(data) < data_size:
        return None
    return json.loads(head), data


def _guarded(data: bytes, request: Mapping[str, Any]) -> Content:
    """What read_content gives; whatever else a library raises on a damaged file becomes Unreadable."""
    try:
        return read_content(data, **request)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:
        log.debug("%s cannot be read", request["name"], exc_info=True)
        raise Unreadable(f"damaged: {type(error).__name__}: {error}"[:200]) from error


# The other side --------------------------------------------------------------------------------------------


def serve(memory_bytes: int) -> None:
    """Answer files with their content until the pipe ends. Runs in the process that `Reader` starts."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not speak here
    asked = os.fdopen(os.dup(0), "rb")
    with suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers.write(b"\n" + _HELLO)
    answers.flush()
    while _waits(asked) and (received := _receive(asked)) is not None:
        header, data = received
        if _ALARMS:  # ends this process, whatever it does, also where the parent was killed meanwhile
            signal.setitimer(signal.ITIMER_REAL, min(header["seconds"], 1e6))
        try:
            content = _guarded(data, header["request"])
            values = {part.name: getattr(content, part.name) for part in fields(content)}
            body = json.dumps(values).encode("ascii")
        except Unreadable as error:
            body = json.dumps({"unreadable": str(error)}).encode("ascii")
        except MemoryError:
            del data, received
            reason = f"takes more than {memory_bytes / 1e9:.1f} GB of memory to read; read.memory_per_file_bytes"
            body = json.dumps({"died": f"{reason} gives a file more"}).encode("ascii")
        if _ALARMS:
            signal.setitimer(signal.ITIMER_REAL, 0)
        _send(answers, {}, body)


def _waits(pipe: IO[bytes]) -> bool:
    """Whether something is asked before the process has waited for too long."""
    if os.name == "nt":  # select is for sockets there; the process ends with its parent
        return True
    import select

    return bool(select.select([pipe], [], [], _IDLE_SECONDS)[0])
