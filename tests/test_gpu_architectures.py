"""ModernBERT and Qwen3 on a CUDA device: packed attention with windows, causality and shared keys gives the CPU's
vectors and gradients. Run with: pytest -m gpu"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_encoder_architectures import KINDS, batch, library_model
from tiny_models import sentences, write_tiny_model
from torch import Tensor, nn

from ragadapt.config import AdapterConfig, EncoderConfig, TrainingConfig
from ragadapt.encoder import Encoder
from ragadapt.encoder.architectures import of_library
from ragadapt.encoder.attention import ALL, CAUSAL, Reach, variable_length_attention
from ragadapt.encoder.layout import Layout, Rotary
from ragadapt.training import Example, TrainingResult, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

LENGTHS = [31, 1, 2, 17, 44, 304]


def needs_packing() -> None:
    if variable_length_attention(bounded=True) is None:
        pytest.skip("this build or this GPU has no attention over packed texts with a window and shared keys")


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("heads", [(4, 4), (4, 1)])
@pytest.mark.parametrize("reach", [ALL, (8, 8), CAUSAL])
def test_packed_attention_equals_the_cpus(reach: Reach, heads: tuple[int, int], left: bool) -> None:
    needs_packing()
    _, mask = batch(LENGTHS, left=left)
    found: list[list[Tensor]] = []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        generator = torch.Generator().manual_seed(0)
        sides = [torch.randn(*mask.shape, count, 32, generator=generator) for count in (heads[0], heads[1], heads[1])]
        q, k, v = (side.bfloat16().to(device, dtype).requires_grad_() for side in sides)
        layout = Layout(mask.to(device), q.flatten(-2), 32)
        assert (layout.places is not None) is (device == "cuda")
        packed = (layout.pack(side.flatten(2)).unflatten(-1, side.shape[2:]) for side in (q, k, v))
        out = layout.unpack(layout.attend(*packed, reach, Rotary(10_000.0, 32)))
        kept = out[mask.bool().to(device)]
        kept.float().square().sum().backward()
        found.append(
            [kept.detach().float().cpu(), *(side.grad.float().cpu() for side in (q, k, v) if side.grad is not None)]
        )
    assert len(found[0]) == len(found[1]) == 4
    for exact, mine in zip(*found, strict=True):
        assert (mine - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_gradients_equal_the_cpus(kind: str) -> None:
    ids, mask = batch(LENGTHS)
    found = []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.float32), ("cuda", torch.bfloat16)):
        model = of_library(library_model(kind)).to(device, dtype)
        hidden = model(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state
        kept = hidden[mask.bool().to(device)].float()
        (kept * torch.linspace(-1, 1, kept.numel(), device=device).view_as(kept)).sum().backward()
        weights = [p.grad.float().cpu().flatten() for p in model.parameters() if p.dim() > 1 and p.grad is not None]
        found.append((kept.detach().cpu(), weights))
    (exact, gradients), (same, others), (rounded, rough) = found
    assert torch.allclose(same, exact, rtol=1e-3, atol=1e-3)
    assert nn.functional.cosine_similarity(rounded, exact).min() > 0.97
    for one, whole, half in zip(gradients, others, rough, strict=True):
        if one.norm() > 0:
            assert nn.functional.cosine_similarity(whole, one, dim=0) > 0.9999
            assert nn.functional.cosine_similarity(half, one, dim=0) > 0.9


def encoder(model: Path, device: str, precision: str = "float32") -> Encoder:
    return Encoder.load(EncoderConfig.model_validate({"model": str(model), "device": device, "precision": precision}))


def tiny(folder: Path, kind: str) -> Path:
    pooling, side = ("lasttoken", "left") if kind == "qwen3" else ("mean", "right")
    return write_tiny_model(folder, kind=kind, layers=3, pooling=pooling, padding_side=side, **KINDS[kind])


@pytest.mark.parametrize(("precision", "least"), [("float32", 0.9999), ("auto", 0.99)])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_equal_those_of_the_cpu(tmp_path: Path, kind: str, precision: str, least: float) -> None:
    texts = [*sentences(100), "the", " ".join(sentences(12, seed=2))]
    model = tiny(tmp_path, kind)
    on_gpu = encoder(model, "cuda", precision)
    own = kind in ("bert", "roberta") or variable_length_attention(bounded=True) is not None
    assert on_gpu.query_tower is not None and (on_gpu.query_tower.path == "ragadapt's own forward") is own
    cosines = np.sum(on_gpu.encode_passages(texts) * encoder(model, "cpu").encode_passages(texts), axis=1)
    assert cosines.min() > least


@pytest.mark.parametrize("settings", [{}, {"prefix_cache": True}, {"micro_batch_tokens": 128}])
@pytest.mark.parametrize("kind", ["modernbert", "qwen3"])
def test_training_follows_the_cpu(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    texts = sentences(40, words=16, seed=5)
    examples = [Example(" ".join(text.split()[::2]), text) for text in texts]
    values = {"epochs": 2, "batch_size": 16, "learning_rate": 2e-3, "prefix_cache": False, **settings}
    model = tiny(tmp_path, kind)

    def run(device: str) -> TrainingResult:
        adapter = AdapterConfig(rank=4, layers=2)
        return train(encoder(model, device), examples, None, adapter, TrainingConfig.model_validate(values), seed=1)

    on_gpu, on_cpu = run("cuda"), run("cpu")
    assert [point.loss for point in on_gpu.history] == pytest.approx([p.loss for p in on_cpu.history], rel=0.02)
    vectors = [result.encoder.merged().encode_passages(texts) for result in (on_gpu, on_cpu)]
    assert np.sum(vectors[0] * vectors[1], axis=1).min() > 0.999


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("kind", ["modernbert", "qwen3"])
def test_training_in_16_bits_lowers_the_loss(tmp_path: Path, kind: str, method: str) -> None:
    texts = sentences(40, words=16, seed=5)
    examples = [Example(" ".join(text.split()[::2]), text) for text in texts]
    training = TrainingConfig(epochs=4, batch_size=16, learning_rate=2e-3)
    base = encoder(tiny(tmp_path, kind), "cuda", "bfloat16")
    adapter = AdapterConfig.model_validate({"method": method, "layers": 2, "reweight": "none"})
    losses = [point.loss for point in train(base, examples, None, adapter, training, seed=1).history]
    assert np.mean(losses[-2:]) < np.mean(losses[:2])
