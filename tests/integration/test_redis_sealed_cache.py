"""What leaves the process for Valkey is sealed: nothing there can be read, moved, planted or kept past its time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nagaya.cache.redis import RedisCache
from nagaya.cache.redis_line import RedisLine
from nagaya.errors import CacheUnreachable, KeyDisabled
from nagaya.kernel.clock import SystemClock
from nagaya.keys.keyring import Keyring
from nagaya.records.sealed_cache import SealedCache
from nagaya.records.sealer import Sealer
from nagaya.testing.cache import LOOK_ALIKES, CacheContract
from nagaya.testing.clock import ManualClock
from nagaya.testing.keys import MemoryKeys, MemoryKeyVersions
from parts.valkey import Valkey

pytest_plugins = ["parts.valkey_server"]

CANARY = b"canary-7f3a: the roof is mended by Ren"


class Building:
    """Sealed caches of any room over one server."""

    def __init__(self, url: str) -> None:
        self.clock = ManualClock()
        self.keys = MemoryKeys()
        self.versions = MemoryKeyVersions()
        self.bare = RedisCache(RedisLine(url, SystemClock()))
        self.sealers: dict[str, Sealer] = {}

    async def room(self, room: str, *, forgiving: bool = True) -> SealedCache:
        if room not in self.sealers:
            await self.versions.rotate(self.keys, room)
            self.sealers[room] = Sealer(room, Keyring(room, self.keys, self.versions, self.clock))
        return SealedCache(self.bare, self.sealers[room], self.clock, forgiving=forgiving)

    # The contract's shape, in which a room is a word.

    async def get(self, room: str, key: str) -> bytes | None:
        return await (await self.room(room)).get(key)

    async def set(self, room: str, key: str, value: bytes, *, ttl_s: float = 300.0) -> None:
        await (await self.room(room)).set(key, value, ttl_s=ttl_s)

    async def delete(self, room: str, key: str) -> None:
        await (await self.room(room)).delete(key)

    async def delete_room(self, room: str) -> None:
        await (await self.room(room)).clear()

    async def close(self) -> None:
        await self.bare.close()


@pytest.fixture
async def building(valkey: Valkey) -> AsyncIterator[Building]:
    made = Building(valkey.url())
    yield made
    for sealer in made.sealers.values():
        await sealer.keyring.close()
    await made.close()


class TestSealedCache(CacheContract):
    follows_clock = True

    @pytest.fixture
    def clock(self, building: Building) -> ManualClock:
        return building.clock

    @pytest.fixture
    def cache(self, building: Building) -> Building:
        return building


async def test_row_17_look_alike_places_share_nothing_over_valkey(building: Building) -> None:
    for place in LOOK_ALIKES:
        await building.set(*place, repr(place).encode())
        for other in LOOK_ALIKES[LOOK_ALIKES.index(place) + 1 :]:
            assert await building.get(*other) is None
    for place in LOOK_ALIKES:
        assert await building.get(*place) == repr(place).encode()


async def test_nothing_in_the_servers_memory_can_be_read(building: Building, valkey: Valkey) -> None:
    for number in range(50):
        await building.set("acme", f"mio's question {number}", CANARY * 20)
    text = valkey.ask("KEYS", "*")
    found = [line for line in text.split(b"\r\n") if line.startswith(b"nagaya:")]
    assert len(found) == 51
    whole = text + b"".join(valkey.ask("DUMP", name) + valkey.ask("GET", name) for name in found)
    assert len(whole) > 50 * 20 * len(CANARY)
    # A shorter word stands in random bytes now and then.
    for word in (b"canary", b"mended by", b"mio's", b"question", b"acme"):
        assert word not in whole


async def test_an_entry_moved_to_another_key_or_room_or_changed_is_a_miss(building: Building) -> None:
    await building.set("acme", "a", CANARY)
    sealed = await building.bare.get("acme", "a")
    assert sealed is not None
    await building.bare.set("acme", "b", sealed)
    assert await building.get("acme", "b") is None
    await building.room("globex")
    await building.bare.set("globex", "a", sealed)
    assert await building.get("globex", "a") is None
    for at in range(0, len(sealed), 7):
        changed = bytearray(sealed)
        changed[at] ^= 1
        await building.bare.set("acme", "a", bytes(changed))
        assert await building.get("acme", "a") is None
    for other in (b"", CANARY, sealed[:-1], sealed + b"\0"):
        await building.bare.set("acme", "a", other)
        assert await building.get("acme", "a") is None
    await building.bare.set("acme", "a", sealed)
    assert await building.get("acme", "a") == CANARY


async def test_an_entry_that_a_server_keeps_past_its_time_is_a_miss(building: Building) -> None:
    await building.set("acme", "a", CANARY, ttl_s=10)
    sealed = await building.bare.get("acme", "a")
    assert sealed is not None
    await building.bare.set("acme", "a", sealed, ttl_s=1000)
    building.clock.advance(9.9)
    assert await building.get("acme", "a") == CANARY
    building.clock.advance(0.2)
    assert await building.bare.get("acme", "a") == sealed
    assert await building.get("acme", "a") is None


async def test_a_disabled_key_opens_no_cached_copy(building: Building) -> None:
    await building.set("acme", "a", CANARY)
    await building.keys.disable("acme")
    building.sealers["acme"].drop_keys()
    with pytest.raises(KeyDisabled):
        await building.get("acme", "a")


async def test_a_cache_that_is_away_is_a_miss_but_what_must_be_forgotten_is_not_lied_about(
    building: Building, own_valkey: Valkey
) -> None:
    building.bare = RedisCache(RedisLine(own_valkey.url(), SystemClock()))
    forgiving, strict = await building.room("acme"), await building.room("acme", forgiving=False)
    await forgiving.set("a", b"1")
    own_valkey.stop()
    assert await forgiving.get("a") is None
    await forgiving.set("a", b"2")
    for asked in (forgiving.delete("a"), forgiving.clear(), strict.get("a"), strict.set("a", b"3")):
        with pytest.raises(CacheUnreachable):
            await asked
