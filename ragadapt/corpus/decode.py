"""Bytes into text: byte-order marks, UTF-8, else a guess that must hold for the whole file."""

from __future__ import annotations

import codecs
import re
from typing import Final

from ragadapt.errors import InvalidConfiguration
from ragadapt.text import encodable

_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES: Final = 200_000  # guessing is slow; this much text decides it
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_MULTIBYTE = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}",
)


class Unreadable(Exception):
    """Why one file or row cannot be used; the message is the reason that the user reads."""


class LeftOut(Unreadable):
    """The same for what could be read and is not wanted: known under another name, or no document."""


def check_encoding(encoding: str | None) -> None:
    """Raise InvalidConfiguration for an encoding that Python does not know."""
    if encoding is not None:
        try:
            codecs.lookup(encoding)
        except LookupError as error:
            raise InvalidConfiguration(
                f"read.encoding = {encoding!r} is no encoding that Python knows. Use utf-8, cp1252, big5 …, "
                "or leave it out to detect."
            ) from error


def encoding_of(data: bytes, *, complete: bool = True) -> str:
    """The encoding of `data`, which may be only the beginning of a file (complete=False). Raises Unreadable."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return encoding
    if len(_CONTROL.findall(data[:_SAMPLE_BYTES])) > 0.002 * min(len(data), _SAMPLE_BYTES) or b"\x00" in data:
        raise Unreadable("binary, not text")
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(data, complete)
        return "utf-8"
    except UnicodeDecodeError as error:
        valid = len(_MULTIBYTE.findall(data))
        stray = len(re.findall(rb"[\x80-\xff]", _MULTIBYTE.sub(b"", data)))
        if valid > 2 * stray:
            raise Unreadable(
                f"wrongly encoded: UTF-8 with {stray} bad bytes, the first at byte {error.start}; "
                "repair the file, or name its encoding"
            ) from error
    from charset_normalizer import from_bytes  # here: most files are UTF-8

    best = from_bytes(data[:_SAMPLE_BYTES]).best()
    if best is None:
        raise Unreadable("wrongly encoded: no encoding fits; name it with the setting read.encoding")
    return best.encoding


def decode(data: bytes, encoding: str | None = None) -> str:
    """The text with newlines as \\n and lone surrogates replaced. Raises Unreadable with the reason."""
    used = encoding or encoding_of(data)
    try:
        text = data.decode(used)
    except (UnicodeDecodeError, UnicodeError) as error:
        place = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else ""
        raise Unreadable(f"wrongly encoded: not {used}{place}") from error
    return tidy(text)


def tidy(text: str) -> str:
    """Newlines as \\n, no byte-order mark, no NUL, and nothing that UTF-8 cannot write."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.removeprefix("\ufeff").replace("\x00", "\ufffd")
    return encodable(text)
