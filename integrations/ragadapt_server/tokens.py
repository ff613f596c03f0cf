"""Bearer tokens: a file of hashes, and who a token stands for."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from ragadapt.errors import InvalidInput
from ragadapt.files import file_state
from ragadapt.pefa.ledger import named_tenant

log = logging.getLogger(__name__)

_LINE = re.compile(r"sha256:(?P<hash>[0-9a-f]{64})(?:\s+tenant=(?P<tenant>\S+))?")
_LOOK_SECONDS = 1.0  # between two looks whether the file was changed


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. tenant: the one that the token names; None where it names none, or there are no tokens."""

    tenant: str | None = None


class Tokens:
    """The tokens of a file. It is read anew when it changes, so that a token can be withdrawn while the server runs.

    A line is `sha256:HASH`, with ` tenant=NAME` where the token is one tenant's; `#` begins a remark. A file that
    cannot be read any more lets nobody in.
    """

    def __init__(self, path: Path) -> None:
        """Raises InvalidInput for a file that cannot be read, or that holds no token."""
        self.path = path
        self._known = _read(path)
        self._seen = file_state(path)
        self._looked = time.monotonic()

    def caller(self, token: str) -> Caller | None:
        """Whom the token stands for; None for one that is not known. Every hash is compared, in constant time."""
        self._follow()
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
        found = None
        for known, tenant in self._known:
            if hmac.compare_digest(known, digest):
                found = Caller(tenant)
        return found

    def _follow(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        seen = file_state(self.path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._known = _read(self.path)
        except InvalidInput as error:
            self._known = []
            log.error("%s Nobody is let in until it can be read again.", error)


def add_token(path: Path, tenant: str | None = None) -> str:
    """Make a token, append its hash to the file (made if missing, for its owner alone to read) and give the token."""
    if tenant is not None and re.search(r"\s", named_tenant(tenant)):
        raise InvalidInput(f"tenant = {tenant!r}: a tenant's name in a file of tokens has no spaces.")
    token = secrets.token_urlsafe(32)
    line = f"sha256:{hashlib.sha256(token.encode()).hexdigest()}" + (f" tenant={tenant}" if tenant else "")
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)
    return token


def _read(path: Path) -> list[tuple[str, str | None]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"The file of tokens {path} cannot be read ({error}).") from error
    known = []
    for number, line in enumerate(lines, start=1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:  # without quoting it: it may be a token in plain text
            raise InvalidInput(
                f"{path}, line {number}: a line is `sha256:HASH` or `sha256:HASH tenant=NAME`. Make one with: "
                f"ragadapt token {path}"
            )
        known.append((match["hash"], match["tenant"]))
    if not known:
        raise InvalidInput(f"{path} holds no token. Make one with: ragadapt token {path}")
    return known
