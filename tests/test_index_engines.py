"""An engine is a file and a line: what is known of one stands in its class, and nothing else asks for its name."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
from listed_index import ListedIndex
from small_retriever import fit_pages, write_pages

from ragadapt.config import AUTO, ENGINES, FitConfig, IndexConfig
from ragadapt.errors import InvalidConfiguration, InvalidInput, MissingExtra
from ragadapt.index import chosen, open_index
from ragadapt.pipeline.refresh import refresh_documents
from ragadapt.pipeline.reindex import reindex
from ragadapt.retriever import Retriever
from ragadapt.store.workspace import open_store

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "listed", "listed_index:ListedIndex")


@pytest.fixture
def without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a base install."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.delitem(sys.modules, "ragadapt.index.faiss", raising=False)


# A new engine


def test_a_line_in_the_table_makes_a_kind_that_fits_searches_opens_refreshes_and_moves(
    listed: None, tmp_path: Path
) -> None:
    finished = ListedIndex.finished
    folder = fit_pages(tmp_path, kind="listed")
    assert ListedIndex.finished == finished + 1
    assert open_store(folder, verify="full").manifest.configuration["index"]["kind"] == "listed"
    other = fit_pages(tmp_path / "other", kind="exact")
    with Retriever.open(folder) as new, Retriever.open(other) as known:
        for query in ("old stone", "red bridge"):
            assert [(hit.chunk.id, round(hit.score, 4)) for hit in new.search(query, 9, mode="dense")] == [
                (hit.chunk.id, round(hit.score, 4)) for hit in known.search(query, 9, mode="dense")
            ]
        english = new.search("old stone", 9, filter={"lang": "en"})
        assert english and {hit.chunk.metadata["lang"] for hit in english} == {"en"}
    pages = write_pages(tmp_path / "docs")
    (pages / "page99.md").write_text("# Page 99\n\nThe old stone bridge and the red river.\n", encoding="utf-8")
    done = refresh_documents(folder, [pages])
    assert done.documents.added == 1
    with Retriever.open(folder) as again:
        assert "page99.md#0" in {hit.chunk.id for hit in again.search("old stone bridge red river", 5)}
        rows = again.searcher.index.vectors(sorted(again.chunks.ids()))
    reindex(folder, IndexConfig(kind="exact"))
    with Retriever.open(folder) as moved:
        assert moved.searcher.index.kind == "exact"
        np.testing.assert_array_equal(moved.searcher.index.vectors(sorted(moved.chunks.ids())), rows)


def test_a_setting_that_a_kind_does_not_follow_is_refused(listed: None, tmp_path: Path) -> None:
    for index in ({"structure": "hnsw"}, {"url": "http://localhost:6333"}):
        with pytest.raises(InvalidConfiguration, match=rf"index\.{next(iter(index))} = .* of kind 'listed' follows"):
            fit_pages(tmp_path, kind="listed", **index)
    with pytest.raises(InvalidConfiguration, match=r"index.kind = 'annoy': Input should be auto or exact or faiss"):
        FitConfig.build({"index": {"kind": "annoy"}})


# The default


def test_the_default_index_is_faiss_where_it_is_installed() -> None:
    pytest.importorskip("faiss")
    assert FitConfig().index.kind == AUTO
    assert chosen(FitConfig().index).kind == "faiss"
    assert chosen(IndexConfig(kind="exact")).kind == "exact"
    assert chosen(IndexConfig(url="http://localhost:6333")).kind == "qdrant"
    with open_index(AUTO, dim=2) as index:
        assert index.kind == "faiss"


def test_the_default_index_is_exact_where_faiss_is_missing_and_the_folder_says_so(
    without_faiss: None, tmp_path: Path
) -> None:
    folder = fit_pages(tmp_path, kind=AUTO)
    assert open_store(folder).manifest.configuration["index"]["kind"] == "exact"
    with Retriever.open(folder) as retriever:
        assert retriever.searcher.index.kind == "exact"
        assert len(retriever.search("old stone", 3)) == 3
    with open_index(AUTO, tmp_path / "new", dim=2) as index:
        assert index.kind == "exact"
        index.save()
    with open_index(AUTO, tmp_path / "new") as index:
        assert index.kind == "exact"
    with pytest.raises(MissingExtra, match=r"ragadapt\[faiss\]"):  # asked for by a setting of its own
        fit_pages(tmp_path / "second", kind=AUTO, structure="hnsw")


def test_a_folder_whose_engine_is_missing_says_what_to_install_or_to_build_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss")
    folder = fit_pages(tmp_path, kind="faiss")
    with Retriever.open(folder) as retriever:
        before = retriever.search("old stone", 9)
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.delitem(sys.modules, "ragadapt.index.faiss", raising=False)
    advice = rf"of kind 'faiss', needs .*ragadapt\[faiss\]'\. .*: ragadapt index .*{folder.name} --kind exact"
    with pytest.raises(MissingExtra, match=advice):
        Retriever.open(folder)
    with pytest.raises(MissingExtra, match=advice):
        refresh_documents(folder, [tmp_path / "docs"])
    reindex(folder, IndexConfig(kind="exact"))
    with Retriever.open(folder) as retriever:
        assert [hit.chunk.id for hit in retriever.search("old stone", 9)] == [hit.chunk.id for hit in before]


# Nothing else asks


def named_engines(source: str) -> list[int]:
    """Lines that compare with an engine's name, choose by it, or import its module."""
    found = []
    homes = {home.partition(":")[0] for home in ENGINES.values()}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in homes:
            found.append(node.lineno)
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict):  # {"exact": …}[kind]
            parts = [key for key in node.value.keys if key is not None]
        else:
            continue
        others = {ast.unparse(part) for part in parts}
        if others & {
            "sys.modules",
            "self.missing",
        }:  # the library itself; a setting of the feedback that may be "exact"
            continue
        texts = {each.value for part in parts for each in ast.walk(part) if isinstance(each, ast.Constant)}
        if texts & ENGINES.keys():
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "source",
    [
        "if config.kind == 'faiss': pass",
        "if kind in ('exact', 'qdrant'): pass",
        "match kind:\n    case 'qdrant-edge': pass",
        "extra = {'exact': '', 'faiss': 'faiss'}[kind]",
        "def f():\n    from ragadapt.index.faiss import FaissIndex",
    ],
)
def test_a_question_for_an_engines_name_is_found_however_it_is_asked(source: str) -> None:
    assert len(named_engines(source)) == 1


def test_no_engine_is_asked_for_by_name_outside_the_index() -> None:
    found = []
    for part in ("ragadapt", "cli", "integrations"):
        for path in sorted((ROOT / part).rglob("*.py")):
            inside = path.is_relative_to(ROOT / "ragadapt" / "index") or path == ROOT / "ragadapt" / "config.py"
            if not inside:
                lines = named_engines(path.read_text(encoding="utf-8"))
                found += [f"{path.relative_to(ROOT)}:{line}" for line in lines]
    assert found == []


def test_kinds_in_the_table_are_those_of_their_classes() -> None:
    for kind in ENGINES:
        try:
            with open_index(kind, dim=2) as index:
                assert index.kind == kind
        except MissingExtra:
            continue
    with pytest.raises(InvalidInput, match="'annoy' is not known"):
        open_index("annoy", dim=2)
