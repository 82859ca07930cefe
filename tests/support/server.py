"""A running server for tests: a child process over a temporary folder, its log, and an operator's key."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from nagaya.settings import Settings
from nagaya.wiring import Nagaya

SERVING = Path(__file__).with_name("serving.py")
READY_S = 60.0


class RunningServer:
    """One server process. ``admin`` is an HTTP client that holds an operator's key; ``log()`` what was logged."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.environment = dict(environment or {})
        self.operator_key = asyncio.run(_operator_key(self.data))
        self.port = 0
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[httpx.Client] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> RunningServer:
        """Start the process and wait until it is ready."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("NAGAYA_", "COV"))}
        environment |= {"NAGAYA_DATA": str(self.data), "NAGAYA_DRAIN_S": "5", "PYTHONUNBUFFERED": "1"}
        environment |= self.environment
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(SERVING)], stdout=subprocess.PIPE, stderr=log, env=environment
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith(b"port "):
            raise AssertionError(f"the server did not start:\n{self.log()}")
        self.port = int(line.split()[1])
        deadline_s = time.monotonic() + READY_S
        with httpx.Client(base_url=self.url) as client:
            while time.monotonic() < deadline_s:
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    if self._process.poll() is not None:
                        break
                time.sleep(0.05)
            else:
                raise AssertionError(f"the server is not ready:\n{self.log()}")
        if self._process.poll() is not None:
            raise AssertionError(f"the server ended:\n{self.log()}")
        return self

    def kill(self) -> None:
        """End it as a power cut would: SIGKILL."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> int:
        """End it with SIGTERM; its exit status."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        return self._reap()

    def ended_by_itself(self, deadline_s: float) -> int:
        """Its exit status once it has ended; fails where it goes on for so long."""
        assert self._process is not None
        self._process.wait(deadline_s)
        return self._reap()

    def _reap(self) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        try:
            status = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        assert process.stdout is not None
        process.stdout.close()
        return status

    def log(self) -> str:
        """Everything it has logged, over all its starts."""
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def client(self, key: str | None = None, **headers: str) -> httpx.Client:
        """A client with that key, closed with the server."""
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        client = httpx.Client(base_url=self.url, headers=headers, timeout=30)
        self._clients.append(client)
        return client

    @property
    def admin(self) -> httpx.Client:
        return self.client(self.operator_key)

    def operate(self, method: str, path: str, body: Any = None, **params: str) -> Any:
        """One act of the operator's; its answer. Fails the test where it is refused."""
        with httpx.Client(base_url=self.url, timeout=30) as client:
            reply = client.request(
                method, path, json=body, params=params, headers={"authorization": f"Bearer {self.operator_key}"}
            )
        assert reply.is_success, f"{method} {path}: {reply.status_code} {reply.text}"
        return reply.json()

    def tenant(self, tenant_id: str, **fields: Any) -> None:
        """A new tenant."""
        self.operate("POST", "/admin/tenants", {"id": tenant_id, "name": tenant_id.title(), **fields})

    def key(self, tenant_id: str, user: str = "mio", role: str = "user", name: str = "key", **fields: Any) -> str:
        """An API key of a user."""
        body = {"tenant": tenant_id, "user": user, "role": role, "name": name, **fields}
        made: str = self.operate("POST", "/admin/api-keys", body)["api_key"]
        return made

    def token(self, tenant_id: str, user: str = "mio", role: str = "user", **fields: Any) -> str:
        """A token of the local issuer, for a tenant or a workspace's address."""
        path = f"/admin/tenants/{tenant_id.replace('/', '/workspaces/')}/tokens"
        made: str = self.operate("POST", path, {"user": user, "role": role, **fields})["token"]
        return made

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self._process is not None:
            self.stop()


async def _operator_key(data: Path) -> str:
    async with Nagaya.open(settings=Settings(data=str(data))) as nagaya:
        issued = await nagaya.tenants.create_api_key(None, name="operator", user="op", role="operator")
        return issued.api_key


@contextmanager
def running(folder: Path, **environment: str) -> Iterator[RunningServer]:
    """A server over a fresh folder, stopped at the end."""
    server = RunningServer(folder, environment)
    try:
        yield server.start()
    finally:
        server.close()


def sse(text: str) -> list[dict[str, Any]]:
    """The JSON documents of a stream of server-sent events, ``[DONE]`` left out."""
    lines = [line for line in text.splitlines() if line.startswith("data: ") and line != "data: [DONE]"]
    return [json.loads(line.removeprefix("data: ")) for line in lines]
