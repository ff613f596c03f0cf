"""Learnt keys and values that every token attends to besides the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ragadapt.adapters.inserted import Given, Inserted, Inserting, Sublayer, sublayers
from ragadapt.adapters.method import Options, config_of
from ragadapt.values import JsonValue

# A gate is one number that begins at zero and moves by the learning rate at most in a step: at a run's own rate it
# stays so small that the prefix, whose gradient it scales, hardly learns (docs/methods.md).
GATE_RATE = 20.0


@dataclass(frozen=True, slots=True)
class PrefixOptions(Options):
    """prefix_length: keys and values in each layer."""

    prefix_length: int = 32

    def deciding(self) -> dict[str, JsonValue]:
        return {"prefix_length": self.prefix_length}


class Attended(Inserted):
    """out + s g softmax(q K' / sqrt(d)) V, head by head, from queries q before they are turned by their position.

    A prefix that shares the softmax of the text (Li and Liang 2021) takes weight from the text whatever its values are,
    so that no start leaves the model as it is. Here it has a softmax and a gate g of its own that begins at zero (Zhang
    et al. 2023, LLaMA-Adapter): He et al. (2022, eq. 5) show the shared softmax to be such a sum, with a gate that
    depends on the scores.
    """

    def __init__(
        self, length: int, heads: int, shared: int, each: int, generator: torch.Generator, *, whole: bool
    ) -> None:
        """shared: heads of keys and values, each read by heads / shared heads of queries. each: width of a head. whole:
        queries come as one row a token, perhaps with keys and values behind them, and not head by head."""
        super().__init__()
        self.heads, self.whole = heads, whole
        self.key, self.value = (nn.Parameter(torch.randn(length, shared, each, generator=generator)) for _ in range(2))
        self.gate = nn.Parameter(torch.zeros(heads))

    def keep_query(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Given) -> None:
        """From the module that gives q: (…, H d), (…, 3 H d) with keys and values behind, or (…, H, d)."""
        assert isinstance(output, Tensor)
        if self.whole:
            output = output.reshape(*output.shape[:-1], -1, self.heads, self.key.shape[-1]).select(-3, 0)
        self.seen[:] = [output]

    def before_output(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Add to what the attention's last linear layer is about to read."""
        q = self.seen.pop()
        return inputs if self.strength == 0 else (self.changed(q, inputs[0]), *inputs[1:])

    def changed(self, x: Tensor, out: Tensor) -> Tensor:
        shared, each = self.key.shape[1:]
        q = x.reshape(*x.shape[:-2], shared, -1, each)  # (…, K, G, d)
        scores = torch.einsum("...kgd,lkd->...kgl", q, (self.key * each**-0.5).to(q.dtype))
        mixed = torch.einsum("...kgl,lkd->...kgd", scores.softmax(-1), self.value.to(q.dtype))
        gate = (self.gate * self.strength).to(q.dtype).view(shared, -1, 1)
        return out + (mixed * gate).flatten(-3)

    def closing(self) -> Sequence[Tensor]:
        return [self.gate]


def gate_rates(method: Inserting) -> dict[str, float]:
    """How much faster than the rest the gates of a method's prefixes learn."""
    return {f"{name}.gate": GATE_RATE for name, part in method.parts.items() if isinstance(part, Attended)}


def put_prefix(method: Inserting, layer: str, attention: Sublayer, length: int) -> None:
    """A prefix at the self-attention of one layer."""
    config = config_of(method.model)
    heads = config.num_attention_heads
    shared = int(getattr(config, "num_key_value_heads", None) or heads)
    each = int(getattr(config, "head_dim", None) or method.width // heads)
    host = f"{layer}.{attention.writes}"
    query = f"{layer}.{attention.query}"
    whole = isinstance(method.model.get_submodule(query), nn.Linear)
    part = Attended(length, heads, shared, each, method.generator, whole=whole)
    method.put(host, "prefix", part)
    method.after(query, part.keep_query)
    method.before(host, part.before_output)


class LearntPrefix(Inserting):
    """Learnt keys and values at every self-attention, gated from zero; no network in front of them."""

    OPTIONS = PrefixOptions
    SOURCE = "Li and Liang 2021, arXiv 2101.00190; gate of Zhang et al. 2023, arXiv 2303.16199"

    def place(self) -> None:
        assert isinstance(self.options, PrefixOptions)
        attention, _ = sublayers(self.model)
        for layer in self.layers:
            put_prefix(self, layer, attention, self.options.prefix_length)

    def learning_rates(self) -> dict[str, float]:
        return gate_rates(self)
