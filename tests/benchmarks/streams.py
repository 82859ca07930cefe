"""A thousand answers being streamed by one worker: what each holds, and what they do to everybody else's appends.

The model is a server in another process that says a word a second. Memory is the growth of the server's resident size
per open stream, and the appends are those of another tenant, sent at an easy pace on four connections before and
during. Run: ``python -m benchmarks.streams [--quick]``.
"""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import Row, at_most, main, ratios, row, us
from benchmarks.http import BODY, post
from benchmarks.servers import HERE, finish, free_port, loading, rss_kib, serving, wait_for
from nagaya import Nagaya
from nagaya.settings import Settings

PER_TENANT = 50
HOLD_S = 120
ROUNDS = 3
ASK = json.dumps({"input": "Say something slowly", "stream": True, "store": False}).encode()


class Reader(asyncio.Protocol):
    """Opens a stream and counts what comes."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.begun = asyncio.get_running_loop().create_future()
        self.bytes = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.bytes += len(data)
        if not self.begun.done() and b"word" in data:
            self.begun.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.begun.done():
            self.begun.set_exception(exc or ConnectionError("the stream ended before it began"))


async def prepare(folder: Path, model_port: int, tenants: int) -> tuple[list[str], str, list[str]]:
    """Tenants with the slow model and their tokens; one more whose appends are watched, and its conversations."""
    url = f"openai+http://127.0.0.1:{model_port}/v1#slow"
    tokens = []
    async with Nagaya.open(settings=Settings(data=str(folder), allowed_hosts=("127.0.0.1",))) as nagaya:
        for number in range(tenants):
            await nagaya.tenants.create(f"bench-stream-{number:03}", name="Bench", models=[url])
            tokens.append(await nagaya.tenants.mint(f"bench-stream-{number:03}", "mio"))
        await nagaya.tenants.create("bench-appends", name="Bench")
        token = await nagaya.tenants.mint("bench-appends", "mio")
        async with nagaya.session(await nagaya.enter(token)) as tenant:
            chats = [(await tenant.conversations.create()).id for _ in range(4)]
    return tokens, token, chats


def _appends(port: int, token: str, chats: list[str], seconds: float) -> dict[str, Any]:
    requests = [[post(f"/v1/conversations/{chat}/items", BODY, token)] for chat in chats]
    with loading(port, requests, seconds, pause_s=0.02) as process:
        return finish(process)


async def _open(port: int, token: str) -> Reader:
    request = base64.b64decode(post("/v1/responses", ASK, token))
    _, reader = await asyncio.get_running_loop().create_connection(lambda: Reader(request), "127.0.0.1", port)
    await asyncio.wait_for(reader.begun, 60)
    return reader


async def measure(folder: Path, quick: bool) -> list[Row]:
    """The stream rows."""
    streams, seconds = (200, 3.0) if quick else (1_000, 10.0)
    model_port = free_port()
    model = subprocess.Popen([sys.executable, "-m", "benchmarks.slow_model", str(model_port), str(HOLD_S)], cwd=HERE)
    try:
        wait_for(model_port, "/", model)
        tokens, token, chats = await prepare(folder / "data", model_port, -(-streams // PER_TENANT) + 1)
        with serving(folder / "data", NAGAYA_ALLOWED_HOSTS="127.0.0.1") as (port, pid):
            # One stream of its own tenant first: it brings in the model client's modules.
            first = await _open(port, tokens[-1])
            await asyncio.to_thread(_appends, port, token, chats, 1.0)
            idle = [await asyncio.to_thread(_appends, port, token, chats, seconds) for _ in range(ROUNDS)]
            before_kib = rss_kib(pid)
            readers = []
            for start in range(0, streams, 20):
                some = range(start, min(start + 20, streams))
                readers += await asyncio.gather(*(_open(port, tokens[number // PER_TENANT]) for number in some))
            await asyncio.sleep(2)
            each_kib = (rss_kib(pid) - before_kib) / streams
            began = time.perf_counter()
            came = sum(reader.bytes for reader in readers)
            busy = [await asyncio.to_thread(_appends, port, token, chats, seconds) for _ in range(ROUNDS)]
            rate = (sum(reader.bytes for reader in readers) - came) / (time.perf_counter() - began) / streams
            for reader in [first, *readers]:
                reader.transport.close()
            rounds = ratios([seen["p99_s"] for seen in busy], [seen["p99_s"] for seen in idle])
            idle_s = statistics.median(seen["p99_s"] for seen in idle)
            busy_s = statistics.median(seen["p99_s"] for seen in busy)
    finally:
        model.terminate()
        model.wait(5)
    name = f"{streams:,} open streams, one worker"
    return [
        row(f"{name}: memory each", "idle server", at_most(each_kib, 40, "{:.0f} KiB"),
            f"an event a second, {rate:,.0f} bytes/s each"),
        row(f"{name}: others' append p99", "the same appends before", at_most(busy_s / idle_s - 1, 0.2, "{:+.0%}"),
            f"{us(busy_s)}; before {us(idle_s)}", rounds),
    ]  # fmt: skip


if __name__ == "__main__":
    main(measure)
