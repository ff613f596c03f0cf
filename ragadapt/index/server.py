"""Collections of a saved retriever at a Qdrant server: an alias for the one in use, the end of old ones."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from qdrant_client import models

from ragadapt.errors import RagadaptError
from ragadapt.index.qdrant import _asking, _connect

log = logging.getLogger(__name__)

ServerCollection = tuple[str, str]
"""(address of the server, name)"""

_BUILT = re.compile(r"(.+)-[0-9a-f]{12}")  # the name in the settings, and what a build put behind it


def follow(now: ServerCollection | None, gone: Iterable[ServerCollection]) -> None:
    """Point the alias of `now` to it, then delete what is gone. Trouble at the server is logged, not raised."""
    if now is not None and (match := _BUILT.fullmatch(now[1])):
        try:
            switch_alias(now[0], match[1], now[1])
        except RagadaptError as error:
            log.warning("The alias %r was not pointed to the new collection %s: %s", match[1], now[1], error)
    for url, name in sorted(gone):
        if _BUILT.fullmatch(name):  # else it is not of our making
            try:
                delete_collection(url, name)
            except RagadaptError as error:
                log.warning("The old collection %s was not deleted: %s Delete it by hand.", name, error)


def switch_alias(url: str, alias: str, collection: str) -> None:
    """Let the alias stand for the collection, in one step for those who ask by it. Raises IndexUnreachable.

    Nothing happens where the name is that of a collection.
    """
    client = _connect(None, url, 30, None)
    try:
        if _asking(lambda: client.collection_exists(alias), url):
            aliases = _asking(client.get_aliases, url).aliases
            held = {known.alias_name: known.collection_name for known in aliases}
            if held.get(alias) == collection:
                return
            if alias not in held:
                log.warning("At %s there is a collection %r, so the name cannot be an alias.", url, alias)
                return
        # Both in one request: whoever asks meanwhile gets the old collection or the new one.
        operations: list[models.DeleteAliasOperation | models.CreateAliasOperation] = [
            models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)),
            models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=collection, alias_name=alias)),
        ]
        _asking(lambda: client.update_collection_aliases(operations), url)
    finally:
        client.close()


def delete_collection(url: str, name: str) -> None:
    """Delete it; one that is not there is no error. Raises IndexUnreachable."""
    client = _connect(None, url, 30, None)
    try:
        _asking(lambda: client.delete_collection(name), url)
    finally:
        client.close()
