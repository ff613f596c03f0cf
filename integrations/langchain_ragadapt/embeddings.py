"""LoRAEmbeddings: an adapted (or any other) encoder as LangChain embeddings."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from langchain_core.embeddings import Embeddings
from langchain_core.runnables.config import run_in_executor
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from ragadapt.checks import checked_text

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder

log = logging.getLogger(__name__)


class LoRAEmbeddings(BaseModel, Embeddings):
    """Vectors of length 1 from a retriever's model: queries and passages each with their own prompt and tower.

    model: the folder of a retriever, a model's folder, a preset ("small", "offline" …) or a hub name. Opened at once;
    raises NotARetriever, ModelNotFound, InvalidInput (also for a prompt other than the one a saved model was fitted
    with), MissingExtra. Safe for several threads; the async twins work in a thread, so the event loop goes on.
    What a text has beyond the tokens that the model reads (`encoder.passage_room`) is in no vector: that is
    warned of once.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), populate_by_name=True)

    model_name: str = Field(alias="model")
    device: str = "auto"
    precision: str = "auto"
    query_prompt: str | None = None
    passage_prompt: str | None = None
    max_length: int | None = None

    _encoder: Any = PrivateAttr(default=None)
    _warned: bool = PrivateAttr(default=False)

    def __init__(self, *, encoder: Encoder | None = None, **values: Any) -> None:
        """encoder: one that is open already, e.g. that of a retriever; `model` is then only what it is called."""
        if encoder is not None and not {"model", "model_name"} & values.keys():
            values["model"] = encoder.spec.model
        for name in ("model", "model_name"):
            if isinstance(values.get(name), Path):
                values[name] = str(values[name])
        for name in ("device", "precision", "model", "model_name"):
            checked_text(name, values.get(name, ""))
        super().__init__(**values)
        if encoder is None:
            from ragadapt.encoder import open_encoder

            encoder = open_encoder(
                self.model_name,
                device=self.device,
                precision=self.precision,
                query_prompt=self.query_prompt,
                passage_prompt=self.passage_prompt,
                max_length=self.max_length,
            )
        self._encoder = encoder

    @classmethod
    def from_pretrained(cls, path: str | Path, **settings: Any) -> Self:
        """The embeddings of a retriever that `ragadapt fit` saved. settings: device, precision."""
        return cls(model=str(path), **settings)

    @property
    def encoder(self) -> Encoder:
        """The encoder itself."""
        encoder: Encoder = self._encoder
        return encoder

    @property
    def fingerprint(self) -> str:
        """Equal for embeddings whose vectors can be compared."""
        return self.encoder.fingerprint

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.encoder.dim

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text, encoded in batches; [] for none. Raises InvalidInput for what is no list of texts."""
        vectors: list[list[float]] = self.encoder.encode_passages(texts).tolist()
        # Of a batch the longest text is enough to look at, until one is too long.
        if not self._warned and texts and self.encoder.unread_ends([max(texts, key=len)]):
            self._warned = True
            log.warning(
                "%s: %s Cut the documents smaller, for instance to %d characters with "
                "RecursiveCharacterTextSplitter(chunk_size=…), or take a model that reads more. This is said once.",
                self.model_name, self.encoder.unread_ends(texts), 3 * self.encoder.passage_room,
            )  # fmt: skip
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The query's vector. Raises InvalidInput for what is no text."""
        text = checked_text("The query", text)
        vector: list[float] = self.encoder.encode_queries([text])[0].tolist()
        return vector

    def embed_queries(self, texts: list[str]) -> list[list[float]]:
        """One query vector per text, encoded in batches."""
        vectors: list[list[float]] = self.encoder.encode_queries(texts).tolist()
        return vectors

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """`embed_documents` in a thread."""
        return await run_in_executor(None, self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """`embed_query` in a thread."""
        return await run_in_executor(None, self.embed_query, text)

    async def aembed_queries(self, texts: list[str]) -> list[list[float]]:
        """`embed_queries` in a thread."""
        return await run_in_executor(None, self.embed_queries, texts)
