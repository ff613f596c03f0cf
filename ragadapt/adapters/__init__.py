"""What is trained on a transformer, by any method, and the re-weighting that low-rank pairs give for free."""

from ragadapt.adapters.attached import AdaptedEncoder, AdapterEffect, TrainableShare, attach
from ragadapt.adapters.state import AdapterState

__all__ = ["AdaptedEncoder", "AdapterEffect", "AdapterState", "TrainableShare", "attach"]
