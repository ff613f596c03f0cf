"""The mix before anything is learnt: by the shape of a corpus's own scores, and by questions without answers."""

from __future__ import annotations

import json
import re
import string
from pathlib import Path

import pytest
from tiny_models import sentences, write_tiny_model

from ragadapt.config import EncoderConfig, FitConfig, FusionConfig
from ragadapt.encoder import Encoder
from ragadapt.errors import InvalidLabels
from ragadapt.lexical import LexicalIndex
from ragadapt.lexical.stopwords import QUESTION_WORDS
from ragadapt.pipeline.corpus import Corpus, EncodedCorpus
from ragadapt.pipeline.fit import fit
from ragadapt.pipeline.fusion import Neutral, learn_fusion, neutral_weight, shaping
from ragadapt.pipeline.queries import DividedQueries, Labels, read_labels
from ragadapt.pipeline.stages import searcher_of
from ragadapt.retriever import Retriever
from ragadapt.search.fusion import NEUTRAL_WEIGHT
from ragadapt.search.searcher import Searcher
from ragadapt.values import Chunk, Evidence, Query

ROOT = Path(__file__).resolve().parents[1]
GREEK = dict(zip(string.ascii_lowercase, "αβγδεζηθικλμνξοπρστυφχψωϊϋ", strict=True))
IN_GREEK = str.maketrans(GREEK | {letter.upper(): other for letter, other in GREEK.items()})


def paragraphs() -> list[str]:
    """English prose with real words and without figures, which are the same in all letters: the project's pages."""
    found: list[str] = []
    for name in ("how-it-works", "decisions", "feedback", "refresh"):
        for text in (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").split("\n\n"):
            plain = re.sub(r"[`*\[\]]|[^ ]*[0-9][^ ]*", "", text.replace("\n", " "))
            if plain[:1].isalpha() and plain.count(". ") >= 2 and len(plain) > 250:
                found.append(plain)
    return found[:70]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(EncoderConfig(model="offline"))


def corpus_of(texts: list[str]) -> tuple[Corpus, list[Query]]:
    """Passages, and the second sentence of each as a query."""
    chunks = tuple(Chunk(f"d{n}#0", f"d{n}", text, (), 0, len(text)) for n, text in enumerate(texts))
    cut = [Query(f"q{n}", text.split(". ")[1], "sentence", Evidence.CROP, (f"d{n}#0",)) for n, text in enumerate(texts)]
    return Corpus((), chunks, tuple(range(len(chunks)))), cut


def searched(corpus: Corpus, encoder: Encoder) -> Searcher:
    vectors = encoder.encode_passages(corpus.passages)
    return searcher_of(EncodedCorpus(corpus, vectors), LexicalIndex.build(corpus.ids, corpus.passages))


def test_a_dense_side_that_cannot_read_the_text_gets_no_say(encoder: Encoder) -> None:
    """The same text in other letters: BM25 sees the same words, the model sees noise."""
    english, cut = corpus_of(paragraphs())
    known = neutral_weight(searched(english, encoder), encoder, cut, [])
    assert 0.2 < known.weight < 0.9
    assert known.reason == f"the shape of the scores of {len(cut)} queries from the documents (sentence)"
    foreign, cut = corpus_of([text.translate(IN_GREEK) for text in paragraphs()])
    unknown = neutral_weight(searched(foreign, encoder), encoder, cut, [])
    assert unknown.weight < 0.1
    assert unknown.reason.endswith("the dense side finds few of the passages that they were cut from")


def test_questions_that_people_asked_go_before_what_was_cut(encoder: Encoder) -> None:
    corpus, cut = corpus_of(paragraphs()[:40])
    searcher = searched(corpus, encoder)
    asked = [f"how does the {word} work" for word in sorted(set(" ".join(corpus.passages).split()))[200:229]]
    few = neutral_weight(searcher, encoder, cut, [*asked, *asked])  # twice the same is asked once
    assert few == neutral_weight(searcher, encoder, cut, [])
    enough = neutral_weight(searcher, encoder, cut, [*asked, "what is judged"])
    assert enough.reason == "the shape of the scores of 30 questions, without their answers"
    assert enough.weight != few.weight
    assert 0 < enough.weight < 1


def test_without_queries_the_plain_sum_stays(encoder: Encoder) -> None:
    corpus, cut = corpus_of(paragraphs()[:3])
    assert neutral_weight(searched(corpus, encoder), encoder, cut, []) == Neutral()  # three say nothing
    assert Neutral().weight == NEUTRAL_WEIGHT


def test_what_tells_the_shape_is_of_one_kind_the_likest_to_questions() -> None:
    def of(kind: str, count: int) -> list[Query]:
        return [Query(f"{kind}{n}", "x", kind, Evidence.CROP, ("a",)) for n in range(count)]

    queries = [*of("title", 400), *of("crop", 25), *of("docstring", 19)]
    assert {query.kind for query in shaping(queries)} == {"crop"}
    assert [query.id for query in shaping(of("title", 400))] == [f"title{n}" for n in range(0, 400, 3)]
    assert shaping(of("sentence", 19)) == []


def test_nothing_to_learn_from_leaves_the_neutral_weight_and_says_by_what() -> None:
    learnt = learn_fusion(None, FusionConfig(), evidence=None, neutral=Neutral(0.41, "the shape"))
    assert (learnt.fusion.weight, learnt.reason) == (0.41, "neutral, by the shape")


# Questions without answers


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines), encoding="utf-8")
    return path


