import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from nagaya.errors import (
    ConditionFailed,
    Conflict,
    KeyDestroyed,
    KeyDisabled,
    KeyExhausted,
    KeyUnreachable,
    SealBroken,
)
from nagaya.keys.keyring import USES_LIMIT
from nagaya.keys.versions import KeyVersionState
from nagaya.records.sealed_store import Delete, Partition, Put, Record, SealedStore
from nagaya.stores.driver import Put as StoredPut

House = Any  # the class lies in conftest.py, which cannot be imported by name
CONV = Partition("conversation", "conv_1")
STORED = "conversation/conv_1"
CANARY = b"canary: the roof of acme is leaking"


# --- the interface ------------------------------------------------------------------------------------------------


async def test_a_record_comes_back_and_the_store_saw_none_of_it(house: House) -> None:
    store = await house.room("acme")
    assert await store.put(CONV, b"1", CANARY) == 1
    assert await store.get(CONV, b"1") == Record(b"1", 1, CANARY)
    assert await store.get(CONV, b"2") is None
    row = await house.row("acme", STORED, b"1")
    assert b"canary" not in row.body
    assert len(row.body) == len(CANARY) + 63


async def test_several_records_come_back_at_once_each_bound_to_its_own_place(house: House) -> None:
    store = await house.room("acme")
    await store.write(CONV, [Put(b"1", b"one"), Put(b"2", b"two")])
    assert await store.get_many(CONV, [b"2", b"3", b"1"]) == [Record(b"2", 1, b"two"), None, Record(b"1", 1, b"one")]
    row = await house.row("acme", STORED, b"1")
    await house.stores["acme"].write(STORED, [StoredPut(b"3", row.body)])
    with pytest.raises(SealBroken):
        await store.get_many(CONV, [b"1", b"3"])


async def test_the_same_body_is_never_sealed_to_the_same_bytes(house: House) -> None:
    store = await house.room("acme")
    await store.write(CONV, [Put(bytes([number]), CANARY) for number in range(1, 101)])
    rows = await house.stores["acme"].query(STORED, after=b"", before=b"", limit=100, descending=False)
    assert len({row.body[7:19] for row in rows}) == 100


async def test_a_batch_is_written_whole_or_not_at_all(house: House) -> None:
    store = await house.room("acme")
    await store.write(CONV, [Put(b"1", b"one"), Put(b"2", b"two")])
    with pytest.raises(ConditionFailed):
        await store.write(CONV, [Put(b"3", b"three"), Put(b"1", b"again"), Delete(b"2", 1)])
    assert [each.sort for each in await store.query(CONV, limit=10)] == [b"1", b"2"]
    await store.write(CONV, [Put(b"1", b"uno", expect=1), Delete(b"2", 1), Put(b"3", b"three")])
    assert await store.query(CONV, limit=10) == [Record(b"1", 2, b"uno"), Record(b"3", 1, b"three")]
    await store.write(CONV, [Delete(b"3", 1)])
    await store.delete(CONV, b"1", expect=2)
    with pytest.raises(ConditionFailed):
        await store.delete(CONV, b"1", expect=2)
    assert await store.query(CONV, limit=10) == []


async def test_a_range_is_read_both_ways(house: House) -> None:
    store = await house.room("acme")
    await store.write(CONV, [Put(bytes([number]), b"%d" % number) for number in range(1, 10)])
    first = await store.query(CONV, after=b"\2", before=b"\7", limit=3)
    assert [each.body for each in first] == [b"3", b"4", b"5"]
    last = await store.query(CONV, limit=3, descending=True)
    assert [each.body for each in last] == [b"9", b"8", b"7"]


async def test_a_scan_gives_every_record_with_its_place(house: House) -> None:
    store = await house.room("acme")
    places = [Partition("conversation", "a/b"), Partition("memory", "m")]
    for place in places:
        await store.put(place, b"1", place.name.encode())
    first = await store.scan(limit=1)
    rest = await store.scan(after=("conversation/a/b", b"1"), limit=10)
    assert [(each, record.body) for each, record in first + rest] == [(places[0], b"a/b"), (places[1], b"m")]


