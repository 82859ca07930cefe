"""A tenant's room: its store, keys, model and secrets, opened once and shared by that tenant's sessions."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Final, Protocol
from weakref import WeakValueDictionary

import structlog

from nagaya.connections.decoded import Decoded
from nagaya.connections.unfinished import Unfinished
from nagaya.errors import CloudUnreachable, NoTenant, NotFound, SessionClosed, StoreResting, StoreUnreachable
from nagaya.extraction.extractor import Extractor
from nagaya.indexes.open_index import OpenIndex
from nagaya.kernel.breaker import Breaker
from nagaya.kernel.clock import Clock
from nagaya.kernel.fence import Fence
from nagaya.models.line import ModelInLine, ModelLine
from nagaya.models.model import Embeddings, Model
from nagaya.models.tool_server import Address, ToolServer
from nagaya.records.sealed_blobs import SealedBlobs
from nagaya.records.sealed_cache import SealedCache
from nagaya.records.sealed_store import Partition, SealedStore
from nagaya.secrets.driver import SecretDriver
from nagaya.tenancy.principal import Entrance, Scope
from nagaya.tenancy.tenant import Tenant

_REMEMBERED_TAILS = 4096
_REMEMBERED_OUTAGES = 4096
_RECORD_S = 2.0
_LOOK_S = 0.05
_AT_ONCE = 16
_CLOSING_MOST = 64

SHUT_S: Final = 5.0
"""How long the sessions of a tenant that may no longer enter have, before their connections are closed under them."""

OUTAGES: Final = (StoreUnreachable, CloudUnreachable)
"""Why a room may not open although nothing is wrong with its tenant: opening it is left alone for a while."""

_log = structlog.get_logger(__name__)


class Cancellable(Protocol):
    """A run that stops at its next step once ``cancelled`` is set."""

    cancelled: bool


class RoomParts(Protocol):
    """What a room is made of. The composition root makes one per tenant; nothing in it names another tenant."""

    @property
    def records(self) -> SealedStore: ...

    @property
    def cache(self) -> SealedCache: ...

    @property
    def secrets(self) -> SecretDriver: ...

    @property
    def needs_rotation(self) -> bool:
        """Whether the tenant's key has sealed half of what it may."""
        ...

    @property
    def reads_older(self) -> bool:
        """Whether records sealed before a key rotation were read lately."""
        ...

    async def check_key(self) -> None:
        """Raise the ``Key…`` error where the tenant's key cannot be used now."""
        ...

    async def blobs(self) -> SealedBlobs:
        """The tenant's blobs; opened when first asked for. Raises ``NoBlobStore``."""
        ...

    async def index(self) -> OpenIndex:
        """The room's segments in memory. Raises ``NoBlobStore``."""
        ...

    @property
    def decoded(self) -> Decoded:
        """Lists of the room's records in memory as they were decoded."""
        ...

    @property
    def extractor(self) -> Extractor:
        """Reads documents; the process has one."""
        ...

    @property
    def unfinished(self) -> Unfinished:
        """The platform's note that work is left in this room."""
        ...

    async def models(self) -> list[Model]:
        """The tenant's models in the order of preference; made when first asked for."""
        ...

    async def embeddings(self) -> list[Embeddings]: ...

    def tool_server_address(self, url: str, headers: Mapping[str, str], at: str) -> Address:
        """The address of a server of tools, where the tenant may ask it. Raises ``InvalidValue``, ``AddressRefused``
        and ``RegionRefused``."""
        ...

    async def tool_server(self, address: Address) -> ToolServer:
        """Its client for one run, to be closed by the caller. Raises ``MissingExtra``."""
        ...

    async def close(self) -> None:
        """Close what was opened, in reverse. May be called again."""
        ...


class Tail:
    """What this process knows of a conversation it appended to or read: where it lies, the next place (None: not looked
    for), who owns it (that never changes), and, where the store can tell, the moment at which it was known to exist."""

    __slots__ = ("next_sequence", "owner", "partition", "since")

    def __init__(self, partition: Partition, next_sequence: int | None, owner: str, since: object | None) -> None:
        self.partition = partition
        self.next_sequence = next_sequence
        self.owner = owner
        self.since = since


class Tails:
    """The tails that this process knows of one tenant's conversations, in whichever of its rooms: what is deleted in
    one that is going out of use is gone in the one after it. ``forgotten`` counts how often one was forgotten."""

    __slots__ = ("__weakref__", "forgotten", "known")

    def __init__(self) -> None:
        self.known: OrderedDict[str, Tail] = OrderedDict()
        self.forgotten = 0


