"""ragadapt sweep: models and sizes of passages side by side, before anything is fitted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ragadapt_cli.options import FILE, command
from ragadapt_cli.settings import SWEEP_FLAGS, settings_options
from ragadapt_cli.terminal import Terminal, clock, note_skipped

if TYPE_CHECKING:
    from ragadapt.config import FitConfig


@command("sweep")
@click.argument("documents", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where report.html and report.json go. Vectors are kept there for the next call.",
)
@click.option("--queries", required=True, type=FILE, help="Your questions, with quotes; or with --qrels.")
@click.option("--qrels", type=FILE, help="Judgements of documents for them: query-id, corpus-id, score.")
@click.option("--models", help="Models with commas, such as small,offline.  [default: that of the settings]")
@click.option("--chunk-tokens", default="128,256,512", show_default=True, help="Most tokens of a passage, with commas.")
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Of text that a language model would be given: the quotes must stand in it.",
)
@settings_options(SWEEP_FLAGS)
def sweep_command(
    terminal: Terminal,
    documents: tuple[Path, ...],
    output: Path,
    queries: Path,
    qrels: Path | None,
    models: str | None,
    chunk_tokens: str,
    tokens: int,
    config: FitConfig,
) -> None:
    """Compare models and sizes of passages on your documents and questions, without training.

    Every model is measured with every size of passages, by untuned hybrid search. One table says which choices cannot
    be told from the best, and which of these is cheapest to encode, to keep and to search. A sweep that was cut short
    goes on where it stopped, and one more choice costs its own passages alone.

    \b
        ragadapt sweep ./docs -o ./swept --queries questions.jsonl --models small,offline
        ragadapt sweep ./docs -o ./swept --queries queries.jsonl --qrels qrels.tsv --chunk-tokens 128,256
    """
    sizes = []
    for part in chunk_tokens.split(","):
        if not part.strip().isdecimal():
            raise click.BadParameter(f"{part!r} is no whole number.", param_hint="--chunk-tokens")
        sizes.append(int(part))
    from ragadapt.pipeline.sweep import sweep_choices
    from ragadapt.report import table

    names = [name.strip() for name in (models or "").split(",") if name.strip()]
    terminal.resume = True
    started = time.monotonic()
    with terminal.progress() as progress:
        found = sweep_choices(
            list(documents), output, queries, qrels, config, models=names, chunk_tokens=sizes, tokens=tokens,
            progress=progress,
        )  # fmt: skip
    seconds = time.monotonic() - started
    if terminal.json:
        values = {"path": found.path, "sentence": found.sentence, "seconds": round(seconds, 1)}
        terminal.write_json("sweep", {**values, "encoded": found.encoded, "known": found.known, "report": found.report})
        return
    terminal.note(f"{found.encoded:,} passages were encoded, the vectors of {found.known:,} were there.")
    if (corpus := found.report.corpus) is not None:
        note_skipped(terminal, corpus.skipped, corpus.skipped_total)
    terminal.write_lines(table(found.report))
    terminal.write()
    terminal.write(f"Report:    {found.path / 'report.html'}")
    terminal.note(f"Done in {clock(seconds)}.")
