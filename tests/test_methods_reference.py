"""Methods against their formulas, written down once more: slowly, in float64, number by number where that is plain."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoConfig, AutoModel

from ragadapt.adapters.linear import OnLinear
from ragadapt.adapters.lowrank import FlatLoRA, MTLLoRA
from ragadapt.adapters.method import Method, attach_method, method_named, options_of
from ragadapt.adapters.peft import ADAPTER, LoRA, lora_config
from ragadapt.adapters.quantised import LoftQ, PissaLinear, QLoRA, normal_float, through_four_bits
from ragadapt.adapters.tuners import Tuner
from ragadapt.config import AdapterConfig
from ragadapt.errors import InvalidConfiguration

KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "modernbert": {"local_attention": 4, "cls_token_id": 2, "sep_token_id": 3},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 4},
}
IDS = torch.tensor([[2, 5, 7, 11, 3], [2, 13, 17, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])


def tiny(kind: str = "bert") -> nn.Module:
    """One layer of width 8."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=16, pad_token_id=0, **KINDS[kind],
    )  # fmt: skip
    model = AutoModel.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(5.0)
    return model  # type: ignore[no-any-return]


def hidden(model: nn.Module) -> Tensor:
    found: Tensor = model(input_ids=IDS, attention_mask=MASK).last_hidden_state
    return found


def attached(model: nn.Module, name: str, seed: int = 3, **values: Any) -> Method:
    config = AdapterConfig.model_validate({"method": name, **values})
    weights = {key: value.clone() for key, value in model.named_parameters()}
    method, _ = attach_method(model, config, seed=seed, weights=lambda: weights)
    return method


def shaken(method: Method, size: float = 0.3) -> Method:
    generator = torch.Generator().manual_seed(1)
    for parameter in method.parameters().values():
        parameter.data += size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return method


# What is ours, by its formula: (layer of the method, its settings) → what is added to W (out, in)


