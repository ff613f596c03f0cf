"""FAISS's lists mapped from disk, against exact search; here from 200 vectors on, and some keep little in memory."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_retriever import fit_pages, write_pages

from ragadapt.config import IndexConfig
from ragadapt.errors import IndexCorrupt, IndexFault, StoreCorrupt, StoreError
from ragadapt.files import DISK_FULL
from ragadapt.index import disk_lists, exact_index, open_index
from ragadapt.index.disk_lists import DiskLists
from ragadapt.index.faiss import FaissIndex
from ragadapt.out_of_core import LooseFile, VectorFile
from ragadapt.pipeline.refresh import refresh_documents
from ragadapt.pipeline.reindex import reindex
from ragadapt.retriever import Retriever

DIM = 16


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragadapt.index.disk_lists.LISTED", 200)


def clustered(n: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    """Around fifty centres, as texts lie around their subjects."""
    centres = np.random.default_rng(99).standard_normal((50, dim))
    random = np.random.default_rng(seed)
    vectors = centres[random.integers(50, size=n)] + 0.4 * random.standard_normal((n, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def named(n: int) -> list[str]:
    return [f"p{at}" for at in range(n)]


def listed(vectors: np.ndarray, folder: Path | None = None, payloads: Any = None, **settings: Any) -> Any:
    """An index whose lists hold all the vectors."""
    index: Any = open_index("faiss", folder, dim=vectors.shape[1], structure="disk", **settings)
    index.upsert(named(len(vectors)), vectors, payloads)
    index.finish(IndexConfig(kind="faiss", structure="disk"))
    return index


def recall(found: Any, wanted: Any) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for (a, _), (b, _) in zip(found, wanted, strict=True)]))


def assert_exact(
    index: Any, stored: dict[str, np.ndarray], queries: np.ndarray, k: int, at_least: float = 0.95
) -> None:
    """Scores are those of the vectors, in order, and nearly all of the best are found."""
    wanted = exact_index(list(stored), np.array(list(stored.values()), np.float32)).search(queries, k)
    found = index.search(queries, k)
    for query, (ids, scores) in zip(queries, found, strict=True):
        assert len(ids) == len(set(ids)) == min(k, len(stored))
        np.testing.assert_allclose(scores, [stored[id] @ query for id in ids], atol=1e-6)
        assert (np.diff(scores) <= 0).all()
    assert recall(found, wanted) >= at_least


def held(index: Any) -> DiskLists:
    assert isinstance(index._engine, DiskLists)
    return index._engine


def placements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many lists were placed, each time that some are."""
    made: list[int] = []
    place = disk_lists._centroids
    monkeypatch.setattr(disk_lists, "_centroids", lambda *given: made.append(given[1]) or place(*given))
    return made


# Search


def test_lists_find_nearly_all_of_the_best_and_score_them_exactly() -> None:
    vectors, queries = clustered(5000), clustered(50, seed=1)
    with listed(vectors) as index:
        assert held(index).listed == 5000 and len(held(index).added) == 0
        assert int(held(index).base.engine.nlist) == 78  # type: ignore[union-attr]  # 5000 / 64
        for k in (1, 10, 100):
            assert_exact(index, dict(zip(named(5000), vectors)), queries, k)


@pytest.mark.parametrize("k", [5000, 7000])
def test_all_are_found_where_all_are_asked_for(k: int) -> None:
    vectors = clustered(5000)
    with listed(vectors) as index:
        assert_exact(index, dict(zip(named(5000), vectors)), clustered(2, seed=1), k, at_least=1.0)


