"""Which re-rankers have a short name."""

from __future__ import annotations

from pathlib import Path

from ragadapt.config import EncoderConfig
from ragadapt.encoder.presets import Source, resolve
from ragadapt.errors import ModelNotFound

PRESETS: dict[str, str] = {
    "ettin-17m": "cross-encoder/ettin-reranker-17m-v1",  # English, Apache-2.0, 8k tokens: the quickest
    "ettin-32m": "cross-encoder/ettin-reranker-32m-v1",
    "ettin-68m": "cross-encoder/ettin-reranker-68m-v1",
    "minilm": "cross-encoder/ms-marco-MiniLM-L6-v2",  # English, 23M, 512 tokens
    "bge": "BAAI/bge-reranker-v2-m3",  # many languages, 568M: wants a GPU
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
