"""One room's records in Cosmos DB.

Every write is one request: a create where nothing may lie yet, else a patch whose condition names the revision, or a
transactional batch of these. Deletes have no condition of their own, so a delete follows a conditional patch of the
same item in one batch. A write that had to be sent again may meet its own first arrival; its mark tells.
"""

from __future__ import annotations

import asyncio
import os
from binascii import a2b_base64
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from azure.cosmos.aio import ContainerProxy

from nagaya.errors import ConditionFailed, NagayaError, StoreDamaged, StoreUnreachable
from nagaya.stores import cosmos_items as items
from nagaya.stores.cosmos_calls import Calls, Conflicted, Sent
from nagaya.stores.driver import ABSENT, MAX_BATCH, Change, Delete, Put, Row, ScannedRow

_AT_ONCE: Final = 4
_READ_AGAIN: Final = 3
_LAST: Final = "g"  # above every hexadecimal digit
_UP: Final = "SELECT c.sk, c.r, c.b, c.c FROM c WHERE c.sk > @after AND c.sk < @before ORDER BY c.sk ASC"
_DOWN: Final = "SELECT c.sk, c.r, c.b, c.c FROM c WHERE c.sk > @after AND c.sk < @before ORDER BY c.sk DESC"
_SCAN: Final = (
    "SELECT c.pk, c.sk, c.r, c.b, c.c FROM c WHERE c.pk > @after AND c.pk < @before AND IS_DEFINED(c.sk) "
    "ORDER BY c.pk ASC, c.sk ASC"
)
_ETAGS: Final = "SELECT c.id, c.r, c.c, c._etag FROM c WHERE ARRAY_CONTAINS(@ids, c.id)"


