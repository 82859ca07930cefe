"""A second, independent DynamoDB for everything without transactions, on a free port of loopback.

Installed once from the lock file beside this module into ``.parts/dynalite`` at the project's root.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from parts.environments import npm_script
from parts.ports import free_port, stopped_at_the_end, wait_for


@pytest.fixture(scope="session")
def dynalite_url() -> Iterator[str]:
    """The stand-in's address, for the session."""
    script = npm_script("dynalite", "dynalite/cli.js", omit="optional")
    port = free_port()
    # It listens on every interface unless told otherwise.
    command = ["node", str(script), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--createTableMs", "0", "--deleteTableMs", "0", "--updateTableMs", "0"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with stopped_at_the_end(running):
        wait_for("dynalite", running, port)
        yield f"http://127.0.0.1:{port}"
