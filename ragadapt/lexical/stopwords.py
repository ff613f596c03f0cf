"""Which words the lexical index leaves out, by the language that the documents are written in."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ragadapt.lexical.languages import UNKNOWN

# Lucene's English list, which the published BM25 baselines use. Short on purpose: idf does the rest.
STOPWORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by for if in into is it no not of on or such that the their then there "
        "these they this to was will with",
    )
)
# What a question is asked with is rare in documents, so idf would take it for the most telling of its words.
QUESTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "i me my we our you your he she what which who when where why how do does did can could should would may "
        "might must am have has had been were so any some from than about",
    )
)
_LISTS = {
    "Danish": "DANISH", "Dutch": "DUTCH", "French": "FRENCH", "German": "GERMAN", "Italian": "ITALIAN",
    "Norwegian": "NORWEGIAN", "Portuguese": "PORTUGUESE", "Russian": "RUSSIAN", "Spanish": "SPANISH",
    "Swedish": "SWEDISH",
}  # fmt: skip
"""Language → list in bm25s; its Chinese and Korean ones are of words, and such scripts are indexed by pairs."""

_ALONE = 0.9  # share of the text whose language is known; below, a list could leave out what another language means


def stopwords_for(languages: Mapping[str, float]) -> frozenset[str]:
    """The stop words of a corpus with these languages (name → share of the letters, as `languages_of` gives them).

    The full list where nearly all of the text is in one language that has one: "must" is a question word in English and
    fruit juice in German. Elsewhere, in code without prose too, Lucene's short English list.
    """
    known = {name: share for name, share in languages.items() if name != UNKNOWN}
    name = max(known, key=lambda name: known[name], default=UNKNOWN)
    if not known or known[name] < _ALONE * sum(known.values()):
        return STOPWORDS
    if name == "English":
        return STOPWORDS | QUESTION_WORDS
    if name not in _LISTS:
        return STOPWORDS
    from ragadapt.lexical.ranking import bm25s
    from ragadapt.lexical.tokens import fold

    words: tuple[str, ...] = getattr(bm25s().stopwords, f"STOPWORDS_{_LISTS[name]}", ())
    return frozenset(fold(word.lower()) for word in words) or STOPWORDS


__all__ = ["QUESTION_WORDS", "STOPWORDS", "stopwords_for"]
