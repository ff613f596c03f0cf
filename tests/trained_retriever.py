"""A small retriever whose model was trained, whatever the gate would say of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_retriever import write_pages
from tiny_models import write_tiny_model

from ragadapt.config import FitConfig
from ragadapt.evaluation import gate
from ragadapt.pipeline.fit import fit
from ragadapt.pipeline.queries import Labels


def fit_trained(folder: Path, **adapter: Any) -> Path:
    """The folder of a retriever fitted to made-up pages with labels. adapter: settings of its adapter."""
    docs = write_pages(folder / "docs")
    lines = []
    for at, page in enumerate(sorted(docs.glob("*.md"))):
        for part, text in enumerate(page.read_text(encoding="utf-8").split("\n\n")[2::2]):
            quote = {"source": page.name, "quote": text}
            lines.append({"_id": f"{at}-{part}", "text": " ".join(text.split()[1:6]), "evidence": [quote]})
    labels = folder / "labels.jsonl"
    labels.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    config = FitConfig.build(
        {
            "encoder": {"model": str(write_tiny_model(folder / "base")), "precision": "float32"},
            "chunk": {"max_tokens": 40, "min_tokens": 4},
            "adapter": {"rank": 4, **adapter},
            "training": {"epochs": 2, "learning_rate": 5e-3},
            "fusion": {"weight": 0.9},  # so that the model has its say
            "index": {"kind": "exact"},
        }
    )
    decide = gate.decide
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "decide", lambda **given: replace(decide(**given), verdict=gate.Verdict.WIN, strength=1.0))
        patch.setattr(gate, "within_drift", lambda decision, *_: decision)
        return fit([docs], folder / "retriever", config, labels=[Labels(labels)]).path
