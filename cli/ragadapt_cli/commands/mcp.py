"""ragadapt mcp: a retriever as tools of an agent."""

from __future__ import annotations

from pathlib import Path

import click

from ragadapt_cli.options import command, device_options, retriever_argument
from ragadapt_cli.terminal import Terminal


@command("mcp", json=False)
@retriever_argument
@click.option(
    "--url-template",
    metavar="URL",
    help='Where a hit can be read: "https://docs.example.com/{source}#{heading}"; also {id}, {document_id}.',
)
@device_options
def mcp_command(terminal: Terminal, retriever: Path, url_template: str | None, device: str, precision: str) -> None:
    """Speak MCP on stdin and stdout: search, fetch and feedback as an agent's tools.

    \b
        claude mcp add docs -- ragadapt mcp /path/to/retriever

    `ragadapt serve` offers the same tools at /mcp.
    """
    from ragadapt_server import ServerSettings  # with an error that names the extra where it is missing
    from ragadapt_server.run import serve_stdio

    named = ((retriever.resolve().name or "retriever", str(retriever)),)
    serve_stdio(ServerSettings(named, url_template=url_template, device=device, precision=precision))
