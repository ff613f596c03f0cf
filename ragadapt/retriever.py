"""The saved retriever, opened: text in, hits out."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ragadapt.chunks import ChunkStore
from ragadapt.errors import FingerprintMismatch, InvalidInput
from ragadapt.fusion import Floats, Fusion
from ragadapt.search import Mask, Mode, Ranked, Searcher
from ragadapt.stages import open_searcher
from ragadapt.store import Manifest, OpenedStore, load_store
from ragadapt.values import Hit

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder

log = logging.getLogger(__name__)

_MASKS = 32  # filters whose allowed chunks are remembered


class Retriever:
    """A retriever saved by `ragadapt fit`. Open one with `Retriever.open(folder)`.

    Safe for use from several threads: encoding and index access take turns.
    """

    def __init__(
        self, path: Path, manifest: Manifest, encoder: Encoder, searcher: Searcher, chunks: ChunkStore
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.encoder = encoder
        self.searcher = searcher
        self.chunks = chunks
        self._document_of: list[str] | None = None
        self._masks: dict[str, Mask] = {}
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: str | Path, *, device: str = "auto", precision: str = "auto") -> Self:
        """Open a folder that `fit` wrote.

        Raises NotARetriever, FormatTooNew, StoreCorrupt, and FingerprintMismatch where index and model differ.
        """
        return load_store(path, lambda opened: cls._load(opened, device, precision))

    from_pretrained = open

    @classmethod
    def _load(cls, opened: OpenedStore, device: str, precision: str) -> Self:
        from ragadapt.encoder import Encoder

        manifest, path = opened.manifest, opened.path
        encoder = Encoder.open(path / "model", device=device, precision=precision)
        if encoder.fingerprint != manifest.fingerprint:
            raise FingerprintMismatch(
                f"{path} was built with encoder {manifest.fingerprint[:12]}, but its model folder holds "
                f"{encoder.fingerprint[:12]}. Rebuild the vectors with: ragadapt index {path} --rebuild"
            )
        searcher = open_searcher(path, manifest)
        return cls(path, manifest, encoder, searcher, ChunkStore.open(path / "chunks.sqlite"))

    @property
    def fingerprint(self) -> str:
        """The encoder's fingerprint: vectors with another one cannot be compared."""
        return self.encoder.fingerprint

    @property
    def fusion(self) -> Fusion:
        """The mix that hybrid search uses."""
        return self.searcher.fusion

    def __len__(self) -> int:
        return len(self.chunks)

    def close(self) -> None:
        """Release files and connections."""
        self.searcher.index.close()
        self.chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Searching

    def search(
        self, query: str, k: int = 5, *, mode: Mode = "hybrid", filter: Mapping[str, Any] | None = None
    ) -> list[Hit]:
        """The best k chunks, best first. mode: "hybrid" (the learnt fusion), "dense" or "lexical".

        filter: on the chunks' metadata, e.g. {"lang": "en"} or {"year": {"$gte": 2024}}. Raises InvalidInput.
        """
        if not isinstance(query, str):
            raise InvalidInput(f"query is {type(query).__name__}; pass one string, or use search_many for a list.")
        return self.search_many([query], k, mode=mode, filter=filter)[0]

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 5,
        *,
        mode: Mode = "hybrid",
        filter: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """`search` for many queries at once, encoded in one batch."""
        results = []
        for ranked in self.rank(queries, k, mode=mode, filter=filter):
            found = self.chunks.find(ranked.ids)
            hits = []
            for at, id in enumerate(ranked.ids):
                if id in found:
                    parts = {name: float(values[at]) for name, values in ranked.parts.items()}
                    hits.append(Hit(found[id], float(ranked.scores[at]), parts))
            results.append(hits)
        return results

    def rank(
        self,
        queries: Sequence[str],
        k: int,
        *,
        mode: Mode = "hybrid",
        filter: Mapping[str, Any] | None = None,
        vectors: Floats | None = None,
    ) -> list[Ranked]:
        """Chunk ids and scores without the texts. vectors: (Q, d) to use instead of encoding the queries."""
        if isinstance(queries, str):
            raise InvalidInput("queries is one string; pass a list of strings, or use search for one query.")
        for number, query in enumerate(queries):
            if not isinstance(query, str) or not query.strip():
                raise InvalidInput(f"query {number} is {query!r}: a query is a string with at least one word.")
        if not queries:
            return []
        with self._lock:
            if vectors is None:
                vectors = self._encode(queries, mode)
            allowed = self._allowed(filter) if filter else None
            return self.searcher.rank(queries, vectors, k, mode, filter=filter or None, allowed=allowed)

    def _encode(self, queries: Sequence[str], mode: Mode) -> Floats:
        if mode == "lexical":  # needs no vectors
            return np.zeros((len(queries), self.encoder.dim), dtype=np.float32)
        return self.encoder.encode_queries(queries)

    def run(
        self, queries: Mapping[str, str], k: int = 100, *, mode: Mode = "hybrid", level: str = "document"
    ) -> dict[str, dict[str, float]]:
        """A run as TREC tools read it: query id → id → score; documents score as their best chunk.

        level: "document" or "chunk". Up to k ids per query.
        """
        if level not in ("document", "chunk"):
            raise InvalidInput(f"level = {level!r}: it is 'document' or 'chunk'.")
        ids = list(queries)
        # Several chunks of one document may stand above the next document: look deeper, as far as needed.
        deep = k if level == "chunk" else min(len(self), 4 * k)
        rankings = self.rank([queries[id] for id in ids], max(deep, 1), mode=mode) if ids else []
        return {id: self._best(ranked, k, level) for id, ranked in zip(ids, rankings, strict=True)}

    def evaluate(
        self,
        queries: str | Path,
        qrels: str | Path | None = None,
        *,
        modes: Sequence[Mode] = ("hybrid", "dense", "lexical"),
    ) -> dict[str, dict[str, float]]:
        """Mode → metric → mean over the judged queries.

        queries and qrels: as for `fit --queries --qrels`. Labels that name documents are judged by document; chunk
        labels and quotes by chunk, quotes with evidence recall@5 and @10 besides. Raises InvalidLabels.
        """
        from ragadapt.evaluation import evaluate
        from ragadapt.queries import evidence_recall, load_labels

        chunks = list(self.chunks)
        labels = load_labels(queries, qrels, chunks=chunks)
        document_of = {chunk.id: chunk.document_id for chunk in chunks}
        by_id = {chunk.id: chunk for chunk in chunks}
        whole = bool(labels.document_positives)
        judged: dict[str, dict[str, int]] = {}
        for query in labels.queries:
            grades = labels.grades[query.id]
            if whole:
                named = labels.document_positives.get(query.id, ())
                judged[query.id] = dict.fromkeys(named, 1)
                for id, grade in grades.items():
                    document = document_of[id]
                    judged[query.id][document] = max(judged[query.id].get(document, 0), int(grade))
            else:
                judged[query.id] = {id: int(grade) for id, grade in grades.items()}
        asked = {query.id: query.text for query in labels.queries}
        results: dict[str, dict[str, float]] = {}
        for mode in modes:
            run = self.run(asked, 100, mode=mode, level="document" if whole else "chunk")
            results[mode] = dict(evaluate(run, judged).mean)
            if labels.evidence:
                for k in (5, 10):
                    found = [
                        evidence_recall([by_id[id] for id in list(run[query])[:k]], quotes, k)
                        for query, quotes in labels.evidence.items()
                        if query in run
                    ]
                    results[mode][f"evidence recall@{k}"] = float(np.mean(found)) if found else 0.0
        return results

    def _best(self, ranked: Ranked, k: int, level: str) -> dict[str, float]:
        if level == "chunk":
            return {id: float(score) for id, score in zip(ranked.ids, ranked.scores, strict=True)}
        if self._document_of is None:
            self._document_of = self.chunks.document_ids()
        best: dict[str, float] = {}
        for position, score in zip(self.searcher.positions(ranked.ids), ranked.scores, strict=True):
            best.setdefault(self._document_of[position], float(score))
            if len(best) == k:
                break
        return best

    def _allowed(self, filter: Mapping[str, Any]) -> Mask:
        from ragadapt.index.filters import compile_filter

        key = json.dumps(filter, sort_keys=True, default=str)
        if key not in self._masks:
            matches = compile_filter(filter)
            mask = np.fromiter((matches(metadata) for _, metadata in self.chunks.metadata()), bool, len(self.chunks))
            if len(self._masks) >= _MASKS:
                self._masks.pop(next(iter(self._masks)))
            self._masks[key] = mask
        return self._masks[key]
