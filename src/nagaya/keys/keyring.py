"""A tenant's unwrapped keys, for as short a time as revocation promises, and never for longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

import structlog

from nagaya.errors import (
    KeyDestroyed,
    KeyDisabled,
    KeyExhausted,
    KeyUnreachable,
    NagayaError,
    NotFound,
    SealBroken,
)
from nagaya.kernel.clock import Clock, SystemClock
from nagaya.keys.driver import KeyContext, KeyDriver
from nagaya.keys.tenant_key import TenantKey
from nagaya.keys.versions import KeyVersion, KeyVersionSource, KeyVersionState, RemembersKeyVersions

CACHE_S: Final = 30.0
"""How old a key in memory may be at the most: the figure revocation promises."""

MAX_HELD: Final = 16
"""Key versions held at once; a tenant that rotates monthly keeps more than a year at hand."""

USES_LIMIT: Final = 2**31
"""Seals under one key version: the bound that random 96-bit nonces are promised to stay under."""

ROTATE_AT: Final = USES_LIMIT // 2
USES_CHUNK: Final = 4096
"""Seals between two counts in the registry; a crash forgets at most so many."""

_REFRESH_SHARE: Final = 2 / 3  # of the cache time: 20 s of 30 s, so that ten seconds remain to reach the service
_RETRY_SHARE: Final = 1 / 15  # pause before the next try ahead, where one failed: 2 s of 30 s
_TRIES: Final = 3

_T = TypeVar("_T")
_log = structlog.get_logger("nagaya.keys")


def key_context(room: str, version: int) -> KeyContext:
    """What a tenant's data key is wrapped for."""
    return KeyContext(tenant=room, key=room, version=version, purpose="tenant-data")


_SYSTEM_CLOCK: Final = SystemClock()


async def new_version(driver: KeyDriver, room: str, version: int, *, clock: Clock = _SYSTEM_CLOCK) -> KeyVersion:
    """A fresh active key version, wrapped, for the registry to record. The plain key is dropped at once.

    Repeating it makes another key: whoever records a version decides which one counts.
    """
    _, wrapped = await driver.generate(key_context(room, version))
    return KeyVersion(version=version, state=KeyVersionState.ACTIVE, wrapped=wrapped, created_at_us=clock.now_us())


