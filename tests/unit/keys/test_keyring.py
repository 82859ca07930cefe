import asyncio
import gc
from collections.abc import Sequence

import pytest

from nagaya.errors import (
    KeyDestroyed,
    KeyDisabled,
    KeyExhausted,
    KeyUnreachable,
    NotFound,
    RegistryUnreachable,
    SealBroken,
)
from nagaya.keys.keyring import (
    CACHE_S,
    MAX_HELD,
    ROTATE_AT,
    USES_CHUNK,
    USES_LIMIT,
    Keyring,
    new_version,
)
from nagaya.keys.versions import KeyVersion, KeyVersionState
from nagaya.testing.clock import ManualClock
from nagaya.testing.keys import MemoryKeys, MemoryKeyVersions

ROOM = "acme"


class Bench:
    """A keyring with everything around it within reach."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.keys = MemoryKeys()
        self.versions = MemoryKeyVersions()
        self.ring = Keyring(ROOM, self.keys, self.versions, self.clock)

    async def start(self) -> "Bench":
        await self.versions.rotate(self.keys, ROOM)
        self.keys.calls = self.versions.reads = 0
        return self

    async def settle(self) -> None:
        """Let the work in the background go as far as it can."""
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def bench() -> Bench:
    return await Bench().start()


async def test_a_room_without_any_key_is_told_so() -> None:
    with pytest.raises(NotFound):
        await Bench().ring.active()


async def test_a_new_version_is_active_wrapped_and_dated() -> None:
    keys, clock = MemoryKeys(), ManualClock(now_us=77)
    made = await new_version(keys, ROOM, 3, clock=clock)
    assert (made.version, made.state, made.created_at_us, made.uses) == (3, KeyVersionState.ACTIVE, 77, 0)
    assert len(made.wrapped) > 32


async def test_a_key_is_fetched_once_and_then_held(bench: Bench) -> None:
    assert bench.ring.held() is None
    key = await bench.ring.active()
    assert bench.ring.held() is key
    assert bench.ring.held(1) is key
    assert await bench.ring.active() is key
    assert await bench.ring.version(1) is key
    assert bench.keys.calls == 1


async def test_many_callers_at_once_cost_one_call(bench: Bench) -> None:
    bench.keys.gate.clear()
    callers = [asyncio.create_task(bench.ring.active()) for _ in range(100)]
    await bench.settle()
    bench.keys.gate.set()
    assert len(set(await asyncio.gather(*callers))) == 1
    assert bench.keys.calls == 1
    assert bench.versions.reads == 1


async def test_a_caller_that_goes_away_does_not_take_the_others_key_along(bench: Bench) -> None:
    bench.keys.gate.clear()
    first, second = (asyncio.create_task(bench.ring.active()) for _ in range(2))
    await bench.settle()
    first.cancel()
    await bench.settle()
    bench.keys.gate.set()
    assert (await second).version == 1
    assert first.cancelled()


async def test_a_failure_that_nobody_waits_for_any_more_makes_no_noise(bench: Bench) -> None:
    bench.keys.gate.clear()
    bench.keys.reachable = False
    caller = asyncio.create_task(bench.ring.active())
    await bench.settle()
    caller.cancel()
    bench.keys.gate.set()
    await bench.settle()
    gc.collect()
    assert bench.ring.held() is None


async def test_a_key_is_served_just_short_of_thirty_seconds_and_not_at_thirty(bench: Bench) -> None:
    key = await bench.ring.active()
    bench.keys.reachable = False
    bench.clock.advance(CACHE_S - 0.001)
    assert bench.ring.held() is key
    bench.clock.advance(0.001)
    assert bench.ring.held() is None
    with pytest.raises(KeyUnreachable):
        key.derive("record")
    with pytest.raises(KeyUnreachable):
        await bench.ring.active()
    with pytest.raises(KeyUnreachable):
        await bench.ring.version(1)


async def test_age_counts_from_before_the_service_was_asked(bench: Bench) -> None:
    bench.keys.gate.clear()
    caller = asyncio.create_task(bench.ring.active())
    await bench.settle()
    bench.clock.advance(10)
    bench.keys.gate.set()
    key = await caller
    bench.keys.reachable = False
    bench.clock.advance(19.9)
    assert bench.ring.held() is key
    bench.clock.advance(0.1)
    assert bench.ring.held() is None


async def test_a_key_that_took_longer_than_its_time_is_never_served(bench: Bench) -> None:
    class Slow(MemoryKeys):
        async def unwrap(self, wrapped: bytes, context: object) -> bytes:
            bench.clock.advance(CACHE_S)
            return b"k" * 32

    ring = Keyring(ROOM, Slow(), bench.versions, bench.clock)
    with pytest.raises(KeyUnreachable):
        await ring.active()


async def test_a_disabled_key_is_refused_within_thirty_seconds(bench: Bench) -> None:
    await bench.ring.active()
    await bench.keys.disable(ROOM)
    refused_after_s = 0
    while bench.ring.held() is not None:
        bench.clock.advance(1)
        refused_after_s += 1
        await bench.settle()
    assert refused_after_s <= CACHE_S
    with pytest.raises(KeyDisabled):
        await bench.ring.active()


async def test_a_disabled_key_is_refused_at_once_after_a_drop(bench: Bench) -> None:
    key = await bench.ring.active()
    await bench.keys.disable(ROOM)
    bench.ring.drop()
    assert bench.ring.held() is None
    assert bench.ring.held(1) is None
    with pytest.raises(KeyUnreachable):
        key.derive("record")
    with pytest.raises(KeyDisabled):
        await bench.ring.active()
    await bench.keys.enable(ROOM)
    assert (await bench.ring.active()).version == 1


async def test_hearing_that_the_key_is_disabled_drops_every_version(bench: Bench) -> None:
    await bench.ring.active()
    await bench.versions.rotate(bench.keys, ROOM)
    await bench.keys.disable(ROOM)
    assert bench.ring.held(1) is not None
    with pytest.raises(KeyDisabled):
        await bench.ring.version(2)
    assert bench.ring.held(1) is None


async def test_a_key_withdrawn_while_it_was_fetched_is_not_used(bench: Bench) -> None:
    bench.keys.gate.clear()
    caller = asyncio.create_task(bench.ring.active())
    await bench.settle()
    bench.ring.drop()
    calls = bench.keys.calls
    bench.keys.gate.set()
    await caller
    assert bench.keys.calls == calls + 1, "the answer to the question asked before the drop was used"


async def test_a_late_answer_from_before_a_drop_does_not_harm_the_key_fetched_after_it(bench: Bench) -> None:
    bench.keys.gate.clear()
    caller = asyncio.create_task(bench.ring.active())
    await bench.settle()
    bench.ring.drop()
    other = asyncio.create_task(bench.ring.active())
    await bench.settle()
    bench.keys.gate.set()
    assert await caller is await other
    assert bench.ring.held() is await other


async def test_a_late_refusal_from_before_a_drop_does_not_drop_the_key_fetched_after_it(bench: Bench) -> None:
    gates = [asyncio.Event(), asyncio.Event()]

    class Late(MemoryKeys):
        async def unwrap(self, wrapped: bytes, context: object) -> bytes:
            gate = gates[self.calls]
            self.calls += 1
            await gate.wait()
            if gate is gates[0]:
                raise KeyDisabled
            return b"k" * 32

    ring = Keyring(ROOM, Late(), bench.versions, bench.clock)
    early = asyncio.create_task(ring.active())
    await bench.settle()
    ring.drop()
    late = asyncio.create_task(ring.active())
    await bench.settle()
    gates[1].set()
    key = await late
    gates[0].set()
    with pytest.raises(KeyDisabled):
        await early
    assert ring.held() is key


async def test_being_dropped_again_and_again_ends_in_an_error_not_in_a_loop(bench: Bench) -> None:
    class Dropping(MemoryKeys):
        async def unwrap(self, wrapped: bytes, context: object) -> bytes:
            self.calls += 1
            ring.drop()
            return b"k" * 32

    keys = Dropping()
    ring = Keyring(ROOM, keys, bench.versions, bench.clock)
    with pytest.raises(KeyUnreachable):
        await ring.active()
    assert keys.calls == 3


async def test_a_key_in_use_is_fetched_anew_before_its_time_without_anybody_waiting(bench: Bench) -> None:
    key = await bench.ring.active()
    for _ in range(20):
        bench.clock.advance(10)
        assert bench.ring.held() is key, "the hot path had to wait"
        await bench.settle()
    assert 8 <= bench.keys.calls <= 12


async def test_refreshing_ahead_asks_once_however_many_ask(bench: Bench) -> None:
    await bench.ring.active()
    bench.keys.gate.clear()
    bench.clock.advance(21)
    for _ in range(50):
        assert bench.ring.held() is not None
    await bench.settle()
    assert bench.keys.calls == 2
    bench.keys.gate.set()
    await bench.settle()


async def test_an_unreachable_service_is_asked_again_every_two_seconds_until_the_key_ends(bench: Bench) -> None:
    await bench.ring.active()
    bench.keys.reachable = False
    bench.clock.advance(20)
    for _ in range(99):
        bench.ring.held()
        await bench.settle()
        bench.clock.advance(0.1)
    assert 5 <= bench.keys.calls - 1 <= 6
    bench.keys.reachable = True
    bench.clock.advance(0.05)
    assert bench.ring.held() is not None


async def test_refreshing_ahead_notices_that_the_key_was_disabled(bench: Bench) -> None:
    await bench.ring.active()
    await bench.keys.disable(ROOM)
    bench.clock.advance(20)
    bench.ring.held()
    await bench.settle()
    assert bench.ring.held() is None


async def test_rotation_is_noticed_and_old_versions_still_open(bench: Bench) -> None:
    old = await bench.ring.active()
    await bench.versions.rotate(bench.keys, ROOM)
    bench.clock.advance(20)
    assert bench.ring.held() is old
    await bench.settle()
    assert (await bench.ring.active()).version == 2
    assert (await bench.ring.version(1)).version == 1


async def test_reading_a_row_of_a_newer_version_moves_sealing_to_it(bench: Bench) -> None:
    await bench.ring.active()
    await bench.versions.rotate(bench.keys, ROOM)
    await bench.ring.version(2)
    key = bench.ring.held()
    assert key is not None
    assert key.version == 2


async def test_an_older_reading_of_the_registry_does_not_undo_a_younger_one(bench: Bench) -> None:
    gates = {1: asyncio.Event(), 2: asyncio.Event()}
    readings = iter((1, 2))

    class Late(MemoryKeyVersions):
        async def key_versions(self, room: str) -> Sequence[KeyVersion]:
            reading = next(readings)
            listing = await super().key_versions(room)
            await gates[reading].wait()
            return listing

    versions = Late()
    await versions.rotate(bench.keys, ROOM)
    ring = Keyring(ROOM, bench.keys, versions, bench.clock)
    early = asyncio.create_task(ring.version(1))
    await bench.settle()
    bench.clock.advance(1)
    await versions.rotate(bench.keys, ROOM)
    late = asyncio.create_task(ring.active())
    await bench.settle()
    gates[2].set()
    assert (await late).version == 2
    gates[1].set()
    assert (await early).version == 1
    key = ring.held()
    assert key is not None
    assert key.version == 2


async def test_a_version_that_the_registry_does_not_know_is_a_foreign_record(bench: Bench) -> None:
    with pytest.raises(SealBroken):
        await bench.ring.version(7)


async def test_a_destroyed_version_is_refused_and_the_others_go_on(bench: Bench) -> None:
    await bench.ring.active()
    await bench.versions.rotate(bench.keys, ROOM)
    bench.versions.change(ROOM, 1, state=KeyVersionState.DESTROYED)
    assert (await bench.ring.version(2)).version == 2
    assert bench.ring.held(1) is None
    with pytest.raises(KeyDestroyed):
        await bench.ring.version(1)
    assert bench.ring.held(2) is not None


async def test_a_shredded_tenant_has_no_key_left(bench: Bench) -> None:
    await bench.ring.active()
    bench.versions.change(ROOM, 1, state=KeyVersionState.DESTROYED)
    bench.clock.advance(20)
    bench.ring.held()
    await bench.settle()
    assert bench.ring.held() is None
    with pytest.raises(KeyDestroyed):
        await bench.ring.active()


async def test_a_key_destroyed_at_the_service_is_refused(bench: Bench) -> None:
    await bench.ring.active()
    await bench.keys.destroy(ROOM)
    bench.ring.drop()
    with pytest.raises(KeyDestroyed):
        await bench.ring.active()


async def test_another_tenants_wrapped_key_does_not_become_ones_own(bench: Bench) -> None:
    await bench.versions.rotate(bench.keys, "other")
    bench.versions.rooms["other"] = bench.versions.rooms[ROOM]
    ring = Keyring("other", bench.keys, bench.versions, bench.clock)
    with pytest.raises(SealBroken):
        await ring.active()


async def test_a_service_that_gives_another_key_than_before_ends_the_former(bench: Bench) -> None:
    plain = [b"a" * 32]

    class Changing(MemoryKeys):
        async def unwrap(self, wrapped: bytes, context: object) -> bytes:
            return plain[0]

    ring = Keyring(ROOM, Changing(), bench.versions, bench.clock)
    former = await ring.active()
    plain[0] = b"b" * 32
    bench.clock.advance(20)
    ring.held()
    await bench.settle()
    assert ring.held() is not former
    with pytest.raises(KeyUnreachable):
        former.derive("record")


async def test_a_key_of_the_wrong_length_is_refused(bench: Bench) -> None:
    class Short(MemoryKeys):
        async def unwrap(self, wrapped: bytes, context: object) -> bytes:
            return b"k" * 16

    with pytest.raises(SealBroken):
        await Keyring(ROOM, Short(), bench.versions, bench.clock).active()


@pytest.mark.parametrize("failure", [OSError(28, "no space"), RuntimeError("vendor"), TimeoutError()])
async def test_whatever_the_service_raises_is_told_as_unreachable(bench: Bench, failure: Exception) -> None:
    class Failing(MemoryKeys):
        async def unwrap(self, wrapped: bytes, context: object) -> bytes:
            raise failure

    with pytest.raises(KeyUnreachable):
        await Keyring(ROOM, Failing(), bench.versions, bench.clock).active()


async def test_a_service_that_never_answers_is_given_up_at_the_deadline(bench: Bench) -> None:
    bench.keys.gate.clear()
    with pytest.raises(KeyUnreachable):
        await Keyring(ROOM, bench.keys, bench.versions, bench.clock, deadline_s=0.01).active()


async def test_a_registry_that_is_down_says_so_itself(bench: Bench) -> None:
    class Down(MemoryKeyVersions):
        async def key_versions(self, room: str) -> Sequence[KeyVersion]:
            raise RegistryUnreachable(detail="test")

    with pytest.raises(RegistryUnreachable):
        await Keyring(ROOM, bench.keys, Down(), bench.clock).active()


async def test_the_keys_held_are_bounded_and_the_active_one_stays(bench: Bench) -> None:
    for _ in range(MAX_HELD + 5):
        await bench.versions.rotate(bench.keys, ROOM)
    active = await bench.ring.active()
    for version in range(1, MAX_HELD + 6):
        await bench.ring.version(version)
    held = [version for version in range(1, MAX_HELD + 7) if bench.ring.held(version)]
    assert len(held) == MAX_HELD
    assert bench.ring.held() is active


async def test_whoever_derived_from_a_key_is_told_when_it_goes(bench: Bench) -> None:
    told: list[str] = []
    bench.ring.when_dropped(lambda: told.append("dropped"))
    await bench.ring.active()
    assert told == []
    bench.ring.drop()
    assert told == ["dropped"]


async def test_a_key_nobody_asks_for_any_more_leaves_memory_too(bench: Bench) -> None:
    ring = Keyring(ROOM, bench.keys, bench.versions, bench.clock, 0.02)
    key = await ring.active()
    await asyncio.sleep(0.03)
    assert key.is_alive(bench.clock.monotonic_s()), "the clock stood still"
    bench.clock.advance(0.02)
    await asyncio.sleep(0.03)
    with pytest.raises(KeyUnreachable):
        key.derive("record")
    await ring.close()


# --- counting ---------------------------------------------------------------------------------------------------


async def test_seals_are_counted_in_chunks_and_the_rest_at_the_end(bench: Bench) -> None:
    key = await bench.ring.active()
    for _ in range(USES_CHUNK):
        bench.ring.count(key, 1)
    await bench.settle()
    assert bench.versions.of(ROOM, 1).uses == 0
    bench.ring.count(key, 1)
    await bench.settle()
    assert bench.versions.of(ROOM, 1).uses == USES_CHUNK + 1
    bench.ring.count(key, 9)
    await bench.ring.close()
    assert bench.versions.of(ROOM, 1).uses == USES_CHUNK + 10


async def test_seals_are_counted_also_where_the_key_was_dropped(bench: Bench) -> None:
    bench.ring.count(await bench.ring.active(), 5)
    bench.ring.drop()
    bench.ring.count(await bench.ring.active(), 6)
    await bench.ring.flush()
    assert bench.versions.of(ROOM, 1).uses == 11


async def test_counts_that_could_not_be_written_are_kept(bench: Bench) -> None:
    class Down(MemoryKeyVersions):
        down = True

        async def add_key_uses(self, room: str, version: int, uses: int) -> None:
            if self.down:
                raise RegistryUnreachable(detail="test")
            await super().add_key_uses(room, version, uses)

    versions = Down()
    await versions.rotate(bench.keys, ROOM)
    ring = Keyring(ROOM, bench.keys, versions, bench.clock)
    ring.count(await ring.active(), 5)
    with pytest.raises(RegistryUnreachable):
        await ring.flush()
    await ring.close()
    versions.down = False
    await ring.close()
    assert versions.of(ROOM, 1).uses == 5


async def test_a_version_that_sealed_half_of_what_it_may_asks_for_rotation(bench: Bench) -> None:
    assert not bench.ring.needs_rotation
    bench.versions.change(ROOM, 1, uses=ROTATE_AT - 10)
    key = await bench.ring.active()
    assert not bench.ring.needs_rotation
    bench.ring.count(key, 10)
    assert bench.ring.needs_rotation


async def test_a_version_that_sealed_all_it_may_seals_no_more(bench: Bench) -> None:
    bench.versions.change(ROOM, 1, uses=USES_LIMIT - 10)
    key = await bench.ring.active()
    bench.ring.count(key, 10)
    for _ in range(2):
        with pytest.raises(KeyExhausted):
            bench.ring.count(key, 1)
    bench.ring.drop()
    with pytest.raises(KeyExhausted):
        bench.ring.count(await bench.ring.active(), 1)
    await bench.versions.rotate(bench.keys, ROOM)
    bench.ring.drop()
    bench.ring.count(await bench.ring.active(), 1)


async def test_what_other_processes_sealed_counts_here_too(bench: Bench) -> None:
    await bench.ring.active()
    bench.versions.change(ROOM, 1, uses=USES_LIMIT)
    bench.clock.advance(20)
    bench.ring.held()
    await bench.settle()
    with pytest.raises(KeyExhausted):
        bench.ring.count(await bench.ring.active(), 1)


async def test_a_closed_keyring_gives_no_key_and_may_be_closed_again(bench: Bench) -> None:
    await bench.ring.active()
    await bench.ring.close()
    await bench.ring.close()
    assert bench.ring.held() is None
    with pytest.raises(KeyUnreachable):
        await bench.ring.active()


async def test_closing_waits_for_what_is_under_way(bench: Bench) -> None:
    bench.keys.gate.clear()
    caller = asyncio.create_task(bench.ring.active())
    await bench.settle()
    closing = asyncio.create_task(bench.ring.close())
    await bench.settle()
    assert not closing.done()
    bench.keys.gate.set()
    await closing
    await asyncio.gather(caller, return_exceptions=True)
    assert bench.ring.held() is None


async def test_a_cancelled_fetch_leaves_the_next_one_free(bench: Bench) -> None:
    bench.keys.gate.clear()
    caller = asyncio.create_task(bench.ring.active())
    await bench.settle()
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task():
            task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await bench.settle()
    bench.keys.gate.set()
    assert (await bench.ring.active()).version == 1


async def test_a_reading_of_the_registry_from_before_a_drop_is_not_followed(bench: Bench) -> None:
    gate = asyncio.Event()

    class Waiting(MemoryKeyVersions):
        async def key_versions(self, room: str) -> Sequence[KeyVersion]:
            listing = await super().key_versions(room)
            await gate.wait()
            return listing

    versions = Waiting()
    await versions.rotate(bench.keys, ROOM)
    ring = Keyring(ROOM, bench.keys, versions, bench.clock)
    caller = asyncio.create_task(ring.active())
    await bench.settle()
    ring.drop()
    gate.set()
    assert await caller is ring.held()
    assert versions.reads == 2


async def test_nothing_printed_shows_a_key(bench: Bench) -> None:
    key = await bench.ring.active()
    assert repr(key) == "TenantKey(room='acme', version=1)"
    assert repr(key.derive("record")) == "DerivedKey(…)"


class Remembering(MemoryKeyVersions):
    """A source that also answers from what it read some time ago."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: Sequence[KeyVersion] | None = None

    def remembered_key_versions(self, room: str) -> Sequence[KeyVersion] | None:
        return self.memory


async def test_remembered_versions_spare_the_reading_and_a_version_they_lack_is_read_afresh() -> None:
    bench = Bench()
    bench.versions = Remembering()
    bench.ring = Keyring(ROOM, bench.keys, bench.versions, bench.clock)
    await bench.versions.rotate(bench.keys, ROOM)
    bench.versions.memory = list(await bench.versions.key_versions(ROOM))
    bench.versions.reads = 0
    assert (await bench.ring.active()).version == 1
    assert bench.versions.reads == 0
    # Another process rotates; a record of its new version is met before the news of it.
    await bench.versions.rotate(bench.keys, ROOM)
    bench.versions.reads = 0
    assert (await bench.ring.version(2)).version == 2
    assert bench.versions.reads == 1
    with pytest.raises(SealBroken):
        await bench.ring.version(3)
