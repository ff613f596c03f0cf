"""Saved models opened with torch alone: the same tokens, the same vectors, still adaptable."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import sentences, write_tiny_model

from ragadapt.adapters import attach
from ragadapt.config import AdapterConfig, EncoderConfig
from ragadapt.encoder import Encoder
from ragadapt.encoder.direct import Bert, open_towers

TEXTS = [*sentences(12), "", "the " * 90]


def saved(tmp_path: Path, kind: str = "bert", pooling: str = "mean", **settings: object) -> tuple[Path, Encoder]:
    folder = write_tiny_model(tmp_path / "base", kind=kind, pooling=pooling)
    values = {"model": str(folder), "device": "cpu", "precision": "float32", "query_prompt": "who is "}
    adapted = attach(
        Encoder.load(EncoderConfig.model_validate(values)),
        AdapterConfig.model_validate({"rank": 4, "layers": 1, **settings}),
    )
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    encoder = adapted.merged()
    encoder.save(tmp_path / "model")
    return tmp_path / "model", encoder


def directly_opened(folder: Path, precision: str = "float32") -> Encoder:
    assert json.loads((folder / "ragadapt_encoder.json").read_text())["direct"] is True
    encoder = Encoder.open(folder, device="cpu", precision=precision)
    assert encoder.query_tower is not None and isinstance(encoder.query_tower.model, Bert)
    return encoder


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_vectors_equal_those_of_the_libraries(tmp_path: Path, kind: str, pooling: str) -> None:
    folder, encoder = saved(tmp_path, kind, pooling)
    opened = directly_opened(folder)
    assert opened.fingerprint == encoder.fingerprint
    assert np.allclose(opened.encode_queries(TEXTS), encoder.encode_queries(TEXTS), atol=1e-5)
    assert np.allclose(opened.encode_passages(TEXTS), encoder.encode_passages(TEXTS), atol=1e-5)
    assert opened.truncated == encoder.truncated == 1
    assert opened.count_tokens(TEXTS) == encoder.count_tokens(TEXTS)
    assert opened.special_tokens == encoder.special_tokens == 2


@pytest.mark.parametrize("adapt", ["both", "query"])
@pytest.mark.parametrize("reweight", ["none", "vector", "dims", "tokens"])
def test_every_kind_of_adapter_opens_directly(tmp_path: Path, reweight: str, adapt: str) -> None:
    folder, encoder = saved(tmp_path, reweight=reweight, adapt=adapt)
    opened = directly_opened(folder)
    assert np.allclose(opened.encode_queries(TEXTS), encoder.encode_queries(TEXTS), atol=1e-5)
    assert np.allclose(opened.encode_passages(TEXTS), encoder.encode_passages(TEXTS), atol=1e-5)


def test_directly_opened_models_can_be_saved_cached_and_adapted_again(tmp_path: Path) -> None:
    folder, encoder = saved(tmp_path)
    opened = directly_opened(folder)
    opened.save(tmp_path / "again")
    assert np.allclose(
        directly_opened(tmp_path / "again").encode_queries(TEXTS), encoder.encode_queries(TEXTS), atol=1e-5
    )
    assert opened.use_prefix_cache(tmp_path / "cache", top_layers=1)
    adapted = attach(opened, AdapterConfig.model_validate({"rank": 2, "layers": 1, "reweight": "none"}))
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.add_(0.1)
    vectors = adapted.encode_queries(TEXTS)
    assert not np.allclose(vectors, encoder.encode_queries(TEXTS), atol=1e-3)
    assert np.allclose(adapted.merged().encode_queries(TEXTS), vectors, atol=1e-5)


def test_bfloat16_is_measured_here_too(tmp_path: Path) -> None:
    folder, encoder = saved(tmp_path)
    opened = directly_opened(folder, "bfloat16")
    assert opened.precision.min_cosine < 1
    assert np.sum(opened.encode_queries(TEXTS) * encoder.encode_queries(TEXTS), axis=1).min() > 0.99


def test_where_bfloat16_does_not_hold_the_folder_opens_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragadapt.encoder.precision.Precision.holds", False)
    folder, encoder = saved(tmp_path)
    opened = directly_opened(folder, "bfloat16")
    assert opened.precision.dtype == "float32"
    assert np.allclose(opened.encode_queries(TEXTS), encoder.encode_queries(TEXTS), atol=1e-5)


@pytest.mark.parametrize("kind", ["distilbert", "mpnet"])
def test_other_architectures_go_the_long_way(tmp_path: Path, kind: str) -> None:
    folder, encoder = saved(tmp_path, kind)
    assert open_towers(folder, 48) is None
    opened = Encoder.open(folder, device="cpu", precision="float32")
    assert np.allclose(opened.encode_queries(TEXTS), encoder.encode_queries(TEXTS), atol=1e-5)


def test_a_damaged_folder_goes_the_long_way(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path)
    (folder / "sentence_bert_config.json").write_text("{")
    assert open_towers(folder, 48) is None


def test_opening_and_searching_imports_no_large_library(tmp_path: Path) -> None:
    folder, encoder = saved(tmp_path)
    script = f"""
import json, sys
from ragadapt.encoder import Encoder
vectors = Encoder.open({str(folder)!r}, device="cpu", precision="float32").encode_queries(["the cat"])
loaded = [name for name in ("transformers", "sentence_transformers", "peft", "scipy") if name in sys.modules]
print(json.dumps([loaded, vectors[0].tolist()]))
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    loaded, vector = json.loads(out)
    assert loaded == []
    assert np.allclose(vector, encoder.encode_queries(["the cat"])[0], atol=1e-5)
