"""``nagaya issuer``: whose sign-in a tenant accepts."""

from __future__ import annotations

from typing import Annotated

import typer

from nagaya.cli.place import Place, command, group

app = group("issuer", "Bind identity providers to a tenant.")

Id = Annotated[str, typer.Argument(metavar="ID", help="The tenant's id")]
_COLUMNS = ("issuer", "provider", "audiences", "jwks_url", "default_role")


@command(app, "bind")
async def bind(
    place: Place,
    tenant_id: Id,
    issuer: Annotated[str, typer.Option("--issuer", help="The exact `iss` of its tokens")],
    provider: Annotated[str, typer.Option("--provider", help="cognito, entra or oidc")],
    audience: Annotated[list[str], typer.Option("--audience", help="An accepted `aud` or client id")],
    jwks_url: Annotated[str, typer.Option("--jwks-url", metavar="URL", help="Where its keys are fetched")],
    algorithm: Annotated[list[str] | None, typer.Option("--algorithm", help="RS256 unless named")] = None,
    directory: Annotated[str | None, typer.Option("--directory", help="Entra's `tid`")] = None,
    accept_id_tokens: Annotated[bool, typer.Option("--accept-id-tokens", help="For sign-in with id tokens")] = False,
    required_scope: Annotated[str | None, typer.Option("--required-scope", help="Refuse tokens without it")] = None,
    default_role: Annotated[str, typer.Option("--default-role", help="user, member or tenant_admin")] = "user",
    role_claim: Annotated[
        list[str] | None, typer.Option("--role-claim", metavar="GROUP=ROLE", help="A group or app role and its role")
    ] = None,
) -> None:
    """Accept an issuer's tokens for a tenant. --audience, --algorithm and --role-claim may be repeated."""
    claims: dict[str, str] = {}
    for pair in role_claim or ():
        group_name, equals, role = pair.rpartition("=")
        if not equals or not group_name:
            raise typer.BadParameter("--role-claim is written GROUP=ROLE")
        claims[group_name] = role
    fields = {
        "issuer": issuer,
        "provider": provider,
        "audiences": audience,
        "jwks_url": jwks_url,
        "algorithms": algorithm or ["RS256"],
        "directory": directory,
        "accept_id_tokens": accept_id_tokens,
        "required_scope": required_scope,
        "default_role": default_role,
        "role_claims": claims,
    }
    async with place.office() as office:
        place.out.fields(await office.bind_issuer(tenant_id, fields))


@command(app, "list")
async def list_issuers(place: Place, tenant_id: Id) -> None:
    """The issuers that a tenant accepts."""
    async with place.office() as office:
        place.out.table(_COLUMNS, await office.issuers(tenant_id), rest={})


@command(app, "unbind")
async def unbind(
    place: Place, tenant_id: Id, issuer: Annotated[str, typer.Argument(metavar="ISSUER", help="The exact `iss`")]
) -> None:
    """Refuse an issuer's tokens from now on."""
    async with place.office() as office:
        await office.unbind_issuer(tenant_id, issuer)
    place.out.fields({"issuer": issuer, "object": "issuer.deleted", "deleted": True})
