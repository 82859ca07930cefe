"""A caller's own tenant: ``/v1/me``, ``/v1/usage``, ``/v1/audit``."""

from __future__ import annotations

from nagaya.audit.entry import chain_of
from nagaya.errors import InvalidValue
from nagaya.server.calls import Call, Reply, encode, number_of
from nagaya.tenancy.principal import Role, Scope


async def me(call: Call) -> Reply:
    """Who the caller is, in which tenant, with which role and scopes."""
    async with await call.admit_anybody() as context:
        entrance = context.session.entrance
        principal, tenant, workspace = entrance.principal, entrance.parent or context.tenant, None
        if entrance.parent is not None:
            room = context.tenant
            workspace = {"id": room.address, "name": room.name, "state": room.state, "tier": room.tier}
        shown = {
            "object": "me",
            "tenant": {"id": tenant.id, "name": tenant.name, "state": tenant.state, "tier": tenant.tier},
            "workspace": workspace,
            "user": principal.user_key,
            "username": principal.username,
            "role": principal.role,
            "scopes": sorted(principal.scopes),
            "provider": principal.provider,
            "mfa": principal.mfa,
            "expires_at": principal.expires_at_us // 1_000_000,
        }
        return Reply(encode(shown))


async def usage(call: Call) -> Reply:
    """What the caller's tenant used in a month (``YYYY-MM``; this one unless given). For tenant administrators."""
    async with await call.admit(Scope.ADMIN, Role.TENANT_ADMIN) as context:
        month = call.query({"month": ""})["month"]
        if month and not (len(month) == 7 and month[4] == "-" and (month[:4] + month[5:]).isdigit()):
            raise InvalidValue(param="month", at="month", detail="expected YYYY-MM")
        totals = await call.nagaya.tenants.usage(context.tenant.address, month or None)
        return Reply(encode({"object": "usage", "month": month or None, "usage": totals}))


async def audit(call: Call) -> Reply:
    """The tenant's audit log, oldest first. For tenant administrators."""
    async with await call.admit(Scope.ADMIN, Role.TENANT_ADMIN) as context:
        query = call.query({"after": "0", "limit": "100"})
        after = number_of(query["after"], "after", lowest=0, highest=10**9)
        limit = number_of(query["limit"], "limit", lowest=1, highest=1000)
        log = call.nagaya.audit
        await log.flush()
        entries = await log.read(chain_of(context.tenant), after=after, limit=limit)
        return Reply(encode({"object": "list", "data": entries, "has_more": len(entries) == limit}))
