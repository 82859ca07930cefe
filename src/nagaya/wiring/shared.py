"""What several servers share over Redis, Valkey or DynamoDB: rate limits, sign-in sessions, tenants' caches, and
notices of changes where there is a channel for them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import NamedTuple, NoReturn

from nagaya.adapters import Surroundings
from nagaya.cache.channel import Channel
from nagaya.cache.driver import CacheDriver
from nagaya.cache.local import LocalCache
from nagaya.cache.permits import Permits
from nagaya.errors import MissingExtra
from nagaya.identity.sessions import CachedSessions, RecordSessions, SessionStore
from nagaya.records.sealed_cache import SealedCache
from nagaya.records.sealed_store import SealedStore
from nagaya.records.sealer import Sealer
from nagaya.settings import read_reference
from nagaya.tenancy.principal import Entrance
from nagaya.tenancy.push import ChangePush
from nagaya.tenancy.registry import SqlRegistry
from nagaya.tenancy.tenant import Tenant
from nagaya.usage.quotas import Quotas
from nagaya.usage.shared_limits import SharedLimits


class Shared:
    """What a server needs of it, whether or not it is shared. ``region`` is where ``cache`` lies, if it is not in this
    process's memory."""

    def __init__(
        self,
        check_quota: Callable[[Entrance], None],
        sessions: SessionStore,
        local: CacheDriver,
        cache: CacheDriver,
        region: str | None,
    ) -> None:
        self.check_quota = check_quota
        self.sessions = sessions
        self._local = local
        self._cache = cache
        self._region = region

    def cache_of(self, tenant: Tenant) -> CacheDriver:
        """Where a tenant's cache lies: what is shared, unless that lies outside the regions it is pinned to."""
        if tenant.regions and self._region not in tenant.regions:
            return self._local
        return self._cache

    async def forget(self, room: str) -> None:
        """Forget what is cached of a room. Raises ``CacheUnreachable``."""
        await self._local.delete_room(room)
        await self._cache.delete_room(room)


class _Line(NamedTuple):
    permits: Permits
    cache: CacheDriver
    channel: Channel | None
    region: str | None


def open_shared(
    surroundings: Surroundings,
    registry: SqlRegistry,
    platform: SealedStore,
    sealer: Sealer,
    closing: AsyncExitStack,
) -> Shared:
    """By ``settings.redis``; without it each process has its own limits and caches, and sessions lie in the platform's
    room.

    ``surroundings`` and ``sealer`` are those of the platform's room. What is opened is closed with ``closing``. Waits
    for no server. Raises ``MissingExtra`` and ``SettingsInvalid``.
    """
    settings, clock = surroundings.settings, surroundings.clock
    local = LocalCache(clock)
    if settings.redis is None:
        limits = Quotas(clock, processes=settings.workers)
        return Shared(limits.check, RecordSessions(platform, clock), local, local, None)
    url = read_reference(settings.redis) if settings.redis.startswith("env://") else settings.redis
    line = (_over_dynamodb if url.startswith("dynamodb://") else _over_redis)(url, surroundings, closing)
    shared_limits = SharedLimits(line.permits, clock, processes=settings.workers)
    closing.push_async_callback(shared_limits.close)
    if line.channel is not None:
        push = ChangePush(registry, line.channel, clock)
        closing.push_async_callback(push.close)
        push.start()
    sessions = CachedSessions(SealedCache(line.cache, sealer, clock, forgiving=False), clock)
    return Shared(shared_limits.check, sessions, local, line.cache, line.region)


def _over_redis(url: str, surroundings: Surroundings, closing: AsyncExitStack) -> _Line:
    try:
        from nagaya.cache.redis import RedisCache
        from nagaya.cache.redis_channel import RedisChannel
        from nagaya.cache.redis_line import RedisLine
        from nagaya.cache.redis_permits import RedisPermits
    except ModuleNotFoundError as missing:
        _refuse(missing, MissingExtra(feature="redis://", extra="redis"))
    line = RedisLine(url, surroundings.clock)
    closing.push_async_callback(line.close)
    # Its address says nothing of where it lies; it is beside the servers.
    region = surroundings.settings.region
    return _Line(RedisPermits(line), RedisCache(line), RedisChannel(line, "changes"), region)


def _over_dynamodb(url: str, surroundings: Surroundings, closing: AsyncExitStack) -> _Line:
    try:
        from nagaya.cache.dynamodb import DynamoCache
        from nagaya.cache.dynamodb_line import DynamoLine
        from nagaya.cache.dynamodb_permits import DynamoPermits
    except ModuleNotFoundError as missing:
        _refuse(missing, MissingExtra(feature="dynamodb://", extra="aws"))
    line = DynamoLine(url, surroundings)
    closing.push_async_callback(line.close)
    line.start()
    # It has no channel: a change is heard of by the registry's own bell, or by polling.
    return _Line(DynamoPermits(line), DynamoCache(line), None, line.region)


def _refuse(missing: ModuleNotFoundError, named: MissingExtra) -> NoReturn:
    if (missing.name or "").startswith("nagaya"):
        raise missing
    raise named from missing
