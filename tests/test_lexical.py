"""Words of any language, and BM25 over them, against bm25s and against the formula."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from read_once import ReadOnce

from ragadapt.errors import FormatTooNew, IndexCorrupt, InvalidInput
from ragadapt.lexical import LexicalIndex, best_first, tokenise
from ragadapt.lexical.index import saved_stopwords
from ragadapt.lexical.ranking import best_positions, moments
from ragadapt.lexical.stopwords import QUESTION_WORDS, STOPWORDS, stopwords_for
from ragadapt.lexical.tokens import word_analyser, words

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "getUserName returns the name of the user; see user_name and http.client.",
    "A dog and a dog and another dog.",
    "",
    "梵語的學術研究 quick",
]
IDS = ["e", "d", "c", "b", "a"]


def one(text: str, language: str = "english") -> list[str]:
    return tokenise([text], language)[0]


@pytest.mark.parametrize("spelling", ["getUserName", "get_user_name", "get-user-name", "get.user.name", "GetUserName"])
def test_a_compound_gives_its_whole_and_its_parts_whatever_joins_it(spelling: str) -> None:
    assert one(spelling) == ["getusernam", "get", "user", "name"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Running runs", ["run", "run"]),
        ("the cat is on a mat", ["cat", "mat"]),
        ("e-mail", ["email", "mail"]),
        ("email", ["email"]),
        ("state-of-the-art", ["stateoftheart", "state", "art"]),
        ("HTTPServer", ["httpserver", "http", "server"]),
        ("utf-8", ["utf8", "utf", "8"]),
        ("utf8 sha256sum", ["utf8", "utf", "8", "sha256sum", "sha", "256", "sum"]),
        ("p53 CD4 IL-6 3D", ["p53", "cd4", "il6", "il", "6", "3d"]),
        (
            "md5Hash H2O x86_64 utf8Decode",
            ["md5hash", "md5", "hash", "h2o", "x8664", "x86", "64", "utf8decod", "utf", "8", "decod"],
        ),
        ("__init__", ["init"]),
        ("os.path.join()", ["ospathjoin", "os", "path", "join"]),
        ("End.Start", ["endstart", "end", "start"]),
        ("3.11.2 and 1,250 and 0.75", ["3.11.2", "3.11", "1250", "0.75"]),
        ("the user's users' don't", ["user", "user", "don"]),
        ("C++, C# and F#", ["c++", "c#", "f#"]),
        ("vitamin D, type 2", ["vitamin", "d", "type", "2"]),
        ("café Ångström naïve ﬁle Straße", ["cafe", "angstrom", "naiv", "file", "strass"]),
        ("l’avion d'une", ["avion", "une"]),
        ("梵語的學", ["梵語", "語的", "的學"]),
        ("我", ["我"]),
        ("iPhone手機ok", ["iphon", "phone", "手機", "ok"]),
        ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
        ("한국어", ["한국", "국어"]),
        ("ＡＢＣ１２３", ["abc123", "abc", "123"]),
        ("हिन्दी", ["हिन्दी"]),
        ("", []),
        ("... --- ''' ???", []),
    ],
)
def test_tokens_of_a_text(text: str, tokens: list[str]) -> None:
    assert one(text) == tokens


def test_a_language_names_the_stemmer_and_keeps_its_own_small_words() -> None:
    assert one("die Häuser in Bäumen", "german") == ["die", "haus", "in", "baum"]
    assert one("the running", "none") == ["the", "running"]
    with pytest.raises(InvalidInput, match="klingon"):
        one("x", "klingon")


ENGLISH_WORDS = STOPWORDS | QUESTION_WORDS


@pytest.mark.parametrize(
    ("languages", "stopwords"),
    [
        ({"English": 1.0}, ENGLISH_WORDS),
        ({"English": 0.5, "unknown": 0.5}, ENGLISH_WORDS),  # code beside its comments
        ({"English": 0.85, "German": 0.15}, STOPWORDS),  # "must" is fruit juice there
        ({"Chinese": 1.0}, STOPWORDS),
        ({"Finnish": 1.0}, STOPWORDS),
        ({"unknown": 1.0}, STOPWORDS),
        ({}, STOPWORDS),
    ],
)
def test_a_list_is_for_text_that_is_nearly_all_in_its_language(
    languages: dict[str, float], stopwords: frozenset[str]
) -> None:
    assert stopwords_for(languages) == stopwords


@pytest.mark.parametrize(
    "name",
    ["Danish", "Dutch", "French", "German", "Italian", "Norwegian", "Portuguese", "Russian", "Spanish", "Swedish"],
)
def test_other_languages_have_lists_of_their_own_in_the_form_in_which_words_are_compared(name: str) -> None:
    found = stopwords_for({name: 1.0})
    assert len(found) > 90
    assert not found & {"must", "what", "could"}
    assert {word for word in found if words(word) != [word]} <= {word for word in found if "'" in word}


def test_german_articles_go_and_german_nouns_stay() -> None:
    german = stopwords_for({"German": 0.95, "unknown": 0.05})
    assert tokenise(["für die Häuser der Stadt"], stopwords=german) == [["hauser", "stadt"]]


def test_question_words_say_nothing_in_an_index_of_english_text() -> None:
    index = LexicalIndex.build(["a", "b"], ["What the dog did", "the cat"], stopwords=ENGLISH_WORDS)
    queries = ["What did the dog do?", "dog", "what"]
    first, second, third = index.scores(queries)
    np.testing.assert_array_equal(first, second)
    assert first[0] > 0
    assert not third.any()


def test_an_index_keeps_its_stop_words_when_it_is_saved_and_when_it_grows(tmp_path: Path) -> None:
    LexicalIndex.build(["a"], ["dog cat"], stopwords=frozenset({"dog"})).save(tmp_path)
    index = LexicalIndex.open(tmp_path)
    index.update(["b"], ["the dog"])
    assert not index.scores(["dog"]).any()
    assert index.scores(["the"])[0, 1] > 0


def test_an_index_of_an_earlier_version_searches_as_it_did(tmp_path: Path) -> None:
    """Format 1 had Lucene's short list under "english", and none under other stemmers."""
    for language in ("english", "german"):
        folder = tmp_path / language
        index = LexicalIndex.build(["a", "b"], ["what a dog", "the cat"], language=language)
        queries = ["what", "the", "what is the dog"]
        before = index.scores(queries)
        index.save(folder)
        file = folder / "lexical.json"
        kept = json.loads(file.read_text(encoding="utf-8"))
        assert kept.pop("stopwords") == (sorted(STOPWORDS) if language == "english" else [])
        file.write_text(json.dumps(kept | {"format": 1}), encoding="utf-8")
        assert saved_stopwords(folder) == (STOPWORDS if language == "english" else set())
        opened = LexicalIndex.open(folder)
        np.testing.assert_array_equal(opened.scores(queries), before)
        assert before[0, 0] > 0  # "what" counts
        opened.update(["c"], ["what else"])
        assert opened.scores(["what"])[0, 2] > 0


