"""Secrets kept among the tenant's own sealed records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from nagaya.errors import ConditionFailed, Conflict

_TRIES: Final = 8
_PAGE: Final = 200


class SealedValue(Protocol):
    """A value opened, with its place and its revision (from 1)."""

    @property
    def sort(self) -> bytes: ...
    @property
    def revision(self) -> int: ...
    @property
    def body(self) -> bytes: ...


class SealedValues(Protocol):
    """A sealed, conditional key-value place of one room; ``expect`` 0 means that nothing may lie there yet."""

    async def get(self, sort: bytes, /) -> SealedValue | None: ...
    async def put(self, sort: bytes, body: bytes, /, *, expect: int) -> int: ...
    async def delete(self, sort: bytes, /, *, expect: int) -> None: ...
    async def query(self, *, after: bytes, limit: int) -> Sequence[SealedValue]: ...


class EmbeddedSecrets:
    """One room's secrets as sealed records. It implements :class:`nagaya.secrets.driver.SecretDriver` and
    :class:`~nagaya.secrets.driver.SecretSwap`.

    The last writer wins; ``Conflict`` only where others kept changing the same name all the time.
    """

    def __init__(self, values: SealedValues) -> None:
        self._values = values

    async def get(self, name: str) -> bytes | None:
        found = await self._values.get(name.encode())
        return None if found is None else found.body

    async def put(self, name: str, value: bytes) -> None:
        for _ in range(_TRIES):
            found = await self._values.get(name.encode())
            try:
                await self._values.put(name.encode(), value, expect=0 if found is None else found.revision)
            except ConditionFailed:
                continue
            return
        raise Conflict

    async def swap(self, name: str, before: bytes | None, after: bytes) -> bool:
        found = await self._values.get(name.encode())
        if (None if found is None else found.body) != before:
            return False
        try:
            await self._values.put(name.encode(), after, expect=0 if found is None else found.revision)
        except ConditionFailed:
            return False
        return True

    async def delete(self, name: str) -> None:
        for _ in range(_TRIES):
            found = await self._values.get(name.encode())
            if found is None:
                return
            try:
                await self._values.delete(name.encode(), expect=found.revision)
            except ConditionFailed:
                continue
            return
        raise Conflict

    async def names(self) -> Sequence[str]:
        names: list[str] = []
        after = b""
        while page := await self._values.query(after=after, limit=_PAGE):
            names.extend(value.sort.decode() for value in page)
            after = page[-1].sort
        return names
