"""The ONNX file gives PyTorch's vectors, for batches of any shape."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import sentences, write_tiny_model

from ragadapt.adapters import attach
from ragadapt.config import AdapterConfig, EncoderConfig
from ragadapt.encoder import Encoder
from ragadapt.errors import MissingExtra
from ragadapt.export import export, write_onnx

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def adapted(tmp_path: Path, **settings: object) -> Encoder:
    folder = write_tiny_model(tmp_path / "base")
    values = {"model": str(folder), "device": "cpu", "precision": "float32", "query_prompt": "who is "}
    encoder = Encoder.load(EncoderConfig.model_validate(values))
    made = attach(encoder, AdapterConfig.model_validate({"rank": 4, **settings}))
    with torch.no_grad():
        for parameter in made.trainable().values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return made.merged()


def export_onnx(encoder: Encoder, folder: Path) -> float:
    model = folder.with_name("model")
    encoder.save(model, portable=True)
    folder.mkdir()
    return write_onnx(Encoder.open(model, device="cpu", precision="float32"), model, folder)


def run(path: Path, encoder: Encoder, texts: list[str]) -> np.ndarray:
    assert encoder.query_tower is not None
    ids, mask = encoder.query_tower.pad(encoder.query_tower.tokenize(texts)[0])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input_ids": ids, "attention_mask": mask})[0])


@pytest.mark.parametrize("reweight", ["vector", "tokens"])
def test_onnx_vectors_equal_ours_for_other_shapes_than_traced(tmp_path: Path, reweight: str) -> None:
    encoder = adapted(tmp_path, reweight=reweight)
    assert export_onnx(encoder, tmp_path / "onnx") > 0.99999
    for texts in (sentences(1), sentences(17, words=40), ["the cat", "the " * 60]):
        assert np.allclose(
            run(tmp_path / "onnx" / "model.onnx", encoder, texts), encoder.encode_passages(texts), atol=1e-5
        )
    about = json.loads((tmp_path / "onnx" / "ragadapt_onnx.json").read_text())
    assert about["query"]["prompt"] == "who is " and about["fingerprint"] == encoder.fingerprint
    assert (tmp_path / "onnx" / "tokenizer.json").is_file()


def test_sides_that_differ_become_two_files(tmp_path: Path) -> None:
    encoder = adapted(tmp_path, adapt="query")
    export_onnx(encoder, tmp_path / "onnx")
    texts = sentences(5)
    prompted = [f"who is {text}" for text in texts]
    assert np.allclose(
        run(tmp_path / "onnx" / "query.onnx", encoder, prompted), encoder.encode_queries(texts), atol=1e-5
    )
    assert np.allclose(
        run(tmp_path / "onnx" / "passage.onnx", encoder, texts), encoder.encode_passages(texts), atol=1e-5
    )


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: object, **options: object) -> object:
        if name == "onnx":
            raise ImportError(name)
        return real(name, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"ragadapt\[onnx\]"):
        export(tmp_path, tmp_path / "onnx", "onnx")