def test_stop_words_that_cannot_be_read_are_nobodys(tmp_path: Path) -> None:
    assert saved_stopwords(tmp_path) is None
    (tmp_path / "lexical.json").write_text("[1]")
    assert saved_stopwords(tmp_path) is None


def test_a_single_string_is_refused() -> None:
    with pytest.raises(InvalidInput, match="one string"):
        tokenise("abc")


def test_a_very_long_word_is_cut() -> None:
    assert one("x" * 10_000) == ["x" * 64]


@given(st.text(max_size=200))
def test_any_text_gives_lower_case_tokens_without_spaces(text: str) -> None:
    for token in one(text):
        assert token and not any(c.isspace() for c in token) and len(token) <= 64
        assert token == token.lower() or token.upper() == token  # some capitals have no lower case


@given(st.text(alphabet="abc é-_.'AB12梵語 ", max_size=60))
def test_folding_does_not_change_plain_text(text: str) -> None:
    assert one(text) == one(text.replace("é", "e"))


def explicit_bm25(query: str, texts: list[str], k1: float = 1.2, b: float = 0.75) -> list[float]:
    """The formula of the module's docstring, word by word."""
    analyse = word_analyser("english")
    documents = [Counter(tokens) for tokens in tokenise(texts)]
    lengths = [sum(analyse(word).positions for word in words(text)) for text in texts]
    mean = sum(lengths) / len(lengths) or 1
    scores = [0.0] * len(texts)
    for token in one(query):
        df = sum(token in document for document in documents)
        for number, document in enumerate(documents):
            if tf := document[token]:
                idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
                scores[number] += idf * tf / (tf + k1 * (1 - b + b * lengths[number] / mean))
    return scores


