"""Rooms: what opens and closes them, and that no tenant's room is another tenant's business."""

from __future__ import annotations

import asyncio

import pytest

from nagaya.connections import room
from nagaya.connections.room import Rooms
from nagaya.errors import ConnectionSecretInvalid, SessionClosed, StoreResting, StoreUnreachable
from nagaya.tenancy.principal import Entrance, Principal, Provider, Role, mint_entrance
from nagaya.testing.clock import ManualClock
from parts.directory import tenant


class Records:
    def __init__(self) -> None:
        self.dropped = 0

    def drop_keys(self) -> None:
        self.dropped += 1


class Parts:
    """A room's parts that open and close as a test likes."""

    def __init__(self, tenant_id: str) -> None:
        self.tenant_id = tenant_id
        self.records = Records()
        self.closed = 0
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.problem: Exception | None = None

    async def close(self) -> None:
        await self.may_close.wait()
        if self.problem is not None:
            raise self.problem
        self.closed += 1


class House:
    """What the rooms are opened from, and the rooms."""

    def __init__(self, *, max_open: int = 8) -> None:
        self.clock = ManualClock()
        self.opened: list[Parts] = []
        self.asked = 0
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.problem: Exception | None = None
        self.shut: set[str] = set()
        self.rooms = Rooms(
            self._open, self.clock, lambda entrance: entrance.tenant.id not in self.shut, max_open=max_open
        )

    async def _open(self, of) -> Parts:
        self.asked += 1
        await self.may_open.wait()
        if self.problem is not None:
            raise self.problem
        self.opened.append(Parts(of.id))
        return self.opened[-1]


def entrance(tenant_id: str = "acme", *, epoch: int = 0) -> Entrance:
    principal = Principal(
        provider=Provider.LOCAL, issuer="i", user_id="mio", tenant_id=tenant_id, role=Role.USER, issued_at_us=0,
        expires_at_us=2**60,
    )  # fmt: skip
    return mint_entrance(tenant=tenant(tenant_id, epoch=epoch), principal=principal, admitted_at_s=0.0)


@pytest.fixture
def house() -> House:
    return House()


# --- nobody else's business ---


async def test_a_tenant_whose_store_hangs_in_closing_keeps_nobody_else_waiting() -> None:
    house = House(max_open=1)
    await (await house.rooms.session(entrance("acme"))).release()
    house.opened[0].may_close.clear()
    async with asyncio.timeout(20):
        session = await house.rooms.session(entrance("globex"))
    assert session.tenant.id == "globex"
    house.opened[0].may_close.set()
    await house.rooms.close()
    assert [parts.closed for parts in house.opened] == [1, 1]


async def test_a_tenant_whose_store_fails_in_closing_is_not_anothers_error() -> None:
    house = House(max_open=1)
    await (await house.rooms.session(entrance("acme"))).release()
    house.opened[0].problem = OSError("canary")
    session = await house.rooms.session(entrance("globex"))
    assert session.tenant.id == "globex"
    await house.rooms.close()


async def test_rooms_that_crowd_each_other_out_are_all_entered_open() -> None:
    house = House(max_open=1)

    async def visit(tenant_id: str) -> None:
        session = await house.rooms.session(entrance(tenant_id))
        parts = session.room.parts
        await asyncio.sleep(0)
        assert parts.closed == 0
        await session.release()

    await asyncio.gather(*(visit(f"tenant-{number % 40}") for number in range(200)))
    await house.rooms.close()
    assert all(parts.closed for parts in house.opened)


async def test_rooms_opened_faster_than_others_close_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_CLOSING_MOST", 3)
    house = House(max_open=1)
    opened: list[str] = []
    slow = asyncio.Event()

    async def visit(tenant_id: str) -> None:
        session = await house.rooms.session(entrance(tenant_id))
        house.opened[-1].may_close = slow
        opened.append(tenant_id)
        await session.release()

    visits = [asyncio.create_task(visit(f"tenant-{number}")) for number in range(1)]
    for number in range(1, 9):
        visits.append(asyncio.create_task(visit(f"tenant-{number}")))
        await asyncio.sleep(0.01)
    assert len(opened) < 9
    slow.set()
    async with asyncio.timeout(20):
        await asyncio.gather(*visits)
    await house.rooms.close()


async def test_upkeep_of_one_room_that_hangs_or_fails_holds_up_no_other(house: House) -> None:
    for tenant_id in ("acme", "globex", "initech"):
        await (await house.rooms.session(entrance(tenant_id))).release()
    hanging = asyncio.Event()
    tended: list[str] = []

    async def work(of, parts) -> None:
        if of.id == "acme":
            await hanging.wait()
        if of.id == "globex":
            raise OSError
        tended.append(of.id)

    keeping = asyncio.create_task(house.rooms.keep_up(work))
    await asyncio.sleep(0.01)
    assert tended == ["initech"]
    hanging.set()
    await keeping
    assert tended == ["initech", "acme"]
    await house.rooms.close()


