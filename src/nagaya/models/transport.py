"""An HTTP transport that connects only where the egress policy lets it, and sends only the headers that were meant.

Imports httpx2, which takes a while: import this module in a thread, when a vendor is first called.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Final

import httpcore2
import httpx2

from nagaya.errors import AnswerNotUnderstood
from nagaya.kernel.egress import EgressPolicy
from nagaya.models.socket_stream import SocketStream

CONNECT_S: Final = 10.0
_HEADERS: Final = frozenset({
    b"host", b"accept", b"connection", b"content-type", b"content-length", b"transfer-encoding",
    b"idempotency-key",
})  # fmt: skip
MAX_BODY_BYTES: Final = 32 * 1024 * 1024
"""The longest answer of a vendor: twice the vectors of 256 texts × 3,072 floats, or 150,000 streamed tokens."""
MAX_ERROR_BYTES: Final = 1024 * 1024
_MAX_CONNECTIONS: Final = 2048
"""Streams that one tenant may have open at one vendor; the next one waits for one of them to end."""
_KEEP_S: Final = 30.0
REST_S: Final = 0.1
"""How long what follows the end of a streamed answer is waited for."""
_BODY: Final = "nagaya.body"


@functools.cache
def _trust() -> ssl.SSLContext:
    # Reading the machine's certificates takes tens of milliseconds: once per process.
    return httpx2.create_ssl_context()


class CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Resolves, checks, and connects to the address that was checked; TLS still verifies the name."""

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = policy

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to the first checked address that answers."""
        try:
            addresses = await self._policy.addresses(host, port)
        except TimeoutError as late:
            raise httpcore2.ConnectTimeout("the name did not resolve in time") from late
        except OSError as absent:
            raise httpcore2.ConnectError("the name does not resolve") from absent
        options = tuple(socket_options or ())
        for address in addresses[:-1]:
            try:
                return await SocketStream.connect(address, port, timeout, local_address, options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await SocketStream.connect(addresses[-1], port, timeout, local_address, options)


class Body(httpx2.AsyncByteStream):
    """The body of an answer. It may not grow without end: a tenant's own server must not fill the memory of all."""

    def __init__(self, response: httpcore2.Response, limit_bytes: int = MAX_BODY_BYTES) -> None:
        assert isinstance(response.stream, AsyncIterable)
        self._response = response
        self._parts = aiter(response.stream)
        self._left = limit_bytes if response.status < 400 else MAX_ERROR_BYTES

    async def read(self) -> bytes:
        """What has come, as soon as there is something; nothing after the end. Raises httpx2's errors."""
        try:
            part: bytes = await anext(self._parts, b"")
        except Exception as problem:
            _raise_as_httpx2(problem)
            raise
        self._left -= len(part)
        if self._left < 0:
            raise AnswerNotUnderstood(kind="too many bytes")
        return part

    async def rest(self) -> None:
        """Read what follows all that was wanted, so that the connection can be used again; not waited for long."""
        with contextlib.suppress(httpx2.RequestError, TimeoutError):
            async with asyncio.timeout(REST_S):
                while await self.read():
                    pass

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while part := await self.read():
            yield part

    async def aclose(self) -> None:
        with _as_httpx2():
            await self._response.aclose()


def body_of(response: httpx2.Response) -> Body:
    """The body of an answer that came through :class:`CheckedTransport`, to be read and closed by the caller. All else
    of the answer can be let go: in a long conversation what was asked is far larger than what waits for an answer."""
    body: Body = response.extensions[_BODY]
    return body


class CheckedTransport(httpx2.AsyncBaseTransport):
    """For one vendor account. The credential is set here and only here, whatever the client above would send; so
    neither a key nor a header of the server's own environment can reach a tenant's vendor.

    ``api_key`` goes as a bearer token, or bare in ``key_header`` where that is another than ``authorization``.
    ``token`` gives a bearer token that ends; it is asked before every request. ``headers`` go with every request, and
    what begins with ``passed`` goes as the client above sets it.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        *,
        api_key: str,
        user_agent: str,
        key_header: str = "authorization",
        token: Callable[[], Awaitable[str]] | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        passed: tuple[bytes, ...] = (),
        limit_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._passed, self._limit_bytes = passed, limit_bytes
        # Not compressed: a small compressed body can unfold into gigabytes.
        self._own = [(b"user-agent", user_agent.encode("ascii")), (b"accept-encoding", b"identity")]
        if api_key:
            scheme = b"Bearer " if key_header == "authorization" else b""
            self._own.append((key_header.encode("ascii"), scheme + api_key.encode("latin-1")))
        self._own += [(name.lower().encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
        self._token = token
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=_trust(),
            max_connections=_MAX_CONNECTIONS,
            keepalive_expiry=_KEEP_S,
            network_backend=CheckedBackend(policy),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request. Raises httpx2's errors, ``AddressRefused``, and what ``token`` raises."""
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        headers = [
            (name, value)
            for name, value in request.headers.raw
            if (plain := name.lower()) in _HEADERS or plain.startswith(self._passed)
        ]
        if self._token is not None:
            headers.append((b"authorization", b"Bearer " + (await self._token()).encode("ascii")))
        with _as_httpx2():
            sent = httpcore2.Request(
                method=request.method,
                url=httpcore2.URL(
                    scheme=request.url.raw_scheme,
                    host=request.url.raw_host,
                    port=request.url.port,
                    target=request.url.raw_path,
                ),
                headers=headers + self._own,
                content=request.stream,
                extensions=request.extensions,
            )
            response = await self._pool.handle_async_request(sent)
        # Held by the connection until the answer ends, and by then nobody reads it: a whole conversation, and a key.
        sent.headers, sent.stream = [], httpx2.ByteStream(b"")
        if any(name.lower() == b"content-encoding" and value != b"identity" for name, value in response.headers):
            await response.aclose()
            raise AnswerNotUnderstood(kind="compressed, unasked")
        body = Body(response, self._limit_bytes)
        return httpx2.Response(
            response.status,
            headers=response.headers,
            stream=body,
            extensions={**response.extensions, _BODY: body},
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()


NO_REQUEST: Final = httpx2.Request("POST", "https://vendor.invalid/")
"""Stands where a package wants a request and none may be kept."""
_ERRORS: Final = (
    (httpcore2.ConnectTimeout, httpx2.ConnectTimeout),
    (httpcore2.ReadTimeout, httpx2.ReadTimeout),
    (httpcore2.WriteTimeout, httpx2.WriteTimeout),
    (httpcore2.PoolTimeout, httpx2.PoolTimeout),
    (httpcore2.ConnectError, httpx2.ConnectError),
    (httpcore2.ReadError, httpx2.ReadError),
    (httpcore2.WriteError, httpx2.WriteError),
    (httpcore2.LocalProtocolError, httpx2.LocalProtocolError),
    (httpcore2.RemoteProtocolError, httpx2.RemoteProtocolError),
    (httpcore2.UnsupportedProtocol, httpx2.UnsupportedProtocol),
)


@contextlib.contextmanager
def _as_httpx2() -> Iterator[None]:
    try:
        yield
    except Exception as problem:
        _raise_as_httpx2(problem)
        raise


def _raise_as_httpx2(problem: Exception) -> None:
    """Raise httpx2's error for one of httpcore2; nothing for any other."""
    for theirs, ours in _ERRORS:
        if isinstance(problem, theirs):
            raise ours(str(problem)) from problem
