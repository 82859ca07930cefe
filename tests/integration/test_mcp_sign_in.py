"""Signing in to ``/mcp`` by OAuth: the ``mcp`` package's own provider, from the 401 to a tool call, at a tenant's host."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

import httpx
import pytest
from mcp.client.auth import OAuthRegistrationError
from mcp.shared.auth import OAuthToken

from parts.authorization_server import AuthorizationServer, Realm, running_authorization_server
from support.mcp_client import MODES, assert_refused, call_of, post
from support.mcp_sign_in import Program, signing_in
from support.server import RunningServer

METADATA = "/.well-known/oauth-protected-resource/mcp"
REFUSED = "invalid_api_key"
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
_numbers = count()


class House(NamedTuple):
    """A tenant with a host name of its own, and the realm that its people sign in to."""

    id: str
    host: str
    realm: Realm

    @property
    def resource(self) -> str:
        return f"http://{self.host}/mcp"

    def token(self, **claims: Any) -> str:
        """What the realm gives after a sign-in; ``claims`` take the place of those that it would have."""
        return self.realm.access_token(claims.pop("aud", self.resource), **claims)


@pytest.fixture(scope="module")
def issuers() -> Iterator[AuthorizationServer]:
    with running_authorization_server() as server:
        yield server


def _house(server: RunningServer, realm: Realm, **binding: Any) -> House:
    """A new tenant, whose only issuer is the realm, for tokens made for its own ``/mcp``."""
    tenant = f"signs-in-{next(_numbers)}"
    house = House(tenant, f"{tenant}.example", realm)
    server.tenant(tenant, hosts=[house.host])
    given = {
        "issuer": realm.issuer, "provider": "oidc", "audiences": [house.resource], "jwks_url": f"{realm.issuer}/keys",
    }  # fmt: skip
    server.operate("POST", f"/admin/tenants/{tenant}/issuers", given | binding)
    return house


@pytest.fixture
def house(server: RunningServer, issuers: AuthorizationServer) -> House:
    return _house(server, issuers.realm())


def _sent(server: RunningServer, house: House, token: str, message: Any = PING) -> httpx.Response:
    return post(server.client(token), message, host=house.host)


@pytest.mark.parametrize("mode", MODES)
async def test_a_program_signs_in_where_the_refusal_sends_it_and_calls_a_tool(
    server: RunningServer, house: House, mode: str
):
    program = Program()
    async with signing_in(server, house.host, program, mode) as client:
        added = await client.call_tool("add_memory", {"text": "Kato Roofing mends the roof."})
        assert not added.is_error, added.content
        found = await client.call_tool("search_memories", {"query": "Who mends the roof?"})
        assert found.structured_content["data"][0]["text"] == "Kato Roofing mends the roof."
    place = f"http://{house.host}{METADATA}"
    assert program.challenges == [f'Bearer resource_metadata="{place}"']
    assert program.statuses(METADATA) == [200]
    name = house.realm.name
    assert program.statuses(f"/.well-known/oauth-authorization-server/{name}") == [200]
    assert (program.statuses(f"/{name}/register"), program.statuses(f"/{name}/token")) == ([201], [200])
    assert program.statuses("/mcp")[0] == 401
    assert set(program.statuses("/mcp")[1:]) <= {200, 202}
    # One sign-in was enough, and the server fetched the realm's keys where the binding says, once.
    assert (house.realm.asked["sign-in"], house.realm.asked["keys"]) == (1, 1)
    assert program.client_info is not None
    assert program.client_info.issuer == house.realm.issuer


async def test_whoever_signed_in_is_the_user_that_the_rest_of_the_api_knows(server: RunningServer, house: House):
    house.realm.passwords = {"mio": "one", "ren": "two"}
    mio, ren = Program("mio", "one"), Program("ren", "two")
    async with signing_in(server, house.host, mio) as client:
        await client.call_tool("add_memory", {"text": "Mio drinks tea."})
    async with signing_in(server, house.host, ren) as client:
        found = await client.call_tool("search_memories", {"query": "tea"})
        assert found.structured_content["data"] == []
    assert mio.tokens is not None
    shown = server.client(mio.tokens.access_token, host=house.host).get("/v1/me").json()
    assert (shown["tenant"]["id"], shown["user"]) == (house.id, f"{house.realm.issuer}#mio")


async def test_the_scope_that_the_binding_requires_is_asked_for(server: RunningServer, issuers: AuthorizationServer):
    realm = issuers.realm()
    realm.scopes = ("assistants", "nagaya.read", "nagaya.write", "payroll")
    house = _house(server, realm, required_scope="assistants")
    program = Program()
    async with signing_in(server, house.host, program) as client:
        assert len((await client.list_tools()).tools) == 7
    assert realm.scopes_asked == ["assistants"]
    for scope in ("", "payroll"):
        refused = _sent(server, house, house.token(scope=scope))
        assert_refused(refused, 401, REFUSED)


async def test_a_program_that_may_only_read_asks_again_when_it_wants_to_write(server: RunningServer, house: House):
    house.realm.scopes = ("nagaya.read",)
    program = Program()
    async with signing_in(server, house.host, program) as client:
        assert "add_memory" not in {tool.name for tool in (await client.list_tools()).tools}
        house.realm.scopes = ("nagaya.read", "nagaya.write")
        added = await client.call_tool("add_memory", {"text": "Now it may."})
        assert not added.is_error, added.content
    assert house.realm.scopes_asked[0] == "nagaya.read"
    assert set(house.realm.scopes_asked[1].split()) == {"nagaya.read", "nagaya.write"}
    assert 403 in program.statuses("/mcp")


async def test_it_asks_for_scopes_in_the_name_that_the_issuer_knows_them_by(
    server: RunningServer, issuers: AuthorizationServer
):
    realm = issuers.realm()
    realm.scopes = ("api/nagaya.read", "api/nagaya.write")
    house = _house(server, realm, required_scope="api/nagaya.read")
    program = Program()
    async with signing_in(server, house.host, program) as client:
        added = await client.call_tool("add_memory", {"text": "Now it may."})
        assert not added.is_error, added.content
    assert realm.scopes_asked[0] == "api/nagaya.read"
    assert set(realm.scopes_asked[1].split()) == {"api/nagaya.read", "api/nagaya.write"}
    # At a host that is nobody's, whose name it is would tell who signs in where.
    elsewhere = post(server.client(house.token(scope="api/nagaya.read")), call_of("add_memory", {"text": "No."}))
    assert 'scope="nagaya.read nagaya.write"' in elsewhere.headers["www-authenticate"]


@pytest.mark.parametrize(
    "required", ['a"b/nagaya.read', "a\\b/nagaya.read", "屋/nagaya.read", "/nagaya.read", "nagaya.read"]
)
async def test_a_scopes_name_that_does_not_fit_into_a_header_is_not_put_there(
    server: RunningServer, issuers: AuthorizationServer, required: str
):
    house = _house(server, issuers.realm(), required_scope=required)
    refused = _sent(server, house, house.token(scope=required), call_of("add_memory", {"text": "No."}))
    assert_refused(refused, 403, "forbidden")
    assert ', scope="nagaya.read nagaya.write", ' in refused.headers["www-authenticate"]


async def test_a_token_that_has_ended_is_renewed_without_a_person(server: RunningServer, house: House):
    house.realm.life_s = 1
    program = Program()
    async with signing_in(server, house.host, program) as client:
        await client.list_tools()
        await asyncio.sleep(1.1)
        await client.call_tool("list_conversations", {})
    assert house.realm.asked["refresh_token"] >= 1
    assert house.realm.asked["sign-in"] == 1
    assert program.statuses("/mcp").count(401) == 1


async def test_a_kept_token_that_has_expired_is_refused_and_leads_to_a_new_sign_in(server: RunningServer, house: House):
    now_s = int(time.time())
    expired = house.token(iat=now_s - 7200, exp=now_s - 3600)
    refused = _sent(server, house, expired)
    assert_refused(refused, 401, REFUSED)
    assert refused.headers["www-authenticate"] == (
        f'Bearer error="invalid_token", resource_metadata="http://{house.host}{METADATA}"'
    )
    program = Program()
    program.tokens = OAuthToken(access_token=expired)
    async with signing_in(server, house.host, program) as client:
        await client.call_tool("list_conversations", {})
    assert program.tokens.access_token != expired
    assert house.realm.asked["sign-in"] == 1


async def _fails(server: RunningServer, host: str, program: Program) -> BaseException:
    """What the client ends with; the innermost of a group."""
    with pytest.raises(BaseException) as failed:
        async with signing_in(server, host, program) as client:
            await client.call_tool("list_conversations", {})
    error = failed.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def test_an_issuer_that_gives_expired_tokens_lets_nobody_in_and_is_not_asked_for_ever(
    server: RunningServer, house: House
):
    house.realm.issued_ago_s = house.realm.life_s * 2
    program = Program()
    await _fails(server, house.host, program)
    assert house.realm.asked["authorization_code"] >= 1
    assert set(program.statuses("/mcp")) == {401}
    assert len(program.statuses("/mcp")) <= 6


async def test_a_token_made_for_something_else_lets_nobody_in(server: RunningServer, house: House):
    house.realm.audience = "https://payroll.example"
    program = Program()
    await _fails(server, house.host, program)
    assert house.realm.asked["authorization_code"] >= 1
    assert set(program.statuses("/mcp")) == {401}
    for audience in (
        "https://payroll.example", f"http://{house.host}/", f"http://{house.host}/mcp/", f"http://{house.host}/mcp2", "",
    ):  # fmt: skip
        assert_refused(_sent(server, house, house.token(aud=audience)), 401, REFUSED)


async def test_a_token_of_another_tenants_issuer_lets_nobody_in(
    server: RunningServer, house: House, issuers: AuthorizationServer
):
    other = _house(server, issuers.realm())
    theirs = other.token()
    # Good at home, with or without a host that says so; nowhere else.
    assert _sent(server, other, theirs).json()["result"] == {}
    assert_refused(_sent(server, house, theirs), 403, "tenant_mismatch")
    # Made by the other issuer, in this house's name or for its address.
    assert_refused(_sent(server, house, other.token(aud=house.resource)), 401, REFUSED)
    assert_refused(_sent(server, house, other.token(iss=house.realm.issuer, aud=house.resource)), 401, REFUSED)
    program = Program()
    program.tokens = OAuthToken(access_token=theirs)
    await _fails(server, house.host, program)
    # It is not sent away to sign in: the token is good, it is the place that is wrong.
    assert set(program.statuses("/mcp")) == {403}
    assert house.realm.asked["authorize"] == 0


async def test_two_tenants_of_one_issuer_are_told_apart_by_what_the_token_was_made_for(
    server: RunningServer, house: House
):
    neighbour = _house(server, house.realm)
    for mine, text in ((house, "The house drinks tea."), (neighbour, "The neighbour drinks coffee.")):
        async with signing_in(server, mine.host, Program()) as client:
            await client.call_tool("add_memory", {"text": text})
            found = await client.call_tool("search_memories", {"query": "Who drinks what?"})
            assert [one["text"] for one in found.structured_content["data"]] == [text]
    assert_refused(_sent(server, house, neighbour.token()), 403, "tenant_mismatch")


async def test_a_sign_in_that_failed_or_was_refused_reaches_nothing(server: RunningServer, house: House):
    program = Program("mio", "not the password")
    await _fails(server, house.host, program)
    assert program.failed_sign_ins
    assert program.tokens is None
    assert set(program.statuses("/mcp")) == {401}


async def test_an_issuer_that_is_not_bound_any_more_lets_nobody_in(server: RunningServer, house: House):
    token = house.token()
    assert _sent(server, house, token).json()["result"] == {}
    server.operate("DELETE", f"/admin/tenants/{house.id}/issuers", issuer=house.realm.issuer)
    assert_refused(_sent(server, house, token), 401, REFUSED)


async def test_at_a_host_that_is_nobodys_no_issuer_is_named(server: RunningServer, house: House):
    program = Program()
    error = await _fails(server, "nobody-signs-in.example", program)
    assert isinstance(error, OAuthRegistrationError), error
    assert house.realm.asked["metadata"] == 0
    assert set(program.statuses("/mcp")) == {401}


async def test_a_token_for_mcp_opens_what_its_scopes_open_and_an_id_token_opens_nothing(
    server: RunningServer, house: House
):
    read_only = house.token(scope="nagaya.read")
    refused = _sent(server, house, read_only, call_of("add_memory", {"text": "It may not."}))
    assert_refused(refused, 403, "forbidden")
    assert 'error="insufficient_scope", scope="nagaya.read nagaya.write"' in refused.headers["www-authenticate"]
    id_token = house.realm.key.sign(
        {"iss": house.realm.issuer, "aud": house.resource, "sub": "mio", "nonce": "n", "iat": int(time.time()),
         "exp": int(time.time()) + 600}
    )  # fmt: skip
    assert_refused(_sent(server, house, id_token), 401, REFUSED)
