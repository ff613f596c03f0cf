"""The search side of a saved retriever."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ragadapt.errors import MissingExtra, StoreCorrupt, reason_of
from ragadapt.index import open_index
from ragadapt.index.contract import read_description
from ragadapt.index.rows import Kept
from ragadapt.lexical import LexicalIndex
from ragadapt.lexical.index import open_statistics
from ragadapt.lexical.terms import is_statistics
from ragadapt.search.confidence import Confidence
from ragadapt.search.engine import EngineSearcher, EngineWords, keeps_words
from ragadapt.search.fusion import Background, Fusion
from ragadapt.search.searcher import Searcher
from ragadapt.store.chunks import ChunkStore
from ragadapt.store.workspace import Manifest


def missing_engine(path: Path, manifest: Manifest, error: MissingExtra) -> MissingExtra:
    """What a retriever's index needs, and what to do where that is not to be had."""
    kind = manifest.configuration.get("index", {}).get("kind")
    instead = f"Or let it have an index that needs none: ragadapt index {path} --kind exact"
    return MissingExtra(f"The index of {path}, of kind {kind!r},", error.extra, instead)


def open_searcher(path: Path, manifest: Manifest) -> Searcher:
    """The search side of a saved folder. Raises FingerprintMismatch, IndexCorrupt, StoreCorrupt."""
    # The manifest has the hash of every file, and whoever opens the folder compares them all.
    if read_description(path / "index") is None:
        raise StoreCorrupt(
            f"The index of {path} is missing. Copy the folder again, or make it with: ragadapt index {path} --rebuild"
        )
    try:
        index = open_index(folder=path / "index", fingerprint=manifest.fingerprint, check=False)
    except MissingExtra as error:
        raise missing_engine(path, manifest, error) from error
    words: LexicalIndex | EngineWords
    if is_statistics(path / "lexical"):
        if not keeps_words(index):
            index.close()
            raise StoreCorrupt(
                f"The index in {path} does not hold the words of the passages, which its lexical side needs. Rebuild "
                f"it with: ragadapt index {path} --rebuild"
            )
        words = EngineWords(index, open_statistics(path / "lexical"), lambda: _ids(path))
    else:
        words = LexicalIndex.open(path / "lexical")
        if isinstance(index, Kept):
            words.share_ids_with(index.share_ids)
    try:
        with np.load(path / "background.npz", allow_pickle=False) as arrays:
            background = Background(arrays["mean"], arrays["covariance"], int(arrays["count"]))
    except Exception as error:  # zip and numpy have many of their own
        raise StoreCorrupt(
            f"{path / 'background.npz'} cannot be read ({reason_of(error)}). Build the retriever again."
        ) from error
    try:
        fusion, depth = Fusion.from_dict(manifest.sections["fusion"]), int(manifest.sections["depth"])
        confidence = Confidence.of_section(manifest.sections.get("confidence"))
    except (KeyError, TypeError, ValueError) as error:
        raise StoreCorrupt(
            f"The manifest of {path} lacks its fusion or confidence ({error}). Build the retriever again."
        ) from error
    if isinstance(words, EngineWords):
        return EngineSearcher(words, background, fusion, depth=depth, confidence=confidence)
    return Searcher(index, words, background, fusion, depth=depth, confidence=confidence)


def _ids(path: Path) -> list[str]:
    with ChunkStore.open(path / "chunks.sqlite") as chunks:
        return chunks.ids()
