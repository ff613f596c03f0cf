"""What `ragadapt fit` does, in its order, and what comes after it: refresh and reindex."""
