"""The state of a run on disk: one safetensors file, replaced whole, so that a kill leaves the old or the new."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)

_FORMAT = 1


class SavedPoint(TypedDict):
    """A `Point` of a run."""

    step: int
    loss: float
    learning_rate: float
    seconds: float
    dev: float | None


class SavedRun(TypedDict):
    """What a run noted, in JSON. The history is the one part that is no plain value; the others stand beside it."""

    history: list[SavedPoint]


def save_checkpoint(path: Path, identity: str, state: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and JSON-able state. identity: of everything that must be equal for a resume."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    header = json.dumps({"format": _FORMAT, "identity": identity, "state": dict(state)})
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        beside,
        metadata={"ragadapt": header},
    )
    beside.replace(path)


def load_checkpoint(path: Path, identity: str) -> tuple[SavedRun, dict[str, Tensor]] | None:
    """(state, tensors) of an earlier run with the same identity; None where there is none to go on from."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["ragadapt"])
            if header["format"] != _FORMAT or header["identity"] != identity:
                log.info("checkpoint %s belongs to another run: starting anew", path)
                return None
            return header["state"], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        log.warning("checkpoint %s cannot be read (%s): starting anew", path, error)
        return None
