"""A re-ranker with an adapter on its transformer: trainable, scalable towards its base, mergeable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ragadapt.adapters.attached import TrainableShare
from ragadapt.adapters.method import attach_method, check_strength, method_named
from ragadapt.adapters.state import AdapterState
from ragadapt.config import AdapterConfig, EncoderConfig
from ragadapt.encoder import loading
from ragadapt.encoder.precision import choose_device, choose_precision
from ragadapt.encoder.presets import resolve
from ragadapt.errors import InvalidConfiguration
from ragadapt.rerank.cross_encoder import CrossEncoderReranker
from ragadapt.rerank.reranker import PROBE_PAIRS, Reranker, Scores
from ragadapt.rerank.spec import RerankerSpec

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

_HEAD = "head."
_START = 0.02  # deviation of a fresh head's weights, as BERT's own
_SAME = 0.99  # least correlation of merged with unmerged scores; bfloat16 rounds the merged weights once more


def fresh_model(config: EncoderConfig, *, seed: int, max_length: int | None = None) -> CrossEncoder:
    """A plain encoder as a cross-encoder that has learnt nothing yet, in float32 on the CPU: its transformer, its
    pooling, and one linear layer of random weights to the score.

    max_length: tokens of a pair; None = as the encoder reads of a text. Raises ModelNotFound, InvalidConfiguration for
    a model without a transformer.
    """
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.modules import Dense
    from sentence_transformers.models import Pooling

    source = resolve(config)
    encoder = loading.open_model(source, config, "cpu")
    transformer, *rest = loading.sides(encoder)[0]
    settings = getattr(getattr(transformer, "model", None), "config", None)
    if settings is None:
        raise InvalidConfiguration(
            f"Model {config.model!r} has no transformer that could read pairs. Name a re-ranker (--rerank MODEL)."
        )
    width = int(settings.hidden_size)
    pooling = rest[0] if rest and type(rest[0]) is Pooling else Pooling(width, "cls")
    head = Dense(width, 1, activation_function=nn.Identity(), module_output_name="scores")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.linear.weight.normal_(0, _START, generator=generator)
        head.linear.bias.zero_()
    length = max_length or loading.max_length(encoder, config, source)
    model: CrossEncoder = CrossEncoder(modules=[transformer, pooling, head], device="cpu")
    model.max_seq_length = length
    model.eval()
    return model


def fresh_reranker(config: EncoderConfig, *, seed: int, max_length: int | None = None) -> CrossEncoderReranker:
    """`fresh_model` as a re-ranker to be trained, where and in what precision the configuration says."""
    make = partial(fresh_model, config, seed=seed, max_length=max_length)
    model, source = make(), resolve(config)
    kind = type(model.activation_fn)
    spec = RerankerSpec(
        model=f"{config.model} with a head of its own",
        base=loading.tensors_sha256(model.state_dict()),
        revision=None,
        licence=loading.licence(source),
        max_length=int(model.max_seq_length or 0),
        activation=f"{kind.__module__}.{kind.__qualname__}",
    )
    device = choose_device(config.device)
    return CrossEncoderReranker(spec, source, model.to(device), choose_precision(config.precision, device), make)


def write_fresh(folder: Path, config: EncoderConfig, *, seed: int, max_length: int | None = None) -> Path:
    """`fresh_model` as a folder, which `Reranker.load` and sentence-transformers' CrossEncoder open."""
    with loading.quiet():
        model = fresh_model(config, seed=seed, max_length=max_length)
        model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)
    return folder


