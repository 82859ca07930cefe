"""``nagaya member``: who may enter a workspace."""

from __future__ import annotations

from typing import Annotated

import typer

from nagaya.cli.place import Place, command, group

app = group("member", "Let people of a tenant into its workspaces.")

Workspace = Annotated[str, typer.Argument(metavar="ID", help="The workspace, as tenant/workspace")]
User = Annotated[str, typer.Argument(metavar="USER", help="A user of the tenant, as /v1/me shows it")]
_COLUMNS = ("user", "role", "since_us")


@command(app, "add")
async def add(
    place: Place,
    workspace: Workspace,
    user: User,
    role: Annotated[str, typer.Option("--role", help="user, member or tenant_admin: in the workspace alone")] = "user",
) -> None:
    """Let somebody in, or give a member another role."""
    async with place.office() as office:
        place.out.fields(await office.add_member(workspace, user, role))


@command(app, "list")
async def list_members(place: Place, workspace: Workspace) -> None:
    """Who may enter a workspace, by user."""
    async with place.office() as office:
        found = await office.members(workspace)
    place.out.table(_COLUMNS, [{**each, "since_us": each["since"] * 1_000_000} for each in found], rest={})


@command(app, "remove")
async def remove(place: Place, workspace: Workspace, user: User) -> None:
    """Let somebody in no more; what they have open there ends."""
    async with place.office() as office:
        await office.remove_member(workspace, user)
    place.out.fields({"user": user, "object": "workspace.member.deleted", "deleted": True})
