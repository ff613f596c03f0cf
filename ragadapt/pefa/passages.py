"""Feedback and the chunks of a retriever: which chunk a user means, and which one it is after the documents changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ragadapt.checks import checked_text
from ragadapt.errors import InvalidInput
from ragadapt.index import VectorIndex
from ragadapt.pefa.ledger import Feedback, Level
from ragadapt.queries import MIN_QUOTE_SHARE, quote_share, same_source
from ragadapt.search.fusion import Floats
from ragadapt.store.chunks import ChunkStore
from ragadapt.values import Chunk

QueryVectors = Callable[[Sequence[str]], Floats]


class StoredPassages:
    """The chunks of a saved retriever, as feedback names them."""

    def __init__(self, chunks: ChunkStore, index: VectorIndex, vectors: QueryVectors) -> None:
        """vectors: queries → (n, d)."""
        self._chunks = chunks
        self._index = index
        self._vectors = vectors
        self._sources: dict[str, str] | None = None

    def resolve(self, feedback: Sequence[Feedback]) -> list[str | None]:
        """Today's chunk of each feedback: the one with the same text, wherever it stands now.

        Where the text is gone, feedback that named a document or a quote goes to the best chunk that is left of what
        it named; feedback on a chunk has None, until the text is back.
        """
        here = self._chunks.hashes([one.chunk_id for one in feedback])
        moved = [one for one in feedback if not _stands(one, here)]
        elsewhere = self._chunks.by_content([one.content_hash for one in moved if one.content_hash])
        found: list[str | None] = []
        for one in feedback:
            if _stands(one, here):
                found.append(one.chunk_id)
            elif one.content_hash in elsewhere:
                places = elsewhere[one.content_hash]
                found.append(next((id for id, document in places if document == one.document_id), places[0][0]))
            else:
                found.append(self._again(one))
        return found

    def locate(
        self,
        query: str,
        chunk_id: str | None = None,
        document_id: str | None = None,
        source: str | None = None,
        quote: str | None = None,
    ) -> tuple[Chunk, Level]:
        """The chunk that a user means. Raises InvalidInput where there is none, or where too little or much is said.

        A document stands for its chunk that is nearest to the query; a quote for the chunk that holds it.
        """
        chunk_id, document_id, source, quote = (
            None if value is None else checked_text(name, value)
            for name, value in (
                ("chunk_id", chunk_id), ("document_id", document_id), ("source", source), ("quote", quote),
            )
        )  # fmt: skip
        ways = [chunk_id is not None, document_id is not None, source is not None or quote is not None]
        if sum(ways) != 1:
            raise InvalidInput("Name the passage in one way: chunk_id, or document_id, or source with quote.")
        if chunk_id is not None:
            found = self._chunks.find([chunk_id])
            if not found:
                raise InvalidInput(
                    f"There is no chunk {chunk_id!r} in this retriever. Ids are those that search gives."
                )
            return found[chunk_id], "chunk"
        if document_id is not None:
            chunks = self._chunks.of_document(document_id)
            if not chunks:
                raise InvalidInput(f"There is no document {document_id!r} in this retriever.")
            return self._nearest(query, chunks), "document"
        if not source or not quote:
            raise InvalidInput("A quote needs its source, and a source its quote; or give chunk_id or document_id.")
        holding = self._with_quote(source, quote)
        if not holding:
            raise InvalidInput(f"No passage of {source!r} holds the quote {quote[:80]!r}.")
        return self._nearest(query, holding), "quote"

    def _again(self, one: Feedback) -> str | None:
        """The chunk for feedback whose text is gone; None for feedback that named a chunk."""
        if one.level == "chunk":
            return None
        chunks = self._chunks.of_document(one.document_id)
        if one.level == "quote":
            chunks = [chunk for chunk in chunks if quote_share(chunk.text, one.quote) >= MIN_QUOTE_SHARE]
        return self._nearest(one.query, chunks).id if chunks else None

    def _nearest(self, query: str, chunks: Sequence[Chunk]) -> Chunk:
        if len(chunks) == 1:
            return chunks[0]
        (vector,) = self._vectors([query])
        return chunks[int(np.argmax(self._index.vectors([chunk.id for chunk in chunks]) @ vector))]

    def _with_quote(self, source: str, quote: str) -> list[Chunk]:
        if self._sources is None:
            self._sources = {record.id: record.source for record in self._chunks.documents()}
        documents = [id for id, own in self._sources.items() if same_source(source, own, id)]
        shares = [
            (quote_share(chunk.text, quote), chunk)
            for document in documents
            for chunk in self._chunks.of_document(document)
        ]
        best = max((share for share, _ in shares), default=0.0)
        return [chunk for share, chunk in shares if share == best and share >= MIN_QUOTE_SHARE]


def _stands(one: Feedback, here: dict[str, str]) -> bool:
    return one.chunk_id in here and one.content_hash in ("", here[one.chunk_id])
