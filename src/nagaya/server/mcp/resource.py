"""What ``/mcp`` says of itself to clients that sign in by OAuth (RFC 9728), and how it asks them to."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any, Final

from nagaya.errors import Forbidden, NagayaError, Unauthenticated
from nagaya.server.calls import Call, Reply, encode
from nagaya.tenancy.bindings import IssuerBinding
from nagaya.tenancy.principal import Scope

PATH: Final = "/mcp"
METADATA: Final = "/.well-known/oauth-protected-resource"
_SCOPE_SERVER: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
"""What may stand in a scope (RFC 6749), and so in a header between quotes."""
_HOST: Final = re.compile(r"[A-Za-z0-9.-]{1,253}(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{1,5})?")


async def metadata(call: Call) -> Reply:
    """What clients of `/mcp` need to sign in by OAuth: at a tenant's own host with the issuers bound to that tenant."""
    call.query({})
    owner = await _owner(call)
    shown: dict[str, Any] = {
        "resource": _base(call, owner) + PATH,
        "resource_name": "Nagaya",
        "bearer_methods_supported": ["header"],
    }
    if owner is not None:
        bindings = await call.nagaya.registry.tenant_issuers(owner)
        if bindings:
            shown["authorization_servers"] = sorted({binding.issuer for binding in bindings})
        scopes = sorted({binding.required_scope for binding in bindings if binding.required_scope})
        if scopes:
            # Only what the issuers are known to grant: asked for another, they would refuse the whole sign-in.
            shown["scopes_supported"] = scopes
    return Reply(encode(shown))


async def challenge(call: Call, problem: NagayaError) -> tuple[tuple[bytes, bytes], ...]:
    """The ``WWW-Authenticate`` header that goes with a refusal, where signing in otherwise may help."""
    lacks_scope = isinstance(problem, Forbidden) and str(problem.facts.get("needs", "")).startswith("scope ")
    if problem.status != 401 and not lacks_scope:
        return ()
    owner, server = None, ""
    with contextlib.suppress(NagayaError):
        owner = await _owner(call)
        if lacks_scope and owner is not None:
            server = _scope_server(await call.nagaya.registry.tenant_issuers(owner))
    error = ""
    if lacks_scope:
        error = f'error="insufficient_scope", scope="{server}{Scope.READ} {server}{Scope.WRITE}", '
    elif isinstance(problem, Unauthenticated) and call.header(b"authorization") is not None:
        error = 'error="invalid_token", '
    place = f"{_base(call, owner)}{METADATA}{PATH}"
    return ((b"www-authenticate", f'Bearer {error}resource_metadata="{place}"'.encode()),)


def _scope_server(bindings: Sequence[IssuerBinding]) -> str:
    """What the tenant's issuers put in front of a scope, such as Cognito's name of a resource server (``api/``); empty
    where they differ. Asked for a scope without it, they would refuse the whole sign-in."""
    servers = {binding.required_scope.rpartition("/")[0] for binding in bindings if binding.required_scope}
    server = servers.pop() if len(servers) == 1 else ""
    return f"{server}/" if _SCOPE_SERVER.fullmatch(server) else ""


async def _owner(call: Call) -> str | None:
    """The tenant whose host the call came to."""
    named = call.named().host
    return None if named is None else await call.nagaya.registry.host_owner(named)


def _base(call: Call, owner: str | None) -> str:
    """Where the caller found this server: a tenant's own host, else the operator's ``public_url``, else the host."""
    public = (call.nagaya.settings.public_url or "").rstrip("/")
    host = call.header(b"host") or ""
    if (owner is None and public) or not _HOST.fullmatch(host):
        return public
    is_https = public.startswith("https://") or call.scope.get("scheme") == "https"
    return f"{'https' if is_https else 'http'}://{host}"
