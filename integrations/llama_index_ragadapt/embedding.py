"""LoRAEmbedding: an adapted (or any other) encoder as a LlamaIndex embedding."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr

from ragadapt.checks import checked_text
from ragadapt.errors import FingerprintMismatch, InvalidInput

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder

log = logging.getLogger(__name__)


class LoRAEmbedding(BaseEmbedding):
    """Vectors of length 1 from a retriever's model: queries and texts each with their own prompt and tower.

    model_name: the folder of a retriever, a model's folder, a preset ("small", "offline" …) or a hub name; opened at
    once. What a text has beyond the tokens that the model reads (`encoder.passage_room`) is in no vector: that is
    warned of once. revision is the encoder's fingerprint: ingestion caches are keyed by it, so vectors of an earlier
    adapter are never taken for new ones. Safe for several threads; the async twins work in a thread, so the event loop
    goes on.

    Raises NotARetriever, ModelNotFound, InvalidInput (also for a prompt other than the one a saved model was fitted
    with, and for an embeddings_cache), FingerprintMismatch where `revision` names another encoder, MissingExtra.
    """

    revision: str = Field(default="", description="Fingerprint of the encoder; filled in.")
    device: str = "auto"
    precision: str = "auto"
    query_prompt: str | None = None
    passage_prompt: str | None = None
    max_length: int | None = None

    _encoder: Any = PrivateAttr(default=None)
    _warned: bool = PrivateAttr(default=False)

    def __init__(self, model_name: str | Path = "", *, encoder: Encoder | None = None, **values: Any) -> None:
        """encoder: one that is open already, e.g. that of a retriever; model_name is then only what it is called."""
        if values.get("embeddings_cache") is not None:
            raise InvalidInput(
                "embeddings_cache is keyed by the text alone: a query would be given a passage's vector, and a new "
                "adapter an old one's. Leave it out; an IngestionPipeline's own cache is keyed by model and revision."
            )
        for name in ("device", "precision"):
            checked_text(name, values.get(name, ""))
        super().__init__(model_name=str(model_name or (encoder.spec.model if encoder else "")), **values)
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
        if self.revision and self.revision != encoder.fingerprint:
            raise FingerprintMismatch(
                f"revision names encoder {self.revision[:12]}, {self.model_name!r} is {encoder.fingerprint[:12]}: it "
                "was fitted again or has other prompts. Leave revision out to take it as it is now, and embed again."
            )
        self._encoder = encoder
        self.revision = encoder.fingerprint

    @classmethod
    def from_pretrained(cls, path: str | Path, **settings: Any) -> Self:
        """The embedding of a retriever that `ragadapt fit` saved. settings: device, precision, embed_batch_size …"""
        return cls(str(path), **settings)

    @classmethod
    def class_name(cls) -> str:
        return "LoRAEmbedding"

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

    def to_payload(self) -> dict[str, Any]:
        """What events tell about the embedding."""
        return {**super().to_payload(), "revision": self.revision}

    def _get_query_embedding(self, query: str) -> list[float]:
        query = checked_text("The query", query)
        vector: list[float] = self.encoder.encode_queries([query])[0].tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.encoder.encode_passages(texts).tolist()
        # Of a batch the longest text is enough to look at, until one is too long.
        if not self._warned and texts and self.encoder.unread_ends([max(texts, key=len)]):
            self._warned = True
            room = self.encoder.passage_room
            log.warning(
                "%s: %s Cut smaller nodes, for instance with SentenceSplitter(chunk_size=%d, chunk_overlap=0), or take "
                "a model that reads more. This is said once.",
                self.model_name, self.encoder.unread_ends(texts), max(16, room * 3 // 4),
            )  # fmt: skip
        return vectors

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)
