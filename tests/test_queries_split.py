"""The split: nothing held out is trained on, nothing moves without a reason, and leaks are counted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragadapt.config import SplitConfig
from ragadapt.errors import InvalidInput
from ragadapt.queries import Split, assign_queries, count_leaks, split_documents, split_labelled
from ragadapt.queries.split import _deal
from ragadapt.values import Chunk, Document, Evidence, Query

CONFIG = SplitConfig()
LONG = "The desk pays for every window that breaks while the car is parked in front of the north gate of the plant"


def documents(count: int) -> list[Document]:
    return [Document(f"d{i}", f"text {i}") for i in range(count)]


def parts(split: Split) -> list[frozenset[str]]:
    return [split.train, split.dev, split.heldout]


@given(
    st.integers(3, 60), st.integers(0, 1000), st.sampled_from([0.05, 0.2, 0.5, 0.9]), st.sampled_from([0.05, 0.1, 0.5])
)
def test_parts_are_disjoint_complete_and_never_empty(count: int, seed: int, heldout: float, dev: float) -> None:
    split = split_documents(documents(count), None, SplitConfig(heldout=heldout, dev=dev), seed)
    assert all(parts(split))
    assert sum(map(len, parts(split))) == count
    assert frozenset().union(*parts(split)) == {f"d{i}" for i in range(count)}


def test_shares_are_near_what_was_asked() -> None:
    split = split_documents(documents(2000), None, CONFIG, 3)
    assert len(split.heldout) == pytest.approx(400, abs=60)
    assert len(split.dev) == pytest.approx(160, abs=40)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.text(min_size=1, max_size=8))
def test_adding_a_document_moves_no_other(seed: int, name: str) -> None:
    before = split_documents(documents(500), None, CONFIG, seed)
    after = split_documents([*documents(500), Document(f"new {name}", "x")], None, CONFIG, seed)
    assert all(before.part(f"d{i}") == after.part(f"d{i}") for i in range(500))


def test_the_order_of_documents_does_not_matter_and_the_seed_does() -> None:
    forward, backward = documents(40), list(reversed(documents(40)))
    assert split_documents(forward, None, CONFIG, 1) == split_documents(backward, None, CONFIG, 1)
    assert split_documents(forward, None, CONFIG, 1) != split_documents(forward, None, CONFIG, 2)


@given(st.integers(0, 500))
def test_near_duplicates_stay_together(seed: int) -> None:
    groups = [i // 2 for i in range(40)]
    split = split_documents(documents(40), groups, CONFIG, seed)
    assert all(split.part(f"d{2 * i}") == split.part(f"d{2 * i + 1}") for i in range(20))


def test_chunks_that_repeat_tie_their_documents_but_a_footer_does_not() -> None:
    chunks = [Chunk(f"d{i}#{j}", f"d{i}", f"text {i} {j}") for i in range(60) for j in range(2)]
    shared = [0 if c.id in ("d1#0", "d2#0") else -1 if c.id.endswith("#1") else 1 + n for n, c in enumerate(chunks)]
    for seed in range(20):
        split = split_documents(chunks, shared, CONFIG, seed)
        assert split.part("d1") == split.part("d2")
        assert all(parts(split))
        assert "1 near-duplicate groups" in split.note


def test_one_document_is_split_by_its_sections() -> None:
    chunks = [Chunk(f"d#{i}", "d", f"text {i}", ("Book", f"Chapter {i // 3}")) for i in range(60)]
    split = split_documents(chunks, None, CONFIG, 5)
    assert split.unit == "section"
    assert "only 1 document" in split.note
    assert all(parts(split))
    for chapter in range(20):
        assert len({split.part_of(chunk) for chunk in chunks[3 * chapter : 3 * chapter + 3]}) == 1


def test_a_document_without_headings_is_split_by_chunks_and_a_single_chunk_trains() -> None:
    chunks = [Chunk(f"d#{i}", "d", f"text {i}") for i in range(12)]
    assert all(parts(split_documents(chunks, None, CONFIG, 5)))
    alone = split_documents(chunks[:1], None, CONFIG, 5)
    assert (alone.train, alone.heldout) == (frozenset({"d#0"}), frozenset())
    assert "too little" in alone.note


def test_wrong_groups_and_nothing_are_refused() -> None:
    with pytest.raises(InvalidInput, match="3 items but 2 group numbers"):
        split_documents(documents(3), [0, 1], CONFIG, 1)
    with pytest.raises(InvalidInput, match="nothing to split"):
        split_documents([], None, CONFIG, 1)
    with pytest.raises(InvalidInput, match="nothing to split"):
        split_labelled([], CONFIG, 1)


def asked(id: str, text: str, *positives: str) -> Query:
    return Query(id, text, "label", Evidence.LABELLED, positives)


def test_labelled_queries_stay_with_their_paraphrase() -> None:
    queries = [asked(str(i), f"topic{i // 2} question", f"c{i}") for i in range(100)]
    split = split_labelled(queries, CONFIG, 3)
    assert split.unit == "query"
    assert all(parts(split))
    assert all(split.part(str(2 * i)) == split.part(str(2 * i + 1)) for i in range(50))


def test_labelled_queries_with_a_common_answer_may_stand_in_every_part() -> None:
    queries = [asked(str(i), f"topic{i} question", "same") for i in range(100)]
    assert all(parts(split_labelled(queries, CONFIG, 3)))


@pytest.mark.parametrize(("count", "heldout"), [(40, 0.2), (50, 0.2), (50, 0.0), (60, 0.5)])
def test_forty_labelled_queries_or_more_leave_enough_to_steer_by(count: int, heldout: float) -> None:
    queries = [asked(str(i), f"topic{i} question", f"c{i}") for i in range(count)]
    for seed in range(20):
        split = split_labelled(queries, SplitConfig(heldout=heldout), seed)
        assert len(split.dev) >= 8
        assert len(split.train) >= 8
        fewer = _deal([query.id for query in queries], (), SplitConfig(heldout=heldout), seed, unit="query", note="")
        assert split.heldout == fewer.heldout  # what judges stays as it is
        assert fewer.dev <= split.dev
        assert split == fewer or (len(fewer.dev) < 8 and len(split.dev) == 8)


def test_few_labelled_queries_and_a_split_without_a_dev_part_stay_as_they_are() -> None:
    queries = [asked(str(i), f"topic{i} question", f"c{i}") for i in range(50)]
    assert split_labelled(queries, SplitConfig(dev=0.0), 3).dev == frozenset()
    assert len(split_labelled(queries[:39], CONFIG, 3).dev) < 8


def test_queries_go_where_their_passages_are_and_mixed_ones_nowhere() -> None:
    chunks = [Chunk("a", "d1", "x"), Chunk("b", "d2", "y"), Chunk("c", "d3", "z")]
    split = Split(frozenset({"d1"}), frozenset({"d2"}), frozenset({"d3"}))
    queries = [asked("1", "one", "a"), asked("2", "two", "b"), asked("3", "three", "c"), asked("4", "four", "a", "c")]
    assigned = assign_queries(queries, chunks, split)
    assert {part: [q.id for q in own] for part, own in assigned.items()} == {
        "train": ["1"], "dev": ["2"], "heldout": ["3"], "mixed": ["4"],
    }  # fmt: skip


def test_every_way_of_leaking_is_counted() -> None:
    chunks = [
        Chunk("held", "d1", LONG),
        Chunk("copy", "d2", LONG.upper() + "!"),
        Chunk("around", "d3", f"Before it. {LONG}, and more."),
        Chunk("clean", "d4", "Tickets for trains come by post on the first of every month to the home address"),
    ]
    heldout = [asked("h", "Who pays for windows?", "held")]
    train = [
        asked("1", "who pays for windows", "clean"),
        asked("2", "windows: who pays them", "clean"),
        asked("3", "when do tickets come", "copy"),
        asked("4", "tickets by post", "clean"),
    ]
    train.append(asked("5", "what comes before it", "around"))
    report = count_leaks(train, heldout, chunks)
    assert (report.texts, report.near_texts, report.passages, report.contained) == (1, 1, 1, 1)
    assert report.total == 4
    assert any("around" in example for example in report.examples)


def test_a_clean_split_leaks_nothing() -> None:
    chunks = [Chunk("held", "d1", LONG), Chunk("clean", "d2", "Tickets for trains come by post.")]
    report = count_leaks([asked("1", "train tickets", "clean")], [asked("h", "broken glass", "held")], chunks)
    assert report.total == 0
