"""The program as people run it: commands and servers as processes of their own, and a model that takes its time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from nagaya import Nagaya
from nagaya.settings import Settings
from parts import chat_server
from parts.chat_server import ChatServer
from parts.loopback import on_loopback

PROGRAM = [sys.executable, "-m", "nagaya"]
PATIENCE_S = 90.0


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


def environment(**more: str) -> dict[str, str]:
    """The tests' own environment, without what would change the program's answers."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NAGAYA_", "LC_", "LANG"))}
    return {"NAGAYA_REGION": "ap-northeast-1", **kept, "LANG": "C.UTF-8", **more}


def nagaya(*arguments: str, stdin: str = "", through: Sequence[str] = (), **env: str) -> Result:
    """Run one command to its end, ``through`` another program where one is named."""
    done = subprocess.run(
        [*through, *PROGRAM, *arguments],
        input=stdin.encode(),
        capture_output=True,
        env=environment(**env),
        timeout=PATIENCE_S,
        check=False,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def furnish(data: Path, *tenants: str, models: str = "builtin://", allowed: str = "") -> dict[str, str]:
    """Make tenants and an API key for each and for an operator (under ``""``), through the library."""
    return asyncio.run(_furnish(data, tenants, models, allowed))


async def _furnish(data: Path, tenants: tuple[str, ...], models: str, allowed: str) -> dict[str, str]:
    settings = Settings(data=str(data), allowed_hosts=(allowed,) if allowed else ())
    async with Nagaya.open(settings=settings) as opened:
        for tenant in tenants:
            await opened.tenants.create(tenant, name=tenant.title(), models=[models])
        keys = {
            tenant: (await opened.tenants.create_api_key(tenant, name="test", user="mio")).api_key for tenant in tenants
        }
        operator = await opened.tenants.create_api_key(None, name="test", user="ops", role="operator")
        return {**keys, "": operator.api_key}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Server:
    """A running ``nagaya serve``. ``lines`` are its log so far."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._rest = b""
        self.ready_s = 0.0

    @property
    def url(self) -> str:
        listening = next(json.loads(line) for line in self.lines if "server.listening" in line)
        return str(listening["url"])

    def wait_for(self, text: str, *, times: int = 1, within_s: float = PATIENCE_S) -> None:
        """Read the log until that many lines hold ``text``."""
        until = time.monotonic() + within_s
        assert self.process.stderr is not None
        while True:
            if sum(text in line for line in self.lines) >= times:
                return
            if not select.select([self.process.stderr], [], [], max(0.0, until - time.monotonic()))[0]:
                raise AssertionError(f"no line with {text!r} in time: {self.lines}")
            piece = os.read(self.process.stderr.fileno(), 65536)
            if not piece:
                raise AssertionError(f"the server ended without {text!r}: {self.lines}")
            *whole, self._rest = (self._rest + piece).split(b"\n")
            self.lines += [line.decode() for line in whole]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.finish()

    def finish(self) -> int:
        """Wait for the end and give the exit code."""
        _, rest = self.process.communicate(timeout=PATIENCE_S)
        self.lines += (self._rest + rest).decode().splitlines()
        self._rest = b""
        return self.process.returncode


@contextlib.contextmanager
def serving(data: Path, *arguments: str, **env: str) -> Iterator[Server]:
    """``nagaya serve`` on a free port, ready; killed at the end if it still runs."""
    began_s = time.monotonic()
    command = [*PROGRAM, "serve", "--data", str(data), "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment(**env)) as process:
        server = Server(process)
        try:
            server.wait_for("server.listening")
            server.ready_s = time.monotonic() - began_s
            yield server
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.communicate(timeout=PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()


class SlowModel(ChatServer):
    """A model that answers word by word for ``seconds``."""

    seconds = 3.0

    async def _parts(self, model: str, body: Any) -> AsyncIterator[bytes]:
        for number in range(10):
            yield chat_server._chunk({"content": f"word{number} "})
            await asyncio.sleep(self.seconds / 10)
        yield chat_server._chunk({}, "stop")
        yield chat_server._usage(10) + b"data: [DONE]\n\n"


@contextlib.contextmanager
def slow_model() -> Iterator[SlowModel]:
    """The slow model on a free port, in a thread. Its address: ``openai+http://127.0.0.1:PORT/v1#keyless``."""
    model = SlowModel()
    with on_loopback(model.app) as model.port:
        yield model


def ask(url: str, key: str, method: str, path: str, body: Any = None) -> httpx.Response:
    """One request on a connection of its own, so that each may reach another worker."""
    return httpx.request(method, url + path, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE_S)
