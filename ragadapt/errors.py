"""Every error that ragadapt raises on purpose. Each message says the value, the rule and the next step.

RagadaptError
├── InvalidInput           what the caller passed breaks a rule (also a ValueError)
│   ├── InvalidConfiguration   an unknown key, a value out of range
│   ├── InvalidLabels          labelled queries or judgements that cannot be read or matched
│   └── InvalidFilter          a metadata filter that no backend, or not this one, can evaluate
├── EmptyCorpus            nothing readable was found
├── MissingExtra           an optional package is not installed (also an ImportError)
├── ModelNotFound          a base model or generator cannot be loaded
├── GeneratorFailed        the language model or endpoint that writes queries gave up
├── TrainingFailed         training could not go on (memory, a lost process)
│   └── LossDiverged           the loss is no finite number any more
├── IndexFault             the index family
│   ├── DimensionMismatch      vectors and index differ in width
│   ├── FingerprintMismatch    index and encoder do not belong together
│   ├── IndexCorrupt           an index file cannot be read
│   └── IndexUnreachable       a vector server does not answer
└── StoreError             the saved-folder family
    ├── NotARetriever          the folder holds no retriever
    ├── FormatTooNew           written by a newer ragadapt
    ├── StoreCorrupt           a file is missing or its hash differs
    └── StoreLocked            another process is writing there
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ragadapt.secrets import redacted


class RagadaptError(Exception):
    """The root: `except RagadaptError` catches everything that ragadapt raises on purpose.

    Its message shows no secret: many quote what a user typed or a server said.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(each) if isinstance(each, str) else each for each in args))


def reason_of(error: BaseException) -> str:
    """What another library's error says in its first line, to be quoted within a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .:") if lines else type(error).__name__


class InvalidInput(RagadaptError, ValueError):
    """What the caller passed breaks a rule; nothing was changed."""


class InvalidConfiguration(InvalidInput):
    """An unknown key or a value out of range in the configuration."""


class InvalidLabels(InvalidInput):
    """Labelled queries or judgements that cannot be read, or that match nothing."""


class InvalidFilter(InvalidInput):
    """A metadata filter that cannot be evaluated."""


class EmptyCorpus(RagadaptError):
    """No readable document was found. skipped: what there was, each with source and reason."""

    def __init__(self, message: str, skipped: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.skipped = tuple(skipped)


class MissingExtra(RagadaptError, ImportError):
    """An optional package is needed and not installed."""

    def __init__(self, what: str, extra: str, instead: str = "") -> None:
        text = f"{what} needs an optional package. Install it with: pip install 'ragadapt[{extra}]'"
        super().__init__(f"{text}. {instead}" if instead else text)
        self.extra = extra


class ModelNotFound(RagadaptError):
    """A base model or generator cannot be loaded."""


class GeneratorFailed(RagadaptError):
    """The language model or endpoint that writes queries gave up."""


class TrainingFailed(RagadaptError):
    """Training could not go on."""


class LossDiverged(TrainingFailed):
    """The loss is no finite number any more: the same training ends so again."""


class IndexFault(RagadaptError):
    """The index family."""


class DimensionMismatch(IndexFault):
    """Vectors and index differ in width."""


class FingerprintMismatch(IndexFault):
    """The index was built by another encoder."""


class IndexCorrupt(IndexFault):
    """An index file cannot be read."""


class IndexUnreachable(IndexFault):
    """A vector server does not answer."""


class StoreError(RagadaptError):
    """The saved-folder family."""


class NotARetriever(StoreError):
    """The folder holds no saved retriever."""


class FormatTooNew(StoreError):
    """The folder was written by a newer ragadapt."""


class StoreCorrupt(StoreError):
    """A file is missing or its hash differs from the manifest."""


class StoreLocked(StoreError):
    """Another process is writing to the folder."""
