"""Records opened lately: forgetting one room leaves the others' and no bytes behind."""

from __future__ import annotations

from nagaya.records.opened import Opened, OpenedRecords
from nagaya.records.sealer import Partition

RECORD = Opened((b"i", 1, b"s" * 600), b"b" * 400, b"header")


def test_forgetting_a_room_leaves_the_others_and_counts_what_went() -> None:
    kept = OpenedRecords(limit_bytes=10_000)
    places = [Partition("conv", "1"), Partition("conv", "2")]
    for room in ("acme", "globex"):
        for place in places:
            kept.keep(room, place, b"i", RECORD)
    kept.drop("acme")
    kept.drop("acme")
    kept.drop("nobody")
    assert [bool(kept.of(room, place)) for room in ("acme", "globex") for place in places] == [False, False, True, True]
    # What the room took is free again: eight more fit beside the other's two.
    for number in range(8):
        kept.keep("initech", Partition("conv", str(number)), b"i", RECORD)
    assert all(kept.of("globex", place) for place in places)


def test_a_room_whose_records_had_to_go_is_forgotten_and_kept_anew() -> None:
    kept = OpenedRecords(limit_bytes=2_000)
    for number in range(20):
        kept.keep(f"room-{number}", Partition("conv", "1"), b"i", RECORD)
    assert not kept.of("room-0", Partition("conv", "1"))
    kept.drop("room-0")
    kept.drop("room-19")
    assert not kept.of("room-19", Partition("conv", "1"))
    assert kept.of("room-18", Partition("conv", "1"))
    kept.keep("room-0", Partition("conv", "1"), b"i", RECORD)
    assert kept.of("room-0", Partition("conv", "1")) == {b"i": RECORD}
