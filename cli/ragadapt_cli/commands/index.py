"""ragadapt index: the vector index of a saved retriever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ragadapt.config import AUTO, ENGINES
from ragadapt_cli.options import command, device_option, retriever_argument
from ragadapt_cli.terminal import Terminal


@command("index")
@retriever_argument
@click.option(
    "--kind",
    type=click.Choice([AUTO, *ENGINES]),
    help="Move the vectors into an index of this kind.",
)
@click.option(
    "--structure",
    type=click.Choice(["auto", "flat", "disk", "hnsw", "ivf"]),
    help="Of --kind faiss: flat is exact; auto takes disk from a million passages on, to be larger than memory.",
)
@click.option("--url", help="Qdrant server, for --kind qdrant.  [default: a folder inside the retriever]")
@click.option("--collection", help="Name of the Qdrant collection.")
@click.option("--rebuild", is_flag=True, help="Encode the passages again and build the same index anew.")
@device_option
def index_command(
    terminal: Terminal,
    retriever: Path,
    kind: str | None,
    structure: str | None,
    url: str | None,
    collection: str | None,
    rebuild: bool,
    device: str,
) -> None:
    """Show, rebuild or move the vector index of a retriever.

    Without options it says what the index is.

    \b
        ragadapt index ./retriever --kind qdrant --url http://localhost:6333
        ragadapt index ./retriever --rebuild
    """
    from ragadapt.config import IndexConfig
    from ragadapt.store.workspace import open_store

    manifest = open_store(retriever).manifest
    now = IndexConfig.model_validate(manifest.configuration.get("index", {}))
    options = {"kind": kind, "structure": structure, "url": url, "collection": collection}
    wanted: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if not wanted and not rebuild:
        values = {"retriever": retriever, "fingerprint": manifest.fingerprint, **now.model_dump(mode="json")}
        if terminal.json:
            terminal.write_json("index", values)
        else:
            for name, value in values.items():
                terminal.write(f"{name:<16}{'-' if value is None else value}")
        return

    from ragadapt.pipeline.reindex import reindex

    before = {} if kind is not None and kind != now.kind else now.model_dump()
    config = IndexConfig.model_validate({**before, **wanted})
    terminal.resume = True
    with terminal.progress() as progress:
        path = reindex(retriever, config, encode=rebuild, device=device, progress=progress)
    config = IndexConfig.model_validate(open_store(path).manifest.configuration["index"])
    if terminal.json:
        terminal.write_json("index", {"retriever": path, **config.model_dump(mode="json")})
    else:
        terminal.write(f"{path}: {config.kind} index{f' at {config.url}' if config.url else ''}")
