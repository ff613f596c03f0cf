"""ragadapt fit: documents in, a retriever out."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragadapt_cli.options import command, question_options
from ragadapt_cli.settings import FIT_FLAGS, settings_options
from ragadapt_cli.terminal import NO_GAIN, Terminal, clock, note_skipped

if TYPE_CHECKING:
    from ragadapt.config import FitConfig
    from ragadapt.pipeline.queries import Labels


@command("fit")
@click.argument("documents", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the retriever goes. An older one there is replaced when all is done, not before.",
)
@question_options(
    "Your own questions: BEIR queries.jsonl with --qrels, lines with quoted evidence, or a search log without "
    "answers (jsonl, or .txt of one a line), which tells how word and vector search are mixed; may be repeated."
)
@settings_options(FIT_FLAGS)
@click.option(
    "--portable/--reference",
    default=None,
    envvar="RAGADAPT_PORTABLE",
    show_envvar=True,
    help="Copy the base model along, or name it.  [default: copy only what is not on the hub]",
)
@click.option("--fail-on-no-gain", is_flag=True, help="Exit with 3 unless the verdict is WIN.")
@click.option(
    "--profile",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write where the time went, by stage and kind of work, to this JSON file; the report shows it too.",
)
@click.option("--dry-run", is_flag=True, help="Read and cut the documents, say what would happen, write nothing.")
def fit_command(
    terminal: Terminal,
    documents: tuple[Path, ...],
    output: Path,
    query_files: tuple[Path, ...],
    qrels_files: tuple[Path, ...],
    uses: tuple[str, ...],
    portable: bool | None,
    fail_on_no_gain: bool,
    profile: Path | None,
    dry_run: bool,
    config: FitConfig,
) -> int | None:
    """Learn a corpus and save a retriever that is shown to be better on it.

    DOCUMENTS are files and folders: text, Markdown, reST, HTML, PDF, Word, PowerPoint, Excel, EPUB, mails,
    notebooks, JSON, jsonl, csv, source code.
    A run that was cut short goes on where it stopped when the same command is given again.

    \b
        ragadapt fit ./docs -o ./retriever
        ragadapt fit ./docs -o ./retriever --queries questions.jsonl --qrels qrels.tsv
    """
    pairs = pair_labels(query_files, qrels_files, uses)
    from ragadapt.pipeline.queries import Labels

    labels = [Labels(queries, qrels, use) for queries, qrels, use in pairs]
    if dry_run:
        _announce(terminal, documents, output, labels, config)
        return None
    from ragadapt.pipeline.fit import fit
    from ragadapt.training.processes import is_first

    terminal.resume = True
    started = time.monotonic()
    with terminal.progress() as progress:
        result = fit(
            list(documents), output, config, labels=labels, portable=portable, profile=profile, progress=progress
        )
    seconds = time.monotonic() - started
    if not is_first():
        return None
    page = result.path / "report" / "report.html"
    if terminal.json:
        values = {"path": result.path, "verdict": result.verdict, "seconds": round(seconds, 1)}
        terminal.write_json("fit", {**values, "reused": list(result.reused), "report": result.report})
    else:
        from ragadapt.report import table

        if result.reused:
            terminal.note(f"Taken over from the interrupted run: {', '.join(result.reused)}.")
        if (corpus := result.report.corpus) is not None:
            note_skipped(terminal, corpus.skipped, corpus.skipped_total)
        terminal.write_lines(table(result.report))
        terminal.write()
        terminal.write(f"Retriever: {result.path}")
        terminal.write(f"Report:    {page}")
        terminal.note(f'Done in {clock(seconds)}. Try: ragadapt search {shlex.quote(str(result.path))} "…"')
    return NO_GAIN if fail_on_no_gain and result.verdict != "WIN" else None


def pair_labels(
    queries: Sequence[Path], qrels: Sequence[Path], uses: Sequence[str]
) -> list[tuple[Path, Path | None, Any]]:
    """(queries, qrels, use) of every set of labels. One queries file may serve several qrels, as BEIR's does."""
    if qrels and not queries:
        raise click.UsageError("--qrels judges the questions of --queries; give that too.")
    if uses and not queries:
        raise click.UsageError("--labels-for says what --queries is for; give that too.")
    if len(queries) == 1 and len(qrels) > 1:
        queries = [queries[0]] * len(qrels)
    if qrels and len(qrels) != len(queries):
        raise click.UsageError(
            f"{len(queries)} --queries and {len(qrels)} --qrels: give one --qrels for each, or none."
        )
    if len(uses) > 1 and len(uses) != len(queries):
        raise click.UsageError(
            f"{len(uses)} --labels-for for {len(queries)} sets of questions: give one, or one for each."
        )
    judged: list[Path | None] = list(qrels) or [None] * len(queries)
    meant = list(uses) * len(queries) if len(uses) == 1 else list(uses) or ["both"] * len(queries)
    return list(zip(queries, judged, meant, strict=True))


def _announce(
    terminal: Terminal,
    documents: Sequence[Path],
    output: Path,
    labels: Sequence[Labels],
    config: FitConfig,
) -> None:
    """What fit would do, from a real reading and cutting of the documents."""
    from ragadapt.doctor.survey import survey
    from ragadapt.store.workspace import answers_file

    with terminal.progress() as progress:
        found = survey(documents, config, labels=labels, answers=answers_file(output), progress=progress)
    replaces = (output / "ragadapt.json").is_file()
    if terminal.json:
        terminal.write_json(
            "fit",
            {
                "dry_run": True,
                "output": output,
                "replaces": replaces,
                "labels": [{"queries": of.queries, "qrels": of.qrels, "use": of.use} for of in labels],
                **found.as_dict(),
                "configuration": config,
            },
        )
        return
    for line in found.lines():
        terminal.write(line)
    terminal.write(f"Output      {output}{' (the retriever there would be replaced)' if replaces else ''}")
    terminal.write("Nothing was written.")
