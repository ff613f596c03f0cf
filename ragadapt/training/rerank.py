"""Training of the second stage: queries with an answer and other passages in, a trained re-ranker out."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ragadapt.config import AdapterConfig, RerankLoss, TrainingConfig
from ragadapt.encoder.batches import Ids
from ragadapt.errors import InvalidInput
from ragadapt.rerank.adapted import AdaptedReranker
from ragadapt.rerank.reranker import Reranker
from ragadapt.training import losses
from ragadapt.training.examples import Example, check_examples
from ragadapt.training.loop import Course, Run
from ragadapt.values import Progress, no_progress

log = logging.getLogger(__name__)

RerankerDev = Callable[[AdaptedReranker], float]

_LOSSES: dict[RerankLoss, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "listwise": losses.list_softmax,
    "pointwise": losses.list_bce,
}


@dataclass(frozen=True)
class RerankerTrainingResult(Course):
    """The trained re-ranker, at its best weights, and how it came about."""

    reranker: AdaptedReranker


def train_reranker(
    base: Reranker,
    examples: Sequence[Example],
    dev: RerankerDev | None,
    adapter: AdapterConfig,
    training: TrainingConfig,
    *,
    loss: RerankLoss = "listwise",
    negatives: int = 7,
    fresh: bool = False,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress = no_progress,
) -> RerankerTrainingResult:
    """Fit a fresh adapter on the re-ranker's transformer, and its head. The re-ranker itself stays as it is.

    Of an example its query, positive, negatives, weight and task are read: every time that it comes, `negatives` of its
    negatives are drawn anew. loss: listwise = softmax over positive and negatives, pointwise = binary cross-entropy of
    each. Of the training settings, those of the loss and of the prefix are not read; batch_size counts queries. fresh:
    the base's head is random. dev, checkpoint, and several processes as for `train`. Raises InvalidInput,
    InvalidConfiguration, TrainingFailed.
    """
    run = _PairRun(base, examples, adapter, training, loss, negatives, fresh, seed)
    log.info("method %s trains %s", adapter.method, run.model.share)
    return RerankerTrainingResult(reranker=run.model, **vars(run.follow(dev, checkpoint, progress)))


class _Row:
    """A pair's token ids, and which text each is of."""

    __slots__ = ("ids", "types")

    def __init__(self, ids: Ids, types: Ids | None) -> None:
        self.ids, self.types = ids, types

    def __len__(self) -> int:
        return len(self.ids)


class _PairRun(Run[AdaptedReranker]):
    """The training of a re-ranker: scores of pairs, the loss within each query's list."""

    def __init__(
        self,
        base: Reranker,
        examples: Sequence[Example],
        adapter: AdapterConfig,
        training: TrainingConfig,
        loss: RerankLoss,
        negatives: int,
        fresh: bool,
        seed: int,
    ) -> None:
        self.examples = list(examples)
        check_examples(self.examples, distil=False)
        if negatives < 1 or not any(example.negatives and example.weight > 0 for example in self.examples):
            raise InvalidInput(
                "A re-ranker learns from passages that do not answer beside one that does: no example has negatives."
            )
        self.kind, self.negatives = loss, negatives
        model = AdaptedReranker(base, adapter, seed=seed, fresh=fresh)
        model.method.learn_tasks(sorted({example.task for example in self.examples if example.task is not None}))
        super().__init__(model, model.method, model.trainable(), model.tower.device, training, seed)
        self.tower = model.tower
        self._longest = 0
        self.identity = self._identity(base, adapter)

    def _identity(self, base: Reranker, adapter: AdapterConfig) -> str:
        digest = hashlib.sha256()
        settings = (adapter.deciding(), self.training.deciding(), self.kind, self.negatives, self.model.fresh)
        for part in ("re-ranker", base.fingerprint, base.precision.dtype, *settings, self.seed):
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        for example in self.examples:
            digest.update(json.dumps(asdict(example)).encode())
        return digest.hexdigest()

    def plan(self) -> list[list[int]]:
        batches: list[list[int]] = []
        size, left, epoch = self.training.batch_size, self.epochs, 0
        while left > 1e-9:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.examples)).tolist()
            made = [order[start : start + size] for start in range(0, len(order), size)]
            batches += made[: max(1, round(len(made) * min(1.0, left)))]
            left, epoch = left - 1, epoch + 1
        return batches[: self.training.max_steps]

    @contextlib.contextmanager
    def prepared(self, checkpoint: Path | None, progress: Progress) -> Iterator[None]:
        """Nothing: pairs are many, and are tokenised as they come."""
        yield

    def longest(self) -> int:
        return self._longest

    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.model.set_tensors(tensors)

    def lists(self, items: Sequence[int], step: int) -> list[list[str]]:
        """Of each example the positive, then the negatives that this step reads."""
        made = []
        for item in items:
            example = self.examples[item]
            count = min(self.negatives, len(example.negatives))
            drawn = np.random.default_rng([self.seed, step, item]).permutation(len(example.negatives))[:count]
            made.append([example.positive, *(example.negatives[at] for at in sorted(drawn.tolist()))])
        return made

    def gradient(self, items: list[int], step: int) -> float:
        lists = self.lists(items, step)
        queries = [self.examples[item].query for item in items]
        pairs = [(query, passage) for query, passages in zip(queries, lists, strict=True) for passage in passages]
        ids, types = self.tower.tokenize(pairs)
        rows = [_Row(row, types[at] if types is not None else None) for at, row in enumerate(ids)]
        self._longest = max(map(len, rows))
        tasks = None
        if self.method.TASKS:
            tasks = [self.examples[item].task for item, own in zip(items, lists, strict=True) for _ in own]
        present = torch.zeros(len(lists), max(map(len, lists)), dtype=torch.bool)  # (Q, C)
        for number, own in enumerate(lists):
            present[number, : len(own)] = True
        present = present.to(self.device)
        weights = torch.tensor([self.examples[item].weight for item in items], device=self.device)

        def embed(some: list[_Row], number: int) -> Tensor:
            told = None if some[0].types is None else [row.types for row in some if row.types is not None]
            with self.seeded(step, number):
                made: Tensor = self.tower([row.ids for row in some], told)
            return made.unsqueeze(1)  # (B, 1)

        def loss_of(made: Tensor) -> Tensor:
            scores = made.new_zeros(present.shape).masked_scatter(present, made[:, 0])  # (Q, C)
            return _LOSSES[self.kind](scores, present, weights)

        return self.backward(embed, rows, loss_of, tasks)
