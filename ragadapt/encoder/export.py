"""The encoder as ONNX: for runtimes without PyTorch."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ragadapt.encoder import loading
from ragadapt.encoder.precision import PROBE_PASSAGES, PROBE_QUERIES
from ragadapt.encoder.tower import Tower
from ragadapt.errors import InvalidInput, MissingExtra, StoreError

if TYPE_CHECKING:
    from ragadapt.encoder.encoder import Encoder

log = logging.getLogger(__name__)

_OPSET = 17
_COSINE = 0.9999


class _Graph(nn.Module):
    """Two tensors in, unit vectors out: what the exporter traces."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        vectors: Tensor = self.tower(input_ids, attention_mask)
        return vectors


def export_onnx(encoder: Encoder, folder: str | Path) -> float:
    """Write model.onnx (or query.onnx and passage.onnx, where the sides differ), the tokenizer and encoder.json.

    Inputs: input_ids and attention_mask, int64, (batch, length); output: sentence_embedding, float32, unit
    length. encoder.json says prompts and max_length; the prompt goes in front of the text. Returns the least
    cosine between ONNX Runtime's vectors and PyTorch's on the probe. Raises MissingExtra, InvalidInput,
    StoreError.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("Export to ONNX", "onnx") from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    spec = encoder.spec
    model = encoder._restore()
    query_chain, passage_chain = loading.sides(model)
    shared = query_chain == passage_chain
    least = 1.0
    files = {}
    for side, chain, prompt, texts in (
        ("query", query_chain, spec.query_prompt, PROBE_QUERIES),
        ("passage", passage_chain, spec.passage_prompt, PROBE_PASSAGES),
    ):
        tower = loading.build_tower(chain, spec.max_length)
        if tower is None:
            raise InvalidInput(f"Model {spec.model!r} is no plain transformer: it cannot be exported to ONNX.")
        if prompt and not tower.prompt_pooled:
            raise InvalidInput(f"Model {spec.model!r} leaves its prompt out of the pooling, which ONNX cannot say.")
        path = folder / ("model.onnx" if shared else f"{side}.onnx")
        files[side] = path.name
        if side == "query" or not shared:
            _write(tower, path)
            onnx.checker.check_model(str(path))
            tower.tokenizer.save_pretrained(str(folder))
        rows, _ = tower.tokenize([prompt + text for text in texts])
        ids, mask = tower.pad(rows)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (vectors,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
        least = min(least, float(np.min(np.sum(vectors * tower.embed(rows), axis=1))))
    if least < _COSINE:
        shutil.rmtree(folder)
        raise StoreError(f"The exported model differs from PyTorch's (cosine {least:.5f}); nothing was kept.")
    about = {
        "format": 1,
        "fingerprint": spec.fingerprint,
        "dim": spec.dim,
        "max_length": spec.max_length,
        "query_prompt": spec.query_prompt,
        "passage_prompt": spec.passage_prompt,
        "files": files,
    }
    (folder / "encoder.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return least


def _write(tower: Tower, path: Path) -> None:
    rows, _ = tower.tokenize(PROBE_PASSAGES[:3])
    ids, mask = (torch.from_numpy(array) for array in tower.pad(rows))
    axes = {0: "batch", 1: "length"}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns about every shape that it follows
        torch.onnx.export(
            _Graph(tower).eval(),
            (ids, mask),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding"],
            dynamic_axes={"input_ids": axes, "attention_mask": axes, "sentence_embedding": {0: "batch"}},
            opset_version=_OPSET,
            dynamo=False,
        )
