"""What PEFT has beside LoRA: its own layers, between the base and what they learnt."""

from __future__ import annotations

import math
import re
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

import torch
from peft import (
    AdaLoraConfig,
    AdaLoraModel,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    MissConfig,
    PeftConfig,
    RandLoraConfig,
    VeraConfig,
)
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.randlora.model import _kaiming_init as randlora_init
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.tuners.vera.model import _kaiming_init as vera_init
from peft.utils import PeftType
from torch import Tensor, nn

from ragadapt.adapters.linear import Adapted, OnLinear
from ragadapt.adapters.method import Options, Pair, Scope, Weights
from ragadapt.adapters.peft import ADAPTER, LowRankOptions, linear_below, merged_weights, target_names
from ragadapt.errors import InvalidConfiguration
from ragadapt.values import JsonValue


class TunedLinear(Adapted):
    """A linear layer with PEFT's layer on it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    @property
    def base(self) -> nn.Linear:
        return linear_below(self.layer)

    def whole(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out

    def whole_weights(self) -> tuple[Tensor, Tensor | None]:
        return merged_weights(self.layer)

    def learnt(self, part: str) -> nn.Parameter:
        """One of the parameters that PEFT's layer has."""
        return self.layer.get_submodule(part).get_parameter(ADAPTER)

    def drawn(self, part: str) -> Tensor:
        """A projection of PEFT's layer that stays as it was drawn, and that all layers share."""
        return self.layer.get_submodule(part).get_buffer(ADAPTER)

    def set_drawn(self, part: str, projection: Tensor) -> None:
        """Put another in its place."""
        held = self.layer.get_submodule(part)
        assert isinstance(held, BufferDict)
        held[ADAPTER] = projection

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        assert isinstance(self.layer, BaseTunerLayer)
        for part in sorted(self.layer.adapter_layer_names):
            held = getattr(self.layer, part, None)
            if isinstance(held, nn.ParameterDict) and ADAPTER in held:
                yield part, held[ADAPTER]


T = TypeVar("T", bound=TunedLinear)


class Tuner(OnLinear[T]):
    """A method whose layers are PEFT's. START: the function of such a layer that sets its first values."""

    START: ClassVar[str]
    LAYER: type[T]

    def __init__(self, model: nn.Module, options: Options, scope: Scope, *, seed: int, weights: Weights) -> None:
        self.model, self.options, self.scope, self.seed = model, options, scope, seed
        names = sorted(self.targets())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Specified to not save")  # the seed gives what is not saved
            config = self.config(options, names)
        with torch.random.fork_rng(devices=[]):
            self.tuner: BaseTuner = PEFT_TYPE_TO_TUNER_MAPPING[PeftType(config.peft_type)](
                model, config, adapter_name=ADAPTER
            )
            layers = {name: self.LAYER(model.get_submodule(name)) for name in names}
            torch.manual_seed(seed)
            for layer in layers.values():
                self._begin(layer)
        self.place(layers)

    def _begin(self, layer: T) -> None:
        """The first values, drawn on the CPU in float32, so that one seed means one start on every device."""
        device = layer.base.weight.device
        if device.type == "meta":  # there are no values
            return
        trained = [parameter for _, parameter in layer.trained()]
        for parameter in trained:
            parameter.data = torch.zeros(parameter.shape)
        if self.START:
            getattr(layer.layer, self.START)(ADAPTER)
        for parameter in trained:
            parameter.data = parameter.data.to(device)

    def targets(self) -> list[str]:
        """Full names of the layers that get one of PEFT's."""
        targets: tuple[str, ...] = getattr(self.options, "targets", ())
        return target_names(self.model, self.scope, targets)

    @classmethod
    @abstractmethod
    def config(cls, options: Options, names: list[str]) -> PeftConfig:
        """PEFT's configuration for these layers, named in full."""

    def training(self, on: bool) -> None:
        if self.stochastic:  # without anything to drop, PEFT's layers need not know
            for layer in self.layers.values():
                layer.layer.train(on)

    @property
    def stochastic(self) -> bool:
        return bool(getattr(self.options, "dropout", 0.0) > 0)

    @classmethod
    def peft_config(cls, options: Options, tensors: Mapping[str, Tensor], strength: float) -> PeftConfig | None:
        """None on the way to the base, which PEFT's layers of these kinds do not know, or where PEFT would need more
        than the tensors."""
        if strength != 1 or cls.SEEDED:
            return None
        return cls.config(options, sorted({name.rpartition(".")[0] for name in tensors}))


