"""The contract of a method of training, and the table of the methods.

A method sits on a transformer and knows neither sentence vectors nor scores, so that whatever ends in a transformer is
adapted by the same code. It is one file beside this one and one line in `METHODS`; nothing outside this package asks
which method it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ragadapt.config import AdapterConfig
from ragadapt.encoder.prefix import layer_list
from ragadapt.errors import InvalidConfiguration, InvalidInput
from ragadapt.values import JsonValue

if TYPE_CHECKING:
    from peft import PeftConfig

METHODS: dict[str, str] = {
    "lora": "ragadapt.adapters.peft:LoRA",
    "rslora": "ragadapt.adapters.peft:RsLoRA",
    "lora+": "ragadapt.adapters.peft:LoRAPlus",
    "dora": "ragadapt.adapters.peft:DoRA",
    "pissa": "ragadapt.adapters.peft:PiSSA",
    "adalora": "ragadapt.adapters.tuners:AdaLoRA",
    "vera": "ragadapt.adapters.tuners:VeRA",
    "randlora": "ragadapt.adapters.tuners:RandLoRA",
    "loha": "ragadapt.adapters.tuners:LoHa",
    "lokr": "ragadapt.adapters.tuners:LoKr",
    "miss": "ragadapt.adapters.tuners:MiSS",
    "ia3": "ragadapt.adapters.tuners:IA3",
    "loftq": "ragadapt.adapters.quantised:LoftQ",
    "qlora": "ragadapt.adapters.quantised:QLoRA",
    "mora": "ragadapt.adapters.lowrank:MoRA",
    "melora": "ragadapt.adapters.lowrank:MELoRA",
    "mtl-lora": "ragadapt.adapters.lowrank:MTLLoRA",
    "flat-lora": "ragadapt.adapters.lowrank:FlatLoRA",
    "lora-sp": "ragadapt.adapters.lowrank:LoRASP",
    "full": "ragadapt.adapters.full:Full",
    "bitfit": "ragadapt.adapters.full:BitFit",
    "houlsby": "ragadapt.adapters.bottleneck:Houlsby",
    "prefix": "ragadapt.adapters.prefix:LearntPrefix",
    "mam": "ragadapt.adapters.bottleneck:Mam",
    "iaa-s": "ragadapt.adapters.iaa:IaaS",
    "iaa-l": "ragadapt.adapters.iaa:IaaL",
    "iaa-m": "ragadapt.adapters.iaa:IaaM",
    "trf": "ragadapt.adapters.trf:Trf",
    "trf-linear": "ragadapt.adapters.trf:TrfLinear",
}
"""Name → module:class, imported when it is first used."""

_LARGE_STEPS = frozenset(
    ("lora", "rslora", "dora", "pissa", "mora", "melora", "trf", "houlsby", "iaa-s", "iaa-l", "ia3")
)
"""Methods that were seen to bear six times the usual learning rate where passages keep their vectors; full tuning and
RandLoRA do not, others were not measured (docs/decisions.md)."""

_SETTINGS = tuple(  # of AdapterConfig; a method may lack some
    name for name in AdapterConfig.model_fields if name not in ("method", "adapt", "layers")
)
_OF_PAIRS = ("reweight", "gamma")
_WITHOUT = ("none", 0, None, ())  # asks for nothing that a method could lack

Weights = Callable[[], Mapping[str, Tensor]]
"""Makes the transformer's own weights in float32, by name: the model itself may hold them rounded."""

BeforeHook = Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...] | None]
"""Called with a module and what it is about to read; what it gives, if not None, is read instead."""


class Pair(Protocol):
    """A linear layer with a low-rank pair: it gives W x + factor · B A x."""

    @property
    def in_features(self) -> int:
        """How many numbers it reads."""

    @property
    def out_features(self) -> int:
        """How many it gives."""

    @property
    def a(self) -> Tensor:
        """(r, in), float32; gradients reach it."""

    @property
    def b(self) -> Tensor:
        """(out, r), float32; gradients reach it."""

    @property
    def factor(self) -> float:
        """At the present strength."""

    def register_forward_pre_hook(self, hook: BeforeHook, /) -> object:
        """As of every torch module: called with what the layer is about to read."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The layers of a transformer that are trained. stack: name of its list of layers; indices: lowest first."""

    stack: str
    indices: tuple[int, ...]
    depth: int

    @classmethod
    def of(cls, model: nn.Module, wanted: int | None) -> Scope:
        """The top `wanted` layers; None = all. Raises InvalidConfiguration."""
        found = layer_list(model)
        if found is None:
            raise InvalidConfiguration(
                f"{type(model).__name__} is of a build whose layers ragadapt does not know, so it cannot be adapted. "
                "Choose another base model, or --method none."
            )
        name, layers = found
        count = wanted if wanted is not None else len(layers)
        if count > len(layers):
            raise InvalidConfiguration(
                f"layers = {count}: this model has {len(layers)} layers. Choose 1 to {len(layers)}."
            )
        return cls(name, tuple(range(len(layers) - count, len(layers))), len(layers))

    @property
    def prefixes(self) -> tuple[str, ...]:
        """With which the names of what lies in these layers begin."""
        return tuple(f"{self.stack}.{index}." for index in self.indices)


