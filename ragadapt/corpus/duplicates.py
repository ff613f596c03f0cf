"""The same text, nearly: one normal form for "equal", and groups of near-duplicates in linear time."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ragadapt.errors import InvalidInput
from ragadapt.text import searchable
from ragadapt.values import Progress, no_progress

_SHINGLE = 5
_BANDS, _ROWS = 20, 4  # pairs at Jaccard .8 share a band with probability 1 - (1 - .8^4)^20 > .9999
_BLOCK_SHINGLES = 2_000_000  # shingles hashed at a time: bounds memory
_REPRESENTATIVES = 8  # compared with in a bucket: boilerplate cannot make the work quadratic
_MIX = np.uint64(0x9E3779B97F4A7C15)

HashArray = NDArray[np.uint64]


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
    texts: Sequence[str], *, threshold: float = 0.8, seed: int = 0, progress: Progress = no_progress
) -> list[int]:
    """A group number for each text, counted from 0 in order of appearance; near-duplicates share one.

    Two texts belong together when their normal forms are equal, or when the Jaccard similarity of their
    shingles (5 words; 5 characters where words are not spaced) reaches `threshold`, and so do those linked
    through others. Candidates come from MinHash bands (Broder 1997; Leskovec et al., Mining of Massive
    Datasets, ch. 3) and are checked on the hashed shingles themselves. Time and memory grow linearly.
    """
    if isinstance(texts, str):
        raise InvalidInput("near_duplicate_groups takes a list of texts, not one text. Pass [text].")
    if not 0 < threshold <= 1:
        raise InvalidInput(f"threshold = {threshold}: it is a similarity, above 0 and at most 1.")
    if texts:
        progress("near-duplicates", 0, len(texts))
    first_of: dict[str, int] = {}
    originals = [first_of.setdefault(normalise(text), len(first_of)) for text in texts]
    forms = list(first_of)
    del first_of
    sets, signatures = _sketch(forms, seed, progress)
    parent = np.arange(len(forms))
    for band in range(_BANDS):
        _join_band(signatures[:, band], sets, parent, threshold)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(_root(parent, form), len(numbers)) for form in originals]


def _sketch(forms: Sequence[str], seed: int, progress: Progress) -> tuple[list[HashArray], HashArray]:
    """Sorted distinct shingle hashes of each text, and the hash of each of its bands: (texts, bands)."""
    rng = np.random.default_rng(seed)
    multipliers = rng.integers(1, 2**63, size=_BANDS * _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    sets: list[HashArray] = []
    bands = np.empty((len(forms), _BANDS), dtype=np.uint64)
    for block in _blocks(forms):
        start = len(sets)
        sets.extend(block)
        flat = np.concatenate(block)
        offsets = np.cumsum([0, *(len(s) for s in block[:-1])])
        for band in range(_BANDS):
            mixed = np.zeros(len(block), dtype=np.uint64)
            for multiplier in multipliers[band * _ROWS : (band + 1) * _ROWS]:
                # multiply-shift: the upper half of an odd multiple orders the shingles nearly at random
                lowest = np.minimum.reduceat((flat * multiplier) >> np.uint64(32), offsets)
                mixed = (mixed ^ lowest) * _MIX
                mixed ^= mixed >> np.uint64(29)
            bands[start : start + len(block), band] = mixed
        progress("near-duplicates", len(sets), len(forms))
    return sets, bands


def _blocks(forms: Sequence[str]) -> Iterator[list[HashArray]]:
    block: list[HashArray] = []
    size = 0
    for form in forms:
        block.append(_shingles(form))
        size += len(block[-1])
        if size >= _BLOCK_SHINGLES:
            yield block
            block, size = [], 0
    if block:
        yield block


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


def _join_band(keys: HashArray, sets: list[HashArray], parent: NDArray[np.int64], threshold: float) -> None:
    """Unite texts with the same band hash whose shingles are similar enough."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    edges = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1], True])
    for start, end in pairwise(edges.tolist()):
        if end - start < 2:
            continue
        representatives: list[int] = []
        for member in order[start:end].tolist():
            root = _root(parent, member)
            for other in representatives:
                other_root = _root(parent, other)
                if root == other_root:
                    break
                if _jaccard(sets[member], sets[other]) >= threshold:
                    low, high = sorted((root, other_root))
                    parent[high] = low
                    break
            else:
                if len(representatives) < _REPRESENTATIVES:
                    representatives.append(member)


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