# Low-rank pairs of another make


class TunedPair(TunedLinear):
    """One whose change is a low-rank pair, which may re-weight the vector."""

    @property
    @abstractmethod
    def a(self) -> Tensor:
        """(r, in)."""

    @property
    @abstractmethod
    def b(self) -> Tensor:
        """(out, r)."""

    @property
    def factor(self) -> float:
        return self.strength


@dataclass(frozen=True, slots=True)
class AdaptiveOptions(LowRankOptions):
    """rank: that is left at the end, on average over the layers; at the start there is half as much more."""

    rank: int = 8

    @property
    def first_rank(self) -> int:
        return max(self.rank + 1, math.ceil(1.5 * self.rank))

    @property
    def own_alpha(self) -> int:
        return 2 * self.first_rank


class AdaPair(TunedPair):
    @property
    def a(self) -> Tensor:
        return self.learnt("lora_A") * self.learnt("lora_E")

    @property
    def b(self) -> Tensor:
        return self.learnt("lora_B")

    @property
    def factor(self) -> float:
        assert isinstance(self.layer, AdaLoraLayer)
        return self.strength * float(self.layer.scaling[ADAPTER] / (self.learnt("ranknum") + 1e-5))


class RankAllocator(Protocol):
    """What is used of PEFT's, whose functions have no types."""

    ipt: dict[str, Tensor]
    exp_avg_ipt: dict[str, Tensor]
    exp_avg_unc: dict[str, Tensor]

    def update_ipt(self, model: nn.Module, /) -> None:
        """Look at the gradients of a step."""


class RankTuner(Protocol):
    """Likewise."""

    @property
    def rankallocator(self) -> RankAllocator:
        """What looks and cuts."""

    def update_and_allocate(self, step: int, /) -> None:
        """Cut what a step of the schedule cuts."""


