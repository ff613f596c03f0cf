"""Connected adapters, IAA (Ma et al. 2022): modules inside the network, and others aside that join them to one path.

Inside, y + W_up gelu(W_down y) of every sub-layer's result y. Aside, BN(x) = W_up gelu(W_down x) added to the stream:

    S  h' = h + SubLayer(h) … + BN(h)   one for every sub-layer
    L  h_{l+1} = Layer_l(h_l) + BN_l(h_l)   one for every layer
    M  out = Layers(h_0) + BN(h_0)   one for all layers that are trained

The paper's text is not public: gelu, no biases and W_up = 0 at the start are our reading; without biases the sizes S
and M have as many parameters as LoRA of rank 16 on queries and values, to which the paper compares them.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from ragadapt.adapters.inserted import Bottleneck, Inserting, sublayers
from ragadapt.adapters.method import Options
from ragadapt.values import JsonValue


@dataclass(frozen=True, slots=True)
class IaaOptions(Options):
    """rank: width inside; 0 = no modules there. aside_rank: width aside."""

    rank: int = 12
    aside_rank: int = 12

    def deciding(self) -> dict[str, JsonValue]:
        return {"rank": self.rank, "aside_rank": self.aside_rank}

    @classmethod
    def may_be_zero(cls) -> tuple[str, ...]:
        return ("rank",)


@dataclass(frozen=True, slots=True)
class IaaSOptions(IaaOptions):
    """The paper's sizes for half a percent of BERT-base."""

    rank: int = 8
    aside_rank: int = 8


@dataclass(frozen=True, slots=True)
class IaaMOptions(IaaOptions):
    """Likewise."""

    rank: int = 15
    aside_rank: int = 24


class Iaa(Inserting):
    """The modules inside; a subclass adds those aside, which see what those inside have done."""

    OPTIONS = IaaOptions
    SOURCE = "Ma et al. 2022, arXiv 2208.09847"

    def place(self) -> None:
        assert isinstance(self.options, IaaOptions)
        if self.options.rank:
            for layer in self.layers:
                for sublayer in sublayers(self.model):
                    host = f"{layer}.{sublayer.writes}"
                    part = Bottleneck(self.width, self.options.rank, self.generator)
                    self.after(host, self.put(host, "inside", part).on_result)
        self.place_aside()

    @abstractmethod
    def place_aside(self) -> None:
        """Put the modules aside."""

    def aside(self, host: str) -> Bottleneck:
        """A module aside that adds to what the host gives."""
        assert isinstance(self.options, IaaOptions)
        part = Bottleneck(self.width, self.options.aside_rank, self.generator)
        self.put(host, "aside", part)
        return part


class IaaS(Iaa):
    """Connected adapters: bottlenecks inside every layer, and one aside for every sub-layer, from the stream that it
    starts from to the stream behind it."""

    OPTIONS = IaaSOptions

    def place_aside(self) -> None:
        for layer in self.layers:
            for sublayer in sublayers(self.model):
                host = f"{layer}.{sublayer.after}"
                part = self.aside(host)
                self.before(f"{layer}.{sublayer.stream}", part.remember)
                self.after(host, part.on_seen)


class IaaL(Iaa):
    """Connected adapters: bottlenecks inside every layer, and one aside for every layer, from what it reads to what it
    gives."""

    def place_aside(self) -> None:
        for layer in self.layers:
            self.after(layer, self.aside(layer).on_input)


class IaaM(Iaa):
    """Connected adapters: bottlenecks inside every layer, and one aside for all layers that are trained, from what the
    lowest reads to what the highest gives."""

    OPTIONS = IaaMOptions

    def place_aside(self) -> None:
        part = self.aside(self.layers[-1])
        self.before(self.layers[0], part.remember)
        self.after(self.layers[-1], part.on_seen)
