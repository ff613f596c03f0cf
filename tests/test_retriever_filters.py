"""Filters of a fitted retriever: on all that its results show, in every index, both sides alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_retriever import fit_pages

from ragadapt.collection import FittedPassages
from ragadapt.errors import InvalidFilter
from ragadapt.retriever import Retriever
from ragadapt.search.searcher import Mode
from ragadapt.values import Chunk

MODES: tuple[Mode, ...] = ("hybrid", "dense", "lexical")


@pytest.fixture(scope="module", params=["exact", "faiss", "qdrant", "qdrant-edge"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    with Retriever.open(fit_pages(tmp_path_factory.mktemp(request.param), kind=request.param)) as retriever:
        yield retriever


def shown(chunk: Chunk, name: str) -> str:
    """What a result says of where it comes from."""
    heading = " > ".join(chunk.heading_path)
    return {"source": chunk.source, "document_id": chunk.document_id, "heading": heading, "id": chunk.id}[name]


def found(opened: Retriever, filter: dict[str, Any], mode: Mode, **settings: Any) -> list[Chunk]:
    words = " ".join(chunk.text for chunk in opened.chunks)  # so that every passage shares some
    return [hit.chunk for hit in opened.search(words, len(opened), filter=filter, mode=mode, **settings)]


@pytest.mark.parametrize("mode", MODES)
def test_a_filter_keeps_the_types_of_its_values_apart(opened: Retriever, mode: Mode) -> None:
    for _ in range(2):  # in either order
        assert found(opened, {"number": "3"}, mode) == []
        assert {chunk.metadata["number"] for chunk in found(opened, {"number": np.int64(3)}, mode)} == {3}
        assert {chunk.metadata["number"] for chunk in found(opened, {"number": 3.0}, mode)} == {3}
        assert found(opened, {"number": True}, mode) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["source", "document_id", "heading", "id"])
def test_what_every_result_shows_can_be_filtered(opened: Retriever, mode: Mode, name: str) -> None:
    wanted = shown(next(iter(opened.chunks)), name)
    expected = {chunk.id for chunk in opened.chunks if shown(chunk, name) == wanted}
    assert 0 < len(expected) < len(opened)
    assert {chunk.id for chunk in found(opened, {name: wanted}, mode)} == expected
    both = {name: wanted, "lang": "de"}
    assert {chunk.id for chunk in found(opened, both, mode)} == {
        chunk.id for chunk in opened.chunks if chunk.id in expected and chunk.metadata["lang"] == "de"
    }
    others = {chunk.id for chunk in opened.chunks} - expected
    assert {chunk.id for chunk in found(opened, {name: {"$ne": wanted}}, mode)} == others


def test_the_passages_of_a_store_are_named_by_the_same_filters(opened: Retriever) -> None:
    wanted = next(iter(opened.chunks)).source
    expected = {chunk.id for chunk in opened.chunks if chunk.source == wanted}
    assert set(FittedPassages(opened).ids({"source": wanted})) == expected
    assert set(opened.passing({"number": {"$gte": 6}})) == {c.id for c in opened.chunks if c.metadata["number"] >= 6}


def test_filters_hold_for_passages_with_feedback_too(opened: Retriever) -> None:
    chunk = next(iter(opened.chunks))
    opened.add_feedback("how do i open the red file", chunk.id)
    try:
        for filter in ({"source": chunk.source}, {"document_id": {"$ne": chunk.document_id}}, {"number": "0"}):
            expected = set(opened.passing(filter))
            for mode in MODES:
                hits = opened.search("how do i open the red file", len(opened), filter=filter, mode=mode, lam=0.3)
                assert {hit.chunk.id for hit in hits} <= expected
                if mode == "dense":
                    assert {hit.chunk.id for hit in hits} == expected
    finally:
        opened.withdraw_feedback(query="how do i open the red file")


def test_a_filter_without_end_is_refused(opened: Retriever) -> None:
    endless: dict[str, Any] = {}
    endless["$and"] = [endless]
    with pytest.raises(InvalidFilter, match="within itself"):
        opened.search("red", filter=endless)
    with pytest.raises(InvalidFilter, match="gte"):
        opened.search("red", filter={"lang": {"$gte": "abc"}})


def test_a_folder_in_which_no_field_of_origin_was_indexed_is_filtered_all_the_same(tmp_path: Path) -> None:
    path = fit_pages(tmp_path)
    with Retriever.open(path) as opened:
        assert "source" not in opened.searcher.index.payloads(opened.chunks.ids()[:1])[0]
        assert opened.search("red", filter={"source": "page00.md"})
