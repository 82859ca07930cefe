"""Blobs: where large sealed things lie, such as files."""
