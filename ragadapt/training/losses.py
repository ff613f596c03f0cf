"""Losses as pure functions of tensors. Scores are inner products of unit vectors, larger is better.

Letters: Q queries in the batch, P distinct passages in the batch, C candidates per query, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_TINY = 1e-6


def info_nce(scores: Tensor, positives: Tensor, excluded: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each query's positive among the batch's passages (van den Oord et al. 2018).

    scores: (Q, P). positives: (Q,) column of the positive. excluded: (Q, P) bool, passages that are no
    negatives of a query because they are known to answer it or stand in its group; a positive's own column is
    never excluded. weights: (Q,). Returns the weighted mean.
    """
    own = F.one_hot(positives, scores.shape[1]).bool()  # (Q, P)
    logits = (scores / temperature).masked_fill(excluded & ~own, float("-inf"))
    losses = F.cross_entropy(logits, positives, reduction="none")  # (Q,)
    return (losses * weights).sum() / weights.sum()


def distillation(scores: Tensor, teacher: Tensor, present: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """List-wise KL(teacher || student) over each query's candidates.

    scores: (Q, C) of the student. teacher: (Q, C), any scale. present: (Q, C) bool, False = padding.
    Teacher scores come on scales of their own (BM25, logits of a cross-encoder), so each list is standardised
    and given the spread that the student's logits have over the batch: a fixed teacher temperature makes the
    target nearly one-hot for one teacher and flat for another. The spread is not differentiated. Lists with
    fewer than two candidates say nothing and count nothing. `temperature` divides the student's scores only; through
    that spread the target is as sharp as the student's own distribution at this temperature.
    """
    usable = present.sum(dim=1) >= 2  # (Q,)
    if not bool(usable.any()):
        return scores.sum() * 0.0
    scores, teacher, present, weights = scores[usable], teacher[usable], present[usable], weights[usable]
    logits = scores / temperature  # (Q, C)
    spread = _spread(logits.detach(), present).mean()
    target = _standardised(teacher.float(), present) * spread
    hidden = ~present
    log_student = F.log_softmax(logits.masked_fill(hidden, float("-inf")), dim=1)
    log_teacher = F.log_softmax(target.masked_fill(hidden, float("-inf")), dim=1)
    gaps = (log_teacher - log_student).masked_fill(hidden, 0.0)
    losses = (log_teacher.exp() * gaps).sum(dim=1)  # (Q,)
    return (losses * weights).sum() / weights.sum()


def margin_mse(scores: Tensor, teacher: Tensor, present: Tensor, weights: Tensor) -> Tensor:
    """Squared error of score margins to each query's first candidate (Hofstätter et al. 2020).

    Shapes as in `distillation`; the first candidate is the positive. Both sides are taken as they are: the
    teacher's scores must be on the student's scale (`ragadapt.pipeline.adapt.make_examples` brings them there).
    """
    student_margin = scores[:, :1] - scores  # (Q, C)
    teacher_margin = teacher[:, :1] - teacher
    counted = present.clone()
    counted[:, 0] = False
    squared = ((student_margin - teacher_margin) ** 2).masked_fill(~counted, 0.0)
    per_query = squared.sum(dim=1) / counted.sum(dim=1).clamp_min(1)  # (Q,)
    usable = weights * (counted.any(dim=1) & present[:, 0])
    return (per_query * usable).sum() / usable.sum().clamp_min(_TINY)


def list_softmax(scores: Tensor, present: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of finding each list's first passage, which answers its query (Cao et al. 2007, ListNet's top one).

    scores: (Q, C) of a re-ranker, on any scale. present: (Q, C) bool, False = padding. weights: (Q,). Returns the
    weighted mean.
    """
    found = F.log_softmax(scores.masked_fill(~present, float("-inf")), dim=1)[:, 0]  # (Q,)
    return -(found * weights).sum() / weights.sum()


def list_bce(scores: Tensor, present: Tensor, weights: Tensor) -> Tensor:
    """Binary cross-entropy of every passage by itself: the first of a list answers its query, the others do not.

    Shapes as in `list_softmax`. The answer counts as much as the others together: else the first thing to be learnt is
    that most passages are none.
    """
    wanted = torch.zeros_like(scores)
    wanted[:, 0] = 1.0
    each = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none").masked_fill(~present, 0.0)
    others = (present.sum(dim=1) - 1).clamp_min(1)  # (Q,)
    losses = (each[:, 0] + each[:, 1:].sum(dim=1) / others) / 2
    return (losses * weights).sum() / weights.sum()


def combined(parts: list[tuple[float, Tensor]]) -> Tensor:
    """Weighted sum of losses."""
    return torch.stack([weight * loss for weight, loss in parts]).sum()


def _spread(values: Tensor, present: Tensor) -> Tensor:
    """(Q,) standard deviation of each row's present values."""
    count = present.sum(dim=1).clamp_min(1)
    mean = values.masked_fill(~present, 0).sum(dim=1) / count
    squared = ((values - mean[:, None]) ** 2).masked_fill(~present, 0).sum(dim=1) / count
    return squared.clamp_min(_TINY**2).sqrt()


def _standardised(values: Tensor, present: Tensor) -> Tensor:
    """(Q, C) each row's present values with mean 0 and deviation 1; a constant row becomes zeros."""
    count = present.sum(dim=1).clamp_min(1)
    mean = values.masked_fill(~present, 0).sum(dim=1) / count
    return (values - mean[:, None]) / _spread(values, present)[:, None]
