"""Which re-rankers have a short name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ragadapt.config import EncoderConfig
from ragadapt.encoder.presets import Source, resolve
from ragadapt.errors import ModelNotFound

PRESETS: dict[str, str] = {
    "ettin-17m": "cross-encoder/ettin-reranker-17m-v1",  # English, Apache-2.0, 8k tokens: the quickest
    "ettin-32m": "cross-encoder/ettin-reranker-32m-v1",
    "ettin-68m": "cross-encoder/ettin-reranker-68m-v1",
    "minilm": "cross-encoder/ms-marco-MiniLM-L6-v2",  # English, 23M, 512 tokens
    "bge": "BAAI/bge-reranker-v2-m3",  # many languages, 568M: wants a GPU
    # Multi-vector (ColBERT) models:
    "colbert-small": "answerdotai/answerai-colbert-small-v1",  # English, Apache-2.0, 33M
    "colbert": "colbert-ir/colbertv2.0",  # English, MIT, 110M
    "gte-colbert": "lightonai/GTE-ModernColBERT-v1",  # English, Apache-2.0, 149M, up to 8k tokens
    "lateon": "lightonai/LateOn",  # English, Apache-2.0, 149M
}
"""Short name → name on the hub."""


def source_of(model: str, revision: str | None = None) -> Source:
    """Where a re-ranker is read from: a preset, a hub name or a folder. Raises ModelNotFound."""
    name = PRESETS.get(model, model)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Source(str(folder), None, None, True)
    try:
        found = resolve(EncoderConfig.model_validate({"model": name, "revision": revision}))
    except ModelNotFound as error:
        raise ModelNotFound(
            f"Re-ranker {model!r} is neither a folder on this machine nor a hub name (owner/name). "
            f"Presets: {', '.join(PRESETS)}."
        ) from error
    if found.is_folder or found.location != name:  # a preset of the encoders, such as "small"
        raise ModelNotFound(
            f"Re-ranker {model!r}: that is the short name of an encoder, which reads one text. "
            f"Presets of re-rankers: {', '.join(PRESETS)}."
        )
    return found


def is_multi_vector(source: Source) -> bool:
    """Whether a model gives a vector for each token (ColBERT), as its own files say: those of sentence-transformers, of
    PyLate, or of Stanford's ColBERT. False where the files cannot be had: opening the model will say why."""
    about = _settings(source, "config_sentence_transformers.json")
    if about.get("model_type") is not None:
        return about["model_type"] in ("MultiVectorEncoder", "ColBERT")
    return "HF_ColBERT" in (_settings(source, "config.json").get("architectures") or ())


def _settings(source: Source, name: str) -> dict[str, Any]:
    """The values in a JSON file of a model; empty where there is none."""
    try:
        if source.is_folder:
            path = Path(source.location) / name
        else:
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(source.location, name, revision=source.revision))
        found = json.loads(path.read_text(encoding="utf-8"))
    except Exception:  # the hub's client has many of its own
        return {}
    return found if isinstance(found, dict) else {}
