"""What the places of a cache are called on a server that others may read: hashes that tell a reader nothing."""

from __future__ import annotations

import hashlib


def place_digest(*texts: str) -> str:
    """A hash of the texts' lengths and bytes, in hex: no two lists of texts share one."""
    digest = hashlib.sha256()
    for text in texts:
        # What cannot be encoded is still a key of its own.
        raw = text.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
    return digest.hexdigest()
