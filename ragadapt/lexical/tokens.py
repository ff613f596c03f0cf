"""Text → words for the lexical index: folded, split at every joint, stemmed.

A word is indexed whole and in parts. `getUserName`, `get_user_name`, `get-user-name` and `get.user.name` all
give the same four tokens, `getusernam get user name`. The whole is spelled without joints, so that "e-mail"
meets "email" and "data_base" meets "database"; the parts let a question in plain words find an identifier.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from ragadapt.errors import InvalidInput
from ragadapt.lexical.stopwords import STOPWORDS
from ragadapt.text import searchable

MAX_WORD = 64  # characters; longer "words" are base64, hashes, minified code: their parts are kept, not the whole
MAX_PARTS = 8  # joints; beyond it a compound is a path or a data row, and its whole would never be asked for

# Scripts written without spaces, and Hangul, whose words carry endings that no stemmer here knows: bigrams.
_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # Japanese syllables and iteration marks
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\uac00-\ud7a3"  # Hangul
)
# A joint binds two word characters: user_name, well-known, os.path, c'est. Numbers keep "." and "," inside.
_JOINTS = "_.'’-"
_LETTERS_WITHOUT_MARKS = str.maketrans(
    {"ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe",
     "Œ": "OE", "ı": "i", "‐": "-", "‑": "-", "ʼ": "'", "\u00ad": "", "™": " ", "®": " ", "©": " "}
)  # fmt: skip

_ASCII_WORD = re.compile(r"[0-9]+(?:[.,][0-9]+)+(?![A-Za-z0-9_])|[A-Za-z0-9]+(?:[_.'-]+[A-Za-z0-9]+)*(?:\+\+|#)?")
_NUMBER = re.compile(r"[0-9]+(?:[.,][0-9]+)+")
# camelCase → camel Case, HTTPServer → HTTP Server
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# utf8 → utf 8, md5hash → md5 hash; p53, cd4, 3d stay: one or two letters mean nothing without their number.
_DIGIT_JOINT = re.compile(r"(?<=[^\W\d_]{3})(?=\d)|(?<=\d)(?=[^\W\d_]{3})")
_APOSTROPHE_TAILS = frozenset({"s", "t", "d", "m", "ll", "re", "ve"})


class Word(NamedTuple):
    """What one raw word adds to a text: its tokens, and the number of word positions it fills.

    A compound fills one position although it makes several tokens, as in Lucene ("discount overlaps");
    otherwise a text full of links or identifiers would count as long and lose against plain prose.
    """

    tokens: tuple[str, ...]
    positions: int


def tokenise(
    texts: Sequence[str], language: str = "english", stopwords: frozenset[str] | None = None
) -> list[list[str]]:
    """The tokens of each text, in reading order, as the lexical index stores them.

    language: a Snowball language, which names the stemmer ("german", "french", …), or "none" for no stemming.
    stopwords: what is left out, folded and in small letters; None = `default_stopwords`. Raises InvalidInput for an
    unknown language.
    """
    if isinstance(texts, str):
        raise InvalidInput("tokenise got one string, it takes a sequence of texts. Pass [text].")
    analyse = word_analyser(language, stopwords)
    return [[token for word in words(text) for token in analyse(word).tokens] for text in texts]


def words(text: str) -> list[str]:
    """The raw words of a text, folded, not yet lower-cased or split; a run of an unspaced script is one word."""
    if text.isascii():
        return _ASCII_WORD.findall(text)
    return _word_pattern().findall(fold(searchable(text)))


def fold(text: str) -> str:
    """The text without diacritics and compatibility forms (é → e, ﬁ → fi, Ａ → A)."""
    text = unicodedata.normalize("NFKD", text.translate(_LETTERS_WITHOUT_MARKS))
    # Only Latin, Greek and Cyrillic marks go: Indic vowel signs and Japanese voicing marks carry meaning.
    return unicodedata.normalize("NFC", re.sub("[\u0300-\u036f]", "", text))


@lru_cache(maxsize=1)
def _word_pattern() -> re.Pattern[str]:
    # Python's \w leaves out combining marks, which would cut Hindi or Hebrew words at every vowel.
    marks = "".join(chr(code) for code in range(0x370, 0x10000) if unicodedata.category(chr(code))[0] == "M")
    letter = rf"(?:[^\W_{_UNSPACED}]|[{marks}])"
    return re.compile(rf"[{_UNSPACED}]+|[0-9]+(?:[.,][0-9]+)+(?!\w)|{letter}+(?:[{_JOINTS}]+{letter}+)*(?:\+\+|\#)?")


_IS_UNSPACED = re.compile(f"[{_UNSPACED}]")


def default_stopwords(language: str) -> frozenset[str]:
    """Lucene's short list under "english", else none: what indexes had before they kept a list of their own."""
    return STOPWORDS if language == "english" else frozenset()


