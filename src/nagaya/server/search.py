"""``GET /v1/search``."""

from __future__ import annotations

from nagaya.server.calls import Call, Reply, encode, number_of


async def search(call: Call) -> Reply:
    """The messages with the words of ``q`` that the caller may read, best first, with what matches marked."""
    async with await call.admit() as context:
        query = call.query({"q": "", "kinds": "conversations", "limit": "20", "after": ""})
        page = await context.search(
            query["q"],
            kinds=query["kinds"].split(","),
            limit=number_of(query["limit"], "limit", lowest=1, highest=100),
            after=query["after"] or None,
        )
        return Reply(encode(page))
