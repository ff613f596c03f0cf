"""Every index engine against the explicit inner product."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragadapt.errors import (
    DimensionMismatch,
    FingerprintMismatch,
    FormatTooNew,
    IndexCorrupt,
    IndexFault,
    InvalidInput,
)
from ragadapt.index import VectorIndex, exact_index, open_index

DIM = 8
ENGINES: dict[str, dict[str, Any]] = {
    "exact": {"kind": "exact"},
    "faiss": {"kind": "faiss"},
    "faiss-hnsw": {"kind": "faiss", "structure": "hnsw"},
    "faiss-ivf": {"kind": "faiss", "structure": "ivf"},
    "faiss-disk": {"kind": "faiss", "structure": "disk"},
    "qdrant-memory": {"kind": "qdrant", "url": ":memory:"},
    "qdrant-edge": {"kind": "qdrant-edge"},
}
ON_DISK = {
    "exact": {"kind": "exact"},
    "faiss": {"kind": "faiss"},
    "faiss-hnsw": {"kind": "faiss", "structure": "hnsw"},
    "faiss-ivf": {"kind": "faiss", "structure": "ivf"},
    "faiss-disk": {"kind": "faiss", "structure": "disk"},
    "qdrant-path": {"kind": "qdrant"},
    "qdrant-edge": {"kind": "qdrant-edge"},
}


@pytest.fixture(params=ENGINES)
def index(request: pytest.FixtureRequest) -> Iterator[VectorIndex]:
    with open_index(**ENGINES[request.param], dim=DIM) as opened:
        yield opened


def random_vectors(n: int, seed: int = 0) -> np.ndarray:
    """Lengths differ on purpose: an engine that normalises would be seen."""
    random = np.random.default_rng(seed)
    return (random.standard_normal((n, DIM)) * random.uniform(0.1, 5, (n, 1))).astype(np.float32)


def explicit_search(stored: dict[str, np.ndarray], query: np.ndarray, k: int) -> list[tuple[float, str]]:
    scores = [(-float(vector @ query), id) for id, vector in stored.items()]
    return [(-score, id) for score, id in sorted(scores)[:k]]


def assert_searches_like(index: VectorIndex, stored: dict[str, np.ndarray], queries: np.ndarray, k: int) -> None:
    results = index.search(queries, k)
    assert len(results) == len(queries)
    for query, (ids, scores) in zip(queries, results):
        expected = explicit_search(stored, query, k)
        assert scores.dtype == np.float32 and len(ids) == len(scores) == len(expected)
        np.testing.assert_allclose(scores, [score for score, _ in expected], rtol=1e-5, atol=1e-5)
        for id, score in zip(ids, scores):  # each score is that of its own vector
            np.testing.assert_allclose(score, stored[id] @ query, rtol=1e-5, atol=1e-5)
        assert ids == [id for _, id in expected]


def test_search_equals_the_explicit_inner_products(index: VectorIndex) -> None:
    vectors, queries = random_vectors(300), random_vectors(20, seed=1)
    ids = [f"doc/{i}#é" for i in range(300)]
    index.upsert(ids, vectors)
    assert len(index) == 300 and sorted(index.ids()) == sorted(ids)
    for k in (1, 10, 300):
        assert_searches_like(index, dict(zip(ids, vectors)), queries, k)


def test_k_beyond_the_size_returns_everything(index: VectorIndex) -> None:
    vectors = random_vectors(5)
    index.upsert(list("abcde"), vectors)
    assert_searches_like(index, dict(zip("abcde", vectors)), random_vectors(2, seed=3), 50)


def test_an_empty_index_finds_nothing(index: VectorIndex) -> None:
    assert len(index) == 0 and index.ids() == [] and index.has(["a"]) == [False]
    for ids, scores in index.search(random_vectors(2), 5):
        assert ids == [] and scores.shape == (0,)
    assert index.search(np.empty((0, DIM)), 5) == []
    assert index.vectors([]).shape == (0, DIM) and index.payloads([]) == [] and list(index.batches()) == []
    index.delete(["a"])
    index.delete([])
    index.upsert([], np.empty((0, DIM)))
    index.upsert([], [])
    index.update_vectors([], [])
    assert len(index) == 0


def test_upsert_replaces_and_of_equal_ids_the_last_wins(index: VectorIndex) -> None:
    vectors = random_vectors(6)
    index.upsert(["a", "b", "a"], vectors[:3], [{"n": 1}, {"n": 2}, {"n": 3}])
    assert len(index) == 2
    np.testing.assert_array_equal(index.vectors(["b", "a"]), vectors[[1, 2]])
    assert index.payloads(["a", "b"]) == [{"n": 3}, {"n": 2}]
    index.upsert(["b", "c"], vectors[3:5])
    assert len(index) == 3 and index.payloads(["b"]) == [{}]  # nothing of the old one is left
    stored = {"a": vectors[2], "b": vectors[3], "c": vectors[4]}
    assert_searches_like(index, stored, random_vectors(4, seed=5), 3)


def test_update_vectors_leaves_metadata_alone_and_needs_ids_that_are_there(index: VectorIndex) -> None:
    vectors = random_vectors(4)
    index.upsert(["a", "b"], vectors[:2], [{"n": 1}, {"n": 2}])
    index.update_vectors(["b"], vectors[2:3])
    assert index.payloads(["a", "b"]) == [{"n": 1}, {"n": 2}]
    assert index.search(vectors[:1], 5, {"n": 2})[0][0] == ["b"]
    stored = {"a": vectors[0], "b": vectors[2]}
    assert_searches_like(index, stored, random_vectors(4, seed=5), 3)
    with pytest.raises(InvalidInput, match="holds no 'zz'"):
        index.update_vectors(["a", "zz"], vectors[2:4])
    np.testing.assert_array_equal(index.vectors(["a"]), vectors[:1])


def test_a_deleted_id_can_come_back_with_another_vector(index: VectorIndex) -> None:
    vectors = random_vectors(10)
    ids = [str(i) for i in range(8)]
    index.upsert(ids, vectors[:8])
    index.delete(["3", "0", "missing", "3"])
    stored = {id: vector for id, vector in zip(ids, vectors) if id not in "30"}
    assert len(index) == 6 and index.has(["3", "1"]) == [False, True]
    assert_searches_like(index, stored, random_vectors(4, seed=5), 8)
    index.upsert(["3", "new"], vectors[8:])
    stored |= {"3": vectors[8], "new": vectors[9]}
    assert_searches_like(index, stored, random_vectors(4, seed=5), 8)
    index.delete(index.ids())
    assert len(index) == 0 and index.search(vectors[:1], 3)[0][0] == []
    index.upsert(["3"], vectors[:1])
    assert_searches_like(index, {"3": vectors[0]}, vectors[:2], 3)


def test_vectors_and_batches_give_back_what_was_stored(index: VectorIndex) -> None:
    vectors = random_vectors(25)
    ids = [str(i) for i in range(25)]
    index.upsert(ids, vectors)
    np.testing.assert_array_equal(index.vectors(["7", "3", "7"]), vectors[[7, 3, 7]])
    seen = [(id, vector.tolist()) for batch, rows in index.batches(10) for id, vector in zip(batch, rows, strict=True)]
    assert sorted(seen) == sorted((id, vector.tolist()) for id, vector in zip(ids, vectors))
    with pytest.raises(InvalidInput, match="holds no 'x'"):
        index.vectors(["1", "x"])
    with pytest.raises(InvalidInput, match="holds no 'x'"):
        index.payloads(["x"])


def test_equal_scores_come_in_the_order_of_ids(index: VectorIndex) -> None:
    same = np.ones((3, DIM), np.float32)
    index.upsert(["z", "a", "m"], same)
    assert index.search(same[:1], 3)[0][0] == ["a", "m", "z"]


def test_bad_vectors_are_refused_and_change_nothing(index: VectorIndex) -> None:
    index.upsert(["a"], np.ones((1, DIM)))
    for bad in (np.nan, np.inf):
        wrong = np.ones((2, DIM))
        wrong[1, 3] = bad
        with pytest.raises(InvalidInput, match="Row 1 of the vectors"):
            index.upsert(["a", "b"], wrong)
        with pytest.raises(InvalidInput, match="Row 1 of the query vectors"):
            index.search(wrong, 1)
        with pytest.raises(InvalidInput, match="Row 1"):
            index.update_vectors(["a", "a"], wrong)
    with pytest.raises(DimensionMismatch, match=r"holds 8-d vectors.* 5-d"):
        index.upsert(["b"], np.ones((1, 5)))
    with pytest.raises(DimensionMismatch, match=r"holds 8-d vectors.* 9-d"):
        index.search(np.ones((1, 9)), 1)
    with pytest.raises(InvalidInput, match=r"shape \(8,\)"):
        index.search(np.ones(DIM), 1)
    with pytest.raises(InvalidInput, match="2 vectors for 1 ids"):
        index.upsert(["b"], np.ones((2, DIM)))
    with pytest.raises(InvalidInput, match="one string"):
        index.upsert("b", np.ones((1, DIM)))
    with pytest.raises(InvalidInput, match="not a string"):
        index.upsert([7], np.ones((1, DIM)))  # type: ignore[list-item]
    with pytest.raises(InvalidInput, match="not numbers"):
        index.upsert(["b"], [["x"] * DIM])
    with pytest.raises(InvalidInput, match="metadata of 'b'"):
        index.upsert(["b"], np.ones((1, DIM)), [{"when": object()}])
    with pytest.raises(InvalidInput, match="metadata of 'b'"):
        index.upsert(["b"], np.ones((1, DIM)), [{"x": float("nan")}])
    for k in (0, -1, True, 1.5):
        with pytest.raises(InvalidInput, match="k = "):
            index.search(np.ones((1, DIM)), k)  # type: ignore[arg-type]
    assert index.ids() == ["a"]
    np.testing.assert_array_equal(index.vectors(["a"]), np.ones((1, DIM)))


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["upsert", "upsert", "delete", "update"]),
            st.lists(st.integers(0, 9), min_size=1, max_size=6),
            st.integers(0, 1000),
        ),
        max_size=8,
    )
)
def test_any_history_of_changes_ends_in_what_a_dict_would_hold(
    engine: str, steps: list[tuple[str, list[int], int]]
) -> None:
    stored: dict[str, np.ndarray] = {}
    with open_index(**ENGINES[engine], dim=DIM) as index:
        for action, numbers, seed in steps:
            ids = [str(number) for number in numbers]
            vectors = random_vectors(len(ids), seed)
            if action == "delete":
                index.delete(ids)
                for id in ids:
                    stored.pop(id, None)
            elif action == "upsert":
                index.upsert(ids, vectors)
                stored.update(zip(ids, vectors))
            elif set(ids) <= set(stored):
                index.update_vectors(ids, vectors)
                stored.update(zip(ids, vectors))
        assert sorted(index.ids()) == sorted(stored) and len(index) == len(stored)
        assert_searches_like(index, stored, random_vectors(2, seed=7), 12)
        if stored:
            np.testing.assert_array_equal(index.vectors(list(stored)), list(stored.values()))


# On disk


@pytest.mark.parametrize("engine", ON_DISK)
def test_a_saved_index_opens_with_the_same_answers(tmp_path: Path, engine: str) -> None:
    vectors, queries = random_vectors(40), random_vectors(3, seed=1)
    ids = [f"d{i}" for i in range(40)]
    with open_index(**ON_DISK[engine], folder=tmp_path / "index", dim=DIM, fingerprint="abc") as index:
        index.upsert(ids, vectors, [{"even": i % 2 == 0, "ü": "ß"} for i in range(40)])
        index.delete(["d5"])
        index.update_vectors(["d1"], vectors[:1])
        index.save()
    stored = dict(zip(ids, vectors)) | {"d1": vectors[0]}
    del stored["d5"]
    with open_index(folder=tmp_path / "index", fingerprint="abc") as index:  # the folder knows its kind
        assert index.kind == ON_DISK[engine]["kind"] and index.dim == DIM and index.fingerprint == "abc"
        assert_searches_like(index, stored, queries, 10)
        assert set(index.ids({"even": True})) == {f"d{i}" for i in range(0, 40, 2)}
        assert index.payloads(["d2"]) == [{"even": True, "ü": "ß"}]
        index.upsert(["d2", "x"], vectors[:2])  # and goes on
        index.delete(["d7"])
        index.save()
    stored |= {"d2": vectors[0], "x": vectors[1]}
    del stored["d7"]
    with open_index(folder=tmp_path / "index", dim=DIM) as index:
        assert_searches_like(index, stored, queries, 10)
        assert index.ids({"even": True}).count("d2") == 0


@pytest.mark.parametrize("engine", ["exact", "faiss", "faiss-hnsw", "faiss-ivf", "faiss-disk", "qdrant-edge"])
def test_an_index_can_be_saved_to_another_folder(tmp_path: Path, engine: str) -> None:
    vectors = random_vectors(10)
    with open_index(**ON_DISK[engine], dim=DIM) as index:
        index.upsert([str(i) for i in range(10)], vectors)
        index.save(tmp_path / "copy")
        index.delete(["0"])
    with open_index(folder=tmp_path / "copy") as copy:
        assert_searches_like(copy, {str(i): vector for i, vector in enumerate(vectors)}, vectors[:2], 5)


@pytest.mark.parametrize("engine", ON_DISK)
def test_an_empty_index_survives_saving(tmp_path: Path, engine: str) -> None:
    with open_index(**ON_DISK[engine], folder=tmp_path, dim=DIM) as index:
        index.save()
    with open_index(folder=tmp_path) as index:
        assert len(index) == 0
        index.upsert(["a"], np.ones((1, DIM)))
        assert index.search(np.ones((1, DIM)), 3)[0][0] == ["a"]


@pytest.mark.parametrize("engine", ON_DISK)
def test_another_encoder_or_width_is_refused_with_the_next_step(tmp_path: Path, engine: str) -> None:
    with open_index(**ON_DISK[engine], folder=tmp_path, dim=DIM, fingerprint="first") as index:
        index.save()
    with pytest.raises(FingerprintMismatch, match=r"first.*second.*ragadapt index RETRIEVER --rebuild"):
        open_index(folder=tmp_path, fingerprint="second")
    with pytest.raises(DimensionMismatch, match=r"8-d.*16-d.*--rebuild"):
        open_index(folder=tmp_path, dim=16)
    open_index(folder=tmp_path, dim=DIM, fingerprint="first").close()  # and the refusal left nothing locked


@pytest.mark.parametrize("engine", ["exact", "faiss", "faiss-disk"])
def test_a_save_that_is_interrupted_leaves_the_old_index_whole(
    tmp_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_index(**ON_DISK[engine], folder=tmp_path, dim=DIM) as index:
        index.upsert(["a"], np.ones((1, DIM)))
        index.save()
        index.upsert(["b"], np.ones((1, DIM)))

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(f"ragadapt.index.{ON_DISK[engine]['kind']}.write_description", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index.save()
    monkeypatch.undo()
    with open_index(folder=tmp_path) as index:
        assert index.ids() == ["a"]
        index.save()
    assert len(list(tmp_path.iterdir())) == (4 if engine == "exact" else 5)  # nothing of other saves stays


@pytest.mark.parametrize("engine", ["exact", "faiss", "faiss-disk"])
@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_damaged_files_are_index_corrupt(tmp_path: Path, engine: str, damage: str) -> None:
    with open_index(**ON_DISK[engine], folder=tmp_path, dim=DIM) as index:
        index.upsert([str(i) for i in range(50)], random_vectors(50), [{"n": i} for i in range(50)])
        index.save()
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        if damage == "truncate":
            path.write_bytes(whole[: len(whole) // 2])
        elif path.name == "index.json":
            continue
        else:
            path.unlink()
        with pytest.raises(IndexCorrupt, match=r"--rebuild|cannot be read"), open_index(folder=tmp_path) as opened:
            opened.search(random_vectors(1), 3, {"n": 3})  # metadata are read at first use
        path.write_bytes(whole)
    open_index(folder=tmp_path).close()


@pytest.mark.parametrize("name", ["edge_config.json", "segment.json"])
def test_a_damaged_embedded_index_is_index_corrupt(tmp_path: Path, name: str) -> None:
    with open_index("qdrant-edge", tmp_path, dim=DIM) as index:
        index.upsert(["a"], np.ones((1, DIM)))
    for path in tmp_path.rglob(name):
        path.write_text("{")
    with pytest.raises(IndexCorrupt, match="--rebuild"):
        open_index(folder=tmp_path)


def test_files_that_belong_to_two_indexes_are_index_corrupt(tmp_path: Path) -> None:
    for name, count in (("one", 3), ("two", 4)):
        with open_index("faiss", tmp_path / name, dim=DIM) as index:
            index.upsert([str(i) for i in range(count)], random_vectors(count))
            index.save()
    (tmp_path / "one" / "ids-1.json").write_bytes((tmp_path / "two" / "ids-1.json").read_bytes())
    with pytest.raises(IndexCorrupt, match=r"ids-1\.json has xxh3"):
        open_index(folder=tmp_path / "one")
    description = json.loads((tmp_path / "one" / "index.json").read_text(encoding="utf-8"))
    for name in ("files", "checksum"):  # as earlier versions wrote it
        del description[name]
    (tmp_path / "one" / "index.json").write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(IndexCorrupt, match="4 ids for 3 vectors"):
        open_index(folder=tmp_path / "one")


def test_a_newer_format_is_told_apart_from_damage(tmp_path: Path) -> None:
    open_index("exact", tmp_path, dim=DIM).save()
    description = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(description | {"format": 99}))
    with pytest.raises(FormatTooNew, match="99"):
        open_index(folder=tmp_path)


@pytest.mark.parametrize("engine", ["qdrant-path", "qdrant-edge"])
def test_an_embedded_index_that_is_open_elsewhere_says_so(tmp_path: Path, engine: str) -> None:
    with (
        open_index(**ON_DISK[engine], folder=tmp_path, dim=DIM),
        pytest.raises(IndexFault, match="open elsewhere"),
    ):
        open_index(folder=tmp_path)
    open_index(folder=tmp_path).close()


def test_an_embedded_index_needs_no_save(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = (
        "import sys, os, numpy as np; from ragadapt.index import open_index\n"
        "index = open_index('qdrant-edge', sys.argv[1], dim=8)\n"
        "index.upsert(['a', 'b'], np.eye(2, 8)); index.update_vectors(['b'], 3 * np.eye(1, 8)); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path / "i")], check=False).returncode == 9
    with open_index(folder=tmp_path / "i") as index:
        assert_searches_like(index, {"a": np.eye(1, 8)[0], "b": 3 * np.eye(1, 8)[0]}, random_vectors(2), 2)


def test_opening_says_what_is_missing_or_wrong(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="name its kind: exact, faiss"):
        open_index(folder=tmp_path)
    with pytest.raises(InvalidInput, match="'annoy' is not known"):
        open_index("annoy", dim=3)
    for kind in ("exact", "faiss", "qdrant-edge"):
        with pytest.raises(InvalidInput, match="dim"):
            open_index(kind)
    with pytest.raises(InvalidInput, match="only qdrant has a server"):
        open_index("faiss", dim=3, url="http://localhost")
    open_index("exact", tmp_path, dim=3).save()
    with pytest.raises(InvalidInput, match="holds an index of kind 'exact'"):
        open_index("faiss", tmp_path, dim=3)
    with pytest.raises(InvalidInput, match="say which folder"):
        open_index("exact", dim=3).save()
    with pytest.raises(InvalidInput, match="structure is 'lsh'"):
        open_index("faiss", dim=3, structure="lsh")


# Exact


def test_an_exact_index_over_a_mapped_file_copies_nothing_and_changes_nothing(tmp_path: Path) -> None:
    vectors = random_vectors(20)
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r+")
    index = exact_index([str(i) for i in range(20)], mapped)
    assert np.shares_memory(index._matrix, mapped)
    index.update_vectors(["3"], np.ones((1, DIM)))
    index.upsert(["20"], np.ones((1, DIM)))
    np.testing.assert_array_equal(mapped, vectors)
    expected = {str(i): v for i, v in enumerate(vectors)} | {"3": np.ones(DIM), "20": np.ones(DIM)}
    assert_searches_like(index, expected, random_vectors(2, seed=2), 21)
    with pytest.raises(InvalidInput, match="20 vectors for 2 ids"):
        exact_index(["a", "a"], vectors)


# FAISS


@pytest.mark.parametrize("structure", ["flat", "hnsw", "ivf", "disk"])
def test_restructuring_keeps_vectors_and_metadata(structure: str) -> None:
    vectors = random_vectors(500)
    ids = [str(i) for i in range(500)]
    with open_index("faiss", dim=DIM) as index:
        index.upsert(ids, vectors, [{"n": i} for i in range(500)])
        index.delete(["0"])
        told: list[tuple[str, int, int]] = []
        index.restructure(structure, progress=lambda *done: told.append(done))  # type: ignore[attr-defined]
        assert told == ([] if structure == "flat" else [(f"build {structure}", 499, 499)])
        stored = dict(zip(ids[1:], vectors[1:]))
        np.testing.assert_array_equal(index.vectors(ids[1:]), vectors[1:])
        assert index.search(vectors[:1], 3, {"n": 77})[0][0] == ["77"]
        if structure != "ivf":  # which looks into some of its lists only
            assert_searches_like(index, stored, random_vectors(5, seed=4), 10)


def test_a_graph_full_of_leftovers_is_built_anew() -> None:
    vectors = random_vectors(1500)
    ids = [str(i) for i in range(1500)]
    with open_index("faiss", dim=DIM, structure="hnsw") as index:
        index.upsert(ids, vectors)
        index.delete(ids[:900])
        assert index.tombstones == 900  # type: ignore[attr-defined]
        assert_searches_like(index, dict(zip(ids[900:], vectors[900:])), random_vectors(3, seed=1), 10)
        index.delete(ids[900:1100])
        assert index.tombstones == 0 and len(index) == 400  # type: ignore[attr-defined]
        assert_searches_like(index, dict(zip(ids[1100:], vectors[1100:])), random_vectors(3, seed=1), 10)


def test_the_structure_follows_the_size() -> None:
    from ragadapt.index.faiss import choose_structure

    assert [choose_structure(n) for n in (0, 999_999, 1_000_000, 10_000_000)] == ["flat", "flat", "disk", "disk"]


# Qdrant


def test_a_local_qdrant_folder_that_holds_other_pickles_is_not_opened(tmp_path: Path) -> None:
    import pickle
    import sqlite3

    with open_index("qdrant", tmp_path / "index", dim=DIM) as index:
        index.upsert(["a"], np.ones((1, DIM)))

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    with sqlite3.connect(tmp_path / "index/collection/ragadapt/storage.sqlite") as storage:
        storage.execute("INSERT INTO points VALUES ('x', ?)", (pickle.dumps(Trap()),))
    storage.close()
    with pytest.raises(IndexCorrupt, match="not opened"):
        open_index(folder=tmp_path / "index")
    assert not (tmp_path / "sprung").exists()


def test_a_server_that_does_not_answer_is_named_without_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from ragadapt.errors import IndexUnreachable, InvalidConfiguration

    monkeypatch.setattr("ragadapt.index.qdrant.time.sleep", lambda seconds: None)
    monkeypatch.setenv("QDRANT_API_KEY", "sesame")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    with pytest.raises(IndexUnreachable, match=f"http://127.0.0.1:{port}/ does not answer after 4 tries") as caught:
        open_index("qdrant", url=url, dim=DIM)
    assert "sesame" not in str(caught.value)
    for with_secret in (f"http://user:secret@127.0.0.1:{port}/", f"{url}?api-key=secret"):
        with pytest.raises(InvalidConfiguration, match="QDRANT_API_KEY") as refused:
            open_index("qdrant", url=with_secret, dim=DIM)
        assert "secret@" not in str(refused.value) and "=secret" not in str(refused.value)
    with pytest.raises(InvalidInput, match="no address of a server"):
        open_index("qdrant", url="localhost:6333", dim=DIM)


def test_a_server_that_refuses_the_key_says_which_variable_to_set(http_server: Any) -> None:
    from ragadapt.errors import IndexUnreachable

    url = http_server([(401, b'{"status":{"error":"bad key"}}')])
    with pytest.raises(IndexUnreachable, match=r"refused access \(401\).*QDRANT_API_KEY"):
        open_index("qdrant", url=url, dim=DIM)


def test_a_busy_server_is_asked_again(http_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragadapt.index.qdrant.time.sleep", lambda seconds: None)
    exists = b'{"time":0,"status":"ok","result":{"exists":true}}'
    info = {
        "status": "green", "optimizer_status": "ok", "segments_count": 1, "payload_schema": {},
        "config": {
            "params": {"vectors": {"passage": {"size": 8, "distance": "Dot"}}},
            "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
            "optimizer_config": {
                "deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0,
                "flush_interval_sec": 5,
            },
            "metadata": {"ragadapt": {"format": 1, "fingerprint": "abc"}},
        },
    }  # fmt: skip
    answer = json.dumps({"time": 0, "status": "ok", "result": info}).encode()
    url = http_server([(503, b"busy"), (200, exists), (429, b"slow down"), (200, answer)])
    with open_index("qdrant", url=url) as index:
        assert (index.dim, index.fingerprint) == (8, "abc")


@pytest.fixture
def http_server() -> Iterator[Any]:
    """A function that serves the given (status, body) answers in turn and returns its URL."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    servers = []

    def serve(answers: list[tuple[int, bytes]]) -> str:
        left = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = left.pop(0)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None: ...

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_collection_with_another_distance_is_refused(tmp_path: Path) -> None:
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(tmp_path))
    params = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
    client.create_collection("ragadapt", vectors_config=params)
    client.close()
    with pytest.raises(IndexFault, match="Cosine"):
        open_index("qdrant", tmp_path)


