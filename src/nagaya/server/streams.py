"""Open streams of this process: kept alive, closed when their entrance ends, never held up by a slow reader."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from prometheus_client import Gauge

from nagaya.errors import SessionClosed
from nagaya.kernel.ended import ended
from nagaya.server.calls import Receive, Send, Stream

CHECK_S = 1.0
"""How often every open stream's entrance is checked; events check it too."""
LOOKS = 50
"""In how many turns all of them are checked."""
KEEP_ALIVE_S = 15.0
"""A comment is sent to a stream that has been silent this long, so that proxies do not cut it."""
SLOW_READER_S = 30.0
"""A reader that takes nothing for this long is left; its answer is finished without it."""
KEEP_ALIVE = b": keep-alive\n\n"


class _Open:
    __slots__ = ("ended", "framed", "is_current", "send", "sending_since_s", "silent_since_s", "task")

    def __init__(
        self, task: asyncio.Task[object], send: Send, is_current: Callable[[], bool], now_s: float, *, framed: bool
    ) -> None:
        self.task = task
        self.send = send
        self.framed = framed
        self.is_current = is_current
        self.silent_since_s = now_s
        self.sending_since_s = 0.0
        self.ended = False


class Streams:
    """Sends streams, and looks after all that are open with one timer."""

    def __init__(self, gauge: Gauge | None = None) -> None:
        self._gauge = gauge
        self._open: set[_Open] = set()
        self._watch: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._open)

    def start(self) -> None:
        """Begin to look after streams. Belongs to the running loop."""
        self._watch = asyncio.ensure_future(self._look_after())

    async def stop(self) -> None:
        if self._watch is not None:
            await ended([self._watch])

    async def send(self, stream: Stream, send: Send, receive: Receive) -> bool:
        """Send a stream to its end. False when the reader went away or the entrance ended before.

        The response has been started already; the last, empty body is sent here.
        """
        task = asyncio.current_task()
        assert task is not None
        entry = _Open(task, send, stream.is_current, time.monotonic(), framed=stream.framed)
        self._open.add(entry)
        if self._gauge is not None:
            self._gauge.inc()
        whole = False
        watch = asyncio.ensure_future(_gone(receive, entry)) if stream.ends_with_reader else None
        try:
            async for frame in stream.frames:
                entry.sending_since_s = time.monotonic()
                await send({"type": "http.response.body", "body": frame, "more_body": True})
                entry.sending_since_s = 0.0
                entry.silent_since_s = time.monotonic()
                del frame  # every stream that waits would hold its last one
            whole = True
        except OSError:
            pass
        except asyncio.CancelledError:
            if not entry.ended:
                raise
            task.uncancel()
        finally:
            if watch is not None:
                watch.cancel()
            self._open.discard(entry)
            if self._gauge is not None:
                self._gauge.dec()
            if not whole:
                stream.leave()
            await stream.frames.aclose()
        if not whole and not stream.framed:
            return False
        if entry.ended and not entry.sending_since_s:
            await send({"type": "http.response.body", "body": stream.last_word(SessionClosed()), "more_body": True})
        if not entry.sending_since_s:
            await send({"type": "http.response.body", "body": b""})
        return whole

    async def _look_after(self) -> None:
        while True:
            # Some at a time: thousands looked at in one go would hold up everybody's requests.
            looked_at = list(self._open)
            at_once = -(-len(looked_at) // LOOKS) or 1
            for start in range(0, len(looked_at), at_once):
                await asyncio.sleep(CHECK_S / LOOKS)
                for entry in looked_at[start : start + at_once]:
                    if entry in self._open and not entry.ended:
                        await self._look_at(entry, time.monotonic())
            looks = -(-len(looked_at) // at_once)
            await asyncio.sleep(CHECK_S * (1 - looks / LOOKS))

    async def _look_at(self, entry: _Open, now_s: float) -> None:
        stuck = entry.sending_since_s and now_s - entry.sending_since_s > SLOW_READER_S
        if stuck or not entry.is_current():
            entry.ended = True
            entry.task.cancel()
        elif entry.framed and not entry.sending_since_s and now_s - entry.silent_since_s > KEEP_ALIVE_S:
            entry.silent_since_s = now_s
            await self._keep_alive(entry)

    async def _keep_alive(self, entry: _Open) -> None:
        try:
            # A reader that does not even take a comment must not hold up the care for the others.
            async with asyncio.timeout(0.05):
                await entry.send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
        except (TimeoutError, OSError):
            entry.ended = True
            entry.task.cancel()


async def _gone(receive: Receive, entry: _Open) -> None:
    """Wait until the client has gone, and end its stream: writing to nobody raises nothing."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if not entry.ended:
        entry.ended = True
        entry.task.cancel()
