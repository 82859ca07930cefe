"""A tenant's Azure account: its secret, its tokens, and where it may connect to."""

from __future__ import annotations

import asyncio
import json

import pytest
from azure.core.exceptions import ClientAuthenticationError

from nagaya.clouds.azure import AzureAccount, read_connection
from nagaya.errors import (
    AddressRefused,
    CloudCredentialsRefused,
    ConnectionSecretInvalid,
    InvalidValue,
    RegionRefused,
    SessionClosed,
)
from nagaya.secrets.azure import AzureSecrets
from nagaya.stores.cosmos import CosmosHouse
from nagaya.stores.store import Store
from nagaya.testing.clock import ManualClock
from parts.azure_cloud import CLIENT, CLIENT_SECRET

pytest_plugins = ["parts.azure_fixtures"]

SCOPE = "https://vault.test/.default"


def test_the_guides_secret_is_read_and_never_shown():
    text = json.dumps({
        "tenant_id": "t", "client_id": "c", "client_secret": "hidden", "cosmos_endpoint": "https://a.documents.azure.com",
        "database_name": "db", "storage_account_name": "blobs", "something_else": [1],
    })  # fmt: skip
    found = read_connection(text.encode())
    assert (found.database_name, found.storage_account_name, found.has_principal) == ("db", "blobs", True)
    assert "hidden" not in f"{found!r} {found}"


@pytest.mark.parametrize(
    ("secret", "says"),
    [
        (b"{", "JSON object"),
        (b"\xff", "JSON object"),
        (b"[]", "JSON object"),
        (b'{"tenant_id": 1}', "JSON object"),
        (b"{}", "neither"),
        (b'{"tenant_id": "t", "client_id": "c"}', "belong together"),
        (b'{"cosmos_key": "k", "cosmos_endpoint": "http://a.documents.azure.com"}', "cosmos_endpoint"),
        (b'{"tenant_id": "t", "client_id": "c", "client_secret": "s", "authority": "login.example"}', "authority"),
    ],
)
def test_a_secret_that_cannot_be_used_says_what_is_wrong(secret, says):
    with pytest.raises(ConnectionSecretInvalid, match=says):
        read_connection(secret)


async def test_many_who_need_a_token_ask_once(azure):
    account = azure.open_account()
    before = azure.entra.asked
    credential = await account.credential()
    tokens = await asyncio.gather(*(credential.get_token(SCOPE) for _ in range(50)))
    assert len({token.token for token in tokens}) == 1
    assert azure.entra.asked == before + 1
    await account.close()


