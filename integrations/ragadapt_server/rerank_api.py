"""Re-ranking as Cohere, Jina and text-embeddings-inference have it."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Body, Request
from pydantic import Field

from ragadapt.text import encodable
from ragadapt_server.engine import Engine
from ragadapt_server.errors import Json, Refused
from ragadapt_server.openai_api import Foreign
from ragadapt_server.state import server_of

router = APIRouter()

_MOST_DOCUMENTS = 1000


class RerankDocument(Foreign):
    """A document as an object."""

    text: str


class RerankRequest(Foreign):
    """Cohere's and Jina's form. model: a retriever's name; None = the first."""

    query: str
    documents: list[str | RerankDocument]
    model: str | None = None
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False


class TextsRequest(Foreign):
    """The form of text-embeddings-inference. raw_scores: as the retriever has them, else from 0 to 1."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False


@router.post("/v1/rerank", tags=["Rerank"])
@router.post("/v2/rerank", tags=["Rerank"])
@router.post("/rerank", tags=["Rerank"])
async def rerank(
    request: Request, body: Annotated[RerankRequest | TextsRequest, Body(union_mode="left_to_right")]
) -> Json:
    """The documents in the order of how well they answer the query."""
    server = server_of(request)
    if isinstance(body, TextsRequest):
        scores, sure, order, _ = await _ranked(server.engine(None), body.query, body.texts)
        shown = scores if body.raw_scores else sure
        return Json(
            [
                {"index": at, "score": float(shown[at]), **({"text": body.texts[at]} if body.return_text else {})}
                for at in order
            ]
        )
    engine = server.model(body.model)[0] if body.model is not None else server.engine(None)
    texts = [one if isinstance(one, str) else one.text for one in body.documents]
    _, sure, order, tokens = await _ranked(engine, body.query, texts)
    results: list[dict[str, Any]] = [
        {
            "index": at,
            "relevance_score": float(sure[at]),
            **({"document": {"text": texts[at]}} if body.return_documents else {}),
        }
        for at in order[: body.top_n]
    ]
    return Json(
        {
            "id": uuid.uuid4().hex,
            "model": engine.name if body.model is None else body.model,
            "results": results,
            "usage": {"total_tokens": tokens},
            "meta": {"api_version": {"version": "2"}},  # without which Cohere's clients before 5 fail
        }
    )


async def _ranked(engine: Engine, query: str, texts: list[str]) -> tuple[Any, Any, list[int], int]:
    """((n,) scores, (n,) probabilities that a document answers the query, positions best first, tokens read). An empty
    document stays last."""
    if not texts:
        raise Refused(400, "There are no documents to rank: send at least one.")
    if len(texts) > _MOST_DOCUMENTS:
        raise Refused(400, f"There are {len(texts):,} documents; a request takes {_MOST_DOCUMENTS:,}.")
    scores, sure, tokens = await engine.score(query, [encodable(text) for text in texts])
    full = [bool(text.strip()) for text in texts]
    scores, sure = np.where(full, scores, min(0.0, float(scores.min()))), np.where(full, sure, 0.0)
    return scores, sure, np.argsort(-scores, kind="stable").tolist(), tokens
