"""Starts ``@copilotkit/aimock``, a model server that others wrote, for a second opinion on the adapter.

Installed once from the lock file beside this module into ``.parts/aimock`` at the project's root. Where npm is absent
the tests that want it are skipped by that name, and fail when ``NAGAYA_TEST_ALL=1`` asks for everything.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "aimock"
PLACE = Path(__file__).parents[2] / ".parts" / "aimock"
INSTALL_S = 120
START_S = 15


def _installed() -> Path:
    script = PLACE / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
    lock = (HERE / "package-lock.json").read_bytes()
    copy = PLACE / "package-lock.json"
    if script.exists() and copy.exists() and copy.read_bytes() == lock:
        return script
    if shutil.which("npm") is None or shutil.which("node") is None:
        _without("npm is not installed")
    PLACE.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(HERE / name, PLACE / name)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=peer"]
    try:
        done = subprocess.run(command, cwd=PLACE, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        copy.unlink()
        _without("npm did not install aimock in time")
    if done.returncode:
        copy.unlink()
        _without(f"npm could not install aimock: {done.stderr[-300:]}")
    return script


def _without(reason: str) -> None:
    if os.environ.get("NAGAYA_TEST_ALL") == "1":
        pytest.fail(f"aimock is wanted by NAGAYA_TEST_ALL=1, but {reason}")
    pytest.skip(f"aimock: {reason}")


@contextlib.contextmanager
def running() -> Iterator[str]:
    """The base URL of an aimock that answers from ``answers.json``."""
    script = _installed()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        ["node", str(script), "-h", "127.0.0.1", "-p", str(port), "-f", str(HERE / "answers.json"),
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
                _without("it did not start")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(10)
