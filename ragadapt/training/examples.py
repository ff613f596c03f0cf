"""Training examples, and batches of them in which no known answer serves as a negative."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ragadapt.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Example:
    """A query with a passage that answers it.

    negatives: passages that do not. candidates: what the teacher scored for distillation, teacher_scores
    beside them, larger is better (the positive should be among them). group: examples of one group (the same
    document, say) are never each other's negatives; None = no group. weight: in the loss. answers: other passages
    known to answer the query; where another example of the batch brings one along, it is no negative. task: what kind
    of query it is, for methods that learn by task; None = unknown.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    teacher_scores: tuple[float, ...] = ()
    group: int | str | None = None
    weight: float = 1.0
    answers: tuple[str, ...] = ()
    task: str | None = None


@dataclass(frozen=True)
class Batch:
    """Positions in the texts of a `TrainingSet`, and what the losses need to know.

    queries (Q,) and passages (P,): text numbers. positives (Q,): columns of passages. excluded (Q, P).
    candidates (Q, C): columns of passages, present (Q, C) where there is one, teacher (Q, C). weights (Q,).
    """

    queries: npt.NDArray[np.int64]
    passages: npt.NDArray[np.int64]
    positives: npt.NDArray[np.int64]
    excluded: npt.NDArray[np.bool_]
    candidates: npt.NDArray[np.int64]
    present: npt.NDArray[np.bool_]
    teacher: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]


class TrainingSet:
    """All examples with every distinct text once. Texts are the same if they are after normalisation."""

    def __init__(self, examples: Sequence[Example], *, distil: bool, contrast: bool) -> None:
        """distil: use candidates. contrast: use negatives. Raises InvalidInput naming the faulty example."""
        self.examples = list(examples)
        check_examples(self.examples, distil)
        self.distil, self.contrast = distil, contrast
        self.queries: list[str] = []
        self.passages: list[str] = []
        query_numbers: dict[str, int] = {}
        passage_numbers: dict[str, int] = {}

        def number(text: str, numbers: dict[str, int], texts: list[str]) -> int:
            key = normalised(text)
            found = numbers.get(key)
            if found is None:
                found = numbers[key] = len(texts)
                texts.append(text)
            return found

        self.query_of: list[int] = []
        self.positive_of: list[int] = []
        self.negatives_of: list[tuple[int, ...]] = []
        self.candidates_of: list[tuple[int, ...]] = []
        self.answers: dict[int, set[int]] = {}  # query → all passages known to answer it, in any example
        for example in self.examples:
            query = number(example.query, query_numbers, self.queries)
            positive = number(example.positive, passage_numbers, self.passages)
            self.query_of.append(query)
            self.positive_of.append(positive)
            self.answers.setdefault(query, set()).add(positive)
            others = example.negatives if contrast else ()
            self.negatives_of.append(tuple(number(text, passage_numbers, self.passages) for text in others))
            listed = example.candidates if distil else ()
            self.candidates_of.append(tuple(number(text, passage_numbers, self.passages) for text in listed))
        self.task_of: list[str | None] = [None] * len(self.queries)  # of a query: of its first example that has one
        for example, query in zip(self.examples, self.query_of, strict=True):
            self.task_of[query] = self.task_of[query] or example.task
            keys = map(normalised, example.answers)
            self.answers[query] |= {passage_numbers[key] for key in keys if key in passage_numbers}

    @property
    def tasks(self) -> list[str]:
        """Those of the queries, each once, sorted."""
        return sorted({task for task in self.task_of if task is not None})

    def __len__(self) -> int:
        return len(self.examples)

    def order(self, epoch: int, seed: int, batch_size: int, items: Sequence[int] | None = None) -> list[list[int]]:
        """One epoch's batches, shuffled; examples with the same query or positive are spread over batches.

        The last batch may be a little smaller or larger. items: of these examples alone; None = of all.
        """
        own = np.arange(len(self)) if items is None else np.asarray(items)
        shuffled = np.random.default_rng([seed, epoch]).permutation(own).tolist()
        batches: list[list[int]] = []
        waiting: list[int] = shuffled
        while waiting:
            batch: list[int] = []
            postponed: list[int] = []
            queries: set[int] = set()
            positives: set[int] = set()
            for position, item in enumerate(waiting):
                if len(batch) == batch_size:
                    postponed += waiting[position:]
                    break
                if self.query_of[item] in queries or self.positive_of[item] in positives:
                    postponed.append(item)
                    continue
                batch.append(item)
                queries.add(self.query_of[item])
                positives.add(self.positive_of[item])
            batches.append(batch)
            waiting = postponed
        return _without_crumbs(batches, batch_size)

    def batch(self, items: Sequence[int]) -> Batch:
        """Everything about these examples that the losses need."""
        passages: dict[int, int] = {}  # passage → column
        for item in items:
            for passage in (self.positive_of[item], *self.negatives_of[item], *self.candidates_of[item]):
                passages.setdefault(passage, len(passages))
        count, width = len(items), len(passages)
        positives = np.array([passages[self.positive_of[item]] for item in items], dtype=np.int64)
        excluded = np.zeros((count, width), dtype=bool)
        for row, item in enumerate(items):
            excluded[row, [passages[p] for p in self.answers[self.query_of[item]] if p in passages]] = True
            group = self.examples[item].group
            if group is not None:
                mates = [other for other, mate in enumerate(items) if self.examples[mate].group == group]
                excluded[row, positives[mates]] = True
        longest = max((len(self.candidates_of[item]) for item in items), default=0)
        candidates = np.zeros((count, longest), dtype=np.int64)
        present = np.zeros((count, longest), dtype=bool)
        teacher = np.zeros((count, longest), dtype=np.float32)
        for row, item in enumerate(items):
            listed = [passages[passage] for passage in self.candidates_of[item]]
            candidates[row, : len(listed)] = listed
            present[row, : len(listed)] = True
            if listed:
                teacher[row, : len(listed)] = self.examples[item].teacher_scores
        return Batch(
            queries=np.array([self.query_of[item] for item in items], dtype=np.int64),
            passages=np.fromiter(passages, np.int64, width),
            positives=positives,
            excluded=excluded,
            candidates=candidates,
            present=present,
            teacher=teacher,
            weights=np.array([self.examples[item].weight for item in items], dtype=np.float32),
        )

    def batches(self, epochs: float, seed: int, batch_size: int) -> Iterator[list[int]]:
        """Batches of all epochs; a fraction of an epoch takes its first batches."""
        epoch = 0
        left = epochs
        while left > 1e-9:
            batches = self.order(epoch, seed, batch_size)
            yield from batches[: max(1, round(len(batches) * min(1.0, left)))]
            left -= 1
            epoch += 1


