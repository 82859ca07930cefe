"""A change on one server is seen on another at once, by notices over Valkey that nobody believes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nagaya.cache import redis_channel
from nagaya.cache.redis_channel import RedisChannel
from nagaya.cache.redis_line import RedisLine
from nagaya.errors import CacheUnreachable
from nagaya.kernel.clock import SystemClock
from nagaya.tenancy import push, rows, watch
from nagaya.tenancy.bindings import Revocation
from nagaya.tenancy.push import ChangePush, Notice
from nagaya.tenancy.registry import SqlRegistry
from nagaya.tenancy.tenant import TenantState
from nagaya.testing.clock import ManualClock
from parts.directory import tenant
from parts.valkey import Valkey
from support.tcp_proxy import Proxy

pytest_plugins = ["parts.valkey_server"]


class Server:
    """What one server process holds of it."""

    def __init__(self, path: Path, url: str) -> None:
        self.registry = SqlRegistry.in_file(path, SystemClock())
        self.line = RedisLine(url, SystemClock())
        self.channel = RedisChannel(self.line, "changes")
        self.push = ChangePush(self.registry, self.channel, SystemClock())

    async def suspended(self) -> bool:
        return (await self.registry.tenant("acme")).state is TenantState.SUSPENDED


SOON_S = 20.0
"""Far more than a notice takes; without one, what is cached serves for 30 s."""


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a notice nothing would be seen within the tests' time."""
    monkeypatch.setattr(watch, "POLL_S", 600.0)


@pytest.fixture
async def make_server(tmp_path: Path) -> AsyncIterator[Callable[[str], Awaitable[Server]]]:
    async with AsyncExitStack() as closing:

        async def make(url: str) -> Server:
            made = Server(tmp_path / "registry.db", url)
            closing.push_async_callback(made.line.close)
            closing.push_async_callback(made.registry.close)
            await made.registry.start()
            made.push.start()
            closing.push_async_callback(made.push.close)
            return made

        yield make


