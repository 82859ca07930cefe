"""``GET /v1/search``."""

from __future__ import annotations

from nagaya.context.search import TYPES
from nagaya.server.calls import Call, Reply, encode, number_of


async def search(call: Call) -> Reply:
    """What the caller may read that has the words of ``q``, best first, with what matches marked: messages of
    ``conversations``, ``memories``, passages of ``documents``; ``types`` chooses among them, by commas."""
    async with await call.admit() as context:
        query = call.query({"q": "", "types": ",".join(TYPES), "limit": "20", "after": ""})
        page = await context.search(
            query["q"],
            types=query["types"].split(","),
            limit=number_of(query["limit"], "limit", lowest=1, highest=100),
            after=query["after"] or None,
        )
        return Reply(encode(page))
