"""Adapters: nothing at the start, proved at the end, the same when merged, saved and opened elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny_models import sentences, write_tiny_model
from torch import Tensor

from ragadapt.adapters import AdaptedEncoder, attach
from ragadapt.adapters.reweight import dimension_weights, matrix
from ragadapt.config import AdapterConfig, EncoderConfig, TrainingConfig
from ragadapt.encoder import Encoder
from ragadapt.encoder.pooling import weighted_mean
from ragadapt.errors import InvalidConfiguration, InvalidInput, TrainingFailed
from ragadapt.training import Example, train

TEXTS = sentences(12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), layers=4)


def load(folder: Path, precision: str = "float32") -> Encoder:
    return Encoder.load(EncoderConfig.model_validate({"model": str(folder), "device": "cpu", "precision": precision}))


def settings(**values: object) -> AdapterConfig:
    rank = {} if values.get("method") == "full" else {"rank": 4}
    return AdapterConfig.model_validate({**rank, **values})


def shake(encoder: AdaptedEncoder, seed: int = 0, size: float = 0.2) -> AdaptedEncoder:
    """As if it had been trained: random values in every trainable tensor."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in encoder.trainable().values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return encoder


@pytest.mark.parametrize("reweight", ["none", "vector", "vector-learnt", "dims", "tokens"])
def test_a_fresh_adapter_changes_nothing(folder: Path, reweight: str) -> None:
    base = load(folder)
    fresh = attach(base, settings(reweight=reweight))
    assert np.allclose(fresh.encode_passages(TEXTS), base.encode_passages(TEXTS), atol=1e-6)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_base_is_left_as_it_was(folder: Path, method: str) -> None:
    base = load(folder)
    before, fingerprint = base.encode_queries(TEXTS), base.fingerprint
    adapted = shake(attach(base, settings(method=method)))
    merged = adapted.merged()
    assert np.array_equal(base.encode_queries(TEXTS), before) and base.fingerprint == fingerprint
    assert not np.allclose(merged.encode_queries(TEXTS), before, atol=1e-3)


def test_frozen_weights_are_shared_with_the_base(folder: Path) -> None:
    base = load(folder)
    adapted = attach(base, settings(layers=1))
    assert base.query_tower is not None
    mine = {parameter.data_ptr() for parameter in adapted.tower.model.parameters()}
    theirs = {parameter.data_ptr() for parameter in base.query_tower.model.parameters()}
    assert theirs <= mine
    assert len(mine) - len(theirs) == 2 * 6  # A and B of six linear layers


@pytest.mark.parametrize("adapt", ["both", "query"])
@pytest.mark.parametrize("reweight", ["none", "vector", "vector-learnt", "dims", "tokens"])
def test_merged_saved_and_reopened_vectors_are_those_of_the_adapted(
    folder: Path, tmp_path: Path, reweight: str, adapt: str
) -> None:
    adapted = shake(attach(load(folder), settings(reweight=reweight, adapt=adapt, gamma=2.0)))
    queries, passages = adapted.encode_queries(TEXTS), adapted.encode_passages(TEXTS)
    merged = adapted.merged()
    assert np.allclose(merged.encode_queries(TEXTS), queries, atol=1e-5)
    assert np.allclose(merged.encode_passages(TEXTS), passages, atol=1e-5)
    assert merged.fingerprint == adapted.fingerprint

    saved = merged.save(tmp_path / "model")
    assert saved.portable and saved.reload_cosine > 0.99999
    # Only the reading "tokens" needs a class of ours, which its reader must allow.
    library = SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=reweight == "tokens")
    assert np.allclose(library.encode_query(TEXTS), queries, atol=1e-5)
    assert np.allclose(library.encode_document(TEXTS), passages, atol=1e-5)

    again = Encoder.open(tmp_path / "model", device="cpu", precision="float32")
    assert again.fingerprint == adapted.fingerprint and again.spec == adapted.spec
    assert np.allclose(again.encode_queries(TEXTS), queries, atol=1e-5)
    assert np.allclose(again.encode_passages(TEXTS), passages, atol=1e-5)
    again.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "adapter" / "adapter_model.safetensors").is_file()


