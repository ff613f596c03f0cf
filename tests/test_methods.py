"""What every method of training must keep to, whatever it trains: one table, every row over every kind of model.

The last row is made here, to hold what neither LoRA nor full tuning has: a change that cannot be folded into weights, a
loss of its own, noise, and a memory beside its parameters.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tiny_models import sentences, write_tiny_cross_encoder, write_tiny_model
from torch import Tensor, nn

from ragadapt.adapters import AdaptedEncoder, AdapterState, attach
from ragadapt.adapters.method import (
    METHODS,
    Method,
    Options,
    Scope,
    Weights,
    attach_method,
    check_strength,
    descriptions,
    norm,
    options_of,
)
from ragadapt.adapters.peft import PiSSA
from ragadapt.adapters.tuners import AdaLoRA
from ragadapt.config import AdapterConfig, EncoderConfig, FitConfig, TrainingConfig
from ragadapt.doctor.examine import examine
from ragadapt.encoder import Encoder
from ragadapt.encoder.spec import read_spec
from ragadapt.errors import InvalidConfiguration, InvalidInput, StoreCorrupt
from ragadapt.pipeline.fit import fit
from ragadapt.retriever import Retriever
from ragadapt.training import Example, TrainingResult, train
from ragadapt.training.loop import EncoderRun

TEXTS = sentences(12)
KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "modernbert": {"local_attention": 16, "cls_token_id": 2, "sep_token_id": 3},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 16},
}
FORMAT_1 = Path(__file__).parent / "data" / "format_1"


class Gated(nn.Module):
    """y = W x · (1 + strength · tanh(g · y)): no change of W gives that."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner = inner
        self.gate = nn.Parameter(torch.zeros(width))
        self.strength = 1.0
        self.noise = False

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        out = y * (1 + self.strength * torch.tanh(self.gate.to(y.dtype) * y)) if self.strength else y
        return out + 1e-3 * torch.randn_like(out) if self.noise else out


class Gate(Method):
    """Gates on the linear layers of the trained layers, with everything that the contract offers."""

    FOLDS = False

    def __init__(self, model: nn.Module, options: Options, scope: Scope, *, seed: int, weights: Weights) -> None:
        self.model, self.scope = model, scope
        self.steps = torch.zeros(())
        found = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith(scope.prefixes)]
        self.layers = {name: Gated(module, module.out_features) for name, module in sorted(found)}
        for name, layer in self.layers.items():
            self._put(name, layer.to(next(model.parameters()).device))
            layer.eval()

    def _put(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(parent), child, module)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{name}.gate": layer.gate for name, layer in self.layers.items()}

    @property
    def lowest_layer(self) -> int:
        return self.scope.indices[0]

    def training(self, on: bool) -> None:
        for layer in self.layers.values():
            layer.noise = on

    @property
    def stochastic(self) -> bool:
        return True

    def penalty(self) -> Tensor:
        return sum((0.01 * layer.gate.square().sum() for layer in self.layers.values()), torch.tensor(0.0))

    def after_backward(self, step: int, total: int) -> None:
        assert 1 <= step <= total
        assert any(layer.gate.grad is not None for layer in self.layers.values())
        self.steps += 1

    def memory(self) -> dict[str, Tensor]:
        return {"steps": self.steps}

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        self.steps = memory["steps"]

    def set_strength(self, strength: float) -> None:
        check_strength(strength)
        for layer in self.layers.values():
            layer.strength = strength

    def fold(self) -> None:
        return None

    @property
    def changed(self) -> None:
        return None

    def detach(self) -> None:
        for name, layer in self.layers.items():
            self._put(name, layer.inner)

    def change(self) -> float:
        return norm([layer.gate.detach() for layer in self.layers.values()])


PAIRED = (
    "lora", "rslora", "lora+", "dora", "pissa", "loftq", "adalora", "vera",
    "melora", "mtl-lora", "flat-lora", "lora-sp", "trf", "trf-linear",
)  # fmt: skip
WITH_RANK = (*PAIRED, "randlora", "loha", "lokr", "miss", "mora")
WITHOUT_DROPOUT = ("loha", "lokr")
INSERTED = ("houlsby", "prefix", "mam", "iaa-s", "iaa-l", "iaa-m")
ROWS = (*WITH_RANK, "ia3", "bitfit", "full", "gate", *INSERTED)
OWN = {"melora": {"parts": 2}, "randlora": {"alpha": 0.4}}  # PEFT's own alpha makes large numbers of what is shaken
WITHOUT_BIASES = ("modernbert", "qwen3")


