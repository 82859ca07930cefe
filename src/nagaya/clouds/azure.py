"""A room's way into Azure: who it is there, and the one connection pool that the adapters of all ports share.

A tenant's own service principal comes from its secret ``azure-connection``; without that secret the machine's identity
is used (workload identity, managed identity, environment), and then only towards Azure's own names: a token of the
platform must not reach a host that somebody else chose.
"""

from __future__ import annotations

import asyncio
import functools
import re
import ssl
from collections.abc import Awaitable, Callable
from importlib import import_module
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import msgspec
from azure.core.credentials import AccessToken
from azure.core.credentials_async import AsyncTokenCredential
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.pipeline.transport import AioHttpTransport

from nagaya.adapters import Surroundings
from nagaya.clouds.resolver import CheckedResolver
from nagaya.errors import (
    AddressRefused,
    CloudCredentialsRefused,
    ConnectionSecretInvalid,
    InvalidValue,
    RegionRefused,
    SessionClosed,
)
from nagaya.kernel.clock import Clock
from nagaya.kernel.egress import EgressPolicy
from nagaya.kernel.ended import ended

SECRET: Final = "azure-connection"  # noqa: S105 - the secret's name, not a secret
PUBLIC_AUTHORITY: Final = "https://login.microsoftonline.com"
CONNECT_S: Final = 5.0
_MAX_CONNECTIONS: Final = 100
_FAILURE_S: Final = 1.0
_GOODBYE_S: Final = 0.05
_MAX_FAILURE_S: Final = 30.0
_AZURE_NAMES: Final = (
    ".documents.azure.com", ".vault.azure.net", ".managedhsm.azure.net", ".blob.core.windows.net",
    ".documents.azure.cn", ".vault.azure.cn", ".blob.core.chinacloudapi.cn",
    ".documents.azure.us", ".vault.usgovcloudapi.net", ".blob.core.usgovcloudapi.net",
)  # fmt: skip
_ENTRA_CODE: Final = re.compile(r"AADSTS\d+")
_ACCOUNT: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")


class AzureConnection(msgspec.Struct, frozen=True, kw_only=True):
    """The secret ``azure-connection``, by the guide's names. Fields that are not known are left alone.

    ``cosmos_key`` is an account key of Cosmos DB, for accounts that do not use Entra ID. ``authority`` is where tokens
    come from, for other clouds than the public one.
    """

    tenant_id: str = ""
    client_id: str = ""
    client_secret: str = ""
    cosmos_endpoint: str = ""
    cosmos_key: str = ""
    database_name: str = ""
    storage_account_name: str = ""
    authority: str = PUBLIC_AUTHORITY

    def __repr__(self) -> str:
        return f"AzureConnection(tenant_id={self.tenant_id!r}, client_id={self.client_id!r})"

    @property
    def has_principal(self) -> bool:
        return bool(self.client_id)


def read_connection(secret: bytes) -> AzureConnection:
    """The secret's contents. Raises ``ConnectionSecretInvalid``, which names what is wrong and shows no value."""
    try:
        found = msgspec.json.decode(secret, type=AzureConnection)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ConnectionSecretInvalid(name=SECRET, problem="it must be a JSON object of texts") from None
    principal = (found.tenant_id, found.client_id, found.client_secret)
    if any(principal) and not all(principal):
        raise ConnectionSecretInvalid(name=SECRET, problem="tenant_id, client_id and client_secret belong together")
    if not any(principal) and not found.cosmos_key:
        raise ConnectionSecretInvalid(name=SECRET, problem="it holds neither a service principal nor a cosmos_key")
    for name in ("authority", "cosmos_endpoint"):
        address = getattr(found, name)
        if address and (urlsplit(address).scheme != "https" or not urlsplit(address).hostname):
            raise ConnectionSecretInvalid(name=SECRET, problem=f"{name} must be an https:// address")
    return found


