"""A job as it lies in the jobs database, and what proves that the platform wrote it.

Whoever can write to that database could otherwise name another tenant, another kind of work or other arguments. The
record carries an authentication code under a key that the database does not hold, over everything in it, the job's
own id included: an edited record is refused, and so is one that was copied under another id.
"""

from __future__ import annotations

import contextlib
import hmac
import os
from hashlib import sha256
from typing import Final

import msgspec

from nagaya.errors import ConditionFailed, JobRefused
from nagaya.kernel.ids import new_id
from nagaya.keys.derivation import length_prefixed
from nagaya.records.sealed_store import Partition, SealedStore
from nagaya.tenancy.tenant import Tenant

MAX_AGE_US: Final = 7 * 86_400 * 1_000_000
"""How long a job may wait, its marks are kept, and its dedup text counts."""

JOB_S: Final = 3600.0
"""The longest that one attempt may take."""

MAX_TEXT: Final = 16 * 1024
KEY_BYTES: Final = 32
_CODE: Final = 64
_AHEAD_US: Final = 300 * 1_000_000
_KEY_PLACE: Final = (Partition("job", "key"), b"authentication")
_PURPOSE: Final = b"nagaya job v1"


class JobRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a job is. ``tenant_since_us`` tells a tenant from a later one with the same id."""

    id: str
    tenant_id: str
    tenant_since_us: int
    kind: str
    arguments: dict[str, str | int | bool]
    attempt: int
    enqueued_at_us: int

    @property
    def place(self) -> str:
        """The id of this attempt in the jobs database."""
        return self.id if self.attempt == 1 else f"{self.id}:{self.attempt}"


_MINT: Final = object()


class VerifiedJob:
    """A record whose authentication code was right. Only :class:`JobSigner` makes one; the gate takes nothing else."""

    __slots__ = ("record",)

    record: JobRecord

    def __init__(self, mint: object, record: JobRecord) -> None:
        if mint is not _MINT:
            raise JobRefused(reason="it was never authenticated")
        self.record = record

    def is_of(self, tenant: Tenant) -> bool:
        """Whether it belongs to this very tenant, not to an earlier one with the same id."""
        return self.record.tenant_id == tenant.id and self.record.tenant_since_us == tenant.created_at_us


class JobSigner:
    """Writes and reads job records under one key. No I/O."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise JobRefused(reason="the key of the jobs is damaged")
        self._key = key
        self._decoder = msgspec.json.Decoder(JobRecord)

    def job_id(self, tenant: Tenant, kind: str, dedup: str | None) -> str:
        """A fresh id; with ``dedup`` one that stands for tenant, kind and text, and tells nothing of the text."""
        if dedup is None:
            return new_id("job")
        what = length_prefixed(b"dedup", tenant.id, str(tenant.created_at_us), kind, dedup)
        return f"job_{hmac.digest(self._key, what, sha256).hex()[:32]}"

    def seal(self, record: JobRecord) -> str:
        """The record as text, authenticated."""
        return self.seal_bytes(_PURPOSE, msgspec.json.encode(record))

    def open(self, text: object, place: str, now_us: int) -> VerifiedJob:
        """The record, if it is genuine, lies where it was put and is not too old. Raises ``JobRefused``."""
        try:
            record = self._decoder.decode(self.open_bytes(_PURPOSE, text))
        except msgspec.DecodeError:
            raise JobRefused(reason="its record is not understood") from None
        if record.place != place:
            raise JobRefused(reason="its record belongs to another job")
        if not -MAX_AGE_US < record.enqueued_at_us - now_us < _AHEAD_US:
            raise JobRefused(reason="it is too old")
        return VerifiedJob(_MINT, record)

    def reopen(self, text: object, place: str) -> VerifiedJob | None:
        """The record of any age, for showing; None where it is not genuine."""
        try:
            record = self._decoder.decode(self.open_bytes(_PURPOSE, text))
        except (JobRefused, msgspec.DecodeError):
            return None
        return VerifiedJob(_MINT, record) if record.place == place else None

    def tenant_key(self, tenant: Tenant) -> bytes:
        """The key under which this tenant's own producers sign messages; it opens nothing and signs no record."""
        return hmac.digest(self._key, length_prefixed(b"producer", tenant.id, str(tenant.created_at_us)), sha256)

    def seal_bytes(self, purpose: bytes, body: bytes) -> str:
        """``body`` with an authentication code for one purpose, as text."""
        return self._code(purpose, body) + body.decode("utf-8")

    def open_bytes(self, purpose: bytes, text: object) -> bytes:
        """The body, if the code is right for that purpose. Raises ``JobRefused``."""
        if not isinstance(text, str) or not _CODE < len(text) <= MAX_TEXT:
            raise JobRefused(reason="its record is not understood")
        body = text[_CODE:].encode("utf-8", "surrogatepass")
        if not hmac.compare_digest(self._code(purpose, body).encode(), text[:_CODE].encode("utf-8", "surrogatepass")):
            raise JobRefused(reason="its record was altered")
        return body

    def _code(self, purpose: bytes, body: bytes) -> str:
        return hmac.digest(self._key, length_prefixed(purpose, body), sha256).hex()


async def load_signer(platform: SealedStore) -> JobSigner:
    """The signer of this platform. Its key lies sealed in the platform's own room; the first server makes it."""
    partition, sort = _KEY_PLACE
    found = await platform.get(partition, sort)
    if found is None:
        with contextlib.suppress(ConditionFailed):  # another server was first; its key is as good
            await platform.put(partition, sort, os.urandom(KEY_BYTES))
        found = await platform.get(partition, sort)
        assert found is not None
    return JobSigner(found.body)
