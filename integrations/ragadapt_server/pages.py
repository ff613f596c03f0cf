"""The pages: to search and teach, to label, and the reference of the endpoints. They load nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request
from markupsafe import Markup
from starlette.responses import Response

from ragadapt_server.errors import Refused
from ragadapt_server.state import server_of

router = APIRouter(include_in_schema=False)

PROBES = ["GET", "HEAD"]
"""How monitors ask whether something is there."""

_TAGS = re.compile(r"<(script|style)>(.*?)</\1>", re.S)


@router.api_route("/", methods=PROBES)
async def search_page() -> Response:
    """The page to look, compare and teach."""
    return _page(_whole("search.html"))


@router.api_route("/label", methods=PROBES)
async def label_page() -> Response:
    """The page to label questions."""
    return _page(_whole("label.html"))


@router.api_route("/docs", methods=PROBES)
async def reference(request: Request) -> Response:
    """The endpoints, written from the same description as /openapi.json."""
    return _page(_reference(request.app.openapi()))


@router.get("/report/{name}")
async def fit_report(request: Request, name: str) -> Response:
    """The report of the fit; it carries a policy of its own."""
    engine = server_of(request).engine(name)
    page = engine.retriever.path / "report" / "report.html"
    try:
        text = await engine.call(page.read_text, encoding="utf-8")
    except OSError as error:
        raise Refused(404, "This retriever has no report.", "no_report") from error
    return Response(text, media_type="text/html", headers={"Referrer-Policy": "no-referrer"})


@lru_cache
def _read(name: str) -> str:
    return files("ragadapt_server").joinpath(name).read_text(encoding="utf-8")


@lru_cache
def _whole(name: str) -> str:
    """A page with what the pages share."""
    html = _read(name)
    for part in ("/* page.css */", "/* page.js */", "<!-- page.html -->"):
        html = html.replace(part, _read(part.split()[1]))
    return html


def _page(html: str) -> Response:
    """HTML that may run its own script and nothing else, whatever a document says."""
    allowed = {"script": "'none'", "style": "'none'"}
    for kind, text in _TAGS.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        allowed[kind] = f"'sha256-{digest}'"
    policy = (
        f"default-src 'none'; script-src {allowed['script']}; style-src {allowed['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    return Response(html, media_type="text/html", headers=headers)


def _reference(description: dict[str, Any]) -> str:
    schemas = description.get("components", {}).get("schemas", {})
    parts = []
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            names = [one["$ref"].rpartition("/")[2] for one in body.get("anyOf", [body]) if "$ref" in one]
            fields = Markup("").join(_fields(schemas[name]) for name in names)
            parts.append(
                Markup("<section><h2><b>{}</b> {}</h2><p>{}</p>{}</section>").format(
                    method.upper(), path, operation.get("description", ""), fields
                )
            )
    return _read("reference.html").replace("{{endpoints}}", str(Markup("").join(parts)))


def _fields(schema: dict[str, Any]) -> Markup:
    rows = Markup("").join(
        Markup("<tr><td><code>{}</code>{}<td>{}</tr>").format(
            name, "" if name in schema.get("required", ()) else Markup(" <i>optional</i>"), _type(field)
        )
        for name, field in schema.get("properties", {}).items()
    )
    return Markup("<p>{}</p><table>{}</table>").format(schema.get("description", ""), rows)


def _type(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"])
    if "enum" in field:
        return " or ".join(f'"{value}"' for value in field["enum"])
    if "$ref" in field:
        return str(field["$ref"].rpartition("/")[2])
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("type", "any"))
