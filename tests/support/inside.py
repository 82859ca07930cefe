"""An embedded Nagaya for unit tests, whose builtin model is a scripted one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nagaya.context.tenant_context import TenantContext
from nagaya.models import builtin
from nagaya.settings import Settings
from nagaya.testing.models import ScriptedModel
from nagaya.wiring import Nagaya


class Inside:
    """A Nagaya with one tenant ``acme``; ``model`` answers in it."""

    def __init__(self, nagaya: Nagaya, model: ScriptedModel) -> None:
        self.nagaya = nagaya
        self.model = model

    @asynccontextmanager
    async def as_user(self, user: str = "mio", role: str = "user", **fields) -> AsyncIterator[TenantContext]:
        """The user inside its tenant."""
        if fields:
            key = await self.nagaya.tenants.create_api_key("acme", name="k", user=user, role=role, **fields)
            entrance = await self.nagaya.enter(key.api_key)
        else:
            entrance = await self.nagaya.enter(await self.nagaya.tenants.mint("acme", user, role))
        async with self.nagaya.session(entrance) as tenant:
            yield tenant

    async def usage(self) -> dict[str, int]:
        return await self.nagaya.tenants.usage("acme")


@asynccontextmanager
async def inside(folder: Path, monkeypatch: pytest.MonkeyPatch, *scripts, **settings) -> AsyncIterator[Inside]:
    """Open it over a folder; the scripts are the model's answers, one a request."""
    model = ScriptedModel(*scripts)
    monkeypatch.setattr(builtin, "BuiltinModel", lambda: model)
    async with Nagaya.open(settings=Settings(data=str(folder), **settings)) as nagaya:
        await nagaya.tenants.create("acme", name="Acme")
        yield Inside(nagaya, model)
