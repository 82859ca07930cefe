"""A TCP proxy of the tests' own between a client and a server: it cuts, delays, swallows and refuses on demand."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType


class Proxy:
    """``async with Proxy(host, port) as proxy``: listens on ``proxy.port`` of loopback and passes everything on.

    ``cut()`` resets every open line. ``refuse`` resets new ones. ``swallow`` passes nothing on in either direction,
    without a word: a half-open line. ``swallow_answers`` lets requests through and loses what the server answers.
    ``delay_s`` holds every piece back. ``cut_after_request`` resets a line right after its next request was passed
    on: the server does the work, the client never hears of it.
    """

    def __init__(self, host: str, port: int) -> None:
        self._to = host, port
        self._server: asyncio.Server | None = None
        self._lines: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._doomed: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.refuse = False
        self.swallow = False
        self.swallow_answers = False
        self.cut_after_request = False
        self.delay_s = 0.0
        self.opened = 0

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def lines(self) -> int:
        """Lines that are open now."""
        return len(self._lines)

    def cut(self) -> None:
        """Reset every open line, as a dying router does."""
        for line in list(self._lines):
            self._reset(line)

    def _reset(self, line: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self._lines.discard(line)
        for end in line:
            held = end.get_extra_info("socket")
            with contextlib.suppress(OSError):
                held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        if self.refuse:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._to)
        except OSError:
            writer.transport.abort()
            return
        line = (writer, server_writer)
        self._lines.add(line)
        for source, target, answers in ((reader, server_writer, False), (server_reader, writer, True)):
            task = asyncio.create_task(self._pass(source, target, line, answers=answers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        line: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        *,
        answers: bool,
    ) -> None:
        try:
            while piece := await source.read(65_536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.swallow or (answers and (self.swallow_answers or line in self._doomed)):
                    continue
                if self.cut_after_request and not answers:
                    self.cut_after_request = False
                    self._doomed.add(line)
                target.write(piece)
                await target.drain()
                if line in self._doomed:
                    await asyncio.sleep(0.05)  # The server is to have done it.
                    self._reset(line)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._lines.discard(line)
            self._doomed.discard(line)
            target.close()
