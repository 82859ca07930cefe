"""The operators' routes: tenants, keys, API keys, issuers, audit. Metadata only; nothing here opens a record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from nagaya.audit.entry import PLATFORM, chain_of
from nagaya.lifecycle.tenants import TenantOffice, shown
from nagaya.server.calls import Call, Reply, encode, number_of
from nagaya.tenancy.bindings import IssuerBinding
from nagaya.tenancy.principal import Provider, Role, Scope

Act = Callable[[Call, TenantOffice], Awaitable[Any]]


class TenantIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /admin/tenants``. An ``id`` such as ``acme/legal`` makes a workspace, which takes after its
    tenant in what is not given; ``admin`` is its first administrator."""

    id: str
    name: str
    tier: str | None = None
    isolation: str | None = None
    models: tuple[str, ...] | None = None
    regions: list[str] | None = None
    hosts: list[str] = []
    trial: bool = False
    store: str | None = None
    key_service: str | None = None
    blobs: str | None = None
    admin: str | None = None


class MemberIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /admin/tenants/{id}/workspaces/{workspace}/members``: a user as ``/v1/me`` shows it."""

    user: str
    role: str = "user"


class TokenIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /admin/tenants/{id}/tokens``."""

    user: str
    role: str = "user"
    lifetime_s: int = 3600
    mfa: bool = False


class RevocationIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /admin/tenants/{id}/revocations``; without any of them, everybody's tokens are refused.

    ``token`` is one token's id (``jti``; of Entra ``uti``) or that token itself."""

    user: str | None = None
    session: str | None = None
    token: str | None = None


class ApiKeyIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /admin/api-keys``; without a tenant it makes an operator's key."""

    user: str
    tenant: str | None = None
    name: str = "key"
    role: str = "user"
    scopes: list[str] = []
    lifetime_s: int = 365 * 86_400


class IssuerIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /admin/tenants/{id}/issuers``."""

    issuer: str
    provider: Provider
    audiences: tuple[str, ...]
    jwks_url: str
    algorithms: tuple[str, ...] = ("RS256",)
    directory: str | None = None
    accept_id_tokens: bool = False
    required_scope: str | None = None
    default_role: Role = Role.USER
    role_claims: dict[str, Role] = {}


class SecretIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``PUT /admin/tenants/{id}/model-key``."""

    api_key: str
    host: str | None = None


def operators_only(act: Act, needs: Scope, status: int = 200) -> Callable[[Call], Awaitable[Reply]]:
    """A route for operators whose key has the scope; its answer is encoded as JSON.

    ``nagaya.read`` looks, ``nagaya.write`` makes, opens and shuts tenants and rotates their keys; whatever gives or
    takes away access, or destroys, needs ``nagaya.admin``: with less nobody could be kept from more.
    """

    async def route(call: Call) -> Reply:
        operator = await call.nagaya.gate.operator(call.credential(), needs)
        # Several keys may be the same user's: the log names the key too, by its public id.
        office = call.nagaya.tenants.by(f"{operator.user_id} {operator.token_id}")
        return Reply(encode(await act(call, office)), status)

    # The document of every route takes its summary from here.
    route.__doc__ = act.__doc__
    return route


def on_workspace(handler: Callable[[Call], Awaitable[Any]]) -> Callable[[Call], Awaitable[Any]]:
    """The same route for a workspace: the first two segments of its path are the two parts of the address."""

    async def route(call: Call) -> Any:
        tenant, workspace, *others = call.params
        call.params = (f"{tenant}/{workspace}", *others)
        return await handler(call)

    route.__doc__ = handler.__doc__
    return route


async def create_tenant(call: Call, office: TenantOffice) -> Any:
    """Make a tenant, or a workspace of one, with its own key and store."""
    given = await call.json(TenantIn)
    made = await office.create(
        given.id,
        name=given.name,
        tier=given.tier,
        isolation=given.isolation,
        models=given.models,
        regions=given.regions,
        hosts=given.hosts,
        trial=given.trial,
        store=given.store,
        key_service=given.key_service,
        blobs=given.blobs,
        admin=given.admin,
    )
    return shown(made)


async def list_tenants(call: Call, office: TenantOffice) -> Any:
    """Tenants by id, without their workspaces."""
    query = call.query({"after": "", "limit": "100"})
    limit = number_of(query["limit"], "limit", lowest=1, highest=1000)
    found = await office.list(after=query["after"], limit=limit)
    return {"object": "list", "data": [shown(each) for each in found], "has_more": len(found) == limit}


async def list_workspaces(call: Call, office: TenantOffice) -> Any:
    """The workspaces of a tenant by name."""
    return {"object": "list", "data": [shown(each) for each in await office.workspaces(call.params[0])]}


async def list_members(call: Call, office: TenantOffice) -> Any:
    """Who may enter a workspace."""
    return {"object": "list", "data": list(await call.nagaya.workspaces.members_of(call.params[0]))}


async def add_member(call: Call, office: TenantOffice) -> Any:
    """Let somebody of the tenant into a workspace, or give a member another role."""
    given = await call.json(MemberIn)
    return await call.nagaya.workspaces.add_member_of(call.params[0], given.user, given.role, actor=office.actor)


async def remove_member(call: Call, office: TenantOffice) -> Any:
    """Let somebody into a workspace no more."""
    user = call.query({"user": ""})["user"]
    await call.nagaya.workspaces.remove_member_of(call.params[0], user, actor=office.actor)
    return {"user": user, "object": "workspace.member.deleted", "deleted": True}


async def show_tenant(call: Call, office: TenantOffice) -> Any:
    """One tenant's configuration."""
    return shown(await office.show(call.params[0]))


async def change_tenant(call: Call, office: TenantOffice) -> Any:
    """Change a tenant's settings."""
    return shown(await office.change(call.params[0], await call.json(dict[str, Any])))


