"""Documents into chunks: along their structure, within a budget of the encoder's own tokens, with exact offsets.

Texts are counted in a few large batches: whole short documents, then the blocks of long ones, then only the
pieces of blocks that were too large, at last every finished passage. Nothing is counted twice at one size.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, count, pairwise

from ragadapt.config import ChunkConfig
from ragadapt.corpus.duplicates import normalise
from ragadapt.corpus.formats import structure_of
from ragadapt.corpus.structure import Block, Section, is_visible, refine, sections_of, sentence_spans
from ragadapt.errors import InvalidConfiguration, InvalidInput
from ragadapt.text import rough_tokens
from ragadapt.values import Chunk, Document, Progress, no_progress

CountTokens = Callable[[Sequence[str]], list[int]]

DEFAULT_MAX_TOKENS = 256  # longer passages blur small encoders' vectors; most of them were trained on fewer
_BATCH_CHARACTERS = 4_000_000  # documents that are cut together: bounds memory, keeps the counter's batches large
_DEEPEST = 24  # nested blocks that are taken apart level by level


def chunk_documents(
    documents: Sequence[Document],
    config: ChunkConfig,
    count_tokens: CountTokens,
    max_tokens: int,
    *,
    progress: Progress = no_progress,
) -> list[Chunk]:
    """The chunks of all documents, in order.

    count_tokens: texts -> their token counts. max_tokens: what the encoder can read of a passage (its limit
    less special tokens and prompt); config.max_tokens lowers it. count_tokens([chunk.passage]) <= the limit for
    every chunk, and document.text[chunk.start:chunk.end] == chunk.text. Ids are "<document id>#<place>".
    """
    return list(cut_documents(documents, config, count_tokens, max_tokens, progress=progress))


def cut_documents(
    documents: Sequence[Document],
    config: ChunkConfig,
    count_tokens: CountTokens,
    max_tokens: int,
    *,
    progress: Progress = no_progress,
) -> Iterator[Chunk]:
    """`chunk_documents`, a few documents at a time."""
    cutter = _Cutter(config, count_tokens, _limit(config, max_tokens))
    done = 0
    for batch in _batches(documents):
        yield from cutter.cut(batch)
        done += len(batch)
        progress("chunking", done, len(documents))


def _limit(config: ChunkConfig, max_tokens: int) -> int:
    if config.max_tokens is not None and config.max_tokens > max_tokens:
        raise InvalidConfiguration(
            f"chunk.max_tokens = {config.max_tokens}: the encoder reads at most {max_tokens} tokens of a passage. "
            "Lower it, or raise encoder.max_length if the model allows it."
        )
    limit = min(max_tokens, config.max_tokens or DEFAULT_MAX_TOKENS)
    if limit < 8:
        raise InvalidConfiguration(f"max_tokens = {limit}: a chunk needs at least 8 tokens. Use a larger value.")
    if config.overlap_tokens > limit // 2:
        raise InvalidConfiguration(
            f"chunk.overlap_tokens = {config.overlap_tokens} is over half of the {limit} tokens of a chunk. Lower it."
        )
    return limit


def _batches(documents: Sequence[Document]) -> Iterator[Sequence[Document]]:
    start = size = 0
    for place, document in enumerate(documents):
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            yield documents[start : place + 1]
            start, size = place + 1, 0
    if start < len(documents):
        yield documents[start:]


@dataclass(slots=True)
class _Atom:
    """A piece of text that packing does not cut. heading: its section's heading line. unseen: shows no words."""

    block: Block
    section: int
    heading: bool = False
    unseen: bool = False
    tokens: int = -1


@dataclass(slots=True)
class _Piece:
    """Atoms first..last-1, under the headings of one section."""

    first: int
    last: int
    section: int


@dataclass(slots=True)
class _Span:
    """A chunk in the making: text[start:end], cut again at one of `cuts` if the passage turns out too long."""

    start: int
    end: int
    path: tuple[str, ...]
    cuts: list[int]
    section: int = -1


