"""The library: documents that a tenant's people keep, and the stores in which they are found again."""
