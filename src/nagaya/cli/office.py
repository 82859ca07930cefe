"""What the commands need of an operators' office, over a data folder or over a running server's ``/admin`` routes.

Both give the same plain values, so that a command does not know which it speaks to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol
from urllib.parse import quote

import msgspec

from nagaya.errors import (
    ConnectionSecretInvalid,
    InvalidValue,
    NoDataFolder,
    NotFound,
    ServerRefused,
    ServerUnreachable,
)

if TYPE_CHECKING:
    import httpx

    from nagaya.settings import Settings
    from nagaya.wiring import Nagaya

KeyAct = Literal["rotate", "revoke", "restore", "status"]
Shown = dict[str, Any]

CONNECT_S: Final = 5.0
ANSWER_S: Final = 120.0
"""Deleting a large tenant or verifying a long log takes its time."""
_PAGE: Final = 1000


class Office(Protocol):
    """An operator's acts. Every one may raise a ``NagayaError``; dictionaries are as ``/admin`` answers them."""

    async def create_tenant(self, fields: Mapping[str, Any]) -> Shown: ...
    async def tenants(self) -> list[Shown]: ...
    async def workspaces(self, tenant: str) -> list[Shown]: ...
    async def members(self, workspace: str) -> list[Shown]: ...
    async def add_member(self, workspace: str, user: str, role: str) -> Shown: ...
    async def remove_member(self, workspace: str, user: str) -> None: ...
    async def tenant(self, tenant: str) -> Shown: ...
    async def suspend(self, tenant: str) -> Shown: ...
    async def resume(self, tenant: str) -> Shown: ...
    async def change(self, tenant: str, changes: Mapping[str, Any]) -> Shown: ...
    async def delete(self, tenant: str) -> None: ...
    async def usage(self, tenant: str, month: str | None) -> Shown: ...
    async def set_model_key(self, tenant: str, api_key: str) -> None: ...
    async def external_id(self, tenant: str) -> str: ...
    async def set_connection(self, tenant: str, name: str, value: bytes) -> None: ...
    async def connections(self, tenant: str) -> list[str]: ...
    async def delete_connection(self, tenant: str, name: str) -> None: ...
    async def key(self, tenant: str, act: KeyAct) -> Shown: ...
    async def mint(self, tenant: str, fields: Mapping[str, Any]) -> str: ...
    async def revoke_tokens(
        self, tenant: str, *, user: str | None, session: str | None, token: str | None
    ) -> list[str]: ...
    async def create_api_key(self, fields: Mapping[str, Any]) -> Shown: ...
    async def api_keys(self, tenant: str | None) -> list[Shown]: ...
    async def revoke_api_key(self, key_id: str, tenant: str | None) -> None: ...
    async def bind_issuer(self, tenant: str, fields: Mapping[str, Any]) -> Shown: ...
    async def issuers(self, tenant: str) -> list[Shown]: ...
    async def unbind_issuer(self, tenant: str, issuer: str) -> None: ...
    async def verify_audit(self, tenant: str | None) -> Shown: ...


@asynccontextmanager
async def folder_office(settings: Settings, *, may_create: bool) -> AsyncIterator[Office]:
    """The office over a data folder. Servers may run on the folder meanwhile."""
    from nagaya.wiring import Nagaya

    if not may_create and settings.registry is None and not (settings.folder / "registry.db").exists():
        # A mistyped folder would be made, found empty, and "verified".
        raise NoDataFolder(place=settings.folder)
    async with Nagaya.open(settings=settings) as nagaya:
        yield FolderOffice(nagaya)


@asynccontextmanager
async def server_office(url: str, key: str, language: str) -> AsyncIterator[Office]:
    """The office of the server at ``url``, entered with an operator's API key."""
    import httpx

    headers = {"Authorization": f"Bearer {key}", "Accept-Language": language}
    timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
    async with httpx.AsyncClient(base_url=url.rstrip("/"), headers=headers, timeout=timeout) as client:
        yield ServerOffice(client, url)


