"""Learning from examples: losses, batches, the loop."""

from ragadapt.training.examples import Example, TrainingSet
from ragadapt.training.loop import Dev, Point, TrainingResult, train, untrained
from ragadapt.training.priming import Recipe, prime_encoder

__all__ = [
    "Dev",
    "Example",
    "Point",
    "Recipe",
    "TrainingResult",
    "TrainingSet",
    "prime_encoder",
    "train",
    "untrained",
]
