"""LoRA, and what else PEFT has: a row here for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from ragadapt.adapters.method import Method, Options, Pair, Scope, Weights, check_strength, norm, replace_module
from ragadapt.errors import InvalidConfiguration

ADAPTER = "default"


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

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged or self.lora_variant.get(ADAPTER) is not None:
            plain: Tensor = super().forward(x, *args, **kwargs)
            return plain
        out: Tensor = self.base_layer(x, *args, **kwargs)
        factor = self.factor
        if factor == 0:
            return out
        a = self.a.to(x.dtype)  # (r, in)
        b = (self.b * factor).to(x.dtype)  # (out, r)
        low = nn.functional.linear(self.lora_dropout[ADAPTER](x), a)  # (…, in) -> (…, r)
        return torch.addmm(out.flatten(0, -2), low.flatten(0, -2), b.T).view_as(out)


@dataclass(frozen=True, slots=True)
class LowRankOptions(Options):
    """rank: of the pairs. alpha: None = twice the rank. targets: endings of names of linear layers; empty = all."""

    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def deciding(self) -> dict[str, Any]:
        return {"rank": self.rank, "alpha": self.scale}

    @property
    def scale(self) -> float:
        """alpha; twice the rank where it was left open."""
        return float(self.alpha) if self.alpha is not None else 2.0 * self.rank


class LoRA(Method):
    """W + s B A in the linear layers of the top layers (Hu et al. 2021); A is drawn from the seed, B is zero."""

    OPTIONS = LowRankOptions
    PAIRS = True

    def __init__(self, model: nn.Module, options: Options, scope: Scope, *, seed: int, weights: Weights) -> None:
        assert isinstance(options, LowRankOptions)
        self.model, self.options, self.scope = model, options, scope
        settings = lora_config(options, target_names(model, scope, options.targets))
        settings._register_custom_module({nn.Linear: LowRankLinear})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(settings, model, ADAPTER)
            found = ((name, module) for name, module in model.named_modules() if isinstance(module, LowRankLinear))
            self.layers: dict[str, LowRankLinear] = dict(sorted(found))
            for layer in self.layers.values():
                layer.lora_A.float()
                layer.lora_B.float()
                # Drawn on the CPU in order of name, so that one seed means one start on every device and precision.
                start = torch.empty(layer.a.shape)
                nn.init.kaiming_uniform_(start, a=5**0.5)
                layer.a.data.copy_(start)
        for parameter in self.parameters().values():
            parameter.requires_grad_(True)

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
            layer.set_scale(ADAPTER, strength)

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

    def pairs(self) -> Mapping[str, Pair]:
        return self.layers

    def change(self) -> float:
        """Of all B together."""
        return norm([layer.b.detach() for layer in self.layers.values()])

    @classmethod
    def peft_config(cls, options: Options, tensors: Mapping[str, Tensor], strength: float) -> LoraConfig:
        assert isinstance(options, LowRankOptions)
        scaled = replace(options, alpha=options.scale * strength)
        return lora_config(scaled, {name.rpartition(".lora_")[0] for name in tensors})


def lora_config(options: LowRankOptions, targets: Iterable[str]) -> LoraConfig:
    """PEFT's configuration of pairs in these layers, named in full."""
    alpha = options.alpha if options.alpha is not None else 2 * options.rank
    return LoraConfig(
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
