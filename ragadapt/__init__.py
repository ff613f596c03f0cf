"""ragadapt: fit a retriever to your own documents. Names load on first use: `import ragadapt` imports no torch."""

from ragadapt.version import __version__

__all__ = ["__version__"]
