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
from torch import Tensor, nn

from ragadapt.config import AdapterConfig, RerankLoss, TrainingConfig
from ragadapt.encoder.batches import Ids, padded_length
from ragadapt.errors import InvalidConfiguration, InvalidInput
from ragadapt.rerank.adapted import AdaptedReranker
from ragadapt.rerank.late_interaction import SIDES, LateInteraction, Task, TokenRow, TokenTower
from ragadapt.rerank.pairs import PairTower
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
    kind = _TokenRun if isinstance(base, LateInteraction) else _PairRun
    run = kind(base, examples, adapter, training, loss, negatives, fresh, seed)
    log.info("method %s trains %s", adapter.method, run.model.share)
    return RerankerTrainingResult(reranker=run.model, **vars(run.follow(dev, checkpoint, progress)))


def check_loss(base: Reranker, loss: RerankLoss) -> None:
    """Raises InvalidConfiguration for a loss by which a re-ranker of this kind does not learn."""
    if loss == "pointwise" and isinstance(base, LateInteraction):
        raise InvalidConfiguration(
            "rerank.loss = 'pointwise' asks whether a passage answers, and MaxSim, a sum over the tokens of the "
            "question, only says which one does so best. Train a multi-vector model with rerank.loss = 'listwise'."
        )


class _Row:
    """A pair's token ids, and which text each is of."""

    __slots__ = ("ids", "types")

    def __init__(self, ids: Ids, types: Ids | None) -> None:
        self.ids, self.types = ids, types

    def __len__(self) -> int:
        return len(self.ids)


class _ListRun(Run[AdaptedReranker]):
    """The training of a re-ranker: the loss within each query's list."""

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
        check_loss(base, loss)
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

    def present(self, lists: Sequence[Sequence[str]]) -> Tensor:
        """(Q, C) bool, False = padding."""
        present = torch.zeros(len(lists), max(map(len, lists)), dtype=torch.bool)
        for number, own in enumerate(lists):
            present[number, : len(own)] = True
        return present.to(self.device)

    def weights_of(self, items: Sequence[int]) -> Tensor:
        """(Q,)"""
        return torch.tensor([self.examples[item].weight for item in items], device=self.device)


class _PairRun(_ListRun):
    """That of a cross-encoder: scores of pairs."""

    tower: PairTower

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
        present, weights = self.present(lists), self.weights_of(items)

        def embed(some: list[_Row], number: int) -> Tensor:
            told = None if some[0].types is None else [row.types for row in some if row.types is not None]
            with self.seeded(step, number):
                made: Tensor = self.tower([row.ids for row in some], told)
            return made.unsqueeze(1)  # (B, 1)

        def loss_of(made: Tensor) -> Tensor:
            scores = made.new_zeros(present.shape).masked_scatter(present, made[:, 0])  # (Q, C)
            return _LOSSES[self.kind](scores, present, weights)

        return self.backward(embed, rows, loss_of, tasks)


class _Text:
    """A query's or a passage's tokens."""

    __slots__ = ("row", "side")

    def __init__(self, row: TokenRow, side: Task) -> None:
        self.row, self.side = row, side

    def __len__(self) -> int:
        return len(self.row)


class _TokenRun(_ListRun):
    """That of a multi-vector model: token vectors of queries and passages, MaxSim as the score.

    MaxSim is a sum over the query's tokens here, also for a model that gives their mean: the order within a list is the
    same, and the softmax sees differences of a size that it can learn from.
    """

    tower: TokenTower

    def gradient(self, items: list[int], step: int) -> float:
        lists = self.lists(items, step)
        tasks = [self.examples[item].task if self.method.TASKS else None for item in items]
        asked = list(zip(tasks, (self.examples[item].query for item in items), strict=True))
        found = [[(task, passage) for passage in own] for task, own in zip(tasks, lists, strict=True)]
        texts = list(dict.fromkeys(one for own in found for one in own))  # one that is in several lists is read once
        rows = [_Text(row, "query") for row in self.tower.rows([query for _, query in asked], "query")]
        rows += [_Text(row, "document") for row in self.tower.rows([text for _, text in texts], "document")]
        self._longest = max(map(len, rows))
        row_of = {one: len(asked) + at for at, one in enumerate(texts)}
        present, weights, width = self.present(lists), self.weights_of(items), padded_length(self._longest)
        passages = torch.zeros(present.shape, dtype=torch.long)  # (Q, C)
        for number, own in enumerate(found):
            passages[number, : len(own)] = torch.tensor([row_of[one] for one in own])
        passages = passages.to(self.device)

        def embed(some: list[_Text], number: int) -> Tensor:
            made: dict[int, Tensor] = {}
            with self.seeded(step, number):
                for side in SIDES:
                    own = [at for at, text in enumerate(some) if text.side == side]
                    if own:
                        vectors, counts = self.tower([some[at].row for at in own], side)  # (b, T, d), (b, T)
                        told = torch.cat([vectors, counts.unsqueeze(-1).to(vectors.dtype)], dim=-1)
                        told = nn.functional.pad(told, (0, 0, 0, width - told.shape[1]))  # (b, width, d + 1)
                        made.update(zip(own, told.flatten(1), strict=True))
            return torch.stack([made[at] for at in range(len(some))])  # (B, width · (d + 1))

        def loss_of(made: Tensor) -> Tensor:
            vectors = made.view(len(rows), width, -1)  # (n, T, d + 1)
            scores = torch.stack([_max_sim(vectors[at], vectors[own]) for at, own in enumerate(passages)])  # (Q, C)
            return _LOSSES[self.kind](scores, present, weights)

        return self.backward(
            embed, rows, loss_of, [*tasks, *(task for task, _ in texts)] if self.method.TASKS else None
        )


def _max_sim(query: Tensor, passages: Tensor) -> Tensor:
    """(C,) MaxSim of (T, d + 1) with (C, T, d + 1) vectors, whose last number says whether a token counts."""
    q, p = query[query[:, -1] > 0, :-1], passages[..., :-1]
    similar = torch.einsum("sd,ctd->cst", q, p)  # (C, S, T)
    similar = similar.masked_fill(~(passages[..., -1] > 0).unsqueeze(1), torch.finfo(similar.dtype).min)
    return similar.amax(dim=-1).sum(dim=-1)
