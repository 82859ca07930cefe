"""Which store, key service, blob store and connection secrets a tenant has, by the URLs in its configuration."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from nagaya.adapters import Opener, Surroundings, find
from nagaya.blobs.blob_store import Blobs
from nagaya.blobs.driver import BlobHouse
from nagaya.errors import BlobsUnreachable, InvalidValue, NoBlobStore, RegionRefused, StoreUnreachable
from nagaya.kernel.breaker import Breaker
from nagaya.kernel.clock import Clock
from nagaya.kernel.egress import EgressPolicy
from nagaya.keys.driver import KeyDriver
from nagaya.models.opening import try_model
from nagaya.secrets.driver import SecretDriver
from nagaya.settings import Settings
from nagaya.stores.driver import StoreHouse
from nagaya.stores.guarded import GuardedStore
from nagaya.stores.store import Store
from nagaya.tenancy.tenant import Tenant

STORES: Final[dict[str, tuple[str, str | None]]] = {
    "postgresql": ("nagaya.stores.postgres:open_house", "postgres"),
    "dynamodb": ("nagaya.stores.dynamodb:open_house", "aws"),
    "cosmos": ("nagaya.stores.cosmos:open_house", "azure"),
}
KEYS: Final[dict[str, tuple[str, str | None]]] = {
    "awskms": ("nagaya.keys.awskms:open_keys", "aws"),
    "azurekeys": ("nagaya.keys.azurekeys:open_keys", "azure"),
}
BLOBS: Final[dict[str, tuple[str, str | None]]] = {
    "file": ("nagaya.blobs.filesystem:open_house", None),
    "s3": ("nagaya.blobs.s3:open_house", "aws"),
    "azblob": ("nagaya.blobs.azblob:open_house", "azure"),
}
SECRETS: Final[dict[str, tuple[str, str | None]]] = {
    "awssecrets": ("nagaya.secrets.aws:open_secrets", "aws"),
    "azuresecrets": ("nagaya.secrets.azure:open_secrets", "azure"),
}

OPEN_SECRETS: Final = 64
"""Rooms whose secrets at a cloud stay open: each has a client of its own."""

SECRETS_S: Final = 120.0
"""How long others stay open for who has just been given them: more than a few calls take."""

PLATFORM_ROOM: Final = "_platform"
LOCAL_KEYS: Final = "local://"

_EMBEDDED_STORE: Final = "sqlite:///tenants"
_PROBE: Final = "probe/connection"

ConnectionSecret = Callable[[str, str], Awaitable[bytes | None]]
"""One of a room's connection secrets: (room, short name) → value."""


def is_embedded(url: str) -> bool:
    """Whether a store address means the data folder's own SQLite files."""
    return url.startswith("sqlite://")


def without_credentials(url: str) -> str:
    """The URL as it may be kept and shown: without user and password."""
    scheme, slashes, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{place.rpartition('@')[2]}{slash}{path}"


class OpenSecrets(SecretDriver, Protocol):
    """Secrets with something to let go of."""

    async def close(self) -> None: ...


async def _close_later(secrets: OpenSecrets) -> None:
    await asyncio.sleep(SECRETS_S)
    await secrets.close()


async def _once(piece: bytes) -> AsyncIterator[bytes]:
    yield piece


async def _probe_blobs(blobs: Blobs) -> None:
    """Through the portable class: a vendor that hangs must not hang the operator."""
    try:
        await blobs.put("probe", _once(b"probe"))
        async with aclosing(blobs.read("probe")) as pieces:
            if b"".join([piece async for piece in pieces]) != b"probe":
                raise BlobsUnreachable
        await blobs.delete("probe")
    finally:
        await blobs.close()


