"""The registry as the rest of the code sees it. ``registry.py`` implements it over SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from nagaya.keys.versions import KeyVersion
from nagaya.tenancy.bindings import ApiKeyRecord, IssuerBinding, Member, Revocation
from nagaya.tenancy.tenant import Tenant, TenantState


class Pulse:
    """How far a process knows the registry, for those who ask at every step: no call, no I/O."""

    __slots__ = ("changes", "fresh_until_s")

    def __init__(self) -> None:
        self.changes = 0
        """Rises with every change seen, whichever process made it."""
        self.fresh_until_s = float("-inf")
        """The monotonic second until which what is cached may be served: 30 s after the registry was last read."""


class TenantDirectory(Protocol):
    """Tenants and what is bound to them. Reads are cached in the process (bounded) and dropped by epochs; every
    change is seen by every process that shares the registry within about a second, and within 30 s at worst."""

    async def tenant(self, tenant_id: str) -> Tenant:
        """The tenant, or ``NotFound``. ``deleted`` tenants are not found."""
        ...

    async def host_owner(self, host: str) -> str | None:
        """The id of the tenant that has this host name (lower case, without port), or None."""
        ...

    async def tenants(self, *, after: str = "", limit: int = 100) -> Sequence[Tenant]:
        """Tenants by id, for operators; their workspaces left out."""
        ...

    async def workspaces(self, tenant_id: str) -> Sequence[Tenant]:
        """The workspaces of a tenant by name."""
        ...

    async def member(self, workspace_id: str, user: str) -> Member | None:
        """Somebody's membership by the user key, from memory where it was asked for before."""
        ...

    async def members(self, workspace_id: str) -> Sequence[Member]: ...

    async def memberships(self, user: str) -> Sequence[Member]:
        """Every membership under this user key, whatever the tenant."""
        ...

    async def put_member(self, member: Member) -> None:
        """Make somebody a member, or give a member another role. Raises ``InvalidValue`` where the workspace would
        lose its last administrator."""
        ...

    async def remove_member(
        self, workspace_id: str, user: str, *, revocation: Revocation | None = None
    ) -> Sequence[str]:
        """With ``revocation``, refuse in the same step what was issued in the workspace to that user; gives the ids of
        the API keys that it revoked. Raises ``NotFound`` where there is no such member, ``InvalidValue`` for the
        last administrator."""
        ...

    async def create_tenant(self, tenant: Tenant) -> None:
        """Record a new tenant. Raises ``TenantIdInvalid``, ``TenantExists`` or ``TenantLookAlike``."""
        ...

    async def change_tenant(
        self, tenant_id: str, changes: Mapping[str, Any], *, check: Callable[[Tenant], None] | None = None
    ) -> Tenant:
        """Change fields other than ``id``, ``state`` and ``epoch``, if ``check`` does not refuse the tenant as it would
        be; the epoch rises. Returns the new tenant."""
        ...

    async def set_state(self, tenant_id: str, state: TenantState, *, expect: TenantState | None = None) -> Tenant:
        """Move to a state that may follow, or ``TransitionRefused``; the epoch rises. ``Conflict`` where it is in
        another state than ``expect``, where that is given."""
        ...

    async def touch(self, tenant_id: str) -> None:
        """Raise the tenant's epoch: every process drops what it has cached of the tenant."""
        ...

    async def issuers(self, issuer: str) -> Sequence[IssuerBinding]:
        """The bindings of this exact issuer (usually one; several tenants may share one by audience)."""
        ...

    async def tenant_issuers(self, tenant_id: str) -> Sequence[IssuerBinding]: ...

    async def bind_issuer(self, binding: IssuerBinding) -> None:
        """Record a binding. Raises ``Conflict`` where (issuer, audience) belongs to another tenant."""
        ...

    async def unbind_issuer(self, tenant_id: str, issuer: str) -> None: ...

    async def api_key(self, key_id: str) -> ApiKeyRecord | None: ...

    async def api_keys(self, tenant_id: str | None) -> Sequence[ApiKeyRecord]: ...

    async def add_api_key(self, record: ApiKeyRecord) -> None: ...

    async def revoke_api_key(
        self, key_id: str, *, tenant_id: str | None, now_us: int, revocation: Revocation | None = None
    ) -> None:
        """Revoke, and with ``revocation`` end in the same step what was begun with the key. Raises ``NotFound`` where
        that tenant has no such key."""
        ...

    async def revoke(self, revocation: Revocation) -> None:
        """Refuse a user's, session's or token's tokens issued before a moment."""
        ...

    def refused_before_us(self, tenant_id: str, *, user_id: str, session_id: str | None, token_id: str | None) -> int:
        """From memory, no I/O: tokens of this user, session or token id issued before this moment are refused."""
        ...

    @property
    def pulse(self) -> Pulse:
        """Always the same one."""
        ...

    def is_fresh(self) -> bool:
        """Whether the registry has been read within the last 30 s, so that what is cached may be served."""
        ...

    async def key_versions(self, room: str) -> Sequence[KeyVersion]: ...

    async def add_key_version(self, room: str, version: KeyVersion) -> None:
        """Record a new active version; earlier active ones become ``decrypt_only``; the epoch rises."""
        ...

    async def add_key_uses(self, room: str, version: int, uses: int) -> None: ...
