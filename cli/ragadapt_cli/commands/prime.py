"""ragadapt prime: many corpora in, a base model out."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragadapt_cli.options import NumberRange, command
from ragadapt_cli.settings import PRIME_FLAGS, settings_options
from ragadapt_cli.terminal import NO_GAIN, Terminal, clock

if TYPE_CHECKING:
    from ragadapt.config import FitConfig


@command("prime")
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the model goes: a folder that `fit --model` takes.",
)
@click.option(
    "--recipe",
    type=click.Choice(["multitask", "maml", "reptile"]),
    default="multitask",
    show_default=True,
    help="A step learns a batch of one corpus, or looks ahead within it.",
)
@click.option(
    "--temperature",
    default=2.0,
    show_default=True,
    type=NumberRange(0, min_open=True),
    help="Corpora are drawn by the number of questions to the power of 1 / this: 1 = by size, more = more evenly.",
)
@click.option("--inner-steps", default=2, show_default=True, type=click.IntRange(1), help="maml, reptile: steps ahead.")
@click.option(
    "--inner-rate",
    default=0.05,
    show_default=True,
    type=NumberRange(0, min_open=True),
    help="maml, reptile: how far the weights move at most in a step ahead.",
)
@click.option(
    "--licence",
    "licences",
    multiple=True,
    metavar="SOURCE=TEXT",
    help="What the model's card says of a source, by its folder's name.  [default: what its README says]",
)
@settings_options(PRIME_FLAGS)
def prime_command(
    terminal: Terminal,
    sources: tuple[Path, ...],
    output: Path,
    recipe: Any,
    temperature: float,
    inner_steps: int,
    inner_rate: float,
    licences: tuple[str, ...],
    config: FitConfig,
) -> int | None:
    """Learn from many corpora at once: a base model from which the next fit begins.

    SOURCES are folders of documents, retrievers (with the questions of their fits and their feedback), and collections
    in BEIR's layout. Each keeps questions that steer the training and others that guard it: where some source would end
    below its base at every strength, nothing is written and the exit code is 3. All weights of the layers are trained
    (--method full), or an adapter that is folded into them. A run that was cut short goes on where it stopped when the
    same command is given again.

    \b
        ragadapt prime ./retriever-a ./retriever-b ./collection -o ./primed
        ragadapt fit ./docs -o ./retriever --model ./primed --queries questions.jsonl
    """
    named: dict[str, str] = {}
    for each in licences:
        name, sign, text = each.partition("=")
        if not sign or not text.strip():
            raise click.BadParameter(
                f"{each!r} is not SOURCE=TEXT, for example handbook=CC-BY-4.0.", param_hint="--licence"
            )
        named[name.strip()] = text.strip()
    from ragadapt.pipeline.prime import prime
    from ragadapt.training.priming import Recipe

    terminal.resume = True
    started = time.monotonic()
    with terminal.progress() as progress:
        how = Recipe(recipe, temperature, inner_steps, inner_rate)
        result = prime(list(sources), output, config, how, licences=named, progress=progress)
    seconds = time.monotonic() - started
    if terminal.json:
        terminal.write_json("prime", {**asdict(result), "seconds": round(seconds, 1)})
    else:
        for one in result.sources:
            terminal.write(
                f"{one.name}  {one.passages:,} passages, {one.train} questions ({one.evidence})  "
                f"{one.before:.3f} → {one.after:.3f}  drift {one.drift:.3f}"
            )
        terminal.write(result.reason)
        if result.path is not None:
            terminal.write(f"Model: {result.path}")
            model = shlex.quote(str(result.path))
            terminal.note(f"Done in {clock(seconds)}. Try: ragadapt fit DOCUMENTS -o RETRIEVER --model {model}")
    return None if result.primed else NO_GAIN
