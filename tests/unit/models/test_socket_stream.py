"""The connection to a vendor, on both event loops, plain and under TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable

import httpcore2
import pytest
import trustme
import uvloop

from nagaya.models.socket_stream import SocketStream

AUTHORITY = trustme.CA()
BULK = b"x" * 1_000_000

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Use = Callable[[SocketStream], Awaitable[None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def between(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs both ends: ``between(serve, use, tls=False)``."""

    def run(serve: Serve, use: Use, *, tls: bool = False, name: str = "vendor.example") -> None:
        async def both() -> None:
            serving: list[asyncio.Task[None]] = []

            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                task = asyncio.current_task()
                assert task is not None
                serving.append(task)
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await serve(reader, writer)
                    await writer.drain()
                writer.close()
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await writer.wait_closed()

            context = None
            if tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                AUTHORITY.issue_cert("vendor.example").configure_cert(context)
            server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
            port = server.sockets[0].getsockname()[1]
            stream = await SocketStream.connect("127.0.0.1", port, 30, None, ())
            try:
                if tls:
                    trusted = ssl.create_default_context()
                    AUTHORITY.configure_trust(trusted)
                    stream = await stream.start_tls(trusted, name, 30)
                await use(stream)
            finally:
                await stream.aclose()
                await stream.aclose()
                server.close()
                await asyncio.sleep(0.02)
                for task in serving:
                    task.cancel()
                await asyncio.gather(*serving, return_exceptions=True)
                await asyncio.sleep(0.02)

        loop = request.param()
        try:
            loop.run_until_complete(asyncio.wait_for(both(), 60))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    return run


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65_536):
        writer.write(piece)
        await writer.drain()


async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    await asyncio.sleep(1)


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    held: socket.socket = writer.get_extra_info("socket")
    held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_bytes_arrive_whole_and_in_order_also_more_than_are_held(between: Callable[..., None], tls: bool) -> None:
    async def use(stream: SocketStream) -> None:
        async def send() -> None:
            await stream.write(b"")
            await stream.write(BULK, 30)

        sending = asyncio.ensure_future(send())
        await asyncio.sleep(0.05)  # more comes than is held: the other end has to wait
        assert len(stream._held) < 2 * 1024 * 1024
        got = b""
        while len(got) < len(BULK):
            part = await stream.read(1000 if len(got) < 100_000 else 65_536, 30)
            assert part
            got += part
        await sending
        assert got == BULK
        assert (stream.get_extra_info("ssl_object") is not None) is tls
        assert stream.get_extra_info("server_addr")[0] == "127.0.0.1"
        assert not stream.get_extra_info("is_readable")

    between(echo, use, tls=tls)


def test_a_certificate_of_another_name_is_refused(between: Callable[..., None]) -> None:
    async def use(stream: SocketStream) -> None:
        raise AssertionError("it was let in")

    with pytest.raises(httpcore2.ConnectError, match=r"(?i)certificate"):
        between(echo, use, tls=True, name="other.example")


def test_a_server_that_speaks_no_tls_is_a_failed_or_late_connection(between: Callable[..., None]) -> None:
    async def use(stream: SocketStream) -> None:
        with pytest.raises((httpcore2.ConnectError, httpcore2.ConnectTimeout)):
            await stream.start_tls(ssl.create_default_context(), "vendor.example", 0.2)

    between(silence, use)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_silence_ends_with_a_timeout_and_what_comes_later_is_still_read(
    between: Callable[..., None], tls: bool
) -> None:
    is_given_up = asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await is_given_up.wait()
        writer.write(b"late")
        await writer.drain()
        await reader.read(1)

    async def use(stream: SocketStream) -> None:
        await stream.write(b"?")
        with pytest.raises(httpcore2.ReadTimeout):
            await stream.read(10, 0.05)
        is_given_up.set()
        assert await stream.read(10, 30) == b"late"

    between(late, use, tls=tls)


def test_the_end_is_no_bytes_and_a_reset_is_an_error(between: Callable[..., None]) -> None:
    async def bye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"bye")

    async def ended(stream: SocketStream) -> None:
        await stream.write(b"?")
        got = await stream.read(10, 30)
        while part := await stream.read(10, 30):
            got += part
        assert got == b"bye"
        assert stream.get_extra_info("is_readable")
        await asyncio.sleep(0.05)
        with pytest.raises(httpcore2.WriteError):
            await stream.write(b"more")

    async def lost(stream: SocketStream) -> None:
        await stream.write(b"?")
        with pytest.raises(httpcore2.ReadError):
            await stream.read(10, 30)

    between(bye, ended)
    between(reset, lost)


def test_a_server_that_takes_nothing_is_a_write_timeout(between: Callable[..., None]) -> None:
    async def use(stream: SocketStream) -> None:
        with pytest.raises(httpcore2.WriteTimeout):
            await stream.write(BULK * 20, 0.1)

    between(silence, use)


def test_a_reader_that_is_cancelled_leaves_the_stream_usable(between: Callable[..., None]) -> None:
    async def use(stream: SocketStream) -> None:
        reading = asyncio.ensure_future(stream.read(10))
        await asyncio.sleep(0.01)
        reading.cancel()
        await asyncio.wait([reading])
        await stream.write(b"ping")
        assert await stream.read(10, 30) == b"ping"

    between(echo, use)


async def test_nobody_listening_and_an_address_of_ones_own_that_is_none_are_failed_connections() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(httpcore2.ConnectError):
            await SocketStream.connect("127.0.0.1", port, 30, None, ())
        with pytest.raises(httpcore2.ConnectError):
            await SocketStream.connect("127.0.0.1", port, 5, "192.0.2.1", ())


async def test_options_reach_the_socket() -> None:
    option = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        stream = await SocketStream.connect("127.0.0.1", listener.getsockname()[1], 5, None, [option])
        assert stream.get_extra_info("socket").getsockopt(*option[:2]) == 1
        await stream.aclose()
