"""The same text, nearly: one normal form for "equal", and groups of near-duplicates in linear time."""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ragadapt.errors import InvalidInput
from ragadapt.text import searchable
from ragadapt.values import Progress, no_progress

_SHINGLE = 5
_BANDS, _ROWS = 20, 4  # pairs at Jaccard .8 share a band with probability 1 - (1 - .8^4)^20 > .9999
_BLOCK_CHARACTERS = 4_000_000  # of texts that are hashed at a time: bounds memory
_IN_MEMORY = 64_000_000  # bytes of shingles, and as many of bands; more than these lie in a temporary file
_BUFFER = 8192  # bytes read at a time: the shingles of one text
_REPRESENTATIVES = 8  # compared with in a bucket: boilerplate cannot make the work quadratic
_MIX = np.uint64(0x9E3779B97F4A7C15)

HashArray = NDArray[np.uint64]
Numbers = NDArray[np.int32]


class _Fold(dict[int, str | int]):
    """str.translate table, filled as characters are met: punctuation, marks of layout and controls become spaces."""

    def __missing__(self, code: int) -> str | int:
        kept = chr(code) in "+#" or unicodedata.category(chr(code))[0] not in "PSZC"
        value: str | int = code if kept else " "
        self[code] = value
        return value


_FOLD = _Fold()
_UNSPACED = re.compile(  # letters of scripts that put no spaces between words: Thai to Khmer, Kana, Han
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_LOOSE_SIGN = re.compile(r"(?<![^\s+#])[+#]+")


def normalise(text: str) -> str:
    """The text as "same text" compares it: NFKC, case folded, punctuation and white space as single spaces.

    Plus and hash signs that end a word stay ("C++", "C#"). A text of nothing but punctuation keeps it.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", searchable(text)).casefold())
    words = " ".join(_LOOSE_SIGN.sub(" ", folded.translate(_FOLD)).split())
    return words or " ".join(folded.split())


def near_duplicate_groups(
    texts: Sequence[str],
    *,
    threshold: float = 0.8,
    seed: int = 0,
    progress: Progress = no_progress,
    scratch: str | Path | None = None,
) -> list[int]:
    """A group number for each text, counted from 0 in order of appearance; near-duplicates share one.

    Two texts belong together when their normal forms are equal, or when the Jaccard similarity of their
    shingles (5 words; 5 characters where words are not spaced) reaches `threshold`, and so do those linked
    through others. Candidates come from MinHash bands (Broder 1997; Leskovec et al., Mining of Massive
    Datasets, ch. 3) and are checked on the hashed shingles themselves. Time and memory grow linearly.

    The texts are read once, in order, and none is kept. Their shingles, 8 bytes a word, lie in a temporary file where
    they are many. scratch: the folder of that file; None = the system's, which some systems hold in memory.
    """
    if isinstance(texts, str):
        raise InvalidInput("near_duplicate_groups takes a list of texts, not one text. Pass [text].")
    if not 0 < threshold <= 1:
        raise InvalidInput(f"threshold = {threshold}: it is a similarity, above 0 and at most 1.")
    with _Sketches(seed, scratch) as sketches:
        forms = _sketch(texts, sketches, progress)
        parent = np.arange(len(sketches))
        for band in range(_BANDS):
            _join_band(sketches.band(band), sketches, parent, threshold)
    while not np.array_equal(above := parent[parent], parent):
        parent = above
    # The root of a group is its first form, and forms are numbered as they appear: so are groups, by their roots.
    numbers = np.cumsum(parent == np.arange(len(parent)), dtype=np.int32) - 1
    groups: list[int] = numbers[parent[forms]].tolist()
    return groups


def _sketch(texts: Sequence[str], sketches: _Sketches, progress: Progress) -> Numbers:
    """(N,) the number of each text's normal form; every form is sketched once."""
    known = _Known()
    numbers = array("i")
    block: list[str] = []
    characters = 0

    def flush() -> None:
        found, first = known.numbers(block)
        sketches.add([block[at] for at in first])
        numbers.frombytes(found.tobytes())
        progress("near-duplicates", len(numbers), len(texts))

    if len(texts):
        progress("near-duplicates", 0, len(texts))
    for text in texts:
        block.append(normalise(text))
        characters += len(block[-1])
        if characters >= _BLOCK_CHARACTERS:
            flush()
            block, characters = [], 0
    if block:
        flush()
    return np.frombuffer(numbers, np.int32)


class _Known:
    """The normal forms that were met, by hashes of 128 bits: 20 bytes each.

    Hashes lie sorted in runs, each at least twice as long as the next: there are few to look in, and what is added
    moves a few times at most.
    """

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[np.bytes_], Numbers]] = []
        self._count = 0

    def numbers(self, forms: Sequence[str]) -> tuple[Numbers, list[int]]:
        """(numbers of the forms (n,), in order of first appearance; where those stand that are new)."""
        digests = [hashlib.blake2b(form.encode("utf-8", "surrogatepass"), digest_size=16).digest() for form in forms]
        hashes, first, inverse = np.unique(np.array(digests, "S16"), return_index=True, return_inverse=True)
        found = np.full(len(hashes), -1, np.int32)
        for run, numbers in self._runs:
            at = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            found = np.where(run[at] == hashes, numbers[at], found)
        new = np.flatnonzero(found < 0)
        appeared = new[np.argsort(first[new])]
        found[appeared] = np.arange(self._count, self._count + len(new), dtype=np.int32)
        self._count += len(new)
        if len(new):
            self._add(hashes[new], found[new])
        return found[inverse], first[appeared].tolist()

    def _add(self, hashes: NDArray[np.bytes_], numbers: Numbers) -> None:
        while self._runs and len(self._runs[-1][0]) < 2 * len(hashes):
            run = self._runs.pop()
            hashes, numbers = np.concatenate([run[0], hashes]), np.concatenate([run[1], numbers])
            order = np.argsort(hashes, kind="stable")  # which merges what is sorted already
            hashes, numbers = hashes[order], numbers[order]
        self._runs.append((hashes, numbers))


