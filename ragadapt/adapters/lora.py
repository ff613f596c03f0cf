"""LoRA on the top layers: which linear layers, at what cost, and back into plain weights."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from ragadapt.config import AdapterConfig
from ragadapt.encoder.prefix import layer_list
from ragadapt.errors import InvalidConfiguration

ADAPTER = "default"
_ATTENTION_OUTPUT = r"attention\.output\.dense|attention\.out_lin|attn\.o|attn\.Wo|self_attn\.o_proj|\w*\.out_proj"


class LowRankLinear(PeftLinear):
    """y = W x + s B A x in the precision of x, while A and B stay float32.

    PEFT's own layer turns x into float32 and the product back, which copies every activation twice; here only
    the two small matrices are converted. Gradients reach the float32 ones.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged or self.lora_variant.get(ADAPTER) is not None:
            plain: Tensor = super().forward(x, *args, **kwargs)
            return plain
        out: Tensor = self.base_layer(x, *args, **kwargs)
        scaling = self.scaling[ADAPTER]
        if scaling == 0:
            return out
        pair_a: Any = self.lora_A[ADAPTER].weight
        pair_b: Any = self.lora_B[ADAPTER].weight
        a: Tensor = pair_a.to(x.dtype)  # (r, in)
        b: Tensor = (pair_b * scaling).to(x.dtype)  # (out, r)
        low = nn.functional.linear(self.lora_dropout[ADAPTER](x), a)  # (…, in) -> (…, r)
        return torch.addmm(out.flatten(0, -2), low.flatten(0, -2), b.T).view_as(out)


def top_layers(model: nn.Module, wanted: int | None) -> tuple[str, list[int]]:
    """(name of the layer list, indices of the layers that are trained, lowest first).

    wanted: None = all. Raises InvalidConfiguration.
    """
    found = layer_list(model)
    if found is None:
        raise InvalidConfiguration(
            f"{type(model).__name__} is of a build whose layers ragadapt does not know, so it cannot be adapted. "
            "Choose another base model, or --method none."
        )
    name, layers = found
    count = wanted if wanted is not None else len(layers)
    if count > len(layers):
        raise InvalidConfiguration(f"layers = {count}: this model has {len(layers)} layers. Choose 1 to {len(layers)}.")
    return name, list(range(len(layers) - count, len(layers)))


def target_names(model: nn.Module, config: AdapterConfig) -> list[str]:
    """Full names of the linear layers that get a low-rank pair.

    config.targets holds endings of names ("query", "output.dense"); empty = every linear layer of the layers
    that are trained. Raises InvalidConfiguration where nothing fits.
    """
    stack, indices = top_layers(model, config.layers)
    prefixes = tuple(f"{stack}.{index}." for index in indices)
    linear = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.startswith(prefixes)
    ]
    if not config.targets:
        return linear
    chosen = [name for name in linear if any(name == end or name.endswith(f".{end}") for end in config.targets)]
    if not chosen:
        offered = sorted({".".join(name.split(".")[-2:]) for name in linear})
        raise InvalidConfiguration(
            f"targets = {list(config.targets)}: no linear layer is called so. This model has: {', '.join(offered)}."
        )
    return chosen


def peft_config(targets: Iterable[str], config: AdapterConfig) -> LoraConfig:
    """The PEFT configuration; alpha defaults to twice the rank."""
    alpha: Any = config.alpha if config.alpha is not None else 2 * config.rank  # PEFT takes fractions, too
    return LoraConfig(
        r=config.rank,
        lora_alpha=alpha,
        lora_dropout=config.dropout,
        target_modules=sorted(targets),
        bias="none",
    )


def inject(model: nn.Module, settings: LoraConfig, seed: int) -> dict[str, nn.Module]:
    """Put low-rank pairs into the model; A is drawn from the seed, B is zero. Returns the layers by name."""
    settings._register_custom_module({nn.Linear: LowRankLinear})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model, ADAPTER)
        layers: dict[str, nn.Module] = {
            name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)
        }
        for _, layer in sorted(layers.items()):
            pair: Any = layer
            pair.lora_A.float()
            pair.lora_B.float()
            # Drawn on the CPU in order of name, so that one seed means one start on every device and precision.
            start = torch.empty(pair.lora_A[ADAPTER].weight.shape)
            nn.init.kaiming_uniform_(start, a=5**0.5)
            pair.lora_A[ADAPTER].weight.data.copy_(start)
    return layers


def tied_layer(layers: dict[str, nn.Module], width: int) -> str:
    """Name of the adapted layer that the re-weighting shares its pair with: the attention output of the last
    layer; where that is not square, another square one of the last layer. Raises InvalidConfiguration."""

    def shape(name: str) -> tuple[int, int]:
        layer: Any = layers[name]
        return layer.out_features, layer.in_features

    def depth(name: str) -> int:
        numbers = re.findall(r"\.(\d+)\.", name)
        return int(numbers[0]) if numbers else -1

    deepest = max((depth(name) for name in layers), default=-1)
    square = [name for name in sorted(layers) if depth(name) == deepest and shape(name) == (width, width)]
    preferred = [name for name in square if re.search(rf"({_ATTENTION_OUTPUT})$", name)]
    if not square:
        raise InvalidConfiguration(
            f"The re-weighting shares the pair of a {width}x{width} layer, and none is adapted. "
            "Leave targets empty, or choose reweight = 'none'."
        )
    return (preferred or square)[0]
