"""What is trained: the LoRA family on the top layers, and the re-weighting that its pairs give for free."""

from ragadapt.adapters.adapted import AdaptedEncoder, AdapterEffect, attach
from ragadapt.adapters.state import AdapterState

__all__ = ["AdaptedEncoder", "AdapterEffect", "AdapterState", "attach"]
