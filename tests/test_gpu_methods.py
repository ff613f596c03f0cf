"""Every method of training on a CUDA device: it learns there, and is saved and read back. Run with: pytest -m gpu"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_methods import KINDS, ROWS, TEXTS, drops, examples, settings
from tiny_models import write_tiny_model

from ragadapt.adapters import AdapterState, attach
from ragadapt.adapters.quantised import through_four_bits
from ragadapt.config import EncoderConfig, TrainingConfig
from ragadapt.encoder import Encoder
from ragadapt.training import TrainingResult, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

METHODS = [name for name in ROWS if name != "gate"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_tiny_model(tmp_path_factory.mktemp(kind), kind=kind, **KINDS[kind]) for kind in KINDS}


def load(model: Path, device: str, precision: str = "float32") -> Encoder:
    return Encoder.load(EncoderConfig.model_validate({"model": str(model), "device": device, "precision": precision}))


def learn(base: Encoder, method: str) -> TrainingResult:
    training = TrainingConfig(epochs=4, batch_size=8, learning_rate=5e-3)
    adapter = settings(method, reweight="none", **({"dropout": 0.0} if drops(method) else {}))
    return train(base, examples(), None, adapter, training, seed=1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_and_is_read_back(models: dict[str, Path], method: str, precision: str, tmp_path: Path) -> None:
    base = load(models["bert"], "cuda", precision)
    result = learn(base, method)
    losses = [point.loss for point in result.history]
    assert np.isfinite(losses).all() and np.mean(losses[-3:]) < np.mean(losses[:3])
    found = result.encoder.encode_passages(TEXTS)
    result.encoder.state().write(tmp_path / "adapter")
    state = AdapterState.read(tmp_path / "adapter")
    again = attach(base, state.config, seed=1)
    again.set_tensors(dict(state.tensors))
    assert np.abs(again.encode_passages(TEXTS) - found).max() < 1e-3
    result.encoder.scale(0)
    assert np.array_equal(result.encoder.encode_passages(TEXTS), base.encode_passages(TEXTS))


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("flat-lora", "lora-sp", "randlora")])
def test_a_training_follows_the_cpu(models: dict[str, Path], method: str) -> None:
    """Those left out draw at random by the device's own generator."""
    losses = [[point.loss for point in learn(load(models["bert"], on), method).history] for on in ("cuda", "cpu")]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_qlora_learns_on_a_base_in_four_bits_and_folds_into_plain_weights(models: dict[str, Path], kind: str) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    base = load(models[kind], "cuda")
    result = learn(base, "qlora")
    losses = [point.loss for point in result.history]
    assert np.isfinite(losses).all() and np.mean(losses[-3:]) < np.mean(losses[:3])
    for layer in result.encoder.method.layers.values():  # type: ignore[attr-defined]
        assert isinstance(layer.held, bitsandbytes.nn.Linear4bit)
        packed = layer.held.weight
        assert packed.dtype == torch.uint8
        held = bitsandbytes.functional.dequantize_4bit(packed.data, packed.quant_state).float()
        assert torch.allclose(held, through_four_bits(layer.base_layer.weight), atol=1e-3)
    merged = result.encoder.merged()
    cosines = np.sum(merged.encode_passages(TEXTS) * result.encoder.encode_passages(TEXTS), axis=1)
    assert cosines.min() > 0.999
    result.encoder.scale(0)
    assert np.array_equal(result.encoder.encode_passages(TEXTS), base.encode_passages(TEXTS))
