"""Feedback of a retriever as files: read in, tuned with, exported as training pairs for the next fit."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ragadapt.errors import InvalidInput
from ragadapt.evaluation.files import write_atomically
from ragadapt.evaluation.report import (
    Curve,
    Delta,
    EvidenceUsed,
    Measure,
    Report,
    System,
    Verdict,
    write_report,
)
from ragadapt.pefa import Feedback
from ragadapt.pefa.tuning import Tuned, tune
from ragadapt.retriever import Retriever
from ragadapt.store import FEEDBACK_REPORT
from ragadapt.values import Evidence, Progress, no_progress
from ragadapt.version import __version__

log = logging.getLogger(__name__)

_PAGE = 512  # lines encoded and written at a time: each page is one transaction
_FIELDS = {
    "query", "chunk_id", "document_id", "source", "quote", "weight", "withdraw", "user", "tenant", "at", "key",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that was not taken. line: from 1."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a feedback file. known: lines whose key the ledger had already."""

    lines: int
    added: int
    known: int
    withdrawn: int
    problems: tuple[Problem, ...]


def read_feedback(retriever: Retriever, path: str | Path, *, progress: Progress = no_progress) -> Taken:
    """Take in a JSONL file of feedback ("-" = standard input); good lines count, bad ones are listed.

    A line: {"query", and "chunk_id" or "document_id" or "source" with "quote"; optional "weight", "user", "tenant",
    "at" (Unix seconds or ISO 8601), "key", "withdraw": true}. A line without a key gets one from what it says and how
    often it stood in the file before, so taking a file in twice changes nothing. Raises InvalidInput where the file
    cannot be read, StoreError where the ledger cannot be written; lines before that are kept.
    """
    added = known = withdrawn = lines = 0
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    total = _count_lines(path)
    page: list[tuple[int, dict[str, Any]]] = []

    def flush() -> None:
        nonlocal added, known
        new, old = _add(retriever, page, problems)
        added, known = added + new, known + old
        page.clear()

    for number, text in _lines(path):
        lines = number
        if not text.strip():
            continue
        try:
            values = _parsed(text)
            digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
            seen[digest] = seen.get(digest, 0) + 1
            values.setdefault("key", f"{digest[:32]}-{seen[digest]}")
        except InvalidInput as error:
            problems.append(Problem(number, str(error)))
            continue
        if values.get("withdraw"):
            flush()
            withdrawn += _withdraw(retriever, number, values, problems)
        else:
            page.append((number, values))
        if len(page) == _PAGE:
            flush()
            progress("feedback", number, max(total, number))
    flush()
    progress("feedback", lines, max(total, lines))
    return Taken(lines, added, known, withdrawn, tuple(sorted(problems, key=lambda problem: problem.line)))


def tune_feedback(retriever: Retriever, *, seed: int = 13, progress: Progress = no_progress) -> Tuned:
    """Set λ, k and the fusion weight by cross-validation over the ledger, and write a report with the curve.

    Takes effect at once, for every process. Where feedback does not help held-out questions λ becomes 1. Raises
    InvalidInput where there is no feedback.
    """
    now = retriever.snapshot()
    pefa = now.feedback()
    document_of = None
    levels = {one.level for one in pefa.ledger.find() if one.weight > 0}
    if levels == {"document"}:
        document_of = dict(zip(now.chunks.ids(), now.chunks.document_ids(), strict=True))
    tuned = tune(pefa, now.searcher, document_of=document_of, seed=seed, progress=progress)
    if tuned.values:
        pefa.tune_to(tuned.values)
        write_report(retriever.path / FEEDBACK_REPORT, _report(retriever, tuned, seed))
    return tuned


def export_pairs(retriever: Retriever, path: str | Path, *, tenant: str | None = None) -> int:
    """Write positive feedback as labelled questions for the next `fit --queries`; how many questions.

    Each line: {"text", "evidence": [{"source", "quote"}]}, which survives another chunking. Feedback on passages
    that are gone is left out. tenant: None = everybody's.
    """
    answers: dict[str, list[dict[str, str]]] = {}
    balance: dict[tuple[str, str], float] = {}
    now = retriever.snapshot()
    pefa = now.feedback()
    current = {one.key: one for one in pefa.ledger.find(tenant=tenant)}
    resolved = zip(current.values(), now.passages().resolve(list(current.values())), strict=True)
    for one, chunk in resolved:
        if chunk is not None:
            balance[one.query, chunk] = balance.get((one.query, chunk), 0.0) + one.weight
    chunks = now.chunks.find(chunk for _, chunk in balance)
    for (query, id), weight in balance.items():
        if weight > 0:
            # A document's id names it alone; rows of one file share their source.
            source = chunks[id].document_id
            answers.setdefault(query, []).append({"source": source, "quote": chunks[id].text})
    _write_lines(path, ({"text": query, "evidence": quotes} for query, quotes in answers.items()))
    return len(answers)


def export_ledger(retriever: Retriever, path: str | Path, *, tenant: str | None = None) -> int:
    """Write all feedback that counts, as lines that `read_feedback` takes in elsewhere; how many."""
    found = list(retriever.feedback().ledger.find(tenant=tenant))
    _write_lines(path, (as_line(one) for one in found))
    return len(found)


def as_line(one: Feedback) -> dict[str, Any]:
    """A feedback as a line of a file."""
    line: dict[str, Any] = {"query": one.query, "chunk_id": one.chunk_id, "weight": one.weight}
    line |= {name: value for name in ("user", "tenant") if (value := getattr(one, name))}
    at = datetime.fromtimestamp(one.at or 0.0, UTC).isoformat()
    return {**line, "at": at, "key": one.key}


