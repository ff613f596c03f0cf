"""A saved retriever, verified: every hash, the parts belong together, the adapter acts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragadapt.doctor.measure import size_words
from ragadapt.errors import RagadaptError
from ragadapt.store.workspace import open_store
from ragadapt.values import Progress, no_progress

if TYPE_CHECKING:
    from ragadapt.encoder import Encoder
    from ragadapt.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was verified. detail: what was found."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Examination:
    """All checks of a saved retriever. Those that could not be reached after a failure are missing."""

    path: Path
    checks: tuple[Check, ...]

    @property
    def sound(self) -> bool:
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"path": str(self.path), "sound": self.sound, "checks": [asdict(check) for check in self.checks]}

    def lines(self) -> list[str]:
        """For a terminal."""
        width = max(len(check.name) for check in self.checks)
        marks = {True: "ok", False: "FAILED"}
        found = [f"{marks[check.passed]:<7} {check.name:<{width}}  {check.detail}" for check in self.checks]
        failed = sum(not check.passed for check in self.checks)
        return [
            *found,
            "",
            "The retriever is sound." if self.sound else f"{failed} of {len(self.checks)} checks failed.",
        ]


_PROBES = 16  # passages whose stored vectors are compared with fresh ones
_SAME_VECTOR = 0.99  # least cosine: precision and quantisation may differ, models may not


def examine(
    path: str | Path, *, device: str = "auto", precision: str = "auto", progress: Progress = no_progress
) -> Examination:
    """Verify a saved retriever: every file's hash, model and index belong together, counts agree, the adapter acts.

    Raises NotARetriever where there is none; anything else that is wrong becomes a failed check.
    """
    opened = open_store(path, "none")
    folder = opened.path
    checks: list[Check] = []
    progress("verify files", 0, 1)
    try:
        opened = open_store(folder, "full")
        size = sum(record.size for record in opened.manifest.files.values())
        checks.append(
            Check("files", True, f"{len(opened.manifest.files)} files, {size_words(size)}: every hash is right")
        )
    except RagadaptError as error:
        checks.append(Check("files", False, str(error)))
    progress("verify files", 1, 1)
    try:
        checks += _examine_parts(folder, device, precision)
    except RagadaptError as error:
        checks.append(Check("opens", False, str(error)))
    return Examination(opened.path, tuple(checks))


def _examine_parts(folder: Path, device: str, precision: str) -> Iterable[Check]:
    from ragadapt.retriever import Retriever

    with Retriever.open(folder, device=device, precision=precision) as opened:
        retriever = opened.snapshot()
        encoder, index, lexical = retriever.encoder, retriever.searcher.index, retriever.searcher.lexical
        built = retriever.manifest.sections.get("precision", {}).get("dtype", encoder.precision.dtype)
        runs = encoder.precision.words + (f", built in {built}" if built != encoder.precision.dtype else "")
        checks = [Check("opens", True, f"{index.kind} index, {encoder.dim}-d, {runs}")]
        short = encoder.fingerprint[:12]
        same = index.fingerprint in (None, encoder.fingerprint)
        stored = "unknown" if index.fingerprint is None else index.fingerprint[:12]
        checks.append(
            Check("fingerprint", same, f"model {short}" + (", index the same" if same else f", index {stored}"))
        )
        counts = {"chunks": len(retriever.chunks), "vectors": len(index), "lexical": len(lexical)}
        detail = ", ".join(f"{count:,} {name}" for name, count in counts.items())
        checks.append(Check("counts", len(set(counts.values())) == 1, detail))
        checks.append(_check_vectors(retriever))
        checks.append(_check_adapter(folder / "model", encoder))
        checks.append(Check("confidence", True, retriever.searcher.confidence.reason))
        if retriever.has_feedback:
            checks.append(_check_feedback(retriever))
        return checks


def _check_feedback(retriever: Snapshot) -> Check:
    pefa = retriever.feedback()
    problems, status = pefa.problems(), pefa.status()
    detail = f"{status.active:,} in force on {status.passages:,} passages"
    if status.inactive:
        detail += f", {status.inactive:,} about passages that are gone"
    return Check("feedback", not problems, "; ".join(problems) or f"{detail}; ledger, vectors and search agree")


def _check_vectors(retriever: Snapshot) -> Check:
    ids = retriever.chunks.ids()
    probe = ids[:: max(1, len(ids) // _PROBES)][:_PROBES]
    fresh = retriever.encoder.encode_passages([chunk.passage for chunk in retriever.chunks.get(probe)])
    stored = retriever.searcher.index.vectors(probe)
    norms = np.maximum(np.linalg.norm(stored, axis=1) * np.linalg.norm(fresh, axis=1), 1e-12)
    least = float(np.min(np.sum(stored * fresh, axis=1) / norms))
    return Check(
        "vectors",
        least >= _SAME_VECTOR,
        f"{len(probe)} passages encoded anew: least cosine with the stored {least:.4f}",
    )


def _check_adapter(model: Path, encoder: Encoder) -> Check:
    from ragadapt.adapters.state import saved_change

    adapter = encoder.spec.adapter
    if adapter is None or adapter.scale == 0:
        return Check("adapter", True, "none: the base model ships")
    if encoder.spec.with_adapter(None).fingerprint == encoder.fingerprint:
        return Check("adapter", False, f"{adapter.words}: the model's fingerprint is its base's")
    change = saved_change(model)
    if change is None:  # saved before adapters were kept beside the model
        return Check("adapter", True, f"{adapter.words}: its weights are part of the model")
    detail = f"{adapter.words}: norm of what was learnt {change:.3g}"
    return Check("adapter", change > 0, detail + ("" if change else ", it does nothing"))
