"""Bulk encoding: files of texts in, shards of vectors out, on one machine or a Ray cluster.

The inputs are cut into shards of rows; a shard is read, encoded and written by itself, so memory is bounded by a shard
and a killed run goes on with the shards that are missing. Both engines run the same function on the same shards. On a
cluster, inputs and output lie on a file system that all machines share.

    FOLDER/
      vectors.json             format, encoder, side, dim, and the shards in order of the input
      NAME-HASH-00000.npy      (rows, dim) float32 unit vectors
      NAME-HASH-00000.ids      the rows' ids, one JSON string a line
      NAME-HASH-00000.json     what the shard was made from; written last
"""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ragadapt.checks import checked_k, checked_list, checked_path
from ragadapt.errors import InvalidInput, MissingExtra, StoreCorrupt
from ragadapt.files import read_json, split_lines, write_text
from ragadapt.text import encodable
from ragadapt.values import Progress, no_progress

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder

log = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "vectors.json"
ENGINES = ("local", "ray")
KINDS = (".jsonl", ".parquet", ".txt")
SHARD_ROWS = 32_768  # 50 MB of vectors at width 384: a minute's work on a CPU is lost at most by a kill

_IDS = ("_id", "id")
_TEXTS = ("text", "contents", "content", "passage")

Engine = Literal["local", "ray"]
Side = Literal["passage", "query"]


@dataclass(frozen=True, slots=True)
class Job:
    """How every shard is encoded. model: whatever `open_encoder` takes. Fields: None = the usual names.

    title_field: put in front of the text, on a line of its own, as a heading stands before a passage.
    """

    model: str
    side: Side = "passage"
    device: str = "auto"
    precision: str = "auto"
    id_field: str | None = None
    text_field: str | None = None
    title_field: str | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """Some rows of an input. offset: where they begin, in bytes of a file of lines, in rows of a parquet file;
    first: number of the first row, from 0."""

    name: str
    source: str
    offset: int
    first: int
    rows: int


@dataclass(frozen=True)
class Encoded:
    """A finished bulk encoding. reused: shards that an earlier run had made."""

    folder: Path
    rows: int
    dim: int
    shards: int
    reused: int
    fingerprint: str
    truncated: int


def encode_files(
    inputs: Sequence[str | Path],
    folder: str | Path,
    job: Job,
    *,
    engine: Engine = "local",
    workers: int | None = None,
    shard_rows: int = SHARD_ROWS,
    progress: Progress = no_progress,
) -> Encoded:
    """Encode the texts of .jsonl, .parquet and .txt files (a text a line), or of all such files in folders.

    engine: "ray" spreads the shards over the machines of a Ray cluster (RAY_ADDRESS; without one, over this machine).
    workers: encoders at a time under Ray; None = one a GPU, without GPUs one for 8 cores. Called again after a kill, it
    goes on with what is missing; changed inputs are encoded again. Raises InvalidInput, MissingExtra, ModelNotFound.
    """
    if engine not in ENGINES:
        raise InvalidInput(f"engine = {engine!r}: it is one of {', '.join(ENGINES)}.")
    shard_rows = checked_k(shard_rows, "shard_rows")
    workers = None if workers is None else checked_k(workers, "workers")
    if not isinstance(job, Job):
        raise InvalidInput(f"job is {type(job).__name__}; a Job is needed.")
    folder = checked_path(folder, "The output folder").resolve()
    shards = plan(inputs, shard_rows)
    encoder = open_job(job) if engine == "local" else None
    fingerprint, dim = (encoder.fingerprint, encoder.dim) if encoder else _identity(job)
    _check_folder(folder, fingerprint, job)
    folder.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {
        "format": FORMAT, "fingerprint": fingerprint, "dim": dim, "complete": False, **asdict(job),
    }  # fmt: skip
    _write_manifest(folder, manifest)
    if encoder is not None:
        records = _locally(encoder, shards, folder, job, progress)
    else:
        records = _with_ray(shards, folder, job, workers, progress)
    _write_manifest(folder, {**manifest, "complete": True, "shards": [_listed(record) for record in records]})
    return Encoded(
        folder,
        sum(record["rows"] for record in records),
        dim,
        len(records),
        sum(bool(record["reused"]) for record in records),
        fingerprint,
        sum(record["truncated"] for record in records),
    )


