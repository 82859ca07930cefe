"""The Cosmos DB store beside the same calls made by hand with azure-cosmos, on the local stand-in.

The yardstick is azure-cosmos as its makers ship it, with an item of the same 1 KB body in base64, the same partition
key and condition. Both go over https to the same server in turn, so most of a call's time is the server's and the
client library's own. Run: ``python -m benchmarks.azure [--quick]``.
"""

from __future__ import annotations

import base64
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from azure.core.pipeline.transport import AioHttpTransport
from azure.cosmos.aio import ContainerProxy, CosmosClient

from benchmarks.figures import Row, at_most, main, ratio, ratios, row, us
from nagaya.stores.cosmos import CosmosHouse
from nagaya.stores.store import Store
from parts.azure_cloud import AzureCloud, running
from parts.cosmos_shim import KEY

BODY = b"m" * 1024
PAGE = 50
ROOM = "bench"
_LAST = "SELECT c.n, c.body FROM c WHERE c.n > @after AND c.n < @before ORDER BY c.n DESC"


def key(number: int) -> bytes:
    return number.to_bytes(8, "big")


class ByHand:
    """What somebody would write who needs just this."""

    def __init__(self, container: ContainerProxy) -> None:
        self._container = container
        self._next = 0

    async def put(self) -> None:
        self._next += 1
        name = key(self._next).hex()
        body = base64.b64encode(BODY).decode()
        await self._container.create_item({"id": name, "n": name, "pk": "p", "rev": 1, "body": body}, no_response=True)

    async def change(self) -> None:
        rev = self._rev = getattr(self, "_rev", 0) + 1
        body = base64.b64encode(BODY).decode()
        operations: list[dict[str, Any]] = [
            {"op": "set", "path": "/body", "value": body},
            {"op": "set", "path": "/rev", "value": rev + 1},
        ]
        condition = f"FROM c WHERE c.rev = {rev}"
        await self._container.patch_item(
            key(1).hex(), partition_key="p", patch_operations=operations, filter_predicate=condition
        )

    async def get(self) -> bytes:
        found = await self._container.read_item(key(1).hex(), partition_key="p")
        return base64.b64decode(found["body"])

    async def query(self) -> list[bytes]:
        pages = self._container.query_items(
            _LAST,
            parameters=[{"name": "@after", "value": ""}, {"name": "@before", "value": "g"}],
            partition_key="p",
            max_item_count=PAGE,
        ).by_page()
        async for page in pages:
            return [base64.b64decode(each["body"]) async for each in page]
        return []


class Ours:
    """The same through the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next = 0
        self._rev = 0

    async def put(self) -> None:
        self._next += 1
        await self._store.put("p", key(self._next), BODY)

    async def change(self) -> None:
        self._rev += 1
        await self._store.put("p", key(1), BODY, expect=self._rev)

    async def get(self) -> bytes:
        found = await self._store.get("p", key(1))
        assert found is not None
        return found.body

    async def query(self) -> list[bytes]:
        return [each.body for each in await self._store.query("p", limit=PAGE, descending=True)]


async def _median_s(work: Callable[[], Awaitable[object]], count: int) -> float:
    took = []
    for _ in range(count):
        started = time.perf_counter()
        await work()
        took.append(time.perf_counter() - started)
    return statistics.median(took)


async def calls(cloud: AzureCloud, rounds: int, count: int) -> list[Row]:
    """Get, put and query."""
    database = cloud.new_database()
    house = CosmosHouse(cloud.open_account(cloud.key_secret()), name=cloud.account, database=database)
    await house.create(ROOM)
    await house.create("by-hand")
    ours = Ours(Store(await house.open(ROOM)))
    rows = []
    # Its own client and settings; only the connections are made as ours are, for the stand-in has no public name.
    account = cloud.open_account(cloud.key_secret())
    transport = AioHttpTransport(session=account._session, session_owner=False)
    async with CosmosClient(f"https://{cloud.account}/", KEY, transport=transport) as client:
        hand = ByHand(client.get_database_client(database).get_container_client("nagaya-by-hand"))
        for _ in range(PAGE):
            await ours.put()
            await hand.put()
        for verb, job in (("put", "append"), ("change", "replace"), ("get", "get"), ("query", f"the last {PAGE}")):
            mine, theirs, trips = [], [], [0, 0]
            for _ in range(rounds):
                for side, taken, place in ((ours, mine, 0), (hand, theirs, 1)):
                    before = cloud.cosmos.seen.total() - cloud.cosmos.seen["account"]
                    taken.append(await _median_s(getattr(side, verb), count))
                    trips[place] += cloud.cosmos.seen.total() - cloud.cosmos.seen["account"] - before
            assert trips == [rounds * count] * 2, f"round trips of {verb}: {trips}"
            rows.append(
                row(
                    f"Cosmos DB: {job}, 1 KB",
                    "the same call by hand with azure-cosmos, one round trip each",
                    at_most(ratio(mine, theirs), 1.2),
                    f"{us(statistics.median(mine))}; by hand {us(statistics.median(theirs))}",
                    ratios(mine, theirs),
                )
            )
    await account.close()
    await house.close()
    return rows


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024**2


async def further_tenants(cloud: AzureCloud, tenants: int) -> list[Row]:
    """What the account and client of one more tenant cost, its first token and call included."""
    database = cloud.new_database()
    maker = CosmosHouse(cloud.open_account(cloud.key_secret()), name=cloud.account, database=database, shared=True)
    await maker.create(ROOM)
    houses = []
    for number in range(tenants + 1):
        if number == 1:
            before, took = _resident_mb(), []
        started = time.perf_counter()
        house = CosmosHouse(cloud.open_account(), name=cloud.account, database=database, shared=True)
        await house.open(ROOM)
        houses.append(house)
        if number:
            took.append(time.perf_counter() - started)
    each_mb = (_resident_mb() - before) / tenants
    for house in [*houses, maker]:
        await house.close()
    job = f"Azure: the account and client of a further tenant, of {tenants}"
    return [
        row(f"{job}: time", "–", at_most(statistics.median(took) * 1e3, 30, "{:.1f} ms"), ""),
        row(
            f"{job}: memory, the stand-in's end of the connections included", "–", at_most(each_mb, 2, "{:.2f} MB"), ""
        ),
    ]


async def measure(folder: Path, quick: bool) -> list[Row]:
    """The rows of Azure."""
    rounds, count = (5, 30) if quick else (15, 60)
    with running() as cloud:
        return await calls(cloud, rounds, count) + await further_tenants(cloud, 40 if quick else 200)


if __name__ == "__main__":
    main(measure)
