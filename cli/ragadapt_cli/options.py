"""The options that several commands share."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ragadapt_cli.terminal import Terminal

Function = Callable[..., Any]

RETRIEVER = click.Path(path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class NumberRange(click.FloatRange):
    """A finite number within bounds; click's own takes nan for one, which no bound can tell."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{number} is no finite number.", param, ctx)
        return number


def command(name: str, *, json: bool = True) -> Callable[[Function], click.Command]:
    """A command with the options that all of them have. The function gets the Terminal as its first argument.

    Its docstring is the help. What it returns is the exit code (None = 0). json: it has --json.
    """

    def decorate(function: Function) -> click.Command:
        @functools.wraps(function)
        def call(*, verbose: int, quiet: bool, as_json: bool = False, **values: Any) -> Any:
            terminal = click.get_current_context().ensure_object(Terminal)
            terminal.set(verbose=verbose, quiet=quiet, json=as_json)
            return function(terminal, **values)

        common = [
            click.Option(["-v", "--verbose"], count=True, help="Say what happens; twice for every detail."),
            click.Option(["-q", "--quiet"], is_flag=True, help="No progress, no warnings."),
        ]
        if json:
            help = "One JSON document on stdout; errors as JSON on stderr."
            common.insert(0, click.Option(["--json", "as_json"], is_flag=True, help=help))
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        made = click.command(name, context_settings=settings)(call)
        made.params.extend(common)
        return made

    return decorate


def retriever_argument(function: Function) -> Function:
    """RETRIEVER, a folder that `fit` wrote."""
    return click.argument("retriever", type=RETRIEVER)(function)


def question_options(help: str, *, uses: bool = True) -> Callable[[Function], Function]:
    """--queries and --qrels, for commands that read labelled questions. help: of --queries. uses: with --labels-for."""

    def decorate(function: Function) -> Function:
        options = [
            click.option("--queries", "query_files", multiple=True, type=FILE, help=help),
            click.option(
                "--qrels",
                "qrels_files",
                multiple=True,
                type=FILE,
                help="Judgements for --queries, in the same order.",
            ),
        ]
        if uses:
            options.append(
                click.option(
                    "--labels-for",
                    "uses",
                    multiple=True,
                    type=click.Choice(["both", "train", "eval"]),
                    help="What your questions are for: once for all of them, or once for each --queries.  "
                    "[default: both]",
                )
            )
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def feedback_options(function: Function) -> Function:
    """How feedback counts, for commands that search."""
    for option in (
        click.option("--tenant", help="Whose feedback counts, beside that for all."),
        click.option(
            "--lam", type=NumberRange(0, 1), help="λ of the feedback: 1 = without, 0 = most.  [default: as tuned]"
        ),
    ):
        function = option(function)
    return function


def tenant_adapters_option(function: Function) -> Function:
    """Adapters of tenants, for commands that search."""
    return click.option(
        "--tenant-adapters",
        type=click.Path(file_okay=False, path_type=Path),
        help="A library of adapters (`ragadapt library`): a tenant's questions go through the one of its name.",
    )(function)


def rerank_options(function: Function) -> Function:
    """The second stage of a search; the function gets it as `rerank`."""

    @functools.wraps(function)
    def call(
        *args: Any,
        rerank: bool,
        rerank_model: str | None,
        rerank_depth: int | None,
        rerank_ms: float | None,
        rerank_weight: float | None,
        **values: Any,
    ) -> Any:
        from ragadapt.search.reranking import Rerank

        asked: bool | Rerank = rerank
        if any(one is not None for one in (rerank_model, rerank_depth, rerank_ms, rerank_weight)):
            asked = Rerank(rerank_model, rerank_depth, rerank_ms, rerank_weight)
        return function(*args, rerank=asked, **values)

    made: Function = call
    for option in (
        click.option("--rerank-weight", type=NumberRange(0, 1), help="Its share of the score.  [default: as learnt]"),
        click.option("--rerank-ms", type=NumberRange(0), help="Read only what these milliseconds allow."),
        click.option(
            "--rerank-depth", type=click.IntRange(1), help="Passages that it reads of a query.  [default: as fitted]"
        ),
        click.option(
            "--rerank-model", help="Another re-ranker: minilm, colbert-small, a hub name, or a folder; it counts half."
        ),
        click.option("--rerank", is_flag=True, help="Let the retriever's re-ranker read the best passages."),
    ):
        made = option(made)
    return made


def context_options(function: Function) -> Function:
    """What a search gives of what it found; the function gets it as `shape`, arguments of `Retriever.search`."""

    @functools.wraps(function)
    def call(
        *args: Any,
        expand: Any,
        tokens: int | None,
        fold: str,
        max_per_document: int | None,
        **values: Any,
    ) -> Any:
        from ragadapt.search.context import Expand

        wider = expand
        if tokens is not None:
            wider = Expand(tokens=tokens) if expand is None else Expand(expand, tokens)
        return function(*args, shape={"expand": wider, "fold": fold, "max_per_document": max_per_document}, **values)

    made: Function = call
    for option in (
        click.option("--max-per-document", type=click.IntRange(1), help="Results of one document at most."),
        click.option(
            "--fold",
            type=click.Choice(["same", "near", "none"]),
            default="same",
            show_default=True,
            help="Passages of the same text are one result; near-duplicates too; or none are.",
        ),
        click.option(
            "--tokens",
            type=click.IntRange(1),
            help="What the expanded results hold together; alone it expands to neighbours.  [default: 2048]",
        ),
        click.option(
            "--expand",
            type=click.Choice(["neighbours", "section", "document"]),
            help="Show each result with what stands around it, as a language model would get it.",
        ),
    ):
        made = option(made)
    return made


def device_option(function: Function) -> Function:
    """Where the encoder runs, for commands that open a saved retriever: what it was made on is no demand."""
    return click.option(
        "--device",
        default="auto",
        show_default=True,
        envvar="RAGADAPT_DEVICE",
        show_envvar=True,
        help="cpu, cuda, cuda:1, mps; auto takes the fastest there is.",
    )(function)


def device_options(function: Function) -> Function:
    """Where and how exactly the encoder runs; for commands that open a saved retriever."""
    precision = click.option(
        "--precision",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        envvar="RAGADAPT_PRECISION",
        show_envvar=True,
        help="Numbers the encoder computes in; auto takes bfloat16 where it is fast and changes no ranking.",
    )
    return device_option(precision(function))
