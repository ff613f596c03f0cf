"""Pooling by token weights that a LoRA pair gives (the reading `tokens` of the re-weighting), in plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def weighted_mean(
    hidden: Tensor, mask: Tensor, inputs: Tensor, pair: tuple[Tensor, Tensor], sharpness: float
) -> Tensor:
    """Sum_i softmax_i(sharpness * ||B A x_i||^2) h_i over the tokens that mask keeps.

    hidden: (B, T, h); mask: (B, T); inputs x: (B, T, h), or (tokens, h) where those that mask keeps are packed; pair:
    A (r, h), B (h, r). Returns (B, h) float32.
    """
    a, b = pair
    if inputs.dim() == 2:
        empty = inputs.new_zeros(*mask.shape, inputs.shape[-1])
        inputs = empty.masked_scatter(mask.bool().unsqueeze(-1), inputs)
    projected = inputs.float() @ a.float().T  # (B, T, h) x (h, r) -> (B, T, r)
    gram = b.float().T @ b.float()  # (r, r)
    strength = ((projected @ gram) * projected).sum(-1)  # (B, T)
    logits = (sharpness * strength).masked_fill(mask == 0, float("-inf"))
    weights = logits.softmax(dim=-1)  # (B, T)
    return (weights.unsqueeze(1) @ hidden.float()).squeeze(1)


class TokenWeights(nn.Module):
    """Watches what the layer `tied_layer` receives, and pools by it. A holds the LoRA scaling."""

    def __init__(self, tied_layer: str, rank: int, width: int) -> None:
        super().__init__()
        self.tied_layer = tied_layer
        self.sharpness = 1.0
        self.lora_a = nn.Parameter(torch.zeros(rank, width))
        self.lora_b = nn.Parameter(torch.zeros(width, rank))
        self._seen: list[Tensor] = []

    def bind(self, transformer: nn.Module) -> None:
        """Watch the tied layer of this transformer."""

        def remember(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._seen[:] = [inputs[0]]

        transformer.get_submodule(self.tied_layer).register_forward_pre_hook(remember)

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        if not self._seen:
            raise RuntimeError(f"nothing was seen at layer {self.tied_layer!r}: call bind(transformer) first")
        hidden, mask = features["token_embeddings"], features["attention_mask"]
        pair = (self.lora_a, self.lora_b)
        features["sentence_embedding"] = weighted_mean(hidden, mask, self._seen.pop(), pair, self.sharpness)
        return features
