"""A load balancer of the tests' own: every new connection goes to the next server in turn."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence


class Balancer:
    """Passes connections on to servers of loopback. ``port`` is where it listens, ``down`` the ports it leaves out."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._turns = itertools.cycle(ports)
        self._count = len(ports)
        self.down: set[int] = set()
        self.passed: dict[int, int] = dict.fromkeys(ports, 0)
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, listening: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        listening.set()
        await stop.wait()
        server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(self._count):
            port = next(self._turns)
            if port in self.down:
                continue
            try:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                continue
            self.passed[port] += 1
            await asyncio.gather(_pass(reader, far_writer), _pass(far_reader, writer))
            return
        writer.close()


async def _pass(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await source.read(65_536):
            target.write(piece)
            await target.drain()
    target.close()


@contextlib.contextmanager
def balancing(*ports: int) -> Iterator[Balancer]:
    """A balancer before these servers, in a thread of its own."""
    balancer, listening = Balancer(ports), threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        serving = asyncio.create_task(balancer.serve(listening, stop))
        await serving
        open_still = asyncio.all_tasks() - {asyncio.current_task()}
        for task in open_still:
            task.cancel()
        await asyncio.gather(*open_still, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    assert listening.wait(30)
    try:
        yield balancer
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(5)
        loop.close()