class Room:
    """One tenant's opened resources in this process. Sessions lease it; it closes when the last lets go."""

    def __init__(self, tenant: Tenant, parts: RoomParts, clock: Clock, tails: Tails) -> None:
        self.tenant = tenant
        self.parts = parts
        self.leases = 0
        self.retired = False
        # The next place in a conversation, as this process last saw it. A hint: the store's condition decides.
        self.tails = tails.known
        self._tails = tails
        # Until then other processes write to this room too often for the hints to be worth trying.
        self.shared_until_s = float("-inf")
        # Background responses in the making here, by id, so that they can be cancelled.
        self.runs: dict[str, Cancellable] = {}
        # Vector stores that are being indexed here, by id and by who does it; true: there is more to look at.
        self.indexing: dict[tuple[str, str], bool] = {}
        # Conversations whose words are to be noted here for searches, by the user who searched.
        self.noting: dict[str, dict[str, None]] = {}
        self._news: dict[str, asyncio.Event] = {}
        self._work: set[asyncio.Task[object]] = set()
        self._clock = clock
        self._line: list[ModelInLine] = []

    def remember_tail(
        self,
        conversation_id: str,
        partition: Partition,
        next_sequence: int | None,
        owner: str = "",
        since: object | None = None,
    ) -> None:
        """Keep the hint for the next append; the oldest hint goes when there are too many."""
        self.tails[conversation_id] = Tail(partition, next_sequence, owner, since)
        if len(self.tails) > _REMEMBERED_TAILS:
            self.tails.popitem(last=False)

    def forget_tail(self, conversation_id: str) -> None:
        """What is known of the conversation holds no more: it was changed, or is gone. Who reads its head meanwhile
        sees by ``tails_forgotten`` that it must not be relied upon."""
        self._tails.forgotten += 1
        self.tails.pop(conversation_id, None)

    @property
    def tails_forgotten(self) -> int:
        """How often :meth:`forget_tail` was called, in this room or in another of the tenant's."""
        return self._tails.forgotten

    def news(self, user: str) -> asyncio.Event:
        """Set once this process has news for that user; to be asked for before looking whether there is some."""
        return self._news.setdefault(user, asyncio.Event())

    def wake(self, user: str) -> None:
        """Tell everybody here who waits for that user's news."""
        news = self._news.pop(user, None)
        if news is not None:
            news.set()

    def line(self, models: Sequence[Model]) -> list[ModelInLine]:
        """The models with their breakers, which last as long as the room."""
        if len(self._line) != len(models):
            self._line = [ModelInLine(model, Breaker(self._clock, failures=3)) for model in models]
        return self._line

    def background(self, work: Coroutine[object, object, object]) -> None:
        """Do ``work`` to its end, whoever asked for it; the room does not close before."""
        self.leases += 1
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[object]) -> None:
        self._work.discard(task)
        self.leases -= 1
        if not task.cancelled() and (problem := task.exception()) is not None:
            _log.error("background work failed", action="room.work_failed", error=type(problem).__name__)
        if self.retired and self.leases == 0:
            closing = asyncio.ensure_future(self.parts.close())
            self._work.add(closing)
            closing.add_done_callback(self._work.discard)

    async def settle(self, deadline_s: float) -> None:
        """Wait for background work, then cancel what is left and let it record how far it came."""
        for patience_s in (deadline_s, _RECORD_S):
            if not self._work:
                return
            await asyncio.wait(self._work, timeout=patience_s)
            for task in list(self._work):
                task.cancel()

    async def close_when_free(self) -> None:
        """Close now if nobody holds a lease; else the last session to end closes it."""
        self.retired = True
        if self.leases == 0:
            await self.parts.close()

    async def shut(self, deadline_s: float) -> None:
        """Close whoever holds a lease: sessions get ``deadline_s`` to end by themselves, then background work is
        cancelled, and what still comes finds everything closed."""
        self.retired = True
        clock = asyncio.get_running_loop().time
        ends_s = clock() + deadline_s
        while self.leases and clock() < ends_s:  # noqa: ASYNC110 - leases are a plain count on the hot path
            await asyncio.sleep(_LOOK_S)
        await self.settle(0.0)
        await self.parts.close()


