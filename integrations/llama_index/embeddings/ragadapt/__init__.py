"""The embedding of `llama_index_ragadapt` where LlamaIndex users look for it."""

from llama_index_ragadapt import LoRAEmbedding

__all__ = ["LoRAEmbedding"]
