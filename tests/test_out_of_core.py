"""Corpora larger than memory: their texts lie in a file, and nothing that is learnt from them is another."""

from __future__ import annotations

import errno
import json
import pickle
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_retriever import write_pages
from tiny_models import write_tiny_model

from ragadapt import out_of_core
from ragadapt.config import EncoderConfig, FitConfig
from ragadapt.doctor.measure import diagnose
from ragadapt.encoder import Encoder
from ragadapt.errors import StoreError
from ragadapt.files import map_npy
from ragadapt.index import open_index
from ragadapt.index.postings import POSTINGS
from ragadapt.out_of_core import Mapped, TextFile, keep_all, temporary_array
from ragadapt.pipeline import prime as prime_module
from ragadapt.pipeline.compare import compare_methods
from ragadapt.pipeline.fit import FitSteps, fit
from ragadapt.pipeline.library import statistics_of_source
from ragadapt.pipeline.queries import Labels
from ragadapt.pipeline.refresh import refresh_documents
from ragadapt.pipeline.stages import gather_vectors
from ragadapt.pipeline.sweep import sweep_choices
from ragadapt.profiling import Clock
from ragadapt.store.chunks import ChunkStore
from ragadapt.store.workspace import Workspace, open_store
from ragadapt.training.processes import Processes
from ragadapt.values import Chunk, Document, no_progress

CHUNK = Chunk("a#0", "a", "Häuser \ud800 家 🏠", ("Page",), 3, 12, {"n": 1}, "a.md", "\n\n", True)
DOCUMENT = Document("a", "one\ntwo", "Title", {"n": 1}, "a.md", ((0, {"page": 1}),), ("a note",), {"top": 3})


@pytest.mark.parametrize("item", [CHUNK, DOCUMENT, replace(CHUNK, text="")], ids=["chunk", "document", "empty"])
def test_what_is_kept_is_the_same(item: Any) -> None:
    kept = TextFile().keep(item)
    assert isinstance(kept, type(item))
    assert kept == item and item == kept and kept == TextFile().keep(kept)
    assert kept != replace(item, text="other")
    assert repr(kept).partition("(")[2] == repr(item).partition("(")[2]
    changed = replace(kept, text="other")
    assert type(changed) is type(item) and changed == replace(item, text="other")
    assert pickle.loads(pickle.dumps(kept)) == item


def test_what_is_equal_to_its_neighbours_keeps_its_type() -> None:
    texts = TextFile()
    values = [1, True, 1.0, "1", None, 0, False, [], {}]
    kept = [texts.keep(replace(CHUNK, metadata={"n": value})) for value in values]
    assert [repr(one.metadata["n"]) for one in kept] == [repr(value) for value in values]


def test_a_kept_text_is_not_in_memory() -> None:
    kept = TextFile().keep(CHUNK)
    assert not hasattr(kept, "__dict__")
    with pytest.raises(AttributeError):
        Chunk.text.__get__(kept)  # type: ignore[attr-defined]  # the plain one's place for it is empty