CHUNKS = (Chunk("cars.md#0", "cars.md", "Flat tyres are replaced at any garage.", source="cars.md"),)
CORPUS = Corpus((), CHUNKS, (0,))


def test_a_search_log_is_read_as_questions_without_answers(tmp_path: Path) -> None:
    log = write(tmp_path / "log.txt", "who mends a tyre", "", "  is there a desk ")
    rows = write(tmp_path / "log.jsonl", {"text": "which garage"}, {"query": "what for"}, "[1]")
    quotes = write(
        tmp_path / "q.jsonl", {"text": "where", "evidence": [{"source": "cars.md", "quote": "replaced at any garage"}]}
    )
    read = read_labels(CORPUS, [Labels(log), Labels(quotes), Labels(rows)], FitConfig())
    assert read.asked == ["who mends a tyre", "is there a desk", "which garage", "what for"]
    assert [query.text for found, _ in read.sets for query in found.queries] == ["where"]
    assert read.uses == ["both"]
    first, second = read.notes
    assert first.startswith("log.txt holds 2 questions without answers. 30 or more would say how word and vector")
    assert "--qrels" in first
    assert "1 lines could not be read; the first: log.jsonl:3" in second


@pytest.mark.parametrize("use", ["train", "eval"])
def test_questions_without_answers_are_refused_where_answers_are_needed(tmp_path: Path, use: str) -> None:
    log = write(tmp_path / "log.txt", "who mends a tyre")
    with pytest.raises(InvalidLabels, match=f"no judgement, so they are not for '{use}'.*qrels"):
        read_labels(CORPUS, [Labels(log, use=use)], FitConfig())  # type: ignore[arg-type]


def test_evidence_that_cannot_be_read_is_no_search_log(tmp_path: Path) -> None:
    broken = write(tmp_path / "q.jsonl", {"text": "where", "evidence": [{"source": "cars.md"}]})
    assert Labels(broken).judged
    with pytest.raises(InvalidLabels):
        read_labels(CORPUS, [Labels(broken)], FitConfig())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("log.txt", " \n"),
        ("log.jsonl", '{"id": 1}'),
        ("log.txt", "\0\1\2"),
        ("log.txt", "??\n--"),
        ("log.jsonl", '{"text": "…"}'),
    ],
)
def test_an_empty_search_log_is_an_error(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(InvalidLabels, match="holds no question"):
        read_labels(CORPUS, [Labels(write(tmp_path / name, text))], FitConfig())


def test_a_stage_of_an_earlier_version_has_no_questions_without_answers(tmp_path: Path) -> None:
    DividedQueries((), (), (), {}, {}, {}, {}, ("note",), asked=("asked",)).write(tmp_path)
    assert DividedQueries.read(tmp_path).asked == ("asked",)
    kept = json.loads((tmp_path / "queries.json").read_text(encoding="utf-8"))
    del kept["asked"]
    (tmp_path / "queries.json").write_text(json.dumps(kept), encoding="utf-8")
    assert DividedQueries.read(tmp_path).asked == ()


# A whole fit


GERMAN = (
    "Die Rechnung wird innerhalb von dreißig Tagen bezahlt. Der Vertrag kann von beiden Seiten mit einer Frist von "
    "sechs Wochen gekündigt werden. Bei einem Schaden am Fahrzeug wenden Sie sich bitte an die Verwaltung in Raum {}."
)


def test_a_fit_says_that_the_model_does_not_know_the_language(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for number in range(12):
        text = f"# Seite {number}\n\n{GERMAN.format(number)}\n"
        (tmp_path / "docs" / f"{number}.md").write_text(text, encoding="utf-8")
    config = FitConfig.build({"encoder": {"model": "offline"}, "adapter": {"method": "none"}})
    result = fit([tmp_path / "docs"], tmp_path / "out", config)
    told = [warning for warning in result.report.warnings if "not in English" in warning]
    assert told == [
        "100% of the text is not in English, but the base model 'offline' knows only English. Use --model multilingual."
    ]
    settings = json.loads((result.path / "lexical" / "lexical.json").read_text(encoding="utf-8"))
    assert "der" in settings["stopwords"]
    assert "must" not in settings["stopwords"]


def test_a_fit_starts_from_questions_without_answers_and_trains_on_none(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for number, text in enumerate(paragraphs()[:30]):
        (tmp_path / "docs" / f"{number}.md").write_text(f"# Page {number}\n\n{text}\n", encoding="utf-8")
    log = write(tmp_path / "log.txt", *[f"what about {text}" for text in sentences(40, words=6)])
    config = FitConfig.build(
        {"encoder": {"model": str(write_tiny_model(tmp_path / "model"))}, "fusion": {"feedback": False}}
    )
    result = fit([tmp_path / "docs"], tmp_path / "out", config, labels=[Labels(log)])
    (step,) = [step for step in result.report.verdict.steps if step.name == "Fusion"]  # type: ignore[union-attr]
    assert "the shape of the scores of 40 questions, without their answers" in step.detail
    assert any(
        warning.startswith("log.txt holds 40 questions without answers. They say how")
        for warning in result.report.warnings
    )
    assert result.verdict == "NO GAIN"
    with Retriever.open(result.path) as retriever:
        assert retriever.fusion.weight != NEUTRAL_WEIGHT
    settings = json.loads((result.path / "lexical" / "lexical.json").read_text(encoding="utf-8"))
    assert set(settings["stopwords"]) >= QUESTION_WORDS
