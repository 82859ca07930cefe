"""The pool of PostgreSQL connections: bounded for each room and in all, fair, and free of doubtful connections."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nagaya.errors import SessionClosed
from nagaya.stores import postgres_pool
from nagaya.stores.postgres_pool import Held, Pool, SharedPools, Slot
from support.loop_time import LoopTime


class Line:
    """A connection as far as the pool knows one."""

    def __init__(self, database: str) -> None:
        self.database = database
        self.ended = ""

    def is_closed(self) -> bool:
        return bool(self.ended)

    def terminate(self) -> None:
        self.ended = self.ended or "terminated"

    async def close(self, *, timeout: float) -> None:
        self.ended = self.ended or "closed"


class Server:
    """Hands out lines and remembers them."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.fail: Exception | None = None
        self.slow_s = 0.0

    async def connect(self, database: str) -> Any:
        await asyncio.sleep(self.slow_s)
        if self.fail is not None:
            raise self.fail
        self.lines.append(Line(database))
        return self.lines[-1]

    @property
    def open(self) -> int:
        return sum(not line.ended for line in self.lines)


@pytest.fixture
def server() -> Server:
    return Server()


def pool_of(server: Server, *, in_all: int = 6, per_room: int = 3, idle_s: float = 60.0) -> Pool:
    return Pool(server.connect, in_all=in_all, per_room=per_room, idle_s=idle_s)


async def leased(pool: Pool, slot: Slot) -> Held:
    return pool.take(slot) or await pool.wait(slot)


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_connections_are_made_when_needed_and_used_again(server: Server) -> None:
    pool, slot = pool_of(server), Slot("db")
    for _ in range(5):
        pool.give(slot, await leased(pool, slot))
    assert len(server.lines) == 1
    assert pool.size == 1
    await pool.close()
    await pool.close()
    assert [line.ended for line in server.lines] == ["closed"]


async def test_a_room_has_no_more_than_its_share_and_the_pool_no_more_than_its_bound(server: Server) -> None:
    pool = pool_of(server)
    slots = [Slot("db") for _ in range(4)]
    most = most_of_one = 0

    async def work(slot: Slot) -> None:
        nonlocal most, most_of_one
        held = await leased(pool, slot)
        most, most_of_one = max(most, pool.size), max(most_of_one, slot.in_use)
        await asyncio.sleep(0.0005)
        pool.give(slot, held)

    await asyncio.gather(*(work(slot) for slot in slots for _ in range(25)))
    assert most == 6
    assert most_of_one == 3
    assert server.open == 6
    assert all(slot.in_use == 0 and not slot.waiting for slot in slots)
    await pool.close()


async def test_a_busy_room_keeps_another_waiting_for_one_turn_only(server: Server) -> None:
    pool = pool_of(server, in_all=1)
    busy, quiet = Slot("db"), Slot("db")
    held = await leased(pool, busy)
    served: list[str] = []

    async def work(slot: Slot, name: str) -> None:
        mine = await leased(pool, slot)
        served.append(name)
        await asyncio.sleep(0)
        pool.give(slot, mine)

    tasks = [asyncio.create_task(work(busy, "busy")) for _ in range(10)]
    await turns()
    tasks.append(asyncio.create_task(work(quiet, "quiet")))
    await turns()
    pool.give(busy, held)
    await asyncio.gather(*tasks)
    assert served.index("quiet") <= 1
    await pool.close()


async def test_a_connection_to_another_database_makes_way(server: Server) -> None:
    pool = pool_of(server, in_all=2)
    slots = {name: Slot(name) for name in ("one", "two", "three")}
    for name in ("one", "two"):
        pool.give(slots[name], await leased(pool, slots[name]))
        await asyncio.sleep(0.001)
    held = await leased(pool, slots["three"])
    assert held.database == "three"
    assert [(line.database, line.ended) for line in server.lines] == [("one", "terminated"), ("two", ""), ("three", "")]
    # And one who waits while both are in use gets its own, not somebody else's.
    other = await leased(pool, slots["two"])
    waiting = asyncio.create_task(leased(pool, slots["one"]))
    await turns()
    pool.give(slots["two"], other)
    assert (await waiting).database == "one"
    await pool.close()


async def test_a_doubtful_connection_is_thrown_away_and_takes_those_that_lie_ready_along(server: Server) -> None:
    pool, slot = pool_of(server), Slot("db")
    first, second, third = [await leased(pool, slot) for _ in range(3)]
    pool.give(slot, first)
    pool.throw_away(slot, second, doubt=False)
    assert [line.ended for line in server.lines] == ["", "terminated", ""]
    pool.throw_away(slot, third, doubt=True)
    assert server.open == 0
    assert pool.size == 0
    assert slot.in_use == 0


