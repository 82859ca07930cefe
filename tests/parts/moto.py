"""The second AWS stand-in, for the cryptography of its KMS, on a free port of loopback."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from parts.environments import environment
from parts.ports import free_port, stopped_at_the_end, wait_for


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """The stand-in's address, for the session."""
    python = environment("moto")
    port = free_port()
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    command = [str(python), "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    running = subprocess.Popen(command, env=kept, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with stopped_at_the_end(running):
        wait_for("moto", running, port)
        yield f"http://127.0.0.1:{port}"
