"""Sign-in sessions in DynamoDB: sealed, shared by every server, ended with their time."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import pytest

from nagaya.cache.dynamodb import DynamoCache
from nagaya.cache.dynamodb_line import DynamoLine
from nagaya.errors import CacheUnreachable
from nagaya.identity.sessions import CachedSessions, SignInSession
from nagaya.keys.keyring import Keyring
from nagaya.records.sealed_cache import SealedCache
from nagaya.records.sealer import Sealer
from nagaya.testing.keys import MemoryKeys, MemoryKeyVersions
from parts.aws import REGION, clock_of_today, new_table, point_at, surroundings
from parts.ministack import Ministack

pytest_plugins = ["parts.ministack"]

ID = f"sess_{7:032x}"


class Servers:
    """Any number of servers on one table and one platform key."""

    def __init__(self, ministack: Ministack) -> None:
        self._ministack = ministack
        self.table = new_table()
        self.clock = clock_of_today()
        self.keys, self.versions = MemoryKeys(), MemoryKeyVersions()
        self.keyrings: list[Keyring] = []
        self.lines: list[DynamoLine] = []

    async def one(self) -> CachedSessions:
        if not self.keyrings:
            await self.versions.rotate(self.keys, "_platform")
        self.keyrings.append(Keyring("_platform", self.keys, self.versions, self.clock))
        around = surroundings("_platform", clock=self.clock)
        self.lines.append(DynamoLine(f"dynamodb://{REGION}/{self.table}", around, deadline_s=30.0))
        sealer = Sealer("_platform", self.keyrings[-1])
        cache = SealedCache(DynamoCache(self.lines[-1]), sealer, self.clock, forgiving=False)
        return CachedSessions(cache, self.clock)

    def items(self) -> list[dict]:
        return self._ministack.call("DynamoDB_20120810", "Scan", TableName=self.table)["Items"]

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
async def servers(ministack: Ministack, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Servers]:
    point_at(monkeypatch, ministack.url)
    made = Servers(ministack)
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


async def test_a_session_ends_with_its_time_though_the_table_still_has_it(servers: Servers) -> None:
    here = await servers.one()
    await here.add(servers.session(lasts_s=60))
    servers.clock.advance(59.9)
    assert await here.get("acme", ID) is not None
    servers.clock.advance(0.2)
    assert await here.get("acme", ID) is None
    assert len(servers.items()) == 2


async def test_nobody_reads_a_user_or_tenant_in_the_table(servers: Servers) -> None:
    here = await servers.one()
    await here.add(servers.session())
    await here.seen("acme", ID, servers.clock.now_us() + 1)
    items = servers.items()
    assert len(items) == 3
    binary = b"".join(base64.b64decode(value["B"]) for item in items for value in item.values() if "B" in value)
    whole = repr(items).encode() + binary
    assert not any(word in whole for word in (b"canary", b"acme", b"sess_", ID.encode()))


async def test_sessions_are_not_silently_lost_where_the_table_is_away(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at(monkeypatch, "http://127.0.0.1:1")
    here = await servers.one()
    servers.lines[-1]._deadline_s = 0.3
    with pytest.raises(CacheUnreachable):
        await here.add(servers.session())
