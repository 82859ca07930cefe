"""The secrets port: named byte strings of one room, such as ``llm-connection``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


class SecretDriver(Protocol):
    """A tenant's secrets. Names are 1–64 characters of ``a-z 0-9 -``; values at most 64 KiB."""

    async def get(self, name: str) -> bytes | None:
        """The secret's value, or None where it is not set."""
        ...

    async def put(self, name: str, value: bytes) -> None:
        """Set or replace. Repeating it is harmless."""
        ...

    async def delete(self, name: str) -> None:
        """Remove. A name that is not set is no error."""
        ...

    async def names(self) -> Sequence[str]:
        """The names that are set, sorted."""
        ...


@runtime_checkable
class SecretSwap(Protocol):
    """An optional power: to set a secret only where nobody else has set it meanwhile."""

    async def swap(self, name: str, before: bytes | None, after: bytes) -> bool:
        """Set it if its value still is ``before`` (None: not set); gives whether it was."""
        ...
