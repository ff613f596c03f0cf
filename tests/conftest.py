"""Shared fixtures: the real small model, the real collections where they are present."""

from __future__ import annotations

import logging
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real test collections; the test skips where it is missing."""
    folder = Path(os.environ.get("RAGADAPT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test collections at {folder}; set RAGADAPT_DATA")
    return folder


@pytest.fixture(autouse=True)
def fresh_log() -> None:
    """As a library's user meets it: the command line, which other tests run, sets level and way of the log."""
    logging.getLogger("ragadapt").setLevel(logging.NOTSET)
    logging.getLogger("ragadapt").propagate = True
    logging.getLogger().setLevel(logging.WARNING)
