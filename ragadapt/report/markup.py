"""HTML and SVG elements from Python values. Whatever is not Markup already is escaped."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape

Child = str | Markup | None | Iterable["Child"]
_VOID = {"input", "meta", "br", "hr"}


def tag(name: str, /, *children: Child, cls: str = "", **attributes: object) -> Markup:
    """An element. None and "" children vanish, lists are flattened; attribute a_b becomes a-b, None is left out."""
    words = [name]
    if cls:
        words.append(f'class="{escape(cls)}"')
    for key, value in attributes.items():
        if value is True:
            words.append(key.replace("_", "-"))
        elif value is not None and value is not False:
            words.append(f'{key.rstrip("_").replace("_", "-")}="{escape(value)}"')
    opening = " ".join(words)
    if name in _VOID:
        return Markup(f"<{opening}>")
    return Markup(f"<{opening}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Markup:
    """Children one after the other, escaped where needed."""
    pieces: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, str):
            pieces.append(escape(child))
        else:
            pieces.append(join(child))
    return Markup("".join(pieces))
