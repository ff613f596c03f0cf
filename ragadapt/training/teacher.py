"""A cross-encoder as the teacher: one score for every pair of a query and a passage that it reads together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ragadapt.config import EncoderConfig
from ragadapt.encoder.loading import quiet
from ragadapt.encoder.precision import choose_device
from ragadapt.errors import InvalidConfiguration, ModelNotFound, reason_of
from ragadapt.profiling import work
from ragadapt.values import Progress, no_progress

if TYPE_CHECKING:  # imported where it is used: it takes seconds
    from sentence_transformers import CrossEncoder

_PAIRS = 1024  # sorted by length and scored between two reports of progress
_TRAINED_HEADS = ("ForSequenceClassification", "ForCausalLM")


def cross_encoder_scores(
    name: str,
    lists: Sequence[tuple[str, Sequence[str]]],
    config: EncoderConfig,
    *,
    progress: Progress = no_progress,
) -> list[tuple[float, ...]]:
    """For every (query, passages) one score a passage: the cross-encoder's logit, larger is better.

    Logits, not the sigmoid of them that most cross-encoders give by themselves: near 0 and 1 it tells passages no
    longer apart. name: on the hub, or a folder. The device is the encoder's, and so is the permission to run code that
    comes with a model. Pairs that come twice are scored once. Raises ModelNotFound, InvalidConfiguration.
    """
    pairs = list(dict.fromkeys((query, passage) for query, passages in lists for passage in passages))
    if not pairs:
        return [() for _ in lists]
    model = _open(name, config)
    score_of: dict[tuple[str, str], float] = {}
    for start in range(0, len(pairs), _PAIRS):
        block = pairs[start : start + _PAIRS]
        with work("teacher", len(block)):
            scores = model.predict(block, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        score_of |= zip(block, scores.tolist(), strict=True)
        progress("teacher", start + len(block), len(pairs))
    return [tuple(score_of[query, passage] for passage in passages) for query, passages in lists]


def _open(name: str, config: EncoderConfig) -> CrossEncoder:
    from sentence_transformers import CrossEncoder

    folder = Path(name).expanduser()
    options: dict[str, Any] = {
        "device": choose_device(config.device),
        "trust_remote_code": config.trust_remote_code,
        "model_kwargs": {"dtype": torch.float32},
    }
    try:
        with quiet():
            model: CrossEncoder = CrossEncoder(str(folder) if folder.is_dir() else name, **options)
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        raise ModelNotFound(
            f"The teacher {name!r} cannot be loaded: {reason_of(error)}. Check the name and the network, give "
            "mining.teacher the folder of a sentence-transformers CrossEncoder, or leave it out: the hybrid of BM25 "
            "and the base model then teaches and needs no network."
        ) from error
    if model.num_labels != 1 or not _has_trained_head(model):
        raise InvalidConfiguration(
            f"mining.teacher = {name!r}: this model gives no score for a pair of texts that it was trained to give "
            f"({model.num_labels} numbers a pair). Name a cross-encoder, also called a re-ranker, with one score."
        )
    return model


def _has_trained_head(model: CrossEncoder) -> bool:
    """False for an encoder of single texts, on which sentence-transformers puts a head of random weights."""
    if len(list(model.children())) != 1:
        return True  # modules of its own beside the transformer, saved with it
    heads = getattr(model.config, "architectures", None) or ()
    return not heads or any(head.endswith(_TRAINED_HEADS) for head in heads)
