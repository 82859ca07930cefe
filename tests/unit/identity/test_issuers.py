"""Cognito, Entra and OIDC tokens, judged by tables (security attack rows 2 and 5)."""

from __future__ import annotations

import pytest

from nagaya.errors import TokenRefused
from nagaya.identity import cognito, entra, oidc
from nagaya.tenancy.bindings import IssuerBinding
from nagaya.tenancy.principal import Principal, Provider, Role, Scope

NOW_S = 1_800_000_000
TIMES = {"iat": NOW_S, "exp": NOW_S + 3600}
POOL = "https://cognito-idp.ap-northeast-1.amazonaws.com/ap-northeast-1_AbCdEf123"
TID = "6babcaad-604b-40ac-a9d7-9fd97c0b779f"
OID = "690222be-ff1a-4d56-abd1-7e4f7d38e474"
V1, V2 = f"https://sts.windows.net/{TID}/", f"https://login.microsoftonline.com/{TID}/v2.0"
ISSUER = "https://issuer.example"


def bound(issuer: str, provider: Provider, **fields) -> IssuerBinding:
    made = {"issuer": issuer, "tenant_id": "acme", "provider": provider, "audiences": ("api", "web")}
    return IssuerBinding(**{**made, "jwks_url": f"{issuer}/keys", **fields})


def without(claims: dict) -> dict:
    return {name: value for name, value in claims.items() if value is not ...}


# --- Cognito -----------------------------------------------------------------------------------------------------

COGNITO_ACCESS = {
    **TIMES,
    "iss": POOL,
    "sub": "u-1",
    "token_use": "access",
    "client_id": "web",
    "scope": "openid",
    "username": "mio",
    "jti": "j-1",
    "origin_jti": "o-1",
}
COGNITO_ID = {
    **TIMES,
    "iss": POOL,
    "sub": "u-1",
    "token_use": "id",
    "aud": "web",
    "cognito:username": "mio",
    "email": "mio@example.jp",
    "cognito:groups": ["admins"],
}


def from_cognito(claims: dict, purpose="access", **fields) -> Principal:
    binding = bound(POOL, Provider.COGNITO, **fields)
    now_us = NOW_S * 1_000_000
    return cognito.principal_of(without(claims), binding, now_us=now_us, skew_s=60, longest_s=86_400, purpose=purpose)


def test_a_cognito_access_token_speaks_for_its_user_in_the_bindings_tenant():
    got = from_cognito({**COGNITO_ACCESS, "custom:tenant_id": "globex", "tenant_id": "globex"})
    assert (got.tenant_id, got.user_id, got.username, got.role) == ("acme", "u-1", "mio", Role.USER)
    assert (got.session_id, got.token_id, got.is_application, got.provider) == ("o-1", "j-1", False, Provider.COGNITO)


def test_a_cognito_id_token_signs_in_where_the_binding_takes_it():
    got = from_cognito(COGNITO_ID, "login", accept_id_tokens=True, role_claims={"admins": Role.TENANT_ADMIN})
    assert (got.email, got.username, got.role) == ("mio@example.jp", "mio", Role.TENANT_ADMIN)


def test_a_cognito_client_without_a_user_is_an_application():
    claims = {**COGNITO_ACCESS, "sub": "web", "username": ..., "scope": "api/nagaya.read"}
    got = from_cognito(claims, required_scope="api/nagaya.read")
    assert got.is_application
    assert got.scopes == {Scope.READ}


@pytest.mark.parametrize(
    ("claims", "purpose", "fields"),
    [
        (COGNITO_ID, "access", {"accept_id_tokens": True}),
        (COGNITO_ACCESS, "login", {"accept_id_tokens": True}),
        (COGNITO_ID, "login", {}),
        ({**COGNITO_ACCESS, "token_use": ...}, "access", {}),
        ({**COGNITO_ACCESS, "token_use": ["access"]}, "access", {}),
        ({**COGNITO_ACCESS, "client_id": "stranger"}, "access", {}),
        ({**COGNITO_ACCESS, "client_id": ..., "aud": "web"}, "access", {}),
        ({**COGNITO_ACCESS, "client_id": ["web"]}, "access", {}),
        ({**COGNITO_ID, "aud": "stranger", "client_id": "web"}, "login", {"accept_id_tokens": True}),
        ({**COGNITO_ACCESS, "iss": POOL + "/"}, "access", {}),
        ({**COGNITO_ACCESS, "iss": POOL[:-1]}, "access", {}),
        ({**COGNITO_ACCESS, "iss": POOL.upper()}, "access", {}),
        ({**COGNITO_ACCESS, "sub": ...}, "access", {}),
        ({**COGNITO_ACCESS, "exp": ...}, "access", {}),
        ({**COGNITO_ACCESS, "cognito:groups": "admins"}, "access", {}),
        (COGNITO_ACCESS, "access", {"required_scope": "api/nagaya.read"}),
    ],
)
def test_a_cognito_token_of_another_kind_client_or_pool_is_refused(claims, purpose, fields):
    with pytest.raises(TokenRefused):
        from_cognito(claims, purpose, **fields)


