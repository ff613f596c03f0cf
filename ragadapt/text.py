"""Text as it comes in at every door: what can be stored, and what can be shown."""

from __future__ import annotations


def encodable(text: str) -> str:
    """Pairs of surrogates joined, lone ones replaced: JSON escapes can make text that UTF-8 refuses."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
