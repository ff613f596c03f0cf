"""Scripts in processes of their own that start with everything imported, as by a user who waited for the imports.

Starting Python, PyTorch and the library anew takes longer than what most of these scripts do.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PARENT = """
import json, os, sys, tempfile
import peft, sentence_transformers, torch.distributed
import ragadapt.export, ragadapt.retriever
from ragadapt.pipeline.fit import fit
from ragadapt.training.loop import EncoderRun

for line in sys.stdin:
    task = json.loads(line)
    if isinstance(task, int):
        pid, status = os.waitpid(task, os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
    elif pid := os.fork():
        print(pid, flush=True)
    else:
        for number, path in enumerate([os.devnull, task["output"], task["errors"]]):
            opened = os.open(path, os.O_WRONLY if number else os.O_RDONLY)
            os.dup2(opened, number)
            os.close(opened)
        os.environ.clear()
        os.environ.update(task["environment"])
        tempfile.tempdir = None
        sys.argv = task["arguments"]
        break
else:
    sys.exit()
exec(compile(task["code"], task["arguments"][0], "exec"), {"__name__": "__main__"})
"""


@functools.cache
def _parent() -> subprocess.Popen[str]:
    """The process with everything imported; ends with this one."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-c", _PARENT],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def _ask(task: Any) -> Any:
    parent = _parent()
    assert parent.stdin is not None and parent.stdout is not None
    parent.stdin.write(json.dumps(task) + "\n")
    parent.stdin.flush()
    return json.loads(parent.stdout.readline())


class Fork:
    """What `subprocess.Popen` is for a program: poll, wait, kill, send_signal, communicate, returncode."""

    def __init__(self, code: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name) / name for name in ("output", "errors")]
        for path in self._files:
            path.touch()
        task = {"code": code, "arguments": ["script", *arguments], "environment": dict(environment)}
        self.pid: int = _ask(task | dict(zip(("output", "errors"), map(str, self._files), strict=True)))
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _ask(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("script", timeout or 0.0)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(9)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        output, errors = (path.read_text(encoding="utf-8") for path in self._files)
        return output, errors


def start(code: str, *arguments: object, environment: Mapping[str, str] = os.environ) -> Fork | subprocess.Popen[str]:
    """A Python script in a process of its own; where forking is not for certain, begun as any other."""
    words = [str(argument) for argument in arguments]
    if sys.platform == "linux":
        return Fork(code, words, environment)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, *words], env=environment, **pipes)