@pytest.mark.parametrize("dim", [1, 3])
def test_narrow_vectors_are_found(dim: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((500, dim)).astype(np.float32)
    with listed(vectors) as index:
        assert held(index).listed == 500
        assert_exact(index, dict(zip(named(500), vectors)), vectors[:5], 10)


def test_equal_vectors_come_in_the_order_of_ids() -> None:
    with listed(np.ones((300, DIM), np.float32)) as index:
        assert held(index).listed == 300
        found = index.search(np.ones((1, DIM)), 300)[0]
        assert found[0] == sorted(named(300)) and set(found[1].tolist()) == {float(DIM)}


@pytest.mark.parametrize("count", [0, 1, 199])
def test_few_vectors_get_no_lists(tmp_path: Path, count: int) -> None:
    vectors = clustered(count + 1)[:count]
    with listed(vectors, tmp_path) as index:
        assert held(index).base is None
        index.save()
    with open_index(folder=tmp_path) as index:
        assert len(index) == count
        assert [len(found) for found, _ in index.search(clustered(2, seed=1), 5)] == [min(count, 5)] * 2


def test_a_filter_finds_what_exact_search_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragadapt.index.faiss.SCANNED", 20)  # else so few rows are all scored
    vectors, queries = clustered(4000), clustered(20, seed=1)
    payloads = [{"half": at % 2 == 0, "some": at % 40 == 7, "few": at % 1000 == 7} for at in range(4000)]
    exact = open_index("exact", dim=DIM)
    exact.upsert(named(4000), vectors, payloads)
    with listed(vectors, payloads=payloads) as index:
        index.upsert(["p7", "new"], vectors[:2], [payloads[7], payloads[7]])
        exact.upsert(["p7", "new"], vectors[:2], [payloads[7], payloads[7]])
        for name, passing in (("half", 2000), ("some", 101), ("few", 5)):
            for k in (10, 300):
                found, wanted = index.search(queries, k, {name: True}), exact.search(queries, k, {name: True})
                assert all(len(ids) == min(k, passing) for ids, _ in found)
                assert recall(found, wanted) >= 0.95


# Changes


def test_changes_lie_beside_the_lists_until_they_are_many(tmp_path: Path) -> None:
    vectors, queries = clustered(8000), clustered(10, seed=1)
    stored = dict(zip(named(3000), vectors))
    with listed(vectors[:3000], tmp_path) as index:
        token = held(index).base.token  # type: ignore[union-attr]
        index.delete(["p0", "p9"])
        index.upsert(["p1", "x"], vectors[3000:3002])
        index.update_vectors(["p2"], vectors[3002:3003])
        index.delete(["x"])
        index.upsert(["x", "p9"], vectors[3003:3005])
        stored |= {"p1": vectors[3000], "p2": vectors[3002], "x": vectors[3003], "p9": vectors[3004]}
        del stored["p0"]
        assert held(index).listed == 3000 and len(held(index).added) == 5 and index.tombstones == 5
        assert_exact(index, stored, queries, 10)
        np.testing.assert_array_equal(index.vectors(list(stored)), list(stored.values()))
        index.save()
    with open_index(folder=tmp_path) as index:
        assert_exact(index, stored, queries, 10)
        seen = [(id, row.tolist()) for ids, rows in index.batches(700) for id, row in zip(ids, rows)]
        assert [id for id, _ in seen] == index.ids()
        assert dict(seen) == {id: vector.tolist() for id, vector in stored.items()}
        index.upsert(["y"], vectors[3005:3006])  # and goes on
        index.delete(["p5"])
        stored["y"] = vectors[3005]
        del stored["p5"]
        assert_exact(index, stored, queries, 10)
        index.save()
        assert held(index).base.token == token  # type: ignore[union-attr]
        new = [f"n{at}" for at in range(1200)]
        index.upsert(new, vectors[4000:5200])  # more than a twentieth of all, and than 1,000
        stored |= dict(zip(new, vectors[4000:]))
        assert held(index).listed == 4200 and len(held(index).added) == index.tombstones == 0
        assert_exact(index, stored, queries, 10)
        index.save()
        assert held(index).base.token != token  # type: ignore[union-attr]
    assert len([*tmp_path.glob("vectors-b*"), *tmp_path.glob("lists-*")]) == 3  # those of the new lists alone
    with open_index(folder=tmp_path) as index:
        assert_exact(index, stored, queries, 10)
        index.delete([id for id in stored if id.startswith("p")][:1500])
        assert index.tombstones == 0 and held(index).listed == len(index) == 2700


def test_lists_stay_where_they_are_until_a_fifth_of_the_vectors_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, queries, placed = clustered(8000), clustered(50, seed=1), placements(monkeypatch)
    stored = dict(zip(named(6000), vectors))
    with listed(vectors[:6000]) as index:
        assert placed == [93]  # lists, 6000 / 64
        for start, times in ((0, 1), (700, 2), (1400, 2)):
            changed, new = named(6000)[start : start + 700], vectors[6000 + start : 6700 + start]
            index.update_vectors(changed[: len(new)], new)
            index.restructure("disk")
            stored |= dict(zip(changed, new))
            assert held(index).listed == 6000 and len(placed) == times
            assert_exact(index, stored, queries, 10)


def test_lists_are_placed_anew_where_their_number_no_longer_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, placed = clustered(6000), placements(monkeypatch)
    with listed(vectors) as index:
        index.delete(named(6000)[1000:])
        index.restructure("disk")
        assert placed == [93, 15]
        assert_exact(index, dict(zip(named(1000), vectors)), clustered(50, seed=1), 10)


@pytest.mark.parametrize("damage", ["", "places", "labels", "description"])
def test_lists_like_those_of_an_earlier_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    vectors, queries, placed = clustered(6100), clustered(50, seed=1), placements(monkeypatch)
    with listed(vectors[:6000], tmp_path) as index:
        index.save()
    where = {"places": "lists-*.npz", "labels": "lists-*.bin", "description": "index.json"}
    for path in tmp_path.glob(where.get(damage, "")) if damage else ():
        whole = path.read_bytes()
        at = len(whole) // 2 if damage == "places" else len(whole) - 40  # the labels of the last list end there
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) * 16 + whole[at + 16 :])
    order = np.random.default_rng(3).permutation(6100)[:6050]  # some are gone, some are new, all stand elsewhere
    with listed(vectors[order], earlier=tmp_path) as index:
        assert len(placed) == (2 if damage in ("places", "description") else 1)
        assert_exact(index, dict(zip(named(6050), vectors[order])), queries, 10)
    if not damage:
        with open_index(folder=tmp_path, earlier=tmp_path) as index:  # a build that goes on
            assert len(index) == 6000