@pytest.fixture(autouse=True)
def gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "gate", f"{__name__}:Gate")


@pytest.fixture(autouse=True)
def without_biases(request: pytest.FixtureRequest) -> None:
    values = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if values.get("method") == "bitfit" and values.get("kind") in WITHOUT_BIASES:
        pytest.skip("such models have no biases; test_bitfit_refuses_a_model_without_biases")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = write_tiny_model(tmp_path_factory.mktemp(kind), kind=kind, **KINDS[kind])
        return made[kind]

    return folder


Loader = Callable[..., Encoder]


@pytest.fixture(scope="module")
def load(folders: Callable[[str], Path]) -> Loader:
    def load(kind: str, precision: str = "float32") -> Encoder:
        values = {"model": str(folders(kind)), "device": "cpu", "precision": precision}
        return Encoder.load(EncoderConfig.model_validate(values))

    return load


def settings(method: str, **values: Any) -> AdapterConfig:
    own: dict[str, Any] = {**({"rank": 4} if method in WITH_RANK else {}), **OWN.get(method, {})}
    made = AdapterConfig.model_validate({**own, "layers": 1, **values})
    return made.model_copy(update={"method": method})  # the type of the setting knows only what ships


def shake(encoder: AdaptedEncoder, size: float = 0.2) -> AdaptedEncoder:
    """As if it had been trained: random values in every trainable tensor."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.trainable().values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return encoder


def examples(count: int = 24) -> list[Example]:
    texts = sentences(count, words=16, seed=5)
    tasks = ("question", "title")
    return [Example(" ".join(text.split()[::2]), text, task=tasks[number % 2]) for number, text in enumerate(texts)]


def learn(encoder: Encoder, method: str, **options: Any) -> TrainingResult:
    training = TrainingConfig(epochs=2, batch_size=8, learning_rate=2e-3, **options.pop("training", {}))
    dropout = options.pop("dropout", 0.1)
    values = {"dropout": dropout} if drops(method) else {}
    return train(encoder, examples(), None, settings(method, **values), training, seed=1, **options)


def drops(method: str) -> bool:
    """Whether the method has a dropout of its own."""
    return method in WITH_RANK and method not in WITHOUT_DROPOUT


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


every_row = pytest.mark.parametrize("method", ROWS)
every_kind = pytest.mark.parametrize("kind", KINDS)
# What is slow: those of one make share their code, so each has BERT and one other kind, and each kind a third of them.
SOME = [
    (kind, method)
    for number, method in enumerate(ROWS)
    for place, kind in enumerate(KINDS)
    if method in ("lora", "full", "gate") or place in (0, 1 + number % 3)
]
some_kinds = pytest.mark.parametrize(("kind", "method"), SOME)


def test_the_table_of_tests_has_every_method() -> None:
    assert set(ROWS) | {"qlora"} == set(METHODS)  # qlora begins near its base, not at it: tests of its own


@every_kind
@every_row
def test_fresh_is_the_base_and_strength_0_is_so_to_the_bit(load: Loader, kind: str, method: str) -> None:
    base = load(kind)
    start = base.encode_queries(TEXTS)
    adapted = attach(base, settings(method))
    assert np.allclose(adapted.encode_queries(TEXTS), start, atol=1e-6)
    trained = shake(adapted).encode_queries(TEXTS)
    assert np.max(np.abs(trained - start)) > 1e-3
    adapted.scale(0.5)
    half = adapted.encode_queries(TEXTS)
    assert np.max(np.abs(half - start)) > 1e-4 and np.max(np.abs(half - trained)) > 1e-4
    adapted.scale(0)
    assert np.array_equal(adapted.encode_queries(TEXTS), start) and adapted.fingerprint == base.fingerprint
    adapted.method.set_strength(0)  # the method alone, without the encoder's short cut to its base
    assert np.array_equal(adapted.tower.embed(adapted.tower.tokenize(TEXTS)[0]), start)
    adapted.scale(1)
    assert np.allclose(adapted.encode_queries(TEXTS), trained, atol=1e-6)
    with pytest.raises(InvalidInput, match="between 0"):
        adapted.scale(1.5)


@every_row
def test_detached_the_model_is_as_it_was_found(load: Loader, method: str) -> None:
    base = load("bert")
    adapted = shake(attach(base, settings(method)))
    adapted.method.detach()
    before = dict(base.query_tower.model.named_parameters())  # type: ignore[union-attr]
    after = dict(adapted.tower.model.named_parameters())
    assert set(before) == set(after) and all(before[name] is after[name] for name in before)


@some_kinds
def test_every_trainable_parameter_gets_a_gradient_and_moves(load: Loader, kind: str, method: str) -> None:
    base = load(kind)
    before = {name: value.clone() for name, value in attach(base, settings(method), seed=1).trainable().items()}
    result = learn(base, method)
    after = result.encoder.trainable()
    still = [name for name in before if torch.equal(before[name], after[name])]
    unused = [name for name, parameter in after.items() if parameter.grad is None]
    # A key's bias moves all scores of a query alike: its gradient is rounding, and may be none.
    assert [name for name in still if not name.endswith("key.bias")] == [] and unused == []
    assert {parameter.dtype for parameter in after.values()} == {torch.float32}
    lowest = result.encoder.method.lowest_layer
    assert lowest is not None and result.encoder.layers == 1


def run_of(encoder: Encoder, method: str, **values: Any) -> EncoderRun:
    """A run whose parameters are away from their start, where many gradients vanish."""
    run = EncoderRun(
        encoder, examples(), settings(method, **values), TrainingConfig(batch_size=8, prefix_cache=False), seed=0
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in run.parameters:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return run


def gradient_of(run: EncoderRun, items: list[int], held_tokens: int) -> dict[str, Tensor]:
    run.chunk_tokens, run.held_tokens = 64, held_tokens
    run.optimizer.zero_grad(set_to_none=True)
    with run.prepared(None, lambda *_: None):
        run._gradient(run.data.batch(items), step=1)
    return {name: p.grad.clone() for name, p in run.encoder.trainable().items() if p.grad is not None}


def close(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return set(first) == set(second) and all(
        torch.allclose(first[name], second[name], atol=1e-6, rtol=1e-3) for name in first
    )


@some_kinds
def test_the_cached_gradient_is_autograds_on_the_whole_batch(
    load: Loader, kind: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gate, "training", lambda *_: None)  # noise has a test of its own
    run = run_of(load(kind), method)
    items = [3, 1, 4, 15, 9, 2, 6]
    cached = gradient_of(run, items, held_tokens=0)
    run.optimizer.zero_grad(set_to_none=True)
    batch, tower = run.data.batch(items), run.encoder.tower
    queries = torch.empty(len(items), 32)
    for task in {run.data.task_of[i] for i in batch.queries}:  # what methods that learn by task are told
        rows = [row for row, i in enumerate(batch.queries) if run.data.task_of[i] == task]
        run.method.tell(task)
        texts = [run.data.queries[batch.queries[row]] for row in rows]
        queries = queries.index_put((torch.tensor(rows),), tower.vectors(tower.tokenize(texts)[0]))
    run.method.tell(None)
    passages = tower.vectors(tower.tokenize([run.data.passages[i] for i in batch.passages])[0])
    run.loss(queries, passages, batch).backward()
    whole = {name: p.grad for name, p in run.encoder.trainable().items() if p.grad is not None}
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-4
    assert set(cached) == set(run.names) == set(whole)
    # Of a key's bias the gradient is rounding alone.
    names = [name for name in whole if not name.endswith("key.bias")]
    assert close({name: cached[name] for name in names}, {name: whole[name] for name in names})


@every_row
def test_a_second_pass_draws_what_the_first_one_drew(load: Loader, method: str) -> None:
    run = run_of(load("bert"), method, **({"dropout": 0.3} if drops(method) else {}))
    items = list(range(12))
    kept, cached = (gradient_of(run, items, held_tokens=tokens) for tokens in (100_000, 0))
    assert close(
        {n: g for n, g in kept.items() if "key.bias" not in n}, {n: g for n, g in cached.items() if "key.bias" not in n}
    )
    if not run.method.stochastic:
        return
    run.method.training = lambda on: None  # type: ignore[method-assign]
    still = gradient_of(run, items, held_tokens=0)
    assert not close(kept, still)  # something was drawn


@every_row
def test_a_killed_run_resumes_to_the_same_bits(
    load: Loader, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learn(load("bert"), method)
    path = tmp_path / "checkpoint"
    monkeypatch.setattr("ragadapt.training.loop._CHECKPOINT_SECONDS", 0.0)

    class Killed(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 3:
            raise Killed

    with pytest.raises(Killed):
        learn(load("bert"), method, checkpoint=path, progress=stop)
    resumed = learn(load("bert"), method, checkpoint=path)
    assert resumed.resumed_from == 3 and resumed.steps == whole.steps > 3
    assert same(resumed.encoder.state().tensors, whole.encoder.state().tensors)
    assert same(resumed.encoder.method.memory(), whole.encoder.method.memory())


@pytest.mark.parametrize(
    ("kind", "method", "adapt"),
    [*((kind, method, "both") for kind, method in SOME), *(("bert", method, "query") for method in ROWS)],
)
def test_saved_is_loaded_and_merged_is_unmerged(
    load: Loader, tmp_path: Path, kind: str, method: str, adapt: str
) -> None:
    adapted = shake(attach(load(kind), settings(method, adapt=adapt)))
    adapted.scale(0.75)
    queries, passages = adapted.encode_queries(TEXTS), adapted.encode_passages(TEXTS)
    merged = adapted.merged()
    assert np.allclose(merged.encode_queries(TEXTS), queries, atol=1e-5)
    assert np.allclose(merged.encode_passages(TEXTS), passages, atol=1e-5)
    merged.save(tmp_path / "model")
    again = Encoder.open(tmp_path / "model", device="cpu", precision="float32")
    assert again.fingerprint == adapted.fingerprint and again.spec == adapted.spec
    assert np.allclose(again.encode_queries(TEXTS), queries, atol=1e-5)
    assert np.allclose(again.encode_passages(TEXTS), passages, atol=1e-5)
    again.save(tmp_path / "copy")
    copied = Encoder.open(tmp_path / "copy", device="cpu", precision="float32")
    assert copied.fingerprint == adapted.fingerprint
    assert np.allclose(copied.encode_queries(TEXTS), queries, atol=1e-5)


@every_row
def test_an_adapter_lies_apart_and_can_be_put_on_its_base_again(load: Loader, tmp_path: Path, method: str) -> None:
    base = load("bert")
    adapted = shake(attach(base, settings(method)))
    adapted.scale(0.5)
    adapted.merged().save(tmp_path / "model")
    (tmp_path / "model" / "adapter").rename(tmp_path / "moved")
    state = AdapterState.read(tmp_path / "moved")
    assert state.config.method == method and state.scale == 0.5 and state.change > 0
    assert state.base == base.spec.base and state.spec == adapted.spec.adapter
    assert same(state.tensors, adapted.state().tensors)
    model = state.build(base._restore)
    assert np.allclose(model.encode(TEXTS), adapted.encode_queries(TEXTS), atol=1e-5)

    about = json.loads((tmp_path / "moved" / "adapter.json").read_text())
    assert about["format"] == 2 and about["method"] == method and about["sha256"] == state.spec.sha256
    weights = next((tmp_path / "moved").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 64
    weights.write_bytes(data)
    with pytest.raises(StoreCorrupt, match="changed after it was written"):
        AdapterState.read(tmp_path / "moved")
    (tmp_path / "moved" / "adapter.json").write_text("{}")
    with pytest.raises(StoreCorrupt, match="cannot be read"):
        AdapterState.read(tmp_path / "moved")


@every_row
def test_bfloat16_stays_close_to_float32(load: Loader, method: str) -> None:
    vectors = []
    for precision in ("float32", "bfloat16"):
        adapted = shake(attach(load("bert", precision), settings(method)), size=0.05)
        assert {parameter.dtype for parameter in adapted.trainable().values()} == {torch.float32}
        vectors.append(adapted.encode_queries(TEXTS))
        assert np.sum(vectors[-1] * adapted.merged().encode_queries(TEXTS), axis=1).min() > 0.99
    assert np.sum(vectors[0] * vectors[1], axis=1).min() > 0.99


@every_row
def test_the_frozen_prefix_serves_every_method(load: Loader, method: str) -> None:
    if method == "gate":
        pytest.skip("draws noise, and the shapes that it is drawn in differ")
    kept, computed = (
        learn(load("bert"), method, dropout=0.0, training={"prefix_cache": cache}) for cache in (True, False)
    )
    first, second = kept.encoder.state().tensors, computed.encoder.state().tensors
    # The states that are kept come from batches of another shape: equal up to rounding there. Of a key's bias the
    # gradient is rounding and nothing else, which Adam makes steps of.
    names = [name for name in first if not name.endswith("key.bias")]
    assert max(float((first[name] - second[name]).abs().max()) for name in names) < 1e-4


@every_row
def test_a_cross_encoder_is_adapted_by_the_same_code(tmp_path: Path, method: str) -> None:
    """Nothing of a method knows what stands on the transformer: here a score for a pair of texts."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = write_tiny_cross_encoder(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval().requires_grad_(False)
    pairs = AutoTokenizer.from_pretrained(folder)(TEXTS[:6], TEXTS[6:], padding=True, return_tensors="pt")
    start = model(**pairs).logits
    weights = {name: tensor.clone() for name, tensor in model.bert.named_parameters()}
    made, scope = attach_method(model.bert, settings(method), seed=0, weights=lambda: weights)
    assert scope.indices == (1,) and torch.equal(model(**pairs).logits, start)
    parameters = made.parameters()
    # Where a step changes more than the pair of LoRA does, one so long jumps over the least.
    optimizer = torch.optim.SGD(parameters.values(), lr={"dora": 0.05, "randlora": 1e-4}.get(method, 0.5))
    for _ in range(3):
        optimizer.zero_grad()
        (model(**pairs).logits - 1).square().mean().backward()
        optimizer.step()
    learnt = model(**pairs).logits
    assert (learnt - 1).square().mean() < (start - 1).square().mean() and made.change() > 0
    folded = made.fold()
    made.detach()
    assert torch.equal(model(**pairs).logits, start)
    if folded is not None:
        model.bert.load_state_dict({**model.bert.state_dict(), **folded})
        assert torch.allclose(model(**pairs).logits, learnt, atol=1e-5)


