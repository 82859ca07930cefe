"""What several servers share over Redis or Valkey: rate limits, sign-in sessions, notices of changes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import NamedTuple

from nagaya.errors import MissingExtra
from nagaya.identity.sessions import CachedSessions, RecordSessions, SessionStore
from nagaya.kernel.clock import Clock
from nagaya.records.sealed_cache import SealedCache
from nagaya.records.sealed_store import SealedStore
from nagaya.records.sealer import Sealer
from nagaya.settings import Settings
from nagaya.tenancy.principal import Entrance
from nagaya.tenancy.push import ChangePush
from nagaya.tenancy.registry import SqlRegistry
from nagaya.usage.quotas import Quotas
from nagaya.usage.shared_limits import SharedLimits


class Shared(NamedTuple):
    """What a server needs of it, whether or not it is shared."""

    check_quota: Callable[[Entrance], None]
    sessions: SessionStore


def open_shared(
    settings: Settings,
    clock: Clock,
    registry: SqlRegistry,
    platform: SealedStore,
    sealer: Sealer,
    closing: AsyncExitStack,
) -> Shared:
    """By ``settings.redis``; without it each process has its own limits, and sessions lie in the platform's room.

    ``sealer`` is that of the platform's room. What is opened is closed with ``closing``. Connects to nothing yet.
    Raises ``MissingExtra`` and ``SettingsInvalid``.
    """
    if settings.redis is None:
        return Shared(Quotas(clock, processes=settings.workers).check, RecordSessions(platform, clock))
    try:
        from nagaya.cache.redis import RedisCache
        from nagaya.cache.redis_channel import RedisChannel
        from nagaya.cache.redis_line import RedisLine
        from nagaya.cache.redis_permits import RedisPermits
    except ModuleNotFoundError as missing:
        raise MissingExtra(feature="redis://", extra="redis") from missing
    line = RedisLine(settings.redis, clock)
    closing.push_async_callback(line.close)
    limits = SharedLimits(RedisPermits(line), clock, processes=settings.workers)
    closing.push_async_callback(limits.close)
    push = ChangePush(registry, RedisChannel(line, "changes"), clock)
    closing.push_async_callback(push.close)
    push.start()
    cache = SealedCache(RedisCache(line), sealer, clock, forgiving=False)
    return Shared(limits.check, CachedSessions(cache, clock))
