"""What callers pass, checked at the door: each function gives the value as the inside wants it, or raises InvalidInput.

Texts are cleaned, as nothing that was said is lost with half a surrogate pair. Ids are refused: an id that was changed
could not be asked for again, and two could become one.
"""

from __future__ import annotations

import errno
import math
import numbers
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ragadapt.errors import InvalidInput
from ragadapt.text import encodable, is_encodable

MODES = ("hybrid", "dense", "lexical")


def shown(value: object, most: int = 60) -> str:
    """The value within a message, cut to `most` characters."""
    try:
        text = value if isinstance(value, str) and len(value) <= most else repr(value)
    except Exception:  # an object's own repr, or one too deep to write
        text = type(value).__name__
    text = repr(value) if text is value else text
    return text if len(text) <= most else f"{text[:most]}…"


def checked_k(k: Any, name: str = "k", what: str = "result", such: int = 5) -> int:
    """How many results, or of what else is said. A bool is no number here, nor is 2.0."""
    if isinstance(k, bool) or not isinstance(k, numbers.Integral) or k < 1:
        raise InvalidInput(f"{name} = {shown(k)}: ask for at least one {what}, as a whole number such as {such}.")
    return int(k)


def checked_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf, what: str = "") -> float:
    """A finite number from low to high. what: says more about it in the message."""
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and low <= number <= high:
            return number
    bounds = "" if math.isinf(low) and math.isinf(high) else f" between {low:g} and {high:g}"
    raise InvalidInput(f"{name} = {shown(value)}: it is a finite number{bounds}{f' ({what})' if what else ''}.")


def checked_lam(lam: Any) -> float | None:
    """λ of the feedback; None = as tuned."""
    return None if lam is None else checked_number("lam", lam, 0, 1, "λ: 0 = feedback only, 1 = feedback off")


def checked_confidence(value: Any) -> float | None:
    """A least probability that a hit answers the question; None = none is asked for."""
    return None if value is None else checked_number("min_confidence", value, 0, 1, "a probability")


def checked_threshold(value: Any) -> float | None:
    """A least score; None = none is asked for."""
    return None if value is None else checked_number("score_threshold", value)


def checked_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of the choices."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(map(repr, choices[:-1]))
        raise InvalidInput(f"{name} = {shown(value)}: it is {listed} or {choices[-1]!r}.")
    return value


def checked_text(name: str, value: Any) -> str:
    """A text that can be stored: half surrogate pairs are replaced."""
    if not isinstance(value, str):
        raise InvalidInput(f"{name} is {type(value).__name__} ({shown(value)}), a str is needed.")
    return encodable(value)


def checked_texts(texts: Any, name: str = "texts") -> list[str]:
    """Texts that can be stored, from any iterable of strings but a string."""
    if isinstance(texts, str | bytes):
        kind = "one string" if isinstance(texts, str) else "bytes"
        raise InvalidInput(
            f"{name} is {kind}: a single text was passed ({shown(texts)}), a list of texts is needed: wrap it in [ ]."
        )
    return [checked_text(f"{name}[{at}]", text) for at, text in enumerate(checked_list(texts, name))]


def checked_list(values: Any, name: str) -> list[Any]:
    """What an iterable gives; not the characters of a string, nor the keys of a mapping."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidInput(f"{name}: {type(values).__name__} was passed ({shown(values)}), a list is needed.")
    return list(values)


def checked_queries(queries: Any, *, blank: bool = False, first: int = 0) -> list[str]:
    """Queries with at least one word each. blank: they may be empty, as their vectors are given. first: the number of
    the first, for messages."""
    if isinstance(queries, str):
        raise InvalidInput("queries is one string; pass a list of strings, or use search for one query.")
    listed = checked_list(queries, "queries")
    for number, query in enumerate(listed, first):
        if not isinstance(query, str):
            raise InvalidInput(f"query {number} is {shown(query)} ({type(query).__name__}), a str is needed.")
        if not blank and not query.strip():
            raise InvalidInput(f"query {number} is {shown(query)}: a query is a string with at least one word.")
    return [encodable(query) for query in listed]


def checked_id(id: Any, name: str = "id") -> str:
    """An id: a string that is not empty and that UTF-8 can hold."""
    if not isinstance(id, str) or not id:
        raise InvalidInput(f"{name} {shown(id)} is not a string with at least one character.")
    if not is_encodable(id):
        raise InvalidInput(f"{name} {shown(id)} holds half a surrogate pair, which no file can. Choose another id.")
    return id


def checked_ids(ids: Any, name: str = "ids") -> list[str]:
    """Ids, of which the first that is none is named with its number."""
    if isinstance(ids, str):
        raise InvalidInput(f"{name} is one string, {shown(ids)}; pass a list of ids.")
    return [checked_id(id, f"{name}[{at}]") for at, id in enumerate(checked_list(ids, name))]


def checked_path(path: Any, what: str) -> Path:
    """A path that the system can be asked for; whether something is there is not looked at."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise InvalidInput(f"{what} is {type(path).__name__} ({shown(path)}); a path is needed, as str or Path.")
    text = os.fspath(path)
    if not text:
        raise InvalidInput(f"{what} is empty. Name a file or folder; the current folder is '.'.")
    try:
        os.lstat(text)
    except ValueError as error:
        raise InvalidInput(f"{what} {shown(text)} cannot be a path ({error}). Name a file or folder.") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidInput(f"{what} {shown(text)} is too long for a path. Name a file or folder.") from error
    return Path(text)
