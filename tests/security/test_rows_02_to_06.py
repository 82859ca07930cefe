"""The attack table, rows 2 to 6: tokens of others and forged tokens, sent to a running server."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from nagaya.testing.identity import IssuerKey, KeyServer
from support.naughty import with_another_end
from support.planted import Planted, assert_error, assert_no_canary
from support.server import RunningServer

POOL = "https://cognito-idp.ap-northeast-1.amazonaws.com/ap-northeast-1_RowTwo001"
OTHER_POOL = "https://cognito-idp.ap-northeast-1.amazonaws.com/ap-northeast-1_RowTwo002"
DIRECTORY = "6babcaad-604b-40ac-a9d7-9fd97c0b7777"
V1, V2 = f"https://sts.windows.net/{DIRECTORY}/", f"https://login.microsoftonline.com/{DIRECTORY}/v2.0"
POOL_KEY, OTHER_KEY = IssuerKey("pool-1"), IssuerKey("other-1")
ENTRA_KEY = IssuerKey("entra-1", alg=None, issuer="https://login.microsoftonline.com/{tenantid}/v2.0", key=POOL_KEY.key)
ENTRA_OLD_KEY = IssuerKey("entra-0", alg=None, issuer="https://sts.windows.net/{tenantid}/", key=OTHER_KEY.key)


class Foreign:
    """A tenant ``federated`` whose users sign in at a Cognito pool and at a directory of Entra ID."""

    def __init__(self, server: RunningServer, keys: KeyServer, client: httpx.AsyncClient) -> None:
        self.server, self.keys, self._client = server, keys, client

    async def ask(self, token: str, path: str = "/v1/me") -> httpx.Response:
        return await self._client.get(self.server.url + path, headers={"authorization": f"Bearer {token}"})

    async def refused(self, token: str) -> None:
        reply = await self.ask(token)
        assert_error(reply, 401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer"
        if len(token) > 40:
            # Neither the token nor what is wrong with it is told.
            assert token[:40] not in reply.text
            assert token[:40] not in self.server.log()


@pytest.fixture
async def foreign(server: RunningServer) -> AsyncIterator[Foreign]:
    async with KeyServer() as keys, httpx.AsyncClient(timeout=20) as client:
        listed = await client.get(
            f"{server.url}/admin/tenants/federated", headers={"authorization": f"Bearer {server.operator_key}"}
        )
        if listed.status_code == 404:
            server.tenant("federated")
        keys.publish(POOL_KEY, path="/pool")
        keys.publish(ENTRA_KEY, ENTRA_OLD_KEY, path="/entra")
        for issuer, provider, path, more in (
            (POOL, "cognito", "/pool", {"audiences": ["web"]}),
            (V1, "entra", "/entra", {"audiences": ["api"], "directory": DIRECTORY}),
            (V2, "entra", "/entra", {"audiences": ["api"], "directory": DIRECTORY}),
        ):
            body = {"issuer": issuer, "provider": provider, "jwks_url": keys.url(path), **more}
            server.operate("POST", "/admin/tenants/federated/issuers", body)
        yield Foreign(server, keys, client)


def access(**claims: object) -> dict[str, object]:
    now = int(time.time())
    return {
        "iss": POOL, "sub": "u-1", "token_use": "access", "client_id": "web", "iat": now, "exp": now + 600, "jti": "j",
        **claims,
    }  # fmt: skip


def entra(**claims: object) -> dict[str, object]:
    now = int(time.time())
    return {
        "iss": V2, "aud": "api", "tid": DIRECTORY, "oid": "o-1", "ver": "2.0", "scp": "chat", "azp": "spa",
        "iat": now, "exp": now + 600, **claims,
    }  # fmt: skip


async def test_the_right_tokens_of_pool_and_directory_enter_their_own_tenant_only(foreign: Foreign, acme: Planted):
    for token in (
        POOL_KEY.sign(access()),
        ENTRA_KEY.sign(entra()),
        ENTRA_OLD_KEY.sign(entra(iss=V1, ver="1.0", appid="spa")),
    ):
        shown = (await foreign.ask(token)).json()
        assert shown["tenant"]["id"] == "federated"
        assert_error(await foreign.ask(token, f"/v1/conversations/{acme.conversation}"), 404)


async def test_row_02_a_token_of_another_client_or_pool_is_refused_and_nothing_is_fetched(foreign: Foreign):
    await foreign.ask(POOL_KEY.sign(access()))
    before = foreign.keys.requests.total()
    for token in (
        POOL_KEY.sign(access(client_id="mobile")),
        POOL_KEY.sign(access(iss=OTHER_POOL)),
        POOL_KEY.sign(access(iss=POOL + "/")),
        POOL_KEY.sign(access(iss=POOL.upper())),
        POOL_KEY.sign(access(iss=foreign.keys.url("/pool"))),
        ENTRA_KEY.sign(entra(tid="00000000-604b-40ac-a9d7-9fd97c0b7777")),
        ENTRA_KEY.sign(entra(iss="https://login.microsoftonline.com/common/v2.0")),
        ENTRA_KEY.sign(entra(aud="another-api")),
    ):
        await foreign.refused(token)
    assert foreign.keys.requests.total() == before


async def test_row_03_an_entra_token_signed_by_a_key_of_the_other_issuer_form_is_refused(foreign: Foreign):
    await foreign.refused(ENTRA_OLD_KEY.sign(entra()))
    await foreign.refused(ENTRA_KEY.sign(entra(iss=V1, ver="1.0", appid="spa")))
    await foreign.refused(POOL_KEY.sign(entra()))


async def test_row_04_forged_tokens_are_refused(foreign: Foreign):
    claims = json.dumps(access()).encode()
    good = POOL_KEY.sign(access())
    head, body, mark = good.split(".")
    twice = json.dumps(access()).encode()[:-1] + b', "sub": "admin"}'
    for token in (
        f"{IssuerKey('pool-1', algorithm='RS256', key=POOL_KEY.key).sign_segments(b'{}', claims)}",
        POOL_KEY.sign_segments(b'{"alg":"none","kid":"pool-1"}', claims),
        POOL_KEY.sign_segments(b'{"alg":"none"}', claims).rpartition(".")[0] + ".",
        POOL_KEY.sign_segments(b'{"alg":"HS256","kid":"pool-1"}', claims),
        POOL_KEY.sign(access(), jku=foreign.keys.url("/evil")),
        POOL_KEY.sign(access(), jwk=POOL_KEY.public()),
        POOL_KEY.sign(access(), x5u=foreign.keys.url("/evil")),
        POOL_KEY.sign(access(), crit=["exp"], exp=1),
        POOL_KEY.sign_segments(b'{"alg":"RS256","kid":"pool-1","kid":"pool-1"}', claims),
        POOL_KEY.sign(twice),
        POOL_KEY.sign(access(padding="x" * 17_000)),
        OTHER_KEY.sign(access(), kid="pool-1"),
        f"{head}.{body}.{mark[:-4]}AAAA",
        f"{head}.{body}.{mark}=",
        f"{head}.{body}",
        f"{good}.{mark}",
        "a.b.c",
        "..",
        "nk_" + "a" * 60,
    ):
        await foreign.refused(token)
    assert foreign.keys.requests["/evil"] == 0


async def test_row_04_a_bearer_without_a_token_is_refused(foreign: Foreign):
    async with httpx.AsyncClient() as client:
        for given in ("Bearer", "Basic YTpi", "", "Bearer \u00ff".encode("latin-1"), "Token x"):
            reply = await client.get(f"{foreign.server.url}/v1/me", headers={"authorization": given})
            assert_error(reply, 401)
        assert_error(await client.get(f"{foreign.server.url}/v1/me"), 401)


async def test_row_05_an_id_token_is_no_access_token(foreign: Foreign):
    now = int(time.time())
    token = POOL_KEY.sign({"iss": POOL, "sub": "u-1", "token_use": "id", "aud": "web", "iat": now, "exp": now + 600})
    await foreign.refused(token)
    await foreign.refused(POOL_KEY.sign(access(token_use=None)))
    await foreign.refused(POOL_KEY.sign(access(token_use="refresh")))


async def test_row_05_an_expired_or_future_token_is_refused(foreign: Foreign):
    now = int(time.time())
    for times in (
        {"iat": now - 1200, "exp": now - 300},
        {"iat": now + 3600, "exp": now + 7200},
        {"nbf": now + 3600},
        {"exp": now + 10 * 86_400},
        {"exp": "soon"},
        {"exp": None},
    ):
        await foreign.refused(POOL_KEY.sign({k: v for k, v in access(**times).items() if v is not None}))


async def test_row_07_a_federated_user_is_revoked_by_the_name_its_issuer_gives_and_by_the_one_that_is_shown(
    foreign: Foreign,
):
    for number, named in enumerate(("r-0", f"{POOL}#r-1")):
        token = POOL_KEY.sign(access(sub=f"r-{number}", iat=int(time.time()) - 5))
        assert (await foreign.ask(token)).json()["user"] == f"{POOL}#r-{number}"
        foreign.server.operate("POST", "/admin/tenants/federated/revocations", {"user": named})
        await foreign.refused(token)
    assert (await foreign.ask(POOL_KEY.sign(access(sub="r-2", iat=int(time.time()) - 5)))).status_code == 200


async def test_row_07_a_revoked_session_is_refused_and_the_users_other_session_is_not(foreign: Foreign):
    first, second = (
        POOL_KEY.sign(access(sub="two-places", origin_jti=f"o-{number}", iat=int(time.time()) - 5)) for number in (1, 2)
    )
    assert (await foreign.ask(first)).status_code == (await foreign.ask(second)).status_code == 200
    foreign.server.operate("POST", "/admin/tenants/federated/revocations", {"session": "o-1"})
    await foreign.refused(first)
    assert (await foreign.ask(second)).status_code == 200


async def test_a_token_in_a_cookie_reads_and_writes_only_with_its_csrf_token(foreign: Foreign):
    url = foreign.server.url
    token = POOL_KEY.sign(access(sub="browser"))
    cookie = {"cookie": f"access_token={token}; csrf_token=c5rf"}
    async with httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/v1/me", headers=cookie)).status_code == 200
        for more in ({}, {"x-csrf-token": "other"}, {"x-csrf-token": ""}):
            reply = await client.post("/v1/conversations", json={}, headers={**cookie, **more})
            assert_error(reply, 403, "csrf_failed")
        assert (await client.post("/v1/conversations", json={}, headers={**cookie, "x-csrf-token": "c5rf"})).is_success


async def test_row_06_a_flood_of_unknown_key_ids_causes_at_most_one_fetch(foreign: Foreign):
    await foreign.ask(POOL_KEY.sign(access()))
    before = foreign.keys.requests["/pool"]
    for number in range(150):
        await foreign.refused(POOL_KEY.sign(access(), kid=f"unknown-{number}"))
    assert foreign.keys.requests["/pool"] - before <= 1


async def test_no_refusal_of_a_token_tells_anything_of_a_tenant(foreign: Foreign, acme: Planted, globex: Planted):
    for token in (
        POOL_KEY.sign(access(client_id="mobile")),
        with_another_end(acme.user_key),
        "nk_" + acme.user_key[3:][::-1],
    ):
        reply = await foreign.ask(token)
        assert_error(reply, 401)
        assert_no_canary(reply.content, of=acme)
        assert_no_canary(reply.content, of=globex)
