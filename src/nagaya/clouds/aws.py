"""AWS as the adapters of all ports use it: an account per tenant, its clients, and calls that are repeated wisely.

A tenant's account is entered by AssumeRole with the connection secret ``aws-connection``; without that secret the
platform's own credentials serve (the default chain: environment, profile, web identity, container, instance).
``AWS_ENDPOINT_URL`` and ``AWS_ENDPOINT_URL_<SERVICE>`` are honoured.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from copy import copy
from datetime import datetime
from functools import cache
from io import BytesIO
from typing import Any, Final
from weakref import WeakKeyDictionary

from aiobotocore.config import AioConfig  # type: ignore[import-untyped]  # aiobotocore ships no types
from aiobotocore.hooks import AioHierarchicalEmitter  # type: ignore[import-untyped]  # aiobotocore ships no types
from aiobotocore.session import AioSession  # type: ignore[import-untyped]  # aiobotocore ships no types
from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]  # botocore ships no types
from botocore.loaders import Loader, create_loader  # type: ignore[import-untyped]  # botocore ships no types
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]  # botocore ships no types

from nagaya.adapters import Surroundings
from nagaya.clouds.aws_errors import (
    AwsRefusal,
    Trouble,
    is_connection_error,
    refused,
    trouble_of,
    was_never_sent,
    without_credentials,
)
from nagaya.clouds.aws_role import (
    CONNECTION_SECRET,
    ISSUED_SECRET,
    ROLE_DENIED,
    ROLE_S,
    AwsConnection,
    Granted,
    RoleCredentials,
    check_region,
    read_connection,
    session_name,
    session_policy,
)
from nagaya.clouds.aws_tls import SharedTls
from nagaya.errors import CloudCredentialsRefused, CloudUnreachable, InvalidValue, NagayaError, SessionClosed

MAX_CONNECTIONS: Final = 20
"""To one service of one tenant at the same time; further calls wait their turn."""

CONNECT_S: Final = 3.0
STS_S: Final = 10.0
_PIECED_BYTES: Final = 512 * 1024
_PAUSE_FIRST_S: Final = 0.05
_PAUSE_MOST_S: Final = 2.0


@cache
def _loader() -> Loader:
    # Descriptions of services are read and parsed once per process: a further tenant costs 8 ms instead of 150.
    return create_loader()


_platforms: WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = WeakKeyDictionary()


@cache
def _handlers() -> Any:
    # Registering botocore's own handlers takes 10 ms, copying them 1 ms. Nothing of a tenant is ever added to these.
    handlers = AioHierarchicalEmitter()
    AioSession(event_hooks=handlers)
    return handlers


def new_session() -> Any:
    """A session that shares nothing with others but what is the same for all: descriptions of services, and
    botocore's own handlers."""
    session = AioSession(event_hooks=copy(_handlers()), include_builtin_handlers=False)
    session.register_component("data_loader", _loader())
    return session


def _platform_session() -> Any:
    """The session with the platform's own credentials: one per event loop, so that they are fetched once."""
    loop = asyncio.get_running_loop()
    session = _platforms.get(loop)
    if session is None:
        session = _platforms[loop] = new_session()
    return session


class _Provider:
    """Where botocore's session asks for credentials."""

    def __init__(self, credentials: RoleCredentials) -> None:
        self._credentials = credentials

    async def load_credentials(self) -> RoleCredentials:
        return self._credentials