# What single methods have of their own


def test_b_learns_at_its_own_rate_with_lora_plus(load: Loader) -> None:
    run = EncoderRun(load("bert"), examples(), settings("lora+", lr_ratio=8.0), TrainingConfig(batch_size=8), seed=0)
    start = run.weights()
    run.steps = 4
    with run.prepared(None, lambda *_: None):
        for step in (1, 2):  # the gradient of A is zero in the first one, as B is
            run.step(list(range(8)), step, 1e-3)
    moved = {name: float((tensor - start[name]).abs().median()) for name, tensor in run.weights().items()}
    ratios = [moved[name.replace("lora_A", "lora_B")] / size for name, size in moved.items() if "lora_A" in name]
    # Two steps of Adam move B by twice its rate, and A, in the second one alone, by some two thirds of its own.
    assert all(6 * 2 < ratio < 12 * 4 for ratio in ratios)
    assert sorted(group["lr"] for group in run.optimizer.param_groups) == [1e-3, 8e-3]


def test_adalora_leaves_the_rank_that_was_asked_for_on_average(load: Loader) -> None:
    result = learn(load("bert"), "adalora")
    method = result.encoder.method
    assert isinstance(method, AdaLoRA)
    ranks = method.ranks
    assert sum(ranks.values()) <= 4 * len(ranks) < 6 * len(ranks) and len(set(ranks.values())) > 1
    kept = method.memory()
    assert {name.partition("/")[0] for name in kept} == {"ranks"}  # what it looked at is forgotten when it is done
    again = attach(load("bert"), settings("adalora"), seed=1).method
    again.remember(kept)
    assert same(again.memory(), kept)


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_adalora_lasts_however_few_steps_there_are(load: Loader, steps: int) -> None:
    result = learn(load("bert"), "adalora", training={"max_steps": steps})
    method = result.encoder.method
    assert isinstance(method, AdaLoRA) and result.steps == min(steps, 6)
    assert sum(method.ranks.values()) <= 4 * len(method.ranks)


