"""The attack table's rows 2 to 7, with issuers that publish their keys over HTTP."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from nagaya.errors import IssuerUnreachable
from nagaya.identity import api_keys
from nagaya.identity.verified import SERVE_S
from nagaya.tenancy.principal import Provider, Role
from nagaya.testing.identity import IssuerKey
from parts.sign_in import (
    ACCESS,
    COGNITO_KEY,
    ENTRA,
    ENTRA_KEY,
    ENTRA_OLD,
    ENTRA_V1_KEY,
    ID,
    NOW_S,
    OIDC,
    OIDC_KEY,
    OTHER_POOL,
    PLAIN,
    POOL,
    TID,
    TIMES,
    V2,
)

# --- row 2: somebody else's token --------------------------------------------------------------------------------


async def test_a_token_of_another_client_pool_or_directory_is_refused_with_nothing_fetched(house):
    other = {**ENTRA, "tid": "9188040d-6c67-4c5b-b112-36a304b66dad"}
    tokens = [
        COGNITO_KEY.sign({**ACCESS, "client_id": "stranger"}),
        COGNITO_KEY.sign({**ACCESS, "iss": OTHER_POOL}),
        COGNITO_KEY.sign({**ACCESS, "iss": POOL + "/"}),
        COGNITO_KEY.sign({**ACCESS, "iss": POOL.replace("https", "http")}),
        COGNITO_KEY.sign({**ACCESS, "iss": f"https://evil.example/?{POOL}"}),
        ENTRA_KEY.sign(other),
        ENTRA_KEY.sign({**other, "iss": V2.replace(TID, other["tid"])}),
        ENTRA_KEY.sign({**ENTRA, "aud": "stranger"}),
        OIDC_KEY.sign({**PLAIN, "aud": "stranger"}),
    ]
    for token in tokens:
        await house.refused(token)
    assert house.fetches == 0


@pytest.mark.parametrize("issuer", [None, "", 7, [POOL], {"iss": POOL}, "x" * 2000, "\ud800", "a\x00"])
async def test_a_token_without_a_plain_issuer_is_refused_without_a_look_up(house, issuer):
    await house.refused(COGNITO_KEY.sign({**ACCESS, "iss": issuer}))
    assert house.directory.asked == []


async def test_a_token_that_fits_two_tenants_belongs_to_neither(house):
    house.bind(OIDC, Provider.OIDC, "/oidc", algorithms=("ES256",), tenant_id="globex", audiences=("web",))
    assert (await house.authenticator.authenticate(OIDC_KEY.sign({**PLAIN, "aud": "web"}))).tenant_id == "globex"
    reason = await house.refused(OIDC_KEY.sign({**PLAIN, "aud": ["api", "web"], "azp": "web"}))
    assert reason == "not exactly one binding has this audience"


async def test_a_binding_of_a_kind_that_signs_nothing_matches_nothing(house):
    house.bind("https://odd.example", Provider.API_KEY, "/oidc", algorithms=("ES256",))
    await house.refused(OIDC_KEY.sign({**PLAIN, "iss": "https://odd.example"}))


async def test_a_token_of_a_tenant_that_is_gone_is_refused(house):
    del house.directory.held["acme"]
    assert await house.refused(OIDC_KEY.sign(PLAIN)) == "tenant does not exist"


async def test_a_token_that_names_a_tenant_is_not_believed(house):
    claims = {**PLAIN, "tenant_id": "globex", "tenant": "globex", "custom:tenant_id": "globex"}
    assert (await house.authenticator.authenticate(OIDC_KEY.sign(claims))).tenant_id == "acme"


# --- row 3: a key of another issuer form -------------------------------------------------------------------------


async def test_an_entra_token_signed_by_a_key_of_another_issuer_form_is_refused(house):
    assert await house.refused(ENTRA_V1_KEY.sign(ENTRA)) == "key signs for another issuer"
    assert await house.refused(ENTRA_KEY.sign(ENTRA_OLD)) == "key signs for another issuer"


# --- row 4: forgeries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": "ES256"},
        {"alg": "PS256"},
        {"jku": "https://evil.example/keys"},
        {"x5u": "https://evil.example/cert"},
        {"jwk": COGNITO_KEY.public()},
        {"crit": ["exp"]},
        {"kid": "../../dev/null"},
        {"typ": "logout+jwt"},
        {"typ": ["JWT"]},
    ],
)
async def test_a_forged_header_is_refused(house, header):
    await house.refused(COGNITO_KEY.sign(ACCESS, **header))


async def test_a_forged_algorithm_or_header_fetches_nothing(house):
    for header in ({"alg": "none"}, {"alg": "HS256"}, {"crit": ["exp"]}, {"jku": "https://evil.example"}):
        await house.refused(COGNITO_KEY.sign(ACCESS, **header))
    assert house.fetches == 0


async def test_a_binding_cannot_allow_an_algorithm_that_the_gate_does_not_know(house):
    house.directory.bindings[-1] = msgspec.structs.replace(house.directory.bindings[-1], algorithms=("none", "HS256"))
    for algorithm in ("none", "HS256", "ES256"):
        await house.refused(OIDC_KEY.sign(PLAIN, alg=algorithm))


async def test_cognito_and_entra_stay_with_rs256_whatever_the_binding_says(house):
    house.directory.bindings[0] = msgspec.structs.replace(house.directory.bindings[0], algorithms=("RS256", "ES256"))
    strong = IssuerKey("cognito-2", algorithm="ES256")
    house.server.publish(COGNITO_KEY, strong, path="/cognito")
    await house.refused(strong.sign(ACCESS))


async def test_a_token_signed_by_a_stranger_with_a_known_key_id_is_refused(house):
    stranger = IssuerKey("cognito-1")
    assert await house.refused(stranger.sign(ACCESS)) == "signature does not verify"


async def test_duplicate_names_and_huge_tokens_are_refused(house):
    header = b'{"alg":"RS256","kid":"cognito-1"}'
    await house.refused(COGNITO_KEY.sign_segments(header, b'{"iss":"a","iss":"b"}'))
    await house.refused(COGNITO_KEY.sign({**ACCESS, "pad": "x" * 20_000}))
    await house.refused("nk_" + "x" * 20_000)


async def test_our_own_issuer_takes_es256_with_our_own_key_only(house):
    claims = {**TIMES, "iss": "https://nagaya.local/acme", "aud": "nagaya", "sub": "mio", "role": "user", "jti": "t"}
    assert await house.refused(COGNITO_KEY.sign(claims)) == "algorithm is not allowed"
    assert await house.refused(OIDC_KEY.sign(claims)) == "key id is unknown"
    forged = IssuerKey((await house.local.jwks())["keys"][0]["kid"], algorithm="ES256")
    assert await house.refused(forged.sign(claims)) == "signature does not verify"
    assert await house.refused(forged.sign({**claims, "iss": "https://nagaya.local/nobody"})) == "tenant does not exist"


# --- row 5: one kind for the other -------------------------------------------------------------------------------


async def test_an_id_token_is_no_access_token_and_the_reverse(house):
    await house.refused(COGNITO_KEY.sign(ID))
    await house.refused(COGNITO_KEY.sign(ACCESS), "login")
    got = await house.authenticator.authenticate(COGNITO_KEY.sign(ID), purpose="login")
    assert got.user_id == "u-1"
    assert house.authenticator.held(COGNITO_KEY.sign(ID)) is None
    await house.refused(COGNITO_KEY.sign(ID))


async def test_our_own_tokens_serve_to_sign_in_as_well(house):
    token = await house.local.mint(house.directory.held["acme"], "mio")
    assert (await house.authenticator.authenticate(token, purpose="login")).user_id == "mio"


# --- row 6: floods -----------------------------------------------------------------------------------------------


async def test_a_flood_of_unknown_key_ids_fetches_once_a_window(house):
    await house.authenticator.authenticate(COGNITO_KEY.sign(ACCESS))
    for number in range(50):
        await house.refused(COGNITO_KEY.sign(ACCESS, kid=f"unknown-{number}"))
    assert house.fetches == 1
    house.clock.move_s(60)
    tokens = [COGNITO_KEY.sign(ACCESS, kid=f"later-{number}") for number in range(50)]
    await asyncio.gather(*(house.refused(token) for token in tokens))
    assert house.fetches == 2


async def test_an_issuer_that_is_down_is_no_reason_to_sign_in_again(house):
    house.server.publish_page(b"", path="/oidc", status=503)
    with pytest.raises(IssuerUnreachable) as unreachable:
        await house.authenticator.authenticate(OIDC_KEY.sign(PLAIN))
    assert (unreachable.value.status, unreachable.value.retry_after_s) == (503, 5)


# --- row 7: revocation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "subject"), [("user", "u-1"), ("session", "o-1"), ("token", "j-1")])
async def test_a_revoked_user_session_or_token_is_refused_at_once(house, kind, subject):
    token = COGNITO_KEY.sign(ACCESS)
    await house.authenticator.authenticate(token)
    assert house.authenticator.held(token) is not None
    house.directory.refused["acme", kind, subject] = (NOW_S + 1) * 1_000_000
    await house.refused(token)
    assert house.authenticator.held(token) is None
    house.clock.move_s(1)
    later = COGNITO_KEY.sign({**ACCESS, "iat": NOW_S + 1, "exp": NOW_S + 100})
    assert (await house.authenticator.authenticate(later)).user_id == "u-1"


async def test_a_revoked_user_does_not_come_in_by_an_api_key_either(house):
    shown, record = api_keys.create(
        tenant_id="acme", name="ci", user_id="bot", role=Role.USER, now_us=NOW_S * 1_000_000
    )
    house.directory.keys[record.key_id] = record
    await house.authenticator.authenticate(shown)
    house.directory.refused["acme", "user", "bot"] = (NOW_S + 1) * 1_000_000
    await house.refused(shown)


async def test_a_tenant_that_revokes_its_tokens_is_obeyed_within_seconds_without_being_told(house):
    token = COGNITO_KEY.sign(ACCESS)
    await house.authenticator.authenticate(token)
    house.directory.change("acme", tokens_valid_from_us=(NOW_S + 1) * 1_000_000)
    house.clock.move_s(SERVE_S)
    assert SERVE_S <= 30
    assert await house.refused(token) == "tokens of the tenant were revoked"


@pytest.mark.parametrize(
    ("tenant_id", "kind"), [("acme", "tenant"), ("acme", "deleted"), ("acme", "issuers"), (None, "all")]
)
async def test_a_change_of_the_tenant_drops_what_is_held_of_it(house, tenant_id, kind):
    token = COGNITO_KEY.sign(ACCESS)
    await house.authenticator.authenticate(token)
    house.authenticator.on_registry_change("globex", kind if kind != "all" else "tenant")
    house.authenticator.on_registry_change("acme", "keys")
    assert house.authenticator.held(token) is not None
    house.authenticator.on_registry_change(tenant_id, kind)
    assert house.authenticator.held(token) is None


async def test_what_was_read_while_the_registry_changed_is_not_kept(house):
    house.server.publish_page(msgspec.json.encode({"keys": [OIDC_KEY.public()]}), path="/oidc", delay_s=0.1)
    token = OIDC_KEY.sign(PLAIN)
    asking = asyncio.create_task(house.authenticator.authenticate(token))
    await asyncio.sleep(0.03)
    house.authenticator.on_registry_change("acme", "tenant")
    await asking
    assert house.authenticator.held(token) is None


async def test_nothing_is_served_from_memory_while_the_registry_is_stale(house):
    token = COGNITO_KEY.sign(ACCESS)
    await house.authenticator.authenticate(token)
    house.directory.fresh = False
    assert house.authenticator.held(token) is None


async def test_a_revoked_api_key_is_refused_within_seconds_without_being_told(house):
    shown, record = api_keys.create(
        tenant_id="acme", name="ci", user_id="bot", role=Role.USER, now_us=NOW_S * 1_000_000
    )
    house.directory.keys[record.key_id] = record
    await house.authenticator.authenticate(shown)
    house.directory.keys[record.key_id] = msgspec.structs.replace(record, revoked_at_us=1)
    house.clock.move_s(SERVE_S)
    await house.refused(shown)
