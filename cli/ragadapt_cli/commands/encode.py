"""ragadapt encode: many texts into shards of vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ragadapt_cli.options import command, device_options
from ragadapt_cli.terminal import Terminal


@command("encode")
@click.argument("inputs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the shards go; the same command goes on there after a kill.",
)
@click.option("--model", help="Base model: small, base, multilingual, large, offline, a hub name, or a folder.")
@click.option("--retriever", type=click.Path(path_type=Path), help="Encode with this retriever's fitted model.")
@click.option(
    "--side",
    type=click.Choice(["passage", "query"]),
    default="passage",
    show_default=True,
    help="What the texts are: the model's prompts, and an adapter on the query side, depend on it.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray spreads the shards over a cluster (RAY_ADDRESS) or this machine's cores; needs the extra of that name.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="Encoders at a time under Ray.  [default: one a GPU or 8 cores]"
)
@click.option(
    "--shard-rows", type=click.IntRange(1), default=32_768, show_default=True, help="Texts in a shard of vectors."
)
@click.option("--text-field", help="Column of the text.  [default: text, contents, content or passage]")
@click.option("--id-field", help="Column of the id.  [default: _id or id, else file and row number]")
@click.option("--title-field", help="Column of a title that goes in front of the text.  [default: none]")
@device_options
def encode_command(
    terminal: Terminal,
    inputs: tuple[Path, ...],
    output: Path,
    model: str | None,
    retriever: Path | None,
    side: Any,
    engine: Any,
    workers: int | None,
    shard_rows: int,
    text_field: str | None,
    id_field: str | None,
    title_field: str | None,
    device: str,
    precision: str,
) -> None:
    """Encode files of texts into shards of vectors, on one machine or on many.

    INPUTS are .jsonl, .parquet and .txt files (a text a line), or folders of them. What is written are .npy files, the
    ids beside them, and vectors.json.

    \b
        ragadapt encode passages/ -o vectors/ --retriever ./retriever
        ragadapt encode passages/*.parquet -o vectors/ --model offline --engine ray
    """
    if (model is None) == (retriever is None):
        raise click.UsageError("Say whose vectors: --model or --retriever.")
    from ragadapt.encoder.bulk import Job, encode_files
    from ragadapt.store.workspace import open_store

    if retriever is not None:
        model = str(open_store(retriever).path)
    assert model is not None
    job = Job(model, side, device, precision, id_field, text_field, title_field)
    terminal.resume = True
    with terminal.progress() as progress:
        done = encode_files(
            inputs, output, job, engine=engine, workers=workers, shard_rows=shard_rows, progress=progress
        )
    if terminal.json:
        values = {"output": done.folder, "rows": done.rows, "dim": done.dim, "shards": done.shards}
        rest = {"reused": done.reused, "truncated": done.truncated, "fingerprint": done.fingerprint}
        terminal.write_json("encode", {**values, **rest})
        return
    terminal.write(f"{done.folder}: {done.rows:,} vectors of {done.dim} numbers in {done.shards} shards")
    if done.reused:
        terminal.note(f"Taken over from an earlier run: {done.reused} shards.")
    if done.truncated:
        terminal.note(f"{done.truncated:,} texts were longer than the model reads; the rest of them was left out.")
