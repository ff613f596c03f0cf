"""What a language model is given: a hit with the passages around it, as many as a budget of tokens allows.

Small passages are searched, large pieces of the document are given. They are put together from the passages that are
stored, so that nothing is kept twice and nothing is given of a passage that a filter hides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

from ragadapt.checks import checked_choice, checked_k, shown
from ragadapt.errors import InvalidInput
from ragadapt.text import rough_tokens
from ragadapt.values import Chunk, Context, Hit

Reach = Literal["neighbours", "section", "document"]
REACHES: tuple[str, ...] = get_args(Reach)
TOKENS = 2048
"""For all hits of a query together, unless told otherwise."""

STEP = 8
"""Passages that are read of a store at a time."""

_LEAD = 400  # characters of headings above a context; what is longer is no heading


@dataclass(frozen=True, slots=True)
class Expand:
    """How far hits are expanded.

    to: "neighbours" = the passages before and behind; "section" = the largest section around the passage that fits
    whole, else what fits of its own; "document" = the whole document where it fits, else as "section". tokens: what the
    hits of a query hold together; the best come first, and each gets an even share of what is left. count: a text →
    its tokens; None = estimated, one for four ASCII characters and one for every other.
    """

    to: Reach = "section"
    tokens: int = TOKENS
    count: Callable[[str], int] | None = None

    def __post_init__(self) -> None:
        checked_choice("expand", self.to, REACHES)
        checked_k(self.tokens, "expand tokens")


def checked_expand(expand: Any) -> Expand | None:
    """What was asked; None = passages as they are. Raises InvalidInput."""
    if expand is None or expand is False:
        return None
    if isinstance(expand, Expand):
        return expand
    if isinstance(expand, str):
        return Expand(to=expand)  # type: ignore[arg-type]
    if isinstance(expand, int) and expand is not True:
        return Expand(tokens=expand)
    raise InvalidInput(
        f"expand = {shown(expand)}: it is 'neighbours', 'section', 'document', a number of tokens, or an "
        "Expand(to=…, tokens=…)."
    )


class Neighbours(Protocol):
    """Reads passages of a document from a store."""

    def __call__(self, id: str, count: int, *, back: bool = False) -> list[Chunk]:
        """Up to count passages that follow a passage (back: precede it), the nearest first."""


class Surroundings:
    """The passages around others, as far as they may be seen. visible: ids → which may be given; None = all."""

    def __init__(
        self,
        read: Neighbours,
        visible: Callable[[Sequence[str]], Sequence[bool]] | None = None,
        *,
        step: int = STEP,
    ) -> None:
        self._read = read
        self._step = step
        self._visible = visible
        self._next: dict[str, Chunk | None] = {}
        self._previous: dict[str, Chunk | None] = {}

    def beside(self, chunk: Chunk, *, back: bool) -> Chunk | None:
        """The next passage of the document, or the one before; None at its end and before one that may not be seen."""
        known, other = (self._previous, self._next) if back else (self._next, self._previous)
        if chunk.id not in known:
            found = self._read(chunk.id, self._step, back=back)
            shown = [True] * len(found) if self._visible is None else self._visible([one.id for one in found])
            at = chunk
            for one, seen in zip(found, shown, strict=True):
                if not seen:
                    known[at.id] = None
                    break
                known[at.id], other[one.id] = one, at
                at = one
            else:
                if len(found) < self._step:
                    known[at.id] = None
        return known[chunk.id]


def expand_hits(hits: Sequence[Hit], expand: Expand, around: Surroundings) -> list[Hit]:
    """The hits of one query, best first, each with its context; hits whose contexts overlap or touch become one.

    What does not fit into the budget is left out, but for the first.
    """
    return _Spreading(expand, around).spread(hits)


@dataclass(eq=False, slots=True)
class _Run:
    """Passages of a document, one behind the other. hits: those found among them, by rank (from 0)."""

    passages: list[Chunk]
    hits: dict[int, Hit]
    tokens: int

    @property
    def best(self) -> Hit:
        return self.hits[min(self.hits)]


class _Spreading:
    """The runs around the hits of one query, while they grow. Each passage is in one run at most."""

    def __init__(self, expand: Expand, around: Surroundings) -> None:
        self.to = expand.to
        self.most = self.left = expand.tokens
        self.count = expand.count or rough_tokens
        self.around = around
        self.owner: dict[str, _Run] = {}
        self._counted: dict[str, int] = {}

    def spread(self, hits: Sequence[Hit]) -> list[Hit]:
        for rank, hit in enumerate(hits):
            run = _Run([hit.chunk], {rank: hit}, self._tokens([hit.chunk]))
            if run.tokens <= self.left or not self.owner:
                self.owner[hit.chunk.id] = run
                self.left -= run.tokens
        waiting = self._runs()
        while waiting:
            run = waiting.pop(0)
            self._grow(run, max(self.left, 0) // (1 + len(waiting)))
            alive = {id(one) for one in self.owner.values()}
            waiting = [one for one in waiting if id(one) in alive]
        for run in self._runs():
            if self.owner[run.passages[0].id] is run:
                self._touch(run)
        return [replace(run.best, context=self._context(run)) for run in self._runs()]

    def _runs(self) -> list[_Run]:
        return sorted({id(run): run for run in self.owner.values()}.values(), key=lambda run: min(run.hits))

    def _grow(self, run: _Run, share: int) -> None:
        """Take in what is around, for at most `share` tokens more."""
        spare = self.left - share  # what is for the others
        own = run.best.chunk.heading_path
        self._take(run, self._whole(run.passages), spare)  # the rest of a code block or table
        if self.to != "neighbours":
            lowest = 0 if self.to == "document" else min(2, len(own))
            fitted = False
            for depth in range(len(own), lowest - 1, -1):
                section = self._section(run, own[:depth], spare)
                if section is None or not self._take(run, section, spare):
                    break
                fitted = True
            if fitted:
                return
        path = () if self.to == "neighbours" else own
        apart = len(self._whole(run.passages)) > len(run.passages)  # its own block is too large to be given whole
        sides = [False, True]  # behind first: what follows explains more often than what stands before
        while sides:
            for back in list(sides):
                one = self.around.beside(run.passages[0 if back else -1], back=back)
                if one is not None and one.heading_path[: len(path)] == path:
                    longer = [one, *run.passages] if back else [*run.passages, one]
                    if self._take(run, longer if apart else self._whole(longer), spare):
                        continue
                sides.remove(back)

    def _section(self, run: _Run, path: tuple[str, ...], spare: int) -> list[Chunk] | None:
        """The run with all passages around it that stand under these headings; None where they are too many."""
        passages = list(run.passages)
        for back in (False, True):
            one = self.around.beside(passages[0 if back else -1], back=back)
            while one is not None and one.heading_path[: len(path)] == path:
                passages = [one, *passages] if back else [*passages, one]
                if self._more(run, passages) > self.left - spare:
                    return None
                one = self.around.beside(one, back=back)
        return passages

    def _whole(self, passages: list[Chunk]) -> list[Chunk]:
        """With the rest of the code block or table that they begin or end in, as far as any budget could go."""
        passages, size = list(passages), self._tokens(passages)
        for back in (True, False):
            one = self.around.beside(passages[0 if back else -1], back=back)
            while one is not None and (passages[0] if back else one).continues and size <= self.most:
                passages = [one, *passages] if back else [*passages, one]
                size += self._of(one.text)
                one = self.around.beside(one, back=back)
        return passages

    def _take(self, run: _Run, passages: list[Chunk], spare: int) -> bool:
        """Let the run hold these passages, and all of the runs that it meets, if that leaves `spare` tokens."""
        others = self._met(run, passages)
        for other in others:
            passages = _union(passages, other.passages)
        more = self._tokens(passages) - run.tokens - sum(other.tokens for other in others)
        if more > 0 and more > self.left - spare:
            return False
        for other in others:
            run.hits |= other.hits
        run.passages, run.tokens = passages, self._tokens(passages)
        self.left -= more
        self.owner.update((one.id, run) for one in passages)
        return True

    def _touch(self, run: _Run) -> None:
        """Become one with the runs that begin where this one ends, or end where it begins."""
        for back in (False, True):
            while (one := self.around.beside(run.passages[0 if back else -1], back=back)) and one.id in self.owner:
                longer = [one, *run.passages] if back else [*run.passages, one]
                if not self._take(run, longer, 0):
                    break

    def _met(self, run: _Run, passages: Sequence[Chunk]) -> list[_Run]:
        met = {id(other): other for one in passages if (other := self.owner.get(one.id, run)) is not run}
        return list(met.values())

    def _more(self, run: _Run, passages: Sequence[Chunk]) -> int:
        """Tokens that the run would hold more than it and those that it meets hold now."""
        return self._tokens(passages) - run.tokens - sum(other.tokens for other in self._met(run, passages))

    def _tokens(self, passages: Sequence[Chunk]) -> int:
        between = [one.before for one in passages[1:]]
        return sum(map(self._of, [_lead(passages[0]), *between, *(one.text for one in passages)]))

    def _of(self, text: str) -> int:
        if text not in self._counted:
            self._counted[text] = self.count(text) if text.strip() else 0
        return self._counted[text]

    def _context(self, run: _Run) -> Context:
        text, start, end = joined(run.passages)
        found = tuple(run.hits[rank].chunk.id for rank in sorted(run.hits))
        return Context(text, start, end, tuple(one.id for one in run.passages), found, self.count(text))


def joined(passages: Sequence[Chunk]) -> tuple[str, int, int]:
    """(text, start, end) of passages that follow one another, with the headings above the first.

    text is the document's text[start:end] where the passages know what stands between them: those of folders that
    earlier versions wrote do not, nor do passages that came cut; they are parted by blank lines.
    """
    first = passages[0]
    lead = _lead(first)
    parts, end = [lead, first.text], first.end
    for one in passages[1:]:
        if one.before and one.start == end + len(one.before):
            parts += [one.before, one.text]
        elif first.start < one.start <= end and len(one.text) == one.end - one.start:  # they overlap, or touch
            parts.append(one.text[end - one.start :])
        else:
            parts += ["\n\n", one.text]
        end = max(end, one.end)
    return "".join(parts), first.start - len(lead), end


def _lead(passage: Chunk) -> str:
    """The headings right above a passage, which its text leaves out as its heading path says them."""
    lead = passage.before.lstrip()
    return lead if len(lead) <= _LEAD and passage.start >= len(lead) else ""


def _union(a: list[Chunk], b: list[Chunk]) -> list[Chunk]:
    """Two runs that share passages as one."""
    places = {one.id: at for at, one in enumerate(a)}
    at = places.get(b[0].id)
    if at is None:
        return _union(b, a)
    return [*a[:at], *b, *a[at + len(b) :]]
