"""What a fit is given: files and folders by name, or objects of a framework, cut already or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ragadapt.config import ReadConfig
from ragadapt.corpus.frameworks import chunks_from, documents_from
from ragadapt.corpus.read import read_documents
from ragadapt.values import Chunk, Document, Progress


def are_paths(sources: Sequence[Any]) -> bool:
    """Whether files and folders were named, rather than objects handed over."""
    return all(isinstance(source, (str, Path)) for source in sources)


def describe_sources(sources: Sequence[Any], chunked: bool) -> dict[str, Any]:
    """What a refresh has to know of the sources: the names of files and folders (no places), and whether objects
    were cut already."""
    paths = [Path(source).resolve() for source in sources] if are_paths(sources) else []
    return {"chunked": chunked, "roots": [{"name": path.name, "folder": path.is_dir()} for path in paths]}


def read_sources(
    sources: Sequence[Any], config: ReadConfig, chunked: bool, progress: Progress
) -> tuple[list[Document], list[Any], list[Chunk] | None]:
    """Documents, what was skipped, and the chunks where the caller cut them."""
    if not chunked and are_paths(sources):
        result = read_documents(list(sources), config, progress=progress)
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
