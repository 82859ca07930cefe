"""Secrets in Key Vault: names that cannot be confused, values of every kind, and deleted names that come back."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nagaya.clouds.azure import default_trust
from nagaya.errors import InvalidValue, PermissionMissing, RegionRefused, StoreUnreachable
from nagaya.secrets.azure import AzureSecrets, open_secrets, place_of, vault_name
from parts.azure_cloud import CLIENT, AzureCloud, trust_file
from parts.key_vault import KeyVault

pytest_plugins = ["parts.azure_fixtures"]

BINARY = bytes(range(256)) * 256
ROOMS = st.from_regex(r"_?[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", fullmatch=True)
NAMES = st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True)


def secrets_of(azure: AzureCloud, room: str = "acme", **more) -> AzureSecrets:
    return AzureSecrets(azure.open_account(**more), vault=f"acme.vault.test:{azure.port}", room=room)


@pytest.fixture
async def secrets(azure: AzureCloud) -> AsyncIterator[AzureSecrets]:
    secrets = secrets_of(azure)
    yield secrets
    await secrets.close()


@pytest.fixture
def vault(azure: AzureCloud) -> KeyVault:
    return azure.vaults["acme"]


def test_an_ordinary_secret_has_the_guides_name():
    assert vault_name("acme", "llm-connection") == "tenant--acme--llm-connection"
    assert vault_name("_platform", "signing-key") == "room--platform--signing-key"
    assert place_of("tenant--acme--llm-connection", None) == ("acme", "llm-connection")
    assert place_of("room--platform--signing-key", {}) == ("_platform", "signing-key")
    assert place_of("somebody-elses", {"nagaya-room": "acme"}) is None
    assert place_of("nagaya-part-00-0", {"nagaya-room": "acme"}) is None
    assert place_of("nagaya-thing", {}) is None


def test_names_that_could_be_read_in_two_ways_are_apart():
    pairs = [
        ("a--b", "c"),
        ("a", "b--c"),
        ("a-", "-b"),
        ("acme", "-x"),
        ("acme", "x-"),
        ("acme-", "x"),
        ("a" * 63, "b" * 64),
    ]
    made = [vault_name(*pair) for pair in pairs]
    assert len(set(made)) == len(pairs)
    assert all(len(name) <= 127 for name in made)


@settings(max_examples=300, deadline=None)
@given(ROOMS, NAMES, ROOMS, NAMES)
def test_no_two_places_share_a_name_and_every_name_leads_back(room, name, other_room, other_name):
    made = vault_name(room, name)
    assert len(made) <= 127
    assert made == made.lower()
    assert place_of(made, {"nagaya-room": room, "nagaya-name": name}) == (room, name)
    if (room, name) != (other_room, other_name):
        assert vault_name(other_room, other_name) != made


async def test_a_secret_that_a_person_set_is_read_as_it_was_typed(secrets, vault):
    vault.secrets["tenant--acme--llm-connection"] = {"value": '{"api_key": "鍵"}\n'}
    assert await secrets.get("llm-connection") == '{"api_key": "鍵"}\n'.encode()
    assert list(await secrets.names()) == ["llm-connection"]


async def test_text_lies_there_as_text_and_bytes_do_not(secrets, vault):
    await secrets.put("llm-connection", "sk-鍵\n".encode())
    assert vault.secrets["tenant--acme--llm-connection"]["value"] == "sk-鍵\n"
    for value in (b"", b"=", b"=text", b"\x00", b"\xff", b"\x1b[2J", b"a\rb"):
        await secrets.put("llm-connection", value)
        assert await secrets.get("llm-connection") == value


@pytest.mark.parametrize("size", [24_999, 25_000, 25_001, 65_536])
async def test_a_value_of_any_size_comes_back(secrets, size):
    await secrets.put("llm-connection", b"x" * size)
    assert await secrets.get("llm-connection") == b"x" * size


async def test_parts_of_a_replaced_or_deleted_value_are_removed(secrets, vault):
    await secrets.put("llm-connection", BINARY)
    assert len(vault.secrets) == 5
    await secrets.put("llm-connection", BINARY[::-1])
    assert len(vault.secrets) == 5
    await secrets.put("llm-connection", b"small")
    assert len(vault.secrets) == 1
    await secrets.put("llm-connection", BINARY)
    assert list(await secrets.names()) == ["llm-connection"]
    await secrets.delete("llm-connection")
    assert vault.secrets == {}


async def test_a_value_whose_parts_are_gone_is_not_a_shorter_value(secrets, vault):
    await secrets.put("llm-connection", BINARY)
    del vault.secrets[next(name for name in vault.secrets if name.startswith("nagaya-part-"))]
    with pytest.raises(StoreUnreachable):
        await secrets.get("llm-connection")


async def test_a_deleted_name_can_be_set_again(secrets):
    for value in (b"first", b"second"):
        await secrets.put("llm-connection", value)
        await secrets.delete("llm-connection")
    await secrets.put("llm-connection", b"third")
    assert await secrets.get("llm-connection") == b"third"


async def test_a_name_that_stays_deleted_is_given_up(secrets, vault, monkeypatch):
    monkeypatch.setattr("nagaya.secrets.azure._POLL_S", 0.001)
    await secrets.put("llm-connection", b"x")
    await secrets.delete("llm-connection")

    class Kept(dict):
        def pop(self, name):
            return self[name]

    vault.deleted = Kept(vault.deleted)
    with pytest.raises(StoreUnreachable):
        await secrets.put("llm-connection", b"y")
    vault.deleted = {}


async def test_a_name_taken_back_by_another_meanwhile_is_tried_again(secrets, monkeypatch):
    monkeypatch.setattr("nagaya.secrets.azure._POLL_S", 0.001)
    await secrets.put("llm-connection", b"x")
    await secrets.delete("llm-connection")
    recover = secrets._client.recover_deleted_secret
    times = []

    async def twice(name, **more):
        times.append(name)
        if len(times) == 1:
            from azure.core.exceptions import ResourceNotFoundError

            await recover(name, **more)
            raise ResourceNotFoundError(response=type("Answer", (), {"status_code": 404, "reason": ""})())
        return await recover(name, **more)

    monkeypatch.setattr(secrets._client, "recover_deleted_secret", twice)
    await secrets.put("llm-connection", b"y")
    assert await secrets.get("llm-connection") == b"y"


async def test_one_deleted_by_another_at_the_same_moment_is_gone_all_the_same(secrets, vault, monkeypatch):
    await secrets.put("llm-connection", b"x")
    read = secrets._read

    async def read_and_lose(place):
        found = await read(place)
        vault.secrets.clear()
        return found

    monkeypatch.setattr(secrets, "_read", read_and_lose)
    await secrets.delete("llm-connection")


async def test_a_principal_without_the_role_is_told_which_one(secrets, vault):
    vault.denied.add(CLIENT)
    for call in (secrets.get("llm-connection"), secrets.put("llm-connection", b"x"), secrets.names()):
        with pytest.raises(PermissionMissing, match="Key Vault Secrets Officer"):
            await call


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_busy_vault_is_asked_again_and_then_given_up(secrets, vault, status):
    await secrets.put("llm-connection", b"x")
    vault.failing = [status]
    assert await secrets.get("llm-connection") == b"x"
    vault.failing = [status] * 9
    with pytest.raises(StoreUnreachable):
        await secrets.get("llm-connection")
    vault.failing = [418]
    with pytest.raises(StoreUnreachable):
        await secrets.get("llm-connection")


async def test_a_vault_outside_the_tenants_regions_is_refused(azure, vault):
    vault.region = "westeurope"
    secrets = secrets_of(azure, regions=("japaneast",))
    with pytest.raises(RegionRefused):
        await secrets.get("llm-connection")
    await secrets.close()


async def test_secrets_are_opened_by_their_url(azure, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(trust_file(azure, tmp_path)))
    default_trust.cache_clear()
    try:
        secrets = await open_secrets(
            f"azuresecrets://acme.vault.test:{azure.port}", azure.surroundings(secret=azure.secret())
        )
        await secrets.put("llm-connection", b"x")
        assert await secrets.get("llm-connection") == b"x"
        await secrets.close()
    finally:
        default_trust.cache_clear()


async def test_a_challenge_that_leads_elsewhere_gets_no_token(azure, secrets, vault, monkeypatch):
    from aiohttp import web

    async def lure(request):
        leads = 'Bearer authorization="https://login.test/x", resource="https://management.azure.test"'
        return web.json_response({}, status=401, headers={"www-authenticate": leads})

    monkeypatch.setattr(vault, "answer", lure)
    with pytest.raises(StoreUnreachable):
        await secrets.get("llm-connection")
    assert not [issued for issued in azure.entra.tokens.values() if "management" in issued.scope]


@pytest.mark.parametrize("url", ["azuresecrets://acme/path", "azuresecrets://acme?x=1", "azuresecrets://"])
async def test_an_address_that_says_more_than_a_vault_is_refused(azure, url):
    with pytest.raises(InvalidValue):
        await open_secrets(url, azure.surroundings(secret=azure.secret()))