class Keyring:
    """One room's key versions: bounded, single-flight, at most ``cache_s`` old, dropped on command.

    A key's age counts from before the key service was asked. Past ``cache_s`` a key is not served, also when the
    service is down. A third of the time before that it is fetched anew beside the work, so that the work never waits.
    To be used in one event loop.
    """

    def __init__(
        self,
        room: str,
        driver: KeyDriver,
        source: KeyVersionSource,
        clock: Clock,
        cache_s: float = CACHE_S,
        *,
        deadline_s: float = 5.0,
    ) -> None:
        self.room = room
        self._driver = driver
        self._source = source
        self._monotonic_s = clock.monotonic_s
        self._cache_s = cache_s
        self._deadline_s = deadline_s
        self._keys: dict[int, TenantKey] = {}
        self._active: TenantKey | None = None
        self._active_version: int | None = None
        self._listed_s = float("-inf")
        self._generation = 0
        self._flights: dict[int | None, asyncio.Task[TenantKey | None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._owed: dict[int, int] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._on_drop: list[Callable[[], None]] = []
        self._closed = False

    # --- the hot path: no waiting -----------------------------------------------------------------------------

    def held(self, version: int | None = None) -> TenantKey | None:
        """The key if it is in memory and young enough (``None``: the active one). Never waits."""
        key = self._active if version is None else self._keys.get(version)
        if key is None:
            return None
        now_s = self._monotonic_s()
        if now_s >= key.refresh_s:
            if now_s >= key.expires_s:
                self._forget(key)
                return None
            key.refresh_s = min(now_s + self._cache_s * _RETRY_SHARE, key.expires_s)
            self._background(self._refresh(version))
        return key

    def count(self, key: TenantKey, seals: int) -> None:
        """Count seals before they are made. Raises ``KeyExhausted`` where the version would pass its bound."""
        key.left -= seals
        if key.left < 0:
            self._grant(key)

    # --- waiting ----------------------------------------------------------------------------------------------

    async def active(self) -> TenantKey:
        """The key that seals. Raises ``KeyDisabled``, ``KeyDestroyed``, ``KeyUnreachable``, or ``NotFound`` where the
        room has no key at all."""
        return await self._get(None)

    async def version(self, version: int) -> TenantKey:
        """The key of one version, for opening. Raises as :meth:`active`, and ``SealBroken`` where there is no such
        version: then the record that names it is not of this room."""
        return await self._get(version)

    @property
    def needs_rotation(self) -> bool:
        """Whether the active version has sealed half of what it may."""
        key = self._active
        return key is not None and self._total(key) >= ROTATE_AT

    @property
    def holds_older(self) -> bool:
        """Whether a key of an older version is in use: some record read lately was sealed before a rotation."""
        return self._active_version is not None and any(version != self._active_version for version in self._keys)

    def when_dropped(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called whenever a key is forgotten, so that what was derived from it goes too."""
        self._on_drop.append(callback)

    def drop(self) -> None:
        """Forget every key now. What is being fetched at this moment will not be used either."""
        self._generation += 1
        self._flights.clear()
        self._listed_s = float("-inf")
        self._active_version = None
        self._forget(*self._keys.values())

    async def flush(self) -> None:
        """Write the counts of seals to the registry. Where it cannot, they are kept for the next time."""
        for key in self._keys.values():
            self._settle(key)
        while self._owed:
            version, uses = self._owed.popitem()
            try:
                async with asyncio.timeout(self._deadline_s):
                    await self._source.add_key_uses(self.room, version, uses)
            except BaseException:
                self._owed[version] = self._owed.get(version, 0) + uses
                raise

    async def close(self) -> None:
        """Wait for what is under way (each has its deadline), write the counts, forget the keys. May be repeated."""
        self._closed = True
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            await self._flush_quietly()
        finally:
            self.drop()
            if self._sweeper is not None:
                self._sweeper.cancel()
                self._sweeper = None

    # --- inside -----------------------------------------------------------------------------------------------

    async def _get(self, version: int | None) -> TenantKey:
        if self._closed:
            raise KeyUnreachable
        # More than one try only where the keys were dropped, or grew too old, while they were being fetched.
        for _ in range(_TRIES):
            key = self.held(version) or await self._flight(version)
            if key is not None and key.is_alive(self._monotonic_s()):
                return key
        raise KeyUnreachable

    async def _flight(self, version: int | None) -> TenantKey | None:
        task = self._flights.get(version)
        if task is None:
            task = self._background(self._load(version))
            self._flights[version] = task
            task.add_done_callback(lambda done: self._landed(version, done))
        # Shielded: a caller who goes away must not take the others' key along.
        return await asyncio.shield(task)

    def _landed(self, version: int | None, task: asyncio.Task[TenantKey | None]) -> None:
        if self._flights.get(version) is task:
            del self._flights[version]

    async def _refresh(self, version: int | None) -> None:
        try:
            await self._flight(version)
        except NagayaError as refused:
            # A disabled key has dropped everything already; any other failure may be gone at the next try, and if
            # it is not, the key simply reaches its end.
            _log.warning("key refresh failed", action="key_refresh_failed", room=self.room, code=refused.code)

    async def _load(self, version: int | None) -> TenantKey | None:
        """The key, fetched and kept; None where the keys were dropped meanwhile, perhaps because of this very one."""
        generation = self._generation
        started_s = self._monotonic_s()
        try:
            async with asyncio.timeout(self._deadline_s):
                listing = self._remembered(version) or await self._source.key_versions(self.room)
                if generation == self._generation:
                    self._apply(listing, started_s)
                chosen = _choose(listing, version)
                plain = await self._unwrap(chosen, generation)
        except NagayaError:
            raise
        except Exception as failure:
            # A vendor's own error, a full disk, a time-out: the service did not answer with a key.
            raise KeyUnreachable from failure
        if generation != self._generation:
            return None
        key = self._keys.get(chosen.version)
        if key is None or not key.is_same(plain):
            if key is not None:
                self._forget(key)
            key = TenantKey(self.room, chosen.version, plain)
            key.uses = chosen.uses + self._owed.get(chosen.version, 0)
        key.refresh_s = max(key.refresh_s, started_s + self._cache_s * _REFRESH_SHARE)
        key.expires_s = max(key.expires_s, started_s + self._cache_s)
        self._keep(key)
        return key

    def _remembered(self, version: int | None) -> Sequence[KeyVersion] | None:
        """What the source remembers, where it holds what is wanted."""
        if not isinstance(self._source, RemembersKeyVersions):
            return None
        listing = self._source.remembered_key_versions(self.room)
        if listing is None:
            return None
        wanted = _active(listing) if version is None else version
        return listing if any(each.version == wanted for each in listing) else None

    async def _unwrap(self, chosen: KeyVersion, generation: int) -> bytes:
        try:
            return await self._driver.unwrap(chosen.wrapped, key_context(self.room, chosen.version))
        except (KeyDisabled, KeyDestroyed):
            if generation == self._generation:
                self.drop()
            raise

    def _apply(self, listing: Sequence[KeyVersion], started_s: float) -> None:
        """Follow the registry: forget what it destroyed, seal under what it calls active. An older reading of it
        that arrives after a younger one changes nothing."""
        if started_s < self._listed_s:
            return
        self._listed_s = started_s
        living = {each.version: each for each in listing if each.state is not KeyVersionState.DESTROYED}
        for held in list(self._keys.values()):
            if held.version in living:
                held.uses = max(held.uses, living[held.version].uses + self._owed.get(held.version, 0))
            else:
                self._forget(held)
        self._active_version = _active(listing)
        self._point()

    def _keep(self, key: TenantKey) -> None:
        self._keys[key.version] = key
        self._point()
        spare = [held for held in self._keys.values() if held is not key and held is not self._active]
        self._forget(*spare[: max(0, len(self._keys) - MAX_HELD)])
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._cache_s, self._sweep)

    def _point(self) -> None:
        self._active = None if self._active_version is None else self._keys.get(self._active_version)

    def _sweep(self) -> None:
        """Let go of keys past their time also where nobody asks for them any more."""
        self._sweeper = None
        now_s = self._monotonic_s()
        self._forget(*[key for key in self._keys.values() if not key.is_alive(now_s)])
        if self._keys:
            self._sweeper = asyncio.get_running_loop().call_later(self._cache_s, self._sweep)

    def _forget(self, *keys: TenantKey) -> None:
        for key in keys:
            self._settle(key)
            key.forget()
            del self._keys[key.version]
            if self._active is key:
                self._active = None
        if keys:
            for callback in self._on_drop:
                callback()

    # --- counting ---------------------------------------------------------------------------------------------

    def _total(self, key: TenantKey) -> int:
        return key.uses + key.granted - key.left

    def _grant(self, key: TenantKey) -> None:
        wanted = -key.left
        key.left = 0
        self._settle(key)
        room_left = USES_LIMIT - key.uses
        if wanted > room_left:
            raise KeyExhausted
        key.granted = min(max(USES_CHUNK, wanted), room_left)
        key.left = key.granted - wanted
        if sum(self._owed.values()) >= USES_CHUNK:
            self._background(self._flush_quietly())

    def _settle(self, key: TenantKey) -> None:
        """Move what a key has sealed since the last time to what the registry has yet to be told."""
        uses = key.granted - key.left
        if uses:
            key.granted = key.left
            key.uses += uses
            self._owed[key.version] = self._owed.get(key.version, 0) + uses

    async def _flush_quietly(self) -> None:
        try:
            await self.flush()
        except Exception as failure:
            _log.warning("key uses not recorded", action="key_uses_kept", room=self.room, error=type(failure).__name__)

    def _background(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Seen here, so that a failure nobody waits for any more is not reported as never looked at.
            task.exception()


def _active(listing: Sequence[KeyVersion]) -> int | None:
    return max((each.version for each in listing if each.state is KeyVersionState.ACTIVE), default=None)


def _choose(listing: Sequence[KeyVersion], version: int | None) -> KeyVersion:
    wanted = _active(listing) if version is None else version
    for each in listing:
        if each.version == wanted:
            if each.state is KeyVersionState.DESTROYED:
                raise KeyDestroyed
            return each
    if version is not None:
        raise SealBroken
    if listing:
        # Versions there are, but none that may seal: the tenant was shredded.
        raise KeyDestroyed
    raise NotFound("key")
