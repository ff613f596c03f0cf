"""Own weights of the top layers: all of them, or the biases."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ragadapt.adapters.method import Method, Options, Scope, Weights, check_strength, norm
from ragadapt.errors import InvalidConfiguration


class Full(Method):
    """Every weight of the trained layers, as a float32 master of its own, run under autocast in another precision."""

    MASTERS = True
    SOURCE = "full fine-tuning"

    def __init__(self, model: nn.Module, options: Options, scope: Scope, *, seed: int, weights: Weights) -> None:
        self.model, self.scope = model, scope
        self._trained: dict[str, Tensor] | None = None  # at full strength, while the model holds less
        self._base: dict[str, nn.Parameter] = {}  # what the model held before
        self._start: dict[str, Tensor] = {}
        whole = weights()
        for name, parameter in sorted(model.named_parameters()):
            if name.startswith(scope.prefixes) and self.trains(name):
                self._base[name] = parameter
                self._start[name] = whole[name].detach().float().cpu().clone()
                self._put(name, nn.Parameter(self._start[name].to(parameter.device, copy=True)))
        self.begin(whole)

    def trains(self, name: str) -> bool:
        """Whether this weight of a trained layer is trained."""
        return True

    def begin(self, whole: Mapping[str, Tensor]) -> None:
        """What a variant needs besides. whole: all weights in float32. Raises InvalidConfiguration."""

    def _put(self, name: str, parameter: nn.Parameter) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(parent), child, parameter)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {name: self.model.get_parameter(name) for name in self._start}

    @property
    def lowest_layer(self) -> int:
        return self.scope.indices[0]

    @torch.no_grad()
    def set_strength(self, strength: float) -> None:
        check_strength(strength)
        if self._trained is None:
            self._trained = super().tensors()
        for name, parameter in self.parameters().items():
            parameter.copy_(torch.lerp(self._start[name], self._trained[name], strength))
        if strength == 1:
            self._trained = None

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() if self._trained is None else dict(self._trained)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        super().load(tensors)
        self._trained = None

    def fold(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters().items()}

    @property
    def changed(self) -> frozenset[str]:
        return frozenset(self._start)

    def detach(self) -> None:
        for name, parameter in self._base.items():
            self._put(name, parameter)

    def change(self) -> float:
        return norm([tensor - self._start[name] for name, tensor in self.tensors().items()])


class BitFit(Full):
    """The biases of the trained layers, and nothing else; for models that have them (BERT, RoBERTa, MPNet)."""

    SOURCE = "Ben Zaken et al. 2022, arXiv 2106.10199"

    def trains(self, name: str) -> bool:
        return name.endswith(".bias")

    def begin(self, whole: Mapping[str, Tensor]) -> None:
        if not self._start:
            raise InvalidConfiguration(
                f"{type(self.model).__name__} has no biases in the layers that are trained, so 'bitfit' has nothing to "
                "train. Choose 'ia3', which is as small, or 'lora'."
            )
        for name in self._start:
            weight = f"{name.removesuffix('bias')}weight"
            parent = self.model.get_submodule(name.removesuffix(".bias"))
            if weight in whole and not isinstance(parent, nn.Linear):  # a norm takes both in one precision
                parameter = self.model.get_parameter(weight)
                self._base[weight] = parameter
                self._put(
                    weight, nn.Parameter(whole[weight].detach().float().to(parameter.device), requires_grad=False)
                )
