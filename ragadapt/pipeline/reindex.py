"""The index of a saved retriever, built anew: of another kind, or in another place."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ragadapt.checks import shown
from ragadapt.config import FitConfig, IndexConfig
from ragadapt.errors import InvalidInput
from ragadapt.pipeline.stages import (
    Corpus,
    build_index,
    build_vectors,
    check_index,
    commit_build,
    mutable_parts,
)
from ragadapt.store.chunks import ChunkStore
from ragadapt.store.workspace import Workspace, open_store
from ragadapt.values import Progress, no_progress

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)


def reindex(
    retriever: str | Path, index: IndexConfig, *, device: str = "auto", progress: Progress = no_progress
) -> Path:
    """Build the retriever's index anew, of another kind or in another place; everything else stays as it is.

    Passages are encoded again by the retriever's own model, on the device; what the fit ran on is no demand. The
    folder is replaced in one move. Raises NotARetriever, StoreLocked, MissingExtra, IndexUnreachable.
    """
    from ragadapt.encoder import Encoder

    if not isinstance(index, IndexConfig):
        raise InvalidInput(f"index is {type(index).__name__} ({shown(index)}); give an IndexConfig.")
    check_index(index)
    old = open_store(retriever)
    old.check("model", "chunks.sqlite")
    manifest = old.manifest
    with Workspace.open(old.path, {"command": "index"}) as work:
        precision = FitConfig.build(dict(manifest.configuration)).encoder.precision
        encoder = Encoder.open(old.path / "model", device=device, precision=precision)
        with ChunkStore.open(old.path / "chunks.sqlite") as store:
            corpus = Corpus.of(tuple(store))
        key = {"build": manifest.build_id, "encoder": encoder.fingerprint}
        with work.stage("index-vectors", key) as stage:
            vectors = build_vectors(stage, corpus, encoder, progress)
        with work.stage("index", key | {"index": index.deciding()}) as stage:
            if not stage.finished:
                build_index(stage, index, corpus, vectors, encoder.fingerprint, progress)
            built = stage.path
        kept = {name: old.path / name for name in ("chunks.sqlite", "lexical", "model", "report")}
        configuration = {**manifest.configuration, "index": index.model_dump(mode="json")}
        commit_build(
            work,
            replace(
                manifest,
                fingerprint=encoder.fingerprint,
                configuration=configuration,
                sections={**manifest.sections, "precision": asdict(encoder.precision)},
                mutable=mutable_parts(index),
            ),
            {**kept, "index": built / "index", "background.npz": built / "background.npz"},
        )
    return old.path
