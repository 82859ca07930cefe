"""``nagaya key``: a tenant's encryption key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nagaya.cli.place import Place, command, group

if TYPE_CHECKING:
    from nagaya.cli.office import KeyAct

app = group("key", "Rotate, revoke, restore and look at a tenant's encryption key.")

Id = Annotated[str, typer.Argument(metavar="ID", help="The tenant's id, or tenant/workspace")]


async def _act(place: Place, tenant_id: str, act: KeyAct) -> None:
    async with place.office() as office:
        status = await office.key(tenant_id, act)
    if place.out.as_json:
        place.out.document(status)
        return
    place.out.fields({"tenant": status["tenant"], "service": status["service"]})
    place.out.table(("version", "state", "created_at_us", "uses"), status["versions"], rest={})


@command(app, "rotate")
async def rotate(place: Place, tenant_id: Id) -> None:
    """Seal under a new key version from now on; earlier ones still open what they sealed."""
    await _act(place, tenant_id, "rotate")


@command(app, "revoke")
async def revoke(place: Place, tenant_id: Id) -> None:
    """Disable the key: nothing of the tenant opens within 30 seconds, on any server."""
    await _act(place, tenant_id, "revoke")


@command(app, "restore")
async def restore(place: Place, tenant_id: Id) -> None:
    """Enable a revoked key again."""
    await _act(place, tenant_id, "restore")


@command(app, "status")
async def status(place: Place, tenant_id: Id) -> None:
    """What the key service says of the key, and its versions."""
    await _act(place, tenant_id, "status")
