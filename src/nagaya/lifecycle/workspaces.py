"""Workspaces as the people of a tenant use them: which are mine, making and archiving one, who is a member.

Nothing here opens a record. A tenant's administrator makes workspaces and names the first administrator of each, and is
let into none by that; who may enter is the business of the workspace's own administrators, and of operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from nagaya.audit.entry import chain_of
from nagaya.audit.log import AuditLog
from nagaya.errors import Conflict, Forbidden, InvalidValue, NotFound
from nagaya.kernel.clock import Clock
from nagaya.lifecycle.tenants import OPERATOR, TenantOffice
from nagaya.tenancy.bindings import Member
from nagaya.tenancy.directory import TenantDirectory
from nagaya.tenancy.names import room_of, workspace_room
from nagaya.tenancy.principal import Entrance, Role, Scope
from nagaya.tenancy.tenant import Tenant, TenantState

ADMIN: Final = Role.TENANT_ADMIN
"""In a workspace it is the workspace's administrator."""


class WorkspaceShown(msgspec.Struct, kw_only=True):
    """A workspace. ``id`` is its address; ``role`` the caller's in it, None for who is no member."""

    id: str
    name: str
    state: TenantState
    created_at: int
    role: Role | None = None
    object: str = "workspace"


class MemberShown(msgspec.Struct, kw_only=True):
    """A member of a workspace; ``user`` as ``/v1/me`` shows it."""

    user: str
    role: Role
    since: int
    object: str = "workspace.member"


class _Actor(NamedTuple):
    user: str
    role: str


