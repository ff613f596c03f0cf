"""The program `ragadapt`: a group that imports a command's module only when that command is asked for.

Exit codes: 0 done; 1 an error; 2 wrong usage; 3 no gain under --fail-on-no-gain; 4 an optional package is missing;
130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from ragadapt.version import __version__
from ragadapt_cli.terminal import INTERRUPTED, Terminal, report_error

COMMANDS = {
    "fit": "Learn a corpus and save a retriever that is shown to be better on it.",
    "compare": "Compare methods of training on your documents, with equal budgets.",
    "sweep": "Compare models and sizes of passages on your documents and questions, without training.",
    "search": "Search a retriever: one query, or a file of queries into a TREC run.",
    "eval": "Measure a retriever on judged queries.",
    "refresh": "Bring a retriever up to date: documents, of which only what is new is encoded, and feedback.",
    "feedback": "List, undo or export the feedback of a retriever.",
    "index": "Show, rebuild or move the vector index of a retriever.",
    "export": "Write the fitted model for other programs.",
    "serve": "Answer over HTTP: search, embeddings, re-ranking, MCP, and a page to look and teach.",
    "label": "Label questions in the browser: say which passages answer them, with one key each.",
    "mcp": "Speak MCP on stdin and stdout: search, fetch and feedback as an agent's tools.",
    "token": "Make a bearer token for `serve`.",
    "encode": "Encode files of texts into shards of vectors, on one machine or on many.",
    "report": "Show the report of a retriever.",
    "doctor": "Before a fit: will tuning pay? After one: is the retriever sound?",
    "library": "Keep adapters of many corpora: add, list, find the nearest, blend them without training.",
    "prime": "Learn from many corpora at once: a base model from which the next fit begins.",
    "methods": "List the methods of training that fit --method takes.",
    "completion": "Print the shell's completion script.",
}
"""Name → first line of its help, so that `ragadapt --help` needs no command's module. Modules: commands/<name>.py."""


class Program(click.Group):
    """The group over COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"ragadapt_cli.commands.{name}")
        command = getattr(module, f"{name}_command")
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names from COMMANDS; click would import every command to ask it for its help."""
        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(name, help=help) for name, help in COMMANDS.items() if name.startswith(incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and name not in COMMANDS:
            from difflib import get_close_matches

            close = get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" Commands: {', '.join(COMMANDS)}."
            raise click.UsageError(f"There is no command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", message="ragadapt %(version)s")
@click.option("-v", "--verbose", count=True, help="Say what happens; twice for every detail.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no warnings.")
@click.pass_obj
def program(terminal: Terminal, verbose: int, quiet: bool) -> None:
    """Fit a retriever to your own documents.

    \b
        ragadapt fit ./docs -o ./retriever
        ragadapt search ./retriever "how do I …"
    """
    terminal.set(verbose=verbose, quiet=quiet)


def run(args: Sequence[str] | None = None) -> int:
    """Run the program on the arguments (None: those of the process); the exit code."""
    arguments = list(sys.argv[1:] if args is None else args)
    terminal = Terminal()
    # Known before parsing, so that a usage error can be JSON too.
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    terminal.json = "--json" in options
    _speak_utf8()
    try:
        result: Any = program.main(arguments, prog_name="ragadapt", standalone_mode=False, obj=terminal)
    except click.Abort as error:
        interrupted = error.__cause__ if isinstance(error.__cause__, KeyboardInterrupt) else KeyboardInterrupt()
        return report_error(interrupted, terminal)
    except (Exception, KeyboardInterrupt) as error:
        return report_error(error, terminal)
    finally:
        terminal.close()
    return result if isinstance(result, int) else 0


def main() -> None:
    """The console script."""
    try:
        code = run()
    except KeyboardInterrupt:  # while the last message was on its way
        code = INTERRUPTED
    sys.exit(code)


def _speak_utf8() -> None:
    """Whatever stands in a document can be printed; where the encoding cannot, a question mark stands for it."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            if stream.isatty():
                reconfigure(errors="replace")
            else:  # a pipe on Windows would otherwise get a code page that holds few languages
                reconfigure(encoding="utf-8", errors="replace")
