"""A tenant's key versions, wrapped, as the registry keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol, runtime_checkable

import msgspec


class KeyVersionState(StrEnum):
    """``active`` seals and opens; ``decrypt_only`` opens; ``destroyed`` does neither, for ever."""

    ACTIVE = "active"
    DECRYPT_ONLY = "decrypt_only"
    DESTROYED = "destroyed"


class KeyVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a tenant's data key. ``wrapped`` is empty once destroyed. ``uses`` counts seals, rounded up."""

    version: int
    state: KeyVersionState
    wrapped: bytes
    created_at_us: int
    uses: int = 0


class KeyVersionSource(Protocol):
    """Where a keyring reads a room's key versions. The registry implements it."""

    async def key_versions(self, room: str) -> Sequence[KeyVersion]: ...

    async def add_key_uses(self, room: str, version: int, uses: int) -> None:
        """Add to the count of seals under a version. Lost counts are bounded by the keyring's flush size."""
        ...


@runtime_checkable
class RemembersKeyVersions(Protocol):
    """An optional power of a source: to answer from memory, kept true by the changes it hears of."""

    def remembered_key_versions(self, room: str) -> Sequence[KeyVersion] | None:
        """The room's key versions as last read; None where they must be read. No I/O. A version made by another
        process within the last second or so may be missing: whoever misses one reads them afresh."""
        ...
