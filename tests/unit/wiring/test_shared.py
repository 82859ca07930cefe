"""What servers share is wired in where it is configured, and what is missing is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nagaya.errors import MissingExtra, SettingsInvalid
from nagaya.settings import Settings
from nagaya.wiring import Nagaya


async def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("nagaya.cache.redis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(MissingExtra, match=r"nagaya\[redis\]"):
        async with Nagaya.open(settings=Settings(data=str(tmp_path), redis="redis://127.0.0.1")):
            pass


async def test_an_address_that_is_none_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="redis"):
        async with Nagaya.open(settings=Settings(data=str(tmp_path), redis="memcached://127.0.0.1")):
            pass


async def test_a_server_that_is_away_does_not_stop_the_start(tmp_path: Path) -> None:
    async with Nagaya.open(settings=Settings(data=str(tmp_path), redis="redis://127.0.0.1:1")) as nagaya:
        await nagaya.tenants.create("acme", name="Acme")
        await nagaya.enter(await nagaya.tenants.mint("acme", "mio", "user"))
