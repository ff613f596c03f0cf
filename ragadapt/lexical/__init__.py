"""The lexical side: words of any language, and BM25 over them."""

from ragadapt.lexical.index import LexicalIndex
from ragadapt.lexical.ranking import Ranking, best_first
from ragadapt.lexical.tokens import tokenise

__all__ = ["LexicalIndex", "Ranking", "best_first", "tokenise"]
