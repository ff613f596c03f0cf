"""The processes of `ragadapt serve` and `ragadapt mcp`."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import anyio

from ragadapt.errors import InvalidInput
from ragadapt_server.settings import ServerSettings

_SETTINGS = "RAGADAPT_SERVER_SETTINGS"  # how they reach the processes of --workers
_GRACE_SECONDS = 20  # for what is being answered when the server is told to stop


def serve(settings: ServerSettings, workers: int = 1, log_level: str = "warning") -> None:
    """Answer over HTTP until the process is told to stop.

    workers: processes that share the port and the files, which each maps into memory.
    """
    import uvicorn

    how = {"host": settings.host, "port": settings.port, **_how(log_level)}
    if workers == 1:
        from ragadapt_server.app import make_app

        uvicorn.run(make_app(settings), **how)
        return
    with tempfile.TemporaryDirectory(prefix="ragadapt-metrics-") as folder:
        os.environ[_SETTINGS] = settings.to_json()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # read when the client library is imported
        uvicorn.run("ragadapt_server.run:app_of_worker", factory=True, workers=workers, **how)


def serve_here(settings: ServerSettings, ready: Callable[[str], object], log_level: str = "warning") -> None:
    """Answer to this machine on `settings.port` (0 = one that is free) until told to stop; ready gets the address."""
    import uvicorn

    from ragadapt_server.app import make_app

    app = make_app(settings)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((settings.host, settings.port))
        except OSError as error:
            raise InvalidInput(f"port = {settings.port}: it cannot be had ({error}). Name another one.") from error
        listening.listen()  # a browser that is quicker than the server waits here
        address = f"http://{settings.host}:{listening.getsockname()[1]}"
        threading.Thread(target=ready, args=(address,), daemon=True).start()  # some browsers keep their caller waiting
        uvicorn.Server(uvicorn.Config(app, **_how(log_level))).run(sockets=[listening])


def _how(log_level: str) -> dict[str, Any]:
    return {
        "log_level": log_level,
        "access_log": log_level in ("info", "debug"),
        "server_header": False,
        "timeout_graceful_shutdown": _GRACE_SECONDS,
    }


def app_of_worker() -> object:
    """The application of one of several processes."""
    from ragadapt_server.app import make_app

    return make_app(ServerSettings.from_json(os.environ[_SETTINGS]))


def serve_stdio(settings: ServerSettings) -> None:
    """Speak MCP on stdin and stdout about the first retriever until stdin ends."""
    from ragadapt_server.mcp import make_mcp
    from ragadapt_server.state import ServerState

    server = ServerState.open(settings)
    engine = server.engine(None)

    async def main() -> None:
        await engine.start()
        try:
            await make_mcp(server, engine).run_stdio_async()
        finally:
            await engine.close()

    anyio.run(main)
