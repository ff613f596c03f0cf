"""ragadapt eval: how good a retriever is on judged questions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragadapt_cli.options import FILE, command, device_options, feedback_options, rerank_options, retriever_argument
from ragadapt_cli.terminal import ERROR, Terminal

if TYPE_CHECKING:
    from ragadapt.search.reranking import Rerank

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
@rerank_options
@feedback_options
@device_options
def eval_command(
    terminal: Terminal,
    retriever: Path,
    queries: Path | None,
    qrels: Path | None,
    evidence: Path | None,
    modes: tuple[Any, ...],
    rerank: bool | Rerank,
    lam: float | None,
    tenant: str | None,
    device: str,
    precision: str,
) -> int:
    """Measure a retriever on judged queries.

    Lines that hold no query or judgement are said, the others count, and the exit code is 1 then.

    \b
        ragadapt eval ./retriever --queries queries.jsonl --qrels qrels/test.tsv
        ragadapt eval ./retriever --evidence questions.jsonl
    """
    if (queries is None) == (evidence is None):
        raise click.UsageError("Give --queries with --qrels, or --evidence.")
    if evidence is not None and qrels is not None:
        raise click.UsageError("--evidence holds its own judgements: it does not go with --qrels.")
    file = queries if queries is not None else evidence
    assert file is not None

    from ragadapt.retriever import Retriever

    with terminal.progress(), Retriever.open(retriever, device=device, precision=precision) as opened:
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
