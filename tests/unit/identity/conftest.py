from __future__ import annotations

import httpx
import pytest

from nagaya.testing.identity import KeyServer
from parts.sign_in import House


@pytest.fixture
async def house():
    async with KeyServer() as server, httpx.AsyncClient(trust_env=False) as client:
        made = House(server, client)
        yield made
        await made.jwks.close()
