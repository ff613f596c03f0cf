"""The MCP tools over HTTP, at /mcp and /mcp/NAME."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ragadapt_server.state import ServerState

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

log = logging.getLogger(__name__)


class McpOverHttp:
    """The tools of each retriever; those of the first one at /mcp, too.

    They are loaded when everything else can answer, since the protocol's package takes as long to import as the rest of
    the server. A request that comes before waits for it. Nothing is kept between two requests, so any of several
    processes may answer the next one. Nor is anything told that was not asked: a stream for it (GET) is refused with
    405, which the protocol has for that; held open it would end at the time limit, and clients would come again.
    """

    def __init__(self, app: FastAPI, server: ServerState) -> None:
        self._server = server
        for number, name in enumerate(server.engines):
            for path in ("/mcp", f"/mcp/{name}") if number == 0 else (f"/mcp/{name}",):
                app.router.routes.append(Route(path, _Endpoint(self, name), methods=["POST"]))

    async def run(self) -> None:
        """Serve until cancelled."""
        self.managers: asyncio.Future[dict[str, StreamableHTTPSessionManager]]
        self.managers = asyncio.get_running_loop().create_future()
        try:
            made = await asyncio.to_thread(self._load)
            async with AsyncExitStack() as stack:
                for manager in made.values():
                    await stack.enter_async_context(manager.run())
                self.managers.set_result(made)
                await asyncio.Event().wait()
        except Exception as error:
            log.exception("MCP cannot be spoken")
            self.managers.set_exception(error)

    def _load(self) -> dict[str, StreamableHTTPSessionManager]:
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

        from ragadapt_server.mcp import make_mcp

        return {
            name: StreamableHTTPSessionManager(
                make_mcp(self._server, engine)._lowlevel_server,
                json_response=True,
                stateless=True,
                max_request_body_size=self._server.settings.max_body_bytes,
            )
            for name, engine in self._server.engines.items()
        }


class _Endpoint:
    """An ASGI application as the endpoint of a route; a function would be taken for one that gets a Request."""

    def __init__(self, host: McpOverHttp, name: str) -> None:
        self._host, self._name = host, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        managers = await asyncio.shield(self._host.managers)
        await managers[self._name].handle_request(scope, receive, send)
