"""What a search shows of what it found: copies folded into one hit, no document taking every place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

from ragadapt.checks import checked_choice, checked_k
from ragadapt.values import Chunk, Hit

Fold = Literal["same", "near", "none"]
FOLDS: tuple[str, ...] = get_args(Fold)

_SPARE = 15  # passages that are looked at besides, or as many as are wanted: copies stand right behind one another
_MORE = 4  # times as many are looked at where those do not suffice
_MOST = 1000  # passages of a ranking that are looked at to find enough that differ
_SPEAKS = 80  # characters of a text that says for itself what it is about; of a shorter one the headings count, too


def checked_fold(fold: Any) -> Fold:
    """How copies are folded. Raises InvalidInput."""
    return checked_choice("fold", fold, FOLDS)  # type: ignore[return-value]


def checked_max_per_document(most: Any) -> int | None:
    """Hits of one document at most; None = any number. Raises InvalidInput."""
    return None if most is None else checked_k(most, "max_per_document")


def diverse(
    find: Callable[[int], list[list[Hit]]], k: int, fold: Fold, max_per_document: int | None
) -> list[list[Hit]]:
    """For each query its best k hits that differ. find: how many → the best of every query."""
    if fold == "none" and max_per_document is None:
        return find(k)
    look = min(k + max(k, _SPARE), max(_MOST // 10, k))
    while True:
        found = find(look)
        chosen = [different(hits, k, fold, max_per_document) for hits in found]
        short = any(len(few) < k and len(hits) >= look for few, hits in zip(chosen, found, strict=True))
        if not short or look >= max(_MOST, k):
            return chosen
        look = min(_MORE * look, max(_MOST, k))


def different(hits: Sequence[Hit], k: int, fold: Fold, max_per_document: int | None = None) -> list[Hit]:
    """The first k that are no copies of one before, and of each document at most so many; copies stand in the first."""
    groups = _groups([hit.chunk for hit in hits], fold)
    first: dict[int, int] = {}  # group → place among the chosen
    chosen: list[Hit] = []
    copies: list[list[Chunk]] = []
    per_document = Counter[str]()
    for hit, group in zip(hits, groups, strict=True):
        if group in first:
            copies[first[group]].append(hit.chunk)
            per_document[hit.chunk.document_id] += 1  # its document has been shown, too
        elif len(chosen) < k and (max_per_document is None or per_document[hit.chunk.document_id] < max_per_document):
            per_document[hit.chunk.document_id] += 1
            first[group] = len(chosen)
            chosen.append(hit)
            copies.append([])
    return [replace(hit, copies=tuple(own)) if own else hit for hit, own in zip(chosen, copies, strict=True)]


def _groups(chunks: Sequence[Chunk], fold: Fold) -> list[int]:
    """A number for each passage; those that are folded into one share it."""
    if fold == "none":
        return list(range(len(chunks)))
    texts = [chunk.text if len(chunk.text) >= _SPEAKS else _under_headings(chunk) for chunk in chunks]
    if fold == "near":
        from ragadapt.corpus import near_duplicate_groups

        return near_duplicate_groups(texts)
    numbers: dict[str, int] = {}
    return [numbers.setdefault(" ".join(text.casefold().split()), len(numbers)) for text in texts]


def _under_headings(chunk: Chunk) -> str:
    """The passage, less a title that is only the file's name."""
    named = chunk.heading_path[:1] == (PurePosixPath(chunk.source).stem,)
    return "\n".join([*chunk.heading_path[named:], chunk.text])