# --- a tenant that was shut, or changed ---


async def test_a_shut_tenants_room_is_closed_also_under_a_session_that_does_not_end(house: House) -> None:
    session = await house.rooms.session(entrance())
    busy = asyncio.Event()
    stopped: list[str] = []

    async def answer() -> None:
        try:
            await busy.wait()
        except asyncio.CancelledError:
            stopped.append("cancelled")

    session.background(answer())
    await asyncio.sleep(0)
    house.shut.add("acme")
    await house.rooms.shut("acme", deadline_s=0.1)
    assert stopped == ["cancelled"]
    assert house.opened[0].closed == 1
    assert house.opened[0].records.dropped == 1
    assert house.rooms.open_tenants() == []
    with pytest.raises(SessionClosed):
        _ = session.records
    await session.release()
    await house.rooms.close()


async def test_a_shut_tenants_sessions_have_a_moment_to_end(house: House) -> None:
    session = await house.rooms.session(entrance())
    shutting = asyncio.create_task(house.rooms.shut("acme", deadline_s=60.0))
    await asyncio.sleep(0.1)
    assert house.opened[0].closed == 0
    await session.release()
    async with asyncio.timeout(20):
        await shutting
    assert house.opened[0].closed >= 1


async def test_a_room_that_was_being_opened_when_its_tenant_was_shut_is_closed(house: House) -> None:
    house.may_open.clear()
    opening = asyncio.create_task(house.rooms.session(entrance()))
    await asyncio.sleep(0)
    house.shut.add("acme")
    shutting = asyncio.create_task(house.rooms.shut("acme", deadline_s=0.0))
    await asyncio.sleep(0)
    house.may_open.set()
    await asyncio.gather(opening, shutting, return_exceptions=True)
    assert house.rooms.open_tenants() == []
    assert house.opened[0].closed >= 1


async def test_whoever_was_let_in_before_opens_nothing_anew(house: House) -> None:
    before = entrance()
    house.shut.add("acme")
    with pytest.raises(SessionClosed):
        await house.rooms.session(before)
    assert house.asked == 0


async def test_a_changed_tenants_room_is_closed_when_its_sessions_have_ended(house: House) -> None:
    session = await house.rooms.session(entrance(epoch=1))
    await house.rooms.retire("acme", epoch=1)
    assert house.rooms.open_tenants() == ["acme"]
    await house.rooms.retire("acme", epoch=2)
    assert house.rooms.open_tenants() == []
    assert house.opened[0].closed == 0
    await session.release()
    assert house.opened[0].closed == 1
    await house.rooms.retire("acme", epoch=3)
    await house.rooms.shut("acme")


# --- a tenant whose store is dead ---


async def test_a_room_that_kept_failing_to_open_is_left_alone_and_tried_again(house: House) -> None:
    house.problem = StoreUnreachable()
    for _ in range(3):
        with pytest.raises(StoreUnreachable):
            await house.rooms.session(entrance())
    for _ in range(50):
        with pytest.raises(StoreResting) as resting:
            await house.rooms.session(entrance())
    assert house.asked == 3
    assert resting.value.retry_after_s == 1
    house.problem = None
    # Another tenant is not concerned, and neither is this one once it has been changed.
    await house.rooms.session(entrance("globex"))
    house.clock.advance(1.0)
    await house.rooms.session(entrance())
    assert house.asked == 5


async def test_a_dead_store_that_was_changed_is_tried_at_once(house: House) -> None:
    house.problem = StoreUnreachable()
    for _ in range(4):
        with pytest.raises(StoreUnreachable):
            await house.rooms.session(entrance())
    house.problem = None
    await house.rooms.session(entrance(epoch=1))
    assert house.asked == 4


async def test_what_an_operator_has_to_mend_is_said_every_time(house: House) -> None:
    house.problem = ConnectionSecretInvalid(name="aws-connection", problem="x")
    for _ in range(5):
        with pytest.raises(ConnectionSecretInvalid):
            await house.rooms.session(entrance())
    assert house.asked == 5


async def test_who_is_in_a_room_is_known(house: House) -> None:
    session = await house.rooms.session(entrance())
    await (await house.rooms.session(entrance("globex"))).release()
    assert [tenant_id for tenant_id, _ in house.rooms.in_use()] == ["acme"]
    await session.release()
    assert house.rooms.in_use() == []
    await house.rooms.close()