def normalised(text: str) -> str:
    """The form in which two texts count as one: NFKC, case folded, white space collapsed."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def _without_crumbs(batches: list[list[int]], batch_size: int) -> list[list[int]]:
    """Pool batches too small to hold in-batch negatives; the masks keep repeated texts in them harmless."""
    smallest = max(2, batch_size // 4)
    whole = [batch for batch in batches if len(batch) >= smallest]
    crumbs = [item for batch in batches if len(batch) < smallest for item in batch]
    whole += [crumbs[start : start + batch_size] for start in range(0, len(crumbs), batch_size)]
    if len(whole) > 1 and len(whole[-1]) < smallest:
        last = whole.pop()
        whole[-1] = whole[-1] + last
    return whole


def check_examples(examples: Sequence[Example], distil: bool) -> None:
    """Raises InvalidInput that names the faulty one. distil: candidates are read."""
    if not examples:
        raise InvalidInput("There are no training examples. Give some, or use method = 'none'.")
    for position, example in enumerate(examples):
        where = f"examples[{position}]"
        if not isinstance(example, Example):
            raise InvalidInput(f"{where} is {type(example).__name__}; it must be a ragadapt.training.Example.")
        if not example.query.strip() or not example.positive.strip():
            raise InvalidInput(f"{where} has an empty query or positive.")
        if len(example.candidates) != len(example.teacher_scores):
            raise InvalidInput(
                f"{where} has {len(example.candidates)} candidates and {len(example.teacher_scores)} teacher scores; "
                "each candidate needs one."
            )
        if not np.isfinite([example.weight, *example.teacher_scores]).all() or example.weight < 0:
            raise InvalidInput(f"{where}: weight and teacher scores must be finite, the weight not negative.")
        known = normalised(example.positive)
        if any(normalised(negative) == known for negative in example.negatives):
            raise InvalidInput(f"{where} has its positive among its negatives.")
    if distil and not any(len(example.candidates) >= 2 for example in examples):
        raise InvalidInput("Distillation needs examples with candidates and teacher scores; none has two or more.")
    if not any(example.weight > 0 for example in examples):
        raise InvalidInput("All examples have weight 0.")
