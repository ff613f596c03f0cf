"""What all endpoints share: the retrievers by name, and the log of queries."""

from __future__ import annotations

import json
import os
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request

from ragadapt.checks import shown
from ragadapt.retriever import Retriever
from ragadapt.values import Chunk
from ragadapt_server.before import Before
from ragadapt_server.engine import Engine, Task
from ragadapt_server.errors import Refused
from ragadapt_server.labelling import Labelling
from ragadapt_server.metrics import Metrics
from ragadapt_server.settings import ServerSettings
from ragadapt_server.tokens import Caller

SIDES: dict[str, Task] = {"-query": "query", "-document": "passage"}
"""How the name of a model ends that stands for one side of it."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """The engines of the retrievers, in the order in which they were named. labelling: of those that are labelled.
    bases: their searches before the training."""

    settings: ServerSettings
    engines: dict[str, Engine]
    metrics: Metrics
    labelling: dict[str, Labelling] = field(default_factory=dict)
    bases: dict[str, Before] = field(default_factory=dict)

    @classmethod
    def open(cls, settings: ServerSettings) -> ServerState:
        """Open the retrievers. Raises as `Retriever.open` and `Labelling`."""
        metrics = Metrics()
        engines = {
            name: Engine(
                name,
                Retriever.open(
                    folder,
                    device=settings.device,
                    precision=settings.precision,
                    tenant_adapters=settings.tenant_adapters,
                ),
                metrics,
                settings.max_waiting,
            )
            for name, folder in settings.retrievers
        }
        labelling = {
            name: Labelling(engines[name].retriever, file, settings.questions, settings.generator, settings.log_queries)
            for name, file in settings.labels
        }
        bases = {
            name: Before(engine.retriever, settings.device, settings.precision) for name, engine in engines.items()
        }
        return cls(settings, engines, metrics, labelling, bases)

    def engine(self, name: str | None) -> Engine:
        """The retriever of this name; the first where none is named. Refused for one that is not there."""
        if name is None:
            return next(iter(self.engines.values()))
        if name not in self.engines:
            known = ", ".join(self.engines)
            raise Refused(404, f"There is no retriever {shown(name)}; there is: {known}.", "unknown_retriever")
        return self.engines[name]

    def model(self, name: str) -> tuple[Engine, Task | None]:
        """The retriever whose model is meant, and the side where the name says which."""
        for end, task in SIDES.items():
            if name.removesuffix(end) in self.engines and name.endswith(end):
                return self.engines[name.removesuffix(end)], task
        if name not in self.engines:
            known = ", ".join(one for each in self.engines for one in (each, *(f"{each}{end}" for end in SIDES)))
            raise Refused(404, f"There is no model {shown(name)}; there is: {known}.", "model_not_found")
        return self.engines[name], None

    def log_query(self, query: str) -> None:
        """Keep the query, where that was asked for: a line as `fit --queries` reads it."""
        if self.settings.log_queries is None:
            return
        line = json.dumps({"_id": uuid.uuid4().hex[:16], "text": query, "at": int(time.time())}) + "\n"
        # One write of a short line to the end of a file is whole, whoever else writes there.
        file = os.open(self.settings.log_queries, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(file, line.encode("ascii"))
        finally:
            os.close(file)

    def url(self, engine: Engine, chunk: Chunk) -> str:
        """Where the passage can be looked at."""
        from urllib.parse import quote

        fields = {
            "id": chunk.id,
            "source": chunk.source or chunk.document_id,
            "document_id": chunk.document_id,
            "heading": chunk.heading_path[-1] if chunk.heading_path else "",
        }
        template = self.settings.url_template or f"ragadapt://{quote(engine.name)}/{{id}}"
        return template.format(**{name: quote(value, safe="/") for name, value in fields.items()})


def server_of(request: Request) -> ServerState:
    """The state of the application that answers this request."""
    state: ServerState = request.app.state.server
    return state


def caller_of(request: Request) -> Caller:
    """Who asks."""
    caller: Caller = request.state.caller
    return caller


def tenant_of(caller: Caller, given: str | None) -> str | None:
    """Whose feedback counts: the token's tenant where it has one; a body may only repeat it."""
    if caller.tenant is None:
        return given
    if given is not None and given != caller.tenant:
        raise Refused(403, "This token belongs to another tenant.", "wrong_tenant")
    return caller.tenant


def title_of(chunk: Chunk) -> str:
    """The passage's headings, else where it stands."""
    return " > ".join(part for part in chunk.heading_path if part) or Path(chunk.source or chunk.document_id).name
