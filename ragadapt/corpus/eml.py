"""E-mails (.eml) into Markdown: the body once, who wrote it when, and the names of what was attached."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any, Final

from ragadapt.corpus.content import Content
from ragadapt.corpus.decode import Unreadable, decode, tidy
from ragadapt.corpus.html import html_content, plain_line
from ragadapt.text import encodable

_LONGEST_HEADER: Final = 4000
_MOST_NAMES: Final = 10  # of attachments that are told one by one
_POOR: Final = 5  # a plain text with so many times fewer words than the HTML beside it says "look at the HTML"


def read_eml(data: bytes) -> Content:
    """An e-mail's text, its subject as title, from, to, cc and date as metadata. Raises Unreadable with the reason."""
    try:
        message = message_from_bytes(data, policy=policy.compat32)  # the newer policy reads long headers in square time
        if not message.keys():
            raise Unreadable("not an e-mail: it has no headers")
        letter = _Letter()
        parts = list(letter.parts(message))
    except RecursionError as error:
        raise Unreadable("an e-mail with parts nested too deeply") from error
    text = tidy("\n\n".join(part.strip("\n") for part in parts if part.strip())) + "\n"
    if not text.strip() and letter.encrypted:
        raise Unreadable("an encrypted e-mail")
    values: dict[str, Any] = {name: _header(message, name) for name in ("from", "to", "cc")} | {"date": _date(message)}
    names = list(dict.fromkeys(letter.attached))
    notes = [*letter.notes, *(f"attachment {name}" for name in names[:_MOST_NAMES])]
    if len(names) > _MOST_NAMES:
        notes.append(f"{len(names) - _MOST_NAMES} more attachments")
    metadata = {name: value for name, value in values.items() if value}
    return Content(text if text.strip() else "", _header(message, "subject"), metadata, notes=tuple(notes))


class _Letter:
    def __init__(self) -> None:
        self.attached: list[str] = []
        self.notes: dict[str, None] = {}
        self.encrypted = False

    def parts(self, part: Message[str, str]) -> Iterator[str]:
        """The texts that a mail program shows, in order."""
        kind = part.get_content_type()
        inner: Any = part.get_payload() if part.is_multipart() else None
        if kind == "message/rfc822" and isinstance(inner, list):
            for message in inner:
                subject, sender, date = _header(message, "subject"), _header(message, "from"), _date(message)
                yield plain_line(f"**{subject}**") if subject else ""
                yield ", ".join(said for said in (sender, date) if said)
                yield from self.parts(message)
        elif kind == "multipart/alternative" and isinstance(inner, list):
            yield from self._best(inner)
        elif isinstance(inner, list):
            for each in inner:
                yield from self.parts(each)
        elif kind in ("application/pkcs7-mime", "application/x-pkcs7-mime", "application/pgp-encrypted"):
            self.encrypted = True
        elif kind.startswith("text/") and kind != "text/calendar" and not _is_attached(part):
            yield self._text(part, kind)
        elif "signature" not in kind:
            name = _decoded(part.get_filename() or "")
            self.attached.append(encodable(" ".join(name.split())[:200]) or f"without a name ({kind})")

    def _best(self, alternatives: list[Message[str, str]]) -> Iterator[str]:
        """One of the forms of a text: the plain one, unless it only points to the other."""
        read: dict[str, list[str]] = {}
        for each in alternatives:
            sub = self if each.get_content_maintype() in ("text", "multipart") else _Letter()  # a calendar's entry
            key = "plain" if each.get_content_type() == "text/plain" else "rich"
            read.setdefault(key, []).extend(sub.parts(each))
        plain, rich = read.get("plain", []), read.get("rich", [])
        words = [len(" ".join(texts).split()) for texts in (plain, rich)]
        yield from rich if words[0] * _POOR < words[1] or not words[0] else plain

    def _text(self, part: Message[str, str], kind: str) -> str:
        data = part.get_payload(decode=True)
        text = _characters(data if isinstance(data, bytes) else b"", part.get_content_charset())
        if kind == "text/html":
            page = html_content(text)
            self.notes.update(dict.fromkeys(page.notes))
            return page.text
        if str(part.get_param("format", "")).lower() == "flowed":
            join = "" if str(part.get_param("delsp", "")).lower() == "yes" else " "
            text = re.sub(r"(?m)^(?!-- $)(>*)(.*[^ \n]) \n(?=\1(?!>)[^\n])>* ?", lambda m: f"{m[1]}{m[2]}{join}", text)
        return "\n".join(plain_line(line.rstrip()) for line in text.split("\n"))


def _is_attached(part: Message[str, str]) -> bool:
    return part.get_content_disposition() == "attachment" or bool(part.get_filename())


def _characters(data: bytes, charset: str | None) -> str:
    """The text in the encoding that the mail names where that holds, else in the one that fits."""
    for name in ("cp1252" if charset in ("us-ascii", "iso-8859-1", "latin-1") else charset, None):
        try:
            if name or data:
                return decode(data, name) if not (charset == "us-ascii" and name and _is_utf8(data)) else decode(data)
        except (Unreadable, LookupError):
            continue
    return tidy(data.decode("cp1252", "replace"))


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _header(message: Message[str, str], name: str) -> str:
    values = message.get_all(name) or []
    return encodable(" ".join(", ".join(_decoded(str(value)) for value in values[:10]).split()))


def _decoded(value: str) -> str:
    value = value[:_LONGEST_HEADER]
    try:
        return str(make_header(decode_header(value)))
    except (ValueError, LookupError):  # an unknown encoding, or bytes that are not in it
        return value


def _date(message: Message[str, str]) -> str:
    """ISO, in UTC where the mail says its zone, so that dates compare as text."""
    try:
        date = parsedate_to_datetime(str(message.get("date") or "")[:200])
        return (date.astimezone(UTC) if date.tzinfo else date).isoformat()
    except (ValueError, TypeError, OverflowError, IndexError):
        return ""
