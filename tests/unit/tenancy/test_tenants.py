"""A tenant's states, and what may be changed about it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from nagaya.errors import (
    Forbidden,
    InvalidValue,
    NoTenant,
    TenantExpired,
    TenantNotOpen,
    TenantSuspended,
    TransitionRefused,
    UnknownParameter,
)
from nagaya.tenancy.changes import changed_tenant, check_fields, parse_texts
from nagaya.tenancy.principal import Entrance, Principal, Provider, Role, Scope, mint_entrance
from nagaya.tenancy.recent import Recent
from nagaya.tenancy.tenant import OPEN_STATES, TRANSITIONS, Tenant, TenantState, Tier, check_transition

NOW_US = 1_800_000_000_000_000


def make(**fields: Any) -> Tenant:
    plain: dict[str, Any] = {
        "id": "acme", "name": "Acme KK", "state": TenantState.ACTIVE, "created_at_us": NOW_US, "store": "sqlite:///tenants",
    }  # fmt: skip
    return Tenant(**(plain | fields))


def principal(**fields: Any) -> Principal:
    plain: dict[str, Any] = {
        "provider": Provider.LOCAL, "issuer": "https://nagaya.local", "user_id": "mio", "tenant_id": "acme", "role": Role.USER,
        "issued_at_us": 0, "expires_at_us": NOW_US,
    }  # fmt: skip
    return Principal(**(plain | fields))


# --- states ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", TenantState)
def test_only_open_states_let_anybody_in(state: TenantState) -> None:
    tenant = make(state=state)
    if state in OPEN_STATES:
        tenant.check_open(NOW_US)
    else:
        with pytest.raises(TenantSuspended if state is TenantState.SUSPENDED else TenantNotOpen):
            tenant.check_open(NOW_US)


def test_an_expired_tenant_is_shut_from_the_very_microsecond() -> None:
    tenant = make(expires_at_us=NOW_US)
    tenant.check_open(NOW_US - 1)
    with pytest.raises(TenantExpired):
        tenant.check_open(NOW_US)


@pytest.mark.parametrize("state", TenantState)
@pytest.mark.parametrize("wanted", TenantState)
def test_a_state_follows_only_where_the_table_says(state: TenantState, wanted: TenantState) -> None:
    if wanted in TRANSITIONS[state]:
        check_transition(state, wanted)
    else:
        with pytest.raises(TransitionRefused) as refused:
            check_transition(state, wanted)
        assert refused.value.facts["state"] == state.value


class LifeOfATenant(RuleBasedStateMachine):
    """Whatever is asked for in whatever order, a deleted tenant stays deleted and a closed one stays closed."""

    def __init__(self) -> None:
        super().__init__()
        self.state = TenantState.ONBOARDING
        self.left_onboarding = False

    @rule(wanted=st.sampled_from(TenantState))
    def ask(self, wanted: TenantState) -> None:
        before = self.state
        try:
            check_transition(before, wanted)
        except TransitionRefused:
            return
        assert before is not TenantState.DELETED
        assert not (self.left_onboarding and wanted is TenantState.ONBOARDING)
        if wanted is TenantState.DELETED:
            assert before in (TenantState.ONBOARDING, TenantState.OFFBOARDING)
        if before is TenantState.OFFBOARDING:
            assert wanted not in OPEN_STATES
        self.state = wanted
        self.left_onboarding = True

    @precondition(lambda self: self.state is TenantState.DELETED)
    @rule()
    def nothing_follows_deletion(self) -> None:
        assert not TRANSITIONS[self.state]


TestLifeOfATenant = LifeOfATenant.TestCase


# --- changes ---------------------------------------------------------------------------------------------------


def test_a_change_raises_the_epoch_and_touches_nothing_else() -> None:
    new = changed_tenant(make(epoch=4), {"tier": "enterprise", "mfa_required": True}, now_us=NOW_US)
    assert new == make(epoch=5, tier=Tier.ENTERPRISE, mfa_required=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "globex"), ("state", "active"), ("epoch", 0), ("created_at_us", 1), ("store", "sqlite:///elsewhere"),
        ("blobs", "file:///x"), ("isolation", "dedicated_instance"), ("key_service", "awskms://k"),
    ],
)  # fmt: skip
def test_what_changes_another_way_is_refused_and_the_way_is_named(field: str, value: object) -> None:
    with pytest.raises(InvalidValue, match="cannot be set here") as refused:
        changed_tenant(make(), {field: value}, now_us=NOW_US)
    assert refused.value.param == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""), ("name", "x" * 201), ("name", "a\nb"), ("name", "\ud800"), ("name", "   "), ("name", 5), ("tier", "gold"),
        ("models", []), ("models", ["gpt"]), ("models", ["builtin://"] * 17), ("models", ["openai://me:secret@host/m"]),
        ("models", ["http://[broken"]), ("models", ["x://" + "y" * 2000]), ("models", ["builtin://\n"]), ("models", "builtin://"),
        ("hosts", ["Chat.Example.com"]), ("hosts", ["a b"]), ("hosts", ["a", "a"]), ("hosts", ["-a.com"]), ("hosts", ["a.com:80"]),
        ("hosts", [f"h{n}" for n in range(65)]), ("hosts", ["x" * 64]), ("hosts", ["a.com\n"]),
        ("regions", ["AP NORTH"]), ("regions", ["r"] * 65), ("max_token_lifetime_s", 59), ("max_token_lifetime_s", 10**9),
        ("requests_per_minute", 0), ("requests_per_minute", 10**8), ("requests_per_minute", True), ("requests_per_minute", 1.5),
        ("expires_at_us", -1), ("expires_at_us", 10**18), ("mfa_required", "yes"), ("mfa_required", None),
        ("tokens_valid_from_us", NOW_US + 10**12), ("tokens_valid_from_us", -1),
    ],
)  # fmt: skip
def test_a_senseless_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidValue) as refused:
        changed_tenant(make(), {field: value}, now_us=NOW_US)
    assert refused.value.param == field


def test_a_field_that_does_not_exist_is_named() -> None:
    with pytest.raises(UnknownParameter, match="colour"):
        changed_tenant(make(), {"colour": "red"}, now_us=NOW_US)


def test_refused_tokens_are_never_let_in_again() -> None:
    tenant = changed_tenant(make(), {"tokens_valid_from_us": NOW_US}, now_us=NOW_US)
    with pytest.raises(InvalidValue, match="only rises"):
        changed_tenant(tenant, {"tokens_valid_from_us": NOW_US - 1}, now_us=NOW_US)
    # Also where the clock was set back meanwhile, other changes go on working.
    assert changed_tenant(tenant, {"name": "New"}, now_us=0).name == "New"


def test_a_whole_tenant_with_everything_set_is_accepted() -> None:
    check_fields(
        make(
            blobs="file:///blobs", hosts=("chat.example.com", "a"), regions=("ap-northeast-1",), expires_at_us=NOW_US,
            requests_per_minute=60, models=("builtin://", "openai://gpt-5"),
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ({"expires_at": "2027-04-01T09:00:00+09:00"}, {"expires_at_us": 1_806_537_600_000_000}),
        ({"expires_at": "2027-04-01"}, {"expires_at_us": 1_806_537_600_000_000}),
        ({"expires_at": "none"}, {"expires_at_us": None}),
        ({"models": "builtin://, openai://gpt"}, {"models": ["builtin://", "openai://gpt"]}),
        ({"hosts": "none"}, {"hosts": []}),
        ({"mfa_required": "Yes", "sso_required": "false"}, {"mfa_required": True, "sso_required": False}),
        ({"requests_per_minute": "60"}, {"requests_per_minute": 60}),
        ({"requests_per_minute": "none"}, {"requests_per_minute": None}),
        ({"tier": "standard", "name": "none"}, {"tier": "standard", "name": "none"}),
    ],
)
def test_texts_of_the_command_line_become_values(text: dict[str, str], parsed: dict[str, object]) -> None:
    assert parse_texts(text) == parsed


@pytest.mark.parametrize(
    "text", [{"expires_at": "soon"}, {"mfa_required": "perhaps"}, {"requests_per_minute": "lots"}, {"x": "y"}]
)
def test_texts_that_mean_nothing_are_refused(text: dict[str, str]) -> None:
    with pytest.raises((InvalidValue, UnknownParameter)):
        parse_texts(text)


@given(
    st.dictionaries(
        st.sampled_from(Tenant.__struct_fields__), st.none() | st.text() | st.integers() | st.lists(st.text())
    )
)
def test_no_change_whatever_raises_anything_but_a_refusal(changes: dict[str, Any]) -> None:
    try:
        new = changed_tenant(make(), changes, now_us=NOW_US)
    except InvalidValue:
        return
    assert msgspec.convert(msgspec.to_builtins(new), Tenant) == new


# --- entrances -------------------------------------------------------------------------------------------------


def test_an_entrance_cannot_be_made_by_hand() -> None:
    with pytest.raises(NoTenant):
        Entrance(object(), tenant=make(), principal=principal(), admitted_at_s=0.0)


def test_a_principal_of_another_tenant_gets_no_entrance() -> None:
    with pytest.raises(NoTenant):
        mint_entrance(tenant=make(), principal=principal(tenant_id="globex"), admitted_at_s=0.0)


def test_an_entrance_ends_with_its_principal_and_shows_no_user() -> None:
    entrance = mint_entrance(tenant=make(), principal=principal(email="mio@example.com"), admitted_at_s=0.0)
    assert entrance.expires_at_us == NOW_US
    assert repr(entrance) == "Entrance(tenant='acme', role='user')"


def test_a_scope_or_role_that_is_missing_is_named() -> None:
    entrance = mint_entrance(tenant=make(), principal=principal(scopes=frozenset({Scope.READ})), admitted_at_s=0.0)
    entrance.require(Scope.READ)
    entrance.require(Scope.READ, Role.USER, Role.MEMBER)
    with pytest.raises(Forbidden, match=r"nagaya\.write"):
        entrance.require(Scope.WRITE)
    with pytest.raises(Forbidden, match="tenant_admin"):
        entrance.require(Scope.READ, Role.TENANT_ADMIN)


def test_two_providers_users_of_one_name_are_two_people() -> None:
    assert principal().user_key == principal(provider=Provider.API_KEY, issuer="nagaya").user_key == "mio"
    assert principal(provider=Provider.COGNITO).user_key != "mio"


# --- what is remembered ----------------------------------------------------------------------------------------


def test_memory_is_bounded_and_keeps_what_was_used_last() -> None:
    recent: Recent[str, int] = Recent(2, now_s=lambda: 0.0)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert (recent.get("a"), recent.get("b"), recent.get("c"), len(recent)) == (1, None, 3, 2)
    recent.drop("a")
    recent.drop("a")
    recent.drop_where(lambda value: value == 3)
    assert len(recent) == 0


def test_what_is_too_old_is_forgotten() -> None:
    now_s = 0.0
    recent: Recent[str, int] = Recent(9, now_s=lambda: now_s, ttl_s=2.0)
    recent.put("a", 1)
    now_s = 1.9
    assert recent.get("a") == 1
    now_s = 2.0
    assert recent.get("a") is None
    assert len(recent) == 0
