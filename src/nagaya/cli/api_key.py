"""``nagaya api-key``: keys for programs, of a tenant or of operators."""

from __future__ import annotations

from typing import Annotated

import typer

from nagaya.cli.place import Place, command, group

app = group("api-key", "Create, list and revoke API keys.")

Tenant = Annotated[
    str | None,
    typer.Option("--tenant", metavar="ID", help="A tenant's id or tenant/workspace; without it: an operator's"),
]
_COLUMNS = ("key_id", "tenant", "name", "user", "role", "created_at_us", "expires_at_us", "revoked_at_us")


@command(app, "create")
async def create(
    place: Place,
    tenant: Tenant = None,
    operator: Annotated[bool, typer.Option("--operator", help="A key for operators, for --url")] = False,
    user: Annotated[str | None, typer.Option("--user", help="Whom the key speaks for  [default: api]")] = None,
    name: Annotated[str, typer.Option("--name", help="What it is for")] = "key",
    role: Annotated[str | None, typer.Option("--role", help="user, member or tenant_admin  [default: user]")] = None,
    scope: Annotated[
        list[str] | None, typer.Option("--scope", help="nagaya.read, nagaya.write, nagaya.admin; all unless named")
    ] = None,
    lifetime_s: Annotated[int, typer.Option("--lifetime-s", help="How long it is valid, in seconds")] = 365 * 86_400,
) -> None:
    """A new API key. It is shown this once and stored nowhere."""
    for_operators = operator or role == "operator"
    if for_operators == (tenant is not None):
        raise typer.BadParameter("name the --tenant, or say --operator for a key of operators")
    fields = {
        "tenant": tenant,
        "user": user or ("operator" if for_operators else "api"),
        "name": name,
        "role": "operator" if for_operators and role is None else role or "user",
        "scopes": scope or [],
        "lifetime_s": lifetime_s,
    }
    async with place.office(may_create=for_operators) as office:
        issued = await office.create_api_key(fields)
    place.out.fields(issued)
    place.out.note("Keep the key: it is not shown again.", "このキーは二度と表示されません。控えてください。")


@command(app, "list")
async def list_keys(place: Place, tenant: Tenant = None) -> None:
    """The API keys of a tenant, or the operators'."""
    async with place.office() as office:
        place.out.table(_COLUMNS, await office.api_keys(tenant), rest={})


@command(app, "revoke")
async def revoke(
    place: Place,
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id, as the list shows it")],
    tenant: Tenant = None,
) -> None:
    """Refuse a key from now on; streams that it started end."""
    async with place.office() as office:
        await office.revoke_api_key(key_id, tenant)
    place.out.fields({"id": key_id, "object": "api_key.deleted", "deleted": True})
