"""Lifecycle: what operators do to tenants and their keys."""
