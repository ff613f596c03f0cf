"""LoRA, and what of PEFT differs from it in scale, learning rates, start or a magnitude beside the pair."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, TypedDict, Unpack

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ragadapt.adapters.method import Method, Options, Pair, Scope, Weights, check_strength, norm, replace_module
from ragadapt.errors import InvalidConfiguration
from ragadapt.values import JsonValue

ADAPTER = "default"
_EXACT_WIDTH = 1024  # of matrices whose singular directions are computed exactly: seconds for all of a model


class LowRankLinear(PeftLinear):
    """y = W x + s B A x in the precision of x, while A and B stay float32.

    PEFT's own layer turns x into float32 and the product back, which copies every activation twice; here only
    the two small matrices are converted. Gradients reach the float32 ones.
    """

    in_features: int
    out_features: int

    @property
    def a(self) -> Tensor:
        """(r, in)."""
        return self.lora_A[ADAPTER].get_parameter("weight")

    @property
    def b(self) -> Tensor:
        """(out, r)."""
        return self.lora_B[ADAPTER].get_parameter("weight")

    @property
    def factor(self) -> float:
        """s, at the present strength."""
        return float(self.scaling[ADAPTER])

    def set_strength(self, strength: float) -> None:
        self.set_scale(ADAPTER, strength)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """(out, in) What is added to W, at the present strength."""
        return (self.b @ self.a) * self.factor

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self.disable_adapters or self.merged:
            plain: Tensor = super().forward(x, *args, **kwargs)
            return plain
        out: Tensor = self.base_layer(x, *args, **kwargs)
        factor = self.factor
        return out if factor == 0 else self.added(out, x, factor)

    def added(self, out: Tensor, x: Tensor, factor: float) -> Tensor:
        """(…, out) What is given and factor · B A x."""
        a = self.a.to(x.dtype)  # (r, in)
        b = (self.b * factor).to(x.dtype)  # (out, r)
        low = nn.functional.linear(self.lora_dropout[ADAPTER](x), a)  # (…, in) -> (…, r)
        return torch.addmm(out.flatten(0, -2), low.flatten(0, -2), b.T).view_as(out)


class DoraLinear(LowRankLinear):
    """y = m · (W + s B A) x / ‖W + s B A‖, by rows, as PEFT's layer computes it; part of the way, a mean with W x."""

    strength = 1.0

    @property
    def factor(self) -> float:
        return float(self.scaling[ADAPTER]) * self.strength

    @property
    def magnitude(self) -> nn.Parameter:
        """m (out,)."""
        return self.lora_magnitude_vector[ADAPTER].get_parameter("weight")

    def set_strength(self, strength: float) -> None:
        self.strength = strength

    def get_delta_weight(self, adapter: str) -> Tensor:
        return (self.b @ self.a) * float(self.scaling[ADAPTER])  # PEFT merges by it

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self.strength == 0:
            base: Tensor = self.base_layer(x)
            return base
        whole: Tensor = PeftLinear.forward(self, x)
        return whole if self.strength == 1 else torch.lerp(self.base_layer(x), whole, self.strength)


class PissaLinear(LowRankLinear):
    """y = W x + s (B A − B₀ A₀) x: W as it is, and a pair that begins at its principal part.

    a and b are that of the difference, of twice the rank: B A − B₀ A₀ = [B − B₀, B₀] [A; A − A₀]. At the start two of
    the four blocks are zero, and with them the product, to the bit.
    """

    start_a: Tensor
    start_b: Tensor

    def begin_at(self, a: Tensor, b: Tensor) -> None:
        """Set A and B, and A₀ (r, in) and B₀ (out, r), to these."""
        for part, name, value in ((self.lora_A, "start_a", a), (self.lora_B, "start_b", b)):
            parameter = part[ADAPTER].get_parameter("weight")
            parameter.data.copy_(value)
            self.register_buffer(name, parameter.detach().clone(), persistent=False)

    @property
    def a(self) -> Tensor:
        """(2 r, in)."""
        return torch.cat([super().a, super().a - self.start_a])

    @property
    def b(self) -> Tensor:
        """(out, 2 r)."""
        return torch.cat([super().b - self.start_b, self.start_b], dim=1)


