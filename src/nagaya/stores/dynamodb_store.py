"""One room in a DynamoDB table: conditional writes, transactions, consistent reads, one round trip each."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from nagaya.clouds.aws import AwsAccount
from nagaya.clouds.aws_errors import AwsRefusal, Trouble
from nagaya.errors import ConditionFailed, InvalidValue, StoreDamaged, StoreUnreachable
from nagaya.stores.driver import ABSENT, Change, Put, Row, ScannedRow
from nagaya.stores.dynamodb_items import (
    TRANSACTION_ITEMS,
    Item,
    Plan,
    directory_item,
    directory_of,
    part_count,
    part_prefix,
    parts_of,
    plan,
    row_key,
    row_of,
)

MAX_KNOWN: Final = 20_000
"""Partitions that a store remembers to be in the directory."""

_SURE_BYTES: Final = 28
"""A body from this length on is nobody else's by chance: a sealed one has a random nonce and a tag."""
_WRITE_ITEMS: Final = 25
_WRITE_LARGE: Final = 4
"""So many items of 380 KB are turned into JSON at once: more would hold up the event loop."""
_READ_TRIES: Final = 5
_SCANS_AT_ONCE: Final = 8

Spawn = Callable[[Coroutine[Any, Any, None]], None]


class Table:
    """A table as the stores and the house use it: its calls, and what it turned out to be able to do."""

    def __init__(self, account: AwsAccount, client: Any, name: str, deadline_s: float) -> None:
        self.account = account
        self.client = client
        self.name = name
        self.deadline_s = deadline_s
        self.has_transactions = True

    async def call(self, operation: str, **request: Any) -> dict[str, Any]:
        """One operation on the table. Raises ``StoreDamaged`` where there is none, ``AwsRefusal`` for the rest."""
        try:
            return await self.account.call(
                getattr(self.client, operation), deadline_s=self.deadline_s, unreachable=StoreUnreachable, **request
            )
        except AwsRefusal as refusal:
            if refusal.trouble is Trouble.MISSING:
                raise StoreDamaged(place=f"dynamodb table {self.name}") from refusal
            raise

    async def pages(self, **request: Any) -> AsyncIterator[list[Item]]:
        """The pages of a query to its very end, at most 1 MB each."""
        while True:
            answer = await self.call("query", TableName=self.name, **request)
            yield answer["Items"]
            last = answer.get("LastEvaluatedKey")
            if not last:
                return
            request["ExclusiveStartKey"] = last

    async def put_many(self, items: Sequence[Item]) -> None:
        """Write many items, in no order and not together. Large ones: few go in one request. Raises
        ``StoreUnreachable`` where DynamoDB goes on taking none of them for ``deadline_s``."""
        await self._write_many([{"PutRequest": {"Item": item}} for item in items], _WRITE_LARGE)

    async def delete_many(self, keys: Sequence[Item]) -> None:
        """Remove items by their keys; those that are not there are no error."""
        await self._write_many([{"DeleteRequest": {"Key": key}} for key in keys], _WRITE_ITEMS)

    async def _write_many(self, requests: Sequence[dict[str, Any]], at_once: int) -> None:
        for start in range(0, len(requests), at_once):
            left = list(requests[start : start + at_once])
            pause_s, waited_s = 0.05, 0.0
            while left:
                answer = await self.call("batch_write_item", RequestItems={self.name: left})
                before, left = len(left), answer.get("UnprocessedItems", {}).get(self.name, [])
                if left:
                    # As long as some are done each time, it goes on; where none are, not for ever.
                    waited_s = waited_s + pause_s if len(left) == before else 0.0
                    if waited_s > self.deadline_s:
                        raise StoreUnreachable
                    await asyncio.sleep(pause_s)
                    pause_s = min(1.0, pause_s * 2)


class _InParts(Exception):
    """The bodies to be replaced lie in parts, which have to go with them."""

    def __init__(self, parts: dict[bytes, bytes]) -> None:
        super().__init__()
        self.parts = parts


