"""Decoded records in memory: the same only while the store says the same, and gone with the key."""

from __future__ import annotations

from collections.abc import Callable

from nagaya.connections.decoded import WEIGHT, Decoded, DecodedLimit
from nagaya.records.sealed_store import Partition, Record

PLACE, OTHER = Partition("memories", "a"), Partition("memories", "b")


class Ring:
    """As much of a keyring as matters here."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []

    def when_dropped(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def drop(self) -> None:
        for callback in self.callbacks:
            callback()


class House:
    """A room, and what was decoded in it."""

    def __init__(self, limit: DecodedLimit | None = None) -> None:
        self.limit = limit or DecodedLimit()
        self.ring = Ring()
        self.decoded = Decoded(self.ring, self.limit)
        self.made: list[bytes] = []

    def read(self, *bodies: bytes, at: Partition = PLACE, drops: int | None = None) -> list[list[bytes]]:
        records = [Record(body[:1], 1, body) for body in bodies]
        return self.decoded.values(at, records, self._make, drops=self.decoded.drops if drops is None else drops)

    def _make(self, body: bytes) -> list[bytes]:
        self.made.append(body)
        return [body]


def test_what_is_read_again_is_not_decoded_again():
    house = House()
    first = house.read(b"a1", b"b1")
    again = house.read(b"a1", b"b1")
    assert first == again == [[b"a1"], [b"b1"]]
    assert all(one is other for one, other in zip(first, again, strict=True))
    assert house.made == [b"a1", b"b1"]


def test_what_was_changed_added_or_deleted_by_whoever_is_seen_at_once():
    house = House()
    house.read(b"a1", b"b1", b"c1")
    assert house.read(b"a1", b"b2", b"d1") == [[b"a1"], [b"b2"], [b"d1"]]
    assert house.made[3:] == [b"b2", b"d1"]
    # The same place and revision with what stood there once: a store that was restored.
    assert house.read(b"b1", b"c1") == [[b"b1"], [b"c1"]]
    assert house.made[5:] == [b"b1", b"c1"]
    assert house.limit.held_bytes == 4 * WEIGHT


def test_everything_goes_with_the_key_and_what_is_being_read_then_is_not_kept():
    house = House()
    drops = house.decoded.drops
    house.read(b"a1")
    house.ring.drop()
    assert house.limit.held_bytes == 0
    assert house.read(b"a1", drops=drops) == [[b"a1"]]
    assert house.limit.held_bytes == 0
    house.read(b"a1")
    assert house.limit.held_bytes > 0
    assert house.read() == []
    assert house.limit.held_bytes == 0


def test_the_longest_unused_list_goes_first_whose_ever_it_is_and_rooms_share_nothing_else():
    limit = DecodedLimit(WEIGHT * 8)
    one, two = House(limit), House(limit)
    one.read(b"a1", b"b1")
    two.read(b"a1", b"b1")
    assert two.made == [b"a1", b"b1"]
    one.read(b"a1", b"b1")
    one.read(b"c1", at=OTHER)
    assert limit.held_bytes == 6 * WEIGHT
    one.read(b"a1", b"b1")
    assert one.made == [b"a1", b"b1", b"c1"]
    two.read(b"a1", b"b1")
    assert two.made == [b"a1", b"b1"] * 2
    # What is larger than the limit alone is read, and not kept.
    assert len(two.read(*(b"%c-long" % letter for letter in b"abcdefgh"))) == 8
    assert limit.held_bytes == 0
