"""One build of a saved retriever's folder, with what it remembers while it is searched."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ragadapt.checks import (
    checked_queries,
    checked_texts,
)
from ragadapt.config import PefaConfig
from ragadapt.errors import FingerprintMismatch, InvalidInput, StoreCorrupt
from ragadapt.files import FileRecord, Hashes, file_state
from ragadapt.index.contract import check_vectors
from ragadapt.index.postings import POSTINGS, FieldPostings
from ragadapt.pefa import Ledger, Pefa, named_tenant
from ragadapt.pefa.passages import StoredPassages
from ragadapt.search.fusion import Floats, with_reranker
from ragadapt.search.reranking import PLAIN_WEIGHT, Rerank
from ragadapt.search.saved import open_searcher
from ragadapt.search.searcher import Searcher
from ragadapt.store.chunks import ChunkFilters, ChunkStore
from ragadapt.store.workspace import LEDGER, MANIFEST, RERANKER, Manifest, OpenedStore, ledger_lock
from ragadapt.text import rough_tokens
from ragadapt.threads import SharedLock
from ragadapt.values import Chunk

if TYPE_CHECKING:
    from ragadapt.adapters.tenants import TenantAdapters
    from ragadapt.encoder import Encoder
    from ragadapt.rerank import Reranker

_RECENT = 1024  # queries whose vectors are remembered: feedback mostly follows a search
_SAMPLE = 500  # passages by which the size of an average one is told


class Snapshot:
    """One build of a saved folder, as it is searched: nothing of it changes when the folder is replaced.

    It is let go, and its files with it, when nobody holds it any more. What it keeps besides saves work: masks of
    filters, vectors of recent queries, the feedback. lock: shared by all that use it, so that they don't wait for each
    other; whoever closes it, or forks the process, has it alone.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        encoder: Encoder,
        searcher: Searcher,
        chunks: ChunkStore,
        hashes: Hashes | None = None,
        seen: tuple[int, int, int] | None = None,
        device: str = "auto",
        precision: str = "auto",
        postings: FieldPostings | None = None,
    ) -> None:
        """hashes: what must be whole before anything is served. seen: of the manifest file that this is a build of."""
        self.path = path
        self.manifest = manifest
        self.encoder = encoder
        self.searcher = searcher
        self.chunks = chunks
        self.seen = seen
        in_memory = bool(getattr(searcher.index, "in_memory", False))
        self.filters = ChunkFilters(
            chunks, lambda: searcher.ids, searcher.positions, postings=postings, in_memory=in_memory
        )
        self.query_vectors = QueryVectors(encoder)
        self.pefa: Pefa | None = None
        self.lock = SharedLock()
        self._making = threading.RLock()  # what is made when it is first needed
        self.closed = False
        self._hashes = hashes
        self._document_of: list[str] | None = None
        self._passage_tokens: float | None = None
        self._rerankers: dict[str | None, Reranker] = {}  # by what they were asked for; None = the folder's own
        self._how = device, precision
        self.tenants: TenantAdapters | None = None

    @classmethod
    def load(
        cls,
        opened: OpenedStore,
        device: str,
        precision: str,
        tenant_adapters: Path | None = None,
        old: Snapshot | None = None,
    ) -> Self:
        """The folder's parts. old: a build whose model is taken over if it is the same. Raises as `Retriever.open`."""
        from ragadapt.encoder import Encoder

        manifest, path, seen = opened.manifest, opened.path, file_state(opened.path / MANIFEST)
        if old is not None and _model_files(old.manifest) == _model_files(manifest):
            encoder = old.encoder
        else:
            encoder = Encoder.open(path / "model", device=device, precision=precision)
        if encoder.fingerprint != manifest.fingerprint:
            raise FingerprintMismatch(
                f"{path} was built with encoder {manifest.fingerprint[:12]}, but its model folder holds "
                f"{encoder.fingerprint[:12]}. Rebuild the vectors with: ragadapt index {path} --rebuild"
            )
        if opened.hashes is not None:  # FAISS takes the sizes in a damaged file at their word
            opened.hashes.wait([name for name in manifest.files if name.endswith(".faiss")])
        searcher = open_searcher(path, manifest)
        chunks = ChunkStore.open(path / "chunks.sqlite")
        postings = FieldPostings.open(path / POSTINGS) if POSTINGS in manifest.files else None
        if postings is not None and len(postings) != len(searcher.lexical):
            raise StoreCorrupt(
                f"{path / POSTINGS} is about {len(postings)} passages, and there are {len(searcher.lexical)}. "
                f"Rebuild it with: ragadapt index {path} --rebuild"
            )
        made = cls(path, manifest, encoder, searcher, chunks, opened.hashes, seen, device, precision, postings)
        if old is not None and old.manifest.sections.get("rerank") == manifest.sections.get("rerank"):
            made._rerankers = old._rerankers
        if tenant_adapters is not None:
            from ragadapt.adapters.library import Library
            from ragadapt.adapters.tenants import TenantAdapters

            kept = old is not None and old.encoder is encoder
            made.tenants = (
                old.tenants if old is not None and kept else TenantAdapters(encoder, Library.open(tenant_adapters))
            )
        return made

    def whole(self) -> None:
        """Return once every file has been compared with its hash. Raises StoreCorrupt, InvalidInput if closed."""
        if self.closed:
            raise InvalidInput("This retriever was closed. Open it again with Retriever.open.")
        if self._hashes is not None:
            self._hashes.wait()

    def document_of(self) -> list[str]:
        """The document of every chunk, by position."""
        if self._document_of is None:
            self._document_of = self.chunks.document_ids()
        return self._document_of

    def vectors_of(self, queries: Sequence[str], tenant: str | None = None) -> Floats:
        """(Q, d) by the tenant's own adapter where it has one."""
        if self.tenants is not None and tenant is not None and named_tenant(tenant) in self.tenants:
            return self.tenants.encode_queries(tenant, queries)
        return self.query_vectors(queries)

    def passages(self) -> StoredPassages:
        """The chunks, as feedback names them."""
        return StoredPassages(self.chunks, self.searcher.index, self.query_vectors)

    def feedback(self, *, create: bool = False) -> Pefa:
        """The feedback beside the build. Where there is none yet, create makes its ledger; else InvalidInput."""
        if self.pefa is not None:
            return self.pefa
        with self._making:
            if self.pefa is None:
                ledger = Ledger.open(self.path / LEDGER, lock=ledger_lock(self.path), create=create)
                try:
                    self.pefa = Pefa(
                        self.searcher.index,
                        self.query_vectors,
                        fingerprint=self.encoder.fingerprint,
                        ledger=ledger,
                        config=PefaConfig.model_validate(self.manifest.configuration.get("pefa", {})),
                        passages=self.passages(),
                    )
                except BaseException:
                    ledger.close()
                    raise
            return self.pefa

    @property
    def has_feedback(self) -> bool:
        """Whether there is a ledger."""
        return self.pefa is not None or Ledger.is_at(self.path / LEDGER)

    def second_stage(self, asked: Rerank) -> tuple[Reranker, float, int | None] | None:
        """(the re-ranker, its weight, the depth that it was fitted with); None where it counts for nothing here.

        Raises InvalidInput where this retriever has none, and as `Reranker.load` and `Reranker.open`.
        """
        own: Mapping[str, Any] = self.manifest.sections.get("rerank") or {}
        weight, depth = asked.weight, None
        if asked.model is None:
            if not own:
                raise InvalidInput(
                    f"{self.path} has no re-ranker. Fit it with one (--rerank MODEL), or name one for this search."
                )
            weight, depth = own["weight"] if weight is None else weight, int(own["depth"])
            if weight > 0 and not (self.path / RERANKER).is_dir():
                raise InvalidInput(
                    f"The re-ranker of {self.path} was not kept ({own['reason']}). Name it for this search: "
                    f"{own['model']}."
                )
        elif weight is None:
            weight = PLAIN_WEIGHT
        if weight == 0:
            return None
        return self._reranker(asked), float(weight), depth

    def _reranker(self, asked: Rerank) -> Reranker:
        from ragadapt.rerank import Reranker

        device, precision = self._how
        name = None if asked.model is None else str(asked.model)
        with self._making:
            if name not in self._rerankers:
                self._rerankers[name] = (
                    Reranker.open(self.path / RERANKER, device=device, precision=precision)
                    if name is None
                    else Reranker.load(name, device=device, precision=precision)
                )
            found = self._rerankers[name]
        if name is None and found.fingerprint != self.manifest.sections["rerank"]["fingerprint"]:
            raise FingerprintMismatch(
                f"The re-ranker in {self.path / RERANKER} is not the one that was judged here. Fit again."
            )
        return found

    def passage_tokens(self) -> float:
        """Estimated tokens of an average passage."""
        if self._passage_tokens is None:
            texts = self.chunks.sample(_SAMPLE)
            self._passage_tokens = sum(map(rough_tokens, texts)) / max(len(texts), 1)
        return self._passage_tokens

    def find(self, ids: Sequence[str]) -> dict[str, Chunk]:
        """The chunks of ids that this build's own search gave. Raises StoreCorrupt where one is not there."""
        found = self.chunks.find(ids)
        if len(found) < len(set(ids)):
            missing = next(id for id in ids if id not in found)
            raise StoreCorrupt(
                f"{self.chunks.path} holds no {missing!r}, which the index holds. Build the retriever again."
            )
        return found

    def score(
        self, query: str, texts: Sequence[str], vectors: Floats | None = None, *, rerank: bool = False
    ) -> tuple[Floats, Floats]:
        """`Retriever.score` in this build, and (n,) the probability that each text answers the query. vectors: (n, d)
        of the texts, as passages, to use instead of encoding."""
        (query,), texts = checked_queries([query]), checked_texts(texts)
        if not texts:
            return np.zeros(0, np.float32), np.zeros(0, np.float32)
        (vector,) = self.query_vectors([query])
        if vectors is None:
            vectors = self.encoder.encode_passages(texts)
        vectors = check_vectors(vectors, self.encoder.dim, "passage vectors")
        with self.lock.shared():
            self.whole()
            first, sure = self.searcher.score_texts(query, vector, texts, vectors)
        second = self.second_stage(Rerank()) if rerank else None
        if second is None:
            return first, sure
        reader, weight, depth = second
        order = np.argsort(-first, kind="stable")
        [read] = reader.logits_of([(query, [texts[at] for at in order[: depth or reader.depth].tolist()])])
        made = np.empty_like(first)
        made[order] = first.mean() + first.std() * with_reranker(first[order], read, weight)
        places = np.sort(sure)[::-1]  # the first place is as sure as it was, unless more is known
        if (reread := self.searcher.confidence.reread) is not None:
            places = reread.of(places, read)
        sure[np.argsort(-made, kind="stable")] = places
        return made, sure

    @property
    def reranks(self) -> bool:
        """Whether a re-ranker shipped with it."""
        return bool((self.manifest.sections.get("rerank") or {}).get("weight"))

    def close(self) -> None:
        """Release files and connections, whoever holds it."""
        with self.lock:
            self.closed = True
            if self._hashes is not None:
                self._hashes.close()
            if self.pefa is not None:
                self.pefa.close()
                self.pefa = None
            self.searcher.index.close()
            self.chunks.close()


class QueryVectors:
    """Queries → (Q, d), from memory where a query was asked a moment ago."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._recent: OrderedDict[str, Floats] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, queries: Sequence[str]) -> Floats:
        with self._lock:
            known = {query: self._recent[query] for query in queries if query in self._recent}
        new = [query for query in dict.fromkeys(queries) if query not in known]
        fresh = dict(zip(new, self._encoder.encode_queries(new), strict=True)) if new else {}
        rows: Floats = np.stack([fresh[query] if query in fresh else known[query] for query in queries])
        with self._lock:
            for query, vector in list(fresh.items())[-_RECENT:]:
                self._recent[query] = vector
                if len(self._recent) > _RECENT:
                    self._recent.popitem(last=False)
        return rows

    def forget(self) -> None:
        """Encode every query anew from now on: for measuring."""
        with self._lock:
            self._recent.clear()


def _model_files(manifest: Manifest) -> dict[str, FileRecord]:
    return {name: record for name, record in manifest.files.items() if name.startswith("model/")}
