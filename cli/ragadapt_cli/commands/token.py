"""ragadapt token: who may ask a server."""

from __future__ import annotations

from pathlib import Path

import click

from ragadapt_cli.options import command
from ragadapt_cli.terminal import Terminal


@command("token")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--tenant", help="Whose feedback its searches see and its feedback is.")
def token_command(terminal: Terminal, file: Path, tenant: str | None) -> None:
    """Make a bearer token for `serve`.

    \b
        ragadapt token tokens
        ragadapt token tokens --tenant acme

    Prints the token, once; FILE keeps its hash alone. A running server reads the file anew: remove a line to take the
    token back.
    """
    from ragadapt_server.tokens import add_token

    token = add_token(file, tenant)
    if terminal.json:
        terminal.write_json("token", {"token": token, "file": file, "tenant": tenant})
    else:
        terminal.write(token)
