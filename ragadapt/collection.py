"""Passages with their texts in any index: what the vector stores of both frameworks are made of.

`Collection` holds texts that its owner adds and deletes, in an index of any kind. `FittedPassages` shows a saved
retriever in the same way, for reading. Both answer with Hits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragadapt.checks import (
    MODES,
    checked_choice,
    checked_k,
    checked_lam,
    checked_list,
    checked_number,
    checked_path,
    checked_queries,
    checked_texts,
)
from ragadapt.errors import FingerprintMismatch, InvalidInput
from ragadapt.index import Filter, VectorIndex, open_index
from ragadapt.index.contract import check_ids, check_vectors
from ragadapt.index.filters import given
from ragadapt.index.rows import Kept
from ragadapt.lexical.ranking import Ranking
from ragadapt.pefa import Feedback, Pefa, named_tenant
from ragadapt.retriever import Retriever
from ragadapt.search.fusion import UNLEARNT_WEIGHT, Background, Floats, Fusion
from ragadapt.search.searcher import Dense, Mode, Plain, Searcher
from ragadapt.threads import SharedLock
from ragadapt.values import Chunk, Hit

if TYPE_CHECKING:
    from ragadapt.encoder import EncoderSpec

log = logging.getLogger(__name__)

TEXT_KEY = "_text"
"""Where a passage's text lies in its payload, beside the metadata."""

DOCUMENT_KEYS = ("_ref_doc_id", "ref_doc_id", "doc_id", "document_id")
LEDGER_FILE = "feedback.sqlite"  # beside an index in a folder
_ABOUT_FILE = "encoder.json"  # beside an index in a folder: what to say when it is opened with another encoder
_LOOKS = 20  # times as long as a look at a shared index took, until the next one
_ROUNDS = 3  # of a search in a shared index that others change meanwhile
_GONE = -1e6  # the dense score of a passage that is not there any more
_DEEPEST = 4  # how much deeper each further look goes when a filter on ids leaves too few


