"""From a raw token to somebody: every kind of token, the memory of verified ones, and garbage."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nagaya.errors import TokenRefused
from nagaya.identity import api_keys, authenticator
from nagaya.identity.verified import LIFE_S, SERVE_S, Verified, VerifiedTable, fingerprint
from nagaya.tenancy.principal import Provider, Role
from parts.sign_in import (
    ACCESS,
    COGNITO_KEY,
    ENTRA,
    ENTRA_APP,
    ENTRA_KEY,
    ENTRA_OLD,
    ENTRA_V1_KEY,
    ID,
    NOW_S,
    OID,
    OIDC,
    OIDC_KEY,
    PLAIN,
    POOL,
    TID,
    V1,
    V2,
)


async def test_each_kind_of_token_speaks_for_somebody_of_the_bound_tenant(house):
    shown, record = api_keys.create(
        tenant_id="acme", name="ci", user_id="bot", role=Role.USER, now_us=NOW_S * 1_000_000
    )
    house.directory.keys[record.key_id] = record
    cases = {
        COGNITO_KEY.sign(ACCESS, typ=None): (Provider.COGNITO, "u-1", False),
        ENTRA_KEY.sign(ENTRA): (Provider.ENTRA, f"{TID}:{OID}", False),
        ENTRA_V1_KEY.sign(ENTRA_OLD): (Provider.ENTRA, f"{TID}:{OID}", False),
        ENTRA_KEY.sign(ENTRA_APP): (Provider.ENTRA, f"{TID}:app-object", True),
        OIDC_KEY.sign(PLAIN, typ="at+jwt"): (Provider.OIDC, "u-1", False),
        await house.local.mint(house.directory.held["acme"], "mio"): (Provider.LOCAL, "mio", False),
        shown: (Provider.API_KEY, "bot", True),
    }
    for token, expected in cases.items():
        for _ in range(2):
            got = await house.authenticator.authenticate(token)
            assert (got.provider, got.user_id, got.is_application) == expected
            assert got.tenant_id == "acme"
            assert house.authenticator.held(token) == got


async def test_an_operators_key_enters_no_tenant_and_is_held_like_any_other(house):
    shown, record = api_keys.create(
        tenant_id=None, name="op", user_id="op", role=Role.OPERATOR, now_us=NOW_S * 1_000_000
    )
    house.directory.keys[record.key_id] = record
    assert (await house.authenticator.authenticate(shown)).tenant_id is None
    house.authenticator.on_registry_change("acme", "api_keys")
    assert house.authenticator.held(shown) is not None
    house.authenticator.on_registry_change(None, "api_keys")
    assert house.authenticator.held(shown) is None


# --- tokens verified lately --------------------------------------------------------------------------------------


async def test_a_held_token_is_not_served_past_its_end(house):
    token = COGNITO_KEY.sign({**ACCESS, "exp": NOW_S + 2})
    await house.authenticator.authenticate(token)
    house.clock.set_wall_s(NOW_S + 2 + 59)
    assert house.authenticator.held(token) is not None
    house.clock.set_wall_s(NOW_S + 2 + 60)
    assert house.authenticator.held(token) is None
    assert await house.refused(token) == "token has expired"


async def test_an_entry_is_renewed_by_asking_for_its_tenant_and_ends_after_a_minute(house):
    token = COGNITO_KEY.sign(ACCESS)
    await house.authenticator.authenticate(token)
    house.server.publish(OIDC_KEY, path="/cognito")  # the issuer withdraws its key
    for _ in range(int(LIFE_S / SERVE_S) - 1):
        house.clock.move_s(SERVE_S)
        assert house.authenticator.held(token) is None
        house.directory.asked.clear()
        await house.authenticator.authenticate(token)
        assert house.directory.asked == ["tenant acme"]
        assert house.authenticator.held(token) is not None
    house.clock.move_s(SERVE_S)
    house.directory.asked.clear()
    await house.authenticator.authenticate(token)
    assert house.directory.asked == [f"issuers {POOL}", "tenant acme"]


async def test_an_entry_that_was_dropped_while_it_was_renewed_is_verified_anew(house):
    token = COGNITO_KEY.sign(ACCESS)
    await house.authenticator.authenticate(token)
    house.clock.move_s(SERVE_S)
    read = house.directory.tenant

    async def slow(tenant_id):
        house.authenticator.on_registry_change("acme", "tenant")
        return await read(tenant_id)

    house.directory.tenant = slow
    assert (await house.authenticator.authenticate(token)).user_id == "u-1"
    assert house.authenticator.held(token) is None


async def test_an_expired_entry_is_dropped_and_judged_again(house):
    token = COGNITO_KEY.sign({**ACCESS, "exp": NOW_S + 2})
    await house.authenticator.authenticate(token)
    house.clock.move_s(100)
    await house.refused(token)
    assert len(house.authenticator._table) == 0


async def test_the_table_is_bounded_and_holds_no_token(house):
    principal = await house.authenticator.authenticate(COGNITO_KEY.sign(ACCESS))
    table = VerifiedTable(limit=3)
    for number in range(10):
        table.put(fingerprint(str(number)), Verified(principal, 0, 0.0))
    table.put(fingerprint("9"), Verified(principal, 0, 0.0))
    assert len(table) == 3
    assert table.get(fingerprint("6")) is None
    assert table.get(fingerprint("7")) is not None
    table.drop_tenant("globex")
    table.drop(fingerprint("absent"))
    table.drop(fingerprint("7"))
    assert len(table) == 2
    table.drop_tenant("acme")
    assert len(table) == 0


async def test_a_huge_or_odd_text_is_never_held(house):
    assert house.authenticator.held("x" * 20_000) is None
    assert house.authenticator.held("\ud800") is None
    await house.refused("\ud800")


async def test_a_warm_check_checks_no_signature_and_asks_nobody(house, monkeypatch):
    token = COGNITO_KEY.sign(ACCESS)
    await house.authenticator.authenticate(token)
    house.directory.asked.clear()
    checked: list[object] = []
    monkeypatch.setattr(authenticator, "check_signature", lambda *given: checked.append(given))
    for _ in range(100):
        assert house.authenticator.held(token) == await house.authenticator.authenticate(token)
    assert (checked, house.directory.asked, house.fetches) == ([], [], 1)


@pytest.mark.parametrize("claim", ["exp", "iat", "nbf", "iat_us"])
@pytest.mark.parametrize(
    "number",
    ["9" * 400, "-" + "9" * 400, "9" * 4301, "9e400", "-9e400", "NaN", "Infinity", "-Infinity", "1e308", "1e-400"],
)
async def test_a_time_that_is_no_moment_is_refused_whatever_number_it_is(house, claim, number):
    local = f"https://nagaya.local/{'acme'}"
    for key, base in (
        (COGNITO_KEY, ACCESS),
        (ENTRA_KEY, ENTRA),
        (OIDC_KEY, PLAIN),
        (OIDC_KEY, {**PLAIN, "iss": local, "aud": "nagaya", "role": "user", "jti": "j-1"}),
    ):
        if claim == "iat_us" and base["iss"] != local:
            continue
        payload = json.dumps({**base, claim: "#"}).replace('"#"', number).encode()
        await house.refused(key.sign(payload, alg="ES256" if key is OIDC_KEY else "RS256"))


# --- garbage -----------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
claim_names = st.sampled_from(
    [
        *(
            "iss",
            "aud",
            "sub",
            "exp",
            "iat",
            "nbf",
            "tid",
            "oid",
            "ver",
            "scp",
            "roles",
            "azp",
            "token_use",
            "client_id",
        ),
        *("scope", "groups", "cognito:groups", "amr", "acr", "idtyp", "jti", "sid", "role", "iat_us", "typ", "nonce"),
    ]
)


@given(
    base=st.sampled_from([ACCESS, ID, ENTRA, ENTRA_OLD, ENTRA_APP, PLAIN]),
    change=st.dictionaries(claim_names, json_values, min_size=1, max_size=4),
    purpose=st.sampled_from(["access", "login"]),
)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=150
)
async def test_any_claims_lead_to_somebody_of_the_bound_tenant_or_to_a_refusal(house, base, change, purpose):
    key = {POOL: COGNITO_KEY, V2: ENTRA_KEY, V1: ENTRA_V1_KEY, OIDC: OIDC_KEY}[base["iss"]]
    try:
        got = await house.authenticator.authenticate(key.sign({**base, **change}), purpose=purpose)
    except TokenRefused:
        return
    assert got.tenant_id == "acme"
    assert got.role is not Role.OPERATOR


@given(
    raw=st.text(max_size=300) | st.binary(max_size=100).map(lambda b: f"nk_{b.hex()}"),
    purpose=st.sampled_from(["access", "login"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
async def test_garbage_is_refused_and_nothing_else_happens(house, raw, purpose):
    await house.refused(raw, purpose)
    assert house.fetches == 0