def test_local_qdrant_can_be_used_from_several_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with open_index("qdrant", url=":memory:", dim=DIM) as index, ThreadPoolExecutor(4) as pool:
        vectors = random_vectors(40)
        list(pool.map(lambda i: index.upsert([str(i)], vectors[i : i + 1]), range(40)))
        results = list(pool.map(lambda i: index.search(vectors[i : i + 1], 5)[0], range(40)))
        stored = {str(i): vector for i, vector in enumerate(vectors)}
        for i, (ids, _) in enumerate(results):
            assert ids == [id for _, id in explicit_search(stored, vectors[i], 5)]


@pytest.mark.requires_server
def test_a_running_server_gives_the_same_answers() -> None:
    import os
    import uuid

    url = os.environ["RAGADAPT_QDRANT_URL"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index = open_index("qdrant", url=url, collection=f"test-{uuid.uuid4()}", dim=DIM, fingerprint="abc", exact=True)
    try:
        vectors = random_vectors(300)
        index.upsert([str(i) for i in range(300)], vectors, [{"n": i} for i in range(300)])
        assert_searches_like(index, {str(i): v for i, v in enumerate(vectors)}, random_vectors(5, seed=1), 20)
        assert sorted(index.ids({"n": {"$lt": 3}})) == ["0", "1", "2"]
    finally:
        index.client.delete_collection(index.collection)  # type: ignore[attr-defined]
        index.close()


@pytest.mark.parametrize("structure", ["flat", "hnsw", "ivf", "disk"])
@pytest.mark.parametrize("few", [1, 10, 60])
def test_a_filter_that_passes_few_gives_them_all_whatever_the_structure(structure: str, few: int) -> None:
    """10 of 4,000, scattered: lists and graphs alone lead to one or two of them."""
    vectors, queries = random_vectors(4000, 1), random_vectors(20, 2)
    ids = [f"p{at}" for at in range(4000)]
    payloads = [{"few": at % (4000 // few) == 7 % (4000 // few), "half": at % 2 == 0} for at in range(4000)]
    with open_index("faiss", dim=DIM) as index, open_index("exact", dim=DIM) as exact:
        index.upsert(ids, vectors, payloads)
        index.restructure(structure)  # type: ignore[attr-defined]
        exact.upsert(ids, vectors, payloads)
        for k in (5, 100):
            wanted = exact.search(queries, k, {"few": True})
            for (found, scores), (best, of) in zip(index.search(queries, k, {"few": True}), wanted, strict=True):
                assert found == best and len(found) == min(k, len(exact.ids({"few": True})))
                np.testing.assert_allclose(scores, of, atol=1e-4)
        index.delete(ids[:400])
        exact.delete(ids[:400])
        wanted = exact.search(queries, 5, {"few": True})
        assert [found for found, _ in index.search(queries, 5, {"few": True})] == [best for best, _ in wanted]
        assert all(len(found) == 1500 for found, _ in index.search(queries, 1500, {"half": True}))
