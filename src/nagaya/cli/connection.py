"""``nagaya connection``: what opens a tenant's own cloud accounts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from nagaya.cli.place import Place, command, group

app = group("connection", "Connect a tenant's own AWS, Azure, PostgreSQL or S3 account.")

Id = Annotated[str, typer.Argument(metavar="ID", help="The tenant's id, also before the tenant is made")]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="aws-connection, azure-connection, postgresql-connection, s3-connection or entraid-config"
    ),
]


@command(app, "external-id")
async def external_id(place: Place, tenant_id: Id) -> None:
    """The ExternalId for the trust policy of the tenant's AWS role. Made once; nobody else chooses it."""
    async with place.office(may_create=True) as office:
        place.out.fields({"tenant": tenant_id, "external_id": await office.external_id(tenant_id)})


@command(app, "set")
async def set_connection(
    place: Place,
    tenant_id: Id,
    name: Name,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A JSON file, or - for standard input")],
) -> None:
    """Keep a connection secret, sealed. Nothing shows it again."""
    value = _contents(file)
    async with place.office(may_create=True) as office:
        await office.set_connection(tenant_id, name, value)
    place.out.fields({"tenant": tenant_id, "name": name, "set": True})


def _contents(file: str) -> bytes:
    from nagaya.errors import InvalidValue

    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as missing:
        raise InvalidValue(param="file", at="file", detail=f"it cannot be read: {missing.strerror}") from None


@command(app, "list")
async def list_connections(place: Place, tenant_id: Id) -> None:
    """The names of the connection secrets that are set."""
    async with place.office() as office:
        names = await office.connections(tenant_id)
    place.out.table(("name",), [{"name": name} for name in names], rest={})


@command(app, "delete")
async def delete(place: Place, tenant_id: Id, name: Name) -> None:
    """Forget a connection secret."""
    async with place.office() as office:
        await office.delete_connection(tenant_id, name)
    place.out.fields({"tenant": tenant_id, "name": name, "deleted": True})
