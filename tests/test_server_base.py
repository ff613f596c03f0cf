"""The search before training, beside the fitted one: what the base itself would find."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from ragadapt_server import before
from ragadapt_server.before import Before
from ragadapt_server.errors import Refused
from running_server import running
from small_retriever import fit_pages
from trained_retriever import fit_trained

from ragadapt.config import EncoderConfig
from ragadapt.encoder import Encoder
from ragadapt.index import exact_index
from ragadapt.pipeline.questions import evaluate_questions
from ragadapt.pipeline.refresh import refresh_documents
from ragadapt.retriever import Retriever
from ragadapt.search.fusion import Background, Fusion
from ragadapt.search.searcher import Searcher

QUERIES = ("old red stone", "the small river", "cheap flight to the city")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit whose model was trained."""
    folder = tmp_path_factory.mktemp("base")
    fit_trained(folder)
    return folder


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy without what lies beside it, as on another machine."""
    return Path(shutil.copytree(made / "retriever", tmp_path / "retriever"))


@pytest.fixture
def retriever(made: Path) -> Iterator[Retriever]:
    with Retriever.open(made / "retriever", precision="float32") as opened:
        yield opened


def base_of(retriever: Retriever, made: Path) -> tuple[Encoder, Searcher]:
    """The base's search, made from nothing."""
    encoder = Encoder.load(EncoderConfig(model=str(made / "base" / "model"), precision="float32"))
    chunks = list(retriever.chunks)
    vectors = encoder.encode_passages([chunk.passage for chunk in chunks])
    index = exact_index([chunk.id for chunk in chunks], vectors)
    fitted = retriever.searcher
    return encoder, Searcher(index, fitted.lexical, Background.of(vectors), fitted.fusion, depth=fitted.depth)


def test_base_ranks_as_the_base_model_would_in_the_same_mix(retriever: Retriever, made: Path) -> None:
    assert before.is_trained(retriever.encoder.spec)
    encoder, searcher = base_of(retriever, made)
    base = Before(retriever, "cpu", "float32")
    moved = 0
    for query in QUERIES:
        (expected,) = searcher.rank([query], encoder.encode_queries([query]), 10)
        found = base.search(query, 10)
        assert found.whole
        assert [hit.chunk.id for hit in found.hits] == expected.ids
        np.testing.assert_allclose([hit.score for hit in found.hits], expected.scores, rtol=1e-4)
        moved += [hit.chunk.id for hit in retriever.search(query, 10, mode="dense")] != [
            hit.chunk.id for hit in base.search(query, 10, "dense").hits
        ]
    assert moved  # else nothing would be shown


def test_questions_are_judged_beside_the_base_where_its_vectors_are_at_hand(
    retriever: Retriever, made: Path, own: Path
) -> None:
    labels = made / "labels.jsonl"
    report = evaluate_questions(retriever, labels)
    assert [s.name for s in report.systems] == ["base-dense", "bm25", "base-hybrid", "fitted-dense", "shipped"]
    encoder, searcher = base_of(retriever, made)
    assert report.judged is not None
    for question in report.judged.questions[:6]:
        vector = encoder.encode_queries([question.query])
        dense = searcher.rank([question.query], vector, 100, "dense")[0].ids
        hybrid = searcher.rank([question.query], vector, 100, fusion=Fusion(method="rrf"))[0].ids
        for answer in question.expected:
            assert answer.passage is not None
            assert answer.ranks["base-dense"] == dense.index(answer.passage.id) + 1
            assert answer.ranks["base-hybrid"] == hybrid.index(answer.passage.id) + 1
    with Retriever.open(own, precision="float32") as elsewhere:
        alone = evaluate_questions(elsewhere, labels)
        assert [s.name for s in alone.systems] == ["bm25", "fitted-dense", "shipped"]
        assert "--base" in alone.warnings[-1]
        assert evaluate_questions(elsewhere, labels, base=True).systems == report.systems


