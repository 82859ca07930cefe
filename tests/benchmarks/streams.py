"""A thousand answers being streamed by one worker: what each holds, and what they do to everybody else's appends.

Two servers on one core: through one a thousand answers are streamed, the other is idle. On the other core are the load
generator and one process of the model and its readers (``crowd.py``). Appends of another tenant, 300 a second whatever
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
from benchmarks.servers import HERE, beside_the_load, finish, free_port, load, loading, rss_kib, serving, wait_for
from nagaya import Nagaya
from nagaya.settings import Settings

PER_TENANT = 50
CONNECTIONS = 6
APPENDS_PER_S = 300
TURN_S = 3.0
PER_ROUND = 4
"""Turns of a round: 3,600 appends on each side."""
SETTLE_S = 0.5
ASK = json.dumps({"input": "Say something slowly", "stream": True, "store": False}).encode()
DIRECT = json.dumps({"model": "direct"}).encode()


class Crowd:
    """The process of the model and its readers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def tell(self, **command: Any) -> dict[str, Any]:
        """Have a command carried out, and give the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer


@contextlib.contextmanager
def crowd(model_port: int) -> Iterator[Crowd]:
    """A crowd without readers yet; its model is there already."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.crowd", str(model_port)],
        cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(model_port, "/")
        yield Crowd(process)
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

    def __init__(self, words: str, port: int, appends: list[list[str]], readers: Crowd) -> None:
        self._words = words
        self.port = port
        self.appends = appends
        self._readers = readers
        self.took_s: list[list[float]] = []
        self.words_per_s: list[float] = []
        self.bytes_per_s: list[float] = []
        self.crowd_busy: list[float] = []

    def turn(self, seconds: float) -> None:
        """Appends for so long, with the words that belong to them."""
        self._readers.tell(speak=self._words)
        time.sleep(SETTLE_S)
        before, began_s = self._readers.tell(count=self._words), time.perf_counter()
        with loading(self.port, self.appends, seconds, every_s=CONNECTIONS / APPENDS_PER_S) as process:
            self.took_s.append(finish(process)["took_s"])
        after, took_s = self._readers.tell(count=self._words), time.perf_counter() - began_s
        words = [late - early for early, late in zip(before["words"], after["words"], strict=True)]
        if min(words) < took_s * 0.8 - 1:
            raise RuntimeError(f"a reader had {min(words)} words in {took_s:.1f} s")
        self.words_per_s.append(sum(words) / took_s / len(words))
        self.bytes_per_s.append((after["bytes"] - before["bytes"]) / took_s / len(words))
        self.crowd_busy.append((after["cpu_s"] - before["cpu_s"]) / took_s)

    def p99_s(self) -> list[float]:
        """Of each round, which is several turns together: enough appends for a hundredth of them to mean something."""
        rounds = zip(*(self.took_s[number::PER_ROUND] for number in range(PER_ROUND)), strict=True)
        return [p99([one for turn in turns for one in turn]) for turns in rounds]


async def measure(folder: Path, quick: bool) -> list[Row]:
    """The stream rows."""
    streams, rounds = (200, 3) if quick else (1_000, 5)
    model_port = free_port()
    beside_the_load()
    with crowd(model_port) as readers:
        asked, token, chats = await prepare(folder / "data", model_port, streams)
        _, other_token, other_chats = await prepare(folder / "other", model_port, PER_TENANT)
        with (
            serving(folder / "data", NAGAYA_ALLOWED_HOSTS="127.0.0.1") as (port, pid),
            serving(folder / "other", NAGAYA_ALLOWED_HOSTS="127.0.0.1") as (other_port, _),
        ):
            during = Side("through the server", port, appends(token, chats), readers)
            before = Side("direct", other_port, appends(other_token, other_chats), readers)
            # A stream of every tenant first: their rooms, and the model client's modules, are no part of a stream.
            readers.tell(open=asked[::PER_TENANT], port=port)
            readers.tell(open=[post("/v1/chat/completions", DIRECT)] * streams, port=None)
            for side in (before, during):
                load(side.port, side.appends, 2.0)
            idle_kib = rss_kib(pid)
            rest = [one for number, one in enumerate(asked) if number % PER_TENANT]
            readers.tell(open=rest, port=port)
            for _ in range(rounds * PER_ROUND):
                os.kill(pid, signal.SIGSTOP)
                before.turn(TURN_S)
                os.kill(pid, signal.SIGCONT)
                during.turn(TURN_S)
            each_kib = (rss_kib(pid) - idle_kib) / len(rest)
    for title, side in (("before", before), ("during", during)):
        said = (
            f"{', '.join(map(us, side.p99_s()))}; the crowd took {statistics.median(side.crowd_busy):.0%} of its core"
        )
        print(f"appends' p99 {title}: {said}", file=sys.stderr)
    name = f"{streams:,} open streams, one worker"
    words = f"{statistics.median(during.words_per_s):.2f} words a second"
    each_bytes = statistics.median(during.bytes_per_s)
    all_during, all_before = (p99([one for turn in side.took_s for one in turn]) for side in (during, before))
    rates = ratios(during.p99_s(), before.p99_s())
    return [
        row(f"{name}: memory each", "idle server", at_most(each_kib, 40, "{:.0f} KiB"),
            f"{words}, {each_bytes:,.0f} bytes/s each"),
        row(f"{name}: others' append p99", "the same appends to an idle server",
            at_most(statistics.median(rates) - 1, 0.2, "{:+.0%}"),
            f"{us(all_during)}; idle {us(all_before)}", rates),
    ]  # fmt: skip


if __name__ == "__main__":
    main(measure)