class Passages(Protocol):
    """Passages that can be searched by vector, by words or both."""

    @property
    def dim(self) -> int: ...

    @property
    def fingerprint(self) -> str | None: ...

    @property
    def default_mode(self) -> Mode:
        """How it is searched unless told otherwise."""

    def __len__(self) -> int: ...

    def ids(self, filter: Filter | None = None) -> list[str]: ...

    def get(self, ids: Sequence[str]) -> dict[str, Chunk]:
        """The passages that are there, by id; others are left out."""

    def vectors(self, ids: Sequence[str]) -> Floats:
        """The stored vectors (n, dim), in the order of ids. Raises InvalidInput for one that is missing."""

    def add(
        self, ids: Sequence[str], texts: Sequence[str], vectors: ArrayLike, metadata: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add or replace passages. Raises InvalidInput, DimensionMismatch."""

    def delete(self, ids: Sequence[str]) -> None:
        """Remove passages; missing ids are no error."""

    def search(
        self,
        texts: Sequence[str] | None,
        vectors: ArrayLike | None,
        k: int,
        *,
        mode: Mode | None = None,
        filter: Filter | None = None,
        weight: float | None = None,
        lam: float | None = None,
        tenant: str | None = None,
    ) -> list[list[Hit]]: ...

    def add_feedback(self, query: str, id: str, **values: Any) -> str:
        """This passage answers this query (weight < 0: does not); the key. values: weight, user, tenant, at, key."""

    def withdraw_feedback(
        self,
        key: str | None = None,
        *,
        query: str | None = None,
        id: str | None = None,
        user: str | None = None,
        tenant: str | None = None,
    ) -> int:
        """Take back the feedback that fits all that is given; how many."""

    def save(self, folder: str | Path | None = None) -> None: ...

    def close(self) -> None: ...


class Collection:
    """Texts with metadata in an index, searched by vector, by words, or by both.

    Scores of dense search are cosines: vectors are brought to length 1 on their way in. Words are searched by BM25 over
    all texts, which is built in memory when it is first asked for and after every change.
    """

    default_mode: Mode = "dense"

    def __init__(
        self,
        index: VectorIndex,
        *,
        normalise: bool = True,
        feedback: bool | str | Path = False,
        embed: Callable[[list[str]], ArrayLike] | None = None,
        fingerprint: str | None = None,
        folder: Path | None = None,
        spec: EncoderSpec | None = None,
    ) -> None:
        """feedback: a file for the ledger; True = in the index's folder, else in memory; False = none.

        embed: queries → vectors (n, dim), needed for feedback. fingerprint: of that encoder, None = the index's.
        folder: where the index was opened. spec: of the encoder, written beside an index that is saved.
        """
        self.index = index
        self._normalise = normalise
        self._searcher: Searcher | None = None
        self._stopwords: tuple[int, frozenset[str]] = (0, frozenset())  # and of how many texts they are
        self._shared = bool(getattr(index, "shared", False))
        self._contents: dict[str, str] = {}  # of a shared index: id → hash of the text, when it was looked at
        self._look_again = 0.0
        self._looking = threading.Lock()
        self._lock = SharedLock()  # shared by searches of words; who changes something has it alone
        self._pefa: Pefa | None = None
        self._folder, self._spec = folder, spec
        if feedback is True and folder is not None:
            feedback = folder / LEDGER_FILE
        self._in_memory = feedback is True
        if folder is not None and folder.is_dir():
            self._describe(folder)
        if feedback is not False:
            if embed is None:
                raise InvalidInput("Feedback needs to embed its queries: give the embedding that fills the store.")
            self._pefa = Pefa(
                index,
                lambda texts: self._prepared(np.asarray(embed(list(texts)), np.float32)),
                fingerprint=fingerprint or index.fingerprint or "",
                ledger=None if feedback is True else feedback,
                passages=_ByText(index),
            )

    def __reduce__(self) -> tuple[Any, ...]:
        raise InvalidInput(
            "An open store of texts cannot be pickled or copied: two of them would overwrite each other. Save it, and "
            "open its folder or its Qdrant collection where it is needed."
        )

    @property
    def pefa(self) -> Pefa:
        """The feedback of this collection. Raises InvalidInput where it was opened without."""
        if self._pefa is None:
            raise InvalidInput("This store was opened without feedback. Open it with feedback=True, or name a file.")
        return self._pefa

    @property
    def dim(self) -> int:
        return self.index.dim

    @property
    def fingerprint(self) -> str | None:
        return self.index.fingerprint

    def __len__(self) -> int:
        self._follow()
        return len(self.index)

    def ids(self, filter: Filter | None = None) -> list[str]:
        self._follow()
        return self.index.ids(given(filter))

    def get(self, ids: Sequence[str]) -> dict[str, Chunk]:
        self._follow()
        return self._get(ids)

    def _get(self, ids: Sequence[str]) -> dict[str, Chunk]:
        wanted = list(dict.fromkeys(check_ids(ids)))
        return {id: as_chunk(id, payload) for id, payload in _payloads(self.index, wanted).items()}

    def vectors(self, ids: Sequence[str]) -> Floats:
        return self.index.vectors(ids)

    def add(
        self, ids: Sequence[str], texts: Sequence[str], vectors: ArrayLike, metadata: Sequence[Mapping[str, Any]]
    ) -> None:
        ids, texts, metadata = check_ids(ids), checked_texts(texts), checked_list(metadata, "metadata")
        if not len(ids) == len(texts) == len(metadata):
            raise InvalidInput(f"{len(ids)} ids, {len(texts)} texts, {len(metadata)} metadata: one each is needed.")
        for id, values in zip(ids, metadata):
            if not isinstance(values, Mapping):
                raise InvalidInput(
                    f"The metadata of {id!r} are {type(values).__name__}, a dict is needed; {{}} is none."
                )
            if TEXT_KEY in values:
                raise InvalidInput(
                    f"The metadata of {id!r} have a field {TEXT_KEY!r}, which holds the text here. Rename it."
                )
        payloads = [{**values, TEXT_KEY: text} for text, values in zip(texts, metadata)]
        rows = self._prepared(vectors)
        self._change(ids, lambda: self.index.upsert(ids, rows, payloads))

    def delete(self, ids: Sequence[str]) -> None:
        self._change(ids, lambda: self.index.delete(ids))

    def _change(self, ids: Sequence[str], change: Callable[[], None]) -> None:
        """Make a change to these passages, in the index and in what feedback counts for; all of it or nothing."""
        with self._lock:
            self._follow(changing=True)
            wanted = list(dict.fromkeys(check_ids(ids)))
            there = [id for id, has in zip(wanted, self.index.has(wanted), strict=True) if has]
            before = (there, self.index.vectors(there), self.index.payloads(there)) if there else None
            try:
                change()
                if self._pefa is not None and wanted:
                    self._pefa.passages_changed(wanted)
            except BaseException:
                self._restore(wanted, before)
                raise
            finally:
                self._searcher = None

    def _restore(self, ids: Sequence[str], before: tuple[list[str], Floats, list[dict[str, Any]]] | None) -> None:
        """Put passages back as they were before a change that failed."""
        try:
            known = set(before[0]) if before is not None else set()
            self.index.delete([id for id, has in zip(ids, self.index.has(ids), strict=True) if has and id not in known])
            if before is not None:
                self.index.upsert(*before)
        except Exception as error:  # a server that went away in between: the first error says what happened
            log.error("a change of %d passages failed and could not be undone (%s)", len(ids), error)

    def _follow(self, *, changing: bool = False) -> None:
        """Read a folder anew that another process saved, with everything that was made from it."""
        if isinstance(self.index, Kept) and self.index.saved_elsewhere():
            with self._lock:
                if self.index.follow(changing=changing):
                    self._searcher = None
                    if self._pefa is not None:
                        self._pefa.rebuild()

    def _look(self) -> None:
        """Notice what others changed in a shared index: at once where the number of passages differs, else when looking
        took less than a twentieth of the time since."""
        if self._looked():
            return
        with self._looking:  # which keeps no search waiting, unless something has changed
            if self._looked():
                return
            started = time.monotonic()
            seen = {id: _hash(payload) for id, payload in self.index.contents()}  # type: ignore[attr-defined]
            self._look_again = time.monotonic() + _LOOKS * (time.monotonic() - started)
            if seen == self._contents:
                return
            with self._lock:
                before = self._contents
                changed = {id for id, text in seen.items() if before.get(id) != text} | before.keys() - seen
                self._searcher, self._contents = None, seen
                if self._pefa is not None:
                    self._pefa.passages_changed(changed if before else ())

    def _looked(self) -> bool:
        return time.monotonic() < self._look_again and len(self.index) == len(self._contents)

    def search(
        self,
        texts: Sequence[str] | None,
        vectors: ArrayLike | None,
        k: int,
        *,
        mode: Mode | None = None,
        filter: Filter | None = None,
        weight: float | None = None,
        lam: float | None = None,
        tenant: str | None = None,
    ) -> list[list[Hit]]:
        """For each query up to k hits, best first.

        texts: the Q queries; needed unless mode is "dense". vectors: (Q, dim); needed unless mode is "lexical".
        weight: share of the dense side in hybrid search, None = .4. lam: λ of the feedback, None = as tuned,
        1 = off. tenant: whose feedback counts beside that for all. Raises InvalidInput, InvalidFilter.
        """
        mode = mode or self.default_mode
        rows = None if vectors is None else self._prepared(vectors)
        _check_query(mode, texts, rows)
        k, lam, texts = checked_k(k), checked_lam(lam), None if texts is None else checked_queries(texts, blank=True)
        weight = None if weight is None else checked_number("weight", weight, 0, 1, "1 = dense alone")
        named_tenant(tenant)
        filter = given(filter)
        if mode == "dense":
            assert rows is not None
            self._follow()
            if self._shared and self._pefa is not None:
                self._look()
            if self._pefa is None or lam == 1:
                found = self.index.search(rows, k, filter)
            else:
                found = self._pefa.search(rows, k, filter, lam=lam, tenant=tenant)
            sure = [[None] * len(ids) for ids, _ in found]  # nothing is known of the other passages' scores
        elif not len(self):
            return [[] for _ in texts or ()]
        else:
            assert texts is not None
            fusion = Fusion(weight=UNLEARNT_WEIGHT if weight is None else weight)
            rows = rows if rows is not None else np.zeros((len(texts), self.dim), np.float32)
            for _ in range(_ROUNDS):
                with self._unchanged() as searcher:
                    allowed = None if filter is None else self._mask(searcher, filter)
                    off = self._pefa is None or lam == 1 or mode == "lexical"
                    dense: Dense = Plain(self.index) if off else self.pefa.dense(lam, tenant)
                    both = _Both(dense, self.index, self._contents) if self._shared else dense
                    ranked = searcher.rank(
                        texts, rows, k, mode, filter=filter, allowed=allowed, fusion=fusion, dense=both
                    )
                    found = [(one.ids, one.scores) for one in ranked]
                    sure = [[] if one.confidence is None else one.confidence.tolist() for one in ranked]
                    if not self._shared or not (both.differ or self._differ(found)):  # type: ignore[attr-defined]
                        break
                self._look_again = 0.0  # somebody else changed the collection meanwhile
        chunks = self._get(list(dict.fromkeys(id for ids, _ in found for id in ids)))
        return [
            [
                Hit(chunks[id], float(score), confidence=own)
                for id, score, own in zip(*one, confidence, strict=True)
                if id in chunks
            ]
            for one, confidence in zip(found, sure, strict=True)
        ]

    def save(self, folder: str | Path | None = None) -> None:
        if folder is not None and checked_path(folder, "The store's folder").is_file():
            raise InvalidInput(f"{folder} is a file. Name a folder for the store.")
        self.index.save(folder)
        target = Path(folder) if folder is not None else self._folder
        if target is not None:
            self._describe(target)
        if folder is not None and self._pefa is not None and self._in_memory:
            ledger, beside = self._pefa.ledger.path, Path(folder) / LEDGER_FILE
            with closing(sqlite3.connect(ledger)) as source, closing(sqlite3.connect(beside)) as copy:
                source.backup(copy)

    def _describe(self, folder: Path) -> None:
        if self._spec is not None:
            text = json.dumps(_about(self._spec), indent=2, ensure_ascii=False)
            (folder / _ABOUT_FILE).write_text(text, encoding="utf-8")

    def close(self) -> None:
        if self._pefa is not None:
            self._pefa.close()
        self.index.close()

    def add_feedback(self, query: str, id: str, **values: Any) -> str:
        """This passage answers this query (weight < 0: does not); the key. values: weight, user, tenant, at, key.

        It is about the text that the id has now: under another text it sleeps, until this one is back.
        """
        pefa, found = self.pefa, self.get([id])
        if id not in found:
            raise InvalidInput(f"There is no passage {id!r} in the store. Nothing was kept.")
        tenant, key = named_tenant(values.pop("tenant", None)), values.pop("key", None) or ""
        unknown = values.keys() - {"weight", "user", "at"}
        if unknown:
            raise InvalidInput(
                f"{', '.join(sorted(unknown))}: not known here. Feedback has weight, user, tenant, at, key."
            )
        one = Feedback(query, id, tenant=tenant, key=key, content_hash=found[id].content_hash, **values)
        return pefa.add_many([one])[0]

    def withdraw_feedback(
        self,
        key: str | None = None,
        *,
        query: str | None = None,
        id: str | None = None,
        user: str | None = None,
        tenant: str | None = None,
    ) -> int:
        """Take back the feedback that fits all that is given; how many."""
        return self.pefa.withdraw(key, query=query, id=id, user=user, tenant=tenant)

    def _prepared(self, vectors: ArrayLike) -> Floats:
        rows = check_vectors(vectors, self.dim, "vectors")
        if not self._normalise or not rows.size:
            return rows
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)

    @contextmanager
    def _unchanged(self) -> Iterator[Searcher]:
        """What searches all passages, which nobody changes from here inside the block; others search meanwhile."""
        if self._shared:
            self._look()
        with ExitStack() as held:
            held.enter_context(self._lock.shared())
            searcher = self._searcher
            if searcher is None:
                held.close()
                with self._lock:
                    searcher = self._built()
                    held.enter_context(self._lock.shared())  # before a change can come in between
            yield searcher

    def _built(self) -> Searcher:
        from ragadapt.lexical import LexicalIndex

        with self._lock:
            while self._searcher is None:
                ids, blocks, texts = list[str](), list[Floats](), list[str]()
                for part, vectors in self.index.batches():
                    chunks = self._get(part)
                    there = [at for at, id in enumerate(part) if id in chunks]  # the others went meanwhile
                    ids += [part[at] for at in there]
                    blocks.append(vectors[there])
                    texts += [chunks[part[at]].text for at in there]
                if self._shared:
                    self._contents = {id: _text_hash(text) for id, text in zip(ids, texts, strict=True)}
                background = Background.of(np.concatenate(blocks) if ids else np.zeros((1, self.dim), np.float32))
                lexical = LexicalIndex.build(ids, texts, stopwords=self._left_out(texts))
                self._searcher = Searcher(
                    self.index, lexical, background, Fusion(weight=UNLEARNT_WEIGHT), shared=self._shared
                )
            return self._searcher

    def _left_out(self, texts: Sequence[str]) -> frozenset[str]:
        """The stop words of these texts; their language is looked at again when there are twice or half as many."""
        from ragadapt.lexical.languages import languages_of
        from ragadapt.lexical.stopwords import stopwords_for

        count, _ = self._stopwords
        if not count / 2 < len(texts) < count * 2:
            self._stopwords = (len(texts), stopwords_for(languages_of(texts)))
        return self._stopwords[1]

    def _differ(self, found: Sequence[Ranking]) -> bool:
        """Whether a passage that was found is gone, or has another text than the one that was searched."""
        ids = list(dict.fromkeys(id for ids, _ in found for id in ids))
        chunks = self._get(ids)
        return any(id not in chunks or _text_hash(chunks[id].text) != self._contents.get(id) for id in ids)

    def _mask(self, searcher: Searcher, filter: Filter) -> NDArray[np.bool_]:
        allowed = np.zeros(len(searcher.lexical), np.bool_)
        passing = self.index.ids(filter)
        if self._shared:
            passing = [id for id in passing if id in self._contents]
        allowed[searcher.positions(passing)] = True
        return allowed


def _payloads(index: VectorIndex, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What is kept with those of the ids that are there, while others may be removed."""
    there = [id for id, has in zip(ids, index.has(ids), strict=True) if has]
    try:
        return dict(zip(there, index.payloads(there), strict=True))
    except InvalidInput:  # one went between the two
        found: dict[str, dict[str, Any]] = {}
    for id in there:
        with suppress(InvalidInput):
            found[id] = index.payloads([id])[0]
    return found


class _Both:
    """A dense side kept to the passages that the lexical side has, over an index that others change.

    differ: whether it met one that is on one side alone.
    """

    def __init__(self, dense: Dense, index: VectorIndex, known: Mapping[str, str]) -> None:
        self._dense, self._index, self._known = dense, index, known
        self.scale = dense.scale
        self.differ = False

    def search(self, vectors: Floats, k: int, filter: Filter | None = None) -> list[Ranking]:
        kept: list[Ranking] = []
        for ids, scores in self._dense.search(vectors, k, filter):
            at = [number for number, id in enumerate(ids) if id in self._known]
            self.differ |= len(at) < len(ids)
            kept.append(([ids[number] for number in at], scores[at]))
        return kept

    def scores(self, vector: Floats, ids: Sequence[str]) -> Floats:
        return self._of_those_there(lambda there: self._dense.scores(vector, there), ids, (), _GONE)

    def vectors(self, ids: Sequence[str]) -> Floats:
        return self._of_those_there(self._dense.vectors, ids, (self._index.dim,), 0.0)

    def _of_those_there(
        self, ask: Callable[[list[str]], Floats], ids: Sequence[str], shape: tuple[int, ...], gone: float
    ) -> Floats:
        try:
            return ask(list(ids))
        except InvalidInput:
            self.differ = True
        found = np.full((len(ids), *shape), gone, np.float32)
        for at, id in enumerate(ids):
            try:
                found[at] = ask([id])[0]
            except InvalidInput:  # gone
                continue
        return found


class _ByText:
    """Feedback is about an id as long as it has the text that was meant. Older feedback, which kept no hash: always."""

    def __init__(self, index: VectorIndex) -> None:
        self._index = index

    def resolve(self, feedback: Sequence[Feedback]) -> list[str | None]:
        ids = list(dict.fromkeys(one.chunk_id for one in feedback))
        hashes = {id: as_chunk(id, payload).content_hash for id, payload in _payloads(self._index, ids).items()}
        return [
            one.chunk_id if one.chunk_id in hashes and one.content_hash in ("", hashes[one.chunk_id]) else None
            for one in feedback
        ]


class FittedPassages:
    """A saved retriever, as passages: searched with its own mix, and not changed from here."""

    def __init__(self, retriever: Retriever, default_mode: Mode = "hybrid") -> None:
        self.retriever = retriever
        self.default_mode = default_mode

    @property
    def dim(self) -> int:
        return self.retriever.encoder.dim

    @property
    def fingerprint(self) -> str | None:
        return self.retriever.fingerprint

    def __len__(self) -> int:
        return len(self.retriever)

    def ids(self, filter: Filter | None = None) -> list[str]:
        if given(filter) is not None:
            return self.retriever.passing(filter or {})
        return self.retriever.snapshot().chunks.ids()

    def get(self, ids: Sequence[str]) -> dict[str, Chunk]:
        return self.retriever.snapshot().chunks.find(check_ids(ids))

    def vectors(self, ids: Sequence[str]) -> Floats:
        return self.retriever.snapshot().searcher.index.vectors(ids)

    def add(
        self, ids: Sequence[str], texts: Sequence[str], vectors: ArrayLike, metadata: Sequence[Mapping[str, Any]]
    ) -> None:
        raise self._read_only()

    def delete(self, ids: Sequence[str]) -> None:
        raise self._read_only()

    def search(
        self,
        texts: Sequence[str] | None,
        vectors: ArrayLike | None,
        k: int,
        *,
        mode: Mode | None = None,
        filter: Filter | None = None,
        weight: float | None = None,
        lam: float | None = None,
        tenant: str | None = None,
    ) -> list[list[Hit]]:
        """For each query up to k hits, best first; see Collection.search. weight: only None, the learnt one."""
        mode = mode or self.default_mode
        rows = None if vectors is None else check_vectors(vectors, self.dim, "query vectors")
        _check_query(mode, texts, rows)
        if weight is not None and mode == "hybrid":
            raise InvalidInput("A fitted retriever mixes by the weight that it learnt: leave alpha out.")
        if texts is None:  # dense search reads no text, but asks for one query each
            assert rows is not None
            texts = ["vector"] * len(rows)
        return self.retriever.search_many(
            texts, k, vectors=rows, mode=mode, filter=filter, lam=lam, tenant=tenant, fold="none"
        )

    def save(self, folder: str | Path | None = None) -> None:
        """Nothing to do in place; elsewhere it is copied as a folder. Raises InvalidInput."""
        if folder is not None and Path(folder).resolve() != self.retriever.path.resolve():
            raise InvalidInput(f"A fitted retriever is a folder: copy {self.retriever.path} to {folder}.")

    def close(self) -> None:
        self.retriever.close()

    def add_feedback(self, query: str, id: str, **values: Any) -> str:
        return self.retriever.add_feedback(query, id, **values)

    def withdraw_feedback(
        self,
        key: str | None = None,
        *,
        query: str | None = None,
        id: str | None = None,
        user: str | None = None,
        tenant: str | None = None,
    ) -> int:
        return self.retriever.withdraw_feedback(key, query=query, chunk_id=id, user=user, tenant=tenant)

    def _read_only(self) -> InvalidInput:
        return InvalidInput(
            f"The passages of the retriever in {self.retriever.path} come from `ragadapt fit` and are not changed from "
            "here. Fit again with the new documents, or use a store of your own with this retriever's embeddings."
        )


def only(
    passages: Passages,
    wanted: set[str],
    text: str | None,
    vector: ArrayLike | None,
    k: int,
    **settings: Any,
) -> list[Hit]:
    """The best k of the wanted ids for one query: looks deeper until enough of them are found."""
    depth, total = max(_DEEPEST * k, 64), max(1, len(passages))
    while True:
        depth = min(depth, total)
        texts = None if text is None else [text]
        vectors = None if vector is None else np.asarray(vector, np.float32)[None, :]
        hits = passages.search(texts, vectors, depth, **settings)[0]
        kept = [hit for hit in hits if hit.chunk.id in wanted]
        if len(kept) >= min(k, len(wanted)) or depth == total:
            return kept[:k]
        depth *= _DEEPEST


def diverse_hits(passages: Passages, query: ArrayLike, hits: Sequence[Hit], k: int, balance: float = 0.5) -> list[Hit]:
    """k of the hits of a query vector (d,), chosen as `diversify` does by their stored vectors."""
    if not hits:
        return []
    rows = passages.vectors([hit.chunk.id for hit in hits])
    return [hits[row] for row in diversify(query, rows, k, balance)]


def diversify(query: ArrayLike, vectors: ArrayLike, k: int, balance: float = 0.5) -> list[int]:
    """Rows of vectors (C, d) chosen one by one by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    balance: 1 = relevance to the query (d,) alone, 0 = difference from what was chosen alone. Cosines throughout.
    """
    balance = checked_number("The balance of relevance and diversity", balance, 0, 1)
    rows = np.asarray(vectors, np.float32)
    if not len(rows):
        return []
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    target = np.asarray(query, np.float32)
    relevance = rows @ (target / max(float(np.linalg.norm(target)), 1e-12))  # (C,)
    nearest = np.full(len(rows), -np.inf, np.float32)  # largest cosine with one that was chosen
    chosen = [int(np.argmax(relevance))]
    while len(chosen) < min(k, len(rows)):
        nearest = np.maximum(nearest, rows @ rows[chosen[-1]])
        value = balance * relevance - (1 - balance) * nearest
        value[chosen] = -np.inf
        chosen.append(int(np.argmax(value)))
    return chosen[:k]


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _hash(payload: Mapping[str, Any]) -> str:
    return _text_hash(str(payload.get(TEXT_KEY) or ""))


def as_chunk(id: str, payload: Mapping[str, Any]) -> Chunk:
    """A payload as a passage: its text apart, all other fields as metadata."""
    metadata = {key: value for key, value in payload.items() if key != TEXT_KEY}
    document = next((str(metadata[key]) for key in DOCUMENT_KEYS if metadata.get(key)), id)
    source = metadata.get("source")
    return Chunk(
        id,
        document,
        str(payload.get(TEXT_KEY) or ""),
        metadata=metadata,
        source=source if isinstance(source, str) else "",
    )


def open_collection(
    kind: str | None = None,
    folder: str | Path | None = None,
    *,
    dim: int | None = None,
    fingerprint: str | None = None,
    spec: EncoderSpec | None = None,
    normalise: bool = True,
    feedback: bool | str | Path = False,
    embed: Callable[[list[str]], ArrayLike] | None = None,
    **settings: Any,
) -> Collection:
    """`open_index` for a collection. kind: None = what the folder says, "exact" for a new one.

    spec: of the encoder, if it is one of ours; a folder keeps it to say what differs when another one comes.
    normalise, feedback, embed: see Collection.
    """
    folder = checked_path(folder, "The store's folder") if folder is not None else None
    if kind is None and (folder is None or not (folder / "index.json").is_file()):
        kind = None if settings.get("url") else "exact"
    try:
        index = open_index(kind, folder, dim=dim, fingerprint=fingerprint, **settings)
    except FingerprintMismatch as error:
        differences = _differences(folder, spec)
        if not differences:
            raise
        raise FingerprintMismatch(
            f"The vectors in {folder} were made otherwise than this encoder makes them: {differences}. Open the store "
            "with the encoder that filled it, or fill a new one."
        ) from error
    try:
        return Collection(
            index,
            normalise=normalise,
            feedback=feedback,
            embed=embed,
            fingerprint=fingerprint,
            folder=folder,
            spec=spec,
        )
    except BaseException:
        index.close()
        raise


def _about(spec: EncoderSpec) -> dict[str, Any]:
    return {
        "base model": spec.base,
        "query prompt": spec.query_prompt,
        "passage prompt": spec.passage_prompt,
        "max length": spec.max_length,
        "adapter": spec.adapter.sha256[:12] if spec.adapter else "none",
    }


def _differences(folder: Path | None, spec: EncoderSpec | None) -> str:
    """What differs between the encoder that filled a folder and another one, in words; "" if nothing is known."""
    if folder is None or spec is None:
        return ""
    try:
        stored = json.loads((folder / _ABOUT_FILE).read_text(encoding="utf-8"))
        pairs = [(name, stored.get(name), value) for name, value in _about(spec).items()]
    except (OSError, ValueError, AttributeError):
        return ""
    return "; ".join(f"{name} was {old!r}, is {new!r}" for name, old, new in pairs if old != new)


def _check_query(mode: Mode, texts: Sequence[str] | None, vectors: Floats | None) -> None:
    checked_choice("mode", mode, MODES)
    if mode != "lexical" and vectors is None:
        raise InvalidInput(f"{mode.capitalize()} search needs the query's vector.")
    if mode != "dense" and texts is None:
        raise InvalidInput(f"{mode.capitalize()} search needs the query's text.")
