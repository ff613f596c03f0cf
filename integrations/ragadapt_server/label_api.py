"""Labelling: questions to judge, and what people say about them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from ragadapt.checks import checked_queries
from ragadapt.queries import JudgedQuestion
from ragadapt.snapshot import Snapshot
from ragadapt.text import encodable
from ragadapt.values import Chunk, Hit
from ragadapt_server.before import Before
from ragadapt_server.engine import Engine
from ragadapt_server.errors import Json, Refused
from ragadapt_server.labelling import MOST_CHARACTERS, SIDE_DEPTH, Labelling, Origin, pool, quotes_of
from ragadapt_server.state import caller_of, server_of

router = APIRouter(tags=["Labelling"], prefix="/label")


class LabelRequest(BaseModel):
    """retriever: by name; None = the first."""

    model_config = ConfigDict(extra="forbid")

    retriever: str | None = None


class NextRequest(LabelRequest):
    """passage: one to type a question for, whatever else there is."""

    passage: bool = False


class QuestionRequest(LabelRequest):
    """A question that somebody types, or comes back to. about: a passage to show with the candidates."""

    question: str = Field(max_length=MOST_CHARACTERS)
    origin: Origin = "typed"
    about: str | None = None


class JudgeRequest(LabelRequest):
    """relevant: whether the passage answers; None takes back what was said."""

    question: str = Field(max_length=MOST_CHARACTERS)
    chunk_id: str
    relevant: bool | None
    origin: Origin = "typed"


class SkipRequest(LabelRequest):
    """skipped: false takes it back."""

    question: str = Field(max_length=MOST_CHARACTERS)
    skipped: bool = True
    origin: Origin = "typed"


@router.get("/progress")
async def progress(request: Request, retriever: str | None = None) -> Json:
    """How many questions are labelled, and after how many a trained model can be judged."""
    engine, labelling = _labelling(request, retriever)
    return Json({"retriever": engine.name, **await engine.call(labelling.progress)})


@router.post("/next")
async def next_question(request: Request, body: NextRequest) -> Json:
    """The next question with passages to judge, or a passage that wants a question; neither where nothing is left."""
    engine, labelling = _labelling(request, body.retriever)
    found = await engine.call(labelling.next, body.passage)
    base = server_of(request).bases[engine.name]
    answer: dict[str, Any] = {"question": None, "passage": None, "candidates": []}
    if found is not None and found.passage is not None:
        answer |= {"passage": _shown(found.passage), "found": found.found}
    elif found is not None and found.question is not None:
        answer |= await _asked(engine, base, labelling, found.question, found.origin) | {"times": found.times}
    return Json(answer | {"progress": await engine.call(labelling.progress)})


@router.post("/question")
async def question(request: Request, body: QuestionRequest) -> Json:
    """The passages to judge for one's own question, with what was said of them before. Nothing is written."""
    engine, labelling = _labelling(request, body.retriever)
    base = server_of(request).bases[engine.name]
    answer = await _asked(engine, base, labelling, body.question, body.origin, body.about)
    return Json({"passage": None, **answer, "times": 1, "progress": await engine.call(labelling.progress)})


@router.post("/judge")
async def judge(request: Request, body: JudgeRequest) -> Json:
    """Say whether a passage answers. It is on disk when this answers."""
    engine, labelling = _labelling(request, body.retriever)
    text = _checked(body.question)
    await engine.call(labelling.judge, text, encodable(body.chunk_id), body.relevant, body.origin)
    return Json({"progress": await engine.call(labelling.progress)})


@router.post("/skip")
async def skip(request: Request, body: SkipRequest) -> Json:
    """Put a question aside. It is on disk when this answers."""
    engine, labelling = _labelling(request, body.retriever)
    text = _checked(body.question)
    await engine.call(labelling.file.skip, text, body.skipped, body.origin)
    return Json({"progress": await engine.call(labelling.progress)})


def _labelling(request: Request, name: str | None) -> tuple[Engine, Labelling]:
    server = server_of(request)
    engine = server.engine(name)
    if caller_of(request).tenant is not None:  # the labels are for all, and so is what was asked
        raise Refused(403, "A token of one tenant cannot label: labels are for all.", "wrong_tenant")
    labelling = server.labelling.get(engine.name)
    if labelling is None:
        message = (
            f"Nobody labels {engine.name!r} here. Start with `ragadapt label FOLDER`, or `ragadapt serve FOLDER "
            "--labels questions.jsonl`."
        )
        raise Refused(404, message, "no_labelling")
    return engine, labelling


def _checked(question: str) -> str:
    (text,) = checked_queries([question])
    if "\0" in text or not any(map(str.isalnum, text)):  # as `fit --queries` has it
        raise Refused(400, "question has no word in it.")
    return text.strip()


async def _asked(
    engine: Engine, base: Before, labelling: Labelling, text: str, origin: Origin, about: str | None = None
) -> dict[str, Any]:
    """A question with what each side finds by itself, without feedback."""
    text = _checked(text)
    sides = await asyncio.gather(
        engine.search(text, SIDE_DEPTH, mode="dense", lam=1),
        engine.search(text, SIDE_DEPTH, mode="lexical", lam=1),
        engine.call(_by_base, base, text),
    )
    # Which side begins follows from the question, so that neither is always read first.
    chunks = pool(*(sides if len(text) % 2 else reversed(sides)))
    return {
        "question": text,
        "origin": origin,
        **await engine.call(_candidates, engine.retriever.snapshot(), labelling, text, chunks, about),
    }


def _by_base(base: Before, text: str) -> list[Hit]:
    """What the model before its training finds: labels that judge a training must not be of its own choice alone."""
    try:
        return base.search(text, SIDE_DEPTH, "dense", partly=False).hits
    except Refused:  # nothing was trained, or the base is not here
        return []


def _candidates(
    now: Snapshot, labelling: Labelling, text: str, chunks: list[Chunk], about: str | None
) -> dict[str, Any]:
    if about is not None:
        own = now.chunks.find([encodable(about)])
        chunks = [*own.values(), *(chunk for chunk in chunks if chunk.id not in own)]
    said = labelling.file.questions().get(text) or JudgedQuestion(text)
    return {
        "skipped": said.skipped,
        "candidates": [{**_shown(chunk), "relevant": said.says(quotes_of(now, chunk))} for chunk in chunks],
    }


def _shown(chunk: Chunk) -> dict[str, Any]:
    return {
        "id": chunk.id,
        "document_id": chunk.document_id,
        "source": chunk.source,
        "heading_path": list(chunk.heading_path),
        "text": chunk.text,
        "metadata": dict(chunk.metadata),
    }
