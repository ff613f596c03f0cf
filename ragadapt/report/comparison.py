"""Any retrievers side by side on judged questions, in one report: what you have, and what you would get."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from ragadapt import report as reports
from ragadapt.errors import InvalidInput, InvalidLabels
from ragadapt.evaluation import evaluate
from ragadapt.evaluation.metrics import Qrels, Run
from ragadapt.report.build import library_versions

Search = Callable[[list[str]], Sequence[Sequence[str]]]
"""Questions → for each the ids of what was found, best first."""


def compare_systems(
    queries: Mapping[str, str],
    judgements: Qrels,
    systems: Mapping[str, Search],
    *,
    texts: Mapping[str, str] | None = None,
    seed: int = 13,
) -> reports.Report:
    """A report that measures systems on the same questions. The first is what the others are compared with.

    queries: id → question. judgements: query id → id → grade (0 = not relevant). systems: name → search; ids as the
    judgements have them. texts: id → text, for the questions that changed most. Write it with
    `ragadapt.report.write_report`. Raises InvalidLabels, InvalidInput.
    """
    asked = {id: text for id, text in queries.items() if any(grade > 0 for grade in judgements.get(id, {}).values())}
    if not asked:
        raise InvalidLabels(
            f"None of the {len(queries)} questions has a judgement above 0: there is nothing to measure."
        )
    if len(systems) < 2:
        raise InvalidInput(f"{len(systems)} system given: name at least two, first what the others are compared with.")
    qrels = {id: judgements[id] for id in asked}
    runs = {name: _run(name, search, asked) for name, search in systems.items()}
    evaluations = {name: evaluate(run, qrels) for name, run in runs.items()}
    first, *others = systems
    last = others[-1]
    baseline = {first: evaluations[first]}
    shown = texts or {}

    def passage(id: str) -> reports.Passage | None:
        return reports.Passage(id=id, text=shown[id], source=id) if id in shown else None

    before, after = ((name, runs[name], evaluations[name]) for name in (first, last))
    return reports.Report(
        title="Retrievers compared",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        evidence=reports.EvidenceUsed(tier="labelled", queries=len(asked)),
        systems=tuple(reports.measured(name, name, evaluation, seed=seed) for name, evaluation in evaluations.items()),
        deltas=tuple(
            delta for name in others for delta in reports.differences(name, evaluations[name], baseline, seed=seed)
        ),
        comparison=reports.compare(asked, qrels, before, after, passage),
        failures=reports.Failures(worst=reports.worst_queries(asked, qrels, before, after, passage)),
        seeds={"seed": seed},
        versions=library_versions(),
    )


def _run(name: str, search: Search, asked: Mapping[str, str]) -> Run:
    """Query id → id → 1/rank; of an id that was found several times, its best rank counts."""
    found = list(search(list(asked.values())))
    if len(found) != len(asked):
        raise InvalidInput(f"{name!r} answered {len(found)} of {len(asked)} questions; it must give a list for each.")
    run: dict[str, dict[str, float]] = {}
    for id, ids in zip(asked, found, strict=True):
        best = dict.fromkeys(str(one) for one in ids)
        run[id] = {one: 1 / rank for rank, one in enumerate(best, start=1)}
    return run
