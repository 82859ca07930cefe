"""The workspaces of the caller's tenant: ``/v1/workspaces``. Metadata only; what a workspace holds is asked for by
entering it."""

from __future__ import annotations

import msgspec

from nagaya.lifecycle.workspaces import MemberShown, WorkspaceShown
from nagaya.server.calls import Call, Reply, encode, flag_of
from nagaya.tenancy.principal import Entrance
from nagaya.usage.meter import Metric


class WorkspaceIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/workspaces``. ``admin`` is the first administrator, a user as ``/v1/me`` shows it."""

    id: str
    name: str
    admin: str


class MemberIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/workspaces/{workspace}/members``: a user as ``/v1/me`` shows it."""

    user: str
    role: str = "user"


class WorkspaceList(msgspec.Struct):
    """Workspaces by name."""

    data: list[WorkspaceShown]
    object: str = "list"


class MemberList(msgspec.Struct):
    """Members by user."""

    data: list[MemberShown]
    object: str = "list"


async def _enter(call: Call) -> Entrance:
    entrance = await call.enter()
    call.nagaya.meter.count(entrance.tenant, Metric.API_CALLS)
    return entrance


async def listing(call: Call) -> Reply:
    """The workspaces that the caller may enter; all of the tenant's for its administrator who asks for them."""
    entrance = await _enter(call)
    everyone = flag_of(call.query({"all": ""})["all"], "all")
    found = await call.nagaya.workspaces.mine(entrance, everyone=bool(everyone))
    return Reply(encode(WorkspaceList(list(found))))


async def create(call: Call) -> Reply:
    """Make a workspace. For tenant administrators, who are let in only as members."""
    entrance = await _enter(call)
    given = await call.json(WorkspaceIn)
    made = await call.nagaya.workspaces.create(entrance, given.id, title=given.name, admin=given.admin)
    return Reply(encode(made), 201)


async def retrieve(call: Call) -> Reply:
    """One workspace, for its members and the tenant's administrators."""
    return Reply(encode(await call.nagaya.workspaces.show(await _enter(call), call.params[0])))


async def archive(call: Call) -> Reply:
    """Close a workspace and keep what it holds. For its administrators and the tenant's."""
    return Reply(encode(await call.nagaya.workspaces.archive(await _enter(call), call.params[0])))


async def reopen(call: Call) -> Reply:
    """Open an archived workspace again. For tenant administrators."""
    return Reply(encode(await call.nagaya.workspaces.reopen(await _enter(call), call.params[0])))


async def list_members(call: Call) -> Reply:
    """Who may enter a workspace. For its administrators."""
    found = await call.nagaya.workspaces.members(await _enter(call), call.params[0])
    return Reply(encode(MemberList(list(found))))


async def add_member(call: Call) -> Reply:
    """Let somebody of the tenant in, or give a member another role. For the workspace's administrators."""
    entrance = await _enter(call)
    given = await call.json(MemberIn)
    return Reply(encode(await call.nagaya.workspaces.add_member(entrance, call.params[0], given.user, given.role)))


async def remove_member(call: Call) -> Reply:
    """Let somebody in no more. For the workspace's administrators."""
    entrance = await _enter(call)
    user = call.query({"user": ""})["user"]
    await call.nagaya.workspaces.remove_member(entrance, call.params[0], user)
    return Reply(encode({"user": user, "object": "workspace.member.deleted", "deleted": True}))