@dataclass(frozen=True, slots=True)
class Options:
    """What a method can be told; each has its own. Fields are named as the settings that they are taken from."""

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))

    @classmethod
    def may_be_zero(cls) -> tuple[str, ...]:
        """Sizes that may be 0, which leaves out what they are the size of."""
        return ()

    def as_dict(self) -> dict[str, JsonValue]:
        """JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def deciding(self) -> dict[str, JsonValue]:
        """JSON values of those that decide the vectors beside the tensors."""
        return {}


class Method(ABC):
    """What is trained on one transformer, from a start at which the transformer gives what it gave before.

    Making one changes the model in place; its other weights are only read. Everything has a default that suits a method
    which trains parameters of its own and needs no more.
    """

    OPTIONS: ClassVar[type[Options]] = Options
    PAIRS: ClassVar[bool] = False  # has low-rank pairs: the vector can be re-weighted by one
    SIZES: ClassVar[tuple[str, ...]] = ()  # options that say how much is trained; empty = each whole number that does
    SHAPED_LIKE: ClassVar[str] = ""  # a method whose parameters have the same shapes and a start that costs less
    MASTERS: ClassVar[bool] = False  # trains the model's own weights: float32 among those of another precision
    SEEDED: ClassVar[bool] = False  # the seed decides what is not saved: fixed projections, frozen parameters
    STARTS_SAVED: ClassVar[bool] = False  # what is saved says where it began: at rest, W is not asked
    TASKS: ClassVar[bool] = False  # learns by task, and is told that of every text it trains on
    FOLDS: ClassVar[bool] = True  # whether `fold` gives weights
    LINEAR: ClassVar[bool] = False  # adds its pairs' products to W and does nothing else: several of it add up
    CUDA: ClassVar[bool] = False  # trains on a CUDA device alone
    SOURCE: ClassVar[str] = ""  # who described it, where; the first line of the class's docstring says what it is

    @abstractmethod
    def __init__(self, model: nn.Module, options: Options, scope: Scope, *, seed: int, weights: Weights) -> None:
        """Raises InvalidConfiguration where this model cannot be adapted so."""

    @classmethod  # noqa: B027
    def check_device(cls, device: str) -> None:
        """Raises InvalidConfiguration or MissingExtra where it cannot train on such a device, and says what can."""

    # What is trained

    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """What training changes, by name, in order of name; float32."""

    @property
    @abstractmethod
    def lowest_layer(self) -> int | None:
        """The lowest layer that changes, from 0; what lies below it may be computed once. None = the embeddings."""

    def learning_rates(self) -> dict[str, float]:
        """Parameters that learn at another rate than the run's, by name: how many times that."""
        return {}

    def learn_tasks(self, tasks: Sequence[str]) -> None:  # noqa: B027
        """Called before training, and before `parameters` are asked for: the tasks that the examples have."""

    def tell(self, task: str | None) -> None:  # noqa: B027
        """The task of the texts that come next; None, and what is no task of the training: unknown."""

    def training(self, on: bool) -> None:  # noqa: B027
        """Switch on or off what acts in training alone: dropout, noise. The model itself stays in eval mode."""

    def penalty(self) -> Tensor | None:
        """() A loss of the method's own, added once for a step; None = there is none."""
        return None

    def after_backward(self, step: int, total: int) -> None:  # noqa: B027
        """Called when a step's gradients were applied and still are there. step: from 1 to total."""

    @property
    def stochastic(self) -> bool:
        """Whether it draws random numbers while it trains: a second pass over a text must then draw the same."""
        return False

    def memory(self) -> dict[str, Tensor]:
        """What a run that goes on needs besides the parameters and the optimizer: ranks, running means."""
        return {}

    def remember(self, memory: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Set what `memory` gave."""

    # Between the base and what was trained

    @abstractmethod
    def set_strength(self, strength: float) -> None:
        """Go the share [0, 1] of the way from the base, which 0 is to the bit, to what was trained.

        Raises InvalidInput where there is no way between.
        """

    # At rest

    def tensors(self) -> dict[str, Tensor]:
        """Copies of what was learnt, at full strength, float32 on the CPU, by the names of `parameters`."""
        return {name: parameter.detach().float().cpu().clone() for name, parameter in self.parameters().items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set what `tensors` gave. Raises InvalidInput for those of another adapter."""
        parameters = self.parameters()
        if set(parameters) != set(tensors) or any(p.shape != tensors[name].shape for name, p in parameters.items()):
            raise InvalidInput("These tensors belong to another adapter: their names or shapes differ.")
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])

    @abstractmethod
    def fold(self) -> dict[str, Tensor] | None:
        """The model's own parameters that change, biases included, with what was learnt added at the present strength.

        By name; float32 where the model is. None where what was learnt is no change of them: then the adapter is
        shipped beside the base and attached when the model is opened.
        """

    @property
    @abstractmethod
    def changed(self) -> frozenset[str] | None:
        """The names that `fold` gives, known before; None where it gives None."""

    @abstractmethod
    def detach(self) -> None:
        """Leave the model as it was found."""

    # What others may use

    def pairs(self) -> Mapping[str, Pair]:
        """Layers with a low-rank pair that the re-weighting of the vector can share, by name."""
        return {}

    @abstractmethod
    def change(self) -> float:
        """How far the parameters are from where they began, at full strength: a Frobenius norm; 0 = nothing learnt."""

    @classmethod
    def peft_config(cls, options: Options, tensors: Mapping[str, Tensor], strength: float) -> PeftConfig | None:
        """The configuration under which PEFT reads these tensors, at a strength; None where PEFT does not know them."""
        return None