class CosmosStore:
    """It implements :class:`nagaya.stores.driver.StoreDriver`. The house closes what is open."""

    def __init__(self, container: ContainerProxy, room: str, calls: Calls) -> None:
        self._container = container
        self._room = room
        self._calls = calls

    # --- reads ------------------------------------------------------------------------------------------------

    async def get(self, partition: str, sort: bytes) -> Row | None:
        key = items.partition_key(self._room, partition)
        for _ in range(_READ_AGAIN):
            found = await self._read(key, sort.hex())
            if found is None:
                return None
            row = await self._row(key, found)
            if row is not None:
                return row
        raise StoreDamaged(place=f"a record of {self._room} is not whole")

    async def query(
        self, partition: str, *, after: bytes, before: bytes, limit: int, descending: bool
    ) -> Sequence[Row]:
        key = items.partition_key(self._room, partition)
        given = {"@after": after.hex(), "@before": before.hex() if before else _LAST}
        found = await self._select(_DOWN if descending else _UP, given, limit=limit, key=key)
        # Rows in one piece, which is nearly all of them, are made without a coroutine each.
        return [_inline(each) if each["c"] is None else await self._whole(partition, key, each) for each in found]

    async def scan(self, *, after: tuple[str, bytes] | None, limit: int) -> Sequence[ScannedRow]:
        rows: list[ScannedRow] = []
        key = f"{self._room}#"
        if after is not None:
            # The rest of the partition first: so no query needs an OR, which the index serves badly.
            rest = await self.query(after[0], after=after[1], before=b"", limit=limit, descending=False)
            rows += [ScannedRow(after[0], row) for row in rest]
            key = items.partition_key(self._room, after[0])
        if len(rows) < limit:
            given = {"@after": key, "@before": items.room_end(self._room)}
            for each in await self._select(_SCAN, given, limit=limit - len(rows)):
                partition = items.partition_of(self._room, each["pk"])
                rows.append(ScannedRow(partition, await self._whole(partition, each["pk"], each)))
        return rows

    async def close(self) -> None:
        """Nothing of this room's own is held open."""

    async def _read(self, key: str, name: str) -> dict[str, Any] | None:
        try:
            return await self._calls.make(
                lambda sent: self._container.read_item(name, partition_key=key, raw_request_hook=sent)
            )
        except Conflicted:
            return None

    async def _select(
        self, query: str, given: dict[str, Any], *, limit: int, key: str | None = None
    ) -> list[dict[str, Any]]:
        """Up to ``limit`` items. The service may answer in smaller pages; the client goes on with its continuation."""
        where: dict[str, Any] = {} if key is None else {"partition_key": key}

        async def read(sent: Sent) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = []
            pages = self._container.query_items(
                query,
                parameters=[{"name": name, "value": value} for name, value in given.items()],
                max_item_count=limit,
                raw_request_hook=sent,
                **where,
            ).by_page()
            async for page in pages:
                found += [each async for each in page]
                if len(found) >= limit:
                    break
            return found[:limit]

        return await self._calls.make(read)

    async def _whole(self, partition: str, key: str, found: dict[str, Any]) -> Row:
        row = await self._row(key, found)
        if row is not None:
            return row
        # It was replaced while its pieces were read.
        again = await self.get(partition, bytes.fromhex(found["sk"]))
        if again is None:
            raise StoreUnreachable
        return again

    async def _row(self, key: str, found: dict[str, Any]) -> Row | None:
        if found["c"] is None:
            return _inline(found)
        parts: list[bytes] = []
        names = items.piece_ids(found["c"])
        for start in range(0, len(names), _AT_ONCE):
            read = await asyncio.gather(*(self._read(key, name) for name in names[start : start + _AT_ONCE]))
            for part in read:
                if part is None:
                    return None
                parts.append(a2b_base64(part["b"]))
        return Row(bytes.fromhex(found["sk"]), found["r"], b"".join(parts))

    # --- writes -----------------------------------------------------------------------------------------------

    async def write(self, partition: str, changes: Sequence[Change]) -> None:
        key = items.partition_key(self._room, partition)
        mark = os.urandom(12).hex()
        puts = [change for change in changes if type(change) is Put]
        pieces = items.cut(puts, mark)
        names = [piece.id for each in pieces.values() for piece in each]
        try:
            await self._put_pieces(key, [piece for each in pieces.values() for piece in each])
            former = await self._change(key, changes, puts, pieces, mark)
        except StoreUnreachable:
            # Perhaps it was kept, and then its pieces are needed.
            raise
        except (NagayaError, asyncio.CancelledError) as failed:
            # A cancelled write may still arrive; a refused one never will.
            if not isinstance(failed, asyncio.CancelledError):
                await self._remove_pieces(key, names)
            raise
        await self._remove_pieces(key, former)

    async def _change(
        self,
        key: str,
        changes: Sequence[Change],
        puts: Sequence[Put],
        pieces: dict[bytes, list[items.Piece]],
        mark: str,
    ) -> list[str]:
        """Make the changes, all or none; gives the ids of pieces that nothing names any more."""
        try:
            if len(changes) == 1 and puts:
                return await self._put_one(key, puts[0], pieces.get(puts[0].sort, ()), mark)
            return await self._batch(key, changes, pieces, mark)
        except Conflicted as conflict:
            if conflict.sent > 1 and await self._was_ours(key, changes, puts, mark):
                return []
            raise ConditionFailed from conflict

    async def _put_one(self, key: str, put: Put, pieces: Sequence[items.Piece], mark: str) -> list[str]:
        if put.expect == ABSENT:
            await self._calls.make(partial(self._create, items.item(key, put, mark, pieces)))
            return []
        written = await self._calls.make(
            lambda sent: self._container.patch_item(
                put.sort.hex(),
                partition_key=key,
                patch_operations=items.patch(put, mark, pieces),
                filter_predicate=items.is_at(put.expect),
                raw_request_hook=sent,
            )
        )
        return _named(written, "o")

    async def _batch(
        self, key: str, changes: Sequence[Change], pieces: dict[bytes, list[items.Piece]], mark: str
    ) -> list[str]:
        deletes = [change for change in changes if type(change) is Delete]
        former: list[str] = []
        etags: dict[str, str] = {}
        if len(changes) + len(deletes) > MAX_BATCH:
            # Too many for two operations per delete: learn the etags first, which a delete can name by itself.
            etags, former = await self._etags(key, deletes)
        operations: list[tuple[Any, ...]] = []
        for change in changes:
            name = change.sort.hex()
            condition = {"filter_predicate": items.is_at(change.expect)}
            if type(change) is Put:
                parts = pieces.get(change.sort, ())
                if change.expect == ABSENT:
                    operations.append(("create", (items.item(key, change, mark, parts),)))
                else:
                    operations.append(("patch", (name, items.patch(change, mark, parts)), condition))
            elif etags:
                operations.append(("delete", (name,), {"if_match_etag": etags[name]}))
            else:
                operations.append(("patch", (name, [{"op": "set", "path": "/w", "value": mark}]), condition))
                operations.append(("delete", (name,)))
        done = await self._calls.make(
            # The client takes what belongs to an operation out of it, so each try gets its own.
            lambda sent: self._container.execute_item_batch(
                [(*each[:2], *(dict(more) for more in each[2:])) for each in operations],
                partition_key=key,
                raw_request_hook=sent,
            )
        )
        for operation, result in zip(operations, done, strict=True):
            if operation[0] == "patch":
                deleted = len(operation[1][1]) == 1
                former += _named(result.get("resourceBody") or {}, "c" if deleted else "o")
        return former

    async def _etags(self, key: str, deletes: Sequence[Delete]) -> tuple[dict[str, str], list[str]]:
        names = [change.sort.hex() for change in deletes]
        found = {each["id"]: each for each in await self._select(_ETAGS, {"@ids": names}, limit=len(names), key=key)}
        former: list[str] = []
        for change in deletes:
            lies = found.get(change.sort.hex())
            if lies is None or lies["r"] != change.expect:
                raise ConditionFailed
            former += _named(lies, "c")
        return {name: each["_etag"] for name, each in found.items()}, former

    async def _was_ours(self, key: str, changes: Sequence[Change], puts: Sequence[Put], mark: str) -> bool:
        """Whether a write that left twice and was refused had been done at its first arrival.

        Raises ``StoreUnreachable`` where that cannot be known any more.
        """
        if puts:
            lies = await self._read(key, puts[0].sort.hex())
            if lies is not None and lies["w"] == mark:
                return True
            if lies is not None and lies["r"] <= puts[0].expect + 1:
                return False
            if lies is None and puts[0].expect == ABSENT:
                return False
            raise StoreUnreachable
        for change in changes:
            if await self._read(key, change.sort.hex()) is not None:
                # A batch is done whole: what still lies there was not deleted with the rest.
                return False
        raise StoreUnreachable

    # --- pieces -----------------------------------------------------------------------------------------------

    async def _put_pieces(self, key: str, pieces: Sequence[items.Piece]) -> None:
        for piece in pieces:
            try:
                await self._calls.make(partial(self._create, items.piece_item(key, piece)))
            except Conflicted as conflict:
                # Its name is random: only its own first arrival can lie there.
                if conflict.status != 409:
                    raise StoreUnreachable from conflict

    async def _remove_pieces(self, key: str, names: Sequence[str]) -> None:
        """Remove pieces that nothing names. What stays for want of an answer harms nobody; it goes with the room."""
        for name in names:
            try:
                await self._calls.make(partial(self._remove, key, name))
            except (Conflicted, NagayaError):
                continue

    async def _create(self, body: dict[str, Any], sent: Sent) -> None:
        # Nothing of the answer is needed, and the body need not come back.
        await self._container.create_item(body, no_response=True, raw_request_hook=sent)

    async def _remove(self, key: str, name: str, sent: Sent) -> None:
        await self._container.delete_item(name, partition_key=key, raw_request_hook=sent)


def _inline(found: dict[str, Any]) -> Row:
    return Row(bytes.fromhex(found["sk"]), found["r"], a2b_base64(found["b"]))


def _named(found: dict[str, Any], field: str) -> list[str]:
    name = found.get(field)
    return [] if name is None else items.piece_ids(name)
