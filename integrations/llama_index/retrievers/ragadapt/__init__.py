"""The retriever of `llama_index_ragadapt` where LlamaIndex users look for it."""

from llama_index_ragadapt import LoRARetriever

__all__ = ["LoRARetriever"]
