"""The tenant office: create, show, change, suspend, resume and delete tenants and workspaces; their keys, API keys and
issuers.

It works on metadata alone: nothing here can open a tenant's records. Wherever it takes a tenant's id it takes the
address of a workspace too.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from copy import copy
from typing import Any, Final, Literal, Protocol

import msgspec

from nagaya.audit.entry import PLATFORM, chain_of
from nagaya.audit.log import AuditLog
from nagaya.blobs.driver import BlobHouse
from nagaya.errors import (
    InvalidValue,
    KeyDestroyed,
    KeyGone,
    KeyNotOurs,
    NotFound,
    RegistryUnreachable,
    SealBroken,
    StoreDamaged,
)
from nagaya.identity import api_keys
from nagaya.identity.local import LocalIssuer
from nagaya.identity.token_ids import token_ids_of
from nagaya.kernel.clock import Clock
from nagaya.kernel.ended import carried_out
from nagaya.keys.driver import KeyControl, KeyDriver, KeyRetraction
from nagaya.keys.keyring import key_context, new_version
from nagaya.keys.versions import KeyVersion, KeyVersionState
from nagaya.stores.driver import StoreHouse
from nagaya.tenancy.bindings import ApiKeyRecord, IssuerBinding, Member, Revocation
from nagaya.tenancy.changes import LONGEST_TOKEN_S, check_within
from nagaya.tenancy.directory import TenantDirectory
from nagaya.tenancy.names import check_address, room_of
from nagaya.tenancy.principal import ALL_SCOPES, Role, Scope
from nagaya.tenancy.tenant import IsolationLevel, Tenant, TenantState, Tier
from nagaya.usage.meter import Meter

OPERATOR: Final = "operator"
EMBEDDED_KEYS: Final = "local://"
REVOKED_FOR_US: Final = (LONGEST_TOKEN_S + 86_400) * 1_000_000
"""How long a revocation is kept: as long as any tenant may let a token live, whatever this one allows today, and a day
for clocks that differ. One kept shorter would let the refused token in again."""


Fill = Callable[[Tenant], Awaitable[None]]
"""Puts into a new tenant's room what it begins with."""


class Onboarding(TenantDirectory, Protocol):
    """A directory in which a creation can be undone by whoever began it, and keys be destroyed."""

    async def create_tenant(self, tenant: Tenant, *, onboarding_token: bytes | None = None) -> None: ...
    async def give_up_onboarding(self, tenant_id: str, token: bytes) -> bool: ...
    async def discard_onboarding(self, tenant_id: str, token: bytes) -> bool: ...
    async def begin_deletion(self, tenant_id: str) -> Tenant: ...
    async def is_onboarding(self, tenant_id: str, token: bytes) -> bool: ...
    async def destroy_key_versions(self, room: str) -> None: ...
    async def end_onboarding(
        self, tenant_id: str, state: TenantState, *, key: KeyVersion, admin: Member | None = None
    ) -> Tenant: ...


class Belongings(Protocol):
    """Opens a tenant's store house and key service for the length of one piece of work."""

    def store_house(self, tenant: Tenant) -> AbstractAsyncContextManager[StoreHouse]: ...
    def keys(self, tenant: Tenant) -> AbstractAsyncContextManager[KeyDriver]: ...

    def has_blobs(self, tenant: Tenant) -> bool:
        """Whether the tenant has a place for blobs: its own, or the platform's."""
        ...

    def blob_house(self, tenant: Tenant) -> AbstractAsyncContextManager[BlobHouse]: ...

    async def forget(self, tenant: Tenant) -> None:
        """Delete what opened the tenant's own accounts. May be repeated."""
        ...

    async def probe(self, tenant: Tenant) -> None:
        """Use store and blobs as the work will; raises what they raise."""
        ...

    async def try_models(self, tenant: Tenant, urls: Sequence[str]) -> None:
        """Ask models whose account is known for a word; raises what they raise."""
        ...


class KeyVersionShown(msgspec.Struct):
    """A key version as operators see it: never its bytes."""

    version: int
    state: str
    created_at_us: int
    uses: int


