"""An encoder with an adapter on it: trainable, scalable towards its base, mergeable, and provably different."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ragadapt.adapters.method import attach_method, check_strength, config_of, method_named
from ragadapt.adapters.reweight import Reweighting, TiedReweighting, TiedTokenPooling, insert_tied, tied_layer
from ragadapt.adapters.state import FOLDER, PEFT_WEIGHTS, AdapterState
from ragadapt.config import AdapterConfig
from ragadapt.encoder import Encoder, EncoderSpec, Tower
from ragadapt.encoder.loading import sides
from ragadapt.encoder.modules import TokenWeightedPooling
from ragadapt.encoder.precision import PROBE_PASSAGES, PROBE_QUERIES
from ragadapt.encoder.prefix import Prefix
from ragadapt.errors import InvalidConfiguration, TrainingFailed

log = logging.getLogger(__name__)

_GAMMA = "reweight.gamma"
_MOVED = 1e-5  # mean 1 - cosine below this is rounding, not learning
_SAME = 0.999  # least cosine of merged with unmerged vectors; bfloat16 rounds the merged weights once more


@dataclass(frozen=True, slots=True)
class TrainableShare:
    """Parameters that are trained, and those that the transformer has."""

    trained: int
    whole: int

    def __str__(self) -> str:
        return f"{self.trained:,} parameters, {self.trained / self.whole:.2%} of the model's {self.whole:,}"


@dataclass(frozen=True, slots=True)
class AdapterEffect:
    """Proof that the adapter does something, and the same thing when merged.

    change: Frobenius norm of what was learnt (LoRA: of all B matrices). moved: mean of 1 - cosine between base and
    adapted vectors of the probe. merged: least cosine between the vectors of the merged and the unmerged model.
    """

    change: float
    moved: float
    merged: float

    @property
    def has_learnt(self) -> bool:
        return self.change > 0

    @property
    def has_moved(self) -> bool:
        return self.moved >= _MOVED

    @property
    def merges(self) -> bool:
        return self.merged >= _SAME

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, in words; empty = proved."""
        found = []
        if not self.has_learnt:
            found.append("the adapter is still zero: nothing was learnt")
        if not self.has_moved:
            found.append(f"vectors moved by {self.moved:.1e} on average: the model equals its base")
        if not self.merges:
            found.append(f"merged and unmerged vectors differ (cosine {self.merged:.5f})")
        return tuple(found)

    @property
    def proved(self) -> bool:
        return not self.problems


def attach(encoder: Encoder, config: AdapterConfig, *, seed: int = 0) -> AdaptedEncoder:
    """The encoder with a fresh adapter, ready to be trained; it still gives the base's vectors.

    The base stays as it is and shares its frozen weights. A method without low-rank pairs re-weights nothing. Raises
    InvalidConfiguration.
    """
    if not config.trains:
        raise InvalidConfiguration("method = 'none' trains nothing: use the base encoder as it is.")
    tower = encoder.query_tower
    if tower is None or encoder.passage_tower is not tower:
        reason = "runs inside sentence-transformers" if tower is None else "was adapted on the query side before"
        raise InvalidConfiguration(
            f"Model {encoder.spec.model!r} {reason} and cannot be adapted (again). Start from another base model."
        )
    method_named(config.method).check_device(tower.device.type)
    return AdaptedEncoder(encoder, tower, config, seed)


