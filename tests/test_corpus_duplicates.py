"""Normal forms and near-duplicate groups, the fast way against the obvious one."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from read_once import ReadOnce

from ragadapt.corpus import duplicates, near_duplicate_groups, normalise
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
    monkeypatch.setattr(duplicates, "_BLOCK_CHARACTERS", 80)
    told: list[tuple[str, int, int]] = []
    texts = [f"{number} is a number and this is a text about it" for number in range(6)]
    near_duplicate_groups([*texts, texts[0]], progress=lambda *said: told.append(said))
    assert told == [("near-duplicates", done, 7) for done in (0, 2, 4, 6, 7)]


def held_in_memory(texts: Sequence[str], threshold: float, seed: int) -> list[int]:
    """The groups, with every normal form and every set of shingles in memory."""
    first_of: dict[str, int] = {}
    originals = [first_of.setdefault(normalise(text), len(first_of)) for text in texts]
    sets = [duplicates._shingles(form) for form in first_of]
    rng = np.random.default_rng(seed)
    multipliers = rng.integers(1, 2**63, size=80, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    parent = np.arange(len(sets))
    for band in range(20):
        buckets: dict[int, list[int]] = {}
        for member, hashes in enumerate(sets):
            mixed = np.zeros(1, np.uint64)
            for multiplier in multipliers[band * 4 : band * 4 + 4]:
                mixed = (mixed ^ ((hashes * multiplier) >> np.uint64(32)).min()) * np.uint64(0x9E3779B97F4A7C15)
                mixed ^= mixed >> np.uint64(29)
            buckets.setdefault(int(mixed[0]), []).append(member)
        for _, members in sorted(buckets.items()):
            representatives: list[int] = []
            for member in members:
                root = duplicates._root(parent, member)
                for other in representatives:
                    other_root = duplicates._root(parent, other)
                    if root == other_root:
                        break
                    if duplicates._jaccard(sets[member], sets[other]) >= threshold:
                        parent[max(root, other_root)] = min(root, other_root)
                        break
                else:
                    if len(representatives) < 8:
                        representatives.append(member)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(duplicates._root(parent, form), len(numbers)) for form in originals]


def some_of_everything(rng: random.Random) -> list[str]:
    """Texts of all kinds, and near and exact copies of them: empty, of marks alone, without spaces, boilerplate."""
    boilerplate = [f"all{n}" for n in range(30)]
    han = [chr(rng.randrange(0x4E00, 0x4F00)) for _ in range(60)]
    texts = ["", " ", "!", "?!", "word", "漢"]
    for _ in range(60):
        kind = rng.randrange(4)
        if kind == 0:
            texts.append("".join(rng.choices(han, k=rng.randrange(1, 60))))
        elif kind == 1:
            texts.append(" ".join([*boilerplate, *(f"w{rng.randrange(99)}" for _ in range(rng.randrange(9)))]))
        else:
            texts.append(" ".join(f"w{rng.randrange(30)}" for _ in range(rng.randrange(1, 60))))
    for _ in range(60):
        text = rng.choice(texts)
        at = rng.randrange(len(text) + 1)
        texts.append(
            rng.choice([text, text.upper() + ".", text[:at] + rng.choice("xyz 漢") + text[at + 1 :], text[:at]])
        )
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize("seed", range(12))
def test_groups_are_the_same_in_blocks_and_files_as_all_in_memory(
    seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    texts, threshold = some_of_everything(rng), rng.choice([0.3, 0.6, 0.8, 1.0])
    expected = held_in_memory(texts, threshold, seed)
    assert near_duplicate_groups(texts, threshold=threshold, seed=seed) == expected
    monkeypatch.setattr(duplicates, "_BLOCK_CHARACTERS", rng.choice([1, 50, 1000]))
    monkeypatch.setattr(duplicates, "_IN_MEMORY", 100)
    assert near_duplicate_groups(texts, threshold=threshold, seed=seed, scratch=tmp_path) == expected


def test_texts_are_read_once_and_in_order() -> None:
    texts = ReadOnce(["a b c", "x", "A b C.", ""])
    assert near_duplicate_groups(texts) == [0, 1, 0, 2]
    assert texts.readings == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="lists the open files in /proc")
def test_temporary_files_are_gone_after_every_exit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(duplicates, "_IN_MEMORY", 10)
    monkeypatch.setattr(duplicates, "_BLOCK_CHARACTERS", 10)
    texts = [" ".join(words(n // 2, 60)) for n in range(6)]

    def temporary() -> list[str]:
        opened = [str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()]
        return [name for name in opened if name.startswith(str(tmp_path))]

    seen: list[int] = []

    def stop(told: str, done: int, total: int) -> None:
        seen.append(len(temporary()))
        if done == stop_at:
            raise KeyboardInterrupt

    for stop_at in (-1, 4):
        seen.clear()
        try:
            near_duplicate_groups(texts, progress=stop, scratch=tmp_path)
        except KeyboardInterrupt:
            assert stop_at == 4
        assert seen[-1] == 2 and temporary() == [] and list(tmp_path.iterdir()) == []


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