class KeyStatus(msgspec.Struct):
    """A tenant's key: what the key service says of it, and its versions."""

    tenant: str
    service: str
    versions: list[KeyVersionShown]


class IssuedApiKey(msgspec.Struct):
    """A new API key. ``api_key`` is shown this once and stored nowhere."""

    key_id: str
    api_key: str
    tenant: str | None
    user: str
    role: str
    expires_at_us: int


class ApiKeyShown(msgspec.Struct):
    key_id: str
    tenant: str | None
    name: str
    user: str
    role: str
    scopes: list[str]
    created_at_us: int
    expires_at_us: int
    revoked_at_us: int | None


class _Made:
    """What a creation has made, and so has to undo where it fails."""

    row = False
    key: KeyVersion | None = None
    is_key_new = False
    """Nobody had a key of that name before: it is this creation's to take back."""
    store = False
    blobs = False


class TenantOffice:
    """What an operator can do to tenants. Every act is audited; every method may raise the registry's errors."""

    def __init__(
        self,
        directory: Onboarding,
        belongings: Belongings,
        issuer: LocalIssuer,
        audit: AuditLog,
        meter: Meter,
        clock: Clock,
        check_model: Callable[[str, Sequence[str]], None],
        check_issuer: Callable[[IssuerBinding], None],
        *,
        default_store: str,
    ) -> None:
        self._directory = directory
        self._belongings = belongings
        self._issuer = issuer
        self._audit = audit
        self._meter = meter
        self._clock = clock
        self._check_model = check_model
        self._check_issuer = check_issuer
        self._default_store = default_store
        self.actor = OPERATOR
        """Under whose name its acts go on record."""

    def by(self, actor: str) -> TenantOffice:
        """The same office, its acts on record as ``actor``'s."""
        office = copy(self)
        office.actor = actor
        return office

    async def _find(self, address: str) -> Tenant:
        """The tenant with this id, or the workspace at this address; else ``NotFound``."""
        return await self._directory.tenant(room_of(address))

    def _note(self, tenant: Tenant | None, action: str, target: str = "", *, outcome: str = "done") -> None:
        chain = PLATFORM if tenant is None else chain_of(tenant)
        self._audit.record(
            chain,
            actor=self.actor,
            role=OPERATOR,
            action=action,
            target=target,
            outcome="failed" if outcome == "failed" else "done",
        )

    # --- tenants ---

    async def create(
        self,
        tenant_id: str,
        *,
        name: str,
        tier: str | None = None,
        isolation: str | None = None,
        models: Sequence[str] | None = None,
        regions: Sequence[str] | None = None,
        hosts: Sequence[str] = (),
        trial: bool = False,
        store: str | None = None,
        key_service: str | None = None,
        blobs: str | None = None,
        admin: str | None = None,
        fill: Fill | None = None,
        token: bytes | None = None,
    ) -> Tenant:
        """Make a tenant with its own key and its own store, and open it.

        ``fill`` puts into its room what is to lie there before it opens. ``token`` (32 random bytes) lets
        :meth:`finish` go on where the process ended within it.

        ``tenant/workspace`` makes a workspace: a room of its own in the place of its tenant, which it takes after in
        everything that is not given. ``admin`` is its first administrator, by the user key.

        Raises ``TenantIdInvalid``, ``TenantExists``, ``TenantLookAlike``; for a workspace also ``NotFound`` and
        ``TenantNotOpen``. A failure undoes what this call did, and nothing that anybody else did.
        """
        check_address(tenant_id)
        address, tenant_id = tenant_id, room_of(tenant_id)
        alike = _PLAIN if address == tenant_id else await self._directory.tenant(address.partition("/")[0])
        if alike is _PLAIN and admin is not None:
            raise InvalidValue(param="admin", at="admin", detail="only a workspace has members")
        if alike is not _PLAIN:
            _check_room_for(alike, regions)
        models = alike.models if models is None else models
        regions = alike.regions if regions is None else regions
        for url in models:
            self._check_model(url, regions)
        tenant = Tenant(
            id=tenant_id,
            name=name,
            state=TenantState.ONBOARDING,
            created_at_us=self._clock.now_us(),
            tier=alike.tier if tier is None else _one_of(Tier, tier, "tier"),
            isolation=alike.isolation if isolation is None else _one_of(IsolationLevel, isolation, "isolation"),
            store=store or alike.store or self._default_store,
            key_service=key_service or alike.key_service,
            blobs=blobs or alike.blobs,
            models=tuple(models),
            regions=tuple(regions),
            hosts=tuple(hosts),
            max_token_lifetime_s=alike.max_token_lifetime_s,
            parent=None if alike is _PLAIN else alike.id,
            workspace=None if alike is _PLAIN else address.partition("/")[2],
        )
        first = None
        if admin is not None:
            first = Member(workspace_id=tenant_id, user=admin, role=Role.TENANT_ADMIN, since_us=self._clock.now_us())
        token = token or secrets.token_bytes(32)
        state = TenantState.TRIAL if trial else TenantState.ACTIVE
        made = _Made()
        try:
            await carried_out(self._make_row(tenant, token, made))
            async with self._belongings.keys(tenant) as keys:
                await carried_out(self._make_key(keys, tenant, made))
                assert made.key is not None
                key = made.key
                # A key service that wraps but may not unwrap would seal what nobody can read.
                await keys.unwrap(key.wrapped, key_context(tenant_id, key.version))
            async with self._belongings.store_house(tenant) as house:
                await carried_out(self._make_store(house, tenant, made))
            if tenant.blobs is not None:
                async with self._belongings.blob_house(tenant) as blobs_house:
                    await carried_out(self._make_blobs(blobs_house, tenant, made))
            await self._belongings.probe(tenant)
            await self._belongings.try_models(tenant, tenant.models)
            if fill is None:
                tenant = await self._directory.end_onboarding(tenant_id, state, key=key, admin=first)
            else:
                await self._directory.add_key_version(tenant_id, key)
                if first is not None:
                    await self._directory.put_member(first)
                await fill(tenant)
                tenant = await self._directory.set_state(tenant_id, state)
        except BaseException:
            # Only this call's own steps: the token proves that the row is ours, the notes that the rest is.
            if made.row:
                undone = await carried_out(self._undo(tenant, token, made))
                # Whoever gives up at the very last step has made a tenant; whose row was not kept has not.
                is_made = made.key is not None and not undone
                self._note(None, "tenant.create", address, outcome="done" if is_made else "failed")
            raise
        self._note(tenant, "tenant.create", address)
        return tenant

    async def _undo(self, tenant: Tenant, token: bytes, made: _Made) -> bool:
        """Remove what a creation made, unless it was the very last step that failed; gives whether it was removed.

        The id is free only at the end: whoever took it before would lose to this what he had made meanwhile.
        """
        if not await self._directory.give_up_onboarding(tenant.id, token):
            return False
        if made.store:
            await self._destroy(tenant, but_blobs=tenant.blobs is not None and not made.blobs)
        if made.is_key_new:
            async with self._belongings.keys(tenant) as keys:
                if isinstance(keys, KeyRetraction):
                    await keys.retract(tenant.id)
        await self._directory.discard_onboarding(tenant.id, token)
        return True

    async def _make_row(self, tenant: Tenant, token: bytes, made: _Made) -> None:
        try:
            await self._directory.create_tenant(tenant, onboarding_token=token)
        except RegistryUnreachable:
            # Whether it was kept is not known; the token tells.
            made.row = True
            raise
        made.row = True

    async def _make_key(self, keys: KeyDriver, tenant: Tenant, made: _Made) -> None:
        if isinstance(keys, KeyControl):
            try:
                await keys.status(tenant.id)
            except NotFound:
                made.is_key_new = True
        made.key = await new_version(keys, tenant.id, 1, clock=self._clock)

    async def _make_store(self, house: StoreHouse, tenant: Tenant, made: _Made) -> None:
        await house.create(tenant.id)
        made.store = True

    async def _make_blobs(self, house: BlobHouse, tenant: Tenant, made: _Made) -> None:
        await house.create(tenant.id)
        made.blobs = True

    async def finish(self, tenant_id: str, fill: Fill, token: bytes) -> Tenant | None:
        """Go on with a creation that ended within ``fill``; None where none was begun with this ``token``.

        A failure undoes the creation.
        """
        room = room_of(tenant_id)
        made = _Made()
        made.store = made.blobs = True
        if not await self._directory.is_onboarding(room, token):
            if await self._directory.give_up_onboarding(room, token):
                # Its undoing was interrupted.
                with contextlib.suppress(NotFound):
                    await self._undo(await self._directory.tenant(room), token, made)
            return None
        tenant = await self._directory.tenant(room)
        try:
            await fill(tenant)
            tenant = await self._directory.set_state(room, TenantState.ACTIVE)
        except BaseException as failed:
            await carried_out(self._undo(tenant, token, made))
            if isinstance(failed, StoreDamaged | NotFound):
                # It ended before there was a room to fill: begin anew.
                return None
            self._note(None, "tenant.create", tenant_id, outcome="failed")
            raise
        self._note(tenant, "tenant.create", tenant_id)
        return tenant

    async def show(self, tenant_id: str) -> Tenant:
        """The tenant, or ``NotFound``."""
        return await self._find(tenant_id)

    async def list(self, *, after: str = "", limit: int = 100) -> Sequence[Tenant]:
        """Tenants by id, without their workspaces."""
        return await self._directory.tenants(after=after, limit=limit)

    async def workspaces(self, tenant_id: str) -> Sequence[Tenant]:
        """The workspaces of a tenant by name, or ``NotFound``."""
        return await self._directory.workspaces((await self._directory.tenant(tenant_id)).id)

    async def suspend(self, tenant_id: str) -> Tenant:
        """Shut the tenant's door: its sessions and streams end within a second or so, at the latest within 30."""
        return await self._move(tenant_id, TenantState.SUSPENDED, "tenant.suspend")

    async def resume(self, tenant_id: str) -> Tenant:
        """Open the door of a suspended tenant again."""
        return await self._move(tenant_id, TenantState.ACTIVE, "tenant.resume")

    async def _move(self, tenant_id: str, state: TenantState, action: str) -> Tenant:
        tenant = await self._directory.set_state((await self._find(tenant_id)).id, state)
        self._note(tenant, action, tenant.address)
        return tenant

    async def change(self, tenant_id: str, changes: Mapping[str, Any]) -> Tenant:
        """Change settings of a tenant. Raises ``UnknownParameter`` or ``InvalidValue``."""
        before = await self._find(tenant_id)
        # What is no list of texts is refused below, with the other fields of a wrong kind.
        regions = _texts(changes.get("regions", before.regions))
        models = _texts(changes.get("models", before.models))
        for url in models:
            self._check_model(url, regions)
        there = msgspec.structs.replace(before, regions=regions)
        if "regions" in changes:
            await self._check_pin(before, regions)
            # Wherever the pin moves, everything the tenant has must lie there already.
            await self._belongings.probe(there)
        await self._belongings.try_models(there, [url for url in models if url not in before.models])
        # Models and regions may each have been changed by another meanwhile; together they must hold.
        check = self._check_models if {"models", "regions"} & changes.keys() else None
        tenant = await self._directory.change_tenant(before.id, changes, check=check)
        self._note(tenant, "tenant.set", ",".join(sorted(changes)))
        return tenant

    async def _check_pin(self, tenant: Tenant, regions: Sequence[str]) -> None:
        """Raise ``InvalidValue`` where a workspace would lie outside the regions of its tenant."""
        nested: list[tuple[Sequence[str], Sequence[str]]]
        if tenant.parent is not None:
            nested = [((await self._directory.tenant(tenant.parent)).regions, regions)]
        else:
            nested = [(regions, each.regions) for each in await self._directory.workspaces(tenant.id)]
        for outer, inner in nested:
            check_within(outer, inner)

    def _check_models(self, tenant: Tenant) -> None:
        for url in tenant.models:
            self._check_model(url, tenant.regions)

    async def delete(self, tenant_id: str) -> None:
        """Destroy the tenant's workspaces, then its keys, then its store. What it held cannot be read again, backups
        included."""
        tenant = await self._find(tenant_id)
        if tenant.state is TenantState.MOVING:
            raise InvalidValue(param="id", at="id", detail="the tenant is being moved; wait until that has ended")
        tenant = await self._directory.begin_deletion(tenant.id)
        # From here on it gets no new ones, and whoever still makes it does not open it.
        for workspace in await self._directory.workspaces(tenant.id):
            try:
                await self.delete(workspace.address)
            except NotFound:
                # Its creation was undone meanwhile, or somebody else deletes it too.
                if workspace.id in {each.id for each in await self._directory.workspaces(tenant.id)}:
                    raise
        await self._directory.destroy_key_versions(tenant.id)
        async with self._belongings.keys(tenant) as keys:
            if isinstance(keys, KeyControl):
                await keys.destroy(tenant.id)
        await self._destroy(tenant)
        await self._belongings.forget(tenant)
        await self._directory.set_state(tenant.id, TenantState.DELETED)
        self._note(tenant, "tenant.delete", tenant.address)

    async def _destroy(self, tenant: Tenant, *, but_blobs: bool = False) -> None:
        """Remove the tenant's records and blobs. May be repeated."""
        async with self._belongings.store_house(tenant) as house:
            await house.destroy(tenant.id)
        if self._belongings.has_blobs(tenant) and not but_blobs:
            async with self._belongings.blob_house(tenant) as blob_house:
                await blob_house.destroy(tenant.id)

    async def usage(self, tenant_id: str, month: str | None = None) -> dict[str, int]:
        """What the tenant used in a month (``YYYY-MM``, UTC; this one unless given), with its bytes at rest now. A
        tenant's figures hold those of its workspaces."""
        tenant = await self._find(tenant_id)
        await self._meter.flush()
        totals = await self._meter.totals(tenant, month)
        stored = 0
        for each in (tenant, *await self._directory.workspaces(tenant.id)):
            stored += await self._stored_bytes(each)
        return {**totals, "stored_bytes": stored}

    async def _stored_bytes(self, tenant: Tenant) -> int:
        async with self._belongings.store_house(tenant) as house:
            stored = await house.size_bytes(tenant.id)
        if self._belongings.has_blobs(tenant):
            async with self._belongings.blob_house(tenant) as blob_house:
                stored += await blob_house.size_bytes(tenant.id)
        return stored

    # --- keys ---

    async def rotate_key(self, tenant_id: str) -> KeyStatus:
        """Seal under a new key version from now on; the earlier ones open what they sealed.

        Raises ``KeyDisabled``, ``KeyDestroyed`` or ``KeyGone`` where the present version cannot be opened: another key
        in its place would seal new records and leave everything before unreadable, with nobody told.
        """
        tenant = await self._find(tenant_id)
        versions = await self._directory.key_versions(tenant.id)
        living = [version for version in versions if version.state is not KeyVersionState.DESTROYED]
        if not living:
            raise KeyDestroyed if versions else NotFound("key")
        present, newest = living[-1], versions[-1].version
        async with self._belongings.keys(tenant) as keys:
            try:
                await keys.unwrap(present.wrapped, key_context(tenant.id, present.version))
            except SealBroken as foreign:
                raise KeyGone(tenant=tenant.address) from foreign
            version = await new_version(keys, tenant.id, newest + 1, clock=self._clock)
        await self._directory.add_key_version(tenant.id, version)
        self._note(tenant, "key.rotate", str(newest + 1))
        return await self.key_status(tenant_id)

    async def revoke_key(self, tenant_id: str) -> KeyStatus:
        """Disable the tenant's key: nothing of the tenant opens within 30 s anywhere, and at once in this process."""
        return await self._control(tenant_id, "key.revoke")

    async def restore_key(self, tenant_id: str) -> KeyStatus:
        """Enable a disabled key again."""
        return await self._control(tenant_id, "key.restore")

    async def _control(self, tenant_id: str, action: str) -> KeyStatus:
        tenant = await self._find(tenant_id)
        async with self._belongings.keys(tenant) as keys:
            if not isinstance(keys, KeyControl):
                raise KeyNotOurs
            if action == "key.revoke":
                await keys.disable(tenant.id)
            else:
                await keys.enable(tenant.id)
        # The epoch makes every server drop what it holds; without it they would for up to 30 s longer.
        await self._directory.touch(tenant.id)
        self._note(tenant, action, tenant.address)
        return await self.key_status(tenant_id)

    async def key_status(self, tenant_id: str) -> KeyStatus:
        """What the key service says of the tenant's key, and the versions."""
        tenant = await self._find(tenant_id)
        service = "unknown"
        async with self._belongings.keys(tenant) as keys:
            if isinstance(keys, KeyControl):
                service = await keys.status(tenant.id)
        versions = await self._directory.key_versions(tenant.id)
        return KeyStatus(tenant.address, service, [_version_shown(version) for version in versions])

    # --- tokens and API keys ---

    async def mint(
        self, tenant_id: str, user: str, role: str = "user", *, lifetime_s: int = 3600, mfa: bool = False
    ) -> str:
        """A token of the local issuer. Raises ``InvalidValue`` or ``Forbidden``."""
        tenant = await self._find(tenant_id)
        token = await self._issuer.mint(tenant, user, _one_of(Role, role, "role"), lifetime_s=lifetime_s, mfa=mfa)
        self._note(tenant, "token.mint", user)
        return token

    async def create_api_key(
        self,
        tenant_id: str | None,
        *,
        name: str,
        user: str,
        role: str = "user",
        scopes: Collection[str] = (),
        lifetime_s: int = api_keys.DEFAULT_LIFETIME_S,
    ) -> IssuedApiKey:
        """An API key, shown once. Without a tenant: an operator's key."""
        tenant = None if tenant_id is None else await self._find(tenant_id)
        shown_once, record = api_keys.create(
            tenant_id=None if tenant is None else tenant.id,
            name=name,
            user_id=user,
            role=_one_of(Role, role, "role"),
            now_us=self._clock.now_us(),
            scopes=[_one_of(Scope, scope, "scopes") for scope in scopes] or ALL_SCOPES,
            lifetime_s=lifetime_s,
        )
        await self._directory.add_api_key(record)
        self._note(tenant, "api_key.create", record.key_id)
        return IssuedApiKey(record.key_id, shown_once, tenant_id, user, record.role.value, record.expires_at_us)

    async def api_keys(self, tenant_id: str | None) -> Sequence[ApiKeyShown]:
        """The API keys of a tenant, or the operators'."""
        room = None if tenant_id is None else (await self._find(tenant_id)).id
        return [_api_key_shown(record, tenant_id) for record in await self._directory.api_keys(room)]

    async def revoke_api_key(self, key_id: str, *, tenant_id: str | None) -> None:
        """Revoke a key; open streams it started end within a second or so."""
        tenant = None if tenant_id is None else await self._find(tenant_id)
        now_us = self._clock.now_us()
        ends = None if tenant is None else _revocation(tenant, "token", key_id, now_us, now_us + REVOKED_FOR_US)
        room = None if tenant is None else tenant.id
        await self._directory.revoke_api_key(key_id, tenant_id=room, now_us=now_us, revocation=ends)
        self._note(tenant, "api_key.revoke", key_id)

    async def revoke_tokens(
        self, tenant_id: str, *, user: str | None = None, session: str | None = None, token: str | None = None
    ) -> tuple[str, ...]:
        """Refuse the tokens that a user, a session or (without any of the three) anybody of the tenant got until now,
        or one ``token`` for ever: its id (``jti``), or the token itself. Gives the ids of that one.

        A user's API keys are revoked with the user, those for workspaces too; a key outlives any list of refused
        tokens.
        """
        tenant = await self._find(tenant_id)
        now_us = self._clock.now_us()
        token_ids = () if token is None else token_ids_of(token)
        if user is not None or token is not None:
            for each in (tenant, *await self._directory.workspaces(tenant.id)):
                for record in await self._directory.api_keys(each.id):
                    if (record.user_id == user or record.key_id in token_ids) and record.revoked_at_us is None:
                        await self.revoke_api_key(record.key_id, tenant_id=each.address)
        if user is None and session is None and token is None:
            await self._directory.change_tenant(tenant.id, {"tokens_valid_from_us": now_us})
        expires_at_us = now_us + REVOKED_FOR_US
        if user is not None:
            await self._directory.revoke(_revocation(tenant, "user", user, now_us, expires_at_us))
        if session is not None:
            await self._directory.revoke(_revocation(tenant, "session", session, now_us, expires_at_us))
        for token_id in token_ids:
            # Whenever it was issued: its issuer's clock may be ahead of this one.
            await self._directory.revoke(_revocation(tenant, "token", token_id, expires_at_us, expires_at_us))
        self._note(tenant, "token.revoke", user or session or " ".join(token_ids) or tenant.address)
        return token_ids

    async def remove_member(self, workspace: Tenant, user: str) -> None:
        """Let somebody into a workspace no more, nor anything that is bound to it and speaks for the same person: both
        or neither. Raises ``NotFound``, and ``InvalidValue`` for the last administrator."""
        now_us = self._clock.now_us()
        revocation = _revocation(workspace, "user", user, now_us, now_us + REVOKED_FOR_US)
        for key_id in await self._directory.remove_member(workspace.id, user, revocation=revocation):
            self._note(workspace, "api_key.revoke", key_id)
        self._note(workspace, "token.revoke", user)

    # --- issuers ---

    async def bind_issuer(self, binding: IssuerBinding) -> None:
        """Accept an issuer's tokens for a tenant. Raises ``Conflict`` where (issuer, audience) is another's, and
        ``InvalidValue`` or ``AddressRefused`` for a binding that no token could ever match."""
        self._check_issuer(binding)
        tenant = await self._directory.tenant(binding.tenant_id)
        await self._directory.bind_issuer(binding)
        self._note(tenant, "issuer.bind", binding.issuer)

    async def issuers(self, tenant_id: str) -> Sequence[IssuerBinding]:
        """The issuers bound to a tenant."""
        await self._directory.tenant(tenant_id)
        return await self._directory.tenant_issuers(tenant_id)

    async def unbind_issuer(self, tenant_id: str, issuer: str) -> None:
        """Refuse the issuer's tokens from now on."""
        tenant = await self._directory.tenant(tenant_id)
        await self._directory.unbind_issuer(tenant_id, issuer)
        self._note(tenant, "issuer.unbind", issuer)