def test_texts_are_read_by_many_threads() -> None:
    texts = TextFile()
    kept = [texts.keep(replace(CHUNK, text=f"{number} " * (number % 50))) for number in range(2_000)]
    wrong: list[int] = []

    def read(step: int) -> None:
        wrong.extend(at for at in range(0, 2_000, step) if kept[at].text != f"{at} " * (at % 50))

    threads = [threading.Thread(target=read, args=(step,)) for step in (1, 2, 3, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_mapped_sequence_is_made_as_it_is_read() -> None:
    made: list[int] = []

    def double(number: int) -> int:
        made.append(number)
        return 2 * number

    mapped = Mapped(range(10), double)
    assert (len(mapped), mapped[3], mapped[-1], list(mapped[2:4]), made) == (10, 6, 18, [4, 6], [3, 9, 2, 3])
    assert list(mapped) == list(range(0, 20, 2)) and 18 in mapped


def test_a_large_array_lies_in_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(temporary_array((10, 3), np.float32, tmp_path)) is np.ndarray
    monkeypatch.setattr(out_of_core, "HELD_BYTES", 0)
    array = temporary_array((10, 3), np.float32, tmp_path)
    array[:] = 7
    assert isinstance(array, np.memmap) and array.sum() == 210
    assert not list(tmp_path.iterdir())


def test_only_large_corpora_are_kept_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents, chunks = [DOCUMENT], [CHUNK]
    assert keep_all(documents, chunks, tmp_path / "r")(CHUNK) is CHUNK
    assert documents[0] is DOCUMENT and chunks[0] is CHUNK
    monkeypatch.setattr(out_of_core, "HELD_CHARACTERS", 5)
    assert keep_all(documents, chunks, tmp_path / "r")(CHUNK) is not CHUNK
    assert documents[0] is not DOCUMENT and chunks[0] is not CHUNK
    assert (documents, chunks) == ([DOCUMENT], [CHUNK]) and not list(tmp_path.iterdir())


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    texts = TextFile(tmp_path / "retriever")

    class Full:
        def seek(self, at: int) -> None: ...

        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    texts._file = Full()  # type: ignore[assignment]
    with pytest.raises(StoreError, match=r"is full; .* Free some space"):
        texts.keep(CHUNK)
    texts = TextFile()
    texts._file = Full()  # type: ignore[assignment]
    with pytest.raises(StoreError, match="name a folder on another disk with the environment variable TMPDIR"):
        texts.keep(CHUNK)


def test_what_is_written_through_a_mapping_has_its_room_before(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a disk that fills ends the process with SIGBUS."""
    monkeypatch.setattr(out_of_core, "HELD_BYTES", 100)
    (tiny_disk / "ballast").write_bytes(b"x" * 200_000)
    encoder = Encoder.load(EncoderConfig(model="offline"))
    with pytest.raises(OSError, match=r"No space left on device: '.*vectors\.npy\.partial'"):
        encoder.encode_to([f"text {number}" for number in range(200)], tiny_disk / "vectors.npy")
    with pytest.raises(OSError, match="No space left"):
        gather_vectors(
            tiny_disk / "vectors.npy", [replace(CHUNK, text="x")], [], lambda _: np.zeros((1, 100_000), np.float32)
        )
    with pytest.raises(StoreError, match="is full"):
        temporary_array((100_000,), np.float32, tiny_disk)
    assert [path.name for path in tiny_disk.iterdir()] == ["ballast"]
    (tiny_disk / "ballast").unlink()
    assert encoder.encode_to(["text"], tiny_disk / "vectors.npy").shape == (1, 384)
    assert map_npy(tiny_disk / "a.npy", (3, 2)).shape == map_npy(tiny_disk / "a.npy", (3, 2), existing=True).shape


def test_the_embedded_engine_is_not_let_run_into_a_full_disk(
    tiny_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = pytest.importorskip("ragadapt.index.edge")
    with pytest.raises(StoreError, match="is full; "):
        open_index("qdrant-edge", tiny_disk / "index", dim=3)
    with open_index("qdrant-edge", tmp_path / "index", dim=3) as index:
        index.upsert(["a"], np.ones((1, 3)))
        monkeypatch.setattr(edge.shutil, "disk_usage", lambda _: SimpleNamespace(free=40))
        for change in (index.upsert, index.update_vectors):
            with pytest.raises(StoreError, match="index is unchanged"):
                change(["a"], np.full((1, 3), 2.0))
        assert index.vectors(["a"]).tolist() == [[1, 1, 1]]
    assert list(tiny_disk.rglob("*")) == [tiny_disk / "index"]


def files_of(path: Path) -> dict[str, str]:
    """Hashes of what was made of the corpus; the report tells how long it took, and safetensors writes its header in
    any order."""
    return {
        name: record.sha256
        for name, record in open_store(path, verify="full").manifest.files.items()
        if (not name.startswith("report/") or name.startswith("report/questions")) and name != POSTINGS
    }


def write_labels(pages: Path, folder: Path) -> Labels:
    """Questions of words that a page holds."""
    queries, qrels = [], ["query-id\tcorpus-id\tscore"]
    for page in sorted(pages.glob("*.md")):
        words = page.read_text(encoding="utf-8").split()[-30:]
        for turn in range(3):
            id = f"{page.stem}-{turn}"
            queries.append(json.dumps({"_id": id, "text": " ".join(words[turn * 7 : turn * 7 + 5])}))
            qrels.append(f"{id}\t{page.name}\t1")
    (folder / "queries.jsonl").write_text("\n".join(queries), encoding="utf-8")
    (folder / "qrels.tsv").write_text("\n".join(qrels), encoding="utf-8")
    return Labels(folder / "queries.jsonl", folder / "qrels.tsv")


@pytest.mark.parametrize("method", ["none", "lora"])
def test_a_corpus_larger_than_memory_gives_the_same_retriever(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = write_pages(tmp_path / "docs")
    labels = [write_labels(pages, tmp_path)] if method == "lora" else []
    config = FitConfig.build(
        {
            "encoder": {"model": str(write_tiny_model(tmp_path / "base")), "precision": "float32"},
            "chunk": {"max_tokens": 40, "min_tokens": 4},
            "adapter": {"method": method},
            "training": {"epochs": 1},
            "gate": {"max_drift": 2.0},
            "index": {"kind": "exact"},
        }
    )
    held = fit([pages], tmp_path / "held", config, labels=labels)
    monkeypatch.setattr(out_of_core, "HELD_CHARACTERS", 0)
    monkeypatch.setattr(out_of_core, "HELD_BYTES", 0)
    kept = fit([pages], tmp_path / "kept", config, labels=labels)
    assert files_of(kept.path) == files_of(held.path)
    assert (kept.report.interpolation is not None) == (method == "lora")
    outside = {"timings", "profile", "created", "learning"}  # when, and how long it took
    assert kept.report.model_dump(exclude=outside) == held.report.model_dump(exclude=outside)
    (pages / "page00.md").write_text("# Page 0\n\nIt says something else now, about a house and a river.\n")
    for path in (held.path, kept.path):
        refresh_documents(path, [pages])
    assert files_of(kept.path) == files_of(held.path)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every corpus is too large to hold; the kinds of what was put on disk."""
    kinds = set[str]()
    keep = TextFile.keep

    def seen(texts: TextFile, item: Any) -> Any:
        kinds.add("documents" if isinstance(item, Document) else "chunks")
        return keep(texts, item)

    monkeypatch.setattr(TextFile, "keep", seen)
    monkeypatch.setattr(out_of_core, "HELD_CHARACTERS", 0)
    return kinds


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitConfig, list[Labels]]:
    folder = tmp_path_factory.mktemp("corpus")
    pages = write_pages(folder / "docs")
    config = FitConfig.build(
        {
            "encoder": {"model": str(write_tiny_model(folder / "base")), "precision": "float32"},
            "chunk": {"max_tokens": 40, "min_tokens": 4},
            "fusion": {"weight": 0.4},
        }
    )
    return pages, config, [write_labels(pages, folder)]


@pytest.fixture(scope="module")
def held(corpus: tuple[Path, FitConfig, list[Labels]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each entry finds in a corpus that is held."""
    return {name: entry(*corpus, tmp_path_factory.mktemp(name)) for name, entry in ENTRIES.items()}


def diagnosed(pages: Path, config: FitConfig, labels: list[Labels], folder: Path) -> Any:
    found = diagnose([pages], config, labels=labels)
    return found.survey, found.evidence, found.measured, found.sampled, found.quality, found.recommendation


def swept(pages: Path, config: FitConfig, labels: list[Labels], folder: Path) -> Any:
    found = sweep_choices([pages], folder, labels[0].queries, labels[0].qrels, config, chunk_tokens=(16, 40))
    assert found.report.swept is not None
    return found.report.corpus, [(one.value, one.passages, one.tokens) for one in found.report.swept.choices]


def looked_up(pages: Path, config: FitConfig, labels: list[Labels], folder: Path) -> Any:
    found = statistics_of_source([pages], config, Encoder.load(config.encoder))
    return found.passages, found.languages, found.mean.tobytes()


def prepared(pages: Path, config: FitConfig, labels: list[Labels], folder: Path) -> Any:
    with Workspace.open(folder / "primed", {"command": "prime"}) as work:
        steps = prime_module._SourceSteps(work, config, Clock(), Processes(), no_progress, False, {})
        steps.prefix = "s00"
        steps.queries = stopped  # type: ignore[method-assign]
        with pytest.raises(Stopped):
            steps.read("pages", pages, Encoder.load(config.encoder), None)
        with ChunkStore.open(steps.paths["chunks"] / "chunks.sqlite") as store:
            return list(store), np.load(steps.paths["base-vectors"] / "vectors.npy").tobytes()


def compared(pages: Path, config: FitConfig, labels: list[Labels], folder: Path) -> Any:
    found: list[Any] = []

    def prepare(steps: FitSteps, *given: Any) -> Any:
        found.extend(steps.chunks(*given[:3]).passages)
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FitSteps, "prepare", prepare)
        with pytest.raises(Stopped):
            compare_methods([pages], folder, ("lora", "full"), config, labels=labels)
    return found


class Stopped(Exception):
    """What comes after has nothing to do with how the corpus is held."""


def stopped(*given: Any) -> Any:
    raise Stopped


ENTRIES = {"doctor": diagnosed, "sweep": swept, "library": looked_up, "prime": prepared, "compare": compared}


@pytest.mark.parametrize("name", ENTRIES)
def test_whatever_reads_a_corpus_larger_than_memory_holds_none_of_its_texts(
    name: str,
    corpus: tuple[Path, FitConfig, list[Labels]],
    held: dict[str, Any],
    on_disk: set[str],
    tmp_path: Path,
) -> None:
    assert ENTRIES[name](*corpus, tmp_path) == held[name]
    assert on_disk == {"documents", "chunks"}


def test_an_interrupted_fit_of_a_large_corpus_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ragadapt.pipeline.fit as module

    pages = write_pages(tmp_path / "docs")
    config = FitConfig.build(
        {
            "encoder": {"model": str(write_tiny_model(tmp_path / "base")), "precision": "float32"},
            "chunk": {"max_tokens": 40, "min_tokens": 4}, "adapter": {"method": "none"}, "index": {"kind": "exact"},
        }
    )  # fmt: skip
    held = fit([pages], tmp_path / "held", config)
    monkeypatch.setattr(out_of_core, "HELD_CHARACTERS", 0)

    def interrupted(*given: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "build_lexical", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit([pages], tmp_path / "kept", config)
    kept = fit([pages], tmp_path / "kept", config)
    assert {"chunks", "base-vectors"} <= set(kept.reused)
    assert files_of(kept.path) == files_of(held.path)
