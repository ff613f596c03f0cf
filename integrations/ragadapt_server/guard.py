"""What stands before every request: who asks, from where, how much at once, for how long, and what is counted."""

from __future__ import annotations

import asyncio
import logging
import time
from urllib.parse import SplitResult, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ragadapt.checks import shown
from ragadapt_server.errors import Refused, error_response, refusal_of
from ragadapt_server.metrics import Metrics
from ragadapt_server.settings import LOOPBACK_HOSTS, ServerSettings
from ragadapt_server.tokens import Caller, Tokens

log = logging.getLogger(__name__)

_METHODS = {"GET", "HEAD", "POST", "OPTIONS", "DELETE"}
OPEN_PATHS = {"/", "/label", "/healthz", "/readyz", "/docs", "/openapi.json", "/favicon.ico"}
"""What needs no token: they hold nothing of the documents."""


class Guard:
    """The outermost layer: refuses what may not come in, and answers for what goes wrong further in."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, tokens: Tokens | None, metrics: Metrics) -> None:
        self.app, self.settings, self.tokens, self.metrics = app, settings, tokens, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
            await send(message)

        path = scope["path"]
        try:
            self._check(scope)
            async with asyncio.timeout(self.settings.timeout_seconds):
                await self.app(scope, self._bounded(scope, receive), counted)
        except Exception as error:
            refused = refusal_of(error)
            if refused.status >= 500 and not isinstance(error, TimeoutError):
                log.exception("%s %s failed", scope["method"], path)
            if status:  # the answer is under way: all that is left is to cut it off
                raise
            await error_response(path, refused)(scope, receive, counted)
        finally:
            # The route's own pattern: what somebody makes up must not become so many series.
            route = getattr(scope.get("route"), "path", None) or ("/mcp" if path.startswith("/mcp") else "other")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.metrics.requests.labels(route, method, str(status)).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - started)

    def _check(self, scope: Scope) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin, path = headers.get("host", ""), headers.get("origin"), scope["path"]
        if (encoding := headers.get("content-encoding", "").strip().lower()) not in ("", "identity"):
            raise Refused(415, f"Content-Encoding is {shown(encoding)}: send the body as it is.", "encoded_body")
        if (
            self.tokens is None
            and self.settings.is_local
            and "host" in headers  # HTTP/1.0 knows none, and every browser sends it
            and _split(f"//{host}").hostname not in (*LOOPBACK_HOSTS, self.settings.host)
        ):
            # A page elsewhere may point a name of its own at this machine; then its Host header gives it away.
            raise Refused(421, "This server answers to localhost alone.", "wrong_host")
        if (
            origin is not None
            and scope["method"] not in ("GET", "HEAD", "OPTIONS")
            and _split(origin).netloc != host
            and origin not in self.settings.cors
            and "*" not in self.settings.cors
        ):
            raise Refused(403, "Pages of other sites may not write here. Name theirs with --cors.", "wrong_origin")
        scope["state"] = {**scope.get("state", {}), "caller": self._caller(headers.get("authorization"), path, scope)}

    def _caller(self, authorization: str | None, path: str, scope: Scope) -> Caller:
        if self.tokens is None or path in OPEN_PATHS or scope["method"] == "OPTIONS":
            return Caller()
        status = 403 if path == "/retrieval" else 401  # as Dify has it
        kind, _, token = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise Refused(status, "Send a token: Authorization: Bearer TOKEN.", "bad_authorization")
        caller = self.tokens.caller(token.strip())
        if caller is None:
            raise Refused(status, "This token is not known here.", "unauthorised")
        return caller

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        limit, size = self.settings.max_body_bytes, 0
        too_large = Refused(413, f"The body has more than {limit:,} bytes, which is the most here.", "too_large")
        for name, value in scope["headers"]:
            if name.lower() == b"content-length" and value.isdigit() and int(value) > limit:
                raise too_large

        async def read() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                scope["ragadapt.refused"] = too_large
                raise too_large
            return message

        return read


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:  # such as half of an IPv6 address
        return urlsplit("")
