"""The server as a child process: configured as `nagaya serve` does, on a free port of the loopback, which it prints."""

from __future__ import annotations

import os
import socket

import uvicorn

from nagaya.cli.serving import configured
from nagaya.kernel.telemetry import set_up_logging
from nagaya.server.app import Application
from nagaya.settings import load_settings


def main() -> None:
    """Serve until SIGTERM; the settings are in the environment (``NAGAYA_…``)."""
    settings = load_settings()
    set_up_logging("info", "json")
    limit = os.environ.get("TEST_FILE_SIZE_LIMIT")
    if limit is not None:
        import resource
        import signal

        # A write beyond the limit then fails with EFBIG instead of killing the process.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(f"port {listener.getsockname()[1]}", flush=True)
    uvicorn.Server(configured(settings, Application(settings))).run(sockets=[listener])


if __name__ == "__main__":
    main()