class AzureAccount:
    """One room's Azure account. Make it with :meth:`open`; ``close`` ends its connections and forgets its tokens.

    ``transport`` is handed to every vendor client: it connects only where the egress policy lets it, always verifies
    certificates, and is closed here and nowhere else.
    """

    def __init__(
        self, connection: AzureConnection | None, surroundings: Surroundings, *, trust: ssl.SSLContext | None = None
    ) -> None:
        self.connection = connection
        self.room = surroundings.room
        self.egress = surroundings.egress
        self.regions = surroundings.regions
        self.clock = surroundings.clock
        connector = aiohttp.TCPConnector(
            limit=_MAX_CONNECTIONS, resolver=CheckedResolver(surroundings.egress), ssl=trust or default_trust()
        )
        # No cookies, no proxy or password file of the machine's, no compressed body that unfolds in memory.
        self._session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False
        )
        self.transport = CheckedTransport(self._session, surroundings.egress)
        self._credential: SharedCredential | None = None

    @classmethod
    async def open(cls, surroundings: Surroundings) -> AzureAccount:
        """The account that the room's secret names, or the machine's own identity where there is no secret.

        Nothing is asked of Azure yet. Raises ``ConnectionSecretInvalid``.
        """
        secret = await surroundings.secret(SECRET)
        connection = None if secret is None else read_connection(secret)
        trust = await asyncio.to_thread(default_trust)
        return cls(connection, surroundings, trust=trust)

    async def credential(self) -> SharedCredential:
        """What vendor clients ask for tokens. Raises ``CloudCredentialsRefused`` where the secret has no principal."""
        if self._credential is None:
            # A third of a second on a cold process: in a thread, so that other tenants' requests go on.
            identity = await asyncio.to_thread(import_module, "azure.identity.aio")
            if self._credential is None:
                self._credential = SharedCredential(self._sign_in(identity), self.clock)
        return self._credential

    def _sign_in(self, identity: Any) -> AsyncTokenCredential:
        made: AsyncTokenCredential
        if self.connection is None:
            made = identity.DefaultAzureCredential(exclude_interactive_browser_credential=True)
        elif self.connection.has_principal:
            made = identity.ClientSecretCredential(
                self.connection.tenant_id,
                self.connection.client_id,
                self.connection.client_secret,
                authority=self.connection.authority,
                transport=self.transport,
                retry_total=1,
            )
        else:
            raise CloudCredentialsRefused(room=self.room, detail="the secret holds no service principal")
        return made

    def endpoint(self, name: str, suffix: str, *, given: str = "") -> str:
        """The https address of a resource: ``name`` is its short name, or its host (and port) where it has a dot.

        ``given`` is the address that the secret names; it must belong to that very name. Raises ``InvalidValue`` and
        ``AddressRefused``.
        """
        if given:
            host = urlsplit(given).netloc.rpartition("@")[2].lower()
            if name.lower() not in (host, host.partition(".")[0], host.partition(":")[0]):
                raise InvalidValue(at="store", detail=f"the secret's address is not that of '{name[:63]}'")
        elif "." in name or ":" in name:
            host = name.lower()
        elif _ACCOUNT.fullmatch(name):
            host = f"{name}{suffix}"
        else:
            raise InvalidValue(at="url", detail=f"'{name[:63]}' is no name of an Azure resource")
        parts = urlsplit(f"https://{host}")
        try:
            place = (parts.hostname or "", parts.port or 443)
        except ValueError:
            raise InvalidValue(at="url", detail=f"'{name[:63]}' is no name of an Azure resource") from None
        self.egress.check(*place)
        if self.connection is None and not (place[0].endswith(_AZURE_NAMES) or self.egress.allows(*place)):
            raise InvalidValue(at="url", detail=f"without the secret {SECRET} only Azure's own names can be used")
        return f"https://{host}/"

    def check_region(self, *regions: str) -> None:
        """Raise ``RegionRefused`` unless every one of ``regions`` is among those the tenant is pinned to."""
        allowed = {plain_region(region) for region in self.regions}
        for region in regions:
            if allowed and plain_region(region) not in allowed:
                raise RegionRefused(region=region or "unknown", allowed=", ".join(self.regions))

    async def close(self) -> None:
        """End connections and forget tokens; calls under way fail. May be called again."""
        if self._credential is not None:
            await self._credential.close()
        await self._session.close()
        if self.transport.gave_up:
            # A connection that was given up still says goodbye to its peer; ended before that, it leaves its socket.
            await asyncio.sleep(_GOODBYE_S)