def test_scores_follow_the_formula() -> None:
    index = LexicalIndex.build(IDS, TEXTS)
    queries = ["user name", "dog dog", "quick 梵語", "nothing here"]
    np.testing.assert_allclose(index.scores(queries), [explicit_bm25(q, TEXTS) for q in queries], atol=1e-6)
    assert index.scores(queries).dtype == np.float32


def test_scores_equal_bm25s_where_no_compound_occurs() -> None:
    texts = ["red apple pie", "green apple", "red red wine", "a wine of green grape"]
    reference = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    reference.index(tokenise(texts), show_progress=False)
    index = LexicalIndex.build(list("abcd"), texts)
    for query in ["red wine", "green apple pie", "grape"]:
        np.testing.assert_allclose(index.scores([query])[0], reference.get_scores(one(query)), atol=1e-6)


VOCABULARY = ["dog", "cat", "user_name", "fooBar", "utf8", "the", "x", "梵語", "apple pie", "e-mail"]
some_texts = st.lists(st.lists(st.sampled_from(VOCABULARY), max_size=6).map(" ".join), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None)
@given(some_texts, st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=4).map(" ".join))
def test_scores_of_random_texts_follow_the_formula(texts: list[str], query: str) -> None:
    index = LexicalIndex.build([str(i) for i in range(len(texts))], texts)
    np.testing.assert_allclose(index.scores([query])[0], explicit_bm25(query, texts), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(some_texts, some_texts, st.sets(st.integers(0, 7)), st.integers(0, 4))
def test_an_updated_index_equals_one_built_afresh(old: list[str], new: list[str], gone: set[int], shift: int) -> None:
    ids = [f"d{i}" for i in range(len(old))]
    new_ids = [f"d{i + shift}" for i in range(len(new))]  # some replace old ones, some are new
    index = LexicalIndex.build(ids, old)
    index.update(new_ids, new, remove=[f"d{i}" for i in gone] + ["unknown"])
    kept = [(i, t) for i, t in zip(ids, old) if int(i[1:]) not in gone and i not in new_ids]
    kept += list(zip(new_ids, new))
    fresh = LexicalIndex.build([i for i, _ in kept], [t for _, t in kept])
    assert index.ids() == fresh.ids()
    np.testing.assert_allclose(index.scores(VOCABULARY), fresh.scores(VOCABULARY), atol=1e-6)


def test_search_returns_the_best_passage_first_and_leaves_out_the_rest() -> None:
    index = LexicalIndex.build(IDS, TEXTS)
    [(ids, scores), (none, no_scores)] = index.search(["dog", "zebra"], 10)
    assert ids == ["c", "e"]
    np.testing.assert_allclose(scores, index.scores(["dog"])[0, [2, 0]])
    assert none == [] and no_scores.shape == (0,)
    assert index.search(["dog"], 1)[0][0] == ["c"]


def test_search_keeps_to_the_allowed_documents() -> None:
    index = LexicalIndex.build(IDS, TEXTS)
    assert index.search(["dog"], 10, np.array([True, True, False, True, True]))[0][0] == ["e"]
    with pytest.raises(InvalidInput, match="shape"):
        index.search(["dog"], 10, np.array([True]))


def test_equal_scores_come_in_the_order_of_ids_also_at_the_cut() -> None:
    index = LexicalIndex.build(["z", "m", "a"], ["same words"] * 3)
    assert index.search(["same"], 2)[0][0] == ["a", "m"]


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(0, 14))
def test_best_first_is_the_sorted_list_cut_at_k(values: list[int], k: int) -> None:
    ids = [f"{(i * 7) % 13:02}" for i in range(len(values))]
    expected = sorted(zip((-v for v in values), ids))[:k]
    found, scores = best_first(np.array(values, np.float32), k, ids)
    assert list(zip((-scores).tolist(), found)) == expected