@pytest.mark.parametrize("method", ["vera", "randlora", "lora-sp"])
def test_what_the_seed_decides_comes_back_with_it_and_is_not_saved(load: Loader, tmp_path: Path, method: str) -> None:
    base = load("bert")
    one, other = (shake(attach(base, settings(method), seed=seed)) for seed in (5, 6))
    assert np.abs(one.encode_queries(TEXTS) - other.encode_queries(TEXTS)).max() > 1e-3
    assert one.state().spec.options["seed"] == 5 and one.fingerprint != other.fingerprint
    one.merged().save(tmp_path / "model")
    state = AdapterState.read(tmp_path / "model" / "adapter")
    assert state.seed == 5 and np.allclose(
        state.build(base._restore).encode(TEXTS), one.encode_queries(TEXTS), atol=1e-5
    )
    assert sum(tensor.numel() for tensor in state.tensors.values()) == one.share.trained
    whole = attach(base, settings("lora")).share.trained
    assert one.share.trained * 2 == whole if method == "lora-sp" else one.share.trained < whole


def test_pissa_begins_at_the_principal_part_and_is_saved_as_a_pair_of_twice_the_rank(load: Loader) -> None:
    adapted = attach(load("bert"), settings("pissa"))
    method = adapted.method
    assert isinstance(method, PiSSA)
    for layer in method.layers.values():
        weight = layer.base_layer.get_parameter("weight")
        u, sizes, v = torch.linalg.svd(weight)
        assert torch.allclose(layer.start_b @ layer.start_a, u[:, :4] * sizes[:4] @ v[:4], atol=1e-3)
        assert torch.equal(layer.get_delta_weight("default"), torch.zeros_like(weight))
    shake(adapted)
    tensors = method.tensors()
    again = attach(load("bert"), settings("pissa")).method
    again.load(tensors)
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {8}
    kept = again.tensors()
    assert all(torch.allclose(kept[name], tensor, atol=1e-5) for name, tensor in tensors.items())


