"""PEFA: parameter-free adapters. Feedback takes effect in milliseconds, and taking it back restores what was.

ledger (on disk) → state (arrays) → views (search), held together by Pefa.
"""

from __future__ import annotations

from ragadapt.config import PefaConfig
from ragadapt.pefa.layer import PassageResolver, Pefa, Status
from ragadapt.pefa.ledger import Feedback, Ledger, Withdrawal, checked_feedback, named_tenant

__all__ = [
    "Feedback",
    "Ledger",
    "PassageResolver",
    "Pefa",
    "PefaConfig",
    "Status",
    "Withdrawal",
    "checked_feedback",
    "named_tenant",
]
