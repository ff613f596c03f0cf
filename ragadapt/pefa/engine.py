"""PEFA-XS inside the Qdrant engine: feedback as a second vector of the points, λ in the query.

For programs that search the collection themselves, without ragadapt. Each point with feedback gets D (see
`ragadapt.pefa.state`) as its vector `feedback`; the score ⟨q, p⟩ + (1 − λ)·⟨q, D⟩ is a formula over a nested
prefetch, so that a passage which only one of the two lists holds is scored on both. Results equal those of
ragadapt's own search while no more than `limit` passages have feedback; beyond, the engine may miss some.

`bake` is the other way: one stored vector per passage at a fixed λ, for an index of any kind, and plain search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ragadapt.errors import InvalidInput
from ragadapt.index import Filter, VectorIndex
from ragadapt.index.contract import by_id_where_equal, check_k, check_vectors
from ragadapt.lexical.ranking import Ranking
from ragadapt.pefa.ledger import named_tenant
from ragadapt.pefa.state import SHARED
from ragadapt.search.fusion import Floats

if TYPE_CHECKING:
    from ragadapt.pefa.layer import Pefa

_PAGE = 1024
_LEAST = 64  # passages of each list that the formula looks at


def push(pefa: Pefa) -> int:
    """Write the feedback that is for all into the points of the Qdrant collection behind `pefa`; how many have some.

    Call it again after more feedback: points whose feedback is gone lose their second vector. Needs an index of kind
    qdrant or qdrant-edge that ragadapt made. Raises InvalidInput.
    """
    index = _engine(pefa.index)
    pefa.catch_up()
    overlay = pefa.state.overlays[SHARED]
    had = set(index.ids_with_feedback())
    gone = sorted(had - set(overlay.index))
    for start in range(0, len(gone), _PAGE):
        index.delete_feedback(gone[start : start + _PAGE])
    for start in range(0, len(overlay), _PAGE):
        index.put_feedback(overlay.ids[start : start + _PAGE], overlay.delta[start : start + _PAGE])
    return len(overlay)


def search(
    index: VectorIndex, vectors: Any, k: int, lam: float, filter: Filter | None = None, *, limit: int | None = None
) -> list[Ranking]:
    """Search by formula in the engine, after `push`. limit: passages of each list that are scored on both.

    None = enough for an exact result over the passages that have feedback now.
    """
    engine = _engine(index)
    rows, k = check_vectors(vectors, index.dim, "query vectors"), check_k(k)
    if not 0 <= lam <= 1:
        raise InvalidInput(f"lam = {lam!r}: λ is a number between 0 (feedback only) and 1 (feedback off).")
    if limit is None:
        limit = max(_LEAST, k + len(engine.ids_with_feedback()))
    results = []
    for points in engine.search_mixed(rows, k, 1.0 - lam, filter, limit):
        ids, scores = [id for id, _ in points], np.array([score for _, score in points], np.float32)
        results.append(by_id_where_equal(ids, scores))
    return results


def bake(pefa: Pefa, target: VectorIndex, lam: float, tenant: str | None = None) -> None:
    """Copy the index behind `pefa` into `target`, each passage with its one vector p + (1 − λ)·D."""
    from ragadapt.pefa.views import ExtraShortSearch

    pefa.catch_up()
    mixed = ExtraShortSearch(pefa.index, pefa.state, lam, named_tenant(tenant))
    for ids, _ in pefa.index.batches():
        payloads: list[Mapping[str, Any]] = list(pefa.index.payloads(ids))
        rows: Floats = mixed.vectors(ids)
        target.upsert(ids, rows, payloads)


def _engine(index: VectorIndex) -> Any:
    if not hasattr(index, "search_mixed"):
        raise InvalidInput(
            f"Feedback inside the engine needs an index of kind 'qdrant' or 'qdrant-edge'; this one is {index.kind!r}. "
            "Use Pefa.search, which works over every index, or bake."
        )
    return index
