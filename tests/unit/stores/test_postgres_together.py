"""New records that are written several in one statement: each keeps an outcome and a caller of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from nagaya.errors import StoreUnreachable
from nagaya.stores.postgres_together import AT_ONCE, MOST, Together

Place = tuple[bytes, bytes]


class Server:
    """Answers when it is let, and remembers what was asked together."""

    def __init__(self) -> None:
        self.asked: list[list[Place]] = []
        self.there: set[Place] = set()
        self.answers = asyncio.Event()
        self.failure: Exception | None = None
        self.given_up = 0

    async def send(self, places: Sequence[Place], bodies: Sequence[bytes]) -> set[Place]:
        self.asked.append(list(places))
        assert [body.decode() for body in bodies] == [f"of {sort.decode()}" for _, sort in places]
        try:
            await self.answers.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        if self.failure is not None:
            raise self.failure
        new = set(places) - self.there
        self.there |= new
        return new


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def together(server: Server) -> Together:
    """With as many statements under way as may be."""
    made = Together(server.send)
    for _ in range(AT_ONCE):
        made.begin()
    return made


def at(name: str) -> Place:
    return b"p", name.encode()


def put(together: Together, name: str) -> asyncio.Task[bool]:
    return asyncio.ensure_future(together.put(at(name), b"of " + name.encode()))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_comes_while_others_are_under_way_goes_together_and_in_order(
    server: Server, together: Together
) -> None:
    server.there = {at("b")}
    tasks = [put(together, name) for name in "cab"]
    await settled()
    assert server.asked == []
    together.end()
    server.answers.set()
    assert await asyncio.gather(*tasks) == [True, True, False]
    assert server.asked == [[at("a"), at("b"), at("c")]]


async def test_the_first_ones_go_at_once_and_by_themselves(server: Server) -> None:
    together = Together(server.send)
    for _ in range(AT_ONCE):
        assert together.may_begin(at("a"))
        together.begin()
    assert not together.may_begin(at("a"))


async def test_two_records_at_one_place_never_go_in_one_statement(server: Server, together: Together) -> None:
    task = put(together, "a")
    await settled()
    assert together.may_begin(at("a"))
    assert not together.may_begin(at("b"))
    task.cancel()


async def test_a_caller_that_goes_away_while_it_waits_takes_its_record_back(server: Server, together: Together) -> None:
    tasks = [put(together, name) for name in "ab"]
    await settled()
    tasks[0].cancel()
    await settled()
    together.end()
    server.answers.set()
    assert await tasks[1]
    assert server.asked == [[at("b")]]


async def test_a_statement_goes_on_while_one_caller_waits_and_is_given_up_when_none_does(
    server: Server, together: Together
) -> None:
    tasks = [put(together, name) for name in "ab"]
    await settled()
    together.end()
    await settled()
    tasks[0].cancel()
    await settled()
    assert server.given_up == 0
    tasks[1].cancel()
    await settled()
    assert server.given_up == 1
    # Its place is free for others again.
    later = put(together, "c")
    await settled()
    together.end()
    server.answers.set()
    assert await later


async def test_a_failure_is_told_to_each_and_the_next_go_on(server: Server, together: Together) -> None:
    server.failure = StoreUnreachable()
    first = [put(together, f"{number:03}") for number in range(MOST)]
    rest = put(together, "rest")
    await settled()
    together.end()
    await settled()
    server.answers.set()
    for task in first:
        with pytest.raises(StoreUnreachable):
            await task
    with pytest.raises(StoreUnreachable):
        await rest
    assert [len(asked) for asked in server.asked] == [MOST, 1]
    # Both statements have made room again, beside those that the fixture began.
    assert together.may_begin(at("x"))
    together.begin()
    assert not together.may_begin(at("x"))