class Workspaces:
    """The workspaces of a caller's own tenant, and (``…_of``, by address) the members of any for operators.

    Every act is audited in the workspace's own log; every method may raise the registry's errors.
    """

    def __init__(self, directory: TenantDirectory, office: TenantOffice, audit: AuditLog, clock: Clock) -> None:
        self._directory = directory
        self._office = office
        self._audit = audit
        self._clock = clock

    # --- for the people of a tenant ---

    async def mine(self, entrance: Entrance, *, everyone: bool = False) -> Sequence[WorkspaceShown]:
        """The workspaces that the caller may enter; with ``everyone`` all of the tenant, for its administrator."""
        entrance.require(Scope.READ)
        if entrance.parent is not None:
            return [_shown(entrance.tenant, entrance.principal.role)]
        roles = {
            member.workspace_id: member.role
            for member in await self._directory.memberships(entrance.principal.user_key)
        }
        if everyone:
            entrance.require(Scope.ADMIN, Role.TENANT_ADMIN)
        elif not roles:
            return []
        found = await self._directory.workspaces(entrance.tenant.id)
        return [_shown(each, roles.get(each.id)) for each in found if everyone or each.id in roles]

    async def show(self, entrance: Entrance, name: str) -> WorkspaceShown:
        """One of them, for a member or the tenant's administrator; else ``NotFound``."""
        entrance.require(Scope.READ)
        return _shown(*await self._find(entrance, name))

    async def create(self, entrance: Entrance, name: str, *, title: str, admin: str) -> WorkspaceShown:
        """Make a workspace of the caller's tenant, which its administrator may; ``admin`` is its first administrator.

        Raises as :meth:`TenantOffice.create` does. A failure leaves nothing behind.
        """
        entrance.require(Scope.ADMIN)
        if not _is_tenant_admin(entrance):
            raise Forbidden(needs=f"role {ADMIN.value} of the tenant")
        if "/" in name:
            raise InvalidValue(param="id", at="id", detail="it is the workspace's name alone, without the tenant's")
        made = await self._office.by(entrance.principal.user_id).create(
            f"{entrance.tenant.id}/{name}", name=title, admin=admin
        )
        self._note(entrance.tenant, _actor(entrance), "workspace.create", made.address)
        return _shown(made, ADMIN if admin == entrance.principal.user_key else None)

    async def archive(self, entrance: Entrance, name: str) -> WorkspaceShown:
        """Close a workspace and keep what it holds; for its administrator and the tenant's."""
        return await self._move(entrance, name, TenantState.ARCHIVED, "workspace.archive")

    async def reopen(self, entrance: Entrance, name: str) -> WorkspaceShown:
        """Open an archived workspace again; for the tenant's administrator. What an operator suspended stays shut."""
        workspace, _ = await self._find(entrance, name)
        if not _is_tenant_admin(entrance):
            raise Forbidden(needs=f"role {ADMIN.value} of the tenant")
        if workspace.state is not TenantState.ARCHIVED:
            raise InvalidValue(param="id", at="id", detail=f"the workspace is {workspace.state.value}, not archived")
        try:
            return await self._move(entrance, name, TenantState.ACTIVE, "workspace.reopen", expect=TenantState.ARCHIVED)
        except Conflict:
            # Suspended since it was looked at.
            raise InvalidValue(param="id", at="id", detail="the workspace is no longer archived") from None

    async def _move(
        self, entrance: Entrance, name: str, state: TenantState, action: str, *, expect: TenantState | None = None
    ) -> WorkspaceShown:
        workspace, role = await self._find(entrance, name)
        entrance.require(Scope.ADMIN)
        if role is not ADMIN and not _is_tenant_admin(entrance):
            raise Forbidden(needs=f"role {ADMIN.value}")
        moved = await self._directory.set_state(workspace.id, state, expect=expect)
        self._note(moved, _actor(entrance), action, moved.address)
        return _shown(moved, role)

    async def members(self, entrance: Entrance, name: str) -> Sequence[MemberShown]:
        """Who may enter a workspace, for its administrator."""
        return [_member(each) for each in await self._directory.members((await self._mine(entrance, name)).id)]

    async def add_member(self, entrance: Entrance, name: str, user: str, role: str) -> MemberShown:
        """Let somebody in, or give a member another role; for the workspace's administrator. May be repeated."""
        return await self._add(await self._mine(entrance, name), user, role, _actor(entrance))

    async def remove_member(self, entrance: Entrance, name: str, user: str) -> None:
        """Let somebody in no more: what he has open ends within a second or so, on every server within 30. For the
        workspace's administrator. Raises ``NotFound``, and ``InvalidValue`` for the last administrator."""
        await self._remove(await self._mine(entrance, name), user, _actor(entrance))

    # --- for operators ---

    async def members_of(self, address: str) -> Sequence[MemberShown]:
        """Who may enter the workspace at this address."""
        return [_member(each) for each in await self._directory.members((await self._at(address)).id)]

    async def add_member_of(self, address: str, user: str, role: str, *, actor: str = OPERATOR) -> MemberShown:
        """As :meth:`add_member`, also for a workspace that has no administrator."""
        return await self._add(await self._at(address), user, role, _Actor(actor, OPERATOR))

    async def remove_member_of(self, address: str, user: str, *, actor: str = OPERATOR) -> None:
        """As :meth:`remove_member`."""
        await self._remove(await self._at(address), user, _Actor(actor, OPERATOR))

    # --- both ---

    async def _add(self, workspace: Tenant, user: str, role: str, actor: _Actor) -> MemberShown:
        try:
            wanted = Role(role)
        except ValueError:
            wanted = Role.OPERATOR
        if wanted is Role.OPERATOR:
            raise InvalidValue(param="role", at="role", detail="expected one of user, member, tenant_admin")
        if not user.strip() or not user.isprintable():
            raise InvalidValue(param="user", at="user", detail="it is a user as /v1/me shows it")
        await self._directory.put_member(
            Member(workspace_id=workspace.id, user=user, role=wanted, since_us=self._clock.now_us())
        )
        self._note(workspace, actor, "member.add", user)
        return next(_member(each) for each in await self._directory.members(workspace.id) if each.user == user)

    async def _remove(self, workspace: Tenant, user: str, actor: _Actor) -> None:
        await self._office.by(actor.user).remove_member(workspace, user)
        self._note(workspace, actor, "member.remove", user)

    async def _at(self, address: str) -> Tenant:
        workspace = await self._directory.tenant(room_of(address))
        if workspace.parent is None:
            raise NotFound("workspace")
        return workspace

    async def _mine(self, entrance: Entrance, name: str) -> Tenant:
        """An open workspace whose administrator the caller is."""
        workspace, role = await self._find(entrance, name)
        entrance.require(Scope.ADMIN)
        if role is not ADMIN:
            raise Forbidden(needs=f"role {ADMIN.value} of the workspace")
        workspace.check_open(self._clock.now_us())
        return workspace

    async def _find(self, entrance: Entrance, name: str) -> tuple[Tenant, Role | None]:
        """A workspace of the caller's tenant and the caller's role in it. One that the caller has no business with is
        not found, like one that is not there."""
        if entrance.parent is not None:
            if name not in (entrance.tenant.workspace, entrance.tenant.address):
                raise NotFound("workspace")
            return entrance.tenant, entrance.principal.role
        try:
            name = name.removeprefix(f"{entrance.tenant.id}/")
            workspace = await self._directory.tenant(workspace_room(entrance.tenant.id, name))
        except NotFound:
            raise NotFound("workspace") from None
        member = await self._directory.member(workspace.id, entrance.principal.user_key)
        if member is None and not _is_tenant_admin(entrance):
            raise NotFound("workspace")
        return workspace, None if member is None else member.role

    def _note(self, tenant: Tenant, actor: _Actor, action: str, target: str) -> None:
        self._audit.record(chain_of(tenant), actor=actor.user, role=actor.role, action=action, target=target)


def _is_tenant_admin(entrance: Entrance) -> bool:
    """Whether the caller administers the tenant itself, which an administrator of a workspace does not."""
    return entrance.parent is None and entrance.principal.role is Role.TENANT_ADMIN


def _actor(entrance: Entrance) -> _Actor:
    return _Actor(entrance.principal.user_id, entrance.principal.role.value)


def _shown(workspace: Tenant, role: Role | None) -> WorkspaceShown:
    created_at = workspace.created_at_us // 1_000_000
    return WorkspaceShown(
        id=workspace.address, name=workspace.name, state=workspace.state, created_at=created_at, role=role
    )


def _member(member: Member) -> MemberShown:
    return MemberShown(user=member.user, role=member.role, since=member.since_us // 1_000_000)