async def test_a_connection_that_ended_while_it_lay_ready_is_not_handed_out(server: Server) -> None:
    pool, slot = pool_of(server), Slot("db")
    pool.give(slot, await leased(pool, slot))
    server.lines[0].ended = "by the server"
    held = await leased(pool, slot)
    assert held.connection is server.lines[1]
    server.lines[1].ended = "by the server"
    pool.give(slot, held)
    assert pool.size == 0
    await pool.close()


async def test_waiting_for_a_connection_that_cannot_be_made_fails_everybody_in_turn(server: Server) -> None:
    pool, slot = pool_of(server, in_all=1), Slot("db")
    server.fail = OSError("no route")
    server.slow_s = 0.001
    results = await asyncio.gather(*(leased(pool, slot) for _ in range(4)), return_exceptions=True)
    assert all(isinstance(result, OSError) for result in results)
    assert pool.size == slot.in_use == 0
    server.fail = None
    pool.give(slot, await leased(pool, slot))
    await pool.close()


async def test_a_cancelled_waiter_passes_its_turn_on(server: Server) -> None:
    pool, slot, other = pool_of(server, in_all=1), Slot("db"), Slot("db")
    held = await leased(pool, slot)
    first = asyncio.create_task(leased(pool, other))
    second = asyncio.create_task(leased(pool, slot))
    third = asyncio.create_task(leased(pool, other))
    await turns()
    first.cancel()
    await turns()
    pool.give(slot, held)  # Handed over, and cancelled before it could run.
    handed = next(task for task in (second, third) if task._fut_waiter is not None and task._fut_waiter.done())
    handed.cancel()
    rest = third if handed is second else second
    assert (await asyncio.wait_for(rest, 30)).connection is server.lines[0]
    with pytest.raises(asyncio.CancelledError):
        await handed
    pool.give(slot if rest is second else other, Held(server.lines[0], "db"))  # type: ignore[arg-type]  # as far as it goes
    assert slot.in_use == other.in_use == 0
    await pool.close()


async def test_a_cancelled_opening_gives_its_place_back(server: Server) -> None:
    pool, slot = pool_of(server, in_all=1), Slot("db")
    server.slow_s = 5.0
    opening = asyncio.create_task(leased(pool, slot))
    await turns()
    assert pool.size == 1
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    assert pool.size == slot.in_use == 0
    await pool.close()


async def test_what_lies_ready_for_long_is_closed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    time = LoopTime(monkeypatch)
    monkeypatch.setattr(postgres_pool, "monotonic", time.now_s)
    pool, slot = pool_of(server, idle_s=50), Slot("db")
    held = [await leased(pool, slot) for _ in range(2)]
    pool.give(slot, held[0])
    await time.passes(30)
    pool.give(slot, held[1])
    await time.passes(30)
    assert [line.ended for line in server.lines] == ["terminated", ""]
    await time.passes(120)
    assert server.open == 0
    assert pool._sweep is None
    await pool.close()


async def test_closing_ends_what_is_in_use_and_sends_away_who_waits(server: Server) -> None:
    pool, slot = pool_of(server, in_all=1), Slot("db")
    held = await leased(pool, slot)
    waiting = asyncio.create_task(leased(pool, slot))
    await turns()
    await pool.close()
    with pytest.raises(SessionClosed):
        await waiting
    assert server.open == 0
    pool.give(slot, held)
    with pytest.raises(SessionClosed):
        await leased(pool, slot)
    assert pool.size == 0


async def test_a_connection_that_arrives_after_the_end_is_not_kept(server: Server) -> None:
    pool, slot = pool_of(server), Slot("db")
    server.slow_s = 0.01
    opening = asyncio.create_task(leased(pool, slot))
    await turns()
    await pool.close()
    with pytest.raises(SessionClosed):
        await opening
    assert server.open == 0


async def test_those_who_come_to_one_server_as_one_user_share_one_bound(server: Server) -> None:
    shared = SharedPools()
    one = shared.join("a", server.connect, in_all=2)
    two = shared.join("a", server.connect, in_all=4)
    other = shared.join("b", server.connect, in_all=2)
    assert one is two
    assert one is not other
    slots = [Slot("db") for _ in range(4)]
    for slot in slots:
        await leased(one, slot)
    assert one.size == 4
    await shared.leave("a")
    assert server.open == 4
    await shared.leave("a")
    assert server.open == 0
    assert shared.join("a", server.connect, in_all=2) is not one
    await shared.leave("a")
    await shared.leave("b")
