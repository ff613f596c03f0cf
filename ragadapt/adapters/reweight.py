"""Re-weighting of the sentence vector by a LoRA pair that is trained anyway: no further parameters, or one.

After I-Kai Wang (NCCU 2024), whose text is not public beyond the abstract; these are three readings of it.
`pair` is (A, B) of the tied layer, s its scaling, gamma the strength (0 = none), e the pooled vector:

    vector  e' = e + gamma s B A e
    dims    e' = g * e,  g_j = 1 + gamma (|(BA)_j| / mean_j |(BA)_j| - 1)
    tokens  e' = sum_i w_i h_i,  w = softmax_i(gamma |s B A x_i|^2)

`vector-learnt` is `vector` with gamma trained beside the pair, from the one that was set.
With B = 0 the first two change nothing and the third is mean pooling.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from sentence_transformers.models import Dense, Pooling
from torch import Tensor, nn

from ragadapt.adapters.method import Pair
from ragadapt.encoder.modules import TokenWeightedPooling
from ragadapt.encoder.pooling import weighted_mean
from ragadapt.errors import InvalidConfiguration

_ATTENTION_OUTPUT = r"attention\.output\.dense|attention\.out_lin|attn\.o|attn\.Wo|self_attn\.o_proj|\w*\.out_proj"
VECTOR = ("vector", "vector-learnt")
_EPSILON = 1e-24  # under the root of a squared norm: keeps the gradient finite where B = 0


def tied_layer(pairs: Mapping[str, Pair], width: int) -> str:
    """Name of the layer whose pair is shared: the attention output of the last layer; where that is not square, another
    square one of the last layer. Raises InvalidConfiguration."""

    def depth(name: str) -> int:
        numbers = re.findall(r"\.(\d+)\.", name)
        return int(numbers[0]) if numbers else -1

    deepest = max((depth(name) for name in pairs), default=-1)
    square = [
        name
        for name, layer in sorted(pairs.items())
        if depth(name) == deepest and (layer.out_features, layer.in_features) == (width, width)
    ]
    preferred = [name for name in square if re.search(rf"({_ATTENTION_OUTPUT})$", name)]
    if not square:
        raise InvalidConfiguration(
            f"The re-weighting shares the pair of a {width}x{width} layer, and none is adapted. "
            "Leave targets empty, or choose reweight = 'none'."
        )
    return (preferred or square)[0]


def dimension_weights(a: Tensor, b: Tensor, gamma: float) -> Tensor:
    """g (h,) of the reading `dims`; all ones where B A = 0. A (r, h), B (h, r)."""
    squared = ((b @ (a @ a.T)) * b).sum(dim=1)  # row norms of BA, squared: (BA)(BA)' diagonal -> (h,)
    norms = (squared.clamp_min(0) + _EPSILON).sqrt()
    return 1 + gamma * (norms / norms.mean() - 1)


def matrix(kind: str, a: Tensor, b: Tensor, scaling: float, gamma: float, strength: float) -> Tensor:
    """The (h, h) matrix that `vector`, or `dims`, multiplies the pooled vector with, in float32."""
    if kind in VECTOR:
        return torch.eye(b.shape[0]) + gamma * scaling * (b.float() @ a.float())
    return torch.diag(dimension_weights(a.float(), b.float(), gamma * strength))


class TiedReweighting(nn.Module):
    """The head module of the readings `vector`, learnt or not, and `dims` while (A, B) are being trained."""

    def __init__(self, kind: str, layer: Pair, gamma: float) -> None:
        super().__init__()
        self.kind = kind
        start = torch.tensor(gamma, dtype=torch.float32, device=layer.a.device)
        self.learnt = nn.Parameter(start) if kind == "vector-learnt" else None
        self.fixed = gamma
        self.strength = 1.0  # of the interpolation with the base; the layer's own scaling holds it too
        self.__dict__["tied"] = layer  # not a child: its parameters belong to the transformer

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        layer: Pair = self.__dict__["tied"]
        e = features["sentence_embedding"]  # (B, h)
        a, b = layer.a, layer.b  # (r, h), (h, r)
        if self.strength == 0 or (self.learnt is None and self.fixed == 0):
            return features
        if self.kind in VECTOR:
            gamma = self.fixed if self.learnt is None else self.learnt
            features["sentence_embedding"] = e + (gamma * layer.factor) * (e @ a.T) @ b.T
        else:
            features["sentence_embedding"] = e * dimension_weights(a, b, self.fixed * self.strength)
        return features


class TiedTokenPooling(Pooling):  # type: ignore[misc]
    """The pooling of the reading `tokens` while (A, B) are being trained."""

    def __init__(self, layer: Pair, width: int, gamma: float) -> None:
        super().__init__(width, "mean")
        self.gamma = gamma
        self.strength = 1.0
        self.__dict__["tied"] = layer
        self.__dict__["seen"] = []
        layer.register_forward_pre_hook(self._remember)

    def _remember(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.__dict__["seen"][:] = [inputs[0]]

    def forward(self, features: dict[str, Tensor], **kwargs: object) -> dict[str, Tensor]:
        layer: Pair = self.__dict__["tied"]
        inputs = self.__dict__["seen"].pop()
        if self.strength == 0 or self.gamma == 0:
            pooled: dict[str, Tensor] = super().forward(features, **kwargs)
            return pooled
        pair = (layer.a * layer.factor, layer.b)
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


def insert_tied(head: list[nn.Module], kind: str, layer: Pair, width: int, gamma: float) -> Reweighting | None:
    """Put the module of a reading into the head, in place; None for `none`."""
    if kind == "none":
        return None
    position = pooling_position(head, width)
    if kind == "tokens":
        pooling = head[position]
        assert isinstance(pooling, Pooling)
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


@torch.no_grad()
def insert_fixed(head: list[nn.Module], kind: str, layer: Pair, name: str, gamma: float, strength: float) -> None:
    """The same for a finished model: plain modules with their own copy of the pair, in place. name: of the layer."""
    if kind == "none":
        return
    a, b = layer.a.detach().float().cpu(), layer.b.detach().float().cpu()
    width = b.shape[0]
    position = pooling_position(head, width)
    if kind == "tokens":
        if strength == 0:
            return
        pooling = TokenWeightedPooling(width, name, a.shape[0], gamma)
        pooling.lora_a.data.copy_(a * layer.factor)
        pooling.lora_b.data.copy_(b)
        head[position] = pooling.requires_grad_(False)
        return
    weight = matrix(kind, a, b, layer.factor, gamma, strength)
    dense = Dense(width, width, bias=False, activation_function=nn.Identity(), init_weight=weight)
    head.insert(position + 1, dense.requires_grad_(False))
