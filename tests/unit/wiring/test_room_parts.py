"""A room's parts: what could not be opened whole leaves nothing open, and what fails to close holds nothing else open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nagaya import Nagaya
from nagaya.errors import ConnectionSecretInvalid, SessionClosed
from nagaya.models.builtin import BuiltinModel
from nagaya.settings import Settings
from nagaya.wiring import parts
from nagaya.wiring.parts import TenantParts


class Driver(BuiltinModel):
    def __init__(self) -> None:
        super().__init__()
        self.closed = 0
        self.problem: Exception | None = None

    async def close(self) -> None:
        self.closed += 1
        if self.problem is not None:
            raise self.problem


@pytest.fixture
async def nagaya(tmp_path: Path) -> AsyncIterator[Nagaya]:
    async with Nagaya.open(settings=Settings(data=str(tmp_path))) as opened:
        await opened.tenants.create("acme", name="Acme", models=("openai://one", "openai://two"))
        yield opened


async def test_models_of_which_one_does_not_open_are_not_left_open_at_every_try(
    nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch
):
    opened: list[Driver] = []

    async def open_model(url: str, surroundings: Any, *, api_key: str | None) -> Driver:
        if url == "openai://two":
            raise ConnectionSecretInvalid(name="azure-connection", problem="x")
        opened.append(Driver())
        return opened[-1]

    monkeypatch.setattr(parts, "open_model", open_model)
    room = await TenantParts.open(nagaya, await nagaya.registry.tenant("acme"))
    for _ in range(3):
        with pytest.raises(ConnectionSecretInvalid):
            await room.models()
    assert [driver.closed for driver in opened] == [1, 1, 1]
    await room.close()


async def test_a_model_that_fails_to_close_keeps_no_store_open(nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch):
    opened: list[Driver] = []

    async def failing(url: str, surroundings: Any, *, api_key: str | None) -> Driver:
        opened.append(Driver())
        opened[-1].problem = OSError("canary")
        return opened[-1]

    monkeypatch.setattr(parts, "open_model", failing)
    room = await TenantParts.open(nagaya, await nagaya.registry.tenant("acme"))
    await room.models()
    with pytest.raises(OSError, match="canary"):
        await room.close()
    assert [driver.closed for driver in opened] == [1, 1]
    with pytest.raises(SessionClosed):
        await room._store.get("p", b"k")
