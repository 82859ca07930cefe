"""``nagaya token``: tokens of the local issuer."""

from __future__ import annotations

from typing import Annotated

import typer

from nagaya.cli.place import Place, command, group

app = group("token", "Mint and revoke tokens of the local issuer.")

Tenant = Annotated[str, typer.Option("--tenant", metavar="ID", help="The tenant's id, or tenant/workspace")]


@command(app, "mint")
async def mint(
    place: Place,
    tenant: Tenant,
    user: Annotated[str, typer.Option("--user", help="Whom the token speaks for")],
    role: Annotated[str, typer.Option("--role", help="user, member or tenant_admin")] = "user",
    lifetime_s: Annotated[int, typer.Option("--lifetime-s", help="How long it is valid, in seconds")] = 3600,
    mfa: Annotated[bool, typer.Option("--mfa", help="Say that a second factor was used")] = False,
) -> None:
    """A signed token for a user of a tenant."""
    async with place.office() as office:
        token = await office.mint(tenant, {"user": user, "role": role, "lifetime_s": lifetime_s, "mfa": mfa})
    if place.out.as_json:
        place.out.document({"token": token})
    else:
        print(token)


@command(app, "revoke")
async def revoke(
    place: Place,
    tenant: Tenant,
    user: Annotated[str | None, typer.Option("--user", help="Refuse this user's tokens")] = None,
    session: Annotated[str | None, typer.Option("--session", help="Refuse this session's tokens")] = None,
    token: Annotated[
        str | None,
        typer.Option("--token", metavar="TOKEN", help="Refuse this one token, given by its id (jti) or whole"),
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Refuse every token of the tenant")] = False,
) -> None:
    """Refuse the tokens that were issued until now, or one --token for ever. Later ones are valid again."""
    if everybody == any(each is not None for each in (user, session, token)):
        raise typer.BadParameter("name --user, --session or --token, or say --all")
    async with place.office() as office:
        tokens = await office.revoke_tokens(tenant, user=user, session=session, token=token)
    place.out.fields({"tenant": tenant, "user": user, "session": session, "tokens": tokens, "revoked": True})
