"""``Idempotency-Key``: a repeated POST answers as the first, also when a crash came between the two.

The first request claims its key before it does anything, and makes its ids from the claim. A repeat of a finished
request gets the recorded answer; a repeat after a crash takes the claim over and, having the same ids, finds or
finishes what the first one began. Claims belong to one user of one tenant.

Partition ``idempotency/<blind user and key>`` holds a claim and its answer, ``idempotency-ending/all`` by when they are
repeated no more (8 bytes of microseconds, then the name): the daily work removes them then.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec
import structlog

from nagaya.connections.room import TenantSession
from nagaya.context.lone_records import put_unless_there, remove_one
from nagaya.errors import (
    ConditionFailed,
    IdempotencyInProgress,
    IdempotencyMismatch,
    InvalidValue,
    NagayaError,
)
from nagaya.kernel.ids import derived_id
from nagaya.records.sealed_store import Partition

LEASE_US: Final = 150_000_000
"""How long a claim without an answer keeps repeats out: what takes longer renews it."""
RENEW_S: Final = 40.0
"""How often the claim of a request that takes long is renewed."""
KEEP_US: Final = 24 * 3600 * 1_000_000
"""How long an answer is repeated; after that the key may be used anew."""

_ENDING: Final = Partition("idempotency-ending", "all")
_SORT: Final = b"r"
_PAGE: Final = 90

_log = structlog.get_logger(__name__)


class _Stored(msgspec.Struct, omit_defaults=True):
    fingerprint: str
    seed: str
    claimed_at_us: int
    first_at_us: int
    status: int | None = None
    body: str = ""


class Answer(msgspec.Struct, frozen=True):
    """What the first request was answered with."""

    status: int
    body: bytes


class Claim:
    """The right to carry out an idempotent request, and the ids to do it with."""

    __slots__ = ("_partition", "_renewing", "_revision", "_session", "_stored")

    def __init__(self, session: TenantSession, partition: Partition, stored: _Stored, revision: int) -> None:
        self._session = session
        self._partition = partition
        self._stored = stored
        self._revision = revision
        self._renewing: tuple[asyncio.Future[None], ...] = ()

    def id(self, prefix: str, number: int = 0) -> str:
        """The claim's id of that kind and number, the same in every attempt."""
        return derived_id(
            prefix, bytes.fromhex(self._stored.seed) + number.to_bytes(4, "big"), self._stored.first_at_us
        )

    def lasting(self, session: TenantSession) -> Claim:
        """The same claim for work that outlives the session it was made in."""
        return Claim(session, self._partition, self._stored, self._revision)

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Keep repeats out for as long as the work inside takes, however long that is."""
        keeping = asyncio.ensure_future(self._keep())
        try:
            yield
        finally:
            keeping.cancel()
            # One that has begun is waited for: it might be kept, under a revision that nobody would know.
            await asyncio.gather(keeping, *self._renewing, return_exceptions=True)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            again = msgspec.structs.replace(self._stored, claimed_at_us=self._session.clock.now_us())
            renewing = asyncio.ensure_future(self._renew(again))
            self._renewing = (renewing,)
            try:
                await asyncio.shield(renewing)
            except ConditionFailed:
                return  # taken over
            except NagayaError as problem:
                _log.warning("claim was not renewed", action="idempotency.not_renewed", code=problem.code)

    async def _renew(self, again: _Stored) -> None:
        self._revision = await self._session.records.put(
            self._partition, _SORT, msgspec.json.encode(again), expect=self._revision
        )
        self._stored = again

    async def finish(self, status: int, body: bytes) -> None:
        """Record the answer. A claim that was taken over meanwhile is left as it is."""
        done = msgspec.structs.replace(self._stored, status=status, body=body.decode())
        try:
            await self._session.records.put(self._partition, _SORT, msgspec.json.encode(done), expect=self._revision)
        except ConditionFailed:
            return

    async def abandon(self) -> None:
        """Give the key back: the request was refused or failed, and may be repeated at once."""
        try:
            await self._session.records.delete(self._partition, _SORT, expect=self._revision)
        except ConditionFailed:
            return


async def claim(session: TenantSession, key: str, fingerprint: bytes) -> Claim | Answer:
    """Claim ``key`` for a request with this fingerprint (its method, path and body), or give its earlier answer.

    Raises ``IdempotencyMismatch`` for a key used with another request, ``IdempotencyInProgress`` while the first is
    still being answered.
    """
    if not 1 <= len(key) <= 255 or not key.isprintable():
        raise InvalidValue(param="Idempotency-Key", at="Idempotency-Key", detail="1 to 255 printable characters")
    session.may_write()
    records = session.records
    name = await records.blind(
        "idempotency", f"{len(session.entrance.principal.user_key)}:{session.entrance.principal.user_key}{key}"
    )
    partition = Partition("idempotency", name)
    digest = hashlib.sha256(fingerprint).hexdigest()
    for _ in range(4):
        now_us = session.clock.now_us()
        record = await records.get(partition, _SORT)
        if record is None:
            fresh = _Stored(digest, hashlib.sha256(f"{name}{now_us}".encode()).hexdigest(), now_us, now_us)
            expect = 0
        else:
            found = msgspec.json.decode(record.body, type=_Stored)
            expect = record.revision
            if now_us - found.first_at_us > KEEP_US:
                fresh = _Stored(digest, hashlib.sha256(f"{name}{now_us}".encode()).hexdigest(), now_us, now_us)
            elif found.fingerprint != digest:
                raise IdempotencyMismatch(param="Idempotency-Key")
            elif found.status is not None:
                return Answer(found.status, found.body.encode())
            elif now_us - found.claimed_at_us < LEASE_US:
                raise IdempotencyInProgress(retry_after_s=1)
            else:
                fresh = msgspec.structs.replace(found, claimed_at_us=now_us)
        # Before the claim, so that none is without it.
        await put_unless_there(session, _ENDING, (fresh.first_at_us + KEEP_US).to_bytes(8, "big") + name.encode())
        try:
            revision = await records.put(partition, _SORT, msgspec.json.encode(fresh), expect=expect)
        except ConditionFailed:
            continue
        return Claim(session, partition, fresh, revision)
    raise IdempotencyInProgress(retry_after_s=1)


async def end_claims(session: TenantSession) -> int:
    """Remove the claims whose answers are repeated no more, with the answers; gives how many. May be repeated."""
    records, now_us, ended = session.records, session.clock.now_us(), 0
    after = b""
    while due := await records.query(_ENDING, after=after, before=now_us.to_bytes(8, "big"), limit=_PAGE):
        for row in due:
            after = row.sort
            partition = Partition("idempotency", row.sort[8:].decode())
            record = await records.get(partition, _SORT)
            if record is not None:
                found = msgspec.json.decode(record.body, type=_Stored)
                if found.status is None and now_us - found.claimed_at_us < LEASE_US:
                    continue  # still being answered
                if now_us - found.first_at_us > KEEP_US:
                    try:
                        await records.delete(partition, _SORT, expect=record.revision)
                    except ConditionFailed:
                        continue  # used anew at this moment, or answered; looked at another day
                    ended += 1
            await remove_one(session, _ENDING, row.sort)
    return ended