def test_query_side_only_keeps_passage_vectors_to_the_bit(folder: Path) -> None:
    base = load(folder)
    adapted = shake(attach(base, settings(adapt="query")))
    assert np.array_equal(adapted.encode_passages(TEXTS), base.encode_passages(TEXTS))
    assert np.array_equal(adapted.merged().encode_passages(TEXTS), base.encode_passages(TEXTS))
    assert not np.allclose(adapted.encode_queries(TEXTS), base.encode_queries(TEXTS), atol=1e-2)


def test_saved_adapter_holds_the_pairs_in_pefts_format(folder: Path, tmp_path: Path) -> None:
    from peft import PeftConfig, PeftModel
    from transformers import AutoModel

    base = load(folder)
    adapted = shake(attach(base, settings(reweight="none")))
    adapted.save(tmp_path / "model")
    assert PeftConfig.from_pretrained(str(tmp_path / "model" / "adapter")).r == 4
    names = load_file(tmp_path / "model" / "adapter" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.encoder.layer.") for name in names)
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(folder), str(tmp_path / "model" / "adapter")).eval()
    ids, mask = adapted.tower.to_tensors(adapted.tower.tokenize(TEXTS)[0])
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        assert np.allclose(adapted.tower.pool(hidden, mask).numpy(), adapted.encode_queries(TEXTS), atol=1e-5)


def test_a_hub_base_can_be_saved_by_reference(folder: Path, tmp_path: Path) -> None:
    base = load(folder)
    base._spec = EncoderSpec_with_hub_base(base, f"{folder}@0123abc")
    adapted = shake(attach(base, settings(reweight="vector")))
    expected = adapted.encode_queries(TEXTS)
    saved = adapted.merged().save(tmp_path / "model", portable=False)
    assert not saved.portable and saved.reload_cosine > 0.99999
    assert not (tmp_path / "model" / "model.safetensors").exists()
    assert (tmp_path / "model" / "adapter_model.safetensors").is_file()
    library = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert np.allclose(library.encode_query(TEXTS), expected, atol=1e-5)
    again = Encoder.open(tmp_path / "model", device="cpu", precision="float32")
    assert np.allclose(again.encode_queries(TEXTS), expected, atol=1e-5)


def EncoderSpec_with_hub_base(encoder: Encoder, base: str):  # type: ignore[no-untyped-def]  # noqa: N802
    from dataclasses import replace

    return replace(encoder.spec, base=base)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_scale_goes_from_the_base_to_what_was_trained(folder: Path, method: str) -> None:
    base = load(folder)
    adapted = shake(attach(base, settings(method=method, layers=2)))
    trained, fingerprint = adapted.encode_queries(TEXTS), adapted.fingerprint
    start = base.encode_queries(TEXTS)
    adapted.scale(0)
    assert np.array_equal(adapted.encode_queries(TEXTS), start)
    assert np.allclose(adapted.merged().encode_queries(TEXTS), start, atol=1e-6)
    assert adapted.fingerprint == base.fingerprint
    distances = []
    for strength in (0.25, 0.5, 0.75, 1.0):
        adapted.scale(strength)
        vectors = adapted.encode_queries(TEXTS)
        assert np.allclose(adapted.merged().encode_queries(TEXTS), vectors, atol=1e-5)
        distances.append(float(np.mean(1 - np.sum(vectors * start, axis=1))))
    assert distances == sorted(distances) and distances[0] > 0
    assert np.allclose(vectors, trained, atol=1e-6) and adapted.fingerprint == fingerprint
    with pytest.raises(InvalidInput, match="between 0"):
        adapted.scale(1.5)


@pytest.mark.parametrize("reweight", ["dims", "tokens"])
def test_scaled_reweighting_survives_merging(folder: Path, reweight: str) -> None:
    adapted = shake(attach(load(folder), settings(reweight=reweight)))
    adapted.scale(0.5)
    assert np.allclose(adapted.merged().encode_queries(TEXTS), adapted.encode_queries(TEXTS), atol=1e-5)