@pytest.mark.parametrize("kind", WITHOUT_BIASES)
def test_bitfit_refuses_a_model_without_biases(load: Loader, kind: str) -> None:
    with pytest.raises(InvalidConfiguration, match="has no biases"):
        attach(load(kind), settings("bitfit"))


def test_layers_that_do_not_suit_a_method_are_named(load: Loader) -> None:
    with pytest.raises(InvalidConfiguration, match=r"parts = 5: layer .* has 32 inputs"):
        attach(load("bert"), settings("melora", parts=5))
    with pytest.raises(InvalidConfiguration, match=r"rank = 33: layer .* reads 32 numbers"):
        attach(load("bert"), settings("miss", rank=33))


OF_PEFT = ("lora", "rslora", "lora+", "dora", "pissa", "loftq", "flat-lora", "loha", "lokr", "miss", "ia3")


@pytest.mark.parametrize("method", OF_PEFT)
def test_peft_opens_what_was_saved(load: Loader, tmp_path: Path, method: str) -> None:
    from peft import PeftModel

    base = load("bert")
    adapted = shake(attach(base, settings(method, reweight="none")), 0.1)
    adapted.state().write(tmp_path)
    fresh = base._restore()
    model = fresh[0].model
    fresh[0].model = PeftModel.from_pretrained(model, tmp_path).merge_and_unload()
    assert np.allclose(fresh.encode(TEXTS), adapted.encode_queries(TEXTS), atol=1e-4)


