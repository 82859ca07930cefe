"""The line to a DynamoDB table that servers share: made ready once, a deadline for every question, rest while away."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any, Final

import structlog

from nagaya.adapters import Surroundings
from nagaya.clouds.aws import AwsAccount, url_parts
from nagaya.clouds.aws_errors import AwsRefusal, Trouble
from nagaya.errors import CacheUnreachable, InvalidValue, NagayaError, RegionRefused, SettingsInvalid
from nagaya.kernel.breaker import Breaker
from nagaya.kernel.deadline import within

DEADLINE_S: Final = 2.0
TABLE_S: Final = 60.0
"""How long a table may take to be made."""

NAME: Final = "pk"
ENDS: Final = "ends"
"""The attribute by which DynamoDB removes what has ended: Unix seconds."""

_TABLE: Final = re.compile(r"[A-Za-z0-9_.-]{3,255}")
_POLL_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 0.5
_SCHEMA: Final[dict[str, Any]] = {
    "KeySchema": [{"AttributeName": NAME, "KeyType": "HASH"}],
    "AttributeDefinitions": [{"AttributeName": NAME, "AttributeType": "S"}],
    "BillingMode": "PAY_PER_REQUEST",
}
_KEEPS_TIME: Final = ("ENABLED", "ENABLING")

_log = structlog.get_logger(__name__)

Item = dict[str, dict[str, Any]]


class DynamoLine:
    """A table at ``dynamodb://REGION/TABLE`` in the platform's own account, for what its servers share.

    Nothing is asked before the first question. A table that is missing is made then (on-demand capacity, removal of
    what has ended); one that was made beforehand is used as it is. To be used in one event loop. Raises
    ``SettingsInvalid``.
    """

    def __init__(self, url: str, surroundings: Surroundings, *, deadline_s: float | None = None) -> None:
        self.region, self.table = _parts(url)
        self.clock = surroundings.clock
        try:
            self._account = AwsAccount.of_platform(surroundings, self.region)
        except RegionRefused:
            raise _refuse("its region is none of AWS's") from None
        self._deadline_s = DEADLINE_S if deadline_s is None else deadline_s
        self._breaker = Breaker(surroundings.clock, failures=3, rest_s=0.5, longest_rest_s=5.0)
        self._preparing: asyncio.Task[Any] | None = None
        self._failing = False

    async def get(self, *names: str) -> tuple[dict[str, Item], int]:
        """The items with these names that there are, as they are now, and the server's own time in Unix seconds.
        Raises ``CacheUnreachable``."""
        found: dict[str, Item] = {}
        left: dict[str, Any] = {self.table: {"Keys": [key(name) for name in names], "ConsistentRead": True}}
        pause_s = 0.05
        while True:
            answer = await self._ask("batch_get_item", RequestItems=left)
            found |= {item[NAME]["S"]: item for item in answer.get("Responses", {}).get(self.table, ())}
            left = answer.get("UnprocessedKeys") or {}
            if not left:
                return found, self._time_of(answer)
            if pause_s > _LONGEST_PAUSE_S:
                raise CacheUnreachable
            await asyncio.sleep(pause_s)
            pause_s *= 2

    async def put(self, item: Item, **condition: Any) -> None:
        """Keep an item. Raises ``CacheUnreachable``, and ``AwsRefusal`` where the condition does not hold."""
        await self._ask("put_item", TableName=self.table, Item=item, **condition)

    async def update(self, name: str, **change: Any) -> Item:
        """Change an item; gives all of it. Raises as :meth:`put`."""
        answer = await self._ask("update_item", TableName=self.table, Key=key(name), ReturnValues="ALL_NEW", **change)
        item: Item = answer["Attributes"]
        return item

    async def delete(self, name: str) -> None:
        """Remove an item. One that is not there is no error. Raises ``CacheUnreachable``."""
        await self._ask("delete_item", TableName=self.table, Key=key(name))

    def start(self) -> None:
        """Begin to make the table ready, so that the first question need not wait for it."""
        self._begin()

    async def close(self) -> None:
        """Close every connection. May be repeated."""
        preparing, self._preparing = self._preparing, None
        if preparing is not None:
            preparing.cancel()
            await asyncio.gather(preparing, return_exceptions=True)
        await self._account.close()

    # --- inside ---

    async def _ask(self, operation: str, **request: Any) -> dict[str, Any]:
        if not self._breaker.admit():
            raise CacheUnreachable
        try:
            answer = await within(self._deadline_s, self._send(operation, request))
        except AwsRefusal as refusal:
            if refusal.trouble is Trouble.CONDITION:
                self._answers()
                raise
            if refusal.trouble is Trouble.MISSING:
                self._preparing = None  # removed by somebody: the next question makes it anew
            raise self._away(refusal.trouble.value) from refusal
        except NagayaError as failed:
            # Such as a missing permission, which its message names.
            raise self._away(failed.code, str(failed)) from failed
        except (OSError, TimeoutError) as failed:
            raise self._away(type(failed).__name__) from failed
        except BaseException:
            self._breaker.undecided()
            raise
        self._answers()
        return answer

    async def _send(self, operation: str, request: dict[str, Any]) -> dict[str, Any]:
        client = await asyncio.shield(self._begin())
        return await self._call(getattr(client, operation), **request)

    async def _call(self, operation: Any, **request: Any) -> dict[str, Any]:
        return await self._account.call(operation, deadline_s=self._deadline_s, unreachable=CacheUnreachable, **request)

    def _answers(self) -> None:
        self._breaker.succeeded()
        if self._failing:
            self._failing = False
            _log.info("the shared cache answers again", action="dynamodb.back")

    def _away(self, kind: str, detail: str = "") -> CacheUnreachable:
        self._breaker.failed()
        if not self._failing:
            self._failing = True
            _log.warning("the shared cache is away", action="dynamodb.away", kind=kind, detail=detail)
        return CacheUnreachable()

    def _time_of(self, answer: dict[str, Any]) -> int:
        """The moment of an answer by the server's own clock, so that servers whose clocks differ agree."""
        said = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
        with contextlib.suppress(ValueError):
            return int(parsedate_to_datetime(said).timestamp())
        return self.clock.now_us() // 1_000_000

    # --- the table ---

    def _begin(self) -> asyncio.Task[Any]:
        task = self._preparing
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._preparing = asyncio.get_running_loop().create_task(self._prepare(), name="shared-cache-table")
            task.add_done_callback(_looked_at)
        return task

    async def _prepare(self) -> Any:
        """The client, once the table is there."""
        client = await self._account.client("dynamodb", read_timeout=self._deadline_s)
        ends_s = time.monotonic() + TABLE_S
        while (status := await self._status(client)) not in ("ACTIVE", "UPDATING"):
            if status is None:
                with contextlib.suppress(_Exists):
                    await self._make(client)
            elif time.monotonic() > ends_s:
                raise CacheUnreachable
            else:
                await asyncio.sleep(_POLL_S)
        try:
            kept = await self._keep_time(client)
            reason = "its attribute of time to live is another one"
        except (NagayaError, AwsRefusal) as failed:
            kept, reason = False, str(failed)
        if not kept:
            # Nothing that has ended is ever served; it only costs the account its storage.
            _log.warning("what has ended stays in the table", action="dynamodb.no_ttl", reason=reason)
        return client

    async def _status(self, client: Any) -> str | None:
        try:
            found = (await self._call(client.describe_table, TableName=self.table))["Table"]
        except AwsRefusal as refusal:
            if refusal.trouble is Trouble.MISSING:
                return None
            raise
        if [(each["AttributeName"], each["KeyType"]) for each in found["KeySchema"]] != [(NAME, "HASH")]:
            raise _refuse(f"the table {self.table} was made for something else: its only key is {NAME}, a text")
        status: str = found["TableStatus"]
        return status

    async def _make(self, client: Any) -> None:
        try:
            await self._call(client.create_table, TableName=self.table, **_SCHEMA)
        except AwsRefusal as refusal:
            if refusal.trouble is not Trouble.EXISTS:
                raise
            raise _Exists from refusal

    async def _keep_time(self, client: Any) -> bool:
        """Whether DynamoDB removes what has ended; asked to where it does not."""
        if (found := await self._time_to_live(client)).get("TimeToLiveStatus") in _KEEPS_TIME:
            return found.get("AttributeName") == ENDS
        wanted = {"Enabled": True, "AttributeName": ENDS}
        try:
            await self._call(client.update_time_to_live, TableName=self.table, TimeToLiveSpecification=wanted)
        except AwsRefusal:
            # Another server was first, or another attribute was.
            return (await self._time_to_live(client)).get("AttributeName") == ENDS
        return True

    async def _time_to_live(self, client: Any) -> dict[str, Any]:
        answer = await self._call(client.describe_time_to_live, TableName=self.table)
        found: dict[str, Any] = answer.get("TimeToLiveDescription") or {}
        return found


class _Exists(Exception):
    """Another server is making the table."""


def key(name: str) -> Item:
    """The key of an item by its name."""
    return {NAME: {"S": name}}


def _looked_at(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # whoever asks hears of it; where nobody does, the next question begins anew


def _parts(url: str) -> tuple[str, str]:
    try:
        place, _ = url_parts(url, "dynamodb", known=frozenset())
    except InvalidValue:
        raise _refuse("it takes no options: dynamodb://REGION/TABLE") from None
    region, _, table = place.partition("/")
    if not _TABLE.fullmatch(table):
        raise _refuse("it is dynamodb://REGION/TABLE, a table's name of A-Z a-z 0-9 _ . -")
    return region, table


def _refuse(problem: str) -> SettingsInvalid:
    return SettingsInvalid(name="redis", problem=problem)
