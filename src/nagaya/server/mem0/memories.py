"""mem0's calls on memories: add, list, search, change, delete, history, batches."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from nagaya.context.memory_extraction import UserSaid, remember
from nagaya.context.memory_records import StoredMemory
from nagaya.context.memory_shapes import Filter, Labels
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import InvalidValue, MissingParameter, UnsupportedParameter
from nagaya.server.calls import Call, Reply, encode, flag_of, number_of
from nagaya.server.mem0.dates import end_of, span_of
from nagaya.server.mem0.filters import LABELS, Where, parse_filters
from nagaya.server.mem0.shapes import (
    Mem0Added,
    Mem0AddIn,
    Mem0AddOut,
    Mem0BatchIn,
    Mem0ChangeIn,
    Mem0Done,
    Mem0Found,
    Mem0ListIn,
    Mem0Memory,
    Mem0Page,
    Mem0Pong,
    Mem0SearchIn,
    shown,
    shown_events,
)
from nagaya.tenancy.principal import Scope

ENTITIES: Final = ("user_id", *LABELS)
MAX_USERS: Final = 1_000
"""Users whose memories one call looks at."""
MAX_BATCH: Final = 1_000
PAGE_SIZE: Final = 100
_LITERAL_CHARACTERS: Final = 8_192


async def ping(call: Call) -> Reply:
    """Say that the key is good, and whose it is."""
    async with await call.admit_anybody() as context:
        tenant = context.tenant
        return Reply(encode(Mem0Pong(tenant.parent or tenant.id, tenant.workspace or tenant.id)))


async def add(call: Call) -> Reply:
    """Keep messages, or what they tell about their user, as memories."""
    async with await call.admit() as context:
        given = await call.json(Mem0AddIn)
        _refuse(given, "custom_categories", "custom_instructions", "agent_custom_instructions")
        _refuse(given, "structured_data_schema")
        named = _entities(given)
        marks: dict[str, Any] = {
            "user": named["user_id"], "labels": Labels(named["agent_id"], named["run_id"], named["app_id"]),
            "metadata": given.metadata, "created_at": given.timestamp,
        }  # fmt: skip
        if given.expiration_date is not None:
            marks["expires_at"] = end_of(given.expiration_date, context.session.clock.now_us())
        if given.infer is False:
            texts = [one.text for one in given.messages if one.role != "system"]
            made, pending = await context.memories.add(texts, **marks), False
        else:
            model = await context.session.model(None)
            said = [UserSaid(one.text) for one in given.messages if one.role == "user"]
            made, pending = await remember(context.session, context.meter, said, model, **marks)
        results = [Mem0Added(one.id, one.text) for one in made]
        return Reply(encode(Mem0AddOut(results, "PENDING" if pending else "SUCCEEDED")))


async def listing(call: Call) -> Reply:
    """Memories, the newest first, page by page."""
    async with await call.admit(Scope.READ) as context:
        given = await call.json(Mem0ListIn)
        _refuse_true(given, "show_expired")
        query = call.query({"page": "1", "page_size": str(PAGE_SIZE)})
        page = number_of(query["page"], "page", lowest=1, highest=1_000_000)
        size = number_of(query["page_size"], "page_size", lowest=1, highest=200)
        where = parse_filters(given.filters or {})
        tests = [where.fits, _in_categories(given.categories), _between(given.start_date, given.end_date)]
        found = await context.memories.every(
            users=await users_of(context, where), where=lambda memory: all(test(memory) for test in tests)
        )
        first = (page - 1) * size
        return Reply(
            encode(
                Mem0Page(
                    len(found),
                    _place(page + 1, size) if first + size < len(found) else None,
                    _place(page - 1, size) if page > 1 else None,
                    [shown(one) for one in found[first : first + size]],
                )
            )
        )


async def search(call: Call) -> Reply:
    """The memories that fit a question, best first."""
    async with await call.admit(Scope.READ) as context:
        given = await call.json(Mem0SearchIn)
        _refuse_true(given, "show_expired", "rerank")
        _refuse(given, "metadata", "reference_date")
        if given.keyword_search is False:
            raise UnsupportedParameter(param="keyword_search", at="keyword_search")
        top_k = 10 if given.top_k is None else given.top_k
        threshold = 0.0 if given.threshold is None else given.threshold
        if not 1 <= top_k <= 1_000:
            raise InvalidValue(param="top_k", at="top_k", detail="expected a whole number from 1 to 1000")
        if not 0 <= threshold <= 1:
            raise InvalidValue(param="threshold", at="threshold", detail="expected 0 to 1")
        fields = _fields(given.fields)
        where = parse_filters(given.filters or {})
        tests = [where.fits, _in_categories(given.categories)]
        found = await context.memories.search(
            given.query,
            users=await users_of(context, where),
            where=lambda memory: all(test(memory) for test in tests),
            limit=top_k,
            threshold=threshold,
        )
        results = [shown(one) for one in found.data]
        if fields is None:
            return Reply(encode(Mem0Found(results)))
        return Reply(encode({"results": [{name: getattr(one, name) for name in fields} for one in results]}))


async def retrieve(call: Call) -> Reply:
    """One memory, as mem0's clients know it."""
    async with await call.admit() as context:
        return Reply(encode(shown(await context.memories.retrieve(call.params[0]))))


