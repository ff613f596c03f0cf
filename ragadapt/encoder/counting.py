"""How many tokens texts have: a word that was counted once is not tokenised again.

Cutting counts the same text several times, whole, in blocks and as passages, and nine words of ten were met before.
Where a tokenizer never looks past the white space between two words, a text has as many tokens as its words together.
That is so of BERT's WordPiece, and of byte-level BPE with the patterns below: none of them has a part that goes on over
a single space between two other characters, or that looks at what stands before it. Other tokenizers read whole texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from ragadapt.encoder.tokens import backend_of, encode

_CHARACTERS = 500_000  # of texts that are taken apart together: bounds the memory of their words
_MOST_WORDS = 200_000  # that are remembered: some 25 MB
_LONGEST_WORD = 40  # that is remembered; beyond it are hashes, addresses and clauses without spaces
_SPARSE = 16  # characters a word from which a text has too few spaces to be taken apart

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = (rf"{_LETTERS}\p{{N}}{_REST}", rf"{_LETTERS}\p{{N}}{{1,3}}{_REST}")
"""Of the Qwen and the Llama 3 line. The pattern that ByteLevel has of itself is GPT-2's."""

# White space to str.split, and not to BERT: control characters, which it drops, joining what stands around them.
_JOINED_BY_BERT = re.compile("[\x0b\x0c\x1c-\x1f\x85]")
# Most of the characters around which BERT puts spaces; those left out go with their neighbours.
_IDEOGRAPH = re.compile("[\u4e00-\u9fff]")
_IDEOGRAPHS_APART = re.compile(r"[\u4e00-\u9fff]|[^\s\u4e00-\u9fff]+")
_SINGLE_SPACE = re.compile(r"(?<=\S) (?=\S)")
_BESIDE_SPACE = re.compile(r" \s|[^\S ] ")

Split = Callable[[str], list[str] | None]
"""The words of a text, the spaces before them left out; None for a text that must be read whole."""


class TokenCounter:
    """Counts tokens of texts, uncut and without special tokens, and remembers words. One thread at a time."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._first: dict[str, int] = {}  # of a word at the start of a text
        self._later: dict[str, int] = {}  # of a word after a space
        backend = backend_of(tokenizer)
        self._split, self._space = (None, "") if backend is None else _words_of(backend)
        if not self._space:
            self._later = self._first

    def __call__(self, texts: Sequence[str]) -> list[int]:
        if self._split is None or not self._uncut():
            return self._whole(texts)
        counts: list[int] = []
        for some in _portions(texts):
            counts += self._by_words(some, self._split)
        return counts

    def _uncut(self) -> bool:
        """Whether whole texts are neither cut nor padded: a bare `tokenizers.Tokenizer` may be set to do so."""
        bare = self.tokenizer if isinstance(self.tokenizer, Tokenizer) else None
        return bare is None or (bare.truncation is None and bare.padding is None)

    def _whole(self, texts: Sequence[str]) -> list[int]:
        encodings = encode(self.tokenizer, list(texts), special_tokens=False)
        if encodings is not None:
            return [len(one) for one in encodings]
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [len(row) for row in encoded["input_ids"]]

    def _by_words(self, texts: Sequence[str], split: Split) -> list[int]:
        if len(self._first) + len(self._later) > _MOST_WORDS:
            self._first.clear()
            self._later.clear()
        parts = [split(text) for text in texts]
        whole = [text for text, words in zip(texts, parts, strict=True) if words is None]
        # set.difference of a dict looks the words up; set minus its keys would walk all that is remembered.
        first = {words[0] for words in parts if words}.difference(self._first)
        later: set[str] = set().union(*(words for words in parts if words)).difference(self._later)
        if self._later is self._first:
            first.clear()
        asked = [*whole, *first, *(self._space + word for word in later)]
        made = iter(self._whole(asked) if asked else ())
        of_whole = [next(made) for _ in whole]
        self._first.update((word, next(made)) for word in first)
        self._later.update((word, next(made)) for word in later)
        unread = iter(of_whole)
        count = self._later.__getitem__
        counts = [next(unread) if words is None else sum(map(count, words)) for words in parts]
        if self._later is not self._first:
            for at, words in enumerate(parts):
                if words:
                    counts[at] += self._first[words[0]] - count(words[0])
        for known, new in ((self._first, first), (self._later, later)):
            for word in new:
                if len(word) > _LONGEST_WORD:
                    del known[word]
        return counts


def _portions(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start = size = 0
    for place, text in enumerate(texts):
        size += len(text)
        if size >= _CHARACTERS:
            yield texts[start : place + 1]
            start, size = place + 1, 0
    if start < len(texts):
        yield texts[start:]


def _words_of(backend: Tokenizer) -> tuple[Split | None, str]:
    """(how a text is taken apart, what stands before every word but the first); (None, "") where it must not be."""
    added = list(backend.get_added_tokens_decoder().values())
    if isinstance(backend.model, models.WordPiece):
        normalizer = backend.normalizer
        bert = isinstance(backend.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        if bert and isinstance(normalizer, normalizers.BertNormalizer) and all(map(_stays_in_a_word, added)):
            return (_with_ideographs_apart if normalizer.handle_chinese_chars else _between_white_space), ""
    elif isinstance(backend.model, models.BPE) and backend.model.dropout is None:
        plain = backend.normalizer is None or isinstance(backend.normalizer, normalizers.NFC)
        if plain and _is_byte_level(backend.pre_tokenizer) and all(map(_keeps_spaces, added)):
            return _between_single_spaces, " "
    return None, ""


def _stays_in_a_word(token: AddedToken) -> bool:
    """Whether BERT finds an added token in a word as in the whole text, ideographs parted from it or not."""
    return token.content.isascii() and not re.search(r"\s", token.content) and not token.single_word


def _keeps_spaces(token: AddedToken) -> bool:
    """Whether an added token takes no single space between two words, nor the one after it."""
    return not token.rstrip and (" " not in token.content or (len(token.content) > 1 and token.content.isspace()))


def _is_byte_level(pre_tokenizer: Any) -> bool:
    if not isinstance(pre_tokenizer, pre_tokenizers.ByteLevel | pre_tokenizers.Sequence):
        return False
    told = json.loads(pre_tokenizer.__getstate__())
    *before, last = told["pretokenizers"] if told["type"] == "Sequence" else [told]
    if last["type"] != "ByteLevel":
        return False
    if not before:
        return bool(last.get("use_regex", True))
    (split, *more) = before
    return (
        not more
        and not last.get("use_regex", True)
        and split["type"] == "Split"
        and split["pattern"].get("Regex") in _PATTERNS
        and split["behavior"] == "Isolated"
        and not split["invert"]
    )


def _with_ideographs_apart(text: str) -> list[str] | None:
    if text.isascii() or not _IDEOGRAPH.search(text):
        return _between_white_space(text)
    return None if _JOINED_BY_BERT.search(text) else _IDEOGRAPHS_APART.findall(text)


def _between_white_space(text: str) -> list[str] | None:
    words = text.split()
    return None if len(text) > _SPARSE * (len(words) + 1) or _JOINED_BY_BERT.search(text) else words


def _between_single_spaces(text: str) -> list[str] | None:
    """Parted at single spaces between two characters that are no white space. Other white space stays in the words."""
    plain = text[:1] != " " and text[-1:] != " " and not _BESIDE_SPACE.search(text)
    words = text.split(" ") if plain else _SINGLE_SPACE.split(text)
    return None if len(text) > _SPARSE * (len(words) + 1) else words
