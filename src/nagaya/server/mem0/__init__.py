"""mem0's routes over the tenant's memories, for its clients as they are. Their paths end with a slash; ours do not."""