@dataclass(frozen=True, slots=True)
class LowRankOptions(Options):
    """rank: of the pairs. alpha: None = twice the rank. targets: endings of names of linear layers; empty = all."""

    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def deciding(self) -> dict[str, JsonValue]:
        return {"rank": self.rank, "alpha": self.scale}

    @property
    def own_alpha(self) -> int:
        """alpha where it was left open."""
        return 2 * self.rank

    @property
    def scale(self) -> float:
        """alpha; the method's own where it was left open."""
        return float(self.alpha if self.alpha is not None else self.own_alpha)


class LoraVariant(TypedDict, total=False):
    """Of PEFT's configuration: what makes another method of LoRA."""

    use_rslora: bool
    use_dora: bool


class LoRA(Method):
    """Low-rank adaptation: W + s B A in the linear layers; A is drawn from the seed, B is zero, s = alpha / rank."""

    OPTIONS = LowRankOptions
    PAIRS = True
    LINEAR = True
    SOURCE = "Hu et al. 2021, arXiv 2106.09685"
    LAYER: ClassVar[type[LowRankLinear]] = LowRankLinear
    VARIANT: ClassVar[LoraVariant] = {}

    def __init__(self, model: nn.Module, options: Options, scope: Scope, *, seed: int, weights: Weights) -> None:
        assert isinstance(options, LowRankOptions)
        self.model, self.options, self.scope, self.seed = model, options, scope, seed
        settings = lora_config(options, target_names(model, scope, options.targets), **self.VARIANT)
        settings._register_custom_module({nn.Linear: self.LAYER})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(settings, model, ADAPTER)
            found = ((name, module) for name, module in model.named_modules() if isinstance(module, LowRankLinear))
            self.layers: dict[str, LowRankLinear] = dict(sorted(found))
            for layer in self.layers.values():
                layer.lora_A.float()
                layer.lora_B.float()
                # Drawn on the CPU in order of name, so that one seed means one start on every device and precision.
                parameter = layer.lora_A[ADAPTER].get_parameter("weight")
                start = torch.empty(parameter.shape)
                nn.init.kaiming_uniform_(start, a=5**0.5)
                parameter.data.copy_(start)
            self.begin(weights)
        for parameter in self.parameters().values():
            parameter.requires_grad_(True)

    def begin(self, weights: Weights) -> None:
        """What a variant begins with beside A and B; random numbers are drawn from the seed."""

    def parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{name}.{part}.weight": getattr(layer, part)[ADAPTER].weight
            for name, layer in self.layers.items()
            for part in ("lora_A", "lora_B")
        }

    @property
    def lowest_layer(self) -> int:
        return self.scope.indices[0]

    def training(self, on: bool) -> None:
        for layer in self.layers.values():
            layer.lora_dropout.train(on)

    @property
    def stochastic(self) -> bool:
        return self.options.dropout > 0

    def set_strength(self, strength: float) -> None:
        check_strength(strength)
        for layer in self.layers.values():
            layer.set_strength(strength)

    @torch.no_grad()
    def fold(self) -> dict[str, Tensor]:
        folded = {}
        for name, layer in self.layers.items():
            weight = layer.base_layer.get_parameter("weight")
            folded[f"{name}.weight"] = weight + layer.get_delta_weight(ADAPTER).to(weight.dtype)
        return folded

    @property
    def changed(self) -> frozenset[str]:
        return frozenset(f"{name}.weight" for name in self.layers)

    def detach(self) -> None:
        for name, layer in self.layers.items():
            replace_module(self.model, name, layer.base_layer)
        self.model.__dict__.pop("peft_config", None)  # PEFT warns where it finds one and adds a second time

    def pairs(self) -> Mapping[str, Pair]:
        return self.layers

    def change(self) -> float:
        """Of all B together."""
        return norm([layer.b.detach() for layer in self.layers.values()])

    @classmethod
    def peft_config(cls, options: Options, tensors: Mapping[str, Tensor], strength: float) -> LoraConfig | None:
        assert isinstance(options, LowRankOptions)
        scaled = replace(options, alpha=options.scale * strength)
        return lora_config(scaled, {name.rpartition(".lora_")[0] for name in tensors}, **cls.VARIANT)


@dataclass(frozen=True, slots=True)
class RankStableOptions(LowRankOptions):
    """As of LoRA; alpha: None = 8, with which s is that of LoRA at rank 16."""

    @property
    def own_alpha(self) -> int:
        return 8


