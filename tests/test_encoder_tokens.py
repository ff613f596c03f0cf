"""Tokens without offsets are those with offsets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import sentences
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast

from ragadapt.encoder import counting
from ragadapt.encoder.counting import TokenCounter
from ragadapt.encoder.tokens import backend_of, encode
from ragadapt.encoder.tower import Tower
from ragadapt.rerank.pairs import PairTower

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
AWKWARD = [
    "",
    " ",
    "a",
    " leading and trailing \n",
    "two  spaces,   three\n\n\tand a tab;\r\nlines",
    "Naïve ÅNGSTRÖM re\u0301sume\u0301, ½ ﬁ m²; it's we'll 12,345.67 e-mail@x.org",
    "斷句是中文的難題 and English beside 漢字。かな カナ 한국어",
    "[CLS] in [SEP]the text[MASK] <s>x</s> <mask> and|||IP_ADDRESS|||on",
    "zero\u200bwidth no\u00a0break\u2003em soft\u00adhyphen \ufffd \x00 \x0b\x0c\x1c\x1f\x85\u2028\u2029 end",
    "a\x1cb c\x85d e\x0bf",
    "😀 family 👨‍👩‍👧 flags 🇩🇪 " + "x" * 150 + " " + "long " * 90,
    " \u0301 combining after a space",
    *sentences(12, words=30),
]
LEARNT = [*sentences(60, words=20), *AWKWARD]


def wordpiece(**options: Any) -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(**options)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(LEARNT, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def byte_level(pre: Any, *, prefix: bool = False, roberta: bool = False) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet)
    made.train_from_iterator(LEARNT, trainer)
    made.decoder = decoders.ByteLevel()
    if roberta:
        made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=prefix)
    else:
        made.post_processor = processors.ByteLevel(trim_offsets=False)
    return made


def modernbert() -> Tokenizer:
    made = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    made.add_tokens([AddedToken(" " * n, normalized=True) for n in range(2, 9)])
    made.add_tokens([AddedToken("|||IP_ADDRESS|||", normalized=True)])
    made.add_special_tokens([AddedToken("[MASK]", lstrip=True, special=True)])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made


def qwen() -> Tokenizer:
    split = pre_tokenizers.Split(Regex(QWEN), "isolated", invert=False)
    return byte_level(pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)]))


def sentencepiece() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made.train_from_iterator(LEARNT, trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>"))
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "wordpiece": wordpiece,
    "wordpiece, cased": lambda: wordpiece(lowercase=False, handle_chinese_chars=False, clean_text=False),
    "wordpiece, no template": lambda: without_template(wordpiece()),
    "roberta": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), prefix=True, roberta=True),
    "modernbert": modernbert,
    "qwen": qwen,
    "sentencepiece": sentencepiece,
}


def without_template(made: Tokenizer) -> Tokenizer:
    made.post_processor = processors.Sequence([])
    return made


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    made = TOKENIZERS[request.param]()
    pad, cut = ("[PAD]", "[SEP]") if request.param.startswith("wordpiece") else ("<pad>", "</s>")
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=pad,
        sep_token=cut,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


class Plainly:
    """A tokenizer of another library: it is called, whatever stands behind it."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pad_token_id = tokenizer.pad_token_id

    def __call__(self, *values: Any, **options: Any) -> Any:
        return self.tokenizer(*values, **options)


def test_ids_are_those_of_the_tokenizer_itself(tokenizer: Any) -> None:
    for max_length in (None, 12, 64):
        expected = tokenizer(AWKWARD, truncation=max_length is not None, max_length=max_length)["input_ids"]
        made = encode(tokenizer, list(AWKWARD), max_length=max_length)
        assert made is not None and [one.ids for one in made] == expected
    expected = tokenizer(AWKWARD, add_special_tokens=False)["input_ids"]
    made = encode(tokenizer, list(AWKWARD), special_tokens=False)
    assert made is not None and [one.ids for one in made] == expected


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_ids_of_any_text_are_those_of_the_tokenizer_itself(tokenizer: Any, text: str) -> None:
    made = encode(tokenizer, [text], max_length=16)
    assert made is not None and made[0].ids == tokenizer(text, truncation=True, max_length=16)["input_ids"]