class SharedCredential:
    """A credential that many clients ask at once: one question in flight, and none for a while after a refusal.

    It implements ``azure.core``'s ``AsyncTokenCredential``. The vendor's credential inside keeps tokens and renews them
    five minutes before they end.
    """

    def __init__(self, inner: AsyncTokenCredential, clock: Clock) -> None:
        self._inner = inner
        self._clock = clock
        self._asking: dict[tuple[object, ...], asyncio.Task[AccessToken]] = {}
        self._refused: dict[tuple[object, ...], tuple[float, float, ClientAuthenticationError]] = {}
        self._closed = False

    async def get_token(
        self, *scopes: str, claims: str | None = None, tenant_id: str | None = None, **options: Any
    ) -> AccessToken:
        """A token for ``scopes``. Raises the vendor's ``ClientAuthenticationError``; ``SessionClosed`` once closed."""
        if self._closed:
            raise SessionClosed
        key = (scopes, claims, tenant_id)
        refused = self._refused.get(key)
        if refused is not None and self._clock.monotonic_s() < refused[0]:
            raise refused[2]
        task = self._asking.get(key)
        if task is None:
            ask = functools.partial(self._inner.get_token, *scopes, claims=claims, tenant_id=tenant_id, **options)
            task = asyncio.ensure_future(self._ask(key, ask))
            self._asking[key] = task
            task.add_done_callback(functools.partial(self._asked, key))
        try:
            # One caller's cancellation must not end the question of all.
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if task.cancelled() and caller is not None and not caller.cancelling():
                raise SessionClosed from None
            raise

    async def _ask(self, key: tuple[object, ...], ask: Callable[[], Awaitable[AccessToken]]) -> AccessToken:
        try:
            token = await ask()
        except ClientAuthenticationError as error:
            wait_s = min(2 * self._refused[key][1], _MAX_FAILURE_S) if key in self._refused else _FAILURE_S
            self._refused[key] = (self._clock.monotonic_s() + wait_s, wait_s, error)
            raise
        self._refused.pop(key, None)
        return token

    def _asked(self, key: tuple[object, ...], task: asyncio.Task[AccessToken]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # looked at, for perhaps nobody waits any more

    async def close(self) -> None:
        """Ask and answer no more. May be called again."""
        self._closed = True
        await ended(self._asking.values())
        await self._inner.close()

    async def __aenter__(self) -> SharedCredential:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        """Nothing: a vendor client that ends does not end what others use."""


class CheckedTransport(AioHttpTransport):  # type: ignore[misc]  # azure-core hands this class out without a type
    """The vendor's transport over a session that others share, towards checked hosts only."""

    def __init__(self, session: aiohttp.ClientSession, egress: EgressPolicy) -> None:
        super().__init__(
            session=session,
            session_owner=False,
            use_env_settings=False,
            connection_timeout=CONNECT_S,
            read_timeout=30.0,
        )
        self._egress = egress
        self.gave_up = False

    async def send(self, request: Any, **config: Any) -> Any:
        """Send one request. Raises ``AddressRefused`` before anything leaves the machine; ``SessionClosed``."""
        if self.session.closed:
            raise SessionClosed
        parts = urlsplit(request.url)
        if parts.scheme != "https":
            raise AddressRefused(host=parts.hostname or "")
        self._egress.check(parts.hostname or "", parts.port or 443)
        # A client library may want no verification for some names; the session's own trust is always used.
        config.pop("connection_verify", None)
        config.pop("connection_cert", None)
        try:
            return await super().send(request, **config)
        except BaseException:
            self.gave_up = True
            raise


@functools.cache
def default_trust() -> ssl.SSLContext:
    """The machine's certificates. Reading them takes tens of milliseconds: once per process."""
    return ssl.create_default_context()


def plain_region(name: str) -> str:
    """A region's name in the form that is compared: ``Japan East`` is ``japaneast``."""
    return name.replace(" ", "").lower()


# --- what Azure's errors mean ---------------------------------------------------------------------------------


def is_away(error: Exception) -> bool:
    """Whether the service could not be asked, or did not say what became of it: repeat later, or read first."""
    if isinstance(error, ServiceRequestError | ServiceResponseError):
        return True
    status = status_of(error)
    return status >= 500 or status in (408, 410, 449)


def status_of(error: Exception) -> int:
    """The HTTP status of an answer, also of the sign-in's; 0 where there was none."""
    if isinstance(error, HttpResponseError):
        status: int = error.status_code or getattr(error.response, "status_code", 0) or 0
        return status
    return 0


def retry_after_s(error: Exception) -> float | None:
    """How long the service asks to wait, in seconds, where it says so."""
    answer = getattr(error, "response", None)
    headers = getattr(error, "headers", None) or getattr(answer, "headers", None) or {}
    for name, unit in (("x-ms-retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    return None


def sign_in_refused(error: Exception, room: str) -> CloudCredentialsRefused | None:
    """Ours where the room's sign-in or account key was refused. Else None. Shows Entra's code, never its words."""
    if not (isinstance(error, ClientAuthenticationError) or status_of(error) == 401) or is_away(error):
        return None
    code = _ENTRA_CODE.search(str(error))
    return CloudCredentialsRefused(room=room, detail=code[0] if code else type(error).__name__)
