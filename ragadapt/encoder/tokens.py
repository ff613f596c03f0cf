"""Tokens of many texts where nobody asks which characters they stand for: ids, or only how many there are.

`tokenizers` gives the same ids in less time where it need not keep offsets. transformers always has them kept, so its
tokenizers' backends are called here, set as it would set them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Encoding, Tokenizer
from tokenizers.processors import BertProcessing, RobertaProcessing, TemplateProcessing

_CALL = (
    "__call__",
    "_call_one",
    "_encode_plus",
    "_batch_encode_plus",
    "_convert_encoding",
    "_get_padding_truncation_strategies",
    "_switch_to_input_mode",
    "set_truncation_and_padding",
)
"""What transformers runs between a text and its ids, in one version or another."""


def encode(
    tokenizer: Any, texts: list[Any], *, max_length: int | None = None, special_tokens: bool = True
) -> list[Encoding] | None:
    """The encodings of texts, or of (text, text) pairs: their ids as the tokenizer itself gives them, no offsets.

    max_length: where texts are cut, special tokens included; None = nowhere. Returns None for a tokenizer that does
    more than hand texts to a backend: call that itself.
    """
    backend = backend_of(tokenizer, max_length)
    return None if backend is None else backend.encode_batch_fast(texts, add_special_tokens=special_tokens)


def backend_of(tokenizer: Any, max_length: int | None = None) -> Tokenizer | None:
    """What encodes for a tokenizer, cutting at max_length (None = nowhere) and not padding; None where more is done.

    A transformers tokenizer is set as a call of it would set it. A bare `tokenizers.Tokenizer` stays as it is.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer if max_length is None else None
    cutting = getattr(tokenizer, "cutting", None)
    if cutting is not None:
        made: Tokenizer = cutting(max_length)
        return made
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer) or not _hands_on(tokenizer.__class__):
        return None
    from transformers.tokenization_utils_base import TruncationStrategy
    from transformers.utils.generic import PaddingStrategy

    cut = TruncationStrategy.DO_NOT_TRUNCATE if max_length is None else TruncationStrategy.LONGEST_FIRST
    tokenizer.set_truncation_and_padding(
        padding_strategy=PaddingStrategy.DO_NOT_PAD,
        truncation_strategy=cut,
        max_length=max_length,
        stride=0,
        pad_to_multiple_of=None,
        padding_side=None,
    )
    split: bool = tokenizer.split_special_tokens
    if backend.encode_special_tokens != split:
        backend.encode_special_tokens = split
    return backend


@cache
def _hands_on(kind: type) -> bool:
    """Whether tokenizers of this class only hand texts to the backend: it changes nothing of the way there."""
    from transformers import PreTrainedTokenizerFast

    return issubclass(kind, PreTrainedTokenizerFast) and all(
        getattr(kind, name, None) is getattr(PreTrainedTokenizerFast, name, None) for name in _CALL
    )


def tells_texts_apart(backend: Tokenizer) -> bool:
    """Whether the type ids of a pair are right without offsets too: the post-processor sets them. Before it, without
    offsets, all are 0."""
    return isinstance(backend.post_processor, BertProcessing | RobertaProcessing | TemplateProcessing)
