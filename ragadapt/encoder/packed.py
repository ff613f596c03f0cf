"""Long runs of the BERT line on a CPU in bfloat16: weights in oneDNN's own layout, activations within products.

PyTorch's linear layer lays its bias out over the result before it multiplies, and the activation reads and writes that
result once more. oneDNN does both while the product is in registers, and reads weights quicker in a layout of its own.
Copies in that layout live for one run and no longer: they are made in milliseconds; nothing goes stale when weights
change, and whoever answers single questions does not hold them.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from ragadapt.encoder.architectures import BERT_PARTS, Bert
from ragadapt.encoder.layout import Layout
from ragadapt.errors import reason_of

log = logging.getLogger(__name__)

_ACTIVATIONS = {"gelu": ("gelu", "none"), "relu": ("relu", ""), "silu": ("swish", "")}
"""Its name → oneDNN's in PyTorch's operators, and which form of it."""


class _Product:
    """activation(W x + b)."""

    def __init__(self, weight: Tensor, bias: Tensor, activation: tuple[str, str] = ("none", "")) -> None:
        operators: Any = torch.ops.mkldnn
        self._weight = operators._reorder_linear_weight(weight.contiguous(), None)
        self._bias = bias
        self._activation = activation
        self._multiply = operators._linear_pointwise

    def __call__(self, x: Tensor) -> Tensor:
        name, form = self._activation
        made: Tensor = self._multiply(x, self._weight, self._bias, name, [], form)
        return made


class _Layer:
    def __init__(self, layer: Any, activation: tuple[str, str]) -> None:
        attention = layer.attention.self
        parts = (attention.query, attention.key, attention.value)
        self.heads: int = attention.heads
        self.qkv = _Product(torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts]))
        self.after, self.norm = _product(layer.attention.output.dense), layer.attention.output.LayerNorm
        self.between = _product(layer.intermediate.dense, activation)
        self.out, self.out_norm = _product(layer.output.dense), layer.output.LayerNorm

    def __call__(self, hidden: Tensor, layout: Layout) -> Tensor:
        q, k, v = self.qkv(hidden).view(*hidden.shape[:2], 3, self.heads, -1).unbind(2)  # (B, T, H, d) each
        hidden = self.norm(self.after(layout.attend(q, k, v)).add_(hidden))
        made: Tensor = self.out_norm(self.out(self.between(hidden)).add_(hidden))
        return made


def _product(linear: Any, activation: tuple[str, str] = ("none", "")) -> _Product:
    return _Product(linear.weight, linear.bias, activation)


class PackedBert:
    """(B, T) ids and mask → (B, T, h) hidden states, without gradients, by the weights as they are when it is made."""

    def __init__(self, model: Bert) -> None:
        self._model = model
        activation = _ACTIVATIONS[model.config.hidden_act]
        self._layers = [_Layer(layer, activation) for layer in model.stack()]

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self._model.embed(ids, None)
        layout = Layout(mask, hidden, self._model.head_width)
        for layer in self._layers:
            hidden = layer(hidden, layout)
        return hidden


@torch.no_grad()
def packed(model: nn.Module) -> PackedBert | None:
    """The model for a long run; None where it is of another kind, device or precision, where something watches or
    changes its layers, or where this build of PyTorch has no oneDNN."""
    if type(model) is not Bert or model.config.hidden_act not in _ACTIVATIONS:
        return None
    layers = list(model.encoder.modules())
    if any(module._forward_hooks or module._forward_pre_hooks for module in layers):
        return None
    if not {type(module) for module in layers} <= BERT_PARTS:  # an adapter that is not folded in
        return None
    weights = list(model.encoder.parameters())
    if {(weight.dtype, weight.device.type) for weight in weights} != {(torch.bfloat16, "cpu")}:
        return None
    try:
        return PackedBert(model)
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        log.info("weights are not packed: %s", reason_of(error))
        return None