async def update(call: Call) -> Reply:
    """Change a memory; its former text stays in its history."""
    async with await call.admit() as context:
        given = await call.json(Mem0ChangeIn)
        _refuse(given, "timestamp")
        changes: dict[str, Any] = {}
        if given.expiration_date is not msgspec.UNSET:
            date = given.expiration_date
            changes["expires_at"] = None if date is None else end_of(date, context.session.clock.now_us())
        if given.text is None and given.metadata is None and not changes:
            raise MissingParameter(param="text", at="text, metadata or expiration_date")
        changed = await context.memories.update(call.params[0], text=given.text, metadata=given.metadata, **changes)
        return Reply(encode(shown(changed)))


async def delete(call: Call) -> Reply:
    """Delete a memory with every text it ever had."""
    async with await call.admit() as context:
        # No memory supersedes another here: with or without what it is linked to, it is one.
        flag_of(call.query({"delete_linked": ""})["delete_linked"].lower(), "delete_linked")
        await context.memories.delete(call.params[0])
        return Reply(encode(Mem0Done("Memory deleted successfully!")))


async def history(call: Call) -> Reply:
    """What became of a memory, oldest first: every text it had, until it is deleted."""
    async with await call.admit() as context:
        memory_id = call.params[0]
        return Reply(encode(shown_events(memory_id, await context.memories.history(memory_id))))


async def delete_all(call: Call) -> Reply:
    """Delete the memories of a user, an agent, an app or a run: all that fit everything that is named."""
    async with await call.admit() as context:
        query = call.query({**dict.fromkeys(ENTITIES, ""), "filters": ""})
        named: dict[str, Any] = {name: query[name] for name in ENTITIES if query[name]}
        chosen = _literal(query["filters"]) if query["filters"] else {}
        if not named and not chosen:
            # Of a request that names nothing it is not clear that everything is meant.
            raise MissingParameter(param="filters", at=" or ".join((*ENTITIES, "filters")))
        where = parse_filters({"AND": [one for one in (named, chosen) if one]})
        for user in await users_of(context, where):
            await context.memories.delete_all(user=user, where=where.fits)
        return Reply(encode(Mem0Done("Memories deleted successfully!")))


async def update_batch(call: Call) -> Reply:
    """Change several memories: none where one of them is not there."""
    async with await call.admit() as context:
        given = await _batch(call, context)
        for number, one in enumerate(given):
            if one.text is None and one.metadata is None:
                raise MissingParameter(param=f"memories[{number}].text", at=f"memories[{number}].text or .metadata")
        for one in given:
            await context.memories.update(one.memory_id, text=one.text, metadata=one.metadata)
        return Reply(encode(Mem0Done(f"Successfully updated {len(given)} memories")))


