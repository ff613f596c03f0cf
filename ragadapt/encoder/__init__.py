"""Text → vectors: the encoder, its spec and its fingerprint."""

from ragadapt.encoder.encoder import Encoder, SavedModel, Vectors
from ragadapt.encoder.named import open_encoder
from ragadapt.encoder.precision import Precision
from ragadapt.encoder.presets import PRESETS, Preset, english_only, known_prompts
from ragadapt.encoder.spec import AdapterSpec, EncoderSpec
from ragadapt.encoder.tower import Tower

__all__ = [
    "PRESETS",
    "AdapterSpec",
    "Encoder",
    "EncoderSpec",
    "Precision",
    "Preset",
    "SavedModel",
    "Tower",
    "Vectors",
    "english_only",
    "known_prompts",
    "open_encoder",
]
