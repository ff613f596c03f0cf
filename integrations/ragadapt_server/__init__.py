"""A fitted retriever over HTTP and MCP: embeddings, re-ranking, search, feedback, and a page to look at it.

`ragadapt serve` and `ragadapt mcp` run it; `make_app` gives the ASGI application for a server of your own. Needs the
extra `server`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ragadapt_server.app import make_app
    from ragadapt_server.mcp import make_mcp
    from ragadapt_server.settings import ServerSettings

__all__ = ["ServerSettings", "make_app", "make_mcp"]

_HOMES = {
    "ServerSettings": "ragadapt_server.settings",
    "make_app": "ragadapt_server.app",
    "make_mcp": "ragadapt_server.mcp",
}

if not TYPE_CHECKING:  # a type checker would take it for "any name exists"

    def __getattr__(name: str) -> object:
        """A public name, imported when it is first asked for (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module 'ragadapt_server' has no attribute {name!r}")
        from importlib import import_module
        from importlib.util import find_spec

        from ragadapt.errors import MissingExtra

        if not all(map(find_spec, ("fastapi", "uvicorn", "mcp", "prometheus_client"))):
            raise MissingExtra("The server", "server")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value  # the next look finds it without this function
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