async def delete_batch(call: Call) -> Reply:
    """Delete several memories: none where one of them is not there."""
    async with await call.admit() as context:
        given = await _batch(call, context)
        for memory_id in dict.fromkeys(one.memory_id for one in given):
            await context.memories.delete(memory_id)
        return Reply(encode(Mem0Done(f"Successfully deleted {len(given)} memories")))


async def _batch(call: Call, context: TenantContext) -> list[Any]:
    given = (await call.json(Mem0BatchIn)).memories
    if not 1 <= len(given) <= MAX_BATCH:
        raise InvalidValue(param="memories", at="memories", detail=f"1 to {MAX_BATCH} memories")
    for one in given:
        await context.memories.retrieve(one.memory_id)
    return given


# --- whose, and which ---


async def users_of(context: TenantContext, where: Where) -> list[str]:
    """The users whose memories a filter can find. Who may not see them finds none there."""
    own = context.session.entrance.principal.user_key
    if where.users is None:
        return [own]
    if where.users.all:
        users = list(await context.memories.users())
    else:
        users = sorted(where.users.named | ({own} if where.users.own else set()))
    if len(users) > MAX_USERS:
        raise InvalidValue(param="filters", at="filters.user_id", detail=f"name at most {MAX_USERS} users")
    return users


def _entities(given: Mem0AddIn) -> dict[str, str | None]:
    """Whose memories are to be made, from ``filters`` and what stands beside it."""
    named: dict[str, str | None] = {name: getattr(given, name) for name in ENTITIES}
    for name, value in (given.filters or {}).items():
        at = f"filters.{name}"
        if name not in named:
            raise InvalidValue(param=at, at=at, detail=f"known here are {', '.join(ENTITIES)}")
        if named[name] not in (None, value):
            raise InvalidValue(param=at, at=at, detail=f"it differs from '{name}'")
        named[name] = value
    return named


def _literal(text: str) -> Mapping[str, Any]:
    """Filters in a query, as mem0's Python client writes them there: a Python literal; JSON is taken too."""
    detail = "an object of JSON"
    try:
        if len(text) > _LITERAL_CHARACTERS:
            raise ValueError
        try:
            found = msgspec.json.decode(text)
        except msgspec.DecodeError:
            # By way of JSON, so that nothing is in it that JSON has not.
            found = msgspec.json.decode(msgspec.json.encode(ast.literal_eval(text)))
    except (ValueError, SyntaxError, TypeError, OverflowError, MemoryError, RecursionError):
        raise InvalidValue(param="filters", at="filters", detail=detail) from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InvalidValue(param="filters", at="filters", detail=detail)
    return found


def _in_categories(wanted: list[str] | None) -> Filter:
    return lambda memory: wanted is None or bool(set(wanted).intersection(memory.categories))


def _between(start: str | int | None, end: str | int | None) -> Filter:
    from_us = None if start is None else span_of(start, "start_date").from_us
    upto_us = None if end is None else span_of(end, "end_date").upto_us

    def fits(memory: StoredMemory) -> bool:
        if from_us is not None and memory.created_at_us < from_us:
            return False
        return upto_us is None or memory.created_at_us < upto_us

    return fits


def _fields(wanted: list[str] | None) -> list[str] | None:
    for name in wanted or ():
        if name not in Mem0Memory.__struct_fields__:
            raise InvalidValue(
                param="fields", at="fields", detail=f"known are {', '.join(Mem0Memory.__struct_fields__)}"
            )
    return wanted


def _place(page: int, size: int) -> str:
    return f"/v3/memories/?page={page}&page_size={size}"


def _refuse(given: msgspec.Struct, *names: str) -> None:
    for name in names:
        if getattr(given, name) is not None:
            raise UnsupportedParameter(param=name, at=name)


def _refuse_true(given: msgspec.Struct, *names: str) -> None:
    for name in names:
        if getattr(given, name):
            raise UnsupportedParameter(param=name, at=name)
