"""``nagaya audit``: check the log that nobody may change."""

from __future__ import annotations

from typing import Annotated

import typer

from nagaya.cli.place import Place, command, group

app = group("audit", "Check the audit log.")


@command(app, "verify")
async def verify(
    place: Place,
    tenant: Annotated[
        str | None, typer.Option("--tenant", metavar="ID", help="A tenant's log; without it: the platform's")
    ] = None,
) -> None:
    """Check every entry and link of a log. Exit code 1 where it was tampered with."""
    async with place.office() as office:
        place.out.fields(await office.verify_audit(tenant))