async def test_one_who_gives_up_does_not_end_the_question_of_the_others(azure):
    account = azure.open_account()
    credential = await account.credential()
    first, second = (asyncio.create_task(credential.get_token(SCOPE)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).token
    await account.close()


async def test_tokens_that_end_are_renewed_under_load(azure):
    azure.entra.lifetime_s = 1
    database = azure.new_database()
    by_key = CosmosHouse(azure.open_account(azure.key_secret()), name=azure.account, database=database)
    await by_key.create("acme")
    house = CosmosHouse(azure.open_account(), name=azure.account, database=database)
    store = Store(await house.open("acme"))

    async def work(name: str) -> None:
        for number in range(15):
            await store.put(name, b"%03d" % number, b"x")
            await asyncio.sleep(0.1)

    await asyncio.gather(*(work(f"p{number}") for number in range(3)))
    assert len({token for token, issued in azure.entra.tokens.items() if "documents" in issued.scope}) >= 2
    assert len([row async for row in store.scan_all()]) == 45
    await house.close()
    await by_key.close()


async def test_a_refused_sign_in_is_not_asked_again_at_once_and_then_it_is(azure):
    clock = ManualClock()
    account = azure.open_account(azure.secret(client_secret="old"))
    account.clock = clock
    credential = await account.credential()
    before = azure.entra.asked
    for _ in range(5):
        with pytest.raises(ClientAuthenticationError):
            await credential.get_token(SCOPE)
    assert azure.entra.asked == before + 1
    clock.advance(1.1)
    with pytest.raises(ClientAuthenticationError):
        await credential.get_token(SCOPE)
    clock.advance(1.1)
    with pytest.raises(ClientAuthenticationError):
        await credential.get_token(SCOPE)
    assert azure.entra.asked == before + 2
    clock.advance(30)
    azure.entra.clients[CLIENT] = "old"
    assert (await credential.get_token(SCOPE)).token
    await account.close()


async def test_a_wrong_client_secret_shows_entras_code_and_nothing_of_the_secret(azure):
    secrets = AzureSecrets(
        azure.open_account(azure.secret(client_secret="wrong-one")), vault=f"acme.vault.test:{azure.port}", room="acme"
    )
    with pytest.raises(CloudCredentialsRefused, match="AADSTS7000215") as refused:
        await secrets.get("llm-connection")
    assert "wrong-one" not in refused.value.message()
    await secrets.close()


async def test_a_closed_account_gives_no_token_and_makes_no_call(azure):
    account = azure.open_account()
    secrets = AzureSecrets(account, vault=f"acme.vault.test:{azure.port}", room="acme")
    await secrets.put("llm-connection", b"x")
    credential = await account.credential()
    waiting = asyncio.create_task(credential.get_token("https://other.test/.default"))
    await asyncio.sleep(0)
    for _ in range(2):
        await account.close()
    with pytest.raises(SessionClosed):
        await waiting
    with pytest.raises(SessionClosed):
        await credential.get_token(SCOPE)
    with pytest.raises(SessionClosed):
        await secrets.get("llm-connection")
    await secrets.close()


async def test_a_secret_with_an_account_key_alone_gives_no_tokens(azure):
    account = azure.open_account(azure.key_secret())
    with pytest.raises(CloudCredentialsRefused, match="no service principal"):
        await account.credential()
    await account.close()


async def test_the_machines_identity_goes_to_azures_own_names_only(azure):
    account = await AzureAccount.open(azure.surroundings(allowed=()))
    assert account.connection is None
    assert account.endpoint("acme", ".vault.azure.net") == "https://acme.vault.azure.net/"
    assert account.endpoint("acme.vault.azure.cn", ".vault.azure.net") == "https://acme.vault.azure.cn/"
    for host in ("vault.example.com", "acme.vault.azure.net.example.com", "xvault.azure.net"):
        with pytest.raises(InvalidValue, match="azure-connection"):
            account.endpoint(host, ".vault.azure.net")
    assert (await account.credential()).get_token is not None
    await account.close()


@pytest.mark.parametrize("url", ["http://acme.vault.test/x", "https://127.0.0.1/", "https://localhost/"])
async def test_nothing_is_sent_in_clear_or_to_the_inside(azure, url):
    from azure.core.rest import HttpRequest

    account = azure.open_account()
    with pytest.raises(AddressRefused):
        await account.transport.send(HttpRequest("GET", url))
    await account.close()


async def test_no_client_can_turn_the_check_of_certificates_off(azure):
    from azure.core.exceptions import ServiceRequestError
    from azure.core.rest import HttpRequest

    surroundings = azure.surroundings(secret=azure.secret())
    account = AzureAccount(read_connection(azure.secret()), surroundings)  # the stand-ins' authority is not trusted
    with pytest.raises(ServiceRequestError, match="CERTIFICATE_VERIFY_FAILED"):
        await account.transport.send(HttpRequest("GET", f"https://{azure.account}/"), connection_verify=False)
    await account.close()


async def test_regions_are_compared_by_name_whatever_their_spelling(azure):
    account = azure.open_account(regions=("japaneast", "Japan West"))
    account.check_region("Japan East", "japanwest")
    for region in ("westus", ""):
        with pytest.raises(RegionRefused):
            account.check_region("japaneast", region)
    await account.close()
    anywhere = azure.open_account()
    anywhere.check_region("westus", "")
    await anywhere.close()


async def test_an_entra_id_that_is_away_is_an_outage_and_not_a_refusal(azure):
    from nagaya.errors import StoreUnreachable

    azure.entra.failing = 503
    secrets = AzureSecrets(azure.open_account(), vault=f"acme.vault.test:{azure.port}", room="acme")
    with pytest.raises(StoreUnreachable):
        await secrets.get("llm-connection")
    azure.entra.failing = None
    assert azure.entra.clients[CLIENT] == CLIENT_SECRET
    await secrets.close()
