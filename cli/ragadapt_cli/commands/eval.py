"""ragadapt eval: how good a retriever is on judged questions."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragadapt_cli.options import (
    FILE,
    command,
    device_options,
    feedback_options,
    rerank_options,
    retriever_argument,
    tenant_adapters_option,
)
from ragadapt_cli.terminal import ERROR, Terminal

if TYPE_CHECKING:
    from ragadapt.report import Report
    from ragadapt.retriever import Retriever
    from ragadapt.search.reranking import Rerank
    from ragadapt.values import Progress

MODES = ("hybrid", "dense", "lexical")


@command("eval")
@retriever_argument
@click.option("--queries", type=FILE, help='Questions: lines of {"_id", "text"}.')
@click.option("--qrels", type=FILE, help="Their judgements: query-id, corpus-id, score; or TREC's four columns.")
@click.option("--evidence", type=FILE, help='Questions with quotes: {"text", "evidence": [{"source", "quote"}]}.')
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice(MODES),
    help="Which search to measure; may be repeated.  [default: all three]",
)
@click.option(
    "--per-question", is_flag=True, help="List every question: where each side has its answer, why it was missed."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write a page of every question here: report.html, and report.json beside it.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Another retriever, to compare with question by question.",
)
@click.option(
    "-k",
    type=click.IntRange(min=1),
    help="How many results an answer must be among to count as found.  [default: 10]",
)
@click.option(
    "--base", is_flag=True, help="Encode all passages with the untuned model, too, where its vectors are gone."
)
@rerank_options
@feedback_options
@tenant_adapters_option
@device_options
def eval_command(
    terminal: Terminal,
    retriever: Path,
    queries: Path | None,
    qrels: Path | None,
    evidence: Path | None,
    modes: tuple[Any, ...],
    per_question: bool,
    output: Path | None,
    against: Path | None,
    k: int | None,
    base: bool,
    rerank: bool | Rerank,
    lam: float | None,
    tenant: str | None,
    tenant_adapters: Path | None,
    device: str,
    precision: str,
) -> int:
    """Measure a retriever on judged queries.

    Lines that hold no query or judgement are said, the others count, and the exit code is 1 then.

    \b
        ragadapt eval ./retriever --queries queries.jsonl --qrels qrels/test.tsv
        ragadapt eval ./retriever --evidence questions.jsonl
        ragadapt eval ./retriever --evidence questions.jsonl --per-question -o ./judged
        ragadapt eval ./retriever --evidence questions.jsonl --against ./other -o ./judged

    The last two look at each question: what it expects, which side has it at which rank, and why it is not among the
    first results. Their rows are dense, lexical and plain hybrid search, and what ships, with paired intervals.
    """
    if (queries is None) == (evidence is None):
        raise click.UsageError("Give --queries with --qrels, or --evidence.")
    if evidence is not None and qrels is not None:
        raise click.UsageError("--evidence holds its own judgements: it does not go with --qrels.")
    file = queries if queries is not None else evidence
    assert file is not None
    if output is not None and (output / "ragadapt.json").is_file():
        raise click.BadParameter(f"{output} holds a retriever. Name another folder for it.", param_hint="--output")
    each = per_question or output is not None or against is not None or k is not None or base
    if each and modes:
        raise click.UsageError("--mode chooses rows of the short table; the look at each question has all of them.")

    from ragadapt.retriever import Retriever

    how: dict[str, Any] = {"device": device, "precision": precision, "tenant_adapters": tenant_adapters}
    if each:
        with terminal.progress() as progress, ExitStack() as stack:
            opened = stack.enter_context(Retriever.open(retriever, **how))
            other = stack.enter_context(Retriever.open(against, **how)) if against else None
            report = _each_question(terminal, opened, other, file, qrels, k or 10, base, lam, tenant, rerank, progress)
        return _show(terminal, retriever, report, output, per_question)
    with terminal.progress(), Retriever.open(retriever, **how) as opened:
        if rerank is True and (why := opened.rerank_refused):
            terminal.note(f"Not re-ranked: {why}")
        found = opened.evaluate(file, qrels, modes=modes or MODES, lam=lam, tenant=tenant, rerank=rerank)
        fingerprint = opened.fingerprint
    systems = {name: dict(metrics) for name, metrics in found.items()}
    if terminal.json:
        shared = {"retriever": retriever, "fingerprint": fingerprint, "queries": file, "qrels": qrels}
        terminal.write_json("eval", {**shared, "systems": systems})
    else:
        for line in rows(systems):
            terminal.write(line)
    return ERROR if any(metrics.get("lines not read") for metrics in systems.values()) else 0


def _each_question(
    terminal: Terminal,
    opened: Retriever,
    other: Retriever | None,
    file: Path,
    qrels: Path | None,
    k: int,
    base: bool,
    lam: float | None,
    tenant: str | None,
    rerank: bool | Rerank,
    progress: Progress,
) -> Report:
    from ragadapt.pipeline.questions import evaluate_questions

    if rerank is True and (why := opened.rerank_refused):
        terminal.note(f"Not re-ranked: {why}")
    return evaluate_questions(
        opened, file, qrels, k=k, against=other, name=str(other.path.name) if other else "", base=base, lam=lam,
        tenant=tenant, rerank=rerank, progress=progress,
    )  # fmt: skip


def _show(terminal: Terminal, retriever: Path, report: Report, output: Path | None, per_question: bool) -> int:
    from ragadapt.report import question_lines, table, write_report

    assert report.judged is not None
    page = write_report(output, report)[1] if output is not None else None
    if terminal.json:
        terminal.write_json("eval", {"retriever": retriever, "page": page, "report": report})
    else:
        if per_question:
            for line in question_lines(report.judged):
                terminal.write(line)
            terminal.write()
        terminal.write_lines(table(report))
        if page is not None:
            terminal.write()
            terminal.write(f"Report:    {page}")
    return ERROR if report.judged.unread else 0


def rows(systems: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A table: one line per system, one column per metric."""
    metrics = list(dict.fromkeys(name for values in systems.values() for name in values))
    cells = [["", *metrics]]
    for system, values in systems.items():
        cells.append([system, *(_figure(values.get(metric)) for metric in metrics)])
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in cells
    ]


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if isinstance(value, int) else f"{value:.3f}"
