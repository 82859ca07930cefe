"""Who somebody is (Principal), and the verified right to enter one tenant as that somebody (Entrance)."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from nagaya.errors import Forbidden, NoTenant
from nagaya.tenancy.tenant import Tenant


class Role(StrEnum):
    """What somebody may do inside a tenant (``operator``: across tenants, metadata only, never content)."""

    USER = "user"
    MEMBER = "member"
    TENANT_ADMIN = "tenant_admin"
    OPERATOR = "operator"


class Provider(StrEnum):
    """Which kind of sign-in vouches for a principal."""

    COGNITO = "cognito"
    ENTRA = "entra"
    OIDC = "oidc"
    LOCAL = "local"
    API_KEY = "api_key"
    PLATFORM = "platform"


class Scope(StrEnum):
    """What a token or API key is limited to. A token without any scope of ours has them all, within its role."""

    READ = "nagaya.read"
    WRITE = "nagaya.write"
    ADMIN = "nagaya.admin"


ALL_SCOPES: Final = frozenset(Scope)


class Origin(NamedTuple):
    """What a sign-in session was begun with: the session and the token, by the ids of the provider that issued it."""

    session_id: str | None
    token_id: str | None


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """A verified caller. ``user_id`` is stable and unique within ``issuer`` (Entra: ``tid:oid``), never an e-mail.

    ``tenant_id`` is what the issuer's binding in the registry says, not what the caller said (the id of a workspace
    where token or key are bound to one); None only for an operator. ``expires_at_us`` is when the token or key ends.
    """

    provider: Provider
    issuer: str
    user_id: str
    tenant_id: str | None
    role: Role
    scopes: frozenset[Scope] = ALL_SCOPES
    issued_at_us: int
    expires_at_us: int
    session_id: str | None = None
    token_id: str | None = None
    begun_with: Origin | None = None
    username: str | None = None
    email: str | None = None
    groups: tuple[str, ...] = ()
    mfa: bool = False
    is_application: bool = False

    @property
    def user_key(self) -> str:
        """Who owns what this principal makes: the user id, with its issuer where the tenant does not name users itself.

        A local token and an API key of user ``mio`` are the same person; a Cognito user of that name is another.
        """
        if self.provider in (Provider.LOCAL, Provider.API_KEY):
            return self.user_id
        return f"{self.issuer}#{self.user_id}"

    def require(self, scope: Scope, *roles: Role) -> None:
        """Raise ``Forbidden`` unless the principal has the scope and (where given) one of the roles."""
        if scope not in self.scopes:
            raise Forbidden(needs=f"scope {scope.value}")
        if roles and self.role not in roles:
            raise Forbidden(needs=f"role {' or '.join(role.value for role in roles)}")


_MINT: Final = object()


class Entrance:
    """The right of one principal to be in one tenant until ``expires_at_us``. Only the gate makes one.

    It is the only thing that opens a session; there is no ambient tenant, and no way to widen an entrance.
    """

    __slots__ = ("admitted_at_s", "expires_at_us", "home", "parent", "principal", "tenant", "vouched")

    tenant: Tenant
    """Whose room it opens: a tenant, or one of its workspaces."""
    principal: Principal
    """The caller as that room knows it: in a workspace with the member's role there."""
    parent: Tenant | None
    """The tenant that a workspace lies in; None for an entrance to a tenant."""
    home: Principal
    """The caller as its token or key says."""
    expires_at_us: int
    admitted_at_s: float
    vouched: int
    """The state of the registry up to which the gate knows that this entrance holds; -1: ask again."""

    def __init__(
        self,
        mint: object,
        *,
        tenant: Tenant,
        principal: Principal,
        admitted_at_s: float,
        parent: Tenant | None = None,
        home: Principal | None = None,
    ) -> None:
        if mint is not _MINT:
            # An entrance made by hand would be a wall with a hole: refuse loudly, never guess.
            raise NoTenant
        self.tenant = tenant
        self.principal = principal
        self.parent = parent
        self.home = principal if home is None else home
        self.expires_at_us = principal.expires_at_us
        self.admitted_at_s = admitted_at_s
        self.vouched = -1

    def require(self, scope: Scope, *roles: Role) -> None:
        """Raise ``Forbidden`` unless the principal has the scope and (where given) one of the roles."""
        self.principal.require(scope, *roles)

    def may_see(self, owner: str, *, shared: bool, writing: bool) -> bool:
        """Whether the caller may read (or change) what belongs to a user of the tenant: its owner and an administrator
        may, and a member may read what is shared."""
        principal = self.principal
        if owner == principal.user_key or principal.role is Role.TENANT_ADMIN:
            return True
        return shared and not writing and principal.role is Role.MEMBER

    @property
    def is_membership(self) -> bool:
        """Whether a member of a workspace came with what is his in the tenant: it holds as long as he is a member."""
        return self.home is not self.principal

    def __repr__(self) -> str:
        return f"Entrance(tenant={self.tenant.address!r}, role={self.principal.role.value!r})"


def mint_entrance(
    *,
    tenant: Tenant,
    principal: Principal,
    admitted_at_s: float,
    parent: Tenant | None = None,
    home: Principal | None = None,
) -> Entrance:
    """For the gate alone (the linter's banned-api holds that): turn an admitted principal into an entrance."""
    if principal.tenant_id != tenant.id or tenant.parent != (None if parent is None else parent.id):
        raise NoTenant
    if home is not None and (parent is None or home.tenant_id != parent.id):
        # A member comes from the very tenant that the workspace lies in.
        raise NoTenant
    return Entrance(_MINT, tenant=tenant, principal=principal, admitted_at_s=admitted_at_s, parent=parent, home=home)
