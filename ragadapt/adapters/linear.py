"""What stands on linear layers in another form than a plain pair: the way to the base, folding, names, once for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from ragadapt.adapters.method import Method, Scope, check_strength, norm, replace_module


class Adapted(nn.Module, ABC):
    """A linear layer with something on it. strength: the share of the way from W x + b to what was learnt."""

    strength = 1.0

    @property
    @abstractmethod
    def base(self) -> nn.Linear:
        """The layer as it was found."""

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    @abstractmethod
    def whole(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out) at full strength."""

    @abstractmethod
    def whole_weights(self) -> tuple[Tensor, Tensor | None]:
        """W (out, in) and bias that give the same."""

    @abstractmethod
    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What training changes, by name within the layer, in order of name."""

    def forward(self, x: Tensor) -> Tensor:
        if self.strength == 0:
            base: Tensor = self.base(x)
            return base
        whole = self.whole(x)
        return whole if self.strength == 1 else torch.lerp(self.base(x), whole, self.strength)

    def weights(self) -> tuple[Tensor, Tensor | None]:
        """W and bias at the present strength, which lie on the straight way between the two."""
        weight, bias = self.whole_weights()
        weight = torch.lerp(self.base.weight, weight.to(self.base.weight.dtype), self.strength)
        if bias is None:
            return weight, None
        return weight, torch.lerp(self.base.bias, bias.to(self.base.bias.dtype), self.strength)


L = TypeVar("L", bound=Adapted)


class OnLinear(Method, Generic[L]):
    """A method of `Adapted` layers. Those who derive from it make them and call `place`."""

    model: nn.Module
    scope: Scope
    layers: dict[str, L]  # by name
    BIASES = False  # whether biases change, too

    def place(self, layers: dict[str, L]) -> None:
        """Put the layers where their bases are, and note where they begin."""
        self.layers = dict(sorted(layers.items()))
        for name, layer in self.layers.items():
            replace_module(self.model, name, layer.eval())
        self.note_start()

    def note_start(self) -> None:
        """What `change` is measured from."""
        for parameter in self.parameters().values():
            parameter.requires_grad_(True)
        self._start = {name: parameter.detach().clone() for name, parameter in self.parameters().items()}

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{name}.{part}": value for name, layer in self.layers.items() for part, value in layer.trained()}

    @property
    def lowest_layer(self) -> int:
        return self.scope.indices[0]

    def set_strength(self, strength: float) -> None:
        check_strength(strength)
        for layer in self.layers.values():
            layer.strength = strength

    @torch.no_grad()
    def fold(self) -> dict[str, Tensor]:
        folded = {}
        for name, layer in self.layers.items():
            weight, bias = layer.weights()
            folded[f"{name}.weight"] = weight
            if self.BIASES and bias is not None:
                folded[f"{name}.bias"] = bias
        return folded

    @property
    def changed(self) -> frozenset[str]:
        names = [f"{name}.weight" for name in self.layers]
        if self.BIASES:
            names += [f"{name}.bias" for name, layer in self.layers.items() if layer.base.bias is not None]
        return frozenset(names)

    def detach(self) -> None:
        for name, layer in self.layers.items():
            replace_module(self.model, name, layer.base)
        self.model.__dict__.pop("peft_config", None)

    def change(self) -> float:
        return norm([parameter.detach() - self._start[name] for name, parameter in self.parameters().items()])
