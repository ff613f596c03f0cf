"""Learning from several corpora at once, so that the next one is learnt sooner."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ragadapt.config import AdapterConfig, TrainingConfig
from ragadapt.encoder import Encoder
from ragadapt.errors import InvalidConfiguration, InvalidInput
from ragadapt.training.examples import Example
from ragadapt.training.loop import MAX_GRADIENT_NORM, Dev, EncoderRun, TrainingResult
from ragadapt.values import Progress, no_progress

RecipeName = Literal["multitask", "maml", "reptile"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How several corpora teach one model.

    multitask: every step learns a batch of one corpus (Huang et al. 2022, arXiv 2212.01032: the best for priming).
    maml: the gradient is taken where `inner_steps` steps on a corpus have led, on a further batch of it, first order
    (Finn et al. 2017, arXiv 1703.03400). reptile: the model follows where `inner_steps` + 1 steps on a corpus lead
    (Nichol et al. 2018, arXiv 1803.02999).

    temperature: a corpus of n questions is drawn in proportion to n^(1/temperature): 1 = by size, more = more evenly.
    inner_rate: how far the weights move, as a norm, in an inner step at most. All take as many batches for an epoch.
    """

    name: RecipeName = "multitask"
    temperature: float = 2.0
    inner_steps: int = 2
    inner_rate: float = 0.05

    def __post_init__(self) -> None:
        if self.name not in ("multitask", "maml", "reptile"):
            raise InvalidInput(f"recipe {self.name!r}: it is 'multitask', 'maml' or 'reptile'.")
        if not self.temperature > 0 or not self.inner_rate > 0 or self.inner_steps < 1:
            raise InvalidInput("temperature and inner_rate must be above 0, and inner_steps at least 1.")

    @property
    def batches(self) -> int:
        """Of one step."""
        return 1 if self.name == "multitask" else self.inner_steps + 1


def prime_encoder(
    encoder: Encoder,
    corpora: Sequence[Sequence[Example]],
    dev: Dev | None,
    adapter: AdapterConfig,
    training: TrainingConfig,
    recipe: Recipe = Recipe(),
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress = no_progress,
) -> TrainingResult:
    """As `train`, from the examples of several corpora. Passages of one corpus are never negatives of another's
    questions. An epoch has as many batches as the corpora together have; `training.max_steps` counts batches too."""
    run = PrimingRun(encoder, corpora, adapter, training, recipe, seed)
    return TrainingResult(encoder=run.encoder, **vars(run.follow(dev, checkpoint, progress)))


class PrimingRun(EncoderRun):
    """The run of an encoder whose steps are of one corpus each, or look ahead within one."""

    def __init__(
        self,
        base: Encoder,
        corpora: Sequence[Sequence[Example]],
        adapter: AdapterConfig,
        training: TrainingConfig,
        recipe: Recipe,
        seed: int,
    ) -> None:
        for number, examples in enumerate(corpora):
            if len(examples) < 2:
                raise InvalidInput(f"corpora[{number}] has {len(examples)} examples; at least two make a batch.")
        # Groups are numbered by every corpus for itself.
        every = [
            replace(example, group=None if example.group is None else f"{number} {example.group}")
            for number, examples in enumerate(corpora)
            for example in examples
        ]
        super().__init__(base, every, adapter, training, seed)
        if self.processes.count > 1:
            raise InvalidConfiguration("Priming runs in one process: start it without accelerate or torchrun.")
        ends = np.cumsum([0, *map(len, corpora)]).tolist()
        self.items = [range(start, end) for start, end in pairwise(ends)]
        self.recipe = recipe
        self.identity = f"{self.identity} {json.dumps([asdict(recipe), ends])}"
        self.ahead: list[list[list[int]]] = []  # the batches of every step

    def plan(self) -> list[list[int]]:
        recipe, size = self.recipe, self.training.batch_size
        total = sum(self.epochs * len(self.data.order(0, self.seed, size, items)) for items in self.items)
        batches = max(recipe.batches, round(total))
        if self.training.max_steps is not None:
            batches = min(batches, self.training.max_steps)
        shares = np.array([len(items) for items in self.items]) ** (1 / recipe.temperature)
        streams = [self._endless(items) for items in self.items]
        drawn = np.random.default_rng([self.seed, 1]).choice(
            len(streams), size=max(1, batches // recipe.batches), p=shares / shares.sum()
        )
        self.ahead = [[next(streams[corpus]) for _ in range(recipe.batches)] for corpus in drawn.tolist()]
        self.steps = len(self.ahead)
        return [[item for batch in step for item in batch] for step in self.ahead]

    def _endless(self, items: Sequence[int]) -> Iterator[list[int]]:
        epoch = 0
        while True:
            yield from self.data.order(epoch, self.seed, self.training.batch_size, items)
            epoch += 1

    def gradient(self, items: list[int], step: int) -> float:
        if self.recipe.name == "multitask":
            return super().gradient(items, step)
        *inner, last = self.ahead[step - 1]
        before = [parameter.detach().clone() for parameter in self.parameters]
        try:
            for batch in inner:
                loss = self.inner_step(batch, step)
                if not np.isfinite(loss):
                    return loss
            if self.recipe.name == "maml":
                return super().gradient(last, step)  # where the inner steps have led
            loss = self.inner_step(last, step)
            way = [start - parameter.detach() for start, parameter in zip(before, self.parameters, strict=True)]
        finally:
            with torch.no_grad():
                for start, parameter in zip(before, self.parameters, strict=True):
                    parameter.copy_(start)
        self.follow_way(way)
        return loss

    def inner_step(self, batch: list[int], step: int) -> float:
        """One step of plain gradient descent from where the weights are; leaves no gradient."""
        loss = super().gradient(batch, step)
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        with torch.no_grad():
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=self.recipe.inner_rate)
                parameter.grad = None
        return loss

    def follow_way(self, way: Sequence[Tensor]) -> None:
        """Set the gradient that leads where the inner steps led: the mean of theirs."""
        scale = self.recipe.inner_rate * self.recipe.batches
        for parameter, moved in zip(self.parameters, way, strict=True):
            parameter.grad = moved / scale
