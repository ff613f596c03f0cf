"""OpenAI's interfaces: embeddings, the list of models, and the search of a vector store."""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ragadapt.errors import InvalidInput
from ragadapt.text import encodable
from ragadapt.values import Hit
from ragadapt_server.engine import Task
from ragadapt_server.errors import Json, Refused
from ragadapt_server.filters import openai_filter
from ragadapt_server.relevance import confidence
from ragadapt_server.state import SIDES, caller_of, server_of, tenant_of

router = APIRouter()

_MOST_INPUTS = 2048  # as OpenAI
_INPUT_TYPES: dict[str, Task] = {
    "search_query": "query",
    "query": "query",
    "search_document": "passage",
    "document": "passage",
    "passage": "passage",
}
Finite = Annotated[float, Field(allow_inf_nan=False)]
InputType = Literal["search_query", "query", "search_document", "document", "passage"]


class Foreign(BaseModel):
    """A body of another program's interface: what it sends besides is passed over, and null is a field left out, as
    many clients write what nobody set."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, body: Any) -> Any:
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body


class EmbeddingsRequest(Foreign):
    """input: a text, texts, or token ids of this model's own tokenizer. input_type: the side, where the model's name
    does not say it."""

    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    input_type: InputType | None = None


@router.post("/v1/embeddings", tags=["OpenAI"])
async def embeddings(request: Request, body: EmbeddingsRequest) -> Json:
    """Vectors of texts. A name that ends in -query or -document says which side of the model is meant; without it and
    without input_type the texts are documents."""
    server = server_of(request)
    engine, task = server.model(body.model)
    if body.input_type is not None:
        wanted = _INPUT_TYPES[body.input_type]
        if task is not None and task != wanted:
            raise Refused(400, f"model = {body.model!r}, but input_type = {body.input_type!r}: they say two sides.")
        task = wanted
    given: Any = [body.input] if isinstance(body.input, str) else body.input
    if given and isinstance(given[0], int):
        given = [given]
    if not given:
        raise Refused(400, "input is empty: send at least one text.")
    if len(given) > _MOST_INPUTS:
        raise Refused(400, f"input has {len(given):,} texts; a request takes {_MOST_INPUTS:,}.")
    texts = await engine.call(engine.retriever.encoder.decode, given) if isinstance(given[0], list) else given
    if not all(text.strip() for text in texts):
        raise Refused(400, "input holds an empty text: every text needs at least one word.")
    encoded = await engine.encode([encodable(text) for text in texts], task or "passage")
    vectors = encoded.vectors
    if body.dimensions is not None and body.dimensions != vectors.shape[1]:
        if body.dimensions > vectors.shape[1]:
            raise InvalidInput(
                f"dimensions = {body.dimensions}: the vectors of {body.model!r} have {vectors.shape[1]}."
            )
        vectors = vectors[:, : body.dimensions]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    data = [
        {
            "object": "embedding",
            "index": at,
            "embedding": _as_text(row) if body.encoding_format == "base64" else row.tolist(),
        }
        for at, row in enumerate(vectors)
    ]
    return Json(
        {
            "object": "list",
            "data": data,
            "model": body.model,
            "usage": {"prompt_tokens": encoded.tokens, "total_tokens": encoded.tokens},
        },
        headers={"X-Ragadapt-Fingerprint": encoded.snapshot.encoder.fingerprint},
    )


def _as_text(row: Any) -> str:
    return base64.b64encode(np.asarray(row, "<f4").tobytes()).decode("ascii")


@router.get("/v1/models", tags=["OpenAI"])
async def models(request: Request) -> Json:
    """The names that a request can give: of each retriever, and of the two sides of its model."""
    names = [one for name in server_of(request).engines for one in (name, *(f"{name}{end}" for end in SIDES))]
    return Json({"object": "list", "data": [_model(name) for name in names]})


@router.get("/v1/models/{name}", tags=["OpenAI"])
async def model(request: Request, name: str) -> Json:
    """One of these names, for clients that ask whether it is there."""
    server_of(request).model(name)
    return Json(_model(name))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "ragadapt"}


class RankingOptions(Foreign):
    """score_threshold: from 0 to 1."""

    score_threshold: Finite | None = None


class VectorStoreSearch(Foreign):
    """A search as the OpenAI client sends it. Of several queries each is searched for, and the best of all count."""

    query: str | list[str]
    max_num_results: int = Field(10, ge=1, le=50)
    filters: dict[str, Any] | None = None
    ranking_options: RankingOptions | None = None


@router.post("/v1/vector_stores/{id}/search", tags=["OpenAI"])
async def vector_store_search(request: Request, id: str, body: VectorStoreSearch) -> Json:
    """A page of hits, best first. id: the retriever's name."""
    server = server_of(request)
    engine = server.engine(id)
    queries = [encodable(query) for query in ([body.query] if isinstance(body.query, str) else body.query)]
    if not 1 <= len(queries) <= 16:
        raise Refused(400, f"query has {len(queries)} texts; it takes from 1 to 16.")
    filter = None if body.filters is None else openai_filter(body.filters)
    tenant = tenant_of(caller_of(request), None)
    best: dict[str, Any] = {}
    for query in queries:
        server.log_query(query)
        for hit in await engine.search(query, body.max_num_results, filter=filter, tenant=tenant):
            if hit.chunk.id not in best or _rank(hit) > _rank(best[hit.chunk.id]):
                best[hit.chunk.id] = hit
    least = body.ranking_options.score_threshold if body.ranking_options else None
    hits = sorted(best.values(), key=_rank, reverse=True)[: body.max_num_results]
    hits = [hit for hit in hits if least is None or confidence(hit) >= least]
    if (wider := server.settings.widened()) is not None:
        hits = await engine.call(engine.retriever.expand, hits, wider, filter=filter)
    data = [
        {
            "file_id": hit.chunk.document_id,
            "filename": hit.chunk.source or hit.chunk.document_id,
            "score": confidence(hit),
            "attributes": _attributes(hit.chunk.metadata),
            "content": [{"type": "text", "text": hit.text}],
        }
        for hit in hits
    ]
    return Json(
        {
            "object": "vector_store.search_results.page",
            "search_query": queries,
            "data": data,
            "has_more": False,
            "next_page": None,
        }
    )


def _rank(hit: Hit) -> tuple[float, float]:
    """Larger is better, also between hits of several queries, whose scores cannot be compared."""
    return confidence(hit), hit.score


def _attributes(metadata: Any) -> dict[str, Any]:
    """Metadata as OpenAI has them: flat, of texts, numbers and booleans."""
    flat = {name: value for name, value in metadata.items() if value is not None}
    return {
        name: value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)
        for name, value in flat.items()
    }
