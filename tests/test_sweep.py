"""Models and sizes of passages side by side: true figures, honest bounds, and nothing encoded twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bs4 import BeautifulSoup
from ragadapt_cli.main import run
from small_retriever import write_pages
from tiny_models import write_tiny_model

from ragadapt.config import ChunkConfig, EncoderConfig, FitConfig
from ragadapt.corpus import chunk_documents, read_documents
from ragadapt.encoder import Encoder
from ragadapt.errors import InvalidInput, InvalidLabels
from ragadapt.evaluation.questions import Asked, recall_within
from ragadapt.evaluation.significance import paired_bootstrap, simultaneous_bounds
from ragadapt.index import exact_index
from ragadapt.lexical import LexicalIndex
from ragadapt.pipeline import sweep as sweeping
from ragadapt.pipeline.stages import save_lexical
from ragadapt.pipeline.sweep import Sweep, sweep_choices
from ragadapt.queries import load_labels
from ragadapt.report import SweptChoice, read_report, table
from ragadapt.search.fusion import Background, Fusion
from ragadapt.search.searcher import Searcher

SIZES = (16, 40)
TOKENS = 60


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sweep")
    docs = write_pages(folder / "docs")
    lines = []
    for at, page in enumerate(sorted(docs.glob("*.md"))):
        sentences = page.read_text(encoding="utf-8").split("\n\n")[2].split(". ")
        words = sentences[at % 3].split()
        quote = {"source": page.name, "quote": sentences[at % 3].rstrip(".")}
        lines.append({"_id": f"q{at}", "text": " ".join(words[:5]), "evidence": [quote]})
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    models = [str(write_tiny_model(folder / f"base{seed}", seed=seed)) for seed in (0, 1)]
    return {"folder": folder, "docs": docs, "questions": questions, "models": models}


def swept(task: dict[str, Any], name: str = "swept", **given: Any) -> Sweep:
    values = {"models": task["models"], "chunk_tokens": SIZES, "tokens": TOKENS, **given}
    config = FitConfig.build(
        {"encoder": {"precision": "float32"}, "chunk": {"min_tokens": 4}, "fusion": {"weight": 0.4}}
    )
    return sweep_choices([task["docs"]], task["folder"] / name, task["questions"], None, config, **values)


@pytest.fixture(scope="module")
def found(task: dict[str, Any]) -> Sweep:
    return swept(task)


def choices(found: Sweep) -> dict[str, SweptChoice]:
    assert found.report.swept is not None
    return {choice.name: choice for choice in found.report.swept.choices}


def test_every_choice_has_the_figure_of_its_own_search(task: dict[str, Any], found: Sweep, tmp_path: Path) -> None:
    documents = read_documents(task["docs"]).documents
    for model in task["models"]:
        encoder = Encoder.load(EncoderConfig(model=model, precision="float32"))
        for size in SIZES:
            config = ChunkConfig(max_tokens=size, min_tokens=4)
            chunks = list(chunk_documents(documents, config, encoder.count_tokens, encoder.passage_room))
            folder = tmp_path / f"{Path(model).parent.name}-{size}"
            save_lexical(chunks, folder)
            vectors = encoder.encode_passages([chunk.passage for chunk in chunks])
            index = exact_index([chunk.id for chunk in chunks], vectors)
            fusion = Fusion(weight=0.4)
            searcher = Searcher(index, LexicalIndex.open(folder), Background.of(vectors), fusion)
            asked = Asked.of(load_labels(task["questions"], chunks=chunks), chunks)
            values = []
            for question in asked.questions:
                (ranked,) = searcher.rank([question.text], encoder.encode_queries([question.text]), 100)
                values.append(recall_within([asked.chunk_of[id] for id in ranked.ids], question.quotes, TOKENS))
            choice = choices(found)[f"{model}-{size}"]
            assert choice.value == pytest.approx(np.mean(values))
            assert choice.passages == len(chunks)
            assert choice.vector_bytes == vectors.nbytes
            assert choice.tokens == sum(encoder.count_tokens([chunk.passage for chunk in chunks]))
            assert choice.search_ms > 0
            assert choice.settings == f"--model {model} --set chunk.max_tokens={size}"
    assert 0 < np.mean([choice.value for choice in choices(found).values()]) < 1


def test_the_cheapest_is_of_those_that_cannot_be_told_from_the_best(found: Sweep) -> None:
    sweep = found.report.swept
    assert sweep is not None
    best, all_ = choices(found)[sweep.best], list(choices(found).values())
    assert best.value == max(choice.value for choice in all_)
    alike = [choice for choice in all_ if not choice.told]
    assert sweep.cheapest == min(alike, key=lambda choice: (choice.cost, -choice.value)).name  # costs may be equal
    assert (best.low, best.high) == (0, 0)
    figures = np.array([[c.tokens * c.parameters, c.vector_bytes, c.search_ms] for c in all_])
    np.testing.assert_allclose([c.cost for c in all_], np.exp(np.log(figures / figures.min(0)).mean(1)))
    assert {delta.against for delta in found.report.deltas} == {sweep.best}
    assert choices(found)[sweep.cheapest].settings in sweep.sentence


def test_nothing_is_encoded_twice(
    task: dict[str, Any], found: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert found.encoded > 0
    again = swept(task)
    assert (again.encoded, again.report.swept) == (0, found.report.swept)
    encoded: list[str] = []
    original = Encoder.encode_to

    def counted(self: Encoder, texts: Any, *rest: Any, **given: Any) -> Any:
        encoded.extend(texts)
        return original(self, texts, *rest, **given)

    monkeypatch.setattr(Encoder, "encode_to", counted)
    more = swept(task, models=task["models"][:1], chunk_tokens=(*SIZES, 41))  # hardly other passages than those of 40
    assert more.encoded == len(encoded)
    assert more.encoded < 0.5 * choices(more)[f"{task['models'][0]}-41"].passages
    for name, choice in choices(more).items():
        if not name.endswith("-41"):
            assert choice.value == choices(found)[name].value


def test_a_sweep_that_broke_off_goes_on(task: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    searched = sweeping._Sweep.searched
    calls = []

    def broken(self: Any, *rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return searched(self, *rest)

    monkeypatch.setattr(sweeping._Sweep, "searched", broken)
    with pytest.raises(KeyboardInterrupt):
        swept(task, "broken", models=task["models"][:1])
    finished = swept(task, "broken", models=task["models"][:1])
    assert finished.encoded == 0
    assert len(calls) == 3  # the first choice was not searched again


def test_passages_that_fill_the_model_leave_room_for_what_it_adds(task: dict[str, Any]) -> None:
    found = swept(task, "full", models=task["models"][:1], chunk_tokens=(40, 48, 64))
    settings = [choice.settings.partition(" --set ")[2] for choice in choices(found).values()]
    most = Encoder.load(EncoderConfig(model=task["models"][0], precision="float32")).max_length
    assert most == 48
    assert settings == ["chunk.max_tokens=40", "chunk.max_tokens=46", "chunk.max_tokens=62 --set encoder.max_length=64"]


def test_what_cannot_be_measured_is_left_out_with_its_reason(task: dict[str, Any], tmp_path: Path) -> None:
    found = swept(task, models=task["models"][:1], chunk_tokens=(*SIZES, 5000))
    assert found.report.swept is not None
    (left,) = found.report.swept.left_out
    assert (left.source, "positions for at most" in left.reason) == (f"{task['models'][0]}, 5000 tokens", True)
    with pytest.raises(InvalidInput, match="too few to compare"):
        swept(task, models=task["models"][:1], chunk_tokens=(40, 5000))
    with pytest.raises(InvalidInput, match="name at least two choices"):
        swept(task, models=task["models"][:1], chunk_tokens=(40,))
    with pytest.raises(InvalidInput, match="at least 16"):
        swept(task, chunk_tokens=(8,))
    queries, qrels = tmp_path / "q.jsonl", tmp_path / "q.tsv"
    queries.write_text('{"_id": "1", "text": "old stone"}\n')
    qrels.write_text("1\tpage01.md#0\t1\n")
    with pytest.raises(InvalidLabels, match="which differ from one choice to the next"):
        sweep_choices([task["docs"]], tmp_path / "out", queries, qrels, models=task["models"], chunk_tokens=SIZES)


def test_the_command_prints_the_table_and_writes_the_page(
    task: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qrels, queries = tmp_path / "qrels.tsv", tmp_path / "queries.jsonl"
    lines = [json.loads(line) for line in task["questions"].read_text(encoding="utf-8").splitlines()]
    queries.write_text("".join(json.dumps({"_id": line["_id"], "text": line["text"]}) + "\n" for line in lines))
    qrels.write_text("".join(f"{line['_id']}\t{line['evidence'][0]['source']}\t1\n" for line in lines))
    call = ["sweep", str(task["docs"]), "-o", str(tmp_path / "out"), "--queries", str(queries), "--qrels", str(qrels)]
    call += ["--models", task["models"][0], "--chunk-tokens", "16,40", "--precision", "float32", "-q"]
    assert run(call) == 0
    out = capsys.readouterr().out
    assert out.startswith("choice") and "nDCG@10" in out.splitlines()[0]
    assert out.count("* ") == 2  # the one to take, and what the star means
    report = read_report(tmp_path / "out")
    assert table(report).splitlines()[0] == out.splitlines()[0]
    soup = BeautifulSoup((tmp_path / "out" / "report.html").read_text(encoding="utf-8"), "html.parser")
    section = soup.find(id="choices")
    assert section is not None
    assert "take this" in section.text
    assert "ships" not in soup.find("main").text  # type: ignore[union-attr]
    assert run([*call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["encoded"] == 0
    assert run([*call, "--chunk-tokens", "x"]) == 2


# Bounds for all pairs at once


def test_bounds_for_all_pairs_are_wider_than_those_of_one() -> None:
    rng = np.random.default_rng(3)
    rows = rng.random((6, 80))
    low, high = simultaneous_bounds(rows, seed=1)
    for i in range(6):
        for j in range(6):
            assert low[i, j] == pytest.approx(-high[j, i])
            if i != j:
                single = paired_bootstrap(rows[i], rows[j], seed=1)
                assert low[i, j] < single.low < single.delta < single.high < high[i, j]
    low, high = simultaneous_bounds(rows[:2], seed=1)  # one pair: its own interval
    single = paired_bootstrap(rows[0], rows[1], samples=4000, seed=1)
    np.testing.assert_allclose([low[0, 1], high[0, 1]], [single.low, single.high], atol=0.012)


def test_among_equal_systems_a_difference_is_claimed_no_more_often_than_promised() -> None:
    rng = np.random.default_rng(5)
    wrong = alone = 0
    for trial in range(120):
        rows = rng.random((6, 60))
        low, _ = simultaneous_bounds(rows, samples=400, seed=trial)
        wrong += bool((low > 0).any())
        best = int(rows.mean(axis=1).argmax())
        alone += any(
            paired_bootstrap(rows[best], rows[j], samples=400, seed=trial).low > 0 for j in range(6) if j != best
        )
    assert wrong <= 0.1 * 120  # 5 % are promised
    assert alone > 0.2 * 120  # what choosing the best and comparing it as if it had been named before would do


def test_equal_rows_are_exactly_alike() -> None:
    rows = np.array([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    low, high = simultaneous_bounds(rows, seed=1)
    assert (low[0, 1], high[0, 1]) == (0, 0)
    assert low[0, 2] < 0 < high[0, 2]
    with pytest.raises(InvalidInput, match="systems × queries"):
        simultaneous_bounds([1.0, 2.0], seed=1)
