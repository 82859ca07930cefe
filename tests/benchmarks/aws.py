"""The DynamoDB store beside the same calls made by hand with aiobotocore, on the local stand-in.

The yardstick is aiobotocore as its makers ship it: the same operation, key, condition and 1 KB body. Both go to the
same server in turn, so most of a call's time is the server's and the client library's own. Run:
``python -m benchmarks.aws [--quick]``.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiobotocore.session import get_session

from benchmarks.figures import Row, at_most, main, ratio, ratios, row, us
from nagaya.adapters import Surroundings
from nagaya.clouds.aws import AwsAccount
from nagaya.clouds.aws_role import new_external_id
from nagaya.kernel.clock import SystemClock
from nagaya.kernel.egress import EgressPolicy
from nagaya.settings import Settings
from nagaya.stores.dynamodb import DynamoHouse, open_house
from nagaya.stores.store import Store
from parts.ministack import REGION, running

BODY = b"m" * 1024
PAGE = 50
ROOM = "bench"
_CONDITION = "attribute_not_exists(pk)"


def surroundings(room: str = ROOM, **secrets: bytes) -> Surroundings:
    async def secret(name: str) -> bytes | None:
        return secrets.get(name.replace("-", "_"))

    return Surroundings(Settings(), SystemClock(), EgressPolicy(), room, (), secret)


def with_role(room: str) -> Surroundings:
    """A tenant that has an account, and so credentials, of its own."""
    connection = {"role_arn": "arn:aws:iam::000000000000:role/nagaya", "external_id": new_external_id()}
    return surroundings(room, aws_connection=json.dumps(connection).encode())


def key(number: int) -> bytes:
    return number.to_bytes(8, "big")


class ByHand:
    """What somebody would write who needs just this."""

    def __init__(self, client: Any, table: str) -> None:
        self._client = client
        self._table = table
        self._next = 0

    async def put(self) -> None:
        self._next += 1
        item = {"pk": {"S": "hand#p"}, "sk": {"B": key(self._next)}, "rev": {"N": "1"}, "body": {"B": BODY}}
        await self._client.put_item(TableName=self._table, Item=item, ConditionExpression=_CONDITION)

    async def get(self) -> bytes:
        wanted = {"pk": {"S": "hand#p"}, "sk": {"B": key(1)}}
        found = await self._client.get_item(TableName=self._table, Key=wanted, ConsistentRead=True)
        body: bytes = found["Item"]["body"]["B"]
        return body

    async def query(self) -> list[bytes]:
        found = await self._client.query(
            TableName=self._table,
            KeyConditionExpression="pk = :p",
            ExpressionAttributeValues={":p": {"S": "hand#p"}},
            ConsistentRead=True,
            ScanIndexForward=False,
            Limit=PAGE,
        )
        return [item["body"]["B"] for item in found["Items"]]


class Ours:
    """The same through the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next = 0

    async def put(self) -> None:
        self._next += 1
        await self._store.put("p", key(self._next), BODY)

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


class _Sent:
    """How many requests a client has sent."""

    def __init__(self, client: Any) -> None:
        self.count = 0
        client.meta.events.register("before-send", self)

    def __call__(self, **_: Any) -> None:
        self.count += 1


async def calls(house: DynamoHouse, table: str, rounds: int, count: int) -> list[Row]:
    """Get, put and query."""
    await house.create(ROOM)
    ours = Ours(Store(await house.open(ROOM)))
    rows = []
    async with get_session().create_client("dynamodb", region_name=REGION) as client:
        hand = ByHand(client, f"{table}-{ROOM}")
        sent = _Sent(await house._account.client("dynamodb")), _Sent(client)
        for _ in range(PAGE):
            await ours.put()
            await hand.put()
        for verb, job in (("put", "append"), ("get", "get"), ("query", f"the last {PAGE}")):
            mine, theirs = [], []
            before = sent[0].count, sent[1].count
            for _ in range(rounds):
                mine.append(await _median_s(getattr(ours, verb), count))
                theirs.append(await _median_s(getattr(hand, verb), count))
            trips = [(each.count - first) / (rounds * count) for each, first in zip(sent, before, strict=True)]
            assert trips == [1.0, 1.0], f"round trips of {verb}: {trips}"
            rows.append(
                row(
                    f"DynamoDB: {job}, 1 KB",
                    "the same call by hand with aiobotocore, one round trip each",
                    at_most(ratio(mine, theirs), 1.2),
                    f"{us(statistics.median(mine))}; by hand {us(statistics.median(theirs))}",
                    ratios(mine, theirs),
                )
            )
    return rows


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024**2


async def further_tenants(tenants: int) -> list[Row]:
    """What the account and client of one more tenant cost."""
    accounts = [await AwsAccount.open(with_role("warm"), region=REGION)]
    await accounts[0].client("dynamodb")
    before, took = _resident_mb(), []
    for number in range(tenants):
        started = time.perf_counter()
        account = await AwsAccount.open(with_role(f"tenant-{number}"), region=REGION)
        await account.client("dynamodb")
        took.append(time.perf_counter() - started)
        accounts.append(account)
    each_mb = (_resident_mb() - before) / tenants
    for account in accounts:
        await account.close()
    each_ms = statistics.median(took) * 1e3
    job = f"AWS: the client of a further tenant, of {tenants}"
    return [
        row(f"{job}: time", "–", at_most(each_ms, 30, "{:.1f} ms"), ""),
        row(f"{job}: memory", "–", at_most(each_mb, 2, "{:.2f} MB"), ""),
    ]


async def measure(folder: Path, quick: bool) -> list[Row]:
    """The rows of AWS."""
    rounds, count = (5, 40) if quick else (15, 80)
    with running() as stand_in:
        os.environ |= {
            "AWS_ENDPOINT_URL": stand_in.url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip
        house = await open_house(f"dynamodb://{REGION}/bench", surroundings())
        rows = await calls(house, "bench", rounds, count)
        await house.close()
        return rows + await further_tenants(50 if quick else 200)


if __name__ == "__main__":
    main(measure)
