"""One HTTP exchange with an endpoint, within bounds: of time as a whole, of size as unpacked, and with one host.

httpx counts its time-out anew with every byte that comes, reads answers of any size and unpacks them, and can follow
to any host; a server that is broken or hostile must cost a passage, not the run.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
import zlib
from typing import Any

import httpx

MAX_ANSWER_BYTES = 4_000_000  # a thousand times a usual answer, and any list of models
REFUSED = "ragadapt_refused"
"""In `response.extensions`: why the answer was not taken; its body is empty then."""
_MAX_REDIRECTS = 5


class BoundedTransport(httpx.BaseTransport):
    """A transport for httpx.Client. The read time-out of a request is the time for all of it, connecting included.

    Raises httpx.ReadTimeout when that has passed. An answer above `max_bytes`, or packed in a way that was not asked
    for, comes back without its body (see REFUSED), as does a redirect to another host, which is not followed.
    """

    def __init__(self, connections: int, max_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._max_bytes = max_bytes
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._client = httpx.AsyncClient(follow_redirects=False, limits=limits, timeout=None)
        # Only a task can be cancelled in the middle of waiting for a byte; a loop of our own, since a notebook has one.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True).start()
        self._end = weakref.finalize(self, _end, self._loop, self._client)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not self._end.alive:
            raise httpx.ConnectError("the run is over", request=request)
        return asyncio.run_coroutine_threadsafe(self._exchange(request), self._loop).result()

    def close(self) -> None:
        """Cut off what is under way; every later request fails at once."""
        self._end()

    async def _exchange(self, request: httpx.Request) -> httpx.Response:
        seconds: float | None = request.extensions.get("timeout", {}).get("read")
        try:
            async with asyncio.timeout(seconds):
                return await self._within_host(request)
        except TimeoutError:
            raise httpx.ReadTimeout(f"no whole answer within {seconds:g} seconds", request=request) from None

    async def _within_host(self, request: httpx.Request) -> httpx.Response:
        headers = httpx.Headers(request.headers)
        headers["Accept-Encoding"] = "gzip, deflate"
        sent = httpx.Request(request.method, request.url, headers=headers, content=request.read())
        for _ in range(_MAX_REDIRECTS):
            response = await self._client.send(sent, stream=True)
            try:
                following = response.next_request
                if following is None:
                    return await self._taken(response)
                if not _same_host(request.url, following.url):
                    return _without_body(response, f"it sends requests on to another host, {following.url.host}")
            finally:
                await response.aclose()
            sent = following
        return _without_body(response, "it redirects for ever")

    async def _taken(self, response: httpx.Response) -> httpx.Response:
        """The response with all of its body, unpacked."""
        packed, limit = bytearray(), self._max_bytes
        async for piece in response.aiter_raw():
            packed += piece
            if len(packed) > limit:
                return _without_body(response, f"its answer is longer than {limit / 1e6:g} MB")
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        try:
            body = _unpacked(bytes(packed), encoding, limit)
        except (zlib.error, ValueError) as error:
            return _without_body(response, f"its answer cannot be unpacked ({error})")
        if len(body) > limit:
            return _without_body(response, f"its answer unpacks to more than {limit / 1e6:g} MB")
        return httpx.Response(response.status_code, headers=_plain_headers(response), content=body)


def _same_host(first: httpx.URL, second: httpx.URL) -> bool:
    """Whether the second address belongs to the same server; from http to https is a step up."""
    if first.host != second.host:
        return False
    upgraded = (first.scheme, second.scheme) == ("http", "https") and first.port is second.port is None
    return upgraded or (first.scheme, first.port) == (second.scheme, second.port)


def _unpacked(packed: bytes, encoding: str, limit: int) -> bytes:
    """At most one byte more than the limit."""
    if encoding in ("", "identity"):
        return packed
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(packed, limit + 1)
    if encoding != "deflate":
        raise ValueError(f"encoding {encoding[:40]!r}")
    try:
        return zlib.decompressobj().decompress(packed, limit + 1)
    except zlib.error:  # many servers leave the wrapper out
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, limit + 1)


def _without_body(response: httpx.Response, reason: str) -> httpx.Response:
    return httpx.Response(
        response.status_code, headers=_plain_headers(response), content=b"", extensions={REFUSED: reason}
    )


def _plain_headers(response: httpx.Response) -> list[tuple[str, str]]:
    framing = ("content-encoding", "content-length", "transfer-encoding")
    return [(name, value) for name, value in response.headers.multi_items() if name.lower() not in framing]


def _end(loop: asyncio.AbstractEventLoop, client: Any) -> None:
    async def stop() -> None:
        others = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await client.aclose()
        loop.stop()

    if loop.is_running():
        asyncio.run_coroutine_threadsafe(stop(), loop)