class TenantReader:
    """The right to read one tenant's context, for as long as its entrance holds."""

    __slots__ = ("_closed", "_is_current", "_room", "clock", "entrance")

    def __init__(self, entrance: Entrance, room: Room, clock: Clock, is_current: Callable[[Entrance], bool]) -> None:
        if not isinstance(entrance, Entrance) or entrance.tenant.id != room.tenant.id:
            # Nothing may open a room but an entrance to that very tenant.
            raise NoTenant
        self.entrance = entrance
        self.clock = clock
        self._room = room
        self._is_current = is_current
        self._closed = False

    @property
    def tenant(self) -> Tenant:
        return self.entrance.tenant

    @property
    def is_current(self) -> Callable[[Entrance], bool]:
        """Tells whether an entrance still holds; usable after this session has ended, as a stream's watch needs."""
        return self._is_current

    @property
    def room(self) -> Room:
        """The room, while this session is open and its entrance still holds; else ``SessionClosed``."""
        self.check()
        return self._room

    @property
    def records(self) -> SealedStore:
        self.check()
        return self.records_in_room

    @property
    def records_in_room(self) -> SealedStore:
        """As ``records``, for who has just been given the room: to check once more costs a microsecond."""
        return self._room.parts.records

    def check(self) -> None:
        """Raise ``SessionClosed`` when the session was closed, its token has ended, or it was revoked. No I/O."""
        if self._closed or not self._is_current(self.entrance):
            raise SessionClosed

    def may_write(self) -> None:
        """Raise ``Forbidden`` unless the entrance has the write scope."""
        self.entrance.principal.require(Scope.WRITE)


