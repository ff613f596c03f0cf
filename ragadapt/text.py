"""Text as it comes in and goes out at every door: what can be stored, what can be shown, what has to stay secret."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from urllib.parse import parse_qsl, quote, urlsplit

KEY_VARIABLES = ("RAGADAPT_API_KEY", "OPENAI_API_KEY", "QDRANT_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""The environment's variables whose values are secret: what we, or a library for us, send to a server."""

HIDDEN = "***"
_SHORTEST_KEY = 6
_NO_KEYS = frozenset(("lm-studio", "no-key", "not-needed", "ollama", "unused"))  # what people set in place of one
_SECRET_NAME = (
    r"(?:[\w.-]*?[_.-])?(?:api[_-]?key|\w*key|\w*token|\w*secret|passw(?:or)?d|passphrase|pass|pwd|pat|auth|authorization"
    r"|bearer|credentials?|signature|sig|sas|jwt|session(?:[_-]?id)?|code)"
)
_SHOWN = (
    (re.compile(r"(?<=://)[^\s/?#@'\"<>]+(?=@)"), HIDDEN),
    (re.compile(rf"(?i)([?&;#]{_SECRET_NAME}=)[^&#;\s'\"<>]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic)(\s+|%20)(?=[a-z.~+/=_-]*\d)[\w.~+/=-]{8,}"), rf"\1\2{HIDDEN}"),
    (
        re.compile(
            r"(?i)((?<![\w-])(?:x-|proxy-)?(?:api[_-]?key|authorization|auth-token)['\"]?\s*[:=]\s*b?['\"]?)"
            r"(?!bearer\b|basic\b)[\w.~+/=-]{8,}"
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"\b(?:sk-(?:[a-z]+-)*[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,})"), HIDDEN),
)
_SECRET_PARAMETER = re.compile(rf"(?i){_SECRET_NAME}")


def encodable(text: str) -> str:
    """Pairs of surrogates joined, lone ones replaced: JSON escapes can make text that UTF-8 refuses."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def without_keys(text: str, *keys: str) -> str:
    """The text with `***` for these keys and those in the environment (KEY_VARIABLES), in every form that they take in
    addresses and JSON. Nothing else is touched: for what is kept."""
    for key in sorted({*keys, *(os.environ.get(name, "") for name in KEY_VARIABLES)}, key=len, reverse=True):
        key = key.strip()
        if len(key) >= _SHORTEST_KEY and key.lower() not in _NO_KEYS:
            for form in dict.fromkeys((key, json.dumps(key)[1:-1], quote(key, safe=""), quote(key))):
                text = text.replace(form, HIDDEN)
    return text


def redacted(text: str, *keys: str) -> str:
    """`without_keys`, and `***` for whatever looks like a secret: the user's part and key-like parameters of an
    address, an Authorization header's value, the known shapes of tokens. For what is printed and logged."""
    text = without_keys(text, *keys)
    for pattern, replacement in _SHOWN:
        text = pattern.sub(replacement, text)
    return text


def secret_in_url(url: str) -> str | None:
    """What in an address is secret, in words that don't show it; None where nothing is."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return "a secret" if redacted(url) != url else None
    if "@" in parts.netloc:
        return "a user name or password"
    for name, _ in (
        *parse_qsl(parts.query, True),
        *parse_qsl(parts.query, True, separator=";"),
        *parse_qsl(parts.fragment, True),
    ):
        if _SECRET_PARAMETER.fullmatch(name):
            return f"the parameter {name!r}"
    return "a key" if redacted(url) != url else None


# What says the same as plainer characters, and means no more than they do: Latin and Armenian ligatures and digraphs,
# letters written as symbols (𝐛𝐨𝐥𝐝), Arabic presentation forms. Superscripts, fractions, circled and Roman numbers,
# units and trade marks stay: m² is not m2, ½ not 1⁄2, ① not 1.
_LIGATURES = "\u0132\u0133\u0149\u017f\u01c4-\u01cc\u01f1-\u01f3\u0587\ufb00-\ufb17\ufb4f"
_STYLED = "\U0001d400-\U0001d7ff\U0001ee00-\U0001eeff\u210a-\u2113\u2115\u2119-\u211d\u2124\u2128\u212c-\u2134"
_ARABIC_FORMS = "\ufb50-\ufbb1\ufbd3-\ufd3d\ufd50-\ufdf9\ufe70-\ufefc"
_HALF_WIDTH = "\uff61-\uffdc"  # katakana with its voicing marks, Hangul
_FORMS = re.compile(f"[{_LIGATURES}{_STYLED}{_ARABIC_FORMS}]+|[{_HALF_WIDTH}]+")
# Full-width letters and digits, with the full-width signs and spaces between them. At the ends of such a run signs are
# left as they are where Chinese, Japanese or Korean goes on: there they are its own punctuation.
_FULL_WIDTH = re.compile("[\uff01-\uff5e\u3000]+")
_FULL_WIDTH_LETTER = re.compile("[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]")
_EAST_ASIAN = re.compile("[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_BREAKS = re.compile("[\u0085\u2028\u2029]")
_SOFT_HYPHEN = re.compile("\u00ad(?:[^\\S\n]*\n[^\\S\n]*(?=\\w))?")
_HYPHENS = re.compile("[\u2010\u2011]")
# Unseen marks inside words: joiners, byte-order marks, directions. The joiners of Persian, Indic scripts and emoji
# (U+200C, U+200D) stay; a zero-width space stays beside scripts without spaces, where it parts words.
_UNSPACED = "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u9fff]"
_UNSEEN = re.compile(
    f"[\u2060-\u2064\ufeff\u200e\u200f\u202a-\u202e\u2066-\u206f\u061c\u180e]|(?<!{_UNSPACED})\u200b(?!{_UNSPACED})"
)


def searchable(text: str) -> str:
    """The text as encoder and lexical index read it, so that what looks the same is found the same.

    Characters are composed (NFC); ligatures, full-width, half-width and styled letters are plain ones; every space is
    a space; soft hyphens go, and words that they part at a line's end are whole again, as do unseen marks in words.
    Text without such characters comes back as it is. What is shown stays the writer's: no offset refers to this.
    """
    if text.isascii():
        return text
    if _FORMS.search(text):
        text = _FORMS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    if _FULL_WIDTH.search(text):
        text = _FULL_WIDTH.sub(_half_width, text)
    text = unicodedata.normalize("NFC", text)
    for pattern, plain in ((_SPACES, " "), (_BREAKS, "\n"), (_SOFT_HYPHEN, ""), (_UNSEEN, ""), (_HYPHENS, "-")):
        text = pattern.sub(plain, text)
    return unicodedata.normalize("NFC", text)  # what an unseen mark kept apart


def _half_width(match: re.Match[str]) -> str:
    run, text = match[0], match.string
    if not _FULL_WIDTH_LETTER.search(run):
        return run
    start = 0
    while not _FULL_WIDTH_LETTER.match(run[start]):
        start += 1
    end = len(run)
    while not _FULL_WIDTH_LETTER.match(run[end - 1]):
        end -= 1
    start = start if _EAST_ASIAN.match(text[match.start() - 1 : match.start()]) else 0
    end = end if _EAST_ASIAN.match(text[match.end() : match.end() + 1]) else len(run)
    return run[:start] + unicodedata.normalize("NFKC", run[start:end]) + run[end:]
