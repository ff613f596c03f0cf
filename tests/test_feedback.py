"""Feedback through the retriever, its files and its commands."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_ragadapt import LoRARetriever
from llama_index_ragadapt import LoRARetriever as NodeRetriever
from llama_index_ragadapt import RagAdaptVectorStore as NodeStore
from ragadapt_cli.main import run
from tiny_models import sentences, write_tiny_model

from ragadapt import FitConfig, Retriever, fit
from ragadapt.errors import InvalidInput
from ragadapt.evaluation import paired_bootstrap
from ragadapt.feedback import export_ledger, export_pairs, read_feedback, tune_feedback
from ragadapt.pefa import Feedback, tuning
from ragadapt.pefa.tuning import tune
from ragadapt.pipeline.refresh import refresh_documents
from ragadapt.retriever import _LOOK_SECONDS

PAGES = 14


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def write_docs(folder: Path) -> Path:
    folder.mkdir()
    lines = iter(sentences(PAGES * 6, words=12, seed=3))
    for number in range(PAGES):
        text = f"# Page {number}\n\n"
        for section in range(2):
            text += f"## Part {number} {section}\n\n" + ". ".join(next(lines) for _ in range(3)) + ".\n\n"
        (folder / f"page{number:02}.md").write_text(text, encoding="utf-8")
    return folder


def settings(model: Path, **changes: Any) -> FitConfig:
    return FitConfig.build(
        {
            "encoder": {"model": str(model), "precision": "float32"},
            "chunk": {"max_tokens": 40, "min_tokens": 4},
            "adapter": {"method": "none"},
            "index": {"kind": "exact"},
            "fusion": {"weight": 0.5},  # the toy model knows nothing: by itself its side would get no say
            **changes,
        }
    )


@pytest.fixture(scope="module")
def fitted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted")
    fit([write_docs(folder / "docs")], folder / "retriever", settings(model))
    return folder


@pytest.fixture
def folder(fitted: Path, tmp_path: Path) -> Path:
    shutil.copytree(fitted / "docs", tmp_path / "docs")
    shutil.copytree(fitted / "retriever", tmp_path / "retriever")
    return tmp_path


@pytest.fixture
def retriever(folder: Path) -> Iterator[Retriever]:
    with Retriever.open(folder / "retriever") as opened:
        yield opened


def ids(retriever: Retriever, query: str = "what is new", **options: Any) -> list[str]:
    return [hit.chunk.id for hit in retriever.search(query, 50, **options)]


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


# In Python


@pytest.mark.parametrize("mode", ["dense", "hybrid"])
def test_feedback_counts_in_the_next_search_and_withdrawn_as_if_never(retriever: Retriever, mode: str) -> None:
    before = retriever.search("what is new", 50, mode=mode)  # type: ignore[arg-type]
    last = before[-1].chunk.id
    key = retriever.add_feedback("what is new", last)
    assert ids(retriever, mode=mode, lam=0.1)[0] == last
    assert ids(retriever, mode=mode, lam=1) == [hit.chunk.id for hit in before]
    assert retriever.withdraw_feedback(key) == 1
    after = retriever.search("what is new", 50, mode=mode)  # type: ignore[arg-type]
    assert [(hit.chunk.id, hit.score) for hit in after] == [(hit.chunk.id, hit.score) for hit in before]


def test_a_search_without_feedback_makes_no_ledger(retriever: Retriever) -> None:
    ids(retriever)
    assert not (retriever.path / "feedback.sqlite").exists()


def test_other_openings_see_feedback_at_their_next_search(retriever: Retriever) -> None:
    with Retriever.open(retriever.path) as other:
        target = ids(other)[-1]
        retriever.add_feedback("what is new", target)
        assert ids(other, lam=0.1)[0] == target
        other.withdraw_feedback(query="what is new")
        assert ids(retriever, lam=0.1) == ids(retriever, lam=1)


def test_a_document_stands_for_its_nearest_chunk_and_a_quote_for_the_one_that_holds_it(retriever: Retriever) -> None:
    chunks = retriever.chunks.of_document("page03.md")
    assert len(chunks) >= 2
    ranked = [id for id in ids(retriever, mode="dense") if id.startswith("page03.md")]
    retriever.add_feedback("what is new", document_id="page03.md", key="document")
    (one,) = retriever.feedback().ledger.find("document")
    assert (one.chunk_id, one.level) == (ranked[0], "document")
    held = chunks[-1]
    retriever.add_feedback("else", source="page03.md", quote=" ".join(held.text.split()[2:9]), key="quote")
    (one,) = retriever.feedback().ledger.find("quote")
    assert (one.chunk_id, one.level) == (held.id, "quote")


def test_feedback_that_names_nothing_or_two_things_is_refused(retriever: Retriever) -> None:
    for where, said in (
        ({}, "one way"),
        ({"chunk_id": "nowhere"}, "no chunk 'nowhere'"),
        ({"document_id": "nowhere.md"}, "no document"),
        ({"source": "page01.md"}, "needs its source, and a source its quote"),
        ({"source": "page01.md", "quote": "never said by anybody in here"}, "holds the quote"),
        ({"chunk_id": ids(retriever)[0], "document_id": "page01.md"}, "one way"),
    ):
        with pytest.raises(InvalidInput, match=said):
            retriever.add_feedback("what is new", **where)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="query is ''"):
        retriever.add_feedback("", ids(retriever)[0])
    with pytest.raises(InvalidInput, match="λ"):
        retriever.search("what is new", lam=2)
    assert not retriever.has_feedback


def test_threads_and_searches_together_end_like_one_after_the_other(retriever: Retriever) -> None:
    known = ids(retriever)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                key = retriever.add_feedback(f"question {number} {turn % 3}", known[(number * 7 + turn) % len(known)])
                assert retriever.search(f"question {number}", 3)
                if turn % 4 == 0:
                    retriever.withdraw_feedback(key)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    after = retriever.search("question 2", 50)
    retriever.feedback().rebuild()
    assert [(h.chunk.id, h.score) for h in retriever.search("question 2", 50)] == [(h.chunk.id, h.score) for h in after]
    assert retriever.feedback().status().feedback == 6 * (10 - 3)


# When documents change


def test_feedback_follows_a_chunk_whose_file_moved_and_whose_place_shifted(
    folder: Path, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = retriever.chunks.of_document("page05.md")[0]
    shifted = retriever.chunks.of_document("page06.md")[-1]
    retriever.add_feedback("what moved", moved.id)
    retriever.add_feedback("what shifted", shifted.id)
    docs = folder / "docs"
    (docs / "page05.md").rename(docs / "renamed.md")
    text = (docs / "page06.md").read_text()
    (docs / "page06.md").write_text(text.replace("## Part 6 0", "## A new part\n\nSome words more.\n\n## Part 6 0"))
    refresh_documents(retriever.path, [docs])
    monkeypatch.setattr("ragadapt.retriever._LOOK_SECONDS", 0.0)
    assert ids(retriever, "what moved", lam=0.0)[0].startswith("renamed.md")
    top = retriever.search("what shifted", 1, lam=0.0)[0].chunk
    assert top.text == shifted.text
    assert top.start > shifted.start
    assert retriever.feedback().status().inactive == 0


def test_feedback_on_a_deleted_chunk_sleeps_and_revives_with_it(folder: Path) -> None:
    docs, path = folder / "docs", folder / "retriever"
    with Retriever.open(path) as opened:
        target = opened.chunks.of_document("page05.md")[0]
        opened.add_feedback("what is new", target.id)
    kept = (docs / "page05.md").read_text()
    (docs / "page05.md").unlink()
    refresh_documents(path, [docs])
    with Retriever.open(path) as opened:
        assert opened.feedback().status().inactive == 1
        assert ids(opened, lam=0.1) == ids(opened, lam=1)
    (docs / "page05.md").write_text(kept)
    refresh_documents(path, [docs])
    with Retriever.open(path) as opened:
        assert opened.feedback().status().inactive == 0
        assert opened.search("what is new", 1, lam=0.0)[0].chunk.text == target.text


def test_another_fit_with_another_encoder_replays_the_ledger(folder: Path, tmp_path: Path) -> None:
    with Retriever.open(folder / "retriever") as opened:
        target = ids(opened)[-1]
        opened.add_feedback("what is new", target)
    other = write_tiny_model(tmp_path / "other", seed=5)
    fit([folder / "docs"], folder / "retriever", settings(other))
    with Retriever.open(folder / "retriever") as opened:
        assert ids(opened, lam=0.1, mode="dense")[0] == target
        assert opened.feedback().problems() == []


def test_an_open_retriever_goes_on_with_the_folder_that_took_its_place(
    folder: Path, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _LOOK_SECONDS <= 5
    monkeypatch.setattr("ragadapt.retriever._LOOK_SECONDS", 0.0)
    (folder / "docs" / "more.md").write_text("# More\n\nWords that stand nowhere else: zebra quagga okapi.\n")
    refresh_documents(retriever.path, [folder / "docs"])
    assert ids(retriever, "zebra quagga okapi", mode="lexical")[0].startswith("more.md")


# Files


def test_good_lines_count_and_bad_ones_are_listed_with_their_numbers(folder: Path, retriever: Retriever) -> None:
    known = ids(retriever)
    good = [{"query": f"question {at}", "chunk_id": known[at % len(known)]} for at in range(1200)]
    lines: list[Any] = list(good)
    lines[700] = "{not json"
    lines[3] = {"query": "", "chunk_id": known[0]}
    lines[1100] = {"query": "who", "chunk_id": "nowhere"}
    lines[10] = {"query": "who", "chunk_id": known[0], "weight": float("nan")}
    lines[11] = {"query": "who", "chunk": known[0]}
    lines[12] = {"query": "who", "chunk_id": known[0], "at": "yesterday"}
    lines[13] = '["a", "list"]'
    file = write(folder / "clicks.jsonl", *lines)
    taken = read_feedback(retriever, file)
    assert [problem.line for problem in taken.problems] == [4, 11, 12, 13, 14, 701, 1101]
    assert (taken.lines, taken.added, taken.known) == (1200, 1193, 0)
    again = read_feedback(retriever, file)
    assert (again.added, again.known) == (0, 1193)
    assert retriever.feedback().status().feedback == 1193


def test_a_line_that_stands_twice_counts_twice_but_a_file_taken_twice_once(folder: Path, retriever: Retriever) -> None:
    line = {"query": "who", "chunk_id": ids(retriever)[0]}
    file = write(folder / "clicks.jsonl", line, line)
    assert read_feedback(retriever, file).added == 2
    assert read_feedback(retriever, file).known == 2


def test_lines_may_withdraw_carry_times_and_users(folder: Path, retriever: Retriever) -> None:
    first, second = ids(retriever)[:2]
    file = write(
        folder / "clicks.jsonl",
        {"query": "who", "chunk_id": first, "user": "ann", "at": "2026-03-01T12:00:00Z", "weight": 0.5},
        {"query": "who", "chunk_id": second, "key": "mine", "tenant": "acme", "at": 1e9},
        {"query": "who", "document_id": "page02.md"},
        {"query": "who", "chunk_id": first, "withdraw": True},
        {"key": "mine", "withdraw": True},
    )
    taken = read_feedback(retriever, file)
    assert (taken.added, taken.withdrawn, taken.problems) == (3, 2, ())
    everything = list(retriever.feedback().ledger.find(withdrawn=True))
    assert [(one.user, one.tenant, one.at, one.weight, one.withdrawn) for one in everything[:2]] == [
        ("ann", "", 1772366400.0, 0.5, True),
        ("", "acme", 1e9, 1.0, True),
    ]
    assert [one.document_id for one in retriever.feedback().ledger.find()] == ["page02.md"]


def test_exported_pairs_train_the_next_fit_and_exported_lines_move_to_another_folder(
    folder: Path, model: Path, retriever: Retriever
) -> None:
    known = ids(retriever)
    retriever.add_feedback_many([Feedback(f"question {at}", known[at]) for at in range(20)])
    retriever.add_feedback("question 0", known[5])
    retriever.add_feedback("question 1", known[1], weight=-2)  # more against it than for it
    assert export_pairs(retriever, folder / "pairs.jsonl") == 19
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert len(rows[0]["evidence"]) == 2
    assert rows[0]["evidence"][0]["quote"] in (folder / "docs" / rows[0]["evidence"][0]["source"]).read_text()
    from ragadapt import Labels

    result = fit([folder / "docs"], folder / "next", settings(model), labels=[Labels(folder / "pairs.jsonl")])
    assert any(row.kind == "label" and row.kept == 19 for row in result.report.queries)
    assert export_ledger(retriever, folder / "ledger.jsonl") == 22
    with Retriever.open(folder / "next") as other:
        assert read_feedback(other, folder / "ledger.jsonl").added == 22
        assert [one.key for one in other.feedback().ledger.find()] == [
            one.key for one in retriever.feedback().ledger.find()
        ]


# Tuning


def test_tuning_takes_feedback_that_helps_and_switches_off_what_does_not(retriever: Retriever) -> None:
    """Questions of one group share their answer, which no other signal gives away; then answers at random."""
    known = ids(retriever)
    groups = [f"topic{at} {word}" for at in range(8) for word in ("a", "b", "c", "d", "e")]
    shared = [Feedback(f"{text} {text.split()[0]} {text.split()[0]}", known[2 + int(text[5])]) for text in groups]
    retriever.add_feedback_many(shared)
    tuned = tune_feedback(retriever)
    assert tuned.helps and tuned.gain is not None and tuned.gain.better
    assert tuned.chosen > tuned.plain
    assert retriever.feedback().config.lam == tuned.values["lam"] < 1
    assert tuned.curve[-1][0] == 1.0 and len(tuned.curve) > 5
    page = (retriever.path / "feedback-report" / "report.html").read_text()
    assert "λ" in page and "<svg" in page
    retriever.withdraw_feedback(user="")
    noise = [Feedback(f"unrelated {at} {at * 37}", known[(at * 29 + 7) % len(known)]) for at in range(40)]
    retriever.add_feedback_many(noise)
    off = tune_feedback(retriever)
    assert not off.helps
    assert retriever.feedback().config.lam == 1
    assert ids(retriever) == ids(retriever, lam=1)


class Judgements:
    """nDCG@10 of made-up questions, in the place of searches: `lift` is what PEFA-XL with k = 4, λ = .1 gains on
    average over the settings in use, beside noise between questions and settings."""

    def __init__(self, count: int, lift: float, seed: int) -> None:
        random = np.random.default_rng(seed)
        lams = [("xs", 0, lam) for lam in (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)]
        self.settings = [("plain", 0, 1.0), *lams, ("xl", 4, 0.1)]
        base = random.uniform(0.2, 0.8, count)
        self.base = np.clip(base + random.normal(0, 0.1, (len(self.settings), 3, count)), 0, 1)
        self.base[-1] = np.clip(self.base[4, 1] + lift + random.normal(0, 0.1, (3, count)), 0, 1)

    def tables(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        made = []
        for deal in range(tuning.DEALS):
            table = tuning._Table.__new__(tuning._Table)
            table.searcher, table.weights = None, (0.3, 0.5, 0.7)
            table.settings, table.now = self.settings, 4
            table.quality, table.dense = self.base.copy(), self.base[:, 1].copy()
            table.quality[0] = table.quality[0, 1]
            count = self.base.shape[2]
            table.asked, table.folds = np.arange(count), np.random.default_rng(deal).integers(5, size=count)
            made.append(table)
        monkeypatch.setattr(tuning._Table, "start", 1)
        monkeypatch.setattr(tuning._Table, "plain_start", 1)
        return made


@pytest.mark.parametrize("count", [12, 24, 60])
def test_tuning_changes_nothing_where_the_gain_may_be_chance(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 30 ledgers in which no setting is better than another: the best of 22 looks better all the same."""
    adopted = 0
    for seed in range(30):
        tables = Judgements(count, 0.0, seed).tables(monkeypatch)
        tuned = tuning.choose(tables, 13)
        adopted += bool(tuned.values)
        assert tuned.values or tuned.chosen == pytest.approx(tables[0].quality[4, 1].mean())
        assert tuned.values or "settings stay" in tuned.reason
    assert adopted <= 1


