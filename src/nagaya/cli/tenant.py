"""``nagaya tenant``: make, look at, change, suspend, resume and delete tenants."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from nagaya.cli import bundle
from nagaya.cli.place import Place, command, group

app = group("tenant", "Make, look at, change and delete tenants.")

Id = Annotated[str, typer.Argument(metavar="ID", help="The tenant's id, or tenant/workspace")]
_COLUMNS = ("id", "name", "state", "tier", "isolation", "models", "created_at_us")


@command(app, "create")
async def create(
    place: Place,
    tenant_id: Id,
    name: Annotated[str, typer.Option("--name", help="The name that people read")],
    tier: Annotated[
        str | None, typer.Option("--tier", help="free, standard, professional or enterprise  [default: free]")
    ] = None,
    isolation: Annotated[
        str | None,
        typer.Option(
            "--isolation",
            help="shared_everything, shared_platform, isolated_resources or dedicated_instance  "
            "[default: shared_platform]",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="URL", help="builtin://, openai://MODEL or openai+https://HOST/v1#MODEL"),
    ] = None,
    region: Annotated[list[str] | None, typer.Option("--region", help="Where its data may lie")] = None,
    host: Annotated[list[str] | None, typer.Option("--host", help="A host name of its own")] = None,
    trial: Annotated[bool, typer.Option("--trial", help="Begin as a trial")] = False,
    store: Annotated[str | None, typer.Option("--store", metavar="URL", help="Where its records lie")] = None,
    blobs: Annotated[str | None, typer.Option("--blobs", metavar="URL", help="Where its files lie")] = None,
    keys: Annotated[
        str | None, typer.Option("--keys", metavar="URL", help="The key service that wraps its keys")
    ] = None,
    admin: Annotated[
        str | None, typer.Option("--admin", metavar="USER", help="The first administrator of a workspace")
    ] = None,
) -> None:
    """Make a tenant with a key and a store of its own, each tried for real before the tenant opens.

    --model, --region and --host may be repeated. What lies in the tenant's own account needs its connection secret
    first: see `nagaya connection`. An ID such as acme/legal makes a workspace, which takes after its tenant in what is
    not said.
    """
    fields = {
        "id": tenant_id,
        "name": name,
        "hosts": host or [],
        "trial": trial,
    }
    said = {"tier": tier, "isolation": isolation, "models": model, "regions": region, "admin": admin}
    brought = {"store": store, "key_service": keys, "blobs": blobs}
    fields |= {field: value for field, value in (said | brought).items() if value}
    async with place.office(may_create=True) as office:
        place.out.fields(await office.create_tenant(fields))


@command(app, "list")
async def list_tenants(
    place: Place,
    tenant_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="List this tenant's workspaces")] = None,
) -> None:
    """All tenants, by id, or the workspaces of one."""
    async with place.office() as office:
        found = await office.tenants() if tenant_id is None else await office.workspaces(tenant_id)
    place.out.table(_COLUMNS, found, rest={})


@command(app, "show")
async def show(place: Place, tenant_id: Id) -> None:
    """Everything that is configured of a tenant."""
    async with place.office() as office:
        place.out.fields(await office.tenant(tenant_id))


@command(app, "suspend")
async def suspend(place: Place, tenant_id: Id) -> None:
    """Shut a tenant's door; its sessions and streams end."""
    async with place.office() as office:
        place.out.fields(await office.suspend(tenant_id))


@command(app, "resume")
async def resume(place: Place, tenant_id: Id) -> None:
    """Open a suspended tenant's door again."""
    async with place.office() as office:
        place.out.fields(await office.resume(tenant_id))


@command(app, "usage")
async def usage(
    place: Place,
    tenant_id: Id,
    month: Annotated[str | None, typer.Option("--month", metavar="YYYY-MM", help="A month (UTC)")] = None,
) -> None:
    """What a tenant used in a month (this one unless named) and stores now."""
    if month is not None and not _is_month(month):
        raise typer.BadParameter("--month is written YYYY-MM")
    async with place.office() as office:
        place.out.fields(await office.usage(tenant_id, month))


def _is_month(text: str) -> bool:
    digits = text[:4] + text[5:]
    if not (len(text) == 7 and text[4] == "-" and digits.isascii() and digits.isdigit()):
        return False
    return 1 <= int(text[5:]) <= 12


@command(app, "set")
async def set_fields(
    place: Place,
    tenant_id: Id,
    changes: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="What to change")],
) -> None:
    """Change settings of a tenant, such as tier=standard mfa_required=true expires_at=2027-04-01.

    Lists are separated by commas; "none" clears. model_key=VALUE sets the key of the tenant's model account, and
    model_key=- reads it from standard input; it is never shown again.
    """
    from nagaya.tenancy.changes import parse_texts

    texts: dict[str, str] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise typer.BadParameter("a change is written KEY=VALUE")
        if key in texts:
            raise typer.BadParameter(f"{key} is given twice")
        texts[key] = text
    model_key = texts.pop("model_key", None)
    parsed = parse_texts(texts)
    if model_key == "-":
        model_key = _read_secret()
    if model_key == "":
        raise typer.BadParameter("model_key is empty")
    async with place.office() as office:
        shown = await office.change(tenant_id, parsed) if parsed else await office.tenant(tenant_id)
        if model_key is not None:
            await office.set_model_key(tenant_id, model_key)
    place.out.fields(shown)
    if model_key is not None:
        place.out.note("The model key is set.", "モデルの API キーを設定しました。")


def _read_secret() -> str:
    if sys.stdin.isatty():
        from getpass import getpass

        return getpass("model_key: ").strip()
    return sys.stdin.readline().strip()


@command(app, "delete")
async def delete(
    place: Place,
    tenant_id: Id,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
) -> None:
    """Destroy a tenant's keys, then its store. Nothing of it can be read again, backups included."""
    async with place.office() as office:
        await office.tenant(tenant_id)
        if not yes and sys.stdin.isatty() and not place.out.as_json:
            place.out.note(
                f"This destroys everything of {tenant_id} for ever. Type its id to go on:",
                f"{tenant_id} のすべてを永久に破棄します。続けるにはその ID を入力してください:",
            )
            if sys.stdin.readline().strip() != tenant_id:
                raise typer.Abort
        await office.delete(tenant_id)
    place.out.fields({"id": tenant_id, "object": "tenant.deleted", "deleted": True})


bundle.add_to(app)
