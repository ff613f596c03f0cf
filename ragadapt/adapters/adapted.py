"""An encoder with an adapter on it: trainable, scalable towards its base, mergeable, and provably different."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ragadapt.adapters.lora import ADAPTER, inject, peft_config, target_names, tied_layer, top_layers
from ragadapt.adapters.reweight import Reweighting, insert_tied
from ragadapt.adapters.state import AdapterState, low_rank_tensors
from ragadapt.config import AdapterConfig
from ragadapt.encoder import Encoder, EncoderSpec, Tower
from ragadapt.encoder.loading import sides
from ragadapt.encoder.modules import TokenWeightedPooling
from ragadapt.encoder.precision import PROBE_PASSAGES, PROBE_QUERIES
from ragadapt.encoder.prefix import Prefix
from ragadapt.errors import InvalidConfiguration, InvalidInput, TrainingFailed

log = logging.getLogger(__name__)

_MOVED = 1e-5  # mean 1 - cosine below this is rounding, not learning
_SAME = 0.999  # least cosine of merged with unmerged vectors; bfloat16 rounds the merged weights once more


@dataclass(frozen=True, slots=True)
class AdapterEffect:
    """Proof that the adapter does something, and the same thing when merged.

    b_norm: Frobenius norm of all B matrices (full tuning: of the change of the weights). moved: mean of
    1 - cosine between base and adapted vectors of the probe. merged: least cosine between the vectors of the
    merged and the unmerged model.
    """

    b_norm: float
    moved: float
    merged: float

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, in words; empty = proved."""
        found = []
        if self.b_norm == 0:
            found.append("the adapter is still zero: nothing was learnt")
        if self.moved < _MOVED:
            found.append(f"vectors moved by {self.moved:.1e} on average: the model equals its base")
        if self.merged < _SAME:
            found.append(f"merged and unmerged vectors differ (cosine {self.merged:.5f})")
        return tuple(found)

    @property
    def proved(self) -> bool:
        return not self.problems


def attach(encoder: Encoder, config: AdapterConfig, *, seed: int = 0) -> AdaptedEncoder:
    """The encoder with a fresh adapter, ready to be trained; it still gives the base's vectors.

    The base stays as it is and shares its frozen weights. Full tuning has no low-rank pair to re-weight with,
    so `reweight` is taken as "none" there. Raises InvalidConfiguration.
    """
    if config.method == "none":
        raise InvalidConfiguration("method = 'none' trains nothing: use the base encoder as it is.")
    tower = encoder.query_tower
    if tower is None or encoder.passage_tower is not tower:
        reason = "runs inside sentence-transformers" if tower is None else "was adapted on the query side before"
        raise InvalidConfiguration(
            f"Model {encoder.spec.model!r} {reason} and cannot be adapted (again). Start from another base model."
        )
    if config.method == "full" and config.reweight != "none":
        log.info("full tuning has no low-rank pair: re-weighting %r is left out", config.reweight)
        config = config.model_copy(update={"reweight": "none"})
    return AdaptedEncoder(encoder, tower, config, seed)