def _add(retriever: Retriever, page: list[tuple[int, dict[str, Any]]], problems: list[Problem]) -> tuple[int, int]:
    """One page of parsed lines into the ledger; (new, known)."""
    retriever.remember([values["query"] for _, values in page])
    good: list[Feedback] = []
    for number, values in page:
        try:
            where = {name: values.get(name) for name in ("chunk_id", "document_id", "source", "quote")}
            one = retriever.locate(values["query"], **where)
            good.append(
                replace(one, weight=values.get("weight", 1.0), user=values.get("user", ""),
                        tenant=values.get("tenant", ""), at=values.get("at"), key=values["key"]).checked()
            )  # fmt: skip
        except InvalidInput as error:
            problems.append(Problem(number, str(error)))
    if not good:
        return 0, 0
    before = len(retriever.feedback(create=True).ledger)
    retriever.add_feedback_many(good)
    new = len(retriever.feedback().ledger) - before
    return new, len(good) - new


def _withdraw(retriever: Retriever, line: int, values: dict[str, Any], problems: list[Problem]) -> int:
    named = {name: values.get(name) for name in ("query", "chunk_id", "user", "tenant")}
    try:
        if values.get("document_id") or values.get("quote"):
            where = {name: values.get(name) for name in ("document_id", "source", "quote")}
            named["chunk_id"] = retriever.locate(values["query"], **where).chunk_id
        if values.get("own_key"):
            named["key"] = values["own_key"]
        return retriever.withdraw_feedback(**named)
    except InvalidInput as error:
        problems.append(Problem(line, str(error)))
        return 0


def _parsed(text: str) -> dict[str, Any]:
    """A line's values, checked as far as that goes without the retriever."""
    try:
        text.encode("utf-8")
        values = json.loads(text)
    except UnicodeEncodeError as error:
        raise InvalidInput("it is not UTF-8 text") from error
    except ValueError as error:
        raise InvalidInput(f"it is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise InvalidInput(f'it is a JSON {type(values).__name__}, and an object is needed: {{"query": …}}')
    unknown = sorted(set(values) - _FIELDS)
    if unknown:
        raise InvalidInput(f"unknown field {unknown[0]!r}; a line has {', '.join(sorted(_FIELDS))}")
    values = {name: value for name, value in values.items() if value is not None}
    withdraw = values.get("withdraw", False)
    if not isinstance(withdraw, bool):
        raise InvalidInput(f"withdraw = {withdraw!r}: it is true or false")
    for name in ("query", "chunk_id", "document_id", "source", "quote", "user", "tenant", "key"):
        if not isinstance(values.get(name, ""), str):
            raise InvalidInput(f"{name} = {values[name]!r}: it is a string")
    if withdraw and "key" in values:
        values["own_key"] = values["key"]
    elif not values.get("query", "").strip():
        raise InvalidInput("the query is missing or empty")
    if "at" in values:
        values["at"] = _time(values["at"])
    return values


def _time(value: Any) -> float:
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as error:
            raise InvalidInput(f"at = {value!r}: Unix seconds or ISO 8601, such as 2026-03-01T12:00:00Z") from error
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidInput(f"at = {value!r}: Unix seconds or ISO 8601, such as 2026-03-01T12:00:00Z")
    return float(value)


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    try:
        if str(path) == "-":
            yield from enumerate(sys.stdin, start=1)
            return
        with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            yield from enumerate(file, start=1)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read ({error}).") from error


def _count_lines(path: str | Path) -> int:
    """For the progress bar alone."""
    try:
        with Path(path).open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    except OSError:
        return 0


def _write_lines(path: str | Path, lines: Iterable[Mapping[str, Any]]) -> None:
    if str(path) == "-":
        for line in lines:
            sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        return
    pieces = (json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    try:
        write_atomically(Path(path), pieces)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written ({error}). Name a file in a folder that is there.") from error


def _report(retriever: Retriever, tuned: Tuned, seed: int) -> Report:
    """What tuning found, as a report with the λ curve."""
    assert tuned.gain is not None and tuned.dense_gain is not None
    chosen = tuned.values.get("lam", 1.0)
    outcome = "WIN" if tuned.helps and tuned.gain.better else "NO GAIN"
    method = str(tuned.values.get("method", "")).upper()
    setting = f"PEFA-{method}, λ = {chosen:g}" + (f", k = {tuned.values['k']}" if "k" in tuned.values else "")
    return Report(
        title=f"Feedback in {retriever.path.name}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base_model=retriever.encoder.spec.model,
        verdict=Verdict(
            outcome=outcome,
            reasons=(tuned.reason,),
            shipped=setting if tuned.helps else "search without feedback",
            sentence=tuned.reason[0].upper() + tuned.reason[1:] + ".",
        ),
        evidence=EvidenceUsed(
            tier=Evidence.LABELLED.value, queries=tuned.queries, note="feedback, each question held out in turn"
        ),
        systems=(
            System(name="plain", label="without feedback", metrics={"nDCG@10": Measure(value=tuned.plain)},
                   shipped=not tuned.helps),
            System(name="feedback", label="with feedback", note=setting if tuned.helps else "",
                   metrics={"nDCG@10": Measure(value=tuned.chosen)}, shipped=tuned.helps),
        ),
        deltas=(Delta(system="feedback", against="plain", metric="nDCG@10", interval=tuned.gain),),
        curves=(
            Curve.through(
                tuned.curve,
                title="How much the plain retriever should count, λ",
                x_label="λ (1 = feedback off)",
                chosen=chosen,
                levels={"without feedback": tuned.plain},
                note="On questions whose own feedback was left out; the band is the 95 % interval of the mean.",
            ),
        )
        if tuned.curve
        else (),
        seeds={"seed": seed},
        versions={"ragadapt": __version__},
    )  # fmt: skip