@pytest.mark.parametrize("collection", ["", "a/b", "A", "-a", "é", "a" * 64])
async def test_a_collection_that_could_be_taken_for_another_place_is_refused(house: House, collection: str) -> None:
    store = await house.room("acme")
    with pytest.raises(ValueError, match="not a collection"):
        await store.put(Partition(collection, "x"), b"1", b"body")


@settings(max_examples=50, deadline=None)
@given(
    body=some.binary(max_size=2000), sort=some.binary(min_size=1, max_size=200), name=some.text("abc/:-_", max_size=40)
)
def test_any_body_at_any_place_comes_back(make_house: Any, body: bytes, sort: bytes, name: str) -> None:
    async def round_trip() -> None:
        store = await make_house().room("acme")
        partition = Partition("conversation", name)
        await store.put(partition, sort, body)
        await store.write(partition, [Put(sort, body, expect=1)])
        assert await store.query(partition, limit=1) == [Record(sort, 2, body)]

    asyncio.run(round_trip())


# --- records put in the wrong place ---------------------------------------------------------------------------------


async def test_a_record_moved_to_another_tenant_does_not_open(house: House) -> None:
    acme, other = await house.room("acme"), await house.room("other")
    await acme.put(CONV, b"1", CANARY)
    await house.plant("other", STORED, b"1", (await house.row("acme", STORED, b"1")).body)
    await refused(other)


async def test_a_record_moved_to_another_tenant_with_its_wrapped_key_does_not_open(house: House) -> None:
    acme, other = await house.room("acme"), await house.room("other")
    await acme.put(CONV, b"1", CANARY)
    await house.plant("other", STORED, b"1", (await house.row("acme", STORED, b"1")).body)
    house.versions.rooms["other"] = house.versions.rooms["acme"]
    await refused(other)


@pytest.mark.parametrize(
    ("partition", "sort"),
    [
        (Partition("memory", "conv_1"), b"1"),
        (Partition("conversation", "conv_2"), b"1"),
        (Partition("conversation", "conv_1/"), b"1"),
        (CONV, b"2"),
    ],
)
async def test_a_record_moved_within_the_tenant_does_not_open(house: House, partition: Partition, sort: bytes) -> None:
    store = await house.room("acme")
    await store.put(CONV, b"1", CANARY)
    await house.plant(
        "acme", f"{partition.collection}/{partition.name}", sort, (await house.row("acme", STORED, b"1")).body
    )
    await refused(store, partition, sort)


async def test_an_older_revision_put_back_does_not_open(house: House) -> None:
    store = await house.room("acme")
    await store.put(CONV, b"1", CANARY)
    old = (await house.row("acme", STORED, b"1")).body
    await store.put(CONV, b"1", b"newer", expect=1)
    await house.plant("acme", STORED, b"1", old)
    await refused(store)


@pytest.mark.parametrize(
    "body", [b"", b"plain", b'{"role":"user"}' * 20, b"Ng\x02" + b"\0" * 200, b"Ng\x01" + b"\0" * 200]
)
async def test_what_was_never_sealed_does_not_open(house: House, body: bytes) -> None:
    store = await house.room("acme")
    await store.put(CONV, b"0", b"a sound one before it")
    await house.plant("acme", STORED, b"1", body)
    await refused(store)


async def test_every_flipped_byte_in_the_store_breaks_the_seal(house: House) -> None:
    store = await house.room("acme")
    await store.put(CONV, b"1", CANARY)
    sound = (await house.row("acme", STORED, b"1")).body
    for place in range(len(sound)):
        await house.plant("acme", STORED, b"1", sound[:place] + bytes([sound[place] ^ 0x80]) + sound[place + 1 :])
        await refused(store)
    await house.plant("acme", STORED, b"1", sound)
    assert await store.get(CONV, b"1") == Record(b"1", 1, CANARY)