def test_vectors_move_to_other_structures_and_back() -> None:
    vectors = clustered(600)
    stored = dict(zip(named(600), vectors))
    with listed(vectors) as index:
        index.delete(["p3"])
        del stored["p3"]
        for structure in ("flat", "disk", "hnsw", "disk", "ivf", "disk"):
            index.restructure(structure)
            np.testing.assert_array_equal(index.vectors(list(stored)), list(stored.values()))
        assert held(index).listed == 599
        assert_exact(index, stored, clustered(5, seed=1), 10)


def test_a_build_beyond_memory_goes_through_a_file_and_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragadapt.out_of_core.HELD_BYTES", 10_000)
    monkeypatch.setattr("ragadapt.index.disk_lists._ENCODED", 100)
    monkeypatch.setattr("ragadapt.index.disk_lists._SCATTERED_BYTES", 250 * DIM)
    monkeypatch.setattr("ragadapt.index.faiss.FLAT_LIMIT", 2000)
    vectors, ids, told = clustered(2000), named(2000), list[tuple[str, int, int]]()
    (tmp_path / "scratch").mkdir()
    config = IndexConfig(kind="faiss")
    settings = FaissIndex.building(config, tmp_path / "scratch", (2000, DIM))
    assert settings == {"structure": "disk", "scratch": tmp_path / "scratch", "earlier": None}
    assert FaissIndex.building(config, tmp_path, (1999, DIM)) == {}
    with open_index("faiss", tmp_path / "index", dim=DIM, **settings) as index:
        for start in range(0, 2000, 130):
            index.upsert(ids[start : start + 130], vectors[start : start + 130])
        made: Any = index
        assert isinstance(held(made).added._file, LooseFile) and len(held(made).added._held) == 0
        assert_exact(index, dict(zip(ids, vectors)), vectors[:3], 10)  # even before there are lists
        index.finish(config, lambda *done: told.append(done))
        assert told[-1] == ("write lists", 2000, 2000) and ("assign to lists", 100, 2000) in told
        index.save()
        inode = next((tmp_path / "index").glob("vectors-b*")).stat().st_ino
        if sys.platform == "linux":
            assert held(made).base._files[0].stream.fileno() and inode == _inode(held(made))  # a link, no copy
        assert list((tmp_path / "scratch").iterdir()) == []
        assert_exact(index, dict(zip(ids, vectors)), clustered(10, seed=1), 10)
    np.testing.assert_array_equal(np.load(next((tmp_path / "index").glob("vectors-b*"))), vectors)
    with open_index(folder=tmp_path / "index") as index:
        assert_exact(index, dict(zip(ids, vectors)), clustered(10, seed=1), 10)


def _inode(lists: DiskLists) -> int:
    import os

    assert lists.base is not None
    return os.fstat(lists.base._files[0].stream.fileno()).st_ino


def test_a_vector_file_gives_back_what_was_added_before_and_after_it_left_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("ragadapt.out_of_core.HELD_BYTES", 30 * 4 * DIM)
    vectors, file = clustered(100), VectorFile(DIM, tmp_path)
    for start in range(0, 100, 7):
        file.add(vectors[start : start + 7])
        file.add(vectors[:0])
        np.testing.assert_array_equal(file.matrix(), vectors[: start + 7])
    over = VectorFile.of(vectors[:20])
    over.add(vectors[20:25])
    np.testing.assert_array_equal(over.matrix(), vectors[:25])
    np.testing.assert_array_equal(vectors, clustered(100))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: object) -> int:
            raise OSError(next(iter(DISK_FULL)), "No space left on device")

        def seek(self, at: int) -> None: ...

    monkeypatch.setattr("ragadapt.out_of_core._unnamed", lambda folder: Full())
    with pytest.raises(StoreError, match="is full"):
        listed(clustered(300), tmp_path)


