"""What a process knows of the registry: bounded, dropped by every change, never served when it may be stale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import structlog
from sqlalchemy import URL, Connection
from sqlalchemy.exc import IntegrityError

from nagaya.errors import Conflict
from nagaya.kernel.clock import Clock
from nagaya.keys.versions import KeyVersion
from nagaya.tenancy import rows
from nagaya.tenancy.bindings import ApiKeyRecord, IssuerBinding, Member
from nagaya.tenancy.database import RegistryDatabase
from nagaya.tenancy.directory import Pulse
from nagaya.tenancy.recent import Recent
from nagaya.tenancy.refusals import Refusals
from nagaya.tenancy.rows import ChangeNote, Numbered
from nagaya.tenancy.tenant import Tenant, TenantState
from nagaya.tenancy.watch import Watcher

T = TypeVar("T")
Listener = Callable[[str | None, str], None]
OwnListener = Callable[[str | None, str, int], None]
MemberListener = Callable[[str, str], None]

CACHED: Final = 4_096
"""Tenants, issuers and API keys kept in memory, each."""

KEY_ROOMS: Final = 16_384
"""Rooms whose wrapped key versions are kept in memory: some 300 bytes each."""

KEY_VERSIONS_S: Final = 600.0
"""How long they are kept. Counts of seals by other processes are not heard of, so a version may be sealed under for
this long beyond what is counted: at 10,000 seals a second 6 million, where 2³⁰ are held in reserve."""

ABSENT_S: Final = 2.0
"""How long an answer "there is none" is kept. A creation that is seen drops it sooner."""

_log = structlog.get_logger(__name__)


class RegistryMemory:
    """Reads through caches, and changes that drop from them what they concern before they return."""

    def __init__(self, url: str | URL, clock: Clock, *, create: bool, deadline_s: float) -> None:
        self.database = RegistryDatabase(url, create=create, deadline_s=deadline_s)
        self.tenants: Recent[str, Tenant] = Recent(CACHED, now_s=clock.monotonic_s)
        self.issuers: Recent[str, tuple[IssuerBinding, ...]] = Recent(CACHED, now_s=clock.monotonic_s)
        self.api_keys: Recent[str, ApiKeyRecord] = Recent(CACHED, now_s=clock.monotonic_s)
        self.key_versions: Recent[str, tuple[KeyVersion, ...]] = Recent(
            KEY_ROOMS, now_s=clock.monotonic_s, ttl_s=KEY_VERSIONS_S
        )
        self.hosts: Recent[str, str] = Recent(CACHED, now_s=clock.monotonic_s)
        self.members: Recent[str, Member] = Recent(CACHED, now_s=clock.monotonic_s)
        self.refusals = Refusals()
        self.pulse = Pulse()
        self.watcher = Watcher(self.database, clock, self.refusals, self.pulse, self.forget)
        self._absent: Recent[tuple[str, str], bool] = Recent(1_024, now_s=clock.monotonic_s, ttl_s=ABSENT_S)
        self._clock = clock
        self._listeners: list[Listener] = []
        self._own_listeners: list[OwnListener] = []
        self._member_listeners: list[MemberListener] = []

    @property
    def place(self) -> str:
        return self.database.place

    def on_change(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def on_own_change(self, listener: OwnListener) -> None:
        self._own_listeners.append(listener)

    def on_member_change(self, listener: MemberListener) -> None:
        self._member_listeners.append(listener)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a reading transaction."""
        return await self.database.finish(self.database.transaction(work))

    async def cached(
        self,
        cache: Recent[str, T],
        kind: str,
        key: str,
        limit: int,
        find: Callable[[Connection], T | None],
    ) -> T | None:
        """The thing from memory, or found and kept. A key longer than ``limit`` characters is nobody's."""
        if self.watcher.is_fresh():
            known = cache.get(key)
            if known is not None or self._absent.get((kind, key)):
                return known
        if not rows.storable(key, limit):
            return None
        changes = self.pulse.changes
        found = await self.read(find)
        if changes == self.pulse.changes:
            # Otherwise something changed while it was read, and what was read may be the state before.
            if found:
                cache.put(key, found)
            else:
                self._absent.put((kind, key), True)
        return found

    async def change(
        self,
        work: Callable[[Connection], Sequence[ChangeNote]],
        *,
        then: Callable[[], None] = lambda: None,
        now: Sequence[Tenant] = (),
    ) -> None:
        """Run ``work`` in a writing transaction and record the changes it returns; once they are durable, call
        ``then``, drop what they concern and tell the listeners. ``now`` is, after ``work``, what the tenants it changed
        have become: it need not be read again. Raises ``Conflict`` where a row is taken."""

        def recorded(connection: Connection) -> list[Numbered]:
            try:
                notes = work(connection)
            except IntegrityError as taken:
                raise Conflict from taken
            return [rows.note_change(connection, note, self._clock.now_us()) for note in notes]

        async def whole() -> None:
            # One task from the lock to the last listener: a caller that goes away leaves no stale cache behind.
            numbered = await self.database.transaction(recorded, write=True)
            then()
            for serial, note in numbered:
                if self.watcher.saw_own(serial):
                    self.forget(note, now)
                for listener in self._own_listeners:
                    listener(note.tenant_id, note.kind, serial)

        await self.database.finish(whole())

    def forget(self, note: ChangeNote, now: Sequence[Tenant] = ()) -> None:
        """Drop what a change concerns, then tell the listeners. ``now`` is what is known of tenants after it; nothing
        newer may have been seen yet."""
        tenant_id, kind, subject = note
        self.pulse.changes += 1
        self._absent.clear()
        if tenant_id is not None:
            self.tenants.drop(tenant_id)
        if kind in ("keys", "deleted") and tenant_id is not None:
            self.key_versions.drop(tenant_id)
        if kind in ("all", "tenant", "deleted"):
            self.hosts.clear()
        if kind == "all":
            self.tenants.clear()
            self.issuers.clear()
            self.api_keys.clear()
            self.key_versions.clear()
            self.members.clear()
        elif kind == "issuers":
            self.issuers.drop(subject)
        elif kind == "api_keys":
            self.api_keys.drop(subject)
        elif kind == "members":
            self.members.drop(member_key(tenant_id or "", subject))
            for heard in self._member_listeners:
                heard(tenant_id or "", subject)
        elif kind == "deleted":
            self.members.drop_where(lambda member: member.workspace_id == tenant_id)
            self.issuers.drop_where(lambda bindings: any(binding.tenant_id == tenant_id for binding in bindings))
            self.api_keys.drop_where(lambda record: record.tenant_id == tenant_id)
        for tenant in now:
            if tenant.state is not TenantState.DELETED:
                self.tenants.put(tenant.id, tenant)
        for listener in self._listeners:
            try:
                listener(tenant_id, kind)
            except Exception:
                # One deaf listener must not keep the others from dropping a revoked key.
                _log.exception("a listener failed", action="registry.listener_failed", kind=kind)


def member_key(workspace_id: str, user: str) -> str:
    """Where a member is kept in memory. A workspace's id has no space."""
    return f"{workspace_id} {user}"
