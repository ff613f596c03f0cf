"""FAISS's inverted lists of 8-bit codes, mapped from disk, beside the vectors that they stand for.

Lists only find candidates; their scores, and so the order, come from the vectors in a mapped matrix. What was added
since the lists were built lies beside them and is searched exactly. Of a base (lists and vectors, never changed after
they were built) a folder has three files, their token its own:

- vectors-TOKEN.npy: the vectors (n, dim), a vector's label is its row.
- lists-TOKEN.npz: centroids (lists, dim), trained (2·dim) ranges of the codes, sizes (lists,), and strangers: how many
  vectors came into lists that were placed without them.
- lists-TOKEN.bin: for each list its codes and its labels (int64), each with room for a multiple of eight of them.
"""

from __future__ import annotations

import importlib
import io
import logging
import math
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ragadapt.errors import MissingExtra, RagadaptError
from ragadapt.files import FileRecord, Hashes, record_file
from ragadapt.index.contract import Floats, read_description
from ragadapt.index.matrix import BLOCK_BYTES
from ragadapt.out_of_core import LooseFile, VectorFile, mapped, mapped_vectors
from ragadapt.values import Progress, no_progress

log = logging.getLogger(__name__)

try:
    faiss: Any = importlib.import_module("faiss")  # see the module faiss
except ImportError as error:
    raise MissingExtra("The FAISS index", "faiss") from error

LISTED = 20_000  # vectors from which on lists are worth it; fewer are searched exactly
TRAINED_PER_LIST = 64
PROBE_SHARE = 1 / 16  # of the lists, searched per query
PROBES = 256  # at least, but no more than twice that share: where lists are few, so are those that are near
MORE = 64  # candidates beyond k, or half as many as k: a code's score may be below that of one that is no better
STRANGERS = 0.2  # share of vectors without which lists were placed, beyond which they are placed anew
BASE_FILES = ("vectors-{}.npy", "lists-{}.npz", "lists-{}.bin")
_TOKEN = re.compile("b[0-9a-f]{16}")
_ENCODED = 16_384  # vectors that are assigned and encoded at once
_ROUNDS = 10  # of k-means
_PRODUCT_BYTES = 32_000_000  # of one block of products with all centroids
_SCATTERED_BYTES = 100_000_000  # of codes that are brought into the order of lists at once


