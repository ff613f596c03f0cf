"""What an encoder is made of, and the fingerprint that binds an index to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from ragadapt.errors import FormatTooNew, StoreCorrupt

SPEC_FILE = "ragadapt_encoder.json"
SPEC_VERSION = 2  # 1: the options of an adapter stood among its other values


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """What was learnt on top of the base. options: of the method, those that decide the vectors. layers: at the top,
    that changed. sha256: of its tensors. scale: 1 = as trained, 0 = the base."""

    method: str
    adapt: str
    layers: int
    reweight: str
    gamma: float
    scale: float
    sha256: str
    options: Mapping[str, Any]

    @property
    def words(self) -> str:
        """For people: method, options, strength."""
        options = "".join(f", {name} {value}" for name, value in self.options.items() if value)
        return f"{self.method}{options}, strength {self.scale:g}"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AdapterSpec:
        """Format 1 had the options of LoRA among the others."""
        shared = {name.name: values[name.name] for name in fields(cls) if name.name != "options"}
        rest = {name: value for name, value in values.items() if name not in shared}
        return cls(**shared, options=rest.get("options", rest))


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """Everything that decides the vectors, except rounding: no precision, device or batch size is in it.

    model: as the user named it. base: identity of the base weights (hub name and commit, or sha256).
    head: the modules after the transformer with their settings. licence: what the base's card says.
    """

    model: str
    base: str
    revision: str | None
    licence: str | None
    dim: int
    max_length: int
    query_prompt: str
    passage_prompt: str
    head: tuple[str, ...]
    adapter: AdapterSpec | None = None

    @property
    def fingerprint(self) -> str:
        """sha256, hex. Equal fingerprints mean interchangeable vectors."""
        parts = asdict(self)
        for unrelated in ("model", "revision", "licence"):
            del parts[unrelated]
        if self.adapter is not None and self.adapter.scale == 0:
            parts["adapter"] = None
        if parts["adapter"] is not None:  # flat, as it was in format 1: what was fitted then keeps its fingerprint
            parts["adapter"] = {**parts["adapter"].pop("options"), **parts["adapter"]}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def with_adapter(self, adapter: AdapterSpec | None) -> EncoderSpec:
        return replace(self, adapter=adapter)

    def to_json(self) -> dict[str, Any]:
        # A model without an adapter is the same in both.
        version = 1 if self.adapter is None else SPEC_VERSION
        return {"format": version, **asdict(self), "fingerprint": self.fingerprint}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        values = {key: value for key, value in values.items() if key not in ("format", "fingerprint", "direct")}
        adapter = values.pop("adapter", None)
        values["head"] = tuple(values["head"])
        return cls(**values, adapter=AdapterSpec.from_json(adapter) if adapter else None)


def write_spec(folder: Path, spec: EncoderSpec, *, direct: bool = False) -> None:
    """direct: saving proved that the folder opens to the same vectors without sentence-transformers."""
    text = json.dumps({**spec.to_json(), "direct": direct}, indent=2, ensure_ascii=False) + "\n"
    (folder / SPEC_FILE).write_text(text, encoding="utf-8")


def read_spec(folder: Path) -> EncoderSpec | None:
    """The spec saved in a model folder; None for a folder that ragadapt did not write.

    Raises FormatTooNew, StoreCorrupt.
    """
    path = folder / SPEC_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] > SPEC_VERSION:
            raise FormatTooNew(
                f"{path} has format {values['format']}, this ragadapt reads up to {SPEC_VERSION}. "
                "Upgrade with: pip install -U ragadapt"
            )
        spec = EncoderSpec.from_json(values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreCorrupt(f"{path} cannot be read: {error}. Restore the folder or fit again.") from error
    if spec.fingerprint != values.get("fingerprint"):
        raise StoreCorrupt(f"{path} was changed after it was written (its fingerprint differs). Fit again.")
    return spec


def opens_directly(folder: Path) -> bool:
    """What `write_spec` noted; False where there is no spec."""
    path = folder / SPEC_FILE
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("direct") is True
