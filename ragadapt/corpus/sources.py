"""What a fit is given: files and folders by name, or objects of a framework, cut already or not."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ragadapt.checks import checked_list, checked_path
from ragadapt.config import ReadConfig
from ragadapt.corpus.frameworks import chunks_from, documents_from
from ragadapt.corpus.paths import printable
from ragadapt.corpus.read import read_documents
from ragadapt.errors import InvalidInput
from ragadapt.values import Chunk, Document, Progress

_PARTICULARS = re.compile(
    r"'[^']*'|\"[^\"]*\"|(?<=the same file as ).*|(?<=a link to ).*(?=, which)|(?<=include of ).*(?=: )|\d[\d,.]*"
)
"""What differs between two reasons of one kind: names in quotes, other files, numbers."""


def listed_sources(sources: Any) -> list[Any]:
    """What a fit or refresh was given, as a list; one path is a list of one.

    Raises InvalidInput for what is neither paths nor objects, and with the path that cannot be one.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    if hasattr(sources, "page_content") or hasattr(sources, "get_content"):
        raise InvalidInput(f"sources is one {type(sources).__name__}: pass a list, [document].")
    listed = checked_list(sources, "sources")
    if all(isinstance(source, str | os.PathLike) for source in listed):
        return [checked_path(source, f"sources[{at}]") for at, source in enumerate(listed)]
    return listed


def are_paths(sources: Sequence[Any]) -> bool:
    """Whether files and folders were named, rather than objects handed over."""
    return all(isinstance(source, (str, Path)) for source in sources)


def describe_sources(sources: Sequence[Any], chunked: bool, labels: Sequence[Path] = ()) -> dict[str, Any]:
    """What a refresh has to know of the sources: the names of files and folders (no places), whether objects were cut
    already, and which files in the folders are labels."""
    paths = [Path(source).resolve() for source in sources] if are_paths(sources) else []
    inside = [
        {"root": printable(path.name), "path": printable(place)}
        for source, path in zip(sources, paths)
        for label in dict.fromkeys(labels)
        if (place := _place_in(label, source)) is not None
    ]
    roots = [{"name": printable(path.name), "folder": path.is_dir()} for path in paths]
    return {"chunked": chunked, "roots": roots, "labels": inside}


def _place_in(file: Path, root: str | Path) -> str | None:
    """The file's path below the root, with links followed or as both are named; None = it lies elsewhere."""
    for place_of in (os.path.realpath, os.path.abspath):
        path, top = Path(place_of(file)), Path(place_of(root))
        if path.is_relative_to(top):
            return path.relative_to(top).as_posix()
    return None


def known_labels(described: Mapping[str, Any], sources: Sequence[Any]) -> list[Path]:
    """Where the labels that `describe_sources` noted lie now: below the source of the same name, or, where the folders
    were renamed, below any."""
    roots = [Path(source).resolve() for source in sources] if are_paths(sources) else []
    found = []
    for label in described.get("labels", ()):
        same = [root for root in roots if printable(root.name) == label["root"]]
        found += [root / label["path"] for root in same or roots if label["path"] != "." or root in same]
    return found


def by_reason(skipped: Sequence[Any], most: int = 5) -> list[str]:
    """A line for each kind of reason, the most frequent first: an example, how many more, and why."""
    groups: dict[str, list[Any]] = defaultdict(list)
    for item in skipped:
        groups[_PARTICULARS.sub("", item.reason)].append(item)
    largest = sorted(groups.values(), key=len, reverse=True)
    lines = []
    for of in largest[:most]:
        others = len({item.source for item in of}) - 1  # one file may have several: they are no more files
        lines.append(f"{of[0].source}{f' and {others:,} more' if others else ''}: {of[0].reason}")
    if len(largest) > most:
        lines.append(f"and {len(largest) - most:,} more reasons")
    return lines


def read_sources(
    sources: Sequence[Any], config: ReadConfig, chunked: bool, progress: Progress, labels: Sequence[Path] = ()
) -> tuple[list[Document], list[Any], list[Chunk] | None]:
    """Documents, what was skipped, and the chunks where the caller cut them. labels: files that are no documents."""
    if not chunked and are_paths(sources):
        result = read_documents(list(sources), config, labels=labels, progress=progress)
        return result.documents, result.skipped, None
    if not chunked:
        return documents_from(sources), [], None
    chunks = chunks_from(sources)
    texts: dict[str, list[Chunk]] = {}
    for chunk in chunks:
        texts.setdefault(chunk.document_id, []).append(chunk)
    documents = [
        Document(id, "\n\n".join(part.text for part in parts), source=parts[0].source) for id, parts in texts.items()
    ]
    return documents, [], chunks
