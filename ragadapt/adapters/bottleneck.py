"""Bottlenecks behind or beside the sub-layers: Houlsby's adapters, and the mixed method of He et al."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ragadapt.adapters.inserted import Bottleneck, Inserting, sublayers
from ragadapt.adapters.method import Options
from ragadapt.adapters.prefix import gate_rates, put_prefix
from ragadapt.values import JsonValue


@dataclass(frozen=True, slots=True)
class HoulsbyOptions(Options):
    """rank: width of the bottlenecks; 64 is the paper's size where it does not search for one."""

    rank: int = 64

    def deciding(self) -> dict[str, JsonValue]:
        return {"rank": self.rank}


class Houlsby(Inserting):
    """A bottleneck behind self-attention and another behind the feed-forward network of every layer.

    y + W_up gelu(W_down y + b) + b' of the result y, before it is added to the stream and normalised. The norms stay
    frozen; the paper's are trained.
    """

    OPTIONS = HoulsbyOptions
    SOURCE = "Houlsby et al. 2019, arXiv 1902.00751"

    def place(self) -> None:
        assert isinstance(self.options, HoulsbyOptions)
        for layer in self.layers:
            for sublayer in sublayers(self.model):
                host = f"{layer}.{sublayer.writes}"
                part = Bottleneck(self.width, self.options.rank, self.generator, bias=True)
                self.after(host, self.put(host, "inside", part).on_result)


@dataclass(frozen=True, slots=True)
class MamOptions(Options):
    """rank: width of the parallel bottlenecks. alpha: rank times their factor s; None = s 2. prefix_length: keys and
    values in each layer. The sizes and s are those of the paper's runs on RoBERTa-base."""

    rank: int = 16
    alpha: float | None = None
    prefix_length: int = 16

    @property
    def factor(self) -> float:
        return 2.0 if self.alpha is None else self.alpha / self.rank

    def deciding(self) -> dict[str, JsonValue]:
        return {"rank": self.rank, "alpha": self.factor * self.rank, "prefix_length": self.prefix_length}


class Mam(Inserting):
    """Mix-and-match: learnt keys and values at self-attention, a scaled bottleneck beside the feed-forward network.

    FFN(x) + s (W_up relu(W_down x + b) + b'), where x is what the first linear layer of the network reads.
    """

    OPTIONS = MamOptions
    SOURCE = "He et al. 2022, arXiv 2110.04366"

    def place(self) -> None:
        assert isinstance(self.options, MamOptions)
        attention, network = sublayers(self.model)
        for layer in self.layers:
            put_prefix(self, layer, attention, self.options.prefix_length)
            host = f"{layer}.{network.writes}"
            part = Bottleneck(
                self.width,
                self.options.rank,
                self.generator,
                bias=True,
                activation=nn.functional.relu,
                factor=self.options.factor,
            )
            self.put(host, "parallel", part)
            self.before(f"{layer}.{network.reads}", part.remember)
            self.after(host, part.on_seen)

    def learning_rates(self) -> dict[str, float]:
        return gate_rates(self)