class TenantSession(TenantReader):
    """The only way to a tenant's store, keys, models and secrets. Made from an entrance; see ``Rooms.session``."""

    __slots__ = ()

    @property
    def secrets(self) -> SecretDriver:
        self.check()
        return self._room.parts.secrets

    @property
    def cache(self) -> SealedCache:
        """Copies that may be lost at any moment, sealed under the tenant's key before they leave this process."""
        self.check()
        return self._room.parts.cache

    async def blobs(self) -> SealedBlobs:
        """The tenant's blobs, sealed under its keys. Raises ``NoBlobStore`` where it has no place for them."""
        self.check()
        return await self._room.parts.blobs()

    async def models(self) -> list[Model]:
        """The tenant's models, the preferred one first."""
        self.check()
        return await self._room.parts.models()

    async def model(self, name: str | None) -> ModelLine:
        """The model with that name (the preferred one for None or an empty name), the others standing behind it for
        an outage. Raises ``NotFound``."""
        line = self._room.line(await self.models())
        if not name:
            return ModelLine(line)
        for place in line:
            if place.model.name == name:
                return ModelLine([place, *(other for other in line if other is not place)])
        raise NotFound("model", param="model")

    async def embeddings(self) -> list[Embeddings]:
        self.check()
        return await self._room.parts.embeddings()

    def tool_server_address(self, url: str, headers: Mapping[str, str], at: str) -> Address:
        """The address of a server of tools, where this tenant may ask it. Raises ``InvalidValue``, ``AddressRefused``
        and ``RegionRefused``."""
        self.check()
        return self._room.parts.tool_server_address(url, headers, at)

    async def tool_server(self, address: Address) -> ToolServer:
        """Its client for one run, to be closed by the caller. Raises ``MissingExtra``."""
        self.check()
        return await self._room.parts.tool_server(address)

    def lease(self) -> TenantSession:
        """A second lease on the same room, for work that outlives the caller's session (``release`` ends it)."""
        self._room.leases += 1
        return TenantSession(self.entrance, self._room, self.clock, self._is_current)

    def fenced(self, fence: Fence) -> TenantSession:
        """A second lease on the same room, for work that others may take over (``release`` ends it)."""
        self._room.leases += 1
        return FencedSession(self.entrance, self._room, self.clock, self._is_current, fence)

    def background(self, work: Coroutine[object, object, object]) -> None:
        """Do ``work`` to its end as the room's own, after this session has ended too."""
        self._room.background(work)

    async def release(self) -> None:
        """End the session. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._room.leases -= 1
        if self._room.retired and self._room.leases == 0:
            await self._room.parts.close()


class FencedSession(TenantSession):
    """A session for work that others may take over: behind the fence it does nothing, and writes no record and no
    blob. What it was writing at that moment may still be kept."""

    __slots__ = ("_fence", "_records")

    def __init__(
        self, entrance: Entrance, room: Room, clock: Clock, is_current: Callable[[Entrance], bool], fence: Fence
    ) -> None:
        super().__init__(entrance, room, clock, is_current)
        self._fence = fence
        self._records = room.parts.records.fenced(fence)

    def check(self) -> None:
        super().check()
        self._fence.check()

    @property
    def records_in_room(self) -> SealedStore:
        return self._records

    async def blobs(self) -> SealedBlobs:
        return (await super().blobs()).fenced(self._fence)

    def lease(self) -> TenantSession:
        return self.fenced(self._fence)


class Rooms:
    """The rooms open in this process: a bounded number, the longest unused closed first."""

    def __init__(
        self,
        open_parts: Callable[[Tenant], Awaitable[RoomParts]],
        clock: Clock,
        is_current: Callable[[Entrance], bool],
        *,
        max_open: int = 512,
    ) -> None:
        self._open_parts = open_parts
        self._clock = clock
        self._is_current = is_current
        self._max_open = max_open
        self._rooms: OrderedDict[str, Room] = OrderedDict()
        self._opening: dict[str, asyncio.Task[Room]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._outages: OrderedDict[str, tuple[int, Breaker]] = OrderedDict()
        # Of every tenant of which a room is open, be it one that is no longer found here.
        self._tails: WeakValueDictionary[str, Tails] = WeakValueDictionary()

    def held(self, entrance: Entrance) -> TenantSession | None:
        """A session at once, where the tenant's room is open in its present configuration; else None. No I/O."""
        room = self._rooms.get(entrance.tenant.id)
        if room is None or room.tenant.epoch != entrance.tenant.epoch:
            return None
        self._rooms.move_to_end(entrance.tenant.id)
        room.leases += 1
        return TenantSession(entrance, room, self._clock, self._is_current)

    async def session(self, entrance: Entrance) -> TenantSession:
        """A session for an entrance. Opens the tenant's room where it is not open; one opening at a time a tenant.

        Where opening kept failing for an outage, raises ``StoreResting`` at once, for a rest that grows to 30 s.
        """
        if not isinstance(entrance, Entrance):
            raise NoTenant
        session = self.held(entrance)
        while session is None:
            if not self._is_current(entrance):
                # Whoever was let in before the tenant was shut opens nothing anew.
                raise SessionClosed
            session = await self._after_opening(entrance)
        return session

    async def _after_opening(self, entrance: Entrance) -> TenantSession | None:
        """A session in a room that is opened for it; None where others crowded the room out before it was entered."""
        tenant = entrance.tenant
        opening = self._opening.get(tenant.id)
        if opening is None:
            opening = asyncio.ensure_future(self._open(tenant))
            self._opening[tenant.id] = opening
            opening.add_done_callback(lambda _: self._opening.pop(tenant.id, None))
        # Shielded: one caller that gives up must not take the room from the others that wait for it.
        room = await asyncio.shield(opening)
        if room.retired:
            return self.held(entrance)
        room.leases += 1
        return TenantSession(entrance, room, self._clock, self._is_current)

    async def _open(self, tenant: Tenant) -> Room:
        breaker = self._breaker(tenant)
        if breaker is not None and not breaker.admit():
            raise StoreResting(retry_after_s=max(1, math.ceil(breaker.retry_after_s())))
        try:
            parts = await self._open_parts(tenant)
        except OUTAGES:
            self._failed(tenant, breaker)
            raise
        except BaseException:
            if breaker is not None:
                breaker.undecided()
            raise
        self._outages.pop(tenant.id, None)
        tails = self._tails.setdefault(tenant.id, Tails())
        room = Room(tenant, parts, self._clock, tails)
        before = self._rooms.pop(tenant.id, None)
        self._rooms[tenant.id] = room
        if before is not None:
            self._close(before.close_when_free())
        while len(self._rooms) > self._max_open:
            self._close(self._rooms.popitem(last=False)[1].close_when_free())
        while len(self._closing) > _CLOSING_MOST:
            # Opened faster than the others close, rooms would pile up.
            await asyncio.wait(self._closing, return_when=asyncio.FIRST_COMPLETED)
        return room

    def _breaker(self, tenant: Tenant) -> Breaker | None:
        """The breaker of a room that did not open lately; a tenant that was changed since is tried at once."""
        epoch, breaker = self._outages.get(tenant.id, (tenant.epoch, None))
        return breaker if epoch == tenant.epoch else None

    def _failed(self, tenant: Tenant, breaker: Breaker | None) -> None:
        if breaker is None:
            breaker = Breaker(self._clock, failures=3)
            self._outages[tenant.id] = tenant.epoch, breaker
            if len(self._outages) > _REMEMBERED_OUTAGES:
                self._outages.popitem(last=False)
        breaker.failed()

    def _close(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Close a room beside everything else: a tenant whose store hangs in closing is nobody else's business, nor
        are its errors."""
        task = asyncio.ensure_future(self._in_turn(work))
        self._closing.add(task)
        task.add_done_callback(self._closed)
        return task

    async def _in_turn(self, work: Coroutine[object, object, None]) -> None:
        # Some at a time: each writes its last counts to the registry, within a deadline.
        async with self._places:
            await work

    def _closed(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            _log.warning("a room did not close", action="room.close_failed", error=type(problem).__name__)

    def open_tenants(self) -> list[str]:
        """The tenants whose rooms are open now."""
        return list(self._rooms)

    def in_use(self) -> list[tuple[str, RoomParts]]:
        """The tenants in whose rooms somebody is at this moment, with the rooms' parts."""
        return [(tenant_id, room.parts) for tenant_id, room in self._rooms.items() if room.leases]

    def is_indexing(self, tenant_id: str) -> bool:
        """Whether documents of that tenant are being indexed in this process."""
        room = self._rooms.get(tenant_id)
        return room is not None and bool(room.indexing)

    def open_workspaces(self, tenant_id: str) -> list[str]:
        """The ids of a tenant's workspaces whose rooms are open now."""
        return [room_id for room_id, room in self._rooms.items() if room.tenant.parent == tenant_id]

    def parts(self, tenant_id: str) -> RoomParts | None:
        """An open room's parts; None where the room is not open."""
        room = self._rooms.get(tenant_id)
        return None if room is None else room.parts

    async def keep_up(self, work: Callable[[Tenant, RoomParts], Awaitable[None]]) -> None:
        """Do ``work`` on every open room, on some at a time; none closes meanwhile, and none waits for one that
        hangs. What ``work`` raises is logged."""
        places = asyncio.Semaphore(_AT_ONCE)
        await asyncio.gather(*(self._kept_up(room, work, places) for room in list(self._rooms.values())))

    async def _kept_up(
        self, room: Room, work: Callable[[Tenant, RoomParts], Awaitable[None]], places: asyncio.Semaphore
    ) -> None:
        room.leases += 1
        try:
            async with places:
                await work(room.tenant, room.parts)
        except Exception as problem:
            _log.error("upkeep failed", action="room.upkeep_failed", error=type(problem).__name__)
        finally:
            room.leases -= 1
            if room.retired and room.leases == 0:
                self._close(room.close_when_free())

    def drop_keys(self, tenant_id: str) -> None:
        """Forget a tenant's unwrapped keys at once, as after a change of its epoch."""
        room = self._rooms.get(tenant_id)
        if room is not None:
            room.parts.records.drop_keys()

    async def retire(self, tenant_id: str, *, epoch: int) -> None:
        """Close a tenant's room that was not opened at ``epoch``, as soon as its sessions end; the next entrance opens
        it anew, with what the tenant has now."""
        room = await self._taken(tenant_id, epoch)
        if room is not None:
            await self._close(room.close_when_free())

    async def shut(self, tenant_id: str, *, deadline_s: float = SHUT_S) -> None:
        """Close the room of a tenant that may no longer enter: everything that is open there is closed, at the latest
        ``deadline_s`` seconds (and those in which background work records how far it came) after its entrances ended.
        """
        room = await self._taken(tenant_id, None)
        if room is not None:
            await self._close(room.shut(deadline_s))

    async def _taken(self, tenant_id: str, epoch: int | None) -> Room | None:
        """The tenant's room, which is nobody's to find any more; one that is being opened is waited for."""
        opening = self._opening.get(tenant_id)
        if opening is not None:
            await asyncio.wait([opening])
        room = self._rooms.get(tenant_id)
        if room is None or room.tenant.epoch == epoch:
            return None
        del self._rooms[tenant_id]
        room.parts.records.drop_keys()
        return room

    async def close(self, *, deadline_s: float = 0.0) -> None:
        """Close every room; background work gets ``deadline_s`` seconds to end."""
        for opening in list(self._opening.values()):
            await asyncio.wait([opening])
        await asyncio.gather(*(room.settle(deadline_s) for room in self._rooms.values()))
        while self._rooms:
            self._close(self._rooms.popitem()[1].parts.close())
        while self._closing:
            await asyncio.wait(self._closing)
