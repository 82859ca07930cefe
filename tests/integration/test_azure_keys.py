"""Keys in Key Vault: what revokes them, what breaks them, and what only keeps them waiting."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

from nagaya.clouds.azure import default_trust
from nagaya.errors import (
    InvalidValue,
    KeyAccessRefused,
    KeyDestroyed,
    KeyDisabled,
    KeyUnreachable,
    RegionRefused,
    SealBroken,
)
from nagaya.kernel.clock import SystemClock
from nagaya.keys.azurekeys import AzureKeys, open_keys
from nagaya.keys.driver import KeyContext
from nagaya.keys.keyring import Keyring
from nagaya.testing.keys import MemoryKeyVersions
from parts.azure_cloud import CLIENT, AzureCloud, trust_file
from parts.key_vault import Key, KeyVault

pytest_plugins = ["parts.azure_fixtures"]

ACME = KeyContext(tenant="acme", key="acme", version=1, purpose="tenant-data")


def keys_of(azure: AzureCloud, *, secret: bytes | None = None, **more) -> AzureKeys:
    deadline_s = more.pop("deadline_s", 10.0)
    account = azure.open_account(secret, **more)
    return AzureKeys(account, vault=f"acme.vault.test:{azure.port}", key="tenant-key", deadline_s=deadline_s)


@pytest.fixture
async def keys(azure: AzureCloud) -> AsyncIterator[AzureKeys]:
    keys = keys_of(azure)
    yield keys
    await keys.close()


@pytest.fixture
def vault(azure: AzureCloud) -> KeyVault:
    return azure.vaults["acme"]


def resealed(wrapped: bytes, place: int) -> bytes:
    """A wrapped key with one bit turned, and its digest made to fit."""
    body = wrapped[:place] + bytes([wrapped[place] ^ 1]) + wrapped[place + 1 : -8]
    return body + hashlib.sha256(body).digest()[:8]


async def test_a_disabled_key_neither_opens_nor_makes_until_its_owner_enables_it(keys, vault):
    plain, wrapped = await keys.generate(ACME)
    vault.keys["tenant-key"].enabled = False
    for call in (keys.unwrap(wrapped, ACME), keys.generate(ACME)):
        with pytest.raises(KeyDisabled):
            await call
    vault.keys["tenant-key"].enabled = True
    assert await keys.unwrap(wrapped, ACME) == plain


async def test_a_key_disabled_between_the_look_and_the_wrapping_makes_no_key(keys, vault, monkeypatch):
    # Wrapping is done here with the public key and would not notice.
    await keys.generate(ACME)
    get_key = keys._keys.get_key

    async def get_and_disable(name):
        found = await get_key(name)
        vault.keys["tenant-key"].enabled = False
        return found

    monkeypatch.setattr(keys._keys, "get_key", get_and_disable)
    with pytest.raises(KeyDisabled):
        await keys.generate(ACME)


async def test_a_key_that_does_not_come_back_from_the_vault_as_it_went_is_not_used(keys, monkeypatch):
    async def another(parts, context):
        return b"\0" * 32

    monkeypatch.setattr(keys, "_unwrap", another)
    with pytest.raises(KeyUnreachable):
        await keys.generate(ACME)


async def test_a_role_that_was_taken_away_is_a_revocation_and_names_the_role(keys, vault):
    _, wrapped = await keys.generate(ACME)
    vault.denied.add(CLIENT)
    with pytest.raises(KeyAccessRefused, match="Key Vault Crypto Service Encryption User"):
        await keys.unwrap(wrapped, ACME)


async def test_a_principal_that_was_taken_away_is_a_revocation(azure, keys):
    _, wrapped = await keys.generate(ACME)
    azure.entra.clients.clear()
    other_server = keys_of(azure)
    with pytest.raises(KeyAccessRefused, match="azure-connection"):
        await other_server.unwrap(wrapped, ACME)
    await other_server.close()


async def test_a_deleted_key_is_disabled_while_it_can_be_taken_back_and_destroyed_after(keys, vault):
    _, wrapped = await keys.generate(ACME)
    vault.keys["tenant-key"].state = "deleted"
    with pytest.raises(KeyDisabled):
        await keys.unwrap(wrapped, ACME)
    vault.keys["tenant-key"].state = "purged"
    for call in (keys.unwrap(wrapped, ACME), keys.generate(ACME)):
        with pytest.raises(KeyDestroyed):
            await call


async def test_whether_a_key_is_gone_for_ever_is_not_claimed_without_the_right_to_know(azure, keys, vault):
    _, wrapped = await keys.generate(ACME)
    vault.keys["tenant-key"].state = "purged"
    answer = vault._key

    async def only_the_key(request, parts):
        if parts[0] == "deletedkeys":
            vault.failing.clear()
            from parts.key_vault import _error

            return _error(403, "Forbidden", "ForbiddenByRbac")
        return await answer(request, parts)

    vault._key = only_the_key
    try:
        with pytest.raises(KeyDisabled):
            await keys.unwrap(wrapped, ACME)
        other_server = keys_of(azure)
        with pytest.raises(KeyDisabled):
            await other_server.unwrap(wrapped, ACME)
        await other_server.close()
    finally:
        del vault._key


async def test_a_rotated_vault_key_opens_what_its_older_version_wrapped(keys, vault):
    plain, wrapped = await keys.generate(ACME)
    vault.keys["tenant-key"].rotate()
    fresh, wrapped_anew = await keys.generate(ACME)
    assert await keys.unwrap(wrapped, ACME) == plain
    assert await keys.unwrap(wrapped_anew, ACME) == fresh
    assert wrapped[3:19] != wrapped_anew[3:19]


async def test_opening_is_one_call_and_making_is_two(keys, vault):
    _, wrapped = await keys.generate(ACME)
    vault.seen.clear()
    await keys.unwrap(wrapped, ACME)
    assert dict(vault.seen) == {"POST keys/unwrapkey": 1}
    vault.seen.clear()
    await keys.generate(ACME)
    assert dict(vault.seen) == {"GET keys": 1, "POST keys/unwrapkey": 1}


async def test_a_forged_digest_opens_nothing(keys):
    _, wrapped = await keys.generate(ACME)
    for place in (0, 21, 22, 100, 277, 278, 280, 290, len(wrapped) - 9):
        with pytest.raises(SealBroken):
            await keys.unwrap(resealed(wrapped, place), ACME)


async def test_a_forged_version_opens_nothing(keys):
    _, wrapped = await keys.generate(ACME)
    with pytest.raises((SealBroken, KeyDestroyed)):
        await keys.unwrap(resealed(wrapped, 5), ACME)


async def test_the_seed_of_one_wrapped_key_does_not_open_another(keys):
    _, first = await keys.generate(ACME)
    _, second = await keys.generate(ACME._replace(tenant="globex"))
    body = first[:277] + second[277:-8]
    with pytest.raises(SealBroken):
        await keys.unwrap(body + hashlib.sha256(body).digest()[:8], ACME)


async def test_another_tenants_vault_key_does_not_open_it(azure, keys):
    _, wrapped = await keys.generate(ACME)
    azure.vaults["globex"].keys["tenant-key"] = Key()
    azure.vaults["globex"].keys["tenant-key"].versions = {
        wrapped[3:19].hex(): next(iter(azure.vaults["globex"].keys["tenant-key"].versions.values()))
    }
    other = AzureKeys(azure.open_account(), vault=f"globex.vault.test:{azure.port}", key="tenant-key")
    with pytest.raises(SealBroken):
        await other.unwrap(wrapped, ACME)
    await other.close()


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_vault_that_is_busy_for_a_moment_is_asked_again(keys, vault, status):
    plain, wrapped = await keys.generate(ACME)
    vault.failing = [status]
    assert await keys.unwrap(wrapped, ACME) == plain
    vault.failing = [status] * 5
    with pytest.raises(KeyUnreachable):
        await keys.unwrap(wrapped, ACME)


async def test_a_silent_vault_is_unreachable_within_the_deadline(azure, keys, vault, monkeypatch):
    _, wrapped = await keys.generate(ACME)
    hurried = keys_of(azure, deadline_s=0.5)

    async def silent(request, parts):
        await asyncio.sleep(60)

    monkeypatch.setattr(vault, "_key", silent)
    async with asyncio.timeout(30):
        with pytest.raises(KeyUnreachable):
            await hurried.unwrap(wrapped, ACME)
    await hurried.close()


async def test_an_answer_that_makes_no_sense_is_not_a_key(keys, vault):
    _, wrapped = await keys.generate(ACME)
    vault.failing = [418]
    with pytest.raises(KeyUnreachable):
        await keys.unwrap(wrapped, ACME)


async def test_a_key_without_a_version_of_its_own_wraps_nothing(keys, monkeypatch):
    # What was wrapped must say which version opens it.
    await keys.generate(ACME)
    get_key = keys._keys.get_key

    async def unversioned(name):
        found = await get_key(name)
        found.properties._id = found.properties._id.rpartition("/")[0]
        found.properties._vault_id._resource_id.version = None
        return found

    monkeypatch.setattr(keys._keys, "get_key", unversioned)
    with pytest.raises(KeyUnreachable):
        await keys.generate(ACME)


async def test_a_refusal_without_a_reason_is_a_refusal(keys, vault):
    _, wrapped = await keys.generate(ACME)
    vault.failing = [403]
    with pytest.raises(KeyAccessRefused):
        await keys.unwrap(wrapped, ACME)


async def test_a_challenge_that_leads_elsewhere_gets_no_token(azure, monkeypatch):
    from aiohttp import web

    async def lure(request):
        leads = 'Bearer authorization="https://login.test/x", resource="https://management.azure.test"'
        return web.json_response({}, status=401, headers={"www-authenticate": leads})

    monkeypatch.setattr(azure.vaults["globex"], "answer", lure)
    keys = AzureKeys(azure.open_account(), vault=f"globex.vault.test:{azure.port}", key="tenant-key")
    with pytest.raises(KeyUnreachable):
        await keys.generate(ACME)
    assert not [issued for issued in azure.entra.tokens.values() if "management" in issued.scope]
    await keys.close()


async def test_a_vault_outside_the_tenants_regions_is_refused(azure, vault):
    for region, allowed in (("japaneast", True), ("westeurope", False), (None, False)):
        vault.region = region
        keys = keys_of(azure, regions=("japaneast",))
        if allowed:
            await keys.generate(ACME)
        else:
            with pytest.raises(RegionRefused):
                await keys.generate(ACME)
        await keys.close()


async def test_more_versions_than_clients_are_kept_still_open(keys, vault, monkeypatch):
    monkeypatch.setattr("nagaya.keys.azurekeys._CLIENTS", 1)
    made = []
    for _ in range(3):
        made.append(await keys.generate(ACME))
        vault.keys["tenant-key"].rotate()
    for plain, wrapped in made:
        assert await keys.unwrap(wrapped, ACME) == plain


async def test_a_keyring_over_the_vault_loses_its_key_when_the_owner_disables_it(keys, vault):
    versions = MemoryKeyVersions()
    await versions.rotate(keys, "acme")
    ring = Keyring("acme", keys, versions, SystemClock(), 30.0)
    await ring.active()
    vault.keys["tenant-key"].enabled = False
    fresh = Keyring("acme", keys, versions, SystemClock(), 30.0)
    with pytest.raises(KeyDisabled):
        await fresh.active()
    await ring.close()
    await fresh.close()


async def test_a_key_is_opened_by_its_url(azure, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(trust_file(azure, tmp_path)))
    default_trust.cache_clear()
    try:
        surroundings = azure.surroundings(secret=azure.secret())
        keys = await open_keys(f"azurekeys://acme.vault.test:{azure.port}/tenant-key", surroundings)
        plain, wrapped = await keys.generate(ACME)
        assert await keys.unwrap(wrapped, ACME) == plain
        await keys.close()
    finally:
        default_trust.cache_clear()


@pytest.mark.parametrize(
    "url", ["azurekeys://acme", "azurekeys://acme/a/b", "azurekeys://acme/k?v=1", "azurekeys:///k"]
)
async def test_an_address_that_names_no_key_is_refused(azure, url):
    with pytest.raises(InvalidValue):
        await open_keys(url, azure.surroundings(secret=azure.secret()))
