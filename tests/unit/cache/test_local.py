import pytest

from nagaya.cache.local import LocalCache
from nagaya.testing.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


async def test_the_entry_unused_for_longest_makes_room(clock: ManualClock) -> None:
    cache = LocalCache(clock, max_entries=3)
    for key in "abc":
        await cache.set("acme", key, key.encode())
    await cache.get("acme", "a")
    await cache.set("other", "d", b"d")
    assert await cache.get("acme", "b") is None
    assert [await cache.get("acme", key) for key in "ac"] == [b"a", b"c"]


async def test_the_bytes_held_are_bounded(clock: ManualClock) -> None:
    cache = LocalCache(clock, max_bytes=100)
    for number in range(50):
        await cache.set("acme", str(number), b"x" * 30)
    assert [key for key in range(50) if await cache.get("acme", str(key))] == [47, 48, 49]


async def test_a_value_larger_than_the_cache_pushes_nobody_out(clock: ManualClock) -> None:
    cache = LocalCache(clock, max_bytes=100)
    await cache.set("acme", "small", b"x")
    await cache.set("acme", "large", b"x" * 101)
    assert await cache.get("acme", "small") == b"x"
    assert await cache.get("acme", "large") is None


async def test_what_ended_or_was_deleted_takes_no_room(clock: ManualClock) -> None:
    cache = LocalCache(clock)
    for room in ("acme", "other"):
        for number in range(10):
            await cache.set(room, str(number), b"x" * 10, ttl_s=1)
    clock.advance(1)
    for room in ("acme", "other"):
        for number in range(10):
            assert await cache.get(room, str(number)) is None
    assert (cache._entries, cache._rooms, cache._bytes) == ({}, {}, 0)
    await cache.set("acme", "x", b"1")
    await cache.close()
    assert (cache._entries, cache._rooms, cache._bytes) == ({}, {}, 0)


async def test_setting_the_wall_clock_ends_nothing(clock: ManualClock) -> None:
    cache = LocalCache(clock)
    await cache.set("acme", "x", b"1", ttl_s=10)
    clock.step_wall_clock(1_000_000)
    assert await cache.get("acme", "x") == b"1"


async def test_a_value_changed_by_its_owner_afterwards_stays_as_it_was(clock: ManualClock) -> None:
    cache = LocalCache(clock)
    value = bytearray(b"before")
    await cache.set("acme", "x", value)  # type: ignore[arg-type]  # what a careless caller may hand in
    value[:] = b"after!"
    assert await cache.get("acme", "x") == b"before"
