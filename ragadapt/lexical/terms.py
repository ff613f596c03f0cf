"""BM25 in two halves: what a query asks and what a passage weighs, for an engine that multiplies sparse vectors.

    score(q, d) = Σ_t u_t · w_td
    u_t = (times that q has t) · idf(t)      w_td = tf / (tf + k1·(1 − b + b·|d|/avg|d|))

The passages' half lies in the engine, beside the dense vectors. The queries' half needs only what is known by term
(`TermStatistics`): it grows with the vocabulary, not with the passages. idf is on the query's side on purpose. An
engine that multiplies by one of its own (Qdrant's modifier) counts, shard by shard, the points that have such a vector,
for a while the deleted ones too; here it is that of the corpus, so that scores are BM25's and the same for any number
of shards. avg|d| is the corpus's when it was built; every build of a retriever writes all of its passages.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from ragadapt.errors import FormatTooNew, IndexCorrupt, reason_of
from ragadapt.lexical.tokens import Word, words

FORMAT = 3  # up to 2: a whole index, ragadapt.lexical.index
SETTINGS = "lexical.json"
LEAST_ROWS = 2048  # terms of the table of pairs, where there are so many: 8 MB
ROWS = 8  # the table has up to ROWS · √N terms, so it takes 128 bytes a passage
FEW = 8  # passages of a term that needs no row: they are fetched soon enough
FETCHED = 4096  # passages that the engine is asked about, at most, to know a query's deviation exactly
_BLOCK = 8_000_000  # numbers at a time while all this is counted
_PASSAGES = 65_536  # and passages
_ARRAYS = ("hashes", "df", "sums", "squares", "rows", "pairs")

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]


class WordReader(ABC):
    """Reads queries and texts as the passages of a corpus were read, with the corpus's statistics."""

    _settings: dict[str, Any]
    _analyse: Callable[[str], Word]

    @abstractmethod
    def __len__(self) -> int:
        """Passages of the corpus."""

    @abstractmethod
    def _frequency(self, token: str) -> int:
        """How many passages hold the token."""

    @abstractmethod
    def _mean_length(self) -> float:
        """Word positions of a passage, on average."""

    def _tokens(self, text: str) -> list[str]:
        return [token for word in words(text) for token in self._analyse(word).tokens]

    def _idf(self, df: Any) -> Any:
        return np.log1p((len(self) - df + 0.5) / (df + 0.5))

    def masses(self, queries: Sequence[str]) -> Floats:
        """(Q,) the summed idf of every query's tokens: what no document's score can reach. A token that no document
        holds counts as the rarest."""
        found = np.zeros(len(queries), np.float32)
        for row, query in enumerate(queries):
            df = np.array([self._frequency(token) for token in self._tokens(query)], np.float64)
            found[row] = self._idf(df).sum()
        return found

    def scores_of_texts(self, query: str, texts: Sequence[str]) -> Floats:
        """The scores of one query for texts (n,) that need not be indexed, with the statistics of those that are.

        An indexed text without headings has the score that `scores` gives it. A word that no document holds counts as
        the rarest.
        """
        numbers: dict[str, int] = {}
        asked = Counter(self._tokens(query))
        weights = np.zeros(len(asked))
        for token, times in asked.items():
            weights[numbers.setdefault(token, len(numbers))] = times * self._idf(self._frequency(token))
        mean, k1, b = self._mean_length(), self._settings["k1"], self._settings["b"]
        scores = np.zeros(len(texts), np.float32)
        for row, text in enumerate(texts):
            found, length = np.zeros(len(asked)), 0
            for word in map(self._analyse, words(text)):
                length += word.positions
                for token in word.tokens:
                    if token in numbers:
                        found[numbers[token]] += 1
            scores[row] = weights @ (found / (found + k1 * (1 - b + b * length / (mean or 1.0))))
        return scores


