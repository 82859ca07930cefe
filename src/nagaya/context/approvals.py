"""The client's word on calls that waited for it: what it approved is called once, and only what was really asked.

Each request is answered by one run. The run notes beside the request that it is the one, before it does anything;
right before it calls what was approved it notes that for good. So no call is made twice, also where the process ends
in between: such a call was made once, or not at all, and its request is not answered again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.items import Item
from nagaya.context.mcp_tools import McpTools
from nagaya.context.places import HEAD, approval_sort
from nagaya.context.server_tools import RUN_S, Toolbox
from nagaya.context.tool_items import McpApprovalRequest, McpApprovalResponse, McpCall
from nagaya.context.turns import mcp_name
from nagaya.errors import ConditionFailed, InvalidValue, NagayaError, NotFound
from nagaya.kernel.ids import new_id
from nagaya.models.driver import ToolCall
from nagaya.records.sealed_store import ABSENT, Delete, Partition, Put

_TAKEN_US: Final = 2 * int(RUN_S) * 1_000_000
"""How long nobody else answers a request, where the run that was to do it says nothing more: longer than any takes."""
_FOR_GOOD: Final = 2**63 - 1
_ATTEMPTS: Final = 16
_AT_ONCE: Final = 90
_PLACE: Final = "input.approval_request_id"
_ANSWERED: Final = "this request was answered before"
_UNKNOWN: Final = "The call was begun; what came of it is not known."
_COPIED: Final = "this request was asked, and is answered, in the conversation that this one was forked from"


class _Taken(msgspec.Struct, omit_defaults=True):
    """Which response answers a request, and until when no other may. ``take`` tells its attempts apart; ``calls`` says
    that what was asked for may have been called by now."""

    by: str
    until_us: int
    take: str = ""
    calls: bool = False


_taken_decoder: Final = msgspec.json.Decoder(_Taken)


class Answers(NamedTuple):
    """What a request's own input answers: the ids of the requests, and the calls that it approves."""

    request_ids: Sequence[str] = ()
    calls: Sequence[ToolCall] = ()


def answers_in(toolbox: Toolbox, before: Sequence[Item], own: Sequence[Item]) -> Answers:
    """What the request's own input answers of what the history before it asked.

    Raises ``NotFound`` for an answer to what that history does not hold, ``InvalidValue`` for a second answer and for
    a server that the request does not name.
    """
    servers = {tool.label: tool for tool in toolbox.tools if isinstance(tool, McpTools)}
    asked = {item.id: item for item in before if isinstance(item, McpApprovalRequest)}
    answered = {item.approval_request_id for item in before if isinstance(item, McpApprovalResponse)}
    request_ids, calls = [], []
    for number, item in enumerate(own):
        if not isinstance(item, McpApprovalResponse):
            continue
        place = f"input[{number}].approval_request_id"
        request = asked.get(item.approval_request_id)
        if request is None:
            raise NotFound("item", param=place)
        if request.id in answered:
            raise InvalidValue(param=place, at=place, detail=_ANSWERED)
        answered.add(request.id)
        request_ids.append(request.id)
        if not item.approve:
            continue
        server = servers.get(request.server_label)
        if server is None:
            raise InvalidValue(param="tools", at="tools", detail=f"no tool with server_label '{request.server_label}'")
        server.approve([request])
        calls.append(ToolCall(request.id, mcp_name(request.server_label, request.name), request.arguments))
    return Answers(request_ids, calls)


