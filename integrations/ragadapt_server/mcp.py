"""MCP: search, fetch and feedback as tools, over stdio and over HTTP."""

from __future__ import annotations

import inspect
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel

from ragadapt.errors import InvalidInput
from ragadapt.search.context import Expand
from ragadapt.values import Hit
from ragadapt.version import __version__
from ragadapt_server.engine import Engine, checked_lengths
from ragadapt_server.errors import refusal_of
from ragadapt_server.state import ServerState, title_of
from ragadapt_server.tokens import Caller

_HITS = 8
_FETCHED = Expand("neighbours", 5000)  # of the document around a passage


class Found(BaseModel):
    """A hit, as ChatGPT's connectors and deep research read it."""

    id: str
    title: str
    url: str
    text: str


class SearchResult(BaseModel):
    """The hits, best first."""

    results: list[Found]


class Fetched(BaseModel):
    """A passage with what stands around it in its document."""

    id: str
    title: str
    text: str
    url: str
    metadata: dict[str, Any]


class FeedbackResult(BaseModel):
    """key: takes the feedback back."""

    key: str


def make_mcp(server: ServerState, engine: Engine) -> MCPServer[Any]:
    """The MCP server over one retriever."""
    made: MCPServer[Any] = MCPServer(
        f"ragadapt {engine.name}",
        instructions=(
            f"Searches the documents of {engine.name!r}. Use search to find passages and fetch to read more around "
            "one. Tell feedback which passage did or did not answer the question: it counts from the next search on."
        ),
        version=__version__,
        log_level="WARNING",
    )

    @made.tool(annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))
    async def search(query: str, context: Context[Any, Any], tokens: int | None = None) -> SearchResult:
        """Find the passages that answer a question, best first. Ask in whole sentences or in keywords.

        tokens: give each passage with what stands around it, all results together within so many tokens.
        """
        with _as_tool_error():
            server.log_query(query)
            wider = server.settings.widened(tokens=tokens)
            hits = await engine.search(query, None if wider else _HITS, tenant=_tenant(context), expand=wider)
        return SearchResult(
            results=[
                Found(id=hit.chunk.id, title=title_of(hit.chunk), url=server.url(engine, hit.chunk), text=hit.text)
                for hit in hits
            ]
        )

    @made.tool(annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))
    async def fetch(id: str) -> Fetched:
        """Read the document around a passage. id: as search gave it."""
        with _as_tool_error():
            hit = await engine.call(_around, engine, id)
        chunk = hit.chunk
        metadata = {"document_id": chunk.document_id, "source": chunk.source, **chunk.metadata}
        return Fetched(id=id, title=title_of(chunk), text=hit.text, url=server.url(engine, chunk), metadata=metadata)

    @made.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False))
    async def feedback(query: str, id: str, helpful: bool, context: Context[Any, Any]) -> FeedbackResult:
        """Say whether a passage answered a question. It counts in every search from the next one on."""
        with _as_tool_error():
            weight, tenant = 1.0 if helpful else -1.0, _tenant(context)
            (query,) = checked_lengths([query])
            key = await engine.call(engine.retriever.add_feedback, query, id, weight=weight, tenant=tenant)
        server.metrics.feedback.labels("added").inc()
        return FeedbackResult(key=key)

    for tool in made._tool_manager.list_tools():  # models read the descriptions: without this file's indentation
        tool.description = inspect.cleandoc(tool.description)
    return made


class _as_tool_error:  # noqa: N801
    """What the caller can mend is told to the model in its words."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            refused = refusal_of(error)
            if refused.status < 500 or refused.status == 503:
                raise ToolError(refused.message) from error


def _tenant(context: Context[Any, Any]) -> str | None:
    """Of the token that came with the request; None over stdio."""
    request = getattr(context.request_context, "request", None)
    caller = None if request is None else request.scope.get("state", {}).get("caller")
    return caller.tenant if isinstance(caller, Caller) else None


def _around(engine: Engine, id: str) -> Hit:
    """The passage with its document around it, as much as fits."""
    chunk = engine.retriever.snapshot().chunks.find([id]).get(id)
    if chunk is None:
        raise InvalidInput(f"There is no passage {id!r}. Take an id that search gave.")
    return engine.retriever.expand([Hit(chunk, 0.0)], _FETCHED)[0]
