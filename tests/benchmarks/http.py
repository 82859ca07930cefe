"""HTTP: an authenticated, admitted, sealed and fsynced append, and the last fifty, beside a bare FastAPI app.

One worker each (uvicorn, uvloop, httptools), 32 keep-alive connections of a load generator in another process, in
turns. The yardstick neither signs in, nor checks, nor stores anything. Run: ``python -m benchmarks.http [--quick]``.
"""

from __future__ import annotations

import base64
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.figures import Row, at_least, at_most, main, ratio, ratios, row, us
from benchmarks.servers import load, serving
from nagaya import Message, Nagaya

CONNECTIONS = 32
CONVERSATIONS = 64
TEXT = "m" * 1024
BODY = json.dumps({"items": [{"type": "message", "role": "user", "content": TEXT}]}).encode()


def post(path: str, body: bytes, token: str = "") -> str:
    """A POST as raw bytes, in base64."""
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: bench\r\naccept: */*\r\n{_bearer(token)}"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return base64.b64encode(head.encode() + body).decode()


def get(path: str, token: str = "") -> str:
    """A GET as raw bytes, in base64."""
    head = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: bench\r\naccept: */*\r\n{_bearer(token)}\r\n"
    return base64.b64encode(head.encode()).decode()


def _bearer(token: str) -> str:
    return f"authorization: Bearer {token}\r\n" if token else ""


async def prepare(folder: Path) -> tuple[str, list[str]]:
    """A tenant with conversations of sixty items each: a token and the conversations' ids."""
    async with Nagaya.open(folder) as nagaya:
        await nagaya.tenants.create("bench-http", name="Bench")
        token = await nagaya.tenants.mint("bench-http", "mio")
        async with nagaya.session(await nagaya.enter(token)) as tenant:
            chats = []
            for _ in range(CONVERSATIONS):
                chat = await tenant.conversations.create()
                for _ in range(3):
                    await tenant.conversations.append(chat.id, *(Message.user(TEXT) for _ in range(20)))
                chats.append(chat.id)
    return token, chats


def compared(
    ours: tuple[int, list[list[str]]], theirs: tuple[int, list[list[str]]], rounds: int, seconds: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rounds of both in turn, after one of each to warm up."""
    mine, yours = [], []
    for number in range(rounds + 1):
        one, other = load(*theirs, seconds), load(*ours, seconds)
        if number:
            yours.append(one)
            mine.append(other)
    return mine, yours


def _of(seen: list[dict[str, Any]], name: str) -> list[float]:
    return [one[name] for one in seen]


def _shown(seen: list[dict[str, Any]]) -> str:
    per_s, p99 = statistics.median(_of(seen, "per_s")), statistics.median(_of(seen, "p99_s"))
    return f"{per_s:,.0f}/s, p99 {us(p99)}"


async def measure(folder: Path, quick: bool) -> list[Row]:
    """The HTTP rows."""
    token, chats = await prepare(folder / "data")
    rounds, seconds = (3, 2.0) if quick else (9, 4.0)
    with serving(folder / "data") as (port, _), serving(None) as (other, _):
        # The lists first: later the appends would push a conversation's pages out of the cache.
        lists = [[get(f"/v1/conversations/{chat}/items?limit=50", token) for chat in chats[n::CONNECTIONS]]
                 for n in range(CONNECTIONS)]  # fmt: skip
        mine, yours = compared((port, lists), (other, [[get("/list")]] * CONNECTIONS), rounds, seconds)
        listed = row(
            "HTTP: the last 50, opened, 32 connections",
            "FastAPI + uvicorn returning a ready list of the same 50",
            at_least(ratio(_of(mine, "per_s"), _of(yours, "per_s")), 0.5),
            f"{_shown(mine)}; FastAPI {_shown(yours)}",
            ratios(_of(mine, "per_s"), _of(yours, "per_s")),
        )
        appends = [[post(f"/v1/conversations/{chat}/items", BODY, token) for chat in chats[n::CONNECTIONS]]
                   for n in range(CONNECTIONS)]  # fmt: skip
        mine, yours = compared((port, appends), (other, [[post("/echo", BODY)]] * CONNECTIONS), rounds, seconds)
        rates = ratios(_of(mine, "per_s"), _of(yours, "per_s"))
        tails = ratios(_of(mine, "p99_s"), _of(yours, "p99_s"))
        both = f"{_shown(mine)}; FastAPI {_shown(yours)}"
        appended = "HTTP: authenticated, admitted, sealed, fsynced append, 32 connections, one worker"
        echo = "FastAPI + uvicorn echo of the same body (a typed model)"
        return [
            row(appended, echo, at_least(statistics.median(rates), 0.8), both, rates),
            row(f"{appended}: p99", echo, at_most(statistics.median(tails), 3.0), both, tails),
            listed,
        ]


if __name__ == "__main__":
    main(measure)
