"""Open streams: ended with their entrance, left with their reader, kept alive while they are silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from nagaya.server import streams as module
from nagaya.server.calls import Stream, frame_of
from nagaya.server.streams import KEEP_ALIVE, Streams


class Reader:
    """Takes what is sent; may stop taking, break, or go away."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.broken = False
        self.stuck = asyncio.Event()
        self.stuck.set()
        self.gone = asyncio.Event()

    async def send(self, message: dict[str, Any]) -> None:
        if self.broken:
            raise OSError
        await self.stuck.wait()
        self.taken.append(message.get("body", b""))

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}


class Source:
    """A stream's frames: some at once, then as the test lets them."""

    def __init__(self, *frames: bytes, then_wait: bool = False) -> None:
        self.frames = frames
        self.go_on = asyncio.Event()
        if not then_wait:
            self.go_on.set()
        self.current = True
        self.left = 0
        self.closed = False
        self.cancelled = False

    async def made(self) -> AsyncGenerator[bytes, None]:
        try:
            for frame in self.frames:
                yield frame
            await self.go_on.wait()
            yield b"last"
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.closed = True

    def stream(self, *, ends_with_reader: bool = False) -> Stream:
        return Stream(self.made(), lambda: self.current, self.leave, ends_with_reader=ends_with_reader)

    def leave(self) -> None:
        self.left += 1


@pytest.fixture
async def streams(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Streams]:
    monkeypatch.setattr(module, "CHECK_S", 0.01)
    made = Streams()
    made.start()
    yield made
    await made.stop()


async def test_a_stream_is_sent_whole(streams: Streams):
    source, reader = Source(b"one", b"two"), Reader()
    assert await streams.send(source.stream(), reader.send, reader.receive)
    assert reader.taken == [b"one", b"two", b"last", b""]
    assert source.left == 0
    assert source.closed
    assert len(streams) == 0


async def test_a_stream_ends_with_its_entrance_and_says_so(streams: Streams):
    source, reader = Source(b"one", then_wait=True), Reader()
    sending = asyncio.ensure_future(streams.send(source.stream(), reader.send, reader.receive))
    await asyncio.sleep(0.03)
    assert len(streams) == 1
    source.current = False
    assert await asyncio.wait_for(sending, 30) is False
    assert b"session_closed" in reader.taken[-2]
    assert reader.taken[-1] == b""
    assert source.left == 1
    assert source.closed


async def test_a_reader_that_breaks_is_left(streams: Streams):
    source, reader = Source(b"one"), Reader()
    reader.broken = True
    assert await streams.send(source.stream(), reader.send, reader.receive) is False
    assert source.left == 1
    assert source.closed


async def test_a_reader_that_takes_nothing_is_left(streams: Streams, monkeypatch):
    monkeypatch.setattr(module, "SLOW_READER_S", 0.05)
    source, reader = Source(b"one"), Reader()
    reader.stuck.clear()
    assert await asyncio.wait_for(streams.send(source.stream(), reader.send, reader.receive), 30) is False
    assert source.left == 1
    assert not source.cancelled, "the answer goes on without its reader"


async def test_a_silent_stream_is_kept_alive(streams: Streams, monkeypatch):
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.03)
    source, reader = Source(then_wait=True), Reader()
    sending = asyncio.ensure_future(streams.send(source.stream(), reader.send, reader.receive))
    async with asyncio.timeout(30):
        while reader.taken.count(KEEP_ALIVE) < 2:
            await asyncio.sleep(0.01)
    source.go_on.set()
    assert await sending
    assert reader.taken[-2:] == [b"last", b""]


async def test_a_reader_that_does_not_take_a_comment_is_left(streams: Streams, monkeypatch):
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.02)
    source, reader = Source(then_wait=True), Reader()
    sending = asyncio.ensure_future(streams.send(source.stream(), reader.send, reader.receive))
    await asyncio.sleep(0.01)
    reader.broken = True
    with pytest.raises(OSError):
        await asyncio.wait_for(sending, 30)
    assert source.left == 1


async def test_a_stream_that_ends_with_its_reader_ends_when_that_goes(streams: Streams):
    source, reader = Source(b"one", then_wait=True), Reader()
    sending = asyncio.ensure_future(streams.send(source.stream(ends_with_reader=True), reader.send, reader.receive))
    await asyncio.sleep(0.02)
    reader.gone.set()
    assert await asyncio.wait_for(sending, 30) is False
    assert source.cancelled
    assert source.closed
    assert source.left == 1


async def test_another_stream_goes_on_when_its_reader_has_gone(streams: Streams):
    source, reader = Source(b"one", then_wait=True), Reader()
    sending = asyncio.ensure_future(streams.send(source.stream(), reader.send, reader.receive))
    await asyncio.sleep(0.02)
    reader.gone.set()
    await asyncio.sleep(0.05)
    source.go_on.set()
    assert await asyncio.wait_for(sending, 30)


async def test_a_server_that_stops_hard_cancels_its_streams(streams: Streams):
    source, reader = Source(b"one", then_wait=True), Reader()
    sending = asyncio.ensure_future(streams.send(source.stream(), reader.send, reader.receive))
    await asyncio.sleep(0.02)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert source.left == 1
    assert len(streams) == 0


async def test_many_streams_are_looked_at_some_at_a_time(streams: Streams, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHECK_S", 0.1)
    source, reader = Source(then_wait=True), Reader()
    at_once, most, looked_at = 0, 0, 0

    def is_current() -> bool:
        nonlocal at_once, most, looked_at
        at_once += 1
        looked_at += 1
        most = max(most, at_once)
        return True

    made = [source.stream()._replace(frames=source.made(), is_current=is_current) for _ in range(200)]
    sending = [asyncio.ensure_future(streams.send(one, reader.send, reader.receive)) for one in made]
    while looked_at < 1000:
        at_once = 0
        await asyncio.sleep(0)
    assert most <= 200 / module.LOOKS
    source.go_on.set()
    assert all(await asyncio.gather(*sending))


def test_an_event_is_one_frame():
    assert frame_of(None, b"{}") == b"data: {}\n\n"
    assert frame_of("error", b"{}") == b"event: error\ndata: {}\n\n"
