"""Normal forms and near-duplicate groups, the fast way against the obvious one."""

from __future__ import annotations

import random
import time
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragadapt.corpus import near_duplicate_groups, normalise
from ragadapt.errors import InvalidInput


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello,  World!", "hello world"),
        ("ＦＵＬＬ　ｗｉｄｔｈ", "full width"),
        ("Straße", "STRASSE"),
        ("“quoted” — text…", "quoted text"),
        ("# A *heading*\n", "a heading"),
        ("snake_case", "snake case"),
        ("漢字，測試。", "漢字 測試"),
        ("ﬁne", "fine"),
    ],
)
def test_texts_that_read_the_same_have_one_normal_form(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(("one", "other"), [("C++", "C"), ("C#", "C"), ("क", "कि"), ("!", "?"), ("a b", "ab")])
def test_texts_that_differ_keep_different_forms(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_a_normal_form_is_its_own(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
    assert normalise(f"  {text} ") == normalise(text)


def words(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [f"w{rng.randrange(5000)}" for _ in range(count)]


def shingles(text: str) -> set[tuple[str, ...]]:
    parts = normalise(text).split()
    return {tuple(parts[n : n + 5]) for n in range(max(1, len(parts) - 4))}


def test_groups_are_those_of_exact_pairwise_similarity() -> None:
    rng = random.Random(1)
    texts = []
    for n in range(40):
        base = words(n, rng.randrange(30, 150))
        texts.append(" ".join(base))
        for _ in range(rng.randrange(3)):
            changed = list(base)
            for _ in range(rng.choice([0, 1, 1, 2, 6, 20])):
                changed[rng.randrange(len(changed))] = f"new{rng.randrange(1000)}"
            texts.append(" ".join(changed).upper() + ".")
    parent = list(range(len(texts)))

    def root(n: int) -> int:
        return n if parent[n] == n else root(parent[n])

    sets = [shingles(text) for text in texts]
    for a, b in combinations(range(len(texts)), 2):
        if len(sets[a] & sets[b]) / len(sets[a] | sets[b]) >= 0.8:
            parent[max(root(a), root(b))] = min(root(a), root(b))
    numbers: dict[int, int] = {}
    exact = [numbers.setdefault(root(n), len(numbers)) for n in range(len(texts))]
    assert near_duplicate_groups(texts) == exact
    assert len(set(exact)) < len(texts)


def test_equal_normal_forms_are_always_together() -> None:
    assert near_duplicate_groups(["A b.", "x", "a  B", "", "!", " ", "X!"]) == [0, 1, 0, 2, 3, 2, 1]


def test_text_without_spaces_is_compared_by_characters() -> None:
    text = "在歐洲，梵語的學術研究，由德國學者陸特和漢斯雷頓開創。後來威廉瓊斯發現印歐語系，也要歸功於對梵語的研究。"
    other = "普遍認為其中的第二至第七卷是最古老的，第一和第十卷則較晚出現，這些卷是由不同的家族保存下來的。"
    assert near_duplicate_groups([text, other, text.replace("後來", "後"), text[:20]]) == [0, 1, 0, 2]


def test_groups_do_not_depend_on_the_seed_here_and_repeat_with_it() -> None:
    texts = [" ".join(words(n // 2, 60)[: 60 - n % 2]) for n in range(60)]
    first = near_duplicate_groups(texts, seed=3)
    assert first == near_duplicate_groups(texts, seed=3) == near_duplicate_groups(texts, seed=4)
    assert first == [n // 2 for n in range(60)]


def test_nothing_gives_nothing_and_a_string_is_refused() -> None:
    assert near_duplicate_groups([]) == []
    with pytest.raises(InvalidInput, match="list of texts"):
        near_duplicate_groups("text")
    with pytest.raises(InvalidInput, match="threshold"):
        near_duplicate_groups(["a"], threshold=0)


def test_grouping_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragadapt.corpus.duplicates._BLOCK_SHINGLES", 10)
    told: list[tuple[str, int, int]] = []
    texts = [f"{number} is a number and this is a text about it" for number in range(6)]
    near_duplicate_groups([*texts, texts[0]], progress=lambda *said: told.append(said))
    assert told == [("near-duplicates", 0, 7), *(("near-duplicates", done, 6) for done in (2, 4, 6))]


def test_boilerplate_that_all_share_stays_linear() -> None:
    boilerplate = " ".join(words(0, 60))
    texts = [f"{boilerplate} {' '.join(words(n, 12))}" for n in range(1, 4001)]
    start = time.perf_counter()
    groups = near_duplicate_groups(texts)
    assert time.perf_counter() - start < 10
    assert len(groups) == 4000


@pytest.mark.slow
def test_a_hundred_thousand_texts_take_a_minute_at_most() -> None:
    vocabulary = words(5, 20_000)
    rng = random.Random(2)
    texts = [" ".join(rng.choices(vocabulary, k=120)) for _ in range(100_000)]
    start = time.perf_counter()
    groups = near_duplicate_groups([*texts, *texts[:1000]])
    assert groups[-1000:] == groups[:1000] and len(set(groups)) == 100_000
    assert time.perf_counter() - start < 120