class FolderOffice:
    """The office of a platform opened in this process."""

    def __init__(self, nagaya: Nagaya) -> None:
        self._nagaya = nagaya
        self._office = nagaya.tenants
        from nagaya.lifecycle.tenants import shown

        self._shown = shown

    async def create_tenant(self, fields: Mapping[str, Any]) -> Shown:
        return self._shown(
            await self._office.create(fields["id"], **{key: fields[key] for key in fields if key != "id"})
        )

    async def tenants(self) -> list[Shown]:
        found: list[Shown] = []
        after = ""
        while page := await self._office.list(after=after, limit=_PAGE):
            found += [self._shown(tenant) for tenant in page]
            after = page[-1].id
        return found

    async def workspaces(self, tenant: str) -> list[Shown]:
        return [self._shown(workspace) for workspace in await self._office.workspaces(tenant)]

    async def members(self, workspace: str) -> list[Shown]:
        return [_plain(member) for member in await self._nagaya.workspaces.members_of(workspace)]

    async def add_member(self, workspace: str, user: str, role: str) -> Shown:
        return _plain(await self._nagaya.workspaces.add_member_of(workspace, user, role))

    async def remove_member(self, workspace: str, user: str) -> None:
        await self._nagaya.workspaces.remove_member_of(workspace, user)

    async def tenant(self, tenant: str) -> Shown:
        return self._shown(await self._office.show(tenant))

    async def suspend(self, tenant: str) -> Shown:
        return self._shown(await self._office.suspend(tenant))

    async def resume(self, tenant: str) -> Shown:
        return self._shown(await self._office.resume(tenant))

    async def change(self, tenant: str, changes: Mapping[str, Any]) -> Shown:
        return self._shown(await self._office.change(tenant, changes))

    async def delete(self, tenant: str) -> None:
        await self._office.delete(tenant)

    async def usage(self, tenant: str, month: str | None) -> Shown:
        return dict(await self._office.usage(tenant, month))

    async def set_model_key(self, tenant: str, api_key: str) -> None:
        await self._nagaya.set_model_key(tenant, api_key)

    async def external_id(self, tenant: str) -> str:
        return await self._nagaya.external_id(tenant)

    async def set_connection(self, tenant: str, name: str, value: bytes) -> None:
        await self._nagaya.set_connection(tenant, name, value)

    async def connections(self, tenant: str) -> list[str]:
        return list(await self._nagaya.connection_names(tenant))

    async def delete_connection(self, tenant: str, name: str) -> None:
        await self._nagaya.delete_connection(tenant, name)

    async def key(self, tenant: str, act: KeyAct) -> Shown:
        acts = {
            "rotate": self._office.rotate_key,
            "revoke": self._office.revoke_key,
            "restore": self._office.restore_key,
            "status": self._office.key_status,
        }
        return _plain(await acts[act](tenant))

    async def mint(self, tenant: str, fields: Mapping[str, Any]) -> str:
        return await self._office.mint(tenant, **fields)

    async def revoke_tokens(
        self, tenant: str, *, user: str | None, session: str | None, token: str | None
    ) -> list[str]:
        return list(await self._office.revoke_tokens(tenant, user=user, session=session, token=token))

    async def create_api_key(self, fields: Mapping[str, Any]) -> Shown:
        others = {key: fields[key] for key in fields if key != "tenant"}
        return _plain(await self._office.create_api_key(fields["tenant"], **others))

    async def api_keys(self, tenant: str | None) -> list[Shown]:
        return [_plain(key) for key in await self._office.api_keys(tenant)]

    async def revoke_api_key(self, key_id: str, tenant: str | None) -> None:
        await self._office.revoke_api_key(key_id, tenant_id=tenant)

    async def bind_issuer(self, tenant: str, fields: Mapping[str, Any]) -> Shown:
        from nagaya.tenancy.bindings import IssuerBinding

        try:
            binding = msgspec.convert({**fields, "tenant_id": tenant}, IssuerBinding)
        except msgspec.ValidationError as wrong:
            problem, _, at = str(wrong).partition(" - at `$.")
            raise InvalidValue(at=at.rstrip("`") or "issuer", detail=problem) from None
        await self._office.bind_issuer(binding)
        return _plain(binding)

    async def issuers(self, tenant: str) -> list[Shown]:
        return [_plain(binding) for binding in await self._office.issuers(tenant)]

    async def unbind_issuer(self, tenant: str, issuer: str) -> None:
        await self._office.unbind_issuer(tenant, issuer)

    async def verify_audit(self, tenant: str | None) -> Shown:
        from nagaya.audit.entry import PLATFORM, chain_of

        chain = PLATFORM if tenant is None else chain_of(await self._office.show(tenant))
        await self._nagaya.audit.flush()
        verified = await self._nagaya.audit.verify(chain)
        return {"chain": str(chain), "entries": verified.count, "root": verified.root.hex(), "verified": True}