@pytest.mark.parametrize("kind", ["spread", "sparse", "few values", "falling"])
def test_many_scores_are_cut_as_few_are(kind: str) -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=20_000).astype(np.float32)
    if kind == "sparse":
        scores[rng.permutation(20_000)[:19_990]] = 0
    elif kind == "few values":
        scores = rng.integers(0, 3, 20_000).astype(np.float32)
    elif kind == "falling":  # the sample sees every largest one
        scores = -np.arange(20_000, dtype=np.float32)
    ids = [f"{at:05}" for at in range(20_000)]
    for k in (1, 7, 100, 4000):
        order = np.argsort(-scores, kind="stable")[:k]
        found, best = best_first(scores, k, ids)
        assert found == [ids[at] for at in order]
        np.testing.assert_array_equal(best, scores[order])
        np.testing.assert_array_equal(best_positions(scores, k), np.sort(order))


def test_moments_of_equal_scores_have_no_spread() -> None:
    rows = np.full((2, 30_011), 17.3, np.float32)
    rows[1] += np.random.default_rng(0).normal(size=30_011).astype(np.float32)
    means, deviations = moments(rows)
    np.testing.assert_allclose(means, rows.mean(1, dtype=np.float64), rtol=1e-6)
    assert deviations[0] < 1e-6
    assert deviations[1] == pytest.approx(rows[1].std(dtype=np.float64), rel=1e-5)
    sparse = np.zeros((1, 1_000_000), np.float32)
    sparse[0, ::1000] = np.random.default_rng(1).exponential(4, 1000)
    assert moments(sparse)[1][0] == pytest.approx(sparse.std(dtype=np.float64), rel=1e-6)
    assert moments(np.empty((2, 0), np.float32))[0].tolist() == [0, 0]


def test_moments_are_those_of_all_documents_and_blocks_join_to_the_whole() -> None:
    index = LexicalIndex.build(IDS, TEXTS)
    queries = ["dog", "user name", "zebra"]
    whole = index.scores(queries)
    means, deviations = index.moments(queries)
    np.testing.assert_allclose(means, whole.mean(1), atol=1e-6)
    np.testing.assert_allclose(deviations, whole.std(1), atol=1e-6)
    blocks = list(index.score_blocks(queries, block_bytes=1))
    assert [start for start, _ in blocks] == [0, 1, 2]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), whole)
    np.testing.assert_array_equal(index.scores_of("dog", index.positions(["c", "b"])), whole[0, [2, 3]])


def test_a_heading_counts_as_often_as_its_weight() -> None:
    texts, headings = ["plain words", "other words"], ["My Heading", "Second"]
    for weight in (0, 1, 3):
        repeated = [" ".join([heading] * weight + [text]) for heading, text in zip(headings, texts)]
        index = LexicalIndex.build(["1", "2"], texts, headings=headings, heading_weight=weight)
        expected = LexicalIndex.build(["1", "2"], repeated)
        np.testing.assert_allclose(index.scores(["heading words"]), expected.scores(["heading words"]), atol=1e-6)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_saved_index_opens_with_the_same_scores_and_can_go_on(tmp_path: Path, mmap: bool) -> None:
    index = LexicalIndex.build(IDS, TEXTS, language="none", headings=["Ä"] * 5)
    index.save(tmp_path / "lexical")
    opened = LexicalIndex.open(tmp_path / "lexical", mmap=mmap)
    assert opened.ids() == IDS and len(opened) == 5
    queries = ["dog", "runs", "user"]
    np.testing.assert_array_equal(opened.scores(queries), index.scores(queries))
    for each in (index, opened):
        each.update(["new"], ["the dog runs"], headings=["x"], remove=["c"])
    np.testing.assert_array_equal(opened.scores(queries), index.scores(queries))
    opened.save(tmp_path / "lexical")  # over the files it came from
    again = LexicalIndex.open(tmp_path / "lexical")
    again.save(tmp_path / "lexical")
    np.testing.assert_array_equal(LexicalIndex.open(tmp_path / "lexical").scores(queries), index.scores(queries))


def test_texts_and_headings_are_read_once_and_in_order() -> None:
    texts, headings = ReadOnce(TEXTS), ReadOnce(["Dog", "", "Cat", "x", "y"])
    index = LexicalIndex.build(IDS, texts, headings=headings)
    assert texts.readings == headings.readings == 1
    expected = LexicalIndex.build(IDS, TEXTS, headings=["Dog", "", "Cat", "x", "y"])
    np.testing.assert_array_equal(index.scores(["dog", "cat"]), expected.scores(["dog", "cat"]))


