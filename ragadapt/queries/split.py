"""Who trains, who steers, who judges: by document, near-duplicates together, and a count of what leaks all the same."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from ragadapt.config import SplitConfig
from ragadapt.corpus import normalise
from ragadapt.errors import InvalidInput
from ragadapt.queries.filters import chance
from ragadapt.queries.text import text_key, words
from ragadapt.values import Chunk, Document, Evidence, Query

log = logging.getLogger(__name__)

PARTS = ("train", "dev", "heldout")

FEW_DOCUMENTS = 5
"""Below this many documents a split by document is a coin toss: sections are dealt instead."""

FEWEST_DEV = 8
"""With fewer dev queries their mean is noise: a training is not steered by it."""

ENOUGH_LABELS = 40
"""From so many labelled queries on, the dev part gets FEWEST_DEV of them, even if that is more than its share."""

MIN_SECTIONS = 10
"""Sections are cut as shallow as gives at least this many."""


@dataclass(frozen=True, slots=True)
class Split:
    """Three disjoint sets of ids. unit says of what: documents, chunks (dealt by section), or queries.

    note: what a reader of the report should know about how it was done.
    """

    train: frozenset[str]
    dev: frozenset[str]
    heldout: frozenset[str]
    unit: Literal["document", "section", "query"] = "document"
    note: str = ""

    def part_of(self, chunk: Chunk) -> str:
        """The part that a chunk belongs to: "train", "dev" or "heldout"; "train" for what came later."""
        return self.part(chunk.document_id if self.unit == "document" else chunk.id)

    def part(self, id: str) -> str:
        return "heldout" if id in self.heldout else "dev" if id in self.dev else "train"


@dataclass(frozen=True, slots=True)
class LeakReport:
    """What training sees of the held-out part. All counts are of training items.

    texts: training queries that equal a held-out query up to case, blanks and punctuation; near_texts: that
    say the same in nearly the same words; passages: training positives whose text is a held-out passage's;
    contained: training positives that hold most of a held-out passage inside. Negatives are no leak (see
    ragadapt.pipeline.queries.held_out_negatives).
    """

    texts: int
    near_texts: int
    passages: int
    contained: int
    examples: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return self.texts + self.near_texts + self.passages + self.contained


def split_documents(
    items: Sequence[Document] | Sequence[Chunk],
    groups: Sequence[int] | None,
    config: SplitConfig,
    seed: int,
) -> Split:
    """Deal documents to train, dev and heldout; members of a near-duplicate group go together.

    items: documents, or chunks (needed when there are fewer than five documents: then top-level sections
    are dealt, and the parts hold chunk ids). groups: one near-duplicate group number per item, None = no
    duplicates. A document's part hangs on its id and the seed alone, so adding others moves it only if they
    are its near-duplicates, or if it had to fill up a part that chance gave less than half its share.
    """
    if groups is not None and len(groups) != len(items):
        raise InvalidInput(f"{len(items)} items but {len(groups)} group numbers: pass one per item.")
    if not items:
        raise InvalidInput("There is nothing to split: pass at least one document or chunk.")
    document_of = [item.document_id if isinstance(item, Chunk) else item.id for item in items]
    documents = list(dict.fromkeys(document_of))
    if len(documents) >= FEW_DOCUMENTS or not all(isinstance(item, Chunk) for item in items):
        ties, ignored = _ties(document_of, groups)
        note = f"{ignored} near-duplicate groups run through too many documents to be kept together" if ignored else ""
        return _deal(documents, ties, config, seed, unit="document", note=note, weights=Counter(document_of))
    chunks = [item for item in items if isinstance(item, Chunk)]
    section_of, depth = _sections(chunks)
    named = f"sections of depth {depth}" if depth else "single chunks"
    note = f"split by {named}, because the corpus has only {len(documents)} document{'s' * (len(documents) > 1)}"
    names = [section_of[chunk.id] for chunk in chunks]
    ties, _ = _ties(names, groups)
    dealt = _deal(list(dict.fromkeys(names)), ties, config, seed, unit="section", note=note, weights=Counter(names))
    ids: dict[str, set[str]] = {part: set() for part in PARTS}
    for chunk in chunks:
        ids[dealt.part(section_of[chunk.id])].add(chunk.id)
    return Split(frozenset(ids["train"]), frozenset(ids["dev"]), frozenset(ids["heldout"]), "section", dealt.note)


def split_labelled(queries: Sequence[Query], config: SplitConfig, seed: int) -> Split:
    """Deal labelled queries at random, near-equal texts together.

    Passages may have queries in every part: users ask about what was asked about before, so a random part of their
    questions stands for the next ones. The gate looks at questions with a new answer by themselves as well. Of
    ENOUGH_LABELS queries or more the dev part gets FEWEST_DEV at least; what it lacks comes from the training part.
    """
    if not queries:
        raise InvalidInput("There is nothing to split: pass at least one labelled query.")
    ids = [query.id for query in queries]
    by_text: list[tuple[str, str]] = _chain((f"text {text_key(query.text)}", query.id) for query in queries)
    fewest_dev = FEWEST_DEV if len(ids) >= ENOUGH_LABELS and config.dev > 0 else 0
    return _deal(ids, by_text, config, seed, unit="query", note="", fewest_dev=fewest_dev)


def deal_folds(
    queries: Sequence[Query],
    chunks: Sequence[Chunk],
    groups: Sequence[int] | None,
    folds: int,
    seed: int,
) -> dict[str, int]:
    """Query id → fold (0 … folds − 1), all folds about equally full.

    What users asked is dealt by question, near-equal texts together, as in `split_labelled`. What was found in the
    documents or written about them is dealt by document, near-duplicates together; where there are fewer than five
    documents, by section.
    """
    queries = list(queries)
    labelled = [query for query in queries if query.evidence is Evidence.LABELLED]
    ties: list[tuple[str, str]] = _chain((text_key(query.text), f"query {query.id}") for query in labelled)
    names = [f"query {query.id}" for query in queries]
    written = [query for query in queries if query.evidence is not Evidence.LABELLED]
    if written:
        unit_of = {chunk.id: chunk.document_id for chunk in chunks}
        if len(set(unit_of.values())) < FEW_DOCUMENTS:
            unit_of = _sections(chunks)[0]
        units = [f"unit {unit_of[chunk.id]}" for chunk in chunks]
        names += dict.fromkeys(units)
        ties += _ties(units, groups)[0]
        ties += [
            (f"query {query.id}", f"unit {unit_of[id]}") for query in written for id in query.positives if id in unit_of
        ]
    component = _components(names, ties)
    members: defaultdict[str, list[str]] = defaultdict(list)
    for query in queries:
        members[component[f"query {query.id}"]].append(query.id)
    lots = {name: min(chance(seed, f"fold {id}") for id in ids) for name, ids in members.items()}
    dealt: dict[str, int] = {}
    sizes = [0] * folds
    # The largest first, so that what comes last can even the folds out.
    for name in sorted(members, key=lambda name: (-len(members[name]), lots[name])):
        fold = sizes.index(min(sizes))
        sizes[fold] += len(members[name])
        dealt |= dict.fromkeys(members[name], fold)
    return dealt


def assign_queries(queries: Iterable[Query], chunks: Sequence[Chunk], split: Split) -> dict[str, list[Query]]:
    """The queries by part: "train", "dev", "heldout", and "mixed" whose positives stand in several parts.

    Mixed queries are for nobody: their text would carry held-out passages into training.
    """
    by_id = {chunk.id: chunk for chunk in chunks}
    parts: dict[str, list[Query]] = {part: [] for part in (*PARTS, "mixed")}
    for query in queries:
        if split.unit == "query":
            parts[split.part(query.id)].append(query)
            continue
        own = {split.part_of(by_id[chunk_id]) for chunk_id in query.positives if chunk_id in by_id}
        parts[own.pop() if len(own) == 1 else "mixed"].append(query)
    return parts


def count_leaks(
    train_queries: Sequence[Query],
    heldout_queries: Sequence[Query],
    chunks: Sequence[Chunk],
) -> LeakReport:
    """Count held-out text in training. Held-out passages are the positives of the held-out queries."""
    by_id = {chunk.id: chunk for chunk in chunks}
    examples: list[str] = []
    asked = {normalise(query.text) for query in heldout_queries}
    keys = {text_key(query.text) for query in heldout_queries}
    same = [query for query in train_queries if normalise(query.text) in asked]
    near = [query for query in train_queries if normalise(query.text) not in asked and text_key(query.text) in keys]
    examples += [f"query {query.id}: {query.text[:80]}" for query in (*same, *near)]
    heldout_ids = {id for query in heldout_queries for id in query.positives}
    heldout_texts = [normalise(by_id[id].text) for id in sorted(heldout_ids) if id in by_id]
    passages = set(heldout_texts) - {""}
    trained = {id for query in train_queries for id in query.positives}
    texts = {id: normalise(by_id[id].text) for id in sorted(trained) if id in by_id}
    copies = [id for id, text in texts.items() if text in passages]
    contained = _containing({id: text for id, text in texts.items() if text not in passages}, passages)
    examples += [f"passage {id}" for id in (*copies, *contained)]
    return LeakReport(len(same), len(near), len(copies), len(contained), tuple(examples[:10]))


_SHINGLE = 12  # words: long enough that two texts do not share one by chance


def _containing(texts: Mapping[str, str], passages: Iterable[str]) -> list[str]:
    """Ids of the texts that hold at least half of the twelve-word stretches of one passage."""
    owners: defaultdict[int, list[int]] = defaultdict(list)
    sizes: list[int] = []
    for number, passage in enumerate(sorted(passages)):
        shingles = _shingles(passage)
        sizes.append(len(shingles))
        for shingle in shingles:
            owners[shingle].append(number)
    found = []
    for id, text in texts.items():
        shared: Counter[int] = Counter()
        for shingle in _shingles(text):
            shared.update(owners.get(shingle, ()))
        if any(count >= 0.5 * sizes[number] for number, count in shared.items()):
            found.append(id)
    return found


def _shingles(text: str) -> set[int]:
    tokens = words(text)
    if len(tokens) < _SHINGLE:
        return set()
    return {hash(tuple(tokens[i : i + _SHINGLE])) for i in range(len(tokens) - _SHINGLE + 1)}


# Dealing


def _deal(
    ids: Sequence[str],
    ties: Iterable[tuple[str, str]],
    config: SplitConfig,
    seed: int,
    *,
    unit: Literal["document", "section", "query"],
    note: str,
    weights: Mapping[str, int] = MappingProxyType({}),
    fewest_dev: int = 0,
) -> Split:
    """Each component's lot is its luckiest member's chance: below heldout it is held out, then dev, then train.

    fewest_dev: weight that the dev part gets in any case.
    """
    component = _components(ids, ties)
    lots: dict[str, float] = {}
    for id in ids:
        lots[component[id]] = min(lots.get(component[id], 1.0), chance(seed, id))
    # A lump's smallest chance is small because it is a lump: undo that, so that lumps are held out as often.
    sizes = Counter(component.values())
    lots = {name: 1 - (1 - lot) ** sizes[name] for name, lot in lots.items()}
    dev_end = config.heldout + (1 - config.heldout) * config.dev
    part_of = {
        name: "heldout" if lot < config.heldout else "dev" if lot < dev_end else "train" for name, lot in lots.items()
    }
    if len(lots) < 1 + (config.heldout > 0) + (config.dev > 0):
        note = "; ".join(filter(None, (note, "too little to hold anything out: all of it trains")))
        log.warning("split: %s", note)
        return Split(frozenset(ids), frozenset(), frozenset(), unit, note)
    share = {"heldout": config.heldout, "dev": (1 - config.heldout) * config.dev}
    weight: Counter[str] = Counter()
    for id in ids:
        weight[component[id]] += weights.get(id, 1)
    for part in ("heldout", "dev"):
        target = share[part] * weight.total()
        _top_up(part, target / 2, 1.5 * target, part_of, lots, weight)
    _top_up("dev", fewest_dev, fewest_dev, part_of, lots, weight)
    for part in ("train", *(part for part in share if share[part] > 0)):
        if part not in part_of.values():
            richest = max(PARTS, key=list(part_of.values()).count)
            own = sorted((name for name, at in part_of.items() if at == richest), key=lambda name: (lots[name], name))
            part_of[own[0] if part == "heldout" else own[-1]] = part
    members = {part: frozenset(id for id in ids if part_of[component[id]] == part) for part in PARTS}
    return Split(members["train"], members["dev"], members["heldout"], unit, note)


def _top_up(
    part: str,
    least: float,
    largest: float,
    part_of: dict[str, str],
    lots: Mapping[str, float],
    weight: Mapping[str, int],
) -> None:
    """Move training components of up to `largest` to a part that got less than `least`, those next in line first.

    In a small corpus chance alone may leave a part with nothing, or with one short document.
    """
    line = sorted((name for name, at in part_of.items() if at == "train"), key=lambda name: (lots[name], name))
    have = sum(weight[name] for name, at in part_of.items() if at == part)
    fitting = [name for name in line if weight[name] <= largest]
    if have == 0 and least > 0 and not fitting:
        fitting = sorted(line, key=lambda name: weight[name])[:1]
    for name in fitting:
        if have >= least or len(line) < 2:
            return
        part_of[name] = part
        line.remove(name)
        have += weight[name]


def _components(ids: Iterable[str], ties: Iterable[tuple[str, str]]) -> dict[str, str]:
    """id → the name of its connected component (union–find)."""
    parent = {id: id for id in ids}

    def find(id: str) -> str:
        while parent[id] != id:
            parent[id] = parent[parent[id]]
            id = parent[id]
        return id

    for left, right in ties:
        parent[find(left)] = find(right)
    return {id: find(id) for id in parent}


def _chain(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Ties between members that share a key: each with the first of its key."""
    first: dict[str, str] = {}
    ties = []
    for key, id in pairs:
        if first.setdefault(key, id) != id:
            ties.append((first[key], id))
    return ties


def _ties(names: Sequence[str], groups: Sequence[int] | None) -> tuple[list[tuple[str, str]], int]:
    """Ties between near-duplicates, and how many groups were left out.

    A group that runs through a twentieth of all documents is a footer or a licence text: tying by it
    would lump the corpus together.
    """
    if groups is None:
        return [], 0
    members: defaultdict[int, set[str]] = defaultdict(set)
    for name, group in zip(names, groups):
        members[group].add(name)
    limit = max(4, len(set(names)) // 20)
    ties = [(min(group), other) for group in members.values() if len(group) <= limit for other in group - {min(group)}]
    return sorted(ties), sum(len(group) > limit for group in members.values())


def _sections(chunks: Sequence[Chunk]) -> tuple[dict[str, str], int]:
    """chunk id → section, at the shallowest heading depth that gives enough sections; depth 0 = single chunks."""
    deepest = max(len(chunk.heading_path) for chunk in chunks)
    for depth in range(1, deepest + 1):
        sections = {chunk.id: "\0".join((chunk.document_id, *chunk.heading_path[:depth])) for chunk in chunks}
        if len(set(sections.values())) >= MIN_SECTIONS:
            return sections, depth
    return {chunk.id: chunk.id for chunk in chunks}, 0
