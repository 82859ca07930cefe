"""Starts ``@copilotkit/aimock``, a model server that others wrote, for a second opinion on the adapter.

Installed once from the lock file beside this module into ``.parts/aimock`` at the project's root. Where npm is absent
the tests that want it are skipped by that name, and fail when ``NAGAYA_TEST_ALL=1`` asks for everything.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from parts.environments import absent, npm_script

ANSWERS = Path(__file__).parent / "aimock" / "answers.json"
START_S = 60


@contextlib.contextmanager
def running() -> Iterator[str]:
    """The base URL of an aimock that answers from ``answers.json``."""
    script = npm_script("aimock", "@copilotkit/aimock/dist/cli.js", omit="peer")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        ["node", str(script), "-h", "127.0.0.1", "-p", str(port), "-f", str(ANSWERS),
         "--strict", "--log-level", "silent"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > end:
                absent("aimock", "it did not start")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)
