"""Sign-in sessions: what is kept of somebody who signed in, until the session ends.

A session's token is verified like any other, and its end is refused through the registry's revocations, which every
server has in memory. So no request reads this store, and losing it lets nobody in and throws nobody out.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, Protocol

import msgspec

from nagaya.errors import ConditionFailed
from nagaya.kernel.clock import Clock
from nagaya.records.sealed_cache import SealedCache
from nagaya.records.sealed_store import ABSENT, Delete, Partition, SealedStore

TIDY: Final = 32
"""Ended sessions looked for, and removed, with each new one."""

_TRIES: Final = 5


class SignInSession(msgspec.Struct, frozen=True, kw_only=True):
    """One sign-in of one user. ``user`` is the :attr:`~nagaya.tenancy.principal.Principal.user_key`; ids begin with
    ``sess_`` and sort by the time they were made. Times are UTC microseconds."""

    id: str
    tenant_id: str
    user: str
    created_at_us: int
    seen_at_us: int
    expires_at_us: int
    revoked_at_us: int | None = None

    def is_open(self, now_us: int) -> bool:
        """Whether it was neither ended nor has run out."""
        return self.revoked_at_us is None and now_us < self.expires_at_us


class SessionStore(Protocol):
    """Where sessions are kept. Methods raise what the store beneath raises; all may be repeated."""

    async def add(self, session: SignInSession) -> None:
        """Keep a new session. Its id was never used before."""
        ...

    async def get(self, tenant_id: str, session_id: str) -> SignInSession | None:
        """The tenant's session of that id, or None where it has none or its time is over."""
        ...

    async def seen(self, tenant_id: str, session_id: str, at_us: int) -> None:
        """Note when it was last used; the latest counts. One that is not there is no error."""
        ...

    async def revoke(self, tenant_id: str, session_id: str, at_us: int) -> None:
        """Note when it was ended; the first counts. One that is not there is no error."""
        ...

    async def forget(self, tenant_id: str) -> None:
        """Remove all of a tenant that is deleted, where they do not end by themselves."""
        ...


class RecordSessions:
    """Sessions as sealed records of the platform's own room: durable, and for every server that shares that room."""

    def __init__(self, records: SealedStore, clock: Clock) -> None:
        self._records = records
        self._clock = clock

    async def add(self, session: SignInSession) -> None:
        partition = _partition(session.tenant_id)
        await self._records.put(partition, session.id.encode(), msgspec.json.encode(session), expect=ABSENT)
        await self._tidy(partition)

    async def get(self, tenant_id: str, session_id: str) -> SignInSession | None:
        record = await self._records.get(_partition(tenant_id), session_id.encode())
        if record is None:
            return None
        session = msgspec.json.decode(record.body, type=SignInSession)
        return session if self._clock.now_us() < session.expires_at_us else None

    async def seen(self, tenant_id: str, session_id: str, at_us: int) -> None:
        await self._change(tenant_id, session_id, seen_at_us=at_us)

    async def revoke(self, tenant_id: str, session_id: str, at_us: int) -> None:
        await self._change(tenant_id, session_id, revoked_at_us=at_us)

    async def forget(self, tenant_id: str) -> None:
        partition = _partition(tenant_id)
        while records := await self._records.query(partition, limit=TIDY):
            with contextlib.suppress(ConditionFailed):  # another server notes something of one at this moment
                await self._records.write(partition, [Delete(record.sort, record.revision) for record in records])

    async def _change(
        self, tenant_id: str, session_id: str, *, seen_at_us: int = 0, revoked_at_us: int | None = None
    ) -> None:
        partition, sort = _partition(tenant_id), session_id.encode()
        for _ in range(_TRIES):
            record = await self._records.get(partition, sort)
            if record is None:
                return
            before = msgspec.json.decode(record.body, type=SignInSession)
            after = msgspec.structs.replace(
                before,
                seen_at_us=max(before.seen_at_us, seen_at_us),
                revoked_at_us=revoked_at_us if before.revoked_at_us is None else before.revoked_at_us,
            )
            if after == before:
                return
            try:
                await self._records.put(partition, sort, msgspec.json.encode(after), expect=record.revision)
                return
            except ConditionFailed:
                continue  # another server was first; look at what it wrote
        raise ConditionFailed

    async def _tidy(self, partition: Partition) -> None:
        """Remove the oldest that have run out, so that a tenant's sessions do not pile up."""
        now_us = self._clock.now_us()
        oldest = await self._records.query(partition, limit=TIDY)
        ended = [
            Delete(record.sort, record.revision)
            for record in oldest
            if msgspec.json.decode(record.body, type=SignInSession).expires_at_us <= now_us
        ]
        try:
            if ended:
                await self._records.write(partition, ended)
        except ConditionFailed:
            return  # another server tidies up at this moment


class CachedSessions:
    """Sessions in a cache that servers share, sealed. They end by themselves; a cache that lost them lost no more than
    the answer to "since when am I signed in". ``cache`` is one that does not forgive."""

    def __init__(self, cache: SealedCache, clock: Clock) -> None:
        self._cache = cache
        self._clock = clock

    async def add(self, session: SignInSession) -> None:
        await self._cache.set(
            _key("session", session.tenant_id, session.id), msgspec.json.encode(session), ttl_s=self._left_s(session)
        )

    async def get(self, tenant_id: str, session_id: str) -> SignInSession | None:
        # Three entries, each written whole by whoever writes it: two servers can overwrite nothing of each other.
        kept, seen, revoked = await asyncio.gather(
            *(self._cache.get(_key(kind, tenant_id, session_id)) for kind in ("session", "seen", "revoked"))
        )
        if kept is None:
            return None
        session = msgspec.json.decode(kept, type=SignInSession)
        return msgspec.structs.replace(
            session,
            seen_at_us=max(session.seen_at_us, 0 if seen is None else int(seen)),
            revoked_at_us=None if revoked is None else int(revoked),
        )

    async def seen(self, tenant_id: str, session_id: str, at_us: int) -> None:
        session = await self.get(tenant_id, session_id)
        if session is not None and session.seen_at_us < at_us:
            await self._note("seen", session, at_us)

    async def revoke(self, tenant_id: str, session_id: str, at_us: int) -> None:
        session = await self.get(tenant_id, session_id)
        if session is not None and session.revoked_at_us is None:
            await self._note("revoked", session, at_us)

    async def forget(self, tenant_id: str) -> None:
        """Nothing: they end by themselves."""

    async def _note(self, kind: str, session: SignInSession, at_us: int) -> None:
        key = _key(kind, session.tenant_id, session.id)
        await self._cache.set(key, str(at_us).encode(), ttl_s=self._left_s(session))

    def _left_s(self, session: SignInSession) -> float:
        return (session.expires_at_us - self._clock.now_us()) / 1_000_000


def _partition(tenant_id: str) -> Partition:
    return Partition("session", tenant_id)


def _key(kind: str, tenant_id: str, session_id: str) -> str:
    # A tenant's id and a kind have no slash.
    return f"{kind}/{tenant_id}/{session_id}"
