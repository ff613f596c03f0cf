"""What stands behind ragadapt.queries.generate: prompts, answers into queries, the two backends, the cache."""
