"""Recorded responses: how one lies in the store, and what is read of it, deleted and cancelled afterwards.

Partition ``response/<id>`` holds the response (sort ``h``: the client's JSON, a line feed, what only Nagaya needs),
its own input items (sort ``i``, one JSON array), and who answers what it asked (sort ``p`` and the request's id, see
:mod:`nagaya.context.approvals`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.assembly import Recorded, recalled
from nagaya.context.conversations import Conversations, Order, check_limit
from nagaya.context.items import Item
from nagaya.context.lone_records import remove_all, remove_one
from nagaya.context.paging import behind
from nagaya.context.places import HEAD, is_there, partition_of, response_sort
from nagaya.context.recollection import MemoryRef, Recollection, recollected
from nagaya.context.response_shapes import Response, ResponseError, Telling
from nagaya.context.summaries import Numbered
from nagaya.context.summaries import shown as shown_summary
from nagaya.context.tool_items import McpApprovalRequest, McpCall
from nagaya.context.turns import FILE_SEARCH, mcp_name, turns_of
from nagaya.errors import ConditionFailed, Conflict, InvalidValue, NagayaError, NotFound
from nagaya.kernel.ids import is_id
from nagaya.models.driver import Turn
from nagaya.records.sealed_store import Delete, Partition, Record
from nagaya.tenancy.principal import Scope
from nagaya.usage.meter import Meter

RECORD: Final = b"h"
INPUT: Final = b"i"
MAX_CHAIN: Final = 1000
"""Responses followed back over ``previous_response_id``."""
BACKGROUND_LEASE_US: Final = 15 * 60 * 1_000_000
"""A background response whose record was not touched for this long was lost with its server and shows as failed."""

_ATTEMPTS: Final = 16
_AT_ONCE: Final = 90
_encoder = msgspec.json.Encoder()
response_decoder: Final = msgspec.json.Decoder(Response)
items_decoder: Final[msgspec.json.Decoder[list[Item]]] = msgspec.json.Decoder(list[Item])


class Meta(msgspec.Struct, omit_defaults=True):
    """What only Nagaya needs of a response."""

    owner: str
    previous: str | None = None
    touched_at_us: int = 0
    telling: Telling = msgspec.field(default_factory=Telling)
    results: dict[str, str] = {}
    """What the model was told of calls whose results no client is shown, by the ids of their items."""
    context: Recorded | None = None
    """What was sent of a conversation, where the response has one."""
    conversation: str | None = None
    memories: list[MemoryRef] = []
    """The memories that the model was sent."""
    ending: bool = False
    """Whether its items are being appended to its conversation: it is not cancelled any more."""


class Before(NamedTuple):
    """What comes before a request's own input."""

    items: Sequence[Item] = ()
    results: Mapping[str, str] = MappingProxyType({})
    summary: Numbered | None = None
    recorded: Recorded | None = None
    place: str | None = None
    """The conversation that it lies in: what is made of it is gone when that is."""
    memories: Recollection | None = None
    asked_in: Mapping[str, Partition] = MappingProxyType({})
    """Where each request for an approval lies that a chain of responses holds."""

    def turns(self, own: Sequence[Item], known: Container[str]) -> list[Turn]:
        """All of it as turns, the request's own input last."""
        turns = turns_of([*self.items, *own], self.results, known)
        if self.summary:
            turns.insert(0, self.summary.turn)
        if self.memories and self.memories.refs:
            turns.insert(0, self.memories.turn)
        return turns


class ResponseContext(msgspec.Struct, kw_only=True):
    """What a model was sent for a response: its turns in order, with the summary and the memories among them.
    ``missing``: how much of it was deleted since."""

    object: Literal["response.context"] = "response.context"
    response_id: str
    model: str
    turns: list[Turn]
    summary: dict[str, Any] | None = None
    memories: list[dict[str, Any]] = []
    missing: int = 0


class InputPage(NamedTuple):
    """A page of a response's input items."""

    data: list[Item]
    has_more: bool


def stored(response: Response, meta: Meta) -> bytes:
    """A response as it lies in its record."""
    return b"%b\n%b" % (_encoder.encode(response), _encoder.encode(meta))


def names_called(items: Sequence[Item]) -> frozenset[str]:
    """The functions of server's tools that were called in these items."""
    remote = {mcp_name(item.server_label, item.name) for item in items if isinstance(item, McpCall)}
    return frozenset({FILE_SEARCH, *remote})


