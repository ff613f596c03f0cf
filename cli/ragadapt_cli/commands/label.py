"""ragadapt label: a page to label questions, in the browser."""

from __future__ import annotations

from pathlib import Path

import click

from ragadapt.config import FitConfig
from ragadapt_cli.options import FILE, command, device_options, retriever_argument
from ragadapt_cli.settings import GENERATOR, settings_options
from ragadapt_cli.terminal import Terminal


@command("label", json=False)
@retriever_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="questions.jsonl",
    show_default=True,
    help="The file of labelled questions; one that is there is gone on with.",
)
@click.option(
    "--queries",
    "questions",
    multiple=True,
    type=FILE,
    help="Questions to label: jsonl with text, as `serve --log-queries` writes it, or .txt with one a line.",
)
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="On which port.  [default: one that is free]")
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@settings_options(GENERATOR)
@device_options
def label_command(
    terminal: Terminal,
    retriever: Path,
    output: Path,
    questions: tuple[Path, ...],
    port: int,
    no_browser: bool,
    config: FitConfig,
    device: str,
    precision: str,
) -> None:
    """Label questions in the browser: say which passages answer them, with one key each.

    \b
        ragadapt label ./retriever --queries log.jsonl
        ragadapt fit ./docs -o ./retriever --queries questions.jsonl

    Questions come from --queries, then from the language model that --generator or --generator-url names, then from
    passages that none of them found, for which you type one. The page says after how many labels a trained model can
    be judged. Each label is on disk when it is shown. End with Ctrl-C.
    """
    from ragadapt_server import ServerSettings  # with an error that names the extra where it is missing
    from ragadapt_server.run import serve_here

    name = retriever.resolve().name or "retriever"
    query = config.query
    settings = ServerSettings(
        ((name, str(retriever)),),
        port=port,
        labels=((name, str(output.resolve())),),
        questions=tuple(str(path.resolve()) for path in questions),
        generator=query.model_dump(mode="json") if query.generator or query.generator_url else None,
        device=device,
        precision=precision,
    )

    def ready(address: str) -> None:
        terminal.write(f"{address}/label")
        terminal.note(f"Labels go to {output.resolve()}. End with Ctrl-C.")
        if not no_browser:
            click.launch(f"{address}/label")

    serve_here(settings, ready, "info" if terminal.verbosity else "warning")