class AdaptedEncoder(Encoder):
    """A base encoder plus an adapter in training. Made by `attach`."""

    def __init__(self, base: Encoder, tower: Tower, config: AdapterConfig, seed: int) -> None:
        self.base = base
        self.adapter_config = config
        self.tower = tower.clone()  # the adapted side
        model = self.tower.model
        model.requires_grad_(False)
        self._stack, indices = top_layers(model, config.layers)
        self.layers = len(indices)
        self._reweighting: Reweighting | None = None
        self._tied: str | None = None
        self._low_rank: dict[str, nn.Module] = {}
        self._origin: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] | None = None
        self._strength = 1.0
        if config.method == "lora":
            settings = peft_config(target_names(model, config), config)
            self._low_rank = inject(model, settings, seed)
            if config.reweight != "none":
                width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
                self._tied = tied_layer(self._low_rank, width)
                head = list(self.tower.head)
                layer = self._low_rank[self._tied]
                self._reweighting = insert_tied(head, config.reweight, layer, width, config.gamma)
                self.tower.head = nn.ModuleList(head)
        else:
            self._unfreeze(tuple(f"{self._stack}.{index}." for index in indices))
        self._align_prefix()
        both = config.adapt == "both"
        super().__init__(
            base._spec,
            base.config,
            self.tower,
            self.tower if both else tower,
            base.precision,
            lambda: self.state().build(base._restore),
        )
        self._finish = lambda folder, portable: _finish(folder, portable, self.state(), self._spec)

    def _unfreeze(self, prefixes: tuple[str, ...]) -> None:
        """Full tuning: the top layers' weights become float32 masters of their own, run under autocast."""
        model = self.tower.model
        fresh, _ = sides(self.base._restore())
        weights = dict(fresh[0].get_submodule("model").named_parameters())
        for name, _ in list(model.named_parameters()):
            if not name.startswith(prefixes):
                continue
            parent, _, child = name.rpartition(".")
            master = nn.Parameter(weights[name].detach().to(self.tower.device, torch.float32).clone())
            setattr(model.get_submodule(parent), child, master)
            self._origin[name] = master.detach().cpu().clone()
        self.tower.autocast = self.tower.dtype if self.tower.dtype != torch.float32 else None

    def _align_prefix(self) -> None:
        """The base's cache stays where nothing below its cut is trained."""
        prefix = self.tower.prefix
        if prefix is not None and not self.tower.can_be_cut(prefix.top_layers, self._in_training()):
            log.info("prefix cache not used: it ends %d layers below the top", prefix.top_layers)
            self.tower.prefix = None

    def _in_training(self) -> Iterable[nn.Parameter]:
        return self.trainable().values()

    # ------------------------------------------------------------------ what is trained

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name; float32."""
        if self._low_rank:
            chosen = {
                f"{name}.{part}.weight": getattr(layer, part)[ADAPTER].weight
                for name, layer in sorted(self._low_rank.items())
                for part in ("lora_A", "lora_B")
            }
        else:
            chosen = {name: self.tower.model.get_parameter(name) for name in sorted(self._origin)}
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        return chosen

    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the trainable parameters, as `trainable` names them."""
        parameters = self.trainable()
        if set(parameters) != set(tensors):
            raise InvalidInput("These tensors belong to another adapter: their names differ.")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[name])
        self._trained = None

    def state(self) -> AdapterState:
        """A copy of what was learnt, at the present scale."""
        if self._low_rank:
            tensors = low_rank_tensors(self.tower.model)
        elif self._trained is not None:
            tensors = dict(self._trained)
        else:
            tensors = {name: p.detach().float().cpu().clone() for name, p in self.trainable().items()}
        return AdapterState(
            self.adapter_config, self.layers, tuple(sorted(self._low_rank)), self._tied, tensors, self._strength
        )

    @property
    def spec(self) -> EncoderSpec:
        """The base's spec with the adapter as it is now: training and scaling change the fingerprint."""
        return self._spec.with_adapter(self.state().spec)

    # ------------------------------------------------------------------ between base and adapted

    def scale(self, strength: float) -> None:
        """Go the share `strength` of the way from the base (0, bit-equal) to what was trained (1), in place."""
        if not 0 <= strength <= 1:
            raise InvalidInput(f"scale = {strength}: it lies between 0 (the base) and 1 (as trained).")
        for layer in self._low_rank.values():
            pair: Any = layer
            pair.set_scale(ADAPTER, strength)
        if self._reweighting is not None:
            self._reweighting.strength = strength
        if self._origin:
            parameters = self.trainable()
            if self._trained is None:
                self._trained = {name: p.detach().cpu().clone() for name, p in parameters.items()}
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.copy_(torch.lerp(self._origin[name], self._trained[name], strength))
            if strength == 1:
                self._trained = None
        self._strength = strength
        tower = self.tower if strength > 0 else self.base.query_tower
        self.query_tower = tower
        if self.adapter_config.adapt == "both":
            self.passage_tower = tower

    def merged(self) -> Encoder:
        """A plain encoder with the adapter folded into the weights: the fastest form, and what is saved.

        Frozen weights are shared with the base; folding happens in float32, then the precision is applied.
        """
        state = self.state()
        base_tower = self.base.query_tower
        assert base_tower is not None
        made = state.build(self.base._restore)
        fresh, _ = sides(made)
        twin = base_tower.clone()
        weights = dict(fresh[0].get_submodule("model").named_parameters())
        for name in state.changed():
            parent, _, child = name.rpartition(".")
            weight = weights[name].detach().to(twin.device, twin.dtype)
            setattr(twin.model.get_submodule(parent), child, nn.Parameter(weight, requires_grad=False))
        twin.head = nn.ModuleList(fresh[1:]).to(twin.device)
        for module in twin.head:
            if isinstance(module, TokenWeightedPooling):
                module.bind(twin.model)
        if twin.prefix is not None:
            top = twin.prefix.top_layers
            twin.prefix = (
                Prefix(twin.model, top, twin.prefix.cache) if self.tower.can_be_cut(top, self._in_training()) else None
            )
        passage = twin if self.adapter_config.adapt == "both" else base_tower
        encoder = Encoder(
            self._spec.with_adapter(state.spec),
            self.base.config,
            twin,
            passage,
            self.base.precision,
            lambda: state.build(self.base._restore),
        )
        encoder._finish = lambda folder, portable: _finish(folder, portable, state, self._spec)
        return encoder

    def effect(
        self,
        queries: Sequence[str] = PROBE_QUERIES,
        passages: Sequence[str] = PROBE_PASSAGES,
        *,
        strict: bool = False,
    ) -> AdapterEffect:
        """Measured proof that the adapter works. strict: raise TrainingFailed where it does not."""
        if self._low_rank:
            tensors = [tensor for name, tensor in self.state().tensors.items() if "lora_B" in name]
        else:
            tensors = [tensor - self._origin[name] for name, tensor in self.state().tensors.items()]
        b_norm = float(torch.sqrt(sum((tensor.double().square().sum() for tensor in tensors), torch.tensor(0.0))))
        mine = [self.encode_queries(queries)]
        before = [self.base.encode_queries(queries)]
        merged = self.merged()
        folded = [merged.encode_queries(queries)]
        if self.adapter_config.adapt == "both":
            mine.append(self.encode_passages(passages))
            before.append(self.base.encode_passages(passages))
            folded.append(merged.encode_passages(passages))
        ours, theirs, plain = (np.concatenate(parts) for parts in (mine, before, folded))
        effect = AdapterEffect(
            b_norm=b_norm,
            moved=float(np.mean(1 - np.sum(ours * theirs, axis=1))),
            merged=float(np.min(np.sum(ours * plain, axis=1))),
        )
        if strict and not effect.proved:
            raise TrainingFailed(
                f"The adapter is not in effect: {'; '.join(effect.problems)}. Train longer or with a higher "
                "learning rate, or report this."
            )
        return effect


def _finish(folder: Path, portable: bool, state: AdapterState, base: EncoderSpec) -> bool:
    """Put the adapter beside (or, by reference, in the place of) the merged weights. True = by reference."""
    if state.config.method != "lora":
        return False
    state.write_adapter(folder / "adapter", base)
    if portable or "@" not in base.base or state.config.adapt == "query":
        return False
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / "adapter" / name).replace(folder / name)
    (folder / "adapter").rmdir()
    for weights in (*folder.glob("model*.safetensors"), folder / "model.safetensors.index.json"):
        weights.unlink(missing_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    return True
