"""Errors as the clients of each interface read them. What went wrong inside stays in the log."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from ragadapt.errors import (
    IndexUnreachable,
    InvalidInput,
    RagadaptError,
    StoreLocked,
)


class Refused(Exception):
    """A request that gets no answer. status: HTTP. code: a word for programs."""

    def __init__(self, status: int, message: str, code: str = "invalid_request", retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.retry_after = status, message, code, retry_after


class Json(Response):
    """JSON in ASCII, so that no text of a document or a request can make a body that is not UTF-8."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def refusal_of(error: BaseException) -> Refused:
    """An error of ragadapt as a status. What the caller can't help says no more than that."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, InvalidInput):
        return Refused(400, str(error))
    if isinstance(error, StoreLocked | IndexUnreachable):
        return Refused(503, "The retriever is busy or its index cannot be reached. Try again.", "unavailable", 1)
    if isinstance(error, TimeoutError):
        return Refused(504, "The request took longer than the server allows.", "timeout")
    name = type(error).__name__ if isinstance(error, RagadaptError) else "error"
    return Refused(500, f"The server could not answer ({name}); its log says why.", "server_error")


DIFY_CODES = {"bad_authorization": 1001, "unauthorised": 1002, "unknown_retriever": 2001}


def error_response(path: str, error: Refused) -> Json:
    """The refusal in the form that the clients of this path read."""
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    body: dict[str, Any]
    if path == "/retrieval":
        body = {"error_code": DIFY_CODES.get(error.code, error.status), "error_msg": error.message}
    else:
        body = {"error": {"message": error.message, "type": kind, "param": None, "code": error.code}}
        if path.endswith("/rerank"):  # where Cohere's clients look
            body["message"] = error.message
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Json(body, error.status, headers)
