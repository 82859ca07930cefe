"""Free ports of the loopback, and waiting until somebody listens."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator

from parts.environments import absent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for(part: str, running: subprocess.Popen[bytes], port: int, *, ready_s: float = 60.0) -> None:
    """Until the part listens; where it ends or stays silent, its tests are skipped by its name."""
    deadline = time.monotonic() + ready_s
    while time.monotonic() < deadline:
        if running.poll() is not None:
            absent(part, f"it ended at once with {running.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    absent(part, f"it did not listen within {ready_s:.0f} s")


@contextlib.contextmanager
def stopped_at_the_end(running: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        running.terminate()
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
