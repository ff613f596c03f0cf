"""The transformers that run here against transformers' own forward: values, gradients, cuts, padding, refusals."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import KINDS, sentences, write_tiny_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from ragadapt.adapters import attach
from ragadapt.adapters.peft import LowRankLinear
from ragadapt.config import AdapterConfig, EncoderConfig, TrainingConfig
from ragadapt.encoder import Encoder
from ragadapt.encoder.architectures import NotCovered, Transformer, covered, of_library, runs_on
from ragadapt.encoder.prefix import split
from ragadapt.training import Example, train

LENGTHS = {
    "as long as each other": [12, 12, 12],
    "mixed": [31, 1, 2, 17, 9],
    "one text": [23],
    "one token": [1],
    "past the window": [44, 40],
    "past a block of queries": [300, 262],  # local layers then multiply blocks of 128 queries
}


def library_model(kind: str, layers: int = 4, **settings: Any) -> nn.Module:
    names = {
        "vocab_size": 160, "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 320, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    made = AutoModel.from_config(AutoConfig.for_model(kind, **{**names, **KINDS[kind], **settings}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))  # norms and biases that do something
    return made.eval()


def batch(lengths: list[int], left: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(max(lengths) - length, None) if left else slice(0, length)
        ids[row, place] = torch.randint(5, 160, (length,), generator=generator)
        mask[row, place] = 1
    return ids, mask


def run(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    hidden: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return hidden


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_values_equal_the_librarys(kind: str, lengths: list[int]) -> None:
    theirs = library_model(kind)
    ours = of_library(theirs)
    ids, mask = batch(lengths)
    with torch.no_grad():
        mine, expected = (run(model, ids, mask)[mask.bool()] for model in (ours, theirs))
    assert expected.std() > 0.1
    assert torch.allclose(mine, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_autograds_through_the_librarys_forward(kind: str, lengths: list[int]) -> None:
    theirs = library_model(kind)
    ids, mask = batch(lengths)
    found = []
    for model in (theirs, of_library(theirs)):
        model.zero_grad(set_to_none=True)
        kept = run(model, ids, mask)[mask.bool()]
        (kept * torch.linspace(-1, 1, kept.numel()).view_as(kept)).sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    expected, mine = found
    assert mine.keys() == {name for name in expected if not name.startswith("pooler.")}
    for name, gradient in mine.items():
        largest = float(expected[name].abs().max())
        assert largest > 0 or "token_type" in name or lengths == [1], name  # one token attends to itself, whatever q is
        assert torch.allclose(gradient, expected[name], rtol=1e-3, atol=1e-4 * max(1.0, largest)), name


@pytest.mark.parametrize("lengths", [LENGTHS["mixed"], LENGTHS["past a block of queries"]])
@pytest.mark.parametrize("kind", ["modernbert", "qwen3"])
def test_in_bfloat16_values_and_gradients_follow_float32(kind: str, lengths: list[int]) -> None:
    whole = library_model(kind, layers=3)
    half = of_library(library_model(kind, layers=3)).bfloat16()
    ids, mask = batch(lengths)
    found = []
    for model in (whole, half):
        kept = run(model, ids, mask)[mask.bool()].float()
        direction = torch.randn(kept.shape, generator=torch.Generator().manual_seed(3))
        (kept * direction).sum().backward()
        weights = {name: p.grad.float().flatten() for name, p in model.named_parameters() if p.grad is not None}
        found.append((kept.detach(), weights))
    (values, gradients), (rounded, others) = found
    assert nn.functional.cosine_similarity(values, rounded).min() > 0.98
    for name, gradient in others.items():
        assert nn.functional.cosine_similarity(gradient, gradients[name], dim=0) > 0.9, name
    matrices = [name for name, p in half.named_parameters() if p.dim() > 1]
    assert np.mean([float(nn.functional.cosine_similarity(others[n], gradients[n], dim=0)) for n in matrices]) > 0.99


def one_by_one(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ends: Tensor,
    *rest: object,
    scale: float,
    window_size: Any = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """What PyTorch's variable_length_attention computes on a GPU, text after text."""
    assert enable_gqa == (q.shape[1] != k.shape[1])
    parts = []
    for start, end in pairwise(ends.tolist()):
        one, keys, values = (side[start:end].transpose(0, 1)[None] for side in (q, k, v))
        at = torch.arange(end - start)
        left, right = (end - start if bound < 0 else bound for bound in window_size)
        seen = (at[None] >= at[:, None] - left) & (at[None] <= at[:, None] + right)
        made = nn.functional.scaled_dot_product_attention(
            one, keys, values, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )
        parts.append(made[0].transpose(0, 1))
    return torch.cat(parts)


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are packed as on a GPU."""
    monkeypatch.setattr("ragadapt.encoder.layout._packs", lambda *_: True)
    monkeypatch.setattr("ragadapt.encoder.layout.variable_length_attention", lambda bounded=False: one_by_one)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("packing")
def test_packed_tokens_give_the_librarys_values_and_gradients(kind: str, left: bool) -> None:
    theirs = library_model(kind)
    ids, mask = batch([31, 1, 2, 17, 60], left=left)
    found = []
    for model in (of_library(theirs), theirs):
        model.zero_grad(set_to_none=True)
        hidden = run(model, ids, mask)
        if model is not theirs:
            assert not hidden[~mask.bool()].any()
        kept = hidden[mask.bool()]
        (kept * torch.linspace(-1, 1, kept.numel()).view_as(kept)).sum().backward()
        found.append((kept.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (mine, gradients), (expected, others) = found
    assert torch.allclose(mine, expected, rtol=1e-4, atol=2e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, others[name], rtol=1e-3, atol=1e-4 * max(1.0, float(others[name].abs().max())))


@pytest.mark.parametrize("reweight", ["none", "tokens"])
def test_packed_tokens_are_pooled_like_padded_ones(
    tmp_path: Path, reweight: str, request: pytest.FixtureRequest
) -> None:
    adapted = attach(
        load(tiny(tmp_path, "modernbert")),
        AdapterConfig.model_validate({"rank": 4, "reweight": reweight, "gamma": 2.0}),
    )
    changed(adapted)
    padded = adapted.encode_passages(TEXTS)
    request.getfixturevalue("packing")
    assert np.allclose(adapted.encode_passages(TEXTS), padded, atol=1e-5)


def test_a_pad_in_the_text_takes_no_position_of_roberta() -> None:
    theirs = library_model("roberta")
    ids, mask = batch([9, 6])
    ids[0, 4] = ids[1, 0] = 0  # as a tokenizer makes them of a text with "<pad>" in it
    with torch.no_grad():
        mine, expected = (run(model, ids, mask)[mask.bool()] for model in (of_library(theirs), theirs))
    assert torch.allclose(mine, expected, rtol=1e-4, atol=2e-5)


def test_left_and_right_padding_give_a_decoder_the_same_values() -> None:
    lengths = LENGTHS["mixed"]
    theirs = library_model("qwen3")
    ours = of_library(theirs)
    with torch.no_grad():
        left, right, expected = (
            run(model, *batch(lengths, left=side))[batch(lengths, left=side)[1].bool()]
            for model, side in ((ours, True), (ours, False), (theirs, True))
        )
    assert torch.allclose(left, right, rtol=1e-4, atol=2e-5)
    assert torch.allclose(left, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("top", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_both_parts_of_a_cut_are_the_whole_to_the_bit(kind: str, top: int) -> None:
    model = of_library(library_model(kind))
    parts = split(model, top)
    assert parts is not None
    ids, mask = batch(LENGTHS["mixed"])
    with torch.no_grad():
        below = run(parts[0], ids, mask)
        above = parts[1](inputs_embeds=below, attention_mask=mask).last_hidden_state
        assert not torch.equal(below, above)
        assert torch.equal(above, run(model, ids, mask))


# Through the encoder


def load(folder: Path, precision: str = "float32", **values: Any) -> Encoder:
    values = {"model": str(folder), "device": "cpu", "precision": precision, **values}
    return Encoder.load(EncoderConfig.model_validate(values))


def tiny(folder: Path, kind: str, **settings: Any) -> Path:
    return write_tiny_model(folder, kind=kind, layers=3, **{**KINDS[kind], **settings})


TEXTS = [*sentences(20), "", "the", " ".join(sentences(8, seed=4))]


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize(("kind", "side"), [*((kind, "right") for kind in KINDS), ("qwen3", "left")])
def test_vectors_equal_those_of_sentence_transformers_with_prompts(
    tmp_path: Path, kind: str, side: str, pooling: str
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tiny(tmp_path, kind, pooling=pooling, padding_side=side)
    library: Any = SentenceTransformer(str(folder), device="cpu")
    assert library.tokenizer.padding_side == side
    encoder = load(folder, query_prompt="what is: ", passage_prompt="read: ")
    assert encoder.query_tower is not None and isinstance(encoder.query_tower.model, Transformer)
    for mine, prompt in ((encoder.encode_queries, "what is: "), (encoder.encode_passages, "read: ")):
        expected = library.encode(TEXTS, prompt=prompt, normalize_embeddings=True)
        assert np.allclose(mine(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_opens_with_torch_alone_and_can_be_adapted_again(tmp_path: Path, kind: str) -> None:
    pooling = "lasttoken" if kind == "qwen3" else "mean"
    base = load(tiny(tmp_path / "base", kind, pooling=pooling, padding_side="left" if kind == "qwen3" else "right"))
    adapted = attach(base, AdapterConfig.model_validate({"rank": 4, "reweight": "none"}))
    changed(adapted)
    adapted.save(tmp_path / "saved")
    opened = Encoder.open(tmp_path / "saved", device="cpu", precision="float32")
    assert (
        opened.query_tower is not None and opened.query_tower.path == "ragadapt's own forward, opened with torch alone"
    )
    assert np.allclose(opened.encode_passages(TEXTS), adapted.encode_passages(TEXTS), atol=1e-5)
    again = attach(opened, AdapterConfig.model_validate({"rank": 2, "layers": 1, "reweight": "none"}))
    changed(again)
    assert np.allclose(again.merged().encode_passages(TEXTS), again.encode_passages(TEXTS), atol=1e-5)
    assert not np.allclose(again.encode_passages(TEXTS), opened.encode_passages(TEXTS), atol=1e-3)


def changed(adapted: Any) -> None:
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


FUSED = {
    "modernbert": {"Wqkv", "Wo", "Wi"},
    "qwen3": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
}


@pytest.mark.parametrize("kind", FUSED)
def test_the_fast_low_rank_layer_serves_every_projection(tmp_path: Path, kind: str) -> None:
    adapted = attach(load(tiny(tmp_path, kind)), AdapterConfig.model_validate({"rank": 4, "reweight": "none"}))
    layers = [(name, module) for name, module in adapted.tower.model.named_modules() if hasattr(module, "lora_A")]
    assert layers and all(isinstance(module, LowRankLinear) for _, module in layers)
    assert {name.rsplit(".", 1)[1] for name, _ in layers} == FUSED[kind]
    changed(adapted)
    results = []
    for plain in (False, True):
        if plain:
            for _, layer in layers:
                layer.__class__ = LowRankLinear.__bases__[0]
        for parameter in adapted.trainable().values():
            parameter.grad = None
        vectors = adapted.tower.vectors(adapted.tower.tokenize(TEXTS)[0])
        (vectors * torch.linspace(-1, 1, vectors.numel()).view_as(vectors)).sum().backward()
        results.append((vectors.detach(), [p.grad for p in adapted.trainable().values()]))
    (mine, gradients), (theirs, expected) = results
    assert torch.allclose(mine, theirs, atol=1e-5)
    for ours, other in zip(gradients, expected, strict=True):
        assert ours is not None and other is not None and other.abs().max() > 0
        assert torch.allclose(ours, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", [{"micro_batch_tokens": 64}, {"prefix_cache": True}])
@pytest.mark.parametrize("kind", FUSED)
def test_cached_gradients_and_a_frozen_prefix_train_to_the_same_weights(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    encoder = load(tiny(tmp_path, kind, pooling="lasttoken" if kind == "qwen3" else "mean"))
    examples = [Example(" ".join(text.split()[::2]), text) for text in sentences(24, seed=5)]
    adapter = AdapterConfig.model_validate({"rank": 4, "layers": 2, "reweight": "none"})

    def trained(**extra: Any) -> dict[str, Tensor]:
        values = {"epochs": 1, "batch_size": 12, "learning_rate": 1e-3, "prefix_cache": False, **extra}
        result = train(encoder, examples, None, adapter, TrainingConfig.model_validate(values), seed=1)
        return {name: p.detach().clone() for name, p in result.encoder.trainable().items()}

    plain, other = trained(), trained(**settings)
    for name, weight in plain.items():
        assert torch.allclose(weight, other[name], atol=2e-4), name
    assert any(weight.abs().max() > 1e-4 for name, weight in plain.items() if "lora_B" in name)


@pytest.mark.parametrize("kind", FUSED)
def test_full_tuning_in_bfloat16_follows_float32(tmp_path: Path, kind: str) -> None:
    folder = tiny(tmp_path, kind, pooling="lasttoken" if kind == "qwen3" else "mean")
    examples = [Example(" ".join(text.split()[::2]), text) for text in sentences(16, seed=5)]
    adapter = AdapterConfig.model_validate({"method": "full", "layers": 1, "reweight": "none"})
    training = TrainingConfig.model_validate({"epochs": 2, "batch_size": 8, "learning_rate": 1e-3})
    losses = [
        [point.loss for point in train(load(folder, precision), examples, None, adapter, training, seed=1).history]
        for precision in ("float32", "bfloat16")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert losses[0][-1] < losses[0][0]


# What is not covered


def test_the_log_says_at_load_which_forward_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ragadapt.encoder"):
        load(tiny(tmp_path / "a", "modernbert"))
        load(tiny(tmp_path / "b", "qwen3", attention_dropout=0.1))
        load(write_tiny_model(tmp_path / "c", kind="mpnet"))
    lines = [record.getMessage() for record in caplog.records if "forward" in record.getMessage()]
    assert [line.split(": ", 1)[1] for line in lines] == [
        "runs in ragadapt's own forward",
        "runs in transformers' forward, as ragadapt's own does not cover attention_dropout = 0.1",
        "runs in transformers' forward, as ragadapt's own does not cover architecture 'mpnet'",
    ]


UNCOVERED: dict[str, tuple[str, dict[str, Any]]] = {
    "dropout of ModernBERT": ("modernbert", {"mlp_dropout": 0.1}),
    "dropout of Qwen3": ("qwen3", {"attention_dropout": 0.1}),
    "a sliding window of Qwen3": ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "another activation": ("modernbert", {"hidden_activation": "gelu_new"}),
    "scaled rotary positions": (
        "qwen3",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}},
    ),
    "dynamic rotary positions": (
        "qwen3",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0,
                             "original_max_position_embeddings": 32}},
    ),
    "a decoder of BERT's kind": ("bert", {"is_decoder": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCOVERED)
def test_what_is_not_covered_is_refused_and_runs_in_the_library(tmp_path: Path, name: str) -> None:
    from sentence_transformers import SentenceTransformer

    kind, settings = UNCOVERED[name]
    with pytest.raises(NotCovered):
        of_library(library_model(kind, **settings))
    if name == "a decoder of BERT's kind":
        return
    folder = tiny(tmp_path, kind, **settings)
    encoder = load(folder)
    assert encoder.query_tower is not None and not isinstance(encoder.query_tower.model, Transformer)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    assert np.allclose(encoder.encode_passages(TEXTS), expected, atol=1e-5)


def test_other_attention_heads_hooks_and_code_are_refused() -> None:
    eager = library_model("modernbert")
    eager.config._attn_implementation = "eager"
    with pytest.raises(NotCovered, match="attention implementation 'eager'"):
        of_library(eager)
    hooked = library_model("qwen3")
    hooked.layers[0].register_forward_hook(lambda *_: None)
    with pytest.raises(NotCovered, match="hooks"):
        of_library(hooked)

    class Other(type(library_model("bert"))):  # type: ignore[misc]
        pass

    other = library_model("bert")
    other.__class__ = Other
    with pytest.raises(NotCovered, match="the class"):
        of_library(other)
    with pytest.raises(NotCovered, match="further weights"):
        more = library_model("qwen3")
        more.head = nn.Linear(32, 3)
        of_library(more)
    with pytest.raises(NotCovered, match="auto_map"):
        covered({**library_model("qwen3").config.to_dict(), "auto_map": {"AutoModel": "x.Y"}})
    with pytest.raises(NotCovered, match="its configuration"):
        covered({"model_type": "modernbert", "hidden_activation": "gelu"})


def test_a_forward_that_differs_from_the_librarys_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from sentence_transformers import SentenceTransformer

    from ragadapt.encoder.architectures import ModernBert

    folder = tiny(tmp_path, "modernbert")
    monkeypatch.setattr(ModernBert, "finish", lambda self, hidden: hidden)
    with caplog.at_level(logging.INFO, logger="ragadapt.encoder"):
        encoder = load(folder)
    assert encoder.query_tower is not None and not isinstance(encoder.query_tower.model, Transformer)
    assert "differs" in caplog.text
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    assert np.allclose(encoder.encode_passages(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_that_cannot_pack_windows_the_librarys_forward_runs(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragadapt.encoder.architectures.variable_length_attention", lambda bounded: None)
    model = of_library(library_model(kind))
    assert runs_on(model, torch.device("cpu")) is model
    if kind in ("bert", "roberta"):
        assert runs_on(model, torch.device("cuda")) is model
    else:
        with pytest.raises(NotCovered, match="this build of PyTorch"):
            runs_on(model, torch.device("cuda"))
