"""The server in a thread of the test's own process, on a port that is free."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from ragadapt_server import ServerSettings, make_app


@contextmanager
def running(*retrievers: tuple[str, Path], **settings: Any) -> Iterator[str]:
    """Its address, such as http://127.0.0.1:54321."""
    app = make_app(ServerSettings(tuple((name, str(folder)) for name, folder in retrievers), **settings))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not server.started:
        if time.monotonic() > end or not thread.is_alive():
            raise RuntimeError("the server did not start")
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()
