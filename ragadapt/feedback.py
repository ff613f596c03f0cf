"""Feedback of a retriever as files: read in, tuned with, exported as training pairs for the next fit."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ragadapt.checks import checked_number, checked_path, shown
from ragadapt.errors import InvalidInput
from ragadapt.evaluation.files import write_atomically
from ragadapt.files import parse_object, read_lines
from ragadapt.pefa import Feedback
from ragadapt.pefa.tuning import Tuned, tune
from ragadapt.report import (
    Curve,
    Delta,
    EvidenceUsed,
    Measure,
    Report,
    System,
    Verdict,
    write_report,
)
from ragadapt.retriever import Retriever
from ragadapt.store.workspace import FEEDBACK_REPORT
from ragadapt.text import printable_json
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
    path = checked_path(path, "The feedback file")
    total = _count_lines(path)
    page: list[tuple[int, dict[str, Any]]] = []

    def flush() -> None:
        nonlocal added, known
        new, old = _add(retriever, page, problems)
        added, known = added + new, known + old
        page.clear()

    for number, text in _lines(path):
        lines = number
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

    Takes effect at once, for every process. The settings in use stay unless others are better beyond doubt; λ
    becomes 1 where search without feedback is. Raises InvalidInput where there is no feedback.
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
    if tuned.gain is not None:
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
    values = parse_object(text)
    unknown = sorted(set(values) - _FIELDS)
    if unknown:
        raise InvalidInput(f"unknown field {shown(unknown[0])}; a line has {', '.join(sorted(_FIELDS))}")
    values = {name: value for name, value in values.items() if value is not None}
    withdraw = values.get("withdraw", False)
    if not isinstance(withdraw, bool):
        raise InvalidInput(f"withdraw = {withdraw!r}: it is true or false")
    for name in ("query", "chunk_id", "document_id", "source", "quote", "user", "tenant", "key"):
        if not isinstance(values.get(name, ""), str):
            raise InvalidInput(f"{name} = {shown(values[name])}: it is a string")
    if values.get("tenant") == "":
        raise InvalidInput('tenant = "": it names somebody, or it is left out for feedback that is for all')
    if "weight" in values:
        values["weight"] = checked_number("weight", values["weight"])
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
            raise InvalidInput(
                f"at = {shown(value)}: Unix seconds or ISO 8601, such as 2026-03-01T12:00:00Z"
            ) from error
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return checked_number("at", value, what="Unix seconds; or text in ISO 8601, such as 2026-03-01T12:00:00Z")


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    try:
        yield from read_lines(path)
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
    path = checked_path(path, "The file")
    if str(path) == "-":
        for line in lines:
            sys.stdout.write(_dump(line))
        return
    try:
        write_atomically(Path(path), map(_dump, lines))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written ({error}). Name a file in a folder that is there.") from error


def _dump(line: Mapping[str, Any]) -> str:
    return printable_json(json.dumps(line, ensure_ascii=False)) + "\n"


def _report(retriever: Retriever, tuned: Tuned, seed: int) -> Report:
    """What tuning found, as a report with the λ curve."""
    assert tuned.gain is not None and tuned.dense_gain is not None
    config = retriever.feedback().config
    chosen = config.lam
    outcome = "WIN" if tuned.helps and tuned.gain.better else "NO GAIN"
    setting = f"PEFA-{config.method.upper()}, λ = {chosen:g}" + (f", k = {config.k}" if config.method == "xl" else "")
    return Report(
        title=f"Feedback in {retriever.path.name}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base_model=retriever.encoder.spec.model,
        verdict=Verdict(
            outcome=outcome,
            reasons=(tuned.reason,),
            shipped=setting if chosen < 1 else "search without feedback",
            sentence=tuned.reason[0].upper() + tuned.reason[1:] + ".",
        ),
        evidence=EvidenceUsed(
            tier=Evidence.LABELLED.value, queries=tuned.queries, note="feedback, each question held out in turn"
        ),
        systems=(
            System(name="plain", label="without feedback", metrics={"nDCG@10": Measure(value=tuned.plain)},
                   shipped=chosen == 1),
            System(name="feedback", label="with feedback", note=setting if chosen < 1 else "",
                   metrics={"nDCG@10": Measure(value=tuned.chosen)}, shipped=chosen < 1),
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
