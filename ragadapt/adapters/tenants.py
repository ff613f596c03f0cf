"""An adapter for every tenant on the query side of one base: one transformer, in which they take turns.

What a tenant costs are the tensors of its adapter in memory and, when another tenant asked last, copying them into the
place of that one's. The frozen weights are there once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from ragadapt.adapters.attached import AdaptedEncoder, attach
from ragadapt.adapters.library import ENTRY, Library, checked_name
from ragadapt.adapters.method import method_named
from ragadapt.adapters.state import AdapterState
from ragadapt.encoder import Encoder
from ragadapt.encoder.loading import sides
from ragadapt.errors import InvalidConfiguration, InvalidInput
from ragadapt.files import file_state

HELD = 256  # adapters that are kept in memory; the others are read when their tenant asks

Seen = tuple[int, int, int]


class TenantAdapters:
    """The query vectors of tenants: by their own adapter in a library, by the base where a tenant has none.

    An entry of the library is a tenant's by its name. What is added, replaced or removed there counts from the next
    question on. Several threads may share one; they take turns.
    """

    def __init__(self, base: Encoder, library: Library, *, held: int = HELD) -> None:
        """Raises InvalidConfiguration where the base's passages are not its own."""
        if base.spec.adapter is not None:
            raise InvalidConfiguration(
                f"The model was adapted itself ({base.spec.adapter.words}), and tenants' adapters stand on a base as "
                "it is. Fit the retriever with --method none, and every tenant's adapter with --adapt query."
            )
        self.base = base
        self.library = library
        self._whole: Encoder | None = None
        self._held = held
        self._states: OrderedDict[str, tuple[Seen, AdapterState]] = OrderedDict()
        self._towers: dict[str, AdaptedEncoder] = {}  # by settings: adapters of one shape share one
        self._in_place: dict[str, tuple[str, Seen]] = {}  # settings → whose adapter is in
        self._lock = threading.RLock()

    def __contains__(self, tenant: str) -> bool:
        return self._seen(tenant) is not None

    def _seen(self, tenant: str) -> Seen | None:
        try:
            place: Path = self.library.folder / checked_name(tenant)
        except InvalidInput:  # a tenant's name may be anything; such a one has no adapter
            return None
        return file_state(place / ENTRY)

    def encode_queries(self, tenant: str, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """(Q, d) as the tenant's adapter makes them. Raises InvalidConfiguration for one that does not belong here,
        StoreCorrupt."""
        seen = self._seen(tenant)
        if seen is None:
            return self.base.encode_queries(queries)
        with self._lock:
            state = self._state(tenant, seen)
            key = f"{state.config.model_dump_json()} {state.seed if method_named(state.config.method).SEEDED else ''}"
            tower = self._towers.get(key)
            if tower is None:
                tower = self._towers[key] = attach(self._attachable(), state.config, seed=state.seed)
            if self._in_place.get(key) != (tenant, seen):
                self._in_place.pop(key, None)
                tower.begin_at(state)
                tower.scale(state.scale)
                self._in_place[key] = tenant, seen
            return tower.encode_queries(queries)

    def _attachable(self) -> Encoder:
        """The base with sentence-transformers' own head, which an encoder that torch alone opened has not."""
        tower = self.base.query_tower
        if self._whole is None and tower is not None:
            fresh, _ = sides(self.base._restore())
            twin = tower.clone()  # the transformer's weights are shared
            twin.head = nn.ModuleList(fresh[1:]).to(twin.device)
            base = self.base
            self._whole = Encoder(base.spec, base.config, twin, twin, base.precision, base._restore)
        return self._whole or self.base

    def _state(self, tenant: str, seen: Seen) -> AdapterState:
        known = self._states.get(tenant)
        if known is None or known[0] != seen:
            state = self.library.entry(tenant).adapter()
            if state.base != self.base.spec.base:
                raise InvalidConfiguration(
                    f"The adapter of tenant {tenant!r} belongs to the base model {state.model!r}, and the passages "
                    f"here were encoded by {self.base.spec.model!r}. Fit it on that base."
                )
            if state.config.adapt != "query":
                raise InvalidConfiguration(
                    f"The adapter of tenant {tenant!r} changes passages too, and these are the same for all tenants. "
                    "Fit it with --adapt query."
                )
            known = self._states[tenant] = seen, state
        self._states.move_to_end(tenant)
        while len(self._states) > self._held:
            self._states.popitem(last=False)
        return known[1]