def test_gamma_zero_is_the_ablation(folder: Path) -> None:
    base = load(folder)
    plain = shake(attach(base, settings(reweight="none"))).encode_queries(TEXTS)
    for reweight in ("vector", "dims", "tokens"):
        ablated = shake(attach(base, settings(reweight=reweight, gamma=0.0)))
        assert np.allclose(ablated.encode_queries(TEXTS), plain, atol=1e-6)
        strong = shake(attach(base, settings(reweight=reweight, gamma=4.0)))
        assert not np.allclose(strong.encode_queries(TEXTS), plain, atol=1e-4)


def test_a_learnt_gamma_is_one_parameter_more_and_part_of_the_state(folder: Path, tmp_path: Path) -> None:
    base = load(folder)
    plain = attach(base, settings(reweight="vector", gamma=0.5))
    learnt = attach(base, settings(reweight="vector-learnt", gamma=0.5))
    assert set(learnt.trainable()) - set(plain.trainable()) == {"reweight.gamma"}
    assert learnt.trainable()["reweight.gamma"].shape == () and learnt.state().config.gamma == 0.5
    shake(plain), shake(learnt)
    with torch.no_grad():
        learnt.trainable()["reweight.gamma"].fill_(0.5)
    assert np.allclose(learnt.encode_queries(TEXTS), plain.encode_queries(TEXTS), atol=1e-6)
    with torch.no_grad():
        learnt.trainable()["reweight.gamma"].fill_(-1.5)
    other = attach(base, settings(reweight="vector", gamma=-1.5))
    other.set_tensors({name: value for name, value in learnt.trainable().items() if name != "reweight.gamma"})
    expected = other.encode_queries(TEXTS)
    assert np.allclose(learnt.encode_queries(TEXTS), expected, atol=1e-6)
    assert learnt.state().config.gamma == -1.5 and learnt.fingerprint != plain.fingerprint
    learnt.save(tmp_path / "model")
    again = Encoder.open(tmp_path / "model", device="cpu", precision="float32")
    assert again.fingerprint == learnt.fingerprint and np.allclose(again.encode_queries(TEXTS), expected, atol=1e-5)


def test_a_learnt_gamma_gets_the_gradient_of_its_formula(folder: Path) -> None:
    learnt = shake(attach(load(folder), settings(reweight="vector-learnt")))
    gamma = learnt.trainable()["reweight.gamma"]
    rows = learnt.tower.tokenize(TEXTS)[0]
    pull = torch.randn(len(TEXTS), learnt.dim, generator=torch.Generator().manual_seed(0))

    def value(step: float) -> Tensor:
        with torch.no_grad():
            gamma.add_(step)
        made = (learnt.tower.vectors(rows) * pull).sum()
        with torch.no_grad():
            gamma.sub_(step)
        return made

    (mine,) = torch.autograd.grad(value(0.0), [gamma])
    with torch.no_grad():
        slope = (value(1e-2) - value(-1e-2)) / 2e-2
    assert abs(float(mine)) > 1e-3 and torch.allclose(mine, slope, rtol=1e-2)


