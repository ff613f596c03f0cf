"""ragadapt export: the fitted model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ragadapt_cli.options import command, retriever_argument
from ragadapt_cli.terminal import Terminal


@command("export")
@retriever_argument
@click.argument("output", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--format",
    type=click.Choice(["sentence-transformers", "onnx"]),
    default="sentence-transformers",
    show_default=True,
    help="onnx needs the extra of that name.",
)
def export_command(terminal: Terminal, retriever: Path, output: Path, format: Any) -> None:
    """Write the fitted model for other programs.

    The adapter is merged into the weights; what is written is opened again and must give the same vectors.

    \b
        ragadapt export ./retriever ./model
        ragadapt export ./retriever ./onnx --format onnx
    """
    from ragadapt.export import export

    with terminal.progress() as progress:
        made = export(retriever, output, format, progress=progress)
    if terminal.json:
        values = {"output": made.folder, "format": made.format, "files": made.files, "least_cosine": made.cosine}
        terminal.write_json("export", values)
    else:
        terminal.write(
            f"{made.folder}: {made.format}, same vectors as the retriever's (least cosine {made.cosine:.6f})"
        )
