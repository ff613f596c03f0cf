"""The saved retriever, opened: text in, hits out."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ragadapt.checks import (
    MODES,
    checked_choice,
    checked_k,
    checked_lam,
    checked_list,
    checked_queries,
    checked_text,
    shown,
)
from ragadapt.chunks import ChunkFilters, ChunkStore
from ragadapt.config import PefaConfig
from ragadapt.errors import FingerprintMismatch, InvalidInput, RagadaptError
from ragadapt.fusion import Floats, Fusion
from ragadapt.index.contract import check_vectors
from ragadapt.index.filters import given
from ragadapt.pefa import Feedback, Ledger, Pefa, checked_feedback, named_tenant
from ragadapt.pefa.passages import StoredPassages
from ragadapt.search import Dense, Mask, Mode, Plain, Ranked, Searcher
from ragadapt.stages import open_searcher
from ragadapt.store import LEDGER, MANIFEST, Manifest, OpenedStore, ledger_lock, load_store
from ragadapt.text import encodable
from ragadapt.values import Hit

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder

log = logging.getLogger(__name__)

_RECENT = 1024  # queries whose vectors are remembered: feedback mostly follows a search
_LOOK_SECONDS = 1.0  # between two looks whether the folder was replaced


class Retriever:
    """A retriever saved by `ragadapt fit`. Open one with `Retriever.open(folder)`.

    Safe for use from several threads: encoding and index access take turns. Feedback counts from the next search on,
    here and in every other process that has the folder open. Where the folder is replaced (`fit`, `refresh`), the next
    search reads the new one, a whole one always.
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
        self._documents = 0  # known with the line above
        self._filters = ChunkFilters(chunks)
        self._lock = threading.RLock()
        self._recent: OrderedDict[str, Floats] = OrderedDict()
        self._pefa: Pefa | None = None
        self._seen = _identity(path)
        self._looked = time.monotonic()

    @classmethod
    def open(cls, path: str | Path, *, device: str = "auto", precision: str = "auto") -> Self:
        """Open a folder that `fit` wrote.

        Raises InvalidInput for a device that is not there, NotARetriever, FormatTooNew, StoreCorrupt, and
        FingerprintMismatch where index and model differ.
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
        with self._lock:
            if self._pefa is not None:
                self._pefa.close()
                self._pefa = None
            self.searcher.index.close()
            self.chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Searching

    def search(
        self,
        query: str,
        k: int = 5,
        *,
        mode: Mode = "hybrid",
        filter: Mapping[str, Any] | None = None,
        lam: float | None = None,
        tenant: str | None = None,
    ) -> list[Hit]:
        """The best k chunks, best first. mode: "hybrid" (the learnt fusion), "dense" or "lexical".

        filter: on the chunks' metadata, e.g. {"lang": "en"} or {"year": {"$gte": 2024}}, and like one of them on id,
        document_id, source and heading where the metadata have no such field. lam: λ of the feedback, None
        = as tuned, 1 = without feedback. tenant: whose feedback counts beside that for all. Raises InvalidInput.
        """
        if not isinstance(query, str):
            raise InvalidInput(
                f"query is {type(query).__name__} ({shown(query)}); pass one string, or use search_many for a list."
            )
        return self.search_many([query], k, mode=mode, filter=filter, lam=lam, tenant=tenant)[0]

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 5,
        *,
        mode: Mode = "hybrid",
        filter: Mapping[str, Any] | None = None,
        vectors: Floats | None = None,
        lam: float | None = None,
        tenant: str | None = None,
    ) -> list[list[Hit]]:
        """`search` for many queries at once, encoded in one batch. vectors: (Q, d) to use instead of encoding."""
        results = []
        with self._lock:
            for ranked in self.rank(queries, k, mode=mode, filter=filter, vectors=vectors, lam=lam, tenant=tenant):
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
        lam: float | None = None,
        tenant: str | None = None,
    ) -> list[Ranked]:
        """Chunk ids and scores without the texts. vectors: (Q, d) to use instead of encoding the queries."""
        blank = vectors is not None and mode != "lexical"  # the words may be missing where the vector is given
        queries, k, lam = checked_queries(queries, blank=blank), checked_k(k), checked_lam(lam)
        checked_choice("mode", mode, MODES)
        if not queries:
            return []
        with self._lock:
            self._follow()
            if vectors is None:
                vectors = self._encode(queries, mode)
            vectors = check_vectors(vectors, self.encoder.dim, "query vectors")
            if len(vectors) != len(queries):
                raise InvalidInput(f"{len(queries)} queries but {len(vectors)} vectors: one each is needed.")
            return self._rank(queries, vectors, k, mode, lam, tenant, filter)

    def _rank(
        self,
        queries: Sequence[str],
        vectors: Floats,
        k: int,
        mode: Mode,
        lam: float | None,
        tenant: str | None,
        filter: Mapping[str, Any] | None = None,
    ) -> list[Ranked]:
        """`rank` in the build that is open."""
        asked, allowed = self._allowed(filter) if given(filter) is not None else (None, None)
        dense, fusion = self._with_feedback(lam, tenant)
        return self.searcher.rank(queries, vectors, k, mode, filter=asked, allowed=allowed, fusion=fusion, dense=dense)

    def _encode(self, queries: Sequence[str], mode: Mode) -> Floats:
        if mode == "lexical":  # needs no vectors
            return np.zeros((len(queries), self.encoder.dim), dtype=np.float32)
        return self._query_vectors(queries)

    def _query_vectors(self, queries: Sequence[str]) -> Floats:
        """(Q, d), from memory where a query was asked a moment ago."""
        new = [query for query in dict.fromkeys(queries) if query not in self._recent]
        fresh = dict(zip(new, self.encoder.encode_queries(new), strict=True)) if new else {}
        rows: Floats = np.stack([fresh[query] if query in fresh else self._recent[query] for query in queries])
        for query, vector in list(fresh.items())[-_RECENT:]:
            self._recent[query] = vector
            if len(self._recent) > _RECENT:
                self._recent.popitem(last=False)
        return rows

    # Feedback

    def add_feedback(
        self,
        query: str,
        chunk_id: str | None = None,
        *,
        document_id: str | None = None,
        source: str | None = None,
        quote: str | None = None,
        weight: float = 1.0,
        user: str = "",
        tenant: str | None = None,
        at: float | None = None,
        key: str | None = None,
    ) -> str:
        """This passage answers this query. On disk when this returns, and in every search from then on; its key.

        Name the passage by chunk_id, by document_id (its chunk nearest to the query) or by source and quote. weight:
        negative = it does not answer. user: whose say on one passage is capped. tenant: None = for all. at: Unix
        seconds, None = now. key: a second feedback with a known key changes nothing. Raises InvalidInput, StoreLocked,
        StoreError.
        """
        with self._lock:
            self._follow()
            if not isinstance(query, str) or not query.strip():
                raise InvalidInput(f"query is {shown(query)}: feedback says which passage answers a query.")
            query, key = encodable(query), None if key is None else checked_text("key", key)
            chunk, level = self.passages().locate(query, chunk_id, document_id, source, quote)
            one = Feedback(query, chunk.id, weight, user, named_tenant(tenant), at, key or "", chunk.content_hash,
                           chunk.document_id, level, quote or "")  # fmt: skip
            return self.add_feedback_many([one])[0]

    def add_feedback_many(self, feedback: Sequence[Feedback]) -> list[str]:
        """Several at once, in one transaction: all of it or nothing. The keys."""
        with self._lock:
            self._follow()
            checked = [one.checked() for one in checked_feedback(feedback)]
            return self.feedback(create=True).add_many(
                checked, list(self._query_vectors([one.query for one in checked])) if checked else None
            )

    def withdraw_feedback(
        self,
        key: str | None = None,
        *,
        query: str | None = None,
        chunk_id: str | None = None,
        user: str | None = None,
        tenant: str | None = None,
    ) -> int:
        """Take back the feedback that fits all that is given; how many. Search is as if it had never been."""
        with self._lock:
            self._follow()
            return self.feedback(create=True).withdraw(key, query=query, id=chunk_id, user=user, tenant=tenant)

    def remember(self, queries: Sequence[str]) -> None:
        """Encode queries in one batch, so that feedback on them, one by one, needs no encoding."""
        asked = [encodable(q) for q in checked_list(queries, "queries") if isinstance(q, str) and q.strip()]
        if asked:
            with self._lock:
                self._query_vectors(asked)

    def locate(self, query: str, **where: str | None) -> Feedback:
        """Feedback on what is named as in `add_feedback`, not added yet. Raises InvalidInput."""
        (query,) = checked_queries([query])
        with self._lock:
            chunk, level = self.passages().locate(query, **where)
            return Feedback(query, chunk.id, content_hash=chunk.content_hash, document_id=chunk.document_id,
                            level=level, quote=where.get("quote") or "")  # fmt: skip

    def feedback(self, *, create: bool = False) -> Pefa:
        """The retriever's feedback. Where there is none yet, create makes its ledger; else InvalidInput is raised."""
        with self._lock:
            if self._pefa is None:
                ledger = Ledger.open(self.path / LEDGER, lock=ledger_lock(self.path), create=create)
                try:
                    self._pefa = Pefa(
                        self.searcher.index,
                        self._query_vectors,
                        fingerprint=self.fingerprint,
                        ledger=ledger,
                        config=PefaConfig.model_validate(self.manifest.configuration.get("pefa", {})),
                        passages=self.passages(),
                    )
                except BaseException:
                    ledger.close()
                    raise
            return self._pefa

    @property
    def has_feedback(self) -> bool:
        """Whether there is a ledger."""
        return self._pefa is not None or Ledger.is_at(self.path / LEDGER)

    def passages(self) -> StoredPassages:
        """Today's chunks, as feedback names them."""
        return StoredPassages(self.chunks, self.searcher.index, self._query_vectors)

    def _with_feedback(self, lam: float | None, tenant: str | None) -> tuple[Dense | None, Fusion | None]:
        """The dense side and the fusion of a search; None = the searcher's own."""
        named_tenant(tenant)
        if lam == 1 or not self.has_feedback:
            return None, None
        pefa = self.feedback()
        dense = pefa.dense(lam, tenant)
        if isinstance(dense, Plain):
            return None, None
        weight = pefa.config.fusion_weight
        return dense, None if weight is None else replace(self.searcher.fusion, weight=weight)

    def _follow(self) -> None:
        """Read the folder anew if another build stands there. Where that fails the old one goes on."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        seen = _identity(self.path)
        if seen is None or seen == self._seen:
            return
        try:
            device, precision = self.encoder.config.device, self.encoder.config.precision
            fresh = load_store(self.path, lambda opened: type(self)._load(opened, device, precision))
        except RagadaptError as error:
            log.warning("%s was replaced and the new folder cannot be read (%s); the old one goes on", self.path, error)
            self._seen = seen
            return
        self.close()
        for name in ("manifest", "encoder", "searcher", "chunks", "_seen"):
            setattr(self, name, getattr(fresh, name))
        self._document_of = None
        self._filters = ChunkFilters(self.chunks)
        self._recent.clear()

    # Runs and measures

    def run(
        self,
        queries: Mapping[str, str],
        k: int = 100,
        *,
        mode: Mode = "hybrid",
        level: str = "document",
        lam: float | None = None,
        tenant: str | None = None,
    ) -> dict[str, dict[str, float]]:
        """A run as TREC tools read it: query id → id → score; documents score as their best chunk.

        level: "document" or "chunk". k ids per query where the search finds so many. lam, tenant: as for `search`.
        """
        checked_choice("level", level, ("document", "chunk"))
        checked_choice("mode", mode, MODES)
        if not isinstance(queries, Mapping):
            raise InvalidInput(f"queries is {type(queries).__name__}; a dict of query id → query is needed.")
        ids, texts = list(queries), checked_queries(queries.values())
        k, lam = checked_k(k), checked_lam(lam)
        found: dict[str, dict[str, float]] = {}
        if not ids:
            return found
        with self._lock:
            self._follow()
            vectors = self._encode(texts, mode)
            deep = max(k if level == "chunk" else min(len(self), 4 * k), 1)
            short = list(range(len(ids)))
            while short:
                rankings = self._rank([texts[at] for at in short], vectors[short], deep, mode, lam, tenant)
                for at, ranked in zip(short, rankings, strict=True):
                    found[ids[at]] = self._best(ranked, k, level)
                if level == "chunk" or deep >= len(self):
                    break
                # Many chunks of one document may stand above the next document: look deeper where that was so.
                wanted = min(k, self._documents)
                short = [
                    at
                    for at, ranked in zip(short, rankings, strict=True)
                    if len(found[ids[at]]) < wanted and len(ranked.ids) >= deep
                ]
                deep = min(len(self), 2 * deep)
        return found

    def evaluate(
        self,
        queries: str | Path,
        qrels: str | Path | None = None,
        *,
        modes: Sequence[Mode] = ("hybrid", "dense", "lexical"),
        lam: float | None = None,
        tenant: str | None = None,
    ) -> dict[str, dict[str, float]]:
        """Mode → metric → mean over the judged queries.

        queries and qrels: as for `fit --queries --qrels`. Labels that name documents are judged by document; chunk
        labels and quotes by chunk, quotes with evidence recall@5 and @10 besides: over all questions with quotes
        ("evidence questions"), where quotes that no passage holds ("quotes not found") count as missed. Where some are,
        "labels left out" counts what names nothing here or cannot be read, "lines not read" the latter alone. lam,
        tenant: as for `search`. Raises InvalidLabels.
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
        quoted = {id: text for id, text in asked.items() if id in labels.evidence}
        results: dict[str, dict[str, float]] = {}
        for mode in modes:
            run = self.run(asked, 100, mode=mode, level="document" if whole else "chunk", lam=lam, tenant=tenant)
            results[mode] = dict(evaluate(run, judged).mean)
            if labels.evidence:
                by_chunk = self.run(quoted, 10, mode=mode, level="chunk", lam=lam, tenant=tenant) if whole else run
                for k in (5, 10):
                    found = [
                        evidence_recall([by_id[id] for id in list(by_chunk.get(query, ()))[:k]], quotes, k)
                        for query, quotes in labels.evidence.items()
                    ]
                    results[mode][f"evidence recall@{k}"] = float(np.mean(found))
                results[mode]["evidence questions"] = len(labels.evidence)
                results[mode]["quotes not found"] = labels.quotes_not_found
            for name, count in (("labels left out", len(labels.unmatched)), ("lines not read", labels.unread)):
                if count:
                    results[mode][name] = count
        return results

    def _best(self, ranked: Ranked, k: int, level: str) -> dict[str, float]:
        if level == "chunk":
            return {id: float(score) for id, score in zip(ranked.ids, ranked.scores, strict=True)}
        if self._document_of is None:
            self._document_of = self.chunks.document_ids()
            self._documents = len(set(self._document_of))
        best: dict[str, float] = {}
        for position, score in zip(self.searcher.positions(ranked.ids), ranked.scores, strict=True):
            best.setdefault(self._document_of[position], float(score))
            if len(best) == k:
                break
        return best

    def passing(self, filter: Mapping[str, Any]) -> list[str]:
        """The ids of the chunks that pass a filter, in the order of the chunks. Raises InvalidFilter."""
        with self._lock:
            self._follow()
            _, allowed = self._allowed(filter)
            return [id for id, passes in zip(self.chunks.ids(), allowed, strict=True) if passes]

    def _allowed(self, filter: Any) -> tuple[Any, Mask]:
        """The filter as the index is asked, and (N,) the chunks that pass."""
        if isinstance(filter, Mapping):
            return self._filters.resolve(filter)
        mask = np.zeros(len(self.chunks), np.bool_)  # the index engine's own: only the engine knows what passes
        mask[self.searcher.positions(self.searcher.index.ids(filter))] = True
        return filter, mask


def _identity(path: Path) -> tuple[int, int] | None:
    """Of the folder's manifest: another one after each build."""
    try:
        found = (path / MANIFEST).stat()
    except OSError:  # between the two renames of a commit
        return None
    return found.st_ino, found.st_mtime_ns
