"""ragadapt compare: methods of training side by side, and which of them to choose."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ragadapt_cli.commands.fit import pair_labels
from ragadapt_cli.options import NumberRange, command, question_options
from ragadapt_cli.settings import COMPARE_FLAGS, settings_options
from ragadapt_cli.terminal import Terminal, clock, note_skipped

if TYPE_CHECKING:
    from ragadapt.config import FitConfig


@command("compare")
@click.argument("documents", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where report.html and report.json go. Finished trainings are kept there for the next call.",
)
@click.option(
    "--methods",
    default="all",
    show_default=True,
    help="Names with commas, such as lora,full; all = each that can run here. A name may bring its own settings: "
    "lora:reweight=none.",
)
@question_options(
    "Your own questions, as for fit: they are split into those that train, steer and judge; may be repeated."
)
@click.option(
    "--budget-params",
    help="How many parameters each method trains: a share of the model's (0.5%), or a number (120000, 120k, 1.2M). "
    " [default: each method's own size]",
)
@click.option(
    "--budget-steps",
    type=click.IntRange(min=1),
    help="Steps of every training.  [default: as many epochs as fit takes]",
)
@click.option(
    "--budget-minutes",
    type=NumberRange(min=0, min_open=True),
    help="Minutes of every training instead: a slower method gets fewer steps.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Trainings of each method, from --seed on.",
)
@click.option(
    "--rates",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Learning rates tried for each method on the dev part; 1 = that of the settings.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Trainings at a time.  [default: processors / threads of one training]",
)
@settings_options(COMPARE_FLAGS)
def compare_command(
    terminal: Terminal,
    documents: tuple[Path, ...],
    output: Path,
    methods: str,
    query_files: tuple[Path, ...],
    qrels_files: tuple[Path, ...],
    uses: tuple[str, ...],
    budget_params: str | None,
    budget_steps: int | None,
    budget_minutes: float | None,
    seeds: int,
    rates: int,
    jobs: int | None,
    config: FitConfig,
) -> None:
    """Compare methods of training on your documents, with equal budgets.

    All methods get the same passages, questions, split and seeds, the same steps or time, and as many learning rates to
    choose from; held-out questions judge. It ends with what to do. A comparison that was cut short goes on where it
    stopped, and one more method or seed costs its own trainings alone.

    \b
        ragadapt compare ./docs -o ./comparison --methods lora,full --queries questions.jsonl --qrels qrels.tsv
        ragadapt compare ./docs -o ./comparison --generator-url http://localhost:8080/v1 --budget-params 0.5%
    """
    pairs = pair_labels(query_files, qrels_files, uses)
    from ragadapt.pipeline.compare import Budget, compare_methods
    from ragadapt.pipeline.queries import Labels
    from ragadapt.report import table

    labels = [Labels(queries, qrels, use) for queries, qrels, use in pairs]
    names = [name.strip() for name in methods.split(",") if name.strip()]
    budget = Budget.of(budget_params, budget_steps, budget_minutes)
    terminal.resume = True
    started = time.monotonic()
    with terminal.progress() as progress:
        found = compare_methods(
            list(documents),
            output,
            names,
            config,
            labels=labels,
            budget=budget,
            seeds=seeds,
            rates=rates,
            jobs=jobs,
            progress=progress,
        )
    seconds = time.monotonic() - started
    page = found.path / "report.html"
    if terminal.json:
        values = {"path": found.path, "sentence": found.sentence, "seconds": round(seconds, 1)}
        counts = {"trained": found.trained, "reused": found.reused}
        terminal.write_json("compare", {**values, **counts, "report": found.report})
        return
    if found.reused:
        terminal.note(f"{found.reused} trainings were taken over from an earlier call, {found.trained} were run.")
    if (corpus := found.report.corpus) is not None:
        note_skipped(terminal, corpus.skipped, corpus.skipped_total)
    terminal.write_lines(table(found.report))
    terminal.write()
    terminal.write(f"Report:    {page}")
    terminal.note(f"Done in {clock(seconds)}.")
