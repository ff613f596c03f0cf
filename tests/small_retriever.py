"""A small fitted retriever over made-up pages: a tiny random model, so that words carry the search."""

from __future__ import annotations

from pathlib import Path

from tiny_models import sentences, write_tiny_model

from ragadapt.config import FitConfig
from ragadapt.pipeline.fit import fit

PAGES = 12


def write_pages(folder: Path) -> Path:
    """Pages with front matter: language, number and an owner of every second one."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = iter(sentences(PAGES * 6, words=12, seed=5))
    for number in range(PAGES):
        front = f"---\nlang: {'en' if number % 2 else 'de'}\nnumber: {number}\n---\n"
        body = "".join(f"## Part {part}\n\n" + ". ".join(next(lines) for _ in range(3)) + ".\n\n" for part in range(2))
        (folder / f"page{number:02}.md").write_text(f"{front}# Page {number}\n\n{body}", encoding="utf-8")
    return folder


def fit_pages(folder: Path, **index: str) -> Path:
    """The folder of a retriever fitted to the pages. index: settings of its index."""
    model = write_tiny_model(folder / "base")
    config = FitConfig.build(
        {
            "encoder": {"model": str(model), "precision": "float32"},
            "chunk": {"max_tokens": 40, "min_tokens": 4},
            "adapter": {"method": "none"},
            "index": {"kind": "exact", **index},
        }
    )
    return fit([write_pages(folder / "docs")], folder / "retriever", config).path