@dataclass(slots=True)
class _Draft:
    """A document that does not fit whole."""

    document: Document
    text: str  # same length as the document's, every line end as \n
    sections: list[Section]
    is_code: bool
    atoms: list[_Atom] = field(default_factory=list)
    paths: list[tuple[str, ...]] = field(default_factory=list)  # of each section
    shown: list[set[int]] = field(default_factory=list)  # for each section, those whose heading its path says whole
    budgets: list[int] = field(default_factory=list)  # tokens for the text of a chunk, of each section
    part_budgets: list[int] = field(default_factory=list)  # the same where it carries the names of definitions too
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict)  # the atoms of each section
    before: list[int] = field(default_factory=list)  # tokens before each atom
    body_before: list[int] = field(default_factory=list)  # the same without heading lines

    def tokens(self, first: int, last: int) -> int:
        return self.before[last] - self.before[first]

    def body_tokens(self, piece: _Piece) -> int:
        return self.body_before[piece.last] - self.body_before[piece.first]

    def chain(self, section: int) -> list[int]:
        """The section and those above it, innermost first, without the root."""
        found = []
        while section:
            found.append(section)
            section = self.sections[section].parent
        return found

    def common(self, a: int, b: int) -> int:
        above = {*self.chain(a), 0}
        while b not in above:
            b = self.sections[b].parent
        return b


