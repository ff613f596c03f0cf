"""A transformer that keeps its adapter: for what cannot be folded into its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sentence_transformers.models import Transformer

if TYPE_CHECKING:
    from ragadapt.adapters.method import Method
    from ragadapt.adapters.state import AdapterState

_FOLDER = "adapter"


class AdaptedTransformer(Transformer):  # type: ignore[misc]
    """sentence-transformers' Transformer with an adapter on it. Saved, it is the base and the adapter beside it."""

    keeps_adapter = True
    adapter: tuple[AdapterState, Method]

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """The base as it was, and the adapter in a folder of its own."""
        state, method = self.adapter
        method.detach()
        super().save(output_path, *args, **kwargs)
        state.write(Path(output_path) / _FOLDER)
        self.adapter = (state, state.attach(self.model))

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> Self:
        from ragadapt.adapters.state import AdapterState

        made: Self = super().load(model_name_or_path, subfolder=subfolder, **kwargs)
        state = AdapterState.read(Path(model_name_or_path) / subfolder / _FOLDER)
        made.adapter = (state, state.attach(made.model))
        return made


def ship(transformer: Any, state: AdapterState, method: Method) -> None:
    """Make a Transformer one that keeps the adapter which is attached to it."""
    transformer.__class__ = AdaptedTransformer
    transformer.adapter = (state, method)
