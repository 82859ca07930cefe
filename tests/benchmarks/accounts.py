"""Two hundred tenants on one server, each entering an AWS account of its own: what one more of them costs.

Every tenant has a role, an ExternalId and a table of its own in the AWS stand-in. A tenant's first request assumes the
role, makes the client, opens the room and reads; its second only reads. Then a server that keeps few rooms open is
asked for all tenants. Run:
``python -m benchmarks.accounts [--quick]``.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import statistics
import time
from pathlib import Path
from typing import Any

from aiobotocore.session import get_session

from benchmarks.figures import Row, at_most, main, row, us
from benchmarks.http import get
from benchmarks.servers import rss_kib, serving
from nagaya import Message, Nagaya
from nagaya.settings import Settings
from parts.ministack import REGION, Ministack, running

STORE = f"dynamodb://{REGION}/bench"
OPEN = 16
ROUNDS = 5
ALLOWED = {"NAGAYA_ALLOWED_HOSTS": "127.0.0.1"}


async def prepare(data: Path, tenants: int) -> list[bytes]:
    """The tenants; gives each one's request for its last message."""
    asks = []
    settings = Settings(data=str(data), allowed_hosts=("127.0.0.1",), open_stores=OPEN)
    async with (
        Nagaya.open(settings=settings) as nagaya,
        get_session().create_client("iam", region_name=REGION) as iam,
    ):
        for number in range(tenants):
            name = f"bench-account-{number:03}"
            secret = {"role_arn": await _role(iam, name, await nagaya.external_id(name))}
            await nagaya.set_connection(name, "aws-connection", json.dumps(secret).encode())
            await nagaya.tenants.create(name, name="Bench", store=STORE)
            token = await nagaya.tenants.mint(name, "mio")
            async with nagaya.session(await nagaya.enter(token)) as tenant:
                chat = await tenant.conversations.create()
                await tenant.conversations.append(chat.id, Message.user("here"))
            asks.append(base64.b64decode(get(f"/v1/conversations/{chat.id}/items?limit=1", token)))
    return asks


async def _role(iam: Any, name: str, external_id: str) -> str:
    """A role that opens with this ExternalId and may do everything with DynamoDB; its ARN."""
    trust = {
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::000000000000:root"},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"sts:ExternalId": external_id}},
    }
    allow = {"Effect": "Allow", "Action": "dynamodb:*", "Resource": "*"}
    made = await iam.create_role(RoleName=name, AssumeRolePolicyDocument=_policy(trust))
    await iam.put_role_policy(RoleName=name, PolicyName="all", PolicyDocument=_policy(allow))
    return str(made["Role"]["Arn"])


def _policy(statement: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


class Line:
    """One connection to the server."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._file = self._socket.makefile("rb")

    def ask_s(self, request: bytes) -> float:
        """Seconds until the whole answer is there."""
        began = time.perf_counter()
        self._socket.sendall(request)
        status, length = self._file.readline(), 0
        while (line := self._file.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                length = int(line[15:])
        body = self._file.read(length)
        took = time.perf_counter() - began
        if b" 200 " not in status:
            raise RuntimeError(f"{status!r}: {body[:300]!r}")
        return took

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def connections_to(port: int) -> int:
    """Connections that are open to a port of loopback, counted at the asking end."""
    found = 0
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "01" and int(fields[2].rpartition(":")[2], 16) == port:
            found += 1
    return found


def _visit(port: int, pid: int, asks: list[bytes]) -> tuple[list[float], list[float], float]:
    """Each tenant's first and second request in seconds, and the MiB that each tenant after the first added."""
    line = Line(port)
    for _ in range(3):
        line.ask_s(asks[0])  # it brings in the modules of AWS
    before_kib = rss_kib(pid)
    first, second = [], []
    for ask in asks[1:]:
        first.append(line.ask_s(ask))
        second.append(statistics.median(line.ask_s(ask) for _ in range(3)))
    line.close()
    return first, second, (rss_kib(pid) - before_kib) / 1024 / (len(asks) - 1)


async def figures(data: Path, stand_in: Ministack, asks: list[bytes]) -> list[Row]:
    at = int(stand_in.url.rpartition(":")[2])
    with serving(data, **ALLOWED) as (port, pid):
        first, second, each_mib = await asyncio.to_thread(_visit, port, pid, asks)
        all_open = connections_to(at)
    with serving(data, **ALLOWED, NAGAYA_OPEN_STORES=str(OPEN)) as (port, pid):
        again, _, few_mib = await asyncio.to_thread(_visit, port, pid, asks)
        few_open = connections_to(at)
    more = [(one - hot) * 1e3 for one, hot in zip(first, second, strict=True)]
    more_ms = statistics.median(more)
    rounds = [statistics.median(more[at::ROUNDS]) for at in range(ROUNDS)]
    job = f"{len(asks)} tenants with AWS credentials of their own, one server"
    shown = f"first request {us(statistics.median(first))}, second {us(statistics.median(second))}"
    return [
        row(f"{job}: what a further tenant's first request takes", "its second request",
            at_most(more_ms, 30, "{:.1f} ms more"), f"{shown}; AssumeRole, client, room, key", rounds),
        row(f"{job}: memory of a further tenant", "–", at_most(each_mib, 2, "{:.2f} MiB"),
            f"{all_open} connections to the stand-in at the end"),
        row(f"{job}, {OPEN} rooms kept open: connections left", "–",
            at_most(few_open / OPEN, 2, "{:.1f} a room"), f"{few_open} open at the end, {all_open} where all stay open; {few_mib:.2f} MiB a tenant; first request {us(statistics.median(again))}"),
    ]  # fmt: skip


async def measure(folder: Path, quick: bool) -> list[Row]:
    """The rows of many accounts."""
    with running() as stand_in:
        os.environ |= {
            "AWS_ENDPOINT_URL": stand_in.url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip
        asks = await prepare(folder / "data", 40 if quick else 201)
        return await figures(folder / "data", stand_in, asks)


if __name__ == "__main__":
    main(measure)
