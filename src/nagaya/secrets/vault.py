"""A tenant's secrets as the rest of the code uses them: a driver behind name and size limits and a deadline."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Final

from nagaya.errors import Conflict, InvalidValue, StoreUnreachable
from nagaya.secrets.driver import SecretDriver, SecretSwap

AWS_CONNECTION: Final = "aws-connection"
AZURE_CONNECTION: Final = "azure-connection"
LLM_CONNECTION: Final = "llm-connection"
ENTRAID_CONFIG: Final = "entraid-config"

MAX_VALUE_BYTES: Final = 64 * 1024
_TRIES: Final = 8
_NAME: Final = re.compile(r"[a-z0-9-]{1,64}")


def full_name(tenant_id: str, name: str) -> str:
    """What a secret is called where all tenants' secrets lie in one place: ``tenant/{id}/{name}``."""
    return f"tenant/{tenant_id}/{name}"


class Vault:
    """One room's secrets. Every method raises ``InvalidValue`` for a name or value outside the limits and
    ``StoreUnreachable`` past ``deadline_s``; a value is never part of a message."""

    def __init__(self, driver: SecretDriver, *, deadline_s: float = 10.0) -> None:
        self._driver = driver
        self._deadline_s = deadline_s

    async def get(self, name: str) -> bytes | None:
        """The secret's value, or None where it is not set."""
        _check_name(name)
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._driver.get(name)
        except (TimeoutError, OSError) as lost:
            raise StoreUnreachable from lost

    async def put(self, name: str, value: bytes) -> None:
        """Set or replace. Repeating it is harmless."""
        _check_name(name)
        _check_size(value)
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._driver.put(name, value)
        except (TimeoutError, OSError) as lost:
            raise StoreUnreachable from lost

    async def change(self, name: str, decide: Callable[[bytes | None], bytes]) -> bytes:
        """Set it to what ``decide`` makes of its value, or of None where it is not set; gives what it is now.

        Of two who do so at once neither overwrites the other, where the driver has that power (``SecretSwap``). Raises
        ``Conflict`` where others kept changing it all the time.
        """
        for _ in range(_TRIES):
            before = await self.get(name)
            after = decide(before)
            if after == before:
                return after
            if not isinstance(self._driver, SecretSwap):
                await self.put(name, after)
                return after
            _check_size(after)
            try:
                async with asyncio.timeout(self._deadline_s):
                    if await self._driver.swap(name, before, after):
                        return after
            except (TimeoutError, OSError) as lost:
                raise StoreUnreachable from lost
        raise Conflict

    async def delete(self, name: str) -> None:
        """Remove. A name that is not set is no error."""
        _check_name(name)
        try:
            async with asyncio.timeout(self._deadline_s):
                await self._driver.delete(name)
        except (TimeoutError, OSError) as lost:
            raise StoreUnreachable from lost

    async def names(self) -> Sequence[str]:
        """The names that are set, sorted."""
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self._driver.names()
        except (TimeoutError, OSError) as lost:
            raise StoreUnreachable from lost


def _check_size(value: bytes) -> None:
    if len(value) > MAX_VALUE_BYTES:
        raise InvalidValue(at="value", detail=f"at most {MAX_VALUE_BYTES} bytes")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidValue(at="name", detail="1 to 64 characters: a-z, 0-9 and hyphens")