def test_vectors_that_the_fit_kept_are_not_made_again(
    retriever: Retriever, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (made / ".retriever.vectors" / "vectors.npy").is_file()
    monkeypatch.setattr(before, "_ENCODED_AT_ONCE", 0)  # with one missing it would not be the whole
    assert Before(retriever, "cpu", "float32").search(QUERIES[0], 5).whole


def test_without_kept_vectors_the_base_scores_what_the_others_found(
    own: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(before, "_ENCODED_AT_ONCE", 10)
    monkeypatch.setattr(before, "_SCORED", 6)
    with Retriever.open(own, precision="float32") as retriever:
        encoder, searcher = base_of(retriever, made)
        base = Before(retriever, "cpu", "float32")
        for query in QUERIES:
            found = base.search(query, 5, "dense")
            assert not found.whole
            pool = {hit.chunk.id for mode in ("dense", "lexical") for hit in retriever.search(query, 6, mode=mode)}  # type: ignore[arg-type]
            ((ids, scores),) = searcher.plain.search(encoder.encode_queries([query]), len(retriever))
            expected = [(id, score) for id, score in zip(ids, scores.tolist(), strict=True) if id in pool][:5]
            assert [hit.chunk.id for hit in found.hits] == [id for id, _ in expected]
            np.testing.assert_allclose([hit.score for hit in found.hits], [score for _, score in expected], rtol=1e-4)
            assert base.search(query, 5, partly=False).hits == []
            mixed = base.search(query, 5)
            pool |= {hit.chunk.id for hit in retriever.search(query, 10, mode="lexical")}
            assert len(mixed.hits) == 5 and {hit.chunk.id for hit in mixed.hits} <= pool
            assert [hit.score for hit in mixed.hits] == sorted((hit.score for hit in mixed.hits), reverse=True)


def test_an_adapted_query_side_searches_the_passages_as_they_are(tmp_path: Path) -> None:
    folder = fit_trained(tmp_path, adapt="query")
    with Retriever.open(folder, precision="float32") as retriever:
        encoder, searcher = base_of(retriever, tmp_path)
        (expected,) = searcher.rank([QUERIES[0]], encoder.encode_queries([QUERIES[0]]), 10)
        found = Before(retriever, "cpu", "float32").search(QUERIES[0], 10)
        assert found.whole and [hit.chunk.id for hit in found.hits] == expected.ids


def test_new_passages_are_taken_over_with_the_next_build(own: Path, made: Path, tmp_path: Path) -> None:
    docs = Path(shutil.copytree(made / "docs", tmp_path / "docs"))
    with Retriever.open(own, precision="float32") as retriever:
        base = Before(retriever, "cpu", "float32")
        assert "new.md" not in {hit.chunk.document_id for hit in base.search("old red stone", 10).hits}
        (docs / "new.md").write_text("# New\n\nThe old red stone, the old red stone and the old red stone.\n")
        refresh_documents(own, [docs])
        retriever._looked = 0.0
        assert base.search("old red stone", 10).hits[0].chunk.document_id == "new.md"


def test_a_few_may_ask_the_base_at_once_and_others_are_told_when_to_come_again(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Before(retriever, "cpu", "float32")
    base.search("stone", 3)
    inside, leave = threading.Barrier(before._AT_ONCE + 1), threading.Event()
    search = before._Side.search

    def slow(*given: Any) -> Any:
        inside.wait(timeout=30)
        leave.wait(timeout=30)
        return search(*given)

    monkeypatch.setattr(before._Side, "search", slow)
    asking = [threading.Thread(target=base.search, args=("stone", 3)) for _ in range(before._AT_ONCE)]
    for thread in asking:
        thread.start()
    inside.wait(timeout=30)
    with pytest.raises(Refused) as refused:
        base.search("stone", 3)
    assert (refused.value.status, refused.value.retry_after) == (429, 1)
    leave.set()
    for thread in asking:
        thread.join()
    monkeypatch.undo()
    assert len(base.search("stone", 3).hits) == 3


def test_what_cannot_be_compared_says_so(made: Path, own: Path, tmp_path: Path) -> None:
    manifest = json.loads((made / "retriever" / "ragadapt.json").read_text())
    assert str(made) in json.dumps(manifest["configuration"])  # the base is named by its folder here
    with running(("fitted", own)) as address:

        def asked(**body: Any) -> httpx.Response:
            return httpx.post(f"{address}/search/base", json={"query": "stone", **body}, timeout=60)

        assert asked(k=3).json()["whole"] is True and len(asked(k=3).json()["hits"]) == 3
        assert {asked(k=0).status_code, asked(k=51).status_code, asked(query="").status_code} == {400}
        assert httpx.get(f"{address}/status").json()["retrievers"][0]["trained"] is True
    hidden = (made / "base").rename(made / "elsewhere")
    try:
        with running(("fitted", own)) as address:
            answer = asked()
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_base")
            assert str(made) not in answer.text
    finally:
        hidden.rename(made / "base")
    with Retriever.open(fit_pages(tmp_path / "untrained")) as untrained, pytest.raises(Refused, match="is the base"):
        Before(untrained, "cpu", "float32").search("stone", 3)
