"""MCP: search, fetch and feedback as tools, over stdio and over HTTP."""

from __future__ import annotations

from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel

from ragadapt.errors import InvalidInput
from ragadapt.values import Chunk
from ragadapt.version import __version__
from ragadapt_server.engine import Engine
from ragadapt_server.errors import refusal_of
from ragadapt_server.state import ServerState, title_of
from ragadapt_server.tokens import Caller

_HITS = 8
_FETCHED_CHARACTERS = 20_000  # of the document around a passage


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
    async def search(query: str, context: Context[Any, Any]) -> SearchResult:
        """Find the passages that answer a question, best first. Ask in whole sentences or in keywords."""
        with _as_tool_error():
            server.log_query(query)
            hits = await engine.search(query, _HITS, tenant=_tenant(context))
        return SearchResult(
            results=[
                Found(
                    id=hit.chunk.id, title=title_of(hit.chunk), url=server.url(engine, hit.chunk), text=hit.chunk.text
                )
                for hit in hits
            ]
        )

    @made.tool(annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))
    async def fetch(id: str) -> Fetched:
        """Read the document around a passage. id: as search gave it."""
        with _as_tool_error():
            chunk, around = await engine.call(_around, engine, id)
        metadata = {"document_id": chunk.document_id, "source": chunk.source, **chunk.metadata}
        text = "\n\n".join(one.text for one in around)
        return Fetched(id=id, title=title_of(chunk), text=text, url=server.url(engine, chunk), metadata=metadata)

    @made.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False))
    async def feedback(query: str, id: str, helpful: bool, context: Context[Any, Any]) -> FeedbackResult:
        """Say whether a passage answered a question. It counts in every search from the next one on."""
        with _as_tool_error():
            weight, tenant = 1.0 if helpful else -1.0, _tenant(context)
            key = await engine.call(engine.retriever.add_feedback, query, id, weight=weight, tenant=tenant)
        server.metrics.feedback.labels("added").inc()
        return FeedbackResult(key=key)

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


def _around(engine: Engine, id: str) -> tuple[Chunk, list[Chunk]]:
    """(the passage, its document's passages around it in their order, as many as fit)."""
    chunks = engine.retriever.snapshot().chunks
    chunk = chunks.find([id]).get(id)
    if chunk is None:
        raise InvalidInput(f"There is no passage {id!r}. Take an id that search gave.")
    all = chunks.of_document(chunk.document_id)
    at = next(number for number, one in enumerate(all) if one.id == id)
    first = last = at
    size = len(chunk.text)
    while True:
        before = first > 0 and size + len(all[first - 1].text) <= _FETCHED_CHARACTERS
        if before:
            first -= 1
            size += len(all[first].text)
        after = last + 1 < len(all) and size + len(all[last + 1].text) <= _FETCHED_CHARACTERS
        if after:
            last += 1
            size += len(all[last].text)
        if not before and not after:
            return chunk, all[first : last + 1]
