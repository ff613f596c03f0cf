"""What decides a re-ranker's scores, and the note of it in its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ragadapt.errors import FormatTooNew, StoreCorrupt

SPEC_FILE = "ragadapt_reranker.json"
_FORMAT = 1
_FORMAT_LATE = 2  # of a multi-vector model, which earlier versions took for a cross-encoder


@dataclass(frozen=True, slots=True)
class RerankerSpec:
    """Everything that decides the scores, except rounding.

    model: as the user named it. base: identity of the weights (hub name and commit, or sha256). licence: what the
    model's card says. max_length: tokens that are read of a pair; of a passage by a multi-vector model. activation:
    what turns the model's number into the score that it was trained to give. adapter: one that lies beside the weights,
    as it could not be folded into them, and its strength. multi_vector: how a multi-vector model reads queries and
    passages and compares them; None = a cross-encoder.
    """

    model: str
    base: str
    revision: str | None
    licence: str | None
    max_length: int
    activation: str
    adapter: Mapping[str, Any] | None = None
    multi_vector: Mapping[str, Any] | None = None

    @property
    def fingerprint(self) -> str:
        """sha256, hex. Equal fingerprints mean equal scores."""
        parts: dict[str, Any] = {"base": self.base, "max_length": self.max_length, "activation": self.activation}
        for name in ("adapter", "multi_vector"):
            if (value := getattr(self, name)) is not None:
                parts[name] = value
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_spec(folder: Path, spec: RerankerSpec) -> None:
    """Note the spec in a folder."""
    values = asdict(spec)
    version = _FORMAT_LATE
    if spec.multi_vector is None:
        version = _FORMAT
        del values["multi_vector"]  # earlier versions do not know it
    values = {"format": version, **values, "fingerprint": spec.fingerprint}
    (folder / SPEC_FILE).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_spec(folder: Path) -> RerankerSpec | None:
    """The spec saved in a folder; None where ragadapt saved no re-ranker. Raises FormatTooNew, StoreCorrupt."""
    path = folder / SPEC_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version, fingerprint = values.pop("format"), values.pop("fingerprint")
        if version > _FORMAT_LATE:
            raise FormatTooNew(
                f"{path} has format {version}, this ragadapt reads up to {_FORMAT_LATE}. "
                "Upgrade with: pip install -U ragadapt"
            )
        spec = RerankerSpec(**values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreCorrupt(f"{path} cannot be read: {error}. Restore the folder or fit again.") from error
    if spec.fingerprint != fingerprint:
        raise StoreCorrupt(f"{path} was changed after it was written (its fingerprint differs). Fit again.")
    return spec
