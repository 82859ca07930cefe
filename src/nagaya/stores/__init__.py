"""Stores: where sealed records lie. A store sees opaque keys and sealed bytes, and is not trusted with more."""
