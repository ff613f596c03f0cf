"""The index of a saved retriever, built anew: of another kind, or in another place."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ragadapt.checks import shown
from ragadapt.config import FitConfig, IndexConfig
from ragadapt.errors import InvalidInput
from ragadapt.index import check_index, chosen, collection_of, engine_of
from ragadapt.lexical.index import saved_stopwords
from ragadapt.lexical.terms import is_statistics
from ragadapt.pipeline.corpus import Corpus, EncodedCorpus
from ragadapt.pipeline.stages import (
    KnownVectors,
    build_index,
    build_vectors,
    commit_build,
    index_parts,
    mutable_parts,
    parts_of,
    save_lexical,
    stored_vectors,
)
from ragadapt.store.chunks import ChunkStore
from ragadapt.store.workspace import OpenedStore, Stage, Workspace, open_store
from ragadapt.values import Progress, no_progress
from ragadapt.version import __version__


def reindex(
    retriever: str | Path,
    index: IndexConfig,
    *,
    encode: bool = False,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Path:
    """Build the retriever's index anew, of another kind or in another place; everything else stays as it is.

    The vectors of the present index are taken over to the bit. encode: make them again by the retriever's own model,
    on the device; what the fit ran on is no demand. Vectors that are damaged, missing or of another encoder are made
    again anyway. The folder is replaced in one move. Raises NotARetriever, StoreLocked, MissingExtra, IndexUnreachable.
    """
    if not isinstance(index, IndexConfig):
        raise InvalidInput(f"index is {type(index).__name__} ({shown(index)}); give an IndexConfig.")
    index = chosen(index)
    check_index(index)
    old = open_store(retriever)
    old.check("model", "chunks.sqlite")
    manifest = old.manifest
    with Workspace.open(old.path, {"command": "index"}) as work:
        with ChunkStore.open(old.path / "chunks.sqlite") as store:
            corpus = Corpus.of(tuple(store))
        key = {"build": manifest.build_id}
        with work.stage("index-vectors", key | {"encode": encode}) as stage:
            if not stage.finished:
                _gather(stage, old, corpus, index, encode, device, progress)
            vectors = np.load(stage.path / "vectors.npy", mmap_mode="r")
            made = json.loads((stage.path / "made.json").read_text(encoding="utf-8"))
        fingerprint = made.pop("fingerprint")
        with work.stage("index", key | {"index": index.deciding(), "after": stage.digest}) as stage:
            if not stage.finished:
                lexical = _lexical(stage, old.path / "lexical", corpus, index, progress)
                build_index(stage, index, EncodedCorpus(corpus, vectors), fingerprint, progress, lexical)
        changed = replace(
            manifest,
            fingerprint=fingerprint,
            configuration={**manifest.configuration, "index": index.model_dump(mode="json")},
            sections={**manifest.sections, **made},
            mutable=mutable_parts(index),
        )
        commit_build(work, changed, {**parts_of(old.path), **index_parts(stage.path)})
    return old.path


def _lexical(stage: Stage, old: Path, corpus: Corpus, config: IndexConfig, progress: Progress) -> Path:
    """Where the lexical index over the passages lies: the old one, or where the old engine kept the words, a new one,
    which is a part of what is built where the new engine keeps none."""
    if not is_statistics(old):
        return old
    folder = (stage.scratch if engine_of(config.kind).keeps_words(config) else stage.path) / "lexical"
    save_lexical(corpus.chunks, folder, progress, stopwords=saved_stopwords(old))
    return folder


def _gather(
    stage: Stage, old: OpenedStore, corpus: Corpus, index: IndexConfig, encode: bool, device: str, progress: Progress
) -> None:
    """vectors.npy, and in made.json what changes in the manifest with who made them. The model is loaded if needed."""
    made: dict[str, Any] = {"fingerprint": old.manifest.fingerprint}
    contents = {chunk.id: chunk.content_hash for chunk in corpus.chunks}
    place = collection_of(old.path / "index")
    leaving = place is None or place[0] != index.url
    stored: AbstractContextManager[list[KnownVectors]] = nullcontext([])
    if not encode:
        stored = stored_vectors(old, contents, corpus.chunks, stage.scratch, leaving=leaving)
    with stored as known:
        encoder = None
        if not all(any(digest in source.key_of for source in known) for digest in contents.values()):
            from ragadapt.encoder import Encoder

            precision = FitConfig.build(dict(old.manifest.configuration)).encoder.precision
            encoder = Encoder.open(old.path / "model", device=device, precision=precision)
            if encoder.fingerprint != old.manifest.fingerprint:
                known = []
            made["fingerprint"] = encoder.fingerprint
            if not known:
                made |= {"precision": asdict(encoder.precision), "encoded_by": __version__}
        build_vectors(stage, corpus, encoder, progress, known)
    (stage.path / "made.json").write_text(json.dumps(made), encoding="utf-8")
