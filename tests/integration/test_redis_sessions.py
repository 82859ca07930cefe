"""Sign-in sessions in Valkey: sealed, shared by every server, ended with their time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nagaya.cache.redis import RedisCache
from nagaya.cache.redis_line import RedisLine
from nagaya.errors import CacheUnreachable
from nagaya.identity.sessions import CachedSessions, SignInSession
from nagaya.kernel.clock import SystemClock
from nagaya.keys.keyring import Keyring
from nagaya.records.sealed_cache import SealedCache
from nagaya.records.sealer import Sealer
from nagaya.testing.clock import ManualClock
from nagaya.testing.keys import MemoryKeys, MemoryKeyVersions
from parts.valkey import Valkey

pytest_plugins = ["parts.valkey_server"]

ID = f"sess_{7:032x}"


class Servers:
    """Any number of servers on one Valkey and one platform key."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.clock = ManualClock()
        self.keys, self.versions = MemoryKeys(), MemoryKeyVersions()
        self.keyrings: list[Keyring] = []
        self.lines: list[RedisLine] = []

    async def one(self) -> CachedSessions:
        if not self.keyrings:
            await self.versions.rotate(self.keys, "_platform")
        self.keyrings.append(Keyring("_platform", self.keys, self.versions, self.clock))
        self.lines.append(RedisLine(self.url, SystemClock()))
        sealer = Sealer("_platform", self.keyrings[-1])
        cache = SealedCache(RedisCache(self.lines[-1]), sealer, self.clock, forgiving=False)
        return CachedSessions(cache, self.clock)

    def session(self, *, user: str = "canary-user", lasts_s: int = 600) -> SignInSession:
        now_us = self.clock.now_us()
        return SignInSession(
            id=ID, tenant_id="acme", user=user, created_at_us=now_us, seen_at_us=now_us,
            expires_at_us=now_us + lasts_s * 1_000_000,
        )  # fmt: skip

    async def close(self) -> None:
        for keyring in self.keyrings:
            await keyring.close()
        for line in self.lines:
            await line.close()


@pytest.fixture
async def servers(valkey: Valkey) -> AsyncIterator[Servers]:
    made = Servers(valkey.url())
    yield made
    await made.close()


async def test_what_one_server_notes_of_a_session_another_knows(servers: Servers) -> None:
    here, there = await servers.one(), await servers.one()
    session = servers.session()
    await here.add(session)
    assert await there.get("acme", ID) == session
    now_us = session.created_at_us
    await here.seen("acme", ID, now_us + 5)
    await there.revoke("acme", ID, now_us + 7)
    await here.revoke("acme", ID, now_us + 9)
    await there.seen("acme", ID, now_us + 3)
    for each in (here, there):
        kept = await each.get("acme", ID)
        assert kept is not None
        assert (kept.seen_at_us, kept.revoked_at_us) == (now_us + 5, now_us + 7)
        assert await each.get("globex", ID) is None


async def test_a_session_that_is_not_there_is_noted_nowhere(servers: Servers, valkey: Valkey) -> None:
    here = await servers.one()
    await here.seen("acme", ID, 5)
    await here.revoke("acme", ID, 5)
    assert valkey.ask("DBSIZE") == b":0\r\n"


async def test_a_session_ends_with_its_time_and_leaves_nothing(servers: Servers) -> None:
    here = await servers.one()
    await here.add(servers.session(lasts_s=60))
    servers.clock.advance(59.9)
    assert await here.get("acme", ID) is not None
    servers.clock.advance(0.2)
    assert await here.get("acme", ID) is None


async def test_nobody_reads_a_user_or_tenant_in_the_servers_memory(servers: Servers, valkey: Valkey) -> None:
    here = await servers.one()
    await here.add(servers.session())
    await here.seen("acme", ID, servers.clock.now_us() + 1)
    names = [line for line in valkey.ask("KEYS", "*").split(b"\r\n") if line.startswith(b"nagaya:")]
    assert len(names) == 3
    whole = b"".join(name + valkey.ask("DUMP", name) for name in names)
    assert not any(word in whole for word in (b"canary", b"acme", b"sess_", ID.encode()))


async def test_sessions_are_not_silently_lost_where_the_server_is_away(servers: Servers, own_valkey: Valkey) -> None:
    servers.url = own_valkey.url()
    here = await servers.one()
    own_valkey.stop()
    with pytest.raises(CacheUnreachable):
        await here.add(servers.session())
