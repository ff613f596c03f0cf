"""Several adapters in one: the weighted sum of what they add to the weights, and where the weights come from.

After Retrieval of Parameter Ensembles (Jin et al., 2021): adapters of corpora that look like the new one are summed by
how near these are, and nothing is trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ragadapt.adapters.method import METHODS, method_named, norm, options_of
from ragadapt.adapters.state import AdapterState
from ragadapt.config import AdapterConfig
from ragadapt.errors import InvalidConfiguration, InvalidInput

Floats = npt.NDArray[np.float64]

_SCALE = 2.0  # s of the sum, as of LoRA at its defaults, so that training goes on from it at the usual pace
_SUM_WEIGHT = 1e3  # of the condition that the weights sum to 1, in units of an embedding's length


def softmax_weights(distances: Sequence[float], temperature: float) -> list[float]:
    """(k,) that sum to 1: e^(−distance / temperature), normalised. Raises InvalidInput."""
    if not temperature > 0:
        raise InvalidInput(
            f"temperature = {temperature}: it must be above 0. The smaller, the more the nearest counts."
        )
    near = np.exp(-(np.asarray(distances) - min(distances)) / temperature)
    weights: list[float] = (near / near.sum()).tolist()
    return weights


def least_squares_weights(mean: Floats, means: Sequence[Floats]) -> list[float]:
    """(k,) not negative, that sum to 1: the mix of the means (d,) that is nearest to the mean (d,)."""
    from scipy.optimize import nnls

    columns = np.stack([*means], axis=1)  # (d, k)
    system = np.concatenate([columns, np.full((1, len(means)), _SUM_WEIGHT)])
    found = nnls(system, np.append(mean, _SUM_WEIGHT))[0]
    weights: list[float] = (found / found.sum()).tolist()
    return weights


def check_blends(states: Sequence[AdapterState]) -> None:
    """Raises InvalidConfiguration where these adapters do not add up: another base, a method that is not linear, other
    layers, other sides or another re-weighting."""
    first = states[0]
    for state in states:
        method = method_named(state.config.method)
        if not method.LINEAR:
            linear = ", ".join(name for name in METHODS if method_named(name).LINEAR)
            raise InvalidConfiguration(
                f"An adapter of method {state.config.method!r} is no low-rank change of the weights, so it cannot be "
                f"added to others. These can: {linear}. To go on from it alone: fit --start NAME."
            )
        if state.base != first.base:
            raise InvalidConfiguration(
                f"The adapters have different base models ({first.model} and {state.model}): their sum would mean "
                "nothing. Blend those of one base."
            )
        for name in ("adapt", "layers", "targets"):
            ours, theirs = getattr(first.config, name), getattr(state.config, name)
            if ours != theirs:
                raise InvalidConfiguration(f"The adapters differ in {name}: {ours} and {theirs}. Blend like with like.")
        reweighting, other = _reweighting(first), _reweighting(state)
        if reweighting != other:
            raise InvalidConfiguration(
                f"The adapters re-weight the vector differently: {reweighting} and {other}. Blend like with like."
            )


def _reweighting(state: AdapterState) -> tuple[str, float, str | None]:
    if state.tied is None:
        return "none", 0.0, None
    return state.config.reweight, state.config.gamma, state.tied


@torch.no_grad()
def blend(
    states: Sequence[AdapterState], weights: Sequence[float], model: nn.Module, *, rank: int | None = None
) -> AdapterState:
    """Σ weight · s B A of the adapters, each at its own strength, as one LoRA: exact at the sum of their ranks.

    model: the transformer that they belong to; it is given back as it was. rank: the best approximation of this rank
    (Eckart and Young, 1936), as the exact sum is large. Raises InvalidConfiguration as `check_blends`.
    """
    check_blends(states)
    if len(weights) != len(states) or not all(map(math.isfinite, weights)):
        raise InvalidInput(f"{len(states)} adapters and the weights {list(weights)}: one number is needed for each.")
    low: dict[str, list[Tensor]] = {}  # layer → A (r, in) of every adapter
    high: dict[str, list[Tensor]] = {}  # layer → weight · s / _SCALE · B (out, r)
    for state, weight in zip(states, weights, strict=True):
        method = state.attach(model)
        for name, pair in method.pairs().items():
            low.setdefault(name, []).append(pair.a.detach().float().cpu().clone())
            high.setdefault(name, []).append(pair.b.detach().float().cpu() * (weight * pair.factor / _SCALE))
        method.detach()
    pairs = {name: (torch.cat(low[name]), torch.cat(high[name], dim=1)) for name in sorted(low)}
    if rank is not None:
        pairs = {name: truncated(a, b, rank) for name, (a, b) in pairs.items()}
    widest = rank or max(len(a) for a, _ in pairs.values())
    tensors: dict[str, Tensor] = {}
    for name, (a, b) in pairs.items():
        more = widest - len(a)
        tensors[f"{name}.lora_A.weight"] = nn.functional.pad(a, (0, 0, 0, more)).contiguous()
        tensors[f"{name}.lora_B.weight"] = nn.functional.pad(b, (0, more)).contiguous()
    first = states[0]
    shared = {name: getattr(first.config, name) for name in ("adapt", "layers", "targets")}
    kind, gamma, _ = _reweighting(first)
    config = AdapterConfig(
        method="lora", rank=widest, alpha=_SCALE * widest, reweight=kind, gamma=gamma, **shared
    )  # fmt: skip
    return AdapterState(
        config=config,
        layers=first.layers,
        tied=first.tied,
        tensors=tensors,
        scale=1.0,
        change=norm([tensor for name, tensor in tensors.items() if ".lora_B." in name]),
        base=first.base,
        model=first.model,
    )


def truncated(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) → those of the given rank whose product is nearest to B A; padded where r is less."""
    left, lower = torch.linalg.qr(b)  # (out, r), (r, r)
    right, upper = torch.linalg.qr(a.T)  # (in, r), (r, r)
    u, values, v = torch.linalg.svd(lower @ upper.T)
    keep = min(rank, len(values))
    roots = values[:keep].sqrt()
    return roots[:, None] * (v[:keep] @ right.T), (left @ u[:, :keep]) * roots


def check_start(config: AdapterConfig, state: AdapterState) -> AdapterConfig:
    """The settings of a training that begins with this adapter: the adapter's own.

    Raises InvalidConfiguration where a setting was given that differs from them.
    """
    own = {**options_of(state.config).as_dict(), "method": state.config.method}
    for name in ("adapt", "layers", "reweight", "gamma"):
        own[name] = getattr(state.config, name)
    for name in sorted(config.model_fields_set):
        given = getattr(config, name)
        given = list(given) if isinstance(given, tuple) else given
        if name in own and given is not None and given != own[name]:
            raise InvalidConfiguration(
                f"adapter.{name} = {given!r}, but the adapter to begin with has {own[name]!r}. Leave the setting out, "
                "or begin with another adapter."
            )
    return state.config
