"""Starts ``@vercel/cosmosdb-server``, which stands in for Cosmos DB behind :mod:`parts.cosmos_shim`.

Installed once from the lock file in ``cosmos/`` into ``.parts/cosmos`` at the project's root. Never to be used bare: it
shows every partition's rows to a query, takes any key and does not undo half a batch.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from parts.environments import PARTS, absent

NAME = "cosmosdb-server"
HERE = Path(__file__).parent / "cosmos"
PLACE = PARTS / "cosmos"
INSTALL_S = 180
START_S = 15


def _installed() -> Path:
    script = PLACE / "node_modules" / "@vercel" / "cosmosdb-server" / "lib" / "index.js"
    lock = (HERE / "package-lock.json").read_bytes()
    copy = PLACE / "package-lock.json"
    if script.exists() and copy.exists() and copy.read_bytes() == lock:
        return script
    if shutil.which("npm") is None or shutil.which("node") is None:
        absent(NAME, "npm is not installed")
    PLACE.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(HERE / name, PLACE / name)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(command, cwd=PLACE, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        copy.unlink()
        absent(NAME, "npm did not install it in time")
    if done.returncode:
        copy.unlink()
        absent(NAME, done.stderr[-300:])
    return script


@contextlib.contextmanager
def running() -> Iterator[str]:
    """The base URL of a server that holds nothing yet."""
    script = _installed()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As its command line would, but with connections that stay open.
    start = f"require({json.dumps(str(script))}).createHttpServer({{keepAlive: true}}).listen({port}, '127.0.0.1')"
    process = subprocess.Popen(
        ["node", "-e", start],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > end:
                absent(NAME, "it did not start")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
