"""Is tuning likely to pay, and is a saved retriever sound."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import sentences, write_tiny_model

from ragadapt.config import EncoderConfig, FitConfig
from ragadapt.corpus import Skipped
from ragadapt.doctor import examine as examining
from ragadapt.doctor import measure
from ragadapt.doctor.examine import examine
from ragadapt.doctor.measure import Quality, diagnose, recommend
from ragadapt.doctor.survey import Survey, survey, survey_corpus
from ragadapt.encoder import english_only
from ragadapt.errors import EmptyCorpus, InvalidInput, NotARetriever
from ragadapt.evaluation import gate
from ragadapt.lexical.languages import UNKNOWN, foreign_share, language_of, languages_of
from ragadapt.pipeline.queries import Labels, read_labels, shown_examples
from ragadapt.values import Evidence, Query, no_progress

QUESTIONS = ("How do I reset the password?", "Where is the invoice?", "Why is the bridge closed?", "Who may vote?")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def config(model: Path) -> FitConfig:
    return FitConfig.build({"encoder": {"model": str(model), "device": "cpu"}, "adapter": {"method": "none"}})


def write_documents(folder: Path, count: int = 12) -> Path:
    """Pages with a title, a section under a question, and prose of made-up words."""
    folder.mkdir(parents=True)
    words = sentences(count * 8, seed=3)
    for number in range(count):
        lines = words[number * 8 : number * 8 + 8]
        body = ". ".join(line.capitalize() for line in lines[:4])
        more = ". ".join(line.capitalize() for line in lines[4:])
        question = f"{QUESTIONS[number % len(QUESTIONS)][:-1]} {lines[0]}?"
        text = f"# Page {lines[1]}\n\n{body}.\n\n## {question}\n\n{more}.\n"
        (folder / f"page{number}.md").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_documents(tmp_path_factory.mktemp("corpus") / "docs")
    (folder / "empty.md").write_text("", encoding="utf-8")
    return folder


def test_labels_that_lie_among_the_documents_are_not_counted_as_one(config: FitConfig, tmp_path: Path) -> None:
    folder = write_documents(tmp_path / "docs", 3)
    quote = (folder / "page0.md").read_text(encoding="utf-8").split("\n\n")[1].split(".")[0]
    question = {"text": "what is it", "evidence": [{"source": "page0.md", "quote": quote}]}
    (folder / "ask.jsonl").write_text(json.dumps(question), encoding="utf-8")
    assert (survey([folder], config).documents, survey([folder], config).labelled) == (4, 0)
    found = survey([folder], config, labels=[Labels(folder / "ask.jsonl")])
    assert (found.documents, found.labelled) == (3, 1)


# Languages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The report is for you and it will be ready when the work is done.", "English"),
        ("Der Vertrag ist nicht mit der Rechnung verbunden und wird von uns geprüft.", "German"),
        ("Le contrat est signé par les deux parties dans un délai qui est fixé.", "French"),
        ("El contrato se firma por las partes y también puede ser para más tiempo.", "Spanish"),
        ("Para reiniciar a senha, abra as configurações da sua conta.", "Portuguese"),
        ("Il contratto viene firmato da entrambe le parti nel mese di marzo.", "Italian"),
        ("合約應於三十日內以書面通知對方，否則視為同意。", "Chinese"),
        ("パスワードをリセットするには設定を開きます。", "Japanese"),
        ("비밀번호를 재설정하려면 설정을 여세요.", "Korean"),
        ("Договор может быть расторгнут в любое время.", "Russian"),
        ("使用 print() 函數輸出文字到終端機", "Chinese"),
        ("x = foo(bar); y += 1; qux.baz(z)", UNKNOWN),
        ("import os\nfrom pathlib import Path\n\ndef read(path):\n    return os.stat(path).st_size\n", UNKNOWN),
        ("Contact us", UNKNOWN),
        ("| EUR | USD |\n|---|---|\n| 3 | 4 |", UNKNOWN),
        ("123 --- 456", ""),
    ],
)
def test_a_language_is_told_by_prose(text: str, language: str) -> None:
    assert language_of(text) == language


ENGLISH = "Open the settings of your account and choose a new password, which must have eight characters."


@pytest.mark.parametrize(
    "noise",
    [
        "https://example.com/com/para/como https://www.com.br/para-com.com",
        "www.uma.com www.mais.com com.google.android com.example.para.com",
        "```python\nimport para\nfrom com import mais\nnos = dos(em, uma, que)\n```",
        "`para` `com` `que` `dos` `mais`",
        "[see](https://com.com/uma/que/para) [more](../que/para/nos.md)",
        "<a href='com.com/para'><b>",
        "info@para.com ajuda@com.com.br",
        "C:\\que\\para\\com /usr/que/para/mais",
    ],
)
def test_addresses_code_and_markup_do_not_vote(noise: str) -> None:
    assert language_of(f"{ENGLISH} {noise} {noise} {noise}") == "English"
    assert language_of("\n".join([ENGLISH, *[noise] * 20])) == "English"
    assert languages_of([f"{noise} {ENGLISH} {noise}"] * 8) == {"English": 1.0}


def test_shares_count_letters_and_not_passages() -> None:
    german = "Der Vertrag ist nicht mit der Rechnung verbunden und wird von uns geprüft. " * 9
    found = languages_of([german, *[ENGLISH] * 3])
    letters = [sum(map(str.isalpha, text)) for text in (german, ENGLISH * 3)]
    assert found == {"German": letters[0] / sum(letters), "English": pytest.approx(letters[1] / sum(letters))}
    assert foreign_share(found) == found["German"]


def test_rows_too_short_to_tell_alone_are_told_together() -> None:
    rows = ["Reset a password", "Where is my bill", "Closing times", "Refund in days", "Change the address"] * 12
    assert {language_of(row) for row in rows} <= {"English", UNKNOWN}
    assert languages_of(rows) == {"English": 1.0}


@given(st.lists(st.text(), max_size=30))
def test_language_shares_are_shares(texts: list[str]) -> None:
    shares = languages_of(texts)
    assert not shares or sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


@pytest.mark.parametrize(
    ("model", "only"),
    [
        ("small", True),
        ("base", True),
        ("offline", True),
        ("multilingual", False),
        ("large", False),
        ("sentence-transformers/all-MiniLM-L6-v2", True),
        ("BAAI/bge-large-en-v1.5", True),
        ("intfloat/e5-base-v2", True),
        ("intfloat/multilingual-e5-base", False),
        ("BAAI/bge-m3", False),
        ("thenlper/gte-base", True),
        ("Snowflake/snowflake-arctic-embed-l-v2.0", False),
    ],
)
def test_models_that_know_english_only_are_told_by_name(model: str, only: bool) -> None:
    assert english_only(EncoderConfig.model_validate({"model": model})) is only


@pytest.mark.parametrize(
    ("front", "only"),
    [("language: en", True), ("language:\n- en", True), ("language:\n  - en\n  - de", False), ("license: mit", False)],
)
def test_a_model_card_says_the_language(front: str, only: bool, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "README.md").write_text(f"---\n{front}\nlibrary_name: x\n---\n# Card\n", encoding="utf-8")
    assert english_only(EncoderConfig.model_validate({"model": str(folder)})) is only


# Documents -------------------------------------------------------------------------------------------------


def test_survey_counts_what_was_read(documents: Path, config: FitConfig) -> None:
    found = survey([documents], config)
    texts = [path.read_text(encoding="utf-8") for path in documents.glob("page*.md")]
    assert (found.documents, found.characters) == (12, sum(len(text) for text in texts))
    assert [(entry.source, entry.reason) for entry in found.skipped] == [("empty.md", "empty")]
    assert found.chunks >= 24  # the tiny model reads 48 tokens
    assert found.longest_tokens <= 46
    assert found.truncated == 0
    assert found.found["question"] == found.human == 12
    assert not found.trainable
    assert any(line.startswith("            empty.md: empty") for line in found.lines())


def test_repeated_passages_are_counted(tmp_path: Path, config: FitConfig) -> None:
    folder = write_documents(tmp_path / "docs", 3)
    whole = survey([folder], config)
    text = (folder / "page0.md").read_text(encoding="utf-8")
    (folder / "copy.md").write_text(text, encoding="utf-8")
    again = survey([folder], config)
    assert whole.repeated == 0
    assert again.repeated == pytest.approx(1 - whole.chunks / again.chunks)


def test_a_file_that_is_half_of_the_corpus_is_named(tmp_path: Path, config: FitConfig) -> None:
    folder = write_documents(tmp_path / "docs", 3)
    assert not [line for line in survey([folder], config).warnings if "of the corpus" in line]
    words = sentences(60, seed=8)
    rows = [json.dumps({"text": f"{first} {second}"}) for first, second in zip(words[::2], words[1::2])]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    found = survey([folder], config)
    (warning,) = [line for line in found.warnings if "of the corpus" in line]
    assert f"One of 4 files, rows.jsonl, is {30 / found.chunks:.0%} of the corpus (30 of {found.chunks} pass" in warning
    assert f"Warning: {warning}" in found.lines()


def test_copies_that_are_much_of_the_corpus_are_named(tmp_path: Path, config: FitConfig) -> None:
    folder = write_documents(tmp_path / "docs", 3)
    text = (folder / "page0.md").read_text(encoding="utf-8")
    for number in range(4):
        (folder / f"zcopy{number}.md").write_text(text, encoding="utf-8")
    found = survey([folder], config)
    (warning,) = [line for line in found.warnings if "nearly repeat another" in line]
    assert "the commonest text stands 5 times, for instance in page0.md and zcopy0.md" in warning


def test_documents_that_an_english_model_cannot_read_change_the_recommendation(
    tmp_path: Path, config: FitConfig
) -> None:
    (tmp_path / "a.md").write_text("# 合約\n\n合約應於三十日內以書面通知對方。\n" * 5, encoding="utf-8")
    found = diagnose([tmp_path / "a.md"], config)
    assert found.survey.languages == {"Chinese": 1.0}
    assert found.outlook == "wrong model"
    assert "--model multilingual" in found.recommendation


def test_nothing_readable_and_nothing_there_are_errors(tmp_path: Path, config: FitConfig) -> None:
    with pytest.raises(InvalidInput, match="no file or folder"):
        survey([tmp_path / "none"], config)
    (tmp_path / "blank.md").write_text("", encoding="utf-8")
    with pytest.raises(EmptyCorpus):
        survey([tmp_path], config)


def test_diagnosis_measures_all_three_searches_with_what_people_wrote_where_there_is_enough(
    documents: Path, config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = diagnose([documents], config)
    assert found.evidence is Evidence.CROP  # 12 questions are too few
    monkeypatch.setattr(measure, "_FEWEST", 10)
    found = diagnose([documents], config)
    assert (found.evidence, found.measured, found.sampled) == (Evidence.HUMAN, 12, found.survey.chunks)
    assert [one.system for one in found.quality] == ["dense", "lexical", "hybrid"]
    assert all(0 <= one.ndcg <= one.recall <= 1 for one in found.quality)
    assert found.estimate.training_seconds == 0
    assert found.estimate.encoding_seconds > 0


def test_diagnosis_measures_with_labels_where_there_are_some(
    documents: Path, config: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_FEWEST", 10)
    rows, judged = [], ["query-id\tcorpus-id\tscore"]
    for number in range(12):  # the words of the page's own heading: easy for BM25
        text = (documents / f"page{number}.md").read_text(encoding="utf-8")
        rows.append(json.dumps({"_id": str(number), "text": text.split("## ")[1].split("\n")[0]}))
        judged.append(f"{number}\tpage{number}.md\t1")
    (tmp_path / "q.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "j.tsv").write_text("\n".join(judged), encoding="utf-8")
    found = diagnose([documents], config, labels=[Labels(tmp_path / "q.jsonl", tmp_path / "j.tsv")])
    lexical = next(one for one in found.quality if one.system == "lexical")
    assert (found.evidence, found.measured, found.survey.labelled) == (Evidence.LABELLED, 12, 12)
    assert lexical.recall == 1.0
    assert lexical.ndcg > 0.95


def test_the_diagnosis_searches_words_as_the_fitted_retriever_does(
    config: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ragadapt.pipeline.arena as arena
    from ragadapt.lexical import LexicalIndex
    from ragadapt.pipeline.fit import fit
    from ragadapt.retriever import Retriever

    folder = write_documents(tmp_path / "docs", 6)
    page = (folder / "page0.md").read_text(encoding="utf-8")
    (folder / "page0.md").write_text(page + "\nSee [the other page](page1.md#zebra) too.\n", encoding="utf-8")
    measured: dict[str, list[float]] = {}
    asked = ["zebra", "page", "invoice", "where is the other page", *sentences(4, seed=3)]
    built = arena.build_arena

    def note(queries: Any, encoder: Any, encoded: Any, lexical_folder: Path, *rest: Any) -> Any:
        lexical = LexicalIndex.open(lexical_folder)
        for query in asked:
            scores = lexical.scores_of(query, list(range(len(lexical))))
            measured[query] = [score for _, score in sorted(zip(lexical.ids(), scores.tolist()))]
        return built(queries, encoder, encoded, lexical_folder, *rest)

    monkeypatch.setattr(arena, "build_arena", note)
    monkeypatch.setattr(measure, "_FEWEST", 1)
    assert diagnose([folder], config).quality
    monkeypatch.setattr(arena, "build_arena", built)
    with Retriever.open(fit([folder], tmp_path / "out", config).path) as retriever:
        lexical = retriever.searcher.lexical
        for query in asked:
            scores = lexical.scores_of(query, list(range(len(lexical))))
            ours = [score for _, score in sorted(zip(lexical.ids(), scores.tolist()))]
            assert measured[query] == pytest.approx(ours), query
    assert not any(measured["zebra"])
    assert any(measured["invoice"])


def test_sample_holds_every_answer_and_says_that_it_is_one(documents: Path, config: FitConfig) -> None:
    found = diagnose([documents], config, passages=10, queries=5)
    assert (found.measured, found.sampled) == (5, 10)
    assert "so it was easier than it is" in "\n".join(found.lines())
    assert max(one.recall for one in found.quality) == 1.0  # ten passages: every answer is among the first ten


def test_diagnosis_is_the_same_again(documents: Path, config: FitConfig) -> None:
    first, second = (diagnose([documents], config, passages=16, queries=8) for _ in range(2))
    assert (first.survey, first.quality, first.recommendation) == (second.survey, second.quality, second.recommendation)


def test_diagnosis_is_json(documents: Path, config: FitConfig) -> None:
    values = json.loads(json.dumps(diagnose([documents], config, passages=8, queries=5).as_dict()))
    assert values["survey"]["skipped"] == [{"source": "empty.md", "reason": "empty"}]
    assert values["estimate"]["seconds"] > 0


FACTS = Survey(
    ("docs",), 10, (), 1000, 20, 400, 40, 0.0, 0.0, {"English": 1.0}, {}, 0, 0, 0, True, "40 will judge.", "", "m", ()
)


def test_what_was_left_out_on_purpose_is_told_once_for_each_kind() -> None:
    notes = tuple(Skipped(f"{n}.pdf", "running head") for n in range(12))
    lines = replace(FACTS, notes=notes).lines()
    (at,) = (place for place, line in enumerate(lines) if line.startswith("Left out"))
    assert lines[at + 1].strip() == "0.pdf and 11 more: running head"
    assert not [line for line in FACTS.lines() if "Left out" in line]


def test_json_says_of_a_skipped_file_and_of_a_note_what_it_always_said() -> None:
    skipped, note = Skipped("a/", "folder cannot be listed: no", unlisted=True), Skipped("b.pdf", "running head")
    values = replace(FACTS, skipped=(skipped,), notes=(note,)).as_dict()
    assert values["skipped"] == [{"source": "a/", "reason": "folder cannot be listed: no"}]
    assert values["notes"] == [{"source": "b.pdf", "reason": "running head", "left_out": False, "row": None}]


def qualities(values: Mapping[str, float], recall: float = 0.5) -> Sequence[Quality]:
    return [Quality(system, ndcg, recall) for system, ndcg in values.items()]


def test_recommendation_follows_the_facts() -> None:
    even = qualities({"dense": 0.4, "lexical": 0.4, "hybrid": 0.45})
    assert recommend(FACTS, even, evidence=Evidence.HUMAN)[0] == "worth training"
    assert recommend(replace(FACTS, trainable=False), even, evidence=Evidence.CROP)[0] == "no judge"
    solved = qualities({"dense": 0.9, "lexical": 0.8, "hybrid": 0.95}, recall=0.97)
    assert recommend(FACTS, solved, evidence=Evidence.HUMAN)[0] == "little to gain"
    unordered = qualities({"dense": 0.7, "lexical": 0.6, "hybrid": 0.75}, recall=0.97)
    assert recommend(FACTS, unordered, evidence=Evidence.HUMAN)[0] == "worth training"
    # Crops are easy for everyone, and a sample is easier than the whole: neither shows that little is left.
    assert recommend(FACTS, solved, evidence=Evidence.CROP)[0] == "worth training"
    assert recommend(FACTS, solved, evidence=Evidence.HUMAN, whole=False)[0] == "worth training"
    assert recommend(FACTS, solved, evidence=Evidence.HUMAN, foreign=True)[0] == "wrong model"


def test_recommendation_names_the_gap_to_word_search_only_where_it_can_be_trusted() -> None:
    behind = qualities({"dense": 0.3, "lexical": 0.5, "hybrid": 0.45})
    assert "ahead of the model by 0.20" in recommend(FACTS, behind, evidence=Evidence.LABELLED)[1]
    assert "ahead" not in recommend(FACTS, behind, evidence=Evidence.CROP)[1]


# What a fit would do ---------------------------------------------------------------------------------------


def write_questions(folder: Path, pages: Sequence[int], each: int, name: str = "q") -> tuple[Path, Path]:
    """Questions, numbered from 1, and their judgements: `each` for every page."""
    rows, judged = [], ["query-id\tcorpus-id\tscore"]
    texts = iter(sentences(len(pages) * each, words=6, seed=sum(pages)))
    for number, page in enumerate([page for page in pages for _ in range(each)], start=1):
        rows.append(json.dumps({"_id": str(number), "text": next(texts)}))
        judged.append(f"{number}\tpage{page}.md\t1")
    queries, qrels = folder / f"{name}.jsonl", folder / f"{name}.tsv"
    queries.write_text("\n".join(rows), encoding="utf-8")
    qrels.write_text("\n".join(judged), encoding="utf-8")
    return queries, qrels


@pytest.mark.parametrize("use", ["both", "train", "eval"])
def test_the_plan_is_the_one_that_fit_makes_whatever_the_labels_are_for(
    use: Any, documents: Path, config: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ragadapt.pipeline.fit as pipeline

    plans = []

    def note(run: Any, asked: Any, *rest: Any) -> Any:
        only = {"only_judge": asked.only_judge, "only_train": asked.only_train}
        plans.append(gate.plan(asked.train, asked.heldout, dev=asked.dev, **only))
        return plan(run, asked, *rest)

    plan = pipeline.FitSteps.plan
    monkeypatch.setattr(pipeline.FitSteps, "plan", note)
    labels = [Labels(*write_questions(tmp_path, range(6), 10), use)]
    config = FitConfig.build({**config.model_dump(), "query": {"round_trip_k": 0}})
    found = survey([documents], config, labels=labels)
    pipeline.fit([documents], tmp_path / "r", config, labels=labels)
    assert (found.plan, found.trainable) == (plans[0].reason, bool(plans[0].train))
    assert (found.labelled, found.judging) == (60, 0 if use == "train" else 60)
    assert found.trainable is (use == "both")
    line = next(line for line in found.lines() if line.startswith("Judges"))
    assert ("60 more only train" in line) is (use == "train")


def test_two_files_of_labels_with_the_same_ids_do_not_mix(documents: Path, config: FitConfig, tmp_path: Path) -> None:
    labels = [
        Labels(*write_questions(tmp_path, [page], 12, f"of{page}"), use)  # type: ignore[arg-type]
        for page, use in ((2, "eval"), (7, "train"))
    ]
    found = survey_corpus([documents], config, labels, no_progress)
    assert {query.text for query in found.plan.judge} == {query.text for query in found.labelled[:12]}
    assert [set(found.grades[query.id]) for query in found.labelled] == [{"page2.md"}] * 12 + [{"page7.md"}] * 12


def test_labels_that_only_judge_leave_the_training_to_the_language_model(
    documents: Path, config: FitConfig, tmp_path: Path
) -> None:
    values = {**config.model_dump(), "query": {"generator_url": "http://h/v1", "generator_model": "m"}, "adapter": {}}
    labels = [Labels(*write_questions(tmp_path, range(6), 10), "eval")]
    found = survey([documents], FitConfig.build(values), labels=labels)
    assert found.plan == "Questions by the language model train; 60 held-out queries (labelled) judge."
    assert found.trainable


def test_a_language_models_questions_judge_before_those_found_in_the_documents(
    documents: Path, config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Query("q", "who?", "question", Evidence.HUMAN, ("c",))
    made = gate.Plan((found,) * 20, (found,) * 50, Evidence.HUMAN, "People judge.")
    monkeypatch.setattr("ragadapt.doctor.survey._plan", lambda *_: made)
    values = {**config.model_dump(), "adapter": {}}
    assert survey([documents], FitConfig.build(values)).plan == "People judge."
    values["query"] = {"generator_url": "http://h/v1", "generator_model": "m"}
    assert survey([documents], FitConfig.build(values)).plan == "Questions by the language model train and judge."


def test_what_a_language_model_would_ask_is_estimated_with_its_folds(documents: Path, config: FitConfig) -> None:
    values = {**config.model_dump(), "query": {"generator_url": "http://h/v1", "generator_model": "m"}, "adapter": {}}
    written = FitConfig.build(values)
    surveyed = survey_corpus([documents], written, [], no_progress)
    assert surveyed.plan.crossed == gate.PARAPHRASE_FOLDS and not surveyed.plan.judge
    once = replace(surveyed, plan=replace(surveyed.plan, crossed=0))
    with_folds, without = (measure._estimate(one, written, 1000.0).training_seconds for one in (surveyed, once))
    assert with_folds > 1.1 * without  # looks at the dev part fall away


def test_the_requests_are_counted_with_the_users_examples_and_without_known_answers(
    documents: Path, config: FitConfig, tmp_path: Path
) -> None:
    from ragadapt.queries.generate import _prompts, estimate
    from ragadapt.queries.generators.cache import Answer, AnswerLog

    values = {**config.model_dump(), "query": {"generator_url": "http://h/v1", "generator_model": "m"}}
    config = FitConfig.build(values)
    labels, kept = [Labels(*write_questions(tmp_path, range(6), 10), "train")], tmp_path / "answers.jsonl"
    surveyed = survey_corpus([documents], config, labels, no_progress)
    corpus = surveyed.corpus
    examples = shown_examples(read_labels(corpus, labels, config).sets)
    plain, shown = (estimate(corpus.chunks, config.query, seed=config.seed, examples=some) for some in ((), examples))
    assert plain.input_tokens != shown.input_tokens
    assert survey([documents], config).generation == plain.words
    assert surveyed.survey.generation == shown.words
    with AnswerLog(kept) as log:
        log.append([Answer(_prompts(corpus.chunks, config.query, config.seed, [])[0].key, "c", "Question: who?")])
    known = survey([documents], config, answers=kept).generation
    assert known.startswith(f"{plain.prompts - 1:,} requests") and known.endswith("; 1 more are answered already")


# A saved retriever -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, documents: Path, config: FitConfig) -> Path:
    from ragadapt.pipeline.fit import fit

    return fit([documents], tmp_path_factory.mktemp("fitted") / "retriever", config).path


@pytest.fixture
def copy(fitted: Path, tmp_path: Path) -> Path:
    shutil.copytree(fitted, tmp_path / "copy")
    return tmp_path / "copy"


def failed(path: Path) -> dict[str, str]:
    return {check.name: check.detail for check in examine(path).checks if not check.passed}


def test_fresh_retriever_is_sound(fitted: Path) -> None:
    found = examine(fitted)
    assert found.sound
    assert [check.name for check in found.checks] == [
        "files",
        "opens",
        "fingerprint",
        "counts",
        "vectors",
        "adapter",
        "confidence",
    ]
    assert found.lines()[-1] == "The retriever is sound."


def test_the_precision_is_named_with_its_agreement_and_what_it_was_built_in(fitted: Path) -> None:
    opens = next(check for check in examine(fitted, precision="bfloat16").checks if check.name == "opens")
    from ragadapt.store.workspace import open_store

    built = open_store(fitted).manifest.sections["precision"]["dtype"]
    assert "bfloat16 on cpu (least cosine with float32 0.9" in opens.detail or "float32 on cpu" in opens.detail
    assert (f"built in {built}" in opens.detail) is (f"{built} on" not in opens.detail)


def test_moved_retriever_is_sound(copy: Path) -> None:
    assert failed(copy) == {}


def test_changed_byte_is_found_and_the_file_named(copy: Path) -> None:
    file = next((copy / "lexical").rglob("*.npy"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert file.name in failed(copy)["files"]


def test_missing_file_is_found(copy: Path) -> None:
    (copy / "chunks.sqlite").unlink()
    assert "chunks.sqlite" in failed(copy)["files"]
    assert not examine(copy).sound


def test_vectors_of_another_model_are_found(fitted: Path) -> None:
    from ragadapt.retriever import Retriever

    with Retriever.open(fitted) as retriever:
        ids = retriever.chunks.ids()
        shuffled = np.random.default_rng(0).standard_normal((len(ids), retriever.encoder.dim)).astype(np.float32)
        retriever.searcher.index.update_vectors(ids, shuffled)
        check = examining._check_vectors(retriever)
    assert not check.passed


def test_there_is_nothing_to_examine_where_no_retriever_is(tmp_path: Path) -> None:
    with pytest.raises(NotARetriever):
        examine(tmp_path)
