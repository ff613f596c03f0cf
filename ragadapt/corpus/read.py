"""Files and folders into documents, with a list of what could not be used and why."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from ragadapt.config import ReadConfig
from ragadapt.corpus.apart import Reader
from ragadapt.corpus.decode import LeftOut, Unreadable, check_encoding
from ragadapt.corpus.formats import Format, format_of_name
from ragadapt.corpus.paths import printable, read_bounded
from ragadapt.corpus.rows import BadRow, Row, read_rows, rows_of
from ragadapt.corpus.walk import Found, Ignored, compile_patterns, shown, walk
from ragadapt.errors import EmptyCorpus, InvalidInput
from ragadapt.values import Document, Progress, no_progress

_DEFAULTS = ReadConfig()
_BAD_ROWS = 1000  # of a file that are listed one by one
_SAVE_AS = {
    **dict.fromkeys((".doc", ".odt", ".rtf"), ".docx"),
    **dict.fromkeys((".ppt", ".odp"), ".pptx"),
    **dict.fromkeys((".xls", ".ods"), ".xlsx"),
    ".msg": ".eml",
    ".mobi": ".epub",
}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file, or a row as "file:line", that could not be used.

    left_out: it is read under another name, or no document by what is known of it. row: of a row, how many of its
    file's rows were read before it. unlisted: a folder, of which nobody knows what is in it.
    """

    source: str
    reason: str
    left_out: bool = field(default=False, compare=False, kw_only=True)
    row: int | None = field(default=None, compare=False, kw_only=True)
    unlisted: bool = field(default=False, compare=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class ReadResult:
    """documents: in a stable order, ids unique. skipped: in the order they were met."""

    documents: list[Document] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def notes(self) -> list[Skipped]:
        """What was left out on purpose of files that were read, file by file."""
        return notes_of(self.documents)


def notes_of(documents: Iterable[Document]) -> list[Skipped]:
    """What the readers of these documents left out on purpose, each with the document's source."""
    return [Skipped(document.source, note) for document in documents for note in document.notes]


def read_documents(
    paths: Sequence[str | Path] | str | Path,
    config: ReadConfig = _DEFAULTS,
    *,
    labels: Iterable[str | Path] = (),
    progress: Progress = no_progress,
) -> ReadResult:
    """The documents in files and folder trees.

    A file named directly, alone or beside its folder, is read even where rules would leave it out of its folder, and
    as plain text where its name promises nothing. Ids are paths relative to the folder that was given, or the rows'
    own ids. labels: files of labelled questions and judgements, which are no documents, wherever they lie. Raises
    InvalidInput for a path that does not exist and EmptyCorpus, with the reasons, where nothing is readable.
    """
    roots = [Path(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    if not roots:
        raise InvalidInput("No path to read was given. Name at least one file or folder.")
    for root in roots:
        try:
            there = root.exists()
        except (OSError, ValueError):  # no permission on the way to it, a loop of links; what no path can hold
            there = False
        if not there:
            raise InvalidInput(f"There is no file or folder at {_shown_path(root)}. Check the path.")
    check_encoding(config.encoding)
    compile_patterns(config.exclude, "exclude")
    include = compile_patterns(config.include, "include")
    ignored = Ignored()
    found: list[tuple[int, Found, bool]] = []
    for place, root in enumerate(roots):
        if root.is_dir():
            files = walk(root, config, ignored, roots)
            found.extend((place, f, include is not None and bool(include.match_file(f.name))) for f in files)
        else:
            name = shown(root.name)
            found.append((place, Found(root, name, "" if root.is_file() else "not a regular file"), True))

    read: list[tuple[int, Document, str]] = []  # (root, document, "file" or "file:line")
    skipped: list[Skipped] = []
    beir = {(place, str(PurePosixPath(f.name).parent)) for place, f, _ in found if f.path.name == "corpus.jsonl"}
    labelled = {os.path.realpath(label) for label in labels}
    seen: dict[str, str] = {}
    named = {os.path.realpath(root) for root in roots}  # asked for, also where their folder brings them in
    folders = [str(root) for root in roots if root.is_dir()]  # inside them, what a page includes is followed
    with Reader(config, folders) as reader:
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
                for document, where in _read_file(file, config, asked or real in named, skipped, reader):
                    read.append((place, document, where))
            except Unreadable as reason:
                left_out = isinstance(reason, LeftOut)
                skipped.append(Skipped(file.name, str(reason), left_out=left_out, unlisted=file.unlisted))
            except OSError as error:
                skipped.append(Skipped(file.name, f"cannot be read: {error.strerror or error}"))
            progress("reading", done, len(found))
    documents = _with_unique_ids(read, _labels(roots), skipped)
    if not documents:
        raise EmptyCorpus(_why_empty(roots, skipped, ignored, config), skipped)
    return ReadResult(documents, skipped)


def _read_file(
    file: Found, config: ReadConfig, asked: bool, skipped: list[Skipped], reader: Reader
) -> Iterable[tuple[Document, str]]:
    kind: Format | None = format_of_name(file.path.name)
    if kind is None:
        if not asked:
            suffix = printable(file.path.suffix.lower())
            advice = (
                f"save it as {_SAVE_AS[suffix]}"
                if suffix in _SAVE_AS
                else "name the file itself beside its folder to read it as text"
            )
            raise Unreadable(f"no document format that is known ({suffix or 'no suffix'}); {advice}")
        kind = "plain"
    if kind in ("jsonl", "csv"):  # read row by row: their limit is on a row
        return _rows(file.name, read_rows(file.path, file.name, kind, config), skipped)
    data = read_bounded(file.path, config.max_file_bytes)
    if data is None:
        size = file.path.stat().st_size
        raise Unreadable(f"over-size: {size:,} bytes, the limit max_file_bytes is {config.max_file_bytes:,}")
    if not data:
        raise Unreadable("empty")
    content = reader.read(data, kind, file.name, asked, str(file.path))
    if content.rows:
        return _rows(file.name, rows_of(content.text, file.name, config), skipped)
    document = Document(
        file.name,
        content.text,
        content.title,
        content.metadata,
        file.name,
        places=content.places,
        notes=content.notes,
        anchors=content.anchors,
    )
    return [(document, file.name)]


def _rows(name: str, rows: Iterable[Row | BadRow], skipped: list[Skipped]) -> list[tuple[Document, str]]:
    documents: list[tuple[Document, str]] = []
    bad = 0
    first_line: dict[str, int] = {}
    for row in rows:
        where = f"{name}:{row.line}"
        if isinstance(row, Row) and row.document.id not in first_line:
            first_line[row.document.id] = row.line
            documents.append((row.document, where))
            continue
        bad += 1
        if bad > _BAD_ROWS:
            continue
        if isinstance(row, BadRow):
            skipped.append(Skipped(where, row.reason, row=len(documents)))
        else:
            earlier = first_line[row.document.id]
            skipped.append(Skipped(where, f"id {row.document.id!r} is used already at line {earlier}", left_out=True))
    if bad > _BAD_ROWS:
        skipped.append(Skipped(name, f"{bad - _BAD_ROWS:,} more rows could not be used"))
    if not documents and not bad:
        raise Unreadable("empty")
    return documents


def _labels(roots: Sequence[Path]) -> list[str]:
    """A short name for each path that was given: its last parts, as many as tell all of them apart."""
    parts = [[printable(p) for p in Path(os.path.realpath(root)).parts if p != os.sep] for root in roots]
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


def _shown_path(root: Path) -> str:
    return printable(str(root)).replace("\0", "\\0")


def _why_empty(roots: Sequence[Path], skipped: Sequence[Skipped], ignored: Ignored, config: ReadConfig) -> str:
    places = ", ".join(_shown_path(root) for root in roots[:3]) + (" …" if len(roots) > 3 else "")
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
    return (
        message
        + " Give files of text, Markdown, HTML, PDF, office programs, EPUB, mails, notebooks, JSON, csv or source code."
    )
