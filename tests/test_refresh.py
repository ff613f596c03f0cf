"""A refreshed retriever is what a fit on the new documents would give; only what is new is encoded; nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ragadapt_cli.main import run
from refresh_victim import PAGES, round_of, state_of, write_pages, write_round
from tiny_models import sentences, write_tiny_model

from ragadapt.config import FitConfig, IndexConfig
from ragadapt.encoder import Encoder
from ragadapt.errors import EmptyCorpus, IndexUnreachable, InvalidInput, NotARetriever, StoreError, StoreLocked
from ragadapt.index import open_index
from ragadapt.index.contract import write_description
from ragadapt.lexical.terms import is_statistics
from ragadapt.pipeline.fit import fit
from ragadapt.pipeline.queries import Labels
from ragadapt.pipeline.refresh import ChunkChanges, DocumentChanges, refresh_documents, rollback
from ragadapt.pipeline.reindex import reindex
from ragadapt.profiling import Clock
from ragadapt.retriever import Retriever
from ragadapt.store.chunks import ChunkStore
from ragadapt.store.workspace import LEDGER, Workspace, ledger_lock, open_store
from ragadapt.values import Document

VICTIM = Path(__file__).with_name("refresh_victim.py")
QUERIES = [*sentences(15, words=5, seed=77), "page 3", "part 7 1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


def settings(model: Path, kind: str = "exact", **read: Any) -> FitConfig:
    return FitConfig.build(
        {
            "encoder": {"model": str(model), "precision": "float32"},
            "chunk": {"max_tokens": 40, "min_tokens": 4},
            "adapter": {"method": "none"},
            "fusion": {"weight": 0.6, "feedback": True},
            "index": {"kind": kind},
            "read": read,
        }
    )


@pytest.fixture(scope="module")
def original(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """docs/ with 12 pages and the retriever fitted to it; copied by each test that changes it."""
    folder = tmp_path_factory.mktemp("original")
    write_pages(folder / "docs", 12)
    fit([folder / "docs"], folder / "retriever", settings(model))
    return folder


@pytest.fixture
def place(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "place")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every passage that an encoder reads from now on."""
    seen: list[str] = []
    encode = Encoder.encode_to

    def watch(self: Encoder, texts: Any, *rest: Any, **options: Any) -> Any:
        seen.extend(texts)
        return encode(self, texts, *rest, **options)

    monkeypatch.setattr(Encoder, "encode_to", watch)
    return seen


def change_everything(docs: Path) -> None:
    """One page of each fate: changed, moved, deleted, added, and one whose offsets shift."""
    page = docs / "page02.md"
    page.write_text(page.read_text() + "\n## More\n\nfire stone wood water river bridge. new small red.\n")
    (docs / "sub").mkdir()
    (docs / "page05.md").rename(docs / "sub" / "moved.md")
    (docs / "page07.md").unlink()
    (docs / "page99.md").write_text("# Page 99\n\ncheap flight price vote council. city oven bake bread.\n")
    shifted = docs / "page09.md"
    shifted.write_text(shifted.read_text().replace("# Page 9\n", "# Page 9\n\n\n\n\n", 1))


def assert_equal_retrievers(one: Path, other: Path) -> None:
    """The same chunks in the same order, the same indexes, the same hits with the same scores."""
    with Retriever.open(one, precision="float32") as a, Retriever.open(other, precision="float32") as b:
        assert list(a.chunks) == list(b.chunks)
        assert a.chunks.documents() == b.chunks.documents()
        ids = a.chunks.ids()
        assert sorted(a.searcher.index.ids()) == sorted(b.searcher.index.ids()) == sorted(ids)
        np.testing.assert_allclose(a.searcher.index.vectors(ids), b.searcher.index.vectors(ids), atol=1e-5)
        assert a.searcher.index.payloads(ids) == b.searcher.index.payloads(ids)
        for name in ("mean", "covariance"):
            ours, theirs = getattr(a.searcher.background, name), getattr(b.searcher.background, name)
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert a.searcher.background.count == b.searcher.background.count == len(ids)
        for mode in ("hybrid", "dense", "lexical"):
            for left, right in zip(a.rank(QUERIES, 10, mode=mode), b.rank(QUERIES, 10, mode=mode), strict=True):
                assert left.ids == right.ids
                np.testing.assert_allclose(left.scores, right.scores, atol=1e-4)
        assert a.searcher.lexical.ids() == b.searcher.lexical.ids()
    if any(is_statistics(path / "lexical") for path in (one, other)):  # the engine has the words
        return
    for name in ("lexical.json", "ids.json", "frequencies.npy", "lengths.npy"):
        assert (one / "lexical" / name).read_bytes() == (other / "lexical" / name).read_bytes(), name


def made_on(path: Path, device: str) -> None:
    """Let the manifest say that the fit ran there."""
    manifest = open_store(path).manifest
    configuration = {**manifest.configuration, "encoder": {**manifest.configuration["encoder"], "device": device}}
    (path / "ragadapt.json").write_text(replace(manifest, configuration=configuration).to_json())


