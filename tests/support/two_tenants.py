"""An embedded Nagaya with the tenants acme and globex, for tests inside one process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nagaya import Nagaya
from nagaya.context.tenant_context import TenantContext


@pytest.fixture
async def nagaya(tmp_path: Path) -> AsyncIterator[Nagaya]:
    async with Nagaya.open(tmp_path / "data") as opened:
        await opened.tenants.create("acme", name="Acme KK")
        await opened.tenants.create("globex", name="Globex GmbH")
        yield opened


async def entered(nagaya: Nagaya, tenant: str = "acme", user: str = "mio") -> Any:
    """The user's entrance."""
    return await nagaya.enter(await nagaya.tenants.mint(tenant, user))


@pytest.fixture
async def tenant(nagaya: Nagaya) -> AsyncIterator[TenantContext]:
    async with nagaya.session(await entered(nagaya)) as opened:
        yield opened
