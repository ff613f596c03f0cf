"""BM25 over all passages: Lucene's variant, k1 1.2, b 0.75, on bm25s, memory-mapped.

score(q, d) = Σ_{t ∈ q} idf(t) · tf / (tf + k1·(1 − b + b·|d|/avg|d|)),  idf(t) = ln(1 + (N−df+½)/(df+½))
(Kamphuis et al., ECIR 2020, "Lucene accurate"; |d| counts word positions, so a compound counts once).
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ragadapt.errors import FormatTooNew, IndexCorrupt, InvalidInput, reason_of
from ragadapt.lexical.ranking import Picked, Ranking, best_first, bm25s, moments
from ragadapt.lexical.terms import PassageWords, TermStatistics, WordReader
from ragadapt.lexical.tokens import Word, default_stopwords, word_analyser, words
from ragadapt.profiling import work
from ragadapt.values import Progress, no_progress

FORMAT = 2  # 1 had no list of stop words of its own
BLOCK_BYTES = 64_000_000  # of one dense block of scores
_BLOCK_TOKENS = 2_000_000  # tokens counted, or postings weighed, at a time while building: bounds memory
_REMEMBERED = 250_000  # words whose tokens are kept at hand while building; the rest are analysed again


class LexicalIndex(WordReader):
    """BM25 scores of any text against all documents. Make one with `build` or `open`.

    Positions are those of `ids()`; they change with `update`. Scores are ≥ 0, 0 where no token is shared.
    """

    def __init__(
        self, ids: list[str], engine: Any, frequencies: NDArray[np.uint16], lengths: NDArray[np.float32],
        settings: dict[str, Any],
    ) -> None:  # fmt: skip
        self._ids = ids
        self._engine = engine  # bm25s.BM25: eager scores by token (CSC), vocabulary
        self._frequencies = frequencies  # (postings,) tf, aligned with the engine's columns: what an update needs
        self._lengths = lengths  # (N,) word positions
        self._settings = settings
        self._analyse = word_analyser(settings["language"], _stopwords(settings))
        self._positions: dict[str, int] | None = None
        self._folder: Path | None = None

    @classmethod
    def build(
        cls,
        ids: Sequence[str],
        texts: Sequence[str],
        *,
        headings: Sequence[str] | None = None,
        heading_weight: int = 2,
        language: str = "english",
        stopwords: frozenset[str] | None = None,
        k1: float = 1.2,
        b: float = 0.75,
        progress: Progress = no_progress,
    ) -> Self:
        """Index texts under ids. headings: one per text, counted heading_weight times beside it
        (2 raised nDCG@10 on all test collections that have titles: docs/decisions.md); don't repeat them in texts.
        Texts and headings are read once, in order, and none is kept.

        language and stopwords: as in `tokenise`; the index keeps them, and queries are read as its texts were. Raises
        InvalidInput for duplicate ids or unequal lengths.
        """
        if heading_weight < 0:
            raise InvalidInput(f"heading_weight is {heading_weight}; it counts repetitions, so it must be 0 or more.")
        settings = {
            "format": FORMAT, "language": language, "k1": float(k1), "b": float(b),
            "heading_weight": int(heading_weight),
            "stopwords": sorted(default_stopwords(language) if stopwords is None else stopwords),
        }  # fmt: skip
        empty = cls([], None, np.empty(0, np.uint16), np.empty(0, np.float32), settings)
        empty.close()  # which makes the engine of an index of nothing
        empty.update(ids, texts, headings=headings, progress=progress)
        return empty

    def __len__(self) -> int:
        return len(self._ids)

    def _frequency(self, token: str) -> int:
        at, columns = self._engine.vocab_dict.get(token), self._engine.scores["indptr"]
        return 0 if at is None else int(columns[at + 1] - columns[at])

    def _mean_length(self) -> float:
        return float(self._lengths.mean()) if len(self) else 0.0

    def ids(self) -> list[str]:
        """The ids by position."""
        return list(self._ids)

    def share_ids_with(self, share: Callable[[list[str], Callable[[], dict[str, int]]], None]) -> None:
        """Let another part of a retriever use the list of ids, and their positions, in the place of its own. An
        `update` makes new ones here."""
        ids = self._ids
        share(ids, lambda: self._table() if self._ids is ids else {id_: at for at, id_ in enumerate(ids)})

    def positions(self, ids: Iterable[str]) -> NDArray[np.int64]:
        """The position of each id. Raises InvalidInput for an unknown one."""
        table = self._table()
        try:
            return np.array(list(map(table.__getitem__, ids)), np.int64)
        except KeyError as error:
            raise InvalidInput(f"The lexical index holds no {error.args[0]!r}.") from error

    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Dense scores (Q, N) over all documents. For many queries use `score_blocks`."""
        rows = np.zeros((len(queries), len(self)), np.float32)
        for row, tokens in zip(rows, self._query_tokens(queries)):
            if tokens:
                row[:] = self._engine.get_scores_from_ids(tokens)
        return rows

    def score_blocks(
        self, queries: Sequence[str], block_bytes: int = BLOCK_BYTES
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """(number of the first query, dense scores (B, N)) in blocks of about block_bytes."""
        size = max(1, block_bytes // (4 * max(1, len(self))))
        for start in range(0, len(queries), size):
            piece = queries[start : start + size]
            with work("lexical search", len(piece)):
                scores = self.scores(piece)
            yield start, scores

    def scores_of(self, query: str, positions: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """The scores of one query for chosen positions (n,)."""
        chosen: NDArray[np.float32] = self.scores([query])[0, np.asarray(positions, np.int64)]
        return chosen

    def search(self, queries: Sequence[str], k: int, allowed: NDArray[np.bool_] | None = None) -> list[Ranking]:
        """Per query up to k (ids, scores), best first, ties by id; documents that share no token: left out.

        allowed: a mask (N,) of the documents that may be found; None = all.
        """
        return self.search_with_moments(queries, k, allowed)[0]

    def search_with_moments(
        self, queries: Sequence[str], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[list[Ranking], NDArray[np.float32], NDArray[np.float32]]:
        """`search`, and per query the mean (Q,) and standard deviation (Q,) of its scores over all documents.

        Zeros count, and so do documents that are not allowed: z-scores don't depend on the filter.
        """
        if allowed is not None and allowed.shape != (len(self),):
            raise InvalidInput(f"The mask has shape {allowed.shape}; the index holds {len(self)} documents.")
        rankings: list[Ranking] = []
        means, deviations = np.zeros(len(queries), np.float32), np.zeros(len(queries), np.float32)
        for start, block in self.score_blocks(queries):
            stop = start + len(block)
            means[start:stop], deviations[start:stop] = moments(block)
            passing = np.flatnonzero(allowed) if allowed is not None and _passes_few(allowed) else None
            for row in block:
                if passing is not None:
                    found = passing[row[passing] > 0]
                else:
                    found = np.flatnonzero(row > 0 if allowed is None else (row > 0) & allowed)
                rankings.append(best_first(row[found], k, Picked(self._ids, found)))
        return rankings, means, deviations

    def moments(self, queries: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Per query mean and standard deviation (Q,) of its scores over all documents, zeros included."""
        return self.search_with_moments(queries, 0)[1:]

    def update(
        self,
        ids: Sequence[str] = (),
        texts: Sequence[str] = (),
        *,
        headings: Sequence[str] | None = None,
        remove: Iterable[str] = (),
        progress: Progress = no_progress,
    ) -> None:
        """Remove some documents (unknown ids are no error), add or replace others; kept ones stay in front.

        Only the new texts are tokenised, but every score changes with the corpus statistics: the cost grows
        with the whole index, about a second per 100,000 passages. Collect changes into one call.
        """
        ids = _checked(ids, texts, headings)
        gone = set(remove)
        if self._ids:
            gone.update(ids)
        kept = np.array([id_ not in gone for id_ in self._ids], np.bool_)
        kept_ids = [id_ for id_ in self._ids if id_ not in gone]
        del gone
        vocabulary = {token: number for token, number in self._engine.vocab_dict.items() if token}

        added, lengths = _count(
            texts, headings, self._analyse, self._settings["heading_weight"], vocabulary, first=len(kept_ids),
            progress=progress,
        )  # fmt: skip
        lengths = np.concatenate([self._lengths[kept], lengths])
        df, documents, frequencies = _merged(len(vocabulary), lambda: self._postings(kept), added)
        self._engine = self._make_engine(vocabulary, df, documents, frequencies, lengths)
        self._frequencies = np.minimum(frequencies, np.iinfo(np.uint16).max).astype(np.uint16, copy=False)
        self._lengths = lengths
        self._ids = kept_ids + ids
        self._positions = None
        self._folder = None

    def save(self, folder: str | Path) -> None:
        """Write the index into a folder, made if missing."""
        folder = Path(folder)
        if self._folder is not None and self._folder == folder.resolve():
            self._load_into_memory()  # files that are mapped cannot be overwritten
        folder.mkdir(parents=True, exist_ok=True)
        self._engine.save(folder, show_progress=False)
        np.save(folder / "frequencies.npy", self._frequencies, allow_pickle=False)
        np.save(folder / "lengths.npy", self._lengths, allow_pickle=False)
        (folder / "ids.json").write_text(json.dumps(self._ids, ensure_ascii=False), encoding="utf-8")
        (folder / "lexical.json").write_text(json.dumps(self._settings, indent=2), encoding="utf-8")

    @classmethod
    def open(cls, folder: str | Path, mmap: bool = True) -> Self:
        """Open a saved index; with mmap, scores stay on disk and are read as needed.

        Raises IndexCorrupt if files are missing, cut short or don't fit together; FormatTooNew.
        """
        folder = Path(folder)
        mode: Any = "r" if mmap else None
        try:
            settings = json.loads((folder / "lexical.json").read_text(encoding="utf-8"))
            if settings["format"] > FORMAT:
                raise FormatTooNew(
                    f"The lexical index in {folder} has format {settings['format']}, this ragadapt reads "
                    f"up to {FORMAT}. Upgrade with: pip install -U ragadapt"
                )
            ids = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
            engine = bm25s().BM25.load(folder, mmap=mmap, allow_pickle=False)
            frequencies = np.load(folder / "frequencies.npy", mmap_mode=mode, allow_pickle=False)
            lengths = np.load(folder / "lengths.npy", mmap_mode=mode, allow_pickle=False)
            for name in ("data", "indices", "indptr"):
                engine.scores[name] = np.asarray(engine.scores[name])  # still mapped, but cheap to slice
            postings = int(engine.scores["indptr"][-1])
            sizes = {len(engine.scores["data"]), len(engine.scores["indices"]), len(frequencies)}
            if sizes != {postings} or not len(ids) == len(lengths) == int(engine.scores["num_docs"]):
                raise ValueError("the files don't belong together")
        except FormatTooNew:
            raise
        except Exception as error:  # numpy, bm25s and JSON have many of their own for damage
            raise IndexCorrupt(
                f"The lexical index in {folder} cannot be read ({reason_of(error)}). "
                "Rebuild it with: ragadapt index RETRIEVER --rebuild"
            ) from error
        index = cls(ids, engine, frequencies, lengths, settings)
        index._folder = folder.resolve() if mmap else None
        return index

    def close(self) -> None:
        """Let go of the mapped files. The index is empty afterwards."""
        self._frequencies, self._lengths = np.empty(0, np.uint16), np.empty(0, np.float32)
        none = np.empty(0, np.int32)
        self._engine = self._make_engine({}, none, none, self._frequencies, self._lengths)
        self._ids, self._positions, self._folder = [], None, None

    def statistics(self) -> tuple[TermStatistics, PassageWords]:
        """What an engine needs that keeps the passages' weights itself: what is known by term, and the weights of all
        passages, in the order of `ids()`."""
        tokens = sorted(self._engine.vocab_dict, key=self._engine.vocab_dict.__getitem__)
        tokens = [token for token in tokens if token]  # bm25s may add an empty one, behind the last column
        # The weights are held by nobody else, so that they can go when they are copied in another order.
        return TermStatistics.of(self._settings, tokens, self._weights(), np.asarray(self._lengths), self._analyse)

    def _weights(self) -> Any:
        """(N, V) what each passage's terms weigh, a scipy.sparse CSC matrix."""
        from scipy.sparse import csc_matrix

        scores, settings = self._engine.scores, self._settings
        k1, b = settings["k1"], settings["b"]
        saturation = k1 * (1 - b + b * np.asarray(self._lengths) / (self._mean_length() or 1.0))
        documents, weights = np.asarray(scores["indices"]), np.empty(len(self._frequencies), np.float32)
        for start in range(0, len(weights), _BLOCK_TOKENS):
            part = slice(start, start + _BLOCK_TOKENS)
            frequencies = np.asarray(self._frequencies[part], np.float64)
            weights[part] = frequencies / (frequencies + saturation[documents[part]])
        columns = np.asarray(scores["indptr"])
        return csc_matrix((weights, documents, columns), shape=(len(self), len(columns) - 1))

    def _table(self) -> dict[str, int]:
        if self._positions is None:
            self._positions = {id_: position for position, id_ in enumerate(self._ids)}
        return self._positions

    def _query_tokens(self, queries: Sequence[str]) -> list[list[int]]:
        """Token numbers per query; a token asked twice counts twice, as in Lucene."""
        if isinstance(queries, str):
            raise InvalidInput("The lexical index got one string, it takes a sequence of queries. Pass [query].")
        analyse, known = self._analyse, self._engine.vocab_dict
        return [
            [known[token] for word in words(query) for token in analyse(word).tokens if token in known]
            for query in queries
        ]

    def _postings(self, kept: NDArray[np.bool_]) -> Iterator[_Postings]:
        """Those of the kept documents, renumbered, in blocks by token."""
        scores = self._engine.scores
        columns = np.asarray(scores["indptr"])
        positions = None if kept.all() else np.cumsum(kept, dtype=np.int32) - 1
        for first, last in _column_blocks(columns):
            part = slice(int(columns[first]), int(columns[last]))
            documents, frequencies = np.asarray(scores["indices"][part]), np.asarray(self._frequencies[part])
            counts = np.diff(columns[first : last + 1])
            if positions is not None:
                chosen = kept[documents]
                counts = np.bincount(np.repeat(np.arange(last - first), counts)[chosen], minlength=last - first)
                documents, frequencies = positions[documents[chosen]], frequencies[chosen]
            yield _Postings(np.arange(first, last, dtype=np.int32), counts, documents, frequencies)

    def _make_engine(
        self,
        vocabulary: dict[str, int],
        df: NDArray[np.integer[Any]],
        documents: NDArray[np.int32],
        frequencies: NDArray[np.integer[Any]],
        lengths: NDArray[np.float32],
    ) -> Any:
        """bm25s with the scores of all postings (sorted by token), computed by blocks, not text by text. df: (V,)."""
        engine = bm25s().BM25(k1=self._settings["k1"], b=self._settings["b"], method="lucene")
        n = len(lengths)
        idf = np.log1p((n - df + 0.5) / (df + 0.5))
        mean = float(lengths.mean()) if n else 0.0
        saturation = engine.k1 * (1 - engine.b + engine.b * lengths / (mean or 1.0))
        indptr = np.zeros(len(vocabulary) + 1, np.int64)
        np.cumsum(df, out=indptr[1:])
        data = np.empty(len(documents), np.float32)
        for first, last in _column_blocks(indptr):
            part = slice(int(indptr[first]), int(indptr[last]))
            tf = frequencies[part].astype(np.float64)
            data[part] = np.repeat(idf[first:last], df[first:last]) * (tf / (tf + saturation[documents[part]]))
        engine.scores = {"data": data, "indices": documents, "indptr": indptr, "num_docs": n}
        engine.vocab_dict = vocabulary
        engine.unique_token_ids_set = set()
        engine.nonoccurrence_array = None
        return engine

    def _load_into_memory(self) -> None:
        scores = self._engine.scores
        for name in ("data", "indices", "indptr"):
            scores[name] = np.array(scores[name])
        self._frequencies, self._lengths = np.array(self._frequencies), np.array(self._lengths)
        self._folder = None


def open_statistics(folder: str | Path) -> TermStatistics:
    """What `LexicalIndex.statistics` gave and was saved. Raises IndexCorrupt, FormatTooNew."""
    return TermStatistics.open(folder, lambda settings: word_analyser(settings["language"], _stopwords(settings)))


def saved_stopwords(folder: str | Path) -> frozenset[str] | None:
    """The stop words of a saved index, of any format; None where its settings cannot be read."""
    try:
        return _stopwords(json.loads((Path(folder) / "lexical.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not JSON, or of another shape
        return None


def _passes_few(allowed: NDArray[np.bool_]) -> bool:
    """Whether it is less work to read these documents' scores than to look at all."""
    return 16 * int(np.count_nonzero(allowed)) < len(allowed)


def _stopwords(settings: dict[str, Any]) -> frozenset[str]:
    kept = settings.get("stopwords")
    return default_stopwords(settings["language"]) if kept is None else frozenset(kept)


class _Postings(NamedTuple):
    """Some of the postings, sorted by token and then by document."""

    tokens: NDArray[np.int32]  # (T,), ascending
    counts: NDArray[np.integer[Any]]  # (T,) postings of each
    documents: NDArray[np.int32]  # (P,)
    frequencies: NDArray[np.integer[Any]]  # (P,) uint16, or int32 where one is larger


def _column_blocks(columns: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of columns that together have about `_BLOCK_TOKENS` postings. columns: (V + 1,) starts."""
    first = 0
    while first < len(columns) - 1:
        last = max(first + 1, int(np.searchsorted(columns, columns[first] + _BLOCK_TOKENS, "right")) - 1)
        yield first, last
        first = last


def _merged(
    size: int, kept: Callable[[], Iterable[_Postings]], added: list[_Postings]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.integer[Any]]]:
    """(df (V,), documents (P,), frequencies (P,)) of all postings, sorted by token and then by document.

    What is kept is read twice; `added` is empty afterwards. Documents ascend from each block to the next that has a
    token of it.
    """
    df = np.zeros(size, np.int64)
    for block in chain(kept(), added):
        df[block.tokens] += block.counts
    places = np.cumsum(df) - df  # where the next posting of a token goes
    documents = np.empty(int(df.sum()), np.int32)
    frequencies = np.empty(len(documents), np.result_type(np.uint16, *(block.frequencies for block in added)))
    added.reverse()
    for block in chain(kept(), iter(lambda: added.pop() if added else None, None)):
        at = np.repeat(places[block.tokens] - (np.cumsum(block.counts) - block.counts), block.counts)
        at += np.arange(len(at))
        documents[at], frequencies[at] = block.documents, block.frequencies
        places[block.tokens] += block.counts
    return df, documents, frequencies


def _checked(ids: Sequence[str], texts: Sequence[str], headings: Sequence[str] | None) -> list[str]:
    if isinstance(ids, str) or isinstance(texts, str):
        raise InvalidInput("The lexical index takes sequences of ids and texts, not single strings.")
    if len(ids) != len(texts) or (headings is not None and len(headings) != len(texts)):
        titles = "" if headings is None else f" and {len(headings)} headings"
        raise InvalidInput(f"Got {len(ids)} ids for {len(texts)} texts{titles}; there must be one each.")
    ids = list(ids)
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        twice = next(id_ for id_ in ids if id_ in seen or seen.add(id_))  # type: ignore[func-returns-value]
        raise InvalidInput(f"The id {twice!r} comes twice; ids must be unique.")
    return ids


def _count(
    texts: Sequence[str],
    headings: Sequence[str] | None,
    analyse: Callable[[str], Word],
    weight: int,
    vocabulary: dict[str, int],
    first: int,
    progress: Progress,
) -> tuple[list[_Postings], NDArray[np.float32]]:
    """Count the tokens of texts: (postings of documents from `first` on, block by block, lengths (n,)).

    Adds new tokens to the vocabulary.
    """
    numbered: dict[str, tuple[tuple[int, ...], int]] = {}
    lengths = np.zeros(len(texts), np.float32)
    tokens, sizes = array("i"), array("i")
    blocks: list[_Postings] = []

    def add(text: str) -> int:
        positions = 0
        for word in words(text):
            known = numbered.get(word)
            if known is None:
                result = analyse(word)
                numbers = tuple(vocabulary.setdefault(token, len(vocabulary)) for token in result.tokens)
                known = numbers, result.positions
                if len(numbered) < _REMEMBERED:
                    numbered[word] = known
            tokens.extend(known[0])
            positions += known[1]
        return positions

    titles = iter(headings) if headings is not None else None
    for number, text in enumerate(texts):
        before = len(tokens)
        if titles is not None:
            title = next(titles)
            for _ in range(weight):
                lengths[number] += add(title)
        lengths[number] += add(text)
        sizes.append(len(tokens) - before)
        if len(tokens) >= _BLOCK_TOKENS or number == len(texts) - 1:
            blocks.append(_block(tokens, sizes, first + number + 1 - len(sizes)))
            tokens, sizes = array("i"), array("i")
        if number % 1000 == 999 or number == len(texts) - 1:
            progress("lexical", number + 1, len(texts))
    return blocks, lengths


def _block(tokens: array[int], sizes: array[int], first: int) -> _Postings:
    """The postings of texts from document `first` on: their tokens one after another, and how many each has."""
    keys = np.frombuffer(tokens, np.int32).astype(np.int64) << 32
    keys |= np.repeat(np.arange(len(sizes)), np.frombuffer(sizes, np.int32))
    keys.sort()
    starts = _changes(keys)
    frequencies = np.diff(starts, append=len(keys))
    keys = keys[starts]
    column = (keys >> 32).astype(np.int32)
    starts = _changes(column)
    exact = np.uint16 if frequencies.max(initial=0) <= np.iinfo(np.uint16).max else np.int32
    documents = (keys & 0xFFFFFFFF).astype(np.int32) + np.int32(first)
    counts = np.diff(starts, append=len(column)).astype(np.int32)
    return _Postings(column[starts], counts, documents, frequencies.astype(exact))


def _changes(ordered: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Where a value stands that differs from the one before."""
    return np.flatnonzero(np.concatenate([[len(ordered) > 0], ordered[1:] != ordered[:-1]])[: len(ordered)])