class Resources:
    """Opens what tenants bring. What is embedded is shared and stays open; the rest is opened for one room."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        egress: EgressPolicy,
        house: StoreHouse,
        keys: KeyDriver,
        connection_secret: ConnectionSecret,
        forget: Callable[[str], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._egress = egress
        self._house = house
        self._keys = keys
        self._connection_secret = connection_secret
        self._forget = forget
        self._closing = AsyncExitStack()
        self._secrets: OrderedDict[str, OpenSecrets] = OrderedDict()
        self._leaving: dict[asyncio.Task[None], OpenSecrets] = {}
        self._openers: dict[tuple[str, str], Opener] = {}
        self._own_blobs: BlobHouse | None = None
        self._opening_blobs = asyncio.Lock()

    def surroundings(self, room: str, regions: tuple[str, ...] = (), parent: str | None = None) -> Surroundings:
        """What an adapter of this room may know. A workspace without an account of its own uses its tenant's."""

        async def secret(name: str) -> bytes | None:
            own = await self._connection_secret(room, name)
            return own if own is not None or parent is None else await self._connection_secret(parent, name)

        return Surroundings(self._settings, self._clock, self._egress, room, regions, secret)

    def surroundings_of(self, tenant: Tenant) -> Surroundings:
        """What an adapter of this tenant or workspace may know."""
        return self.surroundings(tenant.id, tenant.regions, tenant.parent)

    async def open_store_house(self, tenant: Tenant) -> StoreHouse:
        """The house that the tenant's store lies in; to be closed by the caller unless it is the embedded one."""
        if is_embedded(tenant.store):
            self.check_here(tenant)
            return self._house
        own = self._settings.default_store
        if tenant.store != without_credentials(own):
            house: StoreHouse = await self._open("stores", tenant.store, STORES, tenant)
            return house
        # The platform's own store for tenants that bring none: its password is in the settings, not in the registry,
        # and it may lie inside the network without every tenant's addresses being let there.
        inside = EgressPolicy((*self._settings.allowed_hosts, urlsplit(own).hostname or "localhost"))
        surroundings = replace(self.surroundings_of(tenant), egress=inside)
        house = await (await self._find("stores", own, STORES))(own, surroundings)
        return house

    @asynccontextmanager
    async def store_house(self, tenant: Tenant) -> AsyncIterator[StoreHouse]:
        """The house for the length of one piece of work."""
        house = await self.open_store_house(tenant)
        try:
            yield house
        finally:
            if house is not self._house:
                await house.close()

    async def open_store(self, house: StoreHouse, room: str) -> Store:
        """A room's store behind its limits; one in somebody else's hands behind a breaker too."""
        driver = await house.open(room)
        deadline_s = self._settings.store_deadline_s
        if house is self._house:
            return Store(driver, deadline_s=deadline_s)
        return GuardedStore(driver, Breaker(self._clock), deadline_s=deadline_s)

    def is_shared_house(self, house: StoreHouse) -> bool:
        """Whether the house is the embedded one, which stays open."""
        return house is self._house

    async def open_keys(self, tenant: Tenant) -> KeyDriver:
        """The tenant's key service; to be closed by the caller unless it is the platform's own."""
        if tenant.key_service == LOCAL_KEYS:
            self.check_here(tenant)
            return self._keys
        keys: KeyDriver = await self._open("keys", tenant.key_service, KEYS, tenant)
        return keys

    @asynccontextmanager
    async def keys(self, tenant: Tenant) -> AsyncIterator[KeyDriver]:
        """The key service for the length of one piece of work."""
        keys = await self.open_keys(tenant)
        try:
            yield keys
        finally:
            if keys is not self._keys:
                await keys.close()

    def are_shared_keys(self, keys: KeyDriver) -> bool:
        """Whether the key service is the platform's own, which stays open."""
        return keys is self._keys

    def has_blobs(self, tenant: Tenant) -> bool:
        """Whether the tenant has a place for blobs: its own, or the platform's."""
        if tenant.blobs is not None:
            return True
        here = not tenant.regions or self._settings.region in tenant.regions
        return here and self._platforms_blobs() is not None

    async def open_blob_house(self, tenant: Tenant) -> BlobHouse:
        """The house that the tenant's blobs lie in; to be closed by the caller unless it is the platform's own.
        Raises ``NoBlobStore`` where there is none."""
        if tenant.blobs is not None:
            if tenant.blobs.startswith("file://"):
                self.check_here(tenant)
            house: BlobHouse = await self._open("blobs", tenant.blobs, BLOBS, tenant)
            return house
        url = self._platforms_blobs()
        if url is None:
            raise NoBlobStore
        self.check_here(tenant)
        async with self._opening_blobs:
            if self._own_blobs is None:
                self._own_blobs = await self._open_platforms("blobs", url, BLOBS)
                self._closing.push_async_callback(self._own_blobs.close)
        return self._own_blobs

    def is_shared_blob_house(self, house: BlobHouse) -> bool:
        """Whether the house is the platform's own, which stays open."""
        return house is self._own_blobs

    @asynccontextmanager
    async def blob_house(self, tenant: Tenant) -> AsyncIterator[BlobHouse]:
        """The tenant's blob house for the length of one piece of work. Raises ``NoBlobStore`` where there is none."""
        house = await self.open_blob_house(tenant)
        try:
            yield house
        finally:
            if not self.is_shared_blob_house(house):
                await house.close()

    def _platforms_blobs(self) -> str | None:
        settings = self._settings
        if settings.default_blobs is None and settings.registry is None:
            return (settings.folder / "blobs").as_uri()
        return settings.default_blobs

    def check_here(self, tenant: Tenant) -> None:
        """Raise ``RegionRefused`` where the tenant is pinned and this platform is not known to lie in its regions."""
        self.check_region_here(tenant.regions)

    def check_region_here(self, regions: Sequence[str]) -> None:
        """As :meth:`check_here`, for a pin that no tenant has yet."""
        here = self._settings.region
        if regions and here not in regions:
            raise RegionRefused(region=here or "unknown", allowed=", ".join(regions))

    async def forget(self, tenant: Tenant) -> None:
        """Delete the tenant's connection secrets, its ExternalId included. May be repeated."""
        await self._forget(tenant.id)

    async def probe(self, tenant: Tenant) -> None:
        """Open what the tenant brought and use it as the work will: write, read and remove a record and a blob.

        Raises the adapter's own error, which says what is missing. Leaves nothing behind. What is embedded needs no
        trial: it is the platform's own.
        """
        if is_embedded(tenant.store) and tenant.store not in (_EMBEDDED_STORE, self._settings.default_store):
            # Another folder would be believed, and the records would lie in the data folder all the same.
            raise InvalidValue(param="store", at="store", detail=f"the data folder's own store is {_EMBEDDED_STORE}")
        for queue in self._settings.queues:
            if queue.tenant == tenant.id and tenant.regions and queue.region not in tenant.regions:
                raise RegionRefused(region=queue.region, allowed=", ".join(tenant.regions))
        async with self.keys(tenant):
            pass
        async with self.store_house(tenant) as house:
            if house is not self._house:
                await self._probe_store(await self.open_store(house, tenant.id))
        if tenant.blobs is not None:
            async with self.blob_house(tenant) as blob_house:
                await _probe_blobs(Blobs(await blob_house.open(tenant.id)))

    async def try_models(self, tenant: Tenant, urls: Sequence[str]) -> None:
        """Ask the tenant's models for a word, as far as their accounts are known already. Raises the adapter's own
        error, which says what is missing."""
        for url in urls:
            await try_model(url, self.surroundings(tenant.id, tenant.regions))

    async def _probe_store(self, store: Store) -> None:
        try:
            await store.put(_PROBE, b"probe", b"probe")
            row = await store.get(_PROBE, b"probe")
            if row is None or row.body != b"probe":
                raise StoreUnreachable
            await store.query(_PROBE, limit=1)
            await store.delete(_PROBE, b"probe", row.revision)
        finally:
            await store.close()

    # --- the platform's own ---

    async def platform_house(self) -> StoreHouse:
        """The house of the platform's own room. Stays open until ``close``."""
        url = self._settings.platform_store
        if url is None:
            return self._house
        house: StoreHouse = await self._open_platforms("stores", url, STORES)
        self._closing.push_async_callback(house.close)
        return house

    async def platform_keys(self) -> KeyDriver:
        """The key service of the platform's own room, and of tenants that bring none. Stays open until ``close``."""
        url = self._settings.platform_keys
        if url != LOCAL_KEYS:
            self._keys = await self._open_platforms("keys", url, KEYS)
            self._closing.push_async_callback(self._keys.close)
        return self._keys

    async def secrets_of(self, room: str, url: str) -> SecretDriver:
        """A room's secrets in the platform's account at a cloud, by the guide's names.

        Those of the rooms asked for last stay open until ``close``; the others are closed after ``SECRETS_S``, so use
        them at once.
        """
        found = self._secrets.get(room)
        if found is None:
            opener = await self._find("secrets", url, SECRETS)
            opened: OpenSecrets = await opener(url, self.surroundings(room))
            found = self._secrets.setdefault(room, opened)
            if found is not opened:
                await opened.close()
        self._secrets.move_to_end(room)
        while len(self._secrets) > OPEN_SECRETS:
            self._leave(self._secrets.popitem(last=False)[1])
        return found

    def _leave(self, secrets: OpenSecrets) -> None:
        closing = asyncio.ensure_future(_close_later(secrets))
        self._leaving[closing] = secrets
        closing.add_done_callback(self._leaving.pop)

    async def close(self) -> None:
        """Close what was opened for the platform itself."""
        leaving = dict(self._leaving)
        for closing in leaving:
            closing.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        async with self._closing:
            for secrets in (*leaving.values(), *self._secrets.values()):
                self._closing.push_async_callback(secrets.close)
            self._secrets.clear()

    async def _open(self, port: str, url: str, builtin: dict[str, tuple[str, str | None]], tenant: Tenant) -> Any:
        return await (await self._find(port, url, builtin))(url, self.surroundings_of(tenant))

    async def _open_platforms(self, port: str, url: str, builtin: dict[str, tuple[str, str | None]]) -> Any:
        return await (await self._find(port, url, builtin))(url, self.surroundings(PLATFORM_ROOM))

    async def _find(self, port: str, url: str, builtin: dict[str, tuple[str, str | None]]) -> Opener:
        known = port, url.partition("://")[0]
        if known not in self._openers:
            # In a thread: a vendor's package takes a second, which every other tenant would wait for.
            self._openers[known] = await asyncio.to_thread(find, port, url, builtin)
        return self._openers[known]
