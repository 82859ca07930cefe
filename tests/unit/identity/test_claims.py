"""What every token must say, judged by tables: times, scopes, roles, second factors."""

from __future__ import annotations

import math

import pytest

from nagaya.errors import TokenRefused
from nagaya.identity import claims as read
from nagaya.tenancy.bindings import IssuerBinding
from nagaya.tenancy.principal import ALL_SCOPES, Provider, Role, Scope

NOW_S = 1_800_000_000
GOOD = {"iat": NOW_S - 10, "exp": NOW_S + 3590}


def judge(**changed):
    claims = {name: value for name, value in {**GOOD, **changed}.items() if value is not ...}
    return read.check_lifetime(claims, now_us=NOW_S * 1_000_000, skew_s=60, longest_s=86_400)


def test_a_token_ends_when_it_says_plus_the_skew():
    lifetime = judge()
    assert lifetime.issued_at_us == (NOW_S - 10) * 1_000_000
    assert lifetime.ends_at_us == (NOW_S + 3650) * 1_000_000


@pytest.mark.parametrize(
    "changed",
    [
        {"exp": NOW_S - 59},
        {"iat": NOW_S + 60, "exp": NOW_S + 3600},
        {"nbf": NOW_S + 60},
        {"nbf": NOW_S - 5.5},
        {"iat": NOW_S - 10.25},
        {"exp": NOW_S - 10 + 86_400},
    ],
)
def test_a_clock_that_differs_by_less_than_a_minute_is_forgiven(changed):
    judge(**{"iat": NOW_S - 3600, **changed} if changed.get("exp", NOW_S) < NOW_S else changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"iat": NOW_S - 3600, "exp": NOW_S - 60},
        {"iat": NOW_S + 61},
        {"nbf": NOW_S + 61},
        {"exp": NOW_S - 10 + 86_401},
        {"exp": NOW_S - 10},
        {"exp": NOW_S - 20},
        {"exp": ...},
        {"iat": ...},
        {"iat": None},
        {"exp": True},
        {"iat": True},
        {"nbf": False},
        {"nbf": None},
        {"exp": str(NOW_S + 60)},
        {"exp": [NOW_S + 60]},
        {"exp": math.inf},
        {"exp": math.nan},
        {"iat": -math.inf},
        {"iat": -1},
        {"iat": 0},
        {"exp": 10**30},
        {"exp": 10**400},
        {"nbf": 10**400},
        {"iat": -(10**400)},
        {"exp": (NOW_S + 3600) * 1000, "iat": NOW_S * 1000},
    ],
)
def test_a_token_outside_its_time_or_without_one_is_refused(changed):
    with pytest.raises(TokenRefused):
        judge(**changed)


@pytest.mark.parametrize("value", ["", 5, True, [], {}, "a\nb", "a\x00", "\ud800", "x" * 1025])
def test_a_claim_that_is_no_plain_text_is_refused(value):
    for reader in (read.text, read.optional_text):
        with pytest.raises(TokenRefused):
            reader({"sub": value}, "sub")


def test_an_absent_claim_is_refused_only_where_it_is_required():
    assert read.optional_text({}, "sub") is None
    with pytest.raises(TokenRefused):
        read.text({}, "sub")
    assert read.text({"sub": "山田 太郎"}, "sub") == "山田 太郎"


@pytest.mark.parametrize("value", ["a", 5, {}, ["a", 5], [None], ["a"] * 1001, ["\ud800"], ["a\n"], ["x" * 1025]])
def test_a_claim_that_is_no_list_of_texts_is_refused(value):
    with pytest.raises(TokenRefused):
        read.texts({"groups": value}, "groups")


def test_scopes_that_could_not_be_repeated_in_an_answer_are_refused():
    with pytest.raises(TokenRefused):
        read.words({"scope": "openid \udfff"}, "scope")


def test_scopes_come_as_words_or_as_a_list():
    assert read.words({"scope": "a b"}, "scope") == ("a", "b")
    assert read.words({"scope": ["a", "b"]}, "scope") == ("a", "b")
    assert read.words({"scope": ""}, "scope") == read.words({}, "scope") == ()
    assert read.audiences({"aud": "a"}) == ("a",)
    assert read.audiences({"aud": ["a", "b"]}) == ("a", "b")
    assert read.audiences({}) == ()


@pytest.mark.parametrize(
    ("granted", "scopes"),
    [
        ((), ALL_SCOPES),
        (("openid", "email"), ALL_SCOPES),
        (("nagaya.read",), {Scope.READ}),
        (("openid", "nagaya.read", "nagaya.write"), {Scope.READ, Scope.WRITE}),
        (("https://api.example/nagaya.read",), {Scope.READ}),
        (("nagaya.admin",), {Scope.ADMIN}),
        (("nagaya.everything",), set()),
    ],
)
def test_a_token_that_names_our_scopes_has_no_others(granted, scopes):
    assert read.scopes_of(granted) == scopes


def binding(**fields) -> IssuerBinding:
    return IssuerBinding(
        **{
            "issuer": "https://issuer.example",
            "tenant_id": "acme",
            "provider": Provider.OIDC,
            "audiences": ("api",),
            "jwks_url": "https://issuer.example/keys",
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("groups", "role"),
    [
        ((), Role.USER),
        (("strangers",), Role.USER),
        (("staff",), Role.MEMBER),
        (("staff", "bosses"), Role.TENANT_ADMIN),
        (("bosses", "staff"), Role.TENANT_ADMIN),
    ],
)
def test_the_highest_role_among_the_groups_counts(groups, role):
    mapped = binding(role_claims={"staff": Role.MEMBER, "bosses": Role.TENANT_ADMIN})
    assert read.role_of(mapped, groups) is role


def test_no_group_and_no_default_makes_an_operator():
    for bad in (binding(role_claims={"root": Role.OPERATOR}), binding(default_role=Role.OPERATOR)):
        with pytest.raises(TokenRefused):
            read.role_of(bad, ["root"])


def test_a_group_of_a_higher_default_is_no_lowering_by_accident():
    assert read.role_of(binding(default_role=Role.MEMBER), ["unmapped"]) is Role.MEMBER


@pytest.mark.parametrize(
    ("claims", "strong"),
    [
        ({}, False),
        ({"amr": ["pwd"]}, False),
        ({"amr": ["otp"]}, False),
        ({"amr": ["pwd", "mfa"]}, True),
        ({"amr": ["ngcmfa"]}, True),
        ({"amr": ["pwd", "otp"]}, True),
        ({"amr": ["pwd", "pin"]}, False),
        ({"amr": ["hwk", "face"]}, True),
        ({"amr": "mfa"}, False),
        ({"amr": [["mfa"], 5]}, False),
        ({"acr": "1"}, False),
        ({"acr": ["https://refeds.org/profile/mfa"]}, False),
        ({"acr": "https://refeds.org/profile/mfa"}, True),
        ({"acr": "http://schemas.openid.net/pape/policies/2007/06/multi-factor"}, True),
    ],
)
def test_a_second_factor_counts_only_where_it_is_said(claims, strong):
    assert read.has_second_factor(claims) is strong


def test_a_required_scope_must_be_granted():
    read.check_required_scope(binding(), ())
    read.check_required_scope(binding(required_scope="chat"), ("openid", "chat"))
    with pytest.raises(TokenRefused):
        read.check_required_scope(binding(required_scope="chat"), ("chats",))
