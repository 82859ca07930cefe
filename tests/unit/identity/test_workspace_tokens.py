"""Local tokens that are bound to a workspace."""

from __future__ import annotations

import pytest

from nagaya.errors import TokenRefused
from nagaya.tenancy.names import workspace_room
from nagaya.tenancy.principal import Role
from parts.directory import tenant

LEGAL = workspace_room("acme", "legal")


@pytest.fixture
def legal(house):
    made = tenant(LEGAL, parent="acme", workspace="legal")
    house.directory.held[LEGAL] = made
    return made


async def test_a_bound_token_speaks_for_its_user_in_the_workspace_alone(house, legal):
    token = await house.local.mint(legal, "mio", Role.MEMBER)
    for _ in range(2):
        principal = await house.authenticator.authenticate(token)
        assert (principal.tenant_id, principal.user_id, principal.role) == (LEGAL, "mio", Role.MEMBER)
    assert (
        await house.authenticator.authenticate(await house.local.mint(house.directory.held["acme"], "mio"))
    ).tenant_id == "acme"


async def test_a_bound_token_of_a_workspace_that_lies_elsewhere_or_nowhere_is_refused(house, legal):
    token = await house.local.mint(legal, "mio")
    house.directory.change(LEGAL, parent="globex")
    with pytest.raises(TokenRefused):
        await house.authenticator.authenticate(token)
    del house.directory.held[LEGAL]
    with pytest.raises(TokenRefused):
        await house.authenticator.authenticate(token)


async def test_a_bound_token_lives_no_longer_than_its_tenant_allows(house, legal):
    token = await house.local.mint(legal, "mio", lifetime_s=3600)
    house.directory.change("acme", max_token_lifetime_s=600)
    with pytest.raises(TokenRefused):
        await house.authenticator.authenticate(token)


async def test_the_tokens_of_a_workspace_are_revoked_with_it(house, legal):
    token = await house.local.mint(legal, "mio")
    await house.authenticator.authenticate(token)
    house.directory.refused[LEGAL, "user", "mio"] = house.clock.now_us() + 1
    with pytest.raises(TokenRefused):
        await house.authenticator.authenticate(token)