# Folders


def test_a_save_writes_large_files_once_and_links_them_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clustered(600)
    with listed(vectors, tmp_path / "one") as index:
        index.save()
        large = sorted(path for path in (tmp_path / "one").iterdir() if "-b" in path.name)
        before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in large]
        index.upsert(["x"], vectors[:1])
        hashed: list[str] = []
        from ragadapt.files import record_file

        for module in ("contract", "disk_lists"):
            monkeypatch.setattr(
                f"ragadapt.index.{module}.record_file", lambda file: hashed.append(file.name) or record_file(file)
            )
        index.save()
        assert sorted(hashed) == ["ids-2.json", "labels-2.npy", "payloads-2.jsonl", "vectors-2.npy"]
        assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in large] == before
        assert len(list((tmp_path / "one").iterdir())) == 8
        index.save(tmp_path / "two")
    files = json.loads((tmp_path / "two" / "index.json").read_text(encoding="utf-8"))["files"]
    assert {path.name for path in large} < set(files) and len(files) == 7
    if sys.platform == "linux":
        assert [(tmp_path / "two" / path.name).stat().st_ino for path in large] == [inode for inode, _ in before]
    shutil.rmtree(tmp_path / "one")
    with open_index(folder=tmp_path / "two") as index:
        assert_exact(index, {**dict(zip(named(600), vectors)), "x": vectors[0]}, vectors[:3], 10)


def test_a_folder_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragadapt.out_of_core._link", lambda *_: False)
    vectors = clustered(600)
    with listed(vectors, tmp_path / "one") as index:
        for place in ("one", "two", "one"):
            index.save(tmp_path / place)
    shutil.rmtree(tmp_path / "one")
    with open_index(folder=tmp_path / "two") as index:
        assert_exact(index, dict(zip(named(600), vectors)), vectors[:3], 10)


def test_a_folder_can_be_moved_and_lose_its_name_while_it_is_open(tmp_path: Path) -> None:
    vectors = clustered(600)
    with listed(vectors, tmp_path / "one") as index:
        index.save()
    (tmp_path / "one").rename(tmp_path / "two")
    with open_index(folder=tmp_path / "two") as index:
        shutil.rmtree(tmp_path / "two")
        assert_exact(index, dict(zip(named(600), vectors)), vectors[:3], 10)
        index.save(tmp_path / "three")
    with open_index(folder=tmp_path / "three") as index:
        assert_exact(index, dict(zip(named(600), vectors)), vectors[:3], 10)


def test_faiss_without_mapped_lists_holds_the_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(600)
    with listed(vectors, tmp_path) as index:
        index.save()
        wanted = index.search(vectors[:9], 20)
    monkeypatch.delattr("faiss.OnDiskInvertedLists", raising=False)  # as on Windows
    with open_index(folder=tmp_path) as index:
        for (ids, scores), (best, of) in zip(index.search(vectors[:9], 20), wanted, strict=True):
            assert ids == best
            np.testing.assert_array_equal(scores, of)


