"""FAISS: flat (exact), HNSW or IVF in memory and saved as a native index file, or lists that are mapped from disk.

| structure | for         | search                        | change of a vector              | memory per vector |
|-----------|-------------|-------------------------------|---------------------------------|-------------------|
| flat      | < 1,000,000 | exact                         | in place                        | 4·dim bytes       |
| disk      | ≥ 1,000,000 | approximate, scores are exact | tombstone left, new one beside  | 8 bytes           |
| hnsw      | if named    | approximate                   | tombstone left, new one added   | 4·dim + 280 bytes |
| ivf       | if named    | approximate                   | removed, then added             | 4·dim + 16 bytes  |

Flat scans everything, so its time grows with the size; a graph of many millions takes hours to build, and has to fit
into memory. `choose_structure` applies the limit. On disk lie 5·dim + 8 bytes per vector (see disk_lists).
Fill a flat index and call `restructure` once: lists are placed by the vectors that are there first. A build does so,
one for `disk` fills a file instead.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragadapt.config import IndexConfig
from ragadapt.errors import IndexCorrupt, InvalidInput, MissingExtra
from ragadapt.files import FileRecord
from ragadapt.index.contract import (
    REBUILD,
    Floats,
    Payload,
    by_id_where_equal,
    check_dim,
    check_fingerprint,
    check_ids,
    check_k,
    check_vectors,
    file_hashes,
    new_generation,
    prepare_upsert,
    read_description,
    remove_other_generations,
    write_description,
)
from ragadapt.index.disk_lists import BASE_FILES, DiskLists, Lists
from ragadapt.index.filters import Filter
from ragadapt.index.matrix import search_matrix
from ragadapt.index.rows import Kept, Rows
from ragadapt.lexical.ranking import Ranking, best_first
from ragadapt.threads import SharedLock
from ragadapt.values import Progress, no_progress

log = logging.getLogger(__name__)

try:
    faiss: Any = importlib.import_module("faiss")  # its own type stubs lack half of what is used here
except ImportError as error:
    raise MissingExtra("The FAISS index", "faiss") from error

FaissStructure = Literal["flat", "disk", "hnsw", "ivf"]
FLAT_LIMIT = 1_000_000
# PEFA's authors search with these; efSearch grows with k.
HNSW_M, HNSW_EF_CONSTRUCTION, HNSW_EF_SEARCH = 32, 500, 300
TOMBSTONES = 0.2  # share of left-overs at which a graph or lists on disk are built anew
BESIDE = 0.05  # share of vectors beside lists on disk, which every search scores, at which they come into lists
IVF_TRAINING_PER_LIST = 64  # faiss warns below 39
IVF_PROBE_SHARE = 1 / 16  # of the lists, searched per query
SCANNED = 16_384  # rows that are scored at once where a filter passes few
SCANNED_SHARE = 1 / 64  # on disk: of all rows; four bytes a number are read, of a sixteenth of the rows one
_MOVED = {"flat": 65_536, "disk": 16_384, "hnsw": 4_096, "ivf": 65_536}  # vectors between two reports
_FILES = ("vectors-{}.faiss", "ids-{}.json", "labels-{}.npy", "payloads-{}.jsonl")
_BESIDE = "vectors-{}.npy"  # of what lies beside lists on disk, instead of the first


def choose_structure(count: int) -> FaissStructure:
    """The structure for this many vectors, by the limit of the module's docstring."""
    return "flat" if count < FLAT_LIMIT else "disk"


