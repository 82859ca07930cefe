"""Starts ``@vercel/cosmosdb-server``, which stands in for Cosmos DB behind :mod:`parts.cosmos_shim`.

Installed once from the lock file in ``cosmos/`` into ``.parts/cosmos`` at the project's root. Never to be used bare: it
shows every partition's rows to a query, takes any key and does not undo half a batch.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator

from parts.environments import absent, npm_script

NAME = "cosmosdb-server"
START_S = 60


@contextlib.contextmanager
def running() -> Iterator[str]:
    """The base URL of a server that holds nothing yet."""
    script = npm_script("cosmos", "@vercel/cosmosdb-server/lib/index.js")
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
        process.wait(60)