def _check_room_for(parent: Tenant, regions: Sequence[str] | None) -> None:
    """Raise ``InvalidValue`` where the tenant has no room for a workspace in these regions."""
    if parent.regions and not set(regions or parent.regions) <= set(parent.regions):
        detail = f"the tenant's data stays in {', '.join(parent.regions)}"
        raise InvalidValue(param="regions", at="regions", detail=detail)


def _revocation(
    tenant: Tenant, kind: Literal["user", "session", "token"], subject: str, not_before_us: int, expires_at_us: int
) -> Revocation:
    return Revocation(
        tenant_id=tenant.id, kind=kind, subject=subject, not_before_us=not_before_us, expires_at_us=expires_at_us
    )


_PLAIN: Final = Tenant(
    id="", name="", state=TenantState.ONBOARDING, created_at_us=0, store="", key_service=EMBEDDED_KEYS
)
"""What a tenant is where nothing is said."""


def shown(tenant: Tenant) -> dict[str, Any]:
    """A tenant as it is shown to people: a workspace under its address."""
    fields: dict[str, Any] = msgspec.to_builtins(tenant)
    return {name: value for name, value in fields.items() if name not in ("parent", "workspace")} | {
        "id": tenant.address
    }


def _texts(given: Any) -> tuple[str, ...]:
    return tuple(text for text in given if isinstance(text, str)) if isinstance(given, list | tuple) else ()


def _one_of(kind: Any, text: str, at: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        known = ", ".join(member.value for member in kind)
        raise InvalidValue(param=at, at=at, detail=f"expected one of {known}") from None


def _version_shown(version: KeyVersion) -> KeyVersionShown:
    return KeyVersionShown(version.version, version.state.value, version.created_at_us, version.uses)


def _api_key_shown(record: ApiKeyRecord, tenant_id: str | None) -> ApiKeyShown:
    return ApiKeyShown(
        record.key_id,
        tenant_id,
        record.name,
        record.user_id,
        record.role.value,
        [scope.value for scope in record.scopes],
        record.created_at_us,
        record.expires_at_us,
        record.revoked_at_us,
    )
