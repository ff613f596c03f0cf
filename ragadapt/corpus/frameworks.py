"""Documents and chunks from other programs' objects, known by their attributes: neither framework is imported."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ragadapt.checks import checked_list, checked_text, checked_texts, shown
from ragadapt.corpus.content import json_value, with_short_title
from ragadapt.errors import EmptyCorpus, InvalidInput
from ragadapt.text import encodable
from ragadapt.values import Chunk, Document, Metadata

log = logging.getLogger(__name__)

_SOURCE_NAMES = ("source", "file_path", "file_name", "filename", "url")
_DOCUMENT_NAMES = ("document_id", "doc_id", "ref_doc_id", "parent_id")


@dataclass(frozen=True, slots=True)
class _Object:
    text: str
    id: str
    metadata: Metadata
    document_id: str
    start: int | None


def documents_from(objects: Iterable[Any]) -> list[Document]:
    """Documents from LangChain Documents, LlamaIndex Documents and nodes, our own Documents, or strings.

    Ids: the object's own, else its source (numbered where several objects share it, as the pages of a PDF do),
    else a hash of its text. Objects without text are left out. Raises InvalidInput for a single string, for an
    object that is none of these, and for an id used twice; EmptyCorpus where no object has text.
    """
    documents: list[Document] = []
    shared = Counter[str]()
    parsed = [_own(o, n) if isinstance(o, Document) else _parse(o, n) for n, o in _listed(objects, "documents_from")]
    without_id = Counter(_source(o.metadata) for o in parsed if isinstance(o, _Object) and not o.id)
    for item in parsed:
        if isinstance(item, Document):
            documents.append(item)
            continue
        if not item.text.strip():
            continue
        source = _source(item.metadata)
        id = item.id
        if not id and source:
            shared[source] += 1
            id = source if without_id[source] == 1 else f"{source}#{shared[source] - 1}"
        elif not id:
            id = _content_id(item.text)
            if shared[id]:
                continue  # the same text twice says nothing new
            shared[id] += 1
        text, title = with_short_title(item.text, _title(item.metadata))
        documents.append(Document(id, text, title, item.metadata, source))
    _check_ids([d.id for d in documents], "documents_from")
    _check_some(len(documents), len(parsed), "documents_from")
    return documents


def chunks_from(objects: Iterable[Any]) -> list[Chunk]:
    """Chunks from objects that are already cut: each becomes one chunk, unchanged.

    document_id: the LlamaIndex ref_doc_id, else document_id or source in the metadata, else the object's own id.
    heading_path: from "header_path" or "Header 1", "Header 2" … in the metadata, after its "title". start: from
    "start_index" or start_char_idx, else 0. Raises like documents_from.
    """
    chunks: list[Chunk] = []
    numbers = Counter[str]()
    count = 0
    for n, item in _listed(objects, "chunks_from"):
        count += 1
        if isinstance(item, Chunk):
            chunks.append(_own(item, n))
            continue
        if isinstance(item, Document):
            item = _own(item, n)
            path = (item.title,) if item.title else ()
            whole = Chunk(f"{item.id}#0", item.id, item.text, path, 0, len(item.text), item.metadata, item.source)
            chunks.extend([whole] if item.text.strip() else [])
            continue
        parsed = _parse(item, n)
        if not parsed.text.strip():
            continue
        source = _source(parsed.metadata)
        own = parsed.document_id or next(
            (str(parsed.metadata[k]) for k in _DOCUMENT_NAMES if parsed.metadata.get(k)), ""
        )
        document_id = own or source or parsed.id or _content_id(parsed.text)
        id = parsed.id or f"{document_id}#{numbers[document_id]}"
        numbers[document_id] += 1
        start = parsed.start or 0
        chunks.append(
            Chunk(
                id=id,
                document_id=document_id,
                text=parsed.text,
                heading_path=_heading_path(parsed.metadata),
                start=start,
                end=start + len(parsed.text),
                metadata=parsed.metadata,
                source=source,
            )
        )
    _check_ids([c.id for c in chunks], "chunks_from")
    _check_some(len(chunks), count, "chunks_from")
    return chunks


def _listed(objects: Iterable[Any], function: str) -> Iterable[tuple[int, Any]]:
    if isinstance(objects, str | bytes | Mapping | Document | Chunk) or hasattr(objects, "page_content"):
        raise InvalidInput(
            f"{function} takes a list of documents, not one {type(objects).__name__}. Pass [document]; "
            "to read files, use read_documents([path])."
        )
    if not isinstance(objects, Iterable):
        raise InvalidInput(f"{function} takes a list of documents, not {type(objects).__name__}.")
    return enumerate(objects)


def _parse(item: Any, place: int) -> _Object:
    if isinstance(item, str):
        return _Object(encodable(item), "", {}, "", None)
    if hasattr(item, "node") and hasattr(item, "score"):  # a LlamaIndex search result
        item = item.node
    if hasattr(item, "page_content"):  # LangChain
        text, id = item.page_content, getattr(item, "id", None)
        document_id, start = None, _mapping(item).get("start_index")
    elif hasattr(item, "node_id") or hasattr(item, "get_content") or hasattr(item, "id_"):  # LlamaIndex
        text = item.get_content() if callable(getattr(item, "get_content", None)) else getattr(item, "text", None)
        id = getattr(item, "node_id", None) or getattr(item, "id_", None)
        document_id, start = getattr(item, "ref_doc_id", None), getattr(item, "start_char_idx", None)
    else:
        raise InvalidInput(
            f"Object {place} is {type(item).__name__}; expected a string, a LangChain Document, a LlamaIndex "
            "node or document, or a ragadapt Document. Convert it to one of these."
        )
    if not isinstance(text, str):
        raise InvalidInput(
            f"Object {place} ({type(item).__name__}) has {type(text).__name__} where its text should be."
        )
    try:
        metadata = json_value(_mapping(item))
    except RecursionError as error:
        raise InvalidInput(f"Object {place}: its metadata is nested too deeply, or contains itself.") from error
    start = start if isinstance(start, int) and start >= 0 else None
    id, document_id = (encodable(str(name)) if name else "" for name in (id, document_id))
    return _Object(encodable(text), id, metadata, document_id, start)


Own = TypeVar("Own", Document, Chunk)


def _own(item: Own, place: int) -> Own:
    """A Document or Chunk that the caller made, in text that can be stored. Raises InvalidInput with its number."""
    values: dict[str, Any] = {}
    for name in ("id", "document_id", "text", "title", "source", "before"):
        if hasattr(item, name):
            values[name] = checked_text(f"Object {place} ({type(item).__name__}): {name}", getattr(item, name))
    if not values["id"]:
        raise InvalidInput(f"Object {place} ({type(item).__name__}) has an empty id. Give each its own.")
    if isinstance(item, Chunk):
        path = checked_list(item.heading_path, f"Object {place} (Chunk): heading_path")
        values["heading_path"] = tuple(checked_texts(path, f"Object {place} (Chunk): heading_path"))
    if not isinstance(item.metadata, Mapping):
        raise InvalidInput(f"Object {place} ({type(item).__name__}): metadata is {shown(item.metadata)}, not a dict.")
    try:
        text = json.dumps(dict(item.metadata), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(
            f"Object {place}: its metadata is not JSON ({error}). Convert it to plain values."
        ) from error
    return replace(item, **values, metadata=json.loads(encodable(text)))


def _mapping(item: Any) -> Mapping[str, Any]:
    metadata = getattr(item, "metadata", None)
    return metadata if isinstance(metadata, Mapping) else {}


def _source(metadata: Metadata) -> str:
    return next((str(metadata[name]) for name in _SOURCE_NAMES if metadata.get(name)), "")


def _title(metadata: Metadata) -> str:
    title = metadata.get("title")
    return " ".join(title.split()) if isinstance(title, str) else ""


def _heading_path(metadata: Metadata) -> tuple[str, ...]:
    path = [_title(metadata)]
    if isinstance(metadata.get("header_path"), str):
        path.extend(part.strip() for part in metadata["header_path"].split("/"))
    else:
        path.extend(str(metadata[key]).strip() for key in (f"Header {n}" for n in range(1, 7)) if metadata.get(key))
    kept = [part for part in path if part]
    return tuple(part for n, part in enumerate(kept) if n == 0 or part != kept[n - 1])


def _content_id(text: str) -> str:
    return "text-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_ids(ids: list[str], function: str) -> None:
    first: dict[str, int] = {}
    for place, id in enumerate(ids):
        if id in first:
            raise InvalidInput(
                f"{function}: id {id!r} is used twice, by items {first[id]} and {place}. Give each its own id, or pass "
                "pieces of one document to chunks_from."
            )
        first[id] = place


def _check_some(kept: int, count: int, function: str) -> None:
    if not kept:
        raise EmptyCorpus(f"{function}: none of the {count} objects has any text. Check what was loaded.")
    if kept < count:
        log.warning("%s: %d of %d objects left out: empty, or the same text again", function, count - kept, count)
