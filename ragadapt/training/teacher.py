"""A cross-encoder as the teacher: one score for every pair of a query and a passage that it reads together."""

from __future__ import annotations

from collections.abc import Sequence

from ragadapt.config import EncoderConfig
from ragadapt.errors import InvalidConfiguration, InvalidInput, ModelNotFound
from ragadapt.rerank import Reranker
from ragadapt.values import Progress, no_progress


def cross_encoder_scores(
    name: str,
    lists: Sequence[tuple[str, Sequence[str]]],
    config: EncoderConfig,
    *,
    progress: Progress = no_progress,
) -> list[tuple[float, ...]]:
    """For every (query, passages) one score a passage: the cross-encoder's logit, larger is better.

    Logits, not the sigmoid of them that most cross-encoders give by themselves: near 0 and 1 it tells passages no
    longer apart. name: a preset of the re-rankers, a name on the hub, or a folder. The device is the encoder's, and so
    is the permission to run code that comes with a model. In float32: what is learnt should not depend on the machine.
    Pairs that come twice are scored once. Raises ModelNotFound, InvalidConfiguration.
    """
    if not any(passages for _, passages in lists):
        return [() for _ in lists]
    try:
        model = Reranker.load(
            name, device=config.device, precision="float32", trust_remote_code=config.trust_remote_code
        )
    except ModelNotFound as error:
        raise ModelNotFound(
            f"mining.teacher: {error} Or leave it out: the hybrid of BM25 and the base model then teaches and needs no "
            "network."
        ) from error
    except InvalidInput as error:
        raise InvalidConfiguration(f"mining.teacher: {error}") from error
    scores = model.logits_of(lists, progress=lambda _, done, total: progress("teacher", done, total))
    return [tuple(scored.tolist()) for scored in scores]
