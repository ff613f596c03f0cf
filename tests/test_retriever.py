"""One opened folder under replacement, damage, forks and copies: every answer is of one whole build."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_retriever import fit_pages, write_pages

from ragadapt import files, queries
from ragadapt.collection import FittedPassages
from ragadapt.config import FitConfig
from ragadapt.errors import InvalidInput, StoreCorrupt
from ragadapt.pipeline.fit import fit
from ragadapt.retriever import Retriever
from ragadapt.store.workspace import Workspace, open_store
from ragadapt.values import Chunk


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two builds with the same model: the second has other pages in front, so that every position differs."""
    folder = tmp_path_factory.mktemp("builds")
    first = fit_pages(folder / "one")
    config = FitConfig.build(dict(open_store(first).manifest.configuration))
    pages = write_pages(folder / "two")
    for page in sorted(pages.glob("*.md")):
        (pages / f"a{page.name}").write_text(page.read_text(encoding="utf-8").replace("Page", "Sheet"), "utf-8")
    return first, fit([pages], folder / "second", config).path


@pytest.fixture
def place(builds: tuple[Path, Path], tmp_path: Path) -> Path:
    put(builds[0], tmp_path / "retriever")
    return tmp_path / "retriever"


def put(build: Path, place: Path) -> None:
    """Replace what stands there by a copy of the build, as a fit does."""
    manifest = open_store(build).manifest
    with Workspace.open(place, {"command": "test"}, wait_seconds=30) as work:
        work.commit(manifest, {name: build / name for name in manifest.files})