class AwsAccount:
    """One tenant's AWS account (or the platform's own) as one adapter may use it.

    Credentials carry the tenant in their session name and are narrowed by the session policy to ``grants``: even a
    role that may do more gives no more. To be used in one event loop; all methods may be called concurrently.
    """

    def __init__(
        self, room: str, region: str, connection: AwsConnection | None, grants: Sequence[Mapping[str, Any]]
    ) -> None:
        self.room = room
        self.region = region
        self.connection = connection
        self._policy = session_policy(grants) if grants else None
        self._closing = AsyncExitStack()
        self._closed = False
        self._clients: dict[str, Any] = {}
        self._making = asyncio.Lock()
        self._credentials: RoleCredentials | None = None
        if connection is None:
            self._session = _platform_session()
        else:
            self._credentials = RoleCredentials(self._assume, account_id=connection.account_id, room=room)
            self._session = new_session()
            self._session.register_component("credential_provider", _Provider(self._credentials))

    @classmethod
    async def open(
        cls,
        surroundings: Surroundings,
        *,
        region: str = "",
        grants: Callable[[AwsConnection, str], Sequence[Mapping[str, Any]]] | None = None,
    ) -> AwsAccount:
        """The room's account in ``region`` (where empty, the connection secret's). Nothing is asked of AWS yet.

        ``grants`` makes the statements of the session policy from the connection and the region. Raises
        ``RegionRefused``, ``ConnectionSecretInvalid``, ``ExternalIdRefused``.
        """
        secret = await surroundings.secret(CONNECTION_SECRET)
        connection = None
        if secret is not None:
            issued = await surroundings.secret(ISSUED_SECRET)
            connection = read_connection(secret, None if issued is None else issued.decode("ascii", "replace"))
        region = check_region(region or (connection.region if connection else ""), surroundings.regions)
        statements = grants(connection, region) if grants and connection else ()
        return cls(surroundings.room, region, connection, statements)

    @classmethod
    def of_platform(cls, surroundings: Surroundings, region: str) -> AwsAccount:
        """The platform's own account, used for the room; the room's connection secret plays no part."""
        return cls(surroundings.room, check_region(region, surroundings.regions), None, ())

    async def client(self, service: str, **options: Any) -> Any:
        """The aiobotocore client of a service, made once. It repeats nothing by itself. Raises ``SessionClosed``.

        ``options`` are botocore's settings of a client; they go before the ones set here.
        """
        found = self._clients.get(service)
        if found is None:
            async with self._making:
                found = self._clients.get(service)
                if found is None:
                    if self._closed:
                        raise SessionClosed
                    found = self._clients[service] = await self._make(service, options)
        return found

    async def _make(self, service: str, options: dict[str, Any]) -> Any:
        await asyncio.to_thread(read_descriptions, service)
        config = AioConfig(
            connect_timeout=CONNECT_S,
            read_timeout=options.pop("read_timeout", 60),
            max_pool_connections=options.pop("max_pool_connections", MAX_CONNECTIONS),
            # A write that was repeated unknown to us could be answered by its own first try.
            retries={"total_max_attempts": 1, "mode": "standard"},
            # What is asked here is made by this program; checking every field again costs a tenth of a call.
            parameter_validation=False,
            tcp_keepalive=True,
            user_agent_extra="nagaya",
            http_session_cls=SharedTls,
            **options,
        )
        try:
            made = self._session.create_client(service, region_name=self.region, config=config)
            client = await self._closing.enter_async_context(made)
        except BotoCoreError as error:
            raise without_credentials(error, self.room) or error from error
        client.meta.events.register("before-send", _in_pieces)
        stay_in_region(client)
        return client

    async def call(
        self,
        operation: Callable[..., Awaitable[dict[str, Any]]],
        /,
        *,
        deadline_s: float,
        unreachable: type[NagayaError],
        **request: Any,
    ) -> dict[str, Any]:
        """One call, repeated with growing, random pauses while AWS is throttling or away, for ``deadline_s`` at most.

        Raises ``unreachable`` past the deadline, ``PermissionMissing``, ``CloudCredentialsRefused``, and
        ``AwsRefusal`` for every answer that the caller has to understand itself.
        """
        ends_s = time.monotonic() + deadline_s
        tries, doubtful, renewed = 0, False, False
        while True:
            if self._closed:
                raise SessionClosed
            generation = self.generation
            try:
                async with asyncio.timeout(max(0.001, ends_s - time.monotonic())):
                    return await operation(**request)
            except ClientError as error:
                trouble = trouble_of(error)
                if trouble is Trouble.AWAY:
                    doubtful = True
                elif trouble is Trouble.CREDENTIALS and not renewed and self.renew(generation):
                    # Ended early, such as by the account's owner or a clock: once more with new ones.
                    renewed = True
                elif trouble not in (Trouble.THROTTLED, Trouble.BUSY):
                    raise refused(error, self.room) or AwsRefusal(trouble, error, doubtful=doubtful) from error
                failed: Exception = error
            except (BotoCoreError, ResponseParserError) as error:
                if not is_connection_error(error):
                    raise without_credentials(error, self.room) or error from error
                doubtful = doubtful or not was_never_sent(error)
                failed = error
            except TimeoutError as late:
                raise unreachable from late
            pause_s = random.uniform(0.5, 1) * min(_PAUSE_MOST_S, _PAUSE_FIRST_S * 2**tries)  # noqa: S311 - jitter
            tries += 1
            if time.monotonic() + pause_s >= ends_s:
                raise unreachable from failed
            await asyncio.sleep(pause_s)

    @property
    def generation(self) -> int:
        """How many times the role was assumed; to be read before a call that :meth:`renew` may follow."""
        return self._credentials.generation if self._credentials is not None else 0

    def renew(self, generation: int | None = None) -> bool:
        """AWS did not take the credentials: the next call gets new ones. Gives whether a repeat is worth while.

        With the ``generation`` that the call began under, newer credentials are kept.
        """
        if self._credentials is None:
            return False
        return self._credentials.drop(self._credentials.generation if generation is None else generation)

    async def ready_for(self, lifetime_s: float) -> None:
        """Have credentials that hold for ``lifetime_s`` seconds more, as far as a role gives them: what they sign, such
        as an address for a client, ends with them. Raises ``CloudCredentialsRefused`` or ``CloudUnreachable``."""
        if self._credentials is not None:
            await self._credentials.ready_for(lifetime_s)

    async def close(self) -> None:
        """Close connections and forget credentials; what is called afterwards raises ``SessionClosed``."""
        self._closed = True
        async with self._making:
            self._clients.clear()
            await self._closing.aclose()
        if self._credentials is not None:
            await self._credentials.close()

    async def _assume(self) -> Granted:
        connection = self.connection
        assert connection is not None
        request: dict[str, Any] = {
            "RoleArn": connection.role_arn,
            "RoleSessionName": session_name(self.room),
            "ExternalId": connection.external_id,
            "DurationSeconds": ROLE_S,
        }
        if self._policy is not None:
            request["Policy"] = self._policy
        config = AioConfig(
            connect_timeout=CONNECT_S,
            read_timeout=STS_S,
            retries={"total_max_attempts": 2, "mode": "standard"},
            http_session_cls=SharedTls,
        )
        try:
            # A client of its own, closed again: it is needed once an hour, and hundreds of idle ones cost memory.
            async with (
                asyncio.timeout(STS_S),
                _platform_session().create_client("sts", region_name=self.region, config=config) as sts,
            ):
                answer = await sts.assume_role(**request)
        except ClientError as error:
            trouble = trouble_of(error)
            if trouble in (Trouble.THROTTLED, Trouble.AWAY):
                raise CloudUnreachable(room=self.room) from error
            if trouble is Trouble.DENIED:
                raise CloudCredentialsRefused(room=self.room, detail=ROLE_DENIED) from error
            detail = error.response.get("Error", {}).get("Code", "refused")
            raise CloudCredentialsRefused(room=self.room, detail=f"sts:AssumeRole: {detail}") from error
        except BotoCoreError as error:
            raise without_credentials(error, self.room) or CloudUnreachable(room=self.room) from error
        return _granted(answer["Credentials"])


