"""The passages of a build with what its stages ask about them, and their vectors by one encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ragadapt.config import EncoderConfig
from ragadapt.corpus import normalise
from ragadapt.lexical.languages import foreign_share, languages_of
from ragadapt.out_of_core import Mapped
from ragadapt.search.fusion import Background, Floats
from ragadapt.values import Chunk, Document


@dataclass(frozen=True)
class Corpus:
    """Documents and the chunks cut from them, in corpus order. What follows from them is computed once, when it is
    first asked for."""

    documents: Sequence[Document]
    chunks: Sequence[Chunk]
    groups: Sequence[int]  # near-duplicate group by position
    notes: tuple[str, ...] = ()  # warnings for the report

    @classmethod
    def of(cls, chunks: tuple[Chunk, ...]) -> Corpus:
        """Chunks alone, for stages that ask neither for documents nor for near-duplicates."""
        return cls((), chunks, ())

    def part(self, positions: Sequence[int]) -> Corpus:
        """Only the chunks at these positions, in their order."""
        return Corpus(
            self.documents, tuple(self.chunks[at] for at in positions), tuple(self.groups[at] for at in positions)
        )

    @property
    def passages(self) -> Sequence[str]:
        """What is encoded, by position; made as it is read."""
        return passages_of(self.chunks)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Chunk ids by position."""
        return tuple(chunk.id for chunk in self.chunks)

    @cached_property
    def position_of(self) -> Mapping[str, int]:
        """Chunk id → position."""
        return {id: position for position, id in enumerate(self.ids)}

    @cached_property
    def chunk_of(self) -> Mapping[str, Chunk]:
        """Chunk id → chunk."""
        return {chunk.id: chunk for chunk in self.chunks}

    @cached_property
    def document_of(self) -> Mapping[str, str]:
        """Chunk id → id of its document."""
        return {chunk.id: chunk.document_id for chunk in self.chunks}

    @cached_property
    def text_keys(self) -> tuple[bytes, ...]:
        """Hashes of the normalised passages by position: equal keys, equal texts."""
        return tuple(map(text_hash, self.passages))

    @cached_property
    def languages(self) -> Mapping[str, float]:
        """Language → share of the letters, of a sample."""
        return languages_of(self.passages)


def passages_of(chunks: Sequence[Chunk]) -> Sequence[str]:
    """What encoder and lexical index read of the chunks, made as it is read."""
    return Mapped(chunks, lambda chunk: chunk.passage)


def text_hash(passage: str) -> bytes:
    """Equal for passages of equal normal form."""
    return hashlib.blake2b(normalise(passage).encode("utf-8", "surrogatepass"), digest_size=16).digest()


@dataclass(frozen=True, eq=False)
class EncodedCorpus:
    """A corpus and the vectors (N, d) that one encoder gives its passages, by position."""

    corpus: Corpus
    vectors: Floats

    @cached_property
    def background(self) -> Background:
        """Mean and covariance of the vectors, from one pass over them."""
        return Background.of(self.vectors)

    def of_texts(self, texts: Collection[str]) -> dict[str, Floats]:
        """Passage → its vector (d,), of those of the texts that are passages here, from one pass over them."""
        wanted = set(texts)
        at = {text: row for row, text in enumerate(self.corpus.passages) if text in wanted}
        return dict(zip(at, np.asarray(self.vectors[list(at.values())]), strict=True)) if at else {}


_FOREIGN = 0.2  # share of the text in other languages from which an English-only model is the wrong one


def foreign_note(languages: Mapping[str, float], config: EncoderConfig) -> str:
    """A warning where much of the text is in languages that the base model does not know; else empty."""
    from ragadapt.encoder import english_only

    share = foreign_share(languages)
    if share <= _FOREIGN or not english_only(config):
        return ""
    return (
        f"{share:.0%} of the text is not in English, but the base model {config.model!r} knows only English. "
        "Use --model multilingual."
    )