class _Sketches:
    """Of each text the sorted distinct hashes of its shingles, and the hash of each of its bands: in memory while they
    are small, in files without a name beyond, which go with `close`."""

    def __init__(self, seed: int, scratch: str | Path | None) -> None:
        rng = np.random.default_rng(seed)
        self._multipliers = rng.integers(1, 2**63, size=_BANDS * _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._ends = array("q", [0])  # where the shingles of a text end, in bytes
        self._blocks: list[int] = []  # texts; a block's bands are (bands, texts)
        folder = None if scratch is None else str(scratch)
        self._shingles = SpooledTemporaryFile[bytes](_IN_MEMORY, buffering=_BUFFER, dir=folder)
        self._bands = SpooledTemporaryFile[bytes](_IN_MEMORY, buffering=_BUFFER, dir=folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shingles.close()
        self._bands.close()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, forms: Sequence[str]) -> None:
        """Append those of some texts."""
        if not forms:
            return
        sets = [_shingles(form) for form in forms]
        starts = np.cumsum([0, *(len(hashes) for hashes in sets)])
        self._ends.extend((self._ends[-1] + 8 * starts[1:]).tolist())
        flat = np.concatenate(sets)
        del sets
        bands = np.zeros((_BANDS, len(forms)), np.uint64)
        product = np.empty_like(flat)
        for number, multiplier in enumerate(self._multipliers):
            # multiply-shift: the upper half of an odd multiple orders the shingles nearly at random
            np.right_shift(np.multiply(flat, multiplier, out=product), np.uint64(32), out=product)
            mixed = (bands[number // _ROWS] ^ np.minimum.reduceat(product, starts[:-1])) * _MIX
            bands[number // _ROWS] = mixed ^ (mixed >> np.uint64(29))
        self._shingles.write(flat.data)
        self._bands.write(bands.data)
        self._blocks.append(len(forms))

    def band(self, number: int) -> HashArray:
        """(N,) one band's hash of each text."""
        keys = np.empty(len(self), np.uint64)
        start = 0
        for count in self._blocks:
            self._bands.seek(8 * (_BANDS * start + number * count))
            keys[start : start + count] = np.frombuffer(self._bands.read(8 * count), np.uint64)
            start += count
        return keys

    def shingles(self, number: int) -> HashArray:
        """Those of one text."""
        start, end = self._ends[number], self._ends[number + 1]
        self._shingles.seek(start)
        return np.frombuffer(self._shingles.read(end - start), np.uint64)


def _shingles(form: str) -> HashArray:
    """Sorted distinct hashes of a text's runs of 5 words, or characters; a shorter text is one run."""
    words = form.split()
    if len(form) > 16 * max(1, len(words)) or (not form.isascii() and len(_UNSPACED.findall(form)) > 0.3 * len(form)):
        units = np.frombuffer("".join(words).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    else:
        units = np.fromiter((zlib.crc32(word.encode()) for word in words), dtype=np.uint64, count=len(words))
    width = min(_SHINGLE, max(1, len(units)))
    runs = np.zeros(max(1, len(units) - width + 1), dtype=np.uint64)
    for k in range(width if len(units) else 0):
        runs = (runs ^ units[k : k + len(runs)]) * _MIX
        runs ^= runs >> np.uint64(32)
    return np.unique(runs)


def _join_band(keys: HashArray, sketches: _Sketches, parent: NDArray[np.int64], threshold: float) -> None:
    """Unite texts with the same band hash whose shingles are similar enough."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    again = np.concatenate([[False], ordered[1:] == ordered[:-1], [False]])
    del ordered
    starts = np.flatnonzero(again[1:] & ~again[:-1]).tolist()  # of hashes that more than one text has
    ends = (np.flatnonzero(again[:-1] & ~again[1:]) + 1).tolist()
    for start, end in zip(starts, ends, strict=True):
        representatives: list[tuple[int, HashArray]] = []
        for member in order[start:end].tolist():
            root = _root(parent, member)
            own: HashArray | None = None
            for other, others in representatives:
                other_root = _root(parent, other)
                if root == other_root:
                    break
                own = sketches.shingles(member) if own is None else own
                if _jaccard(own, others) >= threshold:
                    low, high = sorted((root, other_root))
                    parent[high] = low
                    break
            else:
                if len(representatives) < _REPRESENTATIVES:
                    representatives.append((member, sketches.shingles(member) if own is None else own))


def _jaccard(a: HashArray, b: HashArray) -> float:
    if min(len(a), len(b)) == 0:
        return 0.0
    places = np.searchsorted(a, b)
    shared = int(np.count_nonzero(a[np.minimum(places, len(a) - 1)] == b))
    return shared / (len(a) + len(b) - shared)


def _root(parent: NDArray[np.int64], member: int) -> int:
    while parent[member] != member:
        parent[member] = parent[parent[member]]
        member = int(parent[member])
    return member