async def until(true: Callable[[], Awaitable[bool] | bool], *, within_s: float = SOON_S) -> float:
    """Seconds until it is true."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with asyncio.timeout(within_s):
        while True:
            answer = true()
            if answer if isinstance(answer, bool) else await answer:
                return loop.time() - began_s
            await asyncio.sleep(0.005)


async def listeners(valkey: Valkey, count: int) -> None:
    await until(lambda: valkey.ask("PUBSUB", "NUMSUB", "nagaya:0:changes").endswith(b":%d\r\n" % count))
    # Whoever has joined looks once.
    await asyncio.sleep(0.25)


@pytest.fixture
async def two(seldom: None, valkey: Valkey, make_server: Callable[[str], Awaitable[Server]]) -> tuple[Server, Server]:
    here = await make_server(valkey.url())
    await here.registry.create_tenant(tenant("acme", store="sqlite:///"))
    there = await make_server(valkey.url())
    await listeners(valkey, 2)
    assert not await there.suspended()
    return here, there


async def test_a_change_is_seen_on_another_server_long_before_it_would_look(two: tuple[Server, Server]) -> None:
    here, there = two
    await here.registry.set_state("acme", TenantState.SUSPENDED)
    took_s = await until(there.suspended)
    print(f"seen after {took_s * 1000:.1f} ms")
    revocation = Revocation(
        tenant_id="acme", kind="session", subject="s", not_before_us=9_000_000_000_000_000,
        expires_at_us=9_000_000_000_000_000,
    )  # fmt: skip
    await here.registry.revoke(revocation)
    asked = there.registry.refused_before_us
    await until(lambda: asked("acme", user_id="u", session_id="s", token_id=None) > 0)


async def test_changes_in_quick_succession_are_all_seen(two: tuple[Server, Server]) -> None:
    here, there = two
    for number in range(30):
        await here.registry.change_tenant("acme", {"name": f"Acme {number}"})

    async def last() -> bool:
        return (await there.registry.tenant("acme")).name == "Acme 29"

    await until(last)


async def test_a_notice_holds_a_tenants_id_a_kind_and_a_serial_and_nothing_else(
    two: tuple[Server, Server], valkey: Valkey
) -> None:
    here, _ = two
    heard: list[bytes] = []
    joined = asyncio.Event()
    listening = asyncio.create_task(here.channel.listen(heard.append, joined.set))
    await joined.wait()
    await here.registry.change_tenant("acme", {"name": "canary"})
    await until(lambda: len(heard) > 0)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    notice = msgspec.json.decode(heard[0], type=Notice)
    assert (notice.tenant_id, notice.kind) == ("acme", "tenant")
    assert b"canary" not in heard[0]


async def test_forged_notices_change_nothing_and_cost_ten_looks_a_second(
    two: tuple[Server, Server], valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = two
    looks = 0
    read = rows.changes_after

    def counted(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        return read(*arguments)

    monkeypatch.setattr(rows, "changes_after", counted)
    forged = [
        b"", b"\xff\xfe", b"[]", b'["acme","deleted",999999]', b'["acme","tenant",-5]', b'[null,"all",1e300]',
        b'{"a":' * 5_000, b'["acme","tenant",99999999999999999999999]', b"x" * 100_000,
    ]  # fmt: skip
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    for sent in range(500):
        await here.channel.publish(forged[sent % len(forged)])
        await asyncio.sleep(0.002)
    # Two servers listen here.
    assert 2 <= looks <= 2 * ((loop.time() - began_s) / push.LOOK_S + 2)
    assert (await there.registry.tenant("acme")).state is TenantState.ACTIVE
    await here.registry.set_state("acme", TenantState.SUSPENDED)
    await until(there.suspended)


async def test_what_was_missed_while_valkey_was_away_is_seen_when_it_is_back(
    seldom: None, own_valkey: Valkey, make_server: Callable[[str], Awaitable[Server]]
) -> None:
    here, there = await make_server(own_valkey.url()), await make_server(own_valkey.url())
    await here.registry.create_tenant(tenant("acme", store="sqlite:///"))
    await listeners(own_valkey, 2)
    assert not await there.suspended()
    own_valkey.stop()
    await here.registry.set_state("acme", TenantState.SUSPENDED)
    await asyncio.sleep(0.5)
    assert not await there.suspended()
    own_valkey.start()
    await until(there.suspended)


async def test_without_valkey_a_change_is_seen_by_polling(
    own_valkey: Valkey, make_server: Callable[[str], Awaitable[Server]]
) -> None:
    own_valkey.stop()
    here, there = await make_server(own_valkey.url()), await make_server(own_valkey.url())
    await here.registry.create_tenant(tenant("acme", store="sqlite:///"))
    assert not await there.suspended()
    await here.registry.set_state("acme", TenantState.SUSPENDED)
    took_s = await until(there.suspended, within_s=30.0)
    print(f"seen by polling after {took_s:.2f} s")


async def test_a_line_that_died_without_a_word_is_noticed_and_made_anew(
    seldom: None, valkey: Valkey, make_server: Callable[[str], Awaitable[Server]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_channel, "PING_S", 0.2)
    monkeypatch.setattr(redis_channel, "ANSWER_S", 0.2)
    here = await make_server(valkey.url())
    await here.registry.create_tenant(tenant("acme", store="sqlite:///"))
    async with Proxy("127.0.0.1", valkey.port) as proxy:
        there = await make_server(f"redis://127.0.0.1:{proxy.port}")
        await listeners(valkey, 2)
        await asyncio.sleep(0.5)
        opened = proxy.opened
        assert not await there.suspended()
        proxy.swallow = True
        await here.registry.set_state("acme", TenantState.SUSPENDED)
        await until(lambda: proxy.opened > opened)
        proxy.swallow = False
        await until(there.suspended)
        await there.push.close()


async def test_databases_of_one_server_hear_nothing_of_each_other(valkey: Valkey) -> None:
    lines = [RedisLine(valkey.url(database), SystemClock()) for database in (0, 1)]
    heard: list[bytes] = []
    joined = asyncio.Event()
    listening = asyncio.create_task(RedisChannel(lines[1], "changes").listen(heard.append, joined.set))
    await joined.wait()
    await RedisChannel(lines[0], "changes").publish(b"other")
    await RedisChannel(lines[1], "changes").publish(b"own")
    await until(lambda: bool(heard))
    assert heard == [b"own"]
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    for line in lines:
        await line.close()


# --- without a server ---


class ScriptedRegistry:
    def __init__(self) -> None:
        self.looks: list[int] = []

    def on_own_change(self, listener: Callable[[str | None, str, int], None]) -> None:
        self.changed = listener

    def look_now(self, serial: int = 0) -> None:
        self.looks.append(serial)


class ScriptedChannel:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.away = False
        self.open = asyncio.Event()
        self.open.set()

    async def publish(self, notice: bytes) -> None:
        await self.open.wait()
        if self.away:
            raise CacheUnreachable
        self.sent.append(notice)

    async def listen(self, heard: Callable[[bytes], None], joined: Callable[[], None]) -> None:
        self.heard, self.joined = heard, joined
        await asyncio.Event().wait()


async def test_notices_within_a_moment_cause_one_look_now_and_one_later() -> None:
    registry, channel, clock = ScriptedRegistry(), ScriptedChannel(), ManualClock()
    pushing = ChangePush(registry, channel, clock, look_s=0.05)
    pushing.start()
    pushing.start()
    await asyncio.sleep(0)
    channel.joined()
    for _ in range(100):
        channel.heard(b'["acme","tenant",7]')
    assert registry.looks == [0]
    await asyncio.sleep(0.1)
    assert registry.looks == [0, 0]
    clock.advance(0.05)
    channel.heard(b'["acme","tenant",7]')
    assert registry.looks == [0, 0, 7]
    channel.heard(b"x")
    await pushing.close()
    await pushing.close()
    await asyncio.sleep(0.1)
    assert registry.looks == [0, 0, 7]


async def test_notices_that_cannot_be_sent_are_bounded_and_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "WAITING", 3)
    registry, channel = ScriptedRegistry(), ScriptedChannel()
    pushing = ChangePush(registry, channel, ManualClock())
    registry.changed("acme", "tenant", 1)
    pushing.start()
    channel.open.clear()
    for serial in range(2, 12):
        registry.changed("acme", "tenant", serial)
    await asyncio.sleep(0)
    channel.open.set()
    await until(lambda: len(channel.sent) == 3)
    assert [msgspec.json.decode(notice, type=Notice).serial for notice in channel.sent] == [9, 10, 11]
    channel.away = True
    registry.changed("acme", "tenant", 12)
    await asyncio.sleep(0.01)
    channel.away = False
    registry.changed("acme", "tenant", 13)
    await until(lambda: len(channel.sent) == 4)
    await pushing.close()


async def test_the_last_change_before_closing_is_told_and_closing_waits_for_it_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry, channel = ScriptedRegistry(), ScriptedChannel()
    pushing = ChangePush(registry, channel, ManualClock())
    pushing.start()
    registry.changed("acme", "tenant", 1)
    registry.changed("acme", "tenant", 2)
    await pushing.close()
    assert len(channel.sent) == 2
    monkeypatch.setattr(push, "FAREWELL_S", 0.05)
    pushing.start()
    channel.open.clear()
    registry.changed("acme", "tenant", 3)
    async with asyncio.timeout(20):
        await pushing.close()
    assert len(channel.sent) == 2
