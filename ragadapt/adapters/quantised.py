"""LoRA and numbers of four bits: a start that makes up for their error, and a frozen base that is held in them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from ragadapt.adapters.method import Options, Weights
from ragadapt.adapters.peft import ADAPTER, LoRA, LowRankLinear, PiSSA, PissaLinear, linear_below, padded
from ragadapt.errors import InvalidConfiguration, MissingExtra

_BLOCK = 64  # numbers that share one scale, as in bitsandbytes
_ITERATIONS = 5  # of LoftQ, as in the paper


@cache
def normal_float() -> Tensor:
    """(16,) The values of NF4, ascending from −1 to 1: quantiles of the normal distribution (Dettmers et al. 2023)."""
    offset = 0.9677083
    above = torch.special.ndtri(torch.linspace(offset, 0.5, 9)[:-1])
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, 8)[:-1])
    values = torch.cat([above, torch.zeros(1), below]).sort().values
    return values / values.max()


def through_four_bits(weight: Tensor) -> Tensor:
    """The matrix after NF4 and back, float32: blocks of 64 in order of rows, each scaled by its largest."""
    flat = weight.detach().float().flatten()
    blocks = nn.functional.pad(flat, (0, -len(flat) % _BLOCK)).view(-1, _BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    values = normal_float().to(weight.device)
    between = (values[1:] + values[:-1]) / 2
    nearest = torch.bucketize(blocks / scale.clamp_min(torch.finfo(torch.float32).tiny), between)
    return (values[nearest] * scale).flatten()[: len(flat)].view(weight.shape)


class LoftQ(PiSSA):
    """LoRA that begins at what W loses in numbers of four bits; the base stays in its own, as search needs it."""

    SOURCE = "Li et al. 2023, arXiv 2310.08659"

    def start(self, layer: PissaLinear, weight: Tensor) -> tuple[Tensor, Tensor]:
        rank = min(layer.r[ADAPTER], *weight.shape)
        left = weight
        for _ in range(_ITERATIONS):
            u, sizes, v = torch.linalg.svd(weight - through_four_bits(left), full_matrices=False)
            b, a = u[:, :rank] * sizes[:rank].sqrt(), sizes[:rank].sqrt()[:, None] * v[:rank]
            left = weight - b @ a
        root = float(layer.scaling[ADAPTER]) ** 0.5
        return padded(a / root, b / root, layer.r[ADAPTER])


class QuantisedLinear(LowRankLinear):
    """y = Q x + s B A x with Q the base in four bits; part of the way, a mean with W x."""

    strength = 1.0
    held: nn.Module

    @property
    def factor(self) -> float:
        return float(self.scaling[ADAPTER]) * self.strength

    def set_strength(self, strength: float) -> None:
        self.strength = strength

    def hold(self, whole: Tensor) -> None:
        """Make Q of W in float32: by bitsandbytes on a GPU; elsewhere, where it is only folded, as the same numbers."""
        base = linear_below(self)
        weight = base.weight
        if weight.device.type == "cuda":
            import bitsandbytes  # type: ignore[import-not-found,unused-ignore]

            held = bitsandbytes.nn.Linear4bit(
                base.in_features, base.out_features, bias=base.bias is not None, compute_dtype=weight.dtype,
                quant_type="nf4", compress_statistics=False,
            )  # fmt: skip
            held.weight = bitsandbytes.nn.Params4bit(
                whole.detach().float().cpu(),
                requires_grad=False,
                quant_type="nf4",
                compress_statistics=False,
                blocksize=_BLOCK,
            )
            held = held.to(weight.device)
        else:
            held = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
            held.weight = nn.Parameter(through_four_bits(whole).to(weight), requires_grad=False)
        held.bias = base.bias
        self.held = held.requires_grad_(False)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self.strength == 0:
            base: Tensor = self.base_layer(x)
            return base
        whole = self.added(self.held(x), x, float(self.scaling[ADAPTER]))
        return whole if self.strength == 1 else torch.lerp(self.base_layer(x), whole, self.strength)

    def get_delta_weight(self, adapter: str) -> Tensor:
        weight = self.base_layer.get_parameter("weight")
        lost = through_four_bits(weight) - weight.float()
        return self.strength * lost + super().get_delta_weight(adapter)


class QLoRA(LoRA):
    """LoRA on a base that is held in numbers of four bits while it trains; for large models on a small GPU."""

    LINEAR = False
    SOURCE = "Dettmers et al. 2023, arXiv 2305.14314"
    LAYER = QuantisedLinear
    CUDA = True
    layers: dict[str, QuantisedLinear]  # type: ignore[assignment]

    @classmethod
    def check_device(cls, device: str) -> None:
        if device != "cuda":
            raise InvalidConfiguration(
                f"Method 'qlora' holds the base in four bits on a CUDA device; this is {device}. Choose 'lora', which "
                "needs no more memory here, or 'loftq', which begins at what four bits lose."
            )
        if find_spec("bitsandbytes") is None:
            raise MissingExtra("Method 'qlora'", "qlora", "Or choose method 'lora' or 'loftq', which do without.")

    @torch.no_grad()
    def begin(self, weights: Weights) -> None:
        whole = weights()
        for name, layer in self.layers.items():
            layer.hold(whole[f"{name}.weight"])

    @classmethod
    def peft_config(cls, options: Options, tensors: Mapping[str, Tensor], strength: float) -> None:
        return None  # on a base of other numbers the pair would be another adapter
