"""The demo: fit a retriever to the Python standard library's documentation, search it, show the table.

    python examples/python_docs/demo.py [FOLDER]        (FOLDER: where it is written, default ./demo)

It runs the commands that a user would run, and says each one before it runs.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEARCHES = ("stop a slow call after a few seconds", "remove duplicates from a list but keep the order")


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def run(*command: str) -> None:
    """Show a command as a user would type it, and run it."""
    say("$ " + shlex.join(command))
    program = [sys.executable, "-m", "ragadapt_cli"] if command[0] == "ragadapt" else [sys.executable]
    finished = subprocess.run([*program, *command[1:]], check=False)
    if finished.returncode:
        sys.exit(finished.returncode)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    docs, retriever = folder / "python_docs", folder / "retriever"
    started = time.monotonic()
    run("python", str(HERE / "build_corpus.py"), str(docs))
    run(
        "ragadapt", "fit", str(docs), "-o", str(retriever), "--model", "offline",
        "--queries", str(HERE / "questions.jsonl"), "--labels-for", "both",
    )  # fmt: skip
    for query in SEARCHES:
        run("ragadapt", "search", str(retriever), query, "-k", "3")
    run("ragadapt", "report", str(retriever))
    say(f"Done in {(time.monotonic() - started) / 60:.1f} minutes. Read {retriever / 'report' / 'report.html'} next.")


if __name__ == "__main__":
    main()
