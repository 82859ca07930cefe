"""Stores in Azure Cosmos DB: ``cosmos://account/database[?container=NAME&shared=true&consistency=session]``.

Each room has a container of its own (``NAME-room``), or all rooms share one (``shared=true``), told apart by the
partition key, which begins with the room and is passed with every call. A marker item says that a room exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from azure.cosmos import DatabaseAccount, PartitionKey
from azure.cosmos.aio import ContainerProxy, CosmosClient, DatabaseProxy
from azure.cosmos.documents import ConnectionPolicy

from nagaya.adapters import Surroundings
from nagaya.clouds.azure import CONNECT_S, AzureAccount
from nagaya.errors import InvalidValue, PermissionMissing, StoreDamaged, TenantExists
from nagaya.stores import cosmos_items as items
from nagaya.stores.cosmos_calls import Calls, Conflicted, Sent
from nagaya.stores.cosmos_room import CosmosStore
from nagaya.stores.driver import MAX_BATCH
from nagaya.stores.rooms import check_room

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,150}")
_OPTIONS: Final = frozenset({"container", "shared", "consistency"})
_STRONG: Final = frozenset({"strong", "boundedstaleness"})
_MARKER: Final = "~room"
_SUM: Final = "SELECT VALUE SUM(c.n) FROM c WHERE c.pk > @after AND c.pk < @before"
_ALL: Final = "SELECT c.pk, c.id FROM c WHERE c.pk > @after AND c.pk < @before"
INDEXING: Final[dict[str, Any]] = {
    "indexingMode": "consistent",
    "automatic": True,
    "includedPaths": [{"path": "/pk/?"}, {"path": "/sk/?"}],
    "excludedPaths": [{"path": "/*"}],
    "compositeIndexes": [[{"path": "/pk", "order": "ascending"}, {"path": "/sk", "order": "ascending"}]],
}
"""What a container has to index. Everything else would cost request units and serve nobody."""


async def open_house(url: str, surroundings: Surroundings) -> CosmosHouse:
    """The house at ``url``. Asks Azure nothing yet. Raises ``InvalidValue``, ``AddressRefused``,
    ``ConnectionSecretInvalid``."""
    parts = urlsplit(url)
    given = parse_qsl(parts.query, keep_blank_values=True)
    options = dict(given)
    if len(options) != len(given) or not options.keys() <= _OPTIONS or parts.fragment:
        raise InvalidValue(at="store", detail=f"cosmos:// takes {', '.join(sorted(_OPTIONS))}, each once")
    if options.get("shared", "false") not in ("true", "false") or options.get("consistency", "session") != "session":
        raise InvalidValue(at="store", detail="shared is true or false; consistency may only be session")
    account = await AzureAccount.open(surroundings)
    try:
        return CosmosHouse(
            account,
            name=parts.netloc,
            database=parts.path.strip("/"),
            container=options.get("container", "nagaya"),
            shared=options.get("shared") == "true",
            weak="consistency" in options,
            deadline_s=surroundings.settings.store_deadline_s,
        )
    except BaseException:
        await account.close()
        raise


class CosmosHouse:
    """It implements :class:`nagaya.stores.driver.StoreHouse`. ``account`` becomes its own and is closed with it.

    ``weak`` accepts an account of a consistency below bounded staleness: then only one server may use the room, for
    another may read what was written a moment ago late.
    """

    def __init__(
        self,
        account: AzureAccount,
        *,
        name: str,
        database: str,
        container: str = "nagaya",
        shared: bool = False,
        weak: bool = False,
        deadline_s: float = 10.0,
    ) -> None:
        secret = account.connection
        self._account = account
        self._endpoint = account.endpoint(name, ".documents.azure.com", given=secret.cosmos_endpoint if secret else "")
        self._database_name = database or (secret.database_name if secret else "")
        for at, value in (("database", self._database_name), ("container", container)):
            if not _NAME.fullmatch(value):
                raise InvalidValue(at="store", detail=f"the {at} needs a name of letters, digits, '-', '_' and '.'")
        self._container_name = container
        self._shared = shared
        self._weak = weak
        self._deadline_s = deadline_s
        self._place = f"cosmos://{name}/{self._database_name}"
        # Below the caller's own deadline, so that what failed is said and not only that it was late.
        self._calls = Calls(account, deadline_s * 0.8, self._place)
        self._client: CosmosClient | None = None
        self._opening = asyncio.Lock()

    async def create(self, room: str) -> None:
        name = self._name(room)
        database = await self._database()
        container = database.get_container_client(name)
        await self._make_container(database, container, name)
        marker = {"id": _MARKER, "pk": f"{room}#", "state": "open", "w": os.urandom(12).hex()}
        try:
            await self._calls.make(lambda sent: container.create_item(marker, no_response=True, raw_request_hook=sent))
        except Conflicted as conflict:
            # A marker that had to be sent again may have met its own first arrival.
            lies = await self._marker(container, room) if conflict.sent > 1 else None
            if lies is None or lies.get("w") != marker["w"]:
                raise TenantExists(value=room) from None

    async def open(self, room: str) -> CosmosStore:
        name = self._name(room)
        container = (await self._database()).get_container_client(name)
        if not _is_open(await self._marker(container, room)):
            raise StoreDamaged(place=f"{self._place}: {room}")
        return CosmosStore(container, room, self._calls)

    async def exists(self, room: str) -> bool:
        """Whether the room was made and is not being destroyed."""
        container = (await self._database()).get_container_client(self._name(room))
        return _is_open(await self._marker(container, room))

    async def destroy(self, room: str) -> None:
        name = self._name(room)
        database = await self._database()
        container = database.get_container_client(name)
        if await self._marker(container, room) is None:
            return
        # From here on it does not open, though the rest should take a second attempt.
        closing = [{"op": "set", "path": "/state", "value": "closing"}]
        await self._gone_is_fine(
            lambda sent: container.patch_item(
                _MARKER, partition_key=f"{room}#", patch_operations=closing, raw_request_hook=sent
            )
        )
        if not self._shared and await self._delete_container(database, name):
            return
        await self._empty(container, room)
        await self._gone_is_fine(
            lambda sent: container.delete_item(_MARKER, partition_key=f"{room}#", raw_request_hook=sent)
        )

    async def size_bytes(self, room: str) -> int:
        container = (await self._database()).get_container_client(self._name(room))
        if await self._marker(container, room) is None:
            return 0
        found = await self._calls.make(partial(_values, container, _SUM, room))
        return sum(int(value) for value in found if value is not None)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        await self._account.close()

    # --- the account ------------------------------------------------------------------------------------------

    def _name(self, room: str) -> str:
        check_room(room)
        return self._container_name if self._shared else f"{self._container_name}-{room}"

    async def _database(self) -> DatabaseProxy:
        if self._client is None:
            async with self._opening:
                if self._client is None:
                    self._client = await self._connect()
        return self._client.get_database_client(self._database_name)

    async def _connect(self) -> CosmosClient:
        secret = self._account.connection
        by_key = secret is not None and not secret.has_principal
        credential: Any = secret.cosmos_key if secret and by_key else await self._account.credential()
        # The client would send again what may have been done, and wait longer than anybody here waits.
        policy = ConnectionPolicy()
        policy.RetryOptions = type(policy.RetryOptions)(max_retry_attempt_count=0)
        client = CosmosClient(
            self._endpoint,
            credential,
            connection_policy=policy,
            transport=self._account.transport,
            connection_timeout=CONNECT_S,
            read_timeout=self._deadline_s * 0.4,
            enable_endpoint_discovery=False,
            retry_total=0,
            retry_connect=0,
            retry_read=0,
            retry_status=0,
        )
        try:
            await self._calls.make(partial(_enter, client))
            self._check(await self._calls.make(lambda sent: client._get_database_account()))
            # The client has begun to look at the endpoint by itself. Cancelled in a TLS handshake, that would leave a
            # socket behind, so a house that is closed at once lets it end first.
            looking = client.client_connection._global_endpoint_manager.refresh_task
            if looking is not None:
                await asyncio.wait([looking], timeout=CONNECT_S)
        except BaseException:
            await client.close()
            raise
        return client

    def _check(self, account: DatabaseAccount) -> None:
        """Refuse an account that could not keep the store's promises, or lies where it may not."""
        if account._EnableMultipleWritableLocations or len(account.WritableLocations) > 1:
            raise InvalidValue(at="store", detail="an account with several write regions cannot hold conditions")
        level = str((account.ConsistencyPolicy or {}).get("defaultConsistencyLevel", "")).lower()
        if level not in _STRONG and not self._weak:
            detail = "the account's default consistency must be Strong or BoundedStaleness, or say consistency=session"
            raise InvalidValue(at="store", detail=detail)
        places = [*account.WritableLocations, *account.ReadableLocations]
        self._account.check_region(*(place.get("name", "") for place in places))

    # --- containers -------------------------------------------------------------------------------------------

    async def _make_container(self, database: DatabaseProxy, container: ContainerProxy, name: str) -> None:
        """Make the container where it is not there. Sign-in by Entra ID cannot: then it has to be there already."""
        try:
            found: dict[str, Any] = await self._calls.make(lambda sent: container.read(raw_request_hook=sent))
        except (StoreDamaged, Conflicted):
            try:
                _, found = await self._calls.make(
                    lambda sent: database.create_container(
                        name,
                        PartitionKey("/pk"),
                        indexing_policy=INDEXING,
                        raw_request_hook=sent,
                        return_properties=True,
                    )
                )
            except Conflicted as conflict:
                if conflict.status != 409:
                    detail = f"the account has no database '{self._database_name}'; make it there"
                    raise InvalidValue(at="store", detail=detail) from None
                # Another was first.
                found = await self._calls.make(lambda sent: container.read(raw_request_hook=sent))
            except PermissionMissing:
                action = f"making container '{name}' (make it there first, as docs/howto/azure.md says)"
                raise PermissionMissing(room=self._account.room, action=action) from None
        if found["partitionKey"]["paths"] != ["/pk"] or not _has_order(found.get("indexingPolicy", {})):
            detail = f"container '{name}' needs partition key /pk and a composite index on /pk and /sk"
            raise InvalidValue(at="store", detail=detail)

    async def _marker(self, container: ContainerProxy, room: str) -> dict[str, Any] | None:
        try:
            return await self._calls.make(
                lambda sent: container.read_item(_MARKER, partition_key=f"{room}#", raw_request_hook=sent)
            )
        except (Conflicted, StoreDamaged):
            return None

    async def _delete_container(self, database: DatabaseProxy, name: str) -> bool:
        try:
            await self._gone_is_fine(lambda sent: database.delete_container(name, raw_request_hook=sent))
        except PermissionMissing:
            # As a sign-in by Entra ID cannot make one, it cannot remove one either.
            return False
        return True

    async def _empty(self, container: ContainerProxy, room: str) -> None:
        """Remove every item of the room but its marker, batch by batch in each partition."""
        partitions: dict[str, list[str]] = {}
        for each in await self._calls.make(partial(_values, container, _ALL, room)):
            partitions.setdefault(each["pk"], []).append(each["id"])
        for key, names in partitions.items():
            for start in range(0, len(names), MAX_BATCH):
                await self._delete(container, key, names[start : start + MAX_BATCH])

    async def _delete(self, container: ContainerProxy, key: str, names: list[str]) -> None:
        try:
            await self._calls.make(
                lambda sent: container.execute_item_batch(
                    [("delete", (name,)) for name in names], partition_key=key, raw_request_hook=sent
                )
            )
        except Conflicted:
            # One of them is gone already, and the batch was done whole or not at all: one by one then.
            for name in names:
                await self._gone_is_fine(partial(_delete_item, container, key, name))

    async def _gone_is_fine(self, call: Callable[[Sent], Awaitable[object]]) -> None:
        with contextlib.suppress(Conflicted, StoreDamaged):
            await self._calls.make(call)


async def _enter(client: CosmosClient, sent: Sent) -> None:
    await client.__aenter__()


async def _delete_item(container: ContainerProxy, key: str, name: str, sent: Sent) -> None:
    await container.delete_item(name, partition_key=key, raw_request_hook=sent)


async def _values(container: ContainerProxy, query: str, room: str, sent: Sent) -> list[Any]:
    parameters: list[dict[str, object]] = [
        {"name": "@after", "value": f"{room}#"},
        {"name": "@before", "value": items.room_end(room)},
    ]
    found = container.query_items(query, parameters=parameters, raw_request_hook=sent)
    return [each async for each in found]


def _is_open(marker: dict[str, Any] | None) -> bool:
    return marker is not None and marker.get("state") == "open"


def _has_order(policy: dict[str, Any]) -> bool:
    return any([path["path"] for path in index] == ["/pk", "/sk"] for index in policy.get("compositeIndexes", ()))
