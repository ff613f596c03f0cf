"""Shared fixtures: the real small model, the real collections where they are present."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
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


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own with room for 400 kB."""
    place = tmp_path / "tiny"
    place.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)], capture_output=True
        ).returncode
    ):
        pytest.skip("only root on Linux can mount a tiny disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(autouse=True)
def fresh_log() -> None:
    """As a library's user meets it: the command line, which other tests run, sets level and way of the log."""
    logging.getLogger("ragadapt").setLevel(logging.NOTSET)
    logging.getLogger("ragadapt").propagate = True
    logging.getLogger().setLevel(logging.WARNING)
