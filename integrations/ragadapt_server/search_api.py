"""ragadapt's own interface: search, feedback, and what is served."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ragadapt.values import hits_as_json
from ragadapt_server.before import is_trained
from ragadapt_server.engine import Engine, checked_lengths
from ragadapt_server.errors import Json, Refused
from ragadapt_server.openai_api import Finite
from ragadapt_server.state import caller_of, server_of, tenant_of

router = APIRouter(tags=["ragadapt"])


class Own(BaseModel):
    """A body of our own interface: a field that is not known fails. retriever: by name; None = the first."""

    model_config = ConfigDict(extra="forbid")

    retriever: str | None = None
    tenant: str | None = None


class SearchRequest(Own):
    """As `Retriever.search`. k: None = 5, and with expand as many as suit its budget. expand: None = as the server was
    told; tokens: what expanded hits hold together."""

    query: str
    k: int | None = Field(None, ge=1, le=1000)
    mode: Literal["hybrid", "dense", "lexical"] = "hybrid"
    filter: dict[str, Any] | None = None
    min_confidence: Finite | None = Field(None, ge=0, le=1)
    lam: Finite | None = Field(None, ge=0, le=1)
    expand: Literal["neighbours", "section", "document", "none"] | None = None
    tokens: int | None = Field(None, ge=1, le=100_000)
    fold: Literal["same", "near", "none"] = "same"
    max_per_document: int | None = Field(None, ge=1)


class BaseRequest(BaseModel):
    """A question for the base model."""

    model_config = ConfigDict(extra="forbid")

    retriever: str | None = None
    query: str
    k: int = Field(5, ge=1, le=50)


class FeedbackRequest(Own):
    """As `Retriever.add_feedback`; helpful: true and false for a weight of 1 and -1."""

    query: str
    chunk_id: str | None = None
    document_id: str | None = None
    source: str | None = None
    quote: str | None = None
    weight: Finite | None = None
    helpful: bool | None = None
    user: str = ""
    at: Finite | None = None
    key: str | None = None


class UndoRequest(Own):
    """As `Retriever.withdraw_feedback`: all feedback that fits what is given."""

    key: str | None = None
    query: str | None = None
    chunk_id: str | None = None
    user: str | None = None


@router.post("/search")
async def search(request: Request, body: SearchRequest) -> Json:
    """The best passages, best first, with every field that they have. parts: what each side says of it, in standard
    deviations."""
    server = server_of(request)
    engine = server.engine(body.retriever)
    tenant = tenant_of(caller_of(request), body.tenant)
    server.log_query(body.query)
    hits = await engine.search(
        body.query, body.k, mode=body.mode, filter=body.filter, lam=body.lam, tenant=tenant, fold=body.fold,
        max_per_document=body.max_per_document, expand=server.settings.widened(body.expand, body.tokens),
        min_confidence=body.min_confidence,
    )  # fmt: skip
    listed = hits_as_json(hits)
    for row, hit in zip(listed, hits, strict=True):
        row["url"] = server.url(engine, hit.chunk)
    manifest = engine.retriever.manifest
    return Json(
        {
            "retriever": engine.name,
            "build": manifest.build_id,
            "fingerprint": manifest.fingerprint,
            "mode": body.mode,
            "query": body.query,
            "hits": listed,
        }
    )


@router.post("/search/base")
async def search_base(request: Request, body: BaseRequest) -> Json:
    """What the base model, before training, finds in the same mix and without feedback. whole: whether it looked at
    every passage; else, as its vectors are not kept, at those that the fitted model or BM25 ranks high."""
    server = server_of(request)
    engine = server.engine(body.retriever)
    (query,) = checked_lengths([body.query])
    found = await engine.call(server.bases[engine.name].search, query, body.k)
    listed = hits_as_json(found.hits)
    for row, hit in zip(listed, found.hits, strict=True):
        row["url"] = server.url(engine, hit.chunk)
    return Json({"retriever": engine.name, "query": query, "whole": found.whole, "hits": listed})


@router.post("/feedback")
async def feedback(request: Request, body: FeedbackRequest) -> Json:
    """Take feedback in. It is on disk when this answers, and counts in every search from then on."""
    server = server_of(request)
    engine = server.engine(body.retriever)
    if body.weight is not None and body.helpful is not None:
        raise Refused(400, "Give weight or helpful, not both.")
    (query,) = checked_lengths([body.query])
    weight = body.weight if body.weight is not None else -1.0 if body.helpful is False else 1.0
    given = body.model_dump(include={"chunk_id", "document_id", "source", "quote", "user", "at", "key"})
    tenant = tenant_of(caller_of(request), body.tenant)
    key = await engine.call(engine.retriever.add_feedback, query, weight=weight, tenant=tenant, **given)
    server.metrics.feedback.labels("added").inc()
    return Json({"key": key})


@router.post("/feedback/undo")
async def undo(request: Request, body: UndoRequest) -> Json:
    """Take feedback back: search is as if it had never been. A token of one tenant reaches that tenant's alone."""
    server = server_of(request)
    engine = server.engine(body.retriever)
    tenant = tenant_of(caller_of(request), body.tenant)
    given = body.model_dump(include={"key", "query", "chunk_id", "user"})
    if all(value is None for value in given.values()):
        raise Refused(400, "Say which feedback to take back: key, query, chunk_id or user.")
    count = await engine.call(engine.retriever.withdraw_feedback, tenant=tenant, **given)
    server.metrics.feedback.labels("withdrawn").inc(count)
    return Json({"withdrawn": count})


@router.get("/status")
async def status(request: Request) -> Json:
    """What is served: of each retriever its build, model, verdict, passages and feedback, and whether it is
    labelled."""
    server = server_of(request)
    rows = [await engine.call(_status, engine) for engine in server.engines.values()]
    return Json({"retrievers": [{**row, "labelled": row["name"] in server.labelling} for row in rows]})


def _status(engine: Engine) -> dict[str, Any]:
    from ragadapt.errors import InvalidInput
    from ragadapt.report import read_report

    now = engine.retriever.snapshot()
    try:
        verdict = read_report(now.path / "report").verdict
    except InvalidInput:  # a report is not needed to search
        verdict = None
    fusion = now.searcher.fusion
    return {
        "name": engine.name,
        "build": now.manifest.build_id,
        "fingerprint": now.manifest.fingerprint,
        "updated": now.manifest.updated,
        "trained": is_trained(now.encoder.spec),
        "model": Path(now.encoder.spec.model).name,  # where a local one lies is nobody's business
        "verdict": None if verdict is None else verdict.outcome,
        "passages": len(now.chunks),
        "feedback": now.feedback().status().feedback if now.has_feedback else 0,
        "fusion": {"method": fusion.method, "weight": fusion.weight},
        "confidence": now.searcher.confidence.reason,
    }
