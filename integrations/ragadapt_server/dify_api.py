"""Dify's external knowledge."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from ragadapt_server.errors import Json
from ragadapt_server.filters import dify_filter
from ragadapt_server.openai_api import Finite, Foreign
from ragadapt_server.relevance import confidence
from ragadapt_server.state import caller_of, server_of, tenant_of, title_of

router = APIRouter()


class RetrievalSetting(Foreign):
    """How many records, and from which score (0…1) on."""

    top_k: int = Field(5, ge=1, le=200)
    score_threshold: Finite = 0.0


class RetrievalRequest(Foreign):
    """What Dify asks. knowledge_id: the retriever's name."""

    knowledge_id: str
    query: str
    retrieval_setting: RetrievalSetting = Field(default_factory=RetrievalSetting)
    metadata_condition: dict[str, Any] | None = None


@router.post("/retrieval", tags=["Dify"])
async def retrieval(request: Request, body: RetrievalRequest) -> Json:
    """The best passages as records, best first, with scores from 0 to 1. No record where neither a retriever nor a
    question is named: so Dify asks whether the address and the token are right, and takes 404 for a wrong address."""
    if not body.knowledge_id and not body.query:
        return Json({"records": []})
    server = server_of(request)
    engine = server.engine(body.knowledge_id)

    def values(name: str) -> Iterable[Any]:
        known: dict[str, None] = {}
        for _, fields in engine.retriever.snapshot().chunks.shown():
            value = fields.get(name)
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, str):
                    known[one] = None
        return known

    filter = None
    if body.metadata_condition is not None:
        filter = await engine.call(dify_filter, body.metadata_condition, values)
    server.log_query(body.query)
    setting = body.retrieval_setting
    tenant, wider = tenant_of(caller_of(request), None), server.settings.widened()
    least = min(max(setting.score_threshold, 0.0), 1.0)
    hits = await engine.search(
        body.query, setting.top_k, filter=filter, tenant=tenant, expand=wider, min_confidence=least
    )
    records = []
    for hit in hits:
        chunk = hit.chunk
        metadata = {
            "id": chunk.id,
            "document_id": chunk.document_id,
            "source": chunk.source,
            **{name: value for name, value in chunk.metadata.items() if value is not None},
        }
        records.append({"content": hit.text, "score": confidence(hit), "title": title_of(chunk), "metadata": metadata})
    return Json({"records": records})
