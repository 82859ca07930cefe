"""Models: the tenant's own language model and embeddings."""
