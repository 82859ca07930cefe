"""A load generator: keep-alive connections over raw sockets, each with one request on its way.

It is a process of its own and does little per answer, so that it is never what is measured. It takes plans as lines of
JSON on standard input and prints what it saw of each: ``{"host", "port", "seconds", "requests": [[text, …], …], "pause_s"}``, a list of
requests per connection, sent in turn. With ``every_s`` each connection asks at that pace whatever the answers take: one
that must wait for the answer before it is timed from when it was due. Run by ``http.py`` and ``streams.py``.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import json
import os
import sys
import time
from typing import Any

import uvloop


class Connection(asyncio.Protocol):
    """Sends the next request when an answer is whole, and notes how long it took."""

    def __init__(self, requests: list[bytes], pause_s: float, every_s: float) -> None:
        self._requests = requests
        self._pause_s = pause_s
        self._every_s = every_s
        self._due: collections.deque[float] = collections.deque()
        self._at = 0
        self._wanted = -1
        self._got = 0
        self._head = b""
        self._began_s = 0.0
        self.took: list[float] = []
        self.failed = 0
        self.stopping = False
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if not self._every_s:
            self.send()

    def keep_pace(self, at_s: float) -> None:
        """Ask now and at every ``every_s`` from ``at_s`` (the loop's time) on."""
        if self.stopping:
            if not self._due:
                self._transport.close()
            return
        self._due.append(time.perf_counter())
        if len(self._due) == 1:
            self.send()
        asyncio.get_running_loop().call_at(at_s + self._every_s, self.keep_pace, at_s + self._every_s)

    def send(self) -> None:
        if self.stopping and not self._due:
            self._transport.close()
            return
        request = self._requests[self._at]
        self._at = (self._at + 1) % len(self._requests)
        self._began_s = self._due[0] if self._due else time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._wanted < 0:
            data = self._head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._head = data
                return
            self._head = b""
            head = data[:end].lower()
            at = head.index(b"content-length:") + 15
            self._wanted = int(head[at : head.find(b"\r\n", at) if head.find(b"\r\n", at) > 0 else end])
            self._got = len(data) - end - 4
            if not head.startswith(b"http/1.1 2"):
                self.failed += 1
                if self.failed == 1:
                    print(data[:600], file=sys.stderr)
        else:
            self._got += len(data)
        if self._got >= self._wanted:
            self._wanted = -1
            self.took.append(time.perf_counter() - self._began_s)
            if self._every_s:
                self._due.popleft()
                if self._due:
                    self.send()
            elif self._pause_s:
                asyncio.get_running_loop().call_later(self._pause_s, self.send)
            else:
                self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


async def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Carry a plan out."""
    loop = asyncio.get_running_loop()
    connections = []
    cpu = time.process_time()
    began = time.perf_counter()
    for requests in plan["requests"]:
        _, connection = await loop.create_connection(
            lambda requests=requests: Connection(
                [base64.b64decode(one) for one in requests], plan.get("pause_s", 0), plan.get("every_s", 0)
            ),
            plan["host"],
            plan["port"],
        )
        connections.append(connection)
    if every_s := plan.get("every_s", 0):
        for number, connection in enumerate(connections):
            at_s = loop.time() + every_s * number / len(connections)
            loop.call_at(at_s, connection.keep_pace, at_s)
    await asyncio.sleep(plan["seconds"])
    for connection in connections:
        connection.stopping = True
    await asyncio.wait([connection.ended for connection in connections], timeout=5)
    seconds = time.perf_counter() - began
    took = sorted(one for connection in connections for one in connection.took)
    return {
        "per_s": len(took) / seconds,
        "p50_s": took[len(took) // 2],
        "p99_s": took[len(took) * 99 // 100],
        "failed": sum(connection.failed for connection in connections),
        "count": len(took),
        "busy": (time.process_time() - cpu) / seconds,
        "took_s": took if every_s else [],
    }


def main() -> None:
    for line in sys.stdin:
        plan = json.loads(line)
        if "core" in plan:
            os.sched_setaffinity(0, {plan["core"]})
        print(json.dumps(uvloop.run(run(plan))), flush=True)


if __name__ == "__main__":
    main()
