"""The ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from ragadapt.errors import RagadaptError
from ragadapt.version import __version__
from ragadapt_server import dify_api, label_api, openai_api, pages, rerank_api, search_api
from ragadapt_server.errors import Json, Refused, error_response, refusal_of
from ragadapt_server.guard import Guard
from ragadapt_server.mcp_http import McpOverHttp
from ragadapt_server.pages import PROBES
from ragadapt_server.settings import ServerSettings
from ragadapt_server.state import ServerState, server_of
from ragadapt_server.tokens import Tokens


def make_app(settings: ServerSettings) -> ASGIApp:
    """The application over retrievers that are opened now. Raises as `Retriever.open`, and InvalidInput for tokens that
    cannot be read."""
    tokens = None if settings.token_file is None else Tokens(Path(settings.token_file))
    server = ServerState.open(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for engine in server.engines.values():
                await engine.start()
                stack.push_async_callback(engine.close)
            speaking = asyncio.create_task(mcp.run())
            await asyncio.sleep(0)
            yield
            speaking.cancel()
            with suppress(asyncio.CancelledError):
                await speaking

    app = FastAPI(
        title="ragadapt",
        version=__version__,
        description="Search, embeddings and re-ranking by retrievers that were fitted to their documents.",
        docs_url=None,  # FastAPI's page loads its script from another host
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.server = server
    for router in (
        openai_api.router,
        rerank_api.router,
        dify_api.router,
        search_api.router,
        label_api.router,
        pages.router,
    ):
        app.include_router(router)
    mcp = McpOverHttp(app, server)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )

    @app.exception_handler(RagadaptError)
    @app.exception_handler(Refused)
    @app.exception_handler(Exception)
    async def refuse(request: Request, error: Exception) -> Response:
        return error_response(request.url.path, refusal_of(error))

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: RequestValidationError) -> Response:
        reasons = _reasons(error)
        if "json" not in request.headers.get("content-type", ""):
            reasons = "The body was not read: send JSON, with Content-Type: application/json."
        return error_response(request.url.path, Refused(400, reasons))

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        # FastAPI reports whatever goes wrong while the body is read as a body that it cannot parse.
        refused = request.scope.get("ragadapt.refused") or Refused(
            error.status_code, _elsewhere(app, request) or str(error.detail), "no_such_call"
        )
        response = error_response(request.url.path, refused)
        if error.headers and "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response

    @app.api_route("/healthz", methods=PROBES, include_in_schema=False)
    async def healthz() -> Json:
        return Json({"status": "ok"})

    @app.api_route("/readyz", methods=PROBES, include_in_schema=False)
    async def readyz(request: Request) -> Json:
        """Ready where every retriever can be read; a folder that cannot be is named in the log."""
        for engine in server_of(request).engines.values():
            try:
                await engine.call(engine.retriever.snapshot)
            except RagadaptError as error:
                raise Refused(503, "A retriever cannot be read; the server's log says why.", "unready") from error
        return Json({"status": "ready"})

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        body, media_type = server.metrics.text()
        return Response(body, media_type=media_type)

    return Guard(app, settings, tokens, server.metrics)


def _elsewhere(app: FastAPI, request: Request) -> str | None:
    """The call that somebody meant who left out the /v1 of OpenAI's address, or wrote it twice."""
    path, known = request.url.path, app.openapi()["paths"]
    for meant in (f"/v1{path}", path.removeprefix("/v1"), path.replace("//", "/")):
        if path not in known and meant != path and meant in known:
            return f"There is no {path} here; {meant} there is. The base URL of OpenAI's clients ends in /v1."
    return None


def _reasons(error: RequestValidationError) -> str:
    """What is wrong with a body, with the names of the fields and without their values."""
    reasons = []
    for one in error.errors()[:5]:
        place = ".".join(str(part) for part in one["loc"] if part != "body" and len(str(part)) < 60)
        reasons.append(f"{place}: {one['msg']}" if place else str(one["msg"]))
    more = len(error.errors()) - 5
    return "; ".join(reasons) + (f"; and {more} more" if more > 0 else "")
