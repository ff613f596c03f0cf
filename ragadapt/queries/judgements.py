"""A file of labelled questions that people fill, one judgement at a time, from several windows or machines at once."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ragadapt.checks import checked_path
from ragadapt.errors import InvalidInput, InvalidLabels, StoreError, StoreLocked
from ragadapt.files import file_state, parse_object, read_lines, write_text
from ragadapt.queries.labels import EvidenceQuote
from ragadapt.queries.text import words

_LOCK_SECONDS = 10.0

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class JudgedQuestion:
    """What was said about a question. relevant, irrelevant: passages by their words. skipped: put aside by somebody."""

    text: str
    relevant: tuple[EvidenceQuote, ...] = ()
    irrelevant: tuple[EvidenceQuote, ...] = ()
    skipped: bool = False

    @property
    def done(self) -> bool:
        """Whether anything was said."""
        return bool(self.relevant or self.irrelevant or self.skipped)

    def says(self, quotes: Sequence[EvidenceQuote]) -> bool | None:
        """Whether a passage with one of these quotes answers; None where nobody said."""
        if any(quote in self.relevant for quote in quotes):
            return True
        return False if any(quote in self.irrelevant for quote in quotes) else None


@dataclass(frozen=True, slots=True)
class QuestionCounts:
    """labelled: questions with a passage that answers. unanswered: those of which only the contrary was said."""

    labelled: int = 0
    unanswered: int = 0
    skipped: int = 0


class QuestionFile:
    """Questions with quoted evidence, a JSON object a line, as `fit --queries` reads them.

    What does not answer stands in the line as "irrelevant", a question that was put aside has "skipped": true; `fit`
    passes over both. A judgement is on disk when its call returns. Every call reads what stands in the file then, so
    that others may write there too, and changes its own line alone; what it does not know in a line stays.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises InvalidLabels where the file is there and cannot be read, or its folder is not there."""
        self.path = checked_path(path, "The file of questions").resolve()
        self._reading = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._rows: list[Row] = []
        if not self.path.parent.is_dir():
            raise InvalidLabels(f"There is no folder {self.path.parent} for {self.path.name}. Make it first.")
        self.rows()

    def rows(self) -> list[Row]:
        """The lines as they are now. Raises InvalidLabels."""
        with self._reading:
            seen = file_state(self.path)
            if seen is None:
                self._rows = []
            elif seen != self._seen:
                self._rows = list(_read(self.path))
            self._seen = seen
            return self._rows

    def questions(self) -> dict[str, JudgedQuestion]:
        """Text → what was said about it. Of two lines with the same text the first counts."""
        found: dict[str, JudgedQuestion] = {}
        for row in self.rows():
            found.setdefault(_text(row), _question(row))
        return found

    def counts(self) -> QuestionCounts:
        """How far the labelling is."""
        said = list(self.questions().values())
        return QuestionCounts(
            labelled=sum(bool(one.relevant) for one in said),
            unanswered=sum(bool(one.irrelevant) and not one.relevant for one in said),
            skipped=sum(one.skipped and not one.relevant and not one.irrelevant for one in said),
        )

    def judge(
        self, text: str, quotes: Sequence[EvidenceQuote], relevant: bool | None, origin: str = ""
    ) -> JudgedQuestion:
        """Say whether the passages with these quotes answer the question; None takes back what was said.

        origin: where the question comes from, kept in a new line. Raises InvalidInput for a quote without words,
        InvalidLabels, StoreLocked, StoreError.
        """
        if any(not words(quote.quote) for quote in quotes):
            raise InvalidInput("This passage has no words, so it cannot be quoted as an answer.")

        def change(row: Row) -> None:
            said = _question(row)
            lists = {
                name: [quote for quote in kept if quote not in quotes]
                for name, kept in (("evidence", said.relevant), ("irrelevant", said.irrelevant))
            }
            if relevant is not None:
                lists["evidence" if relevant else "irrelevant"] += list(dict.fromkeys(quotes))
                row.pop("skipped", None)
            for name, kept in lists.items():
                if kept or name == "evidence":
                    row[name] = [{"source": quote.source, "quote": quote.quote} for quote in kept]
                else:
                    row.pop(name, None)

        return self._change(text, change, origin)

    def skip(self, text: str, skipped: bool = True, origin: str = "") -> JudgedQuestion:
        """Put a question aside, or take that back. Raises as `judge`."""

        def change(row: Row) -> None:
            if skipped:
                row["skipped"] = True
            else:
                row.pop("skipped", None)

        return self._change(text, change, origin)

    def _change(self, text: str, change: Callable[[Row], None], origin: str) -> JudgedQuestion:
        text = text.strip()
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), thread_local=False)
        try:
            with lock.acquire(timeout=_LOCK_SECONDS):
                rows = [dict(row) for row in self.rows()]
                at = next((at for at, row in enumerate(rows) if _text(row) == text), None)
                row = {"_id": uuid.uuid4().hex[:16], "text": text} if at is None else rows[at]
                change(row)
                if at is None and _question(row).done:
                    rows.append({**row, **({"from": origin} if origin else {})})
                elif at is not None and not _question(row).done and "from" in row:
                    del rows[at]  # a line of ours that says nothing any more
                if rows != self.rows():
                    # ASCII, so that no text of a document can make a line that is not UTF-8.
                    write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        except Timeout as error:
            raise StoreLocked(
                f"Another process has been writing to {self.path} for {_LOCK_SECONDS:g} seconds. Try again."
            ) from error
        except OSError as error:
            raise StoreError(f"{self.path} cannot be written ({error}). Check its folder's permissions.") from error
        return _question(row)


def _read(path: Path) -> Iterator[Row]:
    try:
        for number, line in read_lines(path):
            try:
                row = parse_object(line)
            except InvalidInput as error:
                raise InvalidLabels(
                    f"{path}, line {number}: {error}. Mend the line first: the file is written anew with each label."
                ) from error
            if not isinstance(_field(row), str):
                raise InvalidLabels(f'{path}, line {number}: it has no "text". Each line is a question.')
            if row.get("_id") is None and row.get("id") is None:
                row["_id"] = str(number)  # what `fit` calls it; other lines may come before it later
            yield row
    except OSError as error:
        raise InvalidLabels(f"{path} cannot be read: {error}.") from error


def _field(row: Mapping[str, Any]) -> Any:
    return row.get("text", row.get("query", row.get("question")))


def _text(row: Mapping[str, Any]) -> str:
    return str(_field(row)).strip()


def _question(row: Mapping[str, Any]) -> JudgedQuestion:
    return JudgedQuestion(
        _text(row), _quotes(row.get("evidence")), _quotes(row.get("irrelevant")), row.get("skipped") is True
    )


def _quotes(value: Any) -> tuple[EvidenceQuote, ...]:
    entries = value if isinstance(value, list) else [value]
    return tuple(
        EvidenceQuote(entry["source"], entry["quote"])
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("source"), str) and isinstance(entry.get("quote"), str)
    )
