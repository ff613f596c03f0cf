"""Copies are one hit that lists them, and no document takes more places than it may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import sentences, write_tiny_model

from ragadapt.collection import FittedPassages
from ragadapt.config import FitConfig
from ragadapt.errors import InvalidInput
from ragadapt.pipeline.fit import fit
from ragadapt.retriever import Retriever
from ragadapt.search.diversity import different, diverse
from ragadapt.values import Chunk, Hit, hits_as_json

LONG = "The notice of this licence stands in every folder of the source, word for word, so that all can read it."


def hit(id: str, text: str, document: str = "", heading: tuple[str, ...] = ()) -> Hit:
    return Hit(Chunk(id, document or id, text, heading), 1.0)


def ids(hits: list[Hit]) -> list[str]:
    return [one.chunk.id for one in hits]


def test_passages_of_the_same_text_are_one_hit_that_lists_its_copies() -> None:
    found = [hit("a", LONG), hit("b", LONG.upper().replace(" ", "\n")), hit("c", "other"), hit("d", LONG)]
    chosen = different(found, 2, "same")
    assert ids(chosen) == ["a", "c"]
    assert [copy.id for copy in chosen[0].copies] == ["b", "d"]
    assert ids(different(found, 4, "none")) == ["a", "b", "c", "d"]


def test_a_short_text_is_a_copy_only_under_the_same_headings() -> None:
    found = [hit(id, "Returns None.", heading=(h,)) for id, h in (("a", "open"), ("b", "close"), ("c", "open"))]
    assert ids(different(found, 3, "same")) == ["a", "b"]


def test_near_duplicates_are_folded_when_asked_for() -> None:
    near = LONG + " " + " ".join(f"word{n}" for n in range(60))
    found = [hit("a", near), hit("b", near + " more"), hit("c", "other")]
    assert ids(different(found, 3, "same")) == ["a", "b", "c"]
    assert ids(different(found, 3, "near")) == ["a", "c"]


def test_a_document_has_at_most_so_many_hits() -> None:
    found = [hit(f"{d}{n}", f"text {d}{n}", d) for n in range(3) for d in "xy"]
    assert ids(different(found, 6, "same", 1)) == ["x0", "y0"]
    assert ids(different(found, 3, "none", 2)) == ["x0", "y0", "x1"]


def test_a_copy_counts_for_its_document() -> None:
    """Else the next passage of a mirrored page would be shown as another document's, and expand to the same section."""
    found = [hit("x0", LONG, "x"), hit("y0", LONG, "y"), hit("x1", LONG[::-1], "x"), hit("y1", LONG[::-1], "y")]
    chosen = different([*found, hit("z", "other")], 3, "same", 1)
    assert ids(chosen) == ["x0", "z"]
    assert [copy.id for copy in chosen[0].copies] == ["y0"]


def test_it_looks_deeper_until_enough_differ() -> None:
    ranking = [hit(f"c{n}", LONG) for n in range(300)] + [hit(f"o{n}", f"other {n}") for n in range(9)]
    asked: list[int] = []

    def find(deep: int) -> list[list[Hit]]:
        asked.append(deep)
        return [ranking[:deep]]

    [chosen] = diverse(find, 5, "same", None)
    assert ids(chosen) == ["c0", "o0", "o1", "o2", "o3"]
    assert len(chosen[0].copies) == 299
    assert asked == [20, 80, 320]
    asked.clear()
    assert diverse(find, 5, "none", None) == [ranking[:5]]
    assert asked == [5]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    """Twelve files of one text and eight others."""
    folder = tmp_path_factory.mktemp("copies")
    docs = folder / "docs"
    docs.mkdir()
    lines = list(sentences(9, words=14, seed=3))
    for number in range(20):
        text = lines[8] if number < 12 else f"{lines[number - 12]}, {' '.join(lines[8].split()[:3])}"
        (docs / f"f{number:02}.txt").write_text(text, encoding="utf-8")
    config = FitConfig.build(
        {
            "encoder": {"model": str(write_tiny_model(folder / "base")), "precision": "float32"},
            "adapter": {"method": "none"},
            "index": {"kind": "exact"},
        }
    )
    with Retriever.open(fit([docs], folder / "retriever", config).path) as retriever:
        retriever.lines = lines  # type: ignore[attr-defined]
        yield retriever


def query(opened: Retriever) -> str:
    return str(opened.lines[8])  # type: ignore[attr-defined]


def test_twelve_copies_of_one_text_take_one_place_of_five(opened: Retriever) -> None:
    hits = opened.search(query(opened), 5)
    assert len(hits) == 5
    assert len({one.chunk.text for one in hits}) == 5
    assert len(hits[0].copies) == 11
    assert hits_as_json(hits)[0]["copies"][0].keys() == {"id", "document_id", "source"}
    each = opened.search(query(opened), 5, fold="none")
    assert len({one.chunk.text for one in each}) == 1
    assert [one.chunk.id for one in each] == opened.rank([query(opened)], 5)[0].ids


def test_a_vector_store_shows_each_passage_by_itself(opened: Retriever) -> None:
    [hits] = FittedPassages(opened).search([query(opened)], None, 5, mode="lexical")
    assert len({one.chunk.text for one in hits}) == 1


@pytest.mark.parametrize("settings", [{"fold": "all"}, {"fold": True}, {"max_per_document": 0}])
def test_what_is_no_way_to_fold_is_refused(opened: Retriever, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        opened.search("words", **settings)


def test_hits_of_one_document_are_limited_in_a_search(tmp_path: Path, opened: Retriever) -> None:
    plain = opened.search(query(opened), 8, fold="none", max_per_document=1)
    assert len({one.chunk.document_id for one in plain}) == 8
