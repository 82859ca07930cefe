"""A thousand answers being streamed by one worker: what each holds, and what they do to everybody else's appends.

Two servers on one core: through one a thousand answers are streamed, the other is idle. On the other core are the load
generator and one process of the model and its readers (``crowd.py``). Appends of another tenant, 400 a second whatever
they take, go to the idle server while the model speaks to as many readers without a server, and the streaming server
is stopped; then to the streaming server while the same words go through it; and so on in turns. So all that differs is
what a server does for its streams. Run: ``python -m benchmarks.streams [--quick]``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.figures import Row, at_most, main, p99, ratios, row, us
from benchmarks.http import BODY, post
from benchmarks.servers import HERE, beside_the_load, checked, free_port, planned, rss_kib, serving, wait_for
from nagaya import Nagaya
from nagaya.settings import Settings

PER_TENANT = 50
CONNECTIONS = 8
APPENDS_PER_S = 400
TURN_S = 1.3
PER_ROUND = 6
"""Turns of a round: 3,120 appends on each side."""
SETTLE_S = 0.3
ASK = json.dumps({"input": "Say something slowly", "stream": True, "store": False}).encode()
DIRECT = json.dumps({"model": "direct"}).encode()


class Helper:
    """A process that carries out commands, each a line of JSON, and answers them so."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def tell(self, **command: Any) -> dict[str, Any]:
        """Have a command carried out, and give the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        if "failed" in answer and isinstance(answer["failed"], str):
            raise RuntimeError(answer["failed"])
        return answer


@contextlib.contextmanager
def helper(module: str, *arguments: str) -> Iterator[Helper]:
    """A helper in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    process = subprocess.Popen(command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Helper(process)
    finally:
        process.terminate()
        process.wait(5)


async def prepare(folder: Path, model_port: int, streams: int) -> tuple[list[str], str, list[str]]:
    """Requests for that many streams, of tenants with the slow model; the token and the conversations of one more, whose
    appends are watched."""
    url = f"openai+http://127.0.0.1:{model_port}/v1#slow"
    tokens = []
    async with Nagaya.open(settings=Settings(data=str(folder), allowed_hosts=("127.0.0.1",))) as nagaya:
        for number in range(streams // PER_TENANT):
            await nagaya.tenants.create(f"bench-stream-{number:03}", name="Bench", models=[url])
            tokens.append(await nagaya.tenants.mint(f"bench-stream-{number:03}", "mio"))
        await nagaya.tenants.create("bench-appends", name="Bench")
        token = await nagaya.tenants.mint("bench-appends", "mio")
        async with nagaya.session(await nagaya.enter(token)) as tenant:
            chats = [(await tenant.conversations.create()).id for _ in range(CONNECTIONS)]
    return [post("/v1/responses", ASK, tokens[number // PER_TENANT]) for number in range(streams)], token, chats


def appends(token: str, chats: list[str]) -> list[list[str]]:
    """What each connection of the load generator sends."""
    return [[post(f"/v1/conversations/{chat}/items", BODY, token)] for chat in chats]


class Side:
    """One of the two: a server to which appends go, while the crowd hears its words in one of two ways."""

    def __init__(self, words: str, port: int, appends: list[list[str]], readers: Helper, load: Helper) -> None:
        self._words = words
        self._port = port
        self._appends = appends
        self._readers = readers
        self._load = load
        self.forget()

    def forget(self) -> None:
        """What was seen so far was for practice."""
        self.took_s: list[list[float]] = []
        self.crowd_busy: list[float] = []
        self._heard: list[list[int]] = []
        self._bytes = 0
        self._seconds = 0.0

    def turn(self, seconds: float) -> None:
        """Appends for so long, with the words that belong to them."""
        self._readers.tell(speak=self._words)
        time.sleep(SETTLE_S)
        before, began_s = self._readers.tell(count=self._words), time.perf_counter()
        plan = planned(self._port, self._appends, seconds, every_s=CONNECTIONS / APPENDS_PER_S)
        self.took_s.append(checked(self._load.tell(**plan))["took_s"])
        after, took_s = self._readers.tell(count=self._words), time.perf_counter() - began_s
        self._heard.append([late - early for early, late in zip(before["words"], after["words"], strict=True)])
        self._bytes += after["bytes"] - before["bytes"]
        self._seconds += took_s
        self.crowd_busy.append((after["cpu_s"] - before["cpu_s"]) / took_s)

    def heard(self) -> str:
        """What each reader heard meanwhile. Raises where one of them heard less than there was to hear."""
        words = [sum(turns) for turns in zip(*self._heard, strict=True)]
        if min(words) < 0.8 * self._seconds:
            raise RuntimeError(f"a reader had {min(words)} words in {self._seconds:.0f} s")
        each_per_s, each_bytes = (value / self._seconds / len(words) for value in (sum(words), self._bytes))
        return f"{each_per_s:.2f} words a second, {each_bytes:,.0f} bytes/s each"

    def p99_s(self) -> list[float]:
        """Of each round, which is several turns together: enough appends for a hundredth of them to mean something."""
        starts = range(0, len(self.took_s), PER_ROUND)
        return [p99([one for turn in self.took_s[start : start + PER_ROUND] for one in turn]) for start in starts]


async def measure(folder: Path, quick: bool) -> list[Row]:
    """The stream rows."""
    streams, rounds = (200, 3) if quick else (1_000, 7)
    model_port = free_port()
    beside_the_load()
    with helper("crowd", str(model_port)) as readers, helper("load") as load:
        wait_for(model_port, "/")
        asked, token, chats = await prepare(folder / "data", model_port, streams)
        _, other_token, other_chats = await prepare(folder / "other", model_port, PER_TENANT)
        with (
            serving(folder / "data", NAGAYA_ALLOWED_HOSTS="127.0.0.1") as (port, pid),
            serving(folder / "other", NAGAYA_ALLOWED_HOSTS="127.0.0.1") as (other_port, other_pid),
        ):
            during = Side("through the server", port, appends(token, chats), readers, load)
            before = Side("direct", other_port, appends(other_token, other_chats), readers, load)
            # A stream of every tenant first: their rooms, and the model client's modules, are no part of a stream.
            readers.tell(open=asked[::PER_TENANT], port=port)
            readers.tell(open=[post("/v1/chat/completions", DIRECT)] * streams, port=None)
            for side in (before, during):
                side.turn(2.0)
                side.forget()
            held_kib = rss_kib(pid), rss_kib(other_pid)
            rest = [one for number, one in enumerate(asked) if number % PER_TENANT]
            readers.tell(open=rest, port=port)
            for _ in range(rounds * PER_ROUND):
                os.kill(pid, signal.SIGSTOP)
                before.turn(TURN_S)
                os.kill(pid, signal.SIGCONT)
                during.turn(TURN_S)
            grown_kib, appends_kib = (rss_kib(one) - kib for one, kib in zip((pid, other_pid), held_kib, strict=True))
            each_kib = (grown_kib - appends_kib) / len(rest)
    for title, side in (("before", before), ("during", during)):
        said = (
            f"{', '.join(map(us, side.p99_s()))}; the crowd took {statistics.median(side.crowd_busy):.0%} of its core"
        )
        print(f"appends' p99 {title}: {said}", file=sys.stderr)
    name = f"{streams:,} open streams, one worker"
    all_during, all_before = (p99([one for turn in side.took_s for one in turn]) for side in (during, before))
    rates = ratios(during.p99_s(), before.p99_s())
    return [
        row(f"{name}: memory each", "an idle server with the same appends", at_most(each_kib, 40, "{:.0f} KiB"),
            during.heard()),
        row(f"{name}: others' append p99", "the same appends to an idle server",
            at_most(statistics.median(rates) - 1, 0.2, "{:+.0%}"),
            f"{us(all_during)}; idle {us(all_before)}", rates),
    ]  # fmt: skip


if __name__ == "__main__":
    main(measure)