class _Cutter:
    def __init__(self, config: ChunkConfig, count_tokens: CountTokens, limit: int) -> None:
        self.limit = limit
        self.min_tokens = min(config.min_tokens, limit // 2)
        self.overlap = config.overlap_tokens
        self._count = count_tokens
        self.special = max(0, count_tokens([""])[0])  # a counter that adds special tokens adds them to every piece

    def count(self, texts: Sequence[str]) -> list[int]:
        return list(self._count(texts)) if texts else []

    def cut(self, documents: Sequence[Document]) -> Iterator[Chunk]:
        spans = self._whole(documents)
        drafts = [(place, _draft(document)) for place, document in enumerate(documents) if spans[place] is None]
        self._measure([draft for _, draft in drafts])
        for place, draft in drafts:
            if draft.before[-1] <= draft.budgets[0]:
                spans[place] = [replace(_whole_span(draft.document), path=draft.paths[0])]
                continue
            pieces = self._join(draft, [p for s in range(len(draft.sections)) for p in self._pack(draft, s)])
            spans[place] = [span for piece in pieces if (span := _span(draft, piece)) is not None]
        self._extend_backwards([(draft, spans[place] or []) for place, draft in drafts])
        checked = self._check([(place, documents[place].text, spans[place] or []) for place, _ in drafts])
        whole = {place: _kept_whole(draft) for place, draft in drafts}
        for place, document in enumerate(documents):
            final = checked.get(place, spans[place] or [])
            self._spread_title(document, final)
            starts = [start for start, _ in document.places]
            told = 0  # up to where passages hold the text
            for n, span in enumerate(final):
                here = bisect_right(starts, span.start)
                before, told = document.text[told : span.start], max(told, span.end)
                yield Chunk(
                    id=f"{document.id}#{n}",
                    document_id=document.id,
                    text=document.text[span.start : span.end],
                    heading_path=span.path,
                    start=span.start,
                    end=span.end,
                    metadata={**document.metadata, **document.places[here - 1][1]} if here else document.metadata,
                    source=document.source,
                    before=before,
                    continues=n > 0 and _within(whole.get(place, []), span.start),
                )

    def _whole(self, documents: Sequence[Document]) -> list[list[_Span] | None]:
        """One span for each document that fits whole, [] for a blank one, None for the others."""
        spans: list[list[_Span] | None] = []
        asked: list[tuple[int, _Span]] = []
        for place, document in enumerate(documents):
            blank = not document.text.strip()
            spans.append([] if blank else None)
            if not blank and rough_tokens(document.text) <= self.limit:  # likely fits: worth counting whole
                asked.append((place, _whole_span(document)))
        counts = self.count([_passage(documents[p].text, span) for p, span in asked])
        for (place, span), tokens in zip(asked, counts, strict=True):
            if tokens <= self.limit:
                spans[place] = [span]
        return spans

    def _measure(self, drafts: Sequence[_Draft]) -> None:
        """Fill in paths, budgets and atoms: every atom fits into a chunk of its section, or is one character."""
        for draft in drafts:
            draft.paths = [_path(draft, s) for s in range(len(draft.sections))]
        room = self._path_tokens(drafts)
        for draft in drafts:
            draft.shown = [_shown(draft, s) for s in range(len(draft.sections))]
            draft.budgets = [max(1, self.limit - room[path]) for path in draft.paths]
            draft.part_budgets = [
                max(1, self.limit - room[(*path, *_longest_name(draft, s))]) for s, path in enumerate(draft.paths)
            ]
            for s, section in enumerate(draft.sections):
                if section.start < section.body:
                    draft.atoms.append(
                        _Atom(Block(section.start, section.body, "text"), s, heading=s in draft.shown[s])
                    )
                filled = (b for b in section.blocks if draft.text[b.start : b.end].strip())
                draft.atoms.extend(_Atom(block, s) for block in filled)
        for rounds in count():
            new = [(draft, atom) for draft in drafts for atom in draft.atoms if atom.tokens < 0]
            counts = self.count([draft.text[a.block.start : a.block.end] for draft, a in new])
            for (_, atom), tokens in zip(new, counts, strict=True):
                atom.tokens = max(0, tokens - self.special)
            if not sum(self._divide(draft, structure=rounds < _DEEPEST) for draft in drafts):
                break
        for draft in drafts:
            draft.before = [0, *accumulate(atom.tokens for atom in draft.atoms)]
            for place, atom in enumerate(draft.atoms):
                draft.ranges[atom.section] = (draft.ranges.get(atom.section, (place, 0))[0], place + 1)
            draft.body_before = [0, *accumulate(0 if atom.heading else atom.tokens for atom in draft.atoms)]

    def _divide(self, draft: _Draft, *, structure: bool) -> bool:
        atoms: list[_Atom] = []
        changed = False
        for atom in draft.atoms:
            block = atom.block
            section = draft.sections[atom.section]
            whole = block.start <= section.body and block.end >= section.end
            budget = (draft.budgets if whole else draft.part_budgets)[atom.section]
            if atom.tokens > self.min_tokens and not atom.unseen and not is_visible(draft.text, block):
                atom.unseen, atom.tokens = True, budget  # fills a piece of its own, which is dropped
            if atom.tokens <= budget or atom.heading or block.end - block.start == 1:
                atoms.append(atom)
            else:
                atoms.extend(_Atom(part, atom.section) for part in refine(draft.text, block, structure=structure))
                changed = True
        draft.atoms = atoms
        return changed

    def _path_tokens(self, drafts: Sequence[_Draft]) -> dict[tuple[str, ...], int]:
        """Tokens that each heading path takes, special tokens included. Paths over half of the limit are shortened."""
        wanted: dict[tuple[str, ...], int] = {(): self.special}
        for draft in drafts:
            for s, path in enumerate(draft.paths):
                wanted[path] = self.special
                wanted[(*path, *_longest_name(draft, s))] = self.special
        paths = [path for path in wanted if path]
        wanted.update(zip(paths, self.count([_heading(path) for path in paths]), strict=True))
        for draft in drafts:
            for s, path in enumerate(draft.paths):
                if wanted[path] > self.limit // 2:
                    short = self._shorten(path)
                    draft.paths[s] = short
                    for known in {short, (*short, *_longest_name(draft, s))} - wanted.keys():
                        wanted[known] = self.count([_heading(known)])[0]
        return wanted

    def _shorten(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """The path within half of the limit: its middle goes first, then the title, then the last heading's end."""
        half = self.limit // 2
        candidates = [(path[0], *path[n:]) for n in range(2, len(path))] + [path[-1:]]
        for candidate in candidates:
            if self.count([_heading(candidate)])[0] <= half:
                return candidate
        words = path[-1]
        while words and self.count([_heading((words,))])[0] > half:
            words = words[: len(words) * 3 // 4 + 1].rpartition(" ")[0] or words[: len(words) * 3 // 4].rstrip()
        return (words,) if words else ()

    def _spread_title(self, document: Document, spans: Sequence[_Span]) -> None:
        """Where no path has room for the whole title, each passage in turn says the next part of it.

        Parts are as long as the shortened title, or fill the passages where all of it finds room only so.
        """
        title = document.title
        if not title or any(title in span.path for span in spans):
            return
        titled = [span for span in spans if span.path and title.startswith(span.path[0])]
        filled = self._parts(document, titled, title.split(), most=len(title))
        parts = filled if sum(map(len, filled)) == len(title.split()) else []
        if not parts and titled:
            parts = self._parts(document, titled, title.split(), most=len(titled[0].path[0].split()))
        for span, part in zip(titled, parts):
            if part:
                span.path = (" ".join(part), *span.path[1:])

    def _parts(self, document: Document, spans: Sequence[_Span], words: list[str], most: int) -> list[list[str]]:
        """For each span the next words, up to `most`, that fit above its text."""
        parts = []
        for span in spans:
            low, high = 0, min(most, len(words))
            while low < high:
                middle = (low + high + 1) // 2
                longer = replace(span, path=(" ".join(words[:middle]), *span.path[1:]))
                fits = self.count([_passage(document.text, longer)])[0] <= self.limit
                low, high = (middle, high) if fits else (low, middle - 1)
            parts.append(words[:low])
            words = words[low:]
        return parts

    def _pack(self, draft: _Draft, section: int) -> list[_Piece]:
        """The section's atoms as few, evenly filled pieces. Its heading line goes with the first."""
        if section not in draft.ranges:
            return []
        first, last = draft.ranges[section]
        body = first + draft.atoms[first].heading
        budget = draft.budgets[section]
        if draft.tokens(body, last) > budget:
            budget = draft.part_budgets[section]
            budget -= min(self.overlap, budget // 2)
        cuts = _even_cuts(draft, body, last, budget)
        bounds = [first, *cuts, last]
        return [_Piece(a, b, section) for a, b in pairwise(bounds)]

    def _join(self, draft: _Draft, pieces: list[_Piece]) -> list[_Piece]:
        """Pieces below min_tokens join a neighbour of their section or of the heading above, where that fits."""
        joined: list[_Piece] = []
        for place, piece in enumerate(pieces):
            body = draft.body_tokens(piece)
            if body >= self.min_tokens and body:
                joined.append(piece)
                continue
            following = pieces[place + 1] if place + 1 < len(pieces) else None
            best: tuple[tuple[int, int, int], _Piece, bool] | None = None
            for other, right in ((joined[-1] if joined else None, False), (following, True)):
                if other is None:
                    continue
                first, second = (piece, other) if right else (other, piece)
                whole = self._union(draft, first, second, piece.section)
                if whole is None:
                    continue
                depth = len(draft.chain(whole.section))
                leads = right and not body  # a heading joins what it announces
                rank = (int(leads), depth, -draft.body_tokens(other))
                if best is None or rank > best[0]:
                    best = (rank, whole, right)
            if best is None:
                joined.append(piece)
            elif best[2]:
                pieces[place + 1] = best[1]
            else:
                joined[-1] = best[1]
        return joined

    def _union(self, draft: _Draft, a: _Piece, b: _Piece, small: int) -> _Piece | None:
        """Both neighbours as one piece, where they have a near heading in common and fit together."""
        section = draft.common(a.section, b.section)
        announced = draft.body_tokens(a) == 0 and a.section in draft.chain(b.section)
        if announced:
            section = b.section
        elif section not in (small, draft.sections[small].parent):
            return None
        whole = _Piece(a.first, b.last, section)
        first = _after_headings(draft, whole, section, whole.last)
        return whole if draft.tokens(first, whole.last) <= draft.budgets[section] else None

    def _extend_backwards(self, drafts: Sequence[tuple[_Draft, list[_Span]]]) -> None:
        """Give each chunk the last sentences of the one before it in its section, up to overlap_tokens."""
        if not self.overlap:
            return
        tails: list[tuple[_Span, list[int]]] = []
        texts: list[str] = []
        for draft, spans in drafts:
            for before, span in pairwise(spans):
                if before.section != span.section or before.end > span.start:
                    continue
                lead = max(before.start + 1, before.end - 12 * self.overlap)
                starts = [lead + a for a, _ in sentence_spans(draft.text[lead : before.end])]
                starts = [s for s in starts if s > lead] or [
                    lead + m.start() for m in re.finditer(r"(?<=\s)\S", draft.text[lead : before.end])
                ]
                tails.append((span, starts))
                texts.extend(draft.text[s : before.end] for s in starts)
        counts = iter(self.count(texts))
        for span, starts in tails:
            fitting = [start for start in starts if next(counts) - self.special <= self.overlap]
            if fitting:
                span.cuts = sorted({*span.cuts, span.start})
                span.start = min(fitting)

    def _check(self, spans: list[tuple[int, str, list[_Span]]]) -> dict[int, list[_Span]]:
        """The spans with those over the limit cut in two until none is: sums of parts are not always the whole."""
        todo = [(place, text, span) for place, text, of_document in spans for span in of_document]
        done: dict[int, list[_Span]] = {place: [] for place, _, _ in spans}
        while todo:
            counts = self.count([_passage(text, span) for _, text, span in todo])
            again: list[tuple[int, str, _Span]] = []
            for (place, text, span), tokens in zip(todo, counts, strict=True):
                if tokens <= self.limit:
                    done[place].append(span)
                else:
                    again.extend((place, text, half) for half in self._halves(text, span, tokens))
            todo = again
        return {place: sorted(found, key=lambda span: (span.start, span.end)) for place, found in done.items()}

    def _halves(self, text: str, span: _Span, tokens: int) -> list[_Span]:
        cuts = [c for c in span.cuts if span.start < c < span.end]
        if not cuts:
            cuts = [b.start for b in refine(text, Block(span.start, span.end, "text"))[1:]]
        if not cuts and span.path:
            return [_Span(span.start, span.end, span.path[1:], [])]
        if not cuts:
            raise InvalidInput(
                f"The single character {text[span.start : span.end]!r} makes {tokens} tokens of {self.limit}. "
                "Use a larger chunk.max_tokens."
            )
        middle = (span.start + span.end) / 2
        cut = min(cuts, key=lambda c: abs(c - middle))
        halves = []
        for start, end in ((span.start, cut), (cut, span.end)):
            start, end = _trim(text, start, end)
            if start < end:
                halves.append(_Span(start, end, span.path, [c for c in cuts if start < c < end], span.section))
        return halves


def _draft(document: Document) -> _Draft:
    text = document.text
    text = text.replace("\r\n", " \n").replace("\r", "\n") if "\r" in text else text
    structure = structure_of(document)
    return _Draft(document, text, sections_of(text, structure), structure in ("python", "code"))


def _kept_whole(draft: _Draft) -> list[tuple[int, int]]:
    """(start, end) of the code blocks and tables, in order; of what nests, the innermost."""
    found = []
    stack = [block for section in reversed(draft.sections) for block in reversed(section.blocks)]
    while stack:
        block = stack.pop()
        if block.children:
            stack.extend(reversed(block.children))
        elif block.kind in ("code", "table"):
            found.append(_trim(draft.text, block.start, block.end))
    return found


def _within(blocks: Sequence[tuple[int, int]], place: int) -> bool:
    """Whether one of the blocks begins before this place of the text and ends behind it."""
    at = bisect_right(blocks, place, key=lambda block: block[0]) - 1
    return at >= 0 and blocks[at][0] < place < blocks[at][1]


def _heading(path: tuple[str, ...]) -> str:
    return " > ".join(path) + "\n"


def _passage(text: str, span: _Span) -> str:
    heading = " > ".join(part for part in span.path if part)
    return f"{heading}\n{text[span.start : span.end]}" if heading else text[span.start : span.end]


def _whole_span(document: Document) -> _Span:
    """The whole text, less a first heading that only repeats the title."""
    start, end = _trim(document.text, 0, len(document.text))
    path = (document.title,) if document.title else ()
    match = re.compile(r" {0,3}#[ \t]+([^\n]+)\n\s*").match(document.text, start, end)
    if match and match.end() < end and document.title:
        heading = match[1].rstrip(" \t").rstrip("#")
        if normalise(heading) == normalise(document.title):
            start = match.end()
    return _Span(start, end, path, [])


def _path(draft: _Draft, section: int) -> tuple[str, ...]:
    """The title and the headings down to a section. In source code the definitions are told by offsets instead."""
    title = draft.document.title
    headings = () if draft.is_code else tuple(draft.sections[s].heading for s in reversed(draft.chain(section)))
    if title and headings and normalise(headings[0]) == normalise(title):
        headings = headings[1:]
    return (title, *headings) if title else headings


def _shown(draft: _Draft, section: int) -> set[int]:
    """Of the section and those above it, the ones whose heading stands whole in the section's path."""
    said = {normalise(part) for part in draft.paths[section]}
    return {s for s in draft.chain(section) if normalise(draft.sections[s].heading) in said}


def _longest_name(draft: _Draft, section: int) -> tuple[str, ...]:
    """The longest line of definition names that a piece of this section of source code may carry."""
    best: tuple[str, ...] = ()
    stack: list[tuple[int, str]] = []
    for start, end, name in draft.sections[section].names:
        while stack and stack[-1][0] <= start:
            stack.pop()
        stack.append((end, name))
        line = tuple(n for _, n in stack)
        best = max(best, line, key=lambda names: sum(map(len, names)))
    return best


def _even_cuts(draft: _Draft, first: int, last: int, budget: int) -> list[int]:
    """Where to cut atoms first..last-1 into as few runs as the budget allows, as even as that number allows."""
    cuts = _fill(draft, first, last, budget)
    if cuts:
        even = draft.tokens(first, last) / (len(cuts) + 1)
        for factor in (1.05, 1.2, 1.4):
            if even * factor < budget:
                found = _fill(draft, first, last, int(even * factor) + 1)
                if len(found) <= len(cuts):
                    return found
    return cuts


def _fill(draft: _Draft, first: int, last: int, budget: int) -> list[int]:
    cuts: list[int] = []
    start = first
    for place in range(first, last):
        if place > start and draft.tokens(start, place + 1) > budget:
            cut = place
            if cut - 1 > start and _announces(draft, cut - 1):
                cut -= 1  # "as follows:" stays with what follows
            cuts.append(cut)
            start = cut
    return cuts


def _announces(draft: _Draft, atom: int) -> bool:
    block = draft.atoms[atom].block
    return block.kind == "text" and draft.text[block.start : block.end].rstrip().endswith((":", "："))


def _after_headings(draft: _Draft, piece: _Piece, section: int, end: int) -> int:
    """The first atom of a piece's text, at most `end`: heading lines that the section's path says are left out."""
    first = piece.first
    while first < end and draft.atoms[first].heading and draft.atoms[first].section in draft.shown[section]:
        first += 1
    return first


def _span(draft: _Draft, piece: _Piece) -> _Span | None:
    section, last = piece.section, piece.last
    first = _after_headings(draft, piece, section, last)
    if last - first == 1 and draft.atoms[first].unseen:
        last = first
    start, end = _bounds(draft, first, last)
    if start >= end:  # nothing but headings: the last one is the text, under those above it
        section = draft.sections[piece.section].parent
        first = _after_headings(draft, piece, section, last - 1)
        start, end = _bounds(draft, first, last)
        if start >= end or not draft.atoms[first].heading:
            return None
    path = (*draft.paths[section], *_enclosing(draft, section, start, end))
    return _Span(start, end, path, [atom.block.start for atom in draft.atoms[first + 1 : last]], section)


def _bounds(draft: _Draft, first: int, last: int) -> tuple[int, int]:
    if first >= last:
        return 0, 0
    return _trim(draft.text, draft.atoms[first].block.start, draft.atoms[last - 1].block.end)


def _enclosing(draft: _Draft, section: int, start: int, end: int) -> Iterable[str]:
    """Names of the definitions that text[start:end] is a part of, outermost first, those it holds whole left out."""
    for a, b, name in draft.sections[section].names:
        if a > start:
            break
        a, b = _trim(draft.text, a, b)
        if a <= start and end <= b and not (start == a and end == b):
            yield name


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    """The range without blank lines before it and white space after it; the first line keeps its indentation."""
    part = text[start:end]
    body = part.rstrip()
    if not body:
        return end, end
    blank = re.match(r"(?:[^\S\n]*\n)*", part)
    return start + (blank.end() if blank else 0), start + len(body)