def test_a_tower_reads_what_the_tokenizer_gives_it(tokenizer: Any) -> None:
    for max_length in (8, 512):
        mine = Tower(nn.Linear(1, 1), [], tokenizer, max_length).tokenize(AWKWARD)
        theirs = Tower(nn.Linear(1, 1), [], Plainly(tokenizer), max_length).tokenize(AWKWARD)
        assert mine[1] == theirs[1] and (mine[1] == 0) == (max_length == 512)
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(mine[0], theirs[0], strict=True))


def test_a_pair_and_which_text_each_token_is_of_are_those_of_the_tokenizer(tokenizer: Any) -> None:
    pairs = list(zip(AWKWARD, AWKWARD[::-1], strict=True))
    for max_length in (16, 512):
        ids, types = PairTower(nn.Linear(1, 1), None, tokenizer, max_length, "").tokenize(pairs)
        plain = PairTower(nn.Linear(1, 1), None, Plainly(tokenizer), max_length, "")
        expected, told = plain.tokenize(pairs)
        assert types is not None and told is not None
        assert [row.tolist() for row in ids] == [row.tolist() for row in expected]
        assert [row.tolist() for row in types] == [row.tolist() for row in told]


def test_a_call_leaves_the_backend_as_a_call_of_the_tokenizer_does(tokenizer: Any) -> None:
    backend = tokenizer.backend_tokenizer
    tokenizer(["a"], truncation=True, max_length=12)
    expected = backend.truncation, backend.padding
    backend.no_truncation()
    backend.enable_padding()
    encode(tokenizer, ["a"], max_length=12)
    assert (backend.truncation, backend.padding) == expected
    encode(tokenizer, ["a"])
    assert (backend.truncation, backend.padding) == (None, None)


def test_special_tokens_in_a_text_are_split_as_the_tokenizer_says(tokenizer: Any) -> None:
    text = f"a {tokenizer.sep_token} b"
    for split in (True, False):
        tokenizer(text, split_special_tokens=not split)  # the backend keeps what the last call said
        tokenizer.split_special_tokens = split
        made = encode(tokenizer, [text])
        assert made is not None and made[0].ids == tokenizer(text)["input_ids"]


def test_a_tokenizer_that_does_more_is_called_itself() -> None:
    class Shouting(PreTrainedTokenizerFast):  # type: ignore[misc]
        def _encode_plus(self, text: Any, **options: Any) -> Any:
            return super()._encode_plus([one.upper() for one in text], **options)

    made = Shouting(tokenizer_object=wordpiece(lowercase=False), pad_token="[PAD]")
    assert backend_of(made) is None and encode(made, ["a"]) is None
    rows, _ = Tower(nn.Linear(1, 1), [], made, 64).tokenize(["the cat"])
    assert rows[0].tolist() == made.backend_tokenizer.encode("THE CAT").ids


def test_a_bare_tokenizer_is_not_changed() -> None:
    made = wordpiece()
    made.enable_truncation(9)
    assert backend_of(made) is made and made.truncation["max_length"] == 9
    assert backend_of(made, 5) is None


# Counting by words


ALPHABET = [
    *"ab1.,'-éßİΣ中文カ한\u0301\u200b\u00ad\ufffd\x00\x01",
    *" \n\t\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\u00a0\u1680\u2003\u2028\u2029\u202f\u3000",
    *("  ", "the", "n't", "[SEP]", "[MASK]", "<s>", "<mask>", "|||IP_ADDRESS|||", "\uf900", "\U00020000"),
]


