"""ragadapt export: the fitted model for other programs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ragadapt_cli.options import command, retriever_argument
from ragadapt_cli.terminal import Terminal

if TYPE_CHECKING:
    from ragadapt.export import Exported


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
@click.option(
    "--part",
    type=click.Choice(["model", "reranker"]),
    default="model",
    show_default=True,
    help="The model that makes the vectors, or the re-ranker that was fitted with it.",
)
@click.option("--int8", is_flag=True, help="For onnx: weights in 8 bits; what that changes is measured and printed.")
def export_command(terminal: Terminal, retriever: Path, output: Path, format: Any, part: str, int8: bool) -> None:
    """Write the fitted model for other programs.

    The adapter is merged into the weights; what is written is opened again and must give the same vectors. A method
    whose modules are no change of weights is written beside them, and sentence-transformers then needs ragadapt.

    \b
        ragadapt export ./retriever ./model
        ragadapt export ./retriever ./onnx --format onnx
        ragadapt export ./retriever ./small --format onnx --int8
        ragadapt export ./retriever ./cross-encoder --part reranker
    """
    if int8 and format != "onnx":
        raise click.UsageError("--int8 is for --format onnx.")
    if int8 and part == "reranker":
        raise click.UsageError("--int8 is for the model; a re-ranker is written in float32.")
    from ragadapt.export import export, export_reranker

    if part == "reranker":
        with terminal.progress() as progress:
            second = export_reranker(retriever, output, format, progress=progress)
        if terminal.json:
            terminal.write_json("export", {"output": second.folder, **asdict(second)})
        else:
            same = f"same scores as the retriever's re-ranker (they differ by {second.difference:.1e} at most)"
            terminal.write(f"{second.folder}: {second.format}, {same}")
            if second.needs_ragadapt:
                terminal.write(_needs_ragadapt(second.opens_with, second.folder))
        return
    with terminal.progress() as progress:
        made = export(retriever, output, format, int8=int8, progress=progress)
    if terminal.json:
        values: dict[str, Any] = {
            "output": made.folder,
            "format": made.format,
            "files": made.files,
            "least_cosine": made.cosine,
            "needs_ragadapt": made.needs_ragadapt,
            "two_models": made.two_models,
        }
        if made.int8 is not None:
            values["int8"] = asdict(made.int8)
        terminal.write_json("export", values)
        return
    if made.int8 is None:
        terminal.write(
            f"{made.folder}: {made.format}, same vectors as the retriever's (least cosine {made.cosine:.6f})"
        )
        if made.needs_ragadapt:
            terminal.write(_needs_ragadapt("SentenceTransformer", made.folder))
        _tell_of_two_models(terminal, made)
        return
    cost = made.int8
    terminal.write(
        f"{made.folder}: onnx in int8, {cost.bytes / 1e6:.1f} MB instead of {cost.float_bytes / 1e6:.1f} MB. "
        f"On {cost.passages} passages and {cost.queries} queries of this retriever: mean cosine with float32 "
        f"{cost.mean_cosine:.4f} (least {cost.least_cosine:.4f}), {cost.rank_agreement:.1%} of the pairs ranked alike."
    )
    _tell_of_two_models(terminal, made)


def _tell_of_two_models(terminal: Terminal, made: Exported) -> None:
    if not made.two_models:
        return
    how = (
        "query.onnx is for queries, passage.onnx for passages"
        if made.format == "onnx"
        else "encode them by encode_query, and passages by encode_document (encode gives passages' vectors)"
    )
    terminal.write(f"Only queries were trained, so they have a model of their own: {how}.")


def _needs_ragadapt(kind: str, folder: Path) -> str:
    return (
        "It holds a module of ragadapt: install it where the folder is opened, with "
        f"{kind}({str(folder)!r}, trust_remote_code=True)."
    )
