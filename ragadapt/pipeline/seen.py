"""Questions that judge nothing, because what takes part in a fit has learnt from them: its teacher, or its start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ragadapt.errors import StoreCorrupt
from ragadapt.pipeline.queries import DividedQueries
from ragadapt.queries.seen import mark, marks_of, read_seen
from ragadapt.queries.split import PARTS
from ragadapt.store.workspace import MANIFEST, QUESTIONS
from ragadapt.values import Evidence


def seen_by(model: str) -> frozenset[str]:
    """Marks of what the model in a folder learnt from: a retriever, its model or re-ranker, or a model that was primed
    or blended; none for another folder or a name of the hub. Raises StoreCorrupt."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return frozenset()
    for retriever in (folder, folder.resolve().parent):
        if (retriever / MANIFEST).is_file():
            return seen_by_retriever(retriever)
    return read_seen(folder) or frozenset()


def seen_by_retriever(folder: Path) -> frozenset[str]:
    """Marks of what was trained of a retriever; where its fit did not write them, of all its questions.

    Raises StoreCorrupt."""
    questions = folder / "report" / QUESTIONS
    found = read_seen(questions)
    if found is not None or not questions.is_dir():
        return found or frozenset()
    try:
        every = DividedQueries.read(questions)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(
            f"{questions} cannot be read ({error}). It holds what trained the retriever. Restore it from a copy, or "
            "fit again."
        ) from error
    return marks_of(query for part in PARTS for query in getattr(every, part))


def judged_without(queries: DividedQueries, marks: frozenset[str]) -> tuple[DividedQueries, int]:
    """The queries, of which those with a mark train and judge nothing, and how many might have judged. What must not
    train either is left out."""
    every = [query for part in PARTS for query in getattr(queries, part) if query.evidence is not Evidence.CROP]
    known = {query.id for query in every if mark(query.text) in marks} if marks else set[str]()
    if not known:
        return queries, 0
    back = tuple(query for query in every if query.id in known and query.id not in queries.only_judge)
    parts = queries.parts(lambda query: query.id not in known)
    lost = len(known - set(queries.only_train))
    parts["train"] = (*parts["train"], *back)
    return replace(queries, **parts, only_train=tuple(sorted({*queries.only_train, *known}))), lost
