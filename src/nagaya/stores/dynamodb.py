"""Stores in Amazon DynamoDB: a table per room, or one table that rooms share under keys that lead with the room.

``dynamodb://ap-northeast-1/nagaya`` keeps room ``acme`` in table ``nagaya-acme``; with ``?shared=true`` all rooms lie
in table ``nagaya``. ``dynamodb://ap-northeast-1`` takes the table that the connection secret names, as it is.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final

from nagaya.adapters import Surroundings
from nagaya.clouds.aws import AwsAccount, flag, url_parts
from nagaya.clouds.aws_errors import AwsRefusal, Trouble
from nagaya.clouds.aws_role import AwsConnection, check_region
from nagaya.errors import InvalidValue, PermissionMissing, StoreDamaged, StoreNewer, StoreUnreachable, TenantExists
from nagaya.stores.dynamodb_items import (
    Item,
    directory_item,
    directory_of,
    leading_keys,
    parts_of,
    room_key,
    size_of,
)
from nagaya.stores.dynamodb_store import DynamoStore, Table
from nagaya.stores.rooms import check_room

FORMAT: Final = 1
TABLE_S: Final = 60.0
"""How long a table may take to be made or removed."""

_TABLE: Final = re.compile(r"[A-Za-z0-9_.-]{3,180}")
_POLL_S: Final = 0.5
_ROWS: Final = ("GetItem", "PutItem", "DeleteItem", "Query", "BatchWriteItem")
_TABLES: Final = ("DescribeTable", "CreateTable", "DeleteTable")
_SCHEMA: Final[dict[str, Any]] = {
    "KeySchema": [{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
    "AttributeDefinitions": [
        {"AttributeName": "pk", "AttributeType": "S"},
        {"AttributeName": "sk", "AttributeType": "B"},
    ],
    "BillingMode": "PAY_PER_REQUEST",
}


def dynamodb_grants(
    account_id: str, region: str, table: str, room: str, *, shared: bool, partition: str = "aws"
) -> list[dict[str, Any]]:
    """The least that a room's store needs, as statements of a policy.

    In a shared table every call must name its keys, and all must begin with the room: a condition on absent keys
    alone would be true, so their absence is refused too.
    """
    resource = f"arn:{partition}:dynamodb:{region}:{account_id}:table/{table}"
    rows: dict[str, Any] = {"Effect": "Allow", "Action": [f"dynamodb:{each}" for each in _ROWS], "Resource": resource}
    if not shared:
        return [{**rows, "Action": [f"dynamodb:{each}" for each in (*_ROWS, *_TABLES)]}]
    rows["Condition"] = {
        "ForAllValues:StringLike": {"dynamodb:LeadingKeys": leading_keys(room)},
        "Null": {"dynamodb:LeadingKeys": "false"},
    }
    return [rows, {"Effect": "Allow", "Action": "dynamodb:DescribeTable", "Resource": resource}]


async def open_house(url: str, surroundings: Surroundings) -> DynamoHouse:
    """The house at ``dynamodb://REGION[/TABLE][?shared=true]``.

    Nothing is asked of DynamoDB yet. Raises ``InvalidValue``, ``RegionRefused``, ``ConnectionSecretInvalid``,
    ``ExternalIdRefused``.
    """
    place, options = url_parts(url, "dynamodb", known=frozenset({"shared"}))
    region, _, base = place.partition("/")
    shared = flag(options, "shared")
    if base and not _TABLE.fullmatch(base):
        raise InvalidValue(at="store", detail="dynamodb://REGION/TABLE, a table's name of A-Z a-z 0-9 _ . -")
    check_region(region, surroundings.regions)

    def table_of(connection: AwsConnection | None) -> tuple[str, bool]:
        if base:
            return (base, True) if shared else (f"{base}-{surroundings.room}", False)
        if connection is None or not _TABLE.fullmatch(connection.dynamodb_table_name):
            raise InvalidValue(at="store", detail="name a table: dynamodb://REGION/TABLE")
        return connection.dynamodb_table_name, shared

    def grants(connection: AwsConnection, region: str) -> Sequence[Mapping[str, Any]]:
        table, is_shared = table_of(connection)
        return dynamodb_grants(
            connection.account_id,
            region,
            table,
            surroundings.room,
            shared=is_shared,
            partition=connection.partition,
        )

    account = await AwsAccount.open(surroundings, region=region, grants=grants)
    exact = shared or not base
    name = table_of(account.connection)[0] if exact else base
    return DynamoHouse(account, name, exact=exact, deadline_s=surroundings.settings.store_deadline_s)


class DynamoHouse:
    """Rooms in DynamoDB. It implements :class:`nagaya.stores.driver.StoreHouse`.

    ``exact``: all rooms lie in the very table ``name``; else each in ``name-ROOM``. A table that is missing is made
    (on-demand capacity); one that is there already is used, so that a customer may make it beforehand.
    """

    def __init__(self, account: AwsAccount, name: str, *, exact: bool, deadline_s: float) -> None:
        self._account = account
        self._name = name
        self._exact = exact
        self._deadline_s = deadline_s
        self._tables: dict[str, Table] = {}
        self._tidying: set[asyncio.Task[None]] = set()

    async def create(self, room: str) -> None:
        """Make the room, and its table where there is none. Raises ``TenantExists`` where the room is there."""
        table = await self._table(check_room(room))
        await self._make_table(table)
        made = os.urandom(16)
        item = {**room_key(room), "format": {"N": str(FORMAT)}, "made": {"B": made}}
        try:
            await table.call(
                "put_item", TableName=table.name, Item=item, ConditionExpression="attribute_not_exists(pk)"
            )
        except AwsRefusal as refusal:
            if refusal.trouble is not Trouble.CONDITION:
                raise
            found = await self._room_item(table, room) if refusal.doubtful else None
            if found is None or found.get("made", {}).get("B") != made:
                raise TenantExists(value=room) from None

    async def open(self, room: str) -> DynamoStore:
        table = await self._table(check_room(room))
        item = await self._room_item(table, room)
        if item is None or "leaving" in item:
            raise StoreDamaged(place=f"room {room} in dynamodb table {table.name}")
        found = int(item["format"]["N"])
        if found > FORMAT:
            raise StoreNewer(found=found, known=FORMAT, place=f"dynamodb table {table.name}")
        return DynamoStore(table, room, self._tidy)

    async def exists(self, room: str) -> bool:
        """Whether the room was made and not destroyed."""
        table = await self._table(check_room(room))
        try:
            item = await self._room_item(table, room)
        except StoreDamaged:
            return False
        return item is not None and "leaving" not in item

    async def destroy(self, room: str) -> None:
        """Remove the room's rows, and its table where it has one to itself. May be repeated, also after a failure.

        Backups and point-in-time recovery of the table are the account's own; destroying the key closes them.
        """
        table = await self._table(check_room(room))
        if not self._exact:
            try:
                return await self._remove_table(table)
            except PermissionMissing:
                pass  # a table of the customer's own, which stays; its rows go
        try:
            item = await self._room_item(table, room)
        except StoreDamaged:
            return
        if item is not None:
            await table.call("put_item", TableName=table.name, Item={**item, "leaving": {"BOOL": True}})
        async for name in self._partitions(table, room):
            for key in (f"{room}#{name}", parts_of(room, name)):
                await self._empty(table, key)
            await table.delete_many([directory_item(room, name)])
        await table.delete_many([room_key(room)])

    async def size_bytes(self, room: str) -> int:
        """The bytes of the room's items, counted by reading them all: as dear as reading all of the room.

        DynamoDB's own figure is six hours old and covers all rooms of a shared table. Eventually consistent.
        """
        table = await self._table(check_room(room))
        total = 0
        try:
            async for name in self._partitions(table, room):
                for key in (f"{room}#{name}", parts_of(room, name)):
                    async for page in table.pages(
                        KeyConditionExpression="pk = :p", ExpressionAttributeValues={":p": {"S": key}}
                    ):
                        total += sum(size_of(item) for item in page)
        except StoreDamaged:
            return 0
        return total

    async def close(self) -> None:
        """Let what is being tidied up end, then close the account's connections. May be called again."""
        if self._tidying:
            await asyncio.wait(self._tidying, timeout=self._deadline_s)
        await self._account.close()

    # --- inside ---

    def _tidy(self, work: Coroutine[Any, Any, None]) -> None:
        """Remove what nothing names any more, beside the calls. Where it fails, the room's destruction removes it."""
        task = asyncio.create_task(work)
        self._tidying.add(task)
        task.add_done_callback(self._tidied)

    def _tidied(self, task: asyncio.Task[None]) -> None:
        self._tidying.discard(task)
        if not task.cancelled():
            task.exception()  # nothing depends on it

    async def _table(self, room: str) -> Table:
        name = self._name if self._exact else f"{self._name}-{room}"
        table = self._tables.get(name)
        if table is None:
            client = await self._account.client("dynamodb")
            table = self._tables.setdefault(name, Table(self._account, client, name, self._deadline_s))
        return table

    async def _room_item(self, table: Table, room: str) -> Item | None:
        answer = await table.call("get_item", TableName=table.name, Key=room_key(room), ConsistentRead=True)
        return answer.get("Item") or None

    async def _partitions(self, table: Table, room: str) -> Any:
        values = {":p": {"S": directory_of(room)}}
        async for page in table.pages(
            KeyConditionExpression="pk = :p", ExpressionAttributeValues=values, ConsistentRead=True
        ):
            for item in page:
                yield item["sk"]["B"].decode("ascii")

    async def _empty(self, table: Table, key: str) -> None:
        async for page in table.pages(
            KeyConditionExpression="pk = :p",
            ExpressionAttributeValues={":p": {"S": key}},
            ProjectionExpression="pk, sk",
            ConsistentRead=True,
        ):
            await table.delete_many([{"pk": item["pk"], "sk": item["sk"]} for item in page])

    async def _status(self, table: Table) -> str | None:
        try:
            found = (await table.call("describe_table", TableName=table.name))["Table"]
        except StoreDamaged:
            return None
        if sorted((key["AttributeName"], key["KeyType"]) for key in found["KeySchema"]) != [
            ("pk", "HASH"),
            ("sk", "RANGE"),
        ]:
            raise StoreDamaged(place=f"dynamodb table {table.name}")
        status: str = found["TableStatus"]
        return status

    async def _make_table(self, table: Table) -> None:
        ends_s = time.monotonic() + TABLE_S
        while (status := await self._status(table)) not in ("ACTIVE", "UPDATING"):
            if status is None:
                try:
                    await table.call("create_table", TableName=table.name, **_SCHEMA)
                except AwsRefusal as refusal:
                    if refusal.trouble is not Trouble.EXISTS:
                        raise
            if time.monotonic() > ends_s:
                raise StoreUnreachable
            if status is not None:
                await asyncio.sleep(_POLL_S)

    async def _remove_table(self, table: Table) -> None:
        ends_s = time.monotonic() + TABLE_S
        while (status := await self._status(table)) is not None:
            if status != "DELETING":
                try:
                    await table.call("delete_table", TableName=table.name)
                except StoreDamaged:
                    return
                except AwsRefusal as refusal:
                    if refusal.trouble is not Trouble.EXISTS:  # being made or changed: soon
                        raise
            else:
                await asyncio.sleep(_POLL_S)
            if time.monotonic() > ends_s:
                raise StoreUnreachable
