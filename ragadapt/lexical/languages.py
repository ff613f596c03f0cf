"""Which languages documents are written in: py3langid on their prose, without addresses, code and markup."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

UNKNOWN = "unknown"
"""Too little prose to tell: code, tables, names, a few words."""

_NAMES = {
    "af": "Afrikaans", "ar": "Arabic", "az": "Azerbaijani", "be": "Belarusian", "bg": "Bulgarian", "bn": "Bengali",
    "bs": "Bosnian", "ca": "Catalan", "cs": "Czech", "cy": "Welsh", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "et": "Estonian", "eu": "Basque", "fa": "Persian", "fi": "Finnish",
    "fr": "French", "ga": "Irish", "gl": "Galician", "gu": "Gujarati", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian",
    "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "is": "Icelandic", "it": "Italian", "ja": "Japanese",
    "ka": "Georgian", "kk": "Kazakh", "km": "Khmer", "kn": "Kannada", "ko": "Korean", "lo": "Lao", "lt": "Lithuanian",
    "lv": "Latvian", "mk": "Macedonian", "ml": "Malayalam", "mn": "Mongolian", "mr": "Marathi", "ms": "Malay",
    "my": "Burmese", "ne": "Nepali", "nl": "Dutch", "nn": "Norwegian", "no": "Norwegian", "pa": "Punjabi",
    "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "si": "Sinhala", "sk": "Slovak",
    "sl": "Slovenian", "sq": "Albanian", "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil",
    "te": "Telugu", "th": "Thai", "tl": "Tagalog", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek",
    "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
_SAMPLE = 500  # passages
_READ = 2000  # characters of a passage
_BLOCK = 300  # letters to which short passages are joined: a line alone tells little
_LEAST = {True: 20, False: 8}  # letters of a text in Latin script, and in others, which say more
_SURE = 0.6  # probability; below, the text is of several languages or of none

_NOT_PROSE = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`"  # code
    r"|<!--.*?-->|<[^<>\n]{1,300}>"  # markup
    r"|\]\([^()\s]*\)|\b[a-z][a-z+.-]*://[!-~]+|\bwww\.[!-~]+"  # addresses
    r"|[!-~]*[/\\_=<>(){}\[\]#$%^&*|~@][!-~]*|\b[!-~]*\w[.:]+\w[!-~]*",  # mail, paths, names of programs
    re.IGNORECASE | re.DOTALL,
)
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SYMBOLS = re.compile(r"[=<>(){}\[\];#$%^&*|~@\\/_+]")


def languages_of(passages: Sequence[str]) -> dict[str, float]:
    """Language → share of the letters, the commonest first; from an even sample of the passages.

    Shares count letters and not passages, and short passages are joined before they are judged: what a corpus of rows
    is written in is known as well. UNKNOWN stands for what is no prose.
    """
    step = -(-len(passages) // _SAMPLE) if passages else 1
    letters: Counter[str] = Counter()
    waiting: list[str] = []
    held = 0
    for text in passages[::step]:
        count = sum(map(str.isalpha, text[:_READ]))
        language = language_of(text)
        if language and (language != UNKNOWN or count >= _BLOCK):
            letters[language] += count
        elif language:
            waiting.append(text)
            held += count
            if held >= _BLOCK:
                letters[language_of("\n".join(waiting))] += held
                waiting, held = [], 0
    if waiting:
        letters[language_of("\n".join(waiting))] += held
    total = letters.total()
    return {name: count / total for name, count in letters.most_common() if name} if total else {}


def language_of(text: str) -> str:
    """The language of a text by its English name; UNKNOWN where it cannot be told, "" where it has no letters."""
    text = text[:_READ]
    if not any(map(str.isalpha, text)):
        return ""
    words = _WORD.findall(" \n".join(_prose(text)))
    latin = [word for word in words if _is_latin(word)]
    others = [word for word in words if not _is_latin(word)]
    # Foreign words in Latin letters stand in texts of every script, so a third of another script decides.
    if _length(others) >= (_length(others) + _length(latin)) / 3 and others:
        words = others
    else:
        words = latin
    if _length(words) < _LEAST[words is latin]:
        return UNKNOWN
    return _identified(" ".join(words))


def foreign_share(languages: Mapping[str, float]) -> float:
    """Share of the text that is clearly not in English."""
    return sum(share for name, share in languages.items() if name not in ("English", UNKNOWN))


def _identified(prose: str) -> str:
    import py3langid

    ranked = {code: score for code, score in py3langid.rank(prose) if code in _NAMES or code == "zxx"}
    best = max(ranked, key=lambda code: ranked[code])
    # The library's own scale: log-likelihoods over the root of the length make probabilities that can be trusted.
    root = math.sqrt(len(prose.encode("utf-8")))
    shares: Counter[str] = Counter()
    for code, score in ranked.items():
        shares[_NAMES.get(code, UNKNOWN)] += math.exp((score - ranked[best]) / root)  # type: ignore[assignment]
    name, share = shares.most_common(1)[0]
    return name if share / sum(shares.values()) >= _SURE else UNKNOWN


def _prose(text: str) -> Iterable[str]:
    """The lines that are sentences more than code, without what is no word in them."""
    for line in _NOT_PROSE.sub(" ", text).splitlines():
        letters = sum(map(str.isalpha, line))
        if letters and len(_SYMBOLS.findall(line)) <= letters / 12:
            yield line


def _is_latin(word: str) -> bool:
    return word.isascii() or unicodedata.name(word[0], "").startswith("LATIN")


def _length(words: Iterable[str]) -> int:
    return sum(map(len, words))
