"""The registry over SQL: tenants and what is bound to them, cached in bounded memory and dropped when they change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from sqlalchemy import URL, Connection, delete, insert, select, update

from nagaya.errors import Conflict, InvalidValue, NotFound, RegistryDamaged
from nagaya.kernel.clock import Clock
from nagaya.keys.versions import KeyVersion, KeyVersionState
from nagaya.tenancy import rows, schema
from nagaya.tenancy.bindings import ApiKeyRecord, IssuerBinding, Member, Revocation
from nagaya.tenancy.changes import STARTING_STATES, changed_tenant, check_fields
from nagaya.tenancy.directory import Pulse
from nagaya.tenancy.memory import RegistryMemory, member_key
from nagaya.tenancy.names import check_tenant_id, workspace_room
from nagaya.tenancy.rows import ChangeNote
from nagaya.tenancy.tenant import Tenant, TenantState, check_transition

ISSUER_LIMIT: Final = 500
KEY_ID_LIMIT: Final = 200
USER_LIMIT: Final = 500

_log = structlog.get_logger(__name__)


class SqlRegistry:
    """A :class:`~nagaya.tenancy.directory.TenantDirectory` in a database that several processes may share.

    ``start()`` opens it and watches for other processes' changes; ``open()`` alone is for a short command, after
    30 s of which everything is read afresh. Nothing is served from memory while :meth:`is_fresh` is False.

    Every method that reads or writes may raise ``RegistryUnreachable``, ``RegistryDamaged``, ``StoreFull`` or
    ``StoreReadOnly``. A change is whole or not at all, also when its caller is cancelled: it is then carried out.
    """

    def __init__(self, url: str | URL, clock: Clock, *, create: bool = True, deadline_s: float = 10.0) -> None:
        self._clock = clock
        self._memory = RegistryMemory(url, clock, create=create, deadline_s=deadline_s)

    @classmethod
    def in_file(cls, path: Path, clock: Clock, *, create: bool = True) -> SqlRegistry:
        """The registry in this SQLite file, whatever characters its path has."""
        return cls(URL.create("sqlite", database=str(path)), clock, create=create)

    # --- life ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, make or upgrade the tables, and load what must be in memory. May be repeated."""
        await self._memory.watcher.open()

    async def start(self) -> None:
        """``open()``, and follow other processes' changes until ``close()``."""
        await self.open()
        self._memory.watcher.start()

    async def close(self) -> None:
        """Stop watching, let running changes end, close. May be repeated."""
        await self._memory.watcher.stop()
        await self._memory.database.close()

    @property
    def pulse(self) -> Pulse:
        return self._memory.pulse

    def is_fresh(self) -> bool:
        return self._memory.watcher.is_fresh()

    def on_change(self, listener: Callable[[str | None, str], None]) -> None:
        """Call ``listener(tenant_id, kind)`` soon after every change, whichever process made it.

        Kinds: ``tenant``, ``deleted``, ``issuers``, ``api_keys``, ``members``, ``keys``, ``revocations``; ``all``
        (with None) when changes may have been missed and everything cached must go. None with another kind is the
        platform. The listener must be quick and must not raise.
        """
        self._memory.on_change(listener)

    def on_member_change(self, listener: Callable[[str, str], None]) -> None:
        """Call ``listener(workspace id, user)`` as soon as somebody became a member, has another role, or is none any
        more. What was missed comes as ``all`` to :meth:`on_change`. The listener must be quick and must not raise."""
        self._memory.on_member_change(listener)

    def on_own_change(self, listener: Callable[[str | None, str, int], None]) -> None:
        """Call ``listener(tenant_id, kind, serial)`` after every durable change that this process made, so that it can
        tell others. The listener must be quick and must not raise."""
        self._memory.on_own_change(listener)

    def look_now(self, serial: int = 0) -> None:
        """Read other processes' changes at once instead of at the next poll, unless the change of this serial (0: any)
        was read already. Never waits; costs one query."""
        self._memory.watcher.ring(serial)

    # --- tenants ------------------------------------------------------------------------------------------------

    async def tenant(self, tenant_id: str) -> Tenant:
        found = await self._memory.cached(
            self._memory.tenants, "tenant", tenant_id, 63, lambda c: rows.find_tenant(c, tenant_id, self._memory.place)
        )
        if found is None:
            raise NotFound("tenant")
        return found

    async def host_owner(self, host: str) -> str | None:
        """The id of the tenant that has this host name (lower case, without port), or None."""
        found = await self._memory.cached(
            self._memory.hosts, "host", host, 253, lambda c: rows.find_host_owner(c, host)
        )
        return None if found in (None, rows.NOBODY) else found

    async def tenants(self, *, after: str = "", limit: int = 100) -> Sequence[Tenant]:
        """Tenants by id, at most 1,000, without their workspaces. One whose row is damaged is left out and logged; the
        others stay visible."""
        table = schema.tenants

        def work(connection: Connection) -> list[Tenant]:
            found = connection.execute(
                select(table)
                .where(table.c.id > after, table.c.state != TenantState.DELETED.value, table.c.parent.is_(None))
                .order_by(table.c.id)
                .limit(max(1, min(limit, 1_000)))
            )
            readable = []
            for row in found:
                try:
                    readable.append(rows.from_row(row._mapping, Tenant, self._memory.place))
                except RegistryDamaged:
                    _log.error("tenant row cannot be read", action="registry.row_damaged", tenant=row.id)
            return readable

        return await self._memory.read(work) if rows.storable(after, 100) else []

    async def create_tenant(self, tenant: Tenant, *, onboarding_token: bytes | None = None) -> None:
        """Record a new tenant, or a new workspace of one. Raises ``TenantIdInvalid``, ``TenantExists``,
        ``TenantLookAlike`` or ``InvalidValue``; for a workspace also ``NotFound``, ``TenantNotOpen`` and
        ``RegistryNotReady``.

        Whoever means to undo a failed onboarding hands in a secret token and gives it to
        :meth:`give_up_onboarding` and :meth:`discard_onboarding`; only its hash is stored.
        """
        _check_name(tenant)
        check_fields(tenant)
        if tenant.state not in STARTING_STATES:
            raise InvalidValue(param="state", at="state", detail="a tenant begins as onboarding, trial or active")

        def work(connection: Connection) -> list[ChangeNote]:
            rows.require_parent(connection, tenant, self._memory.place)
            rows.refuse_taken(connection, tenant)
            rows.insert_tenant(connection, tenant, onboarding_token)
            return [ChangeNote(tenant.id, "tenant")]

        try:
            await self._memory.change(work, now=[tenant])
        except Conflict:
            # Somebody else was quicker between the question and the insertion: say to what it was lost.
            await self._memory.read(lambda connection: rows.refuse_taken(connection, tenant))
            raise

    async def give_up_onboarding(self, tenant_id: str, token: bytes) -> bool:
        """Begin to undo a creation: the tenant never opens, and its id stays taken until :meth:`discard_onboarding`.

        Returns whether what was made for it is to be removed: it was created with this token and is still onboarding,
        was given up before, or is being deleted or deleted. May be repeated.
        """
        return await self._undo_onboarding(tenant_id, token, rows.give_up_onboarding)

    async def begin_deletion(self, tenant_id: str) -> Tenant:
        """Move a tenant to offboarding, or leave it there; whoever makes it, or undoes that, has no more say in it.
        Raises ``NotFound`` or ``TransitionRefused``. May be repeated."""

        def decide(old: Tenant) -> Tenant:
            if old.state is not TenantState.OFFBOARDING:
                check_transition(old.state, TenantState.OFFBOARDING)
            return _with(old, state=TenantState.OFFBOARDING, epoch=old.epoch + 1)

        return await self._replace(tenant_id, "tenant", decide)

    async def is_ending(self, tenant_id: str) -> bool:
        """Whether the tenant is being deleted, or is none any more; read afresh. For whoever has just kept something of
        it elsewhere, where the deletion may have looked before."""
        return await self._memory.read(lambda connection: rows.is_ending(connection, tenant_id))

    async def discard_onboarding(self, tenant_id: str, token: bytes) -> bool:
        """Undo a creation: remove the tenant if it is still onboarding, or was given up, and was created with this
        token.

        Returns whether it was removed. Never touches a tenant that somebody else made; may be repeated.
        """
        return await self._undo_onboarding(tenant_id, token, rows.delete_onboarding)

    async def _undo_onboarding(
        self, tenant_id: str, token: bytes, step: Callable[[Connection, str, bytes], bool]
    ) -> bool:
        if not rows.storable(tenant_id, 63):
            return False
        done = False

        def work(connection: Connection) -> list[ChangeNote]:
            nonlocal done
            done = step(connection, tenant_id, token)
            return [ChangeNote(tenant_id, "deleted")] if done else []

        await self._memory.change(work)
        return done

    async def is_onboarding(self, tenant_id: str, token: bytes) -> bool:
        """Whether the tenant is still onboarding and was created with this token."""
        if not rows.storable(tenant_id, 63):
            return False
        return await self._memory.read(lambda connection: rows.has_onboarding(connection, tenant_id, token))

    async def change_tenant(
        self, tenant_id: str, changes: Mapping[str, Any], *, check: Callable[[Tenant], None] | None = None
    ) -> Tenant:
        """Change fields; the epoch rises. Raises ``NotFound``, ``UnknownParameter`` or ``InvalidValue``, and what
        ``check`` raises for the tenant as it would be; it may be called in another thread.

        Two processes that change different fields at once both succeed: each reads and writes in one transaction.
        """

        def decide(old: Tenant) -> Tenant:
            new = changed_tenant(old, changes, now_us=self._clock.now_us())
            if check is not None:
                check(new)
            return new

        return await self._replace(tenant_id, "tenant", decide)

    async def set_state(self, tenant_id: str, state: TenantState, *, expect: TenantState | None = None) -> Tenant:
        """Move to a state that may follow, or ``TransitionRefused``; from no other than ``expect``, where that is
        given, or ``Conflict``. A tenant that becomes deleted loses its hosts, issuers and API keys; its id and its
        look-alikes stay taken."""

        def decide(old: Tenant) -> Tenant:
            if expect is not None and old.state is not expect:
                raise Conflict
            check_transition(old.state, state)
            hosts = () if state is TenantState.DELETED else old.hosts
            return _with(old, state=state, hosts=hosts, epoch=old.epoch + 1)

        return await self._replace(tenant_id, "deleted" if state is TenantState.DELETED else "tenant", decide)

    async def end_onboarding(
        self, tenant_id: str, state: TenantState, *, key: KeyVersion, admin: Member | None = None
    ) -> Tenant:
        """Give a new tenant its first key, a new workspace also its first administrator, and move it to ``state``: all
        or nothing. Raises as :meth:`set_state`, :meth:`add_key_version` and :meth:`put_member` do."""
        if admin is not None:
            rows.require_storable("user", admin.user, USER_LIMIT)
        outcome: list[Tenant] = []

        def work(connection: Connection) -> list[ChangeNote]:
            old = rows.require_tenant(connection, tenant_id, self._memory.place)
            check_transition(old.state, state)
            rows.add_key_version(connection, tenant_id, key, self._memory.place)
            new = _with(old, state=state, epoch=old.epoch + 1)
            rows.replace_tenant(connection, old, new)
            outcome.append(new)
            notes = [ChangeNote(tenant_id, "tenant")]
            if admin is not None:
                if old.parent is None or admin.workspace_id != old.id:
                    raise NotFound("workspace")
                rows.put_member(connection, admin, self._memory.place)
                notes.append(ChangeNote(tenant_id, "members", admin.user))
            return notes

        await self._memory.change(work, now=outcome)
        return outcome[-1]

    async def touch(self, tenant_id: str) -> None:
        await self._replace(tenant_id, "tenant", lambda old: _with(old, epoch=old.epoch + 1))

    async def _replace(self, tenant_id: str, kind: str, decide: Callable[[Tenant], Tenant]) -> Tenant:
        outcome: list[Tenant] = []

        def work(connection: Connection) -> list[ChangeNote]:
            old = rows.require_tenant(connection, tenant_id, self._memory.place)
            new = decide(old)
            rows.replace_tenant(connection, old, new)
            if new.state is TenantState.DELETED:
                rows.clear_bindings(connection, tenant_id, self._clock.now_us())
            outcome.append(new)
            return [ChangeNote(tenant_id, kind)]

        await self._memory.change(work, now=outcome)
        return outcome[-1]

    # --- workspaces ---------------------------------------------------------------------------------------------

    async def workspaces(self, tenant_id: str) -> Sequence[Tenant]:
        """The workspaces of a tenant by name, the deleted ones left out."""
        if not rows.storable(tenant_id, 63):
            return ()
        return await self._memory.read(lambda c: rows.find_workspaces(c, tenant_id, self._memory.place))

    async def member(self, workspace_id: str, user: str) -> Member | None:
        return await self._memory.cached(
            self._memory.members,
            "member",
            member_key(workspace_id, user),
            63 + 1 + USER_LIMIT,
            lambda c: self._find_member(c, workspace_id, user),
        )

    def _find_member(self, connection: Connection, workspace_id: str, user: str) -> Member | None:
        found = rows.find_members(connection, self._memory.place, workspace_id=workspace_id, user=user)
        return found[0] if found else None

    async def members(self, workspace_id: str) -> Sequence[Member]:
        """The members of a workspace by their user keys."""
        if not rows.storable(workspace_id, 63):
            return ()
        return await self._memory.read(lambda c: rows.find_members(c, self._memory.place, workspace_id=workspace_id))

    async def memberships(self, user: str) -> Sequence[Member]:
        """Every membership under this user key, whatever the tenant: two tenants may each have a user ``mio``."""
        if not rows.storable(user, USER_LIMIT):
            return ()
        return await self._memory.read(lambda c: rows.find_members(c, self._memory.place, user=user))

    async def put_member(self, member: Member) -> None:
        """Make somebody a member, or give a member another role; who is one keeps the day since which. Raises
        ``NotFound`` where there is no such workspace, ``InvalidValue`` where it would lose its last administrator."""
        rows.require_storable("user", member.user, USER_LIMIT)

        def work(connection: Connection) -> list[ChangeNote]:
            workspace = rows.require_tenant(connection, member.workspace_id, self._memory.place)
            if workspace.parent is None:
                raise NotFound("workspace")
            rows.put_member(connection, member, self._memory.place)
            return [ChangeNote(member.workspace_id, "members", member.user)]

        await self._memory.change(work)

    async def remove_member(
        self, workspace_id: str, user: str, *, revocation: Revocation | None = None
    ) -> Sequence[str]:
        """With ``revocation``, refuse in the same step what was issued in the workspace to that user; gives the ids of
        the API keys that it revoked. Raises ``NotFound`` where there is no such member, ``InvalidValue`` for the
        last administrator."""
        if not rows.storable(workspace_id, 63) or not rows.storable(user, USER_LIMIT):
            raise NotFound("member")
        if revocation is not None:
            rows.require_storable("subject", revocation.subject, 500)
        key_ids: list[str] = []

        def work(connection: Connection) -> list[ChangeNote]:
            rows.remove_member(connection, workspace_id, user, self._memory.place)
            notes = [ChangeNote(workspace_id, "members", user)]
            if revocation is not None:
                notes += self._revoked(connection, revocation)
                key_ids[:] = rows.revoke_keys_of(connection, workspace_id, user, revocation.not_before_us)
                rows.raise_epoch(connection, workspace_id)
                notes += [ChangeNote(workspace_id, "api_keys", key_id) for key_id in key_ids]
            return notes

        await self._memory.change(work, then=lambda: self._refuse(revocation))
        return key_ids

    # --- issuers ------------------------------------------------------------------------------------------------

    async def issuers(self, issuer: str) -> Sequence[IssuerBinding]:
        found = await self._memory.cached(
            self._memory.issuers,
            "issuer",
            issuer,
            ISSUER_LIMIT,
            lambda c: rows.find_issuers(c, self._memory.place, issuer=issuer),
        )
        return found or ()

    async def tenant_issuers(self, tenant_id: str) -> Sequence[IssuerBinding]:
        if not rows.storable(tenant_id, 63):
            return ()
        return await self._memory.read(lambda c: rows.find_issuers(c, self._memory.place, tenant_id=tenant_id))

    async def bind_issuer(self, binding: IssuerBinding) -> None:
        """Record a binding, or replace the tenant's own of that issuer. Raises ``NotFound`` where the tenant does not
        exist, ``Conflict`` where (issuer, audience) belongs to another, ``InvalidValue`` without an audience."""
        rows.require_storable("issuer", binding.issuer, ISSUER_LIMIT)
        rows.require_storable("jwks_url", binding.jwks_url, 2_000)
        if not binding.audiences or len(set(binding.audiences)) != len(binding.audiences):
            # A binding without an audience would let in tokens that were made for somebody else.
            raise InvalidValue(param="audiences", at="audiences", detail="at least one is needed, each once")
        for audience in binding.audiences:
            rows.require_storable("audiences", audience, 500)

        def work(connection: Connection) -> list[ChangeNote]:
            rows.require_tenant(connection, binding.tenant_id, self._memory.place)
            rows.put_issuer(connection, binding)
            rows.raise_epoch(connection, binding.tenant_id)
            return [ChangeNote(binding.tenant_id, "issuers", binding.issuer)]

        await self._memory.change(work)

    async def unbind_issuer(self, tenant_id: str, issuer: str) -> None:
        """Remove a tenant's binding. One that is not there is no error."""
        if not rows.storable(tenant_id, 63) or not rows.storable(issuer, ISSUER_LIMIT):
            return
        table = schema.issuers

        def work(connection: Connection) -> list[ChangeNote]:
            done = connection.execute(delete(table).where(table.c.issuer == issuer, table.c.tenant_id == tenant_id))
            if not done.rowcount:
                return []
            rows.raise_epoch(connection, tenant_id)
            return [ChangeNote(tenant_id, "issuers", issuer)]

        await self._memory.change(work)

    # --- API keys -----------------------------------------------------------------------------------------------

    async def api_key(self, key_id: str) -> ApiKeyRecord | None:
        return await self._memory.cached(
            self._memory.api_keys,
            "api key",
            key_id,
            KEY_ID_LIMIT,
            lambda c: rows.find_api_key(c, key_id, self._memory.place),
        )

    async def api_keys(self, tenant_id: str | None) -> Sequence[ApiKeyRecord]:
        if tenant_id is not None and not rows.storable(tenant_id, 63):
            return []
        return await self._memory.read(lambda c: rows.find_api_keys(c, tenant_id, self._memory.place))

    async def add_api_key(self, record: ApiKeyRecord) -> None:
        """Record a key. Raises ``NotFound`` where its tenant does not exist, ``Conflict`` where its id is taken."""
        rows.require_storable("key_id", record.key_id, KEY_ID_LIMIT)
        rows.require_storable("name", record.name, 200)
        rows.require_storable("user_id", record.user_id, 500)

        def work(connection: Connection) -> list[ChangeNote]:
            if record.tenant_id is not None:
                rows.require_tenant(connection, record.tenant_id, self._memory.place)
            connection.execute(insert(schema.api_keys).values(**rows.to_row(record)))
            return [ChangeNote(record.tenant_id, "api_keys", record.key_id)]

        await self._memory.change(work)

    async def revoke_api_key(
        self, key_id: str, *, tenant_id: str | None, now_us: int, revocation: Revocation | None = None
    ) -> None:
        """Revoke, and with ``revocation`` end in the same step what was begun with the key; repeating it keeps the
        first moment. Raises ``NotFound`` where that tenant has no such key."""
        if not rows.storable(key_id, KEY_ID_LIMIT):
            raise NotFound("api key")

        def work(connection: Connection) -> list[ChangeNote]:
            rows.revoke_api_key(connection, key_id, tenant_id, now_us)
            rows.raise_epoch(connection, tenant_id)
            return [ChangeNote(tenant_id, "api_keys", key_id), *self._revoked(connection, revocation)]

        await self._memory.change(work, then=lambda: self._refuse(revocation))

    # --- revocations --------------------------------------------------------------------------------------------

    async def revoke(self, revocation: Revocation) -> None:
        """Refuse tokens issued before a moment. Repeating it never brings the moment back."""
        rows.require_storable("tenant_id", revocation.tenant_id, 200)
        rows.require_storable("subject", revocation.subject, 500)

        def work(connection: Connection) -> list[ChangeNote]:
            return self._revoked(connection, revocation)

        await self._memory.change(work, then=lambda: self._refuse(revocation))

    def _revoked(self, connection: Connection, revocation: Revocation | None) -> list[ChangeNote]:
        """What a revocation changes, where there is one."""
        if revocation is None:
            return []
        connection.execute(
            schema.upsert(
                self._memory.database.dialect,
                schema.revocations,
                [rows.to_row(revocation)],
                highest=("not_before_us", "expires_at_us"),
            )
        )
        return [ChangeNote(revocation.tenant_id, "revocations")]

    def _refuse(self, revocation: Revocation | None) -> None:
        if revocation is not None:
            self._memory.refusals.add(revocation)

    def refused_before_us(self, tenant_id: str, *, user_id: str, session_id: str | None, token_id: str | None) -> int:
        return self._memory.refusals.before_us(tenant_id, user_id=user_id, session_id=session_id, token_id=token_id)

    # --- key versions -------------------------------------------------------------------------------------------

    async def key_versions(self, room: str) -> Sequence[KeyVersion]:
        """The room's key versions, oldest first, read afresh and remembered."""
        changes = self._memory.pulse.changes
        found = await self._memory.read(lambda c: rows.find_key_versions(c, room, self._memory.place))
        if changes == self._memory.pulse.changes:
            # Otherwise something changed while they were read, and they may be those of before.
            self._memory.key_versions.put(room, tuple(found))
        return found

    def remembered_key_versions(self, room: str) -> Sequence[KeyVersion] | None:
        """The room's key versions from memory; None where they must be read. Dropped by every change of them."""
        return self._memory.key_versions.get(room) if self.is_fresh() else None

    async def add_key_version(self, room: str, version: KeyVersion) -> None:
        """Record a new version. Raises ``Conflict`` unless it is the next one (of two rotations at once, one wins), and
        ``KeyDestroyed`` where the tenant's keys are destroyed or about to be."""

        def work(connection: Connection) -> list[ChangeNote]:
            rows.add_key_version(connection, room, version, self._memory.place)
            rows.raise_epoch(connection, room)
            return [ChangeNote(room, "keys")]

        await self._memory.change(work)

    async def add_key_uses(self, room: str, version: int, uses: int) -> None:
        table = schema.key_versions

        def work(connection: Connection) -> list[ChangeNote]:
            connection.execute(
                update(table).where(table.c.room == room, table.c.version == version).values(uses=table.c.uses + uses)
            )
            return []

        def counted() -> None:
            known = self._memory.key_versions.get(room)
            if known is not None:
                grown = [_more_uses(each, uses) if each.version == version else each for each in known]
                self._memory.key_versions.correct(room, tuple(grown))

        await self._memory.change(work, then=counted)

    async def destroy_key_versions(self, room: str) -> None:
        """Destroy every wrapped key of a room, for ever. May be repeated."""
        table = schema.key_versions

        def work(connection: Connection) -> list[ChangeNote]:
            connection.execute(
                update(table).where(table.c.room == room).values(wrapped=b"", state=KeyVersionState.DESTROYED.value)
            )
            rows.raise_epoch(connection, room)
            return [ChangeNote(room, "keys")]

        await self._memory.change(work)

    # --- usage --------------------------------------------------------------------------------------------------

    async def add_usage(self, amounts: Mapping[tuple[str, str, str], int], *, source: str, at_us: int) -> None:
        """Add to the totals of (tenant id, month ``YYYY-MM``, metric), all or none, and once: moments of one source
        rise, and what comes again under one that was added is left out. ``source`` has at most 40 characters."""
        if not amounts:
            return

        def work(connection: Connection) -> list[ChangeNote]:
            if not rows.note_usage(connection, source, at_us):
                return []
            items = list(amounts.items())
            for start in range(0, len(items), 100):
                values = [
                    {"tenant_id": tenant_id, "month": month, "metric": metric, "value": value}
                    for (tenant_id, month, metric), value in items[start : start + 100]
                ]
                connection.execute(schema.upsert(self._memory.database.dialect, schema.usage, values, add="value"))
            return []

        await self._memory.change(work)

    async def usage(self, tenant_id: str, month: str) -> Mapping[str, int]:
        """A tenant's totals of a month (``YYYY-MM``, UTC) by metric."""
        table = schema.usage

        def work(connection: Connection) -> dict[str, int]:
            found = connection.execute(
                select(table.c.metric, table.c.value).where(table.c.tenant_id == tenant_id, table.c.month == month)
            )
            return {row.metric: row.value for row in found}

        return await self._memory.read(work)


def _with(tenant: Tenant, **fields: Any) -> Tenant:
    return msgspec.structs.replace(tenant, **fields)


def _more_uses(version: KeyVersion, uses: int) -> KeyVersion:
    return msgspec.structs.replace(version, uses=version.uses + uses)


def _check_name(tenant: Tenant) -> None:
    if tenant.parent is None and tenant.workspace is None:
        check_tenant_id(tenant.id)
        return
    check_tenant_id(tenant.workspace or "")
    if tenant.id != workspace_room(tenant.parent or "", tenant.workspace or ""):
        # Its id is its place in every store: one that is not made from its address could be another's.
        raise InvalidValue(param="id", at="id", detail="the id of a workspace is made from its address")