def counted(
    texts: list[str], headings: list[str], numbers: dict[str, int]
) -> tuple[list[int], list[int], list[int], list[float]]:
    """(indptr, documents, frequencies, scores) of BM25, token by token. Numbers new tokens."""
    documents = [Counter(tokens) for tokens in tokenise([f"{h} {h} {t}" for h, t in zip(headings, texts)])]
    lengths = np.array([2 * length(h) + length(t) for h, t in zip(headings, texts)], np.float32)
    for document in documents:
        for token in document:
            numbers.setdefault(token, len(numbers))
    saturation = 1.2 * (1 - 0.75 + 0.75 * lengths / (float(lengths.mean()) or 1.0))
    columns, rows, frequencies, scores = [0], list[int](), list[int](), list[float]()
    for token in numbers:
        found = [at for at, document in enumerate(documents) if token in document]
        idf = np.log1p(np.float64(len(texts) - len(found) + 0.5) / (len(found) + 0.5))
        rows += found
        tf = np.array([documents[at][token] for at in found], np.int64)
        frequencies += tf.tolist()
        scores += (idf * (tf / (tf + saturation[found]))).astype(np.float32).tolist()
        columns.append(len(rows))
    return columns, rows, frequencies, scores


def length(text: str) -> int:
    return sum(word_analyser()(word).positions for word in words(text))


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_postings_are_the_same_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("ragadapt.lexical.index._BLOCK_TOKENS", size)
    monkeypatch.setattr("ragadapt.lexical.index._REMEMBERED", 3)
    rng = np.random.default_rng(size)
    some = [" ".join(rng.choice(VOCABULARY, rng.integers(0, 9))) for _ in range(40)]
    texts, headings, ids = some[:20], some[20:], [f"d{n}" for n in range(20)]
    index, numbers = LexicalIndex.build(ids[:15], texts[:15], headings=headings[:15]), dict[str, int]()
    for gone, added in (([], []), ([], [15, 16]), ([0, 4, 5], [2, 17, 18, 19])):
        index.update(
            [ids[at] for at in added], [texts[at] for at in added], headings=[headings[at] for at in added],
            remove=[ids[at] for at in gone],
        )  # fmt: skip
        order = [int(id_[1:]) for id_ in index.ids()]
        found = index._engine.scores
        expected = counted([texts[at] for at in order], [headings[at] for at in order], numbers)
        assert found["indptr"].tolist() == expected[0] and found["indptr"].dtype == np.int64
        assert found["indices"].tolist() == expected[1] and found["indices"].dtype == np.int32
        assert index._frequencies.tolist() == expected[2] and index._frequencies.dtype == np.uint16
        assert found["data"].tolist() == expected[3] and found["data"].dtype == np.float32


def test_a_word_that_comes_more_often_than_16_bits_hold_weighs_what_it_should() -> None:
    texts = ["stone " * 70_000, "stone wall", "wall"]
    index = LexicalIndex.build(["a", "b", "c"], texts)
    np.testing.assert_allclose(index.scores(["stone"])[0], explicit_bm25("stone", texts), rtol=1e-6)
    assert index._frequencies.tolist() == [65_535, 1, 1, 1]


def test_building_takes_no_more_than_thirty_bytes_a_posting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragadapt.lexical.index._BLOCK_TOKENS", 20_000)
    vocabulary = [f"w{number}" for number in range(500)]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(vocabulary, 100)) for _ in range(3000)]
    ids = [str(number) for number in range(len(texts))]
    LexicalIndex.build(ids[:9], texts[:9])  # what is imported and made once
    tracemalloc.start()
    try:
        index = LexicalIndex.build(ids, texts)
        built = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        index.update(["new"], ["w1 w2"], remove=["7"])
        updated = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert max(built, updated) < 30 * len(index._frequencies)


def test_an_index_of_nothing_works(tmp_path: Path) -> None:
    for ids, texts in (([], []), (["a"], [""]), (["a"], ["the"])):
        index = LexicalIndex.build(ids, texts)
        index.save(tmp_path)
        opened = LexicalIndex.open(tmp_path)
        assert opened.search(["anything"], 3)[0][0] == []
        assert opened.scores(["anything"]).shape == (1, len(ids))
        opened.update(["b"], ["anything"])
        assert opened.search(["anything"], 3)[0][0] == ["b"]
    index = LexicalIndex.build(["a"], ["word"])
    index.update(remove=["a"])
    assert len(index) == 0 and index.search(["word"], 3)[0][0] == []


