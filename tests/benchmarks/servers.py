"""Servers in child processes: Nagaya's, and the yardsticks' FastAPI app. One worker, uvicorn, uvloop, httptools."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

HERE = Path(__file__).parents[1]
SERVER_CORE, CLIENT_CORE = 0, 1
_PINS = os.cpu_count() == 2
"""On two cores, the server has one and the client the other; with more there is room for everybody."""


class Message(BaseModel):
    """What the yardstick parses and writes again."""

    type: str
    role: str
    content: str


class Items(BaseModel):
    items: list[Message]


def yardstick() -> FastAPI:
    """FastAPI with a typed echo and a ready list."""
    app = FastAPI()
    text = "m" * 1024
    ready = {
        "object": "list",
        "data": [
            {
                "type": "message",
                "id": f"item_{number:032x}",
                "status": "completed",
                "role": "user",
                "content": [{"type": "input_text", "text": text}],
            }
            for number in range(50)
        ],
        "first_id": f"item_{0:032x}",
        "last_id": f"item_{49:032x}",
        "has_more": True,
    }

    @app.post("/echo")
    async def echo(body: Items) -> Items:
        return body

    @app.get("/list")
    async def listing() -> Any:
        return ready

    @app.get("/healthz")
    async def healthz() -> Any:
        return {}

    return app


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def nagaya_command(folder: Path, port: int) -> list[str]:
    """``nagaya serve`` on a folder, as anybody would start it."""
    return [sys.executable, "-m", "nagaya", "serve", "--data", str(folder), "--port", str(port)]


def yardstick_command(port: int) -> list[str]:
    """The FastAPI app under uvicorn, with every option that makes it quicker."""
    return [
        sys.executable, "-m", "uvicorn", "--factory", "benchmarks.servers:yardstick", "--port", str(port),
        "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning", "--no-proxy-headers",
        "--no-server-header",
    ]  # fmt: skip


@contextlib.contextmanager
def serving(folder: Path | None, **environment: str) -> Iterator[tuple[int, int]]:
    """A server with one worker, Nagaya's on a folder or (None) the yardstick: gives its port and process id."""
    port = free_port()
    command = yardstick_command(port) if folder is None else nagaya_command(folder, port)
    process = subprocess.Popen(command, cwd=HERE, env={**os.environ, "NAGAYA_LOG_LEVEL": "error", **environment})
    try:
        wait_for(port, "/healthz", process)
        if _PINS:
            pin(process.pid)
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


def pin(pid: int) -> None:
    """Every thread of a process to the server's core."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {SERVER_CORE})


def beside_the_load() -> None:
    """This thread to the clients' core, from here on."""
    if _PINS:
        os.sched_setaffinity(0, {CLIENT_CORE})


def wait_for(port: int, path: str, process: subprocess.Popen[Any] | None = None, *, limit_s: float = 20.0) -> float:
    """Seconds until the path answers 200."""
    began = time.perf_counter()
    while time.perf_counter() - began < limit_s:
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
                if answer.status == 200:
                    return time.perf_counter() - began
        except OSError:
            time.sleep(0.005)
    raise RuntimeError(f"no answer on {path} in {limit_s:g} s")


def rss_kib(pid: int) -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError("no VmRSS")


def load(port: int, requests: list[list[str]], seconds: float, *, pause_s: float = 0.0) -> dict[str, Any]:
    """Let the load generator carry out a plan."""
    with loading(port, requests, seconds, pause_s=pause_s) as process:
        return finish(process)


def planned(port: int, requests: list[list[str]], seconds: float, **pace: float) -> dict[str, Any]:
    """What the load generator is to do."""
    plan = {"host": "127.0.0.1", "port": port, "seconds": seconds, "requests": requests, **pace}
    return {**plan, "core": CLIENT_CORE} if _PINS else plan


@contextlib.contextmanager
def loading(
    port: int, requests: list[list[str]], seconds: float, *, pause_s: float = 0.0
) -> Iterator[subprocess.Popen[bytes]]:
    """A load generator at work; ask :func:`finish` for what it saw."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load"], cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(planned(port, requests, seconds, pause_s=pause_s)).encode() + b"\n")
    process.stdin.close()
    try:
        yield process
    finally:
        process.wait(seconds + 20)


def finish(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What a load generator saw."""
    assert process.stdout is not None
    return checked(json.loads(process.stdout.read()))


def checked(seen: dict[str, Any]) -> dict[str, Any]:
    """What a load generator saw, where nothing was refused."""
    if seen["failed"]:
        raise RuntimeError(f"{seen['failed']} of {seen['count']} requests were refused")
    return seen