def test_what_was_made_on_another_device_is_refreshed_and_reindexed_here(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_on(place / "retriever", "cuda:7")
    change_everything(place / "docs")
    refresh = ["refresh", str(place / "retriever"), "--docs", str(place / "docs")]
    assert run([*refresh, "--device", "cuda:7"]) != 0  # a device that is asked for is a demand
    assert run(refresh) == 0
    assert run(["index", str(place / "retriever"), "--rebuild", "--device", "cpu"]) == 0
    reindex(place / "retriever", IndexConfig(kind="exact"))
    (place / "docs" / "page98.md").write_text("# Page 98\n\nvote council price cheap flight.\n")
    assert refresh_documents(place / "retriever", [place / "docs"], device="cpu").documents.added == 1
    with Retriever.open(place / "retriever") as retriever:
        assert retriever.search("page 98")


# What is there and cannot be read stays


def spoil(file: Path, how: str) -> str:
    """Make the file unreadable; the words that say why."""
    if how == "empty":
        file.write_text("")
    elif how == "blank":
        file.write_text("\n \n")
    elif how == "binary":
        file.write_bytes(b"\x00\x01\x02\xff" * 300)
    elif how == "no file":
        file.unlink()
        os.mkfifo(file)
        return "regular file"
    elif how == "link to nothing":
        file.unlink()
        file.symlink_to("/nowhere/at/all.md")
        return "leads"
    return {"blank": "empty"}.get(how, how)


@pytest.mark.parametrize("how", ["empty", "blank", "binary", "no file", "link to nothing"])
def test_a_known_file_that_cannot_be_read_any_more_stays_and_is_named(
    place: Path, how: str, encoded: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    docs, target = place / "docs", place / "retriever"
    shutil.copytree(target, place / "before")
    reason = spoil(docs / "page04.md", how)
    (docs / "page07.md").unlink()
    assert run(["refresh", str(target), "--docs", str(docs)]) == 0
    out = capsys.readouterr().out
    assert "1 deleted" in out and "1 kept as it was" in out
    assert "Kept        page04.md as it was: " in out and reason in out
    assert encoded == []
    with Retriever.open(target) as now, Retriever.open(place / "before") as before:
        kept = [chunk for chunk in before.chunks if chunk.document_id != "page07.md"]
        assert list(now.chunks) == kept  # page04's too, and in their places
    assert [item["id"] for item in open_store(target).manifest.sections["refresh"]["unread"]] == ["page04.md"]
    again = refresh_documents(target, [docs])
    assert not again.changed and again.documents.unread == 1
    assert [(item.id, item.source) for item in again.unread] == [("page04.md", "page04.md")]


def test_a_kept_file_is_deleted_once_it_is_gone_and_changed_once_it_is_back(place: Path) -> None:
    docs, target = place / "docs", place / "retriever"
    spoil(docs / "page04.md", "empty")
    spoil(docs / "page05.md", "empty")
    assert refresh_documents(target, [docs]).documents == DocumentChanges(unchanged=10, unread=2)
    (docs / "page04.md").unlink()
    (docs / "page05.md").write_text("# Page 5\n\nold tree, new wood.\n")
    assert refresh_documents(target, [docs]).documents == DocumentChanges(unchanged=10, changed=1, deleted=1)


def test_a_retriever_all_of_whose_files_became_unreadable_stays_as_it_is(place: Path) -> None:
    for file in (place / "docs").iterdir():
        spoil(file, "empty")
    done = refresh_documents(place / "retriever", [place / "docs"])
    assert not done.changed and done.documents == DocumentChanges(unread=12)


@pytest.mark.parametrize("which", ["", "sub"])
def test_a_folder_that_cannot_be_listed_keeps_its_documents(
    place: Path, model: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs, target = place / "docs", place / "retriever"
    write_pages(docs / "sub", 3)
    fit([docs], target, settings(model))
    (docs / "page01.md").unlink()
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path) == str(docs / which):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr("ragadapt.corpus.walk.os.scandir", scandir)
    expected = DocumentChanges(unread=15) if not which else DocumentChanges(unchanged=11, deleted=1, unread=3)
    assert refresh_documents(target, [docs]).documents == expected


def test_another_name_of_a_file_that_is_read_is_not_kept(place: Path) -> None:
    docs = place / "docs"
    (docs / "page04.md").unlink()
    (docs / "page04.md").symlink_to("page03.md")
    assert refresh_documents(place / "retriever", [docs]).documents == DocumentChanges(unchanged=11, deleted=1)


ROWS = [{"id": f"r{number}", "text": text} for number, text in enumerate(sentences(6, words=9, seed=5))]


@pytest.mark.parametrize(
    ("lines", "kept", "deleted"),
    [
        ([0, 1, "{", 3, 4, 5], ["r2"], 0),  # damaged in its place
        ([0, 1, '{"id": "r2", "text": ""}', 3, 4], ["r2"], 1),  # emptied; r5 is gone
        ([0, "{", "{", 3, 5], ["r1", "r2"], 1),  # r4 is gone
        (["[]", 1, 2, 3, 4, "{"], ["r0", "r5"], 0),  # at both ends
        ([0, 1, 2, 3, 4], [], 1),  # a row that is gone from a readable file
        ([0, "{", 4, 5], ["r1", "r2", "r3"], 0),  # which of the three it was nobody can say
        ([5, "{", 0, 2, 3, 4], ["r1"], 0),  # in another order
    ],
)
def test_a_damaged_row_stays_and_a_missing_one_goes(
    place: Path, model: Path, lines: list[Any], kept: list[str], deleted: int
) -> None:
    docs, target = place / "docs", place / "retriever"

    def write(rows: list[Any]) -> None:
        (docs / "rows.jsonl").write_text(
            "".join((row if isinstance(row, str) else json.dumps(ROWS[row])) + "\n" for row in rows)
        )

    write([*range(6)])
    fit([docs], target, settings(model))
    write(lines)
    done = refresh_documents(target, [docs])
    assert sorted(item.id for item in done.unread) == kept
    assert done.documents.deleted == deleted
    with Retriever.open(target) as now:
        rows = {chunk.document_id for chunk in now.chunks if chunk.source == "rows.jsonl"}
    assert rows == {ROWS[row]["id"] for row in lines if isinstance(row, int)} | set(kept)


def test_a_row_file_that_cannot_be_read_as_a_whole_keeps_its_rows(place: Path, model: Path) -> None:
    docs, target = place / "docs", place / "retriever"
    rows = "".join(f"r{number},{row['text']}\n" for number, row in enumerate(ROWS))
    (docs / "rows.csv").write_text("id,text\n" + rows)
    fit([docs], target, settings(model))
    (docs / "rows.csv").write_text("who,knows\n" + rows)
    done = refresh_documents(target, [docs])
    assert not done.changed and done.documents.unread == 6


def test_skipped_files_are_told_by_reason(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(30):
        (place / "docs" / f"blank{number:02}.md").write_text("")
        (place / "docs" / f"copy{number:02}.md").symlink_to(f"page{number % 9:02}.md")
    assert run(["refresh", str(place / "retriever"), "--docs", str(place / "docs")]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert [line for line in told if "blank" in line] == ["            blank00.md and 29 more: empty"]
    assert len([line for line in told if "copy" in line]) == 1
    assert any(line.startswith("Skipped     60") for line in told)


# Equal to a fit


@pytest.mark.parametrize("kind", ["exact", "faiss", "qdrant", "qdrant-edge"])
def test_a_refreshed_retriever_equals_one_fitted_to_the_new_documents(
    original: Path, model: Path, tmp_path: Path, kind: str
) -> None:
    for needed in {"faiss": ["faiss"], "qdrant": ["qdrant_client"], "qdrant-edge": ["qdrant_edge"]}.get(kind, []):
        pytest.importorskip(needed)
    place = shutil.copytree(original, tmp_path / "place")
    config = settings(model, kind)
    if kind != "exact":
        reindex(place / "retriever", config.index)
    change_everything(place / "docs")
    done = refresh_documents(place / "retriever", [place / "docs"])
    assert done.changed
    assert done.documents == DocumentChanges(added=1, changed=2, unchanged=8, moved=1, deleted=1)
    fresh = fit([place / "docs"], tmp_path / "fresh", config).path
    assert_equal_retrievers(place / "retriever", fresh)
    open_store(place / "retriever", "full")


def test_a_refresh_keeps_the_stop_words_of_the_fit(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pages(tmp_path / "docs", 6)
    with monkeypatch.context() as patched:
        patched.setattr("ragadapt.pipeline.stages.stopwords_for", lambda languages: frozenset({"bridge"}))
        fit([tmp_path / "docs"], tmp_path / "retriever", settings(model))
    (tmp_path / "docs" / "new.md").write_text("# New\n\nThe old bridge and the bread.\n", encoding="utf-8")
    refresh_documents(tmp_path / "retriever", [tmp_path / "docs"])
    kept = json.loads((tmp_path / "retriever" / "lexical" / "lexical.json").read_text(encoding="utf-8"))
    assert kept["stopwords"] == ["bridge"]


def test_only_passages_with_new_content_are_encoded(place: Path, encoded: list[str]) -> None:
    before = {chunk.content_hash for chunk in ChunkStore.open(place / "retriever" / "chunks.sqlite")}
    change_everything(place / "docs")
    done = refresh_documents(place / "retriever", [place / "docs"])
    with ChunkStore.open(place / "retriever" / "chunks.sqlite") as store:
        new = {chunk.passage for chunk in store if chunk.content_hash not in before}
        total = len(store)
    assert sorted(encoded) == sorted(new)
    assert done.chunks.encoded == len(new) == done.chunks.added
    assert 0 < len(new) < 5
    assert done.chunks.reused > 0  # of the page that moved
    assert done.chunks.added + done.chunks.reused + done.chunks.kept == total


def test_a_moved_file_and_shifted_offsets_cost_no_encoding_and_load_no_second_copy(
    place: Path, encoded: list[str]
) -> None:
    docs = place / "docs"
    (docs / "deep").mkdir()
    for number in range(12):
        (docs / f"page{number:02}.md").rename(docs / "deep" / f"p{number:02}.md")
    done = refresh_documents(place / "retriever", [docs])  # all ids are new: nothing vanished, so nothing is refused
    assert encoded == []
    assert done.documents == DocumentChanges(moved=12)
    assert done.chunks.added == done.chunks.deleted == done.chunks.encoded == 0
    with Retriever.open(place / "retriever") as retriever:
        assert all(id.startswith("deep/") for id in retriever.chunks.ids())


def test_a_change_of_metadata_alone_reaches_the_filters(tmp_path: Path, model: Path, encoded: list[str]) -> None:
    rows = [{"_id": f"d{n}", "text": text, "year": 2000} for n, text in enumerate(sentences(10, seed=8))]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    fit([file], tmp_path / "r", settings(model))
    rows[3]["year"] = 2024
    file.write_text("\n".join(json.dumps(row) for row in rows))
    encoded.clear()
    done = refresh_documents(tmp_path / "r", [file])
    assert (done.documents.changed, done.chunks.encoded, encoded) == (1, 0, [])
    with Retriever.open(tmp_path / "r") as retriever:
        hits = retriever.search("red water", k=10, mode="dense", filter={"year": 2024})
        assert [hit.chunk.document_id for hit in hits] == ["d3"]


def test_an_unchanged_corpus_changes_nothing_and_loads_no_model(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_store(place / "retriever").manifest
    monkeypatch.setattr(Encoder, "open", lambda *_, **__: pytest.fail("a model was loaded"))
    done = refresh_documents(place / "retriever", [place / "docs"])
    assert not done.changed
    assert done.documents == DocumentChanges(unchanged=12)
    assert open_store(place / "retriever").manifest == before
    names = {path.name for path in place.iterdir()}
    assert names == {"docs", "retriever", ".retriever.lock", ".retriever.feedback.lock"}


def test_neither_the_retriever_nor_the_labels_in_the_folder_become_documents(place: Path, model: Path) -> None:
    docs = place / "docs"
    questions = [{"_id": f"q{n}", "text": f"page {n} part", "evidence": _quote(docs, n)} for n in range(4)]
    (docs / "ask").mkdir()
    (docs / "ask" / "questions.jsonl").write_text("\n".join(json.dumps(question) for question in questions))
    labels = [Labels(docs / "ask" / "questions.jsonl")]
    for _ in range(2):
        fit([docs], docs / "retriever", settings(model), labels=labels)
    for folder in (docs, place / "renamed"):
        docs.rename(folder)
        with ChunkStore.open(folder / "retriever" / "chunks.sqlite") as store:
            assert sorted(record.id for record in store.documents()) == [f"page{n:02}.md" for n in range(12)]
        done = refresh_documents(folder / "retriever", [folder])
        assert (done.changed, done.documents) == (False, DocumentChanges(unchanged=12))
        assert {skipped.source for skipped in done.skipped} == {"ask/questions.jsonl", "retriever/"}


def _quote(docs: Path, number: int) -> list[dict[str, str]]:
    text = (docs / f"page{number:02}.md").read_text(encoding="utf-8")
    return [{"source": f"page{number:02}.md", "quote": text.split("\n\n")[2].split(".")[0]}]


def test_deleting_alone_loads_no_model(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "docs" / "page03.md").unlink()
    monkeypatch.setattr(Encoder, "open", lambda *_, **__: pytest.fail("a model was loaded"))
    done = refresh_documents(place / "retriever", [place / "docs"])
    assert done.documents == DocumentChanges(unchanged=11, deleted=1)
    with ChunkStore.open(place / "retriever" / "chunks.sqlite") as store:
        assert "page03.md" not in set(store.document_ids())


def test_another_versions_chunks_are_cut_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ragadapt.pipeline.refresh as module

    cut: list[str] = []
    cut_documents = module.cut_documents

    def watch(documents: Any, *rest: Any, **options: Any) -> Any:
        cut.extend(document.id for document in documents)
        return cut_documents(documents, *rest, **options)

    monkeypatch.setattr(module, "cut_documents", watch)
    (place / "docs" / "page03.md").unlink()
    refresh_documents(place / "retriever", [place / "docs"])
    assert cut == []
    monkeypatch.setattr(module, "__version__", "99.0")
    done = refresh_documents(place / "retriever", [place / "docs"])
    assert len(cut) == 11
    assert not done.changed  # it cuts as this one does


def test_objects_refresh_what_was_made_from_objects(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    objects = [Document(f"d{n}", text, title=f"T{n}") for n, text in enumerate(sentences(8, seed=4))]
    fit(objects, tmp_path / "r", settings(model))
    done = refresh_documents(tmp_path / "r", [*objects[1:], Document("new", "red water tree river")])
    assert done.documents == DocumentChanges(added=1, unchanged=7, deleted=1)
    cut = [Document(f"c{n}", text) for n, text in enumerate(sentences(6, seed=5))]
    fit(cut, tmp_path / "s", settings(model), chunked=True)
    done = refresh_documents(tmp_path / "s", [*cut, Document("c6", "oven bake bread city")])
    assert done.chunks == ChunkChanges(added=1, kept=6, encoded=1)
    assert_equal_retrievers(
        tmp_path / "s",
        fit([*cut, Document("c6", "oven bake bread city")], tmp_path / "t", settings(model), chunked=True).path,
    )
    refresh_documents(tmp_path / "s", [*cut, Document("c7", "river " * 100)])
    assert "1 of 1 passages are longer than the 46 tokens" in caplog.text
    with pytest.raises(InvalidInput, match="cut already"):
        refresh_documents(tmp_path / "s", [tmp_path])


# What is missing


def test_missing_documents_can_be_kept(place: Path, tmp_path: Path) -> None:
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "extra.md").write_text("# Extra\n\ncheap flight price vote council. city oven bread.\n")
    done = refresh_documents(place / "retriever", [tmp_path / "extra"], keep_missing=True)
    assert done.documents == DocumentChanges(added=1, kept=12)
    with Retriever.open(place / "retriever") as retriever:
        assert {"extra.md", "page00.md", "page11.md"} <= {record.id for record in retriever.chunks.documents()}
        assert retriever.search("cheap flight price vote", mode="lexical")[0].chunk.document_id == "extra.md"
    again = refresh_documents(place / "retriever", [tmp_path / "extra"], keep_missing=True)
    assert not again.changed
    later = refresh_documents(place / "retriever", [place / "docs"])  # hashes of what was kept still hold
    assert later.documents == DocumentChanges(unchanged=12, deleted=1)


def test_more_than_half_is_not_deleted_unless_told(place: Path) -> None:
    docs, retriever = place / "docs", place / "retriever"
    before = open_store(retriever).manifest
    for number in range(7):
        (docs / f"page{number:02}.md").unlink()
    for dry_run in (True, False):
        with pytest.raises(InvalidInput, match=r"7 of 12 documents .*more than half.*--keep-missing.*Nothing was"):
            refresh_documents(retriever, [docs], dry_run=dry_run)
    assert open_store(retriever).manifest == before
    assert not place.joinpath(".retriever.build").exists()
    with pytest.raises(InvalidInput, match="contradict"):
        refresh_documents(retriever, [docs], keep_missing=True, delete_missing=True)
    done = refresh_documents(retriever, [docs], delete_missing=True)
    assert done.documents == DocumentChanges(unchanged=5, deleted=7)


def test_a_source_that_was_not_named_is_not_taken_for_deleted(tmp_path: Path, model: Path) -> None:
    write_pages(tmp_path / "docs", 8)
    write_pages(tmp_path / "more", 2, first=50)
    both = [tmp_path / "docs", tmp_path / "more"]
    fit(both, tmp_path / "r", settings(model))
    with pytest.raises(InvalidInput, match=r"2 of 10 documents .*made from docs, more, of which more was not named"):
        refresh_documents(tmp_path / "r", [tmp_path / "docs"])
    assert not refresh_documents(tmp_path / "r", both).changed
    done = refresh_documents(tmp_path / "r", [tmp_path / "docs"], delete_missing=True)
    assert done.documents == DocumentChanges(unchanged=8, deleted=2)


def test_nothing_is_left_is_an_error(place: Path) -> None:
    before = open_store(place / "retriever").manifest
    shutil.rmtree(place / "docs")
    (place / "docs").mkdir()
    with pytest.raises(EmptyCorpus):
        refresh_documents(place / "retriever", [place / "docs"], delete_missing=True)
    with pytest.raises(NotARetriever):
        refresh_documents(place / "nowhere", [place / "docs"])
    assert open_store(place / "retriever").manifest == before
    assert not (place / "nowhere").exists()


def test_a_dry_run_counts_and_writes_nothing(place: Path) -> None:
    before = open_store(place / "retriever", "full").manifest
    change_everything(place / "docs")
    names = {path.name for path in place.iterdir()}
    planned = refresh_documents(place / "retriever", [place / "docs"], dry_run=True)
    assert {path.name for path in place.iterdir()} == names
    assert open_store(place / "retriever", "full").manifest == before
    done = refresh_documents(place / "retriever", [place / "docs"])
    assert (planned.documents, planned.chunks) == (done.documents, done.chunks)


# The manifest


def test_the_manifest_tells_of_the_refresh_and_the_report_stays(place: Path) -> None:
    retriever = place / "retriever"
    report = (retriever / "report" / "report.json").read_bytes()
    fitted = open_store(retriever).manifest
    change_everything(place / "docs")
    done = refresh_documents(retriever, [place / "docs"])
    manifest = open_store(retriever).manifest
    note = manifest.sections["refresh"]
    assert note["number"] == 1
    assert note["documents"]["moved"] == 1
    assert note["chunks"]["added"] == done.chunks.added
    assert note["chunks_at_fit"] == fitted.sections["chunks"]
    assert note["changed_since_fit"] == done.chunks.added + done.chunks.deleted
    with ChunkStore.open(retriever / "chunks.sqlite") as store:
        assert manifest.sections["chunks"] == len(store)
        assert manifest.sections["documents"] == len(store.documents()) == 12
    assert manifest.sections["fusion"] == fitted.sections["fusion"]
    assert (manifest.fingerprint, manifest.configuration) == (fitted.fingerprint, fitted.configuration)
    assert (retriever / "report" / "report.json").read_bytes() == report


def test_a_new_fit_is_advised_once_much_has_changed(place: Path) -> None:
    docs, retriever = place / "docs", place / "retriever"
    (docs / "page00.md").write_text("# Page 0\n\nred red red.\n")
    assert refresh_documents(retriever, [docs]).advice == ""
    for number in range(1, 5):
        (docs / f"page{number:02}.md").unlink()
    done = refresh_documents(retriever, [docs])
    assert "Consider a new fit" in done.advice
    assert open_store(retriever).manifest.sections["refresh"]["number"] == 2


# Going back, and the ledger


def write_ledger(retriever: Path, *rows: int) -> None:
    with ledger_lock(retriever), closing(sqlite3.connect(retriever / LEDGER)) as ledger:
        ledger.execute("PRAGMA journal_mode = WAL")
        ledger.execute("CREATE TABLE IF NOT EXISTS feedback (id)")
        ledger.executemany("INSERT INTO feedback VALUES (?)", [(row,) for row in rows])
        ledger.commit()


def read_ledger(retriever: Path) -> list[int]:
    with closing(sqlite3.connect(retriever / LEDGER)) as ledger:
        return [row[0] for row in ledger.execute("SELECT id FROM feedback ORDER BY id")]


def test_rollback_returns_the_old_documents_and_a_second_one_the_new(place: Path) -> None:
    retriever = place / "retriever"

    def documents() -> set[str]:
        with Retriever.open(retriever) as opened:
            opened.search("red water")
            return {record.id for record in opened.chunks.documents()}

    old = documents()
    change_everything(place / "docs")
    refresh_documents(retriever, [place / "docs"])
    new = documents()
    assert new != old
    rollback(retriever)
    assert documents() == old
    rollback(retriever)
    assert documents() == new
    shutil.rmtree(place / ".retriever.rollback")
    with pytest.raises(StoreError, match="Nothing is kept"):
        rollback(retriever)


def test_feedback_goes_through_fit_index_refresh_and_rollback(place: Path, model: Path) -> None:
    docs, retriever = place / "docs", place / "retriever"
    write_ledger(retriever, 1)
    change_everything(docs)
    steps: list[Callable[[], object]] = [
        lambda: refresh_documents(retriever, [docs]),
        lambda: rollback(retriever),
        lambda: reindex(retriever, IndexConfig(kind="exact")),
        lambda: fit([docs], retriever, settings(model)),
        lambda: rollback(retriever),
    ]
    for number, step in enumerate(steps, 2):
        step()
        assert read_ledger(retriever) == list(range(1, number))
        assert LEDGER in open_store(retriever, "full").manifest.mutable
        write_ledger(retriever, number)


def test_feedback_that_comes_while_a_refresh_runs_survives(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ragadapt.pipeline.refresh as module

    retriever = place / "retriever"
    write_ledger(retriever, 1)
    build_index = module.build_index

    def meanwhile(*arguments: Any) -> None:
        write_ledger(retriever, 2)
        build_index(*arguments)

    monkeypatch.setattr(module, "build_index", meanwhile)
    change_everything(place / "docs")
    refresh_documents(retriever, [place / "docs"])
    assert read_ledger(retriever) == [1, 2]


# Kills, readers, other writers


def test_an_interrupted_refresh_goes_on_where_it_stopped(
    place: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[str]
) -> None:
    import ragadapt.pipeline.refresh as module

    change_everything(place / "docs")
    before = open_store(place / "retriever").manifest
    with monkeypatch.context() as patch:
        patch.setattr(module, "build_lexical", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            refresh_documents(place / "retriever", [place / "docs"])
    assert open_store(place / "retriever", "full").manifest == before
    assert encoded
    encoded.clear()
    done = refresh_documents(place / "retriever", [place / "docs"])
    assert done.reused == ("refresh-chunks", "refresh-vectors")
    assert encoded == []
    assert done.chunks.encoded > 0  # counted as planned, whoever did it


def test_a_stage_of_an_interrupted_refresh_is_not_used_after_the_sources_changed(
    place: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ragadapt.pipeline.refresh as module

    change_everything(place / "docs")
    with monkeypatch.context() as patch:
        patch.setattr(module, "commit_build", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            refresh_documents(place / "retriever", [place / "docs"])
    (place / "docs" / "page02.md").write_text("# Page 2\n\nzebra fire stone wood water.\n")
    assert refresh_documents(place / "retriever", [place / "docs"]).reused == ()
    fresh = fit([place / "docs"], tmp_path / "fresh", settings(model)).path
    assert_equal_retrievers(place / "retriever", fresh)


def test_another_writer_is_named_and_a_replacement_meanwhile_is_noticed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ragadapt.pipeline.refresh as module

    change_everything(place / "docs")
    with Workspace.open(place / "retriever", {}), pytest.raises(StoreLocked, match=f"Process {os.getpid()} "):
        refresh_documents(place / "retriever", [place / "docs"])
    read_sources = module.read_sources

    def replaced_meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(module, "read_sources", read_sources)
        reindex(place / "retriever", IndexConfig(kind="exact"))
        return read_sources(*arguments)

    monkeypatch.setattr(module, "read_sources", replaced_meanwhile)
    with pytest.raises(StoreLocked, match="was replaced while its sources were read"):
        refresh_documents(place / "retriever", [place / "docs"])
    assert refresh_documents(place / "retriever", [place / "docs"]).changed


def test_an_embedded_index_that_is_being_searched_gives_its_vectors_all_the_same(
    place: Path, model: Path, tmp_path: Path, encoded: list[str]
) -> None:
    pytest.importorskip("qdrant_edge")
    reindex(place / "retriever", IndexConfig(kind="qdrant-edge"))
    change_everything(place / "docs")
    encoded.clear()
    with Retriever.open(place / "retriever") as opened:  # an embedded engine has one user at a time
        before = [hit.chunk.id for hit in opened.search("red water")]
        done = refresh_documents(place / "retriever", [place / "docs"])
        assert done.chunks.encoded == len(encoded) == done.chunks.added
        with Retriever.open(place / "retriever") as second:
            after = [hit.chunk.id for hit in second.search("red water")]
        assert before != after
        assert [hit.chunk.id for hit in opened.search("red water")] in (before, after)
    fresh = fit([place / "docs"], tmp_path / "fresh", settings(model)).path
    assert_equal_retrievers(place / "retriever", fresh)


def test_an_index_that_cannot_be_read_is_built_from_the_passages(
    place: Path, model: Path, tmp_path: Path, encoded: list[str]
) -> None:
    description = place / "retriever" / "index" / "index.json"
    description.write_bytes(b" " * description.stat().st_size)
    change_everything(place / "docs")
    done = refresh_documents(place / "retriever", [place / "docs"])
    assert done.chunks.encoded == len(encoded) > done.chunks.added
    fresh = fit([place / "docs"], tmp_path / "fresh", settings(model)).path
    assert_equal_retrievers(place / "retriever", fresh)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_refreshes_killed_at_random_moments_leave_the_old_or_the_new_retriever(model: Path, tmp_path: Path) -> None:
    """RAGADAPT_KILLS asks for more kills than 8."""
    count = int(os.environ.get("RAGADAPT_KILLS", "8"))
    write_round(tmp_path / "docs", 1, list(range(PAGES)))
    fit([tmp_path / "docs"], tmp_path / "retriever", settings(model))
    command = [sys.executable, str(VICTIM), "kills", str(tmp_path), str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    resumed = found.pop("resumed")
    assert sum(number for what, number in found.items() if "killed" in what) == count
    assert {"refresh killed, old", "refresh done, new", "rollback done, new"} <= set(found)
    assert resumed > 0
    assert state_of(tmp_path / "retriever") == round_of(tmp_path / "docs")
    fresh = fit([tmp_path / "docs"], tmp_path / "fresh", settings(model)).path
    assert_equal_retrievers(tmp_path / "retriever", fresh)


def test_a_reader_beside_refreshes_sees_the_old_or_the_new_and_never_a_mix(model: Path, tmp_path: Path) -> None:
    docs, retriever = tmp_path / "docs", tmp_path / "retriever"
    write_round(docs, 1, list(range(PAGES)))
    fit([docs], retriever, settings(model))
    command = [sys.executable, str(VICTIM), "read", str(retriever)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "opened\n"
        for round in range(2, 8):
            write_round(docs, round, list(range(PAGES)))
            refresh_documents(retriever, [docs])
            time.sleep(0.5)  # it looks once a second; a quick machine is done with all rounds by then
            if round == 5:
                rollback(retriever)
                rollback(retriever)
        reader.stdout.readline()
        output, problems = reader.communicate()
    assert reader.returncode == 0, problems
    seen = json.loads(output.splitlines()[-1])
    assert seen[0] == 1
    assert seen[-1] == 7
    assert len(set(seen)) > 2


def test_a_clock_gives_a_stage_within_another_its_own_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 4.0, 5.0, 7.0, 10.0])
    monkeypatch.setattr("ragadapt.profiling.time.perf_counter", lambda: next(ticks))
    clock = Clock()
    with clock("outer"):
        with clock("inner"):
            pass
        with clock("other"):
            pass
    assert clock.seconds == {"inner": 3.0, "other": 2.0, "outer": 5.0}


# The command


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert run(["refresh", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_refreshes_and_goes_back(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    retriever, docs = str(place / "retriever"), str(place / "docs")
    before = open_store(retriever).manifest.sections["chunks"]
    change_everything(place / "docs")
    planned = said(capsys, retriever, "--docs", docs, "--dry-run")
    assert (planned["dry_run"], planned["changed"]) == (True, True)
    assert open_store(retriever).manifest.sections["chunks"] == before
    done = said(capsys, retriever, "--docs", docs)
    moves = {"added": 1, "changed": 2, "unchanged": 8, "moved": 1, "deleted": 1}
    assert done["documents"] == {**moves, "kept": 0, "unread": 0}
    assert (done["documents"], done["chunks"]) == (planned["documents"], planned["chunks"])
    assert open_store(retriever).manifest.sections["chunks"] == sum(
        done["chunks"][part] for part in ("added", "kept", "reused")
    )
    assert not said(capsys, retriever, "--docs", docs)["changed"]
    assert said(capsys, retriever, "--rollback")["chunks"] == before
    assert run(["refresh", retriever, "--docs", docs]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0] == "Documents   1 added, 2 changed, 1 moved, 1 deleted, 8 unchanged"
    assert output[-1] == f"Retriever   {retriever}"


def test_the_command_says_what_is_wrong(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    retriever, docs = str(place / "retriever"), place / "docs"
    for arguments in (
        [],
        ["--rollback", "--dry-run"],
        ["--docs", str(docs), "--keep-missing", "--delete-missing"],
        ["--docs", str(place / "nowhere")],
    ):
        assert run(["refresh", retriever, *arguments]) == 2
    for page in list(docs.iterdir())[:7]:
        page.unlink()
    capsys.readouterr()
    assert run(["refresh", retriever, "--docs", str(docs), "--json"]) == 1
    problem = json.loads(capsys.readouterr().err)
    assert "7 of 12 documents" in problem["error"]["message"]
    shutil.rmtree(place / ".retriever.rollback", ignore_errors=True)
    assert run(["refresh", retriever, "--rollback"]) == 1
    assert "Nothing is kept" in capsys.readouterr().err
    assert run(["refresh", retriever, "--docs", str(docs), "--delete-missing"]) == 0


# A server


class Server:
    """A Qdrant server that all clients share: the client's own in-memory engine behind an address."""

    def __init__(self) -> None:
        from qdrant_client import QdrantClient

        self.client = QdrantClient(":memory:", force_disable_check_same_thread=True)
        self.close, self.client.close = self.client.close, lambda *_, **__: None
        self.fails = False

    def connect(self, *_: Any) -> Any:
        if self.fails:
            raise IndexUnreachable("it does not answer")
        return self.client

    def collections(self) -> set[str]:
        return {one.name for one in self.client.get_collections().collections}

    def alias(self, name: str) -> str | None:
        return {one.alias_name: one.collection_name for one in self.client.get_aliases().aliases}.get(name)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("qdrant_client")
    made = Server()
    monkeypatch.setattr("ragadapt.index.qdrant._connect", made.connect)
    monkeypatch.setattr("ragadapt.index.server._connect", made.connect)
    yield made
    made.close()


def collection_in_use(retriever: Path) -> str:
    name = json.loads((retriever / "index" / "index.json").read_text())["collection"]
    assert isinstance(name, str)
    return name


def test_on_a_server_the_alias_follows_and_one_generation_is_kept(
    place: Path, model: Path, tmp_path: Path, server: Server
) -> None:
    retriever = place / "retriever"
    config = IndexConfig(kind="qdrant", url="http://somewhere:6333", collection="handbook")
    reindex(retriever, config)
    first = collection_in_use(retriever)
    assert server.collections() == {first}
    assert server.alias("handbook") == first
    change_everything(place / "docs")
    with Retriever.open(retriever) as reader:  # a search goes on in the old collection
        refresh_documents(retriever, [place / "docs"])
        assert reader.search("red water")
    second = collection_in_use(retriever)
    assert server.collections() == {first, second}
    assert server.alias("handbook") == second
    assert_equal_retrievers(retriever, fit([place / "docs"], tmp_path / "fresh", settings(model)).path)
    rollback(retriever)
    assert (collection_in_use(retriever), server.alias("handbook")) == (first, first)
    rollback(retriever)
    assert (collection_in_use(retriever), server.alias("handbook")) == (second, second)
    server.client.create_collection("handbook-2024", vectors_config={})  # somebody else's
    reindex(retriever, config)
    third = collection_in_use(retriever)
    assert server.collections() == {second, third, "handbook-2024"}
    assert server.alias("handbook") == third
    reindex(retriever, IndexConfig(kind="exact"))  # away from the server: the collection is the rollback's
    assert server.collections() == {third, "handbook-2024"}
    rollback(retriever)
    assert collection_in_use(retriever) == third


def test_a_killed_build_on_a_server_goes_on_in_its_own_collection(
    place: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragadapt.index.qdrant import QdrantIndex

    config = IndexConfig(kind="qdrant", url="http://somewhere:6333")
    with monkeypatch.context() as patch:
        patch.setattr(QdrantIndex, "upsert", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            reindex(place / "retriever", config)
    (begun,) = server.collections()
    reindex(place / "retriever", config)
    assert server.collections() == {begun} == {collection_in_use(place / "retriever")}


def test_trouble_with_the_alias_is_a_warning_and_a_collection_of_that_name_is_left_alone(
    place: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.client.create_collection("handbook", vectors_config={})
    reindex(place / "retriever", IndexConfig(kind="qdrant", url="http://somewhere:6333", collection="handbook"))
    assert "cannot be an alias" in caplog.text
    assert server.collections() == {"handbook", collection_in_use(place / "retriever")}
    server.fails = True
    rollback(place / "retriever")  # to the exact index: nothing to ask
    before = open_store(place / "retriever").manifest
    rollback(place / "retriever")
    assert "was not pointed to the new collection" in caplog.text
    assert open_store(place / "retriever").manifest.build_id != before.build_id


# Another index from the same vectors


def rows_of(path: Path) -> tuple[list[str], Any]:
    """Ids, and their vectors as they are stored."""
    manifest = open_store(path).manifest
    with open_index(folder=path / "index", fingerprint=manifest.fingerprint) as index:
        ids = sorted(index.ids())
        return ids, index.vectors(ids)


@pytest.mark.parametrize("kind", ["exact", "faiss", "qdrant", "qdrant-edge"])
def test_another_index_takes_the_stored_vectors_over_to_the_bit_and_loads_no_model(
    place: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for needed in {"faiss": ["faiss"], "qdrant": ["qdrant_client"], "qdrant-edge": ["qdrant_edge"]}.get(kind, []):
        pytest.importorskip(needed)
    ids, rows = rows_of(place / "retriever")
    with Retriever.open(place / "retriever") as before:
        hits = before.search("red water", 9)
    manifest = open_store(place / "retriever").manifest
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "open", lambda *_, **__: pytest.fail("a model was loaded"))
        reindex(place / "retriever", IndexConfig(kind=kind))
        again, moved = rows_of(place / "retriever")
    assert again == ids and encoded == []
    np.testing.assert_array_equal(moved, rows)
    now = open_store(place / "retriever", verify="full").manifest
    assert now.sections == manifest.sections and now.fingerprint == manifest.fingerprint
    assert now.configuration["index"]["kind"] == kind
    with Retriever.open(place / "retriever") as after:
        assert [hit.chunk.id for hit in after.search("red water", 9)] == [hit.chunk.id for hit in hits]


def test_vectors_that_are_missing_are_encoded_and_the_others_taken_over(place: Path, encoded: list[str]) -> None:
    pytest.importorskip("qdrant_edge")
    reindex(place / "retriever", IndexConfig(kind="qdrant-edge"))  # which changes in place, and has no hash
    ids, rows = rows_of(place / "retriever")
    with open_index(folder=place / "retriever" / "index") as index:
        index.delete(ids[:3])
        index.save()
    reindex(place / "retriever", IndexConfig(kind="exact"))
    assert len(encoded) == 3
    again, moved = rows_of(place / "retriever")
    assert again == ids
    np.testing.assert_array_equal(moved[3:], rows[3:])
    np.testing.assert_allclose(moved[:3], rows[:3], atol=1e-5)


def test_a_damaged_index_is_encoded_again_and_so_is_a_good_one_on_demand(
    place: Path, encoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    ids, rows = rows_of(place / "retriever")
    file = next((place / "retriever" / "index").glob("vectors-*.npy"))
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    reindex(place / "retriever", IndexConfig(kind="exact"))
    assert "cannot be taken over" in caplog.text
    assert len(set(encoded)) == len(encoded) > 0
    again, made = rows_of(place / "retriever")
    assert again == ids
    np.testing.assert_allclose(made, rows, atol=1e-5)
    count = len(encoded)
    reindex(place / "retriever", IndexConfig(kind="exact"))
    assert len(encoded) == count
    assert run(["index", str(place / "retriever"), "--rebuild"]) == 0
    assert len(encoded) == 2 * count


def test_vectors_of_another_version_are_still_known_as_such_after_a_move(
    place: Path, model: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = open_store(place / "retriever").manifest
    sections = {**manifest.sections, "encoded_by": "0.0.1"}
    (place / "retriever" / "ragadapt.json").write_text(replace(manifest, sections=sections).to_json())
    reindex(place / "retriever", IndexConfig(kind="exact", collection="another"))
    assert encoded == []
    fit([place / "docs"], place / "retriever", settings(model))
    assert encoded != []
    count = len(encoded)
    fit([place / "docs"], place / "retriever", settings(model))
    assert len(encoded) == count


def test_leaving_a_server_that_does_not_answer_encodes_and_staying_there_says_so(
    place: Path, encoded: list[str]
) -> None:
    pytest.importorskip("qdrant_client")
    folder = place / "retriever" / "index"
    ids, rows = rows_of(place / "retriever")
    described = {"kind": "qdrant", "dim": rows.shape[1], "fingerprint": None, "collection": "handbook"}
    manifest = open_store(place / "retriever").manifest
    shutil.rmtree(folder)
    write_description(folder, {**described, "url": "http://localhost:9"})
    index = {"kind": "qdrant", "url": "http://localhost:9", "collection": "handbook"}
    changed = replace(
        manifest,
        configuration={**manifest.configuration, "index": index},
        files={name: record for name, record in manifest.files.items() if not name.startswith("index/")},
        mutable=(*manifest.mutable, "index"),
    )
    (place / "retriever" / "ragadapt.json").write_text(changed.to_json())
    with pytest.raises(IndexUnreachable):
        reindex(place / "retriever", IndexConfig.model_validate(index))
    assert encoded == []
    reindex(place / "retriever", IndexConfig(kind="exact"))
    assert encoded != []
    again, made = rows_of(place / "retriever")
    assert again == ids
    np.testing.assert_allclose(made, rows, atol=1e-5)
