"""Front matter: the block of keys and values that may open a page. One decision for every part that meets a text."""

from __future__ import annotations

import re
import textwrap
import tomllib
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

_BLOCK = re.compile(r"\A(?:---[ \t]*\n((?:.*\n)*?)(?:---|\.\.\.)|\+\+\+[ \t]*\n((?:.*\n)*?)\+\+\+)[ \t]*(?:\n|\Z)")
_LARGEST: Final = 100_000  # characters; what is longer is no front matter that a person keeps
_DEEPEST: Final = 50  # maps and lists inside each other
_WIDEST_INT: Final = 1024  # bits; beyond it Python refuses to write a number in decimals, and it stays as written
_KEY = re.compile(r"[^\W\d][\w.$@/-]*(?: [\w.$@/-]+){0,2}")  # "Note", "date created": a clause is prose
_PLAIN_KEY = re.compile(r"[a-z_][\w.$@/-]*")
_KEY_LINE = re.compile(
    r"(?:\"([^\"\n]+)\"[ \t]*+|'([^'\n]+)'[ \t]*+|([^\s:#\"'\[\]{}>|*&!%-][^:\n]*+)):(?:[ \t]++(.*))?"
)
_COLON = re.compile(r"\s*+:")
_CONTINUATION = re.compile(r"[ \t]+\S.*|-(?:[ \t].*)?|[\]}],?[ \t]*")


@dataclass(frozen=True, slots=True)
class FrontMatter:
    """What stands between the marks. end: where the text goes on. title: as written, "" where it gives none."""

    end: int
    title: str = ""
    values: dict[str, Any] = field(default_factory=dict)


def front_matter(text: str) -> FrontMatter | None:
    """The front matter (YAML between ---, TOML between +++) that opens a text; None where a text only begins so.

    It is a mapping with nothing else in the block. YAML that does not load (a colon in a value, an alias, a tag that
    means an object) is front matter where each of its lines reads as a key, a list item or a continuation; then the
    values are the lines. Whatever else stands there is text under a ruled line, and stays text.
    """
    if not text.startswith(("---", "+++")):
        return None
    match = _BLOCK.match(text)
    if match is None:
        return None
    yaml_block, toml_block = match.groups()
    block = yaml_block if yaml_block is not None else toml_block
    if not block.strip():
        return FrontMatter(match.end())
    if len(block) > _LARGEST:
        return None
    values: dict[Any, Any] | None
    if yaml_block is None:
        values = _toml(block)
    else:
        values = _yaml(block)
        if values is None:
            values = _lines(block)
        if values is not None and not _keys_are_no_prose(values, block):
            values = None
    if values is None:
        return None
    title = values.pop("title", None)
    if isinstance(title, dict | list | tuple | set):
        values["title"], title = title, None
    return FrontMatter(match.end(), "" if title is None else str(title), values)


def _keys_are_no_prose(values: dict[Any, Any], block: str) -> bool:
    """ "Note: wear gloves." under a ruled line is prose: where blank lines or comments stand too, keys are plain."""
    keys = [key for key in values if isinstance(key, str)]
    loose = re.search(r"^[ \t]*(?:#.*)?$", block.rstrip("\n"), re.M) is not None
    return all((_PLAIN_KEY if loose else _KEY).fullmatch(key) for key in keys)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Scalars, lists and maps. Aliases are refused: a few of them can stand for gigabytes, or for themselves."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("an alias")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.YAMLError("nested too deeply")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        value = super().construct_object(node, deep)
        return node.value if isinstance(value, int) and value.bit_length() > _WIDEST_INT else value


def _yaml(block: str) -> dict[Any, Any] | None:
    try:
        loader = _Loader(block)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            return None
        if not all(_COLON.match(block, key.end_mark.index) for key, _ in root.value):
            return None  # "? words": a key that has no value is not kept, and without a colon it is no key to a reader
        titles = [
            value.value for key, value in root.value if key.value == "title" and isinstance(value, yaml.ScalarNode)
        ]
        values = loader.construct_document(root)
    except Exception:  # PyYAML lets through whatever its constructors meet: IndexError, KeyError, RecursionError …
        return None
    if not isinstance(values, dict) or len(values) < len(root.value):  # a key given twice would lose a value
        return None
    return values | {"title": titles[0]} if titles and values.get("title") is not None else values


def _toml(block: str) -> dict[Any, Any] | None:
    try:
        values = tomllib.loads(block)
    except Exception:  # not TOML, or nested beyond what the parser can hold
        return None
    stack: list[tuple[Any, int]] = [(values, 0)]
    while stack:
        value, depth = stack.pop()
        if depth > _DEEPEST or (isinstance(value, int) and value.bit_length() > _WIDEST_INT):
            return None
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        stack.extend((item, depth + 1) for item in inner)
    return values


def _lines(block: str) -> dict[Any, Any] | None:
    """Keys with what stands after them, line by line; None where a line is neither a key nor part of a value."""
    values: dict[Any, list[str]] = {}
    current: list[str] | None = None
    for line in block.split("\n"):
        if not line.strip():
            if current:
                current.append("")
            continue
        if line.startswith("#"):
            continue
        if current is not None and _CONTINUATION.fullmatch(line):
            current.append(line)
        elif match := _KEY_LINE.fullmatch(line):
            current = values.setdefault(match[1] or match[2] or match[3].rstrip(), [])
            current.append(match[4] or "")
        else:
            return None
    return {key: _value(lines) for key, lines in values.items()} or None


def _value(lines: list[str]) -> str:
    first, rest = lines[0].strip(), textwrap.dedent("\n".join(lines[1:])).strip("\n")
    if re.fullmatch(r"[|>][+-]?\d?", first):
        first = ""
    if not rest and len(first) > 1 and first[0] == first[-1] and first[0] in "\"'":
        first = first[1:-1]
    return "\n".join(part for part in (first, rest) if part)
