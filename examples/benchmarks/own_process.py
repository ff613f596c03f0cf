"""A measurement in a process of its own: nothing that ran before has warmed or filled it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def in_own_process(script: str, what: str, /, **options: Any) -> dict[str, Any]:
    """What the script prints last, as JSON, when it is given a name and options as JSON; what it says meanwhile is
    shown. Raises RuntimeError where it fails."""
    command = [sys.executable, script, what, json.dumps(options, default=str)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{what} {options} exited with {done.returncode}.")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
