"""ragadapt serve: retrievers over HTTP."""

from __future__ import annotations

from pathlib import Path

import click

from ragadapt_cli.options import NumberRange, command, device_options, tenant_adapters_option
from ragadapt_cli.terminal import Terminal


@command("serve", json=False)
@click.argument("retrievers", nargs=-1, required=True, metavar="RETRIEVER...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0: to other machines too.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(1, 65535), help="On which port.")
@click.option(
    "--auth-token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Let in only the tokens of this file; see `ragadapt token`.",
)
@click.option("--no-auth", is_flag=True, help="Let other machines in without a token.")
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Pages of this origin may call; as often as needed.")
@click.option(
    "--url-template",
    metavar="URL",
    help='Where a hit can be read: "https://docs.example.com/{source}#{heading}"; also {id}, {document_id}.',
)
@click.option(
    "--log-queries",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append what is searched for to this file, in the format of `fit --queries`.  [default: nowhere]",
)
@click.option(
    "--labels",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Let the page at /label fill this file of labelled questions; what --log-queries keeps is asked first.",
)
@click.option(
    "--expand",
    type=click.Choice(["neighbours", "section", "document"]),
    help="Answer with what stands around each hit, also Dify, MCP and OpenAI clients, which cannot ask for it.",
)
@click.option(
    "--tokens",
    default=2048,
    show_default=True,
    type=click.IntRange(1),
    help="What the expanded hits of a request hold together.",
)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 256), help="Processes.")
@click.option("--max-body", default=8_000_000, show_default=True, type=click.IntRange(1000), help="Bytes of a request.")
@click.option("--timeout", default=60.0, show_default=True, type=NumberRange(0.1), help="Seconds for a request.")
@tenant_adapters_option
@device_options
def serve_command(
    terminal: Terminal,
    retrievers: tuple[str, ...],
    host: str,
    port: int,
    auth_token_file: Path | None,
    no_auth: bool,
    cors: tuple[str, ...],
    url_template: str | None,
    log_queries: Path | None,
    labels: tuple[str, ...],
    expand: str | None,
    tokens: int,
    workers: int,
    max_body: int,
    timeout: float,
    tenant_adapters: Path | None,
    device: str,
    precision: str,
) -> None:
    """Answer over HTTP: search, embeddings, re-ranking, MCP, and a page to look and teach.

    \b
        ragadapt serve ./retriever
        ragadapt serve docs=./retriever code=./other --auth-token-file tokens --host 0.0.0.0

    A retriever is called as its folder is, or as NAME=FOLDER says. The page is at /, the reference of the endpoints at
    /docs. Only this machine can ask unless --host says otherwise, and then a token is needed.
    """
    from ragadapt_server import ServerSettings  # with an error that names the extra where it is missing
    from ragadapt_server.labelling import named_files
    from ragadapt_server.run import serve
    from ragadapt_server.settings import named_retrievers

    named = named_retrievers(list(retrievers))
    settings = ServerSettings(
        named,
        host=host,
        port=port,
        token_file=None if auth_token_file is None else str(auth_token_file.resolve()),
        no_auth=no_auth,
        cors=cors,
        url_template=url_template,
        log_queries=None if log_queries is None else str(log_queries.resolve()),
        labels=tuple(
            (name, str(Path(file).resolve())) for name, file in named_files(labels, [one for one, _ in named])
        ),
        expand=expand,
        tokens=tokens,
        max_body_bytes=max_body,
        timeout_seconds=timeout,
        tenant_adapters=None if tenant_adapters is None else str(tenant_adapters.resolve()),
        device=device,
        precision=precision,
    )
    terminal.note(f"{', '.join(name for name, _ in settings.retrievers)}: http://{host}:{port}")
    serve(settings, workers, "info" if terminal.verbosity else "warning")
