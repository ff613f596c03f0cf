"""The methods that put modules into the network, against their formulas computed plainly and slowly in float64."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_models import sentences, write_tiny_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from ragadapt.adapters import attach
from ragadapt.adapters.inserted import Inserting
from ragadapt.adapters.method import Method, attach_method, options_of, replace_module
from ragadapt.config import AdapterConfig, EncoderConfig, TrainingConfig
from ragadapt.encoder import Encoder, layout
from ragadapt.encoder.architectures import Transformer, of_library
from ragadapt.encoder.attention import ALL
from ragadapt.encoder.prefix import split
from ragadapt.errors import InvalidConfiguration
from ragadapt.training import Example, train

METHODS: dict[str, dict[str, Any]] = {
    "houlsby": {"rank": 3},
    "prefix": {"prefix_length": 3},
    "mam": {"rank": 3, "prefix_length": 2, "alpha": 4.5},
    "iaa-s": {"rank": 2, "aside_rank": 3},
    "iaa-l": {"rank": 2, "aside_rank": 3},
    "iaa-m": {"rank": 2, "aside_rank": 3},
    "trf": {"rank": 2, "filter_rank": 3},
    "trf-linear": {"rank": 2, "filter_rank": 3},
}
KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "modernbert": {"local_attention": 4, "global_attn_every_n_layers": 2, "cls_token_id": 2, "sep_token_id": 3},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 4},
}
IDS = torch.tensor([[5, 9, 4, 17, 8, 3, 2], [11, 6, 19, 7, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
LENGTHS = (7, 4)
STRENGTH = 0.7
TEXTS = sentences(6)

every_method = pytest.mark.parametrize("method", METHODS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def library(kind: str, **sizes: Any) -> nn.Module:
    """A random transformer of transformers, three layers of width 8."""
    values = {
        "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 12,
        "max_position_embeddings": 16, "pad_token_id": 0, **KINDS.get(kind, {}), **sizes,
    }  # fmt: skip
    torch.manual_seed(0)
    model: nn.Module = AutoModel.from_config(AutoConfig.for_model(kind, **values))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn(parameter.shape) * (0.4 if parameter.dim() > 1 else 0.2) + (parameter.dim() < 2)
            )
    return model.eval().requires_grad_(False)


def put(model: nn.Module, method: str, *, strength: float = 1.0, shaken: bool = True, **values: Any) -> Method:
    config = AdapterConfig.model_validate({"method": method, **METHODS.get(method, {}), **values})
    made, _ = attach_method(model, config, seed=0, weights=lambda: dict(model.named_parameters()))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters().values() if shaken else ():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    made.set_strength(strength)
    return made


# The formulas


@dataclass
class Plain:
    """One text at a time, token by token and head by head. method's own tensors stand in `learnt`, by name."""

    kind: str
    config: Any
    weights: Mapping[str, Tensor]
    method: str
    options: Any
    learnt: Mapping[str, Tensor]
    strength: float
    first: int  # layer that is trained
    stack: str = field(init=False)

    def __post_init__(self) -> None:
        self.stack = "encoder.layer" if self.kind == "bert" else "layers"

    def w(self, name: str) -> Tensor:
        return self.weights[name]

    # What is put in

    def bottleneck(self, name: str, x: Tensor, act: Callable[[Tensor], Tensor], factor: float = 1.0) -> Tensor:
        """s (W_up act(W_down x + b) + b'), x (h,)."""
        own = {end: self.learnt.get(f"{name}.{end}") for end in ("down", "up", "down_bias", "up_bias")}
        assert own["down"] is not None and own["up"] is not None
        low = own["down"] @ x + (own["down_bias"] if own["down_bias"] is not None else 0)
        up = own["up"] @ act(low) + (own["up_bias"] if own["up_bias"] is not None else 0)
        return self.strength * factor * up

    def filter(self, name: str, x: Tensor) -> Tensor:
        t = self.learnt[f"{name}.filter.task"]
        share = (x @ t / (x.norm() * t.norm())).clamp(0, 1)
        return self.strength * (self.learnt[f"{name}.filter.up"] @ (self.learnt[f"{name}.filter.down"] @ (share * x)))

    def linear(self, name: str, x: Tensor) -> Tensor:
        """W x + b, and what the method adds to it; x (h,)."""
        y = self.w(f"{name}.weight") @ x
        if f"{name}.bias" in self.weights:
            y = y + self.w(f"{name}.bias")
        added = torch.zeros_like(y)
        if f"{name}.filter.task" in self.learnt:
            added = added + self.filter(name, y)
        if f"{name}.lora_A.weight" in self.learnt:
            a, b = self.learnt[f"{name}.lora_A.weight"], self.learnt[f"{name}.lora_B.weight"]
            added = added + self.strength * 2.0 * (b @ (a @ x))
        return y + added

    def written(self, name: str, layer: int, x: Tensor, read: Tensor | None = None) -> Tensor:
        """The last linear layer of a sub-layer, and what is put behind or beside it. read: by the FFN alone."""
        y = self.linear(name, x)
        if layer < self.first:
            return y
        inside = self.method == "houlsby" or (self.method.startswith("iaa") and self.options.rank > 0)
        if inside:
            return y + self.bottleneck(f"{name}.inside", y, gelu)
        if self.method == "mam" and read is not None:
            return y + self.bottleneck(f"{name}.parallel", read, torch.relu, self.options.alpha / self.options.rank)
        return y

    def beside(self, name: str, layer: int, stream: Tensor) -> Tensor | float:
        """IAA-S; stream (h,): what the sub-layer starts from."""
        return self.bottleneck(f"{name}.aside", stream, gelu) if self.method == "iaa-s" and layer >= self.first else 0.0

    def attended(self, name: str, layer: int, q: list[Tensor], keys: Any, values: Any, turned: list[Tensor]) -> Tensor:
        """(H d,) of one token. q: by head, before it is turned; keys, values: [head][token] that it sees."""
        out = []
        for head, mine in enumerate(turned):
            seen = range(len(keys[head]))
            scores = torch.stack([mine @ keys[head][j] / mine.numel() ** 0.5 for j in seen])
            share = scores.softmax(0)
            total = sum((share[j] * values[head][j] for j in seen), torch.zeros_like(mine))
            if self.method in ("prefix", "mam") and layer >= self.first:
                k, v, gate = (self.learnt[f"{name}.prefix.{end}"] for end in ("key", "value", "gate"))
                shared = head * k.shape[1] // len(turned)
                own = torch.stack([q[head] @ row[shared] / mine.numel() ** 0.5 for row in k]).softmax(0)
                total = total + self.strength * gate[head] * sum(
                    (own[i] * v[i, shared] for i in range(len(own))), torch.zeros_like(mine)
                )
            out.append(total)
        return torch.cat(out)

    # The transformers

    def __call__(self, start: Tensor) -> Tensor:
        """(T, h) embeddings of one text → (T, h)."""
        h, lowest = start, start
        for index in range(self.config.num_hidden_layers):
            layer = f"{self.stack}.{index}"
            if index == self.first:
                lowest = h
            made = getattr(self, self.kind)(layer, index, h)
            if index >= self.first:
                if self.method == "iaa-l":
                    made = made + torch.stack([self.bottleneck(f"{layer}.aside", x, gelu) for x in h])
                if self.method == "trf":
                    made = made + torch.stack([self.filter(layer, x) for x in made])
            h = made
        if self.method == "iaa-m":
            top = f"{self.stack}.{self.config.num_hidden_layers - 1}"
            h = h + torch.stack([self.bottleneck(f"{top}.aside", x, gelu) for x in lowest])
        if self.kind == "modernbert":
            return torch.stack([self.norm("final_norm", x) for x in h])
        return torch.stack([self.rms("norm", x) for x in h]) if self.kind == "qwen3" else h

    def norm(self, name: str, x: Tensor) -> Tensor:
        epsilon = self.config.layer_norm_eps if self.kind == "bert" else self.config.norm_eps
        unit = (x - x.mean()) / ((x - x.mean()).square().mean() + epsilon).sqrt()
        return unit * self.w(f"{name}.weight") + self.weights.get(f"{name}.bias", torch.zeros(1))

    def rms(self, name: str, x: Tensor) -> Tensor:
        return x / (x.square().mean() + self.config.rms_norm_eps).sqrt() * self.w(f"{name}.weight")

    def heads(self, x: Tensor) -> list[Tensor]:
        each = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads
        return list(x.split(each))

    def turned(self, x: Tensor, place: int, theta: float) -> Tensor:
        """Rotary: (x_i, x_{i + d/2}) turned by place / theta^(2i/d)."""
        half = len(x) // 2
        angle = place / theta ** (torch.arange(half, dtype=torch.float64) * 2 / len(x))
        one, two = x[:half], x[half:]
        return torch.cat((one * angle.cos() - two * angle.sin(), two * angle.cos() + one * angle.sin()))

    def bert(self, layer: str, index: int, h: Tensor) -> Tensor:
        own = f"{layer}.attention"
        q, k, v = ([self.heads(self.linear(f"{own}.self.{n}", x)) for x in h] for n in ("query", "key", "value"))
        made = []
        for i, x in enumerate(h):
            keys, values = ([[row[head] for row in side] for head in range(len(q[i]))] for side in (k, v))
            mixed = self.attended(f"{own}.output.dense", index, q[i], keys, values, q[i])
            y = self.written(f"{own}.output.dense", index, mixed)
            mid = self.norm(f"{own}.output.LayerNorm", y + x) + self.beside(f"{own}.output.LayerNorm", index, x)
            y = gelu(self.linear(f"{layer}.intermediate.dense", mid))
            y = self.written(f"{layer}.output.dense", index, y, mid)
            last = f"{layer}.output.LayerNorm"
            made.append(self.norm(last, y + mid) + self.beside(last, index, mid))
        return torch.stack(made)

    def modernbert(self, layer: str, index: int, h: Tensor) -> Tensor:
        kind = self.config.layer_types[index]
        theta = self.config.rope_parameters[kind]["rope_theta"]
        near = self.config.local_attention // 2 if kind == "sliding_attention" else len(h)
        rows = []
        for x in h:
            q, k, v = self.linear(f"{layer}.attn.Wqkv", self.norm(f"{layer}.attn_norm", x) if index else x).chunk(3)
            rows.append([self.heads(side) for side in (q, k, v)])
        made = []
        for i, x in enumerate(h):
            seen = [j for j in range(len(h)) if abs(i - j) <= near]
            q = rows[i][0]
            keys = [[self.turned(rows[j][1][head], j, theta) for j in seen] for head in range(len(q))]
            values = [[rows[j][2][head] for j in seen] for head in range(len(q))]
            turned = [self.turned(each, i, theta) for each in q]
            mixed = self.attended(f"{layer}.attn.Wo", index, q, keys, values, turned)
            y = self.written(f"{layer}.attn.Wo", index, mixed)
            mid = x + y + self.beside(f"{layer}.attn.Wo", index, x)
            read = self.norm(f"{layer}.mlp_norm", mid)
            value, gate = self.linear(f"{layer}.mlp.Wi", read).chunk(2)
            y = self.written(f"{layer}.mlp.Wo", index, gelu(value) * gate, read)
            made.append(mid + y + self.beside(f"{layer}.mlp.Wo", index, mid))
        return torch.stack(made)

    def qwen3(self, layer: str, index: int, h: Tensor) -> Tensor:
        own, theta = f"{layer}.self_attn", self.config.rope_parameters["rope_theta"]
        read = [self.rms(f"{layer}.input_layernorm", x) for x in h]
        q, k, v = ([self.heads(self.linear(f"{own}.{n}_proj", x)) for x in read] for n in "qkv")
        q = [[self.rms(f"{own}.q_norm", x) for x in row] for row in q]
        k = [[self.rms(f"{own}.k_norm", x) for x in row] for row in k]
        made = []
        for i, x in enumerate(h):
            shared = [head * len(k[0]) // len(q[0]) for head in range(len(q[0]))]
            keys = [[self.turned(k[j][head], j, theta) for j in range(i + 1)] for head in shared]
            values = [[v[j][head] for j in range(i + 1)] for head in shared]
            turned = [self.turned(each, i, theta) for each in q[i]]
            mixed = self.attended(f"{own}.o_proj", index, q[i], keys, values, turned)
            mid = x + self.written(f"{own}.o_proj", index, mixed) + self.beside(f"{own}.o_proj", index, x)
            net = self.rms(f"{layer}.post_attention_layernorm", mid)
            y = nn.functional.silu(self.linear(f"{layer}.mlp.gate_proj", net)) * self.linear(
                f"{layer}.mlp.up_proj", net
            )
            y = self.written(f"{layer}.mlp.down_proj", index, y, net)
            made.append(mid + y + self.beside(f"{layer}.mlp.down_proj", index, mid))
        return torch.stack(made)


def gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.erf(x / 2**0.5))