def test_a_learnt_gamma_is_trained_and_resumed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [Example(" ".join(text.split()[::2]), text) for text in sentences(24, words=16, seed=5)]
    training = TrainingConfig(epochs=2, batch_size=8, learning_rate=2e-3)
    monkeypatch.setattr("ragadapt.training.loop._CHECKPOINT_SECONDS", 0.0)

    class Killed(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 3:
            raise Killed

    config = settings(reweight="vector-learnt")
    whole = train(load(folder), examples, None, config, training, seed=1)
    gamma = whole.encoder.state().config.gamma
    assert gamma != 1.0 and abs(gamma - 1) < 0.1
    with pytest.raises(Killed):
        train(load(folder), examples, None, config, training, seed=1, checkpoint=tmp_path / "run", progress=stop)
    resumed = train(load(folder), examples, None, config, training, seed=1, checkpoint=tmp_path / "run")
    assert resumed.resumed_from == 3 and resumed.encoder.fingerprint == whole.encoder.fingerprint


def test_effect_is_proved_after_training_and_missing_before(folder: Path) -> None:
    fresh = attach(load(folder), settings())
    nothing = fresh.effect()
    assert nothing.change == 0 and abs(nothing.moved) < 1e-6 and len(nothing.problems) == 2
    with pytest.raises(TrainingFailed, match="still zero"):
        fresh.effect(strict=True)
    effect = shake(fresh).effect(strict=True)
    assert effect.proved and effect.change > 0 and effect.moved > 1e-3 and effect.merged > 0.9999
    expected = torch.cat([t.detach().flatten() for name, t in fresh.trainable().items() if "lora_B" in name]).norm()
    assert effect.change == pytest.approx(float(expected), rel=1e-5)


def test_bfloat16_runs_and_stays_close_to_float32(folder: Path) -> None:
    vectors = []
    for precision in ("float32", "bfloat16"):
        base = load(folder, precision)
        vectors.append(shake(attach(base, settings(reweight="vector")), size=0.05).encode_queries(TEXTS))
    assert np.sum(vectors[0] * vectors[1], axis=1).min() > 0.99


def test_trainable_tensors_are_float32_in_every_precision(folder: Path) -> None:
    for method in ("lora", "full"):
        adapted = attach(load(folder, "bfloat16"), settings(method=method))
        assert {parameter.dtype for parameter in adapted.trainable().values()} == {torch.float32}


def test_one_seed_means_one_start_in_every_precision(folder: Path) -> None:
    a, b = (attach(load(folder, precision), settings(), seed=3) for precision in ("float32", "bfloat16"))
    c = attach(load(folder), settings(), seed=4)
    names = list(a.trainable())
    assert all(torch.equal(a.trainable()[name], b.trainable()[name]) for name in names)
    assert not all(torch.equal(a.trainable()[name], c.trainable()[name]) for name in names)


def test_all_layers_and_all_their_linear_layers_are_the_default(folder: Path) -> None:
    names = [name for name in attach(load(folder), settings()).trainable() if "lora_A" in name]
    assert len(names) == 4 * 6
    names = [name for name in attach(load(folder), settings(layers=2)).trainable() if "lora_A" in name]
    assert len(names) == 2 * 6 and all(".layer.2." in name or ".layer.3." in name for name in names)


def test_targets_choose_by_the_end_of_the_name(folder: Path) -> None:
    base = load(folder)
    chosen = attach(base, settings(targets=("query", "attention.output.dense"), layers=1))
    assert {name.split(".lora")[0] for name in chosen.trainable()} == {
        "encoder.layer.3.attention.self.query",
        "encoder.layer.3.attention.output.dense",
    }
    with pytest.raises(InvalidConfiguration, match=r"This model has: .*self\.query"):
        attach(base, settings(targets=("q_proj",)))


def test_what_cannot_be_adapted_is_refused(folder: Path, tmp_path: Path) -> None:
    base = load(folder)
    with pytest.raises(InvalidConfiguration, match="trains nothing"):
        attach(base, settings(method="none"))
    with pytest.raises(InvalidConfiguration, match="has 4 layers"):
        attach(base, settings(layers=5))
    with pytest.raises(InvalidConfiguration, match="none is adapted"):
        attach(base, settings(targets=("intermediate.dense",)))
    by_cls = load(write_tiny_model(tmp_path, pooling="cls"))
    with pytest.raises(InvalidConfiguration, match="mean pooling"):
        attach(by_cls, settings(reweight="tokens"))
    merged = shake(attach(base, settings(adapt="query"))).merged()
    with pytest.raises(InvalidConfiguration, match="query side"):
        attach(merged, settings())


@pytest.mark.parametrize("kind", ["distilbert", "mpnet", "roberta", "modernbert", "qwen3"])
def test_other_architectures_merge_and_save(tmp_path: Path, kind: str) -> None:
    extra: dict[str, object] = {}
    if kind == "modernbert":
        extra = {"local_attention": 16, "cls_token_id": 2, "sep_token_id": 3}
    if kind == "qwen3":
        extra = {"num_key_value_heads": 1, "head_dim": 16}
    base = load(write_tiny_model(tmp_path / "base", kind=kind, **extra))
    assert base.use_prefix_cache(tmp_path / "cache")
    adapted = shake(attach(base, settings(layers=1)))
    vectors = adapted.encode_queries(TEXTS)
    assert not np.allclose(vectors, base.encode_queries(TEXTS), atol=1e-2)
    assert np.allclose(adapted.merged().encode_queries(TEXTS), vectors, atol=1e-5)
    adapted.save(tmp_path / "model")
    library = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert np.allclose(library.encode_query(TEXTS), vectors, atol=1e-5)


def test_a_prefix_cache_above_the_trained_layers_is_left(folder: Path, tmp_path: Path) -> None:
    base = load(folder)
    base.use_prefix_cache(tmp_path, top_layers=1)
    assert attach(base, settings(layers=2)).tower.prefix is None
    assert attach(base, settings(layers=1)).tower.prefix is not None


def test_vector_reading_is_a_learnt_metric() -> None:
    torch.manual_seed(0)
    a, b, q, p = torch.randn(3, 8), torch.randn(8, 3), torch.randn(8), torch.randn(8)
    w = matrix("vector", a, b, scaling=2.0, gamma=0.5, strength=1.0)
    assert torch.allclose(w, torch.eye(8) + 0.5 * 2.0 * b @ a)
    assert torch.allclose((w @ q) @ (w @ p), q @ (w.T @ w) @ p, atol=1e-4)


def test_dimension_weights_follow_the_row_norms() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(3, 8), torch.randn(8, 3)
    norms = (b @ a).norm(dim=1)
    assert torch.allclose(dimension_weights(a, b, 0.7), 1 + 0.7 * (norms / norms.mean() - 1), atol=1e-5)
    zero = torch.zeros(8, 3, requires_grad=True)
    weights = dimension_weights(a, zero, 0.7)
    assert torch.equal(weights, torch.ones(8))
    weights.sum().backward()
    assert zero.grad is not None and torch.isfinite(zero.grad).all()


def test_token_weights_equal_the_plain_formula() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(3, 8), torch.randn(8, 3)
    hidden, x = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    got = weighted_mean(hidden, mask, x, (a, b), 0.1)
    for row in range(2):
        n = int(mask[row].sum())
        strength = ((x[row, :n] @ (b @ a).T) ** 2).sum(-1)
        assert torch.allclose(got[row], torch.softmax(0.1 * strength, 0) @ hidden[row, :n], atol=1e-5)
    uniform = weighted_mean(hidden, mask, x, (a, torch.zeros(8, 3)), 0.1)
    assert torch.allclose(uniform[0], hidden[0, :3].mean(0), atol=1e-6)


def test_a_cache_below_adapted_layers_is_never_shared_with_the_base(folder: Path, tmp_path: Path) -> None:
    base = load(folder)
    assert base.use_prefix_cache(tmp_path / "cache", top_layers=1)
    base.encode_queries(TEXTS)
    adapted = shake(attach(load(folder), settings(layers=2)))
    assert not adapted.use_prefix_cache(tmp_path / "cache", top_layers=1)
    merged = adapted.merged()
    expected = merged.encode_queries(TEXTS)
    assert merged.use_prefix_cache(tmp_path / "cache", top_layers=1)
    for _ in range(2):
        assert np.allclose(merged.encode_queries(TEXTS), expected, atol=1e-6)
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 2


def test_both_sides_of_a_query_adapted_model_share_one_cache(folder: Path, tmp_path: Path) -> None:
    merged = shake(attach(load(folder), settings(layers=2, adapt="query"))).merged()
    queries, passages = merged.encode_queries(TEXTS), merged.encode_passages(TEXTS)
    assert merged.use_prefix_cache(tmp_path / "cache", top_layers=2)
    assert np.allclose(merged.encode_queries(TEXTS), queries, atol=1e-6)
    assert np.allclose(merged.encode_passages(TEXTS), passages, atol=1e-6)
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 1
