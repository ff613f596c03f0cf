"""Hard negatives and teacher scores from the untuned hybrid's rankings."""

from ragadapt.mining.negatives import Mined, mine_negatives

__all__ = ["Mined", "mine_negatives"]