class ExactRms(nn.Module):
    """What the norm of Qwen3 computes here, in one precision: its own takes the mean in float32."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(weight, requires_grad=False), epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.epsilon).sqrt() * self.weight


def own_forward(kind: str) -> Transformer:
    model = of_library(library(kind))
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "_RMSNorm":
            exact = ExactRms(module.get_parameter("weight").detach(), model.config.rms_norm_eps)
            replace_module(model, name, exact)
    return model.double()


def run(model: nn.Module, mask: Tensor = MASK) -> Tensor:
    out: Tensor = model(input_ids=IDS, attention_mask=mask).last_hidden_state
    return torch.cat([row[:length] for row, length in zip(out, LENGTHS, strict=True)])  # (tokens, h)


@pytest.mark.parametrize("layers", [1, 2])
@every_kind
@every_method
def test_forward_and_gradient_are_the_formulas(kind: str, method: str, layers: int) -> None:
    model = own_forward(kind)
    weights = dict(model.named_parameters())
    start = model.embed(IDS, None)
    made = put(model, method, strength=STRENGTH, layers=layers)
    parameters = made.parameters()
    learnt = {name: parameter.detach().double().requires_grad_(True) for name, parameter in parameters.items()}
    options = options_of(AdapterConfig.model_validate({"method": method, **METHODS[method]}))
    plain = Plain(kind, model.config, weights, method, options, learnt, STRENGTH, first=3 - layers)
    expected = torch.cat([plain(start[row, :length]) for row, length in enumerate(LENGTHS)])
    got = run(model)
    assert torch.allclose(got, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        made.set_strength(0)
        assert not torch.allclose(run(model), expected, atol=1e-2)
    pull = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    names = list(learnt)
    theirs = torch.autograd.grad((expected * pull).sum(), [learnt[name] for name in names])
    ours = torch.autograd.grad((got * pull).sum(), [parameters[name] for name in names])
    assert max(float(gradient.abs().max()) for gradient in theirs) > 0.1
    for name, mine, other in zip(names, ours, theirs, strict=True):
        assert torch.allclose(mine.double(), other, atol=1e-4, rtol=1e-4), name


@every_kind
@every_method
def test_gradients_pass_gradcheck(kind: str, method: str) -> None:
    model = own_forward(kind)
    made = put(model, method, strength=STRENGTH, layers=1)
    model.double()
    parameters = tuple(made.parameters().values())
    assert {parameter.dtype for parameter in parameters} == {torch.float64}
    # gradcheck moves the parameters where they are, so the model sees it.
    assert torch.autograd.gradcheck(lambda *_: run(model), parameters, fast_mode=True)


@every_kind
@every_method
def test_both_forwards_give_the_same(kind: str, method: str) -> None:
    theirs = library(kind)
    mine = of_library(theirs)
    puts = [put(model, method, strength=STRENGTH, layers=2) for model in (theirs, mine)]
    assert list(puts[0].parameters()) == list(puts[1].parameters())
    assert torch.allclose(run(theirs), run(mine), atol=1e-4, rtol=1e-4)


def attend_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ends: Tensor,
    *_: Any,
    scale: float,
    window_size: Any = ALL,
    enable_gqa: bool = False,
) -> Tensor:
    """PyTorch's attention over texts that lie back to back, which it has on GPUs alone; (tokens, H, d)."""
    made = []
    for start, end in itertools.pairwise(ends.tolist()):
        mine, keys, values = (side[start:end].transpose(0, 1) for side in (q, k, v))
        if enable_gqa:
            keys, values = (side.repeat_interleave(len(mine) // len(side), 0) for side in (keys, values))
        far = torch.arange(end - start)[None] - torch.arange(end - start)[:, None]
        left, right = (bound if bound >= 0 else end for bound in window_size)
        scores = (mine @ keys.transpose(1, 2) * scale).masked_fill((far < -left) | (far > right), float("-inf"))
        made.append((scores.softmax(-1) @ values).transpose(0, 1))
    return torch.cat(made)


@every_kind
@every_method
def test_tokens_may_lie_back_to_back(kind: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = of_library(library(kind))
    put(model, method, strength=STRENGTH, layers=2)
    padded = run(model)
    monkeypatch.setattr(layout, "_packs", lambda *_: True)
    monkeypatch.setattr(layout, "variable_length_attention", lambda *_: attend_packed)
    assert torch.allclose(run(model), padded, atol=1e-5)


@every_kind
@every_method
def test_the_part_above_a_cut_is_the_whole(kind: str, method: str) -> None:
    model = of_library(library(kind))
    put(model, method, strength=STRENGTH, layers=2)
    parts = split(model, 2)
    assert parts is not None
    below = parts[0](input_ids=IDS, attention_mask=MASK).last_hidden_state
    above = parts[1](inputs_embeds=below, attention_mask=MASK).last_hidden_state
    got = torch.cat([row[:length] for row, length in zip(above, LENGTHS, strict=True)])
    assert torch.equal(got, run(model))


# Saved and opened


@pytest.mark.parametrize(
    ("kind", "method"),
    [("bert", "iaa-s"), ("bert", "trf"), ("modernbert", "prefix"), ("modernbert", "iaa-l"), ("qwen3", "mam"),
     ("qwen3", "trf-linear")],
)  # fmt: skip
def test_what_is_saved_opens_in_our_own_forward_and_in_the_library(kind: str, method: str, tmp_path: Path) -> None:
    wide = {"modernbert": {"local_attention": 16}, "qwen3": {"head_dim": 16}}.get(kind, {})
    folder = write_tiny_model(tmp_path / "base", kind=kind, **{**KINDS[kind], **wide})
    base = Encoder.load(EncoderConfig(model=str(folder), device="cpu", precision="float32"))
    config = AdapterConfig.model_validate({"method": method, **METHODS[method]})
    adapted = attach(base, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    expected = adapted.encode_queries(TEXTS)
    merged = adapted.merged()
    assert np.allclose(merged.encode_queries(TEXTS), expected, atol=1e-6)
    before = base.encode_queries(TEXTS)
    assert np.max(np.abs(before - expected)) > 1e-2
    merged.save(tmp_path / "model")
    again = Encoder.open(tmp_path / "model", device="cpu", precision="float32")
    for encoder in (merged, again):
        assert encoder.query_tower is not None and isinstance(encoder.query_tower.model, Transformer)
        assert encoder.query_tower.path == "ragadapt's own forward"
    assert np.allclose(again.encode_queries(TEXTS), expected, atol=1e-5)
    rounded = Encoder.open(tmp_path / "model", device="cpu", precision="bfloat16")
    assert np.sum(rounded.encode_queries(TEXTS) * expected, axis=1).min() > 0.98
    library = SentenceTransformer(str(tmp_path / "model"), device="cpu", trust_remote_code=True)
    assert np.allclose(library.encode_query(TEXTS), expected, atol=1e-5)
    twin = copy.deepcopy(library)
    with torch.no_grad():  # a copy is whole: nothing of it leads back
        for parameter in library.parameters():
            parameter.zero_()
    assert np.allclose(twin.encode_query(TEXTS), expected, atol=1e-5)


# Other builds


@pytest.mark.parametrize("kind", ["distilbert", "mpnet"])
@every_method
def test_models_that_only_the_library_runs_take_them_too(kind: str, method: str) -> None:
    sizes = {"dim": 8, "n_layers": 3, "n_heads": 2, "hidden_dim": 12} if kind == "distilbert" else {}
    model = library(kind, **sizes)
    start = run(model)
    made = put(model, method, shaken=False, **({"rank": 8} if method == "mam" else {}))  # a relu of 3 may be off
    assert torch.allclose(run(model), start, atol=1e-6)
    loss = (run(model) - 1).square().mean()
    gradients = dict(zip(made.parameters(), torch.autograd.grad(loss, made.parameters().values()), strict=True))
    closing = [name for name in gradients if name.endswith(("up", "up_bias", "gate", "lora_B.weight"))]
    assert closing and all(gradients[name].abs().max() > 0 for name in closing if "filter" not in name)
    made.detach()
    assert torch.equal(run(model), start)


def test_a_model_of_another_type_is_refused_where_sublayers_are_needed() -> None:
    sizes = {"num_key_value_heads": 2, "head_dim": 4}
    for method in ("houlsby", "prefix", "mam", "iaa-s"):
        with pytest.raises(InvalidConfiguration, match="type 'llama' have layers in which"):
            put(library("llama", **sizes), method)
    put(library("llama", **sizes), "trf")


# Sizes


BERT_BASE = 109_482_240
Q_AND_V = 12 * 2 * 2 * 768 * 16  # LoRA of rank 16, to which both papers compare

COUNTS: list[tuple[str, dict[str, Any], int, float]] = [
    # Houlsby et al. (2019), section 2.1: 2 m d + d + m for each adapter, two in a layer; m = 64
    ("houlsby", {}, 12 * 2 * (2 * 64 * 768 + 768 + 64), 2.2),
    # about half a percent in Ma et al. (2022), table of retrieval results ("adapter")
    ("houlsby", {"rank": 16}, 12 * 2 * (2 * 16 * 768 + 768 + 16), 0.6),
    # He et al. (2022), section 4.1: 2 l d in a layer; .5 % of RoBERTa-base; a gate for every head is ours
    ("prefix", {}, 12 * (2 * 32 * 768 + 12), 0.5),
    # the same: 2 l d + 2 r d; .5 % with l = r = 16; the biases are those of the authors' code
    ("mam", {}, 12 * (2 * 16 * 768 + 12 + 2 * 16 * 768 + 16 + 768), 0.5),
    # and 6.7 % of BART-large with l = 30, r = 512
    ("mam", {"rank": 512, "prefix_length": 30}, 12 * (2 * 30 * 768 + 12 + 2 * 512 * 768 + 512 + 768), 9.1),
    # Ma et al. (2022): (inside, aside) of about .5 %: S (8, 8) and M (15, 24) are LoRA's count to the parameter
    ("iaa-s", {}, Q_AND_V, 0.5),
    ("iaa-m", {}, Q_AND_V, 0.5),
    ("iaa-l", {}, 12 * 3 * 2 * 768 * 12, 0.6),
    # 6.7 %: L (50, 300)
    ("iaa-l", {"rank": 50, "aside_rank": 300}, 12 * 2 * 768 * (2 * 50 + 300), 6.7),
    # with the modules inside switched off
    ("iaa-l", {"rank": 0}, 12 * 2 * 768 * 12, 0.2),
    # LoRATRF: d + 2 d r in a layer, without the LoRA beside it
    ("trf", {"rank": 0}, 12 * (768 + 2 * 768 * 8), 0.1),
]


@pytest.mark.parametrize(("method", "values", "count", "percent"), COUNTS)
def test_sizes_on_bert_base_are_the_published_ones(
    method: str, values: dict[str, Any], count: int, percent: float
) -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model("bert"))
    assert sum(parameter.numel() for parameter in model.parameters()) == BERT_BASE
    config = AdapterConfig.model_validate({"method": method, **values})
    made, _ = attach_method(model, config, seed=0, weights=lambda: dict(model.named_parameters()))
    found = sum(parameter.numel() for parameter in made.parameters().values())
    assert found == count and round(100 * found / BERT_BASE, 1) == percent


# Options


@every_method
def test_gates_learn_faster_and_nothing_else_does(method: str, tmp_path: Path) -> None:
    base = Encoder.load(EncoderConfig(model=str(write_tiny_model(tmp_path)), device="cpu", precision="float32"))
    pairs = [Example(" ".join(text.split()[::2]), text) for text in sentences(8, words=16)]
    training = TrainingConfig(epochs=1, batch_size=8, learning_rate=1e-3, warmup=0)
    after = train(base, pairs, None, AdapterConfig(method=method, layers=1), training).encoder.trainable()
    gates = {name: after[name].detach().abs().max() for name in after if name.endswith("gate")}
    assert bool(gates) is (method in ("prefix", "mam"))
    # Adam's first step is the learning rate, whatever the gradient.
    assert all(abs(float(moved) - 20e-3) < 1e-4 for moved in gates.values())
    others = [after[name].detach().abs().max() for name in after if name.endswith((".up", "up_bias"))]
    assert all(float(moved) < 1.01e-3 for moved in others)


def test_without_modules_inside_iaa_l_is_its_path_aside() -> None:
    made = put(of_library(library("bert")), "iaa-l", rank=0, layers=2)
    assert {name.rpartition(".")[0] for name in made.parameters()} == {"encoder.layer.1.aside", "encoder.layer.2.aside"}


def test_filters_alone_have_no_pairs() -> None:
    made = put(of_library(library("bert")), "trf", rank=0)
    assert made.pairs() == {} and not any("lora" in name for name in made.parameters())
    assert isinstance(made, Inserting)


def test_re_weighting_by_a_pair_that_is_not_there_is_refused(tmp_path: Path) -> None:
    base = Encoder.load(EncoderConfig(model=str(write_tiny_model(tmp_path)), device="cpu", precision="float32"))
    with pytest.raises(InvalidConfiguration, match="rank = 0 leaves method 'trf' none"):
        attach(base, AdapterConfig(method="trf", rank=0, reweight="vector"))
    assert set(attach(base, AdapterConfig(method="trf", rank=0)).trainable())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"method": "lora", "rank": 0}, r"adapter\.rank = 0: method 'lora' is nothing without it"),
        ({"method": "houlsby", "rank": 0}, "nothing without it"),
        ({"method": "lora", "aside_rank": 3}, "method 'lora' has no aside_rank"),
        ({"method": "houlsby", "prefix_length": 3}, "has no prefix_length"),
        ({"method": "prefix", "rank": 3}, "has no rank"),
        ({"method": "iaa-l", "filter_rank": 3}, "has no filter_rank"),
        ({"method": "iaa-l", "reweight": "vector"}, "has no reweight"),
    ],
)
def test_a_setting_that_the_method_lacks_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfiguration, match=said):
        options_of(AdapterConfig.model_validate(values))


def test_what_is_left_open_is_the_methods_own_size() -> None:
    sizes = {name: options_of(AdapterConfig.model_validate({"method": name})).as_dict() for name in METHODS}
    assert sizes["houlsby"] == {"rank": 64} and sizes["prefix"] == {"prefix_length": 32}
    assert sizes["mam"] == {"rank": 16, "alpha": None, "prefix_length": 16}
    assert [(sizes[f"iaa-{form}"]["rank"], sizes[f"iaa-{form}"]["aside_rank"]) for form in "slm"] == [
        (8, 8), (12, 12), (15, 24),
    ]  # fmt: skip
    assert (sizes["trf"]["rank"], sizes["trf"]["filter_rank"]) == (16, 8)
