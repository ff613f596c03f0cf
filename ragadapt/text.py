"""Text as it comes in at every door: what can be stored, and what can be shown."""

from __future__ import annotations

import re
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