@dataclass(frozen=True, slots=True)
class RerankerEffect:
    """Proof that the training did something, and the same thing when merged.

    change: Frobenius norm of what the adapter learnt. moved: the most by which a score of the probe differs from the
    base's, in units of the trained model's spread. merged: correlation of the merged model's scores with the unmerged.
    """

    change: float
    moved: float
    merged: float

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, in words; empty = proved."""
        found = []
        if not self.change > 0:
            found.append("the adapter is still zero: nothing was learnt")
        if not self.moved > 0:
            found.append("no score moved: the model equals its base")
        if not self.merged >= _SAME:
            found.append(f"merged and unmerged scores differ (correlation {self.merged:.4f})")
        return tuple(found)

    @property
    def proved(self) -> bool:
        return not self.problems


class AdaptedReranker:
    """A re-ranker whose transformer has a fresh adapter in training, and whose head is trained with it.

    The base stays as it is and shares its frozen weights. method: what is trained of the transformer. fresh: the base's
    head has learnt nothing, so that there is no way back to it: the strength is the adapter's alone.
    """

    def __init__(self, base: Reranker, config: AdapterConfig, *, seed: int = 0, fresh: bool = False) -> None:
        """Raises InvalidConfiguration for a model that cannot be adapted so."""
        if not config.trains:
            raise InvalidConfiguration("method = 'none' trains nothing: use the re-ranker as it is.")
        whole = base.library_model()
        adapted = any(getattr(module, "keeps_adapter", False) for module in whole.modules())
        if base._tower is None or base._tower.head is None or adapted:
            reason = "was adapted before" if adapted else f"runs in {base.path}, its head not told from its transformer"
            raise InvalidConfiguration(
                f"The re-ranker {base.spec.model!r} {reason}, and cannot be trained. Start from another one, or from "
                "an encoder with a fresh head."
            )
        self.base = base
        self.fresh = fresh
        self.seed = seed
        self.adapter_config = config.model_copy(update={"adapt": "both", "reweight": "none"})
        self.tower = base._tower.trainable_twin()
        model, head = self.tower.model, self.tower.head
        assert head is not None
        model.requires_grad_(False)
        method_named(config.method).check_device(self.tower.device.type)
        dtype = next(model.parameters()).dtype
        weights = dict(base.parts(whole)[0].named_parameters())
        self.method, scope = attach_method(model, self.adapter_config, seed=seed, weights=lambda: weights)
        if self.method.MASTERS and dtype != torch.float32:
            self.tower.autocast = dtype
        lowest = self.method.lowest_layer
        self.layers = scope.depth + 1 if lowest is None else scope.depth - lowest
        self._head = dict(sorted(head.named_parameters()))
        self._start = {name: part.detach().clone() for name, part in self._head.items()}
        self._trained: dict[str, Tensor] | None = None  # of the head at full strength, while it holds less
        self._strength = 1.0

    # ------------------------------------------------------------------ what is trained

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name; float32."""
        return {**self.method.parameters(), **{f"{_HEAD}{name}": part for name, part in self._head.items()}}

    @property
    def share(self) -> TrainableShare:
        """How much of the model is trained, its head included."""
        assert self.base._tower is not None
        trained = sum(parameter.numel() for parameter in self.trainable().values())
        return TrainableShare(trained, sum(parameter.numel() for parameter in self.base._tower.parameters()))

    @torch.no_grad()
    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the trainable parameters, as `trainable` names them."""
        for name, part in self._head.items():
            part.copy_(tensors[f"{_HEAD}{name}"])
        self._trained = None
        self.method.load({name: tensor for name, tensor in tensors.items() if not name.startswith(_HEAD)})

    def state(self) -> AdapterState:
        """A copy of what the adapter learnt, at the present strength."""
        return AdapterState(
            config=self.adapter_config,
            layers=self.layers,
            tied=None,
            tensors=self.method.tensors(),
            scale=self._strength,
            change=self.method.change(),
            base=self.base.spec.base,
            model=self.base.spec.model,
            seed=self.seed,
        )

    # ------------------------------------------------------------------ between base and adapted

    @torch.no_grad()
    def scale(self, strength: float) -> None:
        """Go the share `strength` of the way from the base (0) to what was trained (1), in place. Raises InvalidInput
        where the method knows no way between."""
        check_strength(strength)
        self.method.set_strength(strength)
        self._strength = strength
        if self.fresh:
            return
        if self._trained is None:
            self._trained = {name: part.detach().clone() for name, part in self._head.items()}
        for name, part in self._head.items():
            part.copy_(torch.lerp(self._start[name], self._trained[name], strength))
        if strength == 1:
            self._trained = None

    def logits_of(self, lists: Sequence[tuple[str, Sequence[str]]]) -> list[Scores]:
        """For every (query, passages) one number a passage, larger is better; nothing is remembered."""
        pairs = [(query, passage) for query, passages in lists for passage in passages]
        ends = np.cumsum([len(passages) for _, passages in lists])
        tower = self.base._tower if self._strength == 0 and not self.fresh else self.tower
        assert tower is not None
        return np.split(self.base.read_with(tower, pairs), ends[:-1]) if lists else []

    def merged(self) -> Reranker:
        """A re-ranker with the adapter folded into its weights, or where it cannot be, beside them, as it is now."""
        state = self.state()
        head = {name: part.detach().float().cpu().clone() for name, part in self._head.items()}
        restore = partial(_restored, self.base, state, head)
        model = restore()
        folds = method_named(self.adapter_config.method).FOLDS
        spec = replace(
            self.base.spec,
            base=loading.tensors_sha256(model.state_dict()),
            revision=None,
            adapter=None if folds else asdict(state.spec),
        )
        device = self.base.precision.device
        wanted = self.base.precision
        return type(self.base)(spec, self.base.source, model.to(device), wanted, restore)

    def effect(self) -> RerankerEffect:
        """Measured proof that the training works."""
        assert self.base._tower is not None
        mine, before = (self.base.read_with(tower, PROBE_PAIRS) for tower in (self.tower, self.base._tower))
        merged = self.merged()
        assert merged._tower is not None
        plain = merged.read_with(merged._tower, PROBE_PAIRS)
        return RerankerEffect(
            change=self.method.change(),
            moved=float(np.abs(mine - before).max()) / max(float(mine.std()), 1e-9),
            merged=float(np.corrcoef(mine, plain)[0, 1]),
        )


def _restored(base: Reranker, state: AdapterState, head: Mapping[str, Tensor]) -> Any:
    """The base anew with what was learnt, in float32 on the CPU."""
    model = base.library_model()
    state.apply(next(iter(model.children())), [])
    part = base.parts(model)[1]
    assert part is not None
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            parameter.copy_(head[name])
    return model.eval()