@dataclass(frozen=True, slots=True)
class Words:
    """A sparse vector. terms: (T,) their numbers, ascending. weights: (T,)."""

    terms: NDArray[np.int64]
    weights: Floats

    def __len__(self) -> int:
        return len(self.terms)

    def only(self, chosen: NDArray[np.bool_]) -> Words:
        return Words(self.terms[chosen], self.weights[chosen])


@dataclass(frozen=True, slots=True)
class PassageWords:
    """The sparse vectors of passages in a row. first: the place of the first one in the corpus. starts: (n + 1,) where
    each begins in terms and weights."""

    first: int
    starts: NDArray[np.int64]
    terms: NDArray[np.int32]
    weights: Floats

    def __len__(self) -> int:
        return len(self.starts) - 1

    def part(self, start: int, stop: int) -> PassageWords:
        """Those of some of the passages, by number."""
        stop = min(stop, len(self))
        return PassageWords(self.first + start, self.starts[start : stop + 1], self.terms, self.weights)

    def row(self, number: int) -> tuple[list[int], list[float]]:
        """(terms, ascending, their weights) of one passage; both empty for one without words."""
        span = slice(self.starts[number], self.starts[number + 1])
        return self.terms[span].tolist(), self.weights[span].tolist()


class TermStatistics(WordReader):
    """What is known of a corpus by term, for queries whose passages lie elsewhere.

    Terms are known by a hash of 64 bits, whose rank is the term's number in the sparse vectors: so a vocabulary of any
    size is mapped, and opening reads next to nothing of it. Made by `LexicalIndex.statistics`.
    """

    def __init__(
        self, settings: dict[str, Any], arrays: dict[str, NDArray[Any]], analyse: Callable[[str], Word]
    ) -> None:
        """settings: those of the LexicalIndex, with count, mean_length and seed beside them."""
        self._settings = settings
        self._arrays = arrays
        self._analyse = analyse

    @classmethod
    def of(
        cls,
        settings: dict[str, Any],
        tokens: Sequence[str],
        matrix: Any,
        lengths: Floats,
        analyse: Callable[[str], Word],
    ) -> tuple[Self, PassageWords]:
        """From the weights w, a scipy.sparse CSC matrix (N, V) with a column for each of the tokens; and the same by
        passage, under the numbers that the terms get."""
        hashes, seed = _hashed(tokens)
        order = np.argsort(hashes)
        matrix = matrix[:, order]
        df = np.diff(matrix.indptr)
        count = matrix.shape[0]
        chosen = _most_frequent(df, max(LEAST_ROWS, int(ROWS * count**0.5)))
        rows = np.full(len(tokens), -1, np.int32)
        rows[chosen] = np.arange(len(chosen), dtype=np.int32)
        by_passage = matrix.tocsr()  # whose terms ascend, as the columns did
        arrays: dict[str, NDArray[Any]] = {
            "hashes": hashes[order],
            "df": df.astype(np.int32),
            "sums": _by_column(matrix, lambda weights: weights),
            "squares": _by_column(matrix, np.square),
            "rows": rows,
        }
        del matrix  # at a million passages a gigabyte
        arrays["pairs"] = _pairs(by_passage[:, chosen])
        mean = float(lengths.mean()) if count else 0.0
        about = {**settings, "format": FORMAT, "count": count, "mean_length": mean, "seed": seed}
        terms = by_passage.indices.astype(np.int32, copy=False)
        made = PassageWords(0, by_passage.indptr.astype(np.int64), terms, by_passage.data)
        return cls(about, arrays, analyse), made

    def __len__(self) -> int:
        return int(self._settings["count"])

    def _frequency(self, token: str) -> int:
        numbers = self._numbers([token])
        return int(self._arrays["df"][numbers[0]]) if numbers[0] >= 0 else 0

    def _mean_length(self) -> float:
        return float(self._settings["mean_length"])

    def _numbers(self, tokens: Sequence[str]) -> NDArray[np.int64]:
        """(n,) the tokens' numbers; -1 for those that no passage has."""
        hashes = self._arrays["hashes"]
        wanted = np.array([_hash(token, self._settings["seed"]) for token in tokens], np.uint64)
        if not len(hashes):
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)
        found: NDArray[np.int64] = np.where(hashes[at] == wanted, at, -1)
        return found

    def query(self, text: str) -> Words:
        """The sparse vector of a query; a token asked twice counts twice, as in Lucene."""
        asked = Counter(self._tokens(text))
        numbers = self._numbers(list(asked))
        times = np.fromiter(asked.values(), np.float64, len(asked))
        order = np.argsort(numbers)
        order = order[numbers[order] >= 0]
        terms = numbers[order]
        return Words(terms, (times[order] * self._idf(self._arrays["df"][terms])).astype(np.float32))

    def apart(self, query: Words) -> tuple[Words, Words]:
        """(rare, rest) of a query: the passages with a rare term are few enough to be fetched, `hits` at most."""
        outside = self._arrays["rows"][query.terms] < 0
        if len(query) == 1:  # a term by itself needs no table
            outside[:] = False
        df = np.where(outside, self._arrays["df"][query.terms], FETCHED + 1)
        order = np.argsort(df, kind="stable")
        rare = np.zeros(len(query), np.bool_)
        rare[order] = np.cumsum(df[order], dtype=np.int64) <= FETCHED
        return query.only(rare), query.only(~rare)

    def hits(self, query: Words) -> int:
        """No more passages than this have a term of the query."""
        return min(int(self._arrays["df"][query.terms].sum(dtype=np.int64)), len(self))

    def moments(
        self, query: Words, rare_scores: Floats | None = None, rest_scores: Floats | None = None
    ) -> tuple[float, float]:
        """Mean and standard deviation of a query's scores over all passages, zeros included.

        The mean is that of its terms: Σ u_t Σ_d w_td / N. For the deviation, let S = R + F be the parts of a score by
        the query's rare terms and by the rest (`apart`). Then

            Σ_d S² = Σ_d F² + Σ_{d: R > 0} R·(2F + R)

        where Σ_d F² = Σ_{t,t'} u_t u_t' Σ_d w_td w_t'd comes from a table with a row for each of the more frequent
        terms, and the passages that have a rare term are few: their R (n,) and F (n,) are what the engine says of them.
        So it is exact, unless a query has more than `FETCHED` passages with terms that the table lacks: the least
        rare of these then count as if they fell into passages independently of the others.
        """
        u = query.weights.astype(np.float64)
        count, sums, rows = max(len(self), 1), self._arrays["sums"], self._arrays["rows"]
        means = u * sums[query.terms] / count
        mean = float(means.sum())
        rare = np.zeros(len(query), np.bool_)
        if rare_scores is not None:
            rare = np.isin(query.terms, self.apart(query)[0].terms)
        tabled = ~rare & (rows[query.terms] >= 0)
        other = ~rare & ~tabled
        second = float(u[tabled] @ self._table(rows[query.terms[tabled]]) @ u[tabled])
        second += float(np.square(u[other]) @ self._arrays["squares"][query.terms[other]])
        apart = float(means[other].sum())
        second += count * (apart * (2 * float(means[tabled].sum()) + apart) - float(np.square(means[other]).sum()))
        if rare_scores is not None and rest_scores is not None:
            own, others = rare_scores.astype(np.float64), rest_scores.astype(np.float64)
            second += float(own @ (2 * others + own))
        return mean, max(second / count - mean * mean, 0.0) ** 0.5

    def _table(self, rows: NDArray[np.int32]) -> Doubles:
        """(T, T) Σ_d w_td w_t'd of terms of these rows."""
        at = rows.astype(np.int64)
        high, low = np.maximum(at[:, None], at[None, :]), np.minimum(at[:, None], at[None, :])
        found: Doubles = np.asarray(self._arrays["pairs"][high * (high + 1) // 2 + low], np.float64)
        return found

    def save(self, folder: str | Path) -> None:
        """Write it into a folder, made if missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", self._arrays[name], allow_pickle=False)
        (folder / SETTINGS).write_text(json.dumps(self._settings, indent=2), encoding="utf-8")

    @classmethod
    def open(cls, folder: str | Path, analyser: Callable[[dict[str, Any]], Callable[[str], Word]]) -> Self:
        """Open what was saved; the arrays stay on disk. analyser: settings → how words are read.

        Raises IndexCorrupt if files are missing, cut short or don't fit together; FormatTooNew.
        """
        folder = Path(folder)
        try:
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            if settings["format"] > FORMAT:
                raise FormatTooNew(
                    f"The word statistics in {folder} have format {settings['format']}, this ragadapt reads up to "
                    f"{FORMAT}. Upgrade with: pip install -U ragadapt"
                )
            arrays: dict[str, NDArray[Any]] = {
                name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in _ARRAYS
            }
            tabled = int(arrays["rows"].max(initial=-1)) + 1
            if (
                len({len(arrays[name]) for name in ("hashes", "df", "sums", "squares", "rows")}) > 1
                or len(arrays["pairs"]) != tabled * (tabled + 1) // 2
            ):
                raise ValueError("the files don't belong together")
            return cls(settings, arrays, analyser(settings))
        except FormatTooNew:
            raise
        except Exception as error:  # numpy and JSON have many of their own for damage
            raise IndexCorrupt(
                f"The word statistics in {folder} cannot be read ({reason_of(error)}). "
                "Rebuild them with: ragadapt index RETRIEVER --rebuild"
            ) from error


def is_statistics(folder: str | Path) -> bool:
    """Whether a saved lexical side is word statistics alone, its passages' weights being in the vector index."""
    try:
        format = json.loads((Path(folder) / SETTINGS).read_text(encoding="utf-8"))["format"]
        return isinstance(format, int) and format >= FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False  # who opens it says what is wrong


def _hash(token: str, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(token.encode("utf-8", "surrogatepass"), seed)


def _hashed(tokens: Iterable[str]) -> tuple[NDArray[np.uint64], int]:
    """The tokens' hashes, all of them different, and the seed that made them so."""
    tokens = list(tokens)
    for seed in range(100):
        hashes = np.fromiter((_hash(token, seed) for token in tokens), np.uint64, len(tokens))
        if len(np.unique(hashes)) == len(tokens):
            return hashes, seed
    raise AssertionError("a hundred hashes of 64 bits collided")


def _most_frequent(df: NDArray[np.integer[Any]], limit: int) -> NDArray[np.int64]:
    """The numbers, ascending, of up to `limit` terms that the most passages have, which more than `FEW` have."""
    order = np.argsort(-df, kind="stable")[:limit]
    return np.sort(order[df[order] > FEW])


def _by_column(matrix: Any, of: Callable[[Doubles], Doubles]) -> Doubles:
    """(V,) sums over the columns of a CSC matrix."""
    starts = matrix.indptr
    found = np.zeros(len(starts) - 1)
    first = 0
    while first < len(found):  # some millions of weights at a time
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + _BLOCK, "right")) - 1)
        values = of(matrix.data[starts[first] : starts[last]].astype(np.float64))
        columns = np.repeat(np.arange(last - first), np.diff(starts[first : last + 1]))
        found[first:last] = np.bincount(columns, values, last - first)
        first = last
    return found


def _pairs(rows: Any) -> Floats:
    """XᵀX of a CSR matrix (N, F), its lower triangle row by row."""
    count, size = rows.shape
    packed = np.empty(size * (size + 1) // 2, np.float32)
    step = max(1, _BLOCK // max(size, 1))
    for start in range(0, size, step):
        stop = min(start + step, size)
        block = np.zeros((stop - start, stop))
        for first in range(0, count, _PASSAGES):
            part = rows[first : first + _PASSAGES].astype(np.float64)
            block += (part[:, start:stop].T @ part[:, :stop]).toarray()
        for row in range(start, stop):
            packed[row * (row + 1) // 2 : (row + 1) * (row + 2) // 2] = block[row - start, : row + 1]
    return packed