class Lists:
    """Lists over vectors, never changed: labels are 0 … count - 1."""

    def __init__(self, token: str, files: tuple[LooseFile, ...]) -> None:
        """files: as in BASE_FILES. Raises ValueError where they do not fit each other."""
        self.token = token
        self.records: dict[str, FileRecord] = {}
        self._files = files
        vectors, small, lists = files
        self.matrix = mapped_vectors(vectors)
        small.stream.seek(0)
        with np.load(io.BytesIO(small.stream.read()), allow_pickle=False) as arrays:
            centroids, trained, sizes = arrays["centroids"], arrays["trained"], arrays["sizes"]
            self.strangers = int(arrays["strangers"]) if "strangers" in arrays else 0
        count, dim = self.matrix.shape
        if (
            centroids.shape != (len(sizes), dim)
            or trained.shape != (2 * dim,)
            or sizes.dtype != np.int64
            or len(sizes) == 0
            or sizes.min() < 0
            or sizes.sum() != count
        ):
            raise ValueError(f"lists of {sizes.shape} and {centroids.shape} for vectors of {self.matrix.shape}")
        room, offsets, total = layout(sizes, dim)
        if lists.size != total:
            raise ValueError(f"{lists.size} bytes of lists, and {total} are expected")
        self.sizes: NDArray[np.int64] = sizes
        self.centroids: Floats = np.ascontiguousarray(centroids, np.float32)
        self.engine = _trained(self.centroids, np.ascontiguousarray(trained, np.float32))
        _give_lists(self.engine, lists, sizes, room, offsets, total)
        self.engine.ntotal = count

    @classmethod
    def open(cls, folder: Path, token: str, records: Mapping[str, Any]) -> Self:
        """records: of index.json. Raises ValueError, OSError."""
        if not _TOKEN.fullmatch(token):
            raise ValueError(f"base {token!r:.60} is no token")
        names = [name.format(token) for name in BASE_FILES]
        base = cls(token, tuple(LooseFile.open(folder / name) for name in names))
        base.records = {name: FileRecord.from_json(records[name]) for name in names if name in records}
        return base

    @classmethod
    def earlier(cls, folder: Path | None) -> Self | None:
        """Those of the index in a folder, to build others like them; None where there are none, or damaged ones."""
        if folder is None:
            return None
        try:
            description = read_description(folder)
            if description is None or description.get("base") is None:
                return None
            token, records = str(description["base"]), description["files"]
            name = BASE_FILES[1].format(token)
            Hashes(folder, {name: FileRecord.from_json(records[name])}).wait()  # damage to the rest does no harm here
            return cls.open(folder, token, records)
        except (OSError, ValueError, KeyError, TypeError, RagadaptError) as error:
            log.debug("the lists in %s are not taken over: %s", folder, error)
            return None

    @classmethod
    def build(cls, vectors: LooseFile, folder: Path | None, progress: Progress, earlier: Lists | None = None) -> Self:
        """Over the vectors (n, dim) of a NumPy file, which are read three times from start to end: for a sample or for
        what is in `earlier`, to find the list of each, to encode them.

        earlier: where most of the vectors are in these, the lists stay where they are, and only the others look for
        theirs.
        """
        matrix = mapped_vectors(vectors)
        count = len(matrix)
        lists = max(1, min(int(2 * math.sqrt(count)), count // TRAINED_PER_LIST))
        known = None if earlier is None else earlier.lists_of(matrix, lists)
        if earlier is not None and known is not None:
            of, strangers = known
            engine, centroids = earlier.engine, earlier.centroids
        else:
            of, strangers = np.full(count, -1, np.int32), 0
            sample = matrix[_sample(count, lists * TRAINED_PER_LIST)]
            centroids = _centroids(sample, lists, progress)
            engine = _untrained(matrix.shape[1], lists)
            engine.quantizer.add(centroids)
            engine.train(sample)  # the ranges of the codes
            del sample
        for start in range(0, count, _ENCODED):
            part = of[start : start + _ENCODED]
            new = np.flatnonzero(part < 0)
            if len(new):
                part[new] = _nearest(matrix[start : start + len(part)][new], centroids)
            progress("assign to lists", start + len(part), count)
        sizes = np.bincount(of, minlength=len(centroids)).astype(np.int64)
        file = LooseFile(folder)
        _write_lists(file, engine, matrix, of, sizes, progress)
        small, content = LooseFile(folder), io.BytesIO()
        trained = faiss.vector_to_array(engine.sq.trained)
        np.savez(content, centroids=centroids, trained=trained, sizes=sizes, strangers=np.int64(strangers))
        small.write(content.getvalue())
        return cls("b" + secrets.token_hex(8), (vectors, small, file))

    def lists_of(self, matrix: Floats, lists: int) -> tuple[NDArray[np.int32], int] | None:
        """((n,) the list of each vector (n, dim) that is here, -1 for others; how many the lists were placed without).
        None where lists should be placed anew: another number of them is wanted, or too many vectors are new."""
        if matrix.shape[1] != self.matrix.shape[1] or not 0.8 <= lists / len(self.sizes) <= 1.25:
            return None
        here = _prints(self.matrix)
        order = np.argsort(here)
        here, wanted = here[order], _prints(matrix)
        place = np.minimum(np.searchsorted(here, wanted), len(here) - 1)
        there = here[place] == wanted
        strangers = self.strangers + len(there) - int(np.count_nonzero(there))
        if strangers > STRANGERS * len(there):
            return None
        own = np.full(len(here), -1, np.int32)
        room, offsets, _ = layout(self.sizes, matrix.shape[1])
        for number in np.flatnonzero(self.sizes).tolist():
            start = int(offsets[number] + room[number] * matrix.shape[1])
            labels = mapped(self._files[2], start, np.int64, (int(self.sizes[number]),))
            own[labels[(labels >= 0) & (labels < len(own))]] = number
        return np.where(there, own[order[place]], np.int32(-1)), strangers

    def save(self, folder: Path) -> dict[str, FileRecord]:
        """Have the files in the folder; their hashes. Raises StoreError where the disk is full."""
        for pattern, file in zip(BASE_FILES, self._files, strict=True):
            name = pattern.format(self.token)
            file.place(folder / name)
            if name not in self.records:
                self.records[name] = record_file(folder / name)
        return self.records

    def candidates(self, queries: Floats, k: int, selector: Any, share: float) -> NDArray[np.int64]:
        """(Q, m) labels of the best by their codes, -1 where there are no more."""
        wanted = min(k + max(MORE, k // 2), len(self.matrix))
        lists = int(self.engine.nlist)
        # Those that pass lie further away than those that don't: look further.
        probes = max(8, min(PROBES, 2 * lists * PROBE_SHARE), lists * PROBE_SHARE) / math.sqrt(share)
        probes = max(probes, 2 * lists * wanted / (share * len(self.matrix)))
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=min(math.ceil(probes), lists))
        found: NDArray[np.int64] = self.engine.search(queries, wanted, params=parameters)[1]
        short = np.flatnonzero(found[:, min(k, wanted) - 1] < 0)
        if len(short) and parameters.nprobe < lists:
            parameters.nprobe = lists
            found[short] = self.engine.search(np.ascontiguousarray(queries[short]), wanted, params=parameters)[1]
        return found

    def scores(self, query: Floats, labels: NDArray[np.int64]) -> Floats:
        """(m,) of one query (dim,) and vectors by label; equal vectors have equal scores."""
        found: Floats = np.einsum("md,d->m", self.matrix[labels], query)  # BLAS sums the last rows otherwise
        return found


class DiskLists:
    """What FaissIndex asks of an index of FAISS, over a base and what was added since: labels go on in their order."""

    is_trained = True

    def __init__(self, dim: int, folder: Path | None = None) -> None:
        """folder: on whose disk temporary files lie; None = where temporary files go."""
        self.d = dim
        self.base: Lists | None = None
        self.added = VectorFile(dim, folder)
        self._folder = folder

    @classmethod
    def open(cls, folder: Path, added: Path, description: Mapping[str, Any]) -> Self:
        """What `save` wrote, mapped. Raises ValueError, OSError."""
        vectors = mapped_vectors(LooseFile.open(added))
        lists = cls(vectors.shape[1], folder)
        lists.added = VectorFile.of(vectors, folder)
        if description["base"] is not None:
            lists.base = Lists.open(folder, str(description["base"]), description.get("files", {}))
            if lists.base.matrix.shape[1] != lists.d:
                raise ValueError(f"lists for vectors of {lists.base.matrix.shape}, beside them {vectors.shape}")
        return lists

    def save(self, folder: Path, added: Path) -> dict[str, FileRecord]:
        """Have the base's files in the folder, and write the vectors that were added since to `added`; the hashes of
        the former."""
        with added.open("wb") as stream:
            np.lib.format.write_array(stream, self.added.matrix(), version=(1, 0), allow_pickle=False)
        return self.base.save(folder) if self.base is not None else {}

    @property
    def listed(self) -> int:
        """How many vectors the lists hold."""
        return len(self.base.matrix) if self.base is not None else 0

    @property
    def ntotal(self) -> int:
        return self.listed + len(self.added)

    def add_with_ids(self, vectors: Floats, labels: NDArray[np.int64]) -> None:
        assert len(labels) == 0 or labels[0] == self.ntotal
        self.added.add(vectors)

    def reconstruct_batch(self, labels: NDArray[np.int64]) -> Floats:
        """(n, dim) of labels (n,)."""
        found = np.empty((len(labels), self.d), np.float32)
        listed = labels < self.listed
        if self.base is not None and listed.any():
            found[listed] = self.base.matrix[labels[listed]]
        if not listed.all():
            found[~listed] = self.added.matrix()[labels[~listed] - self.listed]
        return found

    def build(self, progress: Progress = no_progress, earlier: Lists | None = None) -> None:
        """Make lists of all that was added to an empty one, if that is worth it. earlier: see `Lists.build`."""
        assert self.base is None
        if len(self.added) >= LISTED:
            self.base = Lists.build(self.added.to_file(), self._folder, progress, earlier)
            self.added = VectorFile(self.d, self._folder)

    def search(
        self, queries: Floats, k: int, selector: Any, labels: NDArray[np.int64], share: float = 1.0
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Exact scores (Q, k), best first, and labels (Q, k), -1 where there are no more.

        labels: ascending, all that may be found; selector: the same for FAISS, None = all that there are. share: of
        all that lie here.
        """
        first = int(np.searchsorted(labels, self.listed))  # the first that lies beside the lists
        scores = np.full((len(queries), k), -np.inf, np.float32)
        found = np.full((len(queries), k), -1, np.int64)
        if self.base is not None and first:
            for at, row in enumerate(self.base.candidates(queries, min(k, first), selector, share)):
                known = np.sort(row[(row >= 0) & (row < self.listed)])  # in the order of the file
                best = _best(self.base.scores(queries[at], known), known, k)
                scores[at, : len(best[0])], found[at, : len(best[0])] = best
        if first < len(labels):
            self._search_added(queries, k, labels[first:] - self.listed, scores, found)
        return scores, found

    def _search_added(
        self, queries: Floats, k: int, places: NDArray[np.int64], scores: Floats, found: NDArray[np.int64]
    ) -> None:
        """Put what is better among these rows of what was added into scores and found (Q, k)."""
        matrix = self.added.matrix()
        size = max(1, BLOCK_BYTES // (4 * max(self.d, len(queries))))
        for start in range(0, len(places), size):
            part = places[start : start + size]
            solid = part[-1] - part[0] + 1 == len(part)
            block = matrix[part[0] : part[-1] + 1] if solid else matrix[part]
            for at, row in enumerate(queries @ block.T):  # (Q, d) x (B, d) -> (Q, B)
                there = found[at] >= 0
                both = np.concatenate([scores[at][there], row])
                labels = np.concatenate([found[at][there], part + self.listed])
                best = _best(both, labels, k)
                scores[at, : len(best[0])], found[at, : len(best[0])] = best


def layout(sizes: NDArray[np.int64], dim: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """(room, offset) of each list in the file, and the file's size: room for whole eights, so that the labels, which
    follow the codes, lie at multiples of eight bytes."""
    room = -(-sizes // 8) * 8
    ends = np.cumsum(room * (dim + 8))
    return room, ends - room * (dim + 8), int(ends[-1])


def _best(scores: Floats, labels: NDArray[np.int64], k: int) -> tuple[Floats, NDArray[np.int64]]:
    """The k largest, best first."""
    if k < len(scores):
        some = np.argpartition(-scores, k - 1)[:k]
        scores, labels = scores[some], labels[some]
    order = np.argsort(-scores, kind="stable")
    return scores[order], labels[order]


def _sample(count: int, wanted: int) -> NDArray[np.int64]:
    """Rows to train with, ascending."""
    if wanted >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, wanted, replace=False))


def _centroids(sample: Floats, lists: int, progress: Progress) -> Floats:
    """(lists, dim) directions of length 1 around which the sample (n, dim) lies: spherical k-means.

    By numpy's products, which take a fifth of the time of those in FAISS's wheels.
    """
    random = np.random.default_rng(0)
    centroids = _directions(sample[np.sort(random.choice(len(sample), lists, replace=False))])
    for number in range(_ROUNDS):
        sums, counts = np.zeros_like(centroids), np.zeros(lists, np.int64)
        for start in range(0, len(sample), _ENCODED):
            part = sample[start : start + _ENCODED]
            of = _nearest(part, centroids)
            order = np.argsort(of, kind="stable")
            here, first = np.unique(of[order], return_index=True)
            sums[here] += np.add.reduceat(part[order], first, axis=0)
            counts += np.bincount(of, minlength=lists)
        empty = np.flatnonzero(counts == 0)
        if len(empty):  # each takes its share of a large one
            large = np.argsort(-counts, kind="stable")[np.arange(len(empty)) % lists]
            length = np.linalg.norm(sums[large], axis=1, keepdims=True) / sums.shape[1] ** 0.5
            sums[empty] = sums[large] + 0.1 * length * random.standard_normal(sums[large].shape, np.float32)
        centroids = _directions(sums)
        progress("place lists", number + 1, _ROUNDS)
    return centroids


def _directions(vectors: Floats) -> Floats:
    found: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-30))
    return found


def _nearest(vectors: Floats, centroids: Floats) -> NDArray[np.int64]:
    """(n,) the centroid with the largest inner product for each of (n, dim)."""
    found = np.empty(len(vectors), np.int64)
    size = max(1, _PRODUCT_BYTES // (4 * len(centroids)))
    for start in range(0, len(vectors), size):
        found[start : start + size] = (vectors[start : start + size] @ centroids.T).argmax(axis=1)
    return found


def _untrained(dim: int, lists: int) -> Any:
    # Codes of the vectors themselves, not of what lies between them and a centroid: as good here, and quicker to make.
    return faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim), dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
    )


def _trained(centroids: Floats, ranges: Floats) -> Any:
    """Empty lists around centroids (lists, dim), with the ranges (2·dim,) of their codes."""
    engine = _untrained(centroids.shape[1], len(centroids))
    engine.quantizer.add(centroids)
    faiss.copy_array_to_vector(ranges, engine.sq.trained)
    engine.is_trained = True
    return engine


def _prints(matrix: Floats) -> NDArray[np.uint64]:
    """(n,) a number for each row (n, dim): the same for the same bits, hardly ever for others."""
    factors = np.random.default_rng(0).integers(0, 1 << 63, matrix.shape[1], np.uint64) * np.uint64(2) + np.uint64(1)
    found = np.empty(len(matrix), np.uint64)
    for start in range(0, len(matrix), _ENCODED):
        part = np.ascontiguousarray(matrix[start : start + _ENCODED], np.float32)
        found[start : start + len(part)] = part.view(np.uint32).astype(np.uint64) @ factors
    return found


def _write_lists(
    file: LooseFile,
    engine: Any,
    matrix: Floats,
    of: NDArray[np.int32],
    sizes: NDArray[np.int64],
    progress: Progress,
) -> None:
    """Encode the vectors (n, dim), and put each code to its place in its list, some hundred megabytes at a time."""
    count, dim = matrix.shape
    room, offsets, total = layout(sizes, dim)
    filled = offsets.copy()
    size = max(_ENCODED, _SCATTERED_BYTES // dim)
    for start in range(0, count, size):
        lists = of[start : start + size]
        codes = np.empty((len(lists), dim), np.uint8)
        for first in range(0, len(lists), _ENCODED):
            part = np.ascontiguousarray(matrix[start + first : start + min(first + _ENCODED, len(lists))])
            codes[first : first + len(part)] = engine.sq.compute_codes(part)
        codes = codes[np.argsort(lists, kind="stable")]
        counts = np.bincount(lists, minlength=len(sizes))
        ends = np.cumsum(counts)
        for number in np.flatnonzero(counts).tolist():
            run = codes[ends[number] - counts[number] : ends[number]]
            file.write(run, int(filled[number]))
            filled[number] += run.nbytes
        progress("write lists", min(start + size, count), count)
    labels = np.argsort(of, kind="stable").astype(np.int64, copy=False)
    ends = np.cumsum(sizes)
    for number in np.flatnonzero(sizes).tolist():
        file.write(labels[ends[number] - sizes[number] : ends[number]], int(offsets[number] + room[number] * dim))
    file.end(total)


def _give_lists(
    engine: Any,
    file: LooseFile,
    sizes: NDArray[np.int64],
    room: NDArray[np.int64],
    offsets: NDArray[np.int64],
    total: int,
) -> None:
    """Let FAISS map the lists; where it cannot (Windows), it holds them in memory."""
    dim = int(engine.d)
    if total and hasattr(faiss, "OnDiskInvertedLists"):
        lists = faiss.OnDiskInvertedLists(len(sizes), dim, f"/dev/fd/{file.stream.fileno()}")
        lists.lists.clear()
        for size, capacity, offset in zip(sizes.tolist(), room.tolist(), offsets.tolist(), strict=True):
            one = faiss.OnDiskOneList()
            one.size, one.capacity, one.offset = size, capacity, offset
            lists.lists.push_back(one)
        lists.totsize, lists.read_only = total, True
        lists.prefetch_nthread = 0  # else 32 threads begin with every search
        try:
            lists.do_mmap()
        except RuntimeError as error:  # no /dev/fd
            log.debug("FAISS does not map the lists: %s", error)
        else:
            engine.replace_invlists(lists, True)
            lists.this.disown()
            return
    content = mapped(file, 0, np.uint8, (total,))
    for number, (size, capacity, offset) in enumerate(
        zip(sizes.tolist(), room.tolist(), offsets.tolist(), strict=True)
    ):
        start = offset + capacity * dim
        codes, labels = content[offset : offset + size * dim].copy(), content[start : start + size * 8].copy()
        if size:
            engine.invlists.add_entries(number, size, faiss.swig_ptr(labels.view(np.int64)), faiss.swig_ptr(codes))