def stay_in_region(client: Any) -> None:
    """Let a client of S3 answer that a bucket lies elsewhere, instead of going there: it would leave the regions that a
    tenant is pinned to, on the word of whoever made the bucket. Other services' clients do not wander."""
    client.meta.events.register_last("before-parameter-build.s3", _went_already)


def _went_already(context: dict[str, Any], **_: Any) -> None:
    context["s3_redirect"]["redirected"] = True


def _in_pieces(request: Any, **_: Any) -> None:
    # Handed over whole, a body of megabytes would hold up the event loop until the socket has taken it all.
    if isinstance(request.body, bytes) and len(request.body) > _PIECED_BYTES:
        request.body = BytesIO(request.body)


def read_descriptions(service: str) -> None:
    """Read and parse what botocore knows of a service, once per process. Blocks."""
    loader = _loader()
    loader.load_service_model(service, "service-2")
    loader.load_service_model(service, "endpoint-rule-set-1")


def _granted(credentials: dict[str, Any]) -> Granted:
    expires: datetime = credentials["Expiration"]
    left_s = (expires - datetime.now(expires.tzinfo)).total_seconds()
    return Granted(
        access_key=credentials["AccessKeyId"],
        secret_key=credentials["SecretAccessKey"],
        token=credentials["SessionToken"],
        # By this machine's clock, which may go wrong; never longer than what was asked for.
        lifetime_s=max(0.0, min(float(ROLE_S), left_s)),
    )


def url_parts(url: str, scheme: str, *, known: frozenset[str]) -> tuple[str, dict[str, str]]:
    """An adapter's URL: what stands between scheme and ``?``, and its options. Raises ``InvalidValue``."""
    head, _, query = url.partition("?")
    if not head.startswith(f"{scheme}://"):
        raise InvalidValue(at="url", detail=f"{scheme}://…")
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        if name not in known or name in options:
            raise InvalidValue(at="url", detail=f"'{name[:32]}' is not known; use {', '.join(sorted(known))}")
        options[name] = value
    return head.removeprefix(f"{scheme}://"), options


def flag(options: Mapping[str, str], name: str) -> bool:
    """Whether ``name=true`` stands in a URL's options. Raises ``InvalidValue`` for anything but true and false."""
    value = options.get(name, "false")
    if value not in ("true", "false"):
        raise InvalidValue(at="url", detail=f"{name} is true or false")
    return value == "true"
