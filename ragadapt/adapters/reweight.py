"""Re-weighting of the sentence vector by a LoRA pair that is trained anyway: no further parameters.

After I-Kai Wang (NCCU 2024), whose text is not public beyond the abstract; these are three readings of it.
`pair` is (A, B) of the tied layer, s its scaling, gamma the strength (0 = none), e the pooled vector:

    vector  e' = e + gamma s B A e
    dims    e' = g * e,  g_j = 1 + gamma (|(BA)_j| / mean_j |(BA)_j| - 1)
    tokens  e' = sum_i w_i h_i,  w = softmax_i(gamma |s B A x_i|^2)

With B = 0 the first two change nothing and the third is mean pooling.
"""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.models import Dense, Pooling
from torch import Tensor, nn

from ragadapt.adapters.lora import ADAPTER
from ragadapt.encoder.modules import TokenWeightedPooling
from ragadapt.encoder.pooling import weighted_mean
from ragadapt.errors import InvalidConfiguration

_EPSILON = 1e-24  # under the root of a squared norm: keeps the gradient finite where B = 0


def dimension_weights(a: Tensor, b: Tensor, gamma: float) -> Tensor:
    """g (h,) of the reading `dims`; all ones where B A = 0. A (r, h), B (h, r)."""
    squared = ((b @ (a @ a.T)) * b).sum(dim=1)  # row norms of BA, squared: (BA)(BA)' diagonal -> (h,)
    norms = (squared.clamp_min(0) + _EPSILON).sqrt()
    return 1 + gamma * (norms / norms.mean() - 1)


def matrix(kind: str, a: Tensor, b: Tensor, scaling: float, gamma: float, strength: float) -> Tensor:
    """The (h, h) matrix that `vector` or `dims` multiplies the pooled vector with, in float32."""
    if kind == "vector":
        return torch.eye(b.shape[0]) + gamma * scaling * (b.float() @ a.float())
    return torch.diag(dimension_weights(a.float(), b.float(), gamma * strength))


class TiedReweighting(nn.Module):
    """The head module of the readings `vector` and `dims` while (A, B) are being trained."""

    def __init__(self, kind: str, layer: nn.Module, gamma: float) -> None:
        super().__init__()
        self.kind = kind
        self.gamma = gamma
        self.strength = 1.0  # of the interpolation with the base; the layer's own scaling holds it too
        self.__dict__["tied"] = layer  # not a child: its parameters belong to the transformer

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        layer: Any = self.__dict__["tied"]
        e = features["sentence_embedding"]  # (B, h)
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight  # (r, h), (h, r)
        if self.strength == 0 or self.gamma == 0:
            return features
        if self.kind == "vector":
            features["sentence_embedding"] = e + (self.gamma * layer.scaling[ADAPTER]) * (e @ a.T) @ b.T
        else:
            features["sentence_embedding"] = e * dimension_weights(a, b, self.gamma * self.strength)
        return features


class TiedTokenPooling(Pooling):  # type: ignore[misc]
    """The pooling of the reading `tokens` while (A, B) are being trained."""

    def __init__(self, layer: nn.Module, width: int, gamma: float) -> None:
        super().__init__(width, "mean")
        self.gamma = gamma
        self.strength = 1.0
        self.__dict__["tied"] = layer
        self.__dict__["seen"] = []
        layer.register_forward_pre_hook(self._remember)

    def _remember(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.__dict__["seen"][:] = [inputs[0]]

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        layer: Any = self.__dict__["tied"]
        inputs = self.__dict__["seen"].pop()
        if self.strength == 0 or self.gamma == 0:
            pooled: dict[str, Any] = super().forward(features, **kwargs)
            return pooled
        pair = (layer.lora_A[ADAPTER].weight * layer.scaling[ADAPTER], layer.lora_B[ADAPTER].weight)
        features["sentence_embedding"] = weighted_mean(
            features["token_embeddings"], features["attention_mask"], inputs, pair, self.gamma
        )
        return features


Reweighting = TiedReweighting | TiedTokenPooling


def pooling_position(head: list[nn.Module], width: int) -> int:
    """Where in the head the pooling stands. Raises InvalidConfiguration where the vector is not `width` wide."""
    for position, module in enumerate(head):
        if isinstance(module, Pooling):
            if module.get_embedding_dimension() != width:
                raise InvalidConfiguration(
                    f"The pooled vector is {module.get_embedding_dimension()} wide, the transformer {width}: "
                    "re-weighting needs them equal. Choose reweight = 'none'."
                )
            return position
    raise InvalidConfiguration("This model has no pooling module to re-weight. Choose reweight = 'none'.")


def insert_tied(head: list[nn.Module], kind: str, layer: nn.Module, width: int, gamma: float) -> Reweighting | None:
    """Put the module of a reading into the head, in place; None for `none`."""
    if kind == "none":
        return None
    position = pooling_position(head, width)
    if kind == "tokens":
        pooling: Any = head[position]
        if pooling.pooling_mode != "mean" or not pooling.include_prompt:
            raise InvalidConfiguration(
                f"reweight = 'tokens' re-weights mean pooling; this model pools by {pooling.pooling_mode!r}. "
                "Choose 'vector', 'dims' or 'none'."
            )
        tokens = TiedTokenPooling(layer, width, gamma)
        head[position] = tokens
        return tokens
    made = TiedReweighting(kind, layer, gamma)
    head.insert(position + 1, made)
    return made


def insert_fixed(
    head: list[nn.Module],
    kind: str,
    pair: tuple[Tensor, Tensor],
    scaling: float,
    gamma: float,
    strength: float,
    layer_name: str,
) -> None:
    """The same for a finished model: plain modules with their own copy of the pair, in place."""
    if kind == "none":
        return
    a, b = (tensor.detach().float().cpu() for tensor in pair)
    width = b.shape[0]
    position = pooling_position(head, width)
    if kind == "tokens":
        if strength == 0:
            return
        pooling = TokenWeightedPooling(width, layer_name, a.shape[0], gamma)
        pooling.lora_a.data.copy_(a * scaling)
        pooling.lora_b.data.copy_(b)
        head[position] = pooling.requires_grad_(False)
        return
    weight = matrix(kind, a, b, scaling, gamma, strength)
    dense = Dense(width, width, bias=False, activation_function=nn.Identity(), init_weight=weight)
    head.insert(position + 1, dense.requires_grad_(False))
