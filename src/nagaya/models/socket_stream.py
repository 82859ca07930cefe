"""A connection to a vendor, straight on the event loop's transport.

The HTTP library's own goes through anyio, whose events, locks and cancel scopes cost every open stream six KiB more.
Imports httpcore2: import this module in a thread, when a vendor is first called.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from collections.abc import Iterable
from typing import Any, Final, cast

import httpcore2

from nagaya.kernel.deadline import Patience

_HELD_BYTES: Final = 64 * 1024
"""Received and not read yet; beyond it the vendor waits."""


class SocketStream(asyncio.Protocol, httpcore2.AsyncNetworkStream):
    """One TCP connection, with or without TLS. To be read by one task and written by one."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._held = b""
        self._ended = False
        self._waiting = False
        self._problem: Exception | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._patience = Patience()

    @classmethod
    async def connect(
        cls,
        address: str,
        port: int,
        timeout_s: float | None,
        local_address: str | None,
        options: Iterable[httpcore2.SOCKET_OPTION],
    ) -> SocketStream:
        """A connection to an address. Raises httpcore2's ``ConnectTimeout`` and ``ConnectError``."""
        loop = asyncio.get_running_loop()
        local = None if local_address is None else (local_address, 0)
        try:
            async with asyncio.timeout(timeout_s):
                _, stream = await loop.create_connection(cls, address, port, local_addr=local)
        except TimeoutError as late:
            raise httpcore2.ConnectTimeout(str(late)) from late
        except OSError as failed:
            raise httpcore2.ConnectError(str(failed)) from failed
        for option in options:
            stream._open.get_extra_info("socket").setsockopt(*option)
        return stream

    # --- what httpcore2 calls ---

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """At most so many bytes as soon as there are any; none after the end. Raises ``ReadTimeout``, ``ReadError``."""
        if not self._held and not self._ended:
            self._arrival = asyncio.get_running_loop().create_future()
            try:
                if timeout is None:
                    await self._arrival
                else:
                    with self._patience.of(timeout):
                        await self._arrival
            except TimeoutError as late:
                raise httpcore2.ReadTimeout(str(late)) from late
            finally:
                self._arrival = None
        if not self._held:
            if self._problem is not None:
                raise httpcore2.ReadError(str(self._problem)) from self._problem
            return b""
        part, self._held = self._held[:max_bytes], self._held[max_bytes:]
        if self._waiting and len(self._held) <= _HELD_BYTES // 2 and not self._open.is_closing():
            self._waiting = False
            self._open.resume_reading()
        return part

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Hand the bytes over, and wait while the network takes no more. Raises ``WriteTimeout``, ``WriteError``."""
        if not buffer:
            return
        if self._open.is_closing():
            raise httpcore2.WriteError("the connection is closed") from self._problem
        self._open.write(buffer)
        if self._drained is not None:
            try:
                async with asyncio.timeout(timeout):
                    await asyncio.shield(self._drained)
            except TimeoutError as late:
                raise httpcore2.WriteTimeout(str(late)) from late
        if self._problem is not None:
            raise httpcore2.WriteError(str(self._problem)) from self._problem

    async def aclose(self) -> None:
        """Let go of the connection at once. May be repeated."""
        self._open.abort()
        await asyncio.sleep(0)  # the transport lets go of the socket in the next turn

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> SocketStream:
        """The same connection under TLS. Raises ``ConnectTimeout``, ``ConnectError``, also for a wrong certificate."""
        before = self._open
        try:
            async with asyncio.timeout(timeout):
                upgraded = await asyncio.get_running_loop().start_tls(
                    before, self, ssl_context, server_hostname=server_hostname
                )
            if upgraded is None:
                raise httpcore2.ConnectError("the connection was lost")
            self._transport = upgraded
            return self
        except BaseException as failed:
            before.abort()
            if isinstance(failed, TimeoutError):
                raise httpcore2.ConnectTimeout(str(failed)) from failed
            if isinstance(failed, OSError):  # among them what TLS finds wrong
                raise httpcore2.ConnectError(str(failed)) from failed
            raise

    def get_extra_info(self, info: str) -> Any:
        """What httpcore2 may ask for; None for anything else."""
        if info == "is_readable":
            return self._ended or bool(self._held) or _is_readable(self._open.get_extra_info("socket"))
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self._open.get_extra_info(names.get(info, info))

    # --- what the event loop calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one by its methods only

    def data_received(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > _HELD_BYTES and not self._waiting:
            self._waiting = True
            self._open.pause_reading()
        _wake(self._arrival)

    def eof_received(self) -> None:
        self._ended = True
        _wake(self._arrival)

    def connection_lost(self, problem: Exception | None) -> None:
        self._ended = True
        self._problem = problem
        self._patience.end()
        _wake(self._arrival)
        _wake(self._drained)

    def pause_writing(self) -> None:
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        _wake(drained)

    @property
    def _open(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


def _is_readable(socket: Any) -> bool:
    """Whether the other end has sent something, or its end, that the event loop has not seen yet."""
    if socket is None or socket.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(socket.fileno(), select.POLLIN)
    return bool(poll.poll(0))