async def test_a_row_in_no_collection_does_not_open(house: House) -> None:
    store = await house.room("acme")
    await house.plant("acme", "nowhere", b"1", b"x")
    with pytest.raises(SealBroken):
        await store.scan(limit=10)


async def refused(store: SealedStore, partition: Partition = CONV, sort: bytes = b"1") -> None:
    with pytest.raises(SealBroken):
        await store.get(partition, sort)
    with pytest.raises(SealBroken):
        await store.query(partition, limit=10)
    with pytest.raises(SealBroken):
        await store.scan(limit=10)


# --- keys that change -----------------------------------------------------------------------------------------------


async def test_after_a_rotation_old_records_open_and_new_ones_are_under_the_new_key(house: House) -> None:
    store = await house.room("acme")
    await store.put(CONV, b"1", b"old")
    await house.versions.rotate(house.keys, "acme")
    store.drop_keys()
    await store.put(CONV, b"2", b"new")
    assert [each.body for each in await store.query(CONV, limit=10)] == [b"old", b"new"]
    assert [(await house.row("acme", STORED, sort)).body[6] for sort in (b"1", b"2")] == [1, 2]


async def test_a_sweep_reseals_everything_under_the_active_key_and_can_be_resumed(house: House) -> None:
    store = await house.room("acme")
    await store.write(CONV, [Put(bytes([number]), b"%d" % number) for number in range(1, 8)])
    look_up = await store.blind("user", "aiko")
    await house.versions.rotate(house.keys, "acme")
    store.drop_keys()
    after, resealed, steps = None, 0, 0
    while True:
        step = await store.reseal(limit=3, after=after)
        resealed, steps, after = resealed + step.resealed, steps + 1, step.after
        if after is None:
            break
    assert (resealed, steps) == (8, 3)
    assert (await store.reseal(limit=100)).resealed == 0
    house.versions.change("acme", 1, state=KeyVersionState.DESTROYED)
    again = await house.room("acme")
    assert [each.body for each in await again.query(CONV, limit=10)] == [b"%d" % number for number in range(1, 8)]
    assert await again.blind("user", "aiko") == look_up


async def test_a_sweep_leaves_broken_and_just_changed_rows_alone(house: House) -> None:
    store = await house.room("acme")
    await store.write(CONV, [Put(b"1", b"one"), Put(b"2", b"two")])
    await house.plant("acme", STORED, b"1", b"plain")
    await house.plant("acme", "nowhere", b"1", (await house.row("acme", STORED, b"2")).body)
    await house.versions.rotate(house.keys, "acme")
    store.drop_keys()
    bare, kept = house.stores["acme"], (await house.row("acme", STORED, b"2")).body

    class Racing:
        def __getattr__(self, name: str) -> Any:
            return getattr(bare, name)

        async def write(self, partition: str, changes: Any) -> None:
            await bare.write(partition, [StoredPut(b"2", kept, 1)])
            await bare.write(partition, changes)

    store._store._driver = Racing()
    step = await store.reseal(limit=10)
    assert (step.seen, step.resealed, step.broken, step.after) == (3, 0, 2, None)
    assert (await house.row("acme", STORED, b"1")).body == b"plain"


async def test_a_disabled_key_closes_the_records_within_thirty_seconds(house: House) -> None:
    store = await house.room("acme")
    await store.put(CONV, b"1", CANARY)
    await house.keys.disable("acme")
    for _ in range(30):
        house.clock.advance(1)
    with pytest.raises(KeyDisabled):
        await store.get(CONV, b"1")
    with pytest.raises(KeyDisabled):
        await store.query(CONV, limit=10)
    with pytest.raises(KeyDisabled):
        await store.put(CONV, b"2", b"x")
    with pytest.raises(KeyDisabled):
        await store.write(CONV, [Put(b"2", b"x")])
    with pytest.raises(KeyDisabled):
        await store.blind("user", "aiko")
    await house.keys.enable("acme")
    assert await store.get(CONV, b"1") == Record(b"1", 1, CANARY)


