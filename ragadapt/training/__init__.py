"""Learning from examples: losses, batches, the loop."""

from ragadapt.training.examples import Example, TrainingSet
from ragadapt.training.loop import Dev, Point, TrainingResult, train, untrained

__all__ = ["Dev", "Example", "Point", "TrainingResult", "TrainingSet", "train", "untrained"]
