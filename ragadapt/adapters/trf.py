"""Task-relevant features, LoRATRF (arXiv 2412.09827): LoRA, and a filter that adds what is close to a learnt task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ragadapt.adapters.inserted import Inserted, Inserting, drawn
from ragadapt.adapters.method import Options, Pair, Scope, Weights, norm
from ragadapt.adapters.peft import LoRA, LowRankOptions, target_names
from ragadapt.values import JsonValue


class TaskFilter(Inserted):
    """out + s D C (clamp(cos(x, t), 0, 1) x) for every token x; t is drawn from N(0, 1), D is zero at the start."""

    def __init__(self, width: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.task = nn.Parameter(torch.randn(width, generator=generator))
        self.down = drawn(rank, width, generator)
        self.up = nn.Parameter(torch.zeros(width, rank))

    def changed(self, x: Tensor, out: Tensor) -> Tensor:
        lengths = torch.linalg.vector_norm(
            x, dim=-1, keepdim=True, dtype=x.dtype if x.dtype.itemsize > 4 else torch.float32
        )
        unit = self.task / torch.linalg.vector_norm(self.task)
        along = nn.functional.linear(x, unit.to(x.dtype)[None])  # (…, 1)
        share = (along / lengths.clamp_min(1e-8)).clamp(0, 1).to(x.dtype)
        low = nn.functional.linear(x, self.down.to(x.dtype)) * share  # (…, h) -> (…, r)
        up = (self.up * self.strength).to(out.dtype)
        return torch.addmm(out.flatten(0, -2), low.flatten(0, -2), up.T).view_as(out)

    def closing(self) -> Sequence[Tensor]:
        return [self.up]


@dataclass(frozen=True, slots=True)
class TrfOptions(LowRankOptions):
    """filter_rank: of D C. The others are those of the LoRA beside it; rank 0 = the filters alone."""

    filter_rank: int = 8

    def deciding(self) -> dict[str, JsonValue]:
        return {"rank": self.rank, "alpha": self.scale, "filter_rank": self.filter_rank}

    @classmethod
    def may_be_zero(cls) -> tuple[str, ...]:
        return ("rank",)


class Trf(Inserting):
    """LoRA, and a filter for task-relevant features on the output of every layer."""

    OPTIONS = TrfOptions
    SOURCE = "LoRATRF, arXiv 2412.09827"
    PAIRS = True

    def __init__(self, model: nn.Module, options: Options, scope: Scope, *, seed: int, weights: Weights) -> None:
        assert isinstance(options, TrfOptions)
        super().__init__(model, options, scope, seed=seed, weights=weights)
        self.lora: LoRA | None = None
        if options.rank:
            pairs = LowRankOptions(options.rank, options.alpha, options.dropout, options.targets)
            self.lora = LoRA(model, pairs, scope, seed=seed, weights=weights)
        for part in self.parts.values():
            part.requires_grad_(True)  # PEFT freezes whatever is not its own

    def place(self) -> None:
        assert isinstance(self.options, TrfOptions)
        for host in self.hosts():
            module = self.model.get_submodule(host)
            width = module.out_features if isinstance(module, nn.Linear) else self.width
            self.after(
                host, self.put(host, "filter", TaskFilter(width, self.options.filter_rank, self.generator)).on_result
            )

    def hosts(self) -> Sequence[str]:
        return self.layers

    def parameters(self) -> dict[str, nn.Parameter]:
        own = super().parameters()
        return own if self.lora is None else dict(sorted({**own, **self.lora.parameters()}.items()))

    def training(self, on: bool) -> None:
        if self.lora is not None:
            self.lora.training(on)

    @property
    def stochastic(self) -> bool:
        return self.lora is not None and self.lora.stochastic

    def set_strength(self, strength: float) -> None:
        super().set_strength(strength)
        if self.lora is not None:
            self.lora.set_strength(strength)

    def detach(self) -> None:
        if self.lora is not None:
            self.lora.detach()
            self.model.__dict__.pop("peft_config", None)  # PEFT warns where it finds one and adds a second time
        super().detach()

    def pairs(self) -> Mapping[str, Pair]:
        return {} if self.lora is None else self.lora.pairs()

    def change(self) -> float:
        """Of all D and B together."""
        return norm([torch.tensor(super().change()), torch.tensor(0.0 if self.lora is None else self.lora.change())])


class TrfLinear(Trf):
    """LoRA, and a filter for task-relevant features on the output of every linear layer that LoRA changes.

    It filters W x, before LoRA's own is added.
    """

    def hosts(self) -> Sequence[str]:
        assert isinstance(self.options, TrfOptions)
        return sorted(target_names(self.model, self.scope, self.options.targets))