def plain_counts(tokenizer: Any, texts: list[str]) -> list[int]:
    return [len(row) for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def test_counts_are_those_of_the_tokenizer(tokenizer: Any) -> None:
    count = TokenCounter(tokenizer)
    expected = plain_counts(tokenizer, AWKWARD)
    assert count(AWKWARD) == expected  # every word is new
    assert count(AWKWARD) == expected  # none is
    assert [count([text])[0] for text in AWKWARD] == expected
    assert count([]) == []


@settings(max_examples=400, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(ALPHABET), max_size=14).map("".join), max_size=4))
def test_counts_of_any_texts_are_those_of_the_tokenizer(counted: tuple[Any, TokenCounter], texts: list[str]) -> None:
    tokenizer, count = counted
    assert count(texts) == (plain_counts(tokenizer, texts) if texts else [])


@pytest.fixture(scope="module")
def counted(tokenizer: Any) -> tuple[Any, TokenCounter]:
    return tokenizer, TokenCounter(tokenizer)


def test_every_kind_of_white_space_parts_words_as_the_tokenizer_sees_it(tokenizer: Any) -> None:
    spaces = [chr(at) for at in range(0x110000) if chr(at).isspace()]
    texts = [form.format(space) for space in spaces for form in ("a{0}b", "a {0}b", "a{0} b", "{0}a", "a{0}", "中{0}a")]
    assert TokenCounter(tokenizer)(texts) == plain_counts(tokenizer, texts)


def test_a_word_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def watched(tokenizer: Any, texts: list[Any], **options: Any) -> Any:
        read.extend(texts)
        return encode(tokenizer, texts, **options)

    monkeypatch.setattr(counting, "encode", watched)
    for made, words in ((wordpiece(), ["cat", "the"]), (qwen(), [" cat", " sat", " the", "cat", "the"])):
        count = TokenCounter(made)
        count(
            ["the cat", "the cat the cat"] if isinstance(made.model, models.WordPiece) else ["the cat sat", "cat the"]
        )
        assert sorted(read) == words
        read.clear()
        count(["the cat the cat the"])
        assert read == []
        count(["x" * 50, "x" * 50])
        count(["x" * 50])
        assert len(read) > 1 and set(read) <= {"x" * 50, " " + "x" * 50}  # too long to be remembered
        read.clear()


def test_words_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "_MOST_WORDS", 5)
    monkeypatch.setattr(counting, "_CHARACTERS", 20)
    for made in (wordpiece(), modernbert()):
        wrapped = PreTrainedTokenizerFast(tokenizer_object=made)
        assert TokenCounter(wrapped)(LEARNT) == plain_counts(wrapped, LEARNT)


def test_what_may_reach_over_a_space_is_read_whole() -> None:
    def added(made: Tokenizer, content: str, **options: Any) -> Tokenizer:
        made.add_tokens([AddedToken(content, **options)])
        return made

    digits = byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(False, use_regex=False)])
    )
    dropping = qwen()
    dropping.model.dropout = 0.1
    read_whole = [
        added(wordpiece(), "new york"),
        added(wordpiece(), "紐約"),
        added(qwen(), "new york"),
        added(qwen(), "york", rstrip=True),
        added(qwen(), "york "),
        byte_level(pre_tokenizers.ByteLevel(use_regex=False)),
        digits,
        dropping,
        sentencepiece(),
    ]
    text = "in new york 紐約 we eat bread , york is large 12 of 3"
    for made in read_whole:
        assert counting._words_of(made) == (None, "")
        if made is not dropping:
            wrapped = PreTrainedTokenizerFast(tokenizer_object=made)
            assert TokenCounter(wrapped)([text]) == plain_counts(wrapped, [text])


def test_a_bare_tokenizer_that_cuts_or_pads_is_asked_for_whole_texts() -> None:
    made = wordpiece()
    count = TokenCounter(made)
    assert count(["the cat sat", "the"]) == [
        len(made.encode(t, add_special_tokens=False)) for t in ("the cat sat", "the")
    ]
    made.enable_truncation(2)
    assert count(["the cat sat"]) == [2]
    made.no_truncation()
    made.enable_padding(length=7)
    assert count(["the cat sat"]) == [7]