async def test_a_drop_closes_the_records_at_once(house: House) -> None:
    store = await house.room("acme")
    await store.put(CONV, b"1", CANARY)
    await store.blind("user", "aiko")
    await house.keys.disable("acme")
    store.drop_keys()
    for call in (store.get(CONV, b"1"), store.blind("user", "aiko"), store.put(CONV, b"2", b"x")):
        with pytest.raises(KeyDisabled):
            await call


async def test_a_key_service_that_is_down_keeps_nothing_open_past_thirty_seconds(house: House) -> None:
    store = await house.room("acme")
    await store.put(CONV, b"1", CANARY)
    house.keys.reachable = False
    house.clock.advance(29.9)
    assert await store.get(CONV, b"1") is not None
    house.clock.advance(0.1)
    with pytest.raises(KeyUnreachable):
        await store.get(CONV, b"1")


async def test_what_was_sealed_is_lost_with_the_key(house: House) -> None:
    store = await house.room("acme")
    await store.put(CONV, b"1", CANARY)
    await house.keys.destroy("acme")
    store.drop_keys()
    with pytest.raises(KeyDestroyed):
        await store.get(CONV, b"1")


async def test_a_key_that_sealed_all_it_may_writes_nothing_more(house: House) -> None:
    store = await house.room("acme")
    house.versions.change("acme", 1, uses=USES_LIMIT - 2)
    with pytest.raises(KeyExhausted):
        await store.write(CONV, [Put(bytes([number]), b"x") for number in range(1, 4)])
    assert await store.query(CONV, limit=10) == []


async def test_the_ciphers_held_are_bounded(house: House) -> None:
    store = await house.room("acme", max_ciphers=4)
    for number in range(20):
        await store.put(Partition("conversation", f"conv_{number}"), b"1", b"%d" % number)
    assert len(store._sealer._ciphers) == 4
    assert (await store.get(Partition("conversation", "conv_0"), b"1")) == Record(b"1", 1, b"0")


async def test_one_envelope_can_be_sealed_and_opened_by_itself(house: House) -> None:
    await house.room("acme")
    one, other = house.sealer("acme"), house.sealer("acme")
    sealed = await one.seal(CONV, b"1", 1, CANARY)
    assert await other.open(CONV, b"1", 1, sealed) == CANARY
    assert await other.open(CONV, b"1", 1, sealed) == CANARY


# --- blind indexes ----------------------------------------------------------------------------------------------------


async def test_a_blind_index_is_stable_and_tells_tenants_and_fields_apart(house: House) -> None:
    acme, other = await house.room("acme"), await house.room("other")
    first = await acme.blind("user", "aiko")
    assert len(first) == 64
    assert first == await acme.blind("user", "aiko") == await (await house.room("acme")).blind("user", "aiko")
    different = {
        first,
        await acme.blind("user", "aikO"),
        await acme.blind("title", "aiko"),
        await acme.blind("user", "\ud800"),
        await other.blind("user", "aiko"),
    }
    assert len(different) == 5


async def test_a_blind_index_survives_rotation(house: House) -> None:
    store = await house.room("acme")
    before = await store.blind("user", "aiko")
    await house.versions.rotate(house.keys, "acme")
    store.drop_keys()
    assert await store.blind("user", "aiko") == before


async def test_two_sessions_that_need_an_index_key_first_agree_on_one(house: House) -> None:
    stores = [await house.room("acme") for _ in range(8)]
    assert len(set(await asyncio.gather(*(each.blind("user", "aiko") for each in stores)))) == 1


async def test_an_index_key_that_never_comes_to_rest_is_an_error(house: House) -> None:
    store = await house.room("acme")

    class Forgetful:
        async def get(self, partition: str, sort: bytes) -> None:
            return None

        async def write(self, partition: str, changes: Any) -> None:
            raise ConditionFailed

    store._store._driver = Forgetful()
    with pytest.raises(Conflict):
        await store.blind("user", "aiko")