# --- Entra -------------------------------------------------------------------------------------------------------

ENTRA_V2 = {
    **TIMES,
    "iss": V2,
    "aud": "api",
    "tid": TID,
    "oid": OID,
    "sub": "pairwise",
    "ver": "2.0",
    "azp": "spa",
    "scp": "access_as_user",
    "preferred_username": "mio@contoso.example",
    "uti": "t-1",
    "sid": "s-1",
}
ENTRA_V1 = {
    **TIMES,
    "iss": V1,
    "aud": "api",
    "tid": TID,
    "oid": OID,
    "ver": "1.0",
    "appid": "spa",
    "scp": "access_as_user",
    "upn": "mio@contoso.example",
    "amr": ["pwd", "mfa"],
}
ENTRA_APP = {
    **TIMES,
    "iss": V2,
    "aud": "api",
    "tid": TID,
    "oid": OID,
    "ver": "2.0",
    "azp": "daemon",
    "idtyp": "app",
    "roles": ["Nagaya.Member"],
}
ENTRA_ID = {**TIMES, "iss": V2, "aud": "web", "tid": TID, "oid": OID, "ver": "2.0", "nonce": "n", "roles": ["Boss"]}


def from_entra(claims: dict, purpose="access", **fields) -> Principal:
    fields = {"issuer": V2, "directory": TID, **fields}
    binding = bound(fields.pop("issuer"), Provider.ENTRA, **fields)
    now_us = NOW_S * 1_000_000
    return entra.principal_of(without(claims), binding, now_us=now_us, skew_s=60, longest_s=86_400, purpose=purpose)


def test_an_entra_user_is_the_directory_and_the_object_and_never_a_name():
    for claims, issuer in ((ENTRA_V2, V2), (ENTRA_V1, V1)):
        got = from_entra({**claims, "email": "ceo@contoso.example"}, issuer=issuer)
        assert got.user_id == f"{TID}:{OID}"
        assert (got.tenant_id, got.username, got.is_application) == ("acme", "mio@contoso.example", False)
    assert got.mfa
    assert from_entra(ENTRA_V2).session_id == "s-1"
    assert from_entra(ENTRA_V2).token_id == "t-1"
    assert not from_entra(ENTRA_V2).mfa


def test_an_entra_application_is_told_by_idtyp():
    got = from_entra(ENTRA_APP, role_claims={"Nagaya.Member": Role.MEMBER}, required_scope="Nagaya.Member")
    assert got.is_application
    assert got.role is Role.MEMBER


def test_an_entra_id_token_signs_in_where_the_binding_takes_it():
    got = from_entra(ENTRA_ID, "login", accept_id_tokens=True, role_claims={"Boss": Role.TENANT_ADMIN})
    assert got.role is Role.TENANT_ADMIN


@pytest.mark.parametrize(
    ("claims", "purpose", "fields"),
    [
        ({**ENTRA_V2, "tid": "other"}, "access", {}),
        ({**ENTRA_V2, "tid": ...}, "access", {}),
        ({**ENTRA_V2, "oid": ...}, "access", {}),
        ({**ENTRA_V2, "aud": "stranger"}, "access", {}),
        ({**ENTRA_V2, "aud": ["api"]}, "access", {}),
        ({**ENTRA_V2, "ver": "1.0"}, "access", {}),
        ({**ENTRA_V2, "ver": ...}, "access", {}),
        ({**ENTRA_V2, "ver": 2.0}, "access", {}),
        ({**ENTRA_V2, "iss": V1}, "access", {}),
        ({**ENTRA_V1, "ver": "2.0"}, "access", {"issuer": V1}),
        (ENTRA_V2, "access", {"directory": None}),
        (ENTRA_V2, "access", {"directory": "other"}),
        (ENTRA_V2, "access", {"required_scope": "admin"}),
        ({**ENTRA_V2, "scp": ...}, "access", {}),
        ({**ENTRA_V2, "scp": ..., "roles": ["Boss"]}, "access", {}),
        ({**ENTRA_V2, "idtyp": "device"}, "access", {}),
        ({**ENTRA_APP, "scp": "access_as_user"}, "access", {}),
        ({**ENTRA_APP, "roles": ...}, "access", {}),
        ({**ENTRA_APP, "idtyp": "user"}, "access", {}),
        (ENTRA_ID, "access", {"accept_id_tokens": True}),
        (ENTRA_ID, "login", {}),
        (ENTRA_V2, "login", {"accept_id_tokens": True}),
        (ENTRA_APP, "login", {"accept_id_tokens": True}),
    ],
)
def test_an_entra_token_of_another_directory_version_kind_or_audience_is_refused(claims, purpose, fields):
    with pytest.raises(TokenRefused):
        from_entra(claims, purpose, **fields)


