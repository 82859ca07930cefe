"""Things that belong to one user of a tenant, and that may be shared with the others.

Where they lie: partition ``<collection>/<id>`` holds the thing's head (sort ``h``), ``<collection>s-of/<blind user>``
lists a user's, ``<collection>s-shared/all`` the shared ones. The head decides; an entry of a list is only the reason to
look at it.
"""

from __future__ import annotations

from typing import Final, Generic, Literal, NamedTuple, TypeVar

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.lone_records import put_unless_there, remove_one
from nagaya.errors import ConditionFailed, Forbidden, NotFound
from nagaya.kernel.ids import is_id
from nagaya.records.sealed_store import Partition
from nagaya.tenancy.principal import Role, Scope

HEAD: Final = b"h"
_LOOK: Final = 500

Order = Literal["asc", "desc"]


class OwnedHead(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What every owned thing says of itself. ``ended``: it is being deleted and is there for nobody."""

    id: str
    owner: str
    created_at_us: int
    shared: bool = False
    ended: bool = False
    expires_at_us: int = 0

    def is_there(self, now_us: int) -> bool:
        """Whether it can be read: neither deleted nor past its term."""
        return not self.ended and (not self.expires_at_us or now_us < self.expires_at_us)


H = TypeVar("H", bound=OwnedHead)


class Held(NamedTuple, Generic[H]):
    """A head with the revision it has in the store."""

    head: H
    revision: int


class OwnedPage(NamedTuple, Generic[H]):
    """A page of heads; ``cursor`` asks for the next one, None at the end."""

    heads: list[H]
    cursor: str | None


class Owned(Generic[H]):
    """One caller's view of the things of one kind in its tenant.

    A user sees its own; a ``member`` also reads shared ones; a ``tenant_admin`` reads and changes all of the tenant.
    What is not there and what is somebody else's answer alike: ``NotFound(name)``.
    """

    __slots__ = ("_collection", "_decoder", "_me", "_name", "_prefix", "_session")

    def __init__(self, session: TenantSession, kind: type[H], *, collection: str, prefix: str, name: str) -> None:
        self._session = session
        self._me = session.entrance.principal.user_key
        self._collection = collection
        self._prefix = prefix
        self._name = name
        self._decoder = msgspec.json.Decoder(kind)

    def partition_of(self, thing_id: str) -> Partition:
        """Where the thing's records lie."""
        return Partition(self._collection, thing_id)

    def may(self, head: H, *, writing: bool) -> bool:
        """Whether the caller may read (or change) the thing."""
        return self._session.entrance.may_see(head.owner, shared=head.shared, writing=writing)

    async def stored(self, thing_id: str) -> Held[H] | None:
        """The head as it lies in the store, whosever it is; for work on the whole room."""
        if not is_id(self._prefix, thing_id):
            return None
        record = await self._session.records.get(self.partition_of(thing_id), HEAD)
        return None if record is None else Held(self._decoder.decode(record.body), record.revision)

    async def head(self, thing_id: str, *, writing: bool = False, ended: bool = False) -> Held[H]:
        """The head, if the caller may read (or change) the thing; else ``NotFound``. ``ended``: also one that is being
        deleted or is past its term."""
        self._session.entrance.require(Scope.READ)
        held = await self.stored(thing_id)
        if held is None or not self.may(held.head, writing=writing):
            raise NotFound(self._name)
        if not ended and not held.head.is_there(self._session.clock.now_us()):
            raise NotFound(self._name)
        return held

    async def add(self, head: H) -> bool:
        """Keep a new thing; False where one with its id is there already, which stays as it is."""
        # The lists first: an entry without a thing is skipped, a thing without an entry would be lost.
        await put_unless_there(self._session, await self._list_of(head.owner), head.id.encode())
        if head.shared:
            await put_unless_there(self._session, self._shared, head.id.encode())
        try:
            await self.replace(Held(head, 0))
        except ConditionFailed:
            return False
        return True

    async def replace(self, held: Held[H]) -> None:
        """Write the head anew. Raises ``ConditionFailed`` where it was changed since it was read."""
        place = self.partition_of(held.head.id)
        await self._session.records.put(place, HEAD, msgspec.json.encode(held.head), expect=held.revision)

    async def remove(self, head: H) -> None:
        """Remove the thing from its lists, then its head. May be repeated."""
        for partition in (await self._list_of(head.owner), self._shared):
            await remove_one(self._session, partition, head.id.encode())
        await remove_one(self._session, self.partition_of(head.id), HEAD)

    async def page(
        self,
        *,
        matching: tuple[str, str] | None = None,
        user: str | None = None,
        shared: bool = False,
        after: str | None = None,
        limit: int,
        order: Order = "desc",
    ) -> OwnedPage[H]:
        """The caller's things, newest first; ``shared``: the tenant's shared ones; ``user``: for an admin.

        ``matching``: a field of the head and the value that it must have. ``after``: an id or a cursor of this list.
        """
        self._session.entrance.require(Scope.READ)
        role = self._session.entrance.principal.role
        if user is not None and user != self._me and role is not Role.TENANT_ADMIN:
            raise Forbidden(needs="role tenant_admin")
        if shared and role is Role.USER:
            raise Forbidden(needs="role member")
        partition = self._shared if shared else await self._list_of(user or self._me)
        query = (self._collection, *partition, order, *(matching or ()))
        records, now_us = self._session.records, self._session.clock.now_us()
        descending = order == "desc"
        place = b"" if after is None else await self._place_after(after, query)
        found: list[H] = []
        while len(found) <= limit:
            step = min(_LOOK, limit + 1)
            bounds = {"before": place} if descending else {"after": place}
            rows = await records.query(partition, limit=step, descending=descending, **bounds)
            for row in rows:
                held = await self.stored(row.sort.decode())
                if held is None or not held.head.is_there(now_us) or not self.may(held.head, writing=False):
                    continue
                if shared and not held.head.shared:
                    continue
                if matching is None or getattr(held.head, matching[0]) == matching[1]:
                    found.append(held.head)
            if len(rows) < step:
                break
            place = rows[-1].sort
        more, found = len(found) > limit, found[:limit]
        cursor = await records.cursors.seal_cursor(query, found[-1].id.encode()) if more else None
        return OwnedPage(found, cursor)

    async def _place_after(self, after: str, query: tuple[str, ...]) -> bytes:
        if is_id(self._prefix, after):
            await self.head(after)
            return after.encode()
        return await self._session.records.cursors.open_cursor(query, after)

    @property
    def _shared(self) -> Partition:
        return Partition(f"{self._collection}s-shared", "all")

    async def _list_of(self, owner: str) -> Partition:
        return Partition(
            f"{self._collection}s-of", await self._session.records.blind(f"{self._collection}.owner", owner)
        )