class AdaLoRA(Tuner[AdaPair]):
    """W + s B E A with E diagonal, whose least important entries, over all layers, become zero on the way."""

    OPTIONS = AdaptiveOptions
    PAIRS = True
    LINEAR = True
    SOURCE = "Zhang et al. 2023, arXiv 2303.10512"
    START = "reset_lora_parameters"
    LAYER = AdaPair

    @classmethod
    def config(cls, options: Options, names: list[str]) -> AdaLoraConfig:
        assert isinstance(options, AdaptiveOptions)
        return AdaLoraConfig(
            target_r=options.rank,
            init_r=options.first_rank,
            lora_alpha=options.scale,  # type: ignore[arg-type]  # PEFT takes fractions, too
            lora_dropout=options.dropout,
            target_modules=names,
            total_step=1,  # known when the first step is done
        )

    def training(self, on: bool) -> None:
        for layer in self.layers.values():
            layer.layer.get_submodule("lora_dropout").train(on)

    def penalty(self) -> Tensor:
        """How far the rows of A and the columns of B are from being orthonormal, as PEFT adds it to a loss."""
        products = []
        for layer in self.layers.values():
            a, b = layer.learnt("lora_A"), layer.learnt("lora_B")
            products += [a @ a.T, b.T @ b]
        far = [torch.linalg.norm(product - torch.eye(len(product), device=product.device)) for product in products]
        return self._schedule.orth_reg_weight * torch.stack(far).mean()

    @property
    def _schedule(self) -> AdaLoraConfig:
        schedule = self.tuner.peft_config[ADAPTER]
        assert isinstance(schedule, AdaLoraConfig)
        return schedule

    @property
    def _allocating(self) -> RankTuner:
        assert isinstance(self.tuner, AdaLoraModel)
        return self.tuner

    def place(self, layers: dict[str, AdaPair]) -> None:
        for layer in layers.values():
            layer.learnt("ranknum").requires_grad_(False)  # the first rank, by which PEFT divides
        super().place(layers)

    def after_backward(self, step: int, total: int) -> None:
        """Nothing is cut in the first tenth of the steps, and nothing more in the last three tenths."""
        schedule, allocator = self._schedule, self._allocating.rankallocator
        schedule.total_step, schedule.tinit, schedule.tfinal = total, total // 10, 3 * total // 10
        schedule.deltaT = max(1, total // 100)
        if step == total - schedule.tfinal and not allocator.exp_avg_ipt:
            allocator.update_ipt(self.model)  # so short a run that there was no step to look at before
        self._allocating.update_and_allocate(step)

    @property
    def ranks(self) -> dict[str, int]:
        """How many entries of E are left of each layer."""
        return {name: int((layer.learnt("lora_E") != 0).sum()) for name, layer in self.layers.items()}

    def memory(self) -> dict[str, Tensor]:
        """What is known of the importance of every entry, and which entries of E may be other than zero."""
        allocator = self._allocating.rankallocator
        kept = {f"{part}/{name}": value for part in _RUNNING for name, value in getattr(allocator, part).items()}
        pattern = self._schedule.rank_pattern or {}
        return {**kept, **{f"ranks/{name}": torch.tensor(mask) for name, mask in pattern.items()}}

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        allocator, device = self._allocating.rankallocator, next(self.model.parameters()).device
        found: dict[str, dict[str, Tensor]] = {part: {} for part in (*_RUNNING, "ranks")}
        for key, value in memory.items():
            part, _, name = key.partition("/")
            found[part][name] = value
        for part in _RUNNING:
            setattr(allocator, part, {name: value.to(device) for name, value in found[part].items()})
        self._schedule.rank_pattern = {name: mask.tolist() for name, mask in found["ranks"].items()} or None

    def pairs(self) -> Mapping[str, Pair]:
        return self.layers

    @classmethod
    def peft_config(cls, options: Options, tensors: Mapping[str, Tensor], strength: float) -> None:
        return None  # PEFT wants the ranks of every layer beside it, and their tensors cut to these


_RUNNING = ("ipt", "exp_avg_ipt", "exp_avg_unc")


@dataclass(frozen=True, slots=True)
class RandomOptions(Options):
    """rank: of the projections that are drawn and stay. targets: as of LoRA."""

    rank: int = 256
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def deciding(self) -> dict[str, JsonValue]:
        return {"rank": self.rank}


class VeraPair(TunedPair):
    @property
    def a(self) -> Tensor:
        return self.learnt("vera_lambda_d")[:, None] * self.drawn("vera_A")[:, : self.in_features]

    @property
    def b(self) -> Tensor:
        return self.learnt("vera_lambda_b")[:, None] * self.drawn("vera_B")[: self.out_features]


class VeRA(Tuner[VeraPair]):
    """W + Λ_b B Λ_d A: one random pair for all layers, which stays, and two learnt vectors for each."""

    OPTIONS = RandomOptions
    PAIRS = True
    LINEAR = True
    SEEDED = True
    SOURCE = "Kopiczko et al. 2024, arXiv 2310.11454"
    START = "reset_vera_parameters"
    LAYER = VeraPair

    @classmethod
    def config(cls, options: Options, names: list[str]) -> VeraConfig:
        assert isinstance(options, RandomOptions)
        return VeraConfig(r=options.rank, vera_dropout=options.dropout, target_modules=names, save_projection=False)

    def place(self, layers: dict[str, VeraPair]) -> None:
        """PEFT's draw again, from our seed, in float32 whatever the model is in."""
        assert isinstance(self.options, RandomOptions)
        sizes, device = _largest(layers), _device(layers)
        generator = torch.Generator().manual_seed(self.seed)
        a = vera_init((self.options.rank, sizes[1]), generator=generator)
        b = vera_init((sizes[0], self.options.rank), generator=generator)
        for layer in layers.values():
            layer.set_drawn("vera_A", a.to(device))
            layer.set_drawn("vera_B", b.to(device))
        super().place(layers)

    def pairs(self) -> Mapping[str, Pair]:
        return self.layers


# Changes of full rank or other shapes


@dataclass(frozen=True, slots=True)
class BasesOptions(RandomOptions):
    """rank: of one random base; the smaller, the more bases there are, and parameters. alpha: None = 20 · rank."""

    rank: int = 32
    alpha: float | None = None

    @property
    def scale(self) -> float:
        return float(self.alpha if self.alpha is not None else 20 * self.rank)

    def deciding(self) -> dict[str, JsonValue]:
        return {"rank": self.rank, "alpha": self.scale}


class RandLoRA(Tuner[TunedLinear]):
    """W + s Σ_j B_j Λ_j A Γ_j: a sum of random low-rank bases that stay, scaled so that every rank can be reached."""

    OPTIONS = BasesOptions
    SEEDED = True
    SOURCE = "Albert et al. 2025, arXiv 2502.00987"
    START = "reset_randlora_parameters"
    LAYER = TunedLinear

    @classmethod
    def config(cls, options: Options, names: list[str]) -> RandLoraConfig:
        assert isinstance(options, BasesOptions)
        return RandLoraConfig(
            r=options.rank,
            randlora_alpha=options.scale,  # type: ignore[arg-type]
            randlora_dropout=options.dropout,
            target_modules=names,
            save_projection=False,
        )

    def place(self, layers: dict[str, TunedLinear]) -> None:
        """PEFT's draw from our seed, in float32: it draws in bfloat16 or float16, as the machine has them."""
        assert isinstance(self.options, BasesOptions)
        rank = self.options.rank
        out, into = _largest(layers)
        generator = torch.Generator().manual_seed(self.seed)
        a = randlora_init(torch.empty(rank, 1, min(out, into)), generator=generator)
        bases = [
            randlora_init(torch.empty(max(out, into), 1, rank), generator=generator)
            for _ in range(math.ceil(min(out, into) / rank))
        ]
        b = torch.cat(bases, dim=1)
        device = _device(layers)
        for layer in layers.values():
            layer.set_drawn("randlora_A", (a / a.std()).to(device))
            layer.set_drawn("randlora_B", (b / b.std()).to(device))
        super().place(layers)


@dataclass(frozen=True, slots=True)
class ProductOptions(Options):
    """rank: of each factor. alpha: None = the rank. targets: as of LoRA."""

    rank: int = 8
    alpha: float | None = None
    targets: tuple[str, ...] = ()

    def deciding(self) -> dict[str, JsonValue]:
        return {"rank": self.rank, "alpha": self.scale}

    @property
    def scale(self) -> float:
        return float(self.alpha if self.alpha is not None else self.rank)


class LoHa(Tuner[TunedLinear]):
    """W + s (B₁ A₁) ∘ (B₂ A₂): the product, by entries, of two low-rank pairs has up to the square of their rank."""

    OPTIONS = ProductOptions
    SOURCE = "Hyeon-Woo et al. 2022 (FedPara), arXiv 2108.06098"
    START = "reset_adapter_parameters"
    LAYER = TunedLinear

    @classmethod
    def config(cls, options: Options, names: list[str]) -> LoHaConfig:
        assert isinstance(options, ProductOptions)
        return LoHaConfig(r=options.rank, alpha=options.scale, target_modules=names)  # type: ignore[arg-type]


class LoKr(Tuner[TunedLinear]):
    """W + s C ⊗ (B A): a Kronecker product of a small matrix and a low-rank pair."""

    OPTIONS = ProductOptions
    SOURCE = "Yeh et al. 2024 (LyCORIS), arXiv 2309.14859"
    START = "reset_adapter_parameters"
    LAYER = TunedLinear

    @classmethod
    def config(cls, options: Options, names: list[str]) -> LoKrConfig:
        assert isinstance(options, ProductOptions)
        return LoKrConfig(r=options.rank, alpha=options.scale, target_modules=names)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class ShardOptions(Options):
    """rank: length of the pieces of the input that are summed. targets: as of LoRA."""

    rank: int = 64
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def deciding(self) -> dict[str, JsonValue]:
        return {"rank": self.rank}


class MiSS(Tuner[TunedLinear]):
    """W x + Dᵀ Σ_g x_g: the pieces of the input are summed, and one matrix serves them all."""

    OPTIONS = ShardOptions
    SOURCE = "Kang and Yin 2025, arXiv 2409.15371"
    START = ""  # zeros
    LAYER = TunedLinear

    def targets(self) -> list[str]:
        assert isinstance(self.options, ShardOptions)
        names, rank = super().targets(), self.options.rank
        for name in names:
            layer = self.model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            if layer.in_features < rank:
                raise InvalidConfiguration(
                    f"adapter.rank = {rank}: layer {name} reads {layer.in_features} numbers, and method 'miss' cuts "
                    "them into pieces of that length. Choose a rank that is not larger."
                )
        return names

    @classmethod
    def config(cls, options: Options, names: list[str]) -> MissConfig:
        assert isinstance(options, ShardOptions)
        return MissConfig(r=options.rank, miss_dropout=options.dropout, target_modules=names)


@dataclass(frozen=True, slots=True)
class TargetOptions(Options):
    """targets: endings of names of linear layers; empty = keys, values, last layer of the feed-forward network."""

    targets: tuple[str, ...] = ()


_LAST = r"(?<!attention\.)output\.dense|mlp\.down_proj|mlp\.Wo|output_layer|ffn\.lin2|(?<!attention\.)fc2"
_KEYS_AND_VALUES = r"key|value|k_proj|v_proj|k_lin|v_lin|attn\.[kv]|attn\.Wqkv"


class IA3(Tuner[TunedLinear]):
    """Learnt factors, 1 at the start, of keys, values and what the last layer of the feed-forward network reads."""

    OPTIONS = TargetOptions
    SOURCE = "Liu et al. 2022, arXiv 2205.05638"
    START = "reset_ia3_parameters"
    LAYER = TunedLinear
    BIASES = True

    def targets(self) -> list[str]:
        assert isinstance(self.options, TargetOptions)
        names = super().targets()
        if self.options.targets:
            return names
        chosen = [name for name in names if re.search(rf"(^|\.)({_LAST}|{_KEYS_AND_VALUES})$", name)]
        if not chosen:
            raise InvalidConfiguration(
                f"{type(self.model).__name__} has no layers that ragadapt knows for keys, values or a feed-forward "
                "network. Name some: targets."
            )
        return chosen

    @classmethod
    def config(cls, options: Options, names: list[str]) -> IA3Config:
        assert isinstance(options, TargetOptions)
        last = [name for name in names if re.search(rf"(^|\.)({_LAST})$", name)]
        return IA3Config(target_modules=names, feedforward_modules=last)


def _largest(layers: Mapping[str, TunedLinear]) -> tuple[int, int]:
    """(most outputs, most inputs) of any layer."""
    return max(layer.out_features for layer in layers.values()), max(layer.in_features for layer in layers.values())


def _device(layers: Mapping[str, TunedLinear]) -> torch.device:
    return next(iter(layers.values())).base.weight.device
