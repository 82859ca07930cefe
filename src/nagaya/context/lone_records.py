"""Records that say the same whoever writes them: entries of lists, notes, marks. Everything here may be repeated."""

from __future__ import annotations

import contextlib
from typing import Final

from nagaya.connections.room import TenantSession
from nagaya.errors import ConditionFailed, Conflict
from nagaya.records.sealed_store import ABSENT, Delete, Partition, Put, Record

_ATTEMPTS: Final = 16
_AT_ONCE: Final = 90


async def put_unless_there(session: TenantSession, partition: Partition, sort: bytes, body: bytes = b"") -> None:
    """Write a record; one that is there stays as it is."""
    with contextlib.suppress(ConditionFailed):
        await session.records.put(partition, sort, body)


async def put_anew(session: TenantSession, partition: Partition, sort: bytes, body: bytes = b"") -> None:
    """Write a record, also where it is there already: whoever is about to remove the one it saw before (see
    :func:`remove_seen`) then finds another."""
    is_late = False
    for _ in range(_ATTEMPTS):
        record = await session.records.get(partition, sort)
        if is_late and record is not None and record.body == body:
            return  # somebody else has just written it anew
        try:
            await session.records.put(partition, sort, body, expect=ABSENT if record is None else record.revision)
        except ConditionFailed:
            is_late = True
            continue
        return
    raise Conflict


async def remove_seen(session: TenantSession, partition: Partition, seen: Record | None) -> None:
    """Remove a record that was seen there, unless somebody has written it anew since."""
    if seen is not None:
        with contextlib.suppress(ConditionFailed):
            await session.records.delete(partition, seen.sort, expect=seen.revision)


async def remove_one(session: TenantSession, partition: Partition, sort: bytes) -> None:
    """Remove the record at that place, whatever its revision, if there is one."""
    for _ in range(_ATTEMPTS):
        record = await session.records.get(partition, sort)
        if record is None:
            return
        try:
            await session.records.delete(partition, sort, expect=record.revision)
        except ConditionFailed:
            continue
        return


async def remove_all(
    session: TenantSession, partition: Partition, *, after: bytes = b"", before: bytes = b"", keep: bytes = b""
) -> None:
    """Remove every record of a partition with ``after < sort < before`` (b"": no end), but the one at ``keep``."""
    while rows := await session.records.query(partition, after=after, before=before, limit=_AT_ONCE):
        doomed: list[Put | Delete] = [Delete(row.sort, row.revision) for row in rows if row.sort != keep]
        if doomed:
            try:
                await session.records.write(partition, doomed)
            except ConditionFailed:
                continue
        after = rows[-1].sort
