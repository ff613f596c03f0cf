"""Files and folders into documents, with a list of what could not be used and why."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from ragadapt.config import ReadConfig
from ragadapt.corpus.decode import LeftOut, Unreadable, check_encoding
from ragadapt.corpus.files import read_content
from ragadapt.corpus.formats import Format, format_of_name
from ragadapt.corpus.rows import BadRow, read_rows
from ragadapt.corpus.walk import Found, Ignored, compile_patterns, walk
from ragadapt.errors import EmptyCorpus, InvalidInput
from ragadapt.values import Document, Progress, no_progress

_DEFAULTS = ReadConfig()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file, or a row as "file:line", that could not be used.

    left_out: it is read under another name, or no document by what is known of it. row: of a row, how many of its
    file's rows were read before it.
    """

    source: str
    reason: str
    left_out: bool = field(default=False, compare=False, kw_only=True)
    row: int | None = field(default=None, compare=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class ReadResult:
    """documents: in a stable order, ids unique. skipped: in the order they were met."""

    documents: list[Document] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def read_documents(
    paths: Sequence[str | Path] | str | Path,
    config: ReadConfig = _DEFAULTS,
    *,
    labels: Iterable[str | Path] = (),
    progress: Progress = no_progress,
) -> ReadResult:
    """The documents in files and folder trees.

    A file named directly is read even where rules would leave it out of its folder, and as plain text where its
    name promises nothing. Ids are paths relative to the folder that was given, or the rows' own ids. labels: files of
    labelled questions and judgements, which are no documents, wherever they lie. Raises InvalidInput for a path that
    does not exist and EmptyCorpus, with the reasons, where nothing is readable.
    """
    roots = [Path(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    if not roots:
        raise InvalidInput("No path to read was given. Name at least one file or folder.")
    for root in roots:
        if not root.exists():
            raise InvalidInput(f"There is no file or folder at {root}. Check the path.")
    check_encoding(config.encoding)
    compile_patterns(config.exclude, "exclude")
    include = compile_patterns(config.include, "include")
    ignored = Ignored()
    found: list[tuple[int, Found, bool]] = []
    for place, root in enumerate(roots):
        if root.is_dir():
            files = walk(root, config, ignored)
            found.extend((place, f, include is not None and bool(include.match_file(f.name))) for f in files)
        else:
            name = unicodedata.normalize("NFC", root.name)
            found.append((place, Found(root, name, "" if root.is_file() else "not a regular file"), True))

    read: list[tuple[int, Document, str]] = []  # (root, document, "file" or "file:line")
    skipped: list[Skipped] = []
    beir = {(place, str(PurePosixPath(f.name).parent)) for place, f, _ in found if f.path.name == "corpus.jsonl"}
    labelled = {os.path.realpath(label) for label in labels}
    seen: dict[str, str] = {}
    for done, (place, file, asked) in enumerate(found, 1):
        try:
            if file.problem:
                raise (LeftOut if file.left_out else Unreadable)(file.problem)
            if (real := os.path.realpath(file.path)) in labelled:
                raise LeftOut("labelled questions, not a document")
            if real in seen:
                raise LeftOut(f"the same file as {seen[real]}")
            seen[real] = file.name
            if file.path.name == "queries.jsonl" and (place, str(PurePosixPath(file.name).parent)) in beir:
                raise LeftOut("the queries of the collection in corpus.jsonl, not documents")
            for document, where in _read_file(file, config, asked, skipped):
                read.append((place, document, where))
        except Unreadable as reason:
            skipped.append(Skipped(file.name, str(reason), left_out=isinstance(reason, LeftOut)))
        except OSError as error:
            skipped.append(Skipped(file.name, f"cannot be read: {error.strerror or error}"))
        progress("reading", done, len(found))
    documents = _with_unique_ids(read, _labels(roots), skipped)
    if not documents:
        raise EmptyCorpus(_why_empty(roots, skipped, ignored, config), skipped)
    return ReadResult(documents, skipped)


def _read_file(file: Found, config: ReadConfig, asked: bool, skipped: list[Skipped]) -> Iterable[tuple[Document, str]]:
    kind: Format | None = format_of_name(file.path.name)
    if kind is None:
        if not asked:
            suffix = file.path.suffix.lower()
            raise Unreadable(
                f"no document format that is known ({suffix or 'no suffix'}); include it by name to read it as text"
            )
        kind = "plain"
    size = file.path.stat().st_size
    if size == 0:
        raise Unreadable("empty")
    if kind in ("jsonl", "csv"):  # read row by row: their limit is on a row
        return _rows(file, kind, config, skipped)
    if size > config.max_file_bytes:
        raise Unreadable(f"over-size: {size:,} bytes, the limit max_file_bytes is {config.max_file_bytes:,}")
    content = read_content(file.path.read_bytes(), kind, file.name, config.encoding, config.max_file_bytes)
    return [(Document(file.name, content.text, content.title, content.metadata, file.name), file.name)]


def _rows(file: Found, kind: str, config: ReadConfig, skipped: list[Skipped]) -> list[tuple[Document, str]]:
    documents: list[tuple[Document, str]] = []
    first_line: dict[str, int] = {}
    for row in read_rows(file.path, file.name, kind, config):
        where = f"{file.name}:{row.line}"
        if isinstance(row, BadRow):
            skipped.append(Skipped(where, row.reason, row=len(documents)))
        elif row.document.id in first_line:
            skipped.append(
                Skipped(
                    where,
                    f"id {row.document.id!r} is used already at line {first_line[row.document.id]}",
                    left_out=True,
                )
            )
        else:
            first_line[row.document.id] = row.line
            documents.append((row.document, where))
    if not documents and not any(s.source.startswith(f"{file.name}:") for s in skipped):
        raise Unreadable("empty")
    return documents


def _labels(roots: Sequence[Path]) -> list[str]:
    """A short name for each path that was given: its last parts, as many as tell all of them apart."""
    parts = [[p for p in Path(os.path.realpath(root)).parts if p != os.sep] for root in roots]
    depth = 1
    while depth < max(map(len, parts)) and len({tuple(p[-depth:]) for p in parts}) < len({tuple(p) for p in parts}):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


def _with_unique_ids(
    read: Sequence[tuple[int, Document, str]], labels: Sequence[str], skipped: list[Skipped]
) -> list[Document]:
    """Ids told apart where several row files or several given paths use the same; what still collides is skipped."""
    row_ids: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for root, document, where in read:
        if where != document.source:
            row_ids[document.id].add((root, document.source))
    clashing_files = {file for files in row_ids.values() if len(files) > 1 for file in files}
    renamed = [
        (
            root,
            replace(d, id=f"{d.source}#{d.id}") if (root, d.source) in clashing_files and where != d.source else d,
            where,
        )
        for root, d, where in read
    ]
    roots_of: dict[str, set[int]] = defaultdict(set)
    for root, document, _ in renamed:
        roots_of[document.id].add(root)
    clashing_roots = {root for roots in roots_of.values() if len(roots) > 1 for root in roots}
    documents: list[Document] = []
    used: dict[str, str] = {}
    for root, document, where in renamed:
        if root in clashing_roots:
            document = replace(document, id=_under(labels[root], document.id))
        if document.id in used:
            skipped.append(Skipped(where, f"id {document.id!r} is used already by {used[document.id]}", left_out=True))
            continue
        used[document.id] = where
        documents.append(document)
    return documents


def _under(label: str, id: str) -> str:
    """The id with the label of its root before it; where the root is the file itself, in place of its name."""
    name = label.rpartition("/")[2]
    return label + id.removeprefix(name) if id == name or id.startswith(name + "#") else f"{label}/{id}"


def _why_empty(roots: Sequence[Path], skipped: Sequence[Skipped], ignored: Ignored, config: ReadConfig) -> str:
    places = ", ".join(str(root) for root in roots[:3]) + (" …" if len(roots) > 3 else "")
    message = f"No readable document in {places}."
    if skipped:
        reasons = Counter(s.reason for s in skipped).most_common(5)
        listed = "; ".join(
            f"{next(s.source for s in skipped if s.reason == reason)}{f' and {n - 1} more' if n > 1 else ''}: {reason}"
            for reason, n in reasons
        )
        message += f" {len(skipped)} could not be used: {listed}."
    if left_out := str(ignored):
        message += f" Left out: {left_out}."
    if not skipped and not left_out:
        message += " There are no files in it."
    if config.include:
        message += f" Only files matching {', '.join(config.include)} were asked for."
    return message + " Give files of text, Markdown, HTML, PDF, Word, notebooks, jsonl, csv or source code."