def method_named(name: str) -> type[Method]:
    """Raises InvalidConfiguration for one that is not in the table."""
    if name not in METHODS:
        raise InvalidConfiguration(f"adapter.method = {name!r}: it is one of {', '.join(METHODS)}, or none.")
    module, _, made = METHODS[name].partition(":")
    found: type[Method] = getattr(import_module(module), made)
    return found


def takes_large_steps(config: AdapterConfig) -> bool:
    """Whether labels are learnt in larger steps: on the query side alone, where passages do not come to meet them."""
    return config.adapt == "query" and config.method in _LARGE_STEPS


@dataclass(frozen=True, slots=True)
class Description:
    """A method for people. options: its own settings and their defaults, JSON values."""

    name: str
    what: str
    options: Mapping[str, JsonValue]
    folds: bool
    reweights: bool
    cuda: bool
    source: str


def descriptions() -> list[Description]:
    """Of every method, in the order of the table."""
    found = []
    for name in METHODS:
        method = method_named(name)
        defaults = method.OPTIONS()
        options = {**defaults.as_dict(), **defaults.deciding()}
        if method.PAIRS:
            options |= {setting: AdapterConfig.model_fields[setting].default for setting in _OF_PAIRS}
        what = (method.__doc__ or "").strip().partition("\n\n")[0]
        found.append(
            Description(name, " ".join(what.split()), options, method.FOLDS, method.PAIRS, method.CUDA, method.SOURCE)
        )
    return found


def methods_with_pairs() -> list[str]:
    """Those by which the vector can be re-weighted."""
    return [name for name in METHODS if method_named(name).PAIRS]


def options_of(config: AdapterConfig) -> Options:
    """What the method is told. Raises InvalidConfiguration for what was set and the method cannot use."""
    method = method_named(config.method)
    known = method.OPTIONS.names() + (_OF_PAIRS if method.PAIRS else ())
    for name in _SETTINGS:
        value = getattr(config, name)
        if name in config.model_fields_set and name not in known and value not in _WITHOUT:
            others = f"It has: {', '.join(known)}." if known else "It has no settings of its own."
            if name in _OF_PAIRS:
                others = f"What re-weights is a low-rank pair, which these have: {', '.join(methods_with_pairs())}."
            raise InvalidConfiguration(
                f"adapter.{name} = {value!r}, but method {config.method!r} has no {name}. {others} Leave it out."
            )
    given = {name: value for name in method.OPTIONS.names() if (value := getattr(config, name)) is not None}
    if given.get("rank") == 0 and "rank" not in method.OPTIONS.may_be_zero():
        raise InvalidConfiguration(
            f"adapter.rank = 0: method {config.method!r} is nothing without it. Choose 1 or more."
        )
    return method.OPTIONS(**given)


def settings_for(name: str, config: AdapterConfig) -> AdapterConfig:
    """The same settings with another method: what it has not is left out. Raises InvalidConfiguration."""
    method = method_named(name)
    known = {*method.OPTIONS.names(), *(_OF_PAIRS if method.PAIRS else ()), "adapt", "layers"}
    kept = {key: getattr(config, key) for key in config.model_fields_set & known}
    return AdapterConfig(**kept).model_copy(update={"method": name})


def attach_method(model: nn.Module, config: AdapterConfig, *, seed: int, weights: Weights) -> tuple[Method, Scope]:
    """A fresh adapter on a transformer, in place, and the layers that it trains. Raises InvalidConfiguration."""
    scope = Scope.of(model, config.layers)
    return method_named(config.method)(model, options_of(config), scope, seed=seed, weights=weights), scope


class TransformerConfig(Protocol):
    """What is read of a transformer's configuration; transformers' own class does not name it."""

    model_type: str
    hidden_size: int
    num_attention_heads: int


def config_of(model: nn.Module) -> TransformerConfig:
    """A transformer's configuration."""
    config: TransformerConfig = vars(model)["config"]  # torch types the attributes of a module as tensors and modules
    return config


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where the one of this name is."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def check_strength(strength: float) -> None:
    """Raises InvalidInput."""
    if not 0 <= strength <= 1:
        raise InvalidInput(f"scale = {strength}: it lies between 0 (the base) and 1 (as trained).")


def norm(tensors: Sequence[Tensor]) -> float:
    """Frobenius norm of all of them together."""
    return float(torch.sqrt(sum((tensor.double().square().sum() for tensor in tensors), torch.tensor(0.0))))