def mora(layer: Any, rank: int = 3) -> Tensor:
    out, into = layer.out_features, layer.in_features
    size = min(int(math.sqrt((into + out) * rank) + 0.5), into, out) // 2 * 2
    m = layer.mora_M
    assert m.shape == (size, size)
    pieces = math.ceil(into / size)
    delta = torch.zeros(out, into, dtype=torch.float64)
    for o in range(out):
        place, row = divmod(o % (pieces * size), size)  # the pieces of the result, one after the other, over and over
        for k in range(size):
            angle = place * 10_000 ** (-2 * (k % (size // 2)) / size)
            other, sign = (k + size // 2, -1) if k < size // 2 else (k - size // 2, 1)
            for source, factor in ((k, math.cos(angle)), (other, sign * math.sin(angle))):
                delta[o, (place * size + source) % into] += m[row, k] * factor  # the last piece goes on at the front
    return delta


def melora(layer: Any) -> Tensor:
    parts, rank, width = layer.lora_A.shape
    height = layer.out_features // parts
    delta = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
    for part in range(parts):
        pair = layer.lora_B[part] @ layer.lora_A[part]
        delta[part * height : (part + 1) * height, part * width : (part + 1) * width] = 2 * pair  # alpha = 2 r
    assert rank == 3
    return delta


def mtl_of(layer: Any, task: int) -> Tensor:
    powers = [math.exp(w) for w in layer.mtl_w[task].tolist()]
    delta = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
    for part, power in enumerate(powers):
        delta = delta + 2 * power / sum(powers) * layer.mtl_B[part] @ layer.mtl_lambda[task] @ layer.mtl_A
    return delta


def mtl(layer: Any) -> Tensor:
    tasks = len(layer.mtl_w)
    return sum((mtl_of(layer, task) for task in range(tasks)), torch.zeros(())) / tasks


def flat(layer: Any) -> Tensor:
    return 2 * layer.lora_B[ADAPTER].weight @ layer.lora_A[ADAPTER].weight  # type: ignore[no-any-return]


def half(layer: Any) -> Tensor:
    whole = []
    for part, held in (("a", layer.lora_A), ("b", layer.lora_B)):
        matrix = held[ADAPTER].weight.detach().clone()
        places, values = getattr(layer, f"places_{part}"), getattr(layer, f"half_{part}")
        assert len(places) == math.ceil(matrix.numel() / 2)
        for place, value in zip(places.tolist(), values, strict=True):
            matrix[place // matrix.shape[1], place % matrix.shape[1]] = value
        whole.append(matrix)
    return 2 * whole[1] @ whole[0]


def difference(layer: Any, scale: float = 1.0) -> Tensor:
    now = layer.lora_B[ADAPTER].weight @ layer.lora_A[ADAPTER].weight
    return scale * (now - layer.start_b @ layer.start_a)


OURS: dict[str, tuple[Callable[[Any], Tensor], dict[str, Any]]] = {
    "mora": (mora, {"rank": 3}),
    "melora": (melora, {"rank": 3, "parts": 2}),
    "mtl-lora": (mtl, {"rank": 3}),
    "flat-lora": (flat, {"rank": 3}),
    "lora-sp": (half, {"rank": 3}),
    "pissa": (difference, {"rank": 3}),
    "loftq": (difference, {"rank": 3}),
}
every_one = pytest.mark.parametrize("name", OURS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def prepared(kind: str, name: str) -> tuple[nn.Module, Method, nn.Module]:
    """A model in float64 with the method on it, moved from its start, and the same without it."""
    model = tiny(kind)
    plain = copy.deepcopy(model).double()
    method = attached(model, name, **OURS[name][1])
    method.learn_tasks(["question", "title"])
    shaken(method)
    return model.double(), method, plain


@every_kind
@every_one
def test_what_is_computed_and_folded_is_the_formula(kind: str, name: str) -> None:
    model, method, plain = prepared(kind, name)
    layers: dict[str, Any] = getattr(method, "layers")  # noqa: B009
    assert len(layers) >= 4
    for key, layer in layers.items():
        plain.get_submodule(key).get_parameter("weight").data += OURS[name][0](layer).detach()
    expected = hidden(plain)
    tolerance = 1e-6 if name == "mora" or kind == "qwen3" else 1e-10  # angles of the one, norms of the other: float32
    assert torch.allclose(hidden(model), expected, atol=tolerance) and expected.dtype == torch.float64
    folded = method.fold()
    method.detach()
    assert folded is not None and not torch.allclose(hidden(model), expected, atol=1e-2)
    model.load_state_dict({**model.state_dict(), **folded})
    assert torch.allclose(hidden(model), expected, atol=tolerance)


@every_kind
@every_one
def test_its_gradient_is_that_of_differences(kind: str, name: str) -> None:
    """Layer by layer: ModernBERT and Qwen3 compute angles and norms in float32, whatever they are in."""
    _, method, _ = prepared(kind, name)
    layers: dict[str, Any] = getattr(method, "layers")  # noqa: B009
    shapes = {(layer.in_features, layer.out_features): layer for layer in layers.values()}
    wanted = {id(parameter) for parameter in method.parameters().values()}
    for (width, _), layer in shapes.items():
        named = {key: value for key, value in layer.named_parameters() if id(value) in wanted}
        x = torch.linspace(-1, 1, 3 * width, dtype=torch.float64).sin().view(1, 3, width).requires_grad_(True)

        def function(x: Tensor, *tensors: Tensor, layer: Any = layer, names: tuple[str, ...] = tuple(named)) -> Tensor:
            found: Tensor = functional_call(layer, dict(zip(names, tensors, strict=True)), args=(x,))
            return found

        assert named and torch.autograd.gradcheck(function, (x, *named.values()))


def test_a_text_of_a_known_task_gets_its_own_mix() -> None:
    model, method, plain = prepared("bert", "mtl-lora")
    assert isinstance(method, MTLLoRA)
    method.tell("title")
    for key, layer in method.layers.items():
        plain.get_submodule(key).get_parameter("weight").data += mtl_of(layer, 1).detach()
    own = hidden(model)
    assert torch.allclose(own, hidden(plain), atol=1e-10)
    method.tell(None)
    unknown = hidden(model)
    method.tell("a kind that no example had")
    assert torch.equal(hidden(model), unknown) and not torch.allclose(own, unknown, atol=1e-3)


def test_the_noise_of_flat_lora_has_the_deviation_of_its_formula_and_is_one_for_a_step() -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(
        AutoConfig.for_model("bert", vocab_size=20, hidden_size=128, num_hidden_layers=1, num_attention_heads=2,
                             intermediate_size=128, max_position_embeddings=16)
    ).eval().requires_grad_(False)  # fmt: skip
    method = attached(model, "flat-lora", noise=0.2)
    assert isinstance(method, FlatLoRA)
    method.training(True)
    assert all(layer.noisy is None for layer in method.layers.values())  # before the first step it is 0
    shaken(method, 0.05).after_backward(3, 12)
    method.training(True)
    layer = next(iter(method.layers.values()))
    weight = layer.base_layer.get_parameter("weight")
    assert layer.noisy is not None
    noise = layer.noisy - weight
    rows = (weight + 2 * layer.b @ layer.a).double().norm(dim=1)
    expected = 0.2 * 0.5 * (1 - math.cos(math.pi * 4 / 12)) / math.sqrt(128) * rows
    assert torch.allclose(noise.double().std(dim=1).mean(), expected.mean(), rtol=0.03)
    assert torch.corrcoef(torch.stack([noise.double().std(dim=1), expected]))[0, 1] > 0.5  # larger rows, more noise
    method.training(True)
    assert torch.equal(layer.noisy - weight, noise)
    method.after_backward(4, 12)
    method.training(True)
    assert not torch.equal(layer.noisy - weight, noise)
    method.training(False)
    assert layer.noisy is None


# What PEFT has, beside PEFT itself


PEFT = {
    "lora": {}, "rslora": {}, "lora+": {}, "dora": {}, "pissa": {}, "adalora": {}, "vera": {}, "randlora": {},
    "loha": {}, "lokr": {}, "miss": {}, "ia3": {},
}  # fmt: skip


@every_kind
@pytest.mark.parametrize("name", PEFT)
def test_the_model_is_the_one_that_peft_makes_of_the_same_numbers(kind: str, name: str) -> None:
    model = tiny(kind)
    theirs = copy.deepcopy(model)
    method = shaken(attached(model, name, **({} if name == "ia3" else {"rank": 4})), 0.2)
    layers: dict[str, Any] = getattr(method, "layers")  # noqa: B009
    if isinstance(method, LoRA):
        assert isinstance(method.options, type(method.options))
        variant = {**method.VARIANT, **({"init_lora_weights": "pissa"} if name == "pissa" else {})}
        config: Any = lora_config(method.options, layers, **variant)
    else:
        assert isinstance(method, Tuner)
        config = method.config(method.options, sorted(layers))
    if name in ("vera", "randlora"):
        config.projection_prng_key = 3
    peft = get_peft_model(theirs, config).eval()
    if name == "randlora":  # drawn in another precision there
        ours = next(iter(layers.values())).layer
        for module in peft.modules():
            if isinstance(module, BaseTunerLayer):
                held: Any = module
                held.randlora_A[ADAPTER], held.randlora_B[ADAPTER] = ours.randlora_A[ADAPTER], ours.randlora_B[ADAPTER]
    own = dict(peft.base_model.model.named_parameters())
    for key, parameter in method.parameters().items():
        stem, _, part = key.rpartition(".")
        there = f"{stem}.{ADAPTER}.weight" if part == "weight" else f"{key}.{ADAPTER}"
        own[f"{there}.weight" if part == "lora_magnitude_vector" else there].data.copy_(parameter.data)
    assert torch.allclose(hidden(model), hidden(peft), atol=2e-5)


# Numbers of four bits


def test_the_values_of_four_bits_are_the_published_ones() -> None:
    # Dettmers et al. 2023, appendix E.
    published = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]  # fmt: skip
    assert torch.allclose(normal_float(), torch.tensor(published), atol=1e-6)


def test_each_number_becomes_the_nearest_of_its_block() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 30)  # two blocks of 64 and one of 22
    flat = weight.flatten()
    expected = torch.empty(150)
    for start in (0, 64, 128):
        block = flat[start : start + 64]
        largest = block.abs().max()
        for place, value in enumerate(block.tolist()):
            expected[start + place] = min((float(v * largest) for v in normal_float()), key=lambda v: abs(v - value))
    assert torch.allclose(through_four_bits(weight).flatten(), expected, atol=1e-6)
    assert torch.equal(through_four_bits(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_loftq_begins_nearer_to_the_weights_than_their_four_bits_are() -> None:
    torch.manual_seed(0)
    model = tiny()
    method = attached(model, "loftq", rank=4)
    assert isinstance(method, LoftQ)
    for layer in method.layers.values():
        assert isinstance(layer, PissaLinear)
        weight = layer.base_layer.get_parameter("weight")
        pair = layer.start_b @ layer.start_a
        made_up = through_four_bits(weight - pair) + pair
        assert (weight - made_up).norm() < 0.8 * (weight - through_four_bits(weight)).norm()


def test_qlora_is_refused_without_cuda_and_says_what_to_take() -> None:
    with pytest.raises(InvalidConfiguration, match=r"this is cpu\. Choose 'lora'"):
        method_named("qlora").check_device("cpu")


def test_qlora_goes_from_the_base_to_its_four_bits_and_what_was_learnt() -> None:
    """Where it is only folded, on a CPU, the four bits are the same numbers in a plain matrix."""
    model = tiny()
    base = hidden(model)
    plain = copy.deepcopy(model).double()
    method = shaken(attached(model, "qlora", rank=3))
    assert isinstance(method, QLoRA)
    for name, layer in method.layers.items():
        weight = plain.get_submodule(name).get_parameter("weight")
        learnt = 2 * (layer.lora_B[ADAPTER].weight @ layer.lora_A[ADAPTER].weight).double()
        whole = through_four_bits(weight.float()).double() + learnt
        weight.data = weight.data + 0.25 * (whole.detach() - weight.data)
    method.set_strength(0.25)
    assert torch.allclose(hidden(model).double(), hidden(plain), atol=1e-5)
    folded = method.fold()
    method.set_strength(0)
    assert torch.equal(hidden(model), base)
    method.detach()
    assert folded is not None and torch.equal(hidden(model), base)
    model.load_state_dict({**model.state_dict(), **folded})
    assert torch.allclose(hidden(model).double(), hidden(plain), atol=1e-5)


# How many parameters, from a configuration alone


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # Ma et al. 2022 (arXiv 2208.09847), table 2: LoRA r = 16 is 0.5 % of BERT-base; 12 layers x 2 x 16 (768 + 768)
        ({"method": "lora", "rank": 16, "targets": ("query", "value")}, 589_824),
        # Kopiczko et al. 2024 (arXiv 2310.11454), table 2: 0.3 M and 0.043 M for RoBERTa-base, queries and values
        ({"method": "lora", "rank": 8, "targets": ("query", "value")}, 294_912),
        ({"method": "vera", "rank": 1024, "targets": ("query", "value")}, 43_008),
        # Liu et al. 2022 (arXiv 2205.05638), section 3.3: L (d_k + d_v + d_ff) for an encoder
        ({"method": "ia3"}, 12 * (768 + 768 + 3072)),
        # Ben Zaken et al. 2022 (arXiv 2106.10199): the biases; 12 layers x (4 x 768 + 3072 + 768 + 2 x 768)
        ({"method": "bitfit"}, 12 * (4 * 768 + 3072 + 768 + 2 * 768)),
        # Wu et al. 2024 (arXiv 2403.08822): half of LoRA's
        ({"method": "lora-sp", "rank": 16, "targets": ("query", "value")}, 294_912),
    ],
)
def test_counts_at_the_size_of_bert_base_are_the_published_ones(values: dict[str, Any], expected: int) -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model("bert"))
    weights = {name: torch.zeros(()).expand(value.shape) for name, value in model.named_parameters()}
    config = AdapterConfig.model_validate(values)
    method, _ = attach_method(model, config, seed=0, weights=lambda: weights)
    assert sum(parameter.numel() for parameter in method.parameters().values()) == expected
    whole = sum(value.numel() for value in weights.values())
    assert whole == 109_482_240
    if values["method"] == "lora" and values["rank"] == 16:
        assert round(100 * expected / whole, 2) == 0.54


def test_every_method_says_what_it_is_and_where_it_comes_from() -> None:
    for name in ("lora", *OURS, *PEFT, "qlora", "full", "bitfit"):
        method = method_named(name)
        assert method.SOURCE and (method.__doc__ or "").strip().partition("\n")[0].endswith(".")
        assert (method.pairs is not Method.pairs) is method.PAIRS, name
    assert options_of(AdapterConfig(method="rslora")).as_dict()["rank"] == 16
    assert issubclass(method_named("vera"), OnLinear)