class FaissIndex(Kept):
    """Vectors under int64 labels in FAISS, labels and ids side by side in rows.

    Labels only ever grow, so the labels of the rows are ascending and a row is found by bisection.
    """

    kind = "faiss"
    options = frozenset({"structure"})

    def __init__(
        self,
        dim: int,
        fingerprint: str | None = None,
        folder: Path | None = None,
        *,
        structure: FaissStructure = "flat",
        device: str = "auto",
        scratch: Path | None = None,
        earlier: Path | None = None,
    ) -> None:
        """scratch: where a build on disk has its files meanwhile; None = in the folder. earlier: the folder of an index
        with much the same vectors, where lists on disk may lie around the same places."""
        if structure not in get_args(FaissStructure):
            raise InvalidInput(f"structure is {structure!r}; use one of: {', '.join(get_args(FaissStructure))}.")
        self.dim = dim
        self.fingerprint = fingerprint
        self.structure = structure
        self._device = device
        self._folder = folder
        self._rows = Rows()
        self._labels: NDArray[np.int64] = np.empty(0, np.int64)  # (n,) ascending, of the rows
        self._room = self._labels
        self._next = 0
        self._scratch = scratch
        self._earlier = earlier
        self._engine: Any = self._new_engine(structure, 0)
        self._on_gpu: Any = None
        self._live: Any = None  # selector of all rows, where there are tombstones
        self._lock = SharedLock()
        self._gpu = threading.Lock()

    @classmethod
    def building(
        cls, config: IndexConfig, scratch: Path, shape: tuple[int, int], earlier: Path | None = None
    ) -> dict[str, Any]:
        structure = choose_structure(shape[0]) if config.structure == "auto" else config.structure
        return {"structure": "disk", "scratch": scratch, "earlier": earlier} if structure == "disk" else {}

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        structure: FaissStructure | None = None,
        device: str = "auto",
        check: bool = True,
        scratch: Path | None = None,
        earlier: Path | None = None,
    ) -> Self:
        """Read what `save` wrote. Raises IndexCorrupt. structure: convert to another one if it differs.

        check: compare the files with their hashes; first, where FAISS reads one, since it takes the sizes in a damaged
        one at their word.
        """
        description = read_description(folder)
        try:
            if description is None:
                raise FileNotFoundError("index.json is missing")
            stored = description["structure"]
            options: Any = {"structure": stored, "device": device, "scratch": scratch, "earlier": earlier}
            index = cls(int(description["dim"]), description["fingerprint"], folder, **options)
            native, ids, labels, payloads = (folder / name.format(description["generation"]) for name in _files(stored))
            if not payloads.is_file():
                raise FileNotFoundError(f"{payloads.name} is missing")
            hashes = file_hashes(folder, description) if check else None
            if stored == "disk":
                engine: Any = DiskLists.open(folder, native, description)
            else:
                if hashes is not None:
                    hashes.wait()
                engine = faiss.read_index(str(native))
            index._rows = Rows(json.loads(ids.read_text(encoding="utf-8")), payloads, hashes)
            index._labels = np.load(labels, allow_pickle=False)
            index._next = int(description["next_label"])
            count = engine.ntotal - int(description["tombstones"])
            if engine.d != index.dim or not len(index._rows) == len(index._labels) == count:
                raise ValueError(f"{len(index._rows)} ids for {count} vectors of width {engine.d}")
            if len(index._labels) and (index._labels[0] < 0 or (np.diff(index._labels) <= 0).any()):
                raise ValueError(f"{labels.name} is out of order")
            if len(index._labels) and index._labels[-1] >= index._next:
                raise ValueError(f"{labels.name} holds labels beyond {index._next}")
            index._engine = _with_direct_map(engine) if stored == "ivf" else engine
            index._noted(folder)
        except Exception as error:  # FAISS, numpy and JSON have many of their own for damage
            reason = str(error).strip(" .\n").splitlines()[-1] if str(error).strip() else type(error).__name__
            raise IndexCorrupt(f"The FAISS index in {folder} cannot be read ({reason}). {REBUILD}") from error
        if structure not in (None, index.structure):
            index.restructure(structure)
        return index

    @property
    def tombstones(self) -> int:
        """Vectors of removed or replaced ids that a graph or a file still holds."""
        return int(self._engine.ntotal) - len(self._rows)

    def upsert(self, ids: Sequence[str], vectors: ArrayLike, payloads: Sequence[Payload] | None = None) -> None:
        new_ids, rows, plain = prepare_upsert(ids, vectors, payloads, self.dim)
        with self._changing():
            known, added = self._rows.split(new_ids)
            numbers, self._changed = self._rows.numbers, True
            if known and self.structure == "flat":
                self._write([numbers[new_ids[i]] for i in known], rows[known])
                for i in known:
                    self._rows.replace(numbers[new_ids[i]], plain[i])
            elif known:  # these structures place a vector by its value: out with the old, in with the new
                self._remove([numbers[new_ids[i]] for i in known])
                added = list(range(len(new_ids)))
            if added:
                self._add([new_ids[i] for i in added], rows[added], [plain[i] for i in added])

    def update_vectors(self, ids: Sequence[str], vectors: ArrayLike) -> None:
        new_ids, rows, _ = prepare_upsert(ids, vectors, None, self.dim)
        with self._changing():
            numbers, _ = self._rows.find(new_ids), self._rows.payloads
            self._changed = True
            if self.structure == "flat":
                self._write(numbers, rows)
            else:
                payloads = [self._rows.payloads[number] for number in numbers]
                self._remove(numbers)
                self._add(new_ids, rows, payloads)

    def delete(self, ids: Sequence[str]) -> None:
        gone = set(check_ids(ids))
        with self._changing():
            rows = [self._rows.numbers[id] for id in gone if id in self._rows.numbers]
            if rows:
                _, self._changed = self._rows.payloads, True  # read before anything is changed
                self._remove(rows)

    def search(self, vectors: ArrayLike, k: int, filter: Filter | None = None) -> list[Ranking]:
        queries, k = check_vectors(vectors, self.dim, "query vectors"), check_k(k)
        with self._lock.shared():
            allowed = None if filter is None else self._rows.mask(filter)
            found = min(k, len(self._rows) if allowed is None else int(np.count_nonzero(allowed)))
            if found == 0 or len(queries) == 0:
                return [([], np.empty(0, np.float32)) for _ in queries]
            engine = self._searcher() if allowed is None else self._engine
            if self.structure == "flat" and engine is self._engine:
                # The same numbers as the exact index, and several times faster for many queries than FAISS's loop.
                return search_matrix(queries, self._flat(), self._rows.ids, k, allowed)
            passing = None if allowed is None or allowed.all() else np.flatnonzero(allowed)
            if passing is not None and self._scan_is_cheaper(len(passing)):
                return self._scan(queries, k, passing)
            selector = None
            if passing is not None:
                selector = self._selector(passing, allowed)
            elif self.tombstones:
                selector = self._live = self._live or self._selector()
            share = 1.0 if passing is None else len(passing) / len(self._rows)
            if isinstance(engine, DiskLists):
                among = self._labels if passing is None else self._labels[passing]
                scores, labels = engine.search(queries, found, selector, among, share)
            else:
                parameters = self._parameters(found, selector, share)
                with nullcontext() if engine is self._engine else self._gpu:  # FAISS: one thread at a time on a GPU
                    scores, labels = engine.search(queries, found, params=parameters)
            results, short = list[Ranking](), list[int]()
            for number, (row_scores, row_labels) in enumerate(zip(scores, labels)):
                hit = row_labels >= 0
                rows = np.searchsorted(self._labels, row_labels[hit])
                results.append(by_id_where_equal([self._rows.ids[row] for row in rows], row_scores[hit]))
                if passing is not None and hit.sum() < found:
                    short.append(number)
            if short and passing is not None:  # lists or paths that lead to too few of those that pass
                for number, ranking in zip(short, self._scan(queries[short], k, passing)):
                    results[number] = ranking
            return results

    def _scan_is_cheaper(self, passing: int) -> bool:
        """Whether to score every row that passes takes no longer than the structure's own way through the filter.

        The graph must look at 1/share times as many nodes, with their neighbours, to meet as many that pass; lists
        cost what lies in those that are probed.
        """
        total = len(self._rows)
        if self.structure == "hnsw":
            return passing * passing <= HNSW_EF_SEARCH * HNSW_M * total
        return passing <= max(SCANNED, total * (SCANNED_SHARE if self.structure == "disk" else IVF_PROBE_SHARE))

    def _scan(self, queries: Floats, k: int, rows: NDArray[np.int64]) -> list[Ranking]:
        """Exact search over some rows, a block of them at a time."""
        results: list[Ranking] = [([], np.empty(0, np.float32)) for _ in queries]
        for start in range(0, len(rows), SCANNED):
            part = rows[start : start + SCANNED].tolist()
            found = search_matrix(queries, self._read(part), [self._rows.ids[row] for row in part], k)
            for number, (ids, scores) in enumerate(found):
                known, before = results[number]
                merged = np.concatenate([before, scores])
                results[number] = best_first(merged, k, [*known, *ids]) if known else (ids, scores)
        return results

    def vectors(self, ids: Sequence[str]) -> Floats:
        with self._lock.shared():
            return self._read(self._rows.find(check_ids(ids)))

    def batches(self, size: int = 4096) -> Iterator[tuple[list[str], Floats]]:
        for start in range(0, len(self), size):
            end = min(start + size, len(self))
            with self._lock.shared():
                part = self._rows.ids[start:end], self._read(range(start, end))
            yield part

    def restructure(self, structure: FaissStructure | Literal["auto"], *, progress: Progress = no_progress) -> None:
        """Move all vectors into another structure; auto = the one for their number. Searches go on in the old one."""
        with self._lock.reserved():
            if structure == "auto":
                structure = choose_structure(len(self))
            if structure not in get_args(FaissStructure):
                raise InvalidInput(f"structure is {structure!r}; use one of: {', '.join(get_args(FaissStructure))}.")
            if structure == self.structure and not self.tombstones:
                if not isinstance(self._engine, DiskLists) or not len(self._engine.added):
                    return
                if self._engine.base is None:  # what a build brought: it stays where it is
                    with self._lock:
                        self._engine.build(progress, Lists.earlier(self._earlier))
                        self._changed = True
                    return
            engine = self._new_engine(structure, len(self))
            if structure == "ivf" and len(self):
                lists = engine.nlist
                sample = np.random.default_rng(0).permutation(len(self))[: lists * IVF_TRAINING_PER_LIST]
                engine.train(self._read(np.sort(sample).tolist()))
            labels = np.arange(len(self), dtype=np.int64)
            if not (structure == "ivf" and len(self) == 0):
                block = _MOVED[structure]
                for start in range(0, len(self), block):
                    end = min(start + block, len(self))
                    engine.add_with_ids(self._read(range(start, end)), labels[start:end])
                    progress(f"build {structure}", end, len(self))
            if isinstance(engine, DiskLists):
                engine.build(progress, self._engine.base if isinstance(self._engine, DiskLists) else None)
            with self._lock:
                self._engine, self._labels, self._next = engine, labels, len(labels)
                self.structure, self._changed = structure, True
                self._on_gpu = self._live = None

    def finish(self, config: IndexConfig, progress: Progress = no_progress) -> None:
        self.restructure(config.structure, progress=progress)

    def save(self, folder: str | Path | None = None) -> None:
        if folder is None and self._folder is None:
            raise InvalidInput("This index lives in memory; say which folder to save it in.")
        target = Path(folder) if folder is not None else self._folder
        assert target is not None
        with self._lock.reserved():  # searches go on
            if target == self._folder:
                self.follow(changing=True)
            target.mkdir(parents=True, exist_ok=True)
            generation = new_generation(target, read_description(target))
            native, ids, labels, payloads = (target / name.format(generation) for name in _files(self.structure))
            base, kept = None, dict[str, FileRecord]()
            if isinstance(self._engine, DiskLists):
                kept = self._engine.save(target, native)
                base = self._engine.base and self._engine.base.token
            else:
                faiss.write_index(self._engine, str(native))
            np.save(labels, self._labels, allow_pickle=False)
            self._rows.save(ids, payloads)
            write_description(
                target,
                {
                    "kind": self.kind, "dim": self.dim, "fingerprint": self.fingerprint, "structure": self.structure,
                    "next_label": self._next, "tombstones": self.tombstones, "generation": generation,
                    **({"base": base} if self.structure == "disk" else {}),
                },
                kept,
            )  # fmt: skip
            self._noted(target)
            remove_other_generations(target, generation, _FILES, kept)
            remove_other_generations(target, generation, BASE_FILES, kept)

    def close(self) -> None:
        with self._lock:
            self._rows, self._labels = Rows(), np.empty(0, np.int64)
            self._on_gpu = self._live = None
            self._engine = self._new_engine("flat", 0)

    def _take(self, folder: Path) -> None:
        fresh = type(self).open(folder, device=self._device)
        check_dim(fresh.dim, self.dim, f"in {folder}")
        check_fingerprint(fresh.fingerprint, self.fingerprint, f"in {folder}")
        self._rows, self._labels, self._next = fresh._rows, fresh._labels, fresh._next
        self._engine, self.structure = fresh._engine, fresh.structure
        self._on_gpu = self._live = None

    def _add(self, ids: list[str], vectors: Floats, payloads: list[dict[str, Any]]) -> None:
        labels = np.arange(self._next, self._next + len(ids), dtype=np.int64)
        if not ids:
            return
        if not self._engine.is_trained:  # IVF: the first vectors decide the lists
            self._engine = self._new_engine(self.structure, len(ids))
            self._engine.train(vectors)
        self._engine.add_with_ids(vectors, labels)
        self._next += len(ids)
        self._labels = self._grown(labels)
        self._rows.add(ids, payloads)
        self._on_gpu = self._live = None

    def _grown(self, new: NDArray[np.int64]) -> NDArray[np.int64]:
        """All labels, with room for more behind them: a build adds a few thousand at a time."""
        count, end = len(self._labels), len(self._labels) + len(new)
        room = self._room
        if self._labels.base is not room or len(room) < end:
            room = self._room = np.empty(max(end, 3 * count // 2), np.int64)
            room[:count] = self._labels
        room[count:end] = new
        return room[:end]

    def _remove(self, rows: Sequence[int]) -> None:
        keep = np.ones(len(self._rows), np.bool_)
        keep[list(rows)] = False
        if self.structure in ("flat", "ivf"):  # others cannot forget: searches skip what has no row
            gone = np.ascontiguousarray(self._labels[~keep])
            # Either structure takes just one of the two.
            selector = faiss.IDSelectorArray if self.structure == "ivf" else faiss.IDSelectorBatch
            self._engine.remove_ids(selector(gone))
        self._labels = self._labels[keep]
        self._rows.keep(keep)
        self._on_gpu = self._live = None

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Change rows and engine inside the block. If that leaves too much to be skipped, or scored one by one, the
        structure is then built anew, which searches do not wait for."""
        with self._lock.reserved():
            with self._lock:
                yield
            self._tidy()

    def _tidy(self) -> None:
        total, beside = int(self._engine.ntotal), 0
        if isinstance(self._engine, DiskLists) and self._engine.base is not None:
            beside = len(self._engine.added)
        if self.tombstones > max(1000, TOMBSTONES * total) or beside > max(1000, BESIDE * total):
            log.info("building anew: of %d vectors %d are left-overs, %d not listed", total, self.tombstones, beside)
            self.restructure(self.structure)

    def _flat(self) -> Floats:
        """The flat structure's own memory as a matrix (n, dim); row = row."""
        flat = faiss.downcast_index(self._engine.index)
        view: Floats = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * self.dim).reshape(flat.ntotal, self.dim)
        return view

    def _write(self, rows: Sequence[int], vectors: Floats) -> None:
        self._flat()[list(rows)] = vectors
        self._on_gpu = None

    def _read(self, rows: Sequence[int]) -> Floats:
        if len(rows) == 0:
            return np.empty((0, self.dim), np.float32)
        if self.structure == "flat":
            return np.array(self._flat()[list(rows)])
        found: Floats = self._engine.reconstruct_batch(self._labels[list(rows)])
        return found

    def _selector(self, rows: NDArray[np.int64] | None = None, allowed: NDArray[np.bool_] | None = None) -> Any:
        """What FAISS may find: these rows, None = all of them. allowed (N,): the same as a mask."""
        labels = self._labels if rows is None else self._labels[rows]
        if len(labels) * 100 < labels[-1]:
            return faiss.IDSelectorBatch(labels)
        if allowed is not None and self._next == len(self._labels):  # nothing was ever removed: label = row
            return faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        bits = np.zeros(int(labels[-1]) + 1, np.uint8)
        bits[labels] = 1
        return faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))

    def _parameters(self, k: int, selector: Any, share: float) -> Any:
        """share: of the rows that pass the filter."""
        if self.structure == "hnsw":
            wanted = max(HNSW_EF_SEARCH, 2 * k) / share
            return faiss.SearchParametersHNSW(sel=selector, efSearch=min(math.ceil(wanted), len(self._rows)))
        if self.structure == "ivf":
            probes = max(8, math.ceil(self._engine.nlist * IVF_PROBE_SHARE))
            return faiss.SearchParametersIVF(sel=selector, nprobe=min(probes, self._engine.nlist))
        return None

    def _new_engine(self, structure: str, count: int) -> Any:
        """An empty one for so many vectors."""
        if structure == "disk":
            here = (self._scratch, self._folder, self._folder and self._folder.parent)
            return DiskLists(self.dim, next((folder for folder in here if folder and folder.is_dir()), None))
        if structure == "flat":
            return faiss.IndexIDMap2(faiss.IndexFlatIP(self.dim))
        if structure == "hnsw":
            graph = faiss.IndexHNSWFlat(self.dim, HNSW_M, faiss.METRIC_INNER_PRODUCT)
            graph.hnsw.efConstruction = HNSW_EF_CONSTRUCTION
            return faiss.IndexIDMap2(graph)
        lists = max(1, min(int(4 * math.sqrt(count)), count // IVF_TRAINING_PER_LIST))
        engine = faiss.IndexIVFFlat(faiss.IndexFlatIP(self.dim), self.dim, lists, faiss.METRIC_INNER_PRODUCT)
        return _with_direct_map(engine)

    def _searcher(self) -> Any:
        """The engine, or its copy on the GPU: flat only, unfiltered, made when first needed."""
        if self.structure != "flat" or self._device == "cpu" or not hasattr(faiss, "StandardGpuResources"):
            return self._engine
        with self._gpu:
            if self._on_gpu is None and faiss.get_num_gpus() > 0:
                try:
                    self._on_gpu = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, self._engine)
                except RuntimeError as error:
                    log.warning("FAISS stays on the CPU: %s", error)
                    self._device = "cpu"
            return self._on_gpu or self._engine


def _files(structure: str) -> tuple[str, ...]:
    """Of a generation: vectors, ids, labels, payloads."""
    return (_BESIDE, *_FILES[1:]) if structure == "disk" else _FILES


def _with_direct_map(engine: Any) -> Any:
    """An IVF index that can give vectors back and forget them by label."""
    engine.set_direct_map_type(faiss.DirectMap.Hashtable)
    return engine
