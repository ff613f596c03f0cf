"""The saved retriever, opened: text in, hits out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ragadapt.checks import (
    MODES,
    checked_choice,
    checked_confidence,
    checked_k,
    checked_lam,
    checked_list,
    checked_path,
    checked_queries,
    checked_text,
    shown,
)
from ragadapt.errors import InvalidInput, RagadaptError
from ragadapt.files import file_state
from ragadapt.index.contract import check_vectors
from ragadapt.index.fields import Field, fields_of
from ragadapt.index.filters import given
from ragadapt.pefa import Feedback, Pefa, checked_feedback, named_tenant
from ragadapt.pefa.passages import StoredPassages
from ragadapt.pefa.state import passing
from ragadapt.queries.seen import mark, read_seen
from ragadapt.search.context import STEP, Expand, Reach, Surroundings, checked_expand, expand_hits, hits_for
from ragadapt.search.diversity import Fold, checked_fold, checked_max_per_document, diverse
from ragadapt.search.fusion import Floats, Fusion
from ragadapt.search.reranking import Rerank, checked_rerank, rerank_all
from ragadapt.search.searcher import Dense, Mask, Mode, Plain, Ranked, Searcher
from ragadapt.snapshot import Snapshot
from ragadapt.store.chunks import SHOWN, ChunkStore
from ragadapt.store.workspace import MANIFEST, QUESTIONS, Manifest, load_store
from ragadapt.text import encodable
from ragadapt.threads import cores, follow_forks
from ragadapt.values import Chunk, Hit, Hits

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder

log = logging.getLogger(__name__)

_HITS = 5  # of a query, where nobody says how many
_FILL = 2  # times as many are looked at to fill what expanded ones leave of a budget
_LOOK_SECONDS = 1.0  # between two looks whether the folder was replaced
# Searches that compute at once; the others wait for a core. Each may take several threads for its products, and many
# such searches keep each other's threads waiting: without this, 32 of them answered a quarter of what one does.
_AT_ONCE = threading.BoundedSemaphore(max(2, cores()))
_INHERITED: list[Snapshot] = []  # of a forked process: what its parent has open


class Retriever:
    """A retriever saved by `ragadapt fit`. Open one with `Retriever.open(folder)`.

    Safe for use from several threads, which search side by side. Feedback counts from the next search on,
    here and in every other process that has the folder open. Where the folder is replaced (`fit`, `refresh`), the next
    call reads the new one; each call sees one build from its start to its end (`snapshot`).

    Pickled or copied it is opened again from its folder, and so it is after a fork. The files are compared with their
    hashes while they are loaded; the first call waits for that to end.
    """

    def __init__(
        self, path: Path, snapshot: Snapshot, device: str, precision: str, tenant_adapters: Path | None = None
    ) -> None:
        self.path = path
        self._current = snapshot
        self._how = device, precision, tenant_adapters
        self._following = threading.Lock()
        self._looked = time.monotonic()
        self._forked = False
        follow_forks(self)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        precision: str = "auto",
        tenant_adapters: str | Path | None = None,
    ) -> Self:
        """Open a folder that `fit` wrote. tenant_adapters: a library, of whose adapters each is for the questions of
        the tenant of its name; the retriever's own model must be a base as it was (fit with method none).

        Raises InvalidInput for a device that is not there, NotARetriever, FormatTooNew, StoreCorrupt, and
        FingerprintMismatch where index and model differ.
        """
        library = None if tenant_adapters is None else checked_path(tenant_adapters, "tenant_adapters").resolve()
        how = device, precision, library
        loaded = load_store(path, lambda opened: Snapshot.load(opened, *how))  # which says what is wrong with the path
        return cls(Path(path).resolve(), loaded, *how)

    from_pretrained = open

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self.path, *self._how)

    def snapshot(self) -> Snapshot:
        """The build that stands in the folder now, to read several things from one and the same build.

        Raises StoreCorrupt where one of its files is damaged.
        """
        if self._forked:
            self._open_in_child()
        self._follow()
        now = self._current
        now.whole()
        return now

    def _fork_lock(self) -> Any:
        return self._current.lock

    def _after_fork(self) -> None:
        """In a forked process: files and locks are not shared with the parent; they are opened again when needed."""
        self._following = threading.Lock()
        self._forked = True

    def _open_in_child(self) -> None:
        with self._following:
            if self._forked and not self._current.closed:
                old = self._current
                _INHERITED.append(old)  # closing the parent's connections here could harm its files
                self._current = load_store(self.path, lambda opened: Snapshot.load(opened, *self._how, old))
            self._forked = False

    @contextmanager
    def _using(self) -> Iterator[Snapshot]:
        """The present build, which nobody closes meanwhile."""
        now = self.snapshot()
        with now.lock.shared():
            now.whole()  # it may have been closed meanwhile
            yield now

    @property
    def manifest(self) -> Manifest:
        return self._current.manifest

    @property
    def encoder(self) -> Encoder:
        return self._current.encoder

    @property
    def searcher(self) -> Searcher:
        return self._current.searcher

    @property
    def chunks(self) -> ChunkStore:
        return self._current.chunks

    @property
    def fingerprint(self) -> str:
        """The encoder's fingerprint: vectors with another one cannot be compared."""
        return self.encoder.fingerprint

    @property
    def fusion(self) -> Fusion:
        """The mix that hybrid search uses."""
        return self.searcher.fusion

    @property
    def rerank_refused(self) -> str:
        """Why the re-ranker that was fitted stays out of the search; "" where it counts, or where there is none."""
        own = self.manifest.sections.get("rerank")
        return f"{own['model']}, {own['reason']}" if own and own["weight"] == 0 else ""

    def __len__(self) -> int:
        return len(self.chunks)

    def close(self) -> None:
        """Release files and connections."""
        self._current.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Searching

    def search(
        self,
        query: str,
        k: int | None = None,
        *,
        mode: Mode = "hybrid",
        filter: Mapping[str, Any] | None = None,
        lam: float | None = None,
        tenant: str | None = None,
        rerank: bool | Rerank = False,
        expand: Reach | int | Expand | None = None,
        fold: Fold = "same",
        max_per_document: int | None = None,
        min_confidence: float | None = None,
    ) -> list[Hit]:
        """The best k chunks, best first. mode: "hybrid" (the learnt fusion), "dense" or "lexical".

        k: None = 5, and with expand as many as suit its budget.
        filter: on the chunks' metadata, e.g. {"lang": "en"} or {"year": {"$gte": 2024}}, and like one of them on id,
        document_id, source and heading where the metadata have no such field. lam: λ of the feedback, None
        = as tuned, 1 = without feedback. tenant: whose feedback counts beside that for all. rerank: True = let the
        re-ranker that was fitted read the best passages; a Rerank says which one and how deep. expand: give each hit
        its "neighbours", "section" or "document" as `Hit.context`, all together within a budget of tokens (2,048; a
        number is another one); hits that touch become one, and what does not fit is left out. fold: passages of the
        same text are one hit, which lists its `copies`; "near" = near-duplicates too, "none" = each by itself.
        max_per_document: hits of one document at most. min_confidence: leave out hits that answer the query with less
        than this probability (`Hit.confidence`). Raises InvalidInput.
        """
        if not isinstance(query, str):
            raise InvalidInput(
                f"query is {type(query).__name__} ({shown(query)}); pass one string, or use search_many for a list."
            )
        return Hits(
            self.search_many(
                [query], k, mode=mode, filter=filter, lam=lam, tenant=tenant, rerank=rerank, expand=expand, fold=fold,
                max_per_document=max_per_document, min_confidence=min_confidence,
            )[0]
        )  # fmt: skip

    def search_many(
        self,
        queries: Sequence[str],
        k: int | None = None,
        *,
        mode: Mode = "hybrid",
        filter: Mapping[str, Any] | None = None,
        vectors: Floats | None = None,
        lam: float | None = None,
        tenant: str | None = None,
        rerank: bool | Rerank = False,
        expand: Reach | int | Expand | None = None,
        fold: Fold = "same",
        max_per_document: int | None = None,
        min_confidence: float | None = None,
    ) -> list[list[Hit]]:
        """`search` for many queries at once, encoded in one batch. vectors: (Q, d) to use instead of encoding."""
        wider = checked_expand(expand)
        queries, count, lam = _checked_search(queries, self.wanted(k, wider), mode, lam, vectors)
        second = checked_rerank(rerank, count, mode)
        fold, most = checked_fold(fold), checked_max_per_document(max_per_document)
        least = checked_confidence(min_confidence)
        if not queries:
            return []
        with self._using() as now, _AT_ONCE:  # in this order: none is taken while the process is forked

            def find(deep: int) -> list[list[Hit]]:
                rankings = self._rank(now, queries, vectors, deep, mode, lam, tenant, filter, second)
                rankings = [ranked.at_least(least) for ranked in rankings]
                chunks = now.find(list(dict.fromkeys(id for ranked in rankings for id in ranked.ids)))
                return [
                    [
                        Hit(chunks[id], float(score), _parts(ranked, at), confidence=_confidence(ranked, at))
                        for at, (id, score) in enumerate(zip(ranked.ids, ranked.scores, strict=True))
                    ]
                    for ranked in rankings
                ]

            if wider is None:
                return diverse(find, count, fold, most)
            found = diverse(find, count if k is not None else _FILL * count, fold, most)
            around = self._around(now, filter)
            return [expand_hits(hits, wider, around, first=count) for hits in found]

    def wanted(self, k: int | None, expand: Reach | int | Expand | None = None) -> int:
        """How many hits a search gives: k, else 5; how many it expands where nobody says, as suits the budget.

        Raises InvalidInput.
        """
        wider = checked_expand(expand)
        if k is not None:
            return checked_k(k)
        return _HITS if wider is None else hits_for(wider, self.snapshot().passage_tokens())

    def expand(
        self,
        hits: Sequence[Hit],
        expand: Reach | int | Expand = "neighbours",
        *,
        filter: Mapping[str, Any] | None = None,
    ) -> list[Hit]:
        """Hits of one query, best first, with what stands around them, as `search` gives them under the same names.

        filter: the search's; what it hides is not given. Raises InvalidInput, InvalidFilter.
        """
        wider = checked_expand(expand)
        if wider is None:
            return list(hits)
        with self._using() as now:
            return expand_hits(hits, wider, self._around(now, filter))

    def beside(
        self, hits: Sequence[Hit], *, filter: Mapping[str, Any] | None = None
    ) -> list[tuple[Chunk | None, Chunk | None]]:
        """(the passage before, the passage behind) of every hit's context, or of its passage, in their document.

        None at the ends of the document and where the filter hides what is there. Raises InvalidFilter.
        """
        with self._using() as now:
            around = self._around(now, filter, step=1)
            found = []
            for hit in hits:
                ids = [hit.chunk.id] if hit.context is None else [hit.context.passages[0], hit.context.passages[-1]]
                ends = now.chunks.find(ids)
                sides = [around.beside(ends[id], back=back) for id, back in ((ids[0], True), (ids[-1], False))]
                found.append((sides[0], sides[1]))
            return found

    def _around(self, now: Snapshot, filter: Any, step: int = STEP) -> Surroundings:
        """What stands around passages, less what the filter hides."""
        if given(filter) is None:
            return Surroundings(now.chunks.neighbours, step=step)
        if not now.searcher.masks:
            asked = self._asked(now, filter)
            return Surroundings(now.chunks.neighbours, lambda ids: passing(now.searcher.index, ids, asked), step=step)
        _, allowed = self._allowed(now, filter)

        def visible(ids: Sequence[str]) -> list[bool]:
            passes: list[bool] = allowed[now.searcher.positions(ids)].tolist()
            return passes

        return Surroundings(now.chunks.neighbours, visible, step=step)

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
        rerank: bool | Rerank = False,
    ) -> list[Ranked]:
        """Chunk ids and scores without the texts. vectors: (Q, d) to use instead of encoding the queries."""
        queries, k, lam = _checked_search(queries, k, mode, lam, vectors)
        second = checked_rerank(rerank, k, mode)
        if not queries:
            return []
        with self._using() as now:
            return self._rank(now, queries, vectors, k, mode, lam, tenant, filter, second)

    def score(self, query: str, texts: Sequence[str], *, rerank: bool = False) -> Floats:
        """(n,) how well each text answers the query, on the scale of hybrid search without the users' feedback.

        The texts need not be in the retriever: its model, mix and word statistics are used. rerank: with its second
        stage. Raises InvalidInput, where it has none too.
        """
        return self.snapshot().score(query, texts, rerank=rerank)[0]

    def _rank(
        self,
        now: Snapshot,
        queries: Sequence[str],
        vectors: Floats | None,
        k: int,
        mode: Mode,
        lam: float | None,
        tenant: str | None,
        filter: Mapping[str, Any] | None = None,
        rerank: Rerank | None = None,
    ) -> list[Ranked]:
        """`rank` in one build, whose lock is shared."""
        second = None if rerank is None else now.second_stage(rerank)
        wanted = k
        if rerank is not None and second is not None:
            reader, weight, fitted = second
            depth = rerank.depth or fitted or reader.depth
            k = max(k, depth)
        if vectors is None:
            vectors = self._encode(now, queries, mode, tenant)
        vectors = check_vectors(vectors, now.encoder.dim, "query vectors")
        if len(vectors) != len(queries):
            raise InvalidInput(f"{len(queries)} queries but {len(vectors)} vectors: one each is needed.")
        asked, allowed = None, None
        if given(filter) is not None and now.searcher.masks:
            asked, allowed = self._allowed(now, filter)
        elif given(filter) is not None:
            asked = self._asked(now, filter)
        with self._with_feedback(now, lam, tenant) as (dense, fusion):
            found = now.searcher.rank(
                queries, vectors, k, mode, filter=asked, allowed=allowed, fusion=fusion, dense=dense
            )
        if rerank is None or second is None:
            return found

        def passages(ids: Sequence[str]) -> dict[str, str]:
            return {id: chunk.passage for id, chunk in now.find(ids).items()}

        reread = None if rerank.model is not None else now.searcher.confidence.reread
        return rerank_all(found, queries, passages, reader, weight, depth, wanted, rerank.milliseconds, reread)

    def _encode(self, now: Snapshot, queries: Sequence[str], mode: Mode, tenant: str | None) -> Floats:
        if mode == "lexical":  # needs no vectors
            return np.zeros((len(queries), now.encoder.dim), dtype=np.float32)
        return now.vectors_of(queries, tenant)

    def adapts_for(self, tenant: str | None) -> bool:
        """Whether a tenant's questions go through an adapter of its own."""
        tenants = self._current.tenants
        return tenants is not None and tenant is not None and tenant in tenants

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
        if not isinstance(query, str) or not query.strip():
            raise InvalidInput(f"query is {shown(query)}: feedback says which passage answers a query.")
        query, key = encodable(query), None if key is None else checked_text("key", key)
        with self._using() as now:
            chunk, level = now.passages().locate(query, chunk_id, document_id, source, quote)
            one = Feedback(query, chunk.id, weight, user, named_tenant(tenant), at, key or "", chunk.content_hash,
                           chunk.document_id, level, quote or "")  # fmt: skip
            return self._add_feedback(now, [one])[0]

    def add_feedback_many(self, feedback: Sequence[Feedback]) -> list[str]:
        """Several at once, in one transaction: all of it or nothing. The keys."""
        with self._using() as now:
            return self._add_feedback(now, feedback)

    def _add_feedback(self, now: Snapshot, feedback: Sequence[Feedback]) -> list[str]:
        checked = [one.checked() for one in checked_feedback(feedback)]
        return now.feedback(create=True).add_many(
            checked, list(now.query_vectors([one.query for one in checked])) if checked else None
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
        with self._using() as now:
            return now.feedback(create=True).withdraw(key, query=query, id=chunk_id, user=user, tenant=tenant)

    def remember(self, queries: Sequence[str]) -> None:
        """Encode queries in one batch, so that feedback on them, one by one, needs no encoding."""
        asked = [encodable(q) for q in checked_list(queries, "queries") if isinstance(q, str) and q.strip()]
        if asked:
            self.snapshot().query_vectors(asked)

    def locate(self, query: str, **where: str | None) -> Feedback:
        """Feedback on what is named as in `add_feedback`, not added yet. Raises InvalidInput."""
        (query,) = checked_queries([query])
        with self._using() as now:
            chunk, level = now.passages().locate(query, **where)
            return Feedback(query, chunk.id, content_hash=chunk.content_hash, document_id=chunk.document_id,
                            level=level, quote=where.get("quote") or "")  # fmt: skip

    def feedback(self, *, create: bool = False) -> Pefa:
        """The retriever's feedback. Where there is none yet, create makes its ledger; else InvalidInput is raised."""
        return self.snapshot().feedback(create=create)

    @property
    def has_feedback(self) -> bool:
        """Whether there is a ledger."""
        return self._current.has_feedback

    def passages(self) -> StoredPassages:
        """Today's chunks, as feedback names them."""
        return self.snapshot().passages()

    @contextmanager
    def _with_feedback(
        self, now: Snapshot, lam: float | None, tenant: str | None
    ) -> Iterator[tuple[Dense | None, Fusion | None]]:
        """The dense side and the fusion of a search; None = the searcher's own. No feedback comes in meanwhile."""
        named_tenant(tenant)
        if lam == 1 or not now.has_feedback:
            yield None, None
            return
        pefa = now.feedback()
        with pefa.reading(lam, tenant) as dense:
            if isinstance(dense, Plain):
                yield None, None
                return
            weight = pefa.config.fusion_weight
            yield dense, None if weight is None else replace(now.searcher.fusion, weight=weight)

    def _follow(self) -> None:
        """Read the folder anew if another build stands there. Where that fails the old one goes on.

        One caller reads, the others go on with the old build meanwhile.
        """
        if time.monotonic() - self._looked < _LOOK_SECONDS or not self._following.acquire(blocking=False):
            return
        try:
            self._looked = time.monotonic()
            old, seen = self._current, file_state(self.path / MANIFEST)
            if old.closed or seen is None or seen == old.seen:
                return
            try:
                fresh = load_store(self.path, lambda opened: Snapshot.load(opened, *self._how, old))
                fresh.whole()
                self._current = fresh
            except RagadaptError as error:
                log.warning(
                    "%s was replaced and the new folder cannot be read (%s); the old one goes on", self.path, error
                )
                old.seen = seen
        finally:
            self._following.release()

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
        rerank: bool | Rerank = False,
    ) -> dict[str, dict[str, float]]:
        """A run as TREC tools read it: query id → id → score; documents score as their best chunk.

        level: "document" or "chunk". k ids per query where the search finds so many. lam, tenant, rerank: as for
        `search`, but k may be larger than the depth: what was not read follows in the order of the first stage.
        """
        checked_choice("level", level, ("document", "chunk"))
        checked_choice("mode", mode, MODES)
        if not isinstance(queries, Mapping):
            raise InvalidInput(f"queries is {type(queries).__name__}; a dict of query id → query is needed.")
        ids, texts = list(queries), checked_queries(queries.values())
        k, lam = checked_k(k), checked_lam(lam)
        second = checked_rerank(rerank, 1, mode)
        if not ids:
            return {}
        return self._run(self.snapshot(), ids, texts, k, mode, level, lam, tenant, second)

    def _run(
        self,
        now: Snapshot,
        ids: Sequence[str],
        texts: Sequence[str],
        k: int,
        mode: Mode,
        level: str,
        lam: float | None,
        tenant: str | None,
        rerank: Rerank | None = None,
    ) -> dict[str, dict[str, float]]:
        """`run` in one build."""
        found: dict[str, dict[str, float]] = {}
        with now.lock.shared():
            count = len(now.chunks)
            documents = 0 if level == "chunk" else len(set(now.document_of()))
            vectors = self._encode(now, texts, mode, tenant)
            deep = max(k if level == "chunk" else min(count, 4 * k), 1)
            short = list(range(len(ids)))
            while short:
                asked = [texts[at] for at in short]
                rankings = self._rank(now, asked, vectors[short], deep, mode, lam, tenant, rerank=rerank)
                for at, ranked in zip(short, rankings, strict=True):
                    found[ids[at]] = self._best(now, ranked, k, level)
                if level == "chunk" or deep >= count:
                    break
                # Many chunks of one document may stand above the next document: look deeper where that was so.
                wanted = min(k, documents)
                short = [
                    at
                    for at, ranked in zip(short, rankings, strict=True)
                    if len(found[ids[at]]) < wanted and len(ranked.ids) >= deep
                ]
                deep = min(count, 2 * deep)
        return found

    def evaluate(
        self,
        queries: str | Path,
        qrels: str | Path | None = None,
        *,
        modes: Sequence[Mode] = ("hybrid", "dense", "lexical"),
        lam: float | None = None,
        tenant: str | None = None,
        rerank: bool | Rerank = False,
    ) -> dict[str, dict[str, float]]:
        """Mode → metric → mean over the judged queries; "reranked" is hybrid search with its second stage.

        queries and qrels: as for `fit --queries --qrels`. Labels that name documents are judged by document; chunk
        labels and quotes by chunk, quotes with evidence recall@5 and @10 besides: over all questions with quotes
        ("evidence questions"), where quotes that no passage holds ("quotes not found") count as missed. Where some are,
        "labels left out" counts what names nothing here or cannot be read, "lines not read" the latter alone, and
        "questions it learnt from" those that flatter it. lam, tenant, rerank: as for `search`. Raises InvalidLabels.
        """
        from ragadapt.evaluation import evaluate
        from ragadapt.queries import evidence_recall, load_labels

        now = self.snapshot()
        chunks = list(now.chunks)
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
        asked = dict(zip(asked, checked_queries(asked.values()), strict=True))
        lam = checked_lam(lam)
        learnt = self.learnt_from(asked.values())

        second = checked_rerank(rerank, 1, "hybrid")
        systems: list[tuple[str, Mode, Rerank | None]] = [(mode, mode, None) for mode in modes]
        if second is not None:
            systems.append(("reranked", "hybrid", second))

        def run(
            texts: Mapping[str, str], k: int, mode: Mode, level: str, stage: Rerank | None
        ) -> dict[str, dict[str, float]]:
            if not texts:
                return {}
            return self._run(now, list(texts), list(texts.values()), k, mode, level, lam, tenant, stage)

        quoted = {id: text for id, text in asked.items() if id in labels.evidence}
        results: dict[str, dict[str, float]] = {}
        for mode in modes:
            checked_choice("mode", mode, MODES)
        for system, mode, stage in systems:
            found_ids = run(asked, 100, mode, "document" if whole else "chunk", stage)
            results[system] = dict(evaluate(found_ids, judged).mean)
            if labels.evidence:
                by_chunk = run(quoted, 10, mode, "chunk", stage) if whole else found_ids
                for k in (5, 10):
                    found = [
                        evidence_recall([by_id[id] for id in list(by_chunk.get(query, ()))[:k]], quotes, k)
                        for query, quotes in labels.evidence.items()
                    ]
                    results[system][f"evidence recall@{k}"] = float(np.mean(found))
                results[system]["evidence questions"] = len(labels.evidence)
                results[system]["quotes not found"] = labels.quotes_not_found
            for name, count in (
                ("labels left out", len(labels.unmatched)),
                ("lines not read", labels.unread),
                ("questions it learnt from", learnt),
            ):
                if count:
                    results[system][name] = count
        return results

    def learnt_from(self, questions: Iterable[str]) -> int:
        """How many of the questions it was trained on: what is measured on them flatters it. Raises StoreCorrupt."""
        seen = read_seen(self.path / "report" / QUESTIONS) or frozenset()
        return sum(mark(question) in seen for question in questions)

    def _best(self, now: Snapshot, ranked: Ranked, k: int, level: str) -> dict[str, float]:
        if level == "chunk":
            return {id: float(score) for id, score in zip(ranked.ids, ranked.scores, strict=True)}
        document_of = now.document_of()
        best: dict[str, float] = {}
        for position, score in zip(now.searcher.positions(ranked.ids), ranked.scores, strict=True):
            best.setdefault(document_of[position], float(score))
            if len(best) == k:
                break
        return best

    def passing(self, filter: Mapping[str, Any]) -> list[str]:
        """The ids of the chunks that pass a filter, in the order of the chunks. Raises InvalidFilter."""
        with self._using() as now:
            _, allowed = self._allowed(now, filter)
            return now.searcher.ids_of(np.flatnonzero(allowed))

    def fields(self) -> list[Field]:
        """The fields that a filter may name, with their types and examples: those of the metadata, then what every
        result shows. `ragadapt.index.fields.typed` brings a filter's values to these types."""
        with self._using() as now:
            found = fields_of(payload for _, payload in now.chunks.shown())
        return sorted(found, key=lambda field: field.name in SHOWN)

    def _asked(self, now: Snapshot, filter: Any) -> Any:
        """The filter as the index is asked, where it filters words and vectors alike."""
        return now.filters.asked(filter) if isinstance(filter, Mapping) else filter

    def _allowed(self, now: Snapshot, filter: Any) -> tuple[Any, Mask]:
        """The filter as the index is asked, and (N,) the chunks that pass."""
        if isinstance(filter, Mapping):
            return now.filters.resolve(filter)
        mask = np.zeros(
            len(now.searcher.lexical), np.bool_
        )  # the index engine's own: only the engine knows what passes
        mask[now.searcher.positions(now.searcher.index.ids(filter))] = True
        return filter, mask


def _parts(ranked: Ranked, at: int) -> dict[str, float]:
    """The raw scores of one hit; without the re-ranker's where it did not read that passage."""
    parts = {name: float(values[at]) for name, values in ranked.parts.items()}
    if np.isnan(parts.get("rerank", 0.0)):
        del parts["rerank"]
    return parts


def _confidence(ranked: Ranked, at: int) -> float | None:
    return None if ranked.confidence is None else float(ranked.confidence[at])


def _reopen(
    kind: type[Retriever], path: Path, device: str, precision: str, tenant_adapters: Path | None = None
) -> Retriever:
    return kind.open(path, device=device, precision=precision, tenant_adapters=tenant_adapters)


def _checked_search(
    queries: Sequence[str], k: int, mode: Mode, lam: float | None, vectors: Floats | None
) -> tuple[list[str], int, float | None]:
    """Queries, k and lam as the inside wants them; the words may be missing where the vector is given."""
    checked_choice("mode", mode, MODES)
    blank = vectors is not None and mode != "lexical"
    return checked_queries(queries, blank=blank), checked_k(k), checked_lam(lam)