class DynamoStore:
    """One room's store. It implements :class:`nagaya.stores.driver.StoreDriver`.

    A call that was cut is repeated. A repeated batch carries the token of its first try; a repeated put that finds
    its own body is done; a repeated delete that finds nothing raises ``StoreUnreachable``, for who removed it is not
    known.
    """

    def __init__(self, table: Table, room: str, spawn: Spawn) -> None:
        self._table = table
        self._room = room
        self._spawn = spawn
        self._known: dict[str, None] = {}

    async def get(self, partition: str, sort: bytes) -> Row | None:
        for _ in range(_READ_TRIES):
            item = await self._item(partition, sort)
            if item is None:
                return None
            if "parts" not in item:
                return row_of(item)
            row = await self._whole(partition, item)
            if row is not None:
                return row
        raise StoreDamaged(place=f"parts in dynamodb table {self._table.name}")

    async def query(
        self, partition: str, *, after: bytes, before: bytes, limit: int, descending: bool
    ) -> Sequence[Row]:
        # What follows ``after`` directly is ``after`` and a zero byte; nothing precedes ``before`` so nearly.
        first = after + b"\0"
        if before and first > before:
            return []
        key = "pk = :p"
        values: dict[str, Any] = {":p": {"S": f"{self._room}#{partition}"}}
        over = 0
        if after and before:
            key += " AND sk BETWEEN :a AND :b"
            values |= {":a": {"B": first}, ":b": {"B": before}}
            over = int(descending)
        elif after:
            key += " AND sk > :a"
            values[":a"] = {"B": after}
        elif before:
            key += " AND sk < :b"
            values[":b"] = {"B": before}
        request: dict[str, Any] = {
            "TableName": self._table.name,
            "KeyConditionExpression": key,
            "ExpressionAttributeValues": values,
            "ConsistentRead": True,
            "ScanIndexForward": not descending,
        }
        rows: list[Row] = []
        while True:
            request["Limit"] = limit - len(rows) + over
            answer = await self._table.call("query", **request)
            for item in answer["Items"]:
                if item["sk"]["B"] == before or len(rows) == limit:
                    continue
                row = row_of(item) if "parts" not in item else await self._again(partition, item)
                if row is not None:
                    rows.append(row)
            last = answer.get("LastEvaluatedKey")
            if not last or len(rows) >= limit:
                return rows
            request["ExclusiveStartKey"] = last

    async def scan(self, *, after: tuple[str, bytes] | None, limit: int) -> Sequence[ScannedRow]:
        found: list[ScannedRow] = []
        reached = "" if after is None else after[0]
        names = [reached] if reached else []
        at_once = 1
        while True:
            while names and len(found) < limit:
                group, names = names[:at_once], names[at_once:]
                starts = [after[1] if after is not None and name == after[0] else b"" for name in group]
                pages = await asyncio.gather(
                    *(
                        self.query(name, after=start, before=b"", limit=limit - len(found), descending=False)
                        for name, start in zip(group, starts, strict=True)
                    )
                )
                for name, rows in zip(group, pages, strict=True):
                    found += [ScannedRow(name, row) for row in rows]
                at_once = min(_SCANS_AT_ONCE, at_once * 2)
                reached = group[-1]
            if len(found) >= limit:
                return found[:limit]
            names = await self._names(reached, limit)
            if not names:
                return found

    async def write(self, partition: str, changes: Sequence[Change]) -> None:
        old: dict[bytes, bytes] = {}
        while True:
            try:
                return await self._write(partition, changes, old)
            except _InParts as found:
                old |= found.parts

    async def close(self) -> None:
        """The account is the house's."""

    # --- reading ---

    async def _item(self, partition: str, sort: bytes) -> Item | None:
        answer = await self._table.call(
            "get_item", TableName=self._table.name, Key=row_key(self._room, partition, sort), ConsistentRead=True
        )
        item: Item | None = answer.get("Item")
        return item or None

    async def _whole(self, partition: str, item: Item) -> Row | None:
        """The record of a head with its parts; None where they were replaced meanwhile."""
        sort, parts = item["sk"]["B"], item["parts"]["B"]
        prefix = part_prefix(sort, parts)
        values = {
            ":p": {"S": parts_of(self._room, partition)},
            ":a": {"B": prefix + b"\0\0"},
            ":b": {"B": prefix + b"\xff\xff"},
        }
        key = "pk = :p AND sk BETWEEN :a AND :b"
        pieces: list[bytes] = []
        async for page in self._table.pages(
            KeyConditionExpression=key, ExpressionAttributeValues=values, ConsistentRead=True
        ):
            pieces += [each["body"]["B"] for each in page]
        if len(pieces) != part_count(parts):
            return None
        return Row(sort, int(item["rev"]["N"]), b"".join(pieces))

    async def _again(self, partition: str, item: Item) -> Row | None:
        return await self._whole(partition, item) or await self.get(partition, item["sk"]["B"])

    async def _names(self, after: str, limit: int) -> list[str]:
        """The next partitions of the directory, by name."""
        values: dict[str, Any] = {":p": {"S": directory_of(self._room)}}
        key = "pk = :p"
        if after:
            key += " AND sk > :a"
            values[":a"] = {"B": after.encode("ascii")}
        answer = await self._table.call(
            "query",
            TableName=self._table.name,
            KeyConditionExpression=key,
            ExpressionAttributeValues=values,
            ConsistentRead=True,
            Limit=limit,
        )
        return [item["sk"]["B"].decode("ascii") for item in answer["Items"]]

    # --- writing ---

    async def _write(self, partition: str, changes: Sequence[Change], old: Mapping[bytes, bytes]) -> None:
        made = plan(self._table.name, self._room, partition, changes, old)
        heads = made.heads
        new = partition not in self._known and any(change.expect == ABSENT for change in changes)
        if new and (len(heads) == TRANSACTION_ITEMS or not self._table.has_transactions):
            await self._note(partition)
            new = False
        extra: list[dict[str, Any]] = []
        if new:
            extra.append(self._put(directory_item(self._room, partition)))
        whole = (made.parts or made.stale) and self._table.has_transactions and made.fits(len(extra))
        if whole:
            extra += [self._put(item) for item in made.parts]
            extra += [{"Delete": {"TableName": self._table.name, "Key": key}} for key in made.stale]
        elif made.parts:
            # They mean nothing until a head names them, so half of them is not half a write.
            await self._guarded(made, self._table.put_many(made.parts))
        work = self._decide(partition, changes, heads, extra, old)
        await (work if whole or not made.parts else self._guarded(made, work))
        if made.stale and not whole:
            self._spawn(self._table.delete_many(made.stale))
        if new:
            self._remember(partition)

    async def _guarded(self, made: Plan, work: Coroutine[Any, Any, None]) -> None:
        """Let the new parts go where the write that was to name them is known to have failed."""
        try:
            await work
        except (ConditionFailed, _InParts):
            self._spawn(self._table.delete_many([{"pk": item["pk"], "sk": item["sk"]} for item in made.parts]))
            raise

    async def _decide(
        self,
        partition: str,
        changes: Sequence[Change],
        heads: list[dict[str, Any]],
        extra: list[dict[str, Any]],
        old: Mapping[bytes, bytes],
    ) -> None:
        """Write the heads: what makes the write count."""
        if len(heads) + len(extra) == 1:
            return await self._one(partition, changes[0], heads[0], old)
        token = os.urandom(16).hex()
        try:
            await self._table.call("transact_write_items", TransactItems=heads + extra, ClientRequestToken=token)
        except AwsRefusal as refusal:
            if refusal.trouble is Trouble.UNKNOWN_OPERATION:
                self._table.has_transactions = False
                if len(changes) == 1:
                    return await self._write(partition, changes, old)
                raise InvalidValue(at="changes", detail="this store has no transactions: one at a time") from None
            if refusal.trouble is not Trouble.CANCELLED:
                raise
            await self._explain(partition, changes, refusal.answer.get("CancellationReasons") or [], old)

    async def _one(self, partition: str, change: Change, head: dict[str, Any], old: Mapping[bytes, bytes]) -> None:
        ((verb, request),) = head.items()
        try:
            await self._table.call("put_item" if verb == "Put" else "delete_item", **request)
        except AwsRefusal as refusal:
            if refusal.trouble is not Trouble.CONDITION:
                raise
            if refusal.doubtful and await self._was_ours(partition, change):
                return
            await self._explain(partition, [change], [{**refusal.answer, "Code": "ConditionalCheckFailed"}], old)

    async def _was_ours(self, partition: str, change: Change) -> bool:
        """A repeated write met a changed place: whether its first try had changed it. Raises where none can know."""
        row = await self.get(partition, change.sort)
        if type(change) is Put:
            if row is not None and row.revision == change.expect + 1 and row.body != change.body:
                return False
            if row is not None and row.revision == change.expect + 1 and len(row.body) >= _SURE_BYTES:
                return True
        if row is None or (type(change) is Put and row.revision > change.expect):
            raise StoreUnreachable
        return False

    async def _explain(
        self,
        partition: str,
        changes: Sequence[Change],
        reasons: Sequence[Mapping[str, Any]],
        old: Mapping[bytes, bytes],
    ) -> None:
        """Why conditions failed: for parts that nobody knew of, or in earnest."""
        found: dict[bytes, bytes] = {}
        for change, reason in zip(changes, reasons, strict=False):
            if reason.get("Code") != "ConditionalCheckFailed":
                continue
            if change.expect == ABSENT or change.sort in old:
                raise ConditionFailed
            item = reason.get("Item") or await self._item(partition, change.sort)
            if not item or "parts" not in item or int(item["rev"]["N"]) != change.expect:
                raise ConditionFailed
            found[change.sort] = item["parts"]["B"]
        if not found:
            raise StoreUnreachable
        raise _InParts(found)

    async def _note(self, partition: str) -> None:
        """Enter a partition into the directory, before anything lies in it."""
        await self._table.call("put_item", TableName=self._table.name, Item=directory_item(self._room, partition))
        self._remember(partition)

    def _remember(self, partition: str) -> None:
        self._known[partition] = None
        if len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def _put(self, item: Item) -> dict[str, Any]:
        return {"Put": {"TableName": self._table.name, "Item": item}}