async def delete_tenant(call: Call, office: TenantOffice) -> Any:
    """Destroy a tenant's keys, then its store."""
    await office.delete(call.params[0])
    return {"id": call.params[0], "object": "tenant.deleted", "deleted": True}


async def suspend(call: Call, office: TenantOffice) -> Any:
    """Shut a tenant's door."""
    return shown(await office.suspend(call.params[0]))


async def resume(call: Call, office: TenantOffice) -> Any:
    """Open a suspended tenant's door."""
    return shown(await office.resume(call.params[0]))


async def usage(call: Call, office: TenantOffice) -> Any:
    """What a tenant used in a month, and its bytes at rest."""
    return await office.usage(call.params[0], call.query({"month": ""})["month"] or None)


async def set_model_key(call: Call, office: TenantOffice) -> Any:
    """Keep the key of a tenant's model account in its vault."""
    given = await call.json(SecretIn)
    await call.nagaya.set_model_key(call.params[0], given.api_key, host=given.host, actor=office.actor)
    return {"id": call.params[0], "object": "tenant.model_key", "set": True}


async def external_id(call: Call, office: TenantOffice) -> Any:
    """The ExternalId for the trust policy of a tenant's AWS role; made by the platform, also before the tenant is."""
    return {"tenant": call.params[0], "external_id": await call.nagaya.external_id(call.params[0])}


async def set_connection(call: Call, office: TenantOffice) -> Any:
    """Set what opens the tenant's own account, such as `aws-connection`. Nothing shows it again."""
    given = await call.json(dict[str, Any])
    await call.nagaya.set_connection(call.params[0], call.params[1], encode(given), actor=office.actor)
    return {"tenant": call.params[0], "name": call.params[1], "object": "connection", "set": True}


async def list_connections(call: Call, office: TenantOffice) -> Any:
    """The names of the connection secrets that are set."""
    return {"object": "list", "data": list(await call.nagaya.connection_names(call.params[0]))}


async def delete_connection(call: Call, office: TenantOffice) -> Any:
    """Forget a connection secret."""
    await call.nagaya.delete_connection(call.params[0], call.params[1], actor=office.actor)
    return {"tenant": call.params[0], "name": call.params[1], "object": "connection.deleted", "deleted": True}


async def mint(call: Call, office: TenantOffice) -> Any:
    """A token of the local issuer."""
    given = await call.json(TokenIn)
    token = await office.mint(call.params[0], given.user, given.role, lifetime_s=given.lifetime_s, mfa=given.mfa)
    return {"token": token}


async def revoke_tokens(call: Call, office: TenantOffice) -> Any:
    """Refuse the tokens issued until now to a user, a session, or everybody; or one single token."""
    given = await call.json(RevocationIn)
    token_ids = await office.revoke_tokens(call.params[0], user=given.user, session=given.session, token=given.token)
    return {"revoked": True, "tokens": token_ids}


async def key_status(call: Call, office: TenantOffice) -> Any:
    """What the key service says of a tenant's key, and its versions."""
    return await office.key_status(call.params[0])


async def rotate_key(call: Call, office: TenantOffice) -> Any:
    """Seal under a new key version from now on."""
    return await office.rotate_key(call.params[0])


async def revoke_key(call: Call, office: TenantOffice) -> Any:
    """Disable a tenant's key."""
    return await office.revoke_key(call.params[0])


async def restore_key(call: Call, office: TenantOffice) -> Any:
    """Enable a disabled key."""
    return await office.restore_key(call.params[0])


async def create_api_key(call: Call, office: TenantOffice) -> Any:
    """A new API key, shown this once."""
    given = await call.json(ApiKeyIn)
    return await office.create_api_key(
        given.tenant,
        name=given.name,
        user=given.user,
        role=given.role,
        scopes=given.scopes,
        lifetime_s=given.lifetime_s,
    )


async def list_api_keys(call: Call, office: TenantOffice) -> Any:
    """The API keys of a tenant, or the operators'."""
    tenant = call.query({"tenant": ""})["tenant"] or None
    return {"object": "list", "data": await office.api_keys(tenant)}


async def revoke_api_key(call: Call, office: TenantOffice) -> Any:
    """Refuse an API key from now on."""
    tenant = call.query({"tenant": ""})["tenant"] or None
    await office.revoke_api_key(call.params[0], tenant_id=tenant)
    return {"id": call.params[0], "object": "api_key.deleted", "deleted": True}


async def bind_issuer(call: Call, office: TenantOffice) -> Any:
    """Accept an issuer's tokens for a tenant."""
    given = await call.json(IssuerIn)
    binding = IssuerBinding(tenant_id=call.params[0], **msgspec.structs.asdict(given))
    await office.bind_issuer(binding)
    return binding


async def list_issuers(call: Call, office: TenantOffice) -> Any:
    """The issuers bound to a tenant."""
    return {"object": "list", "data": await office.issuers(call.params[0])}


async def unbind_issuer(call: Call, office: TenantOffice) -> Any:
    """Refuse an issuer's tokens from now on."""
    issuer = call.query({"issuer": ""})["issuer"]
    await office.unbind_issuer(call.params[0], issuer)
    return {"issuer": issuer, "object": "issuer.deleted", "deleted": True}


async def verify_audit(call: Call, office: TenantOffice) -> Any:
    """Re-read and verify the audit log of a tenant, or the platform's."""
    tenant = call.query({"tenant": ""})["tenant"]
    chain = chain_of(await office.show(tenant)) if tenant else PLATFORM
    await call.nagaya.audit.flush()
    verified = await call.nagaya.audit.verify(chain)
    return {"chain": str(chain), "entries": verified.count, "root": verified.root.hex(), "verified": True}
