"""Memories of mem0 as memories of the tenant's users: the JSON that its ``get_all`` gives, of the platform's client and
of the open-source library alike, and with it, where there is one, the library's history database.

Nothing of mem0 is imported: these are the forms that its version 2.2 writes.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from nagaya.context.memory_import import BroughtMemories, BroughtMemory, Happened, Labels, bring_memories
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import InvalidValue, MalformedJson

PROGRAM: Final = "mem0"
_TAKEN: Final = frozenset(
    {
        "id", "memory", "user_id", "agent_id", "run_id", "app_id", "metadata", "categories", "created_at", "updated_at",
        "expiration_date",
    }
)  # fmt: skip
_MADE_ANEW: Final = frozenset({"hash", "score", "score_breakdown", "text_lemmatized"})
"""What follows from a memory's text, or from a search."""
_BESIDE: Final = ("actor_id", "role", "attributed_to")
"""Who said it: kept in the metadata, where mem0's own clients ask for it."""


class _Memory(msgspec.Struct):
    id: str
    memory: str
    user_id: str | None = None
    agent_id: str | None = None
    run_id: str | None = None
    app_id: str | None = None
    metadata: dict[str, Any] | None = None
    categories: list[str] | None = None
    created_at: str | None = None
    updated_at: str | None = None
    expiration_date: str | None = None


class _Read(NamedTuple):
    memory: _Memory
    rest: dict[str, Any]


async def import_mem0(
    tenant: TenantContext, content: bytes, *, user: str | None = None, history: Path | None = None
) -> BroughtMemories:
    """Bring the memories in, each as its ``user_id``'s (``user``'s where it has none), with its metadata, categories,
    labels and times; from ``history`` its former texts too. Each is read back and compared. For an administrator.

    May be repeated. Before anything is written it raises ``MalformedJson`` for another form, and ``InvalidValue`` for
    an export that says it has more pages, for a memory that is nobody's where ``user`` is not given, and for a
    ``history`` that is no history of mem0's. What did not come in is counted by its kind.
    """
    found = _memories(content)
    events = {} if history is None else _history(history)
    done = BroughtMemories()
    brought = [_brought(one, user, events.pop(one.memory.id, []), done) for one in found]
    for left in events.values():
        # Their memories are not in the export: of most it is because they were deleted.
        done.skip("history_of_deleted" if left[-1].event == "DELETE" else "history_without_memory", len(left))
    await bring_memories(tenant, PROGRAM, brought, done)
    return done


def _memories(content: bytes) -> Sequence[_Read]:
    try:
        whole = msgspec.json.decode(content)
        pages = whole if isinstance(whole, list) else [whole]
        if pages and all(isinstance(page, dict) and "results" in page for page in pages):
            rows = [row for page in pages for row in page["results"]]
            said = max((page.get("count") or 0 for page in pages), default=0)
            if said > len(rows) or (len(pages) == 1 and pages[0].get("next")):
                detail = f"it holds {len(rows)} of {said} memories: put every page of the export into one list"
                raise InvalidValue(param="file", at="file", detail=detail)
        else:
            rows = pages
        found = [_Read(msgspec.convert(row, _Memory), row) for row in rows]
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, TypeError) as other:
        raise MalformedJson(detail=str(other)) from None
    seen: set[str] = set()
    for each in found:
        if each.memory.id in seen:
            raise MalformedJson(detail=f"the memory {each.memory.id} is there twice")
        seen.add(each.memory.id)
    return found


def _brought(one: _Read, user: str | None, events: list[Happened], done: BroughtMemories) -> BroughtMemory:
    memory, rest = one
    owner = memory.user_id or user
    if not owner:
        detail = f"the memory {memory.id} has no user_id; say with --user whose those become"
        raise InvalidValue(param="user", at="user", detail=detail)
    metadata = dict(memory.metadata or {})
    for name in _BESIDE:
        if rest.get(name) is not None:
            metadata.setdefault(name, rest[name])
    for name in sorted(rest.keys() - _TAKEN - _MADE_ANEW - set(_BESIDE)):
        if rest[name] not in (None, [], {}, ""):
            done.skip(f"field_{name}")
    created_at_us = _moment(memory.created_at)
    if events and events[-1].after != memory.memory:
        done.skip("history_of_another_text", len(events))
        events = []
    return BroughtMemory(
        name=memory.id,
        user=owner,
        text=memory.memory,
        created_at_us=created_at_us,
        updated_at_us=max(created_at_us, _moment(memory.updated_at)),
        labels=Labels(memory.agent_id or None, memory.run_id or None, memory.app_id or None),
        metadata=metadata,
        categories=memory.categories or (),
        expires_at_us=_term(memory.expiration_date),
        history=events,
    )


def _moment(text: str | None) -> int:
    """A time in ISO 8601 in microseconds; one without a zone is UTC, and none at all the beginning of time."""
    if not text:
        return 0
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise MalformedJson(detail=f"{text[:40]!r} is no time") from None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0, (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1))


def _term(text: str | None) -> int:
    """When a memory ends that is there to the end of a day, UTC."""
    if not text:
        return 0
    with contextlib.suppress(ValueError):
        return _moment((date.fromisoformat(text) + timedelta(days=1)).isoformat())
    return _moment(text)


def _history(file: Path) -> dict[str, list[Happened]]:
    """The events of every memory in mem0's history database, oldest first. Opens it read-only."""
    select = (
        "SELECT memory_id, event, old_memory, new_memory, created_at, updated_at FROM history "
        "ORDER BY memory_id, created_at, DATETIME(updated_at), rowid"
    )
    found: dict[str, list[Happened]] = {}
    try:
        with contextlib.closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
            for name, event, before, after, created_at, updated_at in database.execute(select):
                if event not in ("ADD", "UPDATE", "DELETE"):
                    continue
                events = found.setdefault(name, [])
                at_us = _moment(created_at if event == "ADD" else updated_at or created_at)
                events.append(Happened(event, at_us, before, after, len(events) + 1))
    except sqlite3.Error as other:
        raise InvalidValue(param="history", at="history", detail=f"no history of mem0: {other}") from None
    return found