class AdaptedEncoder(Encoder):
    """A base encoder whose transformer has an adapter in training. Made by `attach`.

    method: what is trained, which knows the transformer alone; the re-weighting of the vector, the sides and the saving
    are added here.
    """

    def __init__(self, base: Encoder, tower: Tower, config: AdapterConfig, seed: int) -> None:
        config = config.settled()
        self.base = base
        self.adapter_config = config
        self.seed = seed
        self.tower = tower.clone()  # the adapted side
        model = self.tower.model
        model.requires_grad_(False)
        dtype = self.tower.dtype
        self.method, scope = attach_method(model, config, seed=seed, weights=self._float32_weights)
        lowest = self.method.lowest_layer
        self.layers = scope.depth + 1 if lowest is None else scope.depth - lowest
        self._reweighting: Reweighting | None = None
        self._tied: str | None = None
        self._strength = 1.0
        pairs = self.method.pairs()
        if not pairs and "reweight" in config.model_fields_set and config.reweight != "none":
            raise InvalidConfiguration(
                f"reweight = {config.reweight!r} needs a low-rank pair, and rank = {config.rank} leaves method "
                f"{config.method!r} none. Choose a rank of 1 or more, or reweight = 'none'."
            )
        if pairs and config.reweight != "none":
            width = config_of(model).hidden_size
            self._tied = tied_layer(pairs, width)
            head = list(self.tower.head)
            self._reweighting = insert_tied(head, config.reweight, pairs[self._tied], width, config.gamma)
            self.tower.head = nn.ModuleList(head)
        if self.method.MASTERS and dtype != torch.float32:
            self.tower.autocast = dtype
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
        self._finish = lambda folder, portable: _finish(folder, portable, self.state())

    def _float32_weights(self) -> Mapping[str, Tensor]:
        fresh, _ = sides(self.base._restore())
        return dict(fresh[0].get_submodule("model").named_parameters())

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
        learnt = self._learnt_gamma
        return self.method.parameters() if learnt is None else {**self.method.parameters(), _GAMMA: learnt}

    @property
    def _learnt_gamma(self) -> nn.Parameter | None:
        return self._reweighting.learnt if isinstance(self._reweighting, TiedReweighting) else None

    @property
    def share(self) -> TrainableShare:
        """How much of the transformer is trained."""
        model = self.base.query_tower.model if self.base.query_tower is not None else self.tower.model
        trained = sum(parameter.numel() for parameter in self.trainable().values())
        return TrainableShare(trained, sum(parameter.numel() for parameter in model.parameters()))

    @torch.no_grad()
    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the trainable parameters, as `trainable` names them."""
        if (learnt := self._learnt_gamma) is not None:
            learnt.copy_(tensors[_GAMMA])
        self.method.load({name: tensor for name, tensor in tensors.items() if name != _GAMMA})

    def begin_at(self, state: AdapterState) -> None:
        """Set what another adapter of the same base and settings learnt, at full strength: training goes on from it.

        Raises InvalidConfiguration.
        """
        if state.base != self.base._spec.base:
            raise InvalidConfiguration(
                f"The adapter to begin with belongs to the base model {state.model!r}, not to "
                f"{self.base._spec.model!r}. Fit with that base, or begin with an adapter of this one."
            )
        if method_named(state.config.method).SEEDED and state.seed != self.seed:
            raise InvalidConfiguration(
                f"An adapter of method {state.config.method!r} means something with its own seed alone, {state.seed}. "
                f"Fit with --seed {state.seed}."
            )
        gamma = {} if self._learnt_gamma is None else {_GAMMA: torch.tensor(state.config.gamma)}
        self.set_tensors({**state.tensors, **gamma})

    @property
    def watches_layers(self) -> bool:
        """Whether it must see what a layer inside the transformer reads, which a compiled model hides."""
        return isinstance(self._reweighting, TiedTokenPooling)

    def state(self) -> AdapterState:
        """A copy of what was learnt, at the present scale; a learnt gamma stands in its configuration."""
        learnt = self._learnt_gamma
        gamma = {} if learnt is None else {"gamma": float(learnt.detach())}
        return AdapterState(
            config=self.adapter_config.model_copy(update=gamma),
            layers=self.layers,
            tied=self._tied,
            tensors=self.method.tensors(),
            scale=self._strength,
            change=self.method.change(),
            base=self.base._spec.base,
            model=self.base._spec.model,
            seed=self.seed,
        )

    @property
    def spec(self) -> EncoderSpec:
        """The base's spec with the adapter as it is now: training and scaling change the fingerprint."""
        return self._spec.with_adapter(self.state().spec)

    # ------------------------------------------------------------------ between base and adapted

    def scale(self, strength: float) -> None:
        """Go the share `strength` of the way from the base (0, bit-equal) to what was trained (1), in place."""
        check_strength(strength)
        self.method.set_strength(strength)
        if self._reweighting is not None:
            self._reweighting.strength = strength
        self._strength = strength
        tower = self.tower if strength > 0 else self.base.query_tower
        self.query_tower = tower
        if self.adapter_config.adapt == "both":
            self.passage_tower = tower

    def merged(self) -> Encoder:
        """A plain encoder with the adapter folded into the weights: the fastest form, and what is saved.

        Where it cannot be folded, an encoder that keeps the adapter as it is now. Frozen weights are shared with the
        base; folding happens in float32, then the precision is applied.
        """
        state = self.state()
        base_tower = self.base.query_tower
        assert base_tower is not None
        changed = self.method.changed
        made = state.build(self.base._restore)
        fresh, _ = sides(made)
        twin = base_tower.clone()
        if changed is None:
            state.attach(twin.model, self._float32_weights)
        else:
            weights = dict(fresh[0].get_submodule("model").named_parameters())
            for name in changed:
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
        encoder._finish = lambda folder, portable: _finish(folder, portable, state)
        return encoder

    def effect(
        self,
        queries: Sequence[str] = PROBE_QUERIES,
        passages: Sequence[str] = PROBE_PASSAGES,
        *,
        strict: bool = False,
    ) -> AdapterEffect:
        """Measured proof that the adapter works. strict: raise TrainingFailed where it does not."""
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
            change=self.method.change(),
            moved=float(np.mean(1 - np.sum(ours * theirs, axis=1))),
            merged=float(np.min(np.sum(ours * plain, axis=1))),
        )
        if strict and not effect.proved:
            raise TrainingFailed(
                f"The adapter is not in effect: {'; '.join(effect.problems)}. Train longer or with a higher "
                "learning rate, or report this."
            )
        return effect


def _finish(folder: Path, portable: bool, state: AdapterState) -> bool:
    """Put the adapter beside (or, by reference, in the place of) the merged weights. True = by reference."""
    state.write(folder / FOLDER)
    peft = [folder / FOLDER / name for name in ("adapter_config.json", PEFT_WEIGHTS)]
    if portable or "@" not in state.base or state.config.adapt == "query" or not all(file.is_file() for file in peft):
        return False
    for file in peft:  # transformers looks for them beside the model's settings
        shutil.copyfile(file, folder / file.name)
    for weights in (*folder.glob("model*.safetensors"), folder / "model.safetensors.index.json"):
        weights.unlink(missing_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    return True
