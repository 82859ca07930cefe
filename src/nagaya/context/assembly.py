"""What of a conversation a model is sent: everything where that fits its window, else a summary and the newest items.

Items are read from the newest backwards, and no further than the window or the summary reaches, so a conversation of
a thousand turns costs what its last ones cost.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from nagaya.connections.room import TenantSession
from nagaya.context.items import FunctionCallOutput, Item, load_item, load_items, load_results
from nagaya.context.places import HEAD, item_places, partition_of
from nagaya.context.summaries import SUMMARY_TOKENS, Numbered, Summaries
from nagaya.errors import Conflict, NotFound
from nagaya.models.line import ModelLine
from nagaya.usage.meter import Meter

_PAGE: Final = 250
_ATTEMPTS: Final = 16
_BYTES_A_TOKEN: Final = 3
"""A stored item's bytes for a token, taken low: English has four to five, Japanese about four."""
_USED: Final = 0.9
"""The share of the window that is counted on, since tokens are estimated."""
_FEWEST_TOKENS: Final = 256
_ANSWER_SHARE: Final = 4
"""Of a window whose request says nothing of the answer's length, this part (a quarter) is left for the answer."""
_KEPT_SHARE: Final = 2
"""After a summary the newest items fill this part (half) of the window, so that the next one is not due at once."""


class Recorded(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a response was sent of a conversation, by reference: the number of the summary (0: none), the places
    ``first <= n < upto``, and how many items lay there. ``dropped``: turns left out because the model refused more."""

    upto: int = 0
    first: int = 0
    count: int = 0
    summary: int = 0
    dropped: int = 0


class Assembled(NamedTuple):
    """The items a model is sent, the results of the calls among them, the summary before them, and the same by
    reference."""

    summary: Numbered | None
    items: list[Item]
    results: dict[str, str]
    recorded: Recorded


def window_for_history(context_tokens: int | None, answer_tokens: int | None, other_tokens: int) -> int | None:
    """How many tokens of a window are left for a conversation's history; None: the window is not known, so all."""
    if context_tokens is None:
        return None
    answer = answer_tokens if answer_tokens is not None else context_tokens // _ANSWER_SHARE
    return max(_FEWEST_TOKENS, int(context_tokens * _USED) - answer - other_tokens)


async def assemble(
    session: TenantSession, meter: Meter, conversation_id: str, model: ModelLine, window: int | None
) -> Assembled:
    """A conversation's history for a model that has ``window`` tokens for it. Who asks has checked that it may be
    read. Where the newest items alone do not fit, the older ones are summed up, by rule at once."""
    for _ in range(_ATTEMPTS):
        found = await _assemble(session, Summaries(session, meter), conversation_id, model, window)
        if found is not None:
            return found
    raise Conflict


async def _assemble(
    session: TenantSession, summaries: Summaries, conversation_id: str, model: ModelLine, window: int | None
) -> Assembled | None:
    """None where somebody else changed the conversation while it was being summed up."""
    # Read before what is summed up: whoever deletes some of that writes the head.
    head = None if window is None else await session.records.get(partition_of(conversation_id), HEAD)
    before = None if window is None else await summaries.newest(conversation_id)
    covered = before.summary.upto if before else 0
    room = None if window is None else window - (_cost_of(before) if before else 0)
    places, bodies, whole = await _newest(session, conversation_id, covered, room)
    if whole:
        return _assembled(before, places, bodies, covered)
    assert window is not None
    if head is None:
        raise NotFound("conversation")
    limit = min(SUMMARY_TOKENS, max(_FEWEST_TOKENS // 2, window // 4))
    kept = max(1, _fitting(bodies, max(_FEWEST_TOKENS // 2, window // _KEPT_SHARE)))
    places, bodies = places[-kept:], bodies[-kept:]
    while len(bodies) > 1 and isinstance(load_item(bodies[0]), FunctionCallOutput):
        # A tool's answer without its question confuses every vendor.
        places, bodies = places[1:], bodies[1:]
    older, _ = await _between(session, conversation_id, covered, places[0])
    made = await summaries.by_rule(conversation_id, head, before, older, places[0], limit_tokens=limit)
    if made is None:
        return None
    summaries.improve(conversation_id, made, before, older, model)
    return _assembled(made, places, bodies, places[0])


def _assembled(summary: Numbered | None, places: list[int], bodies: list[bytes], first: int) -> Assembled:
    upto = places[-1] + 1 if places else first
    recorded = Recorded(upto, first, len(bodies), summary.number if summary else 0)
    return Assembled(summary, load_items(bodies), load_results(bodies), recorded)


async def _newest(
    session: TenantSession, conversation_id: str, covered: int, room: int | None
) -> tuple[list[int], list[bytes], bool]:
    """Places and bodies from ``covered`` on, oldest first; of more than fits the room, the newest part and False."""
    places: list[int] = []
    bodies: list[bytes] = []
    left = room
    upto: int | None = None
    while True:
        page = await item_places(session, conversation_id, covered, upto, limit=_PAGE, descending=True)
        for place, body in page:
            if not body:
                continue
            if left is not None:
                left -= _cost(body)
                if left < 0 and bodies:
                    return places[::-1], bodies[::-1], False
            places.append(place)
            bodies.append(body)
        if len(page) < _PAGE:
            return places[::-1], bodies[::-1], True
        upto = page[-1][0]


async def _between(
    session: TenantSession, conversation_id: str, first: int, upto: int
) -> tuple[list[Item], dict[str, str]]:
    bodies: list[bytes] = []
    while first < upto:
        page = await item_places(session, conversation_id, first, upto, limit=_PAGE)
        bodies += [body for _, body in page if body]
        if len(page) < _PAGE:
            break
        first = page[-1][0] + 1
    return load_items(bodies), load_results(bodies)


async def recalled(
    session: TenantSession, meter: Meter, conversation_id: str, recorded: Recorded
) -> tuple[Assembled, int]:
    """What a response was sent, read again, and how many of its items (and summaries) were deleted since."""
    summary = None
    if recorded.summary:
        summary = await Summaries(session, meter).numbered(conversation_id, recorded.summary)
    items, results = await _between(session, conversation_id, recorded.first, recorded.upto)
    missing = recorded.count - len(items) + (1 if recorded.summary and summary is None else 0)
    return Assembled(summary, items, results, recorded), missing


def _fitting(bodies: list[bytes], tokens: int) -> int:
    """How many of the newest bodies fit."""
    for count, body in enumerate(reversed(bodies)):
        tokens -= _cost(body)
        if tokens < 0:
            return count
    return len(bodies)


def _cost(body: bytes) -> int:
    return body.index(b"\n") // _BYTES_A_TOKEN


def _cost_of(summary: Numbered) -> int:
    return len(summary.summary.text.encode()) // _BYTES_A_TOKEN + 16
