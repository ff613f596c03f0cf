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

STEP = 4
"""Passages that are read of a store at a time."""

_MOST_HITS = 100  # of a query, where nobody says how many
_CROWD = 1.1  # average passages' worth of the budget for each hit: the rest is for what stands around them

_LEAD = 400  # characters of headings above a context; what is longer is no heading


@dataclass(frozen=True, slots=True)
class Expand:
    """How far hits are expanded.

    to: "neighbours" = the passages before and behind, in turn; "section" = the largest section around the passage that
    fits whole into an even share, else what fits of its own; "document" = the whole document where it fits so, else as
    "section". tokens: what the hits of a query hold together, the best first. count: a text → its tokens; None =
    estimated, one for four ASCII characters and one for every other.
    """

    to: Reach = "neighbours"
    tokens: int = TOKENS
    count: Callable[[str], int] | None = None

    def __post_init__(self) -> None:
        checked_choice("expand", self.to, REACHES)
        checked_k(self.tokens, "expand tokens", "token", TOKENS)


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


def hits_for(expand: Expand, passage_tokens: float) -> int:
    """How many hits suit a budget, where nobody says: as many as leave about a tenth of it to their neighbours.

    passage_tokens: of an average passage. More hits find more answers, until they leave no room for what was cut apart
    (examples/benchmarks/context.py).
    """
    return min(max(1, round(expand.tokens / (_CROWD * max(passage_tokens, 1.0)))), _MOST_HITS)


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


def expand_hits(hits: Sequence[Hit], expand: Expand, around: Surroundings, *, first: int | None = None) -> list[Hit]:
    """The hits of one query, best first, each with its context; hits whose contexts overlap or touch become one.

    What does not fit into the budget is left out, but for the first. first: so many hits are expanded, and those behind
    them fill what is left then; None = all are.
    """
    return _Spreading(expand, around).spread(hits, len(hits) if first is None else first)


@dataclass(eq=False, slots=True)
class _Run:
    """Passages of a document, one behind the other. hits: those found among them, by rank (from 0).

    apart: a code block or table that it is a part of is too large to be given whole.
    """

    passages: list[Chunk]
    hits: dict[int, Hit]
    tokens: int
    apart: bool = False

    @property
    def rank(self) -> int:
        return min(self.hits)

    @property
    def path(self) -> tuple[str, ...]:
        return self.hits[self.rank].chunk.heading_path


class _Spreading:
    """The runs around the hits of one query, while they grow. Each passage is in one run at most."""

    def __init__(self, expand: Expand, around: Surroundings) -> None:
        self.to = expand.to
        self.most = self.left = expand.tokens
        self.count = expand.count or rough_tokens
        self.around = around
        self.owner: dict[str, _Run] = {}
        self._counted: dict[str, int] = {}

    def spread(self, hits: Sequence[Hit], first: int) -> list[Hit]:
        self._place(hits[:first], 0)
        for run in self._runs():
            if self._lives(run):
                whole = self._whole(run.passages)  # the rest of a code block or table
                run.apart = not self._take(run, whole)
        if self.to == "neighbours":
            self._round_about(self._runs(), within=False)
        else:
            self._round_about(self._fill_sections(), within=True)
        self._place(hits[first:], first)
        for run in self._runs():
            for back in (False, True):
                while self._lives(run) and self._touch(run, back):
                    pass
        return [replace(run.hits[run.rank], context=self._context(run)) for run in self._runs()]

    def _place(self, hits: Sequence[Hit], rank: int) -> None:
        """A run for each hit that fits. rank: of the first."""
        for at, hit in enumerate(hits, rank):
            run = self.owner.get(hit.chunk.id)
            if run is not None:  # it was reached from another one
                run.hits[at] = hit
                continue
            run = _Run([hit.chunk], {at: hit}, self._tokens([hit.chunk]))
            if run.tokens <= self.left or not self.owner:
                self.owner[hit.chunk.id] = run
                self.left -= run.tokens

    def _runs(self) -> list[_Run]:
        return sorted({id(run): run for run in self.owner.values()}.values(), key=lambda run: run.rank)

    def _lives(self, run: _Run) -> bool:
        """Whether it was not taken into another one."""
        return self.owner[run.passages[0].id] is run

    def _round_about(self, runs: Sequence[_Run], within: bool) -> None:
        """One passage for each side of every run, the best first, again and again. within: only of its own section."""
        # Behind comes first: what follows explains more often than what stands before.
        sides = [(run, back) for run in runs for back in (False, True)]
        while sides:
            sides = [(run, back) for run, back in sides if self._lives(run) and self._longer(run, back, within)]

    def _longer(self, run: _Run, back: bool, within: bool) -> bool:
        one = self.around.beside(run.passages[0 if back else -1], back=back)
        if one is None or (within and one.heading_path[: len(run.path)] != run.path):
            return False
        longer = [one, *run.passages] if back else [*run.passages, one]
        return self._take(run, longer if run.apart else self._whole(longer))

    def _fill_sections(self) -> list[_Run]:
        """Give each run the largest section that fits into an even share of what is left; those that have none."""
        without = []
        waiting = self._runs()
        while waiting:
            run, *waiting = waiting
            if not self._lives(run):
                continue
            spare = self.left - max(self.left, 0) // (1 + sum(map(self._lives, waiting)))  # for the others
            lowest = 0 if self.to == "document" else min(2, len(run.path))
            fitted = False
            for depth in range(len(run.path), lowest - 1, -1):
                section = self._section(run, run.path[:depth], spare)
                if section is None or not self._take(run, section, spare):
                    break
                fitted = True
                if not self._lives(run):  # a better one took it in
                    break
            if not fitted:
                without.append(run)
        return [run for run in without if self._lives(run)]

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

    def _take(self, run: _Run, passages: list[Chunk], spare: int = 0) -> bool:
        """Let the run hold these passages, with the runs that it meets, if that leaves `spare` tokens.

        The best of them goes on, and holds the others.
        """
        met = self._met(run, passages)
        for other in met:
            passages = _union(passages, other.passages)
        more = self._tokens(passages) - run.tokens - sum(other.tokens for other in met)
        if more > 0 and more > self.left - spare:
            return False
        best = min([run, *met], key=lambda one: one.rank)
        for other in (run, *met):
            best.hits |= other.hits
            best.apart |= other.apart
        best.passages, best.tokens = passages, self._tokens(passages)
        self.left -= more
        self.owner.update((one.id, best) for one in passages)
        return True

    def _touch(self, run: _Run, back: bool) -> bool:
        """Become one with a run that begins where this one ends, or ends where it begins."""
        one = self.around.beside(run.passages[0 if back else -1], back=back)
        if one is None or one.id not in self.owner:
            return False
        return self._take(run, [one, *run.passages] if back else [*run.passages, one])

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
        found = tuple(hit.chunk.id for _, hit in sorted(run.hits.items()))
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