@pytest.fixture
def replacing(builds: tuple[Path, Path], place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The folder is replaced by the other build again and again; the event ends it, and was set if it failed."""
    monkeypatch.setattr("ragadapt.retriever._LOOK_SECONDS", 0.0)
    stop = threading.Event()

    def work() -> None:
        try:
            for number in itertools.count():
                if stop.is_set():
                    return
                put(builds[number % 2], place)
                stop.wait(0.1)
        except BaseException:
            stop.set()
            raise

    thread = threading.Thread(target=work)
    thread.start()
    yield stop
    stop.set()
    thread.join()


def answers(passages: FittedPassages, labels: Path) -> dict[str, Callable[[], object]]:
    """What each entry point says; equal within one build."""
    retriever = passages.retriever
    ids = ["page01.md#0", "page05.md#1"]
    return {
        "search": lambda: [
            [(hit.chunk, round(hit.score, 4)) for hit in hits] for hits in retriever.search_many(["tree by river"], 60)
        ],
        "filtered": lambda: [hit.chunk.id for hit in retriever.search("red bridge", 60, filter={"lang": "en"})],
        "run": lambda: {
            query: {id: round(score, 4) for id, score in found.items()}
            for query, found in retriever.run({"1": "old stone", "2": "bake bread"}, 20).items()
        },
        "evaluate": lambda: {
            mode: {name: round(value, 4) for name, value in values.items()}
            for mode, values in retriever.evaluate(labels, modes=["hybrid", "lexical"]).items()
        },
        "ids": passages.ids,
        "filtered ids": lambda: sorted(passages.ids({"lang": "de"})),
        "get": lambda: passages.get(ids),
        "vectors": lambda: passages.vectors([ids[0]]).round(4).tolist(),
        "locate": lambda: retriever.locate("old stone", document_id="page02.md").chunk_id,
    }


def test_every_answer_is_of_one_build_while_the_folder_is_replaced(
    builds: tuple[Path, Path], place: Path, tmp_path: Path, replacing: threading.Event
) -> None:
    with Retriever.open(builds[0]) as one:
        chunks = list(one.chunks)[::3]
    labels = write_labels(tmp_path / "labels.jsonl", chunks)
    allowed: dict[str, list[object]] = {}
    for build in builds:
        with Retriever.open(build) as opened:
            for name, ask in answers(FittedPassages(opened), labels).items():
                allowed.setdefault(name, []).append(ask())
    differing = [name for name, (one, other) in allowed.items() if one != other]
    assert {"search", "evaluate", "ids"} <= set(differing)  # else nothing would be tested
    seen: dict[str, set[int]] = {name: set() for name in allowed}
    problems: list[str] = []
    with Retriever.open(place) as retriever:
        asks = answers(FittedPassages(retriever), labels)
        start = time.monotonic()

        def goes_on() -> bool:  # longer where the machine is too busy to meet both builds
            taken = time.monotonic() - start
            return taken < 3 or (len(seen["search"]) < 2 and taken < 60 and not problems)

        def work(name: str) -> None:
            while goes_on():
                try:
                    answer = asks[name]()
                except Exception as error:
                    problems.append(f"{name}: {error!r}")
                    return
                if answer not in allowed[name]:
                    problems.append(f"{name}: an answer of no build")
                    return
                seen[name].add(allowed[name].index(answer))

        threads = [threading.Thread(target=work, args=[name]) for name in asks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []
    assert not replacing.is_set()
    assert seen["search"] == {0, 1}  # both builds were met


def test_what_is_being_read_stays_readable_when_another_call_follows_a_replacement(
    builds: tuple[Path, Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragadapt.retriever._LOOK_SECONDS", 0.0)
    with Retriever.open(place) as retriever:
        ids, chunks, index = retriever.chunks.ids(), retriever.chunks, retriever.searcher.index
        put(builds[1], place)
        retriever.search("old stone")
        assert len(retriever) != len(ids)  # it followed
        assert [chunk.id for chunk in chunks] == ids
        assert index.vectors(ids).shape == (len(ids), 32)


def test_evaluate_measures_the_build_that_its_labels_were_read_with(
    builds: tuple[Path, Path], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragadapt.retriever._LOOK_SECONDS", 0.0)
    with Retriever.open(builds[0]) as one:
        labels = write_labels(tmp_path / "labels.jsonl", list(one.chunks)[::3])
        expected = one.evaluate(labels)
    original = queries.load_labels

    def replaced_meanwhile(*args: Any, **values: Any) -> Any:
        found = original(*args, **values)
        put(builds[1], place)
        return found

    monkeypatch.setattr(queries, "load_labels", replaced_meanwhile)
    with Retriever.open(place) as retriever:
        assert retriever.evaluate(labels) == expected


def test_a_damaged_replacement_is_not_followed(
    builds: tuple[Path, Path], place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Retriever.open(place) as retriever:
        before = retriever.search("old stone", 50)
        put(builds[1], place)
        flip(place / "model" / "model.safetensors", 60_000)
        monkeypatch.setattr("ragadapt.retriever._LOOK_SECONDS", 0.0)
        with caplog.at_level("WARNING"):
            assert retriever.search("old stone", 50) == before
        assert "model.safetensors has xxh3" in caplog.text


def test_the_first_search_waits_for_the_hashes_of_large_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_HASHED_AT_ONCE", 0)
    compare = files._compare

    def late(file: Path, *rest: Any) -> None:
        time.sleep(0.5 if file.name == "chunks.sqlite" else 0)
        compare(file, *rest)

    monkeypatch.setattr(files, "_compare", late)
    store = place / "chunks.sqlite"
    flip(store, store.read_bytes().index(b"stone"), 1)
    with Retriever.open(place) as retriever:  # not known yet
        for _ in range(2):
            with pytest.raises(StoreCorrupt, match=r"chunks\.sqlite has xxh3"):
                retriever.search("old stone")
        with pytest.raises(StoreCorrupt, match=r"chunks\.sqlite has xxh3"):
            FittedPassages(retriever).get(["page01.md#0"])


def test_a_closed_retriever_says_so(place: Path) -> None:
    retriever = Retriever.open(place)
    retriever.close()
    with pytest.raises(InvalidInput, match=r"was closed\. Open it again"):
        retriever.search("old stone", mode="lexical")


def flip(file: Path, at: int, size: int = 4) -> None:
    """Other bytes of the same number there."""
    data = bytearray(file.read_bytes())
    at = min(at, len(data) - size)
    data[at : at + size] = bytes(255 - byte for byte in data[at : at + size])
    file.unlink()  # it may be a hard link
    file.write_bytes(bytes(data))


def write_labels(path: Path, chunks: list[Chunk]) -> Path:
    lines = [{"text": chunk.text[:40], "evidence": [{"source": chunk.source, "quote": chunk.text}]} for chunk in chunks]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path