@pytest.mark.parametrize(
    ("key_issuer", "fits"),
    [
        (None, True),
        (V2, True),
        ("https://login.microsoftonline.com/{tenantid}/v2.0", True),
        (V1, False),
        ("https://sts.windows.net/{tenantid}/", False),
        ("https://login.microsoftonline.com/9188040d-6c67-4c5b-b112-36a304b66dad/v2.0", False),
        ("", False),
    ],
)
def test_a_key_signs_only_for_the_issuer_it_names(key_issuer, fits):
    if fits:
        entra.check_key_issuer(key_issuer, ENTRA_V2)
    else:
        with pytest.raises(TokenRefused):
            entra.check_key_issuer(key_issuer, ENTRA_V2)


# --- OpenID Connect ----------------------------------------------------------------------------------------------

PLAIN = {**TIMES, "iss": ISSUER, "aud": "api", "sub": "u-1"}


def from_oidc(claims: dict, purpose="access", header_type=None, **fields) -> Principal:
    binding = bound(ISSUER, Provider.OIDC, **fields)
    return oidc.principal_of(
        without(claims),
        binding,
        now_us=NOW_S * 1_000_000,
        skew_s=60,
        longest_s=86_400,
        purpose=purpose,
        header_type=header_type,
    )


@pytest.mark.parametrize(
    ("claims", "purpose", "header_type"),
    [
        (PLAIN, "access", None),
        (PLAIN, "access", "at+jwt"),
        ({**PLAIN, "aud": ["api"]}, "access", "jwt"),
        ({**PLAIN, "aud": ["userinfo", "api"], "azp": "web", "scope": "openid"}, "access", None),
        ({**PLAIN, "azp": "some-app"}, "access", None),
        ({**PLAIN, "typ": "Bearer", "nonce": "n"}, "access", None),
        (PLAIN, "login", None),
        ({**PLAIN, "nonce": "n"}, "login", None),
        ({**PLAIN, "typ": "ID"}, "login", None),
        ({**PLAIN, "aud": ["api", "web"], "azp": "web", "at_hash": "h"}, "login", "jwt"),
    ],
)
def test_an_oidc_token_for_us_is_taken_for_what_it_is(claims, purpose, header_type):
    assert from_oidc(claims, purpose, header_type, accept_id_tokens=True).user_id == "u-1"


def test_an_oidc_token_brings_groups_session_and_scopes():
    claims = {**PLAIN, "groups": ["staff"], "roles": ["x"], "session": "s-9", "scp": ["nagaya.write"], "jti": "j"}
    got = from_oidc(claims, role_claims={"staff": Role.MEMBER}, required_scope="nagaya.write")
    assert (got.role, got.groups, got.session_id, got.scopes) == (Role.MEMBER, ("staff", "x"), "s-9", {Scope.WRITE})


@pytest.mark.parametrize(
    ("claims", "purpose", "header_type", "fields"),
    [
        ({**PLAIN, "aud": "stranger"}, "access", None, {}),
        ({**PLAIN, "aud": ...}, "access", None, {}),
        ({**PLAIN, "aud": [["api"]]}, "access", None, {}),
        ({**PLAIN, "aud": {"api": 1}}, "access", None, {}),
        ({**PLAIN, "aud": ["api", "other"]}, "access", None, {}),
        ({**PLAIN, "aud": ["api", "other"], "azp": "stranger"}, "access", None, {}),
        ({**PLAIN, "aud": ["web", "other"]}, "login", None, {"accept_id_tokens": True}),
        ({**PLAIN, "aud": "web", "azp": "stranger"}, "login", None, {"accept_id_tokens": True}),
        ({**PLAIN, "iss": ISSUER + "/"}, "access", None, {}),
        ({**PLAIN, "sub": ...}, "access", None, {}),
        ({**PLAIN, "sub": 7}, "access", None, {}),
        ({**PLAIN, "nonce": "n"}, "access", None, {"accept_id_tokens": True}),
        ({**PLAIN, "typ": "ID"}, "access", None, {"accept_id_tokens": True}),
        ({**PLAIN, "token_use": "id"}, "access", None, {"accept_id_tokens": True}),
        (PLAIN, "login", None, {}),
        (PLAIN, "login", "at+jwt", {"accept_id_tokens": True}),
        ({**PLAIN, "scope": "openid"}, "login", None, {"accept_id_tokens": True}),
        (PLAIN, "access", None, {"required_scope": "chat"}),
    ],
)
def test_an_oidc_token_of_another_audience_party_or_kind_is_refused(claims, purpose, header_type, fields):
    with pytest.raises(TokenRefused):
        from_oidc(claims, purpose, header_type, **fields)