def read_vectors(folder: str | Path) -> Iterator[tuple[list[str], npt.NDArray[np.float32]]]:
    """(ids, vectors (rows, dim), memory-mapped) of every shard, in the order of the input.

    Raises StoreCorrupt where the folder is no finished bulk encoding.
    """
    folder = Path(folder)
    manifest = read_json(folder / MANIFEST)
    if manifest is None or not manifest.get("complete"):
        raise StoreCorrupt(f"{folder} holds no finished encoding. Run the same `ragadapt encode` again to finish it.")
    for shard in manifest["shards"]:
        found = _shard_files(folder, shard["name"])
        try:
            ids = [json.loads(line) for line in split_lines(found.ids.read_text(encoding="utf-8")) if line]
            vectors = np.load(found.vectors, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise StoreCorrupt(f"{found.vectors} cannot be read ({error}). Run `ragadapt encode` again.") from error
        if vectors.shape != (len(ids), manifest["dim"]) or len(ids) != shard["rows"]:
            raise StoreCorrupt(
                f"{found.vectors} has shape {vectors.shape} for {len(ids)} ids. Delete it, and run again."
            )
        yield ids, vectors


# Inputs


def plan(inputs: Sequence[str | Path], shard_rows: int) -> list[Shard]:
    """The shards of all inputs, in their order; files of a folder by name. Raises InvalidInput."""
    shards = []
    for path in _files(inputs):
        # The place tells files of one name apart; two runs that name it alike find each other's shards.
        name = f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        offsets = _parquet_offsets(path, shard_rows) if path.suffix == ".parquet" else _line_offsets(path, shard_rows)
        for number, (offset, first, rows) in enumerate(offsets):
            shards.append(Shard(f"{name}-{number:05}", str(path), offset, first, rows))
    return shards


def _files(inputs: Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for at, given in enumerate([inputs] if isinstance(inputs, str | Path) else checked_list(inputs, "inputs")):
        path = checked_path(given, f"inputs[{at}]").resolve()
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix in KINDS and file.is_file())
            if not inside:
                raise InvalidInput(f"{path} holds no file of the kinds {', '.join(KINDS)}.")
            found += inside
        elif not path.is_file():
            raise InvalidInput(f"There is no file or folder at {path}.")
        elif path.suffix not in KINDS:
            raise InvalidInput(f"{path} is of a kind that is not read here; there are {', '.join(KINDS)}.")
        else:
            found.append(path)
    if not found:
        raise InvalidInput("No input was given. Name files or folders of texts.")
    return list(dict.fromkeys(found))


def _line_offsets(path: Path, shard_rows: int) -> Iterator[tuple[int, int, int]]:
    """(byte offset, first row, rows) of every shard; lines of white space are no rows."""
    offset = start = rows = first = 0
    with path.open("rb") as file:
        for line in file:
            if _without_mark(line, offset).strip():
                if rows == 0:
                    start = offset
                rows += 1
            offset += len(line)
            if rows == shard_rows:
                yield start, first, rows
                first, rows = first + rows, 0
    if rows:
        yield start, first, rows


def _without_mark(line: bytes, offset: int) -> bytes:
    """The line without the byte order mark that some programs put at the start of a file."""
    return line.removeprefix(codecs.BOM_UTF8) if offset == 0 else line


def _parquet_offsets(path: Path, shard_rows: int) -> Iterator[tuple[int, int, int]]:
    total = int(_parquet(path).metadata.num_rows)
    for first in range(0, total, shard_rows):
        yield first, first, min(shard_rows, total - first)


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("Reading parquet files", "ray") from error
    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise InvalidInput(f"{path} is not a parquet file: {error}.") from error


def read_shard(shard: Shard, job: Job) -> tuple[list[str], list[str]]:
    """(ids, texts). A row without an id is called by its file and number. Raises InvalidInput with the bad row."""
    ids, texts = [], []
    path = Path(shard.source)
    rows = _parquet_rows(path, shard, job) if path.suffix == ".parquet" else _line_rows(path, shard)
    for number, row in enumerate(rows, start=shard.first):
        where = f"{path}, row {number + 1}"
        id, text = _id_and_text(row, f"{path.name}:{number + 1}", job, where)
        ids.append(id)
        texts.append(text)
    if len(ids) != shard.rows:
        raise InvalidInput(f"{path} changed while it was read: {len(ids)} rows instead of {shard.rows}. Run again.")
    return ids, texts


def _line_rows(path: Path, shard: Shard) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        file.seek(shard.offset)
        number, offset = shard.first, shard.offset
        for whole in file:
            if number == shard.first + shard.rows:
                return
            line = _without_mark(whole, offset)
            offset += len(whole)
            if not line.strip():
                continue
            number += 1
            try:
                text = line.decode("utf-8").rstrip("\r\n")
                if path.suffix == ".txt":
                    yield {"text": text}
                    continue
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise InvalidInput(f"{path}, row {number}: {error}. Mend or remove the row.") from error
            if not isinstance(row, dict):
                raise InvalidInput(f"{path}, row {number} is {type(row).__name__}; a JSON object is needed.")
            yield row


def _parquet_rows(path: Path, shard: Shard, job: Job) -> Iterator[dict[str, Any]]:
    file = _parquet(path)
    wanted = [*_IDS, *_TEXTS, job.id_field, job.text_field, job.title_field]
    columns = [name for name in file.schema_arrow.names if name in wanted]
    at = 0
    for batch in file.iter_batches(batch_size=4096, columns=columns):
        start, stop = max(shard.offset - at, 0), min(shard.offset + shard.rows - at, len(batch))
        at += len(batch)
        if start < stop:
            yield from batch.slice(start, stop - start).to_pylist()
        if at >= shard.offset + shard.rows:
            return


def _id_and_text(row: dict[str, Any], fallback: str, job: Job, where: str) -> tuple[str, str]:
    text_field = job.text_field or next((name for name in _TEXTS if name in row), None)
    if text_field is None or not isinstance(row.get(text_field), str):
        looked = job.text_field or ", ".join(_TEXTS)
        raise InvalidInput(f"{where} has no text: looked for {looked}, found {', '.join(row)}. Name it by text_field.")
    text: str = row[text_field]
    if job.title_field and row.get(job.title_field):
        text = f"{row[job.title_field]}\n{text}"
    id_field = job.id_field or next((name for name in _IDS if name in row), None)
    if job.id_field and row.get(job.id_field) is None:
        raise InvalidInput(f"{where} has no {job.id_field}; found {', '.join(row)}.")
    found = row.get(id_field) if id_field else None
    return encodable(fallback if found is None else str(found)), encodable(text)


# One shard


@dataclass(frozen=True, slots=True)
class _Files:
    vectors: Path
    ids: Path
    record: Path


def _shard_files(folder: Path, name: str) -> _Files:
    return _Files(folder / f"{name}.npy", folder / f"{name}.ids", folder / f"{name}.json")


def encode_shard(
    encoder: Encoder, shard: Shard, folder: Path, job: Job, progress: Progress = no_progress
) -> dict[str, Any]:
    """Write the shard's files, or find them as they should be; what is known of it."""
    ids, texts = read_shard(shard, job)
    files = _shard_files(folder, shard.name)
    made_from = {"fingerprint": encoder.fingerprint, "side": job.side, "rows": len(ids), "content": _digest(ids, texts)}
    record = read_json(files.record)
    if (
        record is not None
        and all(record.get(key) == value for key, value in made_from.items())
        and _whole(files, record)
    ):
        return {**record, "name": shard.name, "reused": True}
    files.record.unlink(missing_ok=True)
    encode = encoder.encode_passages if job.side == "passage" else encoder.encode_queries
    vectors = encode(texts, progress=progress)
    beside = files.vectors.with_name(files.vectors.name + ".tmp")
    with beside.open("wb") as stream:
        np.save(stream, vectors, allow_pickle=False)
    beside.replace(files.vectors)
    write_text(files.ids, "".join(json.dumps(id, ensure_ascii=False) + "\n" for id in ids))
    record = {**made_from, "source": shard.source, "dim": encoder.dim, "truncated": encoder.truncated}
    write_text(files.record, json.dumps(record) + "\n")
    return {**record, "name": shard.name, "reused": False}


def _whole(files: _Files, record: dict[str, Any]) -> bool:
    try:
        vectors = np.load(files.vectors, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return False
    return files.ids.is_file() and vectors.shape == (record["rows"], record["dim"])


def _digest(ids: Sequence[str], texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for part in (*ids, *texts):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


# Engines


def open_job(job: Job) -> Encoder:
    """The encoder that a job names."""
    from ragadapt.encoder import open_encoder

    if job.side not in ("passage", "query"):
        raise InvalidInput(f"side = {job.side!r}: it is 'passage' or 'query'.")
    return open_encoder(job.model, device=job.device, precision=job.precision)


def _locally(
    encoder: Encoder, shards: Sequence[Shard], folder: Path, job: Job, progress: Progress
) -> list[dict[str, Any]]:
    records, total, before = [], sum(shard.rows for shard in shards), 0

    def within(_: str, done: int, __: int) -> None:
        progress("encode", before + done, total)

    for shard in shards:
        records.append(encode_shard(encoder, shard, folder, job, within))
        before += shard.rows
        progress("encode", before, total)
    return records


class _Worker:
    """An encoder in a process of a Ray cluster. Called with a batch of one shard, as Ray Data hands it over."""

    def __init__(self, job: Job, folder: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.job = job
        self.folder = Path(folder)
        self.encoder = open_job(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        records = [
            json.dumps(encode_shard(self.encoder, Shard(**json.loads(str(text))), self.folder, self.job))
            for text in batch["shard"]
        ]
        return {"record": np.array(records, dtype=object)}


def _with_ray(
    shards: Sequence[Shard], folder: Path, job: Job, workers: int | None, progress: Progress
) -> list[dict[str, Any]]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("Encoding with Ray", "ray") from error
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        cluster: Any = ray
        resources = cluster.cluster_resources()
        cores, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
        on_gpu = gpus > 0 and job.device in ("auto", "cuda")
        count = min(workers or (gpus if on_gpu else max(1, cores // 8)), max(1, len(shards)))
        threads = max(1, cores // max(count, 1) if not on_gpu else cores // max(gpus, 1))
        rows = [{"shard": json.dumps(asdict(shard))} for shard in shards]
        made = ray.data.from_items(rows, override_num_blocks=max(1, len(rows))).map_batches(
            _Worker,
            fn_constructor_args=(job, str(folder), threads),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=1 if on_gpu else threads,
            num_gpus=1 if on_gpu else 0,
        )
        records: dict[str, dict[str, Any]] = {}
        total, done = sum(shard.rows for shard in shards), 0
        for row in made.iter_rows():
            record = json.loads(row["record"])
            records[record["name"]] = record
            done += record["rows"]
            progress("encode", done, total)
    finally:
        if started:
            ray.shutdown()
    return [records[shard.name] for shard in shards]


def _identity(job: Job) -> tuple[str, int]:
    """Fingerprint and width of the encoder; it is opened on the CPU for that, and a mistake shows before Ray starts."""
    encoder = open_job(Job(job.model, job.side, device="cpu", precision="float32"))
    return encoder.fingerprint, encoder.dim


# The folder


def _check_folder(folder: Path, fingerprint: str, job: Job) -> None:
    known = read_json(folder / MANIFEST)
    if known is None:
        return
    if known.get("format", 0) > FORMAT:
        raise InvalidInput(
            f"{folder} was written by a newer ragadapt (format {known['format']}). Choose another folder."
        )
    for name, value in (("fingerprint", fingerprint), ("side", job.side)):
        if known.get(name) != value:
            raise InvalidInput(
                f"{folder} holds vectors of another {'encoder' if name == 'fingerprint' else 'side'} "
                f"({known.get(name)!s:.12}, not {value:.12}). Choose another folder, or delete that one."
            )


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def _listed(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("name", "source", "rows", "content")}