@pytest.mark.parametrize("method", [name for name in PAIRED if name != "lora"])
@pytest.mark.parametrize("reweight", ["vector", "tokens", "dims"])
def test_pairs_of_every_make_re_weight_the_vector(load: Loader, method: str, reweight: str) -> None:
    base = load("bert")
    adapted = attach(base, settings(method, reweight=reweight, gamma=3.0))
    assert np.allclose(adapted.encode_queries(TEXTS), base.encode_queries(TEXTS), atol=1e-5)
    shake(adapted)
    plain = shake(attach(base, settings(method, reweight="none")))
    assert np.abs(adapted.encode_queries(TEXTS) - plain.encode_queries(TEXTS)).max() > 1e-4
    for strength in (1.0, 0.5):
        adapted.scale(strength)
        assert np.allclose(adapted.merged().encode_queries(TEXTS), adapted.encode_queries(TEXTS), atol=1e-4)


def test_the_share_is_counted_before_anything_is_learnt(load: Loader, caplog: pytest.LogCaptureFixture) -> None:
    encoder = attach(load("bert"), settings("lora"))
    layer = 4 * 4 * (32 + 32) + 2 * 4 * (32 + 64)
    assert encoder.share.trained == layer
    whole = sum(p.numel() for p in encoder.base.query_tower.model.parameters())  # type: ignore[union-attr]
    assert str(encoder.share) == f"{layer:,} parameters, {layer / whole:.2%} of the model's {whole:,}"
    with caplog.at_level("INFO", "ragadapt.training.loop"):
        learn(load("bert"), "lora", training={"max_steps": 1})
    assert f"method lora trains {layer:,} parameters" in caplog.messages[0]


