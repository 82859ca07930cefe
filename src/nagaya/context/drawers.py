"""Sealed records for a program that keeps things of its own in a tenant, such as an agents' framework.

Where things lie: partition ``<program>/<blind names>``. The names are blinded together with their owner, so that the
store learns neither, and one user's folder is never another's, whatever it is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.errors import ConditionFailed, Conflict
from nagaya.records.sealed_store import Delete, Partition, Put, Record
from nagaya.stores.driver import MAX_BATCH
from nagaya.tenancy.principal import Scope

__all__ = ["MAX_CHANGES", "Delete", "Drawer", "Folder", "Put", "Record"]

MAX_CHANGES: Final = MAX_BATCH
"""Changes in one :meth:`Folder.write`."""
_PAGE: Final = 200
_ATTEMPTS: Final = 16


class Drawer:
    """What one user keeps with one program. ``program`` is a short name: letters ``a-z``, digits, hyphens.

    Nothing in it can be reached by another user or tenant: a folder of the same names is another folder there.
    """

    __slots__ = ("_field", "_owner", "_program", "_session")

    def __init__(self, session: TenantSession, program: str) -> None:
        self._session = session
        self._program = program
        self._field = f"drawer.{program}"
        self._owner = session.entrance.principal.user_key

    async def folder(self, *names: str) -> Folder:
        """The place for what belongs together, read as one range. It need not be made, and costs no record."""
        return Folder(self._session, Partition(self._program, await self._blind(names)))

    async def mark(self, *names: str) -> bytes:
        """32 bytes that stand for these names in sort keys: always the same for this user, telling nothing of them."""
        return bytes.fromhex(await self._blind(("mark", *names)))

    async def _blind(self, names: tuple[str, ...]) -> str:
        # As JSON, so that no two lists of names are the same text.
        text = msgspec.json.encode((self._owner, *names)).decode()
        return await self._session.records.blind(self._field, text)


class Folder:
    """The records of one folder, ordered by their sort keys (1 to 200 bytes, in clear at the store).

    Every method raises ``SessionClosed`` once the session has ended, and the ``Store…``, ``Key…`` and ``Seal…`` errors.
    """

    __slots__ = ("_partition", "_session")

    def __init__(self, session: TenantSession, partition: Partition) -> None:
        self._session = session
        self._partition = partition

    @property
    def name(self) -> str:
        """64 hex digits: this folder among all of the tenant's."""
        return self._partition.name

    async def get(self, sort: bytes) -> Record | None:
        """The record at that place, or None."""
        self._session.entrance.require(Scope.READ)
        return await self._session.records.get(self._partition, sort)

    async def get_many(self, sorts: Sequence[bytes]) -> list[Record | None]:
        """As :meth:`get`, of several places at once, in their order."""
        self._session.entrance.require(Scope.READ)
        return await self._session.records.get_many(self._partition, sorts)

    async def query(
        self, *, after: bytes = b"", before: bytes = b"", limit: int = _PAGE, descending: bool = False
    ) -> list[Record]:
        """Up to ``limit`` (1 to 1,000) records with ``after < sort < before`` (``before`` = b"": no upper end)."""
        self._session.entrance.require(Scope.READ)
        return await self._session.records.query(
            self._partition, after=after, before=before, limit=limit, descending=descending
        )

    async def put(self, sort: bytes, body: bytes, *, expect: int = 0) -> int:
        """Write one record durably if the revision there is ``expect`` (0: none); gives its new revision.

        Raises ``ConditionFailed`` where it is another.
        """
        self._session.may_write()
        return await self._session.records.put(self._partition, sort, body, expect=expect)

    async def write(self, changes: Sequence[Put | Delete]) -> None:
        """Apply 1 to ``MAX_CHANGES`` changes to distinct places, all or none, durably. Raises ``ConditionFailed``."""
        self._session.may_write()
        await self._session.records.write(self._partition, changes)

    async def remove(self, sort: bytes) -> None:
        """Remove the record at that place. Where there is none nothing happens."""
        for _ in range(_ATTEMPTS):
            record = await self.get(sort)
            if record is None:
                return
            try:
                await self.write([Delete(sort, record.revision)])
            except ConditionFailed:
                continue
            return
        raise Conflict

    async def clear(self, *, after: bytes = b"", before: bytes = b"") -> None:
        """Remove every record of a range (all, where none is given). May be repeated."""
        self._session.may_write()
        while rows := await self.query(after=after, before=before, limit=MAX_CHANGES):
            try:
                await self._session.records.write(self._partition, [Delete(row.sort, row.revision) for row in rows])
            except ConditionFailed:
                # Somebody changed one of them meanwhile: what is there now is read anew.
                continue
