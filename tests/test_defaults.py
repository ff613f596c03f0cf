"""How the defaults of the untrained search are chosen: nothing that is quoted had a say in the choice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ragadapt.config import EncoderConfig
from ragadapt.encoder import Encoder
from ragadapt.evaluation import evaluate
from ragadapt.lexical import LexicalIndex
from ragadapt.search.fusion import Background, Fusion
from ragadapt.search.searcher import Searcher

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "benchmarks"
sys.path.insert(0, str(FOLDER))

import beir  # noqa: E402
import defaults  # noqa: E402

TOPICS = ["bridge", "bread", "council", "flight", "invoice", "password", "river", "server"]


def write_collection(data: Path, name: str, seed: int) -> None:
    """Abstracts about one topic each, and questions that share words with one of them."""
    rng = np.random.default_rng(seed)
    folder = data / name
    (folder / "qrels").mkdir(parents=True)
    rows, questions, qrels = [], [], ["query-id\tcorpus-id\tscore"]
    for number in range(24):
        topic, words = TOPICS[number % 8], rng.permutation(TOPICS)[:3].tolist()
        text = (
            f"The {topic} number {number} was opened in spring. Nobody in the {words[0]} office asked of {words[1]}. "
            f"It was closed again after the {words[2]} had been repaired by {number} people."
        )
        rows.append(json.dumps({"_id": f"d{number}", "title": f"{topic} {number}", "text": text}))
        questions.append(
            json.dumps({"_id": f"q{number}", "text": f"when was {topic} {number} closed for the {words[2]}"})
        )
        qrels += [f"q{number}\td{number}\t2", f"q{number}\td{(number + 8) % 24}\t1"]
    (folder / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "queries.jsonl").write_text("\n".join(questions), encoding="utf-8")
    (folder / "qrels" / "test.tsv").write_text("\n".join(qrels), encoding="utf-8")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("one", "two")):
        write_collection(folder, name, seed)
    return folder


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    encoder = Encoder.load(EncoderConfig(model="offline"))
    for name in ("one", "two"):
        defaults.cache(beir.load(data, name), folder, encoder)
    return folder


def test_a_choice_never_looks_at_the_collection_that_it_is_for() -> None:
    table = np.array([[0.9, 0.1, 0.1], [0.2, 0.3, 0.2]])
    assert defaults.left_out(table) == [1, 0, 0]
    table[:, 0] = table[::-1, 0]
    assert defaults.left_out(table)[0] == 1


def test_a_choice_is_worth_what_it_gives_where_it_was_not_made() -> None:
    options = [defaults.Setting(feedback=value) for value in (0.0, 0.2)]
    found = defaults.choose("feedback", options, np.array([[0.9, 0.1, 0.1], [0.2, 0.3, 0.2]]))
    assert found["chosen"] == ["0.2", "0", "0"]
    assert found["values"] == [0.2, 0.1, 0.1]
    assert found["mean"] == pytest.approx(0.4 / 3)
    assert found["oracle"] == pytest.approx(1.4 / 3)
    assert found["options"]["0"] == pytest.approx(1.1 / 3)


@pytest.mark.parametrize("setting", [defaults.BEFORE, defaults.Setting(weight=("fixed", 0.3), feedback=0.0)])
def test_its_search_is_the_librarys(data: Path, folder: Path, setting: defaults.Setting) -> None:
    """The same nDCG@10 as the searcher that ships gives, by ir-measures."""
    collection, cached = beir.load(data, "one"), defaults.Cached(folder, "one")
    ids = [f"{at}" for at in range(len(cached.passages))]
    from ragadapt.index import exact_index

    class Lexical(LexicalIndex):
        def scores(self, queries):  # type: ignore[no-untyped-def]
            return cached.arrays[defaults.lexical_key(setting.stop_words, setting.heading_weight)]

    index = LexicalIndex.build(ids, [""] * len(ids))
    index.__class__ = Lexical
    fusion = Fusion(weight=setting.weight[1], feedback=setting.feedback)
    searcher = Searcher(exact_index(ids, cached.passages), index, Background.of(cached.passages), fusion)
    asked = collection.asked("test")
    run: dict[str, dict[str, float]] = {}
    for query, found in zip(asked, searcher.rank(list(asked.values()), cached.queries, 20), strict=True):
        best: dict[str, float] = {}
        for id, score in zip(found.ids, found.scores.tolist(), strict=True):
            best.setdefault(collection.ids[cached.owner[int(id)]], score)
        run[query] = best
    expected = evaluate(run, collection.qrels["test"]).mean["nDCG@10"]
    assert cached.quality(setting) == pytest.approx(expected, abs=1e-6)
    assert 0.1 < expected < 1


def test_a_collection_is_encoded_once(data: Path, folder: Path) -> None:
    defaults.cache(beir.load(data, "one"), folder, None)  # type: ignore[arg-type]


def test_the_study_names_every_default_and_every_collection(folder: Path) -> None:
    found = defaults.study([defaults.Cached(folder, name) for name in ("one", "two")])
    assert list(found["defaults"]) == list(defaults.OPTIONS)
    assert [row["collection"] for row in found["collections"]] == ["one", "two"]
    for row in found["collections"]:
        assert row["best of three"] == max(row["dense"], row["BM25"], row["RRF"])
        assert 0 < row["weight"] < 1
        assert row["shapes"]["cut"]["queries"] >= 20
    # With two collections the other one alone decides.
    table = [
        [defaults.Cached(folder, name).quality(option) for option in defaults.OPTIONS["feedback"]]
        for name in ("one", "two")
    ]
    other = defaults.OPTIONS["feedback"][int(np.argmax(table[1]))]
    assert found["defaults"]["feedback"]["chosen"][0] == f"{other.feedback:g}"
    text = defaults.shown(found)
    assert "| stop words |" in text
    assert text.splitlines()[-1].startswith("| mean |")
