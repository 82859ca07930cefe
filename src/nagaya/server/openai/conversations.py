"""``/v1/conversations`` and their items. Appending and listing items are the hottest routes of all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from nagaya.context.conversations import Conversation, ItemPage
from nagaya.context.idempotency import Answer, Claim, claim
from nagaya.context.items import MAX_ITEMS_PER_CALL, Item, ItemIn, read_items, wires
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import ConditionFailed, InvalidValue, NagayaError
from nagaya.server.calls import Call, Disconnected, Reply, encode, flag_of, listed, number_of, order_of


class ItemsIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST …/items``."""

    items: list[ItemIn]
    include: list[str] | None = None


class ConversationIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/conversations``; ``title`` is Nagaya's own."""

    items: list[ItemIn] | None = None
    metadata: dict[str, str] | None = None
    title: str | None = None
    expires_at: int | None = None


class ConversationChange(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /v1/conversations/{id}``; all but ``metadata`` is Nagaya's own."""

    metadata: dict[str, str] | msgspec.UnsetType | None = msgspec.UNSET
    title: str | None = None
    shared: bool | None = None
    archived: bool | None = None
    expires_at: int | None = None


async def once(
    call: Call, context: TenantContext, body: bytes, work: Callable[[Claim | None], Awaitable[bytes]]
) -> Reply:
    """Do the work; with an ``Idempotency-Key``, do it once and answer repeats as the first time."""
    key = call.header(b"idempotency-key")
    if key is None:
        return Reply(await work(None))
    held = await claim(context.session, key, f"{call.method} {call.path}\n".encode() + body)
    if isinstance(held, Answer):
        return Reply(held.body, held.status)
    try:
        async with held.kept():
            answer = await work(held)
    except (NagayaError, Disconnected):
        await held.abandon()
        raise
    await held.finish(200, answer)
    return Reply(answer)


def given_items(given: list[ItemIn] | None, at: str = "items") -> list[Item]:
    """The items of a body, at most 20."""
    if given is not None and len(given) > MAX_ITEMS_PER_CALL:
        raise InvalidValue(param=at, at=at, detail=f"at most {MAX_ITEMS_PER_CALL} items in one call")
    return read_items(given or (), at)


async def create(call: Call) -> Reply:
    """Make a conversation of the caller's, with up to 20 items."""
    async with await call.admit() as context:
        body = await call.body()
        given = call.decode(body, ConversationIn)
        items = given_items(given.items)

        async def work(held: Claim | None) -> bytes:
            made = await context.conversations.create(
                title=given.title,
                metadata=given.metadata,
                items=items,
                expires_at=given.expires_at,
                conversation_id=held.id("conv") if held else None,
            )
            return encode(made)

        return await once(call, context, body, work)


async def listing(call: Call) -> Reply:
    """The caller's conversations, newest first; ``shared``: those others share; ``user``: for an administrator."""
    async with await call.admit() as context:
        query = call.query(
            {"after": "", "limit": "20", "order": "desc", "user": "", "shared": "", "archived": "", "deleted": ""}
        )
        page = await context.conversations.list(
            user=query["user"] or None,
            shared=flag_of(query["shared"], "shared") is True,
            archived=flag_of(query["archived"], "archived"),
            deleted=flag_of(query["deleted"], "deleted") is True,
            after=query["after"] or None,
            limit=number_of(query["limit"], "limit", lowest=1, highest=100),
            order=order_of(query["order"]),
        )
        return listed(page.data, has_more=page.cursor is not None, next_cursor=page.cursor)


async def retrieve(call: Call) -> Reply:
    """One conversation."""
    async with await call.admit() as context:
        return Reply(encode(await context.conversations.retrieve(call.params[0])))


async def update(call: Call) -> Reply:
    """Change a conversation's metadata, title, sharing or archiving; what is not given stays."""
    async with await call.admit() as context:
        given = await call.json(ConversationChange)
        changed: Conversation = await context.conversations.update(
            call.params[0],
            metadata=None if given.metadata is msgspec.UNSET else given.metadata or {},
            title=given.title,
            shared=given.shared,
            archived=given.archived,
            expires_at=given.expires_at,
        )
        return Reply(encode(changed))


class ForkIn(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST …/fork``: the last item that the fork has (all, unless given), and its title."""

    item_id: str | None = None
    title: str | None = None


async def fork(call: Call) -> Reply:
    """A new conversation of the caller's that begins as this one did, up to an item."""
    async with await call.admit() as context:
        body = await call.body()
        given = call.decode(body, ForkIn)

        async def work(held: Claim | None) -> bytes:
            made = await context.conversations.fork(
                call.params[0], item_id=given.item_id, title=given.title, new=held.id("conv") if held else None
            )
            return encode(made)

        return await once(call, context, body, work)


async def delete(call: Call) -> Reply:
    """Delete a conversation: it can be restored for the tenant's days, with ``permanent=true`` never."""
    async with await call.admit() as context:
        query = call.query({"permanent": ""})
        permanent = flag_of(query["permanent"], "permanent") is True
        await context.conversations.delete(call.params[0], permanent=permanent)
        return Reply(encode({"id": call.params[0], "object": "conversation.deleted", "deleted": True}))


async def restore(call: Call) -> Reply:
    """Take the deletion of a conversation back."""
    async with await call.admit() as context:
        return Reply(encode(await context.conversations.restore(call.params[0])))


async def create_items(call: Call) -> Reply:
    """Append up to 20 items, all or none; answered when they are durable."""
    async with await call.admit() as context:
        body = await call.body()
        items = given_items(call.decode(body, ItemsIn).items)
        if not items:
            raise InvalidValue(param="items", at="items", detail="expected at least one item")

        async def work(held: Claim | None) -> bytes:
            if held is None:
                bodies = await context.conversations.append_bodies(call.params[0], items)
                return item_list(wires(bodies), items[0].id, items[-1].id, has_more=False)
            for number, item in enumerate(items):
                item.id = held.id("item", number)
            try:
                bodies = await context.conversations.append_bodies(call.params[0], items, keep_ids=True)
                shown = wires(bodies)
            except ConditionFailed:
                # The first attempt appended them and was lost before it could say so.
                shown = [await context.conversations.item_wire(call.params[0], item.id) for item in items]
            return item_list(shown, items[0].id, items[-1].id, has_more=False)

        return await once(call, context, body, work)


def item_list(shown: list[bytes], first_id: str | None, last_id: str | None, *, has_more: bool) -> bytes:
    """A list of items from their stored JSON, joined as it is. The ids are texts also where there are none."""
    return b'{"object":"list","data":[%b],"first_id":%b,"last_id":%b,"has_more":%b}' % (
        b",".join(shown),
        encode(first_id or ""),
        encode(last_id or ""),
        b"true" if has_more else b"false",
    )


async def list_items(call: Call) -> Reply:
    """A page of items, newest first unless ``order`` is ``asc``."""
    async with await call.admit() as context:
        query = call.query({"after": "", "limit": "20", "order": "desc"})
        page: ItemPage = await context.conversations.item_page(
            call.params[0],
            after=query["after"] or None,
            limit=number_of(query["limit"], "limit", lowest=1, highest=100),
            order=order_of(query["order"]),
        )
        return Reply(item_list(wires(page.bodies), page.first_id, page.last_id, has_more=page.has_more))


async def retrieve_item(call: Call) -> Reply:
    """One item."""
    async with await call.admit() as context:
        call.query({})
        return Reply(await context.conversations.item_wire(call.params[0], call.params[1]))


async def delete_item(call: Call) -> Reply:
    """Delete one item; gives the conversation."""
    async with await call.admit() as context:
        return Reply(encode(await context.conversations.delete_item(call.params[0], call.params[1])))
