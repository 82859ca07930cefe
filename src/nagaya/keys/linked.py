"""A key service whose keys open only while another key does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from nagaya.keys.driver import KeyContext, KeyDriver


class LinkedKeys:
    """The keys of a workspace, which end with its tenant's: each use first asks ``check`` for the tenant's key, and
    what that raises stands for the answer. Whoever opened ``keys`` closes them."""

    def __init__(self, keys: KeyDriver, check: Callable[[], Awaitable[None]]) -> None:
        self._keys = keys
        self._check = check

    async def generate(self, context: KeyContext) -> tuple[bytes, bytes]:
        await self._check()
        return await self._keys.generate(context)

    async def unwrap(self, wrapped: bytes, context: KeyContext) -> bytes:
        await self._check()
        return await self._keys.unwrap(wrapped, context)

    async def close(self) -> None:
        """Nothing to close: it opened nothing."""
