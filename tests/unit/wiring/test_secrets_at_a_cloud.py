"""Rooms' secrets at a cloud: each has a client of its own, and so only some stay open."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from nagaya.adapters import Surroundings
from nagaya.kernel.clock import SystemClock
from nagaya.kernel.egress import EgressPolicy
from nagaya.settings import Settings
from nagaya.wiring import resources
from nagaya.wiring.resources import Resources

URL = "awssecrets://ap-northeast-1"


class Secrets:
    def __init__(self, room: str) -> None:
        self.room = room
        self.closed = 0

    async def close(self) -> None:
        self.closed += 1


class Cloud(Resources):
    """Resources whose secrets are these."""

    def __init__(self) -> None:
        unused = cast(Any, None)
        super().__init__(Settings(), SystemClock(), EgressPolicy(), unused, unused, unused, unused)
        self.opened: list[Secrets] = []

    async def _find(self, port: str, url: str, builtin: Any) -> Any:
        async def opener(url: str, surroundings: Surroundings) -> Secrets:
            await asyncio.sleep(0)
            self.opened.append(Secrets(surroundings.room))
            return self.opened[-1]

        return opener


async def test_of_many_rooms_only_those_asked_for_last_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "OPEN_SECRETS", 2)
    monkeypatch.setattr(resources, "SECRETS_S", 0.0)
    cloud = Cloud()
    first = await cloud.secrets_of("acme", URL)
    for room in ("globex", "acme", "initech"):
        await cloud.secrets_of(room, URL)
    async with asyncio.timeout(20):
        while not cloud.opened[1].closed:
            await asyncio.sleep(0.01)
    assert await cloud.secrets_of("acme", URL) is first
    assert [(each.room, each.closed) for each in cloud.opened] == [("acme", 0), ("globex", 1), ("initech", 0)]
    await cloud.close()
    assert [each.closed for each in cloud.opened] == [1, 1, 1]


async def test_who_was_just_given_them_may_use_them_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "OPEN_SECRETS", 1)
    cloud = Cloud()
    for room in ("acme", "globex"):
        await cloud.secrets_of(room, URL)
    assert [each.closed for each in cloud.opened] == [0, 0]
    await cloud.close()
    assert [each.closed for each in cloud.opened] == [1, 1]


async def test_two_who_ask_at_once_have_the_same() -> None:
    cloud = Cloud()
    one, other = await asyncio.gather(cloud.secrets_of("acme", URL), cloud.secrets_of("acme", URL))
    assert one is other
    await cloud.close()
    assert [each.closed for each in cloud.opened] == [1, 1]
