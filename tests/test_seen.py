"""Questions that a model learnt from: they are known again, and judge nothing that it helps to make."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from trained_retriever import fit_trained

from ragadapt.config import FitConfig
from ragadapt.errors import StoreCorrupt
from ragadapt.evaluation import gate
from ragadapt.pipeline.fit import fit
from ragadapt.pipeline.queries import DividedQueries, Labels
from ragadapt.pipeline.questions import evaluate_questions
from ragadapt.pipeline.seen import judged_without, seen_by
from ragadapt.queries.seen import FILE, mark, marks_of, read_seen, write_seen
from ragadapt.report import read_report
from ragadapt.retriever import Retriever
from ragadapt.values import Evidence, Query


def query(id: str, evidence: Evidence = Evidence.LABELLED) -> Query:
    return Query(id, f"what is {id}?", "label", evidence, ("c1",))


def divided(train: str = "", dev: str = "", heldout: str = "", **rest: tuple[str, ...]) -> DividedQueries:
    parts = [tuple(query(id) for id in part.split()) for part in (train, dev, heldout)]
    return DividedQueries(*parts, {}, {}, {}, {}, (), **rest)


def ids(queries: DividedQueries) -> tuple[list[str], ...]:
    return tuple([one.id for one in part] for part in (queries.train, queries.dev, queries.heldout))


# Marks


def test_a_question_is_known_again_in_other_case_and_spacing_and_no_other_is() -> None:
    assert mark("What  is a lamp?") == mark("what is a LAMP? ")
    assert len({mark(text) for text in ("what is a lamp?", "what is a lamb?", "", "ランプとは")}) == 4
    assert mark("\ud800 half a character")


def test_what_was_cut_from_the_passages_leaves_no_mark() -> None:
    assert marks_of([query("a"), query("b", Evidence.CROP)]) == {mark("what is a?")}


def test_marks_come_back_and_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    assert read_seen(tmp_path) is None
    write_seen(tmp_path, {"b", "a"})
    assert read_seen(tmp_path) == {"a", "b"}
    for damaged in ('["a"', '{"a": 1}', "[1]", "\ud800"):
        (tmp_path / FILE).write_bytes(damaged.encode("utf-8", "surrogatepass"))
        with pytest.raises(StoreCorrupt, match=r"seen\.json"):
            read_seen(tmp_path)


# Who judges


def test_a_known_question_trains_wherever_it_stood() -> None:
    before = divided("a b", "c d", "e f", only_train=("b",))
    found, lost = judged_without(before, marks_of([query("a"), query("d"), query("e"), query("b")]))
    assert ids(found) == (["a", "b", "d", "e"], ["c"], ["f"])
    assert found.only_train == ("a", "b", "d", "e")
    assert lost == 3  # b was to judge nothing anyway


def test_a_known_question_that_must_not_train_either_is_left_out() -> None:
    found, lost = judged_without(divided("a", "", "b c", only_judge=("b",)), marks_of([query("b")]))
    assert ids(found) == (["a"], [], ["c"])
    assert lost == 1


def test_without_a_known_question_nothing_changes() -> None:
    before = divided("a", "b", "c")
    assert judged_without(before, frozenset()) == (before, 0)
    assert judged_without(before, frozenset({mark("other")})) == (before, 0)


def test_a_language_models_question_that_is_known_does_not_judge() -> None:
    written = [query(f"q{at}", Evidence.PARAPHRASE) for at in range(120)]
    free = gate.plan(written, [])
    known = gate.plan(written, [], only_train=[one.id for one in written[:10]])
    assert (len(free.judge), len(known.judge)) == (120, 110)
    assert len(known.train) == 120
    assert not gate.plan(written, [], only_train=[one.id for one in written[:30]]).judge


# What a folder has seen, and whoever measures it


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_trained(tmp_path_factory.mktemp("trained"))


def test_a_retriever_tells_of_itself_and_of_its_model(trained: Path) -> None:
    rows = (trained.parent / "labels.jsonl").read_text().splitlines()
    seen = {mark(json.loads(row)["text"]) for row in rows}
    assert seen_by(str(trained)) == seen_by(str(trained / "model")) == seen
    assert seen_by("all-MiniLM-L6-v2") == seen_by(str(trained.parent / "docs")) == frozenset()


def test_of_a_retriever_that_did_not_write_it_every_question_counts(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = seen_by(str(trained))
    file = trained / "report" / "questions" / FILE
    kept = file.read_text()
    try:
        file.unlink()
        assert seen <= seen_by(str(trained))
        file.write_text("[")
        with pytest.raises(StoreCorrupt):
            seen_by(str(trained))
    finally:
        file.write_text(kept)


def test_what_a_teacher_has_seen_judges_nothing(trained: Path, tmp_path: Path) -> None:
    configuration = json.loads((trained / "ragadapt.json").read_text())["configuration"]
    settings = {**configuration, "mining": {"teacher": str(trained)}, "training": {"loss": "distill"}}
    labels = [Labels(trained.parent / "labels.jsonl")]
    result = fit([trained.parent / "docs"], tmp_path / "retriever", FitConfig.build(settings), labels=labels)
    report = read_report(result.path / "report")
    assert "questions judge nothing here, because the teacher" in " ".join(report.warnings)
    assert result.verdict == "NO GAIN"


def test_figures_of_a_base_that_has_seen_the_questions_are_said_to_flatter(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = json.loads((trained / "ragadapt.json").read_text())["configuration"]
    encoder = {**configuration["encoder"], "model": str(trained / "model")}
    decide = gate.decide
    monkeypatch.setattr(
        gate, "decide", lambda **given: replace(decide(**given), verdict=gate.Verdict.NO_GAIN, strength=0.0)
    )
    config = FitConfig.build({**configuration, "encoder": encoder})
    labels = [Labels(trained.parent / "labels.jsonl")]
    result = fit([trained.parent / "docs"], tmp_path / "retriever", config, labels=labels)
    count = len(seen_by(str(trained)))
    said = f"{count} of the {count} questions that judge are among those that the base model has learnt from"
    assert said in " ".join(read_report(result.path / "report").warnings)
    assert seen_by(str(result.path)) == seen_by(str(trained))  # its model is still the base


def test_whoever_measures_a_retriever_on_what_trained_it_is_told(trained: Path, tmp_path: Path) -> None:
    labels = trained.parent / "labels.jsonl"
    rows = [json.loads(line) for line in labels.read_text().splitlines()]
    rows[0]["text"] = "something else"
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Retriever.open(trained, precision="float32") as retriever:  # in which the base's vectors beside it were made
        assert retriever.evaluate(labels)["dense"]["questions it learnt from"] == len(rows)
        assert retriever.evaluate(asked)["hybrid"]["questions it learnt from"] == len(rows) - 1
        said = f"{len(rows) - 1} of the {len(rows)} questions have trained this retriever"
        assert said in " ".join(evaluate_questions(retriever, asked).warnings)
        asked.write_text(json.dumps(rows[0]) + "\n")
        assert "questions it learnt from" not in retriever.evaluate(asked)["dense"]
        assert evaluate_questions(retriever, asked).warnings == ()
