"""ragadapt: fit a retriever to your own documents.

Names load on first use, so `import ragadapt` imports neither torch nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ragadapt.version import __version__

if TYPE_CHECKING:
    from ragadapt.config import EncoderConfig, FitConfig, load_config
    from ragadapt.encoder import Encoder
    from ragadapt.errors import RagadaptError
    from ragadapt.pipeline.fit import FitResult, fit
    from ragadapt.pipeline.queries import Labels
    from ragadapt.pipeline.reindex import reindex
    from ragadapt.retriever import Retriever
    from ragadapt.values import Chunk, Document, Hit, Query

__all__ = [
    "Chunk",
    "Document",
    "Encoder",
    "EncoderConfig",
    "FitConfig",
    "FitResult",
    "Hit",
    "Labels",
    "Query",
    "RagadaptError",
    "Retriever",
    "__version__",
    "fit",
    "load_config",
    "reindex",
]

_HOMES = {
    "Chunk": "ragadapt.values",
    "Document": "ragadapt.values",
    "Encoder": "ragadapt.encoder",
    "EncoderConfig": "ragadapt.config",
    "FitConfig": "ragadapt.config",
    "FitResult": "ragadapt.pipeline.fit",
    "Hit": "ragadapt.values",
    "Labels": "ragadapt.pipeline.queries",
    "Query": "ragadapt.values",
    "RagadaptError": "ragadapt.errors",
    "Retriever": "ragadapt.retriever",
    "fit": "ragadapt.pipeline.fit",
    "load_config": "ragadapt.config",
    "reindex": "ragadapt.pipeline.reindex",
}

if not TYPE_CHECKING:  # a type checker would take it for "any name exists"

    def __getattr__(name: str) -> object:
        """A public name, imported when it is first asked for (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module 'ragadapt' has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value  # the next look finds it without this function
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