class TakenRequests:
    """The requests that one run answers, and nobody else while it holds them."""

    __slots__ = ("_begun", "_by", "_held", "_session", "_take", "calls")

    def __init__(
        self, session: TenantSession, held: Mapping[Partition, Sequence[str]], calls: Sequence[ToolCall], by: str
    ) -> None:
        self.calls = calls
        self._session = session
        self._held = held
        self._by = by
        self._take = new_id("take")
        self._begun: set[str] = set()

    def work_in(self, session: TenantSession) -> None:
        """From now on work in this session, which is the same caller's."""
        self._session = session

    async def take(self) -> None:
        """Note that this run answers them. Raises ``InvalidValue`` where another one does, or has done, and
        ``NotFound`` where what holds the request is being removed."""
        mark = _Taken(self._by, self._session.clock.now_us() + _TAKEN_US, self._take)
        try:
            await self._note(lambda _, taken: mark if self._may_take(taken) else None)
            for partition in self._held:
                if await self._session.records.get(partition, HEAD) is None:
                    # Removed for good while this was being written.
                    raise NotFound("item", param=_PLACE)
        except BaseException:
            with contextlib.suppress(NagayaError):  # then it is given back by its term
                await self.give_back()
            raise

    async def settle(self) -> None:
        """Note for good that they are answered; to be awaited right before the first call. Raises ``InvalidValue``
        where this run does not hold them any more: it makes none of the calls then."""
        called = {call.call_id for call in self.calls}
        await self._note(
            lambda request_id, taken: (
                _Taken(self._by, _FOR_GOOD, self._take, request_id in called) if self._is_mine(taken) else None
            )
        )

    def begins(self, call: ToolCall) -> None:
        """This call is about to be made."""
        self._begun.add(call.call_id)

    def begun_in(self, own: Sequence[Item], output: Sequence[Item]) -> tuple[list[Item], list[Item]]:
        """What remains of a run that failed: the approvals whose calls were begun, and how far those calls came."""
        approvals = [
            item for item in own if isinstance(item, McpApprovalResponse) and item.approval_request_id in self._begun
        ]
        calls = [item for item in output if isinstance(item, McpCall) and item.approval_request_id in self._begun]
        return [*approvals], [_as_ended(call) for call in calls]

    async def give_back(self) -> None:
        """Let those be answered again whose calls were not begun: the run failed, so that nothing of it remains. May
        be repeated."""
        records = self._session.records
        for partition, request_ids in self._held.items():
            for ids in _portions([each for each in request_ids if each not in self._begun]):
                for _ in range(_ATTEMPTS):
                    there = await records.get_many(partition, [approval_sort(each) for each in ids])
                    mine = [row for row in there if row is not None and self._is_mine(_taken_decoder.decode(row.body))]
                    if not mine:
                        break
                    with contextlib.suppress(ConditionFailed):
                        await records.write(partition, [Delete(row.sort, row.revision) for row in mine])

    async def _note(self, noted: Callable[[str, _Taken | None], _Taken | None]) -> None:
        """Write what ``noted`` makes of each request and of the note that is there; ``InvalidValue`` where it gives
        None for one."""
        records = self._session.records
        for partition, request_ids in self._held.items():
            for ids in _portions(request_ids):
                sorts = [approval_sort(each) for each in ids]
                for _ in range(_ATTEMPTS):
                    changes: list[Put | Delete] = []
                    for request_id, sort, row in zip(ids, sorts, await records.get_many(partition, sorts), strict=True):
                        taken = None if row is None else _taken_decoder.decode(row.body)
                        mark = noted(request_id, taken)
                        if mark is None:
                            raise _refusal(taken)
                        changes.append(Put(sort, msgspec.json.encode(mark), ABSENT if row is None else row.revision))
                    try:
                        await records.write(partition, changes)
                    except ConditionFailed:
                        continue
                    break
                else:
                    raise _refusal(None)

    def _may_take(self, taken: _Taken | None) -> bool:
        if taken is None or taken.until_us <= self._session.clock.now_us():
            return True
        # An idempotent request that is repeated after a crash; what may have been called is not called again.
        return taken.by == self._by and not taken.calls

    def _is_mine(self, taken: _Taken | None) -> bool:
        return taken is not None and (taken.by, taken.take) == (self._by, self._take)


async def take(
    session: TenantSession, places: Mapping[str, Partition], answers: Answers, response_id: str
) -> TakenRequests | None:
    """Take what the answers answer for this response, so that no other answers it; None where they answer nothing.
    ``places``: where each request lies.

    Raises ``InvalidValue`` for a request that another one answers, or has answered. May be repeated for the same
    response, until its calls are about to be made.
    """
    if not answers.request_ids:
        return None
    held: dict[Partition, list[str]] = {}
    for request_id in answers.request_ids:
        held.setdefault(places[request_id], []).append(request_id)
    taken = TakenRequests(session, held, answers.calls, response_id)
    await taken.take()
    return taken


def answered_elsewhere(request_id: str) -> Put:
    """What is noted beside a copy of a request, so that only the request itself is answered."""
    return Put(approval_sort(request_id), msgspec.json.encode(_Taken("", _FOR_GOOD, calls=True)))


def _as_ended(call: McpCall) -> McpCall:
    if call.output is None and call.error is None:
        return msgspec.structs.replace(call, status="incomplete", error=_UNKNOWN)
    return call


def _refusal(taken: _Taken | None) -> InvalidValue:
    is_copy = taken is not None and not taken.by
    return InvalidValue(param=_PLACE, at=_PLACE, detail=_COPIED if is_copy else _ANSWERED)


def _portions(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _AT_ONCE):
        yield ids[start : start + _AT_ONCE]