class RsLoRA(LoRA):
    """LoRA with s = alpha / √rank, so that what is learnt keeps its size when the rank grows."""

    OPTIONS = RankStableOptions
    SOURCE = "Kalajdzievski 2023, arXiv 2312.03732"
    VARIANT: ClassVar[LoraVariant] = {"use_rslora": True}


@dataclass(frozen=True, slots=True)
class PlusOptions(LowRankOptions):
    """As of LoRA; lr_ratio: learning rate of B in units of A's."""

    lr_ratio: float = 16.0


class LoRAPlus(LoRA):
    """LoRA in which B learns faster than A."""

    OPTIONS = PlusOptions
    SOURCE = "Hayou et al. 2024, arXiv 2402.12354"

    def learning_rates(self) -> dict[str, float]:
        assert isinstance(self.options, PlusOptions)
        return {f"{name}.lora_B.weight": self.options.lr_ratio for name in self.layers}


class DoRA(LoRA):
    """LoRA for the direction of every row of W, and its length as a parameter of its own."""

    LINEAR = False
    SOURCE = "Liu et al. 2024, arXiv 2402.09353"
    LAYER = DoraLinear
    VARIANT: ClassVar[LoraVariant] = {"use_dora": True}
    layers: dict[str, DoraLinear]  # type: ignore[assignment]

    @torch.no_grad()
    def begin(self, weights: Weights) -> None:
        for layer in self.layers.values():
            length = torch.linalg.vector_norm(layer.base_layer.get_parameter("weight").float(), dim=1)
            layer.lora_magnitude_vector[ADAPTER].weight = nn.Parameter(length)
        self._lengths = [layer.magnitude.detach().clone() for layer in self.layers.values()]

    def parameters(self) -> dict[str, nn.Parameter]:
        lengths = {f"{name}.lora_magnitude_vector": layer.magnitude for name, layer in self.layers.items()}
        return dict(sorted({**super().parameters(), **lengths}.items()))

    def training(self, on: bool) -> None:
        for layer in self.layers.values():
            layer.train(on)  # PEFT's layer looks at itself before it drops anything

    @torch.no_grad()
    def fold(self) -> dict[str, Tensor]:
        folded = {}
        for name, layer in self.layers.items():
            weight = layer.base_layer.get_parameter("weight")
            folded[f"{name}.weight"] = torch.lerp(weight, merged_weights(layer)[0], layer.strength)
        return folded

    def change(self) -> float:
        """Of all B together, and of what the lengths moved by."""
        pairs = zip(self.layers.values(), self._lengths, strict=True)
        return norm(
            [tensor for layer, start in pairs for tensor in (layer.b.detach(), layer.magnitude.detach() - start)]
        )

    @classmethod
    def peft_config(cls, options: Options, tensors: Mapping[str, Tensor], strength: float) -> LoraConfig | None:
        return super().peft_config(options, tensors, 1.0) if strength == 1 else None  # no scale goes to the base


@dataclass(frozen=True, slots=True)
class PissaOptions(LowRankOptions):
    """As of LoRA; alpha: None = the rank, so that A and B share the singular values as they are."""

    @property
    def own_alpha(self) -> int:
        return self.rank


