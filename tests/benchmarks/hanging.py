"""One tenant's database hangs: what that does to the other tenants of the same server.

Four tenants append at an easy pace to their own SQLite files over HTTP, alone and while a fifth, whose PostgreSQL has
fallen silent with its connections open, keeps asking on sixteen connections of its own. Rounds of both take turns. Run:
``python -m benchmarks.hanging [--quick]``.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import statistics
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.figures import Row, at_most, main, ratio, ratios, row, us
from benchmarks.http import BODY, get, post
from benchmarks.servers import beside_the_load, finish, loading, serving
from nagaya import Message, Nagaya
from nagaya.settings import Settings
from parts.postgres import APP, PASSWORD, running
from support.tcp_proxy import Proxy

OTHERS = 4
ASKING = 16
PAUSE_S = 0.1
"""Between an answer and the next question of the tenant whose database hangs."""
WARM_S = 2.0


async def prepare(data: Path, database: str, proxy: Proxy) -> tuple[list[list[str]], bytes]:
    """The others' requests, one list for each, and the question of the tenant on PostgreSQL."""
    plan = []
    async with Nagaya.open(settings=Settings(data=str(data), allowed_hosts=("127.0.0.1",))) as nagaya:
        for number in range(OTHERS):
            await nagaya.tenants.create(f"bench-other-{number}", name="Bench")
            token, chat = await _chat(nagaya, f"bench-other-{number}")
            plan.append([post(f"/v1/conversations/{chat}/items", BODY, token)])
        secret = json.dumps({"user": APP, "password": PASSWORD}).encode()
        await nagaya.set_connection("bench-hanging", "postgresql-connection", secret)
        store = f"postgresql://127.0.0.1:{proxy.port}/{database}?sslmode=disable"
        await nagaya.tenants.create("bench-hanging", name="Bench", store=store)
        token, chat = await _chat(nagaya, "bench-hanging")
    return plan, base64.b64decode(get(f"/v1/conversations/{chat}/items?limit=1", token))


async def _chat(nagaya: Nagaya, tenant_id: str) -> tuple[str, str]:
    token = await nagaya.tenants.mint(tenant_id, "mio")
    async with nagaya.session(await nagaya.enter(token)) as tenant:
        chat = await tenant.conversations.create()
        await tenant.conversations.append(chat.id, Message.user("here"))
    return token, chat.id


class Asking:
    """The hanging tenant's clients: each asks, waits for its answer, pauses, and asks again.

    They begin one after the other within the first pause. Begun together they would go on in step for ever, as clients
    that know nothing of each other do not, and what is measured would be a queue of sixteen.
    """

    def __init__(self, port: int, question: bytes) -> None:
        self._port = port
        self._question = question
        self.seen: Counter[int] = Counter()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Asking:
        self._tasks = [asyncio.create_task(self._ask(PAUSE_S * number / ASKING)) for number in range(ASKING)]
        return self

    async def __aexit__(self, *_: Any) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            while True:
                writer.write(self._question)
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length[15:]))
                self.seen[int(head[9:12])] += 1
                await asyncio.sleep(PAUSE_S)
        finally:
            writer.close()


async def figures(data: Path, plan: list[list[str]], question: bytes, proxy: Proxy, quick: bool) -> list[Row]:
    rounds, seconds = (4, 3.0) if quick else (12, 5.0)

    def p99_s(port: int) -> float:
        with loading(port, plan, seconds, pause_s=0.004) as process:
            return float(finish(process)["p99_s"])

    alone: list[float] = []
    beside: list[float] = []
    with serving(data, NAGAYA_ALLOWED_HOSTS="127.0.0.1") as (port, _):
        async with Asking(port, question) as asking:
            await asyncio.sleep(WARM_S)
            assert set(asking.seen) == {200}, f"before anything hangs: {asking.seen}"
        await asyncio.to_thread(p99_s, port)
        beside_the_load()  # as every client: what asks here must not take the server's core from it
        proxy.swallow = True
        refused: Counter[int] = Counter()
        for number in range(rounds):
            # Every other round begins with the other one, so that neither is always the later.
            for hangs in (False, True) if number % 2 else (True, False):
                if not hangs:
                    alone.append(await asyncio.to_thread(p99_s, port))
                    continue
                async with Asking(port, question) as asking:
                    await asyncio.sleep(WARM_S / 2)
                    beside.append(await asyncio.to_thread(p99_s, port))
                refused += asking.seen
    assert refused[200] == 0, "the database did not hang"
    shares = ratios(beside, alone)
    grown = ratio(beside, alone) - 1
    return [
        row(
            "one tenant's PostgreSQL hangs: the other tenants' append p99",
            "the others alone",
            at_most(grown, 0.1, "{:+.0%}"),
            f"{us(statistics.median(beside))}; alone {us(statistics.median(alone))}; {sum(refused.values()):,} refusals",
            shares,
        )
    ]


async def measure(folder: Path, quick: bool) -> list[Row]:
    """The row of the hanging store."""
    # The server is not root's, and so not in a folder that only root may enter.
    home = Path(tempfile.mkdtemp(prefix="nagaya-pg-"))
    with ExitStack() as parts:
        parts.callback(shutil.rmtree, home, ignore_errors=True)
        server = parts.enter_context(running(home))
        database = await server.new_database()
        async with Proxy("127.0.0.1", server.port) as proxy:
            plan, question = await prepare(folder / "data", database, proxy)
            return await figures(folder / "data", plan, question, proxy, quick)


if __name__ == "__main__":
    main(measure)
