"""An OpenAI-compatible server whose answers come one word a second, to as many callers as there are."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from typing import Any

import uvloop

EVENT_S = 1.0


def _chunk(number: int, *, last: bool = False) -> bytes:
    delta: dict[str, Any] = {} if last else {"role": "assistant", "content": f"word {number} "}
    choice = {"index": 0, "delta": delta, "finish_reason": "stop" if last else None}
    body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "slow", "choices": [choice]}
    return f"data: {json.dumps(body)}\n\n".encode()


class Slow(asyncio.Protocol):
    """Answers any POST with a stream of ``seconds`` events, whatever was asked."""

    seconds = 60

    def __init__(self) -> None:
        self._got = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, found, body = self._got.partition(b"\r\n\r\n")
        if not found:
            return
        if head.startswith(b"GET"):
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
            self._transport.close()
            return
        at = head.lower().find(b"content-length:")
        if len(body) < int(head[at + 15 :].split(b"\r\n")[0]):
            return
        self._got = b""
        self._task = asyncio.ensure_future(self._answer())

    async def _answer(self) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        # Answers that people wait for do not all begin in the same instant, nor do their words.
        await asyncio.sleep(random.random() * EVENT_S)
        for number in range(self.seconds):
            self._send(_chunk(number))
            await asyncio.sleep(EVENT_S)
        self._send(_chunk(0, last=True))
        self._send(b"data: [DONE]\n\n")
        self._transport.write(b"0\r\n\r\n")

    def _send(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()


async def main(port: int, seconds: int) -> None:
    Slow.seconds = seconds
    server = await asyncio.get_running_loop().create_server(Slow, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