class PiSSA(LoRA):
    """LoRA that begins at the principal singular directions of W: W + s (B A − B₀ A₀)."""

    OPTIONS = PissaOptions
    SOURCE = "Meng et al. 2024, arXiv 2404.02948"
    SHAPED_LIKE = "lora"
    STARTS_SAVED = True
    LAYER = PissaLinear
    layers: dict[str, PissaLinear]  # type: ignore[assignment]

    @torch.no_grad()
    def begin(self, weights: Weights) -> None:
        whole = weights()
        for name, layer in self.layers.items():
            weight = whole.get(f"{name}.weight")
            if weight is None:  # at rest: what is loaded says it
                layer.begin_at(torch.zeros(layer.r[ADAPTER], layer.in_features), torch.zeros(1))
            else:
                layer.begin_at(*self.start(layer, weight.detach().float().cpu()))

    def start(self, layer: PissaLinear, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A₀ (r, in) and B₀ (out, r) for W (out, in), float32: by PEFT, on a layer that nobody else has."""
        bare = nn.Linear(layer.in_features, layer.out_features, bias=False)
        bare.weight.data = weight.clone()  # PEFT takes the principal part out of it
        rank = min(layer.r[ADAPTER], *weight.shape)
        scratch = PeftLinear(bare, ADAPTER, config=lora_config(replace(self._own, rank=rank), ()), r=rank)
        scratch.scaling[ADAPTER] = layer.scaling[ADAPTER]
        exact = min(weight.shape) <= _EXACT_WIDTH
        scratch.pissa_init(ADAPTER, "pissa" if exact else "pissa_niter_16")  # type: ignore[no-untyped-call]
        a, b = (part[ADAPTER].get_parameter("weight") for part in (scratch.lora_A, scratch.lora_B))
        return padded(a, b, layer.r[ADAPTER])

    @property
    def _own(self) -> LowRankOptions:
        assert isinstance(self.options, LowRankOptions)
        return self.options

    def tensors(self) -> dict[str, Tensor]:
        """The pair of the difference, which is a LoRA of twice the rank."""
        found = {}
        for name, layer in self.layers.items():
            found[f"{name}.lora_A.weight"] = layer.a.detach().cpu().clone()
            found[f"{name}.lora_B.weight"] = layer.b.detach().cpu().clone()
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """What `tensors` gave, or the parameters of a run."""
        split = dict(tensors)
        for name, layer in self.layers.items():
            a, b, rank = split.get(f"{name}.lora_A.weight"), split.get(f"{name}.lora_B.weight"), layer.r[ADAPTER]
            if a is None or b is None or a.shape[0] != 2 * rank or b.shape[1] != 2 * rank:
                continue
            layer.begin_at(a[:rank] - a[rank:], b[:, rank:])
            split[f"{name}.lora_A.weight"] = a[:rank]
            split[f"{name}.lora_B.weight"] = b[:, :rank] + b[:, rank:]
        super().load(split)

    def change(self) -> float:
        """Of A and B from where they began."""
        moved = []
        for layer in self.layers.values():
            rank = layer.r[ADAPTER]
            moved += [layer.a[rank:].detach(), layer.b[:, :rank].detach()]
        return norm(moved)

    @classmethod
    def peft_config(cls, options: Options, tensors: Mapping[str, Tensor], strength: float) -> LoraConfig:
        assert isinstance(options, LowRankOptions)
        doubled = replace(options, rank=2 * options.rank, alpha=2 * options.scale)
        config = super().peft_config(doubled, tensors, strength)
        assert config is not None
        return config


def padded(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A and B with rows and columns of zeros up to a rank that their layer is too small for."""
    more = rank - a.shape[0]
    return nn.functional.pad(a, (0, 0, 0, more)), nn.functional.pad(b, (0, more))


def linear_below(layer: nn.Module) -> nn.Linear:
    """The linear layer that PEFT's layer stands on."""
    below = layer.get_submodule("base_layer")
    assert isinstance(below, nn.Linear)
    return below


@torch.no_grad()
def merged_weights(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """W (out, in) and bias of a linear layer with what PEFT's layer adds at full strength, by PEFT's own merge."""
    own = linear_below(layer)
    assert isinstance(layer, BaseTunerLayer)
    merged = copy.deepcopy(own)
    try:
        layer.base_layer = merged
        layer.merge()
        return merged.weight.detach(), None if own.bias is None else merged.bias.detach()
    finally:
        layer.base_layer = own
        layer.merged_adapters.clear()


def lora_config(options: LowRankOptions, targets: Iterable[str], **variant: Unpack[LoraVariant]) -> LoraConfig:
    """PEFT's configuration of pairs in these layers, named in full."""
    alpha = options.alpha if options.alpha is not None else options.own_alpha
    return LoraConfig(
        **variant,
        r=options.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT takes fractions, too
        lora_dropout=options.dropout,
        target_modules=sorted(targets),
        bias="none",
    )


def target_names(model: nn.Module, scope: Scope, targets: tuple[str, ...]) -> list[str]:
    """Full names of the linear layers that get a low-rank pair.

    targets holds endings of names ("query", "output.dense"); empty = every linear layer of the layers that are trained.
    Raises InvalidConfiguration where nothing fits.
    """
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(scope.prefixes)
    ]
    if not targets:
        return linear
    chosen = [name for name in linear if any(name == end or name.endswith(f".{end}") for end in targets)]
    if not chosen:
        offered = sorted({".".join(name.split(".")[-2:]) for name in linear})
        raise InvalidConfiguration(
            f"targets = {list(targets)}: no linear layer is called so. This model has: {', '.join(offered)}."
        )
    return chosen
