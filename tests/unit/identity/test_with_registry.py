"""Sign-in over the real registry: what one process revokes, another refuses."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from nagaya.errors import TokenRefused
from nagaya.identity import api_keys
from nagaya.identity.authenticator import Authenticator
from nagaya.identity.jwks import KeyCache
from nagaya.identity.local import LocalIssuer
from nagaya.kernel.clock import SystemClock
from nagaya.settings import Settings
from nagaya.tenancy.bindings import IssuerBinding, Revocation
from nagaya.tenancy.principal import Provider, Role
from nagaya.tenancy.registry import SqlRegistry
from nagaya.testing.identity import IssuerKey, KeyServer, MemorySigningKeys
from parts.directory import tenant

KEY = IssuerKey("k1", algorithm="ES256")
ISSUER = "https://issuer.example"
WITHIN_S = 30.0


class Process:
    """What one server process holds of sign-in."""

    def __init__(self, path, client, signing_keys) -> None:
        clock = SystemClock()
        self.registry = SqlRegistry.in_file(path, clock)
        self.jwks = KeyCache(client, clock)
        self.local = LocalIssuer(signing_keys, clock, issuer="https://nagaya.local")
        self.authenticator = Authenticator(self.registry, self.jwks, self.local, clock, Settings())
        self.registry.on_change(self.authenticator.on_registry_change)

    async def close(self) -> None:
        await self.jwks.close()
        await self.registry.close()


@pytest.fixture
async def processes(tmp_path):
    signing_keys = MemorySigningKeys()
    async with KeyServer() as server, httpx.AsyncClient(trust_env=False) as client:
        here, there = (Process(tmp_path / "registry.db", client, signing_keys) for _ in range(2))
        await here.registry.start()
        await there.registry.start()
        for tenant_id in ("acme", "globex"):
            await here.registry.create_tenant(tenant(tenant_id, store="sqlite:///", created_at_us=1))
        await here.registry.bind_issuer(
            IssuerBinding(
                issuer=ISSUER,
                tenant_id="acme",
                provider=Provider.OIDC,
                audiences=("api",),
                jwks_url=server.publish(KEY),
                algorithms=("ES256",),
            )
        )
        yield here, there
        await here.close()
        await there.close()


async def refused_within(process: Process, token: str) -> float:
    """Seconds until the token is refused there."""
    started = time.monotonic()
    while time.monotonic() - started < WITHIN_S:
        try:
            await process.authenticator.authenticate(token)
        except TokenRefused:
            return time.monotonic() - started
        await asyncio.sleep(0.05)
    pytest.fail("still accepted after 30 s")


def oidc_token() -> str:
    now_s = int(time.time())
    return KEY.sign(
        {"iss": ISSUER, "aud": "api", "sub": "mio", "sid": "s-1", "jti": "j", "iat": now_s, "exp": now_s + 600}
    )


async def test_a_revocation_made_in_one_process_is_obeyed_in_another(processes):
    here, there = processes
    token = oidc_token()
    assert (await there.authenticator.authenticate(token)).tenant_id == "acme"
    ends_us = (int(time.time()) + 86_400) * 1_000_000
    before_us = (int(time.time()) + 2) * 1_000_000
    await here.registry.revoke(
        Revocation(tenant_id="acme", kind="session", subject="s-1", not_before_us=before_us, expires_at_us=ends_us)
    )
    with pytest.raises(TokenRefused):
        await here.authenticator.authenticate(token)
    assert await refused_within(there, token) < WITHIN_S
    assert there.authenticator.held(token) is None


async def test_a_tenants_revoked_tokens_and_keys_end_in_every_process(processes):
    here, there = processes
    acme, globex = await here.registry.tenant("acme"), await here.registry.tenant("globex")
    token, other = await here.local.mint(acme, "mio"), await here.local.mint(globex, "mio")
    now_us = SystemClock().now_us()
    shown, record = api_keys.create(tenant_id="acme", name="ci", user_id="bot", role=Role.USER, now_us=now_us)
    await here.registry.add_api_key(record)
    for each in (token, other, shown):
        assert (await there.authenticator.authenticate(each)).user_id in ("mio", "bot")
    await here.registry.change_tenant("acme", {"tokens_valid_from_us": SystemClock().now_us()})
    await here.registry.revoke_api_key(record.key_id, tenant_id="acme", now_us=now_us)
    assert await refused_within(there, token) < WITHIN_S
    assert await refused_within(there, shown) < WITHIN_S
    assert (await there.authenticator.authenticate(other)).tenant_id == "globex"
    # A token that is minted in the same second, after the revocation, is a good one.
    assert (await here.authenticator.authenticate(await here.local.mint(acme, "mio"))).user_id == "mio"


async def test_an_issuer_that_is_unbound_signs_nobody_in(processes):
    here, there = processes
    token = oidc_token()
    await there.authenticator.authenticate(token)
    await here.registry.unbind_issuer("acme", ISSUER)
    assert await refused_within(there, token) < WITHIN_S