@pytest.mark.parametrize(
    "name", ["data.csc.index.npy", "frequencies.npy", "ids.json", "lexical.json", "vocab.index.json"]
)
def test_a_truncated_or_missing_file_is_index_corrupt(tmp_path: Path, name: str) -> None:
    LexicalIndex.build(IDS, TEXTS).save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IndexCorrupt, match="--rebuild"):
        LexicalIndex.open(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(IndexCorrupt, match="--rebuild"):
        LexicalIndex.open(tmp_path)


def test_files_of_two_indexes_do_not_mix(tmp_path: Path) -> None:
    LexicalIndex.build(IDS, TEXTS).save(tmp_path / "one")
    LexicalIndex.build(["a"], ["b c"]).save(tmp_path / "two")
    (tmp_path / "one" / "frequencies.npy").write_bytes((tmp_path / "two" / "frequencies.npy").read_bytes())
    with pytest.raises(IndexCorrupt, match="belong together"):
        LexicalIndex.open(tmp_path / "one")


def test_a_newer_format_is_told_apart_from_damage(tmp_path: Path) -> None:
    LexicalIndex.build(IDS, TEXTS).save(tmp_path)
    settings_file = tmp_path / "lexical.json"
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | {"format": 99}))
    with pytest.raises(FormatTooNew, match="99"):
        LexicalIndex.open(tmp_path)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InvalidInput, match="'a' comes twice"):
        LexicalIndex.build(["a", "a"], ["x", "y"])
    with pytest.raises(InvalidInput, match="2 ids for 1 texts"):
        LexicalIndex.build(["a", "b"], ["x"])
    with pytest.raises(InvalidInput, match="heading_weight is -1"):
        LexicalIndex.build(["a"], ["x"], heading_weight=-1)
    with pytest.raises(InvalidInput, match="one string"):
        LexicalIndex.build(["a"], ["x"]).search("x", 1)
    with pytest.raises(InvalidInput, match="holds no 'b'"):
        LexicalIndex.build(["a"], ["x"]).positions(["b"])


def test_a_closed_index_is_empty(tmp_path: Path) -> None:
    LexicalIndex.build(IDS, TEXTS).save(tmp_path)
    index = LexicalIndex.open(tmp_path)
    index.close()
    assert len(index) == 0 and index.search(["dog"], 3)[0][0] == []


# Plain BM25 (English stems, no splitting) reaches .679, .376, .775, .336, .755 on title + text.
@pytest.mark.parametrize(
    ("collection", "at_least"),
    [("scifact", 0.69), ("cranfield", 0.37), ("stackfaq", 0.77), ("cosqa", 0.38), ("handbook", 0.755), ("drcd", 0.95)],
)
@pytest.mark.slow
def test_quality_on_real_collections(data: Path, collection: str, at_least: float) -> None:
    import ir_measures

    folder = data / collection
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = {q["_id"]: q["text"] for q in map(json.loads, (folder / "queries.jsonl").open(encoding="utf-8"))}
    qrels: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, document, score = line.split("\t")
        qrels.setdefault(query, {})[document] = int(score)
    index = LexicalIndex.build([r["_id"] for r in rows], [f"{r['title']}\n{r['text']}" for r in rows])
    results = index.search([texts[query] for query in qrels], 100)
    run = {q: dict(zip(ids, scores.tolist())) for q, (ids, scores) in zip(qrels, results)}
    measure = ir_measures.parse_measure("nDCG@10")
    assert ir_measures.calc_aggregate([measure], qrels, run)[measure] >= at_least


@pytest.mark.parametrize("loaded", [False, True])
def test_jax_is_not_started(tmp_path: Path, loaded: bool) -> None:
    """bm25s starts it where it is installed, and it takes most of a GPU's memory."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("from jax import lax\n" if loaded else "")
    (tmp_path / "jax" / "lax.py").write_text("def top_k(*_): raise SystemExit('JAX was started')\n")
    lines = [
        *(["import jax"] if loaded else []),
        "from ragadapt.lexical import LexicalIndex",
        "assert LexicalIndex.build(['a'], ['old stone']).search(['stone'], 1)[0][0] == ['a']",
        "import jax.lax, bm25s.selection",
        "assert jax.lax.top_k and not bm25s.selection.JAX_IS_AVAILABLE",
    ]
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
