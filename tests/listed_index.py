"""An engine as a newcomer writes it: the plainest one, a list of rows in one JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from ragadapt.config import IndexConfig
from ragadapt.index import Filter, compile_filter
from ragadapt.index.contract import (
    Engine,
    Floats,
    Payload,
    Place,
    check_ids,
    check_k,
    check_vectors,
    missing_id,
    prepare_upsert,
    write_description,
)
from ragadapt.lexical.ranking import Ranking, best_first
from ragadapt.values import Progress, no_progress


class ListedIndex(Engine):
    """Rows of id, vector and metadata."""

    kind = "listed"
    finished = 0

    def __init__(self, folder: Path | None, dim: int, fingerprint: str | None) -> None:
        self.folder, self.dim, self.fingerprint = folder, dim, fingerprint
        self.rows: dict[str, tuple[Floats, dict[str, Any]]] = {}

    @classmethod
    def at(cls, place: Place, **settings: Any) -> Self:
        if place.description is None or place.folder is None:
            return cls(place.folder, place.width(), place.fingerprint)
        index = cls(place.folder, place.description["dim"], place.description["fingerprint"])
        for id, vector, payload in json.loads((place.folder / "rows.json").read_text(encoding="utf-8")):
            index.rows[id] = np.array(vector, np.float32), payload
        return index

    def __len__(self) -> int:
        return len(self.rows)

    def ids(self, filter: Filter | None = None) -> list[str]:
        passes = compile_filter(filter) if filter is not None else None
        return [id for id, (_, payload) in self.rows.items() if passes is None or passes(id, payload)]

    def has(self, ids: Sequence[str]) -> list[bool]:
        return [id in self.rows for id in check_ids(ids)]

    def upsert(self, ids: Sequence[str], vectors: ArrayLike, payloads: Sequence[Payload] | None = None) -> None:
        self.rows.update(
            (id, (row.copy(), plain)) for id, row, plain in zip(*prepare_upsert(ids, vectors, payloads, self.dim))
        )

    def update_vectors(self, ids: Sequence[str], vectors: ArrayLike) -> None:
        self.upsert(ids, vectors, self.payloads(ids))

    def delete(self, ids: Sequence[str]) -> None:
        for id in check_ids(ids):
            self.rows.pop(id, None)

    def search(self, vectors: ArrayLike, k: int, filter: Filter | None = None) -> list[Ranking]:
        queries, ids = check_vectors(vectors, self.dim, "query vectors"), self.ids(filter)
        return [best_first(self.vectors(ids) @ query, check_k(k), ids) for query in queries]

    def vectors(self, ids: Sequence[str]) -> Floats:
        rows = np.empty((len(ids), self.dim), np.float32)
        for at, id in enumerate(check_ids(ids)):
            if id not in self.rows:
                raise missing_id(id)
            rows[at] = self.rows[id][0]
        return rows

    def payloads(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        return [dict(self.rows[id][1]) for id in ids]

    def batches(self, size: int = 4096) -> Iterator[tuple[list[str], Floats]]:
        ids = list(self.rows)
        for start in range(0, len(ids), size):
            yield ids[start : start + size], self.vectors(ids[start : start + size])

    def finish(self, config: IndexConfig, progress: Progress = no_progress) -> None:
        ListedIndex.finished += 1

    def save(self, folder: str | Path | None = None) -> None:
        target = Path(folder) if folder is not None else self.folder
        assert target is not None
        target.mkdir(parents=True, exist_ok=True)
        rows = [[id, vector.tolist(), payload] for id, (vector, payload) in self.rows.items()]
        (target / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
        write_description(target, {"kind": self.kind, "dim": self.dim, "fingerprint": self.fingerprint})

    def close(self) -> None:
        self.rows = {}