def without_dropped(turns: list[Turn], dropped: int) -> list[Turn]:
    """The turns without the oldest that were left out because the model refused more."""
    kept = []
    for turn in turns:
        if dropped and turn.role not in ("system", "developer"):
            dropped -= 1
        else:
            kept.append(turn)
    return kept


def split(record: Record) -> tuple[bytes, Meta]:
    """The two parts of a record: the client's JSON, and the rest."""
    end = record.body.index(b"\n")
    return record.body[:end], msgspec.json.decode(record.body[end + 1 :], type=Meta)


def response_partition(response_id: str) -> Partition:
    """Where a response lies."""
    return Partition("response", response_id)


class RecordedResponses:
    """One caller's recorded responses. Somebody else's and one that does not exist answer alike: ``NotFound``."""

    __slots__ = ("_conversations", "_me", "_meter", "_session")

    def __init__(self, session: TenantSession, conversations: Conversations, meter: Meter) -> None:
        self._session = session
        self._conversations = conversations
        self._meter = meter
        self._me = session.entrance.principal.user_key

    async def _chain(self, response_id: str) -> Before:
        """The items of a response and all before it, oldest first, and the results of its calls."""
        found: list[list[Item]] = []
        results: dict[str, str] = {}
        asked_in: dict[str, Partition] = {}
        at: str | None = response_id
        while at is not None and len(found) < MAX_CHAIN:
            try:
                record = await self._head(at)
            except NotFound:
                if at == response_id:
                    raise NotFound("response", param="previous_response_id") from None
                break
            shown, meta = split(record)
            own = await self._session.records.get(response_partition(at), INPUT)
            items: list[Item] = [
                *(items_decoder.decode(own.body) if own else ()),
                *response_decoder.decode(shown).output,
            ]
            found.append(items)
            results |= meta.results
            # A request that is in a conversation too is answered there or here, not in both.
            place = response_partition(at) if meta.conversation is None else partition_of(meta.conversation)
            asked_in |= {item.id: place for item in items if isinstance(item, McpApprovalRequest)}
            at = meta.previous
        return Before([item for items in reversed(found) for item in items], results, asked_in=asked_in)

    async def _head(self, response_id: str) -> Record:
        self._session.entrance.require(Scope.READ)
        if not is_id("resp", response_id):
            raise NotFound("response")
        record = await self._session.records.get(response_partition(response_id), RECORD)
        if record is None:
            raise NotFound("response")
        meta = split(record)[1]
        if not self._session.entrance.may_see(meta.owner, shared=False, writing=False):
            raise NotFound("response")
        if meta.conversation is not None:
            there = await self._session.records.get(partition_of(meta.conversation), HEAD)
            if there is None or not is_there(there, self._session.clock.now_us()):
                # It went with its conversation.
                raise NotFound("response")
        return record

    async def retrieve_wire(self, response_id: str, *, language: str = "en") -> bytes:
        """A recorded response as the JSON a client sees. ``language`` (``en`` or ``ja``): in which it is said that
        whoever made it is gone; why it failed otherwise is said in that of the request that it answers."""
        shown, meta = split(await self._head(response_id))
        if self._may_be_lost(meta):
            return _encoder.encode(self._unless_lost(response_decoder.decode(shown), meta, language))
        return shown

    def _may_be_lost(self, meta: Meta) -> bool:
        return bool(meta.touched_at_us) and self._session.clock.now_us() - meta.touched_at_us > BACKGROUND_LEASE_US

    def _unless_lost(self, response: Response, meta: Meta, language: str) -> Response:
        """The response; as failed where the server that made it in the background must have gone."""
        if response.status in ("queued", "in_progress") and self._may_be_lost(meta):
            response.status, response.error = "failed", ResponseError.of(NagayaError(), language)
        return response

    async def _read(self, response_id: str, language: str = "en") -> tuple[Response, Meta]:
        shown, meta = split(await self._head(response_id))
        return self._unless_lost(response_decoder.decode(shown), meta, language), meta

    async def retrieve(self, response_id: str) -> Response:
        """A recorded response, or ``NotFound``."""
        return (await self._read(response_id))[0]

    async def find(self, response_id: str) -> Response | None:
        """A recorded response, or None; None also for a caller that may not read any."""
        if Scope.READ not in self._session.entrance.principal.scopes:
            return None
        try:
            return await self.retrieve(response_id)
        except NotFound:
            return None

    async def telling(self, response_id: str) -> Telling:
        """How a recorded response was told, or ``NotFound``."""
        return (await self._read(response_id))[1].telling

    async def delete(self, response_id: str) -> None:
        """Delete a response, its input, and who answers what it asked. Its items in a conversation stay."""
        self._session.may_write()
        partition = response_partition(response_id)
        record = await self._head(response_id)
        for _ in range(_ATTEMPTS):
            rows = await self._session.records.query(partition, limit=_AT_ONCE)
            if all(row.sort != RECORD for row in rows):
                raise NotFound("response")
            with contextlib.suppress(ConditionFailed):
                await self._session.records.write(partition, [Delete(row.sort, row.revision) for row in rows])
                break
        else:
            raise Conflict
        # What was noted meanwhile of an answer to what it asked, or did not go into one batch.
        await remove_all(self._session, partition)
        place = split(record)[1].conversation
        if place is not None:
            await remove_one(self._session, partition_of(place), response_sort(response_id))
        self._stop(response_id)

    def _stop(self, response_id: str) -> None:
        """Let a background response that is being made here stop at its next step."""
        run = self._session.room.runs.get(response_id)
        if run is not None:
            run.cancelled = True

    async def context(self, response_id: str) -> ResponseContext:
        """What the model was sent first of all for a response. Raises ``NotFound``.

        It is kept by reference, so what was deleted since is missing here too, and ``missing`` says how much.
        """
        response, meta = await self._read(response_id)
        before, missing = await self._before(response, meta)
        own = await self._input_of(response_id)
        turns = before.turns(own, names_called(before.items))
        if response.instructions:
            turns.insert(0, Turn(role="developer", text=response.instructions))
        turns = without_dropped(turns, meta.context.dropped if meta.context else 0)
        return ResponseContext(
            response_id=response.id,
            model=meta.telling.model or response.model,
            turns=turns,
            summary=shown_summary(before.summary) if before.summary else None,
            memories=before.memories.shown() if before.memories else [],
            missing=missing,
        )

    async def _before(self, response: Response, meta: Meta) -> tuple[Before, int]:
        """What came before a recorded response's own input, read again, and how much of it is missing."""
        before, missing = await self._history(response, meta)
        if not meta.memories:
            return before, missing
        memories, forgotten = await recollected(self._session, self._meter, meta.memories)
        return before._replace(memories=memories), missing + forgotten

    async def _history(self, response: Response, meta: Meta) -> tuple[Before, int]:
        if meta.context is not None and meta.conversation is not None:
            try:
                await self._conversations.head(meta.conversation, writing=False)
            except NotFound:
                return Before(recorded=meta.context, place=meta.conversation), meta.context.count
            found, missing = await recalled(self._session, self._meter, meta.conversation, meta.context)
            return Before(found.items, found.results, found.summary, meta.context, meta.conversation), missing
        if response.previous_response_id is not None:
            try:
                return await self._chain(response.previous_response_id), 0
            except NotFound:
                return Before(), 1
        return Before(), 0

    async def _input_of(self, response_id: str) -> list[Item]:
        record = await self._session.records.get(response_partition(response_id), INPUT)
        return items_decoder.decode(record.body) if record is not None else []

    async def input_items(
        self, response_id: str, *, after: str | None = None, limit: int = 20, order: Order = "desc"
    ) -> InputPage:
        """A page of the items the response was given, newest first unless ``order`` is ``asc``."""
        check_limit(limit)
        await self._head(response_id)
        record = await self._session.records.get(response_partition(response_id), INPUT)
        items = items_decoder.decode(record.body) if record is not None else []
        if order == "desc":
            items.reverse()
        left = behind(items, after, "item")
        return InputPage([*left[:limit]], len(left) > limit)

    async def cancel(self, response_id: str, *, language: str = "en") -> Response:
        """Cancel a background response that is still in progress, whichever server is making it.

        The record says so at once; the server that makes it stops at its next step where it is this one, and throws
        its answer away where it is another. One whose items are coming into its conversation already is given as it is.
        ``language`` as for :meth:`retrieve_wire`.
        """
        self._session.may_write()
        for _ in range(_ATTEMPTS):
            record = await self._head(response_id)
            shown, meta = split(record)
            response = response_decoder.decode(shown)
            if not response.background:
                raise InvalidValue(
                    param="response_id",
                    at="response_id",
                    detail="only a response made with background=true is cancelled",
                )
            if response.status not in ("queued", "in_progress") or meta.ending:
                return self._unless_lost(response, meta, language)
            response.status = "cancelled"
            try:
                await self._session.records.put(
                    response_partition(response_id), RECORD, stored(response, meta), expect=record.revision
                )
            except ConditionFailed:
                continue  # it ended just now, or has come further
            self._stop(response_id)
            return response
        raise Conflict