def word_analyser(language: str = "english", stopwords: frozenset[str] | None = None) -> Callable[[str], Word]:
    """A function from one raw word to its tokens. It remembers words: a repeated one costs a look-up.

    language and stopwords: as in `tokenise`.
    """
    return _word_analyser(language, default_stopwords(language) if stopwords is None else stopwords)


@lru_cache(maxsize=8)
def _word_analyser(language: str, stopwords: frozenset[str]) -> Callable[[str], Word]:
    stem = _stemmer(language)

    @lru_cache(maxsize=250_000)
    def analyse(word: str) -> Word:
        if _IS_UNSPACED.match(word):
            grams = (word,) if len(word) == 1 else tuple(word[i : i + 2] for i in range(len(word) - 1))
            return Word(grams, len(grams))
        if _NUMBER.fullmatch(word):
            return Word(_number_tokens(word), 1)
        if word.isalpha() and (word.islower() or word.istitle() or word.isupper()):  # most words: no joints
            word = word.lower()
            return Word((), 0) if word in stopwords else Word((stem(word[:MAX_WORD]),), 1)
        parts = _parts(word)
        tokens = [part for part in parts if part not in stopwords]
        if len(parts) > 1:
            # A letter of a compound means nothing alone (e-mail, IL-6); the whole carries it.
            tokens = [part for part in tokens if len(part) > 1 or part.isdigit()]
            whole = "".join(parts)
            if len(parts) <= MAX_PARTS and len(whole) <= MAX_WORD:
                tokens.insert(0, whole)
        return Word(tuple(stem(token[:MAX_WORD]) for token in tokens), min(len(tokens), 1))

    return analyse


def _parts(word: str) -> list[str]:
    """The lower-cased pieces between a word's joints; possessives and elisions dropped."""
    symbol = word[-2:] if word.endswith("++") else word[-1:] if word.endswith("#") else ""
    if symbol and len(word) - len(symbol) <= 2:  # c++, c#, f#
        return [word.lower()]
    parts: list[str] = []
    for piece in re.split(r"[_.-]+", word.rstrip("+#")):
        *heads, tail = re.split("['’]+", piece)
        pieces = [head for head in heads if len(head) > 1 or not tail] if tail else heads
        if not heads or tail.lower() not in _APOSTROPHE_TAILS:
            pieces.append(tail)
        for plain in pieces:
            for hump in _HUMP.split(plain):
                parts.extend(_DIGIT_JOINT.split(hump.lower()))
    return parts


def _number_tokens(word: str) -> tuple[str, ...]:
    """1,250 → 1250; 3.11.2 → 3.11.2 and 3.11, so that a minor version finds its patches."""
    if "," in word:
        return (word.replace(",", ""),)
    numbers = word.split(".")
    return (word, ".".join(numbers[:2])) if len(numbers) > 2 else (word,)


def _stemmer(language: str) -> Callable[[str], str]:
    if language == "none":
        return lambda word: word
    import Stemmer

    if language not in Stemmer.algorithms():
        known = ", ".join(sorted(Stemmer.algorithms()))
        raise InvalidInput(f"There is no stemmer for {language!r}. Take one of: {known}, or none.")
    stem: Callable[[str], str] = Stemmer.Stemmer(language).stemWord
    return stem