def test_tuning_takes_what_is_better_beyond_doubt_and_says_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = tuning.choose(Judgements(400, 0.08, 1).tables(monkeypatch), 13)
    assert (tuned.values["method"], tuned.values["k"], tuned.values["lam"]) == ("xl", 4, 0.1)
    assert tuned.over_defaults is not None and tuned.over_defaults.better
    assert (
        tuned.over_defaults.delta == pytest.approx(0.08, abs=0.02)
        and f"{tuned.over_defaults.delta:+.3f}" in tuned.reason
    )
    one = Judgements(400, 0.08, 1).tables(monkeypatch)[:1]
    assert tuning.choose(one, 13).values == {}  # a single deal of the folds decides nothing


def test_tuning_keeps_what_makes_no_difference() -> None:
    """λ = .1 mends 14 of 200 questions, at every weight alike: the weight in use stays."""
    quality = np.ones((8, 3, 200))
    quality[:, :, :14] = 0.3
    quality[1:3, :, :14] = 1.0
    assert tuning._best(quality, (4, 1)) == (2, 1)
    assert tuning._best(quality, (1, 2)) == (1, 2)
    assert tuning._best(quality[:, :, 11:], (4, 1)) == (4, 1)  # three of 189 are too few to move by


def test_tuning_decides_over_all_deals_of_the_folds_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gain that is beyond doubt on average stands, though one deal shows less of it; not where one shows none."""
    tables = Judgements(400, 0.08, 3).tables(monkeypatch)
    current = tables[2].quality[4, 1]
    gain = np.random.default_rng(3).normal(0, 1, 400)
    gain = 0.15 * ((gain - gain.mean()) / gain.std() + 2.4 / np.sqrt(400))  # 2.4 standard errors above 0
    tables[2].quality[-1] = current + gain
    assert not paired_bootstrap(current + gain, current, confidence=tuning.SURE, seed=13).better
    assert tuning.choose(tables, 13).values["method"] == "xl"
    tables[2].quality[-1] = current - gain
    assert tuning.choose(tables, 13).values == {}


def test_tuning_never_looks_at_the_question_itself(retriever: Retriever) -> None:
    known = ids(retriever)
    retriever.add_feedback_many(
        [Feedback(f"lonely {at} {at * 91}", known[(at * 29 + 7) % len(known)]) for at in range(30)]
    )
    pefa = retriever.feedback()
    tuned = tune(pefa, retriever.searcher, methods=("xs",))
    seen = [
        retriever.search(one.query, 1, lam=0.0, mode="dense")[0].chunk.id == one.chunk_id for one in pefa.ledger.find()
    ]
    assert sum(seen) > 20  # it would be easy, had the question's own feedback been left in
    assert tuned.chosen < 0.5


def test_too_little_feedback_tunes_nothing(retriever: Retriever) -> None:
    with pytest.raises(InvalidInput, match="no ledger"):
        tune_feedback(retriever)
    retriever.add_feedback("who", ids(retriever)[0])
    tuned = tune_feedback(retriever)
    assert tuned.values == {} and "only 1 question" in tuned.reason


@pytest.mark.parametrize("nobody", [0, False, [], "", 1.0], ids=repr)
def test_no_door_takes_a_tenant_that_names_nobody(
    folder: Path, retriever: Retriever, nobody: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ids(retriever)
    for attempt in (
        lambda: retriever.add_feedback("who", known[0], tenant=nobody),
        lambda: retriever.search("who", tenant=nobody),
        lambda: retriever.search("who", tenant=nobody, lam=1),
        lambda: retriever.run({"q": "who"}, tenant=nobody),
        lambda: retriever.withdraw_feedback(tenant=nobody),
        lambda: LoRARetriever(retriever=retriever, tenant=nobody).invoke("who"),
        lambda: LoRARetriever(retriever=retriever).invoke("who", tenant=nobody),
        lambda: LoRARetriever(retriever=retriever).add_feedback("who", known[0], tenant=nobody),
        lambda: NodeRetriever(retriever, tenant=nobody).retrieve("who"),
        lambda: NodeRetriever(retriever).add_feedback("who", known[0], tenant=nobody),
        lambda: NodeStore(kind="exact", dim=2, tenant=nobody),
    ):
        with pytest.raises(ValueError, match="tenant"):  # InvalidInput, or pydantic's own
            attempt()
    lines = write(folder / "f.jsonl", {"query": "who", "chunk_id": known[0], "tenant": nobody})
    taken = read_feedback(retriever, lines)
    assert taken.added == 0 and "tenant" in taken.problems[0].reason
    assert len(retriever.feedback(create=True).ledger) == 0
    assert run(["search", str(folder / "retriever"), "who", "--tenant", ""]) != 0
    assert "tenant" in capsys.readouterr().err


# The commands


def command(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, Any, str]:
    code = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, json.loads(out) if "--json" in arguments and out.strip() else out, err


def test_the_commands_take_list_undo_and_export(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "retriever"
    code, found, _ = command(capsys, "search", path, "what is new", "--json")
    assert code == 0
    target = found["hits"][-1]["chunk_id"] if "chunk_id" in found["hits"][-1] else found["hits"][-1]["id"]
    good = {"query": "what is new", "chunk_id": target, "user": "ann"}
    code, out, err = command(capsys, "refresh", path, "--feedback", write(folder / "clicks.jsonl", good, "{oops"))
    assert code == 1
    assert "1 new" in out and "1 not usable" in out and "line 2" in err
    code, values, _ = command(capsys, "refresh", path, "--feedback", folder / "clicks.jsonl", "--json")
    assert code == 1 and values["known"] == 1 and values["problems"][0]["line"] == 2
    code, values, _ = command(capsys, "feedback", "list", path, "--json")
    assert [row["chunk_id"] for row in values["feedback"]] == [target]
    code, found, _ = command(capsys, "search", path, "what is new", "--lam", "0", "--json")
    assert found["hits"][0].get("chunk_id", found["hits"][0].get("id")) == target
    code, out, _ = command(capsys, "feedback", "export", path, "-o", folder / "pairs.jsonl")
    assert code == 0 and "1 lines" in out
    code, out, _ = command(capsys, "feedback", "undo", path, "--user", "ann")
    assert code == 0 and "Taken back: 1" in out
    code, values, _ = command(capsys, "feedback", "list", path, "--withdrawn", "--json")
    assert values["feedback"][0]["state"] == "taken back"
    code, out, err = command(capsys, "refresh", path, "--tune")
    assert code == 1 and "positive feedback" in err


def test_wrong_usage_of_the_commands_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "retriever"
    assert command(capsys, "refresh", path)[0] == 2
    assert command(capsys, "refresh", path, "--rollback", "--tune")[0] == 2
    assert command(capsys, "feedback", "undo", path)[0] == 2
    code, _, err = command(capsys, "feedback", "list", path)
    assert code == 0 and "no feedback yet" in err