# What a method is told


def test_the_setting_takes_every_method_of_the_table_and_no_other(load: Loader) -> None:
    named = get_args(AdapterConfig.model_fields["method"].annotation)
    assert set(named) == (set(METHODS) - {"gate"}) | {"none"}


def test_who_may_re_weight_is_said_where_it_is_asked_of_another(load: Loader) -> None:
    with pytest.raises(InvalidConfiguration, match=r"no reweight\. What re-weights is a low-rank pair") as error:
        options_of(AdapterConfig(method="loha", reweight="dims"))
    assert all(f"{name}," in f"{error.value}".replace(".", ",") for name in PAIRED)


def test_a_method_describes_itself() -> None:
    found = {method.name: method for method in descriptions()}
    assert found["lora"].options == {
        "rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": [], "reweight": "vector", "gamma": 1.0,
    }  # fmt: skip
    assert found["lora+"].options["lr_ratio"] == 16.0 and found["flat-lora"].options["noise"] == 0.05
    assert [name for name, method in found.items() if method.cuda] == ["qlora"]
    assert {name for name, method in found.items() if not method.folds} == {*INSERTED, "trf", "trf-linear", "gate"}
    assert found["ia3"].what.startswith("Learnt factors") and not found["ia3"].reweights


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rank": 8}, r"adapter\.rank = 8, but method 'full' has no rank"),
        ({"dropout": 0.1}, "has no dropout"),
        ({"alpha": 3}, "has no alpha"),
        ({"targets": ("query",)}, "has no targets"),
        ({"reweight": "vector"}, "has no reweight"),
        ({"gamma": 2.0}, "has no gamma"),
    ],
)
def test_what_a_method_cannot_use_is_refused_before_anything_is_read(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    config = FitConfig.build({"adapter": {"method": "full", **values}})
    with pytest.raises(InvalidConfiguration, match=said):
        options_of(config.adapter)
    (tmp_path / "docs").mkdir()
    with pytest.raises(InvalidConfiguration, match=said):  # not EmptyCorpus: nothing was read yet
        fit([tmp_path / "docs"], tmp_path / "retriever", config)


def test_what_asks_for_nothing_is_let_through() -> None:
    for values in ({}, {"reweight": "none"}, {"dropout": 0.0}, {"targets": ()}, {"gamma": 0}):
        assert options_of(AdapterConfig.model_validate({"method": "full", **values})) == Options()
    assert options_of(AdapterConfig(rank=3)).as_dict() == {"rank": 3, "alpha": None, "dropout": 0.0, "targets": []}


# Retrievers that version 0.1 wrote


@pytest.fixture(params=["lora", "lora-query-tokens", "full"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    with zipfile.ZipFile(FORMAT_1 / f"{request.param}.zip") as archive:
        archive.extractall(tmp_path / "retriever")
    yield tmp_path / "retriever", json.loads((FORMAT_1 / "expected.json").read_text())[request.param]


def test_a_retriever_of_format_1_opens_with_its_fingerprint_and_finds_the_same(
    old: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, expected = old
    spec = read_spec(folder / "model")
    assert spec is not None and spec.fingerprint == expected["fingerprint"]
    assert json.loads((folder / "model" / "ragadapt_encoder.json").read_text())["format"] == 1
    queries = expected["queries"]
    with Retriever.open(folder, device="cpu", precision="float32") as retriever:
        encoder = retriever.encoder
        assert encoder.fingerprint == expected["fingerprint"]
        assert np.allclose(encoder.encode_queries(queries)[:, :8], expected["query_vectors"], atol=1e-5)
        assert np.allclose(encoder.encode_passages(queries)[:, :8], expected["passage_vectors"], atol=1e-5)
        assert [[hit.chunk.id for hit in retriever.search(query, k=5)] for query in queries] == expected["hits"]
        encoder.save(tmp_path / "again")
    again = Encoder.open(tmp_path / "again", device="cpu", precision="float32")
    assert again.fingerprint == expected["fingerprint"]
    examined = examine(folder, device="cpu", precision="float32")
    assert examined.sound, examined.lines()
