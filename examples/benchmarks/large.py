"""A saved retriever over a million passages in minutes: real texts and vectors, repeated with small changes.

The model, the mix and the rest of the folder are those of a small fit. Passages are sentences of real documents with a
few words exchanged, their vectors those of the sentences turned a little; what is searched, read and filtered is as
large as in a real one of that size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from beir import load
from synthetic import sentences

from ragadapt import Encoder, EncoderConfig, FitConfig, fit
from ragadapt.config import IndexConfig
from ragadapt.index import open_index
from ragadapt.index.postings import POSTINGS, FieldPostings
from ragadapt.lexical import LexicalIndex
from ragadapt.search.fusion import Background
from ragadapt.store.chunks import ChunkStore, DocumentRecord, shown_of
from ragadapt.store.workspace import Stage, Workspace, open_store
from ragadapt.values import Chunk

GROUPS, TENANTS = 20_000, 1_000
DAYS = 10_000  # that passages are from, counted from FIRST_DAY on
FIRST_DAY = date(1999, 1, 1)

_POOL = 4_000  # different sentences
_PER_DOCUMENT = 10
_TURNED = 0.35  # length of the noise beside a vector of length 1
_BLOCK = 8_192


def large_retriever(data: Path, folder: Path, count: int, structure: str, seed: int = 13) -> Path:
    """The folder of a retriever over `count` passages with an index of FAISS, made once."""
    target = folder / f"retriever-{count}-{structure}"
    if (target / "ragadapt.json").exists():
        return target
    texts, vectors = _pool(data, folder)
    small = _small_fit(data, folder)
    manifest = open_store(small).manifest
    rng = np.random.default_rng(seed)
    chunks = Chunks(texts, count, rng)
    with Workspace.open(target, {"command": "large"}) as work:
        with work.stage("parts", {"count": count, "structure": structure}) as stage:
            if not stage.finished:
                _write_parts(stage, chunks, vectors, structure, manifest.fingerprint, seed)
        sections = {**manifest.sections, "chunks": count}
        configuration = {**manifest.configuration, "index": config_of(structure)}
        parts = {name: stage.path / name for name in ("chunks.sqlite", POSTINGS, "lexical", "background.npz", "index")}
        made = replace(manifest, sections=sections, configuration=configuration, mutable=("feedback.sqlite",))
        work.commit(made, {**parts, "model": small / "model", "report": small / "report"})
    return target


def _write_parts(
    stage: Stage, chunks: Chunks, vectors: np.ndarray, structure: str, fingerprint: str, seed: int
) -> None:
    place, count, dim = stage.path, len(chunks), vectors.shape[1]
    rows = np.lib.format.open_memmap(stage.scratch / "vectors.npy", "w+", np.float32, (count, dim))
    noise, texts = np.random.default_rng(seed + 1), list[str]()
    with ChunkStore.create(place / "chunks.sqlite") as store:
        index = open_index("faiss", place / "index", dim=dim, fingerprint=fingerprint)

        def written() -> Iterator[Mapping[str, Any]]:
            """What filters see, while everything else is written."""
            for start in range(0, count, _BLOCK):
                part = list(chunks.part(start, min(start + _BLOCK, count)))
                turned = vectors[np.arange(start, start + len(part)) % len(vectors)]
                turned = turned + noise.normal(0, _TURNED / dim**0.5, turned.shape).astype(np.float32)
                turned /= np.linalg.norm(turned, axis=1, keepdims=True)
                rows[start : start + len(part)] = turned
                new = [chunk.document_id for chunk in part if chunk.id.endswith("#0")]
                store.add([DocumentRecord(id, source=f"{id}.md") for id in new], part)
                index.upsert([chunk.id for chunk in part], turned, [dict(chunk.metadata) for chunk in part])
                texts.extend(chunk.text for chunk in part)
                yield from map(shown_of, part)

        FieldPostings.build(written()).save(place / POSTINGS)
        index.finish(IndexConfig.model_validate(config_of(structure)))
        index.save()
        index.close()  # the vectors are out of memory before the words come in
        ids = store.ids()
        LexicalIndex.build(ids, texts).save(place / "lexical")
        texts.clear()
        background = Background.of(rows)
        np.savez(
            place / "background.npz", mean=background.mean, covariance=background.covariance,
            count=np.int64(background.count),
        )  # fmt: skip


def config_of(structure: str) -> dict[str, Any]:
    return IndexConfig(kind="faiss", structure=structure).model_dump(mode="json")  # type: ignore[arg-type]


class Chunks:
    """The passages, made anew each time they are read, so that they are never all in memory."""

    def __init__(self, texts: list[str], count: int, rng: np.random.Generator) -> None:
        self.texts = texts
        self.split = [text.split() for text in texts]
        self.count = count
        self.words = sorted({word for text in texts for word in text.split() if word.isalpha() and len(word) > 3})
        self.exchanged = rng.integers(len(self.words), size=(count, 2))
        self.groups = (GROUPS * rng.random((count, 3)) ** 2).astype(np.int64)  # some groups see more than others
        self.days = rng.integers(DAYS, size=count)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Chunk]:
        return self.part(0, self.count)

    def part(self, start: int, stop: int) -> Iterator[Chunk]:
        for at in range(start, stop):
            words = list(self.split[at % len(self.texts)])
            for number, other in enumerate(self.exchanged[at].tolist()):
                words[(at // len(self.texts) + 7 * number) % len(words)] = self.words[other]
            document, text = f"d{at // _PER_DOCUMENT}", " ".join(words)
            day = FIRST_DAY + timedelta(days=int(self.days[at]))
            metadata = {
                "lang": ("en", "de", "fr", "es")[at % 4], "tenant": f"tenant-{at % TENANTS}", "year": day.year,
                "created": day.isoformat(), "price": round(float(self.exchanged[at, 0]) / 7, 2),
                "draft": at % 10 == 0, "acl": [f"group-{group}" for group in self.groups[at].tolist()],
            }  # fmt: skip
            id = f"{document}.md#{at % _PER_DOCUMENT}"
            start_at = 1000 * (at % _PER_DOCUMENT)
            yield Chunk(id, document, text, (), start_at, start_at + len(text), metadata, f"{document}.md")


def _pool(data: Path, folder: Path) -> tuple[list[str], np.ndarray]:
    """Different sentences of real documents, and their vectors by the base model."""
    path = folder / "pool.npz"
    collection = [*load(data, "handbook").texts, *load(data, "scifact").texts[:1500]]
    texts = [" ".join(text.split()[:40]) for text in sentences(collection) if len(text.split()) >= 8]
    texts = [texts[at] for at in np.random.default_rng(13).permutation(len(texts))[:_POOL]]
    if not path.exists():
        np.savez(path, vectors=Encoder.load(EncoderConfig(model="offline")).encode_passages(texts))
    with np.load(path) as arrays:
        return texts, arrays["vectors"]


def _small_fit(data: Path, folder: Path) -> Path:
    target = folder / "small"
    if not (target / "ragadapt.json").exists():
        config = FitConfig.build(
            {"encoder": {"model": "offline"}, "adapter": {"method": "none"}, "index": {"kind": "exact"}}
        )
        fit([data / "handbook" / "docs"], target, config)
    return target