class ServerOffice:
    """The office of a running server, over HTTP."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def _ask(self, method: str, path: str, body: Any = None, **query: str | None) -> Any:
        import httpx

        wanted = {name: value for name, value in query.items() if value is not None}
        try:
            reply = await self._client.request(method, path, json=body, params=wanted)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as failed:
            raise ServerUnreachable(url=self._url, detail=str(failed) or type(failed).__name__) from None
        try:
            said = reply.json()
        except ValueError:
            raise ServerUnreachable(url=self._url, detail=f"HTTP {reply.status_code}, not Nagaya's JSON") from None
        if reply.is_success:
            return said
        shape = said.get("error") if isinstance(said, dict) else None
        if not isinstance(shape, dict) or not isinstance(shape.get("message"), str):
            raise ServerUnreachable(url=self._url, detail=f"HTTP {reply.status_code}, not Nagaya's error")
        raise ServerRefused(shape["message"], shape=shape)

    async def create_tenant(self, fields: Mapping[str, Any]) -> Shown:
        return _shown(await self._ask("POST", "/admin/tenants", dict(fields)))

    async def tenants(self) -> list[Shown]:
        found: list[Shown] = []
        after = ""
        while page := (await self._ask("GET", "/admin/tenants", after=after, limit=str(_PAGE)))["data"]:
            found += page
            after = page[-1]["id"]
        return found

    async def workspaces(self, tenant: str) -> list[Shown]:
        return list((await self._ask("GET", _tenant(tenant, "workspaces")))["data"])

    async def members(self, workspace: str) -> list[Shown]:
        return list((await self._ask("GET", _tenant(workspace, "members")))["data"])

    async def add_member(self, workspace: str, user: str, role: str) -> Shown:
        return _shown(await self._ask("POST", _tenant(workspace, "members"), {"user": user, "role": role}))

    async def remove_member(self, workspace: str, user: str) -> None:
        await self._ask("DELETE", _tenant(workspace, "members"), user=user)

    async def tenant(self, tenant: str) -> Shown:
        return _shown(await self._ask("GET", _tenant(tenant)))

    async def suspend(self, tenant: str) -> Shown:
        return _shown(await self._ask("POST", _tenant(tenant, "suspend")))

    async def resume(self, tenant: str) -> Shown:
        return _shown(await self._ask("POST", _tenant(tenant, "resume")))

    async def change(self, tenant: str, changes: Mapping[str, Any]) -> Shown:
        return _shown(await self._ask("PATCH", _tenant(tenant), dict(changes)))

    async def delete(self, tenant: str) -> None:
        await self._ask("DELETE", _tenant(tenant))

    async def usage(self, tenant: str, month: str | None) -> Shown:
        return _shown(await self._ask("GET", _tenant(tenant, "usage"), month=month))

    async def set_model_key(self, tenant: str, api_key: str) -> None:
        await self._ask("PUT", _tenant(tenant, "model-key"), {"api_key": api_key})

    async def external_id(self, tenant: str) -> str:
        return str((await self._ask("POST", _tenant(tenant, "external-id"), {}))["external_id"])

    async def set_connection(self, tenant: str, name: str, value: bytes) -> None:
        try:
            fields = msgspec.json.decode(value, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise ConnectionSecretInvalid(name=name, problem="it is not a JSON object") from None
        await self._ask("PUT", _tenant(tenant, f"connections/{_segment(name, 'name')}"), fields)

    async def connections(self, tenant: str) -> list[str]:
        return list((await self._ask("GET", _tenant(tenant, "connections")))["data"])

    async def delete_connection(self, tenant: str, name: str) -> None:
        await self._ask("DELETE", _tenant(tenant, f"connections/{_segment(name, 'name')}"))

    async def key(self, tenant: str, act: KeyAct) -> Shown:
        path = f"/admin/keys/{_address(tenant)}"
        return _shown(await (self._ask("GET", path) if act == "status" else self._ask("POST", f"{path}/{act}")))

    async def mint(self, tenant: str, fields: Mapping[str, Any]) -> str:
        return str((await self._ask("POST", _tenant(tenant, "tokens"), dict(fields)))["token"])

    async def revoke_tokens(
        self, tenant: str, *, user: str | None, session: str | None, token: str | None
    ) -> list[str]:
        fields = {"user": user, "session": session} | ({} if token is None else {"token": token})
        return list(_shown(await self._ask("POST", _tenant(tenant, "revocations"), fields)).get("tokens", ()))

    async def create_api_key(self, fields: Mapping[str, Any]) -> Shown:
        return _shown(await self._ask("POST", "/admin/api-keys", dict(fields)))

    async def api_keys(self, tenant: str | None) -> list[Shown]:
        return list((await self._ask("GET", "/admin/api-keys", tenant=tenant))["data"])

    async def revoke_api_key(self, key_id: str, tenant: str | None) -> None:
        await self._ask("DELETE", f"/admin/api-keys/{_segment(key_id, 'api key')}", tenant=tenant)

    async def bind_issuer(self, tenant: str, fields: Mapping[str, Any]) -> Shown:
        return _shown(await self._ask("POST", _tenant(tenant, "issuers"), dict(fields)))

    async def issuers(self, tenant: str) -> list[Shown]:
        return list((await self._ask("GET", _tenant(tenant, "issuers")))["data"])

    async def unbind_issuer(self, tenant: str, issuer: str) -> None:
        await self._ask("DELETE", _tenant(tenant, "issuers"), issuer=issuer)

    async def verify_audit(self, tenant: str | None) -> Shown:
        return _shown(await self._ask("GET", "/admin/audit/verify", tenant=tenant))


def _plain(value: Any) -> Shown:
    shown: Shown = msgspec.to_builtins(value)
    return shown


def _shown(said: Any) -> Shown:
    return dict(said)


def _tenant(tenant: str, act: str = "") -> str:
    path = f"/admin/tenants/{_address(tenant)}"
    return f"{path}/{act}" if act else path


def _address(tenant: str) -> str:
    """A tenant's id or a workspace's address as the segments of a path."""
    tenant, slash, workspace = tenant.partition("/")
    path = _segment(tenant, "tenant")
    return f"{path}/workspaces/{_segment(workspace, 'workspace')}" if slash else path


def _segment(text: str, kind: str) -> str:
    """One segment of a path. What would be read as several, or as none, is nobody's id."""
    if not text.strip(".") or "/" in text:
        raise NotFound(kind)
    return quote(text, safe="", errors="replace")
