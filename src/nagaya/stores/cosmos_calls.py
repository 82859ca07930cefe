"""Calls to Cosmos DB: repeated where that helps, within a time, and with one table from its errors to ours."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from azure.core.exceptions import AzureError
from azure.cosmos.exceptions import CosmosClientTimeoutError

from nagaya.clouds.azure import AzureAccount, is_away, retry_after_s, sign_in_refused, status_of
from nagaya.errors import NagayaError, PermissionMissing, StoreBusy, StoreDamaged, StoreUnreachable

ROLE: Final = "data actions of Cosmos DB (role 'Cosmos DB Built-in Data Contributor', or its network rules)"
_TRIES: Final = 4
_FIRST_PAUSE_S: Final = 0.05
_OWNER_ABSENT: Final = 1003
_SESSION_BEHIND: Final = 1002
_CONFLICTS: Final = frozenset({404, 409, 412})
T = TypeVar("T")


class Conflicted(Exception):
    """The service found another state than was expected: 404, 409 or 412. ``sent``: how often the call left here."""

    def __init__(self, status: int, sent: int) -> None:
        super().__init__(status)
        self.status = status
        self.sent = sent


class Sent:
    """Counts how often a call left the machine: what left twice may have been done twice."""

    __slots__ = ("times",)

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, request: Any) -> None:
        self.times += 1


class Calls:
    """Makes calls for one house. ``limit_s`` is the time that repeating may take, pauses included."""

    def __init__(self, account: AzureAccount, limit_s: float, place: str) -> None:
        self._account = account
        self._limit_s = limit_s
        self._place = place

    async def make(self, call: Callable[[Sent], Awaitable[T]]) -> T:
        """The result of ``call``, which is handed a counter to give to the vendor as ``raw_request_hook``.

        Throttling is waited out as long as the service asks, lost connections and busy servers are tried again.
        Raises ``Conflicted``, ``StoreBusy`` (nothing was done), ``StoreUnreachable`` (not known), ``StoreDamaged``
        (the container is gone), ``PermissionMissing`` and ``CloudCredentialsRefused``.
        """
        sent = Sent()
        started = self._account.clock.monotonic_s()
        tries = 0
        doubtful = False
        while True:
            try:
                return await call(sent)
            except AzureError as error:
                status = status_of(error)
                if status == 429:
                    pause_s = retry_after_s(error)
                    # Many were refused together; they must not all come back together.
                    pause_s = _FIRST_PAUSE_S if pause_s is None else pause_s
                    pause_s *= 1 + random.random() / 4  # noqa: S311 - to spread, not to hide
                elif status == 404 and getattr(error, "sub_status", None) == _SESSION_BEHIND:
                    # Whoever was asked has not heard of this session's writes yet: that is not "absent".
                    tries += 1
                    pause_s = _FIRST_PAUSE_S * 2**tries
                elif status != 404 and (is_away(error) or isinstance(error, CosmosClientTimeoutError)):
                    doubtful = True
                    tries += 1
                    pause_s = _FIRST_PAUSE_S * 2**tries
                else:
                    raise self._meaning(error, status, sent.times) from error
                if tries >= _TRIES or self._account.clock.monotonic_s() - started + pause_s > self._limit_s:
                    if status == 429 and not doubtful:
                        raise StoreBusy(retry_after_s=max(1, round(pause_s))) from error
                    raise StoreUnreachable from error
            await asyncio.sleep(pause_s)

    def _meaning(self, error: AzureError, status: int, sent: int) -> Exception:
        if status == 404 and getattr(error, "sub_status", None) == _OWNER_ABSENT:
            return StoreDamaged(place=self._place)
        if status in _CONFLICTS:
            return Conflicted(status, sent)
        if status == 403:
            return PermissionMissing(room=self._account.room, action=ROLE)
        refused: NagayaError | None = sign_in_refused(error, self._account.room)
        return refused or StoreUnreachable()
