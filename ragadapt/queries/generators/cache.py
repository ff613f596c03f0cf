"""Answers on disk: an append-only JSON-lines file from which an interrupted run goes on."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ragadapt.files import sync_folder
from ragadapt.text import encodable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a generator wrote for one prompt, uncleaned, so that better cleaning needs no new generation.

    first_kind: the kind whose label ended the prompt; None if the answer brings its own labels.
    cut_off: it stopped at the token limit. seconds: its share of the time its batch took.
    """

    key: str
    chunk: str
    text: str
    first_kind: str | None = None
    cut_off: bool = False
    input_tokens: int = 0
    output_tokens: int = 0
    seconds: float = 0.0


_FIELDS = {field.name: field for field in fields(Answer)}
_REQUIRED = ("key", "chunk", "text")
_COUNTS: dict[str, Any] = {"input_tokens": int, "output_tokens": int, "seconds": (int, float)}


def read_answers(path: Path) -> dict[str, Answer]:
    """The answers in the file by key; none if it does not exist. Lines that cannot be read, such as one cut
    short by a kill, are left out: their prompts are asked again."""
    answers: dict[str, Answer] = {}
    unread = 0
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for line in file:
                answer = _parse(line)
                if answer is None:
                    unread += bool(line.strip())
                else:
                    answers[answer.key] = answer
    except FileNotFoundError:
        return answers
    if unread:
        log.warning("%s: %d line(s) could not be read; those passages are asked about again", path, unread)
    return answers


class AnswerLog:
    """Appends answers to the file; what `append` returned from survives a kill, also of the machine."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        sync_folder(path.parent)  # a new file's name, too
        if self._file.tell() and not _ends_with_newline(path):
            self._file.write(b"\n")  # closes a line that was cut short

    def append(self, answers: Iterable[Answer]) -> None:
        """Write a finished batch and bring it to the disk."""
        lines = [json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers]
        self._file.write("".join(lines).encode("utf-8", errors="replace"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _parse(line: str) -> Answer | None:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in _REQUIRED):
        return None
    known = {name: item for name, item in value.items() if name in _FIELDS}
    for name, kind in _COUNTS.items():
        item = known.get(name, 0)
        if isinstance(item, bool) or not isinstance(item, kind) or not 0 <= item < 2**31:  # NaN is in no range
            return None
    if not isinstance(known.get("first_kind"), str | None):
        return None
    known["cut_off"] = known.get("cut_off") is True
    return Answer(**known | {"text": encodable(known["text"])})


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
