"""Passages with their texts in any index: what the vector stores of both frameworks are made of.

`Collection` holds texts that its owner adds and deletes, in an index of any kind. `FittedPassages` shows a saved
retriever in the same way, for reading. Both answer with Hits.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragadapt.errors import FingerprintMismatch, InvalidInput
from ragadapt.fusion import Background, Floats, Fusion
from ragadapt.index import Filter, VectorIndex, open_index
from ragadapt.index.contract import check_ids
from ragadapt.pefa import Pefa
from ragadapt.retriever import Retriever
from ragadapt.search import Mode, Searcher
from ragadapt.values import Chunk, Hit

if TYPE_CHECKING:
    from ragadapt.encoder import EncoderSpec

TEXT_KEY = "_text"
"""Where a passage's text lies in its payload, beside the metadata."""

DOCUMENT_KEYS = ("ref_doc_id", "doc_id", "document_id")
LEDGER_FILE = "feedback.sqlite"  # beside an index in a folder
_ABOUT_FILE = "encoder.json"  # beside an index in a folder: what to say when it is opened with another encoder
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
        self._lock = threading.RLock()
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
        return len(self.index)

    def ids(self, filter: Filter | None = None) -> list[str]:
        return self.index.ids(filter or None)

    def get(self, ids: Sequence[str]) -> dict[str, Chunk]:
        wanted = list(dict.fromkeys(check_ids(ids)))
        there = [id for id, has in zip(wanted, self.index.has(wanted)) if has]
        return {id: as_chunk(id, payload) for id, payload in zip(there, self.index.payloads(there))}

    def vectors(self, ids: Sequence[str]) -> Floats:
        return self.index.vectors(ids)

    def add(
        self, ids: Sequence[str], texts: Sequence[str], vectors: ArrayLike, metadata: Sequence[Mapping[str, Any]]
    ) -> None:
        if not len(ids) == len(texts) == len(metadata):
            raise InvalidInput(f"{len(ids)} ids, {len(texts)} texts, {len(metadata)} metadata: one each is needed.")
        for id, text, values in zip(ids, texts, metadata):
            if not isinstance(text, str):
                raise InvalidInput(f"The text of {id!r} is {type(text).__name__}, a str is needed.")
            if TEXT_KEY in values:
                raise InvalidInput(
                    f"The metadata of {id!r} have a field {TEXT_KEY!r}, which holds the text here. Rename it."
                )
        payloads = [{**values, TEXT_KEY: text} for text, values in zip(texts, metadata)]
        with self._lock:
            self.index.upsert(ids, self._prepared(vectors), payloads)
            self._changed(ids)

    def delete(self, ids: Sequence[str]) -> None:
        with self._lock:
            self.index.delete(ids)
            self._changed(ids)

    def _changed(self, ids: Sequence[str]) -> None:
        self._searcher = None
        if self._pefa is not None and ids:
            self._pefa.passages_changed(ids)

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
        weight: share of the dense side in hybrid search, None = one half. lam: λ of the feedback, None = as tuned,
        1 = off. tenant: whose feedback counts beside that for all. Raises InvalidInput, InvalidFilter.
        """
        mode = mode or self.default_mode
        rows = None if vectors is None else self._prepared(vectors)
        _check_query(mode, texts, rows)
        filter = filter or None
        if mode == "dense":
            assert rows is not None
            if self._pefa is None or lam == 1:
                found = self.index.search(rows, k, filter)
            else:
                found = self._pefa.search(rows, k, filter, lam=lam, tenant=tenant or "")
        elif not len(self):
            return [[] for _ in texts or ()]
        else:
            assert texts is not None
            fusion = Fusion() if weight is None else Fusion(weight=weight)
            rows = rows if rows is not None else np.zeros((len(texts), self.dim), np.float32)
            with self._lock:
                searcher = self._built()
                allowed = None if filter is None else self._mask(searcher, filter)
                off = self._pefa is None or lam == 1 or mode == "lexical"
                dense = None if off else self.pefa.dense(lam, tenant or "")
                ranked = searcher.rank(texts, rows, k, mode, filter=filter, allowed=allowed, fusion=fusion, dense=dense)
            found = [(one.ids, one.scores) for one in ranked]
        chunks = self.get(list(dict.fromkeys(id for ids, _ in found for id in ids)))
        return [[Hit(chunks[id], float(score)) for id, score in zip(*one) if id in chunks] for one in found]

    def save(self, folder: str | Path | None = None) -> None:
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
        """This passage answers this query (weight < 0: does not); the key. values: weight, user, tenant, at, key."""
        return self.pefa.add(query, id, **values)

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
        rows = np.asarray(vectors, np.float32)
        if not self._normalise or rows.ndim != 2 or not rows.size:
            return rows
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)

    def _built(self) -> Searcher:
        from ragadapt.lexical import LexicalIndex

        with self._lock:
            if self._searcher is None:
                ids, blocks, texts = list[str](), list[Floats](), list[str]()
                for part, vectors in self.index.batches():
                    ids += part
                    blocks.append(vectors)
                    texts += [str(payload.get(TEXT_KEY) or "") for payload in self.index.payloads(part)]
                self._searcher = Searcher(
                    self.index, LexicalIndex.build(ids, texts), Background.of(np.concatenate(blocks)), Fusion()
                )
            return self._searcher

    def _mask(self, searcher: Searcher, filter: Filter) -> NDArray[np.bool_]:
        allowed = np.zeros(len(self), np.bool_)
        allowed[searcher.positions(self.index.ids(filter))] = True
        return allowed


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
        now = self.retriever.snapshot()
        return now.searcher.index.ids(filter) if filter else now.chunks.ids()

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
        rows = None if vectors is None else np.asarray(vectors, np.float32)
        _check_query(mode, texts, rows)
        if weight is not None and mode == "hybrid":
            raise InvalidInput("A fitted retriever mixes by the weight that it learnt: leave alpha out.")
        if texts is None:  # dense search reads no text, but asks for one query each
            assert rows is not None
            texts = ["vector"] * len(rows)
        return self.retriever.search_many(texts, k, vectors=rows, mode=mode, filter=filter, lam=lam, tenant=tenant)

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


def diversify(query: ArrayLike, vectors: ArrayLike, k: int, balance: float = 0.5) -> list[int]:
    """Rows of vectors (C, d) chosen one by one by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    balance: 1 = relevance to the query (d,) alone, 0 = difference from what was chosen alone. Cosines throughout.
    """
    if not 0 <= balance <= 1:
        raise InvalidInput(f"The balance of relevance and diversity is {balance}: it lies between 0 and 1.")
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
    folder = Path(folder) if folder is not None else None
    if kind is None and (folder is None or not (folder / "index.json").is_file()):
        kind = "qdrant" if settings.get("url") else "exact"
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
    if mode not in ("dense", "lexical", "hybrid"):
        raise InvalidInput(f"mode = {mode!r}: it is 'dense', 'lexical' or 'hybrid'.")
    if mode != "lexical" and vectors is None:
        raise InvalidInput(f"{mode.capitalize()} search needs the query's vector.")
    if mode != "dense" and texts is None:
        raise InvalidInput(f"{mode.capitalize()} search needs the query's text.")
