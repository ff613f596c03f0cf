"""What judging a generated query needs to know about its words: copied stretches, emptiness, circles, language."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

from ragadapt.queries.text import content_terms, words

_ENGLISH = frozenset(
    "the of to and is are how what why which does do can my with for when should you it this that".split()  # noqa: SIM905
)
_EUROPEAN = frozenset(  # hardly ever in English text
    """der das und ist nicht mit für auf von zu dem den ein eine einer ich wie wir sie wird wurde kann oder bei nach es
    zum le les des et est une du dans pour que qui je nous vous pas sur il au aux comment
    el los las una y por para cómo qué se del mi su
    il gli della che di non sono come è""".split()  # noqa: SIM905
)
_GENERIC = frozenset(  # stems of words that need a context: "What is the main purpose of this section?"
    content_terms(
        "purpose main goal topic point subject meaning importance important benefit key information details example "
        "difference section passage text article document page author following mentioned described mean work happen "
        "explain describe name type kind part different available thing problem question answer feature sure know "
        "help way time good better best understand issue trouble need want try look find something anything "
        "everything people"
    )
)


def copied_run(query: str, passage: str) -> int:
    """The length in words of the longest stretch of the passage that the query repeats."""
    read = words(passage)
    longest, previous = 0, [0] * (len(read) + 1)
    for word in words(query):
        current = [0] * (len(read) + 1)
        for column, other in enumerate(read, start=1):
            if word == other:
                current[column] = previous[column - 1] + 1
                longest = max(longest, current[column])
        previous = current
    return longest


def is_vague(text: str) -> bool:
    """True if nothing in the query says what it is about."""
    return not (set(content_terms(text)) - _GENERIC)


def is_degenerate(text: str) -> bool:
    """True if the words go round in circles, as a small model's do when it is lost."""
    said = words(text)
    if any(a == b == c for a, b, c in zip(said, said[1:], said[2:])):
        return True
    if len(said) < 6:
        return False
    _, most = Counter(said).most_common(1)[0]
    return len(set(said)) / len(said) < 0.5 or most > max(3, len(said) // 3)


def script(text: str) -> str:
    """The script of most letters, e.g. "LATIN", "CYRILLIC", "CJK"; "" without letters."""
    counts = Counter(_script_of(character) for character in text[:2000] if character.isalpha())
    return counts.most_common(1)[0][0] if counts else ""


def has_script(text: str, name: str) -> bool:
    return any(character.isalpha() and _script_of(character) == name for character in text)


def function_word_shares(text: str) -> tuple[float, float]:
    """The share of English function words among all words, and that of German, French, Spanish and Italian ones."""
    said = words(text)
    if not said:
        return 0.0, 0.0
    return sum(word in _ENGLISH for word in said) / len(said), sum(word in _EUROPEAN for word in said) / len(said)


def is_english(text: str) -> bool:
    """True for Latin script unless another language's function words outnumber the English ones: code and headings
    without any are taken for English."""
    english, other = function_word_shares(text)
    return script(text) == "LATIN" and english >= other


def is_clearly_english(text: str) -> bool | None:
    """None where too few function words speak either way."""
    english, other = function_word_shares(text)
    if max(english, other) < 0.1 or min(english, other) > max(english, other) / 2:
        return None
    return english > other


@lru_cache(maxsize=8192)
def _script_of(character: str) -> str:
    name = unicodedata.name(character, "").split(" ")[0].split("-")[0]
    return "CJK" if name in {"CJK", "HIRAGANA", "KATAKANA"} else name
