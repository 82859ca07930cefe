"""From a raw token to somebody: the attack table's rows 2 to 7, with issuers that publish their keys over HTTP."""

from __future__ import annotations

import asyncio
import time

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nagaya.errors import IssuerUnreachable, TokenRefused
from nagaya.identity import api_keys
from nagaya.identity.authenticator import Authenticator
from nagaya.identity.jwks import KeyCache
from nagaya.identity.local import LocalIssuer
from nagaya.identity.verified import LIFE_S, SERVE_S, Verified, VerifiedTable, fingerprint
from nagaya.settings import Settings
from nagaya.tenancy.bindings import IssuerBinding
from nagaya.tenancy.principal import Provider, Role
from nagaya.testing.identity import IssuerKey, KeyServer, MemorySigningKeys, SetClock
from parts.directory import MemoryDirectory, tenant

NOW_S = 1_800_000_000
POOL = "https://cognito-idp.ap-northeast-1.amazonaws.com/ap-northeast-1_AbCdEf123"
OTHER_POOL = "https://cognito-idp.ap-northeast-1.amazonaws.com/ap-northeast-1_ZyXwVu987"
TID, OID = "6babcaad-604b-40ac-a9d7-9fd97c0b779f", "690222be-ff1a-4d56-abd1-7e4f7d38e474"
V1, V2 = f"https://sts.windows.net/{TID}/", f"https://login.microsoftonline.com/{TID}/v2.0"
OIDC = "https://issuer.example"

COGNITO_KEY = IssuerKey("cognito-1")
ENTRA_KEY = IssuerKey("entra-1", alg=None, issuer="https://login.microsoftonline.com/{tenantid}/v2.0")
ENTRA_V1_KEY = IssuerKey("entra-0", alg=None, issuer="https://sts.windows.net/{tenantid}/", key=COGNITO_KEY.key)
OIDC_KEY = IssuerKey("oidc-1", algorithm="ES256")

TIMES = {"iat": NOW_S, "exp": NOW_S + 3600}
ACCESS = {
    **TIMES,
    "iss": POOL,
    "sub": "u-1",
    "token_use": "access",
    "client_id": "web",
    "origin_jti": "o-1",
    "jti": "j-1",
}
ID = {**TIMES, "iss": POOL, "sub": "u-1", "token_use": "id", "aud": "web"}
ENTRA = {**TIMES, "iss": V2, "aud": "api", "tid": TID, "oid": OID, "ver": "2.0", "scp": "chat", "azp": "spa"}
ENTRA_OLD = {**TIMES, "iss": V1, "aud": "api", "tid": TID, "oid": OID, "ver": "1.0", "scp": "chat", "appid": "spa"}
ENTRA_APP = {
    **TIMES,
    "iss": V2,
    "aud": "api",
    "tid": TID,
    "oid": "app-object",
    "ver": "2.0",
    "idtyp": "app",
    "roles": ["Bot"],
}
PLAIN = {**TIMES, "iss": OIDC, "aud": "api", "sub": "u-1"}


class House:
    """Everything sign-in needs, and what a test may look at."""

    def __init__(self, server: KeyServer, client: httpx.AsyncClient) -> None:
        self.clock = SetClock(NOW_S)
        self.directory = MemoryDirectory(tenant("acme"), tenant("globex"))
        self.server = server
        self.jwks = KeyCache(client, self.clock)
        self.local = LocalIssuer(MemorySigningKeys(), self.clock, issuer="https://nagaya.local")
        self.authenticator = Authenticator(self.directory, self.jwks, self.local, self.clock, Settings())
        server.publish(COGNITO_KEY, path="/cognito")
        server.publish(ENTRA_KEY, ENTRA_V1_KEY, path="/entra")
        server.publish(OIDC_KEY, path="/oidc")
        self.bind(POOL, Provider.COGNITO, "/cognito", audiences=("web",), accept_id_tokens=True)
        for form in (V1, V2):
            self.bind(form, Provider.ENTRA, "/entra", directory=TID)
        self.bind(OIDC, Provider.OIDC, "/oidc", algorithms=("ES256",))

    def bind(self, issuer: str, provider: Provider, path: str, **fields) -> None:
        made = {"tenant_id": "acme", "audiences": ("api",), "jwks_url": self.server.url(path), **fields}
        self.directory.bindings.append(IssuerBinding(issuer=issuer, provider=provider, **made))

    async def refused(self, token: str, purpose="access") -> str:
        with pytest.raises(TokenRefused) as refused:
            await self.authenticator.authenticate(token, purpose=purpose)
        assert self.authenticator.held(token) is None
        assert refused.value.status == 401
        return refused.value.reason

    @property
    def fetches(self) -> int:
        return self.server.requests.total()


@pytest.fixture
async def house():
    async with KeyServer() as server, httpx.AsyncClient(trust_env=False) as client:
        made = House(server, client)
        yield made
        await made.jwks.close()


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
    house.local.tenant_of("https://nagaya.local/acme")
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


async def test_a_warm_check_takes_microseconds(house):
    token = COGNITO_KEY.sign(ACCESS)
    await house.authenticator.authenticate(token)
    started = time.perf_counter()
    for _ in range(1000):
        assert house.authenticator.held(token) is not None
    assert time.perf_counter() - started < 0.5  # far above the figure, below any signature


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
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
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
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_garbage_is_refused_and_nothing_else_happens(house, raw, purpose):
    await house.refused(raw, purpose)
    assert house.fetches == 0
