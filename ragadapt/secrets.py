"""Secrets in what is printed, logged and kept: found, hidden, refused in addresses."""

from __future__ import annotations

import json
import os
import re
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
