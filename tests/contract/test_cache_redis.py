"""The cache in Valkey keeps the contract, also sealed; what lies there tells nobody anything."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from nagaya.adapters import Surroundings
from nagaya.cache.redis import MARK_BYTES, RedisCache, open_cache
from nagaya.cache.redis_channel import RedisChannel
from nagaya.cache.redis_line import RedisLine
from nagaya.cache.redis_permits import RedisPermits
from nagaya.errors import CacheUnreachable, SettingsInvalid
from nagaya.kernel.clock import SystemClock
from nagaya.kernel.egress import EgressPolicy
from nagaya.kernel.ended import ended
from nagaya.settings import Settings
from nagaya.testing.cache import LOOK_ALIKES, CacheContract
from nagaya.testing.clock import ManualClock
from parts.valkey import Valkey
from support.tcp_proxy import Proxy

pytest_plugins = ["parts.valkey_server"]


def surroundings() -> Surroundings:
    async def secret(name: str) -> bytes | None:
        return None

    return Surroundings(Settings(), SystemClock(), EgressPolicy(()), "_platform", (), secret)


class TestRedisCache(CacheContract):
    follows_clock = False

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    async def cache(self, valkey: Valkey) -> AsyncIterator[RedisCache]:
        opened = await open_cache(valkey.url(), surroundings())
        yield opened
        await opened.close()


@pytest.fixture
async def cache(valkey: Valkey) -> AsyncIterator[RedisCache]:
    opened = await open_cache(valkey.url(), surroundings())
    yield opened
    await opened.close()


def names(valkey: Valkey) -> list[bytes]:
    """Every name on the server. Only a test may ask for them all."""
    return [line for line in valkey.ask("KEYS", "*").split(b"\r\n") if line.startswith(b"nagaya:")]


async def test_row_17_no_two_places_share_a_name_on_the_server(cache: RedisCache, valkey: Valkey) -> None:
    for place in LOOK_ALIKES:
        await cache.set(*place, b"x")
    rooms = {room for room, _ in LOOK_ALIKES}
    assert len(names(valkey)) == len(LOOK_ALIKES) + len(rooms)
    text = valkey.ask("KEYS", "*")
    assert b"acme" not in text.lower()


async def test_an_entry_ends_at_its_time(cache: RedisCache, valkey: Valkey) -> None:
    await cache.set("acme", "x", b"1", ttl_s=0.05)
    await cache.set("acme", "y", b"2", ttl_s=600)
    async with asyncio.timeout(20):
        while await cache.get("acme", "x") is not None:
            await asyncio.sleep(0.02)
    assert await cache.get("acme", "y") == b"2"


async def test_a_rooms_mark_outlives_its_entries_and_nothing_stays_for_ever(cache: RedisCache, valkey: Valkey) -> None:
    await cache.set("acme", "long", b"1", ttl_s=50)
    await cache.set("acme", "short", b"1", ttl_s=5)
    lives = {name: int(valkey.ask("PTTL", name).strip(b":\r\n")) for name in names(valkey)}
    mark_ms = next(ms for name, ms in lives.items() if name.endswith(b":m"))
    assert len(lives) == 3
    assert all(0 < ms <= mark_ms for ms in lives.values())
    await cache.set("acme", "longer", b"1", ttl_s=500)
    mark = next(name for name in lives if name.endswith(b":m"))
    assert int(valkey.ask("PTTL", mark).strip(b":\r\n")) > 500_000


async def test_a_forgotten_rooms_entries_stay_forgotten_when_new_ones_come(cache: RedisCache) -> None:
    await cache.set("acme", "old", b"1")
    await cache.delete_room("acme")
    await cache.set("acme", "new", b"2")
    assert await cache.get("acme", "old") is None
    assert await cache.get("acme", "new") == b"2"


async def test_a_mark_that_the_server_dropped_is_a_miss_and_not_an_error(cache: RedisCache, valkey: Valkey) -> None:
    await cache.set("acme", "x", b"1")
    valkey.ask("DEL", next(name for name in names(valkey) if name.endswith(b":m")))
    assert await cache.get("acme", "x") is None


async def test_an_entry_cut_short_is_a_miss(cache: RedisCache, valkey: Valkey) -> None:
    await cache.set("acme", "x", b"1")
    valkey.ask("SET", next(name for name in names(valkey) if b":e:" in name), b"x" * (MARK_BYTES - 1))
    assert await cache.get("acme", "x") is None


async def test_what_one_server_keeps_another_has(cache: RedisCache, valkey: Valkey) -> None:
    other = await open_cache(valkey.url(), surroundings())
    await cache.set("acme", "x", b"1")
    assert await other.get("acme", "x") == b"1"
    await other.delete_room("acme")
    assert await cache.get("acme", "x") is None
    await other.close()


async def test_a_server_that_was_started_anew_knows_the_scripts_again(own_valkey: Valkey) -> None:
    cache = await open_cache(own_valkey.url(), surroundings())
    await cache.set("acme", "x", b"1")
    own_valkey.stop()
    with pytest.raises(CacheUnreachable):
        await cache.get("acme", "x")
    own_valkey.start()
    await cache.set("acme", "x", b"2")
    assert await cache.get("acme", "x") == b"2"
    await cache.close()


async def test_a_server_that_is_silent_costs_its_deadline_and_then_nothing(cache: RedisCache, valkey: Valkey) -> None:
    await cache.set("acme", "x", b"1")
    clock = ManualClock()
    async with Proxy("127.0.0.1", valkey.port) as proxy:
        hurried = RedisCache(RedisLine(f"redis://127.0.0.1:{proxy.port}", clock, deadline_s=0.3))
        proxy.swallow = True
        async with asyncio.timeout(20):
            for _ in range(3):
                with pytest.raises(CacheUnreachable):
                    await hurried.get("acme", "x")
        # It would answer now, but is left in peace: nobody connects, and nobody waits.
        proxy.swallow = False
        proxy.cut()
        before = proxy.opened
        for _ in range(100):
            with pytest.raises(CacheUnreachable):
                await hurried.get("acme", "x")
        assert proxy.opened == before
        async with asyncio.timeout(30):
            assert await answered(hurried, clock) == b"1"
        await hurried.close()


async def answered(cache: RedisCache, clock: ManualClock) -> bytes | None:
    """What the cache says once its rest is over; on a busy machine its short deadline may pass once more."""
    while True:
        clock.advance(10)
        with contextlib.suppress(CacheUnreachable):
            return await cache.get("acme", "x")


async def test_an_answer_that_comes_too_late_is_nobody_elses(valkey: Valkey) -> None:
    # A connection left behind with an unread answer would give it to the next question: another tenant's value.
    async with Proxy("127.0.0.1", valkey.port) as proxy:
        cache = RedisCache(RedisLine(f"redis://127.0.0.1:{proxy.port}", SystemClock(), deadline_s=3.0))
        await cache.set("acme", "x", b"acme's")
        await cache.set("globex", "x", b"globex's")
        for give_up in (True, False):
            # There and back again it is longer than the deadline.
            proxy.delay_s = 2.0
            asking = asyncio.create_task(cache.get("acme", "x"))
            await asyncio.sleep(0.05)
            if give_up:
                asking.cancel()
            (refused,) = await asyncio.gather(asking, return_exceptions=True)
            assert isinstance(refused, asyncio.CancelledError if give_up else CacheUnreachable)
            proxy.delay_s = 0.0
            assert await asyncio.gather(*(cache.get("globex", "x") for _ in range(20))) == [b"globex's"] * 20
        await cache.close()


async def test_more_questions_at_once_than_connections_are_all_answered(valkey: Valkey) -> None:
    cache = RedisCache(RedisLine(valkey.url(), SystemClock(), deadline_s=60.0))
    await asyncio.gather(*(cache.set("acme", str(number), str(number).encode()) for number in range(300)))
    found = await asyncio.gather(*(cache.get("acme", str(number)) for number in range(300)))
    assert found == [str(number).encode() for number in range(300)]
    await cache.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://", "http://h", "redis://h/x", "redis://h/-1", "redis://h:port", "redis://h/1/2", "redis://h/0?a=b",
        "redis://h?ca=f", "rediss://h?ssl_cert_reqs=none", "redis://h/²", "redis://h#f", "redis://h/99999999999",
    ],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    secret = url.replace("://", "://u:canary-password@") if url != "redis://" else url
    with pytest.raises(SettingsInvalid, match="redis") as refused:
        RedisLine(secret, SystemClock())
    assert "canary" not in str(refused.value)


async def test_tls_checks_the_servers_name_and_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_URL", "rediss://mio:p%40ss@cache.example:7000/3?ca=/etc/ca.pem")
    line = RedisLine("env://CACHE_URL", SystemClock())
    given = line._client.connection_pool.connection_kwargs
    assert (given["host"], given["port"], given["db"]) == ("cache.example", 7000, 3)
    assert (given["username"], given["password"]) == ("mio", "p@ss")
    assert (given["ssl_cert_reqs"], given["ssl_check_hostname"], given["ssl_ca_certs"]) == (
        "required",
        True,
        "/etc/ca.pem",
    )
    await line.close()


@contextlib.asynccontextmanager
async def tls_before(valkey: Valkey, context: ssl.SSLContext) -> AsyncIterator[int]:
    """The port of something that speaks TLS and passes everything on; the tests' Valkey was built without TLS."""
    ways: set[asyncio.Task[None]] = set()

    async def carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await source.read(65_536):
                target.write(piece)
        target.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", valkey.port)
        for way in (carry(reader, far_writer), carry(far_reader, writer)):
            ways.add(asyncio.create_task(way))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def test_over_tls_another_name_or_authority_is_refused(valkey: Valkey, tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    good, bad = tmp_path / "good.pem", tmp_path / "bad.pem"
    authority.cert_pem.write_to_path(str(good))
    stranger.cert_pem.write_to_path(str(bad))
    for name, ca, is_right in (
        ("localhost", good, True), ("cache.example", good, False), ("localhost", bad, False), ("localhost", None, False),
    ):  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        async with tls_before(valkey, context) as port:
            option = "" if ca is None else f"?ca={ca}"
            cache = RedisCache(RedisLine(f"rediss://localhost:{port}/0{option}", SystemClock()))
            if is_right:
                await cache.set("acme", "x", b"1")
                assert await cache.get("acme", "x") == b"1"
            else:
                with pytest.raises(CacheUnreachable):
                    await cache.get("acme", "x")
            await cache.close()


async def test_a_wrong_password_is_an_outage_that_repeats_no_password(valkey: Valkey) -> None:
    cache = RedisCache(RedisLine(f"redis://u:canary@127.0.0.1:{valkey.port}", SystemClock()))
    with pytest.raises(CacheUnreachable) as refused:
        await cache.get("acme", "x")
    assert "canary" not in str(refused.value)
    await cache.close()


async def test_the_privileges_that_the_page_names_are_enough(own_valkey: Valkey) -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "many-servers.md").read_text("utf-8")
    rule = next(line for line in page.splitlines() if line.startswith("user nagaya on "))
    assert own_valkey.ask("ACL", "SETUSER", *rule.replace("PASSWORD", "secret").split()[1:]) == b"+OK\r\n"
    line = RedisLine(f"redis://nagaya:secret@127.0.0.1:{own_valkey.port}/3", SystemClock())
    cache = RedisCache(line)
    await cache.set("acme", "x", b"1", ttl_s=5)
    await cache.set("acme", "y", b"1", ttl_s=50)
    await cache.set("acme", "x", b"1", ttl_s=0)
    assert await cache.get("acme", "y") == b"1"
    await cache.delete_room("acme")
    permits = RedisPermits(line)
    assert (await permits.settle("acme", spent=1, wanted=1, limit=9)).granted == 1
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    joined = asyncio.Event()
    channel = RedisChannel(line, "changes")
    listening = asyncio.create_task(channel.listen(heard.put_nowait, joined.set))
    async with asyncio.timeout(30):
        await joined.wait()
        await channel.publish(b"x")
        assert await heard.get() == b"x"
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    with pytest.raises(CacheUnreachable):
        await line.ask("KEYS", "*")
    await line.close()


async def test_questions_given_up_use_up_no_connections(valkey: Valkey) -> None:
    async with Proxy("127.0.0.1", valkey.port) as proxy:
        line = RedisLine(f"redis://127.0.0.1:{proxy.port}", SystemClock(), deadline_s=30.0)
        cache = RedisCache(line)
        await cache.set("acme", "x", b"1")
        for _ in range(3):
            proxy.swallow_answers = True
            asking = [asyncio.create_task(cache.get("acme", "x")) for _ in range(40)]
            await asyncio.sleep(0.05)
            # A cancellation that comes while a connection is opened may be lost: such a question would wait its time.
            await ended(asking)
            proxy.swallow_answers = False
            assert await asyncio.gather(*(cache.get("acme", "x") for _ in range(40))) == [b"1"] * 40
        await cache.close()
