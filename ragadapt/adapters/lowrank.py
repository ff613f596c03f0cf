"""Relatives of LoRA that PEFT does not have."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ragadapt.adapters.linear import Adapted, OnLinear
from ragadapt.adapters.method import Options, Pair, Scope, Weights
from ragadapt.adapters.peft import ADAPTER, LoRA, LowRankLinear, LowRankOptions, target_names
from ragadapt.errors import InvalidConfiguration
from ragadapt.values import JsonValue


class Added(Adapted):
    """A linear layer and something that is added to what it gives: y = W x + b + Δ(x), Δ linear."""

    def __init__(self, base: nn.Linear, dropout: float) -> None:
        super().__init__()
        self.base_layer = base
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    @property
    def base(self) -> nn.Linear:
        return self.base_layer

    @abstractmethod
    def delta(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out), in the precision of x."""

    def whole(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out + self.delta(self.dropout(x))

    def whole_weights(self) -> tuple[Tensor, Tensor | None]:
        weight = self.base.weight
        units = torch.eye(self.in_features, device=weight.device)
        return weight + self.delta(units).T.to(weight.dtype), self.base.bias

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from sorted(self.named_parameters(recurse=False))


A = TypeVar("A", bound=Added)


class Adding(OnLinear[A]):
    """A method whose layers are `Added` ones."""

    def __init__(self, model: nn.Module, options: Options, scope: Scope, *, seed: int, weights: Weights) -> None:
        assert isinstance(options, SquareOptions | LowRankOptions)
        self.model, self.options, self.scope, self.seed = model, options, scope, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # layers draw on the CPU in order of name: one seed, one start
            layers: dict[str, A] = {}
            for name in sorted(target_names(model, scope, self.options.targets)):
                base = model.get_submodule(name)
                assert isinstance(base, nn.Linear)
                layers[name] = self.make(base, name).to(base.weight.device)
        self.place(layers)

    @abstractmethod
    def make(self, base: nn.Linear, name: str) -> A:
        """What stands in the place of a layer."""

    def training(self, on: bool) -> None:
        for layer in self.layers.values():
            layer.dropout.train(on)

    @property
    def stochastic(self) -> bool:
        return self.options.dropout > 0


def in_pieces(x: Tensor, size: int) -> Tensor:
    """(…, in) → (…, in / size, size)."""
    return x.reshape(*x.shape[:-1], -1, size)


def drawn(*shape: int) -> Tensor:
    """As the rows of LoRA's A: uniform, by the number of inputs."""
    start = torch.empty(shape)
    nn.init.kaiming_uniform_(start.view(-1, shape[-1]), a=math.sqrt(5))
    return start


# MoRA


@dataclass(frozen=True, slots=True)
class SquareOptions(Options):
    """rank: of a LoRA with as many parameters. targets: as of LoRA."""

    rank: int = 16
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def deciding(self) -> dict[str, JsonValue]:
        return {"rank": self.rank}


class MoraLinear(Added):
    """Δ(x) = M R_g x_g for every piece x_g of the input: M square, R_g a rotation by the piece's place.

    What comes out, piece after piece, is repeated or cut to the number of outputs. After the authors' code (type 6).
    """

    def __init__(self, base: nn.Linear, size: int, dropout: float) -> None:
        super().__init__(base, dropout)
        self.size = size
        self.mora_M = nn.Parameter(torch.zeros(size, size))
        pieces = math.ceil(base.in_features / size)
        speeds = 10_000.0 ** (-torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(pieces), speeds).repeat(1, 2)  # (g, r̂)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def delta(self, x: Tensor) -> Tensor:
        cos, sin = self.get_buffer("cos").to(x.dtype), self.get_buffer("sin").to(x.dtype)
        missing = -x.shape[-1] % self.size
        pieces = in_pieces(torch.cat([x, x[..., :missing]], dim=-1), self.size)  # (…, g, r̂)
        first, second = pieces.chunk(2, dim=-1)
        turned = pieces * cos + torch.cat([-second, first], dim=-1) * sin
        out = nn.functional.linear(turned, self.mora_M.to(x.dtype)).flatten(-2)
        times = math.ceil(self.out_features / out.shape[-1])
        return torch.cat([out] * times, dim=-1)[..., : self.out_features]


class MoRA(Adding[MoraLinear]):
    """One square matrix in the place of a pair, of as many parameters and of a far higher rank."""

    OPTIONS = SquareOptions
    SOURCE = "Jiang et al. 2024, arXiv 2405.12130"

    def make(self, base: nn.Linear, name: str) -> MoraLinear:
        return MoraLinear(base, square_size(base, self.options.rank), self.options.dropout)


def square_size(base: nn.Linear, rank: int) -> int:
    """r̂ ≈ √((in + out) · rank), even, and not larger than the layer."""
    size = int(math.sqrt((base.in_features + base.out_features) * rank) + 0.5)
    return max(2, min(size, base.in_features, base.out_features) // 2 * 2)


# MELoRA


@dataclass(frozen=True, slots=True)
class SliceOptions(LowRankOptions):
    """As of LoRA, for each slice; parts: slices of inputs and outputs, each with a pair of its own."""

    parts: int = 4

    def deciding(self) -> dict[str, JsonValue]:
        return {"rank": self.rank, "alpha": self.scale, "parts": self.parts}


class MeloraLinear(Added):
    """Δ(x) = s B A x with A and B block-diagonal: slice by slice, a pair for each."""

    def __init__(self, base: nn.Linear, options: SliceOptions) -> None:
        super().__init__(base, options.dropout)
        parts, rank = options.parts, options.rank
        self.scale = options.scale / rank
        self.lora_A = nn.Parameter(drawn(parts, rank, base.in_features // parts))
        self.lora_B = nn.Parameter(torch.zeros(parts, base.out_features // parts, rank))

    def delta(self, x: Tensor) -> Tensor:
        slices = in_pieces(x, self.in_features // len(self.lora_A))  # (…, n, in / n)
        low = torch.einsum("...ni,nri->...nr", slices, self.lora_A.to(x.dtype))
        return torch.einsum("...nr,nor->...no", low, (self.lora_B * self.scale).to(x.dtype)).flatten(-2)

    @property
    def a(self) -> Tensor:
        """(n r, in)."""
        return blocks(self.lora_A)

    @property
    def b(self) -> Tensor:
        """(out, n r)."""
        return blocks(self.lora_B)

    @property
    def factor(self) -> float:
        return self.scale * self.strength


def blocks(parts: Tensor) -> Tensor:
    """(n, p, q) → (n p, n q) block-diagonal."""
    n, p, q = parts.shape
    places = torch.eye(n, device=parts.device)
    return torch.einsum("npq,nm->npmq", parts, places).reshape(n * p, n * q)


class MELoRA(Adding[MeloraLinear]):
    """Several small LoRAs side by side, each on a slice of inputs and outputs: n times the rank for the same count."""

    OPTIONS = SliceOptions
    PAIRS = True
    LINEAR = True
    SIZES = ("rank",)
    SOURCE = "Ren et al. 2024, arXiv 2402.17263"

    def make(self, base: nn.Linear, name: str) -> MeloraLinear:
        assert isinstance(self.options, SliceOptions)
        parts = self.options.parts
        if base.in_features % parts or base.out_features % parts:
            raise InvalidConfiguration(
                f"adapter.parts = {parts}: layer {name} has {base.in_features} inputs and {base.out_features} outputs, "
                f"which do not fall into {parts} equal slices. Choose a divisor of both."
            )
        return MeloraLinear(base, self.options)

    def pairs(self) -> Mapping[str, Pair]:
        return self.layers


# MTL-LoRA


@dataclass(frozen=True, slots=True)
class TaskOptions(LowRankOptions):
    """As of LoRA; parts: matrices B, which every task mixes in its own way."""

    parts: int = 3


class MtlLinear(Added):
    """Δ(x) = s Σ_i softmax(w_t)_i B_i Λ_t A x for task t; unknown: the mean of that over the tasks."""

    def __init__(self, base: nn.Linear, options: TaskOptions) -> None:
        super().__init__(base, options.dropout)
        self.scale = options.scale / options.rank
        self.task: int | None = None
        self.mtl_A = nn.Parameter(drawn(options.rank, base.in_features))
        self.mtl_B = nn.Parameter(torch.zeros(options.parts, base.out_features, options.rank))
        self.set_tasks(1)

    def set_tasks(self, count: int) -> None:
        """Λ_t the identity, w_t drawn: with equal ones all B_i would stay the same."""
        parts, rank = len(self.mtl_B), len(self.mtl_A)
        device = self.mtl_A.device
        self.mtl_lambda = nn.Parameter(torch.eye(rank, device=device).repeat(count, 1, 1))
        self.mtl_w = nn.Parameter(torch.randn(count, parts).to(device))

    @property
    def a(self) -> Tensor:
        """(r, in)."""
        return self.mtl_A

    @property
    def b(self) -> Tensor:
        """(out, r) of the present task: Σ_i softmax(w_t)_i B_i Λ_t."""
        tasks = slice(None) if self.task is None else slice(self.task, self.task + 1)
        mixed = torch.einsum("tn,nor->tor", self.mtl_w[tasks].softmax(dim=-1), self.mtl_B)
        return (mixed @ self.mtl_lambda[tasks]).mean(dim=0)

    @property
    def factor(self) -> float:
        return self.scale * self.strength

    def delta(self, x: Tensor) -> Tensor:
        low = nn.functional.linear(x, self.a.to(x.dtype))
        return nn.functional.linear(low, (self.b * self.scale).to(x.dtype))


class MTLLoRA(Adding[MtlLinear]):
    """LoRA by tasks, the kinds of query: a shared A, and for each task a transformation and a mix of several B."""

    OPTIONS = TaskOptions
    PAIRS = True
    LINEAR = True
    SIZES = ("rank",)
    TASKS = True
    SOURCE = "Yang et al. 2024, arXiv 2410.09437"
    numbers: dict[str, int]

    def make(self, base: nn.Linear, name: str) -> MtlLinear:
        assert isinstance(self.options, TaskOptions)
        return MtlLinear(base, self.options)

    def place(self, layers: dict[str, MtlLinear]) -> None:
        super().place(layers)
        self.numbers = {}

    def learn_tasks(self, tasks: Sequence[str]) -> None:
        self.numbers = {task: number for number, task in enumerate(tasks)}
        self._set_tasks(max(1, len(tasks)))

    def _set_tasks(self, count: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for layer in self.layers.values():
                layer.set_tasks(count)
        self.note_start()

    def tell(self, task: str | None) -> None:
        number = self.numbers.get(task) if task is not None else None
        for layer in self.layers.values():
            layer.task = number

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The tensors say how many tasks there were; what a text is at rest is unknown, so that their names matter no
        more."""
        counts = {len(tensor) for name, tensor in tensors.items() if name.endswith(".mtl_w")}
        if len(counts) == 1 and counts != {len(layer.mtl_w) for layer in self.layers.values()}:
            self._set_tasks(counts.pop())
        super().load(tensors)

    def pairs(self) -> Mapping[str, Pair]:
        return self.layers


# Flat-LoRA


@dataclass(frozen=True, slots=True)
class FlatOptions(LowRankOptions):
    """As of LoRA; noise: ρ, at the end of the training, in units of a row's root mean square."""

    noise: float = 0.05


class FlatLinear(LowRankLinear):
    """LoRA whose frozen W has noise on it while a step's gradient is computed."""

    noisy: Tensor | None = None  # W with its noise

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self.noisy is None:
            return super().forward(x)
        bias: Tensor | None = self.base_layer.get_parameter("bias") if self.base_layer.bias is not None else None
        return self.added(nn.functional.linear(x, self.noisy, bias), x, self.factor)


class FlatLoRA(LoRA):
    """LoRA that looks for a flat minimum of the whole weights: at every step noise lies on W, scaled by its rows."""

    OPTIONS = FlatOptions
    SOURCE = "Li et al. 2024, arXiv 2409.14396"
    LAYER = FlatLinear
    layers: dict[str, FlatLinear]  # type: ignore[assignment]
    step = 0  # that was done last
    total = 0  # 0 = not known yet

    def sigma(self, name: str, step: int) -> Tensor:
        """(out, 1) Standard deviation of the noise: ρ · ½ (1 − cos(π t / T)) · ‖row of W + s B A‖ / √in."""
        assert isinstance(self.options, FlatOptions)
        layer = self.layers[name]
        rows = layer.base_layer.get_parameter("weight").float() + layer.get_delta_weight(ADAPTER)
        share = 0.5 * (1 - math.cos(math.pi * step / self.total)) if self.total else 0.0
        length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        found: Tensor = self.options.noise * share * length / math.sqrt(layer.in_features)
        return found

    @torch.no_grad()
    def training(self, on: bool) -> None:
        """Of a step: the same noise however often it is computed, and in every process."""
        super().training(on)
        for number, (name, layer) in enumerate(self.layers.items()):
            layer.noisy = None
            if on and self.total:
                weight = layer.base_layer.get_parameter("weight")
                generator = torch.Generator(weight.device)
                generator.manual_seed((self.seed * 1_000_003 + self.step) * 4099 + number)
                noise = torch.randn(weight.shape, generator=generator, device=weight.device)
                layer.noisy = (weight + self.sigma(name, self.step + 1) * noise).to(weight.dtype)

    def after_backward(self, step: int, total: int) -> None:
        self.step, self.total = step, total

    def memory(self) -> dict[str, Tensor]:
        return {"step": torch.tensor(self.step), "total": torch.tensor(self.total)}

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        self.step, self.total = int(memory["step"]), int(memory["total"])


# LoRA-SP


class HalfLinear(LowRankLinear):
    """LoRA of whose numbers a random half stay as they began."""

    places: dict[str, Tensor]

    def halve(self) -> None:
        """Choose the half, by the random numbers of the moment."""
        for part, held in (("a", self.lora_A), ("b", self.lora_B)):
            whole = held[ADAPTER].get_parameter("weight").requires_grad_(False)
            chosen = torch.randperm(whole.numel())[: math.ceil(whole.numel() / 2)].sort().values.to(whole.device)
            self.register_buffer(f"places_{part}", chosen, persistent=False)
            self.register_parameter(f"half_{part}", nn.Parameter(whole.detach().flatten()[chosen]))

    def _filled(self, part: str, whole: Tensor) -> Tensor:
        half, places = self.get_parameter(f"half_{part}"), self.get_buffer(f"places_{part}")
        return whole.detach().flatten().scatter(0, places, half).view(whole.shape)

    @property
    def a(self) -> Tensor:
        """(r, in)."""
        return self._filled("a", super().a)

    @property
    def b(self) -> Tensor:
        """(out, r)."""
        return self._filled("b", super().b)


class LoRASP(LoRA):
    """LoRA of whose numbers a random half is trained, and saved; the seed gives the other half again."""

    SEEDED = True
    SOURCE = "Wu et al. 2024, arXiv 2403.08822"
    LAYER = HalfLinear
    layers: dict[str, HalfLinear]  # type: ignore[assignment]

    def begin(self, weights: Weights) -> None:
        for layer in self.layers.values():
            layer.halve()

    def parameters(self) -> dict[str, nn.Parameter]:
        return {
            f"{name}.{part}": layer.get_parameter(part)
            for name, layer in self.layers.items()
            for part in ("half_a", "half_b")
        }

    @classmethod
    def peft_config(cls, options: Options, tensors: Mapping[str, Tensor], strength: float) -> None:
        return None  # half of a pair