@pytest.mark.parametrize("damage", ["truncate", "lengthen", "alter", "remove"])
def test_damaged_files_are_index_corrupt(tmp_path: Path, damage: str) -> None:
    with listed(clustered(600), tmp_path, [{"n": at} for at in range(600)]) as index:
        index.upsert(["x"], clustered(1))
        index.save()
    for path in sorted(tmp_path.iterdir()):
        whole, other = path.read_bytes(), tmp_path.parent / f"{tmp_path.name}-{damage}-{path.name}"
        shutil.copytree(tmp_path, other)
        broken = other / path.name
        if damage == "remove":
            if path.name == "index.json":
                continue
            broken.unlink()
        elif damage == "alter":
            at = len(whole) // 2
            broken.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        else:
            broken.write_bytes(whole[: len(whole) // 2] if damage == "truncate" else whole + b"\0" * 8)
        with pytest.raises(IndexCorrupt), open_index(folder=other) as opened:
            opened.search(clustered(1), 3, {"n": 3})
        if damage == "truncate":  # sizes are looked at before anything is mapped, whoever compares hashes
            with pytest.raises(IndexCorrupt), open_index(folder=other, check=False) as opened:
                opened.payloads(["p1"])


def test_a_save_that_is_cut_short_leaves_the_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(600)
    with listed(vectors, tmp_path) as index:
        index.save()
    for victim in ("contract.record_file", "faiss.write_description", "disk_lists.LooseFile.place"):
        with monkeypatch.context() as patched, open_index(folder=tmp_path) as index:
            index.upsert(["new"], vectors[:1])
            made: Any = index
            made.restructure("disk")

            def interrupted(*_: object) -> None:
                raise KeyboardInterrupt

            patched.setattr(f"ragadapt.index.{victim}", interrupted)
            with pytest.raises(KeyboardInterrupt):
                index.save()
        with open_index(folder=tmp_path) as index:
            assert not index.has(["new"])[0]
            assert_exact(index, dict(zip(named(600), vectors)), vectors[:3], 10)
    with open_index(folder=tmp_path) as index:
        index.save()
    assert len(list(tmp_path.iterdir())) == 8  # nothing of other saves stays


@pytest.mark.slow
def test_a_retriever_over_lists_on_disk_is_fitted_searched_moved_and_refreshed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragadapt.index.disk_lists.LISTED", 5)
    monkeypatch.setattr("ragadapt.out_of_core.HELD_BYTES", 100)
    folder = fit_pages(tmp_path, kind="faiss", structure="disk")
    names = sorted(path.name.split("-")[0] for path in (folder / "index").iterdir())
    assert names == ["ids", "index.json", "labels", "lists", "lists", "payloads", "vectors", "vectors"]
    copy, other = folder.rename(tmp_path / "moved"), tmp_path / "other"
    shutil.copytree(copy, other)
    reindex(other, IndexConfig(kind="exact"))
    with Retriever.open(copy) as retriever, Retriever.open(other) as known:
        for query in ("old stone", "red bridge"):
            for filter in (None, {"lang": "en"}):
                found, wanted = (one.search(query, 9, filter=filter) for one in (retriever, known))
                assert [hit.chunk.id for hit in found] == [hit.chunk.id for hit in wanted]
                np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in wanted], atol=1e-3)
        pages = write_pages(tmp_path / "docs")
        (pages / "page99.md").write_text("# Page 99\n\nThe old stone bridge and the red river.\n", encoding="utf-8")
        placed = placements(monkeypatch)
        assert refresh_documents(copy, [pages]).documents.added == 1 and placed == []
        assert len(retriever.search("old stone", 9, mode="dense")) == 9
    with Retriever.open(copy) as retriever:
        assert "page99.md#0" in {hit.chunk.id for hit in retriever.search("old stone bridge red river", 5)}
    whole = next((copy / "index").glob("lists-*.bin"))
    data = whole.read_bytes()
    whole.write_bytes(data[:-8])
    with pytest.raises(StoreCorrupt):
        Retriever.open(copy).search("old stone")


# Others


def test_another_process_follows_a_save(tmp_path: Path) -> None:
    vectors = clustered(700)
    with listed(vectors[:600], tmp_path) as index:
        index.save()
        other: Any = open_index(folder=tmp_path)
        index.upsert(["x"], 3 * vectors[600:601])
        index.save()
        assert other.follow() and not other.follow()
        assert other.search(vectors[600:601], 1)[0][0] == ["x"]
        index.restructure("disk")
        index.save()
        assert len(list(tmp_path.iterdir())) == 8
        assert other.search(vectors[600:601], 1)[0][0] == ["x"]  # by the files that are gone
        other.upsert(["y"], vectors[:1])
        with pytest.raises(IndexFault, match="Another process saved"):
            other.save()
        other.save(tmp_path / "elsewhere")
        other.close()
    with open_index(folder=tmp_path / "elsewhere") as index:
        assert len(index) == 602 and index.has(["x", "y"]) == [True, True]


def test_threads_search_at_once() -> None:
    vectors = clustered(3000)
    with listed(vectors) as index, ThreadPoolExecutor(4) as pool:
        wanted = [index.search(vectors[at : at + 1], 10)[0][0] for at in range(40)]
        found = pool.map(lambda at: index.search(vectors[at : at + 1], 10)[0][0], range(40))
        assert list(found) == wanted


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no forks here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_process_searches(tmp_path: Path) -> None:
    vectors = clustered(3000)
    with listed(vectors, tmp_path) as index:
        index.save()
    with open_index(folder=tmp_path) as index:
        wanted = index.search(vectors[:2], 10)
        context = multiprocessing.get_context("fork")
        out, into = context.Pipe(duplex=False)
        child = context.Process(target=lambda: into.send(index.search(vectors[:2], 10)))
        child.start()
        assert out.poll(20)
        assert [ids for ids, _ in out.recv()] == [ids for ids, _ in wanted]
        child.join()
