"""bfloat16 where it is faster and agrees with float32; the agreement is measured, not assumed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from ragadapt.checks import checked_choice, shown
from ragadapt.encoder.attention import has_amx
from ragadapt.encoder.batches import refuse_without_memory
from ragadapt.errors import InvalidInput, reason_of
from ragadapt.threads import one_thread

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
PROBE_QUERIES: tuple[str, ...] = (
    "how do I reset my password",
    "symptoms of vitamin D deficiency",
    "open a file and read it line by line",
    "when is the invoice due",
    "Wie kündige ich meinen Vertrag?",
    "cheap flights to Lisbon in May",
)
PROBE_PASSAGES: tuple[str, ...] = (
    "To choose a new password, open Settings, then Security, and follow the link that we send you.",
    "Low vitamin D can cause fatigue, bone pain and muscle weakness; in children it may lead to rickets.",
    "Iterating over a file object yields one line at a time, so large files need little memory.",
    "Invoices are payable within thirty days of receipt unless the contract says otherwise.",
    "Der Vertrag kann mit einer Frist von drei Monaten zum Ende der Laufzeit schriftlich gekündigt werden.",
    "Fares to Portugal are lowest in spring and late autumn, when demand from holiday makers falls.",
    "The mitochondrion produces most of the chemical energy that a cell needs.",
    "def mean(values): return sum(values) / len(values)",
    "The council voted seven to two to close the bridge for repairs until October.",
    "Preheat the oven to 180 degrees and bake the bread for forty minutes.",
    "Error 504: the gateway did not receive a response from the upstream server in time.",
    "In the second quarter revenue rose by four percent while costs stayed level.",
)

_MIN_COSINE = 0.999
_MIN_RANK_AGREEMENT = 0.98
_ROUNDS = 6  # products of each kind, of which the quickest counts
_TIE = 0.004  # pairs of scores closer than this may swap: no ranking metric rests on them


@dataclass(frozen=True, slots=True)
class Precision:
    """The precision in use and how well it agrees with float32 on the probe.

    min_cosine: of the least similar vector with its float32 twin. rank_agreement: share of passage pairs
    that every probe query orders as float32 does. Both are 1 for float32.
    """

    dtype: str
    device: str
    reason: str
    min_cosine: float = 1.0
    rank_agreement: float = 1.0

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.dtype]

    @property
    def words(self) -> str:
        """For a reader: "bfloat16 on cpu (least cosine with float32 0.99998, rank agreement 0.998)"."""
        agrees = f" (least cosine with float32 {self.min_cosine:.5f}, rank agreement {self.rank_agreement:.3f})"
        return f"{self.dtype} on {self.device}" + (agrees if self.dtype != "float32" else "")

    @property
    def holds(self) -> bool:
        return self.min_cosine >= _MIN_COSINE and self.rank_agreement >= _MIN_RANK_AGREEMENT


def choose_device(device: str) -> str:
    """ "auto" → cuda, mps or cpu, in this order of preference; "cuda" → this process's own; another one as it stands.

    Raises InvalidInput for a device that torch does not know or this machine does not have.
    """
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # a launcher gives every process its own GPU
    if device == "cuda" and torch.cuda.is_available():
        device = own
    if device != "auto":
        try:
            torch.zeros(1, device=device).tolist()
        except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
            refuse_without_memory(error, "Even one number", device)
            raise InvalidInput(
                f"device = {shown(device)} cannot be used here ({reason_of(error)}). It is auto, cpu, cuda:1, mps …"
            ) from error
        return device
    if torch.cuda.is_available():
        return own
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def choose_precision(precision: str, device: str) -> Precision:
    """The precision to try. "auto" takes bfloat16 only where the hardware multiplies it natively, and
    faster than float32.

    Raises InvalidInput for one that there is not.
    """
    checked_choice("precision", precision, PRECISIONS)
    if precision != "auto":
        return Precision(precision, device, "as configured")
    kind = device.split(":")[0]
    if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision("bfloat16", device, "the GPU multiplies bfloat16 natively")
    if kind == "cpu":
        if has_amx():
            return Precision("bfloat16", device, "the CPU has AMX")
        supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
        if supported is not None and supported():
            if speedup() > 1:
                return Precision("bfloat16", device, "the CPU has AVX512-BF16")
            return Precision("float32", device, "the CPU has AVX512-BF16, but multiplies float32 faster")
    return Precision("float32", device, "no native bfloat16")


@cache
def speedup() -> float:
    """How many times as fast as float32 this CPU multiplies bfloat16, measured once a process in some 50 ms.

    AVX512-BF16 does not say: one processor multiplies 2.4 times as fast by it, another one half as fast.
    """
    rows, weights = torch.ones(256, 384), torch.ones(384, 1536)  # a layer of a small encoder, over a batch
    best = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    with one_thread():
        for _ in range(_ROUNDS):
            for dtype in best:
                left, right = rows.to(dtype), weights.to(dtype)
                started = time.thread_time()  # what others do on the machine counts for nothing
                left @ right
                best[dtype] = min(best[dtype], time.thread_time() - started)
    return best[torch.float32] / max(best[torch.bfloat16], 1e-9)


def agreement(
    reference: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    candidate: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
) -> tuple[float, float]:
    """(least cosine, rank agreement) between two encodings of the same (queries, passages)."""
    cosine = min(
        float(np.min(np.sum(mine * theirs, axis=1))) for mine, theirs in zip(reference, candidate, strict=True)
    )
    scores = reference[0] @ reference[1].T  # (Q, d) x (P, d) -> (Q, P)
    others = candidate[0] @ candidate[1].T
    gaps = scores[:, :, None] - scores[:, None, :]  # (Q, P, P)
    clear = gaps > _TIE
    kept = (others[:, :, None] - others[:, None, :]) > 0
    ranks = float(kept[clear].mean()) if clear.any() else 1.0
    return cosine, ranks
