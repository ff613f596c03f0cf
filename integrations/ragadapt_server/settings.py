"""What the server is told: which retrievers, who may ask, and how much."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from ragadapt.checks import checked_number, shown
from ragadapt.errors import InvalidInput
from ragadapt.search.context import TOKENS, Expand

_TEMPLATE_FIELDS = ("id", "source", "document_id", "heading")
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Everything that `ragadapt serve` can set.

    retrievers: name → folder, in order; the first is meant where a request names none. token_file: who may ask; None =
    everybody, for which a host other than this machine needs no_auth. cors: origins whose pages may call. url_template:
    where a hit's document stands. log_queries: append searched queries to this file, None = nowhere. labels: name →
    file of labelled questions that the page /label fills. questions: files of questions to label, beside log_queries.
    generator: the settings of a language model that writes more (a QueryConfig), None = none does. expand: how far
    results are expanded where a request does not say, None = not; tokens: what those of one request hold together.
    tenant_adapters: a library of adapters, of which each is for the searches of the tenant of its name.
    """

    retrievers: tuple[tuple[str, str], ...]
    host: str = "127.0.0.1"
    port: int = 8080
    token_file: str | None = None
    no_auth: bool = False
    cors: tuple[str, ...] = ()
    url_template: str | None = None
    log_queries: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    questions: tuple[str, ...] = ()
    generator: dict[str, Any] | None = None
    device: str = "auto"
    precision: str = "auto"
    tenant_adapters: str | None = None
    max_body_bytes: int = 8_000_000
    timeout_seconds: float = 60.0
    max_waiting: int = 4096  # texts that wait to be encoded
    expand: str | None = None
    tokens: int = TOKENS

    def __post_init__(self) -> None:
        if not self.retrievers:
            raise InvalidInput("No retriever was named: pass at least one folder that `ragadapt fit` wrote.")
        for name, _ in self.labels:
            if name not in dict(self.retrievers):
                raise InvalidInput(
                    f"There is no retriever {name!r} to label. Say NAME=FILE with a name that is served."
                )
        checked_number("max_body_bytes", self.max_body_bytes, 1_000)
        checked_number("timeout_seconds", self.timeout_seconds, 0.1)
        checked_number("max_waiting", self.max_waiting, 1)
        self.widened()
        if self.url_template is not None:
            _check_template(self.url_template)
        if not self.is_local and self.token_file is None and not self.no_auth:
            raise InvalidInput(
                f"host = {self.host!r} lets other machines ask, and nobody would have to show a token. Make one with "
                "`ragadapt token tokens` and pass --auth-token-file tokens, or say --no-auth."
            )

    def widened(self, to: str | None = None, tokens: int | None = None) -> Expand | None:
        """How a request's results are expanded: as it says, else as the server was told. "none" = not at all.

        Raises InvalidInput.
        """
        to = to or self.expand or ("neighbours" if tokens is not None else None)
        most = self.tokens if tokens is None else tokens
        return None if to is None or to == "none" else Expand(to, most)  # type: ignore[arg-type]

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host in LOOPBACK_HOSTS:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def to_json(self) -> str:
        """For the processes of --workers."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ServerSettings:
        """What `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        for pairs in ("retrievers", "labels"):
            values[pairs] = tuple((name, path) for name, path in values[pairs])
        return cls(**{**values, "cors": tuple(values["cors"]), "questions": tuple(values["questions"])})


def named_retrievers(given: list[str]) -> tuple[tuple[str, str], ...]:
    """FOLDER or NAME=FOLDER → (name, folder); a folder without a name has its own. Raises InvalidInput."""
    found: dict[str, str] = {}
    for one in given:
        name, mark, folder = one.partition("=")
        if not mark or Path(one).exists():
            name, folder = Path(one).resolve().name, one
        if not name or "/" in name or not name.isprintable() or " " in name:
            raise InvalidInput(f"{shown(one)}: the name of a retriever has no space and no slash. Say NAME=FOLDER.")
        if name in found:
            raise InvalidInput(f"Two retrievers are called {name!r}. Name one otherwise: other={folder}")
        if name.endswith(("-query", "-document")):
            raise InvalidInput(f"{name!r} ends as a side of a model is named. Name it otherwise, such as docs={folder}")
        found[name] = folder
    return tuple(found.items())


def _check_template(template: str) -> None:
    try:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise InvalidInput(f"url_template = {shown(template)}: {error}.") from error
    for name in fields:
        if name not in _TEMPLATE_FIELDS:
            raise InvalidInput(f"url_template names {{{name}}}; it can name {', '.join(_TEMPLATE_FIELDS)}.")
