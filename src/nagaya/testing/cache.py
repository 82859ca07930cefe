"""The contract that every cache keeps."""

from __future__ import annotations

from typing import ClassVar

import pytest

from nagaya.cache.driver import CacheDriver
from nagaya.testing.clock import ManualClock

LOOK_ALIKES: tuple[tuple[str, str], ...] = (
    ("acme", "corp:x"),
    ("acme-corp", "x"),
    ("acme:corp", "x"),
    ("acme:x", ""),
    ("acme", ":x"),
    ("acme:", "x"),
    ("acme", "x"),
    ("ACME", "x"),
    ("Acme", "x"),
    ("acme ", "x"),
    ("acme\0", "x"),
    ("acme", "\0x"),
    ("acme", "X"),
    ("аcme", "x"),  # Cyrillic a
    ("ａｃｍｅ", "x"),  # full-width
    ("acme\u200b", "x"),  # zero-width space
    ("acmé", "x"),
    ("acme\u0301", "x"),  # the same accent, as a letter of its own
    ("acm*", "x"),
    ("acme", "*"),
    ("", "acme:x"),
)
"""Places that a careless cache takes for one another."""


class CacheContract:
    """What every cache promises. Inherit, supply the fixture ``cache`` (empty) and declare the traits.

    ``follows_clock``: the cache goes by the fixture ``clock``. One with a clock of its own skips those cases.
    """

    follows_clock: ClassVar[bool] = True

    async def test_what_was_set_comes_back(self, cache: CacheDriver) -> None:
        for value in (b"", b"\0\xff", b"x" * 70_000):
            await cache.set("acme", "x", value)
            assert await cache.get("acme", "x") == value

    async def test_what_was_never_set_is_a_miss(self, cache: CacheDriver) -> None:
        assert await cache.get("acme", "x") is None
        await cache.delete("acme", "x")
        await cache.delete_room("acme")

    @pytest.mark.parametrize("place", LOOK_ALIKES)
    async def test_a_look_alike_place_is_a_miss(self, cache: CacheDriver, place: tuple[str, str]) -> None:
        await cache.set(*place, b"canary")
        for other in LOOK_ALIKES:
            assert await cache.get(*other) == (b"canary" if other == place else None)

    async def test_every_look_alike_keeps_its_own_value(self, cache: CacheDriver) -> None:
        for place in LOOK_ALIKES:
            await cache.set(*place, repr(place).encode())
        for place in LOOK_ALIKES:
            assert await cache.get(*place) == repr(place).encode()

    async def test_forgetting_a_room_forgets_that_room_alone(self, cache: CacheDriver) -> None:
        for place in LOOK_ALIKES:
            await cache.set(*place, b"x")
        await cache.delete_room("acme")
        for room, key in LOOK_ALIKES:
            assert await cache.get(room, key) == (None if room == "acme" else b"x")

    async def test_a_deleted_entry_is_a_miss_and_its_neighbour_is_not(self, cache: CacheDriver) -> None:
        await cache.set("acme", "x", b"1")
        await cache.set("acme", "y", b"2")
        await cache.delete("acme", "x")
        assert await cache.get("acme", "x") is None
        assert await cache.get("acme", "y") == b"2"

    async def test_an_entry_ends_at_its_time(self, cache: CacheDriver, clock: ManualClock) -> None:
        if not self.follows_clock:
            pytest.skip("the cache lacks the trait follows_clock")
        await cache.set("acme", "x", b"1", ttl_s=10)
        clock.advance(9.9)
        assert await cache.get("acme", "x") == b"1"
        clock.advance(0.1)
        assert await cache.get("acme", "x") is None

    async def test_setting_again_starts_the_time_anew(self, cache: CacheDriver, clock: ManualClock) -> None:
        if not self.follows_clock:
            pytest.skip("the cache lacks the trait follows_clock")
        await cache.set("acme", "x", b"1", ttl_s=10)
        clock.advance(9)
        await cache.set("acme", "x", b"2", ttl_s=10)
        clock.advance(9)
        assert await cache.get("acme", "x") == b"2"

    async def test_an_entry_without_time_is_never_there(self, cache: CacheDriver) -> None:
        await cache.set("acme", "x", b"1")
        await cache.set("acme", "x", b"2", ttl_s=0)
        assert await cache.get("acme", "x") is None

    async def test_closing_twice_is_no_error(self, cache: CacheDriver) -> None:
        await cache.close()
        await cache.close()
