"""A tenant as the registry knows it, and which state may follow which."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from nagaya.errors import TenantExpired, TenantNotOpen, TenantSuspended, TransitionRefused


class TenantState(StrEnum):
    """Where a tenant stands in its life."""

    ONBOARDING = "onboarding"
    TRIAL = "trial"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    ARCHIVED = "archived"
    MOVING = "moving"
    OFFBOARDING = "offboarding"
    DELETED = "deleted"


class IsolationLevel(StrEnum):
    """How far a tenant's resources are its own."""

    SHARED_EVERYTHING = "shared_everything"
    SHARED_PLATFORM = "shared_platform"
    ISOLATED_RESOURCES = "isolated_resources"
    DEDICATED_INSTANCE = "dedicated_instance"


class Tier(StrEnum):
    """What a tenant pays for; ``usage.tiers`` has the prices."""

    FREE = "free"
    STANDARD = "standard"
    PROFESSIONAL = "professional"
    ENTERPRISE = "enterprise"


_S = TenantState
TRANSITIONS: Final[dict[TenantState, frozenset[TenantState]]] = {
    _S.ONBOARDING: frozenset({_S.TRIAL, _S.ACTIVE, _S.OFFBOARDING, _S.DELETED}),
    _S.TRIAL: frozenset({_S.ACTIVE, _S.SUSPENDED, _S.MOVING, _S.OFFBOARDING}),
    _S.ACTIVE: frozenset({_S.SUSPENDED, _S.ARCHIVED, _S.MOVING, _S.OFFBOARDING}),
    _S.SUSPENDED: frozenset({_S.ACTIVE, _S.TRIAL, _S.OFFBOARDING}),
    _S.ARCHIVED: frozenset({_S.ACTIVE, _S.SUSPENDED, _S.OFFBOARDING}),
    _S.MOVING: frozenset({_S.ACTIVE, _S.TRIAL, _S.SUSPENDED}),
    _S.OFFBOARDING: frozenset({_S.DELETED}),
    _S.DELETED: frozenset(),
}
OPEN_STATES: Final = frozenset({_S.TRIAL, _S.ACTIVE, _S.MOVING})


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant's configuration at one moment. Times are UTC microseconds.

    ``epoch`` rises with every change that must drop what is cached of the tenant. ``tokens_valid_from_us`` refuses
    tokens issued before it. Below the gate a tenant is passed as this object, never as its id.

    A workspace is a tenant too, with a store and a key of its own: ``parent`` is the id of the tenant it lies in and
    ``workspace`` its name there. Its ``id`` is made from both; people write its ``address``.
    """

    id: str
    name: str
    state: TenantState
    created_at_us: int
    tier: Tier = Tier.FREE
    isolation: IsolationLevel = IsolationLevel.SHARED_PLATFORM
    store: str
    models: tuple[str, ...] = ("builtin://",)
    key_service: str = "local://"
    blobs: str | None = None
    regions: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    expires_at_us: int | None = None
    mfa_required: bool = False
    sso_required: bool = False
    max_token_lifetime_s: int = 86_400
    requests_per_minute: int | None = None
    tokens_valid_from_us: int = 0
    epoch: int = 0
    parent: str | None = None
    workspace: str | None = None
    restore_days: int = 7
    """Days in which a deleted conversation can be restored; 0: it is gone at once."""
    retention_days: int | None = None
    """Days after which a conversation in which nothing was said ends; None: it stays."""

    @property
    def address(self) -> str:
        """What people call it: the id of a tenant, ``tenant/workspace`` for a workspace."""
        return self.id if self.parent is None else f"{self.parent}/{self.workspace}"

    def check_open(self, now_us: int) -> None:
        """Raise unless the tenant can be entered at ``now_us``."""
        if self.state is TenantState.SUSPENDED:
            raise TenantSuspended
        if self.state not in OPEN_STATES:
            raise TenantNotOpen(state=self.state.value)
        if self.expires_at_us is not None and self.expires_at_us <= now_us:
            raise TenantExpired


def check_transition(state: TenantState, wanted: TenantState) -> None:
    """Raise ``TransitionRefused`` unless a tenant in ``state`` may become ``wanted``."""
    if wanted not in TRANSITIONS[state]:
        allowed = ", ".join(sorted(TRANSITIONS[state])) or "nothing"
        raise TransitionRefused(state=state.value, wanted=wanted.value, allowed=allowed)
