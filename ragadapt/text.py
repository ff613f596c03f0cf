"""Text as it comes in at every door: what can be stored, what is searched, and what can be shown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[\d.,%]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
# What moves a cursor, ends a line or turns the direction of writing; left-to-right and right-to-left marks do neither.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
_CONTROL_IN_JSON = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")  # JSON escapes the others itself


def encodable(text: str) -> str:
    """Pairs of surrogates joined, lone ones replaced: JSON escapes can make text that UTF-8 refuses."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def rough_tokens(text: str) -> int:
    """About how many tokens a language model makes of a text: one of four ASCII characters, one of every other."""
    plain = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
    return plain // 4 + len(text) - plain


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
UNSEEN = "\u2060-\u2064\ufeff\u200e\u200f\u202a-\u202e\u2066-\u206f\u061c\u180e"
_UNSPACED = "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u9fff]"
_UNSEEN = re.compile(f"[{UNSEEN}]|(?<!{_UNSPACED})\u200b(?!{_UNSPACED})")


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


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can hold the text: no half of a surrogate pair is in it."""
    return _SURROGATE.search(text) is None


def grouped(problems: Iterable[tuple[str, str]], most: int = 5) -> list[str]:
    """(where, why) of things that were left out, as a few lines: like reasons together, with the first of each.

    Reasons are alike that differ in what they quote and in numbers alone. most: lines, the last of which sums up.
    """
    kinds: dict[str, list[tuple[str, str]]] = {}
    for where, why in problems:
        kinds.setdefault(_QUOTED.sub("…", why), []).append((where, why))
    found = [
        f"{where}: {why}" + (f" (and {len(same) - 1:,} more like it)" if len(same) > 1 else "")
        for same in kinds.values()
        for where, why in same[:1]
    ]
    if len(found) > most:
        rest = sum(len(same) for same in list(kinds.values())[most - 1 :])
        found = [*found[: most - 1], f"… and {rest:,} more"]
    return found


def printable(text: str) -> str:
    """The text on one line, as a terminal may show it: control characters stand as escapes, such as \\x1b or \\n."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def printable_json(text: str) -> str:
    """JSON with the same values and no control character that a terminal would obey."""
    return _CONTROL_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
