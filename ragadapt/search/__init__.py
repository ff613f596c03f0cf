"""One search for everything: vectors and words, fused."""
